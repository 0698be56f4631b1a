/* gemm_small.c: small matrix products with their sums in double.
 *
 * A chain of k multiply-adds in f32 rounds k times, and of all that a step rounds this is what
 * shows most in its gradients. The product of two floats is exact in double and the sum as good as
 * exact, so C is rounded once. That costs twice the arithmetic, which nobody notices in products
 * that are over before a second thread has woken up; so they are done here, on the caller's thread.
 * Which products are small depends on shapes alone; the bits of C depend on k alone, and are the
 * same on every CPU. */
#include <stdlib.h>
#include <string.h>

#include "runtime/machine.h"

enum {
    MOST_WORK = 1 << 18,    /* multiply-adds of all groups */
    MOST_K = 512,           /* a packed panel of B stays in the near caches */
    LANES = 8,              /* doubles of a vector */
    NR = 2 * LANES,         /* columns of a panel of B */
    MR = 6,                 /* rows of a strip of A */
    PACKED_A = MOST_K * 24, /* doubles: as many whole strips as fit */
    TILE_ROWS = 24,         /* what an epilogue sees where there is no C */
    TILE_COLUMNS = 8 * NR,  /* what an epilogue sees */
};

typedef double Lanes __attribute__((vector_size(LANES * sizeof(double)), aligned(8)));
typedef float FloatLanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));
#define INLINE static inline __attribute__((always_inline)) /* into what knows the CPU */

/* One group: C[m,n] (=|+=) A[m,k] B[k,n]. */
typedef struct Group {
    const StgcGemm *g;
    int64_t m, k;
    const float *a, *b;
    const int64_t *a_index; /* NULL, or [m] */
    float *c;               /* may be NULL */
    int64_t number, m0;     /* what the epilogue is told */
} Group;

/* Columns j0.. of B as [k][NR]; zeros beyond n. */
INLINE void pack_b(const Group *s, int64_t j0, double *panel) {
    const StgcGemm *g = s->g;
    int64_t columns = g->n - j0 < NR ? g->n - j0 : NR;
    const float *from = s->b + j0 * g->b_col;
    if (columns < NR)
        memset(panel, 0, (size_t)(s->k * NR) * sizeof *panel);
    for (int64_t kk = 0; kk < s->k; kk++, from += g->b_row, panel += NR) {
        if (columns == NR && g->b_col == 1) {
            *(Lanes *)panel = __builtin_convertvector(*(const FloatLanes *)from, Lanes);
            *(Lanes *)(panel + LANES) =
                __builtin_convertvector(*(const FloatLanes *)(from + LANES), Lanes);
        } else if (columns == NR) {
#pragma GCC unroll 16
            for (int64_t j = 0; j < NR; j++)
                panel[j] = from[j * g->b_col];
        } else {
            for (int64_t j = 0; j < columns; j++)
                panel[j] = from[j * g->b_col];
        }
    }
}

/* Rows i0..i1 of A as strips [k][MR]; rows that are not there, and holes of a gather, are zeros. */
static void pack_a(const Group *s, int64_t i0, int64_t i1, double *strip) {
    static const float zero = 0;
    for (int64_t i = i0; i < i1; i += MR, strip += s->k * MR)
        for (int64_t r = 0; r < MR; r++) {
            int64_t row = i + r >= i1 ? -1 : s->a_index ? s->a_index[i + r] : i + r;
            const float *from = row < 0 ? &zero : s->a + row * s->g->a_row;
            int64_t step = row < 0 ? 0 : s->g->a_col;
            for (int64_t kk = 0; kk < s->k; kk++)
                strip[kk * MR + r] = from[kk * step];
        }
}

/* A strip by vectors first..first+vectors of a panel. */
INLINE void multiply(int64_t k, const double *strip, const double *panel, const int first,
                     const int vectors, double (*out)[NR]) {
    Lanes sum[MR][2] = {0};
    panel += first * LANES;
    for (int64_t kk = 0; kk < k; kk++, strip += MR, panel += NR)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) {
            Lanes b = *(const Lanes *)(panel + v * LANES);
#pragma GCC unroll 6
            for (int i = 0; i < MR; i++)
                sum[i][v] += strip[i] * b;
        }
#pragma GCC unroll 6
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            *(Lanes *)(out[i] + (first + v) * LANES) = sum[i][v];
}

INLINE void put(const double *from, int64_t columns, bool add, float *to) {
    int64_t v = 0;
    for (; v + LANES <= columns; v += LANES) {
        FloatLanes *at = (FloatLanes *)(to + v);
        Lanes x = *(const Lanes *)(from + v);
        *at =
            __builtin_convertvector(add ? __builtin_convertvector(*at, Lanes) + x : x, FloatLanes);
    }
    for (; v < columns; v++)
        to[v] = (float)(add ? to[v] + from[v] : from[v]);
}

/* Rows of packed A, columns j0..j1, into c, which lies at the first of them. `vectors` of a panel
 * at a time: the sums of a strip shall fit the registers. */
