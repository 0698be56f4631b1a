/* nvptx_math.c: elementary functions for GPUs, as code of our own: no libdevice, nothing
 * approximate of the hardware. f32 exp, log, tanh and erf are math_f32.c's; here are their f64
 * fellows, sin, cos, pow and fmod. sin, cos and pow of f32 are those of f64, rounded. Explicit fma
 * everywhere, so that results are fixed by the text.
 *
 * Errors measured against libm (tests/unit/test_nvptx_math.c), in ulp: exp 1, log 1, tanh 2, erf 2,
 * sin and cos 2, pow 2; fmod is exact. */
#include <math.h>
#include <string.h>

#include "codegen/nvptx.h"

#define B x->b
#define F(v) LLVMConstReal(x->f64, (v))
#define I(v) llvm_i64(x, (v))
#define FADD(p, q) LLVMBuildFAdd(B, (p), (q), "")
#define FSUB(p, q) LLVMBuildFSub(B, (p), (q), "")
#define FMUL(p, q) LLVMBuildFMul(B, (p), (q), "")
#define FDIV(p, q) LLVMBuildFDiv(B, (p), (q), "")
#define FNEG(p) LLVMBuildFNeg(B, (p), "")
#define FMA(p, q, r) llvm_fma(x, (p), (q), (r))
#define FABS(p) llvm_intrinsic1(x, "llvm.fabs", (p))
#define FCMP(pred, p, q) LLVMBuildFCmp(B, LLVMReal##pred, (p), (q), "")
#define ICMP(pred, p, q) LLVMBuildICmp(B, LLVMInt##pred, (p), (q), "")
#define SELECT(c, p, q) LLVMBuildSelect(B, (c), (p), (q), "")
#define BOTH(p, q) LLVMBuildAnd(B, (p), (q), "")
#define BITS(v) LLVMBuildBitCast(B, (v), x->i64, "")
#define DOUBLE(v) LLVMBuildBitCast(B, (v), x->f64, "")
#define IADD(p, q) LLVMBuildAdd(B, (p), (q), "")
#define ISUB(p, q) LLVMBuildSub(B, (p), (q), "")
#define COPYSIGN(p, q) llvm_intrinsic2(x, "llvm.copysign", (p), (q))

/* c[0] v^(n-1) + ... + c[n-1] */
static LLVMValueRef horner(LlvmIr *x, LLVMValueRef v, const double *c, int n) {
    LLVMValueRef r = F(c[0]);
    for (int i = 1; i < n; i++)
        r = FMA(r, v, F(c[i]));
    return r;
}

/* 2^k for k in -1022..1023 */
static LLVMValueRef power_of_two(LlvmIr *x, LLVMValueRef k) {
    return DOUBLE(LLVMBuildShl(B, IADD(k, I(1023)), I(52), ""));
}

/* exp(v + lo), lo tiny or NULL for 0: 2^n exp(r), |r| <= ln(2)/2, by the Taylor polynomial of
 * degree 13; 2^n in two halves. */
static LLVMValueRef exp_pair(LlvmIr *x, LLVMValueRef v, LLVMValueRef lo) {
    const double magic = 0x1.8p52;
    double c[12], factorial = 1;
    for (int i = 0; i < 14; i++) {
        factorial *= i ? i : 1;
        if (i >= 2)
            c[13 - i] = 1 / factorial;
    }
    LLVMValueRef none = FCMP(OLT, v, F(-746));
    v = SELECT(none, F(0), v);
    v = SELECT(FCMP(OGT, v, F(710)), F(710), v);
    LLVMValueRef t = FMA(v, F(1.44269504088896338700e+00), F(magic)), n = FSUB(t, F(magic));
    LLVMValueRef r = FMA(n, F(-6.93147180369123816490e-01), v);
    r = FMA(n, F(-1.90821492927058770002e-10), r);
    r = lo ? FADD(r, lo) : r;
    LLVMValueRef p = FADD(FMA(horner(x, r, c, COUNT_OF(c)), FMUL(r, r), r), F(1));
    LLVMValueRef k = ISUB(BITS(t), BITS(F(magic))), half = LLVMBuildAShr(B, k, I(1), "");
    p = FMUL(p, power_of_two(x, half));
    return SELECT(none, F(0), FMUL(p, power_of_two(x, ISUB(k, half))));
}

