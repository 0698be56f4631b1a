/* build.c: the op builders that passes and the importer use. Each makes one node and infers its
 * result; a shape that does not fit here is a bug of the caller, except in the importer, which
 * checks the user's shapes through node_infer itself. */
#include <stdlib.h>
#include <string.h>

#include "ir/graph.h"
#include "ir/infer.h"

static Node *infer_or_bug(Node *n) {
    Diag d = {0};
    if (!node_infer(n, &d))
        bug("%s built from \"%s\" does not fit: %s", op_info[n->op].name, n->src->name,
            d.messages.n ? d.messages.at[d.messages.n - 1].text : "?");
    diag_free(&d);
    return n;
}

static Value *build_1(Builder *b, Op op, Value *const *in, int nin) {
    return infer_or_bug(build_node(b, op, in, nin, 1))->out[0];
}

Node *op_node(Builder *b, Op op, Value *const *in, int nin, const Attr *attrs, int nattrs) {
    int nout = op_info[op].nout;
    if (op == OP_SGD)
        nout = nin == 4 ? 2 : 1;
    ASSERT(nout > 0);
    Node *n = build_node(b, op, in, nin, nout);
    node_set_attrs(n, attrs, nattrs);
    return infer_or_bug(n);
}

Value *op_const(Builder *b, const Tensor *t) {
    Node *n = build_node(b, OP_CONST, NULL, 0, 1);
    Tensor *copy = arena_copy(&b->g->arena, t, sizeof *t);
    copy->data = arena_copy(&b->g->arena, t->data, tensor_bytes(t));
    node_set_tensor(n, AT_VALUE, copy);
    return infer_or_bug(n)->out[0];
}

Value *op_const_f(Builder *b, DType dtype, double v) {
    int64_t cell = 0;
    Tensor t = {.dtype = dtype, .rank = 0, .data = &cell};
    tensor_set_f(&t, 0, v);
    return op_const(b, &t);
}

Value *op_const_i(Builder *b, int64_t v) {
    Tensor t = {.dtype = DT_I64, .rank = 0, .data = &v};
    return op_const(b, &t);
}

Value *op_const_ints(Builder *b, const int64_t *v, int n) {
    Tensor t = {.dtype = DT_I64, .rank = 1, .dims = {n}, .data = (void *)(uintptr_t)v};
    return op_const(b, &t);
}

Value *op_full(Builder *b, DType t, double v, int rank, const int64_t *dims) {
    return op_expand(b, op_const_f(b, t, v), rank, dims);
}

Value *op_param(Builder *b, const char *name, ParamKind kind, Tensor *init) {
    Node *n = build_node(b, OP_PARAM, NULL, 0, 1);
    node_set_str(n, AT_NAME, name);
    node_set_int(n, AT_KIND, kind);
    if (init) {
        node_set_tensor(n, AT_VALUE, init);
        infer_or_bug(n);
    }
    n->out[0]->name = node_str(n, AT_NAME, name);
    return n->out[0];
}

Value *op_unary(Builder *b, Op op, Value *x) {
    return build_1(b, op, &x, 1);
}

Value *op_binary(Builder *b, Op op, Value *x, Value *y) {
    return build_1(b, op, (Value *[]){x, y}, 2);
}

Value *op_where(Builder *b, Value *c, Value *x, Value *y) {
    return build_1(b, OP_WHERE, (Value *[]){c, x, y}, 3);
}

Value *op_cast(Builder *b, Value *x, DType to) {
    if (x->dtype == to)
        return x;
    Node *n = build_node(b, OP_CAST, &x, 1, 1);
    node_set_int(n, AT_TO, to);
    return infer_or_bug(n)->out[0];
}

Value *op_reshape(Builder *b, Value *x, int rank, const int64_t *dims) {
    if (x->rank == rank && (rank == 0 || !memcmp(x->dims, dims, sizeof *dims * (size_t)rank)))
        return x;
    Node *n = build_node(b, OP_RESHAPE, &x, 1, 1);
    node_set_ints(n, AT_DIMS, dims, rank);
    return infer_or_bug(n)->out[0];
}

Value *op_transpose(Builder *b, Value *x, const int64_t *perm) {
    Node *n = build_node(b, OP_TRANSPOSE, &x, 1, 1);
    node_set_ints(n, AT_PERM, perm, x->rank);
    return infer_or_bug(n)->out[0];
}

Value *op_expand(Builder *b, Value *x, int rank, const int64_t *dims) {
    if (x->rank == rank && (rank == 0 || !memcmp(x->dims, dims, sizeof *dims * (size_t)rank)))
        return x;
    Node *n = build_node(b, OP_EXPAND, &x, 1, 1);
    node_set_ints(n, AT_DIMS, dims, rank);
    return infer_or_bug(n)->out[0];
}

Value *op_slice(Builder *b, Value *x, int axis, int64_t start, int64_t end, int64_t step) {
    Node *n = build_node(b, OP_SLICE, &x, 1, 1);
    int64_t a = axis;
    node_set_ints(n, AT_AXES, &a, 1);
    node_set_ints(n, AT_STARTS, &start, 1);
    node_set_ints(n, AT_ENDS, &end, 1);
    node_set_ints(n, AT_STEPS, &step, 1);
    return infer_or_bug(n)->out[0];
}

Value *op_concat(Builder *b, Value *const *x, int nx, int axis) {
    if (nx == 1)
        return x[0];
    Node *n = build_node(b, OP_CONCAT, x, nx, 1);
    node_set_int(n, AT_AXIS, axis);
    return infer_or_bug(n)->out[0];
}

Value *op_reduce(Builder *b, Op op, Value *x, const int64_t *axes, int naxes, bool keepdims) {
    Node *n = build_node(b, op, &x, 1, 1);
    node_set_ints(n, AT_AXES, axes, naxes);
    node_set_int(n, AT_KEEPDIMS, keepdims);
    return infer_or_bug(n)->out[0];
}

Value *op_gather(Builder *b, Value *x, Value *idx, int axis) {
    Node *n = build_node(b, OP_GATHER, (Value *[]){x, idx}, 2, 1);
    node_set_int(n, AT_AXIS, axis);
    return infer_or_bug(n)->out[0];
}

Value *op_matmul(Builder *b, Value *x, Value *y, bool trans_a, bool trans_b) {
    Node *n = build_node(b, OP_MATMUL, (Value *[]){x, y}, 2, 1);
    if (trans_a)
        node_set_int(n, AT_TRANS_A, 1);
    if (trans_b)
        node_set_int(n, AT_TRANS_B, 1);
    return infer_or_bug(n)->out[0];
}

Value *op_softmax(Builder *b, Value *x, int axis) {
    Node *n = build_node(b, OP_SOFTMAX, &x, 1, 1);
    node_set_int(n, AT_AXIS, axis);
    return infer_or_bug(n)->out[0];
}
