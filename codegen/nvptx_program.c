/* nvptx_program.c: a LoopProgram as a kernel (TASK) or as a function on a tile (EPILOGUE).
 *
 * nvptx_plan.c says who does what; here it becomes code. Everybody in the team runs every
 * instruction outside dealt loops, with equal values, but stores and faults are the first thread's.
 * A dealt loop starts at lo + own number and goes on by the team's size. A variable accumulated in
 * it is a private one there, combined at the end: by a butterfly of shuffles over the warp, then
 * over the warps' parts in shared memory, in their order; so everybody gets the same sum.
 *
 * Local arrays lie in shared memory, one for the team: as static arrays up to 48 KiB, else as the
 * launch's dynamic memory. A thread as a team has every 1/threads-th cell of its arrays. */
#include <stdlib.h>
#include <string.h>

#include "codegen/nvptx_plan.h"

#include <math.h>

#define B x->b

enum { STATIC_SHARED = 48 * 1024, WARP = 32 };

typedef struct Level {
    TeamKind kind;
    LLVMValueRef thread; /* i64, in the team */
    LLVMValueRef first;  /* i1: is it the team's first? */
} Level;

/* A LOOP or IF being written. */
typedef struct Open {
    int at;
    LLVMBasicBlockRef head, next, exit;
    LLVMValueRef index, step;
    Level outside;     /* of a dealt loop: the level around it */
    LLVMValueRef *was; /* by variable: of those accumulated, the one outside; else NULL */
} Open;

typedef struct Gen {
    NvptxModule *m;
    LlvmIr *x;
    const LoopProgram *p;
    NvptxPlan plan;
    LLVMValueRef fn, fault, scratch, dynamic;
    LLVMBasicBlockRef entry;
    LLVMValueRef *value, *vars, *locals, *buffers;
    LLVMValueRef tile, args[LARG_COUNT];
    LLVMValueRef tid, lane, warp; /* i64, in the CTA */
    Level level;
    VEC(Open) open;
} Gen;

static LLVMBasicBlockRef block(Gen *g, const char *name) {
    return LLVMAppendBasicBlockInContext(g->x->c, g->fn, name);
}

static LLVMValueRef entry_alloca(Gen *g, LLVMTypeRef t) {
    LlvmIr *x = g->x;
    LLVMBasicBlockRef here = LLVMGetInsertBlock(B);
    LLVMValueRef first = LLVMGetFirstInstruction(g->entry);
    if (first)
        LLVMPositionBuilderBefore(B, first);
    else
        LLVMPositionBuilderAtEnd(B, g->entry);
    LLVMValueRef v = LLVMBuildAlloca(B, t, "");
    LLVMPositionBuilderAtEnd(B, here);
    return v;
}

static LLVMValueRef value(Gen *g, LVal v) {
    LlvmIr *x = g->x;
    const LInst *n = lp_inst(g->p, v);
    if (n->kind == LI_ARG)
        return g->args[n->ref];
    if (n->kind != LI_CONST)
        return g->value[v];
    if (n->type == LT_I64)
        return llvm_i64(x, n->i);
    if (n->type == LT_BOOL)
        return LLVMConstInt(x->i1, n->i != 0, false);
    return LLVMConstReal(llvm_type(x, n->type), n->f);
}

static void team_barrier(Gen *g) {
    if (g->level.kind == TEAM_CTA)
        nvptx_barrier(g->x);
    else if (g->level.kind == TEAM_WARP)
        nvptx_warp_sync(g->x);
}

/* ---- memory ---- */

static DType compute_storage(LType t) {
    return t == LT_F32 ? DT_F32 : t == LT_F64 ? DT_F64 : t == LT_I64 ? DT_I64 : DT_BOOL;
}

static LLVMValueRef base_of(Gen *g, int buffer, DType *storage, LLVMValueRef *index) {
    LlvmIr *x = g->x;
    if (buffer >= 0) {
        *storage = g->p->buffers.at[buffer];
        return g->buffers[buffer];
    }
    if (buffer == LB_TILE) {
        *storage = DT_F32;
        return g->tile;
    }
    *storage = compute_storage(g->p->locals.at[LB_LOCAL_INDEX(buffer)].type);
    if (g->plan.team == TEAM_THREAD)
        *index = LLVMBuildMul(B, *index, llvm_i64(x, g->plan.threads), "");
    return g->locals[LB_LOCAL_INDEX(buffer)];
}

