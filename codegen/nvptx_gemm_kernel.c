/* nvptx_gemm_kernel.c: the kernel of a matrix product (StgcGemm, runtime/step.h).
 *
 *   find the tile        from the CTA's number; groups of rows by their offsets on the device
 *   for column tiles     one, or all in order where an epilogue needs that
 *     multiply           nvptx_gemm_stage.c
 *     add C              if it accumulates
 *     epilogue           on the tile in shared memory, some rows at a time
 *     store C
 *
 * Work list of grouped rows: group e starts at tile number floor(offsets[e] / tm) + e, which leaves
 * it at least as many numbers as it has row tiles and is ascending, so that a CTA finds its group
 * by bisection; numbers beyond a group's last row have nothing to do. The rows behind the last
 * group are one more group, which is cleared. */
#include <stdlib.h>
#include <string.h>

#include "codegen/nvptx_gemm.h"

#define B x->b

enum {
    STATIC_SHARED = 48 * 1024,
    LEAST_SHARED = 99 * 1024,
    TILE_PAD = 4,
    MAX_PARAMS = 256,
    BAND = 8
};

/* The kernel being written. */
typedef struct Kernel {
    LlvmIr *x;
    const GemmForm *f;
    GemmCode g;
    LLVMValueRef fn, in[GEMM_P_COUNT], acc[GEMM_ACCUMULATORS];
    int first_buffer; /* parameter: fault record, then buffers */
    LLVMValueRef epilogue;
    int chunk; /* rows of a tile in shared memory */
    /* i32: */
    LLVMValueRef group, row0, rows, k; /* rows: from row0 on, may be more than a tile */
    LLVMValueRef col0, cols;           /* cols: from col0 on, may be more than a tile */
    LLVMValueRef a, b, c;              /* of the group; C at row0; column 0 */
} Kernel;

bool gemm_param_is_pointer(GemmParam p) {
    return p <= GEMM_P_TABLE;
}

bool gemm_needs(const GemmForm *f, GemmParam p) {
    bool batch = f->kind == STGC_GEMM_BATCH, rows = f->kind == STGC_GEMM_ROWS;
    switch (p) {
    case GEMM_P_A:
    case GEMM_P_B: /* with a table: the arena */
    case GEMM_P_M:
    case GEMM_P_N:
    case GEMM_P_LDA:
    case GEMM_P_LDB:
        return true;
    case GEMM_P_K:
        return f->kind != STGC_GEMM_K;
    case GEMM_P_C:
    case GEMM_P_LDC:
        return f->stored;
    case GEMM_P_OFFSETS:
        return !batch;
    case GEMM_P_INDEX:
        return f->a.gather;
    case GEMM_P_TABLE:
        return f->table;
    case GEMM_P_GROUPS:
        return rows;
    case GEMM_P_BG1:
        return !f->table && (batch || rows);
    case GEMM_P_AG1:
        return batch;
    case GEMM_P_CG1:
        return f->stored && !rows && !f->one_group;
    case GEMM_P_G2:
    case GEMM_P_AG2:
    case GEMM_P_BG2:
        return f->two_axes;
    case GEMM_P_CG2:
        return f->two_axes && f->stored;
    case GEMM_P_GROUP:
    case GEMM_P_LIMIT:
        return f->one_group;
    case GEMM_P_COUNT:
        break;
    }
    bug("no such parameter");
}

static const char *side_name(GemmSide s) {
    static const char *const names[] = {"m", "m4", "k", "k4"};
    return names[2 * s.along_k + s.wide];
}

