/* The project's own cases for a GPU: whole training steps, every call on the PTX emulator against
 * the same programs on the CPU; lint and ptxas for every GPU that there is a target for. */
#include "nvptx_case.h"

static const char *const names[] = {
    "deepseekv3-legacy-loop", "gptoss-dynamo-batched",  "gptoss-hf-grouped", "olmoe-dynamo-dense",
    "olmoe-dynamo-stacked",   "qwen2moe-dynamo-static", "qwen3moe-hf-moeop"};

static void test_gradients(void **state) {
    (void)state;
    for (int i = 0; i < COUNT_OF(names); i++) {
        GpuCase c;
        gpu_case_load(&c, SOURCE_DIR "/tests/cases", names[i],
                      (TrainWants){.train = true, .grads = true, .detail = true});
        double worst = gpu_case_twin(&c, true, 1e-5);
        printf("%s: %d calls, worst difference %.2g\n", names[i], c.calls, worst);
        gpu_case_free(&c);
    }
}

static void test_update_unfused(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        GpuCase c;
        gpu_case_load(&c, SOURCE_DIR "/tests/cases", names[3 * i],
                      (TrainWants){.train = true, .metrics = true, .update = true});
        double worst = gpu_case_twin(&c, i == 0, 1e-5);
        printf("%s: %d calls, worst difference %.2g\n", names[3 * i], c.calls, worst);
        gpu_case_free(&c);
    }
}

/* Operands rounded to bf16, on the CPU and on tensor cores: products are exact, sums f32 in both.
 */
static void test_bf16(void **state) {
    (void)state;
    GpuCase c;
    gpu_case_precision = PRECISION_BF16;
    gpu_case_load(&c, SOURCE_DIR "/tests/cases", "olmoe-dynamo-stacked",
                  (TrainWants){.train = true, .grads = true, .detail = true});
    gpu_case_precision = PRECISION_F32;
    int marked = 0;
    FOR_NODES(n, c.g)
    marked += !strcmp(node_str(n, AT_PRECISION, ""), "bf16");
    assert_true(marked > 20);
    double worst = gpu_case_twin(&c, true, 1e-5);
    printf("bf16: %d calls, worst difference %.2g\n", c.calls, worst);
    gpu_case_free(&c);
}

/* FOLDER NAME…: other cases, each as gradients and as a training step. */
static void run_others(const char *folder, char **others, int n) {
    const TrainWants wants[] = {{.train = true, .grads = true, .detail = true},
                                {.train = true, .metrics = true, .update = true}};
    for (int i = 0; i < n; i++)
        for (int w = 0; w < COUNT_OF(wants); w++) {
            GpuCase c;
            gpu_case_load(&c, folder, others[i], wants[w]);
            double worst = gpu_case_twin(&c, true, 1e-5);
            printf("%s: %d calls, worst difference %.2g\n", others[i], c.calls, worst);
            gpu_case_free(&c);
        }
}

static int others_argc;
static char **others_argv;
static void test_others(void **state) {
    (void)state;
    run_others(others_argv[1], others_argv + 2, others_argc - 2);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_update_unfused),
        cmocka_unit_test(test_bf16),
    };
    const struct CMUnitTest others[] = {cmocka_unit_test(test_others)};
    others_argc = argc, others_argv = argv;
    return argc > 2 ? cmocka_run_group_tests(others, NULL, NULL)
                    : cmocka_run_group_tests(tests, NULL, NULL);
}
