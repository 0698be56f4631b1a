/* Whole programs and schedules through the machine: kernels as the lowering writes them, against
 * plain C; the schedule's descriptors against what was asked for. The services of the runtime are
 * small fakes here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "codegen/x86.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- a fake runtime that records ---- */

typedef struct Fake {
    StgcRt rt;
    int faults, gemms, dots;
    const char *what;
    int64_t where, value;
    bool backwards; /* tasks in reverse order */
    StgcGemm gemm;
    const float *groups[4];
    StgcTokenDot dot;
} Fake;

static void fake_parallel(StgcRt *rt, int64_t tasks, StgcTask fn, void *env) {
    Fake *f = (Fake *)rt;
    for (int64_t i = 0; i < tasks; i++)
        fn(env, f->backwards ? tasks - 1 - i : i);
}

static void fake_fault(StgcRt *rt, const char *what, int64_t where, int64_t value) {
    Fake *f = (Fake *)rt;
    if (f->faults++)
        return;
    f->what = what, f->where = where, f->value = value;
}

/* One group, row-major, by tiles of 2 x 3, so that epilogues see ragged tiles. */
static void fake_gemm(StgcRt *rt, const StgcGemm *g) {
    Fake *f = (Fake *)rt;
    f->gemms++;
    f->gemm = *g;
    for (int64_t e = 0; g->b_group && e < g->g1 * g->g2 && e < 4; e++)
        f->groups[e] = g->b_group[e];
    if (!g->epilogue)
        return;
    for (int64_t m0 = 0; m0 < g->m; m0 += 2)
        for (int64_t n0 = 0; n0 < g->n; n0 += 3) {
            int64_t m1 = m0 + 2 < g->m ? m0 + 2 : g->m, n1 = n0 + 3 < g->n ? n0 + 3 : g->n;
            float tile[8] = {0};
            for (int64_t i = m0; i < m1; i++)
                for (int64_t j = n0; j < n1; j++)
                    for (int64_t k = 0; k < g->k; k++)
                        tile[(i - m0) * 4 + j - n0] +=
                            g->a[i * g->a_row + k * g->a_col] * g->b[k * g->b_row + j * g->b_col];
            g->epilogue(g->env, 0, m0, m1, n0, n1, tile, 4);
        }
}

static void fake_token_dot(StgcRt *rt, const StgcTokenDot *t) {
    Fake *f = (Fake *)rt;
    f->dots++;
    f->dot = *t;
}

static Fake fake(void) {
    return (Fake){.rt = {fake_parallel, fake_gemm, fake_token_dot, fake_fault}};
}

static LoopModule *module_new(void) {
    return xcalloc(1, sizeof(LoopModule));
}

static void add_call(LoopModule *m, LoopProgram *p, int64_t tasks, const int64_t *offsets, int n) {
    vec_push(&m->programs, p);
    int64_t *copy = arena_copy(&m->arena, offsets, sizeof *offsets * (size_t)n);
    vec_push(&m->calls, ((LoopCall){.kind = CALL_PARALLEL,
                                    .name = "kernel",
                                    .program = p,
                                    .tasks = tasks,
                                    .nbuffers = n,
                                    .buffers = copy}));
}

static X86Code *compile(const LoopModule *m) {
    Diag d = {0};
    X86Code *c = x86_compile(m, NULL, NULL, NULL, &d);
    assert_non_null(c);
    diag_free(&d);
    return c;
}

static void run_module(LoopModule *m, Fake *f, char *arena) {
    X86Code *c = compile(m);
    c->run(&f->rt, arena);
    x86_free(c);
    loop_module_free(m);
}

static LVal ci(LoopProgram *p, int64_t v) {
    return lp_const_i(p, v);
}

static LVal cf(LoopProgram *p, double v) {
    return lp_const_f(p, LT_F32, v);
}

static float *random_floats(int64_t n, unsigned seed) {
    float *x = aligned_alloc(64, (size_t)(n * 4 + 63) / 64 * 64);
    srand(seed);
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)(rand() % 2001 - 1000) / 250;
    return x;
}

static void near(float got, double want, double tolerance) {
    if (!(fabs(got - want) <= tolerance * (1 + fabs(want))))
        fail_msg("%.9g, not %.9g", (double)got, want);
}

/* ---- kernels ---- */

