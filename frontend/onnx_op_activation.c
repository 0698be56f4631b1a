/* onnx_op_activation.c: activation functions as compositions of the IR's elementwise ops. */
#include <string.h>

#include "frontend/onnx_ops.h"

Value *em_relu(OpCall *c, Value *x) {
    return em_binary(c, OP_MAX, x, em_like(c, x, 0));
}

Value *em_leaky_relu(OpCall *c, Value *x, double alpha) {
    return em_where(c, em_binary(c, OP_LT, x, em_like(c, x, 0)), em_scale(c, x, alpha), x);
}

Value *em_silu(OpCall *c, Value *x, double alpha) {
    return em_binary(c, OP_MUL, x, em_unary(c, OP_SIGMOID, em_scale(c, x, alpha)));
}

/* 0.5 x (1 + erf(x / sqrt 2)) */
Value *em_gelu(OpCall *c, Value *x) {
    Value *e = em_unary(c, OP_ERF, em_scale(c, x, 0.70710678118654752440));
    return em_binary(c, OP_MUL, em_scale(c, x, 0.5), em_binary(c, OP_ADD, e, em_like(c, x, 1)));
}

/* 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) */
Value *em_gelu_tanh(OpCall *c, Value *x) {
    Value *cube = em_binary(c, OP_MUL, em_square(c, x), x);
    Value *inner = em_binary(c, OP_ADD, x, em_scale(c, cube, 0.044715));
    Value *t = em_unary(c, OP_TANH, em_scale(c, inner, 0.79788456080286535588));
    return em_binary(c, OP_MUL, em_scale(c, x, 0.5), em_binary(c, OP_ADD, t, em_like(c, x, 1)));
}

static Value *positive(OpCall *c, Value *x) {
    return em_binary(c, OP_LT, em_like(c, x, 0), x);
}

/* exp(x) - 1, of the negative part only, so that the side not taken does not overflow. */
static Value *expm1_negative(OpCall *c, Value *x) {
    Value *e = em_unary(c, OP_EXP, em_binary(c, OP_MIN, x, em_like(c, x, 0)));
    return em_binary(c, OP_SUB, e, em_like(c, x, 1));
}

static Value *hard_sigmoid(OpCall *c, Value *x, double alpha, double beta) {
    Value *line = em_binary(c, OP_ADD, em_scale(c, x, alpha), em_like(c, x, beta));
    return em_binary(c, OP_MAX, em_like(c, x, 0), em_binary(c, OP_MIN, em_like(c, x, 1), line));
}

static Value *half_exp(OpCall *c, Value *x, Op op) {
    Value *a = em_unary(c, OP_EXP, x), *b = em_unary(c, OP_EXP, em_unary(c, OP_NEG, x));
    return em_scale(c, em_binary(c, op, a, b), 0.5);
}

/* log(x + sqrt(x^2 + d)) */
static Value *log_plus_root(OpCall *c, Value *x, double d) {
    Value *root = em_unary(c, OP_SQRT, em_binary(c, OP_ADD, em_square(c, x), em_like(c, x, d)));
    return em_unary(c, OP_LOG, em_binary(c, OP_ADD, x, root));
}

/* Halves the angle of x = tan a: tan(a/2) = x / (1 + sqrt(1 + x^2)). */
static Value *half_tan(OpCall *c, Value *x) {
    Value *one = em_like(c, x, 1),
          *root = em_unary(c, OP_SQRT, em_binary(c, OP_ADD, em_square(c, x), one));
    return em_binary(c, OP_DIV, x, em_binary(c, OP_ADD, one, root));
}

/* arctan of |x| <= 1: the angle is halved twice, then the series up to x^13 (error below 1e-11). */
static Value *atan_inner(OpCall *c, Value *x) {
    Value *t = half_tan(c, half_tan(c, x)), *square = em_square(c, t),
          *sum = em_like(c, x, 1.0 / 13);
    for (int k = 11; k >= 1; k -= 2)
        sum = em_binary(c, OP_ADD, em_binary(c, OP_MUL, sum, square),
                        em_like(c, x, (k % 4 == 3 ? -1.0 : 1.0) / k));
    return em_scale(c, em_binary(c, OP_MUL, t, sum), 4);
}

/* Beyond 1, arctan x = sign(x) pi/2 - arctan 1/x. */
static Value *atan_any(OpCall *c, Value *x) {
    Value *one = em_like(c, x, 1), *far = em_binary(c, OP_LT, one, em_unary(c, OP_ABS, x)),
          *inverse = em_unary(c, OP_RECIP, em_where(c, far, x, one)),
          *t = atan_inner(c, em_where(c, far, inverse, x)),
          *right = em_scale(c, em_unary(c, OP_SIGN, x), 1.57079632679489661923);
    return em_where(c, far, em_binary(c, OP_SUB, right, t), t);
}

/* arcsin x = 2 arctan(x / (1 + sqrt(1 - x^2))) */
static Value *asin_any(OpCall *c, Value *x) {
    Value *one = em_like(c, x, 1), *low = em_binary(c, OP_SUB, one, x),
          *high = em_binary(c, OP_ADD, one, x),
          *root = em_unary(c, OP_SQRT, em_binary(c, OP_MUL, low, high));
    return em_scale(c, atan_inner(c, em_binary(c, OP_DIV, x, em_binary(c, OP_ADD, one, root))), 2);
}

/* Towards 0 by `bias`, and 0 within lambd of it. */
static Value *shrink(OpCall *c, Value *x, double lambd, double bias) {
    Value *below = em_binary(c, OP_LT, x, em_like(c, x, -lambd)),
          *above = em_binary(c, OP_LT, em_like(c, x, lambd), x);
    Value *up = em_binary(c, OP_ADD, x, em_like(c, x, bias)),
          *down = em_binary(c, OP_SUB, x, em_like(c, x, bias));
    return em_where(c, below, up, em_where(c, above, down, em_like(c, x, 0)));
}

