/* nvptx_case.h: a model, its recipe and a batch as one training step for a GPU. */
#ifndef STGCC_TESTS_NVPTX_CASE_H
#define STGCC_TESTS_NVPTX_CASE_H

#include "nvptx_help.h"

#include "frontend/bind.h"
#include "frontend/frontend.h"
#include "ir/eval.h"
#include "ir/infer.h"
#include "passes/pass.h"

typedef struct GpuCase {
    const char *name;
    Graph *g;
    OnnxFile *file;
    Recipe *recipe;
    NamedArrays batch;
    Diag diag;
    Arena arena;
    int calls;
} GpuCase;

static Precision gpu_case_precision; /* instead of the recipe's; PRECISION_F32: the recipe's */

static inline void gpu_case_load(GpuCase *c, const char *folder, const char *name,
                                 TrainWants wants) {
    char model[512], recipe[512], batch[512];
    *c = (GpuCase){.name = name, .diag = {.subject = name}};
    snprintf(model, sizeof model, "%s/%s/model.onnx", folder, name);
    snprintf(recipe, sizeof recipe, "%s/%s/recipe.yaml", folder, name);
    snprintf(batch, sizeof batch, "%s/%s/batch.npz", folder, name);
    bool stopped = false;
    ImportLimits limits = {0};
    c->g = onnx_import(model, &limits, &c->file, &c->diag);
    c->recipe = recipe_new();
    bool ok = c->g && recipe_read(c->recipe, recipe, &c->diag) &&
              npz_read(batch, &c->batch, &c->diag) && bind_arrays(c->g, &c->batch, &c->diag) &&
              graph_infer(c->g, &c->diag);
    if (gpu_case_precision != PRECISION_F32)
        c->recipe->train.precision = gpu_case_precision;
    Compile compile = {.g = c->g, .recipe = c->recipe, .wants = wants, .diag = &c->diag};
    if (!ok || !passes_run(&compile, &stopped)) {
        diag_print(&c->diag, stderr, true);
        fail_msg("%s: not loaded", name);
    }
    vec_free(&compile.not_raised);
}

static inline void gpu_case_free(GpuCase *c) {
    graph_free(c->g);
    onnx_file_free(c->file);
    recipe_free(c->recipe);
    arrays_free(&c->batch);
    diag_free(&c->diag);
    arena_free(&c->arena);
}

/* The one input without an array: the optimizer's numbers (passes/optimize.c), of step 1. */
static inline void gpu_case_hyper(const StgcSlot *s, char *to) {
    const float numbers[8] = {1e-3f, 10, 1000, 1};
    if (strcmp(s->name, "hyper") != 0 || s->bytes != sizeof numbers)
        fail_msg("no array for the input %s", s->name);
    memcpy(to, numbers, sizeof numbers);
}

static inline void gpu_case_fill(GpuCase *c, const LoopModule *m, char *arena, char *given) {
    for (int i = 0; i < m->slots.n; i++) {
        const StgcSlot *s = &m->slots.at[i];
        if (s->kind == STGC_SLOT_OUTPUT)
            continue;
        memset(arena + s->offset, 0, (size_t)s->bytes);
        memset(given + s->offset, 1, (size_t)s->bytes);
        if (s->init)
            memcpy(arena + s->offset, s->init, (size_t)s->bytes);
        if (s->kind != STGC_SLOT_INPUT)
            continue;
        const Value *v = NULL;
        for (int k = 0; k < c->g->inputs.n; k++)
            if (!strcmp(node_str(c->g->inputs.at[k]->def, AT_NAME, ""), s->name))
                v = c->g->inputs.at[k];
        const Tensor *t = v ? array_for(c->g, v, &c->batch, &c->diag) : NULL;
        if (!t) {
            gpu_case_hyper(s, arena + s->offset);
            continue;
        }
        const Tensor *cast = rtensor_to(&c->arena, rtensor_from(&c->arena, t), v->dtype);
        memcpy(arena + s->offset, cast->data, (size_t)s->bytes);
    }
}

/* The step on the emulator against the CPU, call by call; the largest difference. */
static inline double gpu_case_twin(GpuCase *c, bool fused, double tolerance) {
    LowerOptions o = {.fused = fused, .gpu = true};
    if (getenv("DUMP_LOOPS"))
        o.dump_loops = stderr;
    LoopModule *m = lower_graph(c->g, &o, &c->diag);
    if (!m) {
        diag_print(&c->diag, stderr, true);
        fail_msg("%s: not lowered", c->name);
    }
    c->calls = m->calls.n;
    size_t n = ((size_t)m->arena_bytes + 127) / 64 * 64;
    char *arena = aligned_alloc(64, n), *given = xcalloc(n, 1);
    memset(arena, 0xa5, n);
    gpu_case_fill(c, m, arena, given);
    double worst = twin_run(m, arena, given, c->name, tolerance);
    free(arena);
    free(given);
    loop_module_free(m);
    return worst;
}

#endif
