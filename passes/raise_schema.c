/* raise_schema.c: what an expert computes, as a person would write it: silu(x·W1)*(x·W2)·W3. */
#include <string.h>

#include "passes/raise.h"

typedef struct Text {
    Region *r;
    const Node *seen[16]; /* grouped products in order of appearance: W1, W2, … */
    int n;
    int depth;
} Text;

static const char *say(Text *t, const Value *v);

static const char *join(Text *t, const char *fmt, const char *a, const char *b) {
    Arena *m = &t->r->g->arena;
    size_t size = strlen(a) + strlen(b) + strlen(fmt) + 1;
    if (size > 400)
        return "…";
    char *s = arena_alloc(m, size);
    const char *p = strstr(fmt, "%a"), *q = strstr(fmt, "%b");
    snprintf(s, size, "%.*s%s%.*s%s%s", (int)(p - fmt), fmt, a,
             q ? (int)(q - p - 2) : (int)strlen(p + 2), p + 2, q ? b : "", q ? q + 2 : "");
    return s;
}

static int weight_number(Text *t, const Node *n) {
    for (int i = 0; i < t->n; i++)
        if (t->seen[i] == n)
            return i + 1;
    if (t->n < COUNT_OF(t->seen))
        t->seen[t->n++] = n;
    return t->n;
}

static const Value *through_views(const Value *v) {
    while (v->def->op == OP_RESHAPE || v->def->op == OP_CAST)
        v = v->def->in[0];
    return v;
}

/* mul(g, sigmoid(g)), in either order. */
static const Value *silu_of(const Node *n) {
    for (int i = 0; i < 2 && n->op == OP_MUL; i++) {
        const Value *s = through_views(n->in[i]), *g = through_views(n->in[1 - i]);
        if (s->def->op == OP_SIGMOID && through_views(s->def->in[0]) == g)
            return g;
    }
    return NULL;
}

static const char *say_leaf(Text *t, const Value *v) {
    const Node *n = v->def;
    double x = 0;
    if (n->op == OP_GATHER_ROWS)
        return n->in[1] == t->r->dispatch->out[1] ? "x" : "g";
    const Tensor *c = value_const(v);
    if (c && tensor_count(c) == 1) {
        x = tensor_get_f(c, 0);
        return arena_printf(&t->r->g->arena, "%.4g", x);
    }
    return "c";
}

static const char *say_slice(Text *t, const Node *n) {
    const int64_t *starts, *steps;
    int k = node_ints(n, AT_STARTS, &starts), m = node_ints(n, AT_STEPS, &steps);
    const char *x = say(t, n->in[0]);
    if (m && steps[0] != 1)
        return join(t, starts[0] ? "%a[odd]" : "%a[even]", x, "");
    return join(t, k && starts[0] ? "%a[second]" : "%a[first]", x, "");
}

static const char *say(Text *t, const Value *v) {
    v = through_views(v);
    const Node *n = v->def;
    const Value *g = silu_of(n);
    if (++t->depth > 200)
        return "…";
    if (g)
        return join(t, "silu(%a)", say(t, g), "");
    switch (n->op) {
    case OP_GROUPED_MATMUL: {
        const char *x = say(t, n->in[0]);
        char w[16];
        snprintf(w, sizeof w, "%d", weight_number(t, n));
        return join(t, "%a·W%b", x, w);
    }
    case OP_GATHER:
        return n->in[1] == t->r->dispatch->out[3] ? "b" : "c";
    case OP_MUL:
        return join(t, "(%a)*(%b)", say(t, n->in[0]), say(t, n->in[1]));
    case OP_ADD:
        return join(t, "(%a + %b)", say(t, n->in[0]), say(t, n->in[1]));
    case OP_SUB:
        return join(t, "(%a - %b)", say(t, n->in[0]), say(t, n->in[1]));
    case OP_DIV:
        return join(t, "(%a)/(%b)", say(t, n->in[0]), say(t, n->in[1]));
    case OP_MATMUL:
        return join(t, "%a·%b", say(t, n->in[0]), say(t, n->in[1]));
    case OP_MIN:
    case OP_MAX:
        return join(t, n->op == OP_MIN ? "min(%a, %b)" : "max(%a, %b)", say(t, n->in[0]),
                    say(t, n->in[1]));
    case OP_SLICE:
        return say_slice(t, n);
    default:
        break;
    }
    if ((op_info[n->op].flags & OPF_ELEM) && n->nin == 1)
        return join(t, arena_printf(&t->r->g->arena, "%s(%%a)", op_info[n->op].name),
                    say(t, n->in[0]), "");
    return say_leaf(t, v);
}

const char *raise_schema(Region *r, Value *rows) {
    Text t = {.r = r};
    return say(&t, rows);
}
