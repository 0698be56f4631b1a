/* eval.h: the reference evaluator: float64, slow, obvious. Every op of the table; the truth others
 * are compared with.
 *
 * Floats are doubles whatever their type (a cast between float types does not round unless
 * eval->round), integers int64 wrapped to their type, bool 0/1. Zero-size dims everywhere. */
#ifndef STGCC_IR_EVAL_H
#define STGCC_IR_EVAL_H

#include "ir/graph.h"

typedef struct RTensor {
    DType dtype;
    int rank;
    int64_t dims[MAX_RANK];
    int64_t count;
    union {
        double *f;  /* dtype_is_float */
        int64_t *i; /* else */
    };
} RTensor;

typedef struct Eval {
    Arena *arena; /* where results live */
    bool round;   /* round floats to their storage type after every op */
    Diag *diag;
    RTensor **values;  /* by value id; set inputs and params before eval_graph. NULL: not there */
    int64_t mem_limit; /* bytes of results; 0: none. Exceeded: diagnostic with EXIT_RESOURCE */
    int64_t used; /* bytes of results so far; kept by the evaluator, may be reset with the arena */
} Eval;

RTensor *rtensor_new(Arena *a, DType t, int rank, const int64_t *dims); /* zeroed */
RTensor *rtensor_from(Arena *a, const Tensor *t);
Tensor *rtensor_to(Arena *a, const RTensor *r, DType t); /* rounds */

/* Evaluates one node whose operands are in ev->values; sets its results. False with a diagnostic
 * (data-dependent faults: an index out of range, a size that does not fit) naming the user's node.
 */
bool eval_node(Eval *ev, Node *n);
/* Evaluates all nodes needed for outputs and updates (all nodes if `only` is NULL, else those
 * `only` (nonly values) need). OP_PARAM takes its initial tensor unless ev->values holds it
 * already. Any value already in ev->values is taken as it is and what only it needs is not computed
 * (so a caller may cut a graph open, and must clear what it wants computed again). */
bool eval_graph(Eval *ev, Graph *g, Value *const *only, int nonly);

/* One node's hook: operands in (NULL where absent), results out, made by the hook with
 * rtensor_new(ev->arena, …). */
#define OP(ID, m, a, b, c, f, infer, eval, grad, lower, emit) \
    bool eval_##eval(Eval *ev, Node *n, RTensor **in, RTensor **out);
#include "ir/ops.def"
#undef OP

#endif
