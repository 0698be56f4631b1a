/* The proof that rows of a batch do not meet (passes/rows_apart.h): graphs of 3 rows of 4 tokens,
 * each with what is allowed, or with one thing that mixes rows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <string.h>

#include "ir/infer.h"
#include "ir/text.h"
#include "passes/rows_apart.h"

/* What the graph says of its output "y". */
static void check(const char *text, bool apart, const char *why_part) {
    Diag d = {0};
    Graph *g = graph_parse(text, NULL, &d);
    if (!g)
        diag_print(&d, stderr, true);
    assert_non_null(g);
    const char *why = NULL;
    bool got = rows_apart(g, g->outputs.at[0].value, 3, &why);
    if (got != apart)
        print_message("%s%s\n", text, why ? why : "");
    assert_int_equal(got, apart);
    if (why_part)
        assert_non_null(strstr(why, why_part));
    else
        assert_null(why);
    graph_free(g);
    diag_free(&d);
}

#define HEAD \
    "graph \"t\"\n" \
    "%0 = input {name=\"x\"} : f32[3,4,8]\n" \
    "%1 = param {kind=0, name=\"w\"} : f32[8,8]\n"

static void work_within_rows_is_seen_through(void **state) {
    check(HEAD "%2 = matmul %0 %1 : f32[3,4,8]\n"
               "%3 = softmax %2 {axis=-1} : f32[3,4,8]\n"
               "%4 = reshape %3 {dims=[12,8]} : f32[12,8]\n"
               "%5 = matmul %4 %1 : f32[12,8]\n"
               "%6 = reshape %5 {dims=[3,4,2,4]} : f32[3,4,2,4]\n"
               "%7 = transpose %6 {perm=[0,2,1,3]} : f32[3,2,4,4]\n"
               "%8 = matmul %7 %7 {trans_b=1} : f32[3,2,4,4]\n"
               "%9 = matmul %8 %7 : f32[3,2,4,4]\n"
               "%10 = reduce_sum %9 {axes=[1], keepdims=0} : f32[3,4,4]\n"
               "%11 = cumsum %10 {axis=1} : f32[3,4,4]\n"
               "%12 = slice %11 {axes=[1], starts=[1], ends=[3], steps=[1]} : f32[3,2,4]\n"
               "output \"y\" %12\n",
          true, NULL);
}

static void sums_over_rows_are_not(void **state) {
    check(HEAD "%2 = reduce_sum %0 {axes=[0], keepdims=1} : f32[1,4,8]\n"
               "%3 = sub %0 %2 : f32[3,4,8]\noutput \"y\" %3\n",
          false, "(reduce_sum)");
    check(HEAD "%2 = reshape %0 {dims=[12,8]} : f32[12,8]\n"
               "%3 = cumsum %2 {axis=0} : f32[12,8]\noutput \"y\" %3\n",
          false, "(cumsum)");
    check(HEAD "%2 = softmax %0 {axis=0} : f32[3,4,8]\noutput \"y\" %2\n", false, "(softmax)");
    check(HEAD "%2 = reshape %0 {dims=[12,8]} : f32[12,8]\n"
               "%3 = matmul %2 %2 {trans_b=1} : f32[12,12]\n"
               "%4 = matmul %3 %2 : f32[12,8]\noutput \"y\" %4\n",
          false, "(matmul)");
    check(HEAD "%2 = transpose %0 {perm=[1,0,2]} : f32[4,3,8]\n"
               "%3 = matmul %2 %2 {trans_a=1} : f32[4,8,8]\noutput \"y\" %3\n",
          false, "(matmul)");
}

static void rows_that_move_are_not(void **state) {
    check(HEAD "%2 = slice %0 {axes=[0], starts=[1], ends=[3], steps=[1]} : f32[2,4,8]\n"
               "output \"y\" %2\n",
          false, "(slice)");
    check(HEAD "%2 = slice %0 {axes=[0], starts=[2], ends=[-4], steps=[-1]} : f32[3,4,8]\n"
               "output \"y\" %2\n",
          false, "(slice)");
    check(HEAD "%2 = concat %0 %0 {axis=0} : f32[6,4,8]\noutput \"y\" %2\n", false, "(concat)");
    check(HEAD "%2 = const {value=i64[3](2 1 0)} : i64[3]\n"
               "%3 = gather %0 %2 {axis=0} : f32[3,4,8]\noutput \"y\" %3\n",
          false, "(gather)");
    check(HEAD "%2 = transpose %0 {perm=[1,0,2]} : f32[4,3,8]\n"
               "%3 = reshape %2 {dims=[3,4,8]} : f32[3,4,8]\noutput \"y\" %3\n",
          false, "not made of the batch's rows");
}

static void constants_by_row_must_agree(void **state) {
    check(HEAD "%2 = const {value=f32[3,1,1](5 5 5)} : f32[3,1,1]\n"
               "%3 = add %0 %2 : f32[3,4,8]\noutput \"y\" %3\n",
          true, NULL);
    check(HEAD "%2 = const {value=f32[3,1,1](5 5 6)} : f32[3,1,1]\n"
               "%3 = add %0 %2 : f32[3,4,8]\noutput \"y\" %3\n",
          false, "(add)");
    check("graph \"t\"\n%0 = input {name=\"x\"} : f32[3,4]\n"
          "%1 = param {kind=0, name=\"w\"} : f32[3,4]\n"
          "%2 = mul %0 %1 : f32[3,4]\noutput \"y\" %2\n",
          false, "(mul)");
    check(HEAD "output \"y\" %1\n", false, "not made of the batch's rows");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(work_within_rows_is_seen_through),
        cmocka_unit_test(sums_over_rows_are_not),
        cmocka_unit_test(rows_that_move_are_not),
        cmocka_unit_test(constants_by_row_must_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
