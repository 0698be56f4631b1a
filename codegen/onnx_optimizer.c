/* onnx_optimizer.c: one optimizer step as elementwise ops, and what it takes from the number of
 * steps done.
 *
 * Input "step" counts the steps done before; this run is step t = step + 1. Learning rate and bias
 * corrections are computed in f64 and rounded once, as training does. */
#include <string.h>

#include "codegen/onnx_put.h"

static const double pi = 3.14159265358979323846;

/* ---- from the step to hyper ---- */

static const char *num(Emit *E, double v) {
    return put_f(E, DT_F64, v);
}

/* The share of the schedule that is done before step t, 0..1: (t - 1 - warmup) / (steps - warmup).
 */
static const char *share_done(Emit *E, const char *t, double warmup, double steps) {
    if (steps <= warmup)
        return num(E, 1);
    const char *done = PUT(E, "Div", PUT(E, "Sub", t, num(E, 1 + warmup)), num(E, steps - warmup));
    return PUT(E, "Max", PUT(E, "Min", done, num(E, 1)), num(E, 0));
}

static const char *learning_rate(Emit *E, const char *t) {
    const Recipe *r = E->o->recipe;
    double lr = r->optimizer.lr, warmup = (double)r->schedule.warmup,
           steps = (double)r->schedule.steps;
    const char *rate;
    switch (r->schedule.kind) {
    case SCHED_LINEAR:
        rate = PUT(E, "Mul", PUT(E, "Sub", num(E, 1), share_done(E, t, warmup, steps)), num(E, lr));
        break;
    case SCHED_COSINE:
        rate = PUT(E, "Cos", PUT(E, "Mul", share_done(E, t, warmup, steps), num(E, pi)));
        rate = PUT(E, "Mul", PUT(E, "Add", rate, num(E, 1)), num(E, lr * 0.5));
        break;
    default:
        rate = num(E, lr);
    }
    if (warmup < 1)
        return rate;
    const char *rise = PUT(E, "Div", PUT(E, "Mul", t, num(E, lr)), num(E, warmup));
    return PUT(E, "Where", PUT(E, "LessOrEqual", t, num(E, warmup)), rise, rate);
}

/* 1 / (1 - beta^t) */
static const char *correction(Emit *E, const char *t, double beta) {
    return PUT(E, "Div", num(E, 1), PUT(E, "Sub", num(E, 1), PUT(E, "Pow", num(E, beta), t)));
}

static const char *element(Emit *E, const char *f64) {
    int64_t one = 1;
    return put_reshape(E, put_cast(E, f64, DT_F64, DT_F32), 1, &one);
}

const char *emit_step_next(Emit *E) {
    void **slot = emit_memo(E, "next", "step");
    E->scope = "optimizer/step/";
    if (!*slot)
        *slot = (void *)(uintptr_t)PUT(E, "Add", "step", put_i(E, 1));
    return *slot;
}

const char *emit_hyper(Emit *E) {
    const Recipe *r = E->o->recipe;
    const char *next = emit_step_next(E), *t = put_cast(E, next, DT_I64, DT_F64);
    E->scope = "optimizer/rate/";
    const char *lr = element(E, learning_rate(E, t));
    E->scope = "optimizer/correction/";
    const char *c1 = element(E, correction(E, t, r->optimizer.beta1)),
               *c2 = element(E, correction(E, t, r->optimizer.beta2));
    int64_t rest = 5;
    Tensor *tail = tensor_new(&E->arena, DT_F32, 1, &rest); /* gradient scale 1, then nothing */
    tensor_set_f(tail, 0, 1);
    return PUT_AXIS(E, "Concat", 0, lr, c1, c2, put_tensor(E, tail, NULL));
}

/* hyper's first four, one by one, as [1]. */
static char **hyper_parts(Emit *E, const Value *hyper) {
    const char *x = emit_name(E, hyper), *scope = E->scope;
    void **slot = emit_memo(E, "parts", x);
    if (*slot)
        return *slot;
    E->scope = "optimizer/hyper/";
    Onnx__NodeProto *s =
        put_node(E, "Split", (const char *[]){x, PUT_LIST(E, 1, 1, 1, 1, 4)}, 2, 5);
    *slot = put_int(E, s, "axis", 0)->output;
    E->scope = scope;
    return *slot;
}

