/* gemm_avx512.c: kernels of 14 rows by 32 columns: 28 sums, 2 columns of B, 1 spread value of A
 * fill the 32 registers; 16 loads feed 28 multiply-adds, so the two multiply-add ports are the
 * limit, and B may stream from the second cache. */
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,bmi2,prfchw")
#include <immintrin.h>
#include <string.h>

#include "runtime/gemm.h"

#define VF __m512
#define VL 16
#define V_ZERO() _mm512_setzero_ps()
#define V_LOAD(p) _mm512_loadu_ps(p)
#define V_SPREAD(x) _mm512_set1_ps(x)
#define V_FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define V_PUT(p, v, n, add) put(p, v, n, add)
#define KERNEL_MR 14
#define KERNEL_NR 32
#define KERNEL_EACH(F) ROWS_14(F)

static inline __mmask16 mask_of(int64_t n) {
    return (__mmask16)_bzhi_u32(0xffff, (unsigned)n);
}

static inline void put(float *p, __m512 v, int64_t n, bool add) {
    __mmask16 m = mask_of(n);
    if (add)
        v = _mm512_add_ps(_mm512_maskz_loadu_ps(m, p), v);
    _mm512_mask_storeu_ps(p, m, v);
}

#include "runtime/gemm_kernel.h"

/* r[i] holds row i of a 16x16 square; afterwards column i. */
static inline __attribute__((always_inline)) void transpose16(__m512 *r) {
    __m512 t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 2]);
        __m512d c = _mm512_castps_pd(t[4 * i + 1]), d = _mm512_castps_pd(t[4 * i + 3]);
        r[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
        r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
    }
    /* r[4g+c] holds, in 128-bit lane l, column 4l+c of rows 4g..4g+3. */
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        t[c] = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88);
        t[4 + c] = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);
        t[8 + c] = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
        t[12 + c] = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        r[c] = _mm512_shuffle_f32x4(t[c], t[8 + c], 0x88);
        r[8 + c] = _mm512_shuffle_f32x4(t[c], t[8 + c], 0xdd);
        r[4 + c] = _mm512_shuffle_f32x4(t[4 + c], t[12 + c], 0x88);
        r[12 + c] = _mm512_shuffle_f32x4(t[4 + c], t[12 + c], 0xdd);
    }
}

static void pack_b_transposed(const float *src, int64_t ld, int64_t kc, int64_t n, float *dst) {
    for (int64_t half = 0; half < KERNEL_NR; half += VL) {
        int64_t columns = n - half < VL ? n - half : VL;
        if (columns <= 0) {
            for (int64_t kk = 0; kk < kc; kk++)
                _mm512_storeu_ps(dst + kk * KERNEL_NR + half, _mm512_setzero_ps());
            continue;
        }
        const float *from = src + half * ld;
        for (int64_t k0 = 0; k0 < kc; k0 += VL) {
            int64_t depth = kc - k0 < VL ? kc - k0 : VL;
            __mmask16 m = mask_of(depth);
            __m512 r[VL];
#pragma GCC unroll 16
            for (int j = 0; j < VL; j++)
                r[j] = j < columns ? _mm512_maskz_loadu_ps(m, from + j * ld + k0)
                                   : _mm512_setzero_ps();
            transpose16(r);
            float *to = dst + k0 * KERNEL_NR + half;
#pragma GCC unroll 16
            for (int kk = 0; kk < VL; kk++)
                if (kk < depth)
                    _mm512_storeu_ps(to + kk * KERNEL_NR, r[kk]);
        }
    }
}

static void pack_b_copy(const float *src, int64_t ld, int64_t kc, int64_t n, float *dst) {
    int64_t whole = n / KERNEL_NR, rest = n % KERNEL_NR, panel = gemm_panel(kc, KERNEL_NR);
    __mmask16 m0 = mask_of(rest < VL ? rest : VL), m1 = mask_of(rest > VL ? rest - VL : 0);
    for (int64_t kk = 0; kk < kc; kk++, src += ld, dst += KERNEL_NR) {
        const float *from = src;
        float *to = dst;
        for (int64_t p = 0; p < whole; p++, from += KERNEL_NR, to += panel) {
            _mm512_storeu_ps(to, _mm512_loadu_ps(from));
            _mm512_storeu_ps(to + VL, _mm512_loadu_ps(from + VL));
        }
        if (rest > 0) {
            _mm512_storeu_ps(to, _mm512_maskz_loadu_ps(m0, from));
            _mm512_storeu_ps(to + VL, _mm512_maskz_loadu_ps(m1, from + VL));
        }
    }
}

static void pack_a_panels(const float *src, int64_t ld, int64_t kc, int64_t m, int64_t strips,
                          float *dst) {
    enum { AHEAD = 8 }; /* rows fetched before they are needed; they lie far apart */
    int64_t start[GEMM_CHUNK + 1];
    for (int64_t s = 0; s <= strips; s++)
        start[s] = gemm_strip(m, strips, s);
    for (int64_t kk = 0; kk < kc; kk++, src += ld) {
        if (kk + AHEAD < kc)
            for (int64_t i = 0; i < m; i += 16)
                _mm_prefetch((const char *)(src + AHEAD * ld + i), _MM_HINT_T0);
        for (int64_t s = 0; s < strips; s++) {
            __mmask16 rows = mask_of(start[s + 1] - start[s]);
            _mm512_mask_storeu_ps(dst + s * gemm_panel(kc, KERNEL_MR) + kk * KERNEL_MR, rows,
                                  _mm512_maskz_loadu_ps(rows, src + start[s]));
        }
    }
}

static double dot(const float *x, const float *y, int64_t n) {
    __m512d s0 = _mm512_setzero_pd(), s1 = s0;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        s0 = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm256_loadu_ps(x + i)),
                             _mm512_cvtps_pd(_mm256_loadu_ps(y + i)), s0);
        s1 = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm256_loadu_ps(x + i + 8)),
                             _mm512_cvtps_pd(_mm256_loadu_ps(y + i + 8)), s1);
    }
    double s = _mm512_reduce_add_pd(_mm512_add_pd(s0, s1));
    for (; i < n; i++)
        s += (double)x[i] * y[i];
    return s;
}

const GemmIsa gemm_avx512 = {
    .name = "AVX-512 14x32",
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
