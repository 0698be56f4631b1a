/* test_npz.c: .npz and .npy: what numpy writes is read, what is written reads back, and no damage
 * gets through. */
#include "frontend/frontend.h"
#include "frontend/npz.h"

#include <dirent.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[] = "/tmp/stgcc_npz_XXXXXX";
static char file[64];

/* numpy.savez_compressed(a=arange(6, float32).reshape(2, 3), ids=[1, -2, 3] int64, s=float64(2.5))
 */
static const unsigned char from_numpy[] = {
    0x50, 0x4b, 0x03, 0x04, 0x2d, 0x00, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00, 0x21, 0x00, 0x4f, 0xe9,
    0x00, 0x2a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x05, 0x00, 0x14, 0x00, 0x61, 0x2e,
    0x6e, 0x70, 0x79, 0x01, 0x00, 0x10, 0x00, 0x98, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x55,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x9b, 0xec, 0x17, 0xea, 0x1b, 0x10, 0xc9, 0xc8, 0x50,
    0xc6, 0x50, 0xad, 0x9e, 0x92, 0x5a, 0x9c, 0x5c, 0xa4, 0x6e, 0xa5, 0xa0, 0x6e, 0x93, 0x66, 0xa2,
    0xae, 0xa3, 0xa0, 0x9e, 0x96, 0x5f, 0x54, 0x52, 0x94, 0x98, 0x17, 0x9f, 0x5f, 0x94, 0x92, 0x0a,
    0x12, 0x77, 0x4b, 0xcc, 0x29, 0x4e, 0x05, 0x8a, 0x17, 0x67, 0x24, 0x16, 0xa4, 0x02, 0xf9, 0x1a,
    0x46, 0x3a, 0x0a, 0xc6, 0x9a, 0x3a, 0x0a, 0xb5, 0x0a, 0x64, 0x03, 0x2e, 0x06, 0x30, 0x68, 0xb0,
    0x07, 0x12, 0x0e, 0x40, 0x04, 0xc4, 0x0d, 0x40, 0xbc, 0xc0, 0x01, 0x00, 0x50, 0x4b, 0x03, 0x04,
    0x2d, 0x00, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00, 0x21, 0x00, 0x74, 0xa8, 0xf3, 0x30, 0xff, 0xff,
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x07, 0x00, 0x14, 0x00, 0x69, 0x64, 0x73, 0x2e, 0x6e, 0x70,
    0x79, 0x01, 0x00, 0x10, 0x00, 0x98, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x4e, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x9b, 0xec, 0x17, 0xea, 0x1b, 0x10, 0xc9, 0xc8, 0x50, 0xc6, 0x50,
    0xad, 0x9e, 0x92, 0x5a, 0x9c, 0x5c, 0xa4, 0x6e, 0xa5, 0xa0, 0x6e, 0x93, 0x69, 0xa1, 0xae, 0xa3,
    0xa0, 0x9e, 0x96, 0x5f, 0x54, 0x52, 0x94, 0x98, 0x17, 0x9f, 0x5f, 0x94, 0x92, 0x0a, 0x12, 0x77,
    0x4b, 0xcc, 0x29, 0x4e, 0x05, 0x8a, 0x17, 0x67, 0x24, 0x16, 0xa4, 0x02, 0xf9, 0x1a, 0xc6, 0x3a,
    0x9a, 0x3a, 0x0a, 0xb5, 0x0a, 0x14, 0x00, 0x2e, 0x46, 0x06, 0x08, 0xf8, 0xf7, 0x1f, 0x02, 0x98,
    0xa1, 0x7c, 0x00, 0x50, 0x4b, 0x03, 0x04, 0x2d, 0x00, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00, 0x21,
    0x00, 0x35, 0xb4, 0x3a, 0x93, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x05, 0x00, 0x14,
    0x00, 0x73, 0x2e, 0x6e, 0x70, 0x79, 0x01, 0x00, 0x10, 0x00, 0x88, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x47, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x9b, 0xec, 0x17, 0xea, 0x1b, 0x10,
    0xc9, 0xc8, 0x50, 0xc6, 0x50, 0xad, 0x9e, 0x92, 0x5a, 0x9c, 0x5c, 0xa4, 0x6e, 0xa5, 0xa0, 0x6e,
    0x93, 0x66, 0xa1, 0xae, 0xa3, 0xa0, 0x9e, 0x96, 0x5f, 0x54, 0x52, 0x94, 0x98, 0x17, 0x9f, 0x5f,
    0x94, 0x92, 0x0a, 0x12, 0x77, 0x4b, 0xcc, 0x29, 0x4e, 0x05, 0x8a, 0x17, 0x67, 0x24, 0x16, 0xa4,
    0x02, 0xf9, 0x1a, 0x9a, 0x3a, 0x0a, 0xb5, 0x0a, 0x14, 0x01, 0x2e, 0x06, 0x30, 0x60, 0x71, 0x00,
    0x00, 0x50, 0x4b, 0x01, 0x02, 0x2d, 0x03, 0x2d, 0x00, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00, 0x21,
    0x00, 0x4f, 0xe9, 0x00, 0x2a, 0x55, 0x00, 0x00, 0x00, 0x98, 0x00, 0x00, 0x00, 0x05, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x80, 0x01, 0x00, 0x00, 0x00, 0x00, 0x61,
    0x2e, 0x6e, 0x70, 0x79, 0x50, 0x4b, 0x01, 0x02, 0x2d, 0x03, 0x2d, 0x00, 0x00, 0x00, 0x08, 0x00,
    0x00, 0x00, 0x21, 0x00, 0x74, 0xa8, 0xf3, 0x30, 0x4e, 0x00, 0x00, 0x00, 0x98, 0x00, 0x00, 0x00,
    0x07, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x80, 0x01, 0x8c, 0x00,
    0x00, 0x00, 0x69, 0x64, 0x73, 0x2e, 0x6e, 0x70, 0x79, 0x50, 0x4b, 0x01, 0x02, 0x2d, 0x03, 0x2d,
    0x00, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00, 0x21, 0x00, 0x35, 0xb4, 0x3a, 0x93, 0x47, 0x00, 0x00,
    0x00, 0x88, 0x00, 0x00, 0x00, 0x05, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x80, 0x01, 0x13, 0x01, 0x00, 0x00, 0x73, 0x2e, 0x6e, 0x70, 0x79, 0x50, 0x4b, 0x05, 0x06,
    0x00, 0x00, 0x00, 0x00, 0x03, 0x00, 0x03, 0x00, 0x9b, 0x00, 0x00, 0x00, 0x91, 0x01, 0x00, 0x00,
    0x00, 0x00,
};

