/* exec_round.c: arithmetic in a directed rounding mode of the host. Compiled so that the compiler
 * moves nothing across the change of mode (-frounding-math). */
#include "lanes.h"
#include "numbers.h"

#include <fenv.h>
#include <math.h>
#include <string.h>

static __attribute__((noinline)) float op32(int op, float a, float b, float c) {
    switch (op) {
    case OP_ADD:
        return a + b;
    case OP_SUB:
        return a - b;
    case OP_MUL:
        return a * b;
    case OP_DIV:
        return a / b;
    case OP_FMA:
        return fmaf(a, b, c);
    case OP_RCP:
        return 1.0f / a;
    default:
        return sqrtf(a);
    }
}

static __attribute__((noinline)) double op64(int op, double a, double b, double c) {
    switch (op) {
    case OP_ADD:
        return a + b;
    case OP_SUB:
        return a - b;
    case OP_MUL:
        return a * b;
    case OP_DIV:
        return a / b;
    case OP_FMA:
        return fma(a, b, c);
    case OP_RCP:
        return 1.0 / a;
    default:
        return sqrt(a);
    }
}

static float flush(float v) {
    return fabsf(v) < 0x1p-126f ? copysignf(0, v) : v;
}

static float one32(const PtxInstr *i, const float *s) {
    bool ftz = i->c.flags & F_FTZ;
    float r = ftz ? flush(op32(i->c.op, flush(s[0]), flush(s[1]), flush(s[2])))
                  : op32(i->c.op, s[0], s[1], s[2]);
    if (r != r) {
        uint32_t n = 0x7fffffff;
        memcpy(&r, &n, 4);
        r = i->c.flags & F_SAT ? 0 : r;
    }
    return i->c.flags & F_SAT ? (r > 0 ? (r < 1 ? r : 1) : 0) : r;
}

bool ptx_exec_directed(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    int mode = i->c.round == W_RZ   ? FE_TOWARDZERO
               : i->c.round == W_RM ? FE_DOWNWARD
               : i->c.round == W_RP ? FE_UPWARD
                                    : FE_TONEAREST;
    bool is64 = i->c.type[0] == T_F64;
    fesetround(mode);
    for (uint32_t k = mask; k; k &= k - 1) {
        int l = __builtin_ctz(k);
        float s[3] = {0};
        double d[3] = {0};
        for (int n = 1; n < i->nops; n++) {
            const uint8_t *p = ptx_src(w, i, n);
            if (is64) {
                memcpy(&d[n - 1], p + 8 * l, 8);
            } else {
                memcpy(&s[n - 1], p + 4 * l, 4);
            }
        }
        if (is64) {
            ((double *)ptx_dst(w, i, 0))[l] = op64(i->c.op, d[0], d[1], d[2]);
        } else {
            ((float *)ptx_dst(w, i, 0))[l] = one32(i, s);
        }
    }
    fesetround(FE_TONEAREST);
    return true;
}
