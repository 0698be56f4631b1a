/* fuse_group.c: grouping of ops into kernels.
 *
 * First fuse_inline decides which values live only inside kernels. Every other node is the seed of
 * a group; in graph order a seed joins the group of one of its producers where the group's kind can
 * hold it: ROWS  a row reduction's results feed elementwise work, and further reductions, on the
 * same rows GEMM  elementwise work on a product's result, element by element: its epilogue MAP
 * elementwise work over the same elements and an elementwise producer may join a row reduction that
 * reads it. A join must not make two groups wait for each other: no path may leave the group and
 * come back. In the end groups are put in an order that respects all reads. */
#include "passes/fuse_group.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_NODES = 96, MAX_ROOTS = 6, MAX_STAGES = 12, SEARCH = 400, NEAR = 48 };

typedef VEC(Node *) Nodes;
typedef VEC(int) Ints;

typedef struct Group {
    KernelKind kind;
    Node *main;
    Nodes seeds;
    int first, last; /* order of its seeds */
    int nodes, stages;
    int64_t rows, columns; /* ROWS: of the row space; GEMM, MAP: rows = elements */
    bool dead;
} Group;

typedef struct Grouping {
    Graph *g;
    KernelPlan *p;
    bool *inlined;
    VEC(Group) groups;
    int *order; /* by node id */
    int *of;    /* by node id: 1 + group of a seed */
    int *stamp; /* by node id */
    int now;
} Grouping;

static bool is_leaf(const Node *n) {
    return (op_info[n->op].flags & OPF_LEAF) != 0;
}

static bool is_inner(const Grouping *t, const Value *v) {
    return t->inlined[v->id];
}

/* ---- expressions ---- */

static void collect(Grouping *t, Node *n, Nodes *out) {
    if (t->stamp[n->id] == t->now)
        return;
    t->stamp[n->id] = t->now;
    for (int i = 0; i < n->nin; i++)
        if (n->in[i] && is_inner(t, n->in[i]))
            collect(t, n->in[i]->def, out);
    vec_push(out, n);
}

/* The seed and what is inlined into it, operands first. */
static void closure(Grouping *t, Node *seed, Nodes *out) {
    t->now++;
    collect(t, seed, out);
}

/* What is a value a view of, in memory: the node that makes the bytes. */
static Node *maker(const Grouping *t, const Value *v) {
    int64_t offset;
    while (!is_leaf(v->def) && fuse_is_view(v->def, &offset))
        v = v->def->in[0];
    return v->def;
}

static int group_of(const Grouping *t, const Value *v) {
    return t->of[maker(t, v)->id] - 1;
}

/* ---- paths ---- */

/* Whether what `from` reads depends on group g, without passing through g first. Answers yes when
 * it gets too far. */
static bool search(Grouping *t, const Value *from, int g, int first, int *budget) {
    Node *n = is_inner(t, from) ? from->def : maker(t, from);
    if (is_leaf(n) || t->stamp[n->id] == t->now)
        return false;
    t->stamp[n->id] = t->now;
    int h = t->of[n->id] - 1;
    if (h == g)
        return true;
    if ((h >= 0 ? t->groups.at[h].last : t->order[n->id]) < first)
        return false;
    if (--*budget < 0)
        return true;
    if (h < 0) {
        for (int i = 0; i < n->nin; i++)
            if (n->in[i] && search(t, n->in[i], g, first, budget))
                return true;
        return false;
    }
    for (int s = 0; s < t->groups.at[h].seeds.n; s++) {
        const Node *seed = t->groups.at[h].seeds.at[s];
        t->stamp[seed->id] = t->now;
        for (int i = 0; i < seed->nin; i++)
            if (seed->in[i] && search(t, seed->in[i], g, first, budget))
                return true;
    }
    return false;
}

/* No path leaves group g and comes back through an operand of `nodes`. */
static bool convex(Grouping *t, int g, const Nodes *nodes) {
    int budget = SEARCH;
    t->now++;
    for (int i = 0; i < nodes->n; i++) {
        const Node *n = nodes->at[i];
        for (int o = 0; o < n->nin; o++) {
            const Value *v = n->in[o];
            if (!v || is_inner(t, v) || group_of(t, v) == g)
                continue;
            if (search(t, v, g, t->groups.at[g].first, &budget))
                return false;
        }
    }
    return true;
}

