/* raise_view.c: views (values as rows × features), the maps of their rows, and leaves: values that
 * are not the work of one expert and enter the rows by a gather. */
#include <stdlib.h>
#include <string.h>

#include "ir/infer.h"
#include "passes/raise.h"

void *raise_fail(Region *r, const Node *at, const char *fmt, ...) {
    if (r->why)
        return NULL;
    va_list args;
    va_start(args, fmt);
    char text[512];
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    r->why = arena_strdup(&r->c->g->arena, text);
    r->where = at;
    return NULL;
}

/* ---- maps ---- */

RowMap *map_new(Region *r, int64_t n) {
    RowMap *m = ARENA_NEW(&r->arena, RowMap);
    m->n = n;
    m->at = ARENA_ARRAY(&r->arena, Entry, n ? n : 1);
    for (int64_t i = 0; i < n; i++)
        m->at[i] = (Entry){ROW_FREE, ROW_FREE, ROW_FREE};
    return m;
}

void entry_merge(Entry *into, Entry with) {
    if (with.t == ROW_FREE)
        return;
    if (into->t == ROW_FREE) {
        *into = with;
        return;
    }
    if (into->t != with.t)
        into->t = ROW_VARIES;
    if (into->k != with.k)
        into->k = ROW_VARIES;
    if (into->e != with.e)
        into->e = ROW_VARIES;
}

/* ---- views ---- */

bool view_equal_all(const View *w) {
    for (int i = 1; i < w->n; i++)
        if (w->v[i] != w->v[0])
            return false;
    return true;
}

View view_single(Region *r, Value *v, unsigned rows, RowMap *map) {
    View w = {.n = 1, .rows = rows};
    w.v = ARENA_NEW(&r->arena, Value *);
    w.map = ARENA_NEW(&r->arena, RowMap *);
    w.v[0] = v;
    w.map[0] = map;
    return w;
}

View view_collapse(Region *r, const View *w) {
    RowMap *m = map_new(r, w->map[0]->n);
    for (int i = 0; i < w->n; i++) {
        ASSERT(w->map[i]->n == m->n);
        for (int64_t k = 0; k < m->n; k++)
            entry_merge(&m->at[k], w->map[i]->at[k]);
    }
    return view_single(r, w->v[0], w->rows, m);
}

bool view_dims(const View *w, int i, int64_t *dims) {
    const Value *v = w->v[i];
    int open = -1;
    int64_t rest = w->map[i]->n;
    for (int k = 0; k < v->rank; k++) {
        dims[k] = v->dims[k];
        if (v->dims[k] < 0) {
            if (open >= 0 || !(w->rows >> k & 1))
                return false;
            open = k;
        } else if (w->rows >> k & 1) {
            if (v->dims[k] == 0 || rest % v->dims[k])
                return false;
            rest /= v->dims[k];
        }
    }
    if (open >= 0)
        dims[open] = rest;
    else if (rest != 1)
        return false;
    return true;
}

int view_features(const View *w, int64_t *dims) {
    int n = 0;
    for (int k = 0; k < w->v[0]->rank; k++)
        if (!(w->rows >> k & 1))
            dims[n++] = w->v[0]->dims[k];
    return n;
}

/* Row position of the operand for each row position of the result: strides are 0 where the operand
 * is broadcast. */
static RowMap *project_map(Region *r, const View *result, int i, const Value *o, unsigned rows,
                           const int64_t *odims) {
    int64_t dims[MAX_RANK], stride[MAX_RANK], ostride[MAX_RANK], n = 1;
    const Value *v = result->v[i];
    if (!view_dims(result, i, dims))
        return NULL;
    for (int k = o->rank - 1; k >= 0; k--)
        if (rows >> k & 1) {
            ostride[k] = n;
            n *= odims[k];
        }
    int axes[MAX_RANK], naxes = 0;
    for (int k = 0; k < v->rank; k++) {
        if (!(result->rows >> k & 1))
            continue;
        int ko = k - (v->rank - o->rank);
        stride[naxes] = ko >= 0 && odims[ko] != 1 ? ostride[ko] : 0;
        axes[naxes++] = k;
    }
    RowMap *m = map_new(r, n);
    for (int64_t p = 0; p < result->map[i]->n; p++) {
        int64_t q = p, at = 0;
        for (int a = naxes - 1; a >= 0; a--) {
            at += q % dims[axes[a]] * stride[a];
            q /= dims[axes[a]];
        }
        entry_merge(&m->at[at], result->map[i]->at[p]);
    }
    return m;
}

void view_project(Region *r, const View *result, Value **operand, View *out) {
    int n = result->n, shift = result->v[0]->rank - operand[0]->rank;
    *out = (View){.n = n};
    out->v = ARENA_ARRAY(&r->arena, Value *, n);
    out->map = ARENA_ARRAY(&r->arena, RowMap *, n);
    for (int k = 0; k < operand[0]->rank; k++)
        if (result->rows >> (k + shift) & 1)
            out->rows |= 1u << k;
    for (int i = 0; i < n; i++) {
        int64_t dims[MAX_RANK], odims[MAX_RANK];
        out->v[i] = operand[i];
        bool same = shift == 0 && view_dims(result, i, dims);
        for (int k = 0; k < operand[i]->rank; k++) {
            odims[k] = operand[i]->dims[k];
            if (odims[k] < 0 && view_dims(result, i, dims))
                odims[k] = dims[k + shift];
            if (result->rows >> (k + shift) & 1)
                same = same && odims[k] == dims[k];
        }
        out->map[i] =
            same ? result->map[i] : project_map(r, result, i, operand[i], out->rows, odims);
        if (!out->map[i])
            out->map[i] = map_new(r, 0);
    }
}

