/* canonicalise_elem.c: neutral arithmetic, powers, guards against NaN, sums under a condition. */
#include "passes/canonicalise.h"

#include <string.h>

static bool same_type(const Value *a, const Value *b) {
    return a->dtype == b->dtype && same_dims(a, b);
}

/* x*1, x/1, x+0, x-0. */
bool canon_neutral(Canon *c, Node *n) {
    double unit = n->op == OP_MUL || n->op == OP_DIV ? 1 : 0;
    if (n->op != OP_MUL && n->op != OP_DIV && n->op != OP_ADD && n->op != OP_SUB)
        return false;
    if (same_type(n->in[0], n->out[0]) && canon_is_splat(n->in[1], unit))
        return canon_replace(c, n->out[0], n->in[0]);
    bool commutes = n->op == OP_MUL || n->op == OP_ADD;
    if (commutes && same_type(n->in[1], n->out[0]) && canon_is_splat(n->in[0], unit))
        return canon_replace(c, n->out[0], n->in[1]);
    return false;
}

/* x^2 -> x*x: exact, cheap, and with a gradient at 0. */
bool canon_pow(Canon *c, Node *n) {
    double e;
    if (n->op != OP_POW || !canon_scalar(n->in[1], &e) || !same_type(n->in[0], n->out[0]))
        return false;
    Builder b = builder_before(n);
    Value *x = n->in[0];
    if (e == 1)
        return canon_replace(c, n->out[0], x);
    if (e == 2)
        return canon_replace(c, n->out[0], op_binary(&b, OP_MUL, x, x));
    if (e == 0.5 && dtype_is_float(x->dtype))
        return canon_replace(c, n->out[0], op_unary(&b, OP_SQRT, x));
    return false;
}

/* where(isnan(softmax x), 0, softmax x) -> softmax x {masked=1}: a row of only -inf gives 0.
 * Differentiating the guarded spelling would give 0 * NaN. */
bool canon_nan_guard(Canon *c, Node *n) {
    if (n->op != OP_WHERE || n->in[0]->def->op != OP_ISNAN || n->in[0]->def->in[0] != n->in[2] ||
        n->in[2]->def->op != OP_SOFTMAX || !canon_is_splat(n->in[1], 0) ||
        !same_type(n->in[2], n->out[0]))
        return false;
    Node *s = n->in[2]->def;
    Builder b = builder_before(n);
    Attr attrs[] = {{.key = AT_AXIS, .i = node_int(s, AT_AXIS, -1)}, {.key = AT_MASKED, .i = 1}};
    return canon_replace(c, n->out[0], op_node(&b, OP_SOFTMAX, s->in, 1, attrs, 2)->out[0]);
}

/* where(c, b + t, b) -> b + where(c, t, -0), c one element: what an If that adds something or not
 * becomes. -0 is what changes no b. Likewise a scatter that adds to b. */
bool canon_branch_sum(Canon *c, Node *n) {
    if (n->op != OP_WHERE || value_count(n->in[0]) != 1 || !dtype_is_float(n->out[0]->dtype) ||
        !same_type(n->in[1], n->out[0]) || !same_type(n->in[2], n->out[0]))
        return false;
    Value *condition = n->in[0], *base = n->in[2];
    Node *sum = n->in[1]->def;
    bool scatter = (sum->op == OP_SCATTER_ND || sum->op == OP_SCATTER_ELEMENTS) &&
                   !strcmp(node_str(sum, AT_REDUCTION, "none"), "add") && sum->in[0] == base;
    int at = scatter              ? 2
             : sum->op != OP_ADD  ? -1
             : sum->in[0] == base ? 1
             : sum->in[1] == base ? 0
                                  : -1;
    if (at < 0 || (!scatter && !same_type(sum->in[at], n->out[0])))
        return false;
    Builder b = builder_before(n);
    Value *added = sum->in[at], *none = op_const_f(&b, added->dtype, -0.0);
    Value *scalar = op_reshape(&b, condition, 0, NULL);
    Value *kept = op_where(&b, scalar, added, none);
    if (!scatter)
        return canon_replace(c, n->out[0], op_binary(&b, OP_ADD, base, kept));
    Value *in[] = {base, sum->in[1], kept};
    return canon_replace(c, n->out[0], op_node(&b, sum->op, in, 3, sum->attrs, sum->nattr)->out[0]);
}
