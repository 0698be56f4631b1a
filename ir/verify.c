/* verify.c: what must always hold of a Graph. See verify.h. */
#include "ir/verify.h"

#include <stdlib.h>
#include <string.h>

#include "ir/infer.h"

/* Reports the first fault as "node: what". */
typedef struct Check {
    char *message;
} Check;

static void complain(Check *c, const Node *n, const char *fmt, ...) PRINTF_LIKE(3, 4);
static void complain(Check *c, const Node *n, const char *fmt, ...) {
    if (c->message)
        return;
    size_t size;
    FILE *f = open_memstream(&c->message, &size);
    ASSERT(f);
    if (n)
        fprintf(f, "node %d %s (\"%s\" %s): ", n->id, op_info[n->op].name, n->src->name,
                n->src->op_type);
    va_list ap;
    va_start(ap, fmt);
    vfprintf(f, fmt, ap);
    va_end(ap);
    fclose(f);
}

static bool has_use(const Value *v, const Node *n, int operand) {
    for (int i = 0; i < v->uses.n; i++)
        if (v->uses.at[i].node == n && v->uses.at[i].operand == operand)
            return true;
    return false;
}

static void check_node(Check *c, const Node *n, const int *place, int here) {
    const OpInfo *info = &op_info[n->op];
    if (n->nin < info->min_in || (info->max_in >= 0 && n->nin > info->max_in))
        complain(c, n, "%d operands, the table says %d to %d", n->nin, info->min_in, info->max_in);
    if (info->nout && n->nout != info->nout)
        complain(c, n, "%d results, the table says %d", n->nout, info->nout);
    for (int i = 0; i < n->nin; i++) {
        const Value *v = n->in[i];
        if (!v)
            continue;
        if (v->def->graph != n->graph || place[v->def->id] < 0)
            complain(c, n, "operand %d is not in the graph", i);
        else if (place[v->def->id] >= here)
            complain(c, n, "operand %d is defined later", i);
        else if (v->uses.n < 64 &&
                 !has_use(v, n, i)) /* long use lists are counted instead, below */
            complain(c, n, "operand %d does not know this use", i);
    }
    for (int i = 0; i < n->nattr; i++)
        if (i && n->attrs[i - 1].key >= n->attrs[i].key)
            complain(c, n, "attributes out of order");
    for (int i = 0; i < n->nout; i++) {
        const Value *v = n->out[i];
        if (v->def != n || v->index != i)
            complain(c, n, "result %d does not point back", i);
        if (v->rank < 0 || v->rank > MAX_RANK || v->dtype == DT_NONE)
            complain(c, n, "result %d has no inferred type", i);
    }
}

/* Inference must give what stands there. Fresh symbols may differ by number. */
static void check_types(Check *c, Node *n) {
    if (op_info[n->op].flags & OPF_LEAF || c->message)
        return;
    DType dtype[16];
    int rank[16];
    int64_t dims[16][MAX_RANK];
    if (n->nout > 16)
        return;
    for (int i = 0; i < n->nout; i++) {
        dtype[i] = n->out[i]->dtype;
        rank[i] = n->out[i]->rank;
        memcpy(dims[i], n->out[i]->dims, sizeof dims[i]);
    }
    Diag d = {0};
    int symbols = n->graph->symbols.n;
    if (!node_infer(n, &d))
        complain(c, n, "inference refuses it: %s", d.messages.n ? d.messages.at[0].text : "?");
    for (int i = 0; i < n->nout; i++) {
        Value *v = n->out[i];
        if (v->dtype != dtype[i] || v->rank != rank[i])
            complain(c, n, "result %d is %s of rank %d, inference gives %s of rank %d", i,
                     dtype_name(dtype[i]), rank[i], dtype_name(v->dtype), v->rank);
        for (int k = 0; k < rank[i] && !c->message; k++)
            if (dims[i][k] != v->dims[k] && dims[i][k] >= 0 && v->dims[k] >= 0)
                complain(c, n, "result %d, axis %d is %lld, inference gives %lld", i, k,
                         (long long)dims[i][k], (long long)v->dims[k]);
        v->dtype = dtype[i];
        v->rank = rank[i];
        memcpy(v->dims, dims[i], sizeof dims[i]);
    }
    n->graph->symbols.n = symbols; /* forget the fresh ones made just now */
    diag_free(&d);
}

static void check_names(Check *c, const Graph *g) {
    StrMap seen = {0}, outputs = {0};
    FOR_NODES(n, g) {
        if (n->op != OP_PARAM && n->op != OP_INPUT)
            continue;
        const char *name = node_str(n, AT_NAME, NULL);
        if (!name)
            complain(c, n, "has no name");
        else if (!strmap_put(&seen, name, n))
            complain(c, n, "name \"%s\" is taken", name);
    }
    for (int i = 0; i < g->outputs.n; i++)
        if (!strmap_put(&outputs, g->outputs.at[i].name, g->outputs.at[i].value))
            complain(c, NULL, "two outputs are named \"%s\"", g->outputs.at[i].name);
    strmap_free(&seen);
    strmap_free(&outputs);
}

char *graph_check(Graph *g) {
    Check c = {0};
    int *place = xcalloc((size_t)g->next_node, sizeof *place), here = 0;
    int64_t operands = 0, uses = 0;
    memset(place, 0xff, sizeof *place * (size_t)g->next_node);
    const Node *prev = NULL;
    FOR_NODES(n, g) {
        if (n->prev != prev)
            complain(&c, n, "list links are broken");
        prev = n;
        place[n->id] = here++;
    }
    if (g->last != prev)
        complain(&c, NULL, "the list does not end at its last node");
    FOR_NODES(n, g) {
        check_node(&c, n, place, place[n->id]);
        for (int i = 0; i < n->nin; i++)
            operands += n->in[i] != NULL;
        for (int i = 0; i < n->nout; i++)
            uses += n->out[i]->uses.n;
    }
    if (operands != uses)
        complain(&c, NULL, "%lld operands but %lld uses", (long long)operands, (long long)uses);
    for (Node *n = g->first; n && !c.message; n = n->next)
        check_types(&c, n);
    check_names(&c, g);
    for (int i = 0; i < g->outputs.n; i++)
        if (place[g->outputs.at[i].value->def->id] < 0)
            complain(&c, NULL, "output \"%s\" is not in the graph", g->outputs.at[i].name);
    for (int i = 0; i < g->updates.n; i++) {
        const GraphUpdate *u = &g->updates.at[i];
        if (u->param->def->op != OP_PARAM)
            complain(&c, u->param->def, "is updated but no param");
        else if (u->param->dtype != u->value->dtype || !same_dims(u->param, u->value))
            complain(&c, u->param->def, "is updated by a value of another shape");
    }
    free(place);
    return c.message;
}

void graph_verify(Graph *g, const char *after_pass) {
    char *message = graph_check(g);
    if (message)
        bug("after %s: %s", after_pass, message);
}
