/* gemm_xsmm.c: kernels of libxsmm, which writes machine code for each size when it is first used.
 *
 * libxsmm's matrices are in columns, ours in rows: it is asked for C' = B' A', so our B is its A.
 * One batch-reduce kernel multiplies any number of blocks of its depth, so that the sizes of
 * groups, which change every step, ask for few kernels. */
#include "runtime/gemm.h"

#include <libxsmm.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool makes_code; /* false: a CPU below AVX, or a system that forbids it */

/* libxsmm starts itself when it is loaded, and then tells every OpenMP of the process to pin
 * threads by OMP_PROC_BIND=TRUE. So it is started here just before, and the environment put back.
 */
__attribute__((constructor(101))) static void start(void) {
    const char *before = getenv("OMP_PROC_BIND");
    bool empty = before && !*before;
    libxsmm_init();
    if (empty)
        setenv("OMP_PROC_BIND", "", 1);
    else if (!before)
        unsetenv("OMP_PROC_BIND");
}

/* STGC_ISA=avx2 or generic asks for less than the CPU has, as for compiled code (cpu_level.h). */
static void init_once(void) {
    const char *limit = getenv("STGC_ISA");
    if (limit && strcmp(limit, "avx2") == 0 && libxsmm_get_target_archid() > LIBXSMM_X86_AVX2)
        libxsmm_set_target_archid(LIBXSMM_X86_AVX2);
    makes_code =
        libxsmm_get_target_archid() >= LIBXSMM_X86_AVX && !(limit && strcmp(limit, "generic") == 0);
}

void xsmm_init(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, init_once);
}

static XsmmFunction find_kernel(const XsmmShape *s) {
    if (!makes_code)
        return NULL;
    const float alpha = 1, beta = (float)s->add;
    int flags = s->a_columns ? LIBXSMM_GEMM_FLAG_TRANS_B : LIBXSMM_GEMM_FLAG_NONE;
    const int size = (int)sizeof(float);
    int b_block = s->k * s->ldb * size, a_block = s->k * (s->a_columns ? s->lda : 1) * size;
    return libxsmm_smmdispatch_reducebatch_strd(s->n, s->m, s->k, b_block, a_block, &s->ldb,
                                                &s->lda, &s->ldc, &alpha, &beta, &flags, NULL);
}

/* libxsmm's own loops. They know A in rows only; one value of k at a time, both forms are. */
static void run_loops(const XsmmShape *s, const float *a, const float *b, float *c, int64_t k) {
    const float one = 1;
    const libxsmm_blasint m = s->m, n = s->n, depth = 1, lda = s->a_columns ? 1 : s->lda;
    for (int64_t i = 0; !s->add && i < m; i++)
        memset(c + i * s->ldc, 0, (size_t)n * sizeof *c);
    for (int64_t kk = 0; kk < k; kk++) {
        const float *a_k = a + kk * (s->a_columns ? s->lda : 1), *b_k = b + kk * s->ldb;
        LIBXSMM_INLINE_XGEMM(float, float, "n", "n", &n, &m, &depth, &one, b_k, &s->ldb, a_k, &lda,
                             &one, c, &s->ldc)
    }
}

void xsmm_run(XsmmCache *cache, const XsmmShape *shape, const float *a, const float *b, float *c,
              int64_t blocks) {
    uint32_t hash =
        (uint32_t)(shape->m + 2 * shape->n + 5 * shape->k + 3 * shape->ldb + shape->add);
    XsmmKernel *kernel = &cache->kernels[(hash ^ hash >> 6) % XSMM_CACHE];
    if (memcmp(&kernel->shape, shape, sizeof *shape) != 0)
        *kernel = (XsmmKernel){find_kernel(shape), *shape};
    unsigned long long count = (unsigned long long)blocks;
    if (!kernel->run) {
        run_loops(shape, a, b, c, blocks * shape->k);
        return;
    }
    kernel->run(b, a, c, &count);
#if defined(__x86_64__)
    /* The kernel leaves the upper halves of vector registers in use, which slows down all code
     * after it that knows SSE only. */
    __asm__ volatile("vzeroupper" ::: "memory");
#endif
}

void xsmm_describe(char *text, int64_t size) {
    snprintf(text, (size_t)size, "libxsmm %d.%d (%s)", LIBXSMM_VERSION_MAJOR, LIBXSMM_VERSION_MINOR,
             makes_code ? libxsmm_get_target_arch() : "portable loops");
}
