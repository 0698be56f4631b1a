/* cuda_run.c: one step on a GPU: its module, its operations in order on one stream, a graph of
 * them, its fault record.
 *
 * The first execution launches operation by operation, so that libraries load what they need; the
 * second one is captured, and from then on a step is one launch of the graph. Where capturing is
 * refused, steps go on operation by operation. */
#include "runtime/cuda.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct CudaRun {
    CudaDevice *d;
    const StgcStep *step;
    CuModule module;
    CuFunction *functions; /* [nkernels] */
    CuAddress constants, fault;
    uint64_t *values; /* [most parameters]: of the operation being launched */
    void **params;
    bool marks; /* made to be measured: every call is waited for */
    int executed;
    CuGraphExec exec;
    unsigned generation; /* of the arena that exec was captured with */
    bool no_graph;
};

/* ---- what a step must be ---- */

/* The CUDA version whose driver reads a PTX version first; both as 1000 major + 10 minor. */
static int driver_for_ptx(int major, int minor) {
    if (major >= 9)
        return (major + 4) * 1000 + minor * 10;
    if (major == 8)
        return 12000 + (minor <= 5 ? minor : minor + 1) * 10;
    return 11000 + minor * 10;
}

static StgcStatus check_target(CudaDevice *d, const StgcCudaStep *s) {
    int major = 0, minor = 0;
    if (s->target > d->capability)
        return cuda_refuse(d, STGC_ERR_IO,
                           "the step was compiled for compute capability %d.%d (sm_%d), this GPU "
                           "has %d.%d; compile with --target sm_%d, or use another GPU",
                           (int)s->target / 10, (int)s->target % 10, (int)s->target,
                           d->capability / 10, d->capability % 10, d->capability);
    const char *version = strstr(s->ptx, ".version ");
    if (version && sscanf(version, ".version %d.%d", &major, &minor) == 2 &&
        driver_for_ptx(major, minor) > d->driver_version) {
        int need = driver_for_ptx(major, minor);
        return cuda_refuse(d, STGC_ERR_IO,
                           "the NVIDIA driver is too old: it is for CUDA %d.%d, the step (PTX "
                           "%d.%d) needs one for CUDA %d.%d or later",
                           d->driver_version / 1000, d->driver_version % 1000 / 10, major, minor,
                           need / 1000, need % 1000 / 10);
    }
    return STGC_OK;
}

static StgcStatus damaged(CudaDevice *d, uint32_t op, const char *what) {
    return cuda_refuse(d, STGC_ERR_MODEL,
                       "the compiled step is damaged: operation %" PRIu32
                       ": %s; compile the model again",
                       op, what);
}

/* Bytes from the start of an operand to its end. */
static bool reaches(int64_t at, int64_t rows, int64_t row, int64_t cols, int64_t col,
                    int64_t batches, int64_t batch, int64_t element, int64_t limit) {
    if (rows == 0 || cols == 0 || batches == 0)
        return true;
    int64_t last = (rows - 1) * row + (cols - 1) * col + (batches - 1) * batch;
    return at >= 0 && row >= 0 && col >= 0 && batch >= 0 && at + (last + 1) * element <= limit;
}

static const char *product_fault(const StgcCudaGemm *g, int64_t arena) {
    int64_t in = g->compute == 2 ? 2 : 4;
    const char *why = cublas_why_not(g);
    if (why)
        return why;
    bool inside =
        reaches(g->a, g->m, g->a_row, g->k, g->a_col, g->batches, g->a_batch, in, arena) &&
        reaches(g->b, g->k, g->b_row, g->n, g->b_col, g->batches, g->b_batch, in, arena) &&
        reaches(g->c, g->m, g->ldc, g->n, 1, g->batches, g->c_batch, 4, arena);
    return inside ? NULL : "an operand lies outside the arena";
}

static const char *launch_fault(const StgcStep *step, const StgcCudaOp *o) {
    const StgcCudaStep *s = step->cuda;
    if (o->kernel < 0 || (uint32_t)o->kernel >= s->nkernels)
        return "there is no kernel of its number";
    if (!o->grid[0] || !o->grid[1] || !o->grid[2] || o->grid[0] > INT32_MAX || o->grid[1] > 65535 ||
        o->grid[2] > 65535)
        return "its grid is none";
    for (uint32_t i = 0; i < s->kernels[o->kernel].nparams; i++) {
        const StgcCudaParam *p = &o->params[i];
        int64_t most = p->kind == STGC_CUDA_ARENA      ? step->arena_bytes
                       : p->kind == STGC_CUDA_CONSTANT ? s->constant_bytes
                                                       : INT64_MAX;
        if (p->kind < STGC_CUDA_ARENA || p->kind > STGC_CUDA_I64)
            return "a parameter's kind is unknown";
        if (p->kind <= STGC_CUDA_CONSTANT && (p->value < 0 || p->value > most))
            return "a parameter points outside its memory";
    }
    return NULL;
}

