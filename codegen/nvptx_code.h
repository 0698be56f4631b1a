/* nvptx_code.h: LoopModules as PTX text and device schedules, seen from outside: nothing of LLVM. */
#ifndef STGCC_CODEGEN_NVPTX_CODE_H
#define STGCC_CODEGEN_NVPTX_CODE_H

#include "codegen/loop.h"
#include "runtime/step_cuda.h"

typedef struct NvptxTarget {
    int target;       /* as asked for: 80, 86, 89, 90, 100, 120 */
    int lowered;      /* what LLVM is told: 80 (for 80, 86, 89) or 90 */
    int shared_limit; /* bytes of shared memory a CTA may have on `target`: 163 KB on 80, 99 KB on
                         86, 89 and 120, 227 KB on 90 and 100 */
    int sms;          /* streaming multiprocessors of a typical board, for choosing tiles */
} NvptxTarget;
/* "sm_80" …; false with a diagnostic that lists the known ones. */
bool nvptx_target_find(NvptxTarget *t, const char *name, Diag *d);

/* Steps that share one PTX text. Diagnostics if a program cannot be lowered (all of them). Freed with
 * nvptx_free; the StgcCudaSteps point into it. */
typedef struct NvptxCode NvptxCode;
NvptxCode *nvptx_compile(const LoopModule *const *modules, int nmodules, const NvptxTarget *t,
                         FILE *dump_llvm, Diag *d);
const StgcCudaStep *nvptx_step(const NvptxCode *c, int module);
void nvptx_free(NvptxCode *c);

/* nvptx_cost.c: a table of the step's kernels; s was compiled from m with marks. */
void nvptx_cost_print(const LoopModule *m, const StgcCudaStep *s, FILE *to);

#endif
