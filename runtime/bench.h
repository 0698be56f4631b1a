/* bench.h: what measuring a step needs of the runtime: clocks, where a step is, what the machine
 * can do at best.
 *
 * A step compiled with marks says before each of its calls which one comes; whoever watches takes
 * the time. What the machine can do is measured by the same threads that run steps: a large matrix
 * product, a large copy. */
#ifndef STGC_RUNTIME_BENCH_H
#define STGC_RUNTIME_BENCH_H

#include <stdint.h>

#include "runtime/step.h"

/* Seconds by a clock that never jumps; of CPU time that this thread used; that the whole process
 * used. */
double stgc_bench_wall(void);
double stgc_bench_thread(void);
double stgc_bench_process(void);

/* Called on the thread that runs the step. fn NULL: nobody watches. */
typedef void (*StgcWatch)(void *ctx, int64_t call);
void stgc_bench_watch(StgcRt *rt, StgcWatch fn, void *ctx);

/* ---- peaks ---- */
typedef struct StgcPeaks StgcPeaks;
StgcPeaks *stgc_peaks_new(StgcRt *rt); /* NULL: no memory */
void stgc_peaks_free(StgcPeaks *p);
/* One thread is timed by its own CPU time, more by the clock.
 * Flops a second of one f32 product of STGC_PEAK_SIZE cubed by all threads of the machine. */
enum { STGC_PEAK_SIZE = 2048 };
double stgc_peaks_gemm(StgcPeaks *p);
/* Bytes a second of one copy, read and written ones counted, of a block far larger than the caches.
 */
double stgc_peaks_copy(StgcPeaks *p);

#endif
