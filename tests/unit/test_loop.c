/* Loop programs: folding, value numbering, printing, hash and equality. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "codegen/loop_program.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static LoopProgram *fresh(void) {
    return loop_program_new(PROGRAM_TASK, "test");
}

static int64_t int_of(const LoopProgram *p, LVal v) {
    int64_t i;
    assert_true(lp_is_const_i(p, v, &i));
    return i;
}

static void folds_integers(void **state) {
    (void)state;
    LoopProgram *p = fresh();
    LVal min = lp_const_i(p, INT64_MIN), minus = lp_const_i(p, -1), zero = lp_const_i(p, 0),
         seven = lp_const_i(p, 7);
    assert_int_equal(int_of(p, lp_2(p, L_DIV, lp_const_i(p, -7), lp_const_i(p, 2))), -3);
    assert_int_equal(int_of(p, lp_2(p, L_REM, lp_const_i(p, -7), lp_const_i(p, 2))), -1);
    assert_int_equal(int_of(p, lp_2(p, L_DIV, seven, zero)), 0);
    assert_int_equal(int_of(p, lp_2(p, L_REM, seven, zero)), 0);
    assert_true(int_of(p, lp_2(p, L_DIV, min, minus)) == INT64_MIN);
    assert_int_equal(int_of(p, lp_2(p, L_REM, min, minus)), 0);
    assert_true(int_of(p, lp_1(p, L_ABS, min)) == INT64_MIN);
    assert_true(int_of(p, lp_2(p, L_SUB, min, lp_const_i(p, 1))) == INT64_MAX);
    assert_int_equal(int_of(p, lp_op(p, L_FMA, seven, seven, minus)), 48);
    assert_int_equal(int_of(p, lp_1(p, L_TO_I64, lp_const_f(p, LT_F32, NAN))), 0);
    assert_true(int_of(p, lp_1(p, L_TO_I64, lp_const_f(p, LT_F64, 1e30))) == INT64_MAX);
    assert_true(int_of(p, lp_1(p, L_TO_I64, lp_const_f(p, LT_F64, -INFINITY))) == INT64_MIN);
    assert_int_equal(int_of(p, lp_1(p, L_TO_I64, lp_const_f(p, LT_F32, -2.9))), -2);
    loop_program_free(p);
}

static void folds_identities(void **state) {
    (void)state;
    LoopProgram *p = fresh();
    LVal t = lp_task(p), one = lp_const_i(p, 1), zero = lp_const_i(p, 0);
    assert_int_equal(lp_2(p, L_ADD, t, zero), t);
    assert_int_equal(lp_2(p, L_ADD, zero, t), t);
    assert_int_equal(lp_2(p, L_MUL, one, t), t);
    assert_int_equal(lp_2(p, L_DIV, t, one), t);
    assert_int_equal(int_of(p, lp_2(p, L_MUL, t, zero)), 0);
    assert_int_equal(int_of(p, lp_2(p, L_REM, t, one)), 0);
    LVal a = lp_2(p, L_ADD, lp_2(p, L_ADD, t, lp_const_i(p, 3)), lp_const_i(p, 4));
    assert_int_equal(a, lp_2(p, L_ADD, lp_const_i(p, 7), t));
    LVal m = lp_2(p, L_MUL, lp_2(p, L_MUL, t, lp_const_i(p, 3)), lp_const_i(p, 4));
    assert_int_equal(m, lp_2(p, L_MUL, t, lp_const_i(p, 12)));
    LVal c = lp_2(p, L_LT, t, one);
    assert_int_equal(lp_op(p, L_SELECT, c, t, t), t);
    assert_int_equal(lp_op(p, L_SELECT, lp_const_b(p, false), t, one), one);
    assert_int_equal(lp_1(p, L_NOT, lp_1(p, L_NOT, c)), c);
    assert_int_equal(lp_1(p, L_TO_BOOL, lp_1(p, L_TO_F32, c)), c);
    /* not for floats: x + 0 changes -0, x * 0 changes inf */
    LVal x = lp_1(p, L_TO_F32, t), f0 = lp_const_f(p, LT_F32, 0);
    assert_int_not_equal(lp_2(p, L_ADD, x, f0), x);
    assert_int_equal(lp_type(p, lp_2(p, L_MUL, x, f0)), LT_F32);
    assert_int_equal(lp_inst(p, lp_2(p, L_MUL, x, f0))->kind, LI_OP);
    assert_int_equal(lp_2(p, L_SUB, x, f0), x);
    assert_int_equal(lp_2(p, L_POW, x, lp_const_f(p, LT_F32, 2)), lp_2(p, L_MUL, x, x));
    loop_program_free(p);
}

static void numbers_values_by_scope(void **state) {
    (void)state;
    LoopProgram *p = fresh();
    LVal t = lp_task(p), n = lp_const_i(p, 8), three = lp_const_i(p, 3);
    LVal outside = lp_2(p, L_MUL, t, three);
    LVal i = lp_loop(p, LOOP_SEQ, lp_const_i(p, 0), n);
    assert_int_equal(lp_2(p, L_MUL, t, three), outside); /* seen from inside */
    LVal inside = lp_2(p, L_ADD, i, t), inside2 = lp_2(p, L_DIV, t, three);
    assert_int_equal(lp_2(p, L_ADD, i, t), inside);
    lp_end(p);
    LVal again = lp_2(p, L_DIV, t, three); /* the one in the loop is out of reach */
    assert_int_not_equal(again, inside2);
    assert_int_equal(lp_2(p, L_DIV, t, three), again);
    loop_program_free(p);
}

