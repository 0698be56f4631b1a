/* onnx_export.c: trained weights back into the model they came from.
 *
 * The unpacked model is packed again with some initializers replaced; everything else,
 * documentation and metadata included, stays as it was. What changes is shallow copies in an arena,
 * so the OnnxFile is not touched. Types are converted back to the initializer's; external data are
 * read and embedded, or, when the file would pass 2 GiB, all large tensors go to one file
 * PATH.data. Both files are written beside their names and renamed, so PATH is either the old file
 * or the whole new one.
 *
 * Experts that an exporter merged into one initializer have copies of their own named
 * NAME@LAYER.EXPERT: each becomes an initializer of that name, and the operand of its expert reads
 * it instead. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "frontend/onnx_file.h"

enum {
    EXTERNAL_FROM = 1024
}; /* bytes from which a tensor moves out of a file that would be too large */

/* One operand of one node. */
typedef struct Slot {
    int node, input;
    const char *label; /* of the node */
} Slot;

/* One merged expert's copy. */
typedef struct Copy {
    const NamedTensor *value;
    const char *base;
    int layer, expert;
} Copy;

typedef struct Export {
    const OnnxFile *file;
    Diag *d;
    Arena arena;
    Onnx__ModelProto model; /* shallow copies from here on */
    Onnx__GraphProto graph;
    VEC(Onnx__TensorProto *) initializers;
    Onnx__NodeProto **nodes;
    bool *node_copied;
    StrMap by_name; /* -> index + 1 into initializers */
    ExternalFiles external;
} Export;

static const char *shown(Export *e, const char *s) {
    return diag_safe(e->d, s ? s : "");
}

/* ---- replacing ---- */

/* A copy of header `t` with `k`'s values in t's type as raw data. NULL with a diagnostic if the
 * shapes differ. */
static Onnx__TensorProto *tensor_with(Export *e, const Onnx__TensorProto *t, const char *name,
                                      const Tensor *k) {
    bool same = (int)t->n_dims == k->rank;
    for (int i = 0; same && i < k->rank; i++)
        same = t->dims[i] == k->dims[i];
    DType type = dtype_from_onnx(t->data_type);
    if (!same || type == DT_NONE) {
        diag_error(e->d, EXIT_MODEL,
                   "the values for \"%s\" have another shape than the initializer", shown(e, name));
        return NULL;
    }
    const Tensor *stored = k;
    if (type != k->dtype) {
        Tensor *c = tensor_new(&e->arena, type, k->rank, k->dims);
        for (int64_t i = 0, n = tensor_count(k); i < n; i++) {
            if (dtype_is_float(type))
                tensor_set_f(c, i, tensor_get_f(k, i));
            else
                tensor_set_i(c, i, tensor_get_i(k, i));
        }
        stored = c;
    }
    Onnx__TensorProto *r = ARENA_NEW(&e->arena, Onnx__TensorProto);
    onnx__tensor_proto__init(r);
    r->name = arena_strdup(&e->arena, name);
    r->n_dims = t->n_dims;
    r->dims = t->dims;
    r->has_data_type = true;
    r->data_type = t->data_type;
    r->doc_string = t->doc_string;
    r->n_metadata_props = t->n_metadata_props;
    r->metadata_props = t->metadata_props;
    r->has_raw_data = true;
    r->raw_data = (ProtobufCBinaryData){tensor_bytes(stored), stored->data};
    return r;
}

/* External tensors that stay as they are are read in: the new file may lie elsewhere. */
static bool embed_external(Export *e, int i) {
    const Onnx__TensorProto *t = e->initializers.at[i];
    if (t->data_location != 1)
        return true;
    Tensor *k = onnx_tensor(&e->arena, t, "initializer", &e->external, e->d);
    if (!k)
        return false;
    if (dtype_from_onnx(t->data_type) == DT_NONE) {
        diag_error(e->d, EXIT_MODEL,
                   "initializer \"%s\" of 4-bit numbers in external data cannot be written back",
                   shown(e, t->name));
        return false;
    }
    e->initializers.at[i] = tensor_with(e, t, t->name, k);
    return e->initializers.at[i] != NULL;
}

