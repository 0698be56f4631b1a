/* llvm_schedule.c: the host schedule of a step as code: run(rt, arena).
 *
 *     StepEnv env = {arena, rt, NULL};
 *     env.offsets = call_0;  rt->parallel(rt, 128, v0, &env);
 *     gemm = template_1;  gemm.a = arena + ...;  rt->gemm(rt, &gemm);
 *
 * What is known at compile time lies in constant tables; only addresses are filled in. The services
 * return when their work is done, so one env and one descriptor serve all calls. Updates of equal
 * parameters that follow each other are one parallel loop. */
#include "codegen/llvm_ir.h"
#include "codegen/loop_program.h"
#include "ir/graph.h"

#include <stdlib.h>
#include <string.h>

#define B x->b

typedef struct Schedule {
    LlvmIr *x;
    LLVMValueRef fn, rt, arena, env, gemm, dot, groups, fill;
} Schedule;

static LLVMValueRef at_byte(LlvmIr *x, LLVMValueRef base, int64_t offset) {
    LLVMValueRef o = llvm_i64(x, offset);
    return LLVMBuildInBoundsGEP2(B, x->i8, base, &o, 1, "");
}

static LLVMValueRef constant(LlvmIr *x, const char *name, LLVMTypeRef t, LLVMValueRef init) {
    LLVMValueRef g = LLVMAddGlobal(x->m, t, name);
    LLVMSetInitializer(g, init);
    LLVMSetGlobalConstant(g, true);
    LLVMSetLinkage(g, LLVMPrivateLinkage);
    LLVMSetAlignment(g, 16);
    return g;
}

static LLVMValueRef int_table(LlvmIr *x, const int64_t *v, int n) {
    LLVMValueRef *c = xcalloc((size_t)n + 1, sizeof *c);
    for (int i = 0; i < n; i++)
        c[i] = llvm_i64(x, v[i]);
    LLVMValueRef array = LLVMConstArray2(x->i64, c, (uint64_t)n);
    free(c);
    return constant(x, "offsets", LLVMTypeOf(array), array);
}

/* Calls the service at `member` of rt with (rt, descriptor). */
static void call_service(Schedule *s, size_t member, LLVMValueRef descriptor) {
    LlvmIr *x = s->x;
    LLVMTypeRef params[] = {x->ptr, x->ptr};
    LLVMValueRef in[] = {s->rt, descriptor};
    LLVMValueRef fn = LLVMBuildLoad2(B, x->ptr, at_byte(x, s->rt, (int64_t)member), "");
    LLVMBuildCall2(B, LLVMFunctionType(x->void_, params, 2, false), fn, in, 2, "");
}

/* descriptor.member = arena + offset, or NULL for -1 */
static void fill_address(Schedule *s, LLVMValueRef descriptor, size_t member, int64_t offset) {
    LlvmIr *x = s->x;
    LLVMValueRef v = offset < 0 ? LLVMConstNull(x->ptr) : at_byte(x, s->arena, offset);
    LLVMBuildStore(B, v, at_byte(x, descriptor, (int64_t)member));
}

static void fill_template(Schedule *s, LLVMValueRef descriptor, const void *bytes, size_t n) {
    LlvmIr *x = s->x;
    LLVMValueRef init = LLVMConstStringInContext2(x->c, bytes, n, true);
    LLVMValueRef g = constant(x, "template", LLVMTypeOf(init), init);
    LLVMBuildMemCpy(B, descriptor, 16, g, 16, llvm_i64(x, (int64_t)n));
}

static void use_offsets(Schedule *s, const LoopCall *c) {
    LlvmIr *x = s->x;
    LLVMBuildStore(B, int_table(x, c->buffers, c->nbuffers),
                   at_byte(x, s->env, offsetof(StepEnv, offsets)));
}

static LLVMValueRef program_function(LlvmIr *x, const LoopProgram *p, const char *name) {
    LLVMValueRef fn = LLVMGetNamedFunction(x->m, name);
    return fn ? fn : LLVMAddFunction(x->m, name, llvm_program_type(x, p->kind));
}

/* rt->parallel(rt, tasks, fn, env) */
static void run_parallel(Schedule *s, LLVMValueRef fn, int64_t tasks) {
    LlvmIr *x = s->x;
    LLVMTypeRef params[] = {x->ptr, x->i64, x->ptr, x->ptr};
    LLVMValueRef in[] = {s->rt, llvm_i64(x, tasks), fn, s->env};
    LLVMValueRef parallel =
        LLVMBuildLoad2(B, x->ptr, at_byte(x, s->rt, (int64_t)offsetof(StgcRt, parallel)), "");
    LLVMBuildCall2(B, LLVMFunctionType(x->void_, params, 4, false), parallel, in, 4, "");
}

