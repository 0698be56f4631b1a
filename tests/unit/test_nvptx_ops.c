/* Every lowering on the PTX emulator: the graphs of op_graphs.h, whose loop programs for a GPU
 * run there and on the CPU, call by call; the outcome is the evaluator's. */
#include "lower_help.h"
#include "nvptx_help.h"
#include "op_graphs.h"

static void fill_slots(Reader *r, const LoopModule *m, Tensor **inputs, char *arena, char *given) {
    for (int i = 0; i < m->slots.n; i++) {
        const StgcSlot *s = &m->slots.at[i];
        if (s->kind == STGC_SLOT_OUTPUT)
            continue;
        const void *from = s->init;
        for (int k = 0; k < r->g->inputs.n; k++)
            if (s->kind == STGC_SLOT_INPUT && !strcmp(r->g->inputs.at[k]->name, s->name))
                from = inputs[k]->data;
        if (from)
            memcpy(arena + s->offset, from, (size_t)s->bytes);
        memset(given + s->offset, 1, (size_t)s->bytes);
    }
}

static const StgcSlot *find_slot(const LoopModule *m, const char *name) {
    for (int i = 0; i < m->slots.n; i++)
        if (!strcmp(m->slots.at[i].name, name))
            return &m->slots.at[i];
    fail_msg("no slot '%s'", name);
    return NULL;
}

static void check_result(const LoopModule *m, const char *arena, const char *text, const char *name,
                         const Value *v, const RTensor *want, double tol) {
    Tensor t = {
        .dtype = v->dtype, .rank = v->rank, .data = (void *)(arena + find_slot(m, name)->offset)};
    memcpy(t.dims, v->dims, sizeof t.dims);
    compare(text, "for a GPU", name, &t, want, tol);
}

static void nvptx_run(Reader *r, Eval *ev, Tensor **inputs, bool fused, const char *text,
                      double tol) {
    Diag d = {.subject = "test"};
    LowerOptions o = {.fused = fused, .gpu = true};
    if (getenv("DUMP_LOOPS"))
        o.dump_loops = stderr;
    LoopModule *m = lower_graph(r->g, &o, &d);
    assert_non_null(m);
    size_t n = ((size_t)m->arena_bytes + 127) / 64 * 64;
    char *arena = aligned_alloc(64, n), *given = xcalloc(n, 1);
    memset(arena, 0xa5, n);
    fill_slots(r, m, inputs, arena, given);
    twin_run(m, arena, given, text, tol < 1e-5 ? 1e-5 : tol);
    for (int i = 0; i < r->g->outputs.n; i++) {
        GraphOutput *out = &r->g->outputs.at[i];
        check_result(m, arena, text, out->name, out->value, ev->values[out->value->id], tol);
    }
    for (int i = 0; i < r->g->updates.n; i++) {
        GraphUpdate *u = &r->g->updates.at[i];
        check_result(m, arena, text, param_name(u->param), u->param, ev->values[u->value->id], tol);
    }
    free(arena);
    free(given);
    loop_module_free(m);
    diag_free(&d);
}

#define RUN(table, tol) \
    static void test_##table(void **state) { \
        (void)state; \
        for (int i = 0; i < COUNT_OF(table); i++) \
            differ_by(table[i], tol, nvptx_run); \
    }
RUN(elementwise, 2e-6)
RUN(shapes, 1e-6)
RUN(reductions, 1e-5)
RUN(indexing, 1e-6)
RUN(products, 1e-5)
RUN(experts, 1e-5)
RUN(updates, 1e-6)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_elementwise), cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_reductions),  cmocka_unit_test(test_indexing),
        cmocka_unit_test(test_products),    cmocka_unit_test(test_experts),
        cmocka_unit_test(test_updates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