/* Opens what only the team's first thread does; NULL if there is no need. */
static LLVMBasicBlockRef only_first(Gen *g) {
    LlvmIr *x = g->x;
    if (g->level.kind == TEAM_THREAD)
        return NULL;
    LLVMBasicBlockRef mine = block(g, "first"), after = block(g, "all");
    LLVMBuildCondBr(B, g->level.first, mine, after);
    LLVMPositionBuilderAtEnd(B, mine);
    return after;
}

static void after_first(Gen *g, LLVMBasicBlockRef after) {
    LlvmIr *x = g->x;
    if (!after)
        return;
    LLVMBuildBr(B, after);
    LLVMPositionBuilderAtEnd(B, after);
}

static void gen_access(Gen *g, int i) {
    LlvmIr *x = g->x;
    const LInst *n = &g->p->insts.at[i];
    DType storage;
    LLVMValueRef access = NULL, index = value(g, n->a);
    LLVMValueRef base = base_of(g, n->ref, &storage, &index);
    if (n->kind == LI_LOAD) {
        g->value[i + 1] = llvm_load(x, storage, base, index, &access);
        return;
    }
    LLVMBasicBlockRef after = only_first(g);
    llvm_store(x, storage, base, index, value(g, n->b), &access);
    after_first(g, after);
}

static void fault_word(LlvmIr *x, LLVMValueRef fault, int64_t offset, LLVMValueRef v) {
    LLVMValueRef at = llvm_i64(x, offset), word = LLVMBuildGEP2(B, x->i8, fault, &at, 1, "");
    LLVMBuildAtomicRMW(B, LLVMAtomicRMWBinOpUMin, word, v, LLVMAtomicOrderingMonotonic, false);
}

void nvptx_fault(NvptxModule *m, LLVMValueRef fault, const char *what, LLVMValueRef where,
                 LLVMValueRef found) {
    LlvmIr *x = nvptx_ir(m);
    int64_t number = nvptx_fault_number(m, what);
    LLVMValueRef low = LLVMBuildAnd(B, where, llvm_i64(x, ((int64_t)1 << 48) - 1), "");
    LLVMValueRef key = LLVMBuildOr(B, low, llvm_i64(x, number << 48), "");
    fault_word(x, fault, offsetof(StgcCudaFault, key), key);
    if (number > STGC_CUDA_FOUND_WHAT)
        return;
    LLVMValueRef value = LLVMBuildAdd(B, found, llvm_i64(x, STGC_CUDA_FOUND_BIAS), "");
    LLVMValueRef high = llvm_i64(x, number << 24);
    high = LLVMBuildShl(B, LLVMBuildOr(B, where, high, ""), llvm_i64(x, 32), "");
    LLVMValueRef fits = LLVMBuildAnd(
        B, LLVMBuildICmp(B, LLVMIntULT, where, llvm_i64(x, STGC_CUDA_FOUND_WHERE), ""),
        LLVMBuildICmp(B, LLVMIntULT, value, llvm_i64(x, 2 * STGC_CUDA_FOUND_BIAS), ""), "");
    LLVMValueRef word = LLVMBuildOr(B, high, value, "");
    fault_word(x, fault, offsetof(StgcCudaFault, found),
               LLVMBuildSelect(B, fits, word, llvm_i64(x, -1), ""));
}

static void gen_fault(Gen *g, const LInst *n) {
    LLVMBasicBlockRef after = only_first(g);
    nvptx_fault(g->m, g->fault, n->text, value(g, n->a), value(g, n->b));
    after_first(g, after);
}

/* ---- accumulation ---- */

