/* attach_loss.c: from the model's outputs to the objective.
 *
 * What: L_obj = task + alpha balance + gamma router_z + terms (method.md section 3), all f32
 * scalars, named as graph outputs loss/task, loss/balance, loss/router_z, objective. Labels become
 * the graph input the recipe names. Needs: dims known, MoE layers raised. Gives: the outputs above;
 * the model's own outputs stay. Letters: B batch, S sequence, V vocabulary or classes, T tokens, E
 * experts, N rows of the logits. */
#include <stdlib.h>
#include <string.h>

#include "passes/grad.h"
#include "passes/loss.h"

/* ---- small spellings ---- */

Value *loss_sum_all(Builder *b, Value *v) {
    int64_t axes[MAX_RANK];
    for (int i = 0; i < v->rank; i++)
        axes[i] = i;
    return v->rank ? op_reduce(b, OP_REDUCE_SUM, v, axes, v->rank, false) : v;
}

Value *loss_sum_axis(Builder *b, Value *v, int64_t axis) {
    return op_reduce(b, OP_REDUCE_SUM, v, &axis, 1, true);
}

Value *loss_scale(Builder *b, Value *v, double k) {
    return k == 1 ? v : op_binary(b, OP_MUL, v, op_const_f(b, v->dtype, k));
}

Value *loss_column(Builder *b, Value *v) {
    int64_t dims[2] = {v->dims[0], 1};
    return op_reshape(b, v, 2, dims);
}

Value *loss_flat(Builder *b, Value *v) {
    int64_t n = value_count(v);
    return op_reshape(b, v, 1, &n);
}

/* ---- where the loss comes from ---- */

static const char *output_names(Compile *c) {
    const char *s = "";
    for (int i = 0; i < c->g->outputs.n && i < 12; i++)
        s = arena_printf(&c->diag->arena, "%s%s\"%s\"", s, i ? ", " : "",
                         diag_safe(c->diag, c->g->outputs.at[i].name));
    return s;
}

static Value *output_or_error(Compile *c, const char *key, const char *name) {
    Value *v = graph_output_named(c->g, name);
    if (!v) {
        diag_error(c->diag, EXIT_USAGE, "%s: the model has no output \"%s\"", key,
                   diag_safe(c->diag, name));
        diag_more(c->diag, "its outputs are %s", output_names(c));
    } else if (!dtype_is_float(v->dtype)) {
        diag_error(c->diag, EXIT_USAGE, "%s: output \"%s\" is %s, expected floats", key,
                   diag_safe(c->diag, name), dtype_name(v->dtype));
        return NULL;
    }
    return v;
}

Value *loss_source(Compile *c) {
    if (c->recipe->loss.logits)
        return output_or_error(c, "loss.logits", c->recipe->loss.logits);
    Value *v = graph_output_named(c->g, "logits"), *only = NULL;
    if (v && dtype_is_float(v->dtype))
        return v;
    int floats = 0;
    for (int i = 0; i < c->g->outputs.n; i++)
        if (dtype_is_float(c->g->outputs.at[i].value->dtype)) {
            only = c->g->outputs.at[i].value;
            floats++;
        }
    if (floats == 1)
        return only;
    diag_error(c->diag, EXIT_USAGE,
               "loss.logits: the model has %d float outputs, none named \"logits\"", floats);
    diag_more(c->diag, "name the one the loss is computed from: %s", output_names(c));
    return NULL;
}

/* ---- the task ---- */

