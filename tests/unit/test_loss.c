/* test_loss.c: select_params and attach_loss: every loss kind against its formula, and what users
 * are told. */
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

typedef struct Model {
    Graph *g;
    Recipe recipe;
    Compile c;
    Diag diag;
    Arena arena;
    Eval ev;
    Value *w;
} Model;

/* One parameter "w" of the given dims is the output "logits"; `unused` reaches nothing, `scale` has
 * one element. */
static Model *model_new(int rank, const int64_t *dims, const double *values) {
    Model *m = xcalloc(1, sizeof *m);
    m->g = graph_new("m");
    m->diag.subject = "test";
    Builder b = builder_at_end(m->g, graph_source(m->g, "node", "Op"));
    Tensor *t = tensor_new(&m->g->arena, DT_F32, rank, dims);
    for (int64_t i = 0; i < tensor_count(t); i++)
        tensor_set_f(t, i, values ? values[i] : (double)(i * 7 % 5) - 1.5);
    m->w = op_param(&b, "w", PARAM_WEIGHT, t);
    Value *scale =
        op_param(&b, "scale", PARAM_WEIGHT, tensor_new(&m->g->arena, DT_F32, 1, (int64_t[]){1}));
    op_param(&b, "unused", PARAM_WEIGHT, tensor_new(&m->g->arena, DT_F32, 1, (int64_t[]){4}));
    int64_t axis = 0;
    graph_add_output(
        m->g, "logits",
        op_binary(&b, OP_ADD, m->w, op_reduce(&b, OP_REDUCE_SUM, scale, &axis, 1, false)));
    vec_push(&m->recipe.model.train, "*");
    m->recipe.loss.ignore_index = -100;
    m->c = (Compile){.g = m->g, .recipe = &m->recipe, .diag = &m->diag, .wants = {.train = true}};
    return m;
}

static void model_free(Model *m) {
    vec_free(&m->recipe.model.train);
    vec_free(&m->recipe.model.freeze);
    vec_free(&m->recipe.loss.terms);
    cotangents_free(&m->c.cotangents);
    graph_free(m->g);
    diag_free(&m->diag);
    arena_free(&m->arena);
    free(m->ev.values);
    free(m);
}

static const char *said(const Model *m) {
    return m->diag.messages.n ? m->diag.messages.at[m->diag.messages.n - 1].text : "";
}

/* Runs with the given labels; `grad` (optional) receives the gradient of the objective by w. */
static double loss_of(Model *m, const double *labels, double *grad) {
    if (!pass_select_params(&m->c) || !pass_attach_loss(&m->c) || !pass_differentiate(&m->c))
        fail_msg("%s", said(m));
    m->ev = (Eval){.arena = &m->arena,
                   .diag = &m->diag,
                   .values = xcalloc((size_t)m->g->next_value, sizeof(RTensor *))};
    for (int i = 0; i < m->g->inputs.n; i++) {
        Value *v = m->g->inputs.at[i];
        RTensor *t = m->ev.values[v->id] = rtensor_new(&m->arena, v->dtype, v->rank, v->dims);
        for (int64_t k = 0; k < t->count; k++)
            if (dtype_is_float(t->dtype))
                t->f[k] = labels[k];
            else
                t->i[k] = (int64_t)labels[k];
    }
    if (!eval_graph(&m->ev, m->g, NULL, 0))
        fail_msg("%s", said(m));
    const RTensor *g = m->ev.values[graph_output_named(m->g, "grad/w")->id];
    for (int64_t i = 0; grad && i < g->count; i++)
        grad[i] = g->f[i];
    return m->ev.values[graph_output_named(m->g, "objective")->id]->f[0];
}

static double nll(const double *row, int n, int label) {
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += exp(row[i]);
    return log(sum) - row[label];
}

static const double logits[12] = {0.5, -1, 2, 0, 0.25, 1, -2, 0.5, 3, 1, 1, -0.5}; /* [2,2,3] */

static void near(double want, double got) {
    if (!(fabs(want - got) <= 1e-6 * (1 + fabs(want))))
        fail_msg("%.10g, expected %.10g", got, want);
}

/* Position t predicts label t+1: of two positions only the first counts; label 0 of the first
 * column is never asked. */
