/* onnx_op_norm.c: normalisations, from reductions and elementwise ops. 16-bit inputs are normalised
 * in f32, as ONNX's stash_type asks. */
#include <string.h>

#include "frontend/onnx_ops.h"

static bool is_half(const Value *x) {
    return x->dtype == DT_F16 || x->dtype == DT_BF16;
}

static int tail_axes(int axis, int rank, int64_t *axes) {
    for (int i = axis; i < rank; i++)
        axes[i - axis] = i;
    return rank - axis;
}

/* 1 / sqrt(v + eps) */
static Value *inverse_root(OpCall *c, Value *v, double eps) {
    return em_unary(c, OP_RECIP, em_unary(c, OP_SQRT, em_binary(c, OP_ADD, v, em_like(c, v, eps))));
}

/* (x - mean) / sqrt(var + eps) over axes; the statistics (kept axes) into *mean and *inv. */
static Value *normalize(OpCall *c, Value *x, const int64_t *axes, int n, double eps, Value **mean,
                        Value **inv) {
    *mean = em_mean(c, x, axes, n, true);
    Value *d = em_binary(c, OP_SUB, x, *mean);
    *inv = inverse_root(c, em_mean(c, em_square(c, d), axes, n, true), eps);
    return em_binary(c, OP_MUL, d, *inv);
}

void read_layer_norm(OpCall *c) {
    Value *x = c->in[0], *mean, *inv;
    int rank = em_rank(c, x), axis = em_axis(c, call_int(c, "axis", -1), rank);
    int64_t axes[MAX_RANK];
    int n = tail_axes(axis, rank, axes);
    Value *wide = is_half(x) && call_int(c, "stash_type", 1) == 1 ? em_cast(c, x, DT_F32) : x;
    Value *y = normalize(c, wide, axes, n, call_float(c, "epsilon", 1e-5f), &mean, &inv);
    y = em_binary(c, OP_MUL, em_cast(c, y, x->dtype), c->in[1]);
    c->out[0] = c->nin > 2 && c->in[2] ? em_binary(c, OP_ADD, y, c->in[2]) : y;
    if (c->nout > 1)
        c->out[1] = mean;
    if (c->nout > 2)
        c->out[2] = inv;
}

/* x / sqrt(mean x^2 + eps) * scale */
static Value *rms(OpCall *c, Value *x, Value *scale, int axis, double eps, Value **inv) {
    int64_t axes[MAX_RANK];
    int n = tail_axes(axis, em_rank(c, x), axes);
    Value *wide = is_half(x) ? em_cast(c, x, DT_F32) : x;
    *inv = inverse_root(c, em_mean(c, em_square(c, wide), axes, n, true), eps);
    Value *y = em_cast(c, em_binary(c, OP_MUL, wide, *inv), scale->dtype);
    return em_binary(c, OP_MUL, y, scale);
}

/* RMSNormalization, and SimplifiedLayerNormalization, its older name in either domain. */
void read_rms_norm(OpCall *c) {
    Value *inv;
    int axis = em_axis(c, call_int(c, "axis", -1), em_rank(c, c->in[0]));
    c->out[0] = rms(c, c->in[0], c->in[1], axis, call_float(c, "epsilon", 1e-5f), &inv);
    if (c->nout > 1)
        c->out[1] = inv;
}

/* Skip(Simplified)LayerNormalization: normalises input + skip (+ bias); output 3 is that sum. */
void read_skip_norm(OpCall *c) {
    bool simplified = c->row->arg != 0;
    Value *x = em_binary(c, OP_ADD, c->in[0], c->in[1]), *gamma = c->in[2], *mean = NULL, *inv;
    Value *beta = !simplified && c->nin > 3 ? c->in[3] : NULL;
    int bias = simplified ? 3 : 4, rank = em_rank(c, x);
    double eps = call_float(c, "epsilon", simplified ? 1e-6f : 1e-12f);
    if (c->nin > bias && c->in[bias])
        x = em_binary(c, OP_ADD, x, c->in[bias]);
    if (simplified) {
        c->out[0] = rms(c, x, gamma, rank - 1, eps, &inv);
    } else {
        int64_t axis = rank - 1;
        Value *y = em_binary(c, OP_MUL, normalize(c, x, &axis, 1, eps, &mean, &inv), gamma);
        c->out[0] = beta ? em_binary(c, OP_ADD, y, beta) : y;
    }
    if (c->nout > 1)
        c->out[1] = mean; /* of a simplified one there is none: an error if it is used */
    if (c->nout > 2)
        c->out[2] = inv;
    if (c->nout > 3)
        c->out[3] = x;
    for (int i = 1; i < 3 && i < c->nout;
         i++) /* ONNX Runtime leaves them empty; exporters name them all the same */
        if (!c->out[i])
            c->out[i] = em_f(c, DT_F32, 0);
}

/* Per-channel values [C] as [1,C,1,…] against x. */
static Value *per_channel(OpCall *c, Value *v, int rank) {
    ShapeOf s = {0};
    shape_add_axis(c, &s, v, 0);
    for (int i = 2; i < rank; i++)
        shape_add(c, &s, 1);
    return em_view(c, v, &s);
}

