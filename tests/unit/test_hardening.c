/* test_hardening.c: files made to hurt: large ones, exploding ones, deep ones, and names that steer
 * terminals. Each is answered with a message, soon, in little memory. Times are of the processor,
 * so that a busy machine does not matter. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "frontend/bind.h"
#include "frontend/frontend.h"
#include "ir/infer.h"
#include "onnx_maker.h"
#include "passes/pass.h"

#if defined(__SANITIZE_ADDRESS__)
enum { SANITIZED = 1, SLOWER = 12 };
#else
enum { SANITIZED = 0, SLOWER = 1 };
#endif

static double seconds(void) {
    return (double)clock() / CLOCKS_PER_SEC;
}

/* ---- time: at most 10 microseconds a node up to 200,000 nodes, whatever the graph looks like ----
 */

enum { NODES = 200000 };

static const char *name_of(char kind, int i) {
    static char text[4][24];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(text[turn], sizeof text[turn], "%c%d", kind, i);
    return text[turn];
}

static void put_op(Bytes *g, const char *op, const char *a, const char *b, const char *out) {
    Bytes n = {0};
    put_str(&n, 1, a);
    if (b)
        put_str(&n, 1, b);
    put_str(&n, 2, out);
    put_str(&n, 4, op);
    put_msg(g, GRAPH_NODE, n);
}

/* *nodes_left: those that compute something. */
static double compile_seconds(Bytes model, int *nodes_left) {
    Diag d = {.subject = "large"};
    double start = seconds();
    Graph *g = onnx_import_bytes(model.at, model.n, NULL, NULL, NULL, &d);
    if (!g)
        fail_msg("%s", d.messages.at[0].text);
    Compile c = {.g = g, .diag = &d};
    bind_samples(g);
    assert_true(graph_infer(g, &d));
    assert_true(pass_canonicalise(&c));
    double took = seconds() - start;
    *nodes_left = 0;
    FOR_NODES(n, g)
    *nodes_left += !(op_info[n->op].flags & OPF_LEAF);
    graph_free(g);
    diag_free(&d);
    free(model.at);
    return took;
}

/* A chain (or fan) of `op`; `with` is a second operand. */
static Bytes long_graph(const char *op, const char *with, int type, const char *dims, bool fan) {
    Bytes g = {0};
    int64_t one = 1;
    int n = fan ? NODES / 2 : NODES;
    put_msg(&g, GRAPH_INITIALIZER, make_ints("one", 1, &one));
    put_msg(&g, GRAPH_INPUT, make_value("v0", type, dims));
    for (int i = 0; i < n; i++)
        put_op(&g, op, fan ? "v0" : name_of('v', i), with, name_of('v', i + 1));
    if (fan) {
        Bytes sum = {0};
        for (int i = 0; i < n; i++)
            put_str(&sum, 1, name_of('v', i + 1));
        put_str(&sum, 2, "y");
        put_str(&sum, 4, "Sum");
        put_msg(&g, GRAPH_NODE, sum);
    }
    put_msg(&g, GRAPH_OUTPUT, make_value(fan ? "y" : name_of('v', n), type, dims));
    return make_model(g, 8, 17);
}

static void assert_linear(const char *what, Bytes model) {
    int left;
    double took = compile_seconds(model, &left) / NODES * 1e6;
    print_message("%s: %.2f us a node\n", what, took);
    if (took > 10.0 * SLOWER)
        fail_msg("%s: %.1f us a node", what, took);
}

static void compiles_in_linear_time(void **state) {
    assert_linear("a chain", long_graph("Relu", NULL, 1, "batch 4", false));
    assert_linear("a fan", long_graph("Exp", NULL, 1, "batch 4", true));
    assert_linear("one constant of all", long_graph("Add", "one", 7, "4", false));
    assert_linear("a fan of sums", long_graph("Add", "v0", 1, "batch 4", true));
    assert_linear("transposes that cancel", long_graph("Transpose", NULL, 1, "a b", false));
    assert_linear("integers that might be sizes", long_graph("Mul", "v0", 7, "4", false));
}

