/* Whole steps through ptxas: assembled for every GPU there is a target for, without a byte of stack
 * or spill, within the shared memory that the target has. Skipped, and loudly, where there is no
 * ptxas (in PATH, $CUDA_HOME/bin or /usr/local/cuda/bin). */
#include "nvptx_case.h"

#include <sys/wait.h>
#include <unistd.h>

static const char *find_ptxas(void) {
    static char path[1024];
    const char *home = getenv("CUDA_HOME"), *dirs = getenv("PATH");
    char all[8192];
    snprintf(all, sizeof all, "%s:%s/bin:/usr/local/cuda/bin", dirs ? dirs : "",
             home ? home : "/usr/local/cuda");
    for (char *dir = strtok(all, ":"); dir; dir = strtok(NULL, ":")) {
        snprintf(path, sizeof path, "%.900s/ptxas", dir);
        if (access(path, X_OK) == 0)
            return path;
    }
    return NULL;
}

/* ptxas -v prints, per kernel, "N bytes stack frame, N bytes spill stores, N bytes spill loads". */
static int count_kernels(FILE *log, const char *what) {
    char line[1024], kernel[256] = "";
    int n = 0;
    while (fgets(line, sizeof line, log)) {
        const char *at = strstr(line, "Compiling entry function '");
        if (at)
            sscanf(at + 26, "%255[^']", kernel), n++;
        at = strstr(line, " bytes stack frame");
        if (at &&
            !strstr(line, "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"))
            fail_msg("%s: %s: %s", what, kernel, line);
        if (strstr(line, "warning") || strstr(line, "error") || strstr(line, "C7"))
            fail_msg("%s: %s: %s", what, kernel, line);
    }
    return n;
}

static void assemble(const char *ptxas, const StgcCudaStep *s, const char *what) {
    char in[] = "/tmp/stgc_ptxas_XXXXXX", command[2048];
    int fd = mkstemp(in);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, s->ptx, (size_t)s->ptx_bytes), s->ptx_bytes);
    close(fd);
    snprintf(command, sizeof command,
             "%s -arch=sm_%d -v -warn-spills -warn-lmem-usage %s -o /dev/null 2>&1", ptxas,
             s->target, in);
    FILE *log = popen(command, "r");
    assert_non_null(log);
    int n = count_kernels(log, what);
    int status = pclose(log);
    unlink(in);
    if (status)
        fail_msg("%s: ptxas exits %d", what, WEXITSTATUS(status));
    assert_int_equal(n, s->nkernels);
}

static void check_case(const char *ptxas, GpuCase *c, const char *target) {
    char what[128];
    snprintf(what, sizeof what, "%s for %s", c->name, target);
    LoopModule *m = lower_graph(c->g, &(LowerOptions){.fused = true, .gpu = true}, &c->diag);
    assert_non_null(m);
    NvptxCode *code = gpu_compile(m, target, what);
    NvptxTarget t;
    assert_true(nvptx_target_find(&t, target, &c->diag));
    const StgcCudaStep *s = nvptx_step(code, 0);
    for (uint32_t k = 0; k < s->nkernels; k++) {
        assert_true(s->kernels[k].shared_static <= 48 * 1024);
        assert_true(s->kernels[k].shared_static + s->kernels[k].shared_dynamic <=
                    (uint32_t)t.shared_limit);
    }
    assemble(ptxas, s, what);
    nvptx_free(code);
    loop_module_free(m);
}

static void test_ptxas(void **state) {
    (void)state;
    static const char *const targets[] = {"sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"};
    static const char *const names[] = {"olmoe-dynamo-stacked", "gptoss-dynamo-batched",
                                        "qwen3moe-hf-moeop", "deepseekv3-legacy-loop"};
    const char *ptxas = find_ptxas();
    if (!ptxas) {
        fprintf(stderr, "SKIPPED: no ptxas here; what the PTX assembles to is NOT checked\n");
        skip();
    }
    for (int i = 0; i < COUNT_OF(names); i++) {
        GpuCase c;
        gpu_case_load(&c, SOURCE_DIR "/tests/cases", names[i],
                      (TrainWants){.train = true, .metrics = true, .update = true});
        for (int t = 0; t < COUNT_OF(targets); t++)
            if (i == 0 || t == i || t == i + 2)
                check_case(ptxas, &c, targets[t]);
        gpu_case_free(&c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ptxas)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
