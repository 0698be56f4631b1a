/* canonicalise_fold.c: what the compiler can know now: constants, sizes, and shape operands. */
#include <stdlib.h>
#include <string.h>

#include "ir/eval.h"
#include "passes/canonicalise.h"

/* Larger results stay in the graph as they are: folding an Expand or a Range must not turn a small
 * file into a large compile. */
#define FOLD_MAX ((int64_t)1 << 22)

bool canon_is_splat(const Value *v, double x) {
    double first;
    const Tensor *t = value_const(v);
    if (t && tensor_count(t) > 1) {
        for (int64_t i = 0, n = tensor_count(t); i < n; i++)
            if (tensor_get_f(t, i) != x)
                return false;
        return true;
    }
    return canon_scalar(v, &first) && first == x;
}

bool canon_scalar(const Value *v, double *x) {
    const Tensor *t = v ? value_const(v) : NULL;
    if (!t || tensor_count(t) != 1)
        return false;
    *x = tensor_get_f(t, 0);
    return true;
}

static RTensor **eval_table(Canon *c) {
    if (c->table_cap < c->g->next_value) {
        c->table_cap = c->g->next_value + c->g->next_value / 2 + 64;
        c->table = xrealloc(c->table, sizeof *c->table * (size_t)c->table_cap);
        memset(c->table, 0, sizeof *c->table * (size_t)c->table_cap);
    }
    return c->table;
}

bool canon_fold_const(Canon *c, Node *n) {
    if ((op_info[n->op].flags & (OPF_LEAF | OPF_EFFECT)) || n->nin == 0 || n->op == OP_DISPATCH)
        return false;
    for (int i = 0; i < n->nin; i++)
        if (n->in[i] && !value_is_const(n->in[i]))
            return false;
    for (int i = 0; i < n->nout; i++)
        if (value_known(n->out[i]) && value_count(n->out[i]) > FOLD_MAX)
            return false;
    /* The evaluator wants a table by value id: one for the whole pass, of which only this node's
     * entries are set. */
    Arena a = {0};
    Diag quiet = {0};
    Eval ev = {.arena = &a, .round = true, .diag = &quiet, .mem_limit = FOLD_MAX * 64};
    ev.values = eval_table(c);
    for (int i = 0; i < n->nin; i++)
        if (n->in[i])
            ev.values[n->in[i]->id] = rtensor_from(&a, value_const(n->in[i]));
    bool ok = eval_node(&ev, n);
    for (int i = 0; i < n->nout && ok; i++)
        ok = ev.values[n->out[i]->id]->count <= FOLD_MAX;
    if (ok) {
        Builder b = builder_before(n);
        Value *folded[64];
        int nout = n->nout < 64 ? n->nout : 64;
        for (int i = 0; i < nout; i++) {
            const RTensor *r = ev.values[n->out[i]->id];
            folded[i] = op_const(&b, rtensor_to(&a, r, n->out[i]->dtype));
        }
        for (int i = 0; i < nout; i++)
            if (n->out[i]->uses.n || value_is_output(n->out[i]))
                canon_replace(c, n->out[i], folded[i]);
    }
    diag_free(&quiet);
    arena_free(&a);
    return ok;
}

/* ---- sizes that shapes decide ----
 *
 * Exporters compute a size in a handful of steps. A longer chain is the model's own arithmetic:
 * looking to its end from every node would take the square of its length, and the stack. */
enum { SYMINTS_DEPTH = 24 };

static bool symints(const Value *v, SymInt *out, int *n, int depth);

