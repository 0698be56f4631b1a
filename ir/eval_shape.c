/* eval_shape.c: ops that move elements: every one is a strided copy of cells. */
#include "ir/eval_ops.h"

#include <stdlib.h>
#include <string.h>

/* dst row-major over dims <- src[offset + sum index * stride]. */
static void copy_strided(Cell *dst, const Dims *dims, const Cell *src, const int64_t *strides) {
    Walk w;
    walk_init(&w, dims);
    walk_operand(&w, strides);
    WALK(&w) {
        const Cell *s = src + w.offset[0];
        int64_t step = walk_step(&w, 0);
        for (int64_t i = 0; i < w.row; i++)
            *dst++ = s[i * step];
    }
}

static void copy_all(RTensor *y, const RTensor *x) {
    memcpy(y->i, x->i, sizeof(int64_t) * (size_t)x->count);
}

/* The shape a node was given: operand 1 or the attribute. False if it is too long. */
static bool given_ints(Eval *ev, const Node *n, const RTensor *operand, AttrKey key, int cap,
                       int64_t *out, int *count) {
    const int64_t *at;
    *count =
        operand ? (int)(operand->count > cap ? cap + 1 : operand->count) : node_ints(n, key, &at);
    if (*count > cap)
        return eval_fail(ev, n, EXIT_MODEL, "%s has more than %d entries", attr_info[key].name,
                         cap);
    for (int i = 0; i < *count; i++)
        out[i] = operand ? operand->i[i] : at[i];
    return true;
}

bool eval_reshape(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    RTensor *shape = n->nin > 1 ? in[1] : NULL;
    Dims x = rtensor_dims(in[0]), y;
    int64_t want[MAX_RANK];
    int count;
    Fault f;
    if (!given_ints(ev, n, shape, AT_DIMS, MAX_RANK, want, &count))
        return false;
    if (!shape_reshape(&x, want, count, shape && !node_int(n, AT_K, 0), &y, &f))
        return eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
    if (!(out[0] = eval_result(ev, n, in[0]->dtype, &y)))
        return false;
    copy_all(out[0], in[0]);
    return true;
}

bool eval_transpose(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    Dims x = rtensor_dims(in[0]), y;
    int64_t own[MAX_RANK], strides[MAX_RANK];
    const int64_t *perm;
    int count = node_ints(n, AT_PERM, &perm);
    Fault f;
    if (!shape_transpose(&x, perm, count, &y, &f))
        return eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
    if (!(out[0] = eval_result(ev, n, in[0]->dtype, &y)))
        return false;
    dims_strides(&x, own);
    for (int i = 0; i < count; i++)
        strides[i] = own[perm[i]];
    copy_strided(CELLS(out[0]), &y, CELLS(in[0]), strides);
    return true;
}

bool eval_expand(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    Dims x = rtensor_dims(in[0]), want, y;
    Walk w;
    Fault f;
    if (!given_ints(ev, n, n->nin > 1 ? in[1] : NULL, AT_DIMS, MAX_RANK, want.at, &want.rank))
        return false;
    if (!dims_known(&want))
        return eval_fail(ev, n, EXIT_MODEL, "an expand to unknown sizes %s", DIMS_TEXT(&want));
    if (!shape_broadcast(&x, &want, &y, &f))
        return eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
    if (!(out[0] = eval_result(ev, n, in[0]->dtype, &y)))
        return false;
    walk_init(&w, &y);
    walk_broadcast(&w, &y, &x);
    Cell *dst = CELLS(out[0]);
    WALK(&w) {
        const Cell *s = CELLS(in[0]) + w.offset[0];
        int64_t step = walk_step(&w, 0);
        for (int64_t i = 0; i < w.row; i++)
            *dst++ = s[i * step];
    }
    return true;
}

/* Attributes, or operands starts, ends, (axes), (steps). */
bool eval_slice(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    static const AttrKey keys[4] = {AT_STARTS, AT_ENDS, AT_AXES, AT_STEPS};
    int64_t list[4][MAX_RANK], own[MAX_RANK], strides[MAX_RANK], offset = 0;
    int count[4];
    Dims x = rtensor_dims(in[0]), y;
    Span spans[MAX_RANK];
    Fault f;
    bool operands = n->nin > 1;
    for (int k = 0; k < 4; k++) {
        RTensor *r = k + 1 < n->nin ? in[k + 1] : NULL;
        count[k] = 0;
        if ((r || !operands) && !given_ints(ev, n, r, keys[k], MAX_RANK, list[k], &count[k]))
            return false;
        if (k > 0 && count[k] != count[0] && !(k > 1 && count[k] == 0))
            return eval_fail(ev, n, EXIT_MODEL, "the slice has %d %s for %d starts", count[k],
                             attr_info[keys[k]].name, count[0]);
    }
    if (!shape_slice(&x, count[0], count[2] ? list[2] : NULL, list[0], list[1],
                     count[3] ? list[3] : NULL, spans, &y, &f))
        return eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
    if (!(out[0] = eval_result(ev, n, in[0]->dtype, &y)))
        return false;
    dims_strides(&x, own);
    for (int i = 0; i < x.rank; i++) {
        offset += spans[i].start * own[i];
        strides[i] = spans[i].count > 1 ? spans[i].step * own[i] : 0;
    }
    if (out[0]->count)
        copy_strided(CELLS(out[0]), &y, CELLS(in[0]) + offset, strides);
    return true;
}

