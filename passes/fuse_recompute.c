/* fuse_recompute.c: what the backward pass computes again instead of keeping it.
 *
 * A value that is read early, then not for a long time, then late again costs its bytes all that
 * time. Where its expression is cheap (elementwise work, copies, gathered rows) and what that reads
 * is in memory late anyway, or small, the late readers get a clone that stands before the first of
 * them: normalised rows, rotated queries and keys, gathered rows, the activation of an expert.
 * Products, softmax, sorting and sums are never done twice.
 *
 * The graph gets the clones and is given back as it was by recompute_undo. */
#include "passes/fuse_group.h"

#include <stdlib.h>
#include <string.h>

enum {
    OPERANDS = 3,      /* of one node */
    GAP = 64,          /* nodes without a reader: a long time */
    WORTH = 256 << 10, /* bytes: less is not worth a kernel */
    SMALL = 8,         /* an operand of 1/8 of the bytes may live on for it */
    MOST = 16,         /* nodes of one expression */
    SLACK = 32,        /* nodes that an operand may live on for it */
};

typedef VEC(Node *) Nodes;

typedef struct Again {
    Graph *g;
    const bool *inlined;
    int *order; /* by node id: its place in the graph */
    int *when;  /* by node id: when it reads, about, as a place: what leaves little of what it reads
                   runs as soon as it can (fuse_hoist), what is inlined when its first reader does */
    int *until_when; /* by node id: the same of its last reader, if it is inlined */
    int *until;      /* by value id: order of the last reader, views included */
    int *late;       /* by value id: readers from here on read the clone; 0: none does */
    int *need;       /* by node id: the clone stands before the node of this order; 0: no clone */
    int *ask; /* by node id: if there will be a clone, it is to stand before this; 0: anywhere */
    Node **place; /* by order */
    Node **clone; /* by node id */
    int nodes;    /* of the expression in work */
} Again;

static int64_t bytes_of(const Value *v) {
    return value_count(v) * dtype_bytes(v->dtype);
}

static bool cheap(const Node *n) {
    switch (n->op) {
    case OP_RESHAPE:
    case OP_TRANSPOSE:
    case OP_SLICE:
    case OP_EXPAND:
        return true;
    case OP_CONCAT:
        return n->nin <= OPERANDS;
    case OP_GATHER_ROWS:
        return n->in[0]->rank == 2 && n->in[1]->rank == 1;
    default:
        return n->nout == 1 && n->nin <= OPERANDS && (op_info[n->op].flags & OPF_ELEM);
    }
}

static bool is_leaf(const Value *v) {
    return (op_info[v->def->op].flags & OPF_LEAF) != 0;
}

static int when_of(const Again *t, const Node *n) {
    int64_t read = 0, stored = 0;
    int at = 0;
    for (int i = 0; i < n->nin; i++) {
        const Node *from = n->in[i] ? n->in[i]->def : NULL;
        if (!from || is_leaf(n->in[i]))
            continue;
        read += bytes_of(n->in[i]);
        at = t->when[from->id] > at ? t->when[from->id] : at;
    }
    for (int i = 0; i < n->nout; i++)
        stored += bytes_of(n->out[i]);
    bool soon = n->nout == 1 && t->inlined[n->out[0]->id];
    return at && (soon || stored * FUSE_EAGER <= read) ? at + 1 : t->order[n->id];
}

static void place_nodes(Again *t) {
    int place = 0;
    FOR_NODES(n, t->g) {
        t->order[n->id] = ++place;
        t->place[place] = n;
        t->when[n->id] = t->until_when[n->id] = when_of(t, n);
    }
    for (Node *n = t->g->last; n; n = n->prev) {
        const Value *v = n->nout == 1 ? n->out[0] : NULL;
        for (int i = 0; v && t->inlined[v->id] && i < v->uses.n; i++) {
            int id = v->uses.at[i].node->id;
            if (i == 0 || t->when[id] < t->when[n->id])
                t->when[n->id] = t->when[id] < t->order[n->id] ? t->when[id] : t->order[n->id];
            if (i == 0 || t->until_when[id] > t->until_when[n->id])
                t->until_when[n->id] = t->until_when[id];
        }
        for (int i = 0; i < n->nin; i++)
            if (n->in[i] && t->until[n->in[i]->id] < t->until_when[n->id])
                t->until[n->in[i]->id] = t->until_when[n->id];
        int64_t offset;
        if (v && !(op_info[n->op].flags & OPF_LEAF) && fuse_is_view(n, &offset) &&
            t->until[v->id] > t->until[n->in[0]->id])
            t->until[n->in[0]->id] = t->until[v->id]; /* who reads a part reads the whole */
    }
}

/* The place of the first reader after the longest pause of at least GAP nodes; 0: there is none. */
static int first_late(const Again *t, const Value *v) {
    int at = t->when[v->def->id], gap = GAP, late = 0;
    for (;;) { /* few readers */
        int next = 0;
        for (int i = 0; i < v->uses.n; i++) {
            int o = t->when[v->uses.at[i].node->id];
            if (o > at && (!next || o < next))
                next = o;
        }
        if (!next)
            return late;
        if (next - at > gap)
            gap = next - at, late = next;
        at = next;
    }
}

