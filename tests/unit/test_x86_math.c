/* exp, log, tanh and erf in f32 against libm in double, on dense samples of all floats: every
 * 1009th bit pattern, and the neighbourhoods where they change form. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "codegen/x86.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void serial(StgcRt *rt, int64_t tasks, StgcTask fn, void *env) {
    (void)rt;
    for (int64_t i = 0; i < tasks; i++)
        fn(env, i);
}

enum { BLOCK = 4096 };

/* y[i] = op(x[i]), BLOCK elements a task; x and y of n elements, n a multiple of BLOCK, in one
 * arena. */
static void apply(LOp op, float *arena, int64_t n) {
    LoopModule *m = xcalloc(1, sizeof *m);
    LoopProgram *p = loop_program_new(PROGRAM_TASK, "math");
    vec_push(&m->programs, p);
    int x = lp_buffer(p, DT_F32), y = lp_buffer(p, DT_F32);
    LVal base = lp_2(p, L_MUL, lp_task(p), lp_const_i(p, BLOCK));
    LVal i = lp_loop(p, LOOP_VECTOR, lp_const_i(p, 0), lp_const_i(p, BLOCK)),
         at = lp_2(p, L_ADD, base, i);
    lp_store(p, y, at, lp_1(p, op, lp_load(p, x, at)));
    lp_end(p);
    int64_t offsets[] = {0, n * 4};
    vec_push(&m->calls, ((LoopCall){.kind = CALL_PARALLEL,
                                    .name = "math",
                                    .program = p,
                                    .tasks = n / BLOCK,
                                    .nbuffers = 2,
                                    .buffers = offsets}));
    Diag d = {0};
    X86Code *code = x86_compile(m, NULL, NULL, NULL, &d);
    assert_non_null(code);
    assert_int_equal(code->not_vectorised, 0);
    StgcRt rt = {.parallel = serial};
    code->run(&rt, (char *)arena);
    x86_free(code);
    loop_module_free(m);
}

/* Distance in units of the last place of the exact value (of the smallest denormal below it). */
static double ulps(float got, double want) {
    if (isnan(want))
        return isnan(got) ? 0 : INFINITY;
    float w = (float)want;
    if (isinf(w) || isinf(got))
        return got == w ? 0 : isinf(got) && fabsf(w) >= 3.4028e38f ? 1 : INFINITY;
    int e;
    frexp(want, &e);
    return fabs(got - want) / ldexp(1, (e < -125 ? -125 : e) - 24);
}

static float from_bits(uint32_t b) {
    float f;
    memcpy(&f, &b, 4);
    return f;
}

static void check(LOp op, double (*exact)(double), double limit) {
    static const float near[] = {0.625f,    0.927734375f, 1,           0.70710677f, 1.41421356f,
                                 88.72284f, -87.33655f,   -103.97208f, 0x1p-126f};
    int64_t n = 0, room = (int64_t)(UINT32_MAX / 1009 + COUNT_OF(near) * 2048 + 64 + BLOCK) /
                          BLOCK * BLOCK;
    float *arena = aligned_alloc(64, (size_t)room * 8);
    for (uint64_t b = 0; b <= UINT32_MAX; b += 1009)
        arena[n++] = from_bits((uint32_t)b);
    for (int k = 0; k < COUNT_OF(near); k++) {
        uint32_t b;
        memcpy(&b, &near[k], 4);
        for (int j = -1000; j < 1000; j++)
            arena[n++] = from_bits(b + (uint32_t)j);
    }
    const float special[] = {0,  -0.0f,     INFINITY,   -INFINITY,     NAN,           1,
                             -1, 0x1p-149f, -0x1p-149f, 3.4028235e38f, -3.4028235e38f};
    for (int k = 0; k < COUNT_OF(special); k++)
        arena[n++] = special[k];
    while (n < room)
        arena[n++] = 1;
    apply(op, arena, room);
    double worst = 0;
    float at = 0;
    for (int64_t i = 0; i < room; i++) {
        double u = ulps(arena[room + i], exact((double)arena[i]));
        if (u > worst)
            worst = u, at = arena[i];
    }
    print_message("worst %.3f ulp at %.9g\n", worst, (double)at);
    assert_true(worst <= limit);
    free(arena);
}

static void exp_f32(void **state) {
    (void)state;
    check(L_EXP, exp, 1.0);
}

static void log_f32(void **state) {
    (void)state;
    check(L_LOG, log, 1.0);
}

static void tanh_f32(void **state) {
    (void)state;
    check(L_TANH, tanh, 1.3);
}

static void erf_f32(void **state) {
    (void)state;
    check(L_ERF, erf, 1.0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exp_f32),
        cmocka_unit_test(log_f32),
        cmocka_unit_test(tanh_f32),
        cmocka_unit_test(erf_f32),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
