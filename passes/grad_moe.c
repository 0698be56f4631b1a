/* grad_moe.c: gradients of the Mixture-of-Experts ops. Each op's gradient is another op of the
 * family, so rows stay sorted by expert all the way back. Letters: R rows, E experts; x[R,in] rows,
 * d[R,out] their cotangent. */
#include "passes/grad.h"

/* y[M] = x[idx]: the rows of x that went to several places sum what comes back, in order of j. */
void grad_gather_rows(Grad *G, Node *n, Value *const *dout) {
    Value *x = n->in[0], *idx = n->in[1], *c = dout[0];
    if (idx->rank != 1) { /* combine takes its rows on one axis */
        int64_t dims[MAX_RANK] = {value_count(idx)};
        for (int i = 1; i < x->rank; i++)
            dims[i] = x->dims[i];
        c = op_reshape(&G->b, c, x->rank, dims);
        idx = op_reshape(&G->b, idx, 1, dims);
    }
    Value *in[3] = {c, n->in[2], idx};
    grad_add(G, x, g_reshape(G, g_node1(G, OP_COMBINE, in, 3, NULL, 0), x));
}

void grad_combine(Grad *G, Node *n, Value *const *dout) {
    Value *in[3] = {dout[0], n->in[2], n->in[1]};
    grad_add(G, n->in[0], g_reshape(G, g_node1(G, OP_GATHER_ROWS, in, 3, NULL, 0), n->in[0]));
}

/* y = x W_e: dx = d W_e^T by the flipped flag, dW = x_e' d_e. */
void grad_grouped_matmul(Grad *G, Node *n, Value *const *dout) {
    bool tb = node_int(n, AT_TRANS_B, 0), any = false;
    if (grad_needs(G, n->in[0])) {
        Value **in = ARENA_ARRAY(&G->g->arena, Value *, n->nin);
        for (int i = 0; i < n->nin; i++)
            in[i] = n->in[i];
        in[0] = dout[0];
        Attr a = attr_i(AT_TRANS_B, !tb);
        grad_add(G, n->in[0], g_node1(G, OP_GROUPED_MATMUL, in, n->nin, &a, !tb));
    }
    for (int i = 2; i < n->nin; i++)
        any |= grad_needs(G, n->in[i]);
    if (!any)
        return;
    Value *in[3] = {n->in[0], dout[0], n->in[1]};
    Attr a = attr_i(AT_TRANS_B, 1);
    Value *dw = g_node1(G, OP_GROUPED_WGRAD, in, 3, &a, tb);
    if (n->nin == 3 && n->in[2]->rank == 3) {
        grad_add(G, n->in[2], dw);
        return;
    }
    for (int e = 0; e < n->nin - 2; e++)
        if (grad_needs(G, n->in[2 + e]))
            grad_add(G, n->in[2 + e],
                     g_reshape(G, op_slice(&G->b, dw, 0, e, e + 1, 1), n->in[2 + e]));
}

/* S_e = x_e' d_e, cotangent C_e [in,out] (or [out,in] with trans_b): dx = d C_e^T, dd = x C_e. */
void grad_grouped_wgrad(Grad *G, Node *n, Value *const *dout) {
    bool tb = node_int(n, AT_TRANS_B, 0);
    Attr a = attr_i(AT_TRANS_B, 1);
    Value *for_x[3] = {n->in[1], n->in[2], dout[0]}, *for_d[3] = {n->in[0], n->in[2], dout[0]};
    if (grad_needs(G, n->in[0]))
        grad_add(G, n->in[0], g_node1(G, OP_GROUPED_MATMUL, for_x, 3, &a, !tb));
    if (grad_needs(G, n->in[1]))
        grad_add(G, n->in[1], g_node1(G, OP_GROUPED_MATMUL, for_d, 3, &a, tb));
}

/* Every row gets its expert's cotangent; padding rows (row_expert -1) get 0. */
void grad_segment_sum(Grad *G, Node *n, Value *const *dout) {
    Value *v = n->in[0], *row_expert = n->nin > 2 ? n->in[2] : NULL;
    if (!grad_needs(G, v))
        return;
    if (!row_expert)
        bug("segment_sum without row_expert is not differentiable: its maker must give the "
            "operand");
    int64_t dims[MAX_RANK] = {v->dims[0]};
    for (int i = 1; i < v->rank; i++)
        dims[i] = 1;
    Value *c = op_gather(&G->b, dout[0], row_expert, 0);
    Value *real = op_binary(&G->b, OP_LE, op_const_i(&G->b, 0), row_expert);
    grad_add(G, v, op_where(&G->b, op_reshape(&G->b, real, v->rank, dims), c, g_scalar(G, c, 0)));
}
