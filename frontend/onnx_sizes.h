/* onnx_sizes.h: what is known of small integer values while sizes are symbols. */
#ifndef STGCC_FRONTEND_ONNX_SIZES_H
#define STGCC_FRONTEND_ONNX_SIZES_H

#include "frontend/onnx_import.h"

/* Works out the partial value of a new node's result from its operands; called for every node in
 * order. */
void partial_of_node(Import *im, const Node *n);
/* v has this value in what is being compiled, although it is no constant of the graph. */
void value_evaluated(Import *im, const Value *v, Tensor *t);
void partial_set(Import *im, const Value *v, Partial *p);
Node *em_infer(OpCall *c, Node *n);

#endif
