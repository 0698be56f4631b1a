/* cmd_train.c: the training loop: batches in, steps, metrics and checkpoints out.
 *
 * One compiled step does forward, backward, STGC and the optimizer. With micro-batches
 * (train.accumulate > 1) there are two: one adds gradients up, the other applies them; both share
 * parameters and state. The state of a training is the parameters, the optimizer's state, the step
 * and the samples taken: a checkpoint holds them all. */
#include "frontend/cmd_train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "frontend/cmd_compile.h"
#include "frontend/cmd_nan.h"
#include "runtime/schedule.h"

/* ---- preparing ---- */

static bool compile(Train *t, bool *stopped) {
    Job *j = &t->job;
    bool micro = j->recipe->train.accumulate > 1;
    TrainWants step = {.train = true, .metrics = true, .update = !micro, .accumulate = micro};
    TrainWants apply = {.train = true, .metrics = true, .update = true, .apply_only = true};
    bool ok = job_raise(j, step, stopped);
    if (!ok || *stopped)
        return ok;
    t->step_graph = j->g;
    if (micro)
        t->apply_graph = graph_clone(j->g, NULL);
    ok = job_compile(j, t->step_graph, step, stopped);
    return ok && (*stopped || !micro || job_compile(j, t->apply_graph, apply, stopped));
}

static bool make_engines(Train *t) {
    Job *j = &t->job;
    t->micro = engine_new(t->step_graph, j->o, NULL, &j->model_diag);
    if (t->micro && t->apply_graph)
        t->apply = engine_new(t->apply_graph, j->o, t->micro, &j->model_diag);
    if (!t->micro || (t->apply_graph && !t->apply))
        return false;
    job_drop_weights(j);
    return true;
}

/* ---- one step ---- */

static Tensor hyper_of(const Train *t, float values[8]) {
    StgcTraining numbers = identity_training(t->job.recipe);
    stgc_schedule_hyper(&numbers, t->step + 1, stgc_schedule_rate(&numbers, t->step + 1), values);
    return (Tensor){.dtype = DT_F32, .rank = 1, .dims = {8}, .data = values};
}

static void set_hyper(Train *t, Engine *e) {
    float values[8];
    Tensor hyper = hyper_of(t, values);
    engine_input(e, "hyper", &hyper);
}

static void add_outputs(const Graph *g, Engine *e, SumList *sums, Arena *a, double share) {
    for (int i = 0; i < g->outputs.n; i++) {
        Arena scratch = {0};
        const char *name = g->outputs.at[i].name;
        sums_add(sums, a, name, engine_output(e, &scratch, name, DT_F64), share);
        arena_free(&scratch);
    }
}

/* The first output, in the graph's order, that holds a NaN: losses come last, so it is nearer to
 * the cause than they are. */
static const char *first_nan_output(const SumList *sums) {
    for (int i = 0; i < sums->n; i++)
        for (int64_t k = 0; k < sums->at[i].n; k++)
            if (isnan(sums->at[i].at[k]) && strncmp(sums->at[i].name, "loss/", 5) != 0)
                return sums->at[i].name;
    return NULL;
}

/* A loss that is no number ends the training. */
static bool check_losses(Train *t, const SumList *sums) {
    for (int i = 0; i < sums->n; i++) {
        const Sums *s = &sums->at[i];
        if (strncmp(s->name, "loss/", 5) || !s->n || isfinite(s->at[0]))
            continue;
        t->stop = (struct TrainStop){s->name, first_nan_output(sums), isnan(s->at[0])};
        return false;
    }
    return true;
}

/* One optimizer step over train.accumulate batches. *trained: false when every label was ignored
 * and nothing was done. */
static bool one_step(Train *t, SumList *sums, Arena *a, bool *trained) {
    const Recipe *r = t->job.recipe;
    int64_t all = 0;
    for (int64_t m = 0; m < r->train.accumulate; m++) {
        int64_t counted;
        if (!train_next_batch(t, &counted))
            return false;
        all += counted;
        if (!counted)
            continue; /* an objective of 0 and no gradient */
        set_hyper(t, t->micro);
        if (!engine_step(t->micro, &t->job.data_diag))
            return false;
        add_outputs(t->step_graph, t->micro, sums, a, 1 / (double)r->train.accumulate);
        if (!check_losses(t, sums))
            return false;
    }
    *trained = all > 0;
    if (all && t->apply) {
        set_hyper(t, t->apply);
        if (!engine_step(t->apply, &t->job.model_diag))
            return false;
        add_outputs(t->apply_graph, t->apply, sums, a, 1);
    }
    return true;
}

