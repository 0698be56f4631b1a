/* test_onnx_import.c: models become graphs, or are refused with the fault named: names, order,
 * versions, attributes, functions, symbols, constants given from outside. Numbers are checked by
 * evaluating the graph. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <time.h>

#include <cmocka.h>

#include "frontend/frontend.h"
#include "ir/eval.h"
#include "ir/infer.h"
#include "ir/verify.h"
#include "onnx_maker.h"

typedef struct Result {
    Graph *g;
    int code;
    char text[2048]; /* all messages */
} Result;

static Result import(Bytes m, const ImportLimits *limits) {
    Diag d = {.subject = "test"};
    Result r = {.g = onnx_import_bytes(m.at, m.n, NULL, limits, NULL, &d)};
    r.code = r.g ? 0 : (int)d.code;
    size_t at = 0;
    for (int i = 0; i < d.messages.n && at < sizeof r.text; i++)
        at += (size_t)snprintf(r.text + at, sizeof r.text - at, "%s\n", d.messages.at[i].text);
    diag_free(&d);
    free(m.at);
    if (r.g) {
        char *fault = graph_check(r.g);
        if (fault)
            fail_msg("%s", fault);
    }
    return r;
}

static void assert_refused(Bytes m, const char *expected) {
    Result r = import(m, NULL);
    if (r.g || !strstr(r.text, expected))
        fail_msg("expected a refusal with \"%s\", found %s\"%s\"", expected,
                 r.g ? "a graph and " : "", r.text);
    assert_true(r.code == EXIT_MODEL || r.code == EXIT_RESOURCE);
}

/* x f32[n,3] -> nodes -> y */
static Bytes graph_of(Bytes *nodes, int n) {
    Bytes g = {0};
    for (int i = 0; i < n; i++)
        put_msg(&g, GRAPH_NODE, nodes[i]);
    put_msg(&g, GRAPH_INPUT, make_value("x", 1, "n 3"));
    put_msg(&g, GRAPH_OUTPUT, make_value("y", 1, "n 3"));
    return g;
}

#define MODEL(...) \
    make_model(graph_of((Bytes[]){__VA_ARGS__}, COUNT_OF(((Bytes[]){__VA_ARGS__}))), 8, 17)

/* Evaluates output 0 for the input x f32[rows,3] counting up from 1; `want` in order. */
static void assert_values(Graph *g, int64_t rows, const double *want, int n) {
    Arena a = {0};
    Diag d = {.subject = "test"};
    for (int i = 0; i < g->inputs.n; i++)
        for (int k = 0; k < g->inputs.at[i]->rank; k++)
            if (g->inputs.at[i]->dims[k] < 0)
                graph_bind(g, g->inputs.at[i]->dims[k], rows);
    assert_true(graph_infer(g, &d));
    Eval ev = {
        .arena = &a, .diag = &d, .values = xcalloc((size_t)g->next_value, sizeof(RTensor *))};
    for (int i = 0; i < g->inputs.n; i++) {
        Value *v = g->inputs.at[i];
        RTensor *t = rtensor_new(&a, v->dtype, v->rank, v->dims);
        for (int64_t k = 0; k < t->count; k++)
            t->f[k] = (double)(k + 1);
        ev.values[v->id] = t;
    }
    if (!eval_graph(&ev, g, &g->outputs.at[0].value, 1))
        fail_msg("%s", d.messages.at[0].text);
    RTensor *y = ev.values[g->outputs.at[0].value->id];
    assert_int_equal(y->count, n);
    for (int i = 0; i < n; i++) {
        double got = dtype_is_float(y->dtype) ? y->f[i] : (double)y->i[i];
        if (!(got - want[i] < 1e-6 && want[i] - got < 1e-6))
            fail_msg("element %d is %g, expected %g", i, got, want[i]);
    }
    free(ev.values);
    arena_free(&a);
    diag_free(&d);
    graph_free(g);
}
#define VALUES(g, rows, ...) \
    assert_values(g, rows, (double[]){__VA_ARGS__}, COUNT_OF(((double[]){__VA_ARGS__})))

/* ---- what is kept ---- */

