/* stgc.h on a library with code for GPUs: the same bytes as on the CPU, whichever is asked for. */
#include "tests/cuda/cuda_test.h"

#include <math.h>
#include <pthread.h>
#include <unistd.h>

#include "runtime/stgc.h"

static const int64_t x_dims[] = {2, 10, 25}, w_dims[] = {2, 25, 10};
static char dir[64];

static Stgc *open_on(const char *target, const char *words) {
    StgcCudaOptions cuda = test_options();
    StgcOptions o = {.size = sizeof o,
                     .threads = 1,
                     .parameters = "",
                     .target = target,
                     .driver = cuda.driver,
                     .cublas = cuda.cublas};
    setenv("STGC_PTX_EMULATOR", words, 1);
    Stgc *h = stgc_open(MINI_LIBRARY, &o);
    if (stgc_status(h) != STGC_OK)
        fprintf(stderr, "%s\n", stgc_error(h));
    assert_int_equal(stgc_status(h), STGC_OK);
    float w[MINI_W];
    for (int i = 0; i < MINI_W; i++)
        w[i] = (float)(i % 5 - 2);
    test_ok(h, stgc_set(h, "w", STGC_F32, 3, w_dims, w));
    return h;
}

static void set_input(Stgc *h, int n) {
    float x[MINI_X];
    for (int i = 0; i < MINI_X; i++)
        x[i] = (float)((i + n) % 3);
    test_ok(h, stgc_set(h, "x", STGC_F32, 3, x_dims, x));
}

static void same(Stgc *a, Stgc *b, const char *name, int64_t bytes) {
    char va[4096], vb[4096];
    assert_int_equal(stgc_get(a, name, va, bytes), STGC_OK);
    assert_int_equal(stgc_get(b, name, vb, bytes), STGC_OK);
    assert_memory_equal(va, vb, bytes);
}

static void same_all(Stgc *a, Stgc *b) {
    same(a, b, "w", 4 * MINI_W);
    same(a, b, "w.m", 4 * MINI_W);
    same(a, b, "y", 4 * MINI_X);
    same(a, b, "z", 4 * MINI_Z);
    assert_true(stgc_number(a, "loss/total") == stgc_number(b, "loss/total"));
}

static void trains_the_same(void **state) {
    Stgc *gpu = open_on(NULL, "seed=2"), *cpu = open_on("cpu", "");
    StgcInfo info = {.size = sizeof info};
    assert_int_equal(stgc_info(gpu, &info), STGC_OK);
    if (!on_gpu) {
        assert_string_equal(info.cpu, "sm_90");
        assert_non_null(strstr(info.machine, "PTX emulator (not a GPU)"));
    }
    assert_int_equal(stgc_info(cpu, &info), STGC_OK);
    assert_string_equal(info.cpu, "x86-64-v1");
    for (int n = 0; n < 4; n++) {
        set_input(gpu, n);
        set_input(cpu, n);
        if (n == 1) {
            test_ok(gpu, stgc_gradients(gpu));
            test_ok(cpu, stgc_gradients(cpu));
            same_all(gpu, cpu);
        }
        test_ok(gpu, stgc_step(gpu));
        test_ok(cpu, stgc_step(cpu));
        same_all(gpu, cpu);
    }
    stgc_close(gpu);
    stgc_close(cpu);
    test_clean();
}

/* Addresses are kept: inputs are taken up from them, outputs are there after asking again. */
static void by_address(void **state) {
    Stgc *gpu = open_on(NULL, ""), *cpu = open_on("cpu", "");
    StgcTensor x = {.size = sizeof x}, y = {.size = sizeof y}, w = {.size = sizeof w};
    float *first = NULL;
    for (int n = 0; n < 3; n++) {
        set_input(cpu, n);
        if (!n) {
            assert_int_equal(stgc_tensor(gpu, "x", &x), STGC_OK);
            first = x.data;
        }
        for (int i = 0; i < MINI_X; i++)
            first[i] = (float)((i + n) % 3);
        test_ok(gpu, stgc_step(gpu));
        test_ok(cpu, stgc_step(cpu));
        same_all(gpu, cpu);
        assert_int_equal(stgc_tensor(gpu, "y", &y), STGC_OK);
        assert_true(((float *)y.data)[3] == 0 + 44 + ((float *)y.data)[3] - 44);
        assert_int_equal(stgc_tensor(gpu, "w", &w), STGC_OK);
        ((float *)w.data)[7] = 1; /* written by hand on both */
        assert_int_equal(stgc_tensor(cpu, "w", &w), STGC_OK);
        ((float *)w.data)[7] = 1;
    }
    stgc_close(gpu);
    stgc_close(cpu);
    test_clean();
}

