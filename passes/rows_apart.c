/* rows_apart.c: a proof that rows of a batch do not meet, by one walk over the graph.
 *
 * Every value is one of
 *   FREE    of the batch: the same whatever the inputs hold;
 *   ROWS    its elements belong to rows of the batch: element i to row (i / stride) % batch. The
 *           stride is in elements, so a reshape keeps it: [B,S,D] and [B*S,D] have the same;
 *   SORTED  rows of the experts ([R,…], see DISPATCH): each belongs to one token, nobody knows
 * which. Each rule below allows what keeps that true: work along other axes, elementwise work of
 * values whose rows lie alike, products that do not sum over the batch. What no rule allows mixes
 * rows or is not known, and the answer is no. */
#include "passes/rows_apart.h"

#include <string.h>

typedef enum { FREE, ROWS, SORTED } Kind;
typedef struct State {
    Kind kind;
    int64_t stride;
} State;

typedef struct Walk {
    Graph *g;
    int64_t batch;
    State *of; /* by value id */
    const char *why;
} Walk;

/* Where the batch lies in a shape: the axis, and the stride within its index. */
typedef struct Place {
    int axis; /* -1: across axes */
    int64_t inner;
} Place;

static int64_t inner_of(const Value *v, int axis) {
    int64_t n = 1;
    for (int i = axis + 1; i < v->rank; i++)
        n *= v->dims[i];
    return n;
}

static Place place_of_stride(const Walk *w, const Value *v, int64_t stride) {
    for (int a = 0; a < v->rank; a++) {
        int64_t inner = inner_of(v, a);
        if (inner > 0 && stride % inner == 0 && stride / inner < v->dims[a] &&
            v->dims[a] % (stride / inner * w->batch) == 0)
            return (Place){a, stride / inner};
    }
    return (Place){-1, 0};
}

static Place place_of(const Walk *w, const Value *v) {
    return place_of_stride(w, v, w->of[v->id].stride);
}

static State at_place(const Value *out, int axis, int64_t inner) {
    return (State){ROWS, inner * inner_of(out, axis)};
}

static Kind kind_of(const Walk *w, const Value *v) {
    return v ? w->of[v->id].kind : FREE;
}

/* ---- values that are free of the batch, but have its axis: the same for every row? ---- */

static bool const_alike(const Walk *w, const Tensor *t, int64_t stride) {
    int64_t n = tensor_count(t), bytes = dtype_bytes(t->dtype);
    const char *p = t->data;
    for (int64_t i = 0; i < n; i++) {
        int64_t first = i - i / stride % w->batch * stride;
        if (memcmp(p + i * bytes, p + first * bytes, (size_t)bytes) != 0)
            return false;
    }
    return true;
}

static bool alike(const Walk *w, const Value *v, int axis, int64_t inner);

/* Operands of an elementwise op or expand, aligned at the right. */
static bool operands_alike(const Walk *w, const Node *n, int axis, int64_t inner) {
    for (int i = 0; i < n->nin; i++) {
        int a = n->in[i] ? axis - (n->out[0]->rank - n->in[i]->rank) : -1;
        if (a >= 0 && !alike(w, n->in[i], a, inner))
            return false;
    }
    return true;
}

static bool alike(const Walk *w, const Value *v, int axis, int64_t inner) {
    const Node *n = v->def;
    if (v->dims[axis] == 1)
        return true;
    if (v->dims[axis] % (inner * w->batch) != 0)
        return false;
    if (n->op == OP_CONST)
        return const_alike(w, node_attr(n, AT_VALUE)->t, inner * inner_of(v, axis));
    if ((op_info[n->op].flags & OPF_ELEM) || (n->op == OP_EXPAND && n->nin == 1))
        return operands_alike(w, n, axis, inner);
    if (n->op == OP_RESHAPE && n->nin == 1) {
        Place p = place_of_stride(w, n->in[0], inner * inner_of(v, axis));
        return p.axis >= 0 && alike(w, n->in[0], p.axis, p.inner);
    }
    if (n->op == OP_GATHER && node_int(n, AT_AXIS, 0) == 0 && axis < n->in[1]->rank)
        return alike(w, n->in[1], axis, inner);
    return false;
}

/* ---- rules: true with the state of the results ---- */

static bool set(Walk *w, const Value *v, State s) {
    w->of[v->id] = s;
    return true;
}

