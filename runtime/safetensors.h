/* safetensors.h: tensors by name in one file: a u64 length, a JSON header of names, types, shapes
 * and places, the bytes without holes. Read with everything checked before any of it is used. */
#ifndef STGC_RUNTIME_SAFETENSORS_H
#define STGC_RUNTIME_SAFETENSORS_H

#include <stddef.h>

#include "runtime/checkpoint.h"

typedef struct StgcSafetensors {
    uint32_t n;
    StgcCkptTensor *tensors; /* data: NULL for a file; use stgc_safetensors_read */
    int fd;                  /* -1: from memory */
    const unsigned char *bytes;
    int64_t *places; /* from the start of the file */
    char *names;
} StgcSafetensors;

/* Of a file, or (path NULL) of `n` bytes in memory that outlive it. NULL with a status and text. */
StgcSafetensors *stgc_safetensors_open(const char *path, const void *bytes, size_t n,
                                       StgcStatus *status, char *error, size_t nerror);
/* The bytes of tensor i. */
StgcStatus stgc_safetensors_read(const StgcSafetensors *s, uint32_t i, void *to, char *error,
                                 size_t nerror);
void stgc_safetensors_close(StgcSafetensors *s);

/* Whole or not at all: a temporary beside it, synced, renamed. */
StgcStatus stgc_safetensors_write(const char *path, const StgcCkptTensor *tensors, uint32_t n,
                                  char *error, size_t nerror);

#endif
