/* lower.h: from kernels of a KernelPlan to loop programs; shared by the files lower_*.c.
 *
 * A kernel is written in two steps. First the values it needs become expressions (Ex): nodes of a
 * hash-consed DAG, each knowing at which loop depth it can be computed and, for integers, between
 * which bounds it lies. An element rule (lower_elem.c) gives the expression of one element of a
 * value at an Index, asking its operands for theirs. Then the loops are opened one by one, and each
 * expression is emitted at the outermost loop that allows it: index arithmetic, gathers of row
 * numbers and per-row factors leave the innermost loop by construction. */
#ifndef STGCC_CODEGEN_LOWER_H
#define STGCC_CODEGEN_LOWER_H

#include "codegen/loop.h"
#include "ir/graph.h"
#include "passes/fuse.h"

typedef struct ProgramEntry {
    uint64_t hash;
    LoopProgram *program;
} ProgramEntry;

typedef struct Lower {
    Graph *g;
    KernelPlan *plan;
    MemoryPlan *mem;
    LoopModule *module;
    Diag *diag;
    bool fused, gpu;
    FILE *dump_loops;
    int kernel; /* the one being lowered */
    const int *nodes; /* its nodes' ids, in the module's arena */
    int *member;            /* by node id: serial of the last kernel that had it as a member */
    ProgramEntry *programs; /* open addressing */
    int nprograms, cap_programs;
} Lower;

/* ---- expressions (lower_expr.c) ---- */
typedef int Ex; /* 0: none */
typedef enum { EX_CONST, EX_LEAF, EX_OP, EX_LOAD, EX_CHECK } ExKind;
typedef struct ExNode {
    ExKind kind;
    LOp op;
    LType t;
    Ex a, b, c;
    int buffer;       /* LOAD */
    int depth;        /* innermost loop it depends on; 0: the whole task */
    int64_t i;        /* CONST of i64 and bool; CHECK: the bound */
    double f;         /* CONST of floats */
    int64_t lo, hi;   /* i64: what is known of its value, inclusive */
    const char *what; /* CHECK */
    LVal lval;        /* once emitted, while its scope is open */
    int seen;         /* stamp of the last walk */
    Ex chain;         /* of its hash bucket */
} ExNode;

/* A place in a value: digits from the outermost in; the product of their sizes is the value's
 * element count. Digits need not be the value's dims: index_split regroups them. */
enum { MAX_DIGITS = 2 * MAX_RANK + 4 };
typedef struct Index {
    int n;
    int64_t size[MAX_DIGITS];
    Ex v[MAX_DIGITS];
} Index;

typedef struct KernBuffer {
    int64_t at; /* byte offset in the arena */
    DType storage;
} KernBuffer;

typedef struct ElemMemo {
    int value;
    Ex result;
    int chain;
    Index at;
} ElemMemo;

/* One loop program being written. */
typedef struct Kern Kern;
struct Kern {
    Lower *L;
    const Kernel *kernel;
    int kernel_index;
    const char *name;
    LoopProgram *p;
    int depth;
    VEC(KernBuffer) buffers;
    VEC(ExNode) ex;
    Ex *buckets;
    int nbuckets, stamp;
    VEC(Ex) log; /* emitted, in order: forgotten when their scope ends */
    VEC(int) scopes;
    VEC(ElemMemo) memo;
    int *memo_buckets;
    int nmemo_buckets;
    VEC(Ex) compares; /* range questions about the innermost index that its range did not answer */
    /* Gives the element of values the kernel holds in its own way (row results, a tile); 0: not one
     * of them. */
    Ex (*own)(Kern *K, Value *v, const Index *at, void *ctx);
    void *own_ctx;
};

void kern_begin(Kern *K, Lower *L, int kernel_index, ProgramKind kind, const char *what);
void kern_drop(Kern *K); /* frees all, the program included */
/* Ends the program and appends a parallel call of `tasks` tasks. */
void kern_finish(Kern *K, int64_t tasks);
/* Ends the program and gives its share of a call: program (shared with equal ones) and buffers. */
void kern_finish_into(Kern *K, LoopCall *call);
/* The program's buffer for reading or writing a stored value. *skip: elements to add to an index.
 */
int kern_buffer(Kern *K, const Value *v, bool write, int64_t *skip);
int kern_buffer_at(Kern *K, int64_t at, DType storage);
const char *kern_name(Lower *L, int kernel_index, const char *what);

