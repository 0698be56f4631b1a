/* eval_reduce.c: reductions, scans, softmax and top-k. */
#include "ir/eval_ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- reductions: y starts at the identity; every element of x is folded into its place, in order
 * ---- */

static int64_t int_extreme(DType t, bool high) {
    return int_from_double(t, high ? INFINITY : -INFINITY);
}

static void fill_identity(RTensor *y, Op op) {
    bool high = op == OP_REDUCE_MIN;
    double f = op == OP_REDUCE_PROD ? 1 : op == OP_REDUCE_SUM ? 0 : high ? INFINITY : -INFINITY;
    int64_t i = op == OP_REDUCE_PROD ? 1 : 0;
    if (y->dtype == DT_BOOL)
        i = high;
    else if (op == OP_REDUCE_MAX || op == OP_REDUCE_MIN)
        i = int_extreme(y->dtype, high);
    for (int64_t k = 0; k < y->count; k++) {
        if (dtype_is_float(y->dtype))
            y->f[k] = f;
        else
            y->i[k] = i;
    }
}

static void fold_f(Op op, double *y, int64_t step, const double *x, int64_t n) {
    switch (op) {
    case OP_REDUCE_SUM:
        for (int64_t i = 0; i < n; i++)
            y[i * step] += x[i];
        break;
    case OP_REDUCE_PROD:
        for (int64_t i = 0; i < n; i++)
            y[i * step] *= x[i];
        break;
    case OP_REDUCE_MAX: /* NaN wins */
        for (int64_t i = 0; i < n; i++)
            if (x[i] > y[i * step] || isnan(x[i]))
                y[i * step] = x[i];
        break;
    default:
        for (int64_t i = 0; i < n; i++)
            if (x[i] < y[i * step] || isnan(x[i]))
                y[i * step] = x[i];
    }
}

static void fold_i(Op op, bool is_unsigned, int64_t *y, int64_t step, const int64_t *x, int64_t n) {
    /* unsigned 64-bit order is signed order with the top bit flipped */
    uint64_t flip = is_unsigned ? (uint64_t)1 << 63 : 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t *at = &y[i * step];
        int64_t a = (int64_t)((uint64_t)*at ^ flip), b = (int64_t)((uint64_t)x[i] ^ flip);
        if (op == OP_REDUCE_SUM)
            *at = (int64_t)((uint64_t)*at + (uint64_t)x[i]);
        else if (op == OP_REDUCE_PROD)
            *at = (int64_t)((uint64_t)*at * (uint64_t)x[i]);
        else if (op == OP_REDUCE_MAX ? b > a : b < a)
            *at = x[i];
    }
}

bool eval_reduce(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    const RTensor *x = in[0];
    Dims dims = rtensor_dims(x), kept, result;
    int64_t axes[MAX_RANK], own[MAX_RANK], strides[MAX_RANK], at = 0;
    int count;
    Fault f;
    Walk w;
    if (!shape_reduce_axes(n, x->rank, axes, &count, &f))
        return eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
    shape_reduce(&dims, axes, count, true, &kept);
    shape_reduce(&dims, axes, count, node_int(n, AT_KEEPDIMS, 0), &result);
    RTensor *y = out[0] = eval_result(ev, n, x->dtype, &result);
    if (!y)
        return false;
    fill_identity(y, n->op);
    dims_strides(&kept, own);
    memcpy(strides, own, sizeof strides);
    for (int i = 0; i < count; i++)
        strides[axes[i]] = 0;
    walk_init(&w, &dims);
    walk_operand(&w, strides);
    WALK(&w) {
        if (dtype_is_float(x->dtype))
            fold_f(n->op, y->f + w.offset[0], walk_step(&w, 0), x->f + at, w.row);
        else
            fold_i(n->op, x->dtype == DT_U64, y->i + w.offset[0], walk_step(&w, 0), x->i + at,
                   w.row);
        at += w.row;
    }
    rtensor_wrap(y);
    return true;
}

