/* Arenas, maps, diagnostics, words, element types. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ir/tensor.h"

static void arena_keeps_every_allocation(void **state) {
    Arena a = {0};
    unsigned char *p[200];
    for (int i = 0; i < 200; i++) {
        size_t bytes = (size_t)(i * i * 7 + 1); /* small ones and ones beyond a block */
        p[i] = arena_alloc(&a, bytes);
        assert_int_equal((uintptr_t)p[i] % 16, 0);
        for (size_t k = 0; k < bytes; k++)
            assert_int_equal(p[i][k], 0);
        memset(p[i], i, bytes);
    }
    for (int i = 0; i < 200; i++)
        for (size_t k = 0; k < (size_t)(i * i * 7 + 1); k++)
            assert_int_equal(p[i][k], (unsigned char)i);
    arena_free(&a);
}

static void strmap_keeps_the_first(void **state) {
    StrMap m = {0};
    char keys[1000][16];
    for (int i = 0; i < 1000; i++) {
        snprintf(keys[i], sizeof keys[i], "k%d", i);
        assert_true(strmap_put(&m, keys[i], keys[i]));
    }
    assert_false(strmap_put(&m, "k7", "other"));
    for (int i = 0; i < 1000; i++)
        assert_ptr_equal(strmap_get(&m, keys[i]), keys[i]);
    assert_null(strmap_get(&m, "k1000"));
    strmap_free(&m);
}

static void diagnostics_collect(void **state) {
    Diag d = {.subject = "moe.onnx"};
    diag_warning(&d, "odd");
    diag_error(&d, EXIT_DATA, "no gradient rule for '%s'", "NonZero");
    diag_more(&d, "node \"%s\"", diag_safe(&d, "a\nb\"\x1b"));
    diag_error(&d, EXIT_MODEL, "second");
    assert_int_equal(d.errors, 2);
    assert_int_equal(d.code, EXIT_DATA);
    char *text;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    diag_print(&d, f, false);
    fclose(f);
    assert_string_equal(text, "moe.onnx: warning: odd\n"
                              "moe.onnx: error: no gradient rule for 'NonZero'\n"
                              "  node \"a\\x0ab\\x22\\x1b\"\n"
                              "moe.onnx: error: second\n");
    free(text);
    diag_free(&d);
}

static void words(void **state) {
    const char *known[] = {"threshold", "weight", "mean", "capture"};
    assert_string_equal(nearest_word("treshold", known, 4), "threshold");
    assert_string_equal(nearest_word("captrue", known, 4), "capture");
    assert_null(nearest_word("zebra", known, 4));
    assert_true(glob_match("*", ""));
    assert_true(glob_match("layers.*.gate.weight", "layers.3.moe.gate.weight"));
    assert_true(glob_match("a*b*c", "axxbyybzzc"));
    assert_false(glob_match("a*b", "ac"));
    assert_true(glob_match("val_??", "val_10"));
    assert_false(glob_match("val_??", "val_1"));
    char many[2000];
    memset(many, 'a', sizeof many - 1), many[sizeof many - 1] = 0;
    assert_false(glob_match("a*a*a*a*a*a*a*a*a*a*b", many)); /* linear backtracking: at once */
}

static void floats_round_to_even(void **state) {
    for (int h = 0; h < 0x10000; h++) {
        float f = f16_to_f32((uint16_t)h), g = bf16_to_f32((uint16_t)h);
        if (!isnan(f))
            assert_int_equal(f32_to_f16(f), h);
        if (!isnan(g))
            assert_int_equal(f32_to_bf16(g), h);
        else
            assert_true(isnan(bf16_to_f32(f32_to_bf16(g))));
    }
    assert_int_equal(f32_to_bf16(1.00390625f), 0x3f80); /* halfway, to even */
    assert_int_equal(f32_to_bf16(1.01171875f), 0x3f82);
    assert_int_equal(f32_to_f16(65520.f), 0x7c00);      /* beyond the largest: infinity */
}

static void elements_convert(void **state) {
    Arena a = {0};
    Tensor *t = tensor_new(&a, DT_I8, 1, (int64_t[]){4});
    tensor_set_i(t, 0, 300);
    tensor_set_f(t, 1, -2.9);
    tensor_set_f(t, 2, NAN);
    assert_int_equal(tensor_get_i(t, 0), 44);
    assert_int_equal(tensor_get_i(t, 1), -2);
    assert_int_equal(tensor_get_i(t, 2), 0);
    assert_int_equal(dims_count((int64_t[]){1 << 30, 1 << 30}, 2), -1);
    assert_int_equal(dims_count((int64_t[]){1 << 30, 1 << 30, 0}, 3), -1);
    assert_int_equal(dims_count((int64_t[]){5, 0}, 2), 0);
    assert_int_equal(dims_count((int64_t[]){5, -1}, 2), -1);
    arena_free(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arena_keeps_every_allocation), cmocka_unit_test(strmap_keeps_the_first),
        cmocka_unit_test(diagnostics_collect),          cmocka_unit_test(words),
        cmocka_unit_test(floats_round_to_even),         cmocka_unit_test(elements_convert),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
