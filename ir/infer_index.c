/* infer_index.c: inference of indexing, scattering, matmul and windows. */
#include "ir/infer_rules.h"

#include <string.h>

/* Runs a shape fault into a diagnostic. */
static bool settle(Node *n, Diag *d, bool fits, const Fault *f, DType t, const Dims *out) {
    return fits ? infer_result(n, d, 0, t, out) : infer_fail(n, d, "%s", f->text);
}

bool infer_gather(Node *n, Diag *d) {
    Dims x = dims_of(n->in[0]), idx = dims_of(n->in[1]), out;
    int axis;
    Fault f;
    if (!infer_want_int(n, d, 1) || !infer_axis(n, d, x.rank, 0, &axis) ||
        !infer_const_index(n, d, 1, x.at[axis]))
        return false;
    bool fits = shape_gather(&x, &idx, axis, &out, &f);
    return settle(n, d, fits, &f, n->in[0]->dtype, &out);
}

bool infer_scatter_add(Node *n, Diag *d) {
    Dims upd = dims_of(n->in[0]), idx = dims_of(n->in[1]), out;
    const int64_t *dims;
    int axis, rank = node_ints(n, AT_DIMS, &dims);
    Fault f;
    if (!infer_want_int(n, d, 1) || !infer_axis(n, d, rank, 0, &axis) ||
        !infer_const_index(n, d, 1, dims[axis]))
        return false;
    if (n->in[0]->dtype == DT_BOOL)
        return infer_fail(n, d, "a sum of bool (expected numbers)");
    bool fits = shape_scatter_add(n, &upd, &idx, axis, &out, &f);
    return settle(n, d, fits, &f, n->in[0]->dtype, &out);
}

bool infer_gather_elements(Node *n, Diag *d) {
    Dims x = dims_of(n->in[0]), idx = dims_of(n->in[1]);
    int axis;
    Fault f;
    if (!infer_want_int(n, d, 1) || !infer_axis(n, d, x.rank, 0, &axis) ||
        !infer_const_index(n, d, 1, x.at[axis]))
        return false;
    bool fits = shape_gather_elements(&x, &idx, axis, &f);
    return settle(n, d, fits, &f, n->in[0]->dtype, &idx);
}

/* The entries of constant index tuples against the axes they address. */
static bool const_tuples(const Node *n, Diag *d, int operand, const Dims *x, int batch) {
    const Tensor *t = value_const(n->in[operand]);
    if (!t || t->rank < 1)
        return true;
    int64_t count = tensor_count(t), depth = t->dims[t->rank - 1];
    for (int64_t i = 0; i < count; i++) {
        int64_t size = x->at[batch + i % depth], v = tensor_get_i(t, i);
        if (size >= 0 && (v < -size || v >= size))
            return infer_fail(n, d, "constant index %lld (entry %lld) is outside -%lld..%lld",
                              (long long)v, (long long)i, (long long)size, (long long)(size - 1));
    }
    return true;
}

bool infer_gather_nd(Node *n, Diag *d) {
    Dims x = dims_of(n->in[0]), idx = dims_of(n->in[1]), out;
    int64_t batch = node_int(n, AT_BATCH_DIMS, 0);
    Fault f;
    if (!infer_want_int(n, d, 1))
        return false;
    if (batch < 0 || batch > MAX_RANK)
        return infer_fail(n, d, "batch_dims is %lld", (long long)batch);
    bool fits = shape_gather_nd(&x, &idx, (int)batch, &out, &f);
    if (fits && !const_tuples(n, d, 1, &x, (int)batch))
        return false;
    return settle(n, d, fits, &f, n->in[0]->dtype, &out);
}

bool infer_scatter(Node *n, Diag *d) {
    Dims x = dims_of(n->in[0]), idx = dims_of(n->in[1]), upd = dims_of(n->in[2]);
    const char *how = node_str(n, AT_REDUCTION, "none");
    int axis;
    bool fits;
    Fault f;
    if (!infer_want_int(n, d, 1) || !infer_same_type(n, d, 0, 2))
        return false;
    if (strcmp(how, "none") && strcmp(how, "add") && strcmp(how, "mul") && strcmp(how, "min") &&
        strcmp(how, "max"))
        return infer_fail(n, d, "reduction \"%s\" (expected none, add, mul, min or max)",
                          diag_safe(d, how));
    if (n->op == OP_SCATTER_ELEMENTS) {
        if (!infer_axis(n, d, x.rank, 0, &axis) || !infer_const_index(n, d, 1, x.at[axis]))
            return false;
        fits = shape_gather_elements(&x, &idx, axis, &f);
        if (fits && !dims_fit(&idx, &upd))
            fits = fault(&f, "indices %s and updates %s differ", DIMS_TEXT(&idx), DIMS_TEXT(&upd));
    } else {
        fits = shape_scatter_nd(&x, &idx, &upd, &f);
        if (fits && !const_tuples(n, d, 1, &x, 0))
            return false;
    }
    return settle(n, d, fits, &f, n->in[0]->dtype, &x);
}

bool infer_matmul(Node *n, Diag *d) {
    Dims a = dims_of(n->in[0]), b = dims_of(n->in[1]), out;
    Fault f;
    if (!infer_same_type(n, d, 0, 1))
        return false;
    if (n->in[0]->dtype == DT_BOOL)
        return infer_fail(n, d, "a product of bool matrices (expected numbers)");
    bool fits =
        shape_matmul(&a, &b, node_int(n, AT_TRANS_A, 0), node_int(n, AT_TRANS_B, 0), &out, &f);
    return settle(n, d, fits, &f, n->in[0]->dtype, &out);
}

bool infer_unfold(Node *n, Diag *d) {
    Dims x = dims_of(n->in[0]), out;
    Window w;
    Fault f;
    bool fits = shape_unfold(n, &x, &w, &out, &f);
    return settle(n, d, fits, &f, n->in[0]->dtype, &out);
}

bool infer_fold(Node *n, Diag *d) {
    Dims x = dims_of(n->in[0]), out;
    Window w;
    Fault f;
    if (!infer_want_float(n, d, 0))
        return false;
    bool fits = shape_fold(n, &x, &w, &out, &f);
    return settle(n, d, fits, &f, n->in[0]->dtype, &out);
}
