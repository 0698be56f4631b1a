/* lower_map.c: kernels that compute every element of a domain on its own.
 *
 * The domain's innermost axes, as many as can be walked by one index without divisions, become the
 * vector loop; the axes outside it become rows, cut into tasks of about lower_grain elements. The
 * cut depends on shapes alone. Where an element rule asks on which side of a bound the innermost
 * index lies (pad, concat), the vector loop is cut there. On a GPU a vector loop shorter than a
 * warp is not worth having: divisions are; and short rows go to the warps side by side. */
#include "codegen/lower.h"

#include <stdlib.h>

enum { CUT_ELEMENTS = 8192, MAX_PIECES = 8, WARP = 32 };

typedef struct Nest {
    int64_t rows, inner;
    int npieces;
    int64_t cut[MAX_PIECES + 1]; /* piece i is cut[i]..cut[i+1] */
} Nest;

/* One nest being tried or emitted: the leaves and the sinks of every piece. */
typedef struct Trial {
    Kern K;
    Ex row, inner[MAX_PIECES];
    Sinks sinks[MAX_PIECES];
} Trial;

static void trial_make(Trial *t, Lower *L, int kernel, const char *what, const Nest *n,
                       MapBody *body, void *ctx) {
    *t = (Trial){0};
    Kern *K = &t->K;
    kern_begin(K, L, kernel, PROGRAM_TASK, what);
    t->row = ex_leaf(K, LT_I64, 1, 0, n->rows - 1);
    for (int i = 0; i < n->npieces; i++) {
        t->inner[i] = ex_leaf(K, LT_I64, 2, n->cut[i], n->cut[i + 1] - 1);
        Index at = {0};
        index_push(&at, n->rows, t->row);
        index_push(&at, n->inner, t->inner[i]);
        body(K, &at, &t->sinks[i], ctx);
    }
}

static void trial_drop(Trial *t) {
    for (int i = 0; i < MAX_PIECES; i++)
        vec_free(&t->sinks[i]);
    kern_drop(&t->K);
}

static int trial_divisions(Trial *t, const Nest *n) {
    int count = 0;
    for (int i = 0; i < n->npieces; i++) {
        for (int s = 0; s < t->sinks[i].n; s++) {
            Ex both[2] = {t->sinks[i].at[s].index, t->sinks[i].at[s].value};
            count += ex_divisions(&t->K, both, 2, 2);
        }
    }
    return count;
}

/* Undecided questions about the innermost index: those of the form inner + c < bound give places to
 * cut; the rest are counted. */
static int trial_cuts(Trial *t, const Nest *n, int64_t *cuts, int *ncuts) {
    Kern *K = &t->K;
    int open = 0;
    for (int i = 0; i < K->compares.n; i++) {
        const ExNode *c = ex_node(K, K->compares.at[i]);
        if (c->depth < 2)
            continue;
        bool le = c->op == L_LE;
        Ex v = le ? c->b : c->a;
        int64_t bound = 0, shift = 0;
        bool ok = ex_is_i(K, le ? c->a : c->b, &bound);
        const ExNode *x = ex_node(K, v);
        if (x->kind == EX_OP && x->op == L_ADD && ex_is_i(K, x->b, &shift))
            v = x->a;
        if (!ok || v != t->inner[0] || n->inner > CUT_ELEMENTS || *ncuts >= MAX_PIECES - 1) {
            open++;
            continue;
        }
        cuts[(*ncuts)++] = bound - shift;
    }
    return open;
}