static void keeps_names_and_kinds(void **state) {
    Bytes n = make_node("Add", "x w", "a"), g = {0};
    put_str(&n, 3, "my_add");
    put_msg(&g, GRAPH_NODE, n);
    put_msg(&g, GRAPH_NODE, make_node("Mul", "a one", "y"));
    put_msg(&g, GRAPH_INITIALIZER, make_tensor("w", 1, 1, (int64_t[]){3}, (float[]){1, 2, 3}, 12));
    put_msg(&g, GRAPH_INITIALIZER, make_tensor("one", 1, 0, NULL, (float[]){2}, 4));
    put_msg(&g, GRAPH_INPUT, make_value("x", 1, "batch 3"));
    put_msg(&g, GRAPH_OUTPUT, make_value("y", 1, "batch 3"));
    Result r = import(make_model(g, 8, 17), NULL);
    assert_non_null(r.g);
    assert_int_equal(r.g->inputs.n, 1);
    assert_string_equal(node_str(r.g->inputs.at[0]->def, AT_NAME, ""), "x");
    assert_string_equal(dim_name(r.g, r.g->inputs.at[0]->dims[0]), "batch");
    int params = 0;
    FOR_NODES(node, r.g) {
        if (node->op == OP_PARAM) {
            params++;
            assert_string_equal(param_name(node->out[0]), "w");
            assert_int_equal(node_int(node, AT_KIND, -1), PARAM_WEIGHT);
        }
        if (node->op == OP_ADD) {
            assert_string_equal(node->src->name, "my_add");
            assert_string_equal(node->src->op_type, "Add");
            assert_string_equal(node->out[0]->name, "a");
        }
    }
    assert_int_equal(params, 1);
    VALUES(r.g, 2, 4, 8, 12, 10, 14, 18);
}

/* Shape -> Gather -> Concat -> Reshape keeps the symbol, and a -1 that symbols decide becomes a
 * number. */
static void follows_symbols_through_shapes(void **state) {
    Bytes flat = make_node("Reshape", "x s", "y"), g = {0},
          take = make_node("Gather", "shape zero", "b");
    put_msg(&g, GRAPH_NODE, make_node("Shape", "x", "shape"));
    put_msg(&g, GRAPH_NODE, take);
    Bytes cat = make_node("Concat", "b rest", "s");
    put_attr_int(&cat, "axis", 0);
    put_msg(&g, GRAPH_NODE, cat);
    put_msg(&g, GRAPH_NODE, flat);
    put_msg(&g, GRAPH_INITIALIZER, make_ints("zero", 1, (int64_t[]){0}));
    put_msg(&g, GRAPH_INITIALIZER, make_ints("rest", 2, (int64_t[]){-1, 2}));
    put_msg(&g, GRAPH_INPUT, make_value("x", 1, "batch 3 4"));
    put_msg(&g, GRAPH_OUTPUT, make_value("y", 1, "batch 6 2"));
    Result r = import(make_model(g, 8, 17), NULL);
    assert_non_null(r.g);
    Value *y = r.g->outputs.at[0].value;
    assert_int_equal(y->rank, 3);
    assert_string_equal(dim_name(r.g, y->dims[0]), "batch");
    assert_int_equal(y->dims[1], 6);
    assert_int_equal(y->dims[2], 2);
    graph_free(r.g);
}

static void takes_values_and_sizes_from_outside(void **state) {
    Bytes g = {0};
    put_msg(&g, GRAPH_NODE, make_node("ReduceSum", "x axes", "y"));
    put_msg(&g, GRAPH_INPUT, make_value("x", 1, "n 3"));
    put_msg(&g, GRAPH_INPUT, make_value("axes", 7, "1"));
    put_msg(&g, GRAPH_OUTPUT, make_value("y", 1, "n 1"));
    Bytes m = make_model(g, 8, 17), again = {0};
    put_raw(&again, m.at, m.n);
    assert_refused(m, "depend on data");
    int64_t one = 1;
    float x[6] = {0};
    NamedTensor known = {"axes", &(Tensor){DT_I64, 1, {1}, &one}},
                sized = {"x", &(Tensor){DT_F32, 2, {2, 3}, x}};
    Result r =
        import(again, &(ImportLimits){.known = &known, .nknown = 1, .sized = &sized, .nsized = 1});
    assert_non_null(r.g);
    assert_int_equal(r.g->inputs.n, 1);
    assert_int_equal(r.g->inputs.at[0]->dims[0], 2);
    VALUES(r.g, 2, 6, 15);
}

/* ---- what is refused ---- */

static void refuses_bad_versions(void **state) {
    assert_refused(make_model(graph_of((Bytes[]){make_node("Relu", "x", "y")}, 1), 0, 17),
                   "IR version 0");
    assert_refused(make_model(graph_of((Bytes[]){make_node("Relu", "x", "y")}, 1), 99, 17),
                   "IR version 99");
    assert_refused(make_model(graph_of((Bytes[]){make_node("Relu", "x", "y")}, 1), 8, 28),
                   "opset version 28");
    Bytes twice = MODEL(make_node("Relu", "x", "y"));
    model_opset(&twice, "ai.onnx", 17);
    assert_refused(twice, "twice");
}

