/* npz.c: reads .npz (a ZIP of .npy members, stored or deflated, ZIP64 too) and plain .npy into
 * named tensors.
 *
 * The central directory is the only truth; every number in it is checked against the file before
 * use. A member's size is compared with its .npy header before the rest is inflated, the sum of all
 * with the limit before anything is. */
#include "frontend/npz.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "frontend/frontend.h"

enum { MAX_MEMBERS = 4096, MAX_NAME = 4096 };

typedef struct Bytes {
    const unsigned char *at;
    size_t n;
} Bytes;

typedef struct Member {
    const char *name;
    unsigned method;
    uint32_t crc;
    uint64_t packed, size, header; /* header: offset of the local header */
} Member;

static uint64_t le(const unsigned char *p, int bytes) {
    uint64_t v = 0;
    for (int i = 0; i < bytes; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

static bool inside(Bytes f, uint64_t offset, uint64_t n) {
    return offset <= f.n && n <= f.n - offset;
}

/* ---- the file ---- */

static unsigned char *read_file(const char *path, int64_t limit, size_t *n, Diag *d) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0) {
        diag_error(d, EXIT_DATA, "cannot open the data: %s", strerror(errno));
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    unsigned char *bytes = NULL;
    if (!S_ISREG(st.st_mode))
        diag_error(d, EXIT_DATA, "not a regular file; expected arrays as .npz or .npy");
    else if (st.st_size > limit)
        diag_error(d, EXIT_RESOURCE,
                   "%lld bytes, more than the limit of %lld; raise it with --mem-limit",
                   (long long)st.st_size, (long long)limit);
    else
        bytes = xcalloc((size_t)st.st_size + 1, 1);
    size_t got = 0;
    while (bytes && got < (size_t)st.st_size) {
        ssize_t k = pread(fd, bytes + got, (size_t)st.st_size - got, (off_t)got);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0) {
            diag_error(d, k < 0 ? EXIT_IO : EXIT_DATA, "reading failed at byte %zu: %s", got,
                       k < 0 ? strerror(errno) : "the file became shorter");
            free(bytes);
            bytes = NULL;
        } else {
            got += (size_t)k;
        }
    }
    close(fd);
    *n = got;
    return bytes;
}

/* ---- the directory ---- */

static bool damaged(Diag *d, const char *what, uint64_t offset) {
    diag_error(d, EXIT_DATA, "damaged .npz: %s (at byte %llu)", what, (unsigned long long)offset);
    return false;
}

/* Finds the central directory: the last end record, or its ZIP64 twin where fields are saturated.
 */
static bool find_directory(Bytes f, uint64_t *offset, uint64_t *bytes, uint64_t *count, Diag *d) {
    enum { END = 22, LOCATOR = 20, END64 = 56 };
    size_t lowest = f.n > END + 65535 ? f.n - END - 65535 : 0;
    for (size_t at = f.n >= END ? f.n - END + 1 : 0; at-- > lowest;) {
        const unsigned char *p = f.at + at;
        if (memcmp(p, "PK\5\6", 4) != 0 || at + END + le(p + 20, 2) != f.n)
            continue;
        *count = le(p + 10, 2);
        *bytes = le(p + 12, 4);
        *offset = le(p + 16, 4);
        if (le(p + 4, 4) != 0 || le(p + 8, 2) != *count)
            return damaged(d, "an archive in several parts", at);
        if (at >= LOCATOR && !memcmp(p - LOCATOR, "PK\6\7", 4)) {
            uint64_t end64 = le(p - LOCATOR + 8, 8);
            if (!inside(f, end64, END64) || memcmp(f.at + end64, "PK\6\6", 4) != 0)
                return damaged(d, "its ZIP64 end record is missing", at - LOCATOR);
            *count = le(f.at + end64 + 32, 8);
            *bytes = le(f.at + end64 + 40, 8);
            *offset = le(f.at + end64 + 48, 8);
        }
        return inside(f, *offset, *bytes) || damaged(d, "its directory lies outside the file", at);
    }
    diag_error(d, EXIT_DATA, "not a .npz archive or cut short (no directory at its end)");
    return false;
}

