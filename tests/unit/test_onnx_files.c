/* test_onnx_files.c: what lies on disk: external data that may not be trusted, trained weights
 * written back, the format's field numbers, and the project's sets of good and malformed models
 * where they are at hand. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <glob.h>
#include <sys/stat.h>
#include <unistd.h>

#include "frontend/frontend.h"
#include "ir/verify.h"
#include "onnx_maker.h"

static char dir[64];

static int make_dir(void **state) {
    snprintf(dir, sizeof dir, "/tmp/stgcc-test-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state) {
    char pattern[80];
    glob_t found;
    snprintf(pattern, sizeof pattern, "%s/*", dir);
    if (glob(pattern, 0, NULL, &found) == 0) {
        for (size_t i = 0; i < found.gl_pathc; i++)
            if (unlink(found.gl_pathv[i]))
                rmdir(found.gl_pathv[i]);
        globfree(&found);
    }
    return rmdir(dir);
}

static const char *in_dir(const char *name) {
    static char path[4][160];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", dir, name);
    return path[turn];
}

static void write_file(const char *path, const void *p, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* ---- external data ---- */

static void put_entry(Bytes *t, const char *key, const void *v, size_t n) {
    Bytes e = {0};
    put_str(&e, 1, key);
    put_bytes(&e, 2, v, n);
    put_msg(t, 13, e);
}

static Bytes external_model(const char *location, const char *offset, const char *length,
                            const char *checksum) {
    Bytes g = {0}, t = make_tensor("w", 1, 1, (int64_t[]){3}, NULL, 0);
    put_entry(&t, "location", location, strlen(location));
    if (offset)
        put_entry(&t, "offset", offset, strlen(offset));
    if (length)
        put_entry(&t, "length", length, strlen(length));
    if (checksum)
        put_entry(&t, "checksum", checksum, strlen(checksum));
    put_int(&t, 14, 1);
    put_msg(&g, GRAPH_NODE, make_node("Add", "x w", "y"));
    put_msg(&g, GRAPH_INITIALIZER, t);
    put_msg(&g, GRAPH_INPUT, make_value("x", 1, "n 3"));
    put_msg(&g, GRAPH_OUTPUT, make_value("y", 1, "n 3"));
    return make_model(g, 8, 17);
}

/* The graph of a model whose files lie in `dir`; NULL and the first message in `text`. */
static Graph *import_here(Bytes m, char text[512]) {
    Diag d = {.subject = "test"};
    Graph *g = onnx_import_bytes(m.at, m.n, dir, NULL, NULL, &d);
    snprintf(text, 512, "%s", d.messages.n ? d.messages.at[0].text : "");
    assert_true(g || d.errors == 1);
    diag_free(&d);
    free(m.at);
    return g;
}

static void assert_external(const char *location, const char *offset, const char *length,
                            const char *sum, const char *refusal) {
    char text[512];
    Graph *g = import_here(external_model(location, offset, length, sum), text);
    if (refusal ? g || !strstr(text, refusal) : !g)
        fail_msg("location \"%s\": expected %s, found \"%s\"", location,
                 refusal ? refusal : "a graph", text);
    if (g)
        graph_free(g);
}

static void reads_external_data(void **state) {
    float w[4] = {9, 1, 2, 3};
    char text[512];
    write_file(in_dir("w.bin"), w, sizeof w);
    Graph *g = import_here(external_model("w.bin", "4", "12", NULL), text);
    assert_non_null(g);
    FOR_NODES(n, g) {
        if (n->op == OP_PARAM)
            assert_memory_equal(node_attr(n, AT_VALUE)->t->data, w + 1, 12);
    }
    graph_free(g);
    assert_external("w.bin", NULL, NULL, NULL, NULL);
}

/* SHA-1 of "abc" padded into the tensor is no use here; the digest of 12 zero bytes is computed by
 * another program. */
static void checks_checksums(void **state) {
    write_file(in_dir("zero.bin"), "\0\0\0\0\0\0\0\0\0\0\0", 12);
    assert_external("zero.bin", NULL, NULL, "2c513f149e737ec4063fc1d37aee9beabc4b4bbf", NULL);
    assert_external("zero.bin", NULL, NULL, "0000000000000000000000000000000000000000", "checksum");
}