/* ---- argmax and top-k ---- */

/* Order of two elements: > 0 if a comes before b when the largest are wanted. NaN is the largest.
 */
static int compare_cells(DType t, const RTensor *x, int64_t a, int64_t b) {
    if (dtype_is_float(t)) {
        double p = x->f[a], q = x->f[b];
        if (isnan(p) || isnan(q))
            return isnan(p) - isnan(q);
        return (p > q) - (p < q);
    }
    if (t == DT_U64)
        return ((uint64_t)x->i[a] > (uint64_t)x->i[b]) - ((uint64_t)x->i[a] < (uint64_t)x->i[b]);
    return (x->i[a] > x->i[b]) - (x->i[a] < x->i[b]);
}

/* Argmin as numpy: a NaN wins there too. */
static bool beats(const RTensor *x, bool largest, bool last, int64_t a, int64_t best) {
    bool floats = dtype_is_float(x->dtype);
    bool nan_a = floats && isnan(x->f[a]), nan_best = floats && isnan(x->f[best]);
    int c = nan_a || nan_best ? nan_a - nan_best : compare_cells(x->dtype, x, a, best);
    if (!largest && !(nan_a || nan_best))
        c = -c;
    return c > 0 || (c == 0 && last);
}

bool eval_argmax(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    const RTensor *x = in[0];
    bool largest = node_int(n, AT_LARGEST, 1), last = node_int(n, AT_LAST, 0);
    Dims dims = rtensor_dims(x), result;
    int axis;
    if (!eval_axis(ev, n, x->rank, 0, &axis))
        return false;
    Around a = around_axis(&dims, axis);
    if (a.size == 0)
        return eval_fail(ev, n, EXIT_DATA, "the largest of no elements: axis %d has size 0", axis);
    shape_reduce(&dims, &(int64_t){axis}, 1, node_int(n, AT_KEEPDIMS, 0), &result);
    if (!(out[0] = eval_result(ev, n, DT_I64, &result)))
        return false;
    for (int64_t o = 0; o < a.outer; o++)
        for (int64_t i = 0; i < a.inner; i++) {
            int64_t first = o * a.size * a.inner + i, best = 0;
            for (int64_t k = 1; k < a.size; k++)
                if (beats(x, largest, last, first + k * a.inner, first + best * a.inner))
                    best = k;
            out[0]->i[o * a.inner + i] = best;
        }
    return true;
}

typedef struct Ranked {
    const RTensor *x;
    bool largest;
    int64_t cell, index;
} Ranked;

static int compare_ranked(const void *pa, const void *pb) {
    const Ranked *a = pa, *b = pb;
    int c = compare_cells(a->x->dtype, a->x, a->cell, b->cell);
    if (c)
        return a->largest ? -c : c;
    return (a->index > b->index) - (a->index < b->index);
}

/* Sorted; of equals the lowest index first; NaN counts as the largest. */
bool eval_topk(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    const RTensor *x = in[0];
    Dims dims = rtensor_dims(x), result;
    int axis;
    Fault f;
    if (n->nin > 1 && in[1] && in[1]->count != 1)
        return eval_fail(ev, n, EXIT_MODEL, "k is not one number");
    int64_t k = n->nin > 1 && in[1] ? in[1]->i[0] : node_int(n, AT_K, 0);
    if (!eval_axis(ev, n, x->rank, -1, &axis))
        return false;
    if (!shape_topk(&dims, axis, k, &result, &f))
        return eval_fail(ev, n, EXIT_DATA, "%s", f.text);
    RTensor *v = out[0] = eval_result(ev, n, x->dtype, &result);
    RTensor *idx = out[1] = eval_result(ev, n, DT_I64, &result);
    if (!v || !idx)
        return false;
    Around a = around_axis(&dims, axis);
    Ranked *row = xcalloc((size_t)a.size + 1, sizeof *row);
    bool largest = node_int(n, AT_LARGEST, 1);
    for (int64_t o = 0; o < a.outer; o++)
        for (int64_t i = 0; i < a.inner; i++) {
            for (int64_t j = 0; j < a.size; j++)
                row[j] = (Ranked){x, largest, (o * a.size + j) * a.inner + i, j};
            qsort(row, (size_t)a.size, sizeof *row, compare_ranked);
            for (int64_t j = 0; j < k; j++) {
                int64_t to = (o * k + j) * a.inner + i;
                CELLS(v)[to] = CELLS(x)[row[j].cell];
                idx->i[to] = row[j].index;
            }
        }
    free(row);
    return true;
}

