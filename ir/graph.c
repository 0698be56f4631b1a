/* graph.c: building and editing the Graph. See graph.h; the op builders are in build.c. */
#include "ir/graph.h"

#include <stdlib.h>
#include <string.h>

/* ---- tables ---- */

const OpInfo op_info[OP_COUNT] = {
#define OP(ID, name, lo, hi, nout, flags, infer, eval, grad, lower, emit) \
    {name, lo, hi, nout, flags},
#include "ir/ops.def"
#undef OP
};

const AttrInfo attr_info[AT_COUNT] = {
#define ATTR(ID, name, kind) {name, kind},
#include "ir/attrs.def"
#undef ATTR
};

Op op_parse(const char *mnemonic) {
    for (int i = 0; i < OP_COUNT; i++)
        if (!strcmp(op_info[i].name, mnemonic))
            return (Op)i;
    return OP_COUNT;
}

/* ---- graph ---- */

Graph *graph_new(const char *name) {
    Graph *g = xcalloc(1, sizeof *g);
    g->name = arena_strdup(&g->arena, name ? name : "");
    return g;
}

void graph_free(Graph *g) {
    if (!g)
        return;
    FOR_NODES(n, g) {
        for (int i = 0; i < n->nout; i++)
            vec_free(&n->out[i]->uses);
    }
    vec_free(&g->inputs);
    vec_free(&g->outputs);
    vec_free(&g->updates);
    vec_free(&g->symbols);
    arena_free(&g->arena);
    free(g);
}

const Source *graph_source(Graph *g, const char *name, const char *op_type) {
    Source *s = ARENA_NEW(&g->arena, Source);
    s->name = arena_strdup(&g->arena, name ? name : "");
    s->op_type = arena_strdup(&g->arena, op_type ? op_type : "");
    return s;
}

static void link_before(Graph *g, Node *n, Node *at) {
    n->next = at;
    n->prev = at ? at->prev : g->last;
    *(n->prev ? &n->prev->next : &g->first) = n;
    *(at ? &at->prev : &g->last) = n;
}

static void unlink_node(Node *n) {
    Graph *g = n->graph;
    *(n->prev ? &n->prev->next : &g->first) = n->next;
    *(n->next ? &n->next->prev : &g->last) = n->prev;
    n->prev = n->next = NULL;
}

static void use_add(Value *v, Node *n, int operand) {
    Use u = {n, operand};
    n->use_at[operand] = v->uses.n;
    vec_push(&v->uses, u);
}

/* The last use takes the place of the one that goes: no search, however many uses a shared constant
 * has. */
static void use_drop(Value *v, const Node *n, int operand) {
    int at = n->use_at[operand];
    if (at >= v->uses.n || v->uses.at[at].node != n || v->uses.at[at].operand != operand)
        bug("use of %%%d by %s not found", v->id, op_info[n->op].name);
    Use moved = v->uses.at[at] = v->uses.at[--v->uses.n];
    moved.node->use_at[moved.operand] = at;
}

static Value *value_new(Graph *g, Node *def, int index) {
    Value *v = ARENA_NEW(&g->arena, Value);
    v->id = g->next_value++;
    v->def = def;
    v->index = index;
    v->rank = -1;
    return v;
}

/* ---- builders ---- */

Builder builder_at_end(Graph *g, const Source *src) {
    return (Builder){g, NULL, src ? src : graph_source(g, "", "")};
}
Builder builder_before(Node *n) {
    return (Builder){n->graph, n, n->src};
}
Builder builder_after(Node *n) {
    return (Builder){n->graph, n->next, n->src};
}

Node *build_node(Builder *b, Op op, Value *const *in, int nin, int nout) {
    const OpInfo *info = &op_info[op];
    ASSERT(nin >= info->min_in && (info->max_in < 0 || nin <= info->max_in));
    ASSERT(!info->nout || info->nout == nout);
    Graph *g = b->g;
    Node *n = ARENA_NEW(&g->arena, Node);
    n->id = g->next_node++;
    n->op = op;
    n->graph = g;
    n->src = b->src;
    n->nin = nin;
    n->nout = nout;
    n->in = ARENA_ARRAY(&g->arena, Value *, nin);
    n->use_at = ARENA_ARRAY(&g->arena, int, nin);
    n->out = ARENA_ARRAY(&g->arena, Value *, nout);
    for (int i = 0; i < nin; i++)
        if ((n->in[i] = in[i]))
            use_add(in[i], n, i);
    for (int i = 0; i < nout; i++)
        n->out[i] = value_new(g, n, i);
    link_before(g, n, b->before);
    return n;
}

