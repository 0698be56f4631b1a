/* Steps written by hand: initial values, sharing, faults, memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "runtime/runtime.h"

static const float start[4] = {1, 2, 3, 4};

/* grad += x; faults where x is negative. Offsets: w 0, grad 64, x 128. */
static void micro(StgcRt *rt, char *arena) {
    float *grad = (float *)(void *)(arena + 64), *x = (float *)(void *)(arena + 128);
    for (int i = 3; i >= 0; i--) {
        if (x[i] < 0)
            rt->fault(rt, "label out of range", i, (int64_t)x[i]);
        grad[i] += x[i];
    }
}

/* w -= grad; grad = 0, with the layout of micro. */
static void update(StgcRt *rt, char *arena) {
    float *w = (float *)(void *)arena, *grad = (float *)(void *)(arena + 64);
    for (int i = 0; i < 4; i++) {
        w[i] -= grad[i];
        grad[i] = 0;
    }
}

/* The same with grad first. */
static void update_swapped(StgcRt *rt, char *arena) {
    float *grad = (float *)(void *)arena, *w = (float *)(void *)(arena + 64);
    for (int i = 0; i < 4; i++) {
        w[i] -= grad[i];
        grad[i] = 0;
    }
}

static const StgcSlot micro_slots[] = {
    {"w", STGC_SLOT_PARAM, STGC_F32, 1, {4}, 0, 16, start},
    {"w_grad", STGC_SLOT_GRAD, STGC_F32, 1, {4}, 64, 16, NULL},
    {"x", STGC_SLOT_INPUT, STGC_F32, 1, {4}, 128, 16, NULL},
};
static const StgcSlot swapped_slots[] = {
    {"w_grad", STGC_SLOT_GRAD, STGC_F32, 1, {4}, 0, 16, NULL},
    {"w", STGC_SLOT_PARAM, STGC_F32, 1, {4}, 64, 16, start},
};
static const StgcSlot wrong_slots[] = {
    {"w", STGC_SLOT_PARAM, STGC_F32, 1, {2}, 0, 8, start},
};
static const StgcStep micro_step = {
    STGC_STEP_VERSION, 3, micro_slots, 128, 192, 64, micro, "", 0, NULL, NULL};
static const StgcStep update_step = {
    STGC_STEP_VERSION, 2, micro_slots, 128, 10 << 20, 64, update, "", 0, NULL, NULL};
static const StgcStep swapped_step = {
    STGC_STEP_VERSION, 2, swapped_slots, 128, 128, 64, update_swapped, "", 0, NULL, NULL};
static const StgcStep wrong_step = {
    STGC_STEP_VERSION, 1, wrong_slots, 64, 64, 64, update, "", 0, NULL, NULL};
static const StgcStep old_step = {STGC_STEP_VERSION + 1, 0, NULL, 0, 64, 64, update, "", 0, NULL, NULL};

static float *data(StgcRun *r, const char *name) {
    const StgcSlot *s = stgc_run_find(r, name);
    assert_non_null(s);
    return stgc_run_data(r, s);
}

static void initial_values(void **state) {
    StgcRt *rt = stgc_rt_new(1);
    StgcRun *r = stgc_run_new(rt, &micro_step);
    assert_memory_equal(data(r, "w"), start, sizeof start);
    for (int i = 0; i < 4; i++)
        assert_true(data(r, "w_grad")[i] == 0);
    assert_null(stgc_run_find(r, "no such slot"));
    assert_int_equal((uintptr_t)data(r, "w") % 64, 0);
    assert_int_equal(stgc_run_peak_bytes(r), 192);
    assert_true(stgc_run_touched_bytes(r) > 0);
    stgc_run_free(r);
    stgc_rt_free(rt);
}

/* Two micro steps and an update, twice, whichever way the second step is laid out. */
static void shared_values(const StgcStep *second) {
    StgcRt *rt = stgc_rt_new(2);
    StgcRun *a = stgc_run_new(rt, &micro_step), *b = stgc_run_new_shared(rt, second, a);
    assert_non_null(b);
    for (int round = 1; round <= 2; round++) {
        for (int i = 0; i < 2; i++) {
            for (int j = 0; j < 4; j++)
                data(a, "x")[j] = (float)j;
            assert_int_equal(stgc_run_step(a), STGC_OK);
        }
        assert_int_equal(stgc_run_step(b), STGC_OK);
        for (int j = 0; j < 4; j++) {
            assert_true(data(a, "w")[j] == start[j] - (float)(2 * round * j));
            assert_true(data(b, "w")[j] == start[j] - (float)(2 * round * j));
            assert_true(data(a, "w_grad")[j] == 0);
        }
    }
    data(b, "w")[0] = 77; /* written through one, seen by the other */
    assert_true(data(a, "w")[0] == 77);
    data(a, "w")[0] = 78;
    stgc_run_free(a);
    assert_true(data(b, "w")[0] == 78); /* outlives the run that had it last */
    stgc_run_free(b);
    stgc_rt_free(rt);
}

static void shared_alike(void **state) {
    shared_values(&update_step);
}

static void shared_differently(void **state) {
    shared_values(&swapped_step);
}

static void faults(void **state) {
    StgcRt *rt = stgc_rt_new(1);
    StgcRun *r = stgc_run_new(rt, &micro_step);
    data(r, "x")[3] = -5;
    data(r, "x")[1] = -9;
    assert_int_equal(stgc_run_step(r), STGC_ERR_DATA);
    assert_string_equal(stgc_run_error(r),
                        "batch: error: label out of range at position 1, found -9");
    memset(data(r, "x"), 0, 16);
    assert_int_equal(stgc_run_step(r), STGC_OK);
    assert_string_equal(stgc_run_error(r), "");
    stgc_run_free(r);
    stgc_rt_free(rt);
}

static void steps_that_do_not_fit(void **state) {
    StgcRt *rt = stgc_rt_new(1);
    StgcRun *a = stgc_run_new(rt, &micro_step), *b = stgc_run_new_shared(rt, &wrong_step, a);
    assert_int_equal(stgc_run_step(b), STGC_ERR_MODEL);
    assert_non_null(strstr(stgc_run_error(b), "'w'"));
    assert_int_equal(stgc_run_step(a), STGC_OK);
    stgc_run_free(b);
    stgc_run_free(a);
    StgcRun *old = stgc_run_new(rt, &old_step);
    assert_int_equal(stgc_run_step(old), STGC_ERR_MODEL);
    assert_non_null(strstr(stgc_run_error(old), "it has version 4, this runtime expects 3"));
    stgc_run_free(old);
    stgc_rt_free(rt);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(initial_values), cmocka_unit_test(shared_alike),
        cmocka_unit_test(shared_differently), cmocka_unit_test(faults),
        cmocka_unit_test(steps_that_do_not_fit)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
