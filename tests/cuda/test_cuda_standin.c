/* The stand-in bites: what a careless host program does is seen. Without this, tests that pass over
 * it would prove little. */
#include "tests/cuda/cuda_test.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

extern const char mini_ptx[];

typedef struct Host {
    CudaDriver cu;
    CuContext context;
    CuStream stream;
    float *pinned;
    CuAddress at;
} Host;

static void start(Host *h, const char *words) {
    char error[512];
    *h = (Host){0};
    setenv("STGC_PTX_EMULATOR", words, 1);
    assert_true(cuda_driver_open(&h->cu, STANDIN, error, sizeof error));
    assert_int_equal(h->cu.cuInit(0), CU_OK);
    assert_int_equal(h->cu.cuDevicePrimaryCtxRetain(&h->context, 0), CU_OK);
    assert_int_equal(h->cu.cuCtxPushCurrent(h->context), CU_OK);
    assert_int_equal(h->cu.cuStreamCreate(&h->stream, CU_NON_BLOCKING), CU_OK);
    void *at;
    assert_int_equal(h->cu.cuMemHostAlloc(&at, 4096, 0), CU_OK);
    h->pinned = at;
    assert_int_equal(h->cu.cuMemAlloc(&h->at, 1024), CU_OK);
}

static void stop(Host *h) {
    CuContext was;
    h->cu.cuStreamSynchronize(h->stream);
    h->cu.cuMemFree(h->at);
    h->cu.cuMemFreeHost(h->pinned);
    h->cu.cuStreamDestroy(h->stream);
    h->cu.cuCtxPopCurrent(&was);
    assert_int_equal(h->cu.cuDevicePrimaryCtxRelease(0), CU_OK);
    cuda_driver_close(&h->cu);
}

/* What is read before waiting, and a source that changes too early, are wrong. */
static void work_is_late(void **state) {
    Host h;
    start(&h, "seed=0");
    h.pinned[0] = 5;
    assert_int_equal(h.cu.cuMemcpyHtoDAsync(h.at, h.pinned, 4, h.stream), CU_OK);
    h.pinned[0] = 6; /* too early */
    assert_int_equal(h.cu.cuMemcpyDtoHAsync(h.pinned + 8, h.at, 4, h.stream), CU_OK);
    assert_true(h.pinned[8] != 5 && h.pinned[8] != 6); /* nobody waited */
    assert_int_equal(h.cu.cuStreamSynchronize(h.stream), CU_OK);
    assert_true(h.pinned[8] == 6);
    stop(&h);
    test_clean();
}

/* With a seed, some of it runs at once: a program that is right only when all is late fails too. */
static void work_is_sometimes_early(void **state) {
    int early = 0;
    for (int seed = 1; seed <= 20; seed++) {
        char words[32];
        Host h;
        snprintf(words, sizeof words, "seed=%d", seed);
        start(&h, words);
        h.pinned[0] = 5;
        assert_int_equal(h.cu.cuMemcpyHtoDAsync(h.at, h.pinned, 4, h.stream), CU_OK);
        h.pinned[0] = 6;
        assert_int_equal(h.cu.cuMemcpyDtoHAsync(h.pinned + 8, h.at, 4, h.stream), CU_OK);
        assert_int_equal(h.cu.cuStreamSynchronize(h.stream), CU_OK);
        early += h.pinned[8] == 5;
        stop(&h);
    }
    assert_in_range(early, 3, 19);
    test_clean();
}

static void captures_forbid(void **state) {
    Host h;
    CuGraph graph;
    CuEvent event;
    CuAddress more;
    start(&h, "");
    assert_int_equal(h.cu.cuEventCreate(&event, CU_NO_TIMING), CU_OK);
    for (int n = 0; n < 3; n++) {
        assert_int_equal(h.cu.cuStreamBeginCapture(h.stream, CU_CAPTURE_THREAD_LOCAL), CU_OK);
        assert_int_equal(n == 0   ? h.cu.cuStreamSynchronize(h.stream)
                         : n == 1 ? h.cu.cuMemAlloc(&more, 64)
                                  : h.cu.cuEventSynchronize(event),
                         CU_CAPTURE_UNSUPPORTED);
        assert_int_equal(h.cu.cuMemsetD8Async(h.at, 0, 4, h.stream), CU_CAPTURE_INVALIDATED);
        assert_int_equal(h.cu.cuStreamEndCapture(h.stream, &graph), CU_CAPTURE_INVALIDATED);
        assert_null(graph);
    }
    h.cu.cuEventDestroy(event);
    stop(&h);
    test_clean();
}

