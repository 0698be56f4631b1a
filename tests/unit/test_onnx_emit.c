/* test_onnx_emit.c: every op written as ONNX and read back means what it meant: both graphs in the
 * reference evaluator.
 *
 * With STGC_KEEP_ONNX=DIR the models stay in DIR, each with its inputs and expected outputs beside
 * it (NAME.onnx, NAME.in.npz, NAME.out.npz), for tests/onnx-ops to run them in another engine. */
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "codegen/onnx.h"
#include "frontend/frontend.h"
#include "lower_help.h"
#include "op_graphs.h"

/* One graph on its way there and back. */
typedef struct Trip {
    const char *text;
    Reader *r;
    Arena arena;
    Eval ev;
    char model[256], base[240];
    int opset;
} Trip;

static const char *keep_dir(void) {
    return getenv("STGC_KEEP_ONNX");
}

static void add_array(NpzWriter *w, const char *name, const RTensor *v, Arena *a, Diag *d) {
    assert_true(npz_add(w, name, rtensor_to(a, v, v->dtype), d));
}

static void write_arrays(Trip *t, const char *suffix, bool inputs) {
    char path[300];
    Diag d = {.subject = "test"};
    Graph *g = t->r->g;
    snprintf(path, sizeof path, "%s.%s.npz", t->base, suffix);
    NpzWriter *w = npz_create(path, &d);
    assert_non_null(w);
    for (int i = 0; inputs && i < g->inputs.n; i++)
        add_array(w, g->inputs.at[i]->name, t->ev.values[g->inputs.at[i]->id], &t->arena, &d);
    for (int i = 0; i < g->updates.n; i++) {
        const Value *p = g->updates.at[i].param, *v = inputs ? p : g->updates.at[i].value;
        const char *name =
            inputs ? param_name(p) : arena_printf(&t->arena, "%s.next", param_name(p));
        add_array(w, name, t->ev.values[v->id], &t->arena, &d);
    }
    for (int i = 0; !inputs && i < g->outputs.n; i++)
        add_array(w, g->outputs.at[i].name, t->ev.values[g->outputs.at[i].value->id], &t->arena,
                  &d);
    assert_true(npz_close(w, &d));
    diag_free(&d);
}

static void evaluate(Trip *t) {
    Graph *g = t->r->g;
    lower_seed = 1;
    t->ev = (Eval){.arena = &t->arena,
                   .diag = &t->r->d,
                   .values = xcalloc((size_t)g->next_value + 1, sizeof(RTensor *))};
    for (int i = 0; i < g->inputs.n; i++) {
        const Value *v = g->inputs.at[i];
        Tensor *x = tensor_new(&t->arena, v->dtype, v->rank, v->dims);
        for (int k = 0; k < t->r->n; k++)
            if (t->r->value[k] == v)
                fill_input(x, t->r->lo[k], t->r->hi[k]);
        t->ev.values[v->id] = rtensor_from(&t->arena, x);
    }
    if (!eval_graph(&t->ev, g, NULL, 0)) {
        diag_print(&t->r->d, stderr, true);
        fail_msg("%s\nwas not evaluated", t->text);
    }
}

/* The value of the first graph that an input of the second stands for. */
static RTensor *given(Trip *t, const char *name) {
    Graph *g = t->r->g;
    for (int i = 0; i < g->inputs.n; i++)
        if (!strcmp(g->inputs.at[i]->name, name))
            return t->ev.values[g->inputs.at[i]->id];
    FOR_NODES(n, g)
    if (n->op == OP_PARAM && !strcmp(param_name(n->out[0]), name))
        return t->ev.values[n->out[0]->id];
    if (!strcmp(name, "step"))
        return rtensor_new(&t->arena, DT_I64, 0, NULL);
    fail_msg("%s\nhas an input '%s' that the graph does not have", t->text, name);
    return NULL;
}

static const RTensor *wanted(Trip *t, const char *name) {
    Graph *g = t->r->g;
    for (int i = 0; i < g->outputs.n; i++)
        if (!strcmp(g->outputs.at[i].name, name))
            return t->ev.values[g->outputs.at[i].value->id];
    for (int i = 0; i < g->updates.n; i++) {
        const char *next = arena_printf(&t->arena, "%s.next", param_name(g->updates.at[i].param));
        if (!strcmp(next, name))
            return t->ev.values[g->updates.at[i].value->id];
    }
    return NULL;
}

