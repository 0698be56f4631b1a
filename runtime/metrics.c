/* metrics.c: JSON lines and the terminal table. See metrics.h. A row is one write: a kill leaves
 * whole rows. */
#include "runtime/metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/write_all.h"

struct StgcMetrics {
    int fd;
    char *row;
    size_t n, cap;
    bool failed;
};

/* ---- the file ---- */

/* Copies the whole rows up to `step` into a temporary and puts it in the old file's place. */
static bool keep_rows(const char *path, int64_t step) {
    FILE *from = fopen(path, "r");
    if (!from)
        return errno == ENOENT;
    char temporary[4200], *line = NULL;
    size_t cap = 0;
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    FILE *to = fopen(temporary, "w");
    bool ok = to != NULL;
    for (ssize_t len; ok && (len = getline(&line, &cap, from)) > 0;) {
        long long at;
        if (line[len - 1] == '\n' && sscanf(line, "{\"step\": %lld", &at) == 1 && at <= step)
            ok = fwrite(line, 1, (size_t)len, to) == (size_t)len;
    }
    free(line);
    fclose(from);
    if (to)
        ok = fflush(to) == 0 && fsync(fileno(to)) == 0 && ok;
    if (to)
        ok = fclose(to) == 0 && ok;
    ok = ok && rename(temporary, path) == 0;
    if (!ok) {
        int code = errno;
        unlink(temporary);
        errno = code;
    }
    return ok;
}

StgcMetrics *stgc_metrics_open(const char *dir, int64_t keep_step, char *error, size_t n) {
    char path[4096];
    StgcMetrics *m = calloc(1, sizeof *m);
    bool ok = m && snprintf(path, sizeof path, "%s/metrics.jsonl", dir) < (int)sizeof path;
    if (ok && keep_step >= 0)
        ok = keep_rows(path, keep_step);
    if (ok) {
        m->fd = open(
            path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | (keep_step < 0 ? O_TRUNC : 0), 0666);
        ok = m->fd >= 0;
    }
    if (ok)
        return m;
    snprintf(error, n, "cannot write '%s/metrics.jsonl': %s", dir, strerror(errno));
    free(m);
    return NULL;
}

void stgc_metrics_close(StgcMetrics *m) {
    if (!m)
        return;
    close(m->fd);
    free(m->row);
    free(m);
}

/* ---- a row ---- */

__attribute__((format(printf, 2, 3))) static void add(StgcMetrics *m, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int k = vsnprintf(NULL, 0, fmt, again);
    va_end(again);
    if (m->n + (size_t)k + 1 > m->cap) {
        size_t cap = 2 * (m->n + (size_t)k) + 1024;
        char *p = realloc(m->row, cap);
        if (!p)
            m->failed = true;
        else {
            m->row = p;
            m->cap = cap;
        }
    }
    if (!m->failed)
        m->n += (size_t)vsnprintf(m->row + m->n, m->cap - m->n, fmt, ap);
    va_end(ap);
}

static void add_value(StgcMetrics *m, double v) {
    if (isfinite(v))
        add(m, "%.9g", v);
    else
        add(m, "null");
}

static void add_name(StgcMetrics *m, const char *s) {
    add(m, ", \"");
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            add(m, "\\%c", c);
        else if (c < 0x20)
            add(m, "\\u%04x", c);
        else
            add(m, "%c", c);
    }
    add(m, "\": ");
}

void stgc_metrics_begin(StgcMetrics *m, int64_t step) {
    m->n = 0;
    add(m, "{\"step\": %lld", (long long)step);
}

void stgc_metrics_number(StgcMetrics *m, const char *name, double value) {
    add_name(m, name);
    add_value(m, value);
}

void stgc_metrics_list(StgcMetrics *m, const char *name, const double *values, int64_t count) {
    add_name(m, name);
    for (int64_t i = 0; i < count; i++) {
        add(m, i ? ", " : "[");
        add_value(m, values[i]);
    }
    add(m, count ? "]" : "[]");
}

StgcStatus stgc_metrics_end(StgcMetrics *m, char *error, size_t n) {
    add(m, "}\n");
    off_t before = lseek(m->fd, 0, SEEK_END);
    if (!m->failed && write_all(m->fd, m->row, m->n))
        return STGC_OK;
    snprintf(error, n, "cannot write metrics.jsonl: %s",
             m->failed ? "out of memory" : strerror(errno));
    if (before >= 0 && ftruncate(m->fd, before) != 0) /* half a row is worse than none */
        return STGC_ERR_IO;
    return STGC_ERR_IO;
}

/* ---- the table ---- */

static void cell(FILE *to, int width, const char *fmt, double v) {
    char text[32];
    if (isnan(v))
        snprintf(text, sizeof text, "-");
    else
        snprintf(text, sizeof text, fmt, v);
    fprintf(to, " %*s", width, text);
}

void stgc_table_row(FILE *to, int *printed, const StgcTableRow *r) {
    if (*printed % 20 == 0)
        fprintf(to, "%15s %9s %9s %9s %9s %9s %9s %9s %10s\n", "step", "loss", "task", "balance",
                "cel", "conflict", "cosine", "max load", "tokens/s");
    ++*printed;
    fprintf(to, "%7lld/%-7lld", (long long)r->step, (long long)r->steps);
    cell(to, 9, "%.4f", r->total);
    cell(to, 9, "%.4f", r->task);
    cell(to, 9, "%.4f", r->balance);
    cell(to, 9, "%.4f", r->cel);
    cell(to, 9, "%.1f%%", 100 * r->conflict_share);
    cell(to, 9, "%.4f", r->mean_cos);
    cell(to, 9, "%.2f", r->max_load);
    cell(to, 10, "%.0f", r->tokens_per_second);
    fputc('\n', to);
    fflush(to);
}
