/* nvptx_cost.c: what the kernels of a step have to do, and what the assembler made of them, as a
 * table.
 *
 *     kernel  launches  CTAs  flops  moved  minimum  registers  shared  occupancy  A100  H100
 *
 * Flops and bytes are the closed forms of cost.h over the same programs; that the PTX executes just
 * these is what tests/unit/test_nvptx_cost.c proves, on the emulator. Registers are ptxas', where
 * one is found. Times are a roofline model and say so: the larger of flops / peak and bytes /
 * bandwidth of every launch, no more. */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "codegen/cost.h"
#include "codegen/nvptx_code.h"

extern char **environ;

/* NVIDIA's data sheets: A100 SXM 80 GB, H100 SXM; f32 without tensor cores, HBM. */
static const struct {
    const char *name;
    double flops, bytes; /* per second */
} boards[] = {{"A100", 19.5e12, 2.039e12}, {"H100", 67e12, 3.35e12}};

/* CUDA C++ Programming Guide, "Technical Specifications per Compute Capability". */
static const struct {
    int target, threads, ctas, shared; /* of one multiprocessor */
} limits[] = {{80, 2048, 32, 164 * 1024}, {86, 1536, 16, 100 * 1024},  {89, 1536, 24, 100 * 1024},
              {90, 2048, 32, 228 * 1024}, {100, 2048, 32, 228 * 1024}, {120, 1536, 24, 100 * 1024}};

enum { REGISTERS = 65536, SHARED_OF_CTA = 1024 /* kept by the system */ };

typedef struct Row {
    const char *name;
    const StgcCudaKernel *kernel; /* NULL: cuBLAS */
    int64_t launches, ctas;       /* ctas: of the largest launch */
    double flops, moved, minimum, seconds[COUNT_OF(boards)];
    bool exact;
    int registers, spills; /* -1: not known */
} Row;

typedef struct Rows {
    Row *at;
    int n;
} Rows;

/* ---- ptxas ---- */

static bool is_program(const char *path) {
    return access(path, X_OK) == 0;
}

static bool find_ptxas(char *path, size_t size) {
    const char *dirs = getenv("PATH"), *home = getenv("CUDA_HOME");
    while (dirs && *dirs) {
        size_t n = strcspn(dirs, ":");
        snprintf(path, size, "%.*s/ptxas", (int)n, dirs);
        if (n && is_program(path))
            return true;
        dirs += n + (dirs[n] == ':');
    }
    snprintf(path, size, "%s/bin/ptxas", home && *home ? home : "/usr/local/cuda");
    return is_program(path);
}

static int row_of(const Rows *r, const char *name) {
    for (int i = 0; i < r->n; i++)
        if (!strcmp(r->at[i].name, name))
            return i;
    return -1;
}

/* "Compiling entry function 'NAME'", "… N bytes spill stores", "Used N registers" */
static void read_log(FILE *log, Rows *r) {
    char line[1024], name[256];
    int at = -1, n;
    while (fgets(line, sizeof line, log)) {
        const char *p = strstr(line, "Compiling entry function '");
        if (p && sscanf(p, "Compiling entry function '%255[^']", name) == 1)
            at = row_of(r, name);
        p = strstr(line, "frame, ");
        if (at >= 0 && p && sscanf(p, "frame, %d", &n) == 1)
            r->at[at].spills = n;
        p = strstr(line, "Used ");
        if (at >= 0 && p && sscanf(p, "Used %d", &n) == 1)
            r->at[at].registers = n;
    }
}

/* Assembles the text in a private file; false if there is no ptxas or it refuses. */
static bool assemble(const StgcCudaStep *s, Rows *r) {
    char ptxas[1024], in[] = "/tmp/stgcc_XXXXXX", arch[16];
    if (!find_ptxas(ptxas, sizeof ptxas))
        return false;
    int fd = mkstemp(in), out[2], status = -1;
    bool ok = fd >= 0 && write(fd, s->ptx, (size_t)s->ptx_bytes) == s->ptx_bytes && pipe(out) == 0;
    if (ok) {
        snprintf(arch, sizeof arch, "-arch=sm_%d", s->target);
        char *argv[] = {ptxas, arch, "-v", in, "-o", "/dev/null", NULL};
        posix_spawn_file_actions_t act;
        posix_spawn_file_actions_init(&act);
        posix_spawn_file_actions_adddup2(&act, out[1], 2);
        posix_spawn_file_actions_addclose(&act, out[0]);
        pid_t pid;
        ok = posix_spawn(&pid, ptxas, &act, NULL, argv, environ) == 0;
        posix_spawn_file_actions_destroy(&act);
        close(out[1]);
        FILE *log = fdopen(out[0], "r");
        if (ok && log)
            read_log(log, r);
        if (log)
            fclose(log);
        ok = ok && waitpid(pid, &status, 0) == pid && status == 0;
    }
    if (fd >= 0) {
        close(fd);
        unlink(in);
    }
    return ok;
}

/* ---- the sums ---- */

static void add_cost(Row *row, const CallCost *c) {
    row->flops += c->flops, row->moved += c->moved, row->minimum += c->minimum;
    row->exact &= c->exact;
    for (int b = 0; b < COUNT_OF(boards); b++) {
        double compute = c->flops / boards[b].flops, memory = c->moved / boards[b].bytes;
        row->seconds[b] += compute > memory ? compute : memory;
    }
}

