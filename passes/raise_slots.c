/* raise_slots.c: layers with capacity. Tokens are put into places of their experts' queues, [E,C];
 * a token that finds its queue full is dropped.
 *
 * Two spellings of the way back from places to tokens are known: a product with weights W[T,E,C]
 * (GShard, DeepSpeed), and a gather of each choice's place, weighted and summed (Tutel). Which
 * token a place holds is evaluated under made-up logits, so whatever decided on it (argmaxes,
 * noise, thresholds, priorities, capacity) is of no interest. What the dispatch reads is what is
 * left after the drop: the weights summed over places, or the chosen experts with -1 for pairs that
 * got no place; never more than the model computed. */
#include <stdlib.h>
#include <string.h>

#include "passes/raise.h"

static bool is_chosen(const Region *r, const Value *v) {
    return v->id < r->facts->n && r->facts->chosen[v->id];
}

static bool is_hot(const Region *r, const Value *v) {
    return v->id < r->facts->n && r->facts->hot[v->id];
}

/* ---- candidates ---- */

/* W[T,E,C] of a product [T, E*C] x [E*C, H]; or W[G,S,E,C] of [G, S, E*C] x [G, E*C, H], where each
 * group of tokens (a sequence, an image) has queues of its own. */
static Value *place_weights(const Node *n) {
    const Value *y = n->out[0], *a = n->in[0];
    if (n->op != OP_MATMUL || y->rank < 2 || y->rank > 3 || a->rank != y->rank ||
        n->in[1]->rank != y->rank || a->def->op != OP_RESHAPE || node_int(n, AT_TRANS_A, 0) ||
        node_int(n, AT_TRANS_B, 0) || !dtype_is_float(a->dtype))
        return NULL;
    Value *w = a->def->in[0];
    while (w->def->op == OP_CAST && dtype_is_float(w->def->in[0]->dtype))
        w = w->def->in[0];
    bool fits = w->rank == a->rank + 1 && w->dims[w->rank - 2] >= 2;
    for (int k = 0; fits && k + 1 < a->rank; k++)
        fits = w->dims[k] >= 1 && w->dims[k] == a->dims[k];
    return fits ? w : NULL;
}

/* Groups of tokens with queues of their own. */
static int64_t groups_of(const Value *weights) {
    return weights->rank == 4 ? weights->dims[0] : 1;
}

static int64_t experts_in(const Value *weights) {
    return weights->dims[weights->rank - 2];
}

static int64_t tokens_in(const Value *weights) {
    return groups_of(weights) * weights->dims[weights->rank - 3];
}

/* The sum that a gathered place ends up in: through weights and views to the last of a run of
 * additions, or to a reduction. */
static Node *sum_above(Node *gather) {
    Node *best = gather, *n = gather;
    bool adds = false;
    while (n->out[0]->uses.n == 1) {
        Node *u = n->out[0]->uses.at[0].node;
        bool view = u->op == OP_RESHAPE || u->op == OP_CAST || u->op == OP_TRANSPOSE;
        if (u->op == OP_REDUCE_SUM && !adds)
            return u;
        if (u->op == OP_ADD)
            adds = true;
        else if (adds || (u->op != OP_MUL && !view))
            break;
        n = u;
        if (u->op == OP_ADD || u->op == OP_MUL)
            best = u;
    }
    return best;
}

void slot_roots_find(Graph *g, SlotRoots *out) {
    FOR_NODES(n, g) {
        SlotRoot root = {n, place_weights(n), NULL};
        const Node *data = n->nin > 1 ? n->in[0]->def : NULL;
        if (!root.gates && n->op == OP_GATHER && node_int(n, AT_AXIS, 0) == 0 &&
            n->in[0]->rank == 2 && dtype_is_float(n->in[0]->dtype) &&
            (data->op == OP_CONCAT || data->op == OP_RESHAPE) &&
            !(op_info[n->in[1]->def->op].flags & OPF_LEAF) && value_known(n->in[1]))
            root = (SlotRoot){sum_above(n), NULL, n};
        bool again = !root.gates && !root.gather;
        for (int i = 0; i < out->n && !again; i++)
            again = out->at[i].node == root.node;
        if (!again)
            vec_push(out, root);
    }
}

