/* test_infer.c: shape inference: symbols, operands that become attributes, and what is refused with
 * which words. */
#include "eval_help.h"

/* An input of a type and dims; a negative entry -k is the symbol number k-1 of the names below. */
static Value *input(DType t, int rank, const int64_t *dims) {
    static const char *const names[] = {"batch", "seq", "past"};
    Node *n = build_node(&at, OP_INPUT, NULL, 0, 1);
    node_set_str(n, AT_NAME, "x");
    n->out[0]->dtype = t;
    n->out[0]->rank = rank;
    for (int i = 0; i < rank; i++)
        n->out[0]->dims[i] = dims[i] < 0 ? graph_symbol(graph, names[-dims[i] - 1]) : dims[i];
    assert_true(node_infer(n, &diag));
    return n->out[0];
}
#define INPUT(t, ...) input(t, COUNT_OF(((int64_t[]){__VA_ARGS__})), (int64_t[]){__VA_ARGS__})

enum { BATCH = -1, SEQ = -2, PAST = -3 }; /* also what graph_symbol gives in this order */

static int setup(void **state) {
    start(state);
    assert_int_equal(graph_symbol(graph, "batch"), BATCH);
    assert_int_equal(graph_symbol(graph, "seq"), SEQ);
    assert_int_equal(graph_symbol(graph, "past"), PAST);
    return 0;
}

/* want: FRESH is any symbol but the three named ones. */
enum { FRESH = -99 };
static void shaped(const Value *v, int rank, const int64_t *want) {
    assert_int_equal(v->rank, rank);
    for (int i = 0; i < rank; i++) {
        if (want[i] == FRESH)
            assert_true(v->dims[i] < PAST);
        else
            assert_int_equal(v->dims[i], want[i]);
    }
}
#define SHAPED(v, ...) shaped(v, COUNT_OF(((int64_t[]){__VA_ARGS__})), (int64_t[]){__VA_ARGS__})

static void test_broadcast(void **state) {
    Value *x = INPUT(DT_F32, BATCH, SEQ, 8);
    SHAPED(op_binary(&at, OP_ADD, x, INPUT(DT_F32, 8)), BATCH, SEQ, 8);
    SHAPED(op_binary(&at, OP_ADD, x, INPUT(DT_F32, BATCH, 1, 1)), BATCH, SEQ, 8);
    SHAPED(op_binary(&at, OP_ADD, INPUT(DT_F32, 1, SEQ), INPUT(DT_F32, BATCH, 1)), BATCH, SEQ);
    SHAPED(op_binary(&at, OP_ADD, INPUT(DT_F32, SEQ), INPUT(DT_F32, 4)), 4);
    SHAPED(op_binary(&at, OP_ADD, INPUT(DT_F32, SEQ), INPUT(DT_F32, BATCH)), BATCH);
    SHAPED(op_binary(&at, OP_ADD, INPUT(DT_F32, 0), INPUT(DT_F32, 1)), 0);
    int rank;
    int64_t dims[MAX_RANK];
    assert_true(dims_broadcast(x, INPUT(DT_F32, 2, 1, 1, 1), &rank, dims));
    assert_true(rank == 4 && dims[0] == 2 && dims[1] == BATCH && dims[3] == 8);
    assert_false(dims_broadcast(x, INPUT(DT_F32, 7), &rank, dims));
}

