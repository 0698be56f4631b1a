/* base.c: arenas, maps, diagnostics, bugs. See base.h. */
#include "ir/base.h"

#include <stdlib.h>
#include <string.h>

/* ---- memory ---- */

static NORETURN void out_of_memory(size_t bytes) {
    fprintf(stderr, "stgcc: error: out of memory (asked for %zu bytes)\n", bytes);
    exit(EXIT_RESOURCE);
}

void *xcalloc(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size ? size : 1);
    if (!p)
        out_of_memory(n * size);
    return p;
}

void *xrealloc(void *p, size_t bytes) {
    void *q = realloc(p, bytes ? bytes : 1);
    if (!q)
        out_of_memory(bytes);
    return q;
}

enum { BLOCK_BYTES = 64 * 1024, ALIGNMENT = 16 };

struct ArenaBlock {
    ArenaBlock *next;
    size_t used, size;
    _Alignas(ALIGNMENT) char data[];
};

void *arena_alloc(Arena *a, size_t bytes) {
    if (bytes > SIZE_MAX / 2)
        out_of_memory(bytes);
    bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    ArenaBlock *b = a->blocks;
    if (!b || b->size - b->used < bytes) {
        size_t size = bytes > BLOCK_BYTES / 4 ? bytes : BLOCK_BYTES;
        ArenaBlock *fresh =
            calloc(1, sizeof *fresh + size); /* large calloc: zero pages untouched */
        if (!fresh)
            out_of_memory(size);
        fresh->size = size;
        if (b && size == bytes && b->used < b->size) { /* a big one goes behind the block in use */
            fresh->next = b->next;
            b->next = fresh;
        } else {
            fresh->next = b;
            a->blocks = fresh;
        }
        b = fresh;
    }
    void *p = b->data + b->used;
    b->used += bytes;
    a->used_total += bytes;
    return p;
}

void *arena_copy(Arena *a, const void *src, size_t bytes) {
    if (!bytes)
        return NULL;
    return memcpy(arena_alloc(a, bytes), src, bytes);
}

char *arena_strdup(Arena *a, const char *s) {
    return arena_copy(a, s, strlen(s) + 1);
}

static char *arena_vprintf(Arena *a, const char *fmt, va_list ap) {
    va_list again;
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, again);
    va_end(again);
    char *s = arena_alloc(a, (size_t)n + 1);
    vsnprintf(s, (size_t)n + 1, fmt, ap);
    return s;
}

char *arena_printf(Arena *a, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    char *s = arena_vprintf(a, fmt, ap);
    va_end(ap);
    return s;
}

