/* The C interface (runtime/stgc.h) on a library that `stgcc compile` writes here: the same bytes as
 * `stgcc step` and `stgcc train` give, for one handle and for two at once; nothing grows; every
 * wrong call has its message. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "frontend/frontend.h"
#include "runtime/safetensors.h"
#include "runtime/stgc.h"

enum { B = 2, S = 16, IDS = B * S };
static const int64_t shape[] = {B, S};
static char dir[64];
static int64_t ids[IDS], labels[IDS];

/* ---- files and programs ---- */

static const char *at(const char *name) {
    static char paths[8][256];
    static int next;
    char *p = paths[next++ % 8];
    snprintf(p, sizeof paths[0], "%s/%s", dir, name);
    return p;
}

static const char *quoted(const char *name) {
    static char model[512];
    snprintf(model, sizeof model, "%s/models/%s", SOURCE_DIR, name);
    return model;
}

/* Runs stgcc in silence with these words; its exit code. */
static int stgcc(const char *const *words) {
    const char *argv[40] = {STGCC};
    int n = 1;
    while (*words)
        argv[n++] = *words++;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        execv(STGCC, (char *const *)argv);
        _exit(127);
    }
    int status = 0;
    assert_true(waitpid(pid, &status, 0) == pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}
#define STGCC_RUN(...) assert_int_equal(stgcc((const char *const[]){__VA_ARGS__, NULL}), 0)

static void write_batch(const char *path) {
    Diag d = {0};
    Tensor i = {.dtype = DT_I64, .rank = 2, .dims = {B, S}, .data = ids}, l = i;
    l.data = labels;
    NpzWriter *w = npz_create(path, &d);
    assert_non_null(w);
    assert_true(npz_add(w, "input_ids", &i, &d) && npz_add(w, "labels", &l, &d));
    assert_true(npz_close(w, &d));
    diag_free(&d);
}

static void compile_batch(const char *out, const char *set, const char *set2, const char *batch) {
    const char *recipe = strdup(quoted("byte-olmoe.yaml"));
    STGCC_RUN("compile", quoted("byte-olmoe.onnx"), "-q", "-c", recipe, "--set", "schedule.steps=4",
              "--set", "schedule.warmup=2", "--set", set, "--set", set2, "--dim", batch, "--dim",
              "seq=16", "-o", at(out));
    free((void *)recipe);
}

static void compile(const char *out, const char *set) {
    compile_batch(out, set, "train.seed=1", "batch=2");
}

