/* ptx_help.h: loading and running PTX in the tests of the emulator. */
#ifndef STGCC_TESTS_PTX_HELP_H
#define STGCC_TESTS_PTX_HELP_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/ptx/emulator.h"

/* A file of tests/ptx, zero-terminated; freed by the caller. */
static inline char *ptx_file(const char *name) {
    char path[600];
    snprintf(path, sizeof path, SOURCE_DIR "/tests/ptx/%s", name);
    FILE *f = fopen(path, "rb");
    if (!f) {
        fail_msg("cannot open %s", path);
    }
    char *text = calloc(1, 1 << 20);
    size_t n = fread(text, 1, (1 << 20) - 1, f);
    assert_true(n > 0);
    fclose(f);
    return text;
}

static inline PtxModule *ptx_must_load(PtxDevice *d, const char *text) {
    PtxModule *m = ptx_load(d, text, strlen(text));
    if (!m) {
        fail_msg("%s", ptx_error(d));
    }
    return m;
}

static inline void ptx_must_launch(PtxDevice *d, PtxKernel *k, unsigned grid, unsigned block,
                                   const void *params, size_t bytes) {
    assert_non_null(k);
    if (!ptx_launch(d, k, (unsigned[3]){grid, 1, 1}, (unsigned[3]){block, 1, 1}, 0, params,
                    bytes)) {
        fail_msg("%s", ptx_error(d));
    }
}

/* Device memory with these bytes. */
static inline uint64_t ptx_upload(PtxDevice *d, const void *data, size_t bytes) {
    uint64_t p = ptx_malloc(d, bytes);
    assert_true(p && ptx_write(d, p, data, bytes));
    return p;
}

#endif
