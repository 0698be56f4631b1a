/* test_checkpoint.c: checkpoints survive kills, full disks and bit flips; damaged ones are never
 * used. */
#include "runtime/checkpoint.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/crc32c.h"

static char dir[] = "/tmp/stgcc_ckpt_XXXXXX";
static char error[512], warning[2048];

enum { N = 1000 };
static float weights[N];
static int64_t counter;
static StgcCkptTensor tensors[3];

/* A state that says by its values which step it is of. */
static StgcCheckpoint state_of(int64_t step) {
    for (int i = 0; i < N; i++)
        weights[i] = (float)(step * N + i);
    counter = step * 7;
    tensors[0] = (StgcCkptTensor){"layer.0.weight", 1, 2, {10, N / 10}, sizeof weights, weights};
    tensors[1] = (StgcCkptTensor){"layer.0.weight.m", 7, 0, {0}, sizeof counter, &counter};
    tensors[2] = (StgcCkptTensor){"empty", 1, 1, {0}, 0, weights};
    return (StgcCheckpoint){step, 8 * step, 42, 0xfeedfacecafebeefu, "loss:\n  kind: causal_lm\n",
                            3,    tensors};
}

static void check_state(const StgcCheckpoint *c, int64_t step) {
    assert_int_equal(c->step, step);
    assert_int_equal(c->samples, 8 * step);
    assert_int_equal(c->seed, 42);
    assert_true(c->model_hash == 0xfeedfacecafebeefu);
    assert_string_equal(c->recipe, "loss:\n  kind: causal_lm\n");
    assert_int_equal(c->ntensors, 3);
    assert_string_equal(c->tensors[1].name, "layer.0.weight.m");
    assert_int_equal(c->tensors[0].rank, 2);
    assert_int_equal(c->tensors[0].dims[1], N / 10);
    float w[N];
    memcpy(w, c->tensors[0].data, sizeof w);
    for (int i = 0; i < N; i++)
        assert_true(w[i] == (float)(step * N + i));
}

static void save(int64_t step) {
    StgcCheckpoint c = state_of(step);
    StgcStatus s = stgc_checkpoint_save(dir, &c, 2, error, sizeof error);
    if (s != STGC_OK || *error)
        fail_msg("%s", error);
}

static int entries(const char *suffix) {
    DIR *d = opendir(dir);
    int n = 0;
    for (struct dirent *f; (f = readdir(d));) {
        size_t len = strlen(f->d_name), k = strlen(suffix);
        n += f->d_name[0] != '.' && len >= k && !strcmp(f->d_name + len - k, suffix);
    }
    closedir(d);
    return n;
}

static int clean(void **state) {
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s/*", dir);
    return system(command);
}

static char *path_of(int64_t step) {
    static char path[128];
    snprintf(path, sizeof path, "%s/step-%08lld.ckpt", dir, (long long)step);
    return path;
}

static void test_crc(void **state) {
    assert_int_equal(stgc_crc32c(0, "123456789", 9), 0xe3069283u); /* the standard's check value */
    unsigned char p[300];
    for (int i = 0; i < 300; i++)
        p[i] = (unsigned char)(i * i + 3);
    for (size_t at = 0; at < 9; at++)
        for (size_t n = 0; n < 280; n++) {
            uint32_t whole = stgc_crc32c(0, p + at, n);
            assert_int_equal(whole, stgc_crc32c_table(0, p + at, n));
            assert_int_equal(whole,
                             stgc_crc32c(stgc_crc32c(0, p + at, n / 3), p + at + n / 3, n - n / 3));
        }
}

static void test_save_and_load(void **state) {
    StgcStatus s;
    assert_null(stgc_checkpoint_newest(dir, warning, sizeof warning, &s, error, sizeof error));
    assert_int_equal(s, STGC_ERR_DATA);
    assert_int_equal(stgc_checkpoint_last_step(dir), -1);
    for (int64_t step = 1; step <= 12; step++)
        save(step * 50);
    assert_int_equal(entries(".ckpt"), 2); /* older ones are gone, no temporary is left */
    assert_int_equal(entries(""), 3);
    assert_int_equal(stgc_checkpoint_last_step(dir), 600);
    StgcCheckpoint *c =
        stgc_checkpoint_newest(dir, warning, sizeof warning, &s, error, sizeof error);
    assert_non_null(c);
    assert_string_equal(warning, "");
    check_state(c, 600);
    stgc_checkpoint_free(c);
    char latest[64] = {0}, path[128];
    snprintf(path, sizeof path, "%s/latest", dir);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_true(fread(latest, 1, sizeof latest - 1, f) > 0);
    fclose(f);
    assert_string_equal(latest, "step-00000600.ckpt");
}

static void test_same_bytes(void **state) {
    save(3);
    char command[256];
    snprintf(command, sizeof command, "cp %s %s/keep", path_of(3), dir);
    assert_int_equal(system(command), 0);
    unlink(path_of(3));
    save(3);
    snprintf(command, sizeof command, "cmp %s %s/keep", path_of(3), dir);
    assert_int_equal(system(command), 0);
}

/* One byte flipped at many places, and every way to cut it short: each is refused, the older one is
 * taken. */
