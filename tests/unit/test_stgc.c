/* test_stgc.c: conflict elimination against method.md, on a small model built by hand and run by
 * the reference evaluator.
 *
 * The reference materialises every token's gradient as an outer product of what the graph itself
 * computed (x and delta of each linear), so it shares nothing with the captures; difference
 * quotients of the losses check where the gradients flow. */
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

enum { B = 2, S = 4, T = B * S, D = 3, F = 4, E = 3, K = 2, V = 5, ROWS_MAX = T * K };

typedef struct Options {
    CaptureMode capture;
    MeanMode mean;
    FlowMode flow;
    double threshold;
    bool stack; /* one stack of weights, else a matrix per expert */
    bool twice; /* the second linear uses the first one's weights again */
    bool top1;
    bool mask;       /* a token mask input */
    bool two_layers; /* with layer_reduction: mean */
    bool scaled;     /* an expert reads its token times sigmoid(logit) */
    const char *freeze;
} Options;

typedef struct Model {
    Graph *g;
    Recipe recipe;
    Compile c;
    Diag diag;
    Arena arena;
    RTensor **set; /* values given to the evaluator, by value id */
    Eval ev;
    Value *ids;
    /* of layer 0, for the reference */
    Node *dispatch, *linear[2], *bias[2];
    Value *delta[4]; /* cotangents of linear[0], linear[1], bias[0], bias[1] */
} Model;

static uint64_t state = 0x9E3779B97F4A7C15ull;
static double normal(void) {
    double s = 0;
    for (int i = 0; i < 12; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        s += (double)(state >> 11) / 9007199254740992.0;
    }
    return s - 6;
}

/* ---- the model: embedding, MoE layers with gated rows and biases, head ---- */

static Value *param(Builder *b, const char *name, int rank, const int64_t *dims) {
    Tensor *t = tensor_new(&b->g->arena, DT_F32, rank, dims);
    for (int64_t i = 0; i < tensor_count(t); i++)
        tensor_set_f(t, i, 0.8 * normal());
    return op_param(b, arena_strdup(&b->g->arena, name), PARAM_WEIGHT, t);
}
#define DIMS(...) \
    COUNT_OF(((int64_t[]){__VA_ARGS__})), (int64_t[]) { \
        __VA_ARGS__ \
    }

static const char *layer_name(Builder *b, int layer, const char *name) {
    return arena_printf(&b->g->arena, "layers.%d.%s", layer, name);
}

static Node *grouped(Model *m, Builder *b, int layer, const char *name, Value *rows,
                     const Options *o, int64_t in, int64_t out) {
    Value *ops[2 + E] = {rows, m->dispatch->out[0]};
    if (o->stack)
        ops[2] = param(b, layer_name(b, layer, name), DIMS(E, in, out));
    for (int e = 0; !o->stack && e < E; e++)
        ops[2 + e] = param(b, layer_name(b, layer, arena_printf(&b->g->arena, "%s.%d", name, e)),
                           DIMS(out, in));
    Attr a = attr_i(AT_TRANS_B, 1);
    return op_node(b, OP_GROUPED_MATMUL, ops, o->stack ? 3 : 2 + E, &a, !o->stack);
}

/* Rows of token * sigmoid(logit), read from a table with a row for each token and expert. */
static Value *scaled_rows(Builder *b, Value *x, Value *z, Node *d) {
    int64_t wide[3] = {T, 1, D}, each[3] = {T, E, 1}, flat[2] = {T * E, D}, inverse[2] = {T * E, 1};
    Value *table = op_binary(b, OP_MUL, op_reshape(b, x, 3, wide),
                             op_reshape(b, op_unary(b, OP_SIGMOID, z), 3, each));
    Value *row = op_binary(b, OP_ADD, op_binary(b, OP_MUL, d->out[1], op_const_i(b, E)), d->out[3]);
    Value *take[3] = {op_reshape(b, table, 2, flat), row, op_reshape(b, d->out[5], 2, inverse)};
    return op_node(b, OP_GATHER_ROWS, take, 3, NULL, 0)->out[0];
}

