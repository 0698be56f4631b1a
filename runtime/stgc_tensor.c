/* stgc_tensor.c: the tensors of a handle by name: their list, bytes in and out. See stgc.h. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/handle.h"

/* ---- the list ---- */

const StgcProgram entry_order[STGC_PROGRAMS] = {STGC_PROGRAM_TRAIN, STGC_PROGRAM_MICRO,
                                                STGC_PROGRAM_APPLY, STGC_PROGRAM_GRADIENTS};

static const StgcStep *program(const Stgc *h, int p) {
    return h->variant->programs[p];
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(Entry *const *)a)->name, (*(Entry *const *)b)->name);
}

static int name_against(const void *name, const void *entry) {
    return strcmp(name, (*(Entry *const *)entry)->name);
}

Entry *entry_find(const Stgc *h, const char *name) {
    Entry **e = bsearch(name, h->by_name, (size_t)h->nsorted, sizeof *e, name_against);
    return e ? *e : NULL;
}

const StgcSlot *entry_slot(const Entry *e) {
    return e->slots[e->home];
}

/* Whether a caller meets this slot, as what, and in which part of the list. -1: it does not. */
static int describe(const StgcSlot *s, Entry *e) {
    *e = (Entry){.name = s->name, .shown = true};
    switch (s->kind) {
    case STGC_SLOT_INPUT:
        e->kind = STGC_INPUT;
        e->needed = true;
        return strcmp(s->name, "hyper") ? 0 : -1; /* ours to fill */
    case STGC_SLOT_PARAM:
        e->kind = STGC_PARAMETER;
        break;
    case STGC_SLOT_FROZEN:
        e->kind = STGC_FROZEN;
        e->shown = strncmp(s->name, "const/", 6) != 0;
        if (s->init)
            return -1; /* a constant that the library holds */
        break;
    case STGC_SLOT_STATE:
        e->kind = STGC_STATE;
        return 2;
    case STGC_SLOT_OUTPUT:
        e->kind = STGC_OUTPUT;
        return 3;
    case STGC_SLOT_GRAD:
        return -1; /* sums of micro-batches: inside a step only */
    }
    e->needed = s->bytes > 0;
    return e->shown ? 1 : 4;
}

/* Appends the slots of one part of the list that no program before had; notes them where one had.
 */
static void add_part(Stgc *h, int p, int part) {
    const StgcStep *step = program(h, p);
    for (uint32_t i = 0; step && i < step->nslots; i++) {
        Entry e, *known = NULL;
        if (describe(&step->slots[i], &e) != part)
            continue;
        known = entry_find(h, e.name);
        for (int32_t k = h->nentries - 1; part == 4 && k >= 0 && !known; k--)
            if (!strcmp(h->entries[k].name, e.name))
                known = &h->entries[k]; /* equal constants of one program */
        if (known) {
            known->slots[p] = &step->slots[i];
            continue;
        }
        e.home = (StgcProgram)p;
        e.slots[p] = &step->slots[i];
        h->entries[h->nentries++] = e;
    }
}

static void sort_names(Stgc *h) {
    for (int32_t i = 0; i < h->nentries; i++)
        h->by_name[i] = &h->entries[i];
    h->nsorted = h->nentries;
    qsort(h->by_name, (size_t)h->nsorted, sizeof *h->by_name, by_name);
}

bool entries_make(Stgc *h) {
    size_t most = 1;
    for (int p = 0; p < STGC_PROGRAMS; p++)
        most += program(h, p) ? program(h, p)->nslots : 0;
    h->entries = calloc(most, sizeof *h->entries);
    h->by_name = calloc(most, sizeof *h->by_name);
    if (!h->entries || !h->by_name)
        return false;
    for (int part = 0; part < 5; part++) {
        for (int k = 0; k < STGC_PROGRAMS; k++) {
            add_part(h, entry_order[k], part);
            sort_names(h);
        }
        h->nshown = part < 4 ? h->nentries : h->nshown;
    }
    return true;
}

void entries_free(Stgc *h) {
    free(h->entries);
    free(h->by_name);
}

/* ---- bytes ---- */

/* The program whose value of an output is the current one; -1 if there is none. */
static int output_program(const Stgc *h, const Entry *e) {
    if (h->last >= 0 && e->slots[h->last])
        return h->last;
    if (h->last == STGC_PROGRAM_MICRO && e->slots[STGC_PROGRAM_APPLY])
        return STGC_PROGRAM_APPLY;
    return h->last < 0 && e->home != STGC_PROGRAM_GRADIENTS ? (int)e->home : -1;
}

