/* onnx_tensor.c: TensorProto -> Tensor, every count checked before a byte is copied. */
#include <stdlib.h>
#include <string.h>

#include "frontend/onnx_file.h"

enum {
    IMPORT_MAX_RANK = 16
}; /* of the format; ranks above MAX_RANK are refused with another message */
enum { ONNX_UINT4 = 21, ONNX_INT4 = 22 };
enum { SHARED_FROM = 4096 }; /* bytes of raw data worth sharing */

#define TENSOR_FAIL(d, code, t, what, ...) \
    (diag_error(d, code, __VA_ARGS__), \
     diag_more(d, "%s \"%s\"", what, diag_safe(d, text_or((t)->name, ""))), false)

static const char *onnx_type_name(int onnx) {
    static const char *const names[] = {
        "undefined",      "float",      "uint8",          "int8",       "uint16",   "int16",
        "int32",          "int64",      "string",         "bool",       "float16",  "double",
        "uint32",         "uint64",     "complex64",      "complex128", "bfloat16", "float8e4m3fn",
        "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz", "uint4",      "int4",     "float4e2m1",
        "float8e8m0",     "uint2",      "int2",
    };
    return onnx >= 0 && onnx < COUNT_OF(names) ? names[onnx] : "unknown";
}

/* Rank, dims and element count within the limits. */
static bool tensor_shape(const Onnx__TensorProto *t, Tensor *out, const char *what, Diag *d) {
    if (t->n_dims > IMPORT_MAX_RANK || t->n_dims > MAX_RANK)
        return TENSOR_FAIL(d, t->n_dims > IMPORT_MAX_RANK ? EXIT_MODEL : EXIT_RESOURCE, t, what,
                           "rank %zu; at most %d is supported", t->n_dims, MAX_RANK);
    out->rank = (int)t->n_dims;
    for (int i = 0; i < out->rank; i++) {
        out->dims[i] = t->dims[i];
        if (t->dims[i] < 0)
            return TENSOR_FAIL(d, EXIT_MODEL, t, what,
                               "dimension %d is %lld; it cannot be negative", i,
                               (long long)t->dims[i]);
    }
    if (dims_count(out->dims, out->rank) < 0)
        return TENSOR_FAIL(d, EXIT_RESOURCE, t, what, "the shape has more than 2^40 elements");
    return true;
}

/* Which field holds the elements of a type: one letter per field. */
static char typed_field(int onnx) {
    switch (onnx) {
    case 1:
        return 'f';
    case 11:
        return 'd';
    case 7:
        return 'l';
    case 12:
    case 13:
        return 'u';
    default:
        return 'i';
    }
}

/* The elements of the typed field into native storage; the count is right already. */
static void copy_typed(const Onnx__TensorProto *t, Tensor *out, int64_t count) {
    if (!count)
        return;
    switch (typed_field(t->data_type)) {
    case 'f':
        memcpy(out->data, t->float_data, (size_t)count * 4);
        return;
    case 'd':
        memcpy(out->data, t->double_data, (size_t)count * 8);
        return;
    case 'l':
        memcpy(out->data, t->int64_data, (size_t)count * 8);
        return;
    case 'u':
        for (int64_t i = 0; i < count; i++)
            tensor_set_i(out, i, (int64_t)t->uint64_data[i]);
        return;
    default: /* f16 and bf16 hold their bits in int32_data */
        for (int64_t i = 0; i < count; i++) {
            if (out->dtype == DT_F16 || out->dtype == DT_BF16)
                ((uint16_t *)out->data)[i] = (uint16_t)t->int32_data[i];
            else
                tensor_set_i(out, i, t->int32_data[i]);
        }
    }
}

static size_t typed_count(const Onnx__TensorProto *t) {
    switch (typed_field(t->data_type)) {
    case 'f':
        return t->n_float_data;
    case 'd':
        return t->n_double_data;
    case 'l':
        return t->n_int64_data;
    case 'u':
        return t->n_uint64_data;
    default:
        return t->n_int32_data;
    }
}

/* Two 4-bit numbers a byte, the low half first. */
static void unpack_4bit(Tensor *out, const uint8_t *packed, int64_t count, bool is_signed) {
    for (int64_t i = 0; i < count; i++) {
        int v = packed[i / 2] >> (i % 2 ? 4 : 0) & 15;
        ((uint8_t *)out->data)[i] = (uint8_t)(is_signed && v > 7 ? v - 16 : v);
    }
}

DType dtype_of_onnx(int onnx) {
    return onnx == ONNX_UINT4 ? DT_U8 : onnx == ONNX_INT4 ? DT_I8 : dtype_from_onnx(onnx);
}

static bool is_4bit(const Onnx__TensorProto *t) {
    return t->data_type == ONNX_UINT4 || t->data_type == ONNX_INT4;
}

/* Exactly one kind of storage, and the right one, with the right number of elements. *stored: raw
 * or external bytes. */
