/* select_params.c: which parameters are trained.
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

bool pass_select_params(Compile *c) {
    const Recipe *r = c->recipe;
    if (r->model.tie.n) {
        diag_error(c->diag, EXIT_USAGE, "model.tie is not supported");
        diag_more(c->diag,
                  "remove the key: initializers the exporter shares are trained as one already");
        return false;
    }
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
