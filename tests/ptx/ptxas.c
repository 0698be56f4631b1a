/* ptxas.c: NVIDIA's assembler as a judge: whether it takes a text, and the registers, spills, stack
 * and shared memory of each kernel, from what -v prints. Skipping where there is none is up to the
 * caller, aloud. */
#include "tools.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool ptxas_find(char path[512]) {
    static const char usual[] = "/usr/local/cuda/bin/ptxas";
    const char *dirs = getenv("PATH");
    char at[512];
    while (dirs && *dirs) {
        size_t n = strcspn(dirs, ":");
        snprintf(at, sizeof at, "%.*s/ptxas", (int)(n < 480 ? n : 0), dirs);
        if (!access(at, X_OK)) {
            memcpy(path, at, sizeof at);
            return true;
        }
        dirs += n + (dirs[n] == ':');
    }
    memcpy(path, usual, sizeof usual);
    return !access(path, X_OK);
}

/* The number before a phrase, as in "used 12 registers"; 0 if the line has none. */
static int number_before(const char *line, const char *phrase) {
    const char *p = strstr(line, phrase);
    if (!p) {
        return 0;
    }
    while (p > line && p[-1] == ' ') {
        p--;
    }
    while (p > line && p[-1] >= '0' && p[-1] <= '9') {
        p--;
    }
    return atoi(p);
}

static void parse_line(const char *line, PtxasKernel *k) {
    if (strstr(line, "bytes stack frame")) {
        k->stack = number_before(line, "bytes stack frame");
        k->spill_stores = number_before(line, "bytes spill stores");
        k->spill_loads = number_before(line, "bytes spill loads");
    }
    const char *used = strstr(line, "Used ");
    if (used) {
        k->registers = number_before(used, "registers");
        k->shared = number_before(used, "bytes smem");
        const char *b = strstr(used, "used ");
        k->barriers = b ? atoi(b + 5) : 0;
    }
}

/* Every kernel of ptxas -v: "Compiling entry function 'NAME'", then its lines. */
static int parse_log(const char *log, PtxasKernel *out, int n) {
    static const char compiling[] = "Compiling entry function '";
    int count = 0;
    char line[1000];
    for (const char *p = log; *p;) {
        size_t len = strcspn(p, "\n");
        snprintf(line, sizeof line, "%.*s", (int)(len < 999 ? len : 999), p);
        const char *name = strstr(line, compiling);
        if (name && count < n) {
            PtxasKernel *k = &out[count++];
            memset(k, 0, sizeof *k);
            name += sizeof compiling - 1;
            snprintf(k->name, sizeof k->name, "%.*s", (int)strcspn(name, "'"), name);
        } else if (count) {
            parse_line(line, &out[count - 1]);
        }
        p += len + (p[len] == '\n');
    }
    return count;
}

static bool write_text(const char *path, const char *text, size_t bytes) {
    FILE *f = fopen(path, "wb");
    bool ok = f && fwrite(text, 1, bytes, f) == bytes;
    return f && !fclose(f) && ok;
}

int ptxas_check(const char *text, size_t bytes, int arch, const char *cubin, PtxasKernel *out,
                int n, char *log, size_t log_bytes) {
    char path[512], dir[] = "/tmp/ptxas-XXXXXX", ptx[64], object[64], command[1500];
    log[0] = 0;
    if (!ptxas_find(path) || !mkdtemp(dir)) {
        snprintf(log, log_bytes, "there is no ptxas");
        return -1;
    }
    snprintf(ptx, sizeof ptx, "%s/k.ptx", dir);
    snprintf(object, sizeof object, "%s/k.cubin", dir);
    int result = -1;
    if (write_text(ptx, text, bytes)) {
        snprintf(command, sizeof command, "%s -v -arch=sm_%d %s -o %s 2>&1", path, arch, ptx,
                 cubin ? cubin : object);
        FILE *p = popen(command, "r");
        size_t got = p ? fread(log, 1, log_bytes - 1, p) : 0;
        log[got] = 0;
        if (p && !pclose(p)) {
            result = parse_log(log, out, n);
        }
    }
    unlink(ptx);
    unlink(object);
    rmdir(dir);
    return result;
}