/* ---- updates ---- */

/* 1 - lr * decay, shared by all parameters. */
static const char *kept(Emit *E, const char *lr, double decay) {
    void **slot = emit_memo(E, emit_format(E, "kept%.17g", decay), lr);
    const char *scope = E->scope;
    E->scope = "optimizer/decay/";
    if (!*slot)
        *slot = (void *)(uintptr_t)PUT(E, "Sub", put_f(E, DT_F32, 1),
                                       PUT(E, "Mul", lr, put_f(E, DT_F32, decay)));
    E->scope = scope;
    return *slot;
}

/* p * (1 - lr * decay) - move; of rank 0 even though the hyper parts are [1]. */
static void updated(Emit *E, const Node *n, const char *lr, const char *move) {
    double decay = node_float(n, AT_WEIGHT_DECAY, 0);
    const Value *p = n->in[0], *y = n->out[0];
    const char *x = emit_as(E, p, DT_F32);
    if (decay != 0)
        x = PUT(E, "Mul", x, kept(E, lr, decay));
    x = PUT(E, "Sub", x, move);
    if (y->rank == 0)
        x = put_reshape(E, x, 0, NULL);
    emit_result_from(E, y, x, DT_F32);
}

static void state(Emit *E, const Value *v, const char *x) {
    if (v->rank == 0)
        x = put_reshape(E, x, 0, NULL);
    emit_result_from(E, v, x, DT_F32);
}

static const char *scale(Emit *E, const char *x, double by) {
    return PUT(E, "Mul", x, put_f(E, DT_F32, by));
}

/* g * gradient scale; the scale is 1 unless something made hyper anew. */
static const char *scaled_gradient(Emit *E, const Value *g, const Value *hyper) {
    const char *x = emit_as(E, g, DT_F32);
    return emit_is_hyper(E, hyper->def) ? x : PUT(E, "Mul", x, hyper_parts(E, hyper)[3]);
}

/* m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2, p = p (1 - lr wd) - lr (m c1) / (sqrt(v c2) + eps) */
void emit_adamw(Emit *E, const Node *n) {
    double b1 = node_float(n, AT_BETA1, 0.9), b2 = node_float(n, AT_BETA2, 0.999);
    char **h = hyper_parts(E, n->in[4]);
    const char *g = scaled_gradient(E, n->in[1], n->in[4]);
    const char *m = PUT(E, "Add", scale(E, emit_as(E, n->in[2], DT_F32), b1), scale(E, g, 1 - b1));
    const char *v = PUT(E, "Add", scale(E, emit_as(E, n->in[3], DT_F32), b2),
                        scale(E, PUT(E, "Mul", g, g), 1 - b2));
    const char *root = PUT(E, "Sqrt", PUT(E, "Mul", v, h[2]));
    const char *ratio = PUT(E, "Div", PUT(E, "Mul", m, h[1]),
                            PUT(E, "Add", root, put_f(E, DT_F32, node_float(n, AT_EPS, 1e-8))));
    updated(E, n, h[0], PUT(E, "Mul", ratio, h[0]));
    state(E, n->out[1], m);
    state(E, n->out[2], v);
}

/* m = momentum m + g, p = p (1 - lr wd) - lr m; without momentum g itself. */
void emit_sgd(Emit *E, const Node *n) {
    char **h = hyper_parts(E, n->in[2]);
    const char *g = scaled_gradient(E, n->in[1], n->in[2]);
    if (n->nin > 3 && n->in[3]) {
        g = PUT(E, "Add", scale(E, emit_as(E, n->in[3], DT_F32), node_float(n, AT_MOMENTUM, 0)), g);
        state(E, n->out[1], g);
    }
    updated(E, n, h[0], PUT(E, "Mul", g, h[0]));
}
