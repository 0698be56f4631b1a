/* raise_move.c: nodes that only move data. Going down, the map of the rows is carried to the
 * operand; going up, only what happens to features is left to do, since rows of the new graph are
 * where they are whatever order a model keeps them in. Indices are not recognised by spelling: they
 * are evaluated under a synthetic routing, and only where they send the rows counts. */
#include <string.h>

#include "passes/raise.h"

typedef struct RowAxes {
    int n;
    int axis[MAX_RANK];
    int64_t size[MAX_RANK];
} RowAxes;

static RowAxes row_axes(const Value *v, unsigned rows, const int64_t *dims) {
    RowAxes a = {0};
    for (int k = 0; k < v->rank; k++)
        if (rows >> k & 1) {
            a.axis[a.n] = k;
            a.size[a.n++] = dims[k];
        }
    return a;
}

/* Coordinates of row position p, by axis. */
static void coordinates(const RowAxes *a, int64_t p, int64_t *at) {
    for (int i = a->n - 1; i >= 0; i--) {
        at[a->axis[i]] = p % a->size[i];
        p /= a->size[i];
    }
}

static int64_t rows_count(const RowAxes *a) {
    int64_t n = 1;
    for (int i = 0; i < a->n; i++)
        n *= a->size[i];
    return n;
}

static int64_t position(const RowAxes *a, const int64_t *at) {
    int64_t p = 0;
    for (int i = 0; i < a->n; i++)
        p = p * a->size[i] + at[a->axis[i]];
    return p;
}

static View operand_view(Region *r, const View *w, int operand) {
    View o = {.n = w->n};
    o.v = ARENA_ARRAY(&r->arena, Value *, w->n);
    o.map = ARENA_ARRAY(&r->arena, RowMap *, w->n);
    for (int i = 0; i < w->n; i++) {
        o.v[i] = w->v[i]->def->in[operand];
        o.map[i] = w->map[i];
    }
    return o;
}

/* ---- reshape ---- */

/* Axes of in and out that hold the same elements, group by group; a group is all rows or all
 * features. */
static bool reshape_rows_mask(const int64_t *in, int nin, const int64_t *out, int nout,
                              unsigned rows, unsigned *mask) {
    int i = 0, j = 0;
    *mask = 0;
    for (;;) {
        while (i < nin && in[i] == 1)
            i++;
        while (j < nout && out[j] == 1)
            j++;
        if (i == nin || j == nout)
            return i == nin && j == nout;
        int gi = i, gj = j;
        int64_t pi = in[i++], po = out[j++];
        while (pi != po) {
            if (pi < po ? i == nin : j == nout)
                return false;
            if (pi < po)
                pi *= in[i++];
            else
                po *= out[j++];
        }
        bool any_row = false, any_feature = false;
        for (int k = gj; k < j; k++)
            if (out[k] != 1)
                *(rows >> k & 1 ? &any_row : &any_feature) = true;
        if (any_row && any_feature)
            return false;
        for (int k = gi; k < i; k++)
            if (any_row)
                *mask |= 1u << k;
    }
}

static MoveResult move_reshape(Region *r, const View *w, View *o) {
    *o = operand_view(r, w, 0);
    for (int i = 0; i < w->n; i++) {
        int64_t in[MAX_RANK], out[MAX_RANK], count = 1, known = 1;
        unsigned mask;
        int open = -1;
        const Value *x = o->v[i];
        if (!view_dims(w, i, out))
            return MOVE_FAIL;
        for (int k = 0; k < w->v[i]->rank; k++)
            count *= out[k];
        for (int k = 0; k < x->rank; k++) {
            in[k] = x->dims[k];
            if (in[k] >= 0)
                known *= in[k];
            else if (open >= 0)
                return MOVE_FAIL;
            else
                open = k;
        }
        if (open >= 0)
            in[open] = known ? count / known : 0;
        if (!reshape_rows_mask(in, x->rank, out, w->v[i]->rank, w->rows, &mask) ||
            (i && mask != o->rows))
            return MOVE_FAIL;
        o->rows = mask;
    }
    return MOVE_DONE;
}

