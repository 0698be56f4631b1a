/* simplify_rules.c: the local rewrites. Each rule looks at one node and its operands' makers, and
 * returns the value that can stand for its (only) result, or NULL; rules that edit the node in
 * place return `CHANGED`. Adding a rule = one function and one row of the table at the end. */
#include <string.h>

#include "passes/grad.h"
#include "passes/simplify.h"

/* What a rule returns when it edited the node itself. */
static Value changed_marker;
#define CHANGED (&changed_marker)

/* ---- constants ---- */

/* v is k in every element (a constant, or one expanded). */
static bool splat(const Value *v, double *k) {
    while (v->def->op == OP_EXPAND || v->def->op == OP_RESHAPE)
        v = v->def->in[0];
    const Tensor *t = value_const(v);
    int64_t n = t ? tensor_count(t) : 0;
    if (n < 1 || n > 16 || !dtype_is_float(t->dtype))
        return false;
    *k = tensor_get_f(t, 0);
    for (int64_t i = 1; i < n; i++)
        if (tensor_get_f(t, i) != *k)
            return false;
    return true;
}

static bool scalar_const(const Value *v, double *k) {
    return value_is_const(v) && v->rank == 0 && splat(v, k);
}

/* x*1, x/1, x+0, x-0 where x has the result's shape. */
static Value *rule_neutral(Builder *b, Node *n) {
    (void)b;
    double k;
    for (int i = 0; i < 2; i++) {
        Value *x = n->in[1 - i];
        double neutral = n->op == OP_MUL || n->op == OP_DIV ? 1 : 0;
        bool either = n->op == OP_MUL || n->op == OP_ADD;
        if ((i == 1 || either) && same_dims(x, n->out[0]) && splat(n->in[i], &k) && k == neutral)
            return x;
    }
    return NULL;
}

/* (x*a)*b with scalars: one product, by the double product of the two. */
static Value *rule_scales(Builder *b, Node *n) {
    double k, inner;
    for (int i = 0; i < 2; i++) {
        Node *m = n->in[1 - i]->def;
        if (!scalar_const(n->in[i], &k) || m->op != OP_MUL || m->out[0]->uses.n != 1 ||
            value_is_output(m->out[0]))
            continue;
        for (int j = 0; j < 2; j++)
            if (scalar_const(m->in[j], &inner))
                return op_binary(b, OP_MUL, m->in[1 - j],
                                 op_const_f(b, n->out[0]->dtype, k * inner));
    }
    return NULL;
}

/* Two scalar constants. */
static Value *rule_fold(Builder *b, Node *n) {
    double x, y;
    if (!scalar_const(n->in[0], &x) || !scalar_const(n->in[1], &y))
        return NULL;
    double z = n->op == OP_MUL ? x * y : n->op == OP_DIV ? x / y : n->op == OP_ADD ? x + y : x - y;
    return op_const_f(b, n->out[0]->dtype, z);
}

static Value *rule_neg(Builder *b, Node *n) {
    double k;
    if (n->in[0]->def->op == OP_NEG)
        return n->in[0]->def->in[0];
    return scalar_const(n->in[0], &k) ? op_const_f(b, n->out[0]->dtype, -k) : NULL;
}

/* x + -y = x - y */
static Value *rule_add_neg(Builder *b, Node *n) {
    for (int i = 0; i < 2; i++)
        if (n->in[i]->def->op == OP_NEG)
            return op_binary(b, OP_SUB, n->in[1 - i], n->in[i]->def->in[0]);
    return NULL;
}

static Value *rule_sub_neg(Builder *b, Node *n) {
    return n->in[1]->def->op == OP_NEG ? op_binary(b, OP_ADD, n->in[0], n->in[1]->def->in[0])
                                       : NULL;
}

/* ---- views ---- */

static Value *rule_reshape(Builder *b, Node *n) {
    Value *x = n->in[0], *y = n->out[0];
    if (same_dims(x, y))
        return x;
    if (x->def->op != OP_RESHAPE || !value_known(y))
        return NULL;
    return op_reshape(b, x->def->in[0], y->rank, y->dims);
}

static Value *rule_transpose(Builder *b, Node *n) {
    const int64_t *perm, *inner;
    int64_t both[MAX_RANK];
    int rank = node_ints(n, AT_PERM, &perm);
    bool identity = true;
    for (int i = 0; i < rank; i++)
        identity &= perm[i] == i;
    if (identity)
        return n->in[0];
    Node *m = n->in[0]->def;
    if (m->op != OP_TRANSPOSE)
        return NULL;
    node_ints(m, AT_PERM, &inner);
    for (int i = 0; i < rank; i++)
        both[i] = inner[perm[i]];
    return op_transpose(b, m->in[0], both);
}

