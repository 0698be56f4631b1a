/* checkpoint.c: writing and pruning checkpoints, the lock. Reading is in checkpoint_read.c; the
 * layout in checkpoint.h.
 *
 * The order of things is the protocol: a temporary of its own name, space reserved before writing,
 * data synced and read back before the rename, the directory synced before `latest` is turned,
 * older ones removed last. A sync that failed is never tried again on the same file: the kernel may
 * have dropped the pages. */
#include "runtime/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/crc32c.h"
#include "runtime/write_all.h"

typedef struct Text { /* where an error goes */
    char *at;
    size_t n;
} Text;

static StgcStatus io_error(Text e, const char *what, const char *name) {
    int code = errno;
    const char *hint = code == ENOSPC || code == EDQUOT || code == EFBIG
                           ? "; free some space, then go on with --resume"
                           : "";
    snprintf(e.at, e.n, "%s '%s': %s%s", what, name, strerror(code), hint);
    return STGC_ERR_IO;
}

int stgc_run_lock(const char *dir, char *error, size_t n) {
    Text e = {error, n};
    char path[4096];
    if (mkdir(dir, 0777) != 0 && errno != EEXIST) {
        io_error(e, "cannot make the folder", dir);
        return -1;
    }
    if (snprintf(path, sizeof path, "%s/lock", dir) >= (int)sizeof path) {
        errno = ENAMETOOLONG;
        io_error(e, "cannot lock", dir);
        return -1;
    }
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) {
        io_error(e, "cannot write in the folder", dir);
        return -1;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno == EWOULDBLOCK)
            snprintf(error, n, "another stgcc is training in '%s'; choose another folder", dir);
        else
            io_error(e, "cannot lock", path);
        close(fd);
        return -1;
    }
    return fd;
}

/* ---- the header ---- */

typedef struct Buffer {
    unsigned char *at;
    size_t n, cap;
    int failed;
} Buffer;

static void put(Buffer *b, const void *bytes, size_t n) {
    if (b->n + n > b->cap) {
        size_t cap = 2 * (b->n + n) + 256;
        unsigned char *p = realloc(b->at, cap);
        if (!p) {
            b->failed = 1;
            return;
        }
        b->at = p;
        b->cap = cap;
    }
    if (n)
        memcpy(b->at + b->n, bytes, n);
    b->n += n;
}

static void put_int(Buffer *b, uint64_t v, int bytes) {
    unsigned char p[8];
    for (int i = 0; i < bytes; i++)
        p[i] = (unsigned char)(v >> (8 * i));
    put(b, p, (size_t)bytes);
}

static void put_tensor(Buffer *b, const StgcCkptTensor *t, int64_t offset) {
    size_t name = strlen(t->name);
    put_int(b, name, 2);
    put(b, t->name, name);
    put_int(b, (uint64_t)t->type, 4);
    put_int(b, (uint64_t)t->rank, 4);
    for (int i = 0; i < t->rank; i++)
        put_int(b, (uint64_t)t->dims[i], 8);
    put_int(b, (uint64_t)offset, 8);
    put_int(b, (uint64_t)t->bytes, 8);
    put_int(b, stgc_crc32c(0, t->data, (size_t)t->bytes), 4);
}

/* Prefix and header; offsets count from the end of the header. */
static Buffer make_header(const StgcCheckpoint *c) {
    Buffer h = {0}, all = {0};
    size_t recipe = strlen(c->recipe);
    put_int(&h, (uint64_t)c->step, 8);
    put_int(&h, (uint64_t)c->samples, 8);
    put_int(&h, c->seed, 8);
    put_int(&h, c->model_hash, 8);
    put_int(&h, recipe, 4);
    put(&h, c->recipe, recipe);
    put_int(&h, c->ntensors, 4);
    int64_t offset = 0;
    for (uint32_t i = 0; i < c->ntensors; i++) {
        put_tensor(&h, &c->tensors[i], offset);
        offset += c->tensors[i].bytes;
    }
    put(&all, "STGCCKPT", 8);
    put_int(&all, STGC_CHECKPOINT_VERSION, 4);
    put_int(&all, h.n, 4);
    put_int(&all, stgc_crc32c(0, h.at, h.n), 4);
    put(&all, h.at, h.n);
    all.failed |= h.failed;
    free(h.at);
    return all;
}

/* ---- one file, whole or not at all ---- */

/* What the disk gives back must have the checksum of what was sent. */
static int read_back(int dir, const char *name, int64_t bytes, uint32_t want) {
    int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return -1;
    posix_fadvise(fd, 0, 0,
                  POSIX_FADV_DONTNEED); /* from the disk where possible, not from the cache */
    enum { CHUNK = 1 << 20 };
    unsigned char *p = malloc(CHUNK);
    uint32_t crc = 0;
    int64_t got = 0;
    for (ssize_t k; p && (k = read(fd, p, CHUNK)) != 0;) {
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            break;
        crc = stgc_crc32c(crc, p, (size_t)k);
        got += k;
    }
    free(p);
    close(fd);
    if (got != bytes || crc != want)
        errno = EIO;
    return got == bytes && crc == want ? 0 : -1;
}

typedef struct Piece {
    const void *at;
    size_t n;
} Piece;

