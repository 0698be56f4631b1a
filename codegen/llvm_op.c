/* llvm_op.c: one loop operation, load or store as LLVM instructions.
 *
 * Floating point policy on a CPU: products and sums may contract into fma (`contract`), as C
 * compilers do by default; only accumulations of vector loops are also `reassoc nsz`; NaN and Inf
 * always mean what IEEE says. min and max ignore the sign of zero. Nothing depends on which thread
 * runs a task, so results are the same from run to run on one machine. On a GPU nothing contracts
 * and nothing is reassociated: PTX says every rounding. */
#include "codegen/llvm_ir.h"

#define B x->b

static LLVMValueRef flags(LLVMValueRef v, LLVMFastMathFlags f) {
    if (f && LLVMIsAInstruction(v) && LLVMCanValueUseFastMathFlags(v))
        LLVMSetFastMathFlags(v, f);
    return v;
}

/* sdiv and srem trap or are undefined for 0 and for INT64_MIN / -1. A constant divisor needs no
 * care. */
static LLVMValueRef divide(LlvmIr *x, LLVMValueRef a, LLVMValueRef b, bool remainder) {
    LLVMValueRef zero = llvm_i64(x, 0), one = llvm_i64(x, 1), minus = llvm_i64(x, -1), safe = b;
    bool known = LLVMIsAConstantInt(b) && LLVMConstIntGetSExtValue(b) != 0 &&
                 LLVMConstIntGetSExtValue(b) != -1;
    LLVMValueRef by0 = LLVMBuildICmp(B, LLVMIntEQ, b, zero, ""),
                 by1 = LLVMBuildICmp(B, LLVMIntEQ, b, minus, "");
    if (!known)
        safe = LLVMBuildSelect(B, LLVMBuildOr(B, by0, by1, ""), one, b, "");
    LLVMValueRef r = remainder ? LLVMBuildSRem(B, a, safe, "") : LLVMBuildSDiv(B, a, safe, "");
    if (known)
        return r;
    LLVMValueRef odd = remainder ? zero : LLVMBuildSelect(B, by0, zero, LLVMBuildNeg(B, a, ""), "");
    return LLVMBuildSelect(B, LLVMBuildOr(B, by0, by1, ""), odd, r, "");
}

static LLVMValueRef op_i(LlvmIr *x, LOp op, LLVMValueRef a, LLVMValueRef b) {
    switch (op) {
    case L_ADD:
        return LLVMBuildAdd(B, a, b, "");
    case L_SUB:
        return LLVMBuildSub(B, a, b, "");
    case L_MUL:
        return LLVMBuildMul(B, a, b, "");
    case L_DIV:
        return divide(x, a, b, false);
    case L_REM:
        return divide(x, a, b, true);
    case L_MIN:
        return llvm_intrinsic2(x, "llvm.smin", a, b);
    case L_MAX:
        return llvm_intrinsic2(x, "llvm.smax", a, b);
    case L_POW: { /* through double, as exact as the result fits 53 bits */
        LLVMValueRef in[] = {LLVMBuildSIToFP(B, a, x->f64, ""), LLVMBuildSIToFP(B, b, x->f64, "")};
        LLVMValueRef r = x->nvptx ? nvptx_pow_i64(x, a, b) : llvm_libm(x, "pow", in, 2);
        return llvm_op(x, L_TO_I64, LT_F64, r, NULL, NULL, false);
    }
    case L_NEG:
        return LLVMBuildNeg(B, a, "");
    case L_ABS: {
        LLVMValueRef in[] = {a, LLVMConstInt(x->i1, 0, false)};
        return llvm_intrinsic(x, "llvm.abs", in, 2);
    }
    case L_AND:
        return LLVMBuildAnd(B, a, b, "");
    case L_OR:
        return LLVMBuildOr(B, a, b, "");
    case L_XOR:
        return LLVMBuildXor(B, a, b, "");
    case L_NOT:
        return LLVMBuildNot(B, a, "");
    default:
        bug("%s of an integer", loop_op_names[op]);
    }
}

/* exp and the like of f64, and what has no polynomial of ours. */
static LLVMValueRef libm(LlvmIr *x, LOp op, LType t, LLVMValueRef a, LLVMValueRef b) {
    static const struct {
        LOp op;
        const char *f32, *f64;
        int arity;
    } table[] = {
        {L_EXP, "expf", "exp", 1}, {L_LOG, "logf", "log", 1},   {L_TANH, "tanhf", "tanh", 1},
        {L_ERF, "erff", "erf", 1}, {L_SIN, "sinf", "sin", 1},   {L_COS, "cosf", "cos", 1},
        {L_POW, "powf", "pow", 2}, {L_REM, "fmodf", "fmod", 2},
    };
    LLVMValueRef in[] = {a, b};
    if (x->nvptx)
        return nvptx_math(x, op, t, a, b);
    for (int i = 0; i < COUNT_OF(table); i++)
        if (table[i].op == op)
            return llvm_libm(x, t == LT_F32 ? table[i].f32 : table[i].f64, in, table[i].arity);
    bug("%s of a float", loop_op_names[op]);
}