void gemm_kernel_name(char *out, size_t size, const GemmForm *f, const char *program) {
    static const char *const kinds[] = {"batch", "rows", "k"}, *const precisions[] = {
                                                                   "f32", "tf32", "tf32x3", "bf16"};
    snprintf(out, size, "gemm_%s_%s_%dx%d_a%s_b%s%s%s%s%s%s%s%s%s%s%s%s", kinds[f->kind],
             precisions[f->tiling.precision], f->tiling.tm, f->tiling.tn, side_name(f->a),
             side_name(f->b), f->a.gather ? "_gather" : "", f->table ? "_table" : "",
             f->two_axes ? "_axes" : "", f->accumulate ? "_add" : "", f->stored ? "" : "_unstored",
             f->wide_c ? "_c4" : "", f->one_group ? "_one" : "", f->ordered ? "_ordered" : "",
             f->writes_tile ? "_tile" : "", program ? "_" : "", program ? program : "");
}

int64_t gemm_grid(const GemmForm *f, const StgcGemm *g) {
    const GemmTiling *t = &f->tiling;
    int64_t across = f->ordered ? 1 : (g->n + t->tn - 1) / t->tn, down = (g->m + t->tm - 1) / t->tm,
            groups = g->g1 * g->g2;
    if (f->kind == STGC_GEMM_ROWS)
        return (g->m / t->tm + groups + 1) * across;
    return (f->one_group ? 1 : groups) * down * across;
}

/* ---- where a CTA works ---- */

static LLVMValueRef load_i64(LlvmIr *x, LLVMValueRef base, LLVMValueRef index32) {
    return LLVMBuildLoad2(B, x->i64, gemm_at(x, x->i64, base, gemm_wide(x, index32)), "");
}

/* ceil(n / size), sizes are powers of two */
static LLVMValueRef tiles(LlvmIr *x, LLVMValueRef n, int size) {
    LLVMValueRef up = LLVMBuildAdd(B, n, llvm_i32(x, size - 1), "");
    return LLVMBuildUDiv(B, up, llvm_i32(x, size), "");
}

static LLVMValueRef add_elements(LlvmIr *x, LLVMValueRef base, LLVMValueRef index,
                                 LLVMValueRef stride) {
    LLVMValueRef n = LLVMBuildMul(B, index, stride, "");
    return LLVMBuildGEP2(B, x->f32, base, &n, 1, "");
}

/* Bytes rather than elements: of a table's entry. */
static LLVMValueRef table_base(Kernel *k) {
    LlvmIr *x = k->x;
    LLVMValueRef at = load_i64(x, k->in[GEMM_P_TABLE], k->group);
    return LLVMBuildGEP2(B, x->i8, k->in[GEMM_P_B], &at, 1, "");
}

static int log2_of(int v) {
    int n = 0;
    while (1 << n < v)
        n++;
    return n;
}

/* Zeros in the rows of nobody that this CTA would compute. */
static void clear_rows(Kernel *k) {
    LlvmIr *x = k->x;
    const GemmTiling *t = &k->f->tiling;
    LLVMValueRef end = gemm_narrow(x, k->in[GEMM_P_N]);
    if (!k->f->ordered)
        end = gemm_min(x, end, LLVMBuildAdd(B, k->col0, llvm_i32(x, t->tn), ""));
    LLVMValueRef width = LLVMBuildSub(B, end, k->col0, "");
    LLVMValueRef rows = gemm_min(x, k->rows, llvm_i32(x, t->tm));
    GemmLoop l = gemm_loop(x, k->g.tid, LLVMBuildMul(B, rows, width, ""), llvm_i32(x, t->threads));
    LLVMValueRef row = LLVMBuildUDiv(B, l.index, width, ""),
                 col = LLVMBuildAdd(B, k->col0, LLVMBuildURem(B, l.index, width, ""), "");
    LLVMValueRef at = add_elements(x, k->c, gemm_wide(x, row), k->in[GEMM_P_LDC]);
    LLVMBuildStore(B, llvm_f32(x, 0), gemm_at(x, x->f32, at, gemm_wide(x, col)));
    gemm_loop_end(x, &l);
}

/* Tile `number` of down x across in bands of BAND rows, down the columns of each: what runs at the
 * same time shares a few rows of A, which stay in the second cache while B goes by once. Sets col0
 * and returns the row tile. */
