/* gemm_bf16.c: one thread's share of a product of bf16, by the instruction that adds products of
 * pairs of bf16 to f32 (AVX512-BF16), on CPUs where it is faster than f32 (cpu.c).
 *
 *   for tiles of columns and k that fit the second cache: pack B in pairs
 *     for strips of 14 rows: pack A in pairs (first cache), for panels of 32 columns: kernel
 *       when k is done: epilogue on the strip
 *
 * A pair is two neighbours in k in one 32-bit cell; an odd k ends with a zero. Packing rounds. Each
 * element of C is one chain over pairs in ascending k, starting at 0 or at the C that is added to:
 * its bits do not depend on blocks or threads. They are not those of f32 products of rounded
 * operands, which other CPUs do (gemm_block.c): subnormals are zeros here, and sums round
 * differently. Needs: work buffers. Allocates nothing. */
#include <string.h>

#include "runtime/gemm.h"

#if defined(__x86_64__)
#include <immintrin.h>

enum {
    LANES = 16,
    ROWS = 14,           /* of a strip, at most */
    COLUMNS = 2 * LANES, /* of a kernel */
    DEPTH = GEMM_KC,     /* cells of k of a tile: packed B takes as much as that of f32 */
    CHUNK = 64,          /* cells converted before they are transposed */
};

#define INLINE static inline __attribute__((always_inline))
#define BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

typedef uint32_t Cell;

static int64_t at_most(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* ---- kernels ---- */

typedef struct Call {
    int columns; /* 1 to COLUMNS */
    const Cell *a, *b;
    float *c;
    int64_t cells, lda, ldc; /* lda: between rows of A, or in columns between cells */
    bool add;
} Call;

/* rows, vectors and columns are known when this is compiled. */
BF16 INLINE void multiply(const int rows, const int vectors, const bool columns, const Call *q) {
    __m512 sum[ROWS][2];
    const Cell *b = q->b, *a[(ROWS + 2) / 3];
    const int64_t lda = q->lda, ldc = q->ldc, step = columns ? lda : 1;
    const int n = q->columns;
    const __mmask16 m0 = (__mmask16)(n >= LANES ? 0xffff : (1 << n) - 1);
    const __mmask16 m1 = (__mmask16)(vectors > 1 ? (1 << (n - LANES)) - 1 : 0);
    float *c = q->c;
#pragma GCC unroll 5
    for (int i = 0; i < (rows + 2) / 3; i++)
        a[i] = columns ? q->a : q->a + 3 * i * lda;
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++)
        sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    if (q->add) {
#pragma GCC unroll 14
        for (int i = 0; i < rows; i++) {
            sum[i][0] = _mm512_maskz_loadu_ps(m0, c + i * ldc);
            if (vectors > 1)
                sum[i][1] = _mm512_maskz_loadu_ps(m1, c + i * ldc + LANES);
        }
    }
    for (int64_t kk = 0; kk < q->cells; kk++, b += GEMM_NR) {
        __m512bh b0 = (__m512bh)_mm512_loadu_si512(b);
        __m512bh b1 = vectors > 1 ? (__m512bh)_mm512_loadu_si512(b + LANES) : b0;
#pragma GCC unroll 14
        for (int i = 0; i < rows; i++) {
            Cell cell = columns ? a[0][i] : a[i / 3][i % 3 * lda];
            __m512bh x = (__m512bh)_mm512_set1_epi32((int)cell);
            sum[i][0] = _mm512_dpbf16_ps(sum[i][0], x, b0);
            if (vectors > 1)
                sum[i][1] = _mm512_dpbf16_ps(sum[i][1], x, b1);
        }
#pragma GCC unroll 5
        for (int i = 0; i < (rows + 2) / 3; i++)
            a[i] += step;
    }
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
        _mm512_mask_storeu_ps(c + i * ldc, m0, sum[i][0]);
        if (vectors > 1)
            _mm512_mask_storeu_ps(c + i * ldc + LANES, m1, sum[i][1]);
    }
}

typedef void (*Multiply)(const Call *q);

#define ONE(rows, vectors, columns) \
    BF16 static void multiply_##rows##_##vectors##columns(const Call *q) { \
        multiply(rows, vectors, columns, q); \
    }
#define FORMS(rows) ONE(rows, 1, 0) ONE(rows, 1, 1) ONE(rows, 2, 0) ONE(rows, 2, 1)
#define NAMES(rows) \
    { \
        {multiply_##rows##_10, multiply_##rows##_11}, { \
            multiply_##rows##_20, multiply_##rows##_21 \
        } \
    }
