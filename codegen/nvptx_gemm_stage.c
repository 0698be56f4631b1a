/* nvptx_gemm_stage.c: operands from global to shared memory, and the loop over k.
 *
 *   copy the first stages but one
 *   for stages: wait for this one; barrier; copy one more to where the last one was; multiply this
 * one
 *
 * Copies are asynchronous and pad with zeros what lies outside the operand (beyond its rows, beyond
 * k, holes of a gather): a copy of 0 bytes reads nothing. Shared rows are padded so that neither
 * copies nor the engines' reads meet in one bank more often than they must. */
#include "codegen/nvptx_gemm.h"

#define B x->b

enum { CHUNK = 4, MAX_PASSES = 16, BANKED = 8 };

static int side_rows(const GemmTiling *t, int which) {
    return which ? t->tn : t->tm;
}

/* FFMA reads vectors of rows; tensor cores read single values from where they were put, or pairs of
 * neighbours in k for bf16. */
static bool inner_k(const GemmTiling *t, GemmSide s) {
    return t->precision != GEMM_F32 && s.along_k;
}

static int leading(const GemmTiling *t, GemmSide s, int which) {
    if (inner_k(t, s))
        return t->bk + (t->precision == GEMM_BF16 && t->bk % 32 == 0 ? 8 : 4);
    return side_rows(t, which) + (t->precision == GEMM_F32 ? 4 : 8);
}

static int stage_floats(const GemmTiling *t, GemmSide s, int which) {
    return leading(t, s, which) * (inner_k(t, s) ? side_rows(t, which) : t->bk);
}

int64_t gemm_stage_floats(const GemmTiling *t, const GemmSide side[2]) {
    return t->stages * (int64_t)(stage_floats(t, side[0], 0) + stage_floats(t, side[1], 1));
}

void gemm_code_begin(GemmCode *g, LlvmIr *x, const GemmTiling *t, const GemmSide side[2],
                     LLVMValueRef shared) {
    *g = (GemmCode){.x = x, .t = t, .shared = shared};
    for (int i = 0; i < 2; i++) {
        g->side[i] = side[i];
        g->ld[i] = leading(t, side[i], i);
        g->inner_k[i] = inner_k(t, side[i]);
        g->floats[i] = stage_floats(t, side[i], i);
    }
    g->tid = nvptx_tid(x);
    if (t->precision == GEMM_F32)
        gemm_ffma_place(g);
    else
        gemm_mma_place(g);
}

/* What one thread copies of a stage: `passes` chunks of `width` floats. */
typedef struct Copy {
    int passes, width;
    LLVMValueRef offset[MAX_PASSES]; /* i64, elements from base, in the first stage */
    LLVMValueRef bytes[MAX_PASSES];  /* i32: of the chunk, as far as rows are concerned */
    LLVMValueRef k[MAX_PASSES];      /* i32: depth in the stage */
    LLVMValueRef to;                 /* i32: floats in the stage, of pass 0 */
    int add[MAX_PASSES];             /* to that, for pass p */
} Copy;

/* Where the chunks of a thread lie: (row, k) of pass 0 and what each pass adds. */
typedef struct Place {
    LLVMValueRef row, k;
    int drow[MAX_PASSES], dk[MAX_PASSES];
} Place;

static Place place_of(const GemmCode *g, int which, int width, int passes) {
    LlvmIr *x = g->x;
    const GemmTiling *t = g->t;
    int rows = side_rows(t, which);
    bool along = g->side[which].along_k, turned = along && !g->inner_k[which];
    /* turned: 8 values of k by 4 rows in a warp meet no bank twice and read whole sectors */
    int fast = turned ? BANKED : (along ? t->bk : rows) / width, slow = t->threads / fast;
    if (t->threads % fast || rows % (along ? slow : 1))
        bug("threads do not divide a stage");
    LLVMValueRef low = LLVMBuildURem(B, g->tid, llvm_i32(x, fast), ""),
                 high = LLVMBuildUDiv(B, g->tid, llvm_i32(x, fast), "");
    low = LLVMBuildMul(B, low, llvm_i32(x, width), "");
    Place p = {.row = along ? high : low, .k = along ? low : high};
    for (int i = 0; i < passes; i++) {
        p.drow[i] = along ? i * slow % rows : 0;
        p.dk[i] = along ? i * slow / rows * fast : i * slow;
    }
    return p;
}

/* max(0, min(4 * left, most)) */
static LLVMValueRef bytes_left(LlvmIr *x, LLVMValueRef left, LLVMValueRef most) {
    LLVMValueRef zero = llvm_i32(x, 0),
                 bytes = LLVMBuildMul(B, left, llvm_i32(x, (int)sizeof(float)), "");
    bytes = gemm_min(x, bytes, most);
    return LLVMBuildSelect(B, LLVMBuildICmp(B, LLVMIntSGT, bytes, zero, ""), bytes, zero, "");
}

