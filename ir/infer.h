/* infer.h: shape inference, symbolic dims, constant folding at the level of one node. */
#ifndef STGCC_IR_INFER_H
#define STGCC_IR_INFER_H

#include "ir/graph.h"

/* Infers the results of one node from its operands and attributes. False (with a diagnostic naming
 * the user's node, both shapes and what to do) if they do not fit. A dim that only data decide
 * becomes a fresh symbol. Operands that carry shapes (reshape's dims, slice's starts …) are read
 * when constant and then turned into attributes (the operand is dropped). */
bool node_infer(Node *n, Diag *d);

/* Infers the whole graph in order; reports every node that does not fit. */
bool graph_infer(Graph *g, Diag *d);

/* numpy broadcast of two shapes; false if they do not fit. Equal symbols fit; a symbol against 1 is
 * the symbol. */
bool dims_broadcast(const Value *a, const Value *b, int *rank, int64_t *dims);

#define X_INFER(n, d) (Node * n, Diag * d)
#define OP(ID, m, a, b, c, f, infer, eval, grad, lower, emit) bool infer_##infer(Node *n, Diag *d);
#include "ir/ops.def"
#undef OP

#endif
