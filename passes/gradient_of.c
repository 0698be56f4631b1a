/* gradient_of.c: the gradient of one value with respect to others, for models that ask for it
 * themselves (ONNX's Gradient operator). */
#include "passes/pass.h"

bool gradient_of(Graph *g, Value *y, Value *const *xs, int n, Value **out, Diag *d) {
    Builder b = builder_at_end(g, y->def->src);
    Seed seed = {y, op_full(&b, y->dtype, 1, y->rank, y->dims)};
    Cotangents c;
    bool ok = grad_run(g, &seed, 1, xs, n, NULL, 0, &c, d);
    b = builder_at_end(g, y->def->src);
    for (int i = 0; ok && i < n; i++) {
        out[i] = xs[i]->id < c.n ? c.of[xs[i]->id] : NULL;
        if (!out[i]) /* y does not depend on it */
            out[i] = op_full(&b, xs[i]->dtype, 0, xs[i]->rank, xs[i]->dims);
    }
    cotangents_free(&c);
    return ok;
}
