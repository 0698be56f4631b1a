/* test_recipe.c: the recipe's defaults, keys, messages (exact), limits, and that its print reads
 * back. */
#include "frontend/frontend.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static char path[] = "/tmp/stgcc_recipe_XXXXXX";

static void write_recipe(const char *text, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    fclose(f);
}

static char *print(const Recipe *r) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    recipe_print(r, f);
    fclose(f);
    return text;
}

static char *messages(const Diag *d) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    diag_print(d, f, true);
    fclose(f);
    return text;
}

/* Reads `text` and expects exactly `want` as messages ("" : accepted). */
static void expect(const char *text, size_t n, const char *want) {
    write_recipe(text, n);
    Diag d = {.subject = "c.yaml"};
    Recipe *r = recipe_new();
    bool ok = recipe_read(r, path, &d);
    char *got = messages(&d);
    assert_string_equal(got, want);
    assert_int_equal(ok, !*want);
    if (!ok)
        assert_int_equal(d.code, EXIT_USAGE);
    free(got);
    recipe_free(r);
    diag_free(&d);
}

static void expect_text(const char *text, const char *want) {
    expect(text, strlen(text), want);
}

static const char defaults[] = "model:\n  train: [\"*\"]\n  freeze: []\n  tie: []\n"
                               "loss:\n  kind: causal_lm\n  logits: null\n  labels: \"labels\"\n"
                               "  shifted: false\n  ignore_index: -100\n  balance: 0.01\n"
                               "  router_z: 0\n  terms: {}\n"
                               "stgc:\n  enabled: true\n  capture: exact\n  threshold: 0\n"
                               "  weight: 1\n  mean: include_self\n  flow: router\n"
                               "  layer_reduction: sum\n  token_mask: null\n"
                               "  straight_through: auto\n"
                               "data:\n  dtype: uint16\n  inputs: {}\n"
                               "  labels_from: \"input_ids\"\n  order: shuffle\n"
                               "noise: off\n"
                               "optimizer:\n  kind: adamw\n  lr: 0.001\n  betas: [0.9, 0.999]\n"
                               "  eps: 1e-08\n  weight_decay: 0.01\n  momentum: 0\n"
                               "  clip_norm: null\n"
                               "schedule:\n  kind: constant\n  warmup: 0\n  steps: 1000\n"
                               "train:\n  batch: 8\n  sequence: 256\n  accumulate: 1\n  seed: 1\n"
                               "  precision: f32\n  checkpoint_every: 500\n  log_every: 10\n";

static void test_defaults(void **state) {
    Recipe *r = recipe_new();
    char *text = print(r);
    assert_string_equal(text, defaults);
    free(text);
    recipe_free(r);
    expect_text("", "");
    expect_text("# nothing\n", "");
    expect_text("stgc:\n  # threshold: 1\n", "");
    expect(defaults, strlen(defaults), "");
}

static const char everything[] =
    "model: {train: [\"a.*\", b], freeze: '*.inv_freq'}\n"
    "loss: {kind: token_classification, logits: \"out\\\"put\", labels: y, shifted: true,\n"
    "  ignore_index: -1, balance: 0.5, router_z: 1e-3, terms: {aux.1: 0.25, z: -1}}\n"
    "stgc: {enabled: no, capture: last_linear, threshold: -0.05, weight: 3, mean: leave_one_out,\n"
    "  flow: full, layer_reduction: mean, token_mask: attention_mask, straight_through: off}\n"
    "data: {dtype: uint32, inputs: {attention_mask: 1}, labels_from: ids, order: sequential}\n"
    "noise: seeded\n"
    "optimizer: {kind: sgd, lr: 0.05, betas: [0, 0.5], eps: 1e-6, weight_decay: 0, momentum: 0.9,\n"
    "  clip_norm: 1.0}\n"
    "schedule: {kind: cosine, warmup: 10, steps: 50}\n"
    "train: {batch: 2, sequence: 16, accumulate: 4, seed: 7, precision: bf16,\n"
    "  checkpoint_every: 0, log_every: 1}\n";

static void test_every_key(void **state) {
    write_recipe(everything, strlen(everything));
    Diag d = {0};
    Recipe *r = recipe_new(), *again = recipe_new();
    assert_true(recipe_read(r, path, &d));
    assert_int_equal(r->model.train.n, 2);
    assert_string_equal(r->model.freeze.at[0], "*.inv_freq");
    assert_int_equal(r->loss.kind, LOSS_TOKEN_CLASSIFICATION);
    assert_string_equal(r->loss.logits, "out\"put");
    assert_true(r->loss.shifted);
    assert_int_equal(r->loss.terms.n, 2);
    assert_string_equal(r->loss.terms.at[0].name, "aux.1");
    assert_true(r->loss.terms.at[1].value == -1);
    assert_false(r->stgc.enabled);
    assert_int_equal(r->stgc.straight_through, STRAIGHT_OFF);
    assert_int_equal(r->data.dtype_bytes, 4);
    assert_true(r->optimizer.clip_norm == 1);
    assert_true(r->optimizer.beta1 == 0 && r->optimizer.beta2 == 0.5);
    assert_int_equal(r->train.precision, PRECISION_BF16);
    char *text = print(r); /* canonical text reads back to itself */
    write_recipe(text, strlen(text));
    assert_true(recipe_read(again, path, &d));
    char *text2 = print(again);
    assert_string_equal(text, text2);
    free(text);
    free(text2);
    recipe_free(r);
    recipe_free(again);
    diag_free(&d);
}

