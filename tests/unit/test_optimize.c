/* test_optimize.c: updates, clipping, accumulation, and that simplify keeps values while it removes
 * work. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ir/eval.h"
#include "ir/verify.h"
#include "passes/grad.h"
#include "passes/simplify.h"

enum { N = 3 };

/* loss = sum (w - x)^2: gradient 2 (w - x). */
typedef struct Model {
    Graph *g;
    Recipe recipe;
    Compile c;
    Diag diag;
    Arena arena;
    Eval ev;
} Model;

static const double w0[N] = {1, -2, 0.5}, x0[N] = {0.25, 1, 0.5};

static Model *model_new(TrainWants wants, OptimizerKind kind, double clip, double momentum) {
    Model *m = xcalloc(1, sizeof *m);
    m->g = graph_new("m");
    m->diag.subject = "test";
    Builder b = builder_at_end(m->g, graph_source(m->g, "node", "Op"));
    Node *x = build_node(&b, OP_INPUT, NULL, 0, 1);
    node_set_str(x, AT_NAME, "x");
    x->out[0]->dtype = DT_F32;
    x->out[0]->rank = 1;
    x->out[0]->dims[0] = N;
    vec_push(&m->g->inputs, x->out[0]);
    Tensor *t = tensor_new(&m->g->arena, DT_F32, 1, (int64_t[]){N});
    for (int i = 0; i < N; i++)
        tensor_set_f(t, i, w0[i]);
    Value *d = op_binary(&b, OP_SUB, op_param(&b, "w", PARAM_WEIGHT, t), x->out[0]);
    int64_t axis = 0;
    graph_add_output(m->g, "mine",
                     op_reduce(&b, OP_REDUCE_SUM, op_binary(&b, OP_MUL, d, d), &axis, 1, false));
    vec_push(&m->recipe.model.train, "*");
    m->recipe.loss.kind = LOSS_OUTPUT;
    m->recipe.optimizer.kind = kind;
    m->recipe.optimizer.beta1 = 0.9;
    m->recipe.optimizer.beta2 = 0.99;
    m->recipe.optimizer.eps = 1e-8;
    m->recipe.optimizer.weight_decay = 0.1;
    m->recipe.optimizer.momentum = momentum;
    m->recipe.optimizer.clip_norm = clip;
    wants.train = true;
    m->c = (Compile){.g = m->g, .recipe = &m->recipe, .diag = &m->diag, .wants = wants};
    bool ok = pass_select_params(&m->c);
    if (!wants.apply_only)
        ok = ok && pass_attach_loss(&m->c) && pass_differentiate(&m->c) && pass_inject_stgc(&m->c);
    ok = ok && pass_optimize(&m->c) && pass_simplify(&m->c);
    if (!ok)
        fail_msg("%s", m->diag.messages.at[m->diag.messages.n - 1].text);
    char *broken = graph_check(m->g);
    if (broken)
        fail_msg("%s", broken);
    m->ev = (Eval){.arena = &m->arena,
                   .diag = &m->diag,
                   .values = xcalloc((size_t)m->g->next_value, sizeof(RTensor *))};
    return m;
}

static void model_free(Model *m) {
    vec_free(&m->recipe.model.train);
    cotangents_free(&m->c.cotangents);
    graph_free(m->g);
    diag_free(&m->diag);
    arena_free(&m->arena);
    free(m->ev.values);
    free(m);
}

static Value *param_named(Model *m, const char *name) {
    FOR_NODES(n, m->g)
    if (n->op == OP_PARAM && !strcmp(param_name(n->out[0]), name))
        return n->out[0];
    fail_msg("no parameter %s", name);
    return NULL;
}

/* Runs with what is given for inputs (hyper, x) and, by name, for one parameter. */
static void run(Model *m, const double *hyper, const char *param, const double *data) {
    for (int i = 0; i < m->g->inputs.n; i++) {
        Value *v = m->g->inputs.at[i];
        bool is_hyper = !strcmp(node_str(v->def, AT_NAME, ""), "hyper");
        RTensor *t = m->ev.values[v->id] = rtensor_new(&m->arena, v->dtype, v->rank, v->dims);
        for (int64_t k = 0; k < t->count; k++)
            t->f[k] = !is_hyper ? x0[k] : k < 4 ? hyper[k] : 0;
    }
    if (param) {
        Value *v = param_named(m, param);
        RTensor *t = m->ev.values[v->id] = rtensor_new(&m->arena, v->dtype, v->rank, v->dims);
        memcpy(t->f, data, sizeof(double) * N);
    }
    if (!eval_graph(&m->ev, m->g, NULL, 0))
        fail_msg("%s", m->diag.messages.at[m->diag.messages.n - 1].text);
}