static Value *moe(Model *m, Builder *b, int layer, Value *x, const Options *o) {
    int k = o->top1 ? 1 : K;
    Value *z = op_matmul(b, x, param(b, layer_name(b, layer, "gate"), DIMS(E, D)), false, true);
    Value *p = op_softmax(b, z, 1);
    Attr top[3] = {attr_i(AT_K, k), attr_i(AT_AXIS, 1), attr_i(AT_LARGEST, 1)};
    Node *t = op_node(b, OP_TOPK, &p, 1, top, 3);
    Value *sel[2] = {t->out[1], z};
    Attr a[3] = {attr_i(AT_EXPERTS, E), attr_i(AT_TOP_K, k), attr_i(AT_LAYER, layer)};
    Node *d = m->dispatch = op_node(b, OP_DISPATCH, sel, 2, a, 3);
    Value *take[3] = {x, d->out[1], d->out[4]};
    Value *rows =
        o->scaled ? scaled_rows(b, x, z, d) : op_node(b, OP_GATHER_ROWS, take, 3, NULL, 0)->out[0];
    Node *first = grouped(m, b, layer, "up", rows, o, D, o->twice ? D : F);
    Node *b1 = op_gather(b, param(b, layer_name(b, layer, "up.bias"), DIMS(E, o->twice ? D : F)),
                         d->out[3], 0)
                   ->def;
    Value *h = op_unary(b, OP_TANH, op_binary(b, OP_ADD, first->out[0], b1->out[0]));
    Node *second;
    if (o->twice) {
        Value *ops[3] = {h, d->out[0], first->in[2]};
        second = op_node(b, OP_GROUPED_MATMUL, ops, 3, NULL, 0);
    } else {
        second = grouped(m, b, layer, "down", h, o, F, D);
    }
    Node *b2 =
        op_gather(b, param(b, layer_name(b, layer, "down.bias"), DIMS(E, D)), d->out[3], 0)->def;
    Value *y = op_binary(b, OP_ADD, second->out[0], b2->out[0]);
    int64_t flat[2] = {T * k, 1};
    Value *gate[3] = {op_reshape(b, t->out[0], 2, flat), d->out[2],
                      op_reshape(b, d->out[4], 2, flat)};
    y = op_binary(b, OP_MUL, y, op_node(b, OP_GATHER_ROWS, gate, 3, NULL, 0)->out[0]);
    Value *back[3] = {y, d->out[4], d->out[1]};
    if (layer == 0) {
        m->linear[0] = first;
        m->linear[1] = second;
        m->bias[0] = b1;
        m->bias[1] = b2;
    }
    return op_binary(b, OP_ADD, x, op_node(b, OP_COMBINE, back, 3, NULL, 0)->out[0]);
}

static Value *input(Model *m, Builder *b, const char *name, DType t, int rank,
                    const int64_t *dims) {
    Node *n = build_node(b, OP_INPUT, NULL, 0, 1);
    node_set_str(n, AT_NAME, name);
    n->out[0]->dtype = t;
    n->out[0]->rank = rank;
    memcpy(n->out[0]->dims, dims, sizeof *dims * (size_t)rank);
    vec_push(&m->g->inputs, n->out[0]);
    return n->out[0];
}

static void recipe_of(Model *m, const Options *o) {
    Recipe *r = &m->recipe;
    *r = (Recipe){0};
    vec_push(&r->model.train, "*");
    if (o->freeze)
        vec_push(&r->model.freeze, o->freeze);
    r->loss.kind = LOSS_TOKEN_CLASSIFICATION;
    r->loss.ignore_index = -100;
    r->loss.balance = 0.3;
    r->loss.router_z = 0.2;
    r->stgc.enabled = true;
    r->stgc.capture = o->capture;
    r->stgc.mean = o->mean;
    r->stgc.flow = o->flow;
    r->stgc.threshold = o->threshold;
    r->stgc.weight = 0.7;
    r->stgc.layer_reduction = o->two_layers ? REDUCTION_MEAN : REDUCTION_SUM;
    r->stgc.token_mask = o->mask ? "mask" : NULL;
}

