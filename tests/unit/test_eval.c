/* test_eval.c: the reference evaluator by hand-made graphs: elementwise, shape, reductions,
 * indexing, products. Expected numbers were computed by hand or with numpy. */
#include "eval_help.h"

static void test_unary(void **state) {
    Value *x = F("5: -2.5 -0.5 0 0.5 1.5");
    expect(op_unary(&at, OP_NEG, x), "5: 2.5 0.5 0 -0.5 -1.5");
    expect(op_unary(&at, OP_ROUND, x), "5: -2 0 0 0 2");
    expect(op_unary(&at, OP_FLOOR, x), "5: -3 -1 0 0 1");
    expect(op_unary(&at, OP_CEIL, x), "5: -2 0 0 1 2");
    expect(op_unary(&at, OP_SIGN, x), "5: -1 -1 0 1 1");
    expect(op_unary(&at, OP_SIGN, F("2: nan -inf")), "2: nan -1");
    expect(op_unary(&at, OP_SOFTPLUS, F("3: -1000 0 1000")), "3: 0 0.6931471805599453 1000");
    expect(op_unary(&at, OP_SIGMOID, F("3: -1000 0 1000")), "3: 0 0.5 1");
    expect(op_unary(&at, OP_ERF, F(": 0.5")), ": 0.5204998778130465");
    expect(op_unary(&at, OP_RECIP, F("2: 0 4")), "2: inf 0.25");
    expect(op_unary(&at, OP_ABS, of(DT_I8, "2: -128 5")), "2: -128 5");
    expect(op_unary(&at, OP_NEG, of(DT_U8, "2: 1 0")), "2: 255 0");
    expect(op_unary(&at, OP_ISNAN, F("3: nan inf 1")), "3: 1 0 0");
    expect(op_unary(&at, OP_ISINF, F("3: nan -inf 1")), "3: 0 1 0");
    expect(op_unary(&at, OP_NOT, B("2: 1 0")), "2: 0 1");
    expect(op_unary(&at, OP_EXP, F("2x0:")), "2x0:");
}

static void test_cast(void **state) {
    Value *x = F("6: -1.9 1.9 300 1e30 nan -inf");
    expect(op_cast(&at, x, DT_I32), "6: -1 1 300 2147483647 0 -2147483648");
    expect(op_cast(&at, x, DT_U8), "6: 0 1 255 255 0 0");
    expect(op_cast(&at, x, DT_I64), "6: -1 1 300 9223372036854775807 0 -9223372036854775808");
    expect(op_cast(&at, F("3: 0 -0.1 nan"), DT_BOOL), "3: 0 1 1");
    expect(op_cast(&at, I("3: 300 -1 -129"), DT_I8), "3: 44 -1 127");
    expect(op_cast(&at, I("2: 7 -3"), DT_BOOL), "2: 1 1");
    expect(op_cast(&at, of(DT_U64, "1: -1"), DT_F64), "1: 18446744073709551616");
    expect(op_cast(&at, F(": 0.1"), DT_F64), ": 0.1");
}

static void test_binary_broadcast(void **state) {
    Value *a = F("2x1x3: 1 2 3 4 5 6"), *b = F("2x1: 10 20");
    expect(op_binary(&at, OP_ADD, a, b), "2x2x3: 11 12 13 21 22 23 14 15 16 24 25 26");
    expect(op_binary(&at, OP_SUB, F(": 1"), F("2: 3 5")), "2: -2 -4");
    expect(op_binary(&at, OP_MUL, F("0x3:"), F("1x1: 2")), "0x3:");
    expect(op_binary(&at, OP_MAX, F("4: 1 nan 3 -inf"), F("4: 2 0 nan inf")), "4: 2 nan nan inf");
    expect(op_binary(&at, OP_MIN, F("2: 1 2"), F("2x1: 0 3")), "2x2: 0 0 1 2");
    expect(op_binary(&at, OP_LT, F("2: 1 nan"), F("2: 2 2")), "2: 1 0");
    expect(op_binary(&at, OP_LT, of(DT_U64, "2: -1 1"), of(DT_U64, "2: 1 -1")), "2: 0 1");
    expect(op_binary(&at, OP_EQ, I("3x1: 1 2 3"), I("2: 3 1")), "3x2: 0 1 0 0 1 0");
    expect(op_binary(&at, OP_XOR, B("4: 0 0 1 1"), B("4: 0 1 0 1")), "4: 0 1 1 0");
    expect(op_where(&at, B("2x1: 1 0"), F("2: 1 2"), F(": 9")), "2x2: 1 2 9 9");
}