/* ---- attributes ---- */

static Attr *attr_slot(Node *n, AttrKey k, AttrKind kind) {
    ASSERT(attr_info[k].kind == kind);
    for (int i = 0; i < n->nattr; i++)
        if (n->attrs[i].key == k)
            return &n->attrs[i];
    Attr *grown = ARENA_ARRAY(&n->graph->arena, Attr, n->nattr + 1);
    int at = n->nattr;
    while (at > 0 &&
           n->attrs[at - 1].key > k) /* sorted by key: text and equality do not depend on order */
        at--;
    if (n->nattr) {
        memcpy(grown, n->attrs, sizeof *grown * (size_t)at);
        memcpy(grown + at + 1, n->attrs + at, sizeof *grown * (size_t)(n->nattr - at));
    }
    n->attrs = grown;
    n->nattr++;
    grown[at].key = k;
    return &grown[at];
}

void node_set_int(Node *n, AttrKey k, int64_t v) {
    attr_slot(n, k, ATTR_INT)->i = v;
}
void node_set_float(Node *n, AttrKey k, double v) {
    attr_slot(n, k, ATTR_FLOAT)->f = v;
}
void node_set_str(Node *n, AttrKey k, const char *s) {
    attr_slot(n, k, ATTR_STR)->s = arena_strdup(&n->graph->arena, s);
}
void node_set_tensor(Node *n, AttrKey k, Tensor *t) {
    attr_slot(n, k, ATTR_TENSOR)->t = t;
}
void node_set_ints(Node *n, AttrKey k, const int64_t *v, int count) {
    int64_t *copy =
        arena_copy(&n->graph->arena, v, sizeof *v * (size_t)count); /* v may be the old one */
    Attr *a = attr_slot(n, k, ATTR_INTS);
    a->ints.n = count;
    a->ints.at = copy;
}

void node_set_attrs(Node *n, const Attr *attrs, int nattrs) {
    for (int i = 0; i < nattrs; i++) {
        const Attr *a = &attrs[i];
        switch (attr_info[a->key].kind) {
        case ATTR_INT:
            node_set_int(n, a->key, a->i);
            break;
        case ATTR_FLOAT:
            node_set_float(n, a->key, a->f);
            break;
        case ATTR_INTS:
            node_set_ints(n, a->key, a->ints.at, a->ints.n);
            break;
        case ATTR_STR:
            node_set_str(n, a->key, a->s);
            break;
        case ATTR_TENSOR:
            node_set_tensor(n, a->key, a->t);
            break;
        }
    }
}

const Attr *node_attr(const Node *n, AttrKey k) {
    for (int i = 0; i < n->nattr; i++)
        if (n->attrs[i].key == k)
            return &n->attrs[i];
    return NULL;
}

int64_t node_int(const Node *n, AttrKey k, int64_t absent) {
    ASSERT(attr_info[k].kind == ATTR_INT);
    const Attr *a = node_attr(n, k);
    return a ? a->i : absent;
}
double node_float(const Node *n, AttrKey k, double absent) {
    ASSERT(attr_info[k].kind == ATTR_FLOAT);
    const Attr *a = node_attr(n, k);
    return a ? a->f : absent;
}
const char *node_str(const Node *n, AttrKey k, const char *absent) {
    ASSERT(attr_info[k].kind == ATTR_STR);
    const Attr *a = node_attr(n, k);
    return a ? a->s : absent;
}
int node_ints(const Node *n, AttrKey k, const int64_t **at) {
    ASSERT(attr_info[k].kind == ATTR_INTS);
    const Attr *a = node_attr(n, k);
    *at = a ? a->ints.at : NULL;
    return a ? a->ints.n : 0;
}

/* ---- editing ---- */

void node_set_in(Node *n, int i, Value *v) {
    if (n->in[i])
        use_drop(n->in[i], n, i);
    if ((n->in[i] = v))
        use_add(v, n, i);
}

