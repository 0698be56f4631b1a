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

/* Rows of A in double, whole strips of them; rows that are not there are zeros. Element (i, kk)
 * lies at i*row + kk*col: as in A, so that packing runs along memory. */
typedef struct PackedA {
    double at[PACKED_A];
    int64_t row, col;
} PackedA;

INLINE void widen(const float *from, int64_t n, double *to) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        *(Lanes *)(to + i) = __builtin_convertvector(*(const FloatLanes *)(from + i), Lanes);
    for (; i < n; i++)
        to[i] = from[i];
}

INLINE void pack_a(const Group *s, int64_t i0, int64_t i1, PackedA *p) {
    int64_t rows = i1 - i0, whole = (rows + MR - 1) / MR * MR, row = s->g->a_row, col = s->g->a_col;
    bool columns = col != 1 && row == 1 && !s->a_index;
    p->row = columns ? 1 : s->k;
    p->col = columns ? whole : 1;
    for (int64_t kk = 0; columns && kk < s->k; kk++) {
        widen(s->a + i0 + kk * col, rows, p->at + kk * whole);
        for (int64_t i = rows; i < whole; i++)
            p->at[kk * whole + i] = 0;
    }
    for (int64_t i = 0; !columns && i < whole; i++) {
        int64_t from = i >= rows ? -1 : s->a_index ? s->a_index[i0 + i] : i0 + i;
        double *to = p->at + i * s->k;
        if (from < 0)
            memset(to, 0, (size_t)s->k * sizeof *to);
        else if (col == 1)
            widen(s->a + from * row, s->k, to);
        else
            for (int64_t kk = 0; kk < s->k; kk++)
                to[kk] = s->a[from * row + kk * col];
    }
}

/* To bf16, if that is asked for. */
INLINE void round_all(const Group *s, double *x, int64_t n) {
    if (s->g->precision != STGC_GEMM_BF16)
        return;
    for (int64_t i = 0; i < n; i++) {
        float f = (float)x[i];
        uint32_t bits;
        memcpy(&bits, &f, sizeof bits);
        bits = f != f ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
        bits &= 0xffff0000u;
        memcpy(&f, &bits, sizeof f);
        x[i] = f;
    }
}

/* A strip by vectors first..first+vectors of a panel. */
INLINE void multiply(int64_t k, const double *strip, int64_t row, int64_t col, const double *panel,
                     const int first, const int vectors, double (*out)[NR]) {
    Lanes sum[MR][2] = {0};
    panel += first * LANES;
    for (int64_t kk = 0; kk < k; kk++, strip += col, panel += NR)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) {
            Lanes b = *(const Lanes *)(panel + v * LANES);
#pragma GCC unroll 6
            for (int i = 0; i < MR; i++)
                sum[i][v] += strip[i * row] * b;
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

/* Columns j0..j1 into c, which lies at the first of them. `vectors` of a panel at a time: the sums
 * of a strip shall fit the registers. */
INLINE void tile(const Group *s, const PackedA *a, int64_t rows, int64_t j0, int64_t j1, float *c,
                 int64_t ldc, const int vectors) {
    double panel[MOST_K * NR], out[MR][NR];
    for (int64_t j = j0; j < j1; j += NR, c += NR) {
        pack_b(s, j, panel);
        round_all(s, panel, s->k * NR);
        for (int64_t i = 0; i < rows; i++) {
            const double *strip = a->at + i * a->row;
            if (i % MR == 0 && j1 - j <= LANES) /* the second vector would be zeros */
                multiply(s->k, strip, a->row, a->col, panel, 0, 1, out);
            else
                for (int v = 0; i % MR == 0 && v < 2; v += vectors)
                    multiply(s->k, strip, a->row, a->col, panel, v, vectors, out);
            put(out[i % MR], j1 - j < NR ? j1 - j : NR, s->g->accumulate, c + i * ldc);
        }
    }
}

/* Rows i0..i1 of a group. */
INLINE void rows_of_group(const Group *s, int64_t i0, int64_t i1, const int vectors) {
    const StgcGemm *g = s->g;
    PackedA a;
    float local[TILE_ROWS * TILE_COLUMNS];
    int64_t columns = g->epilogue ? TILE_COLUMNS : g->n;
    pack_a(s, i0, i1, &a);
    round_all(s, a.at, s->k * ((i1 - i0 + MR - 1) / MR * MR));
    for (int64_t j0 = 0; j0 < g->n; j0 += columns) {
        int64_t j1 = j0 + columns < g->n ? j0 + columns : g->n;
        float *c = s->c ? s->c + i0 * g->ldc + j0 : local;
        int64_t ldc = s->c ? g->ldc : TILE_COLUMNS;
        tile(s, &a, i1 - i0, j0, j1, c, ldc, vectors);
        if (g->epilogue)
            g->epilogue(g->env, s->number, s->m0 + i0, s->m0 + i1, j0, j1, c, ldc);
    }
}

/* Fused multiply-adds or not: the products are exact, so the bits are the same. */
typedef void (*RowsFn)(const Group *s, int64_t i0, int64_t i1);

static void rows_generic(const Group *s, int64_t i0, int64_t i1) {
    rows_of_group(s, i0, i1, 1);
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static void rows_avx2(const Group *s, int64_t i0, int64_t i1) {
    rows_of_group(s, i0, i1, 1);
}

__attribute__((target("avx512f,avx512dq,avx512vl,avx2,fma"))) static void
rows_avx512(const Group *s, int64_t i0, int64_t i1) {
    rows_of_group(s, i0, i1, 2);
}
#endif

/* By level. */
static const RowsFn rows_fns[] = {
    rows_generic,
#if defined(__x86_64__)
    rows_avx2,
    rows_avx512,
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

static void group(const Group *s, RowsFn run) {
    int64_t rows = s->c ? PACKED_A / (s->k > 0 ? s->k : 1) / MR * MR : TILE_ROWS;
    for (int64_t i0 = 0; i0 < s->m; i0 += rows)
        run(s, i0, i0 + rows < s->m ? i0 + rows : s->m);
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
        group(&s, rows_fns[machine->small_level]);
    }
    for (int64_t r = g->kind == STGC_GEMM_ROWS ? g->offsets[groups] : g->m;
         r < g->m && g->c && !g->accumulate; r++) /* rows of no group */
        memset(g->c + r * g->ldc, 0, (size_t)g->n * sizeof *g->c);
    return true;
}
