/* Matrix products as PTX, in the emulator: all kinds, layouts, sizes of tiles and precisions
 * against a plain loop; f32 to the last bit. Odd sizes, groups without rows, gathers with holes,
 * epilogues; with checks for races, bounds and uninitialised memory on. */
#include "nvptx_gemm_help.h"

/* ---- a product: arrays on both sides ---- */

typedef struct Product {
    GemmForm f;
    StgcGemm g; /* host pointers */
    int64_t a_size, b_size, c_size;
    float *a, *b, *c;
    int64_t *table;  /* of groups: place of B, in floats */
    int64_t sources; /* gather: rows of a */
} Product;

static void free_product(Product *p) {
    free(p->a);
    free(p->b);
    free(p->c);
    free(p->table);
}

static void fill(Product *p) {
    p->a = random_floats(p->a_size);
    p->b = random_floats(p->b_size);
    p->c = random_floats(p->c_size);
}

static int64_t row_of_a(const StgcGemm *g, int64_t i) {
    return g->a_index ? g->a_index[i] : i;
}

/* The nearest number with `bits` bits of mantissa, the leading one included; halfway: to even, or
 * away from zero. */
static double rounded(double v, int bits, bool even) {
    int e;
    double m = ldexp(frexp(v, &e), bits);
    return ldexp(even ? rint(m) : round(m), e - bits);
}

/* The product of two factors as the precision rounds them. */
static double term(GemmPrecision p, float x, float y) {
    double xh, yh;
    switch (p) {
    case GEMM_TF32:
        return rounded(x, 11, false) * rounded(y, 11, false);
    case GEMM_BF16:
        return rounded(x, 8, true) * rounded(y, 8, true);
    case GEMM_TF32X3:
        xh = rounded(x, 11, false), yh = rounded(y, 11, false);
        return xh * yh + xh * rounded(y - yh, 11, false) + rounded(x - xh, 11, false) * yh;
    case GEMM_F32:
        break;
    }
    return (double)x * y;
}

/* What C[i,j] of group e must be: `chain` in f32, one fused multiply-add after the other, and
 * `exact` in f64, of factors as they are rounded; *size: the sum of the terms' magnitudes. */
static void expect(const Product *p, int64_t e, int64_t i, int64_t j, float *chain, double *exact,
                   double *size) {
    const StgcGemm *g = &p->g;
    int64_t e1 = e / g->g2, e2 = e % g->g2, k0 = 0, k1 = g->k;
    const float *a = p->a, *b = p->b, *c = p->c + i * g->ldc + j;
    if (g->kind == STGC_GEMM_BATCH)
        a += e1 * g->a_g1 + e2 * g->a_g2;
    b += p->table ? p->table[e] : g->kind == STGC_GEMM_K ? 0 : e1 * g->b_g1 + e2 * g->b_g2;
    if (g->kind != STGC_GEMM_ROWS)
        c += e1 * g->c_g1 + e2 * g->c_g2;
    if (g->kind == STGC_GEMM_K)
        k0 = g->offsets[e], k1 = g->offsets[e + 1];
    int64_t row = row_of_a(g, i);
    float sum = 0;
    *exact = *size = 0;
    for (int64_t k = k0; row >= 0 && k < k1; k++) {
        float x = a[row * g->a_row + k * g->a_col], y = b[k * g->b_row + j * g->b_col];
        sum = fmaf(x, y, sum);
        *exact += term(p->f.tiling.precision, x, y);
        *size += fabs((double)x * y);
    }
    if (g->accumulate)
        *exact += *c, *size += fabs(*c), sum = *c + sum;
    *chain = sum;
}

