/* Teams of threads: every way a program can be shared out (threads, warps, CTAs, rows to warps),
 * every accumulation, local arrays in shared memory, faults, branches and recurrences, at odd
 * sizes, with the emulator's race, barrier and initialisation checks on and threads in several
 * orders. */
#include "nvptx_help.h"

enum { MOST = 4096 };

static LVal ci(LoopProgram *p, int64_t v) {
    return lp_const_i(p, v);
}

/* One call of `tasks` tasks on an arena of n buffers of MOST cells of 8 bytes, filled with small
 * numbers of the buffer's type. */
static void run_tasks(LoopProgram *p, int64_t tasks, const char *what) {
    for (int order = 0; order < 3; order++) {
        LoopModule *m = xcalloc(1, sizeof *m);
        int n = p->buffers.n;
        int64_t *offsets = arena_alloc(&m->arena, sizeof *offsets * (size_t)n);
        char *arena = aligned_alloc(64, (size_t)n * MOST * 8);
        for (int b = 0; b < n; b++) {
            offsets[b] = (int64_t)b * MOST * 8;
            Tensor t = {
                .dtype = p->buffers.at[b], .rank = 1, .dims = {MOST}, .data = arena + offsets[b]};
            memset(t.data, 0, MOST * 8);
            for (int i = 0; i < MOST; i++)
                tensor_set_f(&t, i, (double)((i * 37 + b * 11 + i / 7) % 23) / 4 - 2);
        }
        LoopCall c = {.kind = CALL_PARALLEL,
                      .name = what,
                      .program = p,
                      .tasks = tasks,
                      .nbuffers = n,
                      .buffers = offsets,
                      .gemm_c = -1,
                      .dot_scratch = -1};
        vec_push(&m->calls, c);
        m->arena_bytes = (int64_t)n * MOST * 8;
        gpu_seed = (uint64_t)order * 7919;
        twin_run(m, arena, NULL, what, 1e-6);
        gpu_seed = 0;
        free(arena);
        loop_module_free(m);
    }
    loop_program_free(p);
}

static const int64_t sizes[] = {1, 2, 3, 7, 31, 32, 33, 64, 65, 129, 1000};

/* ---- accumulations ---- */

static LVal combine(LoopProgram *p, int which, LVal sum, LVal v) {
    static const LOp ops[] = {L_ADD, L_MIN, L_MAX};
    if (which == 3) /* through fma */
        return lp_type(p, v) == LT_I64 ? lp_2(p, L_SUB, sum, v) : lp_op(p, L_FMA, v, v, sum);
    return lp_2(p, ops[which], sum, v);
}

/* y[task] = v0 op x[task*size ..], and again from what came out, so that everybody must know it */
static void accumulate(DType t, int which, int64_t size, int64_t tasks) {
    LoopProgram *p = loop_program_new(PROGRAM_TASK, "accumulate");
    int x = lp_buffer(p, t), y = lp_buffer(p, t);
    LVal lo = lp_2(p, L_MUL, lp_task(p), ci(p, size)), hi = lp_2(p, L_ADD, lo, ci(p, size));
    int sum = lp_var(p, loop_storage_type(t), lp_load(p, x, lo));
    for (int twice = 0; twice < 2; twice++) {
        LVal i = lp_loop(p, LOOP_VECTOR, lo, hi), v = lp_load(p, x, i);
        LVal base = twice ? lp_load(p, y, lp_task(p)) : v;
        lp_set(p, sum,
               combine(p, which, lp_get(p, sum), lp_2(p, L_ADD, v, lp_2(p, L_SUB, base, base))));
        lp_end(p);
        lp_store(p, y, lp_task(p), lp_get(p, sum));
    }
    run_tasks(p, tasks, "accumulate");
}

static void test_accumulations(void **state) {
    (void)state;
    static const DType types[] = {DT_F32, DT_F64, DT_I64};
    for (int t = 0; t < COUNT_OF(types); t++)
        for (int which = 0; which < 4; which++)
            for (int s = t; s < COUNT_OF(sizes); s += 3)
                accumulate(types[t], which, sizes[s], s % 2 ? 1 : 3);
}