static void test_binary_integers(void **state) {
    Value *x = I("4: 7 -7 7 -7"), *y = I("4: 2 2 -2 -2");
    expect(op_binary(&at, OP_DIV, x, y), "4: 3 -3 -3 3");
    expect(op_binary(&at, OP_MOD, x, y), "4: 1 1 -1 -1");
    expect(result(OP_MOD, IN(x, y), ATTRS(A_INT(FMOD, 1))), "4: 1 -1 1 -1");
    expect(op_binary(&at, OP_MOD, F("2: 5.5 -5.5"), F("2: 2 2")), "2: 1.5 0.5");
    expect(op_binary(&at, OP_ADD, of(DT_I8, "1: 127"), of(DT_I8, "1: 1")), "1: -128");
    expect(op_binary(&at, OP_MUL, of(DT_U8, "1: 16"), of(DT_U8, "1: 17")), "1: 16");
    expect(op_binary(&at, OP_DIV, I("1: -9223372036854775808"), I("1: -1")),
           "1: -9223372036854775808");
    expect(op_binary(&at, OP_POW, I("4: 2 -1 3 2"), I("4: 10 -3 0 -1")), "4: 1024 -1 1 0");
    expect(op_binary(&at, OP_POW, I("2: 4 9"), F(": 0.5")), "2: 2 3");
    expect(op_binary(&at, OP_POW, F("2: 1.5 0"), I("2: 2 0")), "2: 2.25 1");
    faults(EXIT_DATA, "divided by 0", op_binary(&at, OP_DIV, x, I("1: 0")));
    expect(op_binary(&at, OP_DIV, I("0:"), I("1: 0")), "0:");
}

static void test_reshape(void **state) {
    Value *x = F("2x3: 1 2 3 4 5 6");
    expect(op_reshape(&at, x, 1, (int64_t[]){6}), "6: 1 2 3 4 5 6");
    expect(result(OP_RESHAPE, IN(x, I("3: 0 1 -1")), NO_ATTRS), "2x1x3: 1 2 3 4 5 6");
    expect(result(OP_RESHAPE, IN(x, hide(I("2: 0 -1"))), NO_ATTRS), "2x3: 1 2 3 4 5 6");
    expect(result(OP_RESHAPE, IN(F("0x3:"), I("2: 3 0")), ATTRS(A_INT(K, 1))), "3x0:");
    expect(result(OP_RESHAPE, IN(F("1: 4"), I("0:")), NO_ATTRS), ": 4");
    faults(EXIT_MODEL, "6 elements against 8",
           result(OP_RESHAPE, IN(x, hide(I("2: 2 4"))), NO_ATTRS));
}

static void test_move(void **state) {
    Value *x = F("2x3: 1 2 3 4 5 6");
    expect(op_transpose(&at, x, (int64_t[]){1, 0}), "3x2: 1 4 2 5 3 6");
    expect(result(OP_TRANSPOSE, IN(F("1x2x3: 1 2 3 4 5 6")), ATTRS(A_INTS(PERM, 2, 0, 1))),
           "3x1x2: 1 4 2 5 3 6");
    expect(op_expand(&at, F("2x1: 1 2"), 3, (int64_t[]){2, 1, 3}),
           "2x2x3: 1 1 1 2 2 2 1 1 1 2 2 2");
    expect(result(OP_EXPAND, IN(F("2x1: 1 2"), I("1: 1")), NO_ATTRS), "2x1: 1 2");
    expect(result(OP_EXPAND, IN(F(": 5"), hide(I("2: 2 0"))), NO_ATTRS), "2x0:");
    expect(op_concat(&at, (Value *[]){x, F("2x1: 8 9"), F("2x0:")}, 3, -1), "2x4: 1 2 3 8 4 5 6 9");
    expect(op_concat(&at, (Value *[]){x, F("0x3:"), x}, 3, 0), "4x3: 1 2 3 4 5 6 1 2 3 4 5 6");
    expect(result(OP_PAD, IN(x), ATTRS(A_INTS(PADS, 0, 1, 1, -1), A_FLOAT(VALUE_F, 7))),
           "3x3: 7 1 2 7 4 5 7 7 7");
    expect(result(OP_PAD, IN(I("2: 1 2"), I("2: -1 2")), NO_ATTRS), "3: 2 0 0");
    expect(result(OP_SHAPE, IN(F("2x0x5:")), NO_ATTRS), "3: 2 0 5");
    expect(result(OP_SHAPE, IN(F(": 1")), NO_ATTRS), "0:");
}