static void params_of(const Product *p, uint64_t a, uint64_t b, uint64_t c, uint64_t offsets,
                      uint64_t index, uint64_t table, uint64_t *in, int *n) {
    const StgcGemm *g = &p->g;
    const uint64_t all[GEMM_P_COUNT] = {
        [GEMM_P_A] = a,
        [GEMM_P_B] = b,
        [GEMM_P_C] = c,
        [GEMM_P_OFFSETS] = offsets,
        [GEMM_P_INDEX] = index,
        [GEMM_P_TABLE] = table,
        [GEMM_P_M] = (uint64_t)g->m,
        [GEMM_P_N] = (uint64_t)g->n,
        [GEMM_P_K] = (uint64_t)g->k,
        [GEMM_P_LDA] = (uint64_t)(g->a_col == 1 ? g->a_row : g->a_col),
        [GEMM_P_LDB] = (uint64_t)(g->b_col == 1 ? g->b_row : g->b_col),
        [GEMM_P_LDC] = (uint64_t)g->ldc,
        [GEMM_P_GROUPS] = (uint64_t)(g->g1 * g->g2),
        [GEMM_P_G2] = (uint64_t)g->g2,
        [GEMM_P_AG1] = (uint64_t)g->a_g1,
        [GEMM_P_AG2] = (uint64_t)g->a_g2,
        [GEMM_P_BG1] = (uint64_t)g->b_g1,
        [GEMM_P_BG2] = (uint64_t)g->b_g2,
        [GEMM_P_CG1] = (uint64_t)g->c_g1,
        [GEMM_P_CG2] = (uint64_t)g->c_g2,
    };
    *n = 0;
    for (int i = 0; i < GEMM_P_COUNT; i++)
        if (gemm_needs(&p->f, (GemmParam)i))
            in[(*n)++] = all[i];
}

/* Largest error relative to the terms' magnitudes: of sums in f32, in any order. */
static double bound_of(int64_t k) {
    return (double)(k + 2) * 0x1p-23;
}

static void compare_element(const Product *p, const char *name, int64_t e, int64_t i, int64_t j,
                            float got) {
    float chain;
    double exact, size;
    expect(p, e, i, j, &chain, &exact, &size);
    bool same = p->f.tiling.precision == GEMM_F32 ? got == chain
                                                  : fabs(got - exact) <= bound_of(p->g.k) * size;
    if (!same)
        problem("%s: group %ld [%ld,%ld] of m %ld n %ld k %ld: %.9g, expected %.9g", name, (long)e,
                (long)i, (long)j, (long)p->g.m, (long)p->g.n, (long)p->g.k, got, chain);
}

/* Elements of C that the product writes, with their group. */
typedef void (*ElementFn)(const Product *p, int64_t e, int64_t i, int64_t j, int64_t at, void *ctx);

static void each_element(const Product *p, ElementFn fn, void *ctx) {
    const StgcGemm *g = &p->g;
    bool rows = g->kind == STGC_GEMM_ROWS;
    for (int64_t e = 0; e < g->g1 * g->g2; e++) {
        int64_t i0 = rows ? g->offsets[e] : 0, i1 = rows ? g->offsets[e + 1] : g->m;
        int64_t base = rows ? 0 : e / g->g2 * g->c_g1 + e % g->g2 * g->c_g2;
        for (int64_t i = i0; i < i1; i++)
            for (int64_t j = 0; j < g->n; j++)
                fn(p, e, i, j, base + i * g->ldc + j, ctx);
    }
}

typedef struct Result {
    const char *name;
    const float *c;
    bool *written;
} Result;

static void check_element(const Product *p, int64_t e, int64_t i, int64_t j, int64_t at,
                          void *ctx) {
    Result *r = ctx;
    compare_element(p, r->name, e, i, j, r->c[at]);
    r->written[at] = true;
}

/* C's elements, zeros behind the last group, and nothing else. */
static void check_result(const Product *p, const char *name, uint64_t c) {
    const StgcGemm *g = &p->g;
    float *got = calloc((size_t)p->c_size + 1, sizeof *got);
    bool *written = calloc((size_t)p->c_size + 1, sizeof *written);
    assert_true(ptx_read(device, got, c, (size_t)p->c_size * sizeof *got, false));
    Result r = {name, got, written};
    each_element(p, check_element, &r);
    if (g->kind == STGC_GEMM_ROWS && !g->accumulate)
        for (int64_t i = g->offsets[g->g1 * g->g2]; i < g->m; i++)
            for (int64_t j = 0; j < g->n; j++) {
                if (got[i * g->ldc + j] != 0)
                    problem("%s: row %ld of nobody is not 0", name, (long)i);
                written[i * g->ldc + j] = true;
            }
    for (int64_t i = 0; i < p->c_size; i++)
        if (g->accumulate ? !written[i] && got[i] != p->c[i]
                          : ptx_is_initialised(device, c + (uint64_t)i * 4, 4) != written[i])
            problem("%s: element %ld of C is %s", name, (long)i,
                    written[i] ? "left out" : "not its own");
    free(got);
    free(written);
}