static void test_reshape(void **state) {
    Value *x = INPUT(DT_F32, BATCH, SEQ, 8);
    Node *n = node(OP_RESHAPE, IN(x, I("2: -1 8")), NO_ATTRS);
    SHAPED(n->out[0], FRESH, 8);
    assert_int_equal(n->nin, 1);
    int64_t symbol = n->out[0]->dims[0];
    assert_true(node_infer(n, &diag)); /* keeps its symbol */
    assert_int_equal(n->out[0]->dims[0], symbol);
    n = node(OP_RESHAPE, IN(x, I("4: 0 0 2 -1")), NO_ATTRS);
    SHAPED(n->out[0], BATCH, SEQ, 2, 4);
    assert_int_equal(n->nin, 2); /* two symbols: no attribute can say it yet */
    graph_bind(graph, SEQ, 5);
    assert_true(graph_infer(graph, &diag));
    SHAPED(n->out[0], BATCH, 5, 2, 4);
    assert_int_equal(n->nin, 1);
    graph_bind(graph, BATCH, 3);
    assert_true(graph_infer(graph, &diag));
    SHAPED(n->out[0], 3, 5, 2, 4);
    const int64_t *dims;
    assert_int_equal(node_ints(n, AT_DIMS, &dims), 4);
    assert_int_equal(dims[0], 3);
    SHAPED(result(OP_RESHAPE, IN(x, INPUT(DT_I64, 2)), NO_ATTRS), FRESH, FRESH);
    SHAPED(result(OP_RESHAPE, IN(INPUT(DT_F32, PAST, 4), I("2: 4 -1")), NO_ATTRS), 4, PAST);
    refuses("6 elements against 8", OP_RESHAPE, IN(INPUT(DT_F32, 2, 3), I("2: 2 4")), NO_ATTRS);
    refuses("not a multiple", OP_RESHAPE, IN(INPUT(DT_F32, 2, 3), I("2: 4 -1")), NO_ATTRS);
    refuses("one -1", OP_RESHAPE, IN(INPUT(DT_F32, 2, 3), I("2: -1 -1")), NO_ATTRS);
    refuses("ambiguous", OP_RESHAPE, IN(INPUT(DT_F32, 3, 0), I("3: 2 0 -1")), NO_ATTRS);
    /* beside a 0, axes that stay tell the -1 */
    SHAPED(result(OP_RESHAPE, IN(INPUT(DT_F32, 0, 3), I("2: 0 -1")), NO_ATTRS), 0, 3);
    SHAPED(result(OP_RESHAPE, IN(INPUT(DT_F32, 0, 4, 24), I("4: 0 0 3 -1")), NO_ATTRS), 0, 4, 3, 8);
    SHAPED(result(OP_RESHAPE, IN(INPUT(DT_F32, 4, 6, 0), I("3: -1 8 0")), NO_ATTRS), 3, 8, 0);
    refuses("does not have", OP_RESHAPE, IN(INPUT(DT_F32, 2), I("2: 2 0")), NO_ATTRS);
    refuses("expected -1 or more", OP_RESHAPE, IN(INPUT(DT_F32, 2), I("1: -2")), NO_ATTRS);
    refuses("depends on data", OP_RESHAPE, IN(INPUT(DT_F32, 2), INPUT(DT_I64, SEQ)), NO_ATTRS);
}

static void test_slice(void **state) {
    Value *x = INPUT(DT_F32, BATCH, 10);
    Node *n = node(OP_SLICE, IN(x, I("2: 0 -3"), I("2: 9223372036854775807 100"), I("2: 0 -1")),
                   NO_ATTRS);
    SHAPED(n->out[0], BATCH, 3);
    const int64_t *axes, *starts, *ends;
    assert_int_equal(node_ints(n, AT_AXES, &axes), 2);
    node_ints(n, AT_STARTS, &starts);
    node_ints(n, AT_ENDS, &ends);
    assert_true(n->nin == 1 && axes[1] == 1 && starts[1] == 7 && ends[1] == 10);
    SHAPED(op_slice(&at, x, 0, 1, 4, 1), FRESH, 10);
    SHAPED(result(OP_SLICE, IN(x, I("1: 0"), INPUT(DT_I64, 1), I("1: 1")), NO_ATTRS), BATCH, FRESH);
    SHAPED(result(OP_SLICE, IN(x, I("1: 0"), INPUT(DT_I64, 1), INPUT(DT_I64, 1)), NO_ATTRS), FRESH,
           FRESH);
    refuses("step on axis 1 is 0", OP_SLICE, IN(x, I("1: 0"), I("1: 1"), I("1: 1"), I("1: 0")),
            NO_ATTRS);
    refuses("outside a shape of rank 2", OP_SLICE, IN(x, I("1: 0"), I("1: 1"), I("1: 2")),
            NO_ATTRS);
    refuses("twice", OP_SLICE, IN(x, I("2: 0 0"), I("2: 1 1"), I("2: 1 -1")), NO_ATTRS);
    refuses("2 ends for 1 starts", OP_SLICE, IN(x, I("1: 0"), I("2: 1 1")), NO_ATTRS);
}