static LLVMValueRef exp_f64(LlvmIr *x, LLVMValueRef v) {
    return exp_pair(x, v, NULL);
}

/* v = 2^k (1+f), 1+f in [sqrt(1/2), sqrt(2)), for finite v > 0. */
static void split(LlvmIr *x, LLVMValueRef v, LLVMValueRef *k, LLVMValueRef *f) {
    const int64_t root = 0x3fe6a09e667f3bcd, one = 0x3ff0000000000000;
    LLVMValueRef tiny = FCMP(OLT, v, F(0x1p-1022));
    LLVMValueRef u = SELECT(tiny, FMUL(v, F(0x1p54)), v);
    LLVMValueRef bits = IADD(BITS(u), I(one - root));
    LLVMValueRef e = ISUB(LLVMBuildAShr(B, bits, I(52), ""), SELECT(tiny, I(1023 + 54), I(1023)));
    LLVMValueRef m = IADD(LLVMBuildAnd(B, bits, I(0xfffffffffffff), ""), I(root));
    *k = LLVMBuildSIToFP(B, e, x->f64, "");
    *f = FSUB(DOUBLE(m), F(1));
}

/* FreeBSD's log: the series in s = f/(2+f). */
static LLVMValueRef log_f64(LlvmIr *x, LLVMValueRef v) {
    static const double odd[] = {1.479819860511658591e-01, 1.818357216161805012e-01,
                                 2.857142874366239149e-01, 6.666666666666735130e-01};
    static const double even[] = {1.531383769920937332e-01, 2.222219843214978396e-01,
                                  3.999999999940941908e-01};
    LLVMValueRef k, f;
    split(x, v, &k, &f);
    LLVMValueRef s = FDIV(f, FADD(f, F(2))), z = FMUL(s, s), w = FMUL(z, z);
    LLVMValueRef r = FADD(FMUL(w, horner(x, w, even, 3)), FMUL(z, horner(x, w, odd, 4)));
    LLVMValueRef half = FMUL(F(0.5), FMUL(f, f));
    r = FMA(s, FADD(half, r), FMUL(k, F(1.90821492927058770002e-10)));
    r = FMA(k, F(6.93147180369123816490e-01), FADD(FSUB(r, half), f));
    r = SELECT(FCMP(OEQ, v, F(INFINITY)), F(INFINITY), r);
    LLVMValueRef outside = SELECT(FCMP(OEQ, v, F(0)), F(-INFINITY), F(NAN));
    return SELECT(FCMP(OGT, v, F(0)), r, outside);
}

/* Cephes' rational function below 0.625, 1 - 2/(exp(2|v|)+1) above. */
static LLVMValueRef tanh_f64(LlvmIr *x, LLVMValueRef v) {
    static const double p[] = {-9.64399179425052238628e-1, -9.92877231001918586564e1,
                               -1.61468768441708447952e3};
    static const double q[] = {1, 1.12811678491632931402e2, 2.23548839060100448583e3,
                               4.84406305325125486048e3};
    LLVMValueRef a = FABS(v), z = FMUL(v, v);
    LLVMValueRef low = FMA(FMUL(v, z), FDIV(horner(x, z, p, 3), horner(x, z, q, 4)), v);
    LLVMValueRef e = exp_f64(x, FADD(a, a));
    LLVMValueRef high = FSUB(F(1), FDIV(F(2), FADD(e, F(1))));
    return COPYSIGN(SELECT(FCMP(OLT, a, F(0.625)), low, high), v);
}

/* Chebyshev fits: erf(v)/v in v^2 below 1; above, 1 - exp(-v^2) g((v-3)/(v+3)) with
 * g = exp(v^2) erfc(v), up to 6, where erf is 1. */
