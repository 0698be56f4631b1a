/* token_dot as PTX, in the emulator (not a GPU), against the CPU's: gram, factored and what each
 * group chooses; odd sizes, groups without rows, more blocks than slots; the operations it does. */
#include "nvptx_gemm_help.h"

#include "runtime/runtime.h"

enum { MOST_GROUPS = 64 };

/* Where things lie in the arena. */
typedef struct Shape {
    StgcTokenDot t; /* host pointers */
    bool has_grad, turned;
    int64_t x, d, grad, offsets, dot, scratch, end; /* bytes */
} Shape;

static int64_t place(int64_t *end, int64_t bytes) {
    int64_t at = *end;
    *end += (bytes + 63) / 64 * 64;
    return at;
}

static void shape(Shape *s, const int64_t *offsets, int64_t groups, int64_t rows, int64_t in,
                  int64_t out, int mode, bool has_grad, bool turned) {
    *s = (Shape){.has_grad = has_grad, .turned = turned};
    s->t = (StgcTokenDot){.groups = groups, .rows = rows, .in = in, .out = out, .mode = mode};
    s->t.offsets = offsets;
    s->t.grad_group = in * out;
    s->t.g_in = turned ? 1 : out;
    s->t.g_out = turned ? in : 1;
    s->x = place(&s->end, rows * in * 4);
    s->d = place(&s->end, rows * out * 4);
    s->grad = has_grad ? place(&s->end, groups * in * out * 4) : -1;
    s->offsets = place(&s->end, (groups + 1) * 8);
    s->dot = place(&s->end, rows * 4);
    s->scratch = place(&s->end, stgc_token_dot_scratch(groups, rows, in, out));
}

static LoopCall call_of(const Shape *s) {
    LoopCall c = {.kind = CALL_TOKEN_DOT, .name = "dot", .dot = s->t};
    c.dot.offsets = NULL;
    c.dot_x = s->x, c.dot_d = s->d, c.dot_grad = s->grad, c.dot_offsets = s->offsets;
    c.dot_out = s->dot, c.dot_scratch = s->scratch;
    return c;
}

/* G of every group, as the caller would have it. */
static float *gradients(const StgcTokenDot *t) {
    float *grad = calloc((size_t)(t->groups * t->in * t->out) + 1, sizeof *grad);
    double *sum = calloc((size_t)(t->in * t->out), sizeof *sum);
    for (int64_t e = 0; e < t->groups; e++) {
        memset(sum, 0, (size_t)(t->in * t->out) * sizeof *sum);
        for (int64_t r = t->offsets[e]; r < t->offsets[e + 1]; r++)
            for (int64_t i = 0; i < t->in; i++)
                for (int64_t o = 0; o < t->out; o++)
                    sum[i * t->out + o] += (double)t->x[r * t->in + i] * t->d[r * t->out + o];
        for (int64_t i = 0; i < t->in; i++)
            for (int64_t o = 0; o < t->out; o++)
                grad[e * t->grad_group + i * t->g_in + o * t->g_out] = (float)sum[i * t->out + o];
    }
    free(sum);
    return grad;
}

static float *on_cpu(const StgcTokenDot *of) {
    StgcTokenDot t = *of;
    StgcRt *rt = stgc_rt_new(1);
    t.dot = calloc((size_t)t.rows + 1, sizeof *t.dot);
    t.scratch = malloc((size_t)stgc_token_dot_scratch(t.groups, t.rows, t.in, t.out) + 8);
    rt->token_dot(rt, &t);
    free(t.scratch);
    stgc_rt_free(rt);
    return t.dot;
}

