/* infer_dims_rows.c: shapes of cross-entropy, the MoE row ops and the optimizers (see infer_dims.h
 * and ops.def).
 *
 * Letters: T tokens, E experts, K chosen, R rows. Expert counts come from offsets [E+1]; a weight
 * is one stack [E,in,out] or E matrices [in,out] ([E,out,in] and [out,in] with {trans_b}). */
#include "ir/infer_dims.h"

static bool want_rank(const Dims *x, int rank, const char *what, Fault *f) {
    if (x->rank == rank)
        return true;
    return fault(f, "%s has shape %s (expected %d axes)", what, DIMS_TEXT(x), rank);
}

static bool want_dim(const Dims *x, int axis, int64_t dim, const char *what, Fault *f) {
    if (axis < x->rank && dim_fits(x->at[axis], dim))
        return true;
    return fault(f, "%s has shape %s (expected size %lld on axis %d)", what, DIMS_TEXT(x),
                 (long long)dim, axis);
}

static bool want_same(const Dims *x, const Dims *y, const char *what, Fault *f) {
    if (dims_fit(x, y))
        return true;
    return fault(f, "%s has shape %s (expected %s)", what, DIMS_TEXT(x), DIMS_TEXT(y));
}

/* E of offsets [E+1]; may be unknown. */
static bool experts_of(const Dims *offsets, int64_t *experts, Fault *f) {
    if (!want_rank(offsets, 1, "offsets", f))
        return false;
    if (offsets->at[0] == 0)
        return fault(f, "offsets is empty (expected experts + 1 entries)");
    *experts = offsets->at[0] < 0 ? DIM_UNKNOWN : offsets->at[0] - 1;
    return true;
}

static bool shape_xent(const Dims *in, Dims *out, Fault *f) {
    if (!want_rank(&in[0], 2, "logits", f) || !want_rank(&in[1], 1, "labels", f) ||
        !want_dim(&in[1], 0, in[0].at[0], "labels", f))
        return false;
    out[0] = out[1] = in[1].at[0] >= 0 ? in[1] : (Dims){1, {in[0].at[0]}};
    return true;
}

static bool shape_xent_grad(const Dims *in, Dims *out, Fault *f) {
    Dims rows;
    if (!want_rank(&in[0], 2, "logits", f))
        return false;
    rows = (Dims){1, {in[0].at[0]}};
    out[0] = in[0];
    return want_same(&in[1], &rows, "labels", f) && want_same(&in[2], &rows, "lse", f) &&
           want_same(&in[3], &rows, "the gradient of nll", f);
}

static bool shape_dispatch(const Node *n, const Dims *in, Dims *out, Fault *f) {
    int64_t experts = node_int(n, AT_EXPERTS, 0);
    if (experts < 1 || experts > INT32_MAX)
        return fault(f, "experts is %lld (expected 1 or more)", (long long)experts);
    if (!want_rank(&in[0], 2, "the selection", f))
        return false;
    DType t = n->in[0]->dtype;
    bool mask = t == DT_BOOL || dtype_is_float(t);
    int64_t tokens = in[0].at[0], chosen = in[0].at[1], rows = DIM_UNKNOWN;
    if (mask && !want_dim(&in[0], 1, experts, "the gate or mask", f))
        return false;
    if (in[1].rank >= 0 && !want_same(&in[1], &(Dims){2, {tokens, experts}}, "logits", f))
        return false;
    if (mask)
        chosen = experts;
    if (chosen == 0 || tokens == 0)
        rows = 0;
    else if (chosen == 1)
        rows = tokens;
    else if (tokens >= 0 && chosen >= 0 && __builtin_mul_overflow(tokens, chosen, &rows))
        return fault(f, "%lld rows of %lld entries overflow", (long long)tokens, (long long)chosen);
    out[0] = (Dims){1, {experts + 1}};
    out[1] = out[2] = out[3] = (Dims){1, {rows}};
    out[4] = (Dims){2, {tokens, chosen}};
    out[5] = (Dims){2, {tokens, experts}};
    return true;
}

static bool shape_gather_rows(const Dims *in, Dims *out, Fault *f) {
    Dims r = in[1];
    if (in[0].rank < 1)
        return fault(f, "rows cannot be taken from a scalar");
    if (!want_rank(&in[2], 2, "the inverse", f) ||
        !want_dim(&in[2], 0, in[0].at[0], "the inverse", f))
        return false;
    for (int i = 1; i < in[0].rank; i++)
        if (!dims_push(&r, in[0].at[i], f))
            return false;
    out[0] = r;
    return true;
}

/* x[M…,…]: its leading axes are those of idx (usually one). */
static bool shape_combine(const Dims *in, Dims *out, Fault *f) {
    Dims r = {1, {in[1].at[0]}};
    if (!want_rank(&in[1], 2, "the inverse", f))
        return false;
    for (int i = 0; i < in[2].rank; i++)
        if (!want_dim(&in[0], i, in[2].at[i], "the rows", f))
            return false;
    for (int i = in[2].rank; i < in[0].rank; i++)
        if (!dims_push(&r, in[0].at[i], f))
            return false;
    out[0] = r;
    return true;
}

