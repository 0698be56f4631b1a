/* lower_reduce.c: reductions over any axes.
 *
 * Neighbouring axes of one fate are one group. Innermost group reduced: every result is a scalar
 * accumulated by a vector loop. Innermost group kept: a tile of columns is accumulated in a local
 * row while the reduced axes are walked outside it. Where there are too few results to share out,
 * the outermost reduced group is cut into parts of a size that shapes alone decide; partial results
 * go to scratch and are reduced by a second call, so the sum never depends on the number of
 * threads. */
#include "codegen/lower_reduce.h"
#include "codegen/lower.h"

#include <math.h>
#include <string.h>

enum { MAX_PARTS = 256 };

static LOp combine_op(Op op, LType t) {
    switch (op) {
    case OP_REDUCE_MAX:
        return t == LT_BOOL ? L_OR : L_MAX;
    case OP_REDUCE_MIN:
        return t == LT_BOOL ? L_AND : L_MIN;
    case OP_REDUCE_PROD:
        return t == LT_BOOL ? L_AND : L_MUL;
    default:
        return t == LT_BOOL ? L_OR : L_ADD;
    }
}

LVal reduce_combine(LoopProgram *p, Op op, LVal a, LVal b) {
    return lp_2(p, combine_op(op, lp_type(p, a)), a, b);
}

/* The largest or smallest value of an integer type. */
static int64_t extreme(DType t, bool high) {
    int bits = 8 * dtype_bytes(t);
    switch (t) {
    case DT_I8:
    case DT_I16:
    case DT_I32:
        return high ? ((int64_t)1 << (bits - 1)) - 1 : -((int64_t)1 << (bits - 1));
    case DT_U8:
    case DT_U16:
    case DT_U32:
        return high ? ((int64_t)1 << bits) - 1 : 0;
    case DT_BOOL:
        return high;
    default:
        return high ? INT64_MAX : INT64_MIN;
    }
}

Ex reduce_identity(Kern *K, Op op, DType dtype, LType t) {
    if (t == LT_BOOL)
        return ex_b(K, op == OP_REDUCE_MIN || op == OP_REDUCE_PROD);
    if (op == OP_REDUCE_SUM)
        return ex_zero(K, t);
    if (op == OP_REDUCE_PROD)
        return t == LT_I64 ? ex_i(K, 1) : ex_f(K, t, 1);
    bool high = op == OP_REDUCE_MIN;
    return t == LT_I64 ? ex_i(K, extreme(dtype, high))
                       : ex_f(K, t, high ? (double)INFINITY : -(double)INFINITY);
}

/* Sums, minima and maxima may be reassociated by the vector loop; the rest run in order. */
static LoopKind loop_kind(Op op, LType t) {
    return op == OP_REDUCE_PROD || t == LT_BOOL ? LOOP_SEQ : LOOP_VECTOR;
}

/* ---- the shape of the work ---- */

void reduce_group(Reduction *r, int64_t size, bool reduced) {
    if (size == 1)
        return;
    if (r->n && r->reduced[r->n - 1] == reduced) {
        r->size[r->n - 1] *= size;
    } else {
        r->size[r->n] = size;
        r->reduced[r->n++] = reduced;
    }
}

typedef struct Shape {
    int64_t total,
        rows; /* rows: results outside the innermost group (all of them if that is reduced) */
    int64_t columns;     /* of the innermost group if kept, else 1 */
    int64_t tile, tiles; /* columns of one task, number of them */
    int first;           /* outermost reduced group; -1 */
    int64_t parts, part; /* number and size of its parts */
    int64_t per, row_tasks;
} Shape;

static Shape shape_of(const Lower *L, const Reduction *r) {
    const int64_t widest = L->gpu ? 128 : 512, enough = L->gpu ? 256 : 16, grain = lower_grain(L);
    Shape s = {.total = 1, .rows = 1, .columns = 1, .first = -1, .parts = 1};
    int64_t reduced = 1;
    for (int i = 0; i < r->n; i++) {
        s.total *= r->size[i];
        if (r->reduced[i]) {
            reduced *= r->size[i];
            s.first = s.first < 0 ? i : s.first;
        } else if (i == r->n - 1) {
            s.columns = r->size[i];
        } else {
            s.rows *= r->size[i];
        }
    }
    s.tile = s.columns < widest ? s.columns : widest;
    s.tiles = ceil_div(s.columns, s.tile ? s.tile : 1);
    int64_t row_work = reduced * s.tile;
    s.per = s.tiles == 1 ? lower_rows_per_task(L, row_work) : 1;
    s.row_tasks = ceil_div(s.rows, s.per);
    if (s.first < 0)
        return s;
    s.part = r->size[s.first];
    if (s.row_tasks * s.tiles < enough && s.total >= 4 * grain && !r->whole) {
        int64_t parts = ceil_div(s.total, 2 * grain);
        parts = parts > MAX_PARTS ? MAX_PARTS : parts;
        parts = ceil_div(parts, s.row_tasks * s.tiles);
        parts = parts > s.part ? s.part : parts;
        s.part = ceil_div(s.part, parts);
        s.parts = ceil_div(r->size[s.first], s.part);
    }
    return s;
}

