/* lex.c: PTX text as tokens. Comments are skipped; a name takes its dotted words along, so an
 * opcode, a special register or a type-less symbol is one token. */
#include "ptx.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool name_start(char c) {
    return isalpha((unsigned char)c) || c == '_' || c == '$' || c == '%';
}

static bool name_char(char c) {
    return isalnum((unsigned char)c) || c == '_' || c == '$';
}

static void skip_space(PtxLexer *x) {
    while (x->p < x->end) {
        if (*x->p == '\n') {
            x->line++;
            x->p++;
        } else if (isspace((unsigned char)*x->p)) {
            x->p++;
        } else if (x->p + 1 < x->end && x->p[0] == '/' && x->p[1] == '/') {
            while (x->p < x->end && *x->p != '\n') {
                x->p++;
            }
        } else if (x->p + 1 < x->end && x->p[0] == '/' && x->p[1] == '*') {
            x->p += 2;
            while (x->p + 1 < x->end && !(x->p[0] == '*' && x->p[1] == '/')) {
                x->line += *x->p == '\n';
                x->p++;
            }
            x->p = x->p + 2 < x->end ? x->p + 2 : x->end;
        } else {
            break;
        }
    }
}

/* The end of a name with its dotted words; "::" joins words too. */
static const char *name_end(const char *p, const char *end) {
    p++;
    while (p < end) {
        if (name_char(*p)) {
            p++;
        } else if (*p == '.' && p + 1 < end && name_char(p[1])) {
            p += 2;
        } else if (*p == ':' && p + 2 < end && p[1] == ':' && name_char(p[2])) {
            p += 3;
        } else {
            break;
        }
    }
    return p;
}

PtxToken ptx_lex(PtxLexer *x) {
    skip_space(x);
    PtxToken t = {TK_END, x->line, x->p, 0};
    if (x->p == x->end || !*x->p) {
        return t;
    }
    const char *p = x->p;
    if (name_start(*p)) {
        t.kind = TK_NAME;
        p = name_end(p, x->end);
    } else if (*p == '.' && p + 1 < x->end && name_start(p[1])) {
        t.kind = TK_DIRECTIVE;
        p += 2;
        while (p < x->end && name_char(*p)) {
            p++;
        }
    } else if (isdigit((unsigned char)*p)) {
        t.kind = TK_NUMBER;
        while (p < x->end && (isalnum((unsigned char)*p) || *p == '.' ||
                              ((*p == '+' || *p == '-') && tolower((unsigned char)p[-1]) == 'e' &&
                               tolower((unsigned char)x->p[1]) != 'x'))) {
            p++;
        }
    } else if (*p == '"') {
        t.kind = TK_STRING;
        for (p++; p < x->end && *p != '"' && *p != '\n'; p++) {
        }
        p += p < x->end;
    } else if (strchr("{}[](),;:@!|+-<>=", *p)) {
        t.kind = TK_PUNCT;
        p++;
    } else {
        t.kind = TK_BAD;
        p++;
    }
    t.n = (size_t)(p - x->p);
    x->p = p;
    return t;
}

bool ptx_token_is(PtxToken t, const char *s) {
    return t.kind != TK_END && t.n == strlen(s) && !memcmp(t.s, s, t.n);
}

static bool hex_bits(const char *s, size_t n, size_t digits, uint64_t *bits) {
    if (n != digits) {
        return false;
    }
    *bits = 0;
    for (size_t k = 0; k < n; k++) {
        if (!isxdigit((unsigned char)s[k])) {
            return false;
        }
        int c = tolower((unsigned char)s[k]);
        *bits = *bits << 4 | (uint64_t)(c <= '9' ? c - '0' : c - 'a' + 10);
    }
    return true;
}

static uint64_t float_bits(double v, int type) {
    union {
        float f;
        uint32_t u;
    } f;
    union {
        double d;
        uint64_t u;
    } d = {v};
    f.f = (float)v;
    return ptx_type_bits(type) == 64 ? d.u : f.u;
}

bool ptx_number(const char *s, size_t n, int type, uint64_t *bits) {
    char b[64], *end;
    bool minus = n && *s == '-';
    if (n == 0 || n >= sizeof b) {
        return false;
    }
    memcpy(b, s, n);
    b[n] = 0;
    const char *p = b + minus;
    bool is_float = ptx_type_float(type), bits_type = type == T_B32 || type == T_B64;
    if (p[0] == '0' && (p[1] == 'f' || p[1] == 'F')) {
        if (minus || !hex_bits(p + 2, strlen(p + 2), 8, bits)) {
            return false;
        }
        union {
            uint32_t u;
            float f;
        } c = {(uint32_t)*bits};
        if (type == T_F64) {
            *bits = float_bits(c.f, T_F64);
        }
        return type == T_F32 || type == T_F64 || type == T_B32;
    }
    if (p[0] == '0' && (p[1] == 'd' || p[1] == 'D')) {
        return !minus && hex_bits(p + 2, strlen(p + 2), 16, bits) &&
               (type == T_F64 || type == T_B64);
    }
    if (strpbrk(p, ".") || (strpbrk(p, "eE") && p[1] != 'x' && p[1] != 'X')) {
        double v = strtod(b, &end);
        *bits = float_bits(v, type);
        return !*end && (type == T_F32 || type == T_F64);
    }
    errno = 0;
    int base = p[0] == '0' && (p[1] == 'b' || p[1] == 'B') ? 2 : 0;
    uint64_t v = strtoull(p + (base ? 2 : 0), &end, base);
    end += *end == 'U';
    if (errno || *end || (is_float && !bits_type)) {
        return false;
    }
    int width = ptx_type_bits(type);
    if (minus) {
        if (v > (1ull << (width == 64 ? 63 : 63))) {
            return false;
        }
        v = 0 - v;
    }
    if (width < 64) { /* as ptxas: what neither the signed nor the unsigned type holds is wrong */
        int64_t sv = (int64_t)v;
        if (sv < -(1ll << (width - 1 + (width == 1))) || sv >= (1ll << width)) {
            return false;
        }
        v &= (1ull << width) - 1;
    }
    *bits = v;
    return true;
}
