/* onnx_op_reduce.c: reductions, softmax, matrix products and the classification losses. */
#include <math.h>
#include <string.h>

#include "frontend/onnx_ops.h"

/* Number of elements that a reduction over `axes` adds up, as a value of x's type. */
static Value *reduced_count(OpCall *c, Value *x, const int64_t *axes, int n) {
    double known = 1;
    Value *open = NULL;
    for (int i = 0; i < n; i++) {
        if (x->dims[axes[i]] >= 0) {
            known *= (double)x->dims[axes[i]];
            continue;
        }
        Value *size = em_cast(c, em_size0(c, x, (int)axes[i]), x->dtype);
        open = open ? em_binary(c, OP_MUL, open, size) : size;
    }
    return open ? em_scale(c, open, known) : em_like(c, x, known);
}

Value *em_mean(OpCall *c, Value *x, const int64_t *axes, int n, bool keep) {
    return em_binary(c, OP_DIV, em_reduce(c, OP_REDUCE_SUM, x, axes, n, keep),
                     reduced_count(c, x, axes, n));
}

static Value *drop_axes(OpCall *c, Value *x, const int64_t *axes, int n) {
    ShapeOf s = {0};
    for (int i = 0; i < x->rank; i++) {
        bool drop = false;
        for (int k = 0; k < n; k++)
            drop |= axes[k] == i;
        if (!drop)
            shape_add_axis(c, &s, x, i);
    }
    return em_view(c, x, &s);
}

/* max + log sum exp(x - max); a maximum that is infinite is left out of the shift. */
static Value *log_sum_exp(OpCall *c, Value *x, const int64_t *axes, int n, bool keep) {
    Value *m = em_reduce(c, OP_REDUCE_MAX, x, axes, n, true);
    m = em_where(c, em_unary(c, OP_ISINF, m), em_like(c, m, 0), m);
    Value *e = em_unary(c, OP_EXP, em_binary(c, OP_SUB, x, m));
    Value *r =
        em_binary(c, OP_ADD, em_unary(c, OP_LOG, em_reduce(c, OP_REDUCE_SUM, e, axes, n, true)), m);
    return keep ? r : drop_axes(c, r, axes, n);
}

/* As u8, whose least and greatest are what nothing at all reduces to: false and true. */
static Value *reduce_bool(OpCall *c, Op op, Value *x, const int64_t *axes, int n, bool keep) {
    return em_cast(c, em_reduce(c, op, em_cast(c, x, DT_U8), axes, n, keep), DT_BOOL);
}

static Value *reduce_kind(OpCall *c, int kind, Value *x, const int64_t *axes, int n, bool keep) {
    if (x->dtype == DT_BOOL && (kind == RED_MAX || kind == RED_MIN))
        return reduce_bool(c, kind == RED_MAX ? OP_REDUCE_MAX : OP_REDUCE_MIN, x, axes, n, keep);
    switch (kind) {
    case RED_MEAN:
        return em_mean(c, x, axes, n, keep);
    case RED_MAX:
        return em_reduce(c, OP_REDUCE_MAX, x, axes, n, keep);
    case RED_MIN:
        return em_reduce(c, OP_REDUCE_MIN, x, axes, n, keep);
    case RED_PROD:
        return em_reduce(c, OP_REDUCE_PROD, x, axes, n, keep);
    case RED_L1:
        return em_reduce(c, OP_REDUCE_SUM, em_unary(c, OP_ABS, x), axes, n, keep);
    case RED_L2:
        return em_unary(c, OP_SQRT, em_reduce(c, OP_REDUCE_SUM, em_square(c, x), axes, n, keep));
    case RED_LOG_SUM:
        return em_unary(c, OP_LOG, em_reduce(c, OP_REDUCE_SUM, x, axes, n, keep));
    case RED_LOG_SUM_EXP:
        return log_sum_exp(c, x, axes, n, keep);
    case RED_SUM_SQUARE:
        return em_reduce(c, OP_REDUCE_SUM, em_square(c, x), axes, n, keep);
    default:
        return em_reduce(c, OP_REDUCE_SUM, x, axes, n, keep);
    }
}