static Model *model_new(const Options *o) {
    Model *m = xcalloc(1, sizeof *m);
    m->g = graph_new("m");
    m->diag.subject = "test";
    Builder b = builder_at_end(m->g, graph_source(m->g, "node", "Op"));
    m->ids = input(m, &b, "ids", DT_I64, DIMS(B, S));
    if (o->mask)
        input(m, &b, "mask", DT_I64, DIMS(B, S));
    Value *x = op_gather(&b, param(&b, "embed", DIMS(V, D)), m->ids, 0);
    x = op_unary(&b, OP_TANH, op_matmul(&b, x, param(&b, "mix", DIMS(D, D)), false, false));
    x = op_reshape(&b, x, DIMS(T, D));
    Node *first_dispatch = NULL;
    for (int layer = 0; layer < 1 + o->two_layers; layer++) {
        x = moe(m, &b, layer, x, o);
        first_dispatch = first_dispatch ? first_dispatch : m->dispatch;
    }
    m->dispatch = first_dispatch;
    x = op_matmul(&b, x, param(&b, "head", DIMS(D, V)), false, false);
    graph_add_output(m->g, "logits", op_reshape(&b, x, DIMS(B, S, V)));
    recipe_of(m, o);
    m->c = (Compile){.g = m->g,
                     .recipe = &m->recipe,
                     .diag = &m->diag,
                     .wants = {.train = true, .grads = true, .detail = true}};
    bool ok = pass_select_params(&m->c) && pass_attach_loss(&m->c) && pass_differentiate(&m->c);
    Node *watched[4] = {m->linear[0], m->linear[1], m->bias[0], m->bias[1]};
    for (int i = 0; ok && i < 4; i++) {
        m->delta[i] = m->c.cotangents.of[watched[i]->out[0]->id];
        if (m->delta[i])
            graph_add_output(m->g, arena_printf(&m->g->arena, "loss/delta%d", i), m->delta[i]);
        graph_add_output(m->g, arena_printf(&m->g->arena, "loss/x%d", i), watched[i]->in[0]);
    }
    ok = ok && pass_inject_stgc(&m->c) && pass_optimize(&m->c);
    if (!ok)
        fail_msg("%s", m->diag.messages.at[m->diag.messages.n - 1].text);
    char *broken = graph_check(m->g);
    if (broken)
        fail_msg("%s", broken);
    m->set = xcalloc((size_t)m->g->next_value, sizeof *m->set);
    for (int i = 0; i < m->g->inputs.n; i++) {
        Value *v = m->g->inputs.at[i];
        m->set[v->id] = rtensor_new(&m->arena, v->dtype, v->rank, v->dims);
        for (int k = 0; k < T; k++) {
            static const int64_t ids[T] = {0, 1, 2, 3, 4, 1, 2, 0},
                                 labels[T] = {1, 4, 0, -100, 2, 3, 3, 1};
            static const int64_t mask[T] = {1, 1, 0, 1, 1, 0, 1, 1};
            const char *name = node_str(v->def, AT_NAME, "");
            m->set[v->id]->i[k] = !strcmp(name, "ids")    ? ids[k]
                                  : !strcmp(name, "mask") ? mask[k]
                                                          : labels[k];
        }
    }
    FOR_NODES(n, m->g)
    if (n->op == OP_PARAM)
        m->set[n->out[0]->id] = rtensor_from(&m->arena, node_attr(n, AT_VALUE)->t);
    m->ev.values = xcalloc((size_t)m->g->next_value, sizeof *m->ev.values);
    return m;
}

static void run(Model *m) {
    m->ev.arena = &m->arena;
    m->ev.diag = &m->diag;
    memcpy(m->ev.values, m->set, sizeof *m->set * (size_t)m->g->next_value);
    if (!eval_graph(&m->ev, m->g, NULL, 0))
        fail_msg("%s", m->diag.messages.at[m->diag.messages.n - 1].text);
}

static const RTensor *out(Model *m, const char *name) {
    Value *v = graph_output_named(m->g, name);
    if (!v)
        fail_msg("no output \"%s\"", name);
    return m->ev.values[v->id];
}

static RTensor *param_data(Model *m, const char *name) {
    FOR_NODES(n, m->g)
    if (n->op == OP_PARAM && !strcmp(param_name(n->out[0]), name))
        return m->set[n->out[0]->id];
    fail_msg("no parameter %s", name);
    return NULL;
}

