/* test_raise_probe.c: layers of many tokens are probed on a few of them: what is wrong is found all
 * the same, and what probing costs does not grow with the batch. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define RAISE_SIZES T = 768, H = 24, I = 40, E = 8, K = 2
#include "raise_graphs.h"
#include "raise_help.h"

/* Work of the whole layer: what probing must stay far below. */
enum { EXPERT = 3 * H * I, ROUTED = T * K * EXPERT };

/* Probing looks at a few tokens, four times, on both sides: 2 * 4 * (tokens * K) experts where all
 * that is computed is needed; E / K times as much where the region computes every expert. */
static void expect_cheap(Layer l, const char *form, bool dense) {
    Arena a = {0};
    Diag d = {0};
    probe_budget = 1; /* the fewest tokens there can be */
    Raised r = raise_graph(l.g, &a, &d);
    probe_budget = 0;
    if (!r.layers)
        fail_msg("form %s not raised: %s", form, r.why ? r.why : "nothing was tried");
    assert_string_equal(r.form, form);
    assert_true(r.layer.probe_error < 1e-9);
    assert_true(r.error < 1e-12);
    int64_t tokens = E / K + 4, experts = 4 * tokens * (K + (dense ? E : K));
    /* As many elements as multiply-adds are taken for all that is no product. */
    if (r.work > 2 * experts * EXPERT || r.work > ROUTED)
        fail_msg("form %s: %lld operations for %lld multiply-adds", form, (long long)r.work,
                 (long long)(experts * EXPERT));
    diag_free(&d);
    arena_free(&a);
    graph_free(l.g);
}

static void test_work(void **state) {
    expect_cheap(form_a(E, false), "A", false);
    expect_cheap(form_d(), "D", false);
    expect_cheap(form_h(), "H", false);
    expect_cheap(form_e(), "E", true);
    expect_cheap(form_b(E, NULL, false), "B", true);
}

/* One expert of eight works where it was not chosen. */
static void test_one_wrong(void **state) {
    for (int e = 0; e < E; e += 3)
        expect_none(form_e_rest(0.01, e), true, "probing disagrees");
}

/* Only the last tokens are computed differently. */
static void test_late_wrong(void **state) {
    expect_none(form_e_rest(0.01, E), true, "probing disagrees");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_work),
        cmocka_unit_test(test_one_wrong),
        cmocka_unit_test(test_late_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
