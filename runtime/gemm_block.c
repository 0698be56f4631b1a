/* gemm_block.c: one thread's share of a matrix product.
 *
 *   for tiles of at most GEMM_NT columns
 *     for as much of k as fits: pack B (second cache)
 *       for strips of rows
 *         for GEMM_KC values of k: take or pack A (first cache); for panels of columns: kernel
 *         when k is done: epilogue on the strip, which is still in the first cache
 *
 * Packing is the only place that knows strides, gathers and edges; kernels see unit strides.
 * Between kernels the next strip's A is fetched ahead, since its rows lie far apart and no
 * hardware prefetcher guesses them. Needs: work buffers. Allocates nothing. */
#include <string.h>

#include "runtime/gemm.h"

static int64_t at_most(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* B[k0.., j0..] (kc x nt) -> panels of nr columns, each [kc][nr]. */
static void pack_b_chain(const GemmIsa *isa, const GemmBlock *g, int64_t k0, int64_t kc, int64_t j0,
                         int64_t nt, float *dst) {
    const float *src = g->b + k0 * g->b_row + j0 * g->b_col;
    if (g->b_col == 1) {
        isa->pack_b_copy(src, g->b_row, kc, nt, dst);
        return;
    }
    for (int64_t j = 0; j < nt; j += isa->nr, dst += gemm_panel(kc, isa->nr)) {
        int64_t n = at_most(nt - j, isa->nr);
        const float *from = src + j * g->b_col;
        if (g->b_row == 1) {
            isa->pack_b_transposed(from, g->b_col, kc, n, dst);
            continue;
        }
        for (int64_t kk = 0; kk < kc; kk++)
            for (int64_t jj = 0; jj < isa->nr; jj++)
                dst[kk * isa->nr + jj] = jj < n ? from[kk * g->b_row + jj * g->b_col] : 0;
    }
}

/* Distance of the packed chains of a tile. */
static int64_t chain_distance(const GemmIsa *isa, int64_t nt) {
    return (nt + isa->nr - 1) / isa->nr * gemm_panel(GEMM_KC, isa->nr);
}

/* B[k0.., j0..] (kb x nt) -> one block of panels for each chain. */
static void pack_b(const GemmIsa *isa, const GemmBlock *g, int64_t k0, int64_t kb, int64_t j0,
                   int64_t nt, float *dst) {
    for (int64_t k = 0; k < kb; k += GEMM_KC, dst += chain_distance(isa, nt))
        pack_b_chain(isa, g, k0 + k, at_most(kb - k, GEMM_KC), j0, nt, dst);
}

/* How the kernels read A of this block. */
typedef enum { A_IN_PLACE, A_COPIED_ROWS, A_PANELS } AForm;

static AForm a_form(const GemmBlock *g) {
    if (g->a_col == 1)
        return g->a_index ? A_COPIED_ROWS : A_IN_PLACE;
    return g->a_row == 1 && !g->a_index ? A_PANELS : A_COPIED_ROWS;
}

/* Row i of the block at k0; NULL where a gather has a hole. */
static const float *a_row_at(const GemmBlock *g, int64_t i, int64_t k0) {
    int64_t row = g->a_index ? g->a_index[i] : i;
    return row < 0 ? NULL : g->a + row * g->a_row + k0 * g->a_col;
}

static void copy_rows(const GemmBlock *g, int64_t i0, int64_t rows, int64_t k0, int64_t kc,
                      float *dst) {
    for (int64_t i = i0; i < i0 + rows; i++, dst += GEMM_A_LD) {
        const float *src = a_row_at(g, i, k0);
        if (!src)
            memset(dst, 0, (size_t)kc * sizeof *dst);
        else if (g->a_col == 1)
            memcpy(dst, src, (size_t)kc * sizeof *dst);
        else
            for (int64_t kk = 0; kk < kc; kk++)
                dst[kk] = src[kk * g->a_col];
    }
}

/* One tile of C in work: rows i0..i1 of the block, columns j0..j0+nt, chains k0..k0+kb. */
typedef struct Tile {
    const GemmIsa *isa;
    const GemmWork *work;
    const GemmBlock *g;
    AForm form;
    int64_t i0, i1, j0, nt, k0, kb;
    float *c; /* at row i0; NULL: a strip's tile is enough */
    int64_t ldc;
    bool last;      /* k is done after this */
    int64_t parts;  /* kernel calls of this tile: B of the next tile is fetched meanwhile */
    int64_t part;   /* of them done */
    int64_t next_j; /* first column of the tile after this one; j0 if there is none */
} Tile;

/* Fetches a part of the next tile's B, as it lies in memory, into the second cache. */
static void fetch_b(Tile *t) {
    const GemmBlock *g = t->g;
    int64_t nt = at_most(g->n - t->next_j, t->nt);
    bool rows = g->b_col == 1; /* runs of n, else of k */
    int64_t runs = rows ? t->kb : nt, lines = ((rows ? nt : t->kb) + 15) / 16;
    int64_t from = runs * lines * t->part / t->parts;
    int64_t to = runs * lines * (t->part + 1) / t->parts;
    t->part++;
    if (t->next_j == t->j0 || from == to)
        return;
    int64_t distance = rows ? g->b_row : g->b_col, run = from / lines, line = from % lines;
    const float *p = g->b + t->k0 * g->b_row + t->next_j * g->b_col + run * distance;
    for (; from < to; from++) {
        __builtin_prefetch(p + line * 16, 0, 2);
        if (++line == lines) {
            line = 0;
            p += distance;
        }
    }
}

/* Fetches part `part` of `parts` of the rows [i0, i0 + rows) of A. */
static void fetch_a(const GemmBlock *g, int64_t i0, int64_t rows, int64_t k0, int64_t kc,
                    int64_t part, int64_t parts) {
    for (int64_t i = rows * part / parts; i < rows * (part + 1) / parts; i++) {
        const float *p = a_row_at(g, i0 + i, k0);
        for (int64_t kk = 0; p && kk < kc; kk += 16)
            __builtin_prefetch(p + kk, 0, 2);
    }
}

/* One strip of C (+)= A strip times one chain of packed B. */
static void strip_chain(Tile *t, GemmKernel *kernel, const float *a, int64_t rs, int64_t k,
                        int64_t kc, float *c) {
    const GemmIsa *isa = t->isa;
    const float *b = t->work->b + k / GEMM_KC * chain_distance(isa, t->nt);
    bool add = t->k0 + k > 0 || t->g->accumulate;
    for (int64_t j = 0; j < t->nt; j += isa->nr, b += gemm_panel(kc, isa->nr)) {
        int64_t n = at_most(t->nt - j, isa->nr);
        fetch_b(t);
        kernel[n > isa->vl](kc, a, rs, b, c + j, t->ldc, n, add);
    }
}

static void strip_done(const Tile *t, int64_t i0, int64_t i1, float *strip) {
    const GemmBlock *g = t->g;
    if (t->last && g->epilogue)
        g->epilogue(g->env, g->group, g->m0 + i0, g->m0 + i1, g->n0 + t->j0, g->n0 + t->j0 + t->nt,
                    strip, t->ldc);
}

/* A in rows: strip by strip through all chains. */
static void tile_by_rows(Tile *t) {
    const GemmBlock *g = t->g;
    int64_t m = t->i1 - t->i0, strips = (m + t->isa->mr - 1) / t->isa->mr;
    int64_t chains = t->kb > 0 ? (t->kb + GEMM_KC - 1) / GEMM_KC : 1;
    for (int64_t s = 0; s < strips; s++) {
        int64_t at = gemm_strip(m, strips, s), end = gemm_strip(m, strips, s + 1);
        int64_t beyond = s + 1 < strips ? gemm_strip(m, strips, s + 2) : end;
        float *strip = t->c ? t->c + at * t->ldc : t->work->tile;
        for (int64_t chain = 0; chain < chains; chain++) {
            int64_t k = chain * GEMM_KC, kc = at_most(t->kb - k, GEMM_KC), i0 = t->i0 + at;
            const float *a = g->a + i0 * g->a_row + (t->k0 + k) * g->a_col;
            int64_t rs = g->a_row;
            if (t->form == A_COPIED_ROWS) {
                copy_rows(g, i0, end - at, t->k0 + k, kc, t->work->a);
                a = t->work->a;
                rs = GEMM_A_LD;
            }
            fetch_a(g, t->i0 + end, beyond - end, t->k0, t->kb, chain, chains);
            strip_chain(t, t->isa->row[end - at - 1], a, rs, k, kc, strip);
        }
        strip_done(t, t->i0 + at, t->i0 + end, strip);
    }
}

/* A stored [k, m]: chunks of strips, chain by chain. */
static void tile_by_panels(Tile *t) {
    const GemmBlock *g = t->g;
    const int64_t mr = t->isa->mr;
    int64_t chains = t->kb > 0 ? (t->kb + GEMM_KC - 1) / GEMM_KC : 1;
    int64_t m = t->i1 - t->i0, chunks = (m + GEMM_CHUNK * mr - 1) / (GEMM_CHUNK * mr);
    for (int64_t h = 0; h < chunks; h++) {
        int64_t first = gemm_strip(m, chunks, h), rows = gemm_strip(m, chunks, h + 1) - first;
        int64_t strips = (rows + mr - 1) / mr;
        float *c = t->c ? t->c + first * t->ldc : t->work->tile;
        for (int64_t chain = 0; chain < chains; chain++) {
            int64_t k = chain * GEMM_KC, kc = at_most(t->kb - k, GEMM_KC);
            t->isa->pack_a_panels(g->a + t->i0 + first + (t->k0 + k) * g->a_col, g->a_col, kc, rows,
                                  strips, t->work->a);
            for (int64_t s = 0; s < strips; s++) {
                int64_t at = gemm_strip(rows, strips, s), end = gemm_strip(rows, strips, s + 1);
                strip_chain(t, t->isa->panel[end - at - 1], t->work->a + s * gemm_panel(kc, mr), 0,
                            k, kc, c + at * t->ldc);
                if (chain + 1 == chains)
                    strip_done(t, t->i0 + first + at, t->i0 + first + end, c + at * t->ldc);
            }
        }
    }
}

void gemm_block(const GemmIsa *isa, const GemmWork *w, const GemmBlock *g) {
    AForm form = a_form(g);
    /* Rows of A are cheap to read again for every tile: prefer B whole, and a tile of one strip
     * where there is no C. Panels are not: prefer wide tiles. */
    bool deep = form != A_PANELS && g->k > GEMM_KC && (g->k <= 2 * GEMM_KC || !g->c);
    int64_t columns = deep ? w->columns / 2 : w->columns, depth = deep ? 2 * GEMM_KC : GEMM_KC;
    bool once = g->k <= depth; /* a tile needs one round */
    int64_t chunk = g->c || (once && form != A_PANELS) ? g->m : GEMM_MB;
    for (int64_t i0 = 0; i0 < g->m; i0 += chunk) {
        for (int64_t j0 = 0; j0 < g->n; j0 += columns) {
            Tile t = {.isa = isa, .work = w, .g = g, .form = form, .i0 = i0, .j0 = j0};
            t.i1 = at_most(g->m, i0 + chunk);
            t.nt = at_most(g->n - j0, columns);
            t.c = g->c ? g->c + i0 * g->ldc + j0 : once ? NULL : w->tile;
            t.ldc = g->c ? g->ldc : GEMM_NT;
            t.next_j = j0 + columns < g->n ? j0 + columns : j0;
            do { /* also once for k = 0, which gives zeros and the epilogue */
                t.kb = at_most(g->k - t.k0, depth);
                t.last = t.k0 + t.kb >= g->k;
                t.part = 0;
                t.parts = ((t.i1 - i0) / isa->mr + 1 + GEMM_CHUNK) * (t.nt / isa->nr + 1) *
                          (t.kb / GEMM_KC + 1);
                pack_b(isa, g, t.k0, t.kb, j0, t.nt, w->b);
                if (form == A_PANELS)
                    tile_by_panels(&t);
                else
                    tile_by_rows(&t);
                t.k0 += t.kb;
            } while (t.k0 < g->k);
        }
    }
}