static bool elementwise(Walk *w, const Node *n) {
    const Value *out = n->out[0];
    Place p = {-1, 0};
    Kind kind = FREE;
    for (int i = 0; i < n->nin; i++) {
        const Value *v = n->in[i];
        Kind k = kind_of(w, v);
        if (k == FREE)
            continue;
        Place q = k == SORTED ? (Place){0, 1} : place_of(w, v);
        if (q.axis < 0 || (kind != FREE && kind != k))
            return false;
        q.axis += out->rank - v->rank;
        if (kind != FREE && (p.axis != q.axis || p.inner != q.inner))
            return false;
        kind = k, p = q;
    }
    for (int i = 0; i < n->nin; i++) {
        const Value *v = n->in[i];
        int a = v ? p.axis - (out->rank - v->rank) : -1;
        if (a < 0 || kind_of(w, v) != FREE || v->dims[a] == 1)
            continue;
        if (kind == SORTED || !alike(w, v, a, p.inner))
            return false;
    }
    return set(w, out, kind == SORTED ? (State){SORTED, 0} : at_place(out, p.axis, p.inner));
}

static bool reshape(Walk *w, const Node *n) {
    const Value *x = n->in[0], *out = n->out[0];
    if (kind_of(w, x) == SORTED && (out->rank < 1 || out->dims[0] != x->dims[0]))
        return false;
    return set(w, out, w->of[x->id]);
}

static bool transpose(Walk *w, const Node *n) {
    const Value *x = n->in[0], *out = n->out[0];
    const int64_t *perm;
    int count = node_ints(n, AT_PERM, &perm);
    if (kind_of(w, x) == SORTED)
        return count > 0 && perm[0] == 0 && set(w, out, (State){SORTED, 0});
    Place p = place_of(w, x);
    for (int a = 0; p.axis >= 0 && a < x->rank; a++)
        if ((count ? perm[a] : x->rank - 1 - a) == p.axis)
            return set(w, out, at_place(out, a, p.inner));
    return false;
}

/* Whether the node works along this axis ({axis}, or {axes}; no axes: all). */
static bool works_along(const Node *n, int axis) {
    const int64_t *axes;
    int rank = n->in[0]->rank;
    if (node_attr(n, AT_AXIS)) {
        int64_t a = node_int(n, AT_AXIS, 0);
        return (a < 0 ? a + rank : a) == axis;
    }
    int count = node_ints(n, AT_AXES, &axes);
    for (int i = 0; i < count; i++)
        if ((axes[i] < 0 ? axes[i] + rank : axes[i]) == axis)
            return true;
    return !node_attr(n, AT_AXES);
}

/* Reductions, softmax, top-k, slices, pads, concatenations: along other axes. An axis that goes
 * away before the batch moves it. */
static bool along_others(Walk *w, const Node *n) {
    Place p = {-1, 0};
    Kind kind = FREE;
    for (int i = 0; i < n->nin; i++) {
        const Value *v = n->in[i];
        Kind k = kind_of(w, v);
        if (k == FREE)
            continue;
        Place q = k == SORTED ? (Place){0, 1} : place_of(w, v);
        if (q.axis < 0 || works_along(n, q.axis) || v->rank != n->in[0]->rank ||
            (kind != FREE && (k != kind || q.axis != p.axis || q.inner != p.inner)))
            return false;
        kind = k, p = q;
    }
    for (int i = 0; i < n->nin && n->op == OP_CONCAT; i++)
        if (kind_of(w, n->in[i]) == FREE &&
            (kind == SORTED || !alike(w, n->in[i], p.axis, p.inner)))
            return false;
    int gone = 0;
    for (int a = 0; a < p.axis; a++)
        gone += n->out[0]->rank < n->in[0]->rank && works_along(n, a);
    for (int o = 0; o < n->nout; o++)
        set(w, n->out[o],
            kind == SORTED ? (State){SORTED, 0} : at_place(n->out[o], p.axis - gone, p.inner));
    return true;
}

/* A pad or slice says its axes by its shapes: those along which they differ. */
static bool same_along_batch(Walk *w, const Node *n) {
    const Value *x = n->in[0], *out = n->out[0];
    Place p = kind_of(w, x) == SORTED ? (Place){0, 1} : place_of(w, x);
    const int64_t *axes, *starts, *steps;
    if (n->nin > 1 || p.axis < 0 || out->dims[p.axis] != x->dims[p.axis])
        return false;
    if (n->op == OP_SLICE) {
        int na = node_ints(n, AT_AXES, &axes), ns = node_ints(n, AT_STARTS, &starts),
            nt = node_ints(n, AT_STEPS, &steps);
        for (int i = 0; i < na; i++)
            if (axes[i] == p.axis && ((i < ns && starts[i] != 0) || (i < nt && steps[i] != 1)))
                return false;
    } else {
        int np = node_ints(n, AT_PADS, &starts);
        if (np != 2 * x->rank || starts[p.axis] || starts[p.axis + x->rank])
            return false;
    }
    return set(w, out,
               kind_of(w, x) == SORTED ? (State){SORTED, 0} : at_place(out, p.axis, p.inner));
}

