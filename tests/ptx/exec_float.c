/* exec_float.c: floating-point arithmetic. f32 and f64 are the host's, which rounds as IEEE 754 and
 * PTX do; directed rounding switches the host's mode (exec_round.c). 16-bit formats are computed
 * wide and rounded once. A NaN result is the canonical one of the format. */
#include "lanes.h"
#include "numbers.h"

#include <math.h>
#include <string.h>

static inline float nan32(void) {
    union {
        uint32_t u;
        float f;
    } c = {0x7fffffff};
    return c.f;
}

static inline float flush(float v) {
    return fabsf(v) < 0x1p-126f ? copysignf(0, v) : v;
}

static inline float finish(float v, bool ftz, bool sat) {
    v = v != v ? (sat ? 0 : nan32()) : v;
    v = ftz ? flush(v) : v;
    return sat ? (v > 0 ? (v < 1 ? v : 1) : 0) : v;
}

/* ---- 16-bit formats: as doubles, one rounding at the end ---- */
static double load16(uint16_t h, int type, bool ftz) {
    double v = type == T_BF16 ? ptx_bf16_to_f32(h) : ptx_f16_to_f32(h);
    return ftz && fabs(v) < 0x1p-14 && type == T_F16 ? copysign(0, v) : v;
}

static uint16_t store16(double v, int type, const PtxInstr *i) {
    if (i->c.flags & F_SAT) {
        v = isnan(v) ? 0 : v < 0 ? 0 : v > 1 ? 1 : v;
    }
    if (type == T_BF16) {
        double r = ptx_round_to(v, 8, -126, 128, W_RN);
        return ptx_f32_to_bf16((float)r, W_RN);
    }
    uint16_t h = ptx_f32_to_f16(v, W_RN);
    return (i->c.flags & F_FTZ) && !(h & 0x7c00) ? h & 0x8000 : h;
}

static double min_max(double a, double b, bool max, bool nans) {
    if (isnan(a) || isnan(b)) {
        return nans || (isnan(a) && isnan(b)) ? NAN : isnan(a) ? b : a;
    }
    if (a == b) { /* -0 < +0 */
        return (signbit(a) != 0) == max ? b : a;
    }
    return (a < b) == max ? b : a;
}

static double half_op(const PtxInstr *i, double a, double b, double c) {
    switch (i->c.op) {
    case OP_ADD:
        return a + b; /* exact but for exponents too far apart to matter in 11 digits */
    case OP_SUB:
        return a - b;
    case OP_MUL:
        return a * b;
    case OP_FMA:
        return ptx_add_odd(a * b, c);
    case OP_MIN:
        return min_max(a, b, false, i->c.flags & F_NAN);
    default:
        return min_max(a, b, true, i->c.flags & F_NAN);
    }
}

/* Sign operations touch only bits. */
static uint16_t half_bits(const PtxInstr *i, uint16_t a, uint16_t b, uint16_t c, int type) {
    bool ftz = i->c.flags & F_FTZ;
    if (i->c.op == OP_ABS || i->c.op == OP_NEG) {
        uint16_t h = i->c.op == OP_ABS ? a & 0x7fff : a ^ 0x8000;
        return ftz && !(h & 0x7c00) ? h & 0x8000 : h;
    }
    return store16(half_op(i, load16(a, type, ftz), load16(b, type, ftz), load16(c, type, ftz)),
                   type, i);
}

static void half_lanes(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    static const uint32_t zeros[LANES];
    const uint32_t *A = ptx_src(w, i, 1), *B = i->nops > 2 ? ptx_src(w, i, 2) : zeros;
    const uint32_t *C = i->nops > 3 ? ptx_src(w, i, 3) : zeros;
    uint32_t *D = ptx_dst(w, i, 0);
    bool two = i->c.type[0] == T_F16X2 || i->c.type[0] == T_BF16X2;
    int type = i->c.type[0] == T_F16 || i->c.type[0] == T_F16X2 ? T_F16 : T_BF16;
    for (uint32_t k = mask; k; k &= k - 1) {
        int l = __builtin_ctz(k);
        uint32_t d = half_bits(i, (uint16_t)A[l], (uint16_t)B[l], (uint16_t)C[l], type);
        if (two) {
            d |= (uint32_t)half_bits(i, (uint16_t)(A[l] >> 16), (uint16_t)(B[l] >> 16),
                                     (uint16_t)(C[l] >> 16), type)
                 << 16;
        }
        D[l] = d;
    }
}

