/* raise_probe_part.c: some elements of a value, and what is needed for them only.
 *
 * A layer is compared with what it was raised to on a sample of its tokens. What those need is
 * asked for from the results backwards: elements are numbered in row-major order, an operation says
 * which elements of its operands make up those that are wanted, and so on down to the cut
 * (raise_probe.c). Nothing that the walk found out is used for it, so a wrong walk cannot hide
 * behind it. Integers (who goes where) are small next to activations and computed whole, as is what
 * has no rule here.
 *
 * One thing is taken for granted: a row that is multiplied by an exact zero is finite. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "passes/raise_probe.h"

#define WHOLE_INTS ((int64_t)1 << 18) /* integer values up to this size are computed whole */

struct PartMemo {
    PartMemo *next;
    const Value *value;
    Part part;
    const Cell *cells;
};

static const Cell *failed(Probe *p, const Node *n) {
    if (!p->stuck)
        p->stuck = n;
    return NULL;
}

/* ---- positions ---- */

bool part_strides(const int64_t *dims, int rank, int64_t *stride) {
    int64_t s = 1;
    for (int k = rank - 1; k >= 0; k--) {
        stride[k] = s;
        if (k > 0 && dims[k] < 0)
            return false;
        s *= dims[k];
    }
    return true;
}

/* Coordinate of position `at` on axis k; the first axis needs no size. */
static int64_t coordinate(int64_t at, const int64_t *stride, const int64_t *dims, int k) {
    return k == 0 ? at / stride[0] : at / stride[k] % dims[k];
}

Part part_new(Probe *p, int64_t n) {
    return (Part){n, ARENA_ARRAY(&p->arena, int64_t, n ? n : 1)};
}

static uint64_t part_hash(const Part *x) {
    uint64_t h = (uint64_t)x->n;
    for (int64_t i = 0; i < x->n; i++) {
        h = (h ^ (uint64_t)x->at[i]) * 0x9e3779b97f4a7c15u;
        h ^= h >> 29;
    }
    return h;
}

/* The distinct positions of x, and for each element of x which of them it is. */
static Part part_distinct(Probe *p, const Part *x, int32_t *which) {
    int64_t cap = 64;
    while (cap < 2 * x->n)
        cap *= 2;
    int32_t *slot = xcalloc((size_t)cap, sizeof *slot);
    Part out = part_new(p, x->n);
    out.n = 0;
    for (int64_t i = 0; i < x->n; i++) {
        if (i > 0 && x->at[i] == x->at[i - 1]) {
            which[i] = which[i - 1];
            continue;
        }
        uint64_t h = (uint64_t)x->at[i] * 0x9e3779b97f4a7c15u;
        int64_t at = (int64_t)((h ^ h >> 32) & (uint64_t)(cap - 1));
        while (slot[at] && out.at[slot[at] - 1] != x->at[i])
            at = (at + 1) & (cap - 1);
        if (!slot[at]) {
            out.at[out.n++] = x->at[i];
            slot[at] = (int32_t)out.n;
        }
        which[i] = slot[at] - 1;
    }
    free(slot);
    return out;
}

const Cell *probe_part_again(Probe *p, Value *v, const Part *x) {
    int32_t *which = xcalloc((size_t)x->n + 1, sizeof *which);
    Part few = part_distinct(p, x, which);
    const Cell *from = probe_part(p, v, &few);
    Cell *to = from ? ARENA_ARRAY(&p->arena, Cell, x->n + 1) : NULL;
    for (int64_t i = 0; from && i < x->n; i++)
        to[i] = from[which[i]];
    free(which);
    return to;
}

/* ---- leaves and whole values ---- */

static const Cell *pick(Probe *p, const RTensor *r, const Part *x) {
    Cell *c = ARENA_ARRAY(&p->arena, Cell, x->n + 1);
    for (int64_t i = 0; i < x->n; i++) {
        if (x->at[i] < 0 || x->at[i] >= r->count)
            return NULL;
        c[i] = ((const Cell *)(const void *)r->i)[x->at[i]];
    }
    return c;
}

