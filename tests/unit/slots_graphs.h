/* slots_graphs.h: small layers with capacity, built by hand, for the tests of raising. Sizes as in
 * raise_graphs.h; C places per expert. */
#ifndef STGCC_TESTS_SLOTS_GRAPHS_H
#define STGCC_TESTS_SLOTS_GRAPHS_H

#include <math.h>

#include "raise_graphs.h"

typedef enum { BACK_PRODUCT, BACK_GATHERS, BACK_REDUCED } Back;
typedef enum { OUT_PRODUCT, OUT_SCATTER, OUT_GATHER } Out;

/* One capacity layer: `k` argmaxes one after the other, C places per expert, DeepSpeed's
 * arithmetic. */
typedef struct Capacity {
    int k;
    int64_t C;
    Back back;
    Out out;
    bool stacked;       /* experts as stacks instead of branches */
    bool equal;         /* branches read one parameter */
    const char *length; /* what made the length of the queues, where sizes were free at export */
    Value *kept[2], *expert[2], *place[2], *gate[2]; /* [T,E] i64; [T]; [T]; f32 [T] */
} Capacity;

static inline Value *ints(Layer *l, int n) {
    int64_t at[64];
    for (int i = 0; i < n; i++)
        at[i] = i;
    return op_const_ints(&l->b, at, n);
}

static inline Value *one_hot(Layer *l, Value *idx, DType type) {
    return op_cast(
        &l->b, op_binary(&l->b, OP_EQ, op_reshape(&l->b, idx, 2, DIMS(T, 1)), ints(l, E)), type);
}

static inline Value *node1(Layer *l, Op op, Value *v, const Attr *a, int n) {
    return op_node(&l->b, op, &v, 1, a, n)->out[0];
}

/* What the k choices are, which of them find a place, and where. */
static inline void choose(Layer *l, Capacity *c) {
    Builder *b = &l->b;
    Value *p = op_softmax(b, l->z, 1), *scores = p, *before = NULL, *total = NULL;
    Value *one = op_const_i(b, 1), *full = op_const_i(b, c->C);
    if (c->length) {
        graph_symbol(l->g, "batch");
        full->def->src = graph_source(l->g, "capacity", c->length);
    }
    Attr axis1[] = {{.key = AT_AXIS, .i = 1}, {.key = AT_KEEPDIMS, .i = 0}};
    Attr axis0[] = {{.key = AT_AXIS, .i = 0}};
    for (int j = 0; j < c->k; j++) {
        c->expert[j] = node1(l, OP_ARGMAX, scores, axis1, 2);
        Value *mask = one_hot(l, c->expert[j], DT_I64);
        scores = op_where(b, op_cast(b, mask, DT_BOOL), op_const_f(b, DT_F32, -INFINITY), scores);
        Value *at = op_binary(b, OP_SUB, node1(l, OP_CUMSUM, mask, axis0, 1), one);
        Value *count = op_reduce(b, OP_REDUCE_SUM, mask, DIMS(0), 1, true);
        at = before ? op_binary(b, OP_ADD, at, before) : at;
        before = before ? op_binary(b, OP_ADD, before, count) : count;
        Value *room = op_cast(b, op_binary(b, OP_LT, at, full), DT_I64);
        c->kept[j] = op_binary(b, OP_MUL, mask, room);
        c->place[j] =
            op_reduce(b, OP_REDUCE_SUM, op_binary(b, OP_MUL, at, c->kept[j]), DIMS(1), 1, false);
        Value *f = op_cast(b, c->kept[j], DT_F32);
        c->gate[j] = op_reduce(b, OP_REDUCE_SUM, op_binary(b, OP_MUL, p, f), DIMS(1), 1, false);
        total = total ? op_binary(b, OP_ADD, total, c->gate[j]) : c->gate[j];
    }
    total = op_binary(b, OP_MAX, total, op_const_f(b, DT_F32, 1e-7));
    for (int j = 0; j < c->k && c->k > 1; j++)
        c->gate[j] = op_binary(b, OP_DIV, c->gate[j], total);
}

/* W[T,E,C] */
static inline Value *weights(Layer *l, Capacity *c) {
    Builder *b = &l->b;
    Value *w = NULL;
    for (int j = 0; j < c->k; j++) {
        Value *g = op_binary(b, OP_MUL, op_reshape(b, c->gate[j], 2, DIMS(T, 1)),
                             op_cast(b, c->kept[j], DT_F32));
        Value *hot = op_cast(
            b, op_binary(b, OP_EQ, op_reshape(b, c->place[j], 2, DIMS(T, 1)), ints(l, (int)c->C)),
            DT_F32);
        Value *one = op_binary(b, OP_MUL, op_reshape(b, g, 3, DIMS(T, E, 1)),
                               op_reshape(b, hot, 3, DIMS(T, 1, c->C)));
        w = w ? op_binary(b, OP_ADD, w, one) : one;
    }
    return w;
}