/* ---- along one axis ---- */

bool eval_cumsum(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    const RTensor *x = in[0];
    bool exclusive = node_int(n, AT_EXCLUSIVE, 0), reverse = node_int(n, AT_REVERSE, 0);
    Dims dims = rtensor_dims(x);
    int axis;
    if (!eval_axis(ev, n, x->rank, 0, &axis))
        return false;
    RTensor *y = out[0] = eval_result(ev, n, x->dtype, &dims);
    if (!y)
        return false;
    Around a = around_axis(&dims, axis);
    for (int64_t o = 0; o < a.outer; o++)
        for (int64_t i = 0; i < a.inner; i++) {
            double f = 0;
            uint64_t u = 0;
            for (int64_t k = 0; k < a.size; k++) {
                int64_t at = (o * a.size + (reverse ? a.size - 1 - k : k)) * a.inner + i;
                if (dtype_is_float(x->dtype)) {
                    y->f[at] = exclusive ? f : f + x->f[at];
                    f += x->f[at];
                } else {
                    y->i[at] = (int64_t)(exclusive ? u : u + (uint64_t)x->i[at]);
                    u += (uint64_t)x->i[at];
                }
            }
        }
    rtensor_wrap(y);
    return true;
}

/* Largest of a row; NaN if there is one, -inf if it is empty. */
static double row_max(const double *x, int64_t n, int64_t step) {
    double m = -INFINITY;
    for (int64_t k = 0; k < n; k++)
        if (x[k * step] > m || isnan(x[k * step]))
            m = x[k * step];
    return m;
}

/* {masked}: a row of only -inf gives 0, where softmax is NaN. */
static void softmax_row(const double *x, double *y, int64_t n, int64_t step, bool log_form,
                        bool masked) {
    double m = row_max(x, n, step), sum = 0;
    if (masked && m == -INFINITY) {
        for (int64_t k = 0; k < n; k++)
            y[k * step] = 0;
        return;
    }
    for (int64_t k = 0; k < n; k++)
        sum += y[k * step] = exp(x[k * step] - m);
    for (int64_t k = 0; k < n; k++) {
        if (log_form)
            y[k * step] = x[k * step] - m - log(sum);
        else
            y[k * step] /= sum;
    }
}

static bool softmax(Eval *ev, Node *n, RTensor **in, RTensor **out, bool log_form) {
    Dims dims = rtensor_dims(in[0]);
    bool masked = node_int(n, AT_MASKED, 0);
    int axis;
    if (!eval_axis(ev, n, in[0]->rank, -1, &axis) ||
        !(out[0] = eval_result(ev, n, in[0]->dtype, &dims)))
        return false;
    Around a = around_axis(&dims, axis);
    for (int64_t o = 0; o < a.outer; o++)
        for (int64_t i = 0; i < a.inner; i++) {
            int64_t at = o * a.size * a.inner + i;
            softmax_row(in[0]->f + at, out[0]->f + at, a.size, a.inner, log_form, masked);
        }
    return true;
}

bool eval_softmax(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    return softmax(ev, n, in, out, false);
}

bool eval_log_softmax(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    return softmax(ev, n, in, out, true);
}
