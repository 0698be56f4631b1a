/* safetensors_write.c: writing. See safetensors.h. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/safetensors.h"
#include "runtime/write_all.h"

static const char *type_name(int32_t type) {
    switch ((StgcType)type) {
    case STGC_F32:
        return "F32";
    case STGC_U8:
        return "U8";
    case STGC_I8:
        return "I8";
    case STGC_U16:
        return "U16";
    case STGC_I16:
        return "I16";
    case STGC_I32:
        return "I32";
    case STGC_I64:
        return "I64";
    case STGC_BOOL:
        return "BOOL";
    case STGC_F16:
        return "F16";
    case STGC_F64:
        return "F64";
    case STGC_U32:
        return "U32";
    case STGC_U64:
        return "U64";
    case STGC_BF16:
        return "BF16";
    }
    return NULL;
}

static void put_string(FILE *f, const char *s) {
    putc('"', f);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            fprintf(f, "\\%c", c);
        else if (c < 0x20)
            fprintf(f, "\\u%04x", c);
        else
            putc(c, f);
    }
    putc('"', f);
}

/* The header, padded with spaces so that the bytes start at a multiple of 64. NULL: no memory, or a
 * type that has no name. */
static char *make_header(const StgcCkptTensor *t, uint32_t n, size_t *length) {
    char *text = NULL;
    FILE *f = open_memstream(&text, length);
    if (!f)
        return NULL;
    int64_t at = 0;
    int known = 1;
    fputs("{\"__metadata__\":{\"format\":\"pt\"}", f);
    for (uint32_t i = 0; i < n; i++) {
        const char *type = type_name(t[i].type);
        known &= type != NULL;
        putc(',', f);
        put_string(f, t[i].name);
        fprintf(f, ":{\"dtype\":\"%s\",\"shape\":[", type ? type : "");
        for (int k = 0; k < t[i].rank; k++)
            fprintf(f, "%s%lld", k ? "," : "", (long long)t[i].dims[k]);
        fprintf(f, "],\"data_offsets\":[%lld,%lld]}", (long long)at, (long long)(at + t[i].bytes));
        at += t[i].bytes;
    }
    putc('}', f);
    for (long end = ftell(f); end >= 0 && (end + 8) % 64; end++)
        putc(' ', f);
    if (fclose(f) != 0 || !known) {
        free(text);
        return NULL;
    }
    return text;
}

static int write_file(int fd, const char *header, size_t length, const StgcCkptTensor *t,
                      uint32_t n) {
    unsigned char prefix[8];
    for (int i = 0; i < 8; i++)
        prefix[i] = (unsigned char)((uint64_t)length >> (8 * i));
    if (!write_all(fd, prefix, sizeof prefix) || !write_all(fd, header, length))
        return -1;
    for (uint32_t i = 0; i < n; i++)
        if (!write_all(fd, t[i].data, (size_t)t[i].bytes))
            return -1;
    return fsync(fd);
}

StgcStatus stgc_safetensors_write(const char *path, const StgcCkptTensor *tensors, uint32_t n,
                                  char *error, size_t nerror) {
    size_t length = 0;
    char *header = make_header(tensors, n, &length), *temporary = NULL;
    if (!header || asprintf(&temporary, "%s.%ld.tmp", path, (long)getpid()) < 0) {
        snprintf(error, nerror, "no memory for the header of '%s'", path);
        free(header);
        return STGC_ERR_RESOURCE;
    }
    unlink(temporary);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    int bad = fd < 0 || write_file(fd, header, length, tensors, n) != 0, code = errno;
    if (fd >= 0 && close(fd) != 0 && !bad)
        bad = 1, code = errno;
    if (!bad && rename(temporary, path) != 0)
        bad = 1, code = errno;
    if (bad) {
        snprintf(error, nerror, "cannot write '%s': %s", path, strerror(code));
        if (fd >= 0)
            unlink(temporary);
    }
    free(temporary);
    free(header);
    return bad ? STGC_ERR_IO : STGC_OK;
}
