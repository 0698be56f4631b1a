/* raise_gates.c: who is served. A choice of experts is not always the last word: a queue may be
 * full (capacity), a score may miss a threshold, or there is no choice at all and a weight of zero
 * means that an expert does nothing.
 *
 * Two things follow. What the dispatch reads is then not the choice but what is left of it: the
 * experts chosen with -1 where a pair was dropped, or the weights [T,E] themselves, since a pair
 * without weight is not routed. And branches must be told apart otherwise than by the tokens of a
 * made-up choice: by the logits that favour one expert after the other, or by the mask of pairs
 * that a list was made of. */
#include <stdlib.h>
#include <string.h>

#include "passes/raise.h"

static bool fact(const Region *r, const bool *table, const Value *v) {
    return v->id < r->facts->n && table[v->id];
}

static bool is_routing(const Region *r, const Value *v) {
    return (fact(r, r->facts->chosen, v) || fact(r, r->facts->scored, v)) &&
           !fact(r, r->facts->hot, v) && !fact(r, r->facts->worked, v);
}

/* ---- columns: which tokens a branch serves ---- */

Value *served_by_gate(Region *r, Value *gate) {
    int64_t column[] = {r->s->T, 1};
    return op_cast(&r->b, op_cast(&r->b, op_reshape(&r->b, gate, 2, column), DT_BOOL), DT_I64);
}

static bool says_same(Region *r, Value *column, const char *serves) {
    const RTensor *x = probe_value(r->probe, column);
    for (int64_t t = 0; x && t < r->s->T; t++)
        if ((x->i[t] != 0) != (serves[t] != 0))
            return false;
    return x != NULL;
}

/* The mask whose places a list of tokens holds: of tokens, or of pairs in either order. */
static Value *mask_behind(Value *index) {
    Value *v = index;
    for (int depth = 0; depth < 32; depth++) {
        const Node *n = v->def;
        if (n->op == OP_NONZERO)
            return value_known(n->in[0]) ? n->in[0] : NULL;
        if (n->op != OP_RESHAPE && n->op != OP_TRANSPOSE && n->op != OP_SLICE && n->op != OP_CAST &&
            n->op != OP_CONCAT && n->op != OP_EXPAND && n->op != OP_GATHER && n->op != OP_DIV &&
            n->op != OP_SUB && n->op != OP_FLOOR)
            return NULL;
        v = n->in[0];
    }
    return NULL;
}

bool is_list_of_places(Value *index) {
    return mask_behind(index) != NULL;
}

Value *served_by_list(Region *r, Value *index, const char *serves) {
    int64_t T = r->s->T, column[] = {T, 1};
    Value *mask = mask_behind(index);
    int64_t each = mask ? value_count(mask) / T : 0;
    if (!mask || each < 1 || each * T != value_count(mask))
        return NULL;
    Value *bits = op_cast(&r->b, op_cast(&r->b, mask, DT_BOOL), DT_I64);
    if (each == 1) {
        Value *one = op_reshape(&r->b, bits, 2, column);
        return says_same(r, one, serves) ? one : NULL;
    }
    for (int64_t axis = 0; axis < 2; axis++) { /* slots first, or tokens first */
        int64_t pairs[] = {axis ? T : each, axis ? each : T};
        Value *any =
            op_reduce(&r->b, OP_REDUCE_MAX, op_reshape(&r->b, bits, 2, pairs), &axis, 1, false);
        any = op_reshape(&r->b, any, 2, column);
        if (says_same(r, any, serves))
            return any;
    }
    return NULL;
}

/* ---- what the dispatch reads ---- */

/* The experts chosen, -1 where `kept` [T,E] or [T,K] is zero. */
static Value *chosen_and_kept(Region *r, Value *kept, bool pairs) {
    const Selection *s = r->s;
    int64_t tk[] = {s->T, s->K};
    Value *idx = op_reshape(&r->b, op_cast(&r->b, s->value, DT_I64), 2, tk);
    Attr axis = {.key = AT_AXIS, .i = 1};
    if (!pairs)
        kept = op_node(&r->b, OP_GATHER_ELEMENTS, (Value *[]){kept, idx}, 2, &axis, 1)->out[0];
    return op_where(&r->b, op_cast(&r->b, kept, DT_BOOL), idx, op_const_i(&r->b, -1));
}