/* The run and the slot where the current value is; NULL: there is none, maybe with an error. */
static StgcRun *place(Stgc *h, const Entry *e, const StgcSlot **slot) {
    int p = e->kind == STGC_OUTPUT ? output_program(h, e) : (int)e->home;
    *slot = p < 0 ? NULL : e->slots[p];
    return p < 0 ? NULL : handle_run(h, (StgcProgram)p);
}

static const void *checked(Stgc *h, const StgcRun *r, const void *bytes) {
    if (!bytes)
        handle_fail(h, STGC_ERR_IO, "%s", stgc_run_error(r));
    return bytes;
}

const void *entry_read(Stgc *h, const Entry *e) {
    const StgcSlot *s;
    StgcRun *r = place(h, e, &s);
    return r ? checked(h, r, stgc_run_peek(r, s)) : NULL;
}

void *entry_data(Stgc *h, const Entry *e) {
    const StgcSlot *s;
    StgcRun *r = place(h, e, &s);
    return r ? (void *)(uintptr_t)checked(h, r, stgc_run_address(r, s)) : NULL;
}

void *entry_expose(Stgc *h, const Entry *e) {
    const StgcSlot *s;
    StgcRun *r = place(h, e, &s);
    return r ? (void *)(uintptr_t)checked(h, r, stgc_run_expose(r, s)) : NULL;
}

const char *type_text(int32_t type, int32_t rank, const int64_t *dims, char *text, size_t size) {
    static const char *const names[] = {
        [STGC_F32] = "f32",  [STGC_U8] = "u8",   [STGC_I8] = "i8",   [STGC_U16] = "u16",
        [STGC_I16] = "i16",  [STGC_I32] = "i32", [STGC_I64] = "i64", [STGC_BOOL] = "bool",
        [STGC_F16] = "f16",  [STGC_F64] = "f64", [STGC_U32] = "u32", [STGC_U64] = "u64",
        [STGC_BF16] = "bf16"};
    bool known = type > 0 && type <= STGC_BF16 && names[type];
    int n = known ? snprintf(text, size, "%s[", names[type])
                  : snprintf(text, size, "type %d[", (int)type);
    for (int32_t i = 0; i < rank && i < 8 && n < (int)size; i++)
        n += snprintf(text + n, size - (size_t)n, "%s%" PRId64, i ? "," : "", dims[i]);
    if (n < (int)size)
        snprintf(text + n, size - (size_t)n, "]");
    return text;
}

static StgcStatus unknown_name(Stgc *h, const char *name) {
    char inputs[512] = "";
    size_t n = 0;
    for (int32_t i = 0; i < h->nshown && h->entries[i].kind == STGC_INPUT; i++) {
        int k = snprintf(inputs + n, sizeof inputs - n, "%s%s", n ? ", " : "", h->entries[i].name);
        n += k > 0 && n + (size_t)k < sizeof inputs ? (size_t)k : 0;
    }
    return handle_fail(h, STGC_ERR_USAGE,
                       "%.200s: error: the step has no tensor of this name; its inputs are %s, "
                       "STEP.h lists the others",
                       name ? name : "(no name)", inputs);
}

static Entry *find_shown(Stgc *h, const char *name) {
    Entry *e = name ? entry_find(h, name) : NULL;
    if (!e || !e->shown)
        unknown_name(h, name);
    return e && e->shown ? e : NULL;
}

int32_t stgc_count(const Stgc *h) {
    return h ? h->nshown : 0;
}

static StgcStatus show(Stgc *h, const Entry *e, StgcTensor *out) {
    const StgcSlot *s = entry_slot(e);
    StgcTensor t = {.size = out->size,
                    .kind = (int32_t)e->kind,
                    .type = s->type,
                    .rank = s->rank,
                    .bytes = s->bytes,
                    .name = e->name};
    memcpy(t.dims, s->dims, sizeof t.dims);
    t.data = e->kind == STGC_INPUT ? entry_expose(h, e) : entry_data(h, e);
    memcpy(out, &t, t.size < sizeof t ? t.size : sizeof t);
    return h->status;
}

StgcStatus stgc_tensor_at(Stgc *h, int32_t i, StgcTensor *out) {
    if (!handle_begin(h))
        return h->status;
    if (i < 0 || i >= h->nshown)
        return handle_fail(h, STGC_ERR_USAGE, "tensor %d: error: there are %d, counted from 0",
                           (int)i, (int)h->nshown);
    return show(h, &h->entries[i], out);
}

