/* cmd_transform.c: the training graph in standard ONNX operators: gradients and metrics, or one
 * optimizer step.
 *
 * Order of blame: a model that would be trained as something else than it is is refused before any
 * fault of the recipe, the sizes or the output is spoken of. */
#include <stdlib.h>
#include <string.h>

#include "codegen/onnx.h"
#include "frontend/cmd.h"
#include "ir/infer.h"

/* ---- faults of the model first ---- */

/* After some other fault: is the model itself at fault? The forward half alone, with small sizes
 * for what is open. True if so, and then *code is what to exit with; its messages are printed. */
static bool model_is_at_fault(const Options *o, int *code) {
    Options plain = *o;
    Job j;
    bool stopped = false;
    plain.quiet = true;
    plain.recipe = plain.data = NULL;
    plain.dump = plain.stop_after = NULL;
    plain.sets = plain.dims = plain.freeze = plain.skip = (StrList){0};
    job_begin(&j, &plain);
    bool ok = job_load_model(&j) && job_load_recipe(&j) && job_bind_samples(&j) &&
              job_compile(&j, j.g, (TrainWants){0}, &stopped);
    bool at_fault = !ok && j.model_diag.errors > 0 && j.model_diag.code == EXIT_MODEL;
    if (!at_fault)
        j.model_diag.messages.n = j.model_diag.errors = 0;
    *code = job_end(&j, EXIT_OK);
    return at_fault;
}

/* ---- metadata ---- */

typedef VEC(OnnxNote) Notes;

static void add_note(Job *j, Notes *notes, const char *key, const char *text) {
    OnnxNote n = {arena_strdup(&j->arena, key), text};
    vec_push(notes, n);
}

static const char *recipe_text(Job *j) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    if (f) {
        recipe_print(j->recipe, f);
        fclose(f);
    }
    const char *copy = arena_strdup(&j->arena, text ? text : "");
    free(text);
    return copy;
}

static void collect_notes(Job *j, Notes *notes, const char *emit) {
    MoeLayers layers = {0};
    add_note(j, notes, "stgc.version", STGCC_VERSION);
    add_note(j, notes, "stgc.emit", emit);
    add_note(j, notes, "stgc.recipe", recipe_text(j));
    moe_layers(j->g, &layers);
    for (int i = 0; i < layers.n; i++) {
        const MoeLayer *l = &layers.at[i];
        const char *k = l->top_k ? arena_printf(&j->arena, "top %d", l->top_k)
                                 : "a varying number chosen",
                   *text = arena_printf(
                       &j->arena, "form %s, %d experts, %s, score %s, schema %s, probe error %.3g",
                       l->form ? l->form : "-", l->experts, k, l->score ? l->score : "none",
                       l->schema ? l->schema : "-", l->probe_error);
        add_note(j, notes, arena_printf(&j->arena, "stgc.layer_%d", l->index), text);
    }
    moe_layers_free(&layers);
}

/* ---- the command ---- */

static bool read_wants(const Options *o, TrainWants *w, Diag *d) {
    const char *emit = o->emit ? o->emit : "gradients";
    if (!strcmp(emit, "gradients"))
        *w = (TrainWants){.train = true, .grads = true, .detail = true};
    else if (!strcmp(emit, "step"))
        *w = (TrainWants){.train = true, .update = true, .metrics = true};
    else
        diag_error(d, EXIT_USAGE, "--emit: expected gradients or step, found '%s'",
                   diag_safe(d, emit));
    if (o->opset && (o->opset < ONNX_OPSET_MIN || o->opset > ONNX_OPSET_MAX))
        diag_error(d, EXIT_USAGE, "--opset: expected %d to %d, found %lld", ONNX_OPSET_MIN,
                   ONNX_OPSET_MAX, (long long)o->opset);
    return d->errors == 0;
}

/* Neither the model nor the data beside it may lie where the result goes. */
static bool check_places(Job *j) {
    const char *places[] = {j->o->out, arena_printf(&j->arena, "%s.data", j->o->out)};
    for (int i = 0; i < COUNT_OF(places); i++)
        if (onnx_reads_file(j->file, places[i])) {
            diag_error(&j->out_diag, EXIT_USAGE,
                       "would overwrite '%s', which holds the model that is read",
                       diag_safe(&j->out_diag, places[i]));
            diag_more(&j->out_diag, "choose another place with -o");
            return false;
        }
    return job_check_output(j);
}

static bool prepare(Job *j, TrainWants *wants) {
    const Options *o = j->o;
    bool ok = job_load_recipe(j);
    ok = read_wants(o, wants, &j->set_diag) && ok;
    ok = (!o->data || job_load_data(j)) && ok;
    return ok && job_bind(j) && check_places(j);
}

static void say_accumulate(Job *j) {
    if (j->recipe->train.accumulate > 1)
        diag_warning(&j->recipe_diag,
                     "train.accumulate is %lld: a step graph takes all of its batch at once",
                     (long long)j->recipe->train.accumulate);
}

static bool write_graph(Job *j, TrainWants wants) {
    Notes notes = {0};
    collect_notes(j, &notes, wants.update ? "step" : "gradients");
    OnnxOptions options = {.opset = j->o->opset ? (int)j->o->opset : ONNX_OPSET_DEFAULT,
                           .external_data = j->o->external_data,
                           .initial_values = j->o->initial_values,
                           .version = STGCC_VERSION,
                           .recipe = j->recipe,
                           .notes = notes.at,
                           .nnotes = notes.n};
    bool ok = onnx_write_training(j->g, j->o->out, &options, &j->model_diag, &j->out_diag);
    vec_free(&notes);
    return ok;
}

int cmd_transform(const Options *o) {
    Job j;
    TrainWants wants = {0};
    bool stopped = false;
    int code;
    job_begin(&j, o);
    bool loaded = job_load_model(&j), ready = loaded && prepare(&j, &wants);
    if (loaded && !ready && model_is_at_fault(o, &code)) {
        Diag *said[] = {&j.model_diag, &j.recipe_diag, &j.set_diag, &j.data_diag, &j.out_diag};
        for (int i = 0; i < COUNT_OF(said); i++)
            said[i]->messages.n = said[i]->errors = 0;
        job_end(&j, EXIT_OK);
        return code;
    }
    if (ready && job_compile(&j, j.g, wants, &stopped) && !stopped) {
        job_check_weights(&j, j.g, false);
        if (wants.update)
            say_accumulate(&j);
        if (j.recipe->train.precision == PRECISION_BF16)
            diag_warning(&j.recipe_diag, "train.precision: the ONNX graph computes in f32");
        if (write_graph(&j, wants) && !o->quiet)
            printf("wrote %s\n", o->out);
    }
    return job_end(&j, EXIT_OK);
}