static void test_shape_ops(void **state) {
    Value *x = INPUT(DT_F32, BATCH, SEQ, 8);
    SHAPED(op_transpose(&at, x, (int64_t[]){2, 0, 1}), 8, BATCH, SEQ);
    SHAPED(op_concat(&at, (Value *[]){x, x}, 2, 2), BATCH, SEQ, 16);
    SHAPED(op_concat(&at, (Value *[]){x, x}, 2, 1), BATCH, FRESH, 8);
    SHAPED(op_expand(&at, INPUT(DT_F32, BATCH, 1), 2, (int64_t[]){1, 4}), BATCH, 4);
    SHAPED(result(OP_EXPAND, IN(INPUT(DT_F32, BATCH, 4), INPUT(DT_I64, 2)), NO_ATTRS), FRESH, 4);
    SHAPED(result(OP_PAD, IN(x), ATTRS(A_INTS(PADS, 0, 1, 0, 0, 0, 2))), BATCH, FRESH, 10);
    SHAPED(result(OP_SHAPE, IN(x), NO_ATTRS), 3);
    SHAPED(result(OP_NONZERO, IN(x), NO_ATTRS), 3, FRESH);
    SHAPED(result(OP_RANGE, IN(I(": 0"), INPUT(DT_I64, 1), I(": 1")), NO_ATTRS), FRESH);
    SHAPED(op_reduce(&at, OP_REDUCE_SUM, x, (int64_t[]){-1}, 1, true), BATCH, SEQ, 1);
    refuses("not a permutation", OP_TRANSPOSE, IN(x), ATTRS(A_INTS(PERM, 0, 0, 1)));
    refuses("expected 3", OP_TRANSPOSE, IN(x), ATTRS(A_INTS(PERM, 1, 0)));
    refuses("axis 0 differs", OP_CONCAT, IN(INPUT(DT_F32, 2, 3), INPUT(DT_F32, 3, 3)),
            ATTRS(A_INT(AXIS, 1)));
    refuses("ranks differ", OP_CONCAT, IN(INPUT(DT_F32, 2), INPUT(DT_F32, 2, 1)), NO_ATTRS);
    refuses("do not broadcast", OP_EXPAND, IN(INPUT(DT_F32, 3)), ATTRS(A_INTS(DIMS, 2)));
    refuses("2^40", OP_EXPAND, IN(F(": 1")), ATTRS(A_INTS(DIMS, 1 << 30, 1 << 30)));
    refuses("do not fit axis 0", OP_PAD, IN(INPUT(DT_F32, 3)), ATTRS(A_INTS(PADS, -2, -2)));
    refuses("reduced twice", OP_REDUCE_SUM, IN(x), ATTRS(A_INTS(AXES, 2, -1)));
    refuses("has no size", OP_RANGE, IN(I(": 0"), I(": 4"), I(": 0")), NO_ATTRS);
    refuses("which is too many", OP_RANGE, IN(I(": 0"), I(": 4611686018427387904"), I(": 1")),
            NO_ATTRS);
}