static int make_all(void **state) {
    snprintf(dir, sizeof dir, "/tmp/stgc-api-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    for (int i = 0; i < IDS; i++)
        ids[i] = labels[i] = (i * 37 + 11) % 256;
    labels[5] = -100;
    write_batch(at("batch.npz"));
    compile("step.so", "train.log_every=1");
    compile("micro.so", "train.accumulate=2");
    return 0;
}

static int remove_all(void **state) {
    char command[128];
    pid_t pid = fork();
    if (pid == 0) {
        execlp("rm", "rm", "-rf", dir, (char *)NULL);
        _exit(127);
    }
    snprintf(command, sizeof command, "%s", dir);
    return waitpid(pid, NULL, 0) == pid ? 0 : -1;
}

/* ---- handles ---- */

static Stgc *open_step(const char *name, int threads) {
    StgcOptions o = {.size = sizeof o, .threads = threads};
    Stgc *h = stgc_open(at(name), &o);
    assert_non_null(h);
    if (stgc_status(h) != STGC_OK)
        print_message("%s\n", stgc_error(h));
    assert_int_equal(stgc_status(h), STGC_OK);
    return h;
}

static void give_batch(Stgc *h) {
    assert_int_equal(stgc_set(h, "input_ids", STGC_I64, 2, shape, ids), STGC_OK);
    assert_int_equal(stgc_set(h, "labels", STGC_I64, 2, shape, labels), STGC_OK);
}

static void refused(Stgc *h, StgcStatus status, StgcStatus want, const char *text) {
    if (status != want || strcmp(stgc_error(h), text) != 0)
        print_message("status %d, expected %d\n  got  %s\n  want %s\n", status, want, stgc_error(h),
                      text);
    assert_int_equal(status, want);
    assert_int_equal(stgc_status(h), want);
    assert_string_equal(stgc_error(h), text);
}

static float *floats(Stgc *h, const char *name, int64_t *n) {
    StgcTensor t = {.size = sizeof t};
    assert_int_equal(stgc_tensor(h, name, &t), STGC_OK);
    assert_non_null(t.data);
    if (n)
        *n = t.bytes / 4;
    return t.data;
}

static void same_as_npz(Stgc *h, const NamedArrays *want) {
    for (int i = 0; i < want->names.n; i++) {
        const Tensor *w = want->tensors.at[i];
        StgcTensor t = {.size = sizeof t};
        assert_int_equal(stgc_tensor(h, want->names.at[i], &t), STGC_OK);
        assert_non_null(t.data);
        Tensor got = {.dtype = dtype_from_onnx(t.type), .rank = t.rank, .data = t.data};
        memcpy(got.dims, t.dims, sizeof got.dims);
        assert_int_equal(tensor_count(&got), tensor_count(w));
        for (int64_t k = 0; k < tensor_count(w); k++) {
            float a = ((const float *)w->data)[k], b = (float)tensor_get_f(&got, k);
            if (memcmp(&a, &b, 4) != 0)
                fail_msg("%s[%lld]: %g, expected %g", want->names.at[i], (long long)k, b, a);
        }
    }
}

/* ---- the same bytes ---- */

static void gradients_are_those_of_step(void **state) {
    static const char *const isa[] = {"", "avx2"};
    for (int i = 0; i < 2; i++) { /* both variants of the library */
        Diag d = {0};
        NamedArrays want = {0};
        setenv("STGC_ISA", isa[i], 1);
        const char *recipe = strdup(quoted("byte-olmoe.yaml"));
        STGCC_RUN("step", quoted("byte-olmoe.onnx"), "-q", "-c", recipe, "--data", at("batch.npz"),
                  "-o", at("want.npz"));
        free((void *)recipe);
        assert_true(npz_read(at("want.npz"), &want, &d));
        assert_true(want.names.n > 20);
        for (int threads = 1; threads <= 3; threads++) {
            Stgc *h = open_step("step.so", threads);
            give_batch(h);
            assert_int_equal(stgc_gradients(h), STGC_OK);
            same_as_npz(h, &want);
            stgc_close(h);
        }
        arrays_free(&want);
        diag_free(&d);
    }
    unsetenv("STGC_ISA");
}

static void step_takes_a_library(void **state) {
    STGCC_RUN("step", at("step.so"), "-q", "--data", at("batch.npz"), "-o", at("library.npz"));
    Diag d = {0};
    NamedArrays a = {0};
    assert_true(npz_read(at("library.npz"), &a, &d));
    Stgc *h = open_step("step.so", 2);
    give_batch(h);
    assert_int_equal(stgc_gradients(h), STGC_OK);
    same_as_npz(h, &a);
    stgc_close(h);
    arrays_free(&a);
}

static char *file_bytes(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char *p = malloc(1 << 26);
    *n = fread(p, 1, 1 << 26, f);
    fclose(f);
    return p;
}

static void same_files(const char *a, const char *b) {
    size_t na, nb;
    char *pa = file_bytes(a, &na), *pb = file_bytes(b, &nb);
    assert_int_equal(na, nb);
    assert_true(na > 1000);
    assert_memory_equal(pa, pb, na);
    free(pa);
    free(pb);
}

/* The checkpoint after training holds parameters, moments, step and recipe: all are equal. */
static void trains_like(const char *library, const char *set, int calls) {
    char run[64], mine[64], a[300], b[300];
    snprintf(run, sizeof run, "run-%s", library);
    snprintf(mine, sizeof mine, "mine-%s", library);
    const char *recipe = strdup(quoted("byte-olmoe.yaml"));
    STGCC_RUN("train", quoted("byte-olmoe.onnx"), "-q", "-c", recipe, "--set", "schedule.steps=4",
              "--set", "schedule.warmup=2", "--set", set, "--data", at("batch.npz"), "-o", at(run));
    free((void *)recipe);
    Stgc *h = open_step(library, 0);
    give_batch(h);
    for (int i = 0; i < calls; i++)
        assert_int_equal(stgc_step(h), STGC_OK);
    assert_int_equal(stgc_steps(h), 4);
    int64_t samples = 0;
    snprintf(a, sizeof a, "%s/%s/step-00000004.ckpt", dir, run);
    snprintf(b, sizeof b, "%s/%s/step-00000004.ckpt", dir, mine);
    StgcStatus status;
    char error[256];
    StgcCheckpoint *c = stgc_checkpoint_read(a, &status, error, sizeof error);
    assert_non_null(c);
    samples = c->samples;
    stgc_checkpoint_free(c);
    assert_int_equal(stgc_save(h, at(mine), samples, 2), STGC_OK);
    same_files(a, b);

    /* taking it up again in a fresh handle, and going on, is going on here */
    Stgc *fresh = open_step(library, 1);
    int64_t back = -1;
    assert_int_equal(stgc_resume(fresh, at(run), &back), STGC_OK);
    assert_int_equal(back, samples);
    assert_int_equal(stgc_steps(fresh), 4);
    give_batch(fresh);
    for (int i = 0; i < calls / 4; i++) {
        assert_int_equal(stgc_step(h), STGC_OK);
        assert_int_equal(stgc_step(fresh), STGC_OK);
    }
    assert_memory_equal(floats(h, "loss/total", NULL), floats(fresh, "loss/total", NULL), 4);
    assert_int_equal(stgc_store(h, at("a.safetensors")), STGC_OK);
    assert_int_equal(stgc_store(fresh, at("b.safetensors")), STGC_OK);
    same_files(at("a.safetensors"), at("b.safetensors"));
    stgc_close(fresh);
    stgc_close(h);
}

static void trains_like_train(void **state) {
    trains_like("step.so", "train.log_every=1", 4);
}

static void accumulates_like_train(void **state) {
    trains_like("micro.so", "train.accumulate=2", 8);
}

static void looking_changes_nothing(void **state) {
    Stgc *a = open_step("step.so", 1), *b = open_step("step.so", 1);
    give_batch(a);
    give_batch(b);
    float *loss = floats(a, "loss/total", NULL);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(stgc_gradients(a), STGC_OK);
        assert_int_equal(stgc_step(a), STGC_OK);
        assert_int_equal(stgc_step(b), STGC_OK);
        assert_ptr_equal(loss, floats(a, "loss/total", NULL));
        assert_memory_equal(loss, floats(b, "loss/total", NULL), 4);
    }
    stgc_close(a);
    stgc_close(b);
}

