/* lower_gemm.c: matrix products for the runtime.
 *
 * A matmul's operands are read through transposes and reshapes by strides; neighbouring batch axes that step regularly in both
 * operands and the result are one axis, and axes along which the right operand does not move join the rows. Two batch axes
 * remain at most in one call; more are several calls. What the runtime does not multiply (other types than f32, irregular
 * strides) is a plain reduction over k. */
#include "codegen/lower.h"
#include "codegen/lower_reduce.h"

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
    p->c = value_address(L, z);
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
        bool rows = p->b.batch[i] == 0 && (p->a.batch[i] == p->a.row * p->m || p->m == 1) && p->c_batch[i] == p->ldc * p->m;
        if (!rows || (p->m == 1 && p->a.col != 1 && p->a.batch[i] != 1))
            break;
        if (p->m == 1)
            p->a.row = p->a.batch[i];
        p->m *= p->batch[i];
        drop_axis(p, i);
    }
    for (int i = p->nbatch - 2; i >= 0; i--) {
        int64_t s = p->batch[i + 1];
        if (p->a.batch[i] != p->a.batch[i + 1] * s || p->b.batch[i] != p->b.batch[i + 1] * s || p->c_batch[i] != p->c_batch[i + 1] * s)
            continue;
        p->batch[i] *= s;
        p->a.batch[i] = p->a.batch[i + 1], p->b.batch[i] = p->b.batch[i + 1], p->c_batch[i] = p->c_batch[i + 1];
        drop_axis(p, i + 1);
    }
}

static void product_call(Lower *L, int kernel, const Product *p, const int64_t *outer) {
    int extra = p->nbatch > 2 ? p->nbatch - 2 : 0, first = extra;
    int64_t a = 0, b = 0, c = 0;
    for (int i = 0; i < extra; i++)
        a += outer[i] * p->a.batch[i], b += outer[i] * p->b.batch[i], c += outer[i] * p->c_batch[i];
    LoopCall *call = lower_call(L, CALL_GEMM, kern_name(L, kernel, NULL));
    StgcGemm *g = &call->gemm;
    *g = (StgcGemm){.kind = STGC_GEMM_BATCH, .g1 = 1, .g2 = 1, .m = p->m, .n = p->n, .k = p->k, .a_row = p->a.row,
                    .a_col = p->a.col, .b_row = p->b.row, .b_col = p->b.col, .ldc = p->ldc};
    if (p->nbatch - extra > 0) {
        g->g1 = p->batch[first];
        g->a_g1 = p->a.batch[first], g->b_g1 = p->b.batch[first], g->c_g1 = p->c_batch[first];
    }
    if (p->nbatch - extra > 1) {
        g->g2 = p->batch[first + 1];
        g->a_g2 = p->a.batch[first + 1], g->b_g2 = p->b.batch[first + 1], g->c_g2 = p->c_batch[first + 1];
    }
    call->gemm_a = p->a.base + a * (int64_t)sizeof(float);
    call->gemm_b = p->b.base + b * (int64_t)sizeof(float);
    call->gemm_c = p->c + c * (int64_t)sizeof(float);
}

/* ---- the plain way: z[batch, m, n] = sum over k ---- */

static Ex matrix_element(Kern *K, Value *v, const Value *z, const Ex *batch, int nbatch, bool trans, bool left, Ex row, Ex col) {
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
    bool ta = node_int(n, AT_TRANS_A, 0) && x->rank > 1, tb = node_int(n, AT_TRANS_B, 0) && y->rank > 1;
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
    Ex a = matrix_element(K, n->in[0], z, d, nbatch, node_int(n, AT_TRANS_A, 0) != 0, true, d[nbatch], d[nbatch + 1]);
    Ex b = matrix_element(K, n->in[1], z, d, nbatch, node_int(n, AT_TRANS_B, 0) != 0, false, d[nbatch + 1], d[nbatch + 2]);
    return ex_node(K, a)->t == LT_BOOL ? ex_2(K, L_AND, a, b) : ex_mul(K, a, b);
}

static void plain_product(Lower *L, int kernel, Node *n) {
    const Value *z = n->out[0];
    int64_t m, k, cols;
    product_sizes(n, &m, &k, &cols);
    Reduction r = {.op = OP_REDUCE_SUM, .dtype = z->dtype, .result = z, .element = product_element, .ctx = n, .whole = true};
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
        diag_error(L->diag, EXIT_MODEL, "a product by experts in %s cannot be compiled", dtype_name(x->dtype));
        diag_more(L->diag, "node \"%s\"", n->src ? diag_safe(L->diag, n->src->name) : "");
        return;
    }
    LoopCall *call = lower_call(L, CALL_GEMM, kern_name(L, kernel, NULL));
    call->gemm = (StgcGemm){.kind = STGC_GEMM_ROWS, .g1 = experts, .g2 = 1, .m = x->dims[0], .n = out, .k = in, .a_row = in,
                            .a_col = 1, .b_row = trans ? 1 : out, .b_col = trans ? in : 1, .b_g1 = in * out, .ldc = out};
    call->gemm_a = value_address(L, x);
    call->gemm_c = value_address(L, y);
    call->gemm_offsets = value_address(L, offsets);
    if (stack) {
        call->gemm_b = value_address(L, w);
        return;
    }
    int64_t *group = ARENA_ARRAY(&L->module->arena, int64_t, experts);
    for (int64_t e = 0; e < experts; e++)
        group[e] = value_address(L, n->in[2 + e]);
    call->gemm_b_group = group;
}

void lower_grouped_wgrad(Lower *L, int kernel, Node *n) {
    const Value *x = n->in[0], *d = n->in[1], *offsets = n->in[2];
    bool trans = node_int(n, AT_TRANS_B, 0) != 0;
    if (value_count(n->out[0]) == 0)
        return;
    if (x->dtype != DT_F32) {
        diag_error(L->diag, EXIT_MODEL, "a product by experts in %s cannot be compiled", dtype_name(x->dtype));
        diag_more(L->diag, "node \"%s\"", n->src ? diag_safe(L->diag, n->src->name) : "");
        return;
    }
    const Value *left = trans ? d : x, *right = trans ? x : d;
    int64_t m = left->dims[1], cols = right->dims[1];
    LoopCall *call = lower_call(L, CALL_GEMM, kern_name(L, kernel, NULL));
    call->gemm = (StgcGemm){.kind = STGC_GEMM_K, .g1 = offsets->dims[0] - 1, .g2 = 1, .m = m, .n = cols, .k = x->dims[0],
                            .a_row = 1, .a_col = m, .b_row = cols, .b_col = 1, .ldc = cols, .c_g1 = m * cols};
    call->gemm_a = value_address(L, left);
    call->gemm_b = value_address(L, right);
    call->gemm_c = value_address(L, n->out[0]);
    call->gemm_offsets = value_address(L, offsets);
}
