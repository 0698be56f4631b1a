/* infer.c: shape inference: the driver, broadcasting, leaves and elementwise ops.
 *
 * Each op's shape rule is a shape_* function (infer_dims.h), which the evaluator uses as well; the
 * hooks here and in infer_shape.c, infer_index.c and infer_rows.c check element types, read
 * operands that carry shapes, and normalise attributes: axes end up in 0..rank-1 and explicit, so
 * that later rooms need not know ONNX's defaults.
 *
 * Defaults of absent attributes: axis -1 for softmax, log_softmax, topk, else 0; axes absent: all;
 * keepdims 0; largest 1. Reshape: in operand 1 (ONNX's form) a 0 copies the dim of operand 0 unless
 * the node has {k=1} (ONNX allowzero); in the attribute {dims} a 0 is a size. Operand 1 stays as
 * long as two or more dims of the result are symbols. */
#include "ir/infer_rules.h"

#include <string.h>

static bool (*const hooks[OP_COUNT])(Node *, Diag *) = {
#define OP(ID, m, a, b, c, f, infer, eval, grad, lower, emit) infer_##infer,
#include "ir/ops.def"
#undef OP
};

/* ---- messages ---- */

static const char *value_text(const Value *v, char *buf, size_t size) {
    size_t at = (size_t)snprintf(buf, size, "%s", dtype_name(v->dtype));
    if (v->rank < 0)
        return buf;
    for (int i = 0; i < v->rank && at < size; i++) {
        const char *sep = i ? "," : "[";
        if (v->dims[i] < 0)
            at += (size_t)snprintf(buf + at, size - at, "%s%.40s", sep,
                                   dim_name(v->def->graph, v->dims[i]));
        else
            at += (size_t)snprintf(buf + at, size - at, "%s%lld", sep, (long long)v->dims[i]);
    }
    if (at < size)
        snprintf(buf + at, size - at, v->rank ? "]" : "[]");
    return buf;
}

