/* test_data.c: token files: widths, windows, labels, order by seed, faults by name and place. */
#include "runtime/data.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char path[] = "/tmp/stgcc_tokens_XXXXXX";
static char error[512];

/* Tokens 0, 1, 2, … of `width` bytes, `n` of them. */
static void write_tokens(int width, int n) {
    FILE *f = fopen(path, "wb");
    for (int i = 0; i < n; i++)
        for (int b = 0; b < width; b++)
            fputc((i + (width > 1 ? 300 : 0)) >> (8 * b) & 255, f);
    fclose(f);
}

static StgcTokens *open_tokens(int width, int64_t sequence, bool next, bool shuffle,
                               uint64_t seed) {
    return stgc_tokens_open(path, width, sequence, next, shuffle, seed, error, sizeof error);
}

static void test_widths(void **state) {
    for (int width = 1; width <= 4; width *= 2) {
        write_tokens(width, 23);
        StgcTokens *t = open_tokens(width, 5, false, false, 1);
        assert_non_null(t);
        assert_int_equal(stgc_tokens_count(t), 23);
        assert_int_equal(stgc_tokens_windows(t), 4);
        int64_t ids[5], labels[5];
        for (int64_t p = 0; p < 9; p++) {
            assert_int_equal(stgc_tokens_sample(t, p, 0, ids, labels, error, sizeof error),
                             STGC_OK);
            for (int i = 0; i < 5; i++) {
                assert_int_equal(ids[i], (width > 1 ? 300 : 0) + p % 4 * 5 + i);
                assert_int_equal(labels[i], ids[i]);
            }
        }
        stgc_tokens_close(t);
    }
}

static void test_next_labels(void **state) {
    write_tokens(1, 16); /* 3 windows of 5 need 16 tokens: the last label is one further */
    StgcTokens *t = open_tokens(1, 5, true, false, 1);
    assert_int_equal(stgc_tokens_windows(t), 3);
    int64_t ids[5], labels[5];
    assert_int_equal(stgc_tokens_sample(t, 2, 0, ids, labels, error, sizeof error), STGC_OK);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(ids[i], 10 + i);
        assert_int_equal(labels[i], 11 + i);
    }
    stgc_tokens_close(t);
    write_tokens(1, 15);
    t = open_tokens(1, 5, true, false, 1);
    assert_int_equal(stgc_tokens_windows(t), 2);
    stgc_tokens_close(t);
}

static void test_permutation(void **state) {
    for (int64_t n = 1; n < 300; n += n < 40 ? 1 : 13)
        for (uint64_t key = 0; key < 5; key++) {
            char seen[300] = {0};
            for (int64_t i = 0; i < n; i++) {
                int64_t v = stgc_permute(i, n, key);
                assert_true(v >= 0 && v < n && !seen[v]);
                seen[v] = 1;
            }
        }
    int fixed = 0; /* it does shuffle */
    for (int64_t i = 0; i < 1000; i++)
        fixed += stgc_permute(i, 1000, 9) == i;
    assert_true(fixed < 10);
}

static void test_order(void **state) {
    write_tokens(2, 2000);
    StgcTokens *a = open_tokens(2, 10, false, true, 7), *b = open_tokens(2, 10, false, true, 7);
    StgcTokens *c = open_tokens(2, 10, false, true, 8);
    int other_seed = 0, other_epoch = 0;
    char seen[200] = {0};
    for (int64_t p = 0; p < 200; p++) {
        int64_t w = stgc_tokens_window(a, p);
        assert_int_equal(
            w, stgc_tokens_window(
                   b, p)); /* the same seed, the same order: what a resumed run relies on */
        other_seed += w != stgc_tokens_window(c, p);
        other_epoch += w != stgc_tokens_window(a, p + 200);
        assert_false(seen[w]++); /* each window once in an epoch */
    }
    assert_true(other_seed > 150 && other_epoch > 150);
    stgc_tokens_close(a);
    stgc_tokens_close(b);
    stgc_tokens_close(c);
}

static void test_faults(void **state) {
    write_tokens(1, 13);
    assert_null(open_tokens(2, 4, false, false, 1));
    assert_string_equal(error, "13 bytes are no whole number of 2-byte tokens; check data.dtype");
    assert_null(open_tokens(1, 14, false, false, 1));
    assert_string_equal(error,
                        "13 tokens are less than one sequence of 14; make train.sequence smaller");
    StgcTokens *t = open_tokens(1, 4, false, false, 1);
    int64_t ids[4], labels[4];
    assert_int_equal(stgc_tokens_sample(t, 0, 10, ids, labels, error, sizeof error), STGC_OK);
    assert_int_equal(stgc_tokens_sample(t, 2, 10, ids, labels, error, sizeof error), STGC_ERR_DATA);
    assert_string_equal(
        error,
        "token 10 (the 10th of the file) is out of range: the model's vocabulary has 0 to 9");
    assert_int_equal(truncate(path, 5), 0); /* the file shrinks under a running training */
    assert_int_equal(stgc_tokens_sample(t, 2, 0, ids, labels, error, sizeof error), STGC_ERR_IO);
    assert_non_null(strstr(error, "the file became shorter"));
    stgc_tokens_close(t);
    assert_null(stgc_tokens_open("/nonexistent", 1, 4, false, false, 1, error, sizeof error));
    assert_string_equal(error, "cannot open the token file: No such file or directory");
    assert_null(stgc_tokens_open("/dev/zero", 1, 4, false, false, 1, error, sizeof error));
    assert_null(stgc_tokens_open("/tmp", 1, 4, false, false, 1, error, sizeof error));
}

int main(void) {
    close(mkstemp(path));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_widths),      cmocka_unit_test(test_next_labels),
        cmocka_unit_test(test_permutation), cmocka_unit_test(test_order),
        cmocka_unit_test(test_faults),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return failed;
}
