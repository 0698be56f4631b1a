/* cmd_train_data.c: batches for training: a .npz repeated every step, or samples of a token file.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "frontend/bind.h"
#include "frontend/cmd_train.h"

bool train_data_is_batch(const char *path) {
    unsigned char head[6] = {0};
    struct stat st;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        return true;
    FILE *f = fopen(path, "rb");
    size_t n = f ? fread(head, 1, sizeof head, f) : 0;
    if (f)
        fclose(f);
    size_t len = strlen(path);
    bool named = len > 4 && (!strcmp(path + len - 4, ".npz") || !strcmp(path + len - 4, ".npy"));
    return named || (n >= 4 && !memcmp(head, "PK\3\4", 4)) ||
           (n == 6 && !memcmp(head, "\x93NUMPY", 6));
}

static const Value *find_input(const Graph *g, const char *name) {
    for (int i = 0; i < g->inputs.n; i++)
        if (!strcmp(node_str(g->inputs.at[i]->def, AT_NAME, ""), name))
            return g->inputs.at[i];
    return NULL;
}

static Tensor *add_array(NamedArrays *a, const char *name, DType type, int rank,
                         const int64_t *dims) {
    Tensor *t = tensor_new(&a->arena, type, rank, dims);
    vec_push(&a->names, arena_strdup(&a->arena, name));
    vec_push(&a->tensors, t);
    return t;
}

/* The input the tokens are; its fixed sizes, if any, must be the recipe's. */
static bool token_input(Train *t) {
    Job *j = &t->job;
    const Recipe *r = j->recipe;
    Diag *d = &j->data_diag;
    const int64_t dims[2] = {r->train.batch, r->train.sequence};
    const Value *v = find_input(j->g, r->data.labels_from);
    if (!v) {
        const char *names[64];
        int n = 0;
        for (int i = 0; i < j->g->inputs.n && n < 64; i++)
            names[n++] = node_str(j->g->inputs.at[i]->def, AT_NAME, "");
        diag_error(&j->recipe_diag, EXIT_USAGE, "data.labels_from: the model has no input '%s'",
                   diag_safe(&j->recipe_diag, r->data.labels_from));
        const char *near = nearest_word(r->data.labels_from, names, n);
        diag_more(&j->recipe_diag, "name the input that takes the tokens%s%s",
                  near ? "; did you mean " : "", near ? diag_safe(&j->recipe_diag, near) : "");
        return false;
    }
    if (dtype_is_float(v->dtype) || v->rank != 2) {
        diag_error(d, EXIT_DATA, "tokens need an integer input of two dims; \"%s\" is %s",
                   diag_safe(d, r->data.labels_from), value_type_text(j->g, v, &j->arena));
        diag_more(d, "give a batch as .npz instead");
        return false;
    }
    if ((v->dims[0] >= 0 && v->dims[0] != dims[0]) || (v->dims[1] >= 0 && v->dims[1] != dims[1])) {
        diag_error(&j->recipe_diag, EXIT_USAGE,
                   "the model's input \"%s\" is %s; the recipe asks for batch %lld, sequence %lld",
                   diag_safe(&j->recipe_diag, r->data.labels_from),
                   value_type_text(j->g, v, &j->arena), (long long)dims[0], (long long)dims[1]);
        diag_more(&j->recipe_diag, "set train.batch and train.sequence to the model's sizes, or "
                                   "export it with dynamic axes");
        return false;
    }
    t->ids = add_array(&j->data, r->data.labels_from, v->dtype, 2, dims);
    t->token_labels = add_array(&j->data, r->loss.labels, DT_I64, 2, dims);
    for (int k = 0; k < 2; k++) {
        v = find_input(j->g, r->data.labels_from);
        if (v->dims[k] < 0)
            graph_bind(j->g, v->dims[k], dims[k]);
    }
    return true;
}

