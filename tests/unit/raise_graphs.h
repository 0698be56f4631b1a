/* raise_graphs.h: small MoE layers in the spellings exporters use, built by hand, for the tests of
 * raising. Every expert is silu(x·G_e)*(x·U_e)·D_e; sizes are T tokens, H features, I inner, E
 * experts, K chosen. */
#ifndef STGCC_TESTS_RAISE_GRAPHS_H
#define STGCC_TESTS_RAISE_GRAPHS_H

#include <stdlib.h>
#include <string.h>

#include "ir/graph.h"

#ifndef RAISE_SIZES
#define RAISE_SIZES T = 12, H = 6, I = 5, E = 4, K = 2
#endif
enum { RAISE_SIZES };

typedef struct Layer {
    bool merge; /* one parameter for all experts, as exporters make of equal weights */
    Graph *g;
    Builder b;
    Value *x, *z, *idx, *w; /* [T,H], [T,E], [T,K], [T,K] */
} Layer;

static uint32_t layer_seed = 1;

static Tensor *random_tensor(Graph *g, int rank, const int64_t *dims) {
    Tensor *t = tensor_new(&g->arena, DT_F32, rank, dims);
    for (int64_t i = 0; i < tensor_count(t); i++) {
        layer_seed = layer_seed * 1664525u + 1013904223u;
        tensor_set_f(t, i, ((double)(layer_seed >> 8) / (1 << 24) - 0.5) * 1.5);
    }
    return t;
}

static Value *weight(Layer *l, const char *name, int rank, const int64_t *dims) {
    FOR_NODES(n, l->g)
    if (l->merge && n->op == OP_PARAM && !strcmp(param_name(n->out[0]), name))
        return n->out[0];
    return op_param(&l->b, name, PARAM_WEIGHT, random_tensor(l->g, rank, dims));
}
#define DIMS(...) ((int64_t[]){__VA_ARGS__})

static inline Node *topk(Layer *l, Value *v, int64_t k) {
    Attr a[] = {{.key = AT_K, .i = k}, {.key = AT_AXIS, .i = -1}};
    return op_node(&l->b, OP_TOPK, &v, 1, a, 2);
}

/* Input, router, top-k of softmax, weights that sum to one. */
static Layer layer_begin(void) {
    Layer l = {.g = graph_new("layer")};
    l.b = builder_at_end(l.g, graph_source(l.g, "layer", "Test"));
    Node *in = build_node(&l.b, OP_INPUT, NULL, 0, 1);
    node_set_str(in, AT_NAME, "x");
    l.x = in->out[0];
    l.x->dtype = DT_F32;
    l.x->rank = 2;
    l.x->dims[0] = T;
    l.x->dims[1] = H;
    l.x->name = "x";
    vec_push(&l.g->inputs, l.x);
    l.z = op_matmul(&l.b, l.x, weight(&l, "router", 2, DIMS(H, E)), false, false);
    Node *k = topk(&l, op_softmax(&l.b, l.z, 1), K);
    l.idx = k->out[1];
    Value *sum = op_reduce(&l.b, OP_REDUCE_SUM, k->out[0], DIMS(1), 1, true);
    l.w = op_binary(&l.b, OP_DIV, k->out[0], sum);
    return l;
}

static void layer_end(Layer *l, Value *y) {
    /* a residual and a norm-like head, so that the layer is not the end of the graph */
    Value *r = op_binary(&l->b, OP_ADD, l->x, y);
    graph_add_output(l->g, "out", op_unary(&l->b, OP_TANH, r));
}

static Value *swiglu(Layer *l, Value *g, Value *u) {
    return op_binary(&l->b, OP_MUL, op_binary(&l->b, OP_MUL, g, op_unary(&l->b, OP_SIGMOID, g)), u);
}