/* Sizes and offset that the ZIP64 extra field replaces, in this order, where the plain ones are all
 * ones. */
static bool zip64_extra(const unsigned char *p, size_t n, Member *m) {
    uint64_t *fields[] = {&m->size, &m->packed, &m->header};
    while (n >= 4) {
        size_t id = le(p, 2), len = le(p + 2, 2);
        if (len > n - 4)
            return false;
        const unsigned char *q = p + 4, *end = q + len;
        for (int i = 0; id == 1 && i < 3; i++)
            if (*fields[i] == 0xffffffffu) {
                if (end - q < 8)
                    return false;
                *fields[i] = le(q, 8);
                q += 8;
            }
        p += 4 + len;
        n -= 4 + len;
    }
    return true;
}

static bool directory_entry(Bytes f, uint64_t *at, uint64_t end, Member *m, Arena *a, Diag *d) {
    enum { ENTRY = 46 };
    const unsigned char *p = f.at + *at;
    if (end - *at < ENTRY || memcmp(p, "PK\1\2", 4) != 0)
        return damaged(d, "a directory entry is missing", *at);
    uint64_t name = le(p + 28, 2), extra = le(p + 30, 2), comment = le(p + 32, 2);
    if (end - *at - ENTRY < name + extra + comment)
        return damaged(d, "a directory entry is cut short", *at);
    *m = (Member){.method = (unsigned)le(p + 10, 2),
                  .crc = (uint32_t)le(p + 16, 4),
                  .packed = le(p + 20, 4),
                  .size = le(p + 24, 4),
                  .header = le(p + 42, 4)};
    if (le(p + 8, 2) & 1)
        return damaged(d, "an encrypted member", *at);
    if (m->method != 0 && m->method != 8)
        return damaged(d, "a member packed with something else than deflate", *at);
    if (!name || name > MAX_NAME || memchr(p + ENTRY, 0, name))
        return damaged(d, "a member with no proper name", *at);
    if (!zip64_extra(p + ENTRY + name, extra, m))
        return damaged(d, "a member's ZIP64 sizes", *at);
    char *text = arena_alloc(a, name + 1);
    memcpy(text, p + ENTRY, name);
    if (name > 4 && !strcmp(text + name - 4, ".npy"))
        text[name - 4] = 0;
    m->name = text;
    *at += ENTRY + name + extra + comment;
    return true;
}

/* Where a member's packed bytes lie. */
static bool member_bytes(Bytes f, const Member *m, Bytes *packed, Diag *d) {
    enum { LOCAL = 30 };
    if (!inside(f, m->header, LOCAL) || memcmp(f.at + m->header, "PK\3\4", 4) != 0)
        return damaged(d, "a member's header is not where the directory says", m->header);
    uint64_t start =
        m->header + LOCAL + le(f.at + m->header + 26, 2) + le(f.at + m->header + 28, 2);
    if (!inside(f, start, m->packed))
        return damaged(d, "a member reaches past the end of the file", m->header);
    *packed = (Bytes){f.at + start, (size_t)m->packed};
    return true;
}

/* ---- one member ---- */

static bool array_fault(Diag *d, const char *name, const char *problem) {
    diag_error(d, EXIT_DATA, "array '%s': %s", diag_safe(d, name), problem);
    return false;
}

/* Inflates the next n bytes into `to`. */
static bool inflate_exactly(z_stream *z, unsigned char *to, size_t n) {
    while (n > 0) {
        uInt step = n > 1u << 30 ? 1u << 30 : (uInt)n;
        z->next_out = to;
        z->avail_out = step;
        int status = inflate(z, Z_NO_FLUSH);
        size_t got = step - z->avail_out;
        to += got;
        n -= got;
        if (status == Z_STREAM_END)
            return n == 0;
        if (status != Z_OK || (!got && !z->avail_in))
            return false;
    }
    return true;
}

