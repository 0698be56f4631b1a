/* cuda_arena.c: an arena in device memory, and the host's copy of its slots.
 *
 * A value has up to three copies: in device memory, in the host's arena, and where the step was
 * compiled (initial bytes, or zeros). Of every block it is known which of them are current; bytes
 * move only when the one that is needed is not. */
#include "runtime/cuda.h"

#include <stdlib.h>
#include <string.h>

CudaArena *cuda_arena_new(CudaDevice *d, char *host) {
    CudaArena *a = calloc(1, sizeof *a);
    if (!a)
        return NULL;
    a->device = d;
    a->host = host;
    return a;
}

void cuda_arena_free(CudaArena *a) {
    if (!a)
        return;
    a->device->cu.cuStreamSynchronize(a->device->stream);
    cuda_free(a->device, a->base);
    for (int32_t i = 0; i < a->nblocks; i++)
        free(a->blocks[i]);
    free(a->blocks);
    free(a);
}

/* ---- blocks ---- */

static CudaBlock *add_block(CudaArena *a) {
    if (a->nblocks == a->room) {
        int32_t room = a->room ? 2 * a->room : 64;
        CudaBlock **more = realloc(a->blocks, (size_t)room * sizeof *more);
        if (!more)
            return NULL;
        a->blocks = more;
        a->room = room;
    }
    CudaBlock *b = calloc(1, sizeof *b);
    if (b)
        a->blocks[a->nblocks++] = b;
    return b;
}

CudaBlock *cuda_arena_block(CudaArena *a, const StgcSlot *slot, bool persists, const void *owner) {
    for (int32_t i = 0; persists && i < a->nblocks; i++) {
        CudaBlock *b = a->blocks[i];
        if (!b->owner && slot->offset >= b->offset &&
            slot->offset + slot->bytes <= b->offset + b->bytes)
            return b;
    }
    CudaBlock *b = add_block(a);
    if (b)
        *b = (CudaBlock){.offset = slot->offset,
                         .bytes = slot->bytes,
                         .init = slot->init,
                         .owner = persists ? NULL : owner,
                         .initial = true};
    return b;
}

void cuda_arena_forget(CudaArena *a, const void *owner) {
    int32_t n = 0;
    for (int32_t i = 0; i < a->nblocks; i++) {
        if (a->blocks[i]->owner == owner)
            free(a->blocks[i]);
        else
            a->blocks[n++] = a->blocks[i];
    }
    a->nblocks = n;
}

/* ---- copies ---- */

StgcStatus cuda_block_to_host(CudaArena *a, CudaBlock *b) {
    StgcStatus status = STGC_OK;
    if (b->host)
        return STGC_OK;
    if (b->initial && b->init && b->bytes)
        memcpy(a->host + b->offset, b->init, (size_t)b->bytes);
    else if (b->initial)
        memset(a->host + b->offset, 0, (size_t)b->bytes);
    else
        status =
            cuda_download(a->device, a->host + b->offset, a->base + (CuAddress)b->offset, b->bytes);
    b->host = status == STGC_OK;
    return status;
}

void cuda_block_changed(CudaBlock *b) {
    b->host = true;
    b->device = b->initial = false;
}

StgcStatus cuda_block_to_device(CudaArena *a, CudaBlock *b) {
    CuAddress to = a->base + (CuAddress)b->offset;
    StgcStatus status = STGC_OK;
    if (b->device)
        return STGC_OK;
    if (b->host)
        status = cuda_upload(a->device, to, a->host + b->offset, b->bytes);
    else if (b->init)
        status = cuda_upload(a->device, to, b->init, b->bytes);
    else
        status = cuda_zero(a->device, to, b->bytes);
    b->device = status == STGC_OK;
    return status;
}

StgcStatus cuda_block_take(CudaArena *a, CudaBlock *to, CudaArena *from_arena, CudaBlock *from) {
    to->host = to->device = to->initial = false;
    if (from->device) {
        CudaDevice *d = a->device;
        CuResult r = from->bytes
                         ? d->cu.cuMemcpyDtoDAsync(a->base + (CuAddress)to->offset,
                                                   from_arena->base + (CuAddress)from->offset,
                                                   (size_t)from->bytes, d->stream)
                         : CU_OK;
        to->device = true; /* if this fails, the value is nowhere: the device is lost */
        if (r != CU_OK)
            return cuda_fail(d, r, "a copy on the GPU failed");
    } else if (from->host) {
        memcpy(a->host + to->offset, from_arena->host + from->offset, (size_t)from->bytes);
        to->host = true;
    } else {
        to->initial = true;
        to->init = from->init;
    }
    return STGC_OK;
}

/* ---- device memory ---- */

/* Saves what only the device has: then its memory can be given up. */
static StgcStatus save_all(CudaArena *a) {
    StgcStatus status = STGC_OK;
    for (int32_t i = 0; i < a->nblocks && status == STGC_OK; i++) {
        CudaBlock *b = a->blocks[i];
        if (!b->host && !b->initial)
            status = cuda_block_to_host(a, b);
    }
    for (int32_t i = 0; i < a->nblocks && status == STGC_OK; i++)
        a->blocks[i]->device = false;
    return status;
}

StgcStatus cuda_arena_open(CudaArena *a, int64_t bytes) {
    CudaDevice *d = a->device;
    if (a->base && bytes <= a->bytes)
        return STGC_OK;
    StgcStatus status = a->base ? save_all(a) : STGC_OK;
    if (status != STGC_OK)
        return status;
    if (a->base && (status = cuda_wait(d, "a step failed")) != STGC_OK)
        return status;
    cuda_free(d, a->base);
    a->base = 0;
    a->generation++;
    status = cuda_alloc(d, bytes, "the step", &a->base);
    a->bytes = status == STGC_OK ? bytes : 0;
    return status;
}
