/* runtime.h: executes a compiled step: threads, matrix products, memory. Nothing of the compiler. Functions return a status
 * and leave text in the handle; they never exit. */
#ifndef STGC_RUNTIME_RUNTIME_H
#define STGC_RUNTIME_RUNTIME_H

#include <stdbool.h>
#include <stddef.h>

#include "runtime/step.h"

/* ---- the machine: a pool of threads and the services of step.h ---- */
StgcRt *stgc_rt_new(int threads); /* 0: all cores; NULL if there is no memory */
void stgc_rt_free(StgcRt *rt);
int stgc_rt_threads(const StgcRt *rt);
const char *stgc_rt_describe(const StgcRt *rt); /* CPU, threads, GEMM library and kernel set */

/* ---- one compiled step with its arena ---- */
typedef struct StgcRun StgcRun;
StgcRun *stgc_run_new(StgcRt *rt, const StgcStep *step);     /* allocates the arena, fills params; NULL: no memory */
/* Shares the persistent slots (by name) with another run, e.g. micro-batch step and optimizer step. Both in one arena, at no cost,
 * if their persistent parts are laid out alike: inputs and outputs then hold only until the other run steps. Else the shared slots
 * are copied whenever the stepping run changes; ask stgc_run_data again after the other run's step. */
StgcRun *stgc_run_new_shared(StgcRt *rt, const StgcStep *step, StgcRun *with);
void stgc_run_free(StgcRun *r);
const StgcSlot *stgc_run_find(const StgcRun *r, const char *name); /* any kind; NULL */
void *stgc_run_data(StgcRun *r, const StgcSlot *slot);              /* its bytes, valid until freed; outputs until the next step */
void *stgc_run_address(const StgcRun *r, const StgcSlot *slot);     /* the same, but takes nothing over from other runs */
/* The values that this run has of shared slots count as the current ones: nothing that ran since changed them. */
void stgc_run_claim(StgcRun *r);
StgcStatus stgc_run_step(StgcRun *r);                               /* one step; STGC_ERR_DATA when the step recorded a fault */
const char *stgc_run_error(const StgcRun *r);
int64_t stgc_run_peak_bytes(const StgcRun *r);    /* planned */
int64_t stgc_run_touched_bytes(const StgcRun *r); /* resident pages of the arena, measured */

#endif
