/* onnx_op_elem.c: elementwise operators. One reader per shape of operator; the table says which Op
 * it makes. */
#include "frontend/onnx_ops.h"

void read_unary(OpCall *c) {
    c->out[0] = em_unary(c, (Op)c->row->arg, c->in[0]);
}

void read_binary(OpCall *c) {
    c->out[0] = em_binary(c, (Op)c->row->arg, c->in[0], c->in[1]);
}

/* a > b is b < a. */
void read_swapped(OpCall *c) {
    c->out[0] = em_binary(c, (Op)c->row->arg, c->in[1], c->in[0]);
}

void read_logic_not(OpCall *c) {
    if (c->in[0]->dtype != DT_BOOL)
        call_fail(c, "the operand is %s; expected bool", dtype_name(c->in[0]->dtype));
    c->out[0] = em_unary(c, OP_NOT, c->in[0]);
}

/* Sum, Min, Max of any number of operands, from the left. */
void read_variadic(OpCall *c) {
    Value *x = c->in[0];
    for (int i = 1; i < c->nin; i++)
        x = em_binary(c, (Op)c->row->arg, x, c->in[i]);
    c->out[0] = x;
}

void read_mean(OpCall *c) {
    Value *x = c->in[0];
    for (int i = 1; i < c->nin; i++)
        x = em_binary(c, OP_ADD, x, c->in[i]);
    c->out[0] = em_binary(c, OP_DIV, x, em_like(c, x, c->nin));
}

void read_where(OpCall *c) {
    c->out[0] = em_where(c, c->in[0], c->in[1], c->in[2]);
}

void read_cast(OpCall *c) {
    int64_t to = call_int(c, "to", 0);
    DType t = to >= 0 && to <= 64 ? dtype_from_onnx((int)to) : DT_NONE;
    if (t == DT_NONE)
        call_fail(c, "a cast to element type %lld is not supported", (long long)to);
    c->out[0] = em_cast(c, c->in[0], t);
}

void read_cast_like(OpCall *c) {
    c->out[0] = em_cast(c, c->in[0], c->in[1]->dtype);
}

/* Bounds are attributes before opset 11, operands since. Min(Max(x, low), high): the upper bound
 * wins when they cross. */
void read_clip(OpCall *c) {
    Value *x = c->in[0], *low = NULL, *high = NULL;
    if (c->opset < 11) {
        low = call_attr(c, "min") ? em_like(c, x, call_float(c, "min", 0)) : NULL;
        high = call_attr(c, "max") ? em_like(c, x, call_float(c, "max", 0)) : NULL;
    } else {
        low = c->nin > 1 ? c->in[1] : NULL;
        high = c->nin > 2 ? c->in[2] : NULL;
    }
    if (low)
        x = em_binary(c, OP_MAX, x, low);
    c->out[0] = high ? em_binary(c, OP_MIN, x, high) : x;
}

void read_identity(OpCall *c) {
    c->out[0] = c->in[0];
    c->out_seq[0] = c->seq[0];
}

/* Nothing is dropped: random nodes are off, and dropout's mean is its input. */
void read_dropout(OpCall *c) {
    bool training = c->opset < 7 && !call_int(c, "is_test", 0);
    if (c->nin > 2 && c->in[2]) {
        const Tensor *t = em_known(c, c->in[2]);
        training = !t || (tensor_count(t) == 1 && tensor_get_i(t, 0));
    }
    double ratio = call_float(c, "ratio", 0.5);
    if (c->nin > 1 && c->in[1]) {
        const Tensor *t = em_known(c, c->in[1]);
        ratio = t && tensor_count(t) == 1 ? tensor_get_f(t, 0) : 0.5;
    }
    if (training && ratio != 0)
        diag_note(c->im->d, "node \"%s\" (Dropout) is in training mode; nothing is dropped here",
                  diag_safe(c->im->d, node_label(c->node)));
    c->out[0] = c->in[0];
    if (c->nout > 1 && c->wanted[1]) {
        ShapeOf s = {0};
        shape_add_axes(c, &s, c->in[0], 0, em_rank(c, c->in[0]));
        c->out[1] = em_spread(c, em_i(c, DT_BOOL, 1), &s);
    }
}

/* The result has the base's type; a mixed pair is computed in the float one. */
void read_pow(OpCall *c) {
    Value *x = c->in[0], *y = c->in[1];
    if (!dtype_is_float(x->dtype) && dtype_is_float(y->dtype))
        c->out[0] = em_cast(c, em_binary(c, OP_POW, em_cast(c, x, y->dtype), y), x->dtype);
    else
        c->out[0] = em_binary(c, OP_POW, x, em_cast(c, y, x->dtype));
}

void read_mod(OpCall *c) {
    bool fmod = call_int(c, "fmod", 0) != 0;
    c->out[0] = EM(c, OP_MOD, ((Value *[]){c->in[0], c->in[1]}), 2, A_INT(FMOD, fmod));
}

void read_isinf(OpCall *c) {
    Value *x = c->in[0], *inf = em_unary(c, OP_ISINF, x), *zero = em_like(c, x, 0);
    if (!call_int(c, "detect_negative", 1))
        inf = em_binary(c, OP_AND, inf, em_binary(c, OP_LT, zero, x));
    if (!call_int(c, "detect_positive", 1))
        inf = em_binary(c, OP_AND, inf, em_binary(c, OP_LT, x, zero));
    c->out[0] = inf;
}
