/* test_cost.c: operations and bytes of calls against closed forms, for programs as the lowerings
 * write them and for matrix products, with and without the data that decide how many rows there
 * are. */
#include "lower_help.h"

#include "codegen/cost.h"
#include "codegen/loop.h"

static CallCost sum_of(const LoopModule *m, const char *arena) {
    CallCost sum = {.exact = true};
    for (int i = 0; i < m->calls.n; i++) {
        CallCost c = call_cost(m, i, arena);
        sum.flops += c.flops;
        sum.special += c.special;
        sum.moved += c.moved;
        sum.minimum += c.minimum;
        sum.exact &= c.exact;
    }
    return sum;
}

/* The cost of all calls of a graph; integers of the input `counts` are put where the step reads
 * them. */
static CallCost cost_with(const char *text, const char *counts, const int64_t *values, bool fused) {
    Reader r;
    read_graph(&r, text);
    LoopModule *m = lower_graph(r.g, &(LowerOptions){.fused = fused}, &r.d);
    assert_non_null(m);
    char *arena = xcalloc(1, (size_t)m->arena_bytes + 64);
    bool found = !counts;
    for (int i = 0; counts && i < m->slots.n; i++)
        if (!strcmp(m->slots.at[i].name, counts)) {
            memcpy(arena + m->slots.at[i].offset, values, (size_t)m->slots.at[i].bytes);
            found = true;
        }
    assert_true(found);
    CallCost c = sum_of(m, arena);
    free(arena);
    loop_module_free(m);
    graph_free(r.g);
    diag_free(&r.d);
    return c;
}

static CallCost cost_of(const char *text) {
    return cost_with(text, NULL, NULL, true);
}

static void same(double found, double expected) {
    if (found != expected)
        fail_msg("expected %.17g, found %.17g", expected, found);
}

static void maps(void **state) {
    CallCost c = cost_of("x = f32[64,128]; y = f32[64,128]; z = add x y; w = mul z x; out w");
    same(c.flops, 2 * 64 * 128);
    same(c.minimum, 3 * 4 * 64 * 128);
    same(c.moved, c.minimum);
    assert_true(c.exact);
    /* what broadcasts is one row */
    c = cost_of("x = f32[64,128]; b = f32[128]; z = add x b; out z");
    same(c.minimum, 4 * (2 * 64 * 128 + 128));
    /* functions */
    c = cost_of("x = f32[1000]; y = exp x; out y");
    same(c.flops, 1000);
    same(c.special, 1000);
    /* more elements than one task takes, and not a multiple of a task */
    c = cost_of("x = f32[100003]; y = neg x; z = mul y x; out z");
    same(c.minimum, 2 * 4 * 100003);
    same(c.flops, 2 * 100003);
    /* a transpose moves all once */
    c = cost_of("x = f32[48,80]; y = transpose x {perm=[1,0]}; out y");
    same(c.flops, 0);
    same(c.minimum, 2 * 4 * 48 * 80);
    /* element types by their size */
    c = cost_of("x = f32[256]; y = cast x {to=f16}; out y");
    same(c.minimum, 6 * 256);
}

static void fusion_saves_bytes(void **state) {
    const char *text =
        "x = f32[64,128]; y = f32[64,128]; z = add x y; w = mul z x; v = neg w; out v";
    CallCost fused = cost_with(text, NULL, NULL, true), alone = cost_with(text, NULL, NULL, false);
    same(fused.flops, alone.flops);
    same(fused.moved, 3 * 4 * 64 * 128);
    same(alone.moved, (3 + 3 + 2) * 4 * 64 * 128);
}

static void rows(void **state) {
    CallCost c = cost_of("x = f32[64,100]; y = softmax x {axis=-1}; out y");
    /* max; subtract, exp, add; times the inverse of the row's sum */
    same(c.flops, 64 * (5 * 100 + 1));
    same(c.special, 64 * 100);
    same(c.minimum, 2 * 4 * 64 * 100);
    same(c.moved, 3 * 4 * 64 * 100); /* read for the maximum and again for the rest */
    c = cost_of("x = f32[30,70]; s = reduce_sum x {axes=[1],keepdims=0}; out s");
    same(c.flops, 30 * 70);
    same(c.minimum, 4 * (30 * 70 + 30));
}

static void gathers(void **state) {
    CallCost c =
        cost_of("w = param f32[1000,32]; i = i64<0,1000>[50]; y = gather w i {axis=0}; out y");
    same(c.flops, 0);
    same(c.minimum, 50 * (2 * 32 * 4 + 8));
}

