/* cmd_run.c: forward only: the model's outputs for one set of inputs, in the model's types. */
#include <stdlib.h>
#include <string.h>

#include "frontend/bind.h"
#include "frontend/cmd.h"

typedef struct OutputType {
    const char *name;
    DType type;
} OutputType;
typedef VEC(OutputType) OutputTypes;

/* Inputs that may be shapes, axes or counts are folded into the model: then their values are known
 * to the compiler. */
static bool fold_small_inputs(Job *j) {
    enum { SMALL = 64 };
    VEC(NamedTensor) known = {0};
    for (int i = 0; i < j->g->inputs.n; i++) {
        const Value *v = j->g->inputs.at[i];
        const char *name = node_str(v->def, AT_NAME, "");
        const Tensor *t = arrays_find(&j->data, name);
        if (!t || t->rank > 1 || dtype_is_float(t->dtype) || t->dtype != v->dtype ||
            tensor_count(t) > SMALL)
            continue;
        NamedTensor one = {arena_strdup(&j->arena, name), t};
        vec_push(&known, one);
    }
    if (known.n) {
        ImportLimits limits = job_limits(j->o);
        limits.known = known.at;
        limits.nknown = known.n;
        graph_free(j->g);
        onnx_file_free(j->file);
        j->file = NULL;
        j->g = onnx_import(j->o->model, &limits, &j->file, &j->model_diag);
    }
    vec_free(&known);
    return j->g != NULL;
}

static bool write_outputs(Job *j, Engine *e, const OutputTypes *types) {
    NpzWriter *w = npz_create(j->o->out, &j->out_diag);
    bool ok = w != NULL;
    for (int i = 0; ok && i < types->n; i++) {
        Arena scratch = {0};
        Tensor *t = engine_output(e, &scratch, types->at[i].name, types->at[i].type);
        ok = npz_add(w, types->at[i].name, t, &j->out_diag);
        arena_free(&scratch);
    }
    if (ok)
        return npz_close(w, &j->out_diag);
    npz_abandon(w);
    return false;
}

static bool execute(Job *j, const OutputTypes *types) {
    Engine *e = engine_new(j->g, j->o, NULL, &j->model_diag);
    if (!e)
        return false;
    for (int i = 0; i < j->data.names.n; i++)
        engine_input(e, j->data.names.at[i], j->data.tensors.at[i]);
    bool ok = engine_step(e, &j->data_diag) && write_outputs(j, e, types);
    if (ok && j->o->verbose)
        fprintf(stderr, "%s\n", engine_describe(e, &j->arena));
    engine_free(e);
    return ok;
}

int cmd_run(const Options *o) {
    Job j;
    bool stopped = false;
    OutputTypes types = {0};
    job_begin(&j, o);
    bool ok = job_load_model(&j) && job_load_recipe(&j) && job_load_data(&j) &&
              fold_small_inputs(&j) && job_bind(&j) && job_check_output(&j);
    for (int i = 0; ok && i < j.g->outputs.n;
         i++) { /* compiled code may hold them in wider types */
        OutputType t = {arena_strdup(&j.arena, j.g->outputs.at[i].name),
                        j.g->outputs.at[i].value->dtype};
        vec_push(&types, t);
    }
    ok = ok && job_compile(&j, j.g, (TrainWants){0}, &stopped);
    if (ok && !stopped) {
        job_check_weights(&j, j.g, false);
        ok = job_check_inputs(&j, j.g) && execute(&j, &types);
    }
    vec_free(&types);
    return job_end(&j, EXIT_OK);
}
