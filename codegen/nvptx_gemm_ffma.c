/* nvptx_gemm_ffma.c: a stage into a thread's registers with fused multiply-adds.
 *
 * Threads stand in a grid of tm/rm rows and tn/rn columns. A thread's rows come in groups of 4
 * neighbours, 4*(tm/rm) rows apart, and its columns likewise, so that every read from shared memory
 * is 16 bytes and neighbouring threads read neighbours. */
#include "codegen/nvptx_gemm.h"

#define B x->b

enum { QUAD = 4 };

const GemmTiling *gemm_tiling(GemmPrecision p, bool large) {
    /* a stage of tensor cores is soon done: more of them are on their way */
    static const GemmTiling tilings[][2] = {
        [GEMM_F32] = {{GEMM_F32, 64, 64, 16, 256, 4, 4, 0, 0, 2},
                      {GEMM_F32, 128, 128, 8, 256, 8, 8, 0, 0, 3}},
        [GEMM_TF32] = {{GEMM_TF32, 64, 64, 16, 128, 0, 0, 2, 2, 4},
                       {GEMM_TF32, 128, 128, 16, 256, 0, 0, 2, 4, 4}},
        [GEMM_TF32X3] = {{GEMM_TF32X3, 64, 64, 16, 128, 0, 0, 2, 2, 3},
                         {GEMM_TF32X3, 128, 128, 16, 256, 0, 0, 2, 4, 3}},
        [GEMM_BF16] = {{GEMM_BF16, 64, 64, 16, 128, 0, 0, 2, 2, 4},
                       {GEMM_BF16, 128, 128, 16, 256, 0, 0, 2, 4, 4}},
    };
    return &tilings[p][large];
}

void gemm_ffma_place(GemmCode *g) {
    LlvmIr *x = g->x;
    LLVMValueRef across = llvm_i32(x, g->t->tn / g->t->rn), quad = llvm_i32(x, QUAD);
    g->row = LLVMBuildMul(B, LLVMBuildUDiv(B, g->tid, across, ""), quad, "");
    g->col = LLVMBuildMul(B, LLVMBuildURem(B, g->tid, across, ""), quad, "");
}

/* Row i of a thread lies so far from its first one; columns likewise. */
static int spread(int i, int tile, int mine) {
    return i % QUAD + i / QUAD * QUAD * (tile / mine);
}

/* n values of one k, from the thread's place on. */
static void read(LlvmIr *x, LLVMValueRef from, int k, int ld, int tile, int n, LLVMValueRef *v) {
    LLVMTypeRef quad = LLVMVectorType(x->f32, QUAD);
    for (int i = 0; i < n; i += QUAD) {
        LLVMValueRef at = gemm_at(x, x->f32, from, llvm_i32(x, k * ld + spread(i, tile, n)));
        LLVMValueRef four = LLVMBuildLoad2(B, quad, at, "");
        LLVMSetAlignment(four, QUAD * sizeof(float));
        for (int j = 0; j < QUAD; j++)
            v[i + j] = LLVMBuildExtractElement(B, four, llvm_i32(x, j), "");
    }
}

void gemm_ffma_stage(GemmCode *g, LLVMValueRef *acc, LLVMValueRef a, LLVMValueRef b) {
    LlvmIr *x = g->x;
    const GemmTiling *t = g->t;
    LLVMValueRef va[8], vb[8], sum[GEMM_ACCUMULATORS];
    for (int i = 0; i < t->rm * t->rn; i++)
        sum[i] = LLVMBuildLoad2(B, x->f32, acc[i], "");
    a = gemm_at(x, x->f32, a, g->row);
    b = gemm_at(x, x->f32, b, g->col);
    for (int k = 0; k < t->bk; k++) {
        read(x, a, k, g->ld[0], t->tm, t->rm, va);
        read(x, b, k, g->ld[1], t->tn, t->rn, vb);
        for (int i = 0; i < t->rm; i++)
            for (int j = 0; j < t->rn; j++)
                sum[i * t->rn + j] = llvm_fma(x, va[i], vb[j], sum[i * t->rn + j]);
    }
    for (int i = 0; i < t->rm * t->rn; i++)
        LLVMBuildStore(B, sum[i], acc[i]);
}

