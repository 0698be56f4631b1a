/* lower_elem.c: element rules of the ops that move elements: one element of a result, from elements
 * of operands.
 *
 * An operand that is stored is loaded; one that lives only inside the kernel is computed where it
 * is needed. Guarded reads (padding, concatenation, rows that are -1) load from a clamped place and
 * select, so that nothing outside a buffer is touched. */
#include "codegen/lower.h"

#include <stdlib.h>
#include <string.h>

LType value_ltype(const Value *v) {
    switch (v->dtype) {
    case DT_F32:
    case DT_F16:
    case DT_BF16:
        return LT_F32;
    case DT_F64:
        return LT_F64;
    case DT_BOOL:
        return LT_BOOL;
    default:
        return LT_I64;
    }
}

static Ex const_elem(Kern *K, const Tensor *t, int64_t i) {
    if (t->dtype == DT_BOOL)
        return ex_b(K, tensor_get_i(t, i) != 0);
    if (!dtype_is_float(t->dtype))
        return ex_i(K, tensor_get_i(t, i));
    return ex_f(K, t->dtype == DT_F64 ? LT_F64 : LT_F32, tensor_get_f(t, i));
}

/* ---- rules ---- */

static Ex elem_transpose(Kern *K, Node *n, const Index *at) {
    const int64_t *perm;
    int rank = node_ints(n, AT_PERM, &perm), groups = 0, first[MAX_RANK], count[MAX_RANK];
    const Value *x = n->in[0];
    int64_t sizes[MAX_RANK];
    Ex digit[MAX_RANK];
    for (int i = 0; i < rank;
         i++) { /* runs of axes that stay neighbours; axes of size 1 do not matter */
        if (x->dims[perm[i]] == 1)
            continue;
        int64_t next = groups ? first[groups - 1] + count[groups - 1] : -1;
        while (groups && next < perm[i] && x->dims[next] == 1)
            next++;
        if (groups && next == perm[i]) {
            count[groups - 1] = (int)perm[i] + 1 - first[groups - 1];
            sizes[groups - 1] *= x->dims[perm[i]];
        } else {
            first[groups] = (int)perm[i], count[groups] = 1;
            sizes[groups++] = x->dims[perm[i]];
        }
    }
    index_split(K, at, groups, sizes, digit);
    Index in = {0};
    for (int axis = 0; axis < rank; axis++)
        for (int i = 0; i < groups; i++)
            if (first[i] == axis)
                index_push(&in, sizes[i], digit[i]);
    return elem(K, n->in[0], &in);
}

static Ex elem_expand(Kern *K, Node *n, const Index *at) {
    const Value *r = n->out[0], *x = n->in[0];
    Index in = index_broadcast(K, at, r->rank, r->dims, x->rank, x->dims);
    return elem(K, n->in[0], &in);
}

/* Splits a place into one digit per axis for which `alone` holds, and one per run of the others. */
typedef struct Axes {
    int n;
    int axis[MAX_RANK]; /* -1: a run */
    int64_t size[MAX_RANK];
    Ex v[MAX_RANK];
} Axes;

static Axes split_axes(Kern *K, const Index *at, const Value *of, const bool *alone) {
    Axes a = {0};
    for (int i = 0; i < of->rank; i++) {
        if (!alone[i] && of->dims[i] == 1)
            continue;
        if (!alone[i] && a.n && a.axis[a.n - 1] < 0) {
            a.size[a.n - 1] *= of->dims[i];
            continue;
        }
        a.axis[a.n] = alone[i] ? i : -1;
        a.size[a.n++] = of->dims[i];
    }
    index_split(K, at, a.n, a.size, a.v);
    return a;
}