/* Everything constant: folded one by one. */
static void folds_in_linear_time(void **state) {
    Bytes g = {0};
    int64_t one = 1;
    put_msg(&g, GRAPH_INITIALIZER, make_ints("v0", 1, &one));
    put_msg(&g, GRAPH_INPUT, make_value("x", 7, "1"));
    for (int i = 0; i < NODES - 1; i++)
        put_op(&g, "Add", name_of('v', i), "v0", name_of('v', i + 1));
    put_op(&g, "Add", "x", name_of('v', NODES - 1), "y");
    put_msg(&g, GRAPH_OUTPUT, make_value("y", 7, "1"));
    int left;
    double took = compile_seconds(make_model(g, 8, 17), &left) / NODES * 1e6;
    print_message("constants: %.2f us a node, %d nodes left\n", took, left);
    assert_true(took < 10.0 * SLOWER);
    assert_int_equal(left, 1);
}

/* Faults everywhere: as fast, and not a message each. */
static void reports_in_linear_time(void **state) {
    Bytes g = {0};
    put_msg(&g, GRAPH_INPUT, make_value("v0", 1, "4"));
    for (int i = 0; i < NODES; i++)
        put_op(&g, "Add", name_of('v', i), name_of('u', i), name_of('v', i + 1));
    put_msg(&g, GRAPH_OUTPUT, make_value(name_of('v', NODES), 1, "4"));
    Bytes m = make_model(g, 8, 17);
    Diag d = {.subject = "large"};
    double start = seconds();
    assert_null(onnx_import_bytes(m.at, m.n, NULL, NULL, NULL, &d));
    assert_true((seconds() - start) / NODES * 1e6 < 10.0 * SLOWER);
    assert_in_range(d.errors, 1, 100);
    assert_int_equal(d.code, EXIT_MODEL);
    diag_free(&d);
    free(m.at);
}

/* ---- explosions ---- */

/* Function k calls function k + 1 twice, directly or from a branch; the last one adds. */
static Bytes bomb(int levels, bool in_branches, int back_to) {
    Bytes g = {0}, m;
    Bytes call = make_node("f0", "x", "y");
    put_str(&call, 7, "local");
    put_msg(&g, GRAPH_NODE, call);
    put_msg(&g, GRAPH_INPUT, make_value("x", 1, "4"));
    put_msg(&g, GRAPH_OUTPUT, make_value("y", 1, "4"));
    m = make_model(g, 9, 17);
    model_opset(&m, "local", 1);
    for (int k = 0; k < levels; k++) {
        Bytes f = {0}, o = {0}, p = {0};
        put_str(&f, 1, name_of('f', k));
        put_str(&f, 4, "a");
        put_str(&f, 5, "c");
        const char *callee = name_of('f', k + 1 < levels ? k + 1 : back_to);
        for (int i = 0; i < 2; i++) {
            bool leaf = k + 1 == levels && back_to < 0;
            Bytes n = make_node(leaf ? "Relu" : callee, i ? "b" : "a", i ? "c" : "b");
            if (!leaf)
                put_str(&n, 7, "local");
            if (in_branches) {
                Bytes branch = {0}, branch2 = {0}, outer = make_node("If", "a", i ? "c" : "b");
                put_msg(&branch, GRAPH_NODE, n);
                put_msg(&branch, GRAPH_OUTPUT, make_value(i ? "c" : "b", 1, "4"));
                put_raw(&branch2, branch.at, branch.n);
                put_attr_graph(&outer, "then_branch", branch);
                put_attr_graph(&outer, "else_branch", branch2);
                n = outer;
            }
            put_msg(&f, 7, n);
        }
        put_str(&o, 1, "");
        put_int(&o, 2, 17);
        put_str(&p, 1, "local");
        put_int(&p, 2, 1);
        put_msg(&f, 9, o);
        put_msg(&f, 9, p);
        put_str(&f, 10, "local");
        put_msg(&m, 25, f);
    }
    return m;
}

