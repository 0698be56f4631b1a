/* eval_index.c: gathering and scattering. Negative indices count from the end; an index outside is
 * the data's fault. */
#include "ir/eval_ops.h"

#include <math.h>
#include <string.h>

bool eval_gather(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    Dims x = rtensor_dims(in[0]), idx = rtensor_dims(in[1]), y;
    int axis;
    Fault f;
    if (!eval_axis(ev, n, x.rank, 0, &axis))
        return false;
    if (!shape_gather(&x, &idx, axis, &y, &f))
        return eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
    if (!(out[0] = eval_result(ev, n, in[0]->dtype, &y)))
        return false;
    Around a = around_axis(&x, axis);
    int64_t count = in[1]->count, at;
    for (int64_t k = 0; k < count; k++) {
        if (!eval_index(ev, n, in[1]->i[k], a.size, &at))
            return false;
        for (int64_t o = 0; o < a.outer; o++)
            memcpy(CELLS(out[0]) + (o * count + k) * a.inner,
                   CELLS(in[0]) + (o * a.size + at) * a.inner, sizeof(Cell) * (size_t)a.inner);
    }
    return true;
}

/* y[…, idx[k], …] += updates[…, k, …], in order of k. */
bool eval_scatter_add(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    Dims upd = rtensor_dims(in[0]), idx = rtensor_dims(in[1]), y;
    const int64_t *dims;
    int axis, rank = node_ints(n, AT_DIMS, &dims);
    Fault f;
    if (!eval_axis(ev, n, rank, 0, &axis))
        return false;
    if (!shape_scatter_add(n, &upd, &idx, axis, &y, &f))
        return eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
    if (!(out[0] = eval_result(ev, n, in[0]->dtype, &y)))
        return false;
    Around a = around_axis(&y, axis);
    int64_t count = in[1]->count, at;
    for (int64_t k = 0; k < count; k++) {
        if (!eval_index(ev, n, in[1]->i[k], a.size, &at))
            return false;
        for (int64_t o = 0; o < a.outer; o++)
            for (int64_t i = 0; i < a.inner; i++) {
                int64_t to = (o * a.size + at) * a.inner + i;
                int64_t from = (o * count + k) * a.inner + i;
                if (dtype_is_float(out[0]->dtype))
                    out[0]->f[to] += in[0]->f[from];
                else
                    out[0]->i[to] = (int64_t)((uint64_t)out[0]->i[to] + (uint64_t)in[0]->i[from]);
            }
    }
    rtensor_wrap(out[0]);
    return true;
}

/* Offset in x (strides sx) of element `flat` of idx, with the axis's coordinate taken from idx. */
static bool element_offset(Eval *ev, const Node *n, const RTensor *idx, int64_t flat, const Dims *x,
                           int axis, int64_t *out) {
    int64_t strides[MAX_RANK], offset = 0, rest = flat, at;
    dims_strides(x, strides);
    if (!eval_index(ev, n, idx->i[flat], x->at[axis], &at))
        return false;
    for (int i = idx->rank - 1; i >= 0; i--) {
        int64_t coordinate = rest % idx->dims[i];
        rest /= idx->dims[i];
        offset += (i == axis ? at : coordinate) * strides[i];
    }
    *out = offset;
    return true;
}

bool eval_gather_elements(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    Dims x = rtensor_dims(in[0]), idx = rtensor_dims(in[1]);
    int64_t from;
    int axis;
    Fault f;
    if (!eval_axis(ev, n, x.rank, 0, &axis))
        return false;
    if (!shape_gather_elements(&x, &idx, axis, &f))
        return eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
    if (!(out[0] = eval_result(ev, n, in[0]->dtype, &idx)))
        return false;
    for (int64_t i = 0; i < out[0]->count; i++) {
        if (!element_offset(ev, n, in[1], i, &x, axis, &from))
            return false;
        CELLS(out[0])[i] = CELLS(in[0])[from];
    }
    return true;
}

/* Offset of the slice that tuple `t` of idx addresses, after `batch` axes walked by the tuple's own
 * position. */
static bool tuple_offset(Eval *ev, const Node *n, const RTensor *idx, int64_t t, const Dims *x,
                         int batch, int64_t *out) {
    int64_t depth = idx->dims[idx->rank - 1], strides[MAX_RANK], offset = 0, rest = t, at;
    dims_strides(x, strides);
    for (int i = idx->rank - 2; i >= 0; i--) {
        if (i < batch)
            offset += rest % idx->dims[i] * strides[i];
        rest /= idx->dims[i];
    }
    for (int64_t k = 0; k < depth; k++) {
        if (!eval_index(ev, n, idx->i[t * depth + k], x->at[batch + k], &at))
            return false;
        offset += at * strides[batch + k];
    }
    *out = offset;
    return true;
}

