/* stgc.h: trains with a compiled step (STEP.so, written by `stgcc compile`) from any language.
 *
 *     Stgc *h = stgc_open("STEP.so", NULL);          // with STEP.safetensors beside it
 *     if (stgc_status(h) != STGC_OK) { puts(stgc_error(h)); ... }
 *     for (;;) {
 *         stgc_set(h, "input_ids", STGC_I64, 2, (int64_t[]){8, 128}, ids);
 *         stgc_set(h, "labels", STGC_I64, 2, (int64_t[]){8, 128}, labels);
 *         if (stgc_step(h) != STGC_OK) break;        // forward, backward, STGC, optimizer
 *         printf("%g\n", stgc_number(h, "loss/total"));
 *     }
 *     stgc_store(h, "trained.safetensors");          // then: stgcc export MODEL.onnx --params ...
 *     stgc_close(h);
 *
 * Handles. An Stgc is one training: parameters, optimizer state, inputs and outputs of one step,
 *   threads. Everything is reached through it; the library has no global state. One handle may be
 *   used by one thread at a time; different handles by different threads at once, also of the same
 *   STEP.so (its code is shared, nothing else is). The results of a handle are the same bytes
 *   whatever other handles do and however many threads it has.
 *
 * Tensors are row-major and little-endian, without padding, of at most 8 axes, known by name:
 *   inputs      as in the model: input_ids, labels (the recipe's name), ...
 *   parameters  by their names in the model
 *   state       the optimizer's: NAME.m, NAME.v
 *   outputs     loss/total loss/task loss/balance loss/router_z loss/cel   scalars
 *               grad_norm                                   |gradient| before clipping
 *               moe/I/...                                   STGC's metrics of MoE layer I
 *               after stgc_gradients also: out/NAME the model's outputs, grad/NAME the gradients,
 *               moe/I/cos dot norm logits conflict [T,E], moe/I/gnorm tokens degenerate [E]
 *   STEP.h, written beside STEP.so, lists them all with types and shapes. T = tokens of a batch,
 *   E = experts. Losses are means in nats; the objective is loss/total.
 *
 * Fewer rows. A step compiled for B rows takes a batch of fewer (the last one of a data set) where
 *   that computes exactly what a step of that size would, up to rounding: stgc_set every input with
 *   the same, smaller first axis. The rest is filled up with rows that count for nothing (labels
 *   ignored, stgc.token_mask 0); their rows of the outputs mean nothing. It needs labels that can be
 *   ignored, a model whose rows never meet (no capacity or statistic over the batch), and, where MoE
 *   layers have losses or STGC, a stgc.token_mask; else stgc_set refuses and StgcInfo.fewer_rows
 *   says why. More rows are never taken.
 *
 * Memory. Pointers the library returns belong to the handle and are not freed by the caller; those
 *   to inputs, parameters and state stay the same until stgc_close; those to outputs are valid
 *   until the next stgc_step, stgc_gradients or stgc_close. Pointers the caller passes are only
 *   read during the call. To avoid copies, write inputs straight to the address stgc_tensor gives,
 *   and read outputs there.
 *
 * GPUs. A library compiled for one (--target=sm_80) runs there: NVIDIA's driver and cuBLAS are looked
 *   for when it is opened, never before. Parameters, state and outputs then live in the GPU's memory
 *   and come to the host when they are asked for. The addresses stgc_tensor gives are those of the
 *   host's copy: what is read there is as of that call, so ask again after a step; parameters and
 *   state written there count if stgc_tensor was called since the last step; inputs always do. After
 *   a GPU failed (STGC_ERR_IO) its values are lost: close, open, and stgc_resume.
 *
 * Errors. Functions that can fail return an StgcStatus, whose values are the exit codes of stgcc;
 *   stgc_error(h) is then a text that names the user's thing first ("input_ids: error: ..."). It is
 *   valid until the next call with the handle. No function prints, exits or raises a signal.
 *   After an error the handle can be used on, unless it came from stgc_open. A call that failed
 *   changed nothing, except: STGC_ERR_NUMERIC of stgc_step (the update is done, the values are bad)
 *   and a faulty file given to stgc_load (parameters before the fault are set). */