/* Row `row` of the tile: where it starts, 0 if it does not exist; *bytes of a chunk there. */
static LLVMValueRef row_start(const GemmOperand *o, LlvmIr *x, LLVMValueRef row, int width,
                              LLVMValueRef *bytes) {
    LLVMValueRef zero = llvm_i32(x, 0), none = llvm_i64(x, 0),
                 whole = llvm_i32(x, width * (int)sizeof(float));
    LLVMValueRef there = LLVMBuildICmp(B, LLVMIntSLT, row, o->rows, "");
    LLVMValueRef at = gemm_wide(x, LLVMBuildSelect(B, there, row, zero, ""));
    if (o->side.gather) {
        at = LLVMBuildLoad2(B, x->i64, gemm_at(x, x->i64, o->index, at), "");
        there = LLVMBuildAnd(B, there, LLVMBuildICmp(B, LLVMIntSGE, at, none, ""), "");
        at = LLVMBuildSelect(B, there, at, none, "");
    }
    *bytes = LLVMBuildSelect(B, there, whole, zero, "");
    if (width > 1 && !o->side.along_k)
        *bytes = bytes_left(x, LLVMBuildSub(B, o->rows, row, ""), whole);
    return o->side.along_k ? LLVMBuildMul(B, at, o->stride, "") : at;
}

static Copy copy_of(GemmCode *g, int which, const GemmOperand *o) {
    LlvmIr *x = g->x;
    const GemmTiling *t = g->t;
    Copy c = {.width = o->side.wide ? CHUNK : 1};
    if (o->side.wide && (o->side.along_k ? !g->inner_k[which] : o->side.gather))
        bug("a wide copy cannot turn or gather");
    c.passes = side_rows(t, which) * t->bk / c.width / t->threads;
    if (c.passes < 1 || c.passes > MAX_PASSES)
        bug("%d copies of a stage by each thread", c.passes);
    Place p = place_of(g, which, c.width, c.passes);
    int ld = g->ld[which];
    LLVMValueRef outer = g->inner_k[which] ? p.row : p.k, inner = g->inner_k[which] ? p.k : p.row;
    c.to = LLVMBuildAdd(B, LLVMBuildMul(B, outer, llvm_i32(x, ld), ""), inner, "");
    LLVMValueRef start = NULL, bytes = NULL;
    for (int i = 0; i < c.passes; i++) {
        c.add[i] = g->inner_k[which] ? p.drow[i] * ld + p.dk[i] : p.dk[i] * ld + p.drow[i];
        if (i == 0 || p.drow[i] != p.drow[i - 1])
            start = row_start(o, x, LLVMBuildAdd(B, p.row, llvm_i32(x, p.drow[i]), ""), c.width,
                              &bytes);
        c.k[i] = LLVMBuildAdd(B, p.k, llvm_i32(x, p.dk[i]), "");
        LLVMValueRef k = gemm_wide(x, c.k[i]);
        if (!o->side.along_k)
            k = LLVMBuildMul(B, k, o->stride, "");
        c.offset[i] = LLVMBuildAdd(B, start, k, "");
        c.bytes[i] = bytes;
    }
    return c;
}

/* Starts the copies of one stage to shared memory at `to`. left: i32, values of k from this stage
 * on, may be 0 or less. base: the operand's, moved on to this stage. */
static void copy_stage(GemmCode *g, const Copy *c, const GemmOperand *o, LLVMValueRef to,
                       LLVMValueRef left, LLVMValueRef base) {
    LlvmIr *x = g->x;
    const char *name = c->width == CHUNK ? "llvm.nvvm.cp.async.cg.shared.global.16.s"
                                         : "llvm.nvvm.cp.async.ca.shared.global.4.s";
    to = gemm_at(x, x->f32, to, c->to);
    for (int i = 0; i < c->passes; i++) {
        LLVMValueRef bytes;
        if (c->width == CHUNK && o->side.along_k)
            bytes = bytes_left(x, LLVMBuildSub(B, left, c->k[i], ""), c->bytes[i]);
        else
            bytes = LLVMBuildSelect(B, LLVMBuildICmp(B, LLVMIntSLT, c->k[i], left, ""), c->bytes[i],
                                    llvm_i32(x, 0), "");
        LLVMValueRef offset = c->offset[i];
        LLVMValueRef in[] = {gemm_at(x, x->f32, to, llvm_i32(x, c->add[i])),
                             LLVMBuildGEP2(B, x->f32, base, &offset, 1, ""), bytes};
        nvptx_call(x, name, in, 3);
    }
}