static RTensor *input_data(Model *m, const char *name) {
    for (int i = 0; i < m->g->inputs.n; i++)
        if (!strcmp(node_str(m->g->inputs.at[i]->def, AT_NAME, ""), name))
            return m->set[m->g->inputs.at[i]->id];
    fail_msg("no input %s", name);
    return NULL;
}

static void model_free(Model *m) {
    vec_free(&m->recipe.model.train);
    vec_free(&m->recipe.model.freeze);
    cotangents_free(&m->c.cotangents);
    graph_free(m->g);
    diag_free(&m->diag);
    arena_free(&m->arena);
    free(m->set);
    free(m->ev.values);
    free(m);
}

/* ---- the reference: every token's gradient written out ---- */

enum { WIDTH = D * F + F + F * D + D }; /* of one token's gradient of one expert */

typedef struct Reference {
    double cos[T][E], dot[T][E], norm[T][E], conflict[T][E], gnorm[E], tokens[E], degenerate[E],
        cel;
    bool routed[T][E];
} Reference;

static void token_gradient(Model *m, CaptureMode mode, int row, double *g) {
    const RTensor *delta[4], *x[2];
    for (int i = 0; i < 4; i++)
        delta[i] = out(m, arena_printf(&m->arena, "loss/delta%d", i));
    for (int i = 0; i < 2; i++)
        x[i] = out(m, arena_printf(&m->arena, "loss/x%d", i));
    int at = 0;
    memset(g, 0, sizeof(double) * WIDTH);
    for (int k = 0; k < 2; k++) {
        int64_t in = x[k]->dims[1], wide = delta[k]->dims[1];
        if (mode != CAPTURE_EXACT && k == 0)
            continue;
        for (int64_t i = 0; i < (mode == CAPTURE_OUTPUT ? 1 : in); i++)
            for (int64_t j = 0; j < wide; j++)
                g[at++] = (mode == CAPTURE_OUTPUT ? 1 : x[k]->f[row * in + i]) *
                          delta[k]->f[row * wide + j];
        for (int64_t j = 0; mode == CAPTURE_EXACT && j < wide; j++)
            g[at++] = delta[2 + k]->f[row * wide + j];
    }
    assert_true(at <= WIDTH);
}

static double inner(const double *a, const double *b) {
    double s = 0;
    for (int i = 0; i < WIDTH; i++)
        s += a[i] * b[i];
    return s;
}

/* Cosine of row n by the definitions themselves: against the mean of all, or of all others. */
static double direct_cos(double (*g)[WIDTH], int first, int count, int n, MeanMode mode,
                         bool *degenerate) {
    double mean[WIDTH] = {0};
    int others = mode == MEAN_LEAVE_ONE_OUT ? count - 1 : count;
    for (int i = first; i < first + count; i++)
        for (int k = 0; k < WIDTH && (mode == MEAN_INCLUDE_SELF || i != n); k++)
            mean[k] += g[i][k] / others;
    double s = sqrt(inner(g[n], g[n])), m = others ? sqrt(inner(mean, mean)) : 0;
    *degenerate = s == 0 || m == 0;
    return *degenerate ? 0 : inner(g[n], mean) / (s * m);
}

static void reference(Model *m, const Options *o, Reference *r) {
    static double g[ROWS_MAX][WIDTH];
    const RTensor *offsets = m->ev.values[m->dispatch->out[0]->id],
                  *token = m->ev.values[m->dispatch->out[1]->id];
    const RTensor *z = m->ev.values[m->dispatch->in[1]->id];
    memset(r, 0, sizeof *r);
    for (int e = 0; e < E; e++) {
        int first = (int)offsets->i[e], count = (int)offsets->i[e + 1] - first;
        double mean[WIDTH] = {0};
        for (int n = first; n < first + count; n++) {
            token_gradient(m, o->capture, n, g[n]);
            for (int k = 0; k < WIDTH; k++)
                mean[k] += g[n][k] / count;
        }
        r->tokens[e] = count;
        r->gnorm[e] = sqrt(inner(mean, mean));
        for (int n = first; n < first + count; n++) {
            int64_t t = token->i[n];
            bool degenerate;
            r->routed[t][e] = true;
            r->cos[t][e] = direct_cos(g, first, count, n, o->mean, &degenerate);
            r->dot[t][e] = inner(g[n], mean);
            r->norm[t][e] = sqrt(inner(g[n], g[n]));
            r->degenerate[e] += degenerate;
            r->conflict[t][e] = !degenerate && r->cos[t][e] < o->threshold;
        }
    }
    for (int t = 0; t < T; t++) {
        double sum = 0;
        for (int e = 0; e < E; e++)
            sum += exp(-z->f[t * E + e]);
        for (int e = 0; e < E; e++)
            r->cel -= r->conflict[t][e] * (-z->f[t * E + e] - log(sum)) / (T * E);
    }
}

