/* ptx_kernels.h: the sample kernels of tests/ptx/kernels and what they must compute, by plain C. A
 * case gives NULL, or what is wrong; the tests of mutants count which cases say something. */
#ifndef STGCC_TESTS_PTX_KERNELS_H
#define STGCC_TESTS_PTX_KERNELS_H

#include "ptx_twins.h"

/* ---- kernels/warps.ptx ---- */
static const char *run_shuffles(PtxDevice *d, PtxModule *m, int which) {
    (void)which;
    uint32_t a[32], b[32], c[32], out[4][32], in[4][32];
    static const uint32_t cs[4] = {0x1f, 0x081f, 0x1800, 0x0507};
    for (unsigned t = 0; t < 4; t++) {
        for (uint32_t l = 0; l < 32; l++) {
            a[l] = 100 + l;
            b[l] = t ? (l * 7 + t) % 33 : 1; /* 32 counts as 0 */
            c[l] = cs[t];
        }
        struct {
            uint64_t a, b, c, out, in;
        } p = {ptx_upload(d, a, 128), ptx_upload(d, b, 128), ptx_upload(d, c, 128),
               ptx_malloc(d, 512), ptx_malloc(d, 512)};
        RUN(d, ptx_kernel(m, "shuffles"), 1, 32, &p, sizeof p);
        GET(d, out, p.out, 512);
        GET(d, in, p.in, 512);
        for (int l = 0; l < 32; l++) {
            /* the manual's words: segments, and the bound within one */
            int mask = (int)(cs[t] >> 8 & 31), clamp = (int)(cs[t] & 31), n = (int)(b[l] & 31);
            int low = l & mask, high = low | (clamp & ~mask);
            int from[4] = {l - n, l + n, l ^ n, low | (n & ~mask)};
            for (int k = 0; k < 4; k++) {
                bool good = k == 0 ? from[0] >= high : from[k] <= high;
                SAME(in[k][l], good);
                SAME(out[k][l], 100 + (good ? from[k] : l));
            }
        }
    }
    return NULL;
}

static const char *run_votes(PtxDevice *d, PtxModule *m, int which) {
    (void)which;
    uint32_t a[32], out[10][32], odd = 0;
    for (uint32_t l = 0; l < 32; l++) {
        a[l] = l * l % 13 + (l & 1 ? 0 : 10 + (l * l % 13 & 1));
        odd |= (a[l] & 1) << l;
    }
    struct {
        uint64_t a, out;
    } p = {ptx_upload(d, a, 128), ptx_malloc(d, sizeof out)};
    RUN(d, ptx_kernel(m, "votes"), 1, 32, &p, sizeof p);
    GET(d, out, p.out, sizeof out);
    for (uint32_t l = 0; l < 32; l++) {
        uint32_t with = a[l] & 1 ? odd : ~odd, above = 0, same = 0, wide = 0;
        for (uint32_t k = 0; k < 32; k++) {
            above |= (uint32_t)(a[k] > 9 && (with >> k & 1)) << k;
            same |= (uint32_t)(a[k] == a[l]) << k;
        }
        wide = same & with;
        SAME(out[0][l], odd);
        SAME(out[1][l], above == with);
        SAME(out[2][l], above != 0);
        SAME(out[3][l], above == 0 || above == with);
        SAME(out[4][l], same);
        SAME(out[5][l], wide);
        SAME(out[6][l], with); /* all members are odd, or none is */
        SAME(out[7][l], 1);
        SAME(out[8][l], wide == with ? with : 0);
        EXPECT(out[9][l] >> l & 1);
    }
    return NULL;
}