/* How many experts each token has, if all have as many in a few made-up routings; else 0. */
static int constant_number(Region *r, Value *gates) {
    const Selection *s = r->s;
    int64_t most = -1;
    for (int round = 0; round < 3; round++) {
        Probe *p = round ? probe_new(r->g, s, r->facts, round == 1 ? ROUTE_ONE : ROUTE_EDGE, 0, 900)
                         : r->probe;
        const RTensor *g = probe_value(p, gates);
        for (int64_t t = 0; g && t < s->T && most != 0; t++) {
            int64_t n = 0;
            for (int e = 0; e < s->E; e++)
                n += dtype_is_float(g->dtype) ? g->f[t * s->E + e] != 0 : g->i[t * s->E + e] != 0;
            most = most < 0 || most == n ? n : 0;
        }
        if (round)
            probe_free(p);
    }
    return most > 0 ? (int)most : 0;
}

static void read_gates(Region *r, Value *gates) {
    r->s->top_k = constant_number(r, gates);
    if (r->s->top_k != r->s->E)
        r->sel = gates;
}

bool served_select(Region *r, Value **column) {
    int E = r->s->E;
    for (int e = 0; e < E; e++)
        if (!column[e])
            return false;
    Value *kept = op_concat(&r->b, column, E, 1);
    if (r->s->kind == SELECT_ALL)
        read_gates(r, op_cast(&r->b, kept, DT_F32));
    else
        r->sel = chosen_and_kept(r, kept, false);
    return true;
}

/* ---- weights inside of a sum over experts or slots ---- */

/* The factor of what is summed that has one number for each row and no expert computed: [T,E] or
 * [T,K]. */
static Value *gates_below(Region *r, const View *w, bool *pairs, int depth) {
    Value *v = w->v[0];
    Node *n = v->def;
    int64_t f[MAX_RANK], width = 1;
    int perm[MAX_RANK], nf = view_features(w, f);
    for (int k = 0; k < nf; k++)
        width *= f[k];
    if (width == 1 && is_routing(r, v) && dtype_is_float(v->dtype)) {
        LeafKind kind = view_leaf(r, w, perm);
        *pairs = kind == LEAF_PAIR;
        int64_t dims[] = {r->s->T, *pairs ? r->s->K : r->s->E};
        if (kind == LEAF_PAIR || kind == LEAF_DENSE)
            return op_reshape(&r->b, view_rows_first(r, w, perm, dims[0] * dims[1]), 2, dims);
    }
    View o;
    if (depth == 0)
        return NULL;
    if (n->op == OP_MUL || n->op == OP_CAST) {
        for (int i = 0; i < n->nin; i++) {
            view_project(r, w, &n->in[i], &o);
            Value *g = gates_below(r, &o, pairs, depth - 1);
            if (g)
                return g;
        }
        return NULL;
    }
    bool view = n->op == OP_RESHAPE || n->op == OP_TRANSPOSE || n->op == OP_EXPAND;
    if (!view || view_move(r, w, &o) != MOVE_DONE || o.n != 1)
        return NULL;
    return gates_below(r, &o, pairs, depth - 1);
}

/* Is a pair of the routing without weight? */
static bool drops_pairs(Region *r, Value *gates, bool pairs) {
    const Selection *s = r->s;
    const RTensor *g = probe_value(r->probe, gates);
    for (int64_t i = 0; g && i < s->T * s->K; i++) {
        int64_t at = pairs ? i : i / s->K * s->E + r->probe->route.idx[i];
        if (g->f[at] == 0)
            return true;
    }
    return false;
}

bool served_in_sum(Region *r, const View *w) {
    bool pairs = false;
    if (r->dispatch)
        return true;
    Value *gates = gates_below(r, w, &pairs, 8);
    if (!gates)
        return false;
    if (r->s->kind == SELECT_ALL)
        read_gates(r, gates);
    else if (r->s->kind == SELECT_INDEX && drops_pairs(r, gates, pairs))
        r->sel = chosen_and_kept(r, gates, pairs);
    return true;
}

