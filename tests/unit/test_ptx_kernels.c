/* Whole kernels through the PTX emulator against plain C, in several orders of threads, with copies
 * early and late and approximations at either end of their bounds. The kernels of nvcc are twins of
 * what LLVM makes of such code: the emulator must not be tuned to one of the two compilers. */
#include "ptx_help.h"

#include <unistd.h>

/* Every way to run that must give the same. */
static const struct {
    uint64_t seed;
    PtxApprox approx;
    bool late;
} ways[] = {{0, PTX_APPROX_EXACT, false},
            {0, PTX_APPROX_HIGH, true},
            {1, PTX_APPROX_LOW, false},
            {2, PTX_APPROX_RANDOM, true},
            {3, PTX_APPROX_EXACT, true}};
enum { WAYS = sizeof ways / sizeof *ways };

static PtxDevice *device_for(int way) {
    PtxOptions o = ptx_options(80);
    o.seed = ways[way].seed;
    o.approx = ways[way].approx;
    o.async_late = ways[way].late;
    return ptx_device_new(&o);
}

static uint32_t draw(uint32_t *s) {
    *s = *s * 1664525u + 1013904223u;
    return *s >> 8;
}

/* In [-2, 2). */
static float draw_float(uint32_t *s) {
    return (float)draw(s) * 0x1p-22f - 2;
}

/* ---- hand-written kernels: kernels/warps.ptx, kernels/memory.ptx ---- */
static PtxModule *load_file(PtxDevice *d, const char *name) {
    char *text = ptx_file(name);
    PtxModule *m = ptx_must_load(d, text);
    free(text);
    return m;
}

static void read_back(PtxDevice *d, void *to, uint64_t from, size_t bytes) {
    if (!ptx_read(d, to, from, bytes, true)) {
        fail_msg("%s", ptx_error(d));
    }
}

static void shuffles(void **state) {
    (void)state;
    uint32_t a[32], b[32], c[32], out[4][32], in[4][32];
    static const uint32_t cs[4] = {0x1f, 0x081f, 0x1800, 0x0507};
    for (int way = 0; way < WAYS; way++) {
        PtxDevice *d = device_for(way);
        PtxModule *m = load_file(d, "kernels/warps.ptx");
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
            ptx_must_launch(d, ptx_kernel(m, "shuffles"), 1, 32, &p, sizeof p);
            read_back(d, out, p.out, 512);
            read_back(d, in, p.in, 512);
            for (int l = 0; l < 32; l++) {
                /* the manual's words: segments, and the bound within one */
                int mask = (int)(cs[t] >> 8 & 31), clamp = (int)(cs[t] & 31), n = (int)(b[l] & 31);
                int low = l & mask, high = low | (clamp & ~mask);
                int from[4] = {l - n, l + n, l ^ n, low | (n & ~mask)};
                for (int k = 0; k < 4; k++) {
                    bool good = k == 0 ? from[0] >= high : from[k] <= high;
                    assert_int_equal(in[k][l], good);
                    assert_int_equal(out[k][l], 100 + (good ? from[k] : l));
                }
            }
        }
        ptx_device_free(d);
    }
}