static void gen_parallel(Schedule *s, const LoopCall *c, const char *name) {
    LlvmIr *x = s->x;
    if (c->tasks <= 0)
        return;
    LLVMValueRef fn = program_function(x, c->program, name);
    use_offsets(s, c);
    if (c->tasks == 1) {
        LLVMValueRef in[] = {s->env, llvm_i64(x, 0)};
        LLVMBuildCall2(B, llvm_program_type(x, PROGRAM_TASK), fn, in, 2, "");
        return;
    }
    run_parallel(s, fn, c->tasks);
}

/* ---- updates side by side ---- */

static bool is_update(const LoopModule *m, const LoopCall *c) {
    if (c->kind != CALL_PARALLEL || c->tasks <= 0 || !c->op || m->marks)
        return false;
    return !strcmp(c->op, op_info[OP_ADAMW].name) || !strcmp(c->op, op_info[OP_SGD].name);
}

/* The call writes in place, to parameters and state of its own: no other update touches them. */
static bool in_place(const LoopModule *m, const LoopCall *c) {
    const LoopProgram *p = c->program;
    for (int i = 0; i < p->insts.n; i++) {
        const LInst *n = &p->insts.at[i];
        if (n->kind == LI_STORE && n->ref >= 0 && c->buffers[n->ref] >= m->persistent_bytes)
            return false;
    }
    return true;
}

static int64_t parameter_bytes(const LoopModule *m, const LoopCall *c) {
    for (int i = 0; i < m->slots.n; i++)
        for (int k = 0; k < c->nbuffers; k++)
            if (m->slots.at[i].kind == STGC_SLOT_PARAM && m->slots.at[i].offset == c->buffers[k])
                return m->slots.at[i].bytes;
    return 0;
}

/* How many calls from `first` on are one: updates of equal parameters, as experts have them. Alone
 * each may be too small to be divided among threads. */
static int side_by_side(const LoopModule *m, int first) {
    enum { WORTH = 8 << 10 }; /* bytes */
    const LoopCall *c = &m->calls.at[first];
    if (!is_update(m, c) || !in_place(m, c))
        return 1;
    int n = 1;
    for (; first + n < m->calls.n; n++) {
        const LoopCall *d = c + n;
        if (!is_update(m, d) || d->program != c->program || d->tasks != c->tasks || !in_place(m, d))
            break;
    }
    return n > 1 && parameter_bytes(m, c) >= WORTH ? n : 1;
}

/* NAME.many(env, task): task % tasks of NAME with the offsets of call task / tasks. */
static LLVMValueRef many_function(Schedule *s, const LoopCall *c, const char *name) {
    LlvmIr *x = s->x;
    char full[256];
    snprintf(full, sizeof full, "%s.many%d", name, (int)c->tasks);
    LLVMValueRef fn = LLVMGetNamedFunction(x->m, full), one = program_function(x, c->program, name);
    if (fn)
        return fn;
    LLVMBasicBlockRef here = LLVMGetInsertBlock(B);
    fn = LLVMAddFunction(x->m, full, llvm_program_type(x, PROGRAM_TASK));
    LLVMSetLinkage(fn, LLVMInternalLinkage);
    llvm_attribute(x, fn, (unsigned)LLVMAttributeFunctionIndex, "nounwind", 0);
    LLVMPositionBuilderAtEnd(B, LLVMAppendBasicBlockInContext(x->c, fn, "entry"));
    LLVMValueRef from = LLVMGetParam(fn, 0), task = LLVMGetParam(fn, 1);
    LLVMValueRef env = LLVMBuildAlloca(B, LLVMArrayType2(x->i8, sizeof(StepEnv)), "env");
    LLVMSetAlignment(env, 16);
    LLVMBuildMemCpy(B, env, 16, from, 8, llvm_i64(x, sizeof(StepEnv)));
    LLVMValueRef tasks = llvm_i64(x, c->tasks), call = LLVMBuildSDiv(B, task, tasks, "");
    LLVMValueRef skip = LLVMBuildMul(B, call, llvm_i64(x, c->nbuffers), "");
    LLVMValueRef at = at_byte(x, env, offsetof(StepEnv, offsets));
    LLVMValueRef offsets = LLVMBuildLoad2(B, x->ptr, at, "");
    LLVMBuildStore(B, LLVMBuildInBoundsGEP2(B, x->i64, offsets, &skip, 1, ""), at);
    LLVMValueRef in[] = {env, LLVMBuildSRem(B, task, tasks, "")};
    LLVMBuildCall2(B, llvm_program_type(x, PROGRAM_TASK), one, in, 2, "");
    LLVMBuildRetVoid(B);
    LLVMPositionBuilderAtEnd(B, here);
    return fn;
}

