/* raise_route.c: selections, what depends on them, and the router's logits. */
#include <stdlib.h>
#include <string.h>

#include "passes/canonicalise.h"
#include "passes/raise.h"

/* ---- candidates ---- */

static int64_t last_dim(const Value *v) {
    return v->rank > 0 ? v->dims[v->rank - 1] : -1;
}

static bool axis_is_last(const Node *n) {
    int rank = n->in[0]->rank;
    int64_t axis = node_int(n, AT_AXIS, -1);
    return rank > 0 && (axis < 0 ? axis + rank : axis) == rank - 1;
}

/* The argmax behind a reshape or cast. */
static Node *argmax_behind(Value *v) {
    while (v->def->op == OP_RESHAPE || v->def->op == OP_CAST)
        v = v->def->in[0];
    Node *n = v->def;
    return n->op == OP_ARGMAX && axis_is_last(n) && dtype_is_float(n->in[0]->dtype) ? n : NULL;
}

static void consider_topk(Node *n, Selections *out) {
    Value *scores = n->in[0], *idx = n->out[1];
    if (!axis_is_last(n) || !node_int(n, AT_LARGEST, 1) || !dtype_is_float(scores->dtype) ||
        !idx->uses.n || !value_known(idx) || !value_known(scores))
        return;
    Selection s = {.value = idx,
                   .node = n,
                   .scores = scores,
                   .E = (int)last_dim(scores),
                   .K = (int)last_dim(idx)};
    if (s.E < 2 || s.K < 1 || last_dim(scores) > 65536)
        return;
    s.T = value_count(idx) / s.K;
    vec_push(out, s);
}

static void consider_argmax(Node *n, Selections *out) {
    if (!axis_is_last(n) || !dtype_is_float(n->in[0]->dtype) || !value_known(n->in[0]) ||
        !node_int(n, AT_LARGEST, 1))
        return;
    Selection s = {
        .value = n->out[0], .node = n, .scores = n->in[0], .E = (int)last_dim(n->in[0]), .K = 1};
    if (s.E < 2 || last_dim(n->in[0]) > 65536)
        return;
    s.T = value_count(n->out[0]);
    vec_push(out, s);
}

/* Several argmaxes side by side are one selection of K experts. */
static void consider_concat(Node *n, Selections *out) {
    Value *v = n->out[0];
    if (dtype_is_float(v->dtype) || v->rank < 1 || !value_known(v) || n->nin < 2 ||
        !axis_is_last(n))
        return;
    Node *first = argmax_behind(n->in[0]);
    if (!first || !value_known(first->in[0]))
        return;
    for (int i = 0; i < n->nin; i++) {
        const Node *a = argmax_behind(n->in[i]);
        if (!a || last_dim(a->in[0]) != last_dim(first->in[0]) || last_dim(n->in[i]) != 1)
            return;
    }
    Selection s = {.value = v,
                   .node = first,
                   .scores = first->in[0],
                   .E = (int)last_dim(first->in[0]),
                   .K = n->nin};
    if (s.E < 2 || s.K > s.E)
        return;
    s.T = value_count(v) / s.K;
    vec_push(out, s);
}

void selections_find(Graph *g, Selections *out) {
    FOR_NODES(n, g) {
        if (n->op == OP_TOPK)
            consider_topk(n, out);
        else if (n->op == OP_ARGMAX)
            consider_argmax(n, out);
        else if (n->op == OP_CONCAT)
            consider_concat(n, out);
    }
}

/* ---- facts ---- */

static void mark_before(const Selection *s, Facts *f) {
    VEC(Value *) stack = {0};
    vec_push(&stack, s->value);
    while (stack.n) {
        Value *v = stack.at[--stack.n];
        if (f->before[v->id])
            continue;
        f->before[v->id] = true;
        for (int i = 0; i < v->def->nin; i++)
            if (v->def->in[i])
                vec_push(&stack, v->def->in[i]);
    }
    vec_free(&stack);
}

