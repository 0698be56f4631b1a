/* loop.h: loop programs, the language between kernels and machines.
 *
 * A LoopProgram is one kernel: structured loops over typed scalars, loads and stores on buffers; a
 * few target-independent statements that codegen/x86 lowers to LLVM (and codegen/nvptx later). A
 * LoopModule is a whole step: programs and the schedule that calls them and the matrix products of
 * the runtime. Programs know nothing of addresses: buffers are numbered arguments, so that equal
 * kernels of different layers are one function.
 *
 * Compute types: f32, f64, i64, bool. Loads widen from storage (f16/bf16 -> f32, every integer type
 * -> i64, bool u8 -> bool), stores narrow back. Index arithmetic is i64. */
#ifndef STGCC_CODEGEN_LOOP_H
#define STGCC_CODEGEN_LOOP_H

#include "ir/tensor.h"
#include "runtime/step.h"

typedef int32_t LVal; /* an SSA value of a program; 0 is none */
typedef enum { LT_NONE, LT_F32, LT_F64, LT_I64, LT_BOOL } LType;

/* X(NAME, text, operands) */
#define LOOP_OPS(X) \
    X(ADD, "add", 2) \
    X(SUB, "sub", 2) \
    X(MUL, "mul", 2) \
    X(DIV, "div", 2) /* i64: towards zero; by zero gives 0 */ \
    X(REM, "rem", 2) /* i64: sign of the dividend; by zero gives 0; floats: fmod */ \
    X(MIN, "min", 2) /* floats: NaN wins, as ONNX */ \
    X(MAX, "max", 2) \
    X(POW, "pow", 2) \
    X(FMA, "fma", 3) \
    X(NEG, "neg", 1) \
    X(ABS, "abs", 1) \
    X(FLOOR, "floor", 1) \
    X(CEIL, "ceil", 1) \
    X(ROUND, "round", 1) /* half to even */ \
    X(SQRT, "sqrt", 1) \
    X(EXP, "exp", 1) \
    X(LOG, "log", 1) \
    X(TANH, "tanh", 1) \
    X(ERF, "erf", 1) \
    X(SIN, "sin", 1) \
    X(COS, "cos", 1) \
    X(LT, "lt", 2) \
    X(LE, "le", 2) \
    X(EQ, "eq", 2) \
    X(NE, "ne", 2) \
    X(AND, "and", 2) /* bool, i64 */ \
    X(OR, "or", 2) \
    X(XOR, "xor", 2) \
    X(NOT, "not", 1) /* bool */ \
    X(SELECT, "select", 3) \
    X(TO_F32, "to_f32", 1) \
    X(TO_F64, "to_f64", 1) \
    X(TO_I64, "to_i64", 1)   /* floats: towards zero, saturating, NaN 0 */ \
    X(TO_BOOL, "to_bool", 1) /* != 0 */
typedef enum {
#define X(N, t, k) L_##N,
    LOOP_OPS(X)
#undef X
        L_COUNT,
} LOp;

/* SEQ: in order. VECTOR: iterations are independent but for variables accumulated with one of add,
 * min, max, which may be reassociated (vectorise it). */
typedef enum { LOOP_SEQ, LOOP_VECTOR } LoopKind;

typedef struct LoopProgram LoopProgram;

/* What runs it: TASK programs once per task of a parallel loop; EPILOGUE programs as StgcEpilogue
 * on a tile of C. */
typedef enum { PROGRAM_TASK, PROGRAM_EPILOGUE } ProgramKind;
LoopProgram *loop_program_new(ProgramKind kind, const char *name);
void loop_program_free(LoopProgram *p);

/* Arguments. TASK: lp_task. EPILOGUE: group, m0, m1, n0, n1; the tile is buffer lp_tile (f32,
 * element [i][j] of the tile at i*lp_tile_ld + j), which may be read and written. */
LVal lp_task(LoopProgram *p);
typedef enum { LARG_GROUP, LARG_M0, LARG_M1, LARG_N0, LARG_N1, LARG_TILE_LD } LArg;
LVal lp_arg(LoopProgram *p, LArg a);
int lp_tile(LoopProgram *p);

/* Buffers. The number is its place among the call's buffer offsets. Buffers of one program never
 * overlap unless the same number; a buffer may be read and written. */
