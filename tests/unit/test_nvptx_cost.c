/* The closed forms that `compile --cost` prints are what the PTX executes: flops and bytes counted
 * by the emulator, kernel by kernel. */
#include "lower_help.h"
#include "nvptx_help.h"

#include "codegen/cost.h"

typedef struct Counted {
    double flops, bytes;
} Counted;

/* What the calls from `first` on execute, all together, on zeros. */
static Counted count(const LoopModule *m, const StgcCudaStep *s) {
    Gpu g = gpu_new(s, m->arena_bytes);
    Counted sum = {0};
    ptx_fill(g.dev, g.arena, 0, (size_t)m->arena_bytes);
    for (uint32_t i = 0; i < s->nops; i++) {
        gpu_op(&g, &s->ops[i]);
        PtxCounts c;
        ptx_counts(g.dev, &c);
        if (s->ops[i].kind != STGC_CUDA_LAUNCH)
            continue;
        sum.flops += (double)(c.fma_flops + c.mma_flops + c.other_flops);
        sum.bytes += (double)(c.global_read + c.global_written);
    }
    gpu_free(&g);
    return sum;
}

/* more: what threads do beyond the closed form, as a part of it: sums between threads, values that
 * every thread computes for itself. */
static void check(const char *text, double more) {
    Reader *r = xcalloc(1, sizeof *r);
    read_graph(r, text);
    LoopModule *m = lower_graph(r->g, &(LowerOptions){.fused = true, .gpu = true}, &r->d);
    assert_non_null(m);
    NvptxCode *code = gpu_compile(m, "sm_80", text);
    Counted got = count(m, nvptx_step(code, 0));
    CallCost want = {0};
    for (int i = 0; i < m->calls.n; i++) {
        CallCost c = call_cost(m, i, NULL);
        want.flops += c.flops, want.moved += c.moved, want.minimum += c.minimum;
        assert_true(c.special == 0);
    }
    printf("%s: %.0f flops, %.0f expected; %.0f bytes, %.0f expected, least %.0f\n", text,
           got.flops, want.flops, got.bytes, want.moved, want.minimum);
    assert_true(got.flops >= want.flops && got.flops <= want.flops * (1 + more));
    assert_true(got.bytes >= want.minimum && got.bytes <= want.moved * (1 + more));
    assert_true(want.moved <= 1.1 * want.minimum);
    nvptx_free(code);
    loop_module_free(m);
    diag_free(&r->d);
    graph_free(r->g);
    free(r);
}

static void test_maps(void **state) {
    (void)state;
    check("x = f32[129,65]; y = f32[129,65]; z = add x y; out z", 0);
    check("x = f32[7,3]; y = f32[7,3]; a = mul x y; z = sub a x; out z", 0);
    check("x = f32[64,1000]; b = f32[1000]; z = add x b; w = mul z x; out z w", 0.35);
}

static void test_reductions(void **state) {
    (void)state;
    check("x = f32[33,4096]; s = reduce_sum x {axes=[1],keepdims=0}; out s", 0.5);
    check("x = f32[4096,64]; s = reduce_sum x {axes=[0],keepdims=0}; out s", 0.5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_maps),
        cmocka_unit_test(test_reductions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
