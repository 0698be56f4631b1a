/* train.precision: which products the pass marks, what a marked product computes, and how far a
 * training step then is from f32. */
#include "tests/unit/lower_help.h"

#include "frontend/bind.h"
#include "frontend/frontend.h"
#include "passes/pass.h"

/* ---- which ---- */

/* A layer of four experts with its router before and behind other products, the gradient of its
 * experts, and a capture that is given it. */
static const char layer[] =
    "x = f32[12,6]; a = param f32[6,6]; z = param f32[6,4]; w = param f32[4,6,5]; d = f32[24,5]; "
    "h = matmul x a; l = matmul h z; s = softmax l {axis=1}; tv,ti = topk s {k=2,axis=1}; "
    "o,t,p,e,pr,te = dispatch ti l {experts=4,top_k=2}; r = gather_rows h t pr; "
    "y = grouped_matmul r o w; g = grouped_wgrad r y o; k = grouped_wgrad r d o; "
    "c = token_dot r y o g; v = token_dot y y o; q = matmul s z {trans_b=1}; out y k c v q";

static const char *precision_of(Reader *r, const char *name) {
    return node_str(known(r, name)->def, AT_PRECISION, "f32");
}

static void marks(Reader *r, Precision precision) {
    Recipe *recipe = recipe_new();
    recipe->train.precision = precision;
    read_graph(r, layer);
    Compile c = {.g = r->g, .recipe = recipe, .diag = &r->d};
    assert_true(pass_precision(&c));
    recipe_free(recipe);
}

static void decisions_stay_f32(void **state) {
    static const struct {
        const char *name, *precision;
    } want[] = {
        {"h", "bf16"}, /* reaches the top-k through another product only */
        {"l", "f32"},  /* router logits */
        {"y", "bf16"}, /* a capture's operand is no decision */
        {"g", "f32"},  /* the gradient that tokens are compared with */
        {"k", "bf16"}, /* any other */
        {"q", "bf16"}, /* of the router's scores, after the decision */
        {"s", "f32"},  /* no product */
    };
    Reader r;
    marks(&r, PRECISION_BF16);
    for (int i = 0; i < COUNT_OF(want); i++)
        if (strcmp(precision_of(&r, want[i].name), want[i].precision) != 0)
            fail_msg("%s: %s, expected %s", want[i].name, precision_of(&r, want[i].name),
                     want[i].precision);
    graph_free(r.g);
    for (int p = 0; p < 2; p++) {
        marks(&r, p ? PRECISION_TF32 : PRECISION_F32);
        for (int i = 0; i < COUNT_OF(want); i++)
            assert_string_equal(precision_of(&r, want[i].name), "f32");
        graph_free(r.g);
    }
}

/* ---- what ---- */

/* The evaluator rounds operands; compiled code agrees with it. */
static void rounded_once(Reader *r, Eval *ev, Tensor **inputs, bool fused, const char *text,
                         double tol) {
    const double *y = ev->values[known(r, "y")->id]->f;
    assert_true(y[0] == 1 + 3);
    run_compiled(r, ev, inputs, fused, text, tol);
}

static void operands_are_rounded(void **state) {
    /* 1 + 2^-8 is halfway to the next bf16 and becomes 1; 3 + 2^-9 becomes 3. */
    differ_by("a = const f32[1,2] 1.00390625 1; b = const f32[2,1] 1 3.001953125; "
              "y = matmul a b {precision=bf16}; out y",
              0, rounded_once);
    differ("x = f32[90,70]; w = param f32[70,110]; y = matmul x w {precision=bf16}; "
           "z = matmul y w {trans_b=1,precision=bf16}; d = sub y #1; out y d",
           2e-6);
    differ("x = f32[3,2,20,9]; k = f32[3,2,20,9]; s = matmul x k {trans_b=1,precision=bf16}; out s",
           2e-6);
    differ("x = f32[40,30]; s = i64<-1,4>[40,2]; w = param f32[4,30,50]; d = f32[80,50]; "
           "o,t,p,e,pr,te = dispatch s {experts=4,top_k=2}; r = gather_rows x t pr; "
           "y = grouped_matmul r o w {precision=bf16}; g = grouped_wgrad r d o {precision=bf16}; "
           "out y g",
           2e-6);
}

/* ---- how far ---- */

typedef struct Step {
    Arena arena;
    NamedArrays out; /* copies */
} Step;

