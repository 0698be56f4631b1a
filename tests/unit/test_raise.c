/* test_raise.c: each spelling of an MoE layer becomes dispatch, grouped products and combine, and
 * computes the same; what is no such layer, or one that lost experts, stays and is reported. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "ir/eval.h"
#include "ir/infer.h"
#include "ir/text.h"
#include "ir/verify.h"
#include "passes/pass.h"
#include "raise_graphs.h"
#include "raise_help.h"

/* Raises l's graph; expects one layer of the given form with `weights` parameters. */
static void expect_layer(Layer l, const char *form, int weights, int products) {
    Arena a = {0};
    Diag d = {0};
    Raised r = raise_graph(l.g, &a, &d);
    if (!r.layers)
        fail_msg("form %s not raised: %s", form, r.why ? r.why : "nothing was tried");
    assert_int_equal(r.layers, 1);
    assert_string_equal(r.form, form);
    assert_int_equal(r.layer.experts, E);
    assert_int_equal(r.layer.top_k, K);
    assert_string_equal(r.layer.score, "softmax");
    assert_non_null(r.layer.logits);
    assert_ptr_equal(r.layer.logits->def->op == OP_MATMUL ? r.layer.logits->def : NULL,
                     r.layer.logits->def);
    assert_non_null(r.layer.x);
    assert_int_equal(r.layer.weights.n, weights);
    assert_int_equal(r.layer.linears.n, products);
    assert_true(r.layer.probe_error < 1e-9);
    assert_true(r.error < 1e-12);
    assert_int_equal(count_ops(l.g, OP_COMBINE), 1);
    assert_int_equal(count_ops(l.g, OP_NONZERO), 0);
    diag_free(&d);
    arena_free(&a);
    graph_free(l.g);
}

static void test_d(void **state) {
    expect_layer(form_d(), "D", 2, 2);
}
static void test_e(void **state) {
    expect_layer(form_e(), "E", 4, 2);
}
static void test_b(void **state) {
    expect_layer(form_b(E, NULL, false), "B", 3 * E, 3);
}
static void test_b_order(void **state) {
    expect_layer(form_b(E, (int[]){2, 0, 3, 1}, false), "B", 3 * E, 3);
}
/* A dense expert that starts the sum is no expert of the layer. */
static void test_b_shared(void **state) {
    expect_layer(form_b(E, NULL, true), "B", 3 * E, 3);
}
static void test_a(void **state) {
    expect_layer(form_a(E, false), "A", 3 * E, 3);
}
/* Equal experts in one initializer: each owns a copy named after it, and the merged one is gone. */
static void test_a_merged(void **state) {
    Layer l = form_a(E, true);
    Arena a = {0};
    Diag d = {0};
    Raised r = raise_graph(l.g, &a, &d);
    assert_int_equal(r.layers, 1);
    assert_int_equal(r.layer.weights.n, 3 * E);
    assert_true(r.error < 1e-12);
    assert_int_equal(d.messages.n, 1);
    assert_int_equal(d.messages.at[0].level, DIAG_NOTE);
    bool copy = false;
    FOR_NODES(n, l.g) {
        if (n->op != OP_PARAM)
            continue;
        copy = copy || !strcmp(param_name(n->out[0]), "a.down.0@0.3");
        assert_string_not_equal(param_name(n->out[0]), "a.down.0");
    }
    assert_true(copy);
    diag_free(&d);
    arena_free(&a);
    graph_free(l.g);
}

/* Equal experts of which one computation is left, weighted by each gate. */
static void test_b_merged(void **state) {
    Layer l = layer_begin();
    Value *one = expert(&l, l.x, 0, "b"), *y = NULL;
    for (int e = 0; e < E; e++) {
        Value *c = op_binary(&l.b, OP_MUL, one, gate_of(&l, e));
        y = y ? op_binary(&l.b, OP_ADD, y, c) : c;
    }
    layer_end(&l, y);
    expect_layer(l, "B", 3 * E, 3);
}

