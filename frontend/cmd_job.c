/* cmd_job.c: the steps that commands have in common: load, bind, compile, check, report. See cmd.h.
 */
#include "frontend/cmd.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "frontend/bind.h"
#include "ir/infer.h"

void job_begin(Job *j, const Options *o) {
    *j = (Job){.o = o,
               .model_diag.subject = o->model,
               .recipe_diag.subject = o->recipe ? o->recipe : "recipe",
               .set_diag.subject = "stgcc",
               .data_diag.subject = o->data ? o->data : "--data",
               .out_diag.subject = o->out ? o->out : "-o"};
}

static bool failed(const Diag *d) {
    return d->errors > 0;
}

bool job_failed(const Job *j) {
    return failed(&j->model_diag) || failed(&j->recipe_diag) || failed(&j->set_diag) ||
           failed(&j->data_diag) || failed(&j->out_diag);
}

static void only_errors(Diag *d) {
    int n = 0;
    for (int i = 0; i < d->messages.n; i++)
        if (d->messages.at[i].level == DIAG_ERROR)
            d->messages.at[n++] = d->messages.at[i];
    d->messages.n = n;
}

void job_say(Job *j) {
    Diag *all[] = {&j->model_diag, &j->recipe_diag, &j->set_diag, &j->data_diag, &j->out_diag};
    fflush(stdout);
    for (int i = 0; i < COUNT_OF(all) && !job_failed(j); i++) {
        if (!j->o->quiet)
            diag_print(all[i], stderr, j->o->verbose);
        all[i]->messages.n = 0;
    }
}

int job_end(Job *j, ExitCode code) {
    Diag *all[] = {&j->model_diag, &j->recipe_diag, &j->set_diag, &j->data_diag, &j->out_diag};
    bool bad = job_failed(j);
    for (int i = COUNT_OF(all) - 1; i >= 0; i--)
        if (failed(all[i]))
            code = all[i]->code; /* the first in order of report wins */
    fflush(stdout);
    for (int i = 0; i < COUNT_OF(all); i++) {
        if (bad && !j->o->verbose)
            only_errors(all[i]); /* one fault, one message */
        if (bad || !j->o->quiet)
            diag_print(all[i], stderr, j->o->verbose);
        diag_free(all[i]);
    }
    if (j->g)
        graph_free(j->g);
    if (j->file)
        onnx_file_free(j->file);
    recipe_free(j->recipe);
    arrays_free(&j->data);
    arena_free(&j->arena);
    return code;
}

/* ---- loading ---- */

ImportLimits job_limits(const Options *o) {
    return (ImportLimits){.max_nodes = o->max_nodes,
                          .max_heap = o->max_heap,
                          .sort = o->sort,
                          .gradient = gradient_of};
}

bool job_load_model(Job *j) {
    ImportLimits limits = job_limits(j->o);
    j->g = onnx_import(j->o->model, &limits, &j->file, &j->model_diag);
    return j->g != NULL;
}

/* The model was read before the recipe, with random nodes at their means: once more, with draws. */
static bool import_with_noise(Job *j) {
    ImportLimits limits = job_limits(j->o);
    limits.noise_seed = 1 + (uint64_t)j->recipe->train.seed;
    graph_free(j->g);
    onnx_file_free(j->file);
    j->model_diag.messages.n = 0;
    j->file = NULL;
    j->g = onnx_import(j->o->model, &limits, &j->file, &j->model_diag);
    return j->g != NULL;
}

/* What the command line changes of a recipe. */
static bool recipe_flags(Job *j, Recipe *r) {
    bool ok = true;
    for (int i = 0; i < j->o->sets.n; i++)
        ok &= recipe_set(r, j->o->sets.at[i], &j->set_diag);
    for (int i = 0; i < j->o->freeze.n; i++)
        vec_push(&r->model.freeze, arena_strdup(&r->arena, j->o->freeze.at[i]));
    if (j->o->steps)
        r->schedule.steps = j->o->steps;
    return ok;
}

bool job_load_recipe(Job *j) {
    Recipe *r = j->recipe = recipe_new();
    bool ok = !j->o->recipe || recipe_read(r, j->o->recipe, &j->recipe_diag);
    ok &= recipe_flags(j, r);
    return ok && (r->noise == NOISE_OFF || !j->g || import_with_noise(j));
}

bool job_load_recipe_text(Job *j, const char *text) {
    Recipe *r = j->recipe = recipe_new();
    bool ok = recipe_read_text(r, text, strlen(text), &j->recipe_diag);
    return recipe_flags(j, r) && ok;
}

static int64_t memory_limit(const Options *o) {
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    return o->mem_limit ? o->mem_limit : (int64_t)pages * page;
}