/* After the last byte the stream must end, with nothing left over. */
static bool inflate_ends(z_stream *z) {
    unsigned char extra;
    z->next_out = &extra;
    z->avail_out = 1;
    int status = inflate(z, Z_FINISH);
    return status == Z_STREAM_END && z->avail_out == 1 && z->avail_in == 0;
}

/* The header of an array of `size` bytes in all, from its first bytes. */
static bool check_header(const char *name, const unsigned char *p, size_t n, uint64_t size,
                         NpyHeader *h, Diag *d) {
    const char *problem = npy_parse(p, n, h);
    if (problem)
        return array_fault(d, name, problem);
    uint64_t need = (uint64_t)dims_count(h->dims, h->rank) * (uint64_t)dtype_bytes(h->dtype);
    if (size - h->bytes == need)
        return true;
    return array_fault(d, name,
                       arena_printf(&d->arena, "its shape needs %llu bytes, the file holds %llu",
                                    (unsigned long long)need,
                                    (unsigned long long)(size - h->bytes)));
}

static uint32_t crc_of(uint32_t crc, const unsigned char *p, size_t n) {
    return (uint32_t)crc32_z(crc, p, n);
}

static Tensor *read_stored(const Member *m, Bytes packed, Arena *a, Diag *d) {
    NpyHeader h;
    if (packed.n != m->size)
        return array_fault(d, m->name, "its two sizes differ"), NULL;
    if (!check_header(m->name, packed.at, packed.n, m->size, &h, d))
        return NULL;
    if (crc_of(0, packed.at, packed.n) != m->crc)
        return array_fault(d, m->name, "damaged (its checksum does not match)"), NULL;
    Tensor *t = tensor_new(a, h.dtype, h.rank, h.dims);
    if (packed.n > h.bytes)
        memcpy(t->data, packed.at + h.bytes, packed.n - h.bytes);
    return t;
}

static Tensor *inflate_array(const Member *m, z_stream *z, unsigned char *head, Arena *a, Diag *d) {
    enum { FIRST = 12 };
    NpyHeader h;
    size_t header;
    if (m->size < FIRST || !inflate_exactly(z, head, FIRST))
        return array_fault(d, m->name, "damaged (it does not unpack)"), NULL;
    header = npy_header_bytes(head, FIRST);
    if (header > FIRST && header <= m->size && !inflate_exactly(z, head + FIRST, header - FIRST))
        return array_fault(d, m->name, "damaged (it does not unpack)"), NULL;
    if (!check_header(m->name, head, header <= m->size ? header ? header : FIRST : FIRST, m->size,
                      &h, d))
        return NULL;
    Tensor *t = tensor_new(a, h.dtype, h.rank, h.dims);
    size_t n = tensor_bytes(t);
    if (!inflate_exactly(z, t->data, n) || !inflate_ends(z))
        return array_fault(d, m->name, "damaged (it does not unpack to its size)"), NULL;
    if (crc_of(crc_of(0, head, h.bytes), t->data, n) != m->crc)
        return array_fault(d, m->name, "damaged (its checksum does not match)"), NULL;
    return t;
}

static Tensor *read_deflated(const Member *m, Bytes packed, Arena *a, Diag *d) {
    z_stream z = {0};
    if (packed.n > UINT32_MAX)
        return array_fault(d, m->name, "a packed member above 4 GiB; save it with numpy.savez"),
               NULL;
    if (inflateInit2(&z, -MAX_WBITS) != Z_OK)
        bug("zlib does not start");
    z.next_in = (unsigned char *)(uintptr_t)packed.at;
    z.avail_in = (uInt)packed.n;
    unsigned char *head = xcalloc(1, 12 + 65536);
    Tensor *t = inflate_array(m, &z, head, a, d);
    free(head);
    inflateEnd(&z);
    return t;
}

