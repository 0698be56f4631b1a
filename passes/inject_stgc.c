/* inject_stgc.c: from captured gradients to the conflict elimination loss (method.md sections 2 to
 * 4).
 *
 * What, per MoE layer: cosine of every row's gradient with its expert's mean, the conflict mask q,
 * L_CEL and dL_CEL/dz; the latter flows to the router's own parameters (flow: router) or everywhere
 * (flow: full) by further reverse walks, whose results are added to the grad/NAME outputs. q is a
 * constant. Needs: the cotangents and outputs of differentiate. Gives: loss/cel, loss/total, and
 * the moe/I/… outputs wants asks for. Letters: T tokens, E experts, R rows; `n` a row, `e` its
 * expert. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "passes/grad.h"
#include "passes/loss.h"
#include "passes/stgc.h"

/* ---- spellings ---- */

static Value *bin(StgcLayer *s, Op op, Value *x, Value *y) {
    return op_binary(s->b, op, x, y);
}

static Value *num(StgcLayer *s, double v) {
    return op_const_f(s->b, DT_F32, v);
}

static Value *to_f32(StgcLayer *s, Value *flag) {
    return op_where(s->b, flag, num(s, 1), num(s, 0));
}

Value *stgc_by_row(StgcLayer *s, Value *v) {
    return op_gather(s->b, v, s->row_expert, 0);
}

Value *stgc_by_expert(StgcLayer *s, Value *v) {
    Value *in[2] = {v, s->offsets};
    return op_node(s->b, OP_SEGMENT_SUM, in, 2, NULL, 0)->out[0];
}

static void output(StgcLayer *s, const char *key, Value *v) {
    graph_add_output(s->c->g, arena_printf(&s->c->g->arena, "moe/%d/%s", s->l->index, key), v);
}

/* ---- one layer's cosines ---- */

typedef struct Stats {
    Value *cos, *dot, *norm, *conflict, *degenerate; /* f32[R]; 0 in padding rows */
    Value *valid; /* bool[R]: the row belongs to R_e; NULL: every row does */
    Value *gnorm; /* f32[E] */
} Stats;

/* Direction of the rows against the mean of all, the row itself included. */
static void include_self(StgcLayer *s, Stats *st, Value *rows_e) {
    Value *zero = num(s, 0), *one = num(s, 1), *m = stgc_by_row(s, st->gnorm);
    Value *bad = bin(s, OP_OR, bin(s, OP_LE, st->norm, zero), bin(s, OP_LE, m, zero));
    Value *safe_s = op_where(s->b, bad, one, st->norm), *safe_m = op_where(s->b, bad, one, m);
    Value *cos = bin(s, OP_DIV, bin(s, OP_DIV, st->dot, safe_s), safe_m);
    cos = op_where(s->b, bin(s, OP_LE, rows_e, one), one, cos); /* alone with itself: 1, exactly */
    st->cos = op_where(s->b, bad, zero, cos);
    st->degenerate = to_f32(s, bad);
}

/* Against the mean of the others: dot' = (T dot - |g|^2)/(T-1), |G'|^2 = (T^2 |G|^2 - 2 T dot +
 * |g|^2)/(T-1)^2. The latter is a difference: where rounding is all that is left of it, the others
 * cancel out and the row has nothing to disagree with. */
static void leave_one_out(StgcLayer *s, Stats *st, Value *square, Value *rows_e, Value *total_e) {
    Value *zero = num(s, 0), *one = num(s, 1);
    Value *td = bin(s, OP_MUL, rows_e, st->dot), *terms = bin(s, OP_ADD, total_e, square);
    Value *others2 = bin(s, OP_SUB, terms, bin(s, OP_MUL, td, num(s, 2)));
    Value *noise = bin(s, OP_MUL, terms, num(s, 5e-7));
    Value *bad = bin(s, OP_OR, bin(s, OP_LE, st->norm, zero), bin(s, OP_LE, others2, noise));
    bad = bin(s, OP_OR, bad, bin(s, OP_LE, rows_e, one));
    bad = bin(s, OP_OR, bad, bin(s, OP_LE, stgc_by_row(s, st->gnorm), zero));
    Value *safe_s = op_where(s->b, bad, one, st->norm);
    Value *others = op_unary(s->b, OP_SQRT, op_where(s->b, bad, one, others2));
    Value *cos = bin(s, OP_DIV, bin(s, OP_DIV, bin(s, OP_SUB, td, square), safe_s), others);
    st->cos = op_where(s->b, bad, zero, cos);
    st->degenerate = to_f32(s, bad);
}