static void test_slice(void **state) {
    Value *x = F("2x5: 0 1 2 3 4 5 6 7 8 9");
    expect(op_slice(&at, x, 1, 1, 4, 2), "2x2: 1 3 6 8");
    expect(op_slice(&at, x, -1, -1, INT64_MIN, -2), "2x3: 4 2 0 9 7 5");
    expect(op_slice(&at, x, 1, 3, 0, -1), "2x3: 3 2 1 8 7 6");
    expect(op_slice(&at, x, 1, -100, INT64_MAX, 1), "2x5: 0 1 2 3 4 5 6 7 8 9");
    expect(op_slice(&at, x, 0, 1, 1, 1), "0x5:");
    expect(op_slice(&at, x, 1, 4, 4, -1), "2x0:");
    expect(op_slice(&at, F("0x2:"), 0, -1, -5, -1), "0x2:");
    expect(result(OP_SLICE, IN(x, I("2: 1 -2"), I("2: 2 9"), I("2: 0 -1")), NO_ATTRS), "1x2: 8 9");
    expect(result(OP_SLICE, IN(x, hide(I("1: 0")), I("1: -1"), NULL, I("1: 1")), NO_ATTRS),
           "1x5: 0 1 2 3 4");
    /* what inference wrote back must mean the same when read again */
    Node *n = node(OP_SLICE, IN(x, I("1: -1"), I("1: -100"), I("1: 1"), I("1: -1")), NO_ATTRS);
    assert_int_equal(n->nin, 1);
    assert_true(node_infer(n, &diag) && node_infer(n, &diag));
    expect(n->out[0], "2x5: 4 3 2 1 0 9 8 7 6 5");
}

static void test_range_nonzero(void **state) {
    expect(result(OP_RANGE, IN(I(": 1"), I(": 8"), I(": 3")), NO_ATTRS), "3: 1 4 7");
    expect(result(OP_RANGE, IN(I(": 3"), hide(I(": 0")), I(": -1")), NO_ATTRS), "3: 3 2 1");
    expect(result(OP_RANGE, IN(F(": 0"), F(": 1"), F(": 0.4")), NO_ATTRS), "3: 0 0.4 0.8");
    expect(result(OP_RANGE, IN(I(": 5"), I(": 5"), I(": 1")), NO_ATTRS), "0:");
    faults(EXIT_DATA, "has no size",
           result(OP_RANGE, IN(I(": 0"), hide(I(": 5")), hide(I(": 0"))), NO_ATTRS));
    expect(result(OP_NONZERO, IN(F("2x3: 0 1 0 2 0 nan")), NO_ATTRS), "2x3: 0 1 1 1 0 2");
    expect(result(OP_NONZERO, IN(B("3: 0 0 0")), NO_ATTRS), "1x0:");
}

