/* fuzz_checkpoint.c: checkpoint bytes. The mutator repairs the header's length and checksum most of
 * the time, or nothing behind them would ever be reached. */
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "runtime/checkpoint.h"
#include "runtime/crc32c.h"

size_t LLVMFuzzerMutate(uint8_t *bytes, size_t n, size_t max);
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t n, size_t max, unsigned seed);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    char error[512] = "";
    StgcStatus status = STGC_OK;
    StgcCheckpoint *c = stgc_checkpoint_read(fuzz_file(bytes, n), &status, error, sizeof error);
    if (!c && (status == STGC_OK || !*error))
        abort();
    if (c && (status != STGC_OK || c->step < 0 || strlen(c->recipe) > n))
        abort();
    for (uint32_t i = 0; c && i < c->ntensors; i++) {
        const StgcCkptTensor *t = &c->tensors[i];
        static volatile uint64_t sink;
        sink = hash_bytes(t->data, (size_t)t->bytes, strlen(t->name));
        (void)sink;
    }
    stgc_checkpoint_free(c);
    return 0;
}

#ifdef STGCC_FUZZ
static void put_u32(uint8_t *p, uint32_t v) {
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t n, size_t max, unsigned seed) {
    enum { PREFIX = 20 };
    n = LLVMFuzzerMutate(bytes, n, max);
    if (n < PREFIX || seed % 8 == 0)
        return n;
    uint32_t header = (uint32_t)bytes[12] | (uint32_t)bytes[13] << 8 | (uint32_t)bytes[14] << 16 |
                      (uint32_t)bytes[15] << 24;
    if (header > n - PREFIX)
        put_u32(bytes + 12, header = (uint32_t)(n - PREFIX));
    put_u32(bytes + 16, stgc_crc32c(0, bytes + PREFIX, header));
    return n;
}
#endif