bool slot_root_selection(const SlotRoot *root, Selection *out) {
    bool found = false;
    if (root->gates) {
        found = selection_behind(root->gates, tokens_in(root->gates), (int)experts_in(root->gates),
                                 out);
        out->K = out->E;
    } else {
        const Value *y = root->node->out[0], *idx = root->gather->in[1];
        int64_t all = value_count(idx), T = root->node->op == OP_REDUCE_SUM && y->rank >= 1
                                                ? value_count(y) / y->dims[y->rank - 1]
                                                : all;
        if (T < 1 || all % T)
            return false;
        found = selection_behind(root->gather->in[1], T, 0, out);
        out->K = (int)(all / T); /* of one gather: a sum of several has more */
    }
    out->kind = SELECT_SLOTS;
    return found;
}

/* ---- moves ---- */

/* Where operand x of a batched product keeps its batch: the number of its batches, or 0 if they are
 * not those of the result (nor one for all). */
static int64_t batches_of(const Value *x, const Value *y) {
    int64_t n = 1;
    if (x->rank == 2)
        return 1;
    for (int k = 0; k + 2 < x->rank; k++) {
        if (x->rank != y->rank || x->dims[k] != y->dims[k] || x->dims[k] < 1)
            return 0;
        n *= x->dims[k];
    }
    return n;
}

/* Sizes of a value as they are; false if that takes computing it, and it cannot be. */
static bool sizes_of(Region *r, Value *v, int64_t *dims) {
    const RTensor *x = value_known(v) ? NULL : probe_value(r->probe, v);
    if (!value_known(v) && (!x || x->rank != v->rank))
        return false;
    memcpy(dims, x ? x->dims : v->dims, sizeof *dims * (size_t)v->rank);
    return true;
}

enum { HIT_NONE = -1, HIT_MANY = -2 };

/* For each row of the matrices d, the column that holds its only 1. NULL: cannot be had. */
static int64_t *only_ones(Region *r, Value *d, const int64_t *dims, bool ta) {
    Part at;
    const double *v = (const double *)(const void *)probe_nonzeros(r->probe, d, &at);
    int64_t rows = dims[d->rank - (ta ? 1 : 2)], cols = dims[d->rank - (ta ? 2 : 1)];
    int64_t all = dims_count(dims, d->rank) / (cols ? cols : 1);
    int64_t *hit = v ? ARENA_ARRAY(&r->arena, int64_t, all + 1) : NULL;
    for (int64_t i = 0; v && i < all; i++)
        hit[i] = HIT_NONE;
    for (int64_t i = 0; v && i < at.n; i++) {
        int64_t batch = at.at[i] / (rows * cols), rest = at.at[i] % (rows * cols);
        int64_t *h = &hit[batch * rows + (ta ? rest % rows : rest / cols)];
        *h = v[i] != 1 || *h != HIT_NONE ? HIT_MANY : ta ? rest / rows : rest % cols;
    }
    return hit;
}

/* A product with matrices that have a single 1 in each row that is read: a gather. */
MoveResult move_one_hot(Region *r, const View *w, View *o) {
    const Node *n = w->v[0]->def;
    Value *y = n->out[0], *d = n->in[0], *x = n->in[1];
    bool ta = node_int(n, AT_TRANS_A, 0);
    if (!r->slots || w->n != 1 || y->rank < 2 || w->rows != (1u << (y->rank - 1)) - 1 ||
        d->rank < 2 || x->rank < 2 || node_int(n, AT_TRANS_B, 0) || !is_chosen(r, d) ||
        is_hot(r, d))
        return MOVE_NONE;
    int64_t dims[MAX_RANK], nd = batches_of(d, y), nx = batches_of(x, y), all = w->map[0]->n;
    const int64_t *hits = nd && nx && sizes_of(r, d, dims) ? only_ones(r, d, dims, ta) : NULL;
    if (!hits)
        return MOVE_NONE;
    int64_t rows = dims[d->rank - (ta ? 1 : 2)], cols = dims[d->rank - (ta ? 2 : 1)];
    if (rows < 1 || all % rows || (nd > 1 && nd * rows != all) || (nx > 1 && nx * rows != all))
        return MOVE_NONE;
    RowMap *map = map_new(r, nx * cols);
    for (int64_t p = 0; p < all; p++) {
        int64_t hit = hits[nd > 1 ? p : p % rows];
        if (w->map[0]->at[p].t == ROW_FREE)
            continue;
        if (hit < 0)
            return MOVE_NONE;
        entry_merge(&map->at[(nx > 1 ? p / rows * cols : 0) + hit], w->map[0]->at[p]);
    }
    *o = view_single(r, x, (1u << (x->rank - 1)) - 1, map);
    return MOVE_DONE;
}