static const char *run_reductions(PtxDevice *d, PtxModule *m, int which) {
    (void)which;
    uint32_t a[32];
    for (uint32_t l = 0; l < 32; l++) {
        a[l] = l * l % 13 + (l & 1 ? 0 : 10 + (l * l % 13 & 1));
    }
    /* over 20 lanes and over 12 */
    uint32_t r[9][32];
    a[3] = 0xfffffff0;
    a[25] = 0x80000001;
    struct {
        uint64_t a, out;
    } p = {ptx_upload(d, a, 128), ptx_malloc(d, sizeof r)};
    RUN(d, ptx_kernel(m, "reductions"), 1, 32, &p, sizeof p);
    GET(d, r, p.out, sizeof r);
    for (int l = 0; l < 32; l++) {
        int lo = l < 20 ? 0 : 20, hi = l < 20 ? 20 : 32;
        uint32_t w[9] = {0, 0, ~0u, INT32_MAX, 0, (uint32_t)INT32_MIN, ~0u, 0, 0};
        for (int k = lo; k < hi; k++) {
            int32_t s = (int32_t)a[k];
            w[0] += a[k];
            w[1] += a[k];
            w[2] = a[k] < w[2] ? a[k] : w[2];
            w[3] = s < (int32_t)w[3] ? a[k] : w[3];
            w[4] = a[k] > w[4] ? a[k] : w[4];
            w[5] = s > (int32_t)w[5] ? a[k] : w[5];
            w[6] &= a[k];
            w[7] |= a[k];
            w[8] ^= a[k];
        }
        for (int k = 0; k < 9; k++) {
            SAME(r[k][l], w[k]);
        }
    }
    return NULL;
}

/* Integer matrices, exact in any order, through fragments as the manual draws them: groupID is
 * lane / 4, threadID_in_group lane % 4. */
static const char *run_mma(PtxDevice *d, PtxModule *m, int which) {
    static const struct {
        const char *kernel, *type;
        int k, na, nb;
    } shapes[] = {{"mma_m16n8k4_tf32", "tf32", 4, 2, 1}, {"mma_m16n8k8_tf32", "tf32", 8, 4, 2},
                  {"mma_m16n8k8_bf16", "bf16", 8, 2, 1}, {"mma_m16n8k16_bf16", "bf16", 16, 4, 2},
                  {"mma_m16n8k8_f16", "f16", 8, 2, 1},   {"mma_m16n8k16_f16", "f16", 16, 4, 2}};
    const int s = which;
    int K = shapes[s].k, A[16][16], B[16][8], C[16][8];
    uint32_t a[4][32] = {{0}}, b[2][32] = {{0}}, seed = 5;
    float c[4][32], out[4][32];
    for (int i = 0; i < 16 * 16; i++) {
        A[i / 16][i % 16] = (int)(draw(&seed) % 31) - 15;
        B[i % 16][i / 16 % 8] = (int)(draw(&seed) % 31) - 15;
        C[i / 16][i % 8] = (int)(draw(&seed) % 1000) - 500;
    }
    bool wide = !strcmp(shapes[s].type, "tf32");
    for (int l = 0; l < 32; l++) {
        int group = l / 4, in_group = l % 4;
        for (int i = 0; i < (wide ? 1 : 2) * shapes[s].na; i++) {
            /* 32-bit elements: row = group (a0, a2) or group + 8 (a1, a3),
               col = in_group (a0, a1) or in_group + 4.
               16-bit: row = group for i in {0,1,4,5}, else group + 8;
               col = in_group * 2 + (i & 1), + 8 from i = 4 on. */
            int row = wide ? group + 8 * (i % 2) : group + ((i / 2) % 2 ? 8 : 0);
            int col = wide ? in_group + 4 * (i / 2) : in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
            a[wide ? i : i / 2][l] |= small_bits(A[row][col], shapes[s].type)
                                      << (wide || !(i & 1) ? 0 : 16);
        }
        for (int i = 0; i < (wide ? 1 : 2) * shapes[s].nb; i++) {
            int row = wide ? in_group + 4 * i : in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0);
            b[wide ? i : i / 2][l] |= small_bits(B[row][group], shapes[s].type)
                                      << (wide || !(i & 1) ? 0 : 16);
        }
        for (int i = 0; i < 4; i++) {
            c[i][l] = (float)C[group + (i >= 2 ? 8 : 0)][in_group * 2 + (i & 1)];
        }
    }
    struct {
        uint64_t a, b, c, d;
    } p = {ptx_upload(d, a, sizeof a), ptx_upload(d, b, sizeof b), ptx_upload(d, c, sizeof c),
           ptx_malloc(d, sizeof out)};
    RUN(d, ptx_kernel(m, shapes[s].kernel), 1, 32, &p, sizeof p);
    GET(d, out, p.d, sizeof out);
    for (int l = 0; l < 32; l++) {
        for (int i = 0; i < 4; i++) {
            int row = l / 4 + (i >= 2 ? 8 : 0), col = l % 4 * 2 + (i & 1), sum = C[row][col];
            for (int k = 0; k < K; k++) {
                sum += A[row][k] * B[k][col];
            }
            EXPECT(out[i][l] == (float)sum);
        }
    }
    PtxCounts n;
    ptx_counts(d, &n);
    SAME(n.mma_flops, 2 * 16 * 8 * K);
    return NULL;
}