static bool any_in(const Node *n, const bool *fact) {
    for (int i = 0; i < n->nin; i++)
        if (n->in[i] && fact[n->in[i]->id])
            return true;
    return false;
}

/* Outputs of E branches side by side, none of which the router saw. */
static bool joins_branches(const Value *v, const Facts *f, int E, int depth) {
    const Node *n = v->def;
    if (n->op == OP_CONCAT)
        return n->nin == E && f->activation[v->id] && !f->before[v->id] && !f->scored[v->id] &&
               !f->chosen[v->id] && dtype_is_float(v->dtype);
    bool passes = n->op == OP_RESHAPE || n->op == OP_TRANSPOSE || n->op == OP_CAST;
    return passes && depth > 0 && joins_branches(n->in[0], f, E, depth - 1);
}

/* A product with a stack of E matrices, or of chosen rows with a weight, is work of one expert; so
 * is picking the chosen experts' entries from a weight, or their outputs from those of all. */
static bool starts_hot(const Node *n, const Facts *f, int E) {
    bool takes = n->op == OP_GATHER || n->op == OP_GATHER_ND || n->op == OP_GATHER_ELEMENTS;
    if (takes && f->chosen[n->in[1]->id] && joins_branches(n->in[0], f, E, 6))
        return true;
    if (n->op == OP_GATHER || n->op == OP_GATHER_ND)
        return f->weight[n->in[0]->id] && f->chosen[n->in[1]->id] && n->in[0]->rank >= 2 &&
               n->in[0]->dims[0] == E;
    for (int i = 0; i < 2 && n->op == OP_MUL; i++) { /* gates times a table of one row per expert */
        const Value *w = n->in[i];
        if (f->weight[w->id] && w->rank >= 2 && w->dims[w->rank - 2] == E &&
            value_count(w) == E * w->dims[w->rank - 1] && w->dims[w->rank - 1] > 1 &&
            (f->chosen[n->in[1 - i]->id] || f->scored[n->in[1 - i]->id]))
            return true;
    }
    if (n->op != OP_MATMUL || f->before[n->out[0]->id])
        return false;
    for (int i = 0; i < 2; i++) {
        const Value *w = n->in[i], *x = n->in[1 - i];
        if (!f->weight[w->id])
            continue;
        if (f->chosen[x->id])
            return true;
        for (int k = 0; k + 2 < w->rank; k++)
            if (w->dims[k] == E)
                return true;
    }
    return false;
}

/* Experts, or any layer behind them. Their work is never what decides where tokens go, so nobody
 * needs to compute it to follow rows: otherwise every layer would be evaluated for those before. */
static bool starts_work(const Node *n, const Facts *f) {
    if (n->op == OP_GROUPED_MATMUL)
        return f->chosen[n->in[1]->id];
    return n->op == OP_MATMUL && ((f->weight[n->in[0]->id] && f->chosen[n->in[1]->id]) ||
                                  (f->weight[n->in[1]->id] && f->chosen[n->in[0]->id]));
}

Facts facts_of(Graph *g, const Selection *s) {
    Facts f = {.n = g->next_value};
    bool **tables[] = {&f.chosen, &f.before, &f.activation, &f.weight,
                       &f.scored, &f.hot,    &f.worked};
    const char *score;
    const Value *logits = router_logits(s, &score);
    for (int i = 0; i < COUNT_OF(tables); i++)
        *tables[i] = xcalloc((size_t)f.n, sizeof(bool));
    mark_before(s, &f);
    FOR_NODES(n, g) {
        bool active = n->op == OP_INPUT || any_in(n, f.activation);
        bool chosen = any_in(n, f.chosen),
             weight = !active && (n->op == OP_PARAM || any_in(n, f.weight));
        bool hot = any_in(n, f.hot) || starts_hot(n, &f, s->E);
        bool worked = any_in(n, f.worked) || starts_work(n, &f);
        for (int i = 0; i < n->nout; i++) {
            int id = n->out[i]->id;
            f.activation[id] = active;
            f.chosen[id] = chosen || n->out[i] == s->value;
            f.weight[id] = weight;
            f.scored[id] = any_in(n, f.scored) || n->out[i] == logits;
            f.hot[id] = hot;
            f.worked[id] = worked;
        }
    }
    return f;
}