static Ex elem_slice(Kern *K, Node *n, const Index *at) {
    const int64_t *axes, *starts, *steps;
    int k = node_ints(n, AT_AXES, &axes), nsteps = node_ints(n, AT_STEPS, &steps);
    node_ints(n, AT_STARTS, &starts);
    const Value *x = n->in[0];
    bool alone[MAX_RANK] = {0};
    int64_t start[MAX_RANK] = {0}, step[MAX_RANK];
    for (int i = 0; i < x->rank; i++)
        step[i] = 1;
    for (int i = 0; i < k; i++) {
        start[axes[i]] = starts[i];
        step[axes[i]] = nsteps ? steps[i] : 1;
        alone[axes[i]] = x->dims[axes[i]] != n->out[0]->dims[axes[i]] || step[axes[i]] != 1;
    }
    Axes a = split_axes(K, at, n->out[0], alone);
    Index in = {0};
    for (int i = 0; i < a.n; i++) {
        int ax = a.axis[i];
        if (ax < 0)
            index_push(&in, a.size[i], a.v[i]);
        else
            index_push(&in, x->dims[ax], ex_addc(K, ex_mulc(K, a.v[i], step[ax]), start[ax]));
    }
    return elem(K, n->in[0], &in);
}

static Ex elem_pad(Kern *K, Node *n, const Index *at) {
    const int64_t *pads;
    node_ints(n, AT_PADS, &pads);
    const Value *x = n->in[0], *y = n->out[0];
    bool alone[MAX_RANK] = {0};
    LType t = value_ltype(y);
    double f = node_float(n, AT_VALUE_F, 0);
    Ex fill = t == LT_I64 ? ex_i(K, (int64_t)f) : t == LT_BOOL ? ex_b(K, f != 0) : ex_f(K, t, f);
    if (value_count(x) == 0)
        return fill;
    for (int i = 0; i < x->rank; i++)
        alone[i] = pads[i] != 0 || pads[i + x->rank] != 0;
    Axes a = split_axes(K, at, y, alone);
    Index in = {0};
    Ex inside = ex_b(K, true);
    for (int i = 0; i < a.n; i++) {
        int ax = a.axis[i];
        if (ax < 0) {
            index_push(&in, a.size[i], a.v[i]);
            continue;
        }
        Ex v = ex_addc(K, a.v[i], -pads[ax]);
        inside = ex_2(K, L_AND, inside, ex_within(K, v, 0, x->dims[ax]));
        index_push(&in, x->dims[ax], ex_clamp(K, v, 0, x->dims[ax] - 1));
    }
    if (ex_node(K, inside)->kind == EX_CONST && !ex_node(K, inside)->i)
        return fill;
    return ex_select(K, inside, elem(K, n->in[0], &in), fill);
}

static Ex elem_concat(Kern *K, Node *n, const Index *at) {
    const Value *y = n->out[0];
    int64_t axis = node_int(n, AT_AXIS, 0), size = y->dims[axis], end = size;
    int64_t sizes[3] = {dims_product(y->dims, 0, (int)axis), size,
                        dims_product(y->dims, (int)axis + 1, y->rank)};
    Ex d[3], result = 0;
    index_split(K, at, 3, sizes, d);
    for (int i = n->nin - 1; i >= 0;
         i--) { /* the last one is the default, those before it come first */
        int64_t width = n->in[i]->dims[axis], begin = end - width;
        end = begin;
        if (!width)
            continue;
        Ex here = result ? ex_within(K, d[1], INT64_MIN, begin + width) : ex_b(K, true);
        const ExNode *known = ex_node(K, d[1]);
        if (known->lo >= begin + width || known->hi < begin)
            continue;
        Index in = {0};
        index_push(&in, sizes[0], d[0]);
        index_push(&in, width, ex_clamp(K, ex_addc(K, d[1], -begin), 0, width - 1));
        index_push(&in, sizes[2], d[2]);
        Ex e = elem(K, n->in[i], &in);
        result = result ? ex_select(K, here, e, result) : e;
    }
    return result ? result : ex_zero(K, value_ltype(y));
}