int gemm_accumulators(const GemmTiling *t) {
    int n = t->tm * t->tn / t->threads;
    if (n > GEMM_ACCUMULATORS)
        bug("%d accumulators", n);
    return n;
}

void gemm_accumulator_vars(GemmCode *g, LLVMValueRef *acc) {
    for (int i = 0; i < gemm_accumulators(g->t); i++)
        acc[i] = gemm_var(g->x, g->x->f32, NULL);
}

/* The stages of a product on their way through shared memory, a ring. */
typedef struct Ring {
    const GemmOperand *o[2];
    Copy c[2];
    LLVMValueRef by[2];   /* i64: elements from a stage to the next */
    LLVMValueRef base[2]; /* variables: of the stage to copy next */
} Ring;

static Ring ring_of(GemmCode *g, const GemmOperand *a, const GemmOperand *b) {
    LlvmIr *x = g->x;
    Ring r = {.o = {a, b}};
    for (int i = 0; i < 2; i++) {
        r.c[i] = copy_of(g, i, r.o[i]);
        LLVMValueRef bk = llvm_i64(x, g->t->bk);
        r.by[i] = r.o[i]->side.along_k ? bk : LLVMBuildMul(B, r.o[i]->stride, bk, "");
        r.base[i] = gemm_var(x, nvptx_global_ptr(x), r.o[i]->base);
    }
    return r;
}

/* Starts copying both operands of the next stage to float `place` (i32) of shared memory. left:
 * i32, values of k from that stage on. */
static void copy_next(GemmCode *g, Ring *r, LLVMValueRef place, LLVMValueRef left) {
    LlvmIr *x = g->x;
    LLVMValueRef to = gemm_at(x, x->f32, g->shared, place);
    for (int i = 0; i < 2; i++) {
        LLVMValueRef base = LLVMBuildLoad2(B, nvptx_global_ptr(x), r->base[i], "");
        copy_stage(g, &r->c[i], r->o[i], i ? gemm_at(x, x->f32, to, llvm_i32(x, g->floats[0])) : to,
                   left, base);
        LLVMBuildStore(B, LLVMBuildGEP2(B, x->f32, base, &r->by[i], 1, ""), r->base[i]);
    }
    nvptx_call(x, "llvm.nvvm.cp.async.commit.group", NULL, 0);
}

/* All but the last `more` stages that were started are there, for all threads. */
static void wait_for_copies(LlvmIr *x, int more) {
    LLVMValueRef n = llvm_i32(x, more);
    nvptx_call(x, "llvm.nvvm.cp.async.wait.group", &n, 1);
    nvptx_barrier(x);
}

void gemm_multiply(GemmCode *g, LLVMValueRef *acc, const GemmOperand *a, const GemmOperand *b,
                   LLVMValueRef k) {
    LlvmIr *x = g->x;
    const int bk = g->t->bk, stage = g->floats[0] + g->floats[1], ahead = g->t->stages - 1;
    LLVMValueRef none = llvm_i32(x, 0), size = llvm_i32(x, stage),
                 last = llvm_i32(x, ahead * stage);
    for (int i = 0; i < gemm_accumulators(g->t); i++)
        LLVMBuildStore(B, llvm_f32(x, 0), acc[i]);
    Ring r = ring_of(g, a, b);
    for (int s = 0; s < ahead; s++)
        copy_next(g, &r, llvm_i32(x, s * stage), LLVMBuildSub(B, k, llvm_i32(x, s * bk), ""));
    LLVMValueRef place = gemm_var(x, x->i32, none);
    GemmLoop l = gemm_loop(x, none, k, llvm_i32(x, bk));
    wait_for_copies(x, ahead - 1);
    LLVMValueRef now = LLVMBuildLoad2(B, x->i32, place, ""),
                 first = LLVMBuildICmp(B, LLVMIntEQ, now, none, ""),
                 end = LLVMBuildICmp(B, LLVMIntEQ, now, last, "");
    LLVMValueRef left =
        LLVMBuildSub(B, LLVMBuildSub(B, k, l.index, ""), llvm_i32(x, ahead * bk), "");
    copy_next(g, &r, LLVMBuildSelect(B, first, last, LLVMBuildSub(B, now, size, ""), ""), left);
    LLVMBuildStore(B, LLVMBuildSelect(B, end, none, LLVMBuildAdd(B, now, size, ""), ""), place);
    LLVMValueRef sa = gemm_at(x, x->f32, g->shared, now),
                 sb = gemm_at(x, x->f32, sa, llvm_i32(x, g->floats[0]));
    if (g->t->precision == GEMM_F32)
        gemm_ffma_stage(g, acc, sa, sb);
    else
        gemm_mma_stage(g, acc, sa, sb);
    gemm_loop_end(x, &l);
    wait_for_copies(x, 0);
}