bool eval_concat(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    Dims *x = xcalloc((size_t)n->nin, sizeof *x), y;
    const Dims **list = xcalloc((size_t)n->nin, sizeof *list);
    int axis;
    bool ok;
    Fault f;
    for (int i = 0; i < n->nin; i++) {
        x[i] = rtensor_dims(in[i]);
        list[i] = &x[i];
    }
    ok = eval_axis(ev, n, in[0]->rank, 0, &axis);
    if (ok && !shape_concat(list, n->nin, axis, &y, &f))
        ok = eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
    ok = ok && (out[0] = eval_result(ev, n, in[0]->dtype, &y));
    if (ok && out[0]->count) {
        Around whole = around_axis(&y, axis);
        int64_t at = 0;
        for (int i = 0; i < n->nin; i++) {
            int64_t run = x[i].at[axis] * whole.inner, stride = whole.size * whole.inner;
            for (int64_t o = 0; o < whole.outer; o++)
                memcpy(CELLS(out[0]) + o * stride + at, CELLS(in[i]) + o * run,
                       sizeof(Cell) * (size_t)run);
            at += run;
        }
    }
    free(x);
    free(list);
    return ok;
}

/* Fills with {value_f}, then copies the part of x that is inside. */
bool eval_pad(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    Dims x = rtensor_dims(in[0]), y, inside;
    int64_t pads[2 * MAX_RANK], sx[MAX_RANK], sy[MAX_RANK], ox = 0, oy = 0;
    double fill = node_float(n, AT_VALUE_F, 0);
    int count;
    Fault f;
    Walk w;
    if (!given_ints(ev, n, n->nin > 1 ? in[1] : NULL, AT_PADS, 2 * MAX_RANK, pads, &count))
        return false;
    if (!shape_pad(&x, pads, count, &y, &f))
        return eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
    RTensor *r = out[0] = eval_result(ev, n, in[0]->dtype, &y);
    if (!r)
        return false;
    for (int64_t i = 0; i < r->count; i++) {
        if (dtype_is_float(r->dtype))
            r->f[i] = fill;
        else
            r->i[i] = int_from_double(r->dtype, fill);
    }
    dims_strides(&x, sx);
    dims_strides(&y, sy);
    inside.rank = x.rank;
    for (int i = 0; i < x.rank; i++) {
        int64_t before = pads[i], after = pads[x.rank + i];
        inside.at[i] = x.at[i] + (before < 0 ? before : 0) + (after < 0 ? after : 0);
        ox += before < 0 ? -before * sx[i] : 0;
        oy += before > 0 ? before * sy[i] : 0;
        if (inside.at[i] <= 0)
            return true;
    }
    walk_init(&w, &inside);
    walk_operand(&w, sx);
    walk_operand(&w, sy);
    WALK(&w) {
        const Cell *s = CELLS(in[0]) + ox + w.offset[0];
        Cell *t = CELLS(r) + oy + w.offset[1];
        int64_t ss = walk_step(&w, 0), st = walk_step(&w, 1);
        for (int64_t i = 0; i < w.row; i++)
            t[i * st] = s[i * ss];
    }
    return true;
}

bool eval_shape(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    if (!(out[0] = eval_result(ev, n, DT_I64, &(Dims){1, {in[0]->rank}})))
        return false;
    memcpy(out[0]->i, in[0]->dims, sizeof(int64_t) * (size_t)in[0]->rank);
    return true;
}

bool eval_range(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    bool floats = dtype_is_float(in[0]->dtype);
    double v[3];
    int64_t count;
    Fault f;
    for (int i = 0; i < 3; i++) {
        if (in[i]->count != 1)
            return eval_fail(ev, n, EXIT_MODEL, "operand %d of a range is not a scalar", i);
        v[i] = floats ? in[i]->f[0] : double_from_int(in[i]->dtype, in[i]->i[0]);
    }
    if (!shape_range(v[0], v[1], v[2], &count, &f))
        return eval_fail(ev, n, EXIT_DATA, "%s", f.text);
    RTensor *y = out[0] = eval_result(ev, n, in[0]->dtype, &(Dims){1, {count}});
    if (!y)
        return false;
    for (int64_t i = 0; i < count; i++) {
        if (floats)
            y->f[i] = v[0] + (double)i * v[2];
        else
            y->i[i] = in[0]->i[0] + i * in[2]->i[0];
    }
    return true;
}

/* Coordinates of the elements that are not 0, [rank, n], in row-major order. */
bool eval_nonzero(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    const RTensor *x = in[0];
    bool floats = dtype_is_float(x->dtype);
    int64_t found = 0, at = 0, strides[MAX_RANK];
    Dims dims = rtensor_dims(x);
    for (int64_t i = 0; i < x->count; i++)
        found += floats ? x->f[i] != 0 : x->i[i] != 0;
    RTensor *y = out[0] = eval_result(ev, n, DT_I64, &(Dims){2, {x->rank, found}});
    if (!y)
        return false;
    dims_strides(&dims, strides);
    for (int64_t i = 0; i < x->count; i++) {
        if (floats ? x->f[i] == 0 : x->i[i] == 0)
            continue;
        for (int k = 0; k < x->rank; k++)
            y->i[k * found + at] = i / strides[k] % x->dims[k];
        at++;
    }
    return true;
}
