/* lower_moe.c: dispatch (a counting sort of the routed pairs), sums over an expert's rows,
 * token_dot. */
#include "codegen/lower.h"
#include "codegen/lower_reduce.h"

#include <string.h>

enum { COLUMNS = 256 };

/* ---- dispatch ---- */

static void none_body(Kern *K, const Index *at, Sinks *out, void *ctx) {
    sink_add(K, out, ctx, at, ex_i(K, -1));
}

typedef struct Dispatch {
    Kern K;
    Node *n;
    bool mask;
    int64_t tokens, each, experts;
    int sel, out[6], count;
    int64_t sel_skip, skip[6];
} Dispatch;

/* Loops over tokens and entries; gives the expert of the entry and opens an `if` for those that are
 * routed. */
static LVal open_pairs(Dispatch *d, LVal *token, LVal *pair) {
    LoopProgram *p = d->K.p;
    LVal zero = lp_const_i(p, 0);
    *token = lp_loop(p, LOOP_SEQ, zero, lp_const_i(p, d->tokens));
    LVal j = lp_loop(p, LOOP_SEQ, zero, lp_const_i(p, d->each));
    *pair = lp_2(p, L_ADD, lp_2(p, L_MUL, *token, lp_const_i(p, d->each)), j);
    LVal v = lp_load(p, d->sel, lp_2(p, L_ADD, *pair, lp_const_i(p, d->sel_skip)));
    if (d->mask) {
        LVal off =
            lp_type(p, v) == LT_BOOL ? lp_const_b(p, false) : lp_const_f(p, lp_type(p, v), 0);
        lp_if(p, lp_type(p, v) == LT_BOOL ? v : lp_2(p, L_NE, v, off));
        return j;
    }
    lp_if(p, lp_2(p, L_AND, lp_2(p, L_LE, zero, v), lp_2(p, L_LT, v, lp_const_i(p, d->experts))));
    return v;
}

static void close_pairs(Dispatch *d) {
    for (int i = 0; i < 3; i++)
        lp_end(d->K.p);
}

static void put(Dispatch *d, int which, LVal at, LVal v) {
    LoopProgram *p = d->K.p;
    lp_store(p, d->out[which], lp_2(p, L_ADD, at, lp_const_i(p, d->skip[which])), v);
}

/* offsets[e] = rows of the experts before e; count[e] becomes where e's next row goes. */
static void sum_counts(Dispatch *d) {
    LoopProgram *p = d->K.p;
    LVal zero = lp_const_i(p, 0);
    int sum = lp_var(p, LT_I64, zero);
    LVal e = lp_loop(p, LOOP_SEQ, zero, lp_const_i(p, d->experts));
    LVal before = lp_get(p, sum), mine = lp_load(p, d->count, e);
    put(d, 0, e, before);
    lp_store(p, d->count, e, before);
    lp_set(p, sum, lp_2(p, L_ADD, before, mine));
    lp_end(p);
    put(d, 0, lp_const_i(p, d->experts), lp_get(p, sum));
}

/* A token that names an expert twice: te_row keeps the first. */
static void put_te_row(Dispatch *d, LVal token, LVal e, LVal row) {
    LoopProgram *p = d->K.p;
    LVal at = lp_2(p, L_ADD, lp_2(p, L_MUL, token, lp_const_i(p, d->experts)), e);
    LVal here = lp_2(p, L_ADD, at, lp_const_i(p, d->skip[5]));
    lp_if(p, lp_2(p, L_LT, lp_load(p, d->out[5], here), lp_const_i(p, 0)));
    lp_store(p, d->out[5], here, row);
    lp_end(p);
}

/* ---- dispatch on a GPU: chunks of tokens side by side, a thread for every expert ----
 *
 *   counts   n[c,e] = entries of chunk c that go to e
 *   offsets  n[c,e] = those of chunks before c; offsets[e] = rows of the experts before e
 *   places   thread e of chunk c walks the chunk and gives its rows, from offsets[e] + n[c,e]
 *
 * The rows are those of the plain counting sort: by expert, then token, then entry. */

enum { CHUNK_TOKENS = 64 };

static int64_t chunk_count(int64_t tokens) {
    return ceil_div(tokens, CHUNK_TOKENS);
}

/* Opens the program of one chunk: a vector loop over the experts. */
static LVal open_chunk(Dispatch *d, Lower *L, int kernel, const char *what) {
    kern_begin(&d->K, L, kernel, PROGRAM_TASK, what);
    LoopProgram *p = d->K.p;
    d->sel = kern_buffer(&d->K, d->n->in[0], false, &d->sel_skip);
    d->count = kern_buffer_at(&d->K, L->mem->scratch[kernel], DT_I64);
    return lp_loop(p, LOOP_VECTOR, lp_const_i(p, 0), lp_const_i(p, d->experts));
}

