/* stgc_file.c: parameters and checkpoints of a handle. See stgc.h; the formats are those of
 * safetensors.h and checkpoint.h. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/checkpoint.h"
#include "runtime/handle.h"
#include "runtime/safetensors.h"

/* ---- parameters ---- */

static bool same_shape(const StgcCkptTensor *t, const StgcSlot *s) {
    return t->type == (int32_t)s->type && t->rank == s->rank && t->bytes == s->bytes &&
           memcmp(t->dims, s->dims, sizeof *s->dims * (size_t)s->rank) == 0;
}

static Entry *parameter_for(Stgc *h, const StgcCkptTensor *t, const char *file) {
    Entry *e = entry_find(h, t->name);
    char want[160], got[160];
    if (!e || (e->kind != STGC_PARAMETER && e->kind != STGC_FROZEN)) {
        handle_fail(h, STGC_ERR_DATA, "%s: error: tensor '%.200s' is no parameter of the step",
                    file, t->name);
        return NULL;
    }
    const StgcSlot *s = entry_slot(e);
    if (same_shape(t, s))
        return e;
    handle_fail(h, STGC_ERR_DATA, "%s: error: parameter '%.200s': expected %s, found %s", file,
                t->name, type_text(s->type, s->rank, s->dims, want, sizeof want),
                type_text(t->type, t->rank, t->dims, got, sizeof got));
    return NULL;
}

static StgcStatus load(Stgc *h, const char *path, const void *bytes, size_t n) {
    char error[512];
    StgcStatus status;
    const char *file = path ? path : "parameters";
    StgcSafetensors *st = stgc_safetensors_open(path, bytes, n, &status, error, sizeof error);
    if (!st)
        return handle_fail(h, status, "%s: error: %s", file, error);
    for (uint32_t i = 0; i < st->n && h->status == STGC_OK; i++)
        parameter_for(h, &st->tensors[i], file); /* all are right before any is read */
    for (uint32_t i = 0; i < st->n && h->status == STGC_OK; i++) {
        Entry *e = entry_find(h, st->tensors[i].name);
        void *to = entry_data(h, e);
        if (!to)
            break;
        status = stgc_safetensors_read(st, i, to, error, sizeof error);
        if (status != STGC_OK)
            handle_fail(h, status, "%s: error: %s", file, error);
        e->given |= status == STGC_OK;
    }
    stgc_safetensors_close(st);
    return h->status;
}

StgcStatus stgc_load(Stgc *h, const char *path) {
    return handle_begin(h) ? load(h, path, NULL, 0) : h->status;
}

StgcStatus stgc_load_memory(Stgc *h, const void *bytes, size_t n) {
    return handle_begin(h) ? load(h, NULL, bytes, n) : h->status;
}

static bool wanted(const Entry *e, bool frozen, bool state) {
    return e->kind == STGC_PARAMETER || (frozen && e->kind == STGC_FROZEN) ||
           (state && e->kind == STGC_STATE);
}

/* The tensors of some kinds with their bytes, in the order of the programs' slots, which is the
 * order in which `stgcc train` writes them; NULL with an error. */
static StgcCkptTensor *collect(Stgc *h, bool frozen, bool state, uint32_t *n) {
    StgcCkptTensor *t = calloc((size_t)h->nentries + 1, sizeof *t);
    *n = 0;
    for (int k = 0; t && k < STGC_PROGRAMS; k++) {
        StgcProgram p = entry_order[k];
        const StgcStep *step = h->variant->programs[p];
        for (uint32_t i = 0; step && i < step->nslots && h->status == STGC_OK; i++) {
            const StgcSlot *s = &step->slots[i];
            const Entry *e = entry_find(h, s->name);
            if (!e || entry_slot(e) != s || !wanted(e, frozen, state))
                continue;
            t[*n] = (StgcCkptTensor){.name = e->name,
                                     .type = s->type,
                                     .rank = s->rank,
                                     .bytes = s->bytes,
                                     .data = entry_read(h, e)};
            memcpy(t[*n].dims, s->dims, sizeof s->dims);
            ++*n;
        }
    }
    if (!t)
        handle_fail(h, STGC_ERR_RESOURCE, "no memory for a list of tensors");
    if (h->status == STGC_OK)
        return t;
    free(t);
    return NULL;
}

StgcStatus stgc_store(Stgc *h, const char *path) {
    uint32_t n;
    char error[512];
    StgcCkptTensor *t = handle_begin(h) ? collect(h, true, false, &n) : NULL;
    if (!t)
        return h->status;
    StgcStatus status = stgc_safetensors_write(path, t, n, error, sizeof error);
    free(t);
    return status == STGC_OK ? status : handle_fail(h, status, "%s: error: %s", path, error);
}

/* ---- checkpoints ---- */