bool job_load_data(Job *j) {
    return npz_read_limit(j->o->data, memory_limit(j->o), &j->data, &j->data_diag);
}

/* ---- sizes ---- */

/* Nothing in the data though the model takes inputs. */
static bool data_missing(Job *j) {
    Diag *d = &j->data_diag;
    if (!j->o->data || j->data.names.n || !j->g->inputs.n)
        return false;
    const char *first = diag_safe(d, node_str(j->g->inputs.at[0]->def, AT_NAME, ""));
    diag_error(d, EXIT_DATA, "holds no arrays; the model has %d input%s, the first is \"%s\"",
               j->g->inputs.n, j->g->inputs.n == 1 ? "" : "s", first);
    diag_more(d, "save a batch with numpy.savez(FILE, %s=...)", first);
    return true;
}

bool job_bind(Job *j) {
    if (data_missing(j))
        return false;
    bool ok = bind_flags(j->g, &j->o->dims, &j->set_diag);
    ok = ok && (!j->data.names.n || bind_arrays(j->g, &j->data, &j->data_diag));
    ok = ok && bind_complete(j->g, &j->model_diag);
    return ok && graph_infer(j->g, &j->model_diag);
}

bool job_bind_samples(Job *j) {
    if (!bind_flags(j->g, &j->o->dims, &j->set_diag))
        return false;
    if (j->data.names.n && !bind_arrays(j->g, &j->data, &j->data_diag))
        return false;
    bind_samples(j->g);
    return graph_infer(j->g, &j->model_diag);
}

static bool same_file(const char *a, const char *b) {
    struct stat x, y;
    return a && b && stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev &&
           x.st_ino == y.st_ino;
}

bool job_check_output(Job *j) {
    const char *inputs[] = {j->o->model, j->o->data, j->o->recipe};
    for (int i = 0; j->o->out && i < COUNT_OF(inputs); i++)
        if (same_file(j->o->out, inputs[i])) {
            diag_error(&j->out_diag, EXIT_USAGE, "would overwrite its own input '%s'",
                       diag_safe(&j->out_diag, inputs[i]));
            diag_more(&j->out_diag, "choose another place with -o");
            return false;
        }
    return true;
}

/* ---- compiling ---- */

static bool is_code_dump(const char *name) {
    static const char *const names[] = {"kernels", "loops", "llvm", "asm"};
    for (int i = 0; name && i < COUNT_OF(names); i++)
        if (!strcmp(name, names[i]))
            return true;
    return false;
}

/* A region that would compute something else than the model did is an error; what is merely no MoE
 * layer, a note. */
static bool report_not_raised(Job *j, const Compile *c) {
    Diag *d = &j->model_diag;
    bool ok = true;
    for (int i = 0; i < c->not_raised.n; i++) {
        const NotRaised *r = &c->not_raised.at[i];
        if (r->wrong && !j->o->allow_unraised) {
            diag_error(d, EXIT_MODEL, "node \"%s\": %s", diag_safe(d, r->node), r->why);
            ok = false;
        } else if (r->wrong) {
            diag_warning(d, "node \"%s\": %s", diag_safe(d, r->node), r->why);
        } else {
            diag_note(d, "node \"%s\": %s", diag_safe(d, r->node), r->why);
        }
        if (r->fix)
            diag_more(d, "%s", r->fix);
    }
    if (!ok)
        diag_more(d, "--allow-unraised goes on all the same");
    return ok;
}

static bool report_no_moe(Job *j, const Compile *c) {
    MoeLayers layers = {0};
    moe_layers(c->g, &layers);
    int n = layers.n;
    moe_layers_free(&layers);
    if (n > 0)
        return true;
    const char *closest = c->not_raised.n ? c->not_raised.at[0].why : "no router with experts";
    if (j->o->require_moe)
        diag_error(&j->model_diag, EXIT_MODEL, "no MoE layer found: %s", closest);
    else if (j->recipe->stgc.enabled)
        diag_warning(&j->model_diag, "no MoE layer found: %s; training goes on without STGC",
                     closest);
    return !j->o->require_moe;
}

StrList job_skips(const Job *j) {
    StrList skip = {0};
    for (int i = 0; i < j->o->skip.n; i++)
        vec_push(&skip, j->o->skip.at[i]);
    if (onnx_metadata(j->file, "stgc.emit"))
        vec_push(&skip, "raise_moe");
    return skip;
}

/* A training graph is not trained once more. */
static bool check_not_training(Job *j, const TrainWants *wants) {
    if (!wants->train || !onnx_metadata(j->file, "stgc.emit"))
        return true;
    diag_error(&j->model_diag, EXIT_MODEL,
               "this is a training graph already, written by 'stgcc transform'");
    diag_more(&j->model_diag, "give the model that it was made from");
    return false;
}

