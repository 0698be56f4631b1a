/* onnx_put.c: nodes, constants and names of the ONNX graph under construction. See onnx_put.h.
 *
 * Names. A node is called after the scope it is put in (the user's node, "grad/…",
 * "stgc/layer_I/…"), made unique with its operator and a number; its results are called after it. A
 * result that stands for one of the user's tensors gets that tensor's name in the end
 * (final_names), unless somebody else has it. */
#include "codegen/onnx_put.h"

#include <stdlib.h>
#include <string.h>

const char *emit_format(Emit *E, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *s = arena_alloc(&E->arena, (size_t)n + 1);
    va_start(ap, fmt);
    vsnprintf(s, (size_t)n + 1, fmt, ap);
    va_end(ap);
    return s;
}

void emit_fail(Emit *E, const Node *n, const char *fmt, ...) {
    va_list ap;
    char text[400];
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    const char *name = n->src && *n->src->name ? n->src->name : op_info[n->op].name;
    diag_error(E->d, EXIT_MODEL, "node \"%s\" (%s) cannot be written as ONNX: %s",
               diag_safe(E->d, name), op_info[n->op].name, text);
}

void **emit_memo(Emit *E, const char *how, const char *name) {
    const char *key = emit_format(E, "%s:%s", how, name);
    void **slot = strmap_get(&E->memo, key);
    if (!slot) {
        slot = ARENA_NEW(&E->arena, void *);
        strmap_put(&E->memo, key, slot);
    }
    return slot;
}

/* ---- names ---- */

/* `base` if it is free, else base + separator + counter. */
static const char *unique(Emit *E, StrMap *taken, const char *base) {
    int *n = strmap_get(taken, base);
    if (!n) {
        strmap_put(taken, base, ARENA_NEW(&E->arena, int));
        return base;
    }
    for (;;) {
        const char *name = emit_format(E, "%s_%d", base, ++*n);
        if (strmap_put(taken, name, ARENA_NEW(&E->arena, int)))
            return name;
    }
}

static const char *node_name(Emit *E, const char *op) {
    size_t n = strlen(E->scope);
    if (n && E->scope[n - 1] == '/')
        return unique(E, &E->node_names, emit_format(E, "%s%s", E->scope, op));
    if (n && strmap_put(&E->node_names, E->scope, ARENA_NEW(&E->arena, int)))
        return E->scope;
    return unique(E, &E->node_names, emit_format(E, "%s%s%s", E->scope, n ? "/" : "", op));
}

/* ---- nodes ---- */

Onnx__NodeProto *put_node(Emit *E, const char *op, const char *const *in, int nin, int nout) {
    Onnx__NodeProto *n = ARENA_NEW(&E->arena, Onnx__NodeProto);
    onnx__node_proto__init(n);
    n->op_type = arena_strdup(&E->arena, op);
    n->name = (char *)(uintptr_t)node_name(E, op);
    n->n_input = (size_t)nin;
    n->input = ARENA_ARRAY(&E->arena, char *, nin + 1);
    for (int i = 0; i < nin; i++)
        n->input[i] = (char *)(uintptr_t)in[i];
    n->n_output = (size_t)nout;
    n->output = ARENA_ARRAY(&E->arena, char *, nout + 1);
    for (int i = 0; i < nout; i++) {
        const char *base = nout == 1 ? n->name : emit_format(E, "%s:%d", n->name, i);
        n->output[i] = (char *)(uintptr_t)unique(E, &E->value_names, base);
        strmap_put(&E->producers, n->output[i], n);
    }
    vec_push(&E->nodes, n);
    return n;
}

enum { ATTRIBUTE_INT = 2, ATTRIBUTE_STRING = 3, ATTRIBUTE_INTS = 7 };

static Onnx__AttributeProto *new_attribute(Emit *E, Onnx__NodeProto *n, const char *name,
                                           int type) {
    Onnx__AttributeProto *a = ARENA_NEW(&E->arena, Onnx__AttributeProto);
    onnx__attribute_proto__init(a);
    a->name = arena_strdup(&E->arena, name);
    a->has_type = true;
    a->type = type;
    Onnx__AttributeProto **all = ARENA_ARRAY(&E->arena, Onnx__AttributeProto *, n->n_attribute + 1);
    for (size_t i = 0; i < n->n_attribute; i++)
        all[i] = n->attribute[i];
    all[n->n_attribute++] = a;
    n->attribute = all;
    return a;
}