/* A write to a parameter's own memory counts for both programs. */
static void memory_is_shared_with_the_caller(void **state) {
    Stgc *h = open_step("step.so", 1);
    give_batch(h);
    assert_int_equal(stgc_gradients(h), STGC_OK);
    float before = *floats(h, "loss/total", NULL);
    int64_t n;
    float *p = floats(h, "hf.model.embed_tokens.weight", &n);
    float *kept = malloc((size_t)n * 4);
    memcpy(kept, p, (size_t)n * 4);
    for (int64_t i = 0; i < n; i++)
        p[i] = -p[i];
    assert_int_equal(stgc_gradients(h), STGC_OK);
    assert_true(*floats(h, "loss/total", NULL) != before);
    memcpy(p, kept, (size_t)n * 4);
    assert_int_equal(stgc_gradients(h), STGC_OK);
    assert_true(*floats(h, "loss/total", NULL) == before);
    free(kept);
    stgc_close(h);
}

static void learning_rate_is_the_schedules_or_set(void **state) {
    Stgc *h = open_step("step.so", 1);
    give_batch(h);
    assert_true(stgc_learning_rate(h) == 2e-3 / 2); /* warm-up of 2 steps */
    assert_int_equal(stgc_set_learning_rate(h, 0), STGC_OK);
    int64_t n;
    float *p = floats(h, "hf.model.norm.weight", &n), first = p[0];
    assert_int_equal(stgc_step(h), STGC_OK);
    assert_true(p[0] == first);
    assert_int_equal(stgc_set_learning_rate(h, NAN), STGC_OK);
    assert_true(stgc_learning_rate(h) == 2e-3);
    assert_int_equal(stgc_step(h), STGC_OK);
    assert_true(p[0] != first);
    refused(h, stgc_set_learning_rate(h, -1), STGC_ERR_USAGE,
            "learning rate: error: expected 0 or more, or NaN for the schedule's, found -1");
    stgc_close(h);
}