/* ---- transpose, expand, slice ---- */

static MoveResult move_transpose(Region *r, const View *w, View *o) {
    const int64_t *perm;
    *o = operand_view(r, w, 0);
    int rank = node_ints(w->v[0]->def, AT_PERM, &perm);
    for (int k = 0; k < rank; k++)
        if (w->rows >> k & 1)
            o->rows |= 1u << perm[k];
    for (int i = 0; i < w->n; i++) {
        int64_t dims[MAX_RANK], odims[MAX_RANK], at[MAX_RANK], oat[MAX_RANK];
        if (!view_dims(w, i, dims))
            return MOVE_FAIL;
        for (int k = 0; k < rank; k++)
            odims[perm[k]] = dims[k];
        RowAxes a = row_axes(w->v[i], w->rows, dims), b = row_axes(o->v[i], o->rows, odims);
        bool same = true;
        for (int k = 0; k < a.n; k++)
            same = same && perm[a.axis[k]] == b.axis[k];
        if (same)
            continue;
        o->map[i] = map_new(r, w->map[i]->n);
        for (int64_t p = 0; p < w->map[i]->n; p++) {
            coordinates(&a, p, at);
            for (int k = 0; k < a.n; k++)
                oat[perm[a.axis[k]]] = at[a.axis[k]];
            o->map[i]->at[position(&b, oat)] = w->map[i]->at[p];
        }
    }
    return MOVE_DONE;
}

static MoveResult move_expand(Region *r, const View *w, View *o) {
    Value **x = ARENA_ARRAY(&r->arena, Value *, w->n);
    for (int i = 0; i < w->n; i++)
        x[i] = w->v[i]->def->in[0];
    view_project(r, w, x, o);
    return MOVE_DONE;
}

/* Start and step by axis; bounds that are operands (sizes that routing decides) are evaluated. */
static bool slice_spans(Region *r, const Node *n, int64_t *start, int64_t *step, unsigned *cut) {
    const int64_t *axes, *starts, *steps;
    int count = node_ints(n, AT_AXES, &axes), ns = node_ints(n, AT_STARTS, &starts),
        nt = node_ints(n, AT_STEPS, &steps);
    *cut = 0;
    for (int k = 0; k < MAX_RANK; k++) {
        start[k] = 0;
        step[k] = 1;
    }
    if (n->nin == 1 && ns == count) {
        for (int k = 0; k < count; k++) {
            start[axes[k]] = starts[k];
            step[axes[k]] = nt ? steps[k] : 1;
            *cut |= 1u << axes[k];
        }
        return true;
    }
    const RTensor *in[5] = {0};
    for (int j = 1; j < n->nin; j++)
        if (n->in[j] && !(in[j] = probe_value(r->probe, n->in[j])))
            return false;
    for (int k = 0; in[1] && k < in[1]->count; k++) {
        int64_t a = in[3] ? in[3]->i[k] : count ? axes[k] : k;
        a += a < 0 ? n->in[0]->rank : 0;
        if (a < 0 || a >= n->in[0]->rank)
            return false;
        start[a] = in[1]->i[k];
        step[a] = in[4] ? in[4]->i[k] : 1;
        *cut |= 1u << a;
    }
    return in[1] != NULL;
}

static bool move_slice_one(Region *r, const View *w, int i, View *o) {
    const Node *n = w->v[i]->def;
    int64_t dims[MAX_RANK], odims[MAX_RANK], start[MAX_RANK], step[MAX_RANK], at[MAX_RANK];
    unsigned cut;
    if (!view_dims(w, i, dims) || !slice_spans(r, n, start, step, &cut) ||
        (n->nin > 1 && (cut & ~w->rows)))
        return false;
    if (!(cut & w->rows))
        return true;
    for (int k = 0; k < o->v[i]->rank; k++) {
        odims[k] = o->v[i]->dims[k];
        if (odims[k] < 0 && !(cut >> k & 1))
            odims[k] = dims[k];
        if (odims[k] < 0) { /* rows of unknown number: ask the value itself */
            const RTensor *x = probe_value(r->probe, o->v[i]);
            if (!x)
                return false;
            odims[k] = x->dims[k];
        }
        if (start[k] < 0)
            start[k] += odims[k];
        if (start[k] < 0 || start[k] + (dims[k] - 1) * step[k] >= odims[k])
            return false;
    }
    RowAxes a = row_axes(w->v[i], w->rows, dims), b = row_axes(o->v[i], o->rows, odims);
    o->map[i] = map_new(r, rows_count(&b));
    for (int64_t p = 0; p < w->map[i]->n; p++) {
        coordinates(&a, p, at);
        for (int k = 0; k < a.n; k++)
            at[a.axis[k]] = start[a.axis[k]] + at[a.axis[k]] * step[a.axis[k]];
        o->map[i]->at[position(&b, at)] = w->map[i]->at[p];
    }
    return true;
}

