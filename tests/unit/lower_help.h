/* lower_help.h: compiled code against the reference evaluator. A graph is written in a few lines,
 *
 *   x = f32[4,8]; i = i64<0,4>[5]; w = param f32[8,3]; c = const f32[2] 1 2
 *   y = matmul x w {trans_b=0}; a,b = topk y {k=2}; z = add y #1.5; out z b; update w z
 *
 * inputs are random (i64<lo,hi>: lo <= v < hi), the graph is evaluated in f64 and compiled both
 * with and without fusion, and all outputs and updated parameters must agree. */
#ifndef STGCC_TESTS_LOWER_HELP_H
#define STGCC_TESTS_LOWER_HELP_H

#include <ctype.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "codegen/codegen.h"
#include "ir/eval.h"
#include "ir/infer.h"
#include "passes/fuse.h"
#include "runtime/runtime.h"

typedef struct Reader {
    Graph *g;
    Builder b;
    Diag d;
    const char *s;
    int n;
    char name[256][24];
    Value *value[256];
    int64_t lo[256], hi[256];
} Reader;

static inline void skip_space(Reader *r) {
    while (isspace((unsigned char)*r->s) || *r->s == ';')
        r->s++;
}

static inline bool take(Reader *r, char c) {
    skip_space(r);
    if (*r->s != c)
        return false;
    r->s++;
    return true;
}

static inline void word(Reader *r, char *out) {
    int n = 0;
    skip_space(r);
    while (isalnum((unsigned char)*r->s) || *r->s == '_')
        if (n < 23)
            out[n++] = *r->s++;
    out[n] = 0;
    if (!n)
        fail_msg("expected a word at '%.40s'", r->s);
}

static inline int64_t integer(Reader *r) {
    char *end;
    skip_space(r);
    int64_t v = strtoll(r->s, &end, 10);
    if (end == r->s)
        fail_msg("expected a number at '%.40s'", r->s);
    r->s = end;
    return v;
}

static inline double real(Reader *r) {
    char *end;
    skip_space(r);
    double v = strtod(r->s, &end);
    r->s = end;
    return v;
}

static inline int dims_list(Reader *r, int64_t *dims) {
    int n = 0;
    assert_true(take(r, '['));
    while (!take(r, ']')) {
        dims[n++] = integer(r);
        take(r, ',');
    }
    return n;
}

static inline void define(Reader *r, const char *name, Value *v, int64_t lo, int64_t hi) {
    assert_true(r->n < 256);
    strcpy(r->name[r->n], name);
    r->lo[r->n] = lo, r->hi[r->n] = hi;
    r->value[r->n++] = v;
    v->name = arena_strdup(&r->g->arena, name);
}

static inline Value *known(Reader *r, const char *name) {
    for (int i = 0; i < r->n; i++)
        if (!strcmp(r->name[i], name))
            return r->value[i];
    fail_msg("no value '%s'", name);
    return NULL;
}

static inline Value *operand(Reader *r) {
    char name[24];
    if (take(r, '#'))
        return op_const_f(&r->b, DT_F32, real(r));
    if (take(r, '@'))
        return op_const_i(&r->b, integer(r));
    word(r, name);
    return !strcmp(name, "_") ? NULL : known(r, name);
}

static inline void attribute(Reader *r, Node *n) {
    char name[24];
    int64_t list[16];
    word(r, name);
    assert_true(take(r, '='));
    for (int k = 0; k < AT_COUNT; k++) {
        if (strcmp(attr_info[k].name, name))
            continue;
        if (attr_info[k].kind == ATTR_INTS) {
            int count = dims_list(r, list);
            node_set_ints(n, (AttrKey)k, list, count);
        } else if (attr_info[k].kind == ATTR_STR) {
            char text[24];
            word(r, text);
            node_set_str(n, (AttrKey)k, arena_strdup(&r->g->arena, text));
        } else if (attr_info[k].kind == ATTR_FLOAT) {
            node_set_float(n, (AttrKey)k, real(r));
        } else {
            skip_space(r);
            if (isalpha((unsigned char)*r->s)) {
                char text[24];
                word(r, text);
                node_set_int(n, (AttrKey)k, dtype_parse(text));
            } else {
                node_set_int(n, (AttrKey)k, integer(r));
            }
        }
        return;
    }
    fail_msg("no attribute '%s'", name);
}