static void votes_and_matches(void **state) {
    (void)state;
    for (int way = 0; way < WAYS; way++) {
        PtxDevice *d = device_for(way);
        PtxModule *m = load_file(d, "kernels/warps.ptx");
        uint32_t a[32], out[10][32], odd = 0;
        for (uint32_t l = 0; l < 32; l++) {
            a[l] = l * l % 13 + (l & 1 ? 0 : 10 + (l * l % 13 & 1));
            odd |= (a[l] & 1) << l;
        }
        struct {
            uint64_t a, out;
        } p = {ptx_upload(d, a, 128), ptx_malloc(d, sizeof out)};
        ptx_must_launch(d, ptx_kernel(m, "votes"), 1, 32, &p, sizeof p);
        read_back(d, out, p.out, sizeof out);
        for (uint32_t l = 0; l < 32; l++) {
            uint32_t with = a[l] & 1 ? odd : ~odd, above = 0, same = 0, wide = 0;
            for (uint32_t k = 0; k < 32; k++) {
                above |= (uint32_t)(a[k] > 9 && (with >> k & 1)) << k;
                same |= (uint32_t)(a[k] == a[l]) << k;
            }
            wide = same & with;
            assert_int_equal(out[0][l], odd);
            assert_int_equal(out[1][l], above == with);
            assert_int_equal(out[2][l], above != 0);
            assert_int_equal(out[3][l], above == 0 || above == with);
            assert_int_equal(out[4][l], same);
            assert_int_equal(out[5][l], wide);
            assert_int_equal(out[6][l], with); /* all members are odd, or none is */
            assert_int_equal(out[7][l], 1);
            assert_int_equal(out[8][l], wide == with ? with : 0);
            assert_true(out[9][l] >> l & 1);
        }
        /* over 20 lanes and over 12 */
        uint32_t r[9][32];
        p.out = ptx_malloc(d, sizeof r);
        a[3] = 0xfffffff0;
        a[25] = 0x80000001;
        ptx_write(d, p.a, a, sizeof a);
        ptx_must_launch(d, ptx_kernel(m, "reductions"), 1, 32, &p, sizeof p);
        read_back(d, r, p.out, sizeof r);
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
                assert_int_equal(r[k][l], w[k]);
            }
        }
        ptx_device_free(d);
    }
}

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

/* Integer matrices, exact in any order, through fragments as the manual draws them: groupID is
 * lane / 4, threadID_in_group lane % 4. */
static void mma_layouts(void **state) {
    (void)state;
    static const struct {
        const char *kernel, *type;
        int k, na, nb;
    } shapes[] = {{"mma_m16n8k4_tf32", "tf32", 4, 2, 1}, {"mma_m16n8k8_tf32", "tf32", 8, 4, 2},
                  {"mma_m16n8k8_bf16", "bf16", 8, 2, 1}, {"mma_m16n8k16_bf16", "bf16", 16, 4, 2},
                  {"mma_m16n8k8_f16", "f16", 8, 2, 1},   {"mma_m16n8k16_f16", "f16", 16, 4, 2}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        PtxDevice *d = device_for((int)s % WAYS);
        PtxModule *m = load_file(d, "kernels/warps.ptx");
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
        ptx_must_launch(d, ptx_kernel(m, shapes[s].kernel), 1, 32, &p, sizeof p);
        read_back(d, out, p.d, sizeof out);
        for (int l = 0; l < 32; l++) {
            for (int i = 0; i < 4; i++) {
                int row = l / 4 + (i >= 2 ? 8 : 0), col = l % 4 * 2 + (i & 1), sum = C[row][col];
                for (int k = 0; k < K; k++) {
                    sum += A[row][k] * B[k][col];
                }
                assert_true(out[i][l] == (float)sum);
            }
        }
        PtxCounts n;
        ptx_counts(d, &n);
        assert_int_equal(n.mma_flops, 2 * 16 * 8 * K);
        ptx_device_free(d);
    }
}

static void matrices(void **state) {
    (void)state;
    PtxDevice *d = device_for(2);
    PtxModule *m = load_file(d, "kernels/warps.ptx");
    uint16_t rows[32][8];
    uint32_t out[11][32];
    for (int i = 0; i < 256; i++) {
        rows[i / 8][i % 8] = (uint16_t)(1000 + i);
    }
    struct {
        uint64_t a, out;
    } p = {ptx_upload(d, rows, sizeof rows), ptx_malloc(d, sizeof out)};
    ptx_must_launch(d, ptx_kernel(m, "matrices"), 1, 32, &p, sizeof p);
    read_back(d, out, p.out, sizeof out);
    static const int matrix[11] = {0, 0, 1, 0, 1, 2, 3, 0, 1, 2, 3};
    for (int k = 0; k < 11; k++) {
        for (int l = 0; l < 32; l++) {
            int r = 8 * matrix[k], i = l / 4, j = 2 * (l % 4);
            uint32_t plain = rows[r + i][j] | (uint32_t)rows[r + i][j + 1] << 16;
            uint32_t trans = rows[r + j][i] | (uint32_t)rows[r + j + 1][i] << 16;
            assert_int_equal(out[k][l], k < 7 ? plain : trans);
        }
    }
    ptx_device_free(d);
}

