/* The f64 functions of GPUs, and sin, cos and pow of f32, on the PTX emulator against libm: random
 * arguments over the whole range and where functions change form. */
#include "nvptx_help.h"

enum { N = 1 << 15 };

static uint64_t seed;
static double uniform(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(seed >> 11) * 0x1p-53;
}

/* Between lo and hi, or (spread) with exponents spread evenly, either sign. */
typedef struct Range {
    double lo, hi;
    bool spread;
} Range;

static double draw(const Range *r) {
    if (!r->spread)
        return r->lo + (r->hi - r->lo) * uniform();
    double v = exp2(log2(r->lo) + (log2(r->hi) - log2(r->lo)) * uniform());
    return uniform() < 0.5 ? v : -v;
}

/* y[i] = op(x[i], z[i]) of all N on the emulator */
static void apply(LOp op, DType t, char *arena) {
    LoopProgram *p = loop_program_new(PROGRAM_TASK, "apply");
    int x = lp_buffer(p, t), z = lp_buffer(p, t), y = lp_buffer(p, t);
    LVal lo = lp_2(p, L_MUL, lp_task(p), lp_const_i(p, 1024));
    LVal i = lp_loop(p, LOOP_VECTOR, lo, lp_2(p, L_ADD, lo, lp_const_i(p, 1024)));
    LVal a = lp_load(p, x, i), b = op == L_POW || op == L_REM ? lp_load(p, z, i) : 0;
    lp_store(p, y, i, lp_op(p, op, a, b, 0));
    lp_end(p);
    LoopModule *m = xcalloc(1, sizeof *m);
    int64_t offsets[] = {0, N * 8, 2 * N * 8};
    LoopCall c = {.kind = CALL_PARALLEL,
                  .name = "apply",
                  .program = p,
                  .tasks = N / 1024,
                  .nbuffers = 3,
                  .buffers = offsets,
                  .gemm_c = -1};
    vec_push(&m->calls, c);
    vec_push(&m->programs, p);
    NvptxCode *code = gpu_compile(m, "sm_80", "apply");
    Gpu g = gpu_new(nvptx_step(code, 0), 3 * N * 8);
    gpu_check(&g, ptx_write(g.dev, g.arena, arena, 2 * N * 8), "arguments");
    gpu_op(&g, &g.step->ops[0]);
    size_t n = (size_t)N * (size_t)dtype_bytes(t);
    gpu_check(&g, ptx_read(g.dev, arena + 2 * N * 8, g.arena + 2 * N * 8, n, true), "results");
    gpu_free(&g);
    nvptx_free(code);
    loop_module_free(m);
}

static long double exact(LOp op, long double a, long double b) {
    switch (op) {
    case L_EXP:
        return expl(a);
    case L_LOG:
        return logl(a);
    case L_TANH:
        return tanhl(a);
    case L_ERF:
        return erfl(a);
    case L_SIN:
        return sinl(a);
    case L_COS:
        return cosl(a);
    case L_POW:
        return powl(a, b);
    default:
        return fmodl(a, b);
    }
}

/* Distance in units of the last place of `want` rounded to the type. */
static double ulps(DType t, double got, long double want) {
    double w = t == DT_F32 ? (double)(float)want : (double)want;
    if (isnan(w) || isnan(got) || isinf(w) || isinf(got))
        return (isnan(w) && isnan(got)) || w == got ? 0 : INFINITY;
    int e;
    frexp(w, &e);
    int bits = t == DT_F32 ? 24 : 53, least = t == DT_F32 ? -149 : -1074;
    double ulp = ldexp(1, e - bits > least ? e - bits : least);
    return (double)(fabsl((long double)got - want) / (long double)ulp);
}

