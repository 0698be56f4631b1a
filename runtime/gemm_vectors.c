/* gemm_vectors.c: the loops around the kernels that need wide vectors: packing, as it is or rounded
 * to bf16, and dot products in f64. Written once in the compiler's own vectors, compiled for each
 * level of the x86-64 ABI; all levels give the same bits. */
#include <stdlib.h>
#include <string.h>

#include "runtime/cpu_level.h"
#include "runtime/gemm.h"

typedef float Float4 __attribute__((vector_size(16)));
typedef float Float8 __attribute__((vector_size(32)));
typedef uint32_t Int8 __attribute__((vector_size(32)));
typedef double Double8 __attribute__((vector_size(64)));

/* Rows of a source lie far apart: they are fetched some rows before they are needed, unless the
 * hardware sees a run. */
enum { AHEAD = 8, LINE = 16 /* floats */, SHORT = 2 /* panels */ };

#define INLINE static inline __attribute__((always_inline))

/* The nearest bf16, the even one of two, as a float; NaN stays one. */
INLINE void round_8(Float8 *v) {
    Int8 bits = (Int8)*v, up = bits + 0x7fff + (bits >> 16 & 1), nan = (Int8)(*v != *v);
    *v = (Float8)(((up & ~nan) | ((bits | 0x400000) & nan)) & 0xffff0000u);
}

INLINE float round_1(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    bits = v != v ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
    bits &= 0xffff0000u;
    memcpy(&v, &bits, sizeof v);
    return v;
}

INLINE void take_8(Float8 *v, const bool bf16) {
    if (bf16)
        round_8(v);
}

INLINE float take_1(float v, const bool bf16) {
    return bf16 ? round_1(v) : v;
}

/* Rows i and i+4 of four columns, side by side. */
INLINE void load_pair(const float *src, int64_t ld, Float8 *to) {
    Float4 low, high;
    memcpy(&low, src, sizeof low);
    memcpy(&high, src + 4 * ld, sizeof high);
    *to = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
}

/* dst[kk*GEMM_NR + j] = src[j*ld + kk] for 4 values of kk and 8 of j. */
INLINE void transpose_4x8(const float *src, int64_t ld, float *dst, const bool bf16) {
    Float8 r0, r1, r2, r3;
    load_pair(src, ld, &r0);
    load_pair(src + ld, ld, &r1);
    load_pair(src + 2 * ld, ld, &r2);
    load_pair(src + 3 * ld, ld, &r3);
    take_8(&r0, bf16);
    take_8(&r1, bf16);
    take_8(&r2, bf16);
    take_8(&r3, bf16);
    Float8 t0 = __builtin_shufflevector(r0, r1, 0, 8, 1, 9, 4, 12, 5, 13);
    Float8 t1 = __builtin_shufflevector(r2, r3, 0, 8, 1, 9, 4, 12, 5, 13);
    Float8 t2 = __builtin_shufflevector(r0, r1, 2, 10, 3, 11, 6, 14, 7, 15);
    Float8 t3 = __builtin_shufflevector(r2, r3, 2, 10, 3, 11, 6, 14, 7, 15);
    Float8 o0 = __builtin_shufflevector(t0, t1, 0, 1, 8, 9, 4, 5, 12, 13);
    Float8 o1 = __builtin_shufflevector(t0, t1, 2, 3, 10, 11, 6, 7, 14, 15);
    Float8 o2 = __builtin_shufflevector(t2, t3, 0, 1, 8, 9, 4, 5, 12, 13);
    Float8 o3 = __builtin_shufflevector(t2, t3, 2, 3, 10, 11, 6, 7, 14, 15);
    memcpy(dst, &o0, sizeof o0);
    memcpy(dst + GEMM_NR, &o1, sizeof o1);
    memcpy(dst + (int64_t)2 * GEMM_NR, &o2, sizeof o2);
    memcpy(dst + (int64_t)3 * GEMM_NR, &o3, sizeof o3);
}

INLINE void transpose_body(const float *src, int64_t ld, int64_t kc, int64_t n, float *dst,
                           const bool bf16) {
    enum { COLUMNS = 16 }; /* whole lines of dst */
    int64_t j = 0;
    for (int64_t step = COLUMNS; step >= 8; step /= 2)
        for (; j + step <= n; j += step) {
            int64_t kk = 0;
            for (; kk + 4 <= kc; kk += 4) {
                if (kk % LINE == 0)
                    for (int64_t jj = j + step; jj < j + 2 * step && jj < n; jj++)
                        __builtin_prefetch(src + jj * ld + kk);
                for (int64_t half = 0; half < step; half += 8)
                    transpose_4x8(src + (j + half) * ld + kk, ld, dst + kk * GEMM_NR + j + half,
                                  bf16);
            }
            for (; kk < kc; kk++)
                for (int64_t jj = j; jj < j + step; jj++)
                    dst[kk * GEMM_NR + jj] = take_1(src[jj * ld + kk], bf16);
        }
    for (; j < n; j++)
        for (int64_t kk = 0; kk < kc; kk++)
            dst[kk * GEMM_NR + j] = take_1(src[j * ld + kk], bf16);
}

INLINE void copy_8(const float *src, float *dst, const bool bf16) {
    Float8 v;
    memcpy(&v, src, sizeof v);
    take_8(&v, bf16);
    memcpy(dst, &v, sizeof v);
}

INLINE void copy_body(const float *src, int64_t n, float *dst, const bool bf16) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        copy_8(src + i, dst + i, bf16);
    for (; i < n; i++)
        dst[i] = take_1(src[i], bf16);
}

