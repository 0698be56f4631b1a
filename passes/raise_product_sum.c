/* raise_product_sum.c: combines written as products. "bec,be->bc" and stack @ gates are sums over
 * experts (or slots) of weighted rows; they are written out as such for the time of the search, so
 * that one rule serves both. */
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
            w->dims[one] != 1 || !is(f->chosen, f->n, w) || is(f->hot, f->n, w) ||
            is(f->weight, f->n, rows))
            continue;
        bool batch = value_count(w) == s->T * w->dims[terms];
        for (int k = 0; k + 2 < y->rank; k++)
            batch = batch && w->dims[k] == y->dims[k] && rows->dims[k] == y->dims[k];
        if (batch && (w->dims[terms] == s->E || w->dims[terms] == s->K))
            return side;
    }
    return -1;
}

static Node *write_out(Node *n, int side) {
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
    value_replace(y, op_reshape(&b, sum, rank, y->dims));
    return sum->def;
}

void products_write_out(Graph *g, const Selection *s, WrittenOut *out) {
    Facts f = facts_of(g, s);
    FOR_NODES(n, g) {
        int side = n->out[0]->id < f.n ? weights_operand(s, &f, n) : -1;
        if (side < 0 || !n->out[0]->uses.n)
            continue;
        WrittenProduct p = {n, NULL};
        p.sum = write_out(n, side);
        vec_push(out, p);
    }
    facts_free(&f);
}

static bool in_graph(const Node *n) {
    return n->prev || n->graph->first == n;
}

void products_restore(WrittenOut *w) {
    for (int i = 0; i < w->n; i++) {
        Node *product = w->at[i].product, *sum = w->at[i].sum;
        if (!in_graph(product) || !in_graph(sum) || sum->out[0]->uses.n != 1)
            continue;
        value_replace(sum->out[0]->uses.at[0].node->out[0], product->out[0]);
    }
    vec_free(w);
}
