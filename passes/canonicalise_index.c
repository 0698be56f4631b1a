/* canonicalise_index.c: the many ways of indexing, and one sweep that shares equal views. */
#include <stdlib.h>
#include <string.h>

#include "passes/canonicalise.h"

/* gather(x, constant scalar) -> slice and reshape: a view of a weight stays a view. */
bool canon_gather(Canon *c, Node *n) {
    double at;
    if (n->op != OP_GATHER || !canon_scalar(n->in[1], &at) || n->in[0]->rank < 1)
        return false;
    Value *x = n->in[0];
    int axis = (int)node_int(n, AT_AXIS, 0);
    axis += axis < 0 ? x->rank : 0;
    int64_t i = (int64_t)at, size = x->dims[axis];
    if (size < 0 || i >= size || i < -size)
        return false;
    i += i < 0 ? size : 0;
    Builder b = builder_before(n);
    Value *s = op_slice(&b, x, axis, i, i + 1, 1);
    int64_t dims[MAX_RANK];
    int symbols = 0;
    for (int k = 0; k < n->out[0]->rank; k++) {
        dims[k] = n->out[0]->dims[k] < 0 ? -1 : n->out[0]->dims[k];
        symbols += dims[k] < 0;
    }
    if (symbols > 1)
        return false;
    Node *r =
        op_node(&b, OP_RESHAPE, &s, 1, &(Attr){.key = AT_DIMS, .ints = {n->out[0]->rank, dims}}, 1);
    return canon_replace(c, n->out[0], r->out[0]);
}

/* gather_nd with one column: gather_nd(x, idx[…,1]) -> gather(x, idx[…]) on axis 0. */
bool canon_gather_nd(Canon *c, Node *n) {
    if (n->op != OP_GATHER_ND || node_int(n, AT_BATCH_DIMS, 0) != 0)
        return false;
    Value *idx = n->in[1];
    if (idx->rank < 1 || idx->dims[idx->rank - 1] != 1)
        return false;
    int64_t dims[MAX_RANK];
    int symbols = 0;
    for (int i = 0; i + 1 < idx->rank; i++) {
        dims[i] = idx->dims[i] < 0 ? -1 : idx->dims[i];
        symbols += idx->dims[i] < 0;
    }
    if (symbols > 1)
        return false;
    Builder b = builder_before(n);
    Node *r =
        op_node(&b, OP_RESHAPE, &idx, 1, &(Attr){.key = AT_DIMS, .ints = {idx->rank - 1, dims}}, 1);
    canon_touch(c, r, false);
    return canon_replace(c, n->out[0], op_gather(&b, n->in[0], r->out[0], 0));
}

/* gather_elements(x, i expanded over every other axis) -> gather(x, i). */
bool canon_gather_elements(Canon *c, Node *n) {
    if (n->op != OP_GATHER_ELEMENTS || n->in[1]->def->op != OP_EXPAND || n->in[1]->def->nin != 1)
        return false;
    Value *x = n->in[0], *idx = n->in[1], *i = idx->def->in[0];
    int axis = (int)node_int(n, AT_AXIS, 0);
    axis += axis < 0 ? x->rank : 0;
    if (i->rank != x->rank || i->dims[axis] != idx->dims[axis])
        return false;
    for (int k = 0; k < x->rank; k++)
        if (k != axis && (i->dims[k] != 1 || idx->dims[k] != x->dims[k]))
            return false;
    int64_t flat = i->dims[axis] < 0 ? -1 : i->dims[axis];
    Builder b = builder_before(n);
    Node *r = op_node(&b, OP_RESHAPE, &i, 1, &(Attr){.key = AT_DIMS, .ints = {1, &flat}}, 1);
    canon_touch(c, r, false);
    Value *g = op_gather(&b, x, r->out[0], axis);
    return same_dims(g, n->out[0]) && canon_replace(c, n->out[0], g);
}

/* The part of a slice that starts at 0 along topk's axis: its length, or -1. */
static int64_t first_entries(const Node *n, int axis) {
    const int64_t *axes, *starts, *ends, *steps;
    int count = node_ints(n, AT_AXES, &axes), nt = node_ints(n, AT_STEPS, &steps);
    if (n->op != OP_SLICE || n->nin != 1 || count != 1 || axes[0] != axis ||
        node_ints(n, AT_STARTS, &starts) != 1 || node_ints(n, AT_ENDS, &ends) != 1 || starts[0] ||
        (nt && steps[0] != 1))
        return -1;
    return n->out[0]->dims[axis];
}

