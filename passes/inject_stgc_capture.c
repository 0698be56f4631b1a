/* inject_stgc_capture.c: <g_n, G_e> and |g_n|^2 of every row, without ever storing a token's
 * gradient (method.md section 2).
 *
 * A row's gradient is, for every linear of its expert, the outer product of that linear's output
 * cotangent d_n and input x_n, and for every per-expert vector (bias, scale) gathered by row, the
 * cotangent at the gather. Different parameters occupy different elements of g_n, so dots and
 * squares add up over them: linear:  dot_n += token_dot(x, d)_n             |g_n|^2 += |x_n|^2
 * |d_n|^2 vector:  dot_n += <d_n, mean_{R_e} d>           |g_n|^2 += |d_n|^2 That holds while no
 * element is used twice in one expert, and while what lies between a parameter and its use only
 * moves elements. Both are checked from the parameters forward; a layer that fails is left out with
 * its reason, never approximated. */
#include <stdlib.h>
#include <string.h>

#include "passes/grad.h"
#include "passes/loss.h"
#include "passes/stgc.h"

/* Where parameters of the layer's experts enter the rows. */
typedef struct Uses {
    NodeList linears; /* grouped_matmul, at least one weight operand trained; graph order */
    NodeList gathers; /* per-expert vectors by row */
    const char *problem;
} Uses;

static bool moves_elements(const Node *n, int operand) {
    switch (n->op) {
    case OP_RESHAPE:
    case OP_TRANSPOSE:
    case OP_SLICE:
    case OP_CONCAT:
        return true;
    case OP_CAST:
        return dtype_is_float(n->out[0]->dtype);
    case OP_GATHER:
        return operand == 0 && value_const(n->in[1]) && value_count(n->in[1]) == 1;
    default:
        return false;
    }
}

static const Value *through_reshapes(const Value *v) {
    while (v->def->op == OP_RESHAPE)
        v = v->def->in[0];
    return v;
}

static bool same_offsets(const StgcLayer *s, const Node *linear) {
    return linear->in[1] == s->offsets;
}

static void push_once(NodeList *v, Node *n) {
    for (int i = 0; i < v->n; i++)
        if (v->at[i] == n)
            return;
    vec_push(v, n);
}

/* The range one slice, or gather of one entry, takes along `axis`: false if all of it. */
static bool range_on(const Node *n, int axis, int64_t *start, int64_t *end, int64_t *step) {
    if (n->op == OP_GATHER) {
        int64_t i = tensor_get_i(value_const(n->in[1]), 0);
        if (axis_of(node_int(n, AT_AXIS, 0), n->in[0]->rank) != axis)
            return false;
        *start = i < 0 ? i + n->in[0]->dims[axis] : i;
        *end = *start + 1;
        *step = 1;
        return true;
    }
    const int64_t *axes, *starts, *steps;
    int k = n->op == OP_SLICE ? node_ints(n, AT_AXES, &axes) : 0;
    for (int i = 0; i < k; i++)
        if (axis_of(axes[i], n->in[0]->rank) == axis) {
            node_ints(n, AT_STARTS, &starts);
            *step = node_ints(n, AT_STEPS, &steps) ? steps[i] : 1;
            *start = starts[i];
            *end = *start + (n->out[0]->dims[axis] - 1) * *step + 1;
            return *step > 0;
        }
    return false;
}

/* Two readers of one value take different elements of it. */
static bool disjoint(const Node *a, const Node *b) {
    for (int axis = 0; a != b && axis < a->in[0]->rank; axis++) {
        int64_t s1, e1, k1, s2, e2, k2;
        if (!range_on(a, axis, &s1, &e1, &k1) || !range_on(b, axis, &s2, &e2, &k2))
            continue;
        if (e1 <= s2 || e2 <= s1 || (k1 == k2 && k1 > 1 && (s1 - s2) % k1 != 0))
            return true;
    }
    return false;
}

/* Follows v forward to where its elements meet rows of this layer. Returns how many such uses there
 * are; any other use, and any element used twice, is the layer's problem. */
static int follow(StgcLayer *s, const Value *v, const Value *param, Uses *u) {
    NodeList used = {0};
    int total = 0;
    Arena *arena = &s->c->g->arena;
    for (int i = 0; i < v->uses.n; i++) {
        Node *n = v->uses.at[i].node;
        int operand = v->uses.at[i].operand, hits = 0;
        bool by_row =
            n->op == OP_GATHER && operand == 0 && through_reshapes(n->in[1]) == s->row_expert;
        if (n->id >= s->c->forward_nodes)
            continue;
        if (n->op == OP_GROUPED_MATMUL && operand >= 2) {
            hits = same_offsets(s, n);
            if (hits)
                push_once(&u->linears, n);
        } else if (by_row) {
            hits = 1;
            push_once(&u->gathers, n);
        } else if (moves_elements(n, operand)) {
            hits = follow(s, n->out[0], param, u);
        } else if (n->out[0]->id < s->c->cotangents.n && s->c->cotangents.of[n->out[0]->id] &&
                   !u->problem) {
            u->problem = arena_printf(
                arena, "parameter \"%s\" enters by '%s', whose rows are not kept apart",
                param_name(param),
                n->src && *n->src->op_type ? n->src->op_type : op_info[n->op].name);
        }
        for (int k = 0; hits && k < used.n && !u->problem; k++)
            if (!disjoint(used.at[k], n))
                u->problem = arena_printf(arena, "parameter \"%s\" is used twice by one expert",
                                          param_name(param));
        if (hits)
            vec_push(&used, n);
        total += hits;
    }
    vec_free(&used);
    return total;
}

