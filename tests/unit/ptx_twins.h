/* ptx_twins.h: what the kernels of tests/ptx/kernels/twins.cu must compute, and the words that
 * cases are written in. See ptx_kernels.h. */
#ifndef STGCC_TESTS_PTX_TWINS_H
#define STGCC_TESTS_PTX_TWINS_H

#include "ptx_help.h"

#define EXPECT(x) \
    do { \
        if (!(x)) { \
            return #x; \
        } \
    } while (0)
#define SAME(a, b) EXPECT((uint64_t)(a) == (uint64_t)(b))
#define GET(d, to, from, bytes) \
    do { \
        if (!ptx_read(d, to, from, bytes, true)) { \
            return ptx_error(d); \
        } \
    } while (0)
#define LAUNCH(d, k, gx, gy, bx, by, shared, p, bytes) \
    do { \
        if (!ptx_launch(d, k, (unsigned[3]){gx, gy, 1}, (unsigned[3]){bx, by, 1}, shared, p, \
                        bytes)) { \
            return ptx_error(d); \
        } \
    } while (0)
#define RUN(d, k, grid, block, p, bytes) LAUNCH(d, k, grid, 1, block, 1, 0, p, bytes)

static uint32_t draw(uint32_t *s) {
    *s = *s * 1664525u + 1013904223u;
    return *s >> 8;
}

/* In [-2, 2). */
static float draw_float(uint32_t *s) {
    return (float)draw(s) * 0x1p-22f - 2;
}

__extension__ typedef _Float16 Half;

static uint32_t small_bits(int v, const char *type) {
    float x = (float)v;
    uint32_t u;
    memcpy(&u, &x, 4);
    if (!strcmp(type, "tf32")) {
        return u;
    }
    if (!strcmp(type, "bf16")) {
        return u >> 16;
    }
    /* f16 of a small integer */
    int e = 0, n = abs(v);
    while (n >> (e + 1)) {
        e++;
    }
    return v == 0 ? 0
                  : (v < 0 ? 0x8000u : 0) | (uint32_t)(15 + e) << 10 |
                        ((uint32_t)n << (10 - e) & 0x3ff);
}

/* ---- kernels/twins.ptx ---- */
static const char *run_saxpy(PtxDevice *d, PtxModule *m, int which) {
    (void)which;
    enum { N = 777 };
    float x[N], y[N], z[N];
    uint32_t s = 3;
    for (int i = 0; i < N; i++) {
        x[i] = draw_float(&s);
        y[i] = draw_float(&s);
    }
    struct {
        int n;
        float a;
        uint64_t x, y;
    } p = {N, 1.25f, ptx_upload(d, x, sizeof x), ptx_upload(d, y, sizeof y)};
    RUN(d, ptx_kernel(m, "saxpy"), 7, 128, &p, sizeof p);
    GET(d, z, p.y, sizeof z);
    for (int i = 0; i < N; i++) {
        EXPECT(z[i] == fmaf(1.25f, x[i], y[i]));
    }
    p.n = -1; /* nothing to do, nothing may be touched */
    p.x = p.y = 0;
    RUN(d, ptx_kernel(m, "saxpy"), 7, 128, &p, sizeof p);
    return NULL;
}

static const char *softmax(PtxDevice *d, PtxModule *m, int cols, unsigned block) {
    enum { ROWS = 3, MOST = 300 };
    float x[ROWS * MOST], y[ROWS * MOST];
    uint32_t s = 9;
    for (int i = 0; i < ROWS * cols; i++) {
        x[i] = 60 * draw_float(&s); /* exp overflows unless the largest is taken off */
    }
    struct {
        uint64_t x, y;
        int cols;
    } p = {ptx_upload(d, x, sizeof(float) * (size_t)(ROWS * cols)),
           ptx_malloc(d, sizeof(float) * (size_t)(ROWS * cols)), cols};
    RUN(d, ptx_kernel(m, "row_softmax"), ROWS, block, &p, 20);
    GET(d, y, p.y, sizeof(float) * (size_t)(ROWS * cols));
    for (int r = 0; r < ROWS; r++) {
        const float *v = x + r * cols;
        double top = -INFINITY, sum = 0;
        for (int c = 0; c < cols; c++) {
            top = fmax(top, v[c]);
        }
        for (int c = 0; c < cols; c++) {
            sum += exp(v[c] - top);
        }
        for (int c = 0; c < cols; c++) {
            /* exp is ex2(x log2 e): its error grows with the exponent */
            double want = exp(v[c] - top) / sum;
            double bound = want * (2e-6 + (top - v[c]) * 1.2e-7) + 1e-37;
            EXPECT(fabs(y[r * cols + c] - want) <= bound);
        }
    }
    return NULL;
}

