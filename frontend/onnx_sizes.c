/* onnx_sizes.c: shapes put together from sizes, and the integers known about small values.
 *
 * Exporters compute shapes with nodes: Shape, Gather, Concat, Mul … . While "batch" is a symbol
 * these stay in the graph, but each element is followed here as a number, a symbol, or unknown, one
 * step per new node. So a Reshape to [batch, seq, 4, 8] keeps its names, and axes that went through
 * a Cast are still constants. */
#include "frontend/onnx_sizes.h"

#include <stdlib.h>
#include <string.h>

#include "frontend/onnx_emit.h"

/* ---- partial values ---- */

void partial_set(Import *im, const Value *v, Partial *p) {
    while (im->partial.n <= v->id)
        vec_push(&im->partial, NULL);
    im->partial.at[v->id] = p;
}

static const Partial *partial_get(const Import *im, const Value *v) {
    return v && v->id < im->partial.n ? im->partial.at[v->id] : NULL;
}

const Partial *em_partial(OpCall *c, const Value *v) {
    return partial_get(c->im, v);
}

static Partial *partial_new(Import *im, int n) {
    Partial *p = ARENA_NEW(&im->scratch, Partial);
    p->n = n;
    p->at = n ? ARENA_ARRAY(&im->scratch, PartialInt, n) : NULL;
    return p;
}

static Partial *partial_const(Import *im, const Tensor *t) {
    Partial *p = partial_new(im, (int)tensor_count(t));
    for (int i = 0; i < p->n; i++)
        p->at[i] = (PartialInt){PARTIAL_CONST, tensor_get_i(t, i)};
    return p;
}

static Partial *partial_shape(Import *im, const Value *x) {
    if (x->rank < 0)
        return NULL;
    Partial *p = partial_new(im, x->rank);
    for (int i = 0; i < x->rank; i++)
        p->at[i] = (PartialInt){x->dims[i] < 0 ? PARTIAL_SYMBOL : PARTIAL_CONST, x->dims[i]};
    return p;
}

static Partial *partial_gather(Import *im, const Node *n, const Partial *x, const Partial *idx) {
    if (n->in[0]->rank != 1 || !idx)
        return NULL;
    Partial *p = partial_new(im, idx->n);
    for (int i = 0; i < idx->n; i++) {
        int64_t k = idx->at[i].v < 0 ? idx->at[i].v + x->n : idx->at[i].v;
        if (idx->at[i].kind == PARTIAL_CONST && k >= 0 && k < x->n)
            p->at[i] = x->at[k];
    }
    return p;
}

static Partial *partial_slice(Import *im, const Node *n, const Partial *x) {
    const int64_t *start, *step;
    if (n->in[0]->rank != 1 || node_ints(n, AT_STARTS, &start) != 1 || n->out[0]->dims[0] < 0)
        return NULL;
    bool stepped = node_ints(n, AT_STEPS, &step) == 1;
    Partial *p = partial_new(im, (int)n->out[0]->dims[0]);
    int64_t first = *start < 0 ? *start + x->n : *start;
    for (int i = 0; i < p->n; i++) {
        int64_t k = first + i * (stepped ? *step : 1);
        if (k < 0 || k >= x->n)
            return NULL;
        p->at[i] = x->at[k];
    }
    return p;
}

static Partial *partial_concat(Import *im, const Node *n) {
    VEC(PartialInt) all = {0};
    bool open = false;
    for (int i = 0; i < n->nin && !open && all.n <= PARTIAL_MAX; i++) {
        const Partial *x = partial_get(im, n->in[i]);
        if (n->in[i]->rank != 1 || n->in[i]->dims[0] < 0 || n->in[i]->dims[0] > PARTIAL_MAX)
            open = true;
        else
            for (int k = 0; k < n->in[i]->dims[0]; k++)
                vec_push(&all, (x && k < x->n ? x->at[k] : (PartialInt){PARTIAL_UNKNOWN, 0}));
    }
    Partial *p = NULL;
    if (!open && all.n <= PARTIAL_MAX) {
        p = partial_new(im, all.n);
        if (all.n)
            memcpy(p->at, all.at, sizeof *all.at * (size_t)all.n);
    }
    vec_free(&all);
    return p;
}