void facts_free(Facts *f) {
    free(f->chosen);
    free(f->before);
    free(f->activation);
    free(f->weight);
    free(f->scored);
    free(f->hot);
    free(f->worked);
}

/* ---- logits ---- */

/* Breadth first from the scores upwards through T*E values: the nearest softmax or sigmoid is the
 * score function. Where a model selects on the logits themselves there is none upstream, and what
 * the chosen values go through says which it is. */
static Node *score_upstream(const Selection *s) {
    VEC(Value *) queue = {0};
    Node *found = NULL;
    vec_push(&queue, s->scores);
    for (int head = 0; head < queue.n && !found; head++) {
        Value *v = queue.at[head];
        Node *n = v->def;
        if (value_count(v) != s->T * s->E || queue.n > 256)
            continue;
        if ((n->op == OP_SOFTMAX &&
             (node_int(n, AT_AXIS, -1) == -1 || node_int(n, AT_AXIS, -1) == v->rank - 1)) ||
            n->op == OP_SIGMOID)
            found = n;
        if (n->op == OP_MATMUL || (op_info[n->op].flags & OPF_LEAF) || n->op == OP_COMBINE)
            continue;
        for (int i = 0; i < n->nin; i++)
            if (n->in[i] && dtype_is_float(n->in[i]->dtype))
                vec_push(&queue, n->in[i]);
    }
    vec_free(&queue);
    return found;
}

static const char *score_downstream(const Selection *s) {
    VEC(Value *) queue = {0};
    const char *score = "softmax";
    for (int i = 0; i < s->node->nout; i++)
        if (dtype_is_float(s->node->out[i]->dtype))
            vec_push(&queue, s->node->out[i]);
    for (int head = 0; head < queue.n && queue.n < 64; head++)
        for (int u = 0; u < queue.at[head]->uses.n; u++) {
            Node *n = queue.at[head]->uses.at[u].node;
            if (n->op == OP_SIGMOID) {
                vec_free(&queue);
                return "sigmoid";
            }
            if (n->op == OP_SOFTMAX) {
                vec_free(&queue);
                return score;
            }
            bool passes = n->op == OP_CAST || n->op == OP_RESHAPE || n->op == OP_SCATTER_ELEMENTS ||
                          n->op == OP_TRANSPOSE;
            if (passes)
                vec_push(&queue, n->out[0]);
        }
    vec_free(&queue);
    return score;
}

Value *router_logits(const Selection *s, const char **score) {
    if (s->kind != SELECT_INDEX) {
        *score = s->node->op == OP_SIGMOID ? "sigmoid" : "softmax";
        return s->value;
    }
    Node *f = score_upstream(s);
    Value *z;
    if (f) {
        *score = f->op == OP_SIGMOID ? "sigmoid" : "softmax";
        z = f->in[0];
    } else {
        *score = score_downstream(s);
        z = s->scores;
    }
    while (z->def->op == OP_CAST && dtype_is_float(z->def->in[0]->dtype))
        z = z->def->in[0];
    return value_count(z) == s->T * s->E ? z : NULL;
}

/* ---- routers known by their logits ---- */

static Value *without_casts(Value *z) {
    while (z->def->op == OP_CAST && dtype_is_float(z->def->in[0]->dtype))
        z = z->def->in[0];
    return z;
}

static bool over_last_axis(const Node *n) {
    int64_t axis = node_int(n, AT_AXIS, -1);
    return n->op == OP_SIGMOID ||
           (n->op == OP_SOFTMAX && (axis == -1 || axis == n->in[0]->rank - 1));
}

