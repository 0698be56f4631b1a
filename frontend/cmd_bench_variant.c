/* cmd_bench_variant.c: the ways a training step is compiled for `stgcc bench`, and whether they
 * compute the same. See cmd_bench.h.
 *
 * The model is read and raised once; every capture mode goes through the remaining passes on a
 * clone. All variants share parameters and state with the first one. To check them, each starts
 * from the initial parameters and makes CHECK_STEPS steps: on the buffers and with the code that
 * are timed. */
#include "frontend/cmd_bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/bind.h"
#include "runtime/schedule.h"

/* Losses differ by rounding, parameters by that too, where AdamW divides tiny gradients by their
 * own size: so their distance is measured by how far training moved them. */
#define LOSS_TOLERANCE 1e-5
#define PARAM_TOLERANCE 1e-2
/* Of the first task loss in another precision: 2^-8 a product, and tokens near a tie may move. */
#define ROUNDED_TOLERANCE 5e-2

/* ---- preparing ---- */

static bool raise_once(Bench *b) {
    Job *j = &b->job;
    bool stopped = false;
    b->options.stop_after = "raise_moe";
    TrainWants wants = {.train = true, .metrics = true, .update = true};
    bool ok = job_compile(j, j->g, wants, &stopped);
    b->options.stop_after = NULL;
    job_say(j);
    return ok;
}

bool bench_prepare(Bench *b) {
    Job *j = &b->job;
    double start = stgc_bench_wall();
    if (!job_load_model(j) || !job_load_recipe(j) || !bench_data(b) || !job_bind(j))
        return false;
    b->recipe = j->recipe;
    if (j->recipe->train.accumulate > 1) {
        diag_note(&j->recipe_diag, "train.accumulate is taken as 1: one batch, one update");
        j->recipe->train.accumulate = 1;
    }
    b->import_seconds = stgc_bench_wall() - start;
    return raise_once(b);
}

/* ---- the list ---- */

static void add(Bench *b, Variant v) {
    v.same_as = -1;
    vec_push(&b->variants, v);
}

static void add_captures(Bench *b, Variant like) {
    static const struct {
        const char *name, *dot;
        CaptureMode mode;
        bool stgc;
    } modes[] = {{"capture none", "auto", CAPTURE_NONE, false},
                 {"capture output", "auto", CAPTURE_OUTPUT, true},
                 {"capture last_linear", "auto", CAPTURE_LAST_LINEAR, true},
                 {"capture exact, auto", "auto", CAPTURE_EXACT, true},
                 {"capture exact, gram", "gram", CAPTURE_EXACT, true},
                 {"capture exact, factored", "factored", CAPTURE_EXACT, true}};
    for (int i = 0; i < COUNT_OF(modes); i++) {
        Variant v = like;
        v.name = modes[i].name, v.group = "capture";
        v.capture = modes[i].mode, v.stgc = modes[i].stgc, v.token_dot = modes[i].dot;
        bool same = v.stgc == like.stgc && (!v.stgc || v.capture == like.capture);
        v.check = same ? CHECK_CLOSE : CHECK_FORWARD;
        if (!same || strcmp(v.token_dot, like.token_dot) != 0)
            add(b, v);
    }
}

static void add_precision(Bench *b, Variant v) {
    bool bf16 = v.precision == PRECISION_BF16;
    v.name = bf16 ? "f32 products" : "bf16 products", v.group = "precision";
    v.precision = bf16 ? PRECISION_F32 : PRECISION_BF16;
    v.check = CHECK_ROUNDED;
    add(b, v);
}

