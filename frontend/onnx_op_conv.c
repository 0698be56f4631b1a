/* onnx_op_conv.c: convolution and pooling through UNFOLD (windows as axes), and Resize through one
 * small matrix per axis.
 *
 * UNFOLD gives [N,C,window…,positions…]. A convolution is one matrix product of the filters with
 * the windows of each group. */
#include <math.h>
#include <string.h>

#include "frontend/onnx_ops.h"

enum { MAX_SPATIAL = 3 };

typedef struct Window {
    int n; /* spatial axes */
    int64_t kernel[MAX_SPATIAL], strides[MAX_SPATIAL], dilations[MAX_SPATIAL],
        pads[2 * MAX_SPATIAL]; /* begins, then ends */
} Window;

static void window_list(OpCall *c, const char *name, int n, int64_t absent, int64_t at_least,
                        int64_t *to) {
    const int64_t *at;
    int have = call_ints(c, name, &at);
    if (have >= 0 && have != n)
        call_fail(c, "%s has %d entries; expected %d", name, have, n);
    for (int i = 0; i < n; i++) {
        to[i] = have < 0 ? absent : at[i];
        if (to[i] < at_least || to[i] > INT32_MAX)
            call_fail(c, "%s holds %lld; at least %lld is expected", name, (long long)to[i],
                      (long long)at_least);
    }
}

/* SAME pads so that the output is ceil(size / stride). */
static void window_same(OpCall *c, Value *x, Window *w, bool upper) {
    for (int i = 0; i < w->n; i++) {
        int64_t size = x->dims[2 + i], span = (w->kernel[i] - 1) * w->dilations[i] + 1;
        if (size < 0)
            call_fail(c, "auto_pad needs the size of axis %d", 2 + i);
        int64_t out = (size + w->strides[i] - 1) / w->strides[i],
                total = (out - 1) * w->strides[i] + span - size;
        total = total < 0 ? 0 : total;
        w->pads[i] = upper ? total / 2 : total - total / 2;
        w->pads[w->n + i] = total - w->pads[i];
    }
}

/* ceil_mode: more padding at the end, unless the last window would start in it. */
static void window_ceil(OpCall *c, Value *x, Window *w) {
    for (int i = 0; i < w->n; i++) {
        int64_t size = x->dims[2 + i], span = (w->kernel[i] - 1) * w->dilations[i] + 1,
                stride = w->strides[i];
        if (size < 0)
            call_fail(c, "ceil_mode needs the size of axis %d", 2 + i);
        int64_t room = size + w->pads[i] + w->pads[w->n + i] - span,
                out = (room + stride - 1) / stride + 1;
        if ((out - 1) * stride >= size + w->pads[i])
            out--;
        if ((out - 1) * stride > room)
            w->pads[w->n + i] += (out - 1) * stride - room;
    }
}

static void window_read(OpCall *c, Value *x, Window *w, const int64_t *kernel) {
    w->n = em_rank(c, x) - 2;
    if (w->n < 1 || w->n > MAX_SPATIAL)
        call_fail(c, "rank %d; expected 3 to %d", x->rank, 2 + MAX_SPATIAL);
    window_list(c, "kernel_shape", w->n, 1, 1, w->kernel);
    for (int i = 0; kernel && i < w->n; i++) {
        if (call_attr(c, "kernel_shape") && w->kernel[i] != kernel[i])
            call_fail(c, "kernel_shape says %lld, the filter has %lld", (long long)w->kernel[i],
                      (long long)kernel[i]);
        w->kernel[i] = kernel[i];
    }
    window_list(c, "strides", w->n, 1, 1, w->strides);
    window_list(c, "dilations", w->n, 1, 1, w->dilations);
    window_list(c, "pads", 2 * w->n, 0, 0, w->pads);
    const char *pad = call_string(c, "auto_pad", "NOTSET");
    if (!strcmp(pad, "SAME_UPPER") || !strcmp(pad, "SAME_LOWER"))
        window_same(c, x, w, !strcmp(pad, "SAME_UPPER"));
    else if (!strcmp(pad, "VALID"))
        memset(w->pads, 0, sizeof w->pads);
    else if (strcmp(pad, "NOTSET") != 0)
        call_fail(c, "auto_pad \"%s\" is unknown", diag_safe(c->im->d, pad));
}

