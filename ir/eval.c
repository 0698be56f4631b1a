/* eval.c: the reference evaluator's driver, leaves and the tools its hooks share (see eval.h).
 *
 * Hooks take operands whose kind (float or integer) was checked by inference, work out the result's
 * shape with the same shape_* rules as inference, now on real sizes, and report what only data can
 * break, naming the user's node. */
#include "ir/eval_ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool (*const hooks[OP_COUNT])(Eval *, Node *, RTensor **, RTensor **) = {
#define OP(ID, m, a, b, c, f, infer, eval, grad, lower, emit) eval_##eval,
#include "ir/ops.def"
#undef OP
};

/* ---- RTensor ---- */

RTensor *rtensor_new(Arena *a, DType t, int rank, const int64_t *dims) {
    RTensor *r = ARENA_NEW(a, RTensor);
    r->dtype = t;
    r->rank = rank;
    if (rank)
        memcpy(r->dims, dims, sizeof *dims * (size_t)rank);
    r->count = dims_count(dims, rank);
    ASSERT(r->count >= 0);
    r->i = arena_alloc(a, sizeof(int64_t) * (size_t)(r->count ? r->count : 1));
    return r;
}

/* r has t's shape and kind. */
static void rtensor_fill(RTensor *r, const Tensor *t) {
    if (t->dtype == DT_F32) {
        const float *x = t->data;
        for (int64_t i = 0; i < r->count; i++)
            r->f[i] = x[i];
    } else if (dtype_is_float(t->dtype)) {
        for (int64_t i = 0; i < r->count; i++)
            r->f[i] = tensor_get_f(t, i);
    } else {
        for (int64_t i = 0; i < r->count; i++)
            r->i[i] = tensor_get_i(t, i);
    }
}

RTensor *rtensor_from(Arena *a, const Tensor *t) {
    RTensor *r = rtensor_new(a, t->dtype, t->rank, t->dims);
    rtensor_fill(r, t);
    return r;
}

Tensor *rtensor_to(Arena *a, const RTensor *r, DType t) {
    Tensor *out = tensor_new(a, t, r->rank, r->dims);
    for (int64_t i = 0; i < r->count; i++) {
        if (dtype_is_float(r->dtype))
            tensor_set_f(out, i, r->f[i]);
        else
            tensor_set_i(out, i, r->i[i]);
    }
    return out;
}

static void rtensor_round(RTensor *r) {
    if (r->dtype == DT_F32)
        for (int64_t i = 0; i < r->count; i++)
            r->f[i] = (float)r->f[i];
    else if (r->dtype == DT_F16 || r->dtype == DT_BF16)
        for (int64_t i = 0; i < r->count; i++) {
            uint16_t cell;
            Tensor t = {.dtype = r->dtype, .data = &cell};
            tensor_set_f(&t, 0, r->f[i]);
            r->f[i] = tensor_get_f(&t, 0);
        }
}

int64_t int_wrap(DType t, int64_t v) {
    switch (t) {
    case DT_U8:
        return (uint8_t)v;
    case DT_I8:
        return (int8_t)v;
    case DT_U16:
        return (uint16_t)v;
    case DT_I16:
        return (int16_t)v;
    case DT_I32:
        return (int32_t)v;
    case DT_U32:
        return (uint32_t)v;
    case DT_BOOL:
        return v != 0;
    default:
        return v;
    }
}

void rtensor_wrap(RTensor *r) {
    if (dtype_is_float(r->dtype) || r->dtype == DT_I64 || r->dtype == DT_U64)
        return;
    for (int64_t i = 0; i < r->count; i++)
        r->i[i] = int_wrap(r->dtype, r->i[i]);
}

int64_t int_from_double(DType t, double v) {
    int bits = 8 * dtype_bytes(t);
    bool is_unsigned = t == DT_U8 || t == DT_U16 || t == DT_U32 || t == DT_U64;
    if (t == DT_BOOL)
        return v != 0;
    if (isnan(v))
        return 0;
    double low = is_unsigned ? 0 : -ldexp(1, bits - 1),
           high = ldexp(1, is_unsigned ? bits : bits - 1);
    v = trunc(v);
    if (v <= low)
        return is_unsigned ? 0 : bits == 64 ? INT64_MIN : (int64_t)low;
    if (v >= high)
        return bits < 64 ? (int64_t)(high - 1) : is_unsigned ? -1 : INT64_MAX;
    return is_unsigned ? (int64_t)(uint64_t)v : (int64_t)v;
}

double double_from_int(DType t, int64_t v) {
    return t == DT_U64 ? (double)(uint64_t)v : (double)v;
}

/* ---- messages and results ---- */

Dims rtensor_dims(const RTensor *r) {
    Dims x = {.rank = -1};
    if (!r)
        return x;
    x.rank = r->rank;
    memcpy(x.at, r->dims, sizeof(int64_t) * (size_t)r->rank);
    return x;
}