/* ---- rows ---- */

typedef enum { SHAPE_OTHER, SHAPE_ROW, SHAPE_COLUMN } RowShape;

/* How many innermost axes of v make up `columns`, with `rows` before them; 0: not so. */
static int column_axes(const Value *v, int64_t rows, int64_t columns) {
    int64_t inner = 1, all = value_count(v);
    if (all != rows * columns)
        return 0;
    for (int i = v->rank - 1; i >= 0; i--) {
        inner *= v->dims[i];
        if (inner == columns)
            return v->rank - i;
        if (inner > columns)
            return 0;
    }
    return 0;
}

static RowShape row_shape(const Value *v, int64_t rows, int64_t columns) {
    if (value_count(v) == rows)
        return SHAPE_ROW;
    return column_axes(v, rows, columns) ? SHAPE_COLUMN : SHAPE_OTHER;
}

/* v broadcast to r keeps rows: its axes inside the row are 1, those outside are r's. */
static bool row_broadcast(const Value *v, const Value *r, int64_t rows, int64_t columns) {
    int inner = column_axes(r, rows, columns), shift = r->rank - v->rank;
    for (int i = 0; i < r->rank; i++) {
        int64_t d = i < shift ? 1 : v->dims[i - shift];
        if (d != (i < r->rank - inner ? r->dims[i] : 1))
            return false;
    }
    return true;
}

static bool is_row_stage(const Node *n, int64_t *rows, int64_t *columns) {
    const Value *x = n->nin ? n->in[0] : NULL;
    int first = 0;
    if (n->op == OP_SOFTMAX || n->op == OP_LOG_SOFTMAX) {
        int64_t axis = node_int(n, AT_AXIS, -1);
        first = x->rank - 1;
        if (axis != first && axis != -1)
            return false;
    } else if (n->op == OP_XENT) {
        first = 1;
    } else if (n->op >= OP_REDUCE_SUM && n->op <= OP_REDUCE_PROD) {
        const int64_t *axes;
        int k = node_ints(n, AT_AXES, &axes);
        bool gone[MAX_RANK] = {0};
        for (int i = 0; i < k; i++)
            gone[axes[i]] = true;
        first = x->rank;
        while (first > 0 && gone[first - 1])
            first--;
        if (k == 0 || x->rank - first != k)
            return false;
    } else {
        return false;
    }
    *rows = *columns = 1;
    for (int i = 0; i < x->rank; i++)
        *(i < first ? rows : columns) *= x->dims[i];
    return *columns > 1 && *rows > 0;
}

/* Node n of an expression reads group results `bound`; it must stay on their rows. */
static bool row_node(const Node *n, const bool *bound, int64_t rows, int64_t columns) {
    const Value *r = n->out[0];
    int64_t my_rows, my_columns;
    if (is_row_stage(n, &my_rows, &my_columns))
        return my_rows == rows && my_columns == columns &&
               row_shape(n->in[0], rows, columns) == SHAPE_COLUMN &&
               (n->op != OP_XENT || !bound[n->in[1]->id]);
    RowShape shape = row_shape(r, rows, columns);
    if (shape == SHAPE_OTHER)
        return false;
    if (n->op == OP_RESHAPE)
        return row_shape(n->in[0], rows, columns) == shape;
    if (n->op == OP_XENT_GRAD)
        return shape == SHAPE_COLUMN && r->dims[0] == rows;
    if (!(op_info[n->op].flags & OPF_ELEM) && n->op != OP_EXPAND)
        return false;
    for (int i = 0; i < n->nin; i++) {
        const Value *v = n->in[i];
        if (!bound[v->id])
            continue;
        RowShape s = row_shape(v, rows, columns);
        if (s == SHAPE_OTHER ||
            (s == SHAPE_ROW && shape == SHAPE_COLUMN && !row_broadcast(v, r, rows, columns)))
            return false;
    }
    return true;
}