/* Axes became an operand with opset 13 (sum) or 18 (the others). */
void read_reduce(OpCall *c) {
    Value *x = c->in[0];
    int rank = em_rank(c, x), kind = c->row->arg;
    bool operand = c->opset >= (kind == RED_SUM ? 13 : 18), keep = call_int(c, "keepdims", 1) != 0;
    int64_t axes[64];
    int n = em_axes(c, operand ? 1 : -1, operand ? NULL : "axes", rank, axes);
    if (n <= 0) {
        if (call_int(c, "noop_with_empty_axes", 0)) {
            if (kind != RED_SUM && kind != RED_MEAN && kind != RED_MAX && kind != RED_MIN &&
                kind != RED_PROD)
                x = reduce_kind(c, kind, x, axes, 0, true);
            c->out[0] = x;
            return;
        }
        for (n = 0; n < rank; n++)
            axes[n] = n;
    }
    c->out[0] = reduce_kind(c, kind, x, axes, n, keep);
}

void read_cumsum(OpCall *c) {
    int64_t axis;
    int rank = em_rank(c, c->in[0]);
    if (em_known_ints(c, c->in[1], &axis, 1) != 1)
        call_fail(c, "the axis depends on data; it must be constant");
    c->out[0] = EM(c, OP_CUMSUM, &c->in[0], 1, A_INT(AXIS, em_axis(c, axis, rank)),
                   A_INT(EXCLUSIVE, call_int(c, "exclusive", 0)),
                   A_INT(REVERSE, call_int(c, "reverse", 0)));
}

/* Before opset 13 the axes from `axis` on were one. */
void read_softmax(OpCall *c) {
    Value *x = c->in[0], *y = x;
    int rank = em_rank(c, x), axis = em_axis(c, call_int(c, "axis", c->opset < 13 ? 1 : -1), rank);
    bool flat = c->opset < 13 && axis != rank - 1;
    if (flat) {
        ShapeOf s = {0};
        shape_add_product(c, &s, x, 0, axis);
        shape_add_product(c, &s, x, axis, rank);
        y = em_view(c, x, &s);
    }
    y = EM(c, (Op)c->row->arg, &y, 1, A_INT(AXIS, flat ? 1 : axis));
    if (flat) {
        ShapeOf s = {0};
        shape_add_axes(c, &s, x, 0, rank);
        y = em_view(c, y, &s);
    }
    c->out[0] = y;
}

/* 1 at the first greatest element, 0 elsewhere. */
void read_hardmax(OpCall *c) {
    Value *x = c->in[0], *y = x;
    int rank = em_rank(c, x), axis = em_axis(c, call_int(c, "axis", c->opset < 13 ? 1 : -1), rank);
    ShapeOf flat = {0}, back = {0};
    if (c->opset < 13) {
        shape_add_product(c, &flat, x, 0, axis);
        shape_add_product(c, &flat, x, axis, rank);
        y = em_view(c, x, &flat);
        axis = 1;
    }
    Value *top = EM(c, OP_ARGMAX, &y, 1, A_INT(AXIS, axis), A_INT(KEEPDIMS, 1), A_INT(LARGEST, 1)),
          *at = em_iota(c, y, axis);
    ShapeOf s = {0};
    for (int i = axis; i < y->rank; i++) {
        if (i > axis)
            shape_add(c, &s, 1);
        else
            shape_add_axis(c, &s, at, 0);
    }
    y = em_cast(c, em_binary(c, OP_EQ, top, em_view(c, at, &s)), x->dtype);
    shape_add_axes(c, &back, x, 0, rank);
    c->out[0] = em_view(c, y, &back);
}

void read_matmul(OpCall *c) {
    c->out[0] = em_matmul(c, c->in[0], c->in[1], false, false);
}

void read_gemm(OpCall *c) {
    for (int i = 0; i < 2; i++)
        if (em_rank(c, c->in[i]) != 2)
            call_fail(c, "operand %d has rank %d; expected 2", i, c->in[i]->rank);
    Value *y = em_matmul(c, c->in[0], c->in[1], call_int(c, "transA", 0) != 0,
                         call_int(c, "transB", 0) != 0);
    y = em_scale(c, y, call_float(c, "alpha", 1));
    double beta = call_float(c, "beta", 1);
    if (c->nin > 2 && c->in[2] && beta != 0) {
        if (em_rank(c, c->in[2]) > 2)
            call_fail(c, "operand 2 has rank %d; at most 2 is expected", c->in[2]->rank);
        y = em_binary(c, OP_ADD, y, em_scale(c, c->in[2], beta));
    }
    c->out[0] = y;
}

