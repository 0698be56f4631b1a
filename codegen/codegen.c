/* codegen.c: Graph -> StgcStep: lower_graph makes the loop programs, x86 the machine code, nvptx
 * the PTX. */
#include "codegen/codegen.h"
#include "codegen/nvptx_code.h"
#include "codegen/x86.h"

#include <stdlib.h>
#include <time.h>

struct Compiled {
    StgcStep step;
    LoopModule *module; /* owns slots and names */
    X86Code *code;      /* for this CPU, or */
    NvptxCode *ptx;     /* for a GPU */
    char cpu[16];       /* "sm_80" */
    double seconds;
    const char **names;
};

static void describe_step(Compiled *c) {
    const LoopModule *m = c->module;
    c->names = xcalloc((size_t)m->calls.n + 1, sizeof *c->names);
    for (int i = 0; i < m->calls.n; i++)
        c->names[i] = m->calls.at[i].name ? m->calls.at[i].name : "";
    c->step = (StgcStep){
        .version = STGC_STEP_VERSION,
        .nslots = (uint32_t)m->slots.n,
        .slots = m->slots.at,
        .persistent_bytes = m->persistent_bytes,
        .arena_bytes = m->arena_bytes,
        .alignment = 64,
        .run = c->code ? c->code->run : NULL,
        .cpu = c->code ? c->code->cpu : c->cpu,
        .cuda = c->ptx ? nvptx_step(c->ptx, 0) : NULL,
        .kernels = (uint32_t)m->calls.n,
        .kernel_names = c->names,
    };
}

Compiled *codegen_x86(Graph *g, const CodegenOptions *o, Diag *d) {
    LowerOptions lower = {
        .fused = o->fused, .dump_kernels = o->dump_kernels, .dump_loops = o->dump_loops};
    LoopModule *m = lower_graph(g, &lower, d);
    if (!m)
        return NULL;
    m->marks = o->marks;
    X86Code *code = x86_compile(m, o->cpu, o->dump_llvm, o->dump_asm, d);
    if (!code) {
        loop_module_free(m);
        return NULL;
    }
    diag_note(d, "compiled %d kernels (%d distinct) for %s in %.2f s, %d vector loops left scalar",
              m->calls.n, code->functions, code->cpu, code->seconds, code->not_vectorised);
    Compiled *c = xcalloc(1, sizeof *c);
    c->module = m;
    c->code = code;
    c->seconds = code->seconds;
    describe_step(c);
    return c;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

bool codegen_knows_gpu(const char *target, Diag *d) {
    NvptxTarget t;
    return nvptx_target_find(&t, target, d);
}

Compiled *codegen_nvptx(Graph *g, const CodegenOptions *o, const char *target, Diag *d) {
    NvptxTarget t;
    if (!nvptx_target_find(&t, target, d))
        return NULL;
    LowerOptions lower = {.fused = o->fused,
                          .gpu = true,
                          .dump_kernels = o->dump_kernels,
                          .dump_loops = o->dump_loops};
    LoopModule *m = lower_graph(g, &lower, d);
    if (!m)
        return NULL;
    m->marks = o->marks;
    double start = now();
    NvptxCode *code = nvptx_compile((const LoopModule *const[]){m}, 1, &t, o->dump_llvm, d);
    if (!code) {
        loop_module_free(m);
        return NULL;
    }
    Compiled *c = xcalloc(1, sizeof *c);
    c->module = m;
    c->ptx = code;
    c->seconds = now() - start;
    snprintf(c->cpu, sizeof c->cpu, "sm_%d", t.target);
    describe_step(c);
    const StgcCudaStep *s = nvptx_step(code, 0);
    if (o->dump_asm)
        fputs(s->ptx, o->dump_asm);
    diag_note(d, "compiled %d calls to %u kernels and %u operations for %s in %.2f s", m->calls.n,
              s->nkernels, s->nops, c->cpu, c->seconds);
    return c;
}

const StgcStep *compiled_step(const Compiled *c) {
    return &c->step;
}

double compiled_seconds(const Compiled *c) {
    return c->seconds;
}

const LoopModule *compiled_module(const Compiled *c) {
    return c->module;
}

void compiled_free(Compiled *c) {
    if (!c)
        return;
    x86_free(c->code);
    nvptx_free(c->ptx);
    loop_module_free(c->module);
    free(c->names);
    free(c);
}