/* v can be had at `at`: it is there, or its expression can be computed. */
static bool available(Again *t, const Value *v, int at, int64_t bytes, bool there) {
    if (is_leaf(v) || t->need[v->def->id])
        return true;
    if (there && (bytes_of(v) * SMALL <= bytes || t->until[v->id] + SLACK >= at))
        return true;
    if (!cheap(v->def) || ++t->nodes > MOST)
        return false;
    for (int i = 0; i < v->def->nin; i++)
        if (v->def->in[i] && !available(t, v->def->in[i], at, bytes, true))
            return false;
    return true;
}

/* Marks what `available` found out. */
static void mark(Again *t, const Value *v, int at, int64_t bytes, bool there) {
    int *need = &t->need[v->def->id], *ask = &t->ask[v->def->id];
    if (is_leaf(v))
        return;
    at = *ask && *ask < at ? *ask : at;
    *ask = at;
    if (there && !*need && (bytes_of(v) * SMALL <= bytes || t->until[v->id] + SLACK >= at))
        return;
    if ((*need && *need <= at) || !cheap(v->def)) /* what is not cheap is kept, small as it is */
        return;
    *need = at;
    for (int i = 0; i < v->def->nin; i++)
        if (v->def->in[i])
            mark(t, v->def->in[i], at, bytes, true);
}

static const Value *memory_of(const Value *v) {
    int64_t offset;
    while (!is_leaf(v) && fuse_is_view(v->def, &offset))
        v = v->def->in[0];
    return v;
}

static bool wanted(const Again *t, const Node *n) {
    const Value *v = n->out[0];
    return n->nout == 1 && cheap(n) && bytes_of(v) >= WORTH && !value_is_output(v) &&
           !t->inlined[memory_of(v)->id] && !is_leaf(memory_of(v));
}

/* Readers come before what they read, so that the place of a clone is settled when it is asked what
 * it reads. */
static void decide(Again *t) {
    for (Node *n = t->g->last; n; n = n->prev) {
        if (!wanted(t, n))
            continue;
        Value *v = n->out[0];
        int late = first_late(t, v), at = t->ask[n->id];
        if (!late)
            continue;
        at = at && at < late ? at : late;
        t->nodes = 0;
        int64_t offset;
        bool view = fuse_is_view(n, &offset), ok = true; /* what it is of is there because of it */
        for (int i = 0; i < n->nin && ok; i++)
            ok = !n->in[i] || available(t, n->in[i], at, bytes_of(v), !view);
        if (!ok)
            continue;
        t->late[v->id] = late;
        t->need[n->id] = at;
        for (int i = 0; i < n->nin; i++)
            if (n->in[i])
                mark(t, n->in[i], at, bytes_of(v), !view);
    }
}

static Node *copy_node(Again *t, Node *n) {
    Builder b = {.g = t->g, .before = t->place[t->need[n->id]], .src = n->src};
    Value *in[OPERANDS];
    for (int i = 0; i < n->nin; i++)
        in[i] = n->in[i] && t->clone[n->in[i]->def->id] ? t->clone[n->in[i]->def->id]->out[0]
                                                        : n->in[i];
    Node *c = build_node(&b, n->op, in, n->nin, 1);
    node_set_attrs(c, n->attrs, n->nattr);
    Value *v = c->out[0];
    v->dtype = n->out[0]->dtype, v->rank = n->out[0]->rank;
    memcpy(v->dims, n->out[0]->dims, sizeof v->dims);
    return c;
}

static void rewire(Again *t, Value *v, Value *with, Recomputed *r) {
    for (int i = v->uses.n - 1; i >= 0; i--) {
        Use u = v->uses.at[i];
        if (u.node->id >= r->first || t->when[u.node->id] < t->late[v->id])
            continue;
        vec_push(&r->uses, ((RecomputedUse){u.node, u.operand, v}));
        node_set_in(u.node, u.operand, with);
    }
}

void fuse_recompute(Graph *g, const bool *inlined, Recomputed *r) {
    size_t nv = (size_t)g->next_value + 1, nn = (size_t)g->next_node + 1;
    Again t = {.g = g,
               .inlined = inlined,
               .order = xcalloc(nn, sizeof(int)),
               .when = xcalloc(nn, sizeof(int)),
               .until_when = xcalloc(nn, sizeof(int)),
               .until = xcalloc(nv, sizeof(int)),
               .late = xcalloc(nv, sizeof(int)),
               .need = xcalloc(nn, sizeof(int)),
               .ask = xcalloc(nn, sizeof(int)),
               .place = xcalloc(nn + 1, sizeof(Node *)),
               .clone = xcalloc(nn, sizeof(Node *))};
    r->first = g->next_node;
    place_nodes(&t);
    decide(&t);
    for (int i = 1; t.place[i]; i++) {
        Node *n = t.place[i];
        if (!t.need[n->id])
            continue;
        t.clone[n->id] = copy_node(&t, n);
        vec_push(&r->clones, t.clone[n->id]);
    }
    for (int i = 1; t.place[i]; i++) {
        Node *n = t.place[i];
        if (t.need[n->id] && t.late[n->out[0]->id])
            rewire(&t, n->out[0], t.clone[n->id]->out[0], r);
    }
    free(t.order);
    free(t.when);
    free(t.until_when);
    free(t.until);
    free(t.late);
    free(t.need);
    free(t.ask);
    free(t.place);
    free(t.clone);
}

void recompute_undo(Recomputed *r) {
    for (int i = 0; i < r->uses.n; i++)
        node_set_in(r->uses.at[i].node, r->uses.at[i].operand, r->uses.at[i].was);
    for (int i = r->clones.n - 1; i >= 0; i--)
        node_remove(r->clones.at[i]);
    vec_free(&r->uses);
    vec_free(&r->clones);
}