static Ex elem_gather(Kern *K, Node *n, const Index *at) {
    const Value *x = n->in[0], *ids = n->in[1];
    int64_t axis = node_int(n, AT_AXIS, 0);
    int64_t sizes[3] = {dims_product(x->dims, 0, (int)axis), dims_product(ids->dims, 0, ids->rank),
                        dims_product(x->dims, (int)axis + 1, x->rank)};
    Ex d[3];
    index_split(K, at, 3, sizes, d);
    if (x->dims[axis] == 0)
        return ex_zero(K, value_ltype(x));
    Index where = index_one(sizes[1], d[1]), in = {0};
    Ex i =
        ex_check(K, elem(K, n->in[1], &where), x->dims[axis], "gather: index out of range", true);
    index_push(&in, sizes[0], d[0]);
    index_push(&in, x->dims[axis], i);
    index_push(&in, sizes[2], d[2]);
    return elem(K, n->in[0], &in);
}

static Ex elem_gather_elements(Kern *K, Node *n, const Index *at) {
    const Value *x = n->in[0], *ids = n->in[1];
    int64_t axis = node_int(n, AT_AXIS, 0);
    Ex d[MAX_RANK], i = elem(K, n->in[1], at);
    index_split(K, at, ids->rank, ids->dims, d);
    if (value_count(x) == 0)
        return ex_zero(K, value_ltype(x));
    Index in = {0};
    for (int a = 0; a < x->rank; a++)
        index_push(&in, x->dims[a],
                   a == axis ? ex_check(K, i, x->dims[a], "gather: index out of range", true)
                             : d[a]);
    return elem(K, n->in[0], &in);
}

/* idx [batch, place, k]; result [batch, place, rest of x]. */
static Ex elem_gather_nd(Kern *K, Node *n, const Index *at) {
    const Value *x = n->in[0], *ids = n->in[1];
    int batch = (int)node_int(n, AT_BATCH_DIMS, 0), k = (int)ids->dims[ids->rank - 1];
    int64_t b = dims_product(ids->dims, 0, batch),
            place = dims_product(ids->dims, batch, ids->rank - 1);
    int64_t rest = dims_product(x->dims, batch + k, x->rank), sizes[3] = {b, place, rest};
    Ex d[3];
    index_split(K, at, 3, sizes, d);
    if (value_count(x) == 0)
        return ex_zero(K, value_ltype(x));
    Index in = {0};
    index_push(&in, b, d[0]);
    for (int i = 0; i < k; i++) {
        Index where = {0};
        index_push(&where, b, d[0]);
        index_push(&where, place, d[1]);
        index_push(&where, k, ex_i(K, i));
        index_push(&in, x->dims[batch + i],
                   ex_check(K, elem(K, n->in[1], &where), x->dims[batch + i],
                            "gather: index out of range", true));
    }
    index_push(&in, rest, d[2]);
    return elem(K, n->in[0], &in);
}

/* The element of row `row` (which may be -1: then 0) of x, `inner` within the row. */
static Ex row_or_zero(Kern *K, Value *x, Ex row, int64_t inner, Ex in_row) {
    LType t = value_ltype(x);
    int64_t rows = inner ? value_count(x) / inner : 0;
    if (rows == 0)
        return ex_zero(K, t);
    Index in = {0};
    index_push(&in, rows, ex_clamp(K, row, 0, rows - 1));
    index_push(&in, inner, in_row);
    Ex there = ex_2(K, L_LE, ex_i(K, 0), row);
    return ex_select(K, there, elem(K, x, &in), ex_zero(K, t));
}

static Ex elem_gather_rows(Kern *K, Node *n, const Index *at) {
    const Value *x = n->in[0], *ids = n->in[1];
    int64_t sizes[2] = {value_count(ids), dims_product(x->dims, 1, x->rank)};
    Ex d[2];
    index_split(K, at, 2, sizes, d);
    Index where = index_one(sizes[0], d[0]);
    return row_or_zero(K, n->in[0], elem(K, n->in[1], &where), sizes[1], d[1]);
}

