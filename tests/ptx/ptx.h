/* ptx.h: what the parts of the emulator share. Internal to tests/ptx.
 *
 *   forms.h       table of instruction forms       form.c     matching an opcode against it
 *   lex.c         PTX text to tokens               parse.c, parse_instr.c, operand.c  to PtxModule
 *   device.c      memory of a device               shadow.c   initialisation and races
 *   launch.c      CTAs, warps, divergence          warp.c     one warp's instruction loop
 *   exec_*.c      one function per operation       lint.c, mutate.c, ptxas.c  tools over the text
 *
 * A register is a vector of 32 lanes: 4 bytes each for up to 32 bits (16-bit values zero-extended),
 * 8 bytes for 64; a predicate is one 32-bit mask. */
#ifndef STGCC_TESTS_PTX_PTX_H
#define STGCC_TESTS_PTX_PTX_H

#include "emulator.h"
#include "forms.h"

#include <stdarg.h>

enum { LANES = 32, MAX_OPERANDS = 20, MAX_WORDS = 16 };

typedef enum {
    C_NOTHING,
    C_TYPE,
    C_ROUND,
    C_CMP,
    C_OP2,
    C_SPACE,
    C_VEC,
    C_STRONG,
    C_SCOPE,
    C_CACHE,
    C_MODE,
    C_FLAG
} PtxWordClass;
#define W(name, text, class) W_##name,
typedef enum { W_NONE, PTX_WORDS(W) W_COUNT } PtxWord;
#undef W
/* Types are words; these names read better. */
#define T(x) T_##x = W_##x
enum {
    T_NONE = W_NONE,
    T(PRED),
    T(B8),
    T(U8),
    T(S8),
    T(B16),
    T(U16),
    T(S16),
    T(F16),
    T(BF16),
    T(B32),
    T(U32),
    T(S32),
    T(F32),
    T(TF32),
    T(F16X2),
    T(BF16X2),
    T(B64),
    T(U64),
    T(S64),
    T(F64)
};
#undef T

/* One enumerator for each operation: the first row of forms.h that names it. */
typedef enum {
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_MULW,
    OP_MAD,
    OP_MADW,
    OP_DIV,
    OP_REM,
    OP_ABS,
    OP_NEG,
    OP_MIN,
    OP_MAX,
    OP_POPC,
    OP_CLZ,
    OP_BFIND,
    OP_BREV,
    OP_BFE,
    OP_BFI,
    OP_AND,
    OP_OR,
    OP_XOR,
    OP_NOT,
    OP_SHL,
    OP_SHR,
    OP_SHF,
    OP_PRMT,
    OP_LOP3,
    OP_SELP,
    OP_SETP,
    OP_MOV,
    OP_CVT,
    OP_CVT2,
    OP_CVTA,
    OP_FMA,
    OP_DIVA,
    OP_RCP,
    OP_SQRT,
    OP_RCPA,
    OP_SQRTA,
    OP_RSQRT,
    OP_SIN,
    OP_COS,
    OP_LG2,
    OP_EX2,
    OP_TANH,
    OP_COPYSIGN,
    OP_TESTP,
    OP_LD,
    OP_ST,
    OP_ATOM,
    OP_RED,
    OP_CPASYNC,
    OP_CPCOMMIT,
    OP_CPWAIT,
    OP_CPWAITALL,
    OP_LDMATRIX,
    OP_MMA,
    OP_SHFL,
    OP_VOTE,
    OP_BALLOT,
    OP_MATCH,
    OP_REDUX,
    OP_ACTIVEMASK,
    OP_BAR,
    OP_BARWARP,
    OP_FENCE,
    OP_BRA,
    OP_RET,
    OP_EXIT,
    OP_TRAP,
    OP_COUNT
} PtxOp;

enum { /* Instr.flags, one for each word of class FLAG */
       F_FTZ = 1,
       F_SAT = 2,
       F_NAN = 4,
       F_TRANS = 8,
       F_TO = 16,
       F_NC = 32,
       F_RELU = 64,
       F_WRAP = 128,
       F_CLAMP = 256,
       F_SHIFTAMT = 512
};

