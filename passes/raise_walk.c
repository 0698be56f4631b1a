/* raise_walk.c: the walker: from the combine back to the leaves, emitting the same computation over
 * routed rows.
 *
 * A view says which axes of a value are rows, and for each row which token, slot and expert it
 * stands for. Demanding the rows of a view is answered by (1) a leaf, if the value is not one
 * expert's work and its rows are all tokens, pairs, experts or token-expert pairs in order; (2) the
 * memo; (3) the rule of its operation, which demands the rows of its operands. E branches are
 * walked in lockstep as one view until they meet in one value again. */
#include <stdlib.h>
#include <string.h>

#include "passes/raise.h"

struct Memo {
    View view;
    Rows rows;
};

static bool map_same(const RowMap *a, const RowMap *b) {
    return a == b || (a->n == b->n && !memcmp(a->at, b->at, sizeof *a->at * (size_t)a->n));
}

static const Rows *memo_find(const Region *r, const View *w) {
    for (int i = r->nmemo - 1; i >= 0; i--) {
        const View *m = &r->memo[i].view;
        if (m->n != w->n || m->rows != w->rows || m->v[0] != w->v[0])
            continue;
        bool same = true;
        for (int k = 0; k < w->n && same; k++)
            same = m->v[k] == w->v[k] && map_same(m->map[k], w->map[k]);
        if (same)
            return &r->memo[i].rows;
    }
    return NULL;
}

static void memo_put(Region *r, const View *w, Rows rows) {
    if (r->nmemo == r->memo_cap) {
        r->memo_cap = r->memo_cap ? 2 * r->memo_cap : 64;
        r->memo = xrealloc(r->memo, sizeof *r->memo * (size_t)r->memo_cap);
    }
    r->memo[r->nmemo++] = (struct Memo){*w, rows};
}

static const Rows failed = {0};

static bool fact(const Region *r, const bool *table, const Value *v) {
    return v->id < r->facts->n && table[v->id];
}

/* The same operation with the same meaning in every branch. */
static bool lockstep(Region *r, const View *w) {
    const Node *a = w->v[0]->def;
    for (int i = 1; i < w->n; i++) {
        const Node *b = w->v[i]->def;
        if (a->op == b->op && a->nin == b->nin && w->v[0]->index == w->v[i]->index &&
            w->v[0]->rank == w->v[i]->rank)
            continue;
        raise_fail(r, b, "expert %d computes '%s' where expert 0 computes '%s'", i,
                   op_info[b->op].name, op_info[a->op].name);
        return false;
    }
    return true;
}

static Value **operands(Region *r, const View *w, int j) {
    Value **v = ARENA_ARRAY(&r->arena, Value *, w->n);
    const Node *a = w->v[0]->def;
    for (int i = 0; i < w->n; i++) {
        const Node *b = w->v[i]->def;
        bool crossed =
            (op_info[a->op].flags & OPF_COMMUTE) && a->in[0]->def->op != b->in[0]->def->op &&
            a->in[0]->def->op == b->in[1]->def->op && a->in[1]->def->op == b->in[0]->def->op;
        v[i] = b->in[crossed ? 1 - j : j];
    }
    return v;
}

/* ---- elementwise ---- */

/* A value shared by all experts whose rows are neither all tokens nor all pairs (one per sequence,
 * say) is expanded to the rows of the result first. */
static Rows rows_expanded(Region *r, const View *w, Value *o) {
    int64_t dims[MAX_RANK];
    Value *v = w->v[0];
    for (int k = 0; k < v->rank; k++) {
        int ko = k - (v->rank - o->rank);
        dims[k] = w->rows >> k & 1 ? v->dims[k] : ko >= 0 ? o->dims[ko] : 1;
        if (dims[k] < 0)
            return failed;
    }
    View full = view_single(r, op_expand(&r->b, o, v->rank, dims), w->rows, w->map[0]);
    int perm[MAX_RANK];
    LeafKind kind = view_leaf(r, &full, perm);
    return kind == LEAF_NONE ? failed : raise_leaf(r, &full, kind, perm);
}

