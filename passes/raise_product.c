/* raise_product.c: products, as the prober needs them: some rows by a matrix that stays where the
 * model has it.
 *
 * y[row, col] = sum over k of x[row, k] * w[k, col] for the rows that are asked for. The matrix of
 * a row is a parameter seen through transposes, slices and picks (so it is read as float32 where it
 * lies, never copied as a whole), or else the elements of a value that meet something other than
 * zero. Both sides of a comparison sum in the same order. */
#include <stdlib.h>
#include <string.h>

#include "passes/raise_probe.h"

/* The loops that the time of probing goes to, for whatever vectors the machine has. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && \
    !defined(__SANITIZE_ADDRESS__)
#define HOT_LOOP __attribute__((optimize("O3"), target_clones("avx2", "default")))
#else
#define HOT_LOOP
#endif

/* ---- a matrix in memory ---- */

typedef struct Strided { /* a tensor, seen through views */
    const Tensor *t;
    int64_t offset;
    int rank;
    int64_t dims[MAX_RANK], stride[MAX_RANK];
} Strided;

static bool contiguous(const Strided *s) {
    int64_t want = 1;
    for (int k = s->rank - 1; k >= 0; k--) {
        if (s->dims[k] != 1 && s->stride[k] != want)
            return false;
        want *= s->dims[k];
    }
    return true;
}

static bool strided_slice(const Node *n, Strided *s) {
    const int64_t *axes, *starts, *steps;
    int count = node_ints(n, AT_AXES, &axes), nsteps = node_ints(n, AT_STEPS, &steps);
    if (n->nin != 1 || !value_known(n->out[0]))
        return false;
    node_ints(n, AT_STARTS, &starts);
    for (int i = 0; i < count; i++) {
        int64_t k = axes[i] < 0 ? axes[i] + s->rank : axes[i];
        if (starts[i] < 0)
            return false;
        s->offset += starts[i] * s->stride[k];
        s->stride[k] *= nsteps ? steps[i] : 1;
        s->dims[k] = n->out[0]->dims[k];
    }
    return true;
}

/* A gather of one entry. */
static bool strided_pick(Probe *p, const Node *n, Strided *s) {
    const Facts *f = p->facts;
    const Value *i = n->in[1];
    if (i->id < f->n && f->activation[i->id] && !f->chosen[i->id])
        return false; /* a table of embeddings */
    const RTensor *idx = probe_value(p, n->in[1]);
    int axis = (int)node_int(n, AT_AXIS, 0);
    axis += axis < 0 ? s->rank : 0;
    if (!idx || idx->count != 1 || idx->rank > 1)
        return false;
    int64_t at = idx->i[0] < 0 ? idx->i[0] + s->dims[axis] : idx->i[0];
    if (at < 0 || at >= s->dims[axis])
        return false;
    s->offset += at * s->stride[axis];
    s->dims[axis] = 1;
    for (int k = axis; idx->rank == 0 && k + 1 < s->rank; k++) {
        s->dims[k] = s->dims[k + 1];
        s->stride[k] = s->stride[k + 1];
    }
    s->rank -= idx->rank == 0;
    return true;
}

/* v as a view of a parameter or constant; false: it is none. */
static bool strided_of(Probe *p, const Value *v, Strided *s) {
    Node *n = v->def;
    const Attr *a = n->op == OP_PARAM || n->op == OP_CONST ? node_attr(n, AT_VALUE) : NULL;
    if (a) {
        *s = (Strided){.t = a->t, .rank = v->rank};
        memcpy(s->dims, v->dims, sizeof s->dims);
        return (a->t->dtype == DT_F32 || a->t->dtype == DT_F64) && value_known(v) &&
               part_strides(s->dims, s->rank, s->stride);
    }
    bool view = n->op == OP_TRANSPOSE || n->op == OP_RESHAPE || n->op == OP_SLICE ||
                n->op == OP_GATHER || (n->op == OP_CAST && dtype_is_float(n->in[0]->dtype));
    if (!view || !dtype_is_float(v->dtype) || probe_is_cut(p, v) || !strided_of(p, n->in[0], s))
        return false;
    const int64_t *perm;
    Strided from = *s;
    switch (n->op) {
    case OP_TRANSPOSE:
        node_ints(n, AT_PERM, &perm);
        for (int k = 0; k < s->rank; k++) {
            s->dims[k] = from.dims[perm[k]];
            s->stride[k] = from.stride[perm[k]];
        }
        return true;
    case OP_RESHAPE:
        if (!value_known(v) || !contiguous(s))
            return false;
        s->rank = v->rank;
        memcpy(s->dims, v->dims, sizeof s->dims);
        return part_strides(s->dims, s->rank, s->stride);
    case OP_SLICE:
        return strided_slice(n, s);
    case OP_GATHER:
        return strided_pick(p, n, s);
    default: /* a cast: numbers are doubles here whatever they are stored as */
        return true;
    }
}