static void keep_outputs(Step *s, const Graph *g, StgcRun *run) {
    for (int i = 0; i < g->outputs.n; i++) {
        const Value *v = g->outputs.at[i].value;
        const StgcSlot *slot = stgc_run_find(run, g->outputs.at[i].name);
        assert_non_null(slot);
        Tensor *t = tensor_new(&s->arena, v->dtype, v->rank, v->dims);
        memcpy(t->data, stgc_run_data(run, slot), tensor_bytes(t));
        vec_push(&s->out.names, arena_strdup(&s->arena, g->outputs.at[i].name));
        vec_push(&s->out.tensors, t);
    }
}

/* One step of the byte-level model in the repository. */
static void byte_step(Step *s, Precision precision, int threads) {
    Diag d = {.subject = "byte-olmoe"};
    OnnxFile *file = NULL;
    ImportLimits limits = {0};
    NamedArrays batch = {0};
    Recipe *recipe = recipe_new();
    bool stopped = false;
    Graph *g = onnx_import(SOURCE_DIR "/models/byte-olmoe.onnx", &limits, &file, &d);
    bool ok = g && recipe_read(recipe, SOURCE_DIR "/models/byte-olmoe.yaml", &d) &&
              npz_read(SOURCE_DIR "/tests/byte-batch.npz", &batch, &d) &&
              bind_arrays(g, &batch, &d) && graph_infer(g, &d);
    recipe->train.precision = precision;
    Compile c = {.g = g,
                 .recipe = recipe,
                 .wants = {.train = true, .grads = true, .detail = true},
                 .diag = &d};
    ok = ok && passes_run(&c, &stopped);
    CodegenOptions o = {.fused = true};
    Compiled *code = ok ? codegen_x86(g, &o, &d) : NULL;
    if (!code)
        diag_print(&d, stderr, true);
    assert_non_null(code);
    StgcRt *rt = stgc_rt_new(threads);
    StgcRun *run = stgc_run_new(rt, compiled_step(code));
    for (int i = 0; i < g->inputs.n; i++) {
        const StgcSlot *slot = stgc_run_find(run, param_name(g->inputs.at[i]));
        const Tensor *t = arrays_find(&batch, param_name(g->inputs.at[i]));
        assert_true(slot && t && tensor_bytes(t) == (size_t)slot->bytes);
        memcpy(stgc_run_data(run, slot), t->data, tensor_bytes(t));
    }
    assert_int_equal(stgc_run_step(run), STGC_OK);
    keep_outputs(s, g, run);
    stgc_run_free(run);
    stgc_rt_free(rt);
    compiled_free(code);
    vec_free(&c.not_raised);
    recipe_free(recipe);
    arrays_free(&batch);
    onnx_file_free(file);
    graph_free(g);
    diag_free(&d);
}

static void step_free(Step *s) {
    vec_free(&s->out.names);
    vec_free(&s->out.tensors);
    arena_free(&s->arena);
}

/* |a - b| / |a| */
static double distance(const Tensor *a, const Tensor *b) {
    double difference = 0, size = 0;
    for (int64_t i = 0; i < tensor_count(a); i++) {
        double x = tensor_get_f(a, i), y = tensor_get_f(b, i);
        difference += (x - y) * (x - y);
        size += x * x;
    }
    return size > 0 ? sqrt(difference / size) : 0;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Gradients of the whole model within 3 % of f32's as a rule, the worst of them within 25 %: a
 * token near a tie may go to another expert. The same bytes for any number of threads. */
static void near_f32(void **state) {
    Step f32 = {0}, bf16 = {0}, again = {0};
    double far[256];
    int n = 0;
    byte_step(&f32, PRECISION_F32, 2);
    byte_step(&bf16, PRECISION_BF16, 2);
    byte_step(&again, PRECISION_BF16, 1);
    for (int i = 0; i < f32.out.names.n; i++) {
        const char *name = f32.out.names.at[i];
        const Tensor *a = f32.out.tensors.at[i], *b = arrays_find(&bf16.out, name);
        const Tensor *c = arrays_find(&again.out, name);
        assert_memory_equal(b->data, c->data, tensor_bytes(b));
        if (strncmp(name, "grad/", 5) != 0)
            continue;
        assert_true(n < COUNT_OF(far));
        far[n++] = distance(a, b);
        if (!(far[n - 1] <= 0.25))
            fail_msg("%s is %.3g away", name, far[n - 1]);
    }
    qsort(far, (size_t)n, sizeof *far, ascending);
    print_message("gradients: median %.2g, most %.2g away\n", far[n / 2], far[n - 1]);
    assert_true(far[n / 2] > 1e-4); /* it is bf16 */
    assert_true(far[n / 2] <= 0.03);
    step_free(&f32);
    step_free(&bf16);
    step_free(&again);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decisions_stay_f32),
        cmocka_unit_test(operands_are_rounded),
        cmocka_unit_test(near_f32),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
