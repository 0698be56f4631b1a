/* select_params.c: which parameters are trained, and where gradients pass a decision.
 *
 * What: a parameter is trained if a glob of model.train matches its name, none of model.freeze
 * does, it has two or more elements (or train names it exactly), and a gradient path leads from it
 * to something the objective is made of. All others become PARAM_FROZEN. Nothing else changes. */
#include <stdlib.h>
#include <string.h>

#include "passes/grad.h"
#include "passes/loss.h"

static bool names_match(const StrList *globs, const char *name, bool exactly) {
    for (int i = 0; i < globs->n; i++)
        if (exactly ? !strcmp(globs->at[i], name) : glob_match(globs->at[i], name))
            return true;
    return false;
}

/* A glob that names no parameter is a slip of the user's, unless it names some other value of the
 * model (an exporter's table that folding made a constant). */
static void warn_idle_globs(Compile *c, const StrList *globs, const char *key) {
    for (int i = 0; i < globs->n; i++) {
        bool hit = !strcmp(globs->at[i], "*");
        FOR_NODES(n, c->g) {
            for (int k = 0; !hit && k < n->nout; k++)
                hit = n->out[k]->name && glob_match(globs->at[i], n->out[k]->name);
            if (!hit && n->op == OP_PARAM)
                hit = glob_match(globs->at[i], param_name(n->out[0]));
        }
        if (!hit)
            diag_warning(c->diag, "%s: '%s' matches no parameter", key,
                         diag_safe(c->diag, globs->at[i]));
    }
}

/* Everything the objective will be made of, to find which parameters reach it. */
static bool mark_reaching(Compile *c, bool *reached) {
    VEC(Value *) from = {0};
    bool ok = true;
    Value *main = loss_source(c);
    ok = main != NULL;
    vec_push(&from, main);
    for (int i = 0; i < c->recipe->loss.terms.n; i++)
        vec_push(&from, graph_output_named(c->g, c->recipe->loss.terms.at[i].name));
    bool logits = c->recipe->loss.balance != 0 || c->recipe->loss.router_z != 0 ||
                  (c->recipe->stgc.enabled && c->recipe->stgc.weight != 0 &&
                   c->recipe->stgc.capture != CAPTURE_NONE);
    FOR_NODES(n, c->g)
    if (logits && n->op == OP_DISPATCH && n->nin > 1 && n->in[1])
        vec_push(&from, n->in[1]);
    if (ok)
        grad_reach(c->g, from.at, from.n, reached);
    vec_free(&from);
    return ok;
}

static void say_straight_through(Compile *c, const Node *n, const char *what) {
    diag_note(c->diag, "node \"%s\": the gradient passes %s straight through",
              diag_safe(c->diag, n->src ? n->src->name : ""), what);
    diag_more(c->diag, "stgc.straight_through: off makes it 0, as the exported model says");
}

/* hard - p + p, in any order of the three: p with the values of a hard choice, which has no
 * gradient of its own. One of the p's was detached; an export keeps its value only, and the
 * gradients of the two would cancel. Returns the subtraction whose operand 1 it was. */
static Node *detached_in(Node *n, Value **hard) {
    if (!dtype_is_float(n->out[0]->dtype))
        return NULL;
    const Node *a = n->in[0]->def;
    for (int i = 0; i < 2 && n->op == OP_SUB && a->op == OP_ADD; i++) { /* (hard + p) - p */
        *hard = a->in[1 - i];
        if (a->in[i] == n->in[1])
            return n;
    }
    for (int i = 0; i < 2 && n->op == OP_ADD; i++) { /* (hard - p) + p; hard + (p - p) */
        Node *s = n->in[i]->def;
        bool alone = s->op == OP_SUB && s->in[0] == s->in[1];
        *hard = alone ? n->in[1 - i] : s->nin ? s->in[0] : NULL;
        if (s->op == OP_SUB && (alone || s->in[1] == n->in[1 - i]))
            return s;
    }
    return NULL;
}

/* Does a gradient reach anything trainable through v? */
static bool is_hard(Graph *g, Value *v) {
    bool *reached = xcalloc((size_t)g->next_value, 1), any = false;
    grad_reach(g, &v, 1, reached);
    FOR_NODES(n, g)
    any = any || (n->op == OP_PARAM && reached[n->out[0]->id]);
    free(reached);
    return !any;
}

static void mark_detached(Compile *c) {
    FOR_NODES(n, c->g) {
        Value *hard;
        Node *s = n->nin == 2 ? detached_in(n, &hard) : NULL;
        if (!s || *node_str(s, AT_MODE, "") || !is_hard(c->g, hard))
            continue;
        node_set_str(s, AT_MODE, "detached");
        say_straight_through(c, n, "this hard choice");
    }
}

/* sign(relu(x)), 1 where an expert is switched on: such gates are trained by passing the gradient
 * through as if sign were the identity. An export keeps only the values, so the gradient is put
 * back here, and said. */
static void mark_straight_through(Compile *c) {
    if (c->recipe->stgc.straight_through == STRAIGHT_OFF)
        return;
    FOR_NODES(n, c->g) {
        const Node *m = n->nin ? n->in[0]->def : NULL;
        if (n->op != OP_SIGN || !dtype_is_float(n->in[0]->dtype) || m->op != OP_MAX)
            continue;
        for (int i = 0; i < 2; i++) {
            const Tensor *t = value_const(m->in[i]);
            if (!t || tensor_count(t) != 1 || tensor_get_f(t, 0) != 0)
                continue;
            node_set_str(n, AT_MODE, "straight_through");
            say_straight_through(c, n, "this Sign of a Relu");
        }
    }
}

bool pass_select_params(Compile *c) {
    const Recipe *r = c->recipe;
    if (!params_tie(c))
        return false;
    mark_straight_through(c);
    if (c->recipe->stgc.straight_through != STRAIGHT_OFF)
        mark_detached(c);
    bool *reached = xcalloc((size_t)c->g->next_value, 1);
    bool ok = mark_reaching(c, reached);
    int params = 0, trained = 0, by_train = 0, by_freeze = 0;
    FOR_NODES(n, c->g) {
        if (!ok || n->op != OP_PARAM || node_int(n, AT_KIND, PARAM_WEIGHT) > PARAM_FROZEN)
            continue;
        const char *name = param_name(n->out[0]);
        bool wanted = names_match(&r->model.train, name, false) || !r->model.train.n;
        if (value_count(n->out[0]) == 1 && !names_match(&r->model.train, name, true))
            wanted = false;
        bool frozen = names_match(&r->model.freeze, name, false);
        params++;
        by_train += !wanted;
        by_freeze += wanted && frozen;
        bool train =
            wanted && !frozen && reached[n->out[0]->id] && dtype_is_float(n->out[0]->dtype);
        trained += train;
        node_set_int(n, AT_KIND, train ? PARAM_WEIGHT : PARAM_FROZEN);
    }
    free(reached);
    if (!ok)
        return false;
    warn_idle_globs(c, &r->model.train, "model.train");
    warn_idle_globs(c, &r->model.freeze, "model.freeze");
    params_report_ties(c);
    if (trained)
        return true;
    diag_error(
        c->diag, EXIT_USAGE,
        "nothing to train: none of the model's %d parameters is selected and reaches the loss",
        params);
    diag_more(c->diag,
              "%d are not matched by model.train, %d are frozen by model.freeze, %d do not reach "
              "the loss",
              by_train, by_freeze, params - by_train - by_freeze);
    return false;
}
