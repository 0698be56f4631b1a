/* differentiate.c: reverse-mode differentiation of a Graph by one backward walk.
 *
 * What: from seeds (value, cotangent) to wants (usually parameters): every node between them, taken
 * last to first, hands the cotangents of its results to its operands by the rule its row in ops.def
 * names (grad_*.c). A value used several times sums its cotangents in the order they arrive, so the
 * result is deterministic. Needs: an inferred graph, dims known on the paths walked. Gives:
 * backward nodes at the end of the list; each carries the source of the forward node it came from.
 * The pass itself seeds the objective with 1 and names the results grad/PARAM. Breaks: nothing;
 * forward nodes are untouched. */
#include "passes/grad.h"

#include <stdlib.h>
#include <string.h>

typedef void (*GradRule)(Grad *G, Node *n, Value *const *dout);
static const GradRule rules[OP_COUNT] = {
#define OP(ID, m, a, b, c, f, infer, eval, grad, lower, emit) [OP_##ID] = grad_##grad,
#include "ir/ops.def"
#undef OP
};

/* No gradient exists and none is owed: integers, comparisons, decisions. */
void grad_none(Grad *G, Node *n, Value *const *dout) {
    (void)G, (void)n, (void)dout;
}

/* A gradient asked for in vain; grad_run reports such nodes before it walks, so that no rule ever
 * meets one. */
void grad_never(Grad *G, Node *n, Value *const *dout) {
    (void)dout;
    G->failed = n;
}

bool grad_flows(const Node *n) {
    if (n->op == OP_SIGN) /* flat, unless the model trains through it */
        return node_attr(n, AT_MODE) != NULL;
    return rules[n->op] != grad_none;
}

bool grad_supported(const Node *n) {
    if (rules[n->op] == grad_never)
        return false;
    if (n->op == OP_SCATTER_ELEMENTS || n->op == OP_SCATTER_ND) {
        const char *r = node_str(n, AT_REDUCTION, "none");
        return !strcmp(r, "none") || !strcmp(r, "add");
    }
    return true;
}

bool grad_needs(const Grad *G, const Value *v) {
    return v && G->needed[v->id];
}

void grad_add(Grad *G, Value *v, Value *cotangent) {
    if (!grad_needs(G, v))
        return;
    if (!same_dims(v, cotangent))
        bug("cotangent of %%%d (%s) has another shape than its value", v->id,
            op_info[v->def->op].name);
    cotangent = op_cast(&G->b, cotangent, v->dtype);
    Value *old = G->sum[v->id];
    G->sum[v->id] = old ? op_binary(&G->b, OP_ADD, old, cotangent) : cotangent;
}

Value *grad_unbroadcast(Grad *G, Value *c, const Value *like) {
    if (same_dims(c, like))
        return c;
    int64_t axes[MAX_RANK];
    int n = 0, lead = c->rank - like->rank;
    for (int i = 0; i < c->rank; i++)
        if (i < lead || (like->dims[i - lead] == 1 && c->dims[i] != 1))
            axes[n++] = i;
    if (n)
        c = op_reduce(&G->b, OP_REDUCE_SUM, c, axes, n, true);
    return g_reshape(G, c, like);
}

void grad_reach(const Graph *g, Value *const *from, int nfrom, bool *reached) {
    for (int i = 0; i < nfrom; i++)
        if (from[i] && dtype_is_float(from[i]->dtype))
            reached[from[i]->id] = true;
    for (Node *n = g->last; n; n = n->prev) {
        bool any = false;
        for (int i = 0; i < n->nout; i++)
            any |= reached[n->out[i]->id];
        if (!any || !grad_flows(n))
            continue;
        for (int i = 0; i < n->nin; i++)
            if (n->in[i] && dtype_is_float(n->in[i]->dtype))
                reached[n->in[i]->id] = true;
    }
}

/* needed[id]: a gradient path leads from a want to the value. */
static void mark_needed(const Graph *g, Value *const *wants, int nwants, bool *needed) {
    for (int i = 0; i < nwants; i++)
        needed[wants[i]->id] = true;
    FOR_NODES(n, g) {
        if (!grad_flows(n))
            continue;
        bool any = false;
        for (int i = 0; i < n->nin; i++)
            any |= n->in[i] && needed[n->in[i]->id];
        for (int i = 0; any && i < n->nout; i++)
            needed[n->out[i]->id] |= dtype_is_float(n->out[i]->dtype);
    }
}