static void atomics(void **state) {
    (void)state;
    for (int way = 0; way < WAYS; way++) {
        PtxDevice *d = device_for(way);
        PtxModule *m = load_file(d, "kernels/memory.ptx");
        uint32_t a[32], init[12], cells[12], old[12][32];
        uint64_t a8[32], init8[9], cells8[9];
        for (uint32_t l = 0; l < 32; l++) {
            a[l] = (l * 2654435761u) ^ 0x80000000u;
            a8[l] = (uint64_t)a[l] << 32 | l;
        }
        for (int k = 0; k < 12; k++) {
            init[k] = 0x7f000000u + (uint32_t)k;
            init8[k % 9] = 0x7f00000000000000ull + (uint64_t)k;
        }
        uint32_t add = init[0], and_ = init[6], or_ = init[7], xor_ = init[8], umin = init[2],
                 umax = init[4];
        int32_t smin = (int32_t)init[3], smax = (int32_t)init[5];
        for (int l = 0; l < 32; l++) {
            add += a[l];
            and_ &= a[l];
            or_ |= a[l];
            xor_ ^= a[l];
            umin = a[l] < umin ? a[l] : umin;
            umax = a[l] > umax ? a[l] : umax;
            smin = (int32_t)a[l] < smin ? (int32_t)a[l] : smin;
            smax = (int32_t)a[l] > smax ? (int32_t)a[l] : smax;
        }
        struct {
            uint64_t a, cells, old;
        } p = {ptx_upload(d, a, sizeof a), ptx_upload(d, init, sizeof init),
               ptx_malloc(d, sizeof old)};
        ptx_must_launch(d, ptx_kernel(m, "atoms"), 1, 32, &p, 24);
        read_back(d, cells, p.cells, sizeof cells);
        read_back(d, old, p.old, sizeof old);
        const uint32_t want[9] = {add,  add + 1, umin, (uint32_t)smin, umax, (uint32_t)smax,
                                  and_, or_,     xor_};
        for (int k = 0; k < 9; k++) {
            assert_int_equal(cells[k], want[k]);
        }
        /* exch: the values move on by one; what one lane put another got. */
        uint64_t put = cells[9], got = 0;
        for (int l = 0; l < 32; l++) {
            put += old[9][l];
            got += a[l];
        }
        assert_true(put == got + init[9]);
        for (int l = 0; l < 32; l++) { /* the order of lanes is open, one step of each is not */
            assert_true(old[10][l] <= init[10] + 32);
        }
        ptx_write(d, p.cells, init, sizeof init);
        ptx_must_launch(d, ptx_kernel(m, "reds"), 1, 32, &p, 16);
        read_back(d, cells, p.cells, sizeof cells);
        assert_memory_equal(cells, want, 36);
        /* inc and dec wrap at the operand: with equal operands the end is known. */
        for (int l = 0; l < 32; l++) {
            a[l] = 10;
        }
        init[10] = 7;
        init[11] = 3;
        ptx_write(d, p.a, a, sizeof a);
        ptx_write(d, p.cells, init, sizeof init);
        ptx_must_launch(d, ptx_kernel(m, "atoms"), 1, 32, &p, 24);
        read_back(d, cells, p.cells, sizeof cells);
        assert_int_equal(cells[10], (7 + 32) % 11);
        assert_int_equal(cells[11], ((3 - 32) % 11 + 11) % 11);

        p.a = ptx_upload(d, a8, sizeof a8);
        p.cells = ptx_upload(d, init8, sizeof init8);
        p.old = ptx_malloc(d, sizeof(uint64_t) * 9 * 32);
        ptx_must_launch(d, ptx_kernel(m, "atoms64"), 1, 32, &p, 24);
        read_back(d, cells8, p.cells, sizeof cells8);
        uint64_t w[8] = {init8[0], init8[1], init8[2], init8[3],
                         init8[4], init8[5], init8[6], init8[7]};
        for (int l = 0; l < 32; l++) {
            w[0] += a8[l];
            w[1] = a8[l] < w[1] ? a8[l] : w[1];
            w[2] = (int64_t)a8[l] < (int64_t)w[2] ? a8[l] : w[2];
            w[3] = a8[l] > w[3] ? a8[l] : w[3];
            w[4] = (int64_t)a8[l] > (int64_t)w[4] ? a8[l] : w[4];
            w[5] &= a8[l];
            w[6] |= a8[l];
            w[7] ^= a8[l];
        }
        assert_memory_equal(cells8, w, sizeof w);
        ptx_write(d, p.cells, init8, sizeof init8);
        ptx_must_launch(d, ptx_kernel(m, "reds64"), 1, 32, &p, 16);
        read_back(d, cells8, p.cells, sizeof cells8);
        assert_memory_equal(cells8, w, sizeof w);
        ptx_device_free(d);
    }
}