static void ignored_batches_train_nothing(void **state) {
    Stgc *h = open_step("step.so", 1);
    int64_t none[IDS], n;
    for (int i = 0; i < IDS; i++)
        none[i] = -100;
    give_batch(h);
    assert_int_equal(stgc_set(h, "labels", STGC_I64, 2, shape, none), STGC_OK);
    float *p = floats(h, "hf.model.norm.weight", &n), first = p[0];
    assert_int_equal(stgc_step(h), STGC_OK);
    assert_true(p[0] == first && stgc_number(h, "loss/total") == 0);
    assert_int_equal(stgc_steps(h), 1);
    stgc_close(h);
}

/* A row alone in a step of two rows, where nothing counts the other, is a step of one row. */
static void fewer_rows_are_a_smaller_batch(void **state) {
    compile_batch("two.so", "stgc.enabled=false", "loss.balance=0", "batch=2");
    compile_batch("one.so", "stgc.enabled=false", "loss.balance=0", "batch=1");
    Stgc *two = open_step("two.so", 1), *one = open_step("one.so", 1);
    const int64_t row[] = {1, S}, none[] = {0, S};
    Stgc *both[] = {two, one};
    StgcInfo info = {.size = sizeof info};
    assert_int_equal(stgc_info(two, &info), STGC_OK);
    assert_int_equal(info.batch_rows, 2);
    assert_null(info.fewer_rows);
    give_batch(two); /* what was there before must not matter */
    for (int i = 0; i < 2; i++) {
        assert_int_equal(stgc_set(both[i], "input_ids", STGC_I64, 2, row, ids + S), STGC_OK);
        if (i == 0)
            refused(two, stgc_step(two), STGC_ERR_DATA,
                    "labels: error: it was set with 2 rows, input_ids with 1");
        assert_int_equal(stgc_set(both[i], "labels", STGC_I64, 2, row, labels + S), STGC_OK);
        assert_int_equal(stgc_gradients(both[i]), STGC_OK);
    }
    refused(two, stgc_set(two, "labels", STGC_I64, 2, none, labels), STGC_ERR_USAGE,
            "labels: error: expected i64[2,16], found i64[0,16]");
    int compared = 0;
    for (int32_t i = 0; i < stgc_count(one); i++) {
        StgcTensor a = {.size = sizeof a};
        assert_int_equal(stgc_tensor_at(one, i, &a), STGC_OK);
        if (strncmp(a.name, "grad/", 5) != 0 && strncmp(a.name, "loss/", 5) != 0)
            continue;
        const float *x = a.data, *y = floats(two, a.name, NULL);
        float most = 1e-6f, worst = 0;
        for (int64_t k = 0; k < a.bytes / 4; k++) {
            most = fmaxf(most, fabsf(x[k]));
            worst = fmaxf(worst, fabsf(x[k] - y[k]));
        }
        if (!(worst <= 1e-5f * most))
            fail_msg("%s: %g of %g", a.name, worst, most);
        compared++;
    }
    assert_true(compared > 20);
    stgc_close(two);
    stgc_close(one);

    Stgc *h = open_step("step.so", 1); /* its STGC counts every token */
    refused(h, stgc_set(h, "labels", STGC_I64, 2, row, labels), STGC_ERR_USAGE,
            "labels: error: expected 2 rows, found 1; fewer are not possible here: the losses of "
            "MoE layers count every token; name an input that masks tokens in stgc.token_mask");
    stgc_close(h);
}

/* ---- many handles ---- */

typedef struct Job {
    float losses[6];
    int threads;
} Job;

