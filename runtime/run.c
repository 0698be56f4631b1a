/* run.c: one compiled step and its arena.
 *
 * An arena is one reservation of address space; pages come when they are touched, so an arena
 * planned for the worst routing costs what a step really uses.
 *
 * Compiled code addresses slots by fixed offsets. Two runs that share persistent slots therefore
 *   share one arena, if their persistent parts are laid out alike: nothing is copied, but what is
 *     not persistent (inputs, outputs) holds only until the other run steps;
 *   keep an arena each otherwise: before a run steps or shows a persistent slot, it copies the
 *     slots it shares from the run that had them last, all their bytes at every change of run.
 *
 * A step for a GPU has its arena in device memory (cuda.h); the arena here holds the host's copies
 * of slots, which are brought up to date when somebody asks for them. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/cuda.h"
#include "runtime/machine.h"

enum { HUGE_PAGE = 2 << 20 };
/* Address space kept behind an arena, for a run that joins it with a larger one. */
#define ROOM_TO_GROW ((size_t)64 << 30)

typedef struct Arena {
    char *base;
    size_t bytes, reserved; /* usable, and address space; from `start` on */
    char *start;
    int users;
    CudaArena *cuda; /* the same in device memory; NULL: steps run here */
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
    CudaRun *cuda;
    CudaBlock **blocks; /* [nslots], of a device step */
    char error[1024];
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

/* ---- devices ---- */

/* The device of a run that can use it; NULL: it runs here. */
static CudaDevice *device_of(const StgcRun *r) {
    return r->blocks ? r->arena->cuda->device : NULL;
}

static StgcStatus device_failed(StgcRun *r, StgcStatus status) {
    const CudaDevice *d = r->machine->cuda;
    return status == STGC_OK ? status : failed(r, status, "%s", d->error);
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
    if (a->cuda) {
        CudaDevice *d = a->cuda->device;
        bool entered = cuda_enter(d);
        cuda_arena_free(a->cuda);
        if (entered)
            cuda_leave(d);
    }
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
    if (device_of(r))
        return; /* its blocks know their initial bytes */
    for (uint32_t i = 0; i < r->step->nslots; i++) {
        const StgcSlot *s = &r->step->slots[i];
        if (s->init && !(but_not_of && persists(r, s) && shared_slot(but_not_of, s)))
            memcpy(r->arena->base + s->offset, s->init, (size_t)s->bytes);
    }
}

static CudaBlock *block_of(const StgcRun *r, const StgcSlot *slot) {
    return r->blocks[slot - r->step->slots];
}

/* Copies the slots this run shares with the run that had them last. */
static StgcStatus catch_up(StgcRun *r) {
    StgcRun *from = r->family->latest;
    StgcStatus status = STGC_OK;
    r->family->latest = r;
    if (from->arena == r->arena)
        return STGC_OK;
    for (uint32_t i = 0; i < r->step->nslots; i++) {
        const StgcSlot *to = &r->step->slots[i];
        const StgcSlot *s = persists(r, to) ? shared_slot(from, to) : NULL;
        if (s && device_of(r) && device_of(from) && status == STGC_OK)
            status = cuda_block_take(r->arena->cuda, block_of(r, to), from->arena->cuda,
                                     block_of(from, s));
        else if (s && !device_of(r))
            memcpy(r->arena->base + to->offset, from->arena->base + s->offset, (size_t)to->bytes);
    }
    return status;
}

/* Whether a slot is memory of its own that lasts; outputs there are views of such. */
static bool lasts(const StgcRun *r, const StgcSlot *slot) {
    return persists(r, slot) && slot->kind != STGC_SLOT_OUTPUT;
}

/* Whether both steps can live in one arena: every shared slot at one offset, every other one
 * where the other run has nothing. The compiler lays steps out so by giving both one layout. */
static bool laid_out_alike(const StgcRun *r, const StgcRun *with) {
    if (r->step->persistent_bytes != with->step->persistent_bytes ||
        !r->step->cuda != !with->step->cuda || (r->step->cuda && r->machine != with->machine))
        return false;
    for (uint32_t i = 0; i < r->step->nslots; i++) {
        const StgcSlot *a = &r->step->slots[i];
        if (!lasts(r, a))
            continue;
        for (uint32_t j = 0; j < with->step->nslots; j++) {
            const StgcSlot *b = &with->step->slots[j];
            bool same = strcmp(a->name, b->name) == 0;
            bool overlap = a->offset < b->offset + b->bytes && b->offset < a->offset + a->bytes;
            if (lasts(with, b) && (same ? a->offset != b->offset : overlap))
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
    else if (step->cuda && !r->machine->cuda)
        r->broken = failed(r, STGC_ERR_USAGE,
                           "compiled step: error: it is for a GPU (sm_%d), but runs were asked for "
                           "on this machine's CPU",
                           (int)step->cuda->target);
    else if (!step->cuda && r->machine->cuda)
        r->broken = failed(r, STGC_ERR_USAGE,
                           "compiled step: error: it is for a CPU, but runs were asked for on a "
                           "GPU");
    return r;
}

/* Blocks in the arena; device memory for all runs of it. */
static StgcStatus place_on_device(StgcRun *r, CudaDevice *d) {
    const StgcStep *step = r->step;
    if (!r->arena->cuda)
        r->arena->cuda = cuda_arena_new(d, r->arena->base);
    CudaBlock **blocks = calloc((size_t)step->nslots + 1, sizeof *blocks);
    bool memory = r->arena->cuda && blocks;
    /* outputs last: they may be views of what was there before */
    for (int outputs = 0; outputs < 2 && memory; outputs++)
        for (uint32_t i = 0; i < step->nslots && memory; i++) {
            const StgcSlot *s = &step->slots[i];
            if ((s->kind == STGC_SLOT_OUTPUT) == outputs)
                memory = (blocks[i] = cuda_arena_block(r->arena->cuda, s, persists(r, s), r));
        }
    if (!memory) {
        free(blocks);
        return cuda_refuse(d, STGC_ERR_RESOURCE, "no memory for a step's list of tensors");
    }
    r->blocks = blocks;
    return cuda_arena_open(r->arena->cuda, step->arena_bytes);
}

/* A device step, all of it, or a broken run with the reason. */
static void start_on_device(StgcRun *r) {
    CudaDevice *d = r->machine->cuda;
    StgcStatus status;
    if (r->broken || !r->step->cuda)
        return;
    if (!cuda_enter(d)) {
        r->broken = device_failed(r, STGC_ERR_IO);
        return;
    }
    int64_t there = r->arena->cuda ? r->arena->cuda->bytes : 0, /* given up for a larger one */
        arena = r->step->arena_bytes > there ? r->step->arena_bytes - there : 0;
    status = cuda_room(d, arena + cuda_run_bytes(d, r->step), "the step");
    if (status == STGC_OK)
        r->cuda = cuda_run_new(d, r->step, &status);
    if (status == STGC_OK)
        status = place_on_device(r, d);
    cuda_leave(d);
    r->broken = device_failed(r, status);
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
    start_on_device(r);
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
    start_on_device(r);
    if (!r->broken)
        fill_slots(r, with);
    return r;
}

/* The values that others of the family need are taken over before. */
static void leave_family(StgcRun *r) {
    StgcRun **link = &r->family->members;
    while (*link != r)
        link = &(*link)->next;
    *link = r->next;
    if (!r->family->members)
        free(r->family);
    else if (r->family->latest == r)
        catch_up(r->family->members);
}

void stgc_run_free(StgcRun *r) {
    if (!r)
        return;
    CudaDevice *d = r->cuda || r->arena->cuda ? r->machine->cuda : NULL;
    bool entered = d && cuda_enter(d);
    leave_family(r);
    cuda_run_free(r->cuda);
    if (r->arena->cuda)
        cuda_arena_forget(r->arena->cuda, r);
    if (entered)
        cuda_leave(d);
    free(r->blocks);
    arena_leave(r->arena);
    free(r);
}

/* ---- bytes ---- */

StgcStatus stgc_run_status(const StgcRun *r) {
    return r->broken;
}

typedef enum { READ, WRITE, EXPOSE } Access;

/* The host's copy of a slot of a device step, current. NULL with an error. */
static void *device_bytes(StgcRun *r, const StgcSlot *slot, bool catches_up, Access access) {
    CudaDevice *d = device_of(r);
    CudaBlock *b = block_of(r, slot);
    if (!cuda_enter(d)) {
        device_failed(r, STGC_ERR_IO);
        return NULL;
    }
    StgcStatus status = catches_up && persists(r, slot) ? catch_up(r) : STGC_OK;
    if (status == STGC_OK)
        status = cuda_block_to_host(r->arena->cuda, b);
    cuda_leave(d);
    if (device_failed(r, status) != STGC_OK)
        return NULL;
    if (access != READ && !b->owner) /* nothing of an output goes back */
        cuda_block_changed(b);
    b->exposed |= access == EXPOSE && !b->owner;
    return r->arena->base + slot->offset;
}

void *stgc_run_data(StgcRun *r, const StgcSlot *slot) {
    if (device_of(r))
        return device_bytes(r, slot, true, WRITE);
    if (persists(r, slot))
        catch_up(r);
    return r->arena->base + slot->offset;
}

const void *stgc_run_read(StgcRun *r, const StgcSlot *slot) {
    return device_of(r) ? device_bytes(r, slot, true, READ) : stgc_run_data(r, slot);
}

void *stgc_run_address(StgcRun *r, const StgcSlot *slot) {
    return device_of(r) ? device_bytes(r, slot, false, WRITE) : r->arena->base + slot->offset;
}

const void *stgc_run_peek(StgcRun *r, const StgcSlot *slot) {
    return device_of(r) ? device_bytes(r, slot, false, READ) : r->arena->base + slot->offset;
}

void *stgc_run_expose(StgcRun *r, const StgcSlot *slot) {
    return device_of(r) ? device_bytes(r, slot, false, EXPOSE) : r->arena->base + slot->offset;
}

StgcStatus stgc_run_take_over(StgcRun *r) {
    CudaDevice *d = device_of(r);
    if (d && !cuda_enter(d))
        return device_failed(r, STGC_ERR_IO);
    StgcStatus status = catch_up(r);
    if (d)
        cuda_leave(d);
    return d ? device_failed(r, status) : status;
}

void stgc_run_claim(StgcRun *r) {
    const StgcRun *other = r->family->latest;
    CudaArena *a = device_of(r) && other != r && other->arena == r->arena ? r->arena->cuda : NULL;
    r->family->latest = r;
    for (int32_t i = 0; a && i < a->nblocks; i++) {
        CudaBlock *b = a->blocks[i];
        if (b->owner || b->host || b->initial)
            continue; /* it was written since, or nothing changed it */
        b->host = b->was_host;
        b->initial = b->was_initial;
    }
}

/* ---- steps ---- */

/* Device memory gets what it lacks. Outputs of other runs of the arena will not outlive this. */
static StgcStatus push_values(StgcRun *r) {
    CudaArena *a = r->arena->cuda;
    StgcStatus status = STGC_OK;
    for (int32_t i = 0; i < a->nblocks; i++)
        if (a->blocks[i]->exposed) /* who can tell whether it was written */
            cuda_block_changed(a->blocks[i]);
    for (uint32_t i = 0; i < r->step->nslots && status == STGC_OK; i++)
        if (!r->blocks[i]->owner)
            status = cuda_block_to_device(a, r->blocks[i]);
    for (int32_t i = 0; i < a->nblocks && status == STGC_OK; i++) {
        CudaBlock *b = a->blocks[i];
        b->was_host = b->host;
        b->was_initial = b->initial;
        if (b->owner && b->owner != r && !b->initial)
            b->host = true; /* as it is */
    }
    return status;
}

/* What the step wrote, the device alone has. */
static void take_results(StgcRun *r) {
    for (uint32_t i = 0; i < r->step->nslots; i++) {
        CudaBlock *b = r->blocks[i];
        StgcSlotKind kind = r->step->slots[i].kind;
        if (b->owner || kind == STGC_SLOT_PARAM || kind == STGC_SLOT_STATE ||
            kind == STGC_SLOT_GRAD) {
            b->host = b->initial = false;
            b->device = true;
        }
    }
}

static void on_mark(void *ctx, int64_t call) {
    const Machine *m = ctx;
    if (m->watch)
        m->watch(m->watcher, call);
}

/* The text that the CPU's code would give. */
static StgcStatus data_fault(StgcRun *r, const StgcCudaFault *f) {
    const StgcCudaStep *s = r->step->cuda;
    uint64_t what = f->key >> 48, where = f->key & (((uint64_t)1 << 48) - 1);
    char found[40] = "";
    if (what == f->found >> 56 && where == (f->found >> 32 & 0xffffff))
        snprintf(found, sizeof found, ", found %" PRId64,
                 (int64_t)(f->found & 0xffffffff) - STGC_CUDA_FOUND_BIAS);
    return failed(r, STGC_ERR_DATA, "batch: error: %s at position %" PRIu64 "%s",
                  what < s->nfaults ? s->fault_texts[what] : "a fault of an unknown kind", where,
                  found);
}

static StgcStatus device_step(StgcRun *r) {
    CudaDevice *d = device_of(r);
    StgcCudaFault fault;
    if (!cuda_enter(d))
        return device_failed(r, STGC_ERR_IO);
    StgcStatus status = catch_up(r);
    if (status == STGC_OK)
        status = push_values(r);
    if (status == STGC_OK) {
        status = cuda_run_execute(r->cuda, r->arena->cuda, on_mark, r->machine, &fault);
        take_results(r);
    }
    cuda_leave(d);
    if (status != STGC_OK)
        return device_failed(r, status);
    return fault.key == UINT64_MAX ? STGC_OK : data_fault(r, &fault);
}

StgcStatus stgc_run_step(StgcRun *r) {
    if (r->broken)
        return r->broken;
    r->error[0] = '\0';
    if (device_of(r))
        return device_step(r);
    catch_up(r);
    Machine *m = r->machine;
    m->fault = (Fault){0};
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
    if (device_of(r))
        return r->arena->cuda->bytes; /* the device's memory is all there */
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
