/* machine.h: what stands behind an StgcRt, inside the runtime: threads, their buffers, the CPU's
 * kernels, the fault of the running step. */
#ifndef STGC_RUNTIME_MACHINE_H
#define STGC_RUNTIME_MACHINE_H

#include <pthread.h>
#include <stdbool.h>

#include "runtime/bench.h"
#include "runtime/gemm.h"
#include "runtime/runtime.h"
#include "runtime/step.h"

typedef struct Pool Pool;

/* The first fault of a step: the lowest position wins within one kind, so that the text does not
 * depend on which thread came first. */
typedef struct Fault {
    const char *what; /* NULL: none */
    int64_t where, value;
} Fault;

/* Which library multiplies: the faster one by shape, or the one that STGC_GEMM=xsmm or onednn
 * names, where it can. */
typedef enum { ENGINE_BEST, ENGINE_XSMM, ENGINE_ONEDNN } Engine;

typedef struct Machine {
    StgcRt rt; /* first: an StgcRt is a Machine */
    Pool *pool;
    int threads;
    Engine engine;
    bool bf16; /* products of bf16 by instructions for them; else by f32's */
    GemmWork *work; /* [threads] */
    float *buffers;
    int small_level; /* machine_small_level */
    XsmmCache *caches; /* [threads] */
    pthread_mutex_t fault_lock;
    Fault fault;
    StgcWatch watch; /* NULL: nobody measures */
    void *watcher;
    struct CudaDevice *cuda; /* NULL: this CPU. Else there are no threads and buffers */
    char description[512]; /* "": not asked for yet */
} Machine;

/* pool.c. Workers are pinned when they fill the CPUs this process may use. */
Pool *pool_new(int threads); /* NULL: no memory or no threads */
void pool_free(Pool *pool);
void pool_run(Pool *pool, int64_t tasks, StgcTask fn, void *env);
int pool_thread(const Pool *pool); /* the running thread: 0 is the caller of pool_run */

/* cpu.c */
int cpu_count(void); /* CPUs this process may run on */
Engine cpu_engine(void);
bool cpu_bf16(void); /* for Machine */
int64_t cpu_tile_columns(void); /* for GemmWork */
void cpu_describe(const Machine *machine, char *text, int64_t size);

/* gemm.c, token_dot.c: the services of step.h; machine_gemm is the one for large products. */
void machine_gemm(StgcRt *rt, const StgcGemm *g);
/* gemm_small.c: the same with sums in double, on this thread, if the product is small enough. */
bool machine_gemm_small(StgcRt *rt, const StgcGemm *g);
int machine_small_level(void); /* which code of it this CPU runs; the bits are the same */
void machine_token_dot(StgcRt *rt, const StgcTokenDot *t);

#endif
