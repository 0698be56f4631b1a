/* precision.c: which products train.precision lets run on operands rounded to bf16.
 *
 * All of f32 but those that a decision is read from, which must not depend on rounding: router
 * logits (and whatever else reaches a top-k, an argmax or a dispatch without passing another
 * product), and weight gradients that a capture compares tokens with. Captures themselves are f32
 * always, so that conflict masks are those of f32 for the same x and delta (method.md section 5).
 *
 *     %9 = matmul %3, %7 : f32[8,64]   becomes   matmul %3, %7 {precision="bf16"}
 *
 * Weights, their gradients and all that is stored stay f32. Needs: the whole training graph. Gives:
 * attributes. Breaks nothing. */
#include "passes/pass.h"

#include <stdlib.h>
#include <string.h>

static bool is_product(const Node *n) {
    return n->op == OP_MATMUL || n->op == OP_GROUPED_MATMUL || n->op == OP_GROUPED_WGRAD;
}

enum { GIVEN_GRADIENT = 3 /* operand of token_dot */ };

/* Whether what n makes of its operand i decides something. decides: by value id. */
static bool use_decides(const Node *n, int i, const bool *decides) {
    if (n->op == OP_TOPK || n->op == OP_ARGMAX || n->op == OP_DISPATCH)
        return true;
    if (n->op == OP_TOKEN_DOT)
        return i == GIVEN_GRADIENT;
    bool any = false;
    for (int o = 0; o < n->nout && !is_product(n); o++)
        any |= decides[n->out[o]->id];
    return any;
}

bool pass_precision(Compile *c) {
    Graph *g = c->g;
    if (c->recipe->train.precision != PRECISION_BF16)
        return true;
    bool *decides = xcalloc((size_t)g->next_value + 1, sizeof *decides);
    for (Node *n = g->last; n; n = n->prev) {
        for (int o = 0; o < n->nout; o++)
            for (int u = 0; u < n->out[o]->uses.n; u++)
                decides[n->out[o]->id] |=
                    use_decides(n->out[o]->uses.at[u].node, n->out[o]->uses.at[u].operand, decides);
        if (is_product(n) && n->out[0]->dtype == DT_F32 && !decides[n->out[0]->id])
            node_set_str(n, AT_PRECISION, "bf16");
    }
    free(decides);
    return true;
}
