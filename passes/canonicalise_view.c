/* canonicalise_view.c: reshape, transpose, expand, slice, concat, cast: no-ops vanish and chains
 * shorten. */
#include <string.h>

#include "passes/canonicalise.h"

/* The attribute form: nothing but the data operand. */
static bool plain(const Node *n, Op op) {
    return n->op == op && n->nin == 1 && n->out[0]->rank >= 0 && n->in[0]->rank >= 0;
}

/* Could rank and dims be replaced as they are by a reshape? True if at most one dim is a symbol. */
static bool reshape_dims(const Value *v, int64_t *dims) {
    int symbols = 0, zeros = 0;
    for (int i = 0; i < v->rank; i++) {
        dims[i] = v->dims[i] < 0 ? -1 : v->dims[i];
        symbols += v->dims[i] < 0;
        zeros += v->dims[i] == 0;
    }
    return symbols == 0 || (symbols == 1 && !zeros);
}

static Value *reshape_like(const Node *at, Value *x, const Value *like) {
    int64_t dims[MAX_RANK];
    if (!reshape_dims(like, dims))
        return NULL;
    Builder b = builder_before((Node *)(uintptr_t)at);
    Node *n =
        op_node(&b, OP_RESHAPE, &x, 1, &(Attr){.key = AT_DIMS, .ints = {like->rank, dims}}, 1);
    return same_dims(n->out[0], like) ? n->out[0] : NULL;
}

bool canon_reshape(Canon *c, Node *n) {
    if (!plain(n, OP_RESHAPE))
        return false;
    if (same_dims(n->in[0], n->out[0]))
        return canon_replace(c, n->out[0], n->in[0]);
    Node *d = n->in[0]->def;
    int64_t dims[MAX_RANK];
    if (!plain(d, OP_RESHAPE) || !reshape_dims(n->out[0], dims))
        return false;
    /* The result keeps its dims: those of n, with one -1 for a symbol. */
    node_set_ints(n, AT_DIMS, dims, n->out[0]->rank);
    canon_set_in(c, n, 0, d->in[0]);
    return true;
}

bool canon_transpose(Canon *c, Node *n) {
    const int64_t *perm, *inner;
    if (!plain(n, OP_TRANSPOSE))
        return false;
    int rank = node_ints(n, AT_PERM, &perm);
    if (rank != n->in[0]->rank)
        return false;
    bool identity = true, moves = false;
    int last = -1;
    for (int i = 0; i < rank; i++) {
        identity &= perm[i] == i;
        if (n->in[0]->dims[perm[i]] == 1)
            continue;
        moves |= perm[i] < last;
        last = (int)perm[i];
    }
    if (identity)
        return canon_replace(c, n->out[0], n->in[0]);
    if (!moves) { /* only axes of size 1 change places */
        Value *v = reshape_like(n, n->in[0], n->out[0]);
        return v && canon_replace(c, n->out[0], v);
    }
    Node *d = n->in[0]->def;
    if (!plain(d, OP_TRANSPOSE) || node_ints(d, AT_PERM, &inner) != rank)
        return false;
    int64_t both[MAX_RANK];
    for (int i = 0; i < rank; i++)
        both[i] = inner[perm[i]];
    node_set_ints(n, AT_PERM, both, rank);
    canon_set_in(c, n, 0, d->in[0]);
    return true;
}

bool canon_expand(Canon *c, Node *n) {
    if (!plain(n, OP_EXPAND))
        return false;
    if (same_dims(n->in[0], n->out[0]))
        return canon_replace(c, n->out[0], n->in[0]);
    bool only_ones = value_count(n->in[0]) >= 0 &&
                     value_count(n->in[0]) == value_count(n->out[0]) && n->out[0]->rank;
    if (only_ones) { /* leading axes of size 1 */
        Value *v = reshape_like(n, n->in[0], n->out[0]);
        return v && canon_replace(c, n->out[0], v);
    }
    Node *d = n->in[0]->def;
    if (!plain(d, OP_EXPAND) || !value_known(n->out[0]))
        return false;
    node_set_ints(n, AT_DIMS, n->out[0]->dims, n->out[0]->rank);
    canon_set_in(c, n, 0, d->in[0]);
    return true;
}

bool canon_slice(Canon *c, Node *n) {
    const int64_t *steps;
    if (!plain(n, OP_SLICE) || !same_dims(n->in[0], n->out[0]))
        return false;
    /* A slice that keeps every size keeps everything, unless a step is negative. Symbolic sizes
     * that were cut got a fresh symbol, so equal symbols mean uncut. */
    for (int i = 0, k = node_ints(n, AT_STEPS, &steps); i < k; i++)
        if (steps[i] < 0)
            return false;
    return canon_replace(c, n->out[0], n->in[0]);
}

bool canon_concat(Canon *c, Node *n) {
    return n->op == OP_CONCAT && n->nin == 1 && canon_replace(c, n->out[0], n->in[0]);
}

bool canon_cast(Canon *c, Node *n) {
    if (n->op != OP_CAST)
        return false;
    DType from = n->in[0]->dtype, to = n->out[0]->dtype;
    if (from == to)
        return canon_replace(c, n->out[0], n->in[0]);
    /* bool -> int -> bool is what exporters make of a mask that is indexed and then used as a mask.
     */
    Node *d = n->in[0]->def;
    if (to == DT_BOOL && d->op == OP_CAST && d->in[0]->dtype == DT_BOOL)
        return canon_replace(c, n->out[0], d->in[0]);
    return false;
}
