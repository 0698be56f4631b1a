/* canonicalise_norm.c: norms of parameters that an exporter computed at export.
 *
 * A cosine router divides its directions by their norms. Folding leaves `sim_matrix / constant`: as
 * long as nothing is trained that is the same, but the constant stays while the parameter moves,
 * and the gradient lacks the norm's part. Where the constant equals the norms of the parameter it
 * divides, the norm is put back as a computation. Where the whole quotient was folded the parameter
 * is gone; that is said, with the way to an export that has it. */
#include <math.h>

#include "ir/tensor.h"
#include "passes/canonicalise.h"

#define NORM_TOLERANCE 1e-5

static const Tensor *stored(const Value *v) {
    const Attr *a =
        v->def->op == OP_PARAM || v->def->op == OP_CONST ? node_attr(v->def, AT_VALUE) : NULL;
    return a && dtype_is_float(a->t->dtype) ? a->t : NULL;
}

/* Euclidean norm of line i along `axis` of a matrix. */
static double line_norm(const Tensor *p, int axis, int64_t i) {
    int64_t n = p->dims[axis], cols = p->dims[1];
    double sum = 0;
    for (int64_t k = 0; k < n; k++) {
        double x = tensor_get_f(p, axis == 0 ? k * cols + i : i * cols + k);
        sum += x * x;
    }
    return sqrt(sum);
}

/* The axis of p whose norms `norms` holds, or -1. */
static int norm_axis(const Tensor *p, const Tensor *norms) {
    for (int axis = 0; axis < 2; axis++) {
        int64_t lines = p->dims[1 - axis];
        if (tensor_count(norms) != lines || p->dims[axis] < 2)
            continue;
        bool same = true;
        for (int64_t i = 0; i < lines && same; i++) {
            double want = line_norm(p, axis, i);
            same = fabs(tensor_get_f(norms, i) - want) <= NORM_TOLERANCE * want && want > 0;
        }
        if (same)
            return axis;
    }
    return -1;
}

/* The node and operand through which the stored divisor enters: below views and a floor. */
static const Value *divisor(Node *n, Node **user, int *operand) {
    *user = n;
    *operand = 1;
    for (int depth = 0; depth < 8; depth++) {
        Node *d = (*user)->in[*operand]->def;
        if (d->op == OP_PARAM || d->op == OP_CONST)
            return d->out[0];
        double floor;
        int next = d->op == OP_EXPAND || d->op == OP_RESHAPE           ? 0
                   : d->op == OP_MAX && canon_scalar(d->in[1], &floor) ? 0
                   : d->op == OP_MAX && canon_scalar(d->in[0], &floor) ? 1
                                                                       : -1;
        if (next < 0)
            return NULL;
        *user = d;
        *operand = next;
    }
    return NULL;
}

bool canon_live_norm(Canon *c, Node *n) {
    Node *user;
    int operand;
    const Tensor *p = n->op == OP_DIV && n->in[0]->def->op == OP_PARAM ? stored(n->in[0]) : NULL;
    if (!p || p->rank != 2)
        return false;
    const Value *d = divisor(n, &user, &operand);
    const Tensor *norms = d ? stored(d) : NULL;
    int axis = norms ? norm_axis(p, norms) : -1;
    if (axis < 0)
        return false;
    Builder b = builder_before(user);
    int64_t axes[] = {axis};
    Value *w = n->in[0], *square = op_binary(&b, OP_MUL, w, w);
    Value *live = op_unary(&b, OP_SQRT, op_reduce(&b, OP_REDUCE_SUM, square, axes, 1, true));
    live = op_reshape(&b, live, d->rank, d->dims);
    diag_note(c->diag,
              "the norm of parameter \"%s\" was a constant of the export (\"%s\"); it is computed "
              "from the parameter again",
              diag_safe(c->diag, param_name(w)), diag_safe(c->diag, d->name ? d->name : "unnamed"));
    canon_set_in(c, user, operand, live);
    return true;
}

/* x / |x| times a stored matrix whose columns all have length 1. */
static bool is_folded_direction(const Node *n) {
    const Tensor *w = n->op == OP_MATMUL && n->in[0]->def->op == OP_DIV ? stored(n->in[1]) : NULL;
    if (!w || w->rank != 2 || n->in[0]->rank != 2 || w->dims[0] < 2 || w->dims[1] < 2)
        return false;
    int axis = node_int(n, AT_TRANS_B, 0) ? 1 : 0;
    for (int64_t i = 0; i < w->dims[1 - axis]; i++)
        if (fabs(line_norm(w, axis, i) - 1) > NORM_TOLERANCE)
            return false;
    return true;
}

void canon_report_folded(const Graph *g, Diag *d) {
    FOR_NODES(n, g) {
        if (!is_folded_direction(n))
            continue;
        diag_note(d,
                  "node \"%s\": the router's directions were normalised at export and are now the "
                  "constant \"%s\": the parameter itself, and what scales it, are not in the file",
                  diag_safe(d, n->src->name),
                  diag_safe(d, n->in[1]->name ? n->in[1]->name : "unnamed"));
        diag_more(d, "export with optimize=False (dynamo), or do_constant_folding=False and "
                     "training=TrainingMode.TRAINING (legacy), to train them");
    }
}