static const char *run_matrices(PtxDevice *d, PtxModule *m, int which) {
    (void)which;
    uint16_t rows[32][8];
    uint32_t out[11][32];
    for (int i = 0; i < 256; i++) {
        rows[i / 8][i % 8] = (uint16_t)(1000 + i);
    }
    struct {
        uint64_t a, out;
    } p = {ptx_upload(d, rows, sizeof rows), ptx_malloc(d, sizeof out)};
    RUN(d, ptx_kernel(m, "matrices"), 1, 32, &p, sizeof p);
    GET(d, out, p.out, sizeof out);
    static const int matrix[11] = {0, 0, 1, 0, 1, 2, 3, 0, 1, 2, 3};
    for (int k = 0; k < 11; k++) {
        for (int l = 0; l < 32; l++) {
            int r = 8 * matrix[k], i = l / 4, j = 2 * (l % 4);
            uint32_t plain = rows[r + i][j] | (uint32_t)rows[r + i][j + 1] << 16;
            uint32_t trans = rows[r + j][i] | (uint32_t)rows[r + j + 1][i] << 16;
            SAME(out[k][l], k < 7 ? plain : trans);
        }
    }
    return NULL;
}

/* ---- kernels/memory.ptx ---- */
/* What one atomic leaves of `old`; the operations in the order of the kernels. */
static uint64_t atomic_step(int op, bool wide, uint64_t old, uint64_t v) {
    static const int of_wide[9] = {0, 2, 3, 4, 5, 6, 7, 8, 9};
    int64_t so = wide ? (int64_t)old : (int32_t)old, sv = wide ? (int64_t)v : (int32_t)v;
    uint64_t mask = wide ? ~0ull : 0xffffffff;
    switch (wide ? of_wide[op] : op) {
    case 0:
    case 1:
        return (old + v) & mask;
    case 2:
        return v < old ? v : old;
    case 3:
        return sv < so ? v : old;
    case 4:
        return v > old ? v : old;
    case 5:
        return sv > so ? v : old;
    case 6:
        return old & v;
    case 7:
        return old | v;
    case 8:
        return old ^ v;
    case 9:
        return v;
    case 10:
        return old >= v ? 0 : old + 1;
    default:
        return old == 0 || old > v ? v : old - 1;
    }
}

/* Whether the lanes' old values are those of 32 steps in some order, from first to last. */
static bool atomic_chain(int op, bool wide, uint64_t first, uint64_t last, const uint64_t *a,
                         const uint64_t *old) {
    uint32_t left = ~0u;
    while (left) {
        int next = -1;
        for (int l = 0; l < 32; l++) {
            if (!(left >> l & 1) || old[l] != first) {
                continue;
            }
            if (next < 0 || atomic_step(op, wide, first, a[l]) == first) {
                next = l; /* one that changes nothing may come at once */
            }
        }
        if (next < 0) {
            return false;
        }
        first = atomic_step(op, wide, first, a[next]);
        left &= ~(1u << next);
    }
    return first == last;
}

