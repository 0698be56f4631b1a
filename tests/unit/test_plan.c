/* test_plan.c: the memory plan: nothing that lives at the same time overlaps, params are updated in
 * place, buffers are reused; and the order of kernels. */
#include "lower_help.h"

static const char *const model =
    "w1 = param f32[32,48]; w2 = param f32[48,32]; m = param f32[32,48]; x = f32[64,32]; y = "
    "f32[64,32]; h = f32[8]\n"
    "a = matmul x w1; b = tanh a; c = matmul b w2; d = sub c y; e = mul d d; l = reduce_sum e "
    "{axes=[0,1],keepdims=0}; s = softmax c {axis=-1}\n"
    "gb = matmul d w2 {trans_b=1}; bb = mul b b; ob = sub #1 bb; ga = mul gb ob; g1 = matmul x ga "
    "{trans_a=1}; g2 = matmul b d {trans_a=1}\n"
    "gn = reduce_sum g1 {axes=[0,1],keepdims=0}; hn = mul h gn; p1,m1 = sgd w1 g1 h m "
    "{momentum=0.9}; p2 = sgd w2 g2 h; update w1 p1; update m m1; update w2 p2; out l s hn";

typedef struct Life {
    int64_t from, to; /* bytes */
    int first, last;  /* kernels */
} Life;

static Life life_of(const Graph *g, const KernelPlan *p, const MemoryPlan *m, const Value *v) {
    Life l = {m->offset[v->id], m->offset[v->id] + value_count(v) * dtype_bytes(v->dtype), 1 << 30,
              -1};
    for (int i = 0; i < p->kernels.n; i++) {
        const Kernel *k = &p->kernels.at[i];
        for (int r = 0; r < k->roots.n; r++)
            if (k->roots.at[r] == v)
                l.first = i < l.first ? i : l.first, l.last = i > l.last ? i : l.last;
        for (int o = 0; o < k->operands.n; o++)
            if (p->storage[k->operands.at[o]->id] == v)
                l.last = i;
    }
    for (int i = 0; i < g->outputs.n; i++)
        if (p->storage[g->outputs.at[i].value->id] == v)
            l.last = p->kernels.n;
    for (int i = 0; i < g->updates.n; i++)
        if (p->storage[g->updates.at[i].value->id] == v)
            l.last = p->kernels.n;
    return l;
}

/* b's kernel may take a's buffer when it is the last reader and reads at the stored index only. */
static bool may_take(const KernelPlan *p, const Value *a, int kernel) {
    const Kernel *k = &p->kernels.at[kernel];
    for (int i = 0; i < k->same_index.n; i++)
        if (p->storage[k->same_index.at[i]->id] == a)
            return true;
    return false;
}

static void check_plan(const char *text, bool fused) {
    Reader *r = xcalloc(1, sizeof *r);
    read_graph(r, text);
    KernelPlan *p = fuse(r->g, fused);
    MemoryPlan *m = plan_memory(r->g, p);
    VEC(const Value *) all = {0};
    for (int i = 0; i < p->kernels.n; i++)
        for (int k = 0; k < p->kernels.at[i].roots.n; k++)
            vec_push(&all, p->kernels.at[i].roots.at[k]);
    for (int i = 0; i < all.n; i++) {
        Life a = life_of(r->g, p, m, all.at[i]);
        assert_true(a.from >= 0 && a.from % 64 == 0 && a.to <= m->total_bytes);
        for (int j = 0; j < all.n; j++) {
            Life b = life_of(r->g, p, m, all.at[j]);
            if (i == j || a.to <= b.from || b.to <= a.from || a.last < b.first || b.last < a.first)
                continue;
            if (a.last == b.first && may_take(p, all.at[i], b.first))
                continue;
            if (b.last == a.first && may_take(p, all.at[j], a.first))
                continue;
            fail_msg("%s: %%%d and %%%d overlap", text, all.at[i]->id, all.at[j]->id);
        }
    }
    /* every operand is made before it is read */
    for (int i = 0; i < p->kernels.n; i++)
        for (int o = 0; o < p->kernels.at[i].operands.n; o++) {
            const Value *s = p->storage[p->kernels.at[i].operands.at[o]->id];
            assert_true((op_info[s->def->op].flags & OPF_LEAF) || life_of(r->g, p, m, s).first < i);
        }
    vec_free(&all);
    memory_plan_free(m);
    kernel_plan_free(p);
    diag_free(&r->d);
    graph_free(r->g);
    free(r);
}

static void test_no_overlap(void **state) {
    (void)state;
    check_plan(model, false);
    check_plan(model, true);
}

