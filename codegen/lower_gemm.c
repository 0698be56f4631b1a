/* lower_gemm.c: matrix products for the runtime.
 *
 * A matmul's operands are read through transposes and reshapes by strides; neighbouring batch axes
 * that step regularly in both operands and the result are one axis, and axes along which the right
 * operand does not move join the rows. Two batch axes remain at most in one call; more are several
 * calls. What the runtime does not multiply (other types than f32, irregular strides) is a plain
 * reduction over k. */
#include "codegen/loop_program.h"
#include "codegen/lower.h"
#include "codegen/lower_reduce.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_CALLS = 1024 };

static bool is_stored(const Value *v, void *ctx) {
    const Lower *L = ctx;
    return L->plan->storage[v->id] != NULL;
}

/* An operand as a matrix [rows, cols] with batch axes of the result: element strides. */
typedef struct Operand {
    int64_t base; /* byte offset in the arena */
    int64_t row, col;
    int64_t batch[MAX_RANK]; /* by batch axis of the result; 0 where it broadcasts */
    int64_t rows, cols;
} Operand;

typedef struct Product {
    int nbatch;
    int64_t batch[MAX_RANK], c_batch[MAX_RANK];
    int64_t m, n, k, ldc;
    Operand a, b;
    int64_t c;
    const Value *result;
    StgcGemmPrecision precision;
} Product;

static bool operand_view(Lower *L, Value *v, bool trans, bool left, int nbatch, Operand *o) {
    MatrixView w = {0};
    if (!matrix_view(v, is_stored, L, &w))
        return false;
    o->base = value_address(L, w.base) + w.offset * dtype_bytes(v->dtype);
    memset(o->batch, 0, sizeof o->batch);
    if (v->rank == 1) { /* a row on the left, a column on the right */
        o->rows = left ? 1 : v->dims[0], o->cols = left ? v->dims[0] : 1;
        o->row = left ? 1 : w.col, o->col = left ? w.col : 1;
        return true;
    }
    o->rows = v->dims[v->rank - (trans ? 1 : 2)], o->cols = v->dims[v->rank - (trans ? 2 : 1)];
    o->row = trans ? w.col : w.row, o->col = trans ? w.row : w.col;
    for (int i = 0; i < w.nbatch; i++)
        o->batch[nbatch - w.nbatch + i] = v->dims[i] == 1 ? 0 : w.batch_stride[i];
    if (o->rows == 1 && o->col != 1)
        o->row = 1;
    if (o->cols == 1 && o->row != 1)
        o->col = 1;
    return o->row == 1 || o->col == 1;
}

static StgcGemmPrecision precision_of(const Node *n) {
    return strcmp(node_str(n, AT_PRECISION, ""), "bf16") ? STGC_GEMM_F32 : STGC_GEMM_BF16;
}

static bool product_of(Lower *L, Node *n, Product *p) {
    Value *x = n->in[0], *y = n->in[1], *z = n->out[0];
    if (x->dtype != DT_F32)
        return false;
    int rx = x->rank < 2 ? 2 : x->rank, ry = y->rank < 2 ? 2 : y->rank;
    p->nbatch = (rx > ry ? rx : ry) - 2;
    if (!operand_view(L, x, node_int(n, AT_TRANS_A, 0) && x->rank > 1, true, p->nbatch, &p->a) ||
        !operand_view(L, y, node_int(n, AT_TRANS_B, 0) && y->rank > 1, false, p->nbatch, &p->b))
        return false;
    p->m = p->a.rows, p->k = p->a.cols, p->n = p->b.cols;
    p->ldc = p->n;
    int64_t step = p->m * p->n;
    for (int i = p->nbatch - 1; i >= 0; i--) {
        p->batch[i] = z->dims[i];
        p->c_batch[i] = step;
        step *= z->dims[i];
    }
    p->c = L->plan->storage[z->id] ? value_address(L, z) : 0;
    p->result = z;
    p->precision = precision_of(n);
    return true;
}

static void drop_axis(Product *p, int i) {
    for (int j = i; j + 1 < p->nbatch; j++) {
        p->batch[j] = p->batch[j + 1], p->c_batch[j] = p->c_batch[j + 1];
        p->a.batch[j] = p->a.batch[j + 1], p->b.batch[j] = p->b.batch[j + 1];
    }
    p->nbatch--;
}

