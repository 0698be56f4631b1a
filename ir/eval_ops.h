/* eval_ops.h: what the eval_* hooks share. */
#ifndef STGCC_IR_EVAL_OPS_H
#define STGCC_IR_EVAL_OPS_H

#include "ir/eval.h"
#include "ir/infer_dims.h"

/* One element of any type, for moving elements about. */
typedef uint64_t __attribute__((may_alias)) Cell;
#define CELLS(r) ((Cell *)(void *)(r)->i)

/* The loops that carry whole layers are compiled for throughput even where the rest is not. */
#if defined(__GNUC__) && !defined(__clang__)
#define HOT_LOOP __attribute__((optimize("O3")))
#else
#define HOT_LOOP
#endif

/* Reports `node "…" (Op): text` with the operands' shapes; returns false. */
bool eval_fail(Eval *ev, const Node *n, ExitCode code, const char *fmt, ...) PRINTF_LIKE(4, 5);
/* A zeroed result; NULL with a diagnostic if it is too large or goes over the memory limit. */
RTensor *eval_result(Eval *ev, const Node *n, DType t, const Dims *x);
Dims rtensor_dims(const RTensor *r); /* NULL: rank -1 */
int64_t int_wrap(DType t, int64_t v);
void rtensor_wrap(RTensor *r); /* all elements, if an integer type */
/* Double to integer: truncates and saturates, NaN is 0. */
int64_t int_from_double(DType t, double v);
double double_from_int(DType t, int64_t v);
/* {axis}, normalised. */
bool eval_axis(Eval *ev, const Node *n, int rank, int64_t absent, int *axis);
/* Index v of an axis of `size`, negative from the end; a diagnostic if outside. */
bool eval_index(Eval *ev, const Node *n, int64_t v, int64_t size, int64_t *out);
/* x as outer * size * inner around an axis. */
typedef struct Around {
    int64_t outer, size, inner;
} Around;
Around around_axis(const Dims *x, int axis);

/* Walks the elements of `dims` in row-major order a row (the last axis) at a time, with element
 * offsets of up to 4 strided operands; neighbouring axes are merged where all operands allow it. */
typedef struct Walk {
    int ops, rank;
    int64_t dims[MAX_RANK], stride[4][MAX_RANK];
    int64_t at[MAX_RANK], offset[4];
    int64_t row; /* length of a row; 0: nothing to do */
    bool done;
} Walk;
void walk_init(Walk *w, const Dims *dims);
void walk_operand(Walk *w, const int64_t *strides);            /* by axis of dims */
void walk_broadcast(Walk *w, const Dims *dims, const Dims *x); /* strides of x broadcast to dims */
void walk_start(Walk *w);
void walk_next(Walk *w);
#define WALK(w) for (walk_start(w); !(w)->done; walk_next(w))
int64_t walk_step(const Walk *w, int op); /* stride within a row */
void dims_strides(const Dims *x, int64_t *strides);

/* c[m,n] += a[m,k] b[k,n], rows of c, a, b `ldc`, `lda`, `ldb` apart; k ascending for every
 * element. */
void eval_gemm(double *c, int64_t ldc, const double *a, int64_t lda, const double *b, int64_t ldb,
               int64_t m, int64_t n, int64_t k);

#endif
