/* nvptx_dot_kernel.c: the kernels of token_dot (runtime/token_dot.c has the formulas).
 *
 *   gram      a CTA for two blocks of a group's rows, the second not behind the first: both inner
 *             product matrices of the two blocks at once in registers, their elementwise product
 *             summed along rows for the first block and along columns for the second; neither
 *             matrix is ever stored
 *   factored  x G a tile at a time, times d, summed along rows
 *   total     adds a row's partial sums
 *
 * A row has DOT_SLOTS partial sums in f64. gram: slot s holds the part of the s-th block; with more
 * blocks than slots, of the s-th run of `run` blocks, and one CTA takes all pairs of two runs.
 * factored: slot s holds column tiles s, s + lanes, …. Every slot is written by one thread in one
 * order. */
#include "codegen/nvptx_gemm.h"

#define B x->b

enum { TOTAL_THREADS = 256 };

typedef struct Dot {
    LlvmIr *x;
    const DotForm *f;
    GemmCode g;
    LLVMValueRef fn;
    LLVMValueRef offsets, part;
    LLVMValueRef first; /* i64: row of the group */
    LLVMValueRef count; /* i32: rows of the group */
} Dot;

static LLVMValueRef load_i64(LlvmIr *x, LLVMValueRef base, LLVMValueRef index32) {
    return LLVMBuildLoad2(B, x->i64, gemm_at(x, x->i64, base, gemm_wide(x, index32)), "");
}

static LLVMValueRef less(LlvmIr *x, LLVMValueRef a, LLVMValueRef b) {
    return LLVMBuildICmp(B, LLVMIntSLT, a, b, "");
}

/* ceil(a / b), i32, not negative */
static LLVMValueRef over(LlvmIr *x, LLVMValueRef a, LLVMValueRef b) {
    LLVMValueRef up = LLVMBuildAdd(B, a, LLVMBuildSub(B, b, llvm_i32(x, 1), ""), "");
    return LLVMBuildUDiv(B, up, b, "");
}

/* Blocks of a group, how many of them share a slot, and how many slots that makes. */
typedef struct Blocks {
    LLVMValueRef blocks, run, runs;
} Blocks;

static Blocks blocks_of(LlvmIr *x, LLVMValueRef count, int tm) {
    Blocks b;
    b.blocks = over(x, count, llvm_i32(x, tm));
    b.run = over(x, b.blocks, llvm_i32(x, DOT_SLOTS));
    LLVMValueRef none = LLVMBuildICmp(B, LLVMIntEQ, b.run, llvm_i32(x, 0), "");
    b.run = LLVMBuildSelect(B, none, llvm_i32(x, 1), b.run, "");
    b.runs = over(x, b.blocks, b.run);
    return b;
}

/* Address of slot `slot` of the group's row `row` (i32 both). */
static LLVMValueRef slot_at(Dot *k, LLVMValueRef row, LLVMValueRef slot) {
    LlvmIr *x = k->x;
    LLVMValueRef r = LLVMBuildAdd(B, k->first, gemm_wide(x, row), "");
    LLVMValueRef at =
        LLVMBuildAdd(B, LLVMBuildMul(B, r, llvm_i64(x, DOT_SLOTS), ""), gemm_wide(x, slot), "");
    return gemm_at(x, x->f64, k->part, at);
}

static LLVMValueRef to_f64(LlvmIr *x, LLVMValueRef v) {
    return LLVMBuildFPExt(B, v, x->f64, "");
}

/* Shared sums of a tile's rows, behind them those of its columns: [line][parts, padded to odd]. */
typedef struct Cells {
    int first, parts; /* in f64 from the start of shared memory */
} Cells;

static Cells row_cells(const GemmTiling *t) {
    return (Cells){0, gemm_row_parts(t)};
}
static Cells col_cells(const GemmTiling *t) {
    return (Cells){t->tm * (gemm_row_parts(t) | 1), gemm_col_parts(t)};
}
static int64_t cells_end(Cells c, int lines) {
    return c.first + (int64_t)lines * (c.parts | 1);
}