/* y[task, :] = softmax(x[task, :]), C columns */
static LoopProgram *softmax(int C) {
    LoopProgram *p = loop_program_new(PROGRAM_TASK, "softmax");
    int x = lp_buffer(p, DT_F32), y = lp_buffer(p, DT_F32);
    LVal base = lp_2(p, L_MUL, lp_task(p), ci(p, C));
    int top = lp_var(p, LT_F32, cf(p, -INFINITY));
    LVal i = lp_loop(p, LOOP_VECTOR, ci(p, 0), ci(p, C));
    lp_set(p, top, lp_2(p, L_MAX, lp_get(p, top), lp_load(p, x, lp_2(p, L_ADD, base, i))));
    lp_end(p);
    LVal most = lp_get(p, top);
    int sum = lp_var(p, LT_F32, cf(p, 0));
    i = lp_loop(p, LOOP_VECTOR, ci(p, 0), ci(p, C));
    LVal at = lp_2(p, L_ADD, base, i), e = lp_1(p, L_EXP, lp_2(p, L_SUB, lp_load(p, x, at), most));
    lp_set(p, sum, lp_2(p, L_ADD, lp_get(p, sum), e));
    lp_store(p, y, at, e);
    lp_end(p);
    LVal scale = lp_2(p, L_DIV, cf(p, 1), lp_get(p, sum));
    i = lp_loop(p, LOOP_VECTOR, ci(p, 0), ci(p, C));
    at = lp_2(p, L_ADD, base, i);
    lp_store(p, y, at, lp_2(p, L_MUL, lp_load(p, y, at), scale));
    lp_end(p);
    return p;
}

static void softmax_of_any_width(void **state) {
    (void)state;
    const int widths[] = {1, 7, 16, 50, 100, 128, 1000};
    for (int k = 0; k < COUNT_OF(widths); k++) {
        int C = widths[k], R = 5;
        int64_t half = (R * C + 15) / 16 * 16;
        float *a = random_floats(2 * half, 1);
        Fake f = fake();
        LoopModule *m = module_new();
        add_call(m, softmax(C), R, (int64_t[]){0, half * 4}, 2);
        X86Code *c = compile(m);
        assert_int_equal(c->not_vectorised, 0);
        c->run(&f.rt, (char *)a);
        for (int r = 0; r < R; r++) {
            double top = -INFINITY, sum = 0;
            for (int i = 0; i < C; i++)
                top = fmax(top, (double)a[r * C + i]);
            for (int i = 0; i < C; i++)
                sum += exp((double)a[r * C + i] - top);
            for (int i = 0; i < C; i++)
                near(a[half + r * C + i], exp((double)a[r * C + i] - top) / sum, 1e-6);
        }
        a[3] = NAN; /* stays in its row */
        c->run(&f.rt, (char *)a);
        for (int i = 0; i < C && C > 3; i++)
            assert_true(isnan(a[half + i]));
        if (C > 3)
            assert_false(isnan(a[half + C]));
        x86_free(c);
        loop_module_free(m);
        free(a);
    }
}

/* Sums with bounds known only at run time, and sums over columns: the vector loop outside. */
static LoopProgram *column_sums(int R, int C, bool skip_negative) {
    LoopProgram *p = loop_program_new(PROGRAM_TASK, "column sums");
    int x = lp_buffer(p, DT_F32), y = lp_buffer(p, DT_F32);
    int total = lp_var(p, LT_F32, cf(p, 0));
    LVal j = lp_loop(p, LOOP_VECTOR, ci(p, 0), ci(p, C));
    int s = lp_var(p, LT_F32, cf(p, 0));
    LVal twice = lp_2(p, L_MUL, lp_load(p, x, j), cf(p, 2)); /* lives across the inner loop */
    LVal i = lp_loop(p, LOOP_SEQ, ci(p, 0), ci(p, R));
    LVal v = lp_load(p, x, lp_2(p, L_ADD, lp_2(p, L_MUL, i, ci(p, C)), j));
    if (skip_negative)
        lp_if(p, lp_2(p, L_LT, cf(p, 0), v));
    lp_set(p, s, lp_2(p, L_ADD, lp_get(p, s), v));
    if (skip_negative)
        lp_end(p);
    lp_end(p);
    LVal sum = lp_get(p, s);
    lp_store(p, y, j, lp_2(p, L_ADD, sum, twice));
    lp_set(p, total, lp_2(p, L_ADD, lp_get(p, total), sum));
    lp_end(p);
    lp_store(p, y, ci(p, C), lp_get(p, total));
    return p;
}

