/* cpu.c: which CPU this is, which kernels it gets, and the text that reports name it by. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/machine.h"

int cpu_count(void) {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0)
        return CPU_COUNT(&allowed);
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

#if defined(__x86_64__)
static bool runs_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("bmi2");
}

static bool runs_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

/* The best kernels this CPU runs; STGC_ISA=avx2 or generic asks for less, to compare. */
const GemmIsa *cpu_isa(void) {
#if defined(__x86_64__)
    const char *limit = getenv("STGC_ISA");
    bool generic = limit && strcmp(limit, "generic") == 0;
    bool avx2 = limit && strcmp(limit, "avx2") == 0;
    if (!generic && !avx2 && runs_avx512())
        return &gemm_avx512;
    if (!generic && runs_avx2())
        return &gemm_avx2;
#endif
    return &gemm_generic;
}

/* So many columns that packed B of one chain takes half the second cache. */
int64_t cpu_tile_columns(void) {
    long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE); /* 0 where the system does not tell */
    int64_t columns = bytes / 2 / (GEMM_KC * (int64_t)sizeof(float)) / 64 * 64;
    return columns < 128 ? 128 : columns > GEMM_NT ? GEMM_NT : columns;
}

/* Copies the CPU's name from the system; "unknown CPU" where there is none. */
static void model_name(char *text, size_t size) {
    snprintf(text, size, "unknown CPU");
    FILE *f = fopen("/proc/cpuinfo", "r");
    char line[256];
    while (f && fgets(line, sizeof line, f)) {
        if (strncmp(line, "model name", 10) != 0)
            continue;
        const char *colon = strchr(line, ':');
        if (!colon)
            continue;
        colon += strspn(colon, ": \t");
        snprintf(text, size, "%.*s", (int)strcspn(colon, "\n"), colon);
        break;
    }
    if (f)
        fclose(f);
}

void cpu_describe(const Machine *machine, char *text, int64_t size) {
    char model[160];
    model_name(model, sizeof model);
    int n = snprintf(text, (size_t)size, "%s, flags", model);
#if defined(__x86_64__)
#define FLAG(name) \
    if (__builtin_cpu_supports(name) && n < size) \
        n += snprintf(text + n, (size_t)(size - n), " %s", name);
    FLAG("avx2")
    FLAG("fma")
    FLAG("avx512f")
    FLAG("avx512vl")
    FLAG("avx512bf16")
    FLAG("avx512vnni")
#undef FLAG
#endif
    if (n < size)
        snprintf(text + n, (size_t)(size - n),
                 "; %d of %d threads; f32 matrix products: own %s kernels", machine->threads,
                 cpu_count(), machine->isa->name);
}