static Value *unfold(OpCall *c, Value *x, const Window *w, double fill) {
    return EM(c, OP_UNFOLD, &x, 1, A_INTS(KERNEL, w->kernel, w->n),
              A_INTS(STRIDES, w->strides, w->n), A_INTS(DILATIONS, w->dilations, w->n),
              A_INTS(PADS, w->pads, 2 * w->n), A_FLOAT(VALUE_F, fill));
}

static Value *add_channel_bias(OpCall *c, Value *y, Value *bias, int64_t channels) {
    int64_t dims[MAX_RANK] = {channels};
    for (int i = 1; i < y->rank - 1; i++)
        dims[i] = 1;
    if (em_rank(c, bias) != 1 || bias->dims[0] != channels)
        call_fail(c, "the bias must be [%lld], found %s", (long long)channels,
                  call_value_text(c, bias));
    return em_binary(c, OP_ADD, y, em_reshape(c, bias, y->rank - 1, dims));
}

/* x [N,C,…], filter [O,C/G,window…], bias [O] -> [N,O,…] */
void read_conv(OpCall *c) {
    Value *x = c->in[0], *f = c->in[1];
    Window w = {0};
    int64_t groups = call_int(c, "group", 1);
    if (em_rank(c, f) != em_rank(c, x) || !value_known(f))
        call_fail(c, "the filter must be known and have the input's rank, found %s",
                  call_value_text(c, f));
    window_read(c, x, &w, &f->dims[2]);
    int64_t o = f->dims[0], cg = f->dims[1], k = cg;
    if (groups < 1 || o % groups || (x->dims[1] >= 0 && x->dims[1] != cg * groups))
        call_fail(c, "%lld groups do not fit %s and the filter %s", (long long)groups,
                  call_value_text(c, x), call_value_text(c, f));
    for (int i = 0; i < w.n; i++)
        k *= w.kernel[i];
    Value *u = unfold(c, x, &w, 0); /* [N,C,window…,positions…] */
    ShapeOf s = {0}, back = {0};
    shape_add_axis(c, &s, x, 0);
    if (groups > 1)
        shape_add(c, &s, groups);
    shape_add(c, &s, k);
    shape_add_product(c, &s, u, 2 + w.n, 2 + 2 * w.n);
    Value *rows = em_view(c, u, &s);
    Value *filters = groups > 1 ? em_reshape(c, f, 3, (int64_t[]){groups, o / groups, k})
                                : em_reshape(c, f, 2, (int64_t[]){o, k});
    Value *y = em_matmul(c, filters, rows, false, false); /* [N,(G,)O/G,P] */
    shape_add_axis(c, &back, x, 0);
    shape_add(c, &back, o);
    shape_add_axes(c, &back, u, 2 + w.n, 2 + 2 * w.n);
    y = em_view(c, y, &back);
    if (c->nin > 2 && c->in[2])
        y = add_channel_bias(c, y, c->in[2], o);
    c->out[0] = y;
}

/* Output sizes of a transposed convolution; pads follow from output_shape or auto_pad where they
 * are not given. */
static void transposed_sizes(OpCall *c, Value *x, Window *w, int64_t *sizes) {
    const int64_t *want;
    int64_t extra[MAX_SPATIAL];
    int given = call_ints(c, "output_shape", &want);
    const char *pad = call_string(c, "auto_pad", "NOTSET");
    bool same = !strncmp(pad, "SAME", 4), upper = !strcmp(pad, "SAME_UPPER");
    window_list(c, "output_padding", w->n, 0, 0, extra);
    if (given >= 0 && given < w->n)
        call_fail(c, "output_shape has %d entries; expected %d", given, w->n);
    for (int i = 0; i < w->n; i++) {
        int64_t in = x->dims[2 + i], span = (w->kernel[i] - 1) * w->dilations[i] + 1;
        if (in < 0)
            call_fail(c, "the size of axis %d must be known", 2 + i);
        int64_t full = w->strides[i] * (in - 1) + extra[i] + span;
        if (given >= 0 || same) {
            int64_t out = given >= 0 ? want[given - w->n + i] : in * w->strides[i];
            int64_t total =
                full > out ? full - out : 0; /* beyond what the windows reach there are zeros */
            full = full > out ? full : out;
            w->pads[i] = upper ? total / 2 : total - total / 2;
            w->pads[w->n + i] = total - w->pads[i];
        }
        sizes[i] = full - w->pads[i] - w->pads[w->n + i];
        if (sizes[i] < 1)
            call_fail(c, "axis %d of the result would have size %lld", 2 + i, (long long)sizes[i]);
    }
}

