/* grad.h: what the gradient rules (grad_*.c) and the passes around them share. Private to passes/.
 *
 * A rule receives the node and the cotangents of its results (NULL: nothing flowed into that
 * result) and calls grad_add for each operand that grad_needs. It emits ordinary ops through G->b
 * only, so that a gradient prints, verifies, fuses and lowers like the forward half. */
#ifndef STGCC_PASSES_GRAD_H
#define STGCC_PASSES_GRAD_H

#include "passes/pass.h"

/* Gradients may flow through the node at all: its rule is not `none`. */
bool grad_flows(const Node *n);
/* The node has a rule that can serve (not `never`, and no attribute that rules it out). */
bool grad_supported(const Node *n);
/* Marks reached[value id] for every float value from which a gradient path leads to one of `from`.
 * `reached` has g->next_value slots, zeroed. */
void grad_reach(const Graph *g, Value *const *from, int nfrom, bool *reached);

/* ---- spelling for rules ---- */
static inline Value *g_scalar(Grad *G, const Value *like, double v) {
    return op_const_f(&G->b, like->dtype, v);
}
static inline Value *g_mul(Grad *G, Value *a, Value *b) {
    return op_binary(&G->b, OP_MUL, a, b);
}
static inline Value *g_add(Grad *G, Value *a, Value *b) {
    return op_binary(&G->b, OP_ADD, a, b);
}
static inline Value *g_sub(Grad *G, Value *a, Value *b) {
    return op_binary(&G->b, OP_SUB, a, b);
}
static inline Value *g_div(Grad *G, Value *a, Value *b) {
    return op_binary(&G->b, OP_DIV, a, b);
}
static inline Value *g_un(Grad *G, Op op, Value *a) {
    return op_unary(&G->b, op, a);
}
static inline Value *g_scale(Grad *G, Value *a, double k) {
    return k == 1 ? a : g_mul(G, a, g_scalar(G, a, k));
}
static inline Value *g_reshape(Grad *G, Value *x, const Value *like) {
    return op_reshape(&G->b, x, like->rank, like->dims);
}
static inline Value *g_zeros(Grad *G, const Value *like) {
    return op_full(&G->b, like->dtype, 0, like->rank, like->dims);
}
static inline Value *g_node1(Grad *G, Op op, Value *const *in, int nin, const Attr *attrs,
                             int nattrs) {
    return op_node(&G->b, op, in, nin, attrs, nattrs)->out[0];
}
static inline Attr attr_i(AttrKey key, int64_t v) {
    return (Attr){.key = key, .i = v};
}
static inline Attr attr_f(AttrKey key, double v) {
    return (Attr){.key = key, .f = v};
}
static inline Attr attr_s(AttrKey key, const char *s) {
    return (Attr){.key = key, .s = s};
}
static inline Attr attr_ints(AttrKey key, const int64_t *at, int n) {
    return (Attr){.key = key, .ints = {n, (int64_t *)at}};
}
static inline int axis_of(int64_t axis, int rank) {
    return (int)(axis < 0 ? axis + rank : axis);
}

/* The value of the graph output of that name, or NULL. */
Value *graph_output_named(const Graph *g, const char *name);

#endif