void arena_free(Arena *a) {
    for (ArenaBlock *b = a->blocks, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    *a = (Arena){0};
}

/* ---- StrMap: open addressing, power-of-two capacity ---- */

struct StrEntry {
    const char *key;
    void *value;
};

uint64_t hash_bytes(const void *p, size_t n, uint64_t seed) {
    const unsigned char *s = p;
    uint64_t h = 0xcbf29ce484222325u ^ (seed * 0x9e3779b97f4a7c15u); /* FNV-1a with a final mix */
    for (size_t i = 0; i < n; i++)
        h = (h ^ s[i]) * 0x100000001b3u;
    h ^= h >> 32;
    h *= 0xd6e8feb86659fd93u;
    return h ^ (h >> 32);
}

/* Eight words at a time, each by a chain of its own, so that none waits for another. */
uint64_t hash_data(const void *p, size_t n, uint64_t seed) {
    enum { LANES = 8, SMALL = 4096 };
    if (n < SMALL)
        return hash_bytes(p, n, seed);
    uint64_t lane[LANES], word;
    const char *s = p;
    size_t i = 0;
    for (int k = 0; k < LANES; k++)
        lane[k] = seed + (uint64_t)k;
    for (; i + LANES * 8 <= n; i += LANES * 8)
        for (int k = 0; k < LANES; k++) {
            memcpy(&word, s + i + 8 * k, 8);
            uint64_t h = (lane[k] ^ word) * 0x9e3779b97f4a7c15u;
            lane[k] = h ^ h >> 32;
        }
    return hash_bytes(lane, sizeof lane, hash_bytes(s + i, n - i, n));
}

static struct StrEntry *strmap_slot(const StrMap *m, const char *key) {
    size_t mask = m->cap - 1, i = hash_bytes(key, strlen(key), 0) & mask;
    while (m->slots[i].key && strcmp(m->slots[i].key, key) != 0)
        i = (i + 1) & mask;
    return &m->slots[i];
}

bool strmap_put(StrMap *m, const char *key, void *value) {
    if (2 * (m->n + 1) > m->cap) {
        StrMap bigger = {xcalloc(m->cap ? 2 * m->cap : 32, sizeof(struct StrEntry)), m->n,
                         m->cap ? 2 * m->cap : 32};
        for (size_t i = 0; i < m->cap; i++)
            if (m->slots[i].key)
                *strmap_slot(&bigger, m->slots[i].key) = m->slots[i];
        free(m->slots);
        *m = bigger;
    }
    struct StrEntry *e = strmap_slot(m, key);
    if (e->key)
        return false;
    *e = (struct StrEntry){key, value};
    m->n++;
    return true;
}

void *strmap_get(const StrMap *m, const char *key) {
    return m->n ? strmap_slot(m, key)->value : NULL;
}

void strmap_free(StrMap *m) {
    free(m->slots);
    *m = (StrMap){0};
}

/* ---- diagnostics ---- */

static void diag_add(Diag *d, DiagLevel level, ExitCode code, const char *fmt, va_list ap) {
    DiagMessage m = {level, code, arena_vprintf(&d->arena, fmt, ap)};
    vec_push(&d->messages, m);
    if (level == DIAG_ERROR && d->errors++ == 0)
        d->code = code;
}

#define DIAG_VARARGS(level, code) \
    va_list ap; \
    va_start(ap, fmt); \
    diag_add(d, level, code, fmt, ap); \
    va_end(ap)

void diag_note(Diag *d, const char *fmt, ...) {
    DIAG_VARARGS(DIAG_NOTE, EXIT_OK);
}

void diag_warning(Diag *d, const char *fmt, ...) {
    DIAG_VARARGS(DIAG_WARNING, EXIT_OK);
}

void diag_error(Diag *d, ExitCode code, const char *fmt, ...) {
    DIAG_VARARGS(DIAG_ERROR, code);
}

void diag_more(Diag *d, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    char *line = arena_vprintf(&d->arena, fmt, ap);
    va_end(ap);
    ASSERT(d->messages.n > 0);
    DiagMessage *m = &d->messages.at[d->messages.n - 1];
    m->text = arena_printf(&d->arena, "%s\n  %s", m->text, line);
}

/* Whether a character may reach a terminal as it is. */
static bool harmless(uint32_t code) {
    bool control = code < 0x20 || (code >= 0x7f && code < 0xa0);
    bool direction = (code >= 0x200e && code <= 0x200f) || (code >= 0x2028 && code <= 0x202e) ||
                     (code >= 0x2066 && code <= 0x2069);
    return !control && !direction && code != 0xfeff;
}

/* The character at *s, escaped if need be, into `out` (16 bytes); its length there. Moves *s. */
static size_t take_safe(const char **s, char out[17]) {
    uint32_t code;
    int n = utf8_char(*s, strnlen(*s, 4), &code);
    size_t at = 0;
    bool plain = n && harmless(code);
    for (int i = 0; i < (n ? n : 1); i++) {
        unsigned char c = (unsigned char)*(*s)++;
        if (plain)
            out[at++] = (char)c;
        else
            at += (size_t)snprintf(out + at, 5, "\\x%02x", c);
    }
    return at;
}

/* File names come from elsewhere, too. */
static void print_subject(const char *s, FILE *to) {
    char out[17];
    while (*s)
        fwrite(out, 1, take_safe(&s, out), to);
}

void diag_print(const Diag *d, FILE *to, bool verbose) {
    static const char *const word[] = {"note", "warning", "error"};
    for (int i = 0; i < d->messages.n; i++) {
        const DiagMessage *m = &d->messages.at[i];
        if (m->level == DIAG_NOTE && !verbose)
            continue;
        print_subject(d->subject ? d->subject : "stgcc", to);
        fprintf(to, ": %s: %s\n", word[m->level], m->text);
    }
}

void diag_free(Diag *d) {
    vec_free(&d->messages);
    arena_free(&d->arena);
    *d = (Diag){0};
}

const char *diag_safe(Diag *d, const char *s) {
    enum { CUT = 200 };
    char out[16 * CUT + 8];
    size_t n = 0;
    for (int taken = 0; *s && taken < CUT; taken++) {
        if (*s == '"') {
            n += (size_t)snprintf(out + n, 5, "\\x22");
            s++;
        } else {
            n += take_safe(&s, out + n);
        }
    }
    if (*s)
        n += (size_t)snprintf(out + n, 5, "...");
    out[n] = 0;
    return arena_strdup(&d->arena, out);
}

NORETURN void bug_at(const char *file, int line, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fflush(stdout);
    fprintf(stderr, "stgcc: bug (%s:%d): ", file, line);
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "\n  This is a fault of stgcc, not of your model; please report it with the "
                    "command and the model.\n");
    va_end(ap);
    exit(EXIT_BUG);
}

/* ---- words ---- */

int utf8_char(const void *p, size_t n, uint32_t *code) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *s = p;
    if (n < 1)
        return 0;
    int bytes = s[0] < 0x80   ? 1
                : s[0] < 0xc0 ? 0
                : s[0] < 0xe0 ? 2
                : s[0] < 0xf0 ? 3
                : s[0] < 0xf8 ? 4
                              : 0;
    if (!bytes || (size_t)bytes > n)
        return 0;
    *code = bytes == 1 ? s[0] : s[0] & (0x7fu >> bytes);
    for (int i = 1; i < bytes; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        *code = *code << 6 | (s[i] & 0x3f);
    }
    bool surrogate = *code >= 0xd800 && *code < 0xe000;
    return *code < least[bytes] || surrogate || *code > 0x10ffff ? 0 : bytes;
}

static int edit_distance(const char *a, const char *b, int limit) {
    int na = (int)strlen(a), nb = (int)strlen(b);
    int row[65];
    if (na > 64 || nb > 64)
        return limit + 1;
    for (int j = 0; j <= nb; j++)
        row[j] = j;
    for (int i = 1; i <= na; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= nb; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[nb];
}

const char *nearest_word(const char *word, const char *const *known, int n) {
    int best = 4;
    const char *found = NULL;
    for (int i = 0; i < n; i++) {
        int d = edit_distance(word, known[i], 3);
        if (d < best && 2 * d < (int)strlen(known[i]) + 1) {
            best = d;
            found = known[i];
        }
    }
    return found;
}

bool glob_match(const char *p, const char *s) {
    const char *star = NULL,
               *mark = NULL; /* the last `*` and where its run started: linear backtracking */
    while (*s) {
        if (*p == '*') {
            star = p++;
            mark = s;
        } else if (*p == '?' || *p == *s) {
            p++;
            s++;
        } else if (star) {
            p = star + 1;
            s = ++mark;
        } else {
            return false;
        }
    }
    while (*p == '*')
        p++;
    return !*p;
}
