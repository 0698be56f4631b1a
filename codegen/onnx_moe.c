/* onnx_moe.c: the row ops of MoE layers as subgraphs by expert (semantics in ops.def).
 *
 * Rows keep the planned bound R, so every shape but that of one expert's rows is known; rows beyond
 * the last expert's are filled with zeros (Pad), and none are where the router's own TopK says that
 * all pairs are routed. One expert's rows are a Slice between two of the offsets:
 * "stgc/layer_I/expert_E/…". A gather whose index may be -1 reads the source with a row of zeros at
 * its end, which is what -1 means there. Letters: T tokens, E experts, K chosen, P pairs (T*K or
 * T*E), R rows. */
#include <stdlib.h>
#include <string.h>

#include "codegen/onnx_put.h"

/* ---- dispatch ---- */

/* Every pair is routed to one of its token's distinct experts: sel holds the indices of a TopK over
 * all experts. */
static bool all_routed(const Value *sel, int64_t experts) {
    int64_t k = sel->dims[1];
    while (sel->def->op == OP_RESHAPE ||
           (sel->def->op == OP_CAST && !dtype_is_float(sel->dtype) && sel->dtype != DT_BOOL))
        sel = sel->def->in[0];
    const Node *t = sel->def;
    if (t->op != OP_TOPK || sel != t->out[1])
        return false;
    const Value *x = t->in[0];
    int64_t axis = node_int(t, AT_AXIS, -1);
    axis += axis < 0 ? x->rank : 0;
    return axis == x->rank - 1 && x->dims[axis] == experts && (k == 1 || k == sel->dims[axis]);
}

/* i64[E+1] = 0, then the running sums of the counts. */
static void put_offsets(Emit *E, EmitLayer *l, const char *chosen) {
    l->counts = put_reduce(E, "ReduceSum", chosen, (int64_t[]){0}, 1, false);
    l->offsets = PUT_AXIS(E, "Concat", 0, PUT_LIST(E, 0), PUT(E, "CumSum", l->counts, put_i(E, 0)));
}

/* Something known by pair (updates i64[P]) by row; -1 in rows without a pair. `place` says where
 * each pair goes: rows, and beyond them a place of its own for every pair that is not routed. */
static const char *by_row(Emit *E, const EmitLayer *l, const char *place, const char *updates,
                          int64_t pairs) {
    int64_t all = l->full ? l->rows : l->rows + pairs;
    Tensor *none = tensor_new(&E->arena, DT_I64, 1, &all);
    for (int64_t i = 0; i < all; i++)
        tensor_set_i(none, i, -1);
    const char *rows = PUT_AXIS(E, "ScatterElements", 0, put_tensor(E, none, NULL), place, updates);
    return l->full ? rows : put_slice(E, rows, 0, PUT_LIST(E, 0), PUT_LIST(E, l->rows));
}

/* The first row of every token at every expert among its K pairs: row_pe[P,E] -> [T,E]. */
static const char *first_rows(Emit *E, const EmitLayer *l, const char *row_pe, const char *member,
                              int64_t t, int64_t k, bool distinct) {
    if (k == 1)
        return put_reshape(E, row_pe, 2, (int64_t[]){t, l->experts});
    int64_t axis = 1, dims[3] = {t, k, l->experts};
    if (distinct)
        return put_reduce(E, "ReduceMax", put_reshape(E, row_pe, 3, dims), &axis, 1, false);
    const char *none = put_i(E, l->rows), *rows = PUT(E, "Where", member, row_pe, none);
    rows = put_reduce(E, "ReduceMin", put_reshape(E, rows, 3, dims), &axis, 1, false);
    return PUT(E, "Where", PUT(E, "Equal", rows, none), put_i(E, -1), rows);
}

