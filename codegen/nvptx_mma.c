/* nvptx_mma.c: a stage into a thread's registers with tensor cores: mma.sync of warps, which every
 * GPU from sm_80 on has. Layout of fragments (PTX ISA, "Matrix fragments for mma.m16n8k8" and
 * "… m16n8k16"), with g = lane / 4, q = lane % 4:
 *
 *   tf32 m16n8k8    A register r: row g + 8(r%2), k q + 4(r/2)         B: k q + 4r, column g
 *   bf16 m16n8k16   A register r: row g + 8(r%2), k 2q + 8(r/2) + 0,1  B: k 2q + 8r + 0,1, column g
 *   C register r: row g + 8(r/2), column 2q + r%2
 *
 * Factors are rounded to nearest here: the hardware would cut off the low bits of tf32. */
#include "codegen/nvptx_gemm.h"

#define B x->b

enum { LANES = 32, M = 16, N = 8, MOST = 4 };

static int down(const GemmTiling *t) {
    return t->tm / t->wm / M;
}
static int across(const GemmTiling *t) {
    return t->tn / t->wn / N;
}

/* Warps stand in a grid, wn across. The thread's first element of C. */
void gemm_mma_place(GemmCode *g) {
    LlvmIr *x = g->x;
    const GemmTiling *t = g->t;
    if (t->wm * t->wn * LANES != t->threads || down(t) > MOST || across(t) > MOST)
        bug("warps do not divide a tile");
    LLVMValueRef warp = LLVMBuildUDiv(B, g->tid, llvm_i32(x, LANES), ""),
                 lane = LLVMBuildURem(B, g->tid, llvm_i32(x, LANES), ""), wn = llvm_i32(x, t->wn),
                 four = llvm_i32(x, 4);
    LLVMValueRef row = LLVMBuildMul(B, LLVMBuildUDiv(B, warp, wn, ""), llvm_i32(x, t->tm / t->wm),
                                    ""),
                 col = LLVMBuildMul(B, LLVMBuildURem(B, warp, wn, ""), llvm_i32(x, t->tn / t->wn),
                                    "");
    g->row = LLVMBuildAdd(B, row, LLVMBuildUDiv(B, lane, four, ""), "");
    g->col = LLVMBuildAdd(
        B, col, LLVMBuildMul(B, LLVMBuildURem(B, lane, four, ""), llvm_i32(x, 2), ""), "");
}

/* Where a thread reads an operand: its row (or column of B) and depth. */
typedef struct Side {
    LLVMValueRef base; /* at (row, depth) of the lane */
    int row, k;        /* floats from a row to the next, and from a k to the next */
} Side;

/* row: i32, the lane's row in the tile; depth: i32, its k in a fragment. */
static Side side_of(GemmCode *g, int which, LLVMValueRef stage, LLVMValueRef row,
                    LLVMValueRef depth) {
    LlvmIr *x = g->x;
    bool inner = g->inner_k[which];
    Side s = {.row = inner ? g->ld[which] : 1, .k = inner ? 1 : g->ld[which]};
    LLVMValueRef at = LLVMBuildAdd(B, LLVMBuildMul(B, row, llvm_i32(x, s.row), ""),
                                   LLVMBuildMul(B, depth, llvm_i32(x, s.k), ""), "");
    s.base = gemm_at(x, x->f32, stage, at);
    return s;
}

static LLVMValueRef read(LlvmIr *x, const Side *s, int row, int k) {
    return LLVMBuildLoad2(B, x->f32,
                          gemm_at(x, x->f32, s->base, llvm_i32(x, row * s->row + k * s->k)), "");
}

/* Two neighbours in k as bf16, the first one in the low half. */
static LLVMValueRef read_pair(LlvmIr *x, const Side *s, int row, int k) {
    LLVMValueRef v[2];
    if (s->k == 1) {
        LLVMValueRef at = gemm_at(x, x->f32, s->base, llvm_i32(x, row * s->row + k));
        LLVMValueRef two = LLVMBuildLoad2(B, LLVMVectorType(x->f32, 2), at, "");
        LLVMSetAlignment(two, 2 * sizeof(float));
        for (int i = 0; i < 2; i++)
            v[i] = LLVMBuildExtractElement(B, two, llvm_i32(x, i), "");
    } else {
        for (int i = 0; i < 2; i++)
            v[i] = read(x, s, row, k + i);
    }
    LLVMValueRef in[] = {v[1], v[0]}; /* the first operand becomes the high half */
    return LLVMBuildBitCast(B, nvptx_call(x, "llvm.nvvm.ff2bf16x2.rn", in, 2), x->i32, "");
}