static LVal chunk_cell(Dispatch *d, LVal chunk, LVal e) {
    LoopProgram *p = d->K.p;
    return lp_2(p, L_ADD, lp_2(p, L_MUL, chunk, lp_const_i(p, d->experts)), e);
}

/* Inside it: loops over the task's tokens and their entries, and an `if` for those of expert e;
 * ended by `*ends` lp_ends. */
static void open_entries(Dispatch *d, LVal e, LVal *token, LVal *pair, int *ends) {
    LoopProgram *p = d->K.p;
    LVal zero = lp_const_i(p, 0), size = lp_const_i(p, CHUNK_TOKENS), each = lp_const_i(p, d->each);
    LVal lo = lp_2(p, L_MUL, lp_task(p), size), hi = lp_2(p, L_ADD, lo, size);
    *token = lp_loop(p, LOOP_SEQ, lo, lp_2(p, L_MIN, hi, lp_const_i(p, d->tokens)));
    LVal j = d->mask ? e : lp_loop(p, LOOP_SEQ, zero, each);
    *pair = lp_2(p, L_ADD, lp_2(p, L_MUL, *token, each), j);
    LVal v = lp_load(p, d->sel, lp_2(p, L_ADD, *pair, lp_const_i(p, d->sel_skip)));
    LVal hit = d->mask ? lp_1(p, L_TO_BOOL, v) : lp_2(p, L_EQ, v, e);
    lp_if(p, hit);
    *ends = d->mask ? 2 : 3;
}

static void close_ends(LoopProgram *p, int ends) {
    for (int i = 0; i < ends; i++)
        lp_end(p);
}

static void gpu_counts(Dispatch *d, Lower *L, int kernel) {
    LVal token, pair, e = open_chunk(d, L, kernel, "counts");
    LoopProgram *p = d->K.p;
    int ends, n = lp_var(p, LT_I64, lp_const_i(p, 0));
    open_entries(d, e, &token, &pair, &ends);
    lp_set(p, n, lp_2(p, L_ADD, lp_get(p, n), lp_const_i(p, 1)));
    close_ends(p, ends);
    lp_store(p, d->count, chunk_cell(d, lp_task(p), e), lp_get(p, n));
    lp_end(p);
    kern_finish(&d->K, chunk_count(d->tokens));
    kern_drop(&d->K);
}

static void gpu_offsets(Dispatch *d, Lower *L, int kernel) {
    kern_begin(&d->K, L, kernel, PROGRAM_TASK, "offsets");
    LoopProgram *p = d->K.p;
    d->count = kern_buffer_at(&d->K, L->mem->scratch[kernel], DT_I64);
    d->out[0] = kern_buffer(&d->K, d->n->out[0], true, &d->skip[0]);
    LVal zero = lp_const_i(p, 0), experts = lp_const_i(p, d->experts);
    int totals = lp_local(p, LT_I64, d->experts);
    LVal e = lp_loop(p, LOOP_VECTOR, zero, experts);
    int before = lp_var(p, LT_I64, zero);
    LVal c = lp_loop(p, LOOP_SEQ, zero, lp_const_i(p, chunk_count(d->tokens)));
    LVal at = chunk_cell(d, c, e), mine = lp_load(p, d->count, at), sum = lp_get(p, before);
    lp_store(p, d->count, at, sum);
    lp_set(p, before, lp_2(p, L_ADD, sum, mine));
    lp_end(p);
    lp_store(p, totals, e, lp_get(p, before));
    lp_end(p);
    int all = lp_var(p, LT_I64, zero);
    e = lp_loop(p, LOOP_SEQ, zero, experts);
    sum = lp_get(p, all);
    put(d, 0, e, sum);
    lp_set(p, all, lp_2(p, L_ADD, sum, lp_load(p, totals, e)));
    lp_end(p);
    put(d, 0, experts, lp_get(p, all));
    kern_finish(&d->K, 1);
    kern_drop(&d->K);
}

