/* onnx_shape.c: views, and ops that move elements about without computing. */
#include <string.h>

#include "codegen/onnx_put.h"

/* Attribute `key` as a constant, or the operand that gives it. */
static const char *ints_or(Emit *E, const Node *n, int operand, AttrKey key) {
    const int64_t *at;
    if (operand < n->nin && n->in[operand])
        return emit_name(E, n->in[operand]);
    int k = node_ints(n, key, &at);
    return put_list(E, at, k);
}

/* One expert's part of a stack that exists by expert, as the matrix it is. */
static bool reshape_piece(Emit *E, const Node *n) {
    const EmitPieces *p = E->pieces[n->in[0]->id];
    const Value *x = n->in[0], *y = n->out[0];
    if (!p || E->name[x->id] || !p->stacked || p->only < 0 || y->rank != x->rank - 1 ||
        memcmp(y->dims, x->dims + 1, sizeof *y->dims * (size_t)y->rank) != 0)
        return false;
    emit_result(E, y, p->at[p->only]);
    return true;
}

void emit_reshape(Emit *E, const Node *n) {
    if (reshape_piece(E, n))
        return;
    const char *x = emit_name(E, n->in[0]);
    const Value *y = n->out[0];
    emit_result(E, y, value_known(y) ? put_reshape(E, x, y->rank, y->dims) : PUT(E, "Reshape", x, ints_or(E, n, 1, AT_DIMS)));
}

void emit_transpose(Emit *E, const Node *n) {
    const int64_t *perm;
    int rank = node_ints(n, AT_PERM, &perm);
    emit_result(E, n->out[0], put_transpose(E, emit_name(E, n->in[0]), rank, perm));
}

void emit_expand(Emit *E, const Node *n) {
    const Value *y = n->out[0];
    const char *dims = value_known(y) ? put_list(E, y->dims, y->rank) : ints_or(E, n, 1, AT_DIMS);
    emit_result(E, y, PUT(E, "Expand", emit_name(E, n->in[0]), dims));
}

/* A slice of one expert of a stack that exists by expert. */
static bool slice_piece(Emit *E, const Node *n) {
    const EmitPieces *p = E->pieces[n->in[0]->id];
    const int64_t *axes, *starts;
    if (!p || E->name[n->in[0]->id] || !p->stacked || p->only >= 0 || node_ints(n, AT_AXES, &axes) != 1 || axes[0] != 0 ||
        n->out[0]->dims[0] != 1)
        return false;
    node_ints(n, AT_STARTS, &starts);
    EmitPieces *q = arena_copy(&E->arena, p, sizeof *p);
    q->only = (int)starts[0];
    E->pieces[n->out[0]->id] = q;
    return true;
}

void emit_slice(Emit *E, const Node *n) {
    const int64_t *steps;
    if (slice_piece(E, n))
        return;
    const char *x = emit_name(E, n->in[0]);
    if (n->nin > 1) {
        const char *in[5];
        int nin = 0;
        for (int i = 0; i < n->nin; i++)
            in[nin++] = n->in[i] ? emit_name(E, n->in[i]) : "";
        emit_result(E, n->out[0], put_node(E, "Slice", in, nin, 1)->output[0]);
        return;
    }
    const char *in[5] = {x, ints_or(E, n, 1, AT_STARTS), ints_or(E, n, 2, AT_ENDS), ints_or(E, n, 3, AT_AXES), NULL};
    int k = node_ints(n, AT_STEPS, &steps), nin = 4;
    for (int i = 0; i < k; i++)
        if (steps[i] != 1)
            nin = 5;
    if (nin == 5)
        in[4] = put_list(E, steps, k);
    emit_result(E, n->out[0], put_node(E, "Slice", in, nin, 1)->output[0]);
}

void emit_concat(Emit *E, const Node *n) {
    const char **in = ARENA_ARRAY(&E->arena, const char *, n->nin);
    for (int i = 0; i < n->nin; i++)
        in[i] = emit_name(E, n->in[i]);
    Onnx__NodeProto *c = put_node(E, "Concat", in, n->nin, 1);
    emit_result(E, n->out[0], put_int(E, c, "axis", node_int(n, AT_AXIS, 0))->output[0]);
}

void emit_pad(Emit *E, const Node *n) {
    DType t = n->out[0]->dtype;
    emit_result(E, n->out[0], PUT(E, "Pad", emit_name(E, n->in[0]), ints_or(E, n, 1, AT_PADS), put_f(E, t, node_float(n, AT_VALUE_F, 0))));
}

void emit_shape(Emit *E, const Node *n) {
    emit_result(E, n->out[0], PUT(E, "Shape", emit_name(E, n->in[0])));
}

void emit_range(Emit *E, const Node *n) {
    emit_result(E, n->out[0], PUT(E, "Range", emit_name(E, n->in[0]), emit_name(E, n->in[1]), emit_name(E, n->in[2])));
}

void emit_nonzero(Emit *E, const Node *n) {
    emit_result(E, n->out[0], PUT(E, "NonZero", emit_name(E, n->in[0])));
}