static LLVMValueRef cell(Dot *k, Cells c, LLVMValueRef line, LLVMValueRef part) {
    LlvmIr *x = k->x;
    LLVMValueRef at = LLVMBuildMul(B, line, llvm_i32(x, c.parts | 1), "");
    at = LLVMBuildAdd(B, LLVMBuildAdd(B, at, part, ""), llvm_i32(x, c.first), "");
    return gemm_at(x, x->f64, k->g.shared, at);
}

/* Slot of line t of `lines` = (add ? itself : 0) + the line's parts in order, by thread t. The
 * parts were written before a barrier. row0: the first line's row in the group. */
static void sum_parts(Dot *k, Cells c, LLVMValueRef lines, LLVMValueRef row0, LLVMValueRef slot,
                      bool add) {
    LlvmIr *x = k->x;
    LLVMValueRef tid = k->g.tid, limit = gemm_min(x, lines, llvm_i32(x, k->f->tiling.tm));
    LLVMBasicBlockRef after = gemm_if(x, less(x, tid, limit));
    LLVMValueRef sum = NULL;
    for (int i = 0; i < c.parts; i++) {
        LLVMValueRef v = LLVMBuildLoad2(B, x->f64, cell(k, c, tid, llvm_i32(x, i)), "");
        sum = i ? LLVMBuildFAdd(B, sum, v, "") : v;
    }
    LLVMValueRef to = slot_at(k, LLVMBuildAdd(B, row0, tid, ""), slot);
    if (add)
        sum = LLVMBuildFAdd(B, LLVMBuildLoad2(B, x->f64, to, ""), sum, "");
    LLVMBuildStore(B, sum, to);
    gemm_endif(x, after);
}

/* Shared memory for a kernel's stages and, at other times, `cells` sums. */
static LLVMValueRef shared_of(LlvmIr *x, const GemmTiling *t, const GemmSide side[2], int64_t cells,
                              const char *name, uint32_t *bytes) {
    char own[256];
    int64_t floats = gemm_stage_floats(t, side);
    if (floats < 2 * cells)
        floats = 2 * cells;
    *bytes = (uint32_t)(floats * (int64_t)sizeof(float));
    snprintf(own, sizeof own, "%s_shared", name);
    return nvptx_shared(x, x->f32, floats, own);
}

/* ---- gram ---- */

/* What a gram CTA works on: runs ii >= jj of blocks. */
typedef struct Pair {
    LLVMValueRef x, d, in, out;
    LLVMValueRef ii, jj;
    Blocks b;
} Pair;

/* Pair number p of the lower triangle, row by row: sets ii and jj. */
static void find_pair(LlvmIr *x, Pair *p, LLVMValueRef number, LLVMValueRef most) {
    LLVMValueRef zero = llvm_i32(x, 0), one = llvm_i32(x, 1);
    LLVMValueRef i = gemm_var(x, x->i32, zero), rest = gemm_var(x, x->i32, number);
    GemmLoop l = gemm_loop(x, zero, most, one); /* row l.index has l.index + 1 pairs */
    LLVMValueRef now = LLVMBuildLoad2(B, x->i32, rest, "");
    LLVMValueRef row = LLVMBuildLoad2(B, x->i32, i, "");
    LLVMValueRef beyond = LLVMBuildAnd(B, LLVMBuildICmp(B, LLVMIntSGT, now, l.index, ""),
                                       LLVMBuildICmp(B, LLVMIntEQ, row, l.index, ""), "");
    LLVMValueRef next = LLVMBuildAdd(B, l.index, one, "");
    LLVMBuildStore(B, LLVMBuildSelect(B, beyond, LLVMBuildSub(B, now, next, ""), now, ""), rest);
    LLVMBuildStore(B, LLVMBuildSelect(B, beyond, next, row, ""), i);
    gemm_loop_end(x, &l);
    p->ii = LLVMBuildLoad2(B, x->i32, i, "");
    p->jj = LLVMBuildLoad2(B, x->i32, rest, "");
}

