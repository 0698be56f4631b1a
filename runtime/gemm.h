/* gemm.h: the matrix product engine, inside the runtime.
 *
 * A kernel multiplies a strip of at most `mr` rows of A by a packed panel of `nr` columns of B and
 * writes or adds to C. Each element of C is one chain of multiply-adds over at most GEMM_KC values
 * of k in ascending order; longer products add the chains in ascending order. So the bits of C
 * depend on k alone: not on strips, blocks, tasks or threads. */
#ifndef STGC_RUNTIME_GEMM_H
#define STGC_RUNTIME_GEMM_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/step.h"

enum {
    GEMM_KC = 512,  /* depth of one chain; part of the numbers, so the same for every CPU */
    GEMM_NT = 512,  /* columns of a tile, what an epilogue sees, at most */
    GEMM_MB = 256,  /* rows of a tile buffer */
    GEMM_CHUNK = 9, /* strips of A packed at a time */
    GEMM_A_LD = GEMM_KC + 16 /* row distance of copied A: rows fall into different cache sets */
};

/* c[i*ldc + j] (=|+=) sum over kk < k of A[i][kk] b[kk*nr + j], for the kernel's rows i and j < n.
 * Row kernels read A[i][kk] at a[i*rs + kk], panel kernels at a[kk*mr + i]. */
typedef void (*GemmKernel)(int64_t k, const float *a, int64_t rs, const float *b, float *c,
                           int64_t ldc, int64_t n, bool add);

/* One instruction set. Tables are indexed [rows - 1][columns beyond one vector]. */
typedef struct GemmIsa {
    const char *name;
    int mr, nr, vl; /* rows of a strip, columns of a panel, floats of a vector */
    GemmKernel (*row)[2], (*panel)[2];
    /* dst[kk*nr + j] = src[kk + j*ld] for kk < kc, j < n; zeros for n <= j < nr. */
    void (*pack_b_transposed)(const float *src, int64_t ld, int64_t kc, int64_t n, float *dst);
    /* Panel p, at dst + p*gemm_panel(kc, nr), holds columns [p*nr, (p+1)*nr) of B stored [kc][n]
     * with row distance ld, as [kc][nr]; zeros beyond n. */
    void (*pack_b_copy)(const float *src, int64_t ld, int64_t kc, int64_t n, float *dst);
    /* Strips of A stored [k, m]: panel s, at dst + s*gemm_panel(kc, mr), holds the rows of strip s
     * of `strips` (gemm_strip) as [kc][mr]. */
    void (*pack_a_panels)(const float *src, int64_t ld, int64_t kc, int64_t m, int64_t strips,
                          float *dst);
    /* sum of x[i] y[i], in vectors of doubles where there are any. */
    double (*dot)(const float *x, const float *y, int64_t n);
} GemmIsa;

extern const GemmIsa gemm_avx512, gemm_avx2, gemm_generic;

/* Buffers of one thread; never shared, used by one product at a time. */
typedef struct GemmWork {
    float *a, *b;        /* packed operands */
    float *tile, *tile2; /* [GEMM_MB][GEMM_NT] each */
    int64_t columns;     /* of a tile one chain deep: packed B takes half the second cache */
} GemmWork;
enum {
    GEMM_WORK_A = GEMM_CHUNK * 14 * GEMM_A_LD + 64,
    GEMM_WORK_B = GEMM_KC * GEMM_NT + 64 * 16,
    GEMM_WORK_TILE = GEMM_MB * GEMM_NT,
    GEMM_WORK_FLOATS = GEMM_WORK_A + GEMM_WORK_B + 2 * GEMM_WORK_TILE
};

/* Distance of packed strips of A and panels of B: not a multiple of 4096 bytes, so that writing
 * to all of them in turn stays in the first cache. */
static inline int64_t gemm_panel(int64_t kc, int64_t mr) {
    return kc * mr + 16;
}

/* First row of strip s of m rows: divided evenly, so that no strip is much smaller than others. */
static inline int64_t gemm_strip(int64_t m, int64_t strips, int64_t s) {
    return m * s / strips;
}

/* One thread's share of a product, any size. */
typedef struct GemmBlock {
    int64_t m, n, k;
    const float *a;
    int64_t a_row, a_col;
    const int64_t
        *a_index; /* NULL, or [m]: row i of A is a[a_index[i]*a_row], zeros where negative */
    const float *b;
    int64_t b_row, b_col;
    float *c; /* NULL: the tile only */
    int64_t ldc;
    bool accumulate;
    StgcEpilogue epilogue; /* may be NULL */
    void *env;
    int64_t group, m0, n0; /* what the epilogue is told */
} GemmBlock;

void gemm_block(const GemmIsa *isa, const GemmWork *work, const GemmBlock *block);

#endif