/* A chain of scatters that write the same rows to one place after the other. */
MoveResult move_places(Region *r, const View *w, View *o) {
    const Node *n = w->v[0]->def;
    Value *rows = n->in[2];
    const RowMap *m = w->map[0];
    if (!r->slots || w->n != 1 || w->rows != 1)
        return MOVE_FAIL;
    int64_t *writer = ARENA_ARRAY(&r->arena, int64_t, m->n + 1), count = -1;
    char *done = ARENA_ARRAY(&r->arena, char, m->n + 1);
    for (int64_t i = 0; i < m->n; i++)
        writer[i] = -1;
    for (; n->op == OP_SCATTER_ND && n->in[2] == rows &&
           !strcmp(node_str(n, AT_REDUCTION, "none"), "none");
         n = n->in[0]->def) {
        const RTensor *idx = probe_value(r->probe, n->in[1]);
        if (!idx || idx->rank != 2 || idx->dims[1] != 1)
            return MOVE_FAIL;
        count = idx->dims[0];
        for (int64_t i = 0; i < count; i++) {
            int64_t to = idx->i[i] < 0 ? idx->i[i] + m->n : idx->i[i];
            if (to < 0 || to >= m->n)
                return MOVE_FAIL;
            if (!done[to])
                writer[to] = i; /* the last of one scatter */
        }
        for (int64_t i = 0; i < m->n; i++)
            done[i] = writer[i] >= 0;
    }
    if (count < 0)
        return MOVE_FAIL;
    RowMap *map = map_new(r, count);
    for (int64_t i = 0; i < m->n; i++) {
        if (m->at[i].t == ROW_FREE)
            continue;
        if (writer[i] < 0)
            return MOVE_FAIL;
        entry_merge(&map->at[writer[i]], m->at[i]);
    }
    *o = view_single(r, rows, 1, map);
    return MOVE_DONE;
}

/* Rows that are read lie in one part of a concatenation: the others are padding. */
MoveResult move_padded(Region *r, const View *w, View *o) {
    const Node *n = w->v[0]->def;
    int64_t begin = 0;
    if (!r->slots || w->n != 1 || w->rows != 1 || node_int(n, AT_AXIS, 0) != 0)
        return MOVE_FAIL;
    const RowMap *m = w->map[0];
    for (int i = 0; i < n->nin; i++) {
        int64_t size = n->in[i]->dims[0];
        if (size < 0) {
            const RTensor *x = probe_value(r->probe, n->in[i]);
            if (!x)
                return MOVE_FAIL;
            size = x->dims[0];
        }
        RowMap *part = map_new(r, size);
        bool inside = false, outside = false;
        for (int64_t p = 0; p < m->n; p++) {
            bool in = p >= begin && p < begin + size;
            *(in ? &inside : &outside) |= m->at[p].t != ROW_FREE;
            if (in)
                part->at[p - begin] = m->at[p];
        }
        begin += size;
        if (inside && outside)
            return MOVE_FAIL;
        if (!inside)
            continue;
        *o = view_single(r, n->in[i], 1, part);
        return MOVE_DONE;
    }
    return MOVE_FAIL;
}

/* ---- the product with W ---- */

/* Reads off W which token each place holds. False if a place holds two, or a token has two places
 * at one expert. */
static bool fill_from_weights(Region *r, const Part *at, int64_t C, int64_t groups, RowMap *m) {
    const Selection *s = r->s;
    int64_t places = s->E * C;
    for (int64_t k = 0; k < at->n; k++) {
        int64_t t = at->at[k] / places, i = at->at[k] % places;
        int e = (int)(i / C);
        int32_t *slot = &r->probe->route.slot[t * s->E + e];
        Entry *place = &m->at[t / (s->T / groups) * places + i];
        if (place->t != ROW_FREE || *slot >= 0)
            return false;
        *slot = e;
        r->probe->route.idx[t * s->K + e] = e;
        *place = (Entry){(int32_t)t, e, e};
    }
    return true;
}

