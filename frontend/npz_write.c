/* npz_write.c: writes an .npz: stored members, ZIP64 where sizes need it. The file appears whole or
 * not at all: a temporary beside it, fsync, rename. The same tensors give the same bytes (no clock
 * in the archive). */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "frontend/frontend.h"
#include "frontend/npz.h"

typedef struct Entry {
    const char *name; /* with .npy */
    uint32_t crc;
    uint64_t size, offset;
} Entry;

struct NpzWriter {
    Arena arena;
    char *path, *temporary;
    int fd;
    uint64_t at;
    unsigned char buffer[1 << 16];
    size_t filled;
    VEC(Entry) entries;
};

static bool write_fault(NpzWriter *w, Diag *d) {
    int code = errno;
    diag_error(d, EXIT_IO, "cannot write '%s': %s", diag_safe(d, w->path), strerror(code));
    if (code == ENOSPC || code == EDQUOT || code == EFBIG)
        diag_more(d, "no partial file is left; free some space or choose another place with -o");
    return false;
}

NpzWriter *npz_create(const char *path, Diag *d) {
    NpzWriter *w = xcalloc(1, sizeof *w);
    w->path = arena_strdup(&w->arena, path);
    struct stat st;
    w->fd = -1;
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) {
        errno = S_ISDIR(st.st_mode) ? EISDIR : EINVAL; /* rename would replace a device file */
    } else {
        w->temporary = arena_printf(&w->arena, "%s.tmp-%ld", path, (long)getpid());
        w->fd = open(w->temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    }
    if (w->fd < 0) {
        write_fault(w, d);
        w->temporary = NULL;
        npz_abandon(w);
        return NULL;
    }
    return w;
}