static StgcStatus check_operations(CudaDevice *d, const StgcStep *step) {
    const StgcCudaStep *s = step->cuda;
    for (uint32_t i = 0; i < s->nops; i++) {
        const StgcCudaOp *o = &s->ops[i];
        const char *why = NULL;
        if (o->kind == STGC_CUDA_LAUNCH)
            why = launch_fault(step, o);
        else if (o->kind == STGC_CUDA_GEMM)
            why = o->gemm ? product_fault(o->gemm, step->arena_bytes) : "it has no product";
        else if (o->kind == STGC_CUDA_CLEAR)
            why = o->at < 0 || o->bytes < 0 || o->bytes > step->arena_bytes - o->at
                      ? "it clears outside the arena"
                      : NULL;
        else if (o->kind != STGC_CUDA_MARK)
            why = "its kind is unknown";
        if (why)
            return damaged(d, i, why);
    }
    return STGC_OK;
}

static StgcStatus check_kernels(CudaDevice *d, const StgcCudaStep *s) {
    for (uint32_t i = 0; i < s->nkernels; i++) {
        const StgcCudaKernel *k = &s->kernels[i];
        if (k->threads < 1 || k->threads > (uint32_t)d->max_threads)
            return cuda_refuse(d, STGC_ERR_IO,
                               "kernel '%s' has %" PRIu32 " threads in a block, this GPU allows %d",
                               k->name, k->threads, d->max_threads);
        if ((uint64_t)k->shared_static + k->shared_dynamic > (uint64_t)d->shared_limit)
            return cuda_refuse(d, STGC_ERR_IO,
                               "kernel '%s' needs %" PRIu64
                               " bytes of shared memory, this GPU gives a block %d; compile with "
                               "--target sm_%d",
                               k->name, (uint64_t)k->shared_static + k->shared_dynamic,
                               d->shared_limit, d->capability);
    }
    return STGC_OK;
}

/* ---- loading ---- */

/* The log of the compiler in the driver, on one line. */
static void flatten(char *log) {
    char *to = log;
    for (const char *c = log; *c; c++)
        if ((unsigned char)*c >= 0x20)
            *to++ = *c;
        else if (to > log && to[-1] != ' ')
            *to++ = ' ';
    *to = 0;
}

static StgcStatus load_module(CudaRun *r) {
    CudaDevice *d = r->d;
    char log[2048] = "";
    unsigned options[] = {CU_JIT_ERROR_LOG, CU_JIT_ERROR_LOG_BYTES};
    void *values[] = {log, (void *)(uintptr_t)sizeof log};
    CuResult e = d->cu.cuModuleLoadDataEx(&r->module, r->step->cuda->ptx, 2, options, values);
    if (e == CU_OK)
        return STGC_OK;
    r->module = NULL;
    log[sizeof log - 1] = 0;
    flatten(log);
    if (e == CU_OUT_OF_MEMORY)
        return cuda_fail(d, e, "no memory for the step's code");
    return cuda_fail(d, e, "the driver does not accept the step's PTX%s%.600s%s", *log ? " (" : "",
                     log, *log ? ")" : "");
}

/* Above this a kernel must ask for its shared memory. */
enum { SHARED_WITHOUT_ASKING = 48 << 10 };

static StgcStatus find_kernels(CudaRun *r) {
    CudaDevice *d = r->d;
    const StgcCudaStep *s = r->step->cuda;
    for (uint32_t i = 0; i < s->nkernels; i++) {
        const StgcCudaKernel *k = &s->kernels[i];
        CuResult e = d->cu.cuModuleGetFunction(&r->functions[i], r->module, k->name);
        if (e == CU_OK && k->shared_static + k->shared_dynamic > SHARED_WITHOUT_ASKING)
            e = d->cu.cuFuncSetAttribute(r->functions[i], CU_FUNCTION_MAX_DYNAMIC_SHARED,
                                         (int)k->shared_dynamic);
        if (e != CU_OK)
            return cuda_fail(d, e, "kernel '%s' of the step cannot be used", k->name);
    }
    return STGC_OK;
}