static void sums_over_columns(void **state) {
    (void)state;
    const int widths[] = {1, 13, 64, 256, 300, 1024, 1030};
    for (int k = 0; k < COUNT_OF(widths); k++)
        for (int skip = 0; skip < 2; skip++) {
            int C = widths[k], R = 9;
            int64_t half = (R * C + 31) / 16 * 16;
            float *a = random_floats(2 * half, 2);
            Fake f = fake();
            LoopModule *m = module_new();
            add_call(m, column_sums(R, C, skip), 1, (int64_t[]){0, half * 4}, 2);
            X86Code *c = compile(m);
            assert_int_equal(c->not_vectorised, 0);
            c->run(&f.rt, (char *)a);
            double total = 0;
            for (int j = 0; j < C; j++) {
                double sum = 0;
                for (int i = 0; i < R; i++)
                    sum += skip ? fmax(0, (double)a[i * C + j]) : (double)a[i * C + j];
                near(a[half + j], sum + 2 * (double)a[j], 1e-5);
                total += sum;
            }
            near(a[half + C], total, 1e-4);
            x86_free(c);
            loop_module_free(m);
            free(a);
        }
}

/* Top-2 of a row by a local array and nested ifs: the largest in order, lowest index first among
 * equals. */
static void locals_and_ifs(void **state) {
    (void)state;
    enum { R = 6, C = 10 };
    LoopProgram *p = loop_program_new(PROGRAM_TASK, "top2");
    int x = lp_buffer(p, DT_F32), out = lp_buffer(p, DT_I64);
    int used = lp_local(p, LT_BOOL, C), score = lp_local(p, LT_F64, C);
    LVal base = lp_2(p, L_MUL, lp_task(p), ci(p, C));
    LVal i = lp_loop(p, LOOP_SEQ, ci(p, 0), ci(p, C));
    lp_store(p, used, i, lp_const_b(p, false));
    lp_store(p, score, i, lp_1(p, L_TO_F64, lp_load(p, x, lp_2(p, L_ADD, base, i))));
    lp_end(p);
    LVal k = lp_loop(p, LOOP_SEQ, ci(p, 0), ci(p, 2));
    int best = lp_var(p, LT_I64, ci(p, -1)),
        top = lp_var(p, LT_F64, lp_const_f(p, LT_F64, -INFINITY));
    i = lp_loop(p, LOOP_SEQ, ci(p, 0), ci(p, C));
    lp_if(p, lp_load(p, used, i));
    lp_else(p);
    LVal v = lp_load(p, score, i);
    lp_if(p, lp_2(p, L_LT, lp_get(p, top), v));
    lp_set(p, top, v);
    lp_set(p, best, i);
    lp_end(p);
    lp_end(p);
    lp_end(p);
    LVal b = lp_get(p, best);
    lp_store(p, used, b, lp_const_b(p, true));
    lp_store(p, out, lp_2(p, L_ADD, lp_2(p, L_MUL, lp_task(p), ci(p, 2)), k), b);
    lp_end(p);

    float *a = random_floats(128, 3);
    a[7] = a[2] = 50; /* equal: the lower index first */
    Fake f = fake();
    LoopModule *m = module_new();
    add_call(m, p, R, (int64_t[]){0, 256}, 2);
    run_module(m, &f, (char *)a);
    const int64_t *got = (const int64_t *)(a + 64);
    assert_int_equal(got[0], 2);
    assert_int_equal(got[1], 7);
    for (int r = 0; r < R; r++) {
        const float *row = a + r * C;
        assert_true(row[got[2 * r]] >= row[got[2 * r + 1]]);
        for (int j = 0; j < C; j++)
            assert_true(j == got[2 * r] || row[j] <= row[got[2 * r + 1]]);
    }
    free(a);
}

