/* nvptx_help.h: device steps on the PTX emulator, call by call against the same loop programs as
 * machine code.
 *
 * A module is compiled twice, for a GPU and for this CPU. The CPU runs it; before each call it
 * tells (StgcRt.mark), and then the previous call's operations run on the emulator, on the memory
 * that call found. Every word that either changed must agree: integers exactly, floats within a
 * tolerance of the largest value there (or of 1e-3). The CPU's bytes then go to the device, so that
 * each call is judged alone. */
#ifndef STGCC_TESTS_NVPTX_HELP_H
#define STGCC_TESTS_NVPTX_HELP_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "codegen/loop_program.h"
#include "codegen/nvptx_code.h"
#include "codegen/x86.h"
#include "runtime/runtime.h"
#include "tests/ptx/emulator.h"

/* ---- a device step on the emulator ---- */

typedef struct Gpu {
    const StgcCudaStep *step;
    PtxDevice *dev;
    PtxModule *module;
    uint64_t arena, constants, fault;
    uint64_t instructions;
} Gpu;

static uint64_t gpu_seed; /* order of threads; 0: ascending */

static inline void gpu_check(const Gpu *g, bool ok, const char *what) {
    if (!ok)
        fail_msg("%s: %s", what, ptx_error(g->dev));
}

static inline void gpu_clear_fault(Gpu *g) {
    StgcCudaFault none;
    memset(&none, 0xff, sizeof none);
    gpu_check(g, ptx_write(g->dev, g->fault, &none, sizeof none), "fault record");
}

static inline Gpu gpu_new(const StgcCudaStep *s, int64_t arena_bytes) {
    PtxOptions o = ptx_options(s->target);
    o.seed = gpu_seed;
    Gpu g = {.step = s, .dev = ptx_device_new(&o)};
    assert_non_null(g.dev);
    g.module = ptx_load(g.dev, s->ptx, (size_t)s->ptx_bytes);
    gpu_check(&g, g.module != NULL, "loading");
    g.arena = ptx_malloc(g.dev, (size_t)(arena_bytes ? arena_bytes : 1));
    g.constants = ptx_malloc(g.dev, (size_t)(s->constant_bytes ? s->constant_bytes : 1));
    g.fault = ptx_malloc(g.dev, sizeof(StgcCudaFault));
    gpu_check(&g, g.arena && g.constants && g.fault, "memory");
    if (s->constant_bytes)
        ptx_write(g.dev, g.constants, s->constants, (size_t)s->constant_bytes);
    gpu_clear_fault(&g);
    return g;
}

static inline void gpu_free(Gpu *g) {
    ptx_unload(g->module);
    ptx_free(g->dev, g->arena);
    ptx_free(g->dev, g->constants);
    ptx_free(g->dev, g->fault);
    ptx_device_free(g->dev);
}

static inline void gpu_launch(Gpu *g, const StgcCudaOp *op) {
    const StgcCudaKernel *k = &g->step->kernels[op->kernel];
    uint64_t params[256];
    assert_true(k->nparams <= 256);
    for (uint32_t i = 0; i < k->nparams; i++) {
        const StgcCudaParam *p = &op->params[i];
        params[i] = p->kind == STGC_CUDA_ARENA      ? g->arena + (uint64_t)p->value
                    : p->kind == STGC_CUDA_CONSTANT ? g->constants + (uint64_t)p->value
                    : p->kind == STGC_CUDA_FAULT    ? g->fault
                    : p->kind == STGC_CUDA_NULL     ? 0
                                                    : (uint64_t)p->value;
    }
    PtxKernel *kernel = ptx_kernel(g->module, k->name);
    if (!kernel)
        fail_msg("no kernel %s in the text", k->name);
    PtxKernelInfo info;
    ptx_kernel_info(kernel, &info);
    assert_int_equal(info.nparams, k->nparams);
    assert_int_equal(info.max_threads, k->threads);
    assert_true((uint32_t)info.shared_static <= k->shared_static);
    assert_int_equal(info.local_bytes, 0);
    const unsigned block[3] = {k->threads, 1, 1};
    bool ok = ptx_launch(g->dev, kernel, op->grid, block, k->shared_dynamic, params,
                         8 * (size_t)k->nparams);
    if (!ok)
        fail_msg("%s (%s): %s", k->name, op->name, ptx_error(g->dev));
    PtxCounts c;
    ptx_counts(g->dev, &c);
    g->instructions += c.instructions;
}

