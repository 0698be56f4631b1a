/* test_raise_slots.c: layers with capacity in the spellings exporters leave, raised to what is left
 * after the drop; and graphs that look alike and are none. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "raise_graphs.h"
#include "raise_help.h"

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

static Value *ints(Layer *l, int n) {
    int64_t at[64];
    for (int i = 0; i < n; i++)
        at[i] = i;
    return op_const_ints(&l->b, at, n);
}

static Value *one_hot(Layer *l, Value *idx, DType type) {
    return op_cast(
        &l->b, op_binary(&l->b, OP_EQ, op_reshape(&l->b, idx, 2, DIMS(T, 1)), ints(l, E)), type);
}

static Value *node1(Layer *l, Op op, Value *v, const Attr *a, int n) {
    return op_node(&l->b, op, &v, 1, a, n)->out[0];
}

/* What the k choices are, which of them find a place, and where. */
static void choose(Layer *l, Capacity *c) {
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
static Value *weights(Layer *l, Capacity *c) {
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
static Value *target(Layer *l, Capacity *c, int j) {
    Builder *b = &l->b;
    Value *any = op_reduce(b, OP_REDUCE_SUM, c->kept[j], DIMS(1), 1, false);
    Value *at =
        op_binary(b, OP_ADD, op_binary(b, OP_MUL, c->expert[j], op_const_i(b, c->C)), c->place[j]);
    return op_where(b, op_cast(b, any, DT_BOOL), at, op_const_i(b, E * c->C));
}

/* The rows of all places, [E,C,H]. */
static Value *places(Layer *l, Capacity *c, Value *w, Value **to) {
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

static Value *experts(Layer *l, const Capacity *c, Value *rows) {
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

static Layer capacity(Capacity c) {
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

/* Rows that the raised graph dispatches for the test's input, per expert. */
static void rows_of(Graph *g, int64_t *count) {
    Arena a = {0};
    Diag d = {0};
    Eval ev = {.arena = &a, .diag = &d};
    ev.values = xcalloc((size_t)g->next_value, sizeof *ev.values);
    Value *x = g->inputs.at[0], *offsets = NULL;
    RTensor *in = rtensor_new(&a, DT_F32, x->rank, x->dims);
    for (int64_t i = 0; i < in->count; i++)
        in->f[i] = sin(1.7 * (double)i + 0.3);
    ev.values[x->id] = in;
    FOR_NODES(n, g)
    if (n->op == OP_DISPATCH)
        offsets = n->out[0];
    assert_non_null(offsets);
    assert_true(eval_graph(&ev, g, &offsets, 1));
    for (int e = 0; e < E; e++)
        count[e] = ev.values[offsets->id]->i[e + 1] - ev.values[offsets->id]->i[e];
    free(ev.values);
    diag_free(&d);
    arena_free(&a);
}

static void expect_capacity(Capacity c) {
    Arena a = {0};
    Diag d = {0};
    Layer l = capacity(c);
    Raised r = raise_graph(l.g, &a, &d);
    if (r.layers != 1)
        fail_msg("back %d, out %d, k %d: not raised: %s", c.back, c.out, c.k, r.why ? r.why : "?");
    assert_string_equal(r.form, "C");
    assert_int_equal(r.layer.experts, E);
    assert_int_equal(r.layer.top_k, c.k);
    assert_ptr_equal(r.layer.logits, l.z);
    assert_ptr_equal(r.layer.x, l.x);
    assert_int_equal(r.layer.weights.n, c.stacked ? 3 : 3 * E);
    assert_int_equal(r.wrong, 0);
    assert_true(r.error < 1e-12);
    int64_t rows[E], all = 0;
    rows_of(l.g, rows);
    for (int e = 0; e < E; e++) {
        assert_true(rows[e] <= c.C); /* what is dropped is no row of its expert */
        all += rows[e];
    }
    if (c.C == T)
        assert_int_equal(all, T * c.k);
    else
        assert_true(all < T * c.k);
    diag_free(&d);
    arena_free(&a);
    graph_free(l.g);
}

static void test_spellings(void **state) {
    (void)state;
    for (int k = 1; k <= 2; k++)
        for (int back = BACK_PRODUCT; back <= BACK_REDUCED; back++)
            for (int out = OUT_PRODUCT; out <= OUT_GATHER; out++)
                for (int stacked = 0; stacked < 2; stacked++) {
                    Capacity c = {.k = k, .C = 2, .back = back, .out = out, .stacked = stacked};
                    expect_capacity(c);
                    c.C = T;
                    expect_capacity(c);
                }
}

/* Experts that an exporter merged get matrices of their own again. */
static void test_merged(void **state) {
    (void)state;
    expect_capacity((Capacity){.k = 2, .C = 2, .equal = true});
}

/* Queues as long as the exporter's example needed, in a model of any batch: wrong. The same length
 * computed from sizes that are bound by now is right. */
static void test_frozen_length(void **state) {
    (void)state;
    for (int back = BACK_PRODUCT; back <= BACK_REDUCED; back++) {
        Capacity c = {.k = 2, .C = 2, .back = back, .length = "Constant"};
        expect_none(capacity(c), true, "2 places, a constant of the exporter's example");
        c.length = "Ceil";
        expect_capacity(c);
    }
}

/* The weights of one token reach places of another: no routing. */
static void test_two_tokens_in_a_place(void **state) {
    (void)state;
    Layer l = layer_begin();
    Builder *b = &l.b;
    Value *p = op_softmax(b, l.z, 1), *c[E];
    int64_t n = E * 3;
    Value *w = op_expand(b, op_reshape(b, p, 3, DIMS(T, E, 1)), 3, DIMS(T, E, 3));
    Value *d = op_reshape(b, op_transpose(b, w, DIMS(1, 2, 0)), 2, DIMS(n, T));
    Value *rows = op_reshape(b, op_matmul(b, d, l.x, false, false), 3, DIMS(E, 3, H));
    for (int e = 0; e < E; e++)
        c[e] = expert(&l, op_slice(b, rows, 0, e, e + 1, 1), e, "s");
    Value *out = op_reshape(b, op_concat(b, c, E, 0), 2, DIMS(n, H));
    layer_end(&l, op_matmul(b, op_reshape(b, w, 2, DIMS(T, n)), out, false, false));
    expect_none(l, false, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spellings),
        cmocka_unit_test(test_merged),
        cmocka_unit_test(test_frozen_length),
        cmocka_unit_test(test_two_tokens_in_a_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
