/* cmd_identity.c: what trainings and libraries are known by. See cmd_compile.h. */
#include <stdlib.h>
#include <string.h>

#include "frontend/cmd_compile.h"
#include "ir/text.h"

char *identity_recipe(const Recipe *r) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    if (!f)
        bug("no memory stream");
    recipe_print(r, f);
    fclose(f);
    return text;
}

uint64_t identity_model(const Graph *g) {
    char *text = graph_to_text(g);
    uint64_t h = hash_bytes(text, strlen(text), 1);
    free(text);
    return h;
}

StgcTraining identity_training(const Recipe *r) {
    StgcScheduleKind kind = r->schedule.kind == SCHED_LINEAR   ? STGC_SCHEDULE_LINEAR
                            : r->schedule.kind == SCHED_COSINE ? STGC_SCHEDULE_COSINE
                                                               : STGC_SCHEDULE_CONSTANT;
    return (StgcTraining){.lr = r->optimizer.lr,
                          .beta1 = r->optimizer.beta1,
                          .beta2 = r->optimizer.beta2,
                          .warmup = r->schedule.warmup,
                          .steps = r->schedule.steps,
                          .accumulate = r->train.accumulate,
                          .seed = r->train.seed,
                          .schedule = (int32_t)kind};
}
