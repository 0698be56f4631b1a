/* raise_probe.h: what the files of probing share: some elements of values under synthetic routing
 * (raise_probe_part.c says how), and products of them. */
#ifndef STGCC_PASSES_RAISE_PROBE_H
#define STGCC_PASSES_RAISE_PROBE_H

#include "passes/raise.h"

/* Is the graph cut at v, so that it is random? */
bool probe_is_cut(const Probe *p, const Value *v);
/* Element `at` of a random activation: the same whatever else is asked for. */
double probe_random(const Probe *p, const Value *v, int64_t at);

/* Row-major strides; the first size may be unknown. False if another is. */
bool part_strides(const int64_t *dims, int rank, int64_t *stride);
/* As probe_part, of positions that repeat. */
const Cell *probe_part_again(Probe *p, Value *v, const Part *x);
/* Elements of v that may be other than zero, if v is large and that is known of few; else NULL. */
const Cell *probe_sparse(Probe *p, Value *v, const Part **at);
/* How many rows v has; -1: not known without computing it. */
int64_t part_rows(Probe *p, Value *v);
/* Elements of a matmul or grouped_matmul (raise_product.c). */
const Cell *part_product(Probe *p, Node *n, const Part *x);

#endif