/* "NAME@LAYER.EXPERT" of an initializer NAME. */
static bool parse_copy(Export *e, const NamedTensor *v, Copy *c) {
    const char *at = strrchr(v->name, '@');
    char *end;
    if (!at)
        return false;
    long layer = strtol(at + 1, &end, 10), expert = *end == '.' ? strtol(end + 1, &end, 10) : -1;
    if (*end || layer < 0 || expert < 0 || end == at + 1)
        return false;
    *c = (Copy){v, arena_printf(&e->arena, "%.*s", (int)(at - v->name), v->name), (int)layer,
                (int)expert};
    return strmap_get(&e->by_name, c->base) != NULL;
}

static int compare_copies(const void *a, const void *b) {
    const Copy *x = a, *y = b;
    int name = strcmp(x->base, y->base);
    return name ? name : x->layer != y->layer ? x->layer - y->layer : x->expert - y->expert;
}

/* Operands of nodes that compute with `name`, through Identity nodes, in node order. */
typedef struct SlotList {
    VEC(Slot) slots;
} SlotList;

static void find_slots(Export *e, const char *name, SlotList *out) {
    StrMap alias = {0};
    strmap_put(&alias, name, e);
    for (size_t i = 0; i < e->graph.n_node; i++) {
        const Onnx__NodeProto *n = e->nodes[i];
        for (size_t k = 0; k < n->n_input; k++) {
            if (!strmap_get(&alias, n->input[k]))
                continue;
            if (!strcmp(n->op_type, "Identity") && n->n_output == 1)
                strmap_put(&alias, n->output[0], e);
            else
                vec_push(&out->slots, ((Slot){(int)i, (int)k, text_or(n->name, "")}));
        }
    }
    strmap_free(&alias);
}

/* The number in `label` that tells it from `other`; -1 if they differ in more than one number. */
static long differing_number(const char *label, const char *other) {
    size_t i = 0;
    while (label[i] && label[i] == other[i])
        i++;
    while (i && strchr("0123456789", label[i - 1]) && label[i - 1])
        i--;
    char *end, *other_end;
    long v = strtol(label + i, &end, 10);
    strtol(other + i, &other_end, 10);
    return end != label + i && !strcmp(end, other_end) ? v : -1;
}

/* Puts slots in the order of their experts: by the numbers 0..n-1 in their nodes' names if those
 * are such, else as they are. */
static void order_slots(Export *e, Slot *slots, int n) {
    Slot *sorted = ARENA_ARRAY(&e->arena, Slot, n);
    bool *used = ARENA_ARRAY(&e->arena, bool, n);
    for (int i = 0; i < n; i++) {
        long k = n < 2 ? -1 : differing_number(slots[i].label, slots[i ? 0 : 1].label);
        if (k < 0 || k >= n || used[k])
            return;
        used[k] = true;
        sorted[k] = slots[i];
    }
    memcpy(slots, sorted, sizeof *slots * (size_t)n);
}

static void rewire(Export *e, const Slot *s, char *name) {
    if (!e->node_copied[s->node]) {
        Onnx__NodeProto *n = arena_copy(&e->arena, e->nodes[s->node], sizeof *n);
        n->input = arena_copy(&e->arena, n->input, sizeof *n->input * n->n_input);
        e->nodes[s->node] = n;
        e->node_copied[s->node] = true;
    }
    e->nodes[s->node]->input[s->input] = name;
}

/* Copies [0, n) of one initializer: as many as operands that read it, or nobody knows which is
 * whose. */