/* Node n of an expression reads group results `bound` element by element. */
static bool same_node(const Node *n, const bool *bound, int64_t count) {
    if (value_count(n->out[0]) != count ||
        (n->op != OP_RESHAPE && !(op_info[n->op].flags & OPF_ELEM)))
        return false;
    for (int i = 0; i < n->nin; i++)
        if (bound[n->in[i]->id] && value_count(n->in[i]) != count)
            return false;
    return true;
}

/* All of the seed's expression that depends on group g's results fits the group's way of walking
 * elements. */
static bool fits(Grouping *t, int g, const Nodes *nodes) {
    const Group *k = &t->groups.at[g];
    bool *bound = xcalloc((size_t)t->g->next_value + 1, sizeof *bound), ok = true, any = false;
    for (int i = 0; i < nodes->n && ok; i++) {
        const Node *n = nodes->at[i];
        bool depends = false;
        for (int o = 0; o < n->nin; o++) {
            const Value *v = n->in[o];
            if (!v)
                continue;
            if (!is_inner(t, v) && group_of(t, v) == g) {
                bound[v->id] = true;
                /* A view of a result is in memory only after the group's store, under another
                 * buffer's name: not to be read by the group itself. */
                if (maker(t, v) != v->def)
                    ok = false;
            }
            depends |= bound[v->id];
        }
        if (!depends)
            continue;
        any = true;
        for (int o = 0; o < n->nout; o++)
            bound[n->out[o]->id] = true;
        ok &= k->kind == KERNEL_ROWS ? row_node(n, bound, k->rows, k->columns)
                                     : same_node(n, bound, k->rows);
    }
    free(bound);
    const Value *r = nodes->at[nodes->n - 1]->out[0];
    if (k->kind == KERNEL_ROWS)
        return ok && any &&
               (is_row_stage(nodes->at[nodes->n - 1], &(int64_t){0}, &(int64_t){0}) ||
                row_shape(r, k->rows, k->columns) != SHAPE_OTHER);
    return ok && value_count(r) == k->rows;
}

/* ---- joining ---- */

static int new_group(Grouping *t, KernelKind kind, Node *seed, int nodes) {
    Group k = {.kind = kind,
               .main = seed,
               .first = t->order[seed->id],
               .last = t->order[seed->id],
               .nodes = nodes};
    k.rows = value_count(seed->out[0]);
    if (kind == KERNEL_ROWS) {
        k.stages = 1;
        is_row_stage(seed, &k.rows, &k.columns);
    }
    vec_push(&k.seeds, seed);
    vec_push(&t->groups, k);
    t->of[seed->id] = t->groups.n;
    return t->groups.n - 1;
}

static void join(Grouping *t, int g, Node *seed, int nodes) {
    Group *k = &t->groups.at[g];
    vec_push(&k->seeds, seed);
    k->last = t->order[seed->id] > k->last ? t->order[seed->id] : k->last;
    k->first = t->order[seed->id] < k->first ? t->order[seed->id] : k->first;
    k->nodes += nodes;
    t->of[seed->id] = g + 1;
}

static bool is_strided(const Value *v, void *ctx) {
    const Grouping *t = ctx;
    return !is_inner(t, v);
}

/* The product goes to the runtime's matrix multiply (codegen/lower_gemm.c), which calls epilogues.
 */
static bool has_epilogue(Grouping *t, const Node *n) {
    MatrixView w;
    if (n->in[0]->dtype != DT_F32 || value_count(n->out[0]) == 0)
        return false;
    if (n->op == OP_GROUPED_MATMUL)
        return true;
    if (n->op != OP_MATMUL || n->out[0]->rank > 5)
        return false;
    for (int i = 0; i < 2; i++)
        if (n->in[i]->rank < 2 || !matrix_view(n->in[i], is_strided, t, &w) ||
            (w.row != 1 && w.col != 1))
            return false;
    return n->out[0]->rank >= 2;
}

static bool can_take(Grouping *t, int g, const Node *seed) {
    const Group *k = &t->groups.at[g];
    bool map = fuse_kind(seed) == KERNEL_MAP && seed->op != OP_CONCAT && seed->op != OP_NONZERO;
    switch (k->kind) {
    case KERNEL_ROWS:
        return (map || is_row_stage(seed, &(int64_t){0}, &(int64_t){0})) &&
               k->stages < MAX_STAGES && k->seeds.n < 2 * MAX_ROOTS;
    case KERNEL_GEMM:
        return map && has_epilogue(t, k->main) && k->seeds.n < MAX_ROOTS;
    case KERNEL_MAP:
        return map && k->main->op != OP_CONCAT && k->seeds.n < MAX_ROOTS;
    default:
        return false;
    }
}

