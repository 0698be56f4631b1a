/* cmd_export.c: trained parameters back into the model they came from. */
#include <stdlib.h>
#include <string.h>

#include "frontend/cmd.h"
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

int cmd_export(const Options *o) {
    Job j;
    Values values = {0};
    job_begin(&j, o);
    bool ok = job_load_model(&j) && job_check_output(&j) && read_values(&j, &values) &&
              onnx_export_weights(j.file, o->out, values.at, values.n, &j.out_diag);
    if (ok && !o->quiet)
        printf("wrote %s with %d parameters of %s\n", o->out, values.n, o->params);
    vec_free(&values);
    return job_end(&j, EXIT_OK);
}
