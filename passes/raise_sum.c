/* raise_sum.c: combines: where the contributions of a token's experts are added up.
 *
 * Two kinds. A reduction over the axis of slots or experts; and a tree of additions (add, scatter
 * with add, add of a scatter on zeros) whose leaves are the E branches, each for all tokens or for
 * a list of tokens. Which expert a branch is, is read off the tokens it serves under synthetic
 * routing. What the tree adds besides (a shared expert, the residual stream) is split off and added
 * again behind the combine. */
#include <stdlib.h>
#include <string.h>

#include "passes/raise.h"

/* ---- candidates ---- */

/* A list of places as one row or one column is the same list. */
static const Value *without_reshapes(const Value *v) {
    for (;;) {
        const Value *x = v->def->nin ? v->def->in[0] : NULL;
        bool turned =
            v->def->op == OP_TRANSPOSE && x->rank == 2 && (x->dims[0] == 1 || x->dims[1] == 1);
        if (v->def->op != OP_RESHAPE && !turned)
            return v;
        v = x;
    }
}

/* Are these the rows of `base` at the scatter's own index? */
static bool gathers_back(const Value *v, const Node *scatter) {
    const Node *g = v->def;
    bool row = g->op == OP_GATHER && node_int(g, AT_AXIS, 0) == 0;
    bool nd = g->op == OP_GATHER_ND && !node_int(g, AT_BATCH_DIMS, 0);
    return (row || nd) && g->in[0] == scatter->in[0] &&
           without_reshapes(g->in[1]) == without_reshapes(scatter->in[1]);
}

/* What a scatter adds to its base: its updates, or, where rows that were read from the base are
 * written back with something added ("y[rows] += v"), that. NULL if it adds nothing. That no row
 * comes twice is seen later. */
static Value *scatter_adds(const Node *n) {
    bool nd = n->op == OP_SCATTER_ND;
    if ((!nd && n->op != OP_SCATTER_ELEMENTS) || !dtype_is_float(n->out[0]->dtype))
        return NULL;
    const char *reduction = node_str(n, AT_REDUCTION, "none");
    const Node *sum = n->in[2]->def;
    if (!strcmp(reduction, "add"))
        return n->in[2];
    if (!nd || strcmp(reduction, "none") || sum->op != OP_ADD)
        return NULL;
    for (int i = 0; i < 2; i++)
        if (gathers_back(sum->in[i], n))
            return sum->in[1 - i];
    return NULL;
}

static bool is_scatter_add(const Node *n) {
    return scatter_adds(n) != NULL;
}

/* Rows written to a tensor of zeros, one expert after the other: a sum where each token has one. */
static bool is_scatter_part(const Region *r, const Node *n) {
    return (n->op == OP_SCATTER_ND || n->op == OP_SCATTER_ELEMENTS) && r->s->K == 1 &&
           dtype_is_float(n->out[0]->dtype) && !strcmp(node_str(n, AT_REDUCTION, "none"), "none");
}

static bool is_sum(const Node *n) {
    return (n->op == OP_ADD && dtype_is_float(n->out[0]->dtype)) || is_scatter_add(n);
}

static bool chosen(const Region *r, const Value *v) {
    return v->id < r->facts->n && r->facts->chosen[v->id];
}

static bool worked(const Region *r, const Value *v) {
    return v->id < r->facts->n && r->facts->worked[v->id];
}

/* A bias: added to one contribution, not a member of the sum. */
static bool adds_bias(const Region *r, const Node *n) {
    if (n->op != OP_ADD)
        return false;
    for (int i = 0; i < 2; i++) {
        const Value *v = n->in[i];
        if (v->id < r->facts->n && !r->facts->activation[v->id] && !chosen(r, v) &&
            v->rank < n->out[0]->rank + 1 && value_count(v) >= 0 &&
            value_count(v) != value_count(n->out[0]))
            return true;
    }
    return false;
}

/* The tokens of a reduction: row axes are the leading ones up to T besides the reduced one, which
 * may be anywhere. False if it is no sum over slots or experts. */