static const Cell *pick_tensor(Probe *p, const Tensor *t, const Part *x) {
    Cell *c = ARENA_ARRAY(&p->arena, Cell, x->n + 1);
    int64_t count = tensor_count(t);
    for (int64_t i = 0; i < x->n; i++) {
        double f;
        int64_t n;
        if (x->at[i] < 0 || x->at[i] >= count)
            return NULL;
        if (dtype_is_float(t->dtype)) {
            f = t->dtype == DT_F32 ? ((const float *)t->data)[x->at[i]] : tensor_get_f(t, x->at[i]);
            memcpy(&c[i], &f, sizeof f);
        } else {
            n = tensor_get_i(t, x->at[i]);
            memcpy(&c[i], &n, sizeof n);
        }
    }
    return c;
}

static const Cell *pick_random(Probe *p, const Value *v, const Part *x) {
    double *f = ARENA_ARRAY(&p->arena, double, x->n + 1);
    for (int64_t i = 0; i < x->n; i++)
        f[i] = probe_random(p, v, x->at[i]);
    return (const Cell *)(const void *)f;
}

static const Cell *whole(Probe *p, Value *v, const Part *x) {
    const RTensor *r = probe_value(p, v);
    const Cell *c = r ? pick(p, r, x) : NULL;
    return c ? c : failed(p, v->def);
}

/* ---- elementwise ---- */

/* Positions in an operand that is broadcast to v. False: some size in between is not known. *same:
 * they are those in v. */
static bool broadcast_part(Probe *p, const Value *v, Value *o, const Part *x, Part *out,
                           bool *same) {
    int64_t stride[MAX_RANK], own[MAX_RANK], by[MAX_RANK], sizes[MAX_RANK];
    const int64_t *dims = v->dims;
    int rank = v->rank, shift = rank - o->rank;
    *same = shift == 0;
    for (int k = 0; k < o->rank; k++) {
        sizes[k] = o->dims[k];
        if (sizes[k] < 0 && sizes[k] != dims[k + shift] && k == 0)
            sizes[k] = part_rows(p, o);
        bool unknown = sizes[k] < 0 || (dims[k + shift] < 0 && sizes[k] != 1);
        if (unknown && sizes[k] != dims[k + shift] && (sizes[k] < 0 || k + shift > 0))
            return false;
        *same = *same && (sizes[k] == dims[k] || (unknown && k == 0));
    }
    if (*same)
        return true;
    if (!part_strides(dims, rank, stride) || !part_strides(sizes, o->rank, own))
        return false;
    for (int k = 0; k < rank; k++)
        by[k] = k < shift || sizes[k - shift] == 1 ? 0 : own[k - shift];
    *out = part_new(p, x->n);
    for (int64_t i = 0; i < x->n; i++) {
        int64_t at = 0;
        for (int k = 0; k < rank; k++)
            if (by[k])
                at += coordinate(x->at[i], stride, dims, k) * by[k];
        out->at[i] = at;
    }
    return true;
}

static RTensor *flat(Probe *p, DType t, const Cell *c, int64_t n) {
    RTensor *r = ARENA_NEW(&p->arena, RTensor);
    *r = (RTensor){.dtype = t, .rank = 1, .dims = {n}, .count = n};
    r->i = (int64_t *)(uintptr_t)c;
    return r;
}

/* The operation itself does not care which elements it is given. */
static const Cell *part_elementwise(Probe *p, Node *n, const Part *x) {
    RTensor *in[3], *kept[4];
    const Value *y = n->out[0];
    for (int j = 0; j < n->nin; j++) {
        Part o;
        bool same, one = value_count(n->in[j]) == 1;
        if (one) {
            o = part_new(p, 1);
            same = false;
        } else if (!broadcast_part(p, y, n->in[j], x, &o, &same)) {
            return whole(p, n->out[0], x);
        }
        const Cell *c = same || one ? probe_part(p, n->in[j], same ? x : &o)
                                    : probe_part_again(p, n->in[j], &o);
        if (!c)
            return NULL;
        in[j] = flat(p, n->in[j]->dtype, c, one ? 1 : x->n);
    }
    RTensor **at = p->ev.values;
    for (int j = 0; j < n->nin; j++)
        kept[j] = at[n->in[j]->id];
    for (int j = 0; j < n->nin; j++)
        at[n->in[j]->id] = in[j];
    kept[3] = at[y->id];
    at[y->id] = NULL;
    bool ok = eval_node(&p->ev, n);
    const RTensor *r = at[y->id];
    at[y->id] = kept[3];
    for (int j = 0; j < n->nin; j++)
        at[n->in[j]->id] = kept[j];
    if (!ok)
        return failed(p, n);
    const Cell *c = (const Cell *)(const void *)r->i;
    if (r->count == x->n)
        return c;
    Part zeros = part_new(p, x->n); /* of scalars only */
    return pick(p, r, &zeros);
}