static bool matmul(Walk *w, const Node *n) {
    const Value *out = n->out[0];
    Place p = {-1, 0};
    Kind kind = FREE;
    int rank = out->rank;
    for (int i = 0; i < 2; i++) {
        const Value *v = n->in[i];
        Kind k = kind_of(w, v);
        if (k == FREE)
            continue;
        Place q = k == SORTED ? (Place){0, 1} : place_of(w, v);
        bool swapped = node_int(n, i ? AT_TRANS_B : AT_TRANS_A, 0);
        int last = v->rank - 1, kept = i ? last - swapped : last - !swapped;
        if (v->rank < 2 || n->in[!i]->rank < 2 || q.axis < 0)
            return false;
        if (q.axis >= last - 1 && q.axis != kept)
            return false; /* summed over */
        int axis = q.axis == kept ? rank - 1 - !i : q.axis + rank - v->rank;
        if (kind != FREE && (k != kind || axis != p.axis || q.inner != p.inner))
            return false;
        kind = k, p = (Place){axis, q.inner};
    }
    for (int i = 0; i < 2; i++) { /* the other operand: no batch, or the same for every row */
        const Value *v = n->in[i];
        int a = p.axis - (rank - v->rank);
        if (kind_of(w, v) == FREE && p.axis < rank - 2 && a >= 0 && v->dims[a] != 1 &&
            (kind == SORTED || !alike(w, v, a, p.inner)))
            return false;
        if (kind_of(w, v) != FREE && kind_of(w, n->in[!i]) != FREE && p.axis >= rank - 2)
            return false;
    }
    return set(w, out, kind == SORTED ? (State){SORTED, 0} : at_place(out, p.axis, p.inner));
}

/* x[…, idx, …] */
static bool gather(Walk *w, const Node *n) {
    const Value *x = n->in[0], *idx = n->in[1], *out = n->out[0];
    int64_t axis = node_int(n, AT_AXIS, 0);
    Kind kx = kind_of(w, x), ki = kind_of(w, idx);
    axis += axis < 0 ? x->rank : 0;
    if (kx == FREE && ki == ROWS) {
        Place p = place_of(w, idx);
        return p.axis >= 0 && set(w, out, at_place(out, (int)axis + p.axis, p.inner));
    }
    if (ki == SORTED) /* a row's own token, or its expert */
        return axis == 0 && (kx == FREE || (kx == ROWS && place_of(w, x).axis == 0)) &&
               set(w, out, (State){SORTED, 0});
    Place p = kx == SORTED ? (Place){0, 1} : place_of(w, x);
    if (ki != FREE || p.axis < 0 || p.axis == axis)
        return false;
    int moved = p.axis > axis ? p.axis + idx->rank - 1 : p.axis;
    return set(w, out, kx == SORTED ? (State){SORTED, 0} : at_place(out, moved, p.inner));
}

/* data, (idx, updates) of one shape, along another axis than the batch. */
static bool by_elements(Walk *w, const Node *n) {
    int64_t axis = node_int(n, AT_AXIS, 0);
    Place p = {-1, 0};
    for (int i = 0; i < n->nin; i++) {
        if (kind_of(w, n->in[i]) == SORTED || n->in[i]->rank != n->out[0]->rank)
            return false;
        if (kind_of(w, n->in[i]) != ROWS)
            continue;
        Place q = place_of(w, n->in[i]);
        if (q.axis < 0 || (p.axis >= 0 && (q.axis != p.axis || q.inner != p.inner)))
            return false;
        p = q;
    }
    for (int i = 0; i < n->nin; i++) /* not broadcast: every operand has the batch */
        if (n->in[i]->dims[p.axis] != n->out[0]->dims[p.axis] ||
            (kind_of(w, n->in[i]) == FREE && !alike(w, n->in[i], p.axis, p.inner)))
            return false;
    axis += axis < 0 ? n->out[0]->rank : 0;
    return axis != p.axis && set(w, n->out[0], at_place(n->out[0], p.axis, p.inner));
}

/* Tokens to experts: all that tells rows apart again is carried by row_token, row_pair and the
 * tables of pairs; offsets are data of the grouped ops alone. */
static bool dispatch(Walk *w, const Node *n) {
    Place p = place_of(w, n->in[0]);
    if (p.axis != 0)
        return false;
    for (int o = 0; o < n->nout; o++)
        set(w, n->out[o], o < 4 ? (State){SORTED, 0} : at_place(n->out[o], 0, p.inner));
    return true;
}