static void near(double want, double got, const char *what) {
    if (!(fabs(want - got) <=
          1e-6 * (1e-3 + fabs(want)))) /* f32 constants (loss weights) in a float64 evaluation */
        fail_msg("%s: %.10g, expected %.10g", what, got, want);
}

static void against_reference(const Options *o) {
    Model *m = model_new(o);
    run(m);
    static Reference r;
    reference(m, o, &r);
    int conflicts = 0;
    for (int t = 0; t < T; t++)
        for (int e = 0; e < E; e++) {
            int at = t * E + e;
            assert_true(out(m, "moe/0/conflict")->f[at] == r.conflict[t][e]);
            conflicts += (int)r.conflict[t][e];
            if (!r.routed[t][e]) {
                assert_true(isnan(out(m, "moe/0/cos")->f[at]) && isnan(out(m, "moe/0/dot")->f[at]));
                assert_true(isnan(out(m, "moe/0/norm")->f[at]));
                continue;
            }
            near(r.cos[t][e], out(m, "moe/0/cos")->f[at], "cos");
            near(r.dot[t][e], out(m, "moe/0/dot")->f[at], "dot");
            near(r.norm[t][e], out(m, "moe/0/norm")->f[at], "norm");
            assert_true(fabs(out(m, "moe/0/cos")->f[at]) <= 1);
        }
    assert_true(conflicts > 0);
    for (int e = 0; e < E; e++) {
        near(r.gnorm[e], out(m, "moe/0/gnorm")->f[e], "gnorm");
        assert_true(out(m, "moe/0/tokens")->f[e] == r.tokens[e]);
        assert_true(out(m, "moe/0/degenerate")->f[e] == r.degenerate[e]);
        double sum = 0; /* sum_n dot_n = T |G|^2 */
        for (int t = 0; t < T; t++)
            sum += r.routed[t][e] ? out(m, "moe/0/dot")->f[t * E + e] : 0;
        near(r.tokens[e] * r.gnorm[e] * r.gnorm[e], sum, "sum of dots");
    }
    near(r.cel, out(m, "moe/0/cel")->f[0], "cel");
    near(r.cel, out(m, "loss/cel")->f[0], "loss/cel");
    double total = out(m, "loss/task")->f[0] + 0.3 * out(m, "loss/balance")->f[0] +
                   0.2 * out(m, "loss/router_z")->f[0];
    near(total + 0.7 * r.cel, out(m, "loss/total")->f[0], "loss/total");
    model_free(m);
}

static void test_against_materialised_gradients(void **unused) {
    (void)unused;
    for (int capture = CAPTURE_EXACT; capture <= CAPTURE_LAST_LINEAR; capture++)
        for (int mean = MEAN_INCLUDE_SELF; mean <= MEAN_LEAVE_ONE_OUT; mean++)
            for (int stack = 0; stack < 2; stack++)
                against_reference(&(Options){.capture = (CaptureMode)capture,
                                             .mean = (MeanMode)mean,
                                             .stack = stack,
                                             .threshold = 0.2});
}

/* ---- identities ---- */

/* The rows' gradients add up to the parameters' own: nothing is missed, nothing is counted twice.
 */
