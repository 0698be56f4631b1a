/* nvptx.c: LoopModule -> PTX text and a device schedule (runtime/step_cuda.h).
 *
 *     calls in order ─► operations: a launch of a kernel | a product of cuBLAS | …
 *     what a kernel must do ─ by name, once ─► one LLVM module ─► one PTX text
 *
 * The module holds every kernel once, whichever calls need it; parameters of a launch are offsets
 * in the arena, so that equal layers launch the same kernels. */
#include "codegen/nvptx.h"

#include <llvm-c/Analysis.h>
#include <stdlib.h>
#include <string.h>

#include "codegen/nvptx_units.h"

typedef struct Table {
    int64_t at, bytes;
} Table;

typedef struct NamedProgram {
    const LoopProgram *program;
    uint64_t hash;
    const char *name;
} NamedProgram;

typedef VEC(StgcCudaOp) Ops;

/* What modules become: their schedules, and what these share. */
struct NvptxCode {
    int nsteps;
    StgcCudaStep *steps;
    Ops *ops; /* by step */
    Arena arena;
    VEC(StgcCudaKernel) kernels;
    VEC(const char *) faults;
    VEC(unsigned char) constants;
    char *ptx;
};

struct NvptxModule {
    NvptxCode *code;
    int step; /* being made */
    const LoopModule *loops;
    NvptxTarget target;
    LlvmIr *x;
    Diag *diag;
    VEC(NamedProgram) programs;
    VEC(Table) tables;
};

LlvmIr *nvptx_ir(NvptxModule *m) {
    return m->x;
}

const NvptxTarget *nvptx_module_target(const NvptxModule *m) {
    return &m->target;
}

Diag *nvptx_diag(NvptxModule *m) {
    return m->diag;
}

/* ---- kernels ---- */

int nvptx_find_kernel(const NvptxModule *m, const char *name) {
    for (int i = 0; i < m->code->kernels.n; i++)
        if (!strcmp(m->code->kernels.at[i].name, name))
            return i;
    return -1;
}

int nvptx_add_kernel(NvptxModule *m, const StgcCudaKernel *k) {
    StgcCudaKernel own = *k;
    own.name = arena_strdup(&m->code->arena, k->name);
    vec_push(&m->code->kernels, own);
    return m->code->kernels.n - 1;
}

/* The op that a program's name begins with, as part of a symbol. */
static void op_symbol(const LoopProgram *p, char *out, size_t size) {
    size_t n = 0;
    for (const char *s = p->name; *s && *s != ' ' && n + 1 < size; s++)
        if ((*s >= 'a' && *s <= 'z') || (*s >= '0' && *s <= '9') || *s == '_' || *s == '.')
            out[n++] = *s == '.' ? '_' : *s;
    out[n] = 0;
}

const char *nvptx_program_name(NvptxModule *m, const LoopProgram *p) {
    uint64_t hash = loop_program_hash(p);
    for (int i = 0; i < m->programs.n; i++) {
        const NamedProgram *n = &m->programs.at[i];
        if (n->program == p || (n->hash == hash && loop_program_equal(n->program, p)))
            return n->name;
    }
    char op[28];
    op_symbol(p, op, sizeof op);
    const char *name = arena_printf(&m->code->arena, "p%d%s%s", m->programs.n, *op ? "_" : "", op);
    vec_push(&m->programs, ((NamedProgram){p, hash, name}));
    return name;
}

/* ---- operations ---- */

static StgcCudaOp *add_op(NvptxModule *m, StgcCudaOpKind kind, const char *name) {
    StgcCudaOp op = {.kind = (int32_t)kind, .kernel = -1};
    op.name = arena_strdup(&m->code->arena, name ? name : "");
    Ops *ops = &m->code->ops[m->step];
    vec_push(ops, op);
    return &ops->at[ops->n - 1];
}