static bool symints_binary(const Node *n, SymInt *out, int *count, int depth) {
    SymInt b[SYMINTS_MAX];
    int nb;
    if (!symints(n->in[0], out, count, depth) || !symints(n->in[1], b, &nb, depth))
        return false;
    int m = *count > nb ? *count : nb;
    if ((*count != m && *count != 1) || (nb != m && nb != 1))
        return false;
    for (int i = m - 1; i >= 0; i--) {
        SymInt x = out[*count == 1 ? 0 : i], y = b[nb == 1 ? 0 : i];
        if (n->op == OP_MUL && !y.symbol && y.v == 1) {
            out[i] = x;
            continue;
        }
        if (n->op == OP_MUL && !x.symbol && x.v == 1) {
            out[i] = y;
            continue;
        }
        if (x.symbol || y.symbol ||
            (n->op == OP_DIV && (y.v == 0 || (x.v == INT64_MIN && y.v == -1))))
            return false;
        out[i].symbol = false;
        bool over = n->op == OP_ADD   ? __builtin_add_overflow(x.v, y.v, &out[i].v)
                    : n->op == OP_SUB ? __builtin_sub_overflow(x.v, y.v, &out[i].v)
                    : n->op == OP_MUL ? __builtin_mul_overflow(x.v, y.v, &out[i].v)
                                      : (out[i].v = x.v / y.v, false);
        if (over)
            return false;
    }
    *count = m;
    return true;
}

static bool symints_pick(const Node *n, SymInt *out, int *count, int depth) {
    SymInt from[SYMINTS_MAX], at[SYMINTS_MAX];
    int nfrom, nat;
    if (!symints(n->in[0], from, &nfrom, depth))
        return false;
    if (n->op == OP_GATHER) {
        if (n->in[0]->rank != 1 || !symints(n->in[1], at, &nat, depth))
            return false;
        for (int i = 0; i < nat; i++) {
            if (at[i].symbol || at[i].v >= nfrom || at[i].v < -nfrom)
                return false;
            out[i] = from[at[i].v < 0 ? at[i].v + nfrom : at[i].v];
        }
        *count = nat;
        return true;
    }
    const int64_t *starts, *steps; /* slice, normalised by inference */
    if (n->nin != 1 || n->out[0]->rank != 1 || n->out[0]->dims[0] < 0 ||
        node_ints(n, AT_STARTS, &starts) != 1)
        return false;
    int nsteps = node_ints(n, AT_STEPS, &steps);
    int64_t step = nsteps ? steps[0] : 1, start = starts[0] < 0 ? starts[0] + nfrom : starts[0];
    *count = (int)n->out[0]->dims[0];
    for (int i = 0; i < *count; i++) {
        int64_t k = start + i * step;
        if (k < 0 || k >= nfrom)
            return false;
        out[i] = from[k];
    }
    return true;
}

static bool symints_concat(const Node *n, SymInt *out, int *count, int depth) {
    *count = 0;
    for (int i = 0; i < n->nin; i++) {
        SymInt part[SYMINTS_MAX];
        int np;
        if (!symints(n->in[i], part, &np, depth) || *count + np > SYMINTS_MAX)
            return false;
        memcpy(out + *count, part, sizeof *part * (size_t)np);
        *count += np;
    }
    return true;
}

/* The product of a few sizes: a size that no dim has a name for, if data decide one of them. */
static bool symints_product(const Node *n, SymInt *out, int *count, int depth) {
    SymInt from[SYMINTS_MAX];
    int nfrom, symbols = 0;
    if (n->in[0]->rank != 1 || n->out[0]->rank > 1 || !symints(n->in[0], from, &nfrom, depth))
        return false;
    *count = 1;
    *out = (SymInt){false, 1};
    for (int i = 0; i < nfrom; i++) {
        symbols += from[i].symbol;
        if (!from[i].symbol && __builtin_mul_overflow(out->v, from[i].v, &out->v))
            return false;
    }
    if (symbols)
        *out = (SymInt){true, INT64_MIN};
    return true;
}

