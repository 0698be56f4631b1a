/* test_raise_split.c: rows that counts split, a product each, joined again: one grouped product;
 * and graphs that look alike and are none. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "raise_graphs.h"
#include "raise_help.h"

typedef struct Split {
    bool trans_b;    /* matrices [out,in] */
    bool swapped;    /* the first two parts change places when joined */
    bool other_rows; /* the last part is cut from other rows */
    bool shifted;    /* parts start one row late */
    bool slices;     /* cut by slices of the user's, whose sizes need not add up */
} Split;

/* How many tokens have expert e as their best. */
static Value *counts_of(Layer *l) {
    Attr axis[] = {{.key = AT_AXIS, .i = 1}, {.key = AT_KEEPDIMS, .i = 0}};
    Value *best = op_node(&l->b, OP_ARGMAX, &l->z, 1, axis, 2)->out[0];
    Value *is = op_binary(&l->b, OP_EQ, op_reshape(&l->b, best, 2, DIMS(T, 1)),
                          op_const_ints(&l->b, DIMS(0, 1, 2, 3), E));
    return op_reduce(&l->b, OP_REDUCE_SUM, op_cast(&l->b, is, DT_I64), DIMS(0), 1, false);
}

static Layer split_layer(const Split *s) {
    Layer l = layer_begin();
    Value *counts = counts_of(&l), *products[E];
    Attr axis = {.key = AT_AXIS, .i = 0};
    l.b = builder_at_end(l.g, graph_source(l.g, "parts", s->slices ? "Slice" : "Split"));
    Value *ends = op_node(&l.b, OP_CUMSUM, &counts, 1, &axis, 1)->out[0];
    Value *starts = op_binary(&l.b, OP_SUB, ends, counts);
    if (s->shifted)
        starts = op_binary(&l.b, OP_ADD, starts, op_const_i(&l.b, 1));
    Value *axes = op_const_ints(&l.b, DIMS(0), 1), *other = op_unary(&l.b, OP_NEG, l.x);
    for (int e = 0; e < E; e++) {
        int at = s->swapped && e < 2 ? 1 - e : e;
        Value *cut[4] = {s->other_rows && e == E - 1 ? other : l.x,
                         op_slice(&l.b, starts, 0, at, at + 1, 1),
                         op_slice(&l.b, ends, 0, at, at + 1, 1), axes};
        Value *part = op_node(&l.b, OP_SLICE, cut, 4, NULL, 0)->out[0];
        char name[8];
        snprintf(name, sizeof name, "w%d", e);
        Value *w =
            weight(&l, arena_strdup(&l.g->arena, name), 2, s->trans_b ? DIMS(I, H) : DIMS(H, I));
        products[e] = op_matmul(&l.b, part, w, false, s->trans_b);
    }
    Value *joined = op_concat(&l.b, products, E, 0);
    graph_add_output(l.g, "out", op_unary(&l.b, OP_TANH, joined));
    return l;
}

static void expect(const Split *s, int grouped) {
    Layer l = split_layer(s);
    Arena a = {0};
    Diag d = {0};
    Raised r = raise_graph(l.g, &a, &d);
    assert_true(r.error < 1e-12);
    assert_int_equal(r.layers, 0);
    assert_int_equal(count_ops(l.g, OP_GROUPED_MATMUL), grouped);
    assert_int_equal(l.g->outputs.at[0].value->dims[0] == T, grouped); /* the size is known now */
    diag_free(&d);
    arena_free(&a);
    graph_free(l.g);
}

static void test_grouped(void **unused) {
    (void)unused;
    expect(&(Split){0}, 1);
    expect(&(Split){.trans_b = true}, 1);
}

static void test_look_alikes(void **unused) {
    (void)unused;
    expect(&(Split){.swapped = true}, 0);
    expect(&(Split){.other_rows = true}, 0);
    expect(&(Split){.shifted = true}, 0);
    expect(&(Split){.slices = true}, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grouped),
        cmocka_unit_test(test_look_alikes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