static void *train_alone(void *job) {
    Job *j = job;
    Stgc *h = open_step("step.so", j->threads);
    for (int i = 0; i < 6; i++) {
        give_batch(h);
        if (stgc_step(h) != STGC_OK)
            break;
        j->losses[i] = (float)stgc_number(h, "loss/total");
    }
    stgc_close(h);
    return NULL;
}

static void two_threads_train_like_one(void **state) {
    Job one = {.threads = 1}, a = {.threads = 2}, b = {.threads = 1};
    pthread_t ta, tb;
    train_alone(&one);
    assert_true(one.losses[0] > one.losses[5] && one.losses[5] > 0);
    assert_int_equal(pthread_create(&ta, NULL, train_alone, &a), 0);
    assert_int_equal(pthread_create(&tb, NULL, train_alone, &b), 0);
    pthread_join(ta, NULL);
    pthread_join(tb, NULL);
    assert_memory_equal(one.losses, a.losses, sizeof one.losses);
    assert_memory_equal(one.losses, b.losses, sizeof one.losses);
}

static long resident_pages(void) {
    long all = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%ld %ld", &all, &resident), 2);
    fclose(f);
    return resident;
}

static void a_thousand_handles_do_not_grow(void **state) {
    long before = 0;
    for (int i = 0; i < 1000; i++) {
        Stgc *h = open_step("step.so", 1);
        give_batch(h);
        assert_int_equal(stgc_step(h), STGC_OK);
        stgc_close(h);
        if (i == 100)
            before = resident_pages();
    }
    long grown = resident_pages() - before;
#if defined(__SANITIZE_ADDRESS__) /* it keeps freed memory back: leaks are what it looks for */
    grown = 0;
#endif
    if (grown > 256)
        fail_msg("900 handles left %ld pages", grown);
}

static void memory_is_what_was_planned(void **state) {
    Stgc *h = open_step("step.so", 1);
    give_batch(h);
    assert_int_equal(stgc_step(h), STGC_OK);
    StgcInfo i = {.size = sizeof i};
    assert_int_equal(stgc_info(h, &i), STGC_OK);
    assert_int_equal(i.threads, 1);
    assert_int_equal(i.accumulate, 1);
    assert_int_equal(i.schedule_steps, 4);
    assert_non_null(strstr(i.recipe, "stgc:"));
    assert_true(i.planned_bytes > 1000000);
    /* pages may be huge: at most one more than planned */
    assert_true(i.touched_bytes <= i.planned_bytes + (2 << 20));
    stgc_close(h);
}

/* ---- what is refused ---- */

static void names_types_and_shapes_are_checked(void **state) {
    Stgc *h = open_step("step.so", 1);
    const int64_t wide[] = {B, S + 1};
    StgcTensor t = {.size = sizeof t};
    refused(h, stgc_set(h, "input_id", STGC_I64, 2, shape, ids), STGC_ERR_USAGE,
            "input_id: error: the step has no tensor of this name; its inputs are input_ids, "
            "labels, STEP.h lists the others");
    refused(h, stgc_set(h, "input_ids", STGC_I64, 2, wide, ids), STGC_ERR_USAGE,
            "input_ids: error: expected i64[2,16], found i64[2,17]");
    refused(h, stgc_set(h, "input_ids", STGC_I32, 2, shape, ids), STGC_ERR_USAGE,
            "input_ids: error: expected i64[2,16], found i32[2,16]");
    refused(h, stgc_set(h, "input_ids", 99, 1, shape, ids), STGC_ERR_USAGE,
            "input_ids: error: expected i64[2,16], found type 99[2]");
    refused(h, stgc_set(h, "loss/total", STGC_F32, 0, NULL, ids), STGC_ERR_USAGE,
            "loss/total: error: it is an output and cannot be set");
    refused(h, stgc_set(h, "hyper", STGC_F32, 1, (int64_t[]){8}, ids), STGC_ERR_USAGE,
            "hyper: error: the step has no tensor of this name; its inputs are input_ids, labels, "
            "STEP.h lists the others");
    refused(h, stgc_get(h, "loss/total", ids, 8), STGC_ERR_USAGE,
            "loss/total: error: it has 4 bytes, room was given for 8");
    refused(h, stgc_get(h, "grad/hf.model.norm.weight", ids, 128 * 4), STGC_ERR_USAGE,
            "grad/hf.model.norm.weight: error: it comes from stgc_gradients, which was not called "
            "last");
    refused(h, stgc_tensor_at(h, stgc_count(h), &t), STGC_ERR_USAGE, stgc_error(h));
    refused(h, stgc_tensor(h, NULL, &t), STGC_ERR_USAGE, stgc_error(h));
    refused(h, stgc_step(h), STGC_ERR_DATA,
            "input_ids: error: this input (and 1 more) was not given; stgc_set it, or fill the "
            "memory stgc_tensor shows");
    give_batch(h); /* the handle goes on */
    assert_int_equal(stgc_step(h), STGC_OK);
    assert_string_equal(stgc_error(h), "");
    stgc_close(h);
    stgc_close(NULL);
}