static inline int64_t span(int64_t rows, int64_t row, int64_t cols, int64_t col) {
    return (rows - 1) * row + (cols - 1) * col + 1;
}

/* cuBLAS' part, in double. */
static inline void gpu_gemm(Gpu *g, const StgcCudaGemm *t) {
    for (int64_t b = 0; b < t->batches; b++) {
        uint64_t aa = g->arena + (uint64_t)(t->a + 4 * b * t->a_batch),
                 ba = g->arena + (uint64_t)(t->b + 4 * b * t->b_batch),
                 ca = g->arena + (uint64_t)(t->c + 4 * b * t->c_batch);
        const float *x = ptx_host_view(g->dev, aa, 4 * (size_t)span(t->m, t->a_row, t->k, t->a_col),
                                       false),
                    *y = ptx_host_view(g->dev, ba, 4 * (size_t)span(t->k, t->b_row, t->n, t->b_col),
                                       false);
        float *z = ptx_host_view(g->dev, ca, 4 * (size_t)span(t->m, t->ldc, t->n, 1), true);
        assert_true(x && y && z);
        for (int64_t i = 0; i < t->m; i++)
            for (int64_t j = 0; j < t->n; j++) {
                double sum = t->accumulate ? (double)z[i * t->ldc + j] : 0;
                for (int64_t k = 0; k < t->k; k++)
                    sum += (double)x[i * t->a_row + k * t->a_col] *
                           (double)y[k * t->b_row + j * t->b_col];
                z[i * t->ldc + j] = (float)sum;
            }
    }
}

static inline void gpu_op(Gpu *g, const StgcCudaOp *op) {
    if (op->kind == STGC_CUDA_LAUNCH)
        gpu_launch(g, op);
    else if (op->kind == STGC_CUDA_GEMM)
        gpu_gemm(g, op->gemm);
    else if (op->kind == STGC_CUDA_CLEAR)
        gpu_check(g, ptx_fill(g->dev, g->arena + (uint64_t)op->at, 0, (size_t)op->bytes), "clear");
}

/* The text of the recorded fault, or NULL. */
static inline const char *gpu_fault(Gpu *g, int64_t *where) {
    StgcCudaFault f;
    gpu_check(g, ptx_read(g->dev, &f, g->fault, sizeof f, true), "fault record");
    if (f.key == UINT64_MAX)
        return NULL;
    uint64_t what = f.key >> 48;
    assert_true(what < g->step->nfaults);
    *where = (int64_t)(f.key << 16) >> 16;
    return g->step->fault_texts[what];
}

/* ---- both, call by call ---- */

typedef struct Twin {
    StgcRt *rt;
    const LoopModule *m;
    const char *what; /* for messages */
    double tolerance;
    Gpu gpu;
    char *arena, *before, *device;
    uint32_t op; /* next operation */
    double worst;
} Twin;

static Twin *twin_now;

/* The storage type at a byte of the arena, going by the buffers of the call; DT_F32 of products. */
static inline DType twin_type(const LoopCall *c, int64_t at) {
    int64_t base = c->gemm_c >= 0 && c->gemm_c <= at ? c->gemm_c : -1;
    DType t = DT_F32;
    for (int i = 0; c->program && i < c->nbuffers; i++)
        if (c->buffers[i] <= at && c->buffers[i] >= base) {
            base = c->buffers[i];
            t = c->program->buffers.at[i];
        }
    return t;
}

static inline double twin_value(DType t, const char *at) {
    Tensor x = {.dtype = t, .rank = 1, .dims = {1}, .data = (void *)at};
    return tensor_get_f(&x, 0);
}

