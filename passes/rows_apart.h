/* rows_apart.h: whether the rows of a batch are computed apart from each other. */
#ifndef STGCC_PASSES_ROWS_APART_H
#define STGCC_PASSES_ROWS_APART_H

#include "ir/graph.h"

/* Whether row b of `result` depends on row b of the inputs only, for every input whose first axis
 * has `batch` elements, in a bound graph whose MoE layers are raised. So a batch may be filled up
 * with rows nobody asked for. False with *why: the user's node that mixes rows, or that this does
 * not know (memory of g). Says yes only where it can prove it. */
bool rows_apart(Graph *g, const Value *result, int64_t batch, const char **why);

#endif
