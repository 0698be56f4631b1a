/* base.h: what every room of the compiler stands on: arenas, growing arrays, diagnostics, bugs.
 *
 * Two error words. A `diag_*` message is the user's fault: it names the user's thing first, then
 * what was expected and found, then what to do; messages are collected, so that all problems are
 * reported at once. `bug` is ours: it prints where and exits 70. Functions that can fail on user
 * data take a `Diag *`, add to it and return false or NULL. */
#ifndef STGCC_IR_BASE_H
#define STGCC_IR_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))
#define NORETURN __attribute__((noreturn))
#define COUNT_OF(a) ((int)(sizeof(a) / sizeof((a)[0])))

/* Exit codes of the program (interface.md); a diagnostic carries the one it leads to. */
typedef enum {
    EXIT_OK = 0,
    EXIT_USAGE = 2,    /* command line or recipe */
    EXIT_MODEL = 3,    /* the model */
    EXIT_DATA = 4,     /* data or checkpoint */
    EXIT_RESOURCE = 5, /* memory, time, size limit */
    EXIT_IO = 6,       /* I/O or device */
    EXIT_NUMERIC = 7,  /* NaN/Inf policy */
    EXIT_BUG = 70,
} ExitCode;

/* ---- Arena: memory that lives as long as its owner (a compile, a pass). Never fails: out of
 * memory exits 5. ---- */
typedef struct ArenaBlock ArenaBlock;
typedef struct Arena {
    ArenaBlock *blocks;
    size_t used_total;
} Arena;

void *arena_alloc(Arena *a, size_t bytes);                 /* zeroed, 16-byte aligned */
void *arena_copy(Arena *a, const void *src, size_t bytes); /* NULL when bytes == 0 */
char *arena_strdup(Arena *a, const char *s);
char *arena_printf(Arena *a, const char *fmt, ...) PRINTF_LIKE(2, 3);
void arena_free(Arena *a); /* frees everything; the Arena may be used again */
#define ARENA_NEW(a, T) ((T *)arena_alloc((a), sizeof(T)))
#define ARENA_ARRAY(a, T, n) ((T *)arena_alloc((a), sizeof(T) * (size_t)(n)))

/* Heap memory that never returns NULL (exits 5 when there is none). */
void *xcalloc(size_t n, size_t size);
void *xrealloc(void *p, size_t bytes);

/* VEC(T): a growing array { T *at; int n, cap }. vec_push may move `at`. */
#define VEC(T) \
    struct { \
        T *at; \
        int n, cap; \
    }
#define vec_push(v, x) \
    do { \
        if ((v)->n == (v)->cap) { \
            (v)->cap = (v)->cap ? 2 * (v)->cap : 8; \
            (v)->at = xrealloc((v)->at, sizeof(*(v)->at) * (size_t)(v)->cap); \
        } \
        (v)->at[(v)->n++] = (x); \
    } while (0)
#define vec_free(v) (free((v)->at), (v)->at = NULL, (v)->n = (v)->cap = 0)

/* StrMap: string -> pointer, insertion keeps the first. Keys are not copied: they must outlive the
 * map. */
typedef struct StrMap {
    struct StrEntry *slots;
    size_t n, cap;
} StrMap;
bool strmap_put(StrMap *m, const char *key,
                void *value);                       /* false if the key was there (value kept) */
void *strmap_get(const StrMap *m, const char *key); /* NULL if absent */
void strmap_free(StrMap *m);

/* ---- Diagnostics ---- */
typedef enum { DIAG_NOTE, DIAG_WARNING, DIAG_ERROR } DiagLevel;
typedef struct DiagMessage {
    DiagLevel level;
    ExitCode code;
    char *text; /* first line the message, further lines indented by two */
} DiagMessage;
typedef struct Diag {
    const char
        *subject; /* what the messages are about, usually the model's file name; printed first */
    VEC(DiagMessage) messages;
    int errors;
    ExitCode code; /* of the first error */
    Arena arena;
} Diag;

void diag_note(Diag *d, const char *fmt, ...) PRINTF_LIKE(2, 3);
void diag_warning(Diag *d, const char *fmt, ...) PRINTF_LIKE(2, 3);
void diag_error(Diag *d, ExitCode code, const char *fmt, ...)
    PRINTF_LIKE(3, 4); /* returns nothing: `return diag_…, false` */
/* Adds a line ("  node …, operand …") to the last message. */
void diag_more(Diag *d, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* Prints "subject: error: text" lines; notes only if `verbose`. Untrusted text is escaped and cut
 * at 200 characters by the callers through `diag_safe`. */
void diag_print(const Diag *d, FILE *to, bool verbose);
void diag_free(Diag *d);
/* Escapes what could steer a terminal (control characters of both sets, changes of writing
 * direction, bytes that are no UTF-8) and `"`; cuts at 200 characters. Memory of d's arena. */
const char *diag_safe(Diag *d, const char *untrusted);

NORETURN void bug_at(const char *file, int line, const char *fmt, ...) PRINTF_LIKE(3, 4);
#define bug(...) bug_at(__FILE__, __LINE__, __VA_ARGS__)
#define ASSERT(c) \
    do { \
        if (!(c)) \
            bug("assertion failed: %s", #c); \
    } while (0)

/* The nearest of `n` known words to a mistyped one (edit distance <= 3 and less than half its
 * length), or NULL. */
const char *nearest_word(const char *word, const char *const *known, int n);
/* Shell-like glob over names: `*` any run, `?` one character, everything else itself. */
bool glob_match(const char *pattern, const char *name);
/* Bytes of the well-formed UTF-8 character at p (n bytes at hand) and its code; 0 if there is none.
 */
int utf8_char(const void *p, size_t n, uint32_t *code);
uint64_t hash_bytes(const void *p, size_t n, uint64_t seed);
/* Of weights and other data, as fast as memory is read; a hash_bytes below 4 KiB. */
uint64_t hash_data(const void *p, size_t n, uint64_t seed);

#endif