void read_batch_norm(OpCall *c) {
    Value *x = c->in[0], *v[5] = {x};
    int rank = em_rank(c, x);
    double eps = call_float(c, "epsilon", 1e-5f), momentum = call_float(c, "momentum", 0.9f);
    if (rank < 2)
        call_fail(c, "rank %d; at least 2 is expected", rank);
    for (int i = 1; i < 5; i++) {
        if (em_rank(c, c->in[i]) != 1)
            call_fail(c, "operand %d has rank %d; expected 1", i, c->in[i]->rank);
        v[i] = per_channel(c, c->in[i], rank);
    }
    Value *mean = v[3], *var = v[4];
    if (call_int(c, "training_mode", 0)) {
        int64_t axes[MAX_RANK] = {0};
        for (int i = 2; i < rank; i++)
            axes[i - 1] = i;
        mean = em_mean(c, x, axes, rank - 1, true);
        var = em_mean(c, em_square(c, em_binary(c, OP_SUB, x, mean)), axes, rank - 1, true);
        Value *now[2] = {mean, var};
        for (int i = 0; i < 2 && i + 1 < c->nout;
             i++) { /* running = old * momentum + now * (1 - momentum) */
            Value *flat = em_reshape(c, now[i], 1, (int64_t[]){-1});
            c->out[i + 1] = em_binary(c, OP_ADD, em_scale(c, c->in[3 + i], momentum),
                                      em_scale(c, flat, 1 - momentum));
        }
    }
    Value *y = em_binary(c, OP_MUL, em_binary(c, OP_SUB, x, mean), inverse_root(c, var, eps));
    c->out[0] = em_binary(c, OP_ADD, em_binary(c, OP_MUL, y, v[1]), v[2]);
}

void read_instance_norm(OpCall *c) {
    Value *x = c->in[0], *mean, *inv;
    int64_t axes[MAX_RANK];
    int rank = em_rank(c, x);
    if (rank < 3)
        call_fail(c, "rank %d; at least 3 is expected", rank);
    int n = tail_axes(2, rank, axes);
    Value *y = normalize(c, x, axes, n, call_float(c, "epsilon", 1e-5f), &mean, &inv);
    y = em_binary(c, OP_MUL, y, per_channel(c, c->in[1], rank));
    c->out[0] = em_binary(c, OP_ADD, y, per_channel(c, c->in[2], rank));
}

/* Scale and bias are per group at opset 18, per channel since 21. */
void read_group_norm(OpCall *c) {
    Value *x = c->in[0], *mean, *inv;
    int rank = em_rank(c, x);
    int64_t groups = call_int(c, "num_groups", 0);
    if (rank < 3 || groups < 1 || (x->dims[1] >= 0 && x->dims[1] % groups))
        call_fail(c, "the channels (axis 1) must be a multiple of num_groups (%lld)",
                  (long long)groups);
    ShapeOf s = {0}, back = {0};
    shape_add_axis(c, &s, x, 0);
    shape_add(c, &s, groups);
    shape_add_rest(c, &s);
    int64_t axis = 2;
    Value *wide = is_half(x) ? em_cast(c, x, DT_F32) : x;
    Value *y =
        normalize(c, em_view(c, wide, &s), &axis, 1, call_float(c, "epsilon", 1e-5f), &mean, &inv);
    y = em_cast(c, y, x->dtype);
    bool by_group = c->opset < 21;
    for (int i = 0; i < 2 && by_group; i++) {
        Value *v = em_insert_axis(c, c->in[1 + i], 1);
        y = em_binary(c, i ? OP_ADD : OP_MUL, y, v);
    }
    shape_add_axes(c, &back, x, 0, rank);
    y = em_view(c, y, &back);
    for (int i = 0; i < 2 && !by_group; i++)
        y = em_binary(c, i ? OP_ADD : OP_MUL, y, per_channel(c, c->in[1 + i], rank));
    c->out[0] = y;
}

/* (x - mean) / (standard deviation + 1e-9) over axes, all but the channels by default. */
void read_mean_variance_norm(OpCall *c) {
    Value *x = c->in[0];
    int64_t axes[64] = {0, 2, 3};
    int n = em_axes(c, -1, "axes", em_rank(c, x), axes);
    if (n < 0 && (n = 3, x->rank != 4))
        call_fail(c, "without axes, rank 4 is expected, found %d", x->rank);
    Value *d = em_binary(c, OP_SUB, x, em_mean(c, x, axes, n, true));
    Value *root = em_unary(c, OP_SQRT, em_mean(c, em_square(c, d), axes, n, true));
    c->out[0] = em_binary(c, OP_DIV, d, em_binary(c, OP_ADD, root, em_like(c, x, 1e-9)));
}

/* x / ||x||_p; a zero vector stays zero. */
void read_lp_norm(OpCall *c) {
    Value *x = c->in[0];
    int64_t p = call_int(c, "p", 2), axis = em_axis(c, call_int(c, "axis", -1), em_rank(c, x));
    if (p != 1 && p != 2)
        call_fail(c, "p is %lld; expected 1 or 2", (long long)p);
    Value *sum = em_reduce(c, OP_REDUCE_SUM, p == 1 ? em_unary(c, OP_ABS, x) : em_square(c, x),
                           &axis, 1, true);
    Value *zero = em_binary(c, OP_EQ, sum, em_like(c, x, 0));
    Value *safe = em_where(c, zero, em_like(c, x, 1), sum);
    c->out[0] = em_binary(c, OP_DIV, x, p == 1 ? safe : em_unary(c, OP_SQRT, safe));
}