void value_replace(Value *old, Value *with) {
    if (old == with)
        return;
    for (int i = 0; i < old->uses.n; i++) {
        Use u = old->uses.at[i];
        u.node->in[u.operand] = with;
        u.node->use_at[u.operand] = with->uses.n;
        vec_push(&with->uses, u);
    }
    old->uses.n = 0;
    Graph *g = old->def->graph;
    for (int i = 0; i < g->outputs.n; i++)
        if (g->outputs.at[i].value == old)
            g->outputs.at[i].value = with;
    for (int i = 0; i < g->updates.n; i++)
        if (g->updates.at[i].value == old)
            g->updates.at[i].value = with;
}

void node_remove(Node *n) {
    for (int i = 0; i < n->nin; i++)
        if (n->in[i])
            use_drop(n->in[i], n, i);
    for (int i = 0; i < n->nout; i++) {
        ASSERT(n->out[i]->uses.n == 0);
        vec_free(&n->out[i]->uses);
    }
    unlink_node(n);
}

void node_move_before(Node *n, Node *at) {
    if (n == at)
        return;
    unlink_node(n);
    link_before(n->graph, n, at);
}

void graph_add_output(Graph *g, const char *name, Value *v) {
    GraphOutput o = {arena_strdup(&g->arena, name), v};
    vec_push(&g->outputs, o);
}

void graph_add_update(Graph *g, Value *param, Value *v) {
    GraphUpdate u = {param, v};
    vec_push(&g->updates, u);
}

bool value_is_output(const Value *v) {
    const Graph *g = v->def->graph;
    for (int i = 0; i < g->outputs.n; i++)
        if (g->outputs.at[i].value == v)
            return true;
    for (int i = 0; i < g->updates.n; i++)
        if (g->updates.at[i].value == v)
            return true;
    return false;
}

/* Marks roots, then walks backwards over the list: users come later, so one sweep decides. */
bool graph_dce(Graph *g) {
    bool *live = xcalloc((size_t)g->next_value, 1), changed = false;
    for (int i = 0; i < g->outputs.n; i++)
        live[g->outputs.at[i].value->id] = true;
    for (int i = 0; i < g->updates.n; i++)
        live[g->updates.at[i].value->id] = live[g->updates.at[i].param->id] = true;
    for (Node *n = g->last, *prev; n; n = prev) {
        prev = n->prev;
        bool keep = op_info[n->op].flags & OPF_EFFECT;
        for (int i = 0; i < n->nout && !keep; i++)
            keep = live[n->out[i]->id];
        if (keep) {
            for (int i = 0; i < n->nin; i++)
                if (n->in[i])
                    live[n->in[i]->id] = true;
        } else {
            node_remove(n);
            changed = true;
        }
    }
    free(live);
    return changed;
}

/* Kahn's algorithm; among ready nodes the earlier one first (a node becomes ready when its last
 * operand is placed, and is placed at once in the order of the old list by a worklist of list
 * positions). */
bool graph_sort(Graph *g) {
    int *pending = xcalloc((size_t)g->next_node, sizeof *pending);
    VEC(Node *) ready = {0};
    int total = 0;
    FOR_NODES(n, g) {
        total++;
        for (int i = 0; i < n->nin; i++)
            pending[n->id] += n->in[i] != NULL;
        if (!pending[n->id])
            vec_push(&ready, n);
    }
    int placed = 0;
    for (; placed < ready.n; placed++) {
        const Node *n = ready.at[placed];
        for (int i = 0; i < n->nout; i++)
            for (int u = 0; u < n->out[i]->uses.n; u++) {
                Node *user = n->out[i]->uses.at[u].node;
                if (--pending[user->id] == 0)
                    vec_push(&ready, user);
            }
    }
    bool acyclic = placed == total;
    if (acyclic) {
        g->first = g->last = NULL;
        for (int i = 0; i < ready.n; i++)
            link_before(g, ready.at[i], NULL);
    }
    free(pending);
    vec_free(&ready);
    return acyclic;
}

enum { SHARED_FROM = 4096 };

static void clone_attrs(Node *to, const Node *from) {
    Arena *a = &to->graph->arena;
    to->nattr = from->nattr;
    to->attrs = ARENA_ARRAY(a, Attr, from->nattr);
    for (int i = 0; i < from->nattr; i++) {
        Attr *t = &to->attrs[i];
        *t = from->attrs[i];
        switch (attr_info[t->key].kind) {
        case ATTR_INTS:
            t->ints.at = arena_copy(a, t->ints.at, sizeof *t->ints.at * (size_t)t->ints.n);
            break;
        case ATTR_STR:
            t->s = arena_strdup(a, t->s);
            break;
        case ATTR_TENSOR: {
            Tensor *copy = ARENA_NEW(a, Tensor);
            *copy = *t->t;
            copy->data = tensor_bytes(t->t) >= SHARED_FROM
                             ? t->t->data
                             : arena_copy(a, t->t->data, tensor_bytes(t->t));
            t->t = copy;
            break;
        }
        default:
            break;
        }
    }
}

