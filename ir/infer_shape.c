/* infer_shape.c: inference of the shape ops, reductions and top-k. Operands that carry shapes
 * become attributes here. */
#include "ir/infer_rules.h"

#include <stdlib.h>
#include <string.h>

/* ---- reshape and expand ---- */

/* Result of a shape operand whose values are not known: its length gives the rank. */
static bool rank_from_operand(Node *n, Diag *d, const Value *shape, Dims *out) {
    if (shape->rank != 1 || shape->dims[0] < 0)
        return infer_fail(n, d,
                          "the rank of the result depends on data (expected a shape operand of "
                          "known length)");
    if (shape->dims[0] > MAX_RANK)
        return infer_fail(n, d, "%lld axes (at most %d are supported)", (long long)shape->dims[0],
                          MAX_RANK);
    *out = (Dims){.rank = (int)shape->dims[0]};
    for (int i = 0; i < out->rank; i++)
        out->at[i] = DIM_UNKNOWN;
    return true;
}

/* A known shape operand into ints: 1; unknown: 0; refused: -1. */
static int read_shape_operand(Node *n, Diag *d, int64_t *dims, int *count) {
    if (!infer_want_int(n, d, 1))
        return -1;
    *count = infer_const_ints(n->in[1], dims, MAX_RANK);
    if (*count >= 0)
        return 1;
    if (value_is_const(n->in[1])) {
        infer_fail(n, d,
                   "the shape operand has rank %d and %lld entries (expected rank 1, at most %d)",
                   n->in[1]->rank, (long long)value_count(n->in[1]), MAX_RANK);
        return -1;
    }
    return 0;
}

/* Writes {dims} and drops operand 1 when the attribute can say it: at most one dim not known, and
 * no 0 beside it. */
static void settle_reshape(Node *n, const Dims *out) {
    int unknown = 0, zeros = 0;
    Dims attr = *out;
    for (int i = 0; i < out->rank; i++) {
        zeros += out->at[i] == 0;
        if (out->at[i] < 0) {
            unknown++;
            attr.at[i] = -1;
        }
    }
    if (unknown > 1 || (unknown == 1 && zeros))
        return;
    node_set_ints(n, AT_DIMS, attr.at, attr.rank);
    infer_drop_attr(n, AT_K);
    infer_drop_operands(n, 1);
}

bool infer_reshape(Node *n, Diag *d) {
    Dims x = dims_of(n->in[0]), out;
    int64_t want[MAX_RANK];
    const int64_t *given;
    bool zero_copies = false;
    int count, found;
    Fault f;
    if (n->nin > 1 && n->in[1]) {
        if ((found = read_shape_operand(n, d, want, &count)) < 0)
            return false;
        if (!found)
            return rank_from_operand(n, d, n->in[1], &out) &&
                   infer_result(n, d, 0, n->in[0]->dtype, &out);
        zero_copies = !node_int(n, AT_K, 0);
        given = want;
    } else {
        if (!node_attr(n, AT_DIMS))
            return infer_fail(n, d, "a reshape without a shape");
        count = node_ints(n, AT_DIMS, &given);
    }
    if (!shape_reshape(&x, given, count, zero_copies, &out, &f))
        return infer_fail(n, d, "%s", f.text);
    if (!infer_result(n, d, 0, n->in[0]->dtype, &out))
        return false;
    settle_reshape(n, &out);
    return true;
}

bool infer_transpose(Node *n, Diag *d) {
    Dims x = dims_of(n->in[0]), out;
    const int64_t *perm;
    int64_t reversed[MAX_RANK];
    Fault f;
    if (!node_attr(n, AT_PERM)) { /* ONNX: all axes reversed */
        for (int i = 0; i < x.rank; i++)
            reversed[i] = x.rank - 1 - i;
        node_set_ints(n, AT_PERM, reversed, x.rank);
    }
    int count = node_ints(n, AT_PERM, &perm);
    if (!shape_transpose(&x, perm, count, &out, &f))
        return infer_fail(n, d, "%s", f.text);
    return infer_result(n, d, 0, n->in[0]->dtype, &out);
}

