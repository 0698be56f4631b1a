/* raise_moe.c: finds MoE layers in whatever spelling an exporter left them and says them again as a
 * few plain ops.
 *
 * Needs: a canonical graph, all input dims bound. Gives, for each layer:
 *
 *     %offsets, %row_token, … = dispatch %idx, %logits {experts, top_k, layer, form, score, schema,
 * probe_error} %xr = gather_rows %x, %row_token, %pair_row        the tokens of each expert, sorted
 * by expert %h  = grouped_matmul %xr, %offsets, %W             … and the expert's body over rows %y
 * = combine %rows, %pair_row, %row_token
 *
 * What is established is an equation, y[t] = sum over chosen e of FFN_e(x[t], gate), not a sequence
 * of nodes:
 *   1. selections (raise_route.c): a topk or argmax over router scores;
 *   2. combines (raise_sum.c): where contributions of a token meet: a sum over slots, over experts,
 * or of E branches;
 *   3. a walk from the combine back to the leaves (raise_walk.c, raise_move.c, raise_weights.c),
 * which carries along what (token, slot, expert) each row stands for, and emits the same
 * computation over routed rows. Index arithmetic is evaluated under a synthetic routing, never
 * matched;
 *   4. probing (below): region and replacement are evaluated in float64 on synthetic routings and
 * random activations, cut at the selection; unless they agree to 1e-9 the replacement is thrown
 * away. This makes the loose matching safe.
 *
 * Breaks: node order within the region only. A region that looks like a layer and is not (missing
 * experts, a probe that disagrees) is reported as wrong; what is merely something else as left. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "passes/canonicalise.h"
#include "passes/raise.h"

/* ---- probing ---- */

#define RAISE_SEED 7 /* of the routing that all maps are about */
#define PROBE_TOLERANCE 1e-9
#define PROBE_BUDGET ((int64_t)1 << 25) /* multiply-adds for one layer, about */
#define PROBE_FEW 4                     /* tokens at least, besides those that reach every expert */

/* Largest difference relative to the largest value; NaN counts as infinite. */
static double difference(const double *a, const double *b, int64_t n) {
    double most = 0, size = 1e-30;
    if (!a || !b)
        return INFINITY;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs(a[i] - b[i]);
        if (!(d <= most))
            most = isnan(d) ? INFINITY : d;
        if (fabs(a[i]) > size)
            size = fabs(a[i]);
    }
    return most / size;
}

/* Multiply-adds of the raised rows; *products counts them: 0 if no expert has a matrix of its own.
 */
static int64_t raised_cost(const Region *r, int first_node, int *products) {
    int64_t cost = 1;
    *products = 0;
    for (const Node *n = r->b.before->prev; n && n->id >= first_node; n = n->prev)
        if (n->op == OP_GROUPED_MATMUL) {
            cost += value_count(n->in[0]) * n->out[0]->dims[1];
            (*products)++;
        }
    return cost;
}

/* An expert is a layer of its own: a table of rows, or one product, is something else; unless
 * (more) it is another part of experts that were found. */
static bool is_layer(Region *r, const Node *at, int products, bool more) {
    if (more && !products)
        return true;
    if (!products)
        raise_fail(r, at,
                   "rows are chosen from a table here, but no expert has a matrix of its own");
    else if (products < 2)
        raise_fail(r, at, "an expert is a single product here, not a layer of its own");
    return products >= 2;
}

/* The elements of v that belong to the wanted tokens. */
static Part elements_of(Probe *p, const Value *v, const char *wanted) {
    int64_t count = value_count(v), width = count / p->s->T, n = 0;
    for (int64_t t = 0; t < p->s->T; t++)
        n += wanted[t];
    Part part = part_new(p, n * width);
    part.n = 0;
    for (int64_t t = 0; t < p->s->T; t++)
        for (int64_t i = 0; wanted[t] && i < width; i++)
            part.at[part.n++] = t * width + i;
    return part;
}

