/* codegen.c: Graph -> StgcStep: lower_graph makes the loop programs, x86 the machine code. */
#include "codegen/codegen.h"
#include "codegen/x86.h"

#include <stdlib.h>

struct Compiled {
    StgcStep step;
    LoopModule *module; /* owns slots and names */
    X86Code *code;
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
        .run = c->code->run,
        .cpu = c->code->cpu,
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
    describe_step(c);
    return c;
}

const StgcStep *compiled_step(const Compiled *c) {
    return &c->step;
}

double compiled_seconds(const Compiled *c) {
    return c->code->seconds;
}

const LoopModule *compiled_module(const Compiled *c) {
    return c->module;
}

void compiled_free(Compiled *c) {
    if (!c)
        return;
    x86_free(c->code);
    loop_module_free(c->module);
    free(c->names);
    free(c);
}