static const char *run_row_softmax(PtxDevice *d, PtxModule *m, int which) {
    (void)which;
    static const struct {
        int cols;
        unsigned block;
    } shapes[] = {{300, 128}, {1, 32}, {45, 96}, {300, 288}, {200, 1024}, {64, 704}};
    for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) {
        const char *wrong = softmax(d, m, shapes[k].cols, shapes[k].block);
        if (wrong) {
            return wrong;
        }
    }
    return NULL;
}

static const char *gemm(PtxDevice *d, PtxModule *m, int M, int N, int K) {
    enum { MOST = 40 * 40 };
    float a[MOST], b[MOST], c[MOST];
    uint32_t s = 9;
    for (int i = 0; i < MOST; i++) {
        a[i] = draw_float(&s);
        b[i] = draw_float(&s);
    }
    struct {
        uint64_t a, b, c;
        int m, n, k;
    } g = {ptx_upload(d, a, sizeof(float) * (size_t)(M * K)),
           ptx_upload(d, b, sizeof(float) * (size_t)(K * N)),
           ptx_malloc(d, sizeof(float) * (size_t)(M * N)),
           M,
           N,
           K};
    LAUNCH(d, ptx_kernel(m, "sgemm"), (unsigned)(N + 15) / 16, (unsigned)(M + 15) / 16, 16, 16, 0,
           &g, 36);
    GET(d, c, g.c, sizeof(float) * (size_t)(M * N));
    for (int i = 0; i < M * N; i++) {
        float sum = 0;
        for (int k = 0; k < K; k++) { /* nvcc fuses, in this order: equal to the last bit */
            sum = fmaf(a[i / N * K + k], b[k * N + i % N], sum);
        }
        EXPECT(c[i] == sum);
    }
    return NULL;
}

static const char *run_sgemm(PtxDevice *d, PtxModule *m, int which) {
    (void)which;
    const char *wrong = gemm(d, m, 20, 35, 18);
    wrong = wrong ? wrong : gemm(d, m, 16, 16, 32);
    return wrong ? wrong : gemm(d, m, 1, 1, 1);
}

static const char *run_histogram(PtxDevice *d, PtxModule *m, int which) {
    (void)which;
    enum { N = 1000 };
    static const unsigned blocks[] = {96, 300, 33};
    uint8_t x[N];
    uint32_t bins[256], want[256] = {0}, s = 4;
    for (int i = 0; i < N; i++) {
        x[i] = (uint8_t)(draw(&s) % 256);
        want[x[i]]++;
    }
    for (int k = 0; k < 3; k++) {
        memset(bins, 0, sizeof bins);
        struct {
            uint64_t x, bins;
            int n;
        } p = {ptx_upload(d, x, sizeof x), ptx_upload(d, bins, sizeof bins), N};
        RUN(d, ptx_kernel(m, "histogram"), 3, blocks[k], &p, 20);
        GET(d, bins, p.bins, sizeof bins);
        EXPECT(!memcmp(bins, want, sizeof want));
        p.n = -1;
        RUN(d, ptx_kernel(m, "histogram"), 3, blocks[k], &p, 20);
        GET(d, bins, p.bins, sizeof bins);
        EXPECT(!memcmp(bins, want, sizeof want));
    }
    return NULL;
}

