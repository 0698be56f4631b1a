/* cmd_bench_html.c: the report of `stgcc bench` as one page: roofline, fused against unfused by
 * kind, capture modes, the tables. Drawings are inline SVG; nothing is loaded, nothing runs. Widths
 * are of the page, so that it reads on a phone and in print. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/cmd_bench.h"

enum { WIDTH = 480, SHOWN = 60 };

static const char *const colours[] = {"#1b6ca8", "#c8553d", "#3c8d53", "#8a5aa8",
                                      "#c99a1a", "#4b5563", "#b0417a", "#2a9d9d"};

static void put_escaped(FILE *f, const char *s) {
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '<')
            fputs("&lt;", f);
        else if (c == '>')
            fputs("&gt;", f);
        else if (c == '&')
            fputs("&amp;", f);
        else if (c == '"')
            fputs("&quot;", f);
        else
            fputc(c < 0x20 ? '?' : c, f);
    }
}

static void put_head(const Bench *b, FILE *f) {
    fputs("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>stgcc "
          "bench: ",
          f);
    put_escaped(f, b->options.model);
    fputs("</title>\n<style>\n"
          "body{font:15px/1.5 system-ui,sans-serif;color:#1f2933;background:#fff;max-width:60rem;"
          "margin:0 auto;padding:1rem}\n"
          "h1{font-size:1.5rem;margin:.5rem "
          "0;overflow-wrap:anywhere}h2{font-size:1.15rem;margin:2rem 0 .5rem}\n"
          "p{margin:.5rem 0}.note{color:#52606d;font-size:.9rem}\n"
          "svg{width:100%;max-width:44rem;height:auto;display:block;margin:.5rem 0 1rem}svg "
          "text{font:12px system-ui,sans-serif;"
          "fill:#1f2933}svg .dim{fill:#52606d}\n"
          ".wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;"
          "font-variant-numeric:tabular-nums}\n"
          "th,td{padding:.2rem .5rem;text-align:right;border-bottom:1px solid "
          "#e4e7eb;white-space:nowrap}\n"
          "th{color:#52606d;font-weight:600}.l{text-align:left}\n"
          ".big{display:flex;flex-wrap:wrap;gap:1rem 2rem;margin:1rem 0}.big div{min-width:7rem}"
          ".big b{display:block;font-size:1.4rem}\n"
          "@media "
          "print{body{max-width:none;padding:0;font-size:10pt}.wide{overflow:visible}table{font-"
          "size:6.5pt}"
          "th,td{padding:.1rem .25rem}h2{break-after:avoid}svg,tr{break-inside:avoid}}\n"
          "</style></head><body>\n",
          f);
}

static void put_fact(FILE *f, const char *value, const char *what) {
    fprintf(f, "<div><b>%s</b>%s</div>\n", value, what);
}

static void put_summary(const Bench *b, FILE *f) {
    const Variant *v = &b->variants.at[0];
    const KernelRows *k = &b->variants.at[b->profile].kernels;
    double flops = 0, t = samples_median(bench_times(b, v));
    char text[64];
    for (int i = 0; i < k->n; i++)
        flops += k->at[i].cost.flops;
    fputs("<h1>", f);
    put_escaped(f, b->options.model);
    fputs("</h1>\n<div class=\"big\">\n", f);
    snprintf(text, sizeof text, "%.3g ms", 1e3 * t);
    put_fact(f, text, "a training step");
    snprintf(text, sizeof text, "%.3g GF/s", flops / t / 1e9);
    put_fact(f, text, "of work");
    snprintf(text, sizeof text, "%.0f %%", 100 * flops / t / b->peak_flops);
    put_fact(f, text, "of the matrix product's rate");
    snprintf(text, sizeof text, "%.2f ×",
             samples_ratio(bench_times(b, &b->variants.at[b->unfused]), bench_times(b, v)));
    put_fact(f, text, "unfused by fused");
    snprintf(text, sizeof text, "%.3g MiB", (double)b->memory_planned / 1048576);
    put_fact(f, text, "planned memory");
    snprintf(text, sizeof text, "%.1f %%", 100 * b->noise);
    put_fact(f, text, "noise (the same step, timed twice)");
    fputs("</div>\n<p class=\"note\">", f);
    put_escaped(f, stgc_rt_describe(v->rt));
    fprintf(f,
            "; code for %s; governor %s; load average %.2f; other processes took %.0f %% of the "
            "cores. stgcc " STGCC_VERSION ", %s, %s. %lld rounds of %lld, medians%s.%s</p>\n",
            compiled_step(v->compiled)->cpu, b->governor ? b->governor : "unknown", b->load[0],
            100 * b->foreign, b->kernel, b->date, (long long)b->rounds, (long long)b->inner,
            b->own_clock ? " of CPU time (one thread)" : "",
            b->random_data ? " Inputs are made up at random." : "");
}

/* ---- roofline ---- */

