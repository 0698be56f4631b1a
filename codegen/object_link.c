/* object_link.c: objects in memory -> one file, through the system's C compiler as a linker.
 *
 * The compiler is started with an argument vector, in a folder that only we may enter and whose
 * files have names of ours: no text of a model reaches a shell, an assembler or a linker. The
 * result appears under its name whole or not at all. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "codegen/object.h"

typedef struct Work {
    char *folder; /* beside the result, so that a rename moves it */
    int dir, n;   /* n objects, called 0.o, 1.o, … */
    Diag *d;
} Work;

static bool io_fault(Work *w, const char *what) {
    diag_error(w->d, EXIT_IO, "cannot %s: %s", what, strerror(errno));
    return false;
}

static bool open_folder(Work *w, const char *path) {
    const char *slash = strrchr(path, '/');
    int n = slash ? (int)(slash - path) + 1 : 0;
    w->folder = arena_printf(&w->d->arena, "%.*s.stgcc-XXXXXX", n, path);
    if (!mkdtemp(w->folder)) { /* mode 0700 */
        w->folder = NULL;
        return io_fault(w, "make a folder beside it");
    }
    w->dir = open(w->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return w->dir >= 0 || io_fault(w, "open its temporary folder");
}

static void close_folder(Work *w) {
    if (!w->folder)
        return;
    char name[32];
    for (int i = 0; w->dir >= 0 && i < w->n; i++) {
        snprintf(name, sizeof name, "%d.o", i);
        unlinkat(w->dir, name, 0);
    }
    if (w->dir >= 0) {
        unlinkat(w->dir, "result", 0);
        unlinkat(w->dir, "log", 0);
        close(w->dir);
    }
    rmdir(w->folder);
}

static bool write_object(Work *w, LLVMMemoryBufferRef object) {
    char name[32];
    snprintf(name, sizeof name, "%d.o", w->n++);
    int fd = openat(w->dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return io_fault(w, "write an object");
    const char *at = LLVMGetBufferStart(object);
    size_t left = LLVMGetBufferSize(object);
    while (left > 0) {
        ssize_t k = write(fd, at, left > 1u << 30 ? 1u << 30 : left);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            break;
        at += k;
        left -= (size_t)k;
    }
    bool ok = left == 0 || io_fault(w, "write an object");
    if (close(fd) != 0 && ok)
        ok = io_fault(w, "write an object");
    return ok;
}

/* ---- the linker ---- */

static void child(const Work *w, char *const *argv) {
    int log = openat(w->dir, "log", O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
    if (fchdir(w->dir) != 0 || log < 0 || dup2(log, STDOUT_FILENO) < 0 ||
        dup2(log, STDERR_FILENO) < 0)
        _exit(126);
    execvp(argv[0], argv);
    _exit(errno == ENOENT ? 127 : 126);
}

static bool linker_failed(Work *w, int status) {
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127) {
        diag_error(w->d, EXIT_IO, "no C compiler to link with: 'cc' was not found");
        diag_more(w->d, "install one (Debian: gcc), or write an object file with --emit=obj");
        return false;
    }
    char text[400] = "";
    int fd = openat(w->dir, "log", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    text[n > 0 ? n : 0] = 0;
    if (fd >= 0)
        close(fd);
    diag_error(w->d, EXIT_IO, "linking failed: cc said: %s", diag_safe(w->d, text));
    return false;
}

static bool run_linker(Work *w, bool relocatable) {
    static char *const shared[] = {"cc",
                                   "-shared",
                                   "-nostartfiles",
                                   "-Wl,-z,now",
                                   "-Wl,-z,relro",
                                   "-Wl,-z,noexecstack",
                                   "-Wl,--as-needed",
                                   "-Wl,--build-id=none",
                                   "-o",
                                   "result"};
    static char *const object[] = {"cc", "-r", "-nostdlib", "-Wl,--build-id=none", "-o", "result"};
    char *const *first = relocatable ? object : shared;
    int n = relocatable ? COUNT_OF(object) : COUNT_OF(shared);
    char **argv = xcalloc((size_t)(n + w->n + 2), sizeof *argv);
    memcpy(argv, first, sizeof *argv * (size_t)n);
    for (int i = 0; i < w->n; i++)
        argv[n++] = arena_printf(&w->d->arena, "%d.o", i);
    if (!relocatable)
        argv[n++] = "-lm";
    fflush(NULL);
    pid_t pid = fork();
    int status = 0;
    if (pid == 0)
        child(w, argv);
    free(argv);
    if (pid < 0)
        return io_fault(w, "start the linker");
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return io_fault(w, "wait for the linker");
    return status == 0 || linker_failed(w, status);
}

/* Readable like any file made here, and on disk before it has its name. */
static bool publish(Work *w, bool relocatable, const char *path) {
    mode_t mask = umask(0);
    umask(mask);
    int fd = openat(w->dir, "result", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    bool ok = fd >= 0 && fchmod(fd, (relocatable ? 0666 : 0777) & ~mask) == 0 && fsync(fd) == 0;
    if (fd >= 0)
        close(fd);
    ok = ok && renameat(w->dir, "result", AT_FDCWD, path) == 0;
    return ok || io_fault(w, "write it");
}

bool object_link(const LLVMMemoryBufferRef *objects, int n, bool relocatable, const char *path,
                 Diag *d) {
    Work w = {.dir = -1, .d = d};
    bool ok = open_folder(&w, path);
    for (int i = 0; ok && i < n; i++)
        ok = write_object(&w, objects[i]);
    ok = ok && run_linker(&w, relocatable) && publish(&w, relocatable, path);
    close_folder(&w);
    return ok;
}
