/* schedule.c: learning rate and bias corrections by step. See schedule.h. */
#include "runtime/schedule.h"

#include <math.h>

double stgc_schedule_rate(const StgcTraining *t, int64_t s) {
    double w = (double)t->warmup, n = (double)t->steps;
    if ((double)s <= w)
        return t->lr * (double)s / w;
    double done = n > w ? ((double)s - 1 - w) / (n - w) : 1;
    done = done < 0 ? 0 : done > 1 ? 1 : done;
    switch ((StgcScheduleKind)t->schedule) {
    case STGC_SCHEDULE_LINEAR:
        return t->lr * (1 - done);
    case STGC_SCHEDULE_COSINE:
        return t->lr * 0.5 * (1 + cos(3.14159265358979323846 * done));
    case STGC_SCHEDULE_CONSTANT:
        break;
    }
    return t->lr;
}

void stgc_schedule_hyper(const StgcTraining *t, int64_t s, double rate, float out[8]) {
    out[0] = (float)rate;
    out[1] = (float)(1 / (1 - pow(t->beta1, (double)s)));
    out[2] = (float)(1 / (1 - pow(t->beta2, (double)s)));
    out[3] = (float)(1 / (double)t->accumulate);
    for (int i = 4; i < 8; i++)
        out[i] = 0;
}
