/* raise_probe.c: numbers under synthetic routing, from the reference evaluator.
 *
 * The graph is cut at the selection, which takes made-up experts, at the scores that came with it,
 * at the router's logits and at every activation before those: they are random, weights are what
 * they are. The same cut serves to read index arithmetic off its values instead of its spelling,
 * and to compare a region with what it was raised to. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "passes/raise_probe.h"

static uint64_t next_random(uint64_t *s) {
    uint64_t z = (*s += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static double uniform(uint64_t *s) {
    return ((double)(next_random(s) >> 11) + 0.5) * 0x1p-53;
}

static double normal(uint64_t *s) {
    return sqrt(-2 * log(uniform(s))) * cos(2 * M_PI * uniform(s));
}

static bool in_row(const int64_t *row, int n, int64_t e) {
    for (int i = 0; i < n; i++)
        if (row[i] == e)
            return true;
    return false;
}

static void fill_spread(Routing *r, uint64_t *rng) {
    int64_t *pool = xcalloc((size_t)r->E, sizeof *pool);
    int left = 0;
    for (int64_t t = 0; t < r->T; t++)
        for (int k = 0; k < r->K; k++) {
            int64_t *row = r->idx + t * r->K;
            bool cover = t * r->K < r->E; /* first every expert once */
            if (cover && !left) {
                for (int e = 0; e < r->E; e++)
                    pool[left++] = e;
            }
            int64_t e;
            int tries = 0, at = 0;
            do {
                at = cover && left ? (int)(next_random(rng) % (uint64_t)left) : 0;
                e = cover && left && tries < 64 ? pool[at]
                                                : (int64_t)(next_random(rng) % (uint64_t)r->E);
                tries++;
            } while (in_row(row, k, e));
            if (cover && left && pool[at] == e)
                pool[at] = pool[--left];
            row[k] = e;
        }
    free(pool);
}

static void fill_one(Routing *r, int which, uint64_t *rng) {
    for (int64_t t = 0; t < r->T; t++) {
        int64_t *row = r->idx + t * r->K;
        row[0] = which;
        for (int k = 1; k < r->K; k++)
            do
                row[k] = (int64_t)(next_random(rng) % (uint64_t)r->E);
            while (in_row(row, k, row[k]));
    }
}

/* As few experts as K allows: the others are empty. */
static void fill_edge(Routing *r, int which) {
    for (int64_t t = 0; t < r->T; t++)
        for (int k = 0; k < r->K; k++)
            r->idx[t * r->K + k] = (which + (k + t) % r->K) % r->E;
}

/* Logits that lead to such a routing, if the model chooses by them: SPREAD reaches every expert,
 * ONE crowds one of them, EDGE leaves most empty. Drawn first, so that a seed stands for them. */
static void made_up_logits(Probe *p, RouteKind kind, int which) {
    const Selection *s = p->s;
    RTensor *z = rtensor_new(&p->arena, s->value->dtype, s->value->rank, s->value->dims);
    for (int64_t i = 0; i < z->count; i++) {
        int64_t t = i / s->E;
        int e = (int)(i % s->E);
        bool wanted = kind == ROUTE_SPREAD ? t < s->E && e == t % s->E : e == which;
        if (kind == ROUTE_EDGE)
            wanted = e == (which + t % 2) % s->E;
        z->f[i] = normal(&p->rng) + (wanted ? 6 : 0);
    }
    p->ev.values[s->value->id] = z;
}

Probe *probe_new(Graph *g, const Selection *s, const Facts *f, RouteKind kind, int which,
                 uint64_t seed) {
    Probe *p = xcalloc(1, sizeof *p);
    p->s = s;
    p->facts = f;
    p->rng = p->seed = seed * 0x9e3779b97f4a7c15u + 12345;
    p->scale = 1;
    Routing *r = &p->route;
    *r = (Routing){.T = s->T, .K = s->K, .E = s->E};
    r->idx = ARENA_ARRAY(&p->arena, int64_t, s->T * s->K);
    r->slot = ARENA_ARRAY(&p->arena, int32_t, s->T * s->E);
    p->ev = (Eval){.arena = &p->arena, .diag = &p->diag, .mem_limit = (int64_t)6 << 30};
    p->ev.values = xcalloc((size_t)g->next_value + 4096, sizeof *p->ev.values);
    if (s->kind != SELECT_INDEX) {
        made_up_logits(p, kind, which);
        for (int64_t i = 0; i < s->T * s->K; i++)
            r->idx[i] = s->kind == SELECT_ALL ? i % s->K : -1;
        for (int64_t i = 0; i < s->T * s->E; i++)
            r->slot[i] = s->kind == SELECT_ALL ? (int32_t)(i % s->E) : -1;
        return p;
    }
    if (kind == ROUTE_SPREAD)
        fill_spread(r, &p->rng);
    else if (kind == ROUTE_ONE)
        fill_one(r, which, &p->rng);
    else
        fill_edge(r, which);
    for (int64_t i = 0; i < s->T * s->E; i++)
        r->slot[i] = -1;
    for (int64_t i = 0; i < s->T * s->K; i++)
        r->slot[i / s->K * s->E + r->idx[i]] = (int32_t)(i % s->K);
    return p;
}