static int write_pieces(int fd, const Piece *pieces, uint32_t n, int64_t total) {
    int reserved =
        total > 0 ? posix_fallocate(fd, 0, (off_t)total) : 0; /* ENOSPC now, not at the last byte */
    if (reserved != 0 && reserved != EOPNOTSUPP && reserved != EINVAL) {
        errno = reserved;
        return -1;
    }
    for (uint32_t i = 0; i < n; i++)
        if (!write_all(fd, pieces[i].at, pieces[i].n))
            return -1;
    return fdatasync(fd);
}

/* A temporary with the pieces, synced, read back and renamed to `name`. */
static StgcStatus commit(int dir, const char *name, const Piece *pieces, uint32_t n, Text e) {
    char temporary[128];
    snprintf(temporary, sizeof temporary, "%s.%ld.tmp", name, (long)getpid());
    int64_t total = 0;
    uint32_t crc = 0;
    for (uint32_t i = 0; i < n; i++) {
        total += (int64_t)pieces[i].n;
        crc = stgc_crc32c(crc, pieces[i].at, pieces[i].n);
    }
    for (int attempt = 0;; attempt++) {
        unlinkat(dir, temporary, 0);
        int fd = openat(dir, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
        if (fd < 0)
            return io_error(e, "cannot write", name);
        int bad = write_pieces(fd, pieces, n, total), code = errno;
        if (close(fd) != 0 && errno != EINTR && !bad) {
            bad = -1;
            code = errno;
        }
        if (!bad && read_back(dir, temporary, total, crc) == 0 &&
            renameat(dir, temporary, dir, name) == 0)
            return STGC_OK;
        code = errno = bad ? code : errno;
        io_error(e, "cannot write", name);
        unlinkat(dir, temporary, 0);
        if (code != EIO || attempt == 1) /* a second try goes into a new file, once */
            return STGC_ERR_IO;
    }
}

/* ---- names ---- */

static int64_t step_of(const char *name) {
    long long step;
    int end = 0;
    if (sscanf(name, "step-%lld.ckpt%n", &step, &end) != 1 || !end || name[end] || step < 0)
        return -1;
    return step;
}

int64_t stgc_checkpoint_last_step(const char *dir) {
    DIR *d = opendir(dir);
    int64_t last = -1;
    for (struct dirent *f; d && (f = readdir(d));)
        if (step_of(f->d_name) > last)
            last = step_of(f->d_name);
    if (d)
        closedir(d);
    return last;
}

/* Removes all but the `keep` newest checkpoints up to `step`, and temporaries that a kill left. */
static void prune(const char *dir, int fd, int keep, int64_t step) {
    int64_t newest[16];
    int n = 0;
    keep = keep < 2 ? 2 : keep > 16 ? 16 : keep;
    DIR *d = opendir(dir);
    if (!d)
        return;
    for (struct dirent *f; (f = readdir(d));) {
        int64_t s = step_of(f->d_name);
        if (s < 0 || s > step)
            continue;
        int at = n;
        while (at > 0 && newest[at - 1] < s)
            at--;
        if (n == keep && at == n)
            continue;
        n += n < keep;
        memmove(newest + at + 1, newest + at, sizeof *newest * (size_t)(n - at - 1));
        newest[at] = s;
    }
    rewinddir(d);
    for (struct dirent *f; (f = readdir(d));) {
        int64_t s = step_of(f->d_name);
        size_t len = strlen(f->d_name);
        int stale = len > 4 && !strcmp(f->d_name + len - 4, ".tmp") &&
                    (!strncmp(f->d_name, "step-", 5) || !strncmp(f->d_name, "latest.", 7));
        if (stale || (s >= 0 && s <= step && n == keep && s < newest[n - 1]))
            unlinkat(fd, f->d_name, 0);
    }
    closedir(d);
}

StgcStatus stgc_checkpoint_save(const char *dir, const StgcCheckpoint *c, int keep, char *error,
                                size_t n) {
    Text e = {error, n};
    *error = 0;
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return io_error(e, "cannot open the folder", dir);
    Buffer header = make_header(c);
    Piece *pieces = calloc((size_t)c->ntensors + 1, sizeof *pieces);
    StgcStatus status = STGC_ERR_RESOURCE;
    if (header.failed || !pieces || header.n > 16u << 20) {
        snprintf(error, n,
                 header.n > 16u << 20 ? "the header is above 16 MiB"
                                      : "out of memory for a checkpoint");
    } else {
        char name[64];
        snprintf(name, sizeof name, "step-%08lld.ckpt", (long long)c->step);
        pieces[0] = (Piece){header.at, header.n};
        for (uint32_t i = 0; i < c->ntensors; i++)
            pieces[i + 1] = (Piece){c->tensors[i].data, (size_t)c->tensors[i].bytes};
        status = commit(fd, name, pieces, c->ntensors + 1, e);
        if (status == STGC_OK && fsync(fd) != 0) {
            snprintf(error, n,
                     "'%s' is written, but whether it survives a power cut is uncertain: %s", name,
                     strerror(errno));
        } else if (status == STGC_OK) {
            Piece text = {name, strlen(name)};
            if (commit(fd, "latest", &text, 1, e) == STGC_OK && fsync(fd) == 0)
                prune(dir, fd, keep, c->step);
        }
    }
    free(pieces);
    free(header.at);
    close(fd);
    return status;
}