static LLVMValueRef erf_f64(LlvmIr *x, LLVMValueRef v) {
    static const double p[] = {
        -7.795898827002142e-10, 1.3720064546777686e-08, -1.6208483801871705e-07,
        1.6447424703317362e-06, -1.492473690741966e-05, 0.00012055294904839707,
        -0.0008548325975389692, 0.0052239776071164225,  -0.02686617064323777,
        0.11283791670945006,    -0.37612638903183543,   1.1283791670955126};
    static const double q[] = {
        3.0997111248611914e-08, 2.1006932317945462e-08,  -2.2960836640172656e-07,
        -2.902652004392866e-07, 1.2519261188022667e-06,  2.119283446053111e-06,
        -7.978119385932173e-06, -1.2860421831200831e-05, 6.405655737002857e-05,
        4.525529412129632e-05,  -0.0005970619486416963,  0.000707746439062207,
        0.004269136332839387,   -0.024392499318674116,   0.07166583719797825,
        -0.1501159365007772,    0.24560380171233087,     -0.3262335600430372,
        0.17900115118138996};
    LLVMValueRef a = FABS(v), z = FMUL(v, v), low = FMUL(v, horner(x, z, p, COUNT_OF(p)));
    LLVMValueRef c = SELECT(FCMP(OGT, a, F(6)), F(6), a);
    LLVMValueRef u = FDIV(FSUB(c, F(3)), FADD(c, F(3)));
    /* exp(-c^2): the square's rounding error, c^2 - fl(c^2), corrects it to first order */
    LLVMValueRef square = FMUL(c, c), e = exp_f64(x, FNEG(square));
    e = FMA(FNEG(e), FMA(c, c, FNEG(square)), e);
    LLVMValueRef high = COPYSIGN(FSUB(F(1), FMUL(e, horner(x, u, q, COUNT_OF(q)))), v);
    return SELECT(FCMP(OGT, a, F(1)), high, low);
}

/* ---- sin, cos ---- */

/* v = n pi/2 + r, |r| <= pi/4, for |v| < 2^30; n mod 4 is in the low bits of *n. */
static void reduce_small(LlvmIr *x, LLVMValueRef v, LLVMValueRef *r, LLVMValueRef *n) {
    const double magic = 0x1.8p52;
    LLVMValueRef t = FMA(v, F(6.36619772367581382433e-01), F(magic)), k = FSUB(t, F(magic));
    *r = FMA(k, F(-0x1.921fb54442d18p+0), v);
    *r = FMA(k, F(-0x1.1a62633145c07p-54), *r);
    *r = FMA(k, F(0x1.f1976b7ed8fbcp-110), *r);
    *n = BITS(t);
}

static LLVMValueRef high_product(LlvmIr *x, LLVMValueRef a, LLVMValueRef b) {
    LLVMValueRef in[] = {a, b};
    return nvptx_call(x, "llvm.nvvm.mulhi.ull", in, 2);
}

/* The same for any finite |v| >= 2^30 (M. Payne, R. Hanek, 1983): v = m 2^e; of m (2/pi) 2^e only
 * the bits from 2 before the binary point on matter, and so only 192 bits of 2/pi from a place that
 * e says. Two bits are n, 126 the fraction. */