/* Number of index tuples, and elements of the slice each addresses. */
static void tuple_sizes(const RTensor *idx, const Dims *x, int batch, int64_t *tuples,
                        int64_t *slice) {
    *tuples = *slice = 1;
    for (int i = 0; i < idx->rank - 1; i++)
        *tuples *= idx->dims[i];
    for (int64_t i = batch + idx->dims[idx->rank - 1]; i < x->rank; i++)
        *slice *= x->at[i];
}

bool eval_gather_nd(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    Dims x = rtensor_dims(in[0]), idx = rtensor_dims(in[1]), y;
    int batch = (int)node_int(n, AT_BATCH_DIMS, 0);
    int64_t tuples, slice, from;
    Fault f;
    if (!shape_gather_nd(&x, &idx, batch, &y, &f))
        return eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
    if (!(out[0] = eval_result(ev, n, in[0]->dtype, &y)))
        return false;
    tuple_sizes(in[1], &x, batch, &tuples, &slice);
    for (int64_t t = 0; t < tuples; t++) {
        if (!tuple_offset(ev, n, in[1], t, &x, batch, &from))
            return false;
        memcpy(CELLS(out[0]) + t * slice, CELLS(in[0]) + from, sizeof(Cell) * (size_t)slice);
    }
    return true;
}

/* One update of a scatter; of several without a reduction the last wins. */
static void scatter_one(RTensor *y, int64_t to, const RTensor *u, int64_t from, char how) {
    if (how == 'n') {
        CELLS(y)[to] = CELLS(u)[from];
    } else if (dtype_is_float(y->dtype)) {
        double a = y->f[to], b = u->f[from];
        y->f[to] = how == '+'                            ? a + b
                   : how == '*'                          ? a * b
                   : isnan(a)                            ? a
                   : isnan(b) || (how == '<') == (b < a) ? b
                                                         : a;
    } else {
        int64_t a = y->i[to], b = u->i[from];
        bool less = y->dtype == DT_U64 ? (uint64_t)b < (uint64_t)a : b < a;
        y->i[to] = how == '+'             ? (int64_t)((uint64_t)a + (uint64_t)b)
                   : how == '*'           ? (int64_t)((uint64_t)a * (uint64_t)b)
                   : (how == '<') == less ? b
                                          : a;
    }
}

static char scatter_how(const Node *n) {
    const char *how = node_str(n, AT_REDUCTION, "none");
    return !strcmp(how, "add")   ? '+'
           : !strcmp(how, "mul") ? '*'
           : !strcmp(how, "min") ? '<'
           : !strcmp(how, "max") ? '>'
                                 : 'n';
}

bool eval_scatter_elements(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    Dims x = rtensor_dims(in[0]), idx = rtensor_dims(in[1]), upd = rtensor_dims(in[2]);
    char how = scatter_how(n);
    int64_t to;
    int axis;
    Fault f;
    if (!eval_axis(ev, n, x.rank, 0, &axis))
        return false;
    if (!shape_gather_elements(&x, &idx, axis, &f))
        return eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
    if (!dims_fit(&idx, &upd))
        return eval_fail(ev, n, EXIT_MODEL, "indices and updates differ in shape");
    if (!(out[0] = eval_result(ev, n, in[0]->dtype, &x)))
        return false;
    memcpy(out[0]->i, in[0]->i, sizeof(Cell) * (size_t)in[0]->count);
    for (int64_t i = 0; i < in[1]->count; i++) {
        if (!element_offset(ev, n, in[1], i, &x, axis, &to))
            return false;
        scatter_one(out[0], to, in[2], i, how);
    }
    rtensor_wrap(out[0]);
    return true;
}

bool eval_scatter_nd(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    Dims x = rtensor_dims(in[0]), idx = rtensor_dims(in[1]), upd = rtensor_dims(in[2]);
    char how = scatter_how(n);
    int64_t tuples, slice, to;
    Fault f;
    if (!shape_scatter_nd(&x, &idx, &upd, &f))
        return eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
    if (!(out[0] = eval_result(ev, n, in[0]->dtype, &x)))
        return false;
    memcpy(out[0]->i, in[0]->i, sizeof(Cell) * (size_t)in[0]->count);
    tuple_sizes(in[1], &x, 0, &tuples, &slice);
    for (int64_t t = 0; t < tuples; t++) {
        if (!tuple_offset(ev, n, in[1], t, &x, 0, &to))
            return false;
        for (int64_t i = 0; i < slice; i++)
            scatter_one(out[0], to + i, in[2], t * slice + i, how);
    }
    rtensor_wrap(out[0]);
    return true;
}
