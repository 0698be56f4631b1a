/* fuzz_import.c: bytes -> Graph -> sizes bound -> shapes inferred -> canonical form, verified on
 * the way. */
#include <stdlib.h>

#include "frontend/bind.h"
#include "frontend/frontend.h"
#include "fuzz.h"
#include "ir/infer.h"
#include "passes/pass.h"

static void compile_forward(Graph *g, Diag *d) {
    Recipe *r = recipe_new();
    Compile c = {.g = g, .diag = d, .recipe = r};
    bool stopped;
    bind_samples(g);
    if (!graph_infer(g, d) || !passes_run(&c, &stopped))
        fuzz_check_refusal(d);
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
