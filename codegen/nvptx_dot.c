/* nvptx_dot.c: CALL_TOKEN_DOT on the GPU. Which groups take the gram and which the factored form is
 * decided on the device from their number of rows, by the rule of runtime/token_dot.c, here turned
 * into a number: groups with fewer rows than `limit` take gram. */
#include "codegen/nvptx_gemm.h"

enum { LARGE = 192, WIDE = 4 };

static int64_t at_most(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t over(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

/* Whether the CPU would take the factored form for a group of `count` rows, told by its work. */
static bool is_factored(const StgcTokenDot *t, bool has_grad, int64_t count) {
    static const float some = 0;
    const int64_t offsets[] = {0, count};
    StgcTokenDot one = *t;
    one.groups = 1, one.rows = count, one.offsets = offsets;
    one.grad = has_grad ? &some : NULL;
    return stgc_token_dot_products(&one) == count * t->in * t->out * (has_grad ? 1 : 2);
}

/* Least number of rows, at least 1, that takes the factored form; rows + 1: none does. More rows
 * never go back to gram. */
static int64_t limit_of(const StgcTokenDot *t, bool has_grad) {
    int64_t lo = 1, hi = t->rows + 1;
    while (lo < hi) {
        int64_t mid = (lo + hi) / 2;
        if (is_factored(t, has_grad, mid))
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

static StgcCudaParam address(int64_t offset) {
    return (StgcCudaParam){.kind = STGC_CUDA_ARENA, .value = offset};
}

static StgcCudaParam number(int64_t v) {
    return (StgcCudaParam){.kind = STGC_CUDA_I64, .value = v};
}

static void launch(NvptxModule *m, int kernel, int64_t ctas, const StgcCudaParam *in,
                   const LoopCall *c) {
    nvptx_launch(m, kernel, (int64_t[]){ctas, 1, 1}, in, c->name);
}

/* ---- the three kernels ---- */

typedef struct Dot {
    NvptxModule *m;
    const LoopCall *c;
    DotForm f;
    int64_t limit, lanes;
    int64_t product; /* in the scratch: G of one group, behind the partial sums */
} Dot;

static void gram(const Dot *k) {
    const StgcTokenDot *t = &k->c->dot;
    const int tm = k->f.tiling.tm;
    char name[128];
    snprintf(name, sizeof name, "dot_gram_%d%s", tm, k->f.x.wide ? "_4" : "");
    int kernel = nvptx_find_kernel(k->m, name);
    if (kernel < 0) {
        StgcCudaKernel own;
        dot_gram_kernel(nvptx_ir(k->m), &k->f, name, &own);
        kernel = nvptx_add_kernel(k->m, &own);
    }
    int64_t runs = at_most(DOT_SLOTS, over(t->rows, tm)), pairs = runs * (runs + 1) / 2;
    StgcCudaParam in[] = {
        address(k->c->dot_x),       address(k->c->dot_d), address(k->c->dot_offsets),
        address(k->c->dot_scratch), number(t->in),        number(t->out),
        number(k->limit),           number(pairs)};
    launch(k->m, kernel, t->groups * pairs, in, k->c);
}

/* group < 0: all, with the gradients that the caller has. Else that one, with G in the scratch. */
static void factored(const Dot *k, int64_t group) {
    const StgcTokenDot *t = &k->c->dot;
    const int tm = k->f.tiling.tm;
    char name[128];
    snprintf(name, sizeof name, "dot_factored_%d%s_%s%s%s", tm, k->f.x.wide ? "_4" : "",
             k->f.grad.along_k ? "k" : "m", k->f.grad.wide ? "4" : "",
             k->f.one_group ? "_one" : "");
    int kernel = nvptx_find_kernel(k->m, name);
    if (kernel < 0) {
        StgcCudaKernel own;
        dot_factored_kernel(nvptx_ir(k->m), &k->f, name, &own);
        kernel = nvptx_add_kernel(k->m, &own);
    }
    bool one = group >= 0;
    int64_t ld = one ? t->out : t->g_out == 1 ? t->g_in : t->g_out;
    int64_t tiles = one ? over(t->rows, tm) : t->rows / tm + t->groups;
    StgcCudaParam in[] = {address(k->c->dot_x),
                          address(k->c->dot_d),
                          address(one ? k->product : k->c->dot_grad),
                          address(k->c->dot_offsets),
                          address(k->c->dot_scratch),
                          number(t->in),
                          number(t->out),
                          number(k->limit),
                          number(one ? group : t->groups),
                          number(ld),
                          number(t->grad_group),
                          number(k->lanes)};
    launch(k->m, kernel, tiles * k->lanes, in, k->c);
}

/* G of one group, [in][out], if it takes the factored form. */
static void sum_of_products(const Dot *k, int64_t group) {
    const StgcTokenDot *t = &k->c->dot;
    StgcGemm g = {.kind = STGC_GEMM_K, .g1 = t->groups, .g2 = 1, .m = t->in, .n = t->out};
    GemmForm f = {.kind = STGC_GEMM_K, .stored = true, .one_group = true, .tiling = k->f.tiling};
    f.a.wide = t->in % WIDE == 0 && k->c->dot_x % 16 == 0;
    f.b.wide = t->out % WIDE == 0 && k->c->dot_d % 16 == 0;
    f.wide_c = t->out % WIDE == 0 && k->product % 16 == 0;
    char name[256];
    gemm_kernel_name(name, sizeof name, &f, NULL);
    int kernel = nvptx_find_kernel(k->m, name);
    if (kernel < 0) {
        StgcCudaKernel own;
        gemm_kernel(k->m, nvptx_ir(k->m), &f, name, &own);
        kernel = nvptx_add_kernel(k->m, &own);
    }
    StgcCudaParam in[] = {
        address(k->c->dot_x), address(k->c->dot_d), address(k->product), address(k->c->dot_offsets),
        number(t->in),        number(t->out),       number(t->in),       number(t->out),
        number(t->out),       number(group),        number(k->limit)};
    launch(k->m, kernel, gemm_grid(&f, &g), in, k->c);
}

static void total(const Dot *k) {
    enum { THREADS = 256 };
    const StgcTokenDot *t = &k->c->dot;
    char name[64];
    snprintf(name, sizeof name, "dot_total_%d", k->f.tiling.tm);
    int kernel = nvptx_find_kernel(k->m, name);
    if (kernel < 0) {
        StgcCudaKernel own;
        dot_total_kernel(nvptx_ir(k->m), k->f.tiling.tm, name, &own);
        kernel = nvptx_add_kernel(k->m, &own);
    }
    StgcCudaParam in[] = {
        address(k->c->dot_out), address(k->c->dot_offsets), address(k->c->dot_scratch),
        number(t->rows),        number(t->groups),          number(k->limit),
        number(k->lanes)};
    launch(k->m, kernel, over(t->rows, THREADS), in, k->c);
}

/* ---- the call ---- */

void nvptx_token_dot(NvptxModule *m, const LoopCall *c) {
    const StgcTokenDot *t = &c->dot;
    if (t->rows <= 0)
        return;
    if (t->in <= 0 || t->out <= 0 || t->groups <= 0) {
        nvptx_clear(m, c->dot_out, t->rows * (int64_t)sizeof(float), c->name);
        return;
    }
    if (t->rows > INT32_MAX - 256 || t->in > INT32_MAX - 256 || t->out > INT32_MAX - 256) {
        diag_error(nvptx_diag(m), EXIT_MODEL,
                   "%s: %lld rows of %lld and %lld numbers are too many for a GPU kernel", c->name,
                   (long long)t->rows, (long long)t->in, (long long)t->out);
        return;
    }
    bool has_grad = c->dot_grad >= 0;
    const GemmTiling *tiling = gemm_tiling(GEMM_F32, t->rows / t->groups >= LARGE);
    Dot k = {.m = m, .c = c, .limit = limit_of(t, has_grad)};
    k.lanes = at_most(DOT_SLOTS, over(t->out, tiling->tn));
    k.product = c->dot_scratch + t->rows * DOT_SLOTS * (int64_t)sizeof(double);
    k.f = (DotForm){.tiling = *tiling, .x = {.along_k = true}, .d = {.along_k = true}};
    k.f.one_group = !has_grad;
    k.f.grad.along_k = has_grad && t->g_out != 1;
    int64_t ld = !has_grad ? t->out : t->g_out == 1 ? t->g_in : t->g_out;
    k.f.grad.wide =
        !k.f.grad.along_k && ld % WIDE == 0 &&
        (has_grad ? c->dot_grad % 16 == 0 && t->grad_group % WIDE == 0 : k.product % 16 == 0);
    if (k.limit > 1)
        gram(&k);
    if (k.limit <= t->rows && has_grad)
        factored(&k, -1);
    for (int64_t e = 0; k.limit <= t->rows && !has_grad && e < t->groups; e++) {
        sum_of_products(&k, e);
        factored(&k, e);
    }
    total(&k);
}