static void list_variants(Bench *b) {
    const Recipe *r = b->recipe;
    int all = stgc_rt_threads(b->machines.at[0]);
    bool stgc = r->stgc.enabled && r->stgc.capture != CAPTURE_NONE;
    Variant v = {.name = "fused",
                 .group = "fusion",
                 .fused = true,
                 .stgc = stgc,
                 .capture = stgc ? r->stgc.capture : CAPTURE_NONE,
                 .token_dot = "auto",
                 .precision = r->train.precision,
                 .threads = all,
                 .check = CHECK_BITS};
    MoeLayers layers = {0};
    moe_layers(b->job.g, &layers);
    int nlayers = layers.n;
    moe_layers_free(&layers);
    add(b, v);
    Variant again = v;
    again.name = "fused, again";
    add(b, again);
    b->variants.at[1].same_as = 0;
    Variant alone = v;
    alone.name = "unfused", alone.fused = false, alone.check = CHECK_CLOSE;
    b->unfused = b->variants.n;
    add(b, alone);
    if (nlayers && r->stgc.enabled)
        add_captures(b, v);
    add_precision(b, v);
    for (int t = 1; t < all; t *= 2) {
        Variant few = v;
        few.name = arena_printf(&b->job.arena, "threads %d", t);
        few.group = "threads", few.threads = t;
        add(b, few);
    }
    Variant profile = v;
    profile.name = "profile fused", profile.group = "profile", profile.marks = true;
    b->profile = b->variants.n;
    add(b, profile);
    profile.name = "profile unfused", profile.fused = false, profile.check = CHECK_CLOSE;
    b->profile_unfused = b->variants.n;
    add(b, profile);
}

/* ---- compiling ---- */

static bool same_graph(const Variant *a, const Variant *b) {
    return a->stgc == b->stgc && a->capture == b->capture && a->precision == b->precision &&
           !strcmp(a->token_dot, b->token_dot);
}

static void set_token_dot(Graph *g, const char *how) {
    FOR_NODES(n, g)
    if (n->op == OP_TOKEN_DOT)
        node_set_str(n, AT_CAPTURE, how);
}

/* The rest of the passes on a clone of the raised model. */
static bool make_graph(Bench *b, Variant *v) {
    Job *j = &b->job;
    Recipe *r = j->recipe;
    bool enabled = r->stgc.enabled, stopped;
    CaptureMode capture = r->stgc.capture;
    Precision precision = r->train.precision;
    double start = stgc_bench_wall();
    v->g = graph_clone(j->g, NULL);
    v->owns_g = true;
    StrList skip = job_skips(j);
    vec_push(&skip, "canonicalise");
    vec_push(&skip, "raise_moe");
    r->stgc.capture = v->capture;
    r->stgc.enabled = enabled && v->stgc;
    r->train.precision = v->precision;
    Compile c = {.g = v->g,
                 .recipe = r,
                 .wants = {.train = true, .metrics = true, .update = true},
                 .diag = &j->model_diag,
                 .skip = skip,
                 .allow_unraised = j->o->allow_unraised};
    bool ok = passes_run(&c, &stopped);
    r->stgc.enabled = enabled, r->stgc.capture = capture, r->train.precision = precision;
    set_token_dot(v->g, v->token_dot);
    v->pass_seconds = stgc_bench_wall() - start;
    vec_free(&skip);
    vec_free(&c.not_raised);
    return ok;
}

static StgcRt *machine_of(Bench *b, int threads) {
    for (int i = 0; i < b->machines.n; i++)
        if (stgc_rt_threads(b->machines.at[i]) == threads)
            return b->machines.at[i];
    StgcRt *rt = stgc_rt_new(threads);
    if (rt)
        vec_push(&b->machines, rt);
    return rt;
}

static bool no_memory(Bench *b, const Variant *v) {
    diag_error(&b->job.model_diag, EXIT_RESOURCE, "no memory for the step '%s'", v->name);
    diag_more(&b->job.model_diag, "make batch or sequence smaller");
    return false;
}

