/* optimize.c: from gradients to updates, and the graph's final outputs.
 *
 * What: for every trained parameter NAME with gradient output grad/NAME:
 *   update       NAME, NAME.m, NAME.v <- adamw (or NAME, NAME.m <- sgd), the gradient clipped by
 * its global norm before accumulate   NAME.acc <- NAME.acc + gradient; nothing else changes
 *   apply_only   the gradient is NAME.acc; the same update; NAME.acc <- 0; the forward half is gone
 * The optimizers read input hyper f32[8]: learning rate, 1/(1-beta1^t), 1/(1-beta2^t), gradient
 * scale (1/accumulate under apply_only, else 1). Scale and clipping reach them as one factor in a
 * copy of hyper, so no scaled gradient is stored. Then outputs that wants does not ask for are
 * dropped, and the model's own become out/NAME. Needs: outputs grad/NAME (not under apply_only).
 * Gives: graph->updates, final outputs. */
#include <stdlib.h>
#include <string.h>

#include "passes/grad.h"
#include "passes/loss.h"

typedef struct Trained {
    Value *param, *grad;
} Trained;
typedef VEC(Trained) TrainedList;

static Value *zero_param(Builder *b, const Value *like, const char *suffix, ParamKind kind) {
    const char *name = arena_printf(&b->g->arena, "%s%s", param_name(like), suffix);
    Builder at = {b->g, b->g->first, like->def->src};
    Value *v = op_param(&at, name, kind, NULL);
    v->dtype = like->dtype;
    v->rank = like->rank;
    memcpy(v->dims, like->dims, sizeof v->dims);
    return v;
}

static void collect(Compile *c, Builder *b, TrainedList *out) {
    bool acc = c->wants.accumulate || c->wants.apply_only;
    StrMap grads = {0};
    for (int i = 0; i < c->g->outputs.n; i++)
        if (!strncmp(c->g->outputs.at[i].name, "grad/", 5))
            strmap_put(&grads, c->g->outputs.at[i].name + 5, c->g->outputs.at[i].value);
    FOR_NODES(n, c->g) {
        if (n->op != OP_PARAM || node_int(n, AT_KIND, PARAM_WEIGHT) != PARAM_WEIGHT)
            continue;
        Trained t = {n->out[0], strmap_get(&grads, param_name(n->out[0]))};
        if (t.grad || c->wants.apply_only)
            vec_push(out, t);
    }
    strmap_free(&grads);
    for (int i = 0; acc && i < out->n; i++) {
        Value *sum = zero_param(b, out->at[i].param, ".acc", PARAM_GRAD);
        if (c->wants.apply_only)
            out->at[i].grad = sum;
        else
            graph_add_update(c->g, sum, op_binary(b, OP_ADD, sum, out->at[i].grad));
    }
}

static Value *hyper_input(Compile *c) {
    Builder b = {c->g, c->g->first, graph_source(c->g, "", "optimizer")};
    Node *n = build_node(&b, OP_INPUT, NULL, 0, 1);
    node_set_str(n, AT_NAME, "hyper");
    Value *v = n->out[0];
    v->name = "hyper";
    v->dtype = DT_F32;
    v->rank = 1;
    v->dims[0] = 8;
    vec_push(&c->g->inputs, v);
    return v;
}

/* |scale * all gradients|, f32 scalar: sums of squares by parameter, in graph order. */
static Value *global_norm(Builder *b, const TrainedList *list, Value *scale) {
    Value *sum = NULL;
    for (int i = 0; i < list->n; i++) {
        Value *g = op_cast(b, list->at[i].grad, DT_F32),
              *s = loss_sum_all(b, op_binary(b, OP_MUL, g, g));
        sum = sum ? op_binary(b, OP_ADD, sum, s) : s;
    }
    return op_binary(b, OP_MUL, op_unary(b, OP_SQRT, sum), scale);
}

/* hyper with its gradient scale multiplied by min(1, clip / (norm + 1e-6)), as
 * torch.nn.utils.clip_grad_norm_ does. */
