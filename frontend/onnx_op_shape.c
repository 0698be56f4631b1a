/* onnx_op_shape.c: operators that move, cut or make tensors without computing with their elements.
 */
#include <string.h>

#include "frontend/onnx_ops.h"

void read_reshape(OpCall *c) {
    if (c->opset >= 5) {
        c->out[0] = em_reshape_to(c, c->in[0], c->in[1], call_int(c, "allowzero", 0) != 0);
        return;
    }
    const int64_t *dims;
    int n = call_ints(c, "shape", &dims);
    c->out[0] = em_reshape_to(c, c->in[0], em_ints(c, dims, n < 0 ? 0 : n), false);
}

void read_shape(OpCall *c) {
    int rank = em_rank(c, c->in[0]);
    int64_t start = call_int(c, "start", 0), end = call_int(c, "end", rank);
    start = start < 0 ? start + rank : start;
    end = end < 0 ? end + rank : end;
    start = start < 0 ? 0 : start > rank ? rank : start;
    end = end < 0 ? 0 : end > rank ? rank : end;
    Value *s = em_shape(c, c->in[0]);
    c->out[0] =
        start == 0 && end == rank ? s : em_slice(c, s, 0, start, end < start ? start : end, 1);
}

void read_size(OpCall *c) {
    int64_t axis = 0;
    em_rank(c, c->in[0]);
    c->out[0] = em_reduce(c, OP_REDUCE_PROD, em_shape(c, c->in[0]), &axis, 1, false);
}

void read_squeeze(OpCall *c) {
    Value *x = c->in[0];
    int rank = em_rank(c, x);
    int64_t axes[MAX_RANK + 64];
    int n = em_axes(c, c->opset >= 13 ? 1 : -1, c->opset >= 13 ? NULL : "axes", rank, axes);
    bool drop[MAX_RANK] = {false};
    for (int i = 0; i < n; i++) {
        drop[axes[i]] = true;
        if (x->dims[axes[i]] > 1 || x->dims[axes[i]] == 0)
            call_fail(c, "axis %lld has size %lld; only axes of size 1 can be squeezed",
                      (long long)axes[i], (long long)x->dims[axes[i]]);
    }
    for (int i = 0; n < 0 && i < rank; i++) {
        if (x->dims[i] < 0)
            call_fail(c, "without axes, every size must be known to find those of 1");
        drop[i] = x->dims[i] == 1;
    }
    ShapeOf s = {0};
    for (int i = 0; i < rank; i++)
        if (!drop[i])
            shape_add_axis(c, &s, x, i);
    c->out[0] = em_view(c, x, &s);
}

void read_unsqueeze(OpCall *c) {
    Value *x = c->in[0];
    int rank = em_rank(c, x);
    int64_t given[64], axes[64];
    const int64_t *at = given;
    int n = c->opset < 13 ? call_ints(c, "axes", &at)
                          : em_known_ints(c, c->in[1], given, COUNT_OF(given));
    if (n < 0)
        call_fail(c, "the axes depend on data or are missing; they must be constant");
    if (rank + n > MAX_RANK)
        call_fail(c, "the result has rank %d; at most %d is supported", rank + n, MAX_RANK);
    bool insert[MAX_RANK] = {false};
    for (int i = 0; i < n; i++) {
        axes[i] = em_axis(c, at[i], rank + n);
        if (insert[axes[i]])
            call_fail(c, "axis %lld is given twice", (long long)axes[i]);
        insert[axes[i]] = true;
    }
    ShapeOf s = {0};
    for (int i = 0, k = 0; i < rank + n; i++) {
        if (insert[i])
            shape_add(c, &s, 1);
        else
            shape_add_axis(c, &s, x, k++);
    }
    c->out[0] = em_view(c, x, &s);
}

void read_flatten(OpCall *c) {
    Value *x = c->in[0];
    int rank = em_rank(c, x);
    int64_t axis = call_int(c, "axis", 1);
    if (axis < -rank || axis > rank)
        call_fail(c, "axis %lld is outside %d to %d", (long long)axis, -rank, rank);
    axis = axis < 0 ? axis + rank : axis;
    ShapeOf s = {0};
    shape_add_product(c, &s, x, 0, (int)axis);
    shape_add_product(c, &s, x, (int)axis, rank);
    c->out[0] = em_view(c, x, &s);
}