static LLVMValueRef identity(LlvmIr *x, LOp op, LType t) {
    if (op == L_AND || op == L_OR)
        return t == LT_BOOL ? LLVMConstInt(x->i1, op == L_AND, false)
                            : llvm_i64(x, op == L_AND ? -1 : 0);
    if (op == L_ADD)
        return LLVMConstNull(llvm_type(x, t));
    if (t == LT_I64)
        return llvm_i64(x, op == L_MIN ? INT64_MAX : INT64_MIN);
    return LLVMConstReal(llvm_type(x, t), op == L_MIN ? (double)INFINITY : -(double)INFINITY);
}

static LLVMValueRef combine(Gen *g, LOp op, LType t, LLVMValueRef a, LLVMValueRef b) {
    return llvm_op(g->x, op, t, a, b, NULL, false);
}

static LLVMValueRef warp_combine(Gen *g, LOp op, LType t, LLVMValueRef v) {
    for (int lanes = WARP / 2; lanes; lanes /= 2)
        v = combine(g, op, t, v, nvptx_shfl_xor(g->x, v, lanes));
    return v;
}

/* Part k of accumulation `slot`, in shared memory: 8 bytes each. */
static LLVMValueRef part_at(Gen *g, int slot, LLVMValueRef warp) {
    LlvmIr *x = g->x;
    LLVMValueRef at = LLVMBuildAdd(B, warp, llvm_i64(x, slot * (g->plan.threads / WARP)), "");
    return LLVMBuildInBoundsGEP2(B, x->i64, g->scratch, &at, 1, "");
}

static LLVMTypeRef part_type(Gen *g, LType t) {
    return t == LT_BOOL ? g->x->i8 : llvm_type(g->x, t);
}

static void write_part(Gen *g, int slot, LType t, LLVMValueRef v) {
    LlvmIr *x = g->x;
    if (t == LT_BOOL)
        v = LLVMBuildZExt(B, v, x->i8, "");
    LLVMBuildStore(B, v, part_at(g, slot, g->warp));
}

static LLVMValueRef read_part(Gen *g, int slot, LType t, int warp) {
    LlvmIr *x = g->x;
    LLVMValueRef v = LLVMBuildLoad2(B, part_type(g, t), part_at(g, slot, llvm_i64(x, warp)), "");
    return t == LT_BOOL ? LLVMBuildTrunc(B, v, x->i1, "") : v;
}

static void begin_accumulation(Gen *g, Open *o) {
    LlvmIr *x = g->x;
    int n = nvptx_accumulated(g->p, o->at, NULL);
    int *vars = xcalloc((size_t)n + 1, sizeof *vars);
    nvptx_accumulated(g->p, o->at, vars);
    o->was = xcalloc((size_t)g->p->vars.n + 1, sizeof *o->was);
    for (int k = 0; k < n; k++) {
        int v = vars[k];
        LType t = g->p->vars.at[v].type;
        o->was[v] = g->vars[v];
        g->vars[v] = entry_alloca(g, llvm_type(x, t));
        LLVMBuildStore(B, identity(x, nvptx_accumulation(g->p, o->at, v), t), g->vars[v]);
    }
    free(vars);
}