static bool is_half(int type) {
    return type == T_F16 || type == T_BF16 || type == T_F16X2 || type == T_BF16X2;
}

/* ---- f32 and f64 ---- */
#define FLUSHED(v) (ftz ? flush(v) : (v))
#define FLOAT2(EXPR) \
    do { \
        bool ftz = i->c.flags & F_FTZ, sat = i->c.flags & F_SAT; \
        if (ftz || sat) { \
            BINARY(float, float, float, (a = FLUSHED(a), b = FLUSHED(b), finish(EXPR, ftz, sat))); \
        } else { \
            BINARY(float, float, float, finish(EXPR, false, false)); \
        } \
    } while (0)

#define ARITHMETIC(name, EXPR) \
    bool ptx_exec_f##name(PtxWarp *w, const PtxInstr *i, uint32_t mask) { \
        if (is_half(i->c.type[0])) { \
            half_lanes(w, i, mask); \
        } else if (i->c.round && i->c.round != W_RN) { \
            ptx_exec_directed(w, i, mask); \
        } else if (i->c.type[0] == T_F64) { \
            BINARY(double, double, double, EXPR); \
        } else { \
            FLOAT2(EXPR); \
        } \
        return true; \
    }
ARITHMETIC(add, a + b)
ARITHMETIC(sub, a - b)
ARITHMETIC(mul, a *b)
ARITHMETIC(div, a / b)

bool ptx_exec_fma(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    bool ftz = i->c.flags & F_FTZ, sat = i->c.flags & F_SAT;
    if (is_half(i->c.type[0])) {
        half_lanes(w, i, mask);
    } else if (i->c.round != W_RN) {
        ptx_exec_directed(w, i, mask);
    } else if (i->c.type[0] == T_F64) {
        TERNARY(double, double, double, fma(a, b, c));
    } else if (ftz || sat) {
        TERNARY(float, float, float,
                (a = FLUSHED(a), b = FLUSHED(b), c = FLUSHED(c), finish(fmaf(a, b, c), ftz, sat)));
    } else {
        TERNARY(float, float, float, finish(fmaf(a, b, c), false, false));
    }
    return true;
}

static float float_min_max(float a, float b, bool max, bool nans, bool ftz) {
    if (ftz) {
        a = flush(a);
        b = flush(b);
    }
    if (a != a || b != b) {
        return nans || (a != a && b != b) ? nan32() : a != a ? b : a;
    }
    if (a == b) {
        return (signbit(a) != 0) == max ? b : a;
    }
    return (a < b) == max ? b : a;
}

static bool extremum(PtxWarp *w, const PtxInstr *i, uint32_t mask, bool max) {
    bool nans = i->c.flags & F_NAN, ftz = i->c.flags & F_FTZ;
    if (is_half(i->c.type[0])) {
        half_lanes(w, i, mask);
    } else if (i->c.type[0] == T_F64) {
        BINARY(double, double, double, min_max(a, b, max, false));
    } else {
        BINARY(float, float, float, float_min_max(a, b, max, nans, ftz));
    }
    return true;
}

bool ptx_exec_fmin(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    return extremum(w, i, mask, false);
}

bool ptx_exec_fmax(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    return extremum(w, i, mask, true);
}

bool ptx_exec_fabs(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    bool ftz = i->c.flags & F_FTZ;
    if (is_half(i->c.type[0])) {
        half_lanes(w, i, mask);
    } else if (i->c.type[0] == T_F64) {
        UNARY(uint64_t, uint64_t, uint64_t, a & ~(1ull << 63));
    } else {
        UNARY(float, float, float, fabsf(FLUSHED(a)));
    }
    return true;
}