/* Two variables in one loop, of different types. */
static void test_two_sums(void **state) {
    (void)state;
    for (int s = 0; s < COUNT_OF(sizes); s += 2) {
        LoopProgram *p = loop_program_new(PROGRAM_TASK, "two");
        int x = lp_buffer(p, DT_F32), y = lp_buffer(p, DT_F32), k = lp_buffer(p, DT_I64);
        int sum = lp_var(p, LT_F32, lp_const_f(p, LT_F32, 1)), at = lp_var(p, LT_I64, ci(p, 99999));
        LVal i = lp_loop(p, LOOP_VECTOR, ci(p, 0), ci(p, sizes[s])), v = lp_load(p, x, i);
        lp_set(p, sum, lp_2(p, L_MAX, lp_get(p, sum), v));
        lp_set(
            p, at,
            lp_2(p, L_MIN, lp_get(p, at),
                 lp_op(p, L_SELECT, lp_2(p, L_LT, v, lp_const_f(p, LT_F32, 0)), i, ci(p, 99999))));
        lp_end(p);
        lp_store(p, y, ci(p, 0), lp_get(p, sum));
        lp_store(p, k, ci(p, 0), lp_get(p, at));
        run_tasks(p, 1, "two sums");
    }
}

/* ---- local arrays ---- */

/* local[i] = x; then y[i] = local[size-1-i] (another thread's), twice */
static void mirror(int64_t size, int64_t tasks, LType t) {
    LoopProgram *p = loop_program_new(PROGRAM_TASK, "mirror");
    DType d = t == LT_F32 ? DT_F32 : t == LT_F64 ? DT_F64 : DT_I64;
    int x = lp_buffer(p, d), y = lp_buffer(p, d), local = lp_local(p, t, size);
    LVal first = lp_2(p, L_MUL, lp_task(p), ci(p, size));
    for (int twice = 0; twice < 2; twice++) {
        LVal i = lp_loop(p, LOOP_VECTOR, ci(p, 0), ci(p, size));
        lp_store(p, local, i, lp_load(p, twice ? y : x, lp_2(p, L_ADD, first, i)));
        lp_end(p);
        i = lp_loop(p, LOOP_VECTOR, ci(p, 0), ci(p, size));
        LVal from = lp_2(p, L_SUB, ci(p, size - 1), i);
        lp_store(p, y, lp_2(p, L_ADD, first, i),
                 lp_2(p, L_ADD, lp_load(p, local, from), lp_load(p, x, lp_2(p, L_ADD, first, i))));
        lp_end(p);
    }
    run_tasks(p, tasks, "mirror");
}

static void test_locals(void **state) {
    (void)state;
    for (int s = 0; s < COUNT_OF(sizes); s++)
        mirror(sizes[s], s % 2 ? 2 : 3, (LType[]){LT_F32, LT_F64, LT_I64}[s % 3]);
}

/* More than 48 KiB: dynamic shared memory. */
static void test_large_locals(void **state) {
    (void)state;
    LoopProgram *p = loop_program_new(PROGRAM_TASK, "large");
    int x = lp_buffer(p, DT_F32), y = lp_buffer(p, DT_F32), a = lp_local(p, LT_F64, MOST),
        b = lp_local(p, LT_F32, MOST);
    LVal i = lp_loop(p, LOOP_VECTOR, ci(p, 0), ci(p, MOST));
    lp_store(p, a, i, lp_1(p, L_TO_F64, lp_load(p, x, i)));
    lp_store(p, b, i, lp_load(p, x, i));
    lp_end(p);
    i = lp_loop(p, LOOP_VECTOR, ci(p, 0), ci(p, MOST));
    LVal from = lp_2(p, L_SUB, ci(p, MOST - 1), i);
    lp_store(p, y, i, lp_2(p, L_ADD, lp_1(p, L_TO_F32, lp_load(p, a, from)), lp_load(p, b, from)));
    lp_end(p);
    run_tasks(p, 1, "large locals");
}

/* ---- recurrences: stores of one thread, read by all ---- */

static void test_recurrences(void **state) {
    (void)state;
    for (int s = 0; s < COUNT_OF(sizes); s += 2) {
        /* without a vector loop: a thread's; with one beside it: a team's */
        for (int beside = 0; beside < 2; beside++) {
            LoopProgram *p = loop_program_new(PROGRAM_TASK, "recurrence");
            int x = lp_buffer(p, DT_F32), y = lp_buffer(p, DT_F32);
            LVal lo = lp_2(p, L_MUL, lp_task(p), ci(p, sizes[s])), one = ci(p, 1);
            lp_store(p, y, lo, lp_load(p, x, lo));
            LVal i = lp_loop(p, LOOP_SEQ, one, ci(p, sizes[s])), at = lp_2(p, L_ADD, lo, i);
            LVal before = lp_load(p, y, lp_2(p, L_SUB, at, one));
            lp_store(p, y, at, lp_2(p, L_ADD, before, lp_load(p, x, at)));
            lp_end(p);
            if (beside) {
                i = lp_loop(p, LOOP_VECTOR, ci(p, 0), ci(p, sizes[s]));
                at = lp_2(p, L_ADD, lo, i);
                lp_store(p, y, at, lp_1(p, L_NEG, lp_load(p, y, at)));
                lp_end(p);
            }
            run_tasks(p, 2, "recurrence");
        }
    }
}