static Rows rows_operand(Region *r, const View *w, int j, int nf) {
    Value **v = operands(r, w, j);
    View o;
    int64_t f[MAX_RANK], dims[MAX_RANK];
    int perm[MAX_RANK];
    view_project(r, w, v, &o);
    Rows x;
    bool shared = w->n == 1 && !fact(r, r->facts->hot, v[0]) && dtype_is_float(v[0]->dtype);
    if (shared && o.rows && view_leaf(r, &o, perm) == LEAF_NONE &&
        !fact(r, r->facts->chosen, v[0]) && o.map[0]->n != w->map[0]->n &&
        (x = rows_expanded(r, w, v[0])).v)
        return x;
    x = raise_rows(r, &o);
    int of = view_features(&o, f);
    if (!x.v || x.uniform || of >= nf)
        return x;
    for (int k = 0; k < nf; k++)
        dims[k] = k < nf - of ? 1 : f[k - (nf - of)];
    x.v = reshape_rows(r, x.v, nf, dims);
    return x;
}

static Rows rows_elementwise(Region *r, const View *w) {
    const Node *n = w->v[0]->def;
    int64_t f[MAX_RANK];
    int nf = view_features(w, f);
    Value *in[3];
    Rows out = {.uniform = true};
    for (int j = 0; j < n->nin; j++) {
        Rows x = rows_operand(r, w, j, nf);
        if (!x.v)
            return failed;
        in[j] = x.v;
        out.uniform = out.uniform && x.uniform;
    }
    out.v = raise_node(r, n->op, in, n->nin, n->attrs, n->nattr);
    return out;
}

/* ---- reductions and row functions over features ---- */

static int feature_of(const View *w, int axis) {
    int n = 0;
    for (int k = 0; k < axis; k++)
        n += !(w->rows >> k & 1);
    return n;
}

/* The operand's view of a reduction: reduced row axes come back as rows of the map given by `rows`.
 */
static View reduced_operand(Region *r, const View *w, unsigned *reduced) {
    const Node *n = w->v[0]->def;
    const Value *x = n->in[0];
    const int64_t *axes;
    int count = node_ints(n, AT_AXES, &axes), at = 0;
    *reduced = node_attr(n, AT_AXES) ? 0 : (1u << x->rank) - 1;
    for (int i = 0; i < count; i++)
        *reduced |= 1u << (axes[i] < 0 ? axes[i] + x->rank : axes[i]);
    bool keep = node_int(n, AT_KEEPDIMS, 1);
    View o = {.n = w->n, .map = w->map};
    o.v = ARENA_ARRAY(&r->arena, Value *, w->n);
    for (int i = 0; i < w->n; i++)
        o.v[i] = w->v[i]->def->in[0];
    for (int k = 0; k < x->rank; k++) {
        if ((*reduced >> k & 1) && !keep)
            continue;
        if (!(*reduced >> k & 1) && (w->rows >> at & 1))
            o.rows |= 1u << k;
        at++;
    }
    return o;
}

/* ---- the sum over the K slots of w * (idx == e): the weight of the one slot that holds e ---- */

static Node *below_casts(Value *v) {
    while (v->def->op == OP_CAST)
        v = v->def->in[0];
    return v->def;
}

static bool is_comparison(const Region *r, const Value *v) {
    while (v->def->op == OP_CAST || v->def->op == OP_RESHAPE)
        v = v->def->in[0];
    return v->def->op == OP_EQ && fact(r, r->facts->chosen, v);
}

static bool is_zero_scalar(const Value *v) {
    return value_is_const(v) && value_count(v) == 1 && tensor_get_f(value_const(v), 0) == 0;
}

/* The factors of mul(weight, mask), or of where(mask, weight, 0), in all branches. */
static bool mask_and_weight(const Region *r, const View *o, Value **mask, Value **weight) {
    int at = -1;
    for (int i = 0; i < o->n; i++) {
        const Node *b = below_casts(o->v[i]);
        if (b->op != below_casts(o->v[0])->op || (b->op != OP_MUL && b->op != OP_WHERE))
            return false;
        for (int j = 0; i == 0 && b->op == OP_MUL && j < 2; j++)
            if (is_comparison(r, b->in[j]))
                at = j;
        if (b->op == OP_WHERE)
            at = is_zero_scalar(b->in[2]) ? 0 : -1;
        if (at < 0)
            return false;
        mask[i] = b->in[at];
        weight[i] = b->in[1 - at];
    }
    return true;
}

