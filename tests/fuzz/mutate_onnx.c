/* mutate_onnx.c: libFuzzer's mutator for ONNX: it changes one field of one message and repairs the
 * lengths around it, so that most of what it makes is protobuf again. Operators and attribute names
 * come from the importer's own table, other names from the model. One time in eight it changes
 * plain bytes instead, as libFuzzer would. */
#include <stdlib.h>
#include <string.h>

#include "frontend/onnx_import.h"
#include "fuzz.h"
#include "onnx.pb-c.h"

size_t LLVMFuzzerMutate(uint8_t *bytes, size_t n, size_t max);
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t n, size_t max, unsigned seed);

static uint64_t state;

static uint64_t pick(uint64_t n) { /* splitmix64 */
    uint64_t x = state += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (x ^ x >> 31) % n;
}

/* ---- output ---- */

typedef struct Out {
    uint8_t *at;
    size_t n, cap;
} Out;

static void put(Out *o, const void *p, size_t n) {
    if (o->n + n > o->cap) {
        o->cap = 2 * (o->n + n) + 64;
        o->at = xrealloc(o->at, o->cap);
    }
    if (n)
        memcpy(o->at + o->n, p, n);
    o->n += n;
}

static void put_varint(Out *o, uint64_t v) {
    for (; v > 127; v >>= 7)
        put(o, &(uint8_t){(uint8_t)(v | 128)}, 1);
    put(o, &(uint8_t){(uint8_t)v}, 1);
}

static void put_block(Out *o, uint64_t tag, const void *p, size_t n) {
    put_varint(o, tag);
    put_varint(o, n);
    put(o, p, n);
}

/* ---- the fields of one message ---- */

typedef struct Field {
    uint64_t tag;
    const uint8_t *start, *body; /* body: after tag and length */
    size_t n;                    /* of the body */
} Field;

static bool get_varint(const uint8_t **p, const uint8_t *end, uint64_t *v) {
    *v = 0;
    for (int shift = 0; *p < end && shift < 64; shift += 7) {
        uint8_t b = *(*p)++;
        *v |= (uint64_t)(b & 127) << shift;
        if (b < 128)
            return true;
    }
    return false;
}

enum { MAX_FIELDS = 512 };

static int split(const uint8_t *p, size_t n, Field *f) {
    const uint8_t *end = n ? p + n : p;
    int count = 0;
    while (p < end && count < MAX_FIELDS) {
        uint64_t tag, len;
        const uint8_t *start = p;
        if (!get_varint(&p, end, &tag))
            break;
        const uint8_t *body = p;
        switch (tag & 7) {
        case 0:
            if (!get_varint(&p, end, &len))
                return count;
            len = (uint64_t)(p - body);
            p = body;
            break;
        case 1:
            len = 8;
            break;
        case 5:
            len = 4;
            break;
        case 2:
            if (!get_varint(&p, end, &len))
                return count;
            body = p;
            break;
        default:
            return count;
        }
        if (len > (uint64_t)(end - body))
            break;
        p = body + len;
        f[count++] = (Field){tag, start, body, (size_t)len};
    }
    return count;
}

static const ProtobufCFieldDescriptor *describe(const ProtobufCMessageDescriptor *d, uint64_t tag) {
    return protobuf_c_message_descriptor_get_field(d, (unsigned)(tag >> 3));
}

/* ---- what a field may become ---- */

static const uint8_t *whole; /* the input, where names and messages are borrowed from */
static size_t whole_n;

/* A random field of the input whose descriptor is `want`, found by walking down at random; NULL if
 * the walk misses. */
