/* Threads: every task runs once, nested loops run inline, late workers never disturb a job. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/machine.h"

typedef struct Count {
    StgcRt *rt;
    _Atomic int *hits;
    int64_t inner;
    _Atomic int wrong_thread;
} Count;

static void hit(void *env, int64_t task) {
    Count *c = env;
    Machine *m = (Machine *)c->rt;
    int thread = pool_thread(m->pool);
    if (thread < 0 || thread >= m->threads)
        c->wrong_thread = 1;
    c->hits[task]++;
}

static void every_task_once(void **state) {
    static const int64_t sizes[] = {0, 1, 2, 3, 7, 64, 1000};
    for (int threads = 1; threads <= 5; threads++) {
        StgcRt *rt = stgc_rt_new(threads);
        assert_non_null(rt);
        for (int round = 0; round < 2000; round++) {
            int64_t n = sizes[round % 7];
            Count c = {.rt = rt, .hits = calloc((size_t)n + 1, sizeof *c.hits)};
            rt->parallel(rt, n, hit, &c);
            for (int64_t i = 0; i < n; i++)
                assert_int_equal(c.hits[i], 1);
            assert_int_equal(c.hits[n], 0);
            assert_int_equal(c.wrong_thread, 0);
            free(c.hits);
        }
        stgc_rt_free(rt);
    }
}

static void nested(void *env, int64_t task) {
    Count *c = env;
    Count inner = {.rt = c->rt, .hits = c->hits + task * c->inner};
    c->rt->parallel(c->rt, c->inner, hit, &inner);
}

static void nested_runs_inline(void **state) {
    StgcRt *rt = stgc_rt_new(3);
    Count c = {.rt = rt, .inner = 20, .hits = calloc(400, sizeof *c.hits)};
    rt->parallel(rt, 20, nested, &c);
    for (int i = 0; i < 400; i++)
        assert_int_equal(c.hits[i], 1);
    free(c.hits);
    stgc_rt_free(rt);
}

/* Jobs after pauses long enough for workers to fall asleep. */
static void sleeping_workers_wake(void **state) {
    StgcRt *rt = stgc_rt_new(3);
    for (int round = 0; round < 30; round++) {
        struct timespec pause = {0, round % 3 * 1000000};
        nanosleep(&pause, NULL);
        Count c = {.rt = rt, .hits = calloc(100, sizeof *c.hits)};
        rt->parallel(rt, 100, hit, &c);
        for (int i = 0; i < 100; i++)
            assert_int_equal(c.hits[i], 1);
        free(c.hits);
    }
    stgc_rt_free(rt);
}

static void all_cores_by_default(void **state) {
    StgcRt *rt = stgc_rt_new(0);
    assert_int_equal(stgc_rt_threads(rt), cpu_count());
    assert_non_null(strstr(stgc_rt_describe(rt), "libxsmm"));
    stgc_rt_free(rt);
    stgc_rt_free(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_once), cmocka_unit_test(nested_runs_inline),
        cmocka_unit_test(sleeping_workers_wake), cmocka_unit_test(all_cores_by_default)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