static LLVMValueRef find_tile(Kernel *k, LLVMValueRef number, LLVMValueRef down,
                              LLVMValueRef across) {
    LlvmIr *x = k->x;
    LLVMValueRef most = llvm_i32(x, BAND), per = LLVMBuildMul(B, across, most, "");
    LLVMValueRef first = LLVMBuildMul(B, LLVMBuildUDiv(B, number, per, ""), most, "");
    LLVMValueRef at = LLVMBuildURem(B, number, per, ""),
                 height = gemm_min(x, LLVMBuildSub(B, down, first, ""), most);
    k->col0 = LLVMBuildMul(B, LLVMBuildUDiv(B, at, height, ""), llvm_i32(x, k->f->tiling.tn), "");
    return LLVMBuildAdd(B, first, LLVMBuildURem(B, at, height, ""), "");
}

/* BATCH and K: number = group * tiles of a group + tile. */
static void find_dense(Kernel *k, LLVMValueRef number, LLVMValueRef across) {
    LlvmIr *x = k->x;
    const GemmForm *f = k->f;
    LLVMValueRef m = gemm_narrow(x, k->in[GEMM_P_M]), down = tiles(x, m, f->tiling.tm),
                 per = LLVMBuildMul(B, down, across, "");
    k->group =
        f->one_group ? gemm_narrow(x, k->in[GEMM_P_GROUP]) : LLVMBuildUDiv(B, number, per, "");
    LLVMValueRef tile = find_tile(k, LLVMBuildURem(B, number, per, ""), down, across);
    k->row0 = LLVMBuildMul(B, tile, llvm_i32(x, f->tiling.tm), "");
    k->rows = LLVMBuildSub(B, m, k->row0, "");
    LLVMValueRef e1 = k->group, e2 = NULL;
    if (f->two_axes) {
        LLVMValueRef g2 = gemm_narrow(x, k->in[GEMM_P_G2]);
        e1 = LLVMBuildUDiv(B, k->group, g2, ""), e2 = LLVMBuildURem(B, k->group, g2, "");
    }
    static const struct {
        int base, g1, g2;
    } of[] = {{GEMM_P_A, GEMM_P_AG1, GEMM_P_AG2},
              {GEMM_P_B, GEMM_P_BG1, GEMM_P_BG2},
              {GEMM_P_C, GEMM_P_CG1, GEMM_P_CG2}};
    LLVMValueRef base[3];
    for (int i = 0; i < 3; i++) {
        base[i] = k->in[of[i].base];
        if (base[i] && k->in[of[i].g1])
            base[i] = add_elements(x, base[i], gemm_wide(x, e1), k->in[of[i].g1]);
        if (base[i] && e2 && k->in[of[i].g2])
            base[i] = add_elements(x, base[i], gemm_wide(x, e2), k->in[of[i].g2]);
    }
    k->a = base[0], k->b = f->table ? table_base(k) : base[1], k->c = base[2];
}

/* K: the group's rows are its depth. */
static void find_depth(Kernel *k) {
    LlvmIr *x = k->x;
    const GemmForm *f = k->f;
    LLVMValueRef next = LLVMBuildAdd(B, k->group, llvm_i32(x, 1), "");
    LLVMValueRef first = load_i64(x, k->in[GEMM_P_OFFSETS], k->group);
    LLVMValueRef count = LLVMBuildSub(B, load_i64(x, k->in[GEMM_P_OFFSETS], next), first, "");
    if (f->one_group)
        gemm_return_if(x, LLVMBuildICmp(B, LLVMIntSLT, count, k->in[GEMM_P_LIMIT], ""));
    k->k = gemm_narrow(x, count);
    LLVMValueRef one = llvm_i64(x, 1);
    k->a = add_elements(x, k->a, first, f->a.along_k ? one : k->in[GEMM_P_LDA]);
    k->b = add_elements(x, k->b, first, f->b.along_k ? one : k->in[GEMM_P_LDB]);
}

