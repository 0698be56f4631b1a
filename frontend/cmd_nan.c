/* cmd_nan.c: where a value that is no number came from. See cmd_nan.h.
 *
 * The step is evaluated again by the reference evaluator, rounding like the compiled one, and
 * followed back from the value that is no number: through operands that are NaN to the node that
 * made NaN of none; from there through infinite operands to the node that made infinity of finite
 * ones. The minus infinities of masks are meant, and so are not followed. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "frontend/cmd_nan.h"
#include "ir/eval.h"

typedef enum { ALL_FINITE, HAS_MINUS, HAS_INF, HAS_NAN } Badness;

static Badness badness(const RTensor *r) {
    Badness worst = ALL_FINITE;
    for (int64_t i = 0; r && dtype_is_float(r->dtype) && i < r->count; i++) {
        Badness b = isnan(r->f[i])    ? HAS_NAN
                    : !isinf(r->f[i]) ? ALL_FINITE
                    : r->f[i] > 0     ? HAS_INF
                                      : HAS_MINUS;
        worst = b > worst ? b : worst;
    }
    return worst;
}

/* The operand of n that is bad enough; NULL: none. */
static Value *bad_operand(const Eval *ev, const Node *n, Badness at_least) {
    for (int i = 0; i < n->nin; i++)
        if (n->in[i] && badness(ev->values[n->in[i]->id]) >= at_least)
            return n->in[i];
    return NULL;
}

/* The node that v's NaN or infinity comes from. */
static const Node *origin(const Eval *ev, Value *v) {
    Badness b = badness(ev->values[v->id]);
    for (Value *o; b >= HAS_INF && (o = bad_operand(ev, v->def, b)); v = o)
        ;
    const Node *made = v->def;
    for (Value *o = v; (o = bad_operand(ev, o->def, HAS_INF));)
        if (o->def->op != OP_CONST)
            made = o->def;
    return made;
}

static void set_known(Eval *ev, Graph *g, const NanStep *s) {
    const EngineSlot *slots;
    int n = engine_slots(s->engine, &slots);
    FOR_NODES(m, g) {
        const Tensor *t = NULL;
        const char *name = m->op == OP_INPUT   ? node_str(m, AT_NAME, "")
                           : m->op == OP_PARAM ? param_name(m->out[0])
                                               : "";
        for (int i = 0; m->op == OP_PARAM && i < n; i++)
            if (!strcmp(slots[i].name, name))
                t = &slots[i].tensor;
        if (m->op == OP_INPUT)
            t = !strcmp(name, "hyper") ? s->hyper : arrays_find(s->inputs, name);
        if (t && t->data)
            ev->values[m->out[0]->id] = rtensor_from(ev->arena, t);
    }
}

/* The values to follow back: a parameter's update, or the losses. */
static int starts(const Graph *g, const char *param, Value **at, int most) {
    int n = 0;
    for (int i = 0; param && i < g->updates.n && n < most; i++)
        if (!strcmp(param_name(g->updates.at[i].param), param))
            at[n++] = g->updates.at[i].value;
    for (int i = 0; !param && i < g->outputs.n && n < most; i++)
        if (!strncmp(g->outputs.at[i].name, "loss/", 5))
            at[n++] = g->outputs.at[i].value;
    return n;
}

NanOrigin nan_origin(const NanStep *s, const char *param, Arena *a) {
    Arena arena = {0};
    Diag d = {0};
    int64_t memory = (int64_t)sysconf(_SC_PHYS_PAGES) / 2 * sysconf(_SC_PAGESIZE);
    Eval ev = {.arena = &arena,
               .round = true,
               .diag = &d,
               .mem_limit = s->mem_limit ? s->mem_limit : memory,
               .values = xcalloc((size_t)s->graph->next_value, sizeof(RTensor *))};
    Value *from[16];
    NanOrigin out = {0};
    int n = starts(s->graph, param, from, COUNT_OF(from));
    set_known(&ev, s->graph, s);
    bool ok = n > 0 && eval_graph(&ev, s->graph, from, n);
    for (int i = 0; ok && i < n && !out.text; i++) {
        if (badness(ev.values[from[i]->id]) == ALL_FINITE)
            continue;
        const Node *m = origin(&ev, from[i]);
        const char *what = badness(ev.values[m->out[0]->id]) == HAS_NAN ? "NaN" : "an infinity";
        if (m->op == OP_PARAM) {
            out.param = arena_strdup(a, param_name(m->out[0]));
            out.text =
                arena_printf(a, "parameter \"%s\" holds %s", diag_safe(&d, out.param),
                             badness(ev.values[m->out[0]->id]) == HAS_NAN ? "NaN" : "infinities");
        } else if (m->op == OP_INPUT) {
            out.text = arena_printf(a, "input \"%s\" holds %s",
                                    diag_safe(&d, node_str(m, AT_NAME, "")), what);
        } else if (m->op == OP_ADAMW || m->op == OP_SGD) {
            out.text = arena_strdup(a, "its gradient is finite, the optimizer's step is not");
        } else {
            out.text =
                arena_printf(a, "node \"%s\" (%s), whose operands are finite, gives %s",
                             diag_safe(&d, m->src->name), diag_safe(&d, m->src->op_type), what);
        }
    }
    free(ev.values);
    arena_free(&arena);
    diag_free(&d);
    return out;
}
