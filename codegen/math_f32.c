/* math_f32.c: exp, log, tanh and erf in single precision, as straight code without branches, tables
 * or calls, so that loops over them vectorise. Written with explicit fma and without fast-math
 * flags: the same result in every lane and every vector width. Errors measured against
 * libm in double (tests/unit/test_x86_math.c): exp, log and erf under 1 ulp, tanh under 1.3. */
#include "codegen/llvm_ir.h"

#include <math.h>

#define F(v) llvm_f32(x, (v))
#define I(v) llvm_i32(x, (v))
#define FADD(p, q) LLVMBuildFAdd(x->b, (p), (q), "")
#define FSUB(p, q) LLVMBuildFSub(x->b, (p), (q), "")
#define FMUL(p, q) LLVMBuildFMul(x->b, (p), (q), "")
#define FMA(p, q, r) llvm_fma(x, (p), (q), (r))
#define FCMP(pred, p, q) LLVMBuildFCmp(x->b, LLVMReal##pred, (p), (q), "")
#define SELECT(c, p, q) LLVMBuildSelect(x->b, (c), (p), (q), "")
#define BITS(v) LLVMBuildBitCast(x->b, (v), x->i32, "")
#define FLOAT(v) LLVMBuildBitCast(x->b, (v), x->f32, "")
#define IADD(p, q) LLVMBuildAdd(x->b, (p), (q), "")
#define ISUB(p, q) LLVMBuildSub(x->b, (p), (q), "")

/* c[0] v^(n-1) + ... + c[n-1] */
static LLVMValueRef horner(LlvmIr *x, LLVMValueRef v, const double *c, int n) {
    LLVMValueRef r = F(c[0]);
    for (int i = 1; i < n; i++)
        r = FMA(r, v, F(c[i]));
    return r;
}

/* 2^k for k in -126..127 */
static LLVMValueRef power_of_two(LlvmIr *x, LLVMValueRef k) {
    return FLOAT(LLVMBuildShl(x->b, IADD(k, I(127)), I(23), ""));
}

/* exp(v) = 2^n exp(r), n = round(v / ln 2), |r| <= ln(2)/2, with the minimax polynomial of Cephes.
 * Adding 1.5*2^23 rounds to the nearest integer and leaves it in the low bits; no conversion that
 * could see a NaN. 2^n is applied in two halves so that results down to the denormals round once
 * and overflow gives inf. What is 0 whatever it is exactly (masked scores) is chosen, not computed:
 * a product that underflows costs a hundred cycles. The comparisons keep NaN. */
LLVMValueRef math_exp_f32(LlvmIr *x, LLVMValueRef v) {
    static const double c[] = {1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3,
                               4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1};
    const double magic = 12582912.0;
    LLVMValueRef none = FCMP(OLT, v, F(-104));
    v = SELECT(none, F(0), v);
    v = SELECT(FCMP(OGT, v, F(89)), F(89), v);
    LLVMValueRef t = FMA(v, F(1.44269504088896341), F(magic));
    LLVMValueRef n = FSUB(t, F(magic));
    LLVMValueRef r = FMA(n, F(-0.693359375), v);
    r = FMA(n, F(2.12194440e-4), r);
    LLVMValueRef p = horner(x, r, c, COUNT_OF(c));
    p = FADD(FMA(p, FMUL(r, r), r), F(1));
    LLVMValueRef k = ISUB(BITS(t), I(0x4B400000));
    LLVMValueRef half = LLVMBuildAShr(x->b, k, I(1), "");
    p = FMUL(p, power_of_two(x, half));
    return SELECT(none, F(0), FMUL(p, power_of_two(x, ISUB(k, half))));
}

/* log(v) = k ln 2 + log(m), m in [sqrt(1/2), sqrt(2)), by the series in s = f/(2+f), f = m-1, of
 * FreeBSD's logf. */
