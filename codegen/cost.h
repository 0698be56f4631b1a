/* cost.h: what a call of a schedule has to do, whatever machine does it: operations and bytes. */
#ifndef STGCC_CODEGEN_COST_H
#define STGCC_CODEGEN_COST_H

#include "codegen/loop.h"

typedef struct CallCost {
    double flops;   /* on floats: additions, products, divisions; a multiply-add is two, a function
                       (exp, log, …) one */
    double special; /* functions among them */
    double moved; /* bytes: what every load and store of the program touches, each counted once over
                     the whole call; what several of them touch counts for each, since rows leave
                     the cache between passes over them */
    double minimum; /* bytes: operands and results once */
    bool exact;     /* false: a branch or a bound depends on values nobody knew; both branches are
                       counted then */
} CallCost;

/* Cost of one call. `arena`: the step's memory just before the call: bounds that data decide (rows
 * of experts) are read from it. NULL: bounds stand for them where they are known. */
CallCost call_cost(const LoopModule *m, int call, const char *arena);

#endif
