/* fuzz_import.c: bytes -> Graph -> sizes bound -> shapes inferred -> canonical form, verified on
 * the way. */
#include <stdlib.h>

#include "frontend/bind.h"
#include "frontend/frontend.h"
#include "fuzz.h"
#include "ir/infer.h"
#include "ir/verify.h"
#include "passes/pass.h"

static void compile_forward(Graph *g, Diag *d) {
    Compile c = {.g = g, .diag = d};
    bind_samples(g);
    if (!graph_infer(g, d) || !pass_canonicalise(&c)) {
        fuzz_check_refusal(d);
        return;
    }
    graph_verify(g, "canonicalise");
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