static int by_id(const void *a, const void *b) {
    const Node *x = *(Node *const *)a, *y = *(Node *const *)b;
    return (x->id > y->id) - (x->id < y->id);
}

static void find_uses(StgcLayer *s, Uses *u) {
    bool any = false;
    for (int i = 0; i < s->l->weights.n && !u->problem; i++) {
        const Value *p = s->l->weights.at[i];
        if (node_int(p->def, AT_KIND, PARAM_WEIGHT) != PARAM_WEIGHT)
            continue;
        any = true;
        follow(s, p, p, u);
    }
    if (!u->problem && !any)
        u->problem = s->l->weights.n ? "its experts are frozen" : "its experts have no parameters";
    else if (!u->problem && !u->linears.n)
        u->problem = "no trained linear of its experts was found";
    if (u->linears.n > 1)
        qsort(u->linears.at, (size_t)u->linears.n, sizeof(Node *), by_id);
}

/* Counts trained and other parameters (and constants) that v is put together from. */
static void count_roots(const Value *v, int *trained, int *other) {
    const Node *n = v->def;
    if (n->op == OP_PARAM || n->nin == 0) {
        bool train = n->op == OP_PARAM && node_int(n, AT_KIND, PARAM_WEIGHT) == PARAM_WEIGHT;
        ++*(train ? trained : other);
        return;
    }
    for (int i = 0; i < n->nin; i++)
        if (n->in[i] && dtype_is_float(n->in[i]->dtype))
            count_roots(n->in[i], trained, other);
}

/* live[e]: expert e's weight of this linear is trained. False if a stack mixes trained and frozen
 * experts. */
static bool live_experts(const StgcLayer *s, const Node *linear, bool *live, bool *all) {
    int operands = linear->nin - 2;
    bool stack = linear->in[2]->rank == 3;
    *all = true;
    for (int64_t e = 0; e < s->experts; e++) {
        int trained = 0, other = 0;
        count_roots(linear->in[2 + (stack || e >= operands ? 0 : e)], &trained, &other);
        if (trained && other)
            return false;
        live[e] = trained > 0;
        *all &= live[e];
    }
    return true;
}

/* [R,1] of 1 where the row's expert is live. */
static Value *live_rows(StgcLayer *s, const bool *live) {
    float *f = ARENA_ARRAY(&s->c->g->arena, float, s->experts);
    for (int64_t e = 0; e < s->experts; e++)
        f[e] = live[e] ? 1 : 0;
    Tensor t = {.dtype = DT_F32, .rank = 1, .dims = {s->experts}, .data = f};
    return loss_column(s->b, stgc_by_row(s, op_const(s->b, &t)));
}

static Value *sum_or(StgcLayer *s, Value *sum, Value *v) {
    return sum ? op_binary(s->b, OP_ADD, sum, v) : v;
}

/* |v_n|^2 of rows v[R,…]. */
static Value *row_square(StgcLayer *s, Value *v) {
    int64_t dims[2] = {s->rows, s->rows ? value_count(v) / s->rows : 1}, axis = 1;
    v = op_reshape(s->b, v, 2, dims);
    return op_reduce(s->b, OP_REDUCE_SUM, op_binary(s->b, OP_MUL, v, v), &axis, 1, false);
}

/* The weight gradient that backward made of the same x and d, if it did. */
static Node *wgrad_of(const Value *x, const Value *d) {
    for (int i = 0; i < x->uses.n; i++) {
        Node *n = x->uses.at[i].node;
        if (n->op == OP_GROUPED_WGRAD && n->in[0] == x && n->in[1] == d)
            return n;
    }
    return NULL;
}

static Value *masked(StgcLayer *s, Value *v) {
    return s->row_mask ? op_binary(s->b, OP_MUL, v, loss_column(s->b, s->row_mask)) : v;
}