/* Axes of one element where every branch cuts at a place of its own: an axis of experts, so rows.
 */
static unsigned slice_parts(const View *w) {
    unsigned parts = 0;
    const int64_t *axes, *starts, *first;
    int count = node_ints(w->v[0]->def, AT_AXES, &axes);
    for (int i = 1; i < w->n; i++) {
        const Node *n = w->v[i]->def;
        const int64_t *other;
        if (n->nin != 1 || node_ints(n, AT_AXES, &other) != count)
            return 0;
        node_ints(n, AT_STARTS, &starts);
        node_ints(w->v[0]->def, AT_STARTS, &first);
        for (int k = 0; k < count; k++)
            if (starts[k] != first[k] && other[k] == axes[k] && w->v[0]->dims[axes[k]] == 1)
                parts |= 1u << axes[k];
    }
    return parts & ~w->rows;
}

static MoveResult move_slice(Region *r, const View *all, View *o) {
    View w = *all;
    w.rows |= slice_parts(all);
    *o = operand_view(r, &w, 0);
    o->rows = w.rows;
    for (int i = 0; i < w.n; i++)
        if (!move_slice_one(r, &w, i, o))
            return MOVE_FAIL;
    return MOVE_DONE;
}

/* ---- gathers ---- */

static int gather_axis(const Node *n) {
    int64_t a = node_int(n, AT_AXIS, 0);
    return (int)(a < 0 ? a + n->in[0]->rank : a);
}

/* Data axis of a result axis of gather; -1 for axes of the index. */
static int gather_data_axis(const Node *n, int k) {
    int a = gather_axis(n), q = n->in[1]->rank;
    return k < a ? k : k < a + q ? -1 : k - q + 1;
}

static const RTensor *index_of(Region *r, const Node *n, int operand) {
    Value *v = n->in[operand];
    if (v->id < r->facts->n &&
        (r->facts->worked[v->id] || (!r->facts->chosen[v->id] && r->facts->activation[v->id])))
        return NULL;
    return probe_value(r->probe, v);
}

static bool move_gather_one(Region *r, const View *w, int i, View *o) {
    const Node *n = w->v[i]->def;
    const RTensor *idx = index_of(r, n, 1);
    const Value *x = n->in[0];
    int a = gather_axis(n), q = n->in[1]->rank;
    int64_t dims[MAX_RANK], odims[MAX_RANK], at[MAX_RANK], oat[MAX_RANK];
    if (!idx || !view_dims(w, i, dims))
        return false;
    for (int k = 0; k < x->rank; k++)
        odims[k] = x->dims[k];
    for (int k = 0; k < w->v[i]->rank; k++) {
        int d = gather_data_axis(n, k);
        if (d >= 0 && odims[d] < 0)
            odims[d] = dims[k];
    }
    if (odims[a] < 0 && r->slots) { /* as many as there are places */
        const RTensor *data = probe_value(r->probe, n->in[0]);
        if (!data)
            return false;
        odims[a] = data->dims[a];
    }
    if (odims[a] < 0 && !(w->rows >> a & 1 && q == 1 && idx->count == dims[a]))
        return false;
    /* A number of rows that data decide: as many as the branches ask for. */
    for (int j = 0; x->dims[a] < 0 && j < w->n; j++) {
        const RTensor *other = w->v[j]->def->in[0] == x ? index_of(r, w->v[j]->def, 1) : NULL;
        for (int64_t k = 0; other && k < other->count; k++)
            if (other->i[k] >= odims[a])
                odims[a] = other->i[k] + 1;
    }
    RowAxes ra = row_axes(w->v[i], w->rows, dims), rb = row_axes(x, o->rows, odims);
    o->map[i] = map_new(r, rows_count(&rb));
    for (int64_t p = 0; p < w->map[i]->n; p++) {
        int64_t flat = 0;
        memset(at, 0, sizeof at);
        coordinates(&ra, p, at);
        for (int k = 0; k < q; k++)
            flat = flat * idx->dims[k] + at[a + k];
        for (int k = 0; k < w->v[i]->rank; k++)
            if (gather_data_axis(n, k) >= 0)
                oat[gather_data_axis(n, k)] = at[k];
        if (flat >= idx->count)
            return false;
        oat[a] = idx->i[flat] < 0 ? idx->i[flat] + odims[a] : idx->i[flat];
        if (oat[a] < 0 || oat[a] >= odims[a])
            return false;
        entry_merge(&o->map[i]->at[position(&rb, oat)], w->map[i]->at[p]);
    }
    return true;
}