/* Rows that are not in R_e (masked tokens, frozen experts) are not valid. */
static Value *valid_rows(StgcLayer *s, const StgcCapture *cap) {
    Value *valid = s->row_mask ? bin(s, OP_LT, num(s, 0), s->row_mask) : NULL;
    bool all = true;
    float *live = ARENA_ARRAY(&s->c->g->arena, float, s->experts);
    for (int64_t e = 0; e < s->experts; e++) {
        live[e] = cap->live[e];
        all &= cap->live[e];
    }
    if (all)
        return valid;
    Tensor t = {.dtype = DT_F32, .rank = 1, .dims = {s->experts}, .data = live};
    Value *row = bin(s, OP_LT, num(s, 0), stgc_by_row(s, op_const(s->b, &t)));
    return valid ? bin(s, OP_AND, valid, row) : row;
}

static Value *only_valid(StgcLayer *s, const Stats *st, Value *v) {
    return st->valid ? op_where(s->b, st->valid, v, num(s, 0)) : v;
}

static Stats row_stats(StgcLayer *s, const StgcCapture *cap) {
    Stats st = {.dot = cap->dot, .valid = valid_rows(s, cap)};
    Value *zero = num(s, 0), *one = num(s, 1);
    st.norm = op_unary(s->b, OP_SQRT, cap->square);
    /* |G_e|^2 = mean_n <g_n, G_e>: no pass over G_e itself */
    Value *sum = stgc_by_expert(s, only_valid(s, &st, st.dot));
    sum = bin(s, OP_MAX, sum, zero);
    st.gnorm = op_unary(s->b, OP_SQRT, bin(s, OP_DIV, sum, bin(s, OP_MAX, s->counts, one)));
    Value *rows_e = stgc_by_row(s, s->counts);
    if (s->c->recipe->stgc.mean == MEAN_LEAVE_ONE_OUT)
        leave_one_out(s, &st, cap->square, rows_e, stgc_by_row(s, bin(s, OP_MUL, sum, s->counts)));
    else
        include_self(s, &st, rows_e);
    st.cos = bin(s, OP_MAX, bin(s, OP_MIN, st.cos, one), num(s, -1)); /* rounding may overstep */
    Value *against = bin(s, OP_LT, st.cos, num(s, s->c->recipe->stgc.threshold));
    against = bin(s, OP_AND, against, bin(s, OP_EQ, st.degenerate, zero));
    if (st.valid)
        against = bin(s, OP_AND, against, st.valid);
    st.conflict = to_f32(s, against);
    st.cos->name = "cos"; /* for readers of what is emitted */
    st.conflict->name = "conflict";
    return st;
}

/* ---- from rows to [T,E] ---- */

typedef struct Pairs {
    Value *routed; /* bool[T,E] */
    Value *row;    /* i64[T,E], 0 where not routed */
} Pairs;

static Pairs pairs_of(StgcLayer *s, const Stats *st) {
    Value *zero = op_const_i(s->b, 0);
    Pairs p = {.routed = bin(s, OP_LE, zero, s->te_row), .row = bin(s, OP_MAX, s->te_row, zero)};
    if (st->valid)
        p.routed = bin(s, OP_AND, p.routed, op_gather(s->b, st->valid, p.row, 0));
    return p;
}

static Value *to_pairs(StgcLayer *s, const Pairs *p, Value *v, double absent) {
    return op_where(s->b, p->routed, op_gather(s->b, v, p->row, 0), num(s, absent));
}