/* x [N,C,…], filter [C,O/G,window…] -> [N,O,…]: the windows are filter' x, folded together. */
void read_conv_transpose(OpCall *c) {
    Value *x = c->in[0], *f = c->in[1];
    Window w = {0};
    int64_t groups = call_int(c, "group", 1), sizes[MAX_SPATIAL];
    if (em_rank(c, f) != em_rank(c, x) || !value_known(f))
        call_fail(c, "the filter must be known and have the input's rank, found %s",
                  call_value_text(c, f));
    w.n = x->rank - 2;
    if (w.n < 1 || w.n > MAX_SPATIAL)
        call_fail(c, "rank %d; expected 3 to %d", x->rank, 2 + MAX_SPATIAL);
    int64_t channels = f->dims[0], og = f->dims[1], k = og;
    window_list(c, "strides", w.n, 1, 1, w.strides);
    window_list(c, "dilations", w.n, 1, 1, w.dilations);
    window_list(c, "pads", 2 * w.n, 0, 0, w.pads);
    for (int i = 0; i < w.n; i++) {
        w.kernel[i] = f->dims[2 + i];
        k *= w.kernel[i];
    }
    if (groups < 1 || channels % groups || (x->dims[1] >= 0 && x->dims[1] != channels))
        call_fail(c, "%lld groups do not fit %s and the filter %s", (long long)groups,
                  call_value_text(c, x), call_value_text(c, f));
    transposed_sizes(c, x, &w, sizes);
    ShapeOf s = {0}, open = {0};
    shape_add_axis(c, &s, x, 0);
    shape_add(c, &s, groups);
    shape_add(c, &s, channels / groups);
    shape_add_product(c, &s, x, 2, x->rank);
    Value *filters = em_reshape(c, f, 3, (int64_t[]){groups, channels / groups, k});
    Value *cols = em_matmul(c, filters, em_view(c, x, &s), true, false); /* [N,G,O/G*window,P] */
    shape_add_axis(c, &open, x, 0);
    shape_add(c, &open, groups * og);
    for (int i = 0; i < w.n; i++)
        shape_add(c, &open, w.kernel[i]);
    shape_add_axes(c, &open, x, 2, x->rank);
    cols = em_view(c, cols, &open);
    Value *y = EM(c, OP_FOLD, &cols, 1, A_INTS(DIMS, sizes, w.n), A_INTS(KERNEL, w.kernel, w.n),
                  A_INTS(STRIDES, w.strides, w.n), A_INTS(DILATIONS, w.dilations, w.n),
                  A_INTS(PADS, w.pads, 2 * w.n));
    c->out[0] = c->nin > 2 && c->in[2] ? add_channel_bias(c, y, c->in[2], groups * og) : y;
}

/* (sum |x|^p)^(1/p) */
static Value *lp_pool(OpCall *c, Value *u, const int64_t *axes, int n) {
    int64_t p = call_int(c, "p", 2);
    if (p < 1)
        call_fail(c, "p is %lld; expected 1 or more", (long long)p);
    if (p == 2)
        return em_unary(c, OP_SQRT, em_reduce(c, OP_REDUCE_SUM, em_square(c, u), axes, n, false));
    u = em_unary(c, OP_ABS, u);
    u = p == 1 ? u : em_binary(c, OP_POW, u, em_like(c, u, (double)p));
    u = em_reduce(c, OP_REDUCE_SUM, u, axes, n, false);
    return p == 1 ? u : em_binary(c, OP_POW, u, em_like(c, u, 1.0 / (double)p));
}

