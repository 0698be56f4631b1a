/* onnx_maker.h: ONNX models written byte by byte for tests, so that tests need no other program and
 * can write what no program would. A Bytes grows; each put_* appends one protobuf field. */
#ifndef STGCC_TESTS_ONNX_MAKER_H
#define STGCC_TESTS_ONNX_MAKER_H

#include <stdlib.h>
#include <string.h>

#include "ir/base.h"

typedef struct Bytes {
    uint8_t *at;
    size_t n;
} Bytes;

static inline void put_raw(Bytes *b, const void *p, size_t n) {
    b->at = xrealloc(b->at, b->n + n + 1);
    if (n)
        memcpy(b->at + b->n, p, n);
    b->n += n;
}
static inline void put_varint_raw(Bytes *b, uint64_t v) {
    for (; v > 127; v >>= 7)
        put_raw(b, &(uint8_t){(uint8_t)(v | 128)}, 1);
    put_raw(b, &(uint8_t){(uint8_t)v}, 1);
}
static inline void put_int(Bytes *b, int field, int64_t v) {
    put_varint_raw(b, (uint64_t)field << 3);
    put_varint_raw(b, (uint64_t)v);
}
static inline void put_bytes(Bytes *b, int field, const void *p, size_t n) {
    put_varint_raw(b, (uint64_t)field << 3 | 2);
    put_varint_raw(b, n);
    put_raw(b, p, n);
}
static inline void put_str(Bytes *b, int field, const char *s) {
    put_bytes(b, field, s, strlen(s));
}
static inline void put_f32(Bytes *b, int field, float v) {
    put_varint_raw(b, (uint64_t)field << 3 | 5);
    put_raw(b, &v, 4);
}
/* Appends message m and frees it. */
static inline void put_msg(Bytes *b, int field, Bytes m) {
    put_bytes(b, field, m.at, m.n);
    free(m.at);
}

/* "a b c" -> repeated field; "_" is an empty name. */
static inline void put_words(Bytes *b, int field, const char *words) {
    while (*words) {
        size_t n = strcspn(words, " ");
        put_bytes(b, field, words, n == 1 && *words == '_' ? 0 : n);
        words += n + (words[n] == ' ');
    }
}

static inline Bytes make_node(const char *op, const char *in, const char *out) {
    Bytes b = {0};
    put_words(&b, 1, in);
    put_words(&b, 2, out);
    put_str(&b, 4, op);
    return b;
}
static inline void put_attr_int(Bytes *node, const char *name, int64_t v) {
    Bytes a = {0};
    put_str(&a, 1, name);
    put_int(&a, 3, v);
    put_int(&a, 20, 2);
    put_msg(node, 5, a);
}
static inline void put_attr_float(Bytes *node, const char *name, float v) {
    Bytes a = {0};
    put_str(&a, 1, name);
    put_f32(&a, 2, v);
    put_int(&a, 20, 1);
    put_msg(node, 5, a);
}
static inline void put_attr_str(Bytes *node, const char *name, const char *v) {
    Bytes a = {0};
    put_str(&a, 1, name);
    put_str(&a, 4, v);
    put_int(&a, 20, 3);
    put_msg(node, 5, a);
}
static inline void put_attr_graph(Bytes *node, const char *name, Bytes g) {
    Bytes a = {0};
    put_str(&a, 1, name);
    put_msg(&a, 6, g);
    put_int(&a, 20, 5);
    put_msg(node, 5, a);
}

/* ValueInfoProto: type (ONNX number) and dims as words: numbers, names, or "?". */
static inline Bytes make_value(const char *name, int type, const char *dims) {
    Bytes shape = {0}, tensor = {0}, t = {0}, v = {0};
    while (*dims) {
        size_t n = strcspn(dims, " ");
        Bytes d = {0};
        char *end;
        long long k = strtoll(dims, &end, 10);
        if (end == dims + n)
            put_int(&d, 1, k);
        else if (!(n == 1 && *dims == '?'))
            put_bytes(&d, 2, dims, n);
        put_msg(&shape, 1, d);
        dims += n + (dims[n] == ' ');
    }
    put_int(&tensor, 1, type);
    put_msg(&tensor, 2, shape);
    put_msg(&t, 1, tensor);
    put_str(&v, 1, name);
    put_msg(&v, 2, t);
    return v;
}

static inline Bytes make_tensor(const char *name, int type, int rank, const int64_t *dims,
                                const void *raw, size_t n) {
    Bytes t = {0};
    for (int i = 0; i < rank; i++)
        put_int(&t, 1, dims[i]);
    put_int(&t, 2, type);
    put_str(&t, 8, name);
    if (raw)
        put_bytes(&t, 9, raw, n);
    return t;
}
static inline Bytes make_ints(const char *name, int n, const int64_t *v) {
    return make_tensor(name, 7, 1, (int64_t[]){n}, v, sizeof *v * (size_t)n);
}

enum { GRAPH_NODE = 1, GRAPH_INITIALIZER = 5, GRAPH_INPUT = 11, GRAPH_OUTPUT = 12 };

/* A model around graph g (which is freed). */
static inline Bytes make_model(Bytes g, int ir, int opset) {
    Bytes m = {0}, o = {0};
    put_int(&m, 1, ir);
    put_msg(&m, 7, g);
    put_str(&o, 1, "");
    put_int(&o, 2, opset);
    put_msg(&m, 8, o);
    return m;
}
static inline void model_opset(Bytes *m, const char *domain, int version) {
    Bytes o = {0};
    put_str(&o, 1, domain);
    put_int(&o, 2, version);
    put_msg(m, 8, o);
}

#endif