/* One step of integer arithmetic; false where it would fault or overflow. */
static bool int_step(Op op, int64_t a, int64_t b, int64_t *r) {
    switch (op) {
    case OP_ADD:
        return !__builtin_add_overflow(a, b, r);
    case OP_SUB:
        return !__builtin_sub_overflow(a, b, r);
    case OP_MUL:
        return !__builtin_mul_overflow(a, b, r);
    case OP_DIV:
        return b != 0 && b != -1 && (*r = a / b, true);
    case OP_MIN:
        return *r = a < b ? a : b, true;
    case OP_MAX:
        return *r = a > b ? a : b, true;
    case OP_EQ:
        return *r = a == b, true;
    case OP_LT:
        return *r = a < b, true;
    case OP_LE:
        return *r = a <= b, true;
    case OP_AND:
        return *r = a && b, true;
    case OP_OR:
        return *r = a || b, true;
    default:
        return false;
    }
}

/* A symbol times one, plus zero, … is the symbol. */
static PartialInt partial_step(Op op, PartialInt a, PartialInt b) {
    PartialInt r = {PARTIAL_CONST, 0};
    bool a_const = a.kind == PARTIAL_CONST, b_const = b.kind == PARTIAL_CONST;
    if (a_const && b_const && int_step(op, a.v, b.v, &r.v))
        return r;
    int64_t neutral = op == OP_ADD || op == OP_SUB ? 0 : 1;
    if (op == OP_ADD || op == OP_SUB || op == OP_MUL || op == OP_DIV) {
        if (b_const && b.v == neutral)
            return a;
        if (a_const && a.v == neutral && (op == OP_ADD || op == OP_MUL))
            return b;
    }
    return (PartialInt){PARTIAL_UNKNOWN, 0};
}

static Partial *partial_binary(Import *im, const Node *n) {
    const Partial *a = partial_get(im, n->in[0]), *b = partial_get(im, n->in[1]);
    if (!a || !b || (a->n != b->n && a->n != 1 && b->n != 1) || n->out[0]->rank > 1)
        return NULL;
    Partial *p = partial_new(im, a->n > b->n ? a->n : b->n);
    if (a->n == 0 || b->n == 0)
        return NULL;
    for (int i = 0; i < p->n; i++)
        p->at[i] = partial_step(n->op, a->at[a->n == 1 ? 0 : i], b->at[b->n == 1 ? 0 : i]);
    return p;
}

static Partial *partial_where(Import *im, const Node *n) {
    const Partial *k = partial_get(im, n->in[0]), *a = partial_get(im, n->in[1]),
                  *b = partial_get(im, n->in[2]);
    int len = n->out[0]->rank == 0 ? 1 : (int)n->out[0]->dims[0];
    if (!k || !a || !b || len <= 0)
        return NULL;
    Partial *p = partial_new(im, len);
    for (int i = 0; i < len; i++) {
        PartialInt test = k->at[k->n == 1 ? 0 : i];
        if (test.kind == PARTIAL_CONST)
            p->at[i] = test.v ? a->at[a->n == 1 ? 0 : i] : b->at[b->n == 1 ? 0 : i];
    }
    return p;
}

static Partial *partial_expand(Import *im, const Partial *x, int n) {
    if (x->n != 1 && x->n != n)
        return NULL;
    Partial *p = partial_new(im, n);
    for (int i = 0; i < n; i++)
        p->at[i] = x->at[x->n == 1 ? 0 : i];
    return p;
}

static Partial *partial_reduce(Import *im, const Node *n, const Partial *x) {
    Op step = n->op == OP_REDUCE_PROD ? OP_MUL : n->op == OP_REDUCE_SUM ? OP_ADD : OP_MAX;
    if (n->in[0]->rank != 1 || x->n < 1 || node_attr(n, AT_AXES) == NULL || n->out[0]->rank > 1 ||
        (n->out[0]->rank == 1 && n->out[0]->dims[0] != 1))
        return NULL;
    Partial *p = partial_new(im, 1);
    p->at[0] = x->at[0];
    for (int i = 1; i < x->n; i++)
        p->at[0] = partial_step(step, p->at[0], x->at[i]);
    return p;
}

