/* test_lower_fused.c: groups of ops as models have them, and random graphs, compiled with and
 * without fusion, against the reference evaluator; and that the patterns do become the kernels they
 * should. */
#include "lower_help.h"

static const char *const patterns[] = {
    /* rms norm, forward and backward of its input, residual before it */
    "x = f32[4,16,32]; a = f32[4,16,32]; w = param f32[32]; r = add x a; q = mul r r; s = "
    "reduce_sum q {axes=[2],keepdims=1}; m = mul s #0.03125\n"
    "e = add m #1e-6; v = sqrt e; i = recip v; n = mul r i; y = mul n w; out y r",
    "x = f32[64,32]; d = f32[64,32]; w = param f32[32]; q = mul x x; s = reduce_sum q "
    "{axes=[1],keepdims=1}; m = mul s #0.03125; e = add m #1e-5; v = sqrt e; i = recip v\n"
    "n = mul x i; y = mul n w; dw0 = mul d n; dw = reduce_sum dw0 {axes=[0],keepdims=0}; dn = mul "
    "d w; dnn = mul dn n; t = reduce_sum dnn {axes=[1],keepdims=1}; t2 = mul t #0.03125\n"
    "c = mul n t2; u = sub dn c; dx = mul u i; out y dw dx",
    /* layer norm */
    "x = f32[3,20,48]; w = param f32[48]; b = param f32[48]; s = reduce_sum x "
    "{axes=[2],keepdims=1}; m = mul s #0.0208333333; c = sub x m; q = mul c c\n"
    "v0 = reduce_sum q {axes=[2],keepdims=1}; v1 = mul v0 #0.0208333333; v2 = add v1 #1e-5; v3 = "
    "sqrt v2; n = div c v3; y0 = mul n w; y = add y0 b; out y",
    /* a row value without its axis, put back */
    "x = f32[32,40]; s = reduce_max x {axes=[1],keepdims=0}; r = reshape s {dims=[32,1]}; y = sub "
    "x r; e = exp y; z = reduce_sum e {axes=[1],keepdims=1}; p = div e z; l = log z; out p l",
    /* as many rows as columns: a row value that broadcasts along rows is no row value */
    "x = f32[32,32]; s = reduce_sum x {axes=[1],keepdims=0}; y = add x s; t = reduce_sum y "
    "{axes=[1],keepdims=1}; z = mul y t; out z s",
    /* softmax and its gradient */
    "x = f32[2,4,16,16]; d = f32[2,4,16,16]; k = bool[16,16]; i = const f32[] -inf; s = mul x "
    "#0.25; m = where k s i; p = softmax m {axis=-1,masked=1}\n"
    "pd = mul p d; t = reduce_sum pd {axes=[3],keepdims=1}; u = sub d t; g = mul p u; h = mul g "
    "#0.25; out p h",
    /* attention with heads split and joined */
    "x = f32[2,9,24]; wq = param f32[24,24]; wk = param f32[24,24]; wv = param f32[24,24]; q = "
    "matmul x wq; k = matmul x wk; v = matmul x wv\n"
    "q1 = reshape q {dims=[2,9,3,8]}; k1 = reshape k {dims=[2,9,3,8]}; v1 = reshape v "
    "{dims=[2,9,3,8]}; q2 = transpose q1 {perm=[0,2,1,3]}; k2 = transpose k1 {perm=[0,2,1,3]}\n"
    "v2 = transpose v1 {perm=[0,2,1,3]}; k3 = transpose k2 {perm=[0,1,3,2]}; s = matmul q2 k3; s1 "
    "= mul s #0.35; p = softmax s1 {axis=-1}; o = matmul p v2\n"
    "o1 = transpose o {perm=[0,2,1,3]}; o2 = reshape o1 {dims=[2,9,24]}; wo = param f32[24,24]; y "
    "= matmul o2 wo {trans_b=1}; z = add y x; out z",
    /* rotary positions */
    "x = f32[2,3,7,16]; c = f32[7,16]; s = f32[7,16]; a = slice x "
    "{axes=[3],starts=[0],ends=[8],steps=[1]}; b = slice x "
    "{axes=[3],starts=[8],ends=[16],steps=[1]}; n = neg b\n"
    "r = concat n a {axis=3}; u = mul x c; v = mul r s; y = add u v; out y",
    /* and their gradient: pads of slices' cotangents */
    "d = f32[2,3,7,16]; c = f32[7,16]; s = f32[7,16]; u = mul d c; v = mul d s; a = slice v "
    "{axes=[3],starts=[0],ends=[8],steps=[1]}; b = slice v "
    "{axes=[3],starts=[8],ends=[16],steps=[1]}\n"
    "n = neg a; p = pad n {pads=[0,0,0,8,0,0,0,0]}; q = pad b {pads=[0,0,0,0,0,0,0,8]}; t = add p "
    "q; y = add t u; out y",
    /* a row kernel that reads what it keeps of its own row at other rows, too */
    "x = f32[24,24]; d = f32[24,24]; t = i64<0,23>[24]; b = i64<0,0>[24,1]; s = sigmoid x; m = mul "
    "s x; y = mul m d; g "
    "= gather_rows y t b; q = mul g g; n = reduce_sum q {axes=[1]}; out g n",
    /* gated feed-forward: epilogues */
    "x = f32[2,20,24]; wg = param f32[24,40]; wu = param f32[24,40]; wd = param f32[40,24]; b = "
    "param f32[24]; g = matmul x wg; u = matmul x wu; s = sigmoid g; h = mul g s; m = mul h u\n"
    "y = matmul m wd; y1 = add y b; y2 = add y1 x; out y2",
    "x = f32[2,20,24]; wg = param f32[24,40]; wu = param f32[24,40]; g = matmul x wg; u = matmul x "
    "wu; s = sigmoid g; h = mul g s; m = mul h u; d = f32[2,20,40]\n"
    "dh = mul d u; du = mul d h; one = sub #1 s; t = mul h one; ds = add s t; dg = mul dh ds; gx = "
    "matmul dg wg {trans_b=1}; gy = matmul du wu {trans_b=1}; dx = add gx gy\n"
    "x2 = reshape x {dims=[40,24]}; dg2 = reshape dg {dims=[40,40]}; dw = matmul x2 dg2 "
    "{trans_a=1}; out m dx dw du",
    /* batched product with an epilogue, three batch axes that do not join */
    "x = f32[2,1,3,5,6]; y = f32[1,4,1,6,7]; z = matmul x y; b = f32[7]; c = add z b; t = tanh c; "
    "out t",
    /* MoE layer: gathered rows, experts, padding rows, combine with gates */
    "x = f32[30,16]; s = i64<-1,4>[30,2]; gate = f32[30,2]; o,t,p,e,pr,te = dispatch s "
    "{experts=4,top_k=2}; r = gather_rows x t pr; w1 = param f32[4,16,24]; b1 = param f32[4,24]\n"
    "w2 = param f32[4,24,16]; h = grouped_matmul r o w1; bb = gather b1 e {axis=0}; h1 = add h bb; "
    "a = sigmoid h1; h2 = mul h1 a; y = grouped_matmul h2 o w2\n"
    "g0 = reshape gate {dims=[60]}; g1 = reshape pr {dims=[60,1]}; gr = gather_rows g0 p g1; g2 = "
    "reshape gr {dims=[60,1]}; yg = mul y g2; z = combine yg pr t; zz = add z x; out zz",
    /* cross-entropy and its gradient by the mean over labels that count */
    "x = f32[24,50]; l = i64<0,50>[24]; n,e = xent x l {ignore_index=7}; k = eq l @7; kn = not k; "
    "c = cast kn {to=f32}; m = reduce_sum c {axes=[0],keepdims=0}; t = reduce_sum n "
    "{axes=[0],keepdims=0}\n"
    "loss = div t m; i = recip m; g0 = mul c i; d = xent_grad x l e g0 {ignore_index=7}; out loss "
    "d",
    /* embedding, positions, and their gradients */
    "w = param f32[50,16]; p = param f32[9,16]; i = i64<0,50>[2,9]; e = gather w i {axis=0}; x = "
    "add e p; d = mul x #2; dp = reduce_sum d {axes=[0],keepdims=0}; dw = scatter_add d i "
    "{axis=0,dims=[50,16]}; out x dp dw",
    /* a value read at two places of one kernel */
    "x = f32[40,30]; y = tanh x; t = transpose y {perm=[1,0]}; u = reshape t {dims=[40,30]}; z = "
    "add y u; out z",
    /* masks out of positions */
    "n = const i64[] 12; z = const i64[] 0; o = const i64[] 1; r = range z n o; a = reshape r "
    "{dims=[12,1]}; m = le r a; x = f32[3,12,12]; i = const f32[] -1e9; s = where m x i; p = "
    "softmax s {axis=-1}; out p",
    /* clipping by the global norm, and an update */
    "p = param f32[300,200]; q = param f32[70]; dp = f32[300,200]; dq = f32[70]; a = mul dp dp; b "
    "= mul dq dq; sa = reduce_sum a {axes=[0,1],keepdims=0}; sb = reduce_sum b "
    "{axes=[0],keepdims=0}\n"
    "s = add sa sb; n = sqrt s; c = div #1 n; k = min c #1; gp = mul dp k; gq = mul dq k; h = "
    "f32[8]; np = sgd p gp h; nq = sgd q gq h; update p np; update q nq; out n",
    /* results that are views of one another, and of the same value */
    "x = f32[6,8]; y = exp x; z = reshape y {dims=[48]}; s = slice y "
    "{axes=[0],starts=[2],ends=[4],steps=[1]}; t = add s #1; out y z s t",
    /* buffers that dying operands leave: strided softmax, cross-entropy over its own logits,
       residual in an epilogue */
    "x = f32[6,40,5]; a = exp x; b = softmax a {axis=1}; c = log_softmax b {axis=0}; d = cumsum c "
    "{axis=1}; e = softmax d {axis=2}; out e",
    "x = f32[24,16]; w = param f32[16,50]; z = matmul x w; l = i64<0,50>[24]; n,e = xent z l "
    "{ignore_index=7}; g = mul e #0.1; d = xent_grad z l e g {ignore_index=7}\n"
    "q = matmul d w {trans_b=1}; out n q",
    "x = f32[40,32]; w = param f32[32,32]; a = tanh x; b = matmul a w; c = add b a; d = matmul c "
    "w; e = add d c; f = matmul e w; g = add f b; out g",
    "p = param f32[32,16]; x = f32[40,32]; d = f32[40,16]; g = matmul x d {trans_a=1}; a = add p "
    "g; update p a",
    /* conv as unfold and a product */
    "x = f32[2,3,9,9]; w = param f32[5,27]; u = unfold x "
    "{kernel=[3,3],strides=[2,2],dilations=[1,1],pads=[1,1,1,1]}; c = reshape u {dims=[2,27,25]}; "
    "y = matmul w c; z = reshape y {dims=[2,5,5,5]}; out z",
};

