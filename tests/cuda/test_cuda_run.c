/* Steps on a device: the same bits as on the CPU, whatever the order of work; nothing travels that
 * did not change; runs that share their parameters; faults of data. */
#include "tests/cuda/cuda_test.h"

#include <math.h>

#include "runtime/bench.h"

/* Steps of both, the first launched by hand, the next ones as a graph. */
static void steps_agree(const char *words, bool no_graph) {
    StgcCudaOptions o = test_options();
    StgcStatus status;
    char error[1024];
    o.no_graph = no_graph;
    setenv("STGC_PTX_EMULATOR", words, 1);
    StgcRt *device = stgc_rt_new_cuda(&o, &status, error, sizeof error), *cpu = stgc_rt_new(1);
    assert_non_null(device);
    StgcRun *got = stgc_run_new(device, mini_step(MINI_TRAIN, true)),
            *want = stgc_run_new(cpu, mini_step(MINI_TRAIN, false));
    assert_string_equal(stgc_run_error(got), "");
    assert_int_equal(stgc_run_status(got), STGC_OK);
    test_same(got, want, mini_step(MINI_TRAIN, false)); /* before any step */
    for (int n = 0; n < 4; n++) {
        if (n != 2) { /* once the input stays as it was */
            test_input(got, n);
            test_input(want, n);
        }
        assert_int_equal(stgc_run_step(got), STGC_OK);
        assert_int_equal(stgc_run_step(want), STGC_OK);
        if (n != 1) /* once nobody looks */
            test_same(got, want, mini_step(MINI_TRAIN, false));
    }
    stgc_run_free(got);
    stgc_run_free(want);
    stgc_rt_free(device);
    stgc_rt_free(cpu);
    test_clean();
}

static void same_bits_as_the_cpu(void **state) {
    steps_agree("", false);
    steps_agree("", true);
}

