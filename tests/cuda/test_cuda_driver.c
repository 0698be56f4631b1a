/* The names and signatures of the driver and of cuBLAS, against the toolkit's where there is one;
 * machines without a driver, with a part of one, with a stub. */
#include "tests/cuda/cuda_test.h"

static void skipped(const char *why) {
    printf("SKIPPED: %s\n", why);
    skip();
}

static void headers_agree(void **state) {
#ifdef CUDA_HEADERS
    extern const int cuda_headers_compared; /* headers.c, which is compiled if they agree */
    printf("compared with the headers of CUDA %d.%d\n", cuda_headers_compared / 1000,
           cuda_headers_compared % 1000 / 10);
#else
    skipped("no cuda.h here: declarations of the driver are not compared");
#endif
}

static void *library(const char *path) {
    return *path ? dlopen(path, RTLD_LAZY | RTLD_LOCAL) : NULL;
}

static void names_exist(void **state) {
    static const char *const names[] = {
#define V(name, symbol, arguments) #symbol,
#define S(name, arguments) #name,
        CUDA_DRIVER_FUNCTIONS(S, V)
#undef S
#undef V
    };
    void *stub = library(CUDA_STUB);
    if (!stub)
        skipped("no stub of libcuda here: names are not looked up");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!dlsym(stub, names[i]))
            fprintf(stderr, "libcuda has no %s\n", names[i]);
        assert_non_null(dlsym(stub, names[i]));
    }
    dlclose(stub);
}

static void refuses(const char *driver, const char *part, const char *other) {
    StgcCudaOptions o = {.driver = driver};
    StgcStatus status;
    char error[1024];
    assert_null(stgc_rt_new_cuda(&o, &status, error, sizeof error));
    assert_int_equal(status, STGC_ERR_IO);
    if (!strstr(error, part) || !strstr(error, other))
        fprintf(stderr, "'%s' lacks '%s' or '%s'\n", error, part, other);
    assert_non_null(strstr(error, part));
    assert_non_null(strstr(error, other));
}

static void the_stub_is_no_driver(void **state) {
    void *stub = library(CUDA_STUB);
    if (!stub)
        skipped("no stub of libcuda here");
    dlclose(stub);
    refuses(CUDA_STUB, "GPU 0: error: ", "stub for linking");
}

static void no_driver(void **state) {
    refuses("/nonexistent/libcuda.so.1",
            "GPU 0: error: no NVIDIA driver here: ", "choose the CPU (--target cpu)");
    refuses("libm.so.6", "too old: libm.so.6 has no cu", "CUDA 12.0 or later");
}

/* Whatever this machine has, the answer is one of the two. */
static void this_machine(void **state) {
    StgcCudaOptions o = {0};
    StgcStatus status;
    char error[1024] = "";
    StgcRt *rt = stgc_rt_new_cuda(&o, &status, error, sizeof error);
    printf("%s\n", rt ? stgc_rt_describe(rt) : error);
    assert_true(rt ? status == STGC_OK : status == STGC_ERR_IO && *error);
    stgc_rt_free(rt);
}

static void no_cublas(void **state) {
    static const struct {
        const char *path, *part;
    } cases[] = {{"/nonexistent/libcublas.so.13", "cuBLAS is missing"},
                 {"libm.so.6", "cuBLAS is too old: it has no cublas"}};
    for (int i = 0; i < 2; i++) {
        StgcCudaOptions o = {.driver = STANDIN, .cublas = cases[i].path};
        StgcStatus status;
        char error[1024];
        setenv("STGC_PTX_EMULATOR", "", 1);
        StgcRt *rt = stgc_rt_new_cuda(&o, &status, error, sizeof error);
        StgcRun *r = stgc_run_new(rt, mini_step(MINI_TRAIN, true)), *none;
        assert_int_equal(stgc_run_status(r), STGC_ERR_IO);
        assert_non_null(strstr(stgc_run_error(r), cases[i].part));
        none = stgc_run_new(rt, mini_step(MINI_APPLY, true)); /* has no product */
        assert_int_equal(stgc_run_step(none), STGC_OK);
        stgc_run_free(none);
        stgc_run_free(r);
        stgc_rt_free(rt);
        test_clean();
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(headers_agree), cmocka_unit_test(names_exist),
        cmocka_unit_test(no_driver),     cmocka_unit_test(the_stub_is_no_driver),
        cmocka_unit_test(this_machine),  cmocka_unit_test(no_cublas),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
