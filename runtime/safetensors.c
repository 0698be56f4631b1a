/* safetensors.c: reading. See safetensors.h. The header is JSON of a fixed form, read in one pass;
 * tensors must cover the bytes without holes or overlaps, as many as their shapes say. */
#define _GNU_SOURCE
#include "runtime/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_HEADER = 100000000 }; /* the format's own limit */

static const struct {
    const char *name;
    int32_t type, bytes;
} types[] = {{"F32", STGC_F32, 4},   {"F64", STGC_F64, 8}, {"F16", STGC_F16, 2},
             {"BF16", STGC_BF16, 2}, {"I64", STGC_I64, 8}, {"I32", STGC_I32, 4},
             {"I16", STGC_I16, 2},   {"I8", STGC_I8, 1},   {"U8", STGC_U8, 1},
             {"U16", STGC_U16, 2},   {"U32", STGC_U32, 4}, {"U64", STGC_U64, 8},
             {"BOOL", STGC_BOOL, 1}};

typedef struct Reader {
    const char *p, *end;
    char *names; /* where the next text goes */
    const char *fault;
} Reader;

static int fail(Reader *r, const char *what) {
    if (!r->fault)
        r->fault = what;
    return 0;
}

static void skip_space(Reader *r) {
    while (r->p < r->end && strchr(" \t\r\n", *r->p) && *r->p)
        r->p++;
}

static int next_is(Reader *r, char c) {
    skip_space(r);
    return r->p < r->end && *r->p == c;
}

static int take(Reader *r, char c) {
    if (r->fault || !next_is(r, c))
        return fail(r, "its header is no JSON of this format");
    r->p++;
    return 1;
}

static int hex4(Reader *r, unsigned *out) {
    *out = 0;
    if (r->end - r->p < 4)
        return fail(r, "an escape in its header");
    for (int i = 0; i < 4; i++) {
        char c = *r->p++;
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0)
            return fail(r, "an escape in its header");
        *out = *out * 16 + (unsigned)digit;
    }
    return 1;
}

static char *put_utf8(char *to, unsigned c) {
    if (c < 0x80) {
        *to++ = (char)c;
    } else if (c < 0x800) {
        *to++ = (char)(0xc0 | c >> 6);
        *to++ = (char)(0x80 | (c & 63));
    } else if (c < 0x10000) {
        *to++ = (char)(0xe0 | c >> 12);
        *to++ = (char)(0x80 | (c >> 6 & 63));
        *to++ = (char)(0x80 | (c & 63));
    } else {
        *to++ = (char)(0xf0 | c >> 18);
        *to++ = (char)(0x80 | (c >> 12 & 63));
        *to++ = (char)(0x80 | (c >> 6 & 63));
        *to++ = (char)(0x80 | (c & 63));
    }
    return to;
}

/* What follows a backslash. An escape is never shorter than what it stands for. */
static int take_escape(Reader *r) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    unsigned c, low;
    char e = r->p < r->end ? *r->p++ : 0;
    const char *known = e ? strchr(from, e) : NULL;
    if (known) {
        *r->names++ = to[known - from];
        return 1;
    }
    if (e != 'u' || !hex4(r, &c))
        return fail(r, "an escape in its header");
    if (c >= 0xd800 && c < 0xdc00) {
        if (r->end - r->p < 6 || r->p[0] != '\\' || r->p[1] != 'u')
            return fail(r, "an escape in its header");
        r->p += 2;
        if (!hex4(r, &low) || low < 0xdc00 || low > 0xdfff)
            return fail(r, "an escape in its header");
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
    }
    if (c == 0)
        return fail(r, "a name in its header");
    r->names = put_utf8(r->names, c);
    return 1;
}

static const char *take_text(Reader *r) {
    const char *s = r->names;
    if (!take(r, '"'))
        return "";
    while (!r->fault && r->p < r->end && *r->p != '"') {
        char c = *r->p++;
        if ((unsigned char)c < 0x20)
            fail(r, "a name in its header");
        else if (c == '\\')
            take_escape(r);
        else
            *r->names++ = c;
    }
    *r->names++ = 0;
    return take(r, '"') ? s : "";
}

static int64_t take_number(Reader *r) {
    int64_t v = 0;
    skip_space(r);
    const char *start = r->p;
    for (; r->p < r->end && *r->p >= '0' && *r->p <= '9'; r->p++)
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, *r->p - '0', &v))
            fail(r, "a number in its header");
    if (r->p == start)
        fail(r, "a number in its header");
    return v;
}