/* Refused with `code` and words of the message within `limit` seconds. */
static void assert_refused(Bytes m, ExitCode code, const char *words, double limit) {
    Diag d = {.subject = "bomb"};
    double start = seconds();
    assert_null(onnx_import_bytes(m.at, m.n, NULL, NULL, NULL, &d));
    double took = seconds() - start;
    if (!strstr(d.messages.at[0].text, words))
        fail_msg("expected \"%s\", found \"%s\"", words, d.messages.at[0].text);
    assert_int_equal(d.code, code);
    assert_true(took < limit * SLOWER);
    diag_free(&d);
    free(m.at);
}

static void refuses_doubling(void **state) {
    assert_refused(bomb(25, false, -1), EXIT_RESOURCE, "33554432 nodes", 0.05);
    assert_refused(bomb(70, false, -1), EXIT_RESOURCE, "at most 1000000", 0.05);
    assert_refused(bomb(99, true, -1), EXIT_RESOURCE, "at most 1000000", 0.05);
    assert_refused(bomb(101, false, -1), EXIT_RESOURCE, "deeper than 100", 0.05);
    assert_refused(bomb(30, false, 4), EXIT_MODEL, "calls itself: f4", 0.05);
    assert_refused(bomb(30, true, 0), EXIT_MODEL, "calls itself: f0", 0.05);
}

/* A Loop from `in` to `out` whose body is a Relu, or another loop. */
static Bytes loop_node(int depth, const char *in, const char *out) {
    Bytes body = {0}, n = {0};
    char a[16], b[16], k[16], k2[16], i[16];
    snprintf(a, sizeof a, "a%d", depth), snprintf(b, sizeof b, "b%d", depth);
    snprintf(k, sizeof k, "k%d", depth), snprintf(k2, sizeof k2, "c%d", depth);
    snprintf(i, sizeof i, "i%d", depth);
    put_op(&body, "Identity", k, NULL, k2);
    if (depth > 1)
        put_msg(&body, GRAPH_NODE, loop_node(depth - 1, a, b));
    else
        put_op(&body, "Relu", a, NULL, b);
    put_msg(&body, GRAPH_INPUT, make_value(i, 7, ""));
    put_msg(&body, GRAPH_INPUT, make_value(k, 9, ""));
    put_msg(&body, GRAPH_INPUT, make_value(a, 1, "4"));
    put_msg(&body, GRAPH_OUTPUT, make_value(k2, 9, ""));
    put_msg(&body, GRAPH_OUTPUT, make_value(b, 1, "4"));
    put_words(&n, 1, "m c");
    put_str(&n, 1, in);
    put_str(&n, 2, out);
    put_str(&n, 4, "Loop");
    put_attr_graph(&n, "body", body);
    return n;
}

/* Loops of `turns` turns, one in another. */
static Bytes loop(int64_t turns, int depth) {
    Bytes g = {0}, n;
    put_msg(&g, GRAPH_INITIALIZER, make_tensor("m", 7, 0, NULL, &turns, 8));
    put_msg(&g, GRAPH_INITIALIZER, make_tensor("c", 9, 0, NULL, "\1", 1));
    put_msg(&g, GRAPH_INPUT, make_value("x", 1, "4"));
    n = loop_node(depth, "x", "y");
    put_msg(&g, GRAPH_NODE, n);
    put_msg(&g, GRAPH_OUTPUT, make_value("y", 1, "4"));
    return make_model(g, 9, 17);
}

static void bounds_loops(void **state) {
    int left;
    compile_seconds(loop(7, 1), &left);
    assert_int_equal(left, 7);
    compile_seconds(loop(5, 3), &left);
    assert_int_equal(left, 125);
    assert_refused(loop(INT64_MAX, 1), EXIT_MODEL, "turns", 1);
    assert_refused(loop(1000, 2), EXIT_RESOURCE, "more than 100000 nodes", 1);
    assert_refused(loop(30, 8), EXIT_RESOURCE, "more than 100000 nodes", 1);
}

/* ---- sizes ---- */