static bool place_copies(Export *e, const Copy *copies, int n) {
    SlotList list = {0};
    uintptr_t base = (uintptr_t)strmap_get(&e->by_name, copies[0].base);
    find_slots(e, copies[0].base, &list);
    bool fits = list.slots.n == n;
    if (!fits) {
        diag_error(
            e->d, EXIT_MODEL,
            "the %d copies of \"%s\" cannot be written back: %d operands read it, so which copy is "
            "whose is not certain",
            n, shown(e, copies[0].base), list.slots.n);
        diag_more(e->d, "export the model with the experts' weights differing, so that each has an "
                        "initializer of its own");
    } else {
        order_slots(e, list.slots.at, n);
    }
    for (int i = 0; fits && i < n; i++) {
        Onnx__TensorProto *t = tensor_with(e, e->initializers.at[base - 1], copies[i].value->name,
                                           copies[i].value->tensor);
        fits = t != NULL;
        if (t) {
            vec_push(&e->initializers, t);
            rewire(e, &list.slots.at[i], t->name);
        }
    }
    vec_free(&list.slots);
    return fits;
}

static bool replace_all(Export *e, const NamedTensor *values, int n) {
    bool ok = true;
    int ncopies = 0;
    Copy *copies = ARENA_ARRAY(&e->arena, Copy, n + 1);
    for (int i = 0; i < n; i++) {
        uintptr_t at = (uintptr_t)strmap_get(&e->by_name, values[i].name);
        if (at) {
            Onnx__TensorProto *t =
                tensor_with(e, e->initializers.at[at - 1], values[i].name, values[i].tensor);
            ok &= t != NULL;
            e->initializers.at[at - 1] = t ? t : e->initializers.at[at - 1];
        } else if (!parse_copy(e, &values[i], &copies[ncopies])) {
            diag_error(e->d, EXIT_MODEL, "the model has no initializer \"%s\"",
                       shown(e, values[i].name));
            ok = false;
        } else {
            ncopies++;
        }
    }
    for (int i = 0; ok && i < e->initializers.n; i++)
        ok = embed_external(e, i);
    if (ncopies)
        qsort(copies, (size_t)ncopies, sizeof *copies, compare_copies);
    for (int i = 0, k; ok && i < ncopies; i = k) {
        for (k = i + 1; k < ncopies && !strcmp(copies[k].base, copies[i].base); k++)
            ;
        ok = place_copies(e, copies + i, k - i);
    }
    return ok;
}

/* ---- writing ---- */

typedef struct Sink {
    ProtobufCBuffer base;
    FILE *to;
    bool failed;
} Sink;

static void sink_append(ProtobufCBuffer *b, size_t n, const uint8_t *bytes) {
    Sink *s = (Sink *)b;
    s->failed |= fwrite(bytes, 1, n, s->to) != n;
}

/* A new file beside `path`, its name into *name. */
static FILE *temporary(Export *e, const char *path, char **name) {
    *name = arena_printf(&e->arena, "%s.XXXXXX", path);
    int fd = mkostemp(*name, O_CLOEXEC);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "wb");
    if (!f)
        diag_error(e->d, EXIT_IO, "%s: %s", shown(e, path), strerror(errno));
    return f;
}

/* Flushes to the disk and gives the file its name; or removes it. */
static bool commit(Export *e, FILE *f, bool ok, const char *name, const char *path) {
    ok = ok && fflush(f) == 0 && fchmod(fileno(f), 0644) == 0 && fsync(fileno(f)) == 0;
    int why = errno;
    ok = fclose(f) == 0 && ok;
    if (ok && rename(name, path) == 0) {
        char *copy = arena_strdup(&e->arena, path);
        int dir = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (dir >= 0) {
            fsync(dir);
            close(dir);
        }
        return true;
    }
    diag_error(e->d, EXIT_IO, "%s could not be written: %s", shown(e, path),
               strerror(ok ? errno : why));
    unlink(name);
    return false;
}

static Onnx__StringStringEntryProto *entry(Export *e, const char *key, char *value) {
    Onnx__StringStringEntryProto *p = ARENA_NEW(&e->arena, Onnx__StringStringEntryProto);
    onnx__string_string_entry_proto__init(p);
    p->key = arena_strdup(&e->arena, key);
    p->value = value;
    return p;
}