static int64_t round_up(int64_t n) {
    return (n + 255) / 256 * 256;
}

static int64_t own_bytes(const StgcCudaStep *s) {
    return round_up(s->constant_bytes) + (int64_t)sizeof(StgcCudaFault);
}

static bool has_products(const StgcCudaStep *s) {
    bool products = false;
    for (uint32_t i = 0; i < s->nops; i++)
        products |= s->ops[i].kind == STGC_CUDA_GEMM;
    return products;
}

int64_t cuda_run_bytes(const CudaDevice *d, const StgcStep *step) {
    return own_bytes(step->cuda) + (has_products(step->cuda) ? cublas_bytes(d) : 0);
}

static StgcStatus place_constants(CudaRun *r) {
    const StgcCudaStep *s = r->step->cuda;
    StgcStatus status = cuda_alloc(r->d, own_bytes(s), "the table of constants", &r->constants);
    r->fault = r->constants + (CuAddress)round_up(s->constant_bytes);
    return status == STGC_OK ? cuda_upload(r->d, r->constants, s->constants, s->constant_bytes)
                             : status;
}

static StgcStatus check_and_load(CudaRun *r) {
    const StgcCudaStep *s = r->step->cuda;
    for (uint32_t i = 0; i < s->nops; i++)
        r->marks |= s->ops[i].kind == STGC_CUDA_MARK;
    StgcStatus status = check_target(r->d, s);
    if (status == STGC_OK)
        status = check_operations(r->d, r->step);
    if (status == STGC_OK)
        status = check_kernels(r->d, s);
    if (status == STGC_OK)
        status = load_module(r);
    if (status == STGC_OK)
        status = find_kernels(r);
    if (status == STGC_OK)
        status = place_constants(r);
    return status == STGC_OK && has_products(s) ? cublas_start(r->d) : status;
}

CudaRun *cuda_run_new(CudaDevice *d, const StgcStep *step, StgcStatus *status) {
    const StgcCudaStep *s = step->cuda;
    CudaRun *r = calloc(1, sizeof *r);
    uint32_t most = 1;
    for (uint32_t i = 0; i < s->nkernels; i++)
        most = s->kernels[i].nparams > most ? s->kernels[i].nparams : most;
    if (r) {
        r->d = d;
        r->step = step;
        r->functions = calloc((size_t)s->nkernels + 1, sizeof *r->functions);
        r->values = calloc(most, sizeof *r->values);
        r->params = calloc(most, sizeof *r->params);
    }
    if (!r || !r->functions || !r->values || !r->params)
        *status = cuda_refuse(d, STGC_ERR_RESOURCE, "no memory for a step");
    else
        *status = check_and_load(r);
    if (*status == STGC_OK)
        return r;
    cuda_run_free(r);
    return NULL;
}

static void drop_graph(CudaRun *r) {
    if (r->exec)
        r->d->cu.cuGraphExecDestroy(r->exec);
    r->exec = NULL;
}

void cuda_run_free(CudaRun *r) {
    if (!r)
        return;
    r->d->cu.cuStreamSynchronize(r->d->stream); /* nothing of it runs any more */
    drop_graph(r);
    cuda_free(r->d, r->constants);
    if (r->module)
        r->d->cu.cuModuleUnload(r->module);
    free(r->functions);
    free(r->values);
    free(r->params);
    free(r);
}

/* ---- executing ---- */

static const char *name_of(const StgcCudaOp *o) {
    return o->name && *o->name ? o->name : "unnamed";
}

static StgcStatus launch(CudaRun *r, const CudaArena *a, const StgcCudaOp *o) {
    const StgcCudaKernel *k = &r->step->cuda->kernels[o->kernel];
    CudaDevice *d = r->d;
    for (uint32_t i = 0; i < k->nparams; i++) {
        const StgcCudaParam *p = &o->params[i];
        CuAddress base = p->kind == STGC_CUDA_ARENA      ? a->base
                         : p->kind == STGC_CUDA_CONSTANT ? r->constants
                                                         : 0;
        r->values[i] = p->kind == STGC_CUDA_FAULT  ? r->fault
                       : p->kind == STGC_CUDA_NULL ? 0
                                                   : base + (uint64_t)p->value;
        r->params[i] = &r->values[i];
    }
    CuResult e = d->cu.cuLaunchKernel(r->functions[o->kernel], o->grid[0], o->grid[1], o->grid[2],
                                      k->threads, 1, 1, k->shared_dynamic, d->stream,
                                      k->nparams ? r->params : NULL, NULL);
    return e == CU_OK
               ? STGC_OK
               : cuda_fail(d, e, "kernel '%s' (%.200s) cannot be launched", k->name, name_of(o));
}