static Value *labels_input(Compile *c, Builder *b, DType t, int rank, const int64_t *dims) {
    const char *name = c->recipe->loss.labels ? c->recipe->loss.labels : "labels";
    for (int i = 0; i < c->g->inputs.n; i++) {
        Value *v = c->g->inputs.at[i];
        if (strcmp(node_str(v->def, AT_NAME, ""), name))
            continue;
        bool fits = v->rank == rank && dtype_is_float(v->dtype) == dtype_is_float(t);
        for (int k = 0; fits && k < rank; k++)
            fits = v->dims[k] == dims[k];
        if (fits)
            return op_cast(b, v, t);
        diag_error(c->diag, EXIT_USAGE,
                   "loss.labels: the model's input \"%s\" does not have the shape of labels for "
                   "its logits",
                   diag_safe(c->diag, name));
        return NULL;
    }
    Node *n = build_node(b, OP_INPUT, NULL, 0, 1);
    node_set_str(n, AT_NAME, name);
    Value *v = n->out[0];
    v->name = node_str(n, AT_NAME, name);
    v->dtype = t;
    v->rank = rank;
    memcpy(v->dims, dims, sizeof *dims * (size_t)rank);
    vec_push(&c->g->inputs, v);
    return v;
}

static const char *const kind_names[] = {
    [LOSS_CAUSAL_LM] = "causal_lm",
    [LOSS_CLASSIFICATION] = "classification",
    [LOSS_TOKEN_CLASSIFICATION] = "token_classification",
    [LOSS_REGRESSION] = "regression",
    [LOSS_OUTPUT] = "output",
};

/* labels[B,S] one position to the left, the last one ignored: every row of the logits keeps its
 * place, none is copied. */
static Value *shift_labels(Builder *b, Value *labels, int64_t ignore) {
    int64_t s = labels->dims[1], rest[2] = {labels->dims[0], 1};
    if (s == 0)
        return labels;
    Value *none = op_expand(b, op_const_i(b, ignore), 2, rest);
    Value *parts[2] = {op_slice(b, labels, 1, 1, s, 1), none};
    return s == 1 ? none : op_concat(b, parts, 2, 1);
}

/* Mean cross-entropy over rows whose label counts; 0 when none does. */
static Value *cross_entropy(Builder *b, Value *logits, Value *labels, int64_t ignore) {
    int64_t v = logits->dims[logits->rank - 1], n = value_count(labels), dims[2] = {n, v};
    Value *in[2] = {op_reshape(b, logits, 2, dims), op_reshape(b, labels, 1, &n)};
    Attr a = attr_i(AT_IGNORE_INDEX, ignore);
    Value *nll = op_node(b, OP_XENT, in, 2, &a, 1)->out[0];
    Value *ignored = op_binary(b, OP_EQ, in[1], op_const_i(b, ignore));
    Value *zero = op_const_f(b, DT_F32, 0), *one = op_const_f(b, DT_F32, 1);
    Value *count = loss_sum_all(b, op_where(b, ignored, zero, one));
    return op_binary(b, OP_DIV, loss_sum_all(b, nll), op_binary(b, OP_MAX, count, one));
}

static Value *mean_square(Builder *b, Value *x, Value *y) {
    Value *d = op_binary(b, OP_SUB, x, y);
    int64_t n = value_count(x);
    return loss_scale(b, loss_sum_all(b, op_binary(b, OP_MUL, d, d)), 1.0 / (double)(n ? n : 1));
}

static Value *scalar_output(Compile *c, Builder *b, Value *v, const char *key, const char *name) {
    if (value_count(v) != 1) {
        diag_error(c->diag, EXIT_USAGE,
                   "%s: output \"%s\" has %lld elements, expected the loss itself: one", key,
                   diag_safe(c->diag, name ? name : "?"), (long long)value_count(v));
        return NULL;
    }
    return op_reshape(b, op_cast(b, v, DT_F32), 0, NULL);
}