/* The builder stands behind the loop, where all threads of the team come. */
static void end_accumulation(Gen *g, Open *o) {
    LlvmIr *x = g->x;
    int n = nvptx_accumulated(g->p, o->at, NULL), warps = g->plan.threads / WARP;
    int *vars = xcalloc((size_t)n + 1, sizeof *vars);
    LLVMValueRef *sum = xcalloc((size_t)n + 1, sizeof *sum);
    nvptx_accumulated(g->p, o->at, vars);
    bool cta = n && g->level.kind == TEAM_CTA && warps > 1;
    for (int k = 0; k < n; k++) {
        LType t = g->p->vars.at[vars[k]].type;
        sum[k] = LLVMBuildLoad2(B, llvm_type(x, t), g->vars[vars[k]], "");
        sum[k] = warp_combine(g, nvptx_accumulation(g->p, o->at, vars[k]), t, sum[k]);
    }
    if (cta) {
        LLVMBasicBlockRef mine = block(g, "lane0"), after = block(g, "parts");
        LLVMValueRef lane0 = LLVMBuildICmp(B, LLVMIntEQ, g->lane, llvm_i64(x, 0), "");
        LLVMBuildCondBr(B, lane0, mine, after);
        LLVMPositionBuilderAtEnd(B, mine);
        for (int k = 0; k < n; k++)
            write_part(g, k, g->p->vars.at[vars[k]].type, sum[k]);
        LLVMBuildBr(B, after);
        LLVMPositionBuilderAtEnd(B, after);
        nvptx_barrier(x);
    }
    for (int k = 0; k < n; k++) {
        int v = vars[k];
        LType t = g->p->vars.at[v].type;
        LOp op = nvptx_accumulation(g->p, o->at, v);
        for (int w = 0; w < warps && cta; w++)
            sum[k] = w ? combine(g, op, t, sum[k], read_part(g, k, t, w)) : read_part(g, k, t, w);
        LLVMValueRef before = LLVMBuildLoad2(B, llvm_type(x, t), o->was[v], "");
        LLVMBuildStore(B, combine(g, op, t, before, sum[k]), o->was[v]);
        g->vars[v] = o->was[v];
    }
    free(vars);
    free(sum);
    free(o->was);
}

/* ---- loops and ifs ---- */

static void enter_deal(Gen *g, Open *o, LLVMValueRef *lo) {
    LlvmIr *x = g->x;
    Deal deal = g->plan.deal[o->at];
    o->step = llvm_i64(x, 1);
    o->outside = g->level;
    if (deal == DEAL_NONE)
        return;
    int size = g->level.kind == TEAM_WARP ? WARP : g->plan.threads;
    if (deal == DEAL_WARPS) {
        o->step = llvm_i64(x, size / WARP);
        *lo = LLVMBuildAdd(B, *lo, g->warp, "");
        g->level.kind = TEAM_WARP, g->level.thread = g->lane;
        g->level.first = LLVMBuildICmp(B, LLVMIntEQ, g->lane, llvm_i64(x, 0), "");
        return;
    }
    o->step = llvm_i64(x, size);
    *lo = LLVMBuildAdd(B, *lo, g->level.thread, "");
    begin_accumulation(g, o);
    g->level.kind = TEAM_THREAD;
}

static void gen_loop(Gen *g, int i) {
    LlvmIr *x = g->x;
    const LInst *n = &g->p->insts.at[i];
    LLVMValueRef lo = value(g, n->a), hi = value(g, n->b);
    Open o = {.at = i, .head = block(g, "loop"), .exit = block(g, "done")};
    LLVMBasicBlockRef pre = block(g, "pre");
    enter_deal(g, &o, &lo);
    LLVMBuildCondBr(B, LLVMBuildICmp(B, LLVMIntSLT, lo, hi, ""), pre, o.exit);
    LLVMPositionBuilderAtEnd(B, pre);
    LLVMBuildBr(B, o.head);
    LLVMPositionBuilderAtEnd(B, o.head);
    o.index = LLVMBuildPhi(B, x->i64, "i");
    LLVMAddIncoming(o.index, &lo, &pre, 1);
    g->value[i + 1] = o.index;
    vec_push(&g->open, o);
}

static void end_loop(Gen *g, Open *o) {
    LlvmIr *x = g->x;
    LLVMValueRef next = LLVMBuildAdd(B, o->index, o->step, "");
    LLVMSetNSW(next, true);
    LLVMValueRef more = LLVMBuildICmp(B, LLVMIntSLT, next, value(g, g->p->insts.at[o->at].b), "");
    LLVMBuildCondBr(B, more, o->head, o->exit);
    LLVMBasicBlockRef latch = LLVMGetInsertBlock(B);
    LLVMAddIncoming(o->index, &next, &latch, 1);
    LLVMPositionBuilderAtEnd(B, o->exit);
    g->level = o->outside;
    if (g->plan.barrier[g->p->insts.at[o->at].ref])
        team_barrier(g);
    if (g->plan.deal[o->at] == DEAL_THREADS)
        end_accumulation(g, o);
}