static void check(LOp op, const char *name, DType t, Range x, Range y, double allowed) {
    char *arena = xcalloc(3, N * 8);
    Tensor in[3];
    for (int k = 0; k < 3; k++)
        in[k] = (Tensor){.dtype = t, .rank = 1, .dims = {N}, .data = arena + k * N * 8};
    seed = 12345;
    for (int i = 0; i < N; i++) {
        tensor_set_f(&in[0], i, draw(&x));
        tensor_set_f(&in[1], i, draw(&y));
    }
    apply(op, t, arena);
    double worst = 0, at = 0, other = 0;
    for (int i = 0; i < N; i++) {
        double a = tensor_get_f(&in[0], i), b = tensor_get_f(&in[1], i);
        double u = ulps(t, tensor_get_f(&in[2], i), exact(op, (long double)a, (long double)b));
        if (u > worst)
            worst = u, at = a, other = b;
    }
    printf("%s %s [%g, %g]: %.3f ulp at %.17g, %.17g\n", name, dtype_name(t), x.lo, x.hi, worst, at,
           other);
    free(arena);
    if (!(worst <= allowed))
        fail_msg("%s: %.3f ulp at %.17g, %.17g, at most %g allowed", name, worst, at, other,
                 allowed);
}

static const Range one = {1, 1, false};

static void test_exp(void **state) {
    (void)state;
    check(L_EXP, "exp", DT_F64, (Range){-745, 710, false}, one, 1);
    check(L_EXP, "exp", DT_F64, (Range){-1, 1, false}, one, 1);
    check(L_EXP, "exp", DT_F64, (Range){1e-300, 700, true}, one, 1);
}

static void test_log(void **state) {
    (void)state;
    check(L_LOG, "log", DT_F64, (Range){0, 3, false}, one, 1);
    check(L_LOG, "log", DT_F64, (Range){0.7, 1.5, false}, one, 1);
    check(L_LOG, "log", DT_F64, (Range){1e-320, 1e308, true}, one, 1);
}

static void test_tanh(void **state) {
    (void)state;
    check(L_TANH, "tanh", DT_F64, (Range){-1, 1, false}, one, 2);
    check(L_TANH, "tanh", DT_F64, (Range){1e-310, 40, true}, one, 2);
}

static void test_erf(void **state) {
    (void)state;
    check(L_ERF, "erf", DT_F64, (Range){-7, 7, false}, one, 2);
    check(L_ERF, "erf", DT_F64, (Range){1e-300, 10, true}, one, 2);
}

static void test_sin(void **state) {
    (void)state;
    static const struct {
        LOp op;
        const char *name;
    } both[] = {{L_SIN, "sin"}, {L_COS, "cos"}};
    for (int i = 0; i < 2; i++) {
        check(both[i].op, both[i].name, DT_F64, (Range){-8, 8, false}, one, 2);
        check(both[i].op, both[i].name, DT_F64, (Range){1e-20, 0x1p30, true}, one, 2);
        check(both[i].op, both[i].name, DT_F64, (Range){0x1p30, 0x1p62, true}, one, 2);
        check(both[i].op, both[i].name, DT_F32, (Range){-100, 100, false}, one, 0.51);
        check(both[i].op, both[i].name, DT_F32, (Range){1e-20, 0x1p62, true}, one, 0.51);
    }
}

static void test_pow(void **state) {
    (void)state;
    check(L_POW, "pow", DT_F64, (Range){1e-3, 1e3, true}, (Range){-40, 40, false}, 2);
    check(L_POW, "pow", DT_F64, (Range){0, 10, false}, (Range){-40, 40, false}, 2);
    check(L_POW, "pow", DT_F64, (Range){0.5, 2, false}, (Range){-1000, 1000, false}, 2);
    check(L_POW, "pow", DT_F32, (Range){0, 100, false}, (Range){-18, 18, false}, 0.51);
}

static void test_rem(void **state) {
    (void)state;
    check(L_REM, "rem", DT_F64, (Range){-100, 100, false}, (Range){-7, 7, false}, 0);
    check(L_REM, "rem", DT_F64, (Range){1e-300, 1e300, true}, (Range){1e-300, 1e300, true}, 0);
    check(L_REM, "rem", DT_F32, (Range){1e-30, 1e30, true}, (Range){1e-30, 1e30, true}, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp), cmocka_unit_test(test_log), cmocka_unit_test(test_tanh),
        cmocka_unit_test(test_erf), cmocka_unit_test(test_sin), cmocka_unit_test(test_pow),
        cmocka_unit_test(test_rem),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
