/* cmd_export.c: trained parameters back into the model they came from. With a recipe (-c),
 * parameters that it ties to trained ones as well. */
#include <stdlib.h>
#include <string.h>

#include "frontend/cmd.h"
#include "passes/pass.h"
#include "runtime/safetensors.h"

/* Constants a library keeps beside its parameters are the model's own and never trained. */
static bool is_constant(const char *name) {
    return !strncmp(name, "const/", 6);
}

typedef VEC(NamedTensor) Values;

static bool read_values(Job *j, Values *values) {
    Diag *d = &j->data_diag;
    char error[512];
    StgcStatus status;
    d->subject = j->o->params;
    StgcSafetensors *s = stgc_safetensors_open(j->o->params, NULL, 0, &status, error, sizeof error);
    for (uint32_t i = 0; s && i < s->n && status == STGC_OK; i++) {
        const StgcCkptTensor *from = &s->tensors[i];
        if (is_constant(from->name))
            continue;
        Tensor *t = tensor_new(&j->arena, dtype_from_onnx(from->type), from->rank, from->dims);
        status = stgc_safetensors_read(s, i, t->data, error, sizeof error);
        NamedTensor one = {arena_strdup(&j->arena, from->name), t};
        vec_push(values, one);
    }
    stgc_safetensors_close(s);
    if (status != STGC_OK)
        diag_error(d, (ExitCode)status, "%s", diag_safe(d, error));
    return status == STGC_OK;
}

static const Tensor *value_of(const Values *values, const char *name) {
    for (int i = 0; i < values->n; i++)
        if (!strcmp(values->at[i].name, name))
            return values->at[i].tensor;
    return NULL;
}

/* The other names of parameters that the recipe ties take the trained values too, transposed where
 * they were; a file that has values of their own for them keeps those. */
static bool add_tied(Job *j, Values *values) {
    if (!j->o->recipe)
        return true;
    if (!job_load_recipe(j))
        return false;
    for (int i = 0; i < j->recipe->model.tie.n; i++) {
        const StrList *names = &j->recipe->model.tie.at[i];
        const Tensor *first = param_initial(j->g, names->at[0]),
                     *trained = value_of(values, names->at[0]);
        for (int k = 1; k < names->n && first && trained; k++) {
            const Tensor *other = param_initial(j->g, names->at[k]);
            ParamTie tie = other ? params_tied(first, other) : TIE_NONE;
            NamedTensor one = {names->at[k], trained};
            if (tie == TIE_TRANSPOSED)
                one.tensor = tensor_transposed(&j->arena, trained);
            if (tie != TIE_NONE && !value_of(values, names->at[k]))
                vec_push(values, one);
        }
    }
    return true;
}

int cmd_export(const Options *o) {
    Job j;
    Values values = {0};
    job_begin(&j, o);
    bool ok = job_load_model(&j) && job_check_output(&j) && read_values(&j, &values) &&
              add_tied(&j, &values) &&
              onnx_export_weights(j.file, o->out, values.at, values.n, &j.out_diag);
    if (ok && !o->quiet)
        printf("wrote %s with %d parameters of %s\n", o->out, values.n, o->params);
    vec_free(&values);
    return job_end(&j, EXIT_OK);
}
