/* lower_scatter.c: ops that write where data say. Deterministic: what one destination receives is
 * added in the order of the sources by one task; tasks divide columns or outer places, which no
 * index crosses. */
#include "codegen/lower.h"
#include "codegen/lower_reduce.h"

#include <string.h>

enum { COLUMNS = 64 };

static LVal mul_add(LoopProgram *p, LVal a, int64_t scale, LVal b) {
    return lp_2(p, L_ADD, lp_2(p, L_MUL, a, lp_const_i(p, scale)), b);
}

/* ---- start: zeros or a copy of the data, by all threads ---- */

static void zero_body(Kern *K, const Index *at, Sinks *out, void *ctx) {
    const Value *y = ctx;
    sink_add(K, out, y, at, ex_zero(K, value_ltype(y)));
}

static void copy_body(Kern *K, const Index *at, Sinks *out, void *ctx) {
    Node *n = ctx;
    int64_t skip;
    int b = kern_buffer(K, n->in[0], false, &skip);
    sink_add(K, out, n->out[0], at, ex_load(K, b, ex_addc(K, index_linear(K, at), skip)));
}

/* The index as it should be; *ok tells whether it is in 0..bound-1 after counting from the end. A
 * wrong one is reported. */
static LVal checked(LoopProgram *p, LVal v, int64_t bound, LVal where, LVal *ok) {
    LVal zero = lp_const_i(p, 0), size = lp_const_i(p, bound);
    LVal at = lp_op(p, L_SELECT, lp_2(p, L_LT, v, zero), lp_2(p, L_ADD, v, size), v);
    *ok = lp_2(p, L_AND, lp_2(p, L_LE, zero, at), lp_2(p, L_LT, at, size));
    lp_if(p, lp_1(p, L_NOT, *ok));
    lp_fault(p, "scatter: index out of range", where, v);
    lp_end(p);
    return at;
}

/* ---- on a GPU: a task for every place; the first of those with one destination adds them all, in
 * their order ----
 *
 *   first = min over p of (idx[p] == idx[place] ? p : places)
 *   if first == place:  for vector j:  y[idx[place], j] = sum over p >= place of u[p, j]
 */
typedef struct Gathered {
    int u, idx, y;
    int64_t skip_u, skip_idx, skip_y, places, size, inner;
} Gathered;

/* Where place p goes, counted from the front. */
static LVal destination(LoopProgram *p, const Gathered *s, LVal place) {
    LVal v = lp_load(p, s->idx, lp_2(p, L_ADD, place, lp_const_i(p, s->skip_idx)));
    LVal front = lp_2(p, L_ADD, v, lp_const_i(p, s->size));
    return lp_op(p, L_SELECT, lp_2(p, L_LT, v, lp_const_i(p, 0)), front, v);
}

static void gathered_columns(LoopProgram *p, const Gathered *s, LVal o, LVal place, LVal at,
                             LType t) {
    LVal inner = lp_const_i(p, s->inner), last = lp_const_i(p, s->places);
    LVal to =
        lp_2(p, L_ADD, lp_2(p, L_MUL, mul_add(p, o, s->size, at), inner), lp_const_i(p, s->skip_y));
    LVal j = lp_loop(p, LOOP_VECTOR, lp_const_i(p, 0), inner);
    LVal dst = lp_2(p, L_ADD, to, j);
    int sum = lp_var(p, t, lp_load(p, s->y, dst));
    LVal q = lp_loop(p, LOOP_SEQ, place, last);
    lp_if(p, lp_2(p, L_EQ, destination(p, s, q), at));
    LVal from = lp_2(p, L_ADD, lp_2(p, L_MUL, mul_add(p, o, s->places, q), inner),
                     lp_const_i(p, s->skip_u));
    LVal v = lp_load(p, s->u, lp_2(p, L_ADD, from, j));
    lp_set(p, sum, lp_2(p, L_ADD, lp_get(p, sum), v));
    lp_end(p);
    lp_end(p);
    lp_store(p, s->y, dst, lp_get(p, sum));
    lp_end(p);
}