/* ---- CEL ---- */

typedef struct Cel {
    Value *loss; /* scalar */
    Value *dz;   /* [T,E]: dL_CEL/dz */
} Cel;

static Cel layer_cel(StgcLayer *s, Value *q) {
    Value *z = op_cast(s->b, s->l->logits, DT_F32), *minus = op_unary(s->b, OP_NEG, z);
    Attr a = attr_i(AT_AXIS, 1);
    Value *logp = op_node(s->b, OP_LOG_SOFTMAX, &minus, 1, &a, 1)->out[0];
    Value *p = op_unary(s->b, OP_EXP, logp);
    Value *pull = bin(s, OP_SUB, q, bin(s, OP_MUL, p, loss_sum_axis(s->b, q, 1)));
    Value *sum = op_unary(s->b, OP_NEG, loss_sum_all(s->b, bin(s, OP_MUL, q, logp)));
    if (!s->token_count) {
        double k = 1.0 / ((double)(s->tokens ? s->tokens : 1) * (double)s->experts);
        return (Cel){loss_scale(s->b, sum, k), loss_scale(s->b, pull, k)};
    }
    Value *n = bin(s, OP_MUL, s->token_count, num(s, (double)s->experts));
    return (Cel){bin(s, OP_DIV, sum, n), bin(s, OP_DIV, pull, n)};
}

/* ---- what is reported ---- */

static void detail_outputs(StgcLayer *s, const Stats *st, const Pairs *p, Value *q) {
    output(s, "cos", to_pairs(s, p, st->cos, NAN));
    output(s, "dot", to_pairs(s, p, st->dot, NAN));
    output(s, "norm", to_pairs(s, p, st->norm, NAN));
    output(s, "conflict", q);
}

/* Counts cosines in 64 bins over [-1, 1]; a 65th bin takes padding and rows without direction. */
static Value *cos_histogram(StgcLayer *s, const Stats *st) {
    int64_t bins = 64, dims = bins + 1;
    Value *at =
        op_unary(s->b, OP_FLOOR,
                 bin(s, OP_MUL, bin(s, OP_ADD, st->cos, num(s, 1)), num(s, (double)bins / 2)));
    at = bin(s, OP_MIN, at, num(s, (double)(bins - 1)));
    Value *out = bin(s, OP_LT, num(s, 0), st->degenerate);
    if (st->valid)
        out = bin(s, OP_OR, out, op_unary(s->b, OP_NOT, st->valid));
    at = op_cast(s->b, op_where(s->b, out, num(s, (double)bins), at), DT_I64);
    Value *in[2] = {op_full(s->b, DT_F32, 1, 1, &s->rows), at};
    Attr a[2] = {attr_i(AT_AXIS, 0), attr_ints(AT_DIMS, &dims, 1)};
    return op_slice(s->b, op_node(s->b, OP_SCATTER_ADD, in, 2, a, 2)->out[0], 0, 0, bins, 1);
}

static Value *router_entropy(StgcLayer *s) {
    Value *z = op_cast(s->b, s->l->logits, DT_F32), *p = loss_router_scores(s->b, z, s->l->score);
    Value *log = op_unary(s->b, OP_LOG, bin(s, OP_MAX, p, num(s, 1e-30)));
    Value *h = op_unary(s->b, OP_NEG, loss_sum_axis(s->b, bin(s, OP_MUL, p, log), 1));
    Value *n = num(s, (double)(s->tokens ? s->tokens : 1));
    if (s->token_mask) {
        h = bin(s, OP_MUL, h, loss_column(s->b, s->token_mask));
        n = s->token_count;
    }
    return bin(s, OP_DIV, loss_sum_all(s->b, h), n);
}

