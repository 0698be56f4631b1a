/* onnx_write.c: a ModelProto to a file, atomically; large tensors to one file beside it on request
 * or beyond 2 GiB.
 *
 * Both files are written as temporaries beside their places, synced and renamed, the data first:
 * PATH is either what it was or the whole new model. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "codegen/onnx_put.h"

enum { EXTERNAL_FROM = 1024, EXTERNAL_ALIGN = 4096 };

Onnx__ValueInfoProto *onnx_value_info(Arena *a, const char *name, DType t, int rank,
                                      const int64_t *dims) {
    Onnx__ValueInfoProto *v = ARENA_NEW(a, Onnx__ValueInfoProto);
    Onnx__TypeProto *type = ARENA_NEW(a, Onnx__TypeProto);
    Onnx__TypeProto__Tensor *tensor = ARENA_NEW(a, Onnx__TypeProto__Tensor);
    Onnx__TensorShapeProto *shape = ARENA_NEW(a, Onnx__TensorShapeProto);
    onnx__value_info_proto__init(v);
    onnx__type_proto__init(type);
    onnx__type_proto__tensor__init(tensor);
    onnx__tensor_shape_proto__init(shape);
    shape->n_dim = (size_t)rank;
    shape->dim = ARENA_ARRAY(a, Onnx__TensorShapeProto__Dimension *, rank + 1);
    for (int i = 0; i < rank; i++) {
        Onnx__TensorShapeProto__Dimension *d = shape->dim[i] =
            ARENA_NEW(a, Onnx__TensorShapeProto__Dimension);
        onnx__tensor_shape_proto__dimension__init(d);
        if (dims[i] < 0)
            continue; /* known to data only */
        d->value_case = ONNX__TENSOR_SHAPE_PROTO__DIMENSION__VALUE_DIM_VALUE;
        d->dim_value = dims[i];
    }
    tensor->has_elem_type = true;
    tensor->elem_type = dtype_to_onnx(t);
    tensor->shape = shape;
    type->value_case = ONNX__TYPE_PROTO__VALUE_TENSOR_TYPE;
    type->tensor_type = tensor;
    v->name = (char *)(uintptr_t)name;
    v->type = type;
    return v;
}

/* ---- files ---- */

typedef struct Temporary {
    const char *path; /* where it goes */
    char *name;
    FILE *to;
} Temporary;

static bool io_failed(Emit *E, const char *path, int why) {
    diag_error(E->io, EXIT_IO, "%s could not be written: %s", diag_safe(E->io, path),
               strerror(why));
    return false;
}

static bool temporary_open(Emit *E, Temporary *t, const char *path) {
    t->path = path;
    t->name = (char *)(uintptr_t)emit_format(E, "%s.XXXXXX", path);
    int fd = mkostemp(t->name, O_CLOEXEC);
    t->to = fd < 0 ? NULL : fdopen(fd, "wb");
    return t->to || io_failed(E, path, errno);
}

static void temporary_drop(Temporary *t) {
    if (t->to)
        fclose(t->to);
    if (t->name)
        unlink(t->name);
    *t = (Temporary){0};
}

/* To the disk; the file keeps its temporary name. */
static bool temporary_sync(Emit *E, Temporary *t, bool ok) {
    ok = ok && fflush(t->to) == 0 && fchmod(fileno(t->to), 0644) == 0 && fsync(fileno(t->to)) == 0;
    int why = errno;
    ok = fclose(t->to) == 0 && ok;
    t->to = NULL;
    if (ok)
        return true;
    const char *path = t->path;
    temporary_drop(t);
    return io_failed(E, path, why);
}

static bool temporary_commit(Emit *E, Temporary *t) {
    if (rename(t->name, t->path) != 0) {
        const char *path = t->path;
        int why = errno;
        temporary_drop(t);
        return io_failed(E, path, why);
    }
    char *copy = arena_strdup(&E->arena, t->path);
    int dir = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir >= 0) {
        fsync(dir);
        close(dir);
    }
    return true;
}

/* ---- external data ---- */

static Onnx__StringStringEntryProto *entry(Emit *E, const char *key, const char *value) {
    Onnx__StringStringEntryProto *p = ARENA_NEW(&E->arena, Onnx__StringStringEntryProto);
    onnx__string_string_entry_proto__init(p);
    p->key = (char *)(uintptr_t)key;
    p->value = (char *)(uintptr_t)value;
    return p;
}

static bool write_tensors(Emit *E, FILE *to, const char *location) {
    int64_t at = 0;
    for (int i = 0; i < E->initializers.n; i++) {
        Onnx__TensorProto *t = E->initializers.at[i];
        if (t->raw_data.len < EXTERNAL_FROM)
            continue;
        if (fseeko(to, (off_t)at, SEEK_SET) != 0 ||
            fwrite(t->raw_data.data, 1, t->raw_data.len, to) != t->raw_data.len)
            return false;
        t->n_external_data = 3;
        t->external_data = ARENA_ARRAY(&E->arena, Onnx__StringStringEntryProto *, 3);
        t->external_data[0] = entry(E, "location", location);
        t->external_data[1] = entry(E, "offset", emit_format(E, "%lld", (long long)at));
        t->external_data[2] = entry(E, "length", emit_format(E, "%zu", t->raw_data.len));
        at = (at + (int64_t)t->raw_data.len + EXTERNAL_ALIGN - 1) / EXTERNAL_ALIGN * EXTERNAL_ALIGN;
        t->has_data_location = true;
        t->data_location = 1;
        t->has_raw_data = false;
        t->raw_data = (ProtobufCBinaryData){0};
    }
    return true;
}

static bool write_data(Emit *E, Temporary *t, const char *path) {
    const char *data = emit_format(E, "%s.data", path);
    char *copy = arena_strdup(&E->arena, data);
    return temporary_open(E, t, data) &&
           temporary_sync(E, t, write_tensors(E, t->to, basename(copy)));
}

/* ---- the model ---- */

typedef struct Sink {
    ProtobufCBuffer base;
    FILE *to;
    bool failed;
} Sink;

static void sink_append(ProtobufCBuffer *b, size_t n, const uint8_t *bytes) {
    Sink *s = (Sink *)b;
    s->failed |= fwrite(bytes, 1, n, s->to) != n;
}

bool onnx_write_file(Emit *E, Onnx__ModelProto *m, const char *path) {
    Temporary data = {0}, model = {0};
    size_t bytes = 0;
    for (int i = 0; i < E->initializers.n; i++)
        bytes += E->initializers.at[i]->raw_data.len;
    bool external = E->o->external_data || bytes > INT32_MAX ||
                    onnx__model_proto__get_packed_size(m) > INT32_MAX;
    if (external && !write_data(E, &data, path))
        return false;
    bool ok = temporary_open(E, &model, path);
    if (ok) {
        Sink sink = {{sink_append}, model.to, false};
        onnx__model_proto__pack_to_buffer(m, &sink.base);
        ok = temporary_sync(E, &model, !sink.failed);
    }
    ok = ok && (!external || temporary_commit(E, &data)) && temporary_commit(E, &model);
    if (!ok) {
        temporary_drop(&data);
        temporary_drop(&model);
    }
    return ok;
}
