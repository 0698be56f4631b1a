/* cmd_bench.h: what the parts of `stgcc bench` share.
 *
 * A Variant is the training step compiled one way. All variants of a run share parameters and
 * optimizer state; they take turns, one step each per round. */
#ifndef STGCC_FRONTEND_CMD_BENCH_H
#define STGCC_FRONTEND_CMD_BENCH_H

#include "codegen/cost.h"
#include "frontend/cmd_compile.h"
#include "runtime/bench.h"

typedef VEC(double) Samples;
double samples_median(const Samples *s); /* NAN if there are none */
double samples_min(const Samples *s);
double samples_max(const Samples *s);
/* Median over rounds of a's time by b's of the same round; NAN without both. */
double samples_ratio(const Samples *a, const Samples *b);

/* What a kernel (all calls that one kernel of the plan became) has to do and how long it took. */
typedef struct KernelRow {
    const char *name, *kind, *op, *source; /* of its main node; kind: map rows reduce gemm op */
    const char *family;                    /* what the table by kind sums */
    int calls;
    CallCost cost;
    Samples wall, cpu; /* one value per profiled step: elapsed, CPU time of the calling thread */
    double seconds;    /* median of wall */
    double unfused;    /* seconds of the same nodes, each alone; NAN if there is no such profile */
    double roof;       /* seconds at the machine's peaks */
    int nnodes;
    const int *nodes;
} KernelRow;
typedef VEC(KernelRow) KernelRows;

/* Against the first variant. ROUNDED: products of another precision. */
typedef enum { CHECK_BITS, CHECK_CLOSE, CHECK_FORWARD, CHECK_ROUNDED } CheckKind;
enum { CHECK_STEPS = 3 };

typedef struct Variant {
    const char *name, *group; /* group: fusion, capture, precision, threads, profile */
    CaptureMode capture;
    Precision precision;
    const char *token_dot; /* auto, gram, factored */
    bool stgc, fused, marks;
    int threads;
    CheckKind check;
    int same_as; /* variant whose compiled step it is, again; -1: its own */
    Graph *g;
    bool owns_g;
    Compiled *compiled;
    StgcRt *rt;
    StgcRun *run;
    double pass_seconds, code_seconds;
    Samples wall, cpu;           /* a step: elapsed, CPU time of the process */
    double loss[CHECK_STEPS][2]; /* total, task */
    uint64_t hash;               /* of the parameters after CHECK_STEPS */
    double loss_error, param_error;
    bool wrong;
    KernelRows kernels; /* marks */
} Variant;

typedef struct Bench {
    Job job;
    Options options;
    const Recipe *recipe;
    VEC(Variant) variants;
    VEC(StgcRt *) machines;
    int base, unfused; /* places in variants; unfused -1: none */
    int profile, profile_unfused;
    StgcPeaks *peaks;
    Samples gemm, copy;            /* flops and bytes a second */
    double peak_flops, peak_bytes; /* best seen */
    double noise;                  /* |A/A - 1| or the spread of the two, whichever is larger */
    int64_t rounds, inner, step;
    int64_t tokens; /* in a batch, if known */
    bool random_data;
    bool own_clock; /* one thread: kernels and peaks are timed by its CPU time, which others hardly
                       disturb */
    int64_t memory_planned, memory_touched,
        allocated;          /* bytes; allocated: heap growth while a step runs */
    double compile_seconds; /* of the first variant, passes and code */
    double import_seconds;
    void *first_params; /* parameters of the first variant after CHECK_STEPS */
    double foreign;     /* share of the cores that other processes used during the rounds */
    double load[3];
    const char *cpu, *governor, *kernel, *date;
} Bench;

/* What a variant is judged by: elapsed time, or CPU time where one thread does all. */
static inline const Samples *bench_times(const Bench *b, const Variant *v) {
    return b->own_clock ? &v->cpu : &v->wall;
}

/* cmd_bench_variant.c */
bool bench_prepare(Bench *b);  /* import, bind, raise, data */
bool bench_variants(Bench *b); /* makes and compiles all */
bool bench_check(Bench *b);    /* CHECK_STEPS from the same start: marks variants as wrong */
/* One step of the common training: bench_ready gives the inputs and makes shared values current,
 * bench_go computes and is what is timed. */
void bench_ready(Bench *b, Variant *v);
bool bench_go(Bench *b, Variant *v);
bool bench_step(Bench *b, Variant *v); /* both */
void bench_free(Bench *b);

/* cmd_bench_data.c */
bool bench_data(Bench *b);                 /* --data, or sizes for random ones */
bool bench_fill(Bench *b, const Graph *g); /* what is missing, at random */

/* cmd_bench_kernels.c */
bool bench_profile_step(Bench *b, Variant *v); /* one step, its time added to every kernel */
bool bench_costs(Bench *b, Variant *v);        /* one step that counts what its calls do */
void bench_attribute(Bench *b);                /* medians, roofs, unfused times */
typedef struct FamilyRow {
    const char *name;
    int kernels;
    double seconds, unfused, flops, moved, minimum, roof;
} FamilyRow;
typedef VEC(FamilyRow) FamilyRows;
/* Kernels summed by family, the slowest first. */
FamilyRows bench_families(const KernelRows *k);
double bench_kernel_sum(const KernelRows *k, double (*of)(const KernelRow *));

/* cmd_bench_machine.c */
void bench_machine(Bench *b);
double bench_busy(void); /* CPU seconds that the whole machine used so far; NAN if unknown */

/* cmd_bench_print.c, _json.c, _html.c, _compare.c */
void bench_print(const Bench *b, FILE *to);
bool bench_write_json(const Bench *b, const char *path, Diag *d);
bool bench_write_csv(const Bench *b, const char *path, Diag *d);
bool bench_write_html(const Bench *b, const char *path, Diag *d);
void bench_html(const Bench *b, FILE *to);
/* *worse: how many variants are slower than in OLD.json beyond the noise. */
bool bench_compare(const Bench *b, const char *old, int *worse, Diag *d);

#endif
