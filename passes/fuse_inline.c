/* fuse_inline.c: which values live only inside kernels.
 *
 * Walked from the results backwards. A value is inlined when every reader can take an expression
 * instead of memory and the work is not done twice: all readers end up in one kernel that reads
 * each element about once, or the value is trivial (a view, a cast, a comparison, a product with a
 * literal: at most one load), or it is an activation: a few operations on one value that stays in
 * memory at least as long anyway (the backward pass then computes sigmoid(g) again instead of
 * keeping it). Matrix products read their operands through transposes, slices and expands by
 * strides. */
#include "passes/fuse_group.h"

#include <stdlib.h>

enum { MANY = -1, NONE = 0, MAX_MEMBERS = 64 };

static bool is_view_op(const Node *n) {
    return n->op == OP_TRANSPOSE || n->op == OP_RESHAPE || n->op == OP_EXPAND || n->op == OP_SLICE;
}

typedef struct Inline {
    Graph *g;
    bool *inlined;      /* by value id */
    bool *store;        /* by value id: somebody needs it in memory */
    bool *trivial;      /* by value id */
    bool *absorbed;     /* by value id: its matmul readers reach through it */
    const Value **base; /* by value id: the one value it is computed of, if it is an activation */
    int *ops;           /* by value id: operations from there */
    int *until;         /* by value id: order of its last reader */
    int *home;          /* by value id: 1 + node id of the only kernel it is computed in, MANY */
    int *members;       /* by node id of a kernel: values inlined so far */
} Inline;

/* ---- trivial values ---- */

static int loads_of(const Inline *t, const Value *v) {
    return fuse_is_literal(v) || (v->def->op == OP_RANGE && t->trivial[v->id]) ? 0 : 1;
}

static bool is_trivial(const Inline *t, const Node *n) {
    switch (n->op) {
    case OP_RESHAPE:
    case OP_EXPAND:
    case OP_SLICE:
    case OP_CAST:
    case OP_SHAPE:
        return true;
    case OP_TRANSPOSE: { /* of outer axes: the innermost stays contiguous */
        const int64_t *perm;
        int rank = node_ints(n, AT_PERM, &perm);
        return rank == 0 || perm[rank - 1] == rank - 1;
    }
    case OP_RANGE:
        return fuse_is_literal(n->in[0]) && fuse_is_literal(n->in[2]);
    case OP_NEG:
    case OP_ABS:
    case OP_NOT:
    case OP_ADD:
    case OP_SUB:
    case OP_MUL:
    case OP_MIN:
    case OP_MAX:
    case OP_EQ:
    case OP_LT:
    case OP_LE:
    case OP_AND:
    case OP_OR:
    case OP_XOR:
    case OP_WHERE: {
        int loads = 0;
        for (int i = 0; i < n->nin; i++)
            loads += loads_of(t, n->in[i]);
        return loads <= 1;
    }
    default:
        return false;
    }
}

/* ---- activations ---- */

enum { MAX_OPS = 8, MAX_READERS = 8, SLACK = 32 };

/* Sets base and ops of n's result if all it reads (but literals) comes from one value. */
static void find_base(Inline *t, const Node *n) {
    const Value *v = n->out[0], *base = NULL;
    int ops = 1;
    if (!dtype_is_float(v->dtype) || v->rank == 0)
        return;
    if (!(op_info[n->op].flags & OPF_ELEM) && n->op != OP_SLICE && n->op != OP_RESHAPE)
        return;
    for (int i = 0; i < n->nin; i++) {
        const Value *x = n->in[i], *from = t->base[x->id] ? t->base[x->id] : x;
        if (fuse_is_literal(x))
            continue;
        if ((base && from != base) || value_count(x) < value_count(v))
            return;
        base = from;
        ops += t->ops[x->id];
    }
    if (!base || ops > MAX_OPS || (op_info[base->def->op].flags & OPF_LEAF))
        return;
    t->base[v->id] = base;
    t->ops[v->id] = ops;
}

