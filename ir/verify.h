/* verify.h: what must always hold of a Graph; run after every pass, which is named when it broke
 * something. */
#ifndef STGCC_IR_VERIFY_H
#define STGCC_IR_VERIFY_H

#include "ir/graph.h"

/* Checks: links and use lists agree, topological order, arity, attributes of the right kind,
 * results inferred and equal to what inference gives, unique names of params/inputs/outputs,
 * updates match in type and shape. On the first fault prints the node and calls bug("after <pass>:
 * …"). */
void graph_verify(Graph *g, const char *after_pass);
/* The same, returning the message (malloc'ed) instead, NULL if sound: for tests. */
char *graph_check(Graph *g);

#endif