static Bytes with_tensor(int rank, const int64_t *dims, const void *raw, size_t n) {
    Bytes g = {0};
    put_msg(&g, GRAPH_INITIALIZER, make_tensor("w", 1, rank, dims, raw, n));
    put_msg(&g, GRAPH_NODE, make_node("Identity", "w", "y"));
    put_msg(&g, GRAPH_OUTPUT, make_value("y", 1, "4"));
    return make_model(g, 8, 17);
}

static void bounds_ranks_and_sizes(void **state) {
    int64_t ones[17] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    assert_refused(with_tensor(9, ones, "\0\0\0\0", 4), EXIT_RESOURCE, "rank 9", 0.05);
    assert_refused(with_tensor(17, ones, "\0\0\0\0", 4), EXIT_MODEL, "rank 17", 0.05);
    int64_t wrap[] = {INT64_C(1) << 33, INT64_C(1) << 33};
    assert_refused(with_tensor(2, wrap, "\0\0\0\0", 4), EXIT_RESOURCE, "w", 0.05);
    int64_t huge[] = {INT64_C(1) << 41};
    assert_refused(with_tensor(1, huge, "\0\0\0\0", 4), EXIT_RESOURCE, "w", 0.05);
    int64_t negative[] = {-1, 4};
    assert_refused(with_tensor(2, negative, "\0\0\0\0", 4), EXIT_MODEL, "-1", 0.05);
}

static void takes_regular_files_of_a_sane_size(void **state) {
    char dir[] = "/tmp/stgcc-hard-XXXXXX", path[64];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/sparse", dir);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    assert_int_equal(ftruncate(fd, INT64_C(1) << 31), 0);
    close(fd);
    char fifo[64];
    snprintf(fifo, sizeof fifo, "%s/fifo", dir);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    const struct {
        const char *path;
        ExitCode code;
    } rows[] = {{path, EXIT_RESOURCE},     {fifo, EXIT_MODEL},        {dir, EXIT_MODEL},
                {"/dev/zero", EXIT_MODEL}, {"/nonexistent", EXIT_IO}, {"/dev/null", EXIT_MODEL}};
    for (int i = 0; i < COUNT_OF(rows); i++) {
        Diag d = {.subject = "file"};
        double start = seconds();
        assert_null(onnx_import(rows[i].path, NULL, NULL, &d));
        assert_int_equal(d.errors, 1);
        assert_int_equal(d.code, rows[i].code);
        assert_true(seconds() - start < 0.05);
        diag_free(&d);
    }
    unlink(path), unlink(fifo), rmdir(dir);
}

/* ---- names ---- */

static void escapes_what_steers_a_terminal(void **state) {
    static const char *const rows[][2] = {
        {"\x1b[31mred", "\\x1b[31mred"},
        {"a\nb\tc\r", "a\\x0ab\\x09c\\x0d"},
        {"\xc2\x9b"
         "31m",
         "\\xc2\\x9b31m"},
        {"\x9b"
         "31m",
         "\\x9b31m"},
        {"\xe2\x80\xae"
         "cod.exe",
         "\\xe2\\x80\\xae"
         "cod.exe"},
        {"say \"x\"", "say \\x22x\\x22"},
        {"%s%n%d", "%s%n%d"},
        {"gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc\xc3\x9f"},
        {"\xc0\xaf", "\\xc0\\xaf"},
        {"\xe2\x82", "\\xe2\\x82"},
        {"\xf0\x9f\x99\x82", "\xf0\x9f\x99\x82"},
        {"\x7f", "\\x7f"},
    };
    Diag d = {.subject = "\x1b]0;title\x07m.onnx"};
    for (int i = 0; i < COUNT_OF(rows); i++)
        assert_string_equal(diag_safe(&d, rows[i][0]), rows[i][1]);
    char long_name[1001];
    memset(long_name, '\x01', 1000);
    long_name[1000] = 0;
    assert_int_equal(strlen(diag_safe(&d, long_name)), 4 * 200 + 3);
    diag_error(&d, EXIT_MODEL, "it is so");
    char *printed = NULL;
    size_t n;
    FILE *f = open_memstream(&printed, &n);
    diag_print(&d, f, false);
    fclose(f);
    assert_string_equal(printed, "\\x1b]0;title\\x07m.onnx: error: it is so\n");
    free(printed);
    diag_free(&d);
}

