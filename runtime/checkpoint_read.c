/* checkpoint_read.c: reading a checkpoint, with everything in it checked before any of it is used.
 * See checkpoint.h. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/checkpoint.h"
#include "runtime/crc32c.h"

/* One allocation holds the file; names are moved to the front by one byte to end them with 0. */
typedef struct Loaded {
    StgcCheckpoint c;
    unsigned char *file;
    char *names; /* all names and the recipe, each with its 0 */
} Loaded;

typedef struct Reader {
    const unsigned char *p, *end;
    int bad;
} Reader;

static uint64_t take(Reader *r, int bytes) {
    uint64_t v = 0;
    if (r->end - r->p < bytes) {
        r->bad = 1;
        return 0;
    }
    for (int i = 0; i < bytes; i++)
        v |= (uint64_t)*r->p++ << (8 * i);
    return v;
}

/* A text of n bytes, copied with a 0 to *to, which moves on. */
static const char *take_text(Reader *r, uint64_t n, char **to) {
    if ((uint64_t)(r->end - r->p) < n || memchr(r->p, 0, n)) {
        r->bad = 1;
        return "";
    }
    char *s = *to;
    memcpy(s, r->p, n);
    s[n] = 0;
    r->p += n;
    *to = s + n + 1;
    return s;
}

static const int64_t type_bytes[17] = {
    [1] = 4, [2] = 1,  [3] = 1,  [4] = 2,  [5] = 2,  [6] = 4, [7] = 8,
    [9] = 1, [10] = 2, [11] = 8, [12] = 4, [13] = 8, [16] = 2};

/* The tensor's entry; its bytes must start where the last ended and be as many as its shape says.
 */
static const char *take_tensor(Reader *r, StgcCkptTensor *t, const unsigned char *data,
                               int64_t room, int64_t *offset, char **names, uint32_t *crc) {
    t->name = take_text(r, take(r, 2), names);
    t->type = (int32_t)take(r, 4);
    t->rank = (int32_t)take(r, 4);
    if (r->bad || t->rank < 0 || t->rank > 8 || t->type < 0 || t->type > 16 || !type_bytes[t->type])
        return "a tensor's type or rank";
    int64_t bytes = type_bytes[t->type];
    for (int i = 0; i < t->rank; i++) {
        t->dims[i] = (int64_t)take(r, 8);
        if (t->dims[i] < 0 || __builtin_mul_overflow(bytes, t->dims[i], &bytes))
            return "a tensor's shape";
    }
    int64_t at = (int64_t)take(r, 8);
    t->bytes = (int64_t)take(r, 8);
    *crc = (uint32_t)take(r, 4);
    if (r->bad || at != *offset || t->bytes != bytes || bytes > room - *offset)
        return "a tensor's place";
    t->data = data + *offset;
    *offset += bytes;
    return NULL;
}

static const char *parse_header(Loaded *l, Reader r, const unsigned char *data, int64_t room) {
    StgcCheckpoint *c = &l->c;
    char *names = l->names;
    c->step = (int64_t)take(&r, 8);
    c->samples = (int64_t)take(&r, 8);
    c->seed = take(&r, 8);
    c->model_hash = take(&r, 8);
    c->recipe = take_text(&r, take(&r, 4), &names);
    uint64_t count = take(&r, 4);
    if (r.bad || c->step < 0 || c->samples < 0 || count > (uint64_t)(r.end - r.p) / 30)
        return "its header";
    c->tensors = calloc(count ? count : 1, sizeof *c->tensors);
    if (!c->tensors)
        return "no memory for its list";
    int64_t offset = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint32_t crc;
        StgcCkptTensor *t = &c->tensors[i];
        const char *problem = take_tensor(&r, t, data, room, &offset, &names, &crc);
        if (problem)
            return problem;
        if (stgc_crc32c(0, t->data, (size_t)t->bytes) != crc)
            return "the checksum of a tensor";
    }
    c->ntensors = (uint32_t)count;
    if (r.p != r.end || offset != room)
        return "bytes left over";
    return NULL;
}