/* Where the maximum of each window of u lies in x, counted over all of x: the window's first place
 * plus the place in the window. Spatial axes count in row-major order, or reversed. */
static Value *pool_indices(OpCall *c, Value *x, Value *u, const Window *w) {
    if (!value_known(x) || !value_known(u))
        call_fail(c, "the indices of a pooling need known sizes, found %s", call_value_text(c, x));
    int64_t step[MAX_SPATIAL], area = 1, kernel = 1, dims[MAX_RANK];
    bool column = call_int(c, "storage_order", 0) != 0;
    for (int i = 0; i < w->n; i++) {
        int axis = column ? i : w->n - 1 - i;
        step[axis] = area;
        area *= x->dims[2 + axis];
        kernel *= w->kernel[i];
    }
    Tensor *inside = tensor_new(&c->im->g->arena, DT_I64, 1, &kernel);
    for (int64_t k = 0; k < kernel; k++) {
        int64_t at = 0, rest = k;
        for (int i = w->n - 1; i >= 0; rest /= w->kernel[i--])
            at += rest % w->kernel[i] * w->dilations[i] * step[i];
        tensor_set_i(inside, k, at);
    }
    memcpy(dims, u->dims, 2 * sizeof *dims);
    dims[2] = kernel;
    memcpy(dims + 3, u->dims + 2 + w->n, sizeof *dims * (size_t)w->n);
    Value *best = em_reshape(c, u, 3 + w->n, dims);
    best = EM(c, OP_ARGMAX, &best, 1, A_INT(AXIS, 2), A_INT(KEEPDIMS, 0), A_INT(LARGEST, 1));
    memmove(dims + 2, dims + 3, sizeof *dims * (size_t)w->n);
    Tensor *first = tensor_new(&c->im->g->arena, DT_I64, 2 + w->n, dims);
    for (int64_t k = 0; k < tensor_count(first); k++) {
        int64_t at = 0, rest = k;
        for (int i = w->n - 1; i >= 0; rest /= dims[2 + i--])
            at += (rest % dims[2 + i] * w->strides[i] - w->pads[i]) * step[i];
        tensor_set_i(first, k, at + rest * area); /* rest: which image and channel */
    }
    return em_binary(c, OP_ADD, em_const(c, first), em_gather(c, em_const(c, inside), best, 0));
}

void read_pool(OpCall *c) {
    Value *x = c->in[0];
    Window w = {0};
    window_read(c, x, &w, NULL);
    if (!call_attr(c, "kernel_shape"))
        call_fail(c, "attribute \"kernel_shape\" is missing");
    Window padded = w;
    if (call_int(c, "ceil_mode", 0))
        window_ceil(c, x, &padded);
    int64_t axes[MAX_SPATIAL], kernel = 1;
    for (int i = 0; i < w.n; i++) {
        axes[i] = 2 + i;
        kernel *= w.kernel[i];
    }
    if (c->row->arg == POOL_MAX) {
        Value *u = unfold(c, x, &padded, -INFINITY);
        c->out[0] = em_reduce(c, OP_REDUCE_MAX, u, axes, w.n, false);
        if (c->nout > 1 && c->wanted[1])
            c->out[1] = pool_indices(c, x, u, &padded);
        return;
    }
    if (c->row->arg == POOL_LP) {
        c->out[0] = lp_pool(c, unfold(c, x, &padded, 0), axes, w.n);
        return;
    }
    Value *sum = em_reduce(c, OP_REDUCE_SUM, unfold(c, x, &padded, 0), axes, w.n, false);
    bool pads = false;
    for (int i = 0; i < 2 * w.n; i++)
        pads |= padded.pads[i] != (call_int(c, "count_include_pad", 0) ? w.pads[i] : 0);
    if (!pads && !memcmp(w.pads, padded.pads, sizeof w.pads)) {
        c->out[0] = em_scale(c, sum, 1.0 / (double)kernel);
        return;
    }
    /* what counts is ones; with count_include_pad the explicit padding counts, that of ceil_mode
     * does not */
    ShapeOf s = {0};
    shape_add(c, &s, 1);
    shape_add(c, &s, 1);
    shape_add_axes(c, &s, x, 2, x->rank);
    Value *ones = em_spread(c, em_like(c, x, 1), &s);
    if (call_int(c, "count_include_pad", 0)) {
        int64_t around[2 * MAX_RANK] = {0};
        for (int i = 0; i < w.n; i++) {
            around[2 + i] = w.pads[i];
            around[x->rank + 2 + i] = w.pads[w.n + i];
            padded.pads[i] = 0;
            padded.pads[w.n + i] -= w.pads[w.n + i];
        }
        ones = EM(c, OP_PAD, &ones, 1, A_INTS(PADS, around, 2 * x->rank), A_FLOAT(VALUE_F, 1));
    }
    Value *count = em_reduce(c, OP_REDUCE_SUM, unfold(c, ones, &padded, 0), axes, w.n, false);
    c->out[0] = em_binary(c, OP_DIV, sum, count);
}