bool infer_fail(const Node *n, Diag *d, const char *fmt, ...) {
    char text[512], type[400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (n->src && n->src->name && n->src->name[0])
        diag_error(d, EXIT_MODEL, "node \"%s\" (%s): %s", diag_safe(d, n->src->name),
                   diag_safe(d, n->src->op_type), text);
    else
        diag_error(d, EXIT_MODEL, "a %s made for %s: %s", op_info[n->op].name,
                   n->src && n->src->op_type ? diag_safe(d, n->src->op_type) : "the compiler",
                   text);
    for (int i = 0; i < n->nin && i < 8; i++) {
        const Value *v = n->in[i];
        if (v)
            diag_more(d, "operand %d \"%s\" %s", i, v->name ? diag_safe(d, v->name) : "",
                      diag_safe(d, value_text(v, type, sizeof type)));
    }
    return false;
}

/* ---- what hooks share ---- */

bool infer_result(Node *n, Diag *d, int i, DType t, const Dims *x) {
    Value *v = n->out[i];
    bool kept = v->rank == x->rank;
    int64_t known = 1;
    for (int k = 0; k < x->rank; k++) {
        int64_t dim = x->at[k];
        if (dim == DIM_UNKNOWN)
            dim = kept ? v->dims[k] : graph_symbol(n->graph, NULL);
        if (dim > 0 && (__builtin_mul_overflow(known, dim, &known) || known > (int64_t)1 << 40))
            return infer_fail(n, d, "the result %s has more than 2^40 elements", DIMS_TEXT(x));
        v->dims[k] = dim;
    }
    v->rank = x->rank;
    v->dtype = t;
    if (value_known(v) && dims_count(v->dims, v->rank) < 0)
        return infer_fail(n, d, "the result %s is too large", DIMS_TEXT(x));
    return true;
}

bool infer_axis(Node *n, Diag *d, int rank, int64_t absent, int *axis) {
    Fault f;
    if (!shape_axis(node_int(n, AT_AXIS, absent), rank, axis, &f))
        return infer_fail(n, d, "%s", f.text);
    node_set_int(n, AT_AXIS, *axis);
    return true;
}

bool infer_want_int(const Node *n, Diag *d, int i) {
    DType t = n->in[i]->dtype;
    if (dtype_is_float(t) || t == DT_BOOL || t == DT_NONE)
        return infer_fail(n, d, "operand %d is %s (expected an integer type)", i, dtype_name(t));
    return true;
}

bool infer_want_float(const Node *n, Diag *d, int i) {
    if (!dtype_is_float(n->in[i]->dtype))
        return infer_fail(n, d, "operand %d is %s (expected a float type)", i,
                          dtype_name(n->in[i]->dtype));
    return true;
}

bool infer_same_type(const Node *n, Diag *d, int a, int b) {
    if (n->in[a]->dtype != n->in[b]->dtype)
        return infer_fail(n, d, "operands %d and %d are %s and %s (expected one type)", a, b,
                          dtype_name(n->in[a]->dtype), dtype_name(n->in[b]->dtype));
    return true;
}

int infer_const_ints(const Value *v, int64_t *out, int cap) {
    const Tensor *t = v ? value_const(v) : NULL;
    if (!t || t->rank > 1 || dtype_is_float(t->dtype))
        return -1;
    int64_t n = tensor_count(t);
    if (n < 0 || n > cap)
        return -1;
    for (int64_t i = 0; i < n; i++)
        out[i] = tensor_get_i(t, i);
    return (int)n;
}

void infer_drop_operands(Node *n, int keep) {
    while (n->nin > keep) {
        node_set_in(n, n->nin - 1, NULL);
        n->nin--;
    }
}

void infer_drop_attr(Node *n, AttrKey k) {
    for (int i = 0; i < n->nattr; i++) {
        if (n->attrs[i].key != k)
            continue;
        memmove(&n->attrs[i], &n->attrs[i + 1], sizeof(Attr) * (size_t)(n->nattr - i - 1));
        n->nattr--;
        return;
    }
}

bool infer_const_index(const Node *n, Diag *d, int operand, int64_t size) {
    const Tensor *t = value_const(n->in[operand]);
    if (!t || size < 0)
        return true;
    int64_t count = tensor_count(t);
    for (int64_t i = 0; i < count; i++) {
        int64_t v = tensor_get_i(t, i);
        if (v < -size || v >= size)
            return infer_fail(n, d, "constant index %lld (entry %lld) is outside -%lld..%lld",
                              (long long)v, (long long)i, (long long)size, (long long)(size - 1));
    }
    return true;
}

bool dims_broadcast(const Value *a, const Value *b, int *rank, int64_t *dims) {
    Dims x = dims_of(a), y = dims_of(b), out;
    Fault f;
    if (!shape_broadcast(&x, &y, &out, &f))
        return false;
    *rank = out.rank;
    memcpy(dims, out.at, sizeof(int64_t) * (size_t)out.rank);
    return true;
}

/* ---- leaves ---- */

bool infer_leaf(Node *n, Diag *d) {
    const Value *v = n->out[0];
    if (v->rank < 0 || v->dtype == DT_NONE)
        return infer_fail(n, d, "input \"%s\" has no type or shape",
                          diag_safe(d, node_str(n, AT_NAME, "")));
    return true;
}

bool infer_constant(Node *n, Diag *d) {
    const Attr *a = node_attr(n, AT_VALUE);
    if (!a)
        return infer_fail(n, d, "the constant has no value");
    Dims x = {.rank = a->t->rank};
    memcpy(x.at, a->t->dims, sizeof(int64_t) * (size_t)x.rank);
    return infer_result(n, d, 0, a->t->dtype, &x);
}

bool infer_param(Node *n, Diag *d) {
    return node_attr(n, AT_VALUE) ? infer_constant(n, d) : infer_leaf(n, d);
}

/* ---- elementwise ---- */

static bool result_like(Node *n, Diag *d, DType t) {
    Dims x = dims_of(n->in[0]);
    return infer_result(n, d, 0, t, &x);
}

bool infer_unary(Node *n, Diag *d) {
    DType t = n->in[0]->dtype;
    bool any = n->op == OP_NEG || n->op == OP_ABS || n->op == OP_SIGN;
    if (any && t == DT_BOOL)
        return infer_fail(n, d, "operand 0 is bool (expected a number)");
    if (!any && !infer_want_float(n, d, 0))
        return false;
    return result_like(n, d, t);
}

bool infer_predicate(Node *n, Diag *d) {
    if (n->op == OP_NOT && n->in[0]->dtype != DT_BOOL)
        return infer_fail(n, d, "operand 0 is %s (expected bool)", dtype_name(n->in[0]->dtype));
    if (n->op != OP_NOT && !infer_want_float(n, d, 0))
        return false;
    return result_like(n, d, DT_BOOL);
}

bool infer_cast(Node *n, Diag *d) {
    int64_t to = node_int(n, AT_TO, DT_NONE);
    if (to <= DT_NONE || to >= DT_COUNT)
        return infer_fail(n, d, "the cast has no known target type");
    return result_like(n, d, (DType)to);
}

static bool broadcast_result(Node *n, Diag *d, DType t) {
    Dims out = dims_of(n->in[0]);
    Fault f;
    for (int i = 1; i < n->nin; i++) {
        Dims x = dims_of(n->in[i]);
        if (!shape_broadcast(&out, &x, &out, &f))
            return infer_fail(n, d, "%s", f.text);
    }
    return infer_result(n, d, 0, t, &out);
}

bool infer_binary(Node *n, Diag *d) {
    DType t = n->in[0]->dtype;
    if (n->op != OP_POW && !infer_same_type(n, d, 0, 1))
        return false;
    if (t == DT_BOOL || n->in[1]->dtype == DT_BOOL)
        return infer_fail(n, d, "bool operands (expected numbers)");
    return broadcast_result(n, d, t);
}

bool infer_compare(Node *n, Diag *d) {
    bool logic = n->op == OP_AND || n->op == OP_OR || n->op == OP_XOR;
    if (!infer_same_type(n, d, 0, 1))
        return false;
    if (logic && n->in[0]->dtype != DT_BOOL)
        return infer_fail(n, d, "operands are %s (expected bool)", dtype_name(n->in[0]->dtype));
    return broadcast_result(n, d, DT_BOOL);
}

bool infer_where(Node *n, Diag *d) {
    if (n->in[0]->dtype != DT_BOOL)
        return infer_fail(n, d, "the condition is %s (expected bool)", dtype_name(n->in[0]->dtype));
    if (!infer_same_type(n, d, 1, 2))
        return false;
    return broadcast_result(n, d, n->in[1]->dtype);
}

/* cumsum, softmax, log_softmax: the operand's type and shape. */
bool infer_same(Node *n, Diag *d) {
    int axis;
    if (n->op != OP_CUMSUM && !infer_want_float(n, d, 0))
        return false;
    if (n->in[0]->dtype == DT_BOOL)
        return infer_fail(n, d, "operand 0 is bool (expected a number)");
    if (!infer_axis(n, d, n->in[0]->rank, n->op == OP_CUMSUM ? 0 : -1, &axis))
        return false;
    return result_like(n, d, n->in[0]->dtype);
}

/* ---- driver ---- */

/* Numbers of operands and results were checked when the node was made; absent ones only here. */
static bool operands_there(const Node *n, Diag *d) {
    const OpInfo *op = &op_info[n->op];
    for (int i = 0; i < n->nin; i++)
        if (!n->in[i] && (i < op->min_in || op->max_in < 0))
            return infer_fail(n, d, "operand %d of %s is missing", i, op->name);
    return true;
}

static bool operands_inferred(const Node *n) {
    for (int i = 0; i < n->nin; i++)
        if (n->in[i] && n->in[i]->rank < 0)
            return false;
    return true;
}

bool node_infer(Node *n, Diag *d) {
    if (!operands_there(n, d))
        return false;
    if (!operands_inferred(n)) /* its maker was reported */
        return d->errors ? false : infer_fail(n, d, "an operand has no known type and shape");
    return hooks[n->op](n, d);
}

bool graph_infer(Graph *g, Diag *d) {
    bool ok = true;
    FOR_NODES(n, g) {
        ok &= node_infer(n, d);
    }
    return ok;
}