StgcStatus stgc_tensor(Stgc *h, const char *name, StgcTensor *out) {
    Entry *e = handle_begin(h) ? find_shown(h, name) : NULL;
    if (!e)
        return h->status;
    if (e->kind == STGC_INPUT) { /* its address is known: the caller fills it, all of it */
        e->given = true;
        e->rows = 0;
    }
    return show(h, e, out);
}

/* An input of the batch with fewer rows, at least one. */
static bool is_fewer_rows(const Stgc *h, const Entry *e, int32_t type, int32_t rank,
                          const int64_t *dims) {
    const StgcSlot *s = entry_slot(e);
    if (e->kind != STGC_INPUT || type != (int32_t)s->type || rank != s->rank || rank < 1 ||
        s->dims[0] != h->library->batch || dims[0] < 1 || dims[0] >= s->dims[0])
        return false;
    return memcmp(dims + 1, s->dims + 1, sizeof *dims * (size_t)(rank - 1)) == 0;
}

static StgcStatus set_rows(Stgc *h, Entry *e, int64_t rows, const void *data) {
    const StgcSlot *s = entry_slot(e);
    if (h->library->batch_why)
        return handle_fail(h, STGC_ERR_USAGE,
                           "%s: error: expected %" PRId64 " rows, found %" PRId64
                           "; fewer are not possible here: %s",
                           e->name, s->dims[0], rows, h->library->batch_why);
    char *to = entry_data(h, e);
    if (!to)
        return h->status;
    memcpy(to, data, (size_t)(s->bytes / s->dims[0] * rows));
    batch_fill(h, e, to, rows);
    e->given = true;
    e->rows = rows;
    return STGC_OK;
}

StgcStatus stgc_set(Stgc *h, const char *name, int32_t type, int32_t rank, const int64_t *dims,
                    const void *data) {
    Entry *e = handle_begin(h) ? find_shown(h, name) : NULL;
    if (!e)
        return h->status;
    if (e->kind == STGC_OUTPUT)
        return handle_fail(h, STGC_ERR_USAGE, "%s: error: it is an output and cannot be set", name);
    const StgcSlot *s = entry_slot(e);
    bool same = type == (int32_t)s->type && rank == s->rank;
    for (int i = 0; same && i < rank; i++)
        same = dims[i] == s->dims[i];
    char want[160], got[160];
    if (!same && is_fewer_rows(h, e, type, rank, dims))
        return set_rows(h, e, dims[0], data);
    if (!same)
        return handle_fail(h, STGC_ERR_USAGE, "%s: error: expected %s, found %s", name,
                           type_text(s->type, s->rank, s->dims, want, sizeof want),
                           type_text(type, rank, dims, got, sizeof got));
    void *to = entry_data(h, e);
    if (to && s->bytes)
        memcpy(to, data, (size_t)s->bytes);
    e->given |= to != NULL;
    e->rows = 0;
    return h->status;
}

StgcStatus stgc_get(Stgc *h, const char *name, void *to, int64_t bytes) {
    Entry *e = handle_begin(h) ? find_shown(h, name) : NULL;
    if (!e)
        return h->status;
    const StgcSlot *s = entry_slot(e);
    if (bytes != s->bytes)
        return handle_fail(h, STGC_ERR_USAGE,
                           "%s: error: it has %" PRId64 " bytes, room was given for %" PRId64, name,
                           s->bytes, bytes);
    const void *from = entry_read(h, e);
    if (!from && h->status == STGC_OK)
        return handle_fail(h, STGC_ERR_USAGE,
                           "%s: error: it comes from stgc_gradients, which was not called last",
                           name);
    if (from && bytes)
        memcpy(to, from, (size_t)bytes);
    return h->status;
}

double stgc_number(Stgc *h, const char *name) {
    Entry *e = handle_begin(h) ? find_shown(h, name) : NULL;
    if (!e)
        return NAN;
    const StgcSlot *s = entry_slot(e);
    const void *data = entry_read(h, e);
    if (h->status == STGC_OK && (!data || s->bytes == 0))
        handle_fail(h, STGC_ERR_USAGE, "%s: error: it has no value yet", name);
    if (h->status != STGC_OK)
        return NAN;
    switch (s->type) {
    case STGC_F32:
        return *(const float *)data;
    case STGC_F64:
        return *(const double *)data;
    case STGC_I64:
        return (double)*(const int64_t *)data;
    case STGC_I32:
        return *(const int32_t *)data;
    case STGC_BOOL:
    case STGC_U8:
        return *(const uint8_t *)data;
    default:
        handle_fail(h, STGC_ERR_USAGE, "%s: error: its type has no number here; use stgc_get",
                    name);
        return NAN;
    }
}
