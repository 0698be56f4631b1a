/* simplify.h: the two halves of simplify. Private to passes/. */
#ifndef STGCC_PASSES_SIMPLIFY_H
#define STGCC_PASSES_SIMPLIFY_H

#include "passes/pass.h"

/* Tries every local rule on every node once, in order; whether any applied. Replaced nodes stay
 * until graph_dce. */
bool simplify_rules(Graph *g);
/* Merges nodes that compute the same; whether any were. */
bool simplify_merge(Graph *g);

#endif