/* The rows of a sum's operand: those of the sum, times the slots on `axis`. */
static bool slot_rows(Region *r, const View *w, const View *o, int axis, View *full) {
    int K = r->s->K;
    *full = *o;
    full->rows |= 1u << axis;
    full->map = ARENA_ARRAY(&r->arena, RowMap *, w->n);
    for (int i = 0; i < w->n; i++) {
        int64_t dims[MAX_RANK], inner = 1;
        const RowMap *from = w->map[i];
        full->map[i] = map_new(r, from->n * K);
        for (int k = axis + 1; k < o->v[i]->rank; k++)
            if (o->rows >> k & 1)
                inner *= o->v[i]->dims[k];
        for (int64_t p = 0; p < from->n; p++)
            for (int k = 0; k < K; k++) {
                Entry e = from->at[p];
                if (e.t != ROW_FREE)
                    e.k = k;
                full->map[i]->at[(p / inner * K + k) * inner + p % inner] = e;
            }
        if (!view_dims(full, i, dims))
            return false;
    }
    return true;
}

/* Is the mask of each row (t,k) of branch e exactly idx[t,k] == e? */
static bool mask_holds(const Region *r, const View *m) {
    for (int i = 0; i < m->n; i++) {
        const RTensor *t = probe_value(r->probe, m->v[i]);
        if (!t || t->count != m->map[i]->n)
            return false;
        for (int64_t p = 0; p < t->count; p++) {
            Entry e = m->map[i]->at[p];
            if (e.t == ROW_FREE)
                continue;
            if (e.t < 0 || e.k < 0 || e.e < 0)
                return false;
            bool on = dtype_is_float(t->dtype) ? t->f[p] == 1 : t->i[p] == 1;
            if (on != (r->probe->route.idx[e.t * r->s->K + e.k] == e.e))
                return false;
        }
    }
    return true;
}

static Rows rows_masked_sum(Region *r, const View *w, const View *o, int axis) {
    Value **mask = ARENA_ARRAY(&r->arena, Value *, w->n);
    Value **weight = ARENA_ARRAY(&r->arena, Value *, w->n);
    View full, masks, weights;
    int64_t f[MAX_RANK];
    if (!mask_and_weight(r, o, mask, weight) || !slot_rows(r, w, o, axis, &full))
        return failed;
    view_project(r, &full, mask, &masks);
    view_project(r, &full, weight, &weights);
    if (!mask_holds(r, &masks))
        return failed;
    Rows x = raise_rows(r, &weights);
    int nf = view_features(w, f);
    if (x.v && !x.uniform)
        x.v = reshape_rows(r, x.v, nf, f);
    return x;
}

/* ---- reductions ---- */

static Rows rows_reduce(Region *r, const View *w) {
    const Node *n = w->v[0]->def;
    unsigned reduced;
    View o = reduced_operand(r, w, &reduced);
    bool keep = node_int(n, AT_KEEPDIMS, 1);
    int rank = o.v[0]->rank, lead, count = 0;
    int64_t axes[MAX_RANK];
    for (int k = 0; k < rank; k++) /* K slots are summed here? */
        if ((reduced >> k & 1) && reduced == 1u << k && n->op == OP_REDUCE_SUM &&
            o.v[0]->dims[k] == r->s->K) {
            Rows x = rows_masked_sum(r, w, &o, k);
            if (x.v)
                return x;
        }
    Rows x = raise_rows(r, &o);
    if (!x.v)
        return failed;
    lead = x.uniform ? 0 : 1;
    for (int k = 0; k < rank; k++)
        if (reduced >> k & 1)
            axes[count++] = lead + feature_of(&o, k);
    Attr attrs[] = {{.key = AT_AXES, .ints = {count, axes}}, {.key = AT_KEEPDIMS, .i = keep}};
    x.v = raise_node(r, n->op, &x.v, 1, attrs, 2);
    return x;
}