void probe_free(Probe *p) {
    if (!p)
        return;
    free(p->ev.values);
    diag_free(&p->diag);
    arena_free(&p->arena);
    free(p);
}

double probe_random(const Probe *p, const Value *v, int64_t at) {
    uint64_t s = p->seed ^ ((uint64_t)v->id << 40) ^ (uint64_t)at;
    s = next_random(&s);
    return normal(&s) * p->scale;
}

static RTensor *random_activation(Probe *p, const Value *v) {
    if (!value_known(v))
        return NULL;
    RTensor *r = rtensor_new(&p->arena, v->dtype, v->rank, v->dims);
    for (int64_t i = 0; i < r->count; i++)
        r->f[i] = probe_random(p, v, i);
    return r;
}

/* What is computed from the logits is computed, so that masks and maxima agree with each other; the
 * logits, what came with the choice and all other activations behind it are random. */
bool probe_is_cut(const Probe *p, const Value *v) {
    const Facts *f = p->facts;
    if (v->id >= f->n || !dtype_is_float(v->dtype) || f->chosen[v->id] || !f->activation[v->id])
        return false;
    if (v->def == p->s->node || v->def->op == OP_INPUT)
        return true;
    bool logits = f->scored[v->id];
    for (int i = 0; i < v->def->nin && logits; i++)
        logits = !(v->def->in[i] && f->scored[v->def->in[i]->id]);
    return f->before[v->id] && (!f->scored[v->id] || logits);
}

const RTensor *probe_value(Probe *p, Value *v) {
    RTensor **slot = &p->ev.values[v->id];
    if (*slot)
        return *slot;
    if (v == p->s->value && p->s->kind == SELECT_INDEX) {
        *slot = rtensor_new(&p->arena, v->dtype, v->rank, v->dims);
        memcpy((*slot)->i, p->route.idx, sizeof(int64_t) * (size_t)(*slot)->count);
    } else if (v->def->op == OP_PARAM) {
        const Attr *t = node_attr(v->def, AT_VALUE);
        if (t)
            *slot = rtensor_from(&p->arena, t->t);
    } else if (v->def->op == OP_CONST) {
        *slot = rtensor_from(&p->arena, value_const(v));
    } else if (probe_is_cut(p, v)) {
        *slot = random_activation(p, v);
    } else {
        Node *n = v->def;
        if (p->stuck)
            return NULL;
        for (int i = 0; i < n->nin; i++)
            if (n->in[i] && !probe_value(p, n->in[i]))
                return NULL;
        RTensor *kept = p->ev.values[p->s->value->id];
        if (!eval_node(&p->ev, n)) {
            p->stuck = n;
            return NULL;
        }
        if (kept)
            p->ev.values[p->s->value->id] = kept;
        for (int i = 0; i < n->nout; i++)
            p->work += p->ev.values[n->out[i]->id]->count;
    }
    if (!*slot && !p->stuck)
        p->stuck = v->def;
    return *slot;
}

const char *probe_sample(Probe *p, int64_t few, bool cover) {
    const Selection *s = p->s;
    char *wanted = ARENA_ARRAY(&p->arena, char, s->T + 1);
    int64_t first = s->kind == SELECT_INDEX ? (s->E + s->K - 1) / s->K : s->E;
    for (int64_t t = 0; t < s->T; t++)
        wanted[t] = s->T <= few || (cover && t < first);
    for (int64_t i = 0; i < few && s->T > few; i++)
        wanted[i == 0 ? s->T - 1 : (int64_t)(next_random(&p->rng) % (uint64_t)s->T)] = 1;
    return wanted;
}