static void in_any_order(void **state) {
    static const char *const words[] = {"seed=1",         "seed=2",         "seed=3,gemm=f32",
                                        "seed=4,sm=80",   "seed=5,sm=120",  "no-capture",
                                        "no-instantiate", "no-proc-address"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        steps_agree(words[i], false);
}

static void graphs_are_used(void **state) {
    StgcRt *rt = test_device("");
    StgcRun *r = stgc_run_new(rt, mini_step(MINI_TRAIN, true));
    int64_t before = test_counts().graph_launches;
    for (int n = 0; n < 3; n++)
        assert_int_equal(stgc_run_step(r), STGC_OK);
    assert_int_equal(test_counts().graph_launches, before + 2);
    stgc_run_free(r);
    stgc_rt_free(rt);
    test_clean();
}

/* ---- what travels ---- */

static StandinCounts mark;

static void travelled(int64_t up, int64_t down) {
    StandinCounts now = test_counts();
    if (now.uploaded - mark.uploaded != up || now.downloaded - mark.downloaded != down)
        fprintf(stderr, "up %lld of %lld, down %lld of %lld\n",
                (long long)(now.uploaded - mark.uploaded), (long long)up,
                (long long)(now.downloaded - mark.downloaded), (long long)down);
    assert_int_equal(now.uploaded - mark.uploaded, up);
    assert_int_equal(now.downloaded - mark.downloaded, down);
    mark = now;
}

static void only_what_changed_travels(void **state) {
    enum { FAULT = sizeof(StgcCudaFault), W = 4 * MINI_W, X = 4 * MINI_X, CONSTANTS = 80, K = 16 };
    StgcRt *rt = test_device("");
    mark = test_counts();
    StgcRun *r = stgc_run_new(rt, mini_step(MINI_TRAIN, true));
    const StgcSlot *w = test_slot(r, "w"), *x = test_slot(r, "x"), *k = test_slot(r, "k");
    stgc_run_read(r, w); /* its initial bytes: nothing travels for them */
    test_input(r, 1);
    assert_int_equal(stgc_run_step(r), STGC_OK);
    travelled(CONSTANTS + W + K + X, FAULT); /* the state is zeros, made there */
    assert_int_equal(stgc_run_step(r), STGC_OK);
    travelled(0, FAULT);
    stgc_run_read(r, test_slot(r, "loss/total"));
    stgc_run_read(r, test_slot(r, "same")); /* the input, seen as an output */
    stgc_run_read(r, k);
    travelled(0, 4);
    stgc_run_read(r, w);
    stgc_run_read(r, w);
    travelled(0, W);
    assert_int_equal(stgc_run_step(r), STGC_OK);
    travelled(0, FAULT);
    ((float *)stgc_run_data(r, w))[0] = 7; /* fetched, changed, sent back */
    assert_int_equal(stgc_run_step(r), STGC_OK);
    travelled(W, W + FAULT);
    float *kept = stgc_run_expose(r, x);
    for (int n = 0; n < 2; n++) {
        kept[0] = (float)n;
        assert_int_equal(stgc_run_step(r), STGC_OK);
        travelled(X, FAULT);
        assert_true(*(const float *)stgc_run_read(r, test_slot(r, "y")) != 0);
        travelled(0, 4 * MINI_X);
    }
    stgc_run_free(r);
    stgc_rt_free(rt);
    test_clean();
}

/* More than both halves of the pinned memory, and a rest. */
static void large_values_arrive(void **state) {
    enum { COUNT = (9 << 20) / 4 + 3 };
    const StgcSlot slots[] = {{"big", STGC_SLOT_PARAM, STGC_F32, 1, {COUNT}, 0, 4 * COUNT, NULL}};
    const StgcCudaStep none = {.ptx = mini_step(MINI_APPLY, true)->cuda->ptx, .target = 80};
    const StgcStep step = {.version = STGC_STEP_VERSION,
                           .nslots = 1,
                           .slots = slots,
                           .persistent_bytes = (int64_t)10 << 20,
                           .arena_bytes = (int64_t)10 << 20,
                           .cuda = &none};
    StgcRt *rt = test_device("seed=9");
    StgcRun *r = stgc_run_new(rt, &step);
    for (int n = 0; n < 2; n++) {
        float *big = stgc_run_data(r, &slots[0]);
        for (int64_t i = 0; i < COUNT; i++)
            big[i] = (float)(i + n);
        assert_int_equal(stgc_run_step(r), STGC_OK);
        memset(big, 0, 4 * COUNT); /* only the device has it now: nobody was told of this */
        const float *back = stgc_run_read(r, &slots[0]);
        for (int64_t i = 0; i < COUNT; i++)
            if (back[i] != (float)(i + n))
                fail_msg("element %lld is %g", (long long)i, (double)back[i]);
    }
    stgc_run_free(r);
    stgc_rt_free(rt);
    test_clean();
}

/* ---- single operations ---- */

enum { ROOM = 4096 }; /* elements of each operand's slot */
static const StgcSlot product_slots[] = {
    {"a", STGC_SLOT_INPUT, STGC_F32, 1, {ROOM}, 0, 4 * ROOM, NULL},
    {"b", STGC_SLOT_INPUT, STGC_F32, 1, {ROOM}, 4 * ROOM, 4 * ROOM, NULL},
    {"c", STGC_SLOT_STATE, STGC_F32, 1, {ROOM}, 8 * ROOM, 4 * ROOM, NULL},
};

static float element(const void *at, int64_t i, bool bf16) {
    if (!bf16)
        return ((const float *)at)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)at)[i] << 16;
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* Small integers; in bf16 they are the upper halves of their floats. */
static void fill(void *at, bool bf16, int seed) {
    for (int i = 0; i < ROOM; i++) {
        float v = (float)((i * 7 + seed) % 5 - 2);
        uint32_t bits;
        memcpy(&bits, &v, sizeof bits);
        if (bf16)
            ((uint16_t *)at)[i % ROOM] = (uint16_t)(bits >> 16);
        else
            ((float *)at)[i] = v;
    }
}