static DType scratch_type(LType t) {
    return t == LT_F32 ? DT_F32 : t == LT_F64 ? DT_F64 : t == LT_BOOL ? DT_BOOL : DT_I64;
}

/* What is accumulated in. Each column of a tile is one chain of additions, as long as the sum: in
 * f32 a bias's gradient would lose a digit in a few thousand rows. Sums in the innermost group are
 * many short chains, one a vector lane. */
static LType sum_type(const Reduction *r, LType t) {
    bool chains = r->op == OP_REDUCE_SUM && r->n && !r->reduced[r->n - 1];
    return chains && t == LT_F32 ? LT_F64 : t;
}

int64_t reduce_scratch(const Lower *L, const Reduction *r, LType t) {
    Shape s = shape_of(L, r);
    t = sum_type(r, t);
    return s.parts > 1 ? s.parts * s.rows * s.columns * dtype_bytes(scratch_type(t)) : 0;
}

/* ---- emission ---- */

typedef struct Emit {
    Kern K;
    const Reduction *r;
    Shape s;
    LType t;
    Ex row, group[MAX_RANK]; /* leaves of the groups walked by loops */
    Ex value;                /* of the element */
    LVal part;               /* of this task, if there are parts */
    int out;
    int64_t skip;
} Emit;

/* Leaves for the loops and the expression of an element: loops are the rows, the reduced groups
 * from the outside, and the innermost group. */
static void emit_leaves(Emit *e) {
    Kern *K = &e->K;
    const Reduction *r = e->r;
    int depth = 1, kept = 0;
    int64_t sizes[MAX_RANK];
    Ex digit[MAX_RANK];
    e->row = ex_leaf(K, LT_I64, depth++, 0, e->s.rows - 1);
    for (int i = 0; i < r->n; i++) {
        if (r->reduced[i] || i == r->n - 1)
            e->group[i] = ex_leaf(K, LT_I64, depth++, 0, r->size[i] - 1);
        else
            sizes[kept++] = r->size[i];
    }
    Index row = {0}, at = {0};
    index_push(&row, e->s.rows, e->row);
    index_split(K, &row, kept, sizes, digit);
    kept = 0;
    for (int i = 0; i < r->n; i++)
        index_push(&at, r->size[i], e->group[i] ? e->group[i] : digit[kept++]);
    e->value = r->element(K, &at, r->ctx);
    e->t = sum_type(r, ex_node(K, e->value)->t);
    e->value = ex_cast(K, e->value, e->t);
}

static void open_loop(Emit *e, LoopKind kind, int group, LVal lo, LVal hi) {
    ex_hoist(&e->K, &e->value, 1);
    kern_loop(&e->K, kind, e->group[group], lo, hi);
}

/* Opens the loops of the reduced groups but an innermost one; returns how many. */
static int open_reduced(Emit *e) {
    LoopProgram *p = e->K.p;
    int n = 0;
    for (int i = 0; i < e->r->n - 1; i++) {
        if (!e->r->reduced[i])
            continue;
        LVal lo = lp_const_i(p, 0), hi = lp_const_i(p, e->r->size[i]);
        if (i == e->s.first && e->s.parts > 1) {
            lo = lp_2(p, L_MUL, e->part, lp_const_i(p, e->s.part));
            hi = lp_2(p, L_MIN, lp_2(p, L_ADD, lo, lp_const_i(p, e->s.part)), hi);
        }
        open_loop(e, LOOP_SEQ, i, lo, hi);
        n++;
    }
    return n;
}

/* Where result number `i` goes: its place, or its place among the partial results. */
static void store_result(Emit *e, LVal i, LVal v) {
    LoopProgram *p = e->K.p;
    if (e->s.parts > 1)
        i = lp_2(p, L_ADD, lp_2(p, L_MUL, e->part, lp_const_i(p, e->s.rows * e->s.columns)), i);
    else
        i = lp_2(p, L_ADD, i, lp_const_i(p, e->skip));
    if (e->s.parts == 1 && value_ltype(e->r->result) == LT_F32 && e->t == LT_F64)
        v = lp_1(p, L_TO_F32, v);
    lp_store(p, e->out, i, v);
}

