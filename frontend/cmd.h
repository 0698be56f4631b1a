/* cmd.h: what the commands share. main.c and cmd_*.c are the program; they alone see every room.
 *
 * A command is a short walk through a Job: load the model, the recipe, the data; bind sizes;
 * compile; run; write. Each step returns false when it failed, having said why in the job's
 * diagnostics; job_end prints them and gives the exit code. */
#ifndef STGCC_FRONTEND_CMD_H
#define STGCC_FRONTEND_CMD_H

#include "frontend/frontend.h"
#include "passes/pass.h"
#include "runtime/runtime.h"

#ifndef STGCC_VERSION
#define STGCC_VERSION "0"
#endif

/* ---- the command line ---- */

typedef enum { ENGINE_CPU, ENGINE_REFERENCE } EngineKind;

typedef struct Options {
    const char *model, *recipe, *data, *out;
    StrList sets, dims, skip, freeze;
    const char *dump, *stop_after;
    const char *march;                            /* compile: NULL: x86-64-v3 and v4 */
    const char *target;                           /* cpu, x86-64, sm_80 …; NULL: not given */
    const char *params;                           /* export */
    const char *json_file, *csv, *html, *compare; /* bench */
    const char *emit;                             /* transform: NULL: gradients */
    EngineKind engine;
    int64_t threads, steps, rounds, mem_limit, max_nodes, max_heap; /* 0: not given */
    int64_t opset;                                                  /* 0: not given */
    int64_t device;                                                 /* number of the GPU */
    bool unfused, require_moe, allow_unraised, quiet, verbose, json, resume, sort;
    bool external_data, initial_values, cost, emulate;
    bool help, version, list_passes;
} Options;

typedef struct Command {
    const char *name, *arguments, *what;
    int (*run)(const Options *o);
    const char *more; /* a paragraph of --help */
} Command;
extern const Command commands[];
extern const int ncommands;

/* Reads the words after the command. False with diagnostics (subject "stgcc"). */
bool options_read(Options *o, const Command *c, int argc, char **argv, Diag *d);
void options_free(Options *o);
void options_help(const Command *c, FILE *to); /* one command, or the program where c is NULL */

int cmd_inspect(const Options *o);
int cmd_init(const Options *o);
int cmd_step(const Options *o);
int cmd_run(const Options *o);
int cmd_train(const Options *o);
int cmd_compile(const Options *o);
int cmd_export(const Options *o);
int cmd_transform(const Options *o);
int cmd_bench(const Options *o);

/* ---- a job ---- */

typedef struct Job {
    const Options *o;
    Diag model_diag, recipe_diag, set_diag, data_diag,
        out_diag; /* one subject each; reported in this order */
    Graph *g;     /* imported, dims bound by job_bind_* */
    OnnxFile *file;
    Recipe *recipe;
    NamedArrays data;
    Arena arena;
    bool raised; /* by job_raise */
} Job;

void job_begin(Job *j, const Options *o);
/* Prints what was said, frees everything; `code` unless an error was reported. */
int job_end(Job *j, ExitCode code);
/* Prints warnings so far (notes with -v), before long work. */
void job_say(Job *j);
ImportLimits job_limits(const Options *o);
bool job_load_model(Job *j);
bool job_load_recipe(Job *j); /* defaults, then -c, then --set and the flags that stand for keys */
bool job_load_recipe_text(Job *j,
                          const char *text); /* the same of YAML in memory, without a model */
bool job_load_data(Job *j);                  /* --data: .npz or .npy */
/* Sizes of the model's symbolic dims: --dim first, then the arrays' shapes; then shapes are
 * inferred. */
bool job_bind(Job *j);
bool job_bind_samples(Job *j); /* inspect, init: small sizes for what is still free */
/* The place for -o can be written and is none of the inputs. */
bool job_check_output(Job *j);
/* Messages of a failed check belong to the model unless the caller says otherwise. */
bool job_failed(const Job *j);