#ifndef STGC_H
#define STGC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define STGC_API __attribute__((visibility("default")))
#else
#define STGC_API
#endif

#define STGC_API_VERSION 1

typedef enum {
    STGC_OK = 0,
    STGC_ERR_USAGE = 2,    /* a call that makes no sense: unknown name, wrong type or shape */
    STGC_ERR_MODEL = 3,    /* the library is none, or of another version */
    STGC_ERR_DATA = 4,     /* batch, parameters or checkpoint */
    STGC_ERR_RESOURCE = 5, /* no memory, a limit, a CPU it was not compiled for */
    STGC_ERR_IO = 6,       /* files, and what a GPU cannot do or does wrong */
    STGC_ERR_NUMERIC = 7,  /* a loss became NaN or infinite */
} StgcStatus;

typedef enum { /* the numbers of ONNX */
    STGC_F32 = 1,
    STGC_U8 = 2,
    STGC_I8 = 3,
    STGC_U16 = 4,
    STGC_I16 = 5,
    STGC_I32 = 6,
    STGC_I64 = 7,
    STGC_BOOL = 9, /* one byte, 0 or 1 */
    STGC_F16 = 10,
    STGC_F64 = 11,
    STGC_U32 = 12,
    STGC_U64 = 13,
    STGC_BF16 = 16,
} StgcType;

typedef enum { STGC_INPUT, STGC_PARAMETER, STGC_FROZEN, STGC_STATE, STGC_OUTPUT } StgcKind;

typedef struct Stgc Stgc;

/* Versioned: `size` is sizeof of the struct as the caller knows it; fields behind it count as 0. */
typedef struct StgcOptions {
    uint32_t size;
    int32_t threads;        /* 0: every CPU this process may use. Results do not depend on it */
    const char *parameters; /* .safetensors; NULL: the file beside the library (STEP.safetensors), if
                               there is one; "": none, they come by stgc_load or stgc_set */
    int64_t memory_limit;   /* bytes; 0: none. Larger steps are refused with STGC_ERR_RESOURCE */
    const char *target;     /* NULL: a GPU if the library was compiled for one, else this CPU; "cpu" */
    int32_t device;         /* number of the GPU, as the driver counts; 0: the first */
    int32_t cpu_fallback;   /* not 0: where the GPU cannot be used, what the library has for CPUs */
    const char *driver;     /* NULL: libcuda.so.1 */
    const char *cublas;     /* NULL: libcublas.so.13 or .12 */
} StgcOptions;

typedef struct StgcTensor {
    uint32_t size; /* in: sizeof(StgcTensor); no field behind it is written */
    int32_t kind;  /* StgcKind */
    int32_t type;  /* StgcType */
    int32_t rank;
    int64_t dims[8];
    int64_t bytes;
    const char *name; /* the handle's */
    void *data;       /* the handle's; NULL: an output of stgc_gradients, which did not run yet */
} StgcTensor;

typedef struct StgcInfo {
    uint32_t size;            /* in: sizeof(StgcInfo) */
    int32_t threads;
    int64_t planned_bytes;    /* of the memory of the programs in use */
    int64_t touched_bytes;    /* of it, resident now */
    int64_t accumulate;       /* calls of stgc_step that make one step of the optimizer */
    int64_t schedule_steps;   /* the recipe's schedule.steps */
    uint64_t model_hash, recipe_hash;
    const char *compiler;     /* "stgcc 0.1.0" */
    const char *cpu;          /* the variant that was chosen: "x86-64-v4", "sm_80" */
    const char *machine;      /* CPU, threads, matrix kernels; or GPU and driver */
    const char *recipe;       /* canonical YAML */
    int64_t batch_rows;       /* B: first axis of the inputs of a batch; 0: there is none */
    const char *fewer_rows;   /* why a batch cannot have fewer rows; NULL: it can */
} StgcInfo;