/* Both kernels of a width: with old values, and red. exch has no red. */
static const char *atomics(PtxDevice *d, PtxModule *m, bool wide, bool equal) {
    int ops = wide ? 9 : 12, exch = wide ? 8 : 9;
    size_t size = wide ? 8 : 4;
    uint64_t a[32], first[12], last[12], old[12][32];
    uint8_t raw[12 * 32 * 8];
    for (uint32_t l = 0; l < 32; l++) {
        a[l] = equal ? 10 : (l * 2654435761u) ^ 0x80000000u;
        a[l] |= wide ? a[l] << 32 : 0;
        memcpy(raw + size * l, &a[l], size);
    }
    struct {
        uint64_t a, cells, old;
    } p = {ptx_upload(d, raw, 32 * size), 0, ptx_malloc(d, 12 * 32 * size)};
    for (int k = 0; k < ops; k++) {
        first[k] = equal ? (uint64_t)(3 + k) : 0x3f000000u + (uint64_t)k;
        first[k] |= wide ? first[k] << 32 : 0;
        memcpy(raw + size * (size_t)k, &first[k], size);
    }
    p.cells = ptx_upload(d, raw, 12 * size);
    RUN(d, ptx_kernel(m, wide ? "atoms64" : "atoms"), 1, 32, &p, 24);
    memset(last, 0, sizeof last);
    memset(old, 0, sizeof old);
    GET(d, raw, p.cells, (size_t)ops * size);
    for (int k = 0; k < ops; k++) {
        memcpy(&last[k], raw + size * (size_t)k, size);
    }
    GET(d, raw, p.old, (size_t)ops * 32 * size);
    for (int k = 0; k < ops; k++) {
        for (int l = 0; l < 32; l++) {
            memcpy(&old[k][l], raw + size * (size_t)(32 * k + l), size);
        }
        EXPECT(atomic_chain(k, wide, first[k], last[k], a, old[k]));
    }
    /* red: the same ends where no order can change them */
    uint64_t cells[12] = {0}, now;
    for (int k = 0, at = 0; k < ops; k++) {
        if (k != exch) {
            memcpy((uint8_t *)cells + size * (size_t)at++, &first[k], size);
        }
    }
    ptx_write(d, p.cells, cells, 12 * size);
    RUN(d, ptx_kernel(m, wide ? "reds64" : "reds"), 1, 32, &p, 16);
    GET(d, cells, p.cells, 12 * size);
    for (int k = 0, at = 0; k < ops; k++) {
        if (k == exch) {
            continue;
        }
        now = 0;
        memcpy(&now, (uint8_t *)cells + size * (size_t)at++, size);
        EXPECT((k > exch && !equal) || now == last[k]);
    }
    return NULL;
}

static const char *run_atoms(PtxDevice *d, PtxModule *m, int wide) {
    const char *wrong = atomics(d, m, wide, false);
    return wrong ? wrong : atomics(d, m, wide, true);
}

static const char *run_sums(PtxDevice *d, PtxModule *m, int which) {
    (void)which;
    float a[96], sum = 0, most = 0;
    for (int i = 0; i < 96; i++) {
        a[i] = (float)((i * 37 + 5) % 101); /* integers: any order is exact */
        sum += a[i];
        most = a[i] > most ? a[i] : most;
    }
    char out[48] = {0};
    memset(out + 36, 0xee, 12);
    struct {
        uint64_t a, out;
    } p = {ptx_upload(d, a, sizeof a), ptx_upload(d, out, sizeof out)};
    RUN(d, ptx_kernel(m, "sums"), 1, 96, &p, sizeof p);
    GET(d, out, p.out, sizeof out);
    float f[12];
    double g[3];
    memcpy(f, out, 48);
    memcpy(g, out, 24);
    EXPECT(f[0] == sum && f[1] == sum && g[1] == sum && g[2] == sum);
    EXPECT(f[6] == most && f[7] == sum && f[8] == sum && f[9] == 0 && f[10] == 0 && f[11] == 0);
    PtxCounts n;
    ptx_counts(d, &n);
    SAME(n.barriers, 2);

    return NULL;
}

static const char *run_spaces(PtxDevice *d, PtxModule *m, int which) {
    (void)which;
    unsigned char bytes[4] = {0x90, 0, 0xfe, 0xff}, got[64];
    struct {
        uint64_t a, out;
        int32_t pair[2];
    } q = {ptx_upload(d, bytes, 4), ptx_malloc(d, 64), {11, 22}};
    RUN(d, ptx_kernel(m, "spaces"), 1, 1, &q, sizeof q);
    ptx_read(d, got, q.out, 64, false);
    int32_t i[16];
    int64_t l;
    double h;
    memcpy(i, got, 64);
    memcpy(&l, got + 8, 8);
    memcpy(&h, got + 16, 8);
    EXPECT(i[0] == -30 && l == -30 && h == -2.5 && got[24] == 'o');
    EXPECT(i[7] == -112 && i[8] == 0x90 && i[9] == -2 && got[40] == 0xfe && got[41] == 0xff);
    EXPECT(i[11] == 22 && i[12] == 22 && i[13] == 22 && i[14] == 7);
    return NULL;
}

