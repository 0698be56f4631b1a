/* exec_int.c: integer, logic, comparison and move instructions. */
#include "lanes.h"

#include <string.h>

bool ptx_exec_add(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    if (i->c.flags & F_SAT) {
        BINARY(uint32_t, int32_t, int32_t,
               __builtin_add_overflow(a, b, &a) ? (b < 0 ? INT32_MIN : INT32_MAX) : a);
        return true;
    }
    WRAP_TYPES(BINARY, a + b)
    return true;
}

bool ptx_exec_sub(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    if (i->c.flags & F_SAT) {
        BINARY(uint32_t, int32_t, int32_t,
               __builtin_sub_overflow(a, b, &a) ? (b > 0 ? INT32_MIN : INT32_MAX) : a);
        return true;
    }
    WRAP_TYPES(BINARY, a - b)
    return true;
}

__extension__ typedef unsigned __int128 U128;
__extension__ typedef __int128 S128;

/* The upper half of a product. */
static void mul_hi(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    switch (i->c.type[0]) {
    case T_U16:
        BINARY(uint32_t, uint32_t, uint16_t, a * b >> 16);
        break;
    case T_S16:
        BINARY(uint32_t, int16_t, uint16_t, (int32_t)a * b >> 16);
        break;
    case T_U32:
        BINARY(uint32_t, uint64_t, uint32_t, a * b >> 32);
        break;
    case T_S32:
        BINARY(uint32_t, int32_t, uint32_t, (int64_t)a * b >> 32);
        break;
    case T_U64:
        BINARY(uint64_t, uint64_t, uint64_t, (U128)a * b >> 64);
        break;
    default:
        BINARY(uint64_t, int64_t, uint64_t, (S128)a * b >> 64);
        break;
    }
}

bool ptx_exec_mul(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    if (i->c.cmp == W_HI) {
        mul_hi(w, i, mask);
        return true;
    }
    WRAP_TYPES(BINARY, a * b)
    return true;
}

bool ptx_exec_mad(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    if (i->c.cmp != W_HI) {
        WRAP_TYPES(TERNARY, a * b + c)
        return true;
    }
    switch (i->c.type[0]) {
    case T_U16:
        TERNARY(uint32_t, uint32_t, uint16_t, (a * b >> 16) + c);
        break;
    case T_S16:
        TERNARY(uint32_t, int16_t, uint16_t, ((int32_t)a * b >> 16) + c);
        break;
    case T_U32:
        TERNARY(uint32_t, uint64_t, uint32_t, (a * b >> 32) + c);
        break;
    case T_S32:
        TERNARY(uint32_t, int32_t, uint32_t, (uint32_t)((int64_t)a * b >> 32) + (uint32_t)c);
        break;
    case T_U64:
        TERNARY(uint64_t, uint64_t, uint64_t, (uint64_t)((U128)a * b >> 64) + c);
        break;
    default:
        TERNARY(uint64_t, int64_t, uint64_t, (uint64_t)((S128)a * b >> 64) + (uint64_t)c);
        break;
    }
    return true;
}

#define WIDE(L, C, D, P) \
    do { \
        const L *A_ = ptx_src(w, i, 1), *B_ = ptx_src(w, i, 2); \
        D *D_ = ptx_dst(w, i, 0); \
        LANE_LOOP(mask, D_[l] = (D)((P)(C)A_[l] * (P)(C)B_[l]);); \
    } while (0)
#define WIDE_ADD(L, C, D, P) \
    do { \
        const L *A_ = ptx_src(w, i, 1), *B_ = ptx_src(w, i, 2); \
        const D *C_ = ptx_src(w, i, 3); \
        D *D_ = ptx_dst(w, i, 0); \
        LANE_LOOP(mask, D_[l] = (D)((P)(C)A_[l] * (P)(C)B_[l]) + C_[l];); \
    } while (0)
#define WIDE_TYPES(M) \
    switch (i->c.type[0]) { \
    case T_U16: \
        M(uint32_t, uint16_t, uint32_t, uint32_t); \
        break; \
    case T_S16: \
        M(uint32_t, int16_t, uint32_t, int32_t); \
        break; \
    case T_U32: \
        M(uint32_t, uint32_t, uint64_t, uint64_t); \
        break; \
    default: \
        M(uint32_t, int32_t, uint64_t, int64_t); \
        break; \
    }

