/* test_onnx_ops.c: operators whose meaning is decided while importing: packed weights, random
 * nodes, values that are known beforehand, gradients inside the model; and what the list of
 * unsupported parts says. The suites of ONNX and ONNX Runtime (tests/onnx-nodes, onnx-contrib)
 * check the rest where Python has them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "frontend/frontend.h"
#include "ir/eval.h"
#include "ir/infer.h"
#include "ir/verify.h"
#include "onnx_maker.h"
#include "passes/pass.h"

#define MS "com.microsoft"

typedef struct Model {
    Bytes g;
} Model;

static void add_node(Model *m, Bytes n) {
    put_msg(&m->g, GRAPH_NODE, n);
}
static void add_floats(Model *m, const char *name, int n, const float *v) {
    put_msg(&m->g, GRAPH_INITIALIZER,
            make_tensor(name, 1, 1, (int64_t[]){n}, v, sizeof *v * (size_t)n));
}
static Bytes ms_node(const char *op, const char *in, const char *out, const char *name) {
    Bytes n = make_node(op, in, out);
    put_str(&n, 3, name);
    put_str(&n, 7, MS);
    return n;
}

/* The finished model's graph, or NULL with the messages in `text`. */
static Graph *import(Model m, const ImportLimits *limits, char *text, size_t size) {
    Bytes b = make_model(m.g, 9, 18);
    model_opset(&b, MS, 1);
    model_opset(&b, "ai.onnx.preview.training", 1);
    Diag d = {.subject = "test"};
    Graph *g = onnx_import_bytes(b.at, b.n, NULL, limits, NULL, &d);
    size_t at = 0;
    *text = 0;
    for (int i = 0; i < d.messages.n && at < size; i++)
        at += (size_t)snprintf(text + at, size - at, "%s\n", d.messages.at[i].text);
    diag_free(&d);
    free(b.at);
    char *fault = g ? graph_check(g) : NULL;
    if (fault)
        fail_msg("%s", fault);
    return g;
}

/* Output `o` for inputs whose elements count up from 1, times `step`. */
static RTensor *evaluate(Arena *a, Graph *g, int o, double step) {
    Diag d = {.subject = "test"};
    assert_true(graph_infer(g, &d));
    Eval ev = {.arena = a, .diag = &d, .values = xcalloc((size_t)g->next_value, sizeof(RTensor *))};
    for (int i = 0; i < g->inputs.n; i++) {
        Value *v = g->inputs.at[i];
        RTensor *t = rtensor_new(a, v->dtype, v->rank, v->dims);
        for (int64_t k = 0; k < t->count; k++)
            t->f[k] = step * (double)(k + 1);
        ev.values[v->id] = t;
    }
    if (!eval_graph(&ev, g, &g->outputs.at[o].value, 1))
        fail_msg("%s", d.messages.at[0].text);
    RTensor *y = ev.values[g->outputs.at[o].value->id];
    free(ev.values);
    diag_free(&d);
    return y;
}

static void assert_values(const RTensor *y, const double *want, int n) {
    assert_int_equal(y->count, n);
    for (int i = 0; i < n; i++)
        if (!(y->f[i] - want[i] < 1e-6 && want[i] - y->f[i] < 1e-6))
            fail_msg("element %d is %g, expected %g", i, y->f[i], want[i]);
}
#define VALUES(y, ...) \
    assert_values(y, (double[]){__VA_ARGS__}, COUNT_OF(((double[]){__VA_ARGS__})))

/* ---- packed weights ---- */

/* Two rows of four 4-bit numbers in blocks of two; the low half of a byte first. */
static Graph *packed(bool zeros, char *text, size_t size) {
    Model m = {0};
    Bytes n = ms_node("MatMulNBits", zeros ? "x w s z" : "x w s", "y", "mm");
    put_attr_int(&n, "K", 4);
    put_attr_int(&n, "N", 2);
    put_attr_int(&n, "bits", 4);
    put_attr_int(&n, "block_size", 2);
    add_node(&m, n);
    put_msg(&m.g, GRAPH_INITIALIZER,
            make_tensor("w", 2, 3, (int64_t[]){2, 2, 1}, (uint8_t[]){0x98, 0x07, 0xf0, 0x8a}, 4));
    add_floats(&m, "s", 4, (float[]){1, 10, 0.5f, 2});
    if (zeros) /* a byte a row: block 0 in the low half */
        put_msg(&m.g, GRAPH_INITIALIZER,
                make_tensor("z", 2, 1, (int64_t[]){2}, (uint8_t[]){0x78, 0x80}, 2));
    put_msg(&m.g, GRAPH_INPUT, make_value("x", 1, "1 4"));
    put_msg(&m.g, GRAPH_OUTPUT, make_value("y", 1, "1 2"));
    return import(m, NULL, text, size);
}