static bool reduction_rows(const Region *r, const Node *n, unsigned *rows, int *axis) {
    const Selection *s = r->s;
    const Value *x = n->in[0];
    const int64_t *axes;
    if (n->op != OP_REDUCE_SUM || node_ints(n, AT_AXES, &axes) != 1 || !dtype_is_float(x->dtype) ||
        !value_known(x))
        return false;
    *axis = (int)(axes[0] < 0 ? axes[0] + x->rank : axes[0]);
    if (x->dims[*axis] != s->K && x->dims[*axis] != s->E)
        return false;
    int64_t tokens = 1;
    *rows = 1u << *axis;
    for (int k = 0; k < x->rank; k++) {
        if (k != *axis) {
            tokens *= x->dims[k];
            *rows |= 1u << k;
        }
        int left = x->rank - k - 1 - (k < *axis);
        bool more = k + 1 < *axis && x->dims[k + 1] == 1; /* an axis of 1 in front is no feature */
        if (tokens == s->T && left > 0 && !more)
            return true;
    }
    return false;
}

/* All T*K pairs written to their tokens in one scatter. */
static bool scatters_pairs(const Region *r, const Node *n) {
    if ((n->op != OP_SCATTER_ND && n->op != OP_SCATTER_ELEMENTS) ||
        !dtype_is_float(n->out[0]->dtype))
        return false;
    const Value *u = n->in[2];
    return u->rank >= 2 && u->dims[0] == r->s->T * r->s->K && chosen(r, u) &&
           n->out[0]->rank == u->rank && n->out[0]->dims[0] == r->s->T;
}

void roots_find(Region *r, Roots *out, Roots *partial) {
    int *count = xcalloc((size_t)r->facts->n, sizeof *count);
    for (Node *n = r->s->value->def; n; n = n->next) {
        unsigned rows;
        int axis;
        if (n->out[0]->id >= r->facts->n || !chosen(r, n->out[0]))
            continue;
        if (reduction_rows(r, n, &rows, &axis)) {
            Root root = {n, 0};
            vec_push(out, root);
        }
        if (scatters_pairs(r, n)) {
            Root root = {n, -1};
            vec_push(out, root);
            count[n->out[0]->id] = 1;
            continue;
        }
        bool part = is_scatter_part(r, n);
        if ((!is_sum(n) && !part) || adds_bias(r, n)) {
            for (int i = 0; i < n->nout; i++)
                count[n->out[i]->id] = 1;
            continue;
        }
        int total = n->op != OP_ADD ? 1 : 0;
        for (int i = 0; i < (n->op == OP_ADD ? 2 : 1); i++)
            total += chosen(r, n->in[i]) ? count[n->in[i]->id] : 0;
        count[n->out[0]->id] = total;
        bool slots = r->s->kind == SELECT_INDEX && total == r->s->K && total > 1;
        if (total == r->s->E || slots) {
            Root root = {n, total};
            vec_push(out, root);
        }
        if (total == r->s->E) {
            continue;
        } else if (total > 1 && total < r->s->E) {
            Root root = {n, total};
            vec_push(partial, root);
        }
    }
    free(count);
}

/* ---- reductions ---- */

Value *raise_combine(Region *r, Value *rows, const Value *like) {
    int64_t dims[MAX_RANK];
    Value *y = op_node(&r->b, OP_COMBINE, (Value *[]){rows, dispatch_out(r, 4), dispatch_out(r, 1)},
                       3, NULL, 0)
                   ->out[0];
    memcpy(dims, like->dims, sizeof dims);
    return op_reshape(&r->b, y, like->rank, dims);
}