static void run_product(const Product *p, PtxModule *module) {
    const StgcGemm *g = &p->g;
    int64_t groups = g->g1 * g->g2;
    char name[256];
    gemm_kernel_name(name, sizeof name, &p->f, NULL);
    uint64_t a = upload(p->a, p->a_size * 4), b = upload(p->b, p->b_size * 4), in[GEMM_P_COUNT];
    uint64_t c = upload(g->accumulate ? p->c : NULL, p->c_size * 4), index = 0, table = 0,
             offsets = 0;
    if (g->kind != STGC_GEMM_BATCH)
        offsets = upload(g->offsets, (groups + 1) * 8);
    if (g->a_index) /* rows behind the last group have no index that anyone may read */
        index = upload(g->a_index, g->offsets[groups] * 8);
    if (p->table) {
        int64_t *bytes = calloc((size_t)groups, sizeof *bytes);
        for (int64_t e = 0; e < groups; e++)
            bytes[e] = 4 * p->table[e];
        table = upload(bytes, groups * 8);
        free(bytes);
    }
    int n;
    params_of(p, a, b, c, offsets, index, table, in, &n);
    launch(module, name, gemm_grid(&p->f, g), (unsigned)p->f.tiling.threads, 0, in, n);
    check_result(p, name, c);
    const uint64_t used[] = {a, b, c, offsets, index, table};
    for (int i = 0; i < COUNT_OF(used); i++)
        if (used[i])
            ptx_free(device, used[i]);
}

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

typedef struct Layout {
    bool at, bt, wide, accumulate;
} Layout;

static int64_t up4(int64_t v, bool wide) {
    return wide ? (v + 3) / 4 * 4 : v;
}

/* Two batch axes, all strides different, padded by `pad` or, if wide, to multiples of 16 bytes. */
static Product dense(int64_t m, int64_t n, int64_t k, Layout l, int64_t pad, const GemmTiling *t) {
    StgcGemm g = {.kind = STGC_GEMM_BATCH, .g1 = 2, .g2 = 3, .m = m, .n = n, .k = k};
    pad = l.wide ? 4 : pad;
    g.a_row = l.at ? 1 : up4(k, l.wide) + pad;
    g.a_col = l.at ? up4(m, l.wide) + pad : 1;
    g.b_row = l.bt ? 1 : up4(n, l.wide) + pad;
    g.b_col = l.bt ? up4(k, l.wide) + pad : 1;
    g.ldc = up4(n, l.wide) + pad;
    g.accumulate = l.accumulate;
    g.a_g2 = (l.at ? k : m) * (l.at ? g.a_col : g.a_row) + pad;
    g.b_g1 = (l.bt ? n : k) * (l.bt ? g.b_col : g.b_row) + pad;
    g.c_g2 = m * g.ldc + pad;
    g.a_g1 = 3 * g.a_g2 + pad;
    g.b_g2 = 0; /* broadcast */
    g.c_g1 = 3 * g.c_g2 + pad;
    Product p = {.g = g, .a_size = 2 * g.a_g1, .b_size = 2 * g.b_g1, .c_size = 2 * g.c_g1};
    LoopCall c = {.gemm = g, .gemm_index = -1};
    p.f = gemm_form(&c, t);
    return p;
}

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

enum { MOST_GROUPS = 64 };

/* Ways to deal T rows to E groups; `behind` rows belong to nobody. */
typedef struct Routing {
    int64_t groups, rows, behind;
    int64_t offsets[MOST_GROUPS + 1];
} Routing;

static Routing all_to_one(int64_t groups, int64_t rows, int64_t which, int64_t behind) {
    Routing r = {.groups = groups, .rows = rows, .behind = behind};
    for (int64_t e = 0; e <= groups; e++)
        r.offsets[e] = e > which ? rows : 0;
    return r;
}

static Routing uneven(int64_t groups, int64_t rows, int64_t behind) {
    Routing r = {.groups = groups, .rows = rows, .behind = behind};
    for (int64_t e = 0; e <= groups; e++) /* some groups are empty, the first ones are small */
        r.offsets[e] = e == groups ? rows : rows * (e / 2 * 2) * (e / 2 * 2) / (groups * groups);
    return r;
}

static int routings(Routing *r) {
    int n = 0;
    r[n++] = uneven(5, 129, 3);
    r[n++] = all_to_one(1, 7, 0, 0);
    r[n++] = all_to_one(5, 130, 2, 1);
    r[n++] = all_to_one(64, 1, 63, 0);
    r[n++] = all_to_one(5, 0, 4, 9);
    r[n++] = uneven(64, 129, 0);
    r[n++] = uneven(3, 400, 130);
    return n;
}