static const char *run_copies(PtxDevice *d, PtxModule *m, int which) {
    (void)which;
    float a[256], out[128];
    for (int i = 0; i < 256; i++) {
        a[i] = (float)i * 0.1f;
    }
    struct {
        uint64_t a, out;
    } p = {ptx_upload(d, a, sizeof a), ptx_malloc(d, sizeof out)};
    if (!ptx_launch(d, ptx_kernel(m, "copies"), (unsigned[3]){1, 1, 1}, (unsigned[3]){32, 1, 1},
                    1024, &p, sizeof p)) {
        return ptx_error(d);
    }
    GET(d, out, p.out, sizeof out);
    for (int i = 0; i < 128; i++) {
        EXPECT(out[i] == a[i] + (i % 4 < 2 ? a[128 + i] : 0));
    }
    return NULL;
}

/* ---- kernels/vecadd.ptx ---- */
static const char *run_vecadd(PtxDevice *d, PtxModule *m, int which) {
    (void)which;
    enum { N = 1000 };
    float a[N], b[N], c[N];
    for (int i = 0; i < N; i++) {
        a[i] = (float)i;
        b[i] = 0.5f * (float)i;
    }
    struct {
        uint64_t a, b, c;
        uint32_t n;
    } p = {ptx_upload(d, a, sizeof a), ptx_upload(d, b, sizeof b), ptx_malloc(d, sizeof c), N};
    RUN(d, ptx_kernel(m, "vecadd"), 4, 256, &p, 28);
    GET(d, c, p.c, sizeof c);
    for (int i = 0; i < N; i++) {
        EXPECT(c[i] == a[i] + b[i]);
    }
    PtxCounts n;
    ptx_counts(d, &n);
    SAME(n.other_flops, N);
    SAME(n.global_read, 8 * N);
    SAME(n.global_written, 4 * N);
    p.n = (uint32_t)-1;
    p.a = p.b = p.c = 0;
    RUN(d, ptx_kernel(m, "vecadd"), 4, 256, &p, 28);
    return NULL;
}

typedef struct PtxCase {
    const char *file, *kernels; /* " k1 k2 " */
    const char *(*run)(PtxDevice *d, PtxModule *m, int which);
    int which;
} PtxCase;
static const PtxCase ptx_cases[] = {
    {"kernels/warps.ptx", " shuffles ", run_shuffles, 0},
    {"kernels/warps.ptx", " votes ", run_votes, 0},
    {"kernels/warps.ptx", " reductions ", run_reductions, 0},
    {"kernels/warps.ptx", " mma_m16n8k4_tf32 ", run_mma, 0},
    {"kernels/warps.ptx", " mma_m16n8k8_tf32 ", run_mma, 1},
    {"kernels/warps.ptx", " mma_m16n8k8_bf16 ", run_mma, 2},
    {"kernels/warps.ptx", " mma_m16n8k16_bf16 ", run_mma, 3},
    {"kernels/warps.ptx", " mma_m16n8k8_f16 ", run_mma, 4},
    {"kernels/warps.ptx", " mma_m16n8k16_f16 ", run_mma, 5},
    {"kernels/warps.ptx", " matrices ", run_matrices, 0},
    {"kernels/memory.ptx", " atoms reds ", run_atoms, 0},
    {"kernels/memory.ptx", " atoms64 reds64 ", run_atoms, 1},
    {"kernels/memory.ptx", " sums ", run_sums, 0},
    {"kernels/memory.ptx", " spaces ", run_spaces, 0},
    {"kernels/memory.ptx", " copies ", run_copies, 0},
    {"kernels/twins.ptx", " saxpy ", run_saxpy, 0},
    {"kernels/twins.ptx", " row_softmax ", run_row_softmax, 0},
    {"kernels/twins.ptx", " sgemm ", run_sgemm, 0},
    {"kernels/twins.ptx", " histogram ", run_histogram, 0},
    {"kernels/twins.ptx", " to_bf16 ", run_to_bf16, 0},
    {"kernels/twins.ptx", " hash64 ", run_hash64, 0},
    {"kernels/twins.ptx", " functions ", run_functions, 0},
    {"kernels/twins.ptx", " mma_bf16 ", run_mma_bf16, 0},
    {"kernels/twins.ptx", " scan ", run_scan, 0},
    {"kernels/twins.ptx", " arrival ", run_arrival, 0},
    {"kernels/twins.ptx", " groups ", run_groups, 0},
    {"kernels/vecadd.ptx", " vecadd ", run_vecadd, 0},
};
enum { PTX_CASES = sizeof ptx_cases / sizeof *ptx_cases };

#endif