bool eval_fail(Eval *ev, const Node *n, ExitCode code, const char *fmt, ...) {
    char text[512];
    Diag *d = ev->diag;
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (n->src && n->src->name && n->src->name[0])
        diag_error(d, code, "node \"%s\" (%s): %s", diag_safe(d, n->src->name),
                   diag_safe(d, n->src->op_type), text);
    else
        diag_error(d, code, "a %s made for %s: %s", op_info[n->op].name,
                   n->src && n->src->op_type ? diag_safe(d, n->src->op_type) : "the compiler",
                   text);
    for (int i = 0; i < n->nin && i < 8; i++) {
        const Value *v = n->in[i];
        if (!v || !ev->values[v->id])
            continue;
        Dims x = rtensor_dims(ev->values[v->id]);
        diag_more(d, "operand %d \"%s\" %s%s", i, v->name ? diag_safe(d, v->name) : "",
                  dtype_name(ev->values[v->id]->dtype), DIMS_TEXT(&x));
    }
    return false;
}

RTensor *eval_result(Eval *ev, const Node *n, DType t, const Dims *x) {
    int64_t count = dims_known(x) ? dims_count(x->at, x->rank) : -1;
    if (count < 0 || count > INT64_MAX / 8) {
        eval_fail(ev, n, EXIT_RESOURCE, "the result %s is too large", DIMS_TEXT(x));
        return NULL;
    }
    if (ev->mem_limit > 0 && ev->used + 8 * count > ev->mem_limit) {
        eval_fail(ev, n, EXIT_RESOURCE,
                  "evaluating this needs more than the limit of %lld MiB of memory",
                  (long long)(ev->mem_limit >> 20));
        return NULL;
    }
    ev->used += 8 * count;
    return rtensor_new(ev->arena, t, x->rank, x->at);
}

bool eval_axis(Eval *ev, const Node *n, int rank, int64_t absent, int *axis) {
    Fault f;
    if (!shape_axis(node_int(n, AT_AXIS, absent), rank, axis, &f))
        return eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
    return true;
}

bool eval_index(Eval *ev, const Node *n, int64_t v, int64_t size, int64_t *out) {
    if (v < -size || v >= size)
        return eval_fail(ev, n, EXIT_DATA, "index %lld is outside an axis of size %lld",
                         (long long)v, (long long)size);
    *out = v < 0 ? v + size : v;
    return true;
}

Around around_axis(const Dims *x, int axis) {
    Around a = {1, x->at[axis], 1};
    for (int i = 0; i < axis; i++)
        a.outer *= x->at[i];
    for (int i = axis + 1; i < x->rank; i++)
        a.inner *= x->at[i];
    return a;
}

/* ---- walking ---- */

void dims_strides(const Dims *x, int64_t *strides) {
    int64_t s = 1;
    for (int i = x->rank - 1; i >= 0; i--) {
        strides[i] = s;
        s *= x->at[i];
    }
}

void walk_init(Walk *w, const Dims *dims) {
    memset(w, 0, sizeof *w);
    w->rank = dims->rank;
    memcpy(w->dims, dims->at, sizeof w->dims);
}

void walk_operand(Walk *w, const int64_t *strides) {
    memcpy(w->stride[w->ops++], strides, sizeof(int64_t) * (size_t)w->rank);
}

void walk_broadcast(Walk *w, const Dims *dims, const Dims *x) {
    int64_t own[MAX_RANK], strides[MAX_RANK] = {0};
    dims_strides(x, own);
    for (int i = 0; i < x->rank; i++)
        strides[dims->rank - x->rank + i] = x->at[i] == 1 ? 0 : own[i];
    walk_operand(w, strides);
}

static bool walk_mergeable(const Walk *w, int i) {
    for (int k = 0; k < w->ops; k++)
        if (w->stride[k][i - 1] != w->stride[k][i] * w->dims[i])
            return false;
    return true;
}

static void walk_merge(Walk *w) {
    for (int i = w->rank - 1; i > 0; i--) {
        if (!walk_mergeable(w, i))
            continue;
        w->dims[i - 1] *= w->dims[i];
        for (int k = 0; k < w->ops; k++)
            w->stride[k][i - 1] = w->stride[k][i];
        for (int j = i; j + 1 < w->rank; j++) {
            w->dims[j] = w->dims[j + 1];
            for (int k = 0; k < w->ops; k++)
                w->stride[k][j] = w->stride[k][j + 1];
        }
        w->rank--;
    }
}

void walk_start(Walk *w) {
    for (int i = 0; i < w->rank; i++)
        if (w->dims[i] == 0)
            w->done = true;
    if (w->done)
        return;
    walk_merge(w);
    if (w->rank == 0) { /* a scalar is one row of one */
        w->rank = 1;
        w->dims[0] = 1;
    }
    w->row = w->dims[w->rank - 1];
}

void walk_next(Walk *w) {
    for (int i = w->rank - 2; i >= 0; i--) {
        for (int k = 0; k < w->ops; k++)
            w->offset[k] += w->stride[k][i];
        if (++w->at[i] < w->dims[i])
            return;
        w->at[i] = 0;
        for (int k = 0; k < w->ops; k++)
            w->offset[k] -= w->stride[k][i] * w->dims[i];
    }
    w->done = true;
}