static void metric_outputs(StgcLayer *s, const Stats *st) {
    Value *n = bin(s, OP_MAX, loss_sum_all(s->b, s->counts), num(s, 1)),
          *cos = only_valid(s, st, st->cos);
    Value *mean = bin(s, OP_DIV, loss_sum_all(s->b, cos), n);
    Value *square = bin(s, OP_DIV, loss_sum_all(s->b, bin(s, OP_MUL, cos, cos)), n);
    Value *variance = bin(s, OP_MAX, bin(s, OP_SUB, square, bin(s, OP_MUL, mean, mean)), num(s, 0));
    output(s, "conflict_share", bin(s, OP_DIV, loss_sum_all(s->b, st->conflict), n));
    output(s, "mean_cos", mean);
    output(s, "std_cos", op_unary(s->b, OP_SQRT, variance));
    output(s, "cos_histogram", cos_histogram(s, st));
}

/* ---- the pass ---- */

static bool layer_begin(StgcLayer *s, Compile *c, Builder *b, const MoeLayer *l) {
    Value **d = l->dispatch->out;
    *s = (StgcLayer){.c = c,
                     .b = b,
                     .l = l,
                     .offsets = d[0],
                     .row_token = d[1],
                     .row_expert = d[3],
                     .te_row = d[5]};
    s->rows = d[1]->dims[0];
    s->tokens = d[5]->dims[0];
    s->experts = d[5]->dims[1];
    Value *ends = op_slice(b, s->offsets, 0, 1, s->experts + 1, 1),
          *starts = op_slice(b, s->offsets, 0, 0, s->experts, 1);
    s->row_counts = s->counts = op_cast(b, bin(s, OP_SUB, ends, starts), DT_F32);
    if (!loss_token_mask(c, b, s->tokens, &s->token_mask, &s->token_count))
        return false;
    if (s->token_mask) {
        s->row_mask = op_gather(b, s->token_mask, s->row_token, 0);
        s->counts = stgc_by_expert(s, s->row_mask);
    }
    return true;
}

/* T_e of the experts that are trained; 0 of the others: nothing is said of their rows. */
static Value *live_counts(StgcLayer *s, const StgcCapture *cap) {
    float *live = ARENA_ARRAY(&s->c->g->arena, float, s->experts);
    bool all = true;
    if (cap->skipped && !cap->frozen)
        return s->counts;
    for (int64_t e = 0; e < s->experts; e++) {
        live[e] = cap->live[e];
        all &= cap->live[e];
    }
    Tensor t = {.dtype = DT_F32, .rank = 1, .dims = {s->experts}, .data = live};
    return all ? s->counts : bin(s, OP_MUL, s->counts, op_const(s->b, &t));
}

/* What `step` writes for a layer whose experts are all frozen: no row of it has a gradient. */
static void frozen_outputs(StgcLayer *s) {
    int64_t te[] = {s->tokens, s->experts};
    static const char *const absent[] = {"cos", "dot", "norm"}, *const none[] = {"gnorm",
                                                                                 "degenerate"};
    for (int i = 0; i < COUNT_OF(absent); i++)
        output(s, absent[i], op_full(s->b, DT_F32, NAN, 2, te));
    for (int i = 0; i < COUNT_OF(none); i++)
        output(s, none[i], op_full(s->b, DT_F32, 0, 1, te + 1));
    output(s, "conflict", op_full(s->b, DT_F32, 0, 2, te));
    output(s, "cel", num(s, 0));
}