/* The first k of all sorted entries -> topk of k. */
bool canon_topk(Canon *c, Node *n) {
    if (n->op != OP_TOPK)
        return false;
    int axis = (int)node_int(n, AT_AXIS, -1);
    axis += axis < 0 ? n->in[0]->rank : 0;
    int64_t k = -1, all = node_int(n, AT_K, 0);
    for (int i = 0; i < n->nout; i++)
        for (int u = 0; u < n->out[i]->uses.n; u++) {
            int64_t first = first_entries(n->out[i]->uses.at[u].node, axis);
            if (first < 1 || first >= all || (k >= 0 && first != k))
                return false;
            k = first;
        }
    if (k < 0 || value_is_output(n->out[0]) || value_is_output(n->out[1]))
        return false;
    node_set_int(n, AT_K, k);
    canon_touch(c, n, true);
    for (int i = 0; i < n->nout; i++)
        for (int u = 0; u < n->out[i]->uses.n; u++)
            canon_touch(c, n->out[i]->uses.at[u].node, false);
    return true;
}

/* ---- sharing ---- */

static bool sharable(const Node *n) {
    switch (n->op) {
    case OP_CONST:
    case OP_RESHAPE:
    case OP_TRANSPOSE:
    case OP_EXPAND:
    case OP_SLICE:
    case OP_SHAPE:
        return true;
    default:
        return n->nout == 1 && !(op_info[n->op].flags & (OPF_LEAF | OPF_EFFECT)) && n->nin > 0 &&
               !dtype_is_float(n->out[0]->dtype);
    }
}

static uint64_t attr_hash(const Attr *a, uint64_t h) {
    h = hash_bytes(&a->key, sizeof a->key, h);
    switch (attr_info[a->key].kind) {
    case ATTR_INT:
        return hash_bytes(&a->i, sizeof a->i, h);
    case ATTR_FLOAT:
        return hash_bytes(&a->f, sizeof a->f, h);
    case ATTR_INTS:
        return a->ints.n ? hash_bytes(a->ints.at, sizeof *a->ints.at * (size_t)a->ints.n, h) : h;
    case ATTR_STR:
        return hash_bytes(a->s, strlen(a->s), h);
    case ATTR_TENSOR:
        h = hash_bytes(&a->t->dtype, sizeof a->t->dtype, h);
        h = hash_bytes(a->t->dims, sizeof *a->t->dims * (size_t)a->t->rank, h);
        return hash_data(a->t->data, tensor_bytes(a->t), h);
    }
    return h;
}

static bool attr_same(const Attr *a, const Attr *b) {
    if (a->key != b->key)
        return false;
    switch (attr_info[a->key].kind) {
    case ATTR_INT:
        return a->i == b->i;
    case ATTR_FLOAT:
        return a->f == b->f;
    case ATTR_INTS:
        return a->ints.n == b->ints.n &&
               !memcmp(a->ints.at, b->ints.at, sizeof *a->ints.at * (size_t)a->ints.n);
    case ATTR_STR:
        return !strcmp(a->s, b->s);
    case ATTR_TENSOR:
        return tensor_equal(a->t, b->t);
    }
    return false;
}

static bool node_same(const Node *a, const Node *b) {
    if (a->op != b->op || a->nin != b->nin || a->nattr != b->nattr ||
        a->out[0]->dtype != b->out[0]->dtype)
        return false;
    for (int i = 0; i < a->nin; i++)
        if (a->in[i] != b->in[i])
            return false;
    for (int i = 0; i < a->nattr; i++)
        if (!attr_same(&a->attrs[i], &b->attrs[i]))
            return false;
    return true;
}

static uint64_t node_hash(const Node *n) {
    uint64_t h = hash_bytes(&n->op, sizeof n->op, 0);
    for (int i = 0; i < n->nin; i++) {
        int id = n->in[i] ? n->in[i]->id : -1;
        h = hash_bytes(&id, sizeof id, h);
    }
    for (int i = 0; i < n->nattr; i++)
        h = attr_hash(&n->attrs[i], h);
    return h;
}

bool canon_share(Canon *c) {
    size_t cap = 64, used = 0;
    FOR_NODES(n, c->g)
    used++;
    while (cap < used * 2)
        cap *= 2;
    struct Slot {
        uint64_t hash;
        Node *node;
    } *table = xcalloc(cap, sizeof *table);
    bool changed = false;
    FOR_NODES_SAFE(n, c->g) {
        if (!sharable(n) || n->out[0]->uses.n + value_is_output(n->out[0]) == 0)
            continue;
        uint64_t h = node_hash(n);
        size_t i = h & (cap - 1);
        while (table[i].node && !(table[i].hash == h && node_same(table[i].node, n)))
            i = (i + 1) & (cap - 1);
        if (!table[i].node) {
            table[i] = (struct Slot){h, n};
            continue;
        }
        /* Two lists of the places of one mask have sizes of different names: users infer again. */
        Value *kept = table[i].node->out[0];
        for (int u = 0; u < n->out[0]->uses.n; u++)
            canon_touch(c, n->out[0]->uses.at[u].node, !same_dims(n->out[0], kept));
        value_replace(
            n->out[0],
            kept); /* n is swept by the final dead-code pass: the table may still hold its users */
        changed = true;
    }
    free(table);
    return changed;
}
