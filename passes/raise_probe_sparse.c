/* raise_probe_sparse.c: the elements of a value that are not zero, where nearly all are.
 *
 * Weights of tokens by places, W[T,E,C], have as many elements as tokens squared and one in a
 * thousand that is not zero. Where it may be is followed down the operations that make such values
 * (comparisons with a range, outer products, sums); what it is, is then computed there only. */
#include <stdlib.h>
#include <string.h>

#include "passes/raise_probe.h"

#define DENSE ((int64_t)1 << 20) /* values up to this size are looked through */

static bool support(Probe *p, Value *v, Part *out);

static bool is_zero(const Value *v, Cell c) {
    double f;
    memcpy(&f, &c, sizeof f);
    return dtype_is_float(v->dtype) ? f == 0 : c == 0;
}

static bool dense_support(Probe *p, Value *v, Part *out) {
    const RTensor *r = probe_value(p, v);
    if (!r)
        return false;
    *out = part_new(p, r->count);
    out->n = 0;
    for (int64_t i = 0; i < r->count; i++)
        if (!is_zero(v, ((const Cell *)(const void *)r->i)[i]))
            out->at[out->n++] = i;
    return true;
}

static int by_position(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void sort_distinct(Part *x) {
    int64_t n = 0;
    if (x->n)
        qsort(x->at, (size_t)x->n, sizeof *x->at, by_position);
    for (int64_t i = 0; i < x->n; i++)
        if (!n || x->at[n - 1] != x->at[i])
            x->at[n++] = x->at[i];
    x->n = n;
}

/* ---- x[.., 1] == range[C] ---- */

static bool compared_with_range(Probe *p, Node *n, Part *out) {
    const Value *y = n->out[0];
    int64_t C = y->dims[y->rank - 1];
    for (int side = 0; side < 2; side++) {
        Value *range = n->in[side], *x = n->in[1 - side];
        if (value_count(range) != C || value_count(x) != value_count(y) / C ||
            dtype_is_float(x->dtype) || x->rank != y->rank || x->dims[x->rank - 1] != 1)
            continue;
        const RTensor *r = probe_value(p, range), *i = probe_value(p, x);
        if (!r || !i)
            return false;
        for (int64_t k = 1; k < C; k++)
            if (r->i[k] != r->i[0] + k)
                return false;
        *out = part_new(p, i->count);
        out->n = 0;
        for (int64_t k = 0; k < i->count; k++)
            if (i->i[k] >= r->i[0] && i->i[k] < r->i[0] + C)
                out->at[out->n++] = k * C + i->i[k] - r->i[0];
        return true;
    }
    return false;
}

/* ---- products ---- */

/* The first of x that is not below position at. */
static int64_t lower(const Part *x, int64_t at) {
    int64_t lo = 0, hi = x->n;
    while (lo < hi) {
        int64_t mid = (lo + hi) / 2;
        if (x->at[mid] < at)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* a[T, M, 1] times b[T, 1, N], elementwise or as matrices. */
static bool outer_support(Probe *p, Value *a, Value *b, int64_t T, int64_t M, int64_t N,
                          Part *out) {
    Part x, y;
    if (!support(p, a, &x) || !support(p, b, &y))
        return false;
    int64_t n = 0;
    for (int pass = 0; pass < 2; pass++) {
        if (pass)
            *out = part_new(p, n);
        n = 0;
        for (int64_t t = 0, i = 0; t < T; t++)
            for (; i < x.n && x.at[i] < (t + 1) * M; i++)
                for (int64_t k = lower(&y, t * N); k < y.n && y.at[k] < (t + 1) * N; k++) {
                    if (pass)
                        out->at[n] = x.at[i] * N + y.at[k] - t * N;
                    n++;
                }
    }
    sort_distinct(out);
    return true;
}

static bool product_support(Probe *p, Node *n, Part *out) {
    const Value *y = n->out[0];
    Value *a = n->in[0], *b = n->in[1];
    if (n->op == OP_MUL && (same_dims(a, y) || same_dims(b, y)))
        return support(p, same_dims(a, y) ? a : b, out) ||
               (same_dims(a, y) && same_dims(b, y) && support(p, b, out));
    int64_t T = 1, M = y->rank >= 2 ? y->dims[y->rank - 2] : 0, N = y->dims[y->rank - 1];
    for (int k = 0; k + 2 < y->rank; k++)
        T *= y->dims[k];
    if (value_count(a) != T * M)
        a = n->in[1], b = n->in[0];
    bool last = n->op == OP_MATMUL
                    ? a == n->in[0] && !node_int(n, AT_TRANS_A, 0) && !node_int(n, AT_TRANS_B, 0)
                    : a->rank == b->rank;
    return last && a->rank == y->rank && b->rank == y->rank && a->dims[a->rank - 1] == 1 &&
           b->dims[b->rank - 2] == 1 && value_count(a) == T * M && value_count(b) == T * N &&
           outer_support(p, a, b, T, M, N, out);
}

static bool sum_support(Probe *p, Node *n, Part *out) {
    Part x, y;
    if (!same_dims(n->in[0], n->out[0]) || !same_dims(n->in[1], n->out[0]) ||
        !support(p, n->in[0], &x) || !support(p, n->in[1], &y))
        return false;
    *out = part_new(p, x.n + y.n);
    memcpy(out->at, x.at, sizeof *x.at * (size_t)x.n);
    memcpy(out->at + x.n, y.at, sizeof *y.at * (size_t)y.n);
    sort_distinct(out);
    return true;
}

static bool turned_support(Probe *p, Node *n, Part *out) {
    const Value *x = n->in[0], *y = n->out[0];
    int64_t own[MAX_RANK], stride[MAX_RANK], to[MAX_RANK];
    const int64_t *perm;
    Part from;
    if (!part_strides(x->dims, x->rank, own) || !part_strides(y->dims, y->rank, stride) ||
        !support(p, n->in[0], &from))
        return false;
    node_ints(n, AT_PERM, &perm);
    for (int k = 0; k < y->rank; k++)
        to[perm[k]] = stride[k];
    *out = part_new(p, from.n);
    for (int64_t i = 0; i < from.n; i++)
        for (int k = 0; k < x->rank; k++)
            out->at[i] += from.at[i] / own[k] % x->dims[k] * to[k];
    sort_distinct(out);
    return true;
}

/* ---- the rules ---- */

/* Positions in ascending order, outside of which v is zero. False: not known. */
static bool support(Probe *p, Value *v, Part *out) {
    Node *n = v->def;
    if (!value_known(v))
        return false;
    if (value_count(v) <= DENSE)
        return dense_support(p, v, out);
    switch (n->op) {
    case OP_CAST:
    case OP_RESHAPE:
        return support(p, n->in[0], out);
    case OP_TRANSPOSE:
        return turned_support(p, n, out);
    case OP_EQ:
        return compared_with_range(p, n, out);
    case OP_MUL:
    case OP_MATMUL:
        return product_support(p, n, out);
    case OP_ADD:
        return sum_support(p, n, out);
    default:
        return false;
    }
}

const Cell *probe_sparse(Probe *p, Value *v, const Part **at) {
    for (int i = 0; i < COUNT_OF(p->sparse); i++) {
        struct ProbeSparse *s = &p->sparse[i];
        if (s->value && s->value != v)
            continue;
        if (!s->value) {
            s->value = v;
            bool large = value_known(v) && value_count(v) > DENSE;
            s->cells = large && support(p, v, &s->at) ? probe_part(p, v, &s->at) : NULL;
        }
        *at = &s->at;
        return s->cells;
    }
    return NULL;
}

const Cell *probe_nonzeros(Probe *p, Value *v, Part *out) {
    const Cell *c;
    if (!support(p, v, out)) {
        if (p->stuck || !dense_support(p, v, out))
            return NULL;
    }
    c = probe_part(p, v, out);
    Cell *kept = c ? ARENA_ARRAY(&p->arena, Cell, out->n + 1) : NULL;
    int64_t n = 0;
    for (int64_t i = 0; c && i < out->n; i++) {
        if (is_zero(v, c[i]))
            continue;
        out->at[n] = out->at[i];
        kept[n++] = c[i];
    }
    out->n = c ? n : 0;
    return kept;
}
