/* step.h: the one contract between compiled code and the runtime. Versioned; plain C types only.
 *
 * A step owns one arena: [persistent | transient]. Every named slot lies at a fixed offset. `run`
 * executes one step: compiled code that calls the services of StgcRt for parallel loops and matrix
 * products. It allocates nothing. */
#ifndef STGC_RUNTIME_STEP_H
#define STGC_RUNTIME_STEP_H

#include <stdint.h>

#include "runtime/stgc.h"

#define STGC_STEP_VERSION 3

typedef struct StgcRt StgcRt;

/* One of `tasks` independent pieces of a parallel loop. Which thread runs it never changes the
 * result. */
typedef void (*StgcTask)(void *env, int64_t task);

/* Called by a matrix product on every finished tile of C, while it is hot: rows m0..m1 and columns
 * n0..n1 of group `group` (rows counted from the first row of the group's C; for grouped rows, from
 * row 0 of C). tile[i*ld + j] holds C[m0+i][n0+j]. For one row block the column tiles come in
 * ascending order on one thread. Column bounds depend on shapes and the CPU only; how many rows
 * come at a time may also depend on the number of threads: sums over columns are safe, sums over
 * rows are not. */
typedef void (*StgcEpilogue)(void *env, int64_t group, int64_t m0, int64_t m1, int64_t n0,
                             int64_t n1, float *tile, int64_t ld);

/* C = A B (+ C if accumulate) in f32, for one or more groups. Strides are in elements; A is [m,k],
 * B [k,n], C [m,n] row-major with leading dimension ldc. Any of the two strides of A and B must
 * be 1. */
typedef enum {
    STGC_GEMM_BATCH, /* groups = g1*g2 products of one size, addresses by the two group strides */
    STGC_GEMM_ROWS,  /* group e multiplies rows offsets[e]..offsets[e+1] of A with its own B; C rows
                        likewise (grouped matmul) */
    STGC_GEMM_K, /* group e: C_e = A[rows e]' ... : k runs over rows offsets[e]..offsets[e+1] of A
                    (k-major) and B (weight gradient) */
} StgcGemmKind;
/* What operands are rounded to, nearest even, as they are read; products of bf16 are exact, sums
 * are f32. */
typedef enum { STGC_GEMM_F32, STGC_GEMM_BF16 } StgcGemmPrecision;
typedef struct StgcGemm {
    StgcGemmKind kind;
    int64_t g1, g2;         /* groups = g1*g2 (g2 = 1 unless two batch axes) */
    const int64_t *offsets; /* [groups+1] for ROWS and K */
    int64_t m, n, k;        /* ROWS: m = bound of all rows; K: k = bound of all rows */
    const float *a;
    int64_t a_row, a_col, a_g1, a_g2;
    const int64_t *a_index; /* NULL, or ROWS: row r of A is a[a_index[r]*a_row], zeros where -1 */
    const float *b;
    const float *const *b_group; /* NULL, or base address of B by group */
    int64_t b_row, b_col, b_g1, b_g2;
    float *c; /* NULL with an epilogue: C exists only as tiles */
    int64_t ldc, c_g1, c_g2;
    int accumulate;
    StgcEpilogue epilogue; /* may be NULL */
    void *env;
    StgcGemmPrecision precision;
} StgcGemm;

/* dot[r] = <x_r d_r', mean over the group's rows of x_s d_s'> for rows r of each group e: method.md
 * section 2. x[R,in], d[R,out] row-major; grad NULL or [E] weight gradients at grad + e*grad_group
 * with element (i,o) at i*g_in + o*g_out. mode: 0 auto (gram while T_e < T*, kernels.md), 1 gram, 2
 * factored. Rows beyond offsets[groups] get 0. */
typedef struct StgcTokenDot {
    int64_t groups, rows, in, out;
    const int64_t *offsets;
    const float *x, *d;
    const float *grad;
    int64_t grad_group, g_in, g_out;
    float *dot;
    int mode;
    float *scratch; /* stgc_token_dot_scratch bytes, from the plan */
} StgcTokenDot;

struct StgcRt {
    void (*parallel)(StgcRt *rt, int64_t tasks, StgcTask fn, void *env);
    void (*gemm)(StgcRt *rt, const StgcGemm *g);
    void (*token_dot)(StgcRt *rt, const StgcTokenDot *t);
    /* Records a data fault found inside the step (label or index out of range): kept until the step
     * ends, first one wins. what: a static text; where: linear position; value: what was found. */
    void (*fault)(StgcRt *rt, const char *what, int64_t where, int64_t value);
    /* Only steps that are made to be measured call it: before call number `call` of the schedule,
     * and after the last one. */
    void (*mark)(StgcRt *rt, int64_t call);
};

