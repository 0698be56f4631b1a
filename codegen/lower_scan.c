/* lower_scan.c: ops that search or add along one axis: top-k, argmax, cumulative sums. */
#include "codegen/lower.h"

#include <math.h>

enum { TILE = 512, GPU_TILE = 128 };

/* A value seen as [outer, size, inner] around an axis. */
typedef struct Around {
    int64_t outer, size, inner;
} Around;

static Around around(const Node *n, int64_t absent) {
    const Value *x = n->in[0];
    int axis = (int)node_int(n, AT_AXIS, absent);
    axis += axis < 0 ? x->rank : 0;
    return (Around){dims_product(x->dims, 0, axis), x->dims[axis],
                    dims_product(x->dims, axis + 1, x->rank)};
}

/* One program with a loop over the lines along the axis; `line` is where element 0 of the line
 * lies. */
typedef struct Lines {
    Kern K;
    Around a;
    int x;
    int64_t x_skip, tasks;
    LVal row, first; /* number of the line; place of its first element */
    LVal outer, inner;
} Lines;

static void lines_begin(Lines *l, Lower *L, int kernel, const Node *n, int64_t absent,
                        int64_t work) {
    *l = (Lines){.a = around(n, absent)};
    kern_begin(&l->K, L, kernel, PROGRAM_TASK, NULL);
    LoopProgram *p = l->K.p;
    l->x = kern_buffer(&l->K, n->in[0], false, &l->x_skip);
    int64_t rows = l->a.outer * l->a.inner, per = lower_rows_per_task(L, work);
    l->tasks = ceil_div(rows, per);
    LVal lo = lp_2(p, L_MUL, lp_task(p), lp_const_i(p, per));
    LVal hi = lp_2(p, L_ADD, lo, lp_const_i(p, per));
    hi = per == 1 ? hi : lp_2(p, L_MIN, hi, lp_const_i(p, rows));
    l->row = lp_loop(p, LOOP_SEQ, lo, hi);
    LVal inner = lp_const_i(p, l->a.inner);
    l->outer = l->a.inner == 1 ? l->row : lp_2(p, L_DIV, l->row, inner);
    l->inner = l->a.inner == 1 ? lp_const_i(p, 0) : lp_2(p, L_REM, l->row, inner);
    l->first = lp_2(p, L_ADD, lp_2(p, L_MUL, l->outer, lp_const_i(p, l->a.size * l->a.inner)),
                    lp_2(p, L_ADD, l->inner, lp_const_i(p, l->x_skip)));
}

static LVal line_at(Lines *l, LVal j) {
    LoopProgram *p = l->K.p;
    return lp_2(p, L_ADD, l->first, lp_2(p, L_MUL, j, lp_const_i(p, l->a.inner)));
}

static void lines_end(Lines *l) {
    lp_end(l->K.p);
    kern_finish(&l->K, l->tasks);
    kern_drop(&l->K);
}

static LVal extreme(LoopProgram *p, LType t, bool high) {
    if (t == LT_I64)
        return lp_const_i(p, high ? INT64_MAX : INT64_MIN);
    return lp_const_f(p, t, high ? (double)INFINITY : -(double)INFINITY);
}

/* Element j as a key of which the largest is wanted; booleans count as 0 and 1. */
static LVal key_at(Lines *l, LVal j, bool largest, bool nan_last) {
    LoopProgram *p = l->K.p;
    LVal v = lp_load(p, l->x, line_at(l, j));
    if (lp_type(p, v) == LT_BOOL)
        v = lp_1(p, L_TO_I64, v);
    LVal key = largest ? v : lp_1(p, L_NEG, v);
    if (lp_type(p, v) == LT_I64)
        return key;
    return lp_op(p, L_SELECT, lp_2(p, L_NE, v, v), extreme(p, lp_type(p, v), !nan_last), key);
}

static LType key_type(const Node *n) {
    LType t = value_ltype(n->in[0]);
    return t == LT_BOOL ? LT_I64 : t;
}

/* ---- top-k: k times the best of those that come after the last one taken ---- */

static LVal after_taken(LoopProgram *p, LVal key, LVal j, LVal last_key, LVal last) {
    LVal later = lp_2(p, L_AND, lp_2(p, L_EQ, key, last_key), lp_2(p, L_LT, last, j));
    return lp_2(p, L_OR, lp_2(p, L_LT, key, last_key), later);
}

