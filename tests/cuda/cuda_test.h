/* cuda_test.h: what the tests of the device side share: the stand-in, or with --gpu the real
 * driver; runs of the step in mini.h. */
#ifndef STGCC_TESTS_CUDA_TEST_H
#define STGCC_TESTS_CUDA_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cuda/mini.h"
#include "tests/cuda/standin.h"

enum { EXIT_SKIPPED = 77 };
static bool on_gpu;

static inline StgcCudaOptions test_options(void) {
    return on_gpu ? (StgcCudaOptions){0} : (StgcCudaOptions){.driver = STANDIN, .cublas = STANDIN};
}

/* words of STGC_PTX_EMULATOR */
static inline StgcRt *test_device(const char *words) {
    StgcCudaOptions o = test_options();
    StgcStatus status;
    char error[1024];
    setenv("STGC_PTX_EMULATOR", words, 1);
    StgcRt *rt = stgc_rt_new_cuda(&o, &status, error, sizeof error);
    if (!rt)
        fprintf(stderr, "%s\n", error);
    assert_non_null(rt);
    assert_int_equal(status, STGC_OK);
    return rt;
}

static inline StandinCounts test_counts(void) {
    StandinCounts n = {0};
    void *library = dlopen(STANDIN, RTLD_NOW | RTLD_LOCAL), *symbol;
    void (*counts)(StandinCounts *);
    assert_non_null(library);
    symbol = dlsym(library, "stgc_standin_counts");
    assert_non_null(symbol);
    memcpy(&counts, &symbol, sizeof counts);
    counts(&n);
    dlclose(library);
    return n;
}

/* Nothing is alive in the stand-in; nothing was lost or used wrongly since the last time. */
static inline void test_clean(void) {
    static int64_t leaks, misuses;
    if (on_gpu)
        return;
    StandinCounts n = test_counts();
    int64_t new_leaks = n.leaks - leaks, new_misuses = n.misuses - misuses;
    leaks = n.leaks;
    misuses = n.misuses;
    assert_int_equal(n.live, 0);
    assert_int_equal(new_leaks, 0);
    assert_int_equal(new_misuses, 0);
}

/* A call of stgc.h that must succeed. */
static inline void test_ok(Stgc *h, StgcStatus status) {
    if (status != STGC_OK)
        fprintf(stderr, "%s\n", stgc_error(h));
    assert_int_equal(status, STGC_OK);
}

static inline const StgcSlot *test_slot(const StgcRun *r, const char *name) {
    const StgcSlot *s = stgc_run_find(r, name);
    assert_non_null(s);
    return s;
}

/* Input number n: small integers of 0 and more. */
static inline void test_input(StgcRun *r, int n) {
    float *x = stgc_run_data(r, test_slot(r, "x"));
    assert_non_null(x);
    for (int i = 0; i < MINI_X; i++)
        x[i] = (float)((i * 5 + n * 3) % 4);
}

/* Every slot of both has the same bytes. */
static inline void test_same(StgcRun *got, StgcRun *want, const StgcStep *step) {
    for (uint32_t i = 0; i < step->nslots; i++) {
        const StgcSlot *s = test_slot(got, step->slots[i].name);
        const void *a = stgc_run_read(got, s), *b = stgc_run_read(want, test_slot(want, s->name));
        assert_non_null(a);
        if (memcmp(a, b, (size_t)s->bytes) != 0)
            fprintf(stderr, "slot %s differs\n", s->name);
        assert_memory_equal(a, b, s->bytes);
    }
}

/* --gpu: whether there is one; says why not. */
static inline bool test_find_gpu(int argc, char **argv) {
    on_gpu = argc > 1 && !strcmp(argv[1], "--gpu");
    if (!on_gpu)
        return true;
    StgcCudaOptions o = {0};
    StgcStatus status;
    char error[1024];
    StgcRt *rt = stgc_rt_new_cuda(&o, &status, error, sizeof error);
    if (rt)
        printf("on %s\n", stgc_rt_describe(rt));
    else
        printf("skipped: %s\n", error);
    stgc_rt_free(rt);
    return rt != NULL;
}

#endif