static void refuses_untrusted_locations(void **state) {
    write_file(in_dir("w.bin"), "123456789012", 12);
    assert_external("../w.bin", NULL, NULL, NULL, "leads out");
    assert_external("a/../../w.bin", NULL, NULL, NULL, "leads out");
    assert_external("/etc/passwd", NULL, NULL, NULL, "absolute");
    assert_external("", NULL, NULL, NULL, "location");
    assert_external("missing.bin", NULL, NULL, NULL, "No such file");
    assert_external("w.bin", "8", NULL, NULL, "past the end");
    assert_external("w.bin", "-4", NULL, NULL, "decimal digits");
    assert_external("w.bin", "0x0", NULL, NULL, "decimal digits");
    assert_external("w.bin", "9223372036854775807", NULL, NULL, "past the end");
    assert_external("w.bin", NULL, "8", NULL, "length is 8");
    assert_int_equal(symlink("w.bin", in_dir("soft")), 0);
    assert_external("soft", NULL, NULL, NULL, "symbolic link");
    assert_int_equal(symlink("/tmp", in_dir("softdir")), 0);
    assert_external("softdir/w.bin", NULL, NULL, NULL, "symbolic link");
    assert_int_equal(mkfifo(in_dir("fifo"), 0600), 0);
    assert_external("fifo", NULL, NULL, NULL, "not a regular file");
    assert_int_equal(mkdir(in_dir("folder"), 0700), 0);
    assert_external("folder", NULL, NULL, NULL, "not a regular file");
    assert_int_equal(link(in_dir("w.bin"), in_dir("hard")), 0);
    assert_external("hard", NULL, NULL, NULL, "hard link");
    unlink(in_dir("hard"));
}

static void refuses_nul_in_a_location(void **state) {
    Bytes g = {0}, t = make_tensor("w", 1, 1, (int64_t[]){3}, NULL, 0);
    char text[512];
    put_entry(&t, "location", "w.bin\0/x", 8);
    put_int(&t, 14, 1);
    put_msg(&g, GRAPH_INITIALIZER, t);
    assert_null(import_here(make_model(g, 8, 17), text));
    assert_non_null(strstr(text, "UTF-8"));
}

/* ---- export ---- */

static Graph *import_file(const char *path, OnnxFile **file) {
    Diag d = {.subject = path};
    Graph *g = onnx_import(path, NULL, file, &d);
    if (!g)
        fail_msg("%s: %s", path, d.messages.at[0].text);
    diag_free(&d);
    return g;
}

static const Tensor *param(const Graph *g, const char *name) {
    FOR_NODES(n, g)
    if (n->op == OP_PARAM && !strcmp(node_str(n, AT_NAME, ""), name))
        return node_attr(n, AT_VALUE)->t;
    return NULL;
}

static bool export(const OnnxFile *f, const char *path, const NamedTensor *v, int n,
                   char text[512]) {
    Diag d = {.subject = "test"};
    bool ok = onnx_export_weights(f, path, v, n, &d);
    snprintf(text, 512, "%s", d.messages.n ? d.messages.at[0].text : "");
    diag_free(&d);
    return ok;
}

/* Two experts whose weight is one initializer "w", an f16 weight "h", external data "e". */
static void write_merged_model(void) {
    Bytes g = {0}, a = make_node("Mul", "x w", "a"),
          e = make_tensor("e", 1, 1, (int64_t[]){3}, NULL, 0);
    put_str(&a, 3, "/experts.1/Mul");
    put_msg(&g, GRAPH_NODE, make_node("Identity", "w", "w2"));
    put_msg(&g, GRAPH_NODE, a);
    Bytes b = make_node("Mul", "x w2", "b");
    put_str(&b, 3, "/experts.0/Mul");
    put_msg(&g, GRAPH_NODE, b);
    put_msg(&g, GRAPH_NODE, make_node("Add", "a b", "c"));
    put_msg(&g, GRAPH_NODE, make_node("Add", "c e", "y"));
    Bytes cast = make_node("Cast", "h", "h32");
    put_attr_int(&cast, "to", 1);
    put_msg(&g, GRAPH_NODE, cast);
    write_file(in_dir("e.bin"), (float[]){7, 8, 9}, 12);
    put_entry(&e, "location", "e.bin", 5);
    put_int(&e, 14, 1);
    put_msg(&g, GRAPH_INITIALIZER, make_tensor("w", 1, 1, (int64_t[]){3}, (float[]){1, 2, 3}, 12));
    put_msg(&g, GRAPH_INITIALIZER,
            make_tensor("h", 10, 1, (int64_t[]){2}, (uint16_t[]){0x3c00, 0x4000}, 4));
    put_msg(&g, GRAPH_INITIALIZER, e);
    put_msg(&g, GRAPH_INPUT, make_value("x", 1, "n 3"));
    put_msg(&g, GRAPH_OUTPUT, make_value("y", 1, "n 3"));
    Bytes m = make_model(g, 8, 17);
    put_str(&m, 6, "kept\ndocumentation");
    write_file(in_dir("m.onnx"), m.at, m.n);
    free(m.at);
}