/* ---- moves ---- */

static const Cell *part_transpose(Probe *p, Node *n, const Part *x) {
    const Value *y = n->out[0], *v = n->in[0];
    int64_t stride[MAX_RANK], own[MAX_RANK];
    const int64_t *perm;
    node_ints(n, AT_PERM, &perm);
    if (!part_strides(y->dims, y->rank, stride) || !part_strides(v->dims, v->rank, own))
        return whole(p, n->out[0], x);
    Part o = part_new(p, x->n);
    for (int64_t i = 0; i < x->n; i++) {
        int64_t at = 0;
        for (int k = 0; k < y->rank; k++)
            at += coordinate(x->at[i], stride, y->dims, k) * own[perm[k]];
        o.at[i] = at;
    }
    return probe_part(p, n->in[0], &o);
}

static const Cell *part_expand(Probe *p, Node *n, const Part *x) {
    const Value *y = n->out[0];
    Part o;
    bool same;
    if (!broadcast_part(p, y, n->in[0], x, &o, &same))
        return whole(p, n->out[0], x);
    return same ? probe_part(p, n->in[0], x) : probe_part_again(p, n->in[0], &o);
}

/* Where each axis of a slice begins, and its step; false if that takes sizes that are not known. */
static bool slice_spans(Probe *p, const Node *n, int64_t *start, int64_t *step) {
    const int64_t *axes, *starts, *steps = NULL;
    int count, nsteps = 0;
    if (n->nin == 1) {
        count = node_ints(n, AT_AXES, &axes);
        node_ints(n, AT_STARTS, &starts);
        nsteps = node_ints(n, AT_STEPS, &steps);
    } else {
        const RTensor *s = probe_value(p, n->in[1]),
                      *a = n->nin > 3 && n->in[3] ? probe_value(p, n->in[3]) : NULL;
        if (!s || !a || (n->nin > 4 && n->in[4]))
            return false;
        count = (int)s->count;
        starts = s->i;
        axes = a->i;
    }
    for (int k = 0; k < n->in[0]->rank; k++)
        start[k] = 0, step[k] = 1;
    for (int i = 0; i < count; i++) {
        int64_t k = axes[i] < 0 ? axes[i] + n->in[0]->rank : axes[i];
        start[k] = starts[i];
        step[k] = nsteps ? steps[i] : 1;
        if (start[k] < 0 || step[k] < 1)
            return false;
    }
    return true;
}

static const Cell *part_slice(Probe *p, Node *n, const Part *x) {
    const Value *y = n->out[0], *v = n->in[0];
    int64_t stride[MAX_RANK], own[MAX_RANK], start[MAX_RANK], step[MAX_RANK];
    if (!slice_spans(p, n, start, step) || !part_strides(y->dims, y->rank, stride) ||
        !part_strides(v->dims, v->rank, own))
        return whole(p, n->out[0], x);
    Part o = part_new(p, x->n);
    for (int64_t i = 0; i < x->n; i++) {
        int64_t at = 0;
        for (int k = 0; k < y->rank; k++)
            at += (start[k] + step[k] * coordinate(x->at[i], stride, y->dims, k)) * own[k];
        o.at[i] = at;
    }
    return probe_part(p, n->in[0], &o);
}