void emit_dispatch(Emit *E, const Node *n) {
    const Value *sel = n->in[0];
    bool mask = sel->dtype == DT_BOOL || dtype_is_float(sel->dtype);
    EmitLayer *l = ARENA_NEW(&E->arena, EmitLayer);
    l->index = (int)node_int(n, AT_LAYER, 0);
    l->experts = (int)node_int(n, AT_EXPERTS, 0);
    l->rows = n->out[1]->dims[0];
    int64_t t = sel->dims[0], k = sel->dims[1], pairs = t * k;
    l->full = !mask && l->rows == pairs && all_routed(sel, l->experts);
    E->scope = emit_format(E, "stgc/layer_%d/dispatch/", l->index);
    const char *expert = NULL, *member; /* member: bool[P,E], or [T,E] for a mask */
    if (mask) {
        member = emit_name(E, sel);
        if (sel->dtype != DT_BOOL)
            member = PUT(E, "Not", PUT(E, "Equal", emit_as(E, sel, DT_F32), put_f(E, DT_F32, 0)));
    } else {
        expert = put_reshape(E, emit_as(E, sel, DT_I64), 2, (int64_t[]){pairs, 1});
        member = PUT(E, "Equal", expert, put_iota(E, l->experts, 1, 0, 1, (int64_t[]){l->experts}));
    }
    const char *chosen = put_cast(E, member, DT_BOOL, DT_I64);
    put_offsets(E, l, chosen);
    const char *starts = put_slice(E, l->offsets, 0, PUT_LIST(E, 0), PUT_LIST(E, l->experts));
    Onnx__NodeProto *before = put_node(E, "CumSum", (const char *[]){chosen, put_i(E, 0)}, 2, 1);
    const char *row = PUT(E, "Add", put_int(E, before, "exclusive", 1)->output[0], starts);
    const char *row_pe = PUT(E, "Where", member, row, put_i(E, -1)), *pair_row = row_pe,
               *te_row = row_pe, *flat;
    if (mask) {
        flat = put_reshape(E, row_pe, 1, &pairs);
    } else {
        flat = put_reduce(E, "ReduceMax", row_pe, (int64_t[]){1}, 1, false);
        pair_row = put_reshape(E, flat, 2, sel->dims);
        te_row = first_rows(E, l, row_pe, member, t, k, l->full);
    }
    const char *place = flat;
    if (!l->full) {
        Tensor *beyond = tensor_new(&E->arena, DT_I64, 1, &pairs);
        for (int64_t i = 0; i < pairs; i++)
            tensor_set_i(beyond, i, l->rows + i);
        place =
            PUT(E, "Where", PUT(E, "Less", flat, put_i(E, 0)), put_tensor(E, beyond, NULL), flat);
    }
    const char *experts =
        mask ? put_iota(E, pairs, 1, k, 1, &pairs) : put_reshape(E, expert, 1, &pairs);
    l->row_expert = by_row(E, l, place, experts, pairs);
    E->layers[n->out[0]->id] = l;
    *emit_memo(E, "layer", emit_format(E, "%d", l->index)) = l;
    emit_result(E, n->out[0], l->offsets);
    emit_result(E, n->out[1], by_row(E, l, place, put_iota(E, pairs, k, 0, 1, &pairs), pairs));
    emit_result(E, n->out[2], by_row(E, l, place, put_iota(E, pairs, 1, 0, 1, &pairs), pairs));
    emit_result(E, n->out[3], l->row_expert);
    emit_result(E, n->out[4], pair_row);
    emit_result(E, n->out[5], te_row);
}

/* ---- rows of all experts ---- */

/* Whether an index made by a dispatch may be -1. */
static bool may_be_absent(const Emit *E, const Value *idx) {
    while (idx->def->op == OP_RESHAPE)
        idx = idx->def->in[0];
    const Node *d = idx->def;
    const EmitLayer *l = d->op == OP_DISPATCH ? E->layers[d->out[0]->id] : NULL;
    return !l || !l->full || idx == d->out[5];
}

/* x[N,…] gathered by idx; a -1 gives zeros. `rank` and `dims` are x's. */
static const char *gather_or_zero(Emit *E, const char *x, DType t, int rank, const int64_t *dims,
                                  const Value *idx) {
    int64_t one[MAX_RANK];
    if (may_be_absent(E, idx)) {
        void **slot = emit_memo(E, "zero", x);
        memcpy(one, dims, sizeof *dims * (size_t)rank);
        one[0] = 1;
        if (!*slot) {
            const char *zero = put_tensor(E, tensor_new(&E->arena, t, rank, one), NULL);
            *slot = (void *)(uintptr_t)PUT_AXIS(E, "Concat", 0, x, zero);
        }
        x = *slot;
    }
    return PUT_AXIS(E, "Gather", 0, x, emit_name(E, idx));
}

void emit_gather_rows(Emit *E, const Node *n) {
    const Value *x = n->in[0];
    emit_result(E, n->out[0],
                gather_or_zero(E, emit_name(E, x), x->dtype, x->rank, x->dims, n->in[1]));
}

