/* raise_product.c: products, as the prober needs them: without a copy of a matrix for every pair,
 * which for real batches are many gigabytes; and where a layer is large, only for the rows of a
 * sample of tokens. A row left out is zero. Which token a row is for comes from the walk; were the
 * walk wrong, a wanted row would be missing and probing would disagree, so leaving rows out cannot
 * make a wrong layer pass. */
#include <string.h>

#include "passes/raise.h"

static bool is_wanted(const Probe *p, int64_t t) {
    return !p->wanted || t < 0 || p->wanted[t];
}

/* y[N] += a[K] times b[K,N], or b[N,K] if trans. */
static void add_row(double *y, const double *a, const double *b, int64_t K, int64_t N, bool trans) {
    if (trans || N == 1) {
        for (int64_t n = 0; n < N; n++) {
            double s[4] = {0};
            const double *c = b + n * K;
            int64_t k = 0;
            for (; k + 4 <= K; k += 4)
                for (int i = 0; i < 4; i++)
                    s[i] += a[k + i] * c[k + i];
            for (; k < K; k++)
                s[0] += a[k] * c[k];
            y[n] += s[0] + s[1] + s[2] + s[3];
        }
        return;
    }
    for (int64_t k = 0; k < K; k++)
        for (int64_t n = 0; n < N; n++)
            y[n] += a[k] * b[k * N + n];
}

/* ---- one matrix per row, picked by a gather ---- */

/* The gather on side j of a product [S,M,K] x [S,K,N] that picks weights, used nowhere else. */
static Node *picked_matrices(const Probe *p, const Node *n, int j) {
    Node *g = n->in[j]->def;
    if (g->op != OP_GATHER || g->out[0]->uses.n != 1 || node_int(g, AT_AXIS, 0) != 0)
        return NULL;
    const Value *w = g->in[0], *x = n->in[1 - j], *y = n->out[0];
    bool fits = w->id < p->facts->n && p->facts->weight[w->id] && w->rank == 3 &&
                g->in[1]->rank == 1 && x->rank == 3 && !node_int(n, AT_TRANS_A, 0) &&
                !node_int(n, AT_TRANS_B, 0) && value_known(y) && y->rank == 3 &&
                x->dims[0] == y->dims[0];
    return fits ? g : NULL;
}

static const ProbeRows *rows_of(const Probe *p, const Value *y) {
    return p->wanted && y->id < p->facts->n && p->rows[y->id].map ? &p->rows[y->id] : NULL;
}

static RTensor *multiply_picked(Probe *p, Node *n, int j, Node *g) {
    const RTensor *w = probe_value(p, g->in[0]), *idx = probe_value(p, g->in[1]),
                  *x = probe_value(p, n->in[1 - j]);
    if (!w || !idx || !x)
        return NULL;
    const int64_t *d = n->out[0]->dims;
    int64_t M = d[1], N = d[2], K = w->dims[j == 0 ? 2 : 1];
    const ProbeRows *rows = rows_of(p, n->out[0]);
    RTensor *y = rtensor_new(&p->arena, n->out[0]->dtype, 3, d);
    for (int64_t s = 0; s < d[0]; s++) {
        int64_t e = idx->i[s] < 0 ? idx->i[s] + w->dims[0] : idx->i[s];
        if (e < 0 || e >= w->dims[0])
            return NULL;
        if (rows && rows->axes == 1 && !is_wanted(p, rows->map->at[s].t))
            continue;
        const double *m = w->f + e * w->dims[1] * w->dims[2],
                     *v = x->f + s * x->dims[1] * x->dims[2];
        for (int64_t i = 0; i < M; i++)
            add_row(y->f + (s * M + i) * N, (j == 0 ? m : v) + i * K, j == 0 ? v : m, K, N, false);
    }
    return y;
}

/* ---- rows of a batch of products ---- */

/* a[.., M, K] x b[.., K, N] with the same batch axes, or none on b; rows are batch axes or M. */
static RTensor *multiply_rows(Probe *p, Node *n, const ProbeRows *rows) {
    const RTensor *a = probe_value(p, n->in[0]), *b = probe_value(p, n->in[1]);
    bool tb = node_int(n, AT_TRANS_B, 0);
    if (!a || !b)
        return NULL;
    int64_t dims[MAX_RANK], batch = 1, M = a->dims[a->rank - 2], K = a->dims[a->rank - 1];
    int64_t N = b->dims[b->rank - (tb ? 2 : 1)];
    memcpy(dims, a->dims, sizeof dims);
    dims[a->rank - 1] = N;
    for (int k = 0; k + 2 < a->rank; k++)
        batch *= a->dims[k];
    RTensor *y = rtensor_new(&p->arena, a->dtype, a->rank, dims);
    for (int64_t i = 0; i < batch * M; i++)
        if (is_wanted(p, rows->map->at[i].t))
            add_row(y->f + i * N, a->f + i * K, b->f + (b->rank > 2 ? i / M * K * N : 0), K, N, tb);
    return y;
}