static bool gathers_features(const View *w) {
    const Node *n = w->v[0]->def;
    int a = gather_axis(n), q = n->in[1]->rank;
    bool row = q == 0;
    for (int k = a; k < a + q; k++)
        row = row || (w->rows >> k & 1);
    return !row;
}

static MoveResult move_gather(Region *r, const View *w, View *o) {
    const Node *n = w->v[0]->def;
    *o = operand_view(r, w, 0);
    for (int k = 0; k < w->v[0]->rank; k++)
        if ((w->rows >> k & 1) && gather_data_axis(n, k) >= 0)
            o->rows |= 1u << gather_data_axis(n, k);
    if (gathers_features(w)) {
        for (int i = 1; i < w->n; i++)
            if (w->v[i]->def->in[1] != n->in[1])
                return MOVE_FAIL;
        return MOVE_DONE;
    }
    for (int k = 0; k < n->in[1]->rank; k++)
        if (!(w->rows >> (gather_axis(n) + k) & 1) && n->in[1]->dims[k] != 1)
            return MOVE_FAIL;
    o->rows |= 1u << gather_axis(n);
    for (int i = 0; i < w->n; i++)
        if (!move_gather_one(r, w, i, o))
            return MOVE_FAIL;
    if (w->n > 1 && n->in[1]->rank == 0 && r->facts->chosen[n->in[1]->id])
        r->data_expert = true;
    return MOVE_DONE;
}

/* gather_nd: the columns of an index row address the leading axes of the data, which all become
 * rows. */
static bool move_gather_nd_one(Region *r, const View *w, int i, View *o) {
    const Node *n = w->v[i]->def;
    const RTensor *idx = index_of(r, n, 1);
    const Value *x = n->in[0];
    int64_t dims[MAX_RANK], odims[MAX_RANK], at[MAX_RANK], oat[MAX_RANK];
    if (!idx || !view_dims(w, i, dims) || idx->rank < 1)
        return false;
    int q = idx->rank - 1, m = (int)idx->dims[q];
    for (int k = 0; k < x->rank; k++)
        if ((odims[k] = x->dims[k]) < 0 && k < m)
            return false;
        else if (odims[k] < 0)
            odims[k] = dims[k - m + q];
    RowAxes ra = row_axes(w->v[i], w->rows, dims), rb = row_axes(x, o->rows, odims);
    o->map[i] = map_new(r, rows_count(&rb));
    for (int64_t p = 0; p < w->map[i]->n; p++) {
        int64_t flat = 0;
        memset(at, 0, sizeof at);
        coordinates(&ra, p, at);
        for (int k = 0; k < q; k++)
            flat = flat * idx->dims[k] + at[k];
        for (int k = 0; k < m; k++) {
            int64_t v = (flat + 1) * m <= idx->count ? idx->i[flat * m + k] : INT64_MIN;
            oat[k] = v < 0 ? v + odims[k] : v;
            if (oat[k] < 0 || oat[k] >= odims[k])
                return false;
        }
        for (int k = q; k < w->v[i]->rank; k++)
            oat[k - q + m] = at[k];
        entry_merge(&o->map[i]->at[position(&rb, oat)], w->map[i]->at[p]);
    }
    return true;
}