static void emit_scalars(Emit *e) {
    Kern *K = &e->K;
    LoopProgram *p = K->p;
    int last = e->r->n - 1;
    LVal init = ex_emit(K, reduce_identity(K, e->r->op, e->r->dtype, e->t));
    int acc = lp_var(p, e->t, init);
    int opened = open_reduced(e);
    LVal lo = lp_const_i(p, 0), hi = lp_const_i(p, e->r->size[last]);
    if (last == e->s.first && e->s.parts > 1) {
        lo = lp_2(p, L_MUL, e->part, lp_const_i(p, e->s.part));
        hi = lp_2(p, L_MIN, lp_2(p, L_ADD, lo, lp_const_i(p, e->s.part)), hi);
    }
    open_loop(e, loop_kind(e->r->op, e->t), last, lo, hi);
    LVal v = ex_emit(K, e->value);
    lp_set(p, acc, reduce_combine(p, e->r->op, lp_get(p, acc), v));
    for (int i = 0; i <= opened; i++)
        kern_end(K);
    store_result(e, ex_emit(K, e->row), lp_get(p, acc));
}

static void emit_columns(Emit *e, LVal tile) {
    Kern *K = &e->K;
    LoopProgram *p = K->p;
    int last = e->r->n - 1, acc = lp_local(p, e->t, e->s.tile);
    LVal zero = lp_const_i(p, 0), lo = zero, hi = lp_const_i(p, e->s.columns),
         row = ex_emit(K, e->row);
    if (e->s.tiles > 1) {
        lo = lp_2(p, L_MUL, tile, lp_const_i(p, e->s.tile));
        hi = lp_2(p, L_MIN, lp_2(p, L_ADD, lo, lp_const_i(p, e->s.tile)), hi);
    }
    LVal width = lp_2(p, L_SUB, hi, lo),
         init = ex_emit(K, reduce_identity(K, e->r->op, e->r->dtype, e->t));
    LVal j = lp_loop(p, LOOP_VECTOR, zero, width);
    lp_store(p, acc, j, init);
    lp_end(p);
    int opened = open_reduced(e);
    open_loop(e, LOOP_VECTOR, last, lo, hi);
    LVal at = lp_2(p, L_SUB, ex_emit(K, e->group[last]), lo), v = ex_emit(K, e->value);
    lp_store(p, acc, at, reduce_combine(p, e->r->op, lp_load(p, acc, at), v));
    for (int i = 0; i <= opened; i++)
        kern_end(K);
    j = lp_loop(p, LOOP_VECTOR, zero, width);
    LVal to =
        lp_2(p, L_ADD, lp_2(p, L_MUL, row, lp_const_i(p, e->s.columns)), lp_2(p, L_ADD, lo, j));
    store_result(e, to, lp_load(p, acc, j));
    lp_end(p);
}

static void fill_body(Kern *K, const Index *at, Sinks *out, void *ctx) {
    const Reduction *r = ctx;
    sink_add(K, out, r->result, at, reduce_identity(K, r->op, r->dtype, value_ltype(r->result)));
}

typedef struct Partial {
    int64_t at;
    DType type;
} Partial;

static Ex partial_element(Kern *K, const Index *at, void *ctx) {
    const Partial *p = ctx;
    return ex_load(K, kern_buffer_at(K, p->at, p->type), index_linear(K, at));
}

static void emit_one(Emit *e, Lower *L, int kernel, bool partial, const char *what) {
    const Reduction *r = e->r;
    Shape *s = &e->s;
    kern_begin(&e->K, L, kernel, PROGRAM_TASK, what);
    Kern *K = &e->K;
    LoopProgram *p = K->p;
    emit_leaves(e);
    if (partial)
        e->out = kern_buffer_at(K, L->mem->scratch[kernel], scratch_type(e->t));
    else
        e->out = kern_buffer(K, r->result, true, &e->skip);
    /* task = (part, tile, rows) */
    LVal task = lp_task(p), tile = lp_const_i(p, 0);
    int64_t tasks = s->row_tasks * s->tiles * s->parts;
    if (s->parts > 1) {
        e->part = lp_2(p, L_DIV, task, lp_const_i(p, s->row_tasks * s->tiles));
        task = lp_2(p, L_REM, task, lp_const_i(p, s->row_tasks * s->tiles));
    }
    if (s->tiles > 1) {
        tile = lp_2(p, L_DIV, task, lp_const_i(p, s->row_tasks));
        task = lp_2(p, L_REM, task, lp_const_i(p, s->row_tasks));
    }
    LVal lo = lp_2(p, L_MUL, task, lp_const_i(p, s->per));
    LVal hi = lp_2(p, L_ADD, lo, lp_const_i(p, s->per));
    hi = s->per == 1 ? hi : lp_2(p, L_MIN, hi, lp_const_i(p, s->rows));
    ex_hoist(K, &e->value, 1);
    kern_loop(K, LOOP_SEQ, e->row, lo, hi);
    if (r->reduced[r->n - 1])
        emit_scalars(e);
    else
        emit_columns(e, tile);
    kern_end(K);
    kern_finish(K, tasks);
    kern_drop(K);
}