/* First row of group e (i32), and its place in the work list. */
static LLVMValueRef group_start(Kernel *k, LLVMValueRef e, LLVMValueRef *first) {
    LlvmIr *x = k->x;
    *first = gemm_narrow(x, load_i64(x, k->in[GEMM_P_OFFSETS], e));
    LLVMValueRef tile = LLVMBuildLShr(B, *first, llvm_i32(x, log2_of(k->f->tiling.tm)), "");
    return LLVMBuildAdd(B, tile, e, "");
}

/* ROWS: the numbers of group e start at its place in the work list * column tiles. Leaves the
 * kernel if there is nothing to do. */
static void find_rows(Kernel *k, LLVMValueRef number, LLVMValueRef across) {
    LlvmIr *x = k->x;
    const GemmForm *f = k->f;
    const int shift = log2_of(f->tiling.tm);
    bool tail = f->stored && !f->accumulate;
    LLVMValueRef groups = gemm_narrow(x, k->in[GEMM_P_GROUPS]), one = llvm_i32(x, 1),
                 m = gemm_narrow(x, k->in[GEMM_P_M]), first, to;
    LLVMValueRef end = LLVMBuildSub(B, groups, one, ""), last = tail ? groups : end;
    k->group =
        gemm_search(x, k->in[GEMM_P_OFFSETS], last, LLVMBuildUDiv(B, number, across, ""), shift);
    LLVMValueRef is_tail = LLVMBuildICmp(B, LLVMIntEQ, k->group, groups, "");
    LLVMValueRef start = group_start(k, k->group, &first),
                 next = group_start(k, LLVMBuildAdd(B, gemm_min(x, k->group, end), one, ""), &to);
    LLVMValueRef all = LLVMBuildAdd(B, LLVMBuildLShr(B, m, llvm_i32(x, shift), ""),
                                    LLVMBuildAdd(B, groups, one, ""), "");
    next = LLVMBuildSelect(B, is_tail, all, next, "");
    to = LLVMBuildSelect(B, is_tail, m, to, "");
    number = LLVMBuildSub(B, number, LLVMBuildMul(B, start, across, ""), "");
    LLVMValueRef down = LLVMBuildSub(B, next, start, ""), mine = LLVMBuildMul(B, down, across, "");
    gemm_return_if(x, LLVMBuildICmp(B, LLVMIntSGE, number, mine, ""));
    LLVMValueRef tile = find_tile(k, number, down, across);
    k->row0 = LLVMBuildAdd(B, first, LLVMBuildShl(B, tile, llvm_i32(x, shift), ""), "");
    k->rows = LLVMBuildSub(B, to, k->row0, "");
    gemm_return_if(x, LLVMBuildICmp(B, LLVMIntSLE, k->rows, llvm_i32(x, 0), ""));
    k->a = k->in[GEMM_P_A], k->b = k->in[GEMM_P_B];
    if (f->stored)
        k->c = add_elements(x, k->in[GEMM_P_C], gemm_wide(x, k->row0), k->in[GEMM_P_LDC]);
    if (!tail)
        return;
    LLVMBasicBlockRef after = gemm_if(x, is_tail);
    clear_rows(k);
    LLVMBuildRetVoid(B);
    LLVMPositionBuilderAtEnd(B, after);
}

/* ---- what happens to a finished tile ---- */

/* For the elements of a segment that are in C: acc += C, or C = acc. at: the row of C at column 0
 * of the tile; col: the segment's column in the tile. */
typedef enum { ADD_C, STORE_C } Access;

static void access_part(Kernel *k, Access what, LLVMValueRef *acc, int n, LLVMValueRef at) {
    LlvmIr *x = k->x;
    LLVMTypeRef t = n > 1 ? LLVMVectorType(x->f32, (unsigned)n) : x->f32;
    LLVMValueRef v = LLVMGetUndef(t);
    if (what == ADD_C) {
        v = LLVMBuildLoad2(B, t, at, "");
        LLVMSetAlignment(v, (unsigned)n * 4);
    }
    for (int j = 0; j < n; j++) {
        LLVMValueRef e = LLVMBuildLoad2(B, x->f32, acc[j], ""), place = llvm_i32(x, j);
        if (what == ADD_C) {
            LLVMValueRef old = n > 1 ? LLVMBuildExtractElement(B, v, place, "") : v;
            LLVMBuildStore(B, LLVMBuildFAdd(B, old, e, ""), acc[j]);
        } else {
            v = n > 1 ? LLVMBuildInsertElement(B, v, e, place, "") : e;
        }
    }
    if (what == STORE_C)
        LLVMSetAlignment(LLVMBuildStore(B, v, at), (unsigned)n * 4);
}