static Rows rows_along_axis(Region *r, const View *w) {
    const Node *n = w->v[0]->def;
    int axis = (int)node_int(n, AT_AXIS, -1);
    axis += axis < 0 ? w->v[0]->rank : 0;
    if (w->rows >> axis & 1)
        return raise_fail(r, n, "'%s' mixes rows", op_info[n->op].name), failed;
    View o = *w;
    o.v = operands(r, w, 0);
    Rows x = raise_rows(r, &o);
    if (!x.v)
        return failed;
    Attr attrs[4];
    int count = 0;
    for (int i = 0; i < n->nattr && count < 3; i++)
        if (n->attrs[i].key != AT_AXIS)
            attrs[count++] = n->attrs[i];
    attrs[count++] = (Attr){.key = AT_AXIS, .i = (x.uniform ? 0 : 1) + feature_of(w, axis)};
    x.v = raise_node(r, n->op, &x.v, 1, attrs, count);
    return x;
}

static Rows rows_concat(Region *r, const View *w) {
    const Node *n = w->v[0]->def;
    int axis = (int)node_int(n, AT_AXIS, 0);
    axis += axis < 0 ? w->v[0]->rank : 0;
    Value **parts = ARENA_ARRAY(&r->arena, Value *, n->nin);
    for (int j = 0; j < n->nin; j++) {
        View o = *w;
        o.v = ARENA_ARRAY(&r->arena, Value *, w->n);
        for (int i = 0; i < w->n; i++)
            o.v[i] = w->v[i]->def->in[j];
        Rows x = raise_rows(r, &o);
        if (!x.v)
            return failed;
        if (x.uniform)
            return raise_fail(r, n, "a constant is joined to an expert's rows"), failed;
        parts[j] = x.v;
    }
    Attr a = {.key = AT_AXIS, .i = 1 + feature_of(w, axis)};
    return (Rows){.v = raise_node(r, OP_CONCAT, parts, n->nin, &a, 1)};
}

/* ---- matmul ---- */

typedef struct Product {
    View a, b;         /* operands */
    bool row_m, row_n; /* the result's last two axes are rows */
    bool ta, tb;
} Product;

/* What branch i's operand on `side` is asked for: an operand is broadcast like an elementwise one,
 * but for the matrix axis that it does not have. */
static RowMap *product_rows(Region *r, const View *w, const Product *p, int side, int i,
                            unsigned *rows) {
    const Value *y = w->v[i], *x = y->def->in[side];
    int64_t dims[MAX_RANK], odims[MAX_RANK], strides[MAX_RANK] = {0}, size = 1;
    int rank = y->rank, orank = x->rank, shift = rank - orank;
    bool swapped = side ? p->tb : p->ta, last = (side == 1) != swapped;
    int own = last ? orank - 1 : orank - 2, mine = side ? rank - 1 : rank - 2;
    if (!view_dims(w, i, dims))
        return NULL;
    *rows = w->rows >> mine & 1 ? 1u << own : 0;
    for (int k = 0; k < orank - 2; k++) {
        odims[k] = x->dims[k] < 0 ? dims[k + shift] : x->dims[k];
        *rows |= w->rows >> (k + shift) & 1 ? 1u << k : 0;
    }
    odims[own] = dims[mine];
    for (int k = orank - 1; k >= 0; k--)
        if (*rows >> k & 1) {
            strides[k] = odims[k] == 1 ? 0 : size;
            size *= odims[k];
        }
    RowMap *m = map_new(r, size);
    for (int64_t q = 0; q < w->map[i]->n; q++) {
        int64_t rest = q, at = 0;
        for (int k = rank - 1; k >= 0; k--) {
            if (!(w->rows >> k & 1))
                continue;
            int ok = k >= rank - 2 ? (k == mine ? own : -1) : k - shift;
            at += ok >= 0 ? rest % dims[k] * strides[ok] : 0;
            rest /= dims[k];
        }
        entry_merge(&m->at[at], w->map[i]->at[q]);
    }
    return m;
}

