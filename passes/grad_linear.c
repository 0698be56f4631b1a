/* grad_linear.c: gradients of products and of the row-wise losses. Transposes become flags of the
 * products, never tensors. Letters: A B operands as stored, A' B' as multiplied ([…,m,k] and
 * […,k,n]), g the cotangent [...,m,n]. */
#include <string.h>

#include "passes/grad.h"

/* dA of A'B': g B'^T, stored as A is. */
static Value *left_slope(Grad *G, Value *b, Value *g, bool ta, bool tb) {
    return ta ? op_matmul(&G->b, b, g, tb, true) : op_matmul(&G->b, g, b, false, !tb);
}

/* dB of A'B': A'^T g, stored as B is. */
static Value *right_slope(Grad *G, Value *a, Value *g, bool ta, bool tb) {
    return tb ? op_matmul(&G->b, g, a, true, ta) : op_matmul(&G->b, a, g, !ta, false);
}

/* All axes but the last as one. */
static Value *flat_rows(Grad *G, Value *x) {
    int64_t dims[2] = {1, x->dims[x->rank - 1]};
    for (int i = 0; i < x->rank - 1; i++)
        dims[0] *= x->dims[i];
    return op_reshape(&G->b, x, 2, dims);
}

/* A vector operand of numpy's matmul as the matrix it stands for. */
static Value *as_matrix(Grad *G, Value *x, bool left) {
    if (x->rank != 1)
        return x;
    int64_t dims[2] = {left ? 1 : x->dims[0], left ? x->dims[0] : 1};
    return op_reshape(&G->b, x, 2, dims);
}

void grad_matmul(Grad *G, Node *n, Value *const *dout) {
    Value *A = n->in[0], *B = n->in[1], *g = dout[0];
    bool ta = node_int(n, AT_TRANS_A, 0) && A->rank > 1,
         tb = node_int(n, AT_TRANS_B, 0) && B->rank > 1;
    Value *a = as_matrix(G, A, true), *b = as_matrix(G, B, false);
    int64_t dims[MAX_RANK];
    int rank = 0;
    for (int i = 0; i < g->rank - (A->rank > 1) - (B->rank > 1); i++)
        dims[rank++] = g->dims[i];
    dims[rank++] = A->rank > 1 ? a->dims[a->rank - (ta ? 1 : 2)] : 1;
    dims[rank++] = B->rank > 1 ? b->dims[b->rank - (tb ? 2 : 1)] : 1;
    g = op_reshape(&G->b, g, rank, dims);
    if (b->rank == 2 && a->rank > 2 &&
        !ta) { /* rows of a batch through one weight: one product, not a batch and a sum */
        a = flat_rows(G, a);
        g = flat_rows(G, g);
    }
    if (grad_needs(G, A)) {
        Value *da = left_slope(G, b, g, ta, tb);
        grad_add(G, A, g_reshape(G, grad_unbroadcast(G, da, a), A));
    }
    if (grad_needs(G, B)) {
        Value *db = right_slope(G, a, g, ta, tb);
        grad_add(G, B, g_reshape(G, grad_unbroadcast(G, db, b), B));
    }
}

/* The window attributes of n, and DIMS when `dims` is given. */
static int window_attrs(const Node *n, Attr *out, const int64_t *dims, int ndims) {
    int k = 0;
    for (int i = 0; i < n->nattr; i++)
        if (n->attrs[i].key != AT_DIMS && n->attrs[i].key != AT_VALUE_F)
            out[k++] = n->attrs[i];
    if (dims)
        out[k++] = attr_ints(AT_DIMS, dims, ndims);
    return k;
}

void grad_unfold(Grad *G, Node *n, Value *const *dout) {
    Attr a[8];
    int k = window_attrs(n, a, n->in[0]->dims + 2, n->in[0]->rank - 2);
    grad_add(G, n->in[0], g_node1(G, OP_FOLD, dout, 1, a, k));
}

void grad_fold(Grad *G, Node *n, Value *const *dout) {
    Attr a[8];
    int k = window_attrs(n, a, NULL, 0);
    grad_add(G, n->in[0], g_node1(G, OP_UNFOLD, dout, 1, a, k));
}

/* ---- rows ---- */

static Value *axis_sum(Grad *G, const Node *n, Value *v) {
    int64_t axis = axis_of(node_int(n, AT_AXIS, -1), v->rank);
    return op_reduce(&G->b, OP_REDUCE_SUM, v, &axis, 1, true);
}

/* y (g - <g, y>). A masked row is all 0 and so is its gradient. */
void grad_softmax(Grad *G, Node *n, Value *const *dout) {
    Value *y = n->out[0], *gy = g_mul(G, dout[0], y);
    grad_add(G, n->in[0], g_mul(G, y, g_sub(G, dout[0], axis_sum(G, n, gy))));
}

void grad_log_softmax(Grad *G, Node *n, Value *const *dout) {
    Value *p = g_un(G, OP_EXP, n->out[0]);
    grad_add(G, n->in[0], g_sub(G, dout[0], g_mul(G, p, axis_sum(G, n, dout[0]))));
}

/* nll[R] and lse[R] of logits[R,V]. */
void grad_xent(Grad *G, Node *n, Value *const *dout) {
    Value *z = n->in[0];
    if (dout[0]) {
        Value *in[4] = {z, n->in[1], n->out[1], dout[0]};
        const Attr *ignore = node_attr(n, AT_IGNORE_INDEX);
        grad_add(G, z, g_node1(G, OP_XENT_GRAD, in, 4, ignore, ignore != NULL));
    }
    if (dout[1]) {
        int64_t dims[2] = {z->dims[0], 1};
        grad_add(G, z, g_mul(G, op_softmax(&G->b, z, 1), op_reshape(&G->b, dout[1], 2, dims)));
    }
}