/* ---- which expert a branch is ---- */

bool name_by_favour(Region *r, int n, bool (*serves)(Region *, Probe *, void *, int, char *),
                    void *of, int *expert) {
    const Selection *s = r->s;
    char *who = ARENA_ARRAY(&r->arena, char, s->T + 1);
    int64_t *count = ARENA_ARRAY(&r->arena, int64_t, n * s->E + 1);
    bool ok = true;
    for (int e = 0; e < s->E && ok; e++) {
        Probe *p = probe_new(r->g, s, r->facts, ROUTE_ONE, e, 300 + (uint64_t)e);
        for (int i = 0; i < n && ok; i++) {
            count[i * s->E + e] = 0;
            ok = serves(r, p, of, i, who);
            for (int64_t t = 0; t < s->T && ok; t++)
                count[i * s->E + e] += who[t] != 0;
        }
        probe_free(p);
    }
    for (int i = 0; i < n && ok; i++) {
        int best = 0, ties = 0;
        for (int e = 1; e < s->E; e++)
            best = count[i * s->E + e] > count[i * s->E + best] ? e : best;
        for (int e = 0; e < s->E; e++)
            ties += count[i * s->E + e] == count[i * s->E + best];
        for (int k = 0; k < i; k++)
            ties += expert[k] == best;
        expert[i] = best;
        ok = ties == 1;
    }
    return ok;
}

/* idx[t,k] == e, for pairs in token order or by slots. */
static bool is_mask_of(const Region *r, const RTensor *x, int e, bool slots_first) {
    const Selection *s = r->s;
    for (int64_t i = 0; i < x->count; i++) {
        int64_t t = slots_first ? i % s->T : i / s->K, k = slots_first ? i / s->T : i % s->K;
        bool on = dtype_is_float(x->dtype) ? x->f[i] != 0 : x->i[i] != 0;
        if (on != (r->probe->route.idx[t * s->K + k] == e))
            return false;
    }
    return true;
}

static int mask_number(Region *r, const RTensor *x) {
    for (int e = 0; e < r->s->E; e++)
        if (is_mask_of(r, x, e, false) || is_mask_of(r, x, e, true))
            return e;
    return -1;
}

static int slot_number(Region *r, const RTensor *x) {
    const Selection *s = r->s;
    for (int k = 0; k < s->K && !dtype_is_float(x->dtype); k++) {
        bool same = true;
        for (int64_t t = 0; t < s->T && same; t++)
            same = x->i[t] == r->probe->route.idx[t * s->K + k];
        if (same)
            return k;
    }
    return -1;
}

/* What the nearest value of `count` elements that `from` was made of says; -1: none says anything.
 */
static int nearest_number(Region *r, Value *from, int64_t count,
                          int (*number)(Region *, const RTensor *)) {
    VEC(Value *) queue = {0};
    bool *seen = xcalloc((size_t)r->facts->n, sizeof *seen);
    int found = -1;
    vec_push(&queue, from);
    for (int head = 0; head < queue.n && head < 512 && found < 0; head++) {
        Value *v = queue.at[head];
        if (!fact(r, r->facts->chosen, v))
            continue;
        if (value_known(v) && value_count(v) == count && v != r->s->value &&
            !fact(r, r->facts->worked, v)) {
            const RTensor *x = probe_value(r->probe, v);
            found = x ? number(r, x) : -1;
        }
        for (int i = 0; i < v->def->nin; i++) {
            Value *x = v->def->in[i];
            if (x && x->id < r->facts->n && !seen[x->id]) {
                seen[x->id] = true;
                vec_push(&queue, x);
            }
        }
    }
    vec_free(&queue);
    free(seen);
    return found;
}

int name_by_mask(Region *r, Value *from) {
    return nearest_number(r, from, r->s->T * r->s->K, mask_number);
}

int name_by_slot(Region *r, Value *from) {
    return nearest_number(r, from, r->s->T, slot_number);
}
