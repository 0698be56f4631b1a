/* onnx_op_index.c: operators that select by index. Indices become i64; negative ones count from the
 * end. */
#include <string.h>

#include "frontend/onnx_ops.h"

static Value *index_operand(OpCall *c, int i) {
    if (dtype_is_float(c->in[i]->dtype) || c->in[i]->dtype == DT_BOOL)
        call_fail(c, "operand %d holds indices; expected integers, found %s", i,
                  dtype_name(c->in[i]->dtype));
    return em_cast(c, c->in[i], DT_I64);
}

void read_gather(OpCall *c) {
    int axis = em_axis(c, call_int(c, "axis", 0), em_rank(c, c->in[0]));
    c->out[0] = em_gather(c, c->in[0], index_operand(c, 1), axis);
}

void read_gather_elements(OpCall *c) {
    int axis = em_axis(c, call_int(c, "axis", 0), em_rank(c, c->in[0]));
    c->out[0] = EM(c, OP_GATHER_ELEMENTS, ((Value *[]){c->in[0], index_operand(c, 1)}), 2,
                   A_INT(AXIS, axis));
}

void read_gather_nd(OpCall *c) {
    c->out[0] = EM(c, OP_GATHER_ND, ((Value *[]){c->in[0], index_operand(c, 1)}), 2,
                   A_INT(BATCH_DIMS, call_int(c, "batch_dims", 0)));
}

static const char *reduction(OpCall *c) {
    const char *r = call_string(c, "reduction", "none");
    static const char *const known[] = {"none", "add", "mul", "min", "max"};
    for (int i = 0; i < COUNT_OF(known); i++)
        if (!strcmp(r, known[i]))
            return known[i];
    call_fail(c, "reduction \"%s\" is unknown; expected none, add, mul, min or max",
              diag_safe(c->im->d, r));
}

void read_scatter_elements(OpCall *c) {
    int axis = em_axis(c, call_int(c, "axis", 0), em_rank(c, c->in[0]));
    c->out[0] = EM(c, OP_SCATTER_ELEMENTS, ((Value *[]){c->in[0], index_operand(c, 1), c->in[2]}),
                   3, A_INT(AXIS, axis), A_STR(REDUCTION, reduction(c)));
}

void read_scatter_nd(OpCall *c) {
    c->out[0] = EM(c, OP_SCATTER_ND, ((Value *[]){c->in[0], index_operand(c, 1), c->in[2]}), 3,
                   A_STR(REDUCTION, reduction(c)));
}

/* Is v an index that came out of TopK, ArgMax or a range, through nodes that keep it so? Then it is
 * not negative. */
static bool index_is_natural(const Value *v, int depth) {
    const Node *n = v->def;
    switch (n->op) {
    case OP_TOPK:
        return v->index == 1;
    case OP_ARGMAX:
        return true;
    case OP_CAST:
    case OP_RESHAPE:
    case OP_TRANSPOSE:
    case OP_SLICE:
    case OP_EXPAND:
        return depth > 0 && index_is_natural(n->in[0], depth - 1);
    case OP_CONST: {
        const Tensor *t = value_const(v);
        for (int64_t i = 0; i < tensor_count(t); i++)
            if (tensor_get_f(t, i) < 0)
                return false;
        return true;
    }
    default:
        return false;
    }
}

/* indices [..] -> [.., depth, ..]: on where the index is the axis's position (negative: from the
 * end), off elsewhere. */
void read_one_hot(OpCall *c) {
    Value *idx = em_cast(c, c->in[0], DT_I64), *values = c->in[2];
    Value *depth =
        em_cast(c, em_rank(c, c->in[1]) ? em_reshape(c, c->in[1], 0, NULL) : c->in[1], DT_I64);
    int rank = em_rank(c, idx), axis = em_axis(c, call_int(c, "axis", -1), rank + 1);
    if (values->rank != 1 || values->dims[0] != 2)
        call_fail(c, "values must hold two elements (off, on), found %s",
                  call_value_text(c, values));
    const Tensor *k = em_known(c, depth);
    Value *position;
    if (k) {
        int64_t n = tensor_get_i(k, 0);
        if (n < 0 || n > (int64_t)1 << 24)
            call_fail(c, "depth is %lld", (long long)n);
        Tensor *t = tensor_new(&c->im->g->arena, DT_I64, 1, &n);
        for (int64_t i = 0; i < n; i++)
            tensor_set_i(t, i, i);
        position = em_const(c, t);
    } else {
        position = em_node(c, OP_RANGE, (Value *[]){em_i(c, DT_I64, 0), depth, em_i(c, DT_I64, 1)},
                           3, 1, NULL, 0)
                       ->out[0];
    }
    ShapeOf s = {0};
    for (int i = axis; i <= rank; i++) { /* [depth, 1, 1, …] broadcasts against the axes behind */
        if (i > axis)
            shape_add(c, &s, 1);
        else
            shape_add_axis(c, &s, position, 0);
    }
    position = em_view(c, position, &s);
    Value *wide = em_insert_axis(c, idx, axis), *hit = em_binary(c, OP_EQ, wide, position);
    if (!index_is_natural(idx, 16))
        hit = em_binary(c, OP_OR, hit,
                        em_binary(c, OP_EQ, em_binary(c, OP_ADD, wide, depth), position));
    Value *off = em_reshape(c, em_slice(c, values, 0, 0, 1, 1), 0, NULL);
    Value *on = em_reshape(c, em_slice(c, values, 0, 1, 2, 1), 0, NULL);
    c->out[0] = em_where(c, hit, on, off);
}