static void products(void **state) {
    CallCost c = cost_of("x = f32[32,48]; y = f32[48,64]; z = matmul x y; out z");
    same(c.flops, 2.0 * 32 * 48 * 64);
    same(c.minimum, 4.0 * (32 * 48 + 48 * 64 + 32 * 64));
    same(c.moved, c.minimum);
    c = cost_of("x = f32[5,32,48]; y = f32[5,48,64]; z = matmul x y; out z");
    same(c.flops, 2.0 * 5 * 32 * 48 * 64);
    same(c.minimum, 4.0 * 5 * (32 * 48 + 48 * 64 + 32 * 64));
    /* an epilogue: a bias and a residual */
    c = cost_of("x = f32[32,48]; y = f32[48,64]; b = f32[64]; r = f32[32,64]; z = matmul x y; u = "
                "add z b; v = add u r; out v");
    same(c.flops, 2.0 * 32 * 48 * 64 + 2 * 32 * 64);
    same(c.minimum, 4.0 * (32 * 48 + 48 * 64 + 64 + 2 * 32 * 64));
}

/* A module of one call on an arena that holds offsets at its start. */
static CallCost one_call(LoopCall call, const int64_t *offsets) {
    LoopModule m = {0};
    vec_push(&m.calls, call);
    CallCost c = call_cost(&m, 0, (const char *)offsets);
    vec_free(&m.calls);
    return c;
}

static void products_by_expert(void **state) {
    const int64_t offsets[] = {0, 10, 10, 37}; /* of three experts the second has no rows */
    LoopCall call = {.kind = CALL_GEMM, .gemm_a = 64, .gemm_b = 64, .gemm_c = 64, .gemm_index = -1};
    call.gemm = (StgcGemm){.kind = STGC_GEMM_ROWS, .g1 = 3, .g2 = 1, .m = 90, .n = 20, .k = 30};
    CallCost c = one_call(call, offsets);
    same(c.flops, 2.0 * 37 * 20 * 30);
    same(c.minimum, 4.0 * (37 * 30 + 2 * 30 * 20 + 37 * 20));
    assert_true(c.exact);
    c = one_call(call, NULL); /* without data: as many rows as there may be */
    same(c.flops, 2.0 * 90 * 20 * 30);
    assert_false(c.exact);
    call.gemm_index = 64; /* rows by number, the result only as tiles */
    call.gemm_c = -1;
    c = one_call(call, offsets);
    same(c.minimum, 4.0 * (37 * 30 + 2 * 30 * 20) + 8 * 37);
    call =
        (LoopCall){.kind = CALL_GEMM, .gemm_a = 64, .gemm_b = 64, .gemm_c = 64, .gemm_index = -1};
    call.gemm = (StgcGemm){.kind = STGC_GEMM_K, .g1 = 3, .g2 = 1, .m = 20, .n = 30, .k = 90};
    c = one_call(call, offsets);
    same(c.flops, 2.0 * 37 * 20 * 30);
    same(c.minimum, 4.0 * (37 * (20 + 30) + 3 * 20 * 30));
}

static void token_dots(void **state) {
    const int64_t offsets[] = {0, 100, 100, 420};
    LoopCall call = {
        .kind = CALL_TOKEN_DOT, .dot_x = 64, .dot_d = 64, .dot_grad = -1, .dot_out = 64};
    call.dot = (StgcTokenDot){.groups = 3, .rows = 500, .in = 40, .out = 60, .mode = 2};
    CallCost c = one_call(call, offsets);
    same(c.flops, 2.0 * 2 * 420 * 40 * 60); /* the gradients, then each row with its own */
    call.dot_grad = 64;
    c = one_call(call, offsets);
    same(c.flops, 2.0 * 420 * 40 * 60);
    call.dot.mode = 1; /* columns in blocks of 32, rows from the block down */
    c = one_call(call, offsets);
    double pairs = (100 + 68 + 36) * 32 + 4 * 4, j;
    for (j = 0; j < 320; j += 32)
        pairs += (320 - j) * 32;
    same(c.flops, 2 * pairs * (40 + 60));
    assert_true(c.flops >= 2.0 * (100 * 100 + 320 * 320) / 2 * (40 + 60));
    call.dot.mode = 0;
    c = one_call(call, offsets);
    assert_true(c.flops <= 2.0 * 420 * 40 * 60 && c.flops > 0);
}

static void rows_that_data_decide(void **state) {
    const int64_t offsets[] = {0, 7, 7, 50, 64};
    CallCost c =
        cost_with("v = f32[80,48]; o = i64[5]; y = segment_sum v o; out y", "o", offsets, true);
    same(c.flops, 64 * 48);
    assert_true(c.exact);
    assert_true(c.minimum >= 4 * (64 * 48 + 4 * 48));
    assert_true(c.minimum <= 4 * (64 * 48 + 4 * 48) + 8 * 2 * 4);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(maps),       cmocka_unit_test(fusion_saves_bytes),
        cmocka_unit_test(rows),       cmocka_unit_test(gathers),
        cmocka_unit_test(products),   cmocka_unit_test(products_by_expert),
        cmocka_unit_test(token_dots), cmocka_unit_test(rows_that_data_decide),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