static bool rows_fit(const Node *n, const ProbeRows *rows) {
    const Value *a = n->in[0], *b = n->in[1];
    if (a->rank < 2 || node_int(n, AT_TRANS_A, 0) || (b->rank != 2 && b->rank != a->rank) ||
        rows->axes != (1u << (a->rank - 1)) - 1 || n->out[0]->rank != a->rank)
        return false;
    for (int k = 0; k + 2 < a->rank; k++)
        if (a->dims[k] < 0 || (b->rank > 2 && b->dims[k] != a->dims[k]))
            return false;
    return true;
}

/* ---- grouped ---- */

static RTensor *multiply_grouped(Probe *p, Node *n) {
    Node *dispatch = n->in[1]->def;
    const RTensor *x = probe_value(p, n->in[0]), *offsets = probe_value(p, n->in[1]);
    const RTensor *token = dispatch->op == OP_DISPATCH ? probe_value(p, dispatch->out[1]) : NULL;
    bool tb = node_int(n, AT_TRANS_B, 0), stack = n->nin == 3 && n->in[2]->rank == 3;
    if (!x || !offsets || !token)
        return NULL;
    int64_t K = x->dims[1], N = n->out[0]->dims[1];
    RTensor *y = rtensor_new(&p->arena, x->dtype, 2, (int64_t[]){x->dims[0], N});
    for (int64_t e = 0; e + 1 < offsets->count; e++) {
        const RTensor *w = probe_value(p, n->in[stack ? 2 : 2 + e]);
        if (!w)
            return NULL;
        for (int64_t r = offsets->i[e]; r < offsets->i[e + 1]; r++)
            if (is_wanted(p, token->i[r]))
                add_row(y->f + r * N, x->f + r * K, w->f + (stack ? e * K * N : 0), K, N, tb);
    }
    return y;
}

bool probe_product(Probe *p, Node *n, RTensor **out) {
    const ProbeRows *rows = rows_of(p, n->out[0]);
    if (n->op == OP_GROUPED_MATMUL && p->wanted) {
        *out = multiply_grouped(p, n);
    } else if (n->op == OP_MATMUL && dtype_is_float(n->out[0]->dtype)) {
        Node *g = picked_matrices(p, n, 0);
        int side = g ? 0 : 1;
        g = g ? g : picked_matrices(p, n, 1);
        if (!g && !(rows && rows_fit(n, rows)))
            return false;
        *out = g ? multiply_picked(p, n, side, g) : multiply_rows(p, n, rows);
    } else {
        return false;
    }
    if (!*out && !p->stuck)
        p->stuck = n;
    return true;
}

/* ---- the sample ---- */

void probe_sample(Probe *p, Region *r, int64_t tokens) {
    const Selection *s = p->s;
    char *wanted = ARENA_ARRAY(&p->arena, char, s->T);
    /* The first tokens of a spread routing reach every expert; the rest are spread over the batch.
     */
    for (int64_t t = 0; t < s->T; t++)
        wanted[t] = t * s->K < s->E || t % (s->T / tokens + 1) == 0;
    p->wanted = wanted;
    p->rows = xcalloc((size_t)p->facts->n, sizeof *p->rows);
    raise_each_view(r, p);
}

void probe_view(Probe *p, const View *w) {
    for (int i = 0; i < w->n; i++) {
        if (w->v[i]->id >= p->facts->n || w->v[i]->def->op != OP_MATMUL)
            continue;
        ProbeRows *x = &p->rows[w->v[i]->id];
        if (x->map && (x->axes != w->rows || x->map->n != w->map[i]->n ||
                       memcmp(x->map->at, w->map[i]->at, sizeof *x->map->at * (size_t)x->map->n)))
            x->clash = true; /* read in two ways: all rows are computed */
        *x = (ProbeRows){.map = x->clash ? NULL : w->map[i], .axes = w->rows, .clash = x->clash};
    }
}
