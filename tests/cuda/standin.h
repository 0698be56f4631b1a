/* standin.h: what the parts of the driver's stand-in share.
 *
 * One shared library, libstgc-ptx-emulator.so, with the entry points of libcuda and libcublas that
 * the runtime uses (runtime/cuda_driver.h), on top of the PTX emulator. It is a test tool: built
 * into the build tree only, named "PTX emulator (not a GPU)", and it never tells a time.
 *
 * It is stricter than a driver. Work in a stream runs when somebody waits for it, or earlier at
 * random, so that a missing wait shows; what a driver leaves undefined, and what the stand-in does
 * not know, is misuse: said on stderr, and the process ends with status 97.
 *
 *   standin.c         state, objects, injected faults, the driver's entry points by name
 *   standin_driver.c  devices, contexts, memory, modules
 *   standin_stream.c  streams, events, graphs, transfers, launches
 *   standin_blas.c    cuBLAS
 *
 * STGC_PTX_EMULATOR=WORD,WORD=N,… (read at cuInit) asks for faults and ways to run:
 *   no-device, stub, driver=11040, no-proc-address   what the driver says of itself
 *   sm=86, memory=MIB, seed=N, approx=N              what the device is; sm also by
 *                                                    STGC_PTX_EMULATOR_SM
 *   oom=N, pin=N    the N-th reservation of device or pinned memory fails
 *   bad-ptx         modules are refused, with a log
 *   refuse=N        the N-th launch of a kernel is refused
 *   launch=N        the N-th kernel that runs destroys the context
 *   no-capture, no-instantiate   graphs are refused
 *   blas=N, no-blas              the N-th product, or cuBLAS itself, fails
 *   gemm=f32        products add up in f32 (default: in f64, rounded once) */
#ifndef STGCC_TESTS_CUDA_STANDIN_H
#define STGCC_TESTS_CUDA_STANDIN_H

#include "runtime/cuda_driver.h"
#include "tests/ptx/emulator.h"

/* Everything the library exports. */
#define S(name, arguments) CuResult name arguments;
#define V(name, symbol, arguments) CuResult symbol arguments;
CUDA_DRIVER_FUNCTIONS(S, V)
#undef S
#undef V
#define B(name, result, arguments) result name arguments;
CUBLAS_FUNCTIONS(B)
#undef B

/* What happened since the process began: for tests, by dlsym. */
typedef struct StandinCounts {
    int64_t uploaded, downloaded; /* bytes */
    int64_t uploads, downloads;   /* transfers */
    int64_t launches, graph_launches, products, syncs;
    int64_t leaks, misuses;
    int64_t live; /* objects and allocations now */
} StandinCounts;
void stgc_standin_counts(StandinCounts *out);

/* ---- faults ---- */

typedef struct Inject {
    bool no_device, stub, no_proc_address, bad_ptx, no_capture, no_instantiate, no_blas, gemm_f32;
    int64_t driver, sm, memory, seed, approx;
    int64_t oom, pin, refuse, launch, blas; /* count down to 0; -1: never */
} Inject;

typedef enum {
    OBJECT_MODULE,
    OBJECT_STREAM,
    OBJECT_EVENT,
    OBJECT_GRAPH,
    OBJECT_EXEC,
    OBJECT_HOST,
    OBJECT_BLAS,
    OBJECT_KINDS
} ObjectKind;
typedef struct Object {
    ObjectKind kind;
    struct Object *next;
} Object;

typedef struct Standin {
    Inject inject;
    bool started;
    PtxDevice *device;
    int retained;
    CuResult sticky;
    char why[1024]; /* of sticky, or of the last refusal */
    Object *objects;
    uint64_t random;
    StandinCounts counts;
} Standin;
extern Standin standin;

/* Entry points may be called by several threads at once: each begins with STANDIN_LOCK, which lasts
 * to its end. */
void standin_unlock(int *unused);
int standin_lock(void);
#define STANDIN_LOCK int locked __attribute__((cleanup(standin_unlock), unused)) = standin_lock()

/* True when the fault that is counted down to is due now. */
bool standin_due(int64_t *count);
void standin_misuse(const char *format, ...) __attribute__((format(printf, 1, 2)));
uint64_t standin_random(void);
/* Records what a result means in full; returns it. */
CuResult standin_say(CuResult r, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A new object, zeroed, in the list of live ones. */
void *standin_object(ObjectKind kind, size_t bytes);
/* Whether it is one, alive. */
bool standin_is(const void *object, ObjectKind kind);
void standin_forget(void *object);
/* Every entry point begins with it: started, a context is current, nothing sticky. */
CuResult standin_enter(void);
/* Calls that a capture in progress forbids. */
CuResult standin_not_in_capture(const char *call);

/* ---- streams ---- */

/* Work in a stream: a function with its arguments, copied. */
typedef struct Work {
    CuResult (*run)(void *arguments);
    void *arguments;
    size_t bytes;
    struct Work *next;
} Work;

CuResult standin_enqueue(CuStream stream, CuResult (*run)(void *), const void *arguments,
                         size_t bytes);
bool standin_capturing(CuStream stream);
bool standin_pending(void); /* work not done yet, in streams of this thread */
/* Function objects belong to modules (standin_driver.c). */
typedef struct Function {
    struct Function *next;
    CuModule module;
    PtxKernel *kernel;
    PtxKernelInfo info;
    int max_dynamic; /* granted by cuFuncSetAttribute */
} Function;
bool standin_is_function(CuFunction f);
int standin_shared_limit(void);
/* Whether these bytes are pinned. */
bool standin_pinned(const void *at, size_t bytes);

#endif