/* v costs little to compute again, and what it takes is there: its base has a reader not much
 * earlier than v's last. */
static bool is_activation(const Inline *t, const Value *v) {
    const Value *b = t->base[v->id];
    return b && v->uses.n <= MAX_READERS && t->until[b->id] + SLACK >= t->until[v->id];
}

/* ---- matrix operands ---- */

static bool is_base(const Value *v, void *ctx) {
    return !is_view_op(v->def);
}

/* Marks the views of a matmul operand that strides can express; what they are views of must be in
 * memory. */
static void absorb(Inline *t, Value *v) {
    MatrixView w;
    if (v->rank < 2 || v->dtype != DT_F32 || value_count(v) == 0 || !matrix_view(v, is_base, t, &w))
        return;
    if ((w.row != 1 && w.col != 1) || fuse_is_literal(w.base))
        return;
    for (int i = 0; i < w.nbatch; i++)
        if (w.batch_stride[i] < 0)
            return;
    if (w.row < 0 || w.col < 0)
        return;
    t->store[w.base->id] = true;
    for (Value *u = v; is_view_op(u->def); u = u->def->in[0])
        t->absorbed[u->id] = true;
}

/* Rows gathered only to be multiplied: the product reads them through the index. */
static bool gathered_rows(const Value *v) {
    const Node *n = v->def;
    return n->op == OP_GATHER_ROWS && v->dtype == DT_F32 && v->rank == 2 && n->in[1]->rank == 1;
}

/* ---- readers ---- */

/* v is read by c at the index of c's result, or at fewer places than it has elements. */
static bool reads_once(const Node *c, const Value *v) {
    const Value *r = c->out[0];
    switch (c->op) {
    case OP_EXPAND:
        break;
    case OP_GATHER:
    case OP_GATHER_ROWS:
    case OP_GATHER_ELEMENTS:
    case OP_GATHER_ND:
        return value_count(r) <= value_count(v);
    case OP_UNFOLD:
        return false;
    case OP_XENT_GRAD:
    case OP_COMBINE:
        return true;
    default:
        if (!(op_info[c->op].flags & OPF_ELEM))
            return true;
    }
    if (value_count(r) <= value_count(v))
        return true;
    /* broadcast over inner axes: computed once per row of enough elements */
    int64_t inner = 1;
    int i = v->rank - 1, j = r->rank - 1;
    for (; i >= 0 && v->dims[i] == 1; i--, j--)
        inner *= r->dims[j];
    for (; i >= 0; i--, j--)
        if (v->dims[i] != r->dims[j])
            return false;
    for (; j >= 0; j--)
        if (r->dims[j] != 1)
            return false;
    return inner >= 16;
}

static bool moves_index(const Node *c) {
    return c->op == OP_SLICE || c->op == OP_CONCAT || c->op == OP_PAD || c->op == OP_TRANSPOSE ||
           c->op == OP_GATHER || c->op == OP_UNFOLD;
}

/* c can take v's elements as expressions. */
static bool accepts(const Inline *t, const Node *c, const Value *v) {
    if (c->op >= OP_REDUCE_SUM && c->op <= OP_REDUCE_PROD)
        return true;
    if (c->op == OP_SOFTMAX || c->op == OP_LOG_SOFTMAX || c->op == OP_XENT)
        return true;
    if (c->op == OP_MATMUL)
        return t->absorbed[v->id];
    if (c->op == OP_GROUPED_MATMUL)
        return c->in[0] == v && gathered_rows(v);
    if (v->def->op ==
        OP_CONCAT) /* pieces are told apart where the index is known: on the same axes */
        return v->def->nin <= 3 && (op_info[c->op].flags & OPF_ELEM) && same_dims(c->out[0], v) &&
               node_int(v->def, AT_AXIS, 0) == v->rank - 1;
    return fuse_has_rule(c);
}

