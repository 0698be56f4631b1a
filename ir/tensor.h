/* tensor.h: element types, shapes, and constant tensors in their storage type. */
#ifndef STGCC_IR_TENSOR_H
#define STGCC_IR_TENSOR_H

#include "ir/base.h"

#define MAX_RANK 8 /* of anything computed with; importers refuse more */

/* X(NAME, text, bytes per element, is float, ONNX TensorProto.DataType). 4-bit types are unpacked
 * to int8/uint8 on import. */
#define DTYPES(X) \
    X(F32, "f32", 4, true, 1) \
    X(U8, "u8", 1, false, 2) \
    X(I8, "i8", 1, false, 3) \
    X(U16, "u16", 2, false, 4) \
    X(I16, "i16", 2, false, 5) \
    X(I32, "i32", 4, false, 6) \
    X(I64, "i64", 8, false, 7) \
    X(BOOL, "bool", 1, false, 9) \
    X(F16, "f16", 2, true, 10) \
    X(F64, "f64", 8, true, 11) \
    X(U32, "u32", 4, false, 12) \
    X(U64, "u64", 8, false, 13) \
    X(BF16, "bf16", 2, true, 16)

typedef enum {
    DT_NONE,
#define X(N, t, b, f, o) DT_##N,
    DTYPES(X)
#undef X
        DT_COUNT,
} DType;

const char *dtype_name(DType t);
int dtype_bytes(DType t);
bool dtype_is_float(DType t);
DType dtype_from_onnx(int onnx); /* DT_NONE if unknown */
int dtype_to_onnx(DType t);
DType dtype_parse(const char *text); /* "f32" -> DT_F32 */

/* A constant in native storage, row-major, little-endian. Memory belongs to whoever made it
 * (usually the Graph's arena). */
typedef struct Tensor {
    DType dtype;
    int rank;
    int64_t dims[MAX_RANK];
    void *data; /* dtype_bytes(dtype) * tensor_count bytes */
} Tensor;

/* Product of dims; -1 if it (or the byte size) overflows 2^40 or a dim is negative. */
int64_t dims_count(const int64_t *dims, int rank);
int64_t tensor_count(const Tensor *t);
size_t tensor_bytes(const Tensor *t);
Tensor *tensor_new(Arena *a, DType t, int rank, const int64_t *dims); /* zeroed */
/* One element as double / int64 (values convert; f16 and bf16 widen). */
double tensor_get_f(const Tensor *t, int64_t i);
int64_t tensor_get_i(const Tensor *t, int64_t i);
/* Stores, rounding to the tensor's type (ties to even for floats; integers wrap; bool is != 0). */
void tensor_set_f(Tensor *t, int64_t i, double v);
void tensor_set_i(Tensor *t, int64_t i, int64_t v);
bool tensor_equal(const Tensor *a, const Tensor *b); /* bit-wise, with type and shape */

float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float f);
float bf16_to_f32(uint16_t h);
uint16_t f32_to_bf16(float f);

#endif