static void product(StgcRt *rt, StgcCudaGemm g) {
    g.a = 0, g.b = 4 * ROOM, g.c = 8 * ROOM;
    const StgcCudaOp op = {.kind = STGC_CUDA_GEMM, .gemm = &g, .name = "product"};
    StgcCudaStep cuda = *mini_step(MINI_APPLY, true)->cuda;
    cuda.ops = &op, cuda.nops = 1;
    const StgcStep step = {.version = STGC_STEP_VERSION,
                           .nslots = 3,
                           .slots = product_slots,
                           .persistent_bytes = 12 * ROOM,
                           .arena_bytes = 12 * ROOM,
                           .cuda = &cuda};
    static float want[ROOM];
    bool bf16 = g.compute == 2;
    StgcRun *r = stgc_run_new(rt, &step);
    assert_string_equal(stgc_run_error(r), "");
    void *a = stgc_run_data(r, &product_slots[0]), *b = stgc_run_data(r, &product_slots[1]);
    fill(a, bf16, 1);
    fill(b, bf16, 2);
    fill(stgc_run_data(r, &product_slots[2]), false, 3);
    fill(want, false, 3);
    for (int64_t x = 0; x < g.batches; x++)
        for (int64_t i = 0; i < g.m; i++)
            for (int64_t j = 0; j < g.n; j++) {
                float sum = g.accumulate ? want[x * g.c_batch + i * g.ldc + j] : 0;
                for (int64_t l = 0; l < g.k; l++)
                    sum += element(a, x * g.a_batch + i * g.a_row + l * g.a_col, bf16) *
                           element(b, x * g.b_batch + l * g.b_row + j * g.b_col, bf16);
                want[x * g.c_batch + i * g.ldc + j] = sum;
            }
    assert_int_equal(stgc_run_step(r), STGC_OK);
    assert_memory_equal(stgc_run_read(r, &product_slots[2]), want, sizeof want);
    stgc_run_free(r);
}

/* Every way an operand can lie in memory, edges included; what lies between rows stays. */
static void products(void **state) {
    static const int64_t sizes[][4] = {/* m n k batches */
                                       {5, 7, 11, 3}, {1, 7, 11, 2},  {5, 1, 11, 2},
                                       {5, 7, 1, 2},  {1, 1, 1, 1},   {5, 7, 0, 2},
                                       {0, 7, 3, 1},  {16, 16, 16, 1}};
    StgcRt *rt = test_device("seed=1");
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int way = 0; way < 32; way++) {
            int64_t m = sizes[s][0], n = sizes[s][1], k = sizes[s][2], wide = way & 8 ? 3 : 0;
            StgcCudaGemm g = {.m = m, .n = n, .k = k, .batches = sizes[s][3]};
            g.a_row = way & 1 ? 1 : k + wide;
            g.a_col = way & 1 ? m + wide : 1;
            g.b_row = way & 2 ? 1 : n + wide;
            g.b_col = way & 2 ? k + wide : 1;
            g.a_batch = (way & 1 ? k * (m + wide) : m * (k + wide)) + wide;
            g.b_batch = way & 16 ? 0 : (way & 2 ? n * (k + wide) : k * (n + wide)); /* 0: one B */
            g.ldc = n + wide;
            g.c_batch = m * g.ldc + wide;
            g.accumulate = (way & 4) != 0;
            g.compute = (int32_t)((s + (size_t)way) % 3);
            product(rt, g);
        }
    stgc_rt_free(rt);
    test_clean();
}