/* Reads the model again, evaluates it on the same inputs, and compares every output. */
static void come_back(Trip *t, double tol) {
    Diag d = {.subject = "written.onnx"};
    Graph *g = onnx_import(t->model, NULL, NULL, &d);
    if (!g || !graph_infer(g, &d)) {
        diag_print(&d, stderr, true);
        fail_msg("%s\nis not read back", t->text);
    }
    Eval ev = {.arena = &t->arena,
               .diag = &d,
               .values = xcalloc((size_t)g->next_value + 1, sizeof(RTensor *))};
    for (int i = 0; i < g->inputs.n; i++)
        ev.values[g->inputs.at[i]->id] = given(t, node_str(g->inputs.at[i]->def, AT_NAME, ""));
    if (!eval_graph(&ev, g, NULL, 0)) {
        diag_print(&d, stderr, true);
        fail_msg("%s\nread back, was not evaluated", t->text);
    }
    int compared = 0;
    for (int i = 0; i < g->outputs.n; i++) {
        const RTensor *want = wanted(t, g->outputs.at[i].name),
                      *got = ev.values[g->outputs.at[i].value->id];
        if (!want)
            continue; /* step.next */
        assert_int_equal(got->dtype, want->dtype);
        assert_int_equal(got->rank, want->rank);
        for (int k = 0; k < want->rank; k++)
            assert_int_equal(got->dims[k], want->dims[k]);
        compare(t->text, "read back", g->outputs.at[i].name, rtensor_to(&t->arena, got, got->dtype),
                want, tol);
        compared++;
    }
    assert_int_equal(compared, t->r->g->outputs.n + t->r->g->updates.n);
    free(ev.values);
    diag_free(&d);
    graph_free(g);
}

static void there_and_back(const char *text, const char *name, int opset, double tol) {
    static const Recipe recipe;
    Trip t = {.text = text, .r = xcalloc(1, sizeof(Reader)), .opset = opset};
    snprintf(t.base, sizeof t.base, "%s/emit_%s_%d", keep_dir() ? keep_dir() : "/tmp", name,
             keep_dir() ? opset : (int)getpid());
    snprintf(t.model, sizeof t.model, "%s.onnx", t.base);
    read_graph(t.r, text);
    evaluate(&t);
    OnnxOptions o = {.opset = opset, .version = "test", .recipe = &recipe};
    if (!onnx_write_training(t.r->g, t.model, &o, &t.r->d, &t.r->d)) {
        diag_print(&t.r->d, stderr, true);
        fail_msg("%s\nwas not written", text);
    }
    come_back(&t, tol);
    if (keep_dir()) {
        write_arrays(&t, "in", true);
        write_arrays(&t, "out", false);
    } else {
        unlink(t.model);
    }
    free(t.ev.values);
    arena_free(&t.arena);
    diag_free(&t.r->d);
    graph_free(t.r->g);
    free(t.r);
}

/* Types that engines seldom compute in: halves as f32, small integers as i32, and back. */
static const char *const small_types[] = {
    "x = f16[3,4]; w = param f16[4,5]; y = matmul x w; z = exp y; s = softmax z {axis=1}; r = "
    "reduce_max y {axes=[1],keepdims=1}; d = sub y r; out z s d",
    "a = f32[6,4]; x = cast a {to=bf16}; y = add x x; k = sigmoid y; c = cumsum y {axis=0}; d = "
    "cast k {to=f32}; e = cast c {to=f32}; out d e",
    "x = i8<-9,9>[4,5]; y = u8<1,9>[4,5]; a = add x x; b = max y y; c = reduce_sum x {axes=[0]}; e "
    "= lt x x; q = argmax y {axis=1}; out a b c e q",
    "x = f16[7,4]; s = i64<-1,3>[7,2]; o,t,p,e,pr,te = dispatch s {experts=3,top_k=2}; r = "
    "gather_rows x t pr; w = f16[3,4,4]\n"
    "h = grouped_matmul r o w; g = grouped_wgrad r h o; d = token_dot r h o g; q = segment_sum h o "
    "e; y = combine h pr t; out h g d q y",
    "p = param f16[4,3]; g = f16[4,3]; h = f32[8]; q = sgd p g h {weight_decay=0.1}; update p q",
    "b = bool[4,3]; c = bool[4,3]; w = where b c b; s = reduce_max b {axes=[0]}; out w s",
};

