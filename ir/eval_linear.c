/* eval_linear.c: matrix products and windows. */
#include "ir/eval_ops.h"

#include <stdlib.h>
#include <string.h>

/* Four rows at a time share each row of b, which is what the time goes to. Each element still sums
 * k in ascending order. */
HOT_LOOP void eval_gemm(double *c, int64_t ldc, const double *a, int64_t lda, const double *b,
                        int64_t ldb, int64_t m, int64_t n, int64_t k) {
    int64_t i = 0;
    for (; i + 4 <= m; i += 4) {
        double *restrict c0 = c + i * ldc, *restrict c1 = c0 + ldc, *restrict c2 = c1 + ldc,
                         *restrict c3 = c2 + ldc;
        const double *a0 = a + i * lda, *a1 = a0 + lda, *a2 = a1 + lda, *a3 = a2 + lda;
        for (int64_t p = 0; p < k; p++) {
            const double *restrict row = b + p * ldb;
            double x0 = a0[p], x1 = a1[p], x2 = a2[p], x3 = a3[p];
            for (int64_t j = 0; j < n; j++) {
                c0[j] += x0 * row[j];
                c1[j] += x1 * row[j];
                c2[j] += x2 * row[j];
                c3[j] += x3 * row[j];
            }
        }
    }
    for (; i < m; i++) {
        double *restrict ci = c + i * ldc;
        for (int64_t p = 0; p < k; p++) {
            const double *restrict row = b + p * ldb;
            double x = a[i * lda + p];
            for (int64_t j = 0; j < n; j++)
                ci[j] += x * row[j];
        }
    }
}

static void int_gemm(int64_t *c, const int64_t *a, const int64_t *b, int64_t m, int64_t n,
                     int64_t k) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t p = 0; p < k; p++)
            for (int64_t j = 0; j < n; j++)
                c[i * n + j] = (int64_t)((uint64_t)c[i * n + j] +
                                         (uint64_t)a[i * k + p] * (uint64_t)b[p * n + j]);
}

/* x with its last two axes swapped, in heap memory the caller frees. */
static Cell *swapped(const RTensor *x) {
    int64_t rows = x->dims[x->rank - 2], cols = x->dims[x->rank - 1];
    Cell *y = xcalloc((size_t)x->count + 1, sizeof *y);
    int64_t size = rows * cols, batches = size ? x->count / size : 0;
    for (int64_t b = 0; b < batches; b++)
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < cols; j++)
                y[b * size + j * rows + i] = CELLS(x)[b * size + i * cols + j];
    return y;
}

bool eval_matmul(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    bool trans_a = node_int(n, AT_TRANS_A, 0), trans_b = node_int(n, AT_TRANS_B, 0);
    Dims a = rtensor_dims(in[0]), b = rtensor_dims(in[1]), y;
    Fault f;
    Walk w;
    if (!shape_matmul(&a, &b, trans_a, trans_b, &y, &f))
        return eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
    if (!(out[0] = eval_result(ev, n, in[0]->dtype, &y)))
        return false;
    if (out[0]->count == 0 || in[0]->count == 0)
        return true;
    Cell *at = trans_a ? swapped(in[0]) : NULL, *bt = trans_b ? swapped(in[1]) : NULL;
    const Cell *pa = at ? at : CELLS(in[0]), *pb = bt ? bt : CELLS(in[1]);
    int64_t k = a.at[trans_a ? a.rank - 2 : a.rank - 1];
    int64_t rows = a.rank == 1 ? 1 : a.at[trans_a ? a.rank - 1 : a.rank - 2];
    int64_t cols = b.rank == 1 ? 1 : b.at[trans_b ? b.rank - 2 : b.rank - 1];
    /* one walk step per batch; strides count whole matrices */
    Dims batch = y, ba = a, bb = b;
    batch.rank -= (a.rank > 1) + (b.rank > 1);
    ba.rank = a.rank > 2 ? a.rank - 2 : 0;
    bb.rank = b.rank > 2 ? b.rank - 2 : 0;
    walk_init(&w, &batch);
    walk_broadcast(&w, &batch, &ba);
    walk_broadcast(&w, &batch, &bb);
    int64_t done = 0;
    WALK(&w) {
        for (int64_t i = 0; i < w.row; i++, done++) {
            const Cell *xa = pa + (w.offset[0] + i * walk_step(&w, 0)) * rows * k;
            const Cell *xb = pb + (w.offset[1] + i * walk_step(&w, 1)) * k * cols;
            if (dtype_is_float(in[0]->dtype))
                eval_gemm(out[0]->f + done * rows * cols, cols, (const double *)(const void *)xa, k,
                          (const double *)(const void *)xb, cols, rows, cols, k);
            else
                int_gemm(out[0]->i + done * rows * cols, (const int64_t *)(const void *)xa,
                         (const int64_t *)(const void *)xb, rows, cols, k);
        }
    }
    free(at);
    free(bt);
    rtensor_wrap(out[0]);
    return true;
}