static void refuses_bad_names(void **state) {
    assert_refused(MODEL(make_node("Relu", "x", "y"), make_node("Abs", "x", "y")),
                   "defined more than once");
    assert_refused(MODEL(make_node("Relu", "nope", "y")), "\"nope\" is used but never defined");
    assert_refused(MODEL(make_node("Add", "x b", "a"), make_node("Relu", "a", "b"),
                         make_node("Abs", "b", "y")),
                   "form a cycle");
    assert_refused(MODEL(make_node("Relu", "x", "z")),
                   "output \"y\" of the graph is never defined");
}

static void sorts_only_when_asked(void **state) {
    assert_refused(MODEL(make_node("Relu", "a", "y"), make_node("Neg", "x", "a")),
                   "not in topological order");
    Result r = import(MODEL(make_node("Relu", "a", "y"), make_node("Neg", "x", "a")),
                      &(ImportLimits){.sort = true});
    assert_non_null(r.g);
    VALUES(r.g, 1, 0, 0, 0);
}

static void lists_all_unsupported_operators(void **state) {
    Result r = import(
        MODEL(make_node("Foo", "x", "a"), make_node("Foo", "a", "b"), make_node("Bar", "b", "y")),
        NULL);
    assert_null(r.g);
    assert_non_null(strstr(r.text, "2 unsupported operators"));
    assert_non_null(strstr(r.text, "Foo, 2 nodes, first \"a\""));
    assert_non_null(strstr(r.text, "Bar, 1 node"));
}

static void reports_every_fault(void **state) {
    Bytes softmax = make_node("Softmax", "x", "a"), flatten = make_node("Flatten", "x", "b");
    put_attr_str(&softmax, "axis", "one");
    put_attr_int(&flatten, "axis", 7);
    Result r = import(
        MODEL(softmax, flatten, make_node("Relu", "x x", "c"), make_node("Add", "a b", "y")), NULL);
    assert_null(r.g);
    assert_non_null(strstr(r.text, "attribute \"axis\" is of type string; expected int"));
    assert_non_null(strstr(r.text, "axis 7 is outside -2 to 2"));
    assert_non_null(strstr(r.text, "2 inputs; the operator takes 1"));
    assert_null(strstr(r.text, "Add")); /* only follows from the others */
}

static void refuses_bad_attributes(void **state) {
    Bytes unknown = make_node("Relu", "x", "y"), twice = make_node("Softmax", "x", "y"),
          missing = make_node("Concat", "x", "y");
    put_attr_int(&unknown, "axis", 1);
    put_attr_int(&twice, "axis", 1);
    put_attr_int(&twice, "axis", 1);
    assert_refused(MODEL(unknown), "attribute \"axis\" is not known");
    assert_refused(MODEL(twice), "given twice");
    assert_refused(MODEL(missing), "attribute \"axis\" is missing");
}

static Bytes with_initializer(Bytes t) {
    Bytes g = {0};
    put_msg(&g, GRAPH_NODE, make_node("Add", "x w", "y"));
    put_msg(&g, GRAPH_INITIALIZER, t);
    put_msg(&g, GRAPH_INPUT, make_value("x", 1, "n 3"));
    put_msg(&g, GRAPH_OUTPUT, make_value("y", 1, "n 3"));
    return make_model(g, 8, 17);
}

static void refuses_bad_tensors(void **state) {
    float w[4] = {1, 2, 3, 4};
    int64_t three = 3, many[17], wrap[3] = {1LL << 32, 1LL << 32, 3}, negative = -1;
    for (int i = 0; i < 17; i++)
        many[i] = 1;
    assert_refused(with_initializer(make_tensor("w", 1, 1, &three, w, 8)), "raw_data is 8 bytes");
    assert_refused(with_initializer(make_tensor("w", 1, 1, &three, w, 16)), "raw_data is 16 bytes");
    assert_refused(with_initializer(make_tensor("w", 99, 1, &three, w, 12)), "element type 99");
    assert_refused(with_initializer(make_tensor("w", 1, 1, &negative, w, 4)), "cannot be negative");
    assert_refused(with_initializer(make_tensor("w", 1, 3, wrap, w, 12)), "2^40");
    assert_refused(with_initializer(make_tensor("w", 1, 17, many, w, 4)), "rank 17");
    assert_refused(with_initializer(make_tensor("w", 1, 1, &three, NULL, 0)),
                   "0 elements are given");
    Bytes both = make_tensor("w", 1, 1, &three, w, 12);
    put_bytes(&both, 4, w, 12);
    assert_refused(with_initializer(both), "more than once");
}