static void gpu_scatter_add(Lower *L, int kernel, Node *n, int64_t outer, Gathered s) {
    Kern K;
    kern_begin(&K, L, kernel, PROGRAM_TASK, NULL);
    LoopProgram *p = K.p;
    s.u = kern_buffer(&K, n->in[0], false, &s.skip_u);
    s.idx = kern_buffer(&K, n->in[1], false, &s.skip_idx);
    s.y = kern_buffer(&K, n->out[0], true, &s.skip_y);
    LVal places = lp_const_i(p, s.places), zero = lp_const_i(p, 0), ok;
    LVal o = lp_2(p, L_DIV, lp_task(p), places), place = lp_2(p, L_REM, lp_task(p), places);
    LVal v = lp_load(p, s.idx, lp_2(p, L_ADD, place, lp_const_i(p, s.skip_idx)));
    LVal at = checked(p, v, s.size, place, &ok);
    lp_if(p, ok);
    int first = lp_var(p, LT_I64, places);
    LVal q = lp_loop(p, LOOP_VECTOR, zero, places);
    LVal same = lp_2(p, L_EQ, destination(p, &s, q), at);
    lp_set(p, first, lp_2(p, L_MIN, lp_get(p, first), lp_op(p, L_SELECT, same, q, places)));
    lp_end(p);
    lp_if(p, lp_2(p, L_EQ, lp_get(p, first), place));
    gathered_columns(p, &s, o, place, at, value_ltype(n->out[0]));
    lp_end(p);
    lp_end(p);
    kern_finish(&K, outer * s.places);
    kern_drop(&K);
}

/* updates[outer, places, inner] added to y[outer, idx[place], inner] */
void lower_scatter_add(Lower *L, int kernel, Node *n) {
    const Value *u = n->in[0], *idx = n->in[1], *y = n->out[0];
    int axis = (int)node_int(n, AT_AXIS, 0);
    int64_t outer = dims_product(y->dims, 0, axis), size = y->dims[axis],
            inner = dims_product(y->dims, axis + 1, y->rank);
    int64_t places = value_count(idx), skip_u, skip_i, skip_y;
    map_run(L, kernel, "zero", y->rank, y->dims, zero_body, (void *)y);
    if (value_count(u) == 0 || value_count(y) == 0)
        return;
    if (L->gpu) {
        gpu_scatter_add(L, kernel, n, outer,
                        (Gathered){.places = places, .size = size, .inner = inner});
        return;
    }
    Kern K;
    kern_begin(&K, L, kernel, PROGRAM_TASK, NULL);
    LoopProgram *p = K.p;
    int bu = kern_buffer(&K, u, false, &skip_u), bi = kern_buffer(&K, idx, false, &skip_i),
        by = kern_buffer(&K, y, true, &skip_y);
    int64_t tile = inner > 2 * COLUMNS ? COLUMNS : inner, tiles = ceil_div(inner, tile);
    LVal zero = lp_const_i(p, 0), o = lp_2(p, L_DIV, lp_task(p), lp_const_i(p, tiles));
    LVal lo = lp_2(p, L_MUL, lp_2(p, L_REM, lp_task(p), lp_const_i(p, tiles)), lp_const_i(p, tile));
    LVal hi = lp_2(p, L_MIN, lp_2(p, L_ADD, lo, lp_const_i(p, tile)), lp_const_i(p, inner)), ok;
    LVal i = lp_loop(p, LOOP_SEQ, zero, lp_const_i(p, places));
    LVal at = checked(p, lp_load(p, bi, lp_2(p, L_ADD, i, lp_const_i(p, skip_i))), size, i, &ok);
    lp_if(p, ok);
    LVal from = lp_2(p, L_ADD, lp_2(p, L_MUL, mul_add(p, o, places, i), lp_const_i(p, inner)),
                     lp_const_i(p, skip_u));
    LVal to = lp_2(p, L_ADD, lp_2(p, L_MUL, mul_add(p, o, size, at), lp_const_i(p, inner)),
                   lp_const_i(p, skip_y));
    LVal j = lp_loop(p, LOOP_VECTOR, lo, hi), dst = lp_2(p, L_ADD, to, j);
    lp_store(p, by, dst,
             lp_2(p, L_ADD, lp_load(p, by, dst), lp_load(p, bu, lp_2(p, L_ADD, from, j))));
    lp_end(p);
    lp_end(p);
    lp_end(p);
    kern_finish(&K, outer * tiles);
    kern_drop(&K);
}