static void gen_if(Gen *g, int i) {
    LlvmIr *x = g->x;
    Open o = {.at = i, .next = block(g, "else"), .exit = NULL};
    LLVMBasicBlockRef then = block(g, "then");
    LLVMBuildCondBr(B, value(g, g->p->insts.at[i].a), then, o.next);
    LLVMPositionBuilderAtEnd(B, then);
    vec_push(&g->open, o);
}

static void gen_else(Gen *g) {
    LlvmIr *x = g->x;
    Open *o = &g->open.at[g->open.n - 1];
    o->exit = block(g, "endif");
    LLVMBuildBr(B, o->exit);
    LLVMPositionBuilderAtEnd(B, o->next);
}

static void gen_end(Gen *g) {
    LlvmIr *x = g->x;
    Open o = g->open.at[--g->open.n];
    if (g->p->insts.at[o.at].kind == LI_LOOP) {
        end_loop(g, &o);
        return;
    }
    LLVMBasicBlockRef to = o.exit ? o.exit : o.next; /* without an else, `next` is the end */
    LLVMBuildBr(B, to);
    LLVMPositionBuilderAtEnd(B, to);
}

static void gen_op(Gen *g, int i) {
    const LInst *n = &g->p->insts.at[i];
    LType t = lp_type(g->p, n->op == L_SELECT ? n->b : n->a);
    g->value[i + 1] = llvm_op(g->x, (LOp)n->op, t, value(g, n->a), n->b ? value(g, n->b) : NULL,
                              n->c ? value(g, n->c) : NULL, false);
}

static void gen_inst(Gen *g, int i) {
    LlvmIr *x = g->x;
    const LInst *n = &g->p->insts.at[i];
    if (g->plan.barrier[i] && n->kind != LI_END)
        team_barrier(g);
    switch (n->kind) {
    case LI_CONST:
    case LI_ARG:
        break;
    case LI_OP:
        gen_op(g, i);
        break;
    case LI_LOAD:
    case LI_STORE:
        gen_access(g, i);
        break;
    case LI_LOOP:
        gen_loop(g, i);
        break;
    case LI_IF:
        gen_if(g, i);
        break;
    case LI_ELSE:
        gen_else(g);
        break;
    case LI_END:
        gen_end(g);
        break;
    case LI_VAR:
        g->vars[n->ref] = entry_alloca(g, llvm_type(x, g->p->vars.at[n->ref].type));
        LLVMBuildStore(B, value(g, n->a), g->vars[n->ref]);
        break;
    case LI_GET:
        g->value[i + 1] = LLVMBuildLoad2(B, llvm_type(x, n->type), g->vars[n->ref], "");
        break;
    case LI_SET:
        LLVMBuildStore(B, value(g, n->a), g->vars[n->ref]);
        break;
    case LI_FAULT:
        gen_fault(g, n);
        break;
    }
}

/* ---- shared memory ---- */

static int64_t cell_bytes(LType t) {
    return t == LT_BOOL ? 1 : t == LT_F32 ? 4 : 8;
}

static int64_t round16(int64_t n) {
    return (n + 15) / 16 * 16;
}

/* Teams of a CTA that have their own arrays. */
static int64_t team_count(const NvptxPlan *plan) {
    return plan->team == TEAM_THREAD ? plan->threads
           : plan->team == TEAM_WARP ? plan->threads / WARP
                                     : 1;
}

static int64_t scratch_bytes(const NvptxPlan *plan) {
    return plan->team == TEAM_CTA && plan->threads > WARP
               ? 8 * (int64_t)plan->accumulators * (plan->threads / WARP)
               : 0;
}

static int64_t locals_bytes(const NvptxPlan *plan) {
    int64_t n = 0;
    for (int i = 0; i < plan->p->locals.n; i++) {
        const LLocal *l = &plan->p->locals.at[i];
        n += round16(l->count * cell_bytes(l->type) * team_count(plan));
    }
    return n;
}

static void make_scratch(Gen *g, const char *name) {
    char full[96];
    snprintf(full, sizeof full, "%s_parts", name);
    int64_t n = scratch_bytes(&g->plan) / 8;
    if (n)
        g->scratch = nvptx_shared(g->x, g->x->i64, n, full);
}

