/* canonicalise.c: one spelling for each meaning, so that later passes match few shapes of graph.
 *
 * Needs: all input dims bound and inferred. Gives: constants folded through the reference
 * evaluator, shape operands turned into attributes, no-op and chained views gone, softmax guards
 * and constant indexing in their canonical form. Breaks nothing: every rule keeps the meaning of
 * every value (x + 0 keeps -0 and NaN apart; a sum's order is never changed).
 *
 *     %7 = shape %3 : i64[3]                          %12 = reshape %3 {dims=[24,32]} : f32[24,32]
 *     %8 = gather %7 %c : i64[]               ->
 *     … concat, reshape %3 %11 : f32[u0,32]
 *
 * How: a worklist (first in, first out, in graph order at first). A rule rewrites one node and
 * queues its users; each rewrite removes a node or shortens a chain, so the work is linear in the
 * graph but for re-inference of users whose shapes became known. The rules are in canonicalise_*.c
 * by family. */
#include "passes/canonicalise.h"

#include <stdlib.h>
#include <string.h>

#include "ir/infer.h"
#include "passes/pass.h"

static uint8_t *state_of(Canon *c, const Node *n) {
    if (n->id >= c->state_cap) {
        int cap = c->g->next_node + c->g->next_node / 2 + 64;
        c->state = xrealloc(c->state, (size_t)cap);
        memset(c->state + c->state_cap, 0, (size_t)(cap - c->state_cap));
        c->state_cap = cap;
    }
    return &c->state[n->id];
}

void canon_touch(Canon *c, Node *n, bool reinfer) {
    uint8_t *s = state_of(c, n);
    if (*s & CANON_GONE)
        return;
    if (reinfer)
        *s |= CANON_REINFER;
    if (*s & CANON_QUEUED)
        return;
    *s |= CANON_QUEUED;
    vec_push(&c->work, n);
}

/* Removes n if nothing uses it, and then what only it used. */
static void sweep(Canon *c, Node *n) {
    VEC(Node *) stack = {0};
    vec_push(&stack, n);
    while (stack.n) {
        Node *m = stack.at[--stack.n];
        bool used = (op_info[m->op].flags & OPF_EFFECT) || (*state_of(c, m) & CANON_GONE);
        for (int i = 0; i < m->nout && !used; i++)
            used = m->out[i]->uses.n > 0 || value_is_output(m->out[i]);
        if (used)
            continue;
        *state_of(c, m) |= CANON_GONE;
        for (int i = 0; i < m->nin; i++)
            if (m->in[i])
                vec_push(&stack, m->in[i]->def);
        node_remove(m);
    }
    vec_free(&stack);
}

bool canon_replace(Canon *c, Value *old, Value *with) {
    /* A constant may be a shape operand, which inference turns into an attribute. */
    bool shape = old->rank != with->rank || !same_dims(old, with) || value_is_const(with);
    for (int i = 0; i < old->uses.n; i++)
        canon_touch(c, old->uses.at[i].node, shape);
    if (!with->name)
        with->name = old->name;
    value_replace(old, with);
    if (!(*state_of(c, with->def) & CANON_GONE))
        canon_touch(c, with->def, false);
    sweep(c, old->def);
    return true;
}

void canon_set_in(Canon *c, Node *n, int i, Value *v) {
    Value *old = n->in[i];
    node_set_in(n, i, v);
    canon_touch(c, n, false);
    if (old)
        sweep(c, old->def);
}

void canon_drop_in(Canon *c, Node *n, int i) {
    Value *old = n->in[i];
    for (int k = i; k + 1 < n->nin; k++)
        node_set_in(n, k, n->in[k + 1]);
    node_set_in(n, n->nin - 1, NULL);
    n->nin--;
    canon_touch(c, n, true);
    if (old)
        sweep(c, old->def);
}

/* Infers n again and queues the users of results that came out different. */
static bool reinfer(Canon *c, Node *n) {
    Value before[16];
    int nout = n->nout < 16 ? n->nout : 16;
    for (int i = 0; i < nout; i++)
        before[i] = *n->out[i];
    if (!node_infer(n, c->diag))
        return false;
    for (int i = 0; i < n->nout; i++) {
        Value *v = n->out[i];
        if (i < nout && before[i].dtype == v->dtype && same_dims(&before[i], v))
            continue;
        for (int u = 0; u < v->uses.n; u++)
            canon_touch(c, v->uses.at[u].node, true);
    }
    return true;
}

/* The order matters only for speed: what removes most comes first. */
static CanonRule *const rules[] = {
    canon_fold_const,
    canon_fold_shape,
    canon_shape_operand,
    canon_reshape,
    canon_transpose,
    canon_expand,
    canon_slice,
    canon_concat,
    canon_cast,
    canon_neutral,
    canon_pow,
    canon_nan_guard,
    canon_branch_sum,
    canon_gather,
    canon_gather_nd,
    canon_gather_elements,
    canon_topk,
    canon_live_norm,
    canon_masked_scatter,
    canon_masked_rows,
};

static void run_worklist(Canon *c) {
    while (c->head < c->work.n && !c->failed) {
        Node *n = c->work.at[c->head++];
        uint8_t *s = state_of(c, n);
        *s &= (uint8_t)~CANON_QUEUED;
        if (*s & CANON_GONE)
            continue;
        if (*s & CANON_REINFER) {
            *s &= (uint8_t)~CANON_REINFER;
            if (!reinfer(c, n)) {
                c->failed = true;
                break;
            }
        }
        if (op_info[n->op].flags & OPF_LEAF)
            continue;
        for (int r = 0; r < COUNT_OF(rules); r++) {
            if (!rules[r](c, n))
                continue;
            if (!(*state_of(c, n) & CANON_GONE))
                canon_touch(c, n, false);
            break;
        }
    }
}

bool pass_canonicalise(Compile *c) {
    Canon k = {.g = c->g, .diag = c->diag};
    graph_dce(c->g);
    FOR_NODES(n, c->g)
    canon_touch(&k, n, false);
    /* Sharing makes chains meet (two equal reshapes of one value), which the rules may then
     * shorten: twice is enough for what exporters write, and a third round would find nothing that
     * later passes need. */
    for (int round = 0; round < 2 && !k.failed; round++) {
        run_worklist(&k);
        if (k.failed || !canon_share(&k))
            break;
    }
    run_worklist(&k);
    graph_dce(c->g);
    vec_free(&k.work);
    free(k.state);
    free(k.table);
    arena_free(&k.scratch);
    return !k.failed;
}