static void unpacks_weights(void **state) {
    char text[1024];
    Arena a = {0};
    Graph *g = packed(false, text, sizeof text);
    /* w = (0 1, -10 -80; -4 3.5, 4 0) */
    assert_non_null(g);
    VALUES(evaluate(&a, g, 0, 1), 2 - 30 - 320, -4 + 7 + 12);
    graph_free(g);
    g = packed(true, text, sizeof text); /* zeros 8 7; 0 8: (0 1, 0 -70; 0 7.5, 4 0) */
    assert_non_null(g);
    VALUES(evaluate(&a, g, 0, 1), 2 - 280, 15 + 12);
    graph_free(g);
    arena_free(&a);
}

/* ---- random nodes ---- */

static Graph *noisy(const ImportLimits *limits, char *text, size_t size) {
    Model m = {0};
    Bytes n = make_node("RandomUniformLike", "x", "y");
    put_attr_float(&n, "low", 2);
    put_attr_float(&n, "high", 4);
    add_node(&m, n);
    put_msg(&m.g, GRAPH_INPUT, make_value("x", 1, "2 3"));
    put_msg(&m.g, GRAPH_OUTPUT, make_value("y", 1, "2 3"));
    return import(m, limits, text, size);
}

static void noise_is_its_mean_or_seeded(void **state) {
    char text[1024];
    Arena a = {0};
    Graph *g = noisy(NULL, text, sizeof text);
    assert_non_null(g);
    assert_non_null(strstr(text, "each is its mean here"));
    VALUES(evaluate(&a, g, 0, 1), 3, 3, 3, 3, 3, 3);
    graph_free(g);
    double draws[2][6];
    for (int seed = 0; seed < 2; seed++)
        for (int again = 0; again < 2; again++) {
            g = noisy(&(ImportLimits){.noise_seed = 7 + (uint64_t)seed}, text, sizeof text);
            RTensor *y = evaluate(&a, g, 0, 1);
            for (int i = 0; i < 6; i++) {
                assert_true(y->f[i] > 2 && y->f[i] < 4);
                if (again)
                    assert_true(y->f[i] == draws[seed][i]);
                draws[seed][i] = y->f[i];
            }
            graph_free(g);
        }
    for (int i = 0; i < 6; i++)
        assert_true(draws[0][i] != draws[1][i] && (i == 0 || draws[0][i] != draws[0][i - 1]));
    arena_free(&a);
}

/* ---- values given beforehand ---- */

/* Scales that arrive with the data decide a size; they stay an input. */
static void known_floats_decide_sizes(void **state) {
    char text[1024];
    Model m = {0};
    add_node(&m, make_node("Resize", "x  s", "y"));
    put_msg(&m.g, GRAPH_INPUT, make_value("x", 1, "1 2"));
    put_msg(&m.g, GRAPH_INPUT, make_value("s", 1, "2"));
    put_msg(&m.g, GRAPH_OUTPUT, make_value("y", 1, "? ?"));
    Tensor scales = {.dtype = DT_F32, .rank = 1, .dims = {2}, .data = (float[]){1, 2}};
    NamedTensor known = {"s", &scales};
    Graph *g = import(m, &(ImportLimits){.known = &known, .nknown = 1}, text, sizeof text);
    assert_non_null(g);
    assert_int_equal(g->inputs.n, 2);
    Arena a = {0};
    VALUES(evaluate(&a, g, 0, 1), 1, 1, 2, 2);
    arena_free(&a);
    graph_free(g);
}

/* A value that is not what the model declares is left to the checks of the data. */
static void known_values_must_fit(void **state) {
    char text[1024];
    Model m = {0};
    add_node(&m, make_node("Add", "x k", "y"));
    put_msg(&m.g, GRAPH_INPUT, make_value("x", 7, "2"));
    put_msg(&m.g, GRAPH_INPUT, make_value("k", 7, "2"));
    put_msg(&m.g, GRAPH_OUTPUT, make_value("y", 7, "2"));
    Tensor three = {.dtype = DT_I64, .rank = 1, .dims = {3}, .data = (int64_t[]){1, 2, 3}};
    NamedTensor known = {"k", &three};
    Graph *g = import(m, &(ImportLimits){.known = &known, .nknown = 1}, text, sizeof text);
    assert_non_null(g);
    assert_int_equal(g->inputs.n, 2);
    graph_free(g);
}