static void test_reduce(void **state) {
    Value *x = F("2x3: 1 -2 3 4 5 6");
    expect(op_reduce(&at, OP_REDUCE_SUM, x, (int64_t[]){1}, 1, false), "2: 2 15");
    expect(op_reduce(&at, OP_REDUCE_SUM, x, (int64_t[]){-2}, 1, true), "1x3: 5 3 9");
    expect(op_reduce(&at, OP_REDUCE_PROD, x, (int64_t[]){0, 1}, 2, false), ": -720");
    expect(result(OP_REDUCE_MAX, IN(x), NO_ATTRS), ": 6");
    expect(op_reduce(&at, OP_REDUCE_SUM, x, NULL, 0, false), "2x3: 1 -2 3 4 5 6");
    expect(op_reduce(&at, OP_REDUCE_MAX, F("2x2: 1 nan 5 2"), (int64_t[]){1}, 1, false),
           "2: nan 5");
    expect(op_reduce(&at, OP_REDUCE_MIN, F("2x2: nan 0 5 2"), (int64_t[]){1}, 1, false),
           "2: nan 2");
    Value *none = F("2x0:");
    expect(op_reduce(&at, OP_REDUCE_SUM, none, (int64_t[]){1}, 1, false), "2: 0 0");
    expect(op_reduce(&at, OP_REDUCE_MAX, none, (int64_t[]){1}, 1, false), "2: -inf -inf");
    expect(op_reduce(&at, OP_REDUCE_MIN, none, (int64_t[]){1}, 1, true), "2x1: inf inf");
    expect(op_reduce(&at, OP_REDUCE_PROD, none, (int64_t[]){0, 1}, 2, false), ": 1");
    expect(op_reduce(&at, OP_REDUCE_MIN, of(DT_I8, "0:"), (int64_t[]){0}, 1, false), ": 127");
    expect(op_reduce(&at, OP_REDUCE_SUM, of(DT_I8, "2: 100 100"), (int64_t[]){0}, 1, false),
           ": -56");
    expect(op_reduce(&at, OP_REDUCE_MAX, of(DT_U64, "2: -1 1"), (int64_t[]){0}, 1, false), ": -1");
    expect(op_reduce(&at, OP_REDUCE_MAX, B("2x2: 0 0 0 1"), (int64_t[]){1}, 1, false), "2: 0 1");
    Value *cube = F("2x2x3: 1 2 3 4 5 6 7 8 9 10 11 12");
    expect(op_reduce(&at, OP_REDUCE_SUM, cube, (int64_t[]){0, 2}, 2, false), "2: 30 48");
    expect(op_reduce(&at, OP_REDUCE_SUM, cube, (int64_t[]){1}, 1, false), "2x3: 5 7 9 17 19 21");
}

static void test_argmax_cumsum(void **state) {
    Value *x = F("2x3: 3 1 3 nan 5 7");
    expect(result(OP_ARGMAX, IN(x), ATTRS(A_INT(AXIS, -1))), "2: 0 0");
    expect(result(OP_ARGMAX, IN(x), ATTRS(A_INT(AXIS, 1), A_INT(LAST, 1), A_INT(KEEPDIMS, 1))),
           "2x1: 2 0");
    expect(result(OP_ARGMAX, IN(F("2x2: 3 1 1 1")), ATTRS(A_INT(AXIS, 1), A_INT(LARGEST, 0))),
           "2: 1 0");
    expect(result(OP_ARGMAX, IN(x), ATTRS(A_INT(AXIS, 0))), "3: 1 1 1");
    Value *y = I("2x3: 1 2 3 4 5 6");
    expect(result(OP_CUMSUM, IN(y), ATTRS(A_INT(AXIS, 1))), "2x3: 1 3 6 4 9 15");
    expect(result(OP_CUMSUM, IN(y), ATTRS(A_INT(AXIS, 1), A_INT(EXCLUSIVE, 1), A_INT(REVERSE, 1))),
           "2x3: 5 3 0 11 6 0");
    expect(result(OP_CUMSUM, IN(y), ATTRS(A_INT(AXIS, 0), A_INT(EXCLUSIVE, 1))),
           "2x3: 0 0 0 1 2 3");
}