/* Long enough to be of interest? Shapes and their parts are short vectors. */
static bool partial_candidate(const Value *v) {
    return v->rank >= 0 && v->rank <= 1 && !dtype_is_float(v->dtype) &&
           (v->rank == 0 || (v->dims[0] >= 0 && v->dims[0] <= PARTIAL_MAX));
}

void partial_of_node(Import *im, const Node *n) {
    const Value *out = n->out[0];
    if (n->nout != 1 || !partial_candidate(out))
        return;
    const Partial *x = n->nin ? partial_get(im, n->in[0]) : NULL;
    Partial *p = NULL;
    switch (n->op) {
    case OP_CONST:
        p = partial_const(im, value_const(out));
        break;
    case OP_SHAPE:
        p = partial_shape(im, n->in[0]);
        break;
    case OP_CONCAT:
        p = partial_concat(im, n);
        break;
    case OP_GATHER:
        p = x ? partial_gather(im, n, x, partial_get(im, n->in[1])) : NULL;
        break;
    case OP_SLICE:
        p = x ? partial_slice(im, n, x) : NULL;
        break;
    case OP_RESHAPE:
        p = x && value_count(out) == x->n ? partial_expand(im, x, x->n) : NULL;
        break;
    case OP_CAST: /* between integers; bool to integer keeps 0 and 1 */
        p = x && (out->dtype == DT_I64 || out->dtype == n->in[0]->dtype)
                ? partial_expand(im, x, x->n)
                : NULL;
        break;
    case OP_EXPAND:
        p = x && value_known(out) ? partial_expand(im, x, (int)value_count(out)) : NULL;
        break;
    case OP_WHERE:
        p = partial_where(im, n);
        break;
    case OP_REDUCE_PROD:
    case OP_REDUCE_SUM:
    case OP_REDUCE_MAX:
        p = x ? partial_reduce(im, n, x) : NULL;
        break;
    default:
        p = n->nin == 2 ? partial_binary(im, n) : NULL;
    }
    if (p)
        partial_set(im, out, p);
}

/* ---- values known while importing ---- */

void value_evaluated(Import *im, const Value *v, Tensor *t) {
    while (im->evaluated.n <= v->id)
        vec_push(&im->evaluated, NULL);
    im->evaluated.at[v->id] = t;
}

/* Evaluates the constants behind v, each once; NULL if data or open sizes are needed. */
static Tensor *evaluate(OpCall *c, Value *v, int depth) {
    Import *im = c->im;
    if (value_is_const(v))
        return (Tensor *)(uintptr_t)value_const(v);
    if (v->id < im->evaluated.n && im->evaluated.at[v->id])
        return im->evaluated.at[v->id];
    Node *n = v->def;
    if (depth == 0 || n->nout != 1 || (op_info[n->op].flags & OPF_LEAF) || !value_known(v) ||
        value_count(v) > 65536)
        return NULL;
    Tensor *t = NULL;
    if (n->op == OP_SHAPE) {
        if (!value_known(n->in[0]))
            return NULL;
        t = tensor_new(&im->scratch, DT_I64, 1, (int64_t[]){n->in[0]->rank});
        for (int i = 0; i < n->in[0]->rank; i++)
            tensor_set_i(t, i, n->in[0]->dims[i]);
    } else {
        RTensor **values = xcalloc((size_t)im->g->next_value, sizeof *values);
        Diag quiet = {0};
        Eval ev = {.arena = &im->scratch, .round = true, .diag = &quiet, .values = values};
        bool ok = true;
        for (int i = 0; i < n->nin && ok; i++) {
            Tensor *in = n->in[i] ? evaluate(c, n->in[i], depth - 1) : NULL;
            ok = !n->in[i] || in;
            if (in)
                values[n->in[i]->id] = rtensor_from(&im->scratch, in);
        }
        if (ok && eval_node(&ev, n))
            t = rtensor_to(&im->scratch, values[v->id], v->dtype);
        free(values);
        diag_free(&quiet);
    }
    if (t)
        value_evaluated(im, v, t);
    return t;
}

