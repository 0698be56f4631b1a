/* Everything that can go wrong with a device, one after the other: one clear message, the right
 * status, nothing left behind. */
#include "tests/cuda/cuda_test.h"

typedef struct Case {
    const char *words; /* the fault */
    StgcStatus status;
    const char *text[4]; /* parts of the message */
} Case;

static void check_text(const char *words, const char *error, const char *const *parts) {
    for (int i = 0; i < 4 && parts[i]; i++) {
        if (!strstr(error, parts[i]))
            fprintf(stderr, "%s: '%s' lacks '%s'\n", words, error, parts[i]);
        assert_non_null(strstr(error, parts[i]));
    }
    assert_null(strchr(error, '\n')); /* one message */
    assert_true(strlen(error) < 900);
}

/* The device itself cannot be used. */
static void no_device(const Case *c) {
    StgcCudaOptions o = test_options();
    StgcStatus status;
    char error[1024] = "";
    setenv("STGC_PTX_EMULATOR", c->words, 1);
    assert_null(stgc_rt_new_cuda(&o, &status, error, sizeof error));
    assert_int_equal(status, c->status);
    check_text(c->words, error, c->text);
    test_clean();
}

static void devices_that_do_not_start(void **state) {
    static const Case cases[] = {
        {"no-device",
         STGC_ERR_IO,
         {"GPU 0: error: ", "no GPU that it sees", "CUDA_VISIBLE_DEVICES"}},
        {"stub", STGC_ERR_IO, {"stub for linking", "LD_LIBRARY_PATH"}},
        {"driver=11040", STGC_ERR_IO, {"too old: it is for CUDA 11.4", "CUDA 12.0 or later"}},
        {"driver=11040,no-proc-address", STGC_ERR_IO, {"too old: it is for CUDA 11.4"}},
        {"pin=1",
         STGC_ERR_IO,
         {"GPU 0 (PTX emulator (not a GPU)): error: out of memory", "8 MiB of host memory"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        no_device(&cases[i]);
    StgcCudaOptions o = test_options();
    StgcStatus status;
    char error[1024];
    o.device = 3;
    setenv("STGC_PTX_EMULATOR", "", 1);
    assert_null(stgc_rt_new_cuda(&o, &status, error, sizeof error));
    assert_int_equal(status, STGC_ERR_IO);
    assert_string_equal(error, "GPU 3: error: there is none of this number; there is 1, counted "
                               "from 0");
    test_clean();
}

/* A run cannot be made of a step. */
static void no_run(const Case *c, const StgcStep *step) {
    StgcRt *rt = test_device(c->words);
    StgcRun *r = stgc_run_new(rt, step);
    assert_non_null(r);
    assert_int_equal(stgc_run_status(r), c->status);
    check_text(c->words, stgc_run_error(r), c->text);
    assert_int_equal(stgc_run_step(r), c->status);
    check_text(c->words, stgc_run_error(r), c->text);
    stgc_run_free(r);
    stgc_rt_free(rt);
    test_clean();
}

static void steps_that_do_not_load(void **state) {
    static const Case cases[] = {
        {"sm=75",
         STGC_ERR_IO,
         {"compiled for compute capability 8.0 (sm_80)", "has 7.5", "--target sm_75"}},
        {"bad-ptx",
         STGC_ERR_IO,
         {"does not accept the step's PTX", "(ptxas error: injected; fatal: line 1)",
          "CUDA_ERROR_INVALID_PTX"}},
        {"memory=1",
         STGC_ERR_IO,
         {"out of memory: the step needs", "of 1.0 MiB are free",
          "make batch or sequence smaller"}},
        {"oom=1", STGC_ERR_IO, {"out of memory: the table of constants needs 272 bytes"}},
        {"oom=2", STGC_ERR_IO, {"out of memory: cuBLAS needs 32.0 MiB"}},
        {"oom=3", STGC_ERR_IO, {"out of memory: the step needs 9.5 KiB"}},
        {"no-blas", STGC_ERR_IO, {"it does not start: cuBLAS: the library was not initialized"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        no_run(&cases[i], mini_step(MINI_TRAIN, true));
}

/* Steps that no compiler of ours makes. */
static void damaged_steps(void **state) {
    const StgcStep *good = mini_step(MINI_TRAIN, true);
    const StgcCudaStep *cuda = good->cuda;
    StgcCudaOp ops[5];
    StgcCudaKernel kernels[4];
    StgcCudaParam params[8];
    StgcCudaGemm gemm;
    for (int n = 0; n < 11; n++) {
        StgcCudaStep bad = *cuda;
        StgcStep step = *good;
        Case c = {"", STGC_ERR_MODEL, {"the compiled step is damaged"}};
        memcpy(ops, cuda->ops, sizeof ops);
        memcpy(kernels, cuda->kernels, sizeof kernels);
        memcpy(params, cuda->ops[2].params, 7 * sizeof *params);
        gemm = *cuda->ops[1].gemm;
        bad.ops = ops, bad.kernels = kernels, step.cuda = &bad;
        ops[1].gemm = &gemm;
        ops[2].params = params;
        switch (n) {
        case 0:
            ops[2].kernel = 4, c.text[1] = "operation 2: there is no kernel";
            break;
        case 1:
            ops[3].grid[1] = 0, c.text[1] = "operation 3: its grid";
            break;
        case 2:
            params[4].value = good->arena_bytes + 1, c.text[1] = "points outside";
            break;
        case 3:
            params[3].value = -8, c.text[1] = "points outside";
            break;
        case 4:
            params[0].kind = 9, c.text[1] = "kind is unknown";
            break;
        case 5:
            gemm.c = good->arena_bytes - 796, c.text[1] = "operand lies outside the arena";
            break;
        case 6:
            gemm.a_row = 24, c.text[1] = "first operand's strides";
            break;
        case 7:
            ops[0].bytes = good->arena_bytes, c.text[1] = "clears outside";
            break;
        case 8:
            ops[4].kind = 17, c.text[1] = "operation 4: its kind";
            break;
        case 9:
            kernels[1].shared_dynamic = 300 << 10, c.status = STGC_ERR_IO;
            c.text[0] = "kernel 'total' needs 307200 bytes of shared memory";
            break;
        default:
            kernels[0].name = "blond", c.status = STGC_ERR_IO;
            c.text[0] = "kernel 'blond' of the step cannot be used: CUDA_ERROR_NOT_FOUND";
        }
        no_run(&c, &step);
    }
}

static void text_of_another_time(void **state) {
    StgcStep step = *mini_step(MINI_TRAIN, true);
    StgcCudaStep cuda = *step.cuda;
    char *ptx = strdup(cuda.ptx);
    step.cuda = &cuda;
    cuda.ptx = ptx;
    memcpy(strstr(ptx, ".version 7.0"), ".version 8.7", 12);
    no_run(&(Case){"driver=12060",
                   STGC_ERR_IO,
                   {"driver is too old: it is for CUDA 12.6", "(PTX 8.7) needs one for CUDA 12.8"}},
           &step);
    memcpy(strstr(ptx, "bar.sync"), "bar.sink", 8);
    memcpy(strstr(ptx, ".version 8.7"), ".version 7.0", 12);
    no_run(&(Case){"", STGC_ERR_IO, {"does not accept the step's PTX (", "CUDA_ERROR_INVALID_PTX"}},
           &step);
    free(ptx);
}

/* A step fails while it runs. `at`: in which one. */
static void failing_step(const char *words, int at, const char *const *text, bool lost) {
    StgcRt *rt = test_device(words);
    StgcRun *r = stgc_run_new(rt, mini_step(MINI_TRAIN, true));
    assert_string_equal(stgc_run_error(r), "");
    for (int n = 0; n < at; n++) {
        test_input(r, n);
        assert_int_equal(stgc_run_step(r), STGC_OK);
    }
    test_input(r, at);
    assert_int_equal(stgc_run_step(r), STGC_ERR_IO);
    check_text(words, stgc_run_error(r), text);
    if (lost) { /* and it stays so, with the same text, for values too */
        char first[1024];
        snprintf(first, sizeof first, "%s", stgc_run_error(r));
        assert_null(stgc_run_read(r, test_slot(r, "w")));
        assert_string_equal(stgc_run_error(r), first);
        assert_int_equal(stgc_run_step(r), STGC_ERR_IO);
        assert_string_equal(stgc_run_error(r), first);
        assert_non_null(strstr(first, "go on from the last checkpoint"));
    } else {
        test_input(r, at);
        assert_int_equal(stgc_run_step(r), STGC_OK);
        assert_non_null(stgc_run_read(r, test_slot(r, "w")));
    }
    stgc_run_free(r);
    stgc_rt_free(rt);
    test_clean();
}

static void steps_that_fail(void **state) {
    static const char *const killed[4] = {"a kernel of the step failed: CUDA_ERROR_LAUNCH_FAILED"};
    static const char *const refused[4] = {
        "kernel 'total' (Sum \"/sum\") cannot be launched: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"};
    static const char *const product[4] = {"MatMul \"/z\": cuBLAS: the function failed"};
    failing_step("launch=1", 0, killed, true);
    failing_step("launch=2,seed=5", 0, killed, true);
    failing_step("launch=5", 1, killed, true); /* in a graph */
    failing_step("launch=8,seed=6", 2, killed, true);
    failing_step("refuse=2", 0, refused, false);
    failing_step("blas=1", 0, product, false);
}

/* Refused while it is captured: it goes on without a graph, or it is said. */
static void failures_in_a_capture(void **state) {
    StgcRt *rt = test_device("refuse=5"); /* the second step's second launch */
    StgcRun *r = stgc_run_new(rt, mini_step(MINI_TRAIN, true));
    int64_t graphs = test_counts().graph_launches;
    for (int n = 0; n < 3; n++)
        assert_int_equal(stgc_run_step(r), STGC_OK);
    assert_int_equal(test_counts().graph_launches, graphs);
    assert_string_equal(stgc_run_error(r), "");
    stgc_run_free(r);
    stgc_rt_free(rt);
    test_clean();
}

/* A step whose kernels do wrong: the emulator's finding is in the message. */
static void kernels_that_do_wrong(void **state) {
    StgcStep step = *mini_step(MINI_TRAIN, true);
    StgcCudaStep cuda = *step.cuda;
    StgcCudaOp ops[5];
    StgcCudaParam params[7];
    memcpy(ops, cuda.ops, sizeof ops);
    memcpy(params, ops[2].params, sizeof params);
    ops[2].params = params;
    ops[2].grid[0] = 2000;
    params[6].value = 250000; /* elements: far behind the arena */
    cuda.ops = ops;
    step.cuda = &cuda;
    StgcRt *rt = test_device("");
    StgcRun *r = stgc_run_new(rt, &step);
    assert_int_equal(stgc_run_step(r), STGC_ERR_IO);
    static const char *const parts[4] = {"CUDA_ERROR_ILLEGAL_ADDRESS", "blend", "ld.global"};
    check_text("", stgc_run_error(r), parts);
    stgc_run_free(r);
    stgc_rt_free(rt);
    test_clean();
}

/* The second of two runs that share finds no memory: the first goes on. */
static void a_run_that_cannot_join(void **state) {
    StgcRt *rt = test_device("memory=35"); /* MiB; cuBLAS takes 32 */
    StgcRun *r = stgc_run_new(rt, mini_step(MINI_TRAIN, true));
    assert_int_equal(stgc_run_step(r), STGC_OK);
    float first = *(const float *)stgc_run_read(r, test_slot(r, "w"));
    StgcStep large = *mini_step(MINI_GRADIENTS, true);
    large.arena_bytes = (int64_t)1 << 30;
    StgcRun *g = stgc_run_new_shared(rt, &large, r);
    assert_int_equal(stgc_run_status(g), STGC_ERR_IO);
    static const char *const parts[4] = {"out of memory: the step needs 1024.0 MiB"};
    check_text("", stgc_run_error(g), parts);
    stgc_run_free(g);
    assert_true(*(const float *)stgc_run_read(r, test_slot(r, "w")) == first);
    assert_int_equal(stgc_run_step(r), STGC_OK);
    stgc_run_free(r);
    stgc_rt_free(rt);
    test_clean();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(devices_that_do_not_start),
        cmocka_unit_test(steps_that_do_not_load),
        cmocka_unit_test(damaged_steps),
        cmocka_unit_test(text_of_another_time),
        cmocka_unit_test(steps_that_fail),
        cmocka_unit_test(failures_in_a_capture),
        cmocka_unit_test(kernels_that_do_wrong),
        cmocka_unit_test(a_run_that_cannot_join),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
