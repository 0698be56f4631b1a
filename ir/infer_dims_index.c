/* infer_dims_index.c: shapes of indexing, top-k, matmul and windows (see infer_dims.h). */
#include "ir/infer_dims.h"

bool shape_gather(const Dims *x, const Dims *idx, int axis, Dims *out, Fault *f) {
    Dims r = {0};
    for (int i = 0; i < x->rank; i++) {
        if (i != axis) {
            if (!dims_push(&r, x->at[i], f))
                return false;
            continue;
        }
        for (int k = 0; k < idx->rank; k++)
            if (!dims_push(&r, idx->at[k], f))
                return false;
    }
    *out = r;
    return true;
}

bool shape_scatter_add(const Node *n, const Dims *upd, const Dims *idx, int axis, Dims *out,
                       Fault *f) {
    const int64_t *dims;
    int rank = node_ints(n, AT_DIMS, &dims);
    Dims x = {0}, expect;
    for (int i = 0; i < rank; i++)
        if (!dims_push(&x, dims[i], f))
            return false;
    if (axis >= rank)
        return fault(f, "axis %d is outside the result's %d axes", axis, rank);
    if (!shape_gather(&x, idx, axis, &expect, f))
        return false;
    if (!dims_fit(&expect, upd))
        return fault(f, "updates have shape %s (expected %s)", DIMS_TEXT(upd), DIMS_TEXT(&expect));
    *out = x;
    return true;
}

bool shape_gather_elements(const Dims *x, const Dims *idx, int axis, Fault *f) {
    if (x->rank != idx->rank)
        return fault(f, "indices %s and data %s must have the same rank", DIMS_TEXT(idx),
                     DIMS_TEXT(x));
    for (int i = 0; i < x->rank; i++)
        if (i != axis && x->at[i] >= 0 && idx->at[i] > x->at[i])
            return fault(f, "indices %s are larger than data %s on axis %d", DIMS_TEXT(idx),
                         DIMS_TEXT(x), i);
    return true;
}

/* Checks that the last axis of idx addresses leading axes of x after `batch` shared ones. */
static bool nd_depth(const Dims *x, const Dims *idx, int batch, int *depth, Fault *f) {
    if (idx->rank < 1 || batch < 0 || batch >= idx->rank || batch > x->rank)
        return fault(f, "batch_dims %d does not fit data %s and indices %s", batch, DIMS_TEXT(x),
                     DIMS_TEXT(idx));
    int64_t last = idx->at[idx->rank - 1];
    if (last < 0)
        return fault(f, "the last size of the indices %s must be known", DIMS_TEXT(idx));
    if (last + batch > x->rank)
        return fault(f, "the last size of the indices %s addresses %lld axes, data %s has %d",
                     DIMS_TEXT(idx), (long long)last, DIMS_TEXT(x), x->rank - batch);
    for (int i = 0; i < batch; i++)
        if (!dim_fits(x->at[i], idx->at[i]))
            return fault(f, "data %s and indices %s differ on batch axis %d", DIMS_TEXT(x),
                         DIMS_TEXT(idx), i);
    *depth = (int)last;
    return true;
}

bool shape_gather_nd(const Dims *x, const Dims *idx, int batch, Dims *out, Fault *f) {
    int depth = 0;
    Dims r = {0};
    if (!nd_depth(x, idx, batch, &depth, f))
        return false;
    for (int i = 0; i < idx->rank - 1; i++)
        r.at[r.rank++] = idx->at[i];
    for (int i = batch + depth; i < x->rank; i++)
        if (!dims_push(&r, x->at[i], f))
            return false;
    *out = r;
    return true;
}

bool shape_scatter_nd(const Dims *x, const Dims *idx, const Dims *upd, Fault *f) {
    Dims expect;
    if (!shape_gather_nd(x, idx, 0, &expect, f))
        return false;
    if (!dims_fit(&expect, upd))
        return fault(f, "updates have shape %s (expected %s)", DIMS_TEXT(upd), DIMS_TEXT(&expect));
    return true;
}

bool shape_topk(const Dims *x, int axis, int64_t k, Dims *out, Fault *f) {
    if (k < 0 || (x->at[axis] >= 0 && k > x->at[axis]))
        return fault(f, "k is %lld on axis %d of %s (expected 0..%lld)", (long long)k, axis,
                     DIMS_TEXT(x), (long long)(x->at[axis] < 0 ? INT64_MAX : x->at[axis]));
    *out = *x;
    out->at[axis] = k;
    return true;
}

