/* nvptx_gemm_help.h: kernels of matrix products in the PTX emulator (not a GPU), for
 * test_nvptx_gemm.c and test_nvptx_dot.c: memory, launches, whole schedules, ptxas. */
#ifndef STGCC_TESTS_NVPTX_GEMM_HELP_H
#define STGCC_TESTS_NVPTX_GEMM_HELP_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codegen/nvptx_gemm.h"
#include "codegen/nvptx_units.h"
#include "tests/ptx/emulator.h"
#include "tests/ptx/tools.h"

static uint64_t help_seed = 1;

static inline float uniform(void) {
    help_seed = help_seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(help_seed >> 32) / 2147483648.0f;
}

static inline float *random_floats(int64_t n) {
    float *p = malloc((size_t)(n + 1) * sizeof *p);
    assert_non_null(p);
    for (int64_t i = 0; i < n; i++)
        p[i] = uniform();
    return p;
}

static inline NvptxTarget target_of(const char *name) {
    Diag d = {0};
    NvptxTarget t;
    assert_true(nvptx_target_find(&t, name, &d));
    return t;
}

/* ---- memory ---- */

static PtxDevice *device;

/* seed 0: everything in order. Odd seeds: asynchronous copies land late. */
static inline void device_options(uint64_t seed) {
    PtxOptions o = ptx_options(80);
    o.seed = seed;
    o.async_late = seed % 2 != 0;
    o.budget = 1 << 24; /* warp instructions: mutants may never end */
    if (device)
        ptx_device_set(device, &o);
    else
        device = ptx_device_new(&o);
    assert_non_null(device);
}

/* Exactly these bytes, so that an access beside them is seen; NULL: nobody wrote them yet. */
static inline uint64_t upload(const void *p, int64_t bytes) {
    uint64_t at = ptx_malloc(device, (size_t)(bytes > 0 ? bytes : 4));
    assert_true(at != 0);
    if (p && bytes > 0)
        assert_true(ptx_write(device, at, p, (size_t)bytes));
    return at;
}

static inline void download(void *to, uint64_t from, int64_t bytes) {
    if (!ptx_read(device, to, from, (size_t)bytes, true))
        fail_msg("%s", ptx_error(device));
}

/* What is wrong with a result; where problems are expected, of mutants, they are counted. */
static bool problems_expected;
static int problems;

#define problem(...) \
    do { \
        problems++; \
        if (!problems_expected) \
            fail_msg(__VA_ARGS__); \
    } while (0)

static inline void launch(PtxModule *module, const char *name, int64_t ctas, unsigned threads,
                          unsigned dynamic, const uint64_t *params, int n) {
    PtxKernel *k = ptx_kernel(module, name);
    if (!k)
        fail_msg("no kernel %s", name);
    PtxKernelInfo info;
    ptx_kernel_info(k, &info);
    assert_int_equal(info.nparams, n);
    assert_int_equal(info.local_bytes, 0);
    for (int i = 0; i < n; i++)
        assert_true(info.param_offset[i] == 8 * i && info.param_bytes[i] == 8);
    const unsigned grid[3] = {(unsigned)ctas, 1, 1}, block[3] = {threads, 1, 1};
    if (!ptx_launch(device, k, grid, block, dynamic, params, (size_t)n * sizeof *params))
        problem("%s", ptx_error(device));
}

/* ---- a schedule ---- */

/* What compiled the last module; freed with help_free. */
typedef struct Compiled {
    NvptxCode *code;
    const StgcCudaStep *step;
    PtxModule *module; /* NULL: not loaded */
} Compiled;

static inline Compiled compile_calls(LoopModule *m, const NvptxTarget *t) {
    Diag d = {0};
    const LoopModule *modules[] = {m};
    Compiled c = {.code = nvptx_compile(modules, 1, t, NULL, &d)};
    assert_non_null(c.code);
    c.step = nvptx_step(c.code, 0);
    return c;
}