/* Elements of a concatenation along its first axis, or along one whose sizes are all known. */
static const Cell *part_concat(Probe *p, Node *n, const Part *x) {
    const Value *y = n->out[0];
    int axis = (int)node_int(n, AT_AXIS, 0);
    axis += axis < 0 ? y->rank : 0;
    int64_t inner = 1, all = axis ? y->dims[axis] : INT64_MAX, begin = 0;
    for (int k = axis + 1; k < y->rank; k++)
        inner *= y->dims[k] < 0 ? -1 : y->dims[k];
    if (inner < 0 || all < 0)
        return whole(p, n->out[0], x);
    Cell *out = ARENA_ARRAY(&p->arena, Cell, x->n + 1);
    int64_t *back = xcalloc((size_t)x->n + 1, sizeof *back), left = x->n;
    for (int j = 0; j < n->nin && left; j++) {
        int64_t size = axis ? n->in[j]->dims[axis] : part_rows(p, n->in[j]);
        Part o = part_new(p, x->n);
        o.n = 0;
        for (int64_t i = 0; size > 0 && i < x->n; i++) {
            int64_t c = axis ? x->at[i] / inner % all : x->at[i] / inner;
            if (c < begin || c >= begin + size)
                continue;
            int64_t outer = axis ? x->at[i] / inner / all : 0;
            back[o.n] = i;
            o.at[o.n++] = (outer * size + c - begin) * inner + x->at[i] % inner;
        }
        const Cell *c = o.n ? probe_part(p, n->in[j], &o) : NULL;
        if (size < 0 || (o.n && !c)) {
            free(back);
            return size < 0 ? whole(p, n->out[0], x) : NULL;
        }
        for (int64_t i = 0; i < o.n; i++)
            out[back[i]] = c[i];
        left -= o.n;
        begin += size;
    }
    free(back);
    return left ? failed(p, n) : out;
}

/* How many rows (the first axis) a value has; -1: not known without computing it. */
int64_t part_rows(Probe *p, Value *v) {
    Node *n = v->def;
    if (v->rank < 1 || v->dims[0] >= 0)
        return v->rank < 1 ? -1 : v->dims[0];
    if (p->ev.values[v->id])
        return p->ev.values[v->id]->dims[0];
    if (!dtype_is_float(v->dtype)) {
        const RTensor *r = probe_value(p, v);
        return r ? r->dims[0] : -1;
    }
    for (int i = 0; (op_info[n->op].flags & OPF_ELEM) && i < n->nin; i++)
        if (n->in[i]->rank == v->rank && n->in[i]->dims[0] == v->dims[0])
            return part_rows(p, n->in[i]);
    int64_t inner = 1, outer = 1;
    switch (n->op) {
    case OP_MATMUL:
        return v->rank == 2 && !node_int(n, AT_TRANS_A, 0) ? part_rows(p, n->in[0]) : -1;
    case OP_GATHER:
        return node_int(n, AT_AXIS, 0) == 0 && n->in[1]->rank ? part_rows(p, n->in[1]) : -1;
    case OP_GATHER_ND:
        return n->in[1]->rank > 1 ? part_rows(p, n->in[1]) : -1;
    case OP_RESHAPE:
        for (int k = 1; k < v->rank; k++)
            inner *= v->dims[k] < 0 ? 0 : v->dims[k];
        for (int k = 1; k < n->in[0]->rank; k++)
            outer *= n->in[0]->dims[k] < 0 ? 0 : n->in[0]->dims[k];
        if (inner < 1 || outer < 1 || n->in[0]->rank < 1)
            return -1;
        outer *= part_rows(p, n->in[0]);
        return outer < 0 || outer % inner ? -1 : outer / inner;
    case OP_CONCAT:
        outer = 0;
        inner = node_int(n, AT_AXIS, 0);
        for (int i = 0; i < ((inner < 0 ? inner + v->rank : inner) ? 1 : n->nin); i++) {
            int64_t rows = part_rows(p, n->in[i]);
            outer = rows < 0 || outer < 0 ? -1 : outer + rows;
        }
        return outer;
    case OP_SLICE: {
        const int64_t *axes;
        int count = node_ints(n, AT_AXES, &axes);
        for (int i = 0; i < count; i++)
            inner = axes[i] == 0 ? 0 : inner;
        return n->nin == 1 && inner ? part_rows(p, n->in[0]) : -1;
    }
    default:
        return -1;
    }
}

/* ---- gathers ---- */

/* Elements of v at o, where -1 is a zero. */
static const Cell *part_or_zero(Probe *p, Value *v, const Part *o) {
    Part some = part_new(p, o->n);
    some.n = 0;
    for (int64_t i = 0; i < o->n; i++)
        if (o->at[i] >= 0)
            some.at[some.n++] = o->at[i];
    if (some.n == o->n)
        return probe_part_again(p, v, o);
    const Cell *c = some.n ? probe_part_again(p, v, &some) : NULL;
    if (some.n && !c)
        return NULL;
    Cell *out = ARENA_ARRAY(&p->arena, Cell, o->n + 1);
    for (int64_t i = 0, k = 0; i < o->n; i++)
        if (o->at[i] >= 0)
            out[i] = c[k++];
    return out;
}