static void reduce_large(LlvmIr *x, LLVMValueRef v, LLVMValueRef *r, LLVMValueRef *n) {
    static const uint64_t two_over_pi[] = {
        /* 64 zeros, then the fraction */
        0x0000000000000000, 0xa2f9836e4e441529, 0xfc2757d1f534ddc0, 0xdb6295993c439041,
        0xfe5163abdebbc561, 0xb7246e3a424dd2e0, 0x06492eea09d1921c, 0xfe1deb1cb129a73e,
        0xe88235f52ebb4484, 0xe99c7026b45f7e41, 0x3991d639835339f4, 0x9c845f8bbdf9283b,
        0x1ff897ffde05980f, 0xef2f118b5a0a6d1f, 0x6d367ecf27cb09b7, 0x4f463f669e5fea2d,
        0x7527bac7ebe5f17b, 0x3d0739f78a5292ea, 0x6bfb5fb11f8d5d08, 0x56033046fc7b6bab,
    };
    LLVMValueRef bits = BITS(FABS(v)), wide[3], word[4];
    LLVMValueRef m =
        LLVMBuildOr(B, LLVMBuildAnd(B, bits, I(0xfffffffffffff), ""), I(1LL << 52), "");
    LLVMValueRef at = IADD(LLVMBuildLShr(B, bits, I(52), ""), I(64 - 2 - 1075));
    LLVMValueRef first = LLVMBuildLShr(B, at, I(6), ""), shift = LLVMBuildAnd(B, at, I(63), "");
    for (int k = 0; k < 4; k++)
        word[k] = I((int64_t)two_over_pi[k]);
    for (int i = 1; i < COUNT_OF(two_over_pi) - 3; i++)
        for (int k = 0; k < 4; k++)
            word[k] = SELECT(ICMP(EQ, first, I(i)), I((int64_t)two_over_pi[i + k]), word[k]);
    for (int k = 0; k < 3; k++) {
        LLVMValueRef in[] = {word[k], word[k + 1], shift};
        wide[k] = llvm_intrinsic(x, "llvm.fshl", in, 3);
    }
    LLVMValueRef part = LLVMBuildMul(B, m, wide[1], ""),
                 low = IADD(part, high_product(x, m, wide[2]));
    LLVMValueRef carry = LLVMBuildZExt(B, ICMP(ULT, low, part), x->i64, "");
    LLVMValueRef high = IADD(LLVMBuildMul(B, m, wide[0], ""), high_product(x, m, wide[1]));
    high = IADD(high, carry);
    /* to the nearest quarter turn: the fraction becomes signed */
    LLVMValueRef turn = IADD(LLVMBuildLShr(B, high, I(62), ""),
                             LLVMBuildAnd(B, LLVMBuildLShr(B, high, I(61), ""), I(1), ""));
    high = LLVMBuildAShr(B, LLVMBuildShl(B, high, I(2), ""), I(2), "");
    LLVMValueRef fh = LLVMBuildSIToFP(B, high, x->f64, "");
    LLVMValueRef rest = ISUB(high, LLVMBuildFPToSI(B, fh, x->i64, "")); /* what rounding lost */
    LLVMValueRef fl = FMA(LLVMBuildUIToFP(B, low, x->f64, ""), F(0x1p-126),
                          FMUL(LLVMBuildSIToFP(B, rest, x->f64, ""), F(0x1p-62)));
    fh = FMUL(fh, F(0x1p-62));
    LLVMValueRef angle = FMUL(fh, F(0x1.921fb54442d18p+0));
    LLVMValueRef lost = FMA(fh, F(0x1.921fb54442d18p+0), FNEG(angle));
    lost = FMA(fh, F(0x1.1a62633145c07p-54), FMA(fl, F(0x1.921fb54442d18p+0), lost));
    angle = FADD(angle, lost);
    LLVMValueRef negative = FCMP(OLT, v, F(0));
    *r = SELECT(negative, FNEG(angle), angle);
    *n = SELECT(negative, LLVMBuildNeg(B, turn, ""), turn);
}

/* sin of r plus n quarter turns, |r| <= pi/4, by FreeBSD's polynomials. */
static LLVMValueRef sin_reduced(LlvmIr *x, LLVMValueRef r, LLVMValueRef n) {
    static const double s[] = {1.58969099521155010221e-10, -2.50507602534068634195e-08,
                               2.75573137070700676789e-06, -1.98412698298579493134e-04,
                               8.33333333332248946124e-03, -1.66666666666666324348e-01};
    static const double c[] = {-1.13596475577881948265e-11, 2.08757232129817482790e-09,
                               -2.75573143513906633035e-07, 2.48015872894767294178e-05,
                               -1.38888888888741095749e-03, 4.16666666666666019037e-02};
    LLVMValueRef z = FMUL(r, r), sine = FMA(FMUL(r, z), horner(x, z, s, 6), r);
    /* 1 - z/2 rounds; what it lost is added with the rest */
    LLVMValueRef half = FMUL(F(0.5), z), w = FSUB(F(1), half);
    LLVMValueRef lost = FSUB(FSUB(F(1), w), half);
    LLVMValueRef cosine = FADD(w, FMA(FMUL(z, z), horner(x, z, c, 6), lost));
    LLVMValueRef odd = ICMP(NE, LLVMBuildAnd(B, n, I(1), ""), I(0));
    LLVMValueRef minus = ICMP(NE, LLVMBuildAnd(B, n, I(2), ""), I(0));
    LLVMValueRef y = SELECT(odd, cosine, sine);
    return SELECT(minus, FNEG(y), y);
}

