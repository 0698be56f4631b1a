/* metrics.h: what a training reports: JSON lines in RUN/metrics.jsonl for programs, a table on a
 * terminal for people. */
#ifndef STGC_RUNTIME_METRICS_H
#define STGC_RUNTIME_METRICS_H

#include <stdio.h>

#include "runtime/runtime.h"

typedef struct StgcMetrics StgcMetrics;

/* DIR/metrics.jsonl: a new file, or (keep_step >= 0) the old one without what was logged after that
 * step. NULL with text. */
StgcMetrics *stgc_metrics_open(const char *dir, int64_t keep_step, char *error, size_t n);
void stgc_metrics_close(StgcMetrics *m);
/* One row: begin, values, end. What is not finite is written as null. */
void stgc_metrics_begin(StgcMetrics *m, int64_t step);
void stgc_metrics_number(StgcMetrics *m, const char *name, double value);
void stgc_metrics_list(StgcMetrics *m, const char *name, const double *values, int64_t count);
StgcStatus stgc_metrics_end(StgcMetrics *m, char *error, size_t n);

/* The table. A column that is NaN prints as "-". */
typedef struct StgcTableRow {
    int64_t step, steps;
    double total, task, balance, cel, conflict_share, mean_cos, max_load, tokens_per_second;
} StgcTableRow;
void stgc_table_row(FILE *to, int *printed,
                    const StgcTableRow *row); /* a heading first, and again every 20 rows */

#endif