void read_transpose(OpCall *c) {
    const int64_t *perm;
    int rank = em_rank(c, c->in[0]), n = call_ints(c, "perm", &perm);
    int64_t reversed[MAX_RANK];
    for (int i = 0; i < rank; i++)
        reversed[i] = rank - 1 - i;
    c->out[0] = n < 0 ? em_transpose(c, c->in[0], reversed)
                      : EM(c, OP_TRANSPOSE, &c->in[0], 1, A_INTS(PERM, perm, n));
}

void read_expand(OpCall *c) {
    c->out[0] = em_expand_to(c, c->in[0], c->in[1]);
}

/* One axis after the other: [.., d, ..] -> [.., 1, d, ..] -> [.., r, d, ..] -> [.., r*d, ..]. */
static Value *tile_axis(OpCall *c, Value *x, int axis, Value *repeat, int64_t known) {
    ShapeOf wide = {0}, back = {0};
    int rank = em_rank(c, x);
    Value *y = em_insert_axis(c, x, axis);
    shape_add_axes(c, &wide, x, 0, axis);
    if (known >= 0)
        shape_add(c, &wide, known);
    else
        shape_add_value(c, &wide, repeat);
    shape_add_axes(c, &wide, x, axis, rank);
    y = em_spread(c, y, &wide);
    shape_add_axes(c, &back, x, 0, axis);
    shape_add_product(c, &back, y, axis, axis + 2);
    shape_add_axes(c, &back, x, axis + 1, rank);
    return em_view(c, y, &back);
}

void read_tile(OpCall *c) {
    Value *x = c->in[0], *repeats = em_cast(c, c->in[1], DT_I64);
    int rank = em_rank(c, x);
    if (repeats->rank != 1 || (repeats->dims[0] >= 0 && repeats->dims[0] != rank))
        call_fail(c, "repeats must be a list of %d numbers, one per axis", rank);
    int64_t known[MAX_RANK];
    int n = em_known_ints(c, repeats, known, MAX_RANK);
    for (int i = 0; i < rank; i++) {
        if (n >= 0 && known[i] < 0)
            call_fail(c, "repeats of axis %d is %lld; it cannot be negative", i,
                      (long long)known[i]);
        if (n < 0 || known[i] != 1)
            x = tile_axis(c, x, i, n < 0 ? em_slice(c, repeats, 0, i, i + 1, 1) : NULL,
                          n < 0 ? -1 : known[i]);
    }
    c->out[0] = x;
}

void read_concat(OpCall *c) {
    int rank = em_rank(c, c->in[0]);
    int axis = em_axis(c, call_int(c, "axis", 1), rank);
    c->out[0] = em_concat(c, c->in, c->nin, axis);
}

/* ---- split ---- */

/* Slices x by sizes that only data or open sizes decide: ends are the running sum. */
static void split_by_values(OpCall *c, Value *x, int axis, Value *sizes) {
    int64_t a = axis;
    Value *ends = EM(c, OP_CUMSUM, &sizes, 1, A_INT(AXIS, 0)),
          *starts = em_binary(c, OP_SUB, ends, sizes);
    Value *axes = em_ints(c, &a, 1);
    for (int i = 0; i < c->nout; i++)
        c->out[i] = em_node(c, OP_SLICE,
                            (Value *[]){x, em_slice(c, starts, 0, i, i + 1, 1),
                                        em_slice(c, ends, 0, i, i + 1, 1), axes},
                            4, 1, NULL, 0)
                        ->out[0];
}

/* Equal parts of a size not known yet: ceil(size / n) each, the last one shorter. */
static void split_equal_open(OpCall *c, Value *x, int axis) {
    int64_t a = axis;
    Value *size = em_size(c, x, axis), *n = em_i(c, DT_I64, c->nout),
          *less = em_i(c, DT_I64, c->nout - 1);
    Value *part = em_binary(c, OP_DIV, em_binary(c, OP_ADD, size, less), n),
          *axes = em_ints(c, &a, 1);
    for (int i = 0; i < c->nout; i++) {
        Value *start = em_binary(c, OP_MUL, part, em_i(c, DT_I64, i));
        Value *end = em_binary(c, OP_MUL, part, em_i(c, DT_I64, i + 1));
        c->out[i] = em_node(c, OP_SLICE, (Value *[]){x, start, end, axes}, 4, 1, NULL, 0)->out[0];
    }
}