static void gpu_places(Dispatch *d, Lower *L, int kernel) {
    LVal token, pair, e = open_chunk(d, L, kernel, "places");
    LoopProgram *p = d->K.p;
    int64_t skip;
    int offsets = kern_buffer(&d->K, d->n->out[0], false, &skip), ends;
    for (int i = 1; i < 6; i++)
        d->out[i] = kern_buffer(&d->K, d->n->out[i], true, &d->skip[i]);
    LVal first = lp_load(p, offsets, lp_2(p, L_ADD, e, lp_const_i(p, skip)));
    first = lp_2(p, L_ADD, first, lp_load(p, d->count, chunk_cell(d, lp_task(p), e)));
    int next = lp_var(p, LT_I64, first);
    open_entries(d, e, &token, &pair, &ends);
    LVal row = lp_get(p, next);
    lp_set(p, next, lp_2(p, L_ADD, row, lp_const_i(p, 1)));
    put(d, 1, row, token);
    put(d, 2, row, pair);
    put(d, 3, row, e);
    put(d, 4, pair, row);
    put_te_row(d, token, e, row);
    close_ends(p, ends + 1);
    kern_finish(&d->K, chunk_count(d->tokens));
    kern_drop(&d->K);
}

void lower_dispatch(Lower *L, int kernel, Node *n) {
    const Value *sel = n->in[0];
    Dispatch d = {.n = n,
                  .tokens = sel->dims[0],
                  .each = sel->dims[1],
                  .experts = node_int(n, AT_EXPERTS, 0)};
    d.mask = sel->dtype == DT_BOOL || dtype_is_float(sel->dtype);
    for (int i = 1; i < 6; i++)
        map_run(L, kernel, "none", n->out[i]->rank, n->out[i]->dims, none_body, n->out[i]);
    if (L->gpu) {
        gpu_counts(&d, L, kernel);
        gpu_offsets(&d, L, kernel);
        gpu_places(&d, L, kernel);
        return;
    }
    kern_begin(&d.K, L, kernel, PROGRAM_TASK, NULL);
    LoopProgram *p = d.K.p;
    d.sel = kern_buffer(&d.K, sel, false, &d.sel_skip);
    for (int i = 0; i < 6; i++)
        d.out[i] = kern_buffer(&d.K, n->out[i], true, &d.skip[i]);
    LVal zero = lp_const_i(p, 0), one = lp_const_i(p, 1), token, pair;
    d.count = kern_buffer_at(&d.K, L->mem->scratch[kernel], DT_I64);
    LVal e = lp_loop(p, LOOP_VECTOR, zero, lp_const_i(p, d.experts));
    lp_store(p, d.count, e, zero);
    lp_end(p);
    e = open_pairs(&d, &token, &pair);
    lp_store(p, d.count, e, lp_2(p, L_ADD, lp_load(p, d.count, e), one));
    close_pairs(&d);
    sum_counts(&d);
    e = open_pairs(&d, &token, &pair);
    LVal row = lp_load(p, d.count, e);
    lp_store(p, d.count, e, lp_2(p, L_ADD, row, one));
    put(&d, 1, row, token);
    put(&d, 2, row, pair);
    put(&d, 3, row, e);
    put(&d, 4, pair, row);
    put_te_row(&d, token, e, row);
    close_pairs(&d);
    kern_finish(&d.K, 1);
    kern_drop(&d.K);
}

/* ---- segment_sum: a task sums a tile of columns of one expert, each a chain of additions, which
 * f32 would make inexact ---- */

static void segment_columns(Kern *K, int64_t width, int64_t tile, int v, int64_t skip_v, int y,
                            int64_t skip_y, LVal lo_row, LVal hi_row, LVal e, LVal part, LType t) {
    LoopProgram *p = K->p;
    bool wide = t == LT_F32;
    t = wide ? LT_F64 : t;
    LVal zero = lp_const_i(p, 0), none = ex_emit(K, ex_zero(K, t));
    LVal lo = lp_2(p, L_MUL, part, lp_const_i(p, tile));
    LVal n =
        lp_2(p, L_SUB,
             lp_2(p, L_MIN, lp_2(p, L_ADD, lo, lp_const_i(p, tile)), lp_const_i(p, width)), lo);
    int acc = lp_local(p, t, tile);
    LVal j = lp_loop(p, LOOP_VECTOR, zero, n);
    lp_store(p, acc, j, none);
    lp_end(p);
    LVal r = lp_loop(p, LOOP_SEQ, lo_row, hi_row);
    LVal line = lp_2(p, L_ADD, lp_2(p, L_MUL, r, lp_const_i(p, width)),
                     lp_2(p, L_ADD, lo, lp_const_i(p, skip_v)));
    j = lp_loop(p, LOOP_VECTOR, zero, n);
    LVal x = lp_load(p, v, lp_2(p, L_ADD, line, j));
    x = wide ? lp_1(p, L_TO_F64, x) : x;
    lp_store(p, acc, j, lp_2(p, L_ADD, lp_load(p, acc, j), x));
    lp_end(p);
    lp_end(p);
    LVal to = lp_2(p, L_ADD, lp_2(p, L_MUL, e, lp_const_i(p, width)),
                   lp_2(p, L_ADD, lo, lp_const_i(p, skip_y)));
    j = lp_loop(p, LOOP_VECTOR, zero, n);
    LVal sum = lp_load(p, acc, j);
    lp_store(p, y, lp_2(p, L_ADD, to, j), wide ? lp_1(p, L_TO_F32, sum) : sum);
    lp_end(p);
}

