/* schedule.h: the numbers a step gets from the host: learning rate and bias corrections. One place,
 * so that every caller trains with the same bytes. */
#ifndef STGC_RUNTIME_SCHEDULE_H
#define STGC_RUNTIME_SCHEDULE_H

#include "runtime/step.h"

/* Learning rate of step s = 1, 2, …: a linear warm-up, then constant, or down to 0 after the last
 * step. */
double stgc_schedule_rate(const StgcTraining *t, int64_t s);
/* The input `hyper` of step s: rate, 1/(1-beta1^s), 1/(1-beta2^s), 1/accumulate, zeros. */
void stgc_schedule_hyper(const StgcTraining *t, int64_t s, double rate, float out[8]);

#endif
