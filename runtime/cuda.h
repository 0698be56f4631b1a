/* cuda.h: steps on an NVIDIA GPU, inside the runtime.
 *
 * cuda_device.c  one GPU: driver, context, stream, memory, transfers, errors
 * cuda_arena.c   an arena in device memory, and which copy of every slot is the current one
 * cuda_run.c     a step's module, its launches, their graph, its fault record
 * cuda_blas.c    dense products through cuBLAS
 *
 * Functions that touch the GPU run between cuda_enter and cuda_leave (the callers' duty, in run.c
 * and machine.c). They return a status other than STGC_OK with a text in CudaDevice.error; a
 * device whose context is lost answers every later call with the text of what destroyed it. */
#ifndef STGC_RUNTIME_CUDA_H
#define STGC_RUNTIME_CUDA_H

#include "runtime/cuda_driver.h"
#include "runtime/runtime.h"
#include "runtime/step_cuda.h"

/* ---- the device ---- */

typedef struct CudaDevice {
    CudaDriver cu;
    int ordinal;
    char name[128];
    int capability;     /* 90 for 9.0 */
    int driver_version; /* 13000 for CUDA 13.0 */
    int max_threads, shared_limit, sms;
    CuDevice device;
    CuContext context;
    CuStream stream;
    bool graphs; /* steps may be captured */
    /* pinned memory: two halves that take turns, and a fault record */
    char *staging;
    CuEvent staged[2];
    bool busy[2];
    int turn;
    /* cuBLAS, from the first step on that needs it */
    char *cublas_path; /* NULL: the system's */
    Cublas blas;
    CublasHandle cublas;
    CuAddress workspace;
    int cublas_version;
    bool lost;
    char error[1024];
} CudaDevice;

/* NULL with a status and a text. */
CudaDevice *cuda_device_new(const StgcCudaOptions *o, StgcStatus *status, char *error, size_t size);
void cuda_device_free(CudaDevice *d);
void cuda_describe(const CudaDevice *d, char *text, size_t size);

/* The context is current on this thread until cuda_leave; the thread's own comes back then. */
bool cuda_enter(CudaDevice *d);
void cuda_leave(CudaDevice *d);

/* Keeps the text "GPU 0 (NAME): error: …" and, for a result of the driver, what it means. */
StgcStatus cuda_fail(CudaDevice *d, CuResult r, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
StgcStatus cuda_refuse(CudaDevice *d, StgcStatus status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* `what` names the memory in a message: "the step". A lack of it is said in the same words whether
 * it is seen before or when asking. */
StgcStatus cuda_room(CudaDevice *d, int64_t bytes, const char *what);
StgcStatus cuda_alloc(CudaDevice *d, int64_t bytes, const char *what, CuAddress *at);
void cuda_free(CudaDevice *d, CuAddress at);

/* Through pinned memory. An upload is ordered in the stream, its source may change at once; a
 * download is complete. */
StgcStatus cuda_upload(CudaDevice *d, CuAddress to, const void *from, int64_t bytes);
StgcStatus cuda_download(CudaDevice *d, void *to, CuAddress from, int64_t bytes);
StgcStatus cuda_zero(CudaDevice *d, CuAddress to, int64_t bytes);
StgcStatus cuda_wait(CudaDevice *d, const char *doing); /* until the stream is empty */
StgcCudaFault *cuda_fault_record(CudaDevice *d);        /* pinned */

/* cuda_blas.c */
StgcStatus cublas_start(CudaDevice *d);
void cublas_stop(CudaDevice *d);
int64_t cublas_bytes(const CudaDevice *d); /* that cublas_start will reserve */
/* Whether cuBLAS can be given this product, by its strides; NULL, or why not. */
const char *cublas_why_not(const StgcCudaGemm *g);
StgcStatus cublas_product(CudaDevice *d, CuAddress arena, const StgcCudaGemm *g, const char *name);

/* ---- arenas ---- */

/* Bytes that have a name: one slot, and slots that are views of it. The copies that hold the
 * current value; at least one does. */
typedef struct CudaBlock {
    int64_t offset, bytes;
    const void *init;  /* NULL: zeros */
    const void *owner; /* the run whose output it is; NULL: persistent */
    bool host, device, initial;
    bool exposed;                           /* the host's copy may change at any time */
    bool was_host, was_device, was_initial; /* before the last step */
} CudaBlock;

typedef struct CudaArena {
    CudaDevice *device;
    CuAddress base;
    int64_t bytes;
    unsigned generation; /* counts where `base` was */
    char *host;
    CudaBlock **blocks;
    int32_t nblocks, room;
} CudaArena;

/* `host`: where the host's copies lie, at the same offsets. NULL: no memory on the host. */
CudaArena *cuda_arena_new(CudaDevice *d, char *host);
void cuda_arena_free(CudaArena *a);
/* Device memory for so many bytes; a smaller block there was before is saved to the host first. */
StgcStatus cuda_arena_open(CudaArena *a, int64_t bytes);
/* The block of a slot, made if need be; NULL: no memory. */
CudaBlock *cuda_arena_block(CudaArena *a, const StgcSlot *slot, bool persists, const void *owner);
/* An owner is gone: so are its blocks. */
void cuda_arena_forget(CudaArena *a, const void *owner);

StgcStatus cuda_block_to_host(CudaArena *a, CudaBlock *b);
void cuda_block_changed(CudaBlock *b); /* the host's copy is, or may be, another now */
StgcStatus cuda_block_to_device(CudaArena *a, CudaBlock *b);
/* The value of a block of another arena of this device. */
StgcStatus cuda_block_take(CudaArena *a, CudaBlock *to, CudaArena *from_arena, CudaBlock *from);

/* ---- steps ---- */

typedef struct CudaRun CudaRun;
/* Loads the step's module and checks it against the device. NULL with *status. */
CudaRun *cuda_run_new(CudaDevice *d, const StgcStep *step, StgcStatus *status);
void cuda_run_free(CudaRun *r);
/* Device memory beside the arena: its constants, and what cuBLAS will take with it. */
int64_t cuda_run_bytes(const CudaDevice *d, const StgcStep *step);
typedef void (*CudaMark)(void *ctx, int64_t call);
/* Runs the operations and waits for them. *fault: what they recorded. */
StgcStatus cuda_run_execute(CudaRun *r, const CudaArena *a, CudaMark mark, void *ctx,
                            StgcCudaFault *fault);

#endif