static void test_patterns(void **state) {
    (void)state;
    for (int i = 0; i < COUNT_OF(patterns); i++)
        differ(patterns[i], 2e-5);
}

/* ---- random graphs over a few shapes ---- */

static uint64_t fuzz_seed;
static int pick(int n) {
    fuzz_seed = fuzz_seed * 6364136223846793005u + 1442695040888963407u;
    return (int)((fuzz_seed >> 33) % (uint64_t)n);
}

typedef struct Fuzz {
    char text[16384];
    int len, n;
    int shape[128]; /* 0 [R,N] 1 [R,1] 2 [N] 3 [R] 4 [N,R] */
} Fuzz;

static int any_of(const Fuzz *f, int shape) {
    int found[128], n = 0;
    for (int i = 0; i < f->n; i++)
        if (f->shape[i] == shape)
            found[n++] = i;
    return n ? found[pick(n) * 2 / 3 + (n - 1) / 3 < n ? pick(n) : n - 1] : -1;
}

#define SAY(...) \
    (f->len += snprintf(f->text + f->len, sizeof f->text - (size_t)f->len, __VA_ARGS__))

static void fuzz_step(Fuzz *f) {
    static const char *const unary[] = {"neg", "tanh", "sigmoid", "abs", "sin", "erf"};
    static const char *const binary[] = {"add", "sub", "mul", "max", "min"};
    int kind = pick(12), a = any_of(f, 0), b = any_of(f, 0), r = any_of(f, 1), v = f->n, s = 0;
    switch (kind) {
    case 0:
    case 1:
        SAY("v%d = %s v%d; ", v, unary[pick(6)], a);
        break;
    case 2:
    case 3:
        SAY("v%d = %s v%d v%d; ", v, binary[pick(5)], a, b);
        break;
    case 4:
        SAY("v%d = %s v%d v%d; ", v, binary[pick(5)], a, r);
        break;
    case 5:
        SAY("v%d = %s v%d v%d; ", v, binary[pick(5)], any_of(f, 2), a);
        break;
    case 6:
        SAY("v%d = reduce_%s v%d {axes=[1],keepdims=1}; ", v, pick(2) ? "max" : "sum", a);
        s = 1;
        break;
    case 7:
        SAY("v%d = reduce_sum v%d {axes=[0],keepdims=0}; ", v, a);
        s = 2;
        break;
    case 8:
        SAY("v%d = softmax v%d {axis=-1}; ", v, a);
        break;
    case 9:
        SAY("v%d = %s v%d; ", v, unary[pick(6)], r);
        s = 1;
        break;
    case 10:
        SAY("t%d = matmul v%d v%d {trans_b=1}; v%d = matmul t%d v%d; ", v, a, b, v, v,
            any_of(f, 0));
        break;
    default:
        SAY("t%d = transpose v%d {perm=[1,0]}; u%d = %s t%d; v%d = transpose u%d {perm=[1,0]}; ", v,
            a, v, unary[pick(6)], v, v, v);
    }
    f->shape[f->n++] = s;
}

