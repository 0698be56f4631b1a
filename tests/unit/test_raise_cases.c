/* test_raise_cases.c: real exports, imported, bound, canonicalised and raised: the layers found are
 * those the exporter's model has, and the raised graph still computes what the model computed.
 *
 * The exports lie in ../shared/cases beside a checkout; without them the test says so and passes.
 * With arguments the program reports on the directories named instead (a way to look at one model).
 */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "frontend/bind.h"
#include "ir/eval.h"
#include "ir/infer.h"
#include "ir/text.h"
#include "ir/verify.h"
#include "passes/pass.h"

#define CASES SOURCE_DIR "/../shared/cases"

typedef struct Outcome {
    int layers, experts, top_k; /* of the first layer */
    int not_raised, wrong;
    double router_error; /* the largest of moe/I/logits */
    double error;        /* of out/logits, relative to its largest value; NAN: not compared */
} Outcome;

/* The number behind "KEY": in about.json; absent if it is not there. */
static int about(const char *dir, const char *key, int absent) {
    char path[512], line[256], want[64];
    snprintf(path, sizeof path, "%s/about.json", dir);
    snprintf(want, sizeof want, "\"%s\":", key);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f)) {
        const char *p = strstr(line, want);
        if (p)
            absent = atoi(p + strlen(want));
    }
    if (f)
        fclose(f);
    return absent;
}

/* Evaluates a value in float64 and compares it with an array of expected.npz. */
static double value_error(Graph *g, Value *logits, const char *key, const NamedArrays *batch,
                          const char *dir) {
    char path[512];
    Diag d = {.subject = dir};
    NamedArrays expected = {0};
    Arena arena = {0};
    double most = NAN, size = 1e-30;
    snprintf(path, sizeof path, "%s/expected.npz", dir);
    const Tensor *want = npz_read(path, &expected, &d) ? arrays_find(&expected, key) : NULL;
    Eval ev = {.arena = &arena, .diag = &d};
    ev.values = xcalloc((size_t)g->next_value, sizeof *ev.values);
    for (int i = 0; i < g->inputs.n; i++) {
        const Tensor *t = array_for(g, g->inputs.at[i], batch, &d);
        if (t)
            ev.values[g->inputs.at[i]->id] = rtensor_from(&arena, t);
    }
    if (want && logits && eval_graph(&ev, g, &logits, 1)) {
        const RTensor *got = ev.values[logits->id];
        most = got->count == tensor_count(want) ? 0 : INFINITY;
        for (int64_t i = 0; most < INFINITY && i < got->count; i++) {
            double w = tensor_get_f(want, i), e = fabs(got->f[i] - w);
            most = e > most || isnan(e) ? e : most;
            size = fabs(w) > size ? fabs(w) : size;
        }
    }
    diag_print(&d, stderr, true);
    free(ev.values);
    arena_free(&arena);
    arrays_free(&expected);
    diag_free(&d);
    return most / size;
}

static double logits_error(Graph *g, const NamedArrays *batch, const char *dir) {
    for (int i = 0; i < g->outputs.n; i++)
        if (!strcmp(g->outputs.at[i].name, "logits"))
            return value_error(g, g->outputs.at[i].value, "out/logits", batch, dir);
    return NAN;
}

