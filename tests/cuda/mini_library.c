/* mini_library.c: the step of mini.h as a library like those of `stgcc compile`, with a variant for
 * CPUs and one for GPUs. */
#include "tests/cuda/mini.h"

static StgcVariant variants[] = {{.cpu = "x86-64-v1", .level = 0},
                                 {.cpu = "sm_80", .device = 80},
                                 {.cpu = "sm_90", .device = 90}};

__attribute__((constructor)) static void fill(void) {
    for (int v = 0; v < 3; v++) {
        variants[v].programs[STGC_PROGRAM_TRAIN] = mini_step(MINI_TRAIN, v > 0);
        variants[v].programs[STGC_PROGRAM_GRADIENTS] = mini_step(MINI_GRADIENTS, v > 0);
    }
}

extern const StgcLibrary stgc_library;
const StgcLibrary stgc_library = {.version = STGC_LIBRARY_VERSION,
                                  .step_version = STGC_STEP_VERSION,
                                  .compiler = "by hand",
                                  .recipe = "",
                                  .model_hash = 1,
                                  .recipe_hash = 2,
                                  .training = {.lr = 1, .steps = 10, .accumulate = 1},
                                  .nvariants = 3,
                                  .variants = variants};
