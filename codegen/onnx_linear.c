/* onnx_linear.c: matrix products, and convolution's unfold and fold. */
#include <string.h>

#include "codegen/onnx_put.h"
#include "ir/infer_dims.h"

/* x with its last two axes swapped, once a value. */
static const char *swapped(Emit *E, const char *x, int rank) {
    int64_t perm[MAX_RANK];
    void **slot = emit_memo(E, "swap", x);
    if (*slot)
        return *slot;
    for (int i = 0; i < rank; i++)
        perm[i] = i;
    perm[rank - 1] = rank - 2;
    perm[rank - 2] = rank - 1;
    return *slot = (void *)(uintptr_t)put_transpose(E, x, rank, perm);
}

void emit_matmul(Emit *E, const Node *n) {
    const Value *a = n->in[0], *b = n->in[1];
    DType computed = emit_compute_type(n->out[0]->dtype);
    bool trans_a = node_int(n, AT_TRANS_A, 0) && a->rank > 1,
         trans_b = node_int(n, AT_TRANS_B, 0) && b->rank > 1;
    const char *in[2] = {emit_as(E, a, computed), emit_as(E, b, computed)};
    if ((trans_a || trans_b) && a->rank == 2 && b->rank == 2 && dtype_is_float(computed)) {
        Onnx__NodeProto *g = put_node(E, "Gemm", in, 2, 1);
        if (trans_a)
            put_int(E, g, "transA", 1);
        if (trans_b)
            put_int(E, g, "transB", 1);
        emit_result_from(E, n->out[0], g->output[0], computed);
        return;
    }
    if (trans_a)
        in[0] = swapped(E, in[0], a->rank);
    if (trans_b)
        in[1] = swapped(E, in[1], b->rank);
    emit_result_from(E, n->out[0], PUT(E, "MatMul", in[0], in[1]), computed);
}

/* ---- unfold and fold: windows as one table of places in the flattened image ---- */

static int64_t product(const int64_t *v, int n) {
    int64_t p = 1;
    for (int i = 0; i < n; i++)
        p *= v[i];
    return p;
}

/* i64[window * positions]: the image element, or `image` (one past the end) in the padding. */
static const char *window_places(Emit *E, const Window *w, int64_t image) {
    int64_t windows = product(w->kernel, w->spatial), positions = product(w->positions, w->spatial);
    Tensor *t = tensor_new(&E->arena, DT_I64, 1, (int64_t[]){windows * positions});
    for (int64_t k = 0; k < windows; k++)
        for (int64_t p = 0; p < positions; p++) {
            int64_t place = 0, stride = 1, rk = k, rp = p;
            bool inside = true;
            for (int i = w->spatial - 1; i >= 0; i--) {
                int64_t at = rp % w->positions[i] * w->stride[i] - w->before[i] +
                             rk % w->kernel[i] * w->dilation[i];
                inside &= at >= 0 && at < w->size[i];
                place += at * stride;
                stride *= w->size[i];
                rk /= w->kernel[i];
                rp /= w->positions[i];
            }
            tensor_set_i(t, k * positions + p, inside ? place : image);
        }
    return put_tensor(E, t, NULL);
}

void emit_unfold(Emit *E, const Node *n) {
    Dims x = dims_of(n->in[0]), y;
    Window w;
    Fault f;
    if (!shape_unfold(n, &x, &w, &y, &f)) {
        emit_fail(E, n, "%s", f.text);
        return;
    }
    int64_t image = product(w.size, w.spatial);
    const char *flat =
        put_reshape(E, emit_name(E, n->in[0]), 3, (int64_t[]){x.at[0], x.at[1], image});
    flat = PUT(E, "Pad", flat, PUT_LIST(E, 0, 0, 0, 0, 0, 1),
               put_f(E, n->out[0]->dtype, node_float(n, AT_VALUE_F, 0)));
    flat = PUT_AXIS(E, "Gather", 2, flat, window_places(E, &w, image));
    emit_result(E, n->out[0], put_reshape(E, flat, y.rank, y.at));
}

void emit_fold(Emit *E, const Node *n) {
    Dims x = dims_of(n->in[0]), y;
    Window w;
    Fault f;
    if (!shape_fold(n, &x, &w, &y, &f)) {
        emit_fail(E, n, "%s", f.text);
        return;
    }
    int64_t image = product(w.size, w.spatial),
            per = product(w.kernel, w.spatial) * product(w.positions, w.spatial);
    DType computed = emit_compute_type(n->out[0]->dtype);
    const char *flat =
        put_reshape(E, emit_as(E, n->in[0], computed), 3, (int64_t[]){x.at[0], x.at[1], per});
    flat = put_scatter_add(E, flat, window_places(E, &w, image), computed, 3,
                           (int64_t[]){x.at[0], x.at[1], image + 1}, 2, 1, &per);
    flat = put_slice(E, flat, 2, PUT_LIST(E, 0), PUT_LIST(E, image));
    emit_result_from(E, n->out[0], put_reshape(E, flat, y.rank, y.at), computed);
}