/* STGC_API_VERSION of the library that runs; a caller needs at least the one it was compiled with. */
STGC_API uint32_t stgc_api_version(void);

/* ---- opening ---- */

/* Loads a compiled step and makes a training of it at step 0. Never fails silently: NULL only
 * without memory for the handle itself; else ask stgc_status. `options` may be NULL. */
STGC_API Stgc *stgc_open(const char *library, const StgcOptions *options);
STGC_API void stgc_close(Stgc *h); /* NULL is fine */

STGC_API StgcStatus stgc_status(const Stgc *h); /* of the last call that can fail */
STGC_API const char *stgc_error(const Stgc *h); /* "" after STGC_OK */
STGC_API StgcStatus stgc_info(Stgc *h, StgcInfo *out);

/* ---- tensors ---- */

/* How many there are, and number i of them: inputs first, then parameters, state, outputs. */
STGC_API int32_t stgc_count(const Stgc *h);
STGC_API StgcStatus stgc_tensor_at(Stgc *h, int32_t i, StgcTensor *out);
/* By name; STGC_ERR_USAGE with the nearest name if there is none. */
STGC_API StgcStatus stgc_tensor(Stgc *h, const char *name, StgcTensor *out);
/* Copies into an input, parameter or state. Type, rank and dims must be the tensor's own, but for
 * fewer rows of a batch (above). */
STGC_API StgcStatus stgc_set(Stgc *h, const char *name, int32_t type, int32_t rank,
                             const int64_t *dims, const void *data);
/* Copies out; `bytes` must be the tensor's. */
STGC_API StgcStatus stgc_get(Stgc *h, const char *name, void *to, int64_t bytes);
/* The first element as a number: stgc_number(h, "loss/total"). NaN with a status if there is none. */
STGC_API double stgc_number(Stgc *h, const char *name);

/* ---- parameters ---- */

/* Sets the parameters a .safetensors file (or the bytes of one) names; others keep their values.
 * Names that are none of the step's, wrong types and wrong shapes are refused. */
STGC_API StgcStatus stgc_load(Stgc *h, const char *path);
STGC_API StgcStatus stgc_load_memory(Stgc *h, const void *bytes, size_t n);
/* Writes the trained and frozen parameters as .safetensors, whole or not at all. */
STGC_API StgcStatus stgc_store(Stgc *h, const char *path);

/* ---- training ---- */

/* One micro-batch: forward, backward, STGC; then the optimizer, every `accumulate` calls (StgcInfo;
 * usually 1). Labels and ids are checked before anything is computed. A batch whose labels are all
 * ignored trains nothing and has losses 0, but counts. */
STGC_API StgcStatus stgc_step(Stgc *h);
/* The same laid open and without an update: outputs out/, grad/, moe/I/cos ... of the inputs. Needs
 * memory of its own from the first call on. */
STGC_API StgcStatus stgc_gradients(Stgc *h);

STGC_API int64_t stgc_steps(const Stgc *h); /* steps of the optimizer done */
/* The rate of the next step: the recipe's schedule, or what was set. NaN: back to the schedule. */
STGC_API double stgc_learning_rate(const Stgc *h);
STGC_API StgcStatus stgc_set_learning_rate(Stgc *h, double lr);

/* ---- checkpoints: the format of `stgcc train`, which can go on from them and the other way ---- */

/* Writes DIR/step-N.ckpt: parameters, state, step, `samples` (where the caller's data stand; given
 * back by stgc_resume). Whole or not at all, synced; keeps the newest `keep` (at least 2). DIR is
 * made if need be. Only between steps of the optimizer. */
STGC_API StgcStatus stgc_save(Stgc *h, const char *dir, int64_t samples, int32_t keep);
/* Takes the newest sound checkpoint of DIR. It must be of this model and recipe (schedule.steps,
 * train.checkpoint_every and log_every may differ). samples may be NULL. */
STGC_API StgcStatus stgc_resume(Stgc *h, const char *dir, int64_t *samples);

#ifdef __cplusplus
}
#endif

#endif
