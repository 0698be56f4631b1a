/* nvptx.h: how a LoopModule becomes PTX text and a device schedule (runtime/step_cuda.h). Internal
 * to codegen; from outside it is nvptx_code.h.
 *
 * nvptx.c          the module: which kernel every call needs, one PTX text, the schedule
 * nvptx_target.c   what is compiled for which GPU; LLVM's NVPTX target
 * nvptx_program.c  a LoopProgram as a kernel (TASK) or as a function on a tile (EPILOGUE)
 * nvptx_math.c     elementary functions and intrinsics
 * nvptx_gemm.c …   matrix products with prologue and epilogue; nvptx_dot.c: token_dot
 *
 * Teams. A kernel's work is done by teams of threads: a CTA, a warp or one thread. All threads of a
 * team walk the structured code together; an innermost vector loop is dealt out to them, thread t
 * takes iterations lo+t, lo+t+size, …; variables accumulated there are combined in a fixed tree and
 * known to all afterwards. Stores outside vector loops are done by the team's first thread. A
 * barrier of the team stands wherever one thread may read what another wrote. So results do not
 * depend on scheduling. */
#ifndef STGCC_CODEGEN_NVPTX_H
#define STGCC_CODEGEN_NVPTX_H

#include "codegen/llvm_ir.h"
#include "codegen/nvptx_code.h"

typedef struct NvptxModule NvptxModule; /* the step under construction, see below */

typedef enum { TEAM_THREAD, TEAM_WARP, TEAM_CTA } TeamKind;

/* nvptx_target.c: words for building kernels. Address spaces: 0 generic, 1 global, 3 shared. */
LLVMTypeRef nvptx_global_ptr(const LlvmIr *x);
LLVMTypeRef nvptx_shared_ptr(const LlvmIr *x);
/* Calls an intrinsic that is not overloaded ("llvm.nvvm.mma.m16n8k8.row.col.tf32"); a name that
 * LLVM does not know is a bug at once, not an error of ptxas. */
LLVMValueRef nvptx_call(LlvmIr *x, const char *name, LLVMValueRef *in, int n);
LLVMValueRef nvptx_tid(LlvmIr *x); /* i32 thread in the CTA */
LLVMValueRef nvptx_ctaid(LlvmIr *x, int axis);
void nvptx_barrier(LlvmIr *x);   /* bar.sync 0 */
void nvptx_warp_sync(LlvmIr *x); /* bar.warp.sync of all lanes */
/* The value of lane (own number ^ lanes); all lanes take part. f32, f64, i32, i64 or i1. */
LLVMValueRef nvptx_shfl_xor(LlvmIr *x, LLVMValueRef v, int lanes);
/* A static array in shared memory, aligned to 16 bytes: ptr addrspace(3). */
LLVMValueRef nvptx_shared(LlvmIr *x, LLVMTypeRef element, int64_t count, const char *name);
/* A kernel (ptx_kernel, launch bound `threads`) of n parameters, pointers (global) or i64, all 8
 * bytes; the builder stands at its entry. No parameter is noalias: give that (llvm_attribute) to
 * what the kernel only reads, never to what other threads write, since LLVM moves accesses of
 * noalias memory across barriers. */
LLVMValueRef nvptx_kernel_function(LlvmIr *x, const char *name, const LLVMTypeRef *params, int n,
                                   int threads);
/* For a kernel of which at least `ctas` should fit on one multiprocessor. */
void nvptx_min_ctas(LlvmIr *x, LLVMValueRef kernel, int ctas);
/* Records a data fault from code of a kernel: key = number of the text << 48 | where, by atomic
 * minimum, and what was found there (step_cuda.h). fault: ptr addrspace(1), where, found: i64. */
void nvptx_fault(NvptxModule *m, LLVMValueRef fault, const char *what, LLVMValueRef where,
                 LLVMValueRef found);

/* nvptx_program.c: an EPILOGUE program as an internal function, always inlined:
 *     void NAME(ptr addrspace(1) buffer…, ptr addrspace(1) fault, i64 group, i64 m0, i64 m1, i64
 * n0, i64 n1, ptr addrspace(3) tile, i64 ld) run by all threads of a CTA of `threads`, with tile in
 * shared memory; it begins and ends with a barrier of its own. *shared: bytes of static shared
 * memory that it takes. */
LLVMValueRef nvptx_epilogue(NvptxModule *m, const LoopProgram *p, const char *name, int threads,
                            int64_t *shared);

/* The schedule under construction; nvptx.c. */
/* The number of a kernel by its name, or -1: kernels are shared by calls with equal names, so a
 * name says everything the code depends on. */
int nvptx_find_kernel(const NvptxModule *m, const char *name);
int nvptx_add_kernel(NvptxModule *m, const StgcCudaKernel *k);
LlvmIr *nvptx_ir(NvptxModule *m);
const NvptxTarget *nvptx_module_target(const NvptxModule *m);
/* Appends an operation; texts and params are copied. */
void nvptx_launch(NvptxModule *m, int kernel, const int64_t grid[3], const StgcCudaParam *params,
                  const char *name);
void nvptx_cublas(NvptxModule *m, const StgcCudaGemm *g, const char *name);
void nvptx_clear(NvptxModule *m, int64_t at, int64_t bytes, const char *name);
/* Bytes of a table in the constants; equal tables are kept once. 8-byte aligned. */
int64_t nvptx_constant(NvptxModule *m, const void *bytes, int64_t n);
/* The name a program has in this module ("p12_softmax"): equal programs have one. */
const char *nvptx_program_name(NvptxModule *m, const LoopProgram *p);

/* The number of a fault's text in StgcCudaStep.fault_texts. */
int nvptx_fault_number(NvptxModule *m, const char *what);
/* For a call that cannot be lowered: nvptx_compile fails after all calls were looked at. */
Diag *nvptx_diag(NvptxModule *m);

/* nvptx_program.c: a TASK program as a kernel, and its launch. */
void nvptx_task(NvptxModule *m, const LoopCall *c);
/* nvptx_gemm.c, nvptx_dot.c: append what computes a CALL_GEMM or CALL_TOKEN_DOT. */
void nvptx_gemm(NvptxModule *m, const LoopCall *c);
void nvptx_token_dot(NvptxModule *m, const LoopCall *c);

#endif
