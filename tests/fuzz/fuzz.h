/* fuzz.h: what the fuzz targets share.
 *
 * A target is one file fuzz_NAME.c with LLVMFuzzerTestOneInput. Built by clang with STGCC_FUZZ it
 * is a libFuzzer program; otherwise replay.c gives it a main that runs the files it is told to (the
 * committed corpus). Bad input must end in a diagnostic: bug() and running out of memory leave the
 * process, which both mains treat as a failure. */
#ifndef STGCC_TESTS_FUZZ_H
#define STGCC_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

#include "ir/base.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

/* The bytes as a regular file of no name, for readers that take a path: "/proc/self/fd/N", valid
 * until the next call. */
const char *fuzz_file(const uint8_t *bytes, size_t n);
/* A refusal that says nothing, or leads to no exit code of the user's, is a fault too. */
void fuzz_check_refusal(const Diag *d);

#endif