/* A loop whose bounds are data, empty ones too; a gather by index in the vector loop; in place. */
static void ragged_gather(void **state) {
    (void)state;
    enum { E = 4, N = 40 };
    LoopProgram *p = loop_program_new(PROGRAM_TASK, "ragged");
    int offsets = lp_buffer(p, DT_I64), index = lp_buffer(p, DT_I32), x = lp_buffer(p, DT_F32),
        y = lp_buffer(p, DT_F32);
    LVal e = lp_task(p), lo = lp_load(p, offsets, e),
         hi = lp_load(p, offsets, lp_2(p, L_ADD, e, ci(p, 1)));
    int s = lp_var(p, LT_F32, cf(p, 0));
    LVal i = lp_loop(p, LOOP_VECTOR, lo, hi);
    LVal v = lp_load(p, x, lp_load(p, index, i));
    lp_set(p, s, lp_op(p, L_FMA, v, v, lp_get(p, s)));
    lp_store(p, y, lp_2(p, L_ADD, i, ci(p, E)),
             lp_2(p, L_ADD, v, lp_load(p, y, lp_2(p, L_ADD, i, ci(p, E)))));
    lp_end(p);
    lp_store(p, y, e, lp_get(p, s));

    char *arena = aligned_alloc(64, 1024);
    int64_t *off = (int64_t *)arena;
    int32_t *ix = (int32_t *)(arena + 64);
    float *in = (float *)(arena + 256), *out = (float *)(arena + 512);
    memcpy(off, (int64_t[]){0, 33, 33, 35, 40}, 40);
    for (int k = 0; k < N; k++)
        ix[k] = (k * 17) % N, in[k] = (float)k / 4;
    memset(out, 0, 512);
    out[E + 3] = 100;
    Fake f = fake();
    LoopModule *m = module_new();
    add_call(m, p, E, (int64_t[]){0, 64, 256, 512}, 4);
    run_module(m, &f, arena);
    for (int g = 0; g < E; g++) {
        double sum = 0;
        for (int64_t k = off[g]; k < off[g + 1]; k++)
            sum += (double)in[ix[k]] * (double)in[ix[k]];
        near(out[g], sum, 1e-6);
    }
    for (int k = 0; k < N; k++)
        near(out[E + k], (double)in[ix[k]] + (k == 3 ? 100 : 0), 1e-6);
    free(arena);
}

/* Buffers that start anywhere in another one. */
static void buffers_need_no_alignment(void **state) {
    (void)state;
    enum { C = 64, R = 2 };
    float *a = random_floats(512, 7);
    Fake f = fake();
    LoopModule *m = module_new();
    add_call(m, softmax(C), R, (int64_t[]){4, 1024 + 12}, 2);
    add_call(m, softmax(C), R, (int64_t[]){0, 1024}, 2);
    X86Code *c = compile(m);
    assert_int_equal(c->functions, 1);
    c->run(&f.rt, (char *)a);
    double sum = 0;
    for (int i = 0; i < C; i++)
        sum += (double)a[256 + i];
    near((float)sum, 1, 1e-5);
    x86_free(c);
    loop_module_free(m);
    free(a);
}

static void faults_are_reported(void **state) {
    (void)state;
    LoopProgram *p = loop_program_new(PROGRAM_TASK, "check");
    int x = lp_buffer(p, DT_I64);
    LVal v = lp_load(p, x, lp_task(p));
    lp_if(p, lp_2(p, L_OR, lp_2(p, L_LT, v, ci(p, 0)), lp_2(p, L_LE, ci(p, 10), v)));
    lp_fault(p, "label out of range", lp_task(p), v);
    lp_end(p);
    int64_t *a = aligned_alloc(64, 64);
    memcpy(a, (int64_t[]){0, 9, 3, 10, -1, 2, 2, 2}, 64);
    Fake f = fake();
    LoopModule *m = module_new();
    add_call(m, p, 8, (int64_t[]){0}, 1);
    X86Code *c = compile(m);
    c->run(&f.rt, (char *)a);
    assert_int_equal(f.faults, 2);
    assert_string_equal(f.what, "label out of range");
    assert_int_equal(f.where, 3);
    assert_int_equal(f.value, 10);
    x86_free(c);
    loop_module_free(m);
    free(a);
}

/* ---- schedules ---- */

