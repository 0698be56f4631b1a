/* The Graph: editing keeps use lists right; text prints, parses back and is a golden; the verifier finds what is broken. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ir/text.h"
#include "ir/verify.h"

static const char golden[] =
    "graph \"router\"\n"
    "%0 = input {name=\"x\"} : f32[tokens,4]  ; \"x\" Input\n"
    "%1 = param {kind=0, name=\"gate\", value=f32[4,3](1 0 0 0 1 0 0 0 1 0.5 -inf nan)} : f32[4,3]\n"
    "%2 = matmul %0 %1 : f32[tokens,3]  ; \"/gate/MatMul\" MatMul\n"
    "%3 = softmax %2 {axis=1} : f32[tokens,3]\n"
    "%4, %5 = topk %3 {axis=1, k=2} : f32[tokens,2], i64[tokens,2]  ; \"/gate/TopK\" TopK\n"
    "%6 = cast %5 {to=f32} : f32[tokens,2]\n"
    "output \"weights\" %4\n"
    "output \"chosen\" %6\n";

static Graph *parse(const char *text) {
    Diag d = {0};
    Graph *g = graph_parse(text, NULL, &d);
    if (!g)
        diag_print(&d, stderr, true);
    diag_free(&d);
    return g;
}

static void text_roundtrip(void **state) {
    Graph *g = parse(golden);
    assert_non_null(g);
    char *text = graph_to_text(g);
    assert_string_equal(text, golden);
    Graph *c = graph_clone(g, NULL);
    char *again = graph_to_text(c);
    assert_string_equal(again, golden);
    char *fault = graph_check(g);
    assert_null(fault);
    free(text), free(again);
    graph_free(g), graph_free(c);
}

static void bad_text_is_refused(void **state) {
    const char *bad[] = {
        "%0 = nonsense : f32[]\n",
        "%1 = input {name=\"x\"} : f32[]\n",
        "%0 = input {name=\"x\"} : f32[\n",
        "%0 = add %0 %0 : f32[]\n",
        "%0 = input {nome=\"x\"} : f32[]\n",
        "%0 = input {name=\"x\"} : f32[1,1,1,1,1,1,1,1,1]\n",
        "output \"y\" %0\n",
        "%0 = const {value=f32[2](1 x)} : f32[2]\n",
    };
    for (int i = 0; i < COUNT_OF(bad); i++) {
        Diag d = {0};
        assert_null(graph_parse(bad[i], NULL, &d));
        assert_int_equal(d.errors, 1);
        diag_free(&d);
    }
}

static void verifier_finds_faults(void **state) {
    Graph *g = parse(golden);
    Value *softmax = g->outputs.at[0].value->def->in[0];
    softmax->dims[1] = 5;
    char *fault = graph_check(g);
    assert_non_null(strstr(fault, "axis 1"));
    free(fault);
    softmax->dims[1] = 3;

    node_move_before(softmax->def, g->first);
    fault = graph_check(g);
    assert_non_null(strstr(fault, "defined later"));
    free(fault);
    assert_true(graph_sort(g));
    fault = graph_check(g);
    assert_null(fault);

    graph_add_output(g, "weights", softmax);
    fault = graph_check(g);
    assert_non_null(strstr(fault, "two outputs"));
    free(fault);
    graph_free(g);
}

static void editing_keeps_uses(void **state) {
    Graph *g = parse(golden);
    Value *z = g->outputs.at[0].value->def->in[0]->def->in[0];
    Builder b = builder_after(z->def);
    Value *half = op_binary(&b, OP_MUL, z, op_const_f(&b, DT_F32, 0.5));
    assert_false(graph_sort(g) == false);
    Value *softmax = g->outputs.at[0].value->def->in[0];
    node_set_in(softmax->def, 0, half);
    assert_int_equal(z->uses.n, 1);
    assert_int_equal(half->uses.n, 1);
    value_replace(softmax, half);
    assert_true(graph_dce(g)); /* the softmax goes */
    assert_int_equal(half->uses.n, 1);
    assert_ptr_equal(half->uses.at[0].node->op == OP_TOPK ? half : NULL, half);
    char *fault = graph_check(g);
    assert_null(fault);
    int64_t tokens = g->inputs.at[0]->dims[0];
    assert_string_equal(dim_name(g, tokens), "tokens");
    graph_bind(g, tokens, 7);
    assert_int_equal(g->outputs.at[1].value->dims[0], 7);
    graph_free(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_roundtrip),
        cmocka_unit_test(bad_text_is_refused),
        cmocka_unit_test(verifier_finds_faults),
        cmocka_unit_test(editing_keeps_uses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
