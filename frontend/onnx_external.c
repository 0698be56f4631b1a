/* onnx_external.c: tensors whose bytes lie in another file, read without trusting the model.
 *
 * A location is a relative path below the model's directory, resolved by the kernel with
 * RESOLVE_BENEATH and without symlinks (component by component where openat2 is missing), of a
 * regular file that has one name. Offsets are decimal digits. Bytes are read with pread into memory
 * of our own: a file that shrinks meanwhile is an error, not a signal. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "frontend/onnx_file.h"

enum { MAX_EXTERNAL_FILES = 1024, MAX_LOCATION = 1024 };

void external_init(ExternalFiles *f, const char *dir) {
    *f = (ExternalFiles){.dir = dir, .dirfd = -1};
}

void external_close(ExternalFiles *f) {
    for (int i = 0; i < f->nfiles; i++) {
        close(f->at[i].fd);
        free(f->at[i].location);
    }
    free(f->at);
    if (f->dirfd >= 0)
        close(f->dirfd);
    external_init(f, f->dir);
}

/* Why a location is not acceptable as text, or NULL. */
static const char *location_fault(const char *s) {
    size_t n = strlen(s);
    if (n < 1 || n > MAX_LOCATION)
        return "must be 1 to 1024 bytes long";
    if (*s == '/')
        return "is absolute; it must be relative to the model's directory";
    if (strchr(s, '\\') || strchr(s, '*'))
        return "holds '\\' or '*'";
    for (const char *p = s; *p;) {
        size_t len = strcspn(p, "/");
        if (len == 2 && !strncmp(p, "..", 2))
            return "leads out of the model's directory ('..')";
        p += len + (p[len] == '/');
    }
    return NULL;
}

/* openat2 is younger than some kernels and sandboxes: then every component is opened by itself,
 * never following a link. */
static int open_by_components(int dirfd, const char *location) {
    char part[MAX_LOCATION + 1];
    int at = dup(dirfd);
    for (const char *p = location; at >= 0 && *p;) {
        size_t len = strcspn(p, "/");
        bool last = !p[len] || !p[len + strspn(p + len, "/")];
        memcpy(part, p, len);
        part[len] = 0;
        p += len + strspn(p + len, "/");
        int next =
            openat(at, *part ? part : ".",
                   O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | (last ? 0 : O_DIRECTORY));
        close(at);
        at = next;
    }
    return at;
}