static Ex elem_combine(Kern *K, Node *n, const Index *at) {
    const Value *y = n->out[0], *inv = n->in[1];
    int64_t sizes[2] = {y->dims[0], dims_product(y->dims, 1, y->rank)}, terms = inv->dims[1];
    Ex d[2], sum = ex_zero(K, value_ltype(y));
    index_split(K, at, 2, sizes, d);
    for (int64_t j = 0; j < terms; j++) {
        Index where = {0};
        index_push(&where, sizes[0], d[0]);
        index_push(&where, terms, ex_i(K, j));
        Ex row = elem(K, n->in[1], &where), term = row_or_zero(K, n->in[0], row, sizes[1], d[1]);
        sum = j ? ex_add(K, sum, term) : term;
    }
    return sum;
}

static Ex elem_range(Kern *K, Node *n, const Index *at) {
    Index none = {0};
    Ex i = ex_cast(K, index_linear(K, at), value_ltype(n->out[0]));
    return ex_add(K, elem(K, n->in[0], &none), ex_mul(K, i, elem(K, n->in[2], &none)));
}

static Ex elem_shape(Kern *K, Node *n, const Index *at) {
    Ex i = index_linear(K, at), v = ex_i(K, 0);
    for (int a = n->in[0]->rank - 1; a >= 0; a--)
        v = ex_select(K, ex_2(K, L_EQ, i, ex_i(K, a)), ex_i(K, n->in[0]->dims[a]), v);
    return v;
}

/* (softmax - onehot) * g by rows: logits, labels, lse, g. */
static Ex elem_xent_grad(Kern *K, Node *n, const Index *at) {
    const Value *x = n->in[0];
    Ex d[2];
    index_split(K, at, 2, x->dims, d);
    Index row = index_one(x->dims[0], d[0]);
    Ex label = elem(K, n->in[1], &row), lse = elem(K, n->in[2], &row), g = elem(K, n->in[3], &row);
    LType t = value_ltype(x);
    Ex p = ex_1(K, L_EXP, ex_2(K, L_SUB, elem(K, n->in[0], at), ex_cast(K, lse, t)));
    Ex hit = ex_cast(K, ex_2(K, L_EQ, d[1], label), t), zero = ex_zero(K, t);
    Ex ignored = ex_2(K, L_EQ, label, ex_i(K, node_int(n, AT_IGNORE_INDEX, -100)));
    return ex_select(K, ignored, zero, ex_mul(K, ex_2(K, L_SUB, p, hit), ex_cast(K, g, t)));
}

/* y[n, c, window…, position…] = x[n, c, position*stride + window*dilation - pad …] */
static Ex elem_unfold(Kern *K, Node *n, const Index *at) {
    const Value *x = n->in[0], *y = n->out[0];
    int s = x->rank - 2;
    const int64_t *strides, *dilations, *pads;
    int ns = node_ints(n, AT_STRIDES, &strides), nd = node_ints(n, AT_DILATIONS, &dilations),
        np = node_ints(n, AT_PADS, &pads);
    Ex d[MAX_RANK], inside = ex_b(K, true);
    index_split(K, at, y->rank, y->dims, d);
    Ex fill = ex_f(K, value_ltype(y), node_float(n, AT_VALUE_F, 0));
    if (value_count(x) == 0)
        return fill;
    Index in = {0};
    index_push(&in, x->dims[0], d[0]);
    index_push(&in, x->dims[1], d[1]);
    for (int i = 0; i < s; i++) {
        Ex p = ex_add(K, ex_mulc(K, d[2 + s + i], ns ? strides[i] : 1),
                      ex_mulc(K, d[2 + i], nd ? dilations[i] : 1));
        p = ex_addc(K, p, np ? -pads[i] : 0);
        inside = ex_2(K, L_AND, inside, ex_within(K, p, 0, x->dims[2 + i]));
        index_push(&in, x->dims[2 + i], ex_clamp(K, p, 0, x->dims[2 + i] - 1));
    }
    return ex_select(K, inside, elem(K, n->in[0], &in), fill);
}