/* One comparison; false with the reason. */
static bool probe_agrees(Region *r, Probe *p, Value *was, Value *now, const char *wanted,
                         double *worst) {
    Part part = elements_of(p, was, wanted);
    bool alike = value_known(now) && value_count(now) == value_count(was);
    const Cell *a = probe_part(p, was, &part), *b = alike ? probe_part(p, now, &part) : NULL;
    double d = difference((const double *)(const void *)a, (const double *)(const void *)b, part.n);
    const char *said = p->diag.messages.n ? p->diag.messages.at[0].text : "";
    r->c->probe_work += p->work;
    if (p->stuck)
        raise_fail(r, p->stuck, "the region cannot be evaluated on synthetic routing: %s", said);
    else if ((r->disagrees = !(d <= PROBE_TOLERANCE)))
        raise_fail(r, was->def,
                   "probing disagrees: region and experts differ by %.2g (allowed %.0e)", d,
                   PROBE_TOLERANCE);
    if (!(d <= *worst))
        *worst = d;
    return !p->stuck && !r->disagrees;
}

/* Spread reaches every expert; the large scales reach clamps; one and edge leave experts empty and
 * find capacity. */
typedef struct ProbePlan {
    RouteKind kind;
    int which;
    uint64_t seed;
    double scale;
} ProbePlan;

/* True if region and replacement agree everywhere; *worst is the largest difference seen. */
static bool probes_agree(Region *r, const Root *root, Value *now, int first_node, bool more,
                         double *worst) {
    const Selection *s = r->s;
    ProbePlan plan[] = {{ROUTE_SPREAD, 0, RAISE_SEED, 1},
                        {ROUTE_ONE, s->E - 1, 1000, 8},
                        {ROUTE_SPREAD, 0, 1001, 30},
                        {ROUTE_EDGE, s->E / 2, 1002, 1}};
    int products;
    int64_t budget = r->c->probe_budget ? r->c->probe_budget : PROBE_BUDGET;
    int64_t cost = raised_cost(r, first_node, &products) / s->T + 1; /* of a token */
    bool dense = root->leaves > 0 ? !r->listed : !r->batched && !r->sorted;
    if (r->slots) /* its row of the matrices that put tokens into places */
        cost += s->T;
    if (dense) /* the region computes every expert for every token */
        cost *= s->E > s->K ? s->E / s->K : 1;
    *worst = 0;
    if (!is_layer(r, root->node, products, more))
        return false;
    int64_t few = budget / (2 * COUNT_OF(plan) * cost);
    few = few < PROBE_FEW ? PROBE_FEW : few;
    bool ok = true;
    for (int i = 0; i < COUNT_OF(plan) && ok; i++) {
        /* A file that takes apart the list of experts that were hit runs only when all are. */
        if (r->data_expert && plan[i].kind != ROUTE_SPREAD)
            continue;
        Probe *p = probe_new(r->g, s, r->facts, plan[i].kind, plan[i].which, plan[i].seed);
        p->scale = plan[i].scale;
        ok = probe_agrees(r, p, root->node->out[0], now,
                          probe_sample(p, few, plan[i].kind == ROUTE_SPREAD), worst);
        probe_free(p);
    }
    return ok;
}

/* ---- one layer ---- */

typedef struct Finding {
    bool wrong; /* a layer that computes something else */
    char *why;
    const Node *where;
    int rank; /* how close it came */
    const char *fix;
} Finding;

static void remove_since(Graph *g, int first_node) {
    for (Node *n = g->last, *prev; n; n = prev) {
        prev = n->prev;
        if (n->id >= first_node)
            node_remove(n);
    }
}

static void region_free(Region *r) {
    probe_free(r->probe);
    free(r->memo);
    vec_free(&r->originals);
    arena_free(&r->arena);
}

static void accept(Region *r, const Root *root, Value *now, double worst, const char *form,
                   const char *schema) {
    Node *d = r->dispatch;
    const char *before = node_str(d, AT_SCHEMA, NULL);
    double error = node_float(d, AT_PROBE_ERROR, 0);
    node_set_str(d, AT_FORM, form);
    node_set_str(d, AT_SCHEMA,
                 before ? arena_printf(&r->g->arena, "%s; %s", before, schema) : schema);
    node_set_float(d, AT_PROBE_ERROR, worst > error ? worst : error);
    value_replace(root->node->out[0], now);
    graph_dce(r->g);
    if (!r->originals.n)
        return;
    diag_note(r->c->diag,
              "experts of MoE layer %d shared \"%s\"%s; each has a copy of its own now, named "
              "NAME@LAYER.EXPERT",
              r->layer, diag_safe(r->c->diag, param_name(r->originals.at[0])),
              r->originals.n > 1 ? " and more" : "");
    for (int i = 0; i < r->originals.n; i++) {
        Value *v = r->originals.at[i];
        bool again = false;
        for (int k = 0; k < i; k++)
            again = again || r->originals.at[k] == v;
        if (!again && !v->uses.n && !value_is_output(v))
            node_remove(v->def);
    }
}

