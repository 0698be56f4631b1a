/* runtime.h: executes a compiled step: threads, matrix products, memory. Nothing of the compiler.
 * Functions return a status and leave text in the handle; they never exit. */
#ifndef STGC_RUNTIME_RUNTIME_H
#define STGC_RUNTIME_RUNTIME_H

#include <stdbool.h>
#include <stddef.h>

#include "runtime/step.h"

/* ---- the machine: a pool of threads and the services of step.h ---- */
StgcRt *stgc_rt_new(int threads); /* 0: all cores; NULL if there is no memory */
void stgc_rt_free(StgcRt *rt);
int stgc_rt_threads(const StgcRt *rt);
const char *
stgc_rt_describe(const StgcRt *rt); /* CPU, threads, GEMM library and kernel set; or the GPU */

/* A machine that is an NVIDIA GPU, for steps with `cuda`. The driver and cuBLAS are looked for now,
 * not when the program is linked. NULL with a status (STGC_ERR_IO) and a text that says what was
 * found and what to do. */
typedef struct StgcCudaOptions {
    int device;         /* number of the GPU, as the driver counts: 0 is the first */
    const char *driver; /* NULL: libcuda.so.1 */
    const char *cublas; /* NULL: libcublas.so.13 or .12 */
    bool no_graph;      /* launch operation by operation, always */
} StgcCudaOptions;
StgcRt *stgc_rt_new_cuda(const StgcCudaOptions *o, StgcStatus *status, char *error, size_t size);
int stgc_rt_capability(const StgcRt *rt); /* 90 for compute capability 9.0; 0: a CPU */

/* ---- one compiled step with its arena ---- */
typedef struct StgcRun StgcRun;
/* Allocates the arena; slots have their initial bytes. The step, and for a GPU these bytes, must
 * outlive the run. NULL: no memory. What else makes it useless (a step of another version, a GPU
 * that lacks memory or cannot run it) is its status. */
StgcRun *stgc_run_new(StgcRt *rt, const StgcStep *step);
/* Shares the persistent slots (by name) with another run, e.g. micro-batch step and optimizer step.
 * Both in one arena, at no cost, if their persistent parts are laid out alike: inputs and outputs
 * then hold only until the other run steps. Else the shared slots are copied whenever the stepping
 * run changes; ask stgc_run_data again after the other run's step. */
StgcRun *stgc_run_new_shared(StgcRt *rt, const StgcStep *step, StgcRun *with);
void stgc_run_free(StgcRun *r);
StgcStatus stgc_run_status(
    const StgcRun *r); /* why it can never step, with a text in stgc_run_error; STGC_OK: it can */
const StgcSlot *stgc_run_find(const StgcRun *r, const char *name); /* any kind; NULL */

/* ---- bytes ----
 *
 * On a CPU a slot's bytes are at one address that holds until the run is freed (outputs until the
 * next step), and all of these give it. On a GPU the address is that of the host's copy: it is the
 * same each time, but up to date only from a call until the next step; what is written there is
 * taken up by the next step if stgc_run_data was called since the last one. Bytes travel only when
 * they are asked for and changed since. NULL: the GPU failed, with a text in stgc_run_error. */
void *stgc_run_data(StgcRun *r, const StgcSlot *slot); /* to read or write */
const void *stgc_run_read(StgcRun *r,
                          const StgcSlot *slot); /* to read: on a GPU nothing has to go back */
/* The same, but nothing is taken over from other runs. */
void *stgc_run_address(StgcRun *r, const StgcSlot *slot);
const void *stgc_run_peek(StgcRun *r, const StgcSlot *slot);
/* stgc_run_address for one who keeps it and writes there between any two steps. */
void *stgc_run_expose(StgcRun *r, const StgcSlot *slot);
/* Takes the shared slots over from the run that had them last, as reading one of them does. */
StgcStatus stgc_run_take_over(StgcRun *r);
/* The values that this run has of shared slots count as the current ones: nothing that ran since
 * changed them. */
void stgc_run_claim(StgcRun *r);
StgcStatus stgc_run_step(StgcRun *r); /* one step; STGC_ERR_DATA when the step recorded a fault */
const char *stgc_run_error(const StgcRun *r);
int64_t stgc_run_peak_bytes(const StgcRun *r); /* planned; on a GPU of its memory */
int64_t stgc_run_touched_bytes(
    const StgcRun *r); /* resident pages of the arena, measured; on a GPU all of it */

#endif
