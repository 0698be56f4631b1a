/* lower_rows.c: kernels that work on rows: softmax, cross-entropy, norms; reductions over the last
 * axes and elementwise work on the same rows.
 *
 * Rows [outer, inner] have columns between them: element (o, j, i). Per row a list of phases runs,
 * each one loop over the columns that accumulates a scalar; then the stores, in one more loop. A
 * scalar's finished value is an expression at row depth, so what depends on it alone is computed
 * once a row. Column values with a transcendental function that more than one phase needs are kept
 * in a local row. */
#include "codegen/loop_program.h"
#include "codegen/lower_reduce.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LOCAL_BYTES = 60 * 1024, GPU_LOCAL_BYTES = 40 * 1024, MAX_PHASES = 64 };

typedef enum { PHASE_REDUCE, PHASE_MAX, PHASE_SUM_EXP, PHASE_STORE } PhaseKind;

typedef struct Phase {
    PhaseKind kind;
    Node *n;   /* the op it works for; NULL: the stores */
    Op op;     /* how it accumulates */
    Ex scalar; /* its result: a leaf at row depth */
} Phase;

typedef struct Rows {
    Kern K;
    const Kernel *k;
    int64_t outer, columns, inner, rows;
    Ex row, column; /* leaves; column: of the loop being built */
    Index at;       /* of the element being built */
    int nphases;
    Phase phase[MAX_PHASES];
    int now;       /* phase being built */
    int *local;    /* by value id: 1 + place in `kept`, 0: not kept */
    VEC(int) kept; /* local buffers; INT_MAX until stored */
    VEC(Value *) kept_value;
    int64_t local_bytes;
} Rows;

static bool is_softmax(const Node *n) {
    return n->op == OP_SOFTMAX || n->op == OP_LOG_SOFTMAX;
}

static bool is_stage(const Node *n) {
    return is_softmax(n) || n->op == OP_XENT || (n->op >= OP_REDUCE_SUM && n->op <= OP_REDUCE_PROD);
}

static void rows_shape(Rows *w) {
    const Node *n = w->k->main;
    const Value *x = n->in[0];
    int first = x->rank - 1, last = x->rank; /* the columns' axes */
    if (is_softmax(n)) {
        first = (int)node_int(n, AT_AXIS, -1);
        first += first < 0 ? x->rank : 0;
        last = first + 1;
    } else if (n->op != OP_XENT) {
        const int64_t *axes;
        int k = node_ints(n, AT_AXES, &axes);
        for (int i = 0; i < k; i++)
            first = axes[i] < first ? (int)axes[i] : first;
    }
    w->outer = dims_product(x->dims, 0, first);
    w->columns = dims_product(x->dims, first, last);
    w->inner = dims_product(x->dims, last, x->rank);
    w->rows = w->outer * w->inner;
}

/* ---- what a stage's results are ---- */

static Ex phase_scalar(const Rows *w, const Node *n, PhaseKind kind) {
    for (int i = 0; i < w->nphases; i++)
        if (w->phase[i].n == n && w->phase[i].kind == kind)
            return w->phase[i].scalar;
    bug("no such phase of %s", op_info[n->op].name);
}

/* What exp is taken of is x - base: the maximum, or 0 for a row of only -inf where that may be
 * asked for. */
static Ex softmax_base(Rows *w, Node *n) {
    Kern *K = &w->K;
    Ex max = phase_scalar(w, n, PHASE_MAX);
    LType t = ex_node(K, max)->t;
    if (n->op == OP_SOFTMAX && !node_int(n, AT_MASKED, 0))
        return max;
    if (n->op == OP_LOG_SOFTMAX)
        return max;
    Ex none = ex_2(K, L_EQ, ex_1(K, L_ABS, max), ex_f(K, t, (double)INFINITY));
    return ex_select(K, none, ex_zero(K, t), max);
}

static Ex shifted_exp(Rows *w, Node *n, const Index *at) {
    Kern *K = &w->K;
    int slot = w->local[n->out[0]->id];
    if (slot && w->kept.at[slot - 1] != INT32_MAX && w->column)
        return ex_load(K, w->kept.at[slot - 1], w->column);
    return ex_1(K, L_EXP, ex_2(K, L_SUB, elem(K, n->in[0], at), softmax_base(w, n)));
}

