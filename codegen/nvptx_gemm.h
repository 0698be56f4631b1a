/* nvptx_gemm.h: tiles of matrix products on a GPU, shared by nvptx_gemm*.c, nvptx_mma.c and
 * nvptx_dot*.c; and the kernels made of them, for their tests.
 *
 * nvptx_gemm_flow.c    loops and branches; small words
 * nvptx_gemm_stage.c   global to shared memory, stages of asynchronous copies; the loop over k
 * nvptx_gemm_ffma.c    a stage into registers with fused multiply-adds
 * nvptx_mma.c          the same with tensor cores
 * nvptx_gemm_kernel.c  a whole product: work list, prologue, epilogue
 * nvptx_gemm.c         CALL_GEMM: which tiles, which kernel, its launch
 * nvptx_dot_kernel.c   gram, factored and their last sum; nvptx_dot.c: CALL_TOKEN_DOT
 *
 * Every element of C is summed in ascending k, whatever the tile: with F32 it is the one chain of
 * fused multiply-adds that the CPU's engine makes (runtime/gemm.h). */
#ifndef STGCC_CODEGEN_NVPTX_GEMM_H
#define STGCC_CODEGEN_NVPTX_GEMM_H

#include "codegen/nvptx.h"

/* How products are rounded. Sums are f32. TF32 and BF16 round both factors to 11 and 8 bits of
 * mantissa; TF32X3 splits each into two TF32 numbers and leaves out only the product of the small
 * halves: about 2^-21 of each term. */
typedef enum { GEMM_F32, GEMM_TF32, GEMM_TF32X3, GEMM_BF16 } GemmPrecision;

typedef struct GemmTiling {
    GemmPrecision precision;
    int tm, tn, bk; /* rows and columns of C that a CTA makes at a time; depth of a stage */
    int threads;
    int rm, rn; /* F32: rows and columns of a thread */
    int wm, wn; /* tensor cores: warps along rows and along columns */
    int stages; /* in shared memory, 2 or more: one is worked on, the others are on their way */
} GemmTiling;
/* Large tiles where there is enough of C to fill them and the GPU, else small ones. */
const GemmTiling *gemm_tiling(GemmPrecision p, bool large);

/* ---- nvptx_gemm_flow.c ---- */

typedef struct GemmLoop {
    LLVMBasicBlockRef head, exit;
    LLVMValueRef index, hi, step;
} GemmLoop;
/* for (index = lo; index < hi; index += step), i32 or i64; nothing of it runs if lo >= hi. */
GemmLoop gemm_loop(LlvmIr *x, LLVMValueRef lo, LLVMValueRef hi, LLVMValueRef step);
void gemm_loop_end(LlvmIr *x, const GemmLoop *l);
/* if (condition) { … }: returns what gemm_endif needs. */
LLVMBasicBlockRef gemm_if(LlvmIr *x, LLVMValueRef condition);
void gemm_endif(LlvmIr *x, LLVMBasicBlockRef after);
/* if (condition) return; */
void gemm_return_if(LlvmIr *x, LLVMValueRef condition);

LLVMValueRef gemm_var(LlvmIr *x, LLVMTypeRef t, LLVMValueRef init); /* at the kernel's entry */
LLVMValueRef gemm_at(LlvmIr *x, LLVMTypeRef t, LLVMValueRef base, LLVMValueRef index);
LLVMValueRef gemm_min(LlvmIr *x, LLVMValueRef a, LLVMValueRef b); /* signed */
LLVMValueRef gemm_wide(LlvmIr *x, LLVMValueRef v);                /* i32, not negative, to i64 */
LLVMValueRef gemm_narrow(LlvmIr *x, LLVMValueRef v);              /* i64 to i32 */
/* Largest e in [0, last] with key(e) <= at, where key(e) = (offsets[e] >> shift) + e * (shift > 0).
 * at, last, result: i32. With shift = 0 the group a row is in. */
LLVMValueRef gemm_search(LlvmIr *x, LLVMValueRef offsets, LLVMValueRef last, LLVMValueRef at,
                         int shift);

/* ---- nvptx_gemm_stage.c ---- */

/* How an operand is copied, which the kernel's code depends on. */
typedef struct GemmSide {
    bool along_k; /* neighbours in memory are neighbours in k; else neighbouring rows (columns of B)
                   */
    bool wide;    /* 16 bytes at a time: bases and strides are multiples of 16 bytes */
    bool gather;  /* rows by an index */
} GemmSide;

/* An operand of one tile: "row" is a row of A or a column of B. */
typedef struct GemmOperand {
    GemmSide side;
    LLVMValueRef base;   /* ptr addrspace(1): first row of the tile at k = 0; gathered: row 0 */
    LLVMValueRef stride; /* i64, in elements, of the axis whose neighbours are not adjacent */
    LLVMValueRef rows;   /* i32: rows from the first one that exist; the others are zeros */
    LLVMValueRef index;  /* gathered: ptr addrspace(1) to i64, at the first row; -1: zeros */
} GemmOperand;

enum { GEMM_ACCUMULATORS = 64 };

/* One kernel's tile: layout of the stages and of what each thread holds. */
typedef struct GemmCode {
    LlvmIr *x;
    const GemmTiling *t;
    GemmSide side[2];
    int ld[2];             /* floats between shared rows of A and B */
    bool inner_k[2];       /* shared: [row][k]; else [k][row] */
    int floats[2];         /* of a stage */
    LLVMValueRef tid;      /* i32 */
    LLVMValueRef shared;   /* ptr addrspace(3): the stages; free after gemm_multiply */
    LLVMValueRef row, col; /* i32: of the thread's first element, see gemm_segment */
} GemmCode;