void lower_segment_sum(Lower *L, int kernel, Node *n) {
    const Value *v = n->in[0], *offsets = n->in[1], *y = n->out[0];
    int64_t experts = y->dims[0], width = dims_product(v->dims, 1, v->rank), skip_v, skip_o, skip_y;
    if (value_count(y) == 0)
        return;
    int64_t tile = width < COLUMNS ? width : COLUMNS, tiles = ceil_div(width, tile);
    Kern K;
    kern_begin(&K, L, kernel, PROGRAM_TASK, NULL);
    LoopProgram *p = K.p;
    int bv = kern_buffer(&K, v, false, &skip_v), bo = kern_buffer(&K, offsets, false, &skip_o),
        by = kern_buffer(&K, y, true, &skip_y);
    LVal e = lp_2(p, L_DIV, lp_task(p), lp_const_i(p, tiles)),
         part = lp_2(p, L_REM, lp_task(p), lp_const_i(p, tiles));
    LVal lo = lp_load(p, bo, lp_2(p, L_ADD, e, lp_const_i(p, skip_o)));
    LVal hi = lp_load(p, bo, lp_2(p, L_ADD, e, lp_const_i(p, skip_o + 1)));
    LType t = value_ltype(v);
    if (width == 1) {
        int acc = lp_var(p, t, ex_emit(&K, ex_zero(&K, t)));
        LVal r = lp_loop(p, LOOP_VECTOR, lo, hi);
        lp_set(p, acc,
               lp_2(p, L_ADD, lp_get(p, acc),
                    lp_load(p, bv, lp_2(p, L_ADD, r, lp_const_i(p, skip_v)))));
        lp_end(p);
        lp_store(p, by, lp_2(p, L_ADD, e, lp_const_i(p, skip_y)), lp_get(p, acc));
    } else {
        segment_columns(&K, width, tile, bv, skip_v, by, skip_y, lo, hi, e, part, t);
    }
    kern_finish(&K, experts * tiles);
    kern_drop(&K);
}

/* ---- token_dot ---- */

void lower_token_dot(Lower *L, int kernel, Node *n) {
    const Value *x = n->in[0], *d = n->in[1], *offsets = n->in[2],
                *g = n->nin > 3 ? n->in[3] : NULL;
    if (value_count(n->out[0]) == 0)
        return;
    const char *capture = node_str(n, AT_CAPTURE, "auto");
    LoopCall *c = lower_call(L, CALL_TOKEN_DOT, kern_name(L, kernel, NULL));
    bool trans = node_int(n, AT_TRANS_B, 0) != 0;
    int64_t in = x->dims[1], out = d->dims[1];
    c->dot = (StgcTokenDot){
        .groups = offsets->dims[0] - 1,
        .rows = x->dims[0],
        .in = in,
        .out = out,
        .grad_group = in * out,
        .g_in = trans ? 1 : out,
        .g_out = trans ? in : 1,
        .mode = !strcmp(capture, "gram")       ? 1
                : !strcmp(capture, "factored") ? 2
                                               : 0,
    };
    c->dot_x = value_address(L, x);
    c->dot_d = value_address(L, d);
    c->dot_grad = g ? value_address(L, g) : -1;
    c->dot_offsets = value_address(L, offsets);
    c->dot_out = value_address(L, n->out[0]);
    c->dot_scratch = L->mem->scratch[kernel];
}

int64_t lower_scratch(const Lower *L, const Kernel *k) {
    Node *n = k->main;
    if (k->kind == KERNEL_REDUCE)
        return reduce_kernel_scratch(L, n);
    if (n->op == OP_DISPATCH && L->gpu)
        return chunk_count(n->in[0]->dims[0]) * node_int(n, AT_EXPERTS, 0) *
               (int64_t)sizeof(int64_t);
    if (n->op == OP_DISPATCH)
        return (node_int(n, AT_EXPERTS, 0) + 1) * (int64_t)sizeof(int64_t);
    if (n->op == OP_TOKEN_DOT)
        return stgc_token_dot_scratch(n->in[2]->dims[0] - 1, n->in[0]->dims[0], n->in[0]->dims[1],
                                      n->in[1]->dims[1]);
    return 0;
}