Ex ex_i(Kern *K, int64_t v);
Ex ex_f(Kern *K, LType t, double v);
Ex ex_b(Kern *K, bool v);
Ex ex_leaf(Kern *K, LType t, int depth, int64_t lo, int64_t hi); /* its LVal comes with ex_bind */
void ex_bind(Kern *K, Ex leaf, LVal v);
Ex ex_op(Kern *K, LOp op, Ex a, Ex b, Ex c);
#define ex_1(K, op, a) ex_op((K), (op), (a), 0, 0)
#define ex_2(K, op, a, b) ex_op((K), (op), (a), (b), 0)
Ex ex_add(Kern *K, Ex a, Ex b);
Ex ex_mul(Kern *K, Ex a, Ex b);
Ex ex_addc(Kern *K, Ex a, int64_t c);
Ex ex_mulc(Kern *K, Ex a, int64_t c);
Ex ex_select(Kern *K, Ex c, Ex x, Ex y);
Ex ex_load(Kern *K, int buffer, Ex index);
/* An index wished to be in 0..bound-1 (negative ones count from the end if from_end): a fault is
 * recorded if it is not, and 0 taken. */
Ex ex_check(Kern *K, Ex index, int64_t bound, const char *what, bool from_end);
Ex ex_clamp(Kern *K, Ex v, int64_t lo, int64_t hi);
Ex ex_within(Kern *K, Ex v, int64_t lo,
             int64_t hi); /* lo <= v < hi; remembered in K->compares if not decided */
Ex ex_cast(Kern *K, Ex v, LType to);
Ex ex_zero(Kern *K, LType t);
ExNode *ex_node(Kern *K, Ex e);
bool ex_is_i(Kern *K, Ex e, int64_t *v);
/* Number of divisions at depth `depth` reachable from the sinks. */
int ex_divisions(Kern *K, const Ex *sinks, int n, int depth);
LVal ex_emit(Kern *K, Ex e); /* here and now */
void ex_hoist(Kern *K, const Ex *sinks,
              int n); /* all parts that do not need a loop deeper than this one */
/* A loop over lo..hi; `leaf` (from ex_leaf, depth K->depth + 1) is bound to its index. */
void kern_loop(Kern *K, LoopKind kind, Ex leaf, LVal lo, LVal hi);
void kern_end(Kern *K);

/* ---- places (lower_index.c) ---- */
Index index_one(int64_t size, Ex v);
void index_push(Index *ix, int64_t size, Ex v);
Ex index_linear(Kern *K, const Index *ix);
/* The same place in digits of the given sizes (product equal). */
void index_split(Kern *K, const Index *ix, int n, const int64_t *sizes, Ex *out);
/* The place in an operand of shape `rank, dims` that broadcasting to shape `of` reads. */
Index index_broadcast(Kern *K, const Index *ix, int of_rank, const int64_t *of, int rank,
                      const int64_t *dims);
int64_t dims_product(const int64_t *dims, int from, int to);

/* ---- elements (lower_elem.c, lower_elem_math.c) ---- */
Ex elem(Kern *K, Value *v, const Index *at);
Ex elem_math(Kern *K, Node *n, const Index *at); /* OPF_ELEM ops */
LType value_ltype(const Value *v);

/* ---- map kernels (lower_map.c) ---- */
typedef struct Sink {
    int buffer;
    Ex index, value;
} Sink;
typedef struct Sinks {
    VEC(Sink);
} Sinks;
/* Makes the stores of one element of the domain; called again for every candidate nest, so it must
 * be pure. */
typedef void MapBody(Kern *K, const Index *at, Sinks *out, void *ctx);
/* Emits one parallel call that runs `body` over a domain. */
void map_run(Lower *L, int kernel, const char *what, int rank, const int64_t *dims, MapBody *body,
             void *ctx);
void sink_add(Kern *K, Sinks *s, const Value *root, const Index *at, Ex value);

/* ---- services ---- */
/* How work is cut into tasks; by shapes and the kind of machine alone. About so many elements. */
int64_t lower_grain(const Lower *L);
/* Rows of `work` elements that one task does in turn: a GPU's team of threads takes one. */
int64_t lower_rows_per_task(const Lower *L, int64_t work);
int64_t value_address(const Lower *L,
                      const Value *v); /* byte offset in the arena of a stored value */
int64_t ceil_div(int64_t a, int64_t b);
LoopCall *lower_call(Lower *L, LoopCallKind kind, const char *name);
/* Scratch bytes a kernel will want. */
int64_t lower_scratch(const Lower *L, const Kernel *k);

/* ---- the hooks of ops.def's last column: emit kernel number `kernel`, whose main node is n ----
 */
typedef void LowerHook(Lower *L, int kernel, Node *n);
#define OP(ID, m, a, b, c, f, infer, eval, grad, lower, emit) LowerHook lower_##lower;
#include "ir/ops.def"
#undef OP
/* By kernel kind, for hooks that share them. */
void lower_map(Lower *L, int kernel);
void lower_rows(Lower *L, int kernel);

#endif
