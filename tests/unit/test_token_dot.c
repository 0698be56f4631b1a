/* Token alignment against materialised gradients: gram = factored = the definition. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/runtime.h"

static uint64_t seed = 7;

static float uniform(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(seed >> 32) / 2147483648.0f;
}

static float *random_floats(int64_t n) {
    float *p = malloc((size_t)(n + 1) * sizeof *p);
    assert_non_null(p);
    for (int64_t i = 0; i < n; i++)
        p[i] = uniform();
    return p;
}

enum { GROUPS = 4, ROWS = 420 };
/* One group of one row, one empty, one larger than a block of rows. */
static const int64_t offsets[GROUPS + 1] = {0, 1, 1, 110, 410};

/* Sum over a group's rows of x d', [in][out], in double. */
static double *sum_gradient(const float *x, const float *d, int64_t in, int64_t out, int group) {
    double *sum = calloc((size_t)(in * out), sizeof *sum);
    assert_non_null(sum);
    for (int64_t r = offsets[group]; r < offsets[group + 1]; r++)
        for (int64_t i = 0; i < in; i++)
            for (int64_t o = 0; o < out; o++)
                sum[i * out + o] += (double)x[r * in + i] * d[r * out + o];
    return sum;
}

/* Compares dots with <g_r, G>, relative to |g_r||G|: the error of the cosine. */
static void compare(const float *x, const float *d, const float *dot, int64_t in, int64_t out) {
    for (int e = 0; e < GROUPS; e++) {
        double *sum = sum_gradient(x, d, in, out, e), norm = 0;
        double count = (double)(offsets[e + 1] - offsets[e]);
        for (int64_t i = 0; i < in * out; i++)
            norm += sum[i] / count * (sum[i] / count);
        for (int64_t r = offsets[e]; r < offsets[e + 1]; r++) {
            double want = 0, xx = 0, dd = 0;
            for (int64_t i = 0; i < in; i++) {
                xx += (double)x[r * in + i] * x[r * in + i];
                for (int64_t o = 0; o < out; o++)
                    want += (double)x[r * in + i] * d[r * out + o] * sum[i * out + o] / count;
            }
            for (int64_t o = 0; o < out; o++)
                dd += (double)d[r * out + o] * d[r * out + o];
            assert_true(fabs(dot[r] - want) <= 2e-6 * sqrt(xx * dd * norm));
        }
        free(sum);
    }
    for (int64_t r = offsets[GROUPS]; r < ROWS; r++)
        assert_true(dot[r] == 0);
}

static void one_shape(int64_t in, int64_t out) {
    float *x = random_floats(ROWS * in), *d = random_floats(ROWS * out);
    float *grad = malloc((size_t)(GROUPS * in * out) * sizeof *grad);
    for (int e = 0; e < GROUPS; e++) { /* stored [out][in], as a Linear's weight is */
        double *sum = sum_gradient(x, d, in, out, e);
        for (int64_t i = 0; i < in; i++)
            for (int64_t o = 0; o < out; o++)
                grad[e * in * out + o * in + i] = (float)sum[i * out + o];
        free(sum);
    }
    int64_t bytes = stgc_token_dot_scratch(GROUPS, ROWS, in, out);
    for (int form = 0; form < 6; form++) {
        float first[ROWS];
        for (int threads = 1; threads <= 3; threads++) {
            StgcRt *rt = stgc_rt_new(threads);
            float dot[ROWS];
            float *scratch = malloc((size_t)bytes);
            memset(dot, 0xff, sizeof dot);
            memset(scratch, 0xff, (size_t)bytes);
            StgcTokenDot t = {GROUPS, ROWS, in, out, offsets, x,        d,
                              NULL,   0,    0,  0,   dot,     form / 2, scratch};
            if (form % 2) {
                t.grad = grad;
                t.grad_group = in * out;
                t.g_in = 1;
                t.g_out = in;
            }
            rt->token_dot(rt, &t);
            if (threads == 1) {
                compare(x, d, dot, in, out);
                memcpy(first, dot, sizeof dot);
            } else {
                assert_memory_equal(first, dot, sizeof dot);
            }
            free(scratch);
            stgc_rt_free(rt);
        }
    }
    free(x);
    free(d);
    free(grad);
}

static void small(void **state) {
    one_shape(20, 33);
}

static void wide(void **state) {
    one_shape(300, 70);
}

/* One row's gradient is its own mean: dot = |x|^2 |d|^2; duplicates agree to the last bit. */
static void identities(void **state) {
    enum { IN = 40, OUT = 24, N = 130 };
    const int64_t all[] = {0, N};
    float *x = random_floats(N * IN), *d = random_floats(N * OUT), dot[N];
    memcpy(x + 100 * IN, x + 3 * IN, IN * sizeof *x);
    memcpy(d + 100 * OUT, d + 3 * OUT, OUT * sizeof *d);
    StgcRt *rt = stgc_rt_new(2);
    float *scratch = malloc((size_t)stgc_token_dot_scratch(1, N, IN, OUT));
    for (int mode = 1; mode <= 2; mode++) {
        StgcTokenDot t = {1, N, IN, OUT, all, x, d, NULL, 0, 0, 0, dot, mode, scratch};
        rt->token_dot(rt, &t);
        double total = 0, norm = 0;
        for (int r = 0; r < N; r++)
            total += dot[r];
        for (int i = 0; i < IN; i++)
            for (int o = 0; o < OUT; o++) {
                double g = 0;
                for (int r = 0; r < N; r++)
                    g += (double)x[r * IN + i] * d[r * OUT + o];
                norm += g / N * (g / N);
            }
        assert_true(fabs(total - N * norm) <= 1e-5 * N * norm);
        assert_true(fabs(dot[3] - dot[100]) <= 1e-5 * fabs(dot[3]));
    }
    free(scratch);
    free(x);
    free(d);
    stgc_rt_free(rt);
}

static void empty(void **state) {
    StgcRt *rt = stgc_rt_new(2);
    const int64_t none[] = {0, 0};
    float dot[3] = {1, 1, 1}, x[3] = {0};
    StgcTokenDot t = {1, 3, 1, 1, none, x, x, NULL, 0, 0, 0, dot, 0, NULL};
    float *scratch = malloc((size_t)stgc_token_dot_scratch(1, 3, 1, 1));
    t.scratch = scratch;
    rt->token_dot(rt, &t);
    for (int i = 0; i < 3; i++)
        assert_true(dot[i] == 0);
    free(scratch);
    stgc_rt_free(rt);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(small), cmocka_unit_test(wide),
                                       cmocka_unit_test(identities), cmocka_unit_test(empty)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
