/* fuzz_import.c: bytes -> Graph -> sizes bound -> shapes inferred -> canonical form, MoE layers
 * raised, verified on the way -> evaluated on made-up inputs by the reference evaluator. */
#include <stdlib.h>

#include "frontend/bind.h"
#include "frontend/frontend.h"
#include "fuzz.h"
#include "ir/eval.h"
#include "ir/infer.h"
#include "passes/pass.h"

enum { EVAL_BYTES = 4 << 20, EVAL_NODES = 300 };

/* Small numbers, the same each time: integers are indices as often as not. */
static void evaluate(Graph *g, Diag *d) {
    Arena arena = {0};
    Eval ev = {.arena = &arena, .diag = d, .mem_limit = EVAL_BYTES};
    int nodes = 0;
    FOR_NODES(n, g)
    nodes++;
    ev.values = xcalloc((size_t)g->next_value + 1, sizeof(RTensor *));
    bool ok = nodes <= EVAL_NODES;
    for (int i = 0; i < g->inputs.n && ok; i++) {
        const Value *v = g->inputs.at[i];
        ok = value_known(v) && value_count(v) <= EVAL_BYTES / 64;
        RTensor *x = ok ? rtensor_new(&arena, v->dtype, v->rank, v->dims) : NULL;
        for (int64_t k = 0; x && k < x->count; k++) {
            if (dtype_is_float(x->dtype))
                x->f[k] = (double)(k % 7) * 0.3 - 0.9;
            else
                x->i[k] = k % 2;
        }
        ev.values[v->id] = x;
    }
    if (ok && !eval_graph(&ev, g, NULL, 0))
        fuzz_check_refusal(d);
    free(ev.values);
    arena_free(&arena);
}

static void compile_forward(Graph *g, Diag *d) {
    Recipe *r = recipe_new();
    Compile c = {.g = g, .diag = d, .recipe = r};
    bool stopped;
    bind_samples(g);
    if (!graph_infer(g, d) || !passes_run(&c, &stopped))
        fuzz_check_refusal(d);
    else
        evaluate(g, d);
    vec_free(&c.not_raised);
    recipe_free(r);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    Diag d = {.subject = "fuzz"};
    ImportLimits limits = {.max_nodes = 1000, .max_heap = 16 << 20};
    OnnxFile *file = NULL;
    Graph *g = onnx_import_bytes(bytes, n, NULL, &limits, &file, &d);
    if (g)
        compile_forward(g, &d);
    else
        fuzz_check_refusal(&d);
    if (g)
        graph_free(g);
    onnx_file_free(file);
    diag_free(&d);
    return 0;
}
