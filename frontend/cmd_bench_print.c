/* cmd_bench_print.c: the report of `stgcc bench` as text. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/cmd_bench.h"

enum { SHOWN = 30 };

static const char *check_text(const Bench *b, const Variant *v, char *text, size_t n) {
    if (v == &b->variants.at[0])
        return "-";
    if (v->check == CHECK_BITS)
        return "same bits";
    if (v->check == CHECK_CLOSE)
        snprintf(text, n, "loss %.0e, params %.0e", v->loss_error, v->param_error);
    else
        snprintf(text, n, "forward %.0e", v->loss_error);
    return text;
}

static void print_head(const Bench *b, FILE *to) {
    const Variant *v = &b->variants.at[0];
    const StgcStep *step = compiled_step(v->compiled);
    fprintf(to, "stgcc %s, %s, %s\n", STGCC_VERSION, b->date, b->kernel);
    fprintf(to, "%s; code for %s\n", stgc_rt_describe(v->rt), step->cpu);
    fprintf(to,
            "governor %s; load average %.2f %.2f %.2f; other processes took %.0f %% of the cores\n",
            b->governor ? b->governor : "unknown", b->load[0], b->load[1], b->load[2],
            100 * b->foreign);
    if (b->foreign > 0.04)
        fputs("The machine was not quiet: trust ratios, not times.\n", to);
    if (b->random_data)
        fputs("Inputs and labels are made up at random (no --data).\n", to);
    fprintf(to,
            "\nSame numbers from all: %d steps from the initial parameters; compiled in %.2f s "
            "(passes %.2f, code %.2f), read and raised before in %.2f s\n",
            CHECK_STEPS, b->compile_seconds, v->pass_seconds, v->code_seconds, b->import_seconds);
    fprintf(to,
            "Memory planned %.1f MiB, touched by all variants %.1f MiB; heap growth inside a step "
            "%lld bytes\n",
            (double)b->memory_planned / 1048576, (double)b->memory_touched / 1048576,
            (long long)b->allocated);
    fprintf(to, "Peaks: matrix product %.1f GF/s (median %.1f), copy %.1f GB/s (median %.1f)\n",
            b->peak_flops / 1e9, samples_median(&b->gemm) / 1e9, b->peak_bytes / 1e9,
            samples_median(&b->copy) / 1e9);
}

static void print_variants(const Bench *b, FILE *to) {
    const Samples *base = bench_times(b, &b->variants.at[0]);
    fprintf(to, "\n%lld rounds of %lld step%s; A/A noise %.1f %%%s\n", (long long)b->rounds,
            (long long)b->inner, b->inner > 1 ? "s" : "", 100 * b->noise,
            b->own_clock ? "; one thread: ratios, peaks and kernels by its CPU time" : "");
    fprintf(to, "%-24s %10s %10s %10s %7s %9s  %s\n", "step", "median ms", "min", "max", "ratio",
            "CPU ms", "against the first");
    for (int i = 0; i < b->variants.n; i++) {
        const Variant *v = &b->variants.at[i];
        char text[64];
        if (v->marks)
            continue;
        fprintf(to, "%-24s %10.3f %10.3f %10.3f %7.3f %9.3f  %s\n", v->name,
                1e3 * samples_median(&v->wall), 1e3 * samples_min(&v->wall),
                1e3 * samples_max(&v->wall), samples_ratio(bench_times(b, v), base),
                1e3 * samples_median(&v->cpu), check_text(b, v, text, sizeof text));
    }
}

static double percent(double part, double whole) {
    return whole > 0 ? 100 * part / whole : 0;
}

static void print_families(const Bench *b, FILE *to) {
    FamilyRows rows = bench_families(&b->variants.at[b->profile].kernels);
    FamilyRow sum = {.name = "all"};
    for (int i = 0; i < rows.n; i++) {
        sum.kernels += rows.at[i].kernels, sum.seconds += rows.at[i].seconds;
        sum.unfused += rows.at[i].unfused, sum.flops += rows.at[i].flops;
        sum.moved += rows.at[i].moved, sum.minimum += rows.at[i].minimum;
        sum.roof += rows.at[i].roof;
    }
    vec_push(&rows, sum);
    fprintf(to, "\n%-16s %7s %9s %6s %10s %9s %9s %9s %8s %8s %6s\n", "kind", "kernels", "ms",
            "share", "unfused ms", "GF", "MB", "MB least", "GF/s", "GB/s", "roof");
    for (int i = 0; i < rows.n; i++) {
        const FamilyRow *f = &rows.at[i];
        fprintf(to, "%-16s %7d %9.3f %5.1f%% %10.3f %9.3f %9.2f %9.2f %8.2f %8.2f %5.1f%%\n",
                f->name, f->kernels, 1e3 * f->seconds, percent(f->seconds, sum.seconds),
                1e3 * f->unfused, f->flops / 1e9, f->moved / 1e6, f->minimum / 1e6,
                f->flops / f->seconds / 1e9, f->moved / f->seconds / 1e9,
                percent(f->roof, f->seconds));
    }
    vec_free(&rows);
}

static int slowest_first(const void *a, const void *b) {
    double x = (*(const KernelRow *const *)a)->seconds, y = (*(const KernelRow *const *)b)->seconds;
    return (x < y) - (x > y);
}

static void print_kernels(const Bench *b, FILE *to) {
    const KernelRows *k = &b->variants.at[b->profile].kernels;
    const KernelRow **order = xcalloc((size_t)k->n + 1, sizeof *order);
    double all = 0;
    for (int i = 0; i < k->n; i++)
        order[i] = &k->at[i], all += k->at[i].seconds;
    qsort(order, (size_t)k->n, sizeof *order, slowest_first);
    int shown = b->options.verbose || k->n < SHOWN ? k->n : SHOWN;
    fprintf(to, "\n%9s %6s %10s %9s %9s %9s %8s %8s %6s  %s\n", "ms", "share", "unfused ms", "MF",
            "MB", "MB least", "GF/s", "GB/s", "roof", "kernel");
    for (int i = 0; i < shown; i++) {
        const KernelRow *r = order[i];
        fprintf(to, "%9.3f %5.1f%% %10.3f %9.2f %9.3f %9.3f %8.2f %8.2f %5.1f%%  %s%s\n",
                1e3 * r->seconds, percent(r->seconds, all), 1e3 * r->unfused, r->cost.flops / 1e6,
                r->cost.moved / 1e6, r->cost.minimum / 1e6, r->cost.flops / r->seconds / 1e9,
                r->cost.moved / r->seconds / 1e9, percent(r->roof, r->seconds), r->name,
                r->cost.exact ? "" : " ~");
    }
    if (shown < k->n)
        fprintf(to, "… %d more; -v shows all, --csv and --json keep them\n", k->n - shown);
    fputs("roof: time at the peaks for its operations and least bytes, by its own time; above 100 "
          "% the data were in "
          "the caches.\n~: branches on data, both counted.\n",
          to);
    free(order);
}

void bench_print(const Bench *b, FILE *to) {
    print_head(b, to);
    print_variants(b, to);
    print_families(b, to);
    print_kernels(b, to);
}
