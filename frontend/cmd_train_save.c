/* cmd_train_save.c: what a training leaves on disk: checkpoints, and the trained model. The
 * protocol of a checkpoint is runtime/checkpoint.c's; here is what goes into one and what must
 * agree before one is taken up again. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "frontend/cmd_train.h"

static bool save_fault(Train *t, StgcStatus status, const char *error) {
    Diag *d = &t->job.out_diag;
    diag_error(d, (ExitCode)status, "%s", diag_safe(d, error));
    return false;
}

bool train_lock_run(Train *t) {
    Job *j = &t->job;
    char error[512];
    t->lock = stgc_run_lock(j->o->out, error, sizeof error);
    if (t->lock < 0)
        return save_fault(t, STGC_ERR_IO, error);
    int64_t last = stgc_checkpoint_last_step(j->o->out);
    if (last < 0 || j->o->resume)
        return true;
    diag_error(&j->out_diag, EXIT_USAGE, "holds a training that reached step %lld",
               (long long)last);
    diag_more(&j->out_diag, "go on with --resume, or choose another folder with -o");
    return false;
}

/* ---- what is saved ---- */

static bool is_state(const EngineSlot *s) {
    return s->kind == PARAM_WEIGHT || s->kind == PARAM_STATE;
}

typedef VEC(EngineSlot) Slots;

/* Trained weights and optimizer state of both engines, each name once. Where a GPU failed they are
 * not what they should be: see is_sound. */
static void collect(Train *t, Slots *out) {
    Engine *engines[] = {t->micro, t->apply};
    StrMap seen = {0};
    for (int e = 0; e < COUNT_OF(engines); e++) {
        const EngineSlot *at = NULL;
        int n = engines[e] ? engine_slots(engines[e], &at) : 0;
        for (int i = 0; i < n; i++)
            if (is_state(&at[i]) && strmap_put(&seen, at[i].name, (void *)(uintptr_t)at[i].name))
                vec_push(out, at[i]);
    }
    strmap_free(&seen);
}

static bool is_sound(Train *t) {
    return engine_sound(t->micro) && (!t->apply || engine_sound(t->apply));
}

static int64_t state_bytes(Train *t) {
    Slots slots = {0};
    int64_t bytes = 0;
    collect(t, &slots);
    for (int i = 0; i < slots.n; i++)
        bytes += (int64_t)tensor_bytes(&slots.at[i].tensor);
    vec_free(&slots);
    return bytes;
}

/* Three checkpoints at once (two kept, one being written) and the model must fit. */
bool train_room_on_disk(Train *t) {
    Job *j = &t->job;
    struct statvfs fs;
    struct stat model;
    if (statvfs(j->o->out, &fs) != 0)
        return true;
    int64_t room = (int64_t)fs.f_bavail * (int64_t)fs.f_frsize,
            need = 3 * state_bytes(t) + (1 << 20);
    if (stat(j->o->model, &model) == 0)
        need += model.st_size;
    if (room >= need)
        return true;
    diag_error(&j->out_diag, EXIT_IO,
               "disk full: %.1f MiB are free, checkpoints and the model need %.1f MiB",
               (double)room / 1048576, (double)need / 1048576);
    diag_more(&j->out_diag, "free some space, or choose another folder with -o");
    return false;
}

bool train_checkpoint(Train *t) {
    Job *j = &t->job;
    Slots slots = {0};
    collect(t, &slots);
    if (!is_sound(t)) {
        vec_free(&slots);
        return false;
    }
    StgcCkptTensor *tensors = xcalloc((size_t)slots.n, sizeof *tensors);
    for (int i = 0; i < slots.n; i++) {
        const Tensor *x = &slots.at[i].tensor;
        tensors[i] = (StgcCkptTensor){.name = slots.at[i].name,
                                      .type = dtype_to_onnx(x->dtype),
                                      .rank = x->rank,
                                      .bytes = (int64_t)tensor_bytes(x),
                                      .data = x->data};
        memcpy(tensors[i].dims, x->dims, sizeof *x->dims * (size_t)x->rank);
    }
    StgcCheckpoint c = {.step = t->step,
                        .samples = t->samples,
                        .seed = (uint64_t)j->recipe->train.seed,
                        .model_hash = t->model_hash,
                        .recipe = t->recipe_text,
                        .ntensors = (uint32_t)slots.n,
                        .tensors = tensors};
    char error[512];
    StgcStatus status = stgc_checkpoint_save(j->o->out, &c, 2, error, sizeof error);
    free(tensors);
    vec_free(&slots);
    if (status != STGC_OK)
        return save_fault(t, status, error);
    if (*error)
        diag_warning(&j->out_diag, "%s", diag_safe(&j->out_diag, error));
    return true;
}

/* ---- taking one up ---- */

/* Keys that may change between a run and its continuation without making it another training. */
static bool may_differ(const char *section, const char *line) {
    return (!strcmp(section, "schedule") && !strncmp(line, "  steps:", 8)) ||
           (!strcmp(section, "train") &&
            (!strncmp(line, "  checkpoint_every:", 19) || !strncmp(line, "  log_every:", 12)));
}