void nvptx_launch(NvptxModule *m, int kernel, const int64_t grid[3], const StgcCudaParam *params,
                  const char *name) {
    static const int64_t most[] = {INT32_MAX, 65535, 65535};
    StgcCudaOp *op = add_op(m, STGC_CUDA_LAUNCH, name);
    op->kernel = kernel;
    for (int i = 0; i < 3; i++) {
        if (grid[i] < 1 || grid[i] > most[i])
            bug("%s: a grid of %lld CTAs on axis %d", name, (long long)grid[i], i);
        op->grid[i] = (uint32_t)grid[i];
    }
    size_t bytes = m->code->kernels.at[kernel].nparams * sizeof *params;
    op->params = arena_copy(&m->code->arena, params, bytes);
}

void nvptx_cublas(NvptxModule *m, const StgcCudaGemm *g, const char *name) {
    add_op(m, STGC_CUDA_GEMM, name)->gemm = arena_copy(&m->code->arena, g, sizeof *g);
}

void nvptx_clear(NvptxModule *m, int64_t at, int64_t bytes, const char *name) {
    StgcCudaOp *op = add_op(m, STGC_CUDA_CLEAR, name);
    op->at = at, op->bytes = bytes;
}

int64_t nvptx_constant(NvptxModule *m, const void *bytes, int64_t n) {
    NvptxCode *c = m->code;
    for (int i = 0; i < m->tables.n; i++)
        if (m->tables.at[i].bytes == n &&
            !memcmp(c->constants.at + m->tables.at[i].at, bytes, (size_t)n))
            return m->tables.at[i].at;
    while (c->constants.n % 8)
        vec_push(&c->constants, 0);
    int64_t at = c->constants.n;
    for (int64_t i = 0; i < n; i++)
        vec_push(&c->constants, ((const unsigned char *)bytes)[i]);
    vec_push(&m->tables, ((Table){at, n}));
    return at;
}

int nvptx_fault_number(NvptxModule *m, const char *what) {
    NvptxCode *c = m->code;
    for (int i = 0; i < c->faults.n; i++)
        if (!strcmp(c->faults.at[i], what))
            return i;
    vec_push(&c->faults, arena_strdup(&c->arena, what));
    return c->faults.n - 1;
}

/* ---- calls ---- */

static void gen_parallel(NvptxModule *m, const LoopCall *c) {
    if (c->tasks > 0)
        nvptx_task(m, c);
}

/* What cuBLAS does: f32 of one size, addresses by strides, nothing before or after. */
static bool is_plain(const LoopCall *c) {
    return c->gemm.kind == STGC_GEMM_BATCH && c->gemm.precision == STGC_GEMM_F32 && !c->program &&
           !c->gemm_b_group && c->gemm_index < 0 && c->gemm_c >= 0;
}

/* Two batch axes are one where strides allow it, else the shorter one becomes operations. */
static void gen_plain(NvptxModule *m, const LoopCall *c) {
    const int64_t size = (int64_t)sizeof(float);
    const StgcGemm *g = &c->gemm;
    StgcCudaGemm t = {.m = g->m, .n = g->n, .k = g->k, .ldc = g->ldc, .accumulate = g->accumulate};
    t.a_row = g->a_row, t.a_col = g->a_col, t.b_row = g->b_row, t.b_col = g->b_col;
    bool one =
        g->g1 == 1 || g->g2 == 1 ||
        (g->a_g1 == g->a_g2 * g->g2 && g->b_g1 == g->b_g2 * g->g2 && g->c_g1 == g->c_g2 * g->g2);
    bool outer_first = one ? g->g2 == 1 : g->g1 >= g->g2; /* the batch is axis 1 */
    t.batches = one ? g->g1 * g->g2 : outer_first ? g->g1 : g->g2;
    t.a_batch = outer_first ? g->a_g1 : g->a_g2;
    t.b_batch = outer_first ? g->b_g1 : g->b_g2;
    t.c_batch = outer_first ? g->c_g1 : g->c_g2;
    int64_t ops = one ? 1 : outer_first ? g->g2 : g->g1;
    if (!g->m || !g->n || !t.batches)
        return;
    for (int64_t i = 0; i < ops; i++) {
        t.a = c->gemm_a + i * size * (outer_first ? g->a_g2 : g->a_g1);
        t.b = c->gemm_b + i * size * (outer_first ? g->b_g2 : g->b_g1);
        t.c = c->gemm_c + i * size * (outer_first ? g->c_g2 : g->c_g1);
        nvptx_cublas(m, &t, c->name);
    }
}

