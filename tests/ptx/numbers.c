/* numbers.c: rounding to the formats that x86 does not compute in, and what .approx may answer. */
#include "numbers.h"

#include <math.h>
#include <string.h>

/* v as an integer in one of PTX's rounding directions. */
double ptx_to_integer(double v, int direction) {
    switch (direction) {
    case W_RZ:
    case W_RZI:
        return trunc(v);
    case W_RM:
    case W_RMI:
        return floor(v);
    case W_RP:
    case W_RPI:
        return ceil(v);
    case W_RNA:
        return round(v); /* halves go away from zero */
    default:
        return nearbyint(v); /* the host rounds to nearest even throughout */
    }
}

/* v with `digits` binary digits, no exponent below emin (subnormals), infinite from 2^emax on. */
double ptx_round_to(double v, int digits, int emin, int emax, int round) {
    if (v == 0 || isnan(v) || isinf(v)) {
        return v;
    }
    int e;
    frexp(v, &e); /* 0.5 <= |v| / 2^e < 1 */
    int unit = e - digits;
    if (unit < emin - digits + 1) {
        unit = emin - digits + 1;
    }
    double r = ldexp(ptx_to_integer(ldexp(v, -unit), round), unit);
    if (fabs(r) < ldexp(1, emax)) {
        return r == 0 ? copysign(0, v) : r;
    }
    bool away = round == W_RN || round == W_RNA || round == 0 || (round == W_RP && v > 0) ||
                (round == W_RM && v < 0);
    double largest = ldexp(ldexp(1, digits) - 1, emax - digits);
    return copysign(away ? INFINITY : largest, v);
}

float ptx_f16_to_f32(uint16_t h) {
    int e = h >> 10 & 31, f = h & 1023;
    float v = e == 31 ? (f ? NAN : INFINITY)
                      : (e ? ldexpf((float)(1024 + f), e - 25) : ldexpf((float)f, -24));
    return h & 0x8000 ? -v : v;
}

uint16_t ptx_f32_to_f16(double v, int round) {
    if (isnan(v)) {
        return 0x7fff;
    }
    double r = ptx_round_to(v, 11, -14, 16, round);
    uint16_t sign = signbit(r) ? 0x8000 : 0;
    double a = fabs(r);
    if (isinf(a)) {
        return sign | 0x7c00;
    }
    if (a < 0x1p-14) {
        return (uint16_t)(sign | (uint16_t)ldexp(a, 24));
    }
    int e;
    double m = frexp(a, &e);
    return (uint16_t)(sign | (uint16_t)((e + 14) << 10) | ((uint16_t)ldexp(m, 11) & 1023));
}

/* a + b with the last bit telling whether digits were lost, so that a second rounding is right. */
double ptx_add_odd(double a, double b) {
    double s = a + b, bb = s - a, err = (a - (s - bb)) + (b - bb);
    uint64_t u;
    memcpy(&u, &s, 8);
    if (err == 0 || isnan(err) || isinf(s) || (u & 1)) {
        return s;
    }
    return nextafter(s, err > 0 ? INFINITY : -INFINITY);
}

/* A value that .approx may give for v, whose manual allows an error of `bound` (absolute). */
float ptx_approx(PtxWarp *w, double v, double bound) {
    float exact = (float)v;
    if (v == 0 || isnan(v) || isinf(v)) {
        return exact;
    }
    double u = 0;
    switch (w->run->d->o.approx) {
    case PTX_APPROX_HIGH:
        u = 1;
        break;
    case PTX_APPROX_LOW:
        u = -1;
        break;
    case PTX_APPROX_RANDOM:
        u = (double)(int64_t)ptx_random(&w->run->approx_random) * 0x1p-63;
        break;
    default:
        return exact;
    }
    float got = (float)(v + u * bound);
    if (fabs(got - v) > bound) { /* rounding to float carried it beyond */
        got = nextafterf(got, exact);
    }
    return got;
}