static RowMap *reduction_map(Region *r, const Value *x, unsigned rows, int axis, bool slots) {
    const Selection *s = r->s;
    int64_t inner = 1, n = 1;
    for (int k = 0; k < x->rank; k++)
        if (rows >> k & 1) {
            n *= x->dims[k];
            inner *= k > axis ? x->dims[k] : 1;
        }
    RowMap *m = map_new(r, n);
    for (int64_t p = 0; p < n; p++) {
        int j = (int)(p / inner % x->dims[axis]);
        int64_t t = p / inner / x->dims[axis] * inner + p % inner;
        if (slots)
            m->at[p] = (Entry){(int32_t)t, j, (int32_t)r->probe->route.idx[t * s->K + j]};
        else
            m->at[p] = (Entry){(int32_t)t, ROW_VARIES, j};
    }
    return m;
}

/* No row of the summands is zero, for a sample of tokens. */
static bool all_work(Region *r, Value *x, unsigned rows, int axis) {
    enum { TOKENS = 16 };
    int64_t width = 1, inner = 1, n = value_count(x);
    for (int k = 0; k < x->rank; k++) {
        width *= rows >> k & 1 ? 1 : x->dims[k];
        inner *= (rows >> k & 1) && k > axis ? x->dims[k] : 1;
    }
    const char *wanted = probe_sample(r->probe, TOKENS, false);
    Part part = part_new(r->probe, n);
    part.n = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t p = i / width;
        if (wanted[p / inner / x->dims[axis] * inner + p % inner])
            part.at[part.n++] = i;
    }
    const double *v = (const double *)(const void *)probe_part(r->probe, x, &part);
    for (int64_t i = 0; v && i < part.n; i += width) {
        int64_t k = 0;
        while (k < width && v[i + k] == 0)
            k++;
        if (k == width)
            return false;
    }
    return v != NULL && width > 1;
}

/* Outputs of E branches side by side, perhaps weighted. */
static bool joins_experts(const Region *r, const Value *v, int depth) {
    const Node *n = v->def;
    if (n->op == OP_CONCAT)
        return n->nin == r->s->E && dtype_is_float(v->dtype);
    bool taken = n->op == OP_GATHER || n->op == OP_GATHER_ND || n->op == OP_GATHER_ELEMENTS;
    bool passes =
        n->op == OP_MUL || n->op == OP_RESHAPE || n->op == OP_TRANSPOSE || n->op == OP_CAST;
    if (taken && depth > 0)
        return joins_experts(r, n->in[0], depth - 1);
    for (int i = 0; passes && depth > 0 && i < n->nin && n->in[i]; i++)
        if (value_count(n->in[i]) == value_count(v) && joins_experts(r, n->in[i], depth - 1))
            return true;
    return false;
}

static Value *raise_reduction(Region *r, Node *n, bool second) {
    unsigned rows;
    int axis;
    if (!reduction_rows(r, n, &rows, &axis))
        return NULL;
    Value *x = n->in[0];
    bool slots = r->s->K == r->s->E ? second : x->dims[axis] == r->s->K;
    View w = view_single(r, x, rows, reduction_map(r, x, rows, axis, slots));
    bool weighted = served_in_sum(r, &w);
    if (r->s->kind == SELECT_ALL && !weighted && !all_work(r, x, rows, axis))
        return raise_fail(r, n, "some experts do nothing for some tokens here");
    if (r->s->kind != SELECT_ALL && !r->facts->hot[x->id] && !joins_experts(r, x, 4))
        return raise_fail(r, n, "what is summed here is not work that differs with the expert");
    Rows y = raise_rows(r, &w);
    return y.v && !y.uniform ? raise_combine(r, y.v, n->out[0]) : NULL;
}

/* ---- sums of branches ---- */

typedef struct Leaf {
    Value *v;      /* the contribution */
    Value *index;  /* the tokens it is for, or NULL: all */
    bool elements; /* index is one of scatter_elements: a column per feature */
    const Node *scatter;
} Leaf;
typedef struct Leaves {
    VEC(Leaf) at;
    VEC(Value *) base;
} Leaves;

static bool is_zero(const Value *v) {
    while (v->def->op == OP_EXPAND || v->def->op == OP_RESHAPE || v->def->op == OP_SLICE)
        v = v->def->in[0];
    const Attr *a =
        v->def->op == OP_CONST || v->def->op == OP_PARAM ? node_attr(v->def, AT_VALUE) : NULL;
    if (!a || !dtype_is_float(a->t->dtype))
        return false;
    for (int64_t i = 0, n = tensor_count(a->t); i < n; i++)
        if (tensor_get_f(a->t, i) != 0)
            return false;
    return true;
}