/* At most `most` numbers; returns how many. */
static int take_numbers(Reader *r, int64_t *out, int most) {
    int n = 0;
    if (!take(r, '['))
        return 0;
    while (!r->fault && !next_is(r, ']')) {
        if (n > 0 && !take(r, ','))
            break;
        int64_t v = take_number(r);
        if (n == most) {
            fail(r, "a tensor of more than 8 axes");
            break;
        }
        out[n++] = v;
    }
    take(r, ']');
    return n;
}

static void take_metadata(Reader *r) {
    if (!take(r, '{'))
        return;
    for (int n = 0; !r->fault && !next_is(r, '}'); n++) {
        if (n > 0 && !take(r, ','))
            break;
        take_text(r);
        take(r, ':');
        take_text(r);
    }
    take(r, '}');
}

static int find_type(const char *name) {
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strcmp(types[i].name, name))
            return (int)i;
    return -1;
}

/* The three keys of a tensor, each once, in any order. */
static void take_tensor(Reader *r, StgcCkptTensor *t, int64_t *place) {
    int seen = 0, type = -1;
    int64_t range[2] = {0, 0};
    if (!take(r, '{'))
        return;
    for (int n = 0; !r->fault && !next_is(r, '}'); n++) {
        if (n > 0 && !take(r, ','))
            break;
        const char *key = take_text(r);
        if (!take(r, ':'))
            break;
        int bit = !strcmp(key, "dtype")          ? 1
                  : !strcmp(key, "shape")        ? 2
                  : !strcmp(key, "data_offsets") ? 4
                                                 : 0;
        if (!bit || seen & bit)
            fail(r, "a key in its header");
        seen |= bit;
        if (bit == 1)
            type = find_type(take_text(r));
        else if (bit == 2)
            t->rank = take_numbers(r, t->dims, 8);
        else if (bit == 4 && take_numbers(r, range, 2) != 2)
            fail(r, "a tensor's place");
    }
    take(r, '}');
    if (seen != 7 || type < 0)
        fail(r, type < 0 ? "a tensor's type" : "a tensor without type, shape or place");
    if (r->fault)
        return;
    t->type = types[type].type;
    int64_t bytes = types[type].bytes;
    for (int i = 0; i < t->rank; i++)
        if (__builtin_mul_overflow(bytes, t->dims[i], &bytes))
            fail(r, "a tensor's shape");
    t->bytes = bytes;
    *place = range[0];
    if (range[1] < range[0] || range[1] - range[0] != bytes)
        fail(r, "a tensor's place");
}

static int take_entries(Reader *r, StgcSafetensors *s) {
    uint32_t cap = 0;
    if (!take(r, '{'))
        return 0;
    for (int n = 0; !r->fault && !next_is(r, '}'); n++) {
        if (n > 0 && !take(r, ','))
            break;
        const char *name = take_text(r);
        if (!take(r, ':'))
            break;
        if (!strcmp(name, "__metadata__")) {
            take_metadata(r);
            continue;
        }
        if (s->n == cap) {
            cap = cap ? 2 * cap : 64;
            StgcCkptTensor *t = realloc(s->tensors, cap * sizeof *t);
            s->tensors = t ? t : s->tensors;
            int64_t *p = t ? realloc(s->places, cap * sizeof *p) : NULL;
            if (!p)
                return fail(r, "no memory for its list");
            s->places = p;
        }
        s->tensors[s->n] = (StgcCkptTensor){.name = name};
        take_tensor(r, &s->tensors[s->n], &s->places[s->n]);
        s->n++;
    }
    take(r, '}');
    skip_space(r);
    return r->p == r->end ? 1 : fail(r, "something after its header");
}

typedef struct Span {
    int64_t at, bytes;
} Span;

