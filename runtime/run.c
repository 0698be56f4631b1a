/* run.c: one compiled step and its arena.
 *
 * An arena is one reservation of address space; pages come when they are touched, so an arena
 * planned for the worst routing costs what a step really uses.
 *
 * Compiled code addresses slots by fixed offsets. Two runs that share persistent slots therefore
 *   share one arena, if their persistent parts are laid out alike: nothing is copied, but what is
 *     not persistent (inputs, outputs) holds only until the other run steps;
 *   keep an arena each otherwise: before a run steps or shows a persistent slot, it copies the
 *     slots it shares from the run that had them last, all their bytes at every change of run. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/machine.h"

enum { HUGE_PAGE = 2 << 20 };
/* Address space kept behind an arena, for a run that joins it with a larger one. */
#define ROOM_TO_GROW ((size_t)64 << 30)

typedef struct Arena {
    char *base;
    size_t bytes, reserved; /* usable, and address space; from `start` on */
    char *start;
    int users;
} Arena;

/* Runs that share persistent slots. */
typedef struct Family {
    StgcRun *members; /* list */
    StgcRun *latest;  /* whose arena holds the current values */
} Family;

struct StgcRun {
    Machine *machine;
    const StgcStep *step;
    Arena *arena;
    Family *family;
    StgcRun *next;     /* member of the family */
    StgcStatus broken; /* why this run can never step, with the text in error */
    char error[512];
};