static void access_segment(Kernel *k, Access what, LLVMValueRef *acc, LLVMValueRef at,
                           LLVMValueRef col) {
    LlvmIr *x = k->x;
    const int width = gemm_segment_width(&k->f->tiling), step = k->f->wide_c ? width : 1;
    for (int i = 0; i < width; i += step) {
        LLVMValueRef c = i ? LLVMBuildAdd(B, col, llvm_i32(x, i), "") : col;
        LLVMBasicBlockRef after = gemm_if(x, LLVMBuildICmp(B, LLVMIntSLT, c, k->cols, ""));
        access_part(k, what, acc + i, step, gemm_at(x, x->f32, at, gemm_wide(x, c)));
        gemm_endif(x, after);
    }
}

/* The segments of a thread's row r (a row_id): calls back with each. */
typedef void (*SegmentFn)(Kernel *k, LLVMValueRef *acc, const GemmSegment *s, void *ctx);

static void each_of_row(Kernel *k, int r, SegmentFn fn, void *ctx) {
    const GemmTiling *t = &k->f->tiling;
    for (int s = 0; s < gemm_segments(t); s++) {
        GemmSegment at = gemm_segment(&k->g, s);
        if (at.row_id == r)
            fn(k, k->acc + s * gemm_segment_width(t), &at, ctx);
    }
}

static LLVMValueRef row_of(Kernel *k, int r) {
    for (int s = 0;; s++) {
        GemmSegment at = gemm_segment(&k->g, s);
        if (at.row_id == r)
            return at.row;
    }
}

typedef struct RowAccess {
    Access what;
    LLVMValueRef at;
} RowAccess;

static void access_in_row(Kernel *k, LLVMValueRef *acc, const GemmSegment *s, void *ctx) {
    const RowAccess *a = ctx;
    access_segment(k, a->what, acc, a->at, s->col);
}

static void access_c(Kernel *k, Access what) {
    LlvmIr *x = k->x;
    LLVMValueRef tile = gemm_at(x, x->f32, k->c, gemm_wide(x, k->col0));
    for (int r = 0; r < gemm_row_ids(&k->f->tiling); r++) {
        LLVMValueRef row = row_of(k, r);
        LLVMBasicBlockRef after = gemm_if(x, LLVMBuildICmp(B, LLVMIntSLT, row, k->rows, ""));
        RowAccess a = {what, add_elements(x, tile, gemm_wide(x, row), k->in[GEMM_P_LDC])};
        each_of_row(k, r, access_in_row, &a);
        gemm_endif(x, after);
    }
}

/* ---- epilogue: some rows of the tile at a time, in shared memory ---- */

static int tile_ld(const GemmTiling *t) {
    return t->tn + TILE_PAD;
}

/* Rows of a chunk: what fits where the stages were, or the small tile's whole. */
static int chunk_rows(const GemmTiling *t, int64_t stage_floats) {
    const int64_t least = 64 * (64 + TILE_PAD);
    int64_t floats = stage_floats > least ? stage_floats : least;
    int rows = t->tm;
    while ((int64_t)rows * tile_ld(t) > floats)
        rows /= 2;
    return rows;
}