/* f32 is f32: TF32 would drop what is asked for here. */
static void products_are_exact(void **state) {
    const float fine = 1 + 0x1p-20f;
    for (int tf32 = 0; tf32 < 2; tf32++) {
        StgcCudaGemm g = {.m = 1,
                          .n = 1,
                          .k = 1,
                          .batches = 1,
                          .a_row = 1,
                          .a_col = 1,
                          .b_row = 1,
                          .b_col = 1,
                          .ldc = 1,
                          .compute = tf32};
        g.b = 4 * ROOM, g.c = 8 * ROOM;
        const StgcCudaOp op = {.kind = STGC_CUDA_GEMM, .gemm = &g, .name = "product"};
        StgcCudaStep cuda = *mini_step(MINI_APPLY, true)->cuda;
        cuda.ops = &op, cuda.nops = 1;
        const StgcStep step = {.version = STGC_STEP_VERSION,
                               .nslots = 3,
                               .slots = product_slots,
                               .persistent_bytes = 12 * ROOM,
                               .arena_bytes = 12 * ROOM,
                               .cuda = &cuda};
        StgcRt *rt = test_device("");
        StgcRun *r = stgc_run_new(rt, &step);
        *(float *)stgc_run_data(r, &product_slots[0]) = fine;
        *(float *)stgc_run_data(r, &product_slots[1]) = 3;
        assert_int_equal(stgc_run_step(r), STGC_OK);
        float got = *(const float *)stgc_run_read(r, &product_slots[2]);
        if (tf32)
            assert_true(fabsf(got - 3) <= 3 * 0x1p-10f);
        else
            assert_true(got == fine * 3);
        stgc_run_free(r);
        stgc_rt_free(rt);
    }
    test_clean();
}

/* More shared memory than a kernel has without asking. */
static void much_shared_memory(void **state) {
    StgcStep step = *mini_step(MINI_TRAIN, true);
    StgcCudaStep cuda = *step.cuda;
    StgcCudaKernel kernels[4];
    memcpy(kernels, cuda.kernels, sizeof kernels);
    kernels[1].shared_dynamic = 60 << 10;
    cuda.kernels = kernels;
    step.cuda = &cuda;
    StgcRt *device = test_device(""), *cpu = stgc_rt_new(1);
    StgcRun *got = stgc_run_new(device, &step),
            *want = stgc_run_new(cpu, mini_step(MINI_TRAIN, false));
    assert_int_equal(stgc_run_step(got), STGC_OK);
    assert_int_equal(stgc_run_step(want), STGC_OK);
    test_same(got, want, mini_step(MINI_TRAIN, false));
    stgc_run_free(got);
    stgc_run_free(want);
    stgc_rt_free(device);
    stgc_rt_free(cpu);
    test_clean();
}

/* A step made to be measured says which call comes, once the one before is done. */
typedef struct Seen {
    int64_t calls[8], launches[8];
    int n;
} Seen;

static void on_call(void *ctx, int64_t call) {
    Seen *s = ctx;
    s->launches[s->n] = test_counts().launches;
    s->calls[s->n++] = call;
}

static void marks_are_told(void **state) {
    StgcStep step = *mini_step(MINI_TRAIN, true);
    StgcCudaStep cuda = *step.cuda;
    StgcCudaOp ops[8];
    Seen seen = {0};
    for (int i = 0; i < 3; i++) {
        ops[2 * i] = (StgcCudaOp){.kind = STGC_CUDA_MARK, .mark = i};
        ops[2 * i + 1] = cuda.ops[2]; /* blend */
    }
    ops[6] = (StgcCudaOp){.kind = STGC_CUDA_MARK, .mark = 3};
    cuda.ops = ops, cuda.nops = 7;
    step.cuda = &cuda;
    StgcRt *rt = test_device("");
    StgcRun *r = stgc_run_new(rt, &step);
    int64_t before = test_counts().launches;
    stgc_bench_watch(rt, on_call, &seen);
    for (int round = 0; round < 2; round++) {
        seen.n = 0;
        assert_int_equal(stgc_run_step(r), STGC_OK);
        assert_int_equal(seen.n, 4);
        for (int i = 0; i < 4; i++) {
            assert_int_equal(seen.calls[i], i);
            assert_int_equal(seen.launches[i], before + 3 * round + i);
        }
    }
    stgc_run_free(r);
    stgc_rt_free(rt);
    test_clean();
}

/* ---- runs that share ---- */