static void test_rows_add_up(void **unused) {
    (void)unused;
    Options o = {.stack = true};
    Model *m = model_new(&o);
    run(m);
    const RTensor *offsets = m->ev.values[m->dispatch->out[0]->id],
                  *up = out(m, "grad/layers.0.up");
    const RTensor *bias = out(m, "grad/layers.0.down.bias");
    for (int e = 0; e < E; e++) {
        double sum[WIDTH] = {0}, g[WIDTH];
        for (int n = (int)offsets->i[e]; n < offsets->i[e + 1]; n++) {
            token_gradient(m, CAPTURE_EXACT, n, g);
            for (int k = 0; k < WIDTH; k++)
                sum[k] += g[k];
        }
        for (int k = 0; k < D * F; k++)
            near(sum[k], up->f[e * D * F + k], "row sum of up");
        for (int k = 0; k < D; k++)
            near(sum[WIDTH - D + k], bias->f[e * D + k], "row sum of down.bias");
    }
    model_free(m);
}

/* Tokens 0 and 7 have equal ids and labels here: equal cosines. Reversing all tokens reverses all
 * rows. */
static void test_duplicates_and_permutation(void **unused) {
    (void)unused;
    Options o = {.stack = true, .threshold = 0.2};
    Model *m = model_new(&o);
    run(m);
    double before[T * E];
    for (int i = 0; i < T * E; i++)
        before[i] = out(m, "moe/0/cos")->f[i];
    for (int e = 0; e < E; e++)
        assert_true(before[e] == before[7 * E + e] ||
                    (isnan(before[e]) && isnan(before[7 * E + e])));
    double cel = out(m, "loss/cel")->f[0];
    RTensor *both[2] = {input_data(m, "ids"), input_data(m, "labels")};
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < T / 2; i++) {
            int64_t keep = both[k]->i[i];
            both[k]->i[i] = both[k]->i[T - 1 - i];
            both[k]->i[T - 1 - i] = keep;
        }
    run(m);
    near(cel, out(m, "loss/cel")->f[0], "cel of the reversed tokens");
    for (int t = 0; t < T; t++)
        for (int e = 0; e < E; e++) {
            double a = before[t * E + e], b = out(m, "moe/0/cos")->f[(T - 1 - t) * E + e];
            assert_true(isnan(a) == isnan(b));
            if (!isnan(a))
                near(a, b, "cos of the reversed tokens");
        }
    model_free(m);
}

/* Moves the router so that expert `e` gets exactly the tokens of id `only` under top-1, and expert
 * 2 nothing. */
static void route_by_id(Model *m, int only) {
    RTensor *embed = param_data(m, "embed"), *gate = param_data(m, "layers.0.gate"),
            *mix = param_data(m, "mix");
    for (int i = 0; i < D * D; i++)
        mix->f[i] = i % (D + 1) == 0;
    for (int v = 0; v < V; v++)
        embed->f[v * D] = v == only ? 2 : -2;
    for (int e = 0; e < E; e++)
        for (int k = 0; k < D; k++)
            gate->f[e * D + k] = k ? 0.01 * e : e == 0 ? 5 : e == 1 ? -5 : 0;
}

/* Expert 0 has one row, expert 2 none, under both means. */
static void test_one_row_and_none(void **unused) {
    (void)unused;
    for (int mean = MEAN_INCLUDE_SELF; mean <= MEAN_LEAVE_ONE_OUT; mean++) {
        Options o = {.stack = true,
                     .top1 = true,
                     .mean = (MeanMode)mean,
                     .threshold = 2}; /* every row with a direction conflicts */
        Model *m = model_new(&o);
        route_by_id(m, 4); /* id 4 occurs once, at token 4 */
        run(m);
        assert_true(out(m, "moe/0/tokens")->f[0] == 1 && out(m, "moe/0/tokens")->f[1] == T - 1 &&
                    out(m, "moe/0/tokens")->f[2] == 0);
        bool self = mean == MEAN_INCLUDE_SELF;
        assert_true(out(m, "moe/0/cos")->f[4 * E] == (self ? 1 : 0));
        assert_true(out(m, "moe/0/conflict")->f[4 * E] == self);
        assert_true(out(m, "moe/0/degenerate")->f[0] == !self);
        assert_true(out(m, "moe/0/gnorm")->f[2] == 0 && out(m, "moe/0/gnorm")->f[0] > 0);
        for (int t = 0; t < T; t++)
            assert_true(isnan(out(m, "moe/0/cos")->f[t * E + 2]) &&
                        out(m, "moe/0/conflict")->f[t * E + 2] == 0);
        assert_true(isfinite(out(m, "loss/total")->f[0]));
        model_free(m);
    }
}