typedef struct Matrix {
    const void *at;
    DType type;     /* DT_F32 or DT_F64 */
    int64_t k, col; /* strides */
} Matrix;

/* Matrix number m of s, whose last two axes are [K, N], or [N, K] if trans. */
static bool strided_matrix(const Strided *s, int64_t m, bool trans, Matrix *out) {
    int64_t offset = s->offset;
    for (int i = s->rank - 3; i >= 0; i--) {
        offset += m % s->dims[i] * s->stride[i];
        m /= s->dims[i];
    }
    if (s->rank < 2 || m > 0)
        return false;
    *out = (Matrix){(const char *)s->t->data + offset * dtype_bytes(s->t->dtype), s->t->dtype,
                    s->stride[s->rank - (trans ? 1 : 2)], s->stride[s->rank - (trans ? 2 : 1)]};
    return true;
}

/* ---- sums ---- */

HOT_LOOP static void widen(double *restrict to, const float *restrict from, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        to[i] = from[i];
}

HOT_LOOP static void add_scaled(double *restrict y, double a, const double *restrict b, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] += a * b[i];
}

HOT_LOOP static double dot(const double *restrict a, const double *restrict b, int64_t n) {
    double s[16] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++)
            s[j] += a[i + j] * b[i + j];
    for (; i < n; i++)
        s[0] += a[i] * b[i];
    for (int j = 0; j < 16; j++)
        sum += s[j];
    return sum;
}

/* A row or column of m: n elements from the i-th of the other axis on, as doubles. */
static const double *line(const Matrix *m, int64_t offset, int64_t stride, int64_t n,
                          double *room) {
    if (m->type == DT_F64 && stride == 1)
        return (const double *)m->at + offset;
    if (m->type == DT_F32 && stride == 1)
        widen(room, (const float *)m->at + offset, n);
    else
        for (int64_t i = 0; i < n; i++)
            room[i] = m->type == DT_F32 ? ((const float *)m->at)[offset + i * stride]
                                        : ((const double *)m->at)[offset + i * stride];
    return room;
}

/* y[r] = x[r] m for the rows r of a list, columns c0 to c0 + C. */
static void multiply(const double *x, const int64_t *rows, int64_t n, const Matrix *m, int64_t K,
                     int64_t c0, int64_t C, double *y) {
    double *room = xcalloc((size_t)(K > C ? K : C) + 1, sizeof *room);
    if (m->k == 1 && m->col != 1) {
        for (int64_t c = 0; c < C; c++) {
            const double *w = line(m, (c0 + c) * m->col, 1, K, room);
            for (int64_t i = 0; i < n; i++)
                y[rows[i] * C + c] = dot(x + rows[i] * K, w, K);
        }
    } else {
        for (int64_t k = 0; k < K; k++) {
            const double *w = line(m, k * m->k + c0 * m->col, m->col, C, room);
            for (int64_t i = 0; i < n; i++)
                if (x[rows[i] * K + k] != 0)
                    add_scaled(y + rows[i] * C, x[rows[i] * K + k], w, C);
        }
    }
    free(room);
}

/* ---- which rows and columns ---- */

typedef struct Product {
    Value *x, *w;    /* the side whose rows are asked for, and the matrices */
    bool tx, tw;     /* x is [K, rows], w is [cols, K] */
    int64_t K, M, N; /* of a batch: rows, columns; M -1: there is one batch */
    bool swapped;    /* rows are columns of the result */
    int batch;       /* leading axes of the result */
    const int64_t *dims;
    Strided strided;        /* of w, if it is one */
    const RTensor *picks;   /* by batch: which matrix of `strided`; NULL: as broadcast */
    const RTensor *offsets; /* grouped: rows of each matrix */
    Node *node;
} Product;

/* Position where batch b of an operand begins. */
static int64_t batch_offset(const Product *p, const Value *v, int64_t b) {
    int64_t at = 0, stride = v->dims[v->rank - 1] * v->dims[v->rank - 2];
    int shift = p->batch - (v->rank - 2);
    for (int k = p->batch - 1; k >= 0; k--) {
        int64_t c = b % p->dims[k];
        b /= p->dims[k];
        if (k < shift)
            continue;
        at += v->dims[k - shift] == 1 ? 0 : c * stride;
        stride *= v->dims[k - shift];
    }
    return at;
}

