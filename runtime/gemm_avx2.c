/* gemm_avx2.c: kernels of 6 rows by 16 columns for CPUs with AVX2 and FMA: 12 sums, 2 columns of B
 * and a spread value of A in 16 registers. */
#pragma GCC target("avx2,fma,prfchw")
#include <immintrin.h>

#include "runtime/gemm.h"

#define VF __m256
#define VL 8
#define V_ZERO() _mm256_setzero_ps()
#define V_LOAD(p) _mm256_loadu_ps(p)
#define V_SPREAD(x) _mm256_set1_ps(x)
#define V_FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define V_PUT(p, v, n, add) put(p, v, n, add)
#define KERNEL_MR 6
#define KERNEL_NR 16
#define KERNEL_EACH(F) F(0) F(1) F(2) F(3) F(4) F(5)

static inline __m256i mask_of(int64_t n) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lanes);
}

static inline void put(float *p, __m256 v, int64_t n, bool add) {
    if (n == VL) {
        _mm256_storeu_ps(p, add ? _mm256_add_ps(_mm256_loadu_ps(p), v) : v);
        return;
    }
    __m256i m = mask_of(n);
    _mm256_maskstore_ps(p, m, add ? _mm256_add_ps(_mm256_maskload_ps(p, m), v) : v);
}

#include "runtime/gemm_kernel.h"

/* r[i] holds row i of an 8x8 square; afterwards column i. */
static inline __attribute__((always_inline)) void transpose8(__m256 *r) {
    __m256 t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x20);
        t[4 + i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        r[i] = t[i];
}

static void pack_b_transposed(const float *src, int64_t ld, int64_t kc, int64_t n, float *dst) {
    for (int64_t half = 0; half < KERNEL_NR; half += VL) {
        int64_t columns = n - half < VL ? n - half : VL;
        for (int64_t k0 = 0; k0 < kc; k0 += VL) {
            int64_t depth = kc - k0 < VL ? kc - k0 : VL;
            __m256i m = mask_of(depth);
            __m256 r[VL];
#pragma GCC unroll 8
            for (int j = 0; j < VL; j++)
                r[j] = j < columns ? _mm256_maskload_ps(src + (half + j) * ld + k0, m)
                                   : _mm256_setzero_ps();
            transpose8(r);
#pragma GCC unroll 8
            for (int kk = 0; kk < VL; kk++)
                if (kk < depth)
                    _mm256_storeu_ps(dst + (k0 + kk) * KERNEL_NR + half, r[kk]);
        }
    }
}

static void pack_b_copy(const float *src, int64_t ld, int64_t kc, int64_t n, float *dst) {
    for (int64_t j = 0; j < n; j += KERNEL_NR, dst += gemm_panel(kc, KERNEL_NR)) {
        __m256i m0 = mask_of(n - j), m1 = mask_of(n - j - VL);
        for (int64_t kk = 0; kk < kc; kk++) {
            const float *from = src + kk * ld + j;
            _mm256_storeu_ps(dst + kk * KERNEL_NR, _mm256_maskload_ps(from, m0));
            _mm256_storeu_ps(dst + kk * KERNEL_NR + VL, _mm256_maskload_ps(from + VL, m1));
        }
    }
}

static void pack_a_panels(const float *src, int64_t ld, int64_t kc, int64_t m, int64_t strips,
                          float *dst) {
    for (int64_t s = 0; s < strips; s++) {
        int64_t i0 = gemm_strip(m, strips, s);
        __m256i mask = mask_of(gemm_strip(m, strips, s + 1) - i0);
        for (int64_t kk = 0; kk < kc; kk++)
            _mm256_maskstore_ps(dst + s * gemm_panel(kc, KERNEL_MR) + kk * KERNEL_MR, mask,
                                _mm256_maskload_ps(src + kk * ld + i0, mask));
    }
}

static double dot(const float *x, const float *y, int64_t n) {
    __m256d s0 = _mm256_setzero_pd(), s1 = s0;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        s0 = _mm256_fmadd_pd(_mm256_cvtps_pd(_mm_loadu_ps(x + i)),
                             _mm256_cvtps_pd(_mm_loadu_ps(y + i)), s0);
        s1 = _mm256_fmadd_pd(_mm256_cvtps_pd(_mm_loadu_ps(x + i + 4)),
                             _mm256_cvtps_pd(_mm_loadu_ps(y + i + 4)), s1);
    }
    double lane[4];
    _mm256_storeu_pd(lane, _mm256_add_pd(s0, s1));
    double s = (lane[0] + lane[1]) + (lane[2] + lane[3]);
    for (; i < n; i++)
        s += (double)x[i] * y[i];
    return s;
}

const GemmIsa gemm_avx2 = {
    .name = "AVX2 6x16",
    .mr = KERNEL_MR,
    .nr = KERNEL_NR,
    .vl = VL,
    .row = kernel_row,
    .panel = kernel_panel,
    .pack_b_transposed = pack_b_transposed,
    .pack_b_copy = pack_b_copy,
    .pack_a_panels = pack_a_panels,
    .dot = dot,
};
