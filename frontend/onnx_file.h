/* onnx_file.h: an ONNX file in memory, before it means anything: the unpacked model and where it
 * came from. */
#ifndef STGCC_FRONTEND_ONNX_FILE_H
#define STGCC_FRONTEND_ONNX_FILE_H

#include <sys/types.h>

#include "frontend/frontend.h"
#include "frontend/onnx_wire.h"
#include "onnx.pb-c.h"

struct OnnxFile {
    Onnx__ModelProto *model;
    WireHeap heap;
    char *path; /* NULL when read from memory */
    char *dir;  /* where external data lie; NULL: nowhere */
    dev_t dev;
    ino_t ino;
};

/* Reads and unpacks; NULL with one diagnostic. Limits as in onnx_import (NULL: defaults). */
OnnxFile *onnx_file_read(const char *path, const ImportLimits *limits, Diag *d);
OnnxFile *onnx_file_parse(const uint8_t *bytes, size_t n, const char *dir,
                          const ImportLimits *limits, Diag *d);

/* All bytes of a regular file of 1 to 2^31-1 bytes, malloc'ed; NULL with a diagnostic. *st
 * (optional) is its fstat. */
struct stat;
uint8_t *onnx_read_bytes(const char *path, size_t *n, struct stat *st, Diag *d);

/* Memory for many bytes, in huge pages where the system gives them; free() it. NULL: there is none. */
void *onnx_memory(size_t n);

int64_t onnx_max_nodes(const ImportLimits *limits);

/* ---- tensors (onnx_tensor.c) ---- */
/* A checked copy of `t` in arena `a`. `what` names it in messages ("initializer", "attribute
 * value"). NULL with a diagnostic. Complex and string tensors are refused; 4-bit ones are unpacked
 * to 8 bits. `dir` as in OnnxFile. */
typedef struct ExternalFiles ExternalFiles;
Tensor *onnx_tensor(Arena *a, const Onnx__TensorProto *t, const char *what, ExternalFiles *files,
                    Diag *d);

/* dtype_from_onnx, and the 8-bit types that 4-bit ones are unpacked to. */
DType dtype_of_onnx(int onnx);

/* ---- external data (onnx_external.c) ---- */
/* Files opened while one model is read; at most 1,024 distinct ones. */
struct ExternalFiles {
    const char *dir; /* NULL: external data are refused */
    bool share;      /* large raw data stay where the unpacked model has them: it outlives the tensors */
    int dirfd;       /* -1 until needed */
    int nfiles;
    struct {
        char *location;
        int fd;
        int64_t size;
    } * at;
    int cap;
};
void external_init(ExternalFiles *f, const char *dir);
void external_close(ExternalFiles *f);
/* Where the bytes of a tensor lie; all of it checked against the file before anything is allocated
 * for them. */
typedef struct ExternalSpan {
    int file;
    int64_t offset;
    const char *checksum; /* or NULL */
} ExternalSpan;
bool external_find(ExternalFiles *f, const Onnx__TensorProto *t, size_t bytes, ExternalSpan *span,
                   Diag *d);
bool external_read(ExternalFiles *f, const Onnx__TensorProto *t, const ExternalSpan *span,
                   size_t bytes, void *to, Diag *d);

/* SHA-1 of a buffer as 40 hexadecimal digits (the format's checksum of external data; not a
 * security measure). */
void sha1_hex(const void *p, size_t n, char out[41]);

/* Text of the model that a message may show; never NULL. */
static inline const char *text_or(const char *s, const char *otherwise) {
    return s && *s ? s : otherwise;
}

#endif
