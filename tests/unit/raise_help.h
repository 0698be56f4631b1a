/* raise_help.h: raises a small graph and compares it with itself before; for the tests of raising.
 */
#ifndef STGCC_TESTS_RAISE_HELP_H
#define STGCC_TESTS_RAISE_HELP_H

#include "ir/eval.h"
#include "ir/infer.h"
#include "ir/text.h"
#include "ir/verify.h"
#include "passes/pass.h"
#include "raise_graphs.h"

/* The output "out" for a fixed x. */
static RTensor *output(Graph *g, Arena *a) {
    Diag d = {0};
    Eval ev = {.arena = a, .diag = &d};
    ev.values = xcalloc((size_t)g->next_value, sizeof *ev.values);
    Value *x = g->inputs.at[0], *y = g->outputs.at[0].value;
    RTensor *in = rtensor_new(a, DT_F32, x->rank, x->dims);
    for (int64_t i = 0; i < in->count; i++)
        in->f[i] = sin(1.7 * (double)i + 0.3);
    ev.values[x->id] = in;
    assert_true(eval_graph(&ev, g, &y, 1));
    RTensor *r = ev.values[y->id];
    free(ev.values);
    diag_free(&d);
    return r;
}

typedef struct Raised {
    int layers, wrong, left;
    const char *form, *why;
    double error;
    MoeLayer layer;
    int64_t work; /* of probing */
} Raised;

static int64_t probe_budget; /* of the test that runs */

/* The layers of every graph, freed when the process ends: tests look into Raised.layer. */
static VEC(MoeLayers) kept_layers;

static void free_layers(void) {
    for (int i = 0; i < kept_layers.n; i++)
        moe_layers_free(&kept_layers.at[i]);
    vec_free(&kept_layers);
}

static inline Raised raise_graph(Graph *g, Arena *a, Diag *d) {
    Raised r = {0};
    Compile c = {.g = g, .diag = d, .probe_budget = probe_budget};
    graph_verify(g, "building the test");
    const RTensor *before = output(g, a);
    assert_true(pass_canonicalise(&c));
    graph_verify(g, "canonicalise");
    assert_true(pass_raise_moe(&c));
    if (getenv("DUMP"))
        graph_print(g, stderr);
    graph_verify(g, "raise_moe");
    const RTensor *after = output(g, a);
    assert_int_equal(before->count, after->count);
    for (int64_t i = 0; i < before->count; i++)
        r.error = fmax(r.error, fabs(before->f[i] - after->f[i]));
    r.work = c.probe_work;
    MoeLayers l;
    moe_layers(g, &l);
    if (!kept_layers.n)
        atexit(free_layers);
    vec_push(&kept_layers, l);
    r.layers = l.n;
    if (l.n) {
        r.layer = l.at[0];
        r.form = l.at[0].form;
    }
    for (int i = 0; i < c.not_raised.n; i++) {
        r.wrong += c.not_raised.at[i].wrong;
        r.left += !c.not_raised.at[i].wrong;
        r.why = c.not_raised.at[i].why;
    }
    vec_free(&c.not_raised);
    return r;
}

static inline int count_ops(const Graph *g, Op op) {
    int n = 0;
    FOR_NODES(m, g)
    n += m->op == op;
    return n;
}

static inline void expect_none(Layer l, bool wrong, const char *why) {
    Arena a = {0};
    Diag d = {0};
    Raised r = raise_graph(l.g, &a, &d);
    assert_int_equal(r.layers, 0);
    assert_true(r.error < 1e-12);
    assert_int_equal(r.wrong, wrong);
    assert_true(wrong || r.left > 0 || !count_ops(l.g, OP_TOPK));
    if (why && (!r.why || !strstr(r.why, why)))
        fail_msg("expected \"%s\" in the reason, found: %s", why, r.why ? r.why : "(none)");
    diag_free(&d);
    arena_free(&a);
    graph_free(l.g);
}

#endif