static bool is_result_of_dispatch(const Value *v, int first, int last) {
    return v && v->def->op == OP_DISPATCH && v->index >= first && v->index <= last;
}

/* x[idx] of the tokens (or pairs) of a dispatch's rows */
static bool gather_rows(Walk *w, const Node *n) {
    return is_result_of_dispatch(n->in[1], 1, 2) && kind_of(w, n->in[0]) == ROWS &&
           place_of(w, n->in[0]).axis == 0 && set(w, n->out[0], (State){SORTED, 0});
}

static bool combine(Walk *w, const Node *n) {
    if (!is_result_of_dispatch(n->in[1], 4, 5) || kind_of(w, n->in[0]) != SORTED)
        return false;
    Place p = place_of(w, n->in[1]);
    return p.axis == 0 && set(w, n->out[0], at_place(n->out[0], 0, p.inner));
}

static bool grouped_matmul(Walk *w, const Node *n) {
    if (kind_of(w, n->in[0]) != SORTED || !is_result_of_dispatch(n->in[1], 0, 0))
        return false;
    for (int i = 2; i < n->nin; i++)
        if (kind_of(w, n->in[i]) != FREE)
            return false;
    return set(w, n->out[0], (State){SORTED, 0});
}

static bool unfold(Walk *w, const Node *n) {
    Place p = place_of(w, n->in[0]);
    return kind_of(w, n->in[0]) == ROWS && p.axis == 0 &&
           set(w, n->out[0], at_place(n->out[0], 0, p.inner));
}

static bool apply(Walk *w, const Node *n) {
    if (op_info[n->op].flags & OPF_ELEM)
        return elementwise(w, n);
    switch (n->op) {
    case OP_RESHAPE:
        return n->nin == 1 && reshape(w, n);
    case OP_EXPAND:
        return n->nin == 1 && elementwise(w, n);
    case OP_TRANSPOSE:
        return transpose(w, n);
    case OP_REDUCE_SUM:
    case OP_REDUCE_MAX:
    case OP_REDUCE_MIN:
    case OP_REDUCE_PROD:
    case OP_ARGMAX:
    case OP_CUMSUM:
    case OP_TOPK:
    case OP_SOFTMAX:
    case OP_LOG_SOFTMAX:
    case OP_CONCAT:
        return along_others(w, n);
    case OP_SLICE:
    case OP_PAD:
        return same_along_batch(w, n);
    case OP_MATMUL:
        return matmul(w, n);
    case OP_GATHER:
        return gather(w, n);
    case OP_GATHER_ELEMENTS:
    case OP_SCATTER_ELEMENTS:
        return by_elements(w, n);
    case OP_DISPATCH:
        return dispatch(w, n);
    case OP_GATHER_ROWS:
        return gather_rows(w, n);
    case OP_COMBINE:
        return combine(w, n);
    case OP_GROUPED_MATMUL:
        return grouped_matmul(w, n);
    case OP_UNFOLD:
        return unfold(w, n);
    default:
        return false;
    }
}

/* ---- the walk ---- */

static bool visit(Walk *w, const Node *n) {
    if (n->op == OP_INPUT) {
        const Value *v = n->out[0];
        if (v->rank > 0 && v->dims[0] == w->batch)
            set(w, v, at_place(v, 0, 1));
        return true;
    }
    bool touched = false;
    for (int i = 0; i < n->nin; i++)
        touched |= kind_of(w, n->in[i]) != FREE;
    if (!touched || apply(w, n))
        return true;
    w->why = arena_printf(&w->g->arena, "node \"%s\" (%s) is not known to keep rows apart",
                          n->src && n->src->name ? n->src->name : "", op_info[n->op].name);
    return false;
}

bool rows_apart(Graph *g, const Value *result, int64_t batch, const char **why) {
    Arena scratch = {0};
    Walk w = {.g = g, .batch = batch, .of = ARENA_ARRAY(&scratch, State, g->next_value + 1)};
    bool *needed = ARENA_ARRAY(&scratch, bool, g->next_node + 1), ok = true;
    needed[result->def->id] = true;
    for (Node *n = g->last; n; n = n->prev) /* operands come before their users */
        for (int i = 0; needed[n->id] && i < n->nin; i++)
            if (n->in[i])
                needed[n->in[i]->def->id] = true;
    FOR_NODES(n, g) {
        ok = ok && (!needed[n->id] || visit(&w, n));
    }
    if (ok && (w.of[result->id].kind != ROWS || place_of(&w, result).axis != 0)) {
        w.why = "its output is not made of the batch's rows";
        ok = false;
    }
    *why = w.why;
    arena_free(&scratch);
    return ok;
}