static LLVMValueRef op_f(LlvmIr *x, LOp op, LType t, LLVMValueRef a, LLVMValueRef b,
                         LLVMFastMathFlags f) {
    switch (op) {
    case L_ADD:
        return flags(LLVMBuildFAdd(B, a, b, ""), f);
    case L_SUB:
        return flags(LLVMBuildFSub(B, a, b, ""), f);
    case L_MUL:
        return flags(LLVMBuildFMul(B, a, b, ""), f);
    case L_DIV:
        return LLVMBuildFDiv(B, a, b, "");
    case L_MIN:
        return flags(llvm_intrinsic2(x, "llvm.minimum", a, b), LLVMFastMathNoSignedZeros);
    case L_MAX:
        return flags(llvm_intrinsic2(x, "llvm.maximum", a, b), LLVMFastMathNoSignedZeros);
    case L_NEG:
        return LLVMBuildFNeg(B, a, "");
    case L_ABS:
        return llvm_intrinsic1(x, "llvm.fabs", a);
    case L_FLOOR:
        return llvm_intrinsic1(x, "llvm.floor", a);
    case L_CEIL:
        return llvm_intrinsic1(x, "llvm.ceil", a);
    case L_ROUND:
        return llvm_intrinsic1(x, "llvm.roundeven", a);
    case L_SQRT:
        return llvm_intrinsic1(x, "llvm.sqrt", a);
    case L_EXP:
        return t == LT_F32 ? math_exp_f32(x, a) : libm(x, op, t, a, b);
    case L_LOG:
        return t == LT_F32 ? math_log_f32(x, a) : libm(x, op, t, a, b);
    case L_TANH:
        return t == LT_F32 ? math_tanh_f32(x, a) : libm(x, op, t, a, b);
    case L_ERF:
        return t == LT_F32 ? math_erf_f32(x, a) : libm(x, op, t, a, b);
    default:
        return libm(x, op, t, a, b);
    }
}

static LLVMValueRef compare(LlvmIr *x, LOp op, LType t, LLVMValueRef a, LLVMValueRef b) {
    bool lt = op == L_LT, le = op == L_LE, eq = op == L_EQ;
    if (t == LT_F32 || t == LT_F64)
        return LLVMBuildFCmp(B,
                             lt   ? LLVMRealOLT
                             : le ? LLVMRealOLE
                             : eq ? LLVMRealOEQ
                                  : LLVMRealUNE,
                             a, b, "");
    if (t == LT_BOOL) /* false < true */
        return LLVMBuildICmp(B,
                             lt   ? LLVMIntULT
                             : le ? LLVMIntULE
                             : eq ? LLVMIntEQ
                                  : LLVMIntNE,
                             a, b, "");
    return LLVMBuildICmp(B,
                         lt   ? LLVMIntSLT
                         : le ? LLVMIntSLE
                         : eq ? LLVMIntEQ
                              : LLVMIntNE,
                         a, b, "");
}

static LLVMValueRef to_i64(LlvmIr *x, LType t, LLVMValueRef a) {
    if (t == LT_I64)
        return a;
    if (t == LT_BOOL)
        return LLVMBuildZExt(B, a, x->i64, "");
    unsigned id = LLVMLookupIntrinsicID("llvm.fptosi.sat", 15);
    LLVMTypeRef types[] = {x->i64, LLVMTypeOf(a)};
    LLVMValueRef fn = LLVMGetIntrinsicDeclaration(x->m, id, types, 2);
    return LLVMBuildCall2(B, LLVMIntrinsicGetType(x->c, id, types, 2), fn, &a, 1, "");
}

static LLVMValueRef cast(LlvmIr *x, LOp op, LType t, LLVMValueRef a) {
    LLVMTypeRef to = op == L_TO_F32 ? x->f32 : x->f64;
    switch (op) {
    case L_TO_I64:
        return to_i64(x, t, a);
    case L_TO_BOOL:
        if (t == LT_BOOL)
            return a;
        if (t == LT_I64)
            return LLVMBuildICmp(B, LLVMIntNE, a, llvm_i64(x, 0), "");
        return LLVMBuildFCmp(B, LLVMRealUNE, a, LLVMConstReal(LLVMTypeOf(a), 0), "");
    default:
        if (t == LT_I64)
            return LLVMBuildSIToFP(B, a, to, "");
        if (t == LT_BOOL)
            return LLVMBuildUIToFP(B, a, to, "");
        if (LLVMTypeOf(a) == to)
            return a;
        return op == L_TO_F32 ? LLVMBuildFPTrunc(B, a, to, "") : LLVMBuildFPExt(B, a, to, "");
    }
}

