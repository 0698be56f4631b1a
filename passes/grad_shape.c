/* grad_shape.c: gradients of ops that move elements about, and of reductions. g is the cotangent of
 * the result.
 *
 * Moving ops have moving gradients: the transpose of a permutation, the sum of what was copied,
 * zeros where nothing came from. No rule scatters where a view, a pad or a slice says the same. */
#include <stdlib.h>
#include <string.h>

#include "passes/grad.h"

void grad_reshape(Grad *G, Node *n, Value *const *dout) {
    grad_add(G, n->in[0], g_reshape(G, dout[0], n->in[0]));
}

void grad_transpose(Grad *G, Node *n, Value *const *dout) {
    const int64_t *perm;
    int rank = node_ints(n, AT_PERM, &perm);
    int64_t back[MAX_RANK];
    for (int i = 0; i < rank; i++)
        back[perm[i]] = i;
    grad_add(G, n->in[0], rank ? op_transpose(&G->b, dout[0], back) : dout[0]);
}

void grad_expand(Grad *G, Node *n, Value *const *dout) {
    grad_add(G, n->in[0], grad_unbroadcast(G, dout[0], n->in[0]));
}

/* Zeros around x: `before` and `after` along one axis; negative crops. */
static Value *pad_axis(Grad *G, Value *x, int axis, int64_t before, int64_t after) {
    if (!before && !after)
        return x;
    int64_t pads[2 * MAX_RANK] = {0};
    pads[axis] = before;
    pads[x->rank + axis] = after;
    Attr a = attr_ints(AT_PADS, pads, 2 * x->rank);
    return g_node1(G, OP_PAD, &x, 1, &a, 1);
}

/* Puts x's entries along `axis` at indices idx of an axis of `size`, zeros elsewhere. */
static Value *put_axis(Grad *G, Value *x, int axis, int64_t size, int64_t start, int64_t step) {
    int64_t count = x->dims[axis], dims[MAX_RANK];
    memcpy(dims, x->dims, sizeof dims);
    dims[axis] = size;
    int64_t *at = ARENA_ARRAY(&G->g->arena, int64_t, count ? count : 1);
    for (int64_t i = 0; i < count; i++)
        at[i] = start + i * step;
    Value *in[2] = {x, op_const_ints(&G->b, at, (int)count)};
    Attr a[2] = {attr_i(AT_AXIS, axis), attr_ints(AT_DIMS, dims, x->rank)};
    return g_node1(G, OP_SCATTER_ADD, in, 2, a, 2);
}

/* Undoes a slice along one axis of `size`. A positive step is [n] -> [n,1] -> pad to [n,step] ->
 * [n*step] -> pad: views and elementwise work only. */
static Value *unslice_axis(Grad *G, Value *x, int axis, int64_t size, int64_t start, int64_t step) {
    int64_t count = x->dims[axis];
    if (step < 0 || (step > 1 && x->rank == MAX_RANK))
        return put_axis(G, x, axis, size, start, step);
    if (step > 1) {
        int64_t dims[MAX_RANK], rank = x->rank + 1;
        for (int i = 0; i < rank; i++)
            dims[i] = i <= axis ? x->dims[i] : i == axis + 1 ? 1 : x->dims[i - 1];
        Value *y = pad_axis(G, op_reshape(&G->b, x, (int)rank, dims), axis + 1, 0, step - 1);
        memcpy(dims, x->dims, sizeof dims);
        dims[axis] = count * step;
        x = op_reshape(&G->b, y, x->rank, dims);
    }
    return pad_axis(G, x, axis, start, size - start - count * step);
}

void grad_slice(Grad *G, Node *n, Value *const *dout) {
    const int64_t *axes, *starts, *steps;
    int k = node_ints(n, AT_AXES, &axes);
    node_ints(n, AT_STARTS, &starts);
    bool stepped = node_ints(n, AT_STEPS, &steps) > 0;
    Value *x = n->in[0], *c = dout[0];
    bool plain = true;
    int64_t pads[2 * MAX_RANK] = {0};
    for (int i = 0; i < k; i++) {
        int axis = axis_of(axes[i], x->rank);
        plain &= !stepped || steps[i] == 1;
        pads[axis] = starts[i];
        pads[x->rank + axis] = x->dims[axis] - starts[i] - c->dims[axis];
    }
    if (plain) {
        Attr a = attr_ints(AT_PADS, pads, 2 * x->rank);
        grad_add(G, x, same_dims(c, x) ? c : g_node1(G, OP_PAD, &c, 1, &a, 1));
        return;
    }
    for (int i = 0; i < k; i++) {
        int axis = axis_of(axes[i], x->rank);
        c = unslice_axis(G, c, axis, x->dims[axis], starts[i], stepped ? steps[i] : 1);
    }
    grad_add(G, x, c);
}