void emit_combine(Emit *E, const Node *n) {
    const Value *x = n->in[0], *inv = n->in[1], *idx = n->in[2];
    DType computed = emit_compute_type(x->dtype);
    int64_t dims[MAX_RANK] = {1}, axis = 1;
    int rank = 1;
    for (int i = 0; i < idx->rank; i++)
        dims[0] *= x->dims[i];
    for (int i = idx->rank; i < x->rank; i++)
        dims[rank++] = x->dims[i];
    const char *rows = emit_as(E, x, computed);
    if (idx->rank > 1)
        rows = put_reshape(E, rows, rank, dims);
    rows = gather_or_zero(E, rows, computed, rank, dims, inv);
    if (inv->dims[1] == 1) {
        dims[0] = inv->dims[0];
        emit_result_from(E, n->out[0], put_reshape(E, rows, rank, dims), computed);
        return;
    }
    emit_result_from(E, n->out[0], put_reduce(E, "ReduceSum", rows, &axis, 1, false), computed);
}

/* ---- one expert's part ---- */

static const char *expert_scope(Emit *E, const EmitLayer *l, int e, const char *what) {
    return emit_format(E, "stgc/layer_%d/expert_%d/%s", l->index, e, what);
}

/* The layer that offsets belong to; offsets that no dispatch made are refused. */
static EmitLayer *layer_of(Emit *E, const Node *n, const Value *offsets) {
    EmitLayer *l = E->layers[offsets->id];
    if (!l)
        emit_fail(E, n, "its rows are not those of a dispatch");
    return l;
}

/* Offsets one by one, so that each is a Slice's start and its predecessor's end. */
static const char **cuts(Emit *E, EmitLayer *l) {
    if (l->cut)
        return l->cut;
    int64_t *ones = ARENA_ARRAY(&E->arena, int64_t, l->experts + 1);
    for (int i = 0; i <= l->experts; i++)
        ones[i] = 1;
    E->scope = emit_format(E, "stgc/layer_%d/dispatch/", l->index);
    const char *in[2] = {l->offsets, put_list(E, ones, l->experts + 1)};
    l->cut =
        (const char **)put_int(E, put_node(E, "Split", in, 2, l->experts + 1), "axis", 0)->output;
    return l->cut;
}

static const char **counts(Emit *E, EmitLayer *l) {
    if (l->count)
        return l->count;
    int64_t *ones = ARENA_ARRAY(&E->arena, int64_t, l->experts);
    for (int i = 0; i < l->experts; i++)
        ones[i] = 1;
    E->scope = emit_format(E, "stgc/layer_%d/dispatch/", l->index);
    const char *in[2] = {put_cast(E, l->counts, DT_I64, DT_F32), put_list(E, ones, l->experts)};
    Onnx__NodeProto *s = put_node(E, "Split", in, 2, l->experts);
    l->count = (const char **)put_int(E, s, "axis", 0)->output;
    return l->count;
}

/* Rows v[R,w] expert by expert, in f32 or f64; once a value. */
static const char **rows_of(Emit *E, EmitLayer *l, const Value *v, DType t) {
    const EmitPieces *p = E->pieces[v->id];
    if (p && !p->stacked && p->layer == l && v->dtype == t)
        return p->at;
    const char *x = emit_as(E, v, t), **cut = cuts(E, l);
    void **slot = emit_memo(E, emit_format(E, "rows%d", l->index), x);
    if (*slot)
        return *slot;
    const char **at = ARENA_ARRAY(&E->arena, const char *, l->experts);
    for (int e = 0; e < l->experts; e++) {
        E->scope = expert_scope(E, l, e, "rows/");
        at[e] = put_slice(E, x, 0, cut[e], cut[e + 1]);
    }
    *slot = (void *)(uintptr_t)at;
    return at;
}

/* The matrices of a stack [E,a,b], one by one. */
static const char **matrices_of(Emit *E, EmitLayer *l, const Value *stack, DType t) {
    const EmitPieces *p = E->pieces[stack->id];
    if (p && p->stacked && p->only < 0 && stack->dtype == t)
        return p->at;
    const char *x = emit_as(E, stack, t);
    void **slot = emit_memo(E, "matrices", x);
    if (*slot)
        return *slot;
    const char **at = ARENA_ARRAY(&E->arena, const char *, l->experts);
    for (int e = 0; e < l->experts; e++) {
        E->scope = expert_scope(E, l, e, "weight/");
        at[e] = PUT_AXIS(E, "Gather", 0, x, put_i(E, e));
    }
    *slot = (void *)(uintptr_t)at;
    return at;
}