/* C = silu(A B + bias), written by the epilogue; and how often each element came by. */
static void epilogue_of_a_product(void **state) {
    (void)state;
    enum { M = 5, N = 7, K = 3 };
    LoopProgram *p = loop_program_new(PROGRAM_EPILOGUE, "silu");
    int bias = lp_buffer(p, DT_F32), y = lp_buffer(p, DT_F32), tile = lp_tile(p);
    LVal m0 = lp_arg(p, LARG_M0), n0 = lp_arg(p, LARG_N0);
    LVal i = lp_loop(p, LOOP_SEQ, ci(p, 0), lp_2(p, L_SUB, lp_arg(p, LARG_M1), m0));
    LVal j = lp_loop(p, LOOP_VECTOR, ci(p, 0), lp_2(p, L_SUB, lp_arg(p, LARG_N1), n0));
    LVal at = lp_2(p, L_ADD, lp_2(p, L_MUL, i, lp_arg(p, LARG_TILE_LD)), j);
    LVal v = lp_2(p, L_ADD, lp_load(p, tile, at), lp_load(p, bias, lp_2(p, L_ADD, n0, j)));
    v = lp_2(p, L_DIV, v, lp_2(p, L_ADD, cf(p, 1), lp_1(p, L_EXP, lp_1(p, L_NEG, v))));
    lp_store(p, tile, at, v);
    LVal to =
        lp_2(p, L_ADD, lp_2(p, L_MUL, lp_2(p, L_ADD, m0, i), ci(p, N)), lp_2(p, L_ADD, n0, j));
    lp_store(p, y, to, lp_2(p, L_ADD, v, lp_load(p, y, to)));
    lp_end(p);
    lp_end(p);

    float *a = random_floats(256, 4);
    memset(a + 128, 0, 4 * 64);
    LoopModule *m = module_new();
    vec_push(&m->programs, p);
    int64_t buffers[] = {256, 512};
    LoopCall c = {.kind = CALL_GEMM,
                  .name = "product",
                  .program = p,
                  .nbuffers = 2,
                  .buffers = buffers,
                  .gemm = {.kind = STGC_GEMM_BATCH,
                           .g1 = 1,
                           .g2 = 1,
                           .m = M,
                           .n = N,
                           .k = K,
                           .a_row = K,
                           .a_col = 1,
                           .b_row = N,
                           .b_col = 1,
                           .ldc = N},
                  .gemm_a = 0,
                  .gemm_b = 128,
                  .gemm_c = -1,
                  .gemm_offsets = -1,
                  .gemm_index = -1};
    vec_push(&m->calls, c);
    Fake f = fake();
    run_module(m, &f, (char *)a);
    assert_int_equal(f.gemms, 1);
    assert_null(f.gemm.c);
    assert_null(f.gemm.a_index);
    for (int r = 0; r < M; r++)
        for (int q = 0; q < N; q++) {
            double s = (double)a[64 + q];
            for (int k = 0; k < K; k++)
                s += (double)a[r * K + k] * (double)a[32 + k * N + q];
            near(a[128 + r * N + q], s / (1 + exp(-s)), 1e-5);
        }
    free(a);
}

static void descriptors_are_filled(void **state) {
    (void)state;
    char *arena = aligned_alloc(64, 4096);
    LoopModule *m = module_new();
    int64_t groups[] = {1024, 2048, 3072};
    LoopCall g = {.kind = CALL_GEMM,
                  .name = "experts",
                  .gemm = {.kind = STGC_GEMM_ROWS,
                           .g1 = 3,
                           .g2 = 1,
                           .m = 10,
                           .n = 20,
                           .k = 30,
                           .a_row = 30,
                           .a_col = 1,
                           .b_row = 1,
                           .b_col = 30,
                           .ldc = 20,
                           .accumulate = 1},
                  .gemm_a = 0,
                  .gemm_b = -1,
                  .gemm_c = 128,
                  .gemm_offsets = 192,
                  .gemm_index = 256,
                  .gemm_b_group = groups};
    LoopCall t = {.kind = CALL_TOKEN_DOT,
                  .name = "dot",
                  .dot = {.groups = 3, .rows = 10, .in = 4, .out = 5, .mode = 1},
                  .dot_x = 64,
                  .dot_d = 128,
                  .dot_grad = -1,
                  .dot_offsets = 192,
                  .dot_out = 256,
                  .dot_scratch = 320};
    vec_push(&m->calls, g);
    vec_push(&m->calls, t);
    Fake f = fake();
    run_module(m, &f, arena);
    assert_int_equal(f.gemms, 1);
    assert_int_equal(f.gemm.kind, STGC_GEMM_ROWS);
    assert_int_equal(f.gemm.k, 30);
    assert_int_equal(f.gemm.b_col, 30);
    assert_int_equal(f.gemm.accumulate, 1);
    assert_ptr_equal(f.gemm.a, arena);
    assert_ptr_equal(f.gemm.c, arena + 128);
    assert_ptr_equal(f.gemm.offsets, arena + 192);
    assert_ptr_equal(f.gemm.a_index, arena + 256);
    assert_null(f.gemm.b);
    assert_null(f.gemm.epilogue);
    for (int e = 0; e < 3; e++)
        assert_ptr_equal(f.groups[e], arena + groups[e]);
    assert_int_equal(f.dots, 1);
    assert_int_equal(f.dot.out, 5);
    assert_int_equal(f.dot.mode, 1);
    assert_ptr_equal(f.dot.x, arena + 64);
    assert_ptr_equal(f.dot.dot, arena + 256);
    assert_ptr_equal(f.dot.scratch, arena + 320);
    assert_null(f.dot.grad);
    free(arena);
}