static bool symints(const Value *v, SymInt *out, int *n, int depth) {
    if (depth > SYMINTS_DEPTH || v->rank > 1 || v->rank < 0 || dtype_is_float(v->dtype) ||
        (v->rank == 1 && (v->dims[0] < 0 || v->dims[0] > SYMINTS_MAX)))
        return false;
    const Node *d = v->def;
    const Tensor *t = value_const(v);
    switch (d->op) {
    case OP_CONST:
        *n = (int)tensor_count(t);
        for (int i = 0; i < *n; i++)
            out[i] = (SymInt){false, tensor_get_i(t, i)};
        return true;
    case OP_SHAPE:
        *n = d->in[0]->rank;
        for (int i = 0; i < *n; i++)
            out[i] = (SymInt){d->in[0]->dims[i] < 0, d->in[0]->dims[i]};
        return *n >= 0;
    case OP_RESHAPE:
    case OP_CAST:
        return symints(d->in[0], out, n, depth + 1);
    case OP_GATHER:
    case OP_SLICE:
        return symints_pick(d, out, n, depth + 1);
    case OP_CONCAT:
        return symints_concat(d, out, n, depth + 1);
    case OP_REDUCE_PROD:
        return symints_product(d, out, n, depth + 1);
    case OP_ADD:
    case OP_SUB:
    case OP_MUL:
    case OP_DIV:
        return symints_binary(d, out, n, depth + 1);
    default:
        return false;
    }
}

bool canon_symints(const Value *v, SymInt *out, int *n) {
    return symints(v, out, n, 0);
}

/* A size read off a shape whose other dims data decide: gather(shape(x)) with that dim known. */
bool canon_fold_shape(Canon *c, Node *n) {
    SymInt s[SYMINTS_MAX];
    int count;
    if (n->nout != 1 || n->op == OP_CONST || !canon_symints(n->out[0], s, &count))
        return false;
    for (int i = 0; i < count; i++)
        if (s[i].symbol)
            return false;
    Tensor *t = tensor_new(&c->scratch, n->out[0]->dtype, n->out[0]->rank, n->out[0]->dims);
    if (tensor_count(t) != count)
        return false;
    for (int i = 0; i < count; i++)
        tensor_set_i(t, i, s[i].v);
    Builder b = builder_before(n);
    return canon_replace(c, n->out[0], op_const(&b, t));
}

/* ---- shape operands ---- */

/* reshape x to [n, 1] with n a size that data decide: {dims=[-1,1]}. */
static bool reshape_operand(Canon *c, Node *n, const SymInt *s, int count) {
    int64_t dims[MAX_RANK], product = 1;
    int symbols = 0;
    for (int i = 0; i < count; i++) {
        symbols += s[i].symbol || s[i].v == -1;
        dims[i] = s[i].symbol ? -1 : s[i].v;
        product *= dims[i] == -1 ? 1 : dims[i] == 0 ? 0 : 1;
    }
    if (symbols > 1 || (symbols && !product))
        return false;
    node_set_ints(n, AT_DIMS, dims, count);
    canon_drop_in(c, n, 1);
    return true;
}

/* expand x[n, 1] to [n, 32]: {dims=[1,32]}, since both are broadcast. */
static bool expand_operand(Canon *c, Node *n, const SymInt *s, int count) {
    int64_t dims[MAX_RANK];
    const Value *x = n->in[0];
    for (int i = 0; i < count; i++) {
        int k = i - (count - x->rank);
        dims[i] = s[i].v;
        if (!s[i].symbol)
            continue;
        if (k < 0 || x->dims[k] != s[i].v)
            return false;
        dims[i] = 1;
    }
    node_set_ints(n, AT_DIMS, dims, count);
    canon_drop_in(c, n, 1);
    return true;
}

bool canon_shape_operand(Canon *c, Node *n) {
    SymInt s[SYMINTS_MAX];
    int count;
    if ((n->op != OP_RESHAPE && n->op != OP_EXPAND) || n->nin != 2 || !n->in[1])
        return false;
    if (value_is_const(n->in[1])) /* inference turns it into the attribute: see canon_replace */
        return false;
    if (n->in[0]->rank < 0 || !canon_symints(n->in[1], s, &count) || count > MAX_RANK)
        return false;
    return n->op == OP_RESHAPE ? reshape_operand(c, n, s, count) : expand_operand(c, n, s, count);
}