/* A function of its own for what is not straight code: NAME(doubles), always inlined. The builder
 * goes to its entry; *here is where it was. NULL: it was made before, and is *known. */
static LLVMValueRef begin_function(LlvmIr *x, const char *name, int n, LLVMBasicBlockRef *here,
                                   LLVMValueRef *known) {
    LLVMTypeRef params[] = {x->f64, x->f64};
    *known = LLVMGetNamedFunction(x->m, name);
    if (*known)
        return NULL;
    LLVMTypeRef type = LLVMFunctionType(x->f64, params, (unsigned)n, false);
    LLVMValueRef fn = *known = LLVMAddFunction(x->m, name, type);
    LLVMSetLinkage(fn, LLVMInternalLinkage);
    llvm_attribute(x, fn, (unsigned)LLVMAttributeFunctionIndex, "alwaysinline", 0);
    *here = LLVMGetInsertBlock(B);
    LLVMPositionBuilderAtEnd(B, LLVMAppendBasicBlockInContext(x->c, fn, "entry"));
    return fn;
}

static LLVMBasicBlockRef block_of(LlvmIr *x, LLVMValueRef fn) {
    return LLVMAppendBasicBlockInContext(x->c, fn, "");
}

/* sin(v), or cos(v) = sin(v + pi/2) */
static LLVMValueRef sin_function(LlvmIr *x, bool cosine) {
    LLVMBasicBlockRef here;
    LLVMValueRef known, r[2], n[2];
    LLVMValueRef fn = begin_function(x, cosine ? "stgc_cos" : "stgc_sin", 1, &here, &known);
    if (!fn)
        return known;
    LLVMBasicBlockRef from[] = {block_of(x, fn), block_of(x, fn)}, join = block_of(x, fn);
    LLVMValueRef v = LLVMGetParam(fn, 0);
    LLVMBuildCondBr(B, FCMP(OLT, FABS(v), F(0x1p30)), from[0], from[1]);
    LLVMPositionBuilderAtEnd(B, from[0]);
    reduce_small(x, v, &r[0], &n[0]);
    LLVMBuildBr(B, join);
    LLVMPositionBuilderAtEnd(B, from[1]);
    reduce_large(x, v, &r[1], &n[1]);
    LLVMBuildBr(B, join);
    LLVMPositionBuilderAtEnd(B, join);
    LLVMValueRef angle = LLVMBuildPhi(B, x->f64, ""), turn = LLVMBuildPhi(B, x->i64, "");
    LLVMAddIncoming(angle, r, from, 2);
    LLVMAddIncoming(turn, n, from, 2);
    LLVMValueRef y = sin_reduced(x, angle, cosine ? IADD(turn, I(1)) : turn);
    if (!cosine)
        y = SELECT(FCMP(OEQ, v, F(0)), v, y); /* sin(-0) = -0 */
    LLVMBuildRet(B, SELECT(FCMP(OLT, FABS(v), F(INFINITY)), y, FSUB(v, v)));
    LLVMPositionBuilderAtEnd(B, here);
    return fn;
}

static LLVMValueRef call(LlvmIr *x, LLVMValueRef fn, LLVMValueRef a, LLVMValueRef b) {
    LLVMValueRef in[] = {a, b};
    return LLVMBuildCall2(B, LLVMGlobalGetValueType(fn), fn, in, b ? 2 : 1, "");
}

/* ---- pow ---- */

typedef struct Pair {
    LLVMValueRef hi, lo; /* hi + lo */
} Pair;

/* a*b exactly */
static Pair product(LlvmIr *x, LLVMValueRef a, LLVMValueRef b) {
    Pair p = {FMUL(a, b), NULL};
    p.lo = FMA(a, b, FNEG(p.hi));
    return p;
}

/* log of finite v > 0 with about 65 bits: 2s (1 + z/3 + z^2/5 + ...), s = f/(2+f), z = s^2; the
 * first two terms as pairs. */