static void sharing(MiniKind second) {
    StgcRt *device = test_device("seed=1"), *cpu = stgc_rt_new(1);
    StgcRun *got = stgc_run_new(device, mini_step(MINI_TRAIN, true)),
            *want = stgc_run_new(cpu, mini_step(MINI_TRAIN, false)),
            *got2 = stgc_run_new_shared(device, mini_step(second, true), got),
            *want2 = stgc_run_new_shared(cpu, mini_step(second, false), want);
    assert_int_equal(stgc_run_status(got2), STGC_OK);
    for (int n = 0; n < 3; n++) {
        test_input(got, n);
        test_input(want, n);
        assert_int_equal(stgc_run_step(got), STGC_OK);
        assert_int_equal(stgc_run_step(want), STGC_OK);
        if (n == 1)
            test_same(got, want, mini_step(MINI_TRAIN, false));
        assert_int_equal(stgc_run_step(got2), STGC_OK);
        assert_int_equal(stgc_run_step(want2), STGC_OK);
        test_same(got2, want2, mini_step(MINI_APPLY, false));
        if (n == 2)
            test_same(got, want, mini_step(MINI_APPLY, false)); /* w and its state, seen here */
    }
    ((float *)stgc_run_data(got2, test_slot(got2, "w")))[3] = 77; /* written by one, seen by both */
    assert_true(((const float *)stgc_run_read(got, test_slot(got, "w")))[3] == 77);
    stgc_run_free(got);
    assert_true(((const float *)stgc_run_read(got2, test_slot(got2, "w")))[3] == 77);
    stgc_run_free(got2);
    stgc_run_free(want2);
    stgc_run_free(want);
    stgc_rt_free(device);
    stgc_rt_free(cpu);
    test_clean();
}

static void shared_alike(void **state) {
    sharing(MINI_APPLY);
}

static void shared_differently(void **state) {
    sharing(MINI_SWAPPED);
}

/* A larger run joins: the values move with the arena, and the graph of the first is made anew. */
static void an_arena_grows(void **state) {
    StgcRt *device = test_device(""), *cpu = stgc_rt_new(1);
    StgcRun *got = stgc_run_new(device, mini_step(MINI_TRAIN, true)),
            *want = stgc_run_new(cpu, mini_step(MINI_TRAIN, false)), *larger = NULL;
    for (int n = 0; n < 5; n++) {
        if (n == 3) {
            larger = stgc_run_new_shared(device, mini_step(MINI_GRADIENTS, true), got);
            assert_int_equal(stgc_run_status(larger), STGC_OK);
            assert_int_equal(stgc_run_step(larger), STGC_OK);
            stgc_run_claim(got); /* it changed nothing */
        }
        test_input(got, n);
        test_input(want, n);
        assert_int_equal(stgc_run_step(got), STGC_OK);
        assert_int_equal(stgc_run_step(want), STGC_OK);
    }
    test_same(got, want, mini_step(MINI_TRAIN, false));
    stgc_run_free(larger);
    test_same(got, want, mini_step(MINI_TRAIN, false));
    stgc_run_free(got);
    stgc_run_free(want);
    stgc_rt_free(device);
    stgc_rt_free(cpu);
    test_clean();
}

/* What a step is known not to have changed need not come back. */
static void claimed_values_stay(void **state) {
    StgcRt *rt = test_device("");
    StgcRun *r = stgc_run_new(rt, mini_step(MINI_TRAIN, true)),
            *g = stgc_run_new_shared(rt, mini_step(MINI_GRADIENTS, true), r);
    const StgcSlot *w = test_slot(r, "w");
    assert_int_equal(stgc_run_step(r), STGC_OK);
    float first = *(const float *)stgc_run_read(r, w);
    assert_int_equal(stgc_run_step(g), STGC_OK);
    stgc_run_claim(r);
    mark = test_counts();
    assert_true(*(const float *)stgc_run_read(r, w) == first);
    travelled(0, 0);
    assert_int_equal(stgc_run_step(r), STGC_OK); /* this one did change it */
    stgc_run_claim(r);
    assert_true(*(const float *)stgc_run_read(r, w) != first);
    stgc_run_free(g);
    stgc_run_free(r);
    stgc_rt_free(rt);
    test_clean();
}