static void gen_mark(NvptxModule *m, int call) {
    if (m->loops->marks)
        add_op(m, STGC_CUDA_MARK, "")->mark = call;
}

static void gen_calls(NvptxModule *m) {
    for (int i = 0; i < m->loops->calls.n; i++) {
        const LoopCall *c = &m->loops->calls.at[i];
        gen_mark(m, i);
        if (c->kind == CALL_PARALLEL)
            gen_parallel(m, c);
        else if (c->kind == CALL_TOKEN_DOT)
            nvptx_token_dot(m, c);
        else if (is_plain(c) && c->gemm.k > 0)
            gen_plain(m, c);
        else
            nvptx_gemm(m, c);
    }
    gen_mark(m, m->loops->calls.n);
}

/* ---- the whole ---- */

static void fill_step(NvptxCode *c, int step, const NvptxTarget *t) {
    c->steps[step] = (StgcCudaStep){
        .ptx = c->ptx,
        .ptx_bytes = (int64_t)strlen(c->ptx),
        .target = t->target,
        .lowered = t->lowered,
        .nkernels = (uint32_t)c->kernels.n,
        .nops = (uint32_t)c->ops[step].n,
        .nfaults = (uint32_t)c->faults.n,
        .kernels = c->kernels.at,
        .ops = c->ops[step].at,
        .fault_texts = c->faults.at,
        .constants = c->constants.at,
        .constant_bytes = c->constants.n,
    };
}

static void translate(NvptxModule *m, LLVMTargetMachineRef tm, FILE *dump_llvm) {
    char *error = NULL;
    if (LLVMVerifyModule(m->x->m, LLVMReturnStatusAction, &error))
        bug("llvm: %s", error);
    LLVMDisposeMessage(error);
    nvptx_optimise(tm, m->x->m);
    if (dump_llvm) {
        char *text = LLVMPrintModuleToString(m->x->m);
        fputs(text, dump_llvm);
        LLVMDisposeMessage(text);
    }
    LLVMMemoryBufferRef out = nvptx_emit(tm, m->x->m);
    size_t n = LLVMGetBufferSize(out);
    m->code->ptx = xcalloc(n + 1, 1);
    memcpy(m->code->ptx, LLVMGetBufferStart(out), n);
    LLVMDisposeMemoryBuffer(out);
}

NvptxCode *nvptx_compile(const LoopModule *const *modules, int nmodules, const NvptxTarget *t,
                         FILE *dump_llvm, Diag *d) {
    LLVMTargetMachineRef tm = nvptx_target_machine(t);
    NvptxCode *code = xcalloc(1, sizeof *code);
    code->nsteps = nmodules;
    code->steps = xcalloc((size_t)nmodules + 1, sizeof *code->steps);
    code->ops = xcalloc((size_t)nmodules + 1, sizeof *code->ops);
    NvptxModule m = {.code = code, .target = *t, .x = nvptx_ir_new(tm), .diag = d};
    int errors = d->errors;
    for (m.step = 0; m.step < nmodules; m.step++) {
        m.loops = modules[m.step];
        gen_calls(&m);
    }
    if (d->errors == errors) {
        translate(&m, tm, dump_llvm);
        for (int i = 0; i < nmodules; i++)
            fill_step(code, i, t);
    } else {
        nvptx_free(code);
        code = NULL;
    }
    llvm_ir_free(m.x);
    LLVMDisposeTargetMachine(tm);
    vec_free(&m.programs);
    vec_free(&m.tables);
    return code;
}

const StgcCudaStep *nvptx_step(const NvptxCode *c, int module) {
    return &c->steps[module];
}

void nvptx_free(NvptxCode *c) {
    if (!c)
        return;
    vec_free(&c->kernels);
    for (int i = 0; i < c->nsteps; i++)
        vec_free(&c->ops[i]);
    free(c->ops);
    free(c->steps);
    vec_free(&c->faults);
    vec_free(&c->constants);
    free(c->ptx);
    arena_free(&c->arena);
    free(c);
}
