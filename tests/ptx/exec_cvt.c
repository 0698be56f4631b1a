/* exec_cvt.c: conversions. Integers go through 64 bits, floats through double; PTX saturates where
 * C leaves a conversion undefined. */
#include "lanes.h"
#include "numbers.h"

#include <math.h>
#include <string.h>

static uint64_t lane_bits(const PtxWarp *w, const PtxOperand *o, int l) {
    uint64_t v = 0;
    int bytes = o->is64 || o->bits == 64 ? 8 : 4;
    memcpy(&v, w->base[o->base] + o->at + bytes * l, (size_t)bytes);
    return v;
}

static void put_bits(PtxWarp *w, const PtxOperand *o, int l, uint64_t v) {
    if (o->bits == 64) {
        memcpy(w->regs + o->at + 8 * l, &v, 8);
    } else {
        uint32_t u = (uint32_t)v & (o->bits == 16 ? 0xffff : ~0u);
        memcpy(w->regs + o->at + 4 * l, &u, 4);
    }
}

/* The low bits of v as a value of an integer type, extended to 64. */
static uint64_t integer(uint64_t v, int type) {
    int bits = ptx_type_bits(type);
    if (bits == 64) {
        return v;
    }
    v &= (1ull << bits) - 1;
    return ptx_type_signed(type) && (v >> (bits - 1)) ? v | ~0ull << bits : v;
}

static double real(uint64_t v, int type, bool ftz) {
    float f;
    double d;
    uint32_t u = (uint32_t)v;
    switch (type) {
    case T_F64:
        memcpy(&d, &v, 8);
        return d;
    case T_F32:
        memcpy(&f, &u, 4);
        return ftz && fabsf(f) < 0x1p-126f ? copysign(0, f) : f;
    case T_BF16:
        return ptx_bf16_to_f32((uint16_t)v);
    default:
        return ptx_f16_to_f32((uint16_t)v);
    }
}

/* Integer to integer with .sat: the nearest value of the destination's range. */
static uint64_t saturate(uint64_t v, int from, int to) {
    int bits = ptx_type_bits(to);
    bool negative = ptx_type_signed(from) && (int64_t)v < 0;
    if (ptx_type_signed(to)) {
        uint64_t top = (1ull << (bits - 1)) - 1;
        if (negative) {
            return (int64_t)v < -(int64_t)top - 1 ? ~top : v;
        }
        return v > top ? top : v;
    }
    uint64_t top = bits == 64 ? ~0ull : (1ull << bits) - 1;
    return negative ? 0 : v > top ? top : v;
}

/* Float to integer always saturates. NaN is 0, or with f64 on one side of 64 bits on the other
 * 2^(n-1) (PTX manual 9.0, cvt). */
static uint64_t to_int(double v, int from, int to, int round) {
    int bits = ptx_type_bits(to);
    if (isnan(v)) {
        return from == T_F64 || bits == 64 ? 1ull << (bits - 1) : 0;
    }
    v = ptx_to_integer(v, round);
    if (ptx_type_signed(to)) {
        double top = ldexp(1, bits - 1);
        return v >= top   ? (1ull << (bits - 1)) - 1
               : v < -top ? ~0ull << (bits - 1)
                          : (uint64_t)(int64_t)v;
    }
    double top = ldexp(1, bits);
    return v <= 0 ? 0 : v >= top ? (bits == 64 ? ~0ull : (1ull << bits) - 1) : (uint64_t)v;
}

static uint64_t bits32(double v) {
    float f = (float)v;
    uint32_t u;
    memcpy(&u, &f, 4);
    return f != f ? 0x7fffffff : u;
}

static uint64_t from_real(double v, const PtxOpcode *c) {
    int to = c->type[0];
    uint64_t u;
    if (c->flags & F_RELU) {
        v = v > 0 ? v : isnan(v) ? v : 0;
    }
    if (c->flags & F_SAT) {
        v = isnan(v) || v <= 0 ? 0 : v > 1 ? 1 : v;
    }
    switch (to) {
    case T_F64:
        memcpy(&u, &v, 8);
        return u;
    case T_F32:
        v = ptx_round_to(v, 24, -126, 128, c->round);
        if ((c->flags & F_FTZ) && fabs(v) < 0x1p-126) {
            v = copysign(0, v);
        }
        return bits32(v);
    case T_TF32: /* ties away from zero; the low 13 bits are 0 */
        return isnan(v) ? 0x7fffffff : bits32(ptx_round_to(v, 11, -126, 128, W_RNA));
    case T_BF16:
    case T_BF16X2:
        return isnan(v) ? 0x7fff
                        : ptx_f32_to_bf16((float)ptx_round_to(v, 8, -126, 128, c->round), W_RN);
    default: {
        uint16_t h = ptx_f32_to_f16(v, c->round);
        return h;
    }
    }
}

/* A 64-bit integer as f32 or f64: double would round twice, so big values keep a sticky bit. */
static double from_int(uint64_t v, int from, int to, int round) {
    bool negative = ptx_type_signed(from) && (int64_t)v < 0;
    uint64_t a = negative ? 0 - v : v;
    if (a >> 53 && to != T_F64) {
        a = (a & ~0x7ffull) | ((a & 0x7ff) ? 0x800 : 0) | (a & 0x800); /* sticky */
    } else if (a >> 53) {
        int shift = 11 - __builtin_clzll(a);
        uint64_t low = a & ((1ull << shift) - 1), half = 1ull << (shift - 1);
        a -= low;
        bool up = round == W_RN
                      ? low > half || (low == half && (a >> shift & 1))
                      : low && ((round == W_RP && !negative) || (round == W_RM && negative));
        double d = (double)a + (up ? ldexp(1, shift) : 0);
        return negative ? -d : d;
    }
    return negative ? -(double)a : (double)a;
}