/* Distinct rows of the wanted elements, in order of appearance, and the range of their columns. */
typedef struct Wanted {
    int64_t *row, n; /* batch * M + row */
    int32_t *of;     /* by element: its row in the list */
    int64_t *col;    /* by element */
    int64_t c0, C;
} Wanted;

static Wanted wanted_rows(Probe *p, const Product *q, const Part *x) {
    Wanted w = {.c0 = INT64_MAX};
    int64_t last = -1, cap = 64;
    w.row = ARENA_ARRAY(&p->arena, int64_t, x->n + 1);
    w.col = ARENA_ARRAY(&p->arena, int64_t, x->n + 1);
    w.of = ARENA_ARRAY(&p->arena, int32_t, x->n + 1);
    while (cap < 2 * x->n)
        cap *= 2;
    int32_t *slot = xcalloc((size_t)cap, sizeof *slot);
    for (int64_t i = 0; i < x->n; i++) {
        int64_t c = x->at[i] % q->N, r = x->at[i] / q->N; /* r: batch * M + row of the result */
        if (q->swapped) {
            int64_t m = r % q->M;
            r = r / q->M * q->N + c;
            c = m;
        }
        uint64_t h = (uint64_t)r * 0x9e3779b97f4a7c15u;
        int64_t at = (int64_t)((h ^ h >> 32) & (uint64_t)(cap - 1));
        while (slot[at] && w.row[slot[at] - 1] != r)
            at = (at + 1) & (cap - 1);
        if (!slot[at]) {
            w.row[w.n++] = r;
            slot[at] = (int32_t)w.n;
        }
        w.of[i] = slot[at] - 1;
        w.col[i] = c;
        w.c0 = c < w.c0 ? c : w.c0;
        last = c > last ? c : last;
    }
    free(slot);
    w.C = last - w.c0 + 1;
    return w;
}

/* x's rows, [n, K], where x is a large matrix of which few elements are not zero; NULL: it is not.
 */
static const double *sparse_rows(Probe *p, const Product *q, const Wanted *w) {
    const Part *at;
    const double *f =
        q->batch || q->swapped ? NULL : (const double *)(const void *)probe_sparse(p, q->x, &at);
    if (!f)
        return NULL;
    int64_t rows = value_count(q->x) / q->K;
    int32_t *which = xcalloc((size_t)rows + 1, sizeof *which);
    double *x = ARENA_ARRAY(&p->arena, double, w->n * q->K + 1);
    for (int64_t i = 0; i < w->n; i++)
        which[w->row[i]] = (int32_t)i + 1;
    for (int64_t i = 0; i < at->n; i++) {
        int64_t r = q->tx ? at->at[i] % rows : at->at[i] / q->K;
        int64_t k = q->tx ? at->at[i] / rows : at->at[i] % q->K;
        if (which[r])
            x[(which[r] - 1) * q->K + k] = f[i];
    }
    free(which);
    return x;
}

/* x's rows: [n, K]. */
static const double *row_elements(Probe *p, const Product *q, const Wanted *w) {
    const double *sparse = sparse_rows(p, q, w);
    if (sparse)
        return sparse;
    Part o = part_new(p, w->n * q->K);
    int64_t per = q->swapped ? q->N : q->M;
    for (int64_t i = 0; i < w->n; i++) {
        int64_t b = per < 0 ? 0 : w->row[i] / per, r = per < 0 ? w->row[i] : w->row[i] % per;
        int64_t base = q->batch ? batch_offset(q, q->x, b) : 0;
        for (int64_t k = 0; k < q->K; k++)
            o.at[i * q->K + k] = base + (q->tx ? k * per + r : r * q->K + k);
    }
    return (const double *)(const void *)(q->batch && value_count(q->x) >= 0
                                              ? probe_part_again(p, q->x, &o)
                                              : probe_part(p, q->x, &o));
}

/* Number of the matrix that a row meets; -1: none. */
static int64_t matrix_of_row(const Product *q, int64_t row) {
    if (q->offsets) {
        int64_t e = 0;
        while (e + 1 < q->offsets->count && row >= q->offsets->i[e + 1])
            e++;
        return e + 1 < q->offsets->count ? e : -1;
    }
    int64_t per = q->swapped ? q->N : q->M, b = per < 0 ? 0 : row / per;
    if (q->picks) {
        int64_t e = q->picks->i[b];
        return e < 0 ? e + q->strided.dims[0] : e;
    }
    return q->batch ? batch_offset(q, q->w, b) /
                          (q->w->dims[q->w->rank - 1] * q->w->dims[q->w->rank - 2])
                    : 0;
}