void read_global_pool(OpCall *c) {
    int rank = em_rank(c, c->in[0]);
    int64_t axes[MAX_RANK];
    if (rank < 3)
        call_fail(c, "rank %d; at least 3 is expected", rank);
    for (int i = 2; i < rank; i++)
        axes[i - 2] = i;
    c->out[0] = c->row->arg == POOL_MAX
                    ? em_reduce(c, OP_REDUCE_MAX, c->in[0], axes, rank - 2, true)
                    : em_mean(c, c->in[0], axes, rank - 2, true);
}

/* ---- resize ---- */

typedef struct Resize {
    const char *mode, *transform, *nearest;
    double cubic;
    bool exclude_outside, antialias;
    double start, end,
        outside; /* tf_crop_and_resize: this axis's part of the input, and what lies outside it */
} Resize;

/* Where output position i reads in the input. */
static double source_position(OpCall *c, const Resize *r, double i, double in, double out,
                              double scale) {
    if (!strcmp(r->transform, "half_pixel"))
        return (i + 0.5) / scale - 0.5;
    if (!strcmp(r->transform, "half_pixel_symmetric")) {
        double adjust = out / (scale * in), centre = in / 2;
        return centre * (1 - adjust) + (i + 0.5) / scale - 0.5;
    }
    if (!strcmp(r->transform, "pytorch_half_pixel"))
        return out > 1 ? (i + 0.5) / scale - 0.5 : 0;
    if (!strcmp(r->transform, "align_corners"))
        return out > 1 ? i * (in - 1) / (in * scale - 1) : 0;
    if (!strcmp(r->transform, "asymmetric"))
        return i / scale;
    if (!strcmp(r->transform, "tf_crop_and_resize"))
        return out > 1 ? (r->start + i * (r->end - r->start) / (out - 1)) * (in - 1)
                       : 0.5 * (r->start + r->end) * (in - 1);
    call_fail(c, "coordinate_transformation_mode \"%s\" is not supported",
              diag_safe(c->im->d, r->transform));
}

static double cubic_weight(double d, double a) {
    d = fabs(d);
    return d <= 1  ? ((a + 2) * d - (a + 3)) * d * d + 1
           : d < 2 ? ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
                   : 0;
}

static int64_t clamp_index(int64_t i, int64_t n) {
    return i < 0 ? 0 : i >= n ? n - 1 : i;
}

static int64_t nearest_index(OpCall *c, const Resize *r, double x) {
    if (!strcmp(r->nearest, "floor"))
        return (int64_t)floor(x);
    if (!strcmp(r->nearest, "ceil"))
        return (int64_t)ceil(x);
    if (!strcmp(r->nearest, "round_prefer_ceil"))
        return (int64_t)floor(x + 0.5);
    if (strcmp(r->nearest, "round_prefer_floor") != 0)
        call_fail(c, "nearest_mode \"%s\" is unknown", diag_safe(c->im->d, r->nearest));
    return (int64_t)ceil(x - 0.5);
}

