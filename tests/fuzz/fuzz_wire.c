/* fuzz_wire.c: the wire scan, and what it promises: a message it lets through unpacks under the
 * same cap. */
#include <stdlib.h>

#include "frontend/onnx_wire.h"
#include "fuzz.h"
#include "onnx.pb-c.h"

static WireHeap heap;
static bool refused; /* an allocation did not fit the cap */

static void *watched_alloc(void *data, size_t n) {
    void *p = heap.allocator.alloc(heap.allocator.allocator_data, n);
    refused |= !p;
    return p;
}

static void watched_free(void *data, void *p) {
    heap.allocator.free(heap.allocator.allocator_data, p);
}

/* Unpacks and frees under a cap; nothing may be left. */
static void unpack(const uint8_t *bytes, size_t n, int64_t cap) {
    ProtobufCAllocator watched = {watched_alloc, watched_free, NULL};
    wire_heap_init(&heap, cap);
    refused = false;
    Onnx__ModelProto *m = onnx__model_proto__unpack(&watched, n, bytes);
    if (m)
        onnx__model_proto__free_unpacked(m, &watched);
    if (heap.used)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    enum { CAP = 8 << 20 };
    Diag d = {.subject = "fuzz"};
    WireLimits limits = {.max_nodes = 10000, .max_heap = CAP};
    if (!wire_scan(bytes, n, &onnx__model_proto__descriptor, &limits, &d)) {
        fuzz_check_refusal(&d);
    } else {
        unpack(bytes, n, 2 * CAP); /* the estimate must not be half of the truth */
        if (refused)
            abort();
        unpack(bytes, n, 4096); /* memory that runs out in the middle leaves nothing behind */
    }
    diag_free(&d);
    return 0;
}
