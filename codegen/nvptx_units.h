/* nvptx_units.h: LLVM's NVPTX target; shared by nvptx.c and nvptx_target.c. */
#ifndef STGCC_CODEGEN_NVPTX_UNITS_H
#define STGCC_CODEGEN_NVPTX_UNITS_H

#include <llvm-c/TargetMachine.h>

#include "codegen/nvptx.h"

LLVMTargetMachineRef nvptx_target_machine(const NvptxTarget *t);
LlvmIr *nvptx_ir_new(LLVMTargetMachineRef tm); /* an empty module for the machine */
void nvptx_optimise(LLVMTargetMachineRef tm, LLVMModuleRef m);
LLVMMemoryBufferRef nvptx_emit(LLVMTargetMachineRef tm, LLVMModuleRef m); /* PTX text */

#endif
