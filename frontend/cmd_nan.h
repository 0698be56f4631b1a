/* cmd_nan.h: where a value that is no number came from. */
#ifndef STGCC_FRONTEND_CMD_NAN_H
#define STGCC_FRONTEND_CMD_NAN_H

#include "frontend/cmd.h"

typedef struct NanStep { /* a step that gives one, and the state before it */
    Graph *graph;
    Engine *engine; /* holds the parameters */
    const NamedArrays *inputs;
    const Tensor *hyper;
    int64_t mem_limit; /* of looking; 0: half the memory there is */
} NanStep;
typedef struct NanOrigin {
    const char *text;  /* "node "…" (Exp), whose operands are finite, gives NaN"; NULL: not found */
    const char *param; /* it is a parameter's value: which */
} NanOrigin;
/* Where the first loss of the step that is no number comes from, or, with `param`, the update of that
 * parameter. Texts are in a. */
NanOrigin nan_origin(const NanStep *s, const char *param, Arena *a);

#endif