/* ---- scatter_elements, scatter_nd ---- */

static LVal join(LoopProgram *p, const char *how, LVal old, LVal v) {
    bool logic = lp_type(p, v) == LT_BOOL;
    if (!strcmp(how, "add"))
        return lp_2(p, logic ? L_OR : L_ADD, old, v);
    if (!strcmp(how, "mul"))
        return lp_2(p, logic ? L_AND : L_MUL, old, v);
    if (!strcmp(how, "min"))
        return lp_2(p, logic ? L_AND : L_MIN, old, v);
    if (!strcmp(how, "max"))
        return lp_2(p, logic ? L_OR : L_MAX, old, v);
    return v;
}

typedef struct Scatter {
    Kern K;
    Node *n;
    int data, idx, upd;
    int64_t skip_data, skip_idx, skip_upd;
} Scatter;

static void scatter_begin(Scatter *s, Lower *L, int kernel, Node *n) {
    *s = (Scatter){.n = n};
    kern_begin(&s->K, L, kernel, PROGRAM_TASK, NULL);
    s->idx = kern_buffer(&s->K, n->in[1], false, &s->skip_idx);
    s->upd = kern_buffer(&s->K, n->in[2], false, &s->skip_upd);
    s->data = kern_buffer(&s->K, n->out[0], true, &s->skip_data);
}

static void scatter_one(Scatter *s, LVal to, LVal from) {
    LoopProgram *p = s->K.p;
    to = lp_2(p, L_ADD, to, lp_const_i(p, s->skip_data));
    LVal v = lp_load(p, s->upd, lp_2(p, L_ADD, from, lp_const_i(p, s->skip_upd)));
    const char *how = node_str(s->n, AT_REDUCTION, "none");
    lp_store(p, s->data, to, strcmp(how, "none") ? join(p, how, lp_load(p, s->data, to), v) : v);
}

/* Tasks: the first axis but the scattered one; within a task all other axes in order. */
static void scatter_elements(Lower *L, int kernel, Node *n) {
    const Value *x = n->in[0], *idx = n->in[1];
    int axis = (int)node_int(n, AT_AXIS, 0), shared = -1;
    Scatter s;
    scatter_begin(&s, L, kernel, n);
    LoopProgram *p = s.K.p;
    for (int a = 0; a < idx->rank && shared < 0; a++)
        if (a != axis && idx->dims[a] > 1)
            shared = a;
    LVal at[MAX_RANK], zero = lp_const_i(p, 0), from = zero, to = zero, ok;
    for (int a = 0; a < idx->rank; a++)
        at[a] = a == shared ? lp_task(p) : lp_loop(p, LOOP_SEQ, zero, lp_const_i(p, idx->dims[a]));
    for (int a = 0; a < idx->rank; a++)
        from = mul_add(p, from, idx->dims[a], at[a]);
    LVal v = lp_load(p, s.idx, lp_2(p, L_ADD, from, lp_const_i(p, s.skip_idx)));
    LVal place = checked(p, v, x->dims[axis], from, &ok);
    for (int a = 0; a < idx->rank; a++)
        to = mul_add(p, to, x->dims[a], a == axis ? place : at[a]);
    lp_if(p, ok);
    scatter_one(&s, to, from);
    lp_end(p);
    for (int a = 0; a < idx->rank; a++)
        if (a != shared)
            lp_end(p);
    kern_finish(&s.K, shared < 0 ? 1 : idx->dims[shared]);
    kern_drop(&s.K);
}