/* The order of the first clone (fuse_recompute.c) among the nodes; 0: none. It shall not be
 * computed where the first copy is. */
static int first_clone(const Grouping *t, const Nodes *nodes) {
    int first = 0;
    for (int i = 0; i < nodes->n; i++) {
        const Node *n = nodes->at[i];
        if (n->id >= t->p->again.first && (!first || t->order[n->id] < first))
            first = t->order[n->id];
    }
    return first;
}

/* The latest group among the producers of the seed's operands that can hold it; -1. */
static int join_producer(Grouping *t, Node *seed, const Nodes *nodes) {
    int best = -1, clone = first_clone(t, nodes);
    for (int i = 0; i < nodes->n; i++) {
        const Node *n = nodes->at[i];
        for (int o = 0; o < n->nin; o++) {
            const Value *v = n->in[o];
            int g = v && !is_inner(t, v) ? group_of(t, v) : -1;
            if (g < 0 || (best >= 0 && t->groups.at[g].last <= t->groups.at[best].last) ||
                g == best)
                continue;
            if (t->groups.at[g].dead || !can_take(t, g, seed) ||
                t->groups.at[g].last < clone - NEAR || t->groups.at[g].nodes + nodes->n > MAX_NODES)
                continue;
            if (fits(t, g, nodes) && convex(t, g, nodes))
                best = g;
        }
    }
    return best;
}

static bool shares_operand(Grouping *t, const Group *k, const Nodes *nodes, int64_t count) {
    for (int s = 0; s < k->seeds.n; s++) {
        Nodes theirs = {0};
        closure(t, k->seeds.at[s], &theirs);
        for (int i = 0; i < theirs.n; i++)
            for (int o = 0; o < theirs.at[i]->nin; o++) {
                const Value *v = theirs.at[i]->in[o];
                if (!v || is_inner(t, v) || value_count(v) < count)
                    continue;
                for (int j = 0; j < nodes->n; j++)
                    for (int q = 0; q < nodes->at[j]->nin; q++)
                        if (nodes->at[j]->in[q] == v) {
                            vec_free(&theirs);
                            return true;
                        }
            }
        vec_free(&theirs);
    }
    return false;
}

/* A recent group over the same elements that reads the same data; -1. */
static int join_sibling(Grouping *t, Node *seed, const Nodes *nodes) {
    int64_t count = value_count(seed->out[0]);
    if (fuse_kind(seed) != KERNEL_MAP || seed->op == OP_CONCAT)
        return -1;
    for (int g = t->groups.n - 1; g >= 0 && t->order[seed->id] - t->groups.at[g].first < NEAR;
         g--) {
        const Group *k = &t->groups.at[g];
        if (k->dead || k->kind != KERNEL_MAP || k->rows != count || !can_take(t, g, seed) ||
            !same_dims(k->main->out[0], seed->out[0]))
            continue;
        if (k->nodes + nodes->n <= MAX_NODES && shares_operand(t, k, nodes, count) &&
            fits(t, g, nodes) && convex(t, g, nodes))
            return g;
    }
    return -1;
}

/* Elementwise groups whose results a new row reduction reads become part of it: residual and norm
 * are one pass. */
static void pull_producers(Grouping *t, int g, const Nodes *nodes) {
    for (int i = 0; i < nodes->n; i++) {
        for (int o = 0; o < nodes->at[i]->nin; o++) {
            const Value *v = nodes->at[i]->in[o];
            int h = v && !is_inner(t, v) ? group_of(t, v) : -1;
            if (h < 0 || h == g || t->groups.at[h].kind != KERNEL_MAP ||
                t->groups.at[h].main->op == OP_CONCAT)
                continue;
            Group *k = &t->groups.at[g], *m = &t->groups.at[h];
            if (m->seeds.n > 2 || m->nodes > 12 ||
                column_axes(m->main->out[0], k->rows, k->columns) == 0)
                continue;
            /* seen from the producer, the reduction is what joins */
            KernelKind was = m->kind;
            int64_t rows = m->rows;
            m->kind = KERNEL_ROWS, m->rows = k->rows, m->columns = k->columns;
            bool ok = fits(t, h, nodes) && convex(t, h, nodes);
            m->kind = was, m->rows = rows;
            for (int s = 0; s < m->seeds.n && ok; s++)
                ok = column_axes(m->seeds.at[s]->out[0], k->rows, k->columns) > 0;
            if (!ok)
                continue;
            for (int s = 0; s < m->seeds.n; s++)
                join(t, g, m->seeds.at[s], 0);
            t->groups.at[g].nodes += m->nodes;
            m->dead = true;
        }
    }
}