static void gen_many(Schedule *s, const LoopCall *c, int n, const char *name) {
    LlvmIr *x = s->x;
    int each = c->nbuffers;
    int64_t *all = xcalloc((size_t)(n * each) + 1, sizeof *all);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < each; k++)
            all[i * each + k] = c[i].buffers[k];
    LLVMBuildStore(B, int_table(x, all, n * each), at_byte(x, s->env, offsetof(StepEnv, offsets)));
    free(all);
    run_parallel(s, many_function(s, c, name), c->tasks * n);
}

static void gen_gemm(Schedule *s, const LoopCall *c, const char *name) {
    LlvmIr *x = s->x;
    StgcGemm t = c->gemm;
    t.offsets = NULL, t.a = NULL, t.a_index = NULL, t.b = NULL, t.b_group = NULL, t.c = NULL;
    t.epilogue = NULL, t.env = NULL;
    fill_template(s, s->gemm, &t, sizeof t);
    fill_address(s, s->gemm, offsetof(StgcGemm, a), c->gemm_a);
    fill_address(s, s->gemm, offsetof(StgcGemm, b), c->gemm_b);
    fill_address(s, s->gemm, offsetof(StgcGemm, c), c->gemm_c);
    fill_address(s, s->gemm, offsetof(StgcGemm, offsets), c->gemm_offsets);
    fill_address(s, s->gemm, offsetof(StgcGemm, a_index), c->gemm_index);
    if (c->gemm_b_group) {
        int64_t n = t.g1 * t.g2;
        LLVMTypeRef params[] = {x->ptr, x->ptr, x->ptr, x->i64};
        LLVMValueRef in[] = {s->groups, s->arena, int_table(x, c->gemm_b_group, (int)n),
                             llvm_i64(x, n)};
        LLVMBuildCall2(B, LLVMFunctionType(x->void_, params, 4, false), s->fill, in, 4, "");
        LLVMBuildStore(B, s->groups, at_byte(x, s->gemm, (int64_t)offsetof(StgcGemm, b_group)));
    }
    if (c->program) {
        use_offsets(s, c);
        LLVMBuildStore(B, program_function(x, c->program, name),
                       at_byte(x, s->gemm, (int64_t)offsetof(StgcGemm, epilogue)));
        LLVMBuildStore(B, s->env, at_byte(x, s->gemm, (int64_t)offsetof(StgcGemm, env)));
    }
    call_service(s, offsetof(StgcRt, gemm), s->gemm);
}

static void gen_token_dot(Schedule *s, const LoopCall *c) {
    StgcTokenDot t = c->dot;
    t.offsets = NULL, t.x = NULL, t.d = NULL, t.grad = NULL, t.dot = NULL, t.scratch = NULL;
    fill_template(s, s->dot, &t, sizeof t);
    fill_address(s, s->dot, offsetof(StgcTokenDot, x), c->dot_x);
    fill_address(s, s->dot, offsetof(StgcTokenDot, d), c->dot_d);
    fill_address(s, s->dot, offsetof(StgcTokenDot, grad), c->dot_grad);
    fill_address(s, s->dot, offsetof(StgcTokenDot, offsets), c->dot_offsets);
    fill_address(s, s->dot, offsetof(StgcTokenDot, dot), c->dot_out);
    fill_address(s, s->dot, offsetof(StgcTokenDot, scratch), c->dot_scratch);
    call_service(s, offsetof(StgcRt, token_dot), s->dot);
}

/* rt->mark(rt, call) */
static void gen_mark(Schedule *s, int call) {
    LlvmIr *x = s->x;
    LLVMTypeRef params[] = {x->ptr, x->i64};
    LLVMValueRef in[] = {s->rt, llvm_i64(x, call)};
    LLVMValueRef fn =
        LLVMBuildLoad2(B, x->ptr, at_byte(x, s->rt, (int64_t)offsetof(StgcRt, mark)), "");
    LLVMBuildCall2(B, LLVMFunctionType(x->void_, params, 2, false), fn, in, 2, "");
}