static bool product_views(Region *r, const View *w, Product *p) {
    const Node *n = w->v[0]->def;
    int rank = w->v[0]->rank;
    *p = (Product){.ta = node_int(n, AT_TRANS_A, 0), .tb = node_int(n, AT_TRANS_B, 0)};
    if (n->in[0]->rank < 2 || n->in[1]->rank < 2 || rank < 2)
        return false;
    p->row_m = w->rows >> (rank - 2) & 1;
    p->row_n = w->rows >> (rank - 1) & 1;
    if (p->row_m && p->row_n)
        return false;
    for (int side = 0; side < 2; side++) {
        View *o = side ? &p->b : &p->a;
        *o = (View){.n = w->n};
        o->v = ARENA_ARRAY(&r->arena, Value *, w->n);
        o->map = ARENA_ARRAY(&r->arena, RowMap *, w->n);
        for (int i = 0; i < w->n; i++) {
            o->v[i] = w->v[i]->def->in[side];
            if (!(o->map[i] = product_rows(r, w, p, side, i, &o->rows)))
                return false;
        }
    }
    return true;
}

/* rows × one matrix per expert. x is [R, …] with K features in all. */
static Value *grouped(Region *r, const Node *at, Rows x, const Weights *w, bool out_first) {
    /* The view's matrix is [in, out], or [out, in] if out_first; stored the other way round if
     * swapped. */
    bool trans_b = out_first != w->swapped;
    const Value *m = w->v[0];
    int64_t in = m->dims[m->rank - (trans_b ? 1 : 2)];
    int64_t count = 1;
    for (int k = 1; k < x.v->rank; k++)
        count *= x.v->dims[k];
    if (x.uniform || count != in)
        return raise_fail(r, at, "an expert's matrix meets rows of %lld features (expected %lld)",
                          (long long)count, (long long)in);
    Value **ops = ARENA_ARRAY(&r->arena, Value *, w->n + 2);
    ops[0] = reshape_rows(r, x.v, 1, &in);
    ops[1] = dispatch_out(r, 0);
    memcpy(ops + 2, w->v, sizeof *ops * (size_t)w->n);
    Attr t = {.key = AT_TRANS_B, .i = 1};
    return ops[0] ? raise_node(r, OP_GROUPED_MATMUL, ops, w->n + 2, &t, trans_b ? 1 : 0) : NULL;
}

static Value *product(Region *r, Value *a, Value *b, bool ta, bool tb) {
    Attr attrs[] = {{.key = AT_TRANS_A, .i = ta}, {.key = AT_TRANS_B, .i = tb}};
    return raise_node(r, OP_MATMUL, (Value *[]){a, b}, 2, attrs, 2);
}

/* A matrix that all experts share, or rows against rows. */
static Value *plain_product(Region *r, const Node *at, const Product *p, Rows a, Rows b) {
    if (b.uniform) {
        bool m_is_row = p->row_m || p->row_n;
        if (!p->row_m && p->row_n)
            return raise_fail(r, at, "rows of a product that are columns");
        bool vector = m_is_row; /* [R, …, K] without the M axis */
        return product(r, a.v, b.v, vector ? false : p->ta, p->tb);
    }
    if (a.uniform && p->row_n) /* W[M,K] x[K,R] */
        return product(r, b.v, a.v, false, !p->ta);
    if (!p->row_m && !p->row_n)
        return product(r, a.v, b.v, p->ta, p->tb);
    return raise_fail(r, at, "a product of rows with rows");
}

static Rows rows_matmul(Region *r, const View *w) {
    const Node *n = w->v[0]->def;
    Product p;
    Weights weights;
    Rows out = {0};
    int64_t f[MAX_RANK];
    int nf = view_features(w, f);
    if (!product_views(r, w, &p))
        return raise_fail(r, n, "a product whose rows cannot be followed"), failed;
    bool a_weight = raise_weights(r, &p.a, &weights),
         b_weight = !a_weight && raise_weights(r, &p.b, &weights);
    if (a_weight || b_weight) {
        Rows x = raise_rows(r, a_weight ? &p.b : &p.a);
        /* The view's matrix axes: of a, [M,K] (out first) unless transposed; of b, [K,N] (in
         * first). */
        bool out_first = a_weight ? !p.ta : p.tb;
        if (x.v)
            out.v = grouped(r, n, x, &weights, out_first);
    } else {
        Rows a = raise_rows(r, &p.a), b = a.v ? raise_rows(r, &p.b) : failed;
        if (b.v) {
            out.v = plain_product(r, n, &p, a, b);
            out.uniform = a.uniform && b.uniform;
        }
    }
    if (out.v && !out.uniform)
        out.v = reshape_rows(r, out.v, nf, f);
    return out;
}

