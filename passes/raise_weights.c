/* raise_weights.c: what an expert owns: one matrix (or vector) per expert, found below the views
 * that select it. */
#include <stdlib.h>
#include <string.h>

#include "passes/raise.h"

static bool is_weight(const Region *r, const Value *v) {
    return v->id < r->facts->n ? r->facts->weight[v->id] : v->def->op == OP_PARAM;
}

/* Does this transpose swap the two features that have more than one element? */
static bool swaps_features(const View *w) {
    const int64_t *perm;
    int rank = node_ints(w->v[0]->def, AT_PERM, &perm);
    int64_t last = -1;
    bool swaps = false;
    for (int k = 0; k < rank; k++) {
        if ((w->rows >> k & 1) || w->v[0]->dims[k] == 1)
            continue;
        swaps = swaps || perm[k] < last;
        last = perm[k];
    }
    return swaps;
}

/* Features of more than one element; false if there are more than two. */
static bool two_features(const View *w, int64_t *a, int64_t *b) {
    int64_t f[MAX_RANK];
    int nf = view_features(w, f), big = 0;
    int64_t found[2] = {1, 1};
    for (int k = 0; k < nf; k++)
        if (f[k] != 1) {
            if (big == 2)
                return false;
            found[big++] = f[k];
        }
    *a = found[0];
    *b = found[1];
    return true;
}

static bool same_op(const View *w, Op op) {
    for (int i = 0; i < w->n; i++)
        if (w->v[i]->def->op != op)
            return false;
    return true;
}

static RowMap *expert_map(Region *r) {
    RowMap *m = map_new(r, r->s->E);
    for (int e = 0; e < r->s->E; e++)
        m->at[e] = (Entry){ROW_VARIES, ROW_VARIES, e};
    return m;
}

/* Branches that are slice e (or a gather of entry e) of one stack: the stack, with that axis as its
 * rows. */
static bool slices_of_stack(Region *r, const View *w, View *stack) {
    Value *base = w->v[0]->def->nin ? w->v[0]->def->in[0] : NULL;
    int E = r->s->E, axis = -1;
    bool slice = same_op(w, OP_SLICE), gather = same_op(w, OP_GATHER);
    if (!base || (!slice && !gather))
        return false;
    for (int e = 0; e < w->n; e++) {
        const Node *n = w->v[e]->def;
        const int64_t *axes, *starts;
        int64_t at;
        if (n->in[0] != base)
            return false;
        if (slice) {
            if (n->nin != 1 || node_ints(n, AT_AXES, &axes) != 1 ||
                node_ints(n, AT_STARTS, &starts) != 1 || n->out[0]->dims[axes[0]] != 1)
                return false;
            at = starts[0];
            axis = e == 0 ? (int)axes[0] : axis == axes[0] ? axis : -1;
        } else {
            const RTensor *idx = probe_value(r->probe, n->in[1]);
            if (!idx || idx->count != 1)
                return false;
            at = idx->i[0];
            axis = (int)node_int(n, AT_AXIS, 0);
            axis += axis < 0 ? base->rank : 0;
            r->data_expert = r->data_expert || r->facts->chosen[n->in[1]->id];
        }
        if (axis < 0 || base->dims[axis] != E || (at < 0 ? at + E : at) != e)
            return false;
    }
    *stack = view_single(r, base, 1u << axis, expert_map(r));
    return true;
}

/* Steps all branches down a reshape that only moves axes of size 1. */
static bool step_reshape(Region *r, View *w) {
    if (!same_op(w, OP_RESHAPE))
        return false;
    View o = {.n = w->n, .map = w->map};
    o.v = ARENA_ARRAY(&r->arena, Value *, w->n);
    for (int i = 0; i < w->n; i++) {
        const Value *out = w->v[i], *in = out->def->in[0];
        o.v[i] = out->def->in[0];
        int a = 0, b = 0;
        for (;;) {
            while (a < in->rank && in->dims[a] == 1)
                a++;
            while (b < out->rank && out->dims[b] == 1)
                b++;
            if (a == in->rank || b == out->rank)
                break;
            if (in->dims[a++] != out->dims[b++])
                return false;
        }
        if (a != in->rank || b != out->rank)
            return false;
    }
    *w = o;
    return true;
}