static Value *rule_same(Builder *b, Node *n) {
    (void)b;
    return n->in[0]->dtype == n->out[0]->dtype && same_dims(n->in[0], n->out[0]) ? n->in[0] : NULL;
}

/* A slice of everything, unless it turns an axis round. */
static Value *rule_slice(Builder *b, Node *n) {
    const int64_t *steps;
    int k = node_ints(n, AT_STEPS, &steps);
    for (int i = 0; i < k; i++)
        if (steps[i] < 0)
            return NULL;
    return rule_same(b, n);
}

/* A pad by nothing. (Equal sizes alone may be a shift: one in front, one off the end.) */
static Value *rule_pad(Builder *b, Node *n) {
    const int64_t *pads;
    int k = node_ints(n, AT_PADS, &pads);
    for (int i = 0; i < k; i++)
        if (pads[i])
            return NULL;
    return rule_same(b, n);
}

/* A sum (or extreme) over axes of size 1 is a view. */
static Value *rule_reduce(Builder *b, Node *n) {
    Value *x = n->in[0], *y = n->out[0];
    const int64_t *axes;
    int k = node_ints(n, AT_AXES, &axes);
    if (!value_known(x) || !value_known(y))
        return NULL;
    for (int i = 0; i < k; i++)
        if (x->dims[axis_of(axes[i], x->rank)] != 1)
            return NULL;
    return op_reshape(b, x, y->rank, y->dims);
}

/* An elementwise op broadcasts by itself: the expand before it goes where the shape stays. */
static Value *rule_elem_expand(Builder *b, Node *n) {
    (void)b;
    bool any = false;
    for (int i = 0; i < n->nin && n->nin > 1; i++) {
        Node *e = n->in[i]->def;
        if (e->op != OP_EXPAND || e->nin != 1 || !value_known(e->in[0]) || !value_known(n->out[0]))
            continue;
        bool covered = true; /* every axis of the result is full without this operand's copies */
        for (int a = 0; a < n->out[0]->rank && covered; a++) {
            bool full = n->out[0]->dims[a] == 1;
            for (int j = 0; j < n->nin && !full; j++) {
                const Value *v = j == i ? e->in[0] : n->in[j];
                int at = a - (n->out[0]->rank - v->rank);
                full = at >= 0 && v->dims[at] == n->out[0]->dims[a];
            }
            covered = full;
        }
        if (covered) {
            node_set_in(n, i, e->in[0]);
            any = true;
        }
    }
    return any ? CHANGED : NULL;
}

/* ---- products ---- */

/* v is a transpose of the last two axes of something: that, or NULL. */
static Value *untransposed(const Value *v) {
    const int64_t *perm;
    if (v->def->op != OP_TRANSPOSE || v->rank < 2)
        return NULL;
    node_ints(v->def, AT_PERM, &perm);
    for (int i = 0; i < v->rank - 2; i++)
        if (perm[i] != i)
            return NULL;
    return perm[v->rank - 1] == v->rank - 2 ? v->def->in[0] : NULL;
}

static Value *rule_matmul(Builder *b, Node *n) {
    (void)b;
    bool any = false;
    for (int i = 0; i < 2; i++) {
        Value *x = untransposed(n->in[i]);
        AttrKey flag = i ? AT_TRANS_B : AT_TRANS_A;
        if (!x)
            continue;
        node_set_in(n, i, x);
        node_set_int(n, flag, !node_int(n, flag, 0));
        any = true;
    }
    return any ? CHANGED : NULL;
}

static Value *rule_grouped(Builder *b, Node *n) {
    (void)b;
    for (int i = 2; i < n->nin; i++)
        if (!untransposed(n->in[i]))
            return NULL;
    for (int i = 2; i < n->nin; i++)
        node_set_in(n, i, untransposed(n->in[i]));
    node_set_int(n, AT_TRANS_B, !node_int(n, AT_TRANS_B, 0));
    return CHANGED;
}

/* ---- pads that split's gradient makes ---- */

/* The one axis that v pads with zeros, and how; false if it is anything else. */
static bool one_pad(const Value *v, int *axis, int64_t *before, int64_t *after) {
    const int64_t *pads;
    if (v->def->op != OP_PAD || v->def->nin != 1 || node_float(v->def, AT_VALUE_F, 0) != 0)
        return false;
    int rank = node_ints(v->def, AT_PADS, &pads) / 2, found = 0;
    for (int i = 0; i < rank; i++)
        if (pads[i] || pads[rank + i]) {
            *axis = i;
            *before = pads[i];
            *after = pads[rank + i];
            found++;
        }
    return found == 1 && *before >= 0 && *after >= 0;
}

