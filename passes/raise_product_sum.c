/* raise_product_sum.c: experts' products and their sums hidden in larger products, written out for
 * the time of the search, so that one rule serves all.
 *
 *     "bec,be->bc", gates @ stack        sums over experts (or slots) of weighted rows
 *     gates[T,E] @ biases[E,H]           the same of a table of rows
 *     x @ W[D,E·I], taken apart          E products side by side (one wide layer; "td,edf->tef")
 *     (h·gates)[T,E·I] @ W[E·I,H]        their way back, summed over experts by the product itself
 */
#include <stdlib.h>
#include <string.h>

#include "passes/raise.h"

static bool is(const bool *fact, int n, const Value *v) {
    return v->id < n && fact[v->id];
}

/* a[…,1,n] x b[…,n,H] with weights a, or a[…,H,n] x b[…,n,1] with weights b: the operand that holds
 * the weights, or -1. */
static int weights_operand(const Selection *s, const Facts *f, const Node *n) {
    const Value *y = n->out[0];
    if (n->op != OP_MATMUL || y->rank < 3 || !value_known(y) || !dtype_is_float(y->dtype) ||
        node_int(n, AT_TRANS_A, 0) || node_int(n, AT_TRANS_B, 0))
        return -1;
    for (int side = 0; side < 2; side++) {
        const Value *w = n->in[side], *rows = n->in[1 - side];
        int one = side ? w->rank - 1 : w->rank - 2, terms = side ? w->rank - 2 : w->rank - 1;
        if (w->rank != y->rank || rows->rank != y->rank || !value_known(w) || !value_known(rows) ||
            w->dims[one] != 1 || !(is(f->chosen, f->n, w) || is(f->scored, f->n, w)) ||
            is(f->hot, f->n, w) || is(f->weight, f->n, rows))
            continue;
        bool batch = value_count(w) == s->T * w->dims[terms];
        for (int k = 0; k + 2 < y->rank; k++)
            batch = batch && w->dims[k] == y->dims[k] && rows->dims[k] == y->dims[k];
        if (batch && (w->dims[terms] == s->E || w->dims[terms] == s->K))
            return side;
    }
    return -1;
}

static Value *write_out(Node *n, int side) {
    Builder b = builder_before(n);
    Value *y = n->out[0], *w = n->in[side], *rows = n->in[1 - side];
    int rank = y->rank;
    int64_t perm[MAX_RANK], dims[MAX_RANK], axis[] = {rank - 2};
    for (int k = 0; k < rank; k++)
        perm[k] = k;
    perm[rank - 1] = rank - 2;
    perm[rank - 2] = rank - 1;
    memcpy(dims, w->dims, sizeof dims);
    if (side) {
        rows = op_transpose(&b, rows, perm);
    } else {
        dims[rank - 2] = w->dims[rank - 1];
        dims[rank - 1] = 1;
        w = op_reshape(&b, w, rank, dims);
    }
    Value *sum = op_reduce(&b, OP_REDUCE_SUM, op_binary(&b, OP_MUL, rows, w), axis, 1, false);
    return op_reshape(&b, sum, rank, y->dims);
}

/* ---- one wide layer ---- */

static bool routed(const Facts *f, const Value *v) {
    return (is(f->chosen, f->n, v) || is(f->scored, f->n, v)) && !is(f->hot, f->n, v);
}

/* A product of rows with a matrix that is a parameter, or made of one. */
static bool is_linear(const Facts *f, const Node *n) {
    return n->op == OP_MATMUL && n->in[1]->rank == 2 && is(f->weight, f->n, n->in[1]) &&
           n->in[0]->rank >= 2 && !is(f->weight, f->n, n->in[0]) && !node_int(n, AT_TRANS_A, 0) &&
           value_known(n->out[0]) && dtype_is_float(n->out[0]->dtype);
}

/* w as E matrices: its columns [D, E·I] (or rows, if trans), or its rows [E·I, H] (or columns), in
 * E parts. */
