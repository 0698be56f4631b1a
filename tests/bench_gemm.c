/* bench_gemm.c: matrix products of the reference workload, measured; not a test.
 *
 *   cc -O2 -I. tests/bench_gemm.c libruntime.a -lxsmm -lxsmmnoblas -lm -lpthread -ldl -lrt &&
 *   ./a.out [threads] [rounds] [peers|own] [only]
 *
 * Every shape is timed in interleaved rounds, f32 and with operands rounded to bf16, the median is
 * printed. One thread is timed by its
 * own CPU time, which other processes hardly disturb; more threads by the clock. With `peers`,
 * oneDNN's dnnl_sgemm (loaded if installed, OMP_NUM_THREADS threads) multiplies the dense shapes
 * too. `only`: shapes whose name has this text. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "runtime/machine.h"

enum { MOST_ROUNDS = 100, SHAPES = 64 };

typedef int (*Sgemm)(char ta, char tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                     int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

typedef struct Shape {
    const char *name;
    StgcGemm g;
    double flops;
    bool tiles; /* C only as tiles */
    double ours[MOST_ROUNDS], bf16[MOST_ROUNDS], peer[MOST_ROUNDS];
} Shape;

static Shape shapes[SHAPES];
static int count;
static const char *only; /* shapes whose name has this text; NULL: all */

static bool skipping; /* the shape being added is not wanted: its slot is used again */

static bool wanted(const char *name) {
    return !only || strstr(name, only);
}

static clockid_t timer = CLOCK_MONOTONIC;