const Tensor *em_known(OpCall *c, Value *v) {
    const Partial *p = em_partial(c, v);
    if (value_is_const(v))
        return value_const(v);
    if (v->rank == 1 && v->dims[0] == 0) /* nothing to know */
        return tensor_new(&c->im->scratch, v->dtype, 1, v->dims);
    bool all = p && p->n == value_count(v);
    for (int i = 0; all && i < p->n; i++)
        all = p->at[i].kind == PARTIAL_CONST;
    if (!all)
        return evaluate(c, v, 64);
    Tensor *t = tensor_new(&c->im->scratch, v->dtype, v->rank, v->dims);
    for (int i = 0; i < p->n; i++)
        tensor_set_i(t, i, p->at[i].v);
    return t;
}

const Tensor *em_fixed(OpCall *c, Value *v) {
    const Attr *init = value_is_param(v) ? node_attr(v->def, AT_VALUE) : NULL;
    return init ? init->t : em_known(c, v);
}

int em_known_ints(OpCall *c, Value *v, int64_t *out, int cap) {
    const Tensor *t = em_known(c, v);
    if (!t)
        return -1;
    if (dtype_is_float(t->dtype) || t->rank > 1)
        call_fail(c, "\"%s\" must be a list of integers, found %s",
                  diag_safe(c->im->d, text_or(v->name, "")), call_value_text(c, v));
    if (tensor_count(t) > cap)
        call_fail(c, "\"%s\" has %lld elements; at most %d are accepted",
                  diag_safe(c->im->d, text_or(v->name, "")), (long long)tensor_count(t), cap);
    for (int i = 0; i < tensor_count(t); i++)
        out[i] = tensor_get_i(t, i);
    return (int)tensor_count(t);
}

/* ---- sizes as values ---- */

Value *em_shape(OpCall *c, Value *x) {
    Import *im = c->im;
    while (im->shape_of.n <= x->id)
        vec_push(&im->shape_of, NULL);
    Value *s = im->shape_of.at[x->id];
    if (!s) {
        s = em_unary(c, OP_SHAPE, x);
        im->shape_of.at[x->id] = s; /* x->id < n still: the list only grows */
    }
    return s;
}

Value *em_size(OpCall *c, Value *x, int axis) {
    if (x->dims[axis] >= 0)
        return em_ints(c, &x->dims[axis], 1);
    return em_slice(c, em_shape(c, x), 0, axis, axis + 1, 1);
}

Value *em_size0(OpCall *c, Value *x, int axis) {
    if (x->dims[axis] >= 0)
        return em_i(c, DT_I64, x->dims[axis]);
    return em_reshape(c, em_size(c, x, axis), 0, NULL);
}

/* ---- shapes put together ---- */

static int shape_slot(OpCall *c, ShapeOf *s) {
    if (s->n == MAX_RANK)
        call_fail(c, "an intermediate of rank above %d is needed", MAX_RANK);
    s->from[s->n] = NULL;
    s->rest[s->n] = false;
    return s->n++;
}

void shape_add(OpCall *c, ShapeOf *s, int64_t known) {
    s->dim[shape_slot(c, s)] = known;
}

void shape_add_axis(OpCall *c, ShapeOf *s, Value *x, int axis) {
    int i = shape_slot(c, s);
    s->dim[i] = x->dims[axis];
    if (x->dims[axis] < 0)
        s->from[i] = em_size(c, x, axis);
}

void shape_add_axes(OpCall *c, ShapeOf *s, Value *x, int from, int to) {
    for (int i = from; i < to; i++)
        shape_add_axis(c, s, x, i);
}

void shape_add_value(OpCall *c, ShapeOf *s, Value *v) {
    const Partial *p = em_partial(c, v);
    int i = shape_slot(c, s);
    s->dim[i] = p && p->n == 1 && p->at[0].kind != PARTIAL_UNKNOWN ? p->at[0].v : 0;
    if (!p || p->n != 1 || p->at[0].kind != PARTIAL_CONST)
        s->from[i] = v;
}