/* Captured work does not run; a graph of it does, as often as it is launched. */
static void graphs_run(void **state) {
    Host h;
    CuGraph graph;
    CuGraphExec exec;
    start(&h, "");
    h.pinned[0] = 1;
    assert_int_equal(h.cu.cuStreamBeginCapture(h.stream, CU_CAPTURE_THREAD_LOCAL), CU_OK);
    assert_int_equal(h.cu.cuMemcpyHtoDAsync(h.at, h.pinned, 4, h.stream), CU_OK);
    assert_int_equal(h.cu.cuMemcpyDtoHAsync(h.pinned + 8, h.at, 4, h.stream), CU_OK);
    assert_int_equal(h.cu.cuStreamEndCapture(h.stream, &graph), CU_OK);
    assert_int_equal(h.cu.cuGraphInstantiateWithFlags(&exec, graph, 0), CU_OK);
    assert_int_equal(h.cu.cuGraphDestroy(graph), CU_OK);
    assert_int_equal(h.cu.cuStreamSynchronize(h.stream), CU_OK);
    assert_true(h.pinned[8] != 1);
    for (int n = 3; n < 5; n++) {
        h.pinned[0] = (float)n;
        assert_int_equal(h.cu.cuGraphLaunch(exec, h.stream), CU_OK);
        assert_int_equal(h.cu.cuStreamSynchronize(h.stream), CU_OK);
        assert_true(h.pinned[8] == (float)n);
    }
    assert_int_equal(h.cu.cuGraphExecDestroy(exec), CU_OK);
    stop(&h);
    test_clean();
}

/* An error stays, for every call, until the context is gone. */
static void errors_stick(void **state) {
    Host h;
    CuAddress more;
    start(&h, "");
    assert_int_equal(h.cu.cuMemcpyDtoHAsync(h.pinned, h.at + 1020, 8, h.stream), CU_OK);
    assert_int_equal(h.cu.cuStreamSynchronize(h.stream), CU_ILLEGAL_ADDRESS);
    assert_int_equal(h.cu.cuMemAlloc(&more, 64), CU_ILLEGAL_ADDRESS);
    assert_int_equal(h.cu.cuStreamSynchronize(h.stream), CU_ILLEGAL_ADDRESS);
    stop(&h);
    start(&h, "");
    assert_int_equal(h.cu.cuMemAlloc(&more, 64), CU_OK);
    h.cu.cuMemFree(more);
    stop(&h);
    test_clean();
}

static void launches_are_checked(void **state) {
    Host h;
    CuModule module;
    CuFunction f;
    start(&h, "");
    assert_int_equal(h.cu.cuModuleLoadDataEx(&module, mini_ptx, 0, NULL, NULL), CU_OK);
    assert_int_equal(h.cu.cuModuleGetFunction(&f, module, "nothing"), CU_NOT_FOUND);
    assert_int_equal(h.cu.cuModuleGetFunction(&f, module, "total"), CU_OK);
    uint64_t values[5] = {0};
    void *params[5] = {&values[0], &values[1], &values[2], &values[3], &values[4]};
    const unsigned grids[][5] = {
        {0, 1, 1, 128, 512}, {1, 70000, 1, 128, 512}, {1, 1, 1, 256, 512}, {1, 1, 1, 128, 49153}};
    for (int i = 0; i < 4; i++)
        assert_int_equal(h.cu.cuLaunchKernel(f, grids[i][0], grids[i][1], grids[i][2], grids[i][3],
                                             1, 1, grids[i][4], h.stream, params, NULL),
                         CU_INVALID_VALUE);
    assert_int_equal(h.cu.cuLaunchKernel(f, 1, 1, 1, 128, 1, 1, 512, h.stream, NULL, NULL),
                     CU_INVALID_VALUE);
    assert_int_equal(h.cu.cuFuncSetAttribute(f, CU_FUNCTION_MAX_DYNAMIC_SHARED, 228 << 10),
                     CU_INVALID_VALUE);
    assert_int_equal(h.cu.cuFuncSetAttribute(f, CU_FUNCTION_MAX_DYNAMIC_SHARED, 100 << 10), CU_OK);
    values[4] = h.at + 2048; /* behind the allocation */
    assert_int_equal(h.cu.cuLaunchKernel(f, 1, 1, 1, 128, 1, 1, 512, h.stream, params, NULL),
                     CU_OK);
    assert_int_equal(h.cu.cuStreamSynchronize(h.stream), CU_ILLEGAL_ADDRESS);
    h.cu.cuModuleUnload(module);
    stop(&h);
    test_clean();
}

