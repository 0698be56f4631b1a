/* Whole steps through ptxas: assembled for every GPU there is a target for, without a byte of stack
 * or spill, within the shared memory that the target has. Skipped, and loudly, where there is no
 * ptxas (in PATH, $CUDA_HOME/bin or /usr/local/cuda/bin). */
#include "lower_help.h"
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

static void check_graph(const char *ptxas, Graph *g, Diag *d, const char *name,
                        const char *target) {
    char what[128];
    snprintf(what, sizeof what, "%.90s for %s", name, target);
    LoopModule *m = lower_graph(g, &(LowerOptions){.fused = true, .gpu = true}, d);
    assert_non_null(m);
    NvptxCode *code = gpu_compile(m, target, what);
    NvptxTarget t;
    assert_true(nvptx_target_find(&t, target, d));
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
            if (i == 0 || t == i + 2)
                check_graph(ptxas, c.g, &c.diag, c.name, targets[t]);
        gpu_case_free(&c);
    }
}

/* Shapes of layers as they are trained: rows of 4096 and of a vocabulary, 128 experts, long
 * sequences. */
static void test_large_shapes(void **state) {
    (void)state;
    static const char *const texts[] = {
        "x = f32[64,32000]; l = i64<0,32000>[64]; g = f32[64]; n,e = xent x l {ignore_index=7}; d "
        "= "
        "xent_grad x l e g {ignore_index=7}; out n d",
        "x = f32[4096,4096]; w = f32[4096]; q = mul x x; m = reduce_sum q {axes=[1],keepdims=1}; n "
        "= mul "
        "m #0.000244140625; a = add n #1e-5; s = sqrt a; y = div x s; z = mul y w; out z",
        "x = f32[4,2048,2048]; y = softmax x {axis=-1}; out y",
        "x = f32[2048,128]; a,b = topk x {k=8,axis=-1,largest=1}; out a b",
        "x = f32[4096,64]; s = i64<-1,128>[4096,8]; o,t,p,e,pr,te = dispatch s "
        "{experts=128,top_k=8}; "
        "r = gather_rows x t pr; y = combine r pr t; q = segment_sum r o e; out y q",
        "x = f32[4096,512]; i = i64<0,1000>[4096]; y = scatter_add x i {axis=0,dims=[1000,512]}; "
        "out y",
    };
    const char *ptxas = find_ptxas();
    if (!ptxas)
        skip();
    for (int i = 0; i < COUNT_OF(texts); i++) {
        Reader *r = xcalloc(1, sizeof *r);
        read_graph(r, texts[i]);
        check_graph(ptxas, r->g, &r->d, texts[i], i % 2 ? "sm_80" : "sm_90");
        diag_free(&r->d);
        graph_free(r->g);
        free(r);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ptxas),
                                       cmocka_unit_test(test_large_shapes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