enum { R_LEFT = 62, R_TOP = 14, R_W = WIDTH - 80, R_H = 270 };

typedef struct Axes {
    double x0, x1, y0, y1; /* powers of ten: flops a byte, flops a second */
} Axes;

static double place_x(const Axes *a, double v) {
    double p = (log10(v) - a->x0) / (a->x1 - a->x0);
    return R_LEFT + R_W * fmin(fmax(p, 0), 1);
}

static double place_y(const Axes *a, double v) {
    double p = (log10(v) - a->y0) / (a->y1 - a->y0);
    return R_TOP + R_H * (1 - fmin(fmax(p, 0), 1));
}

static bool has_place(const KernelRow *r) {
    return r->cost.flops > 0 && r->cost.minimum > 0 && r->seconds > 0;
}

static Axes axes_of(const Bench *b, const KernelRows *k) {
    double ridge = b->peak_flops / b->peak_bytes, top = b->peak_flops;
    Axes a = {log10(ridge), log10(ridge), log10(b->peak_flops), 0};
    double low = b->peak_flops;
    for (int i = 0; i < k->n; i++) {
        const KernelRow *r = &k->at[i];
        if (!has_place(r))
            continue;
        double x = log10(r->cost.flops / r->cost.minimum), y = r->cost.flops / r->seconds;
        a.x0 = fmin(a.x0, x), a.x1 = fmax(a.x1, x);
        low = fmin(low, y), top = fmax(top, y);
    }
    a.x0 = floor(a.x0), a.x1 = ceil(a.x1 + 0.01);
    a.y0 = floor(log10(low)), a.y1 = ceil(log10(top) + 0.01);
    a.x0 = fmax(a.x0, a.x1 - 6), a.y0 = fmax(a.y0, a.y1 - 6);
    return a;
}

static const char *power_text(int p, char *out, size_t n, const char *unit) {
    static const char *const parts[] = {"", "k", "M", "G", "T"};
    if (*unit && p >= 0 && p < 15)
        snprintf(out, n, "%d %s%s", (int)pow(10, p % 3), parts[p / 3], unit);
    else
        snprintf(out, n, p < 0 ? "%.*f" : "%.*f%s", p < 0 ? -p : 0, pow(10, p), unit);
    return out;
}