/* Nothing is reduced: the elements themselves. */
static void copy_body(Kern *K, const Index *at, Sinks *out, void *ctx) {
    const Reduction *r = ctx;
    sink_add(K, out, r->result, at, r->element(K, at, r->ctx));
}

void reduce_run(Lower *L, int kernel, const Reduction *r) {
    Shape s = shape_of(L, r);
    const Value *y = r->result;
    if (value_count(y) == 0)
        return;
    if (s.first < 0 || s.total == 0) {
        map_run(L, kernel, NULL, y->rank, y->dims, s.total ? copy_body : fill_body, (void *)r);
        return;
    }
    Emit e = {.r = r, .s = s};
    emit_one(&e, L, kernel, s.parts > 1, s.parts > 1 ? "parts" : NULL);
    if (s.parts == 1)
        return;
    Partial partial = {L->mem->scratch[kernel], scratch_type(e.t)};
    Reduction join = {.op = r->op,
                      .dtype = r->dtype,
                      .result = y,
                      .element = partial_element,
                      .ctx = &partial,
                      .whole = true};
    reduce_group(&join, s.parts, true);
    reduce_group(&join, s.rows * s.columns, false);
    Emit second = {.r = &join, .s = shape_of(L, &join)};
    emit_one(&second, L, kernel, false, "join");
}

/* ---- the ops ---- */

static Ex reduce_element(Kern *K, const Index *at, void *ctx) {
    Node *n = ctx;
    return elem(K, n->in[0], at);
}

static Reduction reduction_of(Node *n) {
    const Value *x = n->in[0];
    const int64_t *axes;
    int k = node_ints(n, AT_AXES, &axes);
    bool gone[MAX_RANK] = {0};
    for (int i = 0; i < x->rank; i++)
        gone[i] = !node_attr(n, AT_AXES);
    for (int i = 0; i < k; i++)
        gone[axes[i]] = true;
    Reduction r = {
        .op = n->op, .dtype = x->dtype, .result = n->out[0], .element = reduce_element, .ctx = n};
    for (int i = 0; i < x->rank; i++)
        reduce_group(&r, x->dims[i], gone[i]);
    return r;
}

void lower_reduce(Lower *L, int kernel, Node *n) {
    Reduction r = reduction_of(n);
    reduce_run(L, kernel, &r);
}

/* A combine of many terms: a sum over j of the rows inv[n, j]. */
static Ex combine_element(Kern *K, const Index *at, void *ctx) {
    Node *n = ctx;
    const Value *x = n->in[0], *inv = n->in[1];
    int64_t sizes[3] = {inv->dims[0], inv->dims[1],
                        dims_product(n->out[0]->dims, 1, n->out[0]->rank)};
    Ex d[3];
    index_split(K, at, 3, sizes, d);
    Index where = {0}, in = {0};
    index_push(&where, sizes[0], d[0]);
    index_push(&where, sizes[1], d[1]);
    if (value_count(x) == 0)
        return ex_zero(K, value_ltype(x));
    Ex row = elem(K, n->in[1], &where);
    int64_t rows = value_count(x) / sizes[2];
    index_push(&in, rows, ex_clamp(K, row, 0, rows - 1));
    index_push(&in, sizes[2], d[2]);
    Ex zero = ex_zero(K, value_ltype(x));
    return ex_select(K, ex_2(K, L_LE, ex_i(K, 0), row), elem(K, n->in[0], &in), zero);
}

static Reduction combine_reduction(Node *n) {
    const Value *inv = n->in[1], *y = n->out[0];
    Reduction r = {
        .op = OP_REDUCE_SUM, .dtype = y->dtype, .result = y, .element = combine_element, .ctx = n};
    reduce_group(&r, inv->dims[0], false);
    reduce_group(&r, inv->dims[1], true);
    reduce_group(&r, dims_product(y->dims, 1, y->rank), false);
    return r;
}

void lower_elem(Lower *L, int kernel, Node *n) {
    if (n->op != OP_COMBINE || L->plan->kernels.at[kernel].kind == KERNEL_MAP) {
        lower_map(L, kernel);
        return;
    }
    Reduction r = combine_reduction(n);
    reduce_run(L, kernel, &r);
}

int64_t reduce_kernel_scratch(const Lower *L, Node *n) {
    Reduction r = n->op == OP_COMBINE ? combine_reduction(n) : reduction_of(n);
    return reduce_scratch(L, &r, value_ltype(n->out[0]));
}
