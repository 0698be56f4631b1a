/* bench.c: clocks, marks and peaks for measuring. See bench.h. */
#define _GNU_SOURCE
#include "runtime/bench.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "runtime/machine.h"

enum { PIECES = 256 }; /* of a copy: tasks */
#define COPY_BYTES ((size_t)192 << 20)

static double seconds(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double stgc_bench_wall(void) {
    return seconds(CLOCK_MONOTONIC);
}

double stgc_bench_thread(void) {
    return seconds(CLOCK_THREAD_CPUTIME_ID);
}

double stgc_bench_process(void) {
    return seconds(CLOCK_PROCESS_CPUTIME_ID);
}

void stgc_bench_watch(StgcRt *rt, StgcWatch fn, void *ctx) {
    Machine *m = (Machine *)rt;
    m->watch = fn;
    m->watcher = ctx;
}

/* ---- peaks ---- */

struct StgcPeaks {
    StgcRt *rt;
    char *block; /* matrices and both sides of the copy share it */
    size_t bytes;
};

StgcPeaks *stgc_peaks_new(StgcRt *rt) {
    StgcPeaks *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->rt = rt;
    p->bytes = 2 * COPY_BYTES;
    p->block = mmap(NULL, p->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p->block == MAP_FAILED) {
        free(p);
        return NULL;
    }
    madvise(p->block, p->bytes, MADV_HUGEPAGE);
    float *f = (float *)(void *)p->block;
    for (size_t i = 0; i < p->bytes / sizeof *f; i++)
        f[i] = (float)(i % 97) / 97 - 0.5f;
    return p;
}

void stgc_peaks_free(StgcPeaks *p) {
    if (!p)
        return;
    munmap(p->block, p->bytes);
    free(p);
}

/* One thread is timed by its own CPU time, which other processes hardly disturb. */
static double peak_clock(const StgcPeaks *p) {
    return stgc_rt_threads(p->rt) == 1 ? stgc_bench_thread() : stgc_bench_wall();
}

double stgc_peaks_gemm(StgcPeaks *p) {
    const int64_t n = STGC_PEAK_SIZE;
    float *f = (float *)(void *)p->block;
    StgcGemm g = {
        .kind = STGC_GEMM_BATCH,
        .g1 = 1,
        .g2 = 1,
        .m = n,
        .n = n,
        .k = n,
        .a = f,
        .a_row = n,
        .a_col = 1,
        .b = f + n * n,
        .b_row = n,
        .b_col = 1,
        .c = f + 2 * n * n,
        .ldc = n,
    };
    double start = peak_clock(p);
    p->rt->gemm(p->rt, &g);
    return 2 * (double)n * (double)n * (double)n / (peak_clock(p) - start);
}

static void copy_piece(void *env, int64_t task) {
    const StgcPeaks *p = env;
    const size_t piece = COPY_BYTES / PIECES;
    memcpy(p->block + COPY_BYTES + (size_t)task * piece, p->block + (size_t)task * piece, piece);
}

double stgc_peaks_copy(StgcPeaks *p) {
    double start = peak_clock(p);
    p->rt->parallel(p->rt, PIECES, copy_piece, p);
    return 2 * (double)COPY_BYTES / (peak_clock(p) - start);
}