LLVMValueRef llvm_op(LlvmIr *x, LOp op, LType t, LLVMValueRef a, LLVMValueRef b, LLVMValueRef c,
                     bool reassoc) {
    LLVMFastMathFlags f = x->nvptx ? LLVMFastMathNone : LLVMFastMathAllowContract;
    if (reassoc)
        f |= LLVMFastMathAllowReassoc | LLVMFastMathNoSignedZeros;
    switch (op) {
    case L_LT:
    case L_LE:
    case L_EQ:
    case L_NE:
        return compare(x, op, t, a, b);
    case L_SELECT:
        return LLVMBuildSelect(B, a, b, c, "");
    case L_TO_F32:
    case L_TO_F64:
    case L_TO_I64:
    case L_TO_BOOL:
        return cast(x, op, t, a);
    case L_FMA:
        if (t == LT_I64)
            return LLVMBuildAdd(B, LLVMBuildMul(B, a, b, ""), c, "");
        if (!reassoc)
            return llvm_fma(x, a, b, c);
        /* the vectoriser knows sums, not fma, as accumulations; they contract again afterwards */
        return flags(
            LLVMBuildFAdd(B, flags(LLVMBuildFMul(B, a, b, ""), LLVMFastMathAllowContract), c, ""),
            f);
    default:
        return t == LT_F32 || t == LT_F64 ? op_f(x, op, t, a, b, f) : op_i(x, op, a, b);
    }
}

/* ---- memory ---- */

static LLVMTypeRef storage_type(const LlvmIr *x, DType t) {
    switch (t) {
    case DT_F32:
        return x->f32;
    case DT_F64:
        return x->f64;
    case DT_F16:
        return x->f16;
    case DT_BF16:
    case DT_U16:
    case DT_I16:
        return x->i16;
    case DT_U32:
    case DT_I32:
        return x->i32;
    case DT_U64:
    case DT_I64:
        return x->i64;
    default:
        return x->i8;
    }
}

LLVMValueRef llvm_load(LlvmIr *x, DType storage, LLVMValueRef base, LLVMValueRef index,
                       LLVMValueRef *access) {
    LLVMTypeRef t = storage_type(x, storage);
    LLVMValueRef at = LLVMBuildInBoundsGEP2(B, t, base, &index, 1, "");
    LLVMValueRef v = *access = LLVMBuildLoad2(B, t, at, "");
    switch (storage) {
    case DT_BOOL:
        return LLVMBuildICmp(B, LLVMIntNE, v, LLVMConstInt(x->i8, 0, false), "");
    case DT_F16:
        return LLVMBuildFPExt(B, v, x->f32, "");
    case DT_BF16:
        v = LLVMBuildShl(B, LLVMBuildZExt(B, v, x->i32, ""), llvm_i32(x, 16), "");
        return LLVMBuildBitCast(B, v, x->f32, "");
    case DT_U8:
    case DT_U16:
    case DT_U32:
        return LLVMBuildZExt(B, v, x->i64, "");
    case DT_I8:
    case DT_I16:
    case DT_I32:
        return LLVMBuildSExt(B, v, x->i64, "");
    default:
        return v;
    }
}

/* To nearest, ties to even, in integers: the machine's own conversion would flush denormals. NaN
 * stays a quiet NaN. */
static LLVMValueRef to_bf16(LlvmIr *x, LLVMValueRef v) {
    LLVMValueRef bits = LLVMBuildBitCast(B, v, x->i32, ""),
                 high = LLVMBuildLShr(B, bits, llvm_i32(x, 16), "");
    LLVMValueRef odd = LLVMBuildAnd(B, high, llvm_i32(x, 1), "");
    LLVMValueRef r = LLVMBuildAdd(B, LLVMBuildAdd(B, bits, llvm_i32(x, 0x7fff), ""), odd, "");
    r = LLVMBuildLShr(B, r, llvm_i32(x, 16), "");
    LLVMValueRef nan = LLVMBuildFCmp(B, LLVMRealUNO, v, v, "");
    r = LLVMBuildSelect(B, nan, LLVMBuildOr(B, high, llvm_i32(x, 0x40), ""), r, "");
    return LLVMBuildTrunc(B, r, x->i16, "");
}

void llvm_store(LlvmIr *x, DType storage, LLVMValueRef base, LLVMValueRef index, LLVMValueRef v,
                LLVMValueRef *access) {
    LLVMTypeRef t = storage_type(x, storage);
    LLVMValueRef at = LLVMBuildInBoundsGEP2(B, t, base, &index, 1, "");
    switch (storage) {
    case DT_BOOL:
        v = LLVMBuildZExt(B, v, x->i8, "");
        break;
    case DT_F16:
        v = LLVMBuildFPTrunc(B, v, x->f16, "");
        break;
    case DT_BF16:
        v = to_bf16(x, v);
        break;
    case DT_F32:
    case DT_F64:
    case DT_I64:
    case DT_U64:
        break;
    default:
        v = LLVMBuildTrunc(B, v, t, "");
    }
    *access = LLVMBuildStore(B, v, at);
}