static double now(void) {
    struct timespec t;
    clock_gettime(timer, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float *floats(int64_t n) {
    if (skipping)
        return NULL;
    size_t bytes = ((size_t)n * sizeof(float) + (2 << 20)) & ~(size_t)((2 << 20) - 1);
    float *p = aligned_alloc(2 << 20, bytes);
    if (!p)
        abort();
    madvise(p, bytes, MADV_HUGEPAGE); /* as an arena does */
    for (int64_t i = 0; i < n; i++)
        p[i] = (float)(i % 97) / 97 - 0.5f;
    return p;
}

static void no_epilogue(void *env, int64_t group, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                        float *tile, int64_t ld) {
    (void)env, (void)group, (void)m0, (void)m1, (void)n0, (void)n1, (void)tile, (void)ld;
}

/* at, bt: A is stored [k,m], B [n,k]. */
static void add_dense(const char *name, int64_t m, int64_t n, int64_t k, bool at, bool bt,
                      bool tiles) {
    skipping = !wanted(name);
    Shape *s = &shapes[count];
    count += !skipping;
    s->name = name;
    s->flops = 2.0 * (double)m * (double)n * (double)k;
    s->tiles = tiles;
    s->g = (StgcGemm){.kind = STGC_GEMM_BATCH, .g1 = 1, .g2 = 1, .m = m, .n = n, .k = k};
    s->g.a = floats(m * k);
    s->g.b = floats(n * k);
    s->g.c = tiles ? NULL : floats(m * n);
    s->g.a_row = at ? 1 : k;
    s->g.a_col = at ? m : 1;
    s->g.b_row = bt ? 1 : n;
    s->g.b_col = bt ? k : 1;
    s->g.ldc = n;
    s->g.epilogue = tiles ? no_epilogue : NULL;
}

static int64_t offsets[9] = {0, 270, 480, 790, 1000, 1290, 1530, 1777, 2048};
static int64_t tiny_offsets[9] = {0, 66, 120, 200, 250, 320, 390, 440, 512};

/* Groups that `wide` has: of 64 rows, about; eight of its 32. */
static int64_t wide_offsets[9] = {0, 66, 120, 200, 250, 320, 390, 440, 512};

static void add_rows(const char *name, int64_t *groups, int64_t n, int64_t k, bool bt, bool gather,
                     bool tiles) {
    int64_t rows = groups[8];
    Shape *s = &shapes[count];
    add_dense(name, rows, n, k, false, bt, tiles);
    s->g.kind = STGC_GEMM_ROWS;
    s->g.g1 = 8;
    s->g.offsets = groups;
    s->g.b = floats(8 * n * k);
    s->g.b_g1 = n * k;
    if (gather) {
        int64_t *index = malloc((size_t)rows * sizeof *index);
        if (!index)
            abort();
        for (int64_t i = 0; i < rows; i++)
            index[i] = i * 37 % rows;
        s->g.a_index = index;
    }
}

static void add_depth(const char *name, int64_t *groups, int64_t m, int64_t n) {
    Shape *s = &shapes[count];
    add_dense(name, m, n, groups[8], true, false, false);
    s->g.kind = STGC_GEMM_K;
    s->g.g1 = 8;
    s->g.offsets = groups;
    s->g.c = floats(8 * m * n);
    s->g.c_g1 = m * n;
}

/* Attention over [B,S,3,H,D]: scores q k' (values: false) or p v. */
static void add_attention(const char *name, int64_t b, int64_t h, int64_t s, int64_t d,
                          bool values) {
    skipping = !wanted(name);
    Shape *x = &shapes[count];
    count += !skipping;
    int64_t row = 3 * h * d;
    x->name = name;
    x->flops = 2.0 * (double)(b * h * s * s * d);
    x->g = (StgcGemm){.kind = STGC_GEMM_BATCH, .g1 = b, .g2 = h, .m = s};
    StgcGemm *g = &x->g;
    g->b = floats(b * s * row);
    g->b_g1 = s * row;
    g->b_g2 = d;
    if (values) {
        g->n = d;
        g->k = s;
        g->a = floats(b * h * s * s);
        g->a_row = s;
        g->a_col = 1;
        g->a_g1 = h * s * s;
        g->a_g2 = s * s;
        g->b_row = row;
        g->b_col = 1;
        g->c = floats(b * s * h * d);
        g->ldc = h * d;
        g->c_g1 = s * h * d;
        g->c_g2 = d;
        return;
    }
    g->n = s;
    g->k = d;
    g->a = floats(b * s * row);
    g->a_row = row;
    g->a_col = 1;
    g->a_g1 = s * row;
    g->a_g2 = d;
    g->b_row = 1;
    g->b_col = row;
    g->c = floats(b * h * s * s);
    g->ldc = s;
    g->c_g1 = h * s * s;
    g->c_g2 = s * s;
}

static void add_all(void) {
    add_dense("square 2048", 2048, 2048, 2048, false, false, false);
    add_dense("qkv fwd 1024x1536x512 NT", 1024, 1536, 512, false, true, false);
    add_dense("qkv dgrad 1024x512x1536 NN", 1024, 512, 1536, false, false, false);
    add_dense("qkv wgrad 1536x512x1024 TN", 1536, 512, 1024, true, false, false);
    add_dense("out fwd 1024x512x512 NT", 1024, 512, 512, false, true, false);
    add_dense("head fwd 1024x8192x512 NT", 1024, 8192, 512, false, true, false);
    add_dense("head fwd, tiles only", 1024, 8192, 512, false, true, true);
    add_dense("head dgrad 1024x512x8192 NN", 1024, 512, 8192, false, false, false);
    add_dense("head wgrad 8192x512x1024 TN", 8192, 512, 1024, true, false, false);
    add_dense("router fwd 1024x8x512 NT", 1024, 8, 512, false, true, false);
    add_dense("router dgrad 1024x512x8 NN", 1024, 512, 8, false, false, false);
    add_dense("router wgrad 8x512x1024 TN", 8, 512, 1024, true, false, false);
    add_rows("gate_up fwd rows 2048 n2048 k512 NT", offsets, 2048, 512, true, false, false);
    add_rows("  gathered, tiles only", offsets, 2048, 512, true, true, true);
    add_rows("down fwd rows n512 k1024 NT", offsets, 512, 1024, true, false, false);
    add_rows("down dgrad rows n1024 k512 NN", offsets, 1024, 512, false, false, false);
    add_rows("  tiles only", offsets, 1024, 512, false, false, true);
    add_rows("gate_up dgrad rows n512 k2048 NN", offsets, 512, 2048, false, false, false);
    add_depth("gate_up wgrad 2048x512 TN", offsets, 2048, 512);
    add_depth("down wgrad 512x1024 TN", offsets, 512, 1024);
    add_rows("wide gate_up fwd n512 k512 NT", wide_offsets, 512, 512, true, false, false);
    add_rows("wide down fwd n512 k256 NT", wide_offsets, 512, 256, true, false, false);
    add_rows("wide down dgrad n256 k512 NN", wide_offsets, 256, 512, false, false, false);
    add_rows("wide gate_up dgrad n512 k512 NN", wide_offsets, 512, 512, false, false, false);
    add_depth("wide gate_up wgrad 512x512 TN", wide_offsets, 512, 512);
    add_attention("attention scores 32x 256x256x64", 4, 8, 256, 64, false);
    add_attention("attention values 32x 256x64x256", 4, 8, 256, 64, true);
    add_dense("tiny qkv 256x192x64 NT", 256, 192, 64, false, true, false);
    add_dense("tiny qkv wgrad 192x64x256 TN", 192, 64, 256, true, false, false);
    add_dense("tiny head 256x512x64 NT", 256, 512, 64, false, true, false);
    add_rows("tiny gate_up rows 512 n192 k64 NT", tiny_offsets, 192, 64, true, false, false);
    add_depth("tiny gate_up wgrad 192x64 TN", tiny_offsets, 192, 64);
    add_attention("tiny attention scores 32x 64x64x8", 4, 8, 64, 8, false);
    add_attention("tiny attention values 32x 64x8x64", 4, 8, 64, 8, true);
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void run_peer(const Shape *s, Sgemm sgemm, int round) {
    const StgcGemm *g = &s->g;
    Shape *to = (Shape *)(uintptr_t)s;
    double start = now();
    sgemm(g->a_row == 1 ? 'T' : 'N', g->b_row == 1 ? 'T' : 'N', g->m, g->n, g->k, 1, g->a,
          g->a_row == 1 ? g->a_col : g->a_row, g->b, g->b_row == 1 ? g->b_col : g->b_row, 0, g->c,
          g->ldc);
    to->peer[round] = now() - start;
}

static void bench_token_dot(StgcRt *rt, int64_t in, int64_t out, int mode, bool with_grad) {
    float *x = floats(2048 * in), *d = floats(2048 * out), *grad = floats(8 * in * out);
    float dot[2048], *scratch = floats(stgc_token_dot_scratch(8, 2048, in, out) / 4);
    StgcTokenDot t = {8, 2048, in, out, offsets, x, d, NULL, 0, 0, 0, dot, mode, scratch};
    if (with_grad) {
        t.grad = grad;
        t.grad_group = in * out;
        t.g_in = 1;
        t.g_out = in;
    }
    double best = 1e9;
    for (int i = 0; i < 20; i++) {
        double start = now();
        rt->token_dot(rt, &t);
        double seconds = now() - start;
        best = seconds < best ? seconds : best;
    }
    printf("token_dot in %ld out %ld mode %d grad %d: %.3f ms\n", (long)in, (long)out, mode,
           with_grad, best * 1e3);
    free(x);
    free(d);
    free(grad);
    free(scratch);
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 0, rounds = argc > 2 ? atoi(argv[2]) : 15;
    rounds = rounds < 1 ? 1 : rounds > MOST_ROUNDS ? MOST_ROUNDS : rounds;
    StgcRt *rt = stgc_rt_new(threads);
    if (!rt)
        return 5;
    if (stgc_rt_threads(rt) == 1)
        timer = CLOCK_THREAD_CPUTIME_ID;
    Sgemm sgemm = NULL;
    void *library =
        argc > 3 && strcmp(argv[3], "peers") == 0 ? dlopen("libdnnl.so.2", RTLD_NOW) : NULL;
    if (library)
        *(void **)&sgemm = dlsym(library, "dnnl_sgemm");
    printf("%s\n", stgc_rt_describe(rt));
    only = argc > 4 ? argv[4] : NULL;
    add_all();
    skipping = false;
    for (int r = 0; r < rounds; r++)
        for (int i = 0; i < count; i++) {
            Shape *s = &shapes[i];
            bool dense = s->g.kind == STGC_GEMM_BATCH && s->g.g1 == 1 && !s->tiles;
            int calls = s->flops < 1e8 ? 20 : 1;
            double *to[] = {s->ours, s->bf16};
            for (int bf16 = 0; bf16 < 2; bf16++) {
                s->g.precision = bf16 ? STGC_GEMM_BF16 : STGC_GEMM_F32;
                double start = now();
                for (int c = 0; c < calls; c++)
                    rt->gemm(rt, &s->g);
                to[bf16][r] = (now() - start) / calls;
            }
            if (sgemm && dense)
                run_peer(s, sgemm, r);
        }
    printf("%-40s %10s %9s %9s %s\n", "shape", "ms", "GF/s", "bf16 GF/s",
           sgemm ? "oneDNN GF/s" : "");
    for (int i = 0; i < count; i++) {
        Shape *s = &shapes[i];
        qsort(s->ours, (size_t)rounds, sizeof(double), ascending);
        qsort(s->peer, (size_t)rounds, sizeof(double), ascending);
        qsort(s->bf16, (size_t)rounds, sizeof(double), ascending);
        double t = s->ours[rounds / 2], p = s->peer[rounds / 2], b = s->bf16[rounds / 2];
        printf("%-40s %10.4f %9.1f %9.1f", s->name, t * 1e3, s->flops / t / 1e9,
               s->flops / b / 1e9);
        printf(p > 0 ? "  %9.1f\n" : "\n", s->flops / p / 1e9);
    }
    for (int form = 0; form < 3 && argc <= 4; form++) {
        bench_token_dot(rt, 512, 2048, form == 0 ? 1 : 2, form == 1);
        bench_token_dot(rt, 1024, 512, form == 0 ? 1 : 2, form == 1);
    }
    stgc_rt_free(rt);
    return 0;
}