static void split_by_sizes(OpCall *c, Value *x, int axis, const int64_t *sizes, int n) {
    int64_t at = 0;
    if (n != c->nout)
        call_fail(c, "%d sizes are given for %d outputs", n, c->nout);
    for (int i = 0; i < n; i++) {
        if (sizes[i] < 0 || __builtin_add_overflow(at, sizes[i], &at))
            call_fail(c, "size %d is %lld", i, (long long)sizes[i]);
        c->out[i] = em_slice(c, x, axis, at - sizes[i], at, 1);
    }
    if (x->dims[axis] >= 0 && at != x->dims[axis])
        call_fail(c, "the sizes add up to %lld; axis %d has size %lld", (long long)at, axis,
                  (long long)x->dims[axis]);
}

void read_split(OpCall *c) {
    Value *x = c->in[0], *split = c->opset >= 13 && c->nin > 1 ? c->in[1] : NULL;
    int axis = em_axis(c, call_int(c, "axis", 0), em_rank(c, x));
    int64_t sizes[4096];
    const int64_t *at = sizes;
    int n = -1;
    if (split) {
        split = em_cast(c, split, DT_I64);
        n = em_known_ints(c, split, sizes, COUNT_OF(sizes));
        if (n < 0) {
            if (split->rank != 1 || split->dims[0] != c->nout)
                call_fail(c, "the sizes must be a list of %d numbers, one per output", c->nout);
            split_by_values(c, x, axis, split);
            return;
        }
    } else if (c->opset < 13) {
        n = call_ints(c, "split", &at);
    }
    int64_t want = call_int(c, "num_outputs", c->nout);
    if (want != c->nout)
        call_fail(c, "num_outputs is %lld; the node has %d outputs", (long long)want, c->nout);
    if (n >= 0) {
        split_by_sizes(c, x, axis, at, n);
    } else if (x->dims[axis] < 0) {
        split_equal_open(c, x, axis);
    } else {
        int64_t size = x->dims[axis], part = (size + c->nout - 1) / c->nout;
        if (c->nout > COUNT_OF(sizes))
            call_fail(c, "%d outputs; at most %d are supported", c->nout, COUNT_OF(sizes));
        if (c->opset < 18 && size % c->nout)
            call_fail(c, "axis %d of size %lld does not split into %d equal parts", axis,
                      (long long)size, c->nout);
        for (int i = 0; i < c->nout; i++)
            sizes[i] = i * part >= size ? 0 : size - i * part < part ? size - i * part : part;
        split_by_sizes(c, x, axis, sizes, c->nout);
    }
}

/* ---- slice ---- */

static void slice_by_attrs(OpCall *c) {
    const int64_t *starts, *ends, *axes;
    int64_t all[MAX_RANK], ones[MAX_RANK];
    int n = call_ints(c, "starts", &starts), m = call_ints(c, "ends", &ends),
        k = call_ints(c, "axes", &axes);
    for (int i = 0; i < MAX_RANK; i++)
        all[i] = i, ones[i] = 1;
    if (n < 0 || n != m || (k >= 0 && k != n) || n > MAX_RANK)
        call_fail(c, "starts, ends and axes must have equal lengths, found %d, %d, %d", n, m, k);
    c->out[0] = EM(c, OP_SLICE, &c->in[0], 1, A_INTS(AXES, k < 0 ? all : axes, n),
                   A_INTS(STARTS, starts, n), A_INTS(ENDS, ends, n), A_INTS(STEPS, ones, n));
}

