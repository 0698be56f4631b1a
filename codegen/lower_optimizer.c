/* lower_optimizer.c: AdamW and SGD, one pass over parameter, gradient and state. */
#include "codegen/lower.h"

static Ex hyper_at(Kern *K, Node *n, int operand, int i) {
    Index at = index_one(n->in[operand]->dims[0], ex_i(K, i));
    return elem(K, n->in[operand], &at);
}

/* a + (b - a)*w is not what the reference does: keep its form, beta*old + (1-beta)*x. */
static Ex average(Kern *K, LType t, double beta, Ex old, Ex x) {
    return ex_add(K, ex_mul(K, ex_f(K, t, beta), old), ex_mul(K, ex_f(K, t, 1 - beta), x));
}

static void adamw_body(Kern *K, const Index *at, Sinks *out, void *ctx) {
    Node *n = ctx;
    LType t = value_ltype(n->in[0]);
    double beta1 = node_float(n, AT_BETA1, 0.9), beta2 = node_float(n, AT_BETA2, 0.999);
    double eps = node_float(n, AT_EPS, 1e-8), decay = node_float(n, AT_WEIGHT_DECAY, 0);
    Ex lr = hyper_at(K, n, 4, 0), fix1 = hyper_at(K, n, 4, 1), fix2 = hyper_at(K, n, 4, 2),
       scale = hyper_at(K, n, 4, 3);
    Ex g = ex_mul(K, elem(K, n->in[1], at), scale);
    Ex m = average(K, t, beta1, elem(K, n->in[2], at), g);
    Ex v = average(K, t, beta2, elem(K, n->in[3], at), ex_mul(K, g, g));
    Ex keep = ex_2(K, L_SUB, ex_f(K, t, 1), ex_mul(K, lr, ex_f(K, t, decay)));
    Ex root = ex_add(K, ex_1(K, L_SQRT, ex_mul(K, v, fix2)), ex_f(K, t, eps));
    Ex step = ex_2(K, L_DIV, ex_mul(K, ex_mul(K, lr, fix1), m), root);
    Ex p = ex_2(K, L_SUB, ex_mul(K, elem(K, n->in[0], at), keep), step);
    sink_add(K, out, n->out[0], at, p);
    sink_add(K, out, n->out[1], at, m);
    sink_add(K, out, n->out[2], at, v);
}

static void sgd_body(Kern *K, const Index *at, Sinks *out, void *ctx) {
    Node *n = ctx;
    LType t = value_ltype(n->in[0]);
    double momentum = node_float(n, AT_MOMENTUM, 0), decay = node_float(n, AT_WEIGHT_DECAY, 0);
    Ex lr = hyper_at(K, n, 2, 0), step = ex_mul(K, elem(K, n->in[1], at), hyper_at(K, n, 2, 3));
    if (n->nin > 3 && n->in[3])
        step = ex_add(K, ex_mul(K, ex_f(K, t, momentum), elem(K, n->in[3], at)), step);
    Ex keep = ex_2(K, L_SUB, ex_f(K, t, 1), ex_mul(K, lr, ex_f(K, t, decay)));
    Ex p = ex_2(K, L_SUB, ex_mul(K, elem(K, n->in[0], at), keep), ex_mul(K, lr, step));
    sink_add(K, out, n->out[0], at, p);
    if (n->nout > 1)
        sink_add(K, out, n->out[1], at, step);
}

void lower_optimizer(Lower *L, int kernel, Node *n) {
    const Value *p = n->in[0];
    map_run(L, kernel, NULL, p->rank, p->dims, n->op == OP_ADAMW ? adamw_body : sgd_body, n);
}
