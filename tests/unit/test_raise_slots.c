/* test_raise_slots.c: layers with capacity in the spellings exporters leave, raised to what is left
 * after the drop; and graphs that look alike and are none. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "raise_graphs.h"
#include "raise_help.h"
#include "slots_graphs.h"


/* Rows that the raised graph dispatches for the test's input, per expert. */
static void rows_of(Graph *g, int64_t *count) {
    Arena a = {0};
    Diag d = {0};
    Eval ev = {.arena = &a, .diag = &d};
    ev.values = xcalloc((size_t)g->next_value, sizeof *ev.values);
    Value *x = g->inputs.at[0], *offsets = NULL;
    RTensor *in = rtensor_new(&a, DT_F32, x->rank, x->dims);
    for (int64_t i = 0; i < in->count; i++)
        in->f[i] = sin(1.7 * (double)i + 0.3);
    ev.values[x->id] = in;
    FOR_NODES(n, g)
    if (n->op == OP_DISPATCH)
        offsets = n->out[0];
    assert_non_null(offsets);
    assert_true(eval_graph(&ev, g, &offsets, 1));
    for (int e = 0; e < E; e++)
        count[e] = ev.values[offsets->id]->i[e + 1] - ev.values[offsets->id]->i[e];
    free(ev.values);
    diag_free(&d);
    arena_free(&a);
}

static void expect_capacity(Capacity c) {
    Arena a = {0};
    Diag d = {0};
    Layer l = capacity(c);
    Raised r = raise_graph(l.g, &a, &d);
    if (r.layers != 1)
        fail_msg("back %d, out %d, k %d: not raised: %s", c.back, c.out, c.k, r.why ? r.why : "?");
    assert_string_equal(r.form, "C");
    assert_int_equal(r.layer.experts, E);
    assert_int_equal(r.layer.top_k, c.k);
    assert_ptr_equal(r.layer.logits, l.z);
    assert_ptr_equal(r.layer.x, l.x);
    assert_int_equal(r.layer.weights.n, c.stacked ? 3 : 3 * E);
    assert_int_equal(r.wrong, 0);
    assert_true(r.error < 1e-12);
    int64_t rows[E], all = 0;
    rows_of(l.g, rows);
    for (int e = 0; e < E; e++) {
        assert_true(rows[e] <= c.C); /* what is dropped is no row of its expert */
        all += rows[e];
    }
    if (c.C == T)
        assert_int_equal(all, T * c.k);
    else
        assert_true(all < T * c.k);
    diag_free(&d);
    arena_free(&a);
    graph_free(l.g);
}

static void test_spellings(void **state) {
    (void)state;
    for (int k = 1; k <= 2; k++)
        for (int back = BACK_PRODUCT; back <= BACK_REDUCED; back++)
            for (int out = OUT_PRODUCT; out <= OUT_GATHER; out++)
                for (int stacked = 0; stacked < 2; stacked++) {
                    Capacity c = {.k = k, .C = 2, .back = back, .out = out, .stacked = stacked};
                    expect_capacity(c);
                    c.C = T;
                    expect_capacity(c);
                }
}

/* Experts that an exporter merged get matrices of their own again. */
static void test_merged(void **state) {
    (void)state;
    expect_capacity((Capacity){.k = 2, .C = 2, .equal = true});
}

/* Queues as long as the exporter's example needed, in a model of any batch: wrong. The same length
 * computed from sizes that are bound by now is right. */
static void test_frozen_length(void **state) {
    (void)state;
    for (int back = BACK_PRODUCT; back <= BACK_REDUCED; back++) {
        Capacity c = {.k = 2, .C = 2, .back = back, .length = "Constant"};
        expect_none(capacity(c), true, "2 places, a constant of the exporter's example");
        c.length = "Ceil";
        expect_capacity(c);
    }
}

/* The weights of one token reach places of another: no routing. */
static void test_two_tokens_in_a_place(void **state) {
    (void)state;
    Layer l = layer_begin();
    Builder *b = &l.b;
    Value *p = op_softmax(b, l.z, 1), *c[E];
    int64_t n = E * 3;
    Value *w = op_expand(b, op_reshape(b, p, 3, DIMS(T, E, 1)), 3, DIMS(T, E, 3));
    Value *d = op_reshape(b, op_transpose(b, w, DIMS(1, 2, 0)), 2, DIMS(n, T));
    Value *rows = op_reshape(b, op_matmul(b, d, l.x, false, false), 3, DIMS(E, 3, H));
    for (int e = 0; e < E; e++)
        c[e] = expert(&l, op_slice(b, rows, 0, e, e + 1, 1), e, "s");
    Value *out = op_reshape(b, op_concat(b, c, E, 0), 2, DIMS(n, H));
    layer_end(&l, op_matmul(b, op_reshape(b, w, 2, DIMS(T, n)), out, false, false));
    expect_none(l, false, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spellings),
        cmocka_unit_test(test_merged),
        cmocka_unit_test(test_frozen_length),
        cmocka_unit_test(test_two_tokens_in_a_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