/* The [out,in] matrix of one axis. Antialiased, a filter is as much wider as the output is coarser,
 * and its weights are normalised; positions outside count for the edge unless they are excluded. */
static Tensor *resize_matrix(OpCall *c, const Resize *r, DType t, int64_t in, int64_t out,
                             double scale) {
    Tensor *m = tensor_new(&c->im->g->arena, t, 2, (int64_t[]){out, in});
    bool cubic = !strcmp(r->mode, "cubic");
    double stretch = r->antialias && scale < 1 ? scale : 1, reach = (cubic ? 2 : 1) / stretch;
    for (int64_t i = 0; i < out; i++) {
        double x = source_position(c, r, (double)i, (double)in, (double)out, scale), sum = 0;
        int64_t first = (int64_t)floor(x - reach) + 1, last = (int64_t)ceil(x + reach) - 1;
        for (int pass = 0; pass < 2; pass++) {
            for (int64_t k = first; k <= last; k++) {
                double d = fabs(x - (double)k) * stretch,
                       w = cubic ? cubic_weight(d, r->cubic) : 1 - d;
                if (r->exclude_outside && (k < 0 || k >= in))
                    continue;
                if (pass == 0) {
                    sum += w;
                    continue;
                }
                int64_t at = i * in + clamp_index(k, in);
                bool divide = (r->exclude_outside || stretch < 1) && sum != 0;
                tensor_set_f(m, at, tensor_get_f(m, at) + w / (divide ? sum : 1));
            }
        }
    }
    return m;
}

/* y[.., out, ..] = M x over one axis: the axis goes last and back. */
static Value *resize_axis(OpCall *c, const Resize *r, Value *x, int axis, int64_t out,
                          double scale) {
    int64_t in = x->dims[axis], perm[MAX_RANK];
    if (in < 1 || out < 1 || out > (int64_t)1 << 20)
        call_fail(c, "axis %d of size %lld cannot be resized to %lld", axis, (long long)in,
                  (long long)out);
    if (!strcmp(r->mode, "nearest")) {
        Tensor *idx = tensor_new(&c->im->g->arena, DT_I64, 1, &out);
        for (int64_t i = 0; i < out; i++)
            tensor_set_i(idx, i,
                         clamp_index(nearest_index(c, r,
                                                   source_position(c, r, (double)i, (double)in,
                                                                   (double)out, scale)),
                                     in));
        return em_gather(c, x, em_const(c, idx), axis);
    }
    for (int i = 0; i < x->rank; i++)
        perm[i] = i;
    perm[axis] = x->rank - 1;
    perm[x->rank - 1] = axis;
    Value *m = em_const(c, resize_matrix(c, r, x->dtype, in, out, scale));
    Value *last = axis == x->rank - 1 ? x : em_transpose(c, x, perm);
    Value *y = em_matmul(c, last, m, false, true);
    return axis == x->rank - 1 ? y : em_transpose(c, y, perm);
}

/* keep_aspect_ratio_policy: one scale for all axes, so that none, or every one, is beyond its size;
 * 0: each its own. */
static double common_scale(OpCall *c, Value *x, const char *policy, const int64_t *axes,
                           const int64_t *sizes, int n) {
    bool smaller = !strcmp(policy, "not_larger");
    double scale = 0;
    if (!strcmp(policy, "stretch"))
        return 0;
    if (!smaller && strcmp(policy, "not_smaller") != 0)
        call_fail(c, "keep_aspect_ratio_policy \"%s\" is unknown", diag_safe(c->im->d, policy));
    for (int i = 0; i < n; i++) {
        if (x->dims[axes[i]] < 1)
            call_fail(c, "the size of axis %lld must be known", (long long)axes[i]);
        double s = (double)sizes[i] / (double)x->dims[axes[i]];
        scale = i == 0 || (smaller ? s < scale : s > scale) ? s : scale;
    }
    return scale;
}