static void test_random(void **state) {
    (void)state;
    int rounds = getenv("FUZZ_ROUNDS") ? atoi(getenv("FUZZ_ROUNDS")) : 40;
    for (int round = 0; round < rounds; round++) {
        Fuzz *f = xcalloc(1, sizeof *f);
        fuzz_seed = (uint64_t)round * 77 + 5;
        int rows = 16 + pick(20), columns = round % 5 == 0 ? rows : 8 + pick(30);
        SAY("v0 = f32[%d,%d]; v1 = f32[%d,1]; v2 = f32[%d]; v3 = f32[%d,%d]; ", rows, columns, rows,
            columns, rows, columns);
        f->shape[0] = 0, f->shape[1] = 1, f->shape[2] = 2, f->shape[3] = 0, f->n = 4;
        int steps = 5 + pick(35);
        for (int i = 0; i < steps; i++) {
            fuzz_step(f);
            if (f->shape[f->n - 1] != 1 && pick(3) == 0) { /* keep magnitudes small */
                SAY("v%d = tanh v%d; ", f->n, f->n - 1);
                f->shape[f->n] = f->shape[f->n - 1];
                f->n++;
            }
        }
        SAY("z = tanh v%d; out z v%d v%d", f->n - 1, 4 + pick(f->n - 4), f->n - 1);
        differ(f->text, 3e-3);
        free(f);
    }
}