/* Equal kernels of different layers are one function, each call with its own buffers. */
static void equal_programs_are_one_function(void **state) {
    (void)state;
    enum { C = 16 };
    float *a = random_floats(256, 5);
    LoopModule *m = module_new();
    for (int k = 0; k < 3; k++)
        add_call(m, softmax(C), 2, (int64_t[]){k * 128, 512 + k * 128}, 2);
    add_call(m, softmax(C / 2), 2, (int64_t[]){384, 896}, 2);
    X86Code *c = compile(m);
    assert_int_equal(c->functions, 2);
    Fake f = fake();
    c->run(&f.rt, (char *)a);
    for (int r = 0; r < 6; r++) {
        double sum = 0;
        for (int i = 0; i < C; i++)
            sum += (double)a[128 + r * C + i];
        near((float)sum, 1, 1e-5);
    }
    x86_free(c);
    loop_module_free(m);
    free(a);
}

/* The same bytes whatever the order of the tasks, and from a second compilation. */
static void results_are_repeatable(void **state) {
    (void)state;
    enum { R = 64, C = 1000, HALF = 64 * 1000 };
    float *a = random_floats(2 * HALF, 6), *first = random_floats(HALF, 0);
    for (int k = 0; k < 3; k++) {
        LoopModule *m = module_new();
        add_call(m, softmax(C), R, (int64_t[]){0, HALF * 4}, 2);
        Fake f = fake();
        f.backwards = k & 1;
        run_module(m, &f, (char *)a);
        if (k == 0)
            memcpy(first, a + HALF, HALF * 4);
        assert_memory_equal(first, a + HALF, HALF * 4);
    }
    free(a);
    free(first);
}

static void dumps_are_written(void **state) {
    (void)state;
    LoopModule *m = module_new();
    add_call(m, softmax(64), 2, (int64_t[]){0, 512}, 2);
    char *ir = NULL, *assembly = NULL;
    size_t n = 0;
    FILE *fi = open_memstream(&ir, &n), *fa = open_memstream(&assembly, &n);
    Diag d = {0};
    X86Code *c = x86_compile(m, "x86-64-v3", fi, fa, &d);
    assert_non_null(c);
    fclose(fi);
    fclose(fa);
    assert_non_null(strstr(ir, "define void @v0"));
    assert_non_null(strstr(ir, "<8 x float>")); /* x86-64-v3 has 256-bit vectors */
    assert_non_null(strstr(assembly, "v0:"));
    assert_null(strstr(assembly, "zmm"));
    x86_free(c);
    free(ir);
    free(assembly);
    loop_module_free(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(softmax_of_any_width),
        cmocka_unit_test(sums_over_columns),
        cmocka_unit_test(locals_and_ifs),
        cmocka_unit_test(ragged_gather),
        cmocka_unit_test(buffers_need_no_alignment),
        cmocka_unit_test(faults_are_reported),
        cmocka_unit_test(epilogue_of_a_product),
        cmocka_unit_test(descriptors_are_filled),
        cmocka_unit_test(equal_programs_are_one_function),
        cmocka_unit_test(results_are_repeatable),
        cmocka_unit_test(dumps_are_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