/* D: the matrices of each pair are gathered. */
static inline Layer form_d(void) {
    Layer l = layer_begin();
    Value *gu = weight(&l, "gate_up", 3, DIMS(E, 2 * I, H)),
          *dn = weight(&l, "down", 3, DIMS(E, H, I));
    Value *xs = op_reshape(&l.b, l.x, 3, DIMS(T, 1, H));
    xs = op_reshape(&l.b, op_expand(&l.b, xs, 3, DIMS(T, K, H)), 3, DIMS(T * K, H, 1));
    Value *ids = op_reshape(&l.b, l.idx, 1, DIMS(T * K));
    Value *h = op_matmul(&l.b, op_gather(&l.b, gu, ids, 0), xs, false, false);
    h = op_reshape(&l.b, h, 2, DIMS(T * K, 2 * I));
    h = swiglu(&l, op_slice(&l.b, h, 1, 0, I, 1), op_slice(&l.b, h, 1, I, 2 * I, 1));
    Value *o = op_matmul(&l.b, op_gather(&l.b, dn, ids, 0),
                         op_reshape(&l.b, h, 3, DIMS(T * K, I, 1)), false, false);
    o = op_binary(&l.b, OP_MUL, op_reshape(&l.b, o, 2, DIMS(T * K, H)),
                  op_reshape(&l.b, l.w, 2, DIMS(T * K, 1)));
    layer_end(&l, op_reduce(&l.b, OP_REDUCE_SUM, op_reshape(&l.b, o, 3, DIMS(T, K, H)), DIMS(1), 1,
                            false));
    return l;
}

/* E: every expert on every token, stacked; gates scattered to [T,E]; biases; interleaved halves.
 * `unchosen`: the gate of experts that were not chosen. */
/* E: an expert that was not chosen has the weight `unchosen`; if `only` >= 0, that expert alone, or
 * (E) all experts for the last two tokens. */
static inline Layer form_e_rest(double unchosen, int only) {
    Layer l = layer_begin();
    Value *gu = weight(&l, "gate_up", 3, DIMS(E, H, 2 * I)),
          *dn = weight(&l, "down", 3, DIMS(E, I, H));
    Value *bias = weight(&l, "gate_up_bias", 3, DIMS(E, 1, 2 * I)),
          *db = weight(&l, "down_bias", 2, DIMS(E, H));
    Tensor *rest = tensor_new(&l.g->arena, DT_F32, 2, DIMS(T, E));
    for (int64_t i = 0; i < T * E; i++)
        if (only < 0 || i % E == only || (only == E && i >= (T - 2) * E))
            tensor_set_f(rest, i, unchosen);
    Value *zeros = op_const(&l.b, rest);
    Attr axis = {.key = AT_AXIS, .i = 1};
    Value *gates =
        op_node(&l.b, OP_SCATTER_ELEMENTS, (Value *[]){zeros, l.idx, l.w}, 3, &axis, 1)->out[0];
    Value *xe = op_expand(&l.b, op_reshape(&l.b, l.x, 3, DIMS(1, T, H)), 3, DIMS(E, T, H));
    Value *h = op_binary(&l.b, OP_ADD, op_matmul(&l.b, xe, gu, false, false), bias);
    h = swiglu(&l, op_slice(&l.b, h, 2, 0, 2 * I, 2), op_slice(&l.b, h, 2, 1, 2 * I, 2));
    Value *o = op_matmul(&l.b, h, dn, false, false);
    o = op_binary(&l.b, OP_ADD, o, op_reshape(&l.b, db, 3, DIMS(E, 1, H)));
    Value *gt = op_reshape(&l.b, op_transpose(&l.b, gates, DIMS(1, 0)), 3, DIMS(E, T, 1));
    layer_end(&l,
              op_reduce(&l.b, OP_REDUCE_SUM, op_binary(&l.b, OP_MUL, o, gt), DIMS(0), 1, false));
    return l;
}

static inline Layer form_e_floor(double unchosen) {
    return form_e_rest(unchosen, -1);
}

static inline Layer form_e(void) {
    return form_e_rest(0, -1);
}