static void store_in_tile(Kernel *k, LLVMValueRef *acc, const GemmSegment *s, void *ctx) {
    LlvmIr *x = k->x;
    const int width = gemm_segment_width(&k->f->tiling);
    LLVMValueRef *row = ctx, v = LLVMGetUndef(LLVMVectorType(x->f32, (unsigned)width));
    for (int j = 0; j < width; j++)
        v = LLVMBuildInsertElement(B, v, LLVMBuildLoad2(B, x->f32, acc[j], ""), llvm_i32(x, j), "");
    LLVMSetAlignment(LLVMBuildStore(B, v, gemm_at(x, x->f32, *row, s->col)), (unsigned)width * 4);
}

/* C = the chunk's tile, which the epilogue changed. */
static void store_tile(Kernel *k, LLVMValueRef first, LLVMValueRef rows) {
    LlvmIr *x = k->x;
    const GemmTiling *t = &k->f->tiling;
    LLVMValueRef across = llvm_i32(x, t->tn);
    GemmLoop l = gemm_loop(x, k->g.tid, LLVMBuildMul(B, rows, across, ""), llvm_i32(x, t->threads));
    LLVMValueRef row = LLVMBuildUDiv(B, l.index, across, ""),
                 col = LLVMBuildURem(B, l.index, across, "");
    LLVMBasicBlockRef after = gemm_if(x, LLVMBuildICmp(B, LLVMIntSLT, col, k->cols, ""));
    LLVMValueRef from = LLVMBuildAdd(B, LLVMBuildMul(B, row, llvm_i32(x, tile_ld(t)), ""), col, "");
    LLVMValueRef v = LLVMBuildLoad2(B, x->f32, gemm_at(x, x->f32, k->g.shared, from), "");
    LLVMValueRef at = gemm_at(x, x->f32, k->c, gemm_wide(x, LLVMBuildAdd(B, k->col0, col, "")));
    row = gemm_wide(x, LLVMBuildAdd(B, first, row, ""));
    LLVMBuildStore(B, v, add_elements(x, at, row, k->in[GEMM_P_LDC]));
    gemm_endif(x, after);
    gemm_loop_end(x, &l);
    nvptx_barrier(x);
}

static void call_epilogue(Kernel *k, LLVMValueRef first, LLVMValueRef rows) {
    LlvmIr *x = k->x;
    const GemmTiling *t = &k->f->tiling;
    LLVMValueRef in[MAX_PARAMS];
    unsigned n = 0;
    for (int i = 0; i < k->f->program->buffers.n; i++)
        in[n++] = LLVMGetParam(k->fn, (unsigned)(k->first_buffer + 1 + i));
    in[n++] = LLVMGetParam(k->fn, (unsigned)k->first_buffer);
    LLVMValueRef m0 = LLVMBuildAdd(B, k->row0, first, ""),
                 cols = gemm_min(x, k->cols, llvm_i32(x, t->tn));
    in[n++] = gemm_wide(x, k->group);
    in[n++] = gemm_wide(x, m0);
    in[n++] = gemm_wide(x, LLVMBuildAdd(B, m0, rows, ""));
    in[n++] = gemm_wide(x, k->col0);
    in[n++] = gemm_wide(x, LLVMBuildAdd(B, k->col0, cols, ""));
    in[n++] = k->g.shared;
    in[n++] = llvm_i64(x, tile_ld(t));
    LLVMBuildCall2(B, LLVMGlobalGetValueType(k->epilogue), k->epilogue, in, n, "");
}

static void run_epilogue(Kernel *k) {
    LlvmIr *x = k->x;
    const GemmTiling *t = &k->f->tiling;
    LLVMValueRef chunk = llvm_i32(x, k->chunk);
    LLVMValueRef hi = gemm_min(x, k->rows, llvm_i32(x, t->tm));
    GemmLoop l = gemm_loop(x, llvm_i32(x, 0), hi, chunk);
    for (int r = 0; r < gemm_row_ids(t); r++) {
        LLVMValueRef row = LLVMBuildSub(B, row_of(k, r), l.index, "");
        LLVMBasicBlockRef after = gemm_if(x, LLVMBuildICmp(B, LLVMIntULT, row, chunk, ""));
        LLVMValueRef at =
            gemm_at(x, x->f32, k->g.shared, LLVMBuildMul(B, row, llvm_i32(x, tile_ld(t)), ""));
        each_of_row(k, r, store_in_tile, &at);
        gemm_endif(x, after);
    }
    LLVMValueRef rows = gemm_min(x, chunk, LLVMBuildSub(B, hi, l.index, ""));
    call_epilogue(k, l.index, rows);
    if (k->f->writes_tile && k->f->stored)
        store_tile(k, l.index, rows);
    gemm_loop_end(x, &l);
}