static const ProtobufCFieldDescriptor *borrow(const ProtobufCMessageDescriptor *want_message,
                                              bool name, Field *out) {
    static Field f[MAX_FIELDS];
    for (int attempt = 0; attempt < 24; attempt++) {
        const ProtobufCMessageDescriptor *d = &onnx__model_proto__descriptor;
        const uint8_t *p = whole;
        size_t n = whole_n;
        for (int depth = 0; depth < 12; depth++) {
            int count = split(p, n, f);
            if (!count)
                break;
            Field at = f[pick((uint64_t)count)];
            const ProtobufCFieldDescriptor *fd = describe(d, at.tag);
            if (!fd || (at.tag & 7) != 2)
                break;
            bool message = fd->type == PROTOBUF_C_TYPE_MESSAGE;
            if (message ? fd->descriptor == want_message && pick(3) == 0
                        : name && fd->type == PROTOBUF_C_TYPE_STRING) {
                *out = at;
                return fd;
            }
            if (!message)
                break;
            d = fd->descriptor;
            p = at.body;
            n = at.n;
        }
    }
    return NULL;
}

/* "axis:int keepdims:int!" -> one of the names. */
static size_t attribute_name(const char *attrs, const char **name) {
    int words = 1;
    for (const char *p = attrs; *p; p++)
        words += *p == ' ';
    for (uint64_t skip = pick((uint64_t)words); skip; skip--)
        attrs += strcspn(attrs, " ") + 1;
    *name = attrs;
    return strcspn(attrs, ":");
}

static void put_text(Out *o, const ProtobufCMessageDescriptor *d, uint64_t tag, const Field *f) {
    const char *text = "";
    const OpRow *row = &op_rows[pick((uint64_t)op_row_count)];
    Field other;
    if (d == &onnx__node_proto__descriptor && tag >> 3 == 4 && pick(8)) {
        text = row->op_type;
    } else if (d == &onnx__attribute_proto__descriptor && tag >> 3 == 1 && pick(4)) {
        size_t n = attribute_name(row->attrs, &text);
        put_block(o, tag, text, n);
        return;
    } else if (pick(4) && borrow(NULL, true, &other)) {
        put_block(o, tag, other.body, other.n);
        return;
    } else if (pick(2)) {
        static uint8_t scratch[4096];
        size_t n = f->n < 2048 ? f->n : 2048;
        memcpy(scratch, f->body, n);
        put_block(o, tag, scratch, LLVMFuzzerMutate(scratch, n, sizeof scratch));
        return;
    }
    put_block(o, tag, text, strlen(text));
}

static uint64_t number(const Field *f) {
    static const int64_t special[] = {0,
                                      1,
                                      2,
                                      3,
                                      7,
                                      8,
                                      -1,
                                      -2,
                                      16,
                                      127,
                                      128,
                                      255,
                                      1 << 16,
                                      INT32_MAX,
                                      INT32_MIN,
                                      (int64_t)1 << 40,
                                      INT64_MAX,
                                      INT64_MIN,
                                      INT64_MAX - 1};
    uint64_t v = 0;
    const uint8_t *p = f->body;
    get_varint(&p, f->body + f->n, &v);
    switch (pick(4)) {
    case 0:
        return v + 1;
    case 1:
        return v - 1;
    case 2:
        return pick(20);
    default:
        return (uint64_t)special[pick(COUNT_OF(special))];
    }
}

static void put_bytes_changed(Out *o, uint64_t tag, const Field *f) {
    static uint8_t scratch[1 << 16];
    size_t n = f->n < sizeof scratch / 2 ? f->n : sizeof scratch / 2;
    memcpy(scratch, f->body, n);
    put_block(o, tag, scratch, LLVMFuzzerMutate(scratch, n, pick(2) && n ? n : sizeof scratch));
}

static void change_message(Out *o, const ProtobufCMessageDescriptor *d, const uint8_t *p, size_t n,
                           int depth);

/* A new value for one field. */
static void change_field(Out *o, const ProtobufCMessageDescriptor *d, const Field *f, int depth) {
    const ProtobufCFieldDescriptor *fd = describe(d, f->tag);
    Field other;
    if (fd && fd->type == PROTOBUF_C_TYPE_MESSAGE && (f->tag & 7) == 2) {
        if (pick(8) == 0 && borrow(fd->descriptor, false, &other)) {
            put_block(o, f->tag, other.body, other.n);
            return;
        }
        Out inner = {0};
        change_message(&inner, fd->descriptor, f->body, f->n, depth + 1);
        put_block(o, f->tag, inner.at, inner.n);
        free(inner.at);
    } else if (fd && fd->type == PROTOBUF_C_TYPE_STRING && (f->tag & 7) == 2) {
        put_text(o, d, f->tag, f);
    } else if ((f->tag & 7) == 0) {
        put_varint(o, f->tag);
        put_varint(o, number(f));
    } else if ((f->tag & 7) == 2) {
        put_bytes_changed(o, f->tag, f);
    } else {
        uint8_t fixed[8];
        memcpy(fixed, f->body, f->n);
        LLVMFuzzerMutate(fixed, f->n, f->n);
        put_varint(o, f->tag);
        put(o, fixed, f->n);
    }
}