/* The most experts that a token got. */
static int most_of_a_token(const Region *r) {
    int most = 0;
    for (int64_t t = 0; t < r->s->T; t++) {
        int n = 0;
        for (int e = 0; e < r->s->E; e++)
            n += r->probe->route.slot[t * r->s->E + e] >= 0;
        most = n > most ? n : most;
    }
    return most;
}

static int count_terms(const Value *w) {
    const Node *n = w->def;
    if (n->op == OP_MATMUL) /* summed over the choices by a product */
        return (int)n->in[0]->dims[n->in[0]->rank - 1];
    return n->op == OP_ADD ? count_terms(n->in[0]) + count_terms(n->in[1]) : 1;
}

static Value *raise_weighted(Region *r, const SlotRoot *root) {
    Selection *s = r->s;
    Value *rows = root->node->in[1], *gates;
    int64_t te[] = {s->T, s->E}, dims[MAX_RANK];
    Part at;
    if (!is_chosen(r, root->gates) || is_hot(r, root->gates) || !is_hot(r, rows))
        return NULL;
    int64_t groups = groups_of(root->gates);
    int rank = root->gates->rank;
    if (!sizes_of(r, root->gates, dims) || dims_count(dims, rank) != s->T * s->E * dims[rank - 1] ||
        !probe_nonzeros(r->probe, root->gates, &at))
        return raise_fail(r, root->node, "weights of tokens, experts and places cannot be read");
    RowMap *m = map_new(r, groups * s->E * dims[rank - 1]);
    places_check_frozen(r, root->gates, dims[rank - 1], groups);
    if (r->frozen)
        return NULL;
    if (!fill_from_weights(r, &at, dims[rank - 1], groups, m))
        return raise_fail(r, root->node, "a place holds more than one token here");
    int terms = count_terms(root->gates), most = most_of_a_token(r);
    s->top_k = terms < s->E && most <= terms ? terms : 0;
    if (!(gates = places_sum(r, root->gates, root->gates->rank - 1)))
        return raise_fail(r, root->node, "the weights of places cannot be summed");
    r->sel = op_reshape(&r->b, gates, 2, te);
    View w_rows = view_single(r, rows, (1u << (rows->rank - 1)) - 1, m);
    Rows y = raise_rows(r, &w_rows);
    if (!y.v || y.uniform)
        return NULL;
    RowMap *pairs = map_new(r, s->T * s->E);
    for (int64_t i = 0; i < pairs->n; i++)
        pairs->at[i] = (Entry){(int32_t)(i / s->E), (int32_t)(i % s->E), (int32_t)(i % s->E)};
    View g = view_single(r, r->sel, 3, pairs);
    Rows gate = raise_leaf(r, &g, LEAF_PAIR, (int[]){0, 1});
    int64_t one = 1;
    gate.v = reshape_rows(r, gate.v, 1, &one);
    Value *out = raise_node(r, OP_MUL, (Value *[]){y.v, gate.v}, 2, NULL, 0);
    return out ? raise_combine(r, out, root->node->out[0]) : NULL;
}

/* ---- gathers of places ---- */

/* Values of `count` elements that v is computed from. */
static void cone(Value *v, int64_t count, Value **found, int *n, int most) {
    VEC(Value *) queue = {0};
    bool *seen = xcalloc((size_t)v->def->graph->next_value, sizeof *seen);
    vec_push(&queue, v);
    *n = 0;
    for (int head = 0; head < queue.n && *n < most && queue.n < 400; head++) {
        Value *x = queue.at[head];
        if (value_known(x) && value_count(x) == count && !dtype_is_float(x->dtype))
            found[(*n)++] = x;
        for (int i = 0; i < x->def->nin; i++)
            if (x->def->in[i] && !seen[x->def->in[i]->id]) {
                seen[x->def->in[i]->id] = true;
                vec_push(&queue, x->def->in[i]);
            }
    }
    vec_free(&queue);
    free(seen);
}

/* Does v equal, under p, the expert of each place (exactly: -1 or E where there is none), or, for a
 * mask, whether there is one? */
static bool says(Probe *p, Value *v, const Value *place, const Value *all, int E, bool mask,
                 bool exactly) {
    const RTensor *x = probe_value(p, v), *at = probe_value(p, (Value *)place),
                  *rows = probe_value(p, (Value *)all);
    if (!x || !at || !rows || x->count != at->count)
        return false;
    int64_t C = rows->dims[0] / E;
    for (int64_t i = 0; i < at->count; i++) {
        bool placed = at->i[i] >= 0 && at->i[i] < E * C;
        if (mask ? x->i[i] != placed : placed && x->i[i] != at->i[i] / C)
            return false;
        if (!mask && exactly && !placed && x->i[i] >= 0 && x->i[i] < E)
            return false;
    }
    return true;
}

