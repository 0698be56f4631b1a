/* x86_target.c: what to compile for: a level of the x86-64 ABI, or exactly this machine.
 *
 * Kernels count on fused multiply-add, 256-bit integer vectors and half-float conversion: x86-64-v3
 * is the floor. Code for a level depends on nothing of the machine that compiles it: what runs here
 * and what is written to a library are the same instructions. */
#include "codegen/x86.h"

#include <llvm-c/Core.h>
#include <llvm-c/TargetMachine.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/cpu_level.h"

static const char *const v3[] = {"+avx2", "+fma", "+f16c", "+bmi2"};
static const char *const v4[] = {"+avx512f", "+avx512bw", "+avx512cd", "+avx512dq", "+avx512vl"};

/* `features` is LLVM's comma-separated list. */
static bool has(const char *features, const char *feature) {
    size_t n = strlen(feature);
    for (const char *at = features; (at = strstr(at, feature)); at += n)
        if ((at == features || at[-1] == ',') && (at[n] == 0 || at[n] == ','))
            return true;
    return false;
}

static const char *missing(const char *features, const char *const *list, int n) {
    for (int i = 0; i < n; i++)
        if (!has(features, list[i]))
            return list[i] + 1;
    return NULL;
}

static char *copy(const char *s) {
    size_t n = strlen(s) + 1;
    return memcpy(xcalloc(n, 1), s, n);
}

/* The number of a level's name, 0 for native, -1 if it is none. */
static int level_of(const char *cpu) {
    return !strcmp(cpu, "native")      ? 0
           : !strcmp(cpu, "x86-64-v3") ? 3
           : !strcmp(cpu, "x86-64-v4") ? 4
                                       : -1;
}

static bool unknown_cpu(const char *cpu, Diag *d) {
    static const char *const known[] = {"native", "x86-64-v3", "x86-64-v4"};
    const char *near = nearest_word(cpu, known, COUNT_OF(known));
    diag_error(d, EXIT_USAGE, "unknown cpu '%s'%s%s%s", diag_safe(d, cpu),
               near ? ", did you mean '" : "", near ? near : "",
               near ? "'?" : "; known: native, x86-64-v3, x86-64-v4");
    return false;
}

bool x86_target_find(X86Target *t, const char *cpu, bool runs_here, Diag *d) {
    *t = (X86Target){0};
    if (!cpu)
        cpu = stgc_cpu_level() == 4 ? "x86-64-v4" : "x86-64-v3";
    int level = level_of(cpu);
    if (level < 0)
        return unknown_cpu(cpu, d);
    char *host = LLVMGetHostCPUName(), *features = LLVMGetHostCPUFeatures();
    const char *lacks3 = missing(features, v3, COUNT_OF(v3)),
               *lacks4 = missing(features, v4, COUNT_OF(v4));
    const char *lack = lacks3 ? lacks3 : level == 4 ? lacks4 : NULL;
    if (lack && (runs_here || level == 0)) {
        diag_error(d, EXIT_RESOURCE, "this machine (%s) lacks %s", host, lack);
        diag_more(d, "%s needs it",
                  level == 4 ? "x86-64-v4" : "compiled training (x86-64-v3 or newer)");
    } else {
        t->level = level ? level : lacks4 ? 3 : 4;
        t->native = level == 0;
        t->cpu = copy(level ? cpu : host);
        /* whole 512-bit vectors: kernels are long loops */
        t->features = copy(level == 4 ? "-prefer-256-bit" : level ? "" : features);
        t->vector_floats = t->level == 4 ? 16 : 8;
    }
    LLVMDisposeMessage(host);
    LLVMDisposeMessage(features);
    return t->cpu != NULL;
}

void x86_target_free(X86Target *t) {
    free(t->cpu);
    free(t->features);
    *t = (X86Target){0};
}
