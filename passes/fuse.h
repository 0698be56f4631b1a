/* fuse.h: groups the ops of a finished Graph (all dims known) into kernels, and plans memory. Given
 * to codegen. */
#ifndef STGCC_PASSES_FUSE_H
#define STGCC_PASSES_FUSE_H

#include "ir/graph.h"

typedef enum {
    KERNEL_MAP,    /* elementwise over the root's shape; operands inlined as expressions */
    KERNEL_ROWS,   /* rows x columns: reductions over the last axis and elementwise work on the same
                      rows */
    KERNEL_REDUCE, /* any other reduction, with its operand inlined */
    KERNEL_GEMM,   /* matmul, grouped_matmul, grouped_wgrad; roots beyond the first are its epilogue
                    */
    KERNEL_OP,     /* one irregular op */
} KernelKind;

typedef struct Kernel {
    KernelKind kind;
    Node *main; /* the op that names it and whose lower_* hook emits it */
    VEC(Node *)
    nodes; /* members in graph order; an inlined node may be a member of several kernels */
    VEC(Value *) roots;    /* values it stores */
    VEC(Value *) operands; /* values it loads from memory */
    VEC(Value *)
    same_index; /* operands read only at the index that is stored, before the store: a root may take
                   the buffer of one of its type and count that dies here */
    int64_t scratch_bytes; /* set by whoever lowers, before plan_memory: bytes that live only during
                              this kernel */
} Kernel;

/* Nodes that the plan added to the graph so that the backward pass computes them again; see
 * fuse_recompute.c. */
typedef struct RecomputedUse {
    Node *node;
    int operand;
    Value *was;
} RecomputedUse;
typedef struct Recomputed {
    VEC(Node *) clones;
    VEC(RecomputedUse) uses; /* that read a clone now */
    int first;               /* node ids from here on are clones */
} Recomputed;

typedef struct KernelPlan {
    VEC(Kernel) kernels; /* in execution order */
    /* by value id: */
    Value **storage; /* the value whose buffer holds it (itself, or what it is a view of); NULL:
                        lives only inside kernels */
    int64_t *view_offset; /* elements from the start of storage */
    int nvalues;
    Recomputed again;
} KernelPlan;

/* fused false: every op a kernel of its own (views stay views). The graph may get clones of nodes
 * until kernel_plan_free takes them away again. */
KernelPlan *fuse(Graph *g, bool fused);
void kernel_plan_free(KernelPlan *p);
void kernel_plan_print(const KernelPlan *p, const Graph *g, FILE *to);

/* A matrix operand read in place: element [batch…, row, col] of a matmul operand as strides into a
 * stored value. */
typedef struct MatrixView {
    Value *base;    /* stored: plan->storage of it is not NULL */
    int64_t offset; /* elements, from the start of base */
    int nbatch;     /* batch axes (rank - 2 of the operand) */
    int64_t batch_stride[MAX_RANK];
    int64_t row, col; /* strides in elements */
} MatrixView;
/* Sees `v` (rank >= 2; rank 1 is the caller's business) through transposes, expands, unit-step
 * slices and reshapes that keep the strides regular, down to the first value for which `stored`
 * holds. False if it cannot be read in place. */
bool matrix_view(const Value *v, bool (*stored)(const Value *, void *), void *ctx, MatrixView *out);

/* The memory plan: byte offsets into one arena. Persistent: params, inputs, updated state; the rest
 * by lifetime. */
typedef struct MemoryPlan {
    int64_t *offset;  /* by value id; -1: no buffer of its own */
    int64_t *scratch; /* by kernel; -1: none */
    bool *updated; /* by index of graph->updates: the value is computed in the param's own buffer */
    int64_t persistent_bytes, total_bytes,
        touched_bytes; /* total = the peak; touched = union of what is used */
} MemoryPlan;
MemoryPlan *plan_memory(const Graph *g, const KernelPlan *p);
void memory_plan_free(MemoryPlan *p);

#endif