/* rows[R,in], offsets, weights -> [R,out]. nin counts operands. */
static bool shape_grouped_matmul(const Node *n, const Dims *in, Dims *out, Fault *f) {
    bool trans = node_int(n, AT_TRANS_B, 0);
    int64_t experts;
    if (!want_rank(&in[0], 2, "the rows", f) || !experts_of(&in[1], &experts, f))
        return false;
    bool stack = in[2].rank == 3;
    if (stack && (n->nin != 3 || !want_dim(&in[2], 0, experts, "the weight stack", f)))
        return n->nin == 3 ? false : fault(f, "a weight stack comes alone, found %d", n->nin - 2);
    if (!stack && !dim_fits(experts, n->nin - 2))
        return fault(f, "%d expert matrices for %lld experts", n->nin - 2, (long long)experts);
    int64_t width = DIM_UNKNOWN;
    for (int i = 2; i < n->nin; i++) {
        if (!want_rank(&in[i], stack ? 3 : 2, "an expert's weight", f) ||
            !want_dim(&in[i], (stack ? 1 : 0) + trans, in[0].at[1], "an expert's weight", f))
            return false;
        int64_t w = in[i].at[(stack ? 1 : 0) + !trans];
        if (!dim_fits(w, width))
            return fault(f, "expert weights differ in width: %lld and %lld", (long long)width,
                         (long long)w);
        width = w > width ? w : width;
    }
    out[0] = (Dims){2, {in[0].at[0], width}};
    return true;
}

/* x[R,in], d[R,out], offsets -> the weight stack of that layout. */
static bool shape_grouped_wgrad(const Node *n, const Dims *in, Dims *out, Fault *f) {
    int64_t experts;
    if (!want_rank(&in[0], 2, "x", f) || !want_rank(&in[1], 2, "d", f) ||
        !want_dim(&in[1], 0, in[0].at[0], "d", f) || !experts_of(&in[2], &experts, f))
        return false;
    if (node_int(n, AT_TRANS_B, 0))
        out[0] = (Dims){3, {experts, in[1].at[1], in[0].at[1]}};
    else
        out[0] = (Dims){3, {experts, in[0].at[1], in[1].at[1]}};
    return true;
}

static bool shape_segment_sum(const Dims *in, int nin, Dims *out, Fault *f) {
    int64_t experts;
    if (in[0].rank < 1)
        return fault(f, "a scalar has no rows to sum");
    if (!experts_of(&in[1], &experts, f))
        return false;
    if (nin > 2 && in[2].rank >= 0 &&
        !want_same(&in[2], &(Dims){1, {in[0].at[0]}}, "row_expert", f))
        return false;
    out[0] = in[0];
    out[0].at[0] = experts;
    return true;
}

static bool shape_token_dot(const Node *n, const Dims *in, Dims *out, Fault *f) {
    Dims grad;
    if (!shape_grouped_wgrad(n, in, &grad, f))
        return false;
    if (n->nin > 3 && in[3].rank >= 0 && !want_same(&in[3], &grad, "the weight gradient", f))
        return false;
    out[0] = (Dims){1, {in[0].at[0]}};
    return true;
}

/* adamw: p, g, m, v, hyper; sgd: p, g, hyper, (m). */
static bool shape_optimizer(const Node *n, const Dims *in, Dims *out, Fault *f) {
    const Dims *hyper = &in[n->op == OP_ADAMW ? 4 : 2];
    if (!want_rank(hyper, 1, "hyper", f))
        return false;
    if (hyper->at[0] >= 0 && hyper->at[0] < 4)
        return fault(f, "hyper has %lld entries (expected 4 or more)", (long long)hyper->at[0]);
    if (n->op == OP_SGD && n->nout != n->nin - 2)
        return fault(f, "sgd has %d results for %d operands (expected %d)", n->nout, n->nin,
                     n->nin - 2);
    for (int i = 1; i < n->nin; i++)
        if (&in[i] != hyper && !want_same(&in[i], &in[0], "a gradient or moment", f))
            return false;
    for (int i = 0; i < n->nout; i++)
        out[i] = in[0];
    return true;
}

bool shape_rows(const Node *n, const Dims *in, Dims *out, Fault *f) {
    switch (n->op) {
    case OP_XENT:
        return shape_xent(in, out, f);
    case OP_XENT_GRAD:
        return shape_xent_grad(in, out, f);
    case OP_DISPATCH:
        return shape_dispatch(n, in, out, f);
    case OP_GATHER_ROWS:
        return shape_gather_rows(in, out, f);
    case OP_COMBINE:
        return shape_combine(in, out, f);
    case OP_GROUPED_MATMUL:
        return shape_grouped_matmul(n, in, out, f);
    case OP_GROUPED_WGRAD:
        return shape_grouped_wgrad(n, in, out, f);
    case OP_SEGMENT_SUM:
        return shape_segment_sum(in, n->nin, out, f);
    case OP_TOKEN_DOT:
        return shape_token_dot(n, in, out, f);
    case OP_ADAMW:
    case OP_SGD:
        return shape_optimizer(n, in, out, f);
    default:
        bug("no row shape for %s", op_info[n->op].name);
    }
}
