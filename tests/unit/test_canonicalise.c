/* test_canonicalise.c: each rule on a small graph: what comes out, and that it computes the same.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ir/eval.h"
#include "ir/infer.h"
#include "ir/text.h"
#include "ir/verify.h"
#include "passes/pass.h"

/* Canonicalises `before` (text IR) and expects exactly `after`. */
static void expect(const char *before, const char *after) {
    Diag d = {.subject = "test"};
    Graph *g = graph_parse(before, NULL, &d), *want = graph_parse(after, NULL, &d);
    diag_print(&d, stderr, true);
    assert_non_null(g);
    assert_non_null(want);
    Compile c = {.g = g, .diag = &d};
    assert_true(graph_infer(g, &d));
    assert_true(pass_canonicalise(&c));
    graph_verify(g, "canonicalise");
    char *got = graph_to_text(g), *text = graph_to_text(want);
    if (strcmp(got, text))
        fail_msg("expected\n%sfound\n%s", text, got);
    free(got);
    free(text);
    graph_free(g);
    graph_free(want);
    diag_free(&d);
}

#define X46 "%0 = input {name=\"x\"} : f32[4,6]\n"

static void test_fold(void **state) {
    expect("graph \"g\"\n" X46 "%1 = const {value=f32[2](1 2)} : f32[2]\n"
           "%2 = const {value=f32[2](3 5)} : f32[2]\n"
           "%3 = add %1 %2 : f32[2]\n"
           "%4 = reduce_sum %3 {axes=[0], keepdims=0} : f32[]\n"
           "%5 = mul %0 %4 : f32[4,6]\n"
           "output \"y\" %5\n",
           "graph \"g\"\n" X46 "%1 = const {value=f32[](11)} : f32[]\n"
           "%2 = mul %0 %1 : f32[4,6]\n"
           "output \"y\" %2\n");
}

/* Parameters are what training changes: nothing computed from them is folded. */
static void test_params_stay(void **state) {
    const char *g =
        "graph \"g\"\n" X46 "%1 = param {kind=0, name=\"w\", value=f32[6](1 2 3 4 5 6)} : f32[6]\n"
        "%2 = const {value=f32[](2)} : f32[]\n"
        "%3 = mul %1 %2 : f32[6]\n"
        "%4 = add %0 %3 : f32[4,6]\n"
        "output \"y\" %4\n";
    expect(g, g);
}

static void test_shapes(void **state) {
    expect("graph \"g\"\n" X46 "%1 = shape %0 : i64[2]\n"
           "%2 = const {value=i64[](0)} : i64[]\n"
           "%3 = gather %1 %2 {axis=0} : i64[]\n"
           "%4 = reshape %3 {dims=[1]} : i64[1]\n"
           "%5 = const {value=i64[2](2 3)} : i64[2]\n"
           "%6 = concat %4 %5 {axis=0} : i64[3]\n"
           "%7 = reshape %0 %6 : f32[u1,u2,u3]\n"
           "output \"y\" %7\n",
           "graph \"g\"\n" X46 "%1 = reshape %0 {dims=[4,2,3]} : f32[4,2,3]\n"
           "output \"y\" %1\n");
}

static void test_views(void **state) {
    expect("graph \"g\"\n" X46 "%1 = reshape %0 {dims=[24]} : f32[24]\n"
           "%2 = reshape %1 {dims=[2,12]} : f32[2,12]\n"
           "%3 = transpose %2 {perm=[1,0]} : f32[12,2]\n"
           "%4 = transpose %3 {perm=[1,0]} : f32[2,12]\n"
           "%5 = expand %4 {dims=[2,12]} : f32[2,12]\n"
           "%6 = slice %5 {axes=[1], starts=[0], ends=[12], steps=[1]} : f32[2,12]\n"
           "%7 = concat %6 {axis=0} : f32[2,12]\n"
           "%8 = cast %7 {to=f32} : f32[2,12]\n"
           "%9 = reshape %8 {dims=[4,6]} : f32[4,6]\n"
           "%10 = neg %9 : f32[4,6]\n"
           "output \"y\" %10\n",
           "graph \"g\"\n" X46 "%1 = neg %0 : f32[4,6]\n"
           "output \"y\" %1\n");
}