/* clang-format off */
FORMS(1) FORMS(2) FORMS(3) FORMS(4) FORMS(5) FORMS(6) FORMS(7)
FORMS(8) FORMS(9) FORMS(10) FORMS(11) FORMS(12) FORMS(13) FORMS(14)
    /* clang-format on */

    /* By rows, vectors, and whether A is in columns. */
    static const Multiply multiplies[ROWS][2][2] = {
        NAMES(1), NAMES(2), NAMES(3),  NAMES(4),  NAMES(5),  NAMES(6),  NAMES(7),
        NAMES(8), NAMES(9), NAMES(10), NAMES(11), NAMES(12), NAMES(13), NAMES(14),
};

/* ---- packing ---- */

/* Rows x and y (NULL: zeros) of n floats as n cells; x is the lower half of each. */
BF16 static void pair_rows(const float *x, const float *y, int64_t n, Cell *to) {
    const __m512i lows =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int64_t j = 0; j < n; j += LANES) {
        __mmask16 m = (__mmask16)(n - j >= LANES ? 0xffff : (1 << (n - j)) - 1);
        __m512 low = _mm512_maskz_loadu_ps(m, x + j);
        __m512 high = y ? _mm512_maskz_loadu_ps(m, y + j) : _mm512_setzero_ps();
        __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        _mm512_mask_storeu_epi32(to + j, m, _mm512_permutexvar_epi16(lows, both));
    }
}

/* k floats as (k+1)/2 cells. */
BF16 static void pair_row(const float *x, int64_t k, Cell *to) {
    for (int64_t kk = 0; kk < k; kk += LANES) {
        int64_t n = at_most(k - kk, LANES);
        __m512 v = _mm512_maskz_loadu_ps((__mmask16)(n >= LANES ? 0xffff : (1 << n) - 1), x + kk);
        _mm256_mask_storeu_epi32(to + kk / 2, (__mmask8)((1 << ((n + 1) / 2)) - 1),
                                 (__m256i)_mm512_cvtneps_pbh(v));
    }
}

/* The same of floats `step` apart. */
static void pair_strided(const float *x, int64_t step, int64_t k, Cell *to) {
    float close[2 * CHUNK];
    for (int64_t k0 = 0; k0 < k; k0 += 2 * CHUNK) {
        int64_t n = at_most(k - k0, 2 * CHUNK);
        for (int64_t kk = 0; kk < n; kk++)
            close[kk] = x[(k0 + kk) * step];
        pair_row(close, n, to + k0 / 2);
    }
}

/* One tile: rows i0..i1, columns j0..j0+nt, depth k0..k0+kb. */
typedef struct Tile {
    const GemmWork *work;
    const GemmBlock *g;
    int64_t i0, i1, j0, nt, k0, kb;
    float *c; /* at row i0; NULL: a strip's tile is enough */
    int64_t ldc;
    bool last; /* k is done after this */
} Tile;

static Cell *panel_at(const Tile *t, int64_t j) {
    return (Cell *)(void *)t->work->b + j / GEMM_NR * gemm_panel((t->kb + 1) / 2);
}

/* B' in rows of k: converted, then turned. */
static void pack_b_columns(const Tile *t, int64_t j, int64_t n, const float *from) {
    const GemmBlock *g = t->g;
    Cell rows[GEMM_NR * CHUNK], *panel = panel_at(t, j);
    for (int64_t kk = 0; kk < t->kb; kk += 2 * CHUNK, panel += (int64_t)CHUNK * GEMM_NR) {
        int64_t k = at_most(t->kb - kk, 2 * CHUNK);
        for (int64_t jj = 0; jj < n; jj++)
            if (g->b_row == 1)
                pair_row(from + jj * g->b_col + kk, k, rows + jj * CHUNK);
            else
                pair_strided(from + jj * g->b_col + kk * g->b_row, g->b_row, k, rows + jj * CHUNK);
        t->work->vectors->packers[0].transpose((const float *)(const void *)rows, CHUNK,
                                               (k + 1) / 2, n, (float *)(void *)panel);
    }
}