Onnx__NodeProto *put_int(Emit *E, Onnx__NodeProto *n, const char *name, int64_t v) {
    Onnx__AttributeProto *a = new_attribute(E, n, name, ATTRIBUTE_INT);
    a->has_i = true;
    a->i = v;
    return n;
}

Onnx__NodeProto *put_ints(Emit *E, Onnx__NodeProto *n, const char *name, const int64_t *v,
                          int count) {
    Onnx__AttributeProto *a = new_attribute(E, n, name, ATTRIBUTE_INTS);
    a->n_ints = (size_t)count;
    a->ints = arena_copy(&E->arena, v, sizeof *v * (size_t)count);
    return n;
}

Onnx__NodeProto *put_str(Emit *E, Onnx__NodeProto *n, const char *name, const char *v) {
    Onnx__AttributeProto *a = new_attribute(E, n, name, ATTRIBUTE_STRING);
    a->has_s = true;
    a->s = (ProtobufCBinaryData){strlen(v), (uint8_t *)arena_strdup(&E->arena, v)};
    return n;
}

/* ---- constants ---- */

/* Equal for tensors of equal type, shape and bytes. */
static const char *content_key(Emit *E, const Tensor *t) {
    size_t bytes = tensor_bytes(t);
    const char *key = dtype_name(t->dtype);
    for (int i = 0; i < t->rank; i++)
        key = emit_format(E, "%s,%lld", key, (long long)t->dims[i]);
    return emit_format(E, "%s:%016llx%016llx", key,
                       (unsigned long long)hash_bytes(t->data, bytes, 1),
                       (unsigned long long)hash_bytes(t->data, bytes, 0x9e3779b97f4a7c15));
}

const char *put_tensor(Emit *E, const Tensor *t, const char *wish) {
    size_t bytes = tensor_bytes(t);
    const char *key = wish ? "" : content_key(E, t),
               *have = wish ? NULL : strmap_get(&E->constants, key);
    if (have)
        return have;
    Onnx__TensorProto *p = ARENA_NEW(&E->arena, Onnx__TensorProto);
    onnx__tensor_proto__init(p);
    p->name = (char *)(uintptr_t)(wish ? wish : unique(E, &E->value_names, "stgc/const"));
    p->n_dims = (size_t)t->rank;
    p->dims = arena_copy(&E->arena, t->dims, sizeof *t->dims * (size_t)t->rank);
    p->has_data_type = true;
    p->data_type = dtype_to_onnx(t->dtype);
    p->has_raw_data = true;
    p->raw_data = (ProtobufCBinaryData){bytes, t->data};
    vec_push(&E->initializers, p);
    if (!wish)
        strmap_put(&E->constants, key, p->name);
    return p->name;
}

const char *put_list(Emit *E, const int64_t *v, int n) {
    Tensor *t = tensor_new(&E->arena, DT_I64, 1, (int64_t[]){n});
    for (int i = 0; i < n; i++)
        tensor_set_i(t, i, v[i]);
    return put_tensor(E, t, NULL);
}

const char *put_i(Emit *E, int64_t v) {
    Tensor *t = tensor_new(&E->arena, DT_I64, 0, NULL);
    tensor_set_i(t, 0, v);
    return put_tensor(E, t, NULL);
}

const char *put_f(Emit *E, DType type, double v) {
    Tensor *t = tensor_new(&E->arena, type, 0, NULL);
    if (dtype_is_float(type))
        tensor_set_f(t, 0, v);
    else
        tensor_set_i(t, 0, (int64_t)v);
    return put_tensor(E, t, NULL);
}

const char *put_iota(Emit *E, int64_t n, int64_t div, int64_t mod, int rank, const int64_t *dims) {
    Tensor *t = tensor_new(&E->arena, DT_I64, rank, dims);
    for (int64_t i = 0; i < n; i++)
        tensor_set_i(t, i, mod ? i / div % mod : i / div);
    return put_tensor(E, t, NULL);
}

/* ---- spellings ---- */

const char *put_cast(Emit *E, const char *x, DType from, DType to) {
    return from == to
               ? x
               : put_int(E, put_node(E, "Cast", &x, 1, 1), "to", dtype_to_onnx(to))->output[0];
}

const char *put_reshape(Emit *E, const char *x, int rank, const int64_t *dims) {
    bool empty = false;
    for (int i = 0; i < rank; i++)
        empty |= dims[i] == 0;
    Onnx__NodeProto *n = put_node(E, "Reshape", (const char *[]){x, put_list(E, dims, rank)}, 2, 1);
    if (empty)
        put_int(E, n, "allowzero", 1);
    return n->output[0];
}

