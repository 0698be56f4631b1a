/* data.c: token files. See data.h. */
#include "runtime/data.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct StgcTokens {
    int fd, token_bytes;
    int64_t sequence, count, windows;
    bool next_labels, shuffle;
    uint64_t seed;
    unsigned char *buffer;
};

/* ---- order ---- */

static uint64_t mix(uint64_t x) { /* splitmix64 */
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* A Feistel network over the next even power of two, walked until it lands inside: a bijection of
 * 0..n-1. */
int64_t stgc_permute(int64_t i, int64_t n, uint64_t key) {
    int half = 1;
    while (half < 31 && (INT64_C(1) << (2 * half)) < n)
        half++;
    uint64_t mask = (UINT64_C(1) << half) - 1, v = (uint64_t)i;
    do {
        uint64_t left = v >> half, right = v & mask;
        for (uint64_t round = 0; round < 6; round++) {
            uint64_t next = left ^ (mix(right ^ mix(key + round)) & mask);
            left = right;
            right = next;
        }
        v = left << half | right;
    } while ((int64_t)v >= n);
    return (int64_t)v;
}

int64_t stgc_tokens_window(const StgcTokens *t, int64_t position) {
    int64_t epoch = position / t->windows, i = position % t->windows;
    return t->shuffle ? stgc_permute(i, t->windows, mix(t->seed) ^ mix((uint64_t)epoch + 1)) : i;
}

/* ---- files ---- */

static bool file_size(StgcTokens *t, const char *path, char *error, size_t n) {
    struct stat st;
    t->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (t->fd < 0 || fstat(t->fd, &st) != 0) {
        snprintf(error, n, "cannot open the token file: %s", strerror(errno));
        return false;
    }
    if (!S_ISREG(st.st_mode)) {
        snprintf(error, n, "not a regular file; expected tokens or a .npz batch");
        return false;
    }
    if (st.st_size % t->token_bytes) {
        snprintf(error, n, "%lld bytes are no whole number of %d-byte tokens; check data.dtype",
                 (long long)st.st_size, t->token_bytes);
        return false;
    }
    t->count = st.st_size / t->token_bytes;
    return true;
}

StgcTokens *stgc_tokens_open(const char *path, int token_bytes, int64_t sequence, bool next_labels,
                             bool shuffle, uint64_t seed, char *error, size_t n) {
    StgcTokens *t = calloc(1, sizeof *t);
    if (!t) {
        snprintf(error, n, "out of memory");
        return NULL;
    }
    *t = (StgcTokens){.fd = -1,
                      .token_bytes = token_bytes,
                      .sequence = sequence,
                      .next_labels = next_labels,
                      .shuffle = shuffle,
                      .seed = seed};
    bool ok = file_size(t, path, error, n);
    if (ok) {
        t->windows = (t->count - next_labels) / sequence;
        if (t->windows < 1) {
            snprintf(error, n,
                     "%lld tokens are less than one sequence of %lld; make train.sequence smaller",
                     (long long)t->count, (long long)sequence + next_labels);
            ok = false;
        }
    }
    if (ok) {
        t->buffer = malloc((size_t)(sequence + 1) * (size_t)token_bytes);
        ok = t->buffer != NULL;
        if (!ok)
            snprintf(error, n, "out of memory");
    }
    if (ok)
        return t;
    stgc_tokens_close(t);
    return NULL;
}

void stgc_tokens_close(StgcTokens *t) {
    if (!t)
        return;
    if (t->fd >= 0)
        close(t->fd);
    free(t->buffer);
    free(t);
}

int64_t stgc_tokens_count(const StgcTokens *t) {
    return t->count;
}

int64_t stgc_tokens_windows(const StgcTokens *t) {
    return t->windows;
}

static bool read_at(StgcTokens *t, int64_t offset, size_t bytes, char *error, size_t n) {
    for (size_t got = 0; got < bytes;) {
        ssize_t k = pread(t->fd, t->buffer + got, bytes - got, (off_t)(offset + (int64_t)got));
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0) {
            snprintf(error, n, "reading tokens failed at byte %lld: %s",
                     (long long)offset + (long long)got,
                     k < 0 ? strerror(errno) : "the file became shorter");
            return false;
        }
        got += (size_t)k;
    }
    return true;
}

static int64_t token_at(const StgcTokens *t, int64_t i) {
    const unsigned char *p = t->buffer + i * t->token_bytes;
    uint32_t v = 0;
    for (int b = 0; b < t->token_bytes; b++)
        v |= (uint32_t)p[b] << (8 * b);
    return v;
}

StgcStatus stgc_tokens_sample(StgcTokens *t, int64_t position, int64_t limit, int64_t *ids,
                              int64_t *labels, char *error, size_t n) {
    int64_t first = stgc_tokens_window(t, position) * t->sequence,
            count = t->sequence + t->next_labels;
    if (!read_at(t, first * t->token_bytes, (size_t)(count * t->token_bytes), error, n))
        return STGC_ERR_IO;
    for (int64_t i = 0; i < count; i++) {
        int64_t v = token_at(t, i);
        if (limit > 0 && v >= limit) {
            snprintf(error, n,
                     "token %lld (the %lldth of the file) is out of range: the model's vocabulary "
                     "has 0 to %lld",
                     (long long)v, (long long)(first + i), (long long)limit - 1);
            return STGC_ERR_DATA;
        }
        if (i < t->sequence)
            ids[i] = v;
        if (i >= t->next_labels)
            labels[i - t->next_labels] = v;
    }
    return STGC_OK;
}