/* |x_r||d_r| sqrt(mean of |x_s|^2|d_s|^2): what bounds |dot_r|, and its terms' cancellation. */
static double scale_of(const StgcTokenDot *t, int64_t group, int64_t row) {
    double mine = 0, all = 0;
    int64_t count = t->offsets[group + 1] - t->offsets[group];
    for (int64_t r = t->offsets[group]; r < t->offsets[group + 1]; r++) {
        double xx = 0, dd = 0;
        for (int64_t i = 0; i < t->in; i++)
            xx += (double)t->x[r * t->in + i] * t->x[r * t->in + i];
        for (int64_t o = 0; o < t->out; o++)
            dd += (double)t->d[r * t->out + o] * t->d[r * t->out + o];
        all += xx * dd;
        mine = r == row ? xx * dd : mine;
    }
    return sqrt(mine * all / (double)count);
}

static double worst;

static void compare(const StgcTokenDot *t, const float *got, const float *want) {
    for (int64_t e = 0; e < t->groups; e++)
        for (int64_t r = t->offsets[e]; r < t->offsets[e + 1]; r++) {
            double error = fabs((double)got[r] - want[r]) / scale_of(t, e, r);
            worst = error > worst ? error : worst;
            if (!(error <= 1e-6))
                fail_msg("row %ld of group %ld: %.9g, the CPU has %.9g", (long)r, (long)e, got[r],
                         want[r]);
        }
    for (int64_t r = t->offsets[t->groups]; r < t->rows; r++)
        assert_true(got[r] == 0);
}

/* On the device and the CPU. Returns the operations done. */
static uint64_t run(Shape *s, uint64_t seed) {
    StgcTokenDot *t = &s->t;
    NvptxTarget target = target_of("sm_80");
    LoopModule m = {.arena_bytes = s->end};
    LoopCall c = call_of(s);
    vec_push(&m.calls, c);
    device_options(seed);
    Compiled code = compile_calls(&m, &target);
    load_compiled(&code);
    float *x = random_floats(t->rows * t->in), *d = random_floats(t->rows * t->out), *grad = NULL;
    t->x = x, t->d = d;
    if (s->has_grad)
        t->grad = grad = gradients(t);
    uint64_t arena = upload(NULL, s->end), flops = 0;
    assert_true(ptx_write(device, arena + (uint64_t)s->x, x, (size_t)(t->rows * t->in * 4)));
    assert_true(ptx_write(device, arena + (uint64_t)s->d, d, (size_t)(t->rows * t->out * 4)));
    assert_true(
        ptx_write(device, arena + (uint64_t)s->offsets, t->offsets, (size_t)(t->groups + 1) * 8));
    if (grad)
        assert_true(ptx_write(device, arena + (uint64_t)s->grad, grad,
                              (size_t)(t->groups * t->in * t->out * 4)));
    run_schedule(&code, arena, &flops);
    float *got = calloc((size_t)t->rows + 1, sizeof *got), *want = on_cpu(t);
    download(got, arena + (uint64_t)s->dot, t->rows * 4);
    compare(t, got, want);
    ptx_free(device, arena);
    free_compiled(&code);
    vec_free(&m.calls);
    free(x);
    free(d);
    free(grad);
    free(got);
    free(want);
    return flops;
}

static const int64_t some[] = {0, 1, 1, 66, 195}, one[] = {0, 1}, seven[] = {0, 7};

/* All forms: G at hand, either way round, or not; each mode. One group of a row, one empty, one of
 * two blocks, one of three; rows behind the last. */
static void forms(void **state) {
    for (int mode = 0; mode < 3; mode++)
        for (int form = 0; form < 3; form++) {
            Shape s;
            shape(&s, some, 4, 200, 20, 33, mode, form > 0, form > 1);
            run(&s, (uint64_t)(mode + form));
            shape(&s, some, 4, 195, 36, 68, mode, form > 0, form > 1);
            run(&s, (uint64_t)(mode + form + 1));
        }
}

/* The smallest, and many groups, most of them empty. */
static void small(void **state) {
    int64_t last[MOST_GROUPS + 1] = {0}, every[MOST_GROUPS + 1];
    last[MOST_GROUPS] = 1;
    for (int64_t e = 0; e <= MOST_GROUPS; e++)
        every[e] = e * 129 / MOST_GROUPS;
    Shape s;
    shape(&s, one, 1, 1, 1, 1, 0, true, false);
    run(&s, 0);
    shape(&s, seven, 1, 7, 3, 5, 0, false, false);
    run(&s, 1);
    shape(&s, last, MOST_GROUPS, 2, 9, 4, 0, true, true);
    run(&s, 2);
    shape(&s, every, MOST_GROUPS, 129, 12, 9, 0, true, true);
    run(&s, 3);
}