/* The first want that v's gradient serves, and how many there are. */
static const Value *wants_behind(const Graph *g, const Value *v, Value *const *wants, int nwants,
                                 int *count) {
    bool *seen = xcalloc((size_t)g->next_value, 1);
    grad_reach(g, (Value *const *)&v, 1, seen);
    const Value *first = NULL;
    *count = 0;
    for (int i = 0; i < nwants; i++)
        if (seen[wants[i]->id]) {
            first = first ? first : wants[i];
            ++*count;
        }
    free(seen);
    return first;
}

/* "layers.3.moe.gate.weight" -> "layers.3.*": the narrowest glob a user would freeze. */
static const char *freeze_glob(Diag *d, const char *name) {
    for (const char *p = name; (p = strchr(p, '.')); p++) {
        size_t digits = strspn(p + 1, "0123456789");
        if (digits && p[1 + digits] == '.')
            return arena_printf(&d->arena, "%.*s.*", (int)(p + 1 + digits - name), name);
    }
    return name;
}

static const char *type_text(const Graph *g, const Value *v, char *buf, size_t size) {
    size_t at = (size_t)snprintf(buf, size, "%s[", dtype_name(v->dtype));
    for (int i = 0; i < v->rank && at < size; i++) {
        if (v->dims[i] >= 0)
            at += (size_t)snprintf(buf + at, size - at, "%s%lld", i ? "," : "",
                                   (long long)v->dims[i]);
        else
            at += (size_t)snprintf(buf + at, size - at, "%s%s", i ? "," : "",
                                   dim_name(g, v->dims[i]));
    }
    if (at < size)
        snprintf(buf + at, size - at, "]");
    return buf;
}

static void report(const Graph *g, const Node *n, const bool *needed, Value *const *wants,
                   int nwants, Diag *d, const char *what) {
    const Value *operand = NULL;
    for (int i = 0; i < n->nin && !operand; i++)
        if (n->in[i] && needed[n->in[i]->id])
            operand = n->in[i];
    char type[160];
    const char *op_type = n->src && *n->src->op_type ? n->src->op_type : op_info[n->op].name;
    diag_error(d, EXIT_MODEL, "%s '%s'", what, diag_safe(d, op_type));
    if (!operand)
        return;
    const char *oname = operand->name       ? operand->name
                        : operand->def->src ? operand->def->src->name
                                            : "";
    diag_more(d, "node \"%s\", operand \"%s\" %s", diag_safe(d, n->src ? n->src->name : ""),
              diag_safe(d, oname), type_text(g, operand, type, sizeof type));
    int count;
    const Value *w = wants_behind(g, operand, wants, nwants, &count);
    if (!w || !value_is_param(w))
        return;
    if (count > 1)
        diag_more(d, "needed for parameter \"%s\" (and %d more); try: --freeze '%s'",
                  diag_safe(d, param_name(w)), count - 1,
                  diag_safe(d, freeze_glob(d, param_name(w))));
    else
        diag_more(d, "needed for parameter \"%s\"; try: --freeze '%s'", diag_safe(d, param_name(w)),
                  diag_safe(d, param_name(w)));
}

/* Every node on a path that no rule serves, or whose sizes only data decide, is reported before
 * anything is emitted. */
static bool check_paths(const Graph *g, const Seed *seeds, int nseeds, const bool *needed,
                        const bool *stopped, Value *const *wants, int nwants, Diag *d) {
    bool *on = xcalloc((size_t)g->next_value, 1), ok = true;
    for (int i = 0; i < nseeds; i++)
        on[seeds[i].value->id] = true;
    for (Node *n = g->last; n; n = n->prev) {
        bool any = false, known = true;
        for (int i = 0; i < n->nout; i++)
            any |= on[n->out[i]->id] && needed[n->out[i]->id] && !stopped[n->out[i]->id];
        if (!any || !grad_flows(n))
            continue;
        for (int i = 0; i < n->nin; i++)
            if (n->in[i] && needed[n->in[i]->id]) {
                on[n->in[i]->id] = true;
                known &= value_known(n->in[i]);
            }
        for (int i = 0; i < n->nout; i++)
            known &= !on[n->out[i]->id] || value_known(n->out[i]);
        if (!grad_supported(n)) {
            report(g, n, needed, wants, nwants, d, "no gradient rule for");
            ok = false;
        } else if (!known) {
            report(g, n, needed, wants, nwants, d,
                   "no gradient through a size that only data decide, in");
            ok = false;
        }
    }
    free(on);
    return ok;
}

