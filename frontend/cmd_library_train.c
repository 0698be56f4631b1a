/* cmd_library_train.c: `stgcc train STEP.so`: the loop of cmd_train.c around a compiled library.
 * Model, recipe and code are the library's; metrics and checkpoints are those that training the
 * model itself writes, and either takes up the other's. Goes through the interface that every
 * caller has (runtime/stgc.h). The trained parameters end in RUN/model.safetensors, since the model
 * is not at hand. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "frontend/cmd_compile.h"
#include "frontend/cmd_train.h"
#include "runtime/handle.h"

typedef struct LibraryTrain {
    Job job;
    Stgc *h;
    StgcTokens *tokens; /* NULL: a batch, repeated */
    Tensor *ids, *labels;
    int64_t samples, batch_tokens;
    StgcMetrics *metrics;
} LibraryTrain;

static bool out_fault(LibraryTrain *t, StgcStatus status, const char *error) {
    diag_error(&t->job.out_diag, (ExitCode)status, "%s", diag_safe(&t->job.out_diag, error));
    return false;
}

/* ---- data ---- */

static Tensor *add_array(NamedArrays *a, const StgcTensor *like) {
    Tensor *x = tensor_new(&a->arena, dtype_from_onnx(like->type), like->rank, like->dims);
    vec_push(&a->names, arena_strdup(&a->arena, like->name));
    vec_push(&a->tensors, x);
    return x;
}

/* An array for every input of the library: tokens, labels, constants of the recipe. */
static bool token_arrays(LibraryTrain *t) {
    Job *j = &t->job;
    const Recipe *r = j->recipe;
    bool ok = true;
    for (int32_t i = 0; i < stgc_count(t->h); i++) {
        StgcTensor in = {.size = sizeof in};
        if (stgc_tensor_at(t->h, i, &in) != STGC_OK)
            return library_fault(&j->model_diag, t->h);
        if (in.kind != STGC_INPUT || !strcmp(in.name, "hyper"))
            continue;
        Tensor *x = add_array(&j->data, &in);
        const NamedFloat *constant = NULL;
        for (int k = 0; k < r->data.inputs.n; k++)
            if (!strcmp(r->data.inputs.at[k].name, in.name))
                constant = &r->data.inputs.at[k];
        if (!strcmp(in.name, r->data.labels_from))
            t->ids = x;
        else if (!strcmp(in.name, r->loss.labels))
            t->labels = x;
        else if (constant)
            for (int64_t k = 0, n = tensor_count(x); k < n; k++)
                tensor_set_f(x, k, constant->value);
        else {
            diag_error(&j->recipe_diag, EXIT_USAGE,
                       "data.inputs: the library's input \"%s\" has no value",
                       diag_safe(&j->recipe_diag, in.name));
            diag_more(&j->recipe_diag, "compile with a constant for it, such as data: {inputs: "
                                       "{attention_mask: 1}}, or give a batch as .npz");
            ok = false;
        }
    }
    if (ok && (!t->ids || t->ids->rank != 2 || dtype_is_float(t->ids->dtype) || !t->labels ||
               tensor_count(t->labels) != tensor_count(t->ids))) {
        diag_error(&j->data_diag, EXIT_DATA,
                   "tokens need an integer input \"%s\" of two dims and labels like it",
                   diag_safe(&j->data_diag, r->data.labels_from));
        diag_more(&j->data_diag, "give a batch as .npz instead");
        ok = false;
    }
    return ok;
}

static bool open_data(LibraryTrain *t) {
    Job *j = &t->job;
    const Recipe *r = j->recipe;
    if (train_data_is_batch(j->o->data)) {
        if (!npz_read(j->o->data, &j->data, &j->data_diag))
            return false;
        const Tensor *x = arrays_find(&j->data, r->data.labels_from);
        t->batch_tokens = x ? tensor_count(x) : 0;
        return library_inputs(j, t->h);
    }
    if (!token_arrays(t))
        return false;
    char error[512];
    t->batch_tokens = tensor_count(t->ids);
    t->tokens = stgc_tokens_open(j->o->data, r->data.dtype_bytes, t->ids->dims[1], r->loss.shifted,
                                 r->data.order == ORDER_SHUFFLE, (uint64_t)r->train.seed, error,
                                 sizeof error);
    if (!t->tokens)
        diag_error(&j->data_diag, EXIT_DATA, "%s", diag_safe(&j->data_diag, error));
    return t->tokens != NULL;
}

