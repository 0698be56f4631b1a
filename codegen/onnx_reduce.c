/* onnx_reduce.c: reductions, scans, softmax and top-k. */
#include <math.h>
#include <string.h>

#include "codegen/onnx_put.h"
#include "ir/infer_dims.h"

void emit_reduce(Emit *E, const Node *n) {
    const char *op = n->op == OP_REDUCE_SUM   ? "ReduceSum"
                     : n->op == OP_REDUCE_MAX ? "ReduceMax"
                     : n->op == OP_REDUCE_MIN ? "ReduceMin"
                                              : "ReduceProd";
    DType computed = emit_compute_type(n->in[0]->dtype);
    int64_t axes[MAX_RANK];
    int count;
    Fault f;
    if (!shape_reduce_axes(n, n->in[0]->rank, axes, &count, &f)) {
        emit_fail(E, n, "%s", f.text);
        return;
    }
    emit_result_from(
        E, n->out[0],
        put_reduce(E, op, emit_as(E, n->in[0], computed), axes, count, node_int(n, AT_KEEPDIMS, 0)),
        computed);
}

void emit_argmax(Emit *E, const Node *n) {
    DType computed = emit_compute_type(n->in[0]->dtype);
    const char *x = emit_as(E, n->in[0], computed);
    Onnx__NodeProto *a = put_node(E, node_int(n, AT_LARGEST, 1) ? "ArgMax" : "ArgMin", &x, 1, 1);
    put_int(E, a, "axis", node_int(n, AT_AXIS, 0));
    put_int(E, a, "keepdims", node_int(n, AT_KEEPDIMS, 0));
    if (node_int(n, AT_LAST, 0))
        put_int(E, a, "select_last_index", 1);
    emit_result(E, n->out[0], a->output[0]);
}

void emit_cumsum(Emit *E, const Node *n) {
    DType computed = emit_compute_type(n->in[0]->dtype);
    Onnx__NodeProto *c = put_node(
        E, "CumSum",
        (const char *[]){emit_as(E, n->in[0], computed), put_i(E, node_int(n, AT_AXIS, 0))}, 2, 1);
    if (node_int(n, AT_EXCLUSIVE, 0))
        put_int(E, c, "exclusive", 1);
    if (node_int(n, AT_REVERSE, 0))
        put_int(E, c, "reverse", 1);
    emit_result_from(E, n->out[0], c->output[0], computed);
}

void emit_topk(Emit *E, const Node *n) {
    DType computed = emit_compute_type(n->in[0]->dtype);
    int64_t k = node_int(n, AT_K, 0);
    const char *count = n->nin > 1 && n->in[1]
                            ? put_reshape(E, emit_name(E, n->in[1]), 1, (int64_t[]){1})
                            : put_list(E, &k, 1);
    Onnx__NodeProto *t =
        put_node(E, "TopK", (const char *[]){emit_as(E, n->in[0], computed), count}, 2, 2);
    put_int(E, t, "axis", node_int(n, AT_AXIS, -1));
    if (!node_int(n, AT_LARGEST, 1))
        put_int(E, t, "largest", 0);
    emit_result_from(E, n->out[0], t->output[0], computed);
    emit_result(E, n->out[1], t->output[1]);
}

void emit_softmax(Emit *E, const Node *n) {
    DType computed = emit_compute_type(n->in[0]->dtype);
    int64_t axis = node_int(n, AT_AXIS, -1);
    const char *x = emit_as(E, n->in[0], computed), *y = PUT_AXIS(E, "Softmax", axis, x);
    if (axis < 0)
        axis += n->in[0]->rank;
    if (node_int(n, AT_MASKED, 0)) { /* a row of only -inf is 0, not NaN */
        const char *top = put_reduce(E, "ReduceMax", x, &axis, 1, true);
        const char *none = PUT(E, "Equal", top, put_f(E, computed, -INFINITY));
        y = PUT(E, "Where", none, put_f(E, computed, 0), y);
    }
    emit_result_from(E, n->out[0], y, computed);
}

void emit_log_softmax(Emit *E, const Node *n) {
    DType computed = emit_compute_type(n->in[0]->dtype);
    emit_result_from(
        E, n->out[0],
        PUT_AXIS(E, "LogSoftmax", node_int(n, AT_AXIS, -1), emit_as(E, n->in[0], computed)),
        computed);
}
