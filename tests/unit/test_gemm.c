/* Matrix products against a plain double loop: kinds, strides, odd sizes, gathers, epilogues, of
 * f32 and of operands rounded to bf16, on both libraries, and the same bits for any number of
 * threads. Instruction sets are chosen by the environment of the process: STGC_ISA, LIBXSMM_TARGET.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/machine.h"

static uint64_t seed = 1;

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

static float *copy_floats(const float *p, int64_t n) {
    float *q = malloc((size_t)(n + 1) * sizeof *q);
    assert_non_null(q);
    memcpy(q, p, (size_t)n * sizeof *p);
    return q;
}

/* x rounded to bf16; special_values checks such numbers one by one. */
static double rounded(float x) {
    uint32_t bits, rest;
    memcpy(&bits, &x, sizeof bits);
    rest = bits & 0xffff;
    bits -= rest;
    bits += rest > 0x8000 || (rest == 0x8000 && bits >> 16 & 1) ? 0x10000 : 0;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* One element of C by the definition in step.h; *size: the sum of the terms' magnitudes, which
 * bounds the rounding error. */
static double expect(const StgcGemm *g, const float *c0, int64_t e, int64_t i, int64_t j,
                     double *size) {
    int64_t e1 = e / g->g2, e2 = e % g->g2, k0 = 0, k1 = g->k;
    const float *a = g->a + e1 * g->a_g1 + e2 * g->a_g2;
    const float *b = g->b_group ? g->b_group[e] : g->b + e1 * g->b_g1 + e2 * g->b_g2;
    double sum = g->accumulate ? c0[e1 * g->c_g1 + e2 * g->c_g2 + i * g->ldc + j] : 0;
    int64_t row = i;
    if (g->kind == STGC_GEMM_ROWS) {
        if (g->accumulate)
            sum = c0[i * g->ldc + j];
        a = g->a;
        row = g->a_index ? g->a_index[i] : i;
    } else if (g->kind == STGC_GEMM_K) {
        k0 = g->offsets[e];
        k1 = g->offsets[e + 1];
        a = g->a;
        b = g->b;
    }
    *size = fabs(sum);
    for (int64_t k = k0; row >= 0 && k < k1; k++) {
        float x = a[row * g->a_row + k * g->a_col], y = b[k * g->b_row + j * g->b_col];
        double term = g->precision == STGC_GEMM_BF16 ? rounded(x) * rounded(y) : (double)x * y;
        sum += term;
        *size += fabs(term);
    }
    return sum;
}

typedef struct Seen {
    float *c; /* copy of every tile, at the place of C */
    int64_t ldc, c_group, n;
    int64_t *next_column; /* of each row, to see the order */
    int64_t rows;         /* per group in next_column */
} Seen;

static void see_tile(void *env, int64_t group, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                     float *tile, int64_t ld) {
    Seen *s = env;
    for (int64_t i = m0; i < m1; i++) {
        int64_t *next = &s->next_column[(s->c_group ? group * s->rows : 0) + i];
        if (*next != n0)
            *next = -1000000; /* out of order: the test then sees a wrong end */
        else
            *next = n1;
        for (int64_t j = n0; j < n1; j++)
            s->c[group * s->c_group + i * s->ldc + j] = tile[(i - m0) * ld + j - n0];
    }
}

static StgcRt *machines[3];
static bool with_f32, with_bf16;

typedef void (*Gemm)(StgcRt *rt, const StgcGemm *g);

/* Runs g on 1, 2 and 3 threads into copies of C; compares bits and values, which are within
 * `error` of the terms' magnitudes. c_group: distance of groups in C (0 for ROWS). */
static void check_with(Gemm gemm, double error, StgcGemm g, int64_t c_size, int64_t c_group,
                       bool tiles_only) {
    int64_t groups = g.g1 * g.g2;
    float *c0 = random_floats(c_size), *first = NULL;
    for (int t = 0; t < 3; t++) {
        float *c = copy_floats(c0, c_size);
        int64_t *next = calloc((size_t)(groups * (g.m + 1) + 1), sizeof *next);
        Seen seen = {c, g.ldc, c_group, g.n, next, g.m};
        StgcGemm run = g;
        run.c = tiles_only ? NULL : c;
        if (tiles_only) {
            run.epilogue = see_tile;
            run.env = &seen;
        }
        gemm(machines[t], &run);
        for (int64_t e = 0; e < groups; e++) {
            int64_t i0 = g.kind == STGC_GEMM_ROWS ? g.offsets[e] : 0;
            int64_t i1 = g.kind == STGC_GEMM_ROWS ? g.offsets[e + 1] : g.m;
            for (int64_t i = i0; i < i1; i++) {
                if (tiles_only)
                    assert_int_equal(next[(c_group ? e * g.m : 0) + i], g.n);
                for (int64_t j = 0; t == 0 && j < g.n; j++) {
                    double size, want = expect(&g, c0, e, i, j, &size);
                    double got = c[e * c_group + i * g.ldc + j];
                    if (!(fabs(got - want) <= error * size))
                        fail_msg("kind %d group %ld [%ld,%ld]: %g, expected %g", g.kind, (long)e,
                                 (long)i, (long)j, got, want);
                }
            }
        }
        /* Nothing outside C is written: columns beyond n keep what they had. */
        for (int64_t i = 0; t == 0 && g.kind != STGC_GEMM_ROWS && i < g.m; i++)
            for (int64_t j = g.n; j < g.ldc && i * g.ldc + j < c_size; j++)
                assert_true(c[i * g.ldc + j] == c0[i * g.ldc + j]);
        if (t == 0)
            first = c;
        else {
            assert_memory_equal(first, c, (size_t)c_size * sizeof *c);
            free(c);
        }
        free(next);
    }
    free(first);
    free(c0);
}

static void small_gemm(StgcRt *rt, const StgcGemm *g) {
    assert_true(machine_gemm_small(rt, g));
}

/* The engine of large products takes any size; the one of small products, which rounds once, takes
 * what it is given when the service asks it. */
static void check(StgcGemm g, int64_t c_size, int64_t c_group, bool tiles_only) {
    double groups = g.kind == STGC_GEMM_BATCH ? (double)(g.g1 * g.g2) : 1;
    double work = (double)g.m * (double)g.n * (double)g.k * groups;
    for (int bf16 = !with_f32; bf16 <= with_bf16; bf16++) {
        g.precision = bf16 ? STGC_GEMM_BF16 : STGC_GEMM_F32;
        check_with(machine_gemm, 5e-7, g, c_size, c_group, tiles_only);
        if (work > 0 && work <= 1 << 18 && g.k <= 512)
            check_with(small_gemm, 0x1.01p-24, g, c_size, c_group, tiles_only);
    }
}

/* The last is the default with bf16 by instructions where the CPU has them. */
enum { ENGINES = 4 };
static const char *const engines[ENGINES] = {"", "xsmm", "onednn", "bf16"};

static void make_machines(const char *engine) {
    bool native = !strcmp(engine, "bf16");
    setenv("STGC_GEMM", native ? "" : engine, 1);
    setenv("STGC_BF16", native ? "native" : "rounded", 1);
    with_f32 = !native;
    with_bf16 = native || !*engine;
    for (int t = 0; t < 3; t++) {
        machines[t] = stgc_rt_new(t + 1);
        assert_non_null(machines[t]);
        assert_int_equal(stgc_rt_threads(machines[t]), t + 1);
    }
    print_message("%s\n", stgc_rt_describe(machines[0]));
}

static void free_machines(void) {
    for (int t = 0; t < 3; t++)
        stgc_rt_free(machines[t]);
}

/* What has no eight bits, or is halfway between two that have. */
static void special_values(void **state) {
    static const float x[] = {0x1.01p0f,  0x1.03p0f,   0x1.010002p0f, -0x1.fep127f,
                              INFINITY,   -INFINITY,   -0.0f,         0x1p-140f,
                              0x1.fffp0f, 0x1.ffp127f, NAN,           0x1.7e8p-130f};
    static const float want[] = {0x1p0f, 0x1.04p0f, 0x1.02p0f, -0x1.fep127f, INFINITY, -INFINITY,
                                 0,      0,         0x1p1f,    INFINITY,     NAN,      0x1.8p-130f};
    enum { N = sizeof x / sizeof x[0] };
    for (int form = 0; form < 6; form++) {
        float one = 1, c[N];
        bool native = form >= 4;
        make_machines(native ? "bf16" : "");
        StgcGemm g = {.kind = STGC_GEMM_BATCH, .g1 = 1, .g2 = 1, .m = 1, .n = N, .k = 1};
        g.a = &one;
        g.b = x;
        if (form & 1) {
            g.a = x;
            g.b = &one;
            g.m = N;
            g.n = 1;
        }
        g.a_row = g.a_col = g.b_row = 1;
        g.b_col = 1;
        g.b_row = g.ldc = g.n;
        g.c = c;
        g.precision = STGC_GEMM_BF16;
        (form & 2 ? small_gemm : machine_gemm)(machines[0], &g);
        for (int i = 0; i < N; i++)
            if (isnan(want[i]) ? !isnan(c[i]) : c[i] != want[i])
                if (!(native && fpclassify(x[i]) == FP_SUBNORMAL && c[i] == 0))
                    fail_msg("form %d: %a became %a, expected %a", form, x[i], c[i], want[i]);
        free_machines();
    }
}

/* All sides transposed or not, at sizes around strips, panels, tiles and depths. */
static void plain(void **state) {
    static const int sizes[][3] = {{1, 1, 1},     {1, 33, 7},    {13, 16, 3},    {14, 32, 256},
                                   {15, 33, 257}, {29, 47, 64},  {64, 8, 512},   {8, 300, 40},
                                   {257, 65, 33}, {100, 257, 9}, {300, 70, 600}, {5, 5, 0}};
    for (int engine = 0; engine < ENGINES; engine++) {
        make_machines(engines[engine]);
        for (int s = 0; s < (int)(sizeof sizes / sizeof sizes[0]); s++)
            for (int form = 0; form < 16; form++) {
                int64_t m = sizes[s][0], n = sizes[s][1], k = sizes[s][2];
                int64_t pad = form & 4 ? 5 : 0;
                bool at = form & 1, bt = form & 2;
                StgcGemm g = {.kind = STGC_GEMM_BATCH, .g1 = 1, .g2 = 1, .m = m, .n = n, .k = k};
                g.a_row = at ? 1 : k + pad;
                g.a_col = at ? m + pad : 1;
                g.b_row = bt ? 1 : n + pad;
                g.b_col = bt ? k + pad : 1;
                g.ldc = n + pad;
                g.accumulate = form & 8;
                float *a = random_floats((m + pad) * (k + pad)),
                      *b = random_floats((n + pad) * (k + pad));
                g.a = a;
                g.b = b;
                check(g, m * g.ldc, m * g.ldc, false);
                if (!g.accumulate)
                    check(g, m * g.ldc, m * g.ldc, true);
                free(a);
                free(b);
            }
        free_machines();
    }
}

/* Rows 4096 bytes apart, which take the copying path. */
static void aligned_rows(void **state) {
    make_machines("");
    StgcGemm g = {.kind = STGC_GEMM_BATCH, .g1 = 1, .g2 = 1, .m = 70, .n = 100, .k = 1000};
    g.a_row = 1024;
    g.a_col = 1;
    g.b_row = 1;
    g.b_col = 1024;
    g.ldc = 100;
    float *a = random_floats(70 * 1024), *b = random_floats(100 * 1024);
    g.a = a;
    g.b = b;
    check(g, 7000, 7000, false);
    check(g, 7000, 7000, true);
    free(a);
    free(b);
    free_machines();
}

/* Attention's products: [B,S,H,D] operands, two batch axes, scores and values. */
static void attention(void **state) {
    for (int engine = 0; engine < ENGINES; engine++) {
        make_machines(engines[engine]);
        const int64_t B = 2, S = 37, H = 3, D = 20, row = H * D;
        float *q = random_floats(B * S * row), *v = random_floats(B * S * row);
        StgcGemm g = {.kind = STGC_GEMM_BATCH, .g1 = B, .g2 = H, .m = S, .n = S, .k = D};
        g.a = q;
        g.a_row = row;
        g.a_col = 1;
        g.a_g1 = S * row;
        g.a_g2 = D;
        g.b = v;
        g.b_row = 1;
        g.b_col = row;
        g.b_g1 = S * row;
        g.b_g2 = D;
        g.ldc = S;
        g.c_g1 = H * S * S;
        g.c_g2 = S * S;
        check(g, B * H * S * S, S * S, false);
        check(g, B * H * S * S, S * S, true);
        free(q);
        free(v);
        free_machines();
    }
}

/* Many products far smaller than a task. */
static void tiny_batches(void **state) {
    make_machines("");
    StgcGemm g = {.kind = STGC_GEMM_BATCH, .g1 = 50, .g2 = 7, .m = 3, .n = 5, .k = 4};
    float *a = random_floats(350 * 12), *b = random_floats(350 * 20);
    g.a = a;
    g.b = b;
    g.a_row = 4;
    g.a_col = g.b_col = 1;
    g.b_row = 5;
    g.a_g1 = 7 * 12;
    g.a_g2 = 12;
    g.b_g1 = 7 * 20;
    g.b_g2 = 20;
    g.ldc = 5;
    g.c_g1 = 7 * 15;
    g.c_g2 = 15;
    check(g, 350 * 15, 15, false);
    check(g, 350 * 15, 15, true);
    free(a);
    free(b);
    free_machines();
}

/* Grouped rows: empty groups, gathers with holes, rows that belong to no group. */
static void grouped_rows(void **state) {
    static const int64_t offsets[] = {0, 0, 300, 301, 301, 340};
    enum { E = 5, BOUND = 350 };
    for (int engine = 0; engine < ENGINES; engine++) {
        make_machines(engines[engine]);
        for (int form = 0; form < 8; form++) {
            const int64_t n = 90, k = 70;
            bool gather = form & 1, by_pointer = form & 2, transposed = form & 4;
            float *a = random_floats(BOUND * k), *b = random_floats(E * n * k);
            int64_t index[BOUND];
            const float *groups[E];
            for (int i = 0; i < BOUND; i++)
                index[i] = i % 7 == 3 ? -1 : (i * 13) % BOUND;
            StgcGemm g = {.kind = STGC_GEMM_ROWS, .g1 = E, .g2 = 1, .m = BOUND, .n = n, .k = k};
            g.offsets = offsets;
            g.a = a;
            g.a_row = k;
            g.a_col = 1;
            g.a_index = gather ? index : NULL;
            g.b = b;
            g.b_g1 = n * k;
            g.b_row = transposed ? 1 : n;
            g.b_col = transposed ? k : 1;
            g.ldc = n;
            for (int e = 0; e < E; e++)
                groups[e] = b + (E - 1 - e) * n * k;
            if (by_pointer)
                g.b_group = groups;
            check(g, BOUND * n, 0, false);
            check(g, BOUND * n, 0, true);
            g.accumulate = 1;
            check(g, BOUND * n, 0, false);
            g.accumulate = 0;
            float *c = random_floats(BOUND * n);
            g.c = c;
            machines[1]->gemm(machines[1], &g);
            for (int64_t i = offsets[E] * n; i < BOUND * n; i++)
                assert_true(c[i] == 0);
            free(c);
            free(a);
            free(b);
        }
        free_machines();
    }
}

/* Weight gradients: the depth is a group's rows; an empty group gives zeros. */
static void grouped_depth(void **state) {
    static const int64_t offsets[] = {0, 270, 270, 277};
    for (int engine = 0; engine < ENGINES; engine++) {
        make_machines(engines[engine]);
        const int64_t m = 60, n = 85, rows = 280;
        float *a = random_floats(rows * m), *b = random_floats(rows * n);
        StgcGemm g = {.kind = STGC_GEMM_K, .g1 = 3, .g2 = 1, .m = m, .n = n, .k = rows};
        g.offsets = offsets;
        g.a = a;
        g.a_row = 1;
        g.a_col = m;
        g.b = b;
        g.b_row = n;
        g.b_col = 1;
        g.ldc = n;
        g.c_g1 = m * n;
        check(g, 3 * m * n, m * n, false);
        check(g, 3 * m * n, m * n, true);
        g.accumulate = 1;
        check(g, 3 * m * n, m * n, false);
        free(a);
        free(b);
        free_machines();
    }
}

/* Weight gradients of narrow layers, which oneDNN gets where it is installed: the same bits for any
 * number of threads there too. */
static void narrow_gradients(void **state) {
    static const int sizes[][3] = {{8, 512, 1024}, {192, 64, 256}, {100, 300, 290}};
    make_machines("");
    for (int s = 0; s < 6; s++) {
        const int *size = sizes[s % 3];
        int64_t m = size[0], n = size[1], k = size[2];
        float *a = random_floats(m * k), *b = random_floats(n * k);
        StgcGemm g = {.kind = STGC_GEMM_BATCH, .g1 = 1, .g2 = 1, .m = m, .n = n, .k = k};
        g.a = a;
        g.a_row = 1;
        g.a_col = m;
        g.b = b;
        g.b_row = g.ldc = n;
        g.b_col = 1;
        g.accumulate = s >= 3;
        check(g, m * n, m * n, false);
        free(a);
        free(b);
    }
    free_machines();
}

/* The first rows of a product alone, and its first columns alone, have the bits that they have
 * within it: libxsmm's chains do not depend on what else a kernel multiplies. */
static void parts_alone(void **state) {
    enum { M = 60, N = 150, K = 150 };
    static const int columns[] = {1, 2, 8, 15, 16, 17, 31, 33, 48, 64, 65, 79, 80, 81, 129, 150};
    static const int depths[] = {1, 7, 63, 64, 65, 150};
    make_machines("xsmm");
    float *a = random_floats(M * K), *b = random_floats(N * K);
    float *whole = random_floats(M * N), *part = random_floats(M * N);
    for (int form = 0; form < 4 * 6; form++) {
        bool at = form & 1, bt = form & 2;
        StgcGemm g = {.kind = STGC_GEMM_BATCH, .g1 = 1, .g2 = 1, .m = M, .n = N, .ldc = N};
        g.k = depths[form / 4];
        g.a = a;
        g.a_row = at ? 1 : K;
        g.a_col = at ? M : 1;
        g.b = b;
        g.b_row = bt ? 1 : N;
        g.b_col = bt ? K : 1;
        g.c = whole;
        machine_gemm(machines[0], &g);
        g.c = part;
        for (int c = 0; c < (int)(sizeof columns / sizeof columns[0]); c++)
            for (g.m = 1; g.m <= M; g.m += g.m < 30 ? 1 : 10) {
                g.n = columns[c];
                machine_gemm(machines[0], &g);
                for (int64_t i = 0; i < g.m; i++)
                    assert_memory_equal(whole + i * N, part + i * N, (size_t)g.n * sizeof *part);
            }
    }
    free(a);
    free(b);
    free(whole);
    free(part);
    free_machines();
}

/* One row of A for all rows of C, and a C of one row that lies in less than its width. */
static void broadcast(void **state) {
    make_machines("");
    float *a = random_floats(100), *b = random_floats(100 * 70);
    StgcGemm g = {.kind = STGC_GEMM_BATCH, .g1 = 1, .g2 = 1, .m = 50, .n = 70, .k = 100};
    g.a = a;
    g.a_row = 0;
    g.a_col = 1;
    g.b = b;
    g.b_row = g.ldc = 70;
    g.b_col = 1;
    check(g, 50 * 70, 50 * 70, false);
    g.m = 1;
    g.ldc = 0;
    check(g, 70, 70, false);
    free(a);
    free(b);
    free_machines();
}

static void nothing_to_do(void **state) {
    make_machines("");
    int64_t offsets[] = {0, 0};
    float c[4] = {1, 2, 3, 4};
    StgcGemm g = {.kind = STGC_GEMM_ROWS, .g1 = 1, .g2 = 1, .offsets = offsets, .n = 2, .k = 3};
    g.a_col = g.b_col = 1;
    g.a = g.b = c;
    g.a_row = 3;
    g.b_row = g.ldc = 2;
    g.c = c;
    machines[1]->gemm(machines[1], &g); /* no rows */
    g.kind = STGC_GEMM_BATCH;
    g.m = 2;
    g.n = 0;
    machines[1]->gemm(machines[1], &g); /* no columns */
    g.n = 2;
    g.g1 = 0;
    machines[1]->gemm(machines[1], &g); /* no groups */
    for (int i = 0; i < 4; i++)
        assert_true(c[i] == (float)(i + 1));
    free_machines();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(special_values), cmocka_unit_test(plain),
        cmocka_unit_test(aligned_rows),   cmocka_unit_test(attention),
        cmocka_unit_test(tiny_batches),   cmocka_unit_test(grouped_rows),
        cmocka_unit_test(grouped_depth),  cmocka_unit_test(narrow_gradients),
        cmocka_unit_test(parts_alone),    cmocka_unit_test(broadcast),
        cmocka_unit_test(nothing_to_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
