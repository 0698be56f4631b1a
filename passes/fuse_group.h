/* fuse_group.h: shared by the files of fuse. */
#ifndef STGCC_PASSES_FUSE_GROUP_H
#define STGCC_PASSES_FUSE_GROUP_H

#include "passes/fuse.h"

enum {
    COMBINE_UNROLL = 16, /* terms of a combine written out in an expression */
    FUSE_EAGER = 8, /* a kernel that stores so much less than it reads runs as soon as it can */
};

/* The kind of kernel a node makes on its own. */
KernelKind fuse_kind(const Node *n);
/* n has an element rule: one element of its result is an expression of elements of its operands. */
bool fuse_has_rule(const Node *n);
/* n's result lies in the memory of its operand (if that is stored): *offset in elements. */
bool fuse_is_view(const Node *n, int64_t *offset);
/* v is written as a literal wherever it is used. */
bool fuse_is_literal(const Value *v);
Kernel *fuse_add_kernel(KernelPlan *p, KernelKind kind, Node *main);
/* Fills in operands and same_index of a kernel whose nodes and roots are set. `member` by node id
 * holds `mark` for its nodes. */
void fuse_finish_kernel(KernelPlan *p, Kernel *k, const int *member, int mark);
/* Moves kernels that free memory to the earliest place the order of reads and writes allows. */
void fuse_hoist(const Graph *g, KernelPlan *p);
/* Which values live only inside kernels (fuse_inline.c), by value id. */
void fuse_inline(Graph *g, bool *inlined);
/* Lets late readers of values that live long read clones of what makes them (fuse_recompute.c).
 * `inlined` as fuse_inline gives it. */
void fuse_recompute(Graph *g, const bool *inlined, Recomputed *r);
void recompute_undo(Recomputed *r);
/* Greedy grouping (fuse_group.c): fills kernels and storage of an empty plan. False, with the plan
 * still empty, if the groups cannot be put in an order. */
bool fuse_groups(Graph *g, KernelPlan *p);

#endif
