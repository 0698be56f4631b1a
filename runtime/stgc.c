/* stgc.c: opening a compiled step and stepping with it. See stgc.h for the promises, step.h for
 * what a library is. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "runtime/cpu_level.h"
#include "runtime/handle.h"
#include "runtime/schedule.h"

uint32_t stgc_api_version(void) {
    return STGC_API_VERSION;
}

StgcStatus handle_fail(Stgc *h, StgcStatus status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(h->error, sizeof h->error, format, args);
    va_end(args);
    for (char *c = h->error; *c; c++) /* names come from files */
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    return h->status = status;
}

bool handle_begin(Stgc *h) {
    if (h->dead)
        return false;
    h->status = STGC_OK;
    h->error[0] = 0;
    return true;
}

StgcStatus stgc_status(const Stgc *h) {
    return h ? h->status : STGC_ERR_RESOURCE;
}

const char *stgc_error(const Stgc *h) {
    return h ? h->error : "no memory for a handle";
}

/* ---- programs ---- */

static int64_t planned_bytes(const Stgc *h, int but) {
    int64_t n = 0;
    for (int p = 0; p < STGC_PROGRAMS; p++)
        if (h->runs[p] || p == but)
            n += h->variant->programs[p]->arena_bytes;
    return n;
}

StgcRun *handle_run(Stgc *h, StgcProgram p) {
    if (h->runs[p])
        return h->runs[p];
    const StgcStep *step = h->variant->programs[p];
    if (!step) {
        handle_fail(h, STGC_ERR_USAGE, "the library has no program for this call");
        return NULL;
    }
    if (h->memory_limit > 0 && planned_bytes(h, p) > h->memory_limit) {
        handle_fail(h, STGC_ERR_RESOURCE,
                    "the step needs %" PRId64 " bytes, more than the limit of %" PRId64,
                    planned_bytes(h, p), h->memory_limit);
        return NULL;
    }
    StgcRun *with = h->runs[h->primary];
    h->runs[p] = with ? stgc_run_new_shared(h->rt, step, with) : stgc_run_new(h->rt, step);
    if (!h->runs[p]) {
        handle_fail(h, STGC_ERR_RESOURCE, "no memory for a step of %" PRId64 " bytes",
                    step->arena_bytes);
    } else if (stgc_run_status(h->runs[p]) != STGC_OK) {
        handle_fail(h, stgc_run_status(h->runs[p]), "%s", stgc_run_error(h->runs[p]));
        stgc_run_free(h->runs[p]);
        h->runs[p] = NULL;
    }
    return h->runs[p];
}

/* ---- opening ---- */

static bool has_features(const StgcVariant *v) {
#if defined(__x86_64__)
    unsigned a, b, c, d;
    uint32_t f[6] = {0};
    if (__get_cpuid(1, &a, &b, &c, &d))
        f[0] = c, f[1] = d;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d))
        f[2] = b, f[3] = c, f[4] = d;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d))
        f[5] = a;
    for (int i = 0; i < 6; i++)
        if ((v->features[i] & f[i]) != v->features[i])
            return false;
    return true;
#else
    return false;
#endif
}

/* The first variant for CPUs or for GPUs; NULL: it has none. */
static const StgcVariant *first_variant(const StgcLibrary *l, bool device) {
    for (uint32_t i = 0; i < l->nvariants; i++)
        if ((l->variants[i].device != 0) == device)
            return &l->variants[i];
    return NULL;
}

/* The highest variant that this CPU runs, and its threads. */
static bool choose_cpu(Stgc *h, const char *path, int threads) {
    const StgcLibrary *l = h->library;
    int level = stgc_cpu_level();
    for (uint32_t i = 0; i < l->nvariants; i++) {
        const StgcVariant *v = &l->variants[i];
        if (!v->device && v->level <= level && (!v->native || has_features(v)))
            h->variant = v;
    }
    const StgcVariant *first = first_variant(l, false);
    if (!h->variant && !first && l->nvariants) {
        handle_fail(h, STGC_ERR_USAGE,
                    "%s: error: compiled for GPUs only (%s), the CPU was asked for; compile with "
                    "--target=cpu",
                    path, l->variants[0].cpu);
        return false;
    }
    if (!h->variant) {
        char here[32];
        snprintf(here, sizeof here, level ? "x86-64-v%d" : "less than x86-64-v3", level);
        handle_fail(h, STGC_ERR_RESOURCE,
                    "%s: error: compiled for %s, this machine has %s; compile with "
                    "--march=x86-64-v3, or on this machine",
                    path, first ? first->cpu : "nothing", here);
        return false;
    }
    h->rt = stgc_rt_new(threads);
    if (!h->rt)
        handle_fail(h, STGC_ERR_RESOURCE, "no memory for %d threads and their buffers", threads);
    return h->rt != NULL;
}