static void test_index_ops(void **state) {
    Value *x = INPUT(DT_F32, BATCH, 4);
    SHAPED(op_gather(&at, x, INPUT(DT_I64, SEQ, 2), 1), BATCH, SEQ, 2);
    SHAPED(node(OP_TOPK, IN(x, I("1: 2")), NO_ATTRS)->out[1], BATCH, 2);
    SHAPED(node(OP_TOPK, IN(x, INPUT(DT_I64, 1)), NO_ATTRS)->out[0], BATCH, FRESH);
    SHAPED(result(OP_GATHER_ND, IN(x, INPUT(DT_I64, SEQ, 1)), NO_ATTRS), SEQ, 4);
    refuses("constant index 4", OP_GATHER, IN(x, I("2: 0 4")), ATTRS(A_INT(AXIS, 1)));
    refuses("constant index -5", OP_GATHER_ELEMENTS, IN(x, I("1x1: -5")), ATTRS(A_INT(AXIS, 1)));
    refuses("constant index 2", OP_GATHER_ND, IN(INPUT(DT_F32, 2), I("1x1: 2")), NO_ATTRS);
    refuses("expected an integer", OP_GATHER, IN(x, INPUT(DT_F32, 1)), NO_ATTRS);
    refuses("k is 5", OP_TOPK, IN(x, I("1: 5")), NO_ATTRS);
    refuses("k is -1", OP_TOPK, IN(x, I("1: -1")), NO_ATTRS);
    refuses("updates have shape", OP_SCATTER_ND, IN(x, INPUT(DT_I64, 3, 1), INPUT(DT_F32, 3, 5)),
            NO_ATTRS);
    refuses("reduction \"avg\"", OP_SCATTER_ELEMENTS, IN(x, I("1x1: 0"), INPUT(DT_F32, 1, 1)),
            ATTRS(A_STR(REDUCTION, "avg")));
    refuses("addresses 3 axes", OP_GATHER_ND, IN(x, INPUT(DT_I64, 5, 3)), NO_ATTRS);
    refuses("axis 2 is outside", OP_SOFTMAX, IN(x), ATTRS(A_INT(AXIS, 2)));
}

static void test_linear_ops(void **state) {
    Value *x = INPUT(DT_F32, BATCH, SEQ, 8);
    SHAPED(op_matmul(&at, x, INPUT(DT_F32, 8, 3), false, false), BATCH, SEQ, 3);
    SHAPED(op_matmul(&at, x, INPUT(DT_F32, 3, 8), false, true), BATCH, SEQ, 3);
    SHAPED(op_matmul(&at, x, INPUT(DT_F32, 8), false, false), BATCH, SEQ);
    SHAPED(op_matmul(&at, INPUT(DT_F32, BATCH, 1, SEQ, 8), INPUT(DT_F32, 4, 8, SEQ), false, false),
           BATCH, 4, SEQ, SEQ);
    SHAPED(result(OP_UNFOLD, IN(INPUT(DT_F32, BATCH, 3, 7, SEQ)),
                  ATTRS(A_INTS(KERNEL, 3, 1), A_INTS(STRIDES, 2, 1))),
           BATCH, 3, 3, 1, 3, FRESH);
    refuses("inner sizes 8 and 4", OP_MATMUL, IN(x, INPUT(DT_F32, 4, 3)), NO_ATTRS);
    refuses("operand 1 \"\" f64[]", OP_MATMUL, IN(INPUT(DT_F64, 2), F(": 1")), NO_ATTRS);
    refuses("window of 5", OP_UNFOLD, IN(INPUT(DT_F32, 1, 1, 4)), ATTRS(A_INTS(KERNEL, 5)));
    refuses("strides is 0", OP_UNFOLD, IN(INPUT(DT_F32, 1, 1, 4)),
            ATTRS(A_INTS(KERNEL, 2), A_INTS(STRIDES, 0)));
}

