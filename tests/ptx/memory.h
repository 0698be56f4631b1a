/* memory.h: what exec_mem.c gives to cp.async and ldmatrix. */
#ifndef STGCC_TESTS_PTX_MEMORY_H
#define STGCC_TESTS_PTX_MEMORY_H

#include "ptx.h"

#include <string.h>

/* memcpy of 1, 2, 4 or 8 bytes: of constant sizes, for which the compiler has better than a loop.
 */
static inline void ptx_copy_word(void *to, const void *from, unsigned bytes) {
    switch (bytes) {
    case 1:
        memcpy(to, from, 1);
        break;
    case 2:
        memcpy(to, from, 2);
        break;
    case 4:
        memcpy(to, from, 4);
        break;
    default:
        memcpy(to, from, 8);
        break;
    }
}

void ptx_lane_addresses(const PtxWarp *w, const PtxOperand *o, uint64_t at[LANES]);
/* The memory of an access (alignment: its size, or any) and the offset in it; NULL: reported. */
PtxAlloc *ptx_resolve(PtxWarp *w, const PtxInstr *i, int lane, int space, uint64_t at,
                      unsigned bytes, uint64_t *offset);
PtxAlloc *ptx_resolve_unaligned(PtxWarp *w, const PtxInstr *i, int lane, int space, uint64_t at,
                                unsigned bytes, uint64_t *offset);
bool ptx_checked_read(PtxWarp *w, const PtxInstr *i, int lane, PtxAlloc *a, uint64_t offset,
                      unsigned bytes, void *to);
void *ptx_grow(void *array, int *cap, int need, size_t size);

#endif
