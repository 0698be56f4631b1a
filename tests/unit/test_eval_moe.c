/* test_eval_moe.c: the evaluator's Mixture-of-Experts, cross-entropy and optimizer ops against
 * hand-made numbers, and the identities that method.md asks of token_dot. */
#include "eval_help.h"

/* T 3, E 3, K 2; expert 1 gets nothing, one entry of token 2 is not routed. */
static Node *small_dispatch(void) {
    return node(OP_DISPATCH, IN(I("3x2: 2 0 0 2 0 -1")), ATTRS(A_INT(EXPERTS, 3), A_INT(TOP_K, 2)));
}

static void test_dispatch_index(void **state) {
    Node *n = small_dispatch();
    expect(n->out[0], "4: 0 3 3 5");
    expect(n->out[1], "6: 0 1 2 0 1 -1");
    expect(n->out[2], "6: 1 2 4 0 3 -1");
    expect(n->out[3], "6: 0 0 0 2 2 -1");
    expect(n->out[4], "3x2: 3 0 1 4 2 -1");
    expect(n->out[5], "3x3: 0 -1 3 1 -1 4 2 -1 -1");
}

static void test_dispatch_mask(void **state) {
    Node *n = node(OP_DISPATCH, IN(F("2x2: 0 0.5 -0.25 0.5"), F("2x2: 1 2 3 4")),
                   ATTRS(A_INT(EXPERTS, 2)));
    expect(n->out[0], "3: 0 1 3");
    expect(n->out[1], "4: 1 0 1 -1");
    expect(n->out[2], "4: 2 1 3 -1");
    expect(n->out[3], "4: 0 1 1 -1");
    expect(n->out[4], "2x2: -1 1 0 2");
    expect(n->out[5], "2x2: -1 1 0 2");
    n = node(OP_DISPATCH, IN(B("1x3: 0 0 0")), ATTRS(A_INT(EXPERTS, 3)));
    expect(n->out[0], "4: 0 0 0 0");
    expect(n->out[1], "3: -1 -1 -1");
}

static void test_dispatch_edges(void **state) {
    /* no token; one token; an expert out of range is dropped; a pair that comes twice has two rows
     */
    Node *n = node(OP_DISPATCH, IN(I("0x2:")), ATTRS(A_INT(EXPERTS, 2)));
    expect(n->out[0], "3: 0 0 0");
    expect(n->out[1], "0:");
    n = node(OP_DISPATCH, IN(I("1x1: 1")), ATTRS(A_INT(EXPERTS, 2)));
    expect(n->out[0], "3: 0 0 1");
    expect(n->out[5], "1x2: -1 0");
    n = node(OP_DISPATCH, IN(of(DT_I32, "1x3: 7 1 1")), ATTRS(A_INT(EXPERTS, 2)));
    expect(n->out[0], "3: 0 0 2");
    expect(n->out[2], "3: 1 2 -1");
    expect(n->out[5], "1x2: -1 0");
}

static void test_gather_combine(void **state) {
    Node *d = small_dispatch();
    Value *x = F("3x2: 1 2 3 4 5 6"), *row_token = d->out[1], *pair_row = d->out[4];
    Value *rows = result(OP_GATHER_ROWS, IN(x, row_token, pair_row), NO_ATTRS);
    expect(rows, "6x2: 1 2 3 4 5 6 1 2 3 4 0 0");
    expect(result(OP_COMBINE, IN(rows, pair_row, row_token), NO_ATTRS), "3x2: 2 4 6 8 5 6");
    /* by pairs: idx of two axes, and its transpose */
    Value *inverse = op_reshape(&at, d->out[2], 2, (int64_t[]){6, 1});
    Value *pairs = result(OP_GATHER_ROWS, IN(F("6: 1 2 3 4 5 6"), pair_row, inverse), NO_ATTRS);
    expect(pairs, "3x2: 4 1 2 5 3 0");
    expect(result(OP_COMBINE, IN(pairs, inverse, pair_row), NO_ATTRS), "6: 1 2 3 4 5 0");
    faults(EXIT_DATA, "row 6 is outside",
           result(OP_COMBINE, IN(F("6: 1 2 3 4 5 6"), hide(I("1x1: 6")), I("6: 0 0 0 0 0 0")),
                  NO_ATTRS));
    expect(result(OP_COMBINE, IN(F("2x1: 1 2"), I("3x0:"), I("2: -1 -1")), NO_ATTRS), "3x1: 0 0 0");
}

static void test_grouped_matmul(void **state) {
    Value *rows = F("5x2: 1 0 0 1 1 1 2 3 9 9"), *offsets = I("4: 0 2 2 4");
    Value *stack = F("3x2x2: 1 2 3 4 100 100 100 100 5 6 7 8");
    expect(result(OP_GROUPED_MATMUL, IN(rows, offsets, stack), NO_ATTRS),
           "5x2: 1 2 3 4 12 14 31 36 0 0");
    expect(result(OP_GROUPED_MATMUL, IN(rows, offsets, stack), ATTRS(A_INT(TRANS_B, 1))),
           "5x2: 1 3 2 4 11 15 28 38 0 0");
    expect(result(OP_GROUPED_MATMUL,
                  IN(rows, offsets, F("2x1: 1 3"), F("2x1: 100 100"), F("2x1: 5 7")), NO_ATTRS),
           "5x1: 1 3 12 31 0");
    expect(result(OP_GROUPED_MATMUL, IN(rows, I("2: 0 0"), F("1x3x2: 1 2 3 4 5 6")),
                  ATTRS(A_INT(TRANS_B, 1))),
           "5x3: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0");
    faults(EXIT_DATA, "offsets[2]",
           result(OP_GROUPED_MATMUL, IN(rows, hide(I("4: 0 2 1 4")), stack), NO_ATTRS));
}