static void test_causal_lm(void **unused) {
    (void)unused;
    Model *m = model_new(3, (int64_t[]){2, 2, 3}, logits);
    m->recipe.loss.kind = LOSS_CAUSAL_LM;
    double grad[12];
    double loss =
        loss_of(m, (double[]){77, 2, -5, 1}, grad); /* out of range where never asked: no fault */
    near((nll(logits, 3, 2) + nll(logits + 6, 3, 1)) / 2, loss);
    for (int i = 0; i < 3; i++)
        assert_true(grad[3 + i] == 0 && grad[9 + i] == 0 && grad[i] != 0);
    model_free(m);
}

static void test_causal_lm_shifted_and_ignored(void **unused) {
    (void)unused;
    Model *m = model_new(3, (int64_t[]){2, 2, 3}, logits);
    m->recipe.loss.kind = LOSS_CAUSAL_LM;
    m->recipe.loss.shifted = true;
    near((nll(logits, 3, 1) + nll(logits + 6, 3, 0) + nll(logits + 9, 3, 2)) / 3,
         loss_of(m, (double[]){1, -100, 0, 2}, NULL));
    model_free(m);
}

static void test_all_ignored_is_zero(void **unused) {
    (void)unused;
    Model *m = model_new(3, (int64_t[]){2, 2, 3}, logits);
    m->recipe.loss.kind = LOSS_CAUSAL_LM;
    double grad[12];
    assert_true(loss_of(m, (double[]){1, -100, 2, -100}, grad) == 0);
    for (int i = 0; i < 12; i++)
        assert_true(grad[i] == 0);
    model_free(m);
}

/* One position predicts nothing: 0, not a fault. */
static void test_one_position(void **unused) {
    (void)unused;
    Model *m = model_new(3, (int64_t[]){4, 1, 3}, logits);
    m->recipe.loss.kind = LOSS_CAUSAL_LM;
    assert_true(loss_of(m, (double[]){1, 0, 2, 1}, NULL) == 0);
    model_free(m);
}

static void test_classification(void **unused) {
    (void)unused;
    Model *m = model_new(2, (int64_t[]){4, 3}, logits);
    m->recipe.loss.kind = LOSS_CLASSIFICATION;
    near((nll(logits, 3, 0) + nll(logits + 3, 3, 1) + nll(logits + 6, 3, 2) +
          nll(logits + 9, 3, 1)) /
             4,
         loss_of(m, (double[]){0, 1, 2, 1}, NULL));
    model_free(m);
    m = model_new(3, (int64_t[]){2, 2, 3}, logits);
    m->recipe.loss.kind = LOSS_TOKEN_CLASSIFICATION;
    near((nll(logits, 3, 0) + nll(logits + 9, 3, 1)) / 2,
         loss_of(m, (double[]){0, -100, -100, 1}, NULL));
    model_free(m);
}

static void test_regression(void **unused) {
    (void)unused;
    Model *m = model_new(2, (int64_t[]){2, 2}, logits);
    m->recipe.loss.kind = LOSS_REGRESSION;
    double grad[4], y[4] = {1, 0, 0, 0.5};
    near((0.25 + 1 + 4 + 0.25) / 4, loss_of(m, y, grad));
    for (int i = 0; i < 4; i++)
        near(2 * (logits[i] - y[i]) / 4, grad[i]);
    model_free(m);
}

/* An output may be the loss itself, others join it with a weight. */
static void test_output_and_terms(void **unused) {
    (void)unused;
    Model *m = model_new(1, (int64_t[]){3}, logits);
    Builder b = builder_at_end(m->g, graph_source(m->g, "node", "Op"));
    int64_t axis = 0;
    graph_add_output(
        m->g, "mine",
        op_reduce(&b, OP_REDUCE_SUM, op_binary(&b, OP_MUL, m->w, m->w), &axis, 1, true));
    graph_add_output(m->g, "aux", op_reduce(&b, OP_REDUCE_SUM, m->w, &axis, 1, false));
    m->recipe.loss.kind = LOSS_OUTPUT;
    m->recipe.loss.logits = "mine";
    NamedFloat term = {"aux", 0.5};
    vec_push(&m->recipe.loss.terms, term);
    double grad[3];
    near(0.25 + 1 + 4 + 0.5 * 1.5, loss_of(m, NULL, grad));
    for (int i = 0; i < 3; i++)
        near(2 * logits[i] + 0.5, grad[i]);
    model_free(m);
}

