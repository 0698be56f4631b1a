/* grad_elementwise.c: gradients of the elementwise ops. Letters: x, y operands, z the result, g its
 * cotangent.
 *
 * Where a derivative does not exist, the rule is PyTorch's, since exported models were trained
 * there: ties of min and max share half and half, Relu is 0 at 0, Clip is 1 at its bounds, |x| is 0
 * at 0. sqrt at 0 is the exception: PyTorch's infinity makes 0 * inf = NaN of every norm of a zero
 * vector, so the subgradient 0 is taken (as torch.linalg.vector_norm does). */
#include <string.h>

#include "passes/grad.h"

/* ---- one operand ---- */

void grad_neg(Grad *G, Node *n, Value *const *dout) {
    grad_add(G, n->in[0], g_un(G, OP_NEG, dout[0]));
}

void grad_abs(Grad *G, Node *n, Value *const *dout) {
    grad_add(G, n->in[0], g_mul(G, dout[0], g_un(G, OP_SIGN, n->in[0])));
}

void grad_exp(Grad *G, Node *n, Value *const *dout) {
    grad_add(G, n->in[0], g_mul(G, dout[0], n->out[0]));
}

void grad_log(Grad *G, Node *n, Value *const *dout) {
    grad_add(G, n->in[0], g_div(G, dout[0], n->in[0]));
}

/* x is something plus a positive constant, as under every norm's root: 0 is out of the question. (A
 * sum of squares is what stands there; should it ever be negative, the root is NaN already.) */
static bool kept_from_zero(const Value *x) {
    if (x->def->op != OP_ADD)
        return false;
    for (int i = 0; i < 2; i++) {
        const Tensor *t = value_const(x->def->in[i]);
        if (t && tensor_count(t) == 1 && tensor_get_f(t, 0) > 0)
            return true;
    }
    return false;
}

void grad_sqrt(Grad *G, Node *n, Value *const *dout) {
    Value *z = n->out[0], *half = g_scale(G, dout[0], 0.5);
    if (kept_from_zero(n->in[0])) {
        grad_add(G, n->in[0], g_div(G, half, z));
        return;
    }
    Value *at_zero = op_binary(&G->b, OP_EQ, z, g_scalar(G, z, 0));
    Value *safe = op_where(&G->b, at_zero, g_scalar(G, z, 1), z);
    grad_add(G, n->in[0], op_where(&G->b, at_zero, g_scalar(G, z, 0), g_div(G, half, safe)));
}

void grad_recip(Grad *G, Node *n, Value *const *dout) {
    Value *z = n->out[0];
    grad_add(G, n->in[0], g_un(G, OP_NEG, g_mul(G, dout[0], g_mul(G, z, z))));
}

void grad_sigmoid(Grad *G, Node *n, Value *const *dout) {
    Value *z = n->out[0], *rest = g_sub(G, g_scalar(G, z, 1), z);
    grad_add(G, n->in[0], g_mul(G, dout[0], g_mul(G, z, rest)));
}

void grad_tanh(Grad *G, Node *n, Value *const *dout) {
    Value *z = n->out[0], *rest = g_sub(G, g_scalar(G, z, 1), g_mul(G, z, z));
    grad_add(G, n->in[0], g_mul(G, dout[0], rest));
}

void grad_erf(Grad *G, Node *n, Value *const *dout) {
    Value *x = n->in[0], *bell = g_un(G, OP_EXP, g_un(G, OP_NEG, g_mul(G, x, x)));
    grad_add(G, x, g_mul(G, dout[0], g_scale(G, bell, 1.1283791670955126))); /* 2/sqrt(pi) */
}

void grad_softplus(Grad *G, Node *n, Value *const *dout) {
    grad_add(G, n->in[0], g_mul(G, dout[0], g_un(G, OP_SIGMOID, n->in[0])));
}

void grad_sin(Grad *G, Node *n, Value *const *dout) {
    grad_add(G, n->in[0], g_mul(G, dout[0], g_un(G, OP_COS, n->in[0])));
}

void grad_cos(Grad *G, Node *n, Value *const *dout) {
    grad_add(G, n->in[0], g_un(G, OP_NEG, g_mul(G, dout[0], g_un(G, OP_SIN, n->in[0]))));
}

/* Reached only where select_params found a straight-through estimator: the gradient of the
 * identity. */
void grad_sign(Grad *G, Node *n, Value *const *dout) {
    grad_add(G, n->in[0], dout[0]);
}

/* Between float types the gradient is cast back (grad_add does it); what passes an integer is
 * constant. */
void grad_cast(Grad *G, Node *n, Value *const *dout) {
    grad_add(G, n->in[0], dout[0]);
}

/* ---- two operands ---- */

static void add_folded(Grad *G, Value *v, Value *c) {
    grad_add(G, v, grad_unbroadcast(G, c, v));
}

void grad_plus(Grad *G, Node *n, Value *const *dout) {
    for (int i = 0; i < 2; i++)
        if (grad_needs(G, n->in[i]))
            add_folded(G, n->in[i], dout[0]);
}

void grad_sub(Grad *G, Node *n, Value *const *dout) {
    if (grad_needs(G, n->in[0]))
        add_folded(G, n->in[0], dout[0]);
    if (!strcmp(node_str(n, AT_MODE, ""), "detached"))
        return;
    if (grad_needs(G, n->in[1])) /* summed first: the smaller tensor is negated */
        grad_add(G, n->in[1], g_un(G, OP_NEG, grad_unbroadcast(G, dout[0], n->in[1])));
}

void grad_mul(Grad *G, Node *n, Value *const *dout) {
    for (int i = 0; i < 2; i++)
        if (grad_needs(G, n->in[i]))
            add_folded(G, n->in[i], g_mul(G, dout[0], n->in[1 - i]));
}

