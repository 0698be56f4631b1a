/* onnx_op_moe.c: com.microsoft.MoE and QMoE, the operators that are an MoE layer already: read
 * straight into dispatch, grouped matrix products and combine.
 *
 *   p = softmax(logits)[T,E]; w, idx = topk(p, K); w /= sum w when normalize_routing_weights
 *   rows = x of the routed pairs; h = act(rows W1 + b1) (* (rows W3 + b3)); y = sum over K of w (h
 * W2 + b2)
 *
 * `router_probs` are logits: the softmax is inside. Weights are [E,out,in] in today's operator and
 * were [E,in,out] in the oldest; the shapes of all of them together decide, and where they cannot
 * (H = I) the node is refused. T tokens, H hidden, I inner, E experts, K chosen, R rows. */
#include <math.h>
#include <string.h>

#include "frontend/onnx_ops.h"

typedef struct Moe {
    Value *x, *logits;     /* [T,H], [T,E] */
    Value *w[3], *bias[3]; /* fc1, fc2, fc3 */
    int64_t hidden, inner, experts, k;
    int fused;      /* fc1 holds gate and up: 0 no, 1 interleaved, 2 concatenated */
    bool trans;     /* weights are [E,out,in] */
    bool quantised; /* QMoE */
    const char *activation;
} Moe;

/* QMoE's weights of fc1, fc2, fc3 [E,out,in/pack] as floats [E,out,in]. */
static Value *unpacked_stack(OpCall *c, int i) {
    static const char *const attrs[] = {"fc1_expert_weight_bits", "fc2_expert_weight_bits",
                                        "fc3_expert_weight_bits"};
    const Tensor *q = em_packed(c, 2 + 3 * i, "the weights"),
                 *scale = em_packed(c, 3 + 3 * i, "the scales");
    int64_t bits = call_int(c, attrs[i], call_int(c, "expert_weight_bits", 4));
    if (strcmp(call_string(c, "quant_type", "int"), "int") != 0)
        call_fail(c, "quant_type \"%s\" is not supported; expected \"int\"",
                  diag_safe(c->im->d, call_string(c, "quant_type", "")));
    if (call_int(c, "weights_prepacked", 0) > 0)
        call_fail(c, "weights packed for one device cannot be read; export without prepacking");
    if (!scale || q->rank != 3 || (bits != 2 && bits != 4 && bits != 8))
        call_fail(c, "the weights must be [E,out,in] of 2, 4 or 8 bits, with scales");
    Packed p = {.q = q,
                .scale = scale,
                .zero = em_packed(c, 11 + i, "the zero points"),
                .rows = q->dims[0] * q->dims[1],
                .k = q->dims[2] * (8 / bits),
                .block = call_int(c, "block_size", 0),
                .zero_run = q->dims[1],
                .bits = (int)bits,
                .type = c->in[0]->dtype,
                .rank = 3,
                .dims = {q->dims[0], q->dims[1], q->dims[2] * (8 / bits)}};
    if (p.block < 0 || (p.block > 0 && p.k % p.block))
        call_fail(c, "blocks of %lld do not divide rows of %lld", (long long)p.block,
                  (long long)p.k);
    return em_const(c, em_unpack(c, &p));
}

static void moe_operands(OpCall *c, Moe *m) {
    static const char *const what[] = {"fc1", "fc2", "fc3"};
    Value *x = c->in[0];
    int rank = em_rank(c, x);
    if ((rank != 2 && rank != 3) || x->dims[rank - 1] < 0)
        call_fail(c, "the input must be [T,H] or [B,S,H] with H known, found %s",
                  call_value_text(c, x));
    m->hidden = x->dims[rank - 1];
    m->x = rank == 2 ? x : em_reshape(c, x, 2, (int64_t[]){-1, m->hidden});
    for (int i = 0; i < 3; i++) {
        int at = m->quantised ? 2 + 3 * i : 2 + 2 * i, bias = m->quantised ? at + 2 : at + 1;
        m->w[i] = at < c->nin ? c->in[at] : NULL;
        m->bias[i] = bias < c->nin ? c->in[bias] : NULL;
        if (m->w[i] && m->quantised)
            m->w[i] = unpacked_stack(c, i);
        if (m->w[i] && (em_rank(c, m->w[i]) != 3 || !value_known(m->w[i])))
            call_fail(c, "%s must be [E,out,in], found %s", what[i], call_value_text(c, m->w[i]));
        if (m->bias[i] && (em_rank(c, m->bias[i]) != 2 || !value_known(m->bias[i])))
            call_fail(c, "the bias of %s must be [E,out], found %s", what[i],
                      call_value_text(c, m->bias[i]));
    }
    if (!m->w[0] || !m->w[1])
        call_fail(c, "fc1 and fc2 must be given");
    m->experts = m->w[0]->dims[0];
    Value *logits = c->in[1];
    int lr = em_rank(c, logits);
    if (lr < 2 || logits->dims[lr - 1] != m->experts)
        call_fail(c, "the router gives %s for %lld experts", call_value_text(c, logits),
                  (long long)m->experts);
    m->logits = lr == 2 ? logits : em_reshape(c, logits, 2, (int64_t[]){-1, m->experts});
}

