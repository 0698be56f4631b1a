/* write_all.h: all bytes to a file, however many calls it takes. */
#ifndef STGC_RUNTIME_WRITE_ALL_H
#define STGC_RUNTIME_WRITE_ALL_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <unistd.h>

/* False with errno. */
static inline bool write_all(int fd, const void *bytes, size_t n) {
    const char *p = bytes;
    while (n > 0) {
        ssize_t k = write(fd, p, n > 1u << 30 ? 1u << 30 : n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return false;
        p += k;
        n -= (size_t)k;
    }
    return true;
}

#endif
