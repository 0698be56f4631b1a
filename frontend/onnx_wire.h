/* onnx_wire.h: a look over a protobuf message before anything is unpacked.
 *
 * protobuf-c trusts its input in depth and in memory. The scan walks the bytes once, guided by the
 * message descriptors, with a stack of its own and no heap, and refuses what could hurt: nesting,
 * lengths past the end, group wire types, overlong varints, strings that are no clean UTF-8, too
 * many messages, or a heap that would outgrow the cap. Every refusal names the byte and the field
 * path. `WireHeap` is the allocator of the unpacking that enforces the same cap. */
#ifndef STGCC_FRONTEND_ONNX_WIRE_H
#define STGCC_FRONTEND_ONNX_WIRE_H

#include <protobuf-c/protobuf-c.h>

#include "ir/base.h"

enum {
    WIRE_MAX_DEPTH = 100,    /* messages within messages */
    WIRE_MAX_SUBGRAPHS = 32, /* graphs within graphs */
    WIRE_MAX_NAME = 4096,    /* bytes of any string but documentation and metadata */
    WIRE_MAX_MESSAGES = 4000000,
};

typedef struct WireLimits {
    int64_t max_nodes; /* NodeProto messages */
    int64_t max_heap;  /* bytes that unpacking may take */
} WireLimits;

/* True if `bytes` is a well-formed message of type `desc` within the limits; else false with one
 * diagnostic. */
bool wire_scan(const uint8_t *bytes, size_t n, const ProtobufCMessageDescriptor *desc,
               const WireLimits *limits, Diag *d);

/* A heap with a cap. `allocator` is what protobuf-c takes; its data is the WireHeap itself. */
typedef struct WireHeap {
    ProtobufCAllocator allocator;
    int64_t used, cap;
} WireHeap;
void wire_heap_init(WireHeap *h, int64_t cap);

#endif
