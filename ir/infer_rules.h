/* infer_rules.h: what the infer_* hooks share. */
#ifndef STGCC_IR_INFER_RULES_H
#define STGCC_IR_INFER_RULES_H

#include "ir/infer.h"
#include "ir/infer_dims.h"

/* Reports `node "…" (Op): text` with a line per operand; returns false. */
bool infer_fail(const Node *n, Diag *d, const char *fmt, ...) PRINTF_LIKE(3, 4);
/* Sets result i. A DIM_UNKNOWN keeps what the result had before on that axis, else becomes a fresh
 * symbol, so that inferring twice changes nothing. A fault if the size overflows. */
bool infer_result(Node *n, Diag *d, int i, DType t, const Dims *x);
/* Normalises {axis} (default `absent`) to 0..rank-1 and stores it back. */
bool infer_axis(Node *n, Diag *d, int rank, int64_t absent, int *axis);
bool infer_want_int(const Node *n, Diag *d, int operand);
bool infer_want_float(const Node *n, Diag *d, int operand);
bool infer_same_type(const Node *n, Diag *d, int a, int b);
/* The ints of a constant operand (rank 0 or 1) into out[cap]: their number, -1 if it is no integer
 * constant of that form. */
int infer_const_ints(const Value *v, int64_t *out, int cap);
/* Cuts the operand list to `keep` operands. */
void infer_drop_operands(Node *n, int keep);
void infer_drop_attr(Node *n, AttrKey k);
/* A constant index operand is checked against the axis it addresses (if known): -size..size-1. */
bool infer_const_index(const Node *n, Diag *d, int operand, int64_t size);

#endif