static bool write_all(int fd, const void *bytes, size_t n) {
    const char *p = bytes;
    while (n > 0) {
        ssize_t k = write(fd, p, n > 1u << 30 ? 1u << 30 : n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return false;
        p += k;
        n -= (size_t)k;
    }
    return true;
}

static bool flush(NpzWriter *w) {
    bool ok = write_all(w->fd, w->buffer, w->filled);
    w->filled = 0;
    return ok;
}

static bool put(NpzWriter *w, const void *bytes, size_t n) {
    w->at += n;
    if (n > sizeof w->buffer - w->filled && !flush(w))
        return false;
    if (n > sizeof w->buffer)
        return write_all(w->fd, bytes, n);
    if (n)
        memcpy(w->buffer + w->filled, bytes, n);
    w->filled += n;
    return true;
}

static unsigned char *store(unsigned char *p, uint64_t v, int bytes) {
    for (int i = 0; i < bytes; i++)
        *p++ = (unsigned char)(v >> (8 * i));
    return p;
}

enum { DOS_DATE = 33 /* 1 January 1980 */, STORED = 0, VERSION = 45 };

static unsigned char *store_extra64(unsigned char *p, const Entry *e, bool with_offset) {
    p = store(p, 1, 2);
    p = store(p, with_offset ? 24 : 16, 2);
    p = store(p, e->size, 8);
    p = store(p, e->size, 8);
    return with_offset ? store(p, e->offset, 8) : p;
}

/* Both headers of a member: local, or in the directory. ZIP64 sizes always: one form for every
 * size. */
static bool put_header(NpzWriter *w, const Entry *e, bool directory) {
    unsigned char head[128], *p = head;
    size_t name = strlen(e->name);
    p = store(p, directory ? 0x02014b50 : 0x04034b50, 4);
    if (directory)
        p = store(p, VERSION, 2);
    p = store(p, VERSION, 2);
    p = store(p, 1 << 11, 2); /* names are UTF-8 */
    p = store(p, STORED, 2);
    p = store(p, 0, 2);
    p = store(p, DOS_DATE, 2);
    p = store(p, e->crc, 4);
    p = store(p, 0xffffffffu, 4);
    p = store(p, 0xffffffffu, 4);
    p = store(p, name, 2);
    p = store(p, directory ? 28 : 20, 2);
    if (directory) {
        p = store(p, 0, 2); /* comment */
        p = store(p, 0, 8); /* disk, attributes */
        p = store(p, 0xffffffffu, 4);
    }
    unsigned char extra[32], *q = store_extra64(extra, e, directory);
    return put(w, head, (size_t)(p - head)) && put(w, e->name, name) &&
           put(w, extra, (size_t)(q - extra));
}

bool npz_add(NpzWriter *w, const char *name, const Tensor *t, Diag *d) {
    const Tensor *as = t;
    Arena scratch = {0};
    if (t->dtype == DT_BF16) { /* numpy has no bf16: widened, which loses nothing */
        Tensor *wide = tensor_new(&scratch, DT_F32, t->rank, t->dims);
        for (int64_t i = 0; i < tensor_count(t); i++)
            tensor_set_f(wide, i, tensor_get_f(t, i));
        as = wide;
    }
    unsigned char head[512];
    size_t header = npy_format(head, as->dtype, as->rank, as->dims), n = tensor_bytes(as);
    Entry e = {arena_printf(&w->arena, "%s.npy", name), 0, header + n, w->at};
    e.crc = (uint32_t)crc32_z(crc32_z(0, head, header), as->data, n);
    vec_push(&w->entries, e);
    bool ok = strlen(e.name) <= 65535 && put_header(w, &e, false) && put(w, head, header) &&
              put(w, as->data, n);
    arena_free(&scratch);
    return ok || write_fault(w, d);
}

static bool put_end(NpzWriter *w, uint64_t start) {
    uint64_t bytes = w->at - start, end64 = w->at, count = (uint64_t)w->entries.n;
    unsigned char end[128], *p = end;
    p = store(p, 0x06064b50, 4);
    p = store(p, 44, 8);
    p = store(p, VERSION, 2);
    p = store(p, VERSION, 2);
    p = store(p, 0, 8);
    p = store(p, count, 8);
    p = store(p, count, 8);
    p = store(p, bytes, 8);
    p = store(p, start, 8);
    p = store(p, 0x07064b50, 4);
    p = store(p, 0, 4);
    p = store(p, end64, 8);
    p = store(p, 1, 4);
    p = store(p, 0x06054b50, 4);
    p = store(p, 0, 4);
    uint64_t short_count = count < 0xffff ? count : 0xffff;
    p = store(p, short_count, 2);
    p = store(p, short_count, 2);
    p = store(p, bytes < 0xffffffffu ? bytes : 0xffffffffu, 4);
    p = store(p, start < 0xffffffffu ? start : 0xffffffffu, 4);
    p = store(p, 0, 2);
    return put(w, end, (size_t)(p - end));
}

static bool sync_directory(const char *path) {
    const char *slash = strrchr(path, '/');
    char *dir = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    int fd = dir ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    free(dir);
    if (fd < 0)
        return false;
    bool ok = fsync(fd) == 0 || errno == EINVAL; /* some file systems have no such thing */
    close(fd);
    return ok;
}

bool npz_close(NpzWriter *w, Diag *d) {
    uint64_t start = w->at;
    bool ok = true;
    for (int i = 0; ok && i < w->entries.n; i++)
        ok = put_header(w, &w->entries.at[i], true);
    ok = ok && put_end(w, start) && flush(w) && fsync(w->fd) == 0;
    int fd = w->fd;
    w->fd = -1;
    int code = errno; /* of the first failure */
    bool closed = close(fd) == 0 || errno == EINTR;
    if (!ok)
        errno = code;
    ok = ok && closed && rename(w->temporary, w->path) == 0;
    if (ok)
        w->temporary = NULL; /* it is the file now */
    ok = ok && sync_directory(w->path);
    if (!ok)
        write_fault(w, d);
    npz_abandon(w);
    return ok;
}

void npz_abandon(NpzWriter *w) {
    if (!w)
        return;
    if (w->fd >= 0)
        close(w->fd);
    if (w->temporary)
        unlink(w->temporary);
    vec_free(&w->entries);
    arena_free(&w->arena);
    free(w);
}