static void put_grid(const Axes *a, FILE *f) {
    char text[32];
    for (int p = (int)a->x0; p <= (int)a->x1; p++) {
        double x = place_x(a, pow(10, p));
        fprintf(f, "<path d=\"M%.1f %dV%d\" stroke=\"#e4e7eb\"/>", x, R_TOP, R_TOP + R_H);
        fprintf(f, "<text class=\"dim\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", x,
                R_TOP + R_H + 16, power_text(p, text, sizeof text, ""));
    }
    for (int p = (int)a->y0; p <= (int)a->y1; p++) {
        double y = place_y(a, pow(10, p));
        fprintf(f, "<path d=\"M%d %.1fH%d\" stroke=\"#e4e7eb\"/>", R_LEFT, y, R_LEFT + R_W);
        fprintf(f, "<text class=\"dim\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n",
                R_LEFT - 6, y + 4, power_text(p, text, sizeof text, "F/s"));
    }
    fprintf(f,
            "<text class=\"dim\" x=\"%d\" y=\"%d\" text-anchor=\"middle\">operations per byte "
            "(operands and results once)</text>\n",
            R_LEFT + R_W / 2, R_TOP + R_H + 34);
}

static void put_roof(const Bench *b, const Axes *a, FILE *f) {
    double left = pow(10, a->x0), ridge = b->peak_flops / b->peak_bytes;
    double start = fmax(left, pow(10, a->y0) / b->peak_bytes);
    fprintf(f,
            "<path d=\"M%.1f %.1fL%.1f %.1fH%d\" fill=\"none\" stroke=\"#1f2933\" "
            "stroke-width=\"1.5\"/>\n",
            place_x(a, start), place_y(a, start * b->peak_bytes), place_x(a, ridge),
            place_y(a, b->peak_flops), R_LEFT + R_W);
    fprintf(f, "<text x=\"%d\" y=\"%d\">product %.4g GF/s, copy %.3g GB/s</text>\n", R_LEFT + 8,
            R_TOP + 16, b->peak_flops / 1e9, b->peak_bytes / 1e9);
}

/* Families are coloured in the order of their time; what comes after the eighth is grey. */
static int family_place(const FamilyRows *rows, const char *name) {
    for (int i = 0; i < rows->n; i++)
        if (!strcmp(rows->at[i].name, name))
            return i;
    return rows->n;
}

static const char *colour_of(int place) {
    return place < COUNT_OF(colours) ? colours[place] : "#9aa5b1";
}

static void put_dots(const KernelRows *k, const FamilyRows *rows, const Axes *a, FILE *f) {
    double most = 0;
    for (int i = 0; i < k->n; i++)
        most = fmax(most, k->at[i].seconds);
    for (int i = 0; i < k->n; i++) {
        const KernelRow *r = &k->at[i];
        if (!has_place(r))
            continue;
        fprintf(
            f,
            "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\" fill=\"%s\" fill-opacity=\".55\"><title>",
            place_x(a, r->cost.flops / r->cost.minimum), place_y(a, r->cost.flops / r->seconds),
            2 + 9 * sqrt(r->seconds / most), colour_of(family_place(rows, r->family)));
        put_escaped(f, r->name);
        fprintf(f, ": %.3f ms</title></circle>\n", 1e3 * r->seconds);
    }
}

static void put_legend(const FamilyRows *rows, FILE *f) {
    int n = rows->n < COUNT_OF(colours) ? rows->n : COUNT_OF(colours);
    for (int i = 0; i < n; i++) {
        int x = R_LEFT + (i % 3) * (R_W / 3), y = R_TOP + R_H + 56 + (i / 3) * 18;
        fprintf(f, "<circle cx=\"%d\" cy=\"%d\" r=\"5\" fill=\"%s\"/><text x=\"%d\" y=\"%d\">",
                x + 5, y - 4, colour_of(i), x + 16, y);
        put_escaped(f, rows->at[i].name);
        fputs("</text>\n", f);
    }
}

static void put_roofline(const Bench *b, FILE *f) {
    const KernelRows *k = &b->variants.at[b->profile].kernels;
    FamilyRows rows = bench_families(k);
    Axes a = axes_of(b, k);
    fputs("<h2>Kernels under the roof</h2>\n<p class=\"note\">A dot is a kernel, its area the time "
          "it "
          "takes. The roof is the slower of the machine's matrix product and copy, measured in the "
          "same run; dots above it had their data in the caches.</p>\n",
          f);
    fprintf(f, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"roofline\">\n", WIDTH,
            R_TOP + R_H + 100);
    put_grid(&a, f);
    put_roof(b, &a, f);
    put_dots(k, &rows, &a, f);
    put_legend(&rows, f);
    fputs("</svg>\n", f);
    vec_free(&rows);
}