int64_t walk_step(const Walk *w, int op) {
    return w->stride[op][w->rank - 1];
}

/* ---- leaves ---- */

/* Input and param: what ev->values holds, checked against the declared type and shape; a param's
 * initial value otherwise. */
bool eval_leaf(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    const Value *v = n->out[0];
    const Attr *value = node_attr(n, AT_VALUE);
    if (!out[0] && n->op == OP_PARAM && value)
        return eval_constant(ev, n, in, out);
    Dims want = dims_of(v), have = rtensor_dims(out[0]);
    if (!out[0] && n->op == OP_PARAM) /* optimizer state starts at zero */
        return (out[0] = eval_result(ev, n, v->dtype, &want)) != NULL;
    if (!out[0])
        return eval_fail(ev, n, EXIT_DATA, "input \"%s\" was not given",
                         diag_safe(ev->diag, node_str(n, AT_NAME, "")));
    if (out[0]->dtype != v->dtype || !dims_fit(&want, &have))
        return eval_fail(ev, n, EXIT_DATA, "\"%s\" is %s%s (expected %s%s)",
                         diag_safe(ev->diag, node_str(n, AT_NAME, "")), dtype_name(out[0]->dtype),
                         DIMS_TEXT(&have), dtype_name(v->dtype), DIMS_TEXT(&want));
    return true;
}

bool eval_constant(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    const Tensor *t = node_attr(n, AT_VALUE)->t;
    Dims x = {.rank = t->rank};
    memcpy(x.at, t->dims, sizeof(int64_t) * (size_t)t->rank);
    if (!(out[0] = eval_result(ev, n, t->dtype, &x)))
        return false;
    rtensor_fill(out[0], t);
    return true;
}

/* ---- driver ---- */

enum { FEW = 16 };

/* Products of {precision="bf16"} see operands rounded to it. */
static RTensor *as_bf16(Eval *ev, RTensor *x) {
    if (!x || x->dtype != DT_F32)
        return x;
    RTensor *y = rtensor_new(ev->arena, DT_BF16, x->rank, x->dims);
    for (int64_t i = 0; i < x->count; i++)
        y->f[i] = x->f[i];
    rtensor_round(y);
    y->dtype = DT_F32;
    return y;
}

bool eval_node(Eval *ev, Node *n) {
    RTensor *few_in[FEW], *out[FEW] = {0};
    RTensor **in = n->nin <= FEW ? few_in : xcalloc((size_t)n->nin, sizeof *in);
    bool ok = true;
    ASSERT(n->nout <= FEW);
    for (int i = 0; i < n->nin; i++) {
        in[i] = n->in[i] ? ev->values[n->in[i]->id] : NULL;
        if (n->in[i] && !in[i])
            bug("operand %d of %s \"%s\" was not evaluated", i, op_info[n->op].name,
                n->src ? n->src->name : "");
    }
    if (op_info[n->op].flags & OPF_LEAF)
        out[0] = ev->values[n->out[0]->id];
    for (int i = 0; i < n->nin && !strcmp(node_str(n, AT_PRECISION, ""), "bf16"); i++)
        in[i] = as_bf16(ev, in[i]);
    ok = hooks[n->op](ev, n, in, out);
    for (int i = 0; ok && i < n->nout; i++) {
        if (ev->round && !(op_info[n->op].flags & OPF_LEAF))
            rtensor_round(out[i]);
        if (!ev->values[n->out[i]->id])
            ev->values[n->out[i]->id] = out[i];
    }
    if (in != few_in)
        free(in);
    return ok;
}

/* True if a result of n is wanted and not there yet; leaves that are there are still checked. */
static bool node_owed(const Eval *ev, const Node *n, const bool *wanted) {
    for (int i = 0; i < n->nout; i++)
        if (wanted[n->out[i]->id] &&
            (!ev->values[n->out[i]->id] || op_info[n->op].flags & OPF_LEAF))
            return true;
    return false;
}

bool eval_graph(Eval *ev, Graph *g, Value *const *only, int nonly) {
    bool *wanted = xcalloc((size_t)g->next_value + 1, sizeof *wanted);
    bool *owed = xcalloc((size_t)g->next_node + 1, sizeof *owed);
    bool ok = true;
    for (int i = 0; only && i < nonly; i++)
        wanted[only[i]->id] = true;
    for (int i = 0; !only && i < g->outputs.n; i++)
        wanted[g->outputs.at[i].value->id] = true;
    for (int i = 0; !only && i < g->updates.n; i++)
        wanted[g->updates.at[i].value->id] = true;
    for (const Node *n = g->last; n; n = n->prev) {
        if (!(owed[n->id] = node_owed(ev, n, wanted)))
            continue;
        for (int i = 0; i < n->nin; i++)
            if (n->in[i])
                wanted[n->in[i]->id] = true;
    }
    for (Node *n = g->first; n && ok; n = n->next)
        if (owed[n->id])
            ok = eval_node(ev, n);
    free(wanted);
    free(owed);
    return ok;
}
