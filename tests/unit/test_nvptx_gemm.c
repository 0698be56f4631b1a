/* Matrix products as PTX, in the emulator: all kinds, layouts, sizes of tiles and precisions
 * against a plain loop; f32 to the last bit. Odd sizes, groups without rows, gathers with holes,
 * with checks for races, bounds and uninitialised memory on. */
#include "nvptx_product.h"

/* ---- modules of many kernels ---- */

typedef struct Kernels {
    LLVMTargetMachineRef machine;
    LlvmIr *x;
    PtxModule *module;
    char *ptx;
} Kernels;

static void kernels_begin(Kernels *k) {
    NvptxTarget t = target_of("sm_80");
    k->machine = nvptx_target_machine(&t);
    k->x = nvptx_ir_new(k->machine);
}

static void kernels_add(Kernels *k, const GemmForm *f) {
    char name[256];
    StgcCudaKernel made;
    gemm_kernel_name(name, sizeof name, f, NULL);
    if (!LLVMGetNamedFunction(k->x->m, name))
        gemm_kernel(NULL, k->x, f, name, &made);
}

static void kernels_load(Kernels *k) {
    nvptx_optimise(k->machine, k->x->m);
    LLVMMemoryBufferRef out = nvptx_emit(k->machine, k->x->m);
    size_t n = LLVMGetBufferSize(out);
    k->ptx = calloc(n + 1, 1);
    memcpy(k->ptx, LLVMGetBufferStart(out), n);
    LLVMDisposeMemoryBuffer(out);
    k->module = ptx_load(device, k->ptx, n);
    if (!k->module)
        fail_msg("%s", ptx_error(device));
}

static void kernels_end(Kernels *k) {
    ptx_unload(k->module);
    free(k->ptx);
    llvm_ir_free(k->x);
    LLVMDisposeTargetMachine(k->machine);
}

/* ---- dense products ---- */

static void each_dense(void (*fn)(Kernels *k, Product *p), Kernels *kernels) {
    static const int sizes[][3] = {{1, 1, 1}, {7, 5, 3},    {65, 63, 17}, {64, 64, 16},
                                   {5, 5, 0}, {129, 7, 33}, {3, 130, 9},  {600, 70, 8}};
    for (int s = 0; s < COUNT_OF(sizes); s++)
        for (int form = 0; form < 16; form++)
            for (int kind = 0; kind < 8; kind++) {
                Layout l = {form & 1, form & 2, form & 4, form & 8};
                GemmPrecision precision = (GemmPrecision)(kind / 2);
                /* the other precisions: two sizes, nothing to add to */
                if (precision != GEMM_F32 && (s != 2 + kind % 2 * 3 || l.accumulate))
                    continue;
                if (s > 2 && form % 8 != s) /* each size in two layouts, the odd ones in all */
                    continue;
                Product p = dense(sizes[s][0], sizes[s][1], sizes[s][2], l, form & 1 ? 3 : 0,
                                  gemm_tiling(precision, kind % 2));
                fn(kernels, &p);
            }
}

static void add_dense(Kernels *k, Product *p) {
    kernels_add(k, &p->f);
}

static void run_dense(Kernels *k, Product *p) {
    static uint64_t turn;
    device_options(turn++ % 4);
    fill(p);
    run_product(p, k->module);
    free_product(p);
}

static void dense_products(void **state) {
    Kernels k = {0};
    device_options(0);
    kernels_begin(&k);
    each_dense(add_dense, &k);
    kernels_load(&k);
    each_dense(run_dense, &k);
    kernels_end(&k);
}

/* ---- products by group ---- */

static void each_grouped(void (*fn)(Kernels *k, Product *p), Kernels *kernels) {
    Routing r[8];
    int n = routings(r);
    for (int i = 0; i < n; i++)
        for (int form = 0; form < 16; form++)
            for (int kind = 0; kind < 8; kind++) {
                Layout l = {form & 1, form & 2, form & 4, form & 8};
                GemmPrecision precision = (GemmPrecision)(kind / 2);
                if (precision != GEMM_F32 && (i > 0 || l.accumulate || (l.at && kind % 2)))
                    continue;
                if (i > 0 && form != (i * 7 + kind * 3) % 16)
                    continue;
                bool gather = (form + i) % 2, table = (form / 2 + i) % 2;
                const GemmTiling *t = gemm_tiling(precision, kind % 2);
                int64_t *index = NULL;
                Product p = by_rows(&r[i], i % 2 ? 33 : 71, 18, l, gather, table, t, &index);
                fn(kernels, &p);
                free(index);
                p = by_depth(&r[i], 19, 70, l, t);
                fn(kernels, &p);
            }
}