/* Do all weights fit with out and in in this order? */
static bool layout_fits(const Moe *m, bool trans, int64_t *inner) {
    int64_t f = m->fused ? 2 : 1;
    int out = trans ? 1 : 2, in = trans ? 2 : 1;
    *inner = m->w[1]->dims[in];
    bool fits = m->w[0]->dims[in] == m->hidden && m->w[0]->dims[out] == f * *inner &&
                m->w[1]->dims[out] == m->hidden;
    if (m->w[2])
        fits &= m->w[2]->dims[in] == m->hidden && m->w[2]->dims[out] == *inner;
    for (int i = 0; i < 3; i++)
        fits &= !m->w[i] || m->w[i]->dims[0] == m->experts;
    return fits;
}

static void moe_layout(OpCall *c, Moe *m) {
    int64_t inner_new, inner_old;
    bool is_new = layout_fits(m, true, &inner_new), is_old = layout_fits(m, false, &inner_old);
    if (!is_new && !is_old)
        call_fail(c, "the weights fit neither [E,out,in] nor [E,in,out] for H = %lld",
                  (long long)m->hidden);
    is_old &= !m->quantised; /* a newer operator: one layout only */
    if (m->quantised && !is_new)
        call_fail(c, "the weights do not fit [E,out,in] for H = %lld", (long long)m->hidden);
    if (is_new && is_old)
        call_fail(c,
                  "the weights fit both [E,out,in] and [E,in,out] (H = I = %lld), which would give "
                  "different results; "
                  "export the model with separate experts",
                  (long long)m->hidden);
    m->trans = is_new;
    m->inner = is_new ? inner_new : inner_old;
    for (int i = 0; i < 3; i++) {
        int64_t n = i == 1 ? m->hidden : i == 0 && m->fused ? 2 * m->inner : m->inner;
        if (m->bias[i] && (m->bias[i]->dims[0] != m->experts || m->bias[i]->dims[1] != n))
            call_fail(c, "a bias is %s; expected [%lld,%lld]", call_value_text(c, m->bias[i]),
                      (long long)m->experts, (long long)n);
    }
}

static void moe_attributes(OpCall *c, Moe *m) {
    m->activation = call_string(c, "activation_type", "relu");
    m->k = call_int(c, "k", 1);
    int64_t fusion = call_int(c, "swiglu_fusion", 0);
    if (fusion < 0 || fusion > 2)
        call_fail(c, "swiglu_fusion is %lld; expected 0, 1 or 2", (long long)fusion);
    m->fused = !strcmp(m->activation, "swiglu") ? (int)fusion : 0;
    if (!strcmp(m->activation, "swiglu") && !m->fused && !m->w[2])
        call_fail(c, "swiglu without fusion needs fc3");
    if (m->fused && m->w[2])
        call_fail(c, "fc3 beside a fused swiglu is not defined");
    if (m->k < 1 || m->k > m->experts)
        call_fail(c, "k is %lld for %lld experts", (long long)m->k, (long long)m->experts);
    if (call_int(c, "use_sparse_mixer", 0) && m->k != 2)
        call_fail(c, "use_sparse_mixer chooses 2 experts; k is %lld", (long long)m->k);
    if (call_int(c, "swiglu_limit_after_activation", 0))
        call_fail(c, "swiglu_limit_after_activation is not supported");
}

typedef struct Routing {
    Value *offsets, *row_token, *row_pair, *row_expert, *pair_row, *gate; /* gate [R,1] */
} Routing;

static Value *gather_rows(OpCall *c, Value *x, Value *idx, Value *inv) {
    return em_node(c, OP_GATHER_ROWS, (Value *[]){x, idx, inv}, 3, 1, NULL, 0)->out[0];
}