static const Cell *part_gather(Probe *p, Node *n, const Part *x) {
    const Value *v = n->in[0], *y = n->out[0];
    int axis = (int)node_int(n, AT_AXIS, 0), q = n->in[1]->rank;
    axis += axis < 0 ? v->rank : 0;
    const RTensor *idx = probe_value(p, n->in[1]);
    int64_t size = v->dims[axis], inner = 1;
    for (int k = axis + 1; k < v->rank; k++)
        inner *= v->dims[k] < 0 ? -1 : v->dims[k];
    if (!idx)
        return NULL;
    if (inner < 1 || (axis > 0 && size < 0) || y->rank != v->rank - 1 + q)
        return whole(p, n->out[0], x);
    Part o = part_new(p, x->n);
    for (int64_t i = 0; i < x->n; i++) {
        int64_t rest = x->at[i] / inner, outer = idx->count ? rest / idx->count : 0;
        int64_t at = axis > 0 || rest < idx->count ? idx->i[rest % idx->count] : -1;
        if (at < 0 && size >= 0)
            at += size;
        if (at < 0 || (size >= 0 && at >= size))
            return at < 0 && size < 0 ? whole(p, n->out[0], x) : failed(p, n);
        o.at[i] = ((axis > 0 ? outer * size : 0) + at) * inner + x->at[i] % inner;
    }
    return probe_part_again(p, n->in[0], &o);
}

/* Place of the slice that tuple t of idx addresses in x, in slices; -1 if it cannot be told. */
static int64_t tuple_place(const RTensor *idx, int64_t t, const Value *x) {
    int64_t m = idx->dims[idx->rank - 1], place = 0;
    if ((t + 1) * m > idx->count)
        return -1;
    for (int64_t k = 0; k < m; k++) {
        int64_t at = idx->i[t * m + k], size = x->dims[k];
        if ((size < 0 && (k > 0 || at < 0)) || at < -size || (size >= 0 && at >= size))
            return -1;
        place = place * (k > 0 ? size : 1) + (at < 0 ? at + size : at);
    }
    return place;
}

static int64_t tuple_slice(const RTensor *idx, const Value *x) {
    int64_t slice = 1;
    for (int64_t k = idx->dims[idx->rank - 1]; k < x->rank; k++)
        slice *= x->dims[k] < 0 ? -1 : x->dims[k];
    return slice;
}

static const Cell *part_gather_nd(Probe *p, Node *n, const Part *x) {
    const RTensor *idx = probe_value(p, n->in[1]);
    if (!idx)
        return NULL;
    int64_t slice = idx->rank > 0 ? tuple_slice(idx, n->in[0]) : -1;
    if (slice < 1 || node_int(n, AT_BATCH_DIMS, 0))
        return whole(p, n->out[0], x);
    Part o = part_new(p, x->n);
    for (int64_t i = 0; i < x->n; i++) {
        int64_t place = tuple_place(idx, x->at[i] / slice, n->in[0]);
        if (place < 0)
            return whole(p, n->out[0], x);
        o.at[i] = place * slice + x->at[i] % slice;
    }
    return probe_part_again(p, n->in[0], &o);
}

static int64_t slice_after(const Value *v, int axes) {
    int64_t s = 1;
    for (int k = axes; k < v->rank; k++)
        s *= v->dims[k];
    return s;
}

static const Cell *part_gather_rows(Probe *p, Node *n, const Part *x) {
    const RTensor *idx = probe_value(p, n->in[1]);
    int64_t width = slice_after(n->in[0], 1);
    if (!idx || width < 1)
        return failed(p, n);
    Part o = part_new(p, x->n);
    for (int64_t i = 0; i < x->n; i++) {
        int64_t m = x->at[i] / width, row = m < idx->count ? idx->i[m] : -1;
        o.at[i] = row < 0 ? -1 : row * width + x->at[i] % width;
    }
    return part_or_zero(p, n->in[0], &o);
}

/* ---- sums of rows ---- */