/* ---- functions ---- */

static Bytes make_function(const char *name, const char *in, const char *out, Bytes *nodes, int n) {
    Bytes f = {0}, o = {0};
    put_str(&f, 1, name);
    put_words(&f, 4, in);
    put_words(&f, 5, out);
    for (int i = 0; i < n; i++)
        put_msg(&f, 7, nodes[i]);
    put_str(&o, 1, "");
    put_int(&o, 2, 17);
    put_msg(&f, 9, o);
    put_str(&f, 10, "loc");
    return f;
}

static Bytes local_call(const char *name, const char *in, const char *out) {
    Bytes n = make_node(name, in, out);
    put_str(&n, 7, "loc");
    return n;
}

/* twice(x) = x * 2 through an attribute reference: LeakyRelu(-x, alpha) = -alpha x for positive x.
 */
static void inlines_functions(void **state) {
    Bytes leaky = make_node("LeakyRelu", "t", "v"), ref = {0}, m;
    put_str(&ref, 1, "alpha");
    put_int(&ref, 20, 1);
    put_str(&ref, 21, "slope");
    put_msg(&leaky, 5, ref);
    Bytes f = make_function("scale", "u", "v", (Bytes[]){make_node("Neg", "u", "t"), leaky}, 2);
    put_str(&f, 6, "slope");
    Bytes a = local_call("scale", "x", "a"), b = local_call("scale", "x", "b");
    put_attr_float(&a, "slope", 2);
    put_attr_float(&b, "slope", 4);
    m = MODEL(a, b, make_node("Add", "a b", "y"));
    put_msg(&m, 25, f);
    Result r = import(m, NULL);
    assert_non_null(r.g);
    VALUES(r.g, 1, -6, -12, -18);
}

static void refuses_recursion_and_bombs(void **state) {
    Bytes m = MODEL(local_call("F", "x", "y"));
    put_msg(&m, 25, make_function("F", "u", "v", (Bytes[]){local_call("G", "u", "v")}, 1));
    put_msg(&m, 25, make_function("G", "u", "v", (Bytes[]){local_call("F", "u", "v")}, 1));
    assert_refused(m, "calls itself: F -> G -> F");
    m = MODEL(local_call("f0", "x", "y"));
    for (int i = 0; i < 60; i++) { /* 2^60 nodes in 60 functions */
        char name[16], next[16];
        snprintf(name, sizeof name, "f%d", i);
        snprintf(next, sizeof next, "f%d", i + 1);
        Bytes nodes[2] = {local_call(next, "u", "t"), local_call(next, "t", "v")};
        put_msg(&m, 25, make_function(name, "u", "v", nodes, 2));
    }
    put_msg(&m, 25, make_function("f60", "u", "v", (Bytes[]){make_node("Relu", "u", "v")}, 1));
    assert_refused(m, "inlining");
}

/* ---- readers that differ by opset ---- */

static void reads_axes_by_opset(void **state) {
    Bytes attr = make_node("Unsqueeze", "x", "y"), axes = {0};
    put_str(&axes, 1, "axes");
    put_int(&axes, 8, 0);
    put_int(&axes, 20, 7);
    put_msg(&attr, 5, axes);
    Result r = import(make_model(graph_of(&attr, 1), 8, 11), NULL);
    assert_non_null(r.g);
    assert_int_equal(r.g->outputs.at[0].value->rank, 3);
    graph_free(r.g);
    Bytes g = {0};
    put_msg(&g, GRAPH_NODE, make_node("Unsqueeze", "x a", "y"));
    put_msg(&g, GRAPH_INITIALIZER, make_ints("a", 1, (int64_t[]){-1}));
    put_msg(&g, GRAPH_INPUT, make_value("x", 1, "n 3"));
    put_msg(&g, GRAPH_OUTPUT, make_value("y", 1, "n 3 1"));
    r = import(make_model(g, 8, 17), NULL);
    assert_non_null(r.g);
    assert_int_equal(r.g->outputs.at[0].value->dims[1], 3);
    graph_free(r.g);
}

