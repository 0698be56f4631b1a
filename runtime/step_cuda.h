/* step_cuda.h: the contract between code compiled for NVIDIA GPUs and the runtime: what a step is
 * when its kernels are PTX text. Part of step.h's contract, versioned with it; plain C types only.
 *
 * A device step has the slots and the arena of step.h, in device memory: one allocation, sliced by
 * plan. Beside the arena there is a block of constants, uploaded once (tables of offsets), and a
 * fault record. A step is a list of operations, run in order on one stream; nothing is decided on
 * the host while it runs, so that it can be captured as a graph. */
#ifndef STGC_RUNTIME_STEP_CUDA_H
#define STGC_RUNTIME_STEP_CUDA_H

#include <stdint.h>

#include "runtime/stgc.h"

/* A kernel of the module. All parameters are 8 bytes wide, in the order of the operation's list. */
typedef struct StgcCudaKernel {
    const char *name;       /* of the PTX entry */
    uint32_t threads;       /* of a CTA, one axis */
    uint32_t shared_static; /* bytes, known from the text; for checks and reports */
    uint32_t shared_dynamic; /* bytes a launch asks for; above 48 KiB the runtime raises the limit */
    uint32_t nparams;
} StgcCudaKernel;

typedef enum {
    STGC_CUDA_ARENA,    /* device address: arena + value */
    STGC_CUDA_CONSTANT, /* device address: constants + value */
    STGC_CUDA_FAULT,    /* device address of the fault record (StgcCudaFault) */
    STGC_CUDA_NULL,     /* a null pointer */
    STGC_CUDA_I64,      /* the value itself */
} StgcCudaParamKind;
typedef struct StgcCudaParam {
    int32_t kind;
    int32_t unused;
    int64_t value;
} StgcCudaParam;

/* What kernels record: the least key of all faults of a step, by atomic minimum, so that it does
 * not depend on the order of threads. Both words are all ones before a step. Key = what << 48 |
 * where (48 bits); `what` is a number into StgcCudaStep.fault_texts. The second word is the least
 * of what << 56 | where << 32 | value + 2^31, over the faults for which these fit (what below 2^8,
 * where below 2^24): where it is of the same fault as the key, it says what was found there. */
typedef struct StgcCudaFault {
    uint64_t key, found;
} StgcCudaFault;
#define STGC_CUDA_FOUND_WHAT 255
#define STGC_CUDA_FOUND_WHERE ((int64_t)1 << 24)
#define STGC_CUDA_FOUND_BIAS ((int64_t)1 << 31)

typedef enum {
    STGC_CUDA_LAUNCH,
    STGC_CUDA_GEMM,  /* cuBLAS: strided batches of one size */
    STGC_CUDA_CLEAR, /* bytes of the arena to 0 */
    STGC_CUDA_MARK,  /* only in steps made to be measured: call number `mark` begins */
} StgcCudaOpKind;

/* C[b] = A[b] B[b] (+ C[b] if accumulate), row-major as in StgcGemm (step.h): element strides, one
 * of each pair is 1. `compute`: 0 f32 (pedantic: no TF32), 1 tf32, 2 bf16 inputs converted by the
 * caller (not used for f32 arrays). Offsets are bytes in the arena. */
typedef struct StgcCudaGemm {
    int64_t m, n, k, batches;
    int64_t a, a_row, a_col, a_batch;
    int64_t b, b_row, b_col, b_batch;
    int64_t c, ldc, c_batch;
    int32_t accumulate, compute;
} StgcCudaGemm;

typedef struct StgcCudaOp {
    int32_t kind;
    int32_t kernel;     /* LAUNCH: number of the kernel */
    uint32_t grid[3];   /* LAUNCH: CTAs; never 0 */
    int32_t mark;
    const StgcCudaParam *params; /* LAUNCH: nparams of the kernel */
    int64_t at, bytes;  /* CLEAR */
    const StgcCudaGemm *gemm;
    const char *name;   /* for reports: op and the user's node */
} StgcCudaOp;

typedef struct StgcCudaStep {
    const char *ptx; /* one module, NUL-terminated */
    int64_t ptx_bytes; /* without the NUL */
    int32_t target;  /* 80, 86, …: the compute capability it was made for, as in sm_80 */
    int32_t lowered; /* what .target says: not above `target` */
    uint32_t nkernels, nops, nfaults;
    const StgcCudaKernel *kernels;
    const StgcCudaOp *ops;
    const char *const *fault_texts;
    const void *constants;
    int64_t constant_bytes;
} StgcCudaStep;

#endif