/* tf_crop_and_resize: what is read outside the input is one value. */
static Value *outside_value(OpCall *c, const Resize *r, Value *y, int axis, int64_t in, int64_t out,
                            double scale) {
    Tensor *is_out = tensor_new(&c->im->g->arena, DT_BOOL, 1, &out);
    int64_t dims[MAX_RANK] = {out};
    bool any = false;
    for (int64_t i = 0; i < out; i++) {
        double at = source_position(c, r, (double)i, (double)in, (double)out, scale);
        tensor_set_i(is_out, i, at < 0 || at > (double)(in - 1));
        any |= at < 0 || at > (double)(in - 1);
    }
    for (int i = 1; i < y->rank - axis; i++)
        dims[i] = 1;
    return any ? em_where(c, em_reshape(c, em_const(c, is_out), y->rank - axis, dims),
                          em_like(c, y, r->outside), y)
               : y;
}

/* The part of each axis that tf_crop_and_resize reads: starts, then ends. */
static const Tensor *resize_crop(OpCall *c, const Resize *r, int n) {
    if (strcmp(r->transform, "tf_crop_and_resize") != 0)
        return NULL;
    const Tensor *roi = c->nin > 1 && c->in[1] ? em_fixed(c, c->in[1]) : NULL;
    if (!roi || tensor_count(roi) != 2 * n)
        call_fail(c, "roi must be %d constants", 2 * n);
    return roi;
}

void read_resize(OpCall *c) {
    Value *x = c->in[0];
    int rank = em_rank(c, x);
    Resize r = {call_string(c, "mode", "nearest"),
                call_string(c, "coordinate_transformation_mode",
                            c->opset < 11 ? "asymmetric" : "half_pixel"),
                call_string(c, "nearest_mode", c->opset < 11 ? "floor" : "round_prefer_floor"),
                call_float(c, "cubic_coeff_a", -0.75),
                call_int(c, "exclude_outside", 0) != 0,
                call_int(c, "antialias", 0) != 0,
                .outside = call_float(c, "extrapolation_value", 0)};
    if (strcmp(r.mode, "nearest") != 0 && strcmp(r.mode, "linear") != 0 &&
        strcmp(r.mode, "cubic") != 0)
        call_fail(c, "mode \"%s\" is unknown", diag_safe(c->im->d, r.mode));
    const char *aspect = call_string(c, "keep_aspect_ratio_policy", "stretch");
    int at_scales = c->opset < 11 ? 1 : 2;
    int64_t axes[64], sizes[MAX_RANK];
    int n = c->opset >= 18 ? em_axes(c, -1, "axes", rank, axes) : -1;
    for (int i = 0; n < 0 && i < rank; i++)
        axes[i] = i;
    n = n < 0 ? rank : n;
    const Tensor *scales =
        c->nin > at_scales && c->in[at_scales] ? em_fixed(c, c->in[at_scales]) : NULL;
    bool by_scale = scales && tensor_count(scales) > 0;
    if (by_scale ? tensor_count(scales) != n
                 : c->nin < 4 || !c->in[3] || em_known_ints(c, c->in[3], sizes, MAX_RANK) != n)
        call_fail(c, "scales or sizes must be %d constants", n);
    const Tensor *crop = resize_crop(c, &r, n);
    double common = by_scale ? 0 : common_scale(c, x, aspect, axes, sizes, n);
    for (int i = 0; i < n; i++) {
        int axis = (int)axes[i];
        int64_t in = x->dims[axis];
        double scale = by_scale ? tensor_get_f(scales, i) : 1;
        if (by_scale && scale == 1 && !crop)
            continue;
        if (crop) {
            r.start = tensor_get_f(crop, i);
            r.end = tensor_get_f(crop, n + i);
        }
        if (in < 0)
            call_fail(c, "the size of axis %d must be known", axis);
        int64_t out = by_scale ? (int64_t)floor((double)in * scale) : sizes[i];
        if (common > 0)
            out = (int64_t)round(common * (double)in);
        if (!by_scale)
            scale = common > 0 ? common : (double)out / (double)in;
        if (out != in || by_scale || crop)
            x = resize_axis(c, &r, x, axis, out, scale);
        if (crop)
            x = outside_value(c, &r, x, axis, in, out, scale);
    }
    c->out[0] = x;
}