void read_nonzero(OpCall *c) {
    c->out[0] = em_unary(c, OP_NONZERO, c->in[0]);
}

void read_topk(OpCall *c) {
    int axis = em_axis(c, call_int(c, "axis", -1), em_rank(c, c->in[0]));
    Attr attrs[3] = {A_INT(AXIS, axis), A_INT(LARGEST, c->opset < 11 || call_int(c, "largest", 1))};
    Value *in[2] = {c->in[0]};
    int64_t k = call_int(c, "k", -1);
    int nattrs = 2;
    if (c->opset >= 10) {
        in[1] = em_cast(c, c->in[1], DT_I64);
        if (em_known_ints(c, in[1], &k, 1) < 0)
            k = INT64_MIN;
    }
    if (k != INT64_MIN) {
        if (k < 0 || (c->in[0]->dims[axis] >= 0 && k > c->in[0]->dims[axis]))
            call_fail(c, "k is %lld; axis %d has %lld elements", (long long)k, axis,
                      (long long)c->in[0]->dims[axis]);
        attrs[nattrs++] = A_INT(K, k);
    }
    Node *n = em_node(c, OP_TOPK, in, k == INT64_MIN ? 2 : 1, 2, attrs, nattrs);
    c->out[0] = n->out[0];
    c->out[1] = n->out[1];
}

void read_argmax(OpCall *c) {
    int axis = em_axis(c, call_int(c, "axis", 0), em_rank(c, c->in[0]));
    c->out[0] = EM(c, OP_ARGMAX, &c->in[0], 1, A_INT(AXIS, axis),
                   A_INT(KEEPDIMS, call_int(c, "keepdims", 1)),
                   A_INT(LAST, call_int(c, "select_last_index", 0)), A_INT(LARGEST, c->row->arg));
}

/* cache[B,…,S,…] with update[B,…,s,…] written at positions write[b] … along `axis`, around the end
 * in circular mode. */
void read_tensor_scatter(OpCall *c) {
    Value *cache = c->in[0], *update = c->in[1];
    int rank = em_rank(c, cache), axis = em_axis(c, call_int(c, "axis", -2), rank);
    bool circular = !strcmp(call_string(c, "mode", "linear"), "circular");
    if (axis == 0 || em_rank(c, update) != rank)
        call_fail(c, "axis 0 is the batch; the update must have the cache's rank");
    Value *at = em_iota(c, update, axis); /* [s] */
    if (c->nin > 2 && c->in[2])
        at = em_binary(c, OP_ADD, em_insert_axis(c, em_cast(c, c->in[2], DT_I64), 1),
                       at); /* [B,s] */
    if (circular)
        at = EM(c, OP_MOD, ((Value *[]){at, em_size0(c, cache, axis)}), 2, A_INT(FMOD, 0));
    ShapeOf s = {0}, full = {0};
    for (int i = 0; i < rank; i++) {
        if (i == axis || (i == 0 && at->rank == 2))
            shape_add_axis(c, &s, update, i);
        else
            shape_add(c, &s, 1);
    }
    shape_add_axes(c, &full, update, 0, rank);
    Value *idx = em_spread(c, em_view(c, at, &s), &full);
    c->out[0] = EM(c, OP_SCATTER_ELEMENTS, ((Value *[]){cache, idx, update}), 3, A_INT(AXIS, axis),
                   A_STR(REDUCTION, "none"));
}

/* Each batch entry's first len[b] steps reversed: position t takes len - 1 - t where that is not
 * negative. */
void read_reverse_sequence(OpCall *c) {
    Value *x = c->in[0];
    int rank = em_rank(c, x), batch = (int)call_int(c, "batch_axis", 1),
        time = (int)call_int(c, "time_axis", 0);
    if (rank < 2 || batch < 0 || batch > 1 || time < 0 || time > 1 || batch == time)
        call_fail(c, "batch_axis and time_axis must be 0 and 1 in either order");
    Value *len = em_insert_axis(c, em_cast(c, c->in[1], DT_I64), 1); /* [B,1] */
    Value *t = em_iota(c, x, time);                                  /* [T] */
    Value *back = em_binary(c, OP_SUB, em_binary(c, OP_SUB, len, em_i(c, DT_I64, 1)), t);
    Value *idx = em_where(c, em_binary(c, OP_LT, back, em_i(c, DT_I64, 0)), t, back); /* [B,T] */
    if (time == 0)
        idx = em_swap_last(c, idx);
    ShapeOf s = {0}, full = {0};
    shape_add_axes(c, &s, idx, 0, 2);
    for (int i = 2; i < rank; i++)
        shape_add(c, &s, 1);
    shape_add_axes(c, &full, x, 0, rank);
    c->out[0] =
        EM(c, OP_GATHER_ELEMENTS, ((Value *[]){x, em_spread(c, em_view(c, idx, &s), &full)}), 2,
           A_INT(AXIS, time));
}

void read_compress(OpCall *c) {
    Value *x = c->in[0], *keep = c->in[1];
    int rank = em_rank(c, x), axis = 0;
    if (call_attr(c, "axis")) {
        axis = em_axis(c, call_int(c, "axis", 0), rank);
    } else {
        x = em_reshape(c, x, 1, (int64_t[]){-1});
    }
    if (keep->rank != 1 || keep->dtype != DT_BOOL)
        call_fail(c, "the condition must be a list of bool, found %s", call_value_text(c, keep));
    Value *idx = em_reshape(c, em_unary(c, OP_NONZERO, keep), 1, (int64_t[]){-1});
    c->out[0] = em_gather(c, x, idx, axis);
}