/* ---- the rules ---- */

/* Branches that are each expert's gate for every token: one [T,E] matrix; or each choice's weight:
 * [T,K]. */
static Rows rows_gates(Region *r, const View *w) {
    int64_t f[MAX_RANK], column[] = {r->s->T, 1};
    int width = w->n;
    int nf = view_features(w, f), perm[MAX_RANK];
    for (int k = 0; k < nf; k++)
        if (f[k] != 1)
            return failed;
    for (int i = 0; i < w->n; i++) {
        View one = {.n = 1, .v = &w->v[i], .rows = w->rows, .map = &w->map[i]};
        if (!fact(r, r->facts->chosen, w->v[i]) || fact(r, r->facts->hot, w->v[i]) ||
            !value_known(w->v[i]) || view_leaf(r, &one, perm) != LEAF_TOKEN ||
            !dtype_is_float(w->v[i]->dtype))
            return failed;
    }
    Value **columns = ARENA_ARRAY(&r->arena, Value *, w->n);
    for (int i = 0; i < w->n; i++)
        columns[i] = op_reshape(&r->b, w->v[i], 2, column);
    RowMap *m = map_new(r, r->s->T * width);
    for (int64_t i = 0; i < m->n; i++)
        m->at[i] = (Entry){(int32_t)(i / width), ROW_VARIES, (int32_t)(i % width)};
    View all = view_single(r, op_concat(&r->b, columns, w->n, 1), 3, m);
    Rows x = raise_leaf(r, &all, r->lanes ? LEAF_PAIR : LEAF_DENSE, (int[]){0, 1});
    x.v = reshape_rows(r, x.v, nf, f);
    return x;
}

static Rows rows_branches_leaf(Region *r, const View *w) {
    bool weights = !r->lanes;
    for (int i = 0; i < w->n; i++)
        weights = weights && !fact(r, r->facts->activation, w->v[i]) &&
                  !fact(r, r->facts->chosen, w->v[i]) && w->v[i]->id < r->facts->n;
    if (weights && w->map[0]->n == 1 && dtype_is_float(w->v[0]->dtype))
        return (Rows){.v = op_gather(&r->b, raise_stack(r, w), dispatch_out(r, 3), 0)};
    if (w->v[0]->def->op == OP_REDUCE_SUM) {
        char *why = r->why;
        Rows x = rows_reduce(r, w);
        if (x.v)
            return x;
        r->why = why;
    }
    return rows_gates(r, w);
}

static Rows rows_of_op(Region *r, const View *w) {
    const Node *n = w->v[0]->def;
    View o;
    if (w->n > 1 && !lockstep(r, w))
        return failed;
    if (op_info[n->op].flags & OPF_ELEM)
        return rows_elementwise(r, w);
    switch (view_move(r, w, &o)) {
    case MOVE_DONE:
        return raise_move(r, w, &o);
    case MOVE_FAIL:
        return raise_fail(r, n, "'%s' takes rows where they cannot be followed",
                          op_info[n->op].name),
               failed;
    case MOVE_NONE:
        break;
    }
    switch (n->op) {
    case OP_MATMUL:
        return rows_matmul(r, w);
    case OP_REDUCE_SUM:
    case OP_REDUCE_MAX:
    case OP_REDUCE_MIN:
    case OP_REDUCE_PROD:
        return rows_reduce(r, w);
    case OP_SOFTMAX:
    case OP_LOG_SOFTMAX:
    case OP_CUMSUM:
        return rows_along_axis(r, w);
    case OP_CONCAT:
        return rows_concat(r, w);
    default:
        return raise_fail(r, n, "'%s' is not part of an expert that can be raised",
                          op_info[n->op].name),
               failed;
    }
}