bool ptx_exec_mulw(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    WIDE_TYPES(WIDE)
    return true;
}

bool ptx_exec_madw(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    WIDE_TYPES(WIDE_ADD)
    return true;
}

/* PTX leaves a division by zero open; here it is an error. */
static bool zero_divisor(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    bool is64 = ptx_type_bits(i->c.type[0]) == 64;
    const uint32_t *b4 = ptx_src(w, i, 2);
    const uint64_t *b8 = ptx_src(w, i, 2);
    for (uint32_t k = mask; k; k &= k - 1) {
        int l = __builtin_ctz(k);
        if (is64 ? b8[l] == 0 : b4[l] == 0) {
            ptx_run_fail(w, i, l, "divides by zero");
            return true;
        }
    }
    return false;
}

bool ptx_exec_div(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    if (zero_divisor(w, i, mask)) {
        return false;
    }
    /* -2^(n-1) / -1 wraps: negation, which cannot trap. */
    INT_TYPES(BINARY, ptx_type_signed(i->c.type[0]) && b == (__typeof__(b))-1 ? 0 - (uint64_t)a
                                                                              : (uint64_t)(a / b))
    return true;
}

bool ptx_exec_rem(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    if (zero_divisor(w, i, mask)) {
        return false;
    }
    INT_TYPES(BINARY, ptx_type_signed(i->c.type[0]) && b == (__typeof__(b))-1 ? 0 : a % b)
    return true;
}

bool ptx_exec_abs(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    switch (ptx_type_bits(i->c.type[0])) {
    case 16:
        UNARY(uint32_t, int16_t, uint16_t, a < 0 ? -a : a);
        break;
    case 32:
        UNARY(uint32_t, int32_t, uint32_t, a < 0 ? 0 - (uint32_t)a : (uint32_t)a);
        break;
    default:
        UNARY(uint64_t, int64_t, uint64_t, a < 0 ? 0 - (uint64_t)a : (uint64_t)a);
        break;
    }
    return true;
}

bool ptx_exec_neg(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    WRAP_TYPES(UNARY, 0 - a)
    return true;
}

bool ptx_exec_min(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    INT_TYPES(BINARY, a < b ? a : b)
    return true;
}

bool ptx_exec_max(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    INT_TYPES(BINARY, a > b ? a : b)
    return true;
}

/* A 32-bit result of a value of either width. */
#define TO_U32(...) \
    do { \
        uint32_t *D_ = ptx_dst(w, i, 0); \
        if (ptx_type_bits(i->c.type[0]) == 64) { \
            const uint64_t *A_ = ptx_src(w, i, 1); \
            LANE_LOOP(mask, uint64_t a = A_[l]; D_[l] = (uint32_t)(__VA_ARGS__);); \
        } else { \
            const uint32_t *A_ = ptx_src(w, i, 1); \
            LANE_LOOP(mask, uint64_t a = A_[l]; D_[l] = (uint32_t)(__VA_ARGS__);); \
        } \
    } while (0)

bool ptx_exec_popc(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    TO_U32(__builtin_popcountll(a));
    return true;
}

bool ptx_exec_clz(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    int bits = ptx_type_bits(i->c.type[0]);
    TO_U32(a ? __builtin_clzll(a) - (64 - bits) : bits);
    return true;
}

/* The highest bit that differs from the sign (unsigned: that is set); -1 if there is none. */
static uint32_t find_high(uint64_t a, int bits, bool is_signed, bool shiftamt) {
    if (is_signed && (a >> (bits - 1) & 1)) {
        a = ~a & (bits == 64 ? ~0ull : (1ull << bits) - 1);
    }
    if (!a) {
        return ~0u;
    }
    uint32_t at = 63 - (uint32_t)__builtin_clzll(a);
    return shiftamt ? (uint32_t)bits - 1 - at : at;
}

bool ptx_exec_bfind(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    int bits = ptx_type_bits(i->c.type[0]);
    TO_U32(find_high(a, bits, ptx_type_signed(i->c.type[0]), i->c.flags & F_SHIFTAMT));
    return true;
}

static uint64_t reverse(uint64_t a, int bits) {
    uint64_t r = 0;
    for (int k = 0; k < bits; k++) {
        r |= (a >> k & 1) << (bits - 1 - k);
    }
    return r;
}

bool ptx_exec_brev(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    int bits = ptx_type_bits(i->c.type[0]);
    WRAP_TYPES(UNARY, reverse(a, bits))
    return true;
}

