/* raise_split.c: products by expert that are no layer of their own, as one grouped product.
 *
 * concat(part_0 · W_0, …, part_{E-1} · W_{E-1}), where the parts are rows split by counts that data
 * decide (JetMoE's attention, whose queries and outputs are experts), has row counts nobody knows
 * before the run, so no gradient and no plan. Row r of it is row r of the split rows times the
 * matrix of the part that r lies in: a grouped product whose offsets are the running sums of the
 * counts. That the counts add up to the rows is what ONNX's Split asks of them; whatever they are,
 * the offsets stay within the rows and in order.
 *
 * Needs: MoE layers raised already, since their forms contain such products. Breaks: nothing; what
 * does not match in every point stays. */
#include <stdlib.h>
#include <string.h>

#include "ir/infer.h"
#include "passes/raise.h"

typedef struct SplitPart {
    Value *rows, *ends; /* what is split; the running sums of the counts */
} SplitPart;

static bool one_int(const Node *n, AttrKey k, int64_t want) {
    const int64_t *at;
    return node_ints(n, k, &at) == 1 && at[0] == want;
}

/* v = whole[e:e+1], and whole. */
static Value *element(const Value *v, int e) {
    const Node *n = v->def;
    bool ok = n->op == OP_SLICE && n->nin == 1 && one_int(n, AT_AXES, 0) &&
              one_int(n, AT_STARTS, e) && one_int(n, AT_ENDS, e + 1);
    return ok ? n->in[0] : NULL;
}

/* Is v the e-th part of rows split by counts: rows[sum before : sum up to and with e]? */
static bool is_part(const Value *v, int e, int parts, SplitPart *out) {
    const Node *n = v->def;
    if (n->op != OP_SLICE || n->nin < 4 || !n->in[1] || !n->in[2] || !n->in[3] || v->rank != 2)
        return false;
    const Tensor *axes = value_const(n->in[3]);
    const Value *starts = element(n->in[1], e);
    *out = (SplitPart){n->in[0], element(n->in[2], e)};
    const Node *sum = out->ends ? out->ends->def : NULL;
    return !strcmp(n->src->op_type, "Split") && axes && tensor_count(axes) == 1 &&
           tensor_get_i(axes, 0) == 0 && (n->nin < 5 || !n->in[4]) && sum && sum->op == OP_CUMSUM &&
           !node_int(sum, AT_EXCLUSIVE, 0) && !node_int(sum, AT_REVERSE, 0) &&
           out->ends->rank == 1 && out->ends->dims[0] == parts && starts &&
           starts->def->op == OP_SUB && starts->def->in[0] == out->ends &&
           starts->def->in[1] == sum->in[0];
}

/* Where each part begins, and where the last one ends: at the last row. */
static Value *offsets_of(Builder *b, Value *counts, int64_t rows) {
    int parts = (int)counts->dims[0];
    int64_t zero = 0;
    Attr axis = {.key = AT_AXIS, .i = 0};
    Value *c = op_binary(b, OP_MAX, counts, op_const_i(b, 0));
    Value *sums = op_node(b, OP_CUMSUM, &c, 1, &axis, 1)->out[0];
    sums = op_binary(b, OP_MIN, sums, op_const_i(b, rows));
    Value *all[3] = {op_const_ints(b, &zero, 1), op_slice(b, sums, 0, 0, parts - 1, 1),
                     op_const_ints(b, &rows, 1)};
    return op_concat(b, all, 3, 0);
}

/* The grouped product that a concat of products stands for; NULL if it does not. */
static Value *grouped_product(Node *join) {
    SplitPart first = {0}, part = {0};
    const Node *product = join->in[0]->def;
    bool trans_b = node_int(product, AT_TRANS_B, 0);
    VEC(Value *) ops = {0};
    bool ok = join->nin > 1 && join->out[0]->rank == 2 && node_int(join, AT_AXIS, 0) == 0;
    for (int e = 0; ok && e < join->nin; e++) {
        product = join->in[e]->def;
        ok = product->op == OP_MATMUL && !node_int(product, AT_TRANS_A, 0) &&
             node_int(product, AT_TRANS_B, 0) == trans_b && product->in[1]->rank == 2 &&
             is_part(product->in[0], e, join->nin, &part) && part.rows->dims[0] >= 0 &&
             (e == 0 || (part.rows == first.rows && part.ends == first.ends));
        first = part;
        if (ok && e == 0) {
            vec_push(&ops, part.rows);
            vec_push(&ops, NULL);
        }
        if (ok)
            vec_push(&ops, product->in[1]);
    }
    Value *result = NULL;
    if (ok) {
        Builder b = builder_before(join);
        ops.at[1] = offsets_of(&b, first.ends->def->in[0], first.rows->dims[0]);
        Attr t = {.key = AT_TRANS_B, .i = 1};
        result = op_node(&b, OP_GROUPED_MATMUL, ops.at, ops.n, &t, trans_b)->out[0];
    }
    vec_free(&ops);
    return result;
}

bool raise_split_products(Graph *g, Diag *d) {
    bool any = false;
    FOR_NODES_SAFE(n, g) {
        if (any && !node_infer(n, d)) /* what follows may have sizes now */
            return false;
        Value *v = n->op == OP_CONCAT ? grouped_product(n) : NULL;
        if (!v)
            continue;
        value_replace(n->out[0], v);
        any = true;
    }
    if (any)
        graph_dce(g);
    return true;
}
