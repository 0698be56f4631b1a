/* cuda_driver.h: the NVIDIA driver and cuBLAS as far as the runtime uses them: our own
 * declarations, so that building needs no CUDA toolkit, and one list of names each, from which the
 * tables of functions, the look-up, the stand-ins of the tests and the comparison with the real
 * headers (tests/cuda/headers.c) are made.
 *
 * The driver's unsuffixed names of 64-bit functions still have their 32-bit signatures of 2010, so
 * every function is looked up by cuGetProcAddress for CUDA 12.0, or else by its versioned symbol.
 */
#ifndef STGC_RUNTIME_CUDA_DRIVER_H
#define STGC_RUNTIME_CUDA_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef unsigned CuResult; /* an enumeration without negative values */
typedef int CuDevice;
typedef unsigned long long CuAddress;
typedef struct CUctx_st *CuContext;
typedef struct CUmod_st *CuModule;
typedef struct CUfunc_st *CuFunction;
typedef struct CUstream_st *CuStream;
typedef struct CUevent_st *CuEvent;
typedef struct CUgraph_st *CuGraph;
typedef struct CUgraphExec_st *CuGraphExec;

enum {
    CU_OK = 0,
    CU_INVALID_VALUE = 1,
    CU_OUT_OF_MEMORY = 2,
    CU_STUB_LIBRARY = 34,
    CU_NO_DEVICE = 100,
    CU_INVALID_DEVICE = 101,
    CU_INVALID_CONTEXT = 201,
    CU_ECC_UNCORRECTABLE = 214,
    CU_INVALID_PTX = 218,
    CU_UNSUPPORTED_PTX_VERSION = 222,
    CU_INVALID_HANDLE = 400,
    CU_NOT_FOUND = 500,
    CU_ILLEGAL_ADDRESS = 700,
    CU_LAUNCH_OUT_OF_RESOURCES = 701,
    CU_LAUNCH_TIMEOUT = 702,
    CU_ASSERT = 710,
    CU_HARDWARE_STACK_ERROR = 714, /* … to CU_LAUNCH_FAILED: the context is lost */
    CU_LAUNCH_FAILED = 719,
    CU_SYSTEM_DRIVER_MISMATCH = 803,
    CU_NOT_SUPPORTED = 801,
    CU_CAPTURE_UNSUPPORTED = 900,
    CU_CAPTURE_INVALIDATED = 901,
    CU_UNKNOWN = 999,

    CU_ATTRIBUTE_MAX_THREADS = 1, /* of a CTA */
    CU_ATTRIBUTE_SMS = 16,
    CU_ATTRIBUTE_CAPABILITY_MAJOR = 75,
    CU_ATTRIBUTE_CAPABILITY_MINOR = 76,
    CU_ATTRIBUTE_SHARED_OPTIN = 97, /* bytes of shared memory a CTA may ask for */
    CU_FUNCTION_MAX_DYNAMIC_SHARED = 8,
    CU_JIT_ERROR_LOG = 5, /* a buffer, then its bytes */
    CU_JIT_ERROR_LOG_BYTES = 6,
    CU_NON_BLOCKING = 1,
    CU_NO_TIMING = 2,
    CU_CAPTURE_THREAD_LOCAL = 1,
};

/* S(name, arguments): the symbol is the name. V(name, symbol, arguments): a later version of it.
 * All return a CuResult. */
// clang-format off
#define CUDA_DRIVER_FUNCTIONS(S, V)                                                                 \
    S(cuInit, (unsigned flags))                                                                     \
    S(cuDriverGetVersion, (int *version))                                                           \
    S(cuGetErrorName, (CuResult error, const char **text))                                          \
    S(cuGetErrorString, (CuResult error, const char **text))                                        \
    S(cuDeviceGetCount, (int *count))                                                               \
    S(cuDeviceGet, (CuDevice *device, int ordinal))                                                 \
    S(cuDeviceGetName, (char *name, int bytes, CuDevice device))                                    \
    S(cuDeviceGetAttribute, (int *value, unsigned attribute, CuDevice device))                      \
    S(cuDevicePrimaryCtxRetain, (CuContext *context, CuDevice device))                              \
    V(cuDevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2, (CuDevice device))                   \
    V(cuCtxPushCurrent, cuCtxPushCurrent_v2, (CuContext context))                                   \
    V(cuCtxPopCurrent, cuCtxPopCurrent_v2, (CuContext *context))                                    \
    V(cuMemGetInfo, cuMemGetInfo_v2, (size_t *unused, size_t *total))                               \
    V(cuMemAlloc, cuMemAlloc_v2, (CuAddress *address, size_t bytes))                                \
    V(cuMemFree, cuMemFree_v2, (CuAddress address))                                                 \
    S(cuMemHostAlloc, (void **at, size_t bytes, unsigned flags))                                    \
    S(cuMemFreeHost, (void *at))                                                                    \
    V(cuMemcpyHtoDAsync, cuMemcpyHtoDAsync_v2,                                                      \
      (CuAddress to, const void *from, size_t bytes, CuStream stream))                              \
    V(cuMemcpyDtoHAsync, cuMemcpyDtoHAsync_v2,                                                      \
      (void *to, CuAddress from, size_t bytes, CuStream stream))                                    \
    V(cuMemcpyDtoDAsync, cuMemcpyDtoDAsync_v2,                                                      \
      (CuAddress to, CuAddress from, size_t bytes, CuStream stream))                                \
    S(cuMemsetD8Async, (CuAddress to, unsigned char byte, size_t bytes, CuStream stream))           \
    S(cuMemsetD2D8Async, (CuAddress to, size_t pitch, unsigned char byte, size_t width,             \
                          size_t height, CuStream stream))                                          \
    S(cuModuleLoadDataEx, (CuModule *module, const void *image, unsigned noptions,                  \
                           unsigned *options, void **values))                                       \
    S(cuModuleUnload, (CuModule module))                                                            \
    S(cuModuleGetFunction, (CuFunction *function, CuModule module, const char *name))               \
    S(cuFuncSetAttribute, (CuFunction function, unsigned attribute, int value))                     \
    S(cuLaunchKernel, (CuFunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,      \
                       unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,       \
                       CuStream stream, void **params, void **extra))                               \
    S(cuStreamCreate, (CuStream *stream, unsigned flags))                                           \
    V(cuStreamDestroy, cuStreamDestroy_v2, (CuStream stream))                                       \
    S(cuStreamSynchronize, (CuStream stream))                                                       \
    S(cuEventCreate, (CuEvent *event, unsigned flags))                                              \
    V(cuEventDestroy, cuEventDestroy_v2, (CuEvent event))                                           \
    S(cuEventRecord, (CuEvent event, CuStream stream))                                              \
    S(cuEventSynchronize, (CuEvent event))                                                          \
    V(cuStreamBeginCapture, cuStreamBeginCapture_v2, (CuStream stream, unsigned mode))              \
    S(cuStreamEndCapture, (CuStream stream, CuGraph *graph))                                        \
    S(cuGraphInstantiateWithFlags, (CuGraphExec *exec, CuGraph graph, unsigned long long flags))    \
    S(cuGraphLaunch, (CuGraphExec exec, CuStream stream))                                           \
    S(cuGraphExecDestroy, (CuGraphExec exec))                                                       \
    S(cuGraphDestroy, (CuGraph graph))
