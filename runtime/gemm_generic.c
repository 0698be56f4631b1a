/* gemm_generic.c: kernels of 6 rows by 8 columns in the compiler's own vectors, for any CPU. */
#include <string.h>

#include "runtime/gemm.h"

typedef float Vector4 __attribute__((vector_size(16)));

#define VF Vector4
#define VL 4
#define V_ZERO() \
    (Vector4) { \
        0 \
    }
#define V_LOAD(p) load(p)
#define V_SPREAD(x) spread(x)
#define V_FMA(a, b, c) ((a) * (b) + (c))
#define V_PUT(p, v, n, add) put(p, v, n, add)
#define KERNEL_MR 6
#define KERNEL_NR 8
#define KERNEL_EACH(F) F(0) F(1) F(2) F(3) F(4) F(5)

static inline Vector4 load(const float *p) {
    Vector4 v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline Vector4 spread(float x) {
    return (Vector4){x, x, x, x};
}

static inline void put(float *p, Vector4 v, int64_t n, bool add) {
    for (int64_t i = 0; i < n; i++)
        p[i] = add ? p[i] + v[i] : v[i];
}

#include "runtime/gemm_kernel.h"

static void pack_b_transposed(const float *src, int64_t ld, int64_t kc, int64_t n, float *dst) {
    for (int64_t kk = 0; kk < kc; kk++)
        for (int64_t j = 0; j < KERNEL_NR; j++)
            dst[kk * KERNEL_NR + j] = j < n ? src[j * ld + kk] : 0;
}

static void pack_b_copy(const float *src, int64_t ld, int64_t kc, int64_t n, float *dst) {
    for (int64_t j = 0; j < n; j += KERNEL_NR, dst += gemm_panel(kc, KERNEL_NR))
        for (int64_t kk = 0; kk < kc; kk++)
            for (int64_t jj = 0; jj < KERNEL_NR; jj++)
                dst[kk * KERNEL_NR + jj] = j + jj < n ? src[kk * ld + j + jj] : 0;
}

static void pack_a_panels(const float *src, int64_t ld, int64_t kc, int64_t m, int64_t strips,
                          float *dst) {
    for (int64_t s = 0; s < strips; s++) {
        int64_t i0 = gemm_strip(m, strips, s), rows = gemm_strip(m, strips, s + 1) - i0;
        for (int64_t kk = 0; kk < kc; kk++)
            for (int64_t i = 0; i < rows; i++)
                dst[s * gemm_panel(kc, KERNEL_MR) + kk * KERNEL_MR + i] = src[kk * ld + i0 + i];
    }
}

static double dot(const float *x, const float *y, int64_t n) {
    double s[4] = {0};
    int64_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (int lane = 0; lane < 4; lane++)
            s[lane] += (double)x[i + lane] * y[i + lane];
    double sum = (s[0] + s[1]) + (s[2] + s[3]);
    for (; i < n; i++)
        sum += (double)x[i] * y[i];
    return sum;
}

const GemmIsa gemm_generic = {
    .name = "portable 6x8",
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