static Value *expert(Layer *l, Value *x, int e, const char *tag) {
    char name[3][32];
    const char *what[] = {"gate", "up", "down"};
    for (int i = 0; i < 3; i++)
        snprintf(name[i], sizeof name[i], "%s.%s.%d", tag, what[i], l->merge ? 0 : e);
    Value *g = op_matmul(&l->b, x, weight(l, name[0], 2, DIMS(H, I)), false, false);
    Value *u = op_matmul(&l->b, x, weight(l, name[1], 2, DIMS(H, I)), false, false);
    return op_matmul(&l->b, swiglu(l, g, u), weight(l, name[2], 2, DIMS(I, H)), false, false);
}

/* sum over slots of w * (idx == e), [T,1] */
static inline Value *gate_of(Layer *l, int e) {
    Value *m = op_cast(&l->b, op_binary(&l->b, OP_EQ, l->idx, op_const_i(&l->b, e)), DT_F32);
    return op_reduce(&l->b, OP_REDUCE_SUM, op_binary(&l->b, OP_MUL, l->w, m), DIMS(1), 1, true);
}

/* B: `experts` branches over all tokens, added up in the order of `order`; something else in the
 * sum if `shared`. */
static inline Layer form_b(int experts, const int *order, bool shared) {
    Layer l = layer_begin();
    Value *y = shared ? expert(&l, l.x, 99, "shared") : NULL;
    for (int i = 0; i < experts; i++) {
        int e = order ? order[i] : i;
        Value *c = op_binary(&l.b, OP_MUL, expert(&l, l.x, e, "b"), gate_of(&l, e));
        y = y ? op_binary(&l.b, OP_ADD, y, c) : c;
    }
    layer_end(&l, y);
    return l;
}

/* A: `experts` branches over the tokens routed to each, written back with scatter_nd add. */
static inline Layer form_a(int experts, bool merge) {
    Layer l = layer_begin();
    l.merge = merge;
    int64_t iota[E];
    for (int e = 0; e < E; e++)
        iota[e] = e;
    Value *hot = op_binary(&l.b, OP_EQ, op_reshape(&l.b, l.idx, 3, DIMS(T, K, 1)),
                           op_const_ints(&l.b, iota, E));
    Value *mask = op_transpose(&l.b, hot, DIMS(2, 1, 0)); /* [E,K,T] */
    Value *y = op_full(&l.b, DT_F32, 0, 2, DIMS(T, H));
    for (int e = 0; e < experts; e++) {
        Value *m = op_reshape(&l.b, op_slice(&l.b, mask, 0, e, e + 1, 1), 2, DIMS(K, T));
        Value *nz = op_node(&l.b, OP_NONZERO, &m, 1, NULL, 0)->out[0];
        Attr flat = {.key = AT_DIMS, .ints = {1, DIMS(-1)}},
             column = {.key = AT_DIMS, .ints = {2, DIMS(-1, 1)}};
        Value *s0 = op_slice(&l.b, nz, 0, 0, 1, 1), *s1 = op_slice(&l.b, nz, 0, 1, 2, 1);
        Value *slot = op_node(&l.b, OP_RESHAPE, &s0, 1, &flat, 1)->out[0];
        Value *tok = op_node(&l.b, OP_RESHAPE, &s1, 1, &flat, 1)->out[0];
        Value *h = expert(&l, op_gather(&l.b, l.x, tok, 0), e, "a");
        Value *pair =
            op_binary(&l.b, OP_ADD, slot, op_binary(&l.b, OP_MUL, tok, op_const_i(&l.b, K)));
        Value *w = op_gather(&l.b, op_reshape(&l.b, l.w, 2, DIMS(T * K, 1)), pair, 0);
        Value *at = op_node(&l.b, OP_RESHAPE, &tok, 1, &column, 1)->out[0];
        Attr add = {.key = AT_REDUCTION, .s = "add"};
        y = op_node(&l.b, OP_SCATTER_ND, (Value *[]){y, at, op_binary(&l.b, OP_MUL, h, w)}, 3, &add,
                    1)
                ->out[0];
    }
    layer_end(&l, y);
    return l;
}