static bool next_batch(LibraryTrain *t) {
    if (!t->tokens)
        return true;
    Job *j = &t->job;
    int64_t rows = t->ids->dims[0], s = t->ids->dims[1],
            *row = xcalloc((size_t)(2 * s), sizeof *row);
    bool ok = true;
    for (int64_t b = 0; ok && b < rows; b++) {
        char error[512];
        StgcStatus status =
            stgc_tokens_sample(t->tokens, t->samples + b, 0, row, row + s, error, sizeof error);
        ok = status == STGC_OK;
        if (!ok)
            diag_error(&j->data_diag, (ExitCode)status, "%s", diag_safe(&j->data_diag, error));
        for (int64_t i = 0; ok && i < s; i++) {
            tensor_set_i(t->ids, b * s + i, row[i]);
            tensor_set_i(t->labels, b * s + i, row[s + i]);
        }
    }
    free(row);
    t->samples += rows;
    return ok && library_inputs(j, t->h);
}

/* ---- steps ---- */

/* The outputs of a program, as they stand. */
static bool add_outputs(LibraryTrain *t, StgcProgram p, SumList *sums, Arena *a, double share) {
    const StgcStep *step = t->h->variant->programs[p];
    for (uint32_t i = 0; i < step->nslots; i++) {
        const StgcSlot *s = &step->slots[i];
        if (s->kind != STGC_SLOT_OUTPUT)
            continue;
        Arena scratch = {0};
        Tensor *x = tensor_new(&scratch, dtype_from_onnx(s->type), s->rank, s->dims);
        bool ok = stgc_get(t->h, s->name, x->data, s->bytes) == STGC_OK;
        if (ok)
            sums_add(sums, a, s->name, x, share);
        arena_free(&scratch);
        if (!ok)
            return library_fault(&t->job.model_diag, t->h);
    }
    return true;
}

/* One step of the optimizer, over all its micro-batches. */
static bool one_step(LibraryTrain *t, SumList *sums, Arena *a) {
    int64_t accumulate = t->job.recipe->train.accumulate;
    bool micro = accumulate > 1;
    for (int64_t m = 0; m < accumulate; m++) {
        if (!next_batch(t))
            return false;
        StgcStatus status = stgc_step(t->h);
        if (status != STGC_OK)
            return library_fault(status == STGC_ERR_DATA ? &t->job.data_diag : &t->job.model_diag,
                                 t->h);
        if (!add_outputs(t, micro ? STGC_PROGRAM_MICRO : STGC_PROGRAM_TRAIN, sums, a,
                         1 / (double)accumulate))
            return false;
    }
    return !micro || add_outputs(t, STGC_PROGRAM_APPLY, sums, a, 1);
}

static bool save(LibraryTrain *t) {
    return stgc_save(t->h, t->job.o->out, t->samples, 2) == STGC_OK ||
           library_fault(&t->job.out_diag, t->h);
}