static Ex stage_result(Rows *w, Value *v, const Index *at) {
    Kern *K = &w->K;
    Node *n = v->def;
    LType t = value_ltype(v);
    if (n->op == OP_SOFTMAX) {
        Ex sum = phase_scalar(w, n, PHASE_SUM_EXP), one = ex_f(K, t, 1),
           inv = ex_2(K, L_DIV, one, sum);
        if (node_int(n, AT_MASKED, 0))
            inv = ex_select(K, ex_2(K, L_EQ, sum, ex_zero(K, t)), ex_zero(K, t), inv);
        return ex_mul(K, shifted_exp(w, n, at), inv);
    }
    if (n->op == OP_LOG_SOFTMAX) {
        Ex log_sum = ex_1(K, L_LOG, phase_scalar(w, n, PHASE_SUM_EXP));
        return ex_2(K, L_SUB, ex_2(K, L_SUB, elem(K, n->in[0], at), softmax_base(w, n)), log_sum);
    }
    if (n->op != OP_XENT)
        return phase_scalar(w, n, PHASE_REDUCE);
    Ex base = softmax_base(w, n), max = phase_scalar(w, n, PHASE_MAX);
    Ex infinite = ex_2(K, L_EQ, ex_1(K, L_ABS, max), ex_f(K, t, (double)INFINITY));
    Ex lse = ex_select(K, infinite, max,
                       ex_add(K, base, ex_1(K, L_LOG, phase_scalar(w, n, PHASE_SUM_EXP))));
    if (v->index == 1)
        return lse;
    Index row = index_one(w->rows, w->row), pick = {0};
    Ex label = elem(K, n->in[1], &row);
    Ex ignored = ex_2(K, L_EQ, label, ex_i(K, node_int(n, AT_IGNORE_INDEX, -100)));
    Ex safe = ex_check(K, ex_select(K, ignored, ex_i(K, 0), label), w->columns,
                       "label out of range", false);
    index_push(&pick, w->rows, w->row);
    index_push(&pick, w->columns, safe);
    return ex_select(K, ignored, ex_zero(K, t), ex_2(K, L_SUB, lse, elem(K, n->in[0], &pick)));
}

/* The row an index stands at must be the row in hand: anything else was no member of this kernel.
 */
static void check_row(Rows *w, const Value *v, const Index *at) {
    int64_t sizes[3] = {w->outer, w->columns, w->inner};
    Ex d[3], mine[3];
    bool column = value_count(v) == w->rows * w->columns;
    if (!column && value_count(v) != w->rows)
        bug("%s: %s is no member of a row kernel", w->K.name, op_info[v->def->op].name);
    if (!column)
        sizes[1] = 1;
    index_split(&w->K, at, 3, sizes, d);
    index_split(&w->K, &w->at, 3, (int64_t[]){w->outer, w->columns, w->inner}, mine);
    if (d[0] != mine[0] || d[2] != mine[2])
        bug("%s: a row reads another row's %s", w->K.name, op_info[v->def->op].name);
}

static Ex rows_own(Kern *K, Value *v, const Index *at, void *ctx) {
    Rows *w = ctx;
    if (w->K.L->member[v->def->id] != K->kernel_index + 1)
        return 0;
    if (is_stage(v->def)) {
        check_row(w, v, at);
        return stage_result(w, v, at);
    }
    int slot = w->local[v->id];
    if (!slot || w->kept.at[slot - 1] == INT32_MAX || !w->column)
        return 0;
    int64_t sizes[3] = {w->outer, w->columns, w->inner};
    Ex d[3], mine[3];
    index_split(K, at, 3, sizes, d);
    index_split(K, &w->at, 3, sizes, mine);
    bool same = d[1] == w->column && d[0] == mine[0] && d[2] == mine[2];
    return same ? ex_load(K, w->kept.at[slot - 1], w->column) : 0; /* else another row's */
}

/* ---- phases ---- */

static void add_phase(Rows *w, PhaseKind kind, Node *n, Op op) {
    if (w->nphases == MAX_PHASES)
        bug("%s: too many reductions in a row kernel", w->K.name);
    w->phase[w->nphases++] = (Phase){kind, n, op, 0};
}

static void list_phases(Rows *w) {
    for (int i = 0; i < w->k->nodes.n; i++) {
        Node *n = w->k->nodes.at[i];
        if (!is_stage(n))
            continue;
        if (n->op >= OP_REDUCE_SUM && n->op <= OP_REDUCE_PROD) {
            add_phase(w, PHASE_REDUCE, n, n->op);
            continue;
        }
        add_phase(w, PHASE_MAX, n, OP_REDUCE_MAX);
        add_phase(w, PHASE_SUM_EXP, n, OP_REDUCE_SUM);
    }
    add_phase(w, PHASE_STORE, NULL, OP_REDUCE_SUM);
}

static bool is_heavy(const Node *n) {
    switch (n->op) {
    case OP_EXP:
    case OP_LOG:
    case OP_POW:
    case OP_SIGMOID:
    case OP_TANH:
    case OP_ERF:
    case OP_SOFTPLUS:
    case OP_SIN:
    case OP_COS:
        return true;
    default:
        return false;
    }
}