/* fill(out, arena, offsets, n): out[i] = arena + offsets[i] */
static LLVMValueRef gen_fill(LlvmIr *x) {
    LLVMTypeRef params[] = {x->ptr, x->ptr, x->ptr, x->i64};
    LLVMValueRef fn =
        LLVMAddFunction(x->m, "fill_addresses", LLVMFunctionType(x->void_, params, 4, false));
    LLVMSetLinkage(fn, LLVMInternalLinkage);
    LLVMBasicBlockRef entry = LLVMAppendBasicBlockInContext(x->c, fn, "entry");
    LLVMBasicBlockRef loop = LLVMAppendBasicBlockInContext(x->c, fn, "loop");
    LLVMBasicBlockRef done = LLVMAppendBasicBlockInContext(x->c, fn, "done");
    LLVMPositionBuilderAtEnd(B, entry);
    LLVMBuildBr(B, loop);
    LLVMPositionBuilderAtEnd(B, loop);
    LLVMValueRef i = LLVMBuildPhi(B, x->i64, "i"), zero = llvm_i64(x, 0);
    LLVMValueRef from = LLVMBuildInBoundsGEP2(B, x->i64, LLVMGetParam(fn, 2), &i, 1, "");
    LLVMValueRef offset = LLVMBuildLoad2(B, x->i64, from, "");
    LLVMValueRef address = LLVMBuildInBoundsGEP2(B, x->i8, LLVMGetParam(fn, 1), &offset, 1, "");
    LLVMBuildStore(B, address, LLVMBuildInBoundsGEP2(B, x->ptr, LLVMGetParam(fn, 0), &i, 1, ""));
    LLVMValueRef next = LLVMBuildAdd(B, i, llvm_i64(x, 1), "");
    LLVMAddIncoming(i, (LLVMValueRef[]){zero, next}, (LLVMBasicBlockRef[]){entry, loop}, 2);
    LLVMBuildCondBr(B, LLVMBuildICmp(B, LLVMIntSLT, next, LLVMGetParam(fn, 3), ""), loop, done);
    LLVMPositionBuilderAtEnd(B, done);
    LLVMBuildRetVoid(B);
    return fn;
}

static LLVMValueRef stack(LlvmIr *x, LLVMTypeRef t, int64_t n, const char *name) {
    LLVMValueRef v = LLVMBuildAlloca(B, LLVMArrayType2(t, (uint64_t)n), name);
    LLVMSetAlignment(v, 16);
    return v;
}

LLVMValueRef llvm_schedule(LlvmIr *x, const LoopModule *m, char *const *names,
                           const char *run_name) {
    int64_t most = 1;
    for (int i = 0; i < m->calls.n; i++) {
        const LoopCall *c = &m->calls.at[i];
        if (c->kind == CALL_GEMM && c->gemm_b_group && c->gemm.g1 * c->gemm.g2 > most)
            most = c->gemm.g1 * c->gemm.g2;
    }
    Schedule s = {.x = x, .fill = gen_fill(x)};
    LLVMTypeRef params[] = {x->ptr, x->ptr};
    s.fn = LLVMAddFunction(x->m, run_name, LLVMFunctionType(x->void_, params, 2, false));
    llvm_attribute(x, s.fn, (unsigned)LLVMAttributeFunctionIndex, "nounwind", 0);
    LLVMPositionBuilderAtEnd(B, LLVMAppendBasicBlockInContext(x->c, s.fn, "entry"));
    s.rt = LLVMGetParam(s.fn, 0), s.arena = LLVMGetParam(s.fn, 1);
    s.env = stack(x, x->i8, sizeof(StepEnv), "env");
    s.gemm = stack(x, x->i8, sizeof(StgcGemm), "gemm");
    s.dot = stack(x, x->i8, sizeof(StgcTokenDot), "dot");
    s.groups = stack(x, x->ptr, most, "groups");
    LLVMBuildStore(B, s.arena, at_byte(x, s.env, offsetof(StepEnv, arena)));
    LLVMBuildStore(B, s.rt, at_byte(x, s.env, offsetof(StepEnv, rt)));
    for (int i = 0, n; i < m->calls.n; i += n) {
        const LoopCall *c = &m->calls.at[i];
        n = side_by_side(m, i);
        if (m->marks)
            gen_mark(&s, i);
        if (n > 1)
            gen_many(&s, c, n, names[i]);
        else if (c->kind == CALL_PARALLEL)
            gen_parallel(&s, c, names[i]);
        else if (c->kind == CALL_GEMM)
            gen_gemm(&s, c, names[i]);
        else
            gen_token_dot(&s, c);
    }
    if (m->marks)
        gen_mark(&s, m->calls.n);
    LLVMBuildRetVoid(B);
    return s.fn;
}