static inline bool twin_is_float(DType t) {
    return t == DT_F32 || t == DT_F64 || t == DT_F16 || t == DT_BF16;
}

/* Where token_dot works: layouts differ. */
static inline bool twin_is_scratch(const LoopCall *c, int64_t at) {
    if (c->kind != CALL_TOKEN_DOT || c->dot_scratch < 0)
        return false;
    int64_t n = stgc_token_dot_scratch(c->dot.groups, c->dot.rows, c->dot.in, c->dot.out);
    return at >= c->dot_scratch && at < c->dot_scratch + n;
}

static inline void twin_compare_at(Twin *w, const LoopCall *c, int64_t at, DType t, double scale) {
    const char *cpu = w->arena + at, *gpu = w->device + at;
    if (!twin_is_float(t)) {
        Tensor x = {.dtype = t, .rank = 1, .dims = {1}, .data = (void *)cpu}, y = x;
        y.data = (void *)gpu;
        fail_msg("%s: %s: byte %lld (%s): %lld on the emulator, %lld on the CPU", w->what, c->name,
                 (long long)at, dtype_name(t), (long long)tensor_get_i(&y, 0),
                 (long long)tensor_get_i(&x, 0));
    }
    double a = twin_value(t, cpu), b = twin_value(t, gpu), off = fabs(a - b) / scale;
    double least = t == DT_F16 ? 1e-3 : t == DT_BF16 ? 8e-3 : w->tolerance;
    if ((isnan(a) && isnan(b)) || a == b)
        return;
    if (!(off <= (least > w->tolerance ? least : w->tolerance)))
        fail_msg("%s: %s: byte %lld (%s): %.9g on the emulator, %.9g on the CPU", w->what, c->name,
                 (long long)at, dtype_name(t), b, a);
    if (off > w->worst)
        w->worst = off;
}

/* Nothing happened to these bytes. */
static inline bool twin_quiet(const Twin *w, int64_t at, int64_t n) {
    return !memcmp(w->arena + at, w->before + at, (size_t)n) &&
           !memcmp(w->arena + at, w->device + at, (size_t)n);
}

enum { TWIN_BLOCK = 256 };

static inline void twin_compare(Twin *w, const LoopCall *c) {
    int64_t n = w->m->arena_bytes;
    gpu_check(&w->gpu, ptx_read(w->gpu.dev, w->device, w->gpu.arena, (size_t)n, false), "arena");
    double scale = 1e-3; /* a result that should be 0 is what rounding its operands leaves */
    for (int64_t at = 0; at + 4 <= n; at += 4) {
        if (at % TWIN_BLOCK == 0 && at + TWIN_BLOCK <= n && twin_quiet(w, at, TWIN_BLOCK)) {
            at += TWIN_BLOCK - 4;
            continue;
        }
        DType t = twin_type(c, at);
        if (t != DT_F32 || twin_quiet(w, at, 4))
            continue;
        double v = fabs(twin_value(t, w->arena + at));
        scale = isfinite(v) && v > scale ? v : scale;
    }
    for (int64_t at = 0; at < n;) {
        if (at % TWIN_BLOCK == 0 && at + TWIN_BLOCK <= n && twin_quiet(w, at, TWIN_BLOCK)) {
            at += TWIN_BLOCK;
            continue;
        }
        DType t = twin_type(c, at);
        int size = dtype_bytes(t);
        bool same = !memcmp(w->arena + at, w->device + at, (size_t)size);
        bool untouched = !memcmp(w->arena + at, w->before + at, (size_t)size) &&
                         !ptx_is_initialised(w->gpu.dev, w->gpu.arena + (uint64_t)at, (size_t)size);
        double of = t == DT_F64 ? fabs(twin_value(t, w->arena + at)) + 1e-300 : scale;
        if (!same && !untouched && !twin_is_scratch(c, at))
            twin_compare_at(w, c, at, t, isfinite(of) ? of : 1);
        at += size;
    }
}