static int open_beneath(int dirfd, const char *location) {
    struct open_how how = {.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK,
                           .resolve =
                               RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    long fd = syscall(SYS_openat2, dirfd, location, &how, sizeof how);
    if (fd < 0 && (errno == ENOSYS || errno == EPERM))
        fd = open_by_components(dirfd, location);
    return (int)fd;
}

#define EXT_FAIL(d, code, t, ...) \
    (diag_error(d, code, __VA_ARGS__), \
     diag_more(d, "external data of tensor \"%s\"", diag_safe(d, text_or((t)->name, ""))), -1)

/* Index of the opened file; -1 with a diagnostic. */
static int external_file(ExternalFiles *f, const Onnx__TensorProto *t, const char *location,
                         Diag *d) {
    for (int i = 0; i < f->nfiles; i++)
        if (!strcmp(f->at[i].location, location))
            return i;
    const char *fault = location_fault(location), *shown = diag_safe(d, location);
    if (fault)
        return EXT_FAIL(d, EXIT_MODEL, t, "location \"%s\" %s", shown, fault);
    if (!f->dir)
        return EXT_FAIL(d, EXIT_MODEL, t,
                        "location \"%s\": a model without a directory has no files", shown);
    if (f->nfiles == MAX_EXTERNAL_FILES)
        return EXT_FAIL(d, EXIT_RESOURCE, t, "more than %d files of external data",
                        MAX_EXTERNAL_FILES);
    if (f->dirfd < 0)
        f->dirfd = open(f->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int fd = f->dirfd < 0 ? -1 : open_beneath(f->dirfd, location);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0) {
        int e = errno;
        if (fd >= 0)
            close(fd);
        return EXT_FAIL(d, EXIT_MODEL, t, "location \"%s\": %s", shown,
                        e == ELOOP || e == EXDEV ? "leads through a symbolic link or out of the "
                                                   "model's directory"
                                                 : strerror(e));
    }
    if (!S_ISREG(st.st_mode) || st.st_nlink != 1) {
        close(fd);
        return EXT_FAIL(d, EXIT_MODEL, t, "location \"%s\" %s", shown,
                        S_ISREG(st.st_mode) ? "has more than one name (a hard link)"
                                            : "is not a regular file");
    }
    if (f->nfiles == f->cap) {
        f->cap = f->cap ? 2 * f->cap : 8;
        f->at = xrealloc(f->at, sizeof *f->at * (size_t)f->cap);
    }
    f->at[f->nfiles].location = strdup(location);
    f->at[f->nfiles].fd = fd;
    f->at[f->nfiles].size = st.st_size;
    return f->nfiles++;
}

/* Decimal digits only, at most 19. */
static bool parse_digits(const char *s, int64_t *v) {
    size_t n = strlen(s);
    if (n < 1 || n > 19 || strspn(s, "0123456789") != n)
        return false;
    errno = 0;
    *v = strtoll(s, NULL, 10);
    return errno == 0;
}

typedef struct ExternalRef {
    const char *location, *checksum;
    int64_t offset, length; /* length -1: not given */
} ExternalRef;

static bool external_entries(const Onnx__TensorProto *t, ExternalRef *r, Diag *d) {
    *r = (ExternalRef){.length = -1};
    bool seen[4] = {false};
    static const char *const keys[] = {"location", "offset", "length", "checksum"};
    for (size_t i = 0; i < t->n_external_data; i++) {
        const char *key = text_or(t->external_data[i]->key, ""),
                   *v = text_or(t->external_data[i]->value, "");
        int k = 0;
        while (k < 4 && strcmp(key, keys[k]) != 0)
            k++;
        if (k == 4)
            return EXT_FAIL(d, EXIT_MODEL, t,
                            "unknown key \"%s\"; known: location offset length checksum",
                            diag_safe(d, key)) > 0;
        if (seen[k])
            return EXT_FAIL(d, EXIT_MODEL, t, "\"%s\" is given twice", key) > 0;
        seen[k] = true;
        if ((k == 1 || k == 2) && !parse_digits(v, k == 1 ? &r->offset : &r->length))
            return EXT_FAIL(d, EXIT_MODEL, t, "%s \"%s\" is not a number of decimal digits", key,
                            diag_safe(d, v)) > 0;
        if (k == 0)
            r->location = v;
        if (k == 3)
            r->checksum = v;
    }
    if (!r->location)
        return EXT_FAIL(d, EXIT_MODEL, t, "\"location\" is missing") > 0;
    return true;
}

bool external_find(ExternalFiles *f, const Onnx__TensorProto *t, size_t bytes, ExternalSpan *span,
                   Diag *d) {
    ExternalRef r;
    if (!external_entries(t, &r, d))
        return false;
    int i = external_file(f, t, r.location, d);
    if (i < 0)
        return false;
    int64_t want = (int64_t)bytes, end;
    if (r.length >= 0 && r.length != want)
        return EXT_FAIL(d, EXIT_MODEL, t,
                        "length is %lld bytes; the tensor's type and shape take %lld",
                        (long long)r.length, (long long)want) > 0;
    if (__builtin_add_overflow(r.offset, want, &end) || end > f->at[i].size)
        return EXT_FAIL(d, EXIT_MODEL, t,
                        "%lld bytes from %lld on lie past the end of \"%s\" (%lld bytes)",
                        (long long)want, (long long)r.offset, diag_safe(d, r.location),
                        (long long)f->at[i].size) > 0;
    *span = (ExternalSpan){i, r.offset, r.checksum};
    return true;
}

bool external_read(ExternalFiles *f, const Onnx__TensorProto *t, const ExternalSpan *span,
                   size_t bytes, void *to, Diag *d) {
    for (size_t have = 0; have < bytes;) {
        ssize_t got = pread(f->at[span->file].fd, (char *)to + have, bytes - have,
                            (off_t)span->offset + (off_t)have);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return EXT_FAIL(d, EXIT_IO, t, "reading \"%s\" stopped: %s",
                            diag_safe(d, f->at[span->file].location),
                            got ? strerror(errno) : "the file became shorter") > 0;
        have += (size_t)got;
    }
    char sum[41];
    if (span->checksum && (sha1_hex(to, bytes, sum), strcasecmp(sum, span->checksum) != 0))
        return EXT_FAIL(d, EXIT_MODEL, t, "checksum is %s; the bytes of \"%s\" give %s",
                        diag_safe(d, span->checksum), diag_safe(d, f->at[span->file].location),
                        sum) > 0;
    return true;
}

/* ---- SHA-1 (FIPS 180-4), for the checksum key ---- */

static uint32_t rotl(uint32_t v, int n) {
    return v << n | v >> (32 - n);
}

static void sha1_block(uint32_t h[5], const uint8_t *p) {
    uint32_t w[80], a = h[0], b = h[1], c = h[2], e = h[4], dd = h[3];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 |
               (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
    for (int i = 16; i < 80; i++)
        w[i] = rotl(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
    for (int i = 0; i < 80; i++) {
        uint32_t f = i < 20   ? ((b & c) | (~b & dd)) + 0x5a827999
                     : i < 40 ? (b ^ c ^ dd) + 0x6ed9eba1
                     : i < 60 ? ((b & c) | (b & dd) | (c & dd)) + 0x8f1bbcdc
                              : (b ^ c ^ dd) + 0xca62c1d6;
        uint32_t next = rotl(a, 5) + f + e + w[i];
        e = dd, dd = c, c = rotl(b, 30), b = a, a = next;
    }
    h[0] += a, h[1] += b, h[2] += c, h[3] += dd, h[4] += e;
}

void sha1_hex(const void *p, size_t n, char out[41]) {
    uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    const uint8_t *b = p;
    size_t i = 0;
    for (; i + 64 <= n; i += 64)
        sha1_block(h, b + i);
    uint8_t tail[128] = {0};
    size_t rest = n - i, blocks = rest < 56 ? 64 : 128;
    if (rest)
        memcpy(tail, b + i, rest);
    tail[rest] = 0x80;
    for (int k = 0; k < 8; k++)
        tail[blocks - 1 - (size_t)k] = (uint8_t)((uint64_t)n * 8 >> (8 * k));
    for (i = 0; i < blocks; i += 64)
        sha1_block(h, tail + i);
    for (int k = 0; k < 5; k++)
        snprintf(out + 8 * k, 9, "%08x", h[k]);
}