static inline void leaf(Reader *r, const char *name, const char *type, bool param, bool constant) {
    int64_t dims[MAX_RANK], lo = -3, hi = 4;
    DType t = dtype_parse(type);
    if (take(r, '<')) {
        lo = integer(r);
        assert_true(take(r, ','));
        hi = integer(r);
        assert_true(take(r, '>'));
    }
    int rank = dims_list(r, dims);
    Tensor *x = tensor_new(&r->g->arena, t, rank, dims);
    if (constant) {
        for (int64_t i = 0; i < tensor_count(x); i++)
            tensor_set_f(x, i, real(r));
        define(r, name, op_const(&r->b, x), lo, hi);
        return;
    }
    if (param) {
        for (int64_t i = 0; i < tensor_count(x); i++)
            tensor_set_f(x, i, (double)(((i + 17 * name[0]) * 2654435761u >> 7) % 1000) / 500 - 1);
        define(r, name, op_param(&r->b, arena_strdup(&r->g->arena, name), PARAM_WEIGHT, x), lo, hi);
        return;
    }
    Node *n = build_node(&r->b, OP_INPUT, NULL, 0, 1);
    node_set_str(n, AT_NAME, arena_strdup(&r->g->arena, name));
    n->out[0]->dtype = t;
    n->out[0]->rank = rank;
    memcpy(n->out[0]->dims, dims, sizeof dims);
    vec_push(&r->g->inputs, n->out[0]);
    define(r, name, n->out[0], lo, hi);
}

static inline void statement(Reader *r) {
    char names[8][24], op[24];
    Value *in[64];
    int nout = 0, nin = 0;
    word(r, names[nout++]);
    if (!strcmp(names[0], "out")) {
        while (skip_space(r), isalpha((unsigned char)*r->s)) {
            const char *mark = r->s;
            word(r, op);
            if (take(r, '=') || take(r, ',') || !strcmp(op, "update")) {
                r->s = mark;
                return;
            }
            graph_add_output(r->g, arena_printf(&r->g->arena, "out/%s", op), known(r, op));
        }
        return;
    }
    if (!strcmp(names[0], "update")) {
        Value *p = operand(r);
        graph_add_update(r->g, p, operand(r));
        return;
    }
    while (take(r, ','))
        word(r, names[nout++]);
    if (!take(r, '='))
        fail_msg("expected '=' at '%.40s'", r->s);
    word(r, op);
    bool param = !strcmp(op, "param"), constant = !strcmp(op, "const");
    if (param || constant)
        word(r, op);
    if (dtype_parse(op) != DT_NONE) {
        leaf(r, names[0], op, param, constant);
        return;
    }
    Op o = op_parse(op);
    if (o == OP_COUNT)
        fail_msg("no op '%s'", op);
    for (;;) { /* operands end at { ; or the end of the text */
        while (*r->s == ' ')
            r->s++;
        if (*r->s == 0 || *r->s == ';' || *r->s == '\n' || *r->s == '{')
            break;
        in[nin++] = operand(r);
    }
    Node *n = build_node(&r->b, o, in, nin, nout);
    if (*r->s == '{') {
        r->s++;
        while (!take(r, '}')) {
            attribute(r, n);
            take(r, ',');
        }
    }
    if (!node_infer(n, &r->d)) {
        diag_print(&r->d, stderr, true);
        fail_msg("%s was not inferred", op);
    }
    for (int i = 0; i < nout; i++)
        define(r, names[i], n->out[i], 0, 0);
}

static inline void read_graph(Reader *r, const char *text) {
    memset(r, 0, sizeof *r);
    r->g = graph_new("test");
    r->b = builder_at_end(r->g, graph_source(r->g, "user", "UserOp"));
    r->s = text;
    while (skip_space(r), *r->s)
        statement(r);
}

static uint64_t lower_seed;
static inline double uniform(void) {
    lower_seed = lower_seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(lower_seed >> 40) / (1 << 24);
}

static inline void fill_input(Tensor *t, int64_t lo, int64_t hi) {
    for (int64_t i = 0; i < tensor_count(t); i++) {
        if (dtype_is_float(t->dtype))
            tensor_set_f(t, i, 4 * uniform() - 2);
        else if (t->dtype == DT_BOOL)
            tensor_set_i(t, i, uniform() < 0.5);
        else
            tensor_set_i(t, i, lo + (int64_t)((double)(hi - lo) * uniform()));
    }
}

static inline void compare(const char *text, const char *mode, const char *name, const Tensor *got,
                           const RTensor *want, double tol) {
    double scale = 1;
    for (int64_t i = 0; i < want->count && dtype_is_float(want->dtype); i++)
        if (isfinite(want->f[i]) && fabs(want->f[i]) > scale)
            scale = fabs(want->f[i]);
    for (int64_t i = 0; i < want->count; i++) {
        if (!dtype_is_float(want->dtype)) {
            if (tensor_get_i(got, i) != want->i[i])
                fail_msg("%s\n%s: %s[%lld] is %lld, expected %lld", text, mode, name, (long long)i,
                         (long long)tensor_get_i(got, i), (long long)want->i[i]);
            continue;
        }
        double a = tensor_get_f(got, i), b = want->f[i];
        bool same = (isnan(a) && isnan(b)) || a == b || fabs(a - b) <= tol * scale;
        if (!same)
            fail_msg("%s\n%s: %s[%lld] is %.9g, expected %.9g", text, mode, name, (long long)i, a,
                     b);
    }
}