static void add_grouped(Kernels *k, Product *p) {
    kernels_add(k, &p->f);
    free_product(p);
}

static void grouped_products(void **state) {
    Kernels k = {0};
    device_options(0);
    kernels_begin(&k);
    each_grouped(add_grouped, &k);
    kernels_load(&k);
    each_grouped(run_dense, &k);
    kernels_end(&k);
}

/* ---- what kernels cost ---- */

/* A call of a layer's shape with all operands in one arena. */
static void add_layer_call(LoopModule *m, StgcGemmKind kind, int64_t groups, int64_t rows,
                           int64_t n, int64_t k, bool bt) {
    LoopCall c = {.kind = CALL_GEMM, .name = "layer", .gemm_index = -1};
    int64_t down = kind == STGC_GEMM_K ? k : rows;
    c.gemm = (StgcGemm){.kind = kind, .g1 = groups, .g2 = 1, .m = down, .n = n};
    c.gemm.k = kind == STGC_GEMM_K ? rows : k;
    c.gemm.a_row = kind == STGC_GEMM_K ? 1 : k;
    c.gemm.a_col = kind == STGC_GEMM_K ? k : 1;
    c.gemm.b_row = bt ? 1 : n;
    c.gemm.b_col = bt ? k : 1;
    c.gemm.b_g1 = kind == STGC_GEMM_ROWS ? n * k : 0;
    c.gemm.c_g1 = kind == STGC_GEMM_K ? n * k : 0;
    c.gemm.ldc = n;
    vec_push(&m->calls, c);
}

/* Layers of Mixtral, OLMoE and MoE-LLaVA: up, down, their backward, weight gradients. All kernels
 * assemble without spills for every target. */
static void release_sizes(void **state) {
    static const struct {
        int64_t groups, rows, d, f;
    } layers[] = {{8, 8192, 4096, 14336}, {64, 32768, 2048, 1024}, {4, 4096, 2048, 5632}};
    LoopModule m = {0};
    NvptxTarget t = target_of("sm_80");
    for (int i = 0; i < COUNT_OF(layers); i++)
        for (int turn = 0; turn < 2; turn++) {
            int64_t n = turn ? layers[i].d : layers[i].f, k = turn ? layers[i].f : layers[i].d;
            add_layer_call(&m, STGC_GEMM_ROWS, layers[i].groups, layers[i].rows, n, k, true);
            add_layer_call(&m, STGC_GEMM_ROWS, layers[i].groups, layers[i].rows, n, k, false);
            add_layer_call(&m, STGC_GEMM_K, layers[i].groups, layers[i].rows, n, k, false);
        }
    for (int i = 0, n = m.calls.n; i < n; i++) { /* as recipes ask for it: on tensor cores */
        LoopCall low = m.calls.at[i];
        low.gemm.precision = STGC_GEMM_BF16;
        vec_push(&m.calls, low);
    }
    add_layer_call(&m, STGC_GEMM_BATCH, 1, 4096, 2048, 1024, false);
    m.calls.at[m.calls.n - 1].gemm.precision = STGC_GEMM_BF16; /* not cuBLAS: it would not round */
    Compiled c = compile_calls(&m, &t);
    assert_int_equal(c.step->nops, m.calls.n);
    for (uint32_t i = 0; i < c.step->nops; i++) { /* large tiles everywhere */
        assert_int_equal(c.step->ops[i].kind, STGC_CUDA_LAUNCH);
        const char *name = c.step->kernels[c.step->ops[i].kernel].name;
        assert_non_null(strstr(name, "128x128"));
        assert_non_null(strstr(name, m.calls.at[i].gemm.precision ? "_bf16_" : "_f32_"));
    }
    check_ptxas(c.step->ptx, 1);
    device_options(0);
    load_compiled(&c);
    free_compiled(&c);
    vec_free(&m.calls);
}

