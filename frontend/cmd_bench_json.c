/* cmd_bench_json.c: the numbers of `stgcc bench` for programs: JSON with everything, CSV with the
 * kernels. Numbers that are not finite are null. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/cmd_bench.h"

/* ---- JSON ---- */

static void put_string(FILE *f, const char *s) {
    fputc('"', f);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            fprintf(f, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            fprintf(f, "\\u%04x", c);
        else
            fputc(c, f);
    }
    fputc('"', f);
}

static void put_number(FILE *f, const char *key, double v) {
    if (isfinite(v))
        fprintf(f, ", \"%s\": %.9g", key, v);
    else
        fprintf(f, ", \"%s\": null", key);
}

static void put_text(FILE *f, const char *key, const char *s) {
    fprintf(f, ", \"%s\": ", key);
    put_string(f, s);
}

static void put_samples(FILE *f, const char *key, const Samples *s) {
    fprintf(f, ", \"%s\": [", key);
    for (int i = 0; i < s->n; i++)
        fprintf(f, "%s%.9g", i ? ", " : "", s->at[i]);
    fputc(']', f);
}

static void put_variant(const Bench *b, const Variant *v, FILE *f) {
    fputs("  {\"name\": ", f);
    put_string(f, v->name);
    put_text(f, "group", v->group);
    put_number(f, "threads", v->threads);
    put_number(f, "median", samples_median(&v->wall));
    put_number(f, "min", samples_min(&v->wall));
    put_number(f, "max", samples_max(&v->wall));
    put_number(f, "cpu_median", samples_median(&v->cpu));
    put_number(f, "judged", samples_median(bench_times(b, v)));
    put_number(f, "ratio", samples_ratio(bench_times(b, v), bench_times(b, &b->variants.at[0])));
    put_number(f, "loss_error", v->loss_error);
    put_number(f, "param_error", v->param_error);
    put_samples(f, "wall", &v->wall);
    put_samples(f, "cpu", &v->cpu);
    fputc('}', f);
}

static void put_kernel(const KernelRow *r, FILE *f) {
    fputs("  {\"name\": ", f);
    put_string(f, r->name);
    put_text(f, "kind", r->kind);
    put_text(f, "family", r->family);
    put_text(f, "op", r->op);
    put_text(f, "node", r->source);
    put_number(f, "seconds", r->seconds);
    put_number(f, "min", samples_min(&r->wall));
    put_number(f, "cpu", samples_median(&r->cpu));
    put_number(f, "unfused", r->unfused);
    put_number(f, "flops", r->cost.flops);
    put_number(f, "functions", r->cost.special);
    put_number(f, "bytes", r->cost.moved);
    put_number(f, "bytes_least", r->cost.minimum);
    put_number(f, "roof", r->roof);
    fprintf(f, ", \"exact\": %s}", r->cost.exact ? "true" : "false");
}

static void put_list(FILE *f, const char *key, const KernelRows *k) {
    fprintf(f, ",\n \"%s\": [\n", key);
    for (int i = 0; i < k->n; i++) {
        fputs(i ? ",\n" : "", f);
        put_kernel(&k->at[i], f);
    }
    fputs("\n ]", f);
}

static void put_all(const Bench *b, FILE *f) {
    const Variant *first = &b->variants.at[0];
    fputs("{\"schema\": 1, \"stgcc\": \"" STGCC_VERSION "\"", f);
    put_text(f, "model", b->options.model);
    put_text(f, "date", b->date);
    put_text(f, "cpu", b->cpu);
    put_text(f, "system", b->kernel);
    put_text(f, "runtime", stgc_rt_describe(first->rt));
    put_text(f, "code", compiled_step(first->compiled)->cpu);
    put_text(f, "governor", b->governor ? b->governor : "unknown");
    put_text(f, "clock", b->own_clock ? "thread" : "wall");
    put_number(f, "load", b->load[0]);
    put_number(f, "foreign", b->foreign);
    put_number(f, "rounds", (double)b->rounds);
    put_number(f, "steps_per_timing", (double)b->inner);
    put_number(f, "tokens", (double)b->tokens);
    put_number(f, "noise", b->noise);
    put_number(f, "peak_flops", b->peak_flops);
    put_number(f, "peak_bytes", b->peak_bytes);
    put_number(f, "memory", (double)b->memory_planned);
    put_number(f, "heap_growth", (double)b->allocated);
    put_number(f, "compile_seconds", b->compile_seconds);
    put_number(f, "import_seconds", b->import_seconds);
    fprintf(f, ", \"random_data\": %s,\n \"variants\": [\n", b->random_data ? "true" : "false");
    for (int i = 0, n = 0; i < b->variants.n; i++) {
        if (b->variants.at[i].marks)
            continue;
        fputs(n++ ? ",\n" : "", f);
        put_variant(b, &b->variants.at[i], f);
    }
    fputs("\n ]", f);
    put_list(f, "kernels", &b->variants.at[b->profile].kernels);
    put_list(f, "kernels_unfused", &b->variants.at[b->profile_unfused].kernels);
    fputs("\n}\n", f);
}

/* ---- files ---- */

static bool write_file(const Bench *b, const char *path, void (*put)(const Bench *, FILE *),
                       Diag *d) {
    FILE *f = fopen(path, "w");
    bool ok = f != NULL;
    if (f) {
        put(b, f);
        ok = !ferror(f);
        ok &= fclose(f) == 0;
    }
    if (!ok)
        diag_error(d, EXIT_IO, "cannot write '%s': %s", diag_safe(d, path), strerror(errno));
    return ok;
}

bool bench_write_json(const Bench *b, const char *path, Diag *d) {
    return write_file(b, path, put_all, d);
}

static void put_field(FILE *f, const char *s) {
    fputc('"', f);
    for (; *s; s++)
        fprintf(f, *s == '"' ? "\"\"" : "%c", *s);
    fputs("\",", f);
}

static void put_csv(const Bench *b, FILE *f) {
    const KernelRows *k = &b->variants.at[b->profile].kernels;
    fputs("kind,family,op,node,name,seconds,unfused_seconds,flops,functions,bytes,bytes_least,"
          "roof_seconds\n",
          f);
    for (int i = 0; i < k->n; i++) {
        const KernelRow *r = &k->at[i];
        put_field(f, r->kind);
        put_field(f, r->family);
        put_field(f, r->op);
        put_field(f, r->source);
        put_field(f, r->name);
        fprintf(f, "%.9g,%.9g,%.9g,%.9g,%.9g,%.9g,%.9g\n", r->seconds, r->unfused, r->cost.flops,
                r->cost.special, r->cost.moved, r->cost.minimum, r->roof);
    }
}

bool bench_write_csv(const Bench *b, const char *path, Diag *d) {
    return write_file(b, path, put_csv, d);
}

bool bench_write_html(const Bench *b, const char *path, Diag *d) {
    return write_file(b, path, bench_html, d);
}
