/* onnx_unsupported.c: what of a model cannot be read, all at once: each operator with its first
 * node, the layer that is in, the parameters that would be trained through it, and the way out.
 *
 * A parameter needs a node if the node's inputs are computed from it: its gradient would come back
 * through the node. The search goes from the node towards the inputs, nearest parameters first. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/onnx_import.h"

/* ---- where names come from ---- */

typedef struct Producer {
    const Onnx__NodeProto *node;
    int stamp; /* of the search that was here last */
} Producer;

static void add_producers(Import *im, Onnx__NodeProto **nodes, size_t n) {
    for (size_t i = 0; i < n; i++) {
        Producer *p = ARENA_NEW(&im->scratch, Producer);
        p->node = nodes[i];
        for (size_t k = 0; k < nodes[i]->n_output; k++)
            if (*nodes[i]->output[k])
                strmap_put(&im->producers, nodes[i]->output[k], p);
        for (size_t a = 0; a < nodes[i]->n_attribute; a++) {
            const Onnx__GraphProto *g = nodes[i]->attribute[a]->g;
            if (g)
                add_producers(im, g->node, g->n_node);
        }
    }
}

/* Float tensors of two or more elements, as import makes parameters of them. */
static bool is_weight(const Onnx__TensorProto *t) {
    int64_t count = 1;
    for (size_t i = 0; i < t->n_dims; i++)
        count = t->dims[i] < 2 ? count * (t->dims[i] == 1) : 2;
    return count >= 2 && dtype_is_float(dtype_of_onnx(t->data_type));
}

static void index_model(Import *im) {
    const Onnx__GraphProto *g = im->model->graph;
    if (im->producers.n || im->weights.n)
        return;
    add_producers(im, g->node, g->n_node);
    for (size_t i = 0; i < g->n_initializer; i++)
        if (g->initializer[i]->name && is_weight(g->initializer[i]))
            strmap_put(&im->weights, g->initializer[i]->name, g->initializer[i]);
}

typedef VEC(const Onnx__NodeProto *) NodeQueue;

static void enqueue_names(Import *im, NodeQueue *q, StrMap *found, const Onnx__NodeProto *n,
                          const char **first) {
    for (size_t i = 0; i < n->n_input; i++) {
        const char *name = n->input[i];
        if (!*name)
            continue;
        if (strmap_get(&im->weights, name)) {
            if (strmap_put(found, name, (void *)(uintptr_t)name) && !*first)
                *first = name;
            continue;
        }
        Producer *p = strmap_get(&im->producers, name);
        if (!p || p->stamp == im->searches)
            continue;
        p->stamp = im->searches;
        vec_push(q, p->node);
    }
}

const char *onnx_needed_for(Import *im, const Onnx__NodeProto *n, const char **parameter) {
    const char *first = NULL;
    StrMap found = {0};
    NodeQueue q = {0};
    index_model(im);
    im->searches++;
    enqueue_names(im, &q, &found, n, &first);
    for (int i = 0; i < q.n; i++)
        enqueue_names(im, &q, &found, q.at[i], &first);
    size_t others = found.n ? found.n - 1 : 0;
    strmap_free(&found);
    vec_free(&q);
    if (parameter)
        *parameter = first;
    if (!first)
        return NULL;
    const char *more = others ? arena_printf(&im->scratch, " (and %zu more)", others) : "";
    return arena_printf(&im->scratch, "needed for parameter \"%s\"%s", diag_safe(im->d, first),
                        more);
}

/* "3" of "/model/layers.3/moe/Foo" or "h.3.attn.weight"; NULL without. */
static const char *layer_of(Import *im, const char *name) {
    static const char *const words[] = {"layers", "layer", "blocks", "block", "h", "stages"};
    for (const char *p = name; p && *p; p++) {
        if (p > name && (isalnum((unsigned char)p[-1]) || p[-1] == '_'))
            continue;
        for (int i = 0; i < COUNT_OF(words); i++) {
            size_t len = strlen(words[i]);
            const char *number = p + len + 1;
            if (strncmp(p, words[i], len) != 0 || !strchr("._/", p[len]) || !p[len] ||
                !isdigit((unsigned char)*number))
                continue;
            return arena_printf(&im->scratch, "%.*s", (int)strspn(number, "0123456789"), number);
        }
    }
    return NULL;
}

/* ---- the way out ---- */

typedef struct WayOut {
    const char *ops; /* " Name Name " */
    const char *text;
} WayOut;

static const WayOut ways_out[] = {
    {" Bernoulli Multinomial ",
     "export the model in evaluation mode (model.eval()): it draws random numbers"},
    {" GRU LSTM RNN CausalConvWithState LinearAttention ",
     "export with torch.onnx.export(dynamo=True) and a scripted recurrence, or move the recurrent "
     "part out of the model"},
    {" NonMaxSuppression RoiAlign MaxRoiPool ImageDecoder MelWeightMatrix STFT DFT "
     "StringConcat StringNormalizer StringSplit RegexFullMatch TfIdfVectorizer LabelEncoder ",
     "move this pre- or post-processing out of the model and feed its result as an input"},
    {" Unique SequenceMap ",
     "its result has a size that only data decide; rewrite it with a fixed number of results "
     "(TopK, OneHot, masks)"},
    {" Inverse Det SVD ", "compute it outside the model and feed the result as an input"},
};

