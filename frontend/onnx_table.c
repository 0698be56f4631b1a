/* onnx_table.c: the one table of ONNX operators: how each spelling is read. A new spelling of an
 * operator is one row here.
 *
 * Columns: domain, name, opset versions from..to of the domain, inputs min..max, outputs min..max
 * (-1: any), reader, what the reader needs to know, and the attributes a node may carry
 * ("name:type", `!` required). Rows of one name lie together. */
#include <string.h>

#include "frontend/onnx_ops.h"

#define ONNX(name, since, ...) \
    { "", name, since, OPSET_LATEST, __VA_ARGS__ }
#define MS(name, ...) \
    { "com.microsoft", name, 1, 1, __VA_ARGS__ }
#define UNARY(name, since, op) ONNX(name, since, 1, 1, 1, 1, read_unary, op, "")
#define BINARY(name, since, op) ONNX(name, since, 2, 2, 1, 1, read_binary, op, "")
#define ACT(name, since, act, attrs) ONNX(name, since, 1, 1, 1, 1, read_activation, act, attrs)
#define REDUCE(name, kind) \
    {"", \
     name, \
     1, \
     17, \
     1, \
     2, \
     1, \
     1, \
     read_reduce, \
     kind, \
     "axes:ints keepdims:int noop_with_empty_axes:int"}, \
    { \
        "", name, 18, OPSET_LATEST, 1, 2, 1, 1, read_reduce, kind, \
            "keepdims:int noop_with_empty_axes:int" \
    }
#define CONV_ATTRS "auto_pad:string dilations:ints kernel_shape:ints pads:ints strides:ints"