/* com.microsoft.FusedGemm: an activation over Gemm. */
void read_fused_gemm(OpCall *c) {
    read_gemm(c);
    Value *y = c->out[0];
    const char *act = call_string(c, "activation", "");
    if (!strcmp(act, "Relu"))
        y = em_relu(c, y);
    else if (!strcmp(act, "LeakyRelu"))
        y = em_leaky_relu(c, y, call_float(c, "activation_alpha", 0.01));
    else if (!strcmp(act, "Sigmoid"))
        y = em_unary(c, OP_SIGMOID, y);
    else if (!strcmp(act, "Tanh"))
        y = em_unary(c, OP_TANH, y);
    else if (!strcmp(act, "Softplus"))
        y = em_unary(c, OP_SOFTPLUS, y);
    else if (*act)
        call_fail(c,
                  "activation \"%s\" is not supported; expected Relu, LeakyRelu, Sigmoid, Tanh "
                  "or Softplus",
                  diag_safe(c->im->d, act));
    c->out[0] = y;
}

void read_fused_matmul(OpCall *c) {
    if (call_int(c, "transBatchA", 0) || call_int(c, "transBatchB", 0))
        call_fail(c, "transBatchA and transBatchB are not supported");
    bool ta = call_int(c, "transA", 0) && em_rank(c, c->in[0]) > 1,
         tb = call_int(c, "transB", 0) && em_rank(c, c->in[1]) > 1;
    c->out[0] = em_scale(c, em_matmul(c, c->in[0], c->in[1], ta, tb), call_float(c, "alpha", 1));
}

/* ---- losses: log-probabilities [N,C,d…], labels [N,d…], weights [C] ---- */

static void nll_of(OpCall *c, Value *logp, Value *labels, Value *weights) {
    const char *reduction = call_string(c, "reduction", "mean");
    bool ignores = call_attr(c, "ignore_index") != NULL;
    bool mean = !strcmp(reduction, "mean"), none = !strcmp(reduction, "none");
    if (!mean && !none && strcmp(reduction, "sum") != 0)
        call_fail(c, "reduction \"%s\" is unknown; expected none, sum or mean",
                  diag_safe(c->im->d, reduction));
    if (em_rank(c, logp) != em_rank(c, labels) + 1 || logp->rank < 2)
        call_fail(c, "labels must have the scores' rank less one");
    labels = em_cast(c, labels, DT_I64);
    Value *ignored = NULL;
    if (ignores) { /* their index may lie outside the classes */
        ignored = em_binary(c, OP_EQ, labels, em_i(c, DT_I64, call_int(c, "ignore_index", 0)));
        labels = em_where(c, ignored, em_i(c, DT_I64, 0), labels);
    }
    Value *picked = EM(c, OP_GATHER_ELEMENTS, ((Value *[]){logp, em_insert_axis(c, labels, 1)}), 2,
                       A_INT(AXIS, 1));
    Value *loss = em_unary(c, OP_NEG, em_drop_axis(c, picked, 1)), *w = NULL;
    if (weights)
        w = em_gather(c, weights, labels, 0);
    if (ignored)
        w = em_where(c, ignored, em_like(c, logp, 0), w ? w : em_like(c, logp, 1));
    if (w)
        loss = em_binary(c, OP_MUL, loss, w);
    int64_t axes[MAX_RANK];
    int n = loss->rank;
    for (int i = 0; i < n; i++)
        axes[i] = i;
    if (none) {
        c->out[0] = loss;
        return;
    }
    Value *sum = em_reduce(c, OP_REDUCE_SUM, loss, axes, n, false);
    if (mean) {
        Value *total = w ? em_reduce(c, OP_REDUCE_SUM, w, axes, w->rank, false)
                         : reduced_count(c, loss, axes, n);
        sum = em_binary(c, OP_DIV, sum, total);
    }
    c->out[0] = sum;
}

void read_nll_loss(OpCall *c) {
    nll_of(c, c->in[0], c->in[1], c->nin > 2 ? c->in[2] : NULL);
}

void read_softmax_loss(OpCall *c) {
    if (em_rank(c, c->in[0]) < 2)
        call_fail(c, "scores must have rank 2 or more");
    Value *logp = EM(c, OP_LOG_SOFTMAX, &c->in[0], 1, A_INT(AXIS, 1));
    nll_of(c, logp, c->in[1], c->nin > 2 ? c->in[2] : NULL);
    if (c->nout > 1)
        c->out[1] = logp;
}