static int by_value(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void nest_cut(Nest *n, int64_t *cuts, int ncuts) {
    qsort(cuts, (size_t)ncuts, sizeof *cuts, by_value);
    n->npieces = 0;
    n->cut[0] = 0;
    for (int i = 0; i < ncuts; i++)
        if (cuts[i] > n->cut[n->npieces] && cuts[i] < n->inner)
            n->cut[++n->npieces] = cuts[i];
    n->cut[++n->npieces] = n->inner;
}

/* How bad the best form of a nest is (0: no divisions or undecided bounds in the vector loop); the
 * nest gets its cuts. */
static int nest_try(Nest *n, Lower *L, int kernel, const char *what, MapBody *body, void *ctx) {
    Trial t;
    int64_t cuts[MAX_PIECES];
    int ncuts = 0;
    trial_make(&t, L, kernel, what, n, body, ctx);
    int open = trial_cuts(&t, n, cuts, &ncuts), score = trial_divisions(&t, n) + open;
    trial_drop(&t);
    if (ncuts)
        nest_cut(n, cuts, ncuts);
    if (n->npieces > 1) {
        trial_make(&t, L, kernel, what, n, body, ctx);
        score = trial_divisions(&t, n) + open;
        trial_drop(&t);
    }
    return score;
}

static Nest nest_choose(Lower *L, int kernel, const char *what, int rank, const int64_t *dims,
                        MapBody *body, void *ctx) {
    int64_t d[MAX_DIGITS], total = 1;
    int n = 0, best_score = -1;
    for (int i = 0; i < rank; i++) {
        total *= dims[i];
        if (dims[i] != 1)
            d[n++] = dims[i];
    }
    Nest best = {.rows = 1, .inner = total, .npieces = 1, .cut = {0, total}};
    int64_t inner = total;
    for (int c = 0; c < n || c == 0; c++) {
        Nest nest = {.rows = total / inner, .inner = inner, .npieces = 1, .cut = {0, inner}};
        if (L->gpu && c && inner < WARP)
            break;
        int score = nest_try(&nest, L, kernel, what, body, ctx);
        if (best_score < 0 || score < best_score) {
            best_score = score;
            best = nest;
        }
        if (score == 0)
            break;
        inner /= n ? d[c] : 1;
    }
    return best;
}

static void emit_piece(Trial *t, int piece, LVal lo, LVal hi) {
    Kern *K = &t->K;
    Sinks *s = &t->sinks[piece];
    Ex *all = xcalloc((size_t)(2 * s->n + 1), sizeof(Ex));
    for (int i = 0; i < s->n; i++) {
        all[2 * i] = s->at[i].index;
        all[2 * i + 1] = s->at[i].value;
    }
    ex_hoist(K, all, 2 * s->n);
    kern_loop(K, LOOP_VECTOR, t->inner[piece], lo, hi);
    for (int i = 0; i < 2 * s->n; i++)
        ex_emit(K, all[i]);
    for (int i = 0; i < s->n; i++)
        lp_store(K->p, s->at[i].buffer, ex_emit(K, s->at[i].index), ex_emit(K, s->at[i].value));
    kern_end(K);
    free(all);
}

void map_run(Lower *L, int kernel, const char *what, int rank, const int64_t *dims, MapBody *body,
             void *ctx) {
    for (int i = 0; i < rank; i++)
        if (dims[i] == 0)
            return;
    Nest n = nest_choose(L, kernel, what, rank, dims, body, ctx);
    Trial t;
    trial_make(&t, L, kernel, what, &n, body, ctx);
    Kern *K = &t.K;
    LoopProgram *p = K->p;
    const int64_t grain = lower_grain(L);
    int64_t per = n.inner < grain ? grain / n.inner : 1, chunks = 1, tasks;
    LVal task = lp_task(p), lo, hi;
    if (n.npieces == 1)
        chunks = ceil_div(n.inner, grain);
    if (chunks > 1) {
        tasks = n.rows * chunks;
        lo = lp_2(p, L_DIV, task, lp_const_i(p, chunks));
        hi = lp_2(p, L_ADD, lo, lp_const_i(p, 1));
    } else {
        tasks = ceil_div(n.rows, per);
        lo = tasks == 1 ? lp_const_i(p, 0) : lp_2(p, L_MUL, task, lp_const_i(p, per));
        hi = lp_2(p, L_ADD, lo, lp_const_i(p, per));
        hi = tasks == 1     ? lp_const_i(p, n.rows)
             : n.rows % per ? lp_2(p, L_MIN, hi, lp_const_i(p, n.rows))
                            : hi;
    }
    for (int i = 0; i < n.npieces; i++)
        for (int s = 0; s < t.sinks[i].n; s++) {
            Ex both[2] = {t.sinks[i].at[s].index, t.sinks[i].at[s].value};
            ex_hoist(K, both, 2);
        }
    kern_loop(K, L->gpu && n.rows > 1 && per > 1 && n.inner <= 4 * WARP ? LOOP_VECTOR : LOOP_SEQ,
              t.row, lo, hi);
    if (chunks > 1) {
        LVal first =
            lp_2(p, L_MUL, lp_2(p, L_REM, task, lp_const_i(p, chunks)), lp_const_i(p, grain));
        LVal end =
            lp_2(p, L_MIN, lp_2(p, L_ADD, first, lp_const_i(p, grain)), lp_const_i(p, n.inner));
        emit_piece(&t, 0, first, end);
    } else {
        for (int i = 0; i < n.npieces; i++)
            emit_piece(&t, i, lp_const_i(p, n.cut[i]), lp_const_i(p, n.cut[i + 1]));
    }
    kern_end(K);
    kern_finish(K, tasks);
    trial_drop(&t);
}

void sink_add(Kern *K, Sinks *s, const Value *root, const Index *at, Ex value) {
    int64_t skip;
    int b = kern_buffer(K, root, true, &skip);
    vec_push(s, ((Sink){b, ex_addc(K, index_linear(K, at), skip), value}));
}

/* ---- the roots of a map kernel ---- */

static void roots_body(Kern *K, const Index *at, Sinks *out, void *ctx) {
    const Kernel *k = ctx;
    for (int i = 0; i < k->roots.n; i++)
        sink_add(K, out, k->roots.at[i], at, elem(K, k->roots.at[i], at));
}

void lower_map(Lower *L, int kernel) {
    const Kernel *k = &L->plan->kernels.at[kernel];
    const Value *r = k->roots.at[0];
    map_run(L, kernel, NULL, r->rank, r->dims, roots_body, (void *)k);
}

/* A reshape that is not a view of what is stored: a copy. */
void lower_reshape(Lower *L, int kernel, Node *n) {
    lower_map(L, kernel);
}

void lower_xent_grad(Lower *L, int kernel, Node *n) {
    lower_map(L, kernel);
}

void lower_unfold(Lower *L, int kernel, Node *n) {
    lower_map(L, kernel);
}

void lower_range(Lower *L, int kernel, Node *n) {
    lower_map(L, kernel);
}

void lower_shape(Lower *L, int kernel, Node *n) {
    lower_map(L, kernel);
}

/* ---- concat: one loop per operand, into its part of the result; or one for all operands where
 * they have work in common, as the gradients of a gate and what it multiplies ---- */

typedef struct Part {
    Node *n;
    int operand;
    int64_t begin;
} Part;

static void concat_body(Kern *K, const Index *at, Sinks *out, void *ctx) {
    const Part *part = ctx;
    Value *x = part->n->in[part->operand];
    const Value *y = part->n->out[0];
    int axis = (int)node_int(part->n, AT_AXIS, 0);
    int64_t sizes[3] = {dims_product(x->dims, 0, axis), x->dims[axis],
                        dims_product(x->dims, axis + 1, x->rank)};
    Ex d[3];
    index_split(K, at, 3, sizes, d);
    Index to = {0};
    index_push(&to, sizes[0], d[0]);
    index_push(&to, y->dims[axis], ex_addc(K, d[1], part->begin));
    index_push(&to, sizes[2], d[2]);
    sink_add(K, out, y, &to, elem(K, x, at));
}

static void parts_body(Kern *K, const Index *at, Sinks *out, void *ctx) {
    Part part = {ctx, 0, 0};
    int axis = (int)node_int(part.n, AT_AXIS, 0);
    for (; part.operand < part.n->nin; part.operand++) {
        concat_body(K, at, out, &part);
        part.begin += part.n->in[part.operand]->dims[axis];
    }
}

/* By index of the kernel's nodes: n and what it is computed of inside the kernel get `bit`. */
static void reach(const Kernel *k, const Node *n, unsigned bit, unsigned *reached) {
    for (int i = 0; i < k->nodes.n; i++) {
        if (k->nodes.at[i] != n || (reached[i] & bit))
            continue;
        reached[i] |= bit;
        for (int o = 0; o < n->nin; o++)
            if (n->in[o])
                reach(k, n->in[o]->def, bit, reached);
    }
}

static bool share_work(const Kernel *k, const Node *n) {
    enum { MOST = 4 };
    if (n->nin < 2 || n->nin > MOST)
        return false;
    for (int i = 1; i < n->nin; i++)
        if (!same_dims(n->in[0], n->in[i]))
            return false;
    unsigned *reached = xcalloc((size_t)k->nodes.n + 1, sizeof *reached);
    for (int i = 0; i < n->nin; i++)
        reach(k, n->in[i]->def, 1u << i, reached);
    bool share = false;
    for (int i = 0; i < k->nodes.n; i++)
        share |= (op_info[k->nodes.at[i]->op].flags & OPF_ELEM) && (reached[i] & (reached[i] - 1));
    free(reached);
    return share;
}

void lower_concat(Lower *L, int kernel, Node *n) {
    int axis = (int)node_int(n, AT_AXIS, 0);
    Part part = {n, 0, 0};
    if (L->plan->kernels.at[kernel].roots.at[0] !=
        n->out[0]) { /* a member of somebody else's kernel */
        lower_map(L, kernel);
        return;
    }
    if (share_work(&L->plan->kernels.at[kernel], n)) {
        map_run(L, kernel, NULL, n->in[0]->rank, n->in[0]->dims, parts_body, n);
        return;
    }
    for (part.operand = 0; part.operand < n->nin; part.operand++) {
        const Value *x = n->in[part.operand];
        map_run(L, kernel, NULL, x->rank, x->dims, concat_body, &part);
        part.begin += x->dims[axis];
    }
}