LLVMValueRef math_log_f32(LlvmIr *x, LLVMValueRef v) {
    LLVMValueRef tiny = FCMP(OLT, v, F(0x1p-126));
    LLVMValueRef u = SELECT(tiny, FMUL(v, F(0x1p23)), v);
    LLVMValueRef bits = IADD(BITS(u), I(0x3f800000 - 0x3f3504f3));
    LLVMValueRef k = ISUB(LLVMBuildAShr(x->b, bits, I(23), ""), SELECT(tiny, I(127 + 23), I(127)));
    LLVMValueRef m = IADD(LLVMBuildAnd(x->b, bits, I(0x7fffff), ""), I(0x3f3504f3));
    LLVMValueRef f = FSUB(FLOAT(m), F(1)), dk = LLVMBuildSIToFP(x->b, k, x->f32, "");
    LLVMValueRef s = LLVMBuildFDiv(x->b, f, FADD(f, F(2)), ""), z = FMUL(s, s), w = FMUL(z, z);
    LLVMValueRef t1 = FMUL(w, FMA(w, F(0xf89e26.0p-26), F(0xccce13.0p-25)));
    LLVMValueRef t2 = FMUL(z, FMA(w, F(0x91e9ee.0p-25), F(0xaaaaaa.0p-24)));
    LLVMValueRef hfsq = FMUL(F(0.5), FMUL(f, f));
    LLVMValueRef r = FMA(s, FADD(hfsq, FADD(t1, t2)), FMUL(dk, F(9.0580006145e-06)));
    r = FMA(dk, F(6.9313812256e-01), FADD(FSUB(r, hfsq), f));
    r = SELECT(FCMP(OEQ, v, F(INFINITY)), F(INFINITY), r);
    LLVMValueRef outside = SELECT(FCMP(OEQ, v, F(0)), F(-INFINITY), F(NAN));
    return SELECT(FCMP(OGT, v, F(0)), r, outside);
}

/* An odd polynomial below 0.625 (Cephes), 1 - 2/(exp(2|v|)+1) above. */
LLVMValueRef math_tanh_f32(LlvmIr *x, LLVMValueRef v) {
    static const double c[] = {-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2,
                               1.33314422036e-1, -3.33332819422e-1};
    LLVMValueRef a = llvm_intrinsic1(x, "llvm.fabs", v), z = FMUL(v, v);
    LLVMValueRef low = FMA(FMUL(horner(x, z, c, COUNT_OF(c)), z), v, v);
    LLVMValueRef e = math_exp_f32(x, FADD(a, a));
    LLVMValueRef high = FSUB(F(1), LLVMBuildFDiv(x->b, F(2), FADD(e, F(1)), ""));
    /* the sign last, so that -0 stays -0 */
    return llvm_intrinsic2(x, "llvm.copysign", SELECT(FCMP(OLT, a, F(0.625)), low, high), v);
}

/* N. Juffa's fits: an odd polynomial below 475/512; above, 1 - exp(-|v| + polynomial). */
LLVMValueRef math_erf_f32(LlvmIr *x, LLVMValueRef v) {
    static const double c[] = {-5.96761703e-4, 4.99119423e-3,  -2.67681349e-2,
                               1.12819925e-1,  -3.76125336e-1, 1.28379166e-1};
    LLVMValueRef t = llvm_intrinsic1(x, "llvm.fabs", v), s = FMUL(v, v);
    LLVMValueRef low = FMA(horner(x, s, c, COUNT_OF(c)), v, v);
    LLVMValueRef r = FMA(F(-1.72853470e-5), t, F(3.83197126e-4));
    r = FMA(r, s, FMA(F(-3.88396438e-3), t, F(2.42546219e-2)));
    r = FMA(r, t, F(-1.06777877e-1));
    r = FMA(r, t, F(-6.34846687e-1));
    r = FMA(r, t, F(-1.28717512e-1));
    r = FMA(r, t, LLVMBuildFNeg(x->b, t, ""));
    LLVMValueRef high = FSUB(F(1), math_exp_f32(x, r));
    high = llvm_intrinsic2(x, "llvm.copysign", high, v);
    return SELECT(FCMP(OGT, t, F(0.927734375)), high, low);
}