/* Where each array of this team begins. */
static void make_locals(Gen *g, const char *name) {
    LlvmIr *x = g->x;
    int64_t at = 0;
    bool dynamic = scratch_bytes(&g->plan) + locals_bytes(&g->plan) > STATIC_SHARED;
    LLVMValueRef team = g->plan.team == TEAM_THREAD ? g->tid
                        : g->plan.team == TEAM_WARP ? g->warp
                                                    : NULL;
    for (int i = 0; i < g->p->locals.n; i++) {
        const LLocal *l = &g->p->locals.at[i];
        LLVMTypeRef cell = l->type == LT_BOOL ? x->i8 : llvm_type(x, l->type);
        char full[96];
        snprintf(full, sizeof full, "%s_local%d", name, i);
        if (dynamic) {
            LLVMValueRef offset = llvm_i64(x, at);
            g->locals[i] = LLVMBuildInBoundsGEP2(B, x->i8, g->dynamic, &offset, 1, "");
        } else {
            g->locals[i] = nvptx_shared(x, cell, l->count * team_count(&g->plan), full);
        }
        at += round16(l->count * cell_bytes(l->type) * team_count(&g->plan));
        if (!team)
            continue;
        LLVMValueRef first = team;
        if (g->plan.team == TEAM_WARP)
            first = LLVMBuildMul(B, team, llvm_i64(x, l->count), "");
        g->locals[i] = LLVMBuildInBoundsGEP2(B, cell, g->locals[i], &first, 1, "");
    }
}

/* ---- functions ---- */

static bool is_written(const LoopProgram *p, int buffer) {
    for (int i = 0; i < p->insts.n; i++)
        if (p->insts.at[i].kind == LI_STORE && p->insts.at[i].ref == buffer)
            return true;
    return false;
}

static bool has_fault(const LoopProgram *p) {
    for (int i = 0; i < p->insts.n; i++)
        if (p->insts.at[i].kind == LI_FAULT)
            return true;
    return false;
}

static void gen_begin(Gen *g) {
    const LoopProgram *p = g->p;
    if (p->open.n)
        bug("%s: %d loops or ifs are not ended", p->name, p->open.n);
    g->value = xcalloc((size_t)p->insts.n + 1, sizeof *g->value);
    g->vars = xcalloc((size_t)p->vars.n + 1, sizeof *g->vars);
    g->locals = xcalloc((size_t)p->locals.n + 1, sizeof *g->locals);
    g->buffers = xcalloc((size_t)p->buffers.n + 1, sizeof *g->buffers);
}

static void gen_free(Gen *g) {
    nvptx_plan_free(&g->plan);
    vec_free(&g->open);
    free(g->value);
    free(g->vars);
    free(g->locals);
    free(g->buffers);
}

static void gen_numbers(Gen *g) {
    LlvmIr *x = g->x;
    g->tid = LLVMBuildZExt(B, nvptx_tid(x), x->i64, "");
    g->lane = LLVMBuildAnd(B, g->tid, llvm_i64(x, WARP - 1), "");
    g->warp = LLVMBuildLShr(B, g->tid, llvm_i64(x, 5), "");
    g->level =
        (Level){.kind = g->plan.team, .thread = g->plan.team == TEAM_WARP ? g->lane : g->tid};
    g->level.first = LLVMBuildICmp(B, LLVMIntEQ, g->level.thread, llvm_i64(x, 0), "");
}

static void gen_body(Gen *g) {
    for (int i = 0; i < g->p->insts.n; i++)
        gen_inst(g, i);
}