/* First block of run `run` and the one after its last. */
static LLVMValueRef run_start(LlvmIr *x, const Pair *p, LLVMValueRef run) {
    return LLVMBuildMul(B, run, p->b.run, "");
}
static LLVMValueRef run_end(LlvmIr *x, const Pair *p, LLVMValueRef run) {
    return gemm_min(x, LLVMBuildAdd(B, run_start(x, p, run), p->b.run, ""), p->b.blocks);
}

/* 0 in slot `slot` of the rows of run `run`. Thread t owns row t of every block, here and later. */
static void clear_run(Dot *k, const Pair *p, LLVMValueRef run, LLVMValueRef slot) {
    LlvmIr *x = k->x;
    LLVMValueRef tm = llvm_i32(x, k->f->tiling.tm);
    GemmLoop l = gemm_loop(x, run_start(x, p, run), run_end(x, p, run), llvm_i32(x, 1));
    LLVMValueRef row = LLVMBuildAdd(B, LLVMBuildMul(B, l.index, tm, ""), k->g.tid, "");
    LLVMBasicBlockRef after =
        gemm_if(x, LLVMBuildAnd(B, less(x, k->g.tid, tm), less(x, row, k->count), ""));
    LLVMBuildStore(B, LLVMConstReal(x->f64, 0), slot_at(k, row, slot));
    gemm_endif(x, after);
    gemm_loop_end(x, &l);
}

static GemmOperand block_operand(Dot *k, GemmSide side, LLVMValueRef base, LLVMValueRef width,
                                 LLVMValueRef row0) {
    LlvmIr *x = k->x;
    GemmOperand o = {.side = side, .stride = width};
    LLVMValueRef row = LLVMBuildAdd(B, k->first, gemm_wide(x, row0), "");
    o.base = gemm_at(x, x->f32, base, LLVMBuildMul(B, row, width, ""));
    o.rows = LLVMBuildSub(B, k->count, row0, "");
    return o;
}

/* The products of two sets of accumulators, each made once, summed along rows and along columns:
 * rows[row_id], cols[column of the thread]. Every product is exact in f64. */
static void sum_products(Dot *k, LLVMValueRef *p, LLVMValueRef *q, LLVMValueRef *rows,
                         LLVMValueRef *cols) {
    LlvmIr *x = k->x;
    const GemmTiling *t = &k->f->tiling;
    const int width = gemm_segment_width(t);
    for (int s = 0; s < gemm_segments(t); s++) {
        GemmSegment at = gemm_segment(&k->g, s);
        for (int j = 0; j < width; j++) {
            LLVMValueRef a = to_f64(x, LLVMBuildLoad2(B, x->f32, p[s * width + j], "")),
                         b = to_f64(x, LLVMBuildLoad2(B, x->f32, q[s * width + j], ""));
            LLVMValueRef *row = &rows[at.row_id], *col = &cols[at.col_id * width + j];
            *row = *row ? llvm_fma(x, a, b, *row) : LLVMBuildFMul(B, a, b, "");
            *col = *col ? llvm_fma(x, a, b, *col) : LLVMBuildFMul(B, a, b, "");
        }
    }
}

static void put_row_sums(Dot *k, LLVMValueRef *sums) {
    LlvmIr *x = k->x;
    const GemmTiling *t = &k->f->tiling;
    for (int s = 0; s < gemm_segments(t); s++) {
        GemmSegment at = gemm_segment(&k->g, s);
        LLVMValueRef sum = sums[at.row_id];
        if (at.col_id == 0)
            LLVMBuildStore(B, sum, cell(k, row_cells(t), at.row, gemm_row_part(&k->g)));
    }
}

static void put_col_sums(Dot *k, LLVMValueRef *sums) {
    LlvmIr *x = k->x;
    const GemmTiling *t = &k->f->tiling;
    const int width = gemm_segment_width(t);
    for (int s = 0; s < gemm_segments(t); s++) {
        GemmSegment at = gemm_segment(&k->g, s);
        for (int j = 0; at.row_id == 0 && j < width; j++) {
            LLVMValueRef col = LLVMBuildAdd(B, at.col, llvm_i32(x, j), "");
            LLVMBuildStore(B, sums[at.col_id * width + j],
                           cell(k, col_cells(t), col, gemm_col_part(&k->g)));
        }
    }
}

