/* onnx_emit.c: nodes with the user's shapes checked. See onnx_emit.h; sizes and known values are in
 * onnx_sizes.c. */
#include "frontend/onnx_emit.h"

#include <string.h>

#include "frontend/onnx_sizes.h"
#include "ir/infer.h"

Node *em_infer(OpCall *c, Node *n) {
    if (!node_infer(n, c->im->d))
        call_skip(c); /* inference has named the node */
    partial_of_node(c->im, n);
    return n;
}

Node *em_node(OpCall *c, Op op, Value *const *in, int nin, int nout, const Attr *attrs,
              int nattrs) {
    Node *n = build_node(&c->b, op, in, nin, nout ? nout : op_info[op].nout);
    node_set_attrs(n, attrs, nattrs);
    return em_infer(c, n);
}

static Value *em_plain(OpCall *c, Op op, Value *const *in, int nin) {
    return em_node(c, op, in, nin, 1, NULL, 0)->out[0];
}

Value *em_const(OpCall *c, Tensor *t) {
    return EM(c, OP_CONST, NULL, 0, {.key = AT_VALUE, .t = t});
}

Value *em_f(OpCall *c, DType t, double v) {
    Tensor *k = tensor_new(&c->im->g->arena, t, 0, NULL);
    tensor_set_f(k, 0, v);
    return em_const(c, k);
}

Value *em_i(OpCall *c, DType t, int64_t v) {
    Tensor *k = tensor_new(&c->im->g->arena, t, 0, NULL);
    tensor_set_i(k, 0, v);
    return em_const(c, k);
}

Value *em_ints(OpCall *c, const int64_t *v, int n) {
    Tensor *k = tensor_new(&c->im->g->arena, DT_I64, 1, (int64_t[]){n});
    if (n)
        memcpy(k->data, v, sizeof *v * (size_t)n);
    return em_const(c, k);
}

Value *em_like(OpCall *c, const Value *x, double v) {
    return dtype_is_float(x->dtype) ? em_f(c, x->dtype, v) : em_i(c, x->dtype, (int64_t)v);
}

Value *em_unary(OpCall *c, Op op, Value *x) {
    return em_plain(c, op, &x, 1);
}

Value *em_binary(OpCall *c, Op op, Value *x, Value *y) {
    return em_plain(c, op, (Value *[]){x, y}, 2);
}

Value *em_where(OpCall *c, Value *cond, Value *x, Value *y) {
    return em_plain(c, OP_WHERE, (Value *[]){cond, x, y}, 3);
}

Value *em_cast(OpCall *c, Value *x, DType to) {
    return x->dtype == to ? x : EM(c, OP_CAST, &x, 1, A_INT(TO, to));
}

Value *em_transpose(OpCall *c, Value *x, const int64_t *perm) {
    return EM(c, OP_TRANSPOSE, &x, 1, A_INTS(PERM, perm, em_rank(c, x)));
}

Value *em_swap_last(OpCall *c, Value *x) {
    int64_t perm[MAX_RANK];
    int rank = em_rank(c, x);
    for (int i = 0; i < rank; i++)
        perm[i] = i;
    perm[rank - 1] = rank - 2;
    perm[rank - 2] = rank - 1;
    return em_transpose(c, x, perm);
}

Value *em_slice(OpCall *c, Value *x, int axis, int64_t start, int64_t end, int64_t step) {
    int64_t a = axis;
    return EM(c, OP_SLICE, &x, 1, A_INTS(AXES, &a, 1), A_INTS(STARTS, &start, 1),
              A_INTS(ENDS, &end, 1), A_INTS(STEPS, &step, 1));
}

Value *em_concat(OpCall *c, Value *const *x, int n, int axis) {
    return n == 1 ? x[0] : EM(c, OP_CONCAT, x, n, A_INT(AXIS, axis));
}

Value *em_reduce(OpCall *c, Op op, Value *x, const int64_t *axes, int n, bool keep) {
    return EM(c, op, &x, 1, A_INTS(AXES, axes, n), A_INT(KEEPDIMS, keep));
}

Value *em_gather(OpCall *c, Value *x, Value *idx, int axis) {
    return EM(c, OP_GATHER, ((Value *[]){x, idx}), 2, A_INT(AXIS, axis));
}

Value *em_matmul(OpCall *c, Value *x, Value *y, bool trans_a, bool trans_b) {
    Attr attrs[2];
    int n = 0;
    if (trans_a)
        attrs[n++] = A_INT(TRANS_A, 1);
    if (trans_b)
        attrs[n++] = A_INT(TRANS_B, 1);
    return em_node(c, OP_MATMUL, (Value *[]){x, y}, 2, 1, attrs, n)->out[0];
}

Value *em_softmax(OpCall *c, Value *x, int axis) {
    return EM(c, OP_SOFTMAX, &x, 1, A_INT(AXIS, axis));
}

Value *em_scale(OpCall *c, Value *x, double by) {
    return by == 1 ? x : em_binary(c, OP_MUL, x, em_like(c, x, by));
}

Value *em_square(OpCall *c, Value *x) {
    return em_binary(c, OP_MUL, x, x);
}

int em_rank(OpCall *c, Value *x) {
    if (x->rank < 0)
        call_fail(c, "the rank of \"%s\" depends on data; it must be known",
                  diag_safe(c->im->d, text_or(x->name, "")));
    return x->rank;
}

int em_axis(OpCall *c, int64_t axis, int rank) {
    if (axis < -rank || axis >= rank)
        call_fail(c, "axis %lld is outside %d to %d, the axes of rank %d", (long long)axis, -rank,
                  rank - 1, rank);
    return (int)(axis < 0 ? axis + rank : axis);
}

int em_axes(OpCall *c, int i, const char *name, int rank, int64_t *axes) {
    int64_t given[64];
    const int64_t *at = given;
    int n;
    if (i >= 0 && i < c->nin && c->in[i]) {
        n = em_known_ints(c, c->in[i], given, COUNT_OF(given));
        if (n < 0)
            call_fail(c, "the axes (input %d) depend on data; they must be constant", i);
    } else if (!name || (n = call_ints(c, name, &at)) < 0) {
        return -1;
    }
    bool seen[MAX_RANK] = {false};
    for (int k = 0; k < n; k++) {
        int axis = em_axis(c, at[k], rank);
        if (seen[axis])
            call_fail(c, "axis %d is given twice", axis);
        seen[axis] = true;
        axes[k] = axis;
    }
    return n;
}

Value *em_iota(OpCall *c, Value *x, int axis) {
    if (x->dims[axis] >= 0) {
        Tensor *t = tensor_new(&c->im->g->arena, DT_I64, 1, &x->dims[axis]);
        for (int64_t i = 0; i < x->dims[axis]; i++)
            tensor_set_i(t, i, i);
        return em_const(c, t);
    }
    return em_plain(c, OP_RANGE,
                    (Value *[]){em_i(c, DT_I64, 0), em_size0(c, x, axis), em_i(c, DT_I64, 1)}, 3);
}