/* ---- the loop ---- */

static bool loop(Train *t) {
    const Recipe *r = t->job.recipe;
    const Options *o = t->job.o;
    bool show = !o->quiet && (o->verbose || isatty(STDOUT_FILENO)), ok = true, told = false;
    int printed = 0;
    int64_t saved = t->step;
    while (ok && t->step < r->schedule.steps && !train_interrupted()) {
        Arena a = {0};
        SumList sums = {0};
        StgcTableRow row;
        bool trained = true;
        double start = train_now();
        ok = one_step(t, &sums, &a, &trained);
        if (ok) {
            double seconds = t->job.o->emulate ? 0 : train_now() - start; /* no GPU's */
            t->step++;
            if (!trained && !told) {
                diag_warning(&t->job.data_diag,
                             "step %lld: every label is ignored: loss 0, nothing is updated",
                             (long long)t->step);
                told = true;
                job_say(&t->job);
            }
            if (t->step == 1 || t->step % r->train.log_every == 0 || t->step == r->schedule.steps ||
                train_interrupted()) {
                StgcTraining numbers = identity_training(r);
                StepReport report = {.recipe = r,
                                     .step = t->step,
                                     .tokens = train_tokens_per_batch(t) * r->train.accumulate,
                                     .seconds = seconds,
                                     .rate = stgc_schedule_rate(&numbers, t->step)};
                ok = train_log(t->metrics, &report, &sums, &row, &t->job.out_diag);
                if (show)
                    stgc_table_row(stdout, &printed, &row);
            }
        }
        if (ok && r->train.checkpoint_every && t->step % r->train.checkpoint_every == 0) {
            ok = train_checkpoint(t);
            saved = t->step;
        }
        vec_free(&sums);
        arena_free(&a);
    }
    if (ok && (saved != t->step || stgc_checkpoint_last_step(o->out) != t->step))
        ok = train_checkpoint(t);
    return ok;
}

static bool open_metrics(Train *t) {
    char error[512];
    t->metrics = stgc_metrics_open(t->job.o->out, t->step > 0 ? t->step : -1, error, sizeof error);
    if (!t->metrics)
        diag_error(&t->job.out_diag, EXIT_IO, "%s", diag_safe(&t->job.out_diag, error));
    return t->metrics != NULL;
}

static void say_start(Train *t) {
    const Recipe *r = t->job.recipe;
    Job *j = &t->job;
    int64_t memory = engine_memory(t->micro);
    if (j->o->quiet)
        return;
    if (t->step >= r->schedule.steps) {
        printf("nothing to do: the checkpoint is of step %lld\n", (long long)t->step);
        return;
    }
    printf("training %s: steps %lld to %lld, %lld tokens a step", j->o->model,
           (long long)t->step + 1, (long long)r->schedule.steps,
           (long long)(train_tokens_per_batch(t) * r->train.accumulate));
    if (memory)
        printf(", %.*f MiB planned", memory < 1 << 20 ? 3 : 1, (double)memory / 1048576);
    printf(" -> %s\n", j->o->out);
    fflush(stdout);
}

static bool execute(Train *t) {
    Job *j = &t->job;
    bool ok = train_lock_run(t) && make_engines(t) && train_room_on_disk(t) &&
              (!j->o->resume || train_resume(t)) && open_metrics(t);
    if (!ok)
        return false;
    job_say(j);
    say_start(t);
    train_watch_signals();
    ok = loop(t) && train_write_model(t);
    if (ok && !j->o->quiet) {
        if (train_interrupted())
            printf("interrupted: step %lld is finished and saved; go on with --resume\n",
                   (long long)t->step);
        else
            printf("done: step %lld, trained model in %s/model.onnx\n", (long long)t->step,
                   j->o->out);
        if (j->o->verbose)
            printf("%s\n", engine_describe(t->micro, &j->arena));
    }
    return ok;
}

static void train_free(Train *t) {
    engine_free(t->apply);
    engine_free(t->micro);
    if (t->apply_graph)
        graph_free(t->apply_graph);
    stgc_metrics_close(t->metrics);
    stgc_tokens_close(t->tokens);
    free(t->recipe_text);
    if (t->lock >= 0)
        close(t->lock);
}

/* The labels of a batch that every step repeats, before anything is made. */
static bool check_batch(Train *t) {
    const Tensor *labels =
        t->tokens || !t->labels.name ? NULL : arrays_find(&t->job.data, t->labels.name);
    int64_t counted;
    return !labels || labels_check(&t->labels, labels, &counted, &t->job.data_diag);
}

/* ---- why a loss is no number ---- */