static inline void check_slot(Reader *r, StgcRun *run, const char *text, const char *mode,
                              const char *name, const Value *v, const RTensor *want, double tol) {
    const StgcSlot *slot = stgc_run_find(run, name);
    if (!slot)
        fail_msg("%s\n%s: no slot '%s'", text, mode, name);
    assert_int_equal(slot->rank, v->rank);
    for (int i = 0; i < v->rank; i++)
        assert_int_equal(slot->dims[i], v->dims[i]);
    Tensor t = {.dtype = v->dtype, .rank = v->rank, .data = stgc_run_data(run, slot)};
    memcpy(t.dims, v->dims, sizeof t.dims);
    compare(text, mode, name, &t, want, tol);
}

/* Compiles and runs one step; compares with what the evaluator left in ev. */
static inline void run_compiled(Reader *r, Eval *ev, Tensor **inputs, bool fused, const char *text,
                                double tol) {
    const char *mode = fused ? "fused" : "unfused";
    Diag d = {.subject = "test"};
    CodegenOptions o = {.fused = fused};
    if (getenv("DUMP_KERNELS"))
        o.dump_kernels = stderr;
    if (getenv("DUMP_LOOPS"))
        o.dump_loops = stderr;
    Compiled *c = codegen_x86(r->g, &o, &d);
    if (!c) {
        diag_print(&d, stderr, true);
        fail_msg("%s\n%s: not compiled", text, mode);
    }
    StgcRt *rt = stgc_rt_new(2);
    StgcRun *run = stgc_run_new(rt, compiled_step(c));
    assert_non_null(run);
    for (int i = 0; i < r->g->inputs.n; i++) {
        const StgcSlot *slot = stgc_run_find(run, r->g->inputs.at[i]->name);
        assert_non_null(slot);
        memcpy(stgc_run_data(run, slot), inputs[i]->data, tensor_bytes(inputs[i]));
    }
    if (stgc_run_step(run) != STGC_OK)
        fail_msg("%s\n%s: %s", text, mode, stgc_run_error(run));
    for (int i = 0; i < r->g->outputs.n; i++) {
        GraphOutput *out = &r->g->outputs.at[i];
        check_slot(r, run, text, mode, out->name, out->value, ev->values[out->value->id], tol);
    }
    for (int i = 0; i < r->g->updates.n; i++) {
        GraphUpdate *u = &r->g->updates.at[i];
        check_slot(r, run, text, mode, param_name(u->param), u->param, ev->values[u->value->id],
                   tol);
    }
    stgc_run_free(run);
    stgc_rt_free(rt);
    compiled_free(c);
    diag_free(&d);
}

/* How a graph's compiled form is run and compared with the evaluator. */
typedef void RunGraph(Reader *r, Eval *ev, Tensor **inputs, bool fused, const char *text,
                      double tol);

static inline void differ_by(const char *text, double tol, RunGraph *run) {
    Reader *r = xcalloc(1, sizeof *r);
    read_graph(r, text);
    lower_seed = 1;
    Arena arena = {0};
    Tensor **inputs = xcalloc((size_t)r->g->inputs.n + 1, sizeof *inputs);
    Eval ev = {.arena = &arena,
               .diag = &r->d,
               .values = xcalloc((size_t)r->g->next_value + 1, sizeof(RTensor *))};
    for (int i = 0; i < r->g->inputs.n; i++) {
        const Value *v = r->g->inputs.at[i];
        inputs[i] = tensor_new(&arena, v->dtype, v->rank, v->dims);
        for (int k = 0; k < r->n; k++)
            if (r->value[k] == v)
                fill_input(inputs[i], r->lo[k], r->hi[k]);
        ev.values[v->id] = rtensor_from(&arena, inputs[i]);
    }
    if (!eval_graph(&ev, r->g, NULL, 0)) {
        diag_print(&r->d, stderr, true);
        fail_msg("%s\nwas not evaluated", text);
    }
    run(r, &ev, inputs, false, text, tol);
    run(r, &ev, inputs, true, text, tol);
    free(inputs);
    free(ev.values);
    arena_free(&arena);
    diag_free(&r->d);
    graph_free(r->g);
    free(r);
}

static inline void differ(const char *text, double tol) {
    differ_by(text, tol, run_compiled);
}

#endif