/* ---- shapes of the plan ---- */

static int kernels_of(const char *text, int kind) {
    Reader *r = xcalloc(1, sizeof *r);
    read_graph(r, text);
    KernelPlan *p = fuse(r->g, true);
    int n = 0;
    for (int i = 0; i < p->kernels.n; i++)
        n += kind < 0 || (int)p->kernels.at[i].kind == kind;
    kernel_plan_free(p);
    diag_free(&r->d);
    graph_free(r->g);
    free(r);
    return n;
}

static void test_plan_shapes(void **state) {
    (void)state;
    assert_int_equal(kernels_of(patterns[0], -1), 1); /* residual and norm: one pass over rows */
    assert_int_equal(kernels_of(patterns[0], KERNEL_ROWS), 1);
    assert_int_equal(kernels_of(patterns[2], -1), 1);  /* layer norm */
    assert_int_equal(kernels_of(patterns[5], -1), 1);  /* softmax and its gradient */
    assert_int_equal(kernels_of(patterns[7], -1), 1);  /* rotary positions */
    assert_int_equal(kernels_of(patterns[10], -1), 3); /* three products, all else in epilogues */
}

/* ---- parts of a concat that share work are made together ---- */

static uint32_t calls_of(const char *text) {
    Reader *r = xcalloc(1, sizeof *r);
    read_graph(r, text);
    Diag d = {.subject = "test"};
    CodegenOptions o = {.fused = true};
    Compiled *c = codegen_x86(r->g, &o, &d);
    assert_non_null(c);
    uint32_t n = compiled_step(c)->kernels;
    compiled_free(c);
    diag_free(&d);
    diag_free(&r->d);
    graph_free(r->g);
    free(r);
    return n;
}