/* ---- matrices that are computed ---- */

/* Rows of a matrix that meet a zero in all rows of the group are not computed. */
static bool multiply_computed(Probe *p, const Product *q, const double *x, const int64_t *rows,
                              int64_t n, int64_t m, const Wanted *want, double *y) {
    int64_t *ks = ARENA_ARRAY(&p->arena, int64_t, q->K + 1), nk = 0, N = q->swapped ? q->M : q->N,
            base = m * q->K * N, C = want->C;
    for (int64_t k = 0; k < q->K; k++) {
        bool zero = true;
        for (int64_t i = 0; i < n && zero; i++)
            zero = x[rows[i] * q->K + k] == 0;
        if (!zero)
            ks[nk++] = k;
    }
    Part o = part_new(p, nk * C);
    for (int64_t j = 0; j < nk; j++)
        for (int64_t c = 0; c < C; c++)
            o.at[j * C + c] =
                base + (q->tw ? (want->c0 + c) * q->K + ks[j] : ks[j] * N + want->c0 + c);
    const double *w = nk ? (const double *)(const void *)probe_part(p, q->w, &o) : NULL;
    p->work += n * nk * C;
    if (nk && !w)
        return false;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < nk; j++)
            add_scaled(y + rows[i] * C, x[rows[i] * q->K + ks[j]], w + j * C, C);
    return true;
}

/* ---- one product ---- */

/* The matrices behind w: a view of parameters, perhaps picked by batch. */
static void find_matrices(Probe *p, Product *q) {
    Value *w = q->w;
    const int64_t *perm;
    while (w->def->op == OP_TRANSPOSE && w->rank >= 2) { /* of the last two axes alone */
        bool swaps =
            node_ints(w->def, AT_PERM, &perm) == w->rank && perm[w->rank - 1] == w->rank - 2;
        for (int k = 0; k + 2 < w->rank; k++)
            swaps = swaps && perm[k] == k;
        if (!swaps)
            break;
        q->tw = !q->tw;
        w = w->def->in[0];
    }
    q->w = w;
    Node *g = w->def;
    if (g->op == OP_GATHER && node_int(g, AT_AXIS, 0) == 0 && g->in[1]->rank >= 1 &&
        g->in[1]->rank == q->batch && w->rank == q->batch + 2 && g->in[0]->rank == 3 &&
        strided_of(p, g->in[0], &q->strided)) {
        q->picks = probe_value(p, g->in[1]);
        bool fits = q->picks && q->picks->rank == q->batch;
        for (int k = 0; fits && k < q->batch; k++)
            fits = q->picks->dims[k] == q->dims[k];
        if (fits)
            return;
        q->picks = NULL;
        q->strided.t = NULL;
        return;
    }
    if (!strided_of(p, w, &q->strided))
        q->strided.t = NULL;
}

/* The matrix number e; false: it is not in memory. */
static bool stored_matrix(Probe *p, const Product *q, int64_t e, Matrix *m) {
    Strided s = q->strided;
    bool stack = q->node->op == OP_MATMUL || q->node->in[2]->rank == 3;
    if (!stack) {
        e += 2;
        return strided_of(p, q->node->in[e], &s) && strided_matrix(&s, 0, q->tw, m);
    }
    return s.t && strided_matrix(&s, e, q->tw, m);
}

static Value *matrix_value(const Product *q, int64_t e) {
    return q->offsets && q->node->in[2]->rank == 2 ? q->node->in[2 + e] : q->w;
}

static const Cell *product_elements(Probe *p, Product *q, const Part *x) {
    Wanted want = wanted_rows(p, q, x);
    const double *rows = row_elements(p, q, &want);
    if (!rows)
        return NULL;
    double *y = ARENA_ARRAY(&p->arena, double, want.n *want.C + 1), *out;
    int64_t *group = ARENA_ARRAY(&p->arena, int64_t, want.n + 1);
    int64_t *number = ARENA_ARRAY(&p->arena, int64_t, want.n + 1);
    for (int64_t i = 0; i < want.n; i++)
        number[i] = matrix_of_row(q, want.row[i]);
    for (int64_t i = 0; i < want.n; i++) {
        int64_t n = 0, e = number[i];
        Matrix m;
        if (e < 0)
            continue; /* done, or no matrix: zeros */
        for (int64_t k = i; k < want.n; k++)
            if (number[k] == e) {
                group[n++] = k;
                number[k] = -1;
            }
        if (stored_matrix(p, q, e, &m)) {
            p->work += n * q->K * want.C;
            multiply(rows, group, n, &m, q->K, want.c0, want.C, y);
            continue;
        }
        Product one = *q;
        one.w = matrix_value(q, e);
        if (!multiply_computed(p, &one, rows, group, n, one.w == q->w ? e : 0, &want, y))
            return NULL;
    }
    out = ARENA_ARRAY(&p->arena, double, x->n + 1);
    for (int64_t i = 0; i < x->n; i++)
        out[i] = y[want.of[i] * want.C + want.col[i] - want.c0];
    return (const Cell *)(const void *)out;
}