static void write_file(const void *bytes, size_t n) {
    FILE *f = fopen(file, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static unsigned char *read_back(size_t *n) {
    FILE *f = fopen(file, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    unsigned char *p = malloc(*n);
    assert_int_equal(fread(p, 1, *n, f), *n);
    fclose(f);
    return p;
}

static int files_in_dir(void) {
    DIR *d = opendir(dir);
    int n = 0;
    for (struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

/* Refused with EXIT_DATA (or `code`), the text of the one message holding `part`. */
static void refused(const void *bytes, size_t n, const char *part, ExitCode code) {
    write_file(bytes, n);
    NamedArrays a;
    Diag d = {0};
    assert_false(npz_read_limit(file, code == EXIT_RESOURCE ? 1 << 20 : 1 << 22, &a, &d));
    assert_int_equal(d.errors, 1);
    if (!strstr(d.messages.at[0].text, part))
        fail_msg("'%s' lacks '%s'", d.messages.at[0].text, part);
    assert_int_equal(d.code, code);
    diag_free(&d);
}

static void test_reads_numpy(void **state) {
    write_file(from_numpy, sizeof from_numpy);
    NamedArrays a;
    Diag d = {0};
    assert_true(npz_read(file, &a, &d));
    assert_int_equal(a.names.n, 3);
    const Tensor *t = arrays_find(&a, "a");
    assert_int_equal(t->dtype, DT_F32);
    assert_int_equal(t->rank, 2);
    assert_true(t->dims[0] == 2 && t->dims[1] == 3);
    for (int i = 0; i < 6; i++)
        assert_true(tensor_get_f(t, i) == i);
    t = arrays_find(&a, "ids");
    assert_true(t->dtype == DT_I64 && tensor_get_i(t, 1) == -2);
    t = arrays_find(&a, "s");
    assert_true(t->dtype == DT_F64 && t->rank == 0 && tensor_get_f(t, 0) == 2.5);
    assert_null(arrays_find(&a, "b"));
    arrays_free(&a);
    diag_free(&d);
}

static void write_samples(Arena *arena, NamedArrays *in) {
    const int64_t dims[3][3] = {{2, 3, 4}, {0, 5, 1}, {7, 1, 1}};
    Diag d = {0};
    NpzWriter *w = npz_create(file, &d);
    assert_non_null(w);
    for (int t = 1; t < DT_COUNT; t++)
        for (int shape = 0; shape < 4; shape++) {
            Tensor *x = tensor_new(arena, (DType)t, shape < 3 ? 3 - shape : 0, dims[shape % 3]);
            for (int64_t i = 0; i < tensor_count(x); i++)
                tensor_set_f(x, i, (double)(i % 120) + 0.5);
            const char *name = arena_printf(arena, "moe/%d/%s", shape, dtype_name((DType)t));
            assert_true(npz_add(w, name, x, &d));
            vec_push(&in->names, name);
            vec_push(&in->tensors, x);
        }
    assert_true(npz_close(w, &d));
    assert_int_equal(d.messages.n, 0);
    diag_free(&d);
}

static void test_round_trip(void **state) {
    Arena arena = {0};
    NamedArrays in = {0}, out;
    Diag d = {0};
    write_samples(&arena, &in);
    size_t n, again;
    unsigned char *first = read_back(&n);
    assert_true(npz_read(file, &out, &d));
    assert_int_equal(out.names.n, in.names.n);
    for (int i = 0; i < in.names.n; i++) {
        const Tensor *x = in.tensors.at[i], *y = arrays_find(&out, in.names.at[i]);
        assert_non_null(y);
        if (x->dtype != DT_BF16) {
            assert_true(tensor_equal(x, y));
            continue;
        }
        assert_int_equal(y->dtype, DT_F32); /* numpy has no bf16 */
        for (int64_t k = 0; k < tensor_count(x); k++)
            assert_true(tensor_get_f(x, k) == tensor_get_f(y, k));
    }
    vec_free(&in.names);
    vec_free(&in.tensors);
    write_samples(&arena, &in); /* the same tensors give the same bytes */
    unsigned char *second = read_back(&again);
    assert_int_equal(n, again);
    assert_memory_equal(first, second, n);
    assert_int_equal(files_in_dir(), 1);
    free(first);
    free(second);
    arrays_free(&out);
    arrays_free(&in);
    arena_free(&arena);
    diag_free(&d);
}

/* Whatever one byte becomes and wherever the file ends: refused, or the very same arrays. */
static void all_damage(const unsigned char *good, size_t n) {
    NamedArrays want, got;
    Diag d = {0};
    write_file(good, n);
    assert_true(npz_read(file, &want, &d));
    unsigned char *p = malloc(n);
    int accepted = 0;
    for (size_t at = 0; at < 2 * n; at++) {
        memcpy(p, good, n);
        if (at < n)
            p[at] ^= (unsigned char)(1u << (at % 8)) | 0x40u;
        write_file(p, at < n ? n : at - n);
        if (!npz_read_limit(file, 1 << 20, &got, &d))
            continue;
        accepted++;
        for (int i = 0; i < want.names.n && i < got.names.n;
             i++) /* a flipped name is another name */
            assert_true(tensor_equal(want.tensors.at[i], got.tensors.at[i]));
        assert_int_equal(want.names.n, got.names.n);
        arrays_free(&got);
    }
    assert_true(accepted < (int)n / 2); /* dates, versions, attributes, names: nothing else */
    free(p);
    arrays_free(&want);
    diag_free(&d);
}

static void test_damage(void **state) {
    all_damage(from_numpy, sizeof from_numpy);
    Arena arena = {0};
    const int64_t dims[] = {3};
    Tensor *t = tensor_new(&arena, DT_F32, 1, dims);
    Diag d = {0};
    NpzWriter *w = npz_create(file, &d);
    assert_true(npz_add(w, "x", t, &d) && npz_add(w, "y", t, &d) && npz_close(w, &d));
    size_t n;
    unsigned char *bytes = read_back(&n);
    all_damage(bytes, n);
    free(bytes);
    arena_free(&arena);
}

static void test_not_archives(void **state) {
    unsigned char zeros[4096] = {0};
    refused(zeros, 0, "not a .npz archive", EXIT_DATA);
    refused(zeros, sizeof zeros, "not a .npz archive", EXIT_DATA);
    refused("hello", 5, "not a .npz archive", EXIT_DATA);
    unsigned char *twice = malloc(2 * sizeof from_numpy);
    memcpy(twice, from_numpy, sizeof from_numpy); /* offsets no longer fit */
    memcpy(twice + sizeof from_numpy, from_numpy, sizeof from_numpy);
    NamedArrays a;
    Diag d = {0};
    write_file(twice, 2 * sizeof from_numpy);
    if (npz_read(file, &a, &d))
        arrays_free(&a); /* a stub in front of an archive is legal; no crash is asked for */
    free(twice);
    assert_false(npz_read("/nonexistent/x.npz", &a, &d));
    assert_false(npz_read("/dev/zero", &a, &d));
    assert_false(npz_read(dir, &a, &d));
    diag_free(&d);
}

static void test_limits(void **state) {
    enum { N = (1 << 20) / 4 };
    Arena arena = {0};
    const int64_t dims[] = {N};
    Tensor *t = tensor_new(&arena, DT_F32, 1, dims);
    Diag d = {0};
    NpzWriter *w = npz_create(file, &d);
    assert_true(npz_add(w, "x", t, &d) && npz_close(w, &d));
    size_t n;
    unsigned char *bytes = read_back(&n);
    refused(bytes, n, "--mem-limit", EXIT_RESOURCE);
    free(bytes);
    w = npz_create(file, &d);

    Tensor *small = tensor_new(&arena, DT_I8, 0, NULL);
    assert_true(npz_add(w, "x", small, &d) && npz_add(w, "x", small, &d) && npz_close(w, &d));
    bytes = read_back(&n);
    refused(bytes, n, "stored twice", EXIT_DATA);
    free(bytes);
    w = npz_create(file, &d);
    for (int i = 0; i < 4097; i++)
        assert_true(npz_add(w, arena_printf(&arena, "x%d", i), small, &d));
    assert_true(npz_close(w, &d));
    bytes = read_back(&n);
    refused(bytes, n, "more than the limit", EXIT_DATA);
    free(bytes);
    arena_free(&arena);
    diag_free(&d);
}

/* A .npy of this dictionary and `data` bytes after it. */
static void header_case(const char *dict, size_t data, const char *problem) {
    unsigned char p[2048] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0};
    size_t len = strlen(dict);
    p[8] = (unsigned char)len;
    p[9] = (unsigned char)(len >> 8);
    memcpy(p + 10, dict, len);
    write_file(p, 10 + len + data);
    NamedArrays a;
    Diag d = {0};
    bool ok = npz_read(file, &a, &d);
    if (!ok && (!problem || !strstr(d.messages.at[0].text, problem)))
        fail_msg("%s: '%s' lacks '%s'", dict, d.messages.at[0].text, problem ? problem : "(good)");
    assert_int_equal(ok, !problem);
    if (ok)
        arrays_free(&a);
    diag_free(&d);
}

static void test_headers(void **state) {
    header_case("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n", 24, NULL);
    header_case("{'shape': (2,3), 'descr': '<f4', 'fortran_order': False}   \n", 24, NULL);
    header_case("{'descr': '|b1', 'fortran_order': False, 'shape': (), }\n", 1, NULL);
    header_case("{'descr': '<i2', 'fortran_order': False, 'shape': (3,), }", 6, NULL);
    header_case("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n", 23,
                "needs 24 bytes");
    header_case("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n", 25,
                "needs 24 bytes");
    header_case("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }\n", 16, "object array");
    header_case("{'descr': '>f4', 'fortran_order': False, 'shape': (2,), }\n", 8, "big-endian");
    header_case("{'descr': '<c8', 'fortran_order': False, 'shape': (2,), }\n", 16, "does not read");
    header_case("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }\n", 8,
                "structured");
    header_case("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }\n", 24,
                "Fortran order");
    header_case("{'descr': '<f4', 'fortran_order': False, 'shape': (3), }\n", 12, "damaged shape");
    header_case("{'descr': '<f4', 'fortran_order': False, 'shape': (-3,), }\n", 12,
                "damaged shape");
    header_case("{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775808,), }\n", 12,
                "damaged shape");
    header_case("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }\n",
                12, "more elements");
    header_case(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1, 1, 1, 1, 1, 1, 1), }\n", 4,
        "more than 8");
    header_case("{'descr': '<f4', 'fortran_order': False, }\n", 4, "damaged header");
    header_case("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n", 4,
                "damaged header");
    header_case("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}\n", 4,
                "damaged header");
    header_case("__import__('os')\n", 4, "damaged header");
    header_case("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }; f()\n", 4,
                "damaged header");
    header_case("{  ", 0, "damaged header");
    header_case("", 0, "");
}

static void test_no_partial_file(void **state) {
    Arena arena = {0};
    const int64_t dims[] = {1 << 16};
    Tensor *t = tensor_new(&arena, DT_F64, 1, dims);
    Diag d = {0};
    unlink(file);
    int before = files_in_dir();
    NpzWriter *w = npz_create(file, &d);
    assert_true(npz_add(w, "x", t, &d));
    npz_abandon(w);
    assert_int_equal(files_in_dir(), before);
    assert_null(npz_create("/nonexistent/x.npz", &d));
    assert_null(npz_create(dir, &d));
    assert_null(npz_create("/dev/null", &d));
    assert_int_equal(d.code, EXIT_IO);
    struct rlimit keep, tight = {100000, 100000};
    getrlimit(RLIMIT_FSIZE, &keep);
    tight.rlim_max = keep.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &tight);
    w = npz_create(file, &d);
    bool ok = npz_add(w, "x", t, &d);
    npz_abandon(w);
    setrlimit(RLIMIT_FSIZE, &keep);
    assert_false(ok);
    assert_int_equal(files_in_dir(), before);
    assert_non_null(strstr(d.messages.at[d.messages.n - 1].text, "no partial file"));
    arena_free(&arena);
    diag_free(&d);
}

int main(void) {
    assert_non_null(mkdtemp(dir));
    snprintf(file, sizeof file, "%s/x.npz", dir);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_numpy),     cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_damage),          cmocka_unit_test(test_not_archives),
        cmocka_unit_test(test_limits),          cmocka_unit_test(test_headers),
        cmocka_unit_test(test_no_partial_file),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(file);
    rmdir(dir);
    return failed;
}