static bool is_column(const Rows *w, const Value *v) {
    return value_count(v) == w->rows * w->columns && w->columns > 1;
}

static void keep(Rows *w, Value *v) {
    LType t = value_ltype(v);
    int64_t bytes = w->columns * (t == LT_F32 ? 4 : t == LT_BOOL ? 1 : 8);
    if (w->local[v->id] || w->local_bytes + bytes > (w->K.L->gpu ? GPU_LOCAL_BYTES : LOCAL_BYTES))
        return;
    w->local_bytes += bytes;
    vec_push(&w->kept, INT32_MAX);
    vec_push(&w->kept_value, v);
    w->local[v->id] = w->kept.n;
}

/* Marks the phases (as bits) that would compute v; a stage's result ends the walk: its scalar is at
 * hand. */
static void reach(const Rows *w, uint64_t *phases, Value *v, uint64_t bit) {
    if (!v || w->K.L->member[v->def->id] != w->K.kernel_index + 1 || (phases[v->id] & bit))
        return;
    phases[v->id] |= bit;
    Node *n = v->def;
    if (is_stage(n)) {
        if (is_softmax(n))
            reach(w, phases, n->in[0], bit);
        return;
    }
    for (int i = 0; i < n->nin; i++)
        reach(w, phases, n->in[i], bit);
}

static void choose_kept(Rows *w) {
    uint64_t *phases = xcalloc((size_t)w->K.L->g->next_value + 1, sizeof *phases);
    for (int i = 0; i < w->nphases; i++) {
        Phase *p = &w->phase[i];
        if (p->n)
            reach(w, phases, p->n->in[0], (uint64_t)1 << i);
        for (int r = 0; !p->n && r < w->k->roots.n; r++)
            reach(w, phases, w->k->roots.at[r], (uint64_t)1 << i);
    }
    for (int i = 0; i < w->k->nodes.n; i++) {
        Node *n = w->k->nodes.at[i];
        if (n->op == OP_SOFTMAX) {
            keep(w, n->out[0]); /* the exponentials, before the division */
            continue;
        }
        uint64_t by = phases[n->out[0]->id];
        if (is_heavy(n) && (by & (by - 1)) && is_column(w, n->out[0]))
            keep(w, n->out[0]);
    }
    free(phases);
}

/* ---- emission ---- */

static void place(Rows *w, bool column) {
    Kern *K = &w->K;
    int64_t sizes[2] = {w->outer, w->inner};
    Ex d[2];
    Index row = index_one(w->rows, w->row);
    index_split(K, &row, 2, sizes, d);
    w->column = column ? ex_leaf(K, LT_I64, 2, 0, w->columns - 1) : 0;
    w->at = (Index){0};
    index_push(&w->at, w->outer, d[0]);
    index_push(&w->at, w->columns, column ? w->column : ex_i(K, 0));
    index_push(&w->at, w->inner, d[1]);
}

/* The local rows that phase `i` fills: values it computes that a later phase needs; the expressions
 * to store. */
static int fills(Rows *w, int i, Value **value, Ex *e) {
    int n = 0;
    const Phase *p = &w->phase[i];
    uint64_t *phases = xcalloc((size_t)w->K.L->g->next_value + 1, sizeof *phases);
    if (p->n)
        reach(w, phases, p->n->in[0], 1);
    for (int s = 0; s < w->kept.n; s++) {
        Value *v = w->kept_value.at[s];
        if (w->kept.at[s] != INT32_MAX)
            continue;
        bool own_exp = p->kind == PHASE_SUM_EXP && v->def == p->n;
        if (!own_exp && (is_stage(v->def) || !phases[v->id]))
            continue;
        value[n] = v;
        e[n++] = own_exp ? shifted_exp(w, p->n, &w->at) : elem(&w->K, v, &w->at);
    }
    free(phases);
    return n;
}