/* expert*C + place, or E*C for a choice that was dropped: [T]. */
static inline Value *target(Layer *l, Capacity *c, int j) {
    Builder *b = &l->b;
    Value *any = op_reduce(b, OP_REDUCE_SUM, c->kept[j], DIMS(1), 1, false);
    Value *at =
        op_binary(b, OP_ADD, op_binary(b, OP_MUL, c->expert[j], op_const_i(b, c->C)), c->place[j]);
    return op_where(b, op_cast(b, any, DT_BOOL), at, op_const_i(b, E * c->C));
}

/* The rows of all places, [E,C,H]. */
static inline Value *places(Layer *l, Capacity *c, Value *w, Value **to) {
    Builder *b = &l->b;
    int64_t n = E * c->C;
    Value *rows;
    if (c->out == OUT_PRODUCT) {
        Value *d = op_cast(b, op_cast(b, w, DT_BOOL), DT_F32);
        rows = op_matmul(b, op_reshape(b, op_transpose(b, d, DIMS(1, 2, 0)), 2, DIMS(n, T)), l->x,
                         false, false);
        return op_reshape(b, rows, 3, DIMS(E, c->C, H));
    }
    if (c->out == OUT_SCATTER) {
        rows = op_full(b, DT_F32, 0, 2, DIMS(n + 1, H));
        for (int j = 0; j < c->k; j++)
            rows = op_node(b, OP_SCATTER_ND,
                           (Value *[]){rows, op_reshape(b, to[j], 2, DIMS(T, 1)), l->x}, 3, NULL, 0)
                       ->out[0];
    } else { /* the token of each place, T where it is empty, from x with a row of zeros below */
        Value *source = op_expand(b, op_const_i(b, T), 1, DIMS(n + 1));
        for (int j = 0; j < c->k; j++)
            source = op_node(b, OP_SCATTER_ND,
                             (Value *[]){source, op_reshape(b, to[j], 2, DIMS(T, 1)), ints(l, T)},
                             3, NULL, 0)
                         ->out[0];
        source = op_slice(b, source, 0, 0, n, 1);
        Value *padded = op_concat(b, (Value *[]){l->x, op_full(b, DT_F32, 0, 2, DIMS(1, H))}, 2, 0);
        return op_reshape(b, op_gather(b, padded, source, 0), 3, DIMS(E, c->C, H));
    }
    return op_reshape(b, op_slice(b, rows, 0, 0, n, 1), 3, DIMS(E, c->C, H));
}

static inline Value *experts(Layer *l, const Capacity *c, Value *rows) {
    Builder *b = &l->b;
    if (c->stacked) {
        Value *u = weight(l, "up", 3, DIMS(E, H, I)), *d = weight(l, "down", 3, DIMS(E, I, H));
        Value *bias = weight(l, "bias", 3, DIMS(E, 1, H));
        Value *h = op_unary(b, OP_TANH, op_matmul(b, rows, u, false, false));
        return op_binary(b, OP_ADD, op_matmul(b, h, d, false, false), bias);
    }
    Value *part[E];
    l->merge = c->equal;
    for (int e = 0; e < E; e++)
        part[e] = expert(l, op_slice(b, rows, 0, e, e + 1, 1), e, "c");
    return op_concat(b, part, E, 0);
}

static inline Layer capacity(Capacity c) {
    Layer l = layer_begin();
    Builder *b = &l.b;
    Value *to[2], *y = NULL;
    int64_t n = E * c.C;
    choose(&l, &c);
    Value *w = weights(&l, &c);
    for (int j = 0; j < c.k; j++)
        to[j] = target(&l, &c, j);
    Value *out = op_reshape(b, experts(&l, &c, places(&l, &c, w, to)), 2, DIMS(n, H));
    if (c.back == BACK_PRODUCT) {
        y = op_matmul(b, op_reshape(b, w, 2, DIMS(T, n)), out, false, false);
        layer_end(&l, y);
        return l;
    }
    out = op_concat(b, (Value *[]){out, op_full(b, DT_F32, 0, 2, DIMS(1, H))}, 2, 0);
    if (c.back == BACK_REDUCED) {
        Value *at[2], *gate[2];
        for (int j = 0; j < c.k; j++) {
            at[j] = op_reshape(b, to[j], 2, DIMS(1, T));
            gate[j] = op_reshape(b, c.gate[j], 3, DIMS(1, T, 1));
        }
        y = op_binary(b, OP_MUL, op_gather(b, out, op_concat(b, at, c.k, 0), 0),
                      op_concat(b, gate, c.k, 0));
        y = op_reduce(b, OP_REDUCE_SUM, y, DIMS(0), 1, false);
    }
    for (int j = 0; j < c.k && c.back == BACK_GATHERS; j++) {
        Value *one = op_binary(b, OP_MUL, op_gather(b, out, to[j], 0),
                               op_reshape(b, c.gate[j], 2, DIMS(T, 1)));
        y = y ? op_binary(b, OP_ADD, y, one) : one;
    }
    layer_end(&l, y);
    return l;
}

#endif