/* Both texts are canonical: the same keys line by line. */
static bool same_recipe(Train *t, const char *then) {
    Diag *d = &t->job.recipe_diag;
    char section[32] = "";
    const char *a = then, *b = t->recipe_text;
    bool ok = true;
    while (*a || *b) {
        int na = (int)strcspn(a, "\n"), nb = (int)strcspn(b, "\n");
        bool equal = na == nb && !memcmp(a, b, (size_t)na);
        if (na > 0 && a[0] != ' ' && a[na - 1] == ':')
            snprintf(section, sizeof section, "%.*s", na - 1, a);
        if (!equal && !may_differ(section, b)) {
            int indent = a[0] == ' ' && b[0] == ' ' ? 2 : 0;
            diag_error(d, EXIT_DATA, "the checkpoint was trained with %s%s%.*s, not %.*s",
                       indent ? section : "", indent ? "." : "", na - indent, a + indent,
                       nb - indent, b + indent);
            ok = false;
        }
        a += na + (a[na] == '\n');
        b += nb + (b[nb] == '\n');
    }
    if (!ok)
        diag_more(d, "give the recipe it was trained with, or start another folder with -o");
    return ok;
}

static bool put_tensor(Train *t, EngineSlot *slot, const StgcCheckpoint *c) {
    const StgcCkptTensor *from = NULL;
    for (uint32_t i = 0; i < c->ntensors && !from; i++)
        if (!strcmp(c->tensors[i].name, slot->name))
            from = &c->tensors[i];
    const Tensor *x = &slot->tensor;
    if (!from || from->type != dtype_to_onnx(x->dtype) || from->rank != x->rank ||
        memcmp(from->dims, x->dims, sizeof *x->dims * (size_t)x->rank) != 0) {
        diag_error(&t->job.out_diag, EXIT_DATA, "the checkpoint's tensor '%s' %s",
                   diag_safe(&t->job.out_diag, slot->name),
                   from ? "has another type or shape" : "is missing");
        return false;
    }
    engine_refresh(slot);
    if (from->bytes)
        memcpy(x->data, from->data, (size_t)from->bytes);
    return true;
}

static bool take_up(Train *t, const StgcCheckpoint *c) {
    Job *j = &t->job;
    if (c->model_hash != t->model_hash) {
        diag_error(&j->out_diag, EXIT_DATA, "its checkpoint belongs to another model than '%s'",
                   diag_safe(&j->out_diag, j->o->model));
        diag_more(&j->out_diag, "give the model it was started with, or another folder with -o");
        return false;
    }
    if (!same_recipe(t, c->recipe))
        return false;
    Slots slots = {0};
    collect(t, &slots);
    bool ok = (uint32_t)slots.n == c->ntensors;
    if (!ok)
        diag_error(&j->out_diag, EXIT_DATA, "its checkpoint holds %u tensors, this training has %d",
                   c->ntensors, slots.n);
    for (int i = 0; ok && i < slots.n; i++)
        ok = put_tensor(t, &slots.at[i], c);
    vec_free(&slots);
    t->step = c->step;
    t->samples = c->samples;
    return ok;
}

bool train_resume(Train *t) {
    Job *j = &t->job;
    char warning[2048], error[512];
    StgcStatus status;
    if (stgc_checkpoint_last_step(j->o->out) < 0) {
        diag_note(&j->out_diag, "no checkpoint there yet: from the start");
        return true;
    }
    StgcCheckpoint *c =
        stgc_checkpoint_newest(j->o->out, warning, sizeof warning, &status, error, sizeof error);
    if (!c) {
        save_fault(t, status, error);
        diag_more(&j->out_diag, "no sound checkpoint is left there; start another folder with -o");
        return false;
    }
    if (*warning)
        diag_warning(&j->out_diag, "%s; the one before is taken", diag_safe(&j->out_diag, warning));
    bool ok = take_up(t, c);
    stgc_checkpoint_free(c);
    return ok;
}

/* ---- the model ---- */

typedef VEC(NamedTensor) NamedTensors;

/* The other names of tied parameters take the trained values too, transposed where they were. */
static void add_tied(Job *j, const Slots *slots, NamedTensors *values) {
    for (int i = 0; i < j->recipe->model.tie.n; i++) {
        const StrList *names = &j->recipe->model.tie.at[i];
        const Tensor *first = NULL, *trained = NULL;
        for (int k = 0; k < slots->n; k++)
            if (!strcmp(slots->at[k].name, names->at[0]))
                trained = &slots->at[k].tensor;
        first = param_initial(j->g, names->at[0]);
        for (int k = 1; k < names->n && first && trained; k++) {
            const Tensor *other = param_initial(j->g, names->at[k]);
            ParamTie tie = other ? params_tied(first, other) : TIE_NONE;
            NamedTensor one = {names->at[k], trained};
            if (tie == TIE_TRANSPOSED)
                one.tensor = tensor_transposed(&j->arena, trained);
            if (tie != TIE_NONE)
                vec_push(values, one);
        }
    }
}

bool train_write_model(Train *t) {
    Job *j = &t->job;
    Slots slots = {0};
    collect(t, &slots);
    NamedTensors values = {0};
    for (int i = 0; i < slots.n; i++) {
        NamedTensor one = {slots.at[i].name, &slots.at[i].tensor};
        if (slots.at[i].kind == PARAM_WEIGHT)
            vec_push(&values, one);
    }
    add_tied(j, &slots, &values);
    const char *path = arena_printf(&j->arena, "%s/model.onnx", j->o->out);
    bool ok = is_sound(t) && onnx_export_weights(j->file, path, values.at, values.n, &j->out_diag);
    vec_free(&values);
    vec_free(&slots);
    return ok;
}