/* Where the forward half ends. */
#define RAISED "raise_moe"

/* A CPU has no tf32: a recipe made for a GPU runs here all the same. */
static void say_precision(Job *j) {
    bool gpu = j->o->target && !strncmp(j->o->target, "sm_", 3);
    if (!gpu && j->recipe->train.precision == PRECISION_TF32)
        diag_warning(&j->recipe_diag, "train.precision: a CPU has no tf32; products are f32");
}

static bool run_passes(Job *j, Graph *g, TrainWants wants, const char *stop_after, bool *stopped) {
    if (!j->raised && wants.train)
        say_precision(j);
    StrList skip = job_skips(j);
    Compile c = {.g = g,
                 .recipe = j->recipe,
                 .wants = wants,
                 .diag = &j->model_diag,
                 .allow_unraised = j->o->allow_unraised,
                 .raised = j->raised,
                 .dump = is_code_dump(j->o->dump) ? NULL : j->o->dump,
                 .stop_after = stop_after,
                 .skip = skip,
                 .dump_to = stdout};
    bool ok = passes_run(&c, stopped);
    vec_free(&skip);
    if (ok && !j->raised && !wants.apply_only)
        ok = report_not_raised(j, &c) && (!wants.train || report_no_moe(j, &c));
    vec_free(&c.not_raised);
    return ok && !job_failed(j);
}

bool job_raise(Job *j, TrainWants wants, bool *stopped) {
    const char *stop = j->o->stop_after;
    bool early = stop && (!strcmp(stop, "canonicalise") || !strcmp(stop, RAISED)), half;
    *stopped = false;
    if (!check_not_training(j, &wants) || !run_passes(j, j->g, wants, early ? stop : RAISED, &half))
        return false;
    *stopped = early;
    j->raised = true;
    return true;
}

bool job_compile(Job *j, Graph *g, TrainWants wants, bool *stopped) {
    return check_not_training(j, &wants) && run_passes(j, g, wants, j->o->stop_after, stopped);
}

/* ---- before a step ---- */

/* The position of element i in an array, as "[0,3]". */
static const char *position_text(const Tensor *t, int64_t at, Arena *a) {
    const char *s = "]";
    for (int i = t->rank - 1; i >= 0; i--) {
        s = arena_printf(a, "%s%lld%s", i ? "," : "[", (long long)(at % t->dims[i]), s);
        at /= t->dims[i];
    }
    return t->rank ? s : "[]";
}

static bool check_finite(const char *name, const Tensor *t, Diag *d) {
    if (!dtype_is_float(t->dtype))
        return true;
    for (int64_t i = 0, n = tensor_count(t); i < n; i++)
        if (isnan(tensor_get_f(t, i))) { /* infinities are legal: masks hold them */
            diag_error(d, EXIT_DATA, "array \"%s\" holds NaN at %s", diag_safe(d, name),
                       position_text(t, i, &d->arena));
            diag_more(d, "remove the sample or repair the field");
            return false;
        }
    return true;
}

/* Ids that are looked up in a table as they are: the first one outside it. */
static bool check_ids(const Value *input, const Tensor *t, Diag *d) {
    for (int i = 0; i < input->uses.n; i++) {
        const Node *n = input->uses.at[i].node;
        if (n->op != OP_GATHER || input->uses.at[i].operand != 1 || n->in[0]->rank < 1)
            continue;
        int64_t axis = node_int(n, AT_AXIS, 0);
        int64_t rows = n->in[0]->dims[axis < 0 ? axis + n->in[0]->rank : axis];
        for (int64_t k = 0, count = tensor_count(t); k < count; k++) {
            int64_t id = tensor_get_i(t, k);
            if (id >= -rows && id < rows)
                continue;
            diag_error(d, EXIT_DATA, "id %lld at \"%s\"%s is out of range", (long long)id,
                       diag_safe(d, node_str(input->def, AT_NAME, "")),
                       position_text(t, k, &d->arena));
            diag_more(d, "node \"%s\" looks it up in %lld rows%s%s", diag_safe(d, n->src->name),
                      (long long)rows, value_is_param(n->in[0]) ? " of " : "",
                      value_is_param(n->in[0]) ? diag_safe(d, param_name(n->in[0])) : "");
            return false;
        }
    }
    return true;
}