bool ptx_exec_fneg(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    bool ftz = i->c.flags & F_FTZ;
    if (is_half(i->c.type[0])) {
        half_lanes(w, i, mask);
    } else if (i->c.type[0] == T_F64) {
        UNARY(uint64_t, uint64_t, uint64_t, a ^ 1ull << 63);
    } else {
        UNARY(float, float, float, -FLUSHED(a));
    }
    return true;
}

bool ptx_exec_copysign(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    if (i->c.type[0] == T_F64) {
        BINARY(uint64_t, uint64_t, uint64_t, (b & ~(1ull << 63)) | (a & 1ull << 63));
    } else {
        BINARY(uint32_t, uint32_t, uint32_t, (b & 0x7fffffff) | (a & 0x80000000));
    }
    return true;
}

/* ---- division and roots ---- */
bool ptx_exec_rcp(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    bool ftz = i->c.flags & F_FTZ;
    if (i->c.round != W_RN) {
        ptx_exec_directed(w, i, mask);
    } else if (i->c.type[0] == T_F64) {
        UNARY(double, double, double, 1 / a);
    } else {
        UNARY(float, float, float, finish(1 / FLUSHED(a), ftz, false));
    }
    return true;
}

bool ptx_exec_sqrt(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    bool ftz = i->c.flags & F_FTZ;
    if (i->c.round != W_RN) {
        ptx_exec_directed(w, i, mask);
    } else if (i->c.type[0] == T_F64) {
        UNARY(double, double, double, sqrt(a));
    } else {
        UNARY(float, float, float, finish(sqrtf(FLUSHED(a)), ftz, false));
    }
    return true;
}

/* Approximations; the bounds are the PTX manual's. EXPR sees the double x and sets v and bound. */
#define APPROX(name, ...) \
    bool ptx_exec_##name(PtxWarp *w, const PtxInstr *i, uint32_t mask) { \
        const float *A = ptx_src(w, i, 1); \
        float *D = ptx_dst(w, i, 0); \
        bool ftz = i->c.flags & F_FTZ; \
        for (uint32_t k = mask; k; k &= k - 1) { \
            int l = __builtin_ctz(k); \
            double x = FLUSHED(A[l]), v, bound; \
            __VA_ARGS__ \
            D[l] = finish(ptx_approx(w, v, bound), ftz, false); \
        } \
        return true; \
    }
APPROX(rcpa, v = 1 / x; bound = fabs(v) * 0x1p-23;)
APPROX(sqrta, v = sqrt(x); bound = fabs(v) * 0x1p-23;)
APPROX(rsqrt, v = 1 / sqrt(x); bound = fabs(v) * 0x1p-22;)
APPROX(lg2, v = log2(x); bound = x > 0.5 && x < 2 ? 0x1p-22 : fabs(v) * 0x1p-22;)
APPROX(ex2, v = exp2(x); bound = x == 0 ? 0 : fabs(v) * 0x1p-22;)
APPROX(tanh, v = tanh(x); bound = fabs(v) * 0x1p-11;)

/* sin and cos are only described up to 100 pi; beyond, nothing may be relied on. */
static bool trig_range(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    const float *A = ptx_src(w, i, 1);
    for (uint32_t k = mask; k; k &= k - 1) {
        int l = __builtin_ctz(k);
        if (fabsf(A[l]) > 314.159f && !isinf(A[l])) {
            return ptx_run_fail(w, i, l,
                                "the argument %g is beyond 100 pi, where no error bound "
                                "is stated",
                                (double)A[l]);
        }
    }
    return true;
}

static double trig_bound(double x) {
    return fabs(x) <= 6.2831855 ? 0x1p-20 / 1.4142136 : 0x1p-14 / 1.6245048;
}
static APPROX(sin_lanes, v = x == 0 ? x : sin(x);
              bound = trig_bound(x);) static APPROX(cos_lanes, v = cos(x);
                                                    bound = x == 0 ? 0 : trig_bound(x);)

    bool ptx_exec_sin(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    return trig_range(w, i, mask) && ptx_exec_sin_lanes(w, i, mask);
}

