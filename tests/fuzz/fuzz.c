/* fuzz.c: see fuzz.h. */
#define _GNU_SOURCE
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

const char *fuzz_file(const uint8_t *bytes, size_t n) {
    static int fd = -1;
    static char path[40];
    if (fd < 0) {
        fd = memfd_create("fuzz", MFD_CLOEXEC);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    if (ftruncate(fd, 0) != 0 || pwrite(fd, bytes, n, 0) != (ssize_t)n)
        abort();
    return path;
}

void fuzz_check_refusal(const Diag *d) {
    bool known = d->code == EXIT_USAGE || d->code == EXIT_MODEL || d->code == EXIT_DATA ||
                 d->code == EXIT_RESOURCE || d->code == EXIT_IO;
    if (!d->errors || !known) {
        fprintf(stderr, "refused without a message or with exit code %d\n", (int)d->code);
        abort();
    }
    for (int i = 0; i < d->messages.n; i++)
        for (const char *p = d->messages.at[i].text; *p; p++)
            if ((*p < 0x20 && *p >= 0 && *p != '\n') || *p == 0x7f) {
                fprintf(stderr, "a control character in: %s\n", d->messages.at[i].text);
                abort();
            }
}
