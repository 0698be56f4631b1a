/* lanes.h: loops over the lanes of a mask. The full warp is a counted loop that the compiler turns
 * into vector code; a register may be source and destination, but only of the same lane. */
#ifndef STGCC_TESTS_PTX_LANES_H
#define STGCC_TESTS_PTX_LANES_H

#include "ptx.h"

#define LANE_LOOP(mask, ...) \
    do { \
        if ((mask) == ~0u) { \
            _Pragma("GCC ivdep") for (int l = 0; l < LANES; l++) { \
                __VA_ARGS__ \
            } \
        } else { \
            for (uint32_t k_ = (mask); k_; k_ &= k_ - 1) { \
                int l = __builtin_ctz(k_); \
                __VA_ARGS__ \
            } \
        } \
    } while (0)

/* Lanes of type L hold values computed in type C and stored through type S. */
#define UNARY(L, C, S, ...) \
    do { \
        const L *A_ = ptx_src(w, i, 1); \
        L *D_ = ptx_dst(w, i, 0); \
        LANE_LOOP(mask, C a = (C)A_[l]; D_[l] = (L)(S)(__VA_ARGS__);); \
    } while (0)
#define BINARY(L, C, S, ...) \
    do { \
        const L *A_ = ptx_src(w, i, 1), *B_ = ptx_src(w, i, 2); \
        L *D_ = ptx_dst(w, i, 0); \
        LANE_LOOP(mask, C a = (C)A_[l]; C b = (C)B_[l]; D_[l] = (L)(S)(__VA_ARGS__);); \
    } while (0)
#define TERNARY(L, C, S, ...) \
    do { \
        const L *A_ = ptx_src(w, i, 1), *B_ = ptx_src(w, i, 2), *C_ = ptx_src(w, i, 3); \
        L *D_ = ptx_dst(w, i, 0); \
        LANE_LOOP(mask, C a = (C)A_[l]; C b = (C)B_[l]; C c = (C)C_[l]; \
                  D_[l] = (L)(S)(__VA_ARGS__);); \
    } while (0)
/* Two values and a 32-bit count. */
#define SHIFT(L, C, S, ...) \
    do { \
        const L *A_ = ptx_src(w, i, 1); \
        const uint32_t *B_ = ptx_src(w, i, 2); \
        L *D_ = ptx_dst(w, i, 0); \
        LANE_LOOP(mask, C a = (C)A_[l]; uint32_t b = B_[l]; D_[l] = (L)(S)(__VA_ARGS__);); \
    } while (0)
/* A switch over the integer types; M is one of the above. */
#define INT_TYPES(M, ...) \
    switch (i->c.type[0]) { \
    case T_U16: \
    case T_B16: \
        M(uint32_t, uint16_t, uint16_t, __VA_ARGS__); \
        break; \
    case T_S16: \
        M(uint32_t, int16_t, uint16_t, __VA_ARGS__); \
        break; \
    case T_U32: \
    case T_B32: \
        M(uint32_t, uint32_t, uint32_t, __VA_ARGS__); \
        break; \
    case T_S32: \
        M(uint32_t, int32_t, uint32_t, __VA_ARGS__); \
        break; \
    case T_U64: \
    case T_B64: \
        M(uint64_t, uint64_t, uint64_t, __VA_ARGS__); \
        break; \
    default: \
        M(uint64_t, int64_t, uint64_t, __VA_ARGS__); \
        break; \
    }
/* The same where signedness does not matter: everything wraps. */
#define WRAP_TYPES(M, ...) \
    switch (ptx_type_bits(i->c.type[0])) { \
    case 16: \
        M(uint32_t, uint32_t, uint16_t, __VA_ARGS__); \
        break; \
    case 32: \
        M(uint32_t, uint32_t, uint32_t, __VA_ARGS__); \
        break; \
    default: \
        M(uint64_t, uint64_t, uint64_t, __VA_ARGS__); \
        break; \
    }

#endif