/* Groups on both sides of the limit, a few dozen rows for in = out = 96 with G at hand; only the
 * device counts them. */
static void choice(void **state) {
    static const int64_t offsets[] = {0, 9, 89, 189};
    Shape s;
    shape(&s, offsets, 3, 189, 96, 96, 0, true, true);
    uint64_t flops = run(&s, 0);
    /* a gram tile of 64 x 64, summed both ways by 256 threads (the first term of a sum is a
     * product); factored: twice 2 row tiles by 2 column tiles, then the rows that exist times d */
    const uint64_t tile = 2 * 64 * 64, sums = 2 * 256 * 2 * 4 * 3;
    assert_int_equal(flops, tile * (96 + 96) + sums + tile * 96 * 2 * (2 + 2) + 2 * 180 * 96);
}

/* Nothing of a matrix is symmetric by chance: more blocks than slots, and large tiles. */
static void many_blocks(void **state) {
    static const int64_t long_[] = {0, 0, 0, 1100, 1101, 1101, 1101, 1101}, large[] = {0, 260, 520};
    Shape s;
    shape(&s, long_, 7, 1200, 5, 3, 1, false, false); /* 18 small blocks, 16 slots */
    run(&s, 0);
    shape(&s, large, 2, 520, 12, 20, 1, false, false);
    run(&s, 1);
    shape(&s, large, 2, 520, 12, 140, 2, true, true);
    run(&s, 2);
    shape(&s, large, 2, 520, 12, 140, 2, false, false);
    run(&s, 3);
}

/* Nothing to multiply: zeros. */
static void nothing(void **state) {
    Shape s;
    shape(&s, seven, 1, 7, 0, 5, 0, false, false);
    NvptxTarget target = target_of("sm_80");
    LoopModule m = {.arena_bytes = s.end};
    LoopCall c = call_of(&s);
    vec_push(&m.calls, c);
    Compiled code = compile_calls(&m, &target);
    assert_int_equal(code.step->nops, 1);
    assert_int_equal(code.step->ops[0].kind, STGC_CUDA_CLEAR);
    assert_int_equal(code.step->ops[0].bytes, 7 * 4);
    free_compiled(&code);
    vec_free(&m.calls);
}

/* Layers of Mixtral, OLMoE and MoE-LLaVA, with and without G: no spills on any target. */
static void release_sizes(void **state) {
    static const struct {
        int64_t groups, rows, d, f;
    } layers[] = {{8, 8192, 4096, 14336}, {64, 32768, 2048, 1024}, {4, 4096, 2048, 5632}};
    int64_t offsets[MOST_GROUPS + 1] = {0};
    LoopModule m = {0};
    NvptxTarget target = target_of("sm_80");
    for (int i = 0; i < COUNT_OF(layers); i++)
        for (int form = 0; form < 4; form++) {
            Shape s;
            shape(&s, offsets, layers[i].groups, layers[i].rows, layers[i].d, layers[i].f, 0,
                  form > 0, form > 1);
            if (form == 3) /* so few rows that tiles are small */
                s.t.rows = 64 * layers[i].groups;
            LoopCall c = call_of(&s);
            vec_push(&m.calls, c);
        }
    Compiled code = compile_calls(&m, &target);
    check_ptxas(code.step->ptx, 1);
    device_options(0);
    load_compiled(&code);
    free_compiled(&code);
    vec_free(&m.calls);
}

static int report(void **state) {
    print_message("largest difference from the CPU, by |g||G|: %.2g\n", worst);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forms),       cmocka_unit_test(small),   cmocka_unit_test(choice),
        cmocka_unit_test(many_blocks), cmocka_unit_test(nothing), cmocka_unit_test(release_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, report);
}
