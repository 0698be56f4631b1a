/* exec_mma.c: tensor core instructions. Fragment layouts are those of the PTX manual, with g =
 * lane/4 and q = lane%4. How a GPU orders and rounds the sum inside an mma is not specified; here
 * it is exact and rounded once, or deviates as options.approx says. */
#include "memory.h"
#include "numbers.h"
#include "shadow.h"

#include <math.h>
#include <string.h>

enum { M = 16, N = 8, K_MAX = 16 };

typedef double Quad __attribute__((vector_size(32)));
typedef struct Tile { /* in double, where products are exact */
    double a[M][K_MAX];
    union {
        double b[K_MAX][N];
        Quad b4[K_MAX][N / 4];
    };
    union {
        double c[M][N];
        Quad c4[M][N / 4];
    };
    int k;
} Tile;

static float bits_f32(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static float half(uint32_t pair, int upper, int type) {
    uint16_t h = (uint16_t)(upper ? pair >> 16 : pair);
    return type == T_BF16 ? ptx_bf16_to_f32(h) : ptx_f16_to_f32(h);
}

/* a is [16,k] in na registers, b is [k,8] in nb. */
static bool load_tf32(PtxWarp *w, const PtxInstr *i, Tile *t, int na, int nb) {
    for (int r = 0; r < na + nb; r++) {
        const uint32_t *v = ptx_src(w, i, 4 + r);
        uint32_t low = 0;
        for (int l = 0; l < LANES; l++) {
            low |= v[l] & 0x1fff;
        }
        for (int l = 0; low && l < LANES; l++) {
            if (v[l] & 0x1fff && !isnan(bits_f32(v[l]))) {
                return ptx_run_fail(w, i, l,
                                    "operand %d is %g, not a tf32 (its low 13 bits are not 0): "
                                    "cvt.rna.tf32.f32 is missing",
                                    4 + r, (double)bits_f32(v[l]));
            }
        }
        for (int l = 0; l < LANES; l++) {
            int g = l / 4, q = l % 4;
            if (r < na) {
                t->a[g + 8 * (r & 1)][q + 4 * (r >> 1)] = bits_f32(v[l]);
            } else {
                t->b[q + 4 * (r - na)][g] = bits_f32(v[l]);
            }
        }
    }
    return true;
}

static void load_half(PtxWarp *w, const PtxInstr *i, Tile *t, int na, int nb, int type) {
    for (int r = 0; r < na + nb; r++) {
        const uint32_t *v = ptx_src(w, i, 4 + r);
        float low[LANES], high[LANES];
        for (int l = 0; l < LANES; l++) {
            low[l] = half(v[l], 0, type);
            high[l] = half(v[l], 1, type);
        }
        for (int l = 0; l < LANES; l++) {
            int g = l / 4, q = 2 * (l % 4);
            if (r < na) {
                t->a[g + 8 * (r & 1)][q + 8 * (r >> 1)] = low[l];
                t->a[g + 8 * (r & 1)][q + 8 * (r >> 1) + 1] = high[l];
            } else {
                t->b[q + 8 * (r - na)][g] = low[l];
                t->b[q + 8 * (r - na) + 1][g] = high[l];
            }
        }
    }
}

static void multiply(Tile *t) {
    for (int m = 0; m < M; m++) {
        Quad low = t->c4[m][0], high = t->c4[m][1];
        for (int k = 0; k < t->k; k++) {
            Quad a = {t->a[m][k], t->a[m][k], t->a[m][k], t->a[m][k]};
            low += a * t->b4[k][0];
            high += a * t->b4[k][1];
        }
        t->c4[m][0] = low;
        t->c4[m][1] = high;
    }
}

/* The largest term of an element's sum: what a GPU's error is relative to. */
static double largest(const Tile *t, double c, int m, int n) {
    double big = fabs(c);
    for (int k = 0; k < t->k; k++) {
        big = fmax(big, fabs(t->a[m][k] * t->b[k][n]));
    }
    return big;
}

bool ptx_exec_mma(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    Tile t;
    (void)mask;
    t.k = i->c.mode == W_M16N8K4 ? 4 : i->c.mode == W_M16N8K8 ? 8 : 16;
    int type = i->c.type[1], na = i->nops - 8, nb;
    na = na == 3 ? 2 : 4;
    nb = i->nops - 8 - na;
    if (type == T_TF32) {
        if (!load_tf32(w, i, &t, na, nb)) {
            return false;
        }
    } else {
        load_half(w, i, &t, na, nb, type);
    }
    double c0[M][N];
    for (int l = 0; l < LANES; l++) {
        for (int r = 0; r < 4; r++) {
            double v = ((const float *)ptx_src(w, i, i->nops - 4 + r))[l];
            c0[l / 4 + 8 * (r >> 1)][2 * (l % 4) + (r & 1)] = v;
        }
    }
    memcpy(t.c, c0, sizeof c0);
    multiply(&t);
    bool exact = w->run->d->o.approx == PTX_APPROX_EXACT;
    for (int l = 0; l < LANES; l++) {
        for (int r = 0; r < 4; r++) {
            int m = l / 4 + 8 * (r >> 1), n = 2 * (l % 4) + (r & 1);
            double v = t.c[m][n];
            float f = (float)v;
            if (!exact && (double)f != v) { /* sums that fit are exact on any GPU */
                f = ptx_approx(w, v, largest(&t, c0[m][n], m, n) * 0x1p-22);
            }
            ((float *)ptx_dst(w, i, r))[l] = f;
        }
    }
    return true;
}

/* 8 x 8 matrices of b16: lane 8j+r names row r of matrix j; lane l gets from matrix j elements
 * (l/4, 2(l%4)+{0,1}), or with .trans (2(l%4)+{0,1}, l/4). */
bool ptx_exec_ldmatrix(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    uint64_t at[LANES];
    uint16_t rows[4][8][8];
    int n = i->ndst;
    (void)mask;
    ptx_lane_addresses(w, &i->o[n], at);
    PtxOrder o = ptx_order(w->run, true);
    for (int j = 0; j < n; j++) {
        for (int r = 0; r < 8; r++) {
            uint64_t offset;
            int l = 8 * j + r;
            PtxAlloc *a = ptx_resolve(w, i, l, W_SHARED, at[l], 16, &offset);
            if (!a || !ptx_checked_read(w, i, l, a, offset, 16, rows[j][r]) ||
                (w->run->races && !ptx_touch_words(w, i, &o, l ^ 1, a, offset, 4, A_READ))) {
                return false; /* every lane gets some of the row, not only the one that names it */
            }
        }
    }
    for (int j = 0; j < n; j++) {
        uint32_t *D = ptx_dst(w, i, j);
        for (int l = 0; l < LANES; l++) {
            int g = l / 4, q = 2 * (l % 4);
            D[l] = i->c.flags & F_TRANS ? rows[j][q][g] | (uint32_t)rows[j][q + 1][g] << 16
                                        : rows[j][g][q] | (uint32_t)rows[j][g][q + 1] << 16;
        }
    }
    return true;
}