/* Blocks i >= j (numbers, i32). */
static void gram_blocks(Dot *k, const Pair *p, LLVMValueRef *xx, LLVMValueRef *dd, LLVMValueRef i,
                        LLVMValueRef j) {
    LlvmIr *x = k->x;
    const GemmTiling *t = &k->f->tiling;
    LLVMValueRef tm = llvm_i32(x, t->tm), ri = LLVMBuildMul(B, i, tm, ""),
                 rj = LLVMBuildMul(B, j, tm, "");
    GemmOperand a = block_operand(k, k->f->x, p->x, p->in, ri),
                b = block_operand(k, k->f->x, p->x, p->in, rj);
    gemm_multiply(&k->g, xx, &a, &b, gemm_narrow(x, p->in));
    a = block_operand(k, k->f->d, p->d, p->out, ri);
    b = block_operand(k, k->f->d, p->d, p->out, rj);
    gemm_multiply(&k->g, dd, &a, &b, gemm_narrow(x, p->out));
    LLVMValueRef rows[GEMM_ACCUMULATORS] = {0}, cols[GEMM_ACCUMULATORS] = {0};
    sum_products(k, xx, dd, rows, cols);
    put_row_sums(k, rows);
    put_col_sums(k,
                 cols); /* also where they are not needed: then nothing moves them behind the if */
    nvptx_barrier(x);
    sum_parts(k, row_cells(t), LLVMBuildSub(B, k->count, ri, ""), ri, p->jj, true);
    LLVMBasicBlockRef after = gemm_if(x, LLVMBuildICmp(B, LLVMIntNE, i, j, ""));
    sum_parts(k, col_cells(t), LLVMBuildSub(B, k->count, rj, ""), rj, p->ii, true);
    gemm_endif(x, after);
    nvptx_barrier(x);
}

/* Parameters: x, d, offsets, part; in, out, limit (groups with so many rows or more are not ours),
 * pairs (of runs, of a group). A CTA for each group and pair. */
void dot_gram_kernel(LlvmIr *x, const DotForm *f, const char *name, StgcCudaKernel *out) {
    LLVMTypeRef p1 = nvptx_global_ptr(x),
                types[] = {p1, p1, p1, p1, x->i64, x->i64, x->i64, x->i64};
    const GemmTiling *t = &f->tiling;
    const GemmSide side[2] = {f->x, f->x};
    Dot k = {.x = x, .f = f};
    Pair p = {0};
    LLVMValueRef xx[GEMM_ACCUMULATORS], dd[GEMM_ACCUMULATORS], one = llvm_i32(x, 1);
    *out = (StgcCudaKernel){.name = name, .threads = (uint32_t)t->threads, .nparams = 8};
    if (f->x.wide != f->d.wide || !f->x.along_k || !f->d.along_k)
        bug("x and d are copied alike");
    k.fn = nvptx_kernel_function(x, name, types, 8, t->threads);
    nvptx_min_ctas(x, k.fn, 1);
    const int64_t cells = cells_end(col_cells(t), t->tn);
    gemm_code_begin(&k.g, x, t, side, shared_of(x, t, side, cells, name, &out->shared_static));
    gemm_accumulator_vars(&k.g, xx);
    gemm_accumulator_vars(&k.g, dd);
    p.x = LLVMGetParam(k.fn, 0), p.d = LLVMGetParam(k.fn, 1);
    k.offsets = LLVMGetParam(k.fn, 2), k.part = LLVMGetParam(k.fn, 3);
    p.in = LLVMGetParam(k.fn, 4), p.out = LLVMGetParam(k.fn, 5);
    LLVMValueRef pairs = gemm_narrow(x, LLVMGetParam(k.fn, 7)), number = nvptx_ctaid(x, 0),
                 group = LLVMBuildUDiv(B, number, pairs, "");
    k.first = load_i64(x, k.offsets, group);
    LLVMValueRef count =
        LLVMBuildSub(B, load_i64(x, k.offsets, LLVMBuildAdd(B, group, one, "")), k.first, "");
    gemm_return_if(x, LLVMBuildICmp(B, LLVMIntSGE, count, LLVMGetParam(k.fn, 6), ""));
    k.count = gemm_narrow(x, count);
    p.b = blocks_of(x, k.count, t->tm);
    find_pair(x, &p, LLVMBuildURem(B, number, pairs, ""), llvm_i32(x, DOT_SLOTS));
    gemm_return_if(x, LLVMBuildICmp(B, LLVMIntSGE, p.ii, p.b.runs, ""));
    clear_run(&k, &p, p.ii, p.jj);
    clear_run(&k, &p, p.jj, p.ii);
    GemmLoop i = gemm_loop(x, run_start(x, &p, p.ii), run_end(x, &p, p.ii), one);
    LLVMValueRef end = gemm_min(x, run_end(x, &p, p.jj), LLVMBuildAdd(B, i.index, one, ""));
    GemmLoop j = gemm_loop(x, run_start(x, &p, p.jj), end, one);
    gram_blocks(&k, &p, xx, dd, i.index, j.index);
    gemm_loop_end(x, &j);
    gemm_loop_end(x, &i);
    LLVMBuildRetVoid(B);
}