/* A field that the message did not have. */
static void put_new(Out *o, const ProtobufCMessageDescriptor *d) {
    const ProtobufCFieldDescriptor *fd = &d->fields[pick(d->n_fields)];
    Field other, none = {.body = (const uint8_t *)"", .n = 0};
    uint64_t id = (uint64_t)fd->id << 3;
    switch (fd->type) {
    case PROTOBUF_C_TYPE_MESSAGE:
        if (borrow(fd->descriptor, false, &other))
            put_block(o, id | 2, other.body, other.n);
        break;
    case PROTOBUF_C_TYPE_STRING:
        put_text(o, d, id | 2, &none);
        break;
    case PROTOBUF_C_TYPE_BYTES:
        put_bytes_changed(o, id | 2, &none);
        break;
    case PROTOBUF_C_TYPE_FLOAT:
        put_varint(o, id | 5);
        put(o, &(float){(float)pick(100) / 10 - 2}, 4);
        break;
    case PROTOBUF_C_TYPE_DOUBLE:
        put_varint(o, id | 1);
        put(o, &(double){(double)pick(100) / 10 - 2}, 8);
        break;
    default:
        put_varint(o, id);
        put_varint(o, number(&none));
    }
}

static void change_message(Out *o, const ProtobufCMessageDescriptor *d, const uint8_t *p, size_t n,
                           int depth) {
    Field *f = xcalloc(MAX_FIELDS, sizeof *f);
    int count = split(p, n, f);
    uint64_t what = count ? pick(16) : 0;
    int at = count ? (int)pick((uint64_t)count) : 0;
    if (count && depth < 2 && pick(16)) { /* what lies in the graph's nodes is where the code is */
        uint64_t wanted = depth == 0 ? 7 : pick(8) ? 1 : 5;
        for (int i = 0; i < count; i++, at = (at + 1) % count)
            if (f[at].tag >> 3 == wanted)
                break;
        what = depth == 0 || pick(8) ? 5 : what;
    }
    for (int i = 0; i < count; i++) {
        size_t bytes = (size_t)(f[i].body + f[i].n - f[i].start);
        if (i == at && what == 1) /* gone */
            continue;
        if (i == at && what > 4)
            change_field(o, d, &f[i], depth);
        else if (i == at && what == 3 && i + 1 < count) { /* two change places */
            put(o, f[i + 1].start, (size_t)(f[i + 1].body + f[i + 1].n - f[i + 1].start));
            put(o, f[i].start, bytes);
            i++;
            continue;
        } else
            put(o, f[i].start, bytes);
        if (i == at && what == 2) /* twice */
            put(o, f[i].start, bytes);
        if (i == at && what == 4)
            put_new(o, d);
    }
    if (what == 0)
        put_new(o, d);
    free(f);
}

size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t n, size_t max, unsigned seed) {
    state = seed;
    if (pick(8) == 0)
        return LLVMFuzzerMutate(bytes, n, max);
    Out o = {0};
    whole = bytes;
    whole_n = n;
    change_message(&o, &onnx__model_proto__descriptor, bytes, n, 0);
    for (uint64_t more = pick(3); more && o.n <= max; more--) {
        Out again = {0};
        whole = o.at;
        whole_n = o.n;
        change_message(&again, &onnx__model_proto__descriptor, o.at, o.n, 0);
        free(o.at);
        o = again;
    }
    size_t out = o.n < max ? o.n : max;
    if (out)
        memcpy(bytes, o.at, out);
    free(o.at);
    return out;
}
