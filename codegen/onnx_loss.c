/* onnx_loss.c: cross-entropy by rows and its gradient. Letters: R rows, V classes. */
#include "codegen/onnx_put.h"

typedef struct Labels {
    const char *at;      /* i64[R,1]; a class even where the row is ignored */
    const char *ignored; /* bool[R] */
} Labels;

static Labels read_labels(Emit *E, const Node *n) {
    const Value *labels = n->in[1];
    const char *v = emit_as(E, labels, DT_I64),
               *ignored = PUT(E, "Equal", v, put_i(E, node_int(n, AT_IGNORE_INDEX, -100)));
    const char *at = PUT(E, "Where", ignored, put_i(E, 0), v);
    return (Labels){put_reshape(E, at, 2, (int64_t[]){labels->dims[0], 1}), ignored};
}

/* nll = lse - logit of the label, lse = m + log sum exp(x - m). */
void emit_xent(Emit *E, const Node *n) {
    const Value *x = n->in[0];
    DType t = emit_compute_type(x->dtype);
    int64_t axis = 1, rows = x->dims[0];
    const char *logits = emit_as(E, x, t),
               *top = put_reduce(E, "ReduceMax", logits, &axis, 1, true);
    Labels l = read_labels(E, n);
    const char *sum =
        put_reduce(E, "ReduceSum", PUT(E, "Exp", PUT(E, "Sub", logits, top)), &axis, 1, true);
    const char *lse = PUT(E, "Add", PUT(E, "Log", sum), top);
    const char *nll = PUT(E, "Sub", lse, PUT_AXIS(E, "GatherElements", 1, logits, l.at));
    nll = PUT(E, "Where", l.ignored, put_f(E, t, 0), put_reshape(E, nll, 1, &rows));
    emit_result_from(E, n->out[0], nll, t);
    emit_result_from(E, n->out[1], put_reshape(E, lse, 1, &rows), t);
}

/* (softmax - onehot) * g, 0 in ignored rows. */
void emit_xent_grad(Emit *E, const Node *n) {
    const Value *x = n->in[0];
    DType t = emit_compute_type(x->dtype);
    int64_t column[2] = {x->dims[0], 1}, classes = x->dims[1];
    Labels l = read_labels(E, n);
    const char *p = PUT_AXIS(E, "Softmax", 1, emit_as(E, x, t)); /* closer than exp(x - lse) */
    const char *hot =
        put_cast(E, PUT(E, "Equal", l.at, put_iota(E, classes, 1, 0, 1, &classes)), DT_BOOL, t);
    const char *g = PUT(E, "Where", l.ignored, put_f(E, t, 0), emit_as(E, n->in[3], t));
    emit_result_from(E, n->out[0],
                     PUT(E, "Mul", PUT(E, "Sub", p, hot), put_reshape(E, g, 2, column)), t);
}