static void simplify_batch(Product *p) {
    for (int i = p->nbatch - 1; i >= 0; i--)
        if (p->batch[i] == 1)
            drop_axis(p, i);
    while (p->nbatch) { /* the innermost axis goes on where the rows end, and B stands still */
        int i = p->nbatch - 1;
        bool rows = p->b.batch[i] == 0 && (p->a.batch[i] == p->a.row * p->m || p->m == 1) &&
                    p->c_batch[i] == p->ldc * p->m;
        if (!rows || (p->m == 1 && p->a.col != 1 && p->a.batch[i] != 1))
            break;
        if (p->m == 1)
            p->a.row = p->a.batch[i];
        p->m *= p->batch[i];
        drop_axis(p, i);
    }
    for (int i = p->nbatch - 2; i >= 0; i--) {
        int64_t s = p->batch[i + 1];
        if (p->a.batch[i] != p->a.batch[i + 1] * s || p->b.batch[i] != p->b.batch[i + 1] * s ||
            p->c_batch[i] != p->c_batch[i + 1] * s)
            continue;
        p->batch[i] *= s;
        p->a.batch[i] = p->a.batch[i + 1], p->b.batch[i] = p->b.batch[i + 1],
        p->c_batch[i] = p->c_batch[i + 1];
        drop_axis(p, i + 1);
    }
}

/* ---- epilogues: the kernel's roots beyond the product, on a tile of it ---- */

/* How a tile's element lies in the result: [outer…, group, row, column]; the outer digits are
 * known. */
typedef struct Tile {
    const Value *c;
    int nouter;
    int64_t size[MAX_RANK];
    int64_t outer[MAX_RANK];
    int64_t groups, m, n;
    Ex group, row, column, m0, n0, ld; /* leaves; ld 0: there is no tile, the product is 0 here */
    Index at;
} Tile;

static bool has_root(const Kernel *k, const Value *v) {
    for (int i = 0; i < k->roots.n; i++)
        if (k->roots.at[i] == v)
            return true;
    return false;
}

static Ex tile_own(Kern *K, Value *v, const Index *at, void *ctx) {
    Tile *t = ctx;
    if (v != t->c)
        return 0;
    if (!t->ld)
        return ex_zero(K, LT_F32);
    int64_t sizes[3] = {value_count(v) / (t->m * t->n), t->m, t->n};
    Ex d[3], mine[3];
    index_split(K, at, 3, sizes, d);
    index_split(K, &t->at, 3, sizes, mine);
    if (d[0] != mine[0] || d[1] != mine[1] || d[2] != mine[2])
        bug("%s: an epilogue reads another element of the product", K->name);
    Ex i = ex_2(K, L_SUB, t->row, t->m0), j = ex_2(K, L_SUB, t->column, t->n0);
    return ex_load(K, LB_TILE, ex_add(K, ex_mul(K, i, t->ld), j));
}

static void tile_place(Kern *K, Tile *t, int depth) {
    t->row = ex_leaf(K, LT_I64, depth + 1, 0, t->m - 1);
    t->column = ex_leaf(K, LT_I64, depth + 2, 0, t->n - 1);
    t->at = (Index){0};
    for (int i = 0; i < t->nouter; i++)
        index_push(&t->at, t->size[i], ex_i(K, t->outer[i]));
    index_push(&t->at, t->groups, t->group);
    index_push(&t->at, t->m, t->row);
    index_push(&t->at, t->n, t->column);
    K->own = tile_own;
    K->own_ctx = t;
}

/* The stores of one row, columns lo..hi; the product itself is stored by the runtime where there is
 * a tile. */
static void tile_rows(Kern *K, Tile *t, LVal m0, LVal m1, LVal n0, LVal n1) {
    LoopProgram *p = K->p;
    Sinks sinks = {0};
    VEC(Ex) all = {0};
    for (int i = 0; i < K->kernel->roots.n; i++) {
        Value *v = K->kernel->roots.at[i];
        if (v != t->c)
            sink_add(K, &sinks, v, &t->at, elem(K, v, &t->at));
    }
    for (int i = 0; i < sinks.n; i++) {
        vec_push(&all, sinks.at[i].index);
        vec_push(&all, sinks.at[i].value);
    }
    ex_hoist(K, all.at, all.n);
    kern_loop(K, K->L->gpu ? LOOP_VECTOR : LOOP_SEQ, t->row, m0, m1); /* by warps */
    ex_hoist(K, all.at, all.n);
    kern_loop(K, LOOP_VECTOR, t->column, n0, n1);
    for (int i = 0; i < all.n; i++)
        ex_emit(K, all.at[i]);
    for (int i = 0; i < sinks.n; i++)
        lp_store(p, sinks.at[i].buffer, ex_emit(K, sinks.at[i].index),
                 ex_emit(K, sinks.at[i].value));
    kern_end(K);
    kern_end(K);
    vec_free(&all);
    vec_free(&sinks);
}