static unsigned char *read_file(const char *path, int64_t *n, StgcStatus *status, char *error,
                                size_t nerror) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    unsigned char *p = NULL;
    *status = STGC_ERR_DATA;
    if (fd < 0 || fstat(fd, &st) != 0) {
        snprintf(error, nerror, "cannot open '%s': %s", path, strerror(errno));
    } else if (!S_ISREG(st.st_mode)) {
        snprintf(error, nerror, "'%s' is no regular file", path);
    } else if (!(p = malloc((size_t)st.st_size + 1))) {
        snprintf(error, nerror, "no memory for the %lld bytes of '%s'", (long long)st.st_size,
                 path);
        *status = STGC_ERR_RESOURCE;
    }
    int64_t got = 0;
    while (p && got < st.st_size) {
        ssize_t k = pread(fd, p + got, (size_t)(st.st_size - got), (off_t)got);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0) {
            snprintf(error, nerror, "reading '%s' failed: %s", path,
                     k ? strerror(errno) : "it became shorter");
            *status = STGC_ERR_IO;
            free(p);
            p = NULL;
        } else {
            got += k;
        }
    }
    if (fd >= 0)
        close(fd);
    *n = got;
    return p;
}

StgcCheckpoint *stgc_checkpoint_read(const char *path, StgcStatus *status, char *error, size_t n) {
    enum { PREFIX = 20, MAX_HEADER = 16 << 20 };
    int64_t size;
    unsigned char *file = read_file(path, &size, status, error, n);
    if (!file)
        return NULL;
    Reader r = {file, file + size, 0};
    const char *problem = NULL;
    Loaded *l = calloc(1, sizeof *l);
    uint64_t version = 0, header = 0, crc = 0;
    if (size < PREFIX || memcmp(file, "STGCCKPT", 8) != 0) {
        problem = "it is none, or cut short";
    } else {
        r.p += 8;
        version = take(&r, 4);
        header = take(&r, 4);
        crc = take(&r, 4);
        if (version != STGC_CHECKPOINT_VERSION)
            problem = "its version";
        else if (header > MAX_HEADER || header > (uint64_t)size - PREFIX)
            problem = "the size of its header";
        else if (stgc_crc32c(0, file + PREFIX, header) != crc)
            problem = "the checksum of its header";
    }
    if (l && !problem) {
        l->names = malloc(header + 65536); /* every name is in the header with 26 bytes more */
        r.end = r.p + header;
        problem = l->names
                      ? parse_header(l, r, file + PREFIX + header, size - PREFIX - (int64_t)header)
                      : "no memory";
    }
    if (l && !problem) {
        l->file = file;
        *status = STGC_OK;
        return &l->c;
    }
    *status = STGC_ERR_DATA;
    if (version > STGC_CHECKPOINT_VERSION && version < 1000)
        snprintf(error, n, "'%s' has version %llu, this stgcc reads version %d; use a newer stgcc",
                 path, (unsigned long long)version, STGC_CHECKPOINT_VERSION);
    else
        snprintf(error, n, "'%s' is damaged: %s", path, l ? problem : "no memory");
    free(file);
    if (l) {
        free(l->c.tensors);
        free(l->names);
    }
    free(l);
    return NULL;
}

void stgc_checkpoint_free(StgcCheckpoint *c) {
    if (!c)
        return;
    Loaded *l = (Loaded *)c; /* the checkpoint is its first member */
    free(l->file);
    free(l->names);
    free(c->tensors);
    free(l);
}

/* The largest step below `below` that has a file, -1 if none. */
static int64_t step_below(const char *dir, int64_t below) {
    DIR *d = opendir(dir);
    int64_t best = -1;
    for (struct dirent *f; d && (f = readdir(d));) {
        long long step;
        int end = 0;
        if (sscanf(f->d_name, "step-%lld.ckpt%n", &step, &end) == 1 && end && !f->d_name[end] &&
            step >= 0 && step < below && step > best)
            best = step;
    }
    if (d)
        closedir(d);
    return best;
}

StgcCheckpoint *stgc_checkpoint_newest(const char *dir, char *warning, size_t nwarning,
                                       StgcStatus *status, char *error, size_t n) {
    *warning = 0;
    *status = STGC_ERR_DATA;
    snprintf(error, n, "no checkpoint in '%s'", dir);
    for (int64_t step = INT64_MAX; (step = step_below(dir, step)) >= 0;) {
        char path[4096];
        if (snprintf(path, sizeof path, "%s/step-%08lld.ckpt", dir, (long long)step) >=
            (int)sizeof path)
            break;
        StgcCheckpoint *c = stgc_checkpoint_read(path, status, error, n);
        if (c)
            return c;
        size_t used = strlen(warning);
        snprintf(warning + used, nwarning - used, "%s%s", used ? "; " : "", error);
    }
    return NULL;
}