/* One layer: captures, statistics, outputs; *cel is filled (loss NULL when the layer has none). */
static bool layer_inject(Compile *c, Builder *b, const MoeLayer *l, Cel *cel) {
    const Recipe *r = c->recipe;
    StgcLayer s;
    *cel = (Cel){0};
    if (!layer_begin(&s, c, b, l))
        return false;
    bool report = c->wants.detail || c->wants.metrics,
         capture = r->stgc.enabled && r->stgc.capture != CAPTURE_NONE;
    StgcCapture cap = {0};
    if (capture)
        cap = stgc_capture(&s);
    if (cap.skipped)
        diag_note(c->diag, "MoE layer %d takes no part in STGC: %s", l->index,
                  diag_safe(c->diag, cap.skipped));
    if (report)
        output(&s, "tokens", c->wants.detail && capture ? live_counts(&s, &cap) : s.counts);
    if (c->wants.detail && cap.frozen)
        frozen_outputs(&s);
    if (c->wants.detail && l->logits)
        output(&s, "logits", op_cast(b, l->logits, DT_F32));
    if (c->wants.metrics && l->logits)
        output(&s, "entropy", router_entropy(&s));
    if (!capture || cap.skipped)
        return true;
    Stats st = row_stats(&s, &cap);
    Pairs p = pairs_of(&s, &st);
    Value *q = to_pairs(&s, &p, st.conflict, 0);
    if (l->logits)
        *cel = layer_cel(&s, q);
    if (report) {
        output(&s, "gnorm", st.gnorm);
        output(&s, "degenerate", stgc_by_expert(&s, only_valid(&s, &st, st.degenerate)));
    }
    if (report && cel->loss)
        output(&s, "cel", cel->loss);
    if (c->wants.detail)
        detail_outputs(&s, &st, &p, q);
    if (c->wants.metrics)
        metric_outputs(&s, &st);
    return true;
}

/* Every forward value equal to x up to views and float casts: what CEL's gradient stops at under
 * flow: router. */
static void collect_equal(const Compile *c, Value *v, ValueList *out) {
    vec_push(out, v);
    for (int i = 0; i < v->uses.n; i++) {
        Node *n = v->uses.at[i].node;
        bool same = n->op == OP_RESHAPE || (n->op == OP_CAST && dtype_is_float(n->out[0]->dtype));
        if (same && v->uses.at[i].operand == 0 && n->id < c->forward_nodes)
            collect_equal(c, n->out[0], out);
    }
}

static Value *view_root(Value *v) {
    while (v->def->op == OP_RESHAPE ||
           (v->def->op == OP_CAST && dtype_is_float(v->def->in[0]->dtype)))
        v = v->def->in[0];
    return v;
}

/* What the rows of a layer's experts are made of apart from its own scores. An input that its gate
 * scales depends on the scores itself, so that a walk from them must stop further up: at the tokens
 * that the scores scale. */
static void collect_tokens(const Compile *c, const MoeLayer *l, ValueList *out) {
    bool *scores = xcalloc((size_t)c->g->next_value, 1);  /* the router's scores, up to views */
    bool *derived = xcalloc((size_t)c->g->next_value, 1); /* what is computed from them */
    ValueList same = {0}, todo = {0};
    collect_equal(c, view_root(l->logits), &same);
    for (int i = 0; i < same.n; i++)
        scores[same.at[i]->id] = derived[same.at[i]->id] = true;
    FOR_NODES(n, c->g)
    for (int i = 0; i < n->nin && n->id < c->forward_nodes; i++)
        for (int o = 0; n->in[i] && derived[n->in[i]->id] && o < n->nout; o++)
            derived[n->out[o]->id] = true;
    if (l->linears.n > 0)
        vec_push(&todo, l->linears.at[0]->in[0]);
    while (todo.n > 0) {
        Value *v = todo.at[--todo.n];
        if (!dtype_is_float(v->dtype) || scores[v->id] || v->def->op == OP_PARAM)
            continue;
        scores[v->id] = true; /* once is enough */
        if (!derived[v->id]) {
            for (v = view_root(v); v->def->op == OP_EXPAND; v = view_root(v))
                v = v->def->in[0]; /* a copy of the tokens for each expert */
            collect_equal(c, v, out);
            continue;
        }
        for (int i = 0; i < v->def->nin; i++)
            if (v->def->in[i])
                vec_push(&todo, v->def->in[i]);
    }
    vec_free(&same);
    vec_free(&todo);
    free(scores);
    free(derived);
}