static bool inlinable(const Inline *t, const Node *n) {
    const Value *v = n->out[0];
    if (!fuse_has_rule(n) || n->op == OP_NONZERO || t->store[v->id] || value_is_output(v) ||
        v->uses.n == 0)
        return false;
    bool moved = false;
    int64_t offset;
    for (int i = 0; i < v->uses.n; i++) {
        const Node *c = v->uses.at[i].node;
        if (!accepts(t, c, v) || (fuse_is_view(c, &offset) && !t->inlined[c->out[0]->id]))
            return false;
        if (!t->trivial[v->id] && !reads_once(c, v))
            return false;
        moved |= moves_index(c);
        /* indices of gathers are read before anything else; keep computed ones in memory unless
         * trivial */
        if (c->op == OP_COMBINE && v->uses.at[i].operand != 0 && !t->trivial[v->id])
            return false;
    }
    return t->trivial[v->id] || !moved || v->uses.n == 1;
}

/* The kernel all readers of v end up in; NONE: only products that reach through it. */
static int common_home(const Inline *t, const Value *v) {
    int home = NONE;
    for (int i = 0; i < v->uses.n; i++) {
        const Node *c = v->uses.at[i].node;
        if (c->op == OP_MATMUL || c->op == OP_GROUPED_MATMUL)
            continue;
        int h = t->inlined[c->out[0]->id] ? t->home[c->out[0]->id] : c->id + 1;
        if (h == MANY || (home != NONE && home != h))
            return MANY;
        home = h;
    }
    return home;
}

void fuse_inline(Graph *g, bool *inlined) {
    size_t nv = (size_t)g->next_value + 1, nn = (size_t)g->next_node + 1;
    Inline t = {g,    inlined, xcalloc(nv, 1), xcalloc(nv, 1),           xcalloc(nv, 1),
                NULL, NULL,    NULL,           xcalloc(nv, sizeof(int)), xcalloc(nn, sizeof(int))};
    t.base = xcalloc(nv, sizeof *t.base);
    t.ops = xcalloc(nv, sizeof *t.ops);
    t.until = xcalloc(nv, sizeof *t.until);
    int place = 0;
    FOR_NODES(n, g) {
        place++;
        for (int i = 0; i < n->nin; i++)
            if (n->in[i])
                t.until[n->in[i]->id] = place;
        if (n->nout == 1)
            find_base(&t, n);
        if (n->nout == 1)
            t.trivial[n->out[0]->id] = is_trivial(&t, n);
        for (int i = 0; i < 2 && n->op == OP_MATMUL; i++)
            absorb(&t, n->in[i]);
        if (n->op == OP_GROUPED_MATMUL && gathered_rows(n->in[0])) {
            t.store[n->in[0]->def->in[0]->id] = true;
            t.store[n->in[0]->def->in[1]->id] = true;
        }
    }
    for (Node *n = g->last; n; n = n->prev) /* who reads a part reads the whole */
        if ((n->op == OP_SLICE || n->op == OP_RESHAPE) &&
            t.until[n->out[0]->id] > t.until[n->in[0]->id])
            t.until[n->in[0]->id] = t.until[n->out[0]->id];
    for (Node *n = g->last; n; n = n->prev) {
        if (n->nout != 1 || !inlinable(&t, n))
            continue;
        Value *v = n->out[0];
        int home = common_home(&t, v);
        bool free_ = t.trivial[v->id] || t.absorbed[v->id] || is_activation(&t, v);
        if (home == MANY ? !free_ : home != NONE && t.members[home - 1] >= MAX_MEMBERS)
            continue;
        t.home[v->id] = home == NONE ? MANY : home;
        inlined[v->id] = true;
        if (home > NONE)
            t.members[home - 1]++;
    }
    free(t.store);
    free(t.trivial);
    free(t.absorbed);
    free(t.base);
    free(t.ops);
    free(t.until);
    free(t.home);
    free(t.members);
}