/* A slice that turns an axis around keeps every size and is no no-op. */
static void test_reversal_stays(void **state) {
    const char *g =
        "graph \"g\"\n" X46
        "%1 = slice %0 {axes=[1], starts=[5], ends=[-9223372036854775807], steps=[-1]} : f32[4,6]\n"
        "output \"y\" %1\n";
    Diag d = {0};
    Graph *a = graph_parse(g, NULL, &d);
    assert_non_null(a);
    assert_true(graph_infer(a, &d));
    Compile c = {.g = a, .diag = &d};
    assert_true(pass_canonicalise(&c));
    assert_int_equal(a->outputs.at[0].value->def->op, OP_SLICE);
    graph_free(a);
    diag_free(&d);
}

static void test_transpose_of_ones(void **state) {
    expect("graph \"g\"\n" X46 "%1 = reshape %0 {dims=[4,1,6]} : f32[4,1,6]\n"
           "%2 = transpose %1 {perm=[1,0,2]} : f32[1,4,6]\n"
           "output \"y\" %2\n",
           "graph \"g\"\n" X46 "%1 = reshape %0 {dims=[1,4,6]} : f32[1,4,6]\n"
           "output \"y\" %1\n");
}

static void test_neutral(void **state) {
    expect("graph \"g\"\n" X46 "%1 = const {value=f32[](1)} : f32[]\n"
           "%2 = const {value=f32[](0)} : f32[]\n"
           "%3 = mul %0 %1 : f32[4,6]\n"
           "%4 = add %2 %3 : f32[4,6]\n"
           "%5 = div %4 %1 : f32[4,6]\n"
           "%6 = const {value=f32[](2)} : f32[]\n"
           "%7 = pow %5 %6 : f32[4,6]\n"
           "output \"y\" %7\n",
           "graph \"g\"\n" X46 "%1 = mul %0 %0 : f32[4,6]\n"
           "output \"y\" %1\n");
}

/* x + 0 that broadcasts is not x. */
static void test_broadcasting_zero_stays(void **state) {
    Diag d = {0};
    Graph *g = graph_parse("graph \"g\"\n%0 = input {name=\"x\"} : f32[1,2]\n"
                           "%1 = const {value=f32[2,2](0 0 0 0)} : f32[2,2]\n"
                           "%2 = add %0 %1 : f32[2,2]\n"
                           "output \"y\" %2\n",
                           NULL, &d);
    assert_non_null(g);
    Compile c = {.g = g, .diag = &d};
    assert_true(pass_canonicalise(&c));
    assert_int_equal(g->outputs.at[0].value->def->op, OP_ADD);
    graph_free(g);
    diag_free(&d);
}

static void test_nan_guard(void **state) {
    expect("graph \"g\"\n" X46 "%1 = softmax %0 {axis=1} : f32[4,6]\n"
           "%2 = isnan %1 : bool[4,6]\n"
           "%3 = const {value=f32[](0)} : f32[]\n"
           "%4 = where %2 %3 %1 : f32[4,6]\n"
           "output \"y\" %4\n",
           "graph \"g\"\n" X46 "%1 = softmax %0 {axis=1, masked=1} : f32[4,6]\n"
           "output \"y\" %1\n");
}

/* What an If that adds something or not becomes; another condition than one element stays. */
static void test_branch_sum(void **state) {
    expect("graph \"g\"\n" X46 "%1 = input {name=\"t\"} : f32[4,6]\n"
           "%2 = input {name=\"c\"} : bool[]\n"
           "%3 = add %1 %0 : f32[4,6]\n"
           "%4 = where %2 %3 %0 : f32[4,6]\n"
           "output \"y\" %4\n",
           "graph \"g\"\n" X46 "%1 = input {name=\"t\"} : f32[4,6]\n"
           "%2 = input {name=\"c\"} : bool[]\n"
           "%3 = const {value=f32[](-0)} : f32[]\n"
           "%4 = where %2 %1 %3 : f32[4,6]\n"
           "%5 = add %0 %4 : f32[4,6]\n"
           "output \"y\" %5\n");
    const char *stays = "graph \"g\"\n" X46 "%1 = input {name=\"t\"} : f32[4,6]\n"
                        "%2 = input {name=\"c\"} : bool[4,1]\n"
                        "%3 = add %1 %0 : f32[4,6]\n"
                        "%4 = where %2 %3 %0 : f32[4,6]\n"
                        "output \"y\" %4\n";
    expect(stays, stays);
}