static Value *matrices(Builder *b, Value *w, int64_t E, bool split_first, bool *trans) {
    int64_t first[] = {E, w->dims[0] / E, w->dims[1]}, last[] = {w->dims[0], E, w->dims[1] / E};
    if (split_first)
        return op_reshape(b, w, 3, first);
    *trans = false;
    return op_transpose(b, op_reshape(b, w, 3, last), (int64_t[]){1, 0, 2});
}

static Value *batch_product(Builder *b, Value *x, Value *w, bool trans) {
    Attr t = {.key = AT_TRANS_B, .i = 1};
    return op_node(b, OP_MATMUL, (Value *[]){x, w}, 2, &t, trans)->out[0];
}

typedef struct Wide {
    const Facts *f;
    int64_t E;
    Value *was[64], *now[64];
    int n;
} Wide;

static void with_parts(const Value *v, int64_t E, int64_t *dims) {
    memcpy(dims, v->dims, sizeof *dims * (size_t)v->rank);
    dims[v->rank] = v->dims[v->rank - 1] / E;
    dims[v->rank - 1] = E;
}

/* v[…, E·I] as […, E, I], where it is elementwise work on one wide product that does not know of
 * the choice; NULL if it is something else. */
static Value *split_wide(Wide *s, Value *v) {
    Node *n = v->def;
    int64_t dims[MAX_RANK];
    Builder b = builder_after(n);
    Value *y = NULL, *in[3];
    if (v->rank < 1 || v->rank + 1 > MAX_RANK || s->n == COUNT_OF(s->was))
        return NULL;
    if (v->dims[v->rank - 1] == 1 || value_count(v) == 1)
        return v->rank ? op_reshape(&b, v, v->rank + 1, (with_parts(v, 1, dims), dims)) : v;
    if (v->dims[v->rank - 1] % s->E)
        return NULL;
    for (int i = 0; i < s->n; i++)
        if (s->was[i] == v)
            return s->now[i];
    with_parts(v, s->E, dims);
    if (is(s->f->weight, s->f->n, v)) {
        y = op_reshape(&b, v, v->rank + 1, dims);
    } else if (is_linear(s->f, n) && !is(s->f->chosen, s->f->n, n->in[0])) {
        Value *x = n->in[0];
        int64_t D = x->dims[x->rank - 1], flat[] = {1, value_count(x) / D, D};
        bool trans = node_int(n, AT_TRANS_B, 0);
        Value *w = matrices(&b, n->in[1], s->E, trans, &trans);
        y = batch_product(&b, op_reshape(&b, x, 3, flat), w, trans);
        y = op_reshape(&b, op_transpose(&b, y, (int64_t[]){1, 0, 2}), v->rank + 1, dims);
    } else if ((op_info[n->op].flags & OPF_ELEM) && n->nin <= 3) {
        bool ok = true;
        for (int i = 0; i < n->nin && ok; i++)
            ok = (in[i] = value_count(n->in[i]) == 1 && n->in[i]->rank == 0
                              ? n->in[i]
                              : split_wide(s, n->in[i]));
        y = ok ? op_node(&b, n->op, in, n->nin, n->attrs, n->nattr)->out[0] : NULL;
    }
    if (y && s->n < COUNT_OF(s->was)) {
        s->was[s->n] = v;
        s->now[s->n++] = y;
    }
    return y;
}

/* […, E·I] taken apart: the same from E products. */
static Value *wide_in(Node *n, const Selection *s, const Facts *f) {
    const Value *y = n->out[0], *x = n->op == OP_RESHAPE ? n->in[0] : NULL;
    if (!x || y->rank != x->rank + 1 || x->rank < 2 || !value_known(y) ||
        y->dims[y->rank - 2] != s->E || !is(f->activation, f->n, x) || is(f->before, f->n, x) ||
        is(f->chosen, f->n, x) || is(f->hot, f->n, x) ||
        memcmp(x->dims, y->dims, sizeof *x->dims * (size_t)(x->rank - 1)))
        return NULL;
    Wide w = {.f = f, .E = s->E};
    return split_wide(&w, n->in[0]);
}