/* Hands node n's cotangents to its operands, if any arrived. */
static void step_back(Grad *G, Node *n, const bool *stopped) {
    Value *one[2] = {NULL, NULL};
    Value **dout = n->nout <= 2 ? one : xcalloc((size_t)n->nout, sizeof *dout);
    bool any = false;
    for (int i = 0; i < n->nout; i++) {
        Value *v = n->out[i];
        dout[i] = stopped[v->id] || !G->needed[v->id] ? NULL : G->sum[v->id];
        any |= dout[i] != NULL;
    }
    if (any) {
        G->b = builder_at_end(G->g, n->src);
        rules[n->op](G, n, dout);
    }
    if (dout != one)
        free(dout);
}

bool grad_run(Graph *g, const Seed *seeds, int nseeds, Value *const *wants, int nwants,
              Value *const *stop, int nstop, Cotangents *out, Diag *d) {
    int n = g->next_value;
    bool *needed = xcalloc((size_t)n + 1, 1), *stopped = xcalloc((size_t)n + 1, 1);
    *out = (Cotangents){.of = xcalloc((size_t)n + 1, sizeof(Value *)), .n = n};
    mark_needed(g, wants, nwants, needed);
    for (int i = 0; i < nstop; i++)
        stopped[stop[i]->id] = true;
    bool ok = check_paths(g, seeds, nseeds, needed, stopped, wants, nwants, d);
    if (ok) {
        Grad G = {.g = g, .diag = d, .sum = out->of, .needed = needed};
        Node *last = g->last;
        for (int i = 0; i < nseeds; i++) {
            G.b = builder_at_end(g, seeds[i].value->def->src);
            grad_add(&G, seeds[i].value, seeds[i].cotangent);
        }
        for (Node *at = last; at; at = at->prev)
            step_back(&G, at, stopped);
        if (G.failed)
            bug("the rule of '%s' failed after its check passed", op_info[G.failed->op].name);
    }
    free(needed);
    free(stopped);
    return ok;
}

void cotangents_free(Cotangents *c) {
    free(c->of);
    *c = (Cotangents){0};
}

/* ---- the pass ---- */

Value *graph_output_named(const Graph *g, const char *name) {
    for (int i = 0; i < g->outputs.n; i++)
        if (!strcmp(g->outputs.at[i].name, name))
            return g->outputs.at[i].value;
    return NULL;
}

bool pass_differentiate(Compile *c) {
    Graph *g = c->g;
    Value *objective = graph_output_named(g, "objective");
    if (!objective) {
        diag_error(c->diag, EXIT_USAGE,
                   "differentiate needs an objective: do not skip attach_loss");
        return false;
    }
    VEC(Value *) wants = {0};
    FOR_NODES(n, g)
    if (n->op == OP_PARAM && node_int(n, AT_KIND, PARAM_WEIGHT) == PARAM_WEIGHT)
        vec_push(&wants, n->out[0]);
    c->forward_nodes = g->next_node;
    Builder b = builder_at_end(g, graph_source(g, "", "loss"));
    Seed seed = {objective, op_const_f(&b, objective->dtype, 1)};
    cotangents_free(&c->cotangents);
    bool ok = grad_run(g, &seed, 1, wants.at, wants.n, NULL, 0, &c->cotangents, c->diag);
    for (int i = 0; ok && i < wants.n; i++) {
        Value *w = wants.at[i], *dw = c->cotangents.of[w->id];
        b = builder_at_end(g, w->def->src);
        if (!dw)
            dw = op_full(&b, w->dtype, 0, w->rank, w->dims);
        graph_add_output(g, arena_printf(&g->arena, "grad/%s", param_name(w)), dw);
    }
    vec_free(&wants);
    return ok;
}
