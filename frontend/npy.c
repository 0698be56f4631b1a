/* npy.c: the header of numpy's .npy format, versions 1 to 3: exactly the grammar numpy writes,
 * nothing evaluated. */
#include <stdio.h>
#include <string.h>

#include "frontend/npz.h"

static const unsigned char magic[6] = {0x93, 'N', 'U', 'M', 'P', 'Y'};

static const struct {
    const char *descr;
    DType dtype;
} descrs[] = {
    {"<f4", DT_F32}, {"<f8", DT_F64}, {"<f2", DT_F16}, {"|i1", DT_I8},
    {"<i2", DT_I16}, {"<i4", DT_I32}, {"<i8", DT_I64}, {"|u1", DT_U8},
    {"<u2", DT_U16}, {"<u4", DT_U32}, {"<u8", DT_U64}, {"|b1", DT_BOOL},
};

enum { MAX_HEADER = 65535 };

size_t npy_header_bytes(const unsigned char *p, size_t n) {
    if (n < 12 || memcmp(p, magic, 6) != 0 || p[6] < 1 || p[6] > 3 || p[7] != 0)
        return 0;
    if (p[6] == 1)
        return 10 + (size_t)(p[8] | p[9] << 8);
    size_t len = (size_t)p[8] | (size_t)p[9] << 8 | (size_t)p[10] << 16 | (size_t)p[11] << 24;
    return len > MAX_HEADER ? 0 : 12 + len;
}

/* ---- the dictionary: {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), } ---- */

typedef struct Scan {
    const char *p, *end;
} Scan;

static void spaces(Scan *s) {
    while (s->p < s->end && *s->p == ' ')
        s->p++;
}

static bool take(Scan *s, const char *word) {
    spaces(s);
    size_t n = strlen(word);
    if ((size_t)(s->end - s->p) < n || memcmp(s->p, word, n) != 0)
        return false;
    s->p += n;
    return true;
}

/* 'text' into `to`, at most 31 characters. */
static bool quoted(Scan *s, char to[32]) {
    if (!take(s, "'"))
        return false;
    size_t n = 0;
    while (s->p < s->end && *s->p != '\'' && *s->p != '\\' && n < 31)
        to[n++] = *s->p++;
    to[n] = 0;
    return s->p < s->end && *s->p++ == '\'';
}

static bool number(Scan *s, int64_t *v) {
    spaces(s);
    const char *start = s->p;
    *v = 0;
    while (s->p < s->end && *s->p >= '0' && *s->p <= '9')
        if (__builtin_mul_overflow(*v, 10, v) || __builtin_add_overflow(*v, *s->p++ - '0', v))
            return false;
    return s->p > start;
}

static const char *parse_descr(Scan *s, NpyHeader *h) {
    char text[32];
    if (!quoted(s, text))
        return "an element type stgcc does not read (structured arrays are not read)";
    for (int i = 0; i < COUNT_OF(descrs); i++)
        if (!strcmp(descrs[i].descr, text)) {
            h->dtype = descrs[i].dtype;
            return NULL;
        }
    if (strchr(text, 'O'))
        return "an object array, which only Python can read; save numbers";
    if (text[0] == '>')
        return "a big-endian array; save it with .astype('<f4') or alike";
    return "an element type stgcc does not read (it reads f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 b1)";
}

static const char *parse_shape(Scan *s, NpyHeader *h) {
    static const char broken[] = "a damaged shape in its header";
    if (!take(s, "("))
        return broken;
    h->rank = 0;
    while (!take(s, ")")) {
        if (h->rank == MAX_RANK)
            return "more than 8 dimensions";
        if (!number(s, &h->dims[h->rank++]))
            return broken;
        bool comma = take(s, ",");
        if (!comma && (h->rank == 1 || !take(s, ")")))
            return broken; /* (3) is no tuple */
        if (!comma)
            break;
    }
    if (dims_count(h->dims, h->rank) < 0)
        return "more elements than fit (limit 2^40)";
    return NULL;
}

static const char *parse_entry(Scan *s, NpyHeader *h, unsigned *seen) {
    static const char broken[] = "a damaged header";
    char key[32];
    if (!quoted(s, key) || !take(s, ":"))
        return broken;
    unsigned bit = !strcmp(key, "descr")           ? 1u
                   : !strcmp(key, "fortran_order") ? 2u
                   : !strcmp(key, "shape")         ? 4u
                                                   : 0u;
    if (!bit || *seen & bit)
        return broken;
    *seen |= bit;
    if (bit == 1)
        return parse_descr(s, h);
    if (bit == 4)
        return parse_shape(s, h);
    if (take(s, "True"))
        return "stored in Fortran order; save it through numpy.ascontiguousarray";
    return take(s, "False") ? NULL : broken;
}

const char *npy_parse(const unsigned char *p, size_t n, NpyHeader *h) {
    size_t bytes = npy_header_bytes(p, n);
    if (!bytes)
        return "not a .npy array (no such magic or version)";
    if (bytes > n)
        return "cut short in its header";
    *h = (NpyHeader){.bytes = bytes};
    size_t prefix = p[6] == 1 ? 10 : 12;
    Scan s = {(const char *)p + prefix, (const char *)p + bytes};
    unsigned seen = 0;
    if (!take(&s, "{"))
        return "a damaged header";
    while (!take(&s, "}")) {
        const char *problem = parse_entry(&s, h, &seen);
        if (problem)
            return problem;
        if (!take(&s, ",") && (spaces(&s), s.p == s.end || *s.p != '}'))
            return "a damaged header";
    }
    spaces(&s);
    if (seen != 7 || s.end - s.p > 1 || (s.p < s.end && *s.p != '\n'))
        return "a damaged header";
    return NULL;
}

size_t npy_format(unsigned char *p, DType t, int rank, const int64_t *dims) {
    char text[448];
    int n = 0;
    for (int i = 0; i < COUNT_OF(descrs); i++)
        if (descrs[i].dtype == t)
            n = snprintf(text, sizeof text, "{'descr': '%s', 'fortran_order': False, 'shape': (",
                         descrs[i].descr);
    ASSERT(n > 0);
    for (int i = 0; i < rank; i++)
        n += snprintf(text + n, sizeof text - (size_t)n, i ? ", %lld" : "%lld", (long long)dims[i]);
    n += snprintf(text + n, sizeof text - (size_t)n, rank == 1 ? ",), }" : "), }");
    size_t total = (10 + (size_t)n + 1 + 63) / 64 * 64;
    memcpy(p, magic, 6);
    p[6] = 1;
    p[7] = 0;
    p[8] = (unsigned char)((total - 10) & 0xff);
    p[9] = (unsigned char)((total - 10) >> 8);
    memcpy(p + 10, text, (size_t)n);
    memset(p + 10 + n, ' ', total - 10 - (size_t)n);
    p[total - 1] = '\n';
    return total;
}