/* The GPU, and the most capable variant for it. */
static bool choose_gpu(Stgc *h, const char *path, const StgcOptions *o) {
    const StgcLibrary *l = h->library;
    StgcCudaOptions cuda = {.device = o->device, .driver = o->driver, .cublas = o->cublas};
    StgcStatus status;
    char error[900];
    h->rt = stgc_rt_new_cuda(&cuda, &status, error, sizeof error);
    if (!h->rt) {
        handle_fail(h, status, "%s", error);
        return false;
    }
    for (uint32_t i = 0; i < l->nvariants; i++)
        if (l->variants[i].device && l->variants[i].device <= stgc_rt_capability(h->rt))
            h->variant = &l->variants[i];
    if (h->variant)
        return true;
    int have = stgc_rt_capability(h->rt);
    handle_fail(h, STGC_ERR_IO,
                "%s: error: compiled for %s, GPU %d has compute capability %d.%d; compile with "
                "--target=sm_%d, or use another GPU",
                path, first_variant(l, true)->cpu, (int)o->device, have / 10, have % 10, have);
    stgc_rt_free(h->rt);
    h->rt = NULL;
    return false;
}

static bool choose_machine(Stgc *h, const char *path, const StgcOptions *o) {
    bool gpu = first_variant(h->library, true) && !o->target;
    if (o->target && strcmp(o->target, "cpu") != 0) {
        handle_fail(h, STGC_ERR_USAGE,
                    "stgc_open: error: target: expected \"cpu\" or none, found '%.60s'", o->target);
        return false;
    }
    if (gpu && choose_gpu(h, path, o))
        return true;
    if (gpu && (!o->cpu_fallback || !first_variant(h->library, false)))
        return false;
    h->status = STGC_OK;
    h->error[0] = 0;
    return choose_cpu(h, path, o->threads);
}

static bool load_code(Stgc *h, const char *path) {
    /* a bare name is a file here, not one of the system's libraries */
    char *local = NULL;
    if (!strchr(path, '/') && asprintf(&local, "./%s", path) < 0)
        local = NULL;
    if (access(path, R_OK) != 0) {
        handle_fail(h, STGC_ERR_IO, "%s: error: cannot be read: %s", path, strerror(errno));
        free(local);
        return false;
    }
    h->code = dlopen(local ? local : path, RTLD_NOW | RTLD_LOCAL);
    free(local);
    const char *why = h->code ? NULL : dlerror();
    h->library = h->code ? dlsym(h->code, "stgc_library") : NULL;
    if (!h->library)
        handle_fail(h, STGC_ERR_MODEL, "%s: error: no compiled step: %s", path,
                    why ? why : "it has no symbol stgc_library");
    else if (h->library->version != STGC_LIBRARY_VERSION ||
             h->library->step_version != STGC_STEP_VERSION)
        handle_fail(h, STGC_ERR_MODEL,
                    "%s: error: it has version %" PRIu32 ".%" PRIu32
                    ", this runtime reads %d.%d; compile the model again",
                    path, h->library->version, h->library->step_version, STGC_LIBRARY_VERSION,
                    STGC_STEP_VERSION);
    return h->status == STGC_OK;
}

static bool make_programs(Stgc *h) {
    h->primary = h->variant->programs[STGC_PROGRAM_TRAIN]   ? STGC_PROGRAM_TRAIN
                 : h->variant->programs[STGC_PROGRAM_MICRO] ? STGC_PROGRAM_MICRO
                                                            : STGC_PROGRAM_GRADIENTS;
    if (!entries_make(h)) {
        handle_fail(h, STGC_ERR_RESOURCE, "no memory for a list of tensors");
        return false;
    }
    if (!handle_run(h, h->primary))
        return false;
    return !h->variant->programs[STGC_PROGRAM_APPLY] || handle_run(h, STGC_PROGRAM_APPLY);
}

/* STEP.safetensors of STEP.so */
static char *beside(const char *path) {
    size_t n = strlen(path);
    char *s = NULL;
    if (n > 3 && !strcmp(path + n - 3, ".so"))
        n -= 3;
    return asprintf(&s, "%.*s.safetensors", (int)n, path) < 0 ? NULL : s;
}