static KernelKind seed_kind(const Node *n) {
    int64_t rows, columns;
    KernelKind kind = fuse_kind(n);
    if (kind == KERNEL_REDUCE && is_row_stage(n, &rows, &columns) && columns >= 8 &&
        columns <= 16384 && rows >= 16)
        return KERNEL_ROWS;
    return kind;
}

static void group_seeds(Grouping *t) {
    FOR_NODES(n, t->g) {
        int64_t offset, rows, columns;
        if (is_leaf(n) || (n->nout == 1 && is_inner(t, n->out[0])) || fuse_is_view(n, &offset))
            continue;
        Nodes nodes = {0};
        closure(t, n, &nodes);
        int g = join_producer(t, n, &nodes);
        if (g < 0)
            g = join_sibling(t, n, &nodes);
        if (g >= 0) {
            join(t, g, n, nodes.n);
            t->groups.at[g].stages += is_row_stage(n, &rows, &columns);
        } else {
            g = new_group(t, seed_kind(n), n, nodes.n);
            if (t->groups.at[g].kind == KERNEL_ROWS && is_row_stage(n, &rows, &columns))
                pull_producers(t, g, &nodes);
        }
        vec_free(&nodes);
    }
}

/* ---- output ---- */

/* Storage of everything but what lives inside kernels; views follow what they are views of. */
static void give_storage(Grouping *t) {
    FOR_NODES(n, t->g) {
        int64_t offset;
        for (int i = 0; i < n->nout; i++) {
            Value *v = n->out[i];
            if (!is_leaf(n) && fuse_is_view(n, &offset)) {
                t->p->storage[v->id] = t->p->storage[n->in[0]->id];
                t->p->view_offset[v->id] = t->p->view_offset[n->in[0]->id] + offset;
            } else if (!is_inner(t, v)) {
                t->p->storage[v->id] = v;
            }
        }
    }
}

/* A seed's result that only its own group reads need not be stored. */
static bool read_outside(Grouping *t, const Value *v, int g) {
    int64_t offset;
    if (value_is_output(v))
        return true;
    for (int i = 0; i < v->uses.n; i++) {
        const Node *c = v->uses.at[i].node;
        bool view = c->nout == 1 && fuse_is_view(c, &offset),
             inner = c->nout == 1 && is_inner(t, c->out[0]);
        if (view || inner ? read_outside(t, c->out[0], g) : t->of[c->id] != g + 1)
            return true;
    }
    return false;
}