static const char *file(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

/* A training begun on one goes on on the other. */
static void checkpoints_cross(void **state) {
    Stgc *gpu = open_on(NULL, "seed=4"), *cpu = open_on("cpu", "");
    for (int n = 0; n < 2; n++) {
        set_input(gpu, n);
        test_ok(gpu, stgc_step(gpu));
    }
    test_ok(gpu, stgc_save(gpu, file("run"), 5, 2));
    int64_t samples = 0;
    test_ok(cpu, stgc_resume(cpu, file("run"), &samples));
    assert_int_equal(samples, 5);
    assert_int_equal(stgc_steps(cpu), 2);
    set_input(cpu, 9);
    set_input(gpu, 9);
    test_ok(cpu, stgc_step(cpu));
    test_ok(gpu, stgc_step(gpu));
    same_all(gpu, cpu);
    test_ok(cpu, stgc_save(cpu, file("run"), 6, 2));
    test_ok(gpu, stgc_resume(gpu, file("run"), &samples));
    test_ok(cpu, stgc_step(cpu));
    test_ok(gpu, stgc_step(gpu));
    same_all(gpu, cpu);
    test_ok(gpu, stgc_store(gpu, file("w.safetensors")));
    test_ok(cpu, stgc_load(cpu, file("w.safetensors")));
    same(gpu, cpu, "w", 4 * MINI_W);
    stgc_close(gpu);
    stgc_close(cpu);
    test_clean();
}

static void bad_data(void **state) {
    Stgc *gpu = open_on(NULL, "");
    float x[MINI_X] = {0};
    x[17] = -1;
    test_ok(gpu, stgc_set(gpu, "x", STGC_F32, 3, x_dims, x));
    assert_int_equal(stgc_step(gpu), STGC_ERR_DATA);
    assert_string_equal(stgc_error(gpu),
                        "batch: error: value out of range at position 17, found -1");
    set_input(gpu, 0);
    test_ok(gpu, stgc_step(gpu));
    stgc_close(gpu);
    test_clean();
}

/* ---- which machine ---- */

typedef struct OpenCase {
    const char *words;
    const char *target;
    int fallback;
    int64_t limit;
    StgcStatus status;
    const char *text; /* of the error, or the variant that was chosen */
} OpenCase;

static void opens_where_it_can(void **state) {
    static const OpenCase cases[] = {
        {"sm=80", NULL, 0, 0, STGC_OK, "sm_80"},
        {"sm=120", NULL, 0, 0, STGC_OK, "sm_90"},
        {"", "cpu", 0, 0, STGC_OK, "x86-64-v1"},
        {"no-device", NULL, 0, 0, STGC_ERR_IO, "no GPU that it sees"},
        {"no-device", NULL, 1, 0, STGC_OK, "x86-64-v1"},
        {"sm=75", NULL, 0, 0, STGC_ERR_IO, "compiled for sm_80, GPU 0 has compute capability 7.5"},
        {"sm=75", NULL, 1, 0, STGC_OK, "x86-64-v1"},
        {"", "gpu", 0, 0, STGC_ERR_USAGE, "expected \"cpu\" or none, found 'gpu'"},
        {"", NULL, 0, 9000, STGC_ERR_RESOURCE, "more than the limit of 9000"},
        {"memory=1", NULL, 0, 0, STGC_ERR_IO, "out of memory"},
        {"oom=2", NULL, 0, 0, STGC_ERR_IO, "out of memory: cuBLAS"},
        {"bad-ptx", NULL, 0, 0, STGC_ERR_IO, "does not accept the step's PTX"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const OpenCase *c = &cases[i];
        StgcOptions o = {.size = sizeof o,
                         .parameters = "",
                         .target = c->target,
                         .cpu_fallback = c->fallback,
                         .memory_limit = c->limit,
                         .driver = STANDIN,
                         .cublas = STANDIN};
        StgcInfo info = {.size = sizeof info};
        setenv("STGC_PTX_EMULATOR", c->words, 1);
        Stgc *h = stgc_open(MINI_LIBRARY, &o);
        const char *text = stgc_error(h);
        if (stgc_status(h) == STGC_OK && stgc_info(h, &info) == STGC_OK)
            text = info.cpu;
        if (stgc_status(h) != c->status || !strstr(text, c->text))
            fprintf(stderr, "%s: status %d, '%s'\n", c->words, (int)stgc_status(h), text);
        assert_int_equal(stgc_status(h), c->status);
        assert_non_null(strstr(text, c->text));
        stgc_close(h);
        test_clean();
    }
}

/* What stgc_gradients did not change need not come again. */
static void gradients_move_no_parameters(void **state) {
    Stgc *gpu = open_on(NULL, "");
    float w[MINI_W];
    set_input(gpu, 0);
    test_ok(gpu, stgc_step(gpu));
    assert_int_equal(stgc_get(gpu, "w", w, sizeof w), STGC_OK);
    test_ok(gpu, stgc_gradients(gpu));
    int64_t before = test_counts().downloaded;
    assert_int_equal(stgc_get(gpu, "w", w, sizeof w), STGC_OK);
    assert_int_equal(test_counts().downloaded, before);
    test_ok(gpu, stgc_step(gpu));
    assert_int_equal(stgc_get(gpu, "w", w, sizeof w), STGC_OK);
    assert_true(test_counts().downloaded >= before + (int64_t)sizeof w);
    stgc_close(gpu);
    test_clean();
}

/* The GPU fails in the middle: said by every call that needs it; a new handle goes on. */
static void a_gpu_that_fails(void **state) {
    Stgc *gpu = open_on(NULL, "launch=5");
    set_input(gpu, 0);
    test_ok(gpu, stgc_step(gpu));
    test_ok(gpu, stgc_save(gpu, file("failed"), 1, 2));
    assert_int_equal(stgc_step(gpu), STGC_ERR_IO);
    assert_non_null(strstr(stgc_error(gpu), "CUDA_ERROR_LAUNCH_FAILED"));
    float w[MINI_W];
    assert_int_equal(stgc_get(gpu, "w", w, sizeof w), STGC_ERR_IO);
    assert_true(isnan(stgc_number(gpu, "loss/total")));
    assert_int_equal(stgc_save(gpu, file("failed"), 2, 2), STGC_ERR_IO);
    assert_int_equal(stgc_store(gpu, file("w2.safetensors")), STGC_ERR_IO);
    assert_int_equal(access(file("w2.safetensors"), F_OK), -1);
    stgc_close(gpu);
    test_clean();
    Stgc *again = open_on(NULL, "");
    test_ok(again, stgc_resume(again, file("failed"), NULL));
    assert_int_equal(stgc_steps(again), 1);
    set_input(again, 1);
    test_ok(again, stgc_step(again));
    stgc_close(again);
    test_clean();
}

/* ---- two at once ---- */

static void *trains_alone(void *ctx) {
    double *loss = ctx;
    StgcCudaOptions cuda = test_options();
    StgcOptions o = {
        .size = sizeof o, .parameters = "", .driver = cuda.driver, .cublas = cuda.cublas};
    Stgc *h = stgc_open(MINI_LIBRARY, &o);
    float w[MINI_W], x[MINI_X];
    for (int i = 0; i < MINI_W; i++)
        w[i] = (float)(i % 3);
    stgc_set(h, "w", STGC_F32, 3, w_dims, w);
    for (int n = 0; n < 6 && stgc_status(h) == STGC_OK; n++) {
        for (int i = 0; i < MINI_X; i++)
            x[i] = (float)((i + n) % 3);
        stgc_set(h, "x", STGC_F32, 3, x_dims, x);
        stgc_step(h);
        loss[n] = stgc_number(h, "loss/total");
    }
    if (stgc_status(h) != STGC_OK)
        fprintf(stderr, "%s\n", stgc_error(h));
    stgc_close(h);
    return NULL;
}

static void handles_of_two_threads(void **state) {
    double alone[6] = {0}, a[6] = {0}, b[6] = {0};
    pthread_t threads[2];
    setenv("STGC_PTX_EMULATOR", "", 1);
    trains_alone(alone);
    assert_int_equal(pthread_create(&threads[0], NULL, trains_alone, a), 0);
    assert_int_equal(pthread_create(&threads[1], NULL, trains_alone, b), 0);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    assert_true(alone[0] != 0 && alone[5] != alone[0]);
    assert_memory_equal(a, alone, sizeof a);
    assert_memory_equal(b, alone, sizeof b);
    test_clean();
}

int main(int argc, char **argv) {
    const struct CMUnitTest everywhere[] = {
        cmocka_unit_test(trains_the_same),        cmocka_unit_test(by_address),
        cmocka_unit_test(checkpoints_cross),      cmocka_unit_test(bad_data),
        cmocka_unit_test(handles_of_two_threads),
    };
    const struct CMUnitTest emulated[] = {
        cmocka_unit_test(opens_where_it_can),
        cmocka_unit_test(a_gpu_that_fails),
        cmocka_unit_test(gradients_move_no_parameters),
    };
    if (!test_find_gpu(argc, argv))
        return EXIT_SKIPPED;
    snprintf(dir, sizeof dir, "/tmp/test_cuda_api.XXXXXX");
    if (!mkdtemp(dir))
        return 1;
    int failed = cmocka_run_group_tests(everywhere, NULL, NULL);
    if (!on_gpu)
        failed += cmocka_run_group_tests(emulated, NULL, NULL);
    char remove[128];
    snprintf(remove, sizeof remove, "rm -rf '%s'", dir);
    return system(remove) == 0 ? failed : failed + 1;
}