static const char *moe_schema(OpCall *c, const Moe *m) {
    bool glu = m->fused || m->w[2];
    return arena_printf(&c->im->g->arena, "%s%s%s", m->activation,
                        glu ? "(x W1) * (x W3)" : "(x W1)",
                        m->bias[0] || m->bias[1] || m->bias[2] ? " W2, with biases" : " W2");
}

static Node *top_of(OpCall *c, Value *x, int64_t k) {
    return em_node(c, OP_TOPK, &x, 1, 2, (Attr[]){A_INT(K, k), A_INT(AXIS, 1), A_INT(LARGEST, 1)},
                   3);
}

/* One of the sparse mixer's two choices (Liu and others 2023, as Phi-3.5-MoE infers with it): of
 * `left`, the largest; its weight is its share of the softmax over the logits within 2% of it. */
static Value *mixer_choice(OpCall *c, Value *logits, Value *left, Value **index) {
    enum { TWICE_JITTER_PERCENT = 2 };
    Node *top = top_of(c, left, 1);
    Value *most = top->out[0], *size = em_binary(c, OP_MAX, em_unary(c, OP_ABS, logits), most);
    Value *far = em_binary(c, OP_LT, em_like(c, size, TWICE_JITTER_PERCENT / 100.0),
                           em_binary(c, OP_DIV, em_binary(c, OP_SUB, most, logits), size));
    *index = top->out[1];
    Value *p = em_softmax(c, em_where(c, far, em_like(c, left, -INFINITY), left), 1);
    return EM(c, OP_GATHER_ELEMENTS, ((Value *[]){p, *index}), 2, A_INT(AXIS, 1));
}

static Value *sparse_mixer(OpCall *c, const Moe *m, Value **index) {
    Value *w[2], *idx[2];
    w[0] = mixer_choice(c, m->logits, m->logits, &idx[0]);
    int64_t experts = m->experts;
    Tensor *ids = tensor_new(&c->im->g->arena, DT_I64, 2, (int64_t[]){1, experts});
    for (int64_t e = 0; e < experts; e++)
        tensor_set_i(ids, e, e);
    Value *taken = em_binary(c, OP_EQ, idx[0], em_const(c, ids));
    Value *left = em_where(c, taken, em_like(c, m->logits, -INFINITY), m->logits);
    w[1] = mixer_choice(c, m->logits, left, &idx[1]);
    *index = em_concat(c, idx, 2, 1);
    return em_concat(c, w, 2, 1);
}

/* Weights and experts of the tokens: [T,K] each. Where weights are not normalised MoE keeps the
 * shares of the softmax over all experts; QMoE has that over the chosen ones, unless the weights
 * come from elsewhere (operand 14) and only the choice is the router's. */
static Value *moe_weights(OpCall *c, const Moe *m, Value **index) {
    int64_t last = 1;
    bool normalise = call_int(c, "normalize_routing_weights", 0) != 0;
    if (call_int(c, "use_sparse_mixer", 0))
        return sparse_mixer(c, m, index);
    Value *given = m->quantised && c->nin > 14 ? c->in[14] : NULL, *w;
    if (given) {
        *index = top_of(c, m->logits, m->k)->out[1];
        given =
            em_rank(c, given) == 2 ? given : em_reshape(c, given, 2, (int64_t[]){-1, m->experts});
        w = EM(c, OP_GATHER_ELEMENTS, ((Value *[]){given, *index}), 2, A_INT(AXIS, 1));
    } else {
        Node *top = top_of(c, em_softmax(c, m->logits, 1), m->k);
        w = top->out[0];
        *index = top->out[1];
    }
    if (normalise || (m->quantised && !given))
        return em_binary(c, OP_DIV, w, em_reduce(c, OP_REDUCE_SUM, w, &last, 1, true));
    if (m->k > 1)
        diag_note(c->im->d, "node \"%s\" (%s): routing weights are not normalised%s",
                  diag_safe(c->im->d, node_label(c->node)), m->quantised ? "QMoE" : "MoE",
                  given ? "" : " (softmax over all experts, then top-k)");
    return w;
}