static bool is_float(int type) {
    return ptx_type_float(type) || type == T_TF32;
}

static uint64_t convert(const PtxOpcode *c, uint64_t v) {
    int to = c->type[0], from = c->type[1];
    if (!is_float(from)) {
        v = integer(v, from);
        if (is_float(to)) {
            return from_real(from_int(v, from, to, c->round), c);
        }
        return integer(c->flags & F_SAT ? saturate(v, from, to) : v, to);
    }
    double d = real(v, from, c->flags & F_FTZ);
    if (!is_float(to)) {
        return integer(to_int(d, from, to, c->round), to);
    }
    if (c->round >= W_RNI && c->round <= W_RPI) {
        PtxOpcode plain = *c;
        plain.round = W_RN;
        return from_real(copysign(ptx_to_integer(d, c->round), d), &plain);
    }
    return from_real(d, c);
}

/* The conversions that fill kernels, without the detours. */
static bool fast(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    int to = i->c.type[0], from = i->c.type[1];
    if (i->c.flags) {
        return false;
    }
    if (to == T_S64 && from == T_S32 && i->o[1].bits == 32) {
        const int32_t *A = ptx_src(w, i, 1);
        int64_t *D = ptx_dst(w, i, 0);
        LANE_LOOP(mask, D[l] = A[l];);
        return true;
    }
    if (to == T_U64 && from == T_U32 && i->o[1].bits == 32) {
        const uint32_t *A = ptx_src(w, i, 1);
        uint64_t *D = ptx_dst(w, i, 0);
        LANE_LOOP(mask, D[l] = A[l];);
        return true;
    }
    if (to == T_U32 && from == T_U64 && i->o[0].bits == 32) {
        const uint64_t *A = ptx_src(w, i, 1);
        uint32_t *D = ptx_dst(w, i, 0);
        LANE_LOOP(mask, D[l] = (uint32_t)A[l];);
        return true;
    }
    if (to == T_F32 && from == T_S32 && i->c.round == W_RN && i->o[1].bits == 32) {
        const int32_t *A = ptx_src(w, i, 1);
        float *D = ptx_dst(w, i, 0);
        LANE_LOOP(mask, D[l] = (float)A[l];);
        return true;
    }
    if (to == T_F64 && from == T_F32) {
        const float *A = ptx_src(w, i, 1);
        double *D = ptx_dst(w, i, 0);
        LANE_LOOP(mask, D[l] = A[l];);
        return true;
    }
    if (to == T_F32 && from == T_BF16) {
        const uint32_t *A = ptx_src(w, i, 1);
        uint32_t *D = ptx_dst(w, i, 0);
        LANE_LOOP(mask, D[l] = A[l] << 16;);
        return true;
    }
    if (to == T_TF32 && i->o[0].bits == 32) { /* half of the dropped unit more, then cut */
        const uint32_t *A = ptx_src(w, i, 1);
        uint32_t *D = ptx_dst(w, i, 0);
        LANE_LOOP(mask, uint32_t a = A[l]; bool nan = (a & 0x7fffffff) > 0x7f800000;
                  D[l] = nan ? 0x7fffffff : (a + 0x1000) & ~0x1fffu;);
        return true;
    }
    if (to == T_BF16 && from == T_F32 && i->c.round == W_RN) {
        const float *A = ptx_src(w, i, 1);
        uint32_t *D = ptx_dst(w, i, 0);
        LANE_LOOP(mask, D[l] = ptx_f32_to_bf16(A[l], W_RN););
        return true;
    }
    return false;
}

bool ptx_exec_cvt(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    if (fast(w, i, mask)) {
        return true;
    }
    for (uint32_t k = mask; k; k &= k - 1) {
        int l = __builtin_ctz(k);
        put_bits(w, &i->o[0], l, convert(&i->c, lane_bits(w, &i->o[1], l)));
    }
    return true;
}

/* cvt.rn.bf16x2.f32 d, a, b: a is the upper half. */
bool ptx_exec_cvt2(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    uint32_t *D = ptx_dst(w, i, 0);
    if (i->c.type[0] == T_BF16X2 && i->c.round == W_RN && !i->c.flags) {
        const float *A = ptx_src(w, i, 1), *B = ptx_src(w, i, 2);
        LANE_LOOP(mask, D[l] = (uint32_t)ptx_f32_to_bf16(A[l], W_RN) << 16 |
                               ptx_f32_to_bf16(B[l], W_RN););
        return true;
    }
    for (uint32_t k = mask; k; k &= k - 1) {
        int l = __builtin_ctz(k);
        double a = real(lane_bits(w, &i->o[1], l), T_F32, false);
        double b = real(lane_bits(w, &i->o[2], l), T_F32, false);
        D[l] = (uint32_t)(from_real(a, &i->c) << 16 | from_real(b, &i->c));
    }
    return true;
}
