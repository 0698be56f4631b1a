/* NVIDIA's assembler takes the sample kernels for every GPU generation, without spills, and its
 * object has the parameters and shared memory that the emulator sees. */
#include "ptx_help.h"

#include <unistd.h>

#include "tests/ptx/tools.h"

static bool no_ptxas(void) {
    char path[512];
    if (ptxas_find(path)) {
        return false;
    }
    print_message("SKIPPED: there is no ptxas in PATH or /usr/local/cuda/bin\n");
    return true;
}

static void every_target(void **state) {
    (void)state;
    static const char *const files[] = {"kernels/vecadd.ptx", "kernels/warps.ptx",
                                        "kernels/memory.ptx", "kernels/twins.ptx"};
    static const int kernels[] = {1, 10, 7, 11}, targets[] = {80, 90, 100, 120};
    if (no_ptxas()) {
        skip();
    }
    for (int f = 0; f < 4; f++) {
        char *text = ptx_file(files[f]), log[1 << 14], what[300] = "";
        for (int t = 0; t < 4; t++) {
            PtxasKernel k[32];
            char cubin[] = "/tmp/ptx-cubin-XXXXXX";
            int fd = mkstemp(cubin);
            assert_true(fd >= 0);
            close(fd);
            int n = ptxas_check(text, strlen(text), targets[t], cubin, k, 32, log, sizeof log);
            if (n != kernels[f]) {
                fail_msg("%s for sm_%d: %d kernels: %s", files[f], targets[t], n, log);
            }
            for (int i = 0; i < n; i++) {
                assert_int_equal(k[i].spill_stores + k[i].spill_loads, 0);
                assert_int_equal(k[i].stack, strcmp(k[i].name, "spaces") ? 0 : 16); /* .local */
                assert_in_range(k[i].registers, 4, 128);
                if (!strcmp(k[i].name, "sgemm")) { /* sa[16][17], sb[16][16] */
                    assert_int_equal(k[i].barriers, 1);
                    assert_in_range(k[i].shared, 2112, 2112 + 1024); /* newer ones keep 1 KB */
                }
            }
            bool same = cubin_check(cubin, text, strlen(text), what, sizeof what);
            if (!same) {
                fail_msg("%s for sm_%d: %s", files[f], targets[t], what);
            }
            unlink(cubin);
        }
        free(text);
    }
}

#define HEAD ".version 7.0\n.target sm_80\n.address_size 64\n"

static void it_finds_faults(void **state) {
    (void)state;
    if (no_ptxas()) {
        skip();
    }
    char log[4096], what[300], cubin[] = "/tmp/ptx-cubin-XXXXXX";
    PtxasKernel k[2];
    static const char bad[] = HEAD ".visible .entry k() { frob.u32 %r1; ret; }\n";
    assert_int_equal(ptxas_check(bad, sizeof bad - 1, 80, NULL, k, 2, log, sizeof log), -1);
    assert_non_null(strstr(log, "frob"));
    /* an array that is indexed at run time goes to the stack */
    static const char stack[] =
        HEAD ".visible .entry k(.param .u64 a) { .reg .b64 %d<5>; .reg .b32 %r<3>; .local .align 4 "
             ".b8 x[400]; ld.param.u64 %d1, [a]; ld.global.u32 %r1, [%d1]; mul.wide.u32 %d2, %r1, "
             "4; mov.u64 %d3, x; add.s64 %d4, %d3, %d2; st.local.u32 [%d4], %r1; ld.local.u32 %r2, "
             "[x+8]; st.global.u32 [%d1], %r2; ret; }\n";
    int fd = mkstemp(cubin);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(ptxas_check(stack, sizeof stack - 1, 80, cubin, k, 2, log, sizeof log), 1);
    assert_int_equal(k[0].stack, 400);
    assert_string_equal(k[0].name, "k");
    assert_true(cubin_check(cubin, stack, sizeof stack - 1, what, sizeof what));
    static const char other[] = HEAD
        ".visible .entry k(.param .u32 n, .param .u64 a) { .shared .align 4 .b8 s[64]; ret; }\n";
    assert_false(cubin_check(cubin, other, sizeof other - 1, what, sizeof what));
    assert_non_null(strstr(what, "kernel k: parameter 0 is 8 bytes at 0 in the cubin"));
    static const char shared[] = HEAD ".visible .entry k(.param .u64 a) { .shared .align 4 .b8 "
                                      "s[64]; .reg .b32 %r; mov.u32 %r, s; ret; }\n";
    assert_false(cubin_check(cubin, shared, sizeof shared - 1, what, sizeof what));
    assert_non_null(strstr(what, "0 bytes of shared memory in the cubin, 64 in the text"));
    unlink(cubin);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_target),
                                       cmocka_unit_test(it_finds_faults)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