INLINE void copy_b_body(const float *src, int64_t ld, int64_t kc, int64_t panels, int64_t distance,
                        float *dst, const bool bf16) {
    for (int64_t kk = 0; kk < kc; kk++, src += ld) {
        for (int64_t j = 0; panels <= SHORT && j < panels * GEMM_NR && kk + AHEAD < kc; j += LINE)
            __builtin_prefetch(src + AHEAD * ld + j);
        for (int64_t p = 0; p < panels; p++)
            for (int64_t j = 0; j < GEMM_NR; j += 8)
                copy_8(src + p * GEMM_NR + j, dst + p * distance + kk * GEMM_NR + j, bf16);
    }
}

INLINE void copy_a_body(const float *src, int64_t ld, int64_t kc, int64_t strips, int64_t rows,
                        int64_t last, int64_t distance, float *dst, const bool bf16) {
    int64_t all = (strips - 1) * rows + last;
    for (int64_t kk = 0; kk < kc; kk++, src += ld) {
        for (int64_t i = 0; i < all && kk + AHEAD < kc; i += LINE)
            __builtin_prefetch(src + AHEAD * ld + i);
        const float *from = src;
        for (int64_t s = 0; s < strips; s++, from += rows) {
            int64_t n = s + 1 < strips ? rows : last, i = 0;
            float *to = dst + s * distance + kk * n;
            for (; i + 8 <= n; i += 8)
                copy_8(from + i, to + i, bf16);
            for (; !bf16 && i + 4 <= n; i += 4)
                memcpy(to + i, from + i, sizeof(Float4));
            for (; i < n; i++)
                to[i] = take_1(from[i], bf16);
        }
    }
}

INLINE void add_products(const float *x, const float *y, Double8 *sum) {
    Float8 a, b;
    memcpy(&a, x, sizeof a);
    memcpy(&b, y, sizeof b);
    *sum += __builtin_convertvector(a, Double8) * __builtin_convertvector(b, Double8);
}

INLINE double dot_body(const float *x, const float *y, int64_t n) {
    Double8 s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        add_products(x + i, y + i, &s0);
        add_products(x + i + 8, y + i + 8, &s1);
        add_products(x + i + 16, y + i + 16, &s2);
        add_products(x + i + 24, y + i + 24, &s3);
    }
    for (; i + 8 <= n; i += 8)
        add_products(x + i, y + i, &s0);
    s0 = (s0 + s1) + (s2 + s3);
    double s = ((s0[0] + s0[1]) + (s0[2] + s0[3])) + ((s0[4] + s0[5]) + (s0[6] + s0[7]));
    for (; i < n; i++)
        s += (double)x[i] * y[i];
    return s;
}

INLINE void add_products_body(const float *x, const float *y, int64_t n, double *sums) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        Double8 sum;
        memcpy(&sum, sums + i, sizeof sum);
        add_products(x + i, y + i, &sum);
        memcpy(sums + i, &sum, sizeof sum);
    }
    for (; i < n; i++)
        sums[i] += (double)x[i] * y[i];
}

#define PACKERS(level, bf16, attribute) \
    attribute static void copy_##level##bf16(const float *src, int64_t n, float *dst) { \
        copy_body(src, n, dst, bf16); \
    } \
    attribute static void transpose_##level##bf16(const float *src, int64_t ld, int64_t kc, \
                                                  int64_t n, float *dst) { \
        transpose_body(src, ld, kc, n, dst, bf16); \
    } \
    attribute static void copy_b_##level##bf16(const float *src, int64_t ld, int64_t kc, \
                                               int64_t panels, int64_t distance, float *dst) { \
        copy_b_body(src, ld, kc, panels, distance, dst, bf16); \
    } \
    attribute static void copy_a_##level##bf16(const float *src, int64_t ld, int64_t kc, \
                                               int64_t strips, int64_t rows, int64_t last, \
                                               int64_t distance, float *dst) { \
        copy_a_body(src, ld, kc, strips, rows, last, distance, dst, bf16); \
    }
#define PACKER_NAMES(level, bf16) \
    { copy_##level##bf16, transpose_##level##bf16, copy_b_##level##bf16, copy_a_##level##bf16 }
#define VECTORS(level, attribute) \
    PACKERS(level, 0, attribute) \
    PACKERS(level, 1, attribute) \
    attribute static double dot_##level(const float *x, const float *y, int64_t n) { \
        return dot_body(x, y, n); \
    } \
    attribute static void add_products_##level(const float *x, const float *y, int64_t n, \
                                               double *sums) { \
        add_products_body(x, y, n, sums); \
    } \
    static const GemmVectors vectors_##level = {{PACKER_NAMES(level, 0), PACKER_NAMES(level, 1)}, \
                                                dot_##level, \
                                                add_products_##level};

VECTORS(base, )
#if defined(__x86_64__)
VECTORS(v3, __attribute__((target("arch=x86-64-v3"))))
VECTORS(v4, __attribute__((target("arch=x86-64-v4,prefer-vector-width=512"))))
#endif

const GemmVectors *gemm_vectors(void) {
#if defined(__x86_64__)
    const char *limit = getenv("STGC_ISA");
    int level = limit && strcmp(limit, "generic") == 0 ? 0 : stgc_cpu_level();
    if (level > 0)
        return level == 4 ? &vectors_v4 : &vectors_v3;
#endif
    return &vectors_base;
}