/* The CPU's bytes to the device, where the call changed either. */
static inline void twin_copy(Twin *w) {
    int64_t n = w->m->arena_bytes;
    for (int64_t at = 0, to; at < n; at = to + 1) {
        if (at % TWIN_BLOCK == 0 && at + TWIN_BLOCK <= n && twin_quiet(w, at, TWIN_BLOCK)) {
            to = at + TWIN_BLOCK - 1;
            continue;
        }
        for (to = at; to < n; to++) {
            bool changed = w->arena[to] != w->before[to];
            if (!changed && (w->arena[to] == w->device[to] ||
                             !ptx_is_initialised(w->gpu.dev, w->gpu.arena + (uint64_t)to, 1)))
                break;
        }
        if (to > at)
            ptx_write(w->gpu.dev, w->gpu.arena + (uint64_t)at, w->arena + at, (size_t)(to - at));
    }
    memcpy(w->before, w->arena, (size_t)n);
}

static inline void twin_mark(StgcRt *rt, int64_t call) {
    Twin *w = twin_now;
    const StgcCudaStep *s = w->gpu.step;
    (void)rt;
    if (call > 0) {
        while (w->op < s->nops && s->ops[w->op].kind != STGC_CUDA_MARK)
            gpu_op(&w->gpu, &s->ops[w->op++]);
        twin_compare(w, &w->m->calls.at[call - 1]);
        twin_copy(w);
    }
    assert_true(w->op < s->nops && s->ops[w->op].mark == call);
    w->op++;
}

/* PTX as the lint wants it, and as ptxas takes it where there is one (quiet where there is none:
 * the gate is tests/unit/test_nvptx_ptxas.c). */
static inline void gpu_lint(const StgcCudaStep *s, const char *what) {
    FILE *f = tmpfile();
    assert_non_null(f);
    int n = ptx_lint(s->ptx, (size_t)s->ptx_bytes, s->lowered, f);
    if (n) {
        char line[512] = "";
        rewind(f);
        if (!fgets(line, sizeof line, f))
            line[0] = 0;
        fclose(f);
        fail_msg("%s: %d problems of the PTX, first: %s", what, n, line);
    }
    fclose(f);
}

static inline NvptxCode *gpu_compile(const LoopModule *m, const char *target, const char *what) {
    Diag d = {.subject = what};
    NvptxTarget t;
    assert_true(nvptx_target_find(&t, target, &d));
    NvptxCode *code = nvptx_compile(&m, 1, &t, NULL, &d);
    if (!code) {
        diag_print(&d, stderr, true);
        fail_msg("%s: not compiled for %s", what, target);
    }
    diag_free(&d);
    gpu_lint(nvptx_step(code, 0), what);
    return code;
}

/* Runs the module on both. `arena` holds what it starts from and gets the CPU's results; bytes that
 * are `given` (one flag a byte, NULL: all) count as written. */
static inline double twin_run(LoopModule *m, char *arena, const char *given, const char *what,
                              double tolerance) {
    m->marks = true;
    Diag d = {0};
    NvptxCode *code = gpu_compile(m, "sm_80", what);
    X86Code *x86 = x86_compile(m, NULL, NULL, NULL, &d);
    assert_non_null(x86);
    size_t n = (size_t)m->arena_bytes;
    Twin w = {.rt = stgc_rt_new(1),
              .m = m,
              .what = what,
              .tolerance = tolerance,
              .gpu = gpu_new(nvptx_step(code, 0), m->arena_bytes),
              .arena = arena,
              .before = xcalloc(n + 1, 1),
              .device = xcalloc(n + 8, 1)};
    for (size_t at = 0; at < n; at++)
        if (!given || given[at])
            ptx_write(w.gpu.dev, w.gpu.arena + at, arena + at, 1);
    memcpy(w.before, arena, n);
    w.rt->mark = twin_mark;
    twin_now = &w;
    x86->run(w.rt, arena);
    assert_int_equal(w.op, w.gpu.step->nops);
    gpu_free(&w.gpu);
    stgc_rt_free(w.rt);
    free(w.before);
    free(w.device);
    x86_free(x86);
    nvptx_free(code);
    diag_free(&d);
    return w.worst;
}

#endif