enum { SAYS_ROUNDS = 4 };

/* The experts behind the places that `gather` reads, -1 where there is none: values of the model
 * that say so, or a division where the number of places is fixed. */
static Value *experts_of(Region *r, Node *gather) {
    Value *place = gather->in[1], *all = gather->in[0], *found[200], *expert = NULL, *mask = NULL;
    int n, E = r->s->E;
    bool exact = false;
    Probe *p[SAYS_ROUNDS] = {r->probe};
    for (int i = 1; i < SAYS_ROUNDS; i++)
        p[i] = probe_new(r->g, r->s, r->facts, i == 1 ? ROUTE_ONE : ROUTE_EDGE, i % E,
                         500 + (uint64_t)i);
    cone(place, value_count(place), found, &n, COUNT_OF(found));
    for (int i = 0; i < n; i++) {
        bool is_mask = found[i]->dtype == DT_BOOL, ok = true, ok_exact = true;
        for (int k = 0; k < SAYS_ROUNDS && ok; k++) {
            ok = says(p[k], found[i], place, all, E, is_mask, false);
            ok_exact = ok && ok_exact && says(p[k], found[i], place, all, E, is_mask, true);
        }
        if (!ok)
            continue;
        if (is_mask && !mask)
            mask = found[i];
        else if (!is_mask && (!expert || (ok_exact && !exact))) {
            expert = found[i];
            exact = ok_exact;
        }
    }
    for (int i = 1; i < SAYS_ROUNDS; i++)
        probe_free(p[i]);
    if (expert && exact && !mask)
        return op_cast(&r->b, expert, DT_I64);
    if (expert && mask)
        return op_where(&r->b, op_reshape(&r->b, mask, expert->rank, expert->dims),
                        op_cast(&r->b, expert, DT_I64), op_const_i(&r->b, -1));
    if (all->dims[0] < E)
        return NULL;
    return op_binary(&r->b, OP_DIV, op_cast(&r->b, place, DT_I64),
                     op_const_i(&r->b, all->dims[0] / E));
}

static Node *gather_below(Value *v, const Value *data, int depth) {
    Node *n = v->def;
    if (n->op == OP_GATHER && n->in[0] == data)
        return n;
    bool passes =
        n->op == OP_MUL || n->op == OP_RESHAPE || n->op == OP_CAST || n->op == OP_TRANSPOSE;
    for (int i = 0; passes && depth < 8 && i < n->nin && n->in[i]; i++) {
        Node *g = n->op == OP_RESHAPE && i ? NULL : gather_below(n->in[i], data, depth + 1);
        if (g)
            return g;
    }
    return NULL;
}

/* Column j of the routing: the experts behind the places that one gather reads. */
static bool fill_column(Region *r, const Node *gather, int j, bool slots_first, int each) {
    const Selection *s = r->s;
    const RTensor *at = probe_value(r->probe, gather->in[1]),
                  *rows = probe_value(r->probe, gather->in[0]);
    if (!at || !rows || at->count != s->T * each || rows->dims[0] < s->E)
        return false;
    int64_t C = rows->dims[0] / s->E;
    for (int64_t i = 0; i < at->count; i++) {
        int64_t t = slots_first ? i % s->T : i / each, k = j + (slots_first ? i / s->T : i % each);
        if (at->i[i] < 0 || at->i[i] >= s->E * C)
            continue;
        int64_t e = at->i[i] / C;
        if (r->probe->route.slot[t * s->E + e] >= 0)
            return false;
        r->probe->route.idx[t * s->K + k] = e;
        r->probe->route.slot[t * s->E + e] = (int32_t)k;
    }
    return true;
}

/* The routing has K columns from here on. */
static void widen(Region *r, int K) {
    Routing *q = &r->probe->route;
    r->s->K = q->K = K;
    q->idx = ARENA_ARRAY(&r->probe->arena, int64_t, q->T * K);
    for (int64_t i = 0; i < q->T * K; i++)
        q->idx[i] = -1;
}

enum { CHOICES_MAX = 256 };

