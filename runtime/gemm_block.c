/* gemm_block.c: one thread's share of a matrix product.
 *
 *   for tiles of GEMM_NT columns
 *     for GEMM_KC values of k: pack B (tile columns x KC, second cache), take or pack A
 *       for strips of rows, for panels of columns: kernel
 *       in the last round: epilogue on the strip, which is still in the first cache
 *
 * Packing is the only place that knows strides, gathers and edges; kernels see unit strides.
 * Needs: work buffers of GEMM_WORK_FLOATS. Allocates nothing. */
#include <string.h>

#include "runtime/gemm.h"

static int64_t at_most(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* B[k0.., j0..] (kc x nt) -> panels of nr columns, each [kc][nr]. */
static void pack_b(const GemmIsa *isa, const GemmBlock *g, int64_t k0, int64_t kc, int64_t j0,
                   int64_t nt, float *dst) {
    for (int64_t j = 0; j < nt; j += isa->nr, dst += kc * isa->nr) {
        int64_t n = at_most(nt - j, isa->nr);
        const float *src = g->b + k0 * g->b_row + (j0 + j) * g->b_col;
        if (g->b_col == 1) {
            isa->pack_b_copy(src, g->b_row, kc, n, dst);
        } else if (g->b_row == 1) {
            isa->pack_b_transposed(src, g->b_col, kc, n, dst);
        } else {
            for (int64_t kk = 0; kk < kc; kk++)
                for (int64_t jj = 0; jj < isa->nr; jj++)
                    dst[kk * isa->nr + jj] = jj < n ? src[kk * g->b_row + jj * g->b_col] : 0;
        }
    }
}

/* How the kernels read A of this block. */
typedef enum { A_IN_PLACE, A_COPIED_ROWS, A_PANELS } AForm;

/* Rows whose distance is a multiple of 4096 bytes share one set of the first cache: copy them,
 * unless B has so few columns that the copy would cost more than it saves. */
static AForm a_form(const GemmBlock *g) {
    if (g->a_index)
        return A_COPIED_ROWS;
    if (g->a_col == 1)
        return g->a_row % 1024 == 0 && g->m > 8 && g->n >= 64 ? A_COPIED_ROWS : A_IN_PLACE;
    return g->a_row == 1 ? A_PANELS : A_COPIED_ROWS;
}

static void copy_rows(const GemmBlock *g, int64_t k0, int64_t kc, float *dst) {
    for (int64_t i = 0; i < g->m; i++, dst += GEMM_A_LD) {
        int64_t row = g->a_index ? g->a_index[i] : i;
        const float *src = g->a + row * g->a_row + k0 * g->a_col;
        if (row < 0)
            memset(dst, 0, (size_t)kc * sizeof *dst);
        else if (g->a_col == 1)
            memcpy(dst, src, (size_t)kc * sizeof *dst);
        else
            for (int64_t kk = 0; kk < kc; kk++)
                dst[kk] = src[kk * g->a_col];
    }
}

/* Strip s of the block: rows divided evenly, so that no strip is much smaller than the others. */
static int64_t strip_start(int64_t m, int64_t strips, int64_t s) {
    return m * s / strips;
}

/* One round over a tile: C tile (+)= A[:, k0..k0+kc] B; with `last`, the epilogue after each strip.
 */
static void tile_round(const GemmIsa *isa, const GemmWork *w, const GemmBlock *g, AForm form,
                       int64_t k0, int64_t kc, int64_t j0, int64_t nt, float *c, int64_t ldc,
                       bool add, bool last) {
    int64_t strips = (g->m + isa->mr - 1) / isa->mr;
    if (form == A_COPIED_ROWS)
        copy_rows(g, k0, kc, w->a);
    for (int64_t s = 0; s < strips; s++) {
        int64_t i0 = strip_start(g->m, strips, s), rows = strip_start(g->m, strips, s + 1) - i0;
        const float *a = g->a + i0 * g->a_row + k0 * g->a_col;
        int64_t rs = g->a_row;
        GemmKernel *kernel = form == A_PANELS ? isa->panel[rows - 1] : isa->row[rows - 1];
        if (form == A_PANELS) {
            isa->pack_a_panel(a, g->a_col, kc, rows, w->a);
            a = w->a;
        } else if (form == A_COPIED_ROWS) {
            a = w->a + i0 * GEMM_A_LD;
            rs = GEMM_A_LD;
        }
        float *strip = c + i0 * ldc;
        for (int64_t j = 0; j < nt; j += isa->nr) {
            int64_t n = at_most(nt - j, isa->nr);
            kernel[n > isa->vl](kc, a, rs, w->b + j * kc, strip + j, ldc, n, add);
        }
        if (last && g->epilogue)
            g->epilogue(g->env, g->group, g->m0 + i0, g->m0 + i0 + rows, g->n0 + j0,
                        g->n0 + j0 + nt, strip, ldc);
    }
}

void gemm_block(const GemmIsa *isa, const GemmWork *w, const GemmBlock *g) {
    AForm form = a_form(g);
    for (int64_t j0 = 0; j0 < g->n; j0 += GEMM_NT) {
        int64_t nt = at_most(g->n - j0, GEMM_NT);
        float *c = g->c ? g->c + j0 : w->tile;
        int64_t ldc = g->c ? g->ldc : GEMM_NT;
        int64_t k0 = 0;
        do { /* also once for k = 0, which gives zeros and the epilogue */
            int64_t kc = at_most(g->k - k0, GEMM_KC);
            pack_b(isa, g, k0, kc, j0, nt, w->b);
            tile_round(isa, w, g, form, k0, kc, j0, nt, c, ldc, k0 > 0 || g->accumulate,
                       k0 + kc >= g->k);
            k0 += kc;
        } while (k0 < g->k);
    }
}