#define RUN(table, tol) \
    static void test_##table(void **state) { \
        (void)state; \
        for (int i = 0; i < COUNT_OF(table); i++) { \
            char name[40]; \
            snprintf(name, sizeof name, #table "_%d", i); \
            there_and_back(table[i], name, 18, tol); \
            there_and_back(table[i], name, 25, tol); \
        } \
    }
RUN(elementwise, 1e-6)
RUN(shapes, 1e-6)
RUN(reductions, 1e-6)
RUN(indexing, 1e-6)
RUN(products, 1e-6)
RUN(experts, 1e-6)
RUN(updates, 1e-6)
RUN(small_types, 2e-2)

/* Opset 17 spells axes of ReduceMax as an attribute, and has no scatter that keeps the largest. */
static void test_opset_17(void **state) {
    (void)state;
    there_and_back("x = f32[4,33]; b = reduce_max x {axes=[1],keepdims=1}; s = reduce_sum x "
                   "{axes=[0],keepdims=0}; out b s",
                   "opset17", 17, 1e-6);
    Reader *r = xcalloc(1, sizeof *r);
    char path[64];
    snprintf(path, sizeof path, "/tmp/emit_refused_%d.onnx", (int)getpid());
    read_graph(r, "x = f32[9,6]; i = i64<0,6>[9,2]; u = f32[9,2]; c = scatter_elements x i u "
                  "{axis=1,reduction=max}; out c");
    OnnxOptions o = {.opset = 17, .version = "test"};
    assert_false(onnx_write_training(r->g, path, &o, &r->d, &r->d));
    assert_int_equal(r->d.code, EXIT_MODEL);
    assert_non_null(strstr(r->d.messages.at[0].text, "--opset 18"));
    assert_int_not_equal(access(path, F_OK), 0);
    diag_free(&r->d);
    graph_free(r->g);
    free(r);
}

/* Two tensors of one name cannot both be in the file. */
static void test_names_collide(void **state) {
    (void)state;
    Reader *r = xcalloc(1, sizeof *r);
    char path[64];
    snprintf(path, sizeof path, "/tmp/emit_collide_%d.onnx", (int)getpid());
    read_graph(r, "step = f32[4]; p = param f32[4]; a = add p step; update p a; out a");
    OnnxOptions o = {.opset = 18, .version = "test"};
    assert_false(onnx_write_training(r->g, path, &o, &r->d, &r->d));
    assert_non_null(strstr(r->d.messages.at[0].text, "\"step\""));
    assert_int_not_equal(access(path, F_OK), 0);
    diag_free(&r->d);
    graph_free(r->g);
    free(r);
}

/* Large tensors beside the model, small ones in it; the model reads them back. */
static void test_external_data(void **state) {
    (void)state;
    Reader *r = xcalloc(1, sizeof *r);
    Diag d = {.subject = "written.onnx"};
    char path[64], data[80];
    struct stat st;
    snprintf(path, sizeof path, "/tmp/emit_external_%d.onnx", (int)getpid());
    snprintf(data, sizeof data, "%s.data", path);
    read_graph(r, "x = f32[2,40]; w = param f32[40,30]; v = param f32[30]; y = matmul x w; z = add "
                  "y v; out z");
    OnnxOptions o = {.opset = 18, .version = "test", .external_data = true};
    assert_true(onnx_write_training(r->g, path, &o, &r->d, &r->d));
    assert_int_equal(stat(data, &st), 0);
    assert_int_equal(st.st_size, 40 * 30 * 4);
    Graph *g = onnx_import(path, NULL, NULL, &d);
    if (!g)
        diag_print(&d, stderr, true);
    assert_non_null(g);
    int same = 0;
    FOR_NODES(n, g)
    FOR_NODES(m, r->g)
    if (n->op == OP_PARAM && m->op == OP_PARAM &&
        !strcmp(param_name(n->out[0]), param_name(m->out[0])))
        same += tensor_equal(node_attr(n, AT_VALUE)->t, node_attr(m, AT_VALUE)->t);
    assert_int_equal(same, 2);
    unlink(path);
    unlink(data);
    graph_free(g);
    diag_free(&d);
    diag_free(&r->d);
    graph_free(r->g);
    free(r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_elementwise),   cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_reductions),    cmocka_unit_test(test_indexing),
        cmocka_unit_test(test_products),      cmocka_unit_test(test_experts),
        cmocka_unit_test(test_updates),       cmocka_unit_test(test_small_types),
        cmocka_unit_test(test_opset_17),      cmocka_unit_test(test_names_collide),
        cmocka_unit_test(test_external_data),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
