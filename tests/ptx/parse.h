/* parse.h: the parser's state; shared by parse.c (module, declarations), parse_instr.c
 * (instructions) and operand.c. */
#ifndef STGCC_TESTS_PTX_PARSE_H
#define STGCC_TESTS_PTX_PARSE_H

#include "ptx.h"

typedef enum {
    SYM_REG,
    SYM_PARAM,
    SYM_SHARED,
    SYM_DYNAMIC,
    SYM_LOCAL,
    SYM_GLOBAL,
    SYM_CONST
} PtxSymKind;
typedef struct PtxSym {
    const char *s;
    size_t n;
    uint32_t hash;
    PtxSymKind kind;
    int scope, type;
    int count;        /* of a register family %r<count>; 0: one register of exactly this name */
    int reg;          /* number of the first */
    uint32_t at;      /* offset of the first register; of a variable, where it is */
    uint64_t address; /* of a global */
    uint64_t bytes;
    uint32_t align;
    PtxKernel *placed_in; /* shared: the kernel `at` is for */
} PtxSym;

typedef struct PtxLabel {
    const char *s;
    size_t n;
    int scope, pc, line; /* pc: of the label, or of the instruction that jumps */
} PtxLabel;

typedef struct PtxDynamic { /* an operand that holds the address of the dynamic shared array */
    size_t operand;
    int64_t addend;
} PtxDynamic;

typedef struct PtxParser {
    PtxLexer x;
    PtxToken t; /* the next token */
    PtxDevice *d;
    PtxModule *m;
    PtxKernel *k;
    PtxProblem problem;
    void *user;
    bool stop, failed;
    PtxSym *syms;
    int nsyms, syms_cap;
    int *buckets, *chain; /* name -> newest symbol; chain[i]: the one before it */
    int scopes[64], nscopes, next_scope;
    PtxLabel *labels, *jumps;
    int nlabels, njumps, labels_cap, jumps_cap;
    PtxDynamic *dynamics;
    int ndynamics, dynamics_cap;
    struct PtxImm {
        uint64_t bits;
        uint32_t at;
        uint8_t width;
    } * imms;
    int nimms, imms_cap;
    int code_cap;
    struct PtxKnown { /* opcodes seen */
        const char *s;
        size_t n;
        PtxOpcode c;
    } known[512];
} PtxParser;

void ptx_next(PtxParser *p);
/* Reports a problem at a line; later code is parsed only if the receiver wants more. */
void ptx_problem(PtxParser *p, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
bool ptx_expect(PtxParser *p, const char *punct); /* consumes it or reports */
bool ptx_accept(PtxParser *p, const char *punct);
PtxSym *ptx_sym_find(PtxParser *p, const char *s, size_t n);
/* An array with room for `need` elements. */
void *ptx_grow(void *array, int *cap, int need, size_t size);

/* parse_instr.c: one instruction with its guard, the token being '@' or the opcode. */
void ptx_parse_instr(PtxParser *p);
/* operand.c */
bool ptx_parse_value(PtxParser *p, PtxOperand *o, int type, int line, bool dst, bool wider);
bool ptx_parse_mem(PtxParser *p, PtxOperand *o, int space, int line);
uint32_t ptx_imm(PtxParser *p, uint64_t bits, int width);

#endif
