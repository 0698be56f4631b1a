/* gemm_block.c: one thread's share of a matrix product.
 *
 *   for tiles of columns and k that fit the second cache: pack B unless it may be read where it is
 *     for strips of GEMM_MR rows: take, copy or pack A (first cache)
 *       for panels of GEMM_NR columns: libxsmm
 *       when k is done: epilogue on the strip, which is still in the first cache
 *
 * Packing is the only place that knows strides and gathers; kernels are made for the sizes at the
 * edges. Needs: work buffers. Allocates nothing. */
#include <string.h>

#include "runtime/gemm.h"

enum {
    LINE = 16,          /* floats of a cache line */
    PAGE = 1024,        /* floats; rows so far apart share a cache set */
    WAYS = 8,           /* lines that a cache set holds */
    VECTOR = 16,        /* floats, at most */
    WIDE = 2 * VECTOR,  /* columns that a panel of one vector is padded to */
    FEW_ROWS = 12,      /* see splits */
    UNPACKED_ROWS = 48, /* so few are not worth packing B for */
    WHOLE_ROWS = 256,   /* nor so few if B lies in one piece */
    SMALL = 4096,       /* floats of B that stay in the first cache */
    CLOSE = 64,         /* floats between values of k of A in columns that is read in place */
    FAR = 1 << 20 /* floats between rows of B: libxsmm counts the bytes of a block in an int */
};