/* ---- inverse trigonometry ---- */

static void inverse_functions_are_inverse(void **state) {
    static const char *const pairs[][2] = {{"Atan", "Tan"}, {"Asin", "Sin"}, {"Acos", "Cos"}};
    char text[1024];
    for (int i = 0; i < COUNT_OF(pairs); i++) {
        Model m = {0};
        Arena a = {0};
        add_node(&m, make_node(pairs[i][0], "x", "h"));
        add_node(&m, make_node(pairs[i][1], "h", "y"));
        put_msg(&m.g, GRAPH_INPUT, make_value("x", 1, "4"));
        put_msg(&m.g, GRAPH_OUTPUT, make_value("y", 1, "4"));
        Graph *g = import(m, NULL, text, sizeof text);
        assert_non_null(g);
        double step = i == 0 ? 1.5 : 0.25; /* up to 6 and up to 1 */
        RTensor *y = evaluate(&a, g, 0, step);
        for (int k = 0; k < 4; k++) {
            double error = y->f[k] / (step * (k + 1)) - 1;
            assert_true(error < 1e-6 && error > -1e-6);
        }
        graph_free(g);
        arena_free(&a);
    }
}

/* ---- Gradient ---- */

static void put_attr_strs(Bytes *node, const char *name, const char *words) {
    Bytes a = {0};
    put_str(&a, 1, name);
    put_words(&a, 9, words);
    put_int(&a, 20, 8);
    put_msg(node, 5, a);
}

static void gradients_inside_a_model(void **state) {
    char text[1024];
    Model m = {0};
    Bytes n = make_node("Gradient", "x", "dx");
    put_attr_strs(&n, "xs", "x");
    put_attr_str(&n, "y", "square");
    put_str(&n, 7, "ai.onnx.preview.training");
    add_node(&m, make_node("Mul", "x x", "square"));
    add_node(&m, n);
    put_msg(&m.g, GRAPH_INPUT, make_value("x", 1, "3"));
    put_msg(&m.g, GRAPH_OUTPUT, make_value("dx", 1, "3"));
    Graph *g = import(m, &(ImportLimits){.gradient = gradient_of}, text, sizeof text);
    if (!g)
        fail_msg("%s", text);
    Arena a = {0};
    VALUES(evaluate(&a, g, 0, 1), 2, 4, 6);
    arena_free(&a);
    graph_free(g);
}

/* ---- what is not supported ---- */

/* Operator, node, layer, parameter and way out; the faults of other nodes are told as well. */
static void lists_all_that_is_unsupported(void **state) {
    char text[4096];
    Model m = {0};
    Bytes gru = make_node("GRU", "h u v", "r"), bad = make_node("Softmax", "h", "q");
    put_str(&gru, 3, "/model/layers.4/rnn/GRU");
    put_attr_int(&bad, "axis", 9);
    add_node(&m, make_node("Mul", "x layers.3.w", "h"));
    add_node(&m, gru);
    add_node(&m, bad);
    add_node(&m, make_node("Frobnicate", "x", "s"));
    add_node(&m, make_node("Add", "r s", "y"));
    add_floats(&m, "layers.3.w", 3, (float[]){1, 2, 3});
    add_floats(&m, "u", 3, (float[]){1, 2, 3});
    add_floats(&m, "v", 3, (float[]){1, 2, 3});
    put_msg(&m.g, GRAPH_INPUT, make_value("x", 1, "2 3"));
    put_msg(&m.g, GRAPH_OUTPUT, make_value("y", 1, "2 3"));
    assert_null(import(m, NULL, text, sizeof text));
    static const char *const said[] = {
        "2 unsupported operators:",
        "GRU, 1 node, first \"/model/layers.4/rnn/GRU\" in layer 4",
        "needed for parameter \"u\" (and 2 more)",
        "move the recurrent part out of the model",
        "Frobnicate, 1 node, first \"s\"\n",
        "no parameter is trained through it",
        "axis 9 is outside -2 to 1",
        "needed for parameter \"layers.3.w\"",
    };
    for (int i = 0; i < COUNT_OF(said); i++)
        if (!strstr(text, said[i]))
            fail_msg("\"%s\" is missing in:\n%s", said[i], text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unpacks_weights),
        cmocka_unit_test(noise_is_its_mean_or_seeded),
        cmocka_unit_test(known_floats_decide_sizes),
        cmocka_unit_test(known_values_must_fit),
        cmocka_unit_test(inverse_functions_are_inverse),
        cmocka_unit_test(gradients_inside_a_model),
        cmocka_unit_test(lists_all_that_is_unsupported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