/* Weights, or a pick of them. */
static bool is_matrices(const Probe *p, const Value *v) {
    while ((v->def->op == OP_GATHER || v->def->op == OP_TRANSPOSE || v->def->op == OP_RESHAPE) &&
           !(v->id < p->facts->n && p->facts->weight[v->id]))
        v = v->def->in[0];
    return v->id < p->facts->n ? p->facts->weight[v->id] : v->def->op == OP_PARAM;
}

static bool matmul_product(Probe *p, Node *n, Product *q) {
    const Value *y = n->out[0], *a = n->in[0], *b = n->in[1];
    bool ta = node_int(n, AT_TRANS_A, 0), tb = node_int(n, AT_TRANS_B, 0);
    if (a->rank < 2 || b->rank < 2 || y->rank < 2)
        return false;
    *q = (Product){.node = n, .batch = y->rank - 2, .dims = y->dims};
    q->M = y->dims[y->rank - 2];
    q->N = y->dims[y->rank - 1];
    q->K = b->dims[b->rank - (tb ? 1 : 2)];
    q->swapped = is_matrices(p, a) && !is_matrices(p, b);
    q->x = n->in[q->swapped], q->w = n->in[!q->swapped];
    q->tx = q->swapped ? !tb : ta;
    q->tw = q->swapped ? !ta : tb;
    bool known = value_known(a) && value_known(b) && value_known(y);
    if (!known && (q->batch || q->swapped || q->tx || q->N < 0 || q->K < 0 || !value_known(q->w)))
        return false;
    if (!known)
        q->M = -1;
    find_matrices(p, q);
    return true;
}

static bool grouped_product(Probe *p, Node *n, Product *q) {
    *q = (Product){.node = n, .dims = n->out[0]->dims, .M = -1, .N = n->out[0]->dims[1]};
    q->x = n->in[0], q->w = n->in[2];
    q->K = q->x->dims[1];
    q->tw = node_int(n, AT_TRANS_B, 0);
    q->offsets = probe_value(p, n->in[1]);
    if (!strided_of(p, q->w, &q->strided))
        q->strided.t = NULL;
    return q->offsets != NULL;
}

/* a[.., M, 1] x b[.., 1, N]: element by element. */
static const Cell *outer_elements(Probe *p, const Product *q, const Part *x) {
    const Value *a = q->node->in[0], *b = q->node->in[1];
    Part pa = part_new(p, x->n), pb = part_new(p, x->n);
    for (int64_t i = 0; i < x->n; i++) {
        int64_t r = x->at[i] / q->N, batch = r / q->M;
        pa.at[i] = (q->batch ? batch_offset(q, a, batch) : 0) + r % q->M;
        pb.at[i] = (q->batch ? batch_offset(q, b, batch) : 0) + x->at[i] % q->N;
    }
    const Cell *ca = probe_part_again(p, q->node->in[0], &pa),
               *cb = ca ? probe_part_again(p, q->node->in[1], &pb) : NULL;
    const double *fa = (const double *)(const void *)ca, *fb = (const double *)(const void *)cb;
    double *out = cb ? ARENA_ARRAY(&p->arena, double, x->n + 1) : NULL;
    for (int64_t i = 0; cb && i < x->n; i++)
        out[i] = fa[i] * fb[i];
    return (const Cell *)(const void *)out;
}

const Cell *part_product(Probe *p, Node *n, const Part *x) {
    Product q;
    bool ok = n->op == OP_MATMUL ? matmul_product(p, n, &q) : grouped_product(p, n, &q);
    if (ok && n->op == OP_MATMUL && q.K == 1 && q.M > 0)
        return outer_elements(p, &q, x);
    if (ok)
        return product_elements(p, &q, x);
    const RTensor *r = p->stuck ? NULL : probe_value(p, n->out[0]);
    Cell *out = r ? ARENA_ARRAY(&p->arena, Cell, x->n + 1) : NULL;
    for (int64_t i = 0; r && i < x->n; i++)
        out[i] = ((const Cell *)(const void *)r->i)[x->at[i]];
    return out;
}
