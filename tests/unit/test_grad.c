/* test_grad.c: every differentiable op of the table against central differences, in float64 through
 * the reference evaluator.
 *
 * A row builds one op on random operands; the loss is a random weighting of all its float results.
 * An op of the table with a gradient and no row here fails the test, so a new op cannot come
 * without one. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ir/eval.h"
#include "ir/verify.h"
#include "passes/grad.h"

/* Operands: a letter and dims, "f2,3".
 *   f normal numbers   p positive   u in (-0.9, 0.9)   d distinct, spaced (no ties)   c clear of
 * integers and halves z like f, with exact zeros among them   t ties: small integers (never
 * differentiated) i<N below N (negative ones too for n<N)   q<N a permutation row-wise   b bool;
 * upper case: floats that get no gradient */
typedef struct Row {
    Op op;
    const char *in[5];
    Attr attrs[4];
    const char *source; /* the user's op type */
} Row;

#define INTS(K, ...) \
    { \
        .key = AT_##K, .ints = { COUNT_OF(((int64_t[]){__VA_ARGS__})), (int64_t[]){__VA_ARGS__} } \
    }
#define INT(K, v) \
    { .key = AT_##K, .i = (v) }
#define STR(K, v) \
    { .key = AT_##K, .s = (v) }
#define END \
    { .key = AT_COUNT }
#define NOATTR \
    { END }

static const Row rows[] = {
    {OP_NEG, {"f2,3"}, NOATTR, ""},
    {OP_ABS, {"d2,3"}, NOATTR, ""},
    {OP_EXP, {"f2,3"}, NOATTR, ""},
    {OP_EXP, {"f0,3"}, NOATTR, ""},
    {OP_LOG, {"p2,3"}, NOATTR, ""},
    {OP_SQRT, {"p2,3"}, NOATTR, ""},
    {OP_RECIP, {"p2,3"}, NOATTR, ""},
    {OP_SIGMOID, {"f2,3"}, NOATTR, ""},
    {OP_TANH, {"f2,3"}, NOATTR, ""},
    {OP_ERF, {"f2,3"}, NOATTR, ""},
    {OP_SOFTPLUS, {"f2,3"}, NOATTR, ""},
    {OP_SIN, {"f2,3"}, NOATTR, ""},
    {OP_COS, {"f2,3"}, NOATTR, ""},
    {OP_CAST, {"f2,3"}, {INT(TO, DT_F64), END}, ""},
    {OP_ADD, {"f2,3", "f3"}, NOATTR, ""},
    {OP_ADD, {"f2,1,3", "f4,1"}, NOATTR, ""},
    {OP_ADD, {"f", "f2,0"}, NOATTR, ""},
    {OP_SUB, {"f3", "f2,3"}, NOATTR, ""},
    {OP_SUB, {"f2,3", "f2,1"}, NOATTR, ""},
    {OP_MUL, {"f2,3", "f2,1"}, NOATTR, ""},
    {OP_MUL, {"f1,3", "f4,1"}, NOATTR, ""},
    {OP_DIV, {"f2,3", "p3"}, NOATTR, ""},
    {OP_DIV, {"f", "p2,3"}, NOATTR, ""},
    {OP_MOD, {"c2,3", "P3"}, {INT(FMOD, 1), END}, ""},
    {OP_MOD, {"c2,3", "p3"}, NOATTR, ""},
    {OP_POW, {"p2,3", "f3"}, NOATTR, ""},
    {OP_POW, {"p2,3", "F3"}, NOATTR, ""},
    {OP_MIN, {"d2,3", "d1,3"}, NOATTR, ""},
    {OP_MAX, {"d2,3", "d3"}, NOATTR, ""},
    {OP_MAX, {"d2,3", "D"}, NOATTR, "Relu"},
    {OP_WHERE, {"b2,3", "f2,3", "f3"}, NOATTR, ""},
    {OP_WHERE, {"b3", "f2,1", "f"}, NOATTR, ""},
    {OP_RESHAPE, {"f2,6"}, {INTS(DIMS, 3, 4), END}, ""},
    {OP_TRANSPOSE, {"f2,3,4"}, {INTS(PERM, 2, 0, 1), END}, ""},
    {OP_EXPAND, {"f3,1"}, {INTS(DIMS, 2, 3, 4), END}, ""},
    {OP_SLICE, {"f5,4"}, {INTS(AXES, 0), INTS(STARTS, 1), INTS(ENDS, 4), INTS(STEPS, 1)}, ""},
    {OP_SLICE, {"f7,4"}, {INTS(AXES, 0), INTS(STARTS, 1), INTS(ENDS, 7), INTS(STEPS, 2)}, ""},
    {OP_SLICE, {"f8"}, {INTS(AXES, 0), INTS(STARTS, 0), INTS(ENDS, 8), INTS(STEPS, 3)}, ""},
    {OP_SLICE,
     {"f6,4"},
     {INTS(AXES, 0, 1), INTS(STARTS, 5, 3), INTS(ENDS, 0, 0), INTS(STEPS, -2, -1)},
     ""},
    {OP_SLICE,
     {"f6,4"},
     {INTS(AXES, 0, 1), INTS(STARTS, 0, 1), INTS(ENDS, 6, 3), INTS(STEPS, 2, 1)},
     ""},
    {OP_SLICE, {"f6,4"}, {INTS(AXES, 0), INTS(STARTS, 3), INTS(ENDS, 3), INTS(STEPS, 1)}, ""},
    {OP_CONCAT, {"f2,3", "f2,1", "f2,0", "f2,2"}, {INT(AXIS, 1), END}, ""},
    {OP_CONCAT, {"f2,3"}, {INT(AXIS, -1), END}, ""},
    {OP_PAD, {"f2,3"}, {INTS(PADS, 1, 0, 0, 2), END}, ""},
    {OP_PAD, {"f4,3"}, {INTS(PADS, -1, 2, -1, 0), END}, ""},
    {OP_REDUCE_SUM, {"f2,3,4"}, {INTS(AXES, 1), INT(KEEPDIMS, 0), END}, ""},
    {OP_REDUCE_SUM, {"f2,3,4"}, {INTS(AXES, 0, 2), INT(KEEPDIMS, 1), END}, ""},
    {OP_REDUCE_SUM, {"f2,0"}, {INTS(AXES, 1), INT(KEEPDIMS, 0), END}, ""},
    {OP_REDUCE_MAX, {"d2,3,4"}, {INTS(AXES, 1), INT(KEEPDIMS, 0), END}, ""},
    {OP_REDUCE_MIN, {"d2,3,4"}, {INTS(AXES, 0, 2), INT(KEEPDIMS, 1), END}, ""},
    {OP_REDUCE_PROD, {"f2,3,2"}, {INTS(AXES, 1), INT(KEEPDIMS, 0), END}, ""},
    {OP_REDUCE_PROD, {"z4,3"}, {INTS(AXES, 1), INT(KEEPDIMS, 1), END}, ""},
    {OP_CUMSUM, {"f2,4"}, {INT(AXIS, 1), INT(EXCLUSIVE, 0), INT(REVERSE, 0), END}, ""},
    {OP_CUMSUM, {"f3,2"}, {INT(AXIS, 0), INT(EXCLUSIVE, 1), INT(REVERSE, 1), END}, ""},
    {OP_TOPK, {"d3,5"}, {INT(K, 2), INT(AXIS, 1), INT(LARGEST, 1), END}, ""},
    {OP_TOPK, {"d4,3"}, {INT(K, 2), INT(AXIS, 0), INT(LARGEST, 0), END}, ""},
    {OP_GATHER, {"f4,3", "i2,3<4"}, {INT(AXIS, 0), END}, ""},
    {OP_GATHER, {"f2,4,3", "n5<4"}, {INT(AXIS, 1), END}, ""},
    {OP_GATHER, {"f2,4,3", "n<4"}, {INT(AXIS, -2), END}, ""},
    {OP_SCATTER_ADD, {"f5,3", "i5<4"}, {INT(AXIS, 0), INTS(DIMS, 4, 3), END}, ""},
    {OP_GATHER_ELEMENTS, {"f3,4", "n5,3<3"}, {INT(AXIS, 0), END}, ""},
    {OP_GATHER_ELEMENTS, {"f3,4", "i3,2<4"}, {INT(AXIS, 1), END}, ""},
    {OP_GATHER_ND, {"f3,4,2", "i5,1<3"}, {INT(BATCH_DIMS, 0), END}, ""},
    {OP_GATHER_ND, {"f3,4,2", "i3,5,1<4"}, {INT(BATCH_DIMS, 1), END}, ""},
    {OP_GATHER_ND, {"f3,4,2", "i6,2<3"}, NOATTR, ""},
    {OP_SCATTER_ELEMENTS,
     {"f3,4", "q3,2<4", "f3,2"},
     {INT(AXIS, 1), STR(REDUCTION, "none"), END},
     ""},
    {OP_SCATTER_ELEMENTS,
     {"f3,4", "i3,5<4", "f3,5"},
     {INT(AXIS, 1), STR(REDUCTION, "add"), END},
     ""},
    {OP_SCATTER_ND, {"f5,3", "q3,1<5", "f3,3"}, {STR(REDUCTION, "none"), END}, ""},
    {OP_SCATTER_ND, {"f4,3", "i6,1<4", "f6,3"}, {STR(REDUCTION, "add"), END}, ""},
    {OP_MATMUL, {"f2,3", "f3,4"}, NOATTR, ""},
    {OP_MATMUL, {"f3,2", "f4,3"}, {INT(TRANS_A, 1), INT(TRANS_B, 1), END}, ""},
    {OP_MATMUL, {"f3,2", "f3,4"}, {INT(TRANS_A, 1), END}, ""},
    {OP_MATMUL, {"f2,3", "f4,3"}, {INT(TRANS_B, 1), END}, ""},
    {OP_MATMUL, {"f3", "f3"}, NOATTR, ""},
    {OP_MATMUL, {"f3", "f2,3,4"}, NOATTR, ""},
    {OP_MATMUL, {"f2,2,3", "f3"}, NOATTR, ""},
    {OP_MATMUL, {"f2,5,3", "f3,4"}, NOATTR, ""},
    {OP_MATMUL, {"f2,2,5,3", "f4,3"}, {INT(TRANS_B, 1), END}, ""},
    {OP_MATMUL, {"f2,3,5", "f3,4"}, {INT(TRANS_A, 1), END}, ""},
    {OP_MATMUL, {"f4,3", "f2,3,5"}, NOATTR, ""},
    {OP_MATMUL, {"f2,1,2,3", "f4,3,2"}, NOATTR, ""},
    {OP_MATMUL, {"f2,3", "f0,3,4"}, NOATTR, ""},
    {OP_MATMUL, {"f2,2,3", "f2,4,3"}, {INT(TRANS_B, 1), END}, ""},
    {OP_UNFOLD,
     {"f1,2,4,5"},
     {INTS(KERNEL, 2, 3), INTS(STRIDES, 2, 1), INTS(DILATIONS, 1, 1), INTS(PADS, 1, 0, 0, 1)},
     ""},
    {OP_UNFOLD,
     {"f2,1,6"},
     {INTS(KERNEL, 2), INTS(STRIDES, 1), INTS(DILATIONS, 2), INTS(PADS, 0, 0)},
     ""},
    {OP_SOFTMAX, {"f3,4"}, {INT(AXIS, 1), END}, ""},
    {OP_SOFTMAX, {"f3,4,2"}, {INT(AXIS, 1), INT(MASKED, 1), END}, ""},
    {OP_LOG_SOFTMAX, {"f3,4"}, {INT(AXIS, -1), END}, ""},
    {OP_XENT, {"f4,5", "i4<5"}, {INT(IGNORE_INDEX, 3), END}, ""},
};

/* Deterministic numbers: no libc rand, same everywhere. */
static uint64_t state = 88172645463325252ull;
static double uniform(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (double)(state >> 11) / 9007199254740992.0;
}
static double normal(void) {
    double s = 0;
    for (int i = 0; i < 12; i++)
        s += uniform();
    return s - 6;
}

static void fill(RTensor *t, char kind, int64_t below) {
    int64_t last = t->rank ? t->dims[t->rank - 1] : 1;
    for (int64_t i = 0; i < t->count; i++) {
        double u = uniform();
        switch (kind | 32) {
        case 'f':
            t->f[i] = normal();
            break;
        case 'p':
            t->f[i] = 0.5 + u;
            break;
        case 'u':
            t->f[i] = 1.8 * u - 0.9;
            break;
        case 'd': /* a shuffled grid, off zero */
            t->f[i] = 0.37 * (double)((i * 7 + 3) % 13 - 6) + 0.11 + 0.01 * u;
            break;
        case 'c':
            t->f[i] = (double)(int)(6 * u - 3) + 0.3;
            break;
        case 'z':
            t->f[i] = i % 4 == 1 || i % 9 == 3 ? 0 : normal();
            break;
        case 'i':
            t->i[i] = (int64_t)(u * (double)below);
            break;
        case 'n':
            t->i[i] = (int64_t)(u * 2 * (double)below) - below;
            break;
        case 'q': /* distinct along the last axis, or along the first when the last is 1 */
            t->i[i] =
                (last > 1 ? i % last : i) * 2 % below + ((last > 1 ? i % last : i) * 2 >= below);
            break;
        case 'b':
            t->i[i] = u < 0.5;
            break;
        default:
            fail_msg("operand kind %c", kind);
        }
    }
}

typedef struct Case {
    Graph *g;
    Arena arena;
    Value *in[5], *loss;
    RTensor *data[5];
    bool wanted[5];
    int nin;
} Case;

static Value *operand(Case *c, Builder *b, const char *spec, int k) {
    int64_t dims[MAX_RANK], below = 0;
    int rank = 0;
    const char *p = spec + 1;
    while (*p && *p != '<') {
        dims[rank++] = strtoll(p, (char **)&p, 10);
        p += *p == ',';
    }
    if (*p == '<')
        below = strtoll(p + 1, NULL, 10);
    DType t = strchr("inq", spec[0]) ? DT_I64 : spec[0] == 'b' ? DT_BOOL : DT_F64;
    Node *n = build_node(b, OP_INPUT, NULL, 0, 1);
    node_set_str(n, AT_NAME, (char[]){'a' + (char)k, 0});
    n->out[0]->dtype = t;
    n->out[0]->rank = rank;
    memcpy(n->out[0]->dims, dims, sizeof *dims * (size_t)rank);
    vec_push(&c->g->inputs, n->out[0]);
    c->data[k] = rtensor_new(&c->arena, t, rank, dims);
    fill(c->data[k], spec[0], below);
    c->wanted[k] = t == DT_F64 && spec[0] >= 'a';
    return n->out[0];
}

/* loss = sum over float results of <random weights, result> */
static Value *weigh(Case *c, Builder *b, Node *n) {
    Value *loss = NULL;
    for (int i = 0; i < n->nout; i++) {
        Value *y = n->out[i];
        if (!dtype_is_float(y->dtype))
            continue;
        Tensor *w = tensor_new(&c->g->arena, y->dtype, y->rank, y->dims);
        for (int64_t k = 0; k < tensor_count(w); k++)
            tensor_set_f(w, k, normal());
        int64_t axes[MAX_RANK];
        for (int k = 0; k < y->rank; k++)
            axes[k] = k;
        Value *v = op_binary(b, OP_MUL, y, op_const(b, w));
        v = y->rank ? op_reduce(b, OP_REDUCE_SUM, v, axes, y->rank, false) : v;
        loss = loss ? op_binary(b, OP_ADD, loss, v) : v;
    }
    return loss;
}

static double eval_scalar(Case *c, Value *v, RTensor **grads, Value *const *also, int n) {
    Arena arena = {0};
    Diag d = {.subject = "test"};
    Eval ev = {.arena = &arena,
               .diag = &d,
               .values = xcalloc((size_t)c->g->next_value, sizeof(RTensor *))};
    Value *only[8] = {v};
    for (int i = 0; i < n; i++)
        only[1 + i] = also[i];
    for (int i = 0; i < c->nin; i++)
        ev.values[c->in[i]->id] = c->data[i];
    if (!eval_graph(&ev, c->g, only, 1 + n))
        fail_msg("%s", d.messages.at[0].text);
    double r = ev.values[v->id]->f[0];
    for (int i = 0; i < n; i++) {
        const RTensor *t = ev.values[also[i]->id];
        grads[i] = rtensor_new(&c->arena, t->dtype, t->rank, t->dims);
        memcpy(grads[i]->f, t->f, sizeof(double) * (size_t)t->count);
    }
    free(ev.values);
    arena_free(&arena);
    diag_free(&d);
    return r;
}

static void compare(Case *c, int k, const RTensor *grad, const char *what) {
    for (int64_t i = 0; i < c->data[k]->count; i++) {
        double keep = c->data[k]->f[i], h = 1e-5;
        c->data[k]->f[i] = keep + h;
        double up = eval_scalar(c, c->loss, NULL, NULL, 0);
        c->data[k]->f[i] = keep - h;
        double down = eval_scalar(c, c->loss, NULL, NULL, 0);
        c->data[k]->f[i] = keep;
        double want = (up - down) / (2 * h), got = grad->f[i];
        if (!(fabs(want - got) <= 2e-7 * (1 + fabs(want))))
            fail_msg("%s operand %d element %lld: gradient %.12g, difference quotient %.12g", what,
                     k, (long long)i, got, want);
    }
}

/* Differentiates c->loss by its wanted operands and compares. */
static void check_case(Case *c, const char *what) {
    Builder b = builder_at_end(c->g, graph_source(c->g, "", "test"));
    Value *wants[5], *grads[5] = {NULL};
    int where[5], n = 0;
    for (int i = 0; i < c->nin; i++)
        if (c->wanted[i]) {
            where[n] = i;
            wants[n++] = c->in[i];
        }
    Seed seed = {c->loss, op_const_f(&b, c->loss->dtype, 1)};
    Cotangents cot;
    Diag d = {.subject = "test"};
    if (!grad_run(c->g, &seed, 1, wants, n, NULL, 0, &cot, &d))
        fail_msg("%s: %s", what, d.messages.at[0].text);
    for (int i = 0; i < n; i++) {
        grads[i] = cot.of[wants[i]->id];
        if (!grads[i])
            fail_msg("%s: operand %d got no gradient", what, where[i]);
        if (!same_dims(grads[i], wants[i]))
            fail_msg("%s: operand %d has a gradient of another shape", what, where[i]);
        graph_add_output(c->g, arena_printf(&c->g->arena, "grad%d", i), grads[i]);
    }
    char *broken = graph_check(c->g);
    if (broken)
        fail_msg("%s: %s", what, broken);
    RTensor *got[5];
    eval_scalar(c, c->loss, got, grads, n);
    for (int i = 0; i < n; i++)
        compare(c, where[i], got[i], what);
    cotangents_free(&cot);
    diag_free(&d);
}

static void case_free(Case *c) {
    graph_free(c->g);
    arena_free(&c->arena);
}

static void run_row(const Row *r, int number) {
    Case c = {.g = graph_new("row")};
    Builder b = builder_at_end(c.g, graph_source(c.g, "x", r->source));
    while (c.nin < 5 && r->in[c.nin]) {
        c.in[c.nin] = operand(&c, &b, r->in[c.nin], c.nin);
        c.nin++;
    }
    int nattr = 0;
    while (nattr < 4 && r->attrs[nattr].key != AT_COUNT)
        nattr++;
    Node *n = op_node(&b, r->op, c.in, c.nin, r->attrs, nattr);
    c.loss = weigh(&c, &b, n);
    char what[64];
    snprintf(what, sizeof what, "row %d (%s)", number, op_info[r->op].name);
    check_case(&c, what);
    case_free(&c);
}

static void test_rows(void **unused) {
    (void)unused;
    for (int i = 0; i < COUNT_OF(rows); i++)
        run_row(&rows[i], i);
}

/* ---- ops whose operands must agree with each other: built by hand ---- */

static void test_fold(void **unused) {
    (void)unused;
    Case c = {.g = graph_new("fold"), .nin = 1};
    Builder b = builder_at_end(c.g, graph_source(c.g, "x", ""));
    c.in[0] = operand(&c, &b, "f1,2,4,5", 0);
    Attr a[5] = {INTS(KERNEL, 2, 3), INTS(STRIDES, 2, 1), INTS(DILATIONS, 1, 1),
                 INTS(PADS, 1, 0, 0, 1), INTS(DIMS, 4, 5)};
    Node *u = op_node(&b, OP_UNFOLD, c.in, 1, a, 4);
    Value *squares = op_binary(&b, OP_MUL, u->out[0], u->out[0]);
    c.loss = weigh(&c, &b, op_node(&b, OP_FOLD, &squares, 1, a, 5));
    check_case(&c, "fold");
    case_free(&c);
}

/* What dispatch makes of idx[T,K] with E experts, as the other ops need it. */
static Node *dispatch(Case *c, Builder *b, int tokens, int k, int experts, bool leave_one_empty) {
    Tensor *t = tensor_new(&c->g->arena, DT_I64, 2, (int64_t[]){tokens, k});
    for (int i = 0; i < tokens * k; i++) /* the second token's last choice is dropped */
        tensor_set_i(t, i, i == 2 * k - 1 ? -1 : (i * 5 + i / k) % (experts - leave_one_empty));
    Value *idx = op_const(b, t);
    Attr a[2] = {INT(EXPERTS, experts), INT(TOP_K, k)};
    return op_node(b, OP_DISPATCH, &idx, 1, a, 2);
}

static Case moe_case(const char *name, Builder *b) {
    Case c = {.g = graph_new(name)};
    *b = builder_at_end(c.g, graph_source(c.g, "x", ""));
    return c;
}

static void test_gather_rows_and_combine(void **unused) {
    (void)unused;
    for (int which = 0; which < 2; which++) {
        Builder b;
        Case c = moe_case("rows", &b);
        Node *d = dispatch(&c, &b, 5, 2, 4, true);
        c.nin = 1;
        c.in[0] = operand(&c, &b, which ? "f10,3" : "f5,3", 0);
        Value *gather[3] = {c.in[0], d->out[1], d->out[4]},
              *combine[3] = {c.in[0], d->out[4], d->out[1]};
        c.loss = weigh(
            &c, &b,
            op_node(&b, which ? OP_COMBINE : OP_GATHER_ROWS, which ? combine : gather, 3, NULL, 0));
        check_case(&c, which ? "combine" : "gather_rows");
        case_free(&c);
    }
}

static void test_grouped(void **unused) {
    (void)unused;
    for (int trans = 0; trans < 2; trans++)
        for (int how = 0; how < 3; how++) { /* a stack, three matrices, the weight gradient */
            Builder b;
            Case c = moe_case("grouped", &b);
            Node *d = dispatch(&c, &b, 5, 2, how == 1 ? 3 : 4, how != 1);
            Attr a = INT(TRANS_B, 1);
            c.in[c.nin++] = operand(&c, &b, "f5,3", 0);
            Value *gather[3] = {c.in[0], d->out[1], d->out[4]};
            Value *x = op_node(&b, OP_GATHER_ROWS, gather, 3, NULL, 0)->out[0];
            Value *in[5] = {x, d->out[0]};
            if (how == 2) {
                c.in[c.nin++] = operand(&c, &b, "f5,2", 1);
                Value *other[3] = {c.in[1], d->out[1], d->out[4]};
                in[1] = op_node(&b, OP_GATHER_ROWS, other, 3, NULL, 0)->out[0];
                in[2] = d->out[0];
                c.loss = weigh(&c, &b, op_node(&b, OP_GROUPED_WGRAD, in, 3, &a, trans));
            } else {
                int matrices = how == 1 ? 3 : 1;
                for (int i = 0; i < matrices; i++) {
                    const char *spec =
                        how == 1 ? (trans ? "f2,3" : "f3,2") : (trans ? "f4,2,3" : "f4,3,2");
                    c.in[c.nin] = in[2 + i] = operand(&c, &b, spec, c.nin);
                    c.nin++;
                }
                Value *y = op_node(&b, OP_GROUPED_MATMUL, in, 2 + matrices, &a, trans)->out[0];
                Value *back[3] = {y, d->out[4], d->out[1]};
                c.loss = weigh(&c, &b, op_node(&b, OP_COMBINE, back, 3, NULL, 0));
            }
            check_case(&c, how == 2 ? "grouped_wgrad" : "grouped_matmul");
            case_free(&c);
        }
}

static void test_segment_sum_and_bias_gather(void **unused) {
    (void)unused;
    for (int which = 0; which < 2; which++) {
        Builder b;
        Case c = moe_case("segments", &b);
        Node *d = dispatch(&c, &b, 5, 2, 4, true);
        c.nin = 1;
        c.in[0] = operand(&c, &b, which ? "f4,3" : "f10,3", 0);
        Value *in[3] = {c.in[0], d->out[0], d->out[3]};
        Value *by_row = which ? op_gather(&b, c.in[0], d->out[3], 0) : c.in[0];
        Value *back[3] = {by_row, d->out[4], d->out[1]};
        c.loss = weigh(&c, &b,
                       which ? op_node(&b, OP_COMBINE, back, 3, NULL, 0)
                             : op_node(&b, OP_SEGMENT_SUM, in, 3, NULL, 0));
        check_case(&c, which ? "gather by row_expert" : "segment_sum");
        case_free(&c);
    }
}

/* Ops tested by the functions above rather than by a row. */
static const Op by_hand[] = {OP_FOLD,           OP_GATHER_ROWS,   OP_COMBINE,
                             OP_GROUPED_MATMUL, OP_GROUPED_WGRAD, OP_SEGMENT_SUM};

static void test_every_op_has_a_row(void **unused) {
    (void)unused;
    for (int op = 0; op < OP_COUNT; op++) {
        Node n = {.op = (Op)op};
        bool found = !grad_flows(&n) || !grad_supported(&n);
        for (int i = 0; i < COUNT_OF(rows) && !found; i++)
            found = rows[i].op == (Op)op;
        for (int i = 0; i < COUNT_OF(by_hand) && !found; i++)
            found = by_hand[i] == (Op)op;
        if (!found)
            fail_msg("op '%s' has a gradient and no row in this test", op_info[op].name);
    }
}

/* ---- conventions where no derivative exists, and chains ---- */

typedef struct Point {
    const char *name, *source;
    Op op;
    double x, y; /* y: the constant operand */
    double want;
} Point;

static void test_conventions(void **unused) {
    (void)unused;
    static const Point points[] = {
        {"relu at 0", "Relu", OP_MAX, 0, 0, 0},
        {"clip at its lower bound", "Clip", OP_MAX, -1, -1, 1},
        {"clip at its upper bound", "Clip", OP_MIN, 6, 6, 1},
        {"clip above", "Clip", OP_MIN, 7, 6, 0},
        {"max of equals", "Max", OP_MAX, 2, 2, 0.5},
        {"min of equals", "Min", OP_MIN, 2, 2, 0.5},
        {"hard sigmoid at its bound", "HardSigmoid", OP_MIN, 1, 1, 0},
        {"x^2 at 0", "Pow", OP_POW, 0, 2, 0},
        {"x^3 at -2", "Pow", OP_POW, -2, 3, 12},
        {"x^1 at 0", "Pow", OP_POW, 0, 1, 1},
        {"x^0 at 0", "Pow", OP_POW, 0, 0, 0},
        {"x^-1 at 2", "Pow", OP_POW, 2, -1, -0.25},
        {"x^4 at 0", "Pow", OP_POW, 0, 4, 0},
    };
    for (int i = 0; i < COUNT_OF(points); i++) {
        const Point *p = &points[i];
        Case c = {.g = graph_new("point"), .nin = 1};
        Builder b = builder_at_end(c.g, graph_source(c.g, "x", p->source));
        c.in[0] = operand(&c, &b, "f", 0);
        c.data[0]->f[0] = p->x;
        c.loss = op_binary(&b, p->op, c.in[0], op_const_f(&b, DT_F64, p->y));
        Seed seed = {c.loss, op_const_f(&b, DT_F64, 1)};
        Cotangents cot;
        Diag d = {.subject = "test"};
        assert_true(grad_run(c.g, &seed, 1, c.in, 1, NULL, 0, &cot, &d));
        RTensor *got;
        eval_scalar(&c, c.loss, &got, &cot.of[c.in[0]->id], 1);
        if (got->f[0] != p->want)
            fail_msg("%s: gradient %g, expected %g", p->name, got->f[0], p->want);
        cotangents_free(&cot);
        case_free(&c);
    }
}

static RTensor *first_gradient(Case *c, Value *loss) {
    Builder b = builder_at_end(c->g, graph_source(c->g, "x", ""));
    Seed seed = {loss, op_const_f(&b, DT_F64, 1)};
    Cotangents cot;
    Diag d = {.subject = "test"};
    assert_true(grad_run(c->g, &seed, 1, c->in, 1, NULL, 0, &cot, &d));
    RTensor *got;
    eval_scalar(c, loss, &got, &cot.of[c->in[0]->id], 1);
    cotangents_free(&cot);
    return got;
}

/* sqrt(sum x^2) of a zero row: 0, not 0 * inf. */
static void test_norm_of_zero(void **unused) {
    (void)unused;
    Case c = {.g = graph_new("norm"), .nin = 1};
    Builder b = builder_at_end(c.g, graph_source(c.g, "x", ""));
    c.in[0] = operand(&c, &b, "f2,3", 0);
    for (int i = 0; i < 3; i++)
        c.data[0]->f[i] = 0;
    int64_t axis = 1, first = 0;
    Value *sum =
        op_reduce(&b, OP_REDUCE_SUM, op_binary(&b, OP_MUL, c.in[0], c.in[0]), &axis, 1, false);
    Value *loss = op_reduce(&b, OP_REDUCE_SUM, op_unary(&b, OP_SQRT, sum), &first, 1, false);
    RTensor *got = first_gradient(&c, loss);
    double norm = sqrt(c.data[0]->f[3] * c.data[0]->f[3] + c.data[0]->f[4] * c.data[0]->f[4] +
                       c.data[0]->f[5] * c.data[0]->f[5]);
    for (int i = 0; i < 3; i++) {
        assert_true(got->f[i] == 0);
        assert_true(fabs(got->f[3 + i] - c.data[0]->f[3 + i] / norm) < 1e-12);
    }
    case_free(&c);
}

/* A softmax row of only -inf is 0 and passes nothing back; the others are unharmed. */
static void test_masked_softmax(void **unused) {
    (void)unused;
    Case c = {.g = graph_new("masked"), .nin = 1};
    Builder b = builder_at_end(c.g, graph_source(c.g, "x", ""));
    c.in[0] = operand(&c, &b, "f3,4", 0);
    Tensor *mask = tensor_new(&c.g->arena, DT_F64, 2, (int64_t[]){3, 4});
    for (int i = 0; i < 4; i++)
        tensor_set_f(mask, 4 + i, -INFINITY);
    tensor_set_f(mask, 2, -INFINITY);
    Attr a[2] = {INT(AXIS, 1), INT(MASKED, 1)};
    Value *x = op_binary(&b, OP_ADD, c.in[0], op_const(&b, mask));
    Value *loss = weigh(&c, &b, op_node(&b, OP_SOFTMAX, &x, 1, a, 2));
    RTensor *got = first_gradient(&c, loss);
    for (int i = 0; i < 12; i++) {
        assert_true(isfinite(got->f[i]));
        if (i == 2 || (i >= 4 && i < 8))
            assert_true(got->f[i] == 0);
        else
            assert_true(got->f[i] != 0);
    }
    case_free(&c);
}

static void test_ties_of_reduce_max(void **unused) {
    (void)unused;
    Case c = {.g = graph_new("ties"), .nin = 1};
    Builder b = builder_at_end(c.g, graph_source(c.g, "x", ""));
    c.in[0] = operand(&c, &b, "f4", 0);
    double x[4] = {2, 5, 5, 1}, want[4] = {0, 0.5, 0.5, 0};
    memcpy(c.data[0]->f, x, sizeof x);
    int64_t axis = 0;
    RTensor *got = first_gradient(&c, op_reduce(&b, OP_REDUCE_MAX, c.in[0], &axis, 1, false));
    for (int i = 0; i < 4; i++)
        assert_true(got->f[i] == want[i]);
    case_free(&c);
}

/* A value used several times sums its cotangents; a stop keeps its own and passes nothing on. */
static void test_sums_and_stops(void **unused) {
    (void)unused;
    Case c = {.g = graph_new("stops"), .nin = 1};
    Builder b = builder_at_end(c.g, graph_source(c.g, "x", ""));
    Value *x = c.in[0] = operand(&c, &b, "f", 0);
    c.data[0]->f[0] = 3;
    Value *square = op_binary(&b, OP_MUL, x, x),
          *loss = op_binary(&b, OP_ADD, op_binary(&b, OP_MUL, square, x), x);
    assert_true(fabs(first_gradient(&c, loss)->f[0] - 28) < 1e-12); /* 3x^2 + 1 */
    Seed seed = {loss, op_const_f(&b, DT_F64, 1)};
    Cotangents cot;
    Diag d = {.subject = "test"};
    assert_true(grad_run(c.g, &seed, 1, &x, 1, &square, 1, &cot, &d));
    RTensor *got[2];
    Value *both[2] = {cot.of[x->id], cot.of[square->id]};
    eval_scalar(&c, loss, got, both, 2);
    assert_true(got[0]->f[0] == 10); /* x^2 + 1: nothing through the square */
    assert_true(got[1]->f[0] == 3);
    cotangents_free(&cot);
    case_free(&c);
}

/* All ops without a gradient are reported at once, by the user's names. */
static void test_reports_all(void **unused) {
    (void)unused;
    Graph *g = graph_new("bad");
    Builder b = builder_at_end(g, graph_source(g, "", ""));
    Arena arena = {0};
    int64_t dims[2] = {2, 3};
    Value *w = op_param(&b, "layers.3.moe.gate.weight", PARAM_WEIGHT,
                        tensor_new(&g->arena, DT_F64, 2, dims));
    Value *w2 = op_param(&b, "other", PARAM_WEIGHT, tensor_new(&g->arena, DT_F64, 2, dims));
    Value *idx = op_const(&b, tensor_new(&g->arena, DT_I64, 2, (int64_t[]){1, 1}));
    Value *upd = op_const(&b, tensor_new(&g->arena, DT_F64, 2, (int64_t[]){1, 3}));
    Attr a = STR(REDUCTION, "mul");
    for (int i = 0; i < 2; i++) {
        b.src = graph_source(g, i ? "/b/Scatter" : "/a/Scatter", "ScatterND");
        Value *in[3] = {i ? op_binary(&b, OP_ADD, w, w2) : w, idx, upd};
        w = op_node(&b, OP_SCATTER_ND, in, 3, &a, 1)->out[0];
    }
    Value *wants[2] = {g->first->out[0], w2}, *loss = weigh(&(Case){.g = g}, &b, w->def);
    Seed seed = {loss, op_const_f(&b, DT_F64, 1)};
    Cotangents cot;
    Diag d = {.subject = "test"};
    assert_false(grad_run(g, &seed, 1, wants, 2, NULL, 0, &cot, &d));
    assert_int_equal(d.errors, 2);
    assert_int_equal(d.code, EXIT_MODEL);
    const char *last = d.messages.at[1].text, *first = d.messages.at[0].text;
    assert_non_null(strstr(last, "no gradient rule for 'ScatterND'"));
    assert_non_null(
        strstr(last, "node \"/a/Scatter\", operand \"layers.3.moe.gate.weight\" f64[2,3]"));
    assert_non_null(
        strstr(last, "needed for parameter \"layers.3.moe.gate.weight\"; try: --freeze"));
    assert_non_null(strstr(first, "(and 1 more); try: --freeze 'layers.3.*'"));
    cotangents_free(&cot);
    diag_free(&d);
    arena_free(&arena);
    graph_free(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_op_has_a_row),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_fold),
        cmocka_unit_test(test_gather_rows_and_combine),
        cmocka_unit_test(test_grouped),
        cmocka_unit_test(test_segment_sum_and_bias_gather),
        cmocka_unit_test(test_conventions),
        cmocka_unit_test(test_norm_of_zero),
        cmocka_unit_test(test_masked_softmax),
        cmocka_unit_test(test_ties_of_reduce_max),
        cmocka_unit_test(test_sums_and_stops),
        cmocka_unit_test(test_reports_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