/* ---- which parameters are trained ---- */

static ParamKind kind_of(const Model *m, const char *name) {
    FOR_NODES(n, m->g)
    if (n->op == OP_PARAM && !strcmp(param_name(n->out[0]), name))
        return (ParamKind)node_int(n, AT_KIND, -1);
    fail_msg("no parameter %s", name);
    return PARAM_WEIGHT;
}

static void test_selection(void **unused) {
    (void)unused;
    Model *m = model_new(2, (int64_t[]){2, 2}, logits);
    assert_true(pass_select_params(&m->c));
    assert_int_equal(kind_of(m, "w"), PARAM_WEIGHT);
    assert_int_equal(kind_of(m, "scale"), PARAM_FROZEN);  /* one element */
    assert_int_equal(kind_of(m, "unused"), PARAM_FROZEN); /* reaches nothing */
    model_free(m);
    m = model_new(2, (int64_t[]){2, 2}, logits);
    vec_push(&m->recipe.model.train, "scale");
    assert_true(pass_select_params(&m->c));
    assert_int_equal(kind_of(m, "scale"), PARAM_WEIGHT); /* named exactly */
    model_free(m);
    m = model_new(2, (int64_t[]){2, 2}, logits);
    vec_push(&m->recipe.model.freeze, "unsued*");
    assert_true(pass_select_params(&m->c));
    assert_non_null(strstr(said(m), "model.freeze: 'unsued*' matches no parameter"));
    model_free(m);
    m = model_new(2, (int64_t[]){2, 2}, logits);
    vec_push(&m->recipe.model.freeze, "w");
    assert_false(pass_select_params(&m->c));
    assert_int_equal(m->diag.code, EXIT_USAGE);
    assert_non_null(strstr(said(m), "nothing to train: none of the model's 3 parameters"));
    model_free(m);
}

/* sign(relu(w)) passes the gradient where w > 0, unless the recipe says otherwise; any other sign
 * is flat. */
static void test_straight_through(void **unused) {
    (void)unused;
    for (int k = 0; k < 3; k++) {
        Model *m = model_new(1, (int64_t[]){3}, logits);
        Builder b = builder_at_end(m->g, graph_source(m->g, "gate", "Sign"));
        Value *zero = op_const_f(&b, DT_F32, 0), *relu = op_binary(&b, OP_MAX, m->w, zero);
        relu->def->src = graph_source(m->g, "relu", "Relu");
        Value *sign = op_unary(&b, OP_SIGN, k == 2 ? m->w : relu);
        int64_t axis = 0;
        Value *sum = op_reduce(&b, OP_REDUCE_SUM,
                               op_binary(&b, OP_ADD, sign, op_binary(&b, OP_MUL, m->w, zero)),
                               &axis, 1, false);
        graph_add_output(m->g, "mine", sum);
        m->recipe.loss.kind = LOSS_OUTPUT;
        m->recipe.loss.logits = "mine";
        m->recipe.stgc.straight_through = k == 1 ? STRAIGHT_OFF : STRAIGHT_AUTO;
        double grad[3];
        loss_of(m, NULL, grad);
        for (int i = 0; i < 3; i++)
            assert_true(grad[i] == (k == 0 && logits[i] > 0));
        model_free(m);
    }
}

/* hard - p + p with p's gradient, in three orders of writing; not where `hard` is no hard choice,
 * and not when switched off. */