static Routing moe_route(OpCall *c, const Moe *m) {
    Value *index, *w = moe_weights(c, m, &index);
    Attr attrs[] = {A_INT(EXPERTS, m->experts), A_INT(TOP_K, m->k), A_STR(FORM, "F"),
                    A_STR(SCORE, "softmax"), A_STR(SCHEMA, moe_schema(c, m))};
    Node *d = em_node(c, OP_DISPATCH, (Value *[]){index, m->logits}, 2, 6, attrs, COUNT_OF(attrs));
    Routing r = {d->out[0], d->out[1], d->out[2], d->out[3], d->out[4], NULL};
    Value *inv = em_reshape(c, r.pair_row, 2, (int64_t[]){-1, 1});
    r.gate = gather_rows(c, em_reshape(c, w, 2, (int64_t[]){-1, 1}), r.row_pair, inv);
    return r;
}

/* rows W + b of each row's expert */
static Value *moe_linear(OpCall *c, const Moe *m, const Routing *r, Value *rows, int i) {
    Value *y = em_node(c, OP_GROUPED_MATMUL, (Value *[]){rows, r->offsets, m->w[i]}, 3, 1,
                       (Attr[]){A_INT(TRANS_B, 1)}, m->trans)
                   ->out[0];
    return m->bias[i] ? em_binary(c, OP_ADD, y, em_gather(c, m->bias[i], r->row_expert, 0)) : y;
}

/* g sigmoid(alpha g) (u + beta), g clipped above and u on both sides at `limit` */
static Value *swiglu(OpCall *c, Value *g, Value *u) {
    double alpha = call_float(c, "activation_alpha", 1), beta = call_float(c, "activation_beta", 0);
    if (call_attr(c, "swiglu_limit")) {
        double limit = call_float(c, "swiglu_limit", 0);
        g = em_binary(c, OP_MIN, g, em_like(c, g, limit));
        u = em_binary(c, OP_MIN, em_binary(c, OP_MAX, u, em_like(c, u, -limit)),
                      em_like(c, u, limit));
    }
    if (beta != 0)
        u = em_binary(c, OP_ADD, u, em_like(c, u, beta));
    return em_binary(c, OP_MUL, em_silu(c, g, alpha), u);
}

static Value *moe_activation(OpCall *c, const Moe *m, Value *g) {
    if (!strcmp(m->activation, "relu"))
        return em_relu(c, g);
    if (!strcmp(m->activation, "gelu")) /* the operator's kernels have the tanh form (measured) */
        return em_gelu_tanh(c, g);
    if (!strcmp(m->activation, "silu"))
        return em_silu(c, g, 1);
    if (!strcmp(m->activation, "identity"))
        return g;
    call_fail(c, "activation_type \"%s\" is unknown; expected relu, gelu, silu, swiglu or identity",
              diag_safe(c->im->d, m->activation));
}

static Value *moe_inner(OpCall *c, const Moe *m, const Routing *r, Value *rows) {
    Value *h = moe_linear(c, m, r, rows, 0), *up = m->w[2] ? moe_linear(c, m, r, rows, 2) : NULL;
    if (m->fused) {
        bool interleaved = m->fused == 1;
        int64_t n = 2 * m->inner;
        up = interleaved ? em_slice(c, h, 1, 1, n, 2) : em_slice(c, h, 1, m->inner, n, 1);
        h = interleaved ? em_slice(c, h, 1, 0, n, 2) : em_slice(c, h, 1, 0, m->inner, 1);
    }
    if (!strcmp(m->activation, "swiglu"))
        return swiglu(c, h, up);
    h = moe_activation(c, m, h);
    return up ? em_binary(c, OP_MUL, h, up) : h;
}

static void read_layer(OpCall *c, bool quantised) {
    Moe m = {.quantised = quantised};
    moe_operands(c, &m);
    moe_attributes(c, &m);
    moe_layout(c, &m);
    Routing r = moe_route(c, &m);
    Value *rows = gather_rows(c, m.x, r.row_token, r.pair_row);
    Value *y = moe_linear(c, &m, &r, moe_inner(c, &m, &r, rows), 1);
    y = em_binary(c, OP_MUL, y, r.gate);
    y = em_node(c, OP_COMBINE, (Value *[]){y, r.pair_row, r.row_token}, 3, 1, NULL, 0)->out[0];
    ShapeOf s = {0};
    shape_add_axes(c, &s, c->in[0], 0, c->in[0]->rank);
    c->out[0] = em_view(c, y, &s);
}

void read_moe(OpCall *c) {
    read_layer(c, false);
}

/* com.microsoft.QMoE: the same with packed weights, which stay as they are in training. */
void read_qmoe(OpCall *c) {
    for (int i = 15; i < c->nin; i++)
        if (c->in[i])
            call_fail(
                c, "scales of activations and of whole tensors (operand %d) are not supported", i);
    read_layer(c, true);
}