bool infer_expand(Node *n, Diag *d) {
    Dims x = dims_of(n->in[0]), want = {0}, out;
    const int64_t *dims;
    int found;
    Fault f;
    if (n->nin > 1 && n->in[1]) {
        if ((found = read_shape_operand(n, d, want.at, &want.rank)) < 0)
            return false;
        if (!found) {
            if (!rank_from_operand(n, d, n->in[1], &want))
                return false;
            if (!shape_broadcast(&x, &want, &out, &f))
                return infer_fail(n, d, "%s", f.text);
            return infer_result(n, d, 0, n->in[0]->dtype, &out);
        }
        for (int i = 0; i < want.rank; i++)
            if (want.at[i] < 0)
                return infer_fail(n, d, "size %lld on axis %d of an expand", (long long)want.at[i],
                                  i);
    } else {
        if (!node_attr(n, AT_DIMS))
            return infer_fail(n, d, "an expand without a shape");
        want.rank = node_ints(n, AT_DIMS, &dims);
        if (want.rank > MAX_RANK)
            return infer_fail(n, d, "an expand to %d axes", want.rank);
        if (want.rank)
            memcpy(want.at, dims, sizeof(int64_t) * (size_t)want.rank);
    }
    if (!shape_broadcast(&x, &want, &out, &f))
        return infer_fail(n, d, "%s", f.text);
    if (!infer_result(n, d, 0, n->in[0]->dtype, &out))
        return false;
    if (n->nin > 1) {
        node_set_ints(n, AT_DIMS, want.at, want.rank);
        infer_drop_operands(n, 1);
    }
    if (dims_known(&out))
        node_set_ints(n, AT_DIMS, out.at, out.rank);
    return true;
}

/* ---- slice ---- */

typedef struct SliceLists {
    int n;
    bool known, axes_known;
    int64_t axes[MAX_RANK], starts[MAX_RANK], ends[MAX_RANK], steps[MAX_RANK];
} SliceLists;

static bool slice_list(Node *n, Diag *d, const char *what, int count, int expected) {
    if (count == expected)
        return true;
    return infer_fail(n, d, "the slice has %d %s for %d starts", count, what, expected);
}

static bool slice_from_operands(Node *n, Diag *d, SliceLists *s) {
    Value *axes = n->nin > 3 ? n->in[3] : NULL, *steps = n->nin > 4 ? n->in[4] : NULL;
    if (n->nin < 3 || !n->in[1] || !n->in[2])
        return infer_fail(n, d, "a slice needs starts and ends");
    for (int i = 1; i < n->nin; i++)
        if (n->in[i] && !infer_want_int(n, d, i))
            return false;
    int ns = infer_const_ints(n->in[1], s->starts, MAX_RANK);
    int ne = infer_const_ints(n->in[2], s->ends, MAX_RANK);
    int na = axes ? infer_const_ints(axes, s->axes, MAX_RANK) : 0;
    int nt = steps ? infer_const_ints(steps, s->steps, MAX_RANK) : 0;
    int64_t len = ns >= 0 ? ns : n->in[1]->rank == 1 ? n->in[1]->dims[0] : -1;
    s->n = len >= 0 && len <= MAX_RANK ? (int)len : na > 0 ? na : 0;
    s->axes_known = axes ? na >= 0 : len >= 0;
    s->known = ns >= 0 && ne >= 0 && na >= 0 && nt >= 0;
    for (int i = 0; i < s->n; i++) {
        if (!axes)
            s->axes[i] = i;
        if (!steps)
            s->steps[i] = 1;
    }
    if (!s->known)
        return true;
    return slice_list(n, d, "ends", ne, ns) && (!axes || slice_list(n, d, "axes", na, ns)) &&
           (!steps || slice_list(n, d, "steps", nt, ns));
}

static bool slice_from_attrs(Node *n, Diag *d, SliceLists *s) {
    const int64_t *starts, *ends, *axes, *steps;
    s->n = node_ints(n, AT_STARTS, &starts);
    int ne = node_ints(n, AT_ENDS, &ends);
    int na = node_ints(n, AT_AXES, &axes), nt = node_ints(n, AT_STEPS, &steps);
    if (s->n > MAX_RANK)
        return infer_fail(n, d, "a slice of %d axes", s->n);
    if (!slice_list(n, d, "ends", ne, s->n) || (na && !slice_list(n, d, "axes", na, s->n)) ||
        (nt && !slice_list(n, d, "steps", nt, s->n)))
        return false;
    for (int i = 0; i < s->n; i++) {
        s->starts[i] = starts[i];
        s->ends[i] = ends[i];
        s->axes[i] = na ? axes[i] : i;
        s->steps[i] = nt ? steps[i] : 1;
    }
    s->known = s->axes_known = true;
    return true;
}