/* Adds up, for each element i of x, the elements of v at parts[i*each ..], -1 being none. */
static const Cell *sum_of(Probe *p, Value *v, const Part *parts, int64_t n, int64_t each) {
    const Cell *c = part_or_zero(p, v, parts);
    if (!c)
        return NULL;
    double *out = ARENA_ARRAY(&p->arena, double, n + 1);
    const double *f = (const double *)(const void *)c;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < each; j++)
            if (parts->at[i * each + j] >= 0)
                out[i] += f[i * each + j];
    return (const Cell *)(const void *)out;
}

static const Cell *part_combine(Probe *p, Node *n, const Part *x) {
    const RTensor *inv = probe_value(p, n->in[1]);
    int64_t width = slice_after(n->in[0], n->in[2]->rank);
    if (!inv || width < 1)
        return failed(p, n);
    int64_t each = inv->dims[1];
    Part o = part_new(p, x->n * each);
    for (int64_t i = 0; i < x->n; i++)
        for (int64_t j = 0; j < each; j++) {
            int64_t row = inv->i[x->at[i] / width * each + j];
            o.at[i * each + j] = row < 0 ? -1 : row * width + x->at[i] % width;
        }
    return sum_of(p, n->in[0], &o, x->n, each);
}

/* Rows written to places, added or one over the other. */
static const Cell *part_scatter_nd(Probe *p, Node *n, const Part *x) {
    const char *how = node_str(n, AT_REDUCTION, "none");
    bool add = !strcmp(how, "add");
    const RTensor *idx = probe_value(p, n->in[1]);
    if (!idx)
        return NULL;
    int64_t slice = idx->rank > 0 ? tuple_slice(idx, n->in[0]) : -1, tuples, most = 0;
    if (slice < 1 || (!add && strcmp(how, "none") != 0) || !value_known(n->out[0]))
        return whole(p, n->out[0], x);
    tuples = idx->count / idx->dims[idx->rank - 1];
    int64_t places = value_count(n->out[0]) / slice;
    /* By place: how many updates; where the list of them begins. */
    int32_t *first = xcalloc((size_t)places + 2, sizeof *first), *list = NULL;
    int64_t *place = xcalloc((size_t)tuples + 1, sizeof *place);
    const Cell *out = NULL;
    for (int64_t t = 0; t < tuples; t++) {
        place[t] = tuple_place(idx, t, n->in[0]);
        if (place[t] < 0 || place[t] >= places) {
            failed(p, n);
            goto end;
        }
        most = ++first[place[t] + 1] > most ? first[place[t] + 1] : most;
    }
    for (int64_t s = 0; s < places; s++)
        first[s + 1] += first[s];
    list = xcalloc((size_t)tuples + 1, sizeof *list);
    int32_t *next = xcalloc((size_t)places + 1, sizeof *next);
    memcpy(next, first, sizeof *next * (size_t)places);
    for (int64_t t = 0; t < tuples; t++)
        list[next[place[t]]++] = (int32_t)t;
    free(next);
    most = add ? most : most > 0;
    Part o = part_new(p, x->n * (most + 1));
    for (int64_t i = 0; i < x->n; i++) {
        int64_t s = x->at[i] / slice, count = first[s + 1] - first[s];
        for (int64_t j = 0; j < most; j++) {
            int64_t t = j < count ? list[add ? first[s] + j : first[s + 1] - 1] : -1;
            o.at[i * most + j] = t < 0 ? -1 : t * slice + x->at[i] % slice;
        }
    }
    o.n = x->n * most;
    const Cell *base = probe_part(p, n->in[0], x);
    const Cell *sum = base ? sum_of(p, n->in[2], &o, x->n, most) : NULL;
    double *y = sum ? ARENA_ARRAY(&p->arena, double, x->n + 1) : NULL;
    for (int64_t i = 0; sum && i < x->n; i++) {
        double b = ((const double *)(const void *)base)[i],
               u = ((const double *)(const void *)sum)[i];
        y[i] = add ? b + u : most && o.at[i * most] >= 0 ? u : b;
    }
    out = (const Cell *)(void *)y;
end:
    free(first);
    free(list);
    free(place);
    return out;
}

