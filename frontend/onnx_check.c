/* onnx_check.c: faults of a model as a whole, found before anything is built: versions, names in
 * single assignment and in order, functions that call themselves or explode, operators nobody here
 * can read. All are reported at once. */
#include "frontend/onnx_import.h"

#include <stdlib.h>
#include <string.h>

enum {
    IR_OLDEST = 3,
    IR_NEWEST = 13,
    MAX_FUNCTIONS = 10000,
    MAX_CALL_DEPTH = 100,
    MAX_REPORTS = 50
};

bool domain_is_onnx(const char *domain) {
    return !domain || !*domain || !strcmp(domain, "ai.onnx");
}

const char *node_label(const Onnx__NodeProto *n) {
    if (n->name && *n->name)
        return n->name;
    for (size_t i = 0; i < n->n_output; i++)
        if (*n->output[i])
            return n->output[i];
    return text_or(n->op_type, "");
}

static bool enough(const Import *im) {
    return im->d->errors >= MAX_REPORTS;
}

/* ---- versions ---- */

static const struct DomainRow {
    const char *name;
    int newest;
    size_t field;
} domains[] = {
    {"", 27, offsetof(Opsets, onnx)},
    {"com.microsoft", 1, offsetof(Opsets, microsoft)},
    {"ai.onnx.ml", 5, offsetof(Opsets, ml)},
    {"ai.onnx.preview.training", 1, offsetof(Opsets, training)},
};

static const struct DomainRow *domain_find(const char *domain) {
    for (int i = 0; i < COUNT_OF(domains); i++)
        if (!strcmp(domain_is_onnx(domain) ? "" : domain, domains[i].name))
            return &domains[i];
    return NULL;
}

int opsets_version(const Opsets *o, const char *domain) {
    const struct DomainRow *row = domain_find(domain);
    return row ? *(const int *)((const char *)o + row->field) : -1;
}

bool opsets_read(Import *im, Onnx__OperatorSetIdProto **list, size_t n, Opsets *o,
                 const char *where) {
    int before = im->d->errors;
    StrMap others = {0};
    *o = (Opsets){0};
    for (size_t i = 0; i < n && !enough(im); i++) {
        const char *domain = text_or(list[i]->domain, ""), *shown = diag_safe(im->d, domain);
        const struct DomainRow *row = domain_find(domain);
        int *slot = row ? (int *)((char *)o + row->field) : NULL;
        if (slot ? *slot != 0 : !strmap_put(&others, domain, list[i])) {
            diag_error(im->d, EXIT_MODEL, "%s imports domain \"%s\" twice", where, shown);
            continue;
        }
        if (!slot) /* harmless unless a node uses it, which is reported there */
            continue;
        if (list[i]->version < 1 || list[i]->version > row->newest) {
            diag_error(im->d, EXIT_MODEL,
                       "opset version %lld of domain \"%s\" is not supported: 1 to %d are",
                       (long long)list[i]->version, shown, row->newest);
            *slot = row->newest;
            continue;
        }
        *slot = (int)list[i]->version;
    }
    strmap_free(&others);
    return im->d->errors == before;
}

/* ---- functions ---- */

static const char *function_key(Import *im, const char *domain, const char *name,
                                const char *overload) {
    return arena_printf(&im->scratch, "%s\n%s\n%s", domain_is_onnx(domain) ? "" : domain,
                        text_or(name, ""), text_or(overload, ""));
}

FunctionInfo *function_find(const Import *im, const Onnx__NodeProto *n) {
    if (!im->functions.n)
        return NULL;
    char small[256];
    const char *domain = domain_is_onnx(n->domain) ? "" : n->domain;
    int len = snprintf(small, sizeof small, "%s\n%s\n%s", domain, text_or(n->op_type, ""),
                       text_or(n->overload, ""));
    if (len < (int)sizeof small)
        return strmap_get(&im->functions, small);
    char *key = xcalloc((size_t)len + 1, 1);
    snprintf(key, (size_t)len + 1, "%s\n%s\n%s", domain, text_or(n->op_type, ""),
             text_or(n->overload, ""));
    FunctionInfo *f = strmap_get(&im->functions, key);
    free(key);
    return f;
}

static void functions_index(Import *im) {
    const Onnx__ModelProto *m = im->model;
    if (m->n_functions > MAX_FUNCTIONS) {
        diag_error(im->d, EXIT_RESOURCE, "%zu functions; at most %d are accepted", m->n_functions,
                   MAX_FUNCTIONS);
        return;
    }
    for (size_t i = 0; i < m->n_functions && !enough(im); i++) {
        const Onnx__FunctionProto *f = m->functions[i];
        const char *shown = diag_safe(im->d, text_or(f->name, ""));
        FunctionInfo *info = ARENA_NEW(&im->scratch, FunctionInfo);
        info->proto = f;
        if (!*text_or(f->name, ""))
            diag_error(im->d, EXIT_MODEL, "function %zu has no name", i);
        opsets_read(im, f->opset_import, f->n_opset_import, &info->opsets,
                    arena_printf(&im->scratch, "function \"%s\"", shown));
        if (!strmap_put(&im->functions, function_key(im, f->domain, f->name, f->overload), info))
            diag_error(im->d, EXIT_MODEL, "function \"%s\" is defined twice", shown);
    }
}