/* A token whose label is ignored and that no other loss reaches through the experts has no
 * direction. */
static void test_zero_gradient_is_degenerate(void **unused) {
    (void)unused;
    for (int mean = MEAN_INCLUDE_SELF; mean <= MEAN_LEAVE_ONE_OUT; mean++) {
        Options o = {.stack = true, .mean = (MeanMode)mean, .threshold = 2};
        Model *m = model_new(&o);
        run(m); /* token 3 has label -100 */
        double degenerate = 0;
        for (int e = 0; e < E; e++) {
            degenerate += out(m, "moe/0/degenerate")->f[e];
            double cos = out(m, "moe/0/cos")->f[3 * E + e];
            assert_true(isnan(cos) || cos == 0);
            assert_true(out(m, "moe/0/conflict")->f[3 * E + e] == 0);
        }
        assert_true(degenerate >= K);
        model_free(m);
    }
}

/* ---- where CEL's gradient flows ---- */

/* d(name of a loss)/d(element) by differences; q and the routing are piecewise constant. */
static double quotient(Model *m, RTensor *p, int64_t i, const char *const *losses,
                       const double *weights, int n) {
    double keep = p->f[i], h = 1e-5, d = 0;
    for (int side = -1; side <= 1; side += 2) {
        p->f[i] = keep + side * h;
        run(m);
        for (int k = 0; k < n; k++)
            d += side * weights[k] * out(m, losses[k])->f[0] / (2 * h);
    }
    p->f[i] = keep;
    return d;
}

static void check_gradients(Model *m, const char *name, bool with_cel) {
    static const char *const losses[4] = {"loss/task", "loss/balance", "loss/router_z", "loss/cel"};
    static const double weights[4] = {1, 0.3, 0.2, 0.7};
    char key[64];
    snprintf(key, sizeof key, "grad/%s", name);
    run(m);
    const RTensor *g = out(m, key);
    RTensor *p = param_data(m, name);
    for (int64_t i = 0; i < p->count; i++) {
        double want = quotient(m, p, i, losses, weights, with_cel ? 4 : 3);
        if (!(fabs(want - g->f[i]) <= 2e-6 * (0.1 + fabs(want))))
            fail_msg("%s[%lld]: gradient %.9g, difference quotient %.9g", name, (long long)i,
                     g->f[i], want);
    }
}

static void test_flow_router(void **unused) {
    (void)unused;
    Options o = {.stack = true, .threshold = 0.3};
    Model *m = model_new(&o);
    check_gradients(m, "layers.0.gate", true);
    check_gradients(m, "embed", false);
    check_gradients(m, "mix", false);
    check_gradients(m, "layers.0.up", false);
    check_gradients(m, "head", false);
    model_free(m);
}

static void test_flow_full(void **unused) {
    (void)unused;
    for (int two = 0; two < 2; two++) {
        Options o = {.stack = true, .threshold = 0.3, .flow = FLOW_FULL, .two_layers = two};
        Model *m = model_new(&o);
        check_gradients(m, "layers.0.gate", true);
        check_gradients(m, "embed", true);
        check_gradients(m, "layers.0.up", true);
        check_gradients(m, "layers.0.down.bias", true);
        model_free(m);
    }
}

/* With two layers under flow: router the second router's CEL reaches nothing of the first layer. */
static void test_flow_router_stops(void **unused) {
    (void)unused;
    Options o = {.stack = true, .threshold = 0.3, .two_layers = true};
    Model *m = model_new(&o);
    check_gradients(m, "layers.0.down.bias", false);
    check_gradients(m, "layers.0.up", false);
    check_gradients(m, "layers.1.gate", true);
    double share = (out(m, "moe/0/cel")->f[0] + out(m, "moe/1/cel")->f[0]) / 2;
    near(share, out(m, "loss/cel")->f[0], "mean over layers");
    model_free(m);
}

