/* text.h: the Graph as text, deterministically, and back.
 *
 *   graph "name"
 *   %0 = input {name="input_ids"} : i64[batch,seq]
 *   %1 = param {name="w", kind=0, value=f32[4,2]#9a3f…} : f32[4,2]  ; "onnx node" Op
 *   %4, %5 = topk %3 {k=2, axis=1} : f32[8,2], i64[8,2]  ; "/gate/TopK" TopK
 *   output "logits" %5
 *   update %1 %9
 *
 * One node a line, every result typed, absent operands `_`, ids renumbered in order, constants up
 * to 16 elements in full, larger ones as shape and hash (which parse back only with `tensors`: hash
 * -> Tensor kept by the printer's graph), floats %.9g. */
#ifndef STGCC_IR_TEXT_H
#define STGCC_IR_TEXT_H

#include "ir/graph.h"

void graph_print(const Graph *g, FILE *to);
char *graph_to_text(const Graph *g); /* malloc'ed */
/* Parses what graph_print wrote. Elided constants become zeros of their shape unless found in
 * `tensors_of` by hash. */
Graph *graph_parse(const char *text, const Graph *tensors_of, Diag *d);

#endif
