/* machine.c: makes and frees a machine: threads, their buffers, and the services of step.h; or a
 * GPU. */
#define _GNU_SOURCE
#include "runtime/machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "runtime/cuda.h"

static void service_parallel(StgcRt *rt, int64_t tasks, StgcTask fn, void *env) {
    pool_run(((Machine *)rt)->pool, tasks, fn, env);
}

static void service_gemm(StgcRt *rt, const StgcGemm *g) {
    if (!machine_gemm_small(rt, g))
        machine_gemm(rt, g);
}

static void service_fault(StgcRt *rt, const char *what, int64_t where, int64_t value) {
    Machine *m = (Machine *)rt;
    pthread_mutex_lock(&m->fault_lock);
    if (!m->fault.what || (m->fault.what == what && where < m->fault.where))
        m->fault = (Fault){what, where, value};
    pthread_mutex_unlock(&m->fault_lock);
}

static void service_mark(StgcRt *rt, int64_t call) {
    const Machine *m = (const Machine *)rt;
    if (m->watch)
        m->watch(m->watcher, call);
}

/* Every thread's packing buffers, made once so that a step allocates nothing. */
static bool make_buffers(Machine *m) {
    const size_t each = (size_t)GEMM_WORK_FLOATS * sizeof(float);
    const size_t huge = (size_t)2 << 20, all = (each * (size_t)m->threads + huge - 1) & ~(huge - 1);
    m->work = calloc((size_t)m->threads, sizeof *m->work);
    m->buffers = aligned_alloc(huge, all);
    m->caches = calloc((size_t)m->threads, sizeof *m->caches);
    if (!m->work || !m->buffers || !m->caches)
        return false;
    madvise(m->buffers, all, MADV_HUGEPAGE);
    for (int i = 0; i < m->threads; i++) {
        float *p = m->buffers + (size_t)i * GEMM_WORK_FLOATS;
        m->work[i] = (GemmWork){
            .b = p,
            .tile = p + GEMM_WORK_B,
            .tile2 = p + GEMM_WORK_B + GEMM_WORK_TILE,
            .a = p + GEMM_WORK_B + 2 * GEMM_WORK_TILE,
            .columns = cpu_tile_columns(),
            .vectors = gemm_vectors(),
            .cache = &m->caches[i],
        };
    }
    return true;
}

StgcRt *stgc_rt_new(int threads) {
    Machine *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    m->rt =
        (StgcRt){service_parallel, service_gemm, machine_token_dot, service_fault, service_mark};
    m->threads = threads > 0 ? threads : cpu_count();
    m->small_level = machine_small_level();
    m->engine = cpu_engine();
    m->bf16 = cpu_bf16();
    xsmm_init();
    pthread_mutex_init(&m->fault_lock, NULL);
    if (make_buffers(m))
        m->pool = pool_new(m->threads);
    if (!m->pool) {
        stgc_rt_free(&m->rt);
        return NULL;
    }
    return &m->rt;
}

StgcRt *stgc_rt_new_cuda(const StgcCudaOptions *o, StgcStatus *status, char *error, size_t size) {
    CudaDevice *d = cuda_device_new(o, status, error, size);
    if (!d)
        return NULL;
    Machine *m = calloc(1, sizeof *m);
    if (!m) {
        cuda_device_free(d);
        *status = STGC_ERR_RESOURCE;
        snprintf(error, size, "no memory for a device");
        return NULL;
    }
    m->threads = 1; /* the one that steps */
    m->cuda = d;
    pthread_mutex_init(&m->fault_lock, NULL);
    return &m->rt;
}

int stgc_rt_capability(const StgcRt *rt) {
    const Machine *m = (const Machine *)rt;
    return m->cuda ? m->cuda->capability : 0;
}

void stgc_rt_free(StgcRt *rt) {
    Machine *m = (Machine *)rt;
    if (!m)
        return;
    cuda_device_free(m->cuda);
    pool_free(m->pool);
    pthread_mutex_destroy(&m->fault_lock);
    free(m->buffers);
    free(m->caches);
    free(m->work);
    free(m);
}

int stgc_rt_threads(const StgcRt *rt) {
    return ((const Machine *)rt)->threads;
}

/* Not before somebody asks: naming oneDNN loads it. */
const char *stgc_rt_describe(const StgcRt *rt) {
    Machine *m = (Machine *)(uintptr_t)rt;
    pthread_mutex_lock(&m->fault_lock);
    if (m->cuda)
        cuda_describe(m->cuda, m->description, sizeof m->description);
    else if (!*m->description)
        cpu_describe(m, m->description, (int64_t)sizeof m->description);
    pthread_mutex_unlock(&m->fault_lock);
    return m->description;
}
