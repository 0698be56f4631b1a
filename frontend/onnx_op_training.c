/* onnx_op_training.c: the optimizers of ai.onnx.preview.training, forward: X_new and states from X,
 * G and states. */
#include <string.h>

#include "frontend/onnx_ops.h"

static Value *axpy(OpCall *c, double a, Value *x, Value *y) {
    return y ? em_binary(c, OP_ADD, em_scale(c, x, a), y) : em_scale(c, x, a);
}

/* `then` where the step count is positive, else `other`. */
static Value *after_first(OpCall *c, Value *t, Value *then, Value *other) {
    return em_where(c, em_binary(c, OP_LT, em_like(c, t, 0), t), then, other);
}

/* 1 - b^t in x's type */
static Value *bias_term(OpCall *c, Value *t, double b, const Value *x) {
    Value *power = em_binary(c, OP_POW, em_f(c, x->dtype, b), em_cast(c, t, x->dtype));
    return em_binary(c, OP_SUB, em_like(c, x, 1), power);
}

static void adagrad(OpCall *c, Value *r, Value *t, Value **s, Value **out) {
    Value *g = axpy(c, call_float(c, "norm_coefficient", 0), s[0], s[1]);
    Value *decay =
        axpy(c, call_float(c, "decay_factor", 0), em_cast(c, t, s[0]->dtype), em_like(c, s[0], 1));
    Value *h = em_binary(c, OP_ADD, s[2], em_square(c, g));
    Value *root =
        em_binary(c, OP_ADD, em_unary(c, OP_SQRT, h), em_like(c, h, call_float(c, "epsilon", 0)));
    Value *rate = em_binary(c, OP_DIV, r, decay);
    out[0] = em_binary(c, OP_SUB, s[0], em_binary(c, OP_DIV, em_binary(c, OP_MUL, rate, g), root));
    out[1] = h;
}

static void adam(OpCall *c, Value *r, Value *t, Value **s, Value **out) {
    double alpha = call_float(c, "alpha", 0.9f), beta = call_float(c, "beta", 0.999f);
    Value *g = axpy(c, call_float(c, "norm_coefficient", 0), s[0], s[1]);
    Value *v = axpy(c, alpha, s[2], em_scale(c, g, 1 - alpha));
    Value *h = axpy(c, beta, s[3], em_scale(c, em_square(c, g), 1 - beta));
    Value *root =
        em_binary(c, OP_ADD, em_unary(c, OP_SQRT, h), em_like(c, h, call_float(c, "epsilon", 0)));
    Value *up = em_binary(c, OP_MUL, r, em_unary(c, OP_SQRT, bias_term(c, t, beta, s[0])));
    Value *one = em_like(c, s[0], 1), *down = after_first(c, t, bias_term(c, t, alpha, s[0]), one);
    Value *rate = em_binary(c, OP_DIV, after_first(c, t, up, r), down);
    Value *x =
        em_binary(c, OP_SUB, s[0], em_binary(c, OP_MUL, rate, em_binary(c, OP_DIV, v, root)));
    out[0] = em_scale(c, x, 1 - call_float(c, "norm_coefficient_post", 0));
    out[1] = v;
    out[2] = h;
}

static void momentum(OpCall *c, Value *r, Value *t, Value **s, Value **out) {
    double alpha = call_float(c, "alpha", 0);
    const char *mode = call_string(c, "mode", "standard");
    bool nesterov = !strcmp(mode, "nesterov");
    if (!nesterov && strcmp(mode, "standard") != 0)
        call_fail(c, "mode \"%s\" is unknown; expected standard or nesterov",
                  diag_safe(c->im->d, mode));
    Value *g = axpy(c, call_float(c, "norm_coefficient", 0), s[0], s[1]);
    Value *beta = after_first(c, t, em_like(c, g, call_float(c, "beta", 0)), em_like(c, g, 1));
    Value *v = axpy(c, alpha, s[2], em_binary(c, OP_MUL, beta, g));
    Value *step = nesterov ? axpy(c, alpha, v, g) : v;
    out[0] = em_binary(c, OP_SUB, s[0], em_binary(c, OP_MUL, r, step));
    out[1] = v;
}

/* R, T, then all X, all G, all states of each kind. */
void read_optimizer(OpCall *c) {
    int states = c->row->arg == OPTIM_ADAM ? 2 : 1, kinds = 2 + states;
    int n = (c->nin - 2) / kinds;
    if (c->nin != 2 + n * kinds || n < 1 || c->nout > n * (1 + states))
        call_fail(c, "%d inputs and %d outputs; expected 2 and %d for each tensor, and %d", c->nin,
                  c->nout, kinds, 1 + states);
    for (int i = 0; i < n; i++) {
        Value *s[4], *out[3] = {NULL};
        for (int k = 0; k < kinds; k++)
            s[k] = c->in[2 + k * n + i];
        Value *r = em_cast(c, c->in[0], s[0]->dtype);
        (c->row->arg == OPTIM_ADAM      ? adam
         : c->row->arg == OPTIM_ADAGRAD ? adagrad
                                        : momentum)(c, r, c->in[1], s, out);
        for (int k = 0; k <= states; k++)
            if (k * n + i < c->nout)
                c->out[k * n + i] = out[k];
    }
}

/* Gradient: operands are the values of xs (then of zs, which stay as they are); the result is what
 * y, a value of this graph computed from them, changes by. */
void read_gradient(OpCall *c) {
    const Onnx__AttributeProto *xs = call_attr(c, "xs"), *zs = call_attr(c, "zs");
    const char *y_name = call_string(c, "y", "");
    int n = xs ? (int)xs->n_strings : 0, fixed = zs ? (int)zs->n_strings : 0;
    if (!c->im->limits || !c->im->limits->gradient)
        call_fail(c, "the operator is supported by inspect, run and training only");
    if (n < 1 || n + fixed != c->nin || c->nout > n)
        call_fail(c, "%d inputs and %d outputs do not fit %d names in xs and %d in zs", c->nin,
                  c->nout, n, fixed);
    Value *y = scope_value(c, y_name), **out = ARENA_ARRAY(&c->im->scratch, Value *, n);
    if (!y || !dtype_is_float(y->dtype) || !value_known(y))
        call_fail(c, "y \"%s\" must be a float tensor of known sizes, defined before",
                  diag_safe(c->im->d, y_name));
    for (int i = 0; i < n; i++)
        if (!c->in[i] || !dtype_is_float(c->in[i]->dtype) || !value_known(c->in[i]))
            call_fail(c, "operand %d must be a float tensor of known sizes", i);
    if (!c->im->limits->gradient(c->im->g, y, c->in, n, out, c->im->d))
        call_skip(c);
    for (int i = 0; i < c->nout; i++)
        c->out[i] = out[i];
}