/* Nodes after inlining, or -1 after a diagnostic. `chain` is the calls that lead here. */
typedef struct CallChain {
    const struct CallChain *up;
    FunctionInfo *info;
    int depth;
} CallChain;

static int64_t function_expand(Import *im, FunctionInfo *info, const CallChain *up);

static int64_t expand_nodes(Import *im, Onnx__NodeProto **nodes, size_t n, const CallChain *up) {
    int64_t total = 0;
    for (size_t i = 0; i < n; i++) {
        FunctionInfo *f = function_find(im, nodes[i]);
        int64_t add = f ? function_expand(im, f, up) : 1;
        for (size_t a = 0; add >= 0 && a < nodes[i]->n_attribute; a++) {
            const Onnx__AttributeProto *at = nodes[i]->attribute[a];
            for (size_t k = 0; add >= 0 && k < (at->g ? 1 : at->n_graphs); k++) {
                const Onnx__GraphProto *g = at->g ? at->g : at->graphs[k];
                int64_t inner = expand_nodes(im, g->node, g->n_node, up);
                if (inner < 0 || __builtin_add_overflow(add, inner, &add))
                    add = inner < 0 ? -1 : INT64_MAX;
            }
        }
        if (add < 0)
            return -1;
        if (__builtin_add_overflow(total, add, &total))
            total = INT64_MAX;
    }
    return total;
}

static void report_recursion(Import *im, const FunctionInfo *info, const CallChain *up) {
    const char *path = diag_safe(im->d, text_or(info->proto->name, ""));
    const char *start = path;
    for (const CallChain *c = up; c; c = c->up) {
        path = arena_printf(&im->scratch, "%s -> %s",
                            diag_safe(im->d, text_or(c->info->proto->name, "")), path);
        if (c->info == info)
            break;
    }
    diag_error(im->d, EXIT_MODEL, "function \"%s\" calls itself: %s", start, path);
}

static int64_t function_expand(Import *im, FunctionInfo *info, const CallChain *up) {
    if (info->state == FN_DONE)
        return info->expanded;
    CallChain here = {up, info, up ? up->depth + 1 : 1};
    if (info->state == FN_OPEN) {
        report_recursion(im, info, up);
        return -1;
    }
    if (here.depth > MAX_CALL_DEPTH) {
        diag_error(im->d, EXIT_RESOURCE, "function calls nest deeper than %d", MAX_CALL_DEPTH);
        return -1;
    }
    info->state = FN_OPEN;
    info->expanded = expand_nodes(im, info->proto->node, info->proto->n_node, &here);
    info->state = FN_DONE;
    return info->expanded;
}

static void check_expansion(Import *im) {
    const Onnx__GraphProto *g = im->model->graph;
    int64_t n = expand_nodes(im, g->node, g->n_node, NULL);
    if (n > onnx_max_nodes(im->limits))
        diag_error(im->d, EXIT_RESOURCE,
                   "inlining the model's functions gives %lld nodes; at most %lld are accepted "
                   "(--max-nodes raises it)",
                   (long long)n, (long long)onnx_max_nodes(im->limits));
}

/* ---- names ---- */

typedef struct Names {
    StrMap defined, produced; /* produced: every output of the graph's nodes -> index + 1 */
    const struct Names *parent;
    const char *where;
    Onnx__NodeProto **nodes;
    size_t nnodes;
    bool order_reported;
} Names;

static void check_graph_names(Import *im, const Onnx__GraphProto *g, const Names *parent,
                              const char *where);

static bool names_visible(const Names *s, const char *name) {
    for (; s; s = s->parent)
        if (strmap_get(&s->defined, name))
            return true;
    return false;
}

static void define(Import *im, Names *s, const char *name, const char *what) {
    if (names_visible(s, name))
        diag_error(im->d, EXIT_MODEL, "\"%s\" is defined more than once (again as %s of %s)",
                   diag_safe(im->d, name), what, s->where);
    else
        strmap_put(&s->defined, name, s);
}

/* A cycle among the nodes of s, as text; NULL if there is none. Depth first with a stack of its
 * own. */