static Product by_rows(const Routing *r, int64_t n, int64_t k, Layout l, bool gather, bool table,
                       const GemmTiling *t, int64_t **index) {
    StgcGemm g = {.kind = STGC_GEMM_ROWS, .g1 = r->groups, .g2 = 1, .n = n, .k = k};
    g.m = r->rows + r->behind;
    g.offsets = r->offsets;
    int64_t sources = gather ? 11 : g.m, wide = up4(k, l.wide);
    g.a_row = l.at ? 1 : wide;
    g.a_col = l.at ? up4(sources, l.wide) : 1;
    g.b_row = l.bt ? 1 : up4(n, l.wide);
    g.b_col = l.bt ? wide : 1;
    g.b_g1 = up4(n, true) * up4(k, true) + 4;
    g.ldc = up4(n, l.wide);
    g.accumulate = l.accumulate;
    Product p = {.g = g, .b_size = r->groups * g.b_g1, .c_size = g.m * g.ldc, .sources = sources};
    p.a_size = l.at ? k * g.a_col : sources * g.a_row;
    LoopCall c = {.gemm = g, .gemm_index = gather ? 0 : -1};
    int64_t places[MOST_GROUPS] = {0};
    if (table) {
        p.table = calloc((size_t)r->groups, sizeof *p.table);
        for (int64_t e = 0; e < r->groups; e++) /* not in order */
            p.table[e] = (r->groups - 1 - e) * g.b_g1;
        c.gemm_b_group = places;
    }
    p.f = gemm_form(&c, t);
    if (!gather)
        return p;
    *index = calloc((size_t)g.m + 1, sizeof **index);
    for (int64_t i = 0; i < g.m; i++)
        (*index)[i] = i % 7 == 3 ? -1 : i * 5 % sources;
    p.g.a_index = *index;
    return p;
}

static Product by_depth(const Routing *r, int64_t m, int64_t n, Layout l, const GemmTiling *t) {
    StgcGemm g = {.kind = STGC_GEMM_K, .g1 = r->groups, .g2 = 1, .m = m, .n = n};
    g.k = r->rows + r->behind;
    g.offsets = r->offsets;
    g.a_row = l.at ? 1 : g.k;
    g.a_col = l.at ? up4(m, l.wide) : 1;
    g.b_row = l.bt ? 1 : up4(n, l.wide);
    g.b_col = l.bt ? g.k : 1;
    g.ldc = up4(n, l.wide) + (l.wide ? 4 : 1);
    g.c_g1 = m * g.ldc + 4;
    g.accumulate = l.accumulate;
    Product p = {.g = g, .c_size = r->groups * g.c_g1};
    p.a_size = l.at ? g.k * g.a_col : m * g.k;
    p.b_size = l.bt ? n * g.k : g.k * g.b_row;
    LoopCall c = {.gemm = g, .gemm_index = -1};
    p.f = gemm_form(&c, t);
    return p;
}

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

/* ---- epilogues ---- */

typedef enum { POINTWISE, IN_PLACE, ROW_SUM, CHANGE_TILE, EPILOGUES } Epilogue;

static LVal tile_index(LoopProgram *p, LVal i, LVal j) {
    LVal row = lp_2(p, L_SUB, i, lp_arg(p, LARG_M0)), col = lp_2(p, L_SUB, j, lp_arg(p, LARG_N0));
    return lp_2(p, L_ADD, lp_2(p, L_MUL, row, lp_arg(p, LARG_TILE_LD)), col);
}

/* out[group, i, j] = tile * in[group, i, j] + group, and the like; buffers: in, out. */
static void elementwise(LoopProgram *p, Epilogue kind, LoopKind rows, int64_t m, int64_t n) {
    int in = lp_buffer(p, DT_F32), out = kind == IN_PLACE ? in : lp_buffer(p, DT_F32);
    LVal i = lp_loop(p, rows, lp_arg(p, LARG_M0), lp_arg(p, LARG_M1));
    LVal line = lp_2(p, L_ADD, lp_2(p, L_MUL, lp_arg(p, LARG_GROUP), lp_const_i(p, m)), i);
    line = lp_2(p, L_MUL, line, lp_const_i(p, n));
    LVal j = lp_loop(p, LOOP_VECTOR, lp_arg(p, LARG_N0), lp_arg(p, LARG_N1));
    LVal at = lp_2(p, L_ADD, line, j), t = tile_index(p, i, j), v = lp_load(p, lp_tile(p), t);
    LVal g = lp_1(p, L_TO_F32, lp_arg(p, LARG_GROUP));
    v = lp_op(p, L_FMA, v, lp_load(p, in, at), g);
    lp_store(p, out, at, v);
    if (kind == CHANGE_TILE)
        lp_store(p, lp_tile(p), t, lp_2(p, L_MUL, v, lp_const_f(p, LT_F32, 2)));
    lp_end(p);
    lp_end(p);
}