static MoveResult move_gather_nd(Region *r, const View *w, View *o) {
    const Node *n = w->v[0]->def;
    int q = n->in[1]->rank - 1;
    if (node_int(n, AT_BATCH_DIMS, 0) || n->in[1]->dims[q] < 1)
        return MOVE_FAIL;
    int m = (int)n->in[1]->dims[q];
    *o = operand_view(r, w, 0);
    for (int k = 0; k < m; k++)
        o->rows |= 1u << k;
    for (int k = q; k < w->v[0]->rank; k++)
        if (w->rows >> k & 1)
            o->rows |= 1u << (k - q + m);
    for (int k = 0; k < q; k++)
        if (!(w->rows >> k & 1) && n->in[1]->dims[k] != 1)
            return MOVE_FAIL;
    for (int i = 0; i < w->n; i++)
        if (!move_gather_nd_one(r, w, i, o))
            return MOVE_FAIL;
    return MOVE_DONE;
}

/* gather_elements along a row axis with an index that is the same for all features: rows are taken.
 */
static MoveResult move_gather_elements(Region *r, const View *w, View *o) {
    const Node *n = w->v[0]->def;
    int rank = w->v[0]->rank, axis = gather_axis(n);
    const RTensor *idx = w->n == 1 && (w->rows >> axis & 1) ? index_of(r, n, 1) : NULL;
    int64_t dims[MAX_RANK], at[MAX_RANK];
    if (!idx || !view_dims(w, 0, dims) || !value_known(n->in[0]))
        return MOVE_FAIL;
    for (int k = 0; k < rank; k++)
        if (k != axis && n->in[0]->dims[k] != dims[k])
            return MOVE_FAIL;
    *o = operand_view(r, w, 0);
    o->rows = w->rows;
    RowAxes a = row_axes(w->v[0], w->rows, dims), b = row_axes(o->v[0], o->rows, n->in[0]->dims);
    o->map[0] = map_new(r, rows_count(&b));
    int64_t *row = ARENA_ARRAY(&r->arena, int64_t, w->map[0]->n + 1);
    for (int64_t p = 0; p < w->map[0]->n; p++)
        row[p] = INT64_MIN;
    for (int64_t i = 0; i < idx->count; i++) {
        int64_t rest = i, p, v = idx->i[i] < 0 ? idx->i[i] + n->in[0]->dims[axis] : idx->i[i];
        for (int k = rank - 1; k >= 0; k--) {
            at[k] = rest % dims[k];
            rest /= dims[k];
        }
        p = position(&a, at);
        if ((row[p] != INT64_MIN && row[p] != v) || v < 0 || v >= n->in[0]->dims[axis])
            return MOVE_FAIL;
        row[p] = v;
    }
    for (int64_t p = 0; p < w->map[0]->n; p++) {
        coordinates(&a, p, at);
        at[axis] = row[p];
        entry_merge(&o->map[0]->at[position(&b, at)], w->map[0]->at[p]);
    }
    return MOVE_DONE;
}

/* scatter_nd of every row to a place of its own: a permutation. */
static MoveResult move_scatter_nd(Region *r, const View *w, View *o) {
    const Node *n = w->v[0]->def;
    const RTensor *idx = w->n == 1 ? index_of(r, n, 1) : NULL;
    if (!idx || idx->rank != 2 || idx->dims[1] != 1 || w->rows != 1)
        return MOVE_FAIL;
    *o = operand_view(r, w, 2);
    o->rows = 1;
    o->map[0] = map_new(r, idx->dims[0]);
    char *seen = ARENA_ARRAY(&r->arena, char, w->map[0]->n + 1);
    for (int64_t i = 0; i < idx->dims[0]; i++) {
        int64_t to = idx->i[i] < 0 ? idx->i[i] + w->map[0]->n : idx->i[i];
        if (to < 0 || to >= w->map[0]->n || seen[to]++)
            return MOVE_FAIL;
        o->map[0]->at[i] = w->map[0]->at[to];
    }
    for (int64_t i = 0; i < w->map[0]->n; i++)
        if (!seen[i] && w->map[0]->at[i].t != ROW_FREE)
            return MOVE_FAIL;
    return MOVE_DONE;
}

