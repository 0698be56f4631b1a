/* onnx_op_moe.c: com.microsoft.MoE, the one operator that is an MoE layer already: read straight
 * into dispatch, grouped matrix products and combine.
 *
 *   p = softmax(logits)[T,E]; w, idx = topk(p, K); w /= sum w when normalize_routing_weights
 *   rows = x of the routed pairs; h = act(rows W1 + b1) (* (rows W3 + b3)); y = sum over K of w (h
 * W2 + b2)
 *
 * `router_probs` are logits: the softmax is inside. Weights are [E,out,in] in today's operator and
 * were [E,in,out] in the oldest; the shapes of all of them together decide, and where they cannot
 * (H = I) the node is refused. T tokens, H hidden, I inner, E experts, K chosen, R rows. */
#include <string.h>

#include "frontend/onnx_ops.h"

typedef struct Moe {
    Value *x, *logits;     /* [T,H], [T,E] */
    Value *w[3], *bias[3]; /* fc1, fc2, fc3 */
    int64_t hidden, inner, experts, k;
    int fused;  /* fc1 holds gate and up: 0 no, 1 interleaved, 2 concatenated */
    bool trans; /* weights are [E,out,in] */
    const char *activation;
} Moe;

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
        m->w[i] = 2 + 2 * i < c->nin ? c->in[2 + 2 * i] : NULL;
        m->bias[i] = 3 + 2 * i < c->nin ? c->in[3 + 2 * i] : NULL;
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
    if (call_int(c, "use_sparse_mixer", 0))
        call_fail(c, "use_sparse_mixer is not supported; export the router as separate nodes");
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

static Routing moe_route(OpCall *c, const Moe *m) {
    int64_t last = 1;
    Value *p = em_softmax(c, m->logits, 1);
    Node *top = em_node(c, OP_TOPK, &p, 1, 2,
                        (Attr[]){A_INT(K, m->k), A_INT(AXIS, 1), A_INT(LARGEST, 1)}, 3);
    Value *w = top->out[0];
    if (call_int(c, "normalize_routing_weights", 0))
        w = em_binary(c, OP_DIV, w, em_reduce(c, OP_REDUCE_SUM, w, &last, 1, true));
    else if (m->k > 1)
        diag_note(c->im->d,
                  "node \"%s\" (MoE): routing weights are not normalised (softmax over all "
                  "experts, then top-k)",
                  diag_safe(c->im->d, node_label(c->node)));
    Attr attrs[] = {A_INT(EXPERTS, m->experts), A_INT(TOP_K, m->k), A_STR(FORM, "F"),
                    A_STR(SCORE, "softmax"), A_STR(SCHEMA, moe_schema(c, m))};
    Node *d =
        em_node(c, OP_DISPATCH, (Value *[]){top->out[1], m->logits}, 2, 6, attrs, COUNT_OF(attrs));
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

void read_moe(OpCall *c) {
    Moe m = {0};
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