static const char *way_out(const char *op, const char *domain, bool other_opset) {
    if (other_opset)
        return "export with another opset_version (18 to 25)";
    char key[128];
    snprintf(key, sizeof key, " %s ", op);
    for (int i = 0; i < COUNT_OF(ways_out); i++)
        if (strstr(ways_out[i].ops, key))
            return ways_out[i].text;
    if (*domain)
        return "export it as a model-local function (it is read in place), or with the other "
               "exporter (torch.onnx.export, dynamo=True or False) as plain operators";
    return "export with the other exporter (torch.onnx.export, dynamo=True or False) or a higher "
           "opset_version; or give the operator as a model-local function";
}

/* ---- the list ---- */

typedef struct Unsupported {
    const char *op, *domain, *type, *why;
    const Onnx__NodeProto *first;
    bool in_function;
    int64_t count;
} Unsupported;
typedef struct UnsupportedList {
    StrMap by_name;
    VEC(Unsupported *) list;
    bool in_function;
} UnsupportedList;

static void find_unsupported(Import *im, Onnx__NodeProto **nodes, size_t n, const Opsets *o,
                             UnsupportedList *out);

static void find_unsupported_node(Import *im, const Onnx__NodeProto *n, const Opsets *o,
                                  UnsupportedList *out) {
    for (size_t a = 0; a < n->n_attribute; a++) {
        const Onnx__AttributeProto *at = n->attribute[a];
        if (at->g)
            find_unsupported(im, at->g->node, at->g->n_node, o, out);
        for (size_t k = 0; k < at->n_graphs; k++)
            find_unsupported(im, at->graphs[k]->node, at->graphs[k]->n_node, o, out);
    }
    int version = opsets_version(o, n->domain);
    if (function_find(im, n) || (version > 0 && op_row_find(im, n->domain, n->op_type, version)))
        return;
    const char *domain = domain_is_onnx(n->domain) ? "" : n->domain;
    const char *key =
        arena_printf(&im->scratch, "%s%s%s", domain, *domain ? ":" : "", text_or(n->op_type, ""));
    Unsupported *u = strmap_get(&out->by_name, key);
    if (!u) {
        u = ARENA_NEW(&im->scratch, Unsupported);
        u->op = diag_safe(im->d, key);
        u->domain = domain;
        u->type = text_or(n->op_type, "");
        u->first = n;
        u->in_function = out->in_function;
        u->why = version < 0    ? "unknown domain"
                 : version == 0 ? "its domain is not imported by the model"
                 : op_row_find(im, n->domain, n->op_type, 0)
                     ? arena_printf(&im->scratch, "not at opset %d", version)
                     : NULL;
        strmap_put(&out->by_name, key, u);
        vec_push(&out->list, u);
    }
    u->count++;
}

static void find_unsupported(Import *im, Onnx__NodeProto **nodes, size_t n, const Opsets *o,
                             UnsupportedList *out) {
    for (size_t i = 0; i < n; i++)
        find_unsupported_node(im, nodes[i], o, out);
}

static void report(Import *im, const Unsupported *u) {
    Diag *d = im->d;
    const char *parameter = NULL,
               *needed = u->in_function ? NULL : onnx_needed_for(im, u->first, &parameter),
               *layer = layer_of(im, node_label(u->first));
    if (!layer && parameter)
        layer = layer_of(im, parameter);
    diag_more(d, "%s, %lld node%s, first \"%s\"%s%s%s%s%s%s", u->op, (long long)u->count,
              u->count == 1 ? "" : "s", diag_safe(d, node_label(u->first)),
              layer ? " in layer " : "", text_or(layer, ""), u->why ? " (" : "",
              text_or(u->why, ""), u->why ? ")" : "", u->in_function ? ", in a function" : "");
    diag_more(d, "  %s", needed ? needed : "no parameter is trained through it");
    diag_more(d, "  try: %s", way_out(u->type, u->domain, u->why && !strncmp(u->why, "not at", 6)));
}

int64_t onnx_check_operators(Import *im) {
    enum { MOST = 100 };
    int64_t nodes = 0;
    UnsupportedList u = {0};
    find_unsupported(im, im->model->graph->node, im->model->graph->n_node, &im->opsets, &u);
    u.in_function = true;
    for (size_t i = 0; i < im->model->n_functions; i++) {
        const Onnx__FunctionProto *f = im->model->functions[i];
        FunctionInfo *info = function_of(im, f);
        if (info)
            find_unsupported(im, f->node, f->n_node, &info->opsets, &u);
    }
    if (u.list.n)
        diag_error(im->d, EXIT_MODEL, "%d unsupported operator%s:", u.list.n,
                   u.list.n == 1 ? "" : "s");
    for (int i = 0; i < u.list.n; i++) {
        nodes += u.list.at[i]->count;
        if (i < MOST)
            report(im, u.list.at[i]);
    }
    strmap_free(&u.by_name);
    vec_free(&u.list);
    return nodes;
}