INLINE void tile(const Group *s, const double *strips, int64_t rows, int64_t j0, int64_t j1,
                 float *c, int64_t ldc, const int vectors) {
    double panel[MOST_K * NR], out[MR][NR];
    for (int64_t j = j0; j < j1; j += NR, c += NR) {
        pack_b(s, j, panel);
        for (int64_t i = 0; i < rows; i++) {
            for (int v = 0; i % MR == 0 && v < 2; v += vectors)
                multiply(s->k, strips + i * s->k, panel, v, vectors, out);
            put(out[i % MR], j1 - j < NR ? j1 - j : NR, s->g->accumulate, c + i * ldc);
        }
    }
}

/* Fused multiply-adds or not: the products are exact, so the bits are the same. */
typedef void (*TileFn)(const Group *s, const double *strips, int64_t rows, int64_t j0, int64_t j1,
                       float *c, int64_t ldc);
#define TILE_FN(name, target, vectors) \
    target static void name(const Group *s, const double *strips, int64_t rows, int64_t j0, \
                            int64_t j1, float *c, int64_t ldc) { \
        tile(s, strips, rows, j0, j1, c, ldc, vectors); \
    }

TILE_FN(tile_generic, , 1)
#if defined(__x86_64__)
TILE_FN(tile_avx2, __attribute__((target("avx2,fma"))), 1)
TILE_FN(tile_avx512, __attribute__((target("avx512f,avx512dq,avx512vl,avx2,fma"))), 2)
#endif

/* By level. */
static const TileFn tiles[] = {
    tile_generic,
#if defined(__x86_64__)
    tile_avx2,
    tile_avx512,
#endif
};

int machine_small_level(void) {
    int level = 0;
#if defined(__x86_64__)
    const char *limit = getenv("STGC_ISA");
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
    level = avx512 ? 2 : avx2 ? 1 : 0;
    if (limit && strcmp(limit, "avx2") == 0 && level > 1)
        level = 1;
    if (limit && strcmp(limit, "generic") == 0)
        level = 0;
#endif
    return level;
}

static void group(const Group *s, TileFn run) {
    const StgcGemm *g = s->g;
    double strips[PACKED_A];
    float local[TILE_ROWS * TILE_COLUMNS];
    int64_t rows = s->c ? PACKED_A / (s->k > 0 ? s->k : 1) / MR * MR : TILE_ROWS;
    int64_t columns = g->epilogue ? TILE_COLUMNS : g->n;
    for (int64_t i0 = 0; i0 < s->m; i0 += rows) {
        int64_t i1 = i0 + rows < s->m ? i0 + rows : s->m;
        pack_a(s, i0, i1, strips);
        for (int64_t j0 = 0; j0 < g->n; j0 += columns) {
            int64_t j1 = j0 + columns < g->n ? j0 + columns : g->n;
            float *c = s->c ? s->c + i0 * g->ldc + j0 : local;
            int64_t ldc = s->c ? g->ldc : TILE_COLUMNS;
            run(s, strips, i1 - i0, j0, j1, c, ldc);
            if (g->epilogue)
                g->epilogue(g->env, s->number, s->m0 + i0, s->m0 + i1, j0, j1, c, ldc);
        }
    }
}

static Group group_of(const StgcGemm *g, int64_t e) {
    int64_t e1 = e / g->g2, e2 = e % g->g2;
    int64_t first = g->kind == STGC_GEMM_BATCH ? 0 : g->offsets[e];
    Group s = {.g = g, .m = g->m, .k = g->k, .number = e};
    s.a = g->a + e1 * g->a_g1 + e2 * g->a_g2;
    s.b = g->b_group ? g->b_group[e] : g->b + e1 * g->b_g1 + e2 * g->b_g2;
    s.c = g->c ? g->c + e1 * g->c_g1 + e2 * g->c_g2 : NULL;
    if (g->kind == STGC_GEMM_ROWS) {
        s.m = g->offsets[e + 1] - first;
        s.m0 = first;
        s.a_index = g->a_index ? g->a_index + first : NULL;
        s.a = g->a_index ? g->a : g->a + first * g->a_row;
        s.c = g->c ? g->c + first * g->ldc : NULL;
    } else if (g->kind == STGC_GEMM_K) {
        s.k = g->offsets[e + 1] - first;
        s.a = g->a + first * g->a_col;
        s.b = (g->b_group ? g->b_group[e] : g->b) + first * g->b_row;
    }
    return s;
}

/* Also: some product at all, and an accumulated C that is there. */
static bool is_small(const StgcGemm *g) {
    int64_t groups = g->g1 * g->g2;
    if (g->m <= 0 || g->n <= 0 || groups <= 0 || g->k > MOST_K || (g->accumulate && !g->c))
        return false;
    double work = (double)g->m * (double)g->n * (double)(g->k > 0 ? g->k : 1);
    return work * (g->kind == STGC_GEMM_BATCH ? (double)groups : 1) <= MOST_WORK;
}

bool machine_gemm_small(StgcRt *rt, const StgcGemm *g) {
    const Machine *machine = (const Machine *)rt;
    int64_t groups = g->g1 * g->g2;
    if (!is_small(g))
        return false;
    for (int64_t e = 0; e < groups; e++) {
        Group s = group_of(g, e);
        group(&s, tiles[machine->small_level]);
    }
    for (int64_t r = g->kind == STGC_GEMM_ROWS ? g->offsets[groups] : g->m;
         r < g->m && g->c && !g->accumulate; r++) /* rows of no group */
        memset(g->c + r * g->ldc, 0, (size_t)g->n * sizeof *g->c);
    return true;
}
