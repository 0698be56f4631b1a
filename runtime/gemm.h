/* gemm.h: the matrix product engines, inside the runtime.
 *
 * libxsmm (gemm_xsmm.c) makes kernels for the sizes at hand: a strip of rows of A times a panel of
 * columns of B. Our part (gemm_block.c) is which rows and columns meet when, where they lie, and
 * what happens to finished tiles. oneDNN (gemm_onednn.c) takes those dense products for which it is
 * known to be faster.
 *
 * Each element of C is one chain of fused multiply-adds in ascending k, starting at 0 or at the C
 * that is added to: libxsmm keeps it in a register, and storing and loading it between kernels
 * changes nothing. So its bits do not depend on strips, blocks, tasks or threads. The one exception
 * of libxsmm's, panels of one vector by fewer than 12 rows, is never asked for. oneDNN promises
 * nothing of the kind, so its blocks are of sizes that shapes alone decide. */
#ifndef STGC_RUNTIME_GEMM_H
#define STGC_RUNTIME_GEMM_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/step.h"

enum {
    GEMM_NR = 64,             /* columns of a panel of packed B */
    GEMM_MR = 12,             /* rows of a strip, or a multiple; the last has up to twice as many */
    GEMM_KB = 64,             /* depth of one block of a kernel, which takes a number of blocks */
    GEMM_KC = 512,            /* depth of a tile, if it is GEMM_NT columns wide */
    GEMM_DEPTH = 4 * GEMM_KC, /* of a tile at most */
    GEMM_NT = 512,            /* columns of a tile, what an epilogue sees, at most */
    GEMM_MB = 256,            /* rows of a tile buffer */
    GEMM_STRIP = 12288,       /* floats of A in a strip, about: what fits the first cache */
    GEMM_STRIP_ROWS = 8 * GEMM_MR, /* at most */
    GEMM_CHUNK = 8,                /* strips of A packed at a time */
};

/* ---- libxsmm ---- */

/* C[m,n] (=|+=) A[m,k] B[k,n]: B and C in rows, A in rows or in columns ([k,m]). */
typedef struct XsmmShape {
    int32_t m, n, k, lda, ldb, ldc;
    int32_t a_columns, add; /* 0 or 1 */
} XsmmShape;
/* What libxsmm calls a reduce-batch kernel: of our B, A and C, and of a number of blocks of k. */
typedef void (*XsmmFunction)(const float *b, const float *a, float *c, const unsigned long long *,
                             ...);
typedef struct XsmmKernel {
    XsmmFunction run; /* NULL: this CPU has none */
    XsmmShape shape;
} XsmmKernel;
/* Kernels that one thread used lately. */
enum { XSMM_CACHE = 64 };
typedef struct XsmmCache {
    XsmmKernel kernels[XSMM_CACHE];
} XsmmCache;

void xsmm_init(void); /* once per process is enough; any thread */
/* C (+)= A B over `blocks` times the depth of the shape. A shape's first use in the process takes
 * about 70 us. */
void xsmm_run(XsmmCache *cache, const XsmmShape *shape, const float *a, const float *b, float *c,
              int64_t blocks);
void xsmm_describe(char *text, int64_t size); /* "libxsmm 1.17 (clx)" */

/* ---- oneDNN ---- */

struct GemmBlock;
enum { ONEDNN_ROWS = 96, ONEDNN_COLUMNS = 256 }; /* of its blocks, at most */

/* Whether it is the faster one, by shape and layout only; false where it is not installed. */
bool onednn_wants(const StgcGemm *g);
/* Whether it can compute this at all; false where it is not installed. */
bool onednn_takes(const StgcGemm *g);
/* After one of these said yes. False: not this block, nothing is done. */
bool onednn_block(const struct GemmBlock *block);
void onednn_describe(char *text, int64_t size); /* loads it; "oneDNN 2.6.3 (...)" or "oneDNN not installed" */

/* ---- operations on vectors, for this CPU ---- */
typedef struct GemmPackers {
    /* dst[i] = src[i] for i < n. */
    void (*copy)(const float *src, int64_t n, float *dst);
    /* dst[kk*GEMM_NR + j] = src[kk + j*ld] for kk < kc, j < n. */
    void (*transpose)(const float *src, int64_t ld, int64_t kc, int64_t n, float *dst);
    /* dst[kk*GEMM_NR + j] = src[kk*ld + j] for kk < kc, j < GEMM_NR; the same for `panels` panels,
     * GEMM_NR apart in src and `distance` in dst. */
    void (*copy_b)(const float *src, int64_t ld, int64_t kc, int64_t panels, int64_t distance,
                   float *dst);
    /* Strips of A stored [kc][..]: strip s, of `rows` rows, the last one of `last`, goes to
     * dst + s*distance as [kc][its rows]. */
    void (*copy_a)(const float *src, int64_t ld, int64_t kc, int64_t strips, int64_t rows,
                   int64_t last, int64_t distance, float *dst);
} GemmPackers;
typedef struct GemmVectors {
    GemmPackers packers[2]; /* as it is; rounded to bf16 */
    /* sum of x[i] y[i] in f64. */
    double (*dot)(const float *x, const float *y, int64_t n);
    /* sums[i] += x[i] y[i] in f64, i < n. */
    void (*add_products)(const float *x, const float *y, int64_t n, double *sums);
} GemmVectors;
const GemmVectors *gemm_vectors(void);

/* ---- our part ---- */

/* Buffers of one thread; never shared, used by one product at a time. */
typedef struct GemmWork {
    float *a, *b;        /* packed operands */
    float *tile, *tile2; /* [GEMM_MB][GEMM_NT] each */
    int64_t columns;     /* of a tile of depth GEMM_KC: B takes half the second cache */
    const GemmVectors *vectors;
    XsmmCache *cache;
} GemmWork;

/* Panels of packed B: not a multiple of 4096 bytes apart, or they would share cache sets. */
static inline int64_t gemm_panel(int64_t depth) {
    return depth * GEMM_NR + 16;
}

enum {
    GEMM_WORK_A = (GEMM_CHUNK + 2) * GEMM_STRIP,
    GEMM_WORK_B = GEMM_KC * GEMM_NT + 16 * GEMM_NT / GEMM_NR,
    GEMM_WORK_TILE = GEMM_MB * GEMM_NT,
    GEMM_WORK_FLOATS = GEMM_WORK_A + GEMM_WORK_B + 2 * GEMM_WORK_TILE
};

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
    bool bf16; /* operands are rounded to it */
    StgcEpilogue epilogue; /* may be NULL */
    void *env;
    int64_t group, m0, n0; /* what the epilogue is told */
} GemmBlock;

void gemm_block(const GemmWork *work, const GemmBlock *block);

/* gemm_bf16.c: the same of bf16, where there are instructions for it. */
bool bf16_usable(void);
void gemm_block_bf16(const GemmWork *work, const GemmBlock *block);

#endif
