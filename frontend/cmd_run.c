/* cmd_run.c: forward only: the model's outputs for one set of inputs, in the model's types. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "frontend/bind.h"
#include "frontend/cmd.h"

typedef struct OutputType {
    const char *name;
    DType type;
} OutputType;
typedef VEC(OutputType) OutputTypes;

/* DIR/input_0.pb …, by the names they carry; one without a name is the input of its number. A model
 * without inputs needs none. */
static bool load_folder(Job *j) {
    NamedArrays *a = &j->data;
    for (int i = 0;; i++) {
        const char *path = arena_printf(&j->arena, "%s/input_%d.pb", j->o->data, i), *name = NULL;
        if (access(path, F_OK) != 0)
            return true;
        Tensor *t = onnx_read_tensor(&a->arena, path, &name, &j->data_diag);
        if (!t)
            return false;
        vec_push(&a->names, name && *name ? arena_strdup(&a->arena, name) : NULL);
        vec_push(&a->tensors, t);
    }
}

static bool is_folder(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static bool load_data(Job *j) {
    return is_folder(j->o->data) ? load_folder(j) : job_load_data(j);
}

/* Small ones that may be shapes, axes, counts or switches are part of the model for this run: the
 * compiler knows their values. */
static bool may_decide_shapes(const Tensor *t) {
    enum { SMALL = 64 };
    return t->rank <= 1 && tensor_count(t) <= SMALL;
}

/* The data are read first, for the sake of those and of sizes that are symbols in the model; a
 * fault of the model is still the one that is reported. Sizes given by hand are bound later, so
 * that they can be checked. */
static bool load_model_with_data(Job *j) {
    VEC(NamedTensor) known = {0}, sized = {0};
    bool data = load_data(j);
    ImportLimits limits = job_limits(j->o);
    for (int i = 0; data && i < j->data.names.n; i++) {
        NamedTensor one = {j->data.names.at[i], j->data.tensors.at[i]};
        if (one.name && may_decide_shapes(one.tensor))
            vec_push(&known, one);
        if (one.name && !j->o->dims.n)
            vec_push(&sized, one);
    }
    limits.known = known.at;
    limits.nknown = known.n;
    limits.sized = sized.at;
    limits.nsized = sized.n;
    j->g = onnx_import(j->o->model, &limits, &j->file, &j->model_diag);
    vec_free(&known);
    vec_free(&sized);
    if (!j->g) {
        diag_free(&j->data_diag);
        return false;
    }
    if (data && !j->data.names.n && j->g->inputs.n && is_folder(j->o->data)) {
        diag_error(&j->data_diag, EXIT_DATA, "no input_0.pb in this folder");
        diag_more(&j->data_diag,
                  "expected input_0.pb, input_1.pb … (ONNX test data), or a .npz file");
        return false;
    }
    for (int i = 0; data && i < j->data.names.n; i++)
        if (!j->data.names.at[i])
            j->data.names.at[i] =
                i < j->g->inputs.n ? node_str(j->g->inputs.at[i]->def, AT_NAME, "") : "";
    return data;
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

/* Code is compiled for known sizes; the reference evaluator takes what only data decide. */
static bool sizes_are_known(const Graph *g) {
    FOR_NODES(n, g)
    for (int i = 0; i < n->nout; i++)
        if (!value_known(n->out[i]))
            return false;
    return true;
}

static bool execute(Job *j, const OutputTypes *types) {
    Options options = *j->o;
    if (options.engine == ENGINE_CPU && !sizes_are_known(j->g)) {
        options.engine = ENGINE_REFERENCE;
        diag_warning(
            &j->model_diag,
            "some sizes depend on data: computed by the reference evaluator, which is slow");
    }
    Engine *e = engine_new(j->g, &options, NULL, &j->model_diag);
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
    bool ok =
        load_model_with_data(&j) && job_load_recipe(&j) && job_bind(&j) && job_check_output(&j);
    for (int i = 0; ok && i < j.g->outputs.n; i++) {
        const GraphOutput *out =
            &j.g->outputs.at[i]; /* compiled code may hold it in a wider type */
        OutputType t = {arena_strdup(&j.arena, out->name), out->value->dtype};
        vec_push(&types, t);
    }
    ok = ok && job_compile(&j, j.g, (TrainWants){0}, &stopped);
    if (ok && !stopped) {
        job_check_weights(&j, j.g, false);
        ok = job_check_inputs(&j, j.g, false) && execute(&j, &types);
    }
    vec_free(&types);
    return job_end(&j, EXIT_OK);
}
