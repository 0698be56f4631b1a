/* onnx_index.c: gathers and scatters. */
#include <string.h>

#include "codegen/onnx_put.h"

void emit_gather(Emit *E, const Node *n) {
    emit_result(E, n->out[0],
                PUT_AXIS(E, "Gather", node_int(n, AT_AXIS, 0), emit_name(E, n->in[0]),
                         emit_name(E, n->in[1])));
}

void emit_gather_elements(Emit *E, const Node *n) {
    emit_result(E, n->out[0],
                PUT_AXIS(E, "GatherElements", node_int(n, AT_AXIS, 0), emit_name(E, n->in[0]),
                         emit_name(E, n->in[1])));
}

void emit_gather_nd(Emit *E, const Node *n) {
    Onnx__NodeProto *g = put_node(
        E, "GatherND", (const char *[]){emit_name(E, n->in[0]), emit_name(E, n->in[1])}, 2, 1);
    int64_t batch = node_int(n, AT_BATCH_DIMS, 0);
    if (batch)
        put_int(E, g, "batch_dims", batch);
    emit_result(E, n->out[0], g->output[0]);
}

void emit_scatter_add(Emit *E, const Node *n) {
    const Value *y = n->out[0], *idx = n->in[1];
    DType computed = emit_compute_type(y->dtype);
    int axis = (int)node_int(n, AT_AXIS, 0);
    const char *sum =
        put_scatter_add(E, emit_as(E, n->in[0], computed), emit_as(E, idx, DT_I64), computed,
                        y->rank, y->dims, axis < 0 ? axis + y->rank : axis, idx->rank, idx->dims);
    emit_result_from(E, y, sum, computed);
}

static void scatter(Emit *E, const Node *n, const char *op, bool axis) {
    const char *reduction = node_str(n, AT_REDUCTION, "none");
    bool plain = !strcmp(reduction, "none"),
         extreme = !strcmp(reduction, "min") || !strcmp(reduction, "max");
    DType computed = plain ? n->out[0]->dtype : emit_compute_type(n->out[0]->dtype);
    if (extreme && E->o->opset < 18) {
        emit_fail(E, n, "reduction \"%s\" came with opset 18; choose --opset 18 or later",
                  reduction);
        return;
    }
    const char *in[3] = {emit_as(E, n->in[0], computed), emit_as(E, n->in[1], DT_I64),
                         emit_as(E, n->in[2], computed)};
    Onnx__NodeProto *s = put_node(E, op, in, 3, 1);
    if (axis)
        put_int(E, s, "axis", node_int(n, AT_AXIS, 0));
    if (!plain)
        put_str(E, s, "reduction", reduction);
    emit_result_from(E, n->out[0], s->output[0], computed);
}

void emit_scatter_elements(Emit *E, const Node *n) {
    scatter(E, n, "ScatterElements", true);
}

void emit_scatter_nd(Emit *E, const Node *n) {
    scatter(E, n, "ScatterND", false);
}