/* A sum of K gathered places, each of all tokens. */
static Value *raise_choices(Region *r, const SlotRoot *root, Value **base) {
    const Selection *s = r->s;
    Value *leaf[CHOICES_MAX], *columns[CHOICES_MAX];
    int64_t column[] = {s->T, 1};
    int K = 1;
    leaf[0] = root->node->out[0];
    if (root->node->op == OP_ADD)
        K = raise_sum_leaves(r, root->node, leaf, CHOICES_MAX, base);
    if (K < 1)
        return NULL;
    widen(r, K);
    View w = {.n = K};
    w.v = ARENA_ARRAY(&r->arena, Value *, K);
    w.map = ARENA_ARRAY(&r->arena, RowMap *, K);
    for (int j = 0; j < K; j++) {
        Node *g = gather_below(leaf[j], root->gather->in[0], 0);
        Value *e = g && fill_column(r, g, j, false, 1) ? experts_of(r, g) : NULL;
        int64_t tokens = 1;
        if (!e)
            return raise_fail(r, leaf[j]->def, "the expert behind a choice cannot be told");
        columns[j] = op_reshape(&r->b, e, 2, column);
        w.v[j] = leaf[j];
        w.map[j] = map_new(r, s->T);
        for (int k = 0; k < leaf[j]->rank && tokens < s->T; k++) {
            tokens *= leaf[j]->dims[k];
            w.rows |= 1u << k;
        }
        for (int64_t t = 0; t < s->T; t++) {
            int64_t idx = r->probe->route.idx[t * K + j];
            if (idx >= 0)
                w.map[j]->at[t] = (Entry){(int32_t)t, j, (int32_t)idx};
        }
    }
    r->s->top_k = K < s->E ? K : 0;
    r->sel = op_concat(&r->b, columns, K, 1);
    r->lanes = K > 1;
    Rows y = raise_rows(r, &w);
    return y.v && !y.uniform ? raise_combine(r, y.v, root->node->out[0]) : NULL;
}

/* All choices gathered at once, summed by a reduction over them. */
static Value *raise_reduced(Region *r, const SlotRoot *root) {
    Selection *s = r->s;
    Node *n = root->node;
    const int64_t *axes;
    const Value *x = n->in[0], *idx = root->gather->in[1];
    if (node_ints(n, AT_AXES, &axes) != 1 || x->rank != 3 || (axes[0] != 0 && axes[0] != 1) ||
        x->dims[axes[0]] * s->T != value_count(idx))
        return NULL;
    bool first = axes[0] == 0;
    int K = (int)x->dims[axes[0]];
    int64_t kt[] = {first ? K : s->T, first ? s->T : K}, perm[] = {1, 0};
    widen(r, K);
    Value *e = fill_column(r, root->gather, 0, first, K) ? experts_of(r, root->gather) : NULL;
    if (!e)
        return raise_fail(r, n, "the experts behind the choices cannot be told");
    e = op_reshape(&r->b, e, 2, kt);
    r->sel = first ? op_transpose(&r->b, e, perm) : e;
    s->top_k = K < s->E ? K : 0;
    RowMap *m = map_new(r, s->T * K);
    for (int64_t p = 0; p < m->n; p++) {
        int64_t t = first ? p % s->T : p / K, k = first ? p / s->T : p % K;
        int64_t who = r->probe->route.idx[t * K + k];
        if (who >= 0)
            m->at[p] = (Entry){(int32_t)t, (int32_t)k, (int32_t)who};
    }
    View w = view_single(r, n->in[0], 3, m);
    Rows y = raise_rows(r, &w);
    return y.v && !y.uniform ? raise_combine(r, y.v, n->out[0]) : NULL;
}

Value *raise_slot_root(Region *r, const SlotRoot *root, Value **base) {
    *base = NULL;
    r->slots = true;
    if (root->gates)
        return raise_weighted(r, root);
    if (!is_hot(r, root->gather->in[0]) || !is_chosen(r, root->gather->in[1]))
        return NULL;
    if (root->gather->in[0]->dims[0] >= r->s->E)
        places_check_frozen(r, root->gather->in[1], root->gather->in[0]->dims[0] / r->s->E, 1);
    if (r->frozen)
        return NULL;
    return root->node->op == OP_REDUCE_SUM ? raise_reduced(r, root) : raise_choices(r, root, base);
}