/* Starts or ends depend on data: the axes named become unknown (all of them if the axes are not
 * known either). */
static bool slice_unknown(Node *n, Diag *d, const SliceLists *s) {
    Dims out = dims_of(n->in[0]);
    Fault f;
    for (int i = 0; i < out.rank && !s->axes_known; i++)
        out.at[i] = DIM_UNKNOWN;
    for (int i = 0; i < s->n && s->axes_known; i++) {
        int axis;
        if (!shape_axis(s->axes[i], out.rank, &axis, &f))
            return infer_fail(n, d, "%s", f.text);
        out.at[axis] = DIM_UNKNOWN;
    }
    return infer_result(n, d, 0, n->in[0]->dtype, &out);
}

/* Normal form: axes 0..rank-1; where the size is known, start and end count from 0 and lie inside.
 * An end before the first element (negative steps) is -(size+1), which means the same when read
 * again. */
bool infer_slice(Node *n, Diag *d) {
    SliceLists s = {0};
    Dims x = dims_of(n->in[0]), out;
    Span spans[MAX_RANK];
    Fault f;
    if (!(n->nin > 1 ? slice_from_operands(n, d, &s) : slice_from_attrs(n, d, &s)))
        return false;
    if (!s.known)
        return slice_unknown(n, d, &s);
    if (!shape_slice(&x, s.n, s.axes, s.starts, s.ends, s.steps, spans, &out, &f))
        return infer_fail(n, d, "%s", f.text);
    if (!infer_result(n, d, 0, n->in[0]->dtype, &out))
        return false;
    for (int i = 0; i < s.n; i++) {
        int axis = (int)(s.axes[i] < 0 ? s.axes[i] + x.rank : s.axes[i]);
        Span span = spans[axis];
        s.axes[i] = axis;
        if (x.at[axis] < 0)
            continue;
        s.starts[i] = span.start;
        if (span.step > 0) {
            int64_t end = s.ends[i] < 0 ? s.ends[i] + x.at[axis] : s.ends[i];
            s.ends[i] = end < span.start ? span.start : end > x.at[axis] ? x.at[axis] : end;
        } else {
            int64_t end = span.count ? span.start + (span.count - 1) * span.step - 1 : span.start;
            s.ends[i] = end < 0 ? -(x.at[axis] + 1) : end;
        }
    }
    node_set_ints(n, AT_AXES, s.axes, s.n);
    node_set_ints(n, AT_STARTS, s.starts, s.n);
    node_set_ints(n, AT_ENDS, s.ends, s.n);
    node_set_ints(n, AT_STEPS, s.steps, s.n);
    infer_drop_operands(n, 1);
    return true;
}

/* ---- concat, pad, shape, range, nonzero ---- */

bool infer_concat(Node *n, Diag *d) {
    int axis;
    bool ok = true;
    Fault f;
    Dims out;
    if (!infer_axis(n, d, n->in[0]->rank, 0, &axis))
        return false;
    Dims *x = xcalloc((size_t)n->nin, sizeof *x);
    const Dims **list = xcalloc((size_t)n->nin, sizeof *list);
    for (int i = 0; i < n->nin; i++) {
        x[i] = dims_of(n->in[i]);
        list[i] = &x[i];
        ok = ok && infer_same_type(n, d, 0, i);
    }
    if (ok && !shape_concat(list, n->nin, axis, &out, &f))
        ok = infer_fail(n, d, "%s", f.text);
    free(x);
    free(list);
    return ok && infer_result(n, d, 0, n->in[0]->dtype, &out);
}

bool infer_pad(Node *n, Diag *d) {
    Dims x = dims_of(n->in[0]), out = x;
    int64_t pads[2 * MAX_RANK];
    const int64_t *given = pads;
    int count;
    Fault f;
    if (n->nin > 1 && n->in[1]) {
        if (!infer_want_int(n, d, 1))
            return false;
        count = infer_const_ints(n->in[1], pads, 2 * MAX_RANK);
        if (count < 0) {
            for (int i = 0; i < out.rank; i++)
                out.at[i] = DIM_UNKNOWN;
            return infer_result(n, d, 0, n->in[0]->dtype, &out);
        }
    } else {
        count = node_ints(n, AT_PADS, &given);
    }
    if (!shape_pad(&x, given, count, &out, &f))
        return infer_fail(n, d, "%s", f.text);
    if (!infer_result(n, d, 0, n->in[0]->dtype, &out))
        return false;
    if (n->nin > 1) {
        node_set_ints(n, AT_PADS, given, count);
        infer_drop_operands(n, 1);
    }
    return true;
}

