/* infer_rows.c: inference of cross-entropy, the MoE row ops and the optimizers: element types here,
 * shapes in infer_dims_rows.c. */
#include "ir/infer_rules.h"

#include <stdlib.h>

/* types: of result i, or DT_NONE for operand 0's type. */
static bool rows(Node *n, Diag *d, const DType *types) {
    Dims out[8], *in = xcalloc((size_t)n->nin + 8, sizeof *in);
    Fault f;
    for (int i = 0; i < n->nin + 8; i++)
        in[i].rank = -1;
    for (int i = 0; i < n->nin; i++)
        if (n->in[i])
            in[i] = dims_of(n->in[i]);
    bool ok = shape_rows(n, in, out, &f) || infer_fail(n, d, "%s", f.text);
    for (int i = 0; ok && i < n->nout; i++)
        ok = infer_result(n, d, i, types[i] == DT_NONE ? n->in[0]->dtype : types[i], &out[i]);
    free(in);
    return ok;
}

static const DType like_first[8] = {DT_NONE};

bool infer_xent(Node *n, Diag *d) {
    return infer_want_float(n, d, 0) && infer_want_int(n, d, 1) && rows(n, d, like_first);
}

bool infer_xent_grad(Node *n, Diag *d) {
    return infer_want_float(n, d, 0) && infer_want_int(n, d, 1) && infer_want_float(n, d, 2) &&
           infer_want_float(n, d, 3) && rows(n, d, like_first);
}

bool infer_dispatch(Node *n, Diag *d) {
    static const DType types[] = {DT_I64, DT_I64, DT_I64, DT_I64, DT_I64, DT_I64};
    return rows(n, d, types);
}

bool infer_gather_rows(Node *n, Diag *d) {
    return infer_want_int(n, d, 1) && infer_want_int(n, d, 2) && rows(n, d, like_first);
}

bool infer_combine(Node *n, Diag *d) {
    if (n->in[0]->dtype == DT_BOOL)
        return infer_fail(n, d, "a sum of bool (expected numbers)");
    return infer_want_int(n, d, 1) && infer_want_int(n, d, 2) && rows(n, d, like_first);
}

bool infer_grouped_matmul(Node *n, Diag *d) {
    if (!infer_want_float(n, d, 0) || !infer_want_int(n, d, 1))
        return false;
    for (int i = 2; i < n->nin; i++)
        if (!infer_same_type(n, d, 0, i))
            return false;
    return rows(n, d, like_first);
}

bool infer_grouped_wgrad(Node *n, Diag *d) {
    return infer_want_float(n, d, 0) && infer_same_type(n, d, 0, 1) && infer_want_int(n, d, 2) &&
           rows(n, d, like_first);
}

bool infer_segment_sum(Node *n, Diag *d) {
    if (n->in[0]->dtype == DT_BOOL)
        return infer_fail(n, d, "a sum of bool (expected numbers)");
    return infer_want_int(n, d, 1) && (n->nin < 3 || !n->in[2] || infer_want_int(n, d, 2)) &&
           rows(n, d, like_first);
}

bool infer_token_dot(Node *n, Diag *d) {
    return infer_want_float(n, d, 0) && infer_want_float(n, d, 1) && infer_want_int(n, d, 2) &&
           rows(n, d, like_first);
}

/* adamw: p, g, m, v, hyper -> p, m, v; sgd: p, g, hyper, (m) -> p, (m). Moments may be wider than
 * the parameter. */
bool infer_optimizer(Node *n, Diag *d) {
    DType types[8] = {n->in[0]->dtype};
    for (int i = 0; i < n->nin; i++)
        if (!n->in[i])
            return infer_fail(n, d, "operand %d is missing", i);
        else if (!infer_want_float(n, d, i))
            return false;
    if (n->op == OP_ADAMW) {
        types[1] = n->in[2]->dtype;
        types[2] = n->in[3]->dtype;
    } else if (n->nin > 3) {
        types[1] = n->in[3]->dtype;
    }
    return rows(n, d, types);
}
