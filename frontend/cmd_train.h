/* cmd_train.h: the state of a training, shared by cmd_train.c (the loop), cmd_train_data.c
 * (batches), cmd_train_save.c (checkpoints, the trained model); and cmd_train_log.c (metrics), which
 * cmd_library_train.c uses too. */
#ifndef STGCC_FRONTEND_CMD_TRAIN_H
#define STGCC_FRONTEND_CMD_TRAIN_H

#include "frontend/cmd.h"
#include "runtime/checkpoint.h"
#include "runtime/data.h"
#include "runtime/metrics.h"

typedef struct Train {
    Job job;
    Graph *step_graph, *apply_graph; /* apply: only with micro-batches, the optimizer alone */
    Engine *micro, *apply;
    LabelRule labels;
    StgcTokens *tokens; /* NULL: a batch, repeated */
    Tensor *ids, *token_labels;
    int64_t step, samples; /* done, taken */
    uint64_t model_hash;
    char *recipe_text; /* canonical */
    int lock;
    StgcMetrics *metrics;
    struct TrainStop { /* a loss that was no number ended it */
        const char *loss, *output; /* NULL: it did not; the first metric that is NaN, or NULL */
        bool nan;
    } stop;
} Train;

/* ---- cmd_train_log.c: what a step reports ---- */

/* Sums of an output over the micro-batches of a step, by element. */
typedef struct Sums {
    const char *name;
    double *at;
    int64_t n;
} Sums;
typedef VEC(Sums) SumList;
/* Adds share * x, or x itself where the output is a count. The name must last; the numbers are in a. */
void sums_add(SumList *sums, Arena *a, const char *name, const Tensor *x, double share);
double sums_of(const SumList *sums, const char *name); /* its first element; NaN: there is none */

/* One row of metrics.jsonl and of the table. sums empty: every label was ignored, losses are 0. */
typedef struct StepReport {
    const Recipe *recipe;
    int64_t step, tokens; /* this step's number; tokens of all its micro-batches */
    double seconds, rate; /* rate: of learning, in this step */
} StepReport;
bool train_log(StgcMetrics *metrics, const StepReport *r, const SumList *sums, StgcTableRow *row,
               Diag *out);

/* SIGINT, SIGTERM and SIGHUP end the training after the step that runs. */
void train_watch_signals(void);
bool train_interrupted(void);
double train_now(void); /* seconds of a clock that never jumps */

/* ---- cmd_train_data.c ---- */
bool train_data_is_batch(const char *path); /* a folder, .npz or .npy; else tokens */
/* Opens --data as a batch or a token file; for tokens, arrays of the recipe's batch and sequence
 * stand in job.data, so that binding sees their shapes. */
bool train_open_data(Train *t);
/* Fills the arrays with the samples from t->samples on (tokens), or leaves the batch; checks
 * labels; gives them to the engine. *counted: labels that count. */
bool train_next_batch(Train *t, int64_t *counted);
int64_t train_tokens_per_batch(const Train *t);

/* ---- cmd_train_save.c ---- */
bool train_lock_run(
    Train *t); /* RUN/ exists, is ours alone, and holds a training only if --resume */
bool train_resume(
    Train *t); /* the newest sound checkpoint into the engines; none: from the start */
bool train_checkpoint(Train *t);
bool train_write_model(Train *t); /* RUN/model.onnx */
bool train_room_on_disk(Train *t);

#endif