static void step_transpose(Region *r, View *w) {
    View o = {.n = w->n, .map = w->map};
    o.v = ARENA_ARRAY(&r->arena, Value *, w->n);
    for (int i = 0; i < w->n; i++)
        o.v[i] = w->v[i]->def->in[0];
    *w = o;
}

static bool same_perm(const View *w) {
    const int64_t *p, *q;
    int n = node_ints(w->v[0]->def, AT_PERM, &p);
    for (int i = 1; i < w->n; i++)
        if (node_ints(w->v[i]->def, AT_PERM, &q) != n || memcmp(p, q, sizeof *p * (size_t)n))
            return false;
    return true;
}

bool raise_owned(const Region *r, const Value *v) {
    while (v->def->op == OP_RESHAPE || v->def->op == OP_TRANSPOSE)
        v = v->def->in[0];
    const Attr *a = v->def->op == OP_PARAM ? node_attr(v->def, AT_VALUE) : NULL;
    if (!a || r->merged)
        return a != NULL;
    for (int64_t i = 1, n = tensor_count(a->t); i < n; i++)
        if (tensor_get_f(a->t, i) != tensor_get_f(a->t, 0))
            return false;
    return true;
}

/* An expert that shares its parameter with others gets a copy of its own: their gradients differ.
 */
static void unshare(Region *r, Value **v, int n) {
    for (int i = 0; i < n; i++) {
        bool shared = false;
        for (int k = 0; k < n; k++)
            shared = shared || (k != i && v[k] == v[i]);
        if (!shared || v[i]->def->op != OP_PARAM)
            continue;
        Value *original = v[i];
        const Attr *t = node_attr(original->def, AT_VALUE);
        if (!t)
            continue;
        vec_push(&r->originals, original);
        for (int k = 0; k < n; k++)
            if (v[k] == original) {
                Arena *a = &r->g->arena;
                Tensor *copy = ARENA_NEW(a, Tensor);
                *copy = *t->t;
                copy->data = arena_copy(a, t->t->data, tensor_bytes(t->t));
                const char *name = arena_printf(a, "%s@%d.%d", param_name(original), r->layer, k);
                v[k] = op_param(&r->b, name,
                                (ParamKind)node_int(original->def, AT_KIND, PARAM_WEIGHT), copy);
            }
    }
}

static bool finish_stack(Region *r, const View *w, const int *perm, bool swapped, Weights *out) {
    int64_t a, b;
    if (!two_features(w, &a, &b))
        return false;
    int64_t dims[] = {r->s->E, a, b};
    Value *v = op_reshape(&r->b, view_rows_first(r, w, perm, r->s->E), 3, dims);
    const int64_t *p;
    while (v->def->op == OP_TRANSPOSE && v->rank == 3 && node_ints(v->def, AT_PERM, &p) == 3 &&
           p[0] == 0 && p[1] == 2) {
        v = v->def->in[0];
        swapped = !swapped;
    }
    *out = (Weights){.n = 1, .swapped = swapped};
    out->v = ARENA_NEW(&r->arena, Value *);
    out->v[0] = v;
    return true;
}

static bool weights_single(Region *r, View cur, bool swapped, Weights *out);

static bool weights_branches(Region *r, View cur, bool swapped, Weights *out) {
    View stack;
    int64_t a, b;
    for (int depth = 0; depth < 32; depth++) {
        if (slices_of_stack(r, &cur, &stack))
            return weights_single(r, stack, swapped, out);
        if (same_op(&cur, OP_TRANSPOSE) && same_perm(&cur)) {
            swapped ^= swaps_features(&cur);
            step_transpose(r, &cur);
        } else if (!step_reshape(r, &cur)) {
            break;
        }
    }
    *out = (Weights){.n = cur.n, .swapped = swapped};
    out->v = ARENA_ARRAY(&r->arena, Value *, cur.n);
    memcpy(out->v, cur.v, sizeof *cur.v * (size_t)cur.n);
    unshare(r, out->v, cur.n);
    for (int i = 0; i < cur.n; i++) {
        View one = {.n = 1, .v = &out->v[i], .map = cur.map};
        if (!is_weight(r, cur.v[i]) || !two_features(&one, &a, &b))
            return false;
        out->v[i] = op_reshape(&r->b, out->v[i], 2, (int64_t[]){a, b});
    }
    return true;
}