static void sums_and_spaces(void **state) {
    (void)state;
    for (int way = 0; way < WAYS; way++) {
        PtxDevice *d = device_for(way);
        PtxModule *m = load_file(d, "kernels/memory.ptx");
        float a[96], sum = 0, most = 0;
        for (int i = 0; i < 96; i++) {
            a[i] = (float)(i * 37 % 101); /* integers: any order is exact */
            sum += a[i];
            most = a[i] > most ? a[i] : most;
        }
        char out[48] = {0};
        struct {
            uint64_t a, out;
        } p = {ptx_upload(d, a, sizeof a), ptx_upload(d, out, sizeof out)};
        ptx_must_launch(d, ptx_kernel(m, "sums"), 1, 96, &p, sizeof p);
        read_back(d, out, p.out, sizeof out);
        float f[12];
        double g[3];
        memcpy(f, out, 48);
        memcpy(g, out, 24);
        assert_true(f[0] == sum && f[1] == sum && g[1] == sum && g[2] == sum);
        assert_true(f[6] == most && f[7] == sum && f[8] == sum);
        PtxCounts n;
        ptx_counts(d, &n);
        assert_int_equal(n.barriers, 2);

        unsigned char bytes[4] = {0x90, 0, 0xfe, 0xff}, got[64];
        struct {
            uint64_t a, out;
            int32_t pair[2];
        } q = {ptx_upload(d, bytes, 4), ptx_malloc(d, 64), {11, 22}};
        ptx_must_launch(d, ptx_kernel(m, "spaces"), 1, 1, &q, sizeof q);
        ptx_read(d, got, q.out, 64, false);
        int32_t i[16];
        int64_t l;
        double h;
        memcpy(i, got, 64);
        memcpy(&l, got + 8, 8);
        memcpy(&h, got + 16, 8);
        assert_true(i[0] == -30 && l == -30 && h == -2.5 && got[24] == 'o');
        assert_true(i[7] == -112 && i[8] == 0x90 && i[9] == -2 && got[40] == 0xfe &&
                    got[41] == 0xff);
        assert_true(i[11] == 22 && i[12] == 22 && i[13] == 22 && i[14] == 7);
        ptx_device_free(d);
    }
}

static void copies(void **state) {
    (void)state;
    for (int way = 0; way < WAYS; way++) {
        PtxDevice *d = device_for(way);
        PtxModule *m = load_file(d, "kernels/memory.ptx");
        float a[256], out[128];
        for (int i = 0; i < 256; i++) {
            a[i] = (float)i;
        }
        struct {
            uint64_t a, out;
        } p = {ptx_upload(d, a, sizeof a), ptx_malloc(d, sizeof out)};
        if (!ptx_launch(d, ptx_kernel(m, "copies"), (unsigned[3]){1, 1, 1}, (unsigned[3]){32, 1, 1},
                        1024, &p, sizeof p)) {
            fail_msg("%s", ptx_error(d));
        }
        read_back(d, out, p.out, sizeof out);
        for (int i = 0; i < 128; i++) {
            assert_true(out[i] == a[i] + (i % 4 < 2 ? a[128 + i] : 0));
        }
        ptx_device_free(d);
    }
}