static Ex elem_rule(Kern *K, Value *v, const Index *at) {
    Node *n = v->def;
    switch (n->op) {
    case OP_RESHAPE:
        return elem(K, n->in[0], at);
    case OP_TRANSPOSE:
        return elem_transpose(K, n, at);
    case OP_EXPAND:
        return elem_expand(K, n, at);
    case OP_SLICE:
        return elem_slice(K, n, at);
    case OP_PAD:
        return elem_pad(K, n, at);
    case OP_CONCAT:
        return elem_concat(K, n, at);
    case OP_GATHER:
        return elem_gather(K, n, at);
    case OP_GATHER_ELEMENTS:
        return elem_gather_elements(K, n, at);
    case OP_GATHER_ND:
        return elem_gather_nd(K, n, at);
    case OP_GATHER_ROWS:
        return elem_gather_rows(K, n, at);
    case OP_COMBINE:
        return elem_combine(K, n, at);
    case OP_RANGE:
        return elem_range(K, n, at);
    case OP_SHAPE:
        return elem_shape(K, n, at);
    case OP_XENT_GRAD:
        return elem_xent_grad(K, n, at);
    case OP_UNFOLD:
        return elem_unfold(K, n, at);
    default:
        if (op_info[n->op].flags & OPF_ELEM)
            return elem_math(K, n, at);
        bug("kernel %s: no element rule for %s", K->name, op_info[n->op].name);
    }
}

/* ---- the memo ---- */

static uint64_t place_hash(int value, const Index *at) {
    return hash_bytes(at->v, sizeof(Ex) * (size_t)at->n, (uint64_t)value);
}

static bool place_same(const Index *a, const Index *b) {
    return a->n == b->n && memcmp(a->v, b->v, sizeof(Ex) * (size_t)a->n) == 0 &&
           memcmp(a->size, b->size, sizeof(int64_t) * (size_t)a->n) == 0;
}

static void memo_rehash(Kern *K) {
    free(K->memo_buckets);
    K->nmemo_buckets = K->nmemo_buckets ? 4 * K->nmemo_buckets : 64;
    K->memo_buckets = xcalloc((size_t)K->nmemo_buckets, sizeof(int));
    for (int i = 0; i < K->memo.n; i++) {
        ElemMemo *m = &K->memo.at[i];
        int *b = &K->memo_buckets[place_hash(m->value, &m->at) & (uint64_t)(K->nmemo_buckets - 1)];
        m->chain = *b;
        *b = i + 1;
    }
}

Ex elem(Kern *K, Value *v, const Index *at) {
    if (K->own) {
        Ex e = K->own(K, v, at, K->own_ctx);
        if (e)
            return e;
    }
    const Tensor *t = value_const(v);
    if (t && value_count(v) == 1)
        return const_elem(K, t, 0);
    if (K->memo.n >= K->nmemo_buckets)
        memo_rehash(K);
    uint64_t h = place_hash(v->id, at);
    for (int i = K->memo_buckets[h & (uint64_t)(K->nmemo_buckets - 1)]; i;
         i = K->memo.at[i - 1].chain)
        if (K->memo.at[i - 1].value == v->id && place_same(&K->memo.at[i - 1].at, at))
            return K->memo.at[i - 1].result;
    Ex e;
    bool inside = K->L->member[v->def->id] == K->kernel_index + 1;
    if (K->L->plan->storage[v->id] && !inside) {
        int64_t skip;
        int b = kern_buffer(K, v, false, &skip);
        e = ex_load(K, b, ex_addc(K, index_linear(K, at), skip));
    } else {
        e = elem_rule(K, v, at);
    }
    if (K->memo.n >= K->nmemo_buckets)
        memo_rehash(K);
    int *bucket = &K->memo_buckets[h & (uint64_t)(K->nmemo_buckets - 1)];
    vec_push(&K->memo, ((ElemMemo){v->id, e, *bucket, *at}));
    *bucket = K->memo.n;
    return e;
}