void lower_topk(Lower *L, int kernel, Node *n) {
    int64_t k = node_int(n, AT_K, 0), skip_v, skip_i;
    bool largest = node_int(n, AT_LARGEST, 1) != 0;
    if (value_count(n->out[0]) == 0)
        return;
    Lines l;
    lines_begin(&l, L, kernel, n, -1, 4 * k * around(n, -1).size);
    LoopProgram *p = l.K.p;
    LType t = key_type(n);
    int values = kern_buffer(&l.K, n->out[0], true, &skip_v),
        ids = kern_buffer(&l.K, n->out[1], true, &skip_i);
    LVal zero = lp_const_i(p, 0), size = lp_const_i(p, l.a.size), worst = extreme(p, t, false);
    int last_key = lp_var(p, t, extreme(p, t, true)), last = lp_var(p, LT_I64, lp_const_i(p, -1));
    LVal i = lp_loop(p, LOOP_SEQ, zero, lp_const_i(p, k));
    LVal was_key = lp_get(p, last_key), was = lp_get(p, last);
    int best = lp_var(p, t, worst), place = lp_var(p, LT_I64, size);
    LVal j = lp_loop(p, LOOP_VECTOR, zero, size);
    LVal key = key_at(&l, j, largest, !largest);
    LVal open = lp_op(p, L_SELECT, after_taken(p, key, j, was_key, was), key, worst);
    lp_set(p, best, lp_2(p, L_MAX, lp_get(p, best), open));
    lp_end(p);
    LVal found = lp_get(p, best);
    j = lp_loop(p, LOOP_VECTOR, zero, size);
    key = key_at(&l, j, largest, !largest);
    LVal hit = lp_2(p, L_AND, after_taken(p, key, j, was_key, was), lp_2(p, L_EQ, key, found));
    lp_set(p, place, lp_2(p, L_MIN, lp_get(p, place), lp_op(p, L_SELECT, hit, j, size)));
    lp_end(p);
    LVal at = lp_2(p, L_MIN, lp_get(p, place), lp_const_i(p, l.a.size - 1));
    lp_set(p, last_key, found);
    lp_set(p, last, at);
    LVal to = lp_2(p, L_ADD,
                   lp_2(p, L_MUL, lp_2(p, L_ADD, lp_2(p, L_MUL, l.outer, lp_const_i(p, k)), i),
                        lp_const_i(p, l.a.inner)),
                   l.inner);
    lp_store(p, values, lp_2(p, L_ADD, to, lp_const_i(p, skip_v)),
             lp_load(p, l.x, line_at(&l, at)));
    lp_store(p, ids, lp_2(p, L_ADD, to, lp_const_i(p, skip_i)), at);
    lp_end(p);
    lines_end(&l);
}

void lower_argmax(Lower *L, int kernel, Node *n) {
    bool largest = node_int(n, AT_LARGEST, 1) != 0, take_last = node_int(n, AT_LAST, 0) != 0;
    int64_t skip;
    if (value_count(n->out[0]) == 0 || value_count(n->in[0]) == 0)
        return;
    Lines l;
    lines_begin(&l, L, kernel, n, 0, 2 * around(n, 0).size);
    LoopProgram *p = l.K.p;
    LType t = key_type(n);
    int out = kern_buffer(&l.K, n->out[0], true, &skip), best = lp_var(p, t, extreme(p, t, false));
    LVal zero = lp_const_i(p, 0), size = lp_const_i(p, l.a.size), none = take_last ? zero : size;
    LVal j = lp_loop(p, LOOP_VECTOR, zero, size);
    lp_set(p, best, lp_2(p, L_MAX, lp_get(p, best), key_at(&l, j, largest, false)));
    lp_end(p);
    int place = lp_var(p, LT_I64, none);
    LVal found = lp_get(p, best);
    j = lp_loop(p, LOOP_VECTOR, zero, size);
    LVal hit = lp_2(p, L_EQ, key_at(&l, j, largest, false), found);
    LVal at = lp_op(p, L_SELECT, hit, j, none);
    lp_set(p, place, lp_2(p, take_last ? L_MAX : L_MIN, lp_get(p, place), at));
    lp_end(p);
    lp_store(p, out, lp_2(p, L_ADD, l.row, lp_const_i(p, skip)), lp_get(p, place));
    lines_end(&l);
}

/* ---- cumulative sums: a tile of columns is carried along the axis ---- */

void lower_cumsum(Lower *L, int kernel, Node *n) {
    Around a = around(n, 0);
    bool exclusive = node_int(n, AT_EXCLUSIVE, 0) != 0, reverse = node_int(n, AT_REVERSE, 0) != 0;
    int64_t most = L->gpu ? GPU_TILE : TILE, tile = a.inner < most ? a.inner : most, skip_x, skip_y;
    if (value_count(n->in[0]) == 0)
        return;
    Kern K;
    kern_begin(&K, L, kernel, PROGRAM_TASK, NULL);
    LoopProgram *p = K.p;
    LType t = value_ltype(n->in[0]);
    int64_t tiles = ceil_div(a.inner, tile);
    int x = kern_buffer(&K, n->in[0], false, &skip_x),
        y = kern_buffer(&K, n->out[0], true, &skip_y);
    int acc = lp_local(p, t, tile);
    LVal zero = lp_const_i(p, 0), inner = lp_const_i(p, a.inner);
    LVal outer = lp_2(p, L_DIV, lp_task(p), lp_const_i(p, tiles));
    LVal lo = lp_2(p, L_MUL, lp_2(p, L_REM, lp_task(p), lp_const_i(p, tiles)), lp_const_i(p, tile));
    LVal width = lp_2(p, L_SUB, lp_2(p, L_MIN, lp_2(p, L_ADD, lo, lp_const_i(p, tile)), inner), lo);
    LVal j = lp_loop(p, LOOP_VECTOR, zero, width);
    lp_store(p, acc, j, ex_emit(&K, ex_zero(&K, t)));
    lp_end(p);
    LVal i = lp_loop(p, LOOP_SEQ, zero, lp_const_i(p, a.size));
    LVal step = reverse ? lp_2(p, L_SUB, lp_const_i(p, a.size - 1), i) : i;
    LVal line = lp_2(
        p, L_ADD,
        lp_2(p, L_MUL, lp_2(p, L_ADD, lp_2(p, L_MUL, outer, lp_const_i(p, a.size)), step), inner),
        lo);
    j = lp_loop(p, LOOP_VECTOR, zero, width);
    LVal at = lp_2(p, L_ADD, line, j), before = lp_load(p, acc, j);
    LVal sum = lp_2(p, L_ADD, before, lp_load(p, x, lp_2(p, L_ADD, at, lp_const_i(p, skip_x))));
    lp_store(p, acc, j, sum);
    lp_store(p, y, lp_2(p, L_ADD, at, lp_const_i(p, skip_y)), exclusive ? before : sum);
    lp_end(p);
    lp_end(p);
    kern_finish(&K, a.outer * tiles);
    kern_drop(&K);
}