/* Factors of one register: value, and for TF32X3 what rounding left of it. */
typedef struct Factor {
    LLVMValueRef high, low;
} Factor;

static Factor tf32(LlvmIr *x, LLVMValueRef v, bool split) {
    Factor f = {.high = nvptx_call(x, "llvm.nvvm.f2tf32.rna", &v, 1)};
    if (split) {
        LLVMValueRef rest = LLVMBuildFSub(B, v, LLVMBuildBitCast(B, f.high, x->f32, ""), "");
        f.low = nvptx_call(x, "llvm.nvvm.f2tf32.rna", &rest, 1);
    }
    return f;
}

static Factor factor(GemmCode *g, const Side *s, int row, int k) {
    LlvmIr *x = g->x;
    if (g->t->precision == GEMM_BF16)
        return (Factor){.high = read_pair(x, s, row, k)};
    return tf32(x, read(x, s, row, k), g->t->precision == GEMM_TF32X3);
}

/* c[4] += A fragment times B fragment. */
static void mma(GemmCode *g, LLVMValueRef c[4], const LLVMValueRef a[4], const LLVMValueRef b[2]) {
    LlvmIr *x = g->x;
    LLVMValueRef in[] = {a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], c[2], c[3]};
    LLVMValueRef r = nvptx_call(x,
                                g->t->precision == GEMM_BF16 ? "llvm.nvvm.mma.m16n8k16.row.col.bf16"
                                                             : "llvm.nvvm.mma.m16n8k8.row.col.tf32",
                                in, COUNT_OF(in));
    for (unsigned i = 0; i < 4; i++)
        c[i] = LLVMBuildExtractValue(B, r, i, "");
}

/* The small products first, so that they are not lost against the large ones. */
static void multiply(GemmCode *g, LLVMValueRef c[4], const Factor a[4], const Factor b[2]) {
    LLVMValueRef ah[4], al[4], bh[2], bl[2];
    for (int r = 0; r < 4; r++)
        ah[r] = a[r].high, al[r] = a[r].low;
    for (int r = 0; r < 2; r++)
        bh[r] = b[r].high, bl[r] = b[r].low;
    if (g->t->precision == GEMM_TF32X3) {
        mma(g, c, al, bh);
        mma(g, c, ah, bl);
    }
    mma(g, c, ah, bh);
}

void gemm_mma_stage(GemmCode *g, LLVMValueRef *acc, LLVMValueRef a, LLVMValueRef b) {
    LlvmIr *x = g->x;
    const GemmTiling *t = g->t;
    const bool pairs = t->precision == GEMM_BF16;
    const int depth = pairs ? 16 : 8, far = pairs ? 8 : 4; /* of a fragment; of its upper half */
    LLVMValueRef sum[GEMM_ACCUMULATORS];
    for (int i = 0; i < gemm_accumulators(t); i++)
        sum[i] = LLVMBuildLoad2(B, x->f32, acc[i], "");
    LLVMValueRef lane = LLVMBuildURem(B, g->tid, llvm_i32(x, LANES), "");
    LLVMValueRef eighth = LLVMBuildUDiv(B, lane, llvm_i32(x, 4), ""),
                 q = LLVMBuildURem(B, lane, llvm_i32(x, 4), ""), twice = llvm_i32(x, 2);
    /* g->col is that of C, 2q; that of B is lane/4 */
    LLVMValueRef col =
        LLVMBuildAdd(B, LLVMBuildSub(B, g->col, LLVMBuildMul(B, q, twice, ""), ""), eighth, "");
    LLVMValueRef k0 = pairs ? LLVMBuildMul(B, q, twice, "") : q;
    Side sa = side_of(g, 0, a, g->row, k0), sb = side_of(g, 1, b, col, k0);
    for (int k = 0; k < t->bk; k += depth) {
        Factor fa[MOST][4];
        for (int i = 0; i < down(t); i++)
            for (int r = 0; r < 4; r++)
                fa[i][r] = factor(g, &sa, i * M + r % 2 * 8, k + r / 2 * far);
        for (int j = 0; j < across(t); j++) {
            Factor fb[2];
            for (int r = 0; r < 2; r++)
                fb[r] = factor(g, &sb, j * N, k + r * far);
            for (int i = 0; i < down(t); i++)
                multiply(g, &sum[4 * (i * across(t) + j)], fa[i], fb);
        }
    }
    for (int i = 0; i < gemm_accumulators(t); i++)
        LLVMBuildStore(B, sum[i], acc[i]);
}