/* H: pairs sorted by expert, a product per segment, unsorted. */
static inline Layer form_h(void) {
    Layer l = layer_begin();
    Value *gu = weight(&l, "gate_up", 3, DIMS(E, H, 2 * I)),
          *dn = weight(&l, "down", 3, DIMS(E, I, H));
    Value *ids = op_reshape(&l.b, l.idx, 1, DIMS(T * K));
    Attr sort[] = {
        {.key = AT_K, .i = T * K}, {.key = AT_AXIS, .i = 0}, {.key = AT_LARGEST, .i = 0}};
    Node *s = op_node(&l.b, OP_TOPK, &ids, 1, sort, 3);
    Value *perm = s->out[1], *tok = op_binary(&l.b, OP_DIV, perm, op_const_i(&l.b, K));
    Value *xg = op_gather(&l.b, l.x, tok, 0);
    Value *wg = op_gather(&l.b, op_reshape(&l.b, l.w, 1, DIMS(T * K)), perm, 0);
    Attr add[] = {{.key = AT_AXIS, .i = 0}, {.key = AT_REDUCTION, .s = "add"}},
         cum = {.key = AT_AXIS, .i = 0};
    Value *ones = op_expand(&l.b, op_const_i(&l.b, 1), 1, DIMS(T * K));
    Value *none = op_expand(&l.b, op_const_i(&l.b, 0), 1, DIMS(E));
    Value *cnt =
        op_node(&l.b, OP_SCATTER_ELEMENTS, (Value *[]){none, s->out[0], ones}, 3, add, 2)->out[0];
    Value *end = op_node(&l.b, OP_CUMSUM, &cnt, 1, &cum, 1)->out[0];
    Value *part[2][E], *rows[2] = {xg, NULL}, *range[E], *from = op_const_i(&l.b, 0);
    for (int e = 0; e < E; e++) {
        Value *to = op_reshape(&l.b, op_slice(&l.b, end, 0, e, e + 1, 1), 0, NULL);
        range[e] =
            op_node(&l.b, OP_RANGE, (Value *[]){from, to, op_const_i(&l.b, 1)}, 3, NULL, 0)->out[0];
        from = to;
    }
    for (int stage = 0; stage < 2; stage++) {
        Value *stack = stage ? dn : gu;
        for (int e = 0; e < E; e++) {
            int64_t in = stack->dims[1], out = stack->dims[2];
            Value *w = op_reshape(&l.b, op_slice(&l.b, stack, 0, e, e + 1, 1), 2, DIMS(in, out));
            part[stage][e] =
                op_matmul(&l.b, op_gather(&l.b, rows[stage], range[e], 0), w, false, false);
        }
        Value *all = op_concat(&l.b, part[stage], E, 0);
        if (stage == 0)
            rows[1] =
                swiglu(&l, op_slice(&l.b, all, 1, 0, I, 1), op_slice(&l.b, all, 1, I, 2 * I, 1));
        else
            rows[0] = all;
    }
    Attr one = {.key = AT_DIMS, .ints = {2, DIMS(-1, 1)}};
    Value *o = op_binary(&l.b, OP_MUL, rows[0], op_node(&l.b, OP_RESHAPE, &wg, 1, &one, 1)->out[0]);
    int64_t iota[T * K];
    for (int i = 0; i < T * K; i++)
        iota[i] = i;
    Value *empty = op_expand(&l.b, op_const_i(&l.b, 0), 1, DIMS(T * K));
    Value *at = op_reshape(&l.b, perm, 2, DIMS(T * K, 1));
    Value *inv = op_node(&l.b, OP_SCATTER_ND,
                         (Value *[]){empty, at, op_const_ints(&l.b, iota, T * K)}, 3, NULL, 0)
                     ->out[0];
    o = op_gather(&l.b, o, inv, 0);
    Attr tkh = {.key = AT_DIMS, .ints = {3, DIMS(T, K, H)}};
    o = op_node(&l.b, OP_RESHAPE, &o, 1, &tkh, 1)->out[0];
    layer_end(&l, op_reduce(&l.b, OP_REDUCE_SUM, o, DIMS(1), 1, false));
    return l;
}

#endif