static void load_parameters(Stgc *h, const char *path, const char *parameters) {
    char *file = parameters ? NULL : beside(path);
    if (parameters && *parameters)
        stgc_load(h, parameters);
    else if (file && access(file, F_OK) == 0)
        stgc_load(h, file);
    free(file);
}

Stgc *stgc_open(const char *library, const StgcOptions *options) {
    Stgc *h = calloc(1, sizeof *h);
    if (!h)
        return NULL;
    StgcOptions o = {0};
    if (options)
        memcpy(&o, options, options->size < sizeof o ? options->size : sizeof o);
    h->last = -1;
    h->rate = NAN;
    h->memory_limit = o.memory_limit;
    if (!library)
        handle_fail(h, STGC_ERR_USAGE, "stgc_open: error: no library was named");
    else if (o.threads < 0 || o.threads > 4096)
        handle_fail(h, STGC_ERR_USAGE, "stgc_open: error: threads: expected 0 to 4096, found %d",
                    (int)o.threads);
    else if (load_code(h, library) && choose_machine(h, library, &o) && make_programs(h))
        load_parameters(h, library, o.parameters);
    h->dead = h->status != STGC_OK;
    return h;
}

void stgc_close(Stgc *h) {
    if (!h)
        return;
    for (int p = 0; p < STGC_PROGRAMS; p++)
        stgc_run_free(h->runs[p]);
    stgc_rt_free(h->rt);
    entries_free(h);
    if (h->code)
        dlclose(h->code);
    free(h);
}

StgcStatus stgc_info(Stgc *h, StgcInfo *out) {
    if (!handle_begin(h))
        return h->status;
    const StgcLibrary *l = h->library;
    StgcInfo i = {.size = out->size,
                  .threads = stgc_rt_threads(h->rt),
                  .planned_bytes = planned_bytes(h, -1),
                  .accumulate = l->training.accumulate,
                  .schedule_steps = l->training.steps,
                  .model_hash = l->model_hash,
                  .recipe_hash = l->recipe_hash,
                  .compiler = l->compiler,
                  .cpu = h->variant->cpu,
                  .machine = stgc_rt_describe(h->rt),
                  .recipe = l->recipe,
                  .batch_rows = l->batch,
                  .fewer_rows = l->batch_why};
    for (int p = 0; p < STGC_PROGRAMS; p++)
        i.touched_bytes += h->runs[p] ? stgc_run_touched_bytes(h->runs[p]) : 0;
    memcpy(out, &i, i.size < sizeof i ? i.size : sizeof i);
    return STGC_OK;
}

/* ---- stepping ---- */

static StgcStatus check_given(Stgc *h) {
    const Entry *first = NULL;
    int missing = 0;
    for (int32_t i = 0; i < h->nentries; i++) {
        const Entry *e = &h->entries[i];
        if (!e->needed || e->given)
            continue;
        first = first ? first : e;
        missing += e->kind == first->kind;
    }
    if (!first)
        return STGC_OK;
    char more[48] = "";
    if (missing > 1)
        snprintf(more, sizeof more, " (and %d more)", missing - 1);
    return handle_fail(h, STGC_ERR_DATA, "%s: error: this %s%s was not given; %s", first->name,
                       first->kind == STGC_INPUT ? "input" : "parameter", more,
                       first->kind == STGC_INPUT
                           ? "stgc_set it, or fill the memory stgc_tensor shows"
                           : "stgc_load the .safetensors written beside the library");
}

static void set_hyper(Stgc *h, StgcProgram p) {
    StgcRun *r = h->runs[p];
    const StgcSlot *s = stgc_run_find(r, "hyper");
    float values[8];
    if (!s || s->kind != STGC_SLOT_INPUT)
        return;
    stgc_schedule_hyper(&h->library->training, h->steps + 1, stgc_learning_rate(h), values);
    void *to = stgc_run_data(r, s); /* takes over what is shared, too */
    if (to)
        memcpy(to, values, sizeof values);
}

/* Callers hold addresses in the primary program's memory: what another one changed goes there. */
static StgcStatus give_back(Stgc *h, StgcProgram p) {
    StgcRun *r = h->runs[h->primary];
    if (p == STGC_PROGRAM_GRADIENTS)
        stgc_run_claim(r); /* it changed nothing */
    return stgc_run_take_over(r);
}