/* ---- unfold and fold: window element k at position p is image element p*stride - before +
 * k*dilation ---- */

static int64_t window_place(const Window *w, int axis, int64_t k, int64_t p) {
    int64_t at = p * w->stride[axis] - w->before[axis] + k * w->dilation[axis];
    return at >= 0 && at < w->size[axis] ? at : -1;
}

typedef struct WindowSizes {
    int64_t image, window, positions; /* elements of one channel */
} WindowSizes;

static WindowSizes window_sizes(const Window *w) {
    WindowSizes s = {1, 1, 1};
    for (int i = 0; i < w->spatial; i++) {
        s.image *= w->size[i];
        s.window *= w->kernel[i];
        s.positions *= w->positions[i];
    }
    return s;
}

/* By (window element, position): the image element, or -1 in the padding. Heap memory. */
static int64_t *window_table(const Window *w, const WindowSizes *s) {
    int64_t *table = xcalloc((size_t)(s->window * s->positions) + 1, sizeof *table);
    for (int64_t k = 0; k < s->window; k++)
        for (int64_t p = 0; p < s->positions; p++) {
            int64_t place = 0, stride = 1, rk = k, rp = p;
            for (int i = w->spatial - 1; i >= 0 && place >= 0; i--) {
                int64_t at = window_place(w, i, rk % w->kernel[i], rp % w->positions[i]);
                place = at < 0 ? -1 : place + at * stride;
                stride *= w->size[i];
                rk /= w->kernel[i];
                rp /= w->positions[i];
            }
            table[k * s->positions + p] = place;
        }
    return table;
}

bool eval_unfold(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    Dims x = rtensor_dims(in[0]), y;
    Window w;
    Fault f;
    if (!shape_unfold(n, &x, &w, &y, &f))
        return eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
    RTensor *r = out[0] = eval_result(ev, n, in[0]->dtype, &y);
    if (!r)
        return false;
    WindowSizes s = window_sizes(&w);
    int64_t *table = window_table(&w, &s), per = s.window * s.positions;
    double fill = node_float(n, AT_VALUE_F, 0);
    for (int64_t c = 0; c < x.at[0] * x.at[1]; c++)
        for (int64_t i = 0; i < per; i++) {
            if (table[i] >= 0)
                CELLS(r)[c * per + i] = CELLS(in[0])[c * s.image + table[i]];
            else if (dtype_is_float(r->dtype))
                r->f[c * per + i] = fill;
            else
                r->i[c * per + i] = int_from_double(r->dtype, fill);
        }
    free(table);
    return true;
}

bool eval_fold(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    Dims x = rtensor_dims(in[0]), y;
    Window w;
    Fault f;
    if (!shape_fold(n, &x, &w, &y, &f))
        return eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
    if (!(out[0] = eval_result(ev, n, in[0]->dtype, &y)))
        return false;
    WindowSizes s = window_sizes(&w);
    int64_t *table = window_table(&w, &s), per = s.window * s.positions;
    for (int64_t c = 0; c < x.at[0] * x.at[1]; c++)
        for (int64_t i = 0; i < per; i++)
            if (table[i] >= 0)
                out[0]->f[c * s.image + table[i]] += in[0]->f[c * per + i];
    free(table);
    return true;
}
