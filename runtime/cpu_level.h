/* cpu_level.h: the one rule that chooses the instruction set of compiled kernels. The compiler asks
 * it for code it runs itself, the runtime for the variant of a compiled library, so both compute
 * the same bytes. Levels are those of the x86-64 ABI: 3 has AVX2, FMA, F16C, BMI2; 4 also AVX-512
 * F, BW, CD, DQ, VL. */
#ifndef STGC_RUNTIME_CPU_LEVEL_H
#define STGC_RUNTIME_CPU_LEVEL_H

#include <stdlib.h>
#include <string.h>

/* What this CPU and its system run: 4, 3, or 0 for less. STGC_ISA=avx2 or generic asks for less
 * than 4, to compare. */
static inline int stgc_cpu_level(void) {
#if defined(__x86_64__)
    const char *limit = getenv("STGC_ISA");
    int level3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                 __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    int level4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512vl");
    if (limit && (!strcmp(limit, "avx2") || !strcmp(limit, "generic")))
        level4 = 0;
    return !level3 ? 0 : level4 ? 4 : 3;
#else
    return 0;
#endif
}

#endif
