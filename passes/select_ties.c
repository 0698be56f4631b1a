/* select_ties.c: parameters that were one in the model and are two in the file. An exporter stores
 * a head that shares the embedding's matrix as its transposed copy; training would move them apart.
 * Which pairs belong together only the user knows: such pairs are reported, and model.tie joins
 * them. */
#include <stdlib.h>
#include <string.h>

#include "passes/grad.h"

const Tensor *param_initial(const Graph *g, const char *name) {
    FOR_NODES(n, g) {
        const Attr *a = n->op == OP_PARAM && !strcmp(param_name(n->out[0]), name)
                            ? node_attr(n, AT_VALUE)
                            : NULL;
        if (a)
            return a->t;
    }
    return NULL;
}

static bool is_transpose(const Tensor *a, const Tensor *b) {
    int64_t rows = a->dims[0], cols = a->dims[1];
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < cols; k++)
            if (tensor_get_f(a, i * cols + k) != tensor_get_f(b, k * rows + i))
                return false;
    return true;
}

ParamTie params_tied(const Tensor *a, const Tensor *b) {
    if (a->dtype != b->dtype || a->rank != b->rank || tensor_count(a) != tensor_count(b))
        return TIE_NONE;
    bool same = true;
    for (int k = 0; k < a->rank; k++)
        same = same && a->dims[k] == b->dims[k];
    if (same && !memcmp(a->data, b->data, tensor_bytes(a)))
        return TIE_EQUAL;
    bool turned = a->rank == 2 && dtype_is_float(a->dtype) && a->dims[0] == b->dims[1] &&
                  a->dims[1] == b->dims[0];
    return turned && is_transpose(a, b) ? TIE_TRANSPOSED : TIE_NONE;
}

Tensor *tensor_transposed(Arena *a, const Tensor *t) {
    int64_t rows = t->dims[0], cols = t->dims[1], dims[] = {cols, rows};
    Tensor *r = tensor_new(a, t->dtype, 2, dims);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < cols; k++)
            tensor_set_f(r, k * rows + i, tensor_get_f(t, i * cols + k));
    return r;
}

static Node *param_named(const Graph *g, const char *name) {
    FOR_NODES(n, g)
    if (n->op == OP_PARAM && !strcmp(param_name(n->out[0]), name))
        return n;
    return NULL;
}

static bool tie(Compile *c, Node *first, const char *name) {
    Node *other = param_named(c->g, name);
    const char *one = param_name(first->out[0]);
    if (!other) {
        diag_error(c->diag, EXIT_USAGE, "model.tie: '%s' is no parameter of the model",
                   diag_safe(c->diag, name));
        return false;
    }
    const Attr *a = node_attr(first, AT_VALUE), *b = node_attr(other, AT_VALUE);
    ParamTie kind = a && b && other != first ? params_tied(a->t, b->t) : TIE_NONE;
    if (kind == TIE_NONE) {
        diag_error(c->diag, EXIT_USAGE,
                   "model.tie: '%s' and '%s' are neither equal nor transposes of one another",
                   diag_safe(c->diag, one), diag_safe(c->diag, name));
        return false;
    }
    Value *v = first->out[0];
    if (kind == TIE_TRANSPOSED) {
        Builder at = builder_after(first);
        v = op_transpose(&at, v, (int64_t[]){1, 0});
    }
    value_replace(other->out[0], v);
    return true;
}

bool params_tie(Compile *c) {
    bool ok = true;
    for (int i = 0; i < c->recipe->model.tie.n; i++) {
        const StrList *names = &c->recipe->model.tie.at[i];
        Node *first = param_named(c->g, names->at[0]);
        if (!first) {
            diag_error(c->diag, EXIT_USAGE, "model.tie: '%s' is no parameter of the model",
                       diag_safe(c->diag, names->at[0]));
            ok = false;
            continue;
        }
        for (Node *n = c->g->first; n && n != first; n = n->next) /* before all of its users */
            if (n->op != OP_PARAM && n->op != OP_INPUT && n->op != OP_CONST) {
                node_move_before(first, n);
                break;
            }
        for (int k = 1; k < names->n; k++)
            ok = tie(c, first, names->at[k]) && ok;
    }
    return ok;
}

static uint64_t mix(uint64_t h, double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    h = (h ^ bits) * 0xbf58476d1ce4e5b9u;
    return h ^ h >> 29;
}

/* Of a matrix, the same for its transpose: its size, and elements of the diagonal and pairs across
 * it. Those of one print are compared as a whole. */
static uint64_t fingerprint(const Tensor *t) {
    enum { MOST = 256 };
    int64_t cols = t->dims[1], side = t->dims[0] < cols ? t->dims[0] : cols;
    uint64_t h = mix(1, (double)tensor_count(t));
    for (int64_t i = 0; i < side && i < MOST; i++) {
        int64_t k = (7 * i + 3) % side;
        h = mix(h, tensor_get_f(t, i * cols + i));
        h = mix(h, tensor_get_f(t, i * cols + k) + tensor_get_f(t, k * cols + i));
    }
    return h;
}

typedef struct Print {
    uint64_t h;
    const Node *n;
} Print;

static int by_print(const void *x, const void *y) {
    const Print *a = x, *b = y;
    return a->h != b->h ? (a->h > b->h) - (a->h < b->h)
                        : (a->n->id > b->n->id) - (a->n->id < b->n->id);
}

enum { WORTH_SAYING = 64 }; /* elements: small tensors are equal by chance of how they start */

static bool is_flat(const Tensor *t) {
    for (int64_t i = 1, n = tensor_count(t); i < n; i++)
        if (tensor_get_f(t, i) != tensor_get_f(t, 0))
            return false;
    return true;
}

void params_report_ties(Compile *c) {
    VEC(Print) all = {0};
    FOR_NODES(n, c->g) {
        const Attr *a = n->op == OP_PARAM ? node_attr(n, AT_VALUE) : NULL;
        bool counts = a && node_int(n, AT_KIND, PARAM_WEIGHT) == PARAM_WEIGHT && a->t->rank == 2 &&
                      tensor_count(a->t) >= WORTH_SAYING && !strchr(param_name(n->out[0]), '@') &&
                      !is_flat(a->t);
        Print p = {counts ? fingerprint(a->t) : 0, n};
        if (counts)
            vec_push(&all, p);
    }
    if (all.n)
        qsort(all.at, (size_t)all.n, sizeof *all.at, by_print);
    for (int i = 1; i < all.n; i++) {
        if (all.at[i].h != all.at[i - 1].h)
            continue;
        const Node *a = all.at[i - 1].n, *b = all.at[i].n;
        ParamTie kind = params_tied(node_attr(a, AT_VALUE)->t, node_attr(b, AT_VALUE)->t);
        if (kind == TIE_NONE)
            continue;
        const char *x = diag_safe(c->diag, param_name(a->out[0])),
                   *y = diag_safe(c->diag, param_name(b->out[0]));
        diag_note(c->diag, "parameters \"%s\" and \"%s\" %s, but are trained apart", x, y,
                  kind == TIE_EQUAL ? "are equal" : "are transposes of one another");
        diag_more(c->diag, "if they are one in the model: model.tie: [[\"%s\", \"%s\"]]", x, y);
    }
    vec_free(&all);
}