/* ---- the whole ---- */

static bool add_array(NamedArrays *out, const char *name, Tensor *t) {
    if (!t)
        return false;
    vec_push(&out->names, name);
    vec_push(&out->tensors, t);
    return true;
}

static bool members_fit(const Member *m, uint64_t count, int64_t limit, Diag *d) {
    uint64_t total = 0;
    StrMap seen = {0};
    bool ok = true;
    for (uint64_t i = 0; ok && i < count; i++) {
        if (!strmap_put(&seen, m[i].name, (void *)(uintptr_t)m[i].name))
            ok = array_fault(d, m[i].name, "stored twice");
        else if (__builtin_add_overflow(total, m[i].size, &total) || total > (uint64_t)limit) {
            diag_error(d, EXIT_RESOURCE,
                       "unpacks to more than the limit of %lld bytes; raise it with --mem-limit",
                       (long long)limit);
            ok = false;
        }
    }
    strmap_free(&seen);
    return ok;
}

static bool read_archive(Bytes f, int64_t limit, NamedArrays *out, Diag *d) {
    uint64_t at, bytes, count;
    if (!find_directory(f, &at, &bytes, &count, d))
        return false;
    if (count > MAX_MEMBERS) {
        diag_error(d, EXIT_DATA, "%llu arrays, more than the limit of %d",
                   (unsigned long long)count, MAX_MEMBERS);
        return false;
    }
    Member *m = ARENA_ARRAY(&out->arena, Member, count);
    uint64_t end = at + bytes;
    for (uint64_t i = 0; i < count; i++)
        if (!directory_entry(f, &at, end, &m[i], &out->arena, d))
            return false;
    if (at != end)
        return damaged(d, "bytes after the directory's last entry", at);
    if (!members_fit(m, count, limit, d))
        return false;
    for (uint64_t i = 0; i < count; i++) {
        Bytes packed;
        if (!member_bytes(f, &m[i], &packed, d) ||
            !add_array(out, m[i].name,
                       m[i].method ? read_deflated(&m[i], packed, &out->arena, d)
                                   : read_stored(&m[i], packed, &out->arena, d)))
            return false;
    }
    return true;
}

/* A single .npy: one array named by the file. */
static bool read_single(Bytes f, const char *path, NamedArrays *out, Diag *d) {
    const char *slash = strrchr(path, '/');
    char *name = arena_strdup(&out->arena, slash ? slash + 1 : path);
    size_t n = strlen(name);
    if (n > 4 && !strcmp(name + n - 4, ".npy"))
        name[n - 4] = 0;
    Member m = {.name = name, .size = f.n, .crc = crc_of(0, f.at, f.n)};
    return add_array(out, name, read_stored(&m, f, &out->arena, d));
}

bool npz_read_limit(const char *path, int64_t limit, NamedArrays *out, Diag *d) {
    *out = (NamedArrays){0};
    Bytes f = {0};
    unsigned char *bytes = read_file(path, limit, &f.n, d);
    if (!bytes)
        return false;
    f.at = bytes;
    bool ok = f.n > 6 && !memcmp(f.at, "\x93NUMPY", 6) ? read_single(f, path, out, d)
                                                       : read_archive(f, limit, out, d);
    free(bytes);
    if (!ok)
        arrays_free(out);
    return ok;
}

bool npz_read(const char *path, NamedArrays *out, Diag *d) {
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    int64_t limit = pages > 0 && page > 0 ? (int64_t)pages * page : INT64_MAX;
    return npz_read_limit(path, limit, out, d);
}

Tensor *arrays_find(const NamedArrays *a, const char *name) {
    for (int i = 0; i < a->names.n; i++)
        if (!strcmp(a->names.at[i], name))
            return a->tensors.at[i];
    return NULL;
}

void arrays_free(NamedArrays *a) {
    vec_free(&a->names);
    vec_free(&a->tensors);
    arena_free(&a->arena);
}