static EmitPieces *new_pieces(Emit *E, EmitLayer *l, bool stacked) {
    EmitPieces *p = ARENA_NEW(&E->arena, EmitPieces);
    *p = (EmitPieces){l, stacked, -1, ARENA_ARRAY(&E->arena, const char *, l->experts)};
    return p;
}

/* Rows beyond the last expert's: pads for a value of rank 1 or 2. */
static const char *row_pads(Emit *E, EmitLayer *l, int rank) {
    if (l->pads[rank])
        return l->pads[rank];
    E->scope = emit_format(E, "stgc/layer_%d/dispatch/", l->index);
    const char *missing = PUT(E, "Sub", PUT_LIST(E, l->rows), cuts(E, l)[l->experts]);
    if (rank == 1)
        l->pads[1] = PUT_AXIS(E, "Concat", 0, PUT_LIST(E, 0), missing);
    else
        l->pads[2] = PUT_AXIS(E, "Concat", 0, PUT_LIST(E, 0, 0), missing, PUT_LIST(E, 0));
    return l->pads[rank];
}

static const char *join_rows(Emit *E, EmitLayer *l, const char **at, int rank, DType t) {
    const char *pads = l->full ? NULL : row_pads(E, l, rank);
    E->scope = emit_format(E, "stgc/layer_%d/rows/", l->index);
    const char *all = put_int(E, put_node(E, "Concat", at, l->experts, 1), "axis", 0)->output[0];
    return l->full ? all : PUT(E, "Pad", all, pads, put_f(E, t, 0));
}

static const char *join_stack(Emit *E, EmitLayer *l, const EmitPieces *p, const Value *v) {
    E->scope = emit_format(E, "stgc/layer_%d/stack/", l->index);
    if (p->only >= 0)
        return put_reshape(E, p->at[p->only], v->rank, v->dims);
    const char *all = put_int(E, put_node(E, "Concat", p->at, l->experts, 1), "axis", 0)->output[0];
    return put_reshape(E, all, v->rank, v->dims);
}

const char *emit_join(Emit *E, const Value *v) {
    EmitPieces *p = E->pieces[v->id];
    const char *scope = E->scope, *x;
    x = p->stacked ? join_stack(E, p->layer, p, v)
                   : join_rows(E, p->layer, p->at, v->rank, v->dtype);
    E->scope = scope;
    return x;
}

/* Gives a value in pieces to the graph; computed in another type, it is joined and cast at once. */
static void pieces_result(Emit *E, const Value *v, EmitPieces *p, DType computed) {
    E->pieces[v->id] = p;
    if (v->dtype == computed)
        return;
    const char *x = p->stacked ? join_stack(E, p->layer, p, v)
                               : join_rows(E, p->layer, p->at, v->rank, computed);
    E->pieces[v->id] = NULL;
    emit_result_from(E, v, x, computed);
}

void emit_named_rows(Emit *E, const Value *v, int layer) {
    EmitLayer *l = *emit_memo(E, "layer", emit_format(E, "%d", layer));
    if (!l || v->rank != 1 || v->dims[0] != l->rows || !E->name[v->id] || !*E->name[v->id])
        return;
    const char **cut = cuts(E, l), *x = E->name[v->id];
    EmitPieces *p = new_pieces(E, l, false);
    for (int e = 0; e < l->experts; e++) {
        E->scope = expert_scope(E, l, e, v->name);
        p->at[e] = put_slice(E, x, 0, cut[e], cut[e + 1]);
    }
    E->pieces[v->id] = p;
    E->name[v->id] = NULL;
}

/* ---- products by expert ---- */

/* "linear_3/" or "grad_3/": products numbered within a layer, forward and backward apart. */
static const char *product_scope(Emit *E, EmitLayer *l, const Node *n, const char *kind) {
    const char *half = E->forward[n->id] ? "linear" : kind;
    return emit_format(E, "%s_%d/", half, l->linears++);
}

static const char *gemm(Emit *E, const char *a, const char *b, bool trans_a, bool trans_b) {
    if (!trans_a && !trans_b)
        return PUT(E, "MatMul", a, b);
    Onnx__NodeProto *g = put_node(E, "Gemm", (const char *[]){a, b}, 2, 1);
    if (trans_a)
        put_int(E, g, "transA", 1);
    if (trans_b)
        put_int(E, g, "transB", 1);
    return g->output[0];
}