/* Rows that E scatters wrote one after the other, each those of one expert ("y[rows of e] =
 * f_e(x[rows])"): from here on the updates are walked in lockstep. */
static MoveResult move_scatter_chain(Region *r, const View *w, View *o) {
    const RowMap *m = w->map[0];
    int E = r->s->E, found = 0;
    if (w->n != 1 || w->rows != 1)
        return MOVE_FAIL;
    *o = (View){.n = E, .rows = 1};
    o->v = ARENA_ARRAY(&r->arena, Value *, E);
    o->map = ARENA_ARRAY(&r->arena, RowMap *, E);
    char *written = ARENA_ARRAY(&r->arena, char, m->n + 1);
    const Node *n = w->v[0]->def;
    for (; n->op == OP_SCATTER_ND && found < E; n = n->in[0]->def, found++) {
        const RTensor *idx = index_of(r, n, 1);
        if (!idx || idx->rank != 2 || idx->dims[1] != 1 || n->in[2]->rank < 2)
            return MOVE_FAIL;
        RowMap *rows = map_new(r, idx->dims[0]);
        Entry all = {ROW_FREE, ROW_FREE, ROW_FREE};
        for (int64_t i = 0; i < idx->dims[0]; i++) {
            int64_t to = idx->i[i] < 0 ? idx->i[i] + m->n : idx->i[i];
            if (to < 0 || to >= m->n || written[to]++)
                return MOVE_FAIL;
            rows->at[i] = m->at[to];
            entry_merge(&all, rows->at[i]);
        }
        if (all.t == ROW_FREE || all.e < 0 || o->v[all.e])
            return MOVE_FAIL;
        o->v[all.e] = n->in[2];
        o->map[all.e] = rows;
    }
    for (int64_t i = 0; i < m->n; i++)
        if (!written[i] && m->at[i].t != ROW_FREE)
            return MOVE_FAIL;
    r->listed = true;
    return found == E ? MOVE_DONE : MOVE_FAIL;
}

/* scatter_elements along experts, [.., E] from [.., K]: where a row's expert is chosen, the update
 * of its slot. Rows of experts that are not chosen are never computed. */
static MoveResult move_scatter_elements(Region *r, const View *w, View *o) {
    const Node *n = w->v[0]->def;
    const RTensor *idx = w->n == 1 ? index_of(r, n, 1) : NULL;
    int rank = w->v[0]->rank, axis = (int)node_int(n, AT_AXIS, 0);
    int64_t dims[MAX_RANK], at[MAX_RANK];
    axis += axis < 0 ? rank : 0;
    if (!idx || w->rows != (1u << rank) - 1 ||
        dims_count(w->v[0]->dims, rank) != r->s->T * r->s->E || idx->count != r->s->T * r->s->K ||
        !view_dims(w, 0, dims) || strcmp(node_str(n, AT_REDUCTION, "none"), "none"))
        return MOVE_NONE;
    *o = operand_view(r, w, 2);
    o->rows = w->rows;
    RowAxes a = row_axes(w->v[0], w->rows, dims), b = row_axes(o->v[0], o->rows, idx->dims);
    o->map[0] = map_new(r, idx->count);
    for (int64_t p = 0; p < idx->count; p++) {
        coordinates(&b, p, at);
        for (int k = 0; k < rank; k++)
            if (k != axis && idx->dims[k] != dims[k])
                return MOVE_NONE;
        at[axis] = idx->i[p];
        if (at[axis] < 0 || at[axis] >= dims[axis])
            return MOVE_NONE;
        Entry e = w->map[0]->at[position(&a, at)];
        if (e.t != ROW_FREE && e.t >= 0 && e.e >= 0)
            e.k = r->probe->route.slot[e.t * r->s->E + e.e];
        o->map[0]->at[p] = e;
    }
    return MOVE_DONE;
}