static const char *form_name(const Region *r, const Root *root) {
    if (r->slots)
        return "C";
    if (r->s->kind == SELECT_ALL && !r->sel)
        return "B";
    if (r->data_expert)
        return "A-hit";
    if (r->listed)
        return "A";
    if (root->leaves > 0 && !r->batched)
        return "B";
    return r->sorted ? "H" : r->batched ? "D" : r->joined ? "B" : "E";
}

/* What is being tried: one selection, and where its contributions may meet. */
typedef struct Try {
    Compile *c;
    Selection *s;
    Facts *f;
    int layer;
    Node *dispatch; /* of a part of this layer that was raised before */
    Finding *found;
} Try;

/* Tries one combine. True: the region was replaced. */
static bool try_root(Try *a, const Root *root, const SlotRoot *places, bool second) {
    Compile *c = a->c;
    Selection *s = a->s;
    Finding *found = a->found;
    int first_node = c->g->next_node;
    Region r = {.c = c,
                .g = c->g,
                .s = s,
                .facts = a->f,
                .layer = a->layer,
                .dispatch = a->dispatch,
                .b = builder_before(root->node)};
    r.probe = probe_new(c->g, s, a->f, ROUTE_SPREAD, 0, RAISE_SEED);
    Value *base,
        *y = places ? raise_slot_root(&r, places, &base) : raise_root(&r, root, second, &base);
    double worst = 0;
    bool looked = y != NULL, ok = false;
    if (y) {
        const char *schema =
            raise_schema(&r, y->def->op == OP_RESHAPE ? y->def->in[0]->def->in[0] : y->def->in[0]);
        if (base)
            y = op_binary(&r.b, OP_ADD, base, y);
        ok = probes_agree(&r, root, y, first_node, a->dispatch != NULL, &worst);
        if (ok) {
            accept(&r, root, y, worst, form_name(&r, root), schema);
            a->dispatch = r.dispatch;
        }
    }
    if (!ok) {
        remove_since(c->g, first_node);
        int rank = looked || r.frozen ? 1000 : r.nmemo;
        if (r.why && (rank > found->rank || !found->why))
            *found = (Finding){(looked && r.disagrees) || r.frozen, r.why, r.where, rank, r.fix};
    }
    region_free(&r);
    return ok;
}

/* Fewer branches than experts, all alike: the exporter lost some. */
static void check_partial(const Region *r, const Roots *roots, const Roots *partial,
                          Finding *found) {
    for (int i = 0; i < partial->n; i++) {
        const Root *p = &partial->at[i];
        bool grows = false; /* the sum goes on from here to all experts, or to more of the kind */
        for (int k = 0; k < roots->n; k++)
            grows = grows || (roots->at[k].leaves &&
                              raise_sum_contains(roots->at[k].node, p->node, r->s->E));
        for (int k = 0; k < partial->n; k++)
            grows = grows || (partial->at[k].leaves == p->leaves + 1 &&
                              raise_sum_contains(partial->at[k].node, p->node, 2) &&
                              raise_partial(r, &partial->at[k]));
        if (grows || !raise_partial(r, p))
            continue;
        *found =
            (Finding){true,
                      arena_printf(&r->g->arena,
                                   "%d of %d experts are in the file: the exporter kept only those "
                                   "its example used",
                                   p->leaves, r->s->E),
                      p->node, 2000, NULL};
        return;
    }
}

/* The first combine of a selection that can be raised. */
static bool try_roots(Try *a) {
    Facts f = facts_of(a->c->g, a->s);
    Region r = {.c = a->c, .g = a->c->g, .s = a->s, .facts = &f, .layer = a->layer};
    Roots roots = {0}, partial = {0};
    const Selection *s = a->s;
    a->f = &f;
    roots_find(&r, &roots, &partial);
    bool ok = false;
    for (int i = 0; i < roots.n && i < 48 && !ok; i++) {
        bool both = roots.at[i].leaves < 0 ||
                    (s->kind == SELECT_INDEX && s->K == s->E && !roots.at[i].leaves);
        ok = try_root(a, &roots.at[i], NULL, false) ||
             (both && try_root(a, &roots.at[i], NULL, true));
    }
    if (!ok && !a->dispatch)
        check_partial(&r, &roots, &partial, a->found);
    vec_free(&roots);
    vec_free(&partial);
    facts_free(&f);
    arena_free(&r.arena);
    return ok;
}

