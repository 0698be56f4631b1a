/* loop_program.h: the inside of a LoopProgram, for those who read programs (printing, machines).
 * Builders use loop.h.
 *
 * A program is one flat list of instructions; LOOP, IF, ELSE and END bracket the structure. A value
 * is named by the place of its instruction + 1. Constants and arguments may be used anywhere,
 * wherever they stand in the list; any other value only while the scope it was made in is open, so
 * list order within open scopes is dominance. */
#ifndef STGCC_CODEGEN_LOOP_PROGRAM_H
#define STGCC_CODEGEN_LOOP_PROGRAM_H

#include "codegen/loop.h"

typedef enum {
    LI_CONST, /* i or f by type (bool: i) */
    LI_ARG,   /* ref: LARG_*, or LARG_TASK */
    LI_OP,    /* op a b c */
    LI_LOAD,  /* buffer ref, index a */
    LI_STORE, /* buffer ref, index a, value b */
    LI_LOOP,  /* op: LoopKind; from a to b; the value is the index; ref: place of its END */
    LI_IF,    /* condition a */
    LI_ELSE,
    LI_END,   /* ref: place of the LOOP or IF it ends */
    LI_VAR,   /* variable ref, initial value a */
    LI_GET,   /* variable ref */
    LI_SET,   /* variable ref, value a */
    LI_FAULT, /* text, where a, value b */
} LInstKind;

enum { LARG_TASK = LARG_TILE_LD + 1, LARG_COUNT };

/* Buffer numbers as lp_load takes them: >= 0 buffers of the call, LB_TILE, and locals below it. */
enum { LB_TILE = -1 };
#define LB_LOCAL(k) (-2 - (k))
#define LB_IS_LOCAL(b) ((b) <= -2)
#define LB_LOCAL_INDEX(b) (-2 - (b))

typedef struct LInst {
    LInstKind kind;
    LType type; /* of the value; LT_NONE: a statement */
    int op;
    LVal a, b, c;
    int ref;
    int scope;
    bool innermost; /* LOOP: holds no other loop; set at its END */
    int64_t i;
    double f;
    const char *text;
} LInst;

typedef struct LLocal {
    LType type;
    int64_t count;
} LLocal;

typedef struct LVar {
    LType type;
    int scope;
} LVar;

struct LoopProgram {
    ProgramKind kind;
    char *name;
    VEC(LInst) insts;
    VEC(DType) buffers;
    VEC(LLocal) locals;
    VEC(LVar) vars;
    VEC(bool) scope_open;  /* by scope id */
    VEC(int) open;         /* stack of open LOOP/IF/ELSE instructions */
    VEC(int) scopes;       /* stack of open scope ids; scopes[0] is the program */
    LVal args[LARG_COUNT]; /* made on first use */
    int *table;            /* value numbering: hash -> LVal of an OP or CONST */
    int table_cap, table_used;
};

static inline const LInst *lp_inst(const LoopProgram *p, LVal v) {
    return &p->insts.at[v - 1];
}
LType loop_storage_type(DType t); /* the compute type of a storage type */
extern const char *const loop_op_names[L_COUNT];
const char *loop_type_name(LType t);
/* The same program but for the name. */
bool loop_program_equal(const LoopProgram *a, const LoopProgram *b);

/* loop_fold.c: a value equal to the operation, made of constants or operands, or 0 if it does not
 * simplify. */
LVal loop_fold(LoopProgram *p, LOp op, LVal a, LVal b, LVal c);

/* loop_distribute.c: the program with vector loops around sequential loops turned inside out, a new
 * one; NULL if it has no such loop. */
LoopProgram *loop_distribute(const LoopProgram *p);

#endif