static void batches_are_checked_before_a_step(void **state) {
    Stgc *h = open_step("step.so", 1);
    int64_t bad[IDS], n;
    give_batch(h);
    memcpy(bad, labels, sizeof bad);
    bad[S + 3] = 256;
    float *p = floats(h, "hf.model.norm.weight", &n), first = p[0];
    assert_int_equal(stgc_set(h, "labels", STGC_I64, 2, shape, bad), STGC_OK);
    refused(h, stgc_step(h), STGC_ERR_DATA,
            "labels: error: label 256 at [1,3] is out of range; expected 0 to 255, or -100 to "
            "ignore the position");
    give_batch(h);
    bad[S + 3] = -257;
    assert_int_equal(stgc_set(h, "input_ids", STGC_I64, 2, shape, bad), STGC_OK);
    refused(h, stgc_step(h), STGC_ERR_DATA,
            "input_ids: error: id -257 at [1,3] is out of range; expected 0 to 255");
    assert_true(p[0] == first);
    assert_int_equal(stgc_steps(h), 0);
    stgc_close(h);
}

static void wrong_libraries_are_refused(void **state) {
    StgcOptions none = {.size = sizeof none, .parameters = ""};
    Stgc *h = stgc_open(at("nothing.so"), NULL);
    assert_int_equal(stgc_status(h), STGC_ERR_IO);
    assert_non_null(strstr(stgc_error(h), "nothing.so: error: cannot be read: No such file"));
    assert_int_equal(stgc_step(h), STGC_ERR_IO); /* stays what it is */
    assert_true(isnan(stgc_learning_rate(h)));
    assert_int_equal(stgc_count(h), 0);
    stgc_close(h);
    h = stgc_open(at("batch.npz"), NULL);
    assert_int_equal(stgc_status(h), STGC_ERR_MODEL);
    assert_non_null(strstr(stgc_error(h), "no compiled step"));
    stgc_close(h);
    h = stgc_open(at("step.so"), &none);
    assert_int_equal(stgc_status(h), STGC_OK);
    give_batch(h);
    assert_int_equal(stgc_step(h), STGC_ERR_DATA);
    assert_non_null(strstr(stgc_error(h), "was not given; stgc_load the .safetensors"));
    stgc_close(h);
    StgcOptions small = {.size = sizeof small, .memory_limit = 1000};
    h = stgc_open(at("step.so"), &small);
    assert_int_equal(stgc_status(h), STGC_ERR_RESOURCE);
    stgc_close(h);
}