bool infer_shape(Node *n, Diag *d) {
    return infer_result(n, d, 0, DT_I64, &(Dims){1, {n->in[0]->rank}});
}

bool infer_range(Node *n, Diag *d) {
    double v[3];
    Dims out = {1, {DIM_UNKNOWN}};
    bool known = true;
    Fault f;
    for (int i = 0; i < 3; i++) {
        const Tensor *t = value_const(n->in[i]);
        if (!infer_same_type(n, d, 0, i))
            return false;
        if (n->in[i]->rank > 1 || (n->in[i]->rank == 1 && !dim_fits(n->in[i]->dims[0], 1)))
            return infer_fail(n, d, "operand %d of a range is not a scalar", i);
        known = known && t;
        v[i] = t ? tensor_get_f(t, 0) : 0;
    }
    if (n->in[0]->dtype == DT_BOOL)
        return infer_fail(n, d, "a range of bool (expected numbers)");
    if (known && !shape_range(v[0], v[1], v[2], &out.at[0], &f))
        return infer_fail(n, d, "%s", f.text);
    return infer_result(n, d, 0, n->in[0]->dtype, &out);
}

/* A scalar gives [0, n], as ONNX says. */
bool infer_nonzero(Node *n, Diag *d) {
    return infer_result(n, d, 0, DT_I64, &(Dims){2, {n->in[0]->rank, DIM_UNKNOWN}});
}

/* ---- reductions ---- */

bool infer_reduce(Node *n, Diag *d) {
    Dims x = dims_of(n->in[0]), out;
    int64_t axes[MAX_RANK];
    int count;
    Fault f;
    bool extreme = n->op == OP_REDUCE_MAX || n->op == OP_REDUCE_MIN;
    if (n->in[0]->dtype == DT_BOOL && !extreme)
        return infer_fail(n, d, "a sum or product of bool (expected numbers)");
    if (!shape_reduce_axes(n, x.rank, axes, &count, &f))
        return infer_fail(n, d, "%s", f.text);
    node_set_ints(n, AT_AXES, axes, count);
    shape_reduce(&x, axes, count, node_int(n, AT_KEEPDIMS, 0), &out);
    return infer_result(n, d, 0, n->in[0]->dtype, &out);
}

bool infer_argmax(Node *n, Diag *d) {
    Dims x = dims_of(n->in[0]), out;
    int axis;
    if (!infer_axis(n, d, x.rank, 0, &axis))
        return false;
    if (x.at[axis] == 0)
        return infer_fail(n, d, "the largest of no elements: axis %d has size 0", axis);
    shape_reduce(&x, &(int64_t){axis}, 1, node_int(n, AT_KEEPDIMS, 0), &out);
    return infer_result(n, d, 0, DT_I64, &out);
}

bool infer_topk(Node *n, Diag *d) {
    Dims x = dims_of(n->in[0]), out = x;
    int64_t k;
    int axis;
    Fault f;
    if (!infer_axis(n, d, x.rank, -1, &axis))
        return false;
    if (n->nin > 1 && n->in[1]) {
        if (!infer_want_int(n, d, 1))
            return false;
        if (n->in[1]->rank > 1 || (n->in[1]->rank == 1 && !dim_fits(n->in[1]->dims[0], 1)))
            return infer_fail(n, d, "k is not one number");
        if (infer_const_ints(n->in[1], &k, 1) == 1) {
            node_set_int(n, AT_K, k);
            infer_drop_operands(n, 1);
        } else {
            out.at[axis] = DIM_UNKNOWN;
        }
    } else if (!node_attr(n, AT_K)) {
        return infer_fail(n, d, "k is missing");
    }
    if (n->nin == 1 && !shape_topk(&x, axis, node_int(n, AT_K, 0), &out, &f))
        return infer_fail(n, d, "%s", f.text);
    return infer_result(n, d, 0, n->in[0]->dtype, &out) && infer_result(n, d, 1, DT_I64, &out);
}
