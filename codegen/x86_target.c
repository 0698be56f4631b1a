/* x86_target.c: what to compile for: this machine, or a level of the x86-64 ABI that this machine
 * reaches.
 *
 * Kernels count on fused multiply-add, 256-bit integer vectors and half-float conversion: x86-64-v3
 * is the floor. */
#include "codegen/x86.h"

#include <llvm-c/Core.h>
#include <llvm-c/TargetMachine.h>
#include <stdlib.h>
#include <string.h>

static const char *const v3[] = {"+avx2", "+fma", "+f16c", "+bmi2"};
static const char *const v4[] = {"+avx512f", "+avx512bw", "+avx512dq", "+avx512vl"};

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

bool x86_target_find(X86Target *t, const char *cpu, Diag *d) {
    static const char *const known[] = {"native", "x86-64-v3", "x86-64-v4"};
    *t = (X86Target){0};
    char *host = LLVMGetHostCPUName(), *features = LLVMGetHostCPUFeatures();
    const char *lacks3 = missing(features, v3, COUNT_OF(v3)),
               *lacks4 = missing(features, v4, COUNT_OF(v4));
    int level = 0;
    for (int i = 0; i < COUNT_OF(known); i++)
        if (strcmp(cpu ? cpu : "native", known[i]) == 0)
            level = i == 0 ? (lacks4 ? 3 : 4) : i + 2;
    const char *lack = lacks3 ? lacks3 : level == 4 ? lacks4 : NULL;
    if (!level) {
        const char *near = nearest_word(cpu, known, COUNT_OF(known));
        diag_error(d, EXIT_USAGE, "unknown cpu '%s'%s%s%s", diag_safe(d, cpu),
                   near ? ", did you mean '" : "", near ? near : "",
                   near ? "'?" : "; known: native, x86-64-v3, x86-64-v4");
    } else if (lack) {
        diag_error(d, EXIT_RESOURCE, "this machine (%s) lacks %s", host, lack);
        diag_more(d, "%s needs it",
                  level == 4 ? "--cpu=x86-64-v4" : "compiled training (x86-64-v3 or newer)");
    } else {
        bool native = !cpu || strcmp(cpu, "native") == 0;
        t->cpu = copy(native ? host : cpu);
        t->features = copy(native ? features : "");
        t->vector_floats = level == 4 ? 16 : 8;
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