/* ---- what ends the process with a status of its own ---- */

static void on_stderr(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(fd, 2);
    close(fd);
}

typedef enum { LEAK, PAGEABLE, FREED_EARLY, FREED_TWICE, UNKNOWN_FLAGS, LEGACY, NO_WORD } Sin;

static void commit(Sin sin, const char *text) {
    Host h;
    CuContext was;
    float own = 0;
    void *symbol;
    on_stderr(text);
    start(&h, sin == NO_WORD ? "omm=1" : "");
    switch (sin) {
    case LEAK:
        h.cu.cuCtxPopCurrent(&was);
        h.cu.cuDevicePrimaryCtxRelease(0);
        break;
    case PAGEABLE:
        h.cu.cuMemcpyHtoDAsync(h.at, &own, 4, h.stream);
        break;
    case FREED_EARLY:
        h.cu.cuMemsetD8Async(h.at, 0, 4, h.stream);
        h.cu.cuMemFree(h.at);
        break;
    case FREED_TWICE:
        h.cu.cuMemFree(h.at);
        h.cu.cuMemFree(h.at);
        break;
    case UNKNOWN_FLAGS:
        h.cu.cuStreamCreate(&h.stream, 5);
        break;
    case LEGACY: {
        void (*legacy)(void);
        symbol = dlsym(dlopen(STANDIN, RTLD_NOW), "cuMemAlloc");
        memcpy(&legacy, &symbol, sizeof legacy);
        legacy();
        break;
    }
    case NO_WORD:
        break;
    }
    exit(0);
}

static void sins_are_punished(void **state) {
    static const struct {
        Sin sin;
        const char *text;
        bool aborts;
    } all[] = {{LEAK, "leaked: 1 allocations of device memory", false},
               {PAGEABLE, "memory of the host that is not pinned", false},
               {FREED_EARLY, "device memory is freed while work is pending", false},
               {FREED_TWICE, "misuse: cuMemFree", false},
               {UNKNOWN_FLAGS, "flags 5 are not known here", false},
               {LEGACY, "cuMemAlloc is the function of 2010", true},
               {NO_WORD, "no word 'omm=1'", true}};
    char path[64] = "/tmp/test_cuda_standin.XXXXXX", said[4096];
    close(mkstemp(path));
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        int status;
        fflush(NULL);
        pid_t child = fork();
        if (!child)
            commit(all[i].sin, path);
        assert_int_equal(waitpid(child, &status, 0), child);
        FILE *f = fopen(path, "r");
        said[fread(said, 1, sizeof said - 1, f)] = 0;
        fclose(f);
        if (!strstr(said, all[i].text))
            fprintf(stderr, "said: %s\n", said);
        assert_non_null(strstr(said, all[i].text));
        if (all[i].aborts)
            assert_true(WIFSIGNALED(status));
        else
            assert_int_equal(WEXITSTATUS(status), 97);
    }
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(work_is_late),      cmocka_unit_test(work_is_sometimes_early),
        cmocka_unit_test(captures_forbid),   cmocka_unit_test(graphs_run),
        cmocka_unit_test(errors_stick),      cmocka_unit_test(launches_are_checked),
        cmocka_unit_test(sins_are_punished),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