/* ---- factored ---- */

/* sum[row_id] += acc times d, for rows and columns that exist. d: at the tile's first row and
 * column. */
static void add_products(Dot *k, LLVMValueRef *acc, LLVMValueRef *sum, LLVMValueRef d,
                         LLVMValueRef width, LLVMValueRef rows, LLVMValueRef cols) {
    LlvmIr *x = k->x;
    const GemmTiling *t = &k->f->tiling;
    const int n = gemm_segment_width(t);
    for (int s = 0; s < gemm_segments(t); s++) {
        GemmSegment at = gemm_segment(&k->g, s);
        LLVMBasicBlockRef row = gemm_if(x, less(x, at.row, rows));
        LLVMValueRef line = gemm_at(x, x->f32, d, LLVMBuildMul(B, gemm_wide(x, at.row), width, ""));
        for (int j = 0; j < n; j++) {
            LLVMValueRef col = LLVMBuildAdd(B, at.col, llvm_i32(x, j), "");
            LLVMBasicBlockRef in = gemm_if(x, less(x, col, cols));
            LLVMValueRef v = LLVMBuildLoad2(B, x->f32, gemm_at(x, x->f32, line, gemm_wide(x, col)),
                                            ""),
                         old = LLVMBuildLoad2(B, x->f64, sum[at.row_id], ""),
                         a = LLVMBuildLoad2(B, x->f32, acc[s * n + j], "");
            LLVMBuildStore(B, llvm_fma(x, to_f64(x, a), to_f64(x, v), old), sum[at.row_id]);
            gemm_endif(x, in);
        }
        gemm_endif(x, row);
    }
}

enum {
    F_X,
    F_D,
    F_GRAD,
    F_OFFSETS,
    F_PART,
    F_IN,
    F_OUT,
    F_LIMIT,
    F_GROUPS,
    F_LD,
    F_GROUP_STRIDE,
    F_LANES,
    F_COUNT
};

/* The CTA's group and first row: sets k->first and k->count; returns the row in the group, i32, or
 * leaves the kernel. */
static LLVMValueRef find_row(Dot *k, LLVMValueRef tile, LLVMValueRef *group) {
    LlvmIr *x = k->x;
    int shift = 0;
    while (1 << shift < k->f->tiling.tm)
        shift++;
    LLVMValueRef one = llvm_i32(x, 1), n = gemm_narrow(x, LLVMGetParam(k->fn, F_GROUPS));
    *group =
        k->f->one_group ? n : gemm_search(x, k->offsets, LLVMBuildSub(B, n, one, ""), tile, shift);
    k->first = load_i64(x, k->offsets, *group);
    LLVMValueRef next = load_i64(x, k->offsets, LLVMBuildAdd(B, *group, one, "")),
                 count = LLVMBuildSub(B, next, k->first, "");
    gemm_return_if(x, LLVMBuildICmp(B, LLVMIntSLT, count, LLVMGetParam(k->fn, F_LIMIT), ""));
    k->count = gemm_narrow(x, count);
    if (!k->f->one_group) {
        LLVMValueRef start = gemm_narrow(x, LLVMBuildLShr(B, k->first, llvm_i64(x, shift), ""));
        tile = LLVMBuildSub(B, tile, LLVMBuildAdd(B, start, *group, ""), "");
    }
    LLVMValueRef row = LLVMBuildShl(B, tile, llvm_i32(x, shift), "");
    gemm_return_if(x, LLVMBuildICmp(B, LLVMIntSGE, row, k->count, ""));
    return row;
}