static Pair log_pair(LlvmIr *x, LLVMValueRef v) {
    double c[11];
    for (int i = 0; i < 11; i++)
        c[i] = 1.0 / (25 - 2 * i);
    LLVMValueRef k, f;
    split(x, v, &k, &f);
    LLVMValueRef dh = FADD(F(2), f), dl = FSUB(f, FSUB(dh, F(2)));
    LLVMValueRef sh = FDIV(f, dh), rest = FMA(FNEG(sh), dh, f);
    LLVMValueRef sl = FDIV(FMA(FNEG(sh), dl, rest), dh);
    Pair z = product(x, sh, sh);
    z.lo = FMA(FADD(sh, sh), sl, z.lo);
    Pair w = product(x, z.hi, F(0x1.5555555555555p-2)); /* z/3 */
    w.lo = FADD(w.lo, FMA(z.hi, F(0x1.5555555555555p-56), FMUL(z.lo, F(0x1.5555555555555p-2))));
    LLVMValueRef tail = FMUL(FMUL(z.hi, z.hi), horner(x, z.hi, c, 11));
    LLVMValueRef ph = FADD(F(1), w.hi), pl = FADD(FSUB(w.hi, FSUB(ph, F(1))), FADD(w.lo, tail));
    LLVMValueRef s2 = FADD(sh, sh);
    Pair l = product(x, s2, ph);
    l.lo = FADD(l.lo, FMA(s2, pl, FMUL(FADD(sl, sl), ph)));
    LLVMValueRef kh = FMUL(k, F(6.93147180369123816490e-01)); /* exact */
    LLVMValueRef hi = FADD(kh, l.hi), lost = FSUB(l.hi, FSUB(hi, kh));
    return (Pair){hi, FADD(lost, FMA(k, F(1.90821492927058770002e-10), l.lo))};
}

static LLVMValueRef pow_f64(LlvmIr *x, LLVMValueRef v, LLVMValueRef y) {
    LLVMValueRef a = FABS(v), infinite = FCMP(OEQ, FABS(y), F(INFINITY));
    Pair l = log_pair(x, a);
    Pair e = product(x, y, l.hi);
    e.lo = FMA(y, l.lo, e.lo);
    e.lo = SELECT(FCMP(OLT, FABS(e.hi), F(1000)), e.lo, F(0));
    LLVMValueRef r = exp_pair(x, e.hi, e.lo);
    LLVMValueRef up = FCMP(OGT, y, F(0)), big = SELECT(up, F(INFINITY), F(0)),
                 small = SELECT(up, F(0), F(INFINITY));
    r = SELECT(FCMP(OEQ, a, F(INFINITY)), big, r);
    r = SELECT(FCMP(OEQ, a, F(0)), small, r);
    r = SELECT(BOTH(infinite, FCMP(OEQ, a, F(1))), F(1), r);
    LLVMValueRef whole = FCMP(OEQ, llvm_intrinsic1(x, "llvm.floor", y), y);
    LLVMValueRef half = FMUL(y, F(0.5));
    LLVMValueRef odd = BOTH(whole, FCMP(ONE, llvm_intrinsic1(x, "llvm.floor", half), half));
    LLVMValueRef negative = ICMP(SLT, BITS(v), I(0));
    LLVMValueRef none =
        BOTH(FCMP(OLT, v, F(0)), BOTH(LLVMBuildNot(B, whole, ""), FCMP(OLT, a, F(INFINITY))));
    r = SELECT(BOTH(negative, odd), FNEG(r), r);
    r = SELECT(none, F(NAN), r);
    r = SELECT(FCMP(UNO, v, y), FADD(v, y), r);
    return SELECT(LLVMBuildOr(B, FCMP(OEQ, y, F(0)), FCMP(OEQ, v, F(1)), ""), F(1), r);
}

/* ---- fmod ---- */

static LLVMValueRef exponent(LlvmIr *x, LLVMValueRef v) {
    return LLVMBuildAnd(B, LLVMBuildLShr(B, BITS(v), I(52), ""), I(2047), "");
}

/* One step: |a| minus a multiple of |b| 2^e, e so that the quotient has at most 52 bits. The
 * remainder is exact; a quotient rounded up gives a negative one. */