/* Each panel as [cells][GEMM_NR]. */
static void pack_b(const Tile *t) {
    const GemmBlock *g = t->g;
    for (int64_t j = 0; j < t->nt; j += GEMM_NR) {
        int64_t n = at_most(t->nt - j, GEMM_NR);
        const float *from = g->b + t->k0 * g->b_row + (t->j0 + j) * g->b_col;
        if (g->b_col != 1) {
            pack_b_columns(t, j, n, from);
            continue;
        }
        for (int64_t kk = 0; kk < t->kb; kk += 2) {
            const float *row = from + kk * g->b_row;
            pair_rows(row, kk + 1 < t->kb ? row + g->b_row : NULL, n,
                      panel_at(t, j) + kk / 2 * GEMM_NR);
        }
    }
}

/* Rows i.. of the block: each as [cells], or of A in columns all as [cells][rows]. */
static void pack_a(const Tile *t, int64_t i, int64_t rows, Cell *to) {
    const GemmBlock *g = t->g;
    if (g->a_row == 1 && g->a_col != 1 && !g->a_index) {
        const float *from = g->a + i + t->k0 * g->a_col;
        for (int64_t kk = 0; kk < t->kb; kk += 2, from += 2 * g->a_col, to += rows)
            pair_rows(from, kk + 1 < t->kb ? from + g->a_col : NULL, rows, to);
        return;
    }
    for (int64_t end = i + rows; i < end; i++, to += (t->kb + 1) / 2) {
        int64_t row = g->a_index ? g->a_index[i] : i;
        const float *from = g->a + row * g->a_row + t->k0 * g->a_col;
        if (row < 0)
            memset(to, 0, (size_t)((t->kb + 1) / 2) * sizeof *to);
        else if (g->a_col == 1)
            pair_row(from, t->kb, to);
        else
            pair_strided(from, g->a_col, t->kb, to);
    }
}

/* ---- the block ---- */

static void run_strip(const Tile *t, int64_t i, int rows, float *c) {
    const GemmBlock *g = t->g;
    bool columns = g->a_row == 1 && g->a_col != 1 && !g->a_index;
    Cell *a = (Cell *)(void *)t->work->a;
    Call q = {.a = a, .cells = (t->kb + 1) / 2, .ldc = t->ldc};
    q.lda = columns ? rows : q.cells;
    q.add = t->k0 > 0 || g->accumulate;
    pack_a(t, i, rows, a);
    for (int64_t j = 0; j < t->nt; j += COLUMNS) {
        q.columns = (int)at_most(t->nt - j, COLUMNS);
        q.b = panel_at(t, j) + j % GEMM_NR;
        q.c = c + j;
        multiplies[rows - 1][q.columns > LANES][columns](&q);
    }
}

static void run_tile(const Tile *t) {
    const GemmBlock *g = t->g;
    int64_t m = t->i1 - t->i0, strips = (m + ROWS - 1) / ROWS;
    pack_b(t);
    for (int64_t s = 0; s < strips; s++) {
        int64_t at = m * s / strips, end = m * (s + 1) / strips, i = t->i0 + at;
        float *c = t->c ? t->c + at * t->ldc : t->work->tile;
        run_strip(t, i, (int)(end - at), c);
        if (t->last && g->epilogue)
            g->epilogue(g->env, g->group, g->m0 + i, g->m0 + t->i0 + end, g->n0 + t->j0,
                        g->n0 + t->j0 + t->nt, c, t->ldc);
    }
}

void gemm_block_bf16(const GemmWork *w, const GemmBlock *g) {
    const int64_t depth = (int64_t)2 * DEPTH;
    bool once = g->k <= depth; /* a tile needs one round */
    int64_t chunk = g->c || once ? g->m : GEMM_MB;
    for (int64_t i0 = 0; i0 < g->m; i0 += chunk)
        for (int64_t j0 = 0; j0 < g->n; j0 += w->columns) {
            Tile t = {.work = w, .g = g, .i0 = i0, .j0 = j0};
            t.i1 = at_most(g->m, i0 + chunk);
            t.nt = at_most(g->n - j0, w->columns);
            t.c = g->c ? g->c + i0 * g->ldc + j0 : once ? NULL : w->tile;
            t.ldc = g->c ? g->ldc : GEMM_NT;
            do { /* also once for k = 0, which gives zeros and the epilogue */
                t.kb = at_most(g->k - t.k0, depth);
                t.last = t.k0 + t.kb >= g->k;
                run_tile(&t);
                t.k0 += t.kb;
            } while (t.k0 < g->k);
        }
}

bool bf16_usable(void) {
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
}

#else

void gemm_block_bf16(const GemmWork *w, const GemmBlock *g) {
    gemm_block(w, g);
}

bool bf16_usable(void) {
    return false;
}

#endif