/* Parameters: x, d, grad, offsets, part; in, out, limit (groups with fewer rows are not ours),
 * groups (one_group: the group's number), ld of grad, distance of its groups, lanes (column tiles
 * are dealt to). A CTA for each row tile of the work list and lane. */
void dot_factored_kernel(LlvmIr *x, const DotForm *f, const char *name, StgcCudaKernel *out) {
    const GemmTiling *t = &f->tiling;
    const GemmSide side[2] = {f->x, f->grad};
    LLVMTypeRef types[F_COUNT];
    Dot k = {.x = x, .f = f};
    LLVMValueRef acc[GEMM_ACCUMULATORS], sum[GEMM_ACCUMULATORS], group;
    for (int i = 0; i < F_COUNT; i++)
        types[i] = i <= F_PART ? nvptx_global_ptr(x) : x->i64;
    *out = (StgcCudaKernel){.name = name, .threads = (uint32_t)t->threads, .nparams = F_COUNT};
    k.fn = nvptx_kernel_function(x, name, types, F_COUNT, t->threads);
    nvptx_min_ctas(x, k.fn, 1);
    const int64_t cells = cells_end(row_cells(t), t->tm);
    gemm_code_begin(&k.g, x, t, side, shared_of(x, t, side, cells, name, &out->shared_static));
    gemm_accumulator_vars(&k.g, acc);
    k.offsets = LLVMGetParam(k.fn, F_OFFSETS), k.part = LLVMGetParam(k.fn, F_PART);
    LLVMValueRef number = nvptx_ctaid(x, 0), lanes = gemm_narrow(x, LLVMGetParam(k.fn, F_LANES)),
                 lane = LLVMBuildURem(B, number, lanes, ""), tn = llvm_i32(x, t->tn);
    LLVMValueRef row0 = find_row(&k, LLVMBuildUDiv(B, number, lanes, ""), &group);
    LLVMValueRef rows = LLVMBuildSub(B, k.count, row0, ""), in = LLVMGetParam(k.fn, F_IN),
                 width = LLVMGetParam(k.fn, F_OUT), ld = LLVMGetParam(k.fn, F_LD);
    LLVMValueRef grad = LLVMGetParam(k.fn, F_GRAD);
    if (!f->one_group)
        grad =
            gemm_at(x, x->f32, grad,
                    LLVMBuildMul(B, gemm_wide(x, group), LLVMGetParam(k.fn, F_GROUP_STRIDE), ""));
    GemmOperand a = block_operand(&k, f->x, LLVMGetParam(k.fn, F_X), in, row0);
    LLVMValueRef line =
        LLVMBuildMul(B, LLVMBuildAdd(B, k.first, gemm_wide(x, row0), ""), width, "");
    LLVMValueRef d = gemm_at(x, x->f32, LLVMGetParam(k.fn, F_D), line);
    for (int r = 0; r < gemm_row_ids(t); r++)
        sum[r] = gemm_var(x, x->f64, LLVMConstReal(x->f64, 0));
    GemmLoop l = gemm_loop(x, LLVMBuildMul(B, lane, tn, ""), gemm_narrow(x, width),
                           LLVMBuildMul(B, lanes, tn, ""));
    LLVMValueRef col = gemm_wide(x, l.index);
    GemmOperand b = {.side = f->grad, .stride = ld};
    b.base = gemm_at(x, x->f32, grad, f->grad.along_k ? LLVMBuildMul(B, col, ld, "") : col);
    b.rows = LLVMBuildSub(B, gemm_narrow(x, width), l.index, "");
    gemm_multiply(&k.g, acc, &a, &b, gemm_narrow(x, in));
    add_products(&k, acc, sum, gemm_at(x, x->f32, d, col), width, rows, b.rows);
    gemm_loop_end(x, &l);
    for (int r = 0; r < gemm_row_ids(t); r++)
        sum[r] = LLVMBuildLoad2(B, x->f64, sum[r], "");
    put_row_sums(&k, sum);
    nvptx_barrier(x);
    sum_parts(&k, row_cells(t), rows, row0, lane, false);
    LLVMBuildRetVoid(B);
}