/* Pairs and token-expert pairs of a value that is only moved data: taken from where it comes from,
 * so that a token that was copied K times is gathered from the one there was. */
static bool better_below(Region *r, const View *w, LeafKind kind, View *o) {
    int perm[MAX_RANK];
    if (kind != LEAF_PAIR && kind != LEAF_DENSE)
        return false;
    return view_move(r, w, o) == MOVE_DONE && o->n == 1 && !fact(r, r->facts->hot, o->v[0]) &&
           view_leaf(r, o, perm) != LEAF_NONE;
}

/* A product with a weight, or computed from one, of what the router saw. */
static bool is_work(const Region *r, const Value *v, int *fuel) {
    const Facts *f = r->facts;
    if (v->id >= f->n || f->before[v->id] || !f->activation[v->id] || f->chosen[v->id] ||
        --*fuel < 0)
        return false;
    const Node *n = v->def;
    if (n->op == OP_MATMUL && (fact(r, f->weight, n->in[0]) || fact(r, f->weight, n->in[1])))
        return true;
    for (int i = 0; i < n->nin; i++)
        if (n->in[i] && is_work(r, n->in[i], fuel))
            return true;
    return false;
}

/* What all branches share because the exporter merged equal experts: their own work all the same.
 */
static bool is_merged_work(const Region *r, const Value *v) {
    int fuel = 256;
    return r->merged && !r->lanes && is_work(r, v, &fuel);
}

/* E experts' work joined, perhaps weighted: each is looked into. */
static bool joins_work(const Region *r, const Value *v, int depth) {
    const Node *n = v->def;
    int fuel = 256;
    if (n->op == OP_CONCAT)
        return n->nin == r->s->E && is_work(r, n->in[0], &fuel);
    bool passes = n->op == OP_RESHAPE || n->op == OP_TRANSPOSE || (op_info[n->op].flags & OPF_ELEM);
    for (int i = 0; passes && depth > 0 && i < n->nin && n->in[i]; i++)
        if (joins_work(r, n->in[i], depth - 1))
            return true;
    return false;
}

Rows raise_rows(Region *r, const View *w) {
    int perm[MAX_RANK];
    if (!r->lanes && w->n > 1 && view_equal_all(w) && w->map[0]->n == 1 && raise_owned(r, w->v[0]))
        return (Rows){.v = op_gather(&r->b, raise_stack(r, w), dispatch_out(r, 3), 0)};
    if (w->n > 1 && view_equal_all(w) && !is_merged_work(r, w->v[0])) {
        for (int i = 1; i < w->n; i++)
            if (w->map[i]->n != w->map[0]->n)
                return raise_fail(r, w->v[0]->def,
                                  "experts read a shared value with different shapes"),
                       failed;
        View one = view_collapse(r, w);
        bool lanes = r->lanes;
        r->lanes = false;
        Rows all = raise_rows(r, &one);
        r->lanes = lanes;
        return all;
    }
    const Rows *known = memo_find(r, w);
    if (known)
        return *known;
    Rows out = failed;
    if (w->n == 1 && !fact(r, r->facts->hot, w->v[0])) {
        /* A list may happen to hold all tokens. */
        LeafKind kind = value_known(w->v[0]) ? view_leaf(r, w, perm) : LEAF_NONE;
        if (kind == LEAF_DENSE && joins_work(r, w->v[0], 4))
            kind = LEAF_NONE;
        View o;
        if (kind != LEAF_NONE && better_below(r, w, kind, &o))
            out = raise_move(r, w, &o);
        else if (kind != LEAF_NONE)
            out = raise_leaf(r, w, kind, perm);
    } else if (w->n > 1) {
        out = rows_branches_leaf(r, w);
    }
    if (!out.v && !r->why) { /* what is made is made from the user's node */
        const Source *src = r->b.src;
        r->b.src = w->v[0]->def->src;
        out = rows_of_op(r, w);
        r->b.src = src;
    }
    if (out.v)
        memo_put(r, w, out);
    return out;
}