static bool make_run(Bench *b, Variant *v) {
    const StgcStep *step = compiled_step(v->compiled);
    v->rt = machine_of(b, v->threads);
    if (v->rt && v == &b->variants.at[0])
        v->run = stgc_run_new(v->rt, step);
    else if (v->rt)
        v->run = stgc_run_new_shared(v->rt, step, b->variants.at[0].run);
    return v->run || no_memory(b, v);
}

static bool compile_variant(Bench *b, Variant *v) {
    for (int i = 0; i < b->variants.n && !v->g; i++)
        if (b->variants.at[i].g && same_graph(&b->variants.at[i], v))
            v->g = b->variants.at[i].g;
    if (!v->g && !make_graph(b, v))
        return false;
    if (v->same_as >= 0) {
        const Variant *of = &b->variants.at[v->same_as];
        v->compiled = of->compiled, v->run = of->run, v->rt = of->rt;
        return true;
    }
    CodegenOptions o = {.fused = v->fused, .marks = v->marks};
    double start = stgc_bench_wall();
    for (int i = 0; i < b->variants.n && !v->compiled; i++) { /* other threads, the same code */
        const Variant *w = &b->variants.at[i];
        if (w->compiled && w->g == v->g && w->fused == v->fused && w->marks == v->marks)
            v->compiled = w->compiled;
    }
    if (!v->compiled)
        v->compiled = codegen_x86(v->g, &o, &b->job.model_diag);
    v->code_seconds = stgc_bench_wall() - start;
    return v->compiled && make_run(b, v);
}

bool bench_variants(Bench *b) {
    Job *j = &b->job;
    StgcRt *rt = stgc_rt_new((int)j->o->threads);
    if (!rt) {
        diag_error(&j->model_diag, EXIT_RESOURCE, "no memory for threads");
        return false;
    }
    vec_push(&b->machines, rt);
    b->own_clock = stgc_rt_threads(rt) == 1;
    list_variants(b);
    for (int i = 0; i < b->variants.n; i++)
        if (!compile_variant(b, &b->variants.at[i]))
            return false;
    const Variant *v = &b->variants.at[0];
    b->compile_seconds = v->pass_seconds + v->code_seconds;
    if (!bench_fill(b, v->g) || !job_check_inputs(j, v->g, true))
        return false;
    LabelRule rule = label_rule(v->g, j->recipe);
    const Tensor *labels = rule.name ? arrays_find(&j->data, rule.name) : NULL;
    int64_t counted;
    b->tokens = labels ? tensor_count(labels) : 0;
    b->memory_planned = stgc_run_peak_bytes(v->run);
    return !labels || labels_check(&rule, labels, &counted, &j->data_diag);
}

/* ---- one step ---- */

static const StgcSlot *slot_of(const Variant *v, const char *name, StgcSlotKind kind) {
    const StgcStep *step = compiled_step(v->compiled);
    for (uint32_t i = 0; i < step->nslots; i++)
        if (step->slots[i].kind == kind && !strcmp(step->slots[i].name, name))
            return &step->slots[i];
    return NULL;
}

static void set_input(Variant *v, const char *name, const Tensor *from) {
    const StgcSlot *s = slot_of(v, name, STGC_SLOT_INPUT);
    if (!s)
        return;
    Tensor to = {
        .dtype = dtype_from_onnx(s->type), .rank = s->rank, .data = stgc_run_data(v->run, s)};
    memcpy(to.dims, s->dims, sizeof *s->dims * (size_t)s->rank);
    for (int64_t i = 0, n = tensor_count(&to); i < n; i++) {
        if (dtype_is_float(from->dtype))
            tensor_set_f(&to, i, tensor_get_f(from, i));
        else
            tensor_set_i(&to, i, tensor_get_i(from, i));
    }
}

/* Inputs and shared values are current before anything is timed. */
static void set_inputs(Bench *b, Variant *v, int64_t step) {
    const Job *j = &b->job;
    StgcTraining numbers = identity_training(j->recipe);
    float values[8];
    stgc_schedule_hyper(&numbers, step, stgc_schedule_rate(&numbers, step), values);
    Tensor hyper = {.dtype = DT_F32, .rank = 1, .dims = {8}, .data = values};
    set_input(v, "hyper", &hyper);
    for (int i = 0; i < j->data.names.n; i++)
        set_input(v, j->data.names.at[i], j->data.tensors.at[i]);
}

