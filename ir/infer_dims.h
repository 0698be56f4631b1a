/* infer_dims.h: what shape an op gives, said once, for shape inference and for the evaluator.
 *
 * The shape_* functions map operand shapes (and what attributes or shape operands say) to the
 * result's shape. Inference calls them with symbolic dims (negative), the evaluator with the sizes
 * of real tensors. Whatever does not fit becomes a Fault: one sentence, without the node, which the
 * caller adds. */
#ifndef STGCC_IR_INFER_DIMS_H
#define STGCC_IR_INFER_DIMS_H

#include "ir/graph.h"

typedef struct Dims {
    int rank;
    int64_t at[MAX_RANK];
} Dims;

/* A dim that only data decide. Inference turns it into a symbol (or keeps the one the result had).
 */
#define DIM_UNKNOWN INT64_MIN

typedef struct Fault {
    char text[320];
} Fault;
bool fault(Fault *f, const char *fmt, ...) PRINTF_LIKE(2, 3); /* returns false */

Dims dims_of(const Value *v);
/* "[2,?,64]"; symbols print as "?". Returns buf. */
const char *dims_text(const Dims *x, char *buf, size_t size);
#define DIMS_TEXT(x) dims_text((x), (char[96]){0}, 96)
bool dims_known(const Dims *x);
bool dim_fits(int64_t a, int64_t b); /* equal, or one is not known */
bool dims_fit(const Dims *a, const Dims *b);
/* Appends a dim; a fault beyond MAX_RANK. */
bool dims_push(Dims *x, int64_t dim, Fault *f);

/* An axis counted from either end -> 0..rank-1. */
bool shape_axis(int64_t axis, int rank, int *out, Fault *f);
bool shape_broadcast(const Dims *a, const Dims *b, Dims *out, Fault *f);
/* want: one -1 is taken from the rest; with zero_copies a 0 copies the dim of x at its place. */
bool shape_reshape(const Dims *x, const int64_t *want, int n, bool zero_copies, Dims *out,
                   Fault *f);
bool shape_transpose(const Dims *x, const int64_t *perm, int n, Dims *out, Fault *f);

/* One axis of a slice, resolved: `count` elements start, start+step, …. */
typedef struct Span {
    int64_t start, step, count;
} Span;
/* Python's rules for one axis of known size. */
Span slice_span(int64_t dim, int64_t start, int64_t end, int64_t step);
/* Lists of n: axes (NULL: 0..n-1), starts, ends, steps (NULL: all 1). spans (optional) gets one
 * Span per axis of x; those of symbolic dims that are cut have count DIM_UNKNOWN. */
bool shape_slice(const Dims *x, int n, const int64_t *axes, const int64_t *starts,
                 const int64_t *ends, const int64_t *steps, Span *spans, Dims *out, Fault *f);
bool shape_concat(const Dims *const *x, int n, int axis, Dims *out, Fault *f);
bool shape_pad(const Dims *x, const int64_t *pads, int n, Dims *out, Fault *f);
/* axes already 0..rank-1. */
void shape_reduce(const Dims *x, const int64_t *axes, int n, bool keep, Dims *out);
/* Reads {axes} of a reduction, normalised and ascending, into axes[MAX_RANK]; absent: all. */
bool shape_reduce_axes(const Node *n, int rank, int64_t *axes, int *count, Fault *f);
bool shape_range(double start, double limit, double delta, int64_t *count, Fault *f);
bool shape_gather(const Dims *x, const Dims *idx, int axis, Dims *out, Fault *f);
bool shape_scatter_add(const Node *n, const Dims *upd, const Dims *idx, int axis, Dims *out,
                       Fault *f);
bool shape_gather_elements(const Dims *x, const Dims *idx, int axis, Fault *f);
bool shape_gather_nd(const Dims *x, const Dims *idx, int batch, Dims *out, Fault *f);
bool shape_scatter_nd(const Dims *x, const Dims *idx, const Dims *upd, Fault *f);
bool shape_topk(const Dims *x, int axis, int64_t k, Dims *out, Fault *f);

bool shape_matmul(const Dims *a, const Dims *b, bool trans_a, bool trans_b, Dims *out, Fault *f);
/* The window of unfold and fold: lists of `spatial` axes; strides, dilations default to 1, pads
 * (begins, then ends) to 0. */
typedef struct Window {
    int spatial;
    int64_t kernel[MAX_RANK], stride[MAX_RANK], dilation[MAX_RANK], before[MAX_RANK],
        after[MAX_RANK];
    int64_t size[MAX_RANK], positions[MAX_RANK]; /* of the image, of the unfolded form */
} Window;
bool shape_unfold(const Node *n, const Dims *x, Window *w, Dims *out, Fault *f);
bool shape_fold(const Node *n, const Dims *x, Window *w, Dims *out, Fault *f);

/* The MoE ops, xent and the optimizers: `in` by operand (rank -1: absent), `out` by result. */
bool shape_rows(const Node *n, const Dims *in, Dims *out, Fault *f);

#endif