void grad_concat(Grad *G, Node *n, Value *const *dout) {
    int axis = axis_of(node_int(n, AT_AXIS, 0), n->out[0]->rank);
    int64_t at = 0;
    for (int i = 0; i < n->nin; i++) {
        int64_t size = n->in[i]->dims[axis];
        if (grad_needs(G, n->in[i]))
            grad_add(G, n->in[i],
                     size == dout[0]->dims[axis]
                         ? dout[0]
                         : op_slice(&G->b, dout[0], axis, at, at + size, 1));
        at += size;
    }
}

void grad_pad(Grad *G, Node *n, Value *const *dout) {
    const int64_t *pads;
    int k = node_ints(n, AT_PADS, &pads);
    int64_t back[2 * MAX_RANK];
    for (int i = 0; i < k; i++)
        back[i] = -pads[i];
    Attr a = attr_ints(AT_PADS, back, k);
    grad_add(G, n->in[0], g_node1(G, OP_PAD, dout, 1, &a, 1));
}

/* ---- reductions ---- */

/* A reduction's result (or its cotangent) with the reduced axes back as 1. */
static Value *kept(Grad *G, const Node *n, Value *z) {
    const Value *x = n->in[0];
    const int64_t *axes;
    int64_t dims[MAX_RANK];
    int k = node_ints(n, AT_AXES, &axes);
    memcpy(dims, x->dims, sizeof dims);
    for (int i = 0; i < k; i++)
        dims[axis_of(axes[i], x->rank)] = 1;
    return op_reshape(&G->b, z, x->rank, dims);
}

static Value *sum_kept(Grad *G, const Node *n, Value *v) {
    const int64_t *axes;
    int k = node_ints(n, AT_AXES, &axes);
    return op_reduce(&G->b, OP_REDUCE_SUM, v, axes, k, true);
}

void grad_reduce_sum(Grad *G, Node *n, Value *const *dout) {
    Value *x = n->in[0];
    grad_add(G, x, op_expand(&G->b, kept(G, n, dout[0]), x->rank, x->dims));
}

/* Shared evenly among the equals, as torch.amax does. */
void grad_reduce_max(Grad *G, Node *n, Value *const *dout) {
    Value *x = n->in[0], *zero = g_scalar(G, x, 0);
    Value *is = op_binary(&G->b, OP_EQ, x, kept(G, n, n->out[0]));
    Value *count = sum_kept(G, n, op_where(&G->b, is, g_scalar(G, x, 1), zero));
    grad_add(G, x, op_where(&G->b, is, g_div(G, kept(G, n, dout[0]), count), zero));
}

/* The product of the others: z / x, unless there are zeros: then only a lone zero has a slope, the
 * product of the rest. */
void grad_reduce_prod(Grad *G, Node *n, Value *const *dout) {
    Value *x = n->in[0], *zero = g_scalar(G, x, 0), *one = g_scalar(G, x, 1);
    const int64_t *axes;
    int k = node_ints(n, AT_AXES, &axes);
    Value *is0 = op_binary(&G->b, OP_EQ, x, zero);
    Value *zeros = sum_kept(G, n, op_where(&G->b, is0, one, zero));
    Value *safe = op_where(&G->b, is0, one, x);
    Value *rest = op_reduce(&G->b, OP_REDUCE_PROD, safe, axes, k, true);
    Value *none = op_binary(&G->b, OP_EQ, zeros, zero), *lone = op_binary(&G->b, OP_EQ, zeros, one);
    Value *at0 = op_where(&G->b, op_binary(&G->b, OP_AND, lone, is0), rest, zero);
    Value *slope = op_where(&G->b, none, g_div(G, rest, safe), at0);
    grad_add(G, x, g_mul(G, kept(G, n, dout[0]), slope));
}

void grad_cumsum(Grad *G, Node *n, Value *const *dout) {
    Attr a[3] = {attr_i(AT_AXIS, node_int(n, AT_AXIS, 0)),
                 attr_i(AT_EXCLUSIVE, node_int(n, AT_EXCLUSIVE, 0)),
                 attr_i(AT_REVERSE, !node_int(n, AT_REVERSE, 0))};
    grad_add(G, n->in[0], g_node1(G, OP_CUMSUM, dout, 1, a, 3));
}
