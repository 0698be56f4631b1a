/* x86_units.h: LoopModules as relocatable objects; shared by x86.c (code in this process) and
 * object.c (code in a library). Internal to codegen. */
#ifndef STGCC_CODEGEN_X86_UNITS_H
#define STGCC_CODEGEN_X86_UNITS_H

#include <llvm-c/Core.h>
#include <llvm-c/TargetMachine.h>

#include "codegen/x86.h"

typedef struct X86Job {
    /* what to translate; modules share equal programs */
    const LoopModule *const *modules;
    const char *const *run_names; /* symbols of the modules' schedules */
    int nmodules;
    const X86Target *target;
    int first_symbol; /* kernels are called v<first_symbol>, v<first_symbol + 1>, … */
    bool hidden;      /* symbols v<number> are not seen outside the library they are linked into */
    /* what came of it */
    VEC(LLVMMemoryBufferRef) objects; /* the caller's */
    int functions, not_vectorised;
    bool want_llvm, want_asm; /* internal */
} X86Job;

/* Translates all modules, several threads at once. */
void x86_translate(X86Job *job, FILE *dump_llvm, FILE *dump_asm);

void x86_initialise(void); /* LLVM's target, once */
LLVMTargetMachineRef x86_target_machine(const X86Target *t, LLVMCodeGenOptLevel level);
LLVMMemoryBufferRef x86_emit(LLVMTargetMachineRef tm, LLVMModuleRef m, LLVMCodeGenFileType kind);

#endif