static const char *run_to_bf16(PtxDevice *d, PtxModule *m, int which) {
    (void)which;
    enum { N = 777 };
    uint32_t s = 3;
    float x[N];
    for (int i = 0; i < N; i++) {
        x[i] = draw_float(&s);
    }
    uint16_t b[N], c[N];
    struct {
        uint64_t x, y, z;
        int n;
    } r = {ptx_upload(d, x, sizeof x), ptx_malloc(d, sizeof b), ptx_malloc(d, sizeof c), N};
    RUN(d, ptx_kernel(m, "to_bf16"), 7, 128, &r, 28);
    GET(d, b, r.y, sizeof b);
    GET(d, c, r.z, sizeof c);
    for (int i = 0; i < N; i++) {
        uint32_t u = (uint32_t)b[i] << 16;
        float back;
        memcpy(&back, &u, 4);
        EXPECT(fabsf(back - x[i]) <= fabsf(x[i]) * 0x1p-8f);
        Half half = (Half)x[i];
        uint16_t hb;
        memcpy(&hb, &half, 2);
        SAME(c[i], hb);
    }
    r.n = -1;
    r.x = r.y = 0;
    RUN(d, ptx_kernel(m, "to_bf16"), 7, 128, &r, 28);
    return NULL;
}

static const char *run_hash64(PtxDevice *d, PtxModule *m, int which) {
    (void)which;
    enum { N = 777 };
    uint32_t s = 3;
    uint64_t h[N], hy[N];
    for (int i = 0; i < N; i++) {
        h[i] = (uint64_t)draw(&s) << 40 | draw(&s);
    }
    struct {
        uint64_t x, y;
        int n;
    } q = {ptx_upload(d, h, sizeof h), ptx_malloc(d, sizeof hy), N};
    RUN(d, ptx_kernel(m, "hash64"), 7, 128, &q, 20);
    GET(d, hy, q.y, sizeof hy);
    for (int i = 0; i < N; i++) {
        uint64_t v = h[i] + 0x9e3779b97f4a7c15ull;
        v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9ull;
        v = (v ^ v >> 27) * 0x94d049bb133111ebull;
        unsigned low = (unsigned)v, rev = 0;
        for (int k = 0; k < 32; k++) {
            rev |= (low >> k & 1) << (31 - k);
        }
        uint64_t want = (v ^ v >> 31) / 1000003 + (uint64_t)__builtin_popcountll(v) +
                        (uint64_t)__builtin_clzll(v) + rev % 17;
        EXPECT(hy[i] == want);
    }
    q.n = -1;
    q.x = q.y = 0;
    RUN(d, ptx_kernel(m, "hash64"), 7, 128, &q, 20);
    return NULL;
}

/* CUDA's own function library, compiled by nvcc: libm is the judge, CUDA's stated ulps the bound.
 */
static const char *run_functions(PtxDevice *d, PtxModule *m, int which) {
    (void)which;
    static const float odd[] = {
        0,         -0.0f, 1,        -1,    0.5f,          0x1p-130f, -0x1p-149f,
        1e-10f,    88.5f, -88.5f,   100,   -104,          1e6f,      -123456.7f,
        1e9f,      3e38f, -2.5e30f, 65536, 2147483648.0f, -3e9f,     INFINITY,
        -INFINITY, NAN,   0.55f,    -9.2f, 12345};
    enum { ODD = sizeof odd / sizeof *odd, N = 200 + ODD };
    /* ulps: those of CUDA's guide; where ex2.approx is inside, its bound too */
    static const double ulps[10] = {7, 1.5, 7, 0, 0, 7, 2, 9, 0, 0};
    float x[N], y[10][N];
    for (int i = 0; i < 200; i++) {
        x[i] = (float)(i - 100) * 0.173f;
    }
    memcpy(x + 200, odd, sizeof odd);
    struct {
        uint64_t x, y;
        int n;
    } p = {ptx_upload(d, x, sizeof x), ptx_malloc(d, sizeof y), N};
    RUN(d, ptx_kernel(m, "functions"), 2, 128, &p, 20);
    GET(d, y, p.y, sizeof y);
    for (int i = 0; i < N; i++) {
        float v = x[i], a = fabsf(v);
        double whole = isnan(v) ? 0 : fmin(fmax(trunc((double)v), -0x1p31), 0x1p31 - 1);
        double want[10] = {exp(v),
                           log(a + 1e-3f),
                           tanh(v),
                           sqrtf(a),
                           v / (1 + a),
                           erf(v),
                           sin(v),
                           pow(a, (double)1.7f),
                           floorf(v) + truncf(v) + rintf(v),
                           (float)(whole + 0.0)};
        for (int k = 0; k < 10; k++) {
            float w = (float)want[k];
            if (isnan(w)   ? !isnan(y[k][i])
                : isinf(w) ? y[k][i] != w
                           : fabs(y[k][i] - want[k]) >
                                 ulps[k] * (nextafterf(fabsf(w), INFINITY) - fabsf(w))) {
                return "a function is beyond its bound";
            }
            EXPECT(isnan(w) || signbit(w) == signbit(y[k][i]));
        }
    }
    p.n = -1;
    p.x = p.y = 0;
    RUN(d, ptx_kernel(m, "functions"), 2, 128, &p, 20);
    return NULL;
}

