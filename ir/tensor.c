/* tensor.c: element types and constant tensors. See tensor.h. */
#include "ir/tensor.h"

#include <math.h>
#include <string.h>

__extension__ typedef _Float16 half; /* ISO C17 has no name for it */

static const struct {
    const char *name;
    int bytes;
    bool is_float;
    int onnx;
} types[DT_COUNT] = {
    [DT_NONE] = {"none", 0, false, 0},
#define X(N, t, b, f, o) [DT_##N] = {t, b, f, o},
    DTYPES(X)
#undef X
};

const char *dtype_name(DType t) {
    return types[t].name;
}
int dtype_bytes(DType t) {
    return types[t].bytes;
}
bool dtype_is_float(DType t) {
    return types[t].is_float;
}
int dtype_to_onnx(DType t) {
    return types[t].onnx;
}

DType dtype_from_onnx(int onnx) {
    for (int t = 1; t < DT_COUNT; t++)
        if (types[t].onnx == onnx)
            return (DType)t;
    return DT_NONE;
}

DType dtype_parse(const char *text) {
    for (int t = 1; t < DT_COUNT; t++)
        if (!strcmp(types[t].name, text))
            return (DType)t;
    return DT_NONE;
}

int64_t dims_count(const int64_t *dims, int rank) {
    int64_t n = 1;
    bool zero = false;
    for (int i = 0; i < rank; i++) {
        if (dims[i] < 0)
            return -1;
        if (dims[i] == 0)
            zero = true;
        else if (__builtin_mul_overflow(n, dims[i], &n) || n > (INT64_C(1) << 40))
            return -1;
    }
    return zero ? 0 : n;
}

int64_t tensor_count(const Tensor *t) {
    return dims_count(t->dims, t->rank);
}

size_t tensor_bytes(const Tensor *t) {
    return (size_t)tensor_count(t) * (size_t)dtype_bytes(t->dtype);
}

Tensor *tensor_new(Arena *a, DType dtype, int rank, const int64_t *dims) {
    Tensor *t = ARENA_NEW(a, Tensor);
    t->dtype = dtype;
    t->rank = rank;
    for (int i = 0; i < rank; i++)
        t->dims[i] = dims[i];
    ASSERT(tensor_count(t) >= 0);
    t->data = arena_alloc(a, tensor_bytes(t));
    return t;
}

/* ---- 16-bit floats ---- */

float f16_to_f32(uint16_t h) {
    half v;
    memcpy(&v, &h, sizeof v);
    return (float)v;
}

uint16_t f32_to_f16(float f) {
    half v = (half)f; /* rounds to nearest even */
    uint16_t h;
    memcpy(&h, &v, sizeof h);
    return h;
}

float bf16_to_f32(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

uint16_t f32_to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if (isnan(f))
        return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

/* ---- elements ---- */

#define INT_TYPES(X)                                                                               \
    X(U8, uint8_t)                                                                                 \
    X(I8, int8_t)                                                                                  \
    X(U16, uint16_t)                                                                               \
    X(I16, int16_t)                                                                                \
    X(I32, int32_t)                                                                                \
    X(I64, int64_t)                                                                                \
    X(U32, uint32_t)                                                                               \
    X(U64, uint64_t)                                                                               \
    X(BOOL, uint8_t)

double tensor_get_f(const Tensor *t, int64_t i) {
    switch (t->dtype) {
    case DT_F32:
        return ((const float *)t->data)[i];
    case DT_F64:
        return ((const double *)t->data)[i];
    case DT_F16:
        return f16_to_f32(((const uint16_t *)t->data)[i]);
    case DT_BF16:
        return bf16_to_f32(((const uint16_t *)t->data)[i]);
#define X(N, C)                                                                                    \
    case DT_##N:                                                                                   \
        return (double)((const C *)t->data)[i];
        INT_TYPES(X)
#undef X
    default:
        bug("tensor of type %d", t->dtype);
    }
}

/* C's conversion is undefined outside the range: saturate, NaN gives 0. */
static int64_t double_to_i64(double v) {
    if (isnan(v))
        return 0;
    if (v >= 9223372036854775808.0)
        return INT64_MAX;
    if (v < -9223372036854775808.0)
        return INT64_MIN;
    return (int64_t)v;
}

int64_t tensor_get_i(const Tensor *t, int64_t i) {
    switch (t->dtype) {
#define X(N, C)                                                                                    \
    case DT_##N:                                                                                   \
        return (int64_t)((const C *)t->data)[i];
        INT_TYPES(X)
#undef X
    default:
        return double_to_i64(tensor_get_f(t, i));
    }
}

void tensor_set_i(Tensor *t, int64_t i, int64_t v) {
    switch (t->dtype) {
    case DT_BOOL:
        ((uint8_t *)t->data)[i] = v != 0;
        break;
#define X(N, C)                                                                                    \
    case DT_##N:                                                                                   \
        ((C *)t->data)[i] = (C)v;                                                                  \
        break;
        X(U8, uint8_t)
        X(I8, int8_t)
        X(U16, uint16_t)
        X(I16, int16_t)
        X(I32, int32_t)
        X(I64, int64_t)
        X(U32, uint32_t)
        X(U64, uint64_t)
#undef X
    default:
        tensor_set_f(t, i, (double)v);
    }
}

void tensor_set_f(Tensor *t, int64_t i, double v) {
    switch (t->dtype) {
    case DT_F32:
        ((float *)t->data)[i] = (float)v;
        break;
    case DT_F64:
        ((double *)t->data)[i] = v;
        break;
    case DT_F16: /* through double: one rounding */
    {
        half h = (half)v;
        memcpy((uint16_t *)t->data + i, &h, sizeof h);
        break;
    }
    case DT_BF16:
        ((uint16_t *)t->data)[i] = f32_to_bf16((float)v);
        break;
    case DT_BOOL:
        ((uint8_t *)t->data)[i] = v != 0;
        break;
    default:
        tensor_set_i(t, i, double_to_i64(v));
    }
}

bool tensor_equal(const Tensor *a, const Tensor *b) {
    return a->dtype == b->dtype && a->rank == b->rank &&
           !memcmp(a->dims, b->dims, sizeof a->dims[0] * (size_t)a->rank) &&
           !memcmp(a->data, b->data, tensor_bytes(a));
}