/* Model names never serve as a format. */
static void names_are_no_formats(void **state) {
    Bytes g = {0}, n = make_node("Relu", "%s%n%s%n in", "y");
    put_str(&n, 3, "%n%n%n%s");
    put_msg(&g, GRAPH_NODE, n);
    put_msg(&g, GRAPH_INPUT, make_value("x", 1, "%s%n"));
    put_msg(&g, GRAPH_OUTPUT, make_value("%d%n", 1, "4"));
    Bytes m = make_model(g, 8, 17);
    Diag d = {.subject = "%s%n"};
    assert_null(onnx_import_bytes(m.at, m.n, NULL, NULL, NULL, &d));
    assert_non_null(strstr(d.messages.at[0].text, "\"%s%n%s%n\" is used but never defined"));
    assert_non_null(strstr(d.messages.at[0].text, "node \"%n%n%n%s\""));
    char *printed = NULL;
    size_t size;
    FILE *f = open_memstream(&printed, &size);
    diag_print(&d, f, false);
    fclose(f);
    assert_int_equal(strncmp(printed, "%s%n: error: ", 13), 0);
    free(printed);
    diag_free(&d);
    free(m.at);
}

/* ---- memory ---- */

/* In a process that may hold 256 MiB, whatever is refused is refused by us, not by the machine. */
static int in_little_memory(Bytes m) {
    pid_t child = fork();
    if (child == 0) {
        struct rlimit cap = {256 << 20, 256 << 20};
        Diag d = {.subject = "memory"};
        if (!SANITIZED)
            setrlimit(RLIMIT_DATA, &cap);
        Graph *g = onnx_import_bytes(m.at, m.n, NULL, NULL, NULL, &d);
        _exit(g ? 0 : (int)d.code);
    }
    int status = 0;
    waitpid(child, &status, 0);
    free(m.at);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void stays_in_little_memory(void **state) {
    static uint8_t zeros[1 << 22];
    Bytes nodes = {0}, dims = {0}, t = {0};
    put_bytes(&nodes, 7, zeros, 0);
    for (size_t i = 0; i + 1 < sizeof zeros; i += 2)
        zeros[i] = 0x0a; /* graph.node: empty, two million of them */
    Bytes m = {0};
    put_int(&m, 1, 8);
    put_bytes(&m, 7, zeros, sizeof zeros);
    assert_int_equal(in_little_memory(m), EXIT_MODEL); /* the first has no operator */
    memset(zeros, 1, sizeof zeros);
    put_bytes(&t, 1, zeros, sizeof zeros); /* dims: four million of them */
    put_int(&t, 2, 1);
    put_str(&t, 8, "w");
    put_msg(&dims, GRAPH_INITIALIZER, t);
    assert_int_equal(in_little_memory(make_model(dims, 8, 17)), EXIT_MODEL);
    free(nodes.at);
    assert_int_equal(in_little_memory(bomb(60, true, -1)), EXIT_RESOURCE);
    /* Unknown fields: 40 bytes of heap for 2 of the file. */
    for (size_t i = 0; i + 1 < sizeof zeros; i += 2)
        zeros[i] = 0x78, zeros[i + 1] = 1; /* field 15, a number */
    Bytes u = {0};
    put_bytes(&u, 7, zeros, sizeof zeros);
    int code = in_little_memory(u);
    assert_true(code == EXIT_RESOURCE || code == EXIT_MODEL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(compiles_in_linear_time),
        cmocka_unit_test(folds_in_linear_time),
        cmocka_unit_test(reports_in_linear_time),
        cmocka_unit_test(refuses_doubling),
        cmocka_unit_test(bounds_loops),
        cmocka_unit_test(bounds_ranks_and_sizes),
        cmocka_unit_test(takes_regular_files_of_a_sane_size),
        cmocka_unit_test(escapes_what_steers_a_terminal),
        cmocka_unit_test(names_are_no_formats),
        cmocka_unit_test(stays_in_little_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
