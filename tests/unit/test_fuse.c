/* test_fuse.c: what becomes one kernel and what must not. */
#include "lower_help.h"

typedef struct Plan {
    Reader *r;
    KernelPlan *p;
} Plan;

static Plan plan_of(const char *text, bool fused) {
    Plan t = {xcalloc(1, sizeof(Reader)), NULL};
    read_graph(t.r, text);
    t.p = fuse(t.r->g, fused);
    return t;
}

static void drop(Plan *t) {
    kernel_plan_free(t->p);
    diag_free(&t->r->d);
    graph_free(t->r->g);
    free(t->r);
}

static int kernels(const char *text) {
    Plan t = plan_of(text, true);
    int n = t.p->kernels.n;
    drop(&t);
    return n;
}

static bool stored(Plan *t, const char *name) {
    return t->p->storage[known(t->r, name)->id] != NULL;
}

static void test_unfused(void **state) {
    (void)state;
    Plan t = plan_of("x = f32[4,6]; a = exp x; b = reshape a {dims=[24]}; c = neg b; d = slice c "
                     "{axes=[0],starts=[8],ends=[16],steps=[1]}; e = abs d; out e",
                     false);
    assert_int_equal(t.p->kernels.n, 3); /* views are no kernels */
    assert_ptr_equal(t.p->storage[known(t.r, "b")->id], known(t.r, "a"));
    assert_ptr_equal(t.p->storage[known(t.r, "d")->id], known(t.r, "c"));
    assert_int_equal(t.p->view_offset[known(t.r, "d")->id], 8);
    drop(&t);
}

static void test_elementwise_is_one(void **state) {
    (void)state;
    assert_int_equal(
        kernels("x = f32[4,6]; w = f32[6]; a = exp x; b = mul a w; c = add b a; d = neg c; out d"),
        1);
    assert_int_equal(kernels("x = f32[4,6]; a = exp x; b = neg a; c = abs a; out b c"),
                     1); /* two results */
}

/* Expensive work is done once although two kernels want it; cheap work moves into both. */
static void test_duplicates(void **state) {
    (void)state;
    Plan t = plan_of("x = f32[40,60]; y = f32[40,60]; a = pow x y; t = reduce_sum a "
                     "{axes=[0],keepdims=0}; u = cumsum a {axis=0}; out t u",
                     true);
    assert_true(stored(&t, "a"));
    drop(&t);
    t = plan_of("i = i64<0,9>[40,60]; w = f32[60,5]; a = cast i {to=f32}; t = reduce_sum a "
                "{axes=[0],keepdims=0}; s = f32[9,9]; b = mul a #2; c = reduce_max b "
                "{axes=[0],keepdims=0}; out t c",
                true);
    assert_false(stored(&t, "a"));
    assert_false(stored(&t, "b"));
    drop(&t);
}

/* The backward pass computes an activation again from what it keeps anyway. */
static void test_activation_again(void **state) {
    (void)state;
    Plan t = plan_of("x = f32[8,16]; w = f32[16,32]; v = f32[32,16]; d = f32[8,16]; g = matmul x "
                     "w; s = sigmoid g; h = mul g s; y = matmul h v\n"
                     "dh = matmul d v {trans_b=1}; o = sub #1 s; k = mul h o; q = add s k; dg = "
                     "mul dh q; dw = matmul x dg {trans_a=1}; out y dw",
                     true);
    assert_true(stored(&t, "g"));
    assert_true(stored(&t, "h")); /* a product reads it */
    assert_false(stored(&t, "s"));
    drop(&t);
}

/* Row work follows a reduction; another axis, or a product between, ends the kernel. */
static void test_rows(void **state) {
    (void)state;
    assert_int_equal(kernels("x = f32[32,64]; s = reduce_sum x {axes=[1],keepdims=1}; y = div x s; "
                             "m = reduce_max y {axes=[1],keepdims=1}; z = sub y m; out z"),
                     1);
    assert_int_equal(kernels("x = f32[32,64]; s = reduce_sum x {axes=[1],keepdims=1}; y = div x s; "
                             "m = reduce_max y {axes=[0],keepdims=1}; z = sub y m; out z"),
                     3);
    assert_int_equal(
        kernels("x = f32[32,32]; s = reduce_sum x {axes=[1],keepdims=0}; y = add x s; out y"), 2);
}

/* A product's epilogue takes what is elementwise on it, also when the product itself is wanted; not
 * what reduces it. */