static void test_gathers(void **state) {
    expect("graph \"g\"\n" X46 "%1 = const {value=i64[](-1)} : i64[]\n"
           "%2 = gather %0 %1 {axis=0} : f32[6]\n"
           "output \"y\" %2\n",
           "graph \"g\"\n" X46
           "%1 = slice %0 {axes=[0], starts=[3], ends=[4], steps=[1]} : f32[1,6]\n"
           "%2 = reshape %1 {dims=[6]} : f32[6]\n"
           "output \"y\" %2\n");
    expect("graph \"g\"\n" X46 "%1 = input {name=\"i\"} : i64[3,1]\n"
           "%2 = gather_nd %0 %1 : f32[3,6]\n"
           "output \"y\" %2\n",
           "graph \"g\"\n" X46 "%1 = input {name=\"i\"} : i64[3,1]\n"
           "%2 = reshape %1 {dims=[3]} : i64[3]\n"
           "%3 = gather %0 %2 {axis=0} : f32[3,6]\n"
           "output \"y\" %3\n");
    expect("graph \"g\"\n" X46 "%1 = input {name=\"i\"} : i64[3,1]\n"
           "%2 = expand %1 {dims=[3,6]} : i64[3,6]\n"
           "%3 = gather_elements %0 %2 {axis=0} : f32[3,6]\n"
           "output \"y\" %3\n",
           "graph \"g\"\n" X46 "%1 = input {name=\"i\"} : i64[3,1]\n"
           "%2 = reshape %1 {dims=[3]} : i64[3]\n"
           "%3 = gather %0 %2 {axis=0} : f32[3,6]\n"
           "output \"y\" %3\n");
}

/* The first output for inputs that count up: floats 0.5, 1.5, …, masks true at 1, 2, 4, 5, … */
static RTensor *first_output(Graph *g, Arena *a) {
    Diag d = {0};
    Eval ev = {.arena = a, .diag = &d};
    ev.values = xcalloc((size_t)g->next_value, sizeof *ev.values);
    for (int i = 0; i < g->inputs.n; i++) {
        const Value *v = g->inputs.at[i];
        RTensor *in = rtensor_new(a, v->dtype, v->rank, v->dims);
        for (int64_t k = 0; k < in->count; k++)
            if (dtype_is_float(v->dtype))
                in->f[k] = (double)k + 0.5;
            else
                in->i[k] = k % 3 != 0;
        ev.values[v->id] = in;
    }
    Value *y = g->outputs.at[0].value;
    assert_true(eval_graph(&ev, g, &y, 1));
    RTensor *r = ev.values[y->id];
    free(ev.values);
    diag_free(&d);
    return r;
}

/* Canonicalises: no op `gone` is left, `there` is, and the output is what it was. */
static void expect_same(const char *text, Op gone, Op there, const char *note) {
    Diag d = {.subject = "test"};
    Arena a = {0};
    Graph *g = graph_parse(text, NULL, &d);
    diag_print(&d, stderr, true);
    assert_non_null(g);
    assert_true(graph_infer(g, &d));
    const RTensor *before = first_output(g, &a);
    Compile c = {.g = g, .diag = &d};
    assert_true(pass_canonicalise(&c));
    graph_verify(g, "canonicalise");
    const RTensor *after = first_output(g, &a);
    bool has_gone = false, has_there = false;
    FOR_NODES(n, g) {
        has_gone = has_gone || n->op == gone;
        has_there = has_there || n->op == there;
    }
    assert_false(has_gone);
    assert_true(has_there);
    assert_int_equal(before->count, after->count);
    for (int64_t i = 0; i < before->count; i++)
        assert_true(fabs(before->f[i] - after->f[i]) < 1e-5);
    assert_true(!note == !d.messages.n);
    if (note)
        assert_non_null(strstr(d.messages.at[0].text, note));
    graph_free(g);
    diag_free(&d);
    arena_free(&a);
}