/* Every expert's output stacked, and a product with the gates: "bec,be->bc" either way round. */
static void test_b_product(void **state) {
    for (int side = 0; side < 2; side++) {
        Layer l = layer_begin();
        Value *part[E], *gate[E];
        for (int e = 0; e < E; e++) {
            part[e] =
                op_reshape(&l.b, expert(&l, l.x, e, "b"), 3, side ? DIMS(T, H, 1) : DIMS(T, 1, H));
            gate[e] = gate_of(&l, e);
        }
        Value *stack = op_concat(&l.b, part, E, side ? 2 : 1), *g = op_concat(&l.b, gate, E, 1);
        Value *y =
            side ? op_matmul(&l.b, stack, op_reshape(&l.b, g, 3, DIMS(T, E, 1)), false, false)
                 : op_matmul(&l.b, op_reshape(&l.b, g, 3, DIMS(T, 1, E)), stack, false, false);
        layer_end(&l, op_reshape(&l.b, y, 2, DIMS(T, H)));
        Arena a = {0};
        Diag d = {0};
        Raised r = raise_graph(l.g, &a, &d);
        if (r.layers != 1)
            fail_msg("side %d: not raised: %s", side, r.why ? r.why : "?");
        assert_int_equal(r.layer.top_k, K);
        assert_int_equal(r.layer.weights.n, 3 * E);
        assert_true(r.error < 1e-12);
        diag_free(&d);
        arena_free(&a);
        graph_free(l.g);
    }
}

static void test_h(void **state) {
    expect_layer(form_h(), "H", 2, 2);
}

/* A layer too large to probe whole is probed on a sample of tokens; what is wrong is still found.
 */
static void test_sampled(void **state) {
    probe_budget = 1;
    expect_layer(form_d(), "D", 2, 2);
    expect_layer(form_e(), "E", 4, 2);
    expect_layer(form_b(E, NULL, false), "B", 3 * E, 3);
    expect_layer(form_a(E, false), "A", 3 * E, 3);
    expect_layer(form_h(), "H", 2, 2);
    expect_none(form_e_floor(0.125), true, "probing disagrees");
    probe_budget = 0;
}

/* Looks like a layer in every node, but experts that were not chosen contribute too: only numbers
 * tell. */
static void test_soft_rest(void **state) {
    expect_none(form_e_floor(0.125), true, "probing disagrees");
}

static void test_a_missing(void **state) {
    expect_none(form_a(E - 1, false), true, "3 of 4 experts");
}
static void test_b_missing(void **state) {
    expect_none(form_b(E - 1, NULL, false), true, "3 of 4 experts");
}

/* E models weighted by p[.,E]: every expert for every token. */
static Layer mixture(Layer l, Value *p, const int *order) {
    Value *y = NULL;
    for (int i = 0; i < E; i++) {
        int e = order ? order[i] : i;
        Value *c =
            op_binary(&l.b, OP_MUL, expert(&l, l.x, e, "m"), op_slice(&l.b, p, 1, e, e + 1, 1));
        y = y ? op_binary(&l.b, OP_ADD, y, c) : c;
    }
    layer_end(&l, y);
    return l;
}

/* A router of the token weights all experts: a layer with K = E. */
static void test_all_experts(void **state) {
    for (int turned = 0; turned < 2; turned++) {
        Layer l = layer_begin();
        l = mixture(l, op_softmax(&l.b, l.z, 1), turned ? (int[]){2, 0, 3, 1} : NULL);
        Arena a = {0};
        Diag d = {0};
        Raised r = raise_graph(l.g, &a, &d);
        assert_int_equal(r.layers, 1);
        assert_string_equal(r.form, "B");
        assert_int_equal(r.layer.top_k, E);
        assert_int_equal(r.layer.weights.n, 3 * E);
        assert_ptr_equal(r.layer.logits, l.z);
        assert_true(r.error < 1e-12);
        diag_free(&d);
        arena_free(&a);
        graph_free(l.g);
    }
}

/* Weights that are the same for all tokens, learned or not: an ensemble, no router. */
static void test_ensemble(void **state) {
    for (int learned = 0; learned < 2; learned++) {
        Layer l = layer_begin();
        Value *w = learned ? op_softmax(&l.b, weight(&l, "mix", 2, DIMS(1, E)), 1)
                           : op_full(&l.b, DT_F32, 1.0 / E, 2, DIMS(1, E));
        expect_none(mixture(l, w, NULL), false, NULL);
    }
}

