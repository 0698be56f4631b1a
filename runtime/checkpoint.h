/* checkpoint.h: the whole state of a training in one file, written so that a kill at any moment
 * loses at most the steps since the last one, and read so that no damaged byte is ever used.
 *
 * File: "STGCCKPT", u32 version, u32 header bytes, u32 header CRC-32C; the header: i64 step, i64
 * samples taken, u64 seed, u64 model hash, u32 length and text of the recipe, u32 tensors, then for
 * each u16 length and name, u32 type, u32 rank, i64 dims, i64 offset, i64 bytes, u32 CRC-32C; the
 * tensors' bytes without holes up to the end. Little-endian. */
#ifndef STGC_RUNTIME_CHECKPOINT_H
#define STGC_RUNTIME_CHECKPOINT_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/runtime.h"

#define STGC_CHECKPOINT_VERSION 1

typedef struct StgcCkptTensor {
    const char *name;
    int32_t type, rank; /* ONNX type number */
    int64_t dims[8];
    int64_t bytes;
    const void *data;
} StgcCkptTensor;

typedef struct StgcCheckpoint {
    int64_t step;    /* steps done */
    int64_t samples; /* samples taken from the data: the position of the data loader */
    uint64_t seed, model_hash;
    const char *recipe; /* canonical YAML */
    uint32_t ntensors;
    StgcCkptTensor *tensors;
} StgcCheckpoint;

/* One run per directory: an exclusive lock on DIR/lock, made with the directory if need be. The
 * descriptor, or -1 with text. */
int stgc_run_lock(const char *dir, char *error, size_t n);

/* Writes DIR/step-NNNNNNNN.ckpt (temporary, reserve, write, sync, read back, rename, sync), then
 * DIR/latest, then removes all but the newest `keep` (at least 2). STGC_OK with text in error:
 * committed, but its durability is uncertain. Else not committed: nothing of it is left and the
 * older ones are. */
StgcStatus stgc_checkpoint_save(const char *dir, const StgcCheckpoint *c, int keep, char *error,
                                size_t n);

/* Reads and checks one file completely. NULL with a status and text. */
StgcCheckpoint *stgc_checkpoint_read(const char *path, StgcStatus *status, char *error, size_t n);
/* The newest sound one of DIR. Unsound ones are named in `warning` and left alone. NULL: none (text
 * says so). */
StgcCheckpoint *stgc_checkpoint_newest(const char *dir, char *warning, size_t nwarning,
                                       StgcStatus *status, char *error, size_t n);
void stgc_checkpoint_free(StgcCheckpoint *c);
/* The step of the newest checkpoint by name, -1 if there is none. */
int64_t stgc_checkpoint_last_step(const char *dir);

#endif
