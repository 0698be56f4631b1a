/* stgc.h: what the files of inject_stgc share. Private to passes/.
 * Letters: T tokens, E experts, R rows (routed pairs sorted by expert, padded to the planned
 * bound). */
#ifndef STGCC_PASSES_STGC_H
#define STGCC_PASSES_STGC_H

#include "passes/pass.h"

typedef VEC(Value *) ValueList;
typedef VEC(Node *) NodeList;

/* One MoE layer on its way through the injector: the dispatch's results, and what is counted. */
typedef struct StgcLayer {
    Compile *c;
    Builder *b;
    const MoeLayer *l;
    Value *offsets, *row_token, *row_expert, *te_row;
    int64_t rows, tokens, experts;
    Value *token_mask;  /* f32[T] of 1 and 0, or NULL: no mask */
    Value *token_count; /* scalar, tokens that count; NULL: all T */
    Value *row_mask;    /* f32[R], or NULL */
    Value *row_counts;  /* f32[E]: rows of each expert, masked ones included */
    Value *counts;      /* f32[E]: T_e */
} StgcLayer;

/* What capture gives: per row, over all parameters of its expert. */
typedef struct StgcCapture {
    Value *dot;          /* f32[R]: <g_n, G_e> */
    Value *square;       /* f32[R]: |g_n|^2 */
    bool *live;          /* [E]: the expert has a trained parameter among the captured */
    const char *skipped; /* why nothing was captured, or NULL */
    bool frozen;         /* because no expert has a trained parameter */
} StgcCapture;

/* Emits the captures of a layer by the recipe's mode. On a layer that cannot be captured exactly,
 * `skipped` says why and nothing is emitted. */
StgcCapture stgc_capture(StgcLayer *s);

/* v[E] of every row's expert: [R]. Padding rows get some expert's value: whatever is multiplied
 * with it is 0 there. */
Value *stgc_by_row(StgcLayer *s, Value *v);
/* Sums v[R] over each expert's rows: [E]. */
Value *stgc_by_expert(StgcLayer *s, Value *v);

#endif
