/* eval_moe.c: the Mixture-of-Experts row ops (semantics in ops.def). Letters: T tokens, E experts,
 * K chosen, R rows. */
#include "ir/eval_ops.h"

#include <stdlib.h>
#include <string.h>

/* Makes all results after the shape rule; types of results: operand 0's, or i64. */
static bool rows_results(Eval *ev, const Node *n, RTensor **in, RTensor **out, bool ints) {
    Dims shapes[8], *x = xcalloc((size_t)n->nin + 8, sizeof *x);
    Fault f;
    for (int i = 0; i < n->nin + 8; i++)
        x[i] = rtensor_dims(i < n->nin ? in[i] : NULL);
    bool ok = shape_rows(n, x, shapes, &f) || eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
    free(x);
    for (int i = 0; ok && i < n->nout; i++)
        ok = (out[i] = eval_result(ev, n, ints ? DT_I64 : in[0]->dtype, &shapes[i])) != NULL;
    return ok;
}

static void fill_ints(RTensor *r, int64_t v) {
    for (int64_t i = 0; i < r->count; i++)
        r->i[i] = v;
}

/* Offsets must rise from 0 to at most the number of rows. */
static bool offsets_fit(Eval *ev, const Node *n, const RTensor *offsets, int64_t rows) {
    for (int64_t e = 0; e < offsets->count; e++)
        if (offsets->i[e] < (e ? offsets->i[e - 1] : 0) || offsets->i[e] > rows ||
            (e == 0 && offsets->i[0] != 0))
            return eval_fail(ev, n, EXIT_DATA, "offsets[%lld] is %lld (of %lld rows)", (long long)e,
                             (long long)offsets->i[e], (long long)rows);
    return true;
}

/* A row index: -1 (nothing) or 0..size-1; no counting from the end. */
static bool row_fits(Eval *ev, const Node *n, int64_t row, int64_t size) {
    if (row >= -1 && row < size)
        return true;
    return eval_fail(ev, n, EXIT_DATA, "row %lld is outside %lld rows", (long long)row,
                     (long long)size);
}

/* ---- dispatch ---- */

/* The expert of a pair, or -1 if it is not routed. */
static int64_t pair_expert(const RTensor *sel, bool mask, int64_t experts, int64_t pair) {
    if (!mask)
        return sel->i[pair] >= 0 && sel->i[pair] < experts ? sel->i[pair] : -1;
    bool routed = dtype_is_float(sel->dtype) ? sel->f[pair] != 0 : sel->i[pair] != 0;
    return routed ? pair % experts : -1;
}

/* A counting sort of the pairs by expert; pairs come by token, so rows of an expert do as well. Of
 * two equal (token, expert) pairs both get rows and te_row holds the first. */
bool eval_dispatch(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    const RTensor *sel = in[0];
    int64_t experts = node_int(n, AT_EXPERTS, 0);
    bool mask = sel->dtype == DT_BOOL || dtype_is_float(sel->dtype);
    if (!rows_results(ev, n, in, out, true))
        return false;
    RTensor *offsets = out[0], *row_token = out[1], *row_pair = out[2], *row_expert = out[3];
    RTensor *pair_row = out[4], *te_row = out[5];
    for (int i = 1; i < 6; i++)
        fill_ints(out[i], -1);
    for (int64_t p = 0; p < sel->count; p++) {
        int64_t e = pair_expert(sel, mask, experts, p);
        if (e >= 0)
            offsets->i[e + 1]++;
    }
    for (int64_t e = 0; e < experts; e++)
        offsets->i[e + 1] += offsets->i[e];
    int64_t *next = xcalloc((size_t)experts, sizeof *next);
    memcpy(next, offsets->i, sizeof *next * (size_t)experts);
    for (int64_t p = 0; p < sel->count; p++) {
        int64_t e = pair_expert(sel, mask, experts, p), token = p / sel->dims[1];
        if (e < 0)
            continue;
        int64_t row = next[e]++;
        row_token->i[row] = token;
        row_pair->i[row] = p;
        row_expert->i[row] = e;
        pair_row->i[p] = row;
        if (te_row->i[token * experts + e] < 0)
            te_row->i[token * experts + e] = row;
    }
    free(next);
    return true;
}

/* ---- rows ---- */

bool eval_gather_rows(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    const RTensor *x = in[0], *idx = in[1];
    if (!rows_results(ev, n, in, out, false))
        return false;
    int64_t width = 1;
    for (int i = 1; i < x->rank; i++)
        width *= x->dims[i];
    for (int64_t m = 0; m < idx->count; m++) {
        if (!row_fits(ev, n, idx->i[m], x->dims[0]))
            return false;
        if (idx->i[m] >= 0)
            memcpy(CELLS(out[0]) + m * width, CELLS(x) + idx->i[m] * width,
                   sizeof(Cell) * (size_t)width);
    }
    return true;
}

bool eval_combine(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    const RTensor *x = in[0], *inv = in[1], *idx = in[2];
    if (!rows_results(ev, n, in, out, false))
        return false;
    int64_t width = 1, each = inv->dims[1];
    for (int i = idx->rank; i < x->rank; i++)
        width *= x->dims[i];
    for (int64_t p = 0; p < inv->count; p++) {
        int64_t row = inv->i[p], to = p / each * width;
        if (!row_fits(ev, n, row, idx->count))
            return false;
        for (int64_t i = 0; row >= 0 && i < width; i++) {
            if (dtype_is_float(x->dtype))
                out[0]->f[to + i] += x->f[row * width + i];
            else
                out[0]->i[to + i] =
                    (int64_t)((uint64_t)out[0]->i[to + i] + (uint64_t)x->i[row * width + i]);
        }
    }
    rtensor_wrap(out[0]);
    return true;
}