bool job_check_inputs(Job *j, const Graph *g, bool refuse_nan) {
    Diag *d = &j->data_diag;
    bool ok = true;
    for (int i = 0; i < g->inputs.n; i++) {
        const Value *v = g->inputs.at[i];
        const char *name = node_str(v->def, AT_NAME, "");
        if (!strcmp(name, "hyper"))
            continue;
        const Tensor *t = array_for(g, v, &j->data, d);
        ok &= t && array_fits(g, v, t, d) && (!refuse_nan || check_finite(name, t, d)) &&
              check_ids(v, t, d);
    }
    return ok;
}

/* No NaN and no infinity: what nearly all weights are, at the speed of memory. */
static bool all_finite(const Tensor *t) {
    enum { BLOCK = 4096, EXPONENT = 0x7f800000 };
    int64_t count = tensor_count(t);
    if (t->dtype != DT_F32)
        return false;
    for (int64_t at = 0; at < count; at += BLOCK) {
        int64_t n = count - at < BLOCK ? count - at : BLOCK;
        uint32_t bits[BLOCK], bad = 0;
        memcpy(bits, (const char *)t->data + 4 * at, (size_t)n * 4);
        for (int64_t i = 0; i < n; i++)
            bad |= (bits[i] & EXPONENT) == EXPONENT;
        if (bad)
            return false;
    }
    return true;
}

bool job_check_weights(Job *j, const Graph *g, bool stop) {
    Diag *d = &j->model_diag;
    int bad = 0;
    FOR_NODES(n, g) {
        const Attr *init = n->op == OP_PARAM ? node_attr(n, AT_VALUE) : NULL;
        if (!init || !init->t || !dtype_is_float(init->t->dtype) || all_finite(init->t))
            continue;
        bool trained = node_int(n, AT_KIND, PARAM_WEIGHT) == PARAM_WEIGHT;
        int64_t nans = 0, infs = 0, count = tensor_count(init->t), first = -1;
        for (int64_t i = 0; i < count; i++) {
            double v = tensor_get_f(init->t, i);
            nans += isnan(v);
            infs += trained && isinf(v);
            if (first < 0 && nans + infs > 0)
                first = i;
        }
        if (!nans && !infs)
            continue;
        const char *text = arena_printf(
            &d->arena,
            "parameter \"%s\" holds %lld NaN and %lld Inf of %lld values, the first at %s",
            diag_safe(d, param_name(n->out[0])), (long long)nans, (long long)infs, (long long)count,
            position_text(init->t, first, &d->arena));
        if (stop && bad++ == 0) {
            diag_error(d, EXIT_NUMERIC, "%s", text);
            diag_more(d, "training would give NaN only; repair the model");
        } else if (!stop) {
            diag_warning(d, "%s", text);
        }
    }
    if (bad > 1)
        diag_more(d, "(and %d more parameters)", bad - 1);
    return bad == 0;
}

void job_drop_weights(Job *j) {
    if (j->recipe->model.tie.n)
        return;
    FOR_NODES(n, j->g) {
        const Attr *init = n->op == OP_PARAM ? node_attr(n, AT_VALUE) : NULL;
        if (init && node_int(n, AT_KIND, PARAM_WEIGHT) == PARAM_WEIGHT &&
            onnx_file_drop(j->file, param_name(n->out[0])))
            init->t->data = NULL; /* shared with the file, or a copy in the graph */
    }
}

/* ---- labels ---- */

LabelRule label_rule(const Graph *g, const Recipe *r) {
    LabelRule rule = {.ignore = r->loss.ignore_index,
                      .shifted_by_us = r->loss.kind == LOSS_CAUSAL_LM && !r->loss.shifted};
    if (r->loss.kind == LOSS_REGRESSION || r->loss.kind == LOSS_OUTPUT)
        return rule;
    FOR_NODES(n, g)
    if (n->op == OP_XENT && n->in[0]->rank > 0) {
        rule.name = r->loss.labels;
        rule.classes = n->in[0]->dims[n->in[0]->rank - 1];
        break;
    }
    return rule;
}

bool labels_check(const LabelRule *rule, const Tensor *t, int64_t *counted, Diag *d) {
    *counted = 0;
    int64_t n = tensor_count(t), row = t->rank > 1 ? t->dims[t->rank - 1] : 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t v = tensor_get_i(t, i);
        if (v == rule->ignore || (rule->shifted_by_us && row && i % row == 0))
            continue;
        if (v < 0 || v >= rule->classes) {
            diag_error(d, EXIT_DATA, "label %lld at \"%s\"%s is out of range", (long long)v,
                       diag_safe(d, rule->name), position_text(t, i, &d->arena));
            diag_more(d, "expected 0 to %lld, or %lld to ignore the position (loss.ignore_index)",
                      (long long)rule->classes - 1, (long long)rule->ignore);
            return false;
        }
        ++*counted;
    }
    return true;
}