/* PTX manual, bfe: position and length are the low 8 bits; beyond the value is sign or zero. */
static uint64_t extract(uint64_t a, uint32_t b, uint32_t c, int bits, bool is_signed) {
    uint32_t pos = b & 0xff, len = c & 0xff, msb = (uint32_t)bits - 1;
    uint64_t sign = 0, d = 0;
    if (is_signed && len) {
        sign = a >> (pos + len - 1 < msb ? pos + len - 1 : msb) & 1;
    }
    for (uint32_t k = 0; k <= msb; k++) {
        uint64_t bit = k < len && pos + k <= msb ? a >> (pos + k) & 1 : sign;
        d |= bit << k;
    }
    return d;
}

/* PTX manual, bfi: `len` low bits of a into b at pos; bits that would go beyond are dropped. */
static uint64_t insert(uint64_t a, uint64_t b, uint32_t c, uint32_t e, int bits) {
    uint32_t pos = c & 0xff, len = e & 0xff;
    for (uint32_t k = 0; k < len && pos + k < (uint32_t)bits; k++) {
        b = (b & ~(1ull << (pos + k))) | (a >> k & 1) << (pos + k);
    }
    return b;
}

bool ptx_exec_bfe(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    const uint32_t *P = ptx_src(w, i, 2), *N = ptx_src(w, i, 3);
    int bits = ptx_type_bits(i->c.type[0]);
    bool sign = ptx_type_signed(i->c.type[0]);
    if (bits == 64) {
        const uint64_t *A = ptx_src(w, i, 1);
        uint64_t *D = ptx_dst(w, i, 0);
        LANE_LOOP(mask, D[l] = extract(A[l], P[l], N[l], 64, sign););
    } else {
        const uint32_t *A = ptx_src(w, i, 1);
        uint32_t *D = ptx_dst(w, i, 0);
        LANE_LOOP(mask, D[l] = (uint32_t)extract(A[l], P[l], N[l], 32, sign););
    }
    return true;
}

bool ptx_exec_bfi(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    const uint32_t *P = ptx_src(w, i, 3), *N = ptx_src(w, i, 4);
    if (ptx_type_bits(i->c.type[0]) == 64) {
        const uint64_t *A = ptx_src(w, i, 1), *B = ptx_src(w, i, 2);
        uint64_t *D = ptx_dst(w, i, 0);
        LANE_LOOP(mask, D[l] = insert(A[l], B[l], P[l], N[l], 64););
    } else {
        const uint32_t *A = ptx_src(w, i, 1), *B = ptx_src(w, i, 2);
        uint32_t *D = ptx_dst(w, i, 0);
        LANE_LOOP(mask, D[l] = (uint32_t)insert(A[l], B[l], P[l], N[l], 32););
    }
    return true;
}

static void set_pred(PtxWarp *w, const PtxInstr *i, int n, uint32_t value, uint32_t mask) {
    uint32_t *d = ptx_dst(w, i, n);
    *d = (*d & ~mask) | (value & mask);
}

#define LOGIC(name, EXPR) \
    bool ptx_exec_##name(PtxWarp *w, const PtxInstr *i, uint32_t mask) { \
        if (i->c.type[0] == T_PRED) { \
            uint32_t a = ptx_pred(w, &i->o[1]), b = ptx_pred(w, &i->o[2]); \
            set_pred(w, i, 0, EXPR, mask); \
            return true; \
        } \
        WRAP_TYPES(BINARY, EXPR) \
        return true; \
    }
LOGIC(and, a &b)
LOGIC(or, a | b)
LOGIC(xor, a ^ b)

bool ptx_exec_not(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    if (i->c.type[0] == T_PRED) {
        set_pred(w, i, 0, ~ptx_pred(w, &i->o[1]), mask);
        return true;
    }
    WRAP_TYPES(UNARY, ~a)
    return true;
}

/* Shift counts are clamped to the width, not taken modulo it. */
bool ptx_exec_shl(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    uint32_t bits = (uint32_t)ptx_type_bits(i->c.type[0]);
    WRAP_TYPES(SHIFT, b < bits ? a << b : 0)
    return true;
}

bool ptx_exec_shr(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    uint32_t bits = (uint32_t)ptx_type_bits(i->c.type[0]);
    INT_TYPES(SHIFT, a >> (b < bits ? b : bits - 1) >> (b < bits ? 0 : 1))
    return true;
}