/* ---- total ---- */

/* Parameters: dot, offsets, part; rows, groups, limit (fewer rows: gram), lanes (of factored). A
 * thread for each row. */
void dot_total_kernel(LlvmIr *x, int tm, const char *name, StgcCudaKernel *out) {
    LLVMTypeRef p1 = nvptx_global_ptr(x), types[] = {p1, p1, p1, x->i64, x->i64, x->i64, x->i64};
    *out = (StgcCudaKernel){.name = name, .threads = TOTAL_THREADS, .nparams = 7};
    Dot k = {.x = x};
    LLVMValueRef zero = llvm_i32(x, 0), one = llvm_i32(x, 1), in[7];
    k.fn = nvptx_kernel_function(x, name, types, 7, TOTAL_THREADS);
    for (unsigned i = 0; i < 7; i++)
        in[i] = LLVMGetParam(k.fn, i);
    k.offsets = in[1], k.part = in[2];
    LLVMValueRef groups = gemm_narrow(x, in[4]), last = LLVMBuildSub(B, groups, one, "");
    LLVMValueRef r = LLVMBuildAdd(
        B, LLVMBuildMul(B, nvptx_ctaid(x, 0), llvm_i32(x, TOTAL_THREADS), ""), nvptx_tid(x), "");
    gemm_return_if(x, LLVMBuildICmp(B, LLVMIntSGE, r, gemm_narrow(x, in[3]), ""));
    LLVMValueRef to = gemm_at(x, x->f32, in[0], gemm_wide(x, r));
    LLVMBuildStore(B, llvm_f32(x, 0), to);
    gemm_return_if(
        x, LLVMBuildICmp(B, LLVMIntSGE, gemm_wide(x, r), load_i64(x, k.offsets, groups), ""));
    LLVMValueRef group = gemm_search(x, k.offsets, last, r, 0);
    k.first = load_i64(x, k.offsets, group);
    LLVMValueRef count =
        LLVMBuildSub(B, load_i64(x, k.offsets, LLVMBuildAdd(B, group, one, "")), k.first, "");
    Blocks b = blocks_of(x, gemm_narrow(x, count), tm);
    LLVMValueRef gram = LLVMBuildICmp(B, LLVMIntSLT, count, in[5], ""),
                 used = LLVMBuildSelect(B, gram, b.runs, gemm_narrow(x, in[6]), "");
    LLVMValueRef sum = gemm_var(x, x->f64, LLVMConstReal(x->f64, 0));
    LLVMValueRef row = LLVMBuildSub(B, r, gemm_narrow(x, k.first), "");
    GemmLoop l = gemm_loop(x, zero, used, one);
    LLVMValueRef v = LLVMBuildLoad2(B, x->f64, slot_at(&k, row, l.index), "");
    LLVMBuildStore(B, LLVMBuildFAdd(B, LLVMBuildLoad2(B, x->f64, sum, ""), v, ""), sum);
    gemm_loop_end(x, &l);
    v = LLVMBuildFDiv(B, LLVMBuildLoad2(B, x->f64, sum, ""),
                      LLVMBuildSIToFP(B, gemm_narrow(x, count), x->f64, ""), "");
    LLVMBuildStore(B, LLVMBuildFPTrunc(B, v, x->f32, ""), to);
    LLVMBuildRetVoid(B);
}
