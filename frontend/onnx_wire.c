/* onnx_wire.c: the wire scan of onnx_wire.h and the capped heap.
 *
 * One frame of the explicit stack is one open message: its descriptor, where it ends, the field it
 * came through. A field is looked up in the descriptor; unknown ones are skipped by their wire
 * type, as protobuf asks. The heap estimate adds what protobuf-c will allocate: each message's
 * struct, a pointer per repeated message or string, the bytes themselves. */
#include "frontend/onnx_wire.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/onnx_file.h"
#include "onnx.pb-c.h"

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5, ALLOC_OVERHEAD = 16 };

typedef struct WireFrame {
    const ProtobufCMessageDescriptor *desc;
    const ProtobufCFieldDescriptor *through; /* NULL for the outermost */
    size_t end;
    bool prose;  /* metadata: its strings may hold newlines and be long */
    bool has_op; /* a NodeProto's op_type was seen */
} WireFrame;

typedef struct WireScan {
    const uint8_t *bytes;
    size_t pos;
    WireFrame stack[WIRE_MAX_DEPTH + 1];
    int depth, subgraphs;
    int64_t messages, nodes, heap;
    const WireLimits *limits;
    Diag *d;
} WireScan;

/* "graph.node.attribute": the fields that lead to the open message. */
static const char *scan_path(WireScan *s) {
    char text[WIRE_MAX_DEPTH * 24];
    size_t n = 0;
    int from = s->depth > 8 ? s->depth - 8 : 1;
    for (int i = from; i < s->depth && n + 64 < sizeof text; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%s", i > from ? "." : "",
                              s->stack[i].through->name);
    if (!n)
        snprintf(text, sizeof text, "the outermost message");
    return arena_printf(&s->d->arena, "%s%s", from > 1 ? "…" : "", text);
}

/* One message for any refusal: where in the file, where in the structure, what. */
#define SCAN_FAIL(s, code, at, fmt, ...) \
    (diag_error((s)->d, code, "byte %zu: " fmt, (size_t)(at), __VA_ARGS__), \
     diag_more((s)->d, "in %s", scan_path(s)), false)

static bool read_varint(WireScan *s, size_t end, uint64_t *v) {
    size_t start = s->pos;
    *v = 0;
    for (int shift = 0; s->pos < end; shift += 7) {
        uint8_t byte = s->bytes[s->pos++];
        if (shift == 63 && byte > 1)
            return SCAN_FAIL(s, EXIT_MODEL, start, "a varint of more than %d bits", 64);
        *v |= (uint64_t)(byte & 127) << shift;
        if (byte < 128)
            return true;
    }
    return SCAN_FAIL(s, EXIT_MODEL, start, "the file ends inside a varint (%zu bytes left)",
                     end - start);
}

/* Position of the first byte that is no clean UTF-8 text, or `n`. Prose may hold control characters. */
static size_t utf8_bad(const uint8_t *p, size_t n, bool prose) {
    size_t i = 0;
    while (i < n) {
        uint32_t code = 0;
        int bytes = utf8_char(p + i, n - i, &code);
        bool control = code < 0x20 || (code >= 0x7f && code < 0xa0);
        if (!bytes || code == 0 || (control && !prose))
            break;
        i += (size_t)bytes;
    }
    return i;
}

static bool scan_string(WireScan *s, const ProtobufCFieldDescriptor *f, size_t len) {
    bool prose = s->stack[s->depth - 1].prose || !strcmp(f->name, "doc_string");
    if (!prose && len > WIRE_MAX_NAME)
        return SCAN_FAIL(s, EXIT_RESOURCE, s->pos, "%s is %zu bytes long; at most %d are accepted",
                         f->name, len, WIRE_MAX_NAME);
    size_t bad = utf8_bad(s->bytes + s->pos, len, prose);
    if (bad < len)
        return SCAN_FAIL(s, EXIT_MODEL, s->pos + bad,
                         "%s holds a byte 0x%02x that is not clean UTF-8 text", f->name,
                         s->bytes[s->pos + bad]);
    s->heap += (int64_t)len + 1 + ALLOC_OVERHEAD;
    return true;
}

