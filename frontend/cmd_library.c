/* cmd_library.c: `stgcc step STEP.so`: one step of a compiled library laid open. The model, the
 * recipe and the code are the library's; the numbers are those of `stgcc step MODEL.onnx`, to the
 * byte. Goes through the interface that every caller has (runtime/stgc.h). */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "frontend/cmd_compile.h"
#include "runtime/handle.h"
#include "runtime/stgc.h"

bool is_library(const char *path) {
    struct stat st;
    bool file = path && stat(path, &st) == 0 && S_ISREG(st.st_mode); /* a pipe would wait */
    FILE *f = file ? fopen(path, "rb") : NULL;
    char magic[4] = "";
    bool elf = f && fread(magic, 1, 4, f) == 4 && !memcmp(magic, "\177ELF", 4);
    if (f)
        fclose(f);
    return elf;
}

bool library_fault(Diag *d, Stgc *h) {
    const char *text = stgc_error(h), *bare = strstr(text, ": error: ");
    size_t n = strlen(d->subject);
    if (bare && !strncmp(text, d->subject, n) && text + n == bare)
        text = bare + strlen(": error: "); /* the subject is named once */
    if (!strncmp(text, "GPU ", 4))
        device_error(d, stgc_status(h), text);
    else
        diag_error(d, (ExitCode)stgc_status(h), "%s", diag_safe(d, text));
    return false;
}

Stgc *library_open(Job *j) {
    const Options *o = j->o;
    StgcCudaOptions cuda;
    if (!device_choose(o, &cuda, &j->set_diag))
        return NULL;
    StgcOptions options = {.size = sizeof options,
                           .threads = (int32_t)o->threads,
                           .memory_limit = o->mem_limit,
                           .target = o->target ? "cpu" : NULL,
                           .device = cuda.device,
                           .driver = cuda.driver,
                           .cublas = cuda.cublas};
    Stgc *h = stgc_open(o->model, &options);
    if (stgc_status(h) == STGC_OK)
        return h;
    library_fault(&j->model_diag, h);
    stgc_close(h);
    return NULL;
}

/* Keys that do not make it another training (nor another library). */
static void take_free_keys(Recipe *to, const Recipe *from) {
    to->schedule.steps = from->schedule.steps;
    to->train.checkpoint_every = from->train.checkpoint_every;
    to->train.log_every = from->train.log_every;
}

static bool same_recipe(Recipe *given, const char *library) {
    Recipe *r = recipe_new(), *kept = recipe_new();
    Diag d = {0};
    if (!recipe_read_text(r, library, strlen(library), &d))
        bug("a library's recipe does not read back");
    take_free_keys(kept, given);
    take_free_keys(given, r);
    char *text = identity_recipe(given);
    bool same = !strcmp(text, library);
    take_free_keys(given, kept);
    free(text);
    recipe_free(r);
    recipe_free(kept);
    diag_free(&d);
    return same;
}

bool library_recipe(Job *j, Stgc *h) {
    StgcInfo info = {.size = sizeof info};
    if (stgc_info(h, &info) != STGC_OK)
        return library_fault(&j->model_diag, h);
    if (j->o->recipe ? !job_load_recipe(j) : !job_load_recipe_text(j, info.recipe))
        return false;
    if (same_recipe(j->recipe, info.recipe))
        return true;
    diag_error(&j->recipe_diag, EXIT_USAGE, "'%s' was compiled with another recipe",
               diag_safe(&j->recipe_diag, j->o->model));
    diag_more(&j->recipe_diag, "leave -c away to use the library's, or compile the model again");
    return false;
}

