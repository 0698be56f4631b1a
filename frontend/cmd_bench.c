/* cmd_bench.c: `stgcc bench`: what fusion gives, what STGC costs in each capture mode, how far each
 * kernel is from what the machine can do.
 *
 *   raise once ─► variants (fused, unfused, captures, threads, profiles) ─► the same numbers? ─►
 *   rounds: every variant one after the other, the machine's peaks between them ─► report
 *
 * Times are medians over the rounds; ratios are medians of ratios within a round, so that a machine
 * that slows down for a while slows both sides. The first variant is timed twice: what that ratio
 * is off from 1 is noise. */
#include "frontend/cmd_bench.h"
#include "frontend/cmd_compile.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ROUNDS = 9, MOST_INNER = 64, PEAKS = 3 };
#define TIMING_SECONDS 0.02 /* a timing takes so long at least: more steps where one is shorter */

static bool time_variant(Bench *b, Variant *v) {
    if (v->marks)
        return bench_profile_step(b, v);
    double wall = 0, cpu = 0;
    for (int64_t i = 0; i < b->inner; i++) {
        bench_ready(b, v);
        double w = stgc_bench_wall(), c = stgc_bench_process();
        if (!bench_go(b, v))
            return false;
        wall += stgc_bench_wall() - w;
        cpu += stgc_bench_process() - c;
    }
    vec_push(&v->wall, wall / (double)b->inner);
    vec_push(&v->cpu, cpu / (double)b->inner);
    return true;
}

static void time_peaks(Bench *b) {
    for (int i = 0; i < PEAKS; i++) {
        double gemm = stgc_peaks_gemm(b->peaks), copy = stgc_peaks_copy(b->peaks);
        vec_push(&b->gemm, gemm);
        vec_push(&b->copy, copy);
    }
}

static bool one_round(Bench *b, int64_t round) {
    int n = b->variants.n;
    time_peaks(b);
    bool ok = bench_step(
        b, &b->variants.at[round % 2 ? n - 1 : 0]); /* a large copy left the caches cold */
    for (int i = 0; ok && i < n; i++)
        ok = time_variant(b, &b->variants.at[round % 2 ? n - 1 - i : i]);
    return ok;
}

/* So many steps per timing that one is not too short to be measured. */
static bool choose_inner(Bench *b) {
    double start = stgc_bench_wall();
    if (!bench_step(b, &b->variants.at[0]))
        return false;
    double inner = ceil(TIMING_SECONDS / (stgc_bench_wall() - start));
    b->inner = inner < 1 ? 1 : inner > MOST_INNER ? MOST_INNER : (int64_t)inner;
    return true;
}

static bool warm_up(Bench *b) {
    b->peaks = stgc_peaks_new(b->machines.at[0]);
    if (!b->peaks) {
        diag_error(&b->job.model_diag, EXIT_RESOURCE, "no memory to measure the machine");
        return false;
    }
    time_peaks(b);
    bool ok = true;
    for (int i = 0; ok && i < b->variants.n; i++) {
        Variant *v = &b->variants.at[i];
        ok = v->marks ? bench_costs(b, v) : bench_step(b, v);
    }
    return ok && choose_inner(b);
}

static bool rounds(Bench *b) {
    double busy = bench_busy(), own = stgc_bench_process(), start = stgc_bench_wall();
    for (int64_t r = 0; r < b->rounds; r++) {
        if (!one_round(b, r))
            return false;
        if (!b->options.quiet && isatty(STDERR_FILENO))
            fprintf(stderr, "\rround %lld of %lld ", (long long)r + 1, (long long)b->rounds);
    }
    if (!b->options.quiet && isatty(STDERR_FILENO))
        fputs("\r\033[K", stderr);
    double seconds = stgc_bench_wall() - start;
    double others = bench_busy() - busy - (stgc_bench_process() - own);
    b->foreign = fmax(0, others) / (seconds * (double)sysconf(_SC_NPROCESSORS_ONLN));
    return true;
}

static void conclude(Bench *b) {
    const Variant *v = &b->variants.at[0], *again = &b->variants.at[1];
    b->peak_flops = samples_max(&b->gemm);
    b->peak_bytes = samples_max(&b->copy);
    const Samples *x = bench_times(b, v), *y = bench_times(b, again);
    b->noise = fmax(fabs(samples_ratio(y, x) - 1), fabs(samples_median(y) / samples_median(x) - 1));
    b->memory_touched = stgc_run_touched_bytes(v->run);
    bench_attribute(b);
}

static bool write_files(Bench *b) {
    const Options *o = &b->options;
    Diag *d = &b->job.out_diag;
    return (!o->json_file || bench_write_json(b, o->json_file, d)) &&
           (!o->csv || bench_write_csv(b, o->csv, d)) &&
           (!o->html || bench_write_html(b, o->html, d));
}

static ExitCode measure(Bench *b) {
    int worse = 0;
    if (!bench_prepare(b) || !bench_variants(b) || !bench_check(b) || !warm_up(b) || !rounds(b))
        return EXIT_OK; /* the job knows what went wrong */
    bench_machine(b);
    conclude(b);
    if (b->allocated > 0)
        diag_error(&b->job.model_diag, EXIT_BUG, "the heap grew by %lld bytes inside a step",
                   (long long)b->allocated);
    bench_print(b, stdout);
    if (!write_files(b) ||
        (b->options.compare && !bench_compare(b, b->options.compare, &worse, &b->job.data_diag)))
        return EXIT_OK;
    return worse ? (ExitCode)1 : EXIT_OK;
}

/* A GPU's kernels are not timed here: their static model is told instead. */
static int bench_gpu(const Options *o) {
    const char *const files[] = {o->json_file, o->csv, o->html, o->compare};
    for (int i = 0; i < COUNT_OF(files); i++) {
        if (!files[i])
            continue;
        Diag d = {.subject = "stgcc"};
        diag_error(&d, EXIT_USAGE, "--json, --csv, --html, --compare: there are no times of %s here",
                   diag_safe(&d, o->target));
        diag_more(&d, "without them the static model of its kernels is printed");
        diag_print(&d, stderr, false);
        diag_free(&d);
        return EXIT_USAGE;
    }
    return compile_model(o);
}

int cmd_bench(const Options *o) {
    if (device_target(o))
        return bench_gpu(o);
    Bench *b = xcalloc(1, sizeof *b);
    b->options = *o;
    b->options.dims = (StrList){0};
    for (int i = 0; i < o->dims.n; i++)
        vec_push(&b->options.dims, o->dims.at[i]);
    b->rounds = o->rounds ? o->rounds : ROUNDS;
    job_begin(&b->job, &b->options);
    ExitCode code = measure(b);
    bench_free(b);
    vec_free(&b->options.dims);
    int exit_code = job_end(&b->job, code);
    free(b);
    return exit_code;
}
