/* llvm_program.c: a LoopProgram as LLVM functions.
 *
 * Two functions per program: NAME.body(buffers..., rt, arguments...) with noalias pointers aligned
 * to 64 bytes, and NAME(env, ...) of the type the runtime calls, which turns the call's offsets
 * into addresses and jumps to the body. Variables become allocas that SROA turns into registers.
 * Innermost vector loops carry metadata: vectorise, and all accesses of one access group are
 * independent between iterations. */
#include "codegen/llvm_ir.h"

#include <llvm-c/DebugInfo.h>
#include <stdlib.h>
#include <string.h>

#define B x->b

typedef struct Open {
    int at; /* the LOOP or IF */
    LLVMBasicBlockRef head, next, exit;
    LLVMValueRef index;
} Open;

typedef struct Body {
    LlvmIr *x;
    const LoopProgram *p;
    LLVMValueRef fn, rt;
    LLVMBasicBlockRef entry;
    LLVMValueRef *value; /* by LVal */
    LLVMValueRef *vars, *locals, *buffers;
    LLVMValueRef tile, args[LARG_COUNT];
    VEC(Open) open;
} Body;

static LLVMBasicBlockRef block(Body *g, const char *name) {
    return LLVMAppendBasicBlockInContext(g->x->c, g->fn, name);
}

