/* test_raise_places.c: capacity layers of many tokens, whose weights by place, W[T,E,C], have far
 * more elements than can be computed; nearly all are zero. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define RAISE_SIZES T = 4096, H = 6, I = 5, E = 8, K = 2
#include "raise_graphs.h"
#include "raise_help.h"
#include "slots_graphs.h"

enum { PLACES = 64 };

static void test_many_places(void **state) {
    (void)state;
    for (int k = 1; k <= 2; k++) {
        Arena a = {0};
        Diag d = {0};
        Layer l = capacity((Capacity){.k = k, .C = PLACES});
        probe_budget = 1; /* the fewest tokens there can be */
        Raised r = raise_graph(l.g, &a, &d);
        if (r.layers != 1)
            fail_msg("k %d: not raised: %s", k, r.why ? r.why : "?");
        assert_string_equal(r.form, "C");
        assert_int_equal(r.layer.top_k, k);
        assert_true(r.error < 1e-12);
        /* four routings; for each choice a few operations on one-hot rows [T,C], none on W */
        int64_t most = 4 * k * 8 * (int64_t)T * PLACES;
        if (r.work > most)
            fail_msg("k %d: %lld operations, at most %lld", k, (long long)r.work, (long long)most);
        probe_budget = 0;
        diag_free(&d);
        arena_free(&a);
        graph_free(l.g);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_many_places),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