/* All combines of one selection: a layer may have several, one for each linear of its experts. */
static bool try_selection(Compile *c, Selection *s, int layer, Finding *found) {
    Try a = {.c = c, .s = s, .layer = layer, .found = found};
    WrittenOut products = {0};
    products_write_out(c->g, s, &products);
    while (try_roots(&a))
        ;
    products_restore(&products);
    return a.dispatch != NULL;
}

static int layers_before(const Node *at) {
    int n = 0;
    for (const Node *p = at; p; p = p->prev)
        n += p->op == OP_DISPATCH;
    return n;
}

typedef VEC(Finding) Findings;

/* Layers with capacity: each is found from the place where its tokens come back. */
static void try_places(Compile *c, Findings *findings) {
    bool again = true;
    for (int rounds = 0; again && rounds < 4096; rounds++) {
        SlotRoots roots = {0};
        Findings why = {0};
        slot_roots_find(c->g, &roots);
        again = false;
        for (int i = 0; i < roots.n && !again; i++) {
            Selection s;
            Finding found = {0};
            Try a = {.c = c, .s = &s, .found = &found};
            Root root = {roots.at[i].node, 0};
            if (!slot_root_selection(&roots.at[i], &s))
                continue;
            Facts f = facts_of(c->g, &s);
            a.f = &f;
            a.layer = layers_before(root.node);
            again = try_root(&a, &root, &roots.at[i], false);
            facts_free(&f);
            vec_push(&why, found);
        }
        if (!again)
            *findings = why;
        else
            vec_free(&why);
        vec_free(&roots);
    }
}

/* ---- the pass ---- */

typedef struct Tried {
    Selection s;
    Finding why; /* why.why NULL: raised, or gone */
    bool raised;
} Tried;
typedef VEC(Tried) TriedList;

/* Does this choice lead, by router arithmetic alone, to another that became a layer or should have?
 * Then it is a stage of that router (groups of experts, one of several maxima) and not a layer of
 * its own. */
static bool is_stage(const TriedList *all, const Tried *t) {
    VEC(Value *) queue = {0};
    bool found = false;
    vec_push(&queue, t->s.value);
    for (int head = 0; head < queue.n && queue.n < 4096 && !found; head++) {
        const Value *v = queue.at[head];
        for (int i = 0; i < all->n && !found; i++)
            found = all->at[i].why.wrong && !t->why.wrong && all->at[i].s.value == v;
        for (int u = 0; u < v->uses.n && !found; u++) {
            Node *n = v->uses.at[u].node;
            found = n->op == OP_DISPATCH;
            if (n->op == OP_MATMUL || n->op == OP_GROUPED_MATMUL || n->op == OP_GATHER_ROWS ||
                n->op == OP_COMBINE)
                continue;
            for (int i = 0; i < n->nout; i++)
                if (value_count(n->out[i]) <= t->s.T * 4096)
                    vec_push(&queue, n->out[i]);
        }
    }
    vec_free(&queue);
    return found;
}

static const char *const fix_wrong =
    "export again with every expert in the graph (experts_implementation=\"batched_mm\", or the "
    "dynamo exporter), or pass "
    "--allow-unraised to train it as it is";
static const char *const fix_left = "nothing, if this is not a layer of experts";

static void report(Compile *c, const Finding *f) {
    NotRaised n = {f->wrong, f->where && *f->where->src->name ? f->where->src->name : "(no name)",
                   f->why,
                   f->fix     ? f->fix
                   : f->wrong ? fix_wrong
                              : fix_left};
    vec_push(&c->not_raised, n);
}

static int report_all(Compile *c, const TriedList *tried, int places) {
    int wrong = 0, raised = 0;
    for (int i = 0; i < tried->n; i++) {
        const Tried *t = &tried->at[i];
        bool again = false; /* the same region from another of its selections */
        raised += t->raised;
        for (int k = 0; k < i && t->why.wrong; k++)
            again = again || (tried->at[k].why.wrong && tried->at[k].why.where == t->why.where);
        if (!t->why.why || again || is_stage(tried, t))
            continue;
        report(c, &t->why);
        wrong += t->why.wrong;
    }
    bool any = raised || c->not_raised.n;
    FOR_NODES(n, c->g)
    any = any || n->op == OP_DISPATCH;
    if (!any && !places) {
        Finding f = {.why = (char *)"no topk or argmax over a router's scores: nothing in this "
                                    "model chooses among experts"};
        report(c, &f);
    }
    return wrong;
}

