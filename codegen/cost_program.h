/* cost_program.h: the cost of one program over all its calls. Internal to cost*.c. */
#ifndef STGCC_CODEGEN_COST_PROGRAM_H
#define STGCC_CODEGEN_COST_PROGRAM_H

#include "codegen/cost.h"
#include "codegen/loop_program.h"

typedef struct CostWalk {
    const LoopCall *call; /* its buffers */
    const LoopProgram *program;
    const char *arena;        /* NULL: data are unknown */
    int64_t calls;            /* tasks; for an epilogue, groups */
    int64_t args[LARG_COUNT]; /* of an epilogue, but the group */
} CostWalk;

CallCost cost_of_program(const CostWalk *w);

#endif