static const char *find_cycle(Import *im, const Names *s, size_t *order) {
    char *state = xcalloc(s->nnodes + 1, 1);
    size_t *stack = xcalloc(s->nnodes + 1, sizeof *stack),
           *edge = xcalloc(s->nnodes + 1, sizeof *edge);
    size_t done = 0;
    const char *cycle = NULL;
    for (size_t root = 0; root < s->nnodes && !cycle; root++) {
        size_t depth = 0;
        if (!state[root])
            stack[depth] = root, edge[depth++] = 0, state[root] = 1;
        while (depth && !cycle) {
            size_t at = stack[depth - 1];
            const Onnx__NodeProto *n = s->nodes[at];
            if (edge[depth - 1] == n->n_input) {
                state[at] = 2;
                if (order)
                    order[done] = at;
                done++, depth--;
                continue;
            }
            uintptr_t from = (uintptr_t)strmap_get(&s->produced, n->input[edge[depth - 1]++]);
            if (!from || state[from - 1] == 2)
                continue;
            if (!state[from - 1]) {
                stack[depth] = from - 1, edge[depth++] = 0, state[from - 1] = 1;
                continue;
            }
            cycle = arena_printf(&im->scratch, "\"%s\"",
                                 diag_safe(im->d, node_label(s->nodes[from - 1])));
            for (size_t k = depth; k-- > 0;) {
                cycle = arena_printf(&im->scratch, "\"%s\" -> %s",
                                     diag_safe(im->d, node_label(s->nodes[stack[k]])), cycle);
                if (stack[k] == from - 1 || depth - k > 8)
                    break;
            }
        }
    }
    free(state), free(stack), free(edge);
    return cycle;
}

static void report_missing(Import *im, Names *s, const Onnx__NodeProto *n, const char *name) {
    const char *shown = diag_safe(im->d, name);
    for (Names *at = s; at; at = (Names *)(uintptr_t)at->parent) {
        if (!strmap_get(&at->produced, name))
            continue;
        if (!at->order_reported) {
            const char *cycle = find_cycle(im, at, NULL);
            if (cycle)
                diag_error(im->d, EXIT_MODEL, "the nodes of %s form a cycle: %s", at->where, cycle);
            else
                diag_error(
                    im->d, EXIT_MODEL,
                    "the nodes of %s are not in topological order: \"%s\" is used before it is "
                    "defined (--sort accepts that)",
                    at->where, shown);
            diag_more(im->d, "node \"%s\" (%s)", diag_safe(im->d, node_label(n)),
                      diag_safe(im->d, n->op_type));
        }
        at->order_reported = true;
        return;
    }
    diag_error(im->d, EXIT_MODEL, "\"%s\" is used but never defined", shown);
    diag_more(im->d, "node \"%s\" (%s) of %s", diag_safe(im->d, node_label(n)),
              diag_safe(im->d, n->op_type), s->where);
}

static void check_node_names(Import *im, Names *s, const Onnx__NodeProto *n) {
    for (size_t i = 0; i < n->n_input && !enough(im); i++)
        if (*n->input[i] && !names_visible(s, n->input[i]))
            report_missing(im, s, n, n->input[i]);
    for (size_t a = 0; a < n->n_attribute && !enough(im); a++) {
        const Onnx__AttributeProto *at = n->attribute[a];
        if (!at->g && !at->n_graphs)
            continue;
        const char *where =
            arena_printf(&im->scratch, "\"%s\" of node \"%s\"",
                         diag_safe(im->d, text_or(at->name, "")), diag_safe(im->d, node_label(n)));
        if (at->g)
            check_graph_names(im, at->g, s, where);
        for (size_t k = 0; k < at->n_graphs; k++)
            check_graph_names(im, at->graphs[k], s, where);
    }
    for (size_t i = 0; i < n->n_output && !enough(im); i++)
        if (*n->output[i])
            define(im, s, n->output[i], "an output of a node");
}

static void check_node_list(Import *im, Names *s) {
    for (size_t i = 0; i < s->nnodes; i++)
        for (size_t k = 0; k < s->nodes[i]->n_output; k++)
            if (*s->nodes[i]->output[k])
                strmap_put(&s->produced, s->nodes[i]->output[k], (void *)(uintptr_t)(i + 1));
    if (im->limits && im->limits->sort) { /* in place: the order of the list is all that changes */
        size_t *order = xcalloc(s->nnodes + 1, sizeof *order);
        if (!find_cycle(im, s, order)) {
            Onnx__NodeProto **sorted = xcalloc(s->nnodes + 1, sizeof *sorted);
            for (size_t i = 0; i < s->nnodes; i++)
                sorted[i] = s->nodes[order[i]];
            if (s->nnodes)
                memcpy(s->nodes, sorted, sizeof *sorted * s->nnodes);
            free(sorted);
        }
        free(order);
    }
    for (size_t i = 0; i < s->nnodes && !enough(im); i++)
        check_node_names(im, s, s->nodes[i]);
}