/* This team's task; teams beyond the last one leave. */
static LLVMValueRef gen_task_number(Gen *g, LLVMValueRef tasks) {
    LlvmIr *x = g->x;
    LLVMValueRef cta = LLVMBuildZExt(B, nvptx_ctaid(x, 0), x->i64, "");
    if (g->plan.team == TEAM_CTA)
        return cta;
    LLVMValueRef each = llvm_i64(x, team_count(&g->plan));
    LLVMValueRef task = LLVMBuildAdd(B, LLVMBuildMul(B, cta, each, ""),
                                     g->plan.team == TEAM_WARP ? g->warp : g->tid, "");
    LLVMBasicBlockRef none = block(g, "none"), work = block(g, "work");
    LLVMBuildCondBr(B, LLVMBuildICmp(B, LLVMIntSLT, task, tasks, ""), work, none);
    LLVMPositionBuilderAtEnd(B, none);
    LLVMBuildRetVoid(B);
    LLVMPositionBuilderAtEnd(B, work);
    return task;
}

static LLVMValueRef dynamic_shared(LlvmIr *x) {
    LLVMValueRef v = LLVMGetNamedGlobal(x->m, "stgc_dynamic");
    if (v)
        return v;
    v = LLVMAddGlobalInAddressSpace(x->m, LLVMArrayType2(x->i8, 0), "stgc_dynamic", 3);
    LLVMSetLinkage(v, LLVMExternalLinkage);
    LLVMSetAlignment(v, 16);
    return v;
}

/* Parameters: buffers, the fault record if the program has faults, the number of tasks if a CTA
 * does several. */
static int build_kernel(NvptxModule *m, const LoopProgram *p, const char *name) {
    LlvmIr *x = nvptx_ir(m);
    Gen g = {.m = m, .x = x, .p = p};
    nvptx_plan(&g.plan, p, 0);
    gen_begin(&g);
    bool faults = has_fault(p), tasks = g.plan.team != TEAM_CTA;
    int n = p->buffers.n + faults + tasks;
    LLVMTypeRef *types = xcalloc((size_t)n + 1, sizeof *types);
    for (int i = 0; i < n; i++)
        types[i] = i < p->buffers.n + faults ? nvptx_global_ptr(x) : x->i64;
    g.fn = nvptx_kernel_function(x, name, types, n, g.plan.threads);
    free(types);
    for (int i = 0; i < p->buffers.n; i++) {
        g.buffers[i] = LLVMGetParam(g.fn, (unsigned)i);
        if (is_written(p, i))
            continue;
        llvm_attribute(x, g.fn, (unsigned)i + 1, "noalias", 0);
        llvm_attribute(x, g.fn, (unsigned)i + 1, "readonly", 0);
    }
    if (faults)
        g.fault = LLVMGetParam(g.fn, (unsigned)p->buffers.n);
    g.entry = LLVMGetInsertBlock(B);
    LLVMBasicBlockRef start = block(&g, "start");
    LLVMBuildBr(B, start);
    LLVMPositionBuilderAtEnd(B, start);
    gen_numbers(&g);
    int64_t locals = locals_bytes(&g.plan), scratch = scratch_bytes(&g.plan);
    bool dynamic = locals + scratch > STATIC_SHARED;
    if (dynamic)
        g.dynamic = dynamic_shared(x);
    make_scratch(&g, name);
    make_locals(&g, name);
    g.args[LARG_TASK] = gen_task_number(&g, tasks ? LLVMGetParam(g.fn, (unsigned)n - 1) : NULL);
    gen_body(&g);
    LLVMBuildRetVoid(B);
    StgcCudaKernel k = {.name = name,
                        .threads = (uint32_t)g.plan.threads,
                        .shared_static = (uint32_t)(scratch + (dynamic ? 0 : locals)),
                        .shared_dynamic = (uint32_t)(dynamic ? locals : 0),
                        .nparams = (uint32_t)n};
    if (locals + scratch > nvptx_module_target(m)->shared_limit) {
        diag_error(nvptx_diag(m), EXIT_MODEL, "kernel %s needs %lld bytes of shared memory",
                   p->name, (long long)(locals + scratch));
        diag_more(nvptx_diag(m), "sm_%d has %d", nvptx_module_target(m)->target,
                  nvptx_module_target(m)->shared_limit);
    }
    gen_free(&g);
    return nvptx_add_kernel(m, &k);
}

