/* onnx_file.c: from a path to an unpacked ModelProto: one open, a regular file, the wire scan, a
 * capped unpack. */
#include "frontend/onnx_file.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int64_t onnx_max_nodes(const ImportLimits *limits) {
    return limits && limits->max_nodes ? limits->max_nodes : 1000000;
}

void *onnx_memory(size_t n) {
    enum { HUGE_PAGE = 2 << 20 };
    void *p = NULL;
    if (n < 2 * HUGE_PAGE)
        return malloc(n ? n : 1);
    if (posix_memalign(&p, HUGE_PAGE, n) != 0)
        return NULL;
    madvise(p, n, MADV_HUGEPAGE);
    return p;
}

uint8_t *onnx_read_bytes(const char *path, size_t *n, struct stat *st, Diag *d) {
    struct stat own;
    st = st ? st : &own;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, st) < 0) {
        diag_error(d, EXIT_IO, "cannot open \"%s\": %s", diag_safe(d, path), strerror(errno));
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    if (!S_ISREG(st->st_mode) || st->st_size < 1 || st->st_size > INT32_MAX) {
        if (!S_ISREG(st->st_mode))
            diag_error(d, EXIT_MODEL, "not a regular file; expected an ONNX file");
        else if (!st->st_size)
            diag_error(d, EXIT_MODEL, "the file is empty; expected an ONNX file");
        else
            diag_error(d, EXIT_RESOURCE,
                       "the file is %lld bytes; at most %d are read (larger weights go to external "
                       "data)",
                       (long long)st->st_size, INT32_MAX);
        close(fd);
        return NULL;
    }
    *n = (size_t)st->st_size;
    uint8_t *bytes = onnx_memory(*n);
    if (!bytes) {
        diag_error(d, EXIT_RESOURCE, "no memory for a file of %zu bytes", *n);
        close(fd);
        return NULL;
    }
    size_t have = 0;
    while (have < *n) {
        ssize_t got = pread(fd, bytes + have, *n - have, (off_t)have);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            diag_error(d, EXIT_IO, "reading stopped after %zu of %zu bytes: %s", have, *n,
                       got ? strerror(errno) : "the file became shorter");
            close(fd);
            free(bytes);
            return NULL;
        }
        have += (size_t)got;
    }
    close(fd);
    return bytes;
}

OnnxFile *onnx_file_parse(const uint8_t *bytes, size_t n, const char *dir,
                          const ImportLimits *limits, Diag *d) {
    if (!n) {
        diag_error(d, EXIT_MODEL, "the file is empty; expected an ONNX file");
        return NULL;
    }
    int64_t cap = limits && limits->max_heap   ? limits->max_heap
                  : 4 * (int64_t)n > 268435456 ? 4 * (int64_t)n
                                               : 268435456;
    WireLimits wire = {.max_nodes = onnx_max_nodes(limits), .max_heap = cap};
    if (!wire_scan(bytes, n, &onnx__model_proto__descriptor, &wire, d)) {
        if (bytes[0] != 0x08) /* every exporter writes ir_version first */
            diag_more(
                d, "this does not look like an ONNX model; expected what torch.onnx.export writes");
        return NULL;
    }
    OnnxFile *f = xcalloc(1, sizeof *f);
    wire_heap_init(&f->heap, cap);
    f->model = onnx__model_proto__unpack(&f->heap.allocator, n, bytes);
    if (!f->model) {
        if (f->heap.used + (int64_t)n > cap)
            diag_error(d, EXIT_RESOURCE,
                       "unpacking takes more than %lld bytes (--max-heap raises it)",
                       (long long)cap);
        else
            diag_error(d, EXIT_MODEL, "not an ONNX model: protobuf parsing failed");
        free(f);
        return NULL;
    }
    f->dir = dir ? strdup(dir) : NULL;
    return f;
}

OnnxFile *onnx_file_read(const char *path, const ImportLimits *limits, Diag *d) {
    size_t n;
    struct stat st;
    uint8_t *bytes = onnx_read_bytes(path, &n, &st, d);
    if (!bytes)
        return NULL;
    char *copy = strdup(path);
    OnnxFile *f = onnx_file_parse(bytes, n, dirname(copy), limits, d);
    free(copy);
    free(bytes);
    if (f) {
        f->path = strdup(path);
        f->dev = st.st_dev;
        f->ino = st.st_ino;
    }
    return f;
}

bool onnx_file_drop(OnnxFile *f, const char *name) {
    Onnx__GraphProto *g = f->model->graph;
    for (size_t i = 0; g && i < g->n_initializer; i++) {
        ProtobufCBinaryData *raw = &g->initializer[i]->raw_data;
        if (!raw->data || strcmp(text_or(g->initializer[i]->name, ""), name) != 0)
            continue;
        f->heap.allocator.free(&f->heap, raw->data);
        *raw = (ProtobufCBinaryData){0};
        return true;
    }
    return false;
}

void onnx_file_free(OnnxFile *f) {
    if (!f)
        return;
    onnx__model_proto__free_unpacked(f->model, &f->heap.allocator);
    free(f->path);
    free(f->dir);
    free(f);
}
