/* Whole kernels through the PTX emulator: their results, under every order and deviation. */
#include "ptx_help.h"

static void vecadd(void **state) {
    (void)state;
    PtxOptions o = ptx_options(80);
    PtxDevice *d = ptx_device_new(&o);
    char *text = ptx_file("kernels/vecadd.ptx");
    PtxModule *m = ptx_must_load(d, text);
    enum { N = 1000 };
    float a[N], b[N], c[N];
    for (int i = 0; i < N; i++) {
        a[i] = (float)i;
        b[i] = 0.5f * (float)i;
    }
    struct {
        uint64_t a, b, c;
        uint32_t n;
    } p = {ptx_upload(d, a, sizeof a), ptx_upload(d, b, sizeof b), ptx_malloc(d, sizeof c), N};
    ptx_must_launch(d, ptx_kernel(m, "vecadd"), 4, 256, &p, 28);
    assert_true(ptx_read(d, c, p.c, sizeof c, true));
    for (int i = 0; i < N; i++) {
        assert_true(c[i] == a[i] + b[i]);
    }
    PtxCounts n;
    ptx_counts(d, &n);
    assert_int_equal(n.other_flops, N);
    assert_int_equal(n.global_read, 8 * N);
    assert_int_equal(n.global_written, 4 * N);
    ptx_unload(m);
    free(text);
    ptx_device_free(d);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(vecadd)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