static void run_phase(Rows *w, int i) {
    Kern *K = &w->K;
    LoopProgram *p = K->p;
    Phase *f = &w->phase[i];
    Value **value = xcalloc((size_t)w->kept.n + 1, sizeof *value);
    Ex *sinks = xcalloc((size_t)w->kept.n + 1, sizeof *sinks);
    place(w, true);
    Ex x = f->kind == PHASE_SUM_EXP ? shifted_exp(w, f->n, &w->at) : elem(K, f->n->in[0], &w->at);
    LType t = ex_node(K, x)->t;
    int n = fills(w, i, value, sinks),
        acc = lp_var(p, t, ex_emit(K, reduce_identity(K, f->op, f->n->in[0]->dtype, t)));
    int *buffer = xcalloc((size_t)n + 1, sizeof *buffer);
    for (int s = 0; s < n; s++)
        buffer[s] = lp_local(p, ex_node(K, sinks[s])->t, w->columns ? w->columns : 1);
    sinks[n] = x;
    ex_hoist(K, sinks, n + 1);
    kern_loop(K, f->op == OP_REDUCE_PROD || t == LT_BOOL ? LOOP_SEQ : LOOP_VECTOR, w->column,
              lp_const_i(p, 0), lp_const_i(p, w->columns));
    for (int s = 0; s < n; s++)
        lp_store(p, buffer[s], ex_emit(K, w->column), ex_emit(K, sinks[s]));
    LVal v = ex_emit(K, x);
    lp_set(p, acc, reduce_combine(p, f->op, lp_get(p, acc), v));
    kern_end(K);
    for (int s = 0; s < n; s++)
        w->kept.at[w->local[value[s]->id] - 1] = buffer[s];
    f->scalar = ex_leaf(K, t, 1, INT64_MIN, INT64_MAX);
    ex_bind(K, f->scalar, lp_get(p, acc));
    free(value);
    free(sinks);
    free(buffer);
}

/* Row values first: what they read may lie where a column root is stored. */
static void store_scalars(Rows *w) {
    Kern *K = &w->K;
    Sinks scalars = {0};
    place(w, false);
    Index row = index_one(w->rows, w->row);
    for (int i = 0; i < w->k->roots.n; i++) {
        Value *v = w->k->roots.at[i];
        if (!is_column(w, v))
            sink_add(K, &scalars, v, &row, elem(K, v, &row));
    }
    for (int i = 0; i < scalars.n; i++)
        ex_emit(K, scalars.at[i].value);
    for (int i = 0; i < scalars.n; i++)
        lp_store(K->p, scalars.at[i].buffer, ex_emit(K, scalars.at[i].index),
                 ex_emit(K, scalars.at[i].value));
    vec_free(&scalars);
}

static void store_columns(Rows *w) {
    Kern *K = &w->K;
    LoopProgram *p = K->p;
    Sinks columns = {0};
    VEC(Ex) all = {0};
    place(w, true);
    for (int i = 0; i < w->k->roots.n; i++) {
        Value *v = w->k->roots.at[i];
        if (!is_column(w, v))
            continue;
        sink_add(K, &columns, v, &w->at, elem(K, v, &w->at));
        vec_push(&all, columns.at[columns.n - 1].index);
        vec_push(&all, columns.at[columns.n - 1].value);
    }
    if (columns.n) {
        ex_hoist(K, all.at, all.n);
        kern_loop(K, LOOP_VECTOR, w->column, lp_const_i(p, 0), lp_const_i(p, w->columns));
        for (int i = 0; i < all.n; i++)
            ex_emit(K, all.at[i]);
        for (int i = 0; i < columns.n; i++)
            lp_store(p, columns.at[i].buffer, ex_emit(K, columns.at[i].index),
                     ex_emit(K, columns.at[i].value));
        kern_end(K);
    }
    vec_free(&columns);
    vec_free(&all);
}

void lower_rows(Lower *L, int kernel) {
    Rows w = {.k = &L->plan->kernels.at[kernel]};
    rows_shape(&w);
    if (w.rows == 0)
        return;
    if (w.columns == 0 && !w.k->roots.n)
        return;
    kern_begin(&w.K, L, kernel, PROGRAM_TASK, NULL);
    Kern *K = &w.K;
    LoopProgram *p = K->p;
    w.local = xcalloc((size_t)L->g->next_value + 1, sizeof *w.local);
    K->own = rows_own;
    K->own_ctx = &w;
    list_phases(&w);
    choose_kept(&w);
    int64_t per = lower_rows_per_task(L, w.columns), tasks = ceil_div(w.rows, per);
    LVal lo = lp_2(p, L_MUL, lp_task(p), lp_const_i(p, per));
    LVal hi = lp_2(p, L_ADD, lo, lp_const_i(p, per));
    hi = per == 1 ? hi : lp_2(p, L_MIN, hi, lp_const_i(p, w.rows));
    w.row = ex_leaf(K, LT_I64, 1, 0, w.rows - 1);
    kern_loop(K, LOOP_SEQ, w.row, lo, hi);
    for (int i = 0; i < w.nphases - 1; i++) {
        w.now = i;
        run_phase(&w, i);
    }
    store_scalars(&w);
    store_columns(&w);
    kern_end(K);
    kern_finish(K, tasks);
    kern_drop(K);
    free(w.local);
    vec_free(&w.kept);
    vec_free(&w.kept_value);
}

void lower_softmax(Lower *L, int kernel, Node *n) {
    lower_rows(L, kernel);
}

void lower_xent(Lower *L, int kernel, Node *n) {
    lower_rows(L, kernel);
}