/* The other inputs hold constants of the recipe. */
static bool constant_inputs(Train *t) {
    Job *j = &t->job;
    const Recipe *r = j->recipe;
    bool ok = true;
    for (int i = 0; i < j->g->inputs.n; i++) {
        const Value *v = j->g->inputs.at[i];
        const char *name = node_str(v->def, AT_NAME, "");
        if (arrays_find(&j->data, name))
            continue;
        const NamedFloat *constant = NULL;
        for (int k = 0; k < r->data.inputs.n; k++)
            if (!strcmp(r->data.inputs.at[k].name, name))
                constant = &r->data.inputs.at[k];
        if (!constant || !value_known(v)) {
            diag_error(&j->recipe_diag, EXIT_USAGE,
                       "data.inputs: the model's input \"%s\" %s has no value",
                       diag_safe(&j->recipe_diag, name), value_type_text(j->g, v, &j->arena));
            diag_more(&j->recipe_diag, constant ? "give its sizes with --dim, or a batch as .npz"
                                                : "give a constant, such as data: {inputs: "
                                                  "{attention_mask: 1}}, or a batch as .npz");
            ok = false;
            continue;
        }
        Tensor *x = add_array(&j->data, name, v->dtype, v->rank, v->dims);
        for (int64_t k = 0, n = tensor_count(x); k < n; k++)
            tensor_set_f(x, k, constant->value);
    }
    return ok;
}

bool train_open_data(Train *t) {
    Job *j = &t->job;
    const Recipe *r = j->recipe;
    if (train_data_is_batch(j->o->data))
        return job_load_data(j);
    char error[512];
    t->tokens = stgc_tokens_open(j->o->data, r->data.dtype_bytes, r->train.sequence,
                                 r->loss.shifted, r->data.order == ORDER_SHUFFLE,
                                 (uint64_t)r->train.seed, error, sizeof error);
    if (!t->tokens) {
        diag_error(&j->data_diag, EXIT_DATA, "%s", diag_safe(&j->data_diag, error));
        return false;
    }
    if (!bind_flags(j->g, &j->o->dims, &j->set_diag))
        return false;
    return token_input(t) && constant_inputs(t);
}

int64_t train_tokens_per_batch(const Train *t) {
    const Job *j = &t->job;
    const Tensor *x = t->ids ? t->ids : arrays_find(&j->data, j->recipe->data.labels_from);
    if (!x)
        x = arrays_find(&j->data, j->recipe->loss.labels);
    return x ? tensor_count(x) : 0;
}

static bool fill_tokens(Train *t) {
    Job *j = &t->job;
    int64_t rows = t->ids->dims[0], s = t->ids->dims[1];
    int64_t *row = xcalloc((size_t)(2 * s), sizeof *row);
    bool ok = true;
    for (int64_t b = 0; ok && b < rows; b++) {
        char error[512];
        StgcStatus status = stgc_tokens_sample(t->tokens, t->samples + b, t->labels.classes, row,
                                               row + s, error, sizeof error);
        ok = status == STGC_OK;
        if (!ok) {
            diag_error(&j->data_diag, (ExitCode)status, "%s", diag_safe(&j->data_diag, error));
            diag_more(
                &j->data_diag,
                status == STGC_ERR_DATA
                    ? "step %lld, sample %lld of its batch; check data.dtype and the tokenizer"
                    : "step %lld, sample %lld of its batch",
                (long long)t->step + 1, (long long)b);
        }
        for (int64_t i = 0; ok && i < s; i++) {
            tensor_set_i(t->ids, b * s + i, row[i]);
            tensor_set_i(t->token_labels, b * s + i, row[s + i]);
        }
    }
    free(row);
    t->samples += rows;
    return ok;
}

bool train_next_batch(Train *t, int64_t *counted) {
    Job *j = &t->job;
    if (t->tokens && !fill_tokens(t))
        return false;
    const Tensor *labels = t->labels.name ? arrays_find(&j->data, t->labels.name) : NULL;
    *counted = labels ? 0 : 1;
    if (labels && !labels_check(&t->labels, labels, counted, &j->data_diag))
        return false;
    for (int i = 0; i < j->data.names.n; i++)
        engine_input(t->micro, j->data.names.at[i], j->data.tensors.at[i]);
    return true;
}