/* Sums the rows of each expert. */
bool eval_segment_sum(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    const RTensor *v = in[0], *offsets = in[1];
    int64_t width = 1;
    if (!rows_results(ev, n, in, out, false) || !offsets_fit(ev, n, offsets, v->dims[0]))
        return false;
    for (int i = 1; i < v->rank; i++)
        width *= v->dims[i];
    for (int64_t e = 0; e + 1 < offsets->count; e++)
        for (int64_t r = offsets->i[e]; r < offsets->i[e + 1]; r++)
            for (int64_t i = 0; i < width; i++) {
                if (dtype_is_float(v->dtype))
                    out[0]->f[e * width + i] += v->f[r * width + i];
                else
                    out[0]->i[e * width + i] = (int64_t)((uint64_t)out[0]->i[e * width + i] +
                                                         (uint64_t)v->i[r * width + i]);
            }
    rtensor_wrap(out[0]);
    return true;
}

/* ---- grouped products ---- */

/* y[cols,rows] = x[rows,cols]^T */
static void transpose_into(double *y, const double *x, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++)
            y[j * rows + i] = x[i * cols + j];
}

bool eval_grouped_matmul(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    const RTensor *x = in[0], *offsets = in[1];
    bool trans = node_int(n, AT_TRANS_B, 0), stack = in[2]->rank == 3;
    if (!rows_results(ev, n, in, out, false) || !offsets_fit(ev, n, offsets, x->dims[0]))
        return false;
    int64_t wide_in = x->dims[1], wide_out = out[0]->dims[1];
    double *turned = trans ? xcalloc((size_t)(wide_in * wide_out) + 1, sizeof *turned) : NULL;
    for (int64_t e = 0; e + 1 < offsets->count; e++) {
        int64_t first = offsets->i[e], rows = offsets->i[e + 1] - first;
        const double *w = stack ? in[2]->f + e * wide_in * wide_out : in[2 + e]->f;
        if (rows == 0)
            continue;
        if (trans) {
            transpose_into(turned, w, wide_out, wide_in);
            w = turned;
        }
        eval_gemm(out[0]->f + first * wide_out, wide_out, x->f + first * wide_in, wide_in, w,
                  wide_out, rows, wide_out, wide_in);
    }
    free(turned);
    return true;
}

/* g[e] = x_e' d_e as [in,out], or d_e' x_e as [out,in]; g is zero before. */
static void wgrad(double *g, const RTensor *x, const RTensor *d, int64_t first, int64_t rows,
                  bool trans) {
    const RTensor *left = trans ? d : x, *right = trans ? x : d;
    int64_t m = left->dims[1], n = right->dims[1];
    double *turned = xcalloc((size_t)(m * rows) + 1, sizeof *turned);
    transpose_into(turned, left->f + first * m, rows, m);
    eval_gemm(g, n, turned, rows, right->f + first * n, n, m, n, rows);
    free(turned);
}

bool eval_grouped_wgrad(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    const RTensor *x = in[0], *d = in[1], *offsets = in[2];
    if (!rows_results(ev, n, in, out, false) || !offsets_fit(ev, n, offsets, x->dims[0]))
        return false;
    int64_t size = x->dims[1] * d->dims[1];
    for (int64_t e = 0; e + 1 < offsets->count; e++)
        wgrad(out[0]->f + e * size, x, d, offsets->i[e], offsets->i[e + 1] - offsets->i[e],
              node_int(n, AT_TRANS_B, 0));
    return true;
}

/* dot[r] = <x_r d_r', G_e / T_e> with G_e = sum of x_n d_n' over the expert's rows, taken from
 * operand 3 if it is there. */
bool eval_token_dot(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    const RTensor *x = in[0], *d = in[1], *offsets = in[2], *given = n->nin > 3 ? in[3] : NULL;
    bool trans = given && node_int(n, AT_TRANS_B, 0);
    if (!rows_results(ev, n, in, out, false) || !offsets_fit(ev, n, offsets, x->dims[0]))
        return false;
    int64_t a = x->dims[1], b = d->dims[1], size = a * b;
    double *g = xcalloc((size_t)size + 1, sizeof *g), *xg = xcalloc((size_t)b + 1, sizeof *xg);
    for (int64_t e = 0; e + 1 < offsets->count; e++) {
        int64_t first = offsets->i[e], rows = offsets->i[e + 1] - first;
        memset(g, 0, sizeof *g * (size_t)size);
        if (trans)
            transpose_into(g, given->f + e * size, b, a);
        else if (given)
            memcpy(g, given->f + e * size, sizeof *g * (size_t)size);
        else
            wgrad(g, x, d, first, rows, false);
        for (int64_t r = first; r < first + rows; r++) {
            double dot = 0;
            memset(xg, 0, sizeof *xg * (size_t)b);
            eval_gemm(xg, b, x->f + r * a, a, g, b, 1, b, a);
            for (int64_t j = 0; j < b; j++)
                dot += xg[j] * d->f[r * b + j];
            out[0]->f[r] = dot / (double)rows;
        }
    }
    free(g);
    free(xg);
    return true;
}