static void test_detached(void **unused) {
    (void)unused;
    for (int k = 0; k < 5; k++) {
        Model *m = model_new(1, (int64_t[]){3}, logits);
        Builder b = builder_at_end(m->g, graph_source(m->g, "choice", "Add"));
        Value *p = op_unary(&b, OP_SIGMOID, m->w), *zero = op_const_f(&b, DT_F32, 0);
        Value *half = op_const_f(&b, DT_F32, 0.5);
        Value *hard = op_where(&b, op_binary(&b, OP_LT, half, p), op_const_f(&b, DT_F32, 1), zero);
        if (k == 3)
            hard = op_binary(&b, OP_MUL, m->w, half);
        Value *y = k == 1   ? op_binary(&b, OP_SUB, op_binary(&b, OP_ADD, p, hard), p)
                   : k == 2 ? op_binary(&b, OP_ADD, hard, op_binary(&b, OP_SUB, p, p))
                            : op_binary(&b, OP_ADD, op_binary(&b, OP_SUB, hard, p), p);
        int64_t axis = 0;
        Value *keep = op_binary(&b, OP_MUL, m->w, zero);
        graph_add_output(
            m->g, "mine",
            op_reduce(&b, OP_REDUCE_SUM, op_binary(&b, OP_ADD, y, keep), &axis, 1, false));
        m->recipe.loss.kind = LOSS_OUTPUT;
        m->recipe.loss.logits = "mine";
        m->recipe.stgc.straight_through = k == 4 ? STRAIGHT_OFF : STRAIGHT_AUTO;
        double grad[3];
        loss_of(m, NULL, grad);
        for (int i = 0; i < 3; i++) {
            double s = 1 / (1 + exp(-logits[i]));
            double want = k == 3 ? 0.5 : k == 4 ? 0 : s * (1 - s);
            assert_true(fabs(grad[i] - want) < 1e-6);
        }
        model_free(m);
    }
}

/* model.tie: the first of the names is used for all, transposed where it must be. */
static void test_tie(void **unused) {
    (void)unused;
    static const float a[] = {1, 2, 3, 4, 5, 6}, turned[] = {1, 4, 2, 5, 3, 6}, other[6] = {0};
    for (int k = 0; k < 3; k++) { /* equal, transposed, neither */
        Model *m = model_new(1, (int64_t[]){3}, logits);
        Builder b = builder_at_end(m->g, graph_source(m->g, "pair", "Test"));
        Tensor x = {.dtype = DT_F32, .rank = 2, .dims = {2, 3}, .data = (void *)a}, y = x;
        y.data = (void *)(k == 0 ? a : k == 1 ? turned : other);
        if (k == 1)
            y.dims[0] = 3, y.dims[1] = 2;
        Value *two = op_param(&b, "two", PARAM_WEIGHT, &y),
              *one = op_param(&b, "one", PARAM_WEIGHT, &x);
        Value *use = op_unary(&b, OP_NEG, two);
        graph_add_output(m->g, "use", use);
        StrList names = {0};
        vec_push(&names, "one");
        vec_push(&names, "two");
        vec_push(&m->recipe.model.tie, names);
        assert_int_equal(params_tie(&m->c), k < 2);
        if (k == 2)
            assert_non_null(strstr(said(m), "'one' and 'two' are neither equal nor transposes"));
        else
            assert_int_equal(two->uses.n, 0);
        if (k == 0)
            assert_ptr_equal(use->def->in[0], one);
        if (k == 1)
            assert_ptr_equal(use->def->in[0]->def->in[0], one);
        graph_verify(m->g, "tie");
        vec_free(&m->recipe.model.tie.at[0]);
        vec_free(&m->recipe.model.tie);
        model_free(m);
    }
}

/* ---- what users are told ---- */

static void test_refusals(void **unused) {
    (void)unused;
    Model *m = model_new(2, (int64_t[]){2, 2}, logits);
    m->recipe.loss.kind = LOSS_CAUSAL_LM;
    assert_false(pass_attach_loss(&m->c));
    assert_non_null(strstr(said(m), "causal_lm takes logits with 3 axes"));
    model_free(m);
    m = model_new(2, (int64_t[]){2, 2}, logits);
    m->recipe.loss.logits = "logit";
    assert_false(pass_attach_loss(&m->c));
    assert_non_null(strstr(said(m), "the model has no output \"logit\""));
    assert_non_null(strstr(said(m), "its outputs are \"logits\""));
    model_free(m);
    m = model_new(2, (int64_t[]){2, 2}, logits);
    m->recipe.loss.kind = LOSS_OUTPUT;
    assert_false(pass_attach_loss(&m->c));
    assert_non_null(strstr(said(m), "has 4 elements, expected the loss itself: one"));
    model_free(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_causal_lm),
        cmocka_unit_test(test_causal_lm_shifted_and_ignored),
        cmocka_unit_test(test_all_ignored_is_zero),
        cmocka_unit_test(test_one_position),
        cmocka_unit_test(test_classification),
        cmocka_unit_test(test_regression),
        cmocka_unit_test(test_output_and_terms),
        cmocka_unit_test(test_selection),
        cmocka_unit_test(test_straight_through),
        cmocka_unit_test(test_detached),
        cmocka_unit_test(test_tie),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