static void test_updates_in_place(void **state) {
    (void)state;
    Reader *r = xcalloc(1, sizeof *r);
    read_graph(r, model);
    for (int fused = 0; fused < 2; fused++) {
        KernelPlan *p = fuse(r->g, fused);
        MemoryPlan *m = plan_memory(r->g, p);
        for (int i = 0; i < r->g->updates.n; i++) {
            GraphUpdate *u = &r->g->updates.at[i];
            assert_true(m->updated[i]);
            assert_int_equal(m->offset[u->value->id], m->offset[u->param->id]);
        }
        memory_plan_free(m);
        kernel_plan_free(p);
    }
    diag_free(&r->d);
    graph_free(r->g);
    free(r);
}

/* An old value that is read after the new one is made keeps its place. */
static void test_update_waits(void **state) {
    (void)state;
    Reader *r = xcalloc(1, sizeof *r);
    read_graph(r, "p = param f32[8,8]; x = f32[8,8]; a = matmul p x; b = transpose a {perm=[1,0]}; "
                  "c = matmul b p; update p b; out c");
    KernelPlan *p = fuse(r->g, false);
    MemoryPlan *m = plan_memory(r->g, p);
    assert_false(m->updated[0]);
    assert_int_not_equal(m->offset[known(r, "b")->id], m->offset[known(r, "p")->id]);
    memory_plan_free(m);
    kernel_plan_free(p);
    diag_free(&r->d);
    graph_free(r->g);
    free(r);
}

/* A chain of elementwise ops, each a kernel of its own, needs one buffer. */
static void test_reuse(void **state) {
    (void)state;
    Reader *r = xcalloc(1, sizeof *r);
    read_graph(r, "x = f32[1024]; a = exp x; b = exp a; c = exp b; d = exp c; e = exp d; out e");
    KernelPlan *p = fuse(r->g, false);
    MemoryPlan *m = plan_memory(r->g, p);
    assert_int_equal(p->kernels.n, 5);
    assert_int_equal(m->persistent_bytes, 4096);
    assert_int_equal(m->total_bytes, 8192);
    memory_plan_free(m);
    kernel_plan_free(p);
    diag_free(&r->d);
    graph_free(r->g);
    free(r);
}

/* Scratch lives during its kernel only, beside what the kernel reads and stores. */
static void test_scratch(void **state) {
    (void)state;
    Reader *r = xcalloc(1, sizeof *r);
    read_graph(r, "x = f32[1024]; a = exp x; b = exp a; out b");
    KernelPlan *p = fuse(r->g, false);
    p->kernels.at[0].scratch_bytes = p->kernels.at[1].scratch_bytes = 1000;
    MemoryPlan *m = plan_memory(r->g, p);
    for (int i = 0; i < 2; i++)
        assert_true(m->scratch[i] >= m->offset[known(r, "a")->id] + 4096);
    assert_int_equal(m->total_bytes, 4096 + 4096 + 1024);
    memory_plan_free(m);
    kernel_plan_free(p);
    diag_free(&r->d);
    graph_free(r->g);
    free(r);
}

/* A gradient's update runs where the gradient is finished, not at the end, whoever else reads the
 * optimizer's numbers later. */
static void test_early_updates(void **state) {
    (void)state;
    Reader *r = xcalloc(1, sizeof *r);
    read_graph(r, model);
    KernelPlan *p = fuse(r->g, false);
    int made = -1, used = -1, next = -1;
    for (int i = 0; i < p->kernels.n; i++) {
        if (p->kernels.at[i].roots.at[0] == known(r, "g1"))
            made = i;
        if (p->kernels.at[i].roots.at[0] == known(r, "p1"))
            used = i;
        if (p->kernels.at[i].roots.at[0] == known(r, "g2"))
            next = i;
    }
    assert_true(made < used && used < next);
    kernel_plan_free(p);
    diag_free(&r->d);
    graph_free(r->g);
    free(r);
}

/* Given in order, 2 KiB find no gap: 1 KiB lay there before 4. Largest first, they take its place.
 */
static void test_tight(void **state) {
    (void)state;
    const char *text = "x = f32[16,16]; w1 = param f32[16,16]; w2 = param f32[16,64]; w3 = param "
                       "f32[64,32]; w4 = param f32[32,4]; a = matmul x w1; b = matmul a w2; c = "
                       "matmul b w3; d = matmul c w4; out d";
    Reader *r = xcalloc(1, sizeof *r);
    read_graph(r, text);
    KernelPlan *p = fuse(r->g, true);
    MemoryPlan *m = plan_memory(r->g, p);
    assert_int_equal(p->kernels.n, 4);
    assert_int_equal(m->total_bytes - m->persistent_bytes, 6 << 10);
    memory_plan_free(m);
    kernel_plan_free(p);
    diag_free(&r->d);
    graph_free(r->g);
    free(r);
    check_plan(text, true);
    differ(text, 1e-5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_overlap),   cmocka_unit_test(test_updates_in_place),
        cmocka_unit_test(test_update_waits), cmocka_unit_test(test_reuse),
        cmocka_unit_test(test_scratch),      cmocka_unit_test(test_early_updates),
        cmocka_unit_test(test_tight),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