/* All precisions and layouts, as large as they get. */
static void assembles(void **state) {
    Kernels k = {0};
    device_options(0);
    kernels_begin(&k);
    for (int kind = 0; kind < 8; kind++)
        for (int form = kind % 2; form < 8; form += 2) {
            Layout l = {form & 1, form & 2, form & 4, false};
            Routing r = uneven(5, 129, 3);
            int64_t *index = NULL;
            const GemmTiling *t = gemm_tiling((GemmPrecision)(kind / 2), kind % 2);
            Product p = by_rows(&r, 64, 64, l, form / 4, form / 2 % 2, t, &index);
            add_grouped(&k, &p);
            free(index);
            p = by_depth(&r, 64, 64, l, t);
            add_grouped(&k, &p);
        }
    kernels_load(&k);
    check_ptxas(k.ptx, 2); /* every other target: these are many */
    kernels_end(&k);
}

/* Whole tiles do exactly 2 m n k operations, on either engine; others the same as if they were
 * whole. */
static void operations(void **state) {
    Kernels k = {0};
    device_options(0);
    for (int kind = 0; kind < 8; kind++) {
        const GemmTiling *t = gemm_tiling((GemmPrecision)(kind / 2), kind % 2);
        Product p = dense(t->tm - 1, t->tn, 16, (Layout){0}, 0, t);
        k = (Kernels){0};
        kernels_begin(&k);
        kernels_add(&k, &p.f);
        kernels_load(&k);
        fill(&p);
        run_product(&p, k.module);
        PtxCounts counts;
        ptx_counts(device, &counts);
        uint64_t want = 6 * 2 * (uint64_t)t->tm * (uint64_t)t->tn * 16;
        if (t->precision == GEMM_TF32X3)
            want *= 3;
        assert_int_equal(t->precision == GEMM_F32 ? counts.fma_flops : counts.mma_flops, want);
        free_product(&p);
        kernels_end(&k);
    }
}

/* ---- do these tests bite? ---- */

static int all_caught, all_tried;

/* Two products of one form go through each mutant of its kernel. */
static void mutants_of(Product *p, int sample) {
    Kernels k = {0};
    int caught = 0, tried = 0;
    kernels_begin(&k);
    kernels_add(&k, &p[0].f);
    kernels_load(&k);
    fill(&p[0]);
    fill(&p[1]);
    int all = ptx_mutant_count(k.ptx, strlen(k.ptx));
    for (int n = 0; n < all; n += all / sample + 1) {
        PtxMutant x;
        assert_true(ptx_mutant(k.ptx, strlen(k.ptx), n, &x));
        if (strstr(x.what, "-> mov.f32")) { /* accumulators begin as copies of a 0: any copy does */
            ptx_mutant_free(&x);
            continue;
        }
        PtxModule *m = ptx_load(device, x.text, x.bytes);
        assert_non_null(m);
        problems = 0, problems_expected = true;
        for (int i = 0; i < 3 && !problems; i++) {
            device_options((uint64_t)i);
            run_product(&p[i % 2], m);
        }
        problems_expected = false;
        if (!problems && getenv("PTX_MUTANTS"))
            print_message("survives: %s\n", x.what);
        caught += problems > 0, tried++;
        ptx_unload(m);
        ptx_mutant_free(&x);
    }
    print_message("%d of %d mutants caught (%d possible)\n", caught, tried, all);
    all_caught += caught, all_tried += tried;
    free_product(&p[0]);
    free_product(&p[1]);
    kernels_end(&k);
}

/* Changed kernels are noticed: gathered rows with a table, depth with tensor cores. Most survivors
 * compare numbers that are never negative as unsigned. */
static void mutants(void **state) {
    device_options(0);
    int64_t *index[2] = {NULL, NULL};
    Routing few = uneven(4, 93, 40), many = all_to_one(3, 600, 1, 70);
    Layout none = {0}, wide = {.at = true, .wide = true};
    const GemmTiling *t = gemm_tiling(GEMM_F32, false);
    Product rows[] = {by_rows(&few, 71, 41, none, true, true, t, &index[0]),
                      by_rows(&many, 131, 3, none, true, true, t, &index[1])};
    mutants_of(rows, 70);
    free(index[0]);
    free(index[1]);
    t = gemm_tiling(GEMM_BF16, false);
    Routing deep = uneven(4, 11, 0);
    Product depth[] = {by_depth(&few, 69, 68, wide, t), by_depth(&deep, 589, 132, wide, t)};
    mutants_of(depth, 50);
    problems = 0;
    assert_true(all_caught * 10 >= all_tried * 9);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dense_products), cmocka_unit_test(grouped_products),
        cmocka_unit_test(mutants),        cmocka_unit_test(operations),
        cmocka_unit_test(assembles),      cmocka_unit_test(release_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