/* A product with a weight, perhaps with a bias added. */
static bool is_linear(const Value *v) {
    const Node *n = v->def;
    while (n->op == OP_CAST || n->op == OP_RESHAPE || n->op == OP_ADD || n->op == OP_MUL ||
           n->op == OP_DIV) {
        const Node *a = n->in[0]->def, *b = n->nin > 1 && n->in[1] ? n->in[1]->def : a;
        n = (op_info[a->op].flags & OPF_LEAF) ? b : a;
    }
    if (n->op != OP_MATMUL)
        return false;
    for (int i = 0; i < 2; i++) {
        const Node *w = n->in[i]->def;
        while (w->op == OP_TRANSPOSE || w->op == OP_CAST || w->op == OP_RESHAPE || w->op == OP_DIV)
            w = w->in[0]->def;
        if (w->op == OP_PARAM)
            return true;
    }
    return false;
}

bool selection_behind(Value *v, int64_t T, int E, Selection *out) {
    VEC(Value *) queue = {0};
    Node *best = NULL;
    bool *seen = xcalloc((size_t)v->def->graph->next_value, sizeof *seen);
    vec_push(&queue, v);
    for (int head = 0; head < queue.n && queue.n < 4096 && !best; head++) {
        Node *n = queue.at[head]->def;
        const Value *y = n->out[0];
        bool wide = y->rank >= 2 && last_dim(y) >= 2 && last_dim(y) <= 65536 &&
                    dtype_is_float(y->dtype) && (E == 0 || last_dim(y) == E) && value_known(y) &&
                    value_count(y) == T * last_dim(y);
        if (wide && (over_last_axis(n) || n->op == OP_MATMUL))
            best = n;
        bool mixes = n->op == OP_MATMUL && !is_linear(y); /* gates with one-hots: an einsum */
        if ((n->op == OP_MATMUL && !mixes) || n->op == OP_COMBINE ||
            (op_info[n->op].flags & OPF_LEAF))
            continue;
        for (int i = 0; i < n->nin; i++)
            if (n->in[i] && !seen[n->in[i]->id]) {
                seen[n->in[i]->id] = true;
                vec_push(&queue, n->in[i]);
            }
    }
    vec_free(&queue);
    free(seen);
    if (!best)
        return false;
    Value *z = best->op == OP_MATMUL ? best->out[0] : without_casts(best->in[0]);
    *out = (Selection){
        .value = z, .node = best, .scores = best->out[0], .T = T, .E = (int)last_dim(best->out[0])};
    return true;
}

/* silu: a sigmoid that gates its own operand is an activation. */
static bool gates_itself(const Node *sigmoid) {
    const Value *y = sigmoid->out[0];
    for (int u = 0; u < y->uses.n; u++) {
        const Node *n = y->uses.at[u].node;
        if (n->op == OP_MUL && (n->in[0] == sigmoid->in[0] || n->in[1] == sigmoid->in[0]))
            return true;
    }
    return false;
}

static bool is_relu(const Node *n) {
    double zero;
    return n->op == OP_MAX && canon_scalar(n->in[1], &zero) && zero == 0;
}

void selections_find_all(Graph *g, Selections *out) {
    FOR_NODES(n, g) {
        const Value *y = n->out[0];
        bool soft = n->op == OP_SOFTMAX && over_last_axis(n);
        bool each = (n->op == OP_SIGMOID && !gates_itself(n)) || is_relu(n);
        if ((!soft && !each) || !value_known(y) || y->rank < 2 || last_dim(y) < 2 ||
            last_dim(y) > (soft ? 1024 : 256) || !is_linear(n->in[0]))
            continue;
        int E = (int)last_dim(y);
        Selection s = {.kind = SELECT_ALL,
                       .value = without_casts(n->in[0]),
                       .node = n,
                       .scores = n->out[0],
                       .T = value_count(y) / E,
                       .K = E,
                       .E = E,
                       .top_k = E};
        vec_push(out, s);
    }
}