static bool weights_single(Region *r, View cur, bool swapped, Weights *out) {
    int perm[MAX_RANK];
    for (int depth = 0; depth < 32; depth++) {
        View o;
        if (is_weight(r, cur.v[0]) && view_leaf(r, &cur, perm) == LEAF_EXPERT)
            return finish_stack(r, &cur, perm, swapped, out);
        bool transpose = cur.v[0]->def->op == OP_TRANSPOSE;
        if (transpose)
            swapped ^= swaps_features(&cur);
        if (view_move(r, &cur, &o) != MOVE_DONE)
            return false;
        r->batched = r->batched || cur.v[0]->def->op == OP_GATHER;
        if (o.n > 1)
            return weights_branches(r, o, swapped, out);
        cur = o;
    }
    return false;
}

/* The choices of a token in lockstep, each with matrices taken from the same stack. */
static bool weights_of_choices(Region *r, const View *w, Weights *out) {
    View cur = *w, o;
    bool swapped = false;
    for (int depth = 0; depth < 32; depth++) {
        if (view_equal_all(&cur))
            return weights_single(r, view_collapse(r, &cur), swapped, out);
        if (same_op(&cur, OP_TRANSPOSE))
            swapped ^= swaps_features(&cur);
        r->batched = r->batched || same_op(&cur, OP_GATHER);
        for (int i = 1; i < cur.n; i++)
            if (cur.v[i]->def->op != cur.v[0]->def->op)
                return false;
        if (view_move(r, &cur, &o) != MOVE_DONE || o.n != w->n)
            return false;
        for (int i = 1; i < o.n; i++)
            if (o.map[i]->n != o.map[0]->n)
                return false;
        cur = o;
    }
    return false;
}

bool raise_weights(Region *r, const View *w, Weights *out) {
    if (r->lanes && w->n > 1)
        return weights_of_choices(r, w, out);
    if (w->n == 1)
        return weights_single(r, *w, false, out);
    if (view_equal_all(w))
        return raise_owned(r, w->v[0]) && weights_branches(r, *w, false, out);
    for (int i = 0; i < w->n; i++)
        if (!is_weight(r, w->v[i]) && w->v[i]->def->op != OP_GATHER &&
            w->v[i]->def->op != OP_TRANSPOSE && w->v[i]->def->op != OP_RESHAPE)
            return false;
    return weights_branches(r, *w, false, out);
}

Value *raise_stack(Region *r, const View *w) {
    View cur = *w, stack;
    int64_t f[MAX_RANK], dims[MAX_RANK];
    int nf = view_features(w, f), perm[MAX_RANK];
    memcpy(dims + 1, f, sizeof *f * (size_t)nf);
    for (int depth = 0; depth < 32; depth++) {
        if (slices_of_stack(r, &cur, &stack)) {
            if (view_leaf(r, &stack, perm) != LEAF_EXPERT)
                break;
            dims[0] = r->s->E;
            return op_reshape(&r->b, view_rows_first(r, &stack, perm, r->s->E), nf + 1, dims);
        }
        if (!step_reshape(r, &cur))
            break;
    }
    Value **parts = ARENA_ARRAY(&r->arena, Value *, w->n);
    memcpy(parts, cur.v, sizeof *parts * (size_t)w->n);
    unshare(r, parts, w->n);
    dims[0] = 1;
    for (int i = 0; i < w->n; i++)
        parts[i] = op_reshape(&r->b, parts[i], nf + 1, dims);
    return op_concat(&r->b, parts, w->n, 0);
}