/* ---- leaves ---- */

static LeafKind map_kind(const Region *r, const RowMap *m, const int64_t *pos) {
    const Selection *s = r->s;
    bool token = m->n == s->T, pair = m->n == s->T * s->K, expert = m->n == s->E,
         dense = m->n == s->T * s->E;
    if (m->n == 1)
        return LEAF_UNIFORM;
    for (int64_t i = 0; i < m->n; i++) {
        int64_t at =
            pos ? pos[i] : i; /* position i of the canonical order is position `at` of the map */
        Entry x = m->at[at];
        if (x.t == ROW_FREE)
            continue;
        token = token && x.t == i;
        pair = pair && x.t == i / s->K && x.k == i % s->K;
        expert = expert && x.e == i;
        dense = dense && x.t == i / s->E && x.e == i % s->E;
    }
    return token    ? LEAF_TOKEN
           : pair   ? LEAF_PAIR
           : dense  ? LEAF_DENSE
           : expert ? LEAF_EXPERT
                    : LEAF_NONE;
}

/* Next permutation in lexicographic order; false after the last. */
static bool next_perm(int *p, int n) {
    int i = n - 2;
    while (i >= 0 && p[i] >= p[i + 1])
        i--;
    if (i < 0)
        return false;
    int j = n - 1;
    while (p[j] <= p[i])
        j--;
    int t = p[i];
    p[i] = p[j];
    p[j] = t;
    for (int a = i + 1, b = n - 1; a < b; a++, b--) {
        t = p[a];
        p[a] = p[b];
        p[b] = t;
    }
    return true;
}

LeafKind view_leaf(Region *r, const View *w, int *perm) {
    int64_t dims[MAX_RANK];
    int axes[MAX_RANK], n = 0;
    if (!view_dims(w, 0, dims))
        return LEAF_NONE;
    for (int k = 0; k < w->v[0]->rank; k++)
        if (w->rows >> k & 1)
            axes[n++] = k;
    const RowMap *m = w->map[0];
    int order[MAX_RANK];
    for (int i = 0; i < n; i++)
        order[i] = i;
    if (n > 4)
        return LEAF_NONE;
    int64_t *pos = NULL;
    do {
        bool identity = true;
        for (int i = 0; i < n; i++)
            identity = identity && order[i] == i;
        if (!identity) {
            int64_t stride[MAX_RANK], s = 1;
            for (int i = n - 1; i >= 0; i--) {
                stride[i] = s;
                s *= dims[axes[i]];
            }
            if (!pos)
                pos = ARENA_ARRAY(&r->arena, int64_t, m->n + 1);
            for (int64_t p = 0; p < m->n; p++) {
                int64_t q = p, at = 0;
                for (int i = n - 1; i >= 0; i--) {
                    at += q % dims[axes[order[i]]] * stride[order[i]];
                    q /= dims[axes[order[i]]];
                }
                pos[p] = at;
            }
        }
        LeafKind kind = map_kind(r, m, identity ? NULL : pos);
        if (kind != LEAF_NONE) {
            for (int i = 0; i < n; i++)
                perm[i] = axes[order[i]];
            return kind;
        }
    } while (next_perm(order, n));
    return LEAF_NONE;
}

/* ---- the dispatch and gathers into rows ---- */

Value *raise_node(Region *r, Op op, Value *const *in, int nin, const Attr *attrs, int nattrs) {
    Diag d = {0};
    Node *n = build_node(&r->b, op, in, nin, op_info[op].nout);
    for (int i = 0; i < nattrs; i++) {
        const Attr *a = &attrs[i];
        if (attr_info[a->key].kind == ATTR_INT)
            node_set_int(n, a->key, a->i);
        else if (attr_info[a->key].kind == ATTR_INTS)
            node_set_ints(n, a->key, a->ints.at, a->ints.n);
        else if (attr_info[a->key].kind == ATTR_FLOAT)
            node_set_float(n, a->key, a->f);
        else if (attr_info[a->key].kind == ATTR_STR)
            node_set_str(n, a->key, a->s);
    }
    Value *v = n->out[0];
    if (!node_infer(n, &d)) {
        v = raise_fail(r, n, "%s", d.messages.n ? d.messages.at[0].text : "rows do not fit");
        r->where = r->b.before; /* n itself goes away */
    }
    diag_free(&d);
    return v;
}

