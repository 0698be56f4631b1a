/* x86.c: LoopModule -> machine code in this process: x86_units.c makes objects, ORC's LLJIT links
 * them and sets the pages' protection; the functions of libm that kernels call are given to it by
 * address. */
#include "codegen/x86.h"

#include <llvm-c/Error.h>
#include <llvm-c/LLJIT.h>
#include <llvm-c/Orc.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "codegen/x86_units.h"

typedef struct X86Jit {
    LLVMOrcLLJITRef lljit;
    X86Target target;
} X86Jit;

static void check(LLVMErrorRef e) {
    if (e)
        bug("llvm: %s", LLVMGetErrorMessage(e));
}

static void define_libm(LLVMOrcLLJITRef j) {
#define S(name, type) \
    { #name, (uint64_t)(uintptr_t)(type)name }
#define U double (*)(double)
#define UF float (*)(float)
    const struct {
        const char *name;
        uint64_t address;
    } table[] = {
        S(exp, U),
        S(log, U),
        S(tanh, U),
        S(erf, U),
        S(sin, U),
        S(cos, U),
        S(floor, U),
        S(ceil, U),
        S(sinf, UF),
        S(cosf, UF),
        S(expf, UF),
        S(logf, UF),
        S(tanhf, UF),
        S(erff, UF),
        S(pow, double (*)(double, double)),
        S(fmod, double (*)(double, double)),
        S(powf, float (*)(float, float)),
        S(fmodf, float (*)(float, float)),
        S(memcpy, void *(*)(void *, const void *, size_t)),
        S(memmove, void *(*)(void *, const void *, size_t)),
        S(memset, void *(*)(void *, int, size_t)),
    };
#undef S
#undef U
#undef UF
    LLVMOrcCSymbolMapPair pairs[COUNT_OF(table)];
    for (int i = 0; i < COUNT_OF(table); i++) {
        pairs[i].Name = LLVMOrcLLJITMangleAndIntern(j, table[i].name);
        pairs[i].Sym.Address = table[i].address;
        pairs[i].Sym.Flags = (LLVMJITSymbolFlags){
            LLVMJITSymbolGenericFlagsExported | LLVMJITSymbolGenericFlagsCallable, 0};
    }
    LLVMOrcMaterializationUnitRef mu = LLVMOrcAbsoluteSymbols(pairs, COUNT_OF(table));
    check(LLVMOrcJITDylibDefine(LLVMOrcLLJITGetMainJITDylib(j), mu));
}

static void link_objects(X86Code *code, const X86Job *job) {
    LLVMOrcLLJITRef j;
    check(LLVMOrcCreateLLJIT(&j, LLVMOrcCreateLLJITBuilder()));
    code->jit->lljit = j;
    define_libm(j);
    for (int i = 0; i < job->objects.n; i++) /* takes them over */
        check(LLVMOrcLLJITAddObjectFile(j, LLVMOrcLLJITGetMainJITDylib(j), job->objects.at[i]));
    LLVMOrcExecutorAddress address;
    check(LLVMOrcLLJITLookup(j, &address, "stgc_run"));
    uintptr_t run = (uintptr_t)address;
    memcpy(&code->run, &run, sizeof run);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

X86Code *x86_compile(const LoopModule *m, const char *cpu, FILE *dump_llvm, FILE *dump_asm,
                     Diag *d) {
    X86Target target;
    x86_initialise();
    if (!x86_target_find(&target, cpu, true, d))
        return NULL;
    double start = now();
    X86Code *code = xcalloc(1, sizeof *code);
    code->jit = xcalloc(1, sizeof *code->jit);
    code->jit->target = target;
    code->cpu = code->jit->target.cpu;
    const char *run_name = "stgc_run";
    X86Job job = {
        .modules = &m, .run_names = &run_name, .nmodules = 1, .target = &code->jit->target};
    x86_translate(&job, dump_llvm, dump_asm);
    link_objects(code, &job);
    code->functions = job.functions;
    code->not_vectorised = job.not_vectorised;
    code->seconds = now() - start;
    vec_free(&job.objects);
    return code;
}

void x86_free(X86Code *c) {
    if (!c)
        return;
    check(LLVMOrcDisposeLLJIT(c->jit->lljit));
    x86_target_free(&c->jit->target);
    free(c->jit);
    free(c);
}