/* ---- kernels/twins.cu, as nvcc compiled it once, and as the nvcc found here does ---- */
__extension__ typedef _Float16 Half;

typedef struct Twins {
    PtxDevice *d;
    PtxModule *m;
} Twins;

static void twin_elements(const Twins *t) {
    enum { N = 777 };
    float x[N], y[N], z[N];
    uint64_t h[N], hy[N];
    uint32_t s = 3;
    for (int i = 0; i < N; i++) {
        x[i] = draw_float(&s);
        y[i] = draw_float(&s);
        h[i] = (uint64_t)draw(&s) << 40 | draw(&s);
    }
    struct {
        int n;
        float a;
        uint64_t x, y;
    } p = {N, 1.25f, ptx_upload(t->d, x, sizeof x), ptx_upload(t->d, y, sizeof y)};
    ptx_must_launch(t->d, ptx_kernel(t->m, "saxpy"), 7, 128, &p, sizeof p);
    read_back(t->d, z, p.y, sizeof z);
    for (int i = 0; i < N; i++) {
        assert_true(z[i] == fmaf(1.25f, x[i], y[i]));
    }
    struct {
        uint64_t x, y;
        int n;
    } q = {ptx_upload(t->d, h, sizeof h), ptx_malloc(t->d, sizeof hy), N};
    ptx_must_launch(t->d, ptx_kernel(t->m, "hash64"), 7, 128, &q, 20);
    read_back(t->d, hy, q.y, sizeof hy);
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
        assert_true(hy[i] == want);
    }
    uint16_t b[N], c[N];
    struct {
        uint64_t x, y, z;
        int n;
    } r = {p.x, ptx_malloc(t->d, sizeof b), ptx_malloc(t->d, sizeof c), N};
    ptx_must_launch(t->d, ptx_kernel(t->m, "to_bf16"), 7, 128, &r, 28);
    read_back(t->d, b, r.y, sizeof b);
    read_back(t->d, c, r.z, sizeof c);
    for (int i = 0; i < N; i++) {
        uint32_t u = (uint32_t)b[i] << 16;
        float back;
        memcpy(&back, &u, 4);
        assert_true(fabsf(back - x[i]) <= fabsf(x[i]) * 0x1p-8f);
        Half half = (Half)x[i];
        uint16_t hb;
        memcpy(&hb, &half, 2);
        assert_int_equal(c[i], hb);
    }
}

static void twin_rows(const Twins *t) {
    enum { ROWS = 3, COLS = 300 };
    float x[ROWS][COLS], y[ROWS][COLS];
    uint32_t s = 9;
    for (int i = 0; i < ROWS * COLS; i++) {
        x[i / COLS][i % COLS] = 4 * draw_float(&s);
    }
    struct {
        uint64_t x, y;
        int cols;
    } p = {ptx_upload(t->d, x, sizeof x), ptx_malloc(t->d, sizeof y), COLS};
    ptx_must_launch(t->d, ptx_kernel(t->m, "row_softmax"), ROWS, 128, &p, 20);
    read_back(t->d, y, p.y, sizeof y);
    for (int r = 0; r < ROWS; r++) {
        double m = -INFINITY, sum = 0;
        for (int c = 0; c < COLS; c++) {
            m = fmax(m, x[r][c]);
        }
        for (int c = 0; c < COLS; c++) {
            sum += exp(x[r][c] - m);
        }
        for (int c = 0; c < COLS; c++) { /* exp is ex2(x log2 e): some ulps of the exponent */
            double want = exp(x[r][c] - m) / sum;
            assert_true(fabs(y[r][c] - want) <= want * 4e-6);
        }
    }
    enum { M = 20, N = 35, K = 18 };
    float a[M * K], b[K * N], c[M * N];
    for (int i = 0; i < M * K; i++) {
        a[i] = (float)((int)(draw(&s) % 15) - 7);
    }
    for (int i = 0; i < K * N; i++) {
        b[i] = (float)((int)(draw(&s) % 15) - 7);
    }
    struct {
        uint64_t a, b, c;
        int m, n, k;
    } g = {ptx_upload(t->d, a, sizeof a),
           ptx_upload(t->d, b, sizeof b),
           ptx_malloc(t->d, sizeof c),
           M,
           N,
           K};
    if (!ptx_launch(t->d, ptx_kernel(t->m, "sgemm"), (unsigned[3]){3, 2, 1},
                    (unsigned[3]){16, 16, 1}, 0, &g, 36)) {
        fail_msg("%s", ptx_error(t->d));
    }
    read_back(t->d, c, g.c, sizeof c);
    for (int i = 0; i < M * N; i++) {
        float sum = 0;
        for (int k = 0; k < K; k++) {
            sum += a[i / N * K + k] * b[k * N + i % N];
        }
        assert_true(c[i] == sum);
    }
}