static bool is_number(const Value *v, double x) {
    const Attr *a = v->def->op == OP_CONST ? node_attr(v->def, AT_VALUE) : NULL;
    return a && tensor_count(a->t) == 1 &&
           (dtype_is_float(a->t->dtype) ? tensor_get_f(a->t, 0) : (double)tensor_get_i(a->t, 0)) ==
               x;
}

/* "Is there any?", of a count or of flags that follow from the choices; not "are there enough?". */
static bool asks_for_any(const Region *r, const Value *v) {
    const Node *n = v->def;
    switch (n->op) {
    case OP_RESHAPE:
        return asks_for_any(r, n->in[0]);
    case OP_LT: /* 0 < count */
        return is_number(n->in[0], 0) && chosen(r, n->in[1]);
    case OP_LE: /* 1 <= count */
        return is_number(n->in[0], 1) && !dtype_is_float(n->in[1]->dtype) && chosen(r, n->in[1]);
    case OP_NOT: { /* not count == 0 */
        const Node *eq = n->in[0]->def;
        return eq->op == OP_EQ && ((is_number(eq->in[1], 0) && chosen(r, eq->in[0])) ||
                                   (is_number(eq->in[0], 0) && chosen(r, eq->in[1])));
    }
    case OP_CAST:
    case OP_REDUCE_MAX:
        return n->out[0]->dtype == DT_BOOL && chosen(r, n->in[0]);
    default:
        return false;
    }
}

/* Without the condition under which a contribution is computed at all ("if any token chose it"):
 * where it does not hold, there is nothing to contribute, which the probe sees. */
static Value *unconditional(const Region *r, Value *v) {
    const Node *n = v->def;
    bool branch = n->op == OP_WHERE && value_count(n->in[0]) == 1 && is_zero(n->in[2]);
    return branch && asks_for_any(r, n->in[0]) ? n->in[1] : v;
}

static void collect(const Region *r, Value *v, Leaves *out) {
    v = unconditional(r, v);
    Node *n = v->def;
    if (!chosen(r, v)) {
        if (!is_zero(v))
            vec_push(&out->base, v);
    } else if (n->op == OP_ADD && dtype_is_float(v->dtype) && !adds_bias(r, n)) {
        collect(r, n->in[0], out);
        collect(r, n->in[1], out);
    } else if (is_scatter_add(n) || is_scatter_part(r, n) ||
               ((n->op == OP_SCATTER_ND || n->op == OP_SCATTER_ELEMENTS) && is_zero(n->in[0]))) {
        Value *added = scatter_adds(n);
        Leaf l = {unconditional(r, added ? added : n->in[2]), n->in[1],
                  n->op == OP_SCATTER_ELEMENTS, n};
        if (!is_zero(n->in[0]))
            collect(r, n->in[0], out);
        vec_push(&out->at, l);
    } else {
        Leaf l = {v, NULL, false, NULL};
        vec_push(&out->at, l);
    }
}

/* The tokens a leaf's rows are for under a routing; NULL if they cannot be read. */
static int64_t *leaf_tokens(Region *r, Probe *p, const Leaf *l, int64_t *n) {
    if (worked(r, l->index))
        return NULL;
    const RTensor *idx = probe_value(p, l->index);
    if (!idx || idx->rank < 1)
        return NULL;
    const Value *base = l->scatter->out[0];
    int64_t width = idx->dims[idx->rank - 1];
    if (l->elements && (node_int(l->scatter, AT_AXIS, 0) != 0 || idx->rank != 2))
        return NULL;
    *n = width ? idx->count / width : idx->dims[0];
    int64_t *tokens = ARENA_ARRAY(&r->arena, int64_t, *n + 1);
    for (int64_t i = 0; i < *n; i++) {
        int64_t t = 0;
        for (int64_t k = 0; k < (l->elements ? 1 : width); k++) {
            int64_t size = base->dims[k], at = idx->i[i * width + k];
            t = t * size + (at < 0 ? at + size : at);
        }
        for (int64_t k = 1; l->elements && k < width; k++)
            if (idx->i[i * width + k] != idx->i[i * width])
                return NULL;
        if (t < 0 || t >= r->s->T)
            return NULL;
        tokens[i] = t;
    }
    return tokens;
}