/* Bytes of scratch token_dot needs for these bounds (groups, rows, in, out); 0 is possible. */
int64_t stgc_token_dot_scratch(int64_t groups, int64_t rows, int64_t in, int64_t out);
/* Multiply-adds that token_dot does for these offsets. */
int64_t stgc_token_dot_products(const StgcTokenDot *t);

typedef enum {
    STGC_SLOT_INPUT,
    STGC_SLOT_PARAM,
    STGC_SLOT_FROZEN,
    STGC_SLOT_STATE,
    STGC_SLOT_GRAD,
    STGC_SLOT_OUTPUT
} StgcSlotKind;
typedef struct StgcSlot {
    const char *name;
    StgcSlotKind kind;
    StgcType type;
    int32_t rank;
    int64_t dims[8];
    int64_t offset, bytes;
    const void *init; /* PARAM, FROZEN: initial bytes; NULL: zeros */
} StgcSlot;

typedef struct StgcStep {
    uint32_t version;
    uint32_t nslots;
    const StgcSlot *slots;
    int64_t persistent_bytes, arena_bytes,
        alignment; /* arena_bytes includes persistent; 64-byte alignment at least */
    void (*run)(StgcRt *rt, char *arena);
    const char *cpu; /* what it was compiled for, for reports */
    uint32_t kernels;
    const char *const *kernel_names;
    const struct StgcCudaStep
        *cuda; /* step_cuda.h; NULL: machine code for this CPU. Else run is NULL */
} StgcStep;

/* ---- steps as a shared library: what `stgcc compile` writes ----
 *
 * The library exports one symbol, `stgc_library`, an StgcLibrary of constants; it refers to libm
 * and libc only and runs no code when it is loaded. It holds every program of a training once per
 * kind of CPU; stgc_cpu_level (cpu_level.h) chooses; and once per kind of GPU, where the most
 * capable one that the GPU is capable of is chosen. Parameters are not in it (slot.init is NULL)
 * but in a .safetensors beside it, by name; constants of the model of up to 1 MiB are in it, larger
 * ones too in the .safetensors, by the names of their slots (const/HASH). */
#define STGC_LIBRARY_VERSION 2

typedef enum {
    STGC_PROGRAM_GRADIENTS, /* a step laid open: losses, outputs, gradients, cosines; nothing is
                               updated */
    STGC_PROGRAM_TRAIN,     /* forward, backward, update (train.accumulate = 1) */
    STGC_PROGRAM_MICRO,     /* accumulate > 1: forward, backward, gradients added up */
    STGC_PROGRAM_APPLY,     /* accumulate > 1: the update from what was added up */
    STGC_PROGRAMS,
} StgcProgram;

typedef struct StgcVariant {
    const char *cpu;      /* "x86-64-v3", "sm_80" */
    int32_t level;        /* of the x86-64 ABI: 3 or 4 */
    int32_t native;       /* the words below must be there too */
    uint32_t features[6]; /* cpuid: 1.ecx, 1.edx, 7.ebx, 7.ecx, 7.edx, 7:1.eax of the machine it was
                             made for */
    int32_t device;       /* 0: a CPU. 80, 90, ...: a GPU of this compute capability or more; every
                             program then has `cuda` */
    int32_t unused;
    const StgcStep *programs[STGC_PROGRAMS]; /* NULL: not there */
} StgcVariant;

/* What integers of an input must be: lo <= v < hi, or v == ignore if has_ignore. The first of the
 * rows (last axis) is not looked at if skip_first. Labels that are neither ignored nor skipped
 * count; a batch without any trains nothing. */
typedef struct StgcCheck {
    const char *input;
    int64_t lo, hi, ignore;
    int32_t has_ignore, skip_first, labels;
    int32_t unused;
    const char *what; /* "label", "id" */
} StgcCheck;

/* The recipe's numbers that the host computes with. */
typedef enum {
    STGC_SCHEDULE_CONSTANT,
    STGC_SCHEDULE_LINEAR,
    STGC_SCHEDULE_COSINE
} StgcScheduleKind;
typedef struct StgcTraining {
    double lr, beta1, beta2;
    int64_t warmup, steps, accumulate, seed;
    int32_t schedule; /* StgcScheduleKind */
    int32_t unused;
} StgcTraining;

typedef struct StgcLibrary {
    uint32_t version, step_version; /* STGC_LIBRARY_VERSION, STGC_STEP_VERSION */
    const char *compiler;
    const char *recipe; /* canonical YAML, as in checkpoints */
    uint64_t model_hash, recipe_hash;
    int64_t batch;          /* first axis of the inputs that hold rows of a batch */
    const char *batch_why;  /* why a batch cannot have fewer rows; NULL: it can */
    const char *token_mask; /* the input that says which tokens count, or NULL */
    StgcTraining training;
    uint32_t nvariants, nchecks;
    const StgcVariant *variants; /* CPUs ascending by level, then GPUs ascending by device */
    const StgcCheck *checks;
} StgcLibrary;

#endif