static Value *gelu_by_attr(OpCall *c, Value *x) {
    const char *form = call_string(c, "approximate", "none");
    if (!strcmp(form, "tanh"))
        return em_gelu_tanh(c, x);
    if (strcmp(form, "none") != 0)
        call_fail(c, "approximate is \"%s\"; expected \"none\" or \"tanh\"",
                  diag_safe(c->im->d, form));
    return em_gelu(c, x);
}

void read_activation(OpCall *c) {
    Value *x = c->in[0];
    if (!dtype_is_float(x->dtype) && c->row->arg != ACT_RELU && c->row->arg != ACT_SHRINK)
        call_fail(c, "the operand is %s; expected a float type", dtype_name(x->dtype));
    double alpha;
    switch (c->row->arg) {
    case ACT_RELU:
        c->out[0] = em_relu(c, x);
        break;
    case ACT_LEAKY_RELU:
        c->out[0] = em_leaky_relu(c, x, call_float(c, "alpha", 0.01));
        break;
    case ACT_ELU:
        c->out[0] = em_where(c, positive(c, x), x,
                             em_scale(c, expm1_negative(c, x), call_float(c, "alpha", 1)));
        break;
    case ACT_SELU:
        alpha = call_float(c, "alpha", 1.67326319217681884765625);
        c->out[0] =
            em_scale(c, em_where(c, positive(c, x), x, em_scale(c, expm1_negative(c, x), alpha)),
                     call_float(c, "gamma", 1.05070102214813232421875));
        break;
    case ACT_CELU:
        alpha = call_float(c, "alpha", 1);
        if (alpha == 0)
            call_fail(c, "alpha is 0");
        c->out[0] = em_where(c, positive(c, x), x,
                             em_scale(c, expm1_negative(c, em_scale(c, x, 1 / alpha)), alpha));
        break;
    case ACT_HARD_SIGMOID:
        c->out[0] = hard_sigmoid(c, x, call_float(c, "alpha", 0.2), call_float(c, "beta", 0.5));
        break;
    case ACT_HARD_SWISH:
        c->out[0] = em_binary(c, OP_MUL, x, hard_sigmoid(c, x, 1.0 / 6, 0.5));
        break;
    case ACT_SOFTSIGN:
        c->out[0] =
            em_binary(c, OP_DIV, x, em_binary(c, OP_ADD, em_unary(c, OP_ABS, x), em_like(c, x, 1)));
        break;
    case ACT_THRESHOLDED:
        c->out[0] = em_where(c, em_binary(c, OP_LT, em_like(c, x, call_float(c, "alpha", 1)), x), x,
                             em_like(c, x, 0));
        break;
    case ACT_SWISH:
        c->out[0] = em_silu(c, x, call_float(c, "alpha", 1));
        break;
    case ACT_QUICK_GELU:
        c->out[0] = em_silu(c, x, call_float(c, "alpha", 1.702));
        break;
    case ACT_MISH:
        c->out[0] = em_binary(c, OP_MUL, x, em_unary(c, OP_TANH, em_unary(c, OP_SOFTPLUS, x)));
        break;
    case ACT_GELU:
        c->out[0] = gelu_by_attr(c, x);
        break;
    case ACT_FAST_GELU:
        c->out[0] = em_gelu_tanh(c, c->nin > 1 && c->in[1] ? em_binary(c, OP_ADD, x, c->in[1]) : x);
        break;
    case ACT_TAN:
        c->out[0] = em_binary(c, OP_DIV, em_unary(c, OP_SIN, x), em_unary(c, OP_COS, x));
        break;
    case ACT_SINH:
        c->out[0] = half_exp(c, x, OP_SUB);
        break;
    case ACT_COSH:
        c->out[0] = half_exp(c, x, OP_ADD);
        break;
    case ACT_ASINH: /* log(|x| + sqrt(x^2 + 1)) with x's sign */
        c->out[0] = em_binary(c, OP_MUL, em_unary(c, OP_SIGN, x),
                              log_plus_root(c, em_unary(c, OP_ABS, x), 1));
        break;
    case ACT_ACOSH:
        c->out[0] = log_plus_root(c, x, -1);
        break;
    case ACT_ATANH:
        c->out[0] =
            em_scale(c,
                     em_unary(c, OP_LOG,
                              em_binary(c, OP_DIV, em_binary(c, OP_ADD, em_like(c, x, 1), x),
                                        em_binary(c, OP_SUB, em_like(c, x, 1), x))),
                     0.5);
        break;
    case ACT_ATAN:
        c->out[0] = atan_any(c, x);
        break;
    case ACT_ASIN:
        c->out[0] = asin_any(c, x);
        break;
    case ACT_ACOS:
        c->out[0] = em_binary(c, OP_SUB, em_like(c, x, 1.57079632679489661923), asin_any(c, x));
        break;
    case ACT_SHRINK:
        c->out[0] = shrink(c, x, call_float(c, "lambd", 0.5), call_float(c, "bias", 0));
        break;
    default:
        bug("activation %d", c->row->arg);
    }
}

void read_bias_gelu(OpCall *c) {
    c->out[0] = em_gelu(c, em_binary(c, OP_ADD, c->in[0], c->in[1]));
}

void read_prelu(OpCall *c) {
    Value *x = c->in[0];
    c->out[0] =
        em_where(c, em_binary(c, OP_LT, x, em_like(c, x, 0)), em_binary(c, OP_MUL, x, c->in[1]), x);
}