static void scatter_nd(Lower *L, int kernel, Node *n) {
    const Value *x = n->in[0], *idx = n->in[1];
    int k = (int)idx->dims[idx->rank - 1];
    int64_t places = dims_product(idx->dims, 0, idx->rank - 1),
            slice = dims_product(x->dims, k, x->rank);
    int64_t tile = slice > 2 * COLUMNS ? COLUMNS : slice, tiles = ceil_div(slice, tile);
    Scatter s;
    scatter_begin(&s, L, kernel, n);
    LoopProgram *p = s.K.p;
    LVal zero = lp_const_i(p, 0), to = zero, all = lp_const_b(p, true), ok;
    LVal lo = lp_2(p, L_MUL, lp_task(p), lp_const_i(p, tile));
    LVal hi = lp_2(p, L_MIN, lp_2(p, L_ADD, lo, lp_const_i(p, tile)), lp_const_i(p, slice));
    LVal i = lp_loop(p, LOOP_SEQ, zero, lp_const_i(p, places));
    for (int a = 0; a < k; a++) {
        LVal v = lp_load(p, s.idx, mul_add(p, i, k, lp_const_i(p, a + s.skip_idx)));
        to = mul_add(p, to, x->dims[a], checked(p, v, x->dims[a], i, &ok));
        all = lp_2(p, L_AND, all, ok);
    }
    lp_if(p, all);
    LVal j = lp_loop(p, LOOP_VECTOR, lo, hi);
    scatter_one(&s, mul_add(p, to, slice, j), mul_add(p, i, slice, j));
    lp_end(p);
    lp_end(p);
    lp_end(p);
    kern_finish(&s.K, tiles);
    kern_drop(&s.K);
}

void lower_scatter(Lower *L, int kernel, Node *n) {
    map_run(L, kernel, "copy", n->out[0]->rank, n->out[0]->dims, copy_body, n);
    if (value_count(n->in[2]) == 0 || value_count(n->out[0]) == 0)
        return;
    if (n->op == OP_SCATTER_ND)
        scatter_nd(L, kernel, n);
    else
        scatter_elements(L, kernel, n);
}

/* ---- fold: every image element gathers the windows that cover it ---- */

static Ex fold_element(Kern *K, const Index *at, void *ctx) {
    Node *n = ctx;
    const Value *x = n->in[0], *y = n->out[0];
    int s = y->rank - 2;
    const int64_t *strides, *dilations, *pads;
    int ns = node_ints(n, AT_STRIDES, &strides), nd = node_ints(n, AT_DILATIONS, &dilations),
        np = node_ints(n, AT_PADS, &pads);
    int64_t sizes[2 * MAX_RANK];
    Ex d[2 * MAX_RANK], inside = ex_b(K, true);
    for (int i = 0; i < s; i++) /* the window comes first: it is what is summed over */
        sizes[i] = x->dims[2 + i];
    for (int i = 0; i < y->rank; i++)
        sizes[s + i] = y->dims[i];
    index_split(K, at, s + y->rank, sizes, d);
    Index in = {0};
    index_push(&in, x->dims[0], d[s]);
    index_push(&in, x->dims[1], d[s + 1]);
    for (int i = 0; i < s; i++)
        index_push(&in, x->dims[2 + i], d[i]);
    for (int i = 0; i < s; i++) {
        int64_t stride = ns ? strides[i] : 1, positions = x->dims[2 + s + i],
                pad = np ? pads[i] : 0;
        Ex shift = ex_mulc(K, d[i], nd ? dilations[i] : 1);
        Ex q = ex_2(K, L_SUB, ex_addc(K, d[s + 2 + i], pad), shift), position = q;
        inside = ex_2(K, L_AND, inside, ex_2(K, L_LE, ex_i(K, 0), q));
        if (stride != 1) {
            Ex by = ex_i(K, stride);
            inside = ex_2(K, L_AND, inside, ex_2(K, L_EQ, ex_2(K, L_REM, q, by), ex_i(K, 0)));
            position = ex_2(K, L_DIV, q, by);
        }
        inside = ex_2(K, L_AND, inside, ex_2(K, L_LT, position, ex_i(K, positions)));
        index_push(&in, positions, ex_clamp(K, position, 0, positions - 1));
    }
    return ex_select(K, inside, elem(K, n->in[0], &in), ex_zero(K, value_ltype(y)));
}

void lower_fold(Lower *L, int kernel, Node *n) {
    const Value *x = n->in[0], *y = n->out[0];
    Reduction r = {.op = OP_REDUCE_SUM,
                   .dtype = y->dtype,
                   .result = y,
                   .element = fold_element,
                   .ctx = n,
                   .whole = true};
    if (value_count(x) == 0) {
        map_run(L, kernel, NULL, y->rank, y->dims, zero_body, (void *)y);
        return;
    }
    reduce_group(&r, dims_product(x->dims, 2, y->rank), true);
    reduce_group(&r, value_count(y), false);
    reduce_run(L, kernel, &r);
}
