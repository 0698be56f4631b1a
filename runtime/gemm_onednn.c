/* gemm_onednn.c: blocks of dense products by oneDNN's dnnl_sgemm.
 *
 * The library is loaded when it is first wanted, not linked: it brings OpenMP and OpenCL along, and
 * a machine without it uses libxsmm for everything. Its OpenMP is held to one thread for each call,
 * since the threads are ours. */
#define _GNU_SOURCE
#include "runtime/gemm.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>

/* What is used of oneapi/dnnl/dnnl.h, version 2, whose headers are not needed to build. */
typedef int Sgemm(char transa, char transb, int64_t m, int64_t n, int64_t k, float alpha,
                  const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c,
                  int64_t ldc); /* dnnl_sgemm; 0: done */
typedef struct Version {        /* dnnl_version_t */
    int major, minor, patch;
    const char *hash;
    unsigned cpu_runtime, gpu_runtime;
} Version;
enum { RUNTIME_SEQ = 1, RUNTIME_OMP = 2 };

static struct {
    Sgemm *sgemm;     /* NULL: not to be had */
    int (*isa)(void); /* dnnl_get_effective_cpu_isa */
    const Version *version;
    void (*omp_set)(int);
    int (*omp_get)(void);
} library;

/* dlsym's result as a function: ISO C knows no such cast. */
static bool find(void *handle, const char *name, void *function) {
    void *symbol = dlsym(handle, name);
    *(void **)function = symbol;
    return symbol != NULL;
}

static void load_once(void) {
    cpu_set_t allowed; /* where OMP_PROC_BIND is set, OpenMP binds the thread that loads it */
    bool known = sched_getaffinity(0, sizeof allowed, &allowed) == 0;
    void *handle = dlopen("libdnnl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (known)
        sched_setaffinity(0, sizeof allowed, &allowed);
    if (!handle)
        return;
    const Version *(*version)(void);
    Sgemm *sgemm;
    if (!find(handle, "dnnl_version", &version) || !find(handle, "dnnl_sgemm", &sgemm) ||
        !find(handle, "dnnl_get_effective_cpu_isa", &library.isa))
        return;
    library.version = version();
    bool omp = find(handle, "omp_set_num_threads", &library.omp_set) &&
               find(handle, "omp_get_max_threads", &library.omp_get);
    if (library.version->cpu_runtime == RUNTIME_SEQ)
        library.omp_set = NULL;
    else if (library.version->cpu_runtime != RUNTIME_OMP || !omp)
        return;
    library.sgemm = sgemm;
}

static bool load(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load_once);
    return library.sgemm != NULL;
}

bool onednn_takes(const StgcGemm *g) {
    bool layout = (g->a_row == 1 || g->a_col == 1) && (g->b_row == 1 || g->b_col == 1);
    return layout && g->c && !g->epilogue && !g->a_index && load();
}

/* Measured on Sapphire Rapids with tests/bench_gemm.c, one and two threads: weight gradients of
 * narrow layers, which our part packs for too few columns, are 5 to 20 % faster; larger and smaller
 * ones, and other layouts, are not. */
bool onednn_wants(const StgcGemm *g) {
    if (g->kind != STGC_GEMM_BATCH || g->g1 * g->g2 != 1 || g->a_row != 1 || g->b_col != 1)
        return false;
    double work = (double)g->m * (double)g->n * (double)g->k;
    return g->m >= 8 && g->n <= 2 * ONEDNN_COLUMNS && g->k >= 256 && work >= 3e6 && work <= 3e7 &&
           onednn_takes(g);
}

bool onednn_block(const GemmBlock *b) {
    bool a_columns = b->a_col != 1, b_columns = b->b_col != 1;
    if (b->k == 0)
        return false;
    int threads = library.omp_set ? library.omp_get() : 1;
    if (threads != 1)
        library.omp_set(1);
    int status =
        library.sgemm(a_columns ? 'T' : 'N', b_columns ? 'T' : 'N', b->m, b->n, b->k, 1, b->a,
                      a_columns ? b->a_col : b->a_row, b->b, b_columns ? b->b_col : b->b_row,
                      b->accumulate ? 1 : 0, b->c, b->ldc);
    if (threads != 1)
        library.omp_set(threads);
    return status == 0;
}

void onednn_describe(char *text, int64_t size) {
    if (!load()) {
        snprintf(text, (size_t)size, "oneDNN not installed");
        return;
    }
    static const struct {
        int isa; /* dnnl_cpu_isa_NAME */
        const char *name;
    } names[] = {{0x3e7, "avx512_core_amx"},
                 {0xe7, "avx512_core_bf16"},
                 {0x67, "avx512_core_vnni"},
                 {0x27, "avx512_core"},
                 {0x407, "avx2_vnni"},
                 {0x7, "avx2"},
                 {0x3, "avx"},
                 {0x1, "sse41"}};
    int isa = library.isa();
    const char *name = "other";
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (names[i].isa == isa)
            name = names[i].name;
    snprintf(text, (size_t)size, "oneDNN %d.%d.%d (%s)", library.version->major,
             library.version->minor, library.version->patch, name);
}