#define SOURCE(DIMS) \
    "%6 = shape %5 : i64[2]\n" \
    "%7 = const {value=i64[1](0)} : i64[1]\n" \
    "%8 = slice %6 {axes=[0], starts=[0], ends=[1], steps=[1]} : i64[1]\n" \
    "%9 = slice %2 %7 %8 %7 : f32[" DIMS "]\n"

/* The k-th place of a mask takes the k-th element, or row, of a source. */
static void test_masked_scatter(void **state) {
    expect_same("graph \"g\"\n%0 = input {name=\"x\"} : f32[2,3,2]\n"
                "%1 = input {name=\"m\"} : bool[2,3,1]\n"
                "%2 = input {name=\"s\"} : f32[12]\n"
                "%3 = expand %1 {dims=[2,3,2]} : bool[2,3,2]\n"
                "%4 = nonzero %3 : i64[3,u0]\n"
                "%5 = transpose %4 {perm=[1,0]} : i64[u0,3]\n" SOURCE(
                    "u1") "%10 = scatter_nd %0 %5 %9 {reduction=\"none\"} : f32[2,3,2]\n"
                          "output \"y\" %10\n",
                OP_NONZERO, OP_CUMSUM, NULL);
    expect_same("graph \"g\"\n%0 = input {name=\"x\"} : f32[2,3,2]\n"
                "%1 = input {name=\"m\"} : bool[2,3]\n"
                "%2 = input {name=\"s\"} : f32[5,2]\n"
                "%3 = neg %2 : f32[5,2]\n"
                "%4 = nonzero %1 : i64[2,u0]\n"
                "%5 = transpose %4 {perm=[1,0]} : i64[u0,2]\n" SOURCE(
                    "u1,2") "%10 = scatter_nd %0 %5 %9 {reduction=\"none\"} : f32[2,3,2]\n"
                            "output \"y\" %10\n",
                OP_NONZERO, OP_CUMSUM, NULL);
}

/* A stored norm of the parameter that it divides is computed again; any other divisor is left. */
static void test_live_norm(void **state) {
#define DIRECTIONS "%1 = param {kind=0, name=\"w\", value=f32[2,2](3 4 4 3)} : f32[2,2]\n"
#define DIVIDED(D) \
    "graph \"g\"\n%0 = input {name=\"x\"} : f32[4,2]\n" DIRECTIONS \
    "%2 = param {kind=0, name=\"n\", value=f32[1,2](" D ")} : f32[1,2]\n" \
    "%3 = const {value=f32[](0.001)} : f32[]\n" \
    "%4 = max %2 %3 : f32[1,2]\n" \
    "%5 = expand %4 {dims=[2,2]} : f32[2,2]\n" \
    "%6 = div %1 %5 : f32[2,2]\n" \
    "%7 = matmul %0 %6 : f32[4,2]\n" \
    "output \"y\" %7\n"
    expect_same(DIVIDED("5 5"), OP_COUNT, OP_SQRT, "the norm of parameter \"w\"");
    expect_same(DIVIDED("5 6"), OP_SQRT, OP_DIV, NULL);
}