/* ---- bars ---- */

enum { B_LEFT = 158, B_ROW = 30, B_RIGHT = 56 };

static void put_bar(FILE *f, double y, double height, double part, const char *colour,
                    const char *text) {
    double w = (WIDTH - B_LEFT - B_RIGHT) * fmin(fmax(part, 0), 1);
    fprintf(f, "<rect x=\"%d\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>", B_LEFT, y,
            fmax(w, 0.5), height, colour);
    fprintf(f, "<text class=\"dim\" x=\"%.1f\" y=\"%.1f\">%s</text>\n", B_LEFT + w + 6,
            y + height / 2 + 4, text);
}

static void put_label(FILE *f, double y, const char *s) {
    fprintf(f, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">", B_LEFT - 8, y);
    put_escaped(f, s);
    fputs("</text>\n", f);
}

static void put_family_bars(const Bench *b, FILE *f) {
    FamilyRows rows = bench_families(&b->variants.at[b->profile].kernels);
    double most = 0;
    int n = rows.n < 12 ? rows.n : 12;
    char text[32];
    for (int i = 0; i < n; i++)
        most = fmax(most, fmax(rows.at[i].seconds, rows.at[i].unfused));
    fputs("<h2>Fused against unfused, by kind</h2>\n<p class=\"note\"><span "
          "style=\"color:#1b6ca8\">■</span> fused, <span style=\"color:#b8c4d0\">■</span> the same "
          "operations each as a kernel of its own; milliseconds.</p>\n",
          f);
    fprintf(f, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"fused against unfused\">\n",
            WIDTH, n * B_ROW + 4);
    for (int i = 0; i < n; i++) {
        double y = i * B_ROW + 4;
        put_label(f, y + 17, rows.at[i].name);
        snprintf(text, sizeof text, "%.3g", 1e3 * rows.at[i].seconds);
        put_bar(f, y, 12, rows.at[i].seconds / most, "#1b6ca8", text);
        snprintf(text, sizeof text, "%.3g", 1e3 * rows.at[i].unfused);
        put_bar(f, y + 13, 12, rows.at[i].unfused / most, "#b8c4d0", text);
    }
    fputs("</svg>\n", f);
    vec_free(&rows);
}

static void put_variant_bars(const Bench *b, FILE *f) {
    double most = 0, first = samples_median(bench_times(b, &b->variants.at[0]));
    int n = 0;
    for (int i = 0; i < b->variants.n; i++) {
        const Variant *v = &b->variants.at[i];
        if (!v->marks)
            n++, most = fmax(most, samples_median(bench_times(b, v)) / first);
    }
    fputs(
        "<h2>The step, compiled in several ways</h2>\n<p class=\"note\">Time by that of the first; "
        "ratios are medians of ratios within a round.</p>\n",
        f);
    fprintf(f, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"variants\">\n", WIDTH,
            n * 26 + 4);
    for (int i = 0, at = 0; i < b->variants.n; i++) {
        const Variant *v = &b->variants.at[i];
        double ratio = samples_ratio(bench_times(b, v), bench_times(b, &b->variants.at[0]));
        char text[32];
        if (v->marks)
            continue;
        double y = at++ * 26 + 4;
        bool capture = !strcmp(v->group, "capture"), threads = !strcmp(v->group, "threads");
        put_label(f, y + 14, v->name);
        snprintf(text, sizeof text, "%.3f", ratio);
        put_bar(f, y, 18, ratio / fmax(most, 1),
                capture   ? "#3c8d53"
                : threads ? "#c99a1a"
                          : "#1b6ca8",
                text);
    }
    fputs("</svg>\n", f);
}

