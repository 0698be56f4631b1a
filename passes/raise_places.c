/* raise_places.c: the places of layers with capacity (raise_slots.c): their weights summed without
 * making them, and whether their number is what the model would compute. */
#include <stdlib.h>
#include <string.h>

#include "passes/raise.h"

/* ---- weights summed over places ---- */

/* Only places below `limit` count; NULL: all. */
static Value *sum_places(Region *r, Value *v, int axis, Value *limit);

static Value *as_int(Region *r, int64_t v) {
    return op_const_i(&r->b, v);
}

static int axis_from_end(const Value *v, int axis) {
    return v->rank - axis;
}

/* x == 0..n-1 along the axis: 1 where x is one of them. */
static Value *hot_sum(Region *r, const Node *eq, int axis, Value *limit, DType type) {
    for (int i = 0; i < 2; i++) {
        Value *x = eq->in[i], *range = eq->in[1 - i], *end = limit;
        int back = axis_from_end(eq->out[0], axis);
        if (dtype_is_float(x->dtype) || x->rank < back || x->dims[x->rank - back] != 1)
            continue;
        Node *f = range->def;
        while (f->op == OP_RESHAPE || f->op == OP_CAST)
            f = f->in[0]->def;
        const RTensor *at = probe_value(r->probe, range);
        bool count = at && at->count == at->dims[at->rank - 1] && range->rank - back >= 0;
        for (int64_t k = 0; count && k < at->count; k++)
            count = at->i[k] == k;
        if (!count || range->dims[range->rank - back] == 1)
            continue;
        if (!end && f->op == OP_RANGE)
            end = f->in[1];
        else if (!end && (range->id < r->facts->n && r->facts->chosen[range->id]))
            continue;
        else if (!end)
            end = as_int(r, range->dims[range->rank - back]);
        Value *below = op_binary(&r->b, OP_LT, x, op_cast(&r->b, end, x->dtype));
        Value *above = op_binary(&r->b, OP_LE, op_cast(&r->b, as_int(r, 0), x->dtype), x);
        return op_cast(&r->b, op_binary(&r->b, OP_AND, above, below), type);
    }
    return NULL;
}

/* The same for a condition; a one-hot that takes negative numbers, as counted from the end, asks
 * for x or x + n, never both. */
static Value *condition_sum(Region *r, const Node *n, int axis, Value *limit, DType type) {
    if (n->op == OP_EQ)
        return hot_sum(r, n, axis, limit, type);
    if (n->op != OP_OR || n->in[0]->rank != n->out[0]->rank || n->in[1]->rank != n->out[0]->rank)
        return NULL;
    Value *a = condition_sum(r, n->in[0]->def, axis, limit, type);
    Value *b = a ? condition_sum(r, n->in[1]->def, axis, limit, type) : NULL;
    return b ? op_binary(&r->b, OP_ADD, a, b) : NULL;
}

/* A slice of the first places: the bound, or NULL. */
static Value *slice_limit(Region *r, const Node *n, int axis) {
    const int64_t *axes, *starts, *ends, *steps;
    int count = node_ints(n, AT_AXES, &axes), nt = node_ints(n, AT_STEPS, &steps);
    node_ints(n, AT_STARTS, &starts);
    node_ints(n, AT_ENDS, &ends);
    if (n->nin != 1 || count != 1 || axes[0] != axis || starts[0] != 0 || (nt && steps[0] != 1))
        return NULL;
    if (ends[0] >= 0)
        return as_int(r, ends[0]);
    /* All but the last ones: how many there are is what a range below counts to. */
    const Node *f = n->in[0]->def;
    for (int depth = 0; depth < 16 && f->op != OP_RANGE; depth++) {
        const Node *next = NULL;
        for (int i = 0; i < f->nin && !next; i++)
            if (f->in[i]->rank >= 1 && f->in[i]->dims[f->in[i]->rank - 1] < 0)
                next = f->in[i]->def;
        if (!next)
            return NULL;
        f = next;
    }
    if (f->op != OP_RANGE)
        return NULL;
    return op_binary(&r->b, OP_ADD, f->in[1], op_cast(&r->b, as_int(r, ends[0]), f->in[1]->dtype));
}

static Value *sum_product(Region *r, const Node *n, int axis, Value *limit) {
    int back = axis_from_end(n->out[0], axis);
    for (int i = 0; i < 2; i++) {
        Value *a = n->in[i], *b = n->in[1 - i];
        if (a->rank >= back && a->dims[a->rank - back] != 1)
            continue;
        Value *s = sum_places(r, b, b->rank - back, limit);
        return s ? op_binary(&r->b, OP_MUL, a, s) : NULL;
    }
    return NULL;
}

/* v summed over `axis`, which stays as 1: without ever making the places, where their weights are
 * products of a gate and a one-hot of the place. */