/* Integers of another width fit if their values do; the handle takes its own type only. */
static const Tensor *converted(Job *j, const Tensor *t, int32_t type) {
    DType to = dtype_from_onnx(type);
    if (t->dtype == to || dtype_is_float(t->dtype) != dtype_is_float(to))
        return t;
    Tensor *n = tensor_new(&j->arena, to, t->rank, t->dims);
    for (int64_t i = 0, count = tensor_count(t); i < count; i++) {
        if (dtype_is_float(to))
            tensor_set_f(n, i, tensor_get_f(t, i));
        else
            tensor_set_i(n, i, tensor_get_i(t, i));
        if (!dtype_is_float(to) && tensor_get_i(n, i) != tensor_get_i(t, i))
            return t; /* its values do not fit: refused as the type it has */
    }
    return n;
}

bool library_inputs(Job *j, Stgc *h) {
    for (int32_t i = 0; i < stgc_count(h); i++) {
        StgcTensor to = {.size = sizeof to};
        if (stgc_tensor_at(h, i, &to) != STGC_OK)
            return library_fault(&j->model_diag, h);
        if (to.kind != STGC_INPUT)
            continue;
        const Tensor *t = arrays_find(&j->data, to.name);
        if (!t) {
            diag_error(&j->data_diag, EXIT_DATA, "no array named \"%s\"",
                       diag_safe(&j->data_diag, to.name));
            return false;
        }
        t = converted(j, t, to.type);
        if (stgc_set(h, to.name, dtype_to_onnx(t->dtype), t->rank, t->dims, t->data) != STGC_OK) {
            library_fault(&j->data_diag, h);
            j->data_diag.code = EXIT_DATA; /* the batch is at fault, not the call */
            return false;
        }
    }
    return true;
}

/* The outputs in the order of the program, as `stgcc step` writes them: float32. */
static bool write_outputs(Job *j, Stgc *h) {
    const StgcStep *step = h->variant->programs[STGC_PROGRAM_GRADIENTS];
    NpzWriter *w = npz_create(j->o->out, &j->out_diag);
    bool ok = w != NULL;
    for (uint32_t i = 0; ok && i < step->nslots; i++) {
        const StgcSlot *s = &step->slots[i];
        if (s->kind != STGC_SLOT_OUTPUT || !strcmp(s->name, "objective"))
            continue;
        Arena scratch = {0};
        Tensor *raw = tensor_new(&scratch, dtype_from_onnx(s->type), s->rank, s->dims);
        Tensor *t = tensor_new(&scratch, DT_F32, s->rank, s->dims);
        ok = stgc_get(h, s->name, raw->data, s->bytes) == STGC_OK ||
             library_fault(&j->model_diag, h);
        for (int64_t k = 0, n = tensor_count(t); ok && k < n; k++)
            tensor_set_f(t, k,
                         dtype_is_float(raw->dtype) ? tensor_get_f(raw, k)
                                                    : (double)tensor_get_i(raw, k));
        ok = ok && npz_add(w, s->name, t, &j->out_diag);
        arena_free(&scratch);
    }
    if (ok)
        return npz_close(w, &j->out_diag);
    npz_abandon(w);
    return false;
}

static void say_losses(Job *j, Stgc *h) {
    static const char *const names[] = {"total", "task", "balance", "router_z", "cel"};
    for (int i = 0; !j->o->quiet && i < COUNT_OF(names); i++) {
        double v = stgc_number(h, arena_printf(&j->arena, "loss/%s", names[i]));
        if (stgc_status(h) == STGC_OK)
            printf("%sloss/%s %.7g", i ? "  " : "", names[i], v);
    }
    if (!j->o->quiet)
        putchar('\n');
}

int library_step(const Options *o) {
    Job j;
    job_begin(&j, o);
    Stgc *h = library_open(&j);
    bool ok = h && library_recipe(&j, h) && npz_read(o->data, &j.data, &j.data_diag) &&
         job_check_output(&j) && library_inputs(&j, h);
    if (ok && stgc_gradients(h) != STGC_OK)
        ok = library_fault(stgc_status(h) == STGC_ERR_DATA ? &j.data_diag : &j.model_diag, h);
    if (ok && write_outputs(&j, h))
        say_losses(&j, h);
    stgc_close(h);
    return job_end(&j, EXIT_OK);
}