/* Canonicalises and raises the model itself, once for all the programs that clones of it become:
 * their job_compile runs the other passes only. Refuses what job_compile refuses. *stopped as
 * there. */
bool job_raise(Job *j, TrainWants wants, bool *stopped);
/* Runs the passes on g. *stopped when --stop-after ended the run. False after an error; refuses
 * regions that would compute something else than the model (unless --allow-unraised) and, under
 * --require-moe, models without an MoE layer. */
bool job_compile(Job *j, Graph *g, TrainWants wants, bool *stopped);
/* What --skip names, and raise_moe for a training graph that `transform` wrote: its experts are
 * taken apart, forward and backward, and are no layers to find. vec_free it. */
StrList job_skips(const Job *j);
/* Every input of the compiled graph is among the arrays, with its type and shape; labels lie in
 * range, floats are no NaN. */
bool job_check_inputs(Job *j, const Graph *g, bool refuse_nan);
/* The engines hold the trained weights from now on: gives up the model's, unless model.tie needs
 * them again. */
void job_drop_weights(Job *j);
/* Weights without NaN: a warning, or an error with EXIT_NUMERIC where `stop`. */
bool job_check_weights(Job *j, const Graph *g, bool stop);

/* ---- labels ---- */
typedef struct LabelRule {
    const char *name; /* the labels input; NULL: no integer labels */
    int64_t classes;  /* labels lie in 0..classes-1 */
    int64_t ignore;
    bool shifted_by_us; /* causal_lm: the first label of a row is never used */
} LabelRule;
LabelRule label_rule(const Graph *g, const Recipe *r);
/* Counts the labels that count; false with EXIT_DATA naming the sample of the first one out of
 * range. */
bool labels_check(const LabelRule *rule, const Tensor *labels, int64_t *counted, Diag *d);

/* ---- machines ---- */
const char *device_target(const Options *o); /* "sm_80" …; NULL: this CPU */
/* The GPU of --device, or with --emulate the emulator beside the program, which is said. */
bool device_choose(const Options *o, StgcCudaOptions *out, Diag *d);
StgcRt *device_open(const Options *o,
                    Diag *d); /* NULL: no memory for a CPU's, else with a diagnostic */
/* A text of the runtime about a GPU, as a diagnostic of several lines. */
void device_error(Diag *d, StgcStatus status, const char *text);

/* ---- engines: one interface over the reference evaluator and compiled code ---- */
typedef struct Engine Engine;
typedef struct EngineSlot {
    const char *name;
    ParamKind kind;
    Tensor tensor; /* a view; engines that share state pass it on lazily, so see engine_refresh */
    Engine *engine;
    const void *place; /* the engine's own */
} EngineSlot;
/* Makes the view current: needed before writing into a slot, and before reading after another
 * engine ran. */
void engine_refresh(EngineSlot *s);
/* Takes over nothing: g and d must outlive the engine. `share`: params and state are those of
 * another engine, by name. NULL with diagnostics. */
Engine *engine_new(Graph *g, const Options *o, Engine *share, Diag *d);
void engine_free(Engine *e);
void engine_input(Engine *e, const char *name, const Tensor *t); /* copies; the shape was checked */
bool engine_step(Engine *e, Diag *d);                            /* one step; updates applied */
/* An output of the last step as a tensor of type t (DT_NONE: its own); NULL if there is none of
 * that name. */
Tensor *engine_output(Engine *e, Arena *a, const char *name, DType t);
int engine_slots(Engine *e,
                 const EngineSlot **at); /* params, frozen, state; views made current, to read */
/* Whether all views that were asked for hold what they should: a GPU may have failed. Else a
 * diagnostic where engine_new put its own. */
bool engine_sound(Engine *e);
const char *engine_describe(Engine *e, Arena *a); /* for -v: machine, memory */
int64_t engine_memory(Engine *e);                 /* planned bytes; 0 if unknown */

#endif