static void test_epilogue(void **state) {
    (void)state;
    Plan t = plan_of("x = f32[32,64]; w = f32[64,16]; b = f32[16]; a = matmul x w; c = add a b; d "
                     "= tanh c; out d",
                     true);
    assert_int_equal(t.p->kernels.n, 1);
    assert_false(stored(&t, "a"));
    drop(&t);
    t = plan_of("x = f32[32,64]; w = f32[64,16]; b = f32[16]; a = matmul x w; c = add a b; d = "
                "tanh c; out d a",
                true);
    assert_int_equal(t.p->kernels.n, 1);
    assert_true(stored(&t, "a"));
    drop(&t);
    assert_int_equal(kernels("x = f32[32,64]; w = f32[64,16]; a = matmul x w; c = transpose a "
                             "{perm=[1,0]}; d = tanh c; out d"),
                     2);
}

/* Two groups that would wait for each other stay apart: the sum over rows of `e` stands between `a`
 * and `f`. */
static void test_no_cycle(void **state) {
    (void)state;
    const char *text = "x = f32[32,64]; w = f32[64,64]; m = reduce_max x {axes=[1],keepdims=1}; a "
                       "= sub x m; b = matmul a w; c = reduce_sum b {axes=[1],keepdims=1}\n"
                       "f = mul a c; g = tanh f; out g";
    assert_true(kernels(text) >= 3);
    differ(text, 2e-3);
}

/* Attention's transposes are strides of the products. */
static void test_strides(void **state) {
    (void)state;
    Plan t = plan_of("q = f32[2,9,24]; k = f32[2,9,24]; a = reshape q {dims=[2,9,3,8]}; b = "
                     "reshape k {dims=[2,9,3,8]}; c = transpose a {perm=[0,2,1,3]}; d = transpose "
                     "b {perm=[0,2,3,1]}; s = matmul c d; out s",
                     true);
    assert_int_equal(t.p->kernels.n, 1);
    assert_int_equal(t.p->kernels.at[0].kind, KERNEL_GEMM);
    drop(&t);
}

/* Rows gathered only to be multiplied are read through the index. */
static void test_gathered(void **state) {
    (void)state;
    const char *text =
        "x = f32[12,6]; s = i64<-1,4>[12,2]; o,t,p,e,pr,te = dispatch s {experts=4,top_k=2}; r = "
        "gather_rows x t pr; w = f32[4,6,5]; h = grouped_matmul r o w; out h";
    Plan t = plan_of(text, true);
    assert_int_equal(t.p->kernels.n, 2);
    assert_false(stored(&t, "r"));
    drop(&t);
    differ(text, 1e-5);
}

/* A value with a long pause between its readers is computed again for the late ones, through a view
 * and a gather too; a product is not, nor what reads nothing that is there late. */
static void test_recompute(void **state) {
    (void)state;
    static char text[8192];
    int n = snprintf(text, sizeof text, "%s",
                     "x = f32[512,192]; r = f32[512,1]; w = param f32[192]; i = i64<0,511>[512]; "
                     "b = i64<0,0>[512,1]; u = param f32[192,8]; a = mul x r; y = mul a w; f = "
                     "reshape y {dims=[512,192]}; z = gather_rows f i b; p = matmul y u; q = "
                     "matmul z u; v0 = add p q\n");
    for (int i = 0; i < 80; i++)
        n += snprintf(text + n, sizeof text - (size_t)n, "v%d = tanh v%d; ", i + 1, i);
    snprintf(text + n, sizeof text - (size_t)n,
             "\nd = matmul y v80 {trans_a=1}; e = matmul z v80 {trans_a=1}; g = add d e; h = mul "
             "x x; k = reduce_sum h {axes=[1]}; out g k v80");
    Reader *r = xcalloc(1, sizeof *r);
    read_graph(r, text);
    int nodes = 0, after = 0;
    FOR_NODES(node, r->g)
    nodes++;
    KernelPlan *plan = fuse(r->g, true);
    assert_int_equal(plan->again.clones.n, 4); /* a, y, its view and z */
    assert_int_equal(plan->again.uses.n, 2);   /* of y and z, by d and e */
    kernel_plan_free(plan);
    FOR_NODES(node, r->g)
    after++;
    assert_int_equal(nodes, after);
    plan = fuse(r->g, false);
    assert_int_equal(plan->again.clones.n, 0);
    kernel_plan_free(plan);
    diag_free(&r->d);
    graph_free(r->g);
    free(r);
    differ(text, 1e-4);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unfused),          cmocka_unit_test(test_elementwise_is_one),
        cmocka_unit_test(test_duplicates),       cmocka_unit_test(test_rows),
        cmocka_unit_test(test_activation_again), cmocka_unit_test(test_epilogue),
        cmocka_unit_test(test_no_cycle),         cmocka_unit_test(test_strides),
        cmocka_unit_test(test_gathered),         cmocka_unit_test(test_recompute),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