static void test_damage(void **state) {
    save(1);
    save(2);
    FILE *f = fopen(path_of(2), "rb");
    unsigned char good[16384];
    size_t n = fread(good, 1, sizeof good, f);
    fclose(f);
    assert_true(n > 4000 && n < sizeof good);
    for (size_t at = 0; at < n + 200; at += at < 400 ? 1 : 37) {
        unsigned char bad[16384 + 1];
        memcpy(bad, good, n);
        size_t size = n;
        if (at < n)
            bad[at] ^= (unsigned char)(1u << (at % 8));
        else
            size = (at - n) * n / 200;
        f = fopen(path_of(2), "wb");
        assert_int_equal(fwrite(bad, 1, size, f), size);
        fclose(f);
        StgcStatus s;
        assert_null(stgc_checkpoint_read(path_of(2), &s, error, sizeof error));
        assert_int_equal(s, STGC_ERR_DATA);
        StgcCheckpoint *c =
            stgc_checkpoint_newest(dir, warning, sizeof warning, &s, error, sizeof error);
        assert_non_null(c);
        assert_non_null(strstr(warning, "step-00000002.ckpt' "));
        check_state(c, 1);
        stgc_checkpoint_free(c);
    }
    good[n] = 0; /* one byte too many */
    f = fopen(path_of(2), "wb");
    fwrite(good, 1, n + 1, f);
    fclose(f);
    StgcStatus s;
    assert_null(stgc_checkpoint_read(path_of(2), &s, error, sizeof error));
    good[8] = 2; /* from the future */
    f = fopen(path_of(2), "wb");
    fwrite(good, 1, n, f);
    fclose(f);
    assert_null(stgc_checkpoint_read(path_of(2), &s, error, sizeof error));
    assert_non_null(strstr(error, "has version 2, this stgcc reads version 1"));
}

/* kill -9 at arbitrary moments of saving: there is always a sound checkpoint, of at least the step
 * before. */
static void test_kill(void **state) {
    int64_t done = 0;
    for (int round = 0; round < 40; round++) {
        int progress[2];
        assert_int_equal(pipe(progress), 0);
        pid_t child = fork();
        if (child == 0) {
            for (int64_t step = done + 1;; step++) {
                StgcCheckpoint c = state_of(step);
                if (stgc_checkpoint_save(dir, &c, 2, error, sizeof error) != STGC_OK ||
                    write(progress[1], &step, sizeof step) != sizeof step)
                    _exit(1);
            }
        }
        close(progress[1]);
        usleep((useconds_t)(200 + 977 * round % 9000));
        kill(child, SIGKILL);
        int how;
        waitpid(child, &how, 0);
        assert_true(WIFSIGNALED(how));
        int64_t committed = done, step;
        while (read(progress[0], &step, sizeof step) == sizeof step)
            committed = step;
        close(progress[0]);
        StgcStatus s;
        StgcCheckpoint *c =
            stgc_checkpoint_newest(dir, warning, sizeof warning, &s, error, sizeof error);
        assert_string_equal(warning, "");
        if (committed) {
            assert_non_null(c);
            assert_true(c->step == committed || c->step == committed + 1);
        }
        if (c) {
            check_state(c, c->step);
            done = c->step;
        }
        stgc_checkpoint_free(c);
    }
    assert_true(done > 0);
    save(done + 1); /* sweeps up what the kills left */
    assert_int_equal(entries(".tmp"), 0);
}

static void test_no_space(void **state) {
    save(1);
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit keep, tight;
    getrlimit(RLIMIT_FSIZE, &keep);
    tight = (struct rlimit){2000, keep.rlim_max};
    setrlimit(RLIMIT_FSIZE, &tight);
    StgcCheckpoint c = state_of(2);
    StgcStatus s = stgc_checkpoint_save(dir, &c, 2, error, sizeof error);
    setrlimit(RLIMIT_FSIZE, &keep);
    assert_int_equal(s, STGC_ERR_IO);
    assert_non_null(strstr(error, "cannot write 'step-00000002.ckpt'"));
    assert_int_equal(entries(".tmp"), 0);
    StgcCheckpoint *old =
        stgc_checkpoint_newest(dir, warning, sizeof warning, &s, error, sizeof error);
    check_state(old, 1);
    stgc_checkpoint_free(old);
    s = stgc_checkpoint_save("/nonexistent/run", &c, 2, error, sizeof error);
    assert_int_equal(s, STGC_ERR_IO);
}

static void test_lock(void **state) {
    int fd = stgc_run_lock(dir, error, sizeof error);
    assert_true(fd >= 0);
    assert_int_equal(stgc_run_lock(dir, error, sizeof error), -1);
    assert_non_null(strstr(error, "another stgcc is training"));
    close(fd);
    fd = stgc_run_lock(dir, error, sizeof error);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(stgc_run_lock("/nonexistent/a/b", error, sizeof error), -1);
    assert_non_null(strstr(error, "cannot make the folder"));
}

int main(void) {
    assert_non_null(mkdtemp(dir));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_crc, clean),
        cmocka_unit_test_setup(test_save_and_load, clean),
        cmocka_unit_test_setup(test_same_bytes, clean),
        cmocka_unit_test_setup(test_damage, clean),
        cmocka_unit_test_setup(test_kill, clean),
        cmocka_unit_test_setup(test_no_space, clean),
        cmocka_unit_test_setup(test_lock, clean),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    clean(NULL);
    rmdir(dir);
    return failed;
}