static void contracts_einsums(void **state) {
    Bytes e = make_node("Einsum", "x x", "y"), implicit = make_node("Einsum", "x x", "y");
    put_attr_str(&e, "equation", "ij,kj->ki");
    put_attr_str(&implicit, "equation", "ij, ij");
    Result r = import(MODEL(e), NULL);
    assert_non_null(r.g);
    VALUES(r.g, 2, 14, 32, 32, 77);
    r = import(MODEL(implicit), NULL);
    assert_non_null(r.g);
    VALUES(r.g, 2, 91);
}

static Bytes branch(const char *op) {
    Bytes g = {0};
    put_msg(&g, GRAPH_NODE, make_node(op, "x", "r"));
    put_msg(&g, GRAPH_OUTPUT, make_value("r", 1, "n 3"));
    return g;
}

static void takes_branches_or_selects(void **state) {
    for (int constant = 0; constant < 2; constant++) {
        Bytes n = make_node("If", "c", "y"), g = {0};
        put_attr_graph(&n, "then_branch", branch("Neg"));
        put_attr_graph(&n, "else_branch", branch("Identity"));
        if (constant) {
            put_msg(&g, GRAPH_INITIALIZER, make_tensor("c", 9, 0, NULL, "\0", 1));
        } else {
            Bytes any = make_node("ReduceMax", "x", "m");
            put_attr_int(&any, "keepdims", 0);
            put_msg(&g, GRAPH_NODE, any);
            put_msg(&g, GRAPH_NODE, make_node("Less", "zero m", "c"));
            put_msg(&g, GRAPH_INITIALIZER, make_tensor("zero", 1, 0, NULL, (float[]){0}, 4));
        }
        put_msg(&g, GRAPH_NODE, n);
        put_msg(&g, GRAPH_INPUT, make_value("x", 1, "n 3"));
        put_msg(&g, GRAPH_OUTPUT, make_value("y", 1, "n 3"));
        Result r = import(make_model(g, 8, 17), NULL);
        assert_non_null(r.g);
        int selects = 0;
        FOR_NODES(node, r.g)
        selects += node->op == OP_WHERE;
        assert_int_equal(selects, !constant);
        if (constant)
            VALUES(r.g, 1, 1, 2, 3);
        else
            VALUES(r.g, 1, -1, -2, -3);
    }
}

/* ---- speed ---- */

static double import_seconds(int nodes) {
    Bytes g = {0};
    char in[16] = "x", out[16];
    for (int i = 0; i < nodes; i++) {
        snprintf(out, sizeof out, i + 1 == nodes ? "y" : "v%d", i);
        put_msg(&g, GRAPH_NODE, make_node(i % 2 ? "Neg" : "Relu", in, out));
        snprintf(in, sizeof in, "%s", out);
    }
    put_msg(&g, GRAPH_INPUT, make_value("x", 1, "n 3"));
    put_msg(&g, GRAPH_OUTPUT, make_value("y", 1, "n 3"));
    Bytes m = make_model(g, 8, 17);
    Diag d = {.subject = "test"};
    struct timespec a, b;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
    Graph *graph = onnx_import_bytes(m.at, m.n, NULL, NULL, NULL, &d);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
    assert_non_null(graph);
    graph_free(graph);
    diag_free(&d);
    free(m.at);
    return (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) * 1e-9;
}

/* Ten times the nodes take about ten times the time; 40 leaves room for a loaded machine, a square
 * would give 100. */
static void imports_in_linear_time(void **state) {
    import_seconds(2000);
    double small = import_seconds(5000), large = import_seconds(50000);
    print_message("%.2f us a node at 5,000 nodes, %.2f at 50,000\n", small / 5000 * 1e6,
                  large / 50000 * 1e6);
    assert_true(large < 40 * small);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keeps_names_and_kinds),
        cmocka_unit_test(follows_symbols_through_shapes),
        cmocka_unit_test(takes_values_and_sizes_from_outside),
        cmocka_unit_test(refuses_bad_versions),
        cmocka_unit_test(refuses_bad_names),
        cmocka_unit_test(sorts_only_when_asked),
        cmocka_unit_test(lists_all_unsupported_operators),
        cmocka_unit_test(reports_every_fault),
        cmocka_unit_test(refuses_bad_attributes),
        cmocka_unit_test(refuses_bad_tensors),
        cmocka_unit_test(inlines_functions),
        cmocka_unit_test(refuses_recursion_and_bombs),
        cmocka_unit_test(reads_axes_by_opset),
        cmocka_unit_test(contracts_einsums),
        cmocka_unit_test(takes_branches_or_selects),
        cmocka_unit_test(imports_in_linear_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