/* ---- the kernel ---- */

static GemmOperand operand_a(Kernel *k) {
    LlvmIr *x = k->x;
    const GemmForm *f = k->f;
    GemmOperand o = {.side = f->a, .base = k->a, .stride = k->in[GEMM_P_LDA], .rows = k->rows};
    if (f->a.gather)
        o.index = gemm_at(x, x->i64, k->in[GEMM_P_INDEX], gemm_wide(x, k->row0));
    else
        o.base =
            add_elements(x, k->a, gemm_wide(x, k->row0), f->a.along_k ? o.stride : llvm_i64(x, 1));
    return o;
}

static GemmOperand operand_b(Kernel *k) {
    LlvmIr *x = k->x;
    const GemmForm *f = k->f;
    GemmOperand o = {.side = f->b, .base = k->b, .stride = k->in[GEMM_P_LDB], .rows = k->cols};
    o.base = add_elements(x, k->b, gemm_wide(x, k->col0), f->b.along_k ? o.stride : llvm_i64(x, 1));
    return o;
}

static void make_tile(Kernel *k) {
    LlvmIr *x = k->x;
    const GemmForm *f = k->f;
    k->cols = LLVMBuildSub(B, gemm_narrow(x, k->in[GEMM_P_N]), k->col0, "");
    GemmOperand a = operand_a(k), b = operand_b(k);
    gemm_multiply(&k->g, k->acc, &a, &b, k->k);
    if (f->accumulate)
        access_c(k, ADD_C);
    if (f->stored && !f->writes_tile)
        access_c(k, STORE_C);
    if (f->program)
        run_epilogue(k);
}

/* The column tiles of a CTA: its own one, or all. */
static void make_tiles(Kernel *k) {
    LlvmIr *x = k->x;
    const GemmForm *f = k->f;
    LLVMValueRef number = nvptx_ctaid(x, 0), n = gemm_narrow(x, k->in[GEMM_P_N]);
    LLVMValueRef across = f->ordered ? llvm_i32(x, 1) : tiles(x, n, f->tiling.tn);
    if (f->kind == STGC_GEMM_ROWS)
        find_rows(k, number, across);
    else
        find_dense(k, number, across);
    if (f->kind == STGC_GEMM_K)
        find_depth(k);
    else
        k->k = gemm_narrow(x, k->in[GEMM_P_K]);
    if (f->kind == STGC_GEMM_ROWS && f->table)
        k->b = table_base(k);
    else if (f->kind == STGC_GEMM_ROWS)
        k->b = add_elements(x, k->b, gemm_wide(x, k->group), k->in[GEMM_P_BG1]);
    if (f->kind != STGC_GEMM_ROWS && f->stored)
        k->c = add_elements(x, k->c, gemm_wide(x, k->row0), k->in[GEMM_P_LDC]);
    if (!f->ordered) {
        make_tile(k);
        return;
    }
    GemmLoop l = gemm_loop(x, llvm_i32(x, 0), n, llvm_i32(x, f->tiling.tn));
    k->col0 = l.index;
    make_tile(k);
    gemm_loop_end(x, &l);
}

/* Buffers that an epilogue only reads may be read ahead of its stores (ld.global.nc): buffers do
 * not overlap, and nobody else writes while the kernel runs. */