static LoopProgram *sum(const char *name, double start) {
    LoopProgram *p = loop_program_new(PROGRAM_TASK, name);
    int x = lp_buffer(p, DT_F32), y = lp_buffer(p, DT_F16);
    int s = lp_var(p, LT_F32, lp_const_f(p, LT_F32, start));
    LVal i = lp_loop(p, LOOP_VECTOR, lp_const_i(p, 0), lp_const_i(p, 8));
    LVal at = lp_2(p, L_ADD, lp_2(p, L_MUL, lp_task(p), lp_const_i(p, 8)), i);
    LVal sum_ = lp_get(p, s), term = lp_load(p, x, at);
    lp_set(p, s, lp_2(p, L_ADD, sum_, term));
    lp_end(p);
    lp_if(p, lp_2(p, L_LT, lp_task(p), lp_const_i(p, 2)));
    lp_store(p, y, lp_task(p), lp_get(p, s));
    lp_else(p);
    lp_fault(p, "too many", lp_task(p), lp_const_i(p, 1));
    lp_end(p);
    return p;
}

static char *text_of(const LoopProgram *p) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    loop_program_print(p, f);
    fclose(f);
    return text;
}

static void prints(void **state) {
    (void)state;
    LoopProgram *p = sum("row sum", 0);
    char *text = text_of(p);
    assert_string_equal(text, "task program \"row sum\" (b0 f32, b1 f16) {\n"
                              "  var v0 = 0f\n"
                              "  for vector %1 = 0 .. 8 {\n"
                              "    %2 = mul task, 8 : i64\n"
                              "    %3 = add %2, %1 : i64\n"
                              "    %4 = v0\n"
                              "    %5 = load b0[%3] : f32\n"
                              "    %6 = add %4, %5 : f32\n"
                              "    v0 = %6\n"
                              "  }\n"
                              "  %7 = lt task, 2 : bool\n"
                              "  if %7 {\n"
                              "    %8 = v0\n"
                              "    store b1[task] = %8\n"
                              "  } else {\n"
                              "    fault \"too many\" at task value 1\n"
                              "  }\n"
                              "}\n");
    free(text);
    loop_program_free(p);
}

/* A vector loop around a sequential one becomes blocks of lanes; one that may not stays as it is.
 */
static LoopProgram *column_sum(bool triangle, int64_t columns) {
    LoopProgram *p = loop_program_new(PROGRAM_TASK, "column sum");
    int x = lp_buffer(p, DT_F32);
    LVal j = lp_loop(p, LOOP_VECTOR, lp_const_i(p, 0), lp_const_i(p, columns));
    int s = lp_var(p, LT_F32, lp_const_f(p, LT_F32, 0));
    LVal i = lp_loop(p, LOOP_SEQ, lp_const_i(p, 0), triangle ? j : lp_const_i(p, 4));
    LVal row = lp_2(p, L_MUL, i, lp_const_i(p, columns)), at = lp_2(p, L_ADD, row, j);
    LVal sum_ = lp_get(p, s), term = lp_load(p, x, at);
    lp_set(p, s, lp_2(p, L_ADD, sum_, term));
    lp_end(p);
    LVal all = lp_get(p, s);
    lp_store(p, x, j, all);
    lp_end(p);
    return p;
}

static void distributes_outer_vector_loops(void **state) {
    (void)state;
    LoopProgram *p = column_sum(false, 512), *q = loop_distribute(p);
    char *text = text_of(q);
    assert_string_equal(text, "task program \"column sum\" (b0 f32) {\n"
                              "  local l0 f32[256]\n"
                              "  for %1 = 0 .. 2 {\n"
                              "    %2 = mul %1, 256 : i64\n"
                              "    for vector %3 = 0 .. 256 {\n"
                              "      %4 = add %2, %3 : i64\n"
                              "      store l0[%3] = 0f\n"
                              "    }\n"
                              "    for %5 = 0 .. 4 {\n"
                              "      %6 = mul %5, 512 : i64\n"
                              "      for vector %7 = 0 .. 256 {\n"
                              "        %8 = add %2, %7 : i64\n"
                              "        %9 = add %6, %8 : i64\n"
                              "        %10 = load l0[%7] : f32\n"
                              "        %11 = load b0[%9] : f32\n"
                              "        %12 = add %10, %11 : f32\n"
                              "        store l0[%7] = %12\n"
                              "      }\n"
                              "    }\n"
                              "    for vector %13 = 0 .. 256 {\n"
                              "      %14 = add %2, %13 : i64\n"
                              "      %15 = load l0[%13] : f32\n"
                              "      store b0[%14] = %15\n"
                              "    }\n"
                              "  }\n"
                              "}\n");
    free(text);
    loop_program_free(p);
    loop_program_free(q);
    p = column_sum(true, 512), q = loop_distribute(p); /* the inner loop's end depends on j */
    char *before = text_of(p), *after = text_of(q);
    assert_string_equal(before, after);
    free(before);
    free(after);
    loop_program_free(p);
    loop_program_free(q);
}

static void equal_but_for_the_name(void **state) {
    (void)state;
    LoopProgram *a = sum("a", 0), *b = sum("b", 0), *c = sum("c", 1), *d = sum("d", -0.0);
    assert_true(loop_program_equal(a, b));
    assert_true(loop_program_hash(a) == loop_program_hash(b));
    assert_false(loop_program_equal(a, c));
    assert_false(loop_program_equal(a, d)); /* -0 is another constant */
    assert_true(loop_program_hash(a) != loop_program_hash(c));
    loop_program_free(a);
    loop_program_free(b);
    loop_program_free(c);
    loop_program_free(d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(folds_integers),
        cmocka_unit_test(folds_identities),
        cmocka_unit_test(numbers_values_by_scope),
        cmocka_unit_test(prints),
        cmocka_unit_test(distributes_outer_vector_loops),
        cmocka_unit_test(equal_but_for_the_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