static Value *sum_places(Region *r, Value *v, int axis, Value *limit) {
    Node *n = v->def;
    Value *s = NULL, *t;
    const int64_t axes[] = {axis};
    if (axis < 0)
        return NULL;
    switch (n->op) {
    case OP_ADD:
        if (n->in[0]->rank != v->rank || n->in[1]->rank != v->rank ||
            n->in[0]->dims[axis] != v->dims[axis] || n->in[1]->dims[axis] != v->dims[axis])
            break;
        s = sum_places(r, n->in[0], axis, limit);
        t = s ? sum_places(r, n->in[1], axis, limit) : NULL;
        return t ? op_binary(&r->b, OP_ADD, s, t) : NULL;
    case OP_MUL:
        s = sum_product(r, n, axis, limit);
        break;
    case OP_SLICE:
        t = limit ? NULL : slice_limit(r, n, axis);
        s = t ? sum_places(r, n->in[0], axis, t) : NULL;
        break;
    case OP_RESHAPE: { /* an axis of 1 put in before */
        const Value *x = n->in[0];
        int64_t dims[MAX_RANK];
        if (axis != v->rank - 1 || x->rank < 1 || x->dims[x->rank - 1] != v->dims[axis])
            break;
        s = sum_places(r, n->in[0], x->rank - 1, limit);
        memcpy(dims, v->dims, sizeof dims);
        dims[axis] = 1;
        s = s ? op_reshape(&r->b, s, v->rank, dims) : NULL;
        break;
    }
    case OP_MATMUL: /* summed over choices by a product */
        if (axis != v->rank - 1 || node_int(n, AT_TRANS_B, 0) || n->in[1]->rank < 2)
            break;
        t = sum_places(r, n->in[1], n->in[1]->rank - 1, limit);
        s = t ? op_matmul(&r->b, n->in[0], t, node_int(n, AT_TRANS_A, 0), false) : NULL;
        break;
    case OP_TRANSPOSE: {
        const int64_t *perm;
        node_ints(n, AT_PERM, &perm);
        t = sum_places(r, n->in[0], (int)perm[axis], limit);
        s = t ? op_transpose(&r->b, t, perm) : NULL;
        break;
    }
    case OP_CAST:
        if (n->in[0]->dtype == DT_BOOL)
            s = condition_sum(r, n->in[0]->def, axis, limit, v->dtype);
        else if ((s = sum_places(r, n->in[0], axis, limit)))
            s = op_cast(&r->b, s, v->dtype);
        break;
    case OP_WHERE: {
        const Tensor *one = value_const(n->in[1]), *zero = value_const(n->in[2]);
        if (one && zero && tensor_count(one) == 1 && tensor_count(zero) == 1 &&
            tensor_get_f(one, 0) == 1 && tensor_get_f(zero, 0) == 0)
            s = condition_sum(r, n->in[0]->def, axis, limit, v->dtype);
        break;
    }
    default:
        break;
    }
    if (s || limit)
        return s;
    return op_reduce(&r->b, OP_REDUCE_SUM, v, axes, 1, true);
}

Value *places_sum(Region *r, Value *v, int axis) {
    return sum_places(r, v, axis, NULL);
}

/* ---- capacity that was frozen ---- */

/* How many sizes of inputs had a name of the user's. */
static int free_sizes(const Graph *g) {
    char fresh[16];
    int n = 0;
    for (int i = 0; i < g->symbols.n; i++) {
        snprintf(fresh, sizeof fresh, "u%d", i);
        n += strcmp(g->symbols.at[i], fresh) != 0;
    }
    return n;
}

/* The length of the queues is a constant that was stored, although the number of tokens was free at
 * export: it is that of the exporter's example. A length that was computed from sizes, and folded
 * when they were bound, comes from another node. */
void places_check_frozen(Region *r, Value *from, int64_t places, int64_t groups) {
    VEC(Value *) queue = {0};
    bool *seen = xcalloc((size_t)r->g->next_value, sizeof *seen);
    /* Where groups have queues of their own, one free size is how many groups there are. */
    if (free_sizes(r->g) > (groups > 1) && places != r->s->E && places < r->s->T / groups)
        vec_push(&queue, from);
    for (int head = 0; head < queue.n && queue.n < 1024 && !r->frozen; head++) {
        const Node *n = queue.at[head]->def;
        const Tensor *c = n->op == OP_LT ? value_const(n->in[1]) : NULL;
        if (c && tensor_count(c) == 1 &&
            (n->in[0]->id < r->facts->n && r->facts->chosen[n->in[0]->id]) &&
            !dtype_is_float(n->in[0]->dtype) && tensor_get_f(c, 0) == (double)places) {
            const char *made = n->in[1]->def->src->op_type;
            r->frozen = !strcmp(made, "Constant") || !strcmp(made, "initializer");
        }
        for (int i = 0; i < n->nin; i++)
            if (n->in[i] && !seen[n->in[i]->id]) {
                seen[n->in[i]->id] = true;
                vec_push(&queue, n->in[i]);
            }
    }
    vec_free(&queue);
    free(seen);
    if (!r->frozen)
        return;
    r->fix = "compute the capacity from the input's size (shape[0] as a tensor), or export with "
             "fixed sizes; or pass --allow-unraised to train it as it is";
    raise_fail(
        r, from->def,
        "each expert has %lld places, a constant of the exporter's example, while the number "
        "of tokens is free",
        (long long)places);
}