static bool raise_case(const char *dir, Outcome *out, bool talk, const char *dump) {
    char model[512], data[512];
    Diag d = {.subject = dir};
    NamedArrays batch = {0};
    snprintf(model, sizeof model, "%s/model.onnx", dir);
    snprintf(data, sizeof data, "%s/batch.npz", dir);
    *out = (Outcome){.error = NAN};
    Graph *g = onnx_import(model, NULL, NULL, &d);
    FILE *has = fopen(data, "rb");
    bool ok = g != NULL;
    if (has) {
        fclose(has);
        ok = ok && npz_read(data, &batch, &d) && bind_arrays(g, &batch, &d);
    } else if (ok) {
        bind_samples(g);
    }
    ok = ok && graph_infer(g, &d);
    Compile c = {.g = g, .diag = &d, .allow_unraised = true};
    if (getenv("PROBE_BUDGET"))
        c.probe_budget = atoll(getenv("PROBE_BUDGET"));
    double before = NAN;
    if (ok && has && talk)
        before = logits_error(g, &batch, dir);
    ok = ok && pass_canonicalise(&c);
    if (ok) {
        graph_verify(g, "canonicalise");
        if (dump && !strcmp(dump, "canonicalise"))
            graph_print(g, stdout);
        if (talk && has)
            printf("  logits: imported %.2g, canonical %.2g\n", before,
                   logits_error(g, &batch, dir));
        clock_t start = clock();
        ok = pass_raise_moe(&c);
        if (talk)
            printf("  raised in %.2f s\n", (double)(clock() - start) / CLOCKS_PER_SEC);
        graph_verify(g, "raise_moe");
        if (dump && !strcmp(dump, "raise_moe"))
            graph_print(g, stdout);
    }
    if (ok) {
        MoeLayers layers;
        moe_layers(g, &layers);
        out->layers = layers.n;
        out->experts = layers.n ? layers.at[0].experts : 0;
        out->top_k = layers.n ? layers.at[0].top_k : 0;
        out->not_raised = c.not_raised.n;
        if (has)
            out->error = logits_error(g, &batch, dir);
        for (int i = 0; has && i < layers.n; i++) {
            char key[64];
            snprintf(key, sizeof key, "moe/%d/logits", i);
            double e = layers.at[i].logits ? value_error(g, layers.at[i].logits, key, &batch, dir)
                                           : INFINITY;
            if (e > out->router_error)
                out->router_error = e;
            if (talk)
                printf("  router logits of layer %d differ by %.2g\n", i, e);
        }
        for (int i = 0; talk && i < layers.n; i++) {
            const MoeLayer *l = &layers.at[i];
            printf("  layer %d: form %s E %d K %d score %s logits %s x %s weights %d linears %d "
                   "probe %.2g\n    %s\n",
                   i, l->form, l->experts, l->top_k, l->score, l->logits ? "yes" : "no",
                   l->x ? "yes" : "no", l->weights.n, l->linears.n, l->probe_error, l->schema);
        }
        for (int i = 0; i < c.not_raised.n; i++) {
            const NotRaised *n = &c.not_raised.at[i];
            out->wrong += n->wrong;
            if (talk)
                printf("  %s: \"%s\": %s\n", n->wrong ? "WRONG" : "left", n->node, n->why);
        }
        moe_layers_free(&layers);
    }
    diag_print(&d, stderr, talk);
    vec_free(&c.not_raised);
    graph_free(g);
    arrays_free(&batch);
    diag_free(&d);
    return ok;
}

/* ---- the tests ---- */

static void check_case(const char *name) {
    char dir[512];
    Outcome o;
    snprintf(dir, sizeof dir, "%s/%s", CASES, name);
    DIR *there = opendir(dir);
    if (!there) {
        fprintf(stderr, "SKIPPED: no %s\n", dir);
        skip();
    }
    closedir(there);
    assert_true(raise_case(dir, &o, false, NULL));
    assert_int_equal(o.layers, about(dir, "layers", 0));
    assert_int_equal(o.wrong, 0);
    if (o.layers) {
        assert_int_equal(o.experts, about(dir, "E", -1));
        assert_int_equal(o.top_k, about(dir, "K", -1));
    }
    if (!(o.router_error <= 1e-6))
        fail_msg("%s: router logits differ by %g", name, o.router_error);
    if (!(o.error <= 1e-6))
        fail_msg("%s: logits differ by %g", name, o.error);
}

#define CASE(fn, name) \
    static void fn(void **state) { \
        (void)state; \
        check_case(name); \
    }
CASE(batched, "mixtral-dynamo-batched")
CASE(batched_full, "mixtral-dynamo-batched-full")
CASE(batched_legacy, "mixtral-legacy-batched")
CASE(dense, "mixtral-dynamo-dense")
CASE(stacked, "gptoss-dynamo-stacked")
CASE(loop_v4, "mixtral-v4-legacy-loop")
CASE(loop_legacy, "qwen3moe-legacy-loop")
CASE(loop_dynamo, "qwen3moe-dynamo-loop")
CASE(grouped, "olmoe-hf-grouped")
CASE(moe_op, "qwen2moe-hf-moeop")
CASE(no_experts, "llava-dense-legacy")

int main(int argc, char **argv) {
    const char *dump = getenv("DUMP");
    for (int i = 1; i < argc; i++) {
        Outcome o;
        printf("%s\n", argv[i]);
        bool ok = raise_case(argv[i], &o, true, dump);
        printf("  %s: %d layers (%d expected), E %d K %d, logits differ by %.2g\n",
               ok ? "done" : "FAILED", o.layers, about(argv[i], "layers", -1), o.experts, o.top_k,
               o.error);
    }
    if (argc > 1)
        return 0;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(batched),        cmocka_unit_test(batched_full),
        cmocka_unit_test(batched_legacy), cmocka_unit_test(dense),
        cmocka_unit_test(stacked),        cmocka_unit_test(loop_v4),
        cmocka_unit_test(loop_legacy),    cmocka_unit_test(loop_dynamo),
        cmocka_unit_test(grouped),        cmocka_unit_test(moe_op),
        cmocka_unit_test(no_experts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