static LLVMValueRef fmod_step(LlvmIr *x, LLVMValueRef a, LLVMValueRef b) {
    LLVMValueRef e = ISUB(ISUB(exponent(x, a), exponent(x, b)), I(50));
    e = SELECT(ICMP(SGT, e, I(0)), e, I(0));
    LLVMValueRef half = LLVMBuildAShr(B, e, I(1), "");
    LLVMValueRef t = FMUL(FMUL(b, power_of_two(x, half)), power_of_two(x, ISUB(e, half)));
    LLVMValueRef q = llvm_intrinsic1(x, "llvm.trunc", FDIV(a, t)), r = FMA(FNEG(q), t, a);
    return SELECT(FCMP(OLT, r, F(0)), FADD(r, t), r);
}

static LLVMValueRef fmod_function(LlvmIr *x) {
    LLVMBasicBlockRef here;
    LLVMValueRef known, fn = begin_function(x, "stgc_fmod", 2, &here, &known);
    if (!fn)
        return known;
    LLVMBasicBlockRef entry = LLVMGetInsertBlock(B), loop = block_of(x, fn), body = block_of(x, fn),
                      done = block_of(x, fn);
    LLVMValueRef v = LLVMGetParam(fn, 0), a = FABS(v), b = FABS(LLVMGetParam(fn, 1));
    LLVMValueRef ok = BOTH(FCMP(OLT, a, F(INFINITY)), FCMP(OGT, b, F(0)));
    LLVMValueRef start = SELECT(ok, a, F(NAN));
    LLVMBuildBr(B, loop);
    LLVMPositionBuilderAtEnd(B, loop);
    LLVMValueRef r = LLVMBuildPhi(B, x->f64, "");
    LLVMAddIncoming(r, &start, &entry, 1);
    LLVMBuildCondBr(B, FCMP(OGE, r, b), body, done);
    LLVMPositionBuilderAtEnd(B, body);
    LLVMValueRef next = fmod_step(x, r, b);
    LLVMBuildBr(B, loop);
    LLVMAddIncoming(r, &next, &body, 1);
    LLVMPositionBuilderAtEnd(B, done);
    LLVMBuildRet(B, SELECT(FCMP(UNO, r, r), r, COPYSIGN(r, v)));
    LLVMPositionBuilderAtEnd(B, here);
    return fn;
}

/* ---- by operation ---- */

static LLVMValueRef in_f64(LlvmIr *x, LOp op, LLVMValueRef a, LLVMValueRef b) {
    switch (op) {
    case L_EXP:
        return exp_f64(x, a);
    case L_LOG:
        return log_f64(x, a);
    case L_TANH:
        return tanh_f64(x, a);
    case L_ERF:
        return erf_f64(x, a);
    case L_SIN:
        return call(x, sin_function(x, false), a, NULL);
    case L_COS:
        return call(x, sin_function(x, true), a, NULL);
    case L_POW:
        return pow_f64(x, a, b);
    case L_REM:
        return call(x, fmod_function(x), a, b);
    default:
        bug("%s of a float", loop_op_names[op]);
    }
}

/* v^|y| by squaring, exact while it fits 53 bits; 1 over that for y < 0. An exponent beyond 63 says
 * no more than its parity. */
LLVMValueRef nvptx_pow_i64(LlvmIr *x, LLVMValueRef v, LLVMValueRef y) {
    LLVMValueRef below = ICMP(SLT, y, I(0)), n = SELECT(below, LLVMBuildNeg(B, y, ""), y);
    LLVMValueRef large = ICMP(UGT, n, I(63));
    n = SELECT(large, IADD(LLVMBuildAnd(B, n, I(1), ""), I(62)), n);
    LLVMValueRef square = LLVMBuildSIToFP(B, v, x->f64, ""), r = F(1);
    for (int bit = 0; bit < 6; bit++) {
        LLVMValueRef on = ICMP(NE, LLVMBuildAnd(B, n, I((int64_t)1 << bit), ""), I(0));
        r = SELECT(on, FMUL(r, square), r);
        square = FMUL(square, square);
    }
    return SELECT(below, FDIV(F(1), r), r);
}

LLVMValueRef nvptx_math(LlvmIr *x, LOp op, LType t, LLVMValueRef a, LLVMValueRef b) {
    if (t == LT_F64)
        return in_f64(x, op, a, b);
    a = LLVMBuildFPExt(B, a, x->f64, "");
    b = b ? LLVMBuildFPExt(B, b, x->f64, "") : NULL;
    return LLVMBuildFPTrunc(B, in_f64(x, op, a, b), x->f32, "");
}