void shape_add_rest(OpCall *c, ShapeOf *s) {
    int i = shape_slot(c, s);
    s->dim[i] = 0;
    s->rest[i] = true;
}

void shape_add_product(OpCall *c, ShapeOf *s, Value *x, int from, int to) {
    int64_t known = 1;
    int open = 0;
    for (int i = from; i < to; i++) {
        if (x->dims[i] < 0)
            open++;
        else if (__builtin_mul_overflow(known, x->dims[i], &known))
            call_fail(c, "a shape with more than 2^63 elements");
    }
    if (!open) {
        shape_add(c, s, known);
    } else if (to - from == 1) {
        shape_add_axis(c, s, x, from);
    } else {
        Value *part = em_slice(c, em_shape(c, x), 0, from, to, 1);
        int64_t axis = 0;
        shape_add_value(c, s, em_reduce(c, OP_REDUCE_PROD, part, &axis, 1, true));
    }
}

Value *em_shape_vector(OpCall *c, const ShapeOf *s) {
    Value *parts[MAX_RANK];
    int n = 0;
    for (int i = 0; i < s->n;) {
        if (s->from[i]) {
            parts[n++] = s->from[i++];
            continue;
        }
        int64_t run[MAX_RANK];
        int len = 0;
        for (; i < s->n && !s->from[i]; i++)
            run[len++] = s->rest[i] ? -1 : s->dim[i];
        parts[n++] = em_ints(c, run, len);
    }
    return n ? em_concat(c, parts, n, 0) : em_ints(c, NULL, 0);
}

/* Names the symbols of a new result that inference will not find by itself. */
static void preset_dims(OpCall *c, Value *v, int rank, const int64_t *dims) {
    v->rank = rank;
    for (int i = 0; i < rank; i++)
        v->dims[i] = dims[i] ? dims[i] : graph_symbol(c->im->g, NULL);
}

Value *em_view(OpCall *c, Value *x, const ShapeOf *s) {
    int open = 0, rest = 0;
    bool zero = false;
    int64_t dims[MAX_RANK], known[MAX_RANK];
    for (int i = 0; i < s->n; i++) {
        open += s->from[i] != NULL;
        rest += s->rest[i];
        known[i] = s->dim[i];
        dims[i] = s->from[i] || s->rest[i] ? -1 : s->dim[i];
        zero |= dims[i] == 0;
    }
    ASSERT(rest <= 1);
    Node *n;
    if (open + rest == 0 || (open + rest == 1 && !zero)) {
        if (open + rest == 0 && x->rank == s->n &&
            !memcmp(x->dims, dims, sizeof *dims * (size_t)s->n))
            return x;
        n = build_node(&c->b, OP_RESHAPE, &x, 1, 1);
        node_set_ints(n, AT_DIMS, dims, s->n);
    } else {
        n = build_node(&c->b, OP_RESHAPE, (Value *[]){x, em_shape_vector(c, s)}, 2, 1);
        node_set_int(n, AT_K, 1); /* a 0 is a size */
    }
    if (open)
        preset_dims(c, n->out[0], s->n, known);
    return em_infer(c, n)->out[0];
}

Value *em_spread(OpCall *c, Value *x, const ShapeOf *s) {
    int open = 0;
    for (int i = 0; i < s->n; i++)
        open += s->from[i] != NULL;
    if (!open)
        return x->rank == s->n && !memcmp(x->dims, s->dim, sizeof *s->dim * (size_t)s->n)
                   ? x
                   : EM(c, OP_EXPAND, &x, 1, A_INTS(DIMS, s->dim, s->n));
    Node *n = build_node(&c->b, OP_EXPAND, (Value *[]){x, em_shape_vector(c, s)}, 2, 1);
    if (x->rank <= s->n)
        preset_dims(c, n->out[0], s->n, s->dim);
    return em_infer(c, n)->out[0];
}

Value *em_reshape(OpCall *c, Value *x, int rank, const int64_t *dims) {
    if (x->rank == rank && (rank == 0 || !memcmp(x->dims, dims, sizeof *dims * (size_t)rank)) &&
        value_known(x))
        return x;
    return EM(c, OP_RESHAPE, &x, 1, A_INTS(DIMS, dims, rank));
}