/* A value with one number per token that depends on the selection and on nothing an expert
 * computes: a branch's gate. */
static Value *find_gate(const Region *r, Value *v, int depth) {
    if (depth > 64 || !chosen(r, v))
        return NULL;
    if (value_count(v) == r->s->T && dtype_is_float(v->dtype) && !r->facts->hot[v->id] &&
        !worked(r, v))
        return v;
    for (int i = 0; i < v->def->nin; i++) {
        Value *g = v->def->in[i] ? find_gate(r, v->def->in[i], depth + 1) : NULL;
        if (g)
            return g;
    }
    return NULL;
}

/* Where all experts work, a branch is the one whose score it is multiplied with. */
static bool name_by_scores(Region *r, const Leaves *l, int *expert) {
    const Selection *s = r->s;
    const RTensor *p = probe_value(r->probe, s->scores);
    for (int i = 0; i < s->E; i++) {
        Value *gate = find_gate(r, l->at.at[i].v, 0);
        const RTensor *g = gate && !l->at.at[i].index ? probe_value(r->probe, gate) : NULL;
        expert[i] = -1;
        for (int e = 0; e < s->E && p && g && expert[i] < 0; e++) {
            bool same = true;
            for (int64_t t = 0; t < s->T && same; t++)
                same = g->f[t] == p->f[t * s->E + e];
            expert[i] = same ? e : -1;
        }
        if (expert[i] < 0)
            return raise_fail(r, l->at.at[i].v->def,
                              "a branch is not weighted by one of the router's scores");
    }
    return true;
}

/* Tokens that a branch serves as a bit per token. */
static bool leaf_serves(Region *r, Probe *p, const Leaf *l, Value *gate, char *serves) {
    memset(serves, 0, (size_t)r->s->T);
    if (l->index) {
        int64_t n, *t = leaf_tokens(r, p, l, &n);
        for (int64_t i = 0; t && i < n; i++) {
            if (serves[t[i]])
                return raise_fail(r, l->scatter,
                                  "token %lld comes twice among the rows of one expert",
                                  (long long)t[i]);
            serves[t[i]] = 1;
        }
        return t != NULL;
    }
    const RTensor *g = gate ? probe_value(p, gate) : NULL;
    for (int64_t t = 0; g && t < r->s->T; t++)
        serves[t] = g->f[t] != 0;
    return g != NULL;
}

/* Which expert each leaf is: the one whose tokens it serves, under as many routings as it takes to
 * tell; or some of whose tokens, where the others were dropped. */
static bool name_by_tokens(Region *r, const Leaves *l, bool some, int *expert) {
    const Selection *s = r->s;
    char *serves = ARENA_ARRAY(&r->arena, char, s->T + 1);
    char *maybe = ARENA_ARRAY(&r->arena, char, s->E * s->E);
    memset(maybe, 1, (size_t)(s->E * s->E));
    for (int round = 0; round < 4; round++) {
        Probe *p =
            round ? probe_new(r->g, s, r->facts, ROUTE_SPREAD, 0, 77 + (uint64_t)round) : r->probe;
        bool settled = true, ok = true;
        for (int i = 0; i < s->E && ok; i++) {
            Value *gate = l->at.at[i].index ? NULL : find_gate(r, l->at.at[i].v, 0);
            int left = 0;
            ok = leaf_serves(r, p, &l->at.at[i], gate, serves);
            for (int e = 0; e < s->E && ok; e++) {
                char *m = &maybe[i * s->E + e];
                for (int64_t t = 0; t < s->T && *m; t++) {
                    bool chose = p->route.slot[t * s->E + e] >= 0;
                    *m = chose == serves[t] || (some && chose);
                }
                left += *m;
                if (*m)
                    expert[i] = e;
            }
            settled = settled && left == 1;
            if (ok && !left)
                ok = raise_fail(r, l->at.at[i].v->def,
                                "a branch serves the tokens of no single expert") != NULL;
        }
        if (round)
            probe_free(p);
        if (!ok)
            return false;
        if (settled)
            return true;
    }
    for (int i = 0; i < s->E; i++) { /* all experts may serve all tokens: by the masks of pairs */
        const Leaf *leaf = &l->at.at[i];
        Value *from = leaf->index ? leaf->index : find_gate(r, leaf->v, 0);
        if ((expert[i] = from ? name_by_mask(r, from) : -1) < 0)
            return raise_fail(r, leaf->v->def,
                              "too few tokens (%lld) to tell %d experts apart; bind a larger batch",
                              (long long)s->T, s->E);
    }
    return true;
}