/* sum[group, i] = sum over all columns of tile * w[j], kept from column tile to column tile. */
static void row_sum(LoopProgram *p, int64_t m) {
    int w = lp_buffer(p, DT_F32), sum = lp_buffer(p, DT_F32);
    LVal i = lp_loop(p, LOOP_SEQ, lp_arg(p, LARG_M0), lp_arg(p, LARG_M1));
    LVal line = lp_2(p, L_ADD, lp_2(p, L_MUL, lp_arg(p, LARG_GROUP), lp_const_i(p, m)), i);
    int acc = lp_var(p, LT_F32, lp_const_f(p, LT_F32, 0));
    lp_if(p, lp_2(p, L_NE, lp_arg(p, LARG_N0), lp_const_i(p, 0)));
    lp_set(p, acc, lp_load(p, sum, line));
    lp_end(p);
    LVal j = lp_loop(p, LOOP_VECTOR, lp_arg(p, LARG_N0), lp_arg(p, LARG_N1));
    LVal v = lp_load(p, lp_tile(p), tile_index(p, i, j));
    lp_set(p, acc, lp_op(p, L_FMA, v, lp_load(p, w, j), lp_get(p, acc)));
    lp_end(p);
    lp_store(p, sum, line, lp_get(p, acc));
    lp_end(p);
}

/* A module of one call whose arena is [A | B | offsets | C | in | out]. */
typedef struct Fused {
    Product p;
    Epilogue kind;
    LoopModule module;
    int64_t at[6], sizes[6]; /* bytes */
    int64_t lines;           /* rows that the epilogue numbers: group * m + row */
    LoopProgram *program;
    int64_t buffers[2];
} Fused;

enum { AT_A, AT_B, AT_OFFSETS, AT_C, AT_IN, AT_OUT };

static void make_fused(Fused *s, Epilogue kind) {
    StgcGemm *g = &s->p.g;
    int64_t groups = g->g1 * g->g2;
    bool rows = g->kind == STGC_GEMM_ROWS;
    s->kind = kind;
    s->lines = (groups - 1) * g->m + g->m;
    const int64_t sizes[6] = {s->p.a_size * 4,
                              s->p.b_size * 4,
                              rows ? (groups + 1) * 8 : 0,
                              s->p.c_size * 4,
                              kind == ROW_SUM ? g->n * 4 : s->lines * g->n * 4,
                              kind == ROW_SUM ? s->lines * 4 : s->lines * g->n * 4};
    int64_t end = 0;
    for (int i = 0; i < 6; i++) {
        s->at[i] = end, s->sizes[i] = sizes[i];
        end += (sizes[i] + 63) / 64 * 64;
    }
    s->program = loop_program_new(PROGRAM_EPILOGUE, "test");
    if (kind == ROW_SUM)
        row_sum(s->program, g->m);
    else
        elementwise(s->program, kind, rows ? LOOP_VECTOR : LOOP_SEQ, g->m, g->n);
    s->buffers[0] = s->at[AT_IN], s->buffers[1] = s->at[AT_OUT];
    LoopCall c = {.kind = CALL_GEMM, .name = "test", .program = s->program, .gemm = *g};
    c.nbuffers = s->program->buffers.n, c.buffers = s->buffers;
    c.gemm_a = s->at[AT_A], c.gemm_b = s->at[AT_B], c.gemm_index = -1;
    c.gemm_offsets = rows ? s->at[AT_OFFSETS] : -1;
    c.gemm_c = kind == POINTWISE || kind == ROW_SUM ? -1 : s->at[AT_C]; /* with and without a C */
    s->module.arena_bytes = end;
    vec_push(&s->module.calls, c);
}

typedef struct Seen {
    Fused *s;
    const float *in, *out, *c, *before;
    double *sums;
} Seen;