Graph *graph_clone(const Graph *g, Value **map) {
    Graph *c = graph_new(g->name);
    Value **to = map ? map : xcalloc((size_t)g->next_value, sizeof *to);
    for (int i = 0; i < g->symbols.n; i++)
        vec_push(&c->symbols, arena_strdup(&c->arena, g->symbols.at[i]));
    const Source *from_src = NULL, *src = NULL;
    FOR_NODES(n, g) {
        if (n->src != from_src || !src) {
            from_src = n->src;
            src = graph_source(c, from_src->name, from_src->op_type);
        }
        Builder b = builder_at_end(c, src);
        Value *in[64], **operands = n->nin <= 64 ? in : xcalloc((size_t)n->nin, sizeof *operands);
        for (int i = 0; i < n->nin; i++)
            operands[i] = n->in[i] ? to[n->in[i]->id] : NULL;
        Node *m = build_node(&b, n->op, operands, n->nin, n->nout);
        if (operands != in)
            free(operands);
        clone_attrs(m, n);
        for (int i = 0; i < n->nout; i++) {
            const Value *v = n->out[i];
            Value *w = m->out[i];
            w->dtype = v->dtype;
            w->rank = v->rank;
            memcpy(w->dims, v->dims, sizeof w->dims);
            w->name = v->name ? arena_strdup(&c->arena, v->name) : NULL;
            to[v->id] = w;
        }
    }
    for (int i = 0; i < g->inputs.n; i++)
        vec_push(&c->inputs, to[g->inputs.at[i]->id]);
    for (int i = 0; i < g->outputs.n; i++)
        graph_add_output(c, g->outputs.at[i].name, to[g->outputs.at[i].value->id]);
    for (int i = 0; i < g->updates.n; i++)
        graph_add_update(c, to[g->updates.at[i].param->id], to[g->updates.at[i].value->id]);
    if (!map)
        free(to);
    return c;
}

/* ---- symbols ---- */

int64_t graph_symbol(Graph *g, const char *name) {
    for (int i = 0; name && i < g->symbols.n; i++)
        if (!strcmp(g->symbols.at[i], name))
            return -(i + 1);
    const char *s =
        name ? arena_strdup(&g->arena, name) : arena_printf(&g->arena, "u%d", g->symbols.n);
    vec_push(&g->symbols, s);
    return -g->symbols.n;
}

const char *dim_name(const Graph *g, int64_t dim) {
    ASSERT(dim < 0 && -dim <= g->symbols.n);
    return g->symbols.at[-dim - 1];
}

void graph_bind(Graph *g, int64_t dim, int64_t size) {
    ASSERT(dim < 0 && size >= 0);
    FOR_NODES(n, g)
    for (int i = 0; i < n->nout; i++)
        for (int k = 0; k < n->out[i]->rank; k++)
            if (n->out[i]->dims[k] == dim)
                n->out[i]->dims[k] = size;
}

/* ---- questions ---- */

bool value_is_const(const Value *v) {
    return v->def->op == OP_CONST;
}
const Tensor *value_const(const Value *v) {
    const Attr *a = v->def->op == OP_CONST ? node_attr(v->def, AT_VALUE) : NULL;
    return a ? a->t : NULL;
}
bool value_is_param(const Value *v) {
    return v->def->op == OP_PARAM;
}
const char *param_name(const Value *param) {
    return node_str(param->def, AT_NAME, "");
}

bool value_known(const Value *v) {
    if (v->rank < 0)
        return false;
    for (int i = 0; i < v->rank; i++)
        if (v->dims[i] < 0)
            return false;
    return true;
}

int64_t value_count(const Value *v) {
    return v->rank < 0 ? -1 : dims_count(v->dims, v->rank);
}

bool same_dims(const Value *a, const Value *b) {
    return a->rank == b->rank &&
           (a->rank <= 0 || !memcmp(a->dims, b->dims, sizeof a->dims[0] * (size_t)a->rank));
}