/* What the dotted words of an instruction say. */
typedef struct PtxOpcode {
    uint8_t op, type[4], ntypes, round, cmp, op2, space, vec, strong, scope, cache, mode;
    uint16_t flags, form; /* form: row of PTX_FORMS */
} PtxOpcode;
typedef struct PtxForm {
    uint8_t op;
    const char *pattern, *operands;
} PtxForm;
/* form.c */
extern const PtxForm ptx_forms[];
extern const int ptx_nforms;
const char *ptx_word_text(int word);
int ptx_word_find(const char *s, size_t n); /* W_NONE: not a word of PTX that is known */
int ptx_type_bits(int type);                /* 1 for pred */
bool ptx_type_float(int type);
bool ptx_type_signed(int type);
/* "add.rn.f32" -> *out. False: no such form; *what (not owned) says which word is in the way. */
bool ptx_opcode_parse(const char *s, size_t n, PtxOpcode *out, char what[160]);

/* lex.c */
typedef enum { TK_END, TK_NAME, TK_NUMBER, TK_PUNCT, TK_DIRECTIVE, TK_STRING, TK_BAD } PtxTokenKind;
typedef struct PtxToken {
    PtxTokenKind kind;
    int line;
    const char *s; /* names: with dotted words (ld.global.f32, %tid.x); directives: with the dot */
    size_t n;
} PtxToken;
typedef struct PtxLexer {
    const char *p, *end;
    int line;
} PtxLexer;
PtxToken ptx_lex(PtxLexer *x);
bool ptx_token_is(PtxToken t, const char *s);
/* The value of a number's spelling as bits of a type; float spellings 0f, 0d, 1.5. False: out of
 * range or not a number. */
bool ptx_number(const char *s, size_t n, int type, uint64_t *bits);

/* Operands of a parsed instruction. `at` is the byte offset of a lane vector (predicates: of a
 * mask) in base[base]; a memory address is register (reg < 0: none) + imm. */
typedef enum { O_NONE, O_VALUE, O_PRED, O_MEM, O_LABEL, O_SINK } PtxOperandKind;
enum { BASE_REGS, BASE_IMM, BASE_SREG, BASE_COUNT };
typedef struct PtxOperand {
    uint8_t kind, base, bits, dst, negated, is64;
    int32_t reg; /* number in the kernel, for the check of definedness; -1: none */
    uint32_t at;
    int64_t imm; /* of O_MEM; the value of an immediate */
} PtxOperand;

typedef struct PtxWarp PtxWarp;
typedef struct PtxInstr PtxInstr;
/* The operation of an instruction for the lanes of mask. False: failed, and reported. */
typedef bool (*PtxExec)(PtxWarp *w, const PtxInstr *i, uint32_t mask);

struct PtxInstr {
    PtxOpcode c;
    uint8_t nops, ndst, size; /* size: bytes one thread accesses (vectors: all) */
    int16_t npack;            /* mov: operands of a brace list; >0 source, <0 destination */
    int line, target;
    PtxOperand guard;
    PtxOperand *o;
    const char *text; /* the opcode as written, in the module's copy of the text */
    uint32_t text_n;
    uint32_t flops; /* of one thread; of mma: of a warp */
    PtxExec exec;   /* NULL: warp.c does it */
};

enum {
    SREG_TID_X,
    SREG_TID_Y,
    SREG_TID_Z,
    SREG_NTID_X,
    SREG_NTID_Y,
    SREG_NTID_Z,
    SREG_CTAID_X,
    SREG_CTAID_Y,
    SREG_CTAID_Z,
    SREG_NCTAID_X,
    SREG_NCTAID_Y,
    SREG_NCTAID_Z,
    SREG_LANEID,
    SREG_WARPID,
    SREG_NWARPID,
    SREG_LT,
    SREG_LE,
    SREG_GT,
    SREG_GE,
    SREG_EQ,
    SREG_DYNAMIC,
    SREG_TOTAL,
    SREG_COUNT
};

typedef struct PtxRegName { /* %r7, or a name of its own (number -1) */
    const char *s;
    uint32_t n;
    int32_t number;
} PtxRegName;

struct PtxKernel {
    PtxModule *module;
    char *name;
    PtxKernelInfo info;
    int req_ntid[3]; /* of .reqntid, 0: none */
    PtxInstr *code;
    int ncode;
    PtxOperand *operands; /* of all instructions */
    size_t noperands, operands_cap;
    int nregs; /* of all kinds */
    PtxRegName *reg_names;
    int regs_cap;
    uint32_t reg_bytes; /* of a warp */
    uint8_t *imms;
    size_t imm_bytes, imm_cap;
    bool dynamic_shared; /* refers to an .extern .shared array */
    int dynamic_align;
    bool failed;
};

struct PtxModule {
    PtxDevice *device; /* NULL: only parsed (lint) */
    char *text;
    size_t bytes;
    int version, target; /* 70 for 7.0; 80 for sm_80 */
    char target_suffix;
    PtxKernel **kernels;
    int nkernels;
    uint64_t *globals; /* device addresses of its variables */
    int nglobals;
    PtxModule *next;
};