static void add_linear(StgcLayer *s, StgcCapture *cap, const Node *linear, const bool *live,
                       bool all_live) {
    Value *x = op_cast(s->b, linear->in[0], DT_F32), *d = s->c->cotangents.of[linear->out[0]->id];
    Node *w = wgrad_of(linear->in[0], d);
    d = op_cast(s->b, d, DT_F32);
    if (s->row_mask || !all_live) {
        d = masked(s, all_live ? d : op_binary(s->b, OP_MUL, d, live_rows(s, live)));
        w = NULL;
    }
    bool pass_w = w && w->out[0]->dtype == DT_F32;
    Value *in[4] = {x, d, s->offsets, pass_w ? w->out[0] : NULL};
    Attr a[2] = {attr_s(AT_CAPTURE, "auto"), attr_i(AT_TRANS_B, 1)};
    bool trans = pass_w && node_int(w, AT_TRANS_B, 0);
    Value *dot = op_node(s->b, OP_TOKEN_DOT, in, pass_w ? 4 : 3, a, trans ? 2 : 1)->out[0];
    if (s->row_mask) { /* the op's mean counts masked rows; ours does not */
        Value *one = op_const_f(s->b, DT_F32, 1);
        Value *ratio =
            op_binary(s->b, OP_DIV, s->row_counts, op_binary(s->b, OP_MAX, s->counts, one));
        dot = op_binary(s->b, OP_MUL, dot, stgc_by_row(s, ratio));
    }
    cap->dot = sum_or(s, cap->dot, dot);
    cap->square =
        sum_or(s, cap->square, op_binary(s->b, OP_MUL, row_square(s, x), row_square(s, d)));
}

/* Rows v[R,…] that are themselves (part of) the token's gradient. */
static void add_vector(StgcLayer *s, StgcCapture *cap, Value *v) {
    int64_t dims[2] = {s->rows, s->rows ? value_count(v) / s->rows : 1}, axis = 1;
    v = masked(s, op_reshape(s->b, op_cast(s->b, v, DT_F32), 2, dims));
    Value *in[2] = {v, s->offsets}, *one = op_const_f(s->b, DT_F32, 1);
    Value *sum = op_node(s->b, OP_SEGMENT_SUM, in, 2, NULL, 0)->out[0];
    Value *mean =
        op_binary(s->b, OP_DIV, sum, loss_column(s->b, op_binary(s->b, OP_MAX, s->counts, one)));
    Value *product = op_binary(s->b, OP_MUL, v, op_gather(s->b, mean, s->row_expert, 0));
    cap->dot = sum_or(s, cap->dot, op_reduce(s->b, OP_REDUCE_SUM, product, &axis, 1, false));
    cap->square = sum_or(s, cap->square, row_square(s, v));
}

static void emit(StgcLayer *s, StgcCapture *cap, const Uses *u) {
    CaptureMode mode = s->c->recipe->stgc.capture;
    bool *live = ARENA_ARRAY(&s->c->g->arena, bool, s->experts), all;
    Node *last = u->linears.at[u->linears.n - 1];
    for (int i = 0; i < u->linears.n; i++) {
        const Node *n = u->linears.at[i];
        Value *d = s->c->cotangents.of[n->out[0]->id];
        if (!d || (mode != CAPTURE_EXACT && n != last))
            continue;
        live_experts(s, n, live, &all);
        for (int64_t e = 0; e < s->experts; e++)
            cap->live[e] |= live[e];
        if (mode == CAPTURE_OUTPUT)
            add_vector(s, cap,
                       all ? d
                           : op_binary(s->b, OP_MUL, op_cast(s->b, d, DT_F32), live_rows(s, live)));
        else
            add_linear(s, cap, n, live, all);
    }
    for (int i = 0; mode == CAPTURE_EXACT && i < u->gathers.n; i++) {
        Value *d = s->c->cotangents.of[u->gathers.at[i]->out[0]->id];
        if (d)
            add_vector(s, cap, d);
    }
}

static bool all_frozen(const StgcLayer *s) {
    bool trained = false;
    for (int i = 0; i < s->l->weights.n; i++)
        trained =
            trained || node_int(s->l->weights.at[i]->def, AT_KIND, PARAM_WEIGHT) == PARAM_WEIGHT;
    return !trained;
}

StgcCapture stgc_capture(StgcLayer *s) {
    StgcCapture cap = {.live = ARENA_ARRAY(&s->c->g->arena, bool, s->experts)};
    Uses u = {0};
    find_uses(s, &u);
    bool *live = ARENA_ARRAY(&s->c->g->arena, bool, s->experts), all;
    for (int i = 0; !u.problem && i < u.linears.n; i++)
        if (!live_experts(s, u.linears.at[i], live, &all))
            u.problem = "some experts of one stack of weights are frozen, others are not";
    cap.skipped = u.problem;
    cap.frozen = !u.linears.n && !u.gathers.n && s->l->weights.n && all_frozen(s);
    if (!u.problem)
        emit(s, &cap, &u);
    if (!u.problem && !cap.dot)
        cap.skipped = "the loss does not depend on its experts";
    vec_free(&u.linears);
    vec_free(&u.gathers);
    return cap;
}