static const Cell *part_reduce(Probe *p, Node *n, const Part *x) {
    const Value *v = n->in[0], *y = n->out[0];
    const int64_t *axes;
    int64_t own[MAX_RANK], stride[MAX_RANK], each = 1;
    int count = node_ints(n, AT_AXES, &axes);
    unsigned reduced = node_attr(n, AT_AXES) ? 0 : (1u << v->rank) - 1;
    bool keep = node_int(n, AT_KEEPDIMS, 1);
    for (int i = 0; i < count; i++)
        reduced |= 1u << (axes[i] < 0 ? axes[i] + v->rank : axes[i]);
    if (!value_known(v) || !part_strides(v->dims, v->rank, own) ||
        !part_strides(y->dims, y->rank, stride))
        return whole(p, n->out[0], x);
    for (int k = 0; k < v->rank; k++)
        each *= reduced >> k & 1 ? v->dims[k] : 1;
    Part o = part_new(p, x->n * each);
    for (int64_t i = 0; i < x->n; i++) {
        int64_t base = 0;
        int to = 0;
        for (int k = 0; k < v->rank; k++) {
            if (!(reduced >> k & 1))
                base += coordinate(x->at[i], stride, y->dims, to) * own[k];
            to += !(reduced >> k & 1) || keep;
        }
        for (int64_t j = 0; j < each; j++) {
            int64_t rest = j, at = base;
            for (int k = v->rank - 1; k >= 0; k--)
                if (reduced >> k & 1) {
                    at += rest % v->dims[k] * own[k];
                    rest /= v->dims[k];
                }
            o.at[i * each + j] = at;
        }
    }
    return sum_of(p, n->in[0], &o, x->n, each);
}

/* ---- the rules ---- */

static const Cell *part_of_op(Probe *p, Value *v, const Part *x) {
    Node *n = v->def;
    if (op_info[n->op].flags & OPF_ELEM)
        return part_elementwise(p, n, x);
    if (!dtype_is_float(v->dtype))
        return whole(p, v, x);
    switch (n->op) {
    case OP_RESHAPE:
        return probe_part(p, n->in[0], x);
    case OP_TRANSPOSE:
        return part_transpose(p, n, x);
    case OP_EXPAND:
        return part_expand(p, n, x);
    case OP_SLICE:
        return part_slice(p, n, x);
    case OP_CONCAT:
        return part_concat(p, n, x);
    case OP_GATHER:
        return part_gather(p, n, x);
    case OP_GATHER_ND:
        return part_gather_nd(p, n, x);
    case OP_GATHER_ROWS:
        return part_gather_rows(p, n, x);
    case OP_COMBINE:
        return part_combine(p, n, x);
    case OP_SCATTER_ND:
        return part_scatter_nd(p, n, x);
    case OP_REDUCE_SUM:
        return part_reduce(p, n, x);
    case OP_MATMUL:
    case OP_GROUPED_MATMUL:
        return part_product(p, n, x);
    default:
        return whole(p, v, x);
    }
}

static bool computed_whole(const Value *v) {
    int64_t count = value_known(v) ? value_count(v) : 0;
    return !dtype_is_float(v->dtype) && count <= WHOLE_INTS;
}

const Cell *probe_part(Probe *p, Value *v, const Part *x) {
    const Attr *t =
        v->def->op == OP_PARAM || v->def->op == OP_CONST ? node_attr(v->def, AT_VALUE) : NULL;
    const Cell *c;
    if (p->stuck)
        return NULL;
    if (p->ev.values[v->id]) {
        c = pick(p, p->ev.values[v->id], x);
        return c ? c : failed(p, v->def);
    }
    if (t) {
        c = pick_tensor(p, t->t, x);
        return c ? c : failed(p, v->def);
    }
    if (v == p->s->value || computed_whole(v))
        return whole(p, v, x);
    if (probe_is_cut(p, v))
        return pick_random(p, v, x);
    uint64_t h = (part_hash(x) ^ (uint64_t)v->id * 0x9e3779b97f4a7c15u) % PART_MEMO;
    for (const PartMemo *m = p->memo[h]; m; m = m->next)
        if (m->part.n == x->n && m->value == v &&
            (m->part.at == x->at || !memcmp(m->part.at, x->at, sizeof *x->at * (size_t)x->n)))
            return m->cells;
    p->work += x->n;
    c = part_of_op(p, v, x);
    if (!c)
        return failed(p, v->def);
    PartMemo *m = ARENA_NEW(&p->arena, PartMemo);
    *m = (PartMemo){p->memo[h], v, *x, c};
    p->memo[h] = m;
    return c;
}