void read_slice(OpCall *c) {
    if (c->opset < 10) {
        slice_by_attrs(c);
        return;
    }
    Value *in[5] = {c->in[0]};
    em_rank(c, c->in[0]);
    int64_t list[4][MAX_RANK];
    int n[4] = {-1, -1, -1, -1};
    bool known = true;
    for (int i = 1; i < 5; i++) {
        Value *v = i < c->nin ? c->in[i] : NULL;
        in[i] = v ? em_cast(c, v, DT_I64) : NULL;
        if (v && (n[i - 1] = em_known_ints(c, in[i], list[i - 1], MAX_RANK)) < 0)
            known = false;
    }
    if (known) {
        for (int i = 2; i < 4; i++)
            for (int k = 0; n[i] < 0 && k < MAX_RANK; k++)
                list[i][k] = i == 2 ? k : 1;
        for (int i = 1; i < 4; i++)
            if (n[i] >= 0 && n[i] != n[0])
                call_fail(
                    c, "starts, ends, axes and steps must have equal lengths, found %d, %d, %d, %d",
                    n[0], n[1], n[2], n[3]);
        c->out[0] =
            EM(c, OP_SLICE, in, 1, A_INTS(AXES, list[2], n[0]), A_INTS(STARTS, list[0], n[0]),
               A_INTS(ENDS, list[1], n[0]), A_INTS(STEPS, list[3], n[0]));
        return;
    }
    for (int i = 1; i < 5; i++) { /* what is known of them as constants: inference reads those */
        if (in[i] && n[i - 1] >= 0 && !value_is_const(in[i]))
            in[i] = em_ints(c, list[i - 1], n[i - 1]);
    }
    int nin = in[4] ? 5 : in[3] ? 4 : 3;
    c->out[0] = em_node(c, OP_SLICE, in, nin, 1, NULL, 0)->out[0];
}

/* ---- constants ---- */

void read_constant(OpCall *c) {
    const Onnx__AttributeProto *a = NULL;
    int given = 0;
    static const char *const names[] = {"value", "value_float", "value_int", "value_floats",
                                        "value_ints"};
    for (int i = 0; i < COUNT_OF(names); i++)
        if (call_attr(c, names[i]))
            a = call_attr(c, names[i]), given++;
    if (given != 1)
        call_fail(c, "exactly one value attribute is expected, found %d", given);
    Arena *arena = &c->im->g->arena;
    Tensor *t;
    if (a->type == ONNX_ATTR_TENSOR) {
        t = call_tensor(c, "value");
    } else {
        bool is_float = a->type == ONNX_ATTR_FLOAT || a->type == ONNX_ATTR_FLOATS;
        bool list = a->type == ONNX_ATTR_FLOATS || a->type == ONNX_ATTR_INTS;
        int64_t n = is_float ? (int64_t)a->n_floats : (int64_t)a->n_ints;
        t = tensor_new(arena, is_float ? DT_F32 : DT_I64, list, &n);
        for (int64_t i = 0; i < (list ? n : 1); i++) {
            if (is_float)
                tensor_set_f(t, i, (double)(list ? a->floats[i] : a->f));
            else
                tensor_set_i(t, i, list ? a->ints[i] : a->i);
        }
    }
    c->out[0] = em_const(c, t);
}

void read_constant_of_shape(OpCall *c) {
    Tensor *t = call_tensor(c, "value");
    if (t && tensor_count(t) != 1)
        call_fail(c, "value must have one element, found %lld", (long long)tensor_count(t));
    Tensor *scalar = tensor_new(&c->im->g->arena, t ? t->dtype : DT_F32, 0, NULL);
    if (t)
        memcpy(scalar->data, t->data, tensor_bytes(scalar));
    Value *k = em_const(c, scalar);
    c->out[0] = em_expand_to(c, k, c->in[0]);
}

static Value *as_scalar(OpCall *c, Value *x) {
    return em_rank(c, x) == 0 ? x : em_reshape(c, x, 0, NULL);
}

void read_range(OpCall *c) {
    Value *in[3];
    for (int i = 0; i < 3;
         i++) { /* computed constants as constants: they decide the size of the result */
        in[i] = as_scalar(c, c->in[i]);
        const Tensor *t = em_known(c, in[i]);
        if (t && !value_is_const(in[i]))
            in[i] = dtype_is_float(t->dtype) ? em_f(c, t->dtype, tensor_get_f(t, 0))
                                             : em_i(c, t->dtype, tensor_get_i(t, 0));
    }
    c->out[0] = em_node(c, OP_RANGE, in, 3, 1, NULL, 0)->out[0];
}

/* ---- pad ---- */

/* Source index along one padded axis, for the modes that repeat what is there. */
static int64_t pad_source(int64_t i, int64_t size, const char *mode) {
    if (!strcmp(mode, "edge"))
        return i < 0 ? 0 : i >= size ? size - 1 : i;
    if (!strcmp(mode, "wrap"))
        return (i % size + size) % size;
    if (size == 1)
        return 0;
    int64_t period = 2 * (size - 1),
            k = (i % period + period) % period; /* reflect, edge not repeated */
    return k < size ? k : period - k;
}

