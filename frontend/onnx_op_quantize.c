/* onnx_op_quantize.c: linear quantisation, forward: whole tensors, along an axis, or in blocks.
 * 4-bit numbers are 8-bit ones here, clipped to their range. */
#include "frontend/onnx_ops.h"

/* A scale or zero point against x: a scalar, one per position of `axis`, or one per block of it. */
static Value *spread_parameter(OpCall *c, Value *x, Value *v, int axis, int64_t block) {
    int rank = em_rank(c, x);
    if (em_rank(c, v) == 0 || (v->rank == 1 && v->dims[0] == 1 && rank != 1))
        return v->rank == 0 ? v : em_reshape(c, v, 0, NULL);
    if (block == 0) {
        ShapeOf s = {0};
        if (v->rank != 1)
            call_fail(c, "the scale must have rank 0 or 1 without block_size, found %s",
                      call_value_text(c, v));
        shape_add_axis(c, &s, v, 0);
        for (int i = axis + 1; i < rank; i++)
            shape_add(c, &s, 1);
        return em_view(c, v, &s);
    }
    if (v->rank != rank || block < 1 || !value_known(x) || !value_known(v) ||
        v->dims[axis] != (x->dims[axis] + block - 1) / block)
        call_fail(c, "blocks of %lld do not fit %s and %s", (long long)block, call_value_text(c, x),
                  call_value_text(c, v));
    Tensor *idx = tensor_new(&c->im->g->arena, DT_I64, 1, &x->dims[axis]);
    for (int64_t i = 0; i < x->dims[axis]; i++)
        tensor_set_i(idx, i, i / block);
    return em_gather(c, v, em_const(c, idx), axis);
}

static int quantize_axis(OpCall *c) {
    int rank = em_rank(c, c->in[0]);
    return rank ? em_axis(c, rank == 1 ? 0 : call_int(c, "axis", 1), rank) : 0;
}

/* (x - zero) * scale */
void read_dequantize(OpCall *c) {
    int axis = quantize_axis(c);
    int64_t block = call_int(c, "block_size", 0);
    Value *scale = spread_parameter(c, c->in[0], c->in[1], axis, block),
          *x = em_cast(c, c->in[0], DT_F32);
    if (c->nin > 2 && c->in[2])
        x = em_binary(c, OP_SUB, x,
                      em_cast(c, spread_parameter(c, c->in[0], c->in[2], axis, block), DT_F32));
    DType type = dtype_of_onnx((int)call_int(c, "output_dtype", 0));
    c->out[0] = em_cast(c, em_binary(c, OP_MUL, x, em_cast(c, scale, DT_F32)),
                        type != DT_NONE ? type : scale->dtype);
}

/* Least and greatest number of an ONNX integer type. */
static void integer_range(OpCall *c, int64_t onnx, double *low, double *high) {
    switch (onnx) {
    case 2:
        *low = 0, *high = 255;
        return;
    case 3:
        *low = -128, *high = 127;
        return;
    case 4:
        *low = 0, *high = 65535;
        return;
    case 5:
        *low = -32768, *high = 32767;
        return;
    case 21:
        *low = 0, *high = 15;
        return;
    case 22:
        *low = -8, *high = 7;
        return;
    default:
        call_fail(c, "quantising to element type %lld is not supported", (long long)onnx);
    }
}

/* clip(round(x / scale) + zero) */
void read_quantize(OpCall *c) {
    int axis = quantize_axis(c);
    int64_t block = call_int(c, "block_size", 0), onnx = call_int(c, "output_dtype", 0);
    Value *zero = c->nin > 2 ? c->in[2] : NULL,
          *scale = em_cast(c, spread_parameter(c, c->in[0], c->in[1], axis, block), DT_F32);
    double low, high;
    if (onnx == 0)
        onnx = zero ? dtype_to_onnx(zero->dtype) : 2;
    integer_range(c, onnx, &low, &high);
    Value *x = em_unary(c, OP_ROUND, em_binary(c, OP_DIV, em_cast(c, c->in[0], DT_F32), scale));
    if (zero)
        x = em_binary(c, OP_ADD, x,
                      em_cast(c, spread_parameter(c, c->in[0], zero, axis, block), DT_F32));
    x = em_binary(c, OP_MIN, em_binary(c, OP_MAX, x, em_like(c, x, low)), em_like(c, x, high));
    c->out[0] = em_cast(c, x, dtype_of_onnx((int)onnx));
}