/* Sizes that data decide: the width of what is computed from them is known all the same. */
static void test_data_sizes(void **state) {
    Diag d = {0};
    Graph *g = graph_parse("graph \"g\"\n"
                           "%0 = input {name=\"x\"} : f32[4,6]\n"
                           "%1 = input {name=\"m\"} : bool[4]\n"
                           "%2 = nonzero %1 : i64[1,u4]\n"
                           "%3 = const {value=i64[1](-1)} : i64[1]\n"
                           "%4 = reshape %2 %3 : i64[u5]\n"
                           "%5 = gather %0 %4 {axis=0} : f32[u6,6]\n"
                           "%6 = shape %5 : i64[2]\n"
                           "%7 = const {value=i64[1](1)} : i64[1]\n"
                           "%8 = gather %6 %7 {axis=0} : i64[1]\n"
                           "%9 = const {value=i64[1](2)} : i64[1]\n"
                           "%10 = div %8 %9 : i64[1]\n"
                           "%11 = const {value=i64[1](0)} : i64[1]\n"
                           "%12 = slice %5 %11 %10 %7 : f32[u7,u8]\n"
                           "%13 = shape %12 : i64[2]\n"
                           "%14 = expand %12 %13 : f32[u9,u10]\n"
                           "%15 = reduce_sum %14 {axes=[0], keepdims=0} : f32[u11]\n"
                           "output \"y\" %15\n",
                           NULL, &d);
    diag_print(&d, stderr, true);
    assert_non_null(g);
    Compile c = {.g = g, .diag = &d};
    assert_true(graph_infer(g, &d));
    assert_true(pass_canonicalise(&c));
    graph_verify(g, "canonicalise");
    const Value *y = g->outputs.at[0].value;
    assert_int_equal(y->rank, 1);
    assert_int_equal(y->dims[0], 3);
    assert_int_equal(y->def->in[0]->def->op, OP_SLICE); /* the expand was a no-op */
    assert_int_equal(y->def->in[0]->def->nin, 1);
    graph_free(g);
    diag_free(&d);
}

/* Equal constants and views are shared; equal float arithmetic is not this pass's business. */
static void test_share(void **state) {
    Diag d = {0};
    Graph *g = graph_parse("graph \"g\"\n" X46 "%1 = reshape %0 {dims=[24]} : f32[24]\n"
                           "%2 = neg %1 : f32[24]\n"
                           "%3 = reshape %0 {dims=[24]} : f32[24]\n"
                           "%4 = neg %3 : f32[24]\n"
                           "output \"a\" %2\n"
                           "output \"b\" %4\n",
                           NULL, &d);
    assert_non_null(g);
    Compile c = {.g = g, .diag = &d};
    assert_true(pass_canonicalise(&c));
    graph_verify(g, "canonicalise");
    assert_ptr_not_equal(g->outputs.at[0].value, g->outputs.at[1].value);
    assert_ptr_equal(g->outputs.at[0].value->def->in[0], g->outputs.at[1].value->def->in[0]);
    graph_free(g);
    diag_free(&d);
}

/* Twenty thousand reshapes in a row: linear work, or this takes minutes. */
static void test_long_chain(void **state) {
    Graph *g = graph_new("chain");
    Builder b = builder_at_end(g, graph_source(g, "chain", "Test"));
    Node *in = build_node(&b, OP_INPUT, NULL, 0, 1);
    node_set_str(in, AT_NAME, "x");
    Value *v = in->out[0];
    v->dtype = DT_F32;
    v->rank = 2;
    v->dims[0] = 4;
    v->dims[1] = 6;
    vec_push(&g->inputs, v);
    for (int i = 0; i < 20000; i++)
        v = op_reshape(&b, v, 2, i % 2 ? (int64_t[]){4, 6} : (int64_t[]){6, 4});
    graph_add_output(g, "y", v);
    Diag d = {0};
    Compile c = {.g = g, .diag = &d};
    assert_true(pass_canonicalise(&c));
    assert_ptr_equal(g->outputs.at[0].value, in->out[0]);
    graph_free(g);
    diag_free(&d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fold),           cmocka_unit_test(test_params_stay),
        cmocka_unit_test(test_shapes),         cmocka_unit_test(test_views),
        cmocka_unit_test(test_reversal_stays), cmocka_unit_test(test_transpose_of_ones),
        cmocka_unit_test(test_neutral),        cmocka_unit_test(test_broadcasting_zero_stays),
        cmocka_unit_test(test_nan_guard),      cmocka_unit_test(test_branch_sum),
        cmocka_unit_test(test_gathers),        cmocka_unit_test(test_masked_scatter),
        cmocka_unit_test(test_live_norm),      cmocka_unit_test(test_data_sizes),
        cmocka_unit_test(test_share),          cmocka_unit_test(test_long_chain),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