/* Rows added one after another where an index says: the same column is the same thread's. */
static void test_scatter(void **state) {
    (void)state;
    static const int64_t columns[] = {1, 7, 33, 129};
    for (int c = 0; c < COUNT_OF(columns); c++) {
        LoopProgram *p = loop_program_new(PROGRAM_TASK, "scatter");
        int u = lp_buffer(p, DT_F32), ix = lp_buffer(p, DT_I64), y = lp_buffer(p, DT_F32);
        LVal r = lp_loop(p, LOOP_SEQ, ci(p, 0), ci(p, 9)), three = ci(p, 3);
        LVal to = lp_2(p, L_REM, lp_2(p, L_MUL, lp_load(p, ix, r), lp_load(p, ix, r)), three);
        LVal j = lp_loop(p, LOOP_VECTOR, ci(p, 0), ci(p, columns[c]));
        LVal at = lp_2(p, L_ADD, lp_2(p, L_MUL, to, ci(p, columns[c])), j);
        LVal from = lp_2(p, L_ADD, lp_2(p, L_MUL, r, ci(p, columns[c])), j);
        lp_store(p, y, at, lp_2(p, L_ADD, lp_load(p, y, at), lp_load(p, u, from)));
        lp_end(p);
        lp_end(p);
        run_tasks(p, 1, "scatter");
    }
}

/* ---- rows to warps, columns to lanes ---- */

static void test_rows(void **state) {
    (void)state;
    static const int64_t shapes[][2] = {{1, 1}, {3, 7}, {9, 33}, {40, 100}, {129, 31}, {7, 129}};
    for (int s = 0; s < COUNT_OF(shapes); s++) {
        LoopProgram *p = loop_program_new(PROGRAM_TASK, "rows");
        int x = lp_buffer(p, DT_F32), y = lp_buffer(p, DT_F32), z = lp_buffer(p, DT_F32);
        LVal width = ci(p, shapes[s][1]);
        LVal i = lp_loop(p, LOOP_VECTOR, ci(p, 0), ci(p, shapes[s][0])),
             first = lp_2(p, L_MUL, i, width);
        int sum = lp_var(p, LT_F32, lp_const_f(p, LT_F32, 0));
        LVal j = lp_loop(p, LOOP_VECTOR, ci(p, 0), width);
        lp_set(p, sum, lp_2(p, L_ADD, lp_get(p, sum), lp_load(p, x, lp_2(p, L_ADD, first, j))));
        lp_end(p);
        lp_store(p, z, i, lp_get(p, sum));
        j = lp_loop(p, LOOP_VECTOR, ci(p, 0), width);
        LVal at = lp_2(p, L_ADD, first, j);
        lp_store(p, y, at, lp_2(p, L_SUB, lp_load(p, x, at), lp_load(p, z, i)));
        lp_end(p);
        lp_end(p);
        run_tasks(p, 1, "rows");
    }
}

/* ---- branches ---- */