// clang-format on

typedef struct CudaDriver {
    void *library;
#define S(name, arguments) CuResult(*name) arguments;
#define V(name, symbol, arguments) CuResult(*name) arguments;
    CUDA_DRIVER_FUNCTIONS(S, V)
#undef S
#undef V
} CudaDriver;

/* Finds every function of the driver's library, not yet cuInit. path NULL: libcuda.so.1. False with
 * a text that says what is missing; `d` then holds nothing to free. */
bool cuda_driver_open(CudaDriver *d, const char *path, char *error, size_t size);
void cuda_driver_close(CudaDriver *d);
/* "CUDA_ERROR_OUT_OF_MEMORY: out of memory"; the driver's texts. */
const char *cuda_driver_text(const CudaDriver *d, CuResult r, char *text, size_t size);

/* ---- cuBLAS 12 and later ---- */

typedef struct cublasContext *CublasHandle;
typedef unsigned CublasStatus;

enum {
    CUBLAS_OK = 0,
    CUBLAS_NOT_INITIALIZED = 1,
    CUBLAS_ALLOC_FAILED = 3,
    CUBLAS_INVALID_VALUE = 7,
    CUBLAS_ARCH_MISMATCH = 8,
    CUBLAS_EXECUTION_FAILED = 13,
    CUBLAS_N = 0,
    CUBLAS_T = 1,
    CUBLAS_F32 = 0, /* a cudaDataType */
    CUBLAS_BF16 = 14,
    CUBLAS_COMPUTE_F32 = 68,
    CUBLAS_COMPUTE_F32_PEDANTIC = 69,
    CUBLAS_COMPUTE_F32_TF32 = 77,
    CUBLAS_DEFAULT_ALGORITHM = -1,
};

/* B(name, result, arguments) */
// clang-format off
#define CUBLAS_FUNCTIONS(B)                                                                         \
    B(cublasCreate_v2, CublasStatus, (CublasHandle *handle))                                        \
    B(cublasDestroy_v2, CublasStatus, (CublasHandle handle))                                        \
    B(cublasGetVersion_v2, CublasStatus, (CublasHandle handle, int *version))                       \
    B(cublasGetStatusString, const char *, (CublasStatus status))                                   \
    B(cublasSetStream_v2, CublasStatus, (CublasHandle handle, CuStream stream))                     \
    B(cublasSetWorkspace_v2, CublasStatus, (CublasHandle handle, void *workspace, size_t bytes))    \
    B(cublasGemmStridedBatchedEx_64, CublasStatus,                                                  \
      (CublasHandle handle, unsigned op_a, unsigned op_b, int64_t m, int64_t n, int64_t k,          \
       const void *alpha, const void *a, unsigned a_type, int64_t lda, long long a_stride,          \
       const void *b, unsigned b_type, int64_t ldb, long long b_stride, const void *beta, void *c,  \
       unsigned c_type, int64_t ldc, long long c_stride, int64_t batches, unsigned compute,         \
       int algorithm))
// clang-format on

typedef struct Cublas {
    void *library;
#define B(name, result, arguments) result(*name) arguments;
    CUBLAS_FUNCTIONS(B)
#undef B
} Cublas;

/* path NULL: libcublas.so.13, else .12. As cuda_driver_open. */
bool cublas_open(Cublas *b, const char *path, char *error, size_t size);
void cublas_close(Cublas *b);

#endif
