/* npz.h: the .npy header, shared by reader and writer of .npz. */
#ifndef STGCC_FRONTEND_NPZ_H
#define STGCC_FRONTEND_NPZ_H

#include "ir/tensor.h"

typedef struct NpyHeader {
    DType dtype;
    int rank;
    int64_t dims[MAX_RANK];
    size_t bytes; /* of the header: where the data start */
} NpyHeader;

/* Reads the header at the start of `p` (n bytes at hand). NULL, or what is wrong with it (static
 * text). */
const char *npy_parse(const unsigned char *p, size_t n, NpyHeader *out);
/* Bytes that must be at hand for npy_parse, from the first 12; 0 if they are no .npy. */
size_t npy_header_bytes(const unsigned char *p, size_t n);
/* Writes a header into `p` (at least 512 bytes), a multiple of 64 bytes; returns its length. bf16
 * has no numpy type. */
size_t npy_format(unsigned char *p, DType t, int rank, const int64_t *dims);

#endif