/* Floats of shared memory for the stages. */
int64_t gemm_stage_floats(const GemmTiling *t, const GemmSide side[2]);
/* At the kernel's entry. shared: gemm_stage_floats at least. */
void gemm_code_begin(GemmCode *g, LlvmIr *x, const GemmTiling *t, const GemmSide side[2],
                     LLVMValueRef shared);
/* The thread's share of C as variables, which mem2reg makes registers: accumulators(t) of them. */
int gemm_accumulators(const GemmTiling *t);
void gemm_accumulator_vars(GemmCode *g, LLVMValueRef *acc);
/* acc = A B over k (i32) values of k. All threads of the CTA; ends with a barrier, after which the
 * stages may be used otherwise. */
void gemm_multiply(GemmCode *g, LLVMValueRef *acc, const GemmOperand *a, const GemmOperand *b,
                   LLVMValueRef k);

/* The thread's share in segments of `width` neighbouring columns of one row: segment s holds
 * acc[s*width …]. Segments of equal row_id are of one row, of equal col_id of the same columns. */
typedef struct GemmSegment {
    LLVMValueRef row, col; /* i32, in the tile */
    int row_id, col_id;
} GemmSegment;
int gemm_segment_width(const GemmTiling *t);
int gemm_segments(const GemmTiling *t);
int gemm_row_ids(const GemmTiling *t);
GemmSegment gemm_segment(GemmCode *g, int s);
/* Into how many threads a row of C is divided, and a column; the thread's number among them. */
int gemm_row_parts(const GemmTiling *t);
int gemm_col_parts(const GemmTiling *t);
LLVMValueRef gemm_row_part(GemmCode *g);
LLVMValueRef gemm_col_part(GemmCode *g);

/* Engines: acc += the stage at a and b (ptr addrspace(3)). */
void gemm_ffma_stage(GemmCode *g, LLVMValueRef *acc, LLVMValueRef a, LLVMValueRef b);
void gemm_mma_stage(GemmCode *g, LLVMValueRef *acc, LLVMValueRef a, LLVMValueRef b);
void gemm_ffma_place(GemmCode *g); /* sets g->row, g->col */
void gemm_mma_place(GemmCode *g);

/* ---- nvptx_gemm_kernel.c ---- */

/* All that a product's kernel depends on; everything else is a parameter. */
typedef struct GemmForm {
    StgcGemmKind kind;
    GemmSide a, b;
    bool table;    /* B of a group by a table of offsets in the arena */
    bool two_axes; /* BATCH: g2 > 1 */
    bool accumulate;
    bool stored;    /* there is a C */
    bool wide_c;    /* 16 bytes at a time */
    bool one_group; /* K: of one group, and only if it has `limit` rows or more (nvptx_dot.c) */
    const LoopProgram *program; /* epilogue, or NULL */
    bool ordered; /* it reads what it wrote for earlier columns: one CTA makes them in order */
    bool writes_tile;
    GemmTiling tiling;
} GemmForm;

/* Parameters of kernels, in this order; only those that the form needs. Then the epilogue's fault
 * record and buffers. */
typedef enum {
    GEMM_P_A,
    GEMM_P_B,
    GEMM_P_C,
    GEMM_P_OFFSETS,
    GEMM_P_INDEX,
    GEMM_P_TABLE,
    GEMM_P_M,
    GEMM_P_N,
    GEMM_P_K,
    GEMM_P_LDA,
    GEMM_P_LDB,
    GEMM_P_LDC,
    GEMM_P_GROUPS,
    GEMM_P_G2,
    GEMM_P_AG1,
    GEMM_P_AG2,
    GEMM_P_BG1,
    GEMM_P_BG2,
    GEMM_P_CG1,
    GEMM_P_CG2,
    GEMM_P_GROUP,
    GEMM_P_LIMIT,
    GEMM_P_COUNT
} GemmParam;
bool gemm_needs(const GemmForm *f, GemmParam p);
bool gemm_param_is_pointer(GemmParam p);
/* The kernel's name, from the form; program: its name or NULL. */
void gemm_kernel_name(char *out, size_t size, const GemmForm *f, const char *program);
/* Writes the kernel. m may be NULL where there is no epilogue. */
void gemm_kernel(NvptxModule *m, LlvmIr *x, const GemmForm *f, const char *name,
                 StgcCudaKernel *out);
/* CTAs of a launch. */
int64_t gemm_grid(const GemmForm *f, const StgcGemm *g);

/* ---- nvptx_gemm.c ---- */

/* The form of a call with these tiles. */
GemmForm gemm_form(const LoopCall *c, const GemmTiling *t);
/* The same as nvptx_gemm with a precision and size of tiles of the caller's choice. */
void gemm_launch(NvptxModule *m, const LoopCall *c, const GemmForm *f);

/* ---- nvptx_dot_kernel.c ---- */

enum { DOT_SLOTS = 16 }; /* partial sums of a row, f64: what the plan's scratch holds */
typedef struct DotForm {
    GemmTiling tiling;
    GemmSide x, d, grad; /* grad: as B of x G */
    bool one_group;      /* factored: a group at a time */
} DotForm;
/* Each writes a kernel; parameters are listed at its definition. */
void dot_gram_kernel(LlvmIr *x, const DotForm *f, const char *name, StgcCudaKernel *out);
void dot_factored_kernel(LlvmIr *x, const DotForm *f, const char *name, StgcCudaKernel *out);
void dot_total_kernel(LlvmIr *x, int tm, const char *name, StgcCudaKernel *out);

#endif