/* clang-format off */
const OpRow op_rows[] = {
    /* elementwise */
    UNARY("Abs", 6, OP_ABS),
    UNARY("Ceil", 6, OP_CEIL),
    UNARY("Cos", 7, OP_COS),
    UNARY("Erf", 9, OP_ERF),
    UNARY("Exp", 6, OP_EXP),
    UNARY("Floor", 6, OP_FLOOR),
    UNARY("IsNaN", 9, OP_ISNAN),
    UNARY("Log", 6, OP_LOG),
    UNARY("Neg", 6, OP_NEG),
    UNARY("Reciprocal", 6, OP_RECIP),
    UNARY("Round", 11, OP_ROUND),
    UNARY("Sigmoid", 6, OP_SIGMOID),
    UNARY("Sign", 9, OP_SIGN),
    UNARY("Sin", 7, OP_SIN),
    UNARY("Softplus", 1, OP_SOFTPLUS),
    UNARY("Sqrt", 6, OP_SQRT),
    UNARY("Tanh", 6, OP_TANH),
    BINARY("Add", 7, OP_ADD),
    BINARY("Sub", 7, OP_SUB),
    BINARY("Mul", 7, OP_MUL),
    BINARY("Div", 7, OP_DIV),
    BINARY("And", 7, OP_AND),
    BINARY("Or", 7, OP_OR),
    BINARY("Xor", 7, OP_XOR),
    BINARY("Equal", 7, OP_EQ),
    BINARY("Less", 7, OP_LT),
    BINARY("LessOrEqual", 12, OP_LE),
    ONNX("Greater", 7, 2, 2, 1, 1, read_swapped, OP_LT, ""),
    ONNX("GreaterOrEqual", 12, 2, 2, 1, 1, read_swapped, OP_LE, ""),
    ONNX("Not", 1, 1, 1, 1, 1, read_logic_not, 0, ""),
    ONNX("IsInf", 10, 1, 1, 1, 1, read_isinf, 0, "detect_negative:int detect_positive:int"),
    ONNX("Mod", 10, 2, 2, 1, 1, read_mod, 0, "fmod:int"),
    ONNX("Pow", 7, 2, 2, 1, 1, read_pow, 0, ""),
    ONNX("Max", 8, 1, -1, 1, 1, read_variadic, OP_MAX, ""),
    ONNX("Min", 8, 1, -1, 1, 1, read_variadic, OP_MIN, ""),
    ONNX("Sum", 8, 1, -1, 1, 1, read_variadic, OP_ADD, ""),
    ONNX("Mean", 8, 1, -1, 1, 1, read_mean, 0, ""),
    ONNX("Where", 9, 3, 3, 1, 1, read_where, 0, ""),
    ONNX("Cast", 6, 1, 1, 1, 1, read_cast, 0, "to:int! saturate:int round_mode:string"),
    ONNX("CastLike", 15, 2, 2, 1, 1, read_cast_like, 0, "saturate:int round_mode:string"),
    {"", "Clip", 6, 10, 1, 1, 1, 1, read_clip, 0, "min:float max:float"},
    ONNX("Clip", 11, 1, 3, 1, 1, read_clip, 0, ""),
    ONNX("Identity", 1, 1, 1, 1, 1, read_identity, 0, ""),
    {"", "Dropout", 1, 6, 1, 1, 1, 2, read_dropout, 0, "is_test:int ratio:float consumed_inputs:ints"},
    {"", "Dropout", 7, 11, 1, 1, 1, 2, read_dropout, 0, "ratio:float"},
    ONNX("Dropout", 12, 1, 3, 1, 2, read_dropout, 0, "seed:int"),
    /* activations */
    ACT("Relu", 6, ACT_RELU, ""),
    ACT("LeakyRelu", 6, ACT_LEAKY_RELU, "alpha:float"),
    ACT("Elu", 6, ACT_ELU, "alpha:float"),
    ACT("Selu", 6, ACT_SELU, "alpha:float gamma:float"),
    ACT("Celu", 12, ACT_CELU, "alpha:float"),
    ACT("HardSigmoid", 6, ACT_HARD_SIGMOID, "alpha:float beta:float"),
    ACT("HardSwish", 14, ACT_HARD_SWISH, ""),
    ACT("Softsign", 1, ACT_SOFTSIGN, ""),
    ACT("ThresholdedRelu", 10, ACT_THRESHOLDED, "alpha:float"),
    ACT("Swish", 24, ACT_SWISH, "alpha:float"),
    ACT("Mish", 18, ACT_MISH, ""),
    ACT("Gelu", 20, ACT_GELU, "approximate:string"),
    ACT("Tan", 7, ACT_TAN, ""),
    ACT("Asinh", 9, ACT_ASINH, ""),
    ACT("Acosh", 9, ACT_ACOSH, ""),
    ACT("Atanh", 9, ACT_ATANH, ""),
    ACT("Shrink", 9, ACT_SHRINK, "bias:float lambd:float"),
    ACT("Sinh", 9, ACT_SINH, ""),
    ACT("Atan", 7, ACT_ATAN, ""),
    ACT("Asin", 7, ACT_ASIN, ""),
    ACT("Acos", 7, ACT_ACOS, ""),
    ACT("Cosh", 9, ACT_COSH, ""),
    ONNX("PRelu", 7, 2, 2, 1, 1, read_prelu, 0, ""),
    MS("Gelu", 1, 1, 1, 1, read_activation, ACT_GELU, ""),
    MS("QuickGelu", 1, 1, 1, 1, read_activation, ACT_QUICK_GELU, "alpha:float"),
    MS("FastGelu", 1, 2, 1, 1, read_activation, ACT_FAST_GELU, ""),
    MS("BiasGelu", 2, 2, 1, 1, read_bias_gelu, 0, ""),
    /* shape */
    {"", "Reshape", 1, 4, 1, 1, 1, 1, read_reshape, 0, "shape:ints! consumed_inputs:ints"},
    ONNX("Reshape", 5, 2, 2, 1, 1, read_reshape, 0, "allowzero:int"),
    ONNX("Shape", 1, 1, 1, 1, 1, read_shape, 0, "start:int end:int"),
    ONNX("Size", 1, 1, 1, 1, 1, read_size, 0, ""),
    {"", "Squeeze", 1, 12, 1, 1, 1, 1, read_squeeze, 0, "axes:ints"},
    ONNX("Squeeze", 13, 1, 2, 1, 1, read_squeeze, 0, ""),
    {"", "Unsqueeze", 1, 12, 1, 1, 1, 1, read_unsqueeze, 0, "axes:ints!"},
    ONNX("Unsqueeze", 13, 2, 2, 1, 1, read_unsqueeze, 0, ""),
    ONNX("Flatten", 1, 1, 1, 1, 1, read_flatten, 0, "axis:int"),
    ONNX("Transpose", 1, 1, 1, 1, 1, read_transpose, 0, "perm:ints"),
    ONNX("Expand", 8, 2, 2, 1, 1, read_expand, 0, ""),
    ONNX("Tile", 6, 2, 2, 1, 1, read_tile, 0, ""),
    ONNX("Concat", 4, 1, -1, 1, 1, read_concat, 0, "axis:int!"),
    {"", "Split", 2, 12, 1, 1, 1, -1, read_split, 0, "axis:int split:ints"},
    {"", "Split", 13, 17, 1, 2, 1, -1, read_split, 0, "axis:int"},
    ONNX("Split", 18, 1, 2, 1, -1, read_split, 0, "axis:int num_outputs:int"),
    {"", "Slice", 1, 9, 1, 1, 1, 1, read_slice, 0, "axes:ints starts:ints! ends:ints!"},
    ONNX("Slice", 10, 3, 5, 1, 1, read_slice, 0, ""),
    ONNX("Constant", 1, 0, 0, 1, 1, read_constant, 0,
         "value:tensor value_float:float value_int:int value_floats:floats value_ints:ints"),
    ONNX("ConstantOfShape", 9, 1, 1, 1, 1, read_constant_of_shape, 0, "value:tensor"),
    ONNX("Range", 11, 3, 3, 1, 1, read_range, 0, "stash_type:int"),
    {"", "Pad", 2, 10, 1, 1, 1, 1, read_pad, 0, "mode:string pads:ints! value:float"},
    ONNX("Pad", 11, 2, 4, 1, 1, read_pad, 0, "mode:string"),
    ONNX("EyeLike", 9, 1, 1, 1, 1, read_eye_like, 0, "dtype:int k:int"),
    ONNX("Trilu", 14, 1, 2, 1, 1, read_trilu, 0, "upper:int"),
    ONNX("DepthToSpace", 1, 1, 1, 1, 1, read_depth_to_space, 0, "blocksize:int! mode:string"),
    ONNX("SpaceToDepth", 1, 1, 1, 1, 1, read_space_to_depth, 0, "blocksize:int! mode:string"),
    /* index */
    ONNX("Gather", 1, 2, 2, 1, 1, read_gather, 0, "axis:int"),
    ONNX("GatherElements", 11, 2, 2, 1, 1, read_gather_elements, 0, "axis:int"),
    ONNX("GatherND", 11, 2, 2, 1, 1, read_gather_nd, 0, "batch_dims:int"),
    ONNX("Scatter", 9, 3, 3, 1, 1, read_scatter_elements, 0, "axis:int"),
    ONNX("ScatterElements", 11, 3, 3, 1, 1, read_scatter_elements, 0, "axis:int reduction:string"),
    ONNX("ScatterND", 11, 3, 3, 1, 1, read_scatter_nd, 0, "reduction:string"),
    ONNX("OneHot", 9, 3, 3, 1, 1, read_one_hot, 0, "axis:int"),
    ONNX("NonZero", 9, 1, 1, 1, 1, read_nonzero, 0, ""),
    {"", "TopK", 1, 9, 1, 1, 1, 2, read_topk, 0, "axis:int k:int!"},
    ONNX("TopK", 10, 2, 2, 1, 2, read_topk, 0, "axis:int largest:int sorted:int"),
    ONNX("ArgMax", 1, 1, 1, 1, 1, read_argmax, 1, "axis:int keepdims:int select_last_index:int"),
    ONNX("ArgMin", 1, 1, 1, 1, 1, read_argmax, 0, "axis:int keepdims:int select_last_index:int"),
    ONNX("TensorScatter", 24, 2, 3, 1, 1, read_tensor_scatter, 0, "axis:int mode:string"),
    ONNX("ReverseSequence", 10, 2, 2, 1, 1, read_reverse_sequence, 0, "batch_axis:int time_axis:int"),
    ONNX("Compress", 9, 2, 2, 1, 1, read_compress, 0, "axis:int"),
    /* random numbers */
    ONNX("RandomNormal", 1, 0, 0, 1, 1, read_random, 1, "dtype:int mean:float scale:float seed:float shape:ints!"),
    ONNX("RandomUniform", 1, 0, 0, 1, 1, read_random, 0, "dtype:int low:float high:float seed:float shape:ints!"),
    ONNX("RandomNormalLike", 1, 1, 1, 1, 1, read_random, 1, "dtype:int mean:float scale:float seed:float"),
    ONNX("RandomUniformLike", 1, 1, 1, 1, 1, read_random, 0, "dtype:int low:float high:float seed:float"),
    /* reductions and products */
    {"", "ReduceSum", 1, 12, 1, 1, 1, 1, read_reduce, RED_SUM, "axes:ints keepdims:int"},
    ONNX("ReduceSum", 13, 1, 2, 1, 1, read_reduce, RED_SUM, "keepdims:int noop_with_empty_axes:int"),
    REDUCE("ReduceMean", RED_MEAN),
    REDUCE("ReduceMax", RED_MAX),
    REDUCE("ReduceMin", RED_MIN),
    REDUCE("ReduceProd", RED_PROD),
    REDUCE("ReduceL1", RED_L1),
    REDUCE("ReduceL2", RED_L2),
    REDUCE("ReduceLogSum", RED_LOG_SUM),
    REDUCE("ReduceLogSumExp", RED_LOG_SUM_EXP),
    REDUCE("ReduceSumSquare", RED_SUM_SQUARE),
    ONNX("CumSum", 11, 2, 2, 1, 1, read_cumsum, 0, "exclusive:int reverse:int"),
    ONNX("Softmax", 1, 1, 1, 1, 1, read_softmax, OP_SOFTMAX, "axis:int"),
    ONNX("Hardmax", 1, 1, 1, 1, 1, read_hardmax, 0, "axis:int"),
    ONNX("LogSoftmax", 1, 1, 1, 1, 1, read_softmax, OP_LOG_SOFTMAX, "axis:int"),
    ONNX("MatMul", 1, 2, 2, 1, 1, read_matmul, 0, ""),
    ONNX("Gemm", 7, 2, 3, 1, 1, read_gemm, 0, "alpha:float beta:float transA:int transB:int"),
    MS("FusedMatMul", 2, 2, 1, 1, read_fused_matmul, 0,
       "alpha:float transA:int transB:int transBatchA:int transBatchB:int"),
    MS("FusedGemm", 2, 3, 1, 1, read_fused_gemm, 0,
       "activation:string activation_alpha:float activation_beta:float activation_gamma:float alpha:float beta:float "
       "transA:int transB:int"),
    ONNX("Einsum", 12, 1, -1, 1, 1, read_einsum, 0, "equation:string!"),
    ONNX("NegativeLogLikelihoodLoss", 12, 2, 3, 1, 1, read_nll_loss, 0, "ignore_index:int reduction:string"),
    ONNX("SoftmaxCrossEntropyLoss", 12, 2, 3, 1, 2, read_softmax_loss, 0, "ignore_index:int reduction:string"),
    /* normalisation */
    ONNX("LayerNormalization", 1, 2, 3, 1, 3, read_layer_norm, 0, "axis:int epsilon:float stash_type:int"),
    ONNX("RMSNormalization", 23, 2, 2, 1, 1, read_rms_norm, 0, "axis:int epsilon:float stash_type:int"),
    ONNX("SimplifiedLayerNormalization", 1, 2, 2, 1, 2, read_rms_norm, 0, "axis:int epsilon:float stash_type:int"),
    MS("SimplifiedLayerNormalization", 2, 2, 1, 2, read_rms_norm, 0, "axis:int epsilon:float stash_type:int"),
    MS("LayerNormalization", 2, 3, 1, 3, read_layer_norm, 0, "axis:int epsilon:float stash_type:int"),
    MS("SkipLayerNormalization", 3, 5, 1, 4, read_skip_norm, 0, "epsilon:float"),
    MS("SkipSimplifiedLayerNormalization", 3, 4, 1, 4, read_skip_norm, 1, "epsilon:float"),
    {"", "BatchNormalization", 7, 8, 5, 5, 1, 1, read_batch_norm, 0, "epsilon:float momentum:float spatial:int"},
    {"", "BatchNormalization", 9, 13, 5, 5, 1, 1, read_batch_norm, 0, "epsilon:float momentum:float"},
    ONNX("BatchNormalization", 14, 5, 5, 1, 3, read_batch_norm, 0, "epsilon:float momentum:float training_mode:int"),
    ONNX("InstanceNormalization", 6, 3, 3, 1, 1, read_instance_norm, 0, "epsilon:float"),
    ONNX("GroupNormalization", 18, 3, 3, 1, 1, read_group_norm, 0, "epsilon:float num_groups:int! stash_type:int"),
    ONNX("MeanVarianceNormalization", 9, 1, 1, 1, 1, read_mean_variance_norm, 0, "axes:ints"),
    ONNX("LpNormalization", 1, 1, 1, 1, 1, read_lp_norm, 0, "axis:int p:int"),
    /* convolution, pooling, resizing */
    ONNX("Conv", 1, 2, 3, 1, 1, read_conv, 0, CONV_ATTRS " group:int"),
    ONNX("ConvTranspose", 1, 2, 3, 1, 1, read_conv_transpose, 0, CONV_ATTRS " group:int output_padding:ints output_shape:ints"),
    ONNX("MaxPool", 1, 1, 1, 1, 2, read_pool, POOL_MAX, CONV_ATTRS " ceil_mode:int storage_order:int"),
    ONNX("AveragePool", 1, 1, 1, 1, 1, read_pool, POOL_AVERAGE, CONV_ATTRS " ceil_mode:int count_include_pad:int"),
    ONNX("LpPool", 2, 1, 1, 1, 1, read_pool, POOL_LP, CONV_ATTRS " ceil_mode:int p:int"),
    ONNX("GlobalAveragePool", 1, 1, 1, 1, 1, read_global_pool, POOL_AVERAGE, ""),
    ONNX("GlobalMaxPool", 1, 1, 1, 1, 1, read_global_pool, POOL_MAX, ""),
    {"", "Resize", 10, 10, 2, 2, 1, 1, read_resize, 0, "mode:string"},
    ONNX("Resize", 11, 1, 4, 1, 1, read_resize, 0,
         "antialias:int axes:ints coordinate_transformation_mode:string cubic_coeff_a:float exclude_outside:int "
         "extrapolation_value:float keep_aspect_ratio_policy:string mode:string nearest_mode:string"),
    {"", "Upsample", 9, 9, 2, 2, 1, 1, read_resize, 0, "mode:string"},
    /* quantised tensors, forward */
    ONNX("DequantizeLinear", 10, 2, 3, 1, 1, read_dequantize, 0, "axis:int block_size:int output_dtype:int"),
    ONNX("QuantizeLinear", 10, 2, 3, 1, 1, read_quantize, 0, "axis:int block_size:int output_dtype:int precision:int saturate:int"),
    {"com.microsoft", "DequantizeLinear", 1, 1, 2, 3, 1, 1, read_dequantize, 0, "axis:int block_size:int"},
    {"com.microsoft", "QuantizeLinear", 1, 1, 2, 3, 1, 1, read_quantize, 0, "axis:int block_size:int"},
    ONNX("DynamicQuantizeLinear", 11, 1, 1, 1, 3, read_dynamic_quantize, 0, ""),
    ONNX("MatMulInteger", 10, 2, 4, 1, 1, read_matmul_integer, 0, ""),
    ONNX("QLinearMatMul", 10, 8, 8, 1, 1, read_qlinear_matmul, 0, ""),
    MS("MatMulNBits", 3, 6, 1, 1, read_matmul_nbits, 0,
       "K:int! N:int! accuracy_level:int bits:int block_size:int! weight_prepacked:int"),
    MS("GatherBlockQuantized", 3, 4, 1, 1, read_gather_block_quantized, 0,
       "bits:int block_size:int gather_axis:int quantize_axis:int"),
    /* attention */
    ONNX("Attention", 23, 3, 7, 1, 4, read_attention, 0,
         "is_causal:int kv_num_heads:int q_num_heads:int qk_matmul_output_mode:int scale:float softcap:float "
         "softmax_precision:int left_window_size:int right_window_size:int"),
    ONNX("RotaryEmbedding", 23, 3, 4, 1, 1, read_rotary, 0, "interleaved:int num_heads:int rotary_embedding_dim:int"),
    MS("RotaryEmbedding", 4, 4, 1, 1, read_rotary_microsoft, 0,
       "interleaved:int is_packed_batching:int num_heads:int rotary_embedding_dim:int scale:float"),
    MS("MultiHeadAttention", 1, 8, 1, 4, read_multi_head_attention, 0,
       "num_heads:int! mask_filter_value:float scale:float unidirectional:int"),
    MS("GroupQueryAttention", 1, 17, 1, 4, read_group_query_attention, 0,
       "num_heads:int! kv_num_heads:int! do_rotary:int rotary_interleaved:int scale:float softcap:float "
       "local_window_size:int smooth_softmax:int causal:int sliding_window_cache:int qk_output:int qk_norm_epsilon:float "
       "q_norm_epsilon:float k_norm_epsilon:float k_quant_type:string v_quant_type:string kv_cache_bit_width:int"),
    MS("Attention", 2, 7, 1, 2, read_attention_microsoft, 0,
       "num_heads:int! unidirectional:int scale:float mask_filter_value:float do_rotary:int rotary_embedding_dim:int "
       "past_present_share_buffer:int qkv_hidden_sizes:ints"),
    /* mixture of experts */
    MS("MoE", 3, 8, 1, 1, read_moe, 0,
       "activation_type:string k:int normalize_routing_weights:int use_sparse_mixer:int swiglu_fusion:int "
       "swiglu_limit:float swiglu_limit_after_activation:int activation_alpha:float activation_beta:float"),
    MS("QMoE", 7, 21, 1, 1, read_qmoe, 0,
       "activation_type:string k:int normalize_routing_weights:int use_sparse_mixer:int swiglu_fusion:int "
       "swiglu_limit:float swiglu_limit_after_activation:int activation_alpha:float activation_beta:float "
       "expert_weight_bits:int fc1_expert_weight_bits:int fc2_expert_weight_bits:int fc3_expert_weight_bits:int "
       "block_size:int quant_type:string weights_prepacked:int accuracy_level:int"),
    /* control flow and sequences */
    ONNX("If", 1, 1, 1, 1, -1, read_if, 0, "then_branch:graph! else_branch:graph!"),
    ONNX("Loop", 1, 0, -1, 1, -1, read_loop, 0, "body:graph!"),
    {"", "Scan", 8, 8, 0, -1, 1, -1, read_scan_batched, 0, "body:graph! num_scan_inputs:int! directions:ints"},
    ONNX("Scan", 9, 1, -1, 1, -1, read_scan, 0,
         "body:graph! num_scan_inputs:int! scan_input_axes:ints scan_input_directions:ints scan_output_axes:ints "
         "scan_output_directions:ints"),
    ONNX("SplitToSequence", 11, 1, 2, 1, 1, read_split_to_sequence, 0, "axis:int keepdims:int"),
    ONNX("SequenceEmpty", 11, 0, 0, 1, 1, read_sequence_construct, 0, "dtype:int"),
    ONNX("SequenceErase", 11, 1, 2, 1, 1, read_sequence_erase, 0, ""),
    ONNX("SequenceConstruct", 11, 1, -1, 1, 1, read_sequence_construct, 0, ""),
    ONNX("SequenceAt", 11, 2, 2, 1, 1, read_sequence_at, 0, ""),
    ONNX("SequenceLength", 11, 1, 1, 1, 1, read_sequence_length, 0, ""),
    ONNX("Optional", 15, 0, 1, 1, 1, read_optional, 0, "type:type"),
    ONNX("OptionalGetElement", 15, 1, 1, 1, 1, read_optional_get, 0, ""),
    ONNX("OptionalHasElement", 15, 0, 1, 1, 1, read_optional_has, 0, ""),
    ONNX("SequenceInsert", 11, 2, 3, 1, 1, read_sequence_insert, 0, ""),
    ONNX("ConcatFromSequence", 11, 1, 1, 1, 1, read_concat_from_sequence, 0, "axis:int! new_axis:int"),
    /* ai.onnx.preview.training */
    {"ai.onnx.preview.training", "Adagrad", 1, 1, 5, -1, 1, -1, read_optimizer, OPTIM_ADAGRAD,
     "decay_factor:float epsilon:float norm_coefficient:float"},
    {"ai.onnx.preview.training", "Adam", 1, 1, 6, -1, 1, -1, read_optimizer, OPTIM_ADAM,
     "alpha:float beta:float epsilon:float norm_coefficient:float norm_coefficient_post:float"},
    {"ai.onnx.preview.training", "Gradient", 1, 1, 1, -1, 1, -1, read_gradient, 0, "xs:strings! zs:strings y:string!"},
    {"ai.onnx.preview.training", "Momentum", 1, 1, 5, -1, 1, -1, read_optimizer, OPTIM_MOMENTUM,
     "alpha:float! beta:float! mode:string! norm_coefficient:float!"},
};
/* clang-format on */
const int op_row_count = COUNT_OF(op_rows);

static const char *row_key(char *buffer, size_t size, const char *domain, const char *op_type) {
    if (domain_is_onnx(domain))
        return op_type;
    int n = snprintf(buffer, size, "%s:%s", domain, op_type);
    return n < (int)size ? buffer : "";
}

void op_rows_index(Import *im) {
    char key[256];
    for (int i = 0; i < op_row_count; i++) {
        const OpRow *r = &op_rows[i];
        const char *k = row_key(key, sizeof key, r->domain, r->op_type);
        strmap_put(&im->ops, arena_strdup(&im->scratch, k), (void *)(uintptr_t)r);
    }
}

const OpRow *op_row_find(const Import *im, const char *domain, const char *op_type, int version) {
    char key[256];
    const OpRow *r = strmap_get(&im->ops, row_key(key, sizeof key, domain, text_or(op_type, "")));
    if (!r || version <= 0)
        return r;
    const OpRow *first = r;
    for (; r < op_rows + op_row_count && !strcmp(r->op_type, first->op_type) &&
           !strcmp(r->domain, first->domain);
         r++)
        if (version >= r->since && version <= r->until)
            return r;
    return NULL;
}