/* parse.c. Problems go to `problem` (line 0: the whole text), which says whether to go on. Without
 * it the first problem ends the parse with ptx_error. NULL on failure. */
typedef bool (*PtxProblem)(void *user, int line, const char *text);
PtxModule *ptx_parse(PtxDevice *d, const char *text, size_t bytes, PtxProblem problem, void *user);

/* Memory of a device. Allocations are in the order of their addresses; a freed one stays as a
 * record, so that a use after free can be told. */
typedef struct PtxCell {     /* what the race check knows about 4 bytes, or about one (shadow.c) */
    uint32_t write, read;    /* stamps; 0: never */
    uint16_t writer, reader; /* threads in their CTA and bits */
} PtxCell;
typedef struct PtxAlloc {
    uint64_t address, bytes;
    uint8_t *host;  /* NULL: freed */
    uint8_t *init;  /* a bit for each byte */
    PtxCell *cells; /* for each 4 bytes; NULL: not looked at yet */
    bool constant, module;
} PtxAlloc;

struct PtxDevice {
    PtxOptions o;
    char error[1024];
    PtxAlloc *allocs;
    int nallocs, allocs_cap, live;
    size_t used;
    uint64_t next;
    int last;            /* the allocation found last */
    PtxCell (*bytes)[4]; /* cells that were split into bytes */
    uint32_t nbytes, bytes_cap;
    uint32_t now;    /* stamp: rises at every launch, CTA and barrier */
    PtxAlloc shared; /* one CTA runs at a time; room for the largest */
    PtxModule *modules;
    PtxCounts counts;
};
void ptx_fail(PtxDevice *d, const char *format, ...) __attribute__((format(printf, 2, 3)));
PtxAlloc *ptx_find(PtxDevice *d, uint64_t address); /* the one at or before it; NULL: none */
uint64_t ptx_allocate(PtxDevice *d, size_t bytes, bool module, bool constant);

/* Addresses beyond what a host can dereference (bit 47 set, not sign-extended). */
#define PTX_GLOBAL_BASE 0xa00000000000ull
#define PTX_SHARED_WINDOW 0xb00000000000ull
#define PTX_LOCAL_WINDOW 0xc00000000000ull
#define PTX_PARAM_WINDOW 0xd00000000000ull
#define PTX_WINDOW 0x1000000ull
#define PTX_SHARED_BASE 0x400u /* offsets of shared memory start here: 0 is no variable */
#define PTX_LOCAL_BASE 0x400u

/* A group: threads of a warp that are at the same instruction. */
typedef enum { G_RUN, G_SYNC, G_BAR, G_DONE } PtxGroupState;
typedef struct PtxGroup {
    int pc;
    uint32_t mask, want; /* want: the lanes a *.sync waits for */
    PtxGroupState state;
} PtxGroup;

typedef struct PtxCopy { /* one thread's cp.async under way */
    uint64_t to, from;
    uint8_t bytes, copied, lane;
    int group, line; /* group -1: not committed yet */
    uint8_t data[16];
} PtxCopy;

typedef struct PtxRun PtxRun;
struct PtxWarp {
    PtxRun *run;
    int number;
    uint32_t live, born; /* lanes that have not exited; lanes that ever were */
    const uint8_t *base[BASE_COUNT];
    uint8_t *regs;
    uint32_t *defined; /* per register: lanes that were written */
    uint8_t sreg[SREG_COUNT][LANES * 4];
    PtxGroup groups[LANES];
    int ngroups;
    uint32_t epoch[LANES]; /* stamp of the last bar.warp.sync of a lane */
    PtxAlloc local;        /* info.local_bytes for each lane */
    PtxCopy *copies;
    int ncopies, copies_cap;
    int committed[LANES]; /* groups of cp.async a lane has committed */
    int bar;              /* the barrier it waits at, -1: none */
};

struct PtxRun { /* one launch */
    PtxDevice *d;
    PtxKernel *k;
    unsigned grid[3], block[3], cta[3];
    int threads, nwarps;
    const uint8_t *params;
    size_t params_bytes;
    PtxWarp *warps;
    PtxAlloc *shared;   /* of the CTA that runs: the device's, cut to size */
    uint64_t *executed; /* threads, per instruction */
    uint64_t steps;     /* warp instructions */
    uint64_t barriers;
    uint32_t launch_start, cta_start, cta_epoch;
    uint32_t *cta_stamps; /* of CTAs in the order they ran */
    unsigned *cta_order;
    unsigned ncta;
    uint64_t random; /* state; 0: everything in order */
    uint64_t approx_random;
    bool failed;
    bool races, init;
};