/* Adds what a walk from dz brought to the parameters' gradients. */
static void add_gradients(Compile *c, Builder *b, const Cotangents *extra) {
    StrMap more = {0};
    FOR_NODES(n, c->g)
    if (n->op == OP_PARAM && n->out[0]->id < extra->n && extra->of[n->out[0]->id])
        strmap_put(&more, param_name(n->out[0]), n->out[0]);
    for (int i = 0; i < c->g->outputs.n; i++) {
        GraphOutput *o = &c->g->outputs.at[i];
        Value *param = strncmp(o->name, "grad/", 5) ? NULL : strmap_get(&more, o->name + 5);
        if (!param)
            continue;
        *b = builder_at_end(c->g, param->def->src);
        o->value = op_binary(b, OP_ADD, o->value, extra->of[param->id]);
    }
    strmap_free(&more);
}

static bool flow_back(Compile *c, Builder *b, const Seed *seeds, int nseeds, Value *const *stop,
                      int nstop) {
    ValueList wants = {0};
    Cotangents extra = {0};
    FOR_NODES(n, c->g)
    if (n->op == OP_PARAM && node_int(n, AT_KIND, PARAM_WEIGHT) == PARAM_WEIGHT)
        vec_push(&wants, n->out[0]);
    bool ok = grad_run(c->g, seeds, nseeds, wants.at, wants.n, stop, nstop, &extra, c->diag);
    if (ok)
        add_gradients(c, b, &extra);
    cotangents_free(&extra);
    vec_free(&wants);
    return ok;
}

/* dz of every layer to the parameters: one walk a layer that stops at the layer's own input, or one
 * walk over everything. */
static bool flow_cel(Compile *c, Builder *b, const MoeLayers *layers, const Cel *cel, double k) {
    VEC(Seed) seeds = {0};
    bool ok = true, full = c->recipe->stgc.flow == FLOW_FULL;
    for (int i = 0; i < layers->n; i++)
        if (cel[i].dz) {
            Value *z = layers->at[i].logits;
            Seed s = {z, op_cast(b, loss_scale(b, cel[i].dz, k), z->dtype)};
            ValueList stop = {0};
            if (full) {
                vec_push(&seeds, s);
                continue;
            }
            const Value *x = layers->at[i].x;
            if (x && x->def->id < c->forward_nodes) /* else rows of cotangents */
                collect_equal(c, view_root(layers->at[i].x), &stop);
            else
                collect_tokens(c, &layers->at[i], &stop);
            ok &= flow_back(c, b, &s, 1, stop.at, stop.n);
            vec_free(&stop);
        }
    if (seeds.n)
        ok &= flow_back(c, b, seeds.at, seeds.n, NULL, 0);
    vec_free(&seeds);
    return ok;
}

bool pass_inject_stgc(Compile *c) {
    const Recipe *r = c->recipe;
    Builder b = builder_at_end(c->g, graph_source(c->g, "", "stgc"));
    MoeLayers layers = {0};
    moe_layers(c->g, &layers);
    Cel *cel = xcalloc((size_t)layers.n + 1, sizeof *cel);
    double share = loss_layer_share(c, &layers);
    Value *sum = NULL, *objective = graph_output_named(c->g, "objective");
    bool ok = objective != NULL && c->cotangents.of != NULL;
    if (!ok)
        diag_error(c->diag, EXIT_USAGE,
                   "inject_stgc needs the gradients: do not skip attach_loss or differentiate");
    for (int i = 0; ok && i < layers.n; i++) {
        ok = layer_inject(c, &b, &layers.at[i], &cel[i]);
        if (ok && cel[i].loss) {
            Value *v = loss_scale(&b, cel[i].loss, share);
            sum = sum ? op_binary(&b, OP_ADD, sum, v) : v;
        }
    }
    if (ok && sum && r->stgc.weight != 0)
        ok = flow_cel(c, &b, &layers, cel, r->stgc.weight * share);
    if (ok) {
        b = builder_at_end(c->g, graph_source(c->g, "", "stgc"));
        sum = sum ? sum : op_const_f(&b, DT_F32, 0);
        graph_add_output(c->g, "loss/cel", sum);
        graph_add_output(c->g, "loss/total",
                         op_binary(&b, OP_ADD, objective, loss_scale(&b, sum, r->stgc.weight)));
    }
    free(cel);
    moe_layers_free(&layers);
    return ok;
}