static void test_topk(void **state) {
    Node *n = node(OP_TOPK, IN(F("2x4: 2 5 2 5 1 1 1 1")), ATTRS(A_INT(K, 3)));
    expect(n->out[0], "2x3: 5 5 2 1 1 1");
    expect(n->out[1], "2x3: 1 3 0 0 1 2");
    n = node(OP_TOPK, IN(F("4: 1 nan 3 2"), I("1: 2")), NO_ATTRS);
    assert_int_equal(n->nin, 1);
    expect(n->out[1], "2: 1 2");
    n = node(OP_TOPK, IN(F("3x2: 1 6 2 5 3 4"), hide(I(": 2"))),
             ATTRS(A_INT(AXIS, 0), A_INT(LARGEST, 0)));
    expect(n->out[0], "2x2: 1 4 2 5");
    expect(n->out[1], "2x2: 0 2 1 1");
    n = node(OP_TOPK, IN(F("2x3: 1 2 3 4 5 6")), ATTRS(A_INT(K, 0)));
    expect(n->out[1], "2x0:");
    faults(EXIT_DATA, "k is 9",
           node(OP_TOPK, IN(F("4: 1 2 3 4"), hide(I(": 9"))), NO_ATTRS)->out[0]);
}

static void test_softmax(void **state) {
    Value *x = F("2x3: 0 1 2 -inf -inf -inf");
    expect(result(OP_SOFTMAX, IN(x), ATTRS(A_INT(MASKED, 1))),
           "2x3: 0.09003057317038046 0.24472847105479767 0.6652409557748219 0 0 0");
    expect(op_slice(&at, op_softmax(&at, x, -1), 0, 1, 2, 1), "1x3: nan nan nan");
    expect(op_softmax(&at, F("2x2: 1000 0 0 -1000"), 1), "2x2: 1 0 1 0");
    expect(op_softmax(&at, F("2x2: 1 5 1 5"), 0), "2x2: 0.5 0.5 0.5 0.5");
    expect(result(OP_LOG_SOFTMAX, IN(F("2: 0 -2000")), NO_ATTRS), "2: 0 -2000");
    expect(op_softmax(&at, F("2x0:"), 1), "2x0:");
    expect(op_softmax(&at, F("0x2:"), 1), "0x2:");
}

static void test_gather(void **state) {
    Value *x = F("3x2: 1 2 3 4 5 6");
    expect(op_gather(&at, x, I("2x2: 0 -1 1 1"), 0), "2x2x2: 1 2 5 6 3 4 3 4");
    expect(op_gather(&at, x, I(": 1"), 1), "3: 2 4 6");
    expect(op_gather(&at, x, I("0:"), 0), "0x2:");
    faults(EXIT_DATA, "index 3", op_gather(&at, x, hide(I(": 3")), 0));
    expect(result(OP_SCATTER_ADD, IN(F("3x2: 1 2 3 4 5 6"), I("3: 1 -1 1")),
                  ATTRS(A_INT(AXIS, 0), A_INTS(DIMS, 4, 2))),
           "4x2: 0 0 6 8 0 0 3 4");
    expect(result(OP_SCATTER_ADD, IN(F("2x2: 1 2 3 4"), I("2: 0 0")),
                  ATTRS(A_INT(AXIS, 1), A_INTS(DIMS, 2, 3))),
           "2x3: 3 0 0 7 0 0");
    expect(result(OP_GATHER_ELEMENTS, IN(x, I("2x2: 0 1 2 -3")), ATTRS(A_INT(AXIS, 0))),
           "2x2: 1 4 5 2");
    expect(result(OP_GATHER_ELEMENTS, IN(x, I("3x1: 1 0 1")), ATTRS(A_INT(AXIS, 1))), "3x1: 2 3 6");
    expect(result(OP_GATHER_ND, IN(x, I("2x1: 2 0")), NO_ATTRS), "2x2: 5 6 1 2");
    expect(result(OP_GATHER_ND, IN(x, I("2x2: 2 0 -3 1")), NO_ATTRS), "2: 5 2");
    expect(
        result(OP_GATHER_ND, IN(F("2x3: 1 2 3 4 5 6"), I("2x1: 2 0")), ATTRS(A_INT(BATCH_DIMS, 1))),
        "2: 3 4");
}