/* Threads of an operation; cuBLAS' are more than any. */
static double width(const StgcCudaStep *s, const StgcCudaOp *op) {
    if (op->kind == STGC_CUDA_GEMM)
        return 1e30;
    return (double)op->grid[0] * op->grid[1] * op->grid[2] * s->kernels[op->kernel].threads;
}

/* A call's cost goes to the widest kernel that it launches: others prepare or join. */
static void sum_calls(const LoopModule *m, const StgcCudaStep *s, Rows *r) {
    int widest = -1, call = -1;
    double most = 0;
    for (uint32_t i = 0; i < s->nops; i++) {
        const StgcCudaOp *op = &s->ops[i];
        if (op->kind == STGC_CUDA_LAUNCH || op->kind == STGC_CUDA_GEMM) {
            int row = op->kind == STGC_CUDA_GEMM ? (int)s->nkernels : op->kernel;
            int64_t ctas = (int64_t)op->grid[0] * op->grid[1] * op->grid[2];
            r->at[row].launches++;
            if (ctas > r->at[row].ctas)
                r->at[row].ctas = ctas;
            if (width(s, op) > most)
                most = width(s, op), widest = row;
        } else if (op->kind == STGC_CUDA_MARK) {
            if (call >= 0 && widest >= 0) {
                CallCost c = call_cost(m, call, NULL);
                add_cost(&r->at[widest], &c);
            }
            call = op->mark, widest = -1, most = 0;
        }
    }
}

/* ---- the table ---- */

static int least(int a, int b) {
    return a < b ? a : b;
}

/* CTAs that fit a multiprocessor; registers come in blocks of 8 for each thread of a warp. */
static int resident(const Row *row, int target, int *threads) {
    const StgcCudaKernel *k = row->kernel;
    for (int i = 0; i < COUNT_OF(limits); i++) {
        if (limits[i].target != target)
            continue;
        int shared = (int)(k->shared_static + k->shared_dynamic) + SHARED_OF_CTA;
        int per_thread = (row->registers + 7) / 8 * 8;
        int n = least(limits[i].ctas, limits[i].threads / (int)k->threads);
        n = least(n, limits[i].shared / shared);
        if (per_thread > 0)
            n = least(n, REGISTERS / (per_thread * (int)k->threads));
        *threads = limits[i].threads;
        return n;
    }
    bug("no limits of sm_%d", target);
}

static void print_row(const Row *row, int target, FILE *to) {
    fprintf(to, "%-44.44s %8lld %7lld %11.4g %11.4g %11.4g %6.2f", row->name,
            (long long)row->launches, (long long)row->ctas, row->flops, row->moved, row->minimum,
            row->minimum > 0 ? row->moved / row->minimum : 1.0);
    if (row->kernel) {
        int threads, n = resident(row, target, &threads);
        if (row->registers >= 0)
            fprintf(to, " %5d %6d", row->registers, row->spills);
        else
            fprintf(to, " %5s %6s", "?", "?");
        fprintf(to, " %7u %4d%%", row->kernel->shared_static + row->kernel->shared_dynamic,
                100 * n * (int)row->kernel->threads / threads);
    } else {
        fprintf(to, " %5s %6s %7s %5s", "-", "-", "-", "-");
    }
    for (int b = 0; b < COUNT_OF(boards); b++)
        fprintf(to, " %9.2f", 1e6 * row->seconds[b]);
    fprintf(to, "%s\n", row->exact ? "" : "  bound");
}

static int by_time(const void *a, const void *b) {
    const Row *x = a, *y = b;
    if (x->seconds[0] != y->seconds[0])
        return x->seconds[0] < y->seconds[0] ? 1 : -1;
    return strcmp(x->name, y->name);
}

void nvptx_cost_print(const LoopModule *m, const StgcCudaStep *s, FILE *to) {
    Rows r = {xcalloc(s->nkernels + 1, sizeof(Row)), (int)s->nkernels + 1};
    for (int i = 0; i < r.n; i++) {
        bool own = i < (int)s->nkernels;
        r.at[i] = (Row){.name = own ? s->kernels[i].name : "cuBLAS",
                        .kernel = own ? &s->kernels[i] : NULL,
                        .exact = true,
                        .registers = -1,
                        .spills = -1};
    }
    sum_calls(m, s, &r);
    if (!assemble(s, &r))
        fprintf(to, "no ptxas (in PATH or $CUDA_HOME/bin): registers are not known\n");
    fprintf(to, "%-44s %8s %7s %11s %11s %11s %6s %5s %6s %7s %5s", "kernel", "launches", "CTAs",
            "flops", "bytes moved", "minimum", "ratio", "regs", "spills", "shared", "occup");
    for (int b = 0; b < COUNT_OF(boards); b++)
        fprintf(to, "  %s us", boards[b].name);
    fprintf(to, " (model: roofline of f32 peak and memory, not a measurement)\n");
    qsort(r.at, (size_t)r.n, sizeof *r.at, by_time);
    Row all = {.name = "all", .exact = true};
    for (int i = 0; i < r.n; i++) {
        const Row *row = &r.at[i];
        if (!row->launches)
            continue;
        print_row(row, s->target, to);
        all.launches += row->launches, all.flops += row->flops;
        all.moved += row->moved, all.minimum += row->minimum, all.exact &= row->exact;
        for (int b = 0; b < COUNT_OF(boards); b++)
            all.seconds[b] += row->seconds[b];
    }
    print_row(&all, s->target, to);
    free(r.at);
}