static Value *task_loss(Compile *c, Builder *b, Value *out) {
    const Recipe *r = c->recipe;
    LossKind kind = r->loss.kind;
    if (!value_known(out)) {
        diag_error(c->diag, EXIT_USAGE, "the sizes of output \"%s\" are not known",
                   diag_safe(c->diag, out->name ? out->name : "?"));
        diag_more(
            c->diag,
            "give every dynamic dim of the inputs a size: --data BATCH.npz or --dim NAME=SIZE");
        return NULL;
    }
    if (kind == LOSS_OUTPUT)
        return scalar_output(c, b, out, "loss.logits", r->loss.logits);
    Value *logits = op_cast(b, out, DT_F32);
    if (kind == LOSS_REGRESSION) {
        Value *y = labels_input(c, b, DT_F32, logits->rank, logits->dims);
        return y ? mean_square(b, logits, y) : NULL;
    }
    int want = kind == LOSS_CLASSIFICATION ? 2 : 3;
    if (logits->rank != want) {
        diag_error(
            c->diag, EXIT_USAGE, "loss.kind: %s takes logits with %d axes, output \"%s\" has %d",
            kind_names[kind], want, diag_safe(c->diag, out->name ? out->name : "?"), logits->rank);
        return NULL;
    }
    Value *labels = labels_input(c, b, DT_I64, want - 1, logits->dims);
    if (!labels)
        return NULL;
    if (kind == LOSS_CAUSAL_LM && !r->loss.shifted)
        labels = shift_labels(b, labels, r->loss.ignore_index);
    return cross_entropy(b, logits, labels, r->loss.ignore_index);
}

/* ---- the routers' losses ---- */

Value *loss_router_scores(Builder *b, Value *z, const char *score) {
    if (!score || strcmp(score, "sigmoid"))
        return op_softmax(b, z, 1);
    Value *s = op_unary(b, OP_SIGMOID, z);
    return op_binary(b, OP_DIV, s, loss_sum_axis(b, s, 1));
}

double loss_layer_share(const Compile *c, const MoeLayers *layers) {
    int n = 0;
    for (int i = 0; i < layers->n; i++)
        n += layers->at[i].logits != NULL;
    return c->recipe->stgc.layer_reduction == REDUCTION_MEAN && n ? 1.0 / n : 1.0;
}

bool loss_token_mask(Compile *c, Builder *b, int64_t tokens, Value **mask, Value **count) {
    *mask = *count = NULL;
    const char *name = c->recipe->stgc.token_mask;
    if (!name)
        return true;
    for (int i = 0; i < c->g->inputs.n; i++) {
        Value *v = c->g->inputs.at[i];
        if (strcmp(node_str(v->def, AT_NAME, ""), name))
            continue;
        if (value_count(v) != tokens) {
            diag_error(
                c->diag, EXIT_USAGE,
                "stgc.token_mask: input \"%s\" has %lld elements, the MoE layer sees %lld tokens",
                diag_safe(c->diag, name), (long long)value_count(v), (long long)tokens);
            return false;
        }
        Value *f = op_cast(b, loss_flat(b, v), DT_F32), *zero = op_const_f(b, DT_F32, 0),
              *one = op_const_f(b, DT_F32, 1);
        *mask = op_where(b, op_binary(b, OP_EQ, f, zero), zero, one);
        *count = op_binary(b, OP_MAX, loss_sum_all(b, *mask), one);
        return true;
    }
    diag_error(c->diag, EXIT_USAGE, "stgc.token_mask: the model has no input \"%s\"",
               diag_safe(c->diag, name));
    return false;
}

/* Mean over tokens of v[T,n], masked tokens left out: [1,n]. */
static Value *token_mean(Builder *b, Value *v, int64_t tokens, Value *mask, Value *count) {
    if (!mask)
        return loss_scale(b, loss_sum_axis(b, v, 0), 1.0 / (double)(tokens ? tokens : 1));
    return op_binary(b, OP_DIV, loss_sum_axis(b, op_binary(b, OP_MUL, v, loss_column(b, mask)), 0),
                     count);
}

/* E sum_e f_e P_e: f the share of tokens whose largest logit is e's (constant), P the mean score.
 */
static Value *layer_balance(Builder *b, const MoeLayer *l, Value *z, Value *mask, Value *count) {
    int64_t experts = z->dims[1], *iota = ARENA_ARRAY(&b->g->arena, int64_t, experts);
    for (int64_t e = 0; e < experts; e++)
        iota[e] = e;
    Attr a[2] = {attr_i(AT_AXIS, 1), attr_i(AT_KEEPDIMS, 1)};
    Value *best = op_node(b, OP_ARGMAX, &z, 1, a, 2)->out[0];
    Value *hot = op_binary(b, OP_EQ, best, op_const_ints(b, iota, (int)experts));
    Value *first = op_where(b, hot, op_const_f(b, DT_F32, 1), op_const_f(b, DT_F32, 0));
    Value *f = token_mean(b, first, z->dims[0], mask, count);
    Value *p = token_mean(b, loss_router_scores(b, z, l->score), z->dims[0], mask, count);
    return loss_scale(b, loss_sum_all(b, op_binary(b, OP_MUL, f, p)), (double)experts);
}

