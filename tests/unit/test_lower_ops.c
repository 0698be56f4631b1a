/* test_lower_ops.c: every op of the table, compiled and run, against the reference evaluator. */
#include "lower_help.h"
#include "op_graphs.h"

#define RUN(table, tol) \
    static void test_##table(void **state) { \
        (void)state; \
        for (int i = 0; i < COUNT_OF(table); i++) \
            differ(table[i], tol); \
    }
RUN(elementwise, 2e-6)
RUN(shapes, 1e-6)
RUN(reductions, 1e-5)
RUN(indexing, 1e-6)
RUN(products, 1e-5)
RUN(experts, 1e-5)
RUN(updates, 1e-6)

/* A size that only data decide is refused, every user node named. */
static void test_refusal(void **state) {
    (void)state;
    Reader *r = xcalloc(1, sizeof *r);
    read_graph(r, "x = f32[4,5]; i = nonzero x; j = nonzero i; out i j");
    Diag d = {.subject = "model.onnx"};
    CodegenOptions o = {.fused = true};
    assert_null(codegen_x86(r->g, &o, &d));
    assert_int_equal(d.errors, 1);
    assert_int_equal(d.code, EXIT_MODEL);
    assert_non_null(strstr(d.messages.at[0].text, "--engine reference"));
    const char *first = strstr(d.messages.at[0].text, "node \"user\"");
    assert_non_null(first);
    assert_non_null(strstr(first + 1, "node \"user\""));
    diag_free(&d);
    diag_free(&r->d);
    graph_free(r->g);
    free(r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_elementwise), cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_reductions),  cmocka_unit_test(test_indexing),
        cmocka_unit_test(test_products),    cmocka_unit_test(test_experts),
        cmocka_unit_test(test_updates),     cmocka_unit_test(test_refusal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