static void test_branches(void **state) {
    (void)state;
    for (int s = 0; s < COUNT_OF(sizes); s += 2) {
        LoopProgram *p = loop_program_new(PROGRAM_TASK, "branches");
        int x = lp_buffer(p, DT_F32), y = lp_buffer(p, DT_F32), z = lp_buffer(p, DT_F32);
        LVal zero = lp_const_f(p, LT_F32, 0), size = ci(p, sizes[s]);
        int n = lp_var(p, LT_F32, zero);
        lp_if(p, lp_2(p, L_LT, lp_load(p, x, lp_task(p)), zero)); /* the whole team's */
        LVal i = lp_loop(p, LOOP_VECTOR, ci(p, 0), size), v = lp_load(p, x, i);
        lp_set(p, n, lp_2(p, L_ADD, lp_get(p, n), v));
        lp_end(p);
        lp_store(p, z, lp_task(p), lp_get(p, n));
        lp_else(p);
        i = lp_loop(p, LOOP_VECTOR, ci(p, 0), size), v = lp_load(p, x, i);
        lp_if(p, lp_2(p, L_LT, v, zero)); /* a thread's own */
        LVal k = lp_loop(p, LOOP_SEQ, ci(p, 0), lp_2(p, L_REM, i, ci(p, 3)));
        lp_set(p, n, lp_2(p, L_ADD, lp_get(p, n), lp_1(p, L_TO_F32, lp_2(p, L_ADD, k, i))));
        lp_end(p);
        lp_else(p);
        lp_set(p, n, lp_2(p, L_SUB, lp_get(p, n), v));
        lp_end(p);
        lp_end(p);
        lp_store(p, z, lp_task(p), lp_get(p, n));
        lp_end(p);
        lp_store(p, y, lp_task(p), lp_2(p, L_ADD, lp_load(p, z, lp_task(p)), lp_get(p, n)));
        run_tasks(p, 5, "branches");
    }
}

/* ---- faults: the least place, whoever finds it ---- */

static void test_faults(void **state) {
    (void)state;
    LoopProgram *p = loop_program_new(PROGRAM_TASK, "faults");
    int x = lp_buffer(p, DT_I64);
    LVal lo = lp_2(p, L_MUL, lp_task(p), ci(p, 100));
    LVal i = lp_loop(p, LOOP_VECTOR, lo, lp_2(p, L_ADD, lo, ci(p, 100))), v = lp_load(p, x, i);
    lp_if(p, lp_2(p, L_LT, v, ci(p, 0)));
    lp_fault(p, "below zero", i, v);
    lp_end(p);
    lp_end(p);
    LoopModule *m = xcalloc(1, sizeof *m);
    int64_t zero = 0, data[1000] = {0};
    LoopCall c = {.kind = CALL_PARALLEL,
                  .name = "faults",
                  .program = p,
                  .tasks = 10,
                  .nbuffers = 1,
                  .buffers = &zero,
                  .gemm_c = -1};
    vec_push(&m->calls, c);
    vec_push(&m->programs, p);
    for (int found = 0; found < 2; found++) {
        if (found)
            data[613] = data[614] = data[999] = -5, data[300] = 7;
        NvptxCode *code = gpu_compile(m, "sm_90", "faults");
        Gpu g = gpu_new(nvptx_step(code, 0), sizeof data);
        int64_t where = -1;
        ptx_write(g.dev, g.arena, data, sizeof data);
        gpu_op(&g, &g.step->ops[0]);
        const char *text = gpu_fault(&g, &where);
        if (found)
            assert_string_equal(text, "below zero");
        else
            assert_null(text);
        assert_int_equal(where, found ? 613 : -1);
        gpu_free(&g);
        nvptx_free(code);
    }
    loop_module_free(m);
}

/* ---- what is said of a GPU that is not known ---- */

static void test_targets(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int target, lowered, shared;
    } known[] = {{"sm_80", 80, 80, 166912},   {"sm_86", 86, 80, 101376},
                 {"sm_89", 89, 80, 101376},   {"sm_90", 90, 90, 232448},
                 {"sm_100", 100, 90, 232448}, {"sm_120", 120, 90, 101376}};
    Diag d = {.subject = "stgcc"};
    NvptxTarget t;
    for (int i = 0; i < COUNT_OF(known); i++) {
        assert_true(nvptx_target_find(&t, known[i].name, &d));
        assert_int_equal(t.target, known[i].target);
        assert_int_equal(t.lowered, known[i].lowered);
        assert_int_equal(t.shared_limit, known[i].shared);
    }
    assert_false(nvptx_target_find(&t, "sm_90a", &d));
    assert_false(nvptx_target_find(&t, "sm_75", &d));
    assert_int_equal(d.errors, 2);
    assert_non_null(strstr(d.messages.at[1].text, "sm_80, sm_86, sm_89, sm_90, sm_100, sm_120"));
    diag_free(&d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accumulations), cmocka_unit_test(test_two_sums),
        cmocka_unit_test(test_locals),        cmocka_unit_test(test_large_locals),
        cmocka_unit_test(test_recurrences),   cmocka_unit_test(test_scatter),
        cmocka_unit_test(test_rows),          cmocka_unit_test(test_branches),
        cmocka_unit_test(test_faults),        cmocka_unit_test(test_targets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