static int by_place(const void *a, const void *b) {
    const Span *x = a, *y = b;
    if (x->at != y->at)
        return x->at < y->at ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* No holes, no overlaps, no name twice, up to the end. */
static const char *check_cover(const StgcSafetensors *s, int64_t room) {
    Span *spans = malloc((s->n + 1) * sizeof *spans);
    const char **names = malloc((s->n + 1) * sizeof *names), *fault = NULL;
    if (!spans || !names) {
        fault = "no memory for its list";
    } else {
        int64_t at = 0;
        for (uint32_t i = 0; i < s->n; i++) {
            spans[i] = (Span){s->places[i], s->tensors[i].bytes};
            names[i] = s->tensors[i].name;
        }
        qsort(spans, s->n, sizeof *spans, by_place);
        qsort(names, s->n, sizeof *names, by_name);
        for (uint32_t i = 0; i < s->n && !fault; i++) {
            if (spans[i].at != at || spans[i].bytes > room - at)
                fault = "its tensors do not cover its bytes";
            at += spans[i].bytes;
            if (i > 0 && !strcmp(names[i - 1], names[i]))
                fault = "a name is there twice";
        }
        if (!fault && at != room)
            fault = "its tensors do not cover its bytes";
    }
    free(spans);
    free(names);
    return fault;
}

static int read_at(const StgcSafetensors *s, void *to, int64_t n, int64_t at) {
    if (s->fd < 0) {
        if (n)
            memcpy(to, s->bytes + at, (size_t)n);
        return 1;
    }
    for (int64_t done = 0; done < n;) {
        ssize_t k = pread(s->fd, (char *)to + done, (size_t)(n - done), (off_t)(at + done));
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0) {
            errno = k ? errno : ENODATA;
            return 0;
        }
        done += k;
    }
    return 1;
}

static const char *read_header(StgcSafetensors *s, int64_t size, char **header) {
    unsigned char prefix[8];
    if (size < 8 || !read_at(s, prefix, 8, 0))
        return "it is too short";
    uint64_t length = 0;
    for (int i = 0; i < 8; i++)
        length |= (uint64_t)prefix[i] << (8 * i);
    if (length > MAX_HEADER || length > (uint64_t)size - 8)
        return "the length of its header";
    *header = malloc(length + 1);
    s->names = malloc(length + 1); /* names are shorter than what is around them */
    if (!*header || !s->names)
        return "no memory for its header";
    if (!read_at(s, *header, (int64_t)length, 8))
        return "it became shorter";
    Reader r = {*header, *header + length, s->names, NULL};
    take_entries(&r, s);
    if (r.fault)
        return r.fault;
    const char *fault = check_cover(s, size - 8 - (int64_t)length);
    for (uint32_t i = 0; i < s->n; i++)
        s->places[i] += 8 + (int64_t)length;
    return fault;
}

StgcSafetensors *stgc_safetensors_open(const char *path, const void *bytes, size_t n,
                                       StgcStatus *status, char *error, size_t nerror) {
    StgcSafetensors *s = calloc(1, sizeof *s);
    char *header = NULL;
    struct stat st = {.st_size = (off_t)n};
    *status = STGC_ERR_RESOURCE;
    if (!s) {
        snprintf(error, nerror, "no memory");
        return NULL;
    }
    s->fd = path ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
    s->bytes = bytes;
    const char *fault = NULL, *shown = path ? path : "the parameters in memory";
    if (path && (s->fd < 0 || fstat(s->fd, &st) != 0)) {
        *status = STGC_ERR_IO;
        snprintf(error, nerror, "cannot open '%s': %s", path, strerror(errno));
    } else if (path && !S_ISREG(st.st_mode)) {
        *status = STGC_ERR_DATA;
        snprintf(error, nerror, "'%s' is no regular file", path);
    } else if ((fault = read_header(s, st.st_size, &header))) {
        *status = STGC_ERR_DATA;
        snprintf(error, nerror, "'%s' is no sound .safetensors: %s", shown, fault);
    } else {
        *status = STGC_OK;
    }
    free(header);
    if (*status == STGC_OK)
        return s;
    stgc_safetensors_close(s);
    return NULL;
}

StgcStatus stgc_safetensors_read(const StgcSafetensors *s, uint32_t i, void *to, char *error,
                                 size_t nerror) {
    if (read_at(s, to, s->tensors[i].bytes, s->places[i]))
        return STGC_OK;
    snprintf(error, nerror, "reading '%s' failed: %s", s->tensors[i].name, strerror(errno));
    return STGC_ERR_IO;
}

void stgc_safetensors_close(StgcSafetensors *s) {
    if (!s)
        return;
    if (s->fd >= 0)
        close(s->fd);
    free(s->tensors);
    free(s->places);
    free(s->names);
    free(s);
}