static void test_row_ops(void **state) {
    Node *n = node(OP_DISPATCH, IN(INPUT(DT_I64, 6, 2)), ATTRS(A_INT(EXPERTS, 4)));
    SHAPED(n->out[0], 5);
    SHAPED(n->out[1], 12);
    SHAPED(n->out[4], 6, 2);
    SHAPED(n->out[5], 6, 4);
    n = node(OP_DISPATCH, IN(INPUT(DT_F32, SEQ, 4)), ATTRS(A_INT(EXPERTS, 4)));
    SHAPED(n->out[1], FRESH);
    SHAPED(n->out[4], SEQ, 4);
    Value *rows = INPUT(DT_F32, 12, 8), *offsets = INPUT(DT_I64, 5);
    SHAPED(result(OP_GROUPED_MATMUL, IN(rows, offsets, INPUT(DT_F32, 4, 8, 3)), NO_ATTRS), 12, 3);
    SHAPED(
        result(OP_GROUPED_WGRAD, IN(rows, INPUT(DT_F32, 12, 3), offsets), ATTRS(A_INT(TRANS_B, 1))),
        4, 3, 8);
    SHAPED(result(OP_TOKEN_DOT, IN(rows, INPUT(DT_F32, 12, 3), offsets), NO_ATTRS), 12);
    refuses("expected size 6 on axis 1", OP_DISPATCH, IN(INPUT(DT_BOOL, 3, 4)),
            ATTRS(A_INT(EXPERTS, 6)));
    refuses("experts is 0", OP_DISPATCH, IN(INPUT(DT_I64, 3, 4)), NO_ATTRS);
    refuses("an expert's weight has shape [4,7,3]", OP_GROUPED_MATMUL,
            IN(rows, offsets, INPUT(DT_F32, 4, 7, 3)), NO_ATTRS);
    refuses("3 expert matrices for 4", OP_GROUPED_MATMUL,
            IN(rows, offsets, INPUT(DT_F32, 8, 3), INPUT(DT_F32, 8, 3), INPUT(DT_F32, 8, 3)),
            NO_ATTRS);
    refuses("differ in width", OP_GROUPED_MATMUL,
            IN(rows, INPUT(DT_I64, 3), INPUT(DT_F32, 8, 3), INPUT(DT_F32, 8, 2)), NO_ATTRS);
    refuses("labels has shape [5]", OP_XENT, IN(INPUT(DT_F32, 4, 9), INPUT(DT_I64, 5)), NO_ATTRS);
    refuses("hyper has 2", OP_SGD, IN(rows, rows, INPUT(DT_F32, 2)), NO_ATTRS);
    refuses("the inverse has shape", OP_GATHER_ROWS,
            IN(rows, INPUT(DT_I64, 3), INPUT(DT_I64, 3, 2)), NO_ATTRS);
}

static void test_types_and_arity(void **state) {
    Value *x = INPUT(DT_F32, 2), *i = INPUT(DT_I64, 2), *b = INPUT(DT_BOOL, 2);
    refuses("f32 and i64", OP_ADD, IN(x, i), NO_ATTRS);
    refuses("bool operands", OP_MUL, IN(b, b), NO_ATTRS);
    refuses("expected bool", OP_AND, IN(i, i), NO_ATTRS);
    refuses("the condition is i64", OP_WHERE, IN(i, x, x), NO_ATTRS);
    refuses("expected a float", OP_EXP, IN(i), NO_ATTRS);
    refuses("operand 1 of add is missing", OP_ADD, IN(x, NULL), NO_ATTRS);
    refuses("sizes 2 and 3", OP_ADD, IN(x, INPUT(DT_F32, 3)), NO_ATTRS);
    refuses("no known target", OP_CAST, IN(x), NO_ATTRS);
    assert_int_equal(op_binary(&at, OP_LT, x, x)->dtype, DT_BOOL);
    assert_int_equal(op_binary(&at, OP_POW, x, i)->dtype, DT_F32);
    assert_int_equal(op_cast(&at, x, DT_BF16)->dtype, DT_BF16);
}

/* Every node that does not fit is reported, what hangs on it is not. */
static void test_whole_graph(void **state) {
    Value *x = INPUT(DT_F32, 2), *y = INPUT(DT_F32, 3);
    Node *bad = build_node(&at, OP_ADD, (Value *[]){x, y}, 2, 1);
    build_node(&at, OP_NEG, bad->out, 1, 1);
    build_node(&at, OP_MATMUL, (Value *[]){x, y}, 2, 1);
    assert_false(graph_infer(graph, &diag));
    assert_int_equal(diag.errors, 2);
}

#define INFER(f) cmocka_unit_test_setup_teardown(f, setup, stop)

int main(void) {
    const struct CMUnitTest tests[] = {
        INFER(test_broadcast), INFER(test_reshape),         INFER(test_slice),
        INFER(test_shape_ops), INFER(test_index_ops),       INFER(test_linear_ops),
        INFER(test_row_ops),   INFER(test_types_and_arity), INFER(test_whole_graph),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