static void check_fused(const Product *p, int64_t e, int64_t i, int64_t j, int64_t at, void *ctx) {
    Seen *seen = ctx;
    float chain;
    double exact, size;
    expect(p, e, i, j, &chain, &exact, &size);
    int64_t line = e * p->g.m + i, place = line * p->g.n + j;
    if (seen->s->kind == ROW_SUM) {
        seen->sums[line] += exact * seen->in[j];
        return;
    }
    const float *in = seen->s->kind == IN_PLACE ? seen->before : seen->in;
    float want = fmaf(chain, in[place], (float)e);
    float got = seen->s->kind == IN_PLACE ? seen->in[place] : seen->out[place];
    if (got != want)
        fail_msg("epilogue %d: [%ld,%ld,%ld]: %.9g, expected %.9g", seen->s->kind, (long)e, (long)i,
                 (long)j, got, want);
    if (seen->s->kind == IN_PLACE)
        assert_true(seen->c[at] == chain);
    if (seen->s->kind == CHANGE_TILE)
        assert_true(seen->c[at] == 2 * want);
}

static void *part(const Fused *s, uint64_t arena, int which) {
    void *p = calloc((size_t)s->sizes[which] + 8, 1);
    ptx_read(device, p, arena + (uint64_t)s->at[which], (size_t)s->sizes[which], false);
    return p;
}

static void compare_fused(Fused *s, uint64_t arena, const float *before) {
    const StgcGemm *g = &s->p.g;
    float *in = part(s, arena, AT_IN), *out = part(s, arena, AT_OUT), *c = part(s, arena, AT_C);
    Seen seen = {s, in, out, c, before, calloc((size_t)s->lines, sizeof(double))};
    each_element(&s->p, check_fused, &seen);
    for (int64_t i = 0; s->kind == ROW_SUM && i < s->lines; i++)
        if (seen.sums[i] != 0)
            assert_true(fabs(out[i] - seen.sums[i]) <= 1e-5 * sqrt((double)(g->n * g->k)));
    free(in);
    free(out);
    free(c);
    free(seen.sums);
}

static void run_fused(Fused *s, int sms, uint64_t seed) {
    NvptxTarget t = target_of("sm_80");
    t.sms = sms; /* few: large tiles */
    device_options(seed);
    fill(&s->p);
    Compiled c = compile_calls(&s->module, &t);
    load_compiled(&c);
    uint64_t arena = upload(NULL, s->module.arena_bytes);
    float *before = random_floats(s->sizes[AT_IN] / 4);
    const struct {
        int at;
        const void *from;
    } parts[] = {{AT_A, s->p.a}, {AT_B, s->p.b}, {AT_OFFSETS, s->p.g.offsets}, {AT_IN, before}};
    for (int i = 0; i < COUNT_OF(parts); i++)
        if (s->sizes[parts[i].at])
            assert_true(ptx_write(device, arena + (uint64_t)s->at[parts[i].at], parts[i].from,
                                  (size_t)s->sizes[parts[i].at]));
    run_schedule(&c, arena, NULL);
    compare_fused(s, arena, before);
    free(before);
    ptx_free(device, arena);
    free_compiled(&c);
    loop_program_free(s->program);
    vec_free(&s->module.calls);
    free_product(&s->p);
}

/* Small and large tiles; several column tiles; rows of groups and batches. */
static void epilogues(void **state) {
    for (int kind = 0; kind < EPILOGUES; kind++)
        for (int large = 0; large < 2; large++) {
            const GemmTiling *t = gemm_tiling(GEMM_F32, large);
            int64_t *index = NULL;
            Routing r = uneven(3, large ? 300 : 100, 5);
            Fused rows = {
                .p = by_rows(&r, large ? 140 : 70, 9, (Layout){0}, false, false, t, &index)};
            make_fused(&rows, (Epilogue)kind);
            run_fused(&rows, large ? 1 : 1000, (uint64_t)kind);
            Fused batch = {.p = dense(large ? 131 : 66, large ? 130 : 67, 9, (Layout){0}, 0, t)};
            make_fused(&batch, (Epilogue)kind);
            run_fused(&batch, large ? 1 : 1000, (uint64_t)kind + 1);
        }
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
        cmocka_unit_test(epilogues),      cmocka_unit_test(mutants),
        cmocka_unit_test(operations),     cmocka_unit_test(assembles),
        cmocka_unit_test(release_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
