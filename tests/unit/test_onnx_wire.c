/* test_onnx_wire.c: the wire scan: what it lets through, what it refuses and where it says so. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "frontend/frontend.h"
#include "onnx_maker.h"

static Bytes small_model(void) {
    Bytes g = {0};
    put_msg(&g, GRAPH_NODE, make_node("Relu", "x", "y"));
    put_msg(&g, GRAPH_INPUT, make_value("x", 1, "2 n"));
    put_msg(&g, GRAPH_OUTPUT, make_value("y", 1, "2 n"));
    return make_model(g, 8, 17);
}

/* Imports and frees; the exit code (0 for a graph), the first message into `text`. */
static int outcome(Bytes m, const ImportLimits *limits, char text[512]) {
    Diag d = {.subject = "test"};
    Graph *g = onnx_import_bytes(m.at, m.n, NULL, limits, NULL, &d);
    int code = g ? 0 : (int)d.code;
    snprintf(text, 512, "%s", d.messages.n ? d.messages.at[0].text : "");
    assert_true(g || d.errors > 0);
    if (g)
        graph_free(g);
    diag_free(&d);
    free(m.at);
    return code;
}

static void accepts_a_model(void **state) {
    char text[512];
    assert_int_equal(outcome(small_model(), NULL, text), 0);
}

/* Every proper prefix is refused; none crashes or is taken for a model with all its parts. */
static void refuses_every_truncation(void **state) {
    Bytes whole = small_model();
    for (size_t n = 0; n < whole.n; n++) {
        Bytes part = {0};
        char text[512];
        put_raw(&part, whole.at, n);
        assert_int_equal(outcome(part, NULL, text), EXIT_MODEL);
    }
    free(whole.at);
}

/* One byte changed at a time: any outcome with a message, or a graph; sanitizers watch. */
static void survives_every_changed_byte(void **state) {
    Bytes whole = small_model();
    static const uint8_t to[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
    for (size_t i = 0; i < whole.n; i++) {
        for (int k = 0; k < COUNT_OF(to); k++) {
            Bytes m = {0};
            char text[512];
            put_raw(&m, whole.at, whole.n);
            m.at[i] = to[k];
            int code = outcome(m, NULL, text);
            assert_true(code == 0 || code == EXIT_MODEL || code == EXIT_RESOURCE);
        }
    }
    free(whole.at);
}

static void names_the_byte_of_a_long_length(void **state) {
    Bytes m = {0};
    char text[512];
    put_int(&m, 1, 8);
    put_raw(&m, "\x3a\x64zz", 4); /* graph, 100 bytes, 2 there */
    assert_int_equal(outcome(m, NULL, text), EXIT_MODEL);
    assert_non_null(strstr(text, "byte 2: graph is 100 bytes long, but only 2 are left"));
}

static void refuses_groups_and_long_varints(void **state) {
    char text[512];
    Bytes group = {0}, varint = {0};
    put_raw(&group, "\x0b", 1); /* field 1, wire type 3 */
    assert_int_equal(outcome(group, NULL, text), EXIT_MODEL);
    put_raw(&varint, "\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", 11);
    assert_int_equal(outcome(varint, NULL, text), EXIT_MODEL);
    assert_non_null(strstr(text, "varint"));
}

static void refuses_bad_text(void **state) {
    static const char *const bad[] = {"\xff", "a\x01", "\xc0\x80", "\xed\xa0\x80", "a\nb"};
    for (int i = 0; i < COUNT_OF(bad); i++) {
        Bytes m = small_model();
        char text[512];
        put_str(&m, 2, bad[i]);
        assert_int_equal(outcome(m, NULL, text), EXIT_MODEL);
        assert_non_null(strstr(text, "UTF-8"));
    }
    Bytes doc = small_model(); /* documentation may hold lines */
    char text[512];
    put_str(&doc, 6, "two\nlines\t\xc3\xa4");
    assert_int_equal(outcome(doc, NULL, text), 0);
}

static Bytes nested(int depth) {
    Bytes g = {0};
    put_msg(&g, GRAPH_NODE, make_node("Relu", "x", "y"));
    put_msg(&g, GRAPH_OUTPUT, make_value("y", 1, "2"));
    for (int i = 0; i < depth; i++) {
        Bytes outer = {0}, n = make_node("If", "c", "y");
        put_attr_graph(&n, "then_branch", g);
        put_msg(&outer, GRAPH_NODE, n);
        put_msg(&outer, GRAPH_OUTPUT, make_value("y", 1, "2"));
        g = outer;
    }
    return make_model(g, 8, 17);
}

static void bounds_nesting(void **state) {
    char text[512];
    assert_int_equal(outcome(nested(40), NULL, text), EXIT_RESOURCE);
    assert_int_equal(outcome(nested(3000), NULL, text), EXIT_RESOURCE);
    assert_non_null(strstr(text, "nest deeper"));
}

static void bounds_nodes_and_heap(void **state) {
    char text[512];
    Bytes g = {0};
    for (int i = 0; i < 20; i++)
        put_msg(&g, GRAPH_NODE, make_node("Relu", "x", "y"));
    Bytes m = make_model(g, 8, 17), again = {0};
    put_raw(&again, m.at, m.n);
    assert_int_equal(outcome(m, &(ImportLimits){.max_nodes = 10}, text), EXIT_RESOURCE);
    assert_int_equal(outcome(again, &(ImportLimits){.max_heap = 1000}, text), EXIT_RESOURCE);
    Bytes empty = {0}, graph = {0};
    put_msg(&graph, GRAPH_NODE, (Bytes){0});
    put_msg(&empty, 7, graph);
    assert_int_equal(outcome(empty, NULL, text), EXIT_MODEL);
    assert_non_null(strstr(text, "op_type"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accepts_a_model),
        cmocka_unit_test(refuses_every_truncation),
        cmocka_unit_test(survives_every_changed_byte),
        cmocka_unit_test(names_the_byte_of_a_long_length),
        cmocka_unit_test(refuses_groups_and_long_varints),
        cmocka_unit_test(refuses_bad_text),
        cmocka_unit_test(bounds_nesting),
        cmocka_unit_test(bounds_nodes_and_heap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
