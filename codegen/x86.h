/* x86.h: a LoopModule as machine code in this process. Internal to codegen and its tests. */
#ifndef STGCC_CODEGEN_X86_H
#define STGCC_CODEGEN_X86_H

#include "codegen/loop.h"

typedef struct X86Code {
    void (*run)(StgcRt *rt, char *arena);
    const char *cpu;    /* what it was compiled for */
    int functions;      /* distinct programs compiled */
    int not_vectorised; /* vector loops LLVM left scalar */
    double seconds;     /* of compiling */
    struct X86Jit *jit; /* owns the code */
} X86Code;

/* cpu NULL: the level of the x86-64 ABI that stgc_cpu_level gives; "native": exactly this machine.
 * NULL with a diagnostic if the CPU is unknown or this machine lacks what it needs. Everything else
 * that goes wrong here is ours. */
X86Code *x86_compile(const LoopModule *m, const char *cpu, FILE *dump_llvm, FILE *dump_asm,
                     Diag *d);
void x86_free(X86Code *c);

/* x86_target.c: what to compile for. */
typedef struct X86Target {
    char *cpu, *features; /* as LLVM takes them; freed with x86_target_free */
    int level;            /* of the x86-64 ABI that it includes: 3 or 4 */
    bool native;          /* more than that level: this machine's own features */
    int vector_floats;
} X86Target;
/* cpu as for x86_compile. runs_here: refused if this machine lacks what the level needs. */
bool x86_target_find(X86Target *t, const char *cpu, bool runs_here, Diag *d);
void x86_target_free(X86Target *t);

#endif
