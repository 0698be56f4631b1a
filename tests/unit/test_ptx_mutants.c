/* Do the tests of kernels bite? Mutants of the sample kernels go through the cases that check them;
 * at least nine of ten must be caught, and four of five of each file (nvcc's function library has
 * terms that only matter below its stated error). tests/ptx/mutants.txt says why the others live.
 *
 * PTX_MUTANTS=all tries every mutant instead of a sample, PTX_MUTANTS=list prints the survivors. */
#include "ptx_kernels.h"

#include "tests/ptx/tools.h"

enum { SAMPLE = 350 }; /* of a file */

static const struct {
    PtxApprox approx;
    uint64_t seed;
    bool late;
} ways[] = {{PTX_APPROX_EXACT, 0, false}, {PTX_APPROX_HIGH, 7, true}, {PTX_APPROX_LOW, 0, true}};

/* Whether a case notices; "" if none does. */
static bool killed(const PtxMutant *x, const char *file) {
    char word[140];
    snprintf(word, sizeof word, " %s ", x->kernel);
    for (size_t way = 0; way < sizeof ways / sizeof *ways; way++) {
        PtxOptions o = ptx_options(80);
        o.approx = ways[way].approx;
        o.seed = ways[way].seed;
        o.async_late = ways[way].late;
        o.budget = 1 << 18;
        PtxDevice *d = ptx_device_new(&o);
        PtxModule *m = ptx_load(d, x->text, x->bytes);
        bool dead = false;
        assert_non_null(m); /* a mutant that is no PTX proves nothing */
        for (int k = 0; !dead && k < PTX_CASES; k++) {
            if (!strcmp(ptx_cases[k].file, file) && strstr(ptx_cases[k].kernels, word)) {
                dead = ptx_cases[k].run(d, m, ptx_cases[k].which) != NULL;
            }
        }
        ptx_device_free(d);
        if (dead) {
            return true;
        }
    }
    return false;
}

static int all_dead, all_tried;

static void mutants_of(const char *file) {
    char *text = ptx_file(file);
    size_t bytes = strlen(text);
    const char *mode = getenv("PTX_MUTANTS");
    int all = ptx_mutant_count(text, bytes), dead = 0, tried = 0;
    int step = mode && !strcmp(mode, "all") ? 1 : (all + SAMPLE - 1) / SAMPLE;
    assert_true(all > 20);
    for (int n = 0; n < all; n += step) {
        PtxMutant x;
        assert_true(ptx_mutant(text, bytes, n, &x));
        bool gone = killed(&x, file);
        dead += gone;
        tried++;
        if (!gone && mode) {
            print_message("survives: %s %s: %s\n", file, x.kernel, x.what);
        }
        ptx_mutant_free(&x);
    }
    print_message("%s: %d of %d mutants caught (%d possible)\n", file, dead, tried, all);
    assert_true(dead * 5 >= tried * 4);
    all_dead += dead;
    all_tried += tried;
    free(text);
}

static void mutants_of_llvm(void **state) {
    (void)state;
    mutants_of("kernels/vecadd.ptx");
}

static void mutants_of_warps(void **state) {
    (void)state;
    mutants_of("kernels/warps.ptx");
}

static void mutants_of_memory(void **state) {
    (void)state;
    mutants_of("kernels/memory.ptx");
}

static void mutants_of_twins(void **state) {
    (void)state;
    mutants_of("kernels/twins.ptx");
}

static void nine_of_ten(void **state) {
    (void)state;
    print_message("%d of %d mutants caught\n", all_dead, all_tried);
    assert_true(all_tried > 500 && all_dead * 10 >= all_tried * 9);
}

/* The same text gives the same mutants, each of one place, and nothing beyond the last. */
static void mutants_are_reproducible(void **state) {
    (void)state;
    static const char text[] =
        ".version 7.0\n.target sm_80\n.address_size 64\n"
        ".visible .entry k(.param .u64 a) {\n.reg .b32 %r<4>; .reg .b64 %d<2>; .reg .pred %p;\n"
        "ld.param.u64 %d1, [a];\nld.global.u32 %r1, [%d1];\nsub.s32 %r2, %r1, 3;\n"
        "add.s32 %r2, %r2, %r1;\nsetp.lt.s32 %p, %r2, %r1;\n@%p bra $x;\n"
        "st.global.u32 [%d1+4], %r2;\n$x:\nret;\n}\n";
    size_t n = sizeof text - 1;
    int count = ptx_mutant_count(text, n);
    static const char *const want[] = {
        "line 8: sub.s32 %r2, %r1, 3; -> sub.s32 %r2, 3, %r1;",
        "line 8: sub.s32 %r2, %r1, 3; -> sub.s32 %r2, %r1, 4;",
        "line 8: sub.s32 %r2, %r1, 3; -> add.s32 %r2, %r1, 3;",
        "line 9: add.s32 %r2, %r2, %r1; -> ",
        "line 10: setp.lt.s32 %p, %r2, %r1; -> setp.le.s32 %p, %r2, %r1;",
        "line 10: setp.lt.s32 %p, %r2, %r1; -> setp.lt.u32 %p, %r2, %r1;",
        "line 11: @%p bra $x; -> @!%p bra $x;",
        "line 11: @%p bra $x; -> bra $x;",
        "line 12: st.global.u32 [%d1+4], %r2; -> st.global.u32 [%d1+8], %r2;",
        "line 12: st.global.u32 [%d1+4], %r2; -> "};
    size_t found = 0;
    for (int k = 0; k < count; k++) {
        PtxMutant a, b;
        assert_true(ptx_mutant(text, n, k, &a) && ptx_mutant(text, n, k, &b));
        assert_string_equal(a.text, b.text);
        assert_string_equal(a.kernel, "k");
        assert_string_not_equal(a.text, text);
        for (size_t w = 0; w < sizeof want / sizeof *want; w++) {
            found += !strcmp(a.what, want[w]);
        }
        assert_null(strstr(a.what, "add.s32 %r2, %r1, %r2")); /* the same sum */
        ptx_mutant_free(&a);
        ptx_mutant_free(&b);
    }
    assert_int_equal(found, sizeof want / sizeof *want);
    PtxMutant x;
    assert_false(ptx_mutant(text, n, count, &x));
    assert_false(ptx_mutant(text, n, -1, &x));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mutants_are_reproducible), cmocka_unit_test(mutants_of_llvm),
        cmocka_unit_test(mutants_of_warps),         cmocka_unit_test(mutants_of_memory),
        cmocka_unit_test(mutants_of_twins),         cmocka_unit_test(nine_of_ten)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