/* What a -1 stands for when x is reshaped to the sizes `known` (0: the -1 itself), where symbols on
 * both sides cancel; 0 if that leaves more than one number or one symbol. */
static int64_t rest_size(const Value *x, const int64_t *known, int n) {
    int64_t have = 1, taken = 1, symbol = 0;
    bool used[MAX_RANK] = {false};
    for (int i = 0; i < n; i++) {
        if (known[i] > 0 && __builtin_mul_overflow(taken, known[i], &taken))
            return 0;
        bool cancelled = known[i] >= 0;
        for (int k = 0; k < x->rank && !cancelled; k++) {
            if (!used[k] && x->dims[k] == known[i])
                used[k] = cancelled = true;
        }
        if (!cancelled)
            return 0;
    }
    for (int k = 0; k < x->rank; k++) {
        if (x->dims[k] < 0 && !used[k] && symbol)
            return 0;
        if (x->dims[k] < 0 && !used[k])
            symbol = x->dims[k];
        if (x->dims[k] >= 0 && __builtin_mul_overflow(have, x->dims[k], &have))
            return 0;
    }
    if (have < 1 || have % taken)
        return 0;
    return symbol ? (have == taken ? symbol : 0) : have / taken;
}

/* The user's own shape vector: its known elements keep their symbols. */
static Value *reshape_like(OpCall *c, Op op, Value *x, Value *dims, bool zero_copies) {
    const Partial *p = em_partial(c, dims);
    const Tensor *all = em_known(c, dims);
    if (all && !value_is_const(dims)) /* computed: as good as written */
        dims = em_ints(c, all->data, (int)tensor_count(all));
    Node *n = build_node(&c->b, op, (Value *[]){x, dims}, 2, 1);
    if (op == OP_RESHAPE && !zero_copies)
        node_set_int(n, AT_K, 1);
    if (p && !all && p->n <= MAX_RANK && (op == OP_RESHAPE || x->rank <= p->n)) {
        int64_t known[MAX_RANK];
        int open = 0, rest = -1;
        for (int i = 0; i < p->n; i++) {
            known[i] = p->at[i].kind == PARTIAL_UNKNOWN ? 0 : p->at[i].v;
            open += p->at[i].kind == PARTIAL_UNKNOWN;
            if (p->at[i].kind == PARTIAL_CONST && known[i] == -1)
                rest = i;
            if (p->at[i].kind == PARTIAL_CONST && known[i] <= 0)
                known[i] = known[i] == 0 && zero_copies && i < x->rank ? x->dims[i] : 0;
            if (op == OP_EXPAND && known[i] == 1) /* the other shape decides */
                known[i] = i - p->n + x->rank >= 0 ? x->dims[i - p->n + x->rank] : 1;
        }
        if (op == OP_RESHAPE && rest >= 0 && !open)
            known[rest] = rest_size(x, known, p->n);
        preset_dims(c, n->out[0], p->n, known);
    }
    return em_infer(c, n)->out[0];
}

Value *em_reshape_to(OpCall *c, Value *x, Value *dims, bool allow_zero) {
    return reshape_like(c, OP_RESHAPE, x, em_cast(c, dims, DT_I64), !allow_zero);
}

Value *em_expand_to(OpCall *c, Value *x, Value *dims) {
    return reshape_like(c, OP_EXPAND, x, em_cast(c, dims, DT_I64), false);
}

Value *em_insert_axis(OpCall *c, Value *x, int axis) {
    ShapeOf s = {0};
    shape_add_axes(c, &s, x, 0, axis);
    shape_add(c, &s, 1);
    shape_add_axes(c, &s, x, axis, em_rank(c, x));
    return em_view(c, x, &s);
}

Value *em_drop_axis(OpCall *c, Value *x, int axis) {
    ShapeOf s = {0};
    shape_add_axes(c, &s, x, 0, axis);
    shape_add_axes(c, &s, x, axis + 1, em_rank(c, x));
    return em_view(c, x, &s);
}
