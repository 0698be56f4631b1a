/* lower_reduce.h: reductions for the other lowering files. */
#ifndef STGCC_CODEGEN_LOWER_REDUCE_H
#define STGCC_CODEGEN_LOWER_REDUCE_H

#include "codegen/lower.h"

/* result = reduction by `op` (OP_REDUCE_*) of element(at) over the reduced groups. */
typedef struct Reduction {
    Op op;
    DType dtype; /* storage type of the elements: decides the identity of integer extremes */
    const Value *result;
    int n; /* groups, outermost first; reduce_group joins neighbours of one fate */
    int64_t size[MAX_RANK];
    bool reduced[MAX_RANK];
    Ex (*element)(Kern *K, const Index *at, void *ctx); /* `at` in digits of the groups */
    void *ctx;
    bool whole; /* never in parts */
} Reduction;

void reduce_group(Reduction *r, int64_t size, bool reduced);
void reduce_run(Lower *L, int kernel, const Reduction *r);
int64_t reduce_scratch(const Lower *L, const Reduction *r, LType t);
/* Scratch of a KERNEL_REDUCE whose main node is n. */
int64_t reduce_kernel_scratch(const Lower *L, Node *n);
Ex reduce_identity(Kern *K, Op op, DType dtype, LType t);
LVal reduce_combine(LoopProgram *p, Op op, LVal a, LVal b);

#endif