static int by_order(const void *a, const void *b) {
    const int *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

static void fill_kernel(Grouping *t, int g, Node *const *by_place, int *member) {
    Group *k = &t->groups.at[g];
    Kernel *out = fuse_add_kernel(t->p, k->kind, k->main);
    VEC(int) places = {0};
    Nodes nodes = {0};
    t->now++;
    for (int s = 0; s < k->seeds.n; s++)
        collect(t, k->seeds.at[s], &nodes);
    for (int i = 0; i < nodes.n; i++) {
        member[nodes.at[i]->id] = g + 1;
        vec_push(&places, t->order[nodes.at[i]->id]);
    }
    qsort(places.at, (size_t)places.n, sizeof *places.at, by_order);
    for (int i = 0; i < places.n; i++)
        vec_push(&out->nodes, by_place[places.at[i]]);
    for (int i = 0; i < out->nodes.n; i++) {
        Node *n = out->nodes.at[i];
        if (t->of[n->id] != g + 1)
            continue;
        for (int r = 0; r < n->nout; r++) {
            if (k->seeds.n == 1 || read_outside(t, n->out[r], g))
                vec_push(&out->roots, n->out[r]);
            else
                t->p->storage[n->out[r]->id] = NULL;
        }
    }
    if (!out->roots.n) { /* nobody reads any of it */
        Value *v = out->nodes.at[out->nodes.n - 1]->out[0];
        t->p->storage[v->id] = v;
        vec_push(&out->roots, v);
    }
    vec_free(&places);
    vec_free(&nodes);
}

/* Groups a view of an unstored result would need: such views lose their storage too. */
static void settle_views(Grouping *t) {
    int64_t offset;
    FOR_NODES(n, t->g)
    if (!is_leaf(n) && fuse_is_view(n, &offset))
        t->p->storage[n->out[0]->id] = t->p->storage[n->in[0]->id];
}

static bool visit(Grouping *t, int g, char *state, Ints *out) {
    if (state[g] == 2)
        return true;
    if (state[g] == 1)
        return false;
    state[g] = 1;
    Nodes nodes = {0};
    bool ok = true;
    t->now++;
    for (int s = 0; s < t->groups.at[g].seeds.n; s++)
        collect(t, t->groups.at[g].seeds.at[s], &nodes);
    for (int i = 0; i < nodes.n && ok; i++)
        for (int o = 0; o < nodes.at[i]->nin && ok; o++) {
            const Value *v = nodes.at[i]->in[o];
            int h = v && !is_inner(t, v) ? group_of(t, v) : -1;
            if (h >= 0 && h != g)
                ok = visit(t, h, state, out);
        }
    vec_free(&nodes);
    state[g] = 2;
    vec_push(out, g);
    return ok;
}

/* Lists the groups so that producers come first; false if groups wait for each other. */
static bool arrange(Grouping *t, Ints *order) {
    char *state = xcalloc((size_t)t->groups.n + 1, 1);
    int *by_last = xcalloc((size_t)t->g->next_node + 1, sizeof *by_last), place = 0;
    bool ok = true;
    FOR_NODES(n, t->g)
    by_last[place++] =
        t->of[n->id] && t->groups.at[t->of[n->id] - 1].last == t->order[n->id] ? t->of[n->id] : 0;
    for (int i = 0; i < place && ok; i++)
        if (by_last[i])
            ok = visit(t, by_last[i] - 1, state, order);
    free(state);
    free(by_last);
    return ok;
}

static void emit_groups(Grouping *t, const int *order, int n) {
    Node **by_place = xcalloc((size_t)t->g->next_node + 1, sizeof(Node *));
    int *member = xcalloc((size_t)t->g->next_node + 1, sizeof *member);
    FOR_NODES(node, t->g)
    by_place[t->order[node->id]] = node;
    give_storage(t);
    for (int i = 0; i < n; i++)
        fill_kernel(t, order[i], by_place, member);
    settle_views(t);
    for (int i = 0; i < t->p->kernels.n; i++) {
        Kernel *k = &t->p->kernels.at[i];
        for (int j = 0; j < k->nodes.n; j++)
            member[k->nodes.at[j]->id] = -1 - i;
        fuse_finish_kernel(t->p, k, member, -1 - i);
    }
    free(by_place);
    free(member);
}

bool fuse_groups(Graph *g, KernelPlan *p) {
    size_t nv = (size_t)g->next_value + 1, nn = (size_t)g->next_node + 1;
    Grouping t = {.g = g,
                  .p = p,
                  .inlined = xcalloc(nv, 1),
                  .order = xcalloc(nn, sizeof(int)),
                  .of = xcalloc(nn, sizeof(int)),
                  .stamp = xcalloc(nn, sizeof(int))};
    int place = 0;
    FOR_NODES(n, g)
    t.order[n->id] = place++;
    fuse_inline(g, t.inlined);
    group_seeds(&t);
    Ints order = {0};
    bool ok = arrange(&t, &order);
    if (ok)
        emit_groups(&t, order.at, order.n);
    for (int i = 0; i < t.groups.n; i++)
        vec_free(&t.groups.at[i].seeds);
    vec_free(&t.groups);
    vec_free(&order);
    free(t.inlined);
    free(t.order);
    free(t.of);
    free(t.stamp);
    return ok;
}
