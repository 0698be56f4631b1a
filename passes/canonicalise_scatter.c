/* canonicalise_scatter.c: writes through a mask.
 *
 * masked_scatter, the way image features enter a sequence: the k-th place where a mask holds takes
 * the k-th row of a source. Exporters write it with a list of the places,
 *
 *     idx = transpose(nonzero(mask))      n of them, which only data decide
 *     y   = scatter_nd(x, idx, source[0:n])
 *
 * and with sizes that only data decide there is no gradient and no compiled code. The same without
 * the list: the place's number is a running count of the mask,
 *
 *     y   = where(mask, source[cumsum(mask) - 1], x)
 *
 * x[mask] = rows, a mask over the leading axes: exporters spread the mask over the features and
 * write single elements, which hides that whole rows are written,
 *
 *     idx = transpose(nonzero(expand(mask)))          n·d of them
 *     y   = scatter_nd(x, idx, reshape(rows, [-1]))   ->   scatter_nd(x, transpose(nonzero(mask)),
 * rows) */
#include <string.h>

#include "passes/canonicalise.h"

/* The mask that idx lists the places of, or NULL. */
static Value *mask_of(const Value *idx) {
    const int64_t *perm;
    const Node *t = idx->def;
    if (t->op != OP_TRANSPOSE || node_ints(t, AT_PERM, &perm) != 2 || perm[0] != 1)
        return NULL;
    const Node *n = t->in[0]->def;
    return n->op == OP_NONZERO && value_known(n->in[0]) ? n->in[0] : NULL;
}

static bool all_equal(const Value *v, double x) {
    return v && canon_is_splat(v, x);
}

/* The source of whose rows the first n are taken; NULL if updates are something else. */
static Value *source_of(const Value *updates) {
    const Node *n = updates->def;
    const int64_t *axes;
    if (n->op != OP_SLICE || n->nin < 3 || !value_known(n->in[0]) || n->in[0]->rank < 1)
        return NULL;
    bool first = all_equal(n->in[1], 0) && value_count(n->in[1]) == 1;
    bool axis0 = n->nin > 3 && n->in[3] ? all_equal(n->in[3], 0)
                                        : node_ints(n, AT_AXES, &axes) == 0 || axes[0] == 0;
    bool step1 = n->nin < 5 || !n->in[4] || all_equal(n->in[4], 1);
    return first && axis0 && step1 ? n->in[0] : NULL;
}

/* A mask that is the same along its last axis, without that axis; else the mask itself. */
static Value *narrow(Value *mask, int64_t *width) {
    const Node *n = mask->def;
    *width = 1;
    if (n->op != OP_EXPAND || n->in[0]->rank != mask->rank || mask->rank < 2)
        return mask;
    for (int k = 0; k + 1 < mask->rank; k++)
        if (n->in[0]->dims[k] != mask->dims[k])
            return mask;
    if (n->in[0]->dims[mask->rank - 1] != 1)
        return mask;
    *width = mask->dims[mask->rank - 1];
    return n->in[0];
}

bool canon_masked_scatter(Canon *c, Node *n) {
    Value *x = n->in[0], *mask = n->op == OP_SCATTER_ND ? mask_of(n->in[1]) : NULL, *source;
    if (!mask || strcmp(node_str(n, AT_REDUCTION, "none"), "none") || !value_known(x) ||
        x->rank < mask->rank || !(source = source_of(n->in[2])) ||
        source->rank != x->rank - mask->rank + 1)
        return false;
    int64_t width, rest = 1, places;
    for (int k = 0; k < x->rank; k++)
        if (k < mask->rank ? x->dims[k] != mask->dims[k]
                           : x->dims[k] != source->dims[k - mask->rank + 1])
            return false;
    Value *m = mask->rank == x->rank ? narrow(mask, &width) : (width = 1, mask);
    for (int k = mask->rank; k < x->rank; k++)
        rest *= x->dims[k];
    places = value_count(m);
    int64_t rows = value_count(source) / (rest * width);
    if (rows < 1 || rows * rest * width != value_count(source) || places < 1)
        return false;
    Builder b = builder_before(n);
    int64_t flat[] = {places}, two[] = {rows, rest * width}, like[MAX_RANK];
    Attr axis = {.key = AT_AXIS, .i = 0};
    Value *on = op_cast(&b, op_reshape(&b, m, 1, flat), DT_I64);
    Value *at =
        op_binary(&b, OP_SUB, op_node(&b, OP_CUMSUM, &on, 1, &axis, 1)->out[0], op_const_i(&b, 1));
    at = op_binary(&b, OP_MIN, op_binary(&b, OP_MAX, at, op_const_i(&b, 0)),
                   op_const_i(&b, rows - 1));
    Value *taken =
        op_reshape(&b, op_gather(&b, op_reshape(&b, source, 2, two), at, 0), x->rank, x->dims);
    for (int k = 0; k < x->rank; k++)
        like[k] = k < m->rank ? m->dims[k] : 1;
    Value *y = op_where(&b, op_cast(&b, op_reshape(&b, m, x->rank, like), DT_BOOL), taken, x);
    return canon_replace(c, n->out[0], y);
}

/* ---- rows written element by element ---- */

/* The list of places of a mask that is shaped like the leading axes of x and was spread over the
 * others; NULL if idx is something else, or no such list is in the graph. */
static Node *row_list(const Value *idx, const Value *x) {
    const Value *wide = mask_of(idx);
    if (!wide || wide->def->op != OP_EXPAND || wide->rank != x->rank || !same_dims(wide, x))
        return NULL;
    const Value *m = wide->def->in[0];
    if (m->def->op != OP_RESHAPE)
        return NULL;
    Value *mask = m->def->in[0];
    for (int k = 0; k < m->rank; k++)
        if (m->dims[k] != (k < mask->rank ? mask->dims[k] : 1))
            return NULL;
    if (m->rank != x->rank || mask->rank < 1)
        return NULL;
    for (int u = 0; u < mask->uses.n; u++)
        if (mask->uses.at[u].node->op == OP_NONZERO)
            return mask->uses.at[u].node;
    return NULL;
}

/* The rows behind updates that were made flat, as many as the list is long; cutting and spreading
 * to that very number in between does nothing. */
static Value *flat_rows(Value *u, int64_t count, const Value *x, int lead) {
    for (int depth = 0; depth < 6; depth++) {
        bool fits = u->rank == x->rank - lead + 1 && u->dims[0] == count;
        for (int k = 1; fits && k < u->rank; k++)
            fits = u->dims[k] == x->dims[lead + k - 1];
        if (fits)
            return u;
        if (u->def->op != OP_RESHAPE && u->def->op != OP_SLICE && u->def->op != OP_EXPAND)
            return NULL;
        u = u->def->in[0];
    }
    return NULL;
}

bool canon_masked_rows(Canon *c, Node *n) {
    Value *x = n->op == OP_SCATTER_ND ? n->in[0] : NULL;
    Node *list = x && value_known(x) ? row_list(n->in[1], x) : NULL;
    if (!list)
        return false;
    int lead = list->in[0]->rank;
    Value *places = list->out[0], *rows = flat_rows(n->in[2], places->dims[1], x, lead);
    if (!rows || n->in[2]->rank != 1)
        return false;
    Builder b = builder_before(n);
    int64_t perm[] = {1, 0};
    Value *in[] = {x, op_transpose(&b, places, perm), rows};
    Node *w = op_node(&b, OP_SCATTER_ND, in, 3, n->attrs, n->nattr);
    return canon_replace(c, n->out[0], w->out[0]);
}