/* ---- faults of data, steps that do not fit ---- */

static void faults(void **state) {
    StgcRt *rt = test_device("seed=3");
    StgcRun *r = stgc_run_new(rt, mini_step(MINI_TRAIN, true));
    for (int n = 0; n < 3; n++) {
        test_input(r, 0);
        ((float *)stgc_run_data(r, test_slot(r, "x")))[301] = -5;
        ((float *)stgc_run_data(r, test_slot(r, "x")))[42] = -9;
        assert_int_equal(stgc_run_step(r), STGC_ERR_DATA);
        assert_string_equal(stgc_run_error(r),
                            "batch: error: value out of range at position 42, found -9");
        test_input(r, 0);
        assert_int_equal(stgc_run_step(r), STGC_OK);
        assert_string_equal(stgc_run_error(r), "");
    }
    stgc_run_free(r);
    stgc_rt_free(rt);
    test_clean();
}

static void steps_for_another_machine(void **state) {
    StgcRt *device = test_device(""), *cpu = stgc_rt_new(1);
    StgcRun *a = stgc_run_new(device, mini_step(MINI_TRAIN, false)),
            *b = stgc_run_new(cpu, mini_step(MINI_TRAIN, true));
    assert_int_equal(stgc_run_status(a), STGC_ERR_USAGE);
    assert_int_equal(stgc_run_step(a), STGC_ERR_USAGE);
    assert_non_null(strstr(stgc_run_error(a), "for a CPU"));
    assert_int_equal(stgc_run_step(b), STGC_ERR_USAGE);
    assert_non_null(strstr(stgc_run_error(b), "for a GPU (sm_80)"));
    stgc_run_free(a);
    stgc_run_free(b);
    stgc_rt_free(device);
    stgc_rt_free(cpu);
    test_clean();
}

static void describes_itself(void **state) {
    StgcRt *rt = test_device("sm=86,driver=12080");
    StgcRun *r = stgc_run_new(rt, mini_step(MINI_TRAIN, true));
    assert_string_equal(stgc_rt_describe(rt),
                        "GPU 0, PTX emulator (not a GPU), compute capability 8.6, driver for CUDA "
                        "12.8, cuBLAS 13.0.0");
    assert_int_equal(stgc_rt_capability(rt), 86);
    assert_int_equal(stgc_run_peak_bytes(r), mini_step(MINI_TRAIN, true)->arena_bytes);
    stgc_run_free(r);
    stgc_rt_free(rt);
    test_clean();
}

int main(int argc, char **argv) {
    const struct CMUnitTest everywhere[] = {
        cmocka_unit_test(same_bits_as_the_cpu),
        cmocka_unit_test(shared_alike),
        cmocka_unit_test(shared_differently),
        cmocka_unit_test(an_arena_grows),
        cmocka_unit_test(products),
        cmocka_unit_test(products_are_exact),
        cmocka_unit_test(much_shared_memory),
        cmocka_unit_test(large_values_arrive),
        cmocka_unit_test(faults),
        cmocka_unit_test(steps_for_another_machine),
    };
    const struct CMUnitTest emulated[] = {
        cmocka_unit_test(in_any_order),        cmocka_unit_test(graphs_are_used),
        cmocka_unit_test(marks_are_told),      cmocka_unit_test(only_what_changed_travels),
        cmocka_unit_test(claimed_values_stay), cmocka_unit_test(describes_itself),
    };
    if (!test_find_gpu(argc, argv))
        return EXIT_SKIPPED;
    int failed = cmocka_run_group_tests(everywhere, NULL, NULL);
    return on_gpu ? failed : failed + cmocka_run_group_tests(emulated, NULL, NULL);
}