static void test_all_problems_at_once(void **state) {
    expect_text(
        "loss:\n"
        "  kind: causal_ml\n"
        "  router_zz: 1\n"
        "stgk:\n"
        "  threshold: 0\n"
        "threshold: 3\n"
        "stgc:\n"
        "  threshold: much\n"
        "  lr: 1\n"
        "  capture: [exact]\n"
        "  frobnicate: 1\n"
        "optimizer: {lr: -1, betas: [0.9], eps: .nan, momentum: 1}\n"
        "train: {batch: 1.5, seed: -1, steps: 3}\n"
        "model: {freeze: {a: b}}\n",
        "c.yaml: error: line 2: 'loss.kind' is 'causal_ml'; expected causal_lm, "
        "classification, token_classification, regression or output\n"
        "  did you mean 'causal_lm'?\n"
        "c.yaml: error: line 3: unknown key 'loss.router_zz'\n"
        "  did you mean 'loss.router_z'?\n"
        "c.yaml: error: line 4: unknown key 'stgk'\n"
        "  did you mean 'stgc'?\n"
        "c.yaml: error: line 6: unknown key 'threshold'\n"
        "  did you mean 'stgc.threshold'?\n"
        "c.yaml: error: line 8: 'stgc.threshold' is 'much'; expected a number from -2 to 2\n"
        "c.yaml: error: line 9: unknown key 'stgc.lr'\n"
        "  did you mean 'optimizer.lr'?\n"
        "c.yaml: error: line 10: 'stgc.capture' is a list; expected exact, output, "
        "last_linear or none\n"
        "c.yaml: error: line 11: unknown key 'stgc.frobnicate'\n"
        "  keys of 'stgc': enabled, capture, threshold, weight, mean, flow, "
        "layer_reduction, token_mask, straight_through\n"
        "c.yaml: error: line 12: 'optimizer.lr' is '-1'; expected a number from 0 to "
        "1e+06\n"
        "c.yaml: error: line 12: 'optimizer.betas' is a list; expected a list of two "
        "numbers: [0.9, 0.999]\n"
        "c.yaml: error: line 12: 'optimizer.eps' is '.nan'; expected a number from 0 to 1\n"
        "c.yaml: error: line 12: 'optimizer.momentum' is '1'; expected a number from 0 "
        "to 1\n"
        "c.yaml: error: line 13: 'train.batch' is '1.5'; expected an integer from 1 to "
        "1048576\n"
        "c.yaml: error: line 13: 'train.seed' is '-1'; expected an integer from 0 to "
        "9007199254740992\n"
        "c.yaml: error: line 13: unknown key 'train.steps'\n"
        "  did you mean 'schedule.steps'?\n"
        "c.yaml: error: line 14: 'model.freeze' is a map; expected a list of names or "
        "globs: [\"a.*\", \"b\"]\n");
}

static void test_more_than_a_recipe_needs(void **state) {
    expect_text("model: {freeze: [*.bias]}\n",
                "c.yaml: error: line 1: did not find expected alphabetic or numeric character\n"
                "  a value that starts with *, &, @ or % needs quotes: \"*\"\n");
    expect_text("model: {freeze: *bias}\n",
                "c.yaml: error: line 1: aliases (*name) are not used in recipes\n"
                "  a glob that starts with * needs quotes: \"*.bias\"\n");
    expect_text("loss: &a {kind: output}\n",
                "c.yaml: error: line 1: anchors (&name) are not used in recipes\n"
                "  write the value out\n");
    expect_text("loss: {kind: !!str output}\n",
                "c.yaml: error: line 1: tags (!type) are not used in recipes\n"
                "  leave the tag away\n");
    expect_text("loss: {}\nstgc: {<<: 1}\n",
                "c.yaml: error: line 2: merge keys (<<) are not used in recipes\n");
    expect_text("loss: {}\n---\nloss: {}\n", "c.yaml: error: line 2: a second document\n"
                                             "  a recipe is one document: remove the '---'\n");
    expect_text("loss: {}\nstgc: {}\nloss: {}\n",
                "c.yaml: error: line 3: key 'loss' a second time; the first is on line 1\n");
    expect_text("- a\n",
                "c.yaml: error: line 1: expected sections such as 'loss:', found a list\n");
    expect_text("{[a]: b}\n", "c.yaml: error: line 1: a list or a map cannot be a key\n");
    expect_text("a: b: c\n",
                "c.yaml: error: line 1: mapping values are not allowed in this context\n");
    expect_text("loss: {labels: \"a\\0b\"}\n",
                "c.yaml: error: line 1: a text with a NUL character\n"
                "  remove it\n");
    expect_text("lo\x1b[31mss: 1\n", "c.yaml: error: line 1: control characters are not allowed\n");
}

