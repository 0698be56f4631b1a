/* mini.h: a training step written by hand, for this CPU and for a GPU (mini.ptx). All its numbers
 * are small integers, so that both compute the same bits whatever the order.
 *
 *     z [2,10,10] = x w          y [500] = x + w + k[i%4] + c[i%4]          c: constants 1 2 3 4
 *     sum = all of z and y       m += y       w -= m       same = x
 *
 * A negative x[i] is a fault at i. */
#ifndef STGCC_TESTS_CUDA_MINI_H
#define STGCC_TESTS_CUDA_MINI_H

#include "runtime/runtime.h"
#include "runtime/step_cuda.h"

typedef enum {
    MINI_TRAIN,     /* as above */
    MINI_GRADIENTS, /* the same without m and w changed; its arena is larger */
    MINI_APPLY,     /* w -= m; m = 0; laid out as MINI_TRAIN */
    MINI_SWAPPED,   /* MINI_APPLY with m before w */
    MINI_KINDS
} MiniKind;

enum { MINI_X = 500, MINI_W = 500, MINI_Z = 200 };

const StgcStep *mini_step(MiniKind kind, bool device);

#endif