static const char *run_mma_bf16(PtxDevice *d, PtxModule *m, int which) {
    (void)which;
    uint16_t a[256], b[128];
    float c[128];
    int A[256], B[128];
    uint32_t s = 8;
    for (int i = 0; i < 256; i++) {
        A[i] = (int)(draw(&s) % 15) - 7;
        a[i] = (uint16_t)small_bits(A[i], "bf16");
        B[i % 128] = (int)(draw(&s) % 15) - 7;
        b[i % 128] = (uint16_t)small_bits(B[i % 128], "bf16");
    }
    struct {
        uint64_t a, b, c;
    } p = {ptx_upload(d, a, sizeof a), ptx_upload(d, b, sizeof b), ptx_malloc(d, sizeof c)};
    RUN(d, ptx_kernel(m, "mma_bf16"), 1, 32, &p, sizeof p);
    GET(d, c, p.c, sizeof c);
    for (int i = 0; i < 128; i++) {
        int sum = 0;
        for (int k = 0; k < 16; k++) {
            sum += A[i / 8 * 16 + k] * B[i % 8 * 16 + k];
        }
        EXPECT(c[i] == (float)sum);
    }
    return NULL;
}

static const char *run_scan(PtxDevice *d, PtxModule *m, int which) {
    (void)which;
    uint32_t s = 4;
    int v[100], y[100];
    for (int i = 0; i < 100; i++) {
        v[i] = (int)(draw(&s) % 100) - 50;
    }
    struct {
        uint64_t x, y;
        int n;
    } q = {ptx_upload(d, v, sizeof v), ptx_malloc(d, sizeof y), 100};
    if (!ptx_launch(d, ptx_kernel(m, "scan"), (unsigned[3]){1, 1, 1}, (unsigned[3]){128, 1, 1}, 512,
                    &q, 20)) {
        return ptx_error(d);
    }
    GET(d, y, q.y, sizeof y);
    for (int i = 0, sum = 0; i < 100; i++) {
        sum += v[i];
        SAME(y[i], sum);
    }
    return NULL;
}

static const char *run_arrival(PtxDevice *d, PtxModule *m, int which) {
    (void)which;
    uint64_t first = ~0ull;
    int bad[100] = {0};
    bad[41] = 3;
    bad[77] = 1;
    struct {
        uint64_t first, bad;
        int n;
    } r = {ptx_upload(d, &first, 8), ptx_upload(d, bad, sizeof bad), 100};
    RUN(d, ptx_kernel(m, "arrival"), 4, 32, &r, 20);
    GET(d, &first, r.first, 8);
    EXPECT(first == (41ull << 32 | 3));

    return NULL;
}

static const char *run_groups(PtxDevice *d, PtxModule *m, int which) {
    (void)which;
    int key[32], rank[32];
    for (int i = 0; i < 32; i++) {
        key[i] = i * i % 7;
    }
    struct {
        uint64_t key, rank;
        int n;
    } g = {ptx_upload(d, key, sizeof key), ptx_malloc(d, sizeof rank), 32};
    RUN(d, ptx_kernel(m, "groups"), 1, 32, &g, 20);
    GET(d, rank, g.rank, sizeof rank);
    for (int i = 0; i < 32; i++) {
        int before = 0, all = 0;
        for (int k = 0; k < 32; k++) {
            all += key[k] == key[i];
            before += key[k] == key[i] && k < i;
        }
        SAME(rank[i], before + 100 * all);
    }
    return NULL;
}

#endif