bool bench_go(Bench *b, Variant *v) {
    StgcStatus status = stgc_run_step(v->run);
    if (status != STGC_OK)
        diag_error(&b->job.data_diag, (ExitCode)status, "%s: %s", v->name,
                   diag_safe(&b->job.data_diag, stgc_run_error(v->run)));
    return status == STGC_OK;
}

void bench_ready(Bench *b, Variant *v) {
    set_inputs(b, v, ++b->step);
}

bool bench_step(Bench *b, Variant *v) {
    bench_ready(b, v);
    return bench_go(b, v);
}

/* ---- do they compute the same ---- */

static bool is_state(const StgcSlot *s) {
    return s->kind == STGC_SLOT_PARAM || s->kind == STGC_SLOT_STATE;
}

static void start_again(Variant *v) {
    const StgcStep *step = compiled_step(v->compiled);
    for (uint32_t i = 0; i < step->nslots; i++) {
        const StgcSlot *s = &step->slots[i];
        if (!is_state(s) || !s->bytes)
            continue;
        void *to = stgc_run_data(v->run, s);
        if (s->init)
            memcpy(to, s->init, (size_t)s->bytes);
        else
            memset(to, 0, (size_t)s->bytes);
    }
}

static double loss_of(Variant *v, const char *name) {
    const StgcSlot *s = slot_of(v, name, STGC_SLOT_OUTPUT);
    float f;
    if (!s || s->type != STGC_F32)
        return NAN;
    memcpy(&f, stgc_run_data(v->run, s), sizeof f);
    return f;
}

static int64_t parameter_bytes(const Variant *v) {
    const StgcStep *step = compiled_step(v->compiled);
    int64_t sum = 0;
    for (uint32_t i = 0; i < step->nslots; i++)
        sum += step->slots[i].kind == STGC_SLOT_PARAM ? step->slots[i].bytes : 0;
    return sum;
}

/* Distance of the parameters from those of the first variant, by how far that one moved. */
static void compare_params(Bench *b, Variant *v) {
    const StgcStep *step = compiled_step(v->compiled);
    const char *first = b->first_params;
    double apart = 0, moved = 0;
    uint64_t hash = 1;
    for (uint32_t i = 0; i < step->nslots; i++) {
        const StgcSlot *s = &step->slots[i];
        if (s->kind != STGC_SLOT_PARAM)
            continue;
        const char *now = stgc_run_data(v->run, s);
        hash = hash_bytes(now, (size_t)s->bytes, hash);
        for (int64_t k = 0; s->type == STGC_F32 && k < s->bytes / 4; k++) {
            float x, y, z;
            memcpy(&x, now + 4 * k, 4);
            memcpy(&y, first + 4 * k, 4);
            memcpy(&z, (const char *)s->init + 4 * k, 4);
            apart += ((double)x - y) * ((double)x - y);
            moved += ((double)y - z) * ((double)y - z);
        }
        first += s->bytes;
    }
    v->hash = hash;
    v->param_error = apart > 0 ? sqrt(apart / moved) : 0;
}

static void keep_params(Bench *b, Variant *v) {
    const StgcStep *step = compiled_step(v->compiled);
    char *to = b->first_params = xcalloc(1, (size_t)parameter_bytes(v) + 1);
    for (uint32_t i = 0; i < step->nslots; i++) {
        const StgcSlot *s = &step->slots[i];
        if (s->kind != STGC_SLOT_PARAM || !s->bytes)
            continue;
        memcpy(to, stgc_run_data(v->run, s), (size_t)s->bytes);
        to += s->bytes;
    }
}

