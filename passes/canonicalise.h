/* canonicalise.h: the worklist and the families of rules behind passes/canonicalise.c.
 *
 * A rule looks at one node and either leaves it alone (false) or rewrites it (true): it replaces
 * results through canon_replace, or edits the node and calls canon_touch. The driver queues
 * everything a rewrite may have opened up. */
#ifndef STGCC_PASSES_CANONICALISE_H
#define STGCC_PASSES_CANONICALISE_H

#include "ir/graph.h"

typedef struct Canon {
    Graph *g;
    Diag *diag;
    Arena scratch;
    VEC(Node *) work; /* first in, first out: operands come before users at first */
    int head;
    uint8_t *state; /* by node id: CANON_* bits */
    int state_cap;
    struct RTensor **table; /* for the evaluator, by value id */
    int table_cap;
    bool failed;
} Canon;

enum { CANON_QUEUED = 1, CANON_GONE = 2, CANON_REINFER = 4 };

typedef bool CanonRule(Canon *c, Node *n);

/* Queues n (and infers its results again first if `reinfer`). */
void canon_touch(Canon *c, Node *n, bool reinfer);
/* All uses of old go to with; users are queued; nodes that nothing uses any more are removed. True,
 * for `return`. */
bool canon_replace(Canon *c, Value *old, Value *with);
/* Replaces operand i, queues the node, and removes what nothing uses any more. */
void canon_set_in(Canon *c, Node *n, int i, Value *v);
/* n's operand i goes away (the list gets shorter); n is inferred again. */
void canon_drop_in(Canon *c, Node *n, int i);

/* A shape vector element: a number, or a symbolic dim that will be one (INT64_MIN: one without a
 * name). */
typedef struct SymInt {
    bool symbol;
    int64_t v;
} SymInt;
enum { SYMINTS_MAX = 32 };
/* Reads v (integer, rank 0 or 1) element by element as far as shapes decide it. False if it cannot
 * be read. */
bool canon_symints(const Value *v, SymInt *out, int *n);

/* True if v is a constant all of whose elements equal x. */
bool canon_is_splat(const Value *v, double x);
/* The one number a constant of one element holds. */
bool canon_scalar(const Value *v, double *x);

CanonRule canon_fold_const, canon_fold_shape, canon_shape_operand;
CanonRule canon_reshape, canon_transpose, canon_expand, canon_slice, canon_concat, canon_cast;
CanonRule canon_neutral, canon_pow, canon_nan_guard, canon_branch_sum;
CanonRule canon_live_norm, canon_masked_scatter, canon_masked_rows;
CanonRule canon_gather, canon_gather_nd, canon_gather_elements, canon_topk;
/* Notes on router parameters that folding took out of the model. */
void canon_report_folded(const Graph *g, Diag *d);
/* One sweep: equal constants, views and index arithmetic become one node. Float arithmetic is left
 * alone: merging equal experts is not this pass's business. */
bool canon_share(Canon *c);

#endif
