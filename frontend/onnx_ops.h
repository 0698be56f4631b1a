/* onnx_ops.h: the readers, by family, and the compositions that several of them use. The table is
 * onnx_table.c. */
#ifndef STGCC_FRONTEND_ONNX_OPS_H
#define STGCC_FRONTEND_ONNX_OPS_H

#include "frontend/onnx_emit.h"

/* onnx_op_elem.c */
OpReader read_unary, read_binary, read_swapped, read_variadic, read_mean, read_where, read_cast,
    read_cast_like, read_clip, read_identity, read_dropout, read_pow, read_mod, read_isinf,
    read_logic_not;
/* onnx_op_activation.c */
OpReader read_activation, read_bias_gelu, read_prelu;
enum {
    ACT_RELU,
    ACT_LEAKY_RELU,
    ACT_ELU,
    ACT_SELU,
    ACT_CELU,
    ACT_HARD_SIGMOID,
    ACT_HARD_SWISH,
    ACT_SOFTSIGN,
    ACT_THRESHOLDED,
    ACT_SWISH,
    ACT_MISH,
    ACT_GELU,
    ACT_QUICK_GELU,
    ACT_FAST_GELU,
    ACT_TAN,
    ACT_SINH,
    ACT_COSH,
    ACT_ASINH,
    ACT_ACOSH,
    ACT_ATANH,
    ACT_SHRINK,
    ACT_ATAN,
    ACT_ASIN,
    ACT_ACOS,
};
Value *em_silu(OpCall *c, Value *x, double alpha); /* x * sigmoid(alpha x) */
Value *em_gelu(OpCall *c, Value *x);
Value *em_gelu_tanh(OpCall *c, Value *x);
Value *em_relu(OpCall *c, Value *x);
Value *em_leaky_relu(OpCall *c, Value *x, double alpha);
/* onnx_op_shape.c */
OpReader read_reshape, read_shape, read_size, read_squeeze, read_unsqueeze, read_flatten,
    read_transpose, read_expand, read_tile, read_concat, read_split, read_slice, read_constant,
    read_constant_of_shape, read_range, read_pad, read_eye_like, read_trilu, read_depth_to_space,
    read_space_to_depth;
/* onnx_op_index.c */
OpReader read_gather, read_gather_elements, read_gather_nd, read_scatter_elements, read_scatter_nd,
    read_one_hot, read_nonzero, read_topk, read_argmax, read_tensor_scatter, read_reverse_sequence,
    read_compress;
/* onnx_op_reduce.c */
OpReader read_reduce, read_cumsum, read_softmax, read_hardmax, read_matmul, read_gemm,
    read_fused_matmul, read_fused_gemm, read_softmax_loss, read_nll_loss;
enum {
    RED_SUM,
    RED_MEAN,
    RED_MAX,
    RED_MIN,
    RED_PROD,
    RED_L1,
    RED_L2,
    RED_LOG_SUM,
    RED_LOG_SUM_EXP,
    RED_SUM_SQUARE
};
/* Mean of x over axes (kept). */
Value *em_mean(OpCall *c, Value *x, const int64_t *axes, int n, bool keep);
/* onnx_op_norm.c */
OpReader read_layer_norm, read_rms_norm, read_skip_norm, read_batch_norm, read_instance_norm,
    read_group_norm, read_lp_norm, read_mean_variance_norm;
/* onnx_op_conv.c */
OpReader read_conv, read_conv_transpose, read_pool, read_global_pool, read_resize;
enum { POOL_MAX, POOL_AVERAGE, POOL_LP };
/* onnx_op_attention.c */
OpReader read_attention, read_multi_head_attention, read_rotary, read_rotary_microsoft,
    read_group_query_attention, read_attention_microsoft;
/* onnx_op_random.c */
OpReader read_random;
/* onnx_op_moe.c */
OpReader read_moe, read_qmoe;
/* onnx_op_einsum.c */
OpReader read_einsum;
/* onnx_op_control.c */
OpReader read_if, read_split_to_sequence, read_sequence_at, read_sequence_construct,
    read_sequence_length, read_concat_from_sequence, read_sequence_insert, read_sequence_erase,
    read_optional, read_optional_get, read_optional_has;
/* onnx_op_quantize.c */
OpReader read_quantize, read_dequantize, read_dynamic_quantize, read_matmul_integer,
    read_qlinear_matmul;
/* onnx_op_packed.c */
OpReader read_matmul_nbits, read_gather_block_quantized;
/* Rows of `k` numbers of `bits` bits, in blocks that have a scale and perhaps a zero point each. */
typedef struct Packed {
    const Tensor *q, *scale, *zero; /* zero NULL: 2^(bits-1) */
    int64_t rows, k;
    int64_t block;     /* 0: a row is one block; then zeros are packed in runs of zero_run rows */
    int64_t row_bytes; /* 0: as many as k numbers take */
    int64_t zero_run;
    int bits;
    DType type; /* of the result, [dims] */
    int rank;
    int64_t dims[MAX_RANK];
} Packed;
Tensor *em_unpack(OpCall *c, const Packed *p);
/* Operand i, which must be constant; NULL: absent. `what` for messages, plural. */
const Tensor *em_packed(OpCall *c, int i, const char *what);
/* onnx_op_loop.c */
OpReader read_loop, read_scan, read_scan_batched;
/* onnx_op_training.c */
OpReader read_optimizer, read_gradient;
enum { OPTIM_ADAGRAD, OPTIM_ADAM, OPTIM_MOMENTUM };

#endif