static void writes_weights_back(void **state) {
    OnnxFile *f;
    char text[512];
    write_merged_model();
    Graph *g = import_file(in_dir("m.onnx"), &f);
    float w0[3] = {10, 11, 12}, w1[3] = {20, 21, 22}, h[2] = {0.5f, -3};
    NamedTensor v[] = {{"w@0.0", &(Tensor){DT_F32, 1, {3}, w0}},
                       {"w@0.1", &(Tensor){DT_F32, 1, {3}, w1}},
                       {"h", &(Tensor){DT_F32, 1, {2}, h}}};
    if (!export(f, in_dir("out.onnx"), v, 3, text))
        fail_msg("%s", text);
    Graph *back = import_file(in_dir("out.onnx"), NULL);
    assert_memory_equal(param(back, "w@0.0")->data, w0, 12);
    assert_memory_equal(param(back, "w@0.1")->data, w1, 12);
    assert_int_equal(param(back, "h")->dtype, DT_F16);
    assert_true(tensor_get_f(param(back, "h"), 0) == 0.5 &&
                tensor_get_f(param(back, "h"), 1) == -3);
    assert_memory_equal(param(back, "e")->data, ((float[]){7, 8, 9}), 12); /* embedded */
    FOR_NODES(n, back) { /* the numbers in the names tell whose is whose */
        if (n->op == OP_MUL)
            assert_string_equal(param_name(n->in[1]),
                                strstr(n->src->name, "experts.0") ? "w@0.0" : "w@0.1");
    }
    graph_free(back);
    graph_free(g);
    onnx_file_free(f);
}

static void refuses_bad_exports(void **state) {
    OnnxFile *f;
    char text[512];
    write_merged_model();
    Graph *g = import_file(in_dir("m.onnx"), &f);
    float w[3] = {1, 2, 3};
    NamedTensor one = {"w@0.0", &(Tensor){DT_F32, 1, {3}, w}},
                two = {"w", &(Tensor){DT_F32, 1, {2}, w}},
                none = {"nope", &(Tensor){DT_F32, 1, {3}, w}};
    assert_false(export(f, in_dir("bad.onnx"), &one, 1, text));
    assert_non_null(strstr(text, "2 operands read it"));
    assert_false(export(f, in_dir("bad.onnx"), &two, 1, text));
    assert_non_null(strstr(text, "another shape"));
    assert_false(export(f, in_dir("bad.onnx"), &none, 1, text));
    assert_non_null(strstr(text, "no initializer \"nope\""));
    assert_false(export(f, in_dir("m.onnx"), NULL, 0, text));
    assert_non_null(strstr(text, "not overwritten"));
    assert_int_not_equal(access(in_dir("bad.onnx"), F_OK), 0); /* a failed export leaves nothing */
    graph_free(g);
    onnx_file_free(f);
}

/* ---- the format's numbers ---- */

/* Finds "NAME = NUMBER" of `field` inside "message MESSAGE" of a .proto text; -1. Nested messages
 * have names of their own. */
static int proto_number(const char *text, const char *message, const char *field) {
    char head[96];
    int depth = 0;
    snprintf(head, sizeof head, "message %s {", message);
    const char *p = strstr(text, head);
    size_t n = strlen(field);
    for (p = p ? p + strlen(head) : NULL; p && *p; p++) {
        if (!strncmp(p, "//", 2)) {
            p += strcspn(p, "\n");
            continue;
        }
        if (!strncmp(p, "oneof", 5))
            depth--;
        depth += *p == '{' ? 1 : *p == '}' ? -1 : 0;
        if (depth < -4 || (depth < 0 && *p == '}' && p[1] == '\n' && p[2] == '\n'))
            break;
        if (!strncmp(p, field, n) && !strncmp(p + n, " = ", 3) && strchr(" \t\n", p[-1]))
            return atoi(p + n + 3);
    }
    return -1;
}