/* Allocas stand in the entry block, wherever the variable is declared. */
static LLVMValueRef entry_alloca(Body *g, LLVMTypeRef t) {
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

static LLVMValueRef value(Body *g, LVal v) {
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

/* The innermost vector loop around here, or -1. */
static int vector_loop(const Body *g) {
    for (int i = g->open.n - 1; i >= 0; i--) {
        const LInst *n = &g->p->insts.at[g->open.at[i].at];
        if (n->kind == LI_LOOP)
            return n->op == LOOP_VECTOR && n->innermost ? g->open.at[i].at : -1;
    }
    return -1;
}

/* v adds to a variable that lives outside the loop: its order is free. */
static bool accumulates(const Body *g, LVal v, int loop) {
    const LInst *n = lp_inst(g->p, v);
    if (n->kind == LI_GET)
        return g->p->vars.at[n->ref].scope < g->p->insts.at[loop].scope;
    if (n->kind != LI_OP)
        return false;
    switch (n->op) {
    case L_ADD:
        return accumulates(g, n->a, loop) || accumulates(g, n->b, loop);
    case L_SUB:
        return accumulates(g, n->a, loop);
    case L_FMA:
        return accumulates(g, n->c, loop);
    default:
        return false;
    }
}

static DType compute_storage(LType t) {
    return t == LT_F32 ? DT_F32 : t == LT_F64 ? DT_F64 : t == LT_I64 ? DT_I64 : DT_BOOL;
}

static LLVMValueRef base_of(Body *g, int buffer, DType *storage) {
    if (buffer >= 0) {
        *storage = g->p->buffers.at[buffer];
        return g->buffers[buffer];
    }
    if (buffer == LB_TILE) {
        *storage = DT_F32;
        return g->tile;
    }
    *storage = compute_storage(g->p->locals.at[LB_LOCAL_INDEX(buffer)].type);
    return g->locals[LB_LOCAL_INDEX(buffer)];
}

static void gen_access(Body *g, int i) {
    LlvmIr *x = g->x;
    const LInst *n = &g->p->insts.at[i];
    DType storage;
    LLVMValueRef access = NULL, base = base_of(g, n->ref, &storage), index = value(g, n->a);
    if (n->kind == LI_LOAD)
        g->value[i + 1] = llvm_load(x, storage, base, index, &access);
    else
        llvm_store(x, storage, base, index, value(g, n->b), &access);
    if (vector_loop(g) >= 0)
        LLVMSetMetadata(access, x->md_access, x->access_group);
}

static void gen_op(Body *g, int i) {
    const LInst *n = &g->p->insts.at[i];
    int loop = vector_loop(g);
    bool free_order = loop >= 0 && accumulates(g, i + 1, loop);
    LType t = lp_type(g->p, n->op == L_SELECT ? n->b : n->a);
    g->value[i + 1] = llvm_op(g->x, (LOp)n->op, t, value(g, n->a), n->b ? value(g, n->b) : NULL,
                              n->c ? value(g, n->c) : NULL, free_order);
}

/* ---- loops: tested before the first iteration, then at the end of each ---- */

static void gen_loop(Body *g, int i) {
    LlvmIr *x = g->x;
    const LInst *n = &g->p->insts.at[i];
    LLVMValueRef lo = value(g, n->a), hi = value(g, n->b);
    Open o = {.at = i, .head = block(g, "loop"), .exit = block(g, "done")};
    LLVMBasicBlockRef pre = block(g, "pre");
    LLVMBuildCondBr(B, LLVMBuildICmp(B, LLVMIntSLT, lo, hi, ""), pre, o.exit);
    LLVMPositionBuilderAtEnd(B, pre);
    LLVMBuildBr(B, o.head);
    LLVMPositionBuilderAtEnd(B, o.head);
    o.index = LLVMBuildPhi(B, x->i64, "i");
    LLVMAddIncoming(o.index, &lo, &pre, 1);
    g->value[i + 1] = o.index;
    vec_push(&g->open, o);
}

static LLVMMetadataRef md_int(LlvmIr *x, const char *name, LLVMTypeRef t, int v) {
    LLVMMetadataRef pair[] = {LLVMMDStringInContext2(x->c, name, strlen(name)),
                              LLVMValueAsMetadata(LLVMConstInt(t, (uint64_t)v, false))};
    return LLVMMDNodeInContext2(x->c, pair, 2);
}

/* How to vectorise, by metadata. With a known number of iterations: the interleaving (which hides
 * the latency of accumulations) that leaves no more scalar rest than the plain vector would; fewer
 * iterations than lanes: one vector of the next power of two, masked. Otherwise LLVM decides. */
static unsigned vector_hints(const Body *g, const LInst *n, LLVMMetadataRef *part, unsigned k) {
    LlvmIr *x = g->x;
    int64_t lo, hi;
    int w = x->vector_floats, width = 1, count = 1;
    if (!lp_is_const_i(g->p, n->a, &lo) || !lp_is_const_i(g->p, n->b, &hi) || hi - lo >= 64 * w)
        return k;
    if (hi - lo < w) {
        while (width < hi - lo)
            width *= 2;
        part[k++] = md_int(x, "llvm.loop.vectorize.width", x->i32, width);
        part[k++] = md_int(x, "llvm.loop.vectorize.predicate.enable", x->i1, true);
    }
    for (int c = 4; c > 1 && count == 1; c /= 2)
        if ((hi - lo) % (c * w) == (hi - lo) % w && hi - lo >= c * w)
            count = c;
    part[k++] = md_int(x, "llvm.loop.interleave.count", x->i32, count);
    return k;
}

static LLVMValueRef loop_metadata(Body *g, int i) {
    LlvmIr *x = g->x;
    const LInst *n = &g->p->insts.at[i];
    bool vector = n->op == LOOP_VECTOR && n->innermost;
    LLVMMetadataRef self = LLVMTemporaryMDNode(x->c, NULL, 0), part[8] = {self};
    unsigned k = 1;
    part[k++] = md_int(x, "llvm.loop.vectorize.enable", x->i1, vector);
    if (vector) {
        LLVMMetadataRef pair[] = {LLVMMDStringInContext2(x->c, "llvm.loop.parallel_accesses", 27),
                                  LLVMValueAsMetadata(x->access_group)};
        part[k++] = LLVMMDNodeInContext2(x->c, pair, 2);
        part[k++] =
            md_int(x, "llvm.loop.unroll.disable", x->i1, true); /* not before it is a vector */
        k = vector_hints(g, n, part, k);
    }
    LLVMMetadataRef node = LLVMMDNodeInContext2(x->c, part, k);
    LLVMMetadataReplaceAllUsesWith(self, node);
    return LLVMMetadataAsValue(x->c, node);
}

static void end_loop(Body *g, const Open *o) {
    LlvmIr *x = g->x;
    LLVMValueRef next = LLVMBuildAdd(B, o->index, llvm_i64(x, 1), "");
    LLVMSetNSW(next, true);
    LLVMValueRef more = LLVMBuildICmp(B, LLVMIntSLT, next, value(g, g->p->insts.at[o->at].b), "");
    LLVMValueRef br = LLVMBuildCondBr(B, more, o->head, o->exit);
    LLVMSetMetadata(br, x->md_loop, loop_metadata(g, o->at));
    LLVMBasicBlockRef latch = LLVMGetInsertBlock(B);
    LLVMAddIncoming(o->index, &next, &latch, 1);
    LLVMPositionBuilderAtEnd(B, o->exit);
}

static void gen_if(Body *g, int i) {
    LlvmIr *x = g->x;
    Open o = {.at = i, .next = block(g, "else"), .exit = NULL};
    LLVMBasicBlockRef then = block(g, "then");
    LLVMBuildCondBr(B, value(g, g->p->insts.at[i].a), then, o.next);
    LLVMPositionBuilderAtEnd(B, then);
    vec_push(&g->open, o);
}

static void gen_else(Body *g) {
    LlvmIr *x = g->x;
    Open *o = &g->open.at[g->open.n - 1];
    o->exit = block(g, "endif");
    LLVMBuildBr(B, o->exit);
    LLVMPositionBuilderAtEnd(B, o->next);
}

static void gen_end(Body *g) {
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

/* rt->fault(rt, text, where, value) */
static void gen_fault(Body *g, const LInst *n) {
    LlvmIr *x = g->x;
    LLVMTypeRef params[] = {x->ptr, x->ptr, x->i64, x->i64};
    LLVMTypeRef type = LLVMFunctionType(x->void_, params, 4, false);
    LLVMValueRef offset = llvm_i64(x, (int64_t)offsetof(StgcRt, fault));
    LLVMValueRef fn =
        LLVMBuildLoad2(B, x->ptr, LLVMBuildInBoundsGEP2(B, x->i8, g->rt, &offset, 1, ""), "");
    LLVMValueRef in[] = {g->rt, LLVMBuildGlobalStringPtr(B, n->text, "fault"), value(g, n->a),
                         value(g, n->b)};
    LLVMBuildCall2(B, type, fn, in, 4, "");
}

static void gen_inst(Body *g, int i) {
    LlvmIr *x = g->x;
    const LInst *n = &g->p->insts.at[i];
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

/* ---- functions ---- */

static int argument_count(ProgramKind kind) {
    return kind == PROGRAM_TASK ? 1 : 6;
}

LLVMTypeRef llvm_program_type(const LlvmIr *x, ProgramKind kind) {
    LLVMTypeRef task[] = {x->ptr, x->i64};
    LLVMTypeRef tile[] = {x->ptr, x->i64, x->i64, x->i64, x->i64, x->i64, x->ptr, x->i64};
    return kind == PROGRAM_TASK ? LLVMFunctionType(x->void_, task, 2, false)
                                : LLVMFunctionType(x->void_, tile, 8, false);
}

static void function_attributes(LlvmIr *x, LLVMValueRef fn) {
    char width[16];
    snprintf(width, sizeof width, "%d", 32 * x->vector_floats);
    llvm_attribute(x, fn, (unsigned)LLVMAttributeFunctionIndex, "nounwind", 0);
    LLVMAddTargetDependentFunctionAttr(fn, "prefer-vector-width", width);
    LLVMAddTargetDependentFunctionAttr(fn, "frame-pointer", "none");
}

/* The body's parameters: buffers (and tile), rt, then task, or group, m0, m1, n0, n1, ld. */
static LLVMTypeRef body_type(const LlvmIr *x, const LoopProgram *p) {
    int pointers = p->buffers.n + (p->kind == PROGRAM_EPILOGUE) + 1,
        n = pointers + argument_count(p->kind);
    LLVMTypeRef *t = xcalloc((size_t)n, sizeof(LLVMTypeRef));
    for (int i = 0; i < n; i++)
        t[i] = i < pointers ? x->ptr : x->i64;
    LLVMTypeRef type = LLVMFunctionType(x->void_, t, (unsigned)n, false);
    free(t);
    return type;
}

static void body_parameters(Body *g, unsigned alignment) {
    LlvmIr *x = g->x;
    const LoopProgram *p = g->p;
    unsigned k = 0;
    for (int i = 0; i < p->buffers.n; i++, k++) {
        g->buffers[i] = LLVMGetParam(g->fn, k);
        llvm_attribute(x, g->fn, k + 1, "noalias", 0);
        llvm_attribute(x, g->fn, k + 1, "align", alignment);
    }
    if (p->kind == PROGRAM_EPILOGUE) {
        g->tile = LLVMGetParam(g->fn, k++);
        llvm_attribute(x, g->fn, k, "noalias", 0);
        llvm_attribute(x, g->fn, k, "align", 4);
    }
    g->rt = LLVMGetParam(g->fn, k++);
    if (p->kind == PROGRAM_TASK)
        g->args[LARG_TASK] = LLVMGetParam(g->fn, k);
    else
        for (int a = LARG_GROUP; a <= LARG_TILE_LD; a++)
            g->args[a] = LLVMGetParam(g->fn, k++);
}

static LLVMValueRef build_body(LlvmIr *x, const LoopProgram *p, const char *name,
                               unsigned alignment) {
    char full[256];
    snprintf(full, sizeof full, "%s.body", name);
    Body g = {.x = x, .p = p, .fn = LLVMAddFunction(x->m, full, body_type(x, p))};
    LLVMSetLinkage(g.fn, LLVMInternalLinkage);
    function_attributes(x, g.fn);
    size_t n = (size_t)p->insts.n + 1;
    g.value = xcalloc(n, sizeof *g.value);
    g.vars = xcalloc((size_t)p->vars.n + 1, sizeof *g.vars);
    g.locals = xcalloc((size_t)p->locals.n + 1, sizeof *g.locals);
    g.buffers = xcalloc((size_t)p->buffers.n + 1, sizeof *g.buffers);
    body_parameters(&g, alignment);
    g.entry = block(&g, "entry");
    LLVMBasicBlockRef start = block(&g, "start");
    LLVMPositionBuilderAtEnd(B, g.entry);
    for (int i = 0; i < p->locals.n; i++) {
        LType t = p->locals.at[i].type;
        LLVMTypeRef cell = t == LT_BOOL ? x->i8 : llvm_type(x, t);
        g.locals[i] = LLVMBuildAlloca(B, LLVMArrayType2(cell, (uint64_t)p->locals.at[i].count), "");
        LLVMSetAlignment(g.locals[i], 64);
    }
    LLVMBuildBr(B, start);
    LLVMPositionBuilderAtEnd(B, start);
    for (int i = 0; i < p->insts.n; i++)
        gen_inst(&g, i);
    LLVMBuildRetVoid(B);
    vec_free(&g.open);
    free(g.value);
    free(g.vars);
    free(g.locals);
    free(g.buffers);
    return g.fn;
}

static LLVMValueRef env_field(LlvmIr *x, LLVMValueRef env, size_t at) {
    LLVMValueRef offset = llvm_i64(x, (int64_t)at);
    return LLVMBuildLoad2(B, x->ptr, LLVMBuildInBoundsGEP2(B, x->i8, env, &offset, 1, ""), "");
}

LLVMValueRef llvm_program(LlvmIr *x, const LoopProgram *p, const char *name, unsigned alignment) {
    if (p->open.n)
        bug("%s: %d loops or ifs are not ended", p->name, p->open.n);
    LLVMValueRef body = build_body(x, p, name, alignment);
    LLVMValueRef fn = LLVMAddFunction(x->m, name, llvm_program_type(x, p->kind));
    function_attributes(x, fn);
    LLVMPositionBuilderAtEnd(B, LLVMAppendBasicBlockInContext(x->c, fn, "entry"));
    LLVMValueRef env = LLVMGetParam(fn, 0);
    LLVMValueRef arena = env_field(x, env, offsetof(StepEnv, arena)),
                 rt = env_field(x, env, offsetof(StepEnv, rt));
    LLVMValueRef offsets = env_field(x, env, offsetof(StepEnv, offsets));
    LLVMValueRef *in = xcalloc((size_t)p->buffers.n + 8, sizeof *in);
    unsigned k = 0;
    for (int i = 0; i < p->buffers.n; i++) {
        LLVMValueRef at = llvm_i64(x, i);
        LLVMValueRef offset =
            LLVMBuildLoad2(B, x->i64, LLVMBuildInBoundsGEP2(B, x->i64, offsets, &at, 1, ""), "");
        in[k++] = LLVMBuildInBoundsGEP2(B, x->i8, arena, &offset, 1, "");
    }
    if (p->kind == PROGRAM_EPILOGUE)
        in[k++] = LLVMGetParam(fn, 6);
    in[k++] = rt;
    for (unsigned a = 1; a <= (p->kind == PROGRAM_TASK ? 1u : 5u); a++)
        in[k++] = LLVMGetParam(fn, a);
    if (p->kind == PROGRAM_EPILOGUE)
        in[k++] = LLVMGetParam(fn, 7);
    LLVMSetTailCall(LLVMBuildCall2(B, body_type(x, p), body, in, k, ""), true);
    LLVMBuildRetVoid(B);
    free(in);
    return fn;
}