static void names_free(Names *s) {
    strmap_free(&s->defined);
    strmap_free(&s->produced);
}

static void check_graph_names(Import *im, const Onnx__GraphProto *g, const Names *parent,
                              const char *where) {
    Names s = {.parent = parent, .where = where, .nodes = g->node, .nnodes = g->n_node};
    StrMap initializers = {0}, outputs = {0};
    for (size_t i = 0; i < g->n_input && !enough(im); i++) {
        if (!*text_or(g->input[i]->name, ""))
            diag_error(im->d, EXIT_MODEL, "input %zu of %s has no name", i, where);
        else
            define(im, &s, g->input[i]->name, "an input");
    }
    for (size_t i = 0; i < g->n_initializer && !enough(im); i++) {
        const char *name = text_or(g->initializer[i]->name, "");
        if (!*name)
            diag_error(im->d, EXIT_MODEL, "initializer %zu of %s has no name", i, where);
        else if (!strmap_put(&initializers, name, &s))
            diag_error(im->d, EXIT_MODEL, "initializer \"%s\" is given twice in %s",
                       diag_safe(im->d, name), where);
        else if (!strmap_get(&s.defined, name)) /* an input of that name takes it as its default */
            define(im, &s, name, "an initializer");
    }
    if (g->n_sparse_initializer)
        diag_error(im->d, EXIT_MODEL, "%s has %zu sparse initializers, which are not supported",
                   where, g->n_sparse_initializer);
    check_node_list(im, &s);
    for (size_t i = 0; i < g->n_output && !enough(im); i++) {
        const char *name = text_or(g->output[i]->name, "");
        if (!names_visible(&s, name))
            diag_error(im->d, EXIT_MODEL, "output \"%s\" of %s is never defined",
                       diag_safe(im->d, name), where);
        else if (!parent && !strmap_put(&outputs, name, &s))
            diag_error(im->d, EXIT_MODEL, "output \"%s\" is given twice in %s",
                       diag_safe(im->d, name), where);
    }
    strmap_free(&outputs);
    strmap_free(&initializers);
    names_free(&s);
}

static void check_function_names(Import *im, const FunctionInfo *info) {
    const Onnx__FunctionProto *f = info->proto;
    Names s = {.nodes = f->node, .nnodes = f->n_node};
    s.where = arena_printf(&im->scratch, "function \"%s\"", diag_safe(im->d, text_or(f->name, "")));
    for (size_t i = 0; i < f->n_input && !enough(im); i++)
        define(im, &s, f->input[i], "an input");
    check_node_list(im, &s);
    for (size_t i = 0; i < f->n_output && !enough(im); i++)
        if (!names_visible(&s, f->output[i]))
            diag_error(im->d, EXIT_MODEL, "output \"%s\" of %s is never defined",
                       diag_safe(im->d, f->output[i]), s.where);
    names_free(&s);
}

FunctionInfo *function_of(const Import *im, const Onnx__FunctionProto *f) {
    return strmap_get(&im->functions,
                      function_key((Import *)(uintptr_t)im, f->domain, f->name, f->overload));
}

bool onnx_check_model(Import *im) {
    const Onnx__ModelProto *m = im->model;
    Diag *d = im->d;
    int before = d->errors;
    if (!m->has_ir_version || m->ir_version < IR_OLDEST || m->ir_version > IR_NEWEST)
        diag_error(d, EXIT_MODEL, "IR version %lld is not supported: %d to %d are",
                   (long long)m->ir_version, IR_OLDEST, IR_NEWEST);
    if (!m->n_opset_import)
        diag_error(d, EXIT_MODEL, "the model imports no opset (opset_import is missing)");
    opsets_read(im, m->opset_import, m->n_opset_import, &im->opsets, "the model");
    if (!m->graph) {
        diag_error(d, EXIT_MODEL, "the model has no graph");
        return false;
    }
    if (m->n_training_info)
        diag_warning(d, "training_info is ignored: only the inference graph is read");
    functions_index(im);
    if (d->errors > before)
        return false;
    check_expansion(im);
    if (d->errors > before) /* the walks below would follow the same calls */
        return false;
    if (!m->graph->n_output)
        diag_error(d, EXIT_MODEL, "the graph has no outputs");
    check_graph_names(im, m->graph, NULL, "the graph");
    for (size_t i = 0; i < m->n_functions && !enough(im); i++) {
        const Onnx__FunctionProto *f = m->functions[i];
        check_function_names(
            im, strmap_get(&im->functions, function_key(im, f->domain, f->name, f->overload)));
    }
    bool sound = d->errors == before;
    return onnx_check_operators(im) <= 1000 && sound;
}
