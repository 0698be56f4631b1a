/* cmd_device.c: which machine a command runs on: --target, --device, --emulate. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "frontend/cmd.h"

const char *device_target(const Options *o) {
    bool cpu = !o->target || !strcmp(o->target, "cpu") || !strcmp(o->target, "x86-64");
    return cpu ? NULL : o->target;
}

/* ---- the emulator ---- */

static const char EMULATOR[] = "libstgc-ptx-emulator.so";

/* The test tool that lies beside the program where it was built, and nowhere else. */
static const char *emulator_path(Arena *a) {
    char program[4096];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    program[n > 0 ? n : 0] = 0;
    char *slash = strrchr(program, '/');
    if (!slash)
        return NULL;
    slash[1] = 0;
    const char *path = arena_printf(a, "%s%s", program, EMULATOR);
    return access(path, R_OK) == 0 ? path : NULL;
}

bool device_choose(const Options *o, StgcCudaOptions *out, Diag *d) {
    *out = (StgcCudaOptions){.device = (int)o->device};
    if (!o->emulate)
        return true;
    const char *path = emulator_path(&d->arena), *sm = device_target(o);
    if (!path) {
        diag_error(d, EXIT_USAGE, "--emulate: %s is not beside this program", EMULATOR);
        diag_more(d, "it is a test tool: run the program where it was built, in the build folder");
        return false;
    }
    if (sm) /* what the emulator is to be */
        setenv("STGC_PTX_EMULATOR_SM", sm + strlen("sm_"), 1);
    out->driver = out->cublas = path;
    if (!o->quiet)
        fputs("stgcc: running in the PTX emulator (not a GPU)\n", stderr);
    return true;
}

/* ---- the machine ---- */

/* "GPU 0 (NAME): error: what; what to do" of the runtime as lines of a diagnostic, which says
 * "error" itself. */
void device_error(Diag *d, StgcStatus status, const char *text) {
    enum { LINE = 190 }; /* diag_safe's limit */
    char *all = arena_strdup(&d->arena, text), *error = strstr(all, ": error: ");
    bool first = true;
    if (error)
        memmove(error + 2, error + strlen(": error: "), strlen(error + strlen(": error: ")) + 1);
    for (char *part = all, *next; part; part = next) {
        char *end = strstr(part, "; ");
        next = end ? end + 2 : NULL;
        if (end)
            *end = 0;
        for (size_t at = 0, n = strlen(part); at < n; at += LINE) {
            const char *line = diag_safe(d, arena_printf(&d->arena, "%.*s", (int)LINE, part + at));
            if (first)
                diag_error(d, (ExitCode)status, "%s", line);
            else
                diag_more(d, "%s", line);
            first = false;
        }
    }
}

StgcRt *device_open(const Options *o, Diag *d) {
    StgcCudaOptions cuda;
    StgcStatus status;
    char error[1024];
    if (!device_target(o))
        return stgc_rt_new((int)o->threads);
    if (!device_choose(o, &cuda, d))
        return NULL;
    StgcRt *rt = stgc_rt_new_cuda(&cuda, &status, error, sizeof error);
    if (!rt)
        device_error(d, status, error);
    return rt;
}
