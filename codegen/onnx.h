/* onnx.h: Graph -> a training graph in standard ONNX operators.
 *
 * The default domain's operators only, of a chosen opset: the file passes onnx.checker with shape
 * inference and runs in any conforming engine. Parameters keep their names; row ops of MoE layers
 * become subgraphs by expert under "stgc/layer_I/expert_E/"; names of outputs are the Graph's. */
#ifndef STGCC_CODEGEN_ONNX_H
#define STGCC_CODEGEN_ONNX_H

#include "ir/graph.h"
#include "ir/recipe.h"

enum { ONNX_OPSET_MIN = 17, ONNX_OPSET_MAX = 25, ONNX_OPSET_DEFAULT = 18 };

typedef struct OnnxNote { /* one metadata property */
    const char *key, *text;
} OnnxNote;

typedef struct OnnxOptions {
    int opset;            /* ONNX_OPSET_MIN .. ONNX_OPSET_MAX */
    bool external_data;   /* large tensors into PATH.data (always beyond 2 GiB) */
    bool initial_values;  /* updated parameters keep their values in the file, as defaults of their
                             inputs */
    const char *version;  /* of the producer */
    const Recipe *recipe; /* the optimizer's schedule, where the Graph has updates */
    const OnnxNote *notes;
    int nnotes;
} OnnxOptions;

/* Writes g (every dim known) to `path`, atomically: a temporary beside it, fsync, rename. With
 * updates in g the file is one optimizer step: every updated X and its state are inputs, "step"
 * (i64, steps done before) is one more, and X.next, "step.next" are outputs. False, and nothing
 * written, if an op has no spelling in the opset or names collide (said in `d`), or the file cannot
 * be written (said in `io`). */
bool onnx_write_training(const Graph *g, const char *path, const OnnxOptions *o, Diag *d, Diag *io);

#endif