/* Columns of who is served by each expert, for the dispatch. */
static bool select_served(Region *r, const Leaves *l, const int *expert) {
    Value **column = ARENA_ARRAY(&r->arena, Value *, r->s->E);
    char *serves = ARENA_ARRAY(&r->arena, char, r->s->T + 1);
    if (r->dispatch)
        return true;
    for (int i = 0; i < r->s->E; i++) {
        const Leaf *leaf = &l->at.at[i];
        Value *gate = leaf->index ? NULL : find_gate(r, leaf->v, 0);
        if (!leaf_serves(r, r->probe, leaf, gate, serves))
            return false;
        column[expert[i]] = gate ? served_by_gate(r, gate) : served_by_list(r, leaf->index, serves);
    }
    return served_select(r, column);
}

static bool serves_of(Region *r, Probe *p, void *leaves, int i, char *serves) {
    const Leaf *leaf = &((Leaves *)leaves)->at.at[i];
    return leaf_serves(r, p, leaf, leaf->index ? NULL : find_gate(r, leaf->v, 0), serves);
}

static void forget(Region *r) {
    r->why = NULL;
    r->where = NULL;
}

static bool name_experts(Region *r, Leaves *l, int *expert) {
    bool all = r->s->kind == SELECT_ALL;
    if (all ? name_by_scores(r, l, expert) : name_by_tokens(r, l, false, expert))
        return true;
    char *why = r->why;
    const Node *where = r->where;
    forget(r);
    bool named =
        all ? name_by_favour(r, r->s->E, serves_of, l, expert) : name_by_tokens(r, l, true, expert);
    if (named && select_served(r, l, expert))
        return true;
    r->why = why;
    r->where = where;
    return false;
}

static RowMap *leaf_map(Region *r, const Leaf *l, int e) {
    int64_t n = r->s->T, *tokens = NULL;
    if (l->index && !(tokens = leaf_tokens(r, r->probe, l, &n)))
        return NULL;
    RowMap *m = map_new(r, n);
    for (int64_t i = 0; i < n; i++) {
        int64_t t = tokens ? tokens[i] : i;
        int32_t k = r->probe->route.slot[t * r->s->E + e];
        m->at[i] = (Entry){(int32_t)t, tokens ? k : ROW_VARIES, e};
    }
    return m;
}

/* Leading axes of a contribution that are its rows. */
static bool leaf_rows(const Region *r, const Leaf *l, unsigned *rows) {
    const Value *v = l->v;
    if (l->index) {
        *rows = 1;
        return v->rank >= 2;
    }
    int64_t n = 1;
    for (int k = 0; k + 1 < v->rank; k++) {
        n *= v->dims[k];
        *rows = (2u << k) - 1;
        if (n == r->s->T)
            return true;
    }
    return false;
}

/* The same computation with other parameters, slices or rows: ops and shapes agree down to shared
 * values. *own counts the parameters that differ, *fuel what may still be looked at. */
