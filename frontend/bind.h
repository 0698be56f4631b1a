/* bind.h: the sizes of a model's symbolic dims, and whether arrays fit its inputs. */
#ifndef STGCC_FRONTEND_BIND_H
#define STGCC_FRONTEND_BIND_H

#include "frontend/frontend.h"

/* "name=N" assignments of --dim. False with EXIT_USAGE (unknown name: the nearest; no such dim in
 * the model: the list). */
bool bind_flags(Graph *g, const StrList *flags, Diag *d);
/* Binds the symbols of every input found among the arrays; conflicts and misfits are reported
 * together, EXIT_DATA. */
bool bind_arrays(Graph *g, const NamedArrays *a, Diag *d);
/* Binds what is free in the inputs to small sizes (batches 2, the rest 8). */
void bind_samples(Graph *g);
/* Every input has a known shape; else EXIT_USAGE with the --dim to give. */
bool bind_complete(const Graph *g, Diag *d);
/* "i64[batch,12]" of an input, for messages. */
const char *value_type_text(const Graph *g, const Value *v, Arena *a);
const char *tensor_type_text(const Tensor *t, Arena *a);
/* Whether an array fits an input, free sizes aside; says what is wrong in d. Integers of another
 * width fit if their values do, f16 and bf16 widen. */
bool array_fits(const Graph *g, const Value *input, const Tensor *t, Diag *d);
/* The array of an input, or NULL after reporting what is missing and what is there. */
const Tensor *array_for(const Graph *g, const Value *input, const NamedArrays *a, Diag *d);

#endif