static Value *pad_by_index(OpCall *c, Value *x, int axis, int64_t before, int64_t after,
                           const char *mode) {
    int64_t size = x->dims[axis], n = size + before + after;
    if (size < 0)
        call_fail(c, "mode \"%s\" needs the size of axis %d", mode, axis);
    if (n < 0 || (size == 0 && n > 0))
        call_fail(c, "pads %lld and %lld do not fit axis %d of size %lld", (long long)before,
                  (long long)after, axis, (long long)size);
    if (n > (int64_t)1 << 24)
        call_fail(c, "axis %d becomes %lld long", axis, (long long)n);
    Tensor *idx = tensor_new(&c->im->g->arena, DT_I64, 1, &n);
    for (int64_t i = 0; i < n; i++)
        tensor_set_i(idx, i, pad_source(i - before, size, mode));
    return em_gather(c, x, em_const(c, idx), axis);
}

/* A fill value known only later is chosen where padded ones are missing. */
static Value *pad_constant(OpCall *c, Value *x, const int64_t *pads, double fill,
                           Value *open_fill) {
    Value *y = EM(c, OP_PAD, &x, 1, A_INTS(PADS, pads, 2 * x->rank), A_FLOAT(VALUE_F, fill));
    if (!open_fill)
        return y;
    ShapeOf s = {0};
    shape_add_axes(c, &s, x, 0, x->rank);
    Value *ones = em_spread(c, em_i(c, DT_I64, 1), &s);
    Value *inside = EM(c, OP_PAD, &ones, 1, A_INTS(PADS, pads, 2 * x->rank), A_FLOAT(VALUE_F, 0));
    return em_where(c, em_cast(c, inside, DT_BOOL), y, open_fill);
}

void read_pad(OpCall *c) {
    Value *x = c->in[0];
    int rank = em_rank(c, x), n;
    int64_t given[2 * MAX_RANK], axes[64], pads[2 * MAX_RANK] = {0};
    const int64_t *at = given;
    const char *mode = call_string(c, "mode", "constant");
    double fill = call_float(c, "value", 0);
    if (c->opset < 11)
        n = call_ints(c, "pads", &at);
    else
        n = em_known_ints(c, c->in[1], given, COUNT_OF(given));
    int naxes = c->opset >= 18 ? em_axes(c, 3, NULL, rank, axes) : -1;
    bool constant = !strcmp(mode, "constant");
    Value *open_fill = NULL; /* a fill value that data decide */
    if (c->nin > 2 && c->in[2]) {
        const Tensor *t = em_known(c, c->in[2]);
        if (t && tensor_count(t) != 1)
            call_fail(c, "the fill value must be one number");
        fill = t ? tensor_get_f(t, 0) : 0;
        open_fill = t ? NULL : as_scalar(c, c->in[2]);
    }
    if (n < 0) {
        if (c->opset < 11 || naxes >= 0 || !constant || open_fill)
            call_fail(c, "the pads depend on data; they must be constant");
        c->out[0] = EM(c, OP_PAD, ((Value *[]){x, em_cast(c, c->in[1], DT_I64)}), 2,
                       A_FLOAT(VALUE_F, fill));
        return;
    }
    int m = naxes < 0 ? rank : naxes;
    if (n != 2 * m)
        call_fail(c, "%d pads are given; expected 2 for each of %d axes", n, m);
    for (int i = 0; i < m; i++) {
        int64_t axis = naxes < 0 ? i : axes[i];
        pads[axis] = at[i];
        pads[rank + axis] = at[m + i];
    }
    if (constant) {
        c->out[0] = pad_constant(c, x, pads, fill, open_fill);
        return;
    }
    if (strcmp(mode, "reflect") != 0 && strcmp(mode, "edge") != 0 && strcmp(mode, "wrap") != 0)
        call_fail(c, "mode \"%s\" is unknown; expected constant, reflect, edge or wrap",
                  diag_safe(c->im->d, mode));
    for (int i = 0; i < rank; i++)
        if (pads[i] || pads[rank + i])
            x = pad_by_index(c, x, i, pads[i], pads[rank + i], mode);
    c->out[0] = x;
}

/* ---- patterns of rows and columns ---- */