/* d = the 64 bits b:a shifted left (upper half), or right (lower half). */
bool ptx_exec_shf(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    const uint32_t *A = ptx_src(w, i, 1), *B = ptx_src(w, i, 2), *N = ptx_src(w, i, 3);
    uint32_t *D = ptx_dst(w, i, 0);
    bool left = i->c.mode == W_L, wrap = i->c.flags & F_WRAP;
    LANE_LOOP(mask, uint32_t n = wrap        ? N[l] & 31
                                 : N[l] < 32 ? N[l]
                                             : 32;
              uint64_t v = (uint64_t)B[l] << 32 | A[l];
              D[l] = left ? (uint32_t)(v << n >> 32) : (uint32_t)(v >> n););
    return true;
}

/* PTX manual, prmt: a selector's byte per mode and control value 0 to 3; rows of 4 nibbles, the
 * lowest byte first. */
static const uint16_t prmt_modes[6][4] = {
    {0x3210, 0x4321, 0x5432, 0x6543}, /* f4e */
    {0x5670, 0x6701, 0x7012, 0x0123}, /* b4e */
    {0x0000, 0x1111, 0x2222, 0x3333}, /* rc8 */
    {0x3210, 0x3211, 0x3222, 0x3333}, /* ecl */
    {0x0000, 0x1110, 0x2210, 0x3210}, /* ecr */
    {0x1010, 0x3232, 0x1010, 0x3232}, /* rc16 */
};

static uint32_t permute(uint32_t a, uint32_t b, uint32_t selector, bool signs) {
    uint64_t v = (uint64_t)b << 32 | a;
    uint32_t d = 0;
    for (int k = 0; k < 4; k++) {
        uint32_t s = selector >> (4 * k) & 15;
        uint32_t byte = (uint32_t)(v >> (8 * (s & 7)) & 0xff);
        if (signs && (s & 8)) {
            byte = byte & 0x80 ? 0xff : 0;
        }
        d |= byte << (8 * k);
    }
    return d;
}

bool ptx_exec_prmt(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    const uint32_t *A = ptx_src(w, i, 1), *B = ptx_src(w, i, 2), *S = ptx_src(w, i, 3);
    uint32_t *D = ptx_dst(w, i, 0);
    int mode = i->c.mode ? i->c.mode - W_F4E : -1;
    LANE_LOOP(mask, D[l] = mode < 0 ? permute(A[l], B[l], S[l], true)
                                    : permute(A[l], B[l], prmt_modes[mode][S[l] & 3], false););
    return true;
}

bool ptx_exec_lop3(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    uint32_t table = (uint32_t)i->o[4].imm;
    TERNARY(uint32_t, uint32_t, uint32_t,
            (table & 0x01 ? ~a & ~b & ~c : 0) | (table & 0x02 ? ~a & ~b & c : 0) |
                (table & 0x04 ? ~a & b & ~c : 0) | (table & 0x08 ? ~a & b & c : 0) |
                (table & 0x10 ? a & ~b & ~c : 0) | (table & 0x20 ? a & ~b & c : 0) |
                (table & 0x40 ? a & b & ~c : 0) | (table & 0x80 ? a & b & c : 0));
    return true;
}

bool ptx_exec_selp(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    uint32_t p = ptx_pred(w, &i->o[3]);
    if (ptx_type_bits(i->c.type[0]) == 64) {
        BINARY(uint64_t, uint64_t, uint64_t, p >> l & 1 ? a : b);
    } else {
        BINARY(uint32_t, uint32_t, uint32_t, p >> l & 1 ? a : b);
    }
    return true;
}

/* The lanes where a comparison of integers holds. */
#define COMPARE(L, C, OP) \
    do { \
        const L *A_ = ptx_src(w, i, 2), *B_ = ptx_src(w, i, 3); \
        for (int l = 0; l < LANES; l++) { \
            r |= (uint32_t)((C)A_[l] OP(C) B_[l]) << l; \
        } \
    } while (0)
#define COMPARE_TYPES(OP) \
    switch (type) { \
    case T_S16: \
        COMPARE(uint32_t, int16_t, OP); \
        break; \
    case T_S32: \
        COMPARE(uint32_t, int32_t, OP); \
        break; \
    case T_S64: \
        COMPARE(uint64_t, int64_t, OP); \
        break; \
    case T_U64: \
    case T_B64: \
        COMPARE(uint64_t, uint64_t, OP); \
        break; \
    default: \
        COMPARE(uint32_t, uint32_t, OP); \
        break; \
    }

