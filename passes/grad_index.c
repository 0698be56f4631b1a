/* grad_index.c: gradients of ops that read or write at indices. What was gathered is scattered and
 * added, what was scattered is gathered. Indices are data: they get nothing. */
#include <stdlib.h>
#include <string.h>

#include "passes/grad.h"

static Value *scatter_add_elements(Grad *G, Value *like, Value *idx, Value *c, int64_t axis) {
    Value *in[3] = {g_zeros(G, like), idx, c};
    Attr a[2] = {attr_i(AT_AXIS, axis), attr_s(AT_REDUCTION, "add")};
    return g_node1(G, OP_SCATTER_ELEMENTS, in, 3, a, 2);
}

/* The values of top-k are a gather along the axis; the k indices of a row are distinct. */
void grad_topk(Grad *G, Node *n, Value *const *dout) {
    if (dout[0])
        grad_add(G, n->in[0],
                 scatter_add_elements(G, n->in[0], n->out[1], dout[0], node_int(n, AT_AXIS, -1)));
}

/* The offsets of the dispatch whose row_expert this is, or NULL. */
static Value *offsets_of_row_expert(const Value *idx) {
    while (idx->def->op == OP_RESHAPE && idx->def->in[0]->rank == 1 && idx->rank == 1)
        idx = idx->def->in[0];
    return idx->def->op == OP_DISPATCH && idx->index == 3 ? idx->def->out[0] : NULL;
}

void grad_gather(Grad *G, Node *n, Value *const *dout) {
    Value *x = n->in[0], *idx = n->in[1], *c = dout[0];
    int axis = axis_of(node_int(n, AT_AXIS, 0), x->rank);
    Value *offsets = axis == 0 ? offsets_of_row_expert(idx) : NULL;
    const Tensor *t = value_const(idx);
    if (offsets) { /* an expert's own vector, by row: its rows lie side by side */
        Value *in[3] = {c, offsets, idx};
        c = g_node1(G, OP_SEGMENT_SUM, in, 3, NULL, 0);
    } else if (t && tensor_count(t) == 1) { /* one entry picked: zeros around it */
        int64_t at = tensor_get_i(t, 0), size = x->dims[axis], dims[MAX_RANK],
                pads[2 * MAX_RANK] = {0};
        at = at < 0 ? at + size : at;
        memcpy(dims, x->dims, sizeof dims);
        dims[axis] = 1;
        c = op_reshape(&G->b, c, x->rank, dims);
        pads[axis] = at;
        pads[x->rank + axis] = size - 1 - at;
        Attr a = attr_ints(AT_PADS, pads, 2 * x->rank);
        c = size == 1 ? c : g_node1(G, OP_PAD, &c, 1, &a, 1);
    } else {
        Value *in[2] = {c, idx};
        Attr a[2] = {attr_i(AT_AXIS, axis), attr_ints(AT_DIMS, x->dims, x->rank)};
        c = g_node1(G, OP_SCATTER_ADD, in, 2, a, 2);
    }
    grad_add(G, x, c);
}

void grad_scatter_add(Grad *G, Node *n, Value *const *dout) {
    int axis = axis_of(node_int(n, AT_AXIS, 0), dout[0]->rank);
    grad_add(G, n->in[0], op_gather(&G->b, dout[0], n->in[1], axis));
}

void grad_gather_elements(Grad *G, Node *n, Value *const *dout) {
    grad_add(G, n->in[0],
             scatter_add_elements(G, n->in[0], n->in[1], dout[0], node_int(n, AT_AXIS, 0)));
}

/* Indices idx[b…, m…, k] with batch dims b, spelled in full: [b…, m…, len(b) + k]. */
static Value *full_indices(Grad *G, Value *idx, int batch) {
    if (!batch)
        return idx;
    Value *parts[MAX_RANK + 1];
    int64_t dims[MAX_RANK];
    memcpy(dims, idx->dims, sizeof dims);
    dims[idx->rank - 1] = 1;
    for (int b = 0; b < batch; b++) {
        int64_t size = idx->dims[b], shape[MAX_RANK];
        int64_t *iota = ARENA_ARRAY(&G->g->arena, int64_t, size ? size : 1);
        for (int64_t i = 0; i < size; i++)
            iota[i] = i;
        for (int i = 0; i < idx->rank; i++)
            shape[i] = i == b ? size : 1;
        Value *v = op_reshape(&G->b, op_const_ints(&G->b, iota, (int)size), idx->rank, shape);
        parts[b] = op_cast(&G->b, op_expand(&G->b, v, idx->rank, dims), idx->dtype);
    }
    parts[batch] = idx;
    return op_concat(&G->b, parts, batch + 1, idx->rank - 1);
}

void grad_gather_nd(Grad *G, Node *n, Value *const *dout) {
    Value *x = n->in[0];
    Value *in[3] = {g_zeros(G, x), full_indices(G, n->in[1], (int)node_int(n, AT_BATCH_DIMS, 0)),
                    dout[0]};
    Attr a = attr_s(AT_REDUCTION, "add");
    grad_add(G, x, g_node1(G, OP_SCATTER_ND, in, 3, &a, 1));
}

static bool adds(const Node *n) {
    return !strcmp(node_str(n, AT_REDUCTION, "none"), "add");
}

/* "none": what was overwritten has no part in the result. (Equal indices with "none" are undefined
 * in ONNX.) */
void grad_scatter_elements(Grad *G, Node *n, Value *const *dout) {
    Value *data = n->in[0], *idx = n->in[1], *upd = n->in[2];
    Attr axis = attr_i(AT_AXIS, node_int(n, AT_AXIS, 0));
    if (grad_needs(G, data)) {
        Value *in[3] = {dout[0], idx, g_zeros(G, upd)};
        grad_add(G, data, adds(n) ? dout[0] : g_node1(G, OP_SCATTER_ELEMENTS, in, 3, &axis, 1));
    }
    if (grad_needs(G, upd)) {
        Value *in[2] = {dout[0], idx};
        grad_add(G, upd, g_node1(G, OP_GATHER_ELEMENTS, in, 2, &axis, 1));
    }
}

void grad_scatter_nd(Grad *G, Node *n, Value *const *dout) {
    Value *data = n->in[0], *idx = n->in[1], *upd = n->in[2];
    if (grad_needs(G, data)) {
        Value *in[3] = {dout[0], idx, g_zeros(G, upd)};
        grad_add(G, data, adds(n) ? dout[0] : g_node1(G, OP_SCATTER_ND, in, 3, NULL, 0));
    }
    if (grad_needs(G, upd)) {
        Value *in[2] = {dout[0], idx};
        grad_add(G, upd, g_node1(G, OP_GATHER_ND, in, 2, NULL, 0));
    }
}