static size_t scalar_size(ProtobufCType t) {
    switch (t) {
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return 8;
    default:
        return 4;
    }
}

static int scalar_wire(ProtobufCType t) {
    switch (t) {
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return WIRE_64;
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_FLOAT:
        return WIRE_32;
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_BYTES:
    case PROTOBUF_C_TYPE_MESSAGE:
        return WIRE_BYTES;
    default:
        return WIRE_VARINT;
    }
}

/* A packed list: whole elements only. */
static bool scan_packed(WireScan *s, const ProtobufCFieldDescriptor *f, size_t len) {
    size_t end = s->pos + len, start = s->pos;
    int64_t count = 0;
    int wire = scalar_wire(f->type);
    if (wire == WIRE_VARINT) {
        for (uint64_t v; s->pos < end; count++)
            if (!read_varint(s, end, &v))
                return false;
    } else {
        size_t each = wire == WIRE_64 ? 8 : 4;
        if (len % each)
            return SCAN_FAIL(s, EXIT_MODEL, start, "%s: %zu bytes are no whole number of elements",
                             f->name, len);
        count = (int64_t)(len / each);
        s->pos = end;
    }
    s->heap += count * (int64_t)scalar_size(f->type) + ALLOC_OVERHEAD;
    return true;
}

static bool scan_push(WireScan *s, const ProtobufCMessageDescriptor *desc,
                      const ProtobufCFieldDescriptor *f, size_t end) {
    if (s->depth > WIRE_MAX_DEPTH - 1)
        return SCAN_FAIL(s, EXIT_RESOURCE, s->pos, "messages nest deeper than %d", WIRE_MAX_DEPTH);
    if (desc == &onnx__graph_proto__descriptor && ++s->subgraphs > WIRE_MAX_SUBGRAPHS + 1)
        return SCAN_FAIL(s, EXIT_RESOURCE, s->pos, "subgraphs nest deeper than %d",
                         WIRE_MAX_SUBGRAPHS);
    if (++s->messages > WIRE_MAX_MESSAGES)
        return SCAN_FAIL(s, EXIT_RESOURCE, s->pos, "more than %d messages", WIRE_MAX_MESSAGES);
    if (desc == &onnx__node_proto__descriptor && ++s->nodes > s->limits->max_nodes)
        return SCAN_FAIL(s, EXIT_RESOURCE, s->pos, "more than %lld nodes (--max-nodes raises it)",
                         (long long)s->limits->max_nodes);
    bool repeated = f && f->label == PROTOBUF_C_LABEL_REPEATED;
    s->heap += (int64_t)desc->sizeof_message + ALLOC_OVERHEAD + (repeated ? 8 : 0);
    bool prose = f && (!strcmp(f->name, "metadata_props") || s->stack[s->depth - 1].prose);
    s->stack[s->depth++] = (WireFrame){.desc = desc, .through = f, .end = end, .prose = prose};
    return true;
}

static bool scan_pop(WireScan *s) {
    WireFrame *top = &s->stack[s->depth - 1];
    if (top->desc == &onnx__node_proto__descriptor && !top->has_op)
        return SCAN_FAIL(s, EXIT_MODEL, s->pos, "a node without an operator (%s is missing)",
                         "op_type");
    if (top->desc == &onnx__graph_proto__descriptor)
        s->subgraphs--;
    s->depth--;
    return true;
}

/* A length-delimited field's payload of `len` bytes at s->pos. */
static bool scan_payload(WireScan *s, const ProtobufCFieldDescriptor *f, size_t len) {
    if (!f) {
        s->heap += (int64_t)(sizeof(ProtobufCMessageUnknownField) + len + ALLOC_OVERHEAD);
        s->pos += len;
        return true;
    }
    switch (f->type) {
    case PROTOBUF_C_TYPE_MESSAGE:
        return scan_push(s, f->descriptor, f, s->pos + len);
    case PROTOBUF_C_TYPE_STRING:
        if (!scan_string(s, f, len))
            return false;
        break;
    case PROTOBUF_C_TYPE_BYTES:
        s->heap += (int64_t)len + ALLOC_OVERHEAD;
        break;
    default:
        return scan_packed(s, f, len);
    }
    s->heap += f->label == PROTOBUF_C_LABEL_REPEATED ? 16 : 0;
    s->pos += len;
    return true;
}