bool shape_matmul(const Dims *a, const Dims *b, bool trans_a, bool trans_b, Dims *out, Fault *f) {
    if (a->rank < 1 || b->rank < 1)
        return fault(f, "cannot multiply shapes %s and %s: a scalar is not a matrix", DIMS_TEXT(a),
                     DIMS_TEXT(b));
    if ((trans_a && a->rank < 2) || (trans_b && b->rank < 2))
        return fault(f, "cannot multiply shapes %s and %s: a vector has no transpose", DIMS_TEXT(a),
                     DIMS_TEXT(b));
    int64_t ka = a->at[trans_a ? a->rank - 2 : a->rank - 1];
    int64_t kb = b->at[b->rank == 1 || trans_b ? b->rank - 1 : b->rank - 2];
    if (!dim_fits(ka, kb))
        return fault(f, "cannot multiply shapes %s%s and %s%s: inner sizes %lld and %lld differ",
                     DIMS_TEXT(a), trans_a ? "^T" : "", DIMS_TEXT(b), trans_b ? "^T" : "",
                     (long long)ka, (long long)kb);
    Dims ba = {.rank = a->rank > 2 ? a->rank - 2 : 0}, bb = {.rank = b->rank > 2 ? b->rank - 2 : 0};
    Dims r;
    for (int i = 0; i < ba.rank; i++)
        ba.at[i] = a->at[i];
    for (int i = 0; i < bb.rank; i++)
        bb.at[i] = b->at[i];
    if (!shape_broadcast(&ba, &bb, &r, f))
        return false;
    if (a->rank > 1)
        r.at[r.rank++] = a->at[trans_a ? a->rank - 1 : a->rank - 2];
    if (b->rank > 1)
        r.at[r.rank++] = b->at[trans_b ? b->rank - 2 : b->rank - 1];
    *out = r;
    return true;
}

/* ---- windows ---- */

static bool window_list(const Node *n, AttrKey key, int count, int64_t absent, int64_t least,
                        int64_t *out, Fault *f) {
    const int64_t *at;
    int k = node_ints(n, key, &at);
    if (k != 0 && k != count)
        return fault(f, "%s has %d entries (expected %d)", attr_info[key].name, k, count);
    for (int i = 0; i < count; i++) {
        out[i] = k ? at[i] : absent;
        if (out[i] < least || out[i] > INT32_MAX)
            return fault(f, "%s is %lld on axis %d (expected %lld or more)", attr_info[key].name,
                         (long long)out[i], i, (long long)least);
    }
    return true;
}

static bool window_read(const Node *n, int spatial, Window *w, Fault *f) {
    int64_t pads[2 * MAX_RANK];
    if (spatial < 1 || 2 + 2 * spatial > MAX_RANK)
        return fault(f, "a window over %d spatial axes is not supported (expected 1..%d)", spatial,
                     (MAX_RANK - 2) / 2);
    w->spatial = spatial;
    if (!node_attr(n, AT_KERNEL))
        return fault(f, "the window size is missing");
    if (!window_list(n, AT_KERNEL, spatial, 1, 1, w->kernel, f) ||
        !window_list(n, AT_STRIDES, spatial, 1, 1, w->stride, f) ||
        !window_list(n, AT_DILATIONS, spatial, 1, 1, w->dilation, f) ||
        !window_list(n, AT_PADS, 2 * spatial, 0, 0, pads, f))
        return false;
    for (int i = 0; i < spatial; i++) {
        w->before[i] = pads[i];
        w->after[i] = pads[spatial + i];
    }
    return true;
}

/* Number of places of the window on axis i of an image of the given size. */
static bool window_positions(const Window *w, int i, int64_t size, int64_t *out, Fault *f) {
    int64_t reach = w->dilation[i] * (w->kernel[i] - 1) + 1;
    int64_t room = size + w->before[i] + w->after[i] - reach;
    if (room < 0)
        return fault(f, "a window of %lld does not fit size %lld with pads %lld and %lld",
                     (long long)reach, (long long)size, (long long)w->before[i],
                     (long long)w->after[i]);
    *out = room / w->stride[i] + 1;
    return true;
}

bool shape_unfold(const Node *n, const Dims *x, Window *w, Dims *out, Fault *f) {
    int spatial = x->rank - 2;
    if (!window_read(n, spatial, w, f))
        return false;
    Dims r = {.rank = 2 + 2 * spatial, .at = {x->at[0], x->at[1]}};
    for (int i = 0; i < spatial; i++) {
        w->size[i] = x->at[2 + i];
        w->positions[i] = DIM_UNKNOWN;
        if (w->size[i] >= 0 && !window_positions(w, i, w->size[i], &w->positions[i], f))
            return false;
        r.at[2 + i] = w->kernel[i];
        r.at[2 + spatial + i] = w->positions[i];
    }
    *out = r;
    return true;
}

bool shape_fold(const Node *n, const Dims *x, Window *w, Dims *out, Fault *f) {
    const int64_t *dims;
    int spatial = node_ints(n, AT_DIMS, &dims);
    if (!window_read(n, spatial, w, f))
        return false;
    if (x->rank != 2 + 2 * spatial)
        return fault(f, "shape %s has %d axes (expected %d for %d spatial sizes)", DIMS_TEXT(x),
                     x->rank, 2 + 2 * spatial, spatial);
    Dims r = {.rank = 2 + spatial, .at = {x->at[0], x->at[1]}};
    for (int i = 0; i < spatial; i++) {
        w->size[i] = r.at[2 + i] = dims[i];
        if (dims[i] < 0)
            return fault(f, "spatial size %lld of axis %d", (long long)dims[i], i);
        if (!window_positions(w, i, dims[i], &w->positions[i], f))
            return false;
        if (!dim_fits(x->at[2 + i], w->kernel[i]) ||
            !dim_fits(x->at[2 + spatial + i], w->positions[i]))
            return fault(f, "shape %s does not fit window %lld with %lld positions on axis %d",
                         DIMS_TEXT(x), (long long)w->kernel[i], (long long)w->positions[i], i);
    }
    *out = r;
    return true;
}