static inline void load_compiled(Compiled *c) {
    c->module = ptx_load(device, c->step->ptx, (size_t)c->step->ptx_bytes);
    if (!c->module)
        fail_msg("%s", ptx_error(device));
}

static inline void free_compiled(Compiled *c) {
    if (c->module)
        ptx_unload(c->module);
    nvptx_free(c->code);
}

static inline uint64_t param_value(const StgcCudaParam *p, uint64_t arena, uint64_t constants,
                                   uint64_t fault) {
    switch (p->kind) {
    case STGC_CUDA_ARENA:
        return arena + (uint64_t)p->value;
    case STGC_CUDA_CONSTANT:
        return constants + (uint64_t)p->value;
    case STGC_CUDA_FAULT:
        return fault;
    case STGC_CUDA_NULL:
        return 0;
    default:
        return (uint64_t)p->value;
    }
}

/* Runs all operations with this arena. *flops: fused multiply-adds done, times two. */
static inline void run_schedule(const Compiled *c, uint64_t arena, uint64_t *flops) {
    const StgcCudaStep *s = c->step;
    uint64_t constants = upload(s->constants, s->constant_bytes), none = ~(uint64_t)0;
    uint64_t fault = upload(&none, sizeof none), in[256];
    for (uint32_t i = 0; i < s->nops; i++) {
        const StgcCudaOp *op = &s->ops[i];
        if (op->kind == STGC_CUDA_CLEAR)
            assert_true(ptx_fill(device, arena + (uint64_t)op->at, 0, (size_t)op->bytes));
        else
            assert_int_equal(op->kind, STGC_CUDA_LAUNCH);
        if (op->kind != STGC_CUDA_LAUNCH)
            continue;
        const StgcCudaKernel *k = &s->kernels[op->kernel];
        for (uint32_t p = 0; p < k->nparams; p++)
            in[p] = param_value(&op->params[p], arena, constants, fault);
        launch(c->module, k->name, op->grid[0], k->threads, k->shared_dynamic, in, (int)k->nparams);
        PtxCounts counts;
        ptx_counts(device, &counts);
        if (flops)
            *flops += counts.fma_flops + counts.mma_flops;
    }
    download(&none, fault, sizeof none);
    assert_true(none == ~(uint64_t)0);
    ptx_free(device, constants);
    ptx_free(device, fault);
}

/* ---- ptxas ---- */

/* Assembles for every `step`th target; fails on spills, stack, local memory and warnings. Says so
 * and returns where there is no ptxas. */
static inline void check_ptxas(const char *ptx, int step) {
    enum { MOST_KERNELS = 256, LOG = 1 << 18 };
    static const int targets[] = {80, 86, 89, 90, 100, 120};
    char path[512];
    if (!ptxas_find(path)) {
        print_message("SKIPPED: no ptxas here, registers and spills are not checked\n");
        return;
    }
    assert_null(strstr(ptx, ".local"));
    PtxasKernel *k = calloc(MOST_KERNELS, sizeof *k);
    char *log = calloc(LOG, 1);
    for (int i = 0; i < COUNT_OF(targets); i += step) {
        int most = 0,
            n = ptxas_check(ptx, strlen(ptx), targets[i], NULL, k, MOST_KERNELS, log, LOG);
        if (n <= 0)
            fail_msg("sm_%d: %s", targets[i], log);
        for (int j = 0; j < n; j++) {
            if (k[j].spill_stores || k[j].spill_loads || k[j].stack)
                fail_msg("sm_%d: %s: %d bytes of stack, %d and %d spilled", targets[i], k[j].name,
                         k[j].stack, k[j].spill_stores, k[j].spill_loads);
            assert_true(k[j].shared <= 48 * 1024);
            most = k[j].registers > most ? k[j].registers : most;
        }
        print_message("sm_%d: %d kernels, at most %d registers, no spills\n", targets[i], n, most);
    }
    free(k);
    free(log);
}

#endif
