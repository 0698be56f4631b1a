/* codegen.h: Graph -> machine code in this process (ORC). The only room that includes llvm-c. */
#ifndef STGCC_CODEGEN_CODEGEN_H
#define STGCC_CODEGEN_CODEGEN_H

#include "ir/graph.h"
#include "runtime/step.h"

typedef struct CodegenOptions {
    bool fused;
    const char *cpu;       /* NULL: this machine */
    FILE *dump_kernels, *dump_loops, *dump_llvm, *dump_asm; /* NULL: no */
} CodegenOptions;

/* Compiles a finished graph (every dim known) for this CPU. The StgcStep points into memory of the returned Compiled. NULL
 * with diagnostics if an op or a data-dependent shape cannot be compiled (all of them listed). */
typedef struct Compiled Compiled;
Compiled *codegen_x86(Graph *g, const CodegenOptions *o, Diag *d);
const StgcStep *compiled_step(const Compiled *c);
void compiled_free(Compiled *c);

#endif