static Value *clipped_hyper(Compile *c, Builder *b, const TrainedList *list, Value *hyper) {
    double clip = c->recipe->optimizer.clip_norm;
    if (clip <= 0 && !c->wants.metrics)
        return hyper;
    Value *scale = op_slice(b, hyper, 0, 3, 4, 1),
          *norm = global_norm(b, list, op_reshape(b, scale, 0, NULL));
    if (c->wants.metrics)
        graph_add_output(c->g, "grad_norm", norm);
    if (clip <= 0)
        return hyper;
    Value *room = op_binary(b, OP_DIV, op_const_f(b, DT_F32, clip),
                            op_binary(b, OP_ADD, norm, op_const_f(b, DT_F32, 1e-6)));
    scale = op_binary(b, OP_MUL, scale, op_binary(b, OP_MIN, room, op_const_f(b, DT_F32, 1)));
    Value *parts[3] = {op_slice(b, hyper, 0, 0, 3, 1), scale, op_slice(b, hyper, 0, 4, 8, 1)};
    return op_concat(b, parts, 3, 0);
}

static void update_adamw(Compile *c, Builder *b, const Trained *t, Value *hyper) {
    Value *m = zero_param(b, t->param, ".m", PARAM_STATE),
          *v = zero_param(b, t->param, ".v", PARAM_STATE);
    Value *in[5] = {t->param, t->grad, m, v, hyper};
    Attr a[4] = {attr_f(AT_BETA1, c->recipe->optimizer.beta1),
                 attr_f(AT_BETA2, c->recipe->optimizer.beta2),
                 attr_f(AT_EPS, c->recipe->optimizer.eps),
                 attr_f(AT_WEIGHT_DECAY, c->recipe->optimizer.weight_decay)};
    Node *n = op_node(b, OP_ADAMW, in, 5, a, 4);
    graph_add_update(c->g, t->param, n->out[0]);
    graph_add_update(c->g, m, n->out[1]);
    graph_add_update(c->g, v, n->out[2]);
}

static void update_sgd(Compile *c, Builder *b, const Trained *t, Value *hyper) {
    double momentum = c->recipe->optimizer.momentum;
    Value *in[4] = {t->param, t->grad, hyper, NULL};
    if (momentum != 0)
        in[3] = zero_param(b, t->param, ".m", PARAM_STATE);
    Attr a[2] = {attr_f(AT_MOMENTUM, momentum),
                 attr_f(AT_WEIGHT_DECAY, c->recipe->optimizer.weight_decay)};
    Node *n = op_node(b, OP_SGD, in, in[3] ? 4 : 3, a, 2);
    graph_add_update(c->g, t->param, n->out[0]);
    if (in[3])
        graph_add_update(c->g, in[3], n->out[1]);
}

/* Keeps what wants asks for; the model's own outputs become out/NAME. */
static void final_outputs(Compile *c) {
    VEC(GraphOutput) keep = {0};
    for (int i = 0; i < c->g->outputs.n; i++) {
        GraphOutput o = c->g->outputs.at[i];
        bool ours = !strncmp(o.name, "loss/", 5) || !strncmp(o.name, "moe/", 4) ||
                    !strcmp(o.name, "grad_norm");
        bool grad = !strncmp(o.name, "grad/", 5), objective = !strcmp(o.name, "objective");
        if (c->wants.apply_only && strcmp(o.name, "grad_norm"))
            continue;
        if (objective || (grad && !c->wants.grads) || (!ours && !grad && !c->wants.detail))
            continue;
        if (!ours && !grad)
            o.name = arena_printf(&c->g->arena, "out/%s", o.name);
        vec_push(&keep, o);
    }
    c->g->outputs.n = 0;
    for (int i = 0; i < keep.n; i++)
        graph_add_output(c->g, keep.at[i].name, keep.at[i].value);
    vec_free(&keep);
}

bool pass_optimize(Compile *c) {
    const Recipe *r = c->recipe;
    Builder b = builder_at_end(
        c->g, graph_source(c->g, "", r->optimizer.kind == OPT_SGD ? "sgd" : "adamw"));
    TrainedList list = {0};
    bool update = c->wants.apply_only || (c->wants.update && !c->wants.accumulate);
    if (update || c->wants.accumulate)
        collect(c, &b, &list);
    if (update && list.n) {
        Value *hyper = clipped_hyper(c, &b, &list, hyper_input(c));
        for (int i = 0; i < list.n; i++) {
            b.src = list.at[i].param->def->src;
            if (r->optimizer.kind == OPT_SGD)
                update_sgd(c, &b, &list.at[i], hyper);
            else
                update_adamw(c, &b, &list.at[i], hyper);
        }
    }
    for (int i = 0; c->wants.apply_only && i < list.n; i++) {
        const Value *v = list.at[i].grad;
        graph_add_update(c->g, list.at[i].grad, op_full(&b, v->dtype, 0, v->rank, v->dims));
    }
    vec_free(&list);
    final_outputs(c);
    graph_dce(c->g);
    return true;
}