static void test_scatter(void **state) {
    Value *x = F("3: 1 2 3"), *i = I("3: 1 -2 0"), *u = F("3: 10 20 30");
    expect(result(OP_SCATTER_ELEMENTS, IN(x, i, u), NO_ATTRS), "3: 30 20 3");
    expect(result(OP_SCATTER_ELEMENTS, IN(x, i, u), ATTRS(A_STR(REDUCTION, "add"))), "3: 31 32 3");
    expect(result(OP_SCATTER_ELEMENTS, IN(x, i, u), ATTRS(A_STR(REDUCTION, "mul"))), "3: 30 400 3");
    expect(result(OP_SCATTER_ELEMENTS, IN(x, i, u), ATTRS(A_STR(REDUCTION, "min"))), "3: 1 2 3");
    expect(result(OP_SCATTER_ELEMENTS, IN(x, i, u), ATTRS(A_STR(REDUCTION, "max"))), "3: 30 20 3");
    expect(result(OP_SCATTER_ELEMENTS, IN(F("2x2: 0 0 0 0"), I("2x1: 1 0"), F("2x1: 5 6")),
                  ATTRS(A_INT(AXIS, 1))),
           "2x2: 0 5 6 0");
    expect(result(OP_SCATTER_ND, IN(F("2x2: 1 2 3 4"), I("2x1: 1 1"), F("2x2: 5 6 7 8")),
                  ATTRS(A_STR(REDUCTION, "add"))),
           "2x2: 1 2 15 18");
    expect(result(OP_SCATTER_ND, IN(I("2x2: 1 2 3 4"), I("1x2: 0 1"), I("1: 9")), NO_ATTRS),
           "2x2: 1 9 3 4");
    expect(result(OP_SCATTER_ND, IN(I("3: 1 2 3"), I("0x1:"), I("0:")), NO_ATTRS), "3: 1 2 3");
    faults(EXIT_DATA, "index 2",
           result(OP_SCATTER_ND, IN(F("2: 1 2"), hide(I("1x1: 2")), F("1: 0")), NO_ATTRS));
}

static void test_matmul(void **state) {
    Value *a = F("2x3: 1 2 3 4 5 6"), *b = F("3x2: 7 8 9 10 11 12");
    expect(op_matmul(&at, a, b, false, false), "2x2: 58 64 139 154");
    expect(op_matmul(&at, a, a, true, false), "3x3: 17 22 27 22 29 36 27 36 45");
    expect(op_matmul(&at, a, a, false, true), "2x2: 14 32 32 77");
    expect(op_matmul(&at, F("3: 1 0 2"), b, false, false), "2: 29 32");
    expect(op_matmul(&at, a, F("3: 1 0 2"), false, false), "2: 7 16");
    expect(op_matmul(&at, F("3: 1 2 3"), F("3: 4 5 6"), false, false), ": 32");
    expect(op_matmul(&at, I("5x1: 1 2 3 4 5"), I("1x2: 1 10"), false, false),
           "5x2: 1 10 2 20 3 30 4 40 5 50");
    expect(op_matmul(&at, F("2x1x1x2: 1 2 3 4"), F("3x2x1: 1 0 0 1 1 1"), false, false),
           "2x3x1x1: 1 2 3 3 4 7");
    expect(op_matmul(&at, F("2x0:"), F("0x2:"), false, false), "2x2: 0 0 0 0");
    expect(op_matmul(&at, F("0x3:"), b, false, false), "0x2:");
    expect(op_matmul(&at, F("1x1: 0"), F("1x1: inf"), false, false), "1x1: nan");
    /* five rows: the blocks of four and the rest */
    expect(op_matmul(&at, F("5x2: 1 0 0 1 1 1 2 1 1 2"), F("2x2: 1 2 3 4"), false, false),
           "5x2: 1 2 3 4 4 6 5 8 7 10");
}

