/* simplify.c: algebraic clean-up, common subexpressions, dead code, before kernels are made.
 *
 * What: rewrites nodes by small local rules (simplify_rules.c) until none applies, then merges
 * nodes that compute the same from the same. Every rule keeps values bit for bit, but for the order
 * of constant factors and the sign of zero. Needs: any inferred graph. Gives: the same outputs and
 * updates from fewer nodes. Breaks: nothing; sources of merged nodes are those of the first. */
#include "passes/simplify.h"

#include <stdlib.h>
#include <string.h>

/* ---- common subexpressions: one walk in order, a hash table of what is there already ---- */

enum { MERGED_CONST_MAX = 4096 }; /* bytes; larger constants are compared by nobody */

static uint64_t hash_attr(const Attr *a, uint64_t h) {
    switch (attr_info[a->key].kind) {
    case ATTR_INT:
        return hash_bytes(&a->i, sizeof a->i, h);
    case ATTR_FLOAT:
        return hash_bytes(&a->f, sizeof a->f, h);
    case ATTR_INTS:
        return hash_bytes(a->ints.at, sizeof *a->ints.at * (size_t)a->ints.n, h);
    case ATTR_STR:
        return hash_bytes(a->s, strlen(a->s), h);
    case ATTR_TENSOR:
        return hash_data(a->t->data, tensor_bytes(a->t),
                         hash_bytes(a->t->dims, sizeof(int64_t) * (size_t)a->t->rank, h));
    }
    return h;
}

static bool same_attr(const Attr *a, const Attr *b) {
    if (a->key != b->key)
        return false;
    switch (attr_info[a->key].kind) {
    case ATTR_INT:
        return a->i == b->i;
    case ATTR_FLOAT:
        return !memcmp(&a->f, &b->f, sizeof a->f);
    case ATTR_INTS:
        return a->ints.n == b->ints.n &&
               (!a->ints.n ||
                !memcmp(a->ints.at, b->ints.at, sizeof *a->ints.at * (size_t)a->ints.n));
    case ATTR_STR:
        return !strcmp(a->s, b->s);
    case ATTR_TENSOR:
        return a->t == b->t || tensor_equal(a->t, b->t);
    }
    return false;
}

static bool mergeable(const Node *n) {
    if (n->op == OP_CONST)
        return tensor_bytes(value_const(n->out[0])) <= MERGED_CONST_MAX;
    return !(op_info[n->op].flags & OPF_EFFECT);
}

static uint64_t hash_node(const Node *n) {
    uint64_t h = hash_bytes(&n->op, sizeof n->op, (uint64_t)n->nin);
    for (int i = 0; i < n->nin; i++) {
        int id = n->in[i] ? n->in[i]->id : -1;
        h = hash_bytes(&id, sizeof id, h);
    }
    for (int i = 0; i < n->nattr; i++)
        h = hash_attr(&n->attrs[i], hash_bytes(&n->attrs[i].key, sizeof n->attrs[i].key, h));
    return h;
}

static bool same_node(const Node *a, const Node *b) {
    if (a->op != b->op || a->nin != b->nin || a->nout != b->nout || a->nattr != b->nattr)
        return false;
    for (int i = 0; i < a->nin; i++)
        if (a->in[i] != b->in[i])
            return false;
    for (int i = 0; i < a->nattr; i++)
        if (!same_attr(&a->attrs[i], &b->attrs[i]))
            return false;
    return true;
}

/* Operands of a commutative op in one order. */
static void order_operands(Node *n) {
    if (!(op_info[n->op].flags & OPF_COMMUTE) || n->in[0]->id <= n->in[1]->id)
        return;
    Value *x = n->in[0], *y = n->in[1];
    node_set_in(n, 0, y);
    node_set_in(n, 1, x);
}

bool simplify_merge(Graph *g) {
    size_t count = 0, cap = 64;
    FOR_NODES(n, g)
    count++;
    while (cap < 2 * count)
        cap *= 2;
    Node **slots = xcalloc(cap, sizeof *slots);
    bool changed = false;
    FOR_NODES_SAFE(n, g) {
        if (!mergeable(n))
            continue;
        order_operands(n);
        size_t at = hash_node(n) & (cap - 1);
        while (slots[at] && !same_node(slots[at], n))
            at = (at + 1) & (cap - 1);
        if (!slots[at]) {
            slots[at] = n;
            continue;
        }
        for (int i = 0; i < n->nout; i++)
            value_replace(n->out[i], slots[at]->out[i]);
        node_remove(n);
        changed = true;
    }
    free(slots);
    return changed;
}

bool pass_simplify(Compile *c) {
    bool changed = true;
    for (int round = 0; changed && round < 16; round++) {
        changed = simplify_rules(c->g);
        changed |= graph_dce(c->g);
        changed |= simplify_merge(c->g);
    }
    graph_dce(c->g);
    return true;
}