void grad_div(Grad *G, Node *n, Value *const *dout) {
    Value *by_y = g_div(G, dout[0], n->in[1]);
    if (grad_needs(G, n->in[0]))
        add_folded(G, n->in[0], by_y);
    if (grad_needs(G, n->in[1]))
        add_folded(G, n->in[1], g_un(G, OP_NEG, g_mul(G, by_y, n->out[0])));
}

/* z = x - q y with an integer quotient q, constant between its jumps. */
void grad_mod(Grad *G, Node *n, Value *const *dout) {
    if (grad_needs(G, n->in[0]))
        add_folded(G, n->in[0], dout[0]);
    if (!grad_needs(G, n->in[1]))
        return;
    Value *q = g_un(G, OP_ROUND, g_div(G, g_sub(G, n->in[0], n->out[0]), n->in[1]));
    add_folded(G, n->in[1], g_un(G, OP_NEG, g_mul(G, dout[0], q)));
}

/* Every element of a constant is k. */
static bool is_splat(const Value *v, double *k) {
    while (v->def->op == OP_EXPAND || v->def->op == OP_RESHAPE)
        v = v->def->in[0];
    const Tensor *t = value_const(v);
    int64_t count = t ? tensor_count(t) : 0;
    if (count < 1)
        return false;
    *k = tensor_get_f(t, 0);
    for (int64_t i = 1; i < count; i++)
        if (tensor_get_f(t, i) != *k)
            return false;
    return true;
}

/* d x^k / dx = k x^(k-1), spelled without pow where k is small. */
static Value *pow_slope(Grad *G, Value *x, Value *y, Value *z) {
    double k;
    if (is_splat(y, &k)) {
        if (k == 2)
            return g_scale(G, x, 2);
        if (k == 3)
            return g_scale(G, g_mul(G, x, x), 3);
        if (k == -1)
            return g_un(G, OP_NEG, g_mul(G, z, z));
        return g_scale(G, op_binary(&G->b, OP_POW, x, g_scalar(G, x, k - 1)), k);
    }
    Value *one = g_scalar(G, y, 1), *zero = g_scalar(G, x, 0);
    Value *slope =
        g_mul(G, op_cast(&G->b, y, x->dtype), op_binary(&G->b, OP_POW, x, g_sub(G, y, one)));
    return op_where(&G->b, op_binary(&G->b, OP_EQ, y, g_scalar(G, y, 0)), zero, slope);
}

void grad_pow(Grad *G, Node *n, Value *const *dout) {
    Value *x = n->in[0], *y = n->in[1], *z = n->out[0];
    double k;
    if (grad_needs(G, x)) {
        if (is_splat(y, &k) && (k == 0 || k == 1))
            add_folded(G, x, k == 1 && same_dims(dout[0], z) ? dout[0] : g_scale(G, dout[0], k));
        else
            add_folded(G, x, g_mul(G, dout[0], pow_slope(G, x, y, z)));
    }
    if (!grad_needs(G, y))
        return;
    /* z log x, and 0 where x is 0 (x^y is flat in y there) */
    Value *at_zero = op_binary(&G->b, OP_EQ, x, g_scalar(G, x, 0));
    Value *log = g_un(G, OP_LOG, op_where(&G->b, at_zero, g_scalar(G, x, 1), x));
    Value *slope = op_where(&G->b, at_zero, g_scalar(G, z, 0), g_mul(G, z, log));
    add_folded(G, y, g_mul(G, dout[0], slope));
}

/* What happens where both operands of min or max are equal: the share of the cotangent that operand
 * `i` gets. Against a constant it is the user's op that decides: Clip passes at its bounds, as do
 * the Elu family's exponentials; Relu and the Hard family do not; Max and Min of two tensors share.
 */
static double tie_share(const Node *n, int i) {
    static const struct {
        const char *op_type;
        double share;
    } known[] = {{"Clip", 1}, {"Elu", 1},         {"Selu", 1},     {"Celu", 1},
                 {"Relu", 0}, {"HardSigmoid", 0}, {"HardSwish", 0}};
    double ignored;
    if (!n->src || !is_splat(n->in[1 - i], &ignored))
        return 0.5;
    for (int k = 0; k < COUNT_OF(known); k++)
        if (!strcmp(n->src->op_type, known[k].op_type))
            return known[k].share;
    return 0.5;
}

void grad_minmax(Grad *G, Node *n, Value *const *dout) {
    for (int i = 0; i < 2; i++) {
        Value *x = n->in[i], *y = n->in[1 - i];
        if (!grad_needs(G, x))
            continue;
        Value *zero = g_scalar(G, x, 0);
        double share = tie_share(n, i);
        Value *lo = n->op == OP_MAX ? y : x, *hi = n->op == OP_MAX ? x : y;
        Value *wins = op_binary(&G->b, share == 1 ? OP_LE : OP_LT, lo, hi);
        Value *c = op_where(&G->b, wins, dout[0], zero);
        if (share == 0.5) {
            Value *tie = op_binary(&G->b, OP_EQ, x, y);
            c = op_where(&G->b, tie, g_scale(G, dout[0], 0.5), c);
        }
        add_folded(G, x, c);
    }
}

/* The branch not taken gets 0 by selection, not by multiplication: what it computed may be
 * infinite. */
void grad_where(Grad *G, Node *n, Value *const *dout) {
    Value *cond = n->in[0], *zero = g_scalar(G, dout[0], 0);
    if (grad_needs(G, n->in[1]))
        add_folded(G, n->in[1], op_where(&G->b, cond, dout[0], zero));
    if (grad_needs(G, n->in[2]))
        add_folded(G, n->in[2], op_where(&G->b, cond, zero, dout[0]));
}