/* uint8 that covers the range of x and 0: y, scale, zero point. */
void read_dynamic_quantize(OpCall *c) {
    Value *x = c->in[0], *zero = em_f(c, DT_F32, 0), *low = x, *high = x;
    int64_t axes[MAX_RANK];
    int rank = em_rank(c, x);
    for (int i = 0; i < rank; i++)
        axes[i] = i;
    low = em_binary(c, OP_MIN, em_reduce(c, OP_REDUCE_MIN, x, axes, rank, false), zero);
    high = em_binary(c, OP_MAX, em_reduce(c, OP_REDUCE_MAX, x, axes, rank, false), zero);
    Value *scale = em_scale(c, em_binary(c, OP_SUB, high, low), 1.0 / 255);
    Value *flat = em_binary(c, OP_EQ, scale, zero); /* all zeros: nothing to divide by */
    Value *divisor = em_where(c, flat, em_f(c, DT_F32, 1), scale);
    Value *point = em_unary(c, OP_NEG, em_binary(c, OP_DIV, low, divisor));
    point = em_unary(c, OP_ROUND,
                     em_binary(c, OP_MIN, em_binary(c, OP_MAX, point, zero), em_f(c, DT_F32, 255)));
    Value *y = em_binary(c, OP_ADD, em_unary(c, OP_ROUND, em_binary(c, OP_DIV, x, divisor)), point);
    y = em_binary(c, OP_MIN, em_binary(c, OP_MAX, y, zero), em_f(c, DT_F32, 255));
    Value *out[] = {em_cast(c, y, DT_U8), scale, em_cast(c, point, DT_U8)};
    for (int i = 0; i < c->nout; i++)
        c->out[i] = out[i];
}

/* Zero points of A: one, or one a row. Of B: one, or one a column. */
static Value *shifted(OpCall *c, Value *x, Value *zero, bool by_row) {
    x = em_cast(c, x, DT_I32);
    if (!zero)
        return x;
    zero = em_cast(c, zero, DT_I32);
    if (by_row && em_rank(c, zero) == 1 && zero->dims[0] != 1)
        zero = em_insert_axis(c, zero, 1);
    return em_binary(c, OP_SUB, x, zero);
}

/* The exact product of integers as i32: sums of products, since matrix products are floats. */
static Value *integer_product(OpCall *c, Value *a, Value *b) {
    bool vector_a = em_rank(c, a) == 1, vector_b = em_rank(c, b) == 1;
    if (a->rank == 0 || b->rank == 0)
        call_fail(c, "a product of scalars; expected matrices");
    a = vector_a ? em_insert_axis(c, a, 0) : a;
    b = vector_b ? em_insert_axis(c, b, 1) : b;
    if (a->rank >= MAX_RANK || b->rank >= MAX_RANK)
        call_fail(c, "rank %d is too high", a->rank > b->rank ? a->rank : b->rank);
    Value *y = em_binary(c, OP_MUL, em_insert_axis(c, a, a->rank),
                         em_insert_axis(c, b, b->rank - 2)); /* […,M,K,N] */
    int64_t k = y->rank - 2;
    y = em_reduce(c, OP_REDUCE_SUM, y, &k, 1, false);
    y = vector_b ? em_drop_axis(c, y, y->rank - 1) : y;
    return vector_a ? em_drop_axis(c, y, y->rank - (vector_b ? 1 : 2)) : y;
}

static Value *optional_in(OpCall *c, int i) {
    return i < c->nin ? c->in[i] : NULL;
}

void read_matmul_integer(OpCall *c) {
    c->out[0] = integer_product(c, shifted(c, c->in[0], optional_in(c, 2), true),
                                shifted(c, c->in[1], optional_in(c, 3), false));
}

/* Per-row parameters of A stand in front of the columns. */
static Value *row_parameter(OpCall *c, Value *v) {
    v = em_cast(c, v, DT_F32);
    return em_rank(c, v) == 1 && v->dims[0] != 1 ? em_insert_axis(c, v, 1) : v;
}

/* a, scale, zero, b, scale, zero, scale, zero of y */
void read_qlinear_matmul(OpCall *c) {
    Value *y = em_cast(c,
                       integer_product(c, shifted(c, c->in[0], c->in[2], true),
                                       shifted(c, c->in[3], c->in[5], false)),
                       DT_F32);
    Value *scale = em_binary(c, OP_MUL, row_parameter(c, c->in[1]), em_cast(c, c->in[4], DT_F32));
    scale = em_binary(c, OP_DIV, scale, row_parameter(c, c->in[6]));
    double low, high;
    integer_range(c, dtype_to_onnx(c->in[7]->dtype), &low, &high);
    y = em_binary(c, OP_ADD, em_unary(c, OP_ROUND, em_binary(c, OP_MUL, y, scale)),
                  row_parameter(c, c->in[7]));
    y = em_binary(c, OP_MIN, em_binary(c, OP_MAX, y, em_like(c, y, low)), em_like(c, y, high));
    c->out[0] = em_cast(c, y, c->in[7]->dtype);
}