/* Gives `call` (a product whose result is t->c) its epilogue, if the kernel has one, and C its
 * buffer, if it is stored. */
static void add_epilogue(Lower *L, int kernel, int call, Tile *t) {
    const Kernel *k = &L->plan->kernels.at[kernel];
    bool stored = has_root(k, t->c);
    if (!stored)
        L->module->calls.at[call].gemm_c = -1;
    if (k->roots.n == (stored ? 1 : 0))
        return;
    Kern K;
    kern_begin(&K, L, kernel, PROGRAM_EPILOGUE, "epilogue");
    LoopProgram *p = K.p;
    t->group = ex_leaf(&K, LT_I64, 0, 0, t->groups - 1);
    t->m0 = ex_leaf(&K, LT_I64, 0, 0, t->m);
    t->n0 = ex_leaf(&K, LT_I64, 0, 0, t->n);
    t->ld = ex_leaf(&K, LT_I64, 0, 1, INT64_MAX);
    LVal m0 = lp_arg(p, LARG_M0), n0 = lp_arg(p, LARG_N0);
    ex_bind(&K, t->group, lp_arg(p, LARG_GROUP));
    ex_bind(&K, t->m0, m0);
    ex_bind(&K, t->n0, n0);
    ex_bind(&K, t->ld, lp_arg(p, LARG_TILE_LD));
    tile_place(&K, t, 0);
    tile_rows(&K, t, m0, lp_arg(p, LARG_M1), n0, lp_arg(p, LARG_N1));
    kern_finish_into(&K, &L->module->calls.at[call]);
    kern_drop(&K);
}

/* Rows beyond the last expert's: no tile comes, the epilogue's values there are those of a product
 * of 0. */
static void add_padding(Lower *L, int kernel, Tile *t, const Value *offsets) {
    const Kernel *k = &L->plan->kernels.at[kernel];
    if (k->roots.n == has_root(k, t->c))
        return;
    Kern K;
    kern_begin(&K, L, kernel, PROGRAM_TASK, "padding");
    LoopProgram *p = K.p;
    int64_t grain = lower_grain(L), per = t->n < grain ? grain / t->n : 1, skip;
    int b = kern_buffer(&K, offsets, false, &skip);
    LVal used = lp_load(p, b, lp_const_i(p, skip + offsets->dims[0] - 1));
    LVal lo = lp_2(p, L_MUL, lp_task(p), lp_const_i(p, per));
    LVal hi = lp_2(p, L_MIN, lp_2(p, L_ADD, lo, lp_const_i(p, per)), lp_const_i(p, t->m));
    t->ld = 0;
    t->group = ex_i(&K, 0);
    tile_place(&K, t, 0);
    tile_rows(&K, t, lp_2(p, L_MAX, lo, used), hi, lp_const_i(p, 0), lp_const_i(p, t->n));
    kern_finish(&K, ceil_div(t->m, per));
    kern_drop(&K);
}

static void product_call(Lower *L, int kernel, const Product *p, const int64_t *outer) {
    int extra = p->nbatch > 2 ? p->nbatch - 2 : 0, first = extra;
    int64_t a = 0, b = 0, c = 0;
    for (int i = 0; i < extra; i++)
        a += outer[i] * p->a.batch[i], b += outer[i] * p->b.batch[i], c += outer[i] * p->c_batch[i];
    LoopCall *call = lower_call(L, CALL_GEMM, kern_name(L, kernel, NULL));
    StgcGemm *g = &call->gemm;
    *g = (StgcGemm){.kind = STGC_GEMM_BATCH,
                    .g1 = 1,
                    .g2 = 1,
                    .m = p->m,
                    .n = p->n,
                    .k = p->k,
                    .a_row = p->a.row,
                    .a_col = p->a.col,
                    .b_row = p->b.row,
                    .b_col = p->b.col,
                    .ldc = p->ldc,
                    .precision = p->precision};
    if (p->nbatch - extra > 0) {
        g->g1 = p->batch[first];
        g->a_g1 = p->a.batch[first], g->b_g1 = p->b.batch[first], g->c_g1 = p->c_batch[first];
    }
    if (p->nbatch - extra > 1) {
        g->g2 = p->batch[first + 1];
        g->a_g2 = p->a.batch[first + 1], g->b_g2 = p->b.batch[first + 1],
        g->c_g2 = p->c_batch[first + 1];
    }
    call->gemm_a = p->a.base + a * (int64_t)sizeof(float);
    call->gemm_b = p->b.base + b * (int64_t)sizeof(float);
    call->gemm_c = p->c + c * (int64_t)sizeof(float);
    Tile t = {.c = p->result, .nouter = extra, .groups = g->g1 * g->g2, .m = p->m, .n = p->n};
    for (int i = 0; i < extra; i++)
        t.size[i] = p->batch[i], t.outer[i] = outer[i];
    add_epilogue(L, kernel, L->module->calls.n - 1, &t);
}

