/* exec_warp.c: instructions in which the lanes of a warp talk to each other. warp.c has seen to it
 * that the lanes of `mask` are exactly those the instruction waits for. */
#include "lanes.h"

#include <string.h>

static void put_pred(PtxWarp *w, const PtxInstr *i, int n, uint32_t value, uint32_t mask) {
    uint32_t *d = ptx_dst(w, i, n);
    *d = (*d & ~mask) | (value & mask);
}

/* The lane whose value lane l gets (PTX manual, shfl.sync); *in: whether it is in range. */
static int shfl_source(int mode, int l, uint32_t b, uint32_t c, bool *in) {
    int bval = (int)(b & 31), cval = (int)(c & 31), seg = (int)(c >> 8 & 31), j;
    int max = (l & seg) | (cval & ~seg), min = l & seg;
    switch (mode) {
    case W_UP:
        j = l - bval;
        *in = j >= max;
        break;
    case W_DOWN:
        j = l + bval;
        *in = j <= max;
        break;
    case W_BFLY:
        j = l ^ bval;
        *in = j <= max;
        break;
    default:
        j = min | (bval & ~seg);
        *in = j <= max;
        break;
    }
    return *in ? j : l;
}

bool ptx_exec_shfl(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    const uint32_t *A = ptx_src(w, i, 2), *B = ptx_src(w, i, 3), *C = ptx_src(w, i, 4);
    uint32_t got[LANES] = {0}, p = 0, *D = ptx_dst(w, i, 0);
    for (uint32_t k = mask; k; k &= k - 1) {
        int l = __builtin_ctz(k);
        bool in;
        int j = shfl_source(i->c.mode, l, B[l], C[l], &in);
        if (!(mask >> j & 1)) {
            return ptx_run_fail(w, i, l, "takes the value of lane %d, which does not take part", j);
        }
        got[l] = A[j];
        p |= (uint32_t)in << l;
    }
    LANE_LOOP(mask, D[l] = got[l];);
    put_pred(w, i, 1, p, mask);
    return true;
}

bool ptx_exec_vote(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    uint32_t p = ptx_pred(w, &i->o[1]) & mask;
    bool r = i->c.mode == W_ALL ? p == mask : i->c.mode == W_ANY ? p != 0 : p == mask || p == 0;
    put_pred(w, i, 0, r ? ~0u : 0, mask);
    return true;
}

bool ptx_exec_ballot(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    uint32_t p = ptx_pred(w, &i->o[1]) & mask, *D = ptx_dst(w, i, 0);
    LANE_LOOP(mask, D[l] = p;);
    return true;
}

bool ptx_exec_match(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    bool all = i->c.mode == W_ALL, wide = ptx_type_bits(i->c.type[0]) == 64;
    const uint8_t *A = ptx_src(w, i, all ? 2 : 1);
    uint64_t v[LANES] = {0};
    uint32_t same[LANES] = {0}, *D = ptx_dst(w, i, 0);
    for (uint32_t k = mask; k; k &= k - 1) {
        int l = __builtin_ctz(k);
        memcpy(&v[l], A + l * (wide ? 8 : 4), wide ? 8 : 4);
    }
    for (uint32_t k = mask; k; k &= k - 1) {
        int l = __builtin_ctz(k);
        for (uint32_t o = mask; o; o &= o - 1) {
            int m = __builtin_ctz(o);
            same[l] |= (uint32_t)(v[m] == v[l]) << m;
        }
    }
    bool equal = same[__builtin_ctz(mask)] == mask;
    LANE_LOOP(mask, D[l] = all ? (equal ? mask : 0) : same[l];);
    if (all) {
        put_pred(w, i, 1, equal ? ~0u : 0, mask);
    }
    return true;
}

static uint32_t reduce(const PtxInstr *i, uint32_t a, uint32_t b) {
    bool is_signed = i->c.type[0] == T_S32;
    switch (i->c.op2) {
    case W_W_ADD:
        return a + b;
    case W_W_AND:
        return a & b;
    case W_W_OR:
        return a | b;
    case W_W_XOR:
        return a ^ b;
    case W_W_MIN:
        return (is_signed ? (int32_t)a < (int32_t)b : a < b) ? a : b;
    default:
        return (is_signed ? (int32_t)a > (int32_t)b : a > b) ? a : b;
    }
}

bool ptx_exec_redux(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    const uint32_t *A = ptx_src(w, i, 1);
    uint32_t *D = ptx_dst(w, i, 0), r = A[__builtin_ctz(mask)];
    for (uint32_t k = mask & (mask - 1); k; k &= k - 1) {
        r = reduce(i, r, A[__builtin_ctz(k)]);
    }
    LANE_LOOP(mask, D[l] = r;);
    return true;
}

bool ptx_exec_activemask(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    uint32_t *D = ptx_dst(w, i, 0);
    LANE_LOOP(mask, D[l] = mask;);
    return true;
}

/* Orders memory among its lanes. */
bool ptx_exec_barwarp(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    (void)i;
    uint32_t now = ++w->run->d->now;
    LANE_LOOP(mask, w->epoch[l] = now;);
    return true;
}

/* Everything is seen at once here; shadow.c draws no order from fences. */
bool ptx_exec_fence(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    (void)w;
    (void)i;
    (void)mask;
    return true;
}