/* Rows [R,1] and columns [C] of x's last two axes as i64. */
static void row_column(OpCall *c, Value *x, Value **row, Value **column) {
    int rank = em_rank(c, x);
    if (rank < 2)
        call_fail(c, "rank %d; at least 2 is expected", rank);
    *row = em_insert_axis(c, em_iota(c, x, rank - 2), 1);
    *column = em_iota(c, x, rank - 1);
}

void read_eye_like(OpCall *c) {
    Value *x = c->in[0], *row, *column;
    if (em_rank(c, x) != 2)
        call_fail(c, "rank %d; expected 2", x->rank);
    row_column(c, x, &row, &column);
    int64_t type = call_int(c, "dtype", dtype_to_onnx(x->dtype)), k = call_int(c, "k", 0);
    DType t = type >= 0 && type <= 64 ? dtype_from_onnx((int)type) : DT_NONE;
    if (t == DT_NONE)
        call_fail(c, "element type %lld is not supported", (long long)type);
    Value *hit = em_binary(c, OP_EQ, em_binary(c, OP_ADD, row, em_i(c, DT_I64, k)), column);
    c->out[0] = em_cast(c, hit, t);
}

/* Upper: columns from row + k on; lower: columns up to row + k. */
void read_trilu(OpCall *c) {
    Value *x = c->in[0], *row, *column, *k = em_i(c, DT_I64, 0);
    row_column(c, x, &row, &column);
    if (c->nin > 1 && c->in[1])
        k = as_scalar(c, c->in[1]);
    Value *edge = em_binary(c, OP_ADD, row, k);
    Value *keep = call_int(c, "upper", 1) ? em_binary(c, OP_LE, edge, column)
                                          : em_binary(c, OP_LE, column, edge);
    c->out[0] = em_where(c, keep, x, em_like(c, x, 0));
}

/* ---- blocks ---- */

void read_depth_to_space(OpCall *c) {
    Value *x = c->in[0];
    int64_t b = call_int(c, "blocksize", 0);
    bool crd = !strcmp(call_string(c, "mode", "DCR"), "CRD");
    if (em_rank(c, x) != 4 || b < 1 || x->dims[1] < 0 || x->dims[1] % (b * b))
        call_fail(c, "expected [N,C,H,W] with C a multiple of blocksize^2 (%lld)",
                  (long long)(b * b));
    ShapeOf s = {0}, r = {0};
    shape_add_axis(c, &s, x, 0);
    shape_add(c, &s, crd ? x->dims[1] / (b * b) : b);
    shape_add(c, &s, b);
    shape_add(c, &s, crd ? b : x->dims[1] / (b * b));
    shape_add_axes(c, &s, x, 2, 4);
    Value *y = em_transpose(c, em_view(c, x, &s),
                            crd ? (int64_t[]){0, 1, 4, 2, 5, 3} : (int64_t[]){0, 3, 4, 1, 5, 2});
    shape_add_axes(c, &r, y, 0, 2);
    shape_add_product(c, &r, y, 2, 4);
    shape_add_product(c, &r, y, 4, 6);
    c->out[0] = em_view(c, y, &r);
}

void read_space_to_depth(OpCall *c) {
    Value *x = c->in[0];
    int64_t b = call_int(c, "blocksize", 0);
    bool crd = !strcmp(call_string(c, "mode", "DCR"), "CRD");
    if (em_rank(c, x) != 4 || b < 1 || x->dims[2] < 0 || x->dims[3] < 0 || x->dims[2] % b ||
        x->dims[3] % b)
        call_fail(c, "expected [N,C,H,W] with H and W multiples of blocksize (%lld)", (long long)b);
    ShapeOf s = {0}, r = {0};
    shape_add_axes(c, &s, x, 0, 2);
    shape_add(c, &s, x->dims[2] / b);
    shape_add(c, &s, b);
    shape_add(c, &s, x->dims[3] / b);
    shape_add(c, &s, b);
    Value *y = em_transpose(c, em_view(c, x, &s),
                            crd ? (int64_t[]){0, 1, 3, 5, 2, 4} : (int64_t[]){0, 3, 5, 1, 2, 4});
    shape_add_axis(c, &r, y, 0);
    shape_add_product(c, &r, y, 1, 4);
    shape_add_axes(c, &r, y, 4, 6);
    c->out[0] = em_view(c, y, &r);
}
