/* codegen.h: Graph -> machine code, in this process (ORC) or in a file. The only room that includes
 * llvm-c. */
#ifndef STGCC_CODEGEN_CODEGEN_H
#define STGCC_CODEGEN_CODEGEN_H

#include "ir/graph.h"
#include "runtime/step.h"

typedef struct CodegenOptions {
    bool fused;
    bool marks;      /* the step calls StgcRt.mark around every call */
    const char *cpu; /* NULL: the level that stgc_cpu_level gives; x86-64-v3, x86-64-v4, native */
    FILE *dump_kernels, *dump_loops, *dump_llvm, *dump_asm; /* NULL: no */
} CodegenOptions;

/* Compiles a finished graph (every dim known) for this CPU. The StgcStep points into memory of the
 * returned Compiled. NULL with diagnostics if an op or a data-dependent shape cannot be compiled
 * (all of them listed). */
typedef struct Compiled Compiled;
Compiled *codegen_x86(Graph *g, const CodegenOptions *o, Diag *d);
/* The same for a GPU: target "sm_80" … (cpu and marks' meaning as above; dump_asm gets the PTX).
 * The step has `cuda` and no `run`. */
bool codegen_knows_gpu(const char *target,
                       Diag *d); /* false with a diagnostic that lists the known ones */
Compiled *codegen_nvptx(Graph *g, const CodegenOptions *o, const char *target, Diag *d);
const StgcStep *compiled_step(const Compiled *c);
double compiled_seconds(const Compiled *c); /* what machine code took */
typedef struct LoopModule LoopModule;
const LoopModule *
compiled_module(const Compiled *c); /* what the code was made from (codegen/loop.h) */
void compiled_free(Compiled *c);

/* ---- to a file: runtime/step.h says what is in it ---- */
typedef VEC(StgcSlot) SlotList;
typedef struct ObjectSlot {
    StgcProgram program;
    StgcSlot slot;
} ObjectSlot;
typedef VEC(ObjectSlot) ObjectSlots;
typedef struct ObjectOptions {
    Graph *programs[STGC_PROGRAMS]; /* finished graphs; NULL: not wanted */
    const StgcLibrary *about;       /* all but the variants */
    const char *cpus[4];            /* one variant each, ascending: x86-64-v3, x86-64-v4, native */
    int ncpus;
    const char
        *gpu; /* "sm_80" …: a step for this GPU alone, cpus are not looked at; NULL: for CPUs */
    bool fused;
    bool relocatable; /* an object file instead of a shared library */
    FILE *dump_kernels, *dump_loops, *dump_llvm,
        *dump_asm; /* asm: for a GPU the PTX of all programs, one text */
    FILE *cost;    /* for a GPU, without a path: a table of the kernels of each program; NULL: no */
} ObjectOptions;

/* Writes the library (path NULL: only the dumps). *parameters: what is not in it and must be given
 * when it runs, with its initial bytes (the graphs'); *slots: every slot of every program. Names
 * are copied to a. Faults of writing go to `out`, all others to d. */
bool codegen_object(const ObjectOptions *o, const char *path, Arena *a, SlotList *parameters,
                    ObjectSlots *slots, Diag *d, Diag *out);

#endif
