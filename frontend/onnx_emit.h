/* onnx_emit.h: how readers build IR. Like the op_* builders, but the shapes are the user's: what
 * does not fit is reported at the user's node and leaves the reader (call_fail), so no function
 * here returns NULL. Sizes may be symbols: what depends on a size is built from SHAPE, and folds
 * once the size is known. */
#ifndef STGCC_FRONTEND_ONNX_EMIT_H
#define STGCC_FRONTEND_ONNX_EMIT_H

#include "frontend/onnx_import.h"

#define A_INT(k, v) ((Attr){.key = AT_##k, .i = (v)})
#define A_FLOAT(k, v) ((Attr){.key = AT_##k, .f = (v)})
#define A_STR(k, v) ((Attr){.key = AT_##k, .s = (v)})
#define A_INTS(k, v, count) ((Attr){.key = AT_##k, .ints = {(count), (int64_t *)(uintptr_t)(v)}})

/* Any node: results inferred. nout 0: what the op table says. */
Node *em_node(OpCall *c, Op op, Value *const *in, int nin, int nout, const Attr *attrs, int nattrs);
/* Its only result. */
#define EM(c, op, in, nin, ...) \
    em_node(c, op, in, nin, 0, (Attr[]){__VA_ARGS__}, COUNT_OF(((Attr[]){__VA_ARGS__})))->out[0]

Value *em_const(OpCall *c, Tensor *t);
Value *em_f(OpCall *c, DType t, double v);  /* scalar */
Value *em_i(OpCall *c, DType t, int64_t v); /* scalar */
Value *em_ints(OpCall *c, const int64_t *v, int n);
Value *em_like(OpCall *c, const Value *x, double v); /* scalar of x's type */

Value *em_unary(OpCall *c, Op op, Value *x);
Value *em_binary(OpCall *c, Op op, Value *x, Value *y);
Value *em_where(OpCall *c, Value *cond, Value *x, Value *y);
Value *em_cast(OpCall *c, Value *x, DType to);
Value *em_transpose(OpCall *c, Value *x, const int64_t *perm);
Value *em_swap_last(OpCall *c, Value *x); /* the last two axes */
Value *em_slice(OpCall *c, Value *x, int axis, int64_t start, int64_t end, int64_t step);
Value *em_concat(OpCall *c, Value *const *x, int n, int axis);
Value *em_reduce(OpCall *c, Op op, Value *x, const int64_t *axes, int n, bool keep);
Value *em_gather(OpCall *c, Value *x, Value *idx, int axis);
Value *em_matmul(OpCall *c, Value *x, Value *y, bool trans_a, bool trans_b);
Value *em_softmax(OpCall *c, Value *x, int axis);
Value *em_scale(OpCall *c, Value *x, double by); /* x itself for 1 */
Value *em_square(OpCall *c, Value *x);

/* ---- sizes ---- */
Value *em_shape(OpCall *c, Value *x);           /* i64[rank] */
Value *em_size(OpCall *c, Value *x, int axis);  /* i64[1] */
Value *em_size0(OpCall *c, Value *x, int axis); /* i64[] */

/* A shape put together from sizes: known numbers, sizes of values, the rest. */
typedef struct ShapeOf {
    int n;
    int64_t dim[MAX_RANK]; /* >= 0 known; < 0 the symbol, if any, else 0 with from set */
    Value *from[MAX_RANK]; /* i64[1] for a size that is not known */
    bool rest[MAX_RANK];   /* what remains: at most one */
} ShapeOf;
void shape_add(OpCall *c, ShapeOf *s, int64_t known);
void shape_add_axis(OpCall *c, ShapeOf *s, Value *x, int axis);
void shape_add_axes(OpCall *c, ShapeOf *s, Value *x, int from, int to); /* [from, to) */
void shape_add_value(OpCall *c, ShapeOf *s, Value *i64_1);
void shape_add_rest(OpCall *c, ShapeOf *s);
/* Product of x's sizes over [from, to) as one axis. */
void shape_add_product(OpCall *c, ShapeOf *s, Value *x, int from, int to);
Value *em_view(OpCall *c, Value *x, const ShapeOf *s);   /* reshape */
Value *em_spread(OpCall *c, Value *x, const ShapeOf *s); /* expand */
/* The shape as an i64 vector (no rest). */
Value *em_shape_vector(OpCall *c, const ShapeOf *s);
Value *em_reshape(OpCall *c, Value *x, int rank, const int64_t *dims); /* known, one may be -1 */
Value *em_reshape_to(OpCall *c, Value *x, Value *dims, bool allow_zero);
Value *em_expand_to(OpCall *c, Value *x, Value *dims);
Value *em_insert_axis(OpCall *c, Value *x, int axis); /* axis of the result */
Value *em_drop_axis(OpCall *c, Value *x, int axis);

/* ---- knowing values ---- */
/* The constant that v is, computed if need be from constants and known shapes; NULL if it depends
 * on data or open sizes. */
const Tensor *em_known(OpCall *c, Value *v);
/* The same, or the initial value of a parameter: for floats that are no weights in this place
 * (scales of a resize, of packed numbers). */
const Tensor *em_fixed(OpCall *c, Value *v);
/* The same as em_known as i64s: count, or -1. At most `cap`; more is a fault. */
int em_known_ints(OpCall *c, Value *v, int64_t *out, int cap);
/* As far as known; NULL: nothing is. */
const Partial *em_partial(OpCall *c, const Value *v);
int em_rank(OpCall *c, Value *x); /* leaves by call_fail if it is not known */
/* An axis attribute normalised to 0..rank-1. */
int em_axis(OpCall *c, int64_t axis, int rank);
/* Axes of input `i` if it is there, else of attribute `name`; -1 if neither. Normalised, without
 * repeats, unsorted. */
int em_axes(OpCall *c, int i, const char *name, int rank, int64_t *axes);
/* 0, 1, … n-1 for the size of x's axis: i64[n]. */
Value *em_iota(OpCall *c, Value *x, int axis);

#endif