static int unsigned_type(int type) {
    return type == T_S16 ? T_U16 : type == T_S32 ? T_U32 : type == T_S64 ? T_U64 : type;
}

bool ptx_exec_setp(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    uint32_t r = 0;
    int type = i->c.type[0], cmp = i->c.cmp;
    if (cmp == W_LO || cmp == W_LS || cmp == W_HI || cmp == W_HS) {
        type = unsigned_type(type);
    }
    switch (cmp) {
    case W_EQ:
        COMPARE_TYPES(==)
        break;
    case W_NE:
        COMPARE_TYPES(!=)
        break;
    case W_LT:
    case W_LO:
        COMPARE_TYPES(<)
        break;
    case W_LE:
    case W_LS:
        COMPARE_TYPES(<=)
        break;
    case W_GT:
    case W_HI:
        COMPARE_TYPES(>)
        break;
    default:
        COMPARE_TYPES(>=)
        break;
    }
    return ptx_setp_finish(w, i, r, mask);
}

/* p = r op c, q = !r op c, where c is the predicate combined with. */
bool ptx_setp_finish(PtxWarp *w, const PtxInstr *i, uint32_t r, uint32_t mask) {
    uint32_t c = i->c.op2 ? ptx_pred(w, &i->o[4]) : 0, q = ~r;
    switch (i->c.op2) {
    case W_W_AND:
        r &= c;
        q &= c;
        break;
    case W_W_OR:
        r |= c;
        q |= c;
        break;
    case W_W_XOR:
        r ^= c;
        q ^= c;
        break;
    default:
        break;
    }
    set_pred(w, i, 0, r, mask);
    set_pred(w, i, 1, q, mask);
    return true;
}

/* A mov with a brace list: parts of 16 or 32 bits, the lowest first. */
static void mov_parts(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    bool unpack = i->npack < 0;
    int n = unpack ? -i->npack : i->npack, whole = unpack ? n : 0;
    int bits = ptx_type_bits(i->c.type[0]), part = bits / n;
    for (uint32_t k = mask; k; k &= k - 1) {
        int l = __builtin_ctz(k);
        uint64_t v = 0;
        if (unpack) {
            const uint8_t *s = ptx_src(w, i, whole);
            memcpy(&v, s + l * (bits == 64 ? 8 : 4), bits == 64 ? 8 : 4);
            for (int e = 0; e < n; e++) {
                uint32_t *d = ptx_dst(w, i, e);
                d[l] = (uint32_t)(v >> (part * e)) & (part == 32 ? ~0u : 0xffff);
            }
            continue;
        }
        for (int e = 0; e < n; e++) {
            const uint32_t *s = ptx_src(w, i, 1 + e);
            v |= (uint64_t)s[l] << (part * e);
        }
        memcpy((uint8_t *)ptx_dst(w, i, 0) + l * (bits == 64 ? 8 : 4), &v, bits == 64 ? 8 : 4);
    }
}

bool ptx_exec_mov(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    if (i->npack) {
        mov_parts(w, i, mask);
    } else if (i->c.type[0] == T_PRED) {
        set_pred(w, i, 0, ptx_pred(w, &i->o[1]), mask);
    } else if (ptx_type_bits(i->c.type[0]) == 64) {
        UNARY(uint64_t, uint64_t, uint64_t, a);
    } else {
        UNARY(uint32_t, uint32_t, uint32_t, a);
    }
    return true;
}

/* Between an address of a space and a generic one. Global addresses are generic as they are. */
bool ptx_exec_cvta(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    uint64_t base = i->c.space == W_SHARED  ? PTX_SHARED_WINDOW
                    : i->c.space == W_LOCAL ? PTX_LOCAL_WINDOW
                    : i->c.space == W_PARAM ? PTX_PARAM_WINDOW
                                            : 0;
    if (i->c.type[0] == T_U32) {
        return ptx_run_fail(w, i, -1, "generic addresses have 64 bits");
    }
    if (i->c.flags & F_TO) {
        UNARY(uint64_t, uint64_t, uint64_t, a - base);
    } else {
        UNARY(uint64_t, uint64_t, uint64_t, a + base);
    }
    return true;
}