static bool loop(LibraryTrain *t) {
    const Recipe *r = t->job.recipe;
    const Options *o = t->job.o;
    bool show = !o->quiet && (o->verbose || isatty(STDOUT_FILENO)), ok = true;
    int printed = 0;
    int64_t step = stgc_steps(t->h), saved = step;
    while (ok && step < r->schedule.steps && !train_interrupted()) {
        Arena a = {0};
        SumList sums = {0};
        StgcTableRow row;
        double rate = stgc_learning_rate(t->h), start = train_now();
        ok = one_step(t, &sums, &a);
        StepReport report = {.recipe = r,
                             .step = step = stgc_steps(t->h),
                             .tokens = t->batch_tokens * r->train.accumulate,
                             .seconds = t->job.o->emulate ? 0 : train_now() - start,
                             .rate = rate};
        if (ok && (step == 1 || step % r->train.log_every == 0 || step == r->schedule.steps ||
                   train_interrupted())) {
            ok = train_log(t->metrics, &report, &sums, &row, &t->job.out_diag);
            if (show)
                stgc_table_row(stdout, &printed, &row);
        }
        if (ok && r->train.checkpoint_every && step % r->train.checkpoint_every == 0) {
            ok = save(t);
            saved = step;
        }
        vec_free(&sums);
        arena_free(&a);
    }
    return ok && ((saved == step && stgc_checkpoint_last_step(o->out) == step) || save(t));
}

/* ---- the whole ---- */

/* RUN/ can be written, and holds a training only if it is to go on. */
static bool open_run(LibraryTrain *t) {
    Job *j = &t->job;
    char error[512];
    int lock = stgc_run_lock(j->o->out, error, sizeof error);
    if (lock < 0)
        return out_fault(t, STGC_ERR_IO, error);
    close(lock); /* every stgc_save takes it */
    int64_t last = stgc_checkpoint_last_step(j->o->out);
    if (last >= 0 && !j->o->resume) {
        diag_error(&j->out_diag, EXIT_USAGE, "holds a training that reached step %lld",
                   (long long)last);
        diag_more(&j->out_diag, "go on with --resume, or choose another folder with -o");
        return false;
    }
    if (j->o->resume && last < 0)
        diag_note(&j->out_diag, "no checkpoint there yet: from the start");
    if (j->o->resume && last >= 0 && stgc_resume(t->h, j->o->out, &t->samples) != STGC_OK)
        return library_fault(&j->out_diag, t->h);
    int64_t step = stgc_steps(t->h);
    t->metrics = stgc_metrics_open(j->o->out, step > 0 ? step : -1, error, sizeof error);
    return t->metrics || out_fault(t, STGC_ERR_IO, error);
}

static bool execute(LibraryTrain *t) {
    Job *j = &t->job;
    StgcInfo info = {.size = sizeof info};
    if (!open_run(t) || stgc_info(t->h, &info) != STGC_OK)
        return false;
    int64_t step = stgc_steps(t->h);
    job_say(j);
    if (!j->o->quiet && step < j->recipe->schedule.steps)
        printf("training %s: steps %lld to %lld, %lld tokens a step, %s -> %s\n", j->o->model,
               (long long)step + 1, (long long)j->recipe->schedule.steps,
               (long long)(t->batch_tokens * j->recipe->train.accumulate), info.cpu, j->o->out);
    else if (!j->o->quiet)
        printf("nothing to do: the checkpoint is of step %lld\n", (long long)step);
    fflush(stdout);
    train_watch_signals();
    const char *path = arena_printf(&j->arena, "%s/model.safetensors", j->o->out);
    if (!loop(t))
        return false;
    if (stgc_store(t->h, path) != STGC_OK)
        return library_fault(&j->out_diag, t->h);
    if (!j->o->quiet && train_interrupted())
        printf("interrupted: step %lld is finished and saved; go on with --resume\n",
               (long long)stgc_steps(t->h));
    else if (!j->o->quiet)
        printf("done: step %lld, trained parameters in %s\n"
               "stgcc export MODEL.onnx --params %s -o OUT.onnx puts them into the model\n",
               (long long)stgc_steps(t->h), path, path);
    return true;
}

int library_train(const Options *o) {
    LibraryTrain t = {0};
    job_begin(&t.job, o);
    t.h = library_open(&t.job);
    bool ok = t.h != NULL;
    if (ok && library_recipe(&t.job, t.h) && open_data(&t))
        execute(&t);
    stgc_metrics_close(t.metrics);
    stgc_tokens_close(t.tokens);
    stgc_close(t.h);
    return job_end(&t.job, EXIT_OK);
}