/* Moves large raw tensors to PATH.data, each at a multiple of 4096. */
static bool write_external(Export *e, const char *path) {
    char *name, *data_path = arena_printf(&e->arena, "%s.data", path),
                *copy = arena_strdup(&e->arena, data_path);
    const char *location = basename(copy);
    struct stat st, in;
    for (int i = 0; stat(data_path, &st) == 0 && i < e->external.nfiles; i++) {
        if (fstat(e->external.at[i].fd, &in) == 0 && in.st_dev == st.st_dev &&
            in.st_ino == st.st_ino) {
            diag_error(e->d, EXIT_IO,
                       "%s holds data of the model that was read; it is not overwritten",
                       shown(e, data_path));
            return false;
        }
    }
    FILE *f = temporary(e, data_path, &name);
    if (!f)
        return false;
    int64_t at = 0;
    bool ok = true;
    for (int i = 0; ok && i < e->initializers.n; i++) {
        Onnx__TensorProto *t = e->initializers.at[i];
        if (!t->has_raw_data || t->raw_data.len < EXTERNAL_FROM)
            continue;
        ok = fseeko(f, (off_t)at, SEEK_SET) == 0 &&
             fwrite(t->raw_data.data, 1, t->raw_data.len, f) == t->raw_data.len;
        Onnx__TensorProto *r = arena_copy(&e->arena, t, sizeof *r);
        r->n_external_data = 3;
        r->external_data = ARENA_ARRAY(&e->arena, Onnx__StringStringEntryProto *, 3);
        r->external_data[0] = entry(e, "location", arena_strdup(&e->arena, location));
        r->external_data[1] = entry(e, "offset", arena_printf(&e->arena, "%lld", (long long)at));
        r->external_data[2] = entry(e, "length", arena_printf(&e->arena, "%zu", t->raw_data.len));
        r->has_data_location = true;
        r->data_location = 1;
        r->has_raw_data = false;
        r->raw_data = (ProtobufCBinaryData){0};
        at = (at + (int64_t)t->raw_data.len + 4095) / 4096 * 4096;
        e->initializers.at[i] = r;
    }
    return commit(e, f, ok, name, data_path);
}

static bool write_model(Export *e, const char *path) {
    e->graph.initializer = e->initializers.at;
    e->graph.n_initializer = (size_t)e->initializers.n;
    if (onnx__model_proto__get_packed_size(&e->model) > INT32_MAX) {
        if (!write_external(e, path))
            return false;
        e->graph.initializer = e->initializers.at;
    }
    char *name;
    FILE *f = temporary(e, path, &name);
    if (!f)
        return false;
    Sink sink = {{sink_append}, f, false};
    onnx__model_proto__pack_to_buffer(&e->model, &sink.base);
    return commit(e, f, !sink.failed, name, path);
}

static bool is_input(const Export *e, const char *path) {
    struct stat st;
    return e->file->path && stat(path, &st) == 0 && st.st_dev == e->file->dev &&
           st.st_ino == e->file->ino;
}

bool onnx_export_weights(const OnnxFile *f, const char *path, const NamedTensor *values, int n,
                         Diag *d) {
    Export e = {.file = f, .d = d, .model = *f->model, .graph = *f->model->graph};
    if (is_input(&e, path)) {
        diag_error(d, EXIT_IO,
                   "%s is the model that was read; it is not overwritten (choose another name)",
                   shown(&e, path));
        return false;
    }
    external_init(&e.external, f->dir);
    e.model.graph = &e.graph;
    e.nodes = arena_copy(&e.arena, e.graph.node, sizeof *e.nodes * e.graph.n_node);
    e.node_copied = ARENA_ARRAY(&e.arena, bool, e.graph.n_node + 1);
    e.graph.node = e.nodes;
    for (size_t i = 0; i < e.graph.n_initializer; i++) {
        vec_push(&e.initializers, e.graph.initializer[i]);
        strmap_put(&e.by_name, text_or(e.graph.initializer[i]->name, ""),
                   (void *)(uintptr_t)(i + 1));
    }
    bool ok = replace_all(&e, values, n) && write_model(&e, path);
    external_close(&e.external);
    strmap_free(&e.by_name);
    vec_free(&e.initializers);
    arena_free(&e.arena);
    return ok;
}