/* ---- shares of C, of either engine ---- */

enum { FRAGMENT = 16, LANES = 32, QUADS = 8 }; /* of mma: rows, and lanes by lane/4 and lane%4 */

static bool scalar(const GemmTiling *t) {
    return t->precision == GEMM_F32;
}

int gemm_segment_width(const GemmTiling *t) {
    return scalar(t) ? QUAD : 2;
}

int gemm_segments(const GemmTiling *t) {
    return gemm_accumulators(t) / gemm_segment_width(t);
}

int gemm_row_ids(const GemmTiling *t) {
    return scalar(t) ? t->rm : t->tm / t->wm / FRAGMENT * 2;
}

/* FFMA: acc[row][column]; tensor cores: acc[fragment row][fragment column][half][2]. */
GemmSegment gemm_segment(GemmCode *g, int s) {
    LlvmIr *x = g->x;
    const GemmTiling *t = g->t;
    GemmSegment r;
    int row, col;
    if (scalar(t)) {
        int across = t->rn / QUAD;
        r.row_id = s / across, r.col_id = s % across;
        row = spread(r.row_id, t->tm, t->rm), col = spread(r.col_id * QUAD, t->tn, t->rn);
    } else {
        int across = t->tn / t->wn / QUADS, down = s / 2 / across;
        r.row_id = 2 * down + s % 2, r.col_id = s / 2 % across;
        row = down * FRAGMENT + s % 2 * QUADS, col = r.col_id * QUADS;
    }
    r.row = LLVMBuildAdd(B, g->row, llvm_i32(x, row), "");
    r.col = LLVMBuildAdd(B, g->col, llvm_i32(x, col), "");
    return r;
}

int gemm_row_parts(const GemmTiling *t) {
    return scalar(t) ? t->tn / t->rn : t->wn * 4;
}

int gemm_col_parts(const GemmTiling *t) {
    return scalar(t) ? t->tm / t->rm : t->wm * QUADS;
}

/* Tensor cores: warp * lanes that share a row + lane among them. */
static LLVMValueRef part_of(GemmCode *g, LLVMValueRef warp, int lanes, LLVMValueRef lane) {
    LlvmIr *x = g->x;
    return LLVMBuildAdd(B, LLVMBuildMul(B, warp, llvm_i32(x, lanes), ""), lane, "");
}

LLVMValueRef gemm_row_part(GemmCode *g) {
    LlvmIr *x = g->x;
    const GemmTiling *t = g->t;
    if (scalar(t))
        return LLVMBuildURem(B, g->tid, llvm_i32(x, t->tn / t->rn), "");
    LLVMValueRef warp = LLVMBuildUDiv(B, g->tid, llvm_i32(x, LANES), "");
    return part_of(g, LLVMBuildURem(B, warp, llvm_i32(x, t->wn), ""), 4,
                   LLVMBuildURem(B, g->tid, llvm_i32(x, 4), ""));
}

LLVMValueRef gemm_col_part(GemmCode *g) {
    LlvmIr *x = g->x;
    const GemmTiling *t = g->t;
    if (scalar(t))
        return LLVMBuildUDiv(B, g->tid, llvm_i32(x, t->tn / t->rn), "");
    LLVMValueRef warp = LLVMBuildUDiv(B, g->tid, llvm_i32(x, LANES), ""),
                 lane = LLVMBuildURem(B, g->tid, llvm_i32(x, LANES), "");
    return part_of(g, LLVMBuildUDiv(B, warp, llvm_i32(x, t->wn), ""), QUADS,
                   LLVMBuildUDiv(B, lane, llvm_i32(x, 4), ""));
}
