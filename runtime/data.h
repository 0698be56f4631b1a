/* data.h: token files as an endless, seeded sequence of samples.
 *
 * A file is a row of tokens (u8, u16 or u32, little-endian), cut into windows of `sequence` tokens.
 * Sample p of the sequence is a function of (seed, p) alone: epoch p / windows, a permutation of
 * the windows for each epoch. So the only state of a data loader is how many samples were taken,
 * and a resumed run sees what it would have seen. */
#ifndef STGC_RUNTIME_DATA_H
#define STGC_RUNTIME_DATA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/runtime.h"

typedef struct StgcTokens StgcTokens;

/* next_labels: a sample's labels are its tokens one further (a window needs one token more); else
 * the tokens themselves. NULL with text in error (n bytes). */
StgcTokens *stgc_tokens_open(const char *path, int token_bytes, int64_t sequence, bool next_labels,
                             bool shuffle, uint64_t seed, char *error, size_t n);
void stgc_tokens_close(StgcTokens *t);
int64_t stgc_tokens_count(const StgcTokens *t);
int64_t stgc_tokens_windows(const StgcTokens *t);
/* Sample `position` into ids and labels (sequence values each). A token that is not below `limit`
 * (0: no limit) is STGC_ERR_DATA, naming its place in the file. */
StgcStatus stgc_tokens_sample(StgcTokens *t, int64_t position, int64_t limit, int64_t *ids,
                              int64_t *labels, char *error, size_t n);
/* The window that sample `position` is. */
int64_t stgc_tokens_window(const StgcTokens *t, int64_t position);
/* A permutation of 0..n-1, one for each key: where i goes. */
int64_t stgc_permute(int64_t i, int64_t n, uint64_t key);

#endif
