/* Whole kernels through the PTX emulator against plain C, in several orders of threads, with copies
 * early and late and approximations at either end of their bounds. The kernels of nvcc are twins of
 * what LLVM makes of such code: the emulator must not be tuned to one of the two compilers. */
#include "ptx_kernels.h"

#include <unistd.h>

/* Every way to run that must give the same. */
static const struct {
    uint64_t seed;
    PtxApprox approx;
    bool late;
} ways[] = {{0, PTX_APPROX_EXACT, false},
            {0, PTX_APPROX_HIGH, true},
            {1, PTX_APPROX_LOW, false},
            {2, PTX_APPROX_RANDOM, true},
            {3, PTX_APPROX_EXACT, true}};
enum { WAYS = sizeof ways / sizeof *ways };

static PtxDevice *device_for(int way) {
    PtxOptions o = ptx_options(80);
    o.seed = ways[way].seed;
    o.approx = ways[way].approx;
    o.async_late = ways[way].late;
    return ptx_device_new(&o);
}

/* All cases of a file, on a text that stands for it. */
static void run_cases(const char *file, const char *text) {
    int n = 0;
    for (int way = 0; way < WAYS; way++) {
        PtxDevice *d = device_for(way);
        PtxModule *m = ptx_must_load(d, text);
        for (int k = 0; k < PTX_CASES; k++) {
            if (strcmp(ptx_cases[k].file, file)) {
                continue;
            }
            const char *wrong = ptx_cases[k].run(d, m, ptx_cases[k].which);
            if (wrong) {
                fail_msg("%s, kernel%s(way %d): %s", file, ptx_cases[k].kernels, way, wrong);
            }
            n++;
        }
        ptx_device_free(d);
    }
    assert_true(n >= WAYS);
}

static void run_file(const char *file) {
    char *text = ptx_file(file);
    run_cases(file, text);
    free(text);
}

static void vecadd_of_llvm(void **state) {
    (void)state;
    run_file("kernels/vecadd.ptx");
}

static void warps(void **state) {
    (void)state;
    run_file("kernels/warps.ptx");
}

static void memory(void **state) {
    (void)state;
    run_file("kernels/memory.ptx");
}

/* Sums that do not fit f32 deviate as asked for, within what GPUs are known to; others are exact.
 */
static void tensor_sums_deviate(void **state) {
    (void)state;
    float a[4][32], b[2][32], c[4][32] = {{0}}, out[4][4][32], largest[4][32];
    uint32_t s = 11;
    for (int i = 0; i < 6 * 32; i++) {
        float v = draw_float(&s);
        uint32_t u;
        memcpy(&u, &v, 4);
        u &= ~0x1fffu; /* a tf32 */
        memcpy(i < 128 ? &a[i / 32][i % 32] : &b[i / 32 - 4][i % 32], &u, 4);
    }
    for (int l = 0; l < 32; l++) {
        for (int r = 0; r < 4; r++) {
            int row = l / 4 + 8 * (r >> 1), col = 2 * (l % 4) + (r & 1);
            largest[r][l] = 0;
            for (int k = 0; k < 8; k++) {
                float x = a[(row >= 8) + 2 * (k >= 4)][row % 8 * 4 + k % 4];
                float y = b[k >= 4][col * 4 + k % 4];
                largest[r][l] = fmaxf(largest[r][l], fabsf(x * y));
            }
        }
    }
    for (int mode = PTX_APPROX_EXACT; mode <= PTX_APPROX_RANDOM; mode++) {
        PtxOptions o = ptx_options(80);
        o.approx = (PtxApprox)mode;
        PtxDevice *d = ptx_device_new(&o);
        char *text = ptx_file("kernels/warps.ptx");
        PtxModule *m = ptx_must_load(d, text);
        struct {
            uint64_t a, b, c, d;
        } p = {ptx_upload(d, a, sizeof a), ptx_upload(d, b, sizeof b), ptx_upload(d, c, sizeof c),
               ptx_malloc(d, sizeof out[0])};
        ptx_must_launch(d, ptx_kernel(m, "mma_m16n8k8_tf32"), 1, 32, &p, sizeof p);
        assert_true(ptx_read(d, out[mode], p.d, sizeof out[0], true));
        free(text);
        ptx_device_free(d);
    }
    int high = 0, low = 0, other = 0;
    for (int l = 0; l < 32; l++) {
        for (int r = 0; r < 4; r++) {
            float exact = out[PTX_APPROX_EXACT][r][l];
            for (int mode = 1; mode < 4; mode++) {
                assert_true(fabsf(out[mode][r][l] - exact) <= largest[r][l] * 0x1p-21f);
            }
            assert_true(out[PTX_APPROX_HIGH][r][l] >= exact && out[PTX_APPROX_LOW][r][l] <= exact);
            high += out[PTX_APPROX_HIGH][r][l] > exact;
            low += out[PTX_APPROX_LOW][r][l] < exact;
            other += out[PTX_APPROX_RANDOM][r][l] != exact;
        }
    }
    /* a sum far above its terms has ulps beyond the bound and stays */
    assert_true(high > 60 && low > 60 && other > 40);
}

static void twins_kept(void **state) {
    (void)state;
    run_file("kernels/twins.ptx");
}

static void twins_of_the_nvcc_here(void **state) {
    (void)state;
    const char *nvcc =
        access("/usr/local/cuda/bin/nvcc", X_OK) ? "nvcc" : "/usr/local/cuda/bin/nvcc";
    char ptx[] = "/tmp/ptx-twins-XXXXXX", command[1200];
    int fd = mkstemp(ptx);
    assert_true(fd >= 0);
    snprintf(command, sizeof command,
             "%s -ptx -arch=sm_80 " SOURCE_DIR "/tests/ptx/kernels/twins.cu -o %s 2>/dev/null",
             nvcc, ptx);
    if (system(command)) {
        close(fd);
        unlink(ptx);
        print_message(
            "SKIPPED: no nvcc here, so only its code kept in kernels/twins.ptx was run\n");
        skip();
    }
    char *text = calloc(1, 1 << 20);
    assert_true(text && read(fd, text, (1 << 20) - 1) > 0);
    close(fd);
    unlink(ptx);
    run_cases("kernels/twins.ptx", text);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vecadd_of_llvm), cmocka_unit_test(warps),
        cmocka_unit_test(memory),         cmocka_unit_test(tensor_sums_deviate),
        cmocka_unit_test(twins_kept),     cmocka_unit_test(twins_of_the_nvcc_here)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