/* ---- concat of experts ---- */

/* A row axis put together from E parts, each of one expert: from here on the parts are walked in
 * lockstep. */
static MoveResult move_concat(Region *r, const View *w, View *o) {
    Node *n = w->v[0]->def;
    int axis = (int)node_int(n, AT_AXIS, 0), E = r->s->E;
    int64_t dims[MAX_RANK], at[MAX_RANK], begin[4097];
    axis += axis < 0 ? w->v[0]->rank : 0;
    if (w->n != 1 || !(w->rows >> axis & 1) || n->nin != E || E > 4096 || !view_dims(w, 0, dims))
        return MOVE_FAIL;
    RowAxes a = row_axes(w->v[0], w->rows, dims);
    bool only = a.n == 1, known = true;
    for (int i = 0; i < E; i++)
        known = known && n->in[i]->dims[axis] >= 0;
    if (!known && !only)
        return MOVE_FAIL;
    const RowMap *m = w->map[0];
    begin[0] = 0;
    for (int i = 0; i < E; i++) {
        begin[i + 1] = known ? begin[i] + n->in[i]->dims[axis] : begin[i];
        for (; !known && begin[i + 1] < m->n && m->at[begin[i + 1]].e == m->at[begin[i]].e;
             begin[i + 1]++)
            ;
    }
    if (begin[E] != dims[axis])
        return MOVE_FAIL;
    *(known ? &r->joined : &r->sorted) = true;
    if (r->slots)
        r->merged = raise_merged(r, n->in[0], n->in[1]);
    *o = (View){.n = E, .rows = w->rows};
    o->v = ARENA_ARRAY(&r->arena, Value *, E);
    o->map = ARENA_ARRAY(&r->arena, RowMap *, E);
    for (int i = 0; i < E; i++) {
        int64_t part[MAX_RANK];
        memcpy(part, dims, sizeof part);
        part[axis] = begin[i + 1] - begin[i];
        RowAxes b = row_axes(w->v[0], w->rows, part);
        RowMap *sub = map_new(r, rows_count(&b));
        Entry all = {ROW_FREE, ROW_FREE, ROW_FREE};
        for (int64_t p = 0; p < sub->n; p++) {
            coordinates(&b, p, at);
            at[axis] += begin[i];
            sub->at[p] = m->at[position(&a, at)];
            entry_merge(&all, sub->at[p]);
        }
        if (known && only && w->map[0]->n == r->s->T * r->s->K &&
            (all.t == ROW_FREE || all.e < 0)) {
            r->frozen = true;
            raise_fail(
                r, n,
                "rows are cut into experts at sizes that are constants of the exporter's example");
        }
        if (all.t == ROW_FREE && r->slots) /* no token chose it: it is where it should be */
            all.e = i;
        else if (all.t == ROW_FREE)
            return MOVE_FAIL;
        if (all.e < 0 || o->v[all.e])
            return MOVE_FAIL;
        o->v[all.e] = n->in[i];
        o->map[all.e] = sub;
    }
    return MOVE_DONE;
}

MoveResult view_move(Region *r, const View *w, View *o) {
    const Node *n = w->v[0]->def;
    *o = (View){0};
    switch (n->op) {
    case OP_RESHAPE:
        return move_reshape(r, w, o);
    case OP_TRANSPOSE:
        return move_transpose(r, w, o);
    case OP_EXPAND:
        return move_expand(r, w, o);
    case OP_SLICE:
        return move_slice(r, w, o);
    case OP_GATHER:
        return move_gather(r, w, o);
    case OP_GATHER_ND:
        return move_gather_nd(r, w, o);
    case OP_GATHER_ELEMENTS:
        return move_gather_elements(r, w, o);
    case OP_SCATTER_ND: {
        MoveResult m = move_scatter_nd(r, w, o);
        m = m == MOVE_DONE ? m : move_places(r, w, o);
        return m == MOVE_DONE ? m : move_scatter_chain(r, w, o);
    }
    case OP_MATMUL:
        return move_one_hot(r, w, o);
    case OP_SCATTER_ELEMENTS:
        return move_scatter_elements(r, w, o);
    case OP_CONCAT: {
        int64_t axis = node_int(n, AT_AXIS, 0);
        axis += axis < 0 ? w->v[0]->rank : 0;
        if (!(w->rows >> axis & 1))
            return MOVE_NONE;
        return move_padded(r, w, o) == MOVE_DONE ? MOVE_DONE : move_concat(r, w, o);
    }
    default:
        return MOVE_NONE;
    }
}

