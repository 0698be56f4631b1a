/* eval_train.c: cross-entropy by rows and the optimizers. */
#include "ir/eval_ops.h"

#include <math.h>

/* log(sum exp x), without overflow. */
static double row_lse(const double *x, int64_t n) {
    double m = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++)
        if (x[i] > m || isnan(x[i]))
            m = x[i];
    if (isinf(m))
        return m;
    for (int64_t i = 0; i < n; i++)
        sum += exp(x[i] - m);
    return m + log(sum);
}

/* False with a diagnostic if a label is neither ignored nor a class. */
static bool labels_fit(Eval *ev, const Node *n, const RTensor *labels, int64_t classes) {
    int64_t ignore = node_int(n, AT_IGNORE_INDEX, -100);
    for (int64_t r = 0; r < labels->count; r++)
        if (labels->i[r] != ignore && (labels->i[r] < 0 || labels->i[r] >= classes))
            return eval_fail(ev, n, EXIT_DATA, "label %lld of row %lld is outside 0..%lld",
                             (long long)labels->i[r], (long long)r, (long long)(classes - 1));
    return true;
}

bool eval_xent(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    const RTensor *logits = in[0], *labels = in[1];
    int64_t ignore = node_int(n, AT_IGNORE_INDEX, -100);
    Dims x[2] = {rtensor_dims(logits), rtensor_dims(labels)}, y[2];
    Fault f;
    if (!shape_rows(n, x, y, &f))
        return eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
    int64_t classes = x[0].at[1];
    if (!labels_fit(ev, n, labels, classes) ||
        !(out[0] = eval_result(ev, n, logits->dtype, &y[0])) ||
        !(out[1] = eval_result(ev, n, logits->dtype, &y[1])))
        return false;
    for (int64_t r = 0; r < labels->count; r++) {
        const double *row = logits->f + r * classes;
        double lse = out[1]->f[r] = row_lse(row, classes);
        out[0]->f[r] = labels->i[r] == ignore ? 0 : lse - row[labels->i[r]];
    }
    return true;
}

/* (softmax - onehot) * g, from the lse at hand; 0 where the label is ignored. */
bool eval_xent_grad(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    const RTensor *logits = in[0], *labels = in[1], *lse = in[2], *g = in[3];
    int64_t ignore = node_int(n, AT_IGNORE_INDEX, -100);
    Dims x[4], y;
    Fault f;
    for (int i = 0; i < 4; i++)
        x[i] = rtensor_dims(in[i]);
    if (!shape_rows(n, x, &y, &f))
        return eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
    int64_t classes = y.at[1];
    if (!labels_fit(ev, n, labels, classes) || !(out[0] = eval_result(ev, n, logits->dtype, &y)))
        return false;
    for (int64_t r = 0; r < y.at[0]; r++)
        for (int64_t j = 0; labels->i[r] != ignore && j < classes; j++) {
            double p = exp(logits->f[r * classes + j] - lse->f[r]);
            out[0]->f[r * classes + j] = (p - (j == labels->i[r])) * g->f[r];
        }
    return true;
}

/* ---- optimizers: hyper = lr, 1/(1-beta1^t), 1/(1-beta2^t), gradient scale; decay is decoupled
 * ---- */

static bool shapes_fit(Eval *ev, const Node *n, RTensor **in) {
    Dims x[5], y[3];
    Fault f;
    for (int i = 0; i < n->nin; i++)
        x[i] = rtensor_dims(in[i]);
    return shape_rows(n, x, y, &f) || eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
}

bool eval_adamw(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    const RTensor *p = in[0], *g = in[1], *m = in[2], *v = in[3];
    const double *hyper = in[4]->f;
    double beta1 = node_float(n, AT_BETA1, 0.9), beta2 = node_float(n, AT_BETA2, 0.999);
    double eps = node_float(n, AT_EPS, 1e-8), decay = node_float(n, AT_WEIGHT_DECAY, 0);
    Dims dims = rtensor_dims(p);
    if (!shapes_fit(ev, n, in))
        return false;
    for (int i = 0; i < 3; i++)
        if (!(out[i] = eval_result(ev, n, in[i ? i + 1 : 0]->dtype, &dims)))
            return false;
    for (int64_t i = 0; i < p->count; i++) {
        double grad = g->f[i] * hyper[3];
        double m1 = out[1]->f[i] = beta1 * m->f[i] + (1 - beta1) * grad;
        double v1 = out[2]->f[i] = beta2 * v->f[i] + (1 - beta2) * grad * grad;
        double decayed = p->f[i] * (1 - hyper[0] * decay);
        out[0]->f[i] = decayed - hyper[0] * (m1 * hyper[1]) / (sqrt(v1 * hyper[2]) + eps);
    }
    return true;
}

bool eval_sgd(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    const RTensor *p = in[0], *g = in[1], *m = n->nin > 3 ? in[3] : NULL;
    const double *hyper = in[2]->f;
    double momentum = node_float(n, AT_MOMENTUM, 0), decay = node_float(n, AT_WEIGHT_DECAY, 0);
    Dims dims = rtensor_dims(p);
    if (!shapes_fit(ev, n, in) || !(out[0] = eval_result(ev, n, p->dtype, &dims)) ||
        (m && !(out[1] = eval_result(ev, n, m->dtype, &dims))))
        return false;
    for (int64_t i = 0; i < p->count; i++) {
        double step = g->f[i] * hyper[3];
        if (m)
            step = out[1]->f[i] = momentum * m->f[i] + step;
        out[0]->f[i] = p->f[i] * (1 - hyper[0] * decay) - hyper[0] * step;
    }
    return true;
}
