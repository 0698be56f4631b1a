/* nvptx_plan.h: how a LoopProgram is shared out to the threads of a GPU. Internal to codegen. */
#ifndef STGCC_CODEGEN_NVPTX_PLAN_H
#define STGCC_CODEGEN_NVPTX_PLAN_H

#include "codegen/loop_program.h"
#include "codegen/nvptx.h"

/* What is done with a vector loop: nothing special, iterations to warps (whose lanes share out the
 * vector loops inside), iterations to threads. */
typedef enum { DEAL_NONE, DEAL_WARPS, DEAL_THREADS } Deal;

typedef struct NvptxPlan {
    const LoopProgram *p;
    TeamKind team;  /* that does a task */
    int threads;    /* of a CTA */
    Deal *deal;     /* by instruction: of loops */
    bool *barrier;  /* by instruction: the team meets before it */
    int accumulators; /* most variables that one loop dealt to a CTA's threads accumulates */
} NvptxPlan;

/* threads 0: chosen from the program; else a CTA of so many is the team. */
void nvptx_plan(NvptxPlan *plan, const LoopProgram *p, int threads);
void nvptx_plan_free(NvptxPlan *plan);

/* The variables of outside that the loop at instruction `loop` sets, in ascending order; returns
 * their number. */
int nvptx_accumulated(const LoopProgram *p, int loop, int *vars);
/* How the loop accumulates `var`: L_ADD, L_MIN, L_MAX, L_AND or L_OR. */
LOp nvptx_accumulation(const LoopProgram *p, int loop, int var);
/* At most so many iterations, INT64_MAX if unknown. lo is taken as not negative. */
int64_t nvptx_iterations(const LoopProgram *p, LVal lo, LVal hi);

#endif