static void parameters_come_from_files_and_memory(void **state) {
    StgcOptions none = {.size = sizeof none, .parameters = ""};
    size_t n;
    char *bytes = file_bytes(at("step.safetensors"), &n);
    Stgc *a = stgc_open(at("step.so"), &none), *b = open_step("step.so", 1);
    assert_int_equal(stgc_load_memory(a, bytes, n), STGC_OK);
    give_batch(a);
    give_batch(b);
    assert_int_equal(stgc_step(a), STGC_OK);
    assert_int_equal(stgc_step(b), STGC_OK);
    assert_memory_equal(floats(a, "loss/total", NULL), floats(b, "loss/total", NULL), 4);
    for (size_t cut = 0; cut < n; cut += cut < 4096 ? 61 : n / 5) { /* cut anywhere: refused */
        assert_int_equal(stgc_load_memory(a, bytes, cut), STGC_ERR_DATA);
        assert_non_null(strstr(stgc_error(a), "is no sound .safetensors"));
    }
    /* one tensor with another name, and one with another shape */
    float x[4] = {0};
    StgcCkptTensor t = {
        .name = "nobody", .type = STGC_F32, .rank = 1, .dims = {4}, .bytes = 16, .data = x};
    char error[200];
    assert_int_equal(stgc_safetensors_write(at("odd.safetensors"), &t, 1, error, sizeof error), 0);
    assert_int_equal(stgc_load(a, at("odd.safetensors")), STGC_ERR_DATA);
    assert_non_null(strstr(stgc_error(a), "tensor 'nobody' is no parameter of the step"));
    t.name = "hf.model.norm.weight";
    assert_int_equal(stgc_safetensors_write(at("odd.safetensors"), &t, 1, error, sizeof error), 0);
    assert_int_equal(stgc_load(a, at("odd.safetensors")), STGC_ERR_DATA);
    assert_non_null(strstr(stgc_error(a), "expected f32["));
    assert_non_null(strstr(stgc_error(a), "found f32[4]"));
    free(bytes);
    stgc_close(a);
    stgc_close(b);
}

static void checkpoints_of_others_are_refused(void **state) {
    Stgc *a = open_step("step.so", 1), *b = open_step("micro.so", 1);
    give_batch(a);
    give_batch(b);
    assert_int_equal(stgc_step(a), STGC_OK);
    assert_int_equal(stgc_save(a, at("other"), 0, 2), STGC_OK);
    assert_int_equal(stgc_resume(b, at("other"), NULL), STGC_ERR_DATA);
    assert_non_null(strstr(stgc_error(b), "trained with another recipe: '  accumulate: 1"));
    assert_int_equal(stgc_resume(b, at("nowhere"), NULL), STGC_ERR_DATA);
    assert_int_equal(stgc_step(b), STGC_OK);
    assert_int_equal(stgc_save(b, at("other2"), 0, 2), STGC_ERR_USAGE);
    assert_non_null(strstr(stgc_error(b), "1 of 2 micro-batches of a step are done"));
    stgc_close(a);
    stgc_close(b);
}

/* Trained parameters go back into the model: the file is the one that `train` writes. */
static void export_gives_the_model_of_train(void **state) {
    Stgc *h = open_step("step.so", 1);
    assert_int_equal(stgc_resume(h, at("run-step.so"), NULL), STGC_OK);
    assert_int_equal(stgc_store(h, at("trained.safetensors")), STGC_OK);
    stgc_close(h);
    STGCC_RUN("export", quoted("byte-olmoe.onnx"), "-q", "--params", at("trained.safetensors"),
              "-o", at("trained.onnx"));
    same_files(at("trained.onnx"), at("run-step.so/model.onnx"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_those_of_step),
        cmocka_unit_test(step_takes_a_library),
        cmocka_unit_test(trains_like_train),
        cmocka_unit_test(accumulates_like_train),
        cmocka_unit_test(looking_changes_nothing),
        cmocka_unit_test(memory_is_shared_with_the_caller),
        cmocka_unit_test(learning_rate_is_the_schedules_or_set),
        cmocka_unit_test(ignored_batches_train_nothing),
        cmocka_unit_test(fewer_rows_are_a_smaller_batch),
        cmocka_unit_test(two_threads_train_like_one),
        cmocka_unit_test(a_thousand_handles_do_not_grow),
        cmocka_unit_test(memory_is_what_was_planned),
        cmocka_unit_test(names_types_and_shapes_are_checked),
        cmocka_unit_test(batches_are_checked_before_a_step),
        cmocka_unit_test(wrong_libraries_are_refused),
        cmocka_unit_test(parameters_come_from_files_and_memory),
        cmocka_unit_test(checkpoints_of_others_are_refused),
        cmocka_unit_test(export_gives_the_model_of_train),
    };
    return cmocka_run_group_tests(tests, make_all, remove_all);
}
