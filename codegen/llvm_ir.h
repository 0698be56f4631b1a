/* llvm_ir.h: one LLVM module under construction, and short words for building it. Internal to
 * codegen. */
#ifndef STGCC_CODEGEN_LLVM_IR_H
#define STGCC_CODEGEN_LLVM_IR_H

#include "codegen/loop_program.h"

#include <llvm-c/Core.h>

typedef struct LlvmIr {
    LLVMContextRef c;
    LLVMModuleRef m;
    LLVMBuilderRef b;
    LLVMTypeRef f16, f32, f64, i1, i8, i16, i32, i64, ptr, void_;
    LLVMValueRef access_group; /* marks accesses of vector loops; see llvm_program.c */
    unsigned md_access, md_loop;
    int vector_floats; /* f32 lanes of the target's widest vector */
    bool nvptx; /* code for a GPU: no libm, no contraction but where fma is asked for */
} LlvmIr;

LlvmIr *llvm_ir_new(const char *module_name);
/* Frees the builder, module and context (module NULL: already given away). */
void llvm_ir_free(LlvmIr *x);

LLVMTypeRef llvm_type(const LlvmIr *x, LType t);
LLVMValueRef llvm_f32(const LlvmIr *x, double v);
LLVMValueRef llvm_i32(const LlvmIr *x, int32_t v);
LLVMValueRef llvm_i64(const LlvmIr *x, int64_t v);
/* Calls an intrinsic overloaded on the type of its first operand only. */
LLVMValueRef llvm_intrinsic(LlvmIr *x, const char *name, LLVMValueRef *in, int n);
LLVMValueRef llvm_intrinsic1(LlvmIr *x, const char *name, LLVMValueRef a);
LLVMValueRef llvm_intrinsic2(LlvmIr *x, const char *name, LLVMValueRef a, LLVMValueRef b);
LLVMValueRef llvm_fma(LlvmIr *x, LLVMValueRef a, LLVMValueRef b, LLVMValueRef c);
/* Calls a pure function of libm on operands of one type (which is also its result). */
LLVMValueRef llvm_libm(LlvmIr *x, const char *name, LLVMValueRef *in, int n);
void llvm_attribute(LlvmIr *x, LLVMValueRef fn, unsigned at, const char *name, uint64_t value);

/* llvm_op.c: one operation on values of type t (of its first data operand). reassoc: part of an
 * accumulation whose order is free. */
LLVMValueRef llvm_op(LlvmIr *x, LOp op, LType t, LLVMValueRef a, LLVMValueRef b, LLVMValueRef c,
                     bool reassoc);
/* Memory: storage types widen and narrow here. *access is the load or store itself, for metadata.
 */
LLVMValueRef llvm_load(LlvmIr *x, DType storage, LLVMValueRef base, LLVMValueRef index,
                       LLVMValueRef *access);
void llvm_store(LlvmIr *x, DType storage, LLVMValueRef base, LLVMValueRef index, LLVMValueRef v,
                LLVMValueRef *access);

/* math_f32.c: elementary functions as straight code that vectorises. */
LLVMValueRef math_exp_f32(LlvmIr *x, LLVMValueRef v);
LLVMValueRef math_log_f32(LlvmIr *x, LLVMValueRef v);
LLVMValueRef math_tanh_f32(LlvmIr *x, LLVMValueRef v);
LLVMValueRef math_erf_f32(LlvmIr *x, LLVMValueRef v);

/* nvptx_math.c: what x86 has from libm, of one type: f32 sin, cos, pow, rem; all of f64. */
LLVMValueRef nvptx_pow_i64(LlvmIr *x, LLVMValueRef v, LLVMValueRef y); /* f64 */
LLVMValueRef nvptx_math(LlvmIr *x, LOp op, LType t, LLVMValueRef a, LLVMValueRef b);

/* The environment every program is called with. */
typedef struct StepEnv {
    char *arena;
    StgcRt *rt;
    const int64_t *offsets; /* of the call's buffers */
} StepEnv;
/* llvm_program.c: the function `name` (StgcTask or StgcEpilogue) of a program, whose
 * buffers are aligned to `alignment` bytes. */
LLVMValueRef llvm_program(LlvmIr *x, const LoopProgram *p, const char *name, unsigned alignment);
LLVMTypeRef llvm_program_type(const LlvmIr *x, ProgramKind kind);

/* llvm_schedule.c: the function `run_name` that runs a module. names[i] is the function of call i's
 * program, or NULL. */
LLVMValueRef llvm_schedule(LlvmIr *x, const LoopModule *m, char *const *names,
                           const char *run_name);

#endif