/* Work times a gate for each token and expert. */
static bool is_gated(const Selection *s, const Facts *f, const Value *v) {
    const Node *n = v->def;
    while (n->op == OP_CAST)
        n = n->in[0]->def;
    for (int i = 0; i < 2 && n->op == OP_MUL; i++)
        if (value_count(n->in[i]) == s->T * s->E && routed(f, n->in[i]))
            return true;
    return false;
}

/* A product with rows [T, E·I] that were put together from [T, E, I]. */
static Value *wide_out(Node *n, const Selection *s, const Facts *f) {
    const Value *x = n->in[0],
                *a = is_linear(f, n) && x->def->op == OP_RESHAPE ? x->def->in[0] : NULL;
    int64_t E = s->E;
    if (!a || a->rank < 3 || !value_known(a) || a->dims[a->rank - 2] != E ||
        a->dims[a->rank - 1] * E != x->dims[x->rank - 1] ||
        value_count(a) != s->T * E * a->dims[a->rank - 1] || !is_gated(s, f, a))
        return NULL;
    Builder b = builder_before(n);
    bool trans = node_int(n, AT_TRANS_B, 0), parted = !trans;
    int64_t I = a->dims[a->rank - 1], rows[] = {s->T, E, I}, axis = 0;
    Value *w = n->in[1];
    if (trans) { /* [H, E·I] */
        int64_t d[] = {w->dims[0], E, I};
        w = op_transpose(&b, op_reshape(&b, w, 3, d), (int64_t[]){1, 0, 2});
    } else {
        w = matrices(&b, w, E, parted, &trans);
    }
    Value *r = op_transpose(&b, op_reshape(&b, x->def->in[0], 3, rows), (int64_t[]){1, 0, 2});
    Value *sum = op_reduce(&b, OP_REDUCE_SUM, batch_product(&b, r, w, trans), &axis, 1, false);
    return op_reshape(&b, sum, n->out[0]->rank, n->out[0]->dims);
}

/* gates[T,E] with a table of one row per expert. */
static Value *gated_table(Node *n, const Selection *s, const Facts *f) {
    Value *g = n->in[0], *w = n->in[1];
    if (!is_linear(f, n) || node_int(n, AT_TRANS_B, 0) || w->dims[0] != s->E || !routed(f, g) ||
        value_count(g) != s->T * s->E)
        return NULL;
    Builder b = builder_before(n);
    int64_t gates[] = {s->T, s->E, 1}, table[] = {1, s->E, w->dims[1]}, axis = 1;
    Value *rows = op_binary(&b, OP_MUL, op_reshape(&b, g, 3, gates), op_reshape(&b, w, 3, table));
    Value *sum = op_reduce(&b, OP_REDUCE_SUM, rows, &axis, 1, false);
    return op_reshape(&b, sum, n->out[0]->rank, n->out[0]->dims);
}

/* ---- for the time of the search ---- */

void products_write_out(Graph *g, const Selection *s, WrittenOut *out) {
    Facts f = facts_of(g, s);
    FOR_NODES(n, g) {
        Value *y = n->out[0], *now = NULL;
        if (y->id >= f.n || !y->uses.n)
            continue;
        int side = weights_operand(s, &f, n);
        if (side >= 0)
            now = write_out(n, side);
        else if (n->op == OP_RESHAPE)
            now = wide_in(n, s, &f);
        else if (n->op == OP_MATMUL && !(now = wide_out(n, s, &f)))
            now = gated_table(n, s, &f);
        if (!now)
            continue;
        value_replace(y, now);
        vec_push(out, ((WrittenProduct){y, now}));
    }
    facts_free(&f);
}

static bool in_graph(const Node *n) {
    return n->prev || n->graph->first == n;
}

void products_restore(WrittenOut *w) {
    for (int i = w->n; i-- > 0;) {
        Value *was = w->at[i].was, *now = w->at[i].now;
        if (in_graph(was->def) && in_graph(now->def) && now->uses.n)
            value_replace(now, was);
    }
    vec_free(w);
}