static StgcStatus failed(StgcRun *r, StgcStatus status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static StgcStatus failed(StgcRun *r, StgcStatus status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(r->error, sizeof r->error, format, args);
    va_end(args);
    return status;
}

/* ---- arenas ---- */

static size_t round_up(size_t n, size_t to) {
    return (n + to - 1) / to * to;
}

/* Makes the first `bytes` of the reservation usable. */
static bool arena_open(Arena *a, size_t bytes) {
    bytes = round_up(bytes, HUGE_PAGE);
    if (bytes <= a->bytes)
        return true;
    if ((size_t)(a->base - a->start) + bytes > a->reserved ||
        mprotect(a->base, bytes, PROT_READ | PROT_WRITE) != 0)
        return false;
    madvise(a->base, bytes, MADV_HUGEPAGE);
    a->bytes = bytes;
    return true;
}

static void arena_leave(Arena *a) {
    if (!a || --a->users > 0)
        return;
    munmap(a->start, a->reserved);
    free(a);
}

static Arena *arena_new(size_t bytes) {
    Arena *a = calloc(1, sizeof *a);
    if (!a)
        return NULL;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    a->users = 1;
    a->reserved = round_up(bytes, HUGE_PAGE) + HUGE_PAGE + ROOM_TO_GROW;
    a->start = mmap(NULL, a->reserved, PROT_NONE, flags, -1, 0);
    if (a->start == MAP_FAILED) { /* a limit on address space: no room to grow then */
        a->reserved -= ROOM_TO_GROW;
        a->start = mmap(NULL, a->reserved, PROT_NONE, flags, -1, 0);
    }
    if (a->start == MAP_FAILED) {
        free(a);
        return NULL;
    }
    a->base = (char *)round_up((size_t)a->start, HUGE_PAGE);
    if (!arena_open(a, bytes > 0 ? bytes : 1)) {
        arena_leave(a);
        return NULL;
    }
    return a;
}

/* ---- slots ---- */

static bool persists(const StgcRun *r, const StgcSlot *slot) {
    return slot->offset < r->step->persistent_bytes;
}

const StgcSlot *stgc_run_find(const StgcRun *r, const char *name) {
    for (uint32_t i = 0; i < r->step->nslots; i++)
        if (strcmp(r->step->slots[i].name, name) == 0)
            return &r->step->slots[i];
    return NULL;
}

/* The persistent slot of `other` with this slot's name; NULL if there is none. */
static const StgcSlot *shared_slot(const StgcRun *other, const StgcSlot *slot) {
    const StgcSlot *s = stgc_run_find(other, slot->name);
    return s && persists(other, s) ? s : NULL;
}

static void fill_slots(StgcRun *r, const StgcRun *but_not_of) {
    for (uint32_t i = 0; i < r->step->nslots; i++) {
        const StgcSlot *s = &r->step->slots[i];
        if (s->init && !(but_not_of && persists(r, s) && shared_slot(but_not_of, s)))
            memcpy(r->arena->base + s->offset, s->init, (size_t)s->bytes);
    }
}

/* Copies the slots this run shares with the run that had them last. */
static void catch_up(StgcRun *r) {
    StgcRun *from = r->family->latest;
    r->family->latest = r;
    if (from->arena == r->arena)
        return;
    for (uint32_t i = 0; i < r->step->nslots; i++) {
        const StgcSlot *to = &r->step->slots[i];
        const StgcSlot *s = persists(r, to) ? shared_slot(from, to) : NULL;
        if (s)
            memcpy(r->arena->base + to->offset, from->arena->base + s->offset, (size_t)to->bytes);
    }
}

/* Whether both steps can live in one arena: every shared slot at one offset, every other one
 * where the other run has nothing. The compiler lays steps out so by giving both one layout. */
static bool laid_out_alike(const StgcRun *r, const StgcRun *with) {
    if (r->step->persistent_bytes != with->step->persistent_bytes)
        return false;
    for (uint32_t i = 0; i < r->step->nslots; i++) {
        const StgcSlot *a = &r->step->slots[i];
        if (!persists(r, a))
            continue;
        for (uint32_t j = 0; j < with->step->nslots; j++) {
            const StgcSlot *b = &with->step->slots[j];
            bool same = strcmp(a->name, b->name) == 0;
            bool overlap = a->offset < b->offset + b->bytes && b->offset < a->offset + a->bytes;
            if (persists(with, b) && (same ? a->offset != b->offset : overlap))
                return false;
        }
    }
    return true;
}

/* ---- runs ---- */

static StgcRun *run_alloc(StgcRt *rt, const StgcStep *step) {
    StgcRun *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->machine = (Machine *)rt;
    r->step = step;
    if (step->version != STGC_STEP_VERSION)
        r->broken = failed(r, STGC_ERR_MODEL,
                           "compiled step: error: it has version %" PRIu32
                           ", this runtime expects %d; compile the model again",
                           step->version, STGC_STEP_VERSION);
    return r;
}

StgcRun *stgc_run_new(StgcRt *rt, const StgcStep *step) {
    StgcRun *r = run_alloc(rt, step);
    if (!r)
        return NULL;
    r->family = calloc(1, sizeof *r->family);
    r->arena = arena_new((size_t)step->arena_bytes);
    if (!r->family || !r->arena) {
        free(r->family);
        arena_leave(r->arena);
        free(r);
        return NULL;
    }
    r->family->members = r->family->latest = r;
    if (!r->broken)
        fill_slots(r, NULL);
    return r;
}

/* A slot both runs have must be the same thing in both. */
static void check_shared(StgcRun *r, const StgcRun *with) {
    for (uint32_t i = 0; i < r->step->nslots && !r->broken; i++) {
        const StgcSlot *a = &r->step->slots[i];
        const StgcSlot *b = persists(r, a) ? shared_slot(with, a) : NULL;
        if (b && (a->type != b->type || a->bytes != b->bytes))
            r->broken = failed(r, STGC_ERR_MODEL,
                               "compiled step: error: '%s' has type %d and %" PRId64
                               " bytes, the step it shares with has type %d and %" PRId64
                               " bytes; compile both from one model",
                               a->name, (int)a->type, a->bytes, (int)b->type, b->bytes);
    }
}

StgcRun *stgc_run_new_shared(StgcRt *rt, const StgcStep *step, StgcRun *with) {
    StgcRun *r = run_alloc(rt, step);
    if (!r)
        return NULL;
    check_shared(r, with);
    if (laid_out_alike(r, with) && arena_open(with->arena, (size_t)step->arena_bytes)) {
        r->arena = with->arena;
        r->arena->users++;
    } else {
        r->arena = arena_new((size_t)step->arena_bytes);
    }
    if (!r->arena) {
        free(r);
        return NULL;
    }
    r->family = with->family;
    r->next = r->family->members;
    r->family->members = r;
    if (!r->broken)
        fill_slots(r, with);
    return r;
}

void stgc_run_free(StgcRun *r) {
    if (!r)
        return;
    StgcRun **link = &r->family->members;
    while (*link != r)
        link = &(*link)->next;
    *link = r->next;
    if (!r->family->members)
        free(r->family);
    else if (r->family->latest == r)
        catch_up(r->family->members);
    arena_leave(r->arena);
    free(r);
}

void *stgc_run_data(StgcRun *r, const StgcSlot *slot) {
    if (persists(r, slot))
        catch_up(r);
    return r->arena->base + slot->offset;
}

void *stgc_run_address(const StgcRun *r, const StgcSlot *slot) {
    return r->arena->base + slot->offset;
}

void stgc_run_claim(StgcRun *r) {
    r->family->latest = r;
}

StgcStatus stgc_run_step(StgcRun *r) {
    if (r->broken)
        return r->broken;
    catch_up(r);
    Machine *m = r->machine;
    m->fault = (Fault){0};
    r->error[0] = '\0';
    r->step->run(&m->rt, r->arena->base);
    if (m->fault.what)
        return failed(r, STGC_ERR_DATA, "batch: error: %s at position %" PRId64 ", found %" PRId64,
                      m->fault.what, m->fault.where, m->fault.value);
    return STGC_OK;
}

const char *stgc_run_error(const StgcRun *r) {
    return r->error;
}

int64_t stgc_run_peak_bytes(const StgcRun *r) {
    return r->step->arena_bytes;
}

int64_t stgc_run_touched_bytes(const StgcRun *r) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t pages = ((size_t)r->step->arena_bytes + page - 1) / page, touched = 0;
    unsigned char seen[4096];
    for (size_t first = 0; first < pages; first += sizeof seen) {
        size_t n = pages - first < sizeof seen ? pages - first : sizeof seen;
        if (mincore(r->arena->base + first * page, n * page, seen) != 0)
            return -1;
        for (size_t i = 0; i < n; i++)
            touched += seen[i] & 1;
    }
    return (int64_t)(touched * page);
}
