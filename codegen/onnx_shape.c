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
    emit_result(E, y,
                value_known(y) ? put_reshape(E, x, y->rank, y->dims)
                               : PUT(E, "Reshape", x, ints_or(E, n, 1, AT_DIMS)));
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
    if (!p || E->name[n->in[0]->id] || !p->stacked || p->only >= 0 ||
        node_ints(n, AT_AXES, &axes) != 1 || axes[0] != 0 || n->out[0]->dims[0] != 1)
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
    const char *in[5] = {x, ints_or(E, n, 1, AT_STARTS), ints_or(E, n, 2, AT_ENDS),
                         ints_or(E, n, 3, AT_AXES), NULL};
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

/* What negative pads crop, as a Slice: not every engine takes negative pads. What remains of pads
 * is >= 0. */
static const char *crop(Emit *E, const char *x, const Value *v, int64_t *pads) {
    int64_t axes[MAX_RANK], starts[MAX_RANK], ends[MAX_RANK];
    int n = 0;
    for (int i = 0; i < v->rank; i++) {
        int64_t *before = &pads[i], *after = &pads[v->rank + i];
        if (*before >= 0 && *after >= 0)
            continue;
        axes[n] = i;
        starts[n] = *before < 0 ? -*before : 0;
        ends[n++] = v->dims[i] + (*after < 0 ? *after : 0);
        *before = *before < 0 ? 0 : *before;
        *after = *after < 0 ? 0 : *after;
    }
    return n ? PUT(E, "Slice", x, put_list(E, starts, n), put_list(E, ends, n),
                   put_list(E, axes, n))
             : x;
}

void emit_pad(Emit *E, const Node *n) {
    const Value *v = n->in[0], *y = n->out[0];
    const char *x = emit_name(E, v), *fill = put_f(E, y->dtype, node_float(n, AT_VALUE_F, 0));
    const int64_t *at;
    int64_t pads[2 * MAX_RANK];
    bool any = false;
    int count = n->nin > 1 && n->in[1] ? 0 : node_ints(n, AT_PADS, &at);
    if (!count) {
        emit_result(E, y, PUT(E, "Pad", x, ints_or(E, n, 1, AT_PADS), fill));
        return;
    }
    memcpy(pads, at, sizeof *at * (size_t)count);
    x = crop(E, x, v, pads);
    for (int i = 0; i < count; i++)
        any |= pads[i] != 0;
    emit_result(E, y, any ? PUT(E, "Pad", x, put_list(E, pads, count), fill) : x);
}

void emit_shape(Emit *E, const Node *n) {
    emit_result(E, n->out[0], PUT(E, "Shape", emit_name(E, n->in[0])));
}

void emit_range(Emit *E, const Node *n) {
    emit_result(
        E, n->out[0],
        PUT(E, "Range", emit_name(E, n->in[0]), emit_name(E, n->in[1]), emit_name(E, n->in[2])));
}

void emit_nonzero(Emit *E, const Node *n) {
    emit_result(E, n->out[0], PUT(E, "NonZero", emit_name(E, n->in[0])));
}