static void test_shared_parts(void **state) {
    (void)state;
    const char *shared = "h = f32[20,48]; d = f32[20,24]; g = slice h "
                         "{axes=[1],starts=[0],ends=[24],steps=[1]}; u = slice h "
                         "{axes=[1],starts=[24],ends=[48],steps=[1]}; s = sigmoid g; a = mul g s\n"
                         "du = mul d a; da = mul d u; one = sub #1 s; t = mul a one; ds = add s t; "
                         "dg = mul da ds; y = concat dg du {axis=1}; out y";
    const char *apart = "a = f32[20,24]; b = f32[20,24]; c = tanh a; d = tanh b; y = concat c d "
                        "{axis=1}; out y";
    assert_int_equal(calls_of(shared), 1);
    assert_int_equal(calls_of(apart), 2);
    differ(shared, 1e-5);
    differ(apart, 1e-5);
}

/* ---- updates of equal parameters are one parallel loop ---- */

static void (*run_parallel)(StgcRt *rt, int64_t tasks, StgcTask fn, void *env);
static int64_t loops, loop_tasks;

static void count_parallel(StgcRt *rt, int64_t tasks, StgcTask fn, void *env) {
    loops++, loop_tasks = tasks;
    run_parallel(rt, tasks, fn, env);
}

static void test_updates_side_by_side(void **state) {
    (void)state;
    const char *text =
        "a = param f32[48,64]; b = param f32[48,64]; c = param f32[48,64]; d = param f32[64]; am = "
        "param f32[48,64]; bm = param f32[48,64]; cm = param f32[48,64]; x = f32[48,64]; y = "
        "f32[48,64]; z = f32[48,64]; w = f32[64]; h = f32[8]\n"
        "a1,a2 = sgd a x h am {momentum=0.9}; b1,b2 = sgd b y h bm {momentum=0.9}; c1,c2 = sgd c z "
        "h cm {momentum=0.9}; d1 = sgd d w h; update a a1; update am a2; update b b1; update bm "
        "b2; update c c1; update cm c2; update d d1; out h";
    differ(text, 1e-5);
    Reader *r = xcalloc(1, sizeof *r);
    read_graph(r, text);
    Diag d = {.subject = "test"};
    CodegenOptions o = {.fused = true};
    Compiled *c = codegen_x86(r->g, &o, &d);
    StgcRt *rt = stgc_rt_new(2);
    StgcRun *run = stgc_run_new(rt, compiled_step(c));
    assert_non_null(run);
    run_parallel = rt->parallel;
    rt->parallel = count_parallel;
    loops = 0;
    assert_int_equal(stgc_run_step(run), STGC_OK);
    assert_int_equal(loops, 1);
    assert_int_equal(loop_tasks, 3);
    stgc_run_free(run);
    stgc_rt_free(rt);
    compiled_free(c);
    diag_free(&d);
    diag_free(&r->d);
    graph_free(r->g);
    free(r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_patterns),     cmocka_unit_test(test_plan_shapes),
        cmocka_unit_test(test_random),       cmocka_unit_test(test_updates_side_by_side),
        cmocka_unit_test(test_shared_parts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