/* The largest relative difference of losses: of all steps, or of the first step's task loss where
 * gradients differ on purpose. */
static double compare_losses(const Variant *v, const Variant *first) {
    double most = 0;
    bool first_task = v->check >= CHECK_FORWARD;
    for (int s = 0; s < (first_task ? 1 : CHECK_STEPS); s++)
        for (int k = first_task; k < 2; k++) {
            double x = v->loss[s][k], y = first->loss[s][k];
            if (isnan(y) && isnan(x))
                continue;
            double e = fabs(x - y) / fmax(fabs(y), 1e-30);
            most = e <= most ? most : e; /* NaN stays */
        }
    return most;
}

static bool check_variant(Bench *b, Variant *v) {
    Variant *first = &b->variants.at[0];
    start_again(v);
    for (int s = 0; s < CHECK_STEPS; s++) {
        set_inputs(b, v, s + 1);
        if (!bench_go(b, v))
            return false;
        v->loss[s][0] = loss_of(v, "loss/total");
        v->loss[s][1] = loss_of(v, "loss/task");
    }
    if (!b->first_params)
        keep_params(b, v);
    compare_params(b, v);
    v->loss_error = compare_losses(v, first);
    bool ok = v->loss_error <= (v->check == CHECK_ROUNDED ? ROUNDED_TOLERANCE : LOSS_TOLERANCE);
    if (v->check == CHECK_BITS)
        ok = v->hash == first->hash && v->loss_error == 0;
    if (v->check == CHECK_CLOSE)
        ok &= v->param_error <= PARAM_TOLERANCE;
    v->wrong = !ok;
    return true;
}

bool bench_check(Bench *b) {
    Diag *d = &b->job.model_diag;
    for (int i = 0; i < b->variants.n; i++) {
        Variant *v = &b->variants.at[i];
        if (!check_variant(b, v))
            return false;
        if (!v->wrong)
            continue;
        diag_error(d, EXIT_BUG, "'%s' does not compute what '%s' does", v->name,
                   b->variants.at[0].name);
        diag_more(d,
                  "after %d steps: losses differ by %.2g (allowed %s), parameters by %.2g of "
                  "their way (allowed %s)",
                  CHECK_STEPS, v->loss_error,
                  v->check == CHECK_BITS      ? "0"
                  : v->check == CHECK_ROUNDED ? "5e-2"
                                              : "1e-5",
                  v->param_error,
                  v->check == CHECK_BITS    ? "0"
                  : v->check == CHECK_CLOSE ? "1e-2"
                                            : "any");
    }
    b->step = CHECK_STEPS;
    return !job_failed(&b->job);
}

void bench_free(Bench *b) {
    stgc_peaks_free(b->peaks);
    for (int i = b->variants.n - 1; i >= 0; i--)
        if (b->variants.at[i].same_as < 0)
            stgc_run_free(b->variants.at[i].run);
    for (int i = 0; i < b->variants.n; i++) {
        Variant *v = &b->variants.at[i];
        bool shared = false;
        for (int k = 0; k < i; k++)
            shared |= b->variants.at[k].compiled == v->compiled;
        if (!shared)
            compiled_free(v->compiled);
    }
    for (int i = 0; i < b->variants.n; i++) {
        Variant *v = &b->variants.at[i];
        if (v->owns_g && v->g)
            graph_free(v->g);
        for (int k = 0; k < v->kernels.n; k++) {
            vec_free(&v->kernels.at[k].wall);
            vec_free(&v->kernels.at[k].cpu);
        }
        vec_free(&v->kernels);
        vec_free(&v->wall);
        vec_free(&v->cpu);
    }
    for (int i = 0; i < b->machines.n; i++)
        stgc_rt_free(b->machines.at[i]);
    vec_free(&b->variants);
    vec_free(&b->machines);
    vec_free(&b->gemm);
    vec_free(&b->copy);
    free(b->first_params);
}