const char *put_transpose(Emit *E, const char *x, int rank, const int64_t *perm) {
    return put_ints(E, put_node(E, "Transpose", &x, 1, 1), "perm", perm, rank)->output[0];
}

const char *put_slice(Emit *E, const char *x, int axis, const char *start, const char *end) {
    return PUT(E, "Slice", x, start, end, PUT_LIST(E, axis));
}

const char *put_reduce(Emit *E, const char *op, const char *x, const int64_t *axes, int naxes,
                       bool keep) {
    if (!naxes)
        return x;
    Onnx__NodeProto *n;
    if (!strcmp(op, "ReduceSum") || E->o->opset >= 18)
        n = put_node(E, op, (const char *[]){x, put_list(E, axes, naxes)}, 2, 1);
    else
        n = put_ints(E, put_node(E, op, &x, 1, 1), "axes", axes, naxes);
    return put_int(E, n, "keepdims", keep)->output[0];
}

const char *put_scatter_add(Emit *E, const char *updates, const char *idx, DType t, int rank,
                            const int64_t *dims, int axis, int idx_rank, const int64_t *idx_dims) {
    /* ScatterND indexes leading axes: the scattered one goes first, and back. */
    int64_t to[2 * MAX_RANK], back[2 * MAX_RANK], front[MAX_RANK], places[MAX_RANK + 1];
    int wide = rank - 1 + idx_rank; /* rank of the updates: idx_dims stand at `axis` */
    for (int i = 0; i < idx_rank; i++)
        to[i] = axis + i;
    for (int i = 0, k = idx_rank; i < wide; i++)
        if (i < axis || i >= axis + idx_rank)
            to[k++] = i;
    front[0] = dims[axis];
    for (int i = 0, k = 1; i < rank; i++)
        if (i != axis)
            front[k++] = dims[i];
    for (int i = 0; i < rank; i++)
        back[i] = i < axis ? i + 1 : i == axis ? 0 : i;
    memcpy(places, idx_dims, sizeof *idx_dims * (size_t)idx_rank);
    places[idx_rank] = 1;
    if (axis)
        updates = put_transpose(E, updates, wide, to);
    const char *zeros = PUT(E, "Expand", put_f(E, t, 0), put_list(E, front, rank));
    Onnx__NodeProto *n =
        put_node(E, "ScatterND",
                 (const char *[]){zeros, put_reshape(E, idx, idx_rank + 1, places), updates}, 3, 1);
    const char *sum = put_str(E, n, "reduction", "add")->output[0];
    return axis ? put_transpose(E, sum, rank, back) : sum;
}

/* ---- operands and results ---- */

DType emit_compute_type(DType t) {
    switch (t) {
    case DT_F16:
    case DT_BF16:
        return DT_F32;
    case DT_BOOL:
    case DT_U8:
    case DT_I8:
    case DT_U16:
    case DT_I16:
        return DT_I32;
    case DT_U32:
        return DT_I64;
    default:
        return t;
    }
}

const char *emit_name(Emit *E, const Value *v) {
    if (!E->name[v->id] && E->pieces[v->id])
        E->name[v->id] = emit_join(E, v);
    if (!E->name[v->id])
        bug("value %d of %s has no ONNX name", v->id, op_info[v->def->op].name);
    return E->name[v->id];
}

const char *emit_as(Emit *E, const Value *v, DType t) {
    const char *x = emit_name(E, v);
    if (v->dtype == t)
        return x;
    void **slot = emit_memo(E, dtype_name(t), x);
    if (!*slot)
        *slot = (void *)(uintptr_t)put_cast(E, x, v->dtype, t);
    return *slot;
}

void emit_result(Emit *E, const Value *v, const char *name) {
    E->name[v->id] = name;
    bool ours = strmap_get(&E->producers, name) != NULL && !strmap_get(&E->final_names, name);
    if (ours && !E->stgc_layer[v->def->id] && v->name && *v->name &&
        strmap_put(&E->value_names, v->name, ARENA_NEW(&E->arena, int))) {
        const char **slot = ARENA_NEW(&E->arena, const char *);
        *slot = v->name;
        strmap_put(&E->final_names, name, slot);
    }
}

void emit_result_from(Emit *E, const Value *v, const char *name, DType computed) {
    emit_result(E, v, put_cast(E, name, computed, v->dtype));
}