/* pad(x) + pad(y), side by side on one axis: a concatenation, padded by what is left. */
static Value *rule_add_pads(Builder *b, Node *n) {
    int axis[2];
    int64_t before[2], after[2];
    for (int i = 0; i < 2; i++)
        if (!one_pad(n->in[i], &axis[i], &before[i], &after[i]))
            return NULL;
    if (axis[0] != axis[1])
        return NULL;
    int first = before[0] <= before[1] ? 0 : 1, second = 1 - first, a = axis[0];
    Value *x = n->in[first]->def->in[0], *y = n->in[second]->def->in[0];
    if (!value_known(x) || !value_known(y) || before[first] + x->dims[a] != before[second])
        return NULL;
    Value *parts[2] = {x, y}, *z = op_concat(b, parts, 2, a);
    if (!before[first] && !after[second])
        return z;
    int64_t pads[2 * MAX_RANK] = {0};
    pads[a] = before[first];
    pads[z->rank + a] = after[second];
    Attr at = attr_ints(AT_PADS, pads, 2 * z->rank);
    return op_node(b, OP_PAD, &z, 1, &at, 1)->out[0];
}

/* concat(concat(x, y), z) on one axis. */
static Value *rule_concat(Builder *b, Node *n) {
    int axis = axis_of(node_int(n, AT_AXIS, 0), n->out[0]->rank);
    if (n->nin == 1)
        return n->in[0];
    Node *m = n->in[0]->def;
    if (m->op != OP_CONCAT || axis_of(node_int(m, AT_AXIS, 0), n->out[0]->rank) != axis ||
        m->out[0]->uses.n != 1 || value_is_output(m->out[0]))
        return NULL;
    Value **parts = ARENA_ARRAY(&b->g->arena, Value *, m->nin + n->nin);
    int k = 0;
    for (int i = 0; i < m->nin; i++)
        parts[k++] = m->in[i];
    for (int i = 1; i < n->nin; i++)
        parts[k++] = n->in[i];
    return op_concat(b, parts, k, axis);
}

/* ---- the table ---- */

typedef struct Rule {
    Op op; /* OP_COUNT: any elementwise op */
    Value *(*apply)(Builder *b, Node *n);
} Rule;

static const Rule rules[] = {
    {OP_MUL, rule_neutral},       {OP_DIV, rule_neutral},
    {OP_ADD, rule_neutral},       {OP_SUB, rule_neutral},
    {OP_MUL, rule_fold},          {OP_DIV, rule_fold},
    {OP_ADD, rule_fold},          {OP_SUB, rule_fold},
    {OP_MUL, rule_scales},        {OP_NEG, rule_neg},
    {OP_ADD, rule_add_neg},       {OP_SUB, rule_sub_neg},
    {OP_RESHAPE, rule_reshape},   {OP_TRANSPOSE, rule_transpose},
    {OP_EXPAND, rule_same},       {OP_CAST, rule_same},
    {OP_SLICE, rule_slice},       {OP_PAD, rule_pad},
    {OP_REDUCE_SUM, rule_reduce}, {OP_REDUCE_MAX, rule_reduce},
    {OP_REDUCE_MIN, rule_reduce}, {OP_REDUCE_PROD, rule_reduce},
    {OP_MATMUL, rule_matmul},     {OP_GROUPED_MATMUL, rule_grouped},
    {OP_ADD, rule_add_pads},      {OP_CONCAT, rule_concat},
    {OP_COUNT, rule_elem_expand},
};

/* The value fits where the old one was. */
static bool fits(const Value *v, const Value *old) {
    return v->dtype == old->dtype && same_dims(v, old);
}

bool simplify_rules(Graph *g) {
    bool any = false;
    FOR_NODES_SAFE(n, g) {
        bool elem = op_info[n->op].flags & OPF_ELEM;
        for (int i = 0; i < COUNT_OF(rules); i++) {
            if (rules[i].op != n->op && !(rules[i].op == OP_COUNT && elem))
                continue;
            Builder b = builder_before(n);
            Value *v = rules[i].apply(&b, n);
            any |= v != NULL;
            if (v && v != CHANGED) {
                if (!fits(v, n->out[0]))
                    bug("a rewrite of '%s' changed its type or shape", op_info[n->op].name);
                value_replace(n->out[0], v);
                break;
            }
        }
    }
    return any;
}
