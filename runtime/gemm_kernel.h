/* gemm_kernel.h: the microkernel as a template. No include guard: each instruction set's file
 * defines the vector words below, includes this once, and gets tables kernel_row and kernel_panel.
 *
 *   VF          vector of VL floats         V_ZERO() V_LOAD(p) V_SPREAD(x)
 *   V_FMA(a,b,c) a*b + c                    V_PUT(p, v, n, add): n <= VL values to p, added or not
 *   KERNEL_MR   rows of a full strip (at most 14), KERNEL_NR = 2*VL columns
 *
 * The sums are named variables, not arrays: the compiler then keeps all of them in registers. */

#define ROWS_14(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12) F(13)

#define ROW_FETCH(i) \
    if (mr > i) { \
        __builtin_prefetch(c + i * ldc, 1); \
        if (two) \
            __builtin_prefetch(c + i * ldc + VL, 1); \
    }
#define ROW_SUMS(i) VF s##i##_0 = V_ZERO(), s##i##_1 = V_ZERO();
#define ROW_STEP(i) \
    if (mr > i) { \
        VF x = V_SPREAD(panel ? a[kk * KERNEL_MR + i] : a[i * rs + kk]); \
        s##i##_0 = V_FMA(x, b0, s##i##_0); \
        if (two) \
            s##i##_1 = V_FMA(x, b1, s##i##_1); \
    }
#define ROW_PUT(i) \
    if (mr > i) { \
        if (two) { \
            V_PUT(c + i * ldc, s##i##_0, VL, add); \
            V_PUT(c + i * ldc + VL, s##i##_1, n - VL, add); \
        } else { \
            V_PUT(c + i * ldc, s##i##_0, n, add); \
        } \
    }

/* mr, two and panel are constants at every call. */
static inline __attribute__((always_inline)) void
kernel_body(const int mr, const bool two, const bool panel, int64_t k, const float *a, int64_t rs,
            const float *b, float *c, int64_t ldc, int64_t n, bool add) {
    ROWS_14(ROW_FETCH) /* C is written when the sums are done: have it here by then */
    ROWS_14(ROW_SUMS)
#pragma GCC unroll 4
    for (int64_t kk = 0; kk < k; kk++) {
        VF b0 = V_LOAD(b + kk * KERNEL_NR);
        VF b1 = two ? V_LOAD(b + kk * KERNEL_NR + VL) : b0;
        ROWS_14(ROW_STEP)
    }
    ROWS_14(ROW_PUT)
}

#define KERNEL_ARGS \
    int64_t k, const float *a, int64_t rs, const float *b, float *c, int64_t ldc, int64_t n, \
        bool add
#define KERNEL_ROWS(i) \
    static void row_##i##_1(KERNEL_ARGS) { \
        kernel_body(i + 1, false, false, k, a, rs, b, c, ldc, n, add); \
    } \
    static void row_##i##_2(KERNEL_ARGS) { \
        kernel_body(i + 1, true, false, k, a, rs, b, c, ldc, n, add); \
    } \
    static void panel_##i##_1(KERNEL_ARGS) { \
        kernel_body(i + 1, false, true, k, a, rs, b, c, ldc, n, add); \
    } \
    static void panel_##i##_2(KERNEL_ARGS) { \
        kernel_body(i + 1, true, true, k, a, rs, b, c, ldc, n, add); \
    }
#define ROW_NAMES(i) {row_##i##_1, row_##i##_2},
#define PANEL_NAMES(i) {panel_##i##_1, panel_##i##_2},

KERNEL_EACH(KERNEL_ROWS)
static GemmKernel kernel_row[KERNEL_MR][2] = {KERNEL_EACH(ROW_NAMES)};
static GemmKernel kernel_panel[KERNEL_MR][2] = {KERNEL_EACH(PANEL_NAMES)};