static bool tensor_storage(const Onnx__TensorProto *t, int64_t count, size_t bytes, bool *stored,
                           const char *what, Diag *d) {
    size_t typed = (t->n_float_data > 0) + (t->n_int32_data > 0) + (t->n_int64_data > 0) +
                   (t->n_double_data > 0) + (t->n_uint64_data > 0) + (t->n_string_data > 0);
    bool external = t->data_location == 1, raw = t->has_raw_data && t->raw_data.len > 0;
    if (t->segment)
        return TENSOR_FAIL(d, EXIT_MODEL, t, what, "segmented tensors are not supported");
    if (t->data_location != 0 && !external)
        return TENSOR_FAIL(d, EXIT_MODEL, t, what, "data_location %d is unknown", t->data_location);
    if (typed + raw + external > 1)
        return TENSOR_FAIL(d, EXIT_MODEL, t, what,
                           "its data are given more than once (raw_data, typed field, external); "
                           "expected one of them");
    if (!external && t->n_external_data)
        return TENSOR_FAIL(d, EXIT_MODEL, t, what,
                           "it has external_data entries but is not marked external");
    *stored = external || (t->has_raw_data && !typed);
    if (*stored && !external && t->raw_data.len != bytes)
        return TENSOR_FAIL(d, EXIT_MODEL, t, what,
                           "raw_data is %zu bytes; %s of its shape takes %zu", t->raw_data.len,
                           onnx_type_name(t->data_type), bytes);
    int64_t need = is_4bit(t) ? (count + 1) / 2 : count;
    if (!*stored && (int64_t)typed_count(t) != need)
        return TENSOR_FAIL(d, EXIT_MODEL, t, what,
                           "%zu elements are given; %s of its shape has %lld", typed_count(t),
                           onnx_type_name(t->data_type), (long long)need);
    return true;
}

Tensor *onnx_tensor(Arena *a, const Onnx__TensorProto *t, const char *what, ExternalFiles *files,
                    Diag *d) {
    Tensor shape = {0};
    shape.dtype = dtype_of_onnx(t->data_type);
    if (shape.dtype == DT_NONE) {
        (void)TENSOR_FAIL(d, EXIT_MODEL, t, what, "element type %d (%s) is not supported",
                          t->data_type, onnx_type_name(t->data_type));
        return NULL;
    }
    if (!tensor_shape(t, &shape, what, d))
        return NULL;
    int64_t count = dims_count(shape.dims, shape.rank);
    size_t bytes =
        is_4bit(t) ? (size_t)(count + 1) / 2 : (size_t)count * (size_t)dtype_bytes(shape.dtype);
    bool stored;
    ExternalSpan span;
    if (!tensor_storage(t, count, bytes, &stored, what, d))
        return NULL;
    if (t->data_location == 1 && !external_find(files, t, bytes, &span, d))
        return NULL;
    bool shared = files->share && stored && !is_4bit(t) && t->data_location != 1 &&
                  bytes >= SHARED_FROM && (uintptr_t)t->raw_data.data % 16 == 0;
    if (shared) {
        Tensor *view = ARENA_NEW(a, Tensor);
        *view = shape;
        view->data = t->raw_data.data;
        return view;
    }
    Tensor *out = tensor_new(a, shape.dtype, shape.rank, shape.dims);
    if (!stored && !is_4bit(t)) {
        copy_typed(t, out, count);
        return out;
    }
    uint8_t *to = is_4bit(t) ? arena_alloc(a, bytes) : out->data;
    if (t->data_location == 1) {
        if (!external_read(files, t, &span, bytes, to, d))
            return NULL;
    } else if (stored) {
        if (bytes)
            memcpy(to, t->raw_data.data, bytes);
    } else {
        for (size_t i = 0; i < bytes; i++)
            to[i] = (uint8_t)t->int32_data[i];
    }
    if (is_4bit(t))
        unpack_4bit(out, to, count, t->data_type == ONNX_INT4);
    return out;
}

Tensor *onnx_read_tensor(Arena *a, const char *path, const char **name, Diag *d) {
    size_t n;
    uint8_t *bytes = onnx_read_bytes(path, &n, NULL, d);
    if (!bytes)
        return NULL;
    WireLimits limits = {.max_nodes = 0, .max_heap = 4 * (int64_t)n + 268435456};
    Tensor *out = NULL;
    if (wire_scan(bytes, n, &onnx__tensor_proto__descriptor, &limits, d)) {
        Onnx__TensorProto *t = onnx__tensor_proto__unpack(NULL, n, bytes);
        ExternalFiles none;
        external_init(&none, NULL);
        if (t) {
            out = onnx_tensor(a, t, "tensor file", &none, d);
            if (name)
                *name = arena_strdup(a, text_or(t->name, ""));
        } else {
            diag_error(d, EXIT_DATA, "%s: not a serialized tensor", diag_safe(d, path));
        }
        onnx__tensor_proto__free_unpacked(t, NULL);
    }
    free(bytes);
    return out;
}