void emit_grouped_matmul(Emit *E, const Node *n) {
    EmitLayer *l = layer_of(E, n, n->in[1]);
    if (!l)
        return;
    DType computed = emit_compute_type(n->out[0]->dtype);
    bool stack = n->in[2]->rank == 3, trans = node_int(n, AT_TRANS_B, 0);
    const char **x = rows_of(E, l, n->in[0], computed),
               **w = stack ? matrices_of(E, l, n->in[2], computed) : NULL;
    const char *where = product_scope(E, l, n, "grad_rows");
    EmitPieces *p = new_pieces(E, l, false);
    for (int e = 0; e < l->experts; e++) {
        const char *we = w ? w[e] : emit_as(E, n->in[2 + e], computed);
        E->scope = expert_scope(E, l, e, where);
        p->at[e] = gemm(E, x[e], we, false, trans);
    }
    pieces_result(E, n->out[0], p, computed);
}

void emit_grouped_wgrad(Emit *E, const Node *n) {
    EmitLayer *l = layer_of(E, n, n->in[2]);
    if (!l)
        return;
    DType computed = emit_compute_type(n->out[0]->dtype);
    bool trans = node_int(n, AT_TRANS_B, 0);
    const char **x = rows_of(E, l, n->in[0], computed), **d = rows_of(E, l, n->in[1], computed);
    const char *where = product_scope(E, l, n, "grad_weight");
    EmitPieces *p = new_pieces(E, l, true);
    for (int e = 0; e < l->experts; e++) {
        E->scope = expert_scope(E, l, e, where);
        p->at[e] = trans ? gemm(E, d[e], x[e], true, false) : gemm(E, x[e], d[e], true, false);
    }
    pieces_result(E, n->out[0], p, computed);
}

/* <x_r d_r', G_e / T_e> = sum over out of (x_r G_e) d_r, divided by T_e: no token's own matrix is
 * ever made. */
void emit_token_dot(Emit *E, const Node *n) {
    EmitLayer *l = layer_of(E, n, n->in[2]);
    if (!l)
        return;
    const Value *given = n->nin > 3 ? n->in[3] : NULL;
    DType t = emit_compute_type(n->out[0]->dtype);
    bool trans = given && node_int(n, AT_TRANS_B, 0);
    const char **x = rows_of(E, l, n->in[0], t), **d = rows_of(E, l, n->in[1], t);
    const char **g = given ? matrices_of(E, l, given, t) : NULL, **count = counts(E, l);
    const char *where = product_scope(E, l, n, "dot");
    EmitPieces *p = new_pieces(E, l, false);
    for (int e = 0; e < l->experts; e++) {
        E->scope = expert_scope(E, l, e, where);
        const char *ge = g ? g[e] : gemm(E, x[e], d[e], true, false);
        const char *dot = PUT(E, "Mul", gemm(E, x[e], ge, false, trans), d[e]);
        dot = put_reduce(E, "ReduceSum", dot, (int64_t[]){1}, 1, false);
        p->at[e] = PUT(E, "Div", dot, count[e]);
    }
    pieces_result(E, n->out[0], p, t);
}

/* Sums over each expert's rows, as a product with the members matrix. */
void emit_segment_sum(Emit *E, const Node *n) {
    EmitLayer *l = layer_of(E, n, n->in[1]);
    if (!l)
        return;
    const Value *v = n->in[0], *y = n->out[0];
    DType t =
        dtype_is_float(v->dtype) ? emit_compute_type(v->dtype) : DT_F64; /* exact below 2^53 */
    const char *x = emit_as(E, v, t), *scope = E->scope;
    if (!l->members) {
        E->scope = emit_format(E, "stgc/layer_%d/dispatch/", l->index);
        int64_t column[2] = {l->experts, 1};
        l->members =
            put_cast(E, PUT(E, "Equal", put_iota(E, l->experts, 1, 0, 2, column), l->row_expert),
                     DT_BOOL, DT_F32);
    }
    E->scope = scope;
    void **slot = emit_memo(E, dtype_name(t), l->members);
    if (!*slot)
        *slot = (void *)(uintptr_t)put_cast(E, l->members, DT_F32, t);
    int64_t wide = 1;
    for (int i = 1; i < v->rank; i++)
        wide *= v->dims[i];
    if (v->rank > 2)
        x = put_reshape(E, x, 2, (int64_t[]){v->dims[0], wide});
    const char *sum = PUT(E, "MatMul", *slot, x);
    if (v->rank > 2)
        sum = put_reshape(E, sum, y->rank, y->dims);
    emit_result_from(E, y, sum, t);
}