void nvptx_task(NvptxModule *m, const LoopCall *c) {
    const char *name = nvptx_program_name(m, c->program);
    int kernel = nvptx_find_kernel(m, name), n = 0;
    if (kernel < 0)
        kernel = build_kernel(m, c->program, name);
    NvptxPlan plan;
    nvptx_plan(&plan, c->program, 0);
    StgcCudaParam *params = xcalloc((size_t)c->nbuffers + 2, sizeof *params);
    for (int i = 0; i < c->nbuffers; i++)
        params[n++] = (StgcCudaParam){.kind = STGC_CUDA_ARENA, .value = c->buffers[i]};
    if (has_fault(c->program))
        params[n++] = (StgcCudaParam){.kind = STGC_CUDA_FAULT};
    int64_t each = team_count(&plan), grid[3] = {(c->tasks + each - 1) / each, 1, 1};
    if (plan.team != TEAM_CTA)
        params[n++] = (StgcCudaParam){.kind = STGC_CUDA_I64, .value = c->tasks};
    nvptx_launch(m, kernel, grid, params, c->name);
    free(params);
    nvptx_plan_free(&plan);
}

/* ---- epilogues ---- */

static LLVMTypeRef epilogue_type(LlvmIr *x, const LoopProgram *p) {
    int n = p->buffers.n + 8;
    LLVMTypeRef *t = xcalloc((size_t)n, sizeof *t);
    for (int i = 0; i < n; i++)
        t[i] = i <= p->buffers.n ? nvptx_global_ptr(x) : x->i64;
    t[n - 2] = nvptx_shared_ptr(x);
    LLVMTypeRef type = LLVMFunctionType(x->void_, t, (unsigned)n, false);
    free(t);
    return type;
}

static void epilogue_parameters(Gen *g) {
    unsigned k = 0;
    for (int i = 0; i < g->p->buffers.n; i++)
        g->buffers[i] = LLVMGetParam(g->fn, k++);
    g->fault = LLVMGetParam(g->fn, k++);
    for (int a = LARG_GROUP; a <= LARG_N1; a++)
        g->args[a] = LLVMGetParam(g->fn, k++);
    g->tile = LLVMGetParam(g->fn, k++);
    g->args[LARG_TILE_LD] = LLVMGetParam(g->fn, k++);
}

LLVMValueRef nvptx_epilogue(NvptxModule *m, const LoopProgram *p, const char *name, int threads,
                            int64_t *shared) {
    LlvmIr *x = nvptx_ir(m);
    Gen g = {.m = m, .x = x, .p = p};
    nvptx_plan(&g.plan, p, threads);
    *shared = round16(scratch_bytes(&g.plan)) + locals_bytes(&g.plan);
    LLVMValueRef known = LLVMGetNamedFunction(x->m, name);
    if (known) {
        nvptx_plan_free(&g.plan);
        return known;
    }
    if (*shared > STATIC_SHARED)
        bug("%s: an epilogue with %lld bytes of arrays", p->name, (long long)*shared);
    LLVMBasicBlockRef here = LLVMGetInsertBlock(B);
    gen_begin(&g);
    g.fn = LLVMAddFunction(x->m, name, epilogue_type(x, p));
    LLVMSetLinkage(g.fn, LLVMInternalLinkage);
    const unsigned whole = (unsigned)LLVMAttributeFunctionIndex;
    llvm_attribute(x, g.fn, whole, "alwaysinline", 0);
    llvm_attribute(x, g.fn, whole, "convergent", 0);
    llvm_attribute(x, g.fn, whole, "nounwind", 0);
    epilogue_parameters(&g);
    g.entry = block(&g, "entry");
    LLVMBasicBlockRef start = block(&g, "start");
    LLVMPositionBuilderAtEnd(B, g.entry);
    LLVMBuildBr(B, start);
    LLVMPositionBuilderAtEnd(B, start);
    gen_numbers(&g);
    make_scratch(&g, name);
    make_locals(&g, name);
    nvptx_barrier(x);
    gen_body(&g);
    nvptx_barrier(x);
    LLVMBuildRetVoid(B);
    gen_free(&g);
    if (here)
        LLVMPositionBuilderAtEnd(B, here);
    return g.fn;
}