static void twin_integers(const Twins *t) {
    enum { N = 1000 };
    uint8_t x[N];
    uint32_t bins[256] = {0}, want[256] = {0}, s = 4;
    for (int i = 0; i < N; i++) {
        x[i] = (uint8_t)(draw(&s) % 100);
        want[x[i]]++;
    }
    struct {
        uint64_t x, bins;
        int n;
    } p = {ptx_upload(t->d, x, sizeof x), ptx_upload(t->d, bins, sizeof bins), N};
    ptx_must_launch(t->d, ptx_kernel(t->m, "histogram"), 3, 96, &p, 20);
    read_back(t->d, bins, p.bins, sizeof bins);
    assert_memory_equal(bins, want, sizeof want);

    int v[100], y[100];
    for (int i = 0; i < 100; i++) {
        v[i] = (int)(draw(&s) % 100) - 50;
    }
    struct {
        uint64_t x, y;
        int n;
    } q = {ptx_upload(t->d, v, sizeof v), ptx_malloc(t->d, sizeof y), 100};
    if (!ptx_launch(t->d, ptx_kernel(t->m, "scan"), (unsigned[3]){1, 1, 1},
                    (unsigned[3]){128, 1, 1}, 512, &q, 20)) {
        fail_msg("%s", ptx_error(t->d));
    }
    read_back(t->d, y, q.y, sizeof y);
    for (int i = 0, sum = 0; i < 100; i++) {
        sum += v[i];
        assert_int_equal(y[i], sum);
    }
    uint64_t first = ~0ull;
    int bad[100] = {0};
    bad[41] = 3;
    bad[77] = 1;
    struct {
        uint64_t first, bad;
        int n;
    } r = {ptx_upload(t->d, &first, 8), ptx_upload(t->d, bad, sizeof bad), 100};
    ptx_must_launch(t->d, ptx_kernel(t->m, "arrival"), 4, 32, &r, 20);
    read_back(t->d, &first, r.first, 8);
    assert_true(first == (41ull << 32 | 3));

    int key[32], rank[32];
    for (int i = 0; i < 32; i++) {
        key[i] = i * i % 7;
    }
    struct {
        uint64_t key, rank;
        int n;
    } g = {ptx_upload(t->d, key, sizeof key), ptx_malloc(t->d, sizeof rank), 32};
    ptx_must_launch(t->d, ptx_kernel(t->m, "groups"), 1, 32, &g, 20);
    read_back(t->d, rank, g.rank, sizeof rank);
    for (int i = 0; i < 32; i++) {
        int before = 0, all = 0;
        for (int k = 0; k < 32; k++) {
            all += key[k] == key[i];
            before += key[k] == key[i] && k < i;
        }
        assert_int_equal(rank[i], before + 100 * all);
    }
}

/* CUDA's own function library, compiled by nvcc: libm is the judge, CUDA's stated ulps the bound.
 */