static void test_windows(void **state) {
    Value *x = F("1x1x3x3: 1 2 3 4 5 6 7 8 9");
    expect(result(OP_UNFOLD, IN(x), ATTRS(A_INTS(KERNEL, 2, 2))),
           "1x1x2x2x2x2: 1 2 4 5 2 3 5 6 4 5 7 8 5 6 8 9");
    expect(result(OP_UNFOLD, IN(F("1x1x4: 1 2 3 4")),
                  ATTRS(A_INTS(KERNEL, 2), A_INTS(STRIDES, 2), A_INTS(DILATIONS, 2),
                        A_INTS(PADS, 1, 1), A_FLOAT(VALUE_F, -1))),
           "1x1x2x2: -1 2 2 4");
    Value *y = F("1x1x2x2: 1 2 3 4");
    expect(result(OP_FOLD, IN(y), ATTRS(A_INTS(KERNEL, 2), A_INTS(DIMS, 3))), "1x1x3: 1 5 4");
    expect(
        result(OP_FOLD, IN(y),
               ATTRS(A_INTS(KERNEL, 2), A_INTS(STRIDES, 2), A_INTS(PADS, 1, 0), A_INTS(DIMS, 3))),
        "1x1x3: 3 2 4");
}

static void test_leaves_and_cuts(void **state) {
    Node *in = build_node(&at, OP_INPUT, NULL, 0, 1);
    node_set_str(in, AT_NAME, "x");
    in->out[0]->dtype = DT_F32;
    in->out[0]->rank = 1;
    in->out[0]->dims[0] = graph_symbol(graph, "batch");
    vec_push(&graph->inputs, in->out[0]);
    Value *sum = op_binary(&at, OP_ADD, in->out[0], of(DT_F32, ": 0.1"));
    Value *top = op_unary(&at, OP_NEG, sum);
    Eval ev = {.arena = &graph->arena, .diag = &diag, .round = true};
    ev.values = xcalloc((size_t)graph->next_value, sizeof *ev.values);
    assert_false(eval_graph(&ev, graph, &top, 1));
    expect_message(EXIT_DATA, "input \"x\" was not given");
    ev.values[in->out[0]->id] = rtensor_from(&graph->arena, tensor_of(DT_F64, "2: 1 2"));
    assert_false(eval_graph(&ev, graph, &top, 1));
    expect_message(EXIT_DATA, "expected f32[?]");
    ev.values[in->out[0]->id] = rtensor_from(&graph->arena, tensor_of(DT_F32, "2: 1 2"));
    assert_true(eval_graph(&ev, graph, &top, 1));
    assert_true(ev.values[top->id]->f[0] == -(double)(1.0F + 0.1F));
    /* a value set by the caller is taken, and what only it needs is left alone */
    ev.values[in->out[0]->id] = ev.values[top->id] = NULL;
    ev.values[sum->id] = rtensor_from(&graph->arena, tensor_of(DT_F32, "1: 5"));
    assert_true(eval_graph(&ev, graph, &top, 1));
    assert_true(ev.values[top->id]->count == 1 && ev.values[top->id]->f[0] == -5);
    ev.values[top->id] = NULL;
    ev.mem_limit = ev.used + 7;
    assert_false(eval_graph(&ev, graph, &top, 1));
    expect_message(EXIT_RESOURCE, "limit");
    free(ev.values);
}

static void test_rounding(void **state) {
    RTensor *r = rtensor_from(&graph->arena, tensor_of(DT_F64, "3: 0.1 300 -2.5"));
    Tensor *t = rtensor_to(&graph->arena, r, DT_BF16);
    assert_true(tensor_get_f(t, 0) == 0.10009765625 && tensor_get_f(t, 1) == 300);
    assert_int_equal(rtensor_to(&graph->arena, r, DT_F32)->dtype, DT_F32);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_unary),
        TEST(test_cast),
        TEST(test_binary_broadcast),
        TEST(test_binary_integers),
        TEST(test_reshape),
        TEST(test_move),
        TEST(test_slice),
        TEST(test_range_nonzero),
        TEST(test_reduce),
        TEST(test_argmax_cumsum),
        TEST(test_topk),
        TEST(test_softmax),
        TEST(test_gather),
        TEST(test_scatter),
        TEST(test_matmul),
        TEST(test_windows),
        TEST(test_leaves_and_cuts),
        TEST(test_rounding),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