int lp_buffer(LoopProgram *p, DType storage);
/* A small array on the stack (<= 64 KiB all together), of one compute type; used with lp_load and
 * lp_store like a buffer. */
int lp_local(LoopProgram *p, LType t, int64_t count);

LVal lp_const_f(LoopProgram *p, LType t, double v);
LVal lp_const_i(LoopProgram *p, int64_t v);
LVal lp_const_b(LoopProgram *p, bool v);
LVal lp_op(LoopProgram *p, LOp op, LVal a, LVal b, LVal c); /* folds constants and identities */
#define lp_1(p, op, a) lp_op((p), (op), (a), 0, 0)
#define lp_2(p, op, a, b) lp_op((p), (op), (a), (b), 0)
LVal lp_load(LoopProgram *p, int buffer, LVal index);
void lp_store(LoopProgram *p, int buffer, LVal index, LVal v);
LType lp_type(const LoopProgram *p, LVal v);
bool lp_is_const_i(const LoopProgram *p, LVal v, int64_t *out);

/* for index in lo..hi (exclusive): returns the index; ended by lp_end. */
LVal lp_loop(LoopProgram *p, LoopKind kind, LVal lo, LVal hi);
void lp_if(LoopProgram *p, LVal cond);
void lp_else(LoopProgram *p);
void lp_end(LoopProgram *p);
/* A mutable scalar, for accumulation across iterations. Declared outside the loop that accumulates.
 */
int lp_var(LoopProgram *p, LType t, LVal init);
LVal lp_get(LoopProgram *p, int var);
void lp_set(LoopProgram *p, int var, LVal v);
/* Records a data fault (StgcRt.fault) and goes on. `what` is a static text. */
void lp_fault(LoopProgram *p, const char *what, LVal where, LVal value);

void loop_program_print(const LoopProgram *p, FILE *to);
uint64_t
loop_program_hash(const LoopProgram *p); /* of all but the name: equal programs are one function */

/* ---- a whole step ---- */
typedef struct LoopModule LoopModule;
typedef enum { CALL_PARALLEL, CALL_GEMM, CALL_TOKEN_DOT } LoopCallKind;
typedef struct LoopCall {
    LoopCallKind kind;
    const char *name;     /* of the kernel, for reports: op and the user's node */
    LoopProgram *program; /* PARALLEL; GEMM: its epilogue or NULL */
    int64_t tasks;        /* PARALLEL */
    int nbuffers;
    int64_t *buffers; /* byte offsets in the arena, one per lp_buffer of the program */
    /* GEMM and TOKEN_DOT: the descriptor with its pointers NULL; addresses as byte offsets in the
     * arena, -1 for none */
    StgcGemm gemm;
    int64_t gemm_a, gemm_b, gemm_c, gemm_offsets, gemm_index;
    int64_t *gemm_b_group; /* groups of them, or NULL */
    StgcTokenDot dot;
    int64_t dot_x, dot_d, dot_grad, dot_offsets, dot_out, dot_scratch;
    /* What it comes from, for reports: number and kind of its kernel, the main op, the user's node,
     * ids of the graph's nodes that it computes. */
    int kernel;
    const char *kernel_kind, *op, *source;
    int nnodes;
    const int *nodes;
} LoopCall;

struct LoopModule {
    VEC(LoopProgram *) programs;
    VEC(LoopCall) calls;
    VEC(StgcSlot) slots; /* names and init bytes owned by the Graph */
    int64_t persistent_bytes, arena_bytes;
    bool marks; /* the schedule tells the runtime where it is (StgcRt.mark) */
    Arena arena;
};

/* Fills a module from a finished graph: fuse, plan, and the lower_* hooks of the op table
 * (codegen/lower_*.c). NULL with diagnostics that list every op or data-dependent shape that cannot
 * be compiled. */
typedef struct Graph Graph;
typedef struct LowerOptions {
    bool fused;
    bool
        gpu; /* many small tasks, each for a team of threads; else some larger ones for few cores */
    FILE *dump_kernels, *dump_loops; /* NULL: no */
} LowerOptions;
LoopModule *lower_graph(Graph *g, const LowerOptions *o, Diag *d);
void loop_module_free(LoopModule *m);

#endif