static void twin_functions(const Twins *t) {
    enum { N = 200 };
    float x[N], y[10][N];
    for (int i = 0; i < N; i++) {
        x[i] = (float)(i - 100) * 0.173f;
    }
    struct {
        uint64_t x, y;
        int n;
    } p = {ptx_upload(t->d, x, sizeof x), ptx_malloc(t->d, sizeof y), N};
    ptx_must_launch(t->d, ptx_kernel(t->m, "functions"), 2, 128, &p, 20);
    read_back(t->d, y, p.y, sizeof y);
    for (int i = 0; i < N; i++) {
        double v = x[i], a = fabs(v);
        double want[10] = {exp(v),
                           log((float)(fabsf(x[i]) + 1e-3f)),
                           tanh(v),
                           sqrt(a),
                           v / (1 + a),
                           erf(v),
                           sin(v),
                           pow(a, 1.7f),
                           floor(v) + trunc(v) + rint(v),
                           trunc(v)};
        for (int k = 0; k < 10; k++) {
            double bound = fabs(want[k]) * 8 * 0x1p-24 + (k == 6 ? 0x1p-23 : 1e-30);
            if (!(fabs(y[k][i] - want[k]) <= bound)) {
                fail_msg("function %d of %g is %.9g, not %.9g", k, v, (double)y[k][i], want[k]);
            }
        }
    }
}

static void twin_mma(const Twins *t) {
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
    } p = {ptx_upload(t->d, a, sizeof a), ptx_upload(t->d, b, sizeof b),
           ptx_malloc(t->d, sizeof c)};
    ptx_must_launch(t->d, ptx_kernel(t->m, "mma_bf16"), 1, 32, &p, sizeof p);
    read_back(t->d, c, p.c, sizeof c);
    for (int i = 0; i < 128; i++) {
        int sum = 0;
        for (int k = 0; k < 16; k++) {
            sum += A[i / 8 * 16 + k] * B[i % 8 * 16 + k];
        }
        assert_true(c[i] == (float)sum);
    }
}

static void run_twins(const char *text) {
    for (int way = 0; way < WAYS; way++) {
        Twins t = {.d = device_for(way)};
        t.m = ptx_must_load(t.d, text);
        twin_elements(&t);
        twin_rows(&t);
        twin_integers(&t);
        twin_functions(&t);
        twin_mma(&t);
        ptx_device_free(t.d);
    }
}

static void twins_kept(void **state) {
    (void)state;
    char *text = ptx_file("kernels/twins.ptx");
    run_twins(text);
    free(text);
}

static void twins_of_the_nvcc_here(void **state) {
    (void)state;
    const char *nvcc =
        access("/usr/local/cuda/bin/nvcc", X_OK) ? "nvcc" : "/usr/local/cuda/bin/nvcc";
    char ptx[] = "/tmp/ptx-twins-XXXXXX", command[1200];
    int fd = mkstemp(ptx);
    assert_true(fd >= 0);
    snprintf(command, sizeof command,
             "%s -ptx -arch=sm_80 " SOURCE_DIR "/tests/ptx/kernels/twins.cu -o %s 2>/dev/null",
             nvcc, ptx);
    if (system(command)) {
        close(fd);
        unlink(ptx);
        print_message(
            "SKIPPED: no nvcc here, so only its code kept in kernels/twins.ptx was run\n");
        skip();
    }
    char *text = calloc(1, 1 << 20);
    assert_true(text && read(fd, text, (1 << 20) - 1) > 0);
    close(fd);
    unlink(ptx);
    run_twins(text);
    free(text);
}

static void vecadd_of_llvm(void **state) {
    (void)state;
    PtxDevice *d = device_for(0);
    PtxModule *m = load_file(d, "kernels/vecadd.ptx");
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
    ptx_must_launch(d, ptx_kernel(m, "vecadd"), 4, 256, &p, 28);
    read_back(d, c, p.c, sizeof c);
    for (int i = 0; i < N; i++) {
        assert_true(c[i] == a[i] + b[i]);
    }
    PtxCounts n;
    ptx_counts(d, &n);
    assert_int_equal(n.other_flops, N);
    assert_int_equal(n.global_read, 8 * N);
    assert_int_equal(n.global_written, 4 * N);
    ptx_device_free(d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vecadd_of_llvm),    cmocka_unit_test(shuffles),
        cmocka_unit_test(votes_and_matches), cmocka_unit_test(mma_layouts),
        cmocka_unit_test(matrices),          cmocka_unit_test(atomics),
        cmocka_unit_test(sums_and_spaces),   cmocka_unit_test(copies),
        cmocka_unit_test(twins_kept),        cmocka_unit_test(twins_of_the_nvcc_here)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
