/* nvptx_product.h: a matrix product with its arrays on the host and in the emulator, what it must
 * give, and ways to lay it out; for the tests of kernels of matrix products. */
#ifndef STGCC_TESTS_NVPTX_PRODUCT_H
#define STGCC_TESTS_NVPTX_PRODUCT_H

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

static inline void free_product(Product *p) {
    free(p->a);
    free(p->b);
    free(p->c);
    free(p->table);
}

static inline void fill(Product *p) {
    p->a = random_floats(p->a_size);
    p->b = random_floats(p->b_size);
    p->c = random_floats(p->c_size);
}

static inline int64_t row_of_a(const StgcGemm *g, int64_t i) {
    return g->a_index ? g->a_index[i] : i;
}

/* The nearest number with `bits` bits of mantissa, the leading one included; halfway: to even, or
 * away from zero. */
static inline double rounded(double v, int bits, bool even) {
    int e;
    double m = ldexp(frexp(v, &e), bits);
    return ldexp(even ? rint(m) : round(m), e - bits);
}

/* The product of two factors as the precision rounds them. */
static inline double term(GemmPrecision p, float x, float y) {
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
static inline void expect(const Product *p, int64_t e, int64_t i, int64_t j, float *chain,
                          double *exact, double *size) {
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

static inline void params_of(const Product *p, uint64_t a, uint64_t b, uint64_t c, uint64_t offsets,
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
static inline double bound_of(int64_t k) {
    return (double)(k + 2) * 0x1p-23;
}

static inline void compare_element(const Product *p, const char *name, int64_t e, int64_t i,
                                   int64_t j, float got) {
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

static inline void each_element(const Product *p, ElementFn fn, void *ctx) {
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

static inline void check_element(const Product *p, int64_t e, int64_t i, int64_t j, int64_t at,
                                 void *ctx) {
    Result *r = ctx;
    compare_element(p, r->name, e, i, j, r->c[at]);
    r->written[at] = true;
}

/* C's elements, zeros behind the last group, and nothing else. */
static inline void check_result(const Product *p, const char *name, uint64_t c) {
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

static inline void run_product(const Product *p, PtxModule *module) {
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
    const GemmSide side[2] = {p->f.a, p->f.b};
    int64_t stages = gemm_stage_floats(&p->f.tiling, side) * 4; /* above 48 KiB: dynamic memory */
    launch(module, name, gemm_grid(&p->f, g), (unsigned)p->f.tiling.threads,
           stages > 48 * 1024 ? (unsigned)stages : 0, in, n);
    check_result(p, name, c);
    const uint64_t used[] = {a, b, c, offsets, index, table};
    for (int i = 0; i < COUNT_OF(used); i++)
        if (used[i])
            ptx_free(device, used[i]);
}

/* ---- layouts ---- */

typedef struct Layout {
    bool at, bt, wide, accumulate;
} Layout;

static inline int64_t up4(int64_t v, bool wide) {
    return wide ? (v + 3) / 4 * 4 : v;
}

/* Two batch axes, all strides different, padded by `pad` or, if wide, to multiples of 16 bytes. */
static inline Product dense(int64_t m, int64_t n, int64_t k, Layout l, int64_t pad,
                            const GemmTiling *t) {
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

enum { MOST_GROUPS = 64 };

/* Ways to deal T rows to E groups; `behind` rows belong to nobody. */
typedef struct Routing {
    int64_t groups, rows, behind;
    int64_t offsets[MOST_GROUPS + 1];
} Routing;

static inline Routing all_to_one(int64_t groups, int64_t rows, int64_t which, int64_t behind) {
    Routing r = {.groups = groups, .rows = rows, .behind = behind};
    for (int64_t e = 0; e <= groups; e++)
        r.offsets[e] = e > which ? rows : 0;
    return r;
}

static inline Routing uneven(int64_t groups, int64_t rows, int64_t behind) {
    Routing r = {.groups = groups, .rows = rows, .behind = behind};
    for (int64_t e = 0; e <= groups; e++) /* some groups are empty, the first ones are small */
        r.offsets[e] = e == groups ? rows : rows * (e / 2 * 2) * (e / 2 * 2) / (groups * groups);
    return r;
}

static inline int routings(Routing *r) {
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

static inline Product by_rows(const Routing *r, int64_t n, int64_t k, Layout l, bool gather,
                              bool table, const GemmTiling *t, int64_t **index) {
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

static inline Product by_depth(const Routing *r, int64_t m, int64_t n, Layout l,
                               const GemmTiling *t) {
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

#endif