static const double *updated(Model *m, const char *name) {
    Value *p = param_named(m, name);
    for (int i = 0; i < m->g->updates.n; i++)
        if (m->g->updates.at[i].param == p)
            return m->ev.values[m->g->updates.at[i].value->id]->f;
    fail_msg("no update of %s", name);
    return NULL;
}

static void near(double want, double got) {
    if (!(fabs(want - got) <= 2e-6 * (1e-2 + fabs(want))))
        fail_msg("%.10g, expected %.10g", got, want);
}

static const double hyper[4] = {0.01, 1 / (1 - 0.9), 1 / (1 - 0.99), 1};

static double clip_factor(double clip, double scale) {
    double s = 0;
    for (int i = 0; i < N; i++)
        s += pow(2 * (w0[i] - x0[i]) * scale, 2);
    return clip ? fmin(1, clip / (sqrt(s) + 1e-6)) : 1;
}

static void test_adamw(void **unused) {
    (void)unused;
    for (int k = 0; k < 3; k++) {
        double clip = k == 0 ? 0 : k == 1 ? 0.5 : 100;
        Model *m = model_new((TrainWants){.update = true, .metrics = k == 1}, OPT_ADAMW, clip, 0);
        run(m, hyper, NULL, NULL);
        for (int i = 0; i < N; i++) {
            double g = 2 * (w0[i] - x0[i]) * clip_factor(clip, 1), mean = 0.1 * g,
                   square = 0.01 * g * g;
            near(mean, updated(m, "w.m")[i]);
            near(square, updated(m, "w.v")[i]);
            near(w0[i] * (1 - 0.01 * 0.1) -
                     0.01 * (mean * hyper[1]) / (sqrt(square * hyper[2]) + 1e-8),
                 updated(m, "w")[i]);
        }
        assert_int_equal(node_int(param_named(m, "w.v")->def, AT_KIND, -1), PARAM_STATE);
        assert_true((graph_output_named(m->g, "grad_norm") != NULL) == (k == 1));
        assert_null(graph_output_named(m->g, "grad/w"));
        assert_null(graph_output_named(m->g, "objective"));
        assert_non_null(graph_output_named(m->g, "loss/total"));
        model_free(m);
    }
}

static void test_sgd(void **unused) {
    (void)unused;
    for (int k = 0; k < 2; k++) {
        double momentum = k ? 0.5 : 0, start[N] = {1, 2, 3};
        Model *m = model_new((TrainWants){.update = true}, OPT_SGD, 0, momentum);
        run(m, hyper, k ? "w.m" : NULL, start);
        for (int i = 0; i < N; i++) {
            double g = 2 * (w0[i] - x0[i]), step = k ? 0.5 * start[i] + g : g;
            near(w0[i] * (1 - 0.01 * 0.1) - 0.01 * step, updated(m, "w")[i]);
            if (k)
                near(step, updated(m, "w.m")[i]);
        }
        model_free(m);
    }
}

/* Two halves: adding up, then one update from the sum, scaled by 1/2 and clipped after. */
static void test_accumulate(void **unused) {
    (void)unused;
    double sum[N] = {0.5, 0.25, -1};
    Model *m = model_new((TrainWants){.accumulate = true, .update = true}, OPT_SGD, 0.5, 0);
    assert_int_equal(m->g->updates.n, 1);
    assert_int_equal(m->g->inputs.n, 1); /* no hyper */
    assert_int_equal(node_int(param_named(m, "w.acc")->def, AT_KIND, -1), PARAM_GRAD);
    run(m, NULL, "w.acc", sum);
    for (int i = 0; i < N; i++)
        near(sum[i] + 2 * (w0[i] - x0[i]), updated(m, "w.acc")[i]);
    model_free(m);

    double twice[N], halves[4] = {0.01, 1, 1, 0.5};
    for (int i = 0; i < N; i++)
        twice[i] = 4 * (w0[i] - x0[i]);
    m = model_new((TrainWants){.apply_only = true}, OPT_SGD, 0.5, 0);
    run(m, halves, "w.acc", twice);
    for (int i = 0; i < N; i++) {
        double g = 2 * (w0[i] - x0[i]) * clip_factor(0.5, 1);
        near(w0[i] * (1 - 0.01 * 0.1) - 0.01 * g, updated(m, "w")[i]);
        assert_true(updated(m, "w.acc")[i] == 0);
    }
    assert_int_equal(m->g->outputs.n, 0);
    FOR_NODES(n, m->g)
    assert_true(n->op != OP_SUB); /* the forward half is gone */
    model_free(m);
}

