/* cmd_bench_compare.c: `stgcc bench --compare OLD.json`: which steps became slower.
 *
 * A step is slower if its time grew beyond the noise of both runs, and still did when both times
 * are counted in products that the machine could have done meanwhile (time x peak): a machine that
 * is slower as a whole is no regression. */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/cmd_bench.h"

#define LEAST_NOISE 0.02

/* ---- reading what cmd_bench_json.c writes: any JSON, of which only some is kept ---- */

typedef struct OldVariant {
    char name[64];
    double judged;
} OldVariant;

typedef struct Old {
    double noise, peak_flops, schema;
    char cpu[160], clock[16];
    VEC(OldVariant) variants;
} Old;

typedef struct Reader {
    const char *at;
    int depth;
    bool in_variants;
    Old *old;
} Reader;

static void skip_space(Reader *r) {
    while (isspace((unsigned char)*r->at))
        r->at++;
}

/* A string without its quotes, cut to the size of `out`. */
static bool read_string(Reader *r, char *out, size_t size) {
    size_t n = 0;
    if (*r->at++ != '"')
        return false;
    for (; *r->at && *r->at != '"'; r->at++) {
        char c = *r->at;
        if (c == '\\' && !*++r->at)
            return false;
        c = c == '\\' ? *r->at : c;
        if (n + 1 < size)
            out[n++] = c;
    }
    out[n] = 0;
    return *r->at++ == '"';
}

static bool read_value(Reader *r, const char *key);

static void keep_number(Reader *r, const char *key, double v) {
    Old *o = r->old;
    if (r->in_variants && r->depth == 3 && !strcmp(key, "judged") && o->variants.n)
        o->variants.at[o->variants.n - 1].judged = v;
    if (r->depth == 1 && !strcmp(key, "noise"))
        o->noise = v;
    if (r->depth == 1 && !strcmp(key, "peak_flops"))
        o->peak_flops = v;
    if (r->depth == 1 && !strcmp(key, "schema"))
        o->schema = v;
}

static void keep_text(char *to, size_t size, const char *s) {
    size_t n = strnlen(s, size - 1);
    memcpy(to, s, n);
    to[n] = 0;
}

static void keep_string(Reader *r, const char *key, const char *s) {
    Old *o = r->old;
    if (r->in_variants && r->depth == 3 && !strcmp(key, "name") && o->variants.n)
        keep_text(o->variants.at[o->variants.n - 1].name, sizeof o->variants.at[0].name, s);
    if (r->depth == 1 && !strcmp(key, "cpu"))
        keep_text(o->cpu, sizeof o->cpu, s);
    if (r->depth == 1 && !strcmp(key, "clock"))
        keep_text(o->clock, sizeof o->clock, s);
}

/* Members of an object or array, between its brackets. */
static bool read_members(Reader *r, char close, const char *of) {
    bool variants = r->depth == 1 && !strcmp(of, "variants"), before = r->in_variants;
    if (r->depth > 8)
        return false;
    r->at++;
    r->depth++;
    r->in_variants |= variants;
    if (r->in_variants && close == '}' && r->depth == 3)
        vec_push(&r->old->variants, ((OldVariant){.judged = NAN}));
    for (skip_space(r); *r->at && *r->at != close; skip_space(r)) {
        char key[64] = "";
        if (close == '}') {
            if (!read_string(r, key, sizeof key))
                return false;
            skip_space(r);
            if (*r->at++ != ':')
                return false;
        }
        if (!read_value(r, key))
            return false;
        skip_space(r);
        if (*r->at == ',')
            r->at++;
        else if (*r->at != close)
            return false;
    }
    r->depth--;
    r->in_variants = before;
    return *r->at++ == close;
}

static bool read_value(Reader *r, const char *key) {
    char text[512], *end;
    skip_space(r);
    if (*r->at == '{' || *r->at == '[')
        return read_members(r, *r->at == '{' ? '}' : ']', key);
    if (*r->at == '"') {
        if (!read_string(r, text, sizeof text))
            return false;
        keep_string(r, key, text);
        return true;
    }
    if (isalpha((unsigned char)*r->at)) { /* true, false, null */
        while (isalpha((unsigned char)*r->at))
            r->at++;
        return true;
    }
    double v = strtod(r->at, &end);
    if (end == r->at)
        return false;
    r->at = end;
    keep_number(r, key, v);
    return true;
}

static char *read_file(const char *path) {
    FILE *f = fopen(path, "r");
    char *text = NULL, block[4096];
    size_t n = 0, got;
    while (f && (got = fread(block, 1, sizeof block, f)) > 0) {
        text = xrealloc(text, n + got + 1);
        memcpy(text + n, block, got);
        text[n += got] = 0;
    }
    if (f)
        fclose(f);
    return text;
}

static bool read_old(Old *o, const char *path, Diag *d) {
    char *text = read_file(path);
    Reader r = {.at = text, .old = o};
    bool ok = text && read_value(&r, "") && o->schema == 1 && o->variants.n;
    if (!text)
        diag_error(d, EXIT_IO, "--compare: cannot read '%s': %s", diag_safe(d, path),
                   strerror(errno));
    else if (!ok)
        diag_error(d, EXIT_DATA, "--compare: '%s' is not what 'stgcc bench --json' wrote",
                   diag_safe(d, path));
    free(text);
    return ok;
}

/* ---- comparing ---- */

static const Variant *variant_of(const Bench *b, const char *name) {
    for (int i = 0; i < b->variants.n; i++)
        if (!b->variants.at[i].marks && !strcmp(b->variants.at[i].name, name))
            return &b->variants.at[i];
    return NULL;
}

static void print_comparison(const Bench *b, const Old *o, int *worse) {
    double noise = fmax(fmax(o->noise, b->noise), LEAST_NOISE);
    printf("\n%-24s %10s %10s %7s %9s\n", "against the earlier run", "then ms", "now ms", "ratio",
           "by peaks");
    for (int i = 0; i < o->variants.n; i++) {
        const OldVariant *v = &o->variants.at[i];
        const Variant *now = variant_of(b, v->name);
        double t = now ? samples_median(bench_times(b, now)) : NAN, ratio = t / v->judged;
        double by_peaks = ratio * b->peak_flops / o->peak_flops;
        bool slower = ratio > 1 + noise && by_peaks > 1 + noise;
        if (!now)
            continue;
        printf("%-24s %10.3f %10.3f %7.3f %9.3f%s\n", v->name, 1e3 * v->judged, 1e3 * t, ratio,
               by_peaks, slower ? "  slower" : "");
        *worse += slower;
    }
    printf("%d slower beyond the noise of %.1f %%\n", *worse, 100 * noise);
}

bool bench_compare(const Bench *b, const char *path, int *worse, Diag *d) {
    Old o = {0};
    bool ok = read_old(&o, path, d);
    if (ok && strcmp(o.cpu, b->cpu) != 0)
        diag_warning(d, "--compare: the earlier run was on another CPU, %s", diag_safe(d, o.cpu));
    if (ok && strcmp(o.clock, b->own_clock ? "thread" : "wall") != 0) {
        diag_error(d, EXIT_USAGE, "--compare: the earlier run was timed by another clock");
        diag_more(d, "give the same --threads");
        ok = false;
    }
    if (ok)
        print_comparison(b, &o, worse);
    vec_free(&o.variants);
    return ok;
}
