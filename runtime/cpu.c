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

Engine cpu_engine(void) {
    const char *wish = getenv("STGC_GEMM");
    if (wish && strcmp(wish, "xsmm") == 0)
        return ENGINE_XSMM;
    return wish && strcmp(wish, "onednn") == 0 ? ENGINE_ONEDNN : ENGINE_BEST;
}

/* Zen 4 and later multiply pairs of bf16 at twice the rate of f32. Sapphire Rapids without AMX does
 * at half the rate (measured: 92 GF/s a core, f32 177), so that it rounds operands and multiplies
 * f32. STGC_BF16=native or rounded asks for one of the two. */
bool cpu_bf16(void) {
    const char *wish = getenv("STGC_BF16"), *limit = getenv("STGC_ISA");
    bool limited = limit && (!strcmp(limit, "avx2") || !strcmp(limit, "generic"));
    if (limited || !bf16_usable() || (wish && !strcmp(wish, "rounded")))
        return false;
#if defined(__x86_64__)
    return (wish && !strcmp(wish, "native")) || __builtin_cpu_is("amd");
#else
    return false;
#endif
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
    char model[160], xsmm[80], onednn[80];
    xsmm_describe(xsmm, sizeof xsmm);
    snprintf(onednn, sizeof onednn, "oneDNN not used");
    if (machine->engine != ENGINE_XSMM)
        onednn_describe(onednn, sizeof onednn);
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
                 "; %d of %d threads; f32 matrix products: %s, %s; bf16: %s", machine->threads,
                 cpu_count(), xsmm, onednn, machine->bf16 ? "avx512_bf16" : "rounded f32");
}