static void test_outputs_by_want(void **unused) {
    (void)unused;
    Model *m = model_new((TrainWants){.grads = true, .detail = true}, OPT_SGD, 0, 0);
    assert_non_null(graph_output_named(m->g, "grad/w"));
    assert_non_null(graph_output_named(m->g, "out/mine"));
    assert_int_equal(m->g->updates.n, 0);
    model_free(m);
}

/* ---- simplify ---- */

typedef struct Small {
    Graph *g;
    Builder b;
    Arena arena;
    VEC(Value *) in;
} Small;

static Small small_new(void) {
    Small s = {.g = graph_new("s")};
    s.b = builder_at_end(s.g, graph_source(s.g, "node", "Op"));
    return s;
}

static Value *small_input(Small *s, int rank, const int64_t *dims) {
    Node *n = build_node(&s->b, OP_INPUT, NULL, 0, 1);
    node_set_str(n, AT_NAME, arena_printf(&s->g->arena, "x%d", s->in.n));
    n->out[0]->dtype = DT_F32;
    n->out[0]->rank = rank;
    memcpy(n->out[0]->dims, dims, sizeof *dims * (size_t)rank);
    vec_push(&s->g->inputs, n->out[0]);
    vec_push(&s->in, n->out[0]);
    return n->out[0];
}
#define DIMS(...) \
    COUNT_OF(((int64_t[]){__VA_ARGS__})), (int64_t[]) { \
        __VA_ARGS__ \
    }

static RTensor *small_eval(Small *s) {
    Diag d = {.subject = "test"};
    Eval ev = {.arena = &s->arena,
               .diag = &d,
               .values = xcalloc((size_t)s->g->next_value, sizeof(RTensor *))};
    for (int i = 0; i < s->in.n; i++) {
        Value *v = s->in.at[i];
        RTensor *t = ev.values[v->id] = rtensor_new(&s->arena, v->dtype, v->rank, v->dims);
        for (int64_t k = 0; k < t->count; k++)
            t->f[k] = sin((double)(k * 3 + i * 7 + 1));
    }
    if (!eval_graph(&ev, s->g, NULL, 0))
        fail_msg("%s", d.messages.at[0].text);
    RTensor *r = ev.values[s->g->outputs.at[0].value->id];
    free(ev.values);
    diag_free(&d);
    return r;
}

/* Simplifies the graph of output v and checks that nothing changed but the work; returns how many
 * computing nodes are left. */
static int simplified(Small *s, Value *v) {
    graph_add_output(s->g, "y", v);
    RTensor *before = small_eval(s);
    Compile c = {.g = s->g};
    assert_true(pass_simplify(&c));
    char *broken = graph_check(s->g);
    if (broken)
        fail_msg("%s", broken);
    RTensor *after = small_eval(s);
    assert_int_equal(before->count, after->count);
    for (int64_t i = 0; i < before->count; i++)
        assert_true(fabs(before->f[i] - after->f[i]) <= 1e-7 * (1 + fabs(before->f[i])));
    int left = 0;
    FOR_NODES(n, s->g)
    left += !(op_info[n->op].flags & OPF_LEAF);
    return left;
}

static void small_free(Small *s) {
    vec_free(&s->in);
    graph_free(s->g);
    arena_free(&s->arena);
}

static void test_common_subexpressions(void **unused) {
    (void)unused;
    Small s = small_new();
    Value *x = small_input(&s, DIMS(2, 3)), *y = small_input(&s, DIMS(2, 3));
    Value *a = op_binary(&s.b, OP_ADD, x, y), *b = op_binary(&s.b, OP_ADD, y, x);
    Value *p = op_unary(&s.b, OP_EXP, a), *q = op_unary(&s.b, OP_EXP, b);
    assert_int_equal(simplified(&s, op_binary(&s.b, OP_MUL, p, q)), 3); /* add, exp, mul */
    small_free(&s);
    s = small_new(); /* attributes tell nodes apart */
    x = small_input(&s, DIMS(3, 3));
    a = op_softmax(&s.b, x, 0);
    b = op_softmax(&s.b, x, 1);
    assert_int_equal(simplified(&s, op_binary(&s.b, OP_MUL, a, b)), 3);
    small_free(&s);
}

