/* eval_help.h: one graph per test, values written as "2x3: 1 2 3 4 5 6" ("" or ": 5" for a scalar),
 * results checked in value, shape, type, and against what inference said. */
#ifndef STGCC_TESTS_EVAL_HELP_H
#define STGCC_TESTS_EVAL_HELP_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ir/eval.h"
#include "ir/infer.h"

static Graph *graph;
static Builder at;
static Diag diag;

static inline int start(void **state) {
    graph = graph_new("test");
    at = builder_at_end(graph, graph_source(graph, "user", "UserOp"));
    diag = (Diag){.subject = "test"};
    return 0;
}

static inline int stop(void **state) {
    graph_free(graph);
    diag_free(&diag);
    return 0;
}

static inline Tensor *tensor_of(DType t, const char *spec) {
    int64_t dims[MAX_RANK];
    int rank = 0;
    char *end;
    while (*spec && *spec != ':') {
        dims[rank++] = strtoll(spec, &end, 10);
        spec = *end == 'x' ? end + 1 : end;
    }
    Tensor *x = tensor_new(&graph->arena, t, rank, dims);
    int64_t count = tensor_count(x);
    spec += *spec == ':';
    for (int64_t i = 0; i < count; i++) {
        if (dtype_is_float(t))
            tensor_set_f(x, i, strtod(spec, &end));
        else
            tensor_set_i(x, i, strtoll(spec, &end, 10));
        if (end == spec)
            fail_msg("too few values for %lld elements", (long long)count);
        spec = end;
    }
    return x;
}

static inline Value *of(DType t, const char *spec) {
    return op_const(&at, tensor_of(t, spec));
}
#define F(spec) of(DT_F64, spec)
#define I(spec) of(DT_I64, spec)
#define B(spec) of(DT_BOOL, spec)

/* The same value, but not a constant any more. */
static inline Value *hide(Value *v) {
    Node *n = build_node(&at, OP_CAST, &v, 1, 1);
    node_set_int(n, AT_TO, v->dtype);
    assert_true(node_infer(n, &diag));
    return n->out[0];
}

#define A_INT(K, v) \
    (Attr) { \
        .key = AT_##K, .i = (v) \
    }
#define A_FLOAT(K, v) \
    (Attr) { \
        .key = AT_##K, .f = (v) \
    }
#define A_STR(K, v) \
    (Attr) { \
        .key = AT_##K, .s = (v) \
    }
#define A_INTS(K, ...) \
    (Attr) { \
        .key = AT_##K, .ints = { COUNT_OF(((int64_t[]){__VA_ARGS__})), (int64_t[]){__VA_ARGS__} } \
    }
#define ATTRS(...) (Attr[]){__VA_ARGS__}, COUNT_OF(((Attr[]){__VA_ARGS__}))
#define NO_ATTRS NULL, 0
#define IN(...) (Value *[]){__VA_ARGS__}, COUNT_OF(((Value *[]){__VA_ARGS__}))

/* Built and inferred; a refusal fails the test. */
static inline Node *node(Op op, Value *const *in, int nin, const Attr *attrs, int nattrs) {
    return op_node(&at, op, in, nin, attrs, nattrs);
}
static inline Value *result(Op op, Value *const *in, int nin, const Attr *attrs, int nattrs) {
    return node(op, in, nin, attrs, nattrs)->out[0];
}

static inline void set_attrs(Node *n, const Attr *attrs, int nattrs) {
    for (int i = 0; i < nattrs; i++) {
        const Attr *a = &attrs[i];
        if (attr_info[a->key].kind == ATTR_INT)
            node_set_int(n, a->key, a->i);
        else if (attr_info[a->key].kind == ATTR_INTS)
            node_set_ints(n, a->key, a->ints.at, a->ints.n);
        else if (attr_info[a->key].kind == ATTR_STR)
            node_set_str(n, a->key, a->s);
        else
            node_set_float(n, a->key, a->f);
    }
}

/* The last message must hold `says` and name the user's node. */
static inline void expect_message(ExitCode code, const char *says) {
    assert_int_equal(diag.errors, 1);
    assert_int_equal(diag.code, code);
    const char *text = diag.messages.at[diag.messages.n - 1].text;
    if (!strstr(text, says) || !strstr(text, "node \"user\" (UserOp)"))
        fail_msg("message is: %s\nexpected: %s", text, says);
    diag_free(&diag);
    diag = (Diag){.subject = "test"};
}

/* Inference must refuse it. */
static inline void refuses(const char *says, Op op, Value *const *in, int nin, const Attr *attrs,
                           int nattrs) {
    int nout = op_info[op].nout ? op_info[op].nout : 1;
    Node *n = build_node(&at, op, in, nin, nout);
    set_attrs(n, attrs, nattrs);
    assert_false(node_infer(n, &diag));
    expect_message(EXIT_MODEL, says);
    node_remove(n);
}

static inline RTensor *evaluate(Value *v, bool *ok) {
    Eval ev = {.arena = &graph->arena, .diag = &diag};
    ev.values = xcalloc((size_t)graph->next_value, sizeof *ev.values);
    *ok = eval_graph(&ev, graph, &v, 1);
    RTensor *r = ev.values[v->id];
    free(ev.values);
    return r;
}

/* Evaluation must stop with this message. */
static inline void faults(ExitCode code, const char *says, Value *v) {
    bool ok;
    evaluate(v, &ok);
    assert_false(ok);
    expect_message(code, says);
}

static inline void expect_near(Value *v, const char *spec, double tolerance) {
    bool ok;
    RTensor *r = evaluate(v, &ok);
    if (!ok)
        fail_msg("%s", diag.messages.at[0].text);
    Tensor *want = tensor_of(v->dtype, spec);
    assert_int_equal(r->dtype, v->dtype);
    assert_int_equal(r->rank, want->rank);
    assert_int_equal(v->rank, want->rank);
    for (int i = 0; i < r->rank; i++) {
        assert_int_equal(r->dims[i], want->dims[i]);
        if (v->dims[i] >= 0)
            assert_int_equal(v->dims[i], want->dims[i]);
    }
    for (int64_t i = 0; i < r->count; i++) {
        if (!dtype_is_float(v->dtype)) {
            if (r->i[i] != tensor_get_i(want, i))
                fail_msg("entry %lld is %lld, expected %lld (%s)", (long long)i, (long long)r->i[i],
                         (long long)tensor_get_i(want, i), spec);
            continue;
        }
        double a = r->f[i], b = tensor_get_f(want, i);
        if (!(isnan(a) && isnan(b)) && a != b && !(fabs(a - b) <= tolerance * (1 + fabs(b))))
            fail_msg("entry %lld is %.17g, expected %.17g (%s)", (long long)i, a, b, spec);
    }
}

static inline void expect(Value *v, const char *spec) {
    expect_near(v, spec, 1e-12);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)

#endif
