/* frontend.h: ONNX bytes and YAML in, Graph and options out. */
#ifndef STGCC_FRONTEND_FRONTEND_H
#define STGCC_FRONTEND_FRONTEND_H

#include "ir/graph.h"
#include "ir/recipe.h"

/* Limits of hardening.md; zero-initialise for the defaults. */
typedef struct NamedTensor {
    const char *name;
    const Tensor *tensor;
} NamedTensor;
typedef struct ImportLimits {
    int64_t max_nodes; /* default 1,000,000 after inlining */
    int64_t max_heap;  /* default max(256 MiB, 4 x file size) */
    bool sort;         /* accept a model whose nodes are not in topological order */
    /* Graph inputs whose values are given already. Integers become constants, not inputs (axes,
     * shapes, k fed at run time); floats stay inputs, but operands that decide a shape may take
     * their values from here (scales, limits of a range). */
    const NamedTensor *known;
    int nknown;
    /* Graph inputs whose sizes are given already: their symbolic dims take the sizes of these
     * tensors (data are not read). */
    const NamedTensor *sized;
    int nsized;
    /* ai.onnx.preview.training.Gradient: d(sum of y)/dx for each x, emitted at the end of g; NULL:
     * the operator is refused. False with diagnostics. */
    bool (*gradient)(Graph *g, Value *y, Value *const *xs, int n, Value **out, Diag *d);
    uint64_t noise_seed; /* random nodes draw from it; 0: each draw is its mean */
} ImportLimits;

/* What of the ONNX file the exporter of trained weights needs again. */
typedef struct OnnxFile OnnxFile;

/* Reads MODEL.onnx: wire scan, unpack, checks, functions inlined, external data. NULL with
 * diagnostics (every unsupported operator at once). *file (optional) keeps the unpacked model, and
 * then large weights stay in it: free the Graph first. Without it the Graph owns copies of
 * everything it needs. Symbolic dims become graph symbols. Opset versions decide how each operator
 * is read. */
Graph *onnx_import(const char *path, const ImportLimits *limits, OnnxFile **file, Diag *d);
Graph *onnx_import_bytes(const uint8_t *bytes, size_t n, const char *dir,
                         const ImportLimits *limits, OnnxFile **file, Diag *d);
void onnx_file_free(OnnxFile *f);
/* Gives up the bytes of an initializer that is never read again (a tensor of the Graph that shared
 * them dangles). False: it has none of its own. */
bool onnx_file_drop(OnnxFile *f, const char *name);
/* The model's metadata property `key` ("stgc.emit" of a training graph that `transform` wrote);
 * NULL if there is none. */
const char *onnx_metadata(const OnnxFile *f, const char *key);
/* Whether `path` is the model's file or one of its external data files. */
bool onnx_reads_file(const OnnxFile *f, const char *path);

/* Trained weights back into the model: writes the original model with initializers replaced by
 * `values` (by name; types converted back to the initializer's), atomically (temporary, fsync,
 * rename). Copies of merged experts
 * ("NAME@LAYER.EXPERT") become initializers of their own where the model's structure allows. */
bool onnx_export_weights(const OnnxFile *f, const char *path, const NamedTensor *values, int n,
                         Diag *d);

/* One serialized TensorProto (ONNX test data, input_0.pb); NULL with a diagnostic. */
Tensor *onnx_read_tensor(Arena *a, const char *path, const char **name, Diag *d);

/* ---- the recipe ---- */
/* Defaults of interface.md. */
Recipe *recipe_new(void);
/* Reads a file over the defaults; unknown keys are refused with the nearest known one, all problems
 * at once. */
bool recipe_read(Recipe *r, const char *path, Diag *d);
bool recipe_read_text(Recipe *r, const char *text, size_t n,
                      Diag *d); /* the same of YAML in memory */
/* "stgc.threshold=-0.1" */
bool recipe_set(Recipe *r, const char *assignment, Diag *d);
void recipe_free(Recipe *r);
void recipe_print(
    const Recipe *r,
    FILE *to); /* canonical YAML of every key: what a checkpoint keeps, and its hash */

/* ---- arrays: .npy / .npz ---- */
typedef struct NamedArrays {
    VEC(const char *) names;
    VEC(Tensor *) tensors;
    Arena arena;
} NamedArrays;
bool npz_read(const char *path, NamedArrays *out,
              Diag *d); /* f4 f8 f2 i1 i2 i4 i8 u1.. b1, stored or deflated */
bool npz_read_limit(const char *path, int64_t limit, NamedArrays *out,
                    Diag *d); /* unpacked bytes; npz_read: the memory there is */
Tensor *arrays_find(const NamedArrays *a, const char *name);
void arrays_free(NamedArrays *a);
typedef struct NpzWriter NpzWriter;
NpzWriter *npz_create(const char *path, Diag *d); /* a temporary beside path */
bool npz_add(NpzWriter *w, const char *name, const Tensor *t, Diag *d);
bool npz_close(NpzWriter *w, Diag *d); /* fsync and rename; an abandoned writer leaves nothing */
void npz_abandon(NpzWriter *w);

#endif