/* A step made to be measured waits for every call before the next one is said to begin. */
static StgcStatus mark_call(CudaRun *r, const StgcCudaOp *o, CudaMark mark, void *ctx) {
    StgcStatus status = cuda_wait(r->d, "a kernel of the step failed");
    if (status == STGC_OK && mark)
        mark(ctx, o->mark);
    return status;
}

static StgcStatus enqueue(CudaRun *r, const CudaArena *a, CudaMark mark, void *ctx) {
    const StgcCudaStep *s = r->step->cuda;
    CudaDevice *d = r->d;
    CuResult e = d->cu.cuMemsetD8Async(r->fault, 0xff, sizeof(StgcCudaFault), d->stream);
    if (e != CU_OK)
        return cuda_fail(d, e, "the step cannot begin");
    StgcStatus status = STGC_OK;
    for (uint32_t i = 0; i < s->nops && status == STGC_OK; i++) {
        const StgcCudaOp *o = &s->ops[i];
        switch ((StgcCudaOpKind)o->kind) {
        case STGC_CUDA_LAUNCH:
            status = launch(r, a, o);
            break;
        case STGC_CUDA_GEMM:
            status = cublas_product(d, a->base, o->gemm, name_of(o));
            break;
        case STGC_CUDA_CLEAR:
            status = cuda_zero(d, a->base + (CuAddress)o->at, o->bytes);
            break;
        case STGC_CUDA_MARK:
            status = mark_call(r, o, mark, ctx);
            break;
        }
    }
    if (status != STGC_OK)
        return status;
    e = d->cu.cuMemcpyDtoHAsync(cuda_fault_record(d), r->fault, sizeof(StgcCudaFault), d->stream);
    return e == CU_OK ? STGC_OK : cuda_fail(d, e, "the step's fault record cannot be read");
}

/* The operations as a graph; without one if the driver refuses, which is no fault. */
static void capture(CudaRun *r, const CudaArena *a) {
    CudaDevice *d = r->d;
    CuGraph graph = NULL;
    drop_graph(r);
    if (d->cu.cuStreamBeginCapture(d->stream, CU_CAPTURE_THREAD_LOCAL) != CU_OK) {
        r->no_graph = true;
        return;
    }
    StgcStatus status = enqueue(r, a, NULL, NULL);
    CuResult e = d->cu.cuStreamEndCapture(d->stream, &graph);
    if (status != STGC_OK || e != CU_OK || !graph ||
        d->cu.cuGraphInstantiateWithFlags(&r->exec, graph, 0) != CU_OK)
        r->exec = NULL;
    if (graph)
        d->cu.cuGraphDestroy(graph);
    r->no_graph = !r->exec;
    r->generation = a->generation;
}

StgcStatus cuda_run_execute(CudaRun *r, const CudaArena *a, CudaMark mark, void *ctx,
                            StgcCudaFault *fault) {
    CudaDevice *d = r->d;
    bool graph = d->graphs && !r->marks && !r->no_graph && r->executed > 0;
    StgcStatus status = STGC_OK;
    *fault = (StgcCudaFault){UINT64_MAX, UINT64_MAX};
    if (d->lost)
        return STGC_ERR_IO;
    d->error[0] = 0;
    if (graph && (!r->exec || r->generation != a->generation))
        capture(r, a);
    if (graph && r->exec) {
        CuResult e = d->cu.cuGraphLaunch(r->exec, d->stream);
        status = e == CU_OK ? STGC_OK : cuda_fail(d, e, "the step cannot be launched");
    } else {
        status = enqueue(r, a, mark, ctx);
    }
    if (status == STGC_OK)
        status = cuda_wait(d, "a kernel of the step failed");
    if (status != STGC_OK)
        return status;
    r->executed++;
    *fault = *cuda_fault_record(d);
    return STGC_OK;
}