/* A router that decides once for each sample of the batch. */
static bool is_per_sample(const Graph *g, const Selection *s) {
    for (int i = 0; i < g->inputs.n; i++) {
        const Value *v = g->inputs.at[i];
        if (!dtype_is_float(v->dtype) && v->rank == 2 && v->dims[0] == s->T && v->dims[1] > 1)
            return true;
    }
    return false;
}

static const char *say_per_sample(Graph *g, const Selection *s) {
    return arena_printf(&g->arena,
                        "the router decides once per sample (%lld of them), not per token: CEL is "
                        "not defined here, the model is trained without",
                        (long long)s->T);
}

/* Layers that come as dispatch already (com.microsoft.MoE) keep their place in graph order. */
static void number_layers(Graph *g) {
    int layer = 0;
    FOR_NODES(n, g)
    if (n->op == OP_DISPATCH)
        node_set_int(n, AT_LAYER, layer++);
}

/* Does a choice among experts follow from these logits? Then the layer is that choice's, raised or
 * not. */
static bool has_choice(const TriedList *all, const Selection *s) {
    for (int i = 0; i < all->n; i++) {
        const char *score;
        const Selection *o = &all->at[i].s;
        if (o->kind == SELECT_INDEX && (all->at[i].raised || all->at[i].why.wrong) &&
            router_logits(o, &score) == s->value)
            return true;
    }
    return false;
}

/* Routers that weight all experts by their scores. */
static void try_all(Compile *c, const TriedList *tried) {
    Selections found = {0};
    selections_find_all(c->g, &found);
    for (int i = 0; i < found.n; i++) {
        Selection *s = &found.at[i];
        Finding why = {0};
        if (s->node->prev || c->g->first == s->node)
            if (!has_choice(tried, s) && !try_selection(c, s, layers_before(s->node), &why) &&
                s->node->op == OP_SOFTMAX && is_per_sample(c->g, s)) {
                Finding f = {.why = (char *)say_per_sample(c->g, s), .where = s->node};
                report(c, &f);
            }
    }
    vec_free(&found);
}

bool pass_raise_moe(Compile *c) {
    Selections found = {0};
    TriedList tried = {0};
    Findings places = {0};
    canon_report_folded(c->g, c->diag);
    try_places(c, &places);
    selections_find(c->g, &found);
    for (int i = 0; i < found.n; i++) {
        Tried t = {.s = found.at[i]};
        if (!t.s.node->prev && c->g->first != t.s.node)
            continue; /* went with the region of another selection */
        t.raised = try_selection(c, &t.s, layers_before(t.s.node), &t.why);
        if (t.raised)
            t.why = (Finding){0};
        else if (!t.why.why)
            t.why = (Finding){
                false,
                arena_printf(&c->g->arena,
                             "%d of %d are chosen here, but no experts' outputs are summed by the "
                             "choice",
                             t.s.K, t.s.E),
                t.s.node, 0, NULL};
        if (!t.raised && !t.why.wrong && is_per_sample(c->g, &t.s))
            t.why.why = (char *)say_per_sample(c->g, &t.s);
        vec_push(&tried, t);
    }
    try_all(c, &tried);
    int wrong = report_all(c, &tried, places.n);
    for (int i = 0; i < places.n; i++)
        if (places.at[i].why) {
            report(c, &places.at[i]);
            wrong += places.at[i].wrong;
        }
    vec_free(&places);
    vec_free(&found);
    vec_free(&tried);
    graph_dce(c->g);
    number_layers(c->g);
    if (!raise_split_products(c->g, c->diag))
        return false;
    if (!pass_canonicalise(c)) /* the views that row space made */
        return false;
    if (!wrong || c->allow_unraised || !c->wants.train)
        return true;
    for (int i = 0; i < c->not_raised.n; i++) {
        const NotRaised *n = &c->not_raised.at[i];
        if (!n->wrong)
            continue;
        diag_error(c->diag, EXIT_MODEL,
                   "an MoE layer would compute something else than the model did: %s", n->why);
        diag_more(c->diag, "node \"%s\"", diag_safe(c->diag, n->node));
        diag_more(c->diag, "%s", n->fix);
    }
    return false;
}