/* [T,E] of 0..E-1 in each row. */
static Value *everyone(Region *r) {
    int E = r->s->E;
    int64_t *each = ARENA_ARRAY(&r->g->arena, int64_t, E), row[] = {1, E}, te[] = {r->s->T, E};
    for (int e = 0; e < E; e++)
        each[e] = e;
    Tensor t = {.dtype = DT_I64, .rank = 1, .dims = {E}, .data = each};
    return op_expand(&r->b, op_reshape(&r->b, op_const(&r->b, &t), 2, row), 2, te);
}

bool raise_dispatch(Region *r) {
    if (r->dispatch)
        return true;
    const Selection *s = r->s;
    int64_t tk[] = {s->T, s->K}, te[] = {s->T, s->E};
    const char *score = NULL;
    Value *idx = r->sel ? r->sel
                 : s->kind == SELECT_ALL
                     ? everyone(r)
                     : op_reshape(&r->b, op_cast(&r->b, s->value, DT_I64), 2, tk);
    Value *logits = router_logits(s, &score);
    if (logits)
        logits = op_reshape(&r->b, logits, 2, te);
    Attr attrs[] = {{.key = AT_EXPERTS, .i = s->E},
                    {.key = AT_TOP_K, .i = s->kind == SELECT_INDEX ? s->K : s->top_k},
                    {.key = AT_LAYER, .i = r->layer},
                    {.key = AT_SCORE, .s = logits ? score : "none"}};
    r->dispatch = op_node(&r->b, OP_DISPATCH, (Value *[]){idx, logits}, logits ? 2 : 1, attrs,
                          COUNT_OF(attrs));
    return true;
}

Value *dispatch_out(Region *r, int i) {
    raise_dispatch(r);
    return r->dispatch->out[i];
}

Value *reshape_rows(Region *r, Value *v, int nf, const int64_t *f) {
    int64_t dims[MAX_RANK];
    dims[0] = v->dims[0];
    for (int i = 0; i < nf; i++)
        dims[i + 1] = f[i];
    if (v->rank == nf + 1 && (nf == 0 || !memcmp(v->dims, dims, sizeof *dims * (size_t)(nf + 1))))
        return v;
    Attr a = {.key = AT_DIMS, .ints = {nf + 1, dims}};
    return raise_node(r, OP_RESHAPE, &v, 1, &a, 1);
}

Value *view_rows_first(Region *r, const View *w, const int *perm, int64_t n) {
    Value *v = w->v[0];
    int64_t order[MAX_RANK], dims[MAX_RANK];
    int at = 0, nd = 1;
    bool moved = false;
    for (int k = 0; k < v->rank; k++)
        if (w->rows >> k & 1) {
            order[at] = perm[at];
            at++;
        }
    for (int k = 0; k < v->rank; k++)
        if (!(w->rows >> k & 1)) {
            order[at++] = k;
            dims[nd++] = v->dims[k];
        }
    for (int k = 0; k < v->rank; k++)
        moved = moved || order[k] != k;
    if (moved)
        v = op_transpose(&r->b, v, order);
    dims[0] = n;
    return op_reshape(&r->b, v, nd, dims);
}

static Value *gather_rows(Region *r, Value *x, Value *idx, Value *inv) {
    return op_node(&r->b, OP_GATHER_ROWS, (Value *[]){x, idx, inv}, 3, NULL, 0)->out[0];
}

/* t*E + e of each row; -1 for padding. */
static Value *row_te(Region *r) {
    if (r->row_te)
        return r->row_te;
    Value *t = dispatch_out(r, 1), *e = dispatch_out(r, 3), *zero = op_const_i(&r->b, 0);
    Value *te =
        op_binary(&r->b, OP_ADD, op_binary(&r->b, OP_MUL, t, op_const_i(&r->b, r->s->E)), e);
    r->row_te = op_where(&r->b, op_binary(&r->b, OP_LT, t, zero), op_const_i(&r->b, -1), te);
    return r->row_te;
}

Rows raise_leaf(Region *r, const View *w, LeafKind kind, const int *perm) {
    const Selection *s = r->s;
    int64_t f[MAX_RANK];
    int nf = view_features(w, f);
    Rows out = {0};
    int64_t column[] = {0, 1};
    switch (kind) {
    case LEAF_UNIFORM:
        out.v = op_reshape(&r->b, w->v[0], nf, f);
        out.uniform = true;
        break;
    case LEAF_TOKEN:
        out.v = gather_rows(r, view_rows_first(r, w, perm, s->T), dispatch_out(r, 1),
                            dispatch_out(r, 4));
        break;
    case LEAF_PAIR:
        column[0] = s->T * s->K;
        out.v = gather_rows(r, view_rows_first(r, w, perm, column[0]), dispatch_out(r, 2),
                            op_reshape(&r->b, dispatch_out(r, 4), 2, column));
        break;
    case LEAF_DENSE:
        column[0] = s->T * s->E;
        out.v = gather_rows(r, view_rows_first(r, w, perm, column[0]), row_te(r),
                            op_reshape(&r->b, dispatch_out(r, 5), 2, column));
        break;
    case LEAF_EXPERT:
        out.v = op_gather(&r->b, view_rows_first(r, w, perm, s->E), dispatch_out(r, 3), 0);
        break;
    case LEAF_NONE:
        break;
    }
    return out;
}