bool ptx_exec_cos(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    return trig_range(w, i, mask) && ptx_exec_cos_lanes(w, i, mask);
}

/* div.full: 2 ulp; div.approx: 2 ulp for |b| in [2^-126, 2^126], else a/b is 0 for larger b. */
bool ptx_exec_diva(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    const float *A = ptx_src(w, i, 1), *B = ptx_src(w, i, 2);
    float *D = ptx_dst(w, i, 0);
    bool ftz = i->c.flags & F_FTZ;
    for (uint32_t k = mask; k; k &= k - 1) {
        int l = __builtin_ctz(k);
        float a = FLUSHED(A[l]), b = FLUSHED(B[l]);
        double v = (double)a / b;
        if (i->c.mode == W_APPROX && fabsf(b) > 0x1p126f && !isinf(b)) {
            v = isinf(a) ? NAN : copysign(0, v);
        }
        D[l] = finish(ptx_approx(w, v, fabs(v) * 0x1p-22), ftz, false);
    }
    return true;
}

/* ---- comparisons ---- */
static bool compare(double a, double b, int cmp) {
    bool un = isnan(a) || isnan(b);
    switch (cmp) {
    case W_EQ:
        return a == b;
    case W_NE:
        return !un && a != b;
    case W_LT:
        return a < b;
    case W_LE:
        return a <= b;
    case W_GT:
        return a > b;
    case W_GE:
        return a >= b;
    case W_EQU:
        return un || a == b;
    case W_NEU:
        return un || a != b;
    case W_LTU:
        return un || a < b;
    case W_LEU:
        return un || a <= b;
    case W_GTU:
        return un || a > b;
    case W_GEU:
        return un || a >= b;
    case W_NUM:
        return !un;
    default:
        return un;
    }
}

bool ptx_exec_fsetp(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    const uint8_t *A = ptx_src(w, i, 2), *B = ptx_src(w, i, 3);
    int type = i->c.type[0];
    bool ftz = i->c.flags & F_FTZ;
    uint32_t r = 0;
    for (uint32_t k = mask; k; k &= k - 1) {
        int l = __builtin_ctz(k);
        double a, b;
        if (type == T_F64) {
            memcpy(&a, A + 8 * l, 8);
            memcpy(&b, B + 8 * l, 8);
        } else if (type == T_F32) {
            float x, y;
            memcpy(&x, A + 4 * l, 4);
            memcpy(&y, B + 4 * l, 4);
            a = FLUSHED(x);
            b = FLUSHED(y);
        } else {
            uint16_t x, y;
            memcpy(&x, A + 4 * l, 2);
            memcpy(&y, B + 4 * l, 2);
            a = load16(x, type, ftz);
            b = load16(y, type, ftz);
        }
        r |= (uint32_t)compare(a, b, i->c.cmp) << l;
    }
    return ptx_setp_finish(w, i, r, mask);
}

static bool test(double v, bool normal, int what) {
    switch (what) {
    case W_FINITE:
        return isfinite(v);
    case W_INFINITE:
        return isinf(v);
    case W_NUMBER:
        return !isnan(v);
    case W_NOTANUMBER:
        return isnan(v);
    case W_NORMAL:
        return isfinite(v) && normal; /* PTX: zero is not normal */
    default:
        return isfinite(v) && !normal && v != 0;
    }
}

bool ptx_exec_testp(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    const uint8_t *A = ptx_src(w, i, 1);
    uint32_t *D = ptx_dst(w, i, 0);
    for (uint32_t k = mask; k; k &= k - 1) {
        int l = __builtin_ctz(k);
        double v;
        float f;
        bool normal;
        if (i->c.type[0] == T_F64) {
            memcpy(&v, A + 8 * l, 8);
            normal = fabs(v) >= 0x1p-1022;
        } else {
            memcpy(&f, A + 4 * l, 4);
            v = f;
            normal = fabs(v) >= 0x1p-126;
        }
        *D = (*D & ~(1u << l)) | (uint32_t)test(v, normal, i->c.cmp) << l;
    }
    return true;
}