enum { MOST_STEPS = 200 }; /* that are worth making again to find out */

static bool prepare(Train *t, bool *stopped) {
    return job_load_recipe(&t->job) && train_open_data(t) && job_bind(&t->job) &&
           compile(t, stopped);
}

/* The batches of the next step, looked into one after the other. */
static NanOrigin look_into_step(Train *t, const char *param, Arena *a) {
    NanOrigin found = {0};
    float values[8];
    Tensor hyper = hyper_of(t, values);
    NanStep s = {t->step_graph, t->micro, &t->job.data, &hyper, t->job.o->mem_limit};
    for (int64_t m = 0; m < t->job.recipe->train.accumulate && !found.text; m++) {
        int64_t counted;
        if (!train_next_batch(t, &counted))
            break;
        found = nan_origin(&s, param, a);
        if (found.text)
            break;
        set_hyper(t, t->micro);
        engine_step(t->micro, &t->job.data_diag);
    }
    return found;
}

/* Trains again up to the step, which gives the same bits, from the newest checkpoint or the start:
 * the state that the step began with is gone. */
static NanOrigin replay(const Options *o, int64_t step, const char *param, Arena *a) {
    Options quiet = *o;
    Train t = {.lock = -1};
    NanOrigin found = {0};
    bool stopped = false;
    quiet.quiet = true;
    quiet.dump = quiet.stop_after = NULL;
    job_begin(&t.job, &quiet);
    bool ok = job_load_model(&t.job);
    if (ok)
        t.model_hash = identity_model(t.job.g);
    ok = ok && prepare(&t, &stopped) && !stopped;
    if (ok) {
        t.recipe_text = identity_recipe(t.job.recipe);
        t.labels = label_rule(t.step_graph, t.job.recipe);
    }
    ok = ok && make_engines(&t) && (stgc_checkpoint_last_step(o->out) < 0 || train_resume(&t)) &&
         step - t.step <= MOST_STEPS;
    while (ok && t.step + 1 < step) {
        Arena scratch = {0};
        SumList sums = {0};
        bool trained;
        ok = one_step(&t, &sums, &scratch, &trained);
        t.step++;
        vec_free(&sums);
        arena_free(&scratch);
    }
    if (ok && t.step + 1 == step)
        found = look_into_step(&t, param, a);
    Diag *said[] = {&t.job.model_diag, &t.job.recipe_diag, &t.job.set_diag, &t.job.data_diag,
                    &t.job.out_diag};
    for (int i = 0; i < COUNT_OF(said); i++)
        said[i]->messages.n = said[i]->errors = 0;
    train_free(&t);
    job_end(&t.job, EXIT_OK);
    return found;
}

/* Says which loss ended the training and where that began. */
static void report_stop(Train *t) {
    Diag *d = &t->job.model_diag;
    int64_t step = t->step + 1;
    engine_free(t->apply); /* two trainings need not fit into memory */
    engine_free(t->micro);
    t->apply = t->micro = NULL;
    diag_error(d, EXIT_NUMERIC, "step %lld: %s is %s", (long long)step, t->stop.loss,
               t->stop.nan ? "NaN" : "infinite");
    NanOrigin first = replay(t->job.o, step, NULL, &d->arena), before = {0};
    if (first.param && !t->apply_graph)
        before = replay(t->job.o, step - 1, first.param, &d->arena);
    if (first.text)
        diag_more(d, "the first to become so: %s", first.text);
    if (before.text)
        diag_more(d, "since its update in step %lld: %s", (long long)step - 1, before.text);
    if (!first.text && t->stop.output)
        diag_more(d, "the first metric to become so: %s", t->stop.output);
    diag_more(d, "checkpoints before it are kept; try a smaller optimizer.lr, or "
                 "optimizer.clip_norm: 1.0");
}

int cmd_train(const Options *o) {
    if (is_library(o->model))
        return library_train(o);
    Train t = {.lock = -1};
    bool stopped = false;
    job_begin(&t.job, o);
    bool ok = job_load_model(&t.job);
    if (ok)
        t.model_hash = identity_model(t.job.g);
    ok = ok && prepare(&t, &stopped);
    if (ok && !stopped) {
        t.recipe_text = identity_recipe(t.job.recipe);
        t.labels = label_rule(t.step_graph, t.job.recipe);
        ok = job_check_weights(&t.job, t.step_graph, true) &&
             job_check_inputs(&t.job, t.step_graph, true) && check_batch(&t) && execute(&t);
    }
    if (t.stop.loss)
        report_stop(&t);
    train_free(&t);
    return job_end(&t.job, EXIT_OK);
}