static bool alike(const Region *r, const Value *a, const Value *b, int *own, int *fuel) {
    if (a == b)
        return true;
    if (--*fuel < 0 || a->def->op != b->def->op || a->rank != b->rank ||
        a->def->nin != b->def->nin || a->index != b->index)
        return false;
    for (int k = 0; k < a->rank; k++)
        if (a->dims[k] >= 0 && b->dims[k] >= 0 && a->dims[k] != b->dims[k])
            return false;
    const int64_t *sa, *sb;
    int na = node_ints(a->def, AT_STARTS, &sa), nb = node_ints(b->def, AT_STARTS, &sb);
    bool weights = a->id < r->facts->n && r->facts->weight[a->id];
    *own += a->def->op == OP_PARAM || (weights && na && nb && sa[0] != sb[0]) ||
            (a->def->op == OP_GATHER && a->def->in[0] == b->def->in[0] &&
             value_count(a->def->in[1]) == 1 && r->facts->weight[a->def->in[0]->id]);
    for (int i = 0; i < a->def->nin; i++)
        if ((a->def->in[i] == NULL) != (b->def->in[i] == NULL) ||
            (a->def->in[i] && !alike(r, a->def->in[i], b->def->in[i], own, fuel)))
            return false;
    return true;
}

bool raise_merged(const Region *r, const Value *a, const Value *b) {
    int own = 0, fuel = 4000;
    return alike(r, a, b, &own, &fuel) && own == 0;
}

static Value *add_up(Region *r, const Leaves *l) {
    Value *sum = NULL;
    for (int i = 0; i < l->base.n; i++)
        sum = sum ? op_binary(&r->b, OP_ADD, sum, l->base.at[i]) : l->base.at[i];
    return sum;
}

/* Contributions of the K choices, each for all tokens: the k-th token's expert of each. */
static Value *raise_slot_sum(Region *r, Node *n, const Leaves *l, Value **base) {
    const Selection *s = r->s;
    View w = {.n = s->K};
    w.v = ARENA_ARRAY(&r->arena, Value *, s->K);
    w.map = ARENA_ARRAY(&r->arena, RowMap *, s->K);
    for (int i = 0; i < s->K; i++) {
        unsigned rows;
        const Leaf *leaf = &l->at.at[i];
        int k = leaf->index ? -1 : name_by_slot(r, leaf->v);
        if (k < 0 || w.v[k] || !leaf_rows(r, leaf, &rows) || (i && rows != w.rows))
            return raise_fail(r, leaf->v->def, "a contribution is that of no single choice");
        w.v[k] = leaf->v;
        w.rows = rows;
        w.map[k] = map_new(r, s->T);
        for (int64_t t = 0; t < s->T; t++)
            w.map[k]->at[t] = (Entry){(int32_t)t, k, (int32_t)r->probe->route.idx[t * s->K + k]};
    }
    r->lanes = true;
    Rows y = raise_rows(r, &w);
    if (!y.v || y.uniform)
        return NULL;
    *base = add_up(r, l);
    return raise_combine(r, y.v, n->out[0]);
}

static Value *raise_sum(Region *r, Node *n, Value **base) {
    Leaves l = {0};
    int E = r->s->E;
    Value *out = NULL;
    collect(r, n->out[0], &l);
    if (l.at.n == r->s->K && l.at.n != E && r->s->kind == SELECT_INDEX) {
        out = raise_slot_sum(r, n, &l, base);
        vec_free(&l.at);
        vec_free(&l.base);
        return out;
    }
    View w = {.n = E};
    w.v = ARENA_ARRAY(&r->arena, Value *, E);
    w.map = ARENA_ARRAY(&r->arena, RowMap *, E);
    int *expert = ARENA_ARRAY(&r->arena, int, E);
    bool ok = l.at.n == E && name_experts(r, &l, expert);
    if (l.at.n != E)
        raise_fail(r, n, "a sum of %d contributions for %d experts", l.at.n, E);
    for (int i = 0; i < E && ok; i++) {
        unsigned rows;
        int e = expert[i];
        if (w.v[e] || !leaf_rows(r, &l.at.at[i], &rows) || (i && rows != w.rows)) {
            raise_fail(r, l.at.at[i].v->def,
                       "two branches are the same expert, or of different shape");
            ok = false;
            break;
        }
        w.v[e] = l.at.at[i].v;
        r->listed = r->listed || l.at.at[i].index;
        w.rows = rows;
        ok = (w.map[e] = leaf_map(r, &l.at.at[i], e)) != NULL;
    }
    Rows y = {0};
    if (ok) {
        r->merged = raise_merged(r, w.v[0], w.v[1]);
        y = raise_rows(r, &w);
    }
    if (y.v && !y.uniform) {
        out = raise_combine(r, y.v, n->out[0]);
        *base = add_up(r, &l);
    }
    vec_free(&l.at);
    vec_free(&l.base);
    return out;
}