static void mark_read_only(Kernel *k) {
    const LoopProgram *p = k->f->program;
    for (int b = 0; p && b < p->buffers.n; b++) {
        bool stored = false;
        for (int i = 0; i < p->insts.n; i++)
            stored |= p->insts.at[i].kind == LI_STORE && p->insts.at[i].ref == b;
        const unsigned at = (unsigned)(k->first_buffer + 1 + b) + 1; /* 0 is the result */
        if (!stored) {
            llvm_attribute(k->x, k->fn, at, "noalias", 0);
            llvm_attribute(k->x, k->fn, at, "readonly", 0);
        }
    }
}

static int make_parameters(Kernel *k, const char *name) {
    LlvmIr *x = k->x;
    const GemmForm *f = k->f;
    LLVMTypeRef types[MAX_PARAMS];
    int n = 0, buffers = f->program ? f->program->buffers.n : 0;
    if (buffers + GEMM_P_COUNT + 8 > MAX_PARAMS)
        bug("%s: an epilogue of %d buffers", name, buffers);
    for (int p = 0; p < GEMM_P_COUNT; p++)
        if (gemm_needs(f, (GemmParam)p))
            types[n++] = gemm_param_is_pointer((GemmParam)p) ? nvptx_global_ptr(x) : x->i64;
    k->first_buffer = n;
    for (int i = 0; f->program && i < buffers + 1; i++)
        types[n++] = nvptx_global_ptr(x);
    k->fn = nvptx_kernel_function(x, name, types, n, f->tiling.threads);
    mark_read_only(k);
    nvptx_min_ctas(x, k->fn, 1); /* or ptxas would rather spill than give up one more CTA */
    for (int p = 0, i = 0; p < GEMM_P_COUNT; p++)
        if (gemm_needs(f, (GemmParam)p))
            k->in[p] = LLVMGetParam(k->fn, (unsigned)i++);
    return n;
}

/* What a launch asks for beyond static arrays; begins behind them. */
static LLVMValueRef dynamic_shared(LlvmIr *x) {
    LLVMValueRef v = LLVMGetNamedGlobal(x->m, "stgc_dynamic");
    if (v)
        return v;
    v = LLVMAddGlobalInAddressSpace(x->m, LLVMArrayType2(x->i8, 0), "stgc_dynamic", 3);
    LLVMSetLinkage(v, LLVMExternalLinkage);
    LLVMSetAlignment(v, 16);
    return v;
}

void gemm_kernel(NvptxModule *m, LlvmIr *x, const GemmForm *f, const char *name,
                 StgcCudaKernel *out) {
    Kernel k = {.x = x, .f = f};
    const GemmSide side[2] = {f->a, f->b};
    char other[256];
    int64_t own = 0, floats = gemm_stage_floats(&f->tiling, side);
    if (f->program) {
        snprintf(other, sizeof other, "%s_epilogue", name);
        k.epilogue = nvptx_epilogue(m, f->program, other, f->tiling.threads, &own);
        k.chunk = chunk_rows(&f->tiling, floats);
        if (floats < (int64_t)k.chunk * tile_ld(&f->tiling))
            floats = (int64_t)k.chunk * tile_ld(&f->tiling);
    }
    int64_t bytes = floats * (int64_t)sizeof(float);
    bool dynamic = bytes + own > STATIC_SHARED;
    if (bytes + own > LEAST_SHARED)
        bug("%s: %lld bytes of shared memory", name, (long long)(bytes + own));
    int nparams = make_parameters(&k, name);
    snprintf(other, sizeof other, "%s_shared", name);
    gemm_code_begin(&k.g, x, &f->tiling, side,
                    dynamic ? dynamic_shared(x) : nvptx_shared(x, x->f32, floats, other));
    gemm_accumulator_vars(&k.g, k.acc);
    make_tiles(&k);
    LLVMBuildRetVoid(B);
    *out = (StgcCudaKernel){.name = name,
                            .threads = (uint32_t)f->tiling.threads,
                            .shared_static = (uint32_t)(own + (dynamic ? 0 : bytes)),
                            .shared_dynamic = (uint32_t)(dynamic ? bytes : 0),
                            .nparams = (uint32_t)nparams};
}