/* ---- upwards: what happens to features ---- */

static int feature_rank(const View *w, int axis) {
    int n = 0;
    for (int k = 0; k < axis; k++)
        n += !(w->rows >> k & 1);
    return n;
}

static Value *transpose_features(Region *r, const View *w, const View *o, Value *v, int lead) {
    const int64_t *perm;
    int64_t order[MAX_RANK];
    int rank = node_ints(w->v[0]->def, AT_PERM, &perm), at = 0;
    bool moved = false;
    for (int k = 0; k < lead; k++)
        order[at++] = k;
    for (int k = 0; k < rank; k++)
        if (!(w->rows >> k & 1)) {
            order[at] = lead + feature_rank(o, (int)perm[k]);
            moved = moved || order[at] != at;
            at++;
        }
    return moved ? op_transpose(&r->b, v, order) : v;
}

static Value *slice_features(Region *r, const View *all, Value *v, int lead) {
    View parts = *all, *w = &parts;
    parts.rows |= slice_parts(all);
    const Node *n = w->v[0]->def;
    const int64_t *axes, *starts, *ends, *steps;
    int count = node_ints(n, AT_AXES, &axes), nt = node_ints(n, AT_STEPS, &steps);
    node_ints(n, AT_STARTS, &starts);
    node_ints(n, AT_ENDS, &ends);
    for (int k = 0; k < count; k++)
        if (!(w->rows >> axes[k] & 1))
            v = op_slice(&r->b, v, lead + feature_rank(w, (int)axes[k]), starts[k], ends[k],
                         nt ? steps[k] : 1);
    return v;
}

Rows raise_move(Region *r, const View *w, const View *o) {
    Rows x = raise_rows(r, o);
    const Node *n = w->v[0]->def;
    int64_t f[MAX_RANK];
    int nf = view_features(w, f), lead = x.uniform ? 0 : 1;
    if (!x.v)
        return x;
    switch (n->op) {
    case OP_RESHAPE:
        x.v = x.uniform ? op_reshape(&r->b, x.v, nf, f) : reshape_rows(r, x.v, nf, f);
        break;
    case OP_TRANSPOSE:
        x.v = transpose_features(r, w, o, x.v, lead);
        break;
    case OP_EXPAND: {
        int64_t dims[MAX_RANK], of[MAX_RANK];
        int nof = view_features(o, of);
        for (int k = 0; k < nf; k++) /* leading features that the operand lacks */
            dims[k] = k < nf - nof ? 1 : of[k - (nf - nof)];
        x.v = x.uniform ? op_reshape(&r->b, x.v, nf, dims) : reshape_rows(r, x.v, nf, dims);
        for (int k = 0; k < nf; k++)
            dims[k + lead] = f[k];
        if (lead)
            dims[0] = x.v->dims[0];
        x.v = op_expand(&r->b, x.v, nf + lead, dims);
        break;
    }
    case OP_SLICE:
        x.v = slice_features(r, w, x.v, lead);
        break;
    case OP_GATHER:
        if (gathers_features(w))
            x.v = op_gather(&r->b, x.v, n->in[1], lead + feature_rank(o, gather_axis(n)));
        break;
    case OP_CONCAT: /* the parts' features are the whole's */
    default:
        break;
    }
    /* Axes of size 1 may have changed sides between rows and features. */
    x.v = x.uniform ? op_reshape(&r->b, x.v, nf, f) : reshape_rows(r, x.v, nf, f);
    return x;
}