/* One decision for each sample of a batch of 2, from the mean of its tokens; all experts weighted,
 * or the best of them. Its logits belong to no token. */
static void test_per_sample(void **state) {
    enum { B = 2, S = 6 };
    for (int best = 0; best < 2; best++) {
        Layer l = {.g = graph_new("samples")};
        l.b = builder_at_end(l.g, graph_source(l.g, "layer", "Test"));
        const char *name[] = {"x", "ids"};
        for (int i = 0; i < 2; i++) {
            Node *in = build_node(&l.b, OP_INPUT, NULL, 0, 1);
            node_set_str(in, AT_NAME, name[i]);
            Value *v = in->out[0];
            v->dtype = i ? DT_I64 : DT_F32;
            v->rank = i ? 2 : 3;
            memcpy(v->dims, DIMS(B, S, H), sizeof *v->dims * (size_t)v->rank);
            vec_push(&l.g->inputs, v);
        }
        l.x = l.g->inputs.at[0];
        Value *mean = op_reduce(&l.b, OP_REDUCE_SUM, l.x, DIMS(1), 1, false), *y = NULL;
        l.z = op_matmul(&l.b, mean, weight(&l, "router", 2, DIMS(H, E)), false, false);
        Value *p = op_softmax(&l.b, l.z, 1);
        l.idx = best ? topk(&l, p, 1)->out[1] : NULL;
        for (int e = 0; e < E; e++) {
            Value *g = op_slice(&l.b, p, 1, e, e + 1, 1);
            if (best)
                g = op_binary(
                    &l.b, OP_MUL, g,
                    op_cast(&l.b, op_binary(&l.b, OP_EQ, l.idx, op_const_i(&l.b, e)), DT_F32));
            Value *c = op_binary(&l.b, OP_MUL, expert(&l, l.x, e, "s"),
                                 op_reshape(&l.b, g, 3, DIMS(B, 1, 1)));
            y = y ? op_binary(&l.b, OP_ADD, y, c) : c;
        }
        layer_end(&l, y);
        expect_none(l, false, "CEL is not defined here");
    }
}

/* The K best classes' embeddings are averaged: an index into a table, no expert. */
static void test_embedding_bag(void **state) {
    Layer l = layer_begin();
    Value *table = weight(&l, "table", 2, DIMS(E, H));
    Value *rows = op_gather(&l.b, table, l.idx, 0);
    Value *y = op_binary(&l.b, OP_MUL, rows, op_reshape(&l.b, l.w, 3, DIMS(T, K, 1)));
    layer_end(&l, op_reduce(&l.b, OP_REDUCE_SUM, y, DIMS(1), 1, false));
    expect_none(l, false, NULL);
}

/* Weights renormalised over the batch inside the region: rows depend on other rows. */
static void test_mixes_tokens(void **state) {
    Layer l = form_d();
    Node *sum = NULL;
    FOR_NODES(n, l.g)
    if (n->op == OP_REDUCE_SUM && n->in[0]->rank == 3)
        sum = n;
    Builder b = builder_before(sum);
    Value *o = sum->in[0], *all = op_reduce(&b, OP_REDUCE_SUM, o, DIMS(0), 1, true);
    node_set_in(sum, 0, op_binary(&b, OP_SUB, o, all));
    expect_none(l, false, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_d),
        cmocka_unit_test(test_e),
        cmocka_unit_test(test_b),
        cmocka_unit_test(test_b_order),
        cmocka_unit_test(test_b_shared),
        cmocka_unit_test(test_a),
        cmocka_unit_test(test_h),
        cmocka_unit_test(test_a_merged),
        cmocka_unit_test(test_b_merged),
        cmocka_unit_test(test_b_product),
        cmocka_unit_test(test_sampled),
        cmocka_unit_test(test_soft_rest),
        cmocka_unit_test(test_a_missing),
        cmocka_unit_test(test_b_missing),
        cmocka_unit_test(test_all_experts),
        cmocka_unit_test(test_ensemble),
        cmocka_unit_test(test_per_sample),
        cmocka_unit_test(test_embedding_bag),
        cmocka_unit_test(test_mixes_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