static StgcStatus run_program(Stgc *h, StgcProgram p) {
    StgcRun *r = handle_run(h, p);
    if (!r)
        return h->status;
    set_hyper(h, p);
    StgcStatus status = stgc_run_step(r);
    if (status != STGC_OK)
        handle_fail(h, status, "%s", stgc_run_error(r));
    StgcStatus back = give_back(h, p);
    if (status == STGC_OK && back != STGC_OK)
        return handle_fail(h, back, "%s", stgc_run_error(h->runs[h->primary]));
    return status;
}

static StgcStatus check_losses(Stgc *h, StgcProgram p) {
    const StgcStep *step = h->variant->programs[p];
    for (uint32_t i = 0; i < step->nslots; i++) {
        const StgcSlot *s = &step->slots[i];
        bool number = !strncmp(s->name, "loss/", 5) || !strcmp(s->name, "grad_norm");
        if (s->kind != STGC_SLOT_OUTPUT || !number || s->type != STGC_F32 || s->bytes < 4)
            continue;
        const float *at = stgc_run_read(h->runs[p], s);
        if (!at)
            return handle_fail(h, STGC_ERR_IO, "%s", stgc_run_error(h->runs[p]));
        float v = *at;
        if (!isfinite(v))
            return handle_fail(h, STGC_ERR_NUMERIC,
                               "%s: error: step %" PRId64
                               ": it is %s; try a smaller learning rate, or optimizer.clip_norm",
                               s->name, h->steps + 1, isnan(v) ? "NaN" : "infinite");
    }
    return STGC_OK;
}

/* What a batch without labels leaves: losses and metrics of 0. */
static void zero_outputs(Stgc *h) {
    const StgcStep *step = h->variant->programs[h->primary];
    for (uint32_t i = 0; i < step->nslots; i++) {
        const StgcSlot *s = &step->slots[i];
        void *to = s->kind == STGC_SLOT_OUTPUT && s->offset >= step->persistent_bytes
                       ? stgc_run_data(h->runs[h->primary], s)
                       : NULL;
        if (to)
            memset(to, 0, (size_t)s->bytes);
    }
}

static StgcStatus finish_step(Stgc *h) {
    if (h->trained && h->variant->programs[STGC_PROGRAM_APPLY] &&
        run_program(h, STGC_PROGRAM_APPLY) != STGC_OK)
        return h->status;
    h->micro = 0;
    h->trained = false;
    h->steps++;
    return STGC_OK;
}

StgcStatus stgc_step(Stgc *h) {
    int64_t counted;
    if (!handle_begin(h) || check_given(h) != STGC_OK || batch_check(h, &counted) != STGC_OK)
        return h->status;
    if (h->primary == STGC_PROGRAM_GRADIENTS)
        return handle_fail(h, STGC_ERR_USAGE, "the library has no program that trains");
    h->last = h->primary;
    if (!counted)
        zero_outputs(h);
    else if (run_program(h, h->primary) != STGC_OK)
        return h->status;
    h->micro++;
    h->trained |= counted > 0;
    StgcStatus numeric = counted ? check_losses(h, h->primary) : STGC_OK;
    if (numeric != STGC_OK && h->variant->programs[STGC_PROGRAM_APPLY])
        return numeric; /* the parameters are as they were; what was added up is lost */
    if (h->micro >= h->library->training.accumulate && finish_step(h) != STGC_OK)
        return h->status;
    return numeric;
}

StgcStatus stgc_gradients(Stgc *h) {
    int64_t counted;
    if (!handle_begin(h) || check_given(h) != STGC_OK || batch_check(h, &counted) != STGC_OK)
        return h->status;
    if (run_program(h, STGC_PROGRAM_GRADIENTS) == STGC_OK)
        h->last = STGC_PROGRAM_GRADIENTS;
    return h->status;
}

int64_t stgc_steps(const Stgc *h) {
    return h->steps;
}

double stgc_learning_rate(const Stgc *h) {
    if (h->dead)
        return NAN;
    return isnan(h->rate) ? stgc_schedule_rate(&h->library->training, h->steps + 1) : h->rate;
}

StgcStatus stgc_set_learning_rate(Stgc *h, double lr) {
    if (!handle_begin(h))
        return h->status;
    if (lr < 0 || isinf(lr))
        return handle_fail(h, STGC_ERR_USAGE,
                           "learning rate: error: expected 0 or more, or NaN for the schedule's, "
                           "found %g",
                           lr);
    h->rate = lr;
    return STGC_OK;
}