static void test_limits(void **state) {
    enum { N = 1 << 20 };
    char *big = malloc(N + 1);
    clock_t start = clock();
    memset(big, '[', N);
    expect(big, 80000, "c.yaml: error: line 1: nested deeper than 32\n");
    memset(big, ' ', N + 1);
    expect(big, N, "");
    expect(big, N + 1,
           "c.yaml: error: larger than a recipe may be (1048577 bytes, limit 1048576)\n");
    memcpy(big, "x: [", 4);
    for (int i = 4; i < N; i++)
        big[i] = i % 2 ? ',' : 'a';
    expect(big, 300000,
           "c.yaml: error: line 1: more than 100000 values; a recipe has a few dozen\n");
    assert_true((double)(clock() - start) / CLOCKS_PER_SEC < 5);
    free(big);
    Diag d = {.subject = "c.yaml"};
    Recipe *r = recipe_new();
    assert_false(recipe_read(r, "/nonexistent/c.yaml", &d));
    assert_false(recipe_read(r, "/dev/zero", &d));
    char *got = messages(&d);
    assert_string_equal(got, "c.yaml: error: cannot open the recipe: No such file or directory\n"
                             "c.yaml: error: not a regular file; expected a recipe in YAML\n");
    free(got);
    recipe_free(r);
    diag_free(&d);
}

static void test_set(void **state) {
    Diag d = {.subject = "stgcc"};
    Recipe *r = recipe_new();
    assert_true(recipe_set(r, "stgc.threshold=-0.1", &d));
    assert_true(r->stgc.threshold == -0.1);
    assert_true(recipe_set(r, "optimizer.betas=[0.8, 0.9]", &d));
    assert_true(r->optimizer.beta1 == 0.8 && r->optimizer.beta2 == 0.9);
    assert_true(recipe_set(r, "model.freeze=*.bias", &d));
    assert_string_equal(r->model.freeze.at[0], "*.bias");
    assert_true(recipe_set(r, "model.freeze=[\"a=b\", c]", &d));
    assert_string_equal(r->model.freeze.at[0], "a=b");
    assert_true(recipe_set(r, "loss.terms.aux.loss=0.5", &d));
    assert_string_equal(r->loss.terms.at[0].name, "aux.loss");
    assert_true(recipe_set(r, "noise=seeded", &d));
    assert_int_equal(r->noise, NOISE_SEEDED);
    assert_true(recipe_set(r, "optimizer.clip_norm=null", &d));
    assert_int_equal(d.messages.n, 0);
    const char *bad[] = {"stgc.treshold=1", "stgc=1",       "foo.bar=1",         "x",
                         "stgc.weight=a",   "=3",           "loss.terms={a: b}", "model.freeze=[a",
                         "noise.x=1",       "loss.terms.=1"};
    for (int i = 0; i < COUNT_OF(bad); i++)
        assert_false(recipe_set(r, bad[i], &d));
    char *got = messages(&d);
    assert_string_equal(
        got, "stgcc: error: unknown key 'stgc.treshold'\n  did you mean 'stgc.threshold'?\n"
             "stgcc: error: 'stgc' is a section; expected one of its keys, such as stgc.enabled\n"
             "stgcc: error: unknown key 'foo.bar'\n"
             "  known: model, loss, stgc, data, noise, optimizer, schedule, train\n"
             "stgcc: error: 'x' is no assignment; expected KEY=VALUE such as stgc.threshold=-0.1\n"
             "stgcc: error: 'stgc.weight' is 'a'; expected a number from 0 to 1e+09\n"
             "stgcc: error: '=3' is no assignment; expected KEY=VALUE such as stgc.threshold=-0.1\n"
             "stgcc: error: 'loss.terms' is 'b'; expected a number from -1e+09 to 1e+09\n"
             "stgcc: error: '[a' is not a list, a map or a quoted text in YAML\n"
             "stgcc: error: 'noise' is a key of its own; expected noise=VALUE\n"
             "stgcc: error: unknown key 'loss.terms.'\n  did you mean 'loss.terms'?\n");
    free(got);
    recipe_free(r);
    diag_free(&d);
}

int main(void) {
    int fd = mkstemp(path);
    close(fd);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_every_key),
        cmocka_unit_test(test_all_problems_at_once),
        cmocka_unit_test(test_more_than_a_recipe_needs),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_set),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return failed;
}