static int64_t at_most(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* How kernels read A of this block. */
typedef enum { A_ROWS, A_ROWS_COPIED, A_COLUMNS, A_COLUMNS_PACKED } AForm;

/* libxsmm refuses rows that overlap, as those of a broadcast A do; they are copied. So is all that
 * has to be rounded. */
static AForm a_form(const GemmBlock *g) {
    if (g->a_col == 1)
        return g->a_index || g->a_row < g->k || g->a_row > INT32_MAX || g->bf16 ? A_ROWS_COPIED
                                                                                : A_ROWS;
    if (g->a_row != 1 || g->a_index)
        return A_ROWS_COPIED;
    return !g->bf16 && g->m <= g->a_col && g->a_col <= CLOSE ? A_COLUMNS : A_COLUMNS_PACKED;
}

/* One tile of C in work: rows i0..i1 of the block, columns j0..j0+nt, depth k0..k0+kb. */
typedef struct Tile {
    const GemmWork *work;
    const GemmBlock *g;
    AForm form;
    bool in_place; /* B */
    int64_t i0, i1, j0, nt, k0, kb;
    float *c; /* at row i0; NULL: a strip's tile is enough */
    int64_t ldc;
    bool last;  /* k is done after this */
    int64_t mr; /* rows of a strip */
} Tile;

static const GemmPackers *packers_of(const Tile *t) {
    return &t->work->vectors->packers[t->g->bf16];
}

/* Columns of the panel at column j. libxsmm goes through whole ones of B in place by itself. */
static int64_t width_at(const Tile *t, int64_t j) {
    int64_t left = t->nt - j;
    return left < GEMM_NR ? left : t->in_place ? left / GEMM_NR * GEMM_NR : GEMM_NR;
}

/* Whether libxsmm would split the chains of such a kernel (gemm.h). */
static bool splits(int64_t rows, int64_t width) {
    return rows < FEW_ROWS && width <= VECTOR;
}

/* Rows of a strip. */
static int64_t strip_rows(int64_t kb) {
    int64_t rows = kb > 0 ? GEMM_STRIP / kb / GEMM_MR * GEMM_MR : GEMM_STRIP_ROWS;
    return rows < GEMM_MR ? GEMM_MR : at_most(rows, GEMM_STRIP_ROWS);
}

/* Rows of strip s start here; the last strip takes what is left. */
static int64_t strips_of(const Tile *t) {
    int64_t m = t->i1 - t->i0;
    return m < 2 * t->mr ? 1 : m / t->mr;
}
static int64_t strip_at(const Tile *t, int64_t s) {
    return s >= strips_of(t) ? t->i1 - t->i0 : s * t->mr;
}

/* ---- B ---- */

/* Where the panel at column j starts and how far its rows lie apart. */
static const float *b_of(const Tile *t, int64_t j, int64_t *ld) {
    const GemmBlock *g = t->g;
    *ld = t->in_place ? g->b_row : GEMM_NR;
    return t->in_place ? g->b + t->k0 * g->b_row + t->j0 + j
                       : t->work->b + j / GEMM_NR * gemm_panel(t->kb);
}

/* Each panel as [kb][GEMM_NR]. */
static void pack_b(const Tile *t) {
    const GemmBlock *g = t->g;
    const GemmPackers *packers = packers_of(t);
    const int64_t distance = gemm_panel(t->kb);
    const float *src = g->b + t->k0 * g->b_row + t->j0 * g->b_col;
    float *dst = t->work->b;
    int64_t j = 0;
    if (g->b_col == 1) {
        int64_t whole = t->nt / GEMM_NR;
        packers->copy_b(src, g->b_row, t->kb, whole, distance, dst);
        j = whole * GEMM_NR;
        dst += whole * distance;
    }
    for (; j < t->nt; j += GEMM_NR, dst += distance) {
        int64_t n = width_at(t, j);
        const float *from = src + j * g->b_col;
        if (splits(t->i1 - t->i0, n))
            memset(dst, 0, (size_t)(t->kb * GEMM_NR) * sizeof *dst);
        if (g->b_row == 1)
            packers->transpose(from, g->b_col, t->kb, n, dst);
        else if (g->b_col == 1)
            for (int64_t kk = 0; kk < t->kb; kk++)
                packers->copy(from + kk * g->b_row, n, dst + kk * GEMM_NR);
        else
            for (int64_t kk = 0; kk < t->kb; kk++)
                for (int64_t jj = 0; jj < n; jj++)
                    packers->copy(from + kk * g->b_row + jj * g->b_col, 1, dst + kk * GEMM_NR + jj);
    }
}

/* Whether kernels read B where it is: for a few rows packing does not pay, nor for a B that stays
 * in the first cache anyway or whose lines all lie in different sets of the second. Panels to be
 * padded are packed. */
static bool b_in_place(const GemmBlock *g, int64_t rows, int64_t nt, int64_t kb) {
    bool small = kb * nt <= SMALL && (g->b_row % PAGE != 0 || kb <= WAYS);
    bool few = rows <= (g->b_row == nt ? WHOLE_ROWS : UNPACKED_ROWS);
    return !g->bf16 && g->b_col == 1 && g->b_row >= nt && g->b_row <= FAR && (few || small) &&
           !splits(rows, (nt - 1) % GEMM_NR + 1);
}

/* ---- A ---- */

/* Row i of the block at k0; NULL where a gather has a hole. */
static const float *a_row_at(const GemmBlock *g, int64_t i, int64_t k0) {
    int64_t row = g->a_index ? g->a_index[i] : i;
    return row < 0 ? NULL : g->a + row * g->a_row + k0 * g->a_col;
}

/* Distance of copied rows: they fall into different cache sets. */
static int64_t copied_ld(const Tile *t) {
    return (t->kb + LINE - 1) / LINE * LINE + LINE;
}

static void copy_rows(const Tile *t, int64_t i0, int64_t rows, float *dst) {
    const GemmBlock *g = t->g;
    for (int64_t i = i0; i < i0 + rows; i++, dst += copied_ld(t)) {
        const float *src = a_row_at(g, i, t->k0);
        if (!src)
            memset(dst, 0, (size_t)t->kb * sizeof *dst);
        else if (g->a_col == 1)
            packers_of(t)->copy(src, t->kb, dst);
        else
            for (int64_t kk = 0; kk < t->kb; kk++)
                packers_of(t)->copy(src + kk * g->a_col, 1, dst + kk);
    }
}

/* Distance of packed strips of A. */
static int64_t strip_distance(const Tile *t) {
    return t->kb * t->mr + LINE;
}

/* A stored [k, m]: strips s.. of a chunk, each as [kb][its rows]. */
static void pack_columns(const Tile *t, int64_t s, float *dst) {
    const GemmBlock *g = t->g;
    int64_t strips = at_most(strips_of(t) - s, GEMM_CHUNK), end = strip_at(t, s + strips);
    const float *src = g->a + t->i0 + strip_at(t, s) + t->k0 * g->a_col;
    packers_of(t)->copy_a(src, g->a_col, t->kb, strips, t->mr, end - strip_at(t, s + strips - 1),
                          strip_distance(t), dst);
}

/* A of strip s as kernels read it; *ld: distance of its rows or values of k. */
static const float *a_of(const Tile *t, int64_t s, int64_t *ld) {
    const GemmBlock *g = t->g;
    int64_t at = strip_at(t, s), end = strip_at(t, s + 1);
    switch (t->form) {
    case A_ROWS:
        *ld = g->a_row;
        return a_row_at(g, t->i0 + at, t->k0);
    case A_ROWS_COPIED:
        copy_rows(t, t->i0 + at, end - at, t->work->a);
        *ld = copied_ld(t);
        return t->work->a;
    case A_COLUMNS:
        *ld = g->a_col;
        return g->a + t->i0 + at + t->k0 * g->a_col;
    case A_COLUMNS_PACKED:
        break;
    }
    if (s % GEMM_CHUNK == 0)
        pack_columns(t, s, t->work->a);
    *ld = end - at;
    return t->work->a + s % GEMM_CHUNK * strip_distance(t);
}

/* ---- C ---- */

/* Strip of A times the panel of B at column j, whole blocks of k, then the rest. */
static void run_kernels(const Tile *t, int64_t j, int64_t rows, int64_t width, const float *a,
                        int64_t lda, float *c, int64_t ldc) {
    bool columns = t->form >= A_COLUMNS;
    int64_t ldb, blocks = t->kb / GEMM_KB, rest = t->kb % GEMM_KB, done = blocks * GEMM_KB;
    const float *b = b_of(t, j, &ldb);
    XsmmShape shape = {.m = (int32_t)rows,
                       .n = (int32_t)width,
                       .k = GEMM_KB,
                       .lda = (int32_t)lda,
                       .ldb = (int32_t)ldb,
                       .ldc = (int32_t)(rows > 1 ? ldc : width),
                       .a_columns = columns,
                       .add = t->k0 > 0 || t->g->accumulate};
    if (blocks > 0) {
        xsmm_run(t->work->cache, &shape, a, b, c, blocks);
        shape.add = true;
    }
    if (rest > 0) {
        shape.k = (int32_t)rest;
        xsmm_run(t->work->cache, &shape, a + done * (columns ? lda : 1), b + done * ldb, c, 1);
    }
}

/* The same in a buffer that is two vectors wide. */
static void run_padded(const Tile *t, int64_t j, int64_t rows, int64_t width, const float *a,
                       int64_t lda, float *c) {
    float wide[FEW_ROWS * WIDE] = {0};
    for (int64_t i = 0; i < rows && (t->k0 > 0 || t->g->accumulate); i++)
        memcpy(wide + i * WIDE, c + i * t->ldc, (size_t)width * sizeof *wide);
    run_kernels(t, j, rows, WIDE, a, lda, wide, WIDE);
    for (int64_t i = 0; i < rows; i++)
        memcpy(c + i * t->ldc, wide + i * WIDE, (size_t)width * sizeof *wide);
}

/* k = 0: nothing to add. */
static void clear_strip(const Tile *t, int64_t rows, float *c) {
    for (int64_t i = 0; i < rows && t->k0 == 0 && !t->g->accumulate; i++)
        memset(c + i * t->ldc, 0, (size_t)t->nt * sizeof *c);
}

static void run_strip(const Tile *t, int64_t s, int64_t rows, float *c) {
    int64_t lda;
    const float *a = a_of(t, s, &lda);
    for (int64_t j = 0, width; j < t->nt; j += width) {
        width = width_at(t, j);
        if (splits(rows, width))
            run_padded(t, j, rows, width, a, lda, c + j);
        else
            run_kernels(t, j, rows, width, a, lda, c + j, t->ldc);
    }
}

static void run_tile(Tile *t) {
    const GemmBlock *g = t->g;
    int64_t strips = strips_of(t);
    for (int64_t s = 0; s < strips; s++) {
        int64_t at = strip_at(t, s), end = strip_at(t, s + 1), i = t->i0 + at;
        float *c = t->c ? t->c + at * t->ldc : t->work->tile;
        if (t->kb > 0)
            run_strip(t, s, end - at, c);
        else
            clear_strip(t, end - at, c);
        if (t->last && g->epilogue)
            g->epilogue(g->env, g->group, g->m0 + i, g->m0 + i + end - at, g->n0 + t->j0,
                        g->n0 + t->j0 + t->nt, c, t->ldc);
    }
}

/* Depth of tiles. Rows of A are cheap to read again for every tile: prefer long chains, and where
 * there is no C a whole one, so that a strip is all of C there ever is. Packed columns of A are
 * not: prefer wide tiles. */
static int64_t depth_of(const GemmBlock *g, AForm form) {
    bool wide = form >= A_COLUMNS || (form == A_ROWS_COPIED && g->c);
    int64_t most = wide ? GEMM_KC : g->c ? 2 * GEMM_KC : GEMM_DEPTH, depth = GEMM_KC;
    while (depth < g->k && depth < most)
        depth *= 2;
    return depth;
}

void gemm_block(const GemmWork *w, const GemmBlock *g) {
    AForm form = a_form(g);
    int64_t depth = depth_of(g, form), columns = w->columns * GEMM_KC / depth / GEMM_NR * GEMM_NR;
    if (columns < GEMM_NR)
        columns = GEMM_NR;
    bool once = g->k <= depth; /* a tile needs one round */
    int64_t chunk = g->c || once ? g->m : GEMM_MB;
    for (int64_t i0 = 0; i0 < g->m; i0 += chunk) {
        for (int64_t j0 = 0; j0 < g->n; j0 += columns) {
            Tile t = {.work = w, .g = g, .form = form, .i0 = i0, .j0 = j0};
            t.i1 = at_most(g->m, i0 + chunk);
            t.nt = at_most(g->n - j0, columns);
            t.in_place = b_in_place(g, t.i1 - i0, t.nt, at_most(g->k, depth));
            t.c = g->c ? g->c + i0 * g->ldc + j0 : once ? NULL : w->tile;
            t.ldc = g->c ? g->ldc : GEMM_NT;
            do { /* also once for k = 0, which gives zeros and the epilogue */
                t.kb = at_most(g->k - t.k0, depth);
                t.last = t.k0 + t.kb >= g->k;
                t.mr = strip_rows(t.kb);
                if (!t.in_place)
                    pack_b(&t);
                run_tile(&t);
                t.k0 += t.kb;
            } while (t.k0 < g->k);
        }
    }
}