static bool scan_field(WireScan *s, WireFrame *top) {
    size_t at = s->pos;
    uint64_t tag, v;
    if (!read_varint(s, top->end, &tag))
        return false;
    int wire = (int)(tag & 7);
    if (tag >> 3 == 0 || tag >> 3 > 536870911)
        return SCAN_FAIL(s, EXIT_MODEL, at, "field number %llu is outside 1 to 536870911",
                         (unsigned long long)(tag >> 3));
    const ProtobufCFieldDescriptor *f =
        protobuf_c_message_descriptor_get_field(top->desc, (unsigned)(tag >> 3));
    if (f && wire != scalar_wire(f->type) &&
        !(wire == WIRE_BYTES && f->label == PROTOBUF_C_LABEL_REPEATED))
        return SCAN_FAIL(s, EXIT_MODEL, at, "field %s has wire type %d; expected %d", f->name, wire,
                         scalar_wire(f->type));
    if (f && top->desc == &onnx__node_proto__descriptor && f->id == 4)
        top->has_op = true;
    size_t left;
    switch (wire) {
    case WIRE_VARINT:
        if (!read_varint(s, top->end, &v))
            return false;
        break;
    case WIRE_64:
    case WIRE_32:
        left = top->end - s->pos;
        if (left < (wire == WIRE_64 ? 8u : 4u))
            return SCAN_FAIL(s, EXIT_MODEL, at,
                             "a fixed-size field ends past its message (%zu left)", left);
        s->pos += wire == WIRE_64 ? 8 : 4;
        break;
    case WIRE_BYTES:
        if (!read_varint(s, top->end, &v))
            return false;
        left = top->end - s->pos;
        if (v > left)
            return SCAN_FAIL(
                s, EXIT_MODEL, at,
                "%s is %llu bytes long, but only %zu are left: the file is truncated or "
                "damaged",
                f ? f->name : "a field", (unsigned long long)v, left);
        return scan_payload(s, f, (size_t)v);
    default:
        return SCAN_FAIL(s, EXIT_MODEL, at, "wire type %d is not accepted", wire);
    }
    if (!f)
        s->heap += (int64_t)sizeof(ProtobufCMessageUnknownField) + 10 + ALLOC_OVERHEAD;
    else if (f->label == PROTOBUF_C_LABEL_REPEATED)
        s->heap += (int64_t)scalar_size(f->type);
    return true;
}

bool wire_scan(const uint8_t *bytes, size_t n, const ProtobufCMessageDescriptor *desc,
               const WireLimits *limits, Diag *d) {
    WireScan s = {.bytes = bytes, .limits = limits, .d = d};
    if (!scan_push(&s, desc, NULL, n))
        return false;
    while (s.depth) {
        WireFrame *top = &s.stack[s.depth - 1];
        if (s.pos == top->end ? !scan_pop(&s) : !scan_field(&s, top))
            return false;
        if (s.heap > limits->max_heap)
            return SCAN_FAIL(&s, EXIT_RESOURCE, s.pos,
                             "unpacking would take more than %lld bytes (--max-heap raises it)",
                             (long long)limits->max_heap);
    }
    return true;
}

/* ---- the capped heap ---- */

static void *heap_alloc(void *data, size_t size) {
    WireHeap *h = data;
    if (size > (size_t)INT64_MAX || h->used + (int64_t)size > h->cap)
        return NULL;
    void *p = onnx_memory(size);
    if (p)
        h->used += (int64_t)malloc_usable_size(p);
    return p;
}

static void heap_free(void *data, void *p) {
    WireHeap *h = data;
    if (p)
        h->used -= (int64_t)malloc_usable_size(p);
    free(p);
}

void wire_heap_init(WireHeap *h, int64_t cap) {
    *h = (WireHeap){.allocator = {heap_alloc, heap_free, h}, .cap = cap};
}