/* mean_t logsumexp(z_t)^2, with lse = z_0 - log_softmax(z)_0. */
static Value *layer_router_z(Builder *b, Value *z, Value *mask, Value *count) {
    Attr a = attr_i(AT_AXIS, 1);
    Value *log = op_node(b, OP_LOG_SOFTMAX, &z, 1, &a, 1)->out[0];
    Value *lse = op_binary(b, OP_SUB, op_slice(b, z, 1, 0, 1, 1), op_slice(b, log, 1, 0, 1, 1));
    return loss_sum_all(b, token_mean(b, op_binary(b, OP_MUL, lse, lse), z->dims[0], mask, count));
}

static Value *add_or(Builder *b, Value *sum, Value *v) {
    return sum ? op_binary(b, OP_ADD, sum, v) : v;
}

/* Sums (or means) over layers; a layer without a logit per token has neither loss. */
static bool router_losses(Compile *c, Builder *b, Value **balance, Value **router_z) {
    MoeLayers layers = {0};
    moe_layers(c->g, &layers);
    double share = loss_layer_share(c, &layers);
    bool ok = true;
    *balance = *router_z = NULL;
    for (int i = 0; ok && i < layers.n; i++) {
        MoeLayer *l = &layers.at[i];
        if (!l->logits) {
            diag_note(c->diag,
                      "MoE layer %d: its router has no logit per token, so it takes no part in "
                      "balance, router z and CEL",
                      l->index);
            continue;
        }
        Value *mask, *count, *z = op_cast(b, l->logits, DT_F32);
        ok = loss_token_mask(c, b, z->dims[0], &mask, &count);
        if (!ok || !z->dims[0])
            continue;
        *balance = add_or(b, *balance, loss_scale(b, layer_balance(b, l, z, mask, count), share));
        *router_z = add_or(b, *router_z, loss_scale(b, layer_router_z(b, z, mask, count), share));
    }
    moe_layers_free(&layers);
    *balance = *balance ? *balance : op_const_f(b, DT_F32, 0);
    *router_z = *router_z ? *router_z : op_const_f(b, DT_F32, 0);
    return ok;
}

bool pass_attach_loss(Compile *c) {
    const Recipe *r = c->recipe;
    Builder b = builder_at_end(c->g, graph_source(c->g, "", "loss"));
    Value *out = loss_source(c), *balance, *router_z;
    Value *task = out ? task_loss(c, &b, out) : NULL;
    if (!task || !router_losses(c, &b, &balance, &router_z))
        return false;
    Value *objective = task;
    if (r->loss.balance != 0)
        objective = op_binary(&b, OP_ADD, objective, loss_scale(&b, balance, r->loss.balance));
    if (r->loss.router_z != 0)
        objective = op_binary(&b, OP_ADD, objective, loss_scale(&b, router_z, r->loss.router_z));
    bool ok = true;
    for (int i = 0; i < r->loss.terms.n; i++) {
        const NamedFloat *t = &r->loss.terms.at[i];
        Value *v = output_or_error(c, "loss.terms", t->name);
        v = v ? scalar_output(c, &b, v, "loss.terms", t->name) : NULL;
        ok &= v != NULL;
        if (v)
            objective = op_binary(&b, OP_ADD, objective, loss_scale(&b, v, t->value));
    }
    graph_add_output(c->g, "loss/task", task);
    graph_add_output(c->g, "loss/balance", balance);
    graph_add_output(c->g, "loss/router_z", router_z);
    graph_add_output(c->g, "objective", objective);
    return ok;
}
