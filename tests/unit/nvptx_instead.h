/* nvptx_instead.h: a test of x86 code becomes one of PTX: included before the test's own file, it
 * puts the PTX emulator behind x86_compile. The arena is the test's block from malloc, whole. */
#ifndef STGCC_TESTS_NVPTX_INSTEAD_H
#define STGCC_TESTS_NVPTX_INSTEAD_H

#include <malloc.h>

#include "nvptx_help.h"

typedef struct Emulated {
    X86Code code; /* first: this is what the test holds */
    NvptxCode *ptx;
} Emulated;
static Emulated *emulated; /* the last one compiled: StgcStep.run has no place for it */

static void emulated_run(StgcRt *rt, char *arena) {
    const StgcCudaStep *s = nvptx_step(emulated->ptx, 0);
    size_t n = malloc_usable_size(arena);
    Gpu g = gpu_new(s, (int64_t)n);
    gpu_check(&g, ptx_write(g.dev, g.arena, arena, n), "arena");
    for (uint32_t i = 0; i < s->nops; i++)
        gpu_op(&g, &s->ops[i]);
    gpu_check(&g, ptx_read(g.dev, arena, g.arena, n, false), "arena");
    int64_t where = 0;
    const char *fault = gpu_fault(&g, &where);
    if (fault)
        rt->fault(rt, fault, where, 0);
    gpu_free(&g);
}

static X86Code *emulated_compile(const LoopModule *m, const char *cpu, FILE *llvm, FILE *asm_,
                                 Diag *d) {
    X86Code *known = x86_compile(m, cpu, llvm, asm_, d); /* as strict with its arguments */
    if (!known)
        return NULL;
    x86_free(known);
    emulated = xcalloc(1, sizeof *emulated);
    emulated->ptx = gpu_compile(m, "sm_80", "test");
    emulated->code.run = emulated_run;
    return &emulated->code;
}

static void emulated_free(X86Code *c) {
    Emulated *e = (Emulated *)(void *)c;
    nvptx_free(e->ptx);
    free(e);
}

#define x86_compile emulated_compile
#define x86_free emulated_free

#endif