/* ---- the plain way: z[batch, m, n] = sum over k ---- */

static Ex matrix_element(Kern *K, Value *v, const Value *z, const Ex *batch, int nbatch, bool trans,
                         bool left, Ex row, Ex col) {
    Index at = {0};
    int own = v->rank - 2;
    for (int i = 0; i < own; i++)
        if (v->dims[i] != 1)
            index_push(&at, v->dims[i], batch[nbatch - own + i]);
    if (v->rank == 1) {
        index_push(&at, v->dims[0], left ? col : row);
    } else {
        index_push(&at, v->dims[v->rank - 2], trans ? col : row);
        index_push(&at, v->dims[v->rank - 1], trans ? row : col);
    }
    return elem(K, v, &at);
}

static void product_sizes(const Node *n, int64_t *m, int64_t *k, int64_t *cols) {
    const Value *x = n->in[0], *y = n->in[1];
    bool ta = node_int(n, AT_TRANS_A, 0) && x->rank > 1,
         tb = node_int(n, AT_TRANS_B, 0) && y->rank > 1;
    *k = x->dims[x->rank - (ta ? 2 : 1)];
    *m = x->rank == 1 ? 1 : x->dims[x->rank - (ta ? 1 : 2)];
    *cols = y->rank == 1 ? 1 : y->dims[y->rank - (tb ? 2 : 1)];
}

static Ex product_element(Kern *K, const Index *at, void *ctx) {
    Node *n = ctx;
    const Value *z = n->out[0];
    int64_t m, k, cols, sizes[MAX_RANK + 3];
    product_sizes(n, &m, &k, &cols);
    int nbatch = z->rank - (n->in[0]->rank > 1) - (n->in[1]->rank > 1);
    for (int i = 0; i < nbatch; i++)
        sizes[i] = z->dims[i];
    sizes[nbatch] = m, sizes[nbatch + 1] = k, sizes[nbatch + 2] = cols;
    Ex d[MAX_RANK + 3];
    index_split(K, at, nbatch + 3, sizes, d);
    Ex a = matrix_element(K, n->in[0], z, d, nbatch, node_int(n, AT_TRANS_A, 0) != 0, true,
                          d[nbatch], d[nbatch + 1]);
    Ex b = matrix_element(K, n->in[1], z, d, nbatch, node_int(n, AT_TRANS_B, 0) != 0, false,
                          d[nbatch + 1], d[nbatch + 2]);
    return ex_node(K, a)->t == LT_BOOL ? ex_2(K, L_AND, a, b) : ex_mul(K, a, b);
}

static void plain_product(Lower *L, int kernel, Node *n) {
    const Value *z = n->out[0];
    int64_t m, k, cols;
    product_sizes(n, &m, &k, &cols);
    Reduction r = {.op = OP_REDUCE_SUM,
                   .dtype = z->dtype,
                   .result = z,
                   .element = product_element,
                   .ctx = n,
                   .whole = true};
    int64_t mn = m * cols;
    reduce_group(&r, mn ? value_count(z) / mn * m : 0, false);
    reduce_group(&r, k, true);
    reduce_group(&r, cols, false);
    reduce_run(L, kernel, &r);
}