StgcStatus stgc_save(Stgc *h, const char *dir, int64_t samples, int32_t keep) {
    char error[1024];
    uint32_t n;
    if (!handle_begin(h))
        return h->status;
    if (h->micro)
        return handle_fail(h, STGC_ERR_USAGE,
                           "%s: error: %" PRId64 " of %" PRId64
                           " micro-batches of a step are done; save after the last",
                           dir, h->micro, h->library->training.accumulate);
    if (samples < 0)
        return handle_fail(h, STGC_ERR_USAGE, "%s: error: samples: expected 0 or more", dir);
    int lock = stgc_run_lock(dir, error, sizeof error);
    if (lock < 0)
        return handle_fail(h, STGC_ERR_IO, "%s: error: %s", dir, error);
    StgcCkptTensor *t = collect(h, false, true, &n);
    StgcStatus status = h->status;
    if (t) {
        StgcCheckpoint c = {.step = h->steps,
                            .samples = samples,
                            .seed = (uint64_t)h->library->training.seed,
                            .model_hash = h->library->model_hash,
                            .recipe = h->library->recipe,
                            .ntensors = n,
                            .tensors = t};
        status = stgc_checkpoint_save(dir, &c, keep, error, sizeof error);
        if (status != STGC_OK)
            handle_fail(h, status, "%s: error: %s", dir, error);
    }
    free(t);
    close(lock);
    return status;
}

/* Keys that may change without making it another training. */
static bool may_differ(const char *line) {
    static const char *const keys[] = {"  steps:", "  checkpoint_every:", "  log_every:"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!strncmp(line, keys[i], strlen(keys[i])))
            return true;
    return false;
}

/* The first line in which two canonical recipes differ; NULL: they train alike. */
static const char *recipe_difference(const char *a, const char *b, int *n) {
    while (*a || *b) {
        int na = (int)strcspn(a, "\n"), nb = (int)strcspn(b, "\n");
        *n = na;
        if ((na != nb || memcmp(a, b, (size_t)na) != 0) && !(may_differ(a) && may_differ(b)))
            return a;
        a += na + (a[na] == '\n');
        b += nb + (b[nb] == '\n');
    }
    return NULL;
}

static Entry *entry_for(Stgc *h, const StgcCkptTensor *t) {
    Entry *e = entry_find(h, t->name);
    bool ours = e && (e->kind == STGC_PARAMETER || e->kind == STGC_STATE);
    return ours && same_shape(t, entry_slot(e)) ? e : NULL;
}

static StgcStatus take_up(Stgc *h, const char *dir, const StgcCheckpoint *c) {
    int n = 0;
    uint32_t expected = 0;
    if (c->model_hash != h->library->model_hash)
        return handle_fail(h, STGC_ERR_DATA,
                           "%s: error: its checkpoint belongs to another model than the library",
                           dir);
    const char *line = recipe_difference(c->recipe, h->library->recipe, &n);
    if (line)
        return handle_fail(h, STGC_ERR_DATA,
                           "%s: error: its checkpoint was trained with another recipe: '%.*s'", dir,
                           n > 100 ? 100 : n, line);
    for (int32_t i = 0; i < h->nentries; i++)
        expected += h->entries[i].kind == STGC_PARAMETER || h->entries[i].kind == STGC_STATE;
    if (expected != c->ntensors)
        return handle_fail(h, STGC_ERR_DATA,
                           "%s: error: its checkpoint holds %" PRIu32 " tensors, the step %" PRIu32,
                           dir, c->ntensors, expected);
    for (uint32_t i = 0; i < c->ntensors; i++)
        if (!entry_for(h, &c->tensors[i]))
            return handle_fail(
                h, STGC_ERR_DATA,
                "%s: error: its checkpoint's tensor '%.200s' is none of the step, or "
                "has another type or shape",
                dir, c->tensors[i].name);
    for (uint32_t i = 0; i < c->ntensors; i++) {
        Entry *e = entry_for(h, &c->tensors[i]);
        void *to = entry_data(h, e);
        if (!to)
            return h->status;
        if (c->tensors[i].bytes)
            memcpy(to, c->tensors[i].data, (size_t)c->tensors[i].bytes);
        e->given = true;
    }
    h->steps = c->step;
    return STGC_OK;
}

StgcStatus stgc_resume(Stgc *h, const char *dir, int64_t *samples) {
    char warning[2048], error[1024];
    StgcStatus status;
    if (!handle_begin(h))
        return h->status;
    if (h->micro)
        return handle_fail(h, STGC_ERR_USAGE, "%s: error: a step has begun; resume before it", dir);
    StgcCheckpoint *c =
        stgc_checkpoint_newest(dir, warning, sizeof warning, &status, error, sizeof error);
    if (!c)
        return handle_fail(h, status, "%s: error: %s", dir, error);
    status = take_up(h, dir, c);
    if (samples && status == STGC_OK)
        *samples = c->samples;
    stgc_checkpoint_free(c);
    return status;
}