/* Also where the scores scale the experts' input, so that their rows depend on the router. */
static void test_flow_router_stops_at_scaled_input(void **unused) {
    (void)unused;
    Options o = {.stack = true, .threshold = 0.3, .scaled = true};
    Model *m = model_new(&o);
    check_gradients(m, "layers.0.gate", true);
    check_gradients(m, "embed", false);
    check_gradients(m, "mix", false);
    model_free(m);
}

/* ---- masks, frozen experts, what cannot be captured ---- */

/* Masked tokens are as good as absent: their rows are NaN, and the others' numbers are those of a
 * batch without them. */
static void test_token_mask(void **unused) {
    (void)unused;
    Options o = {.stack = true, .mask = true, .threshold = 0.2};
    Model *m = model_new(&o);
    run(m);
    static double g[ROWS_MAX][WIDTH];
    const RTensor *offsets = m->ev.values[m->dispatch->out[0]->id],
                  *token = m->ev.values[m->dispatch->out[1]->id];
    const RTensor *mask = input_data(m, "mask");
    for (int e = 0; e < E; e++) {
        int count = 0;
        for (int n = (int)offsets->i[e]; n < offsets->i[e + 1]; n++)
            if (mask->i[token->i[n]])
                token_gradient(m, CAPTURE_EXACT, n, g[count++]);
            else
                assert_true(isnan(out(m, "moe/0/cos")->f[token->i[n] * E + e]));
        assert_true(out(m, "moe/0/tokens")->f[e] == count);
        for (int n = (int)offsets->i[e], k = 0; n < offsets->i[e + 1]; n++) {
            bool degenerate;
            if (!mask->i[token->i[n]])
                continue;
            near(direct_cos(g, 0, count, k, MEAN_INCLUDE_SELF, &degenerate),
                 out(m, "moe/0/cos")->f[token->i[n] * E + e], "masked cos");
            k++;
        }
    }
    check_gradients(m, "layers.0.gate", true);
    model_free(m);
}

static bool noted(const Model *m, const char *text) {
    for (int i = 0; i < m->diag.messages.n; i++)
        if (strstr(m->diag.messages.at[i].text, text))
            return true;
    return false;
}

static void test_frozen_expert(void **unused) {
    (void)unused;
    Options o = {.freeze = "layers.0.*.1", .capture = CAPTURE_LAST_LINEAR, .threshold = 0.2};
    Model *m = model_new(&o);
    run(m);
    for (int t = 0; t < T; t++)
        assert_true(isnan(out(m, "moe/0/cos")->f[t * E + 1]) &&
                    out(m, "moe/0/conflict")->f[t * E + 1] == 0);
    assert_true(out(m, "moe/0/gnorm")->f[0] > 0);
    model_free(m);
    o.freeze = "layers.0.[ud]*"; /* no such glob syntax: nothing is frozen, and that is said */
    m = model_new(&o);
    assert_true(noted(m, "matches no parameter"));
    model_free(m);
    o.freeze = "layers.0.*";
    m = model_new(&o);
    assert_true(noted(m, "experts are frozen"));
    run(m);
    assert_true(out(m, "loss/cel")->f[0] == 0);
    model_free(m);
}

static void test_weight_used_twice(void **unused) {
    (void)unused;
    Options o = {.stack = true, .twice = true};
    Model *m = model_new(&o);
    assert_true(noted(m, "is used twice by one expert"));
    assert_null(graph_output_named(m->g, "moe/0/cos"));
    model_free(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_materialised_gradients),
        cmocka_unit_test(test_rows_add_up),
        cmocka_unit_test(test_duplicates_and_permutation),
        cmocka_unit_test(test_one_row_and_none),
        cmocka_unit_test(test_zero_gradient_is_degenerate),
        cmocka_unit_test(test_flow_router),
        cmocka_unit_test(test_flow_full),
        cmocka_unit_test(test_flow_router_stops),
        cmocka_unit_test(test_flow_router_stops_at_scaled_input),
        cmocka_unit_test(test_token_mask),
        cmocka_unit_test(test_frozen_expert),
        cmocka_unit_test(test_weight_used_twice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