static void test_transposes_become_flags(void **unused) {
    (void)unused;
    Small s = small_new();
    int64_t perm[3] = {0, 2, 1};
    Value *x = small_input(&s, DIMS(2, 3, 4)), *y = small_input(&s, DIMS(2, 3, 5));
    Value *z = op_matmul(&s.b, op_transpose(&s.b, x, perm), y, false, false);
    assert_int_equal(simplified(&s, z), 1);
    assert_int_equal(node_int(s.g->outputs.at[0].value->def, AT_TRANS_A, 0), 1);
    small_free(&s);
    s = small_new(); /* a permutation of the batch axes stays */
    int64_t turned[3] = {2, 1, 0};
    x = small_input(&s, DIMS(4, 3, 2));
    y = small_input(&s, DIMS(2, 3, 5));
    z = op_matmul(&s.b, op_transpose(&s.b, x, turned), y, true, false);
    assert_int_equal(simplified(&s, z), 2);
    small_free(&s);
}

static void test_split_gradients_concatenate(void **unused) {
    (void)unused;
    Small s = small_new();
    Value *sum = NULL;
    for (int i = 0; i < 3; i++) { /* pad(a) + pad(b) + pad(c), as three slices of one value give */
        Value *x = small_input(&s, DIMS(2, 2));
        int64_t pads[4] = {0, 2 * i, 0, 4 - 2 * i};
        Attr a = attr_ints(AT_PADS, pads, 4);
        Value *p = op_node(&s.b, OP_PAD, &x, 1, &a, 1)->out[0];
        sum = sum ? op_binary(&s.b, OP_ADD, sum, p) : p;
    }
    assert_int_equal(simplified(&s, sum), 1);
    assert_int_equal(s.g->outputs.at[0].value->def->op, OP_CONCAT);
    small_free(&s);
}

static void test_algebra(void **unused) {
    (void)unused;
    Small s = small_new();
    Value *x = small_input(&s, DIMS(2, 3)), *row = small_input(&s, DIMS(2, 1));
    Value *one = op_full(&s.b, DT_F32, 1, 2, (int64_t[]){2, 3}), *two = op_const_f(&s.b, DT_F32, 2);
    Value *y = op_binary(&s.b, OP_MUL, x, one);                        /* x * 1 */
    y = op_unary(&s.b, OP_NEG, op_unary(&s.b, OP_NEG, y));             /* --x */
    y = op_binary(&s.b, OP_MUL, op_binary(&s.b, OP_MUL, y, two), two); /* (x*2)*2 */
    y = op_reshape(&s.b, op_reshape(&s.b, y, 1, (int64_t[]){6}), 2, (int64_t[]){2, 3});
    y = op_binary(&s.b, OP_ADD, y,
                  op_expand(&s.b, row, 2, (int64_t[]){2, 3})); /* broadcasts by itself */
    y = op_binary(&s.b, OP_ADD, y, op_unary(&s.b, OP_NEG, x)); /* a + -x */
    assert_int_equal(simplified(&s, y), 3);                    /* mul, add, sub */
    small_free(&s);
    s = small_new(); /* an expand that gives the result its shape stays */
    row = small_input(&s, DIMS(2, 1));
    y = op_unary(&s.b, OP_EXP, op_expand(&s.b, row, 2, (int64_t[]){2, 3}));
    y = op_binary(&s.b, OP_MUL, op_expand(&s.b, row, 2, (int64_t[]){2, 3}), y);
    assert_true(simplified(&s, y) >= 2);
    small_free(&s);
}

/* What keeps a shape may still move elements. */
static void test_shifts_and_reversals_stay(void **unused) {
    (void)unused;
    Small s = small_new();
    Value *x = small_input(&s, DIMS(2, 4));
    int64_t pads[4] = {0, 1, 0, -1};
    Attr a = attr_ints(AT_PADS, pads, 4);
    Value *y = op_node(&s.b, OP_PAD, &x, 1, &a, 1)->out[0];
    y = op_slice(&s.b, y, 1, 3, -5, -1);
    assert_int_equal(simplified(&s, y), 2);
    small_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adamw),
        cmocka_unit_test(test_sgd),
        cmocka_unit_test(test_accumulate),
        cmocka_unit_test(test_outputs_by_want),
        cmocka_unit_test(test_common_subexpressions),
        cmocka_unit_test(test_transposes_become_flags),
        cmocka_unit_test(test_split_gradients_concatenate),
        cmocka_unit_test(test_algebra),
        cmocka_unit_test(test_shifts_and_reversals_stay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