/* ---- tables ---- */

static void put_variant_table(const Bench *b, FILE *f) {
    fputs("<div class=\"wide\"><table><tr><th class=\"l\">step</th><th>median ms</th><th>min</th>"
          "<th>max</th><th>ratio</th><th>CPU ms</th><th>loss off by</th><th>parameters off by</th>"
          "</tr>\n",
          f);
    for (int i = 0; i < b->variants.n; i++) {
        const Variant *v = &b->variants.at[i];
        if (v->marks)
            continue;
        fprintf(f,
                "<tr><td class=\"l\">%s</td><td>%.3f</td><td>%.3f</td><td>%.3f</td><td>%.3f</td>"
                "<td>%.3f</td><td>%.0e</td>",
                v->name, 1e3 * samples_median(&v->wall), 1e3 * samples_min(&v->wall),
                1e3 * samples_max(&v->wall),
                samples_ratio(bench_times(b, v), bench_times(b, &b->variants.at[0])),
                1e3 * samples_median(&v->cpu), v->loss_error);
        if (v->check >= CHECK_FORWARD)
            fputs("<td>(other gradients)</td></tr>\n", f);
        else
            fprintf(f, "<td>%.0e</td></tr>\n", v->param_error);
    }
    fputs("</table></div>\n", f);
}

static int slowest_first(const void *a, const void *b) {
    double x = (*(const KernelRow *const *)a)->seconds, y = (*(const KernelRow *const *)b)->seconds;
    return (x < y) - (x > y);
}

static void put_kernel_row(const KernelRow *r, double all, FILE *f) {
    double t = r->seconds > 0 ? r->seconds : NAN;
    fputs("<tr><td class=\"l\">", f);
    put_escaped(f, r->name);
    fprintf(f,
            "</td><td>%.3f</td><td>%.1f</td><td>%.3f</td><td>%.2f</td><td>%.3f</td><td>%.3f</td>"
            "<td>%.1f</td><td>%.1f</td><td>%.0f</td></tr>\n",
            1e3 * r->seconds, 100 * r->seconds / all, 1e3 * r->unfused, r->cost.flops / 1e6,
            r->cost.moved / 1e6, r->cost.minimum / 1e6, r->cost.flops / t / 1e9,
            r->cost.moved / t / 1e9, 100 * r->roof / t);
}

static void put_kernel_table(const Bench *b, FILE *f) {
    const KernelRows *k = &b->variants.at[b->profile].kernels;
    const KernelRow **order = xcalloc((size_t)k->n + 1, sizeof *order);
    double all = 0;
    for (int i = 0; i < k->n; i++)
        order[i] = &k->at[i], all += k->at[i].seconds;
    qsort(order, (size_t)k->n, sizeof *order, slowest_first);
    int n = k->n < SHOWN ? k->n : SHOWN;
    fprintf(f,
            "<h2>Kernels</h2>\n<p class=\"note\">The slowest %d of %d. Roof: time at the peaks for "
            "its operations and least bytes, by its own time.</p>\n",
            n, k->n);
    fputs("<div class=\"wide\"><table><tr><th "
          "class=\"l\">kernel</th><th>ms</th><th>%</th><th>unfused "
          "ms</th><th>MF</th><th>MB</th><th>MB least</th><th>GF/s</th><th>GB/s</th><th>roof %</th>"
          "</tr>\n",
          f);
    for (int i = 0; i < n; i++)
        put_kernel_row(order[i], all, f);
    fputs("</table></div>\n", f);
    free(order);
}

void bench_html(const Bench *b, FILE *to) {
    put_head(b, to);
    put_summary(b, to);
    put_variant_bars(b, to);
    put_variant_table(b, to);
    put_roofline(b, to);
    put_family_bars(b, to);
    put_kernel_table(b, to);
    fputs("</body></html>\n", to);
}