int raise_sum_leaves(Region *r, Node *n, Value **leaf, int most, Value **base) {
    Leaves l = {0};
    collect(r, n->out[0], &l);
    int count = l.at.n;
    *base = NULL;
    for (int i = 0; i < l.at.n; i++) {
        if (l.at.at[i].index)
            count = 0;
        if (i < most)
            leaf[i] = l.at.at[i].v;
    }
    for (int i = 0; i < l.base.n && count <= most; i++)
        *base = *base ? op_binary(&r->b, OP_ADD, *base, l.base.at[i]) : l.base.at[i];
    vec_free(&l.at);
    vec_free(&l.base);
    return count <= most ? count : 0;
}

bool raise_sum_contains(const Node *sum, const Node *part, int depth) {
    if (sum == part)
        return true;
    if (depth == 0 || !is_sum(sum))
        return false;
    for (int i = 0; i < (sum->op == OP_ADD ? 2 : 1); i++)
        if (raise_sum_contains(sum->in[i]->def, part, depth - 1))
            return true;
    return false;
}

bool raise_partial(const Region *r, const Root *root) {
    Leaves l = {0};
    collect(r, root->node->out[0], &l);
    bool same = l.at.n >= 2 && (!l.at.at[0].index || is_list_of_places(l.at.at[0].index));
    for (int i = 1; i < l.at.n && same; i++) {
        int own = 0, fuel = 4000;
        same = !l.at.at[i].index == !l.at.at[0].index &&
               alike(r, l.at.at[0].v, l.at.at[i].v, &own, &fuel) && own > 0;
    }
    vec_free(&l.at);
    vec_free(&l.base);
    return same;
}

/* Pairs in token order or sorted by expert, whichever the scatter's rows say. */
static Value *raise_pairs(Region *r, Node *n, bool sorted, Value **base) {
    const Selection *s = r->s;
    Leaf l = {n->in[2], n->in[1], n->op == OP_SCATTER_ELEMENTS, n};
    int64_t count, at = 0, pairs = s->T * s->K, *tokens = leaf_tokens(r, r->probe, &l, &count);
    if (!tokens || count != pairs)
        return NULL;
    RowMap *m = map_new(r, pairs);
    for (int e = 0; e < (sorted ? s->E : 1); e++)
        for (int64_t i = 0; i < pairs; i++) {
            int64_t who = r->probe->route.idx[i];
            if (sorted && who != e)
                continue;
            if (tokens[at] != i / s->K)
                return raise_fail(r, n, "pairs are scattered in no order that could be followed");
            m->at[at++] = (Entry){(int32_t)(i / s->K), (int32_t)(i % s->K), (int32_t)who};
        }
    View w = view_single(r, l.v, 1, m);
    Rows y = raise_rows(r, &w);
    if (!y.v || y.uniform)
        return NULL;
    *base = is_zero(n->in[0]) ? NULL : n->in[0];
    return raise_combine(r, y.v, n->out[0]);
}

Value *raise_root(Region *r, const Root *root, bool second, Value **base) {
    *base = NULL;
    if (root->leaves < 0)
        return raise_pairs(r, root->node, second, base);
    return root->leaves ? raise_sum(r, root->node, base) : raise_reduction(r, root->node, second);
}