static void test_wgrad_segment(void **state) {
    Value *x = F("4x2: 1 2 3 4 5 6 9 9"), *d = F("4x3: 1 0 1 0 1 2 1 1 1 9 9 9");
    Value *offsets = I("4: 0 2 2 3");
    expect(result(OP_GROUPED_WGRAD, IN(x, d, offsets), NO_ATTRS),
           "3x2x3: 1 3 7 2 4 10 0 0 0 0 0 0 5 5 5 6 6 6");
    expect(result(OP_GROUPED_WGRAD, IN(x, d, offsets), ATTRS(A_INT(TRANS_B, 1))),
           "3x3x2: 1 2 3 4 7 10 0 0 0 0 0 0 5 6 5 6 5 6");
    expect(result(OP_SEGMENT_SUM, IN(x, offsets), NO_ATTRS), "3x2: 4 6 0 0 5 6");
    expect(result(OP_SEGMENT_SUM, IN(F("4: 1 2 3 9"), offsets, I("4: 0 0 2 -1")), NO_ATTRS),
           "3: 3 0 3");
}

/* dot_n = <g_n, mean g>: by materialised gradients (numpy), with and without the sum at hand, and
 * sum dot = T_e |G|^2. */
static void test_token_dot(void **state) {
    Value *x = F("4x2: 1 2 3 4 5 6 9 9"), *d = F("4x3: 1 0 1 0 1 2 1 1 1 9 9 9");
    Value *offsets = I("4: 0 2 2 3");
    /* expert 0: G = [[1,3,7],[2,4,10]]; <g_0,G> = (1+7)+2(2+10) = 32, <g_1,G> = 3(3+14)+4(4+20) =
     * 147; halved */
    const char *dots = "4: 16 73.5 183 0";
    expect(result(OP_TOKEN_DOT, IN(x, d, offsets), NO_ATTRS), dots);
    Value *g = result(OP_GROUPED_WGRAD, IN(x, d, offsets), NO_ATTRS);
    expect(result(OP_TOKEN_DOT, IN(x, d, offsets, g), NO_ATTRS), dots);
    Value *gt = result(OP_GROUPED_WGRAD, IN(x, d, offsets), ATTRS(A_INT(TRANS_B, 1)));
    expect(result(OP_TOKEN_DOT, IN(x, d, offsets, gt), ATTRS(A_INT(TRANS_B, 1))), dots);
}

static void test_xent(void **state) {
    Value *logits = F("4x3: 0 0 0 1000 0 -1000 -1000 0 1000 1 2 3");
    Value *labels = I("4: 0 0 0 -100");
    Node *n = node(OP_XENT, IN(logits, labels), NO_ATTRS);
    expect(n->out[0], "4: 1.0986122886681098 0 2000 0");
    expect(n->out[1], "4: 1.0986122886681098 1000 1000 3.4076059644443806");
    Value *g = F("4: 3 1 2 5");
    expect(result(OP_XENT_GRAD, IN(logits, labels, n->out[1], g), NO_ATTRS),
           "4x3: -2 1 1 0 0 0 -2 0 2 0 0 0");
    faults(EXIT_DATA, "label 3", node(OP_XENT, IN(logits, I("4: 0 1 2 3")), NO_ATTRS)->out[0]);
    faults(EXIT_DATA, "label -100",
           node(OP_XENT, IN(logits, labels), ATTRS(A_INT(IGNORE_INDEX, 1)))->out[0]);
    expect(node(OP_XENT, IN(F("0x3:"), I("0:")), NO_ATTRS)->out[1], "0:");
}

/* Numbers of torch.optim.AdamW / SGD, first and second step, computed with the formulas in double.
 */
static void test_optimizers(void **state) {
    Value *p = F("2: 1 -2"), *g = F("2: 0.5 -1"), *zero = F("2: 0 0");
    Value *hyper = F("8: 0.1 10 1000 2 0 0 0 0");
    Node *n = node(OP_ADAMW, IN(p, g, zero, zero, hyper),
                   ATTRS(A_FLOAT(BETA1, 0.9), A_FLOAT(BETA2, 0.999), A_FLOAT(EPS, 0),
                         A_FLOAT(WEIGHT_DECAY, 0.5)));
    /* scaled gradient 1, -2: the first step is the sign times lr after decay by 1 - 0.05 */
    expect(n->out[0], "2: 0.85 -1.8");
    expect(n->out[1], "2: 0.1 -0.2");
    expect_near(n->out[2], "2: 0.001 0.004", 1e-14);
    n = node(OP_SGD, IN(p, g, hyper), ATTRS(A_FLOAT(WEIGHT_DECAY, 0.5)));
    expect(n->out[0], "2: 0.85 -1.7");
    n = node(OP_SGD, IN(p, g, hyper, F("2: 1 1")), ATTRS(A_FLOAT(MOMENTUM, 0.9)));
    expect(n->out[0], "2: 0.81 -1.89");
    expect(n->out[1], "2: 1.9 -1.1");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_dispatch_index), TEST(test_dispatch_mask),  TEST(test_dispatch_edges),
        TEST(test_gather_combine), TEST(test_grouped_matmul), TEST(test_wgrad_segment),
        TEST(test_token_dot),      TEST(test_xent),           TEST(test_optimizers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