void lower_matmul(Lower *L, int kernel, Node *n) {
    Product p = {0};
    if (value_count(n->out[0]) == 0)
        return;
    if (!product_of(L, n, &p)) {
        plain_product(L, kernel, n);
        return;
    }
    simplify_batch(&p);
    int64_t calls = 1, outer[MAX_RANK] = {0};
    int extra = p.nbatch > 2 ? p.nbatch - 2 : 0;
    for (int i = 0; i < extra; i++)
        calls *= p.batch[i];
    if (calls > MAX_CALLS) {
        plain_product(L, kernel, n);
        return;
    }
    for (int64_t c = 0; c < calls; c++) {
        int64_t rest = c;
        for (int i = extra - 1; i >= 0; i--)
            outer[i] = rest % p.batch[i], rest /= p.batch[i];
        product_call(L, kernel, &p, outer);
    }
}

/* ---- products by expert ---- */

void lower_grouped_matmul(Lower *L, int kernel, Node *n) {
    const Value *x = n->in[0], *offsets = n->in[1], *w = n->in[2], *y = n->out[0];
    bool trans = node_int(n, AT_TRANS_B, 0) != 0, stack = w->rank == 3;
    int64_t in = x->dims[1], out = y->dims[1], experts = offsets->dims[0] - 1;
    if (value_count(y) == 0)
        return;
    if (x->dtype != DT_F32) {
        diag_error(L->diag, EXIT_MODEL, "a product by experts in %s cannot be compiled",
                   dtype_name(x->dtype));
        diag_more(L->diag, "node \"%s\"", n->src ? diag_safe(L->diag, n->src->name) : "");
        return;
    }
    LoopCall *call = lower_call(L, CALL_GEMM, kern_name(L, kernel, NULL));
    call->gemm = (StgcGemm){.kind = STGC_GEMM_ROWS,
                            .g1 = experts,
                            .g2 = 1,
                            .m = x->dims[0],
                            .n = out,
                            .k = in,
                            .a_row = in,
                            .a_col = 1,
                            .b_row = trans ? 1 : out,
                            .b_col = trans ? in : 1,
                            .b_g1 = in * out,
                            .ldc = out,
                            .precision = precision_of(n)};
    if (L->plan->storage[x->id]) {
        call->gemm_a = value_address(L, x);
    } else { /* rows gathered as they are multiplied */
        call->gemm_a = value_address(L, x->def->in[0]);
        call->gemm_index = value_address(L, x->def->in[1]);
    }
    call->gemm_c = L->plan->storage[y->id] ? value_address(L, y) : -1;
    call->gemm_offsets = value_address(L, offsets);
    if (stack) {
        call->gemm_b = value_address(L, w);
    } else {
        int64_t *group = ARENA_ARRAY(&L->module->arena, int64_t, experts);
        for (int64_t e = 0; e < experts; e++)
            group[e] = value_address(L, n->in[2 + e]);
        call->gemm_b_group = group;
    }
    Tile t = {.c = y, .groups = 1, .m = x->dims[0], .n = out};
    add_epilogue(L, kernel, L->module->calls.n - 1, &t);
    add_padding(L, kernel, &t, offsets);
}

void lower_grouped_wgrad(Lower *L, int kernel, Node *n) {
    const Value *x = n->in[0], *d = n->in[1], *offsets = n->in[2];
    bool trans = node_int(n, AT_TRANS_B, 0) != 0;
    if (value_count(n->out[0]) == 0)
        return;
    if (x->dtype != DT_F32) {
        diag_error(L->diag, EXIT_MODEL, "a product by experts in %s cannot be compiled",
                   dtype_name(x->dtype));
        diag_more(L->diag, "node \"%s\"", n->src ? diag_safe(L->diag, n->src->name) : "");
        return;
    }
    const Value *left = trans ? d : x, *right = trans ? x : d;
    int64_t m = left->dims[1], cols = right->dims[1];
    LoopCall *call = lower_call(L, CALL_GEMM, kern_name(L, kernel, NULL));
    call->gemm = (StgcGemm){.kind = STGC_GEMM_K,
                            .g1 = offsets->dims[0] - 1,
                            .g2 = 1,
                            .m = m,
                            .n = cols,
                            .k = x->dims[0],
                            .a_row = 1,
                            .a_col = m,
                            .b_row = cols,
                            .b_col = 1,
                            .ldc = cols,
                            .c_g1 = m * cols,
                            .precision = precision_of(n)};
    call->gemm_a = value_address(L, left);
    call->gemm_b = value_address(L, right);
    call->gemm_c = value_address(L, n->out[0]);
    call->gemm_offsets = value_address(L, offsets);
}