/* Reports an error of one thread (lane < 0: of the warp). Always false. */
bool ptx_run_fail(PtxWarp *w, const PtxInstr *i, int lane, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
uint64_t ptx_random(uint64_t *state);

/* exec_*.c */
#define X(op) bool ptx_exec_##op(PtxWarp *w, const PtxInstr *i, uint32_t mask);
X(add)
X(sub)
X(mul) X(mulw) X(mad) X(madw) X(div) X(rem) X(abs) X(neg) X(min) X(max) X(popc) X(clz) X(bfind)
    X(brev) X(bfe) X(bfi) X(and) X(or) X(xor) X(not ) X(shl) X(shr) X(shf) X(prmt) X(lop3) X(selp)
        X(setp) X(mov) X(cvt) X(cvt2) X(cvta) X(fma) X(diva) X(rcp) X(sqrt) X(rcpa) X(sqrta)
            X(rsqrt) X(sin) X(cos) X(lg2) X(ex2) X(tanh) X(copysign) X(testp) X(ld) X(st) X(atom)
                X(red) X(cpasync) X(cpcommit) X(cpwait) X(cpwaitall) X(ldmatrix) X(mma) X(shfl)
                    X(vote) X(ballot) X(match) X(redux) X(activemask) X(barwarp) X(fence)
    /* Floating-point halves of operations that integers have too. */
    X(directed) X(fadd) X(fsub) X(fmul) X(fdiv) X(fabs) X(fneg) X(fmin) X(fmax) X(fsetp)
#undef X
        PtxExec ptx_exec_of(const PtxOpcode *c); /* dispatch.c */
/* warp.c: runs up to `slice` instructions, until all lanes wait or have exited. */
bool ptx_warp_run(PtxWarp *w, int slice);
/* Copies of cp.async that are done when a lane waits for all but its newest `keep` groups. */
void ptx_copies_land(PtxWarp *w, uint32_t lanes, int keep);

/* shadow.c: one access of `bytes` at `offset` of an allocation by a lane. */
typedef enum { A_READ, A_WRITE, A_ATOMIC, A_STRONG_READ, A_STRONG_WRITE, A_READ_NC } PtxAccess;
bool ptx_shadow(PtxWarp *w, const PtxInstr *i, int lane, PtxAlloc *a, uint64_t offset,
                unsigned bytes, PtxAccess access);
/* A cp.async begins to write bytes, or its lane has waited for them. */
void ptx_shadow_async(PtxWarp *w, PtxAlloc *a, uint64_t offset, unsigned bytes, int lane,
                      bool begin);
bool ptx_init_all(const uint8_t *bits, uint64_t offset, uint64_t bytes);
void ptx_init_set(uint8_t *bits, uint64_t offset, uint64_t bytes);
void ptx_init_clear(uint8_t *bits, uint64_t offset, uint64_t bytes);

/* numbers.c: formats x86 does not compute in. */
float ptx_f16_to_f32(uint16_t h);
uint16_t ptx_f32_to_f16(double v, int round); /* one rounding; W_RN, W_RZ, W_RM, W_RP */
static inline float ptx_bf16_to_f32(uint16_t h) {
    union {
        uint32_t u;
        float f;
    } c = {(uint32_t)h << 16};
    return c.f;
}

/* W_RZ, else to nearest even. */
static inline uint16_t ptx_f32_to_bf16(float v, int round) {
    union {
        float f;
        uint32_t u;
    } c = {v};
    uint32_t up = round == W_RZ ? 0 : 0x7fff + (c.u >> 16 & 1);
    return v != v ? 0x7fff : (uint16_t)((c.u + up) >> 16);
}
/* exec_int.c: stores a comparison's result, combined as setp asks. */
bool ptx_setp_finish(PtxWarp *w, const PtxInstr *i, uint32_t r, uint32_t mask);

/* Pointers to the lanes of operand n. */
static inline const void *ptx_src(const PtxWarp *w, const PtxInstr *i, int n) {
    return w->base[i->o[n].base] + i->o[n].at;
}
static inline void *ptx_dst(PtxWarp *w, const PtxInstr *i, int n) {
    return w->regs + i->o[n].at;
}
/* The lanes where a predicate operand is true. */
static inline uint32_t ptx_pred(const PtxWarp *w, const PtxOperand *o) {
    uint32_t m = *(const uint32_t *)(const void *)(w->base[o->base] + o->at);
    return o->negated ? ~m : m;
}

#endif