static char *read_text(const char *path) {
    FILE *f = path ? fopen(path, "rb") : NULL;
    if (!f)
        return NULL;
    char *text = xcalloc(1, 1 << 20);
    size_t n = fread(text, 1, (1 << 20) - 1, f);
    text[n] = 0;
    fclose(f);
    return text;
}

static void numbers_agree_with_the_format(void **state) {
    static const char *const places[] = {"/usr/include/onnx/onnx.proto",
                                         "/usr/include/onnx/onnx.in.proto",
                                         "/usr/share/onnx/onnx.proto"};
    char *theirs = read_text(getenv("ONNX_PROTO"));
    for (int i = 0; i < COUNT_OF(places) && !theirs; i++)
        theirs = read_text(places[i]);
    if (!theirs) {
        print_message("SKIPPED: no onnx.proto is installed (set ONNX_PROTO to its path)\n");
        skip();
    }
    char *ours = read_text(SOURCE_DIR "/frontend/onnx.proto"), message[64] = "";
    assert_non_null(ours);
    int compared = 0;
    for (char *line = strtok(ours, "\n"); line; line = strtok(NULL, "\n")) {
        char type[64], name[64];
        int number;
        if (sscanf(line, " message %63s", name) == 1)
            snprintf(message, sizeof message, "%s", name);
        else if ((sscanf(line, " optional %63s %63s = %d", type, name, &number) == 3 ||
                  sscanf(line, " repeated %63s %63s = %d", type, name, &number) == 3) &&
                 strstr("AttributeProto NodeProto GraphProto ModelProto FunctionProto TensorProto "
                        "ValueInfoProto "
                        "SparseTensorProto TrainingInfoProto OperatorSetIdProto",
                        message)) {
            int expected = proto_number(theirs, message, name);
            if (expected != number)
                fail_msg("%s.%s is %d here and %d there", message, name, number, expected);
            compared++;
        }
    }
    print_message("%d field numbers compared\n", compared);
    assert_true(compared > 60);
    free(ours);
    free(theirs);
}

/* ---- sets of models beside the project ---- */

static void for_each(const char *pattern, void (*check)(const char *path)) {
    glob_t found;
    char path[512];
    snprintf(path, sizeof path, "%s/../shared/%s", SOURCE_DIR, pattern);
    if (glob(path, 0, NULL, &found) != 0) {
        print_message("SKIPPED: %s is not there\n", path);
        skip();
    }
    for (size_t i = 0; i < found.gl_pathc; i++)
        check(found.gl_pathv[i]);
    print_message("%zu models\n", found.gl_pathc);
    globfree(&found);
}

static void check_case(const char *path) {
    Graph *g = import_file(path, NULL);
    char *fault = graph_check(g);
    if (fault)
        fail_msg("%s: %s", path, fault);
    assert_true(g->outputs.n > 0);
    graph_free(g);
}

static void imports_every_case(void **state) {
    for_each("cases/*/model.onnx", check_case);
}

static void check_bad(const char *path) {
    Diag d = {.subject = path};
    Graph *g = onnx_import(path, NULL, NULL, &d);
    bool may_load = strstr(path, "95_nest_8.") || strstr(path, "95_nest_30.");
    if (g ? !may_load : d.errors != 1 || (d.code != EXIT_MODEL && d.code != EXIT_RESOURCE))
        fail_msg("%s: %s, %d messages", path, g ? "imported" : "refused", d.errors);
    if (g)
        graph_free(g);
    diag_free(&d);
}

static void refuses_every_malformed_model(void **state) {
    for_each("bad-models/*.onnx", check_bad);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_external_data),
        cmocka_unit_test(checks_checksums),
        cmocka_unit_test(refuses_untrusted_locations),
        cmocka_unit_test(refuses_nul_in_a_location),
        cmocka_unit_test(writes_weights_back),
        cmocka_unit_test(refuses_bad_exports),
        cmocka_unit_test(numbers_agree_with_the_format),
        cmocka_unit_test(imports_every_case),
        cmocka_unit_test(refuses_every_malformed_model),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
