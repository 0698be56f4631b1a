/* cmd_options.c: the command line: one table of options, read and explained from it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/cmd_compile.h"

typedef enum {
    OPT_FLAG,   /* bool */
    OPT_TEXT,   /* const char * */
    OPT_LIST,   /* StrList: may be repeated */
    OPT_COUNT,  /* int64_t >= 1 */
    OPT_INDEX,  /* int64_t >= 0 */
    OPT_BYTES,  /* int64_t, with K M G T */
    OPT_ENGINE, /* EngineKind */
    OPT_TARGET, /* const char *: this CPU or a kind of GPU */
} OptionKind;

typedef struct OptionRow {
    const char *name;
    char letter; /* 0: none */
    OptionKind kind;
    size_t offset;
    const char *commands; /* those that take it, separated by spaces; NULL: all */
    const char *argument, *what;
} OptionRow;

#define AT(field) offsetof(Options, field)
static const OptionRow rows[] = {
    {"config", 'c', OPT_TEXT, AT(recipe), "inspect transform compile export step train bench", "C.yaml", "the training recipe"},
    {"set", 0, OPT_LIST, AT(sets), "inspect transform compile step train bench", "KEY=VALUE",
     "one key of the recipe, such as stgc.threshold=-0.1 (repeatable)"},
    {"freeze", 0, OPT_LIST, AT(freeze), "transform compile step train bench", "GLOB",
     "also freeze these parameters (repeatable)"},
    {"data", 0, OPT_TEXT, AT(data), "inspect init transform compile step run train bench", "FILE",
     "the batch: arrays by input name as .npz"},
    {"output", 'o', OPT_TEXT, AT(out), "init transform compile export step run train", "PATH", "where the result goes"},
    {"dim", 0, OPT_LIST, AT(dims), NULL, "NAME=N", "the size of a symbolic dim (repeatable)"},
    {"emit", 0, OPT_TEXT, AT(emit), "transform compile", "WHAT",
     "transform: gradients (losses, every gradient, cosines; the default) or step (one optimizer "
     "step); compile: so (the default), obj, llvm, asm, ir; for a GPU ptx, llvm"},
    {"march", 0, OPT_TEXT, AT(march), "compile", "CPU",
     "x86-64-v3, x86-64-v4 or native (default: v3 and v4, chosen when it is opened)"},
    {"cost", 0, OPT_FLAG, AT(cost), "compile", NULL,
     "--emit=ptx: a table of the kernels: flops, bytes, registers, occupancy, roofline model"},
    {"params", 0, OPT_TEXT, AT(params), "export", "P.safetensors", "the trained parameters"},
    {"opset", 0, OPT_COUNT, AT(opset), "transform", "N", "17 to 25 (default 18)"},
    {"external-data", 0, OPT_FLAG, AT(external_data), "transform", NULL,
     "large tensors into PATH.data (always beyond 2 GiB)"},
    {"initial-values", 0, OPT_FLAG, AT(initial_values), "transform", NULL,
     "--emit=step: parameters' values as defaults of their inputs"},
    {"steps", 0, OPT_COUNT, AT(steps), "train", "N", "stop after step N; overrides schedule.steps"},
    {"resume", 0, OPT_FLAG, AT(resume), "train", NULL, "go on from the newest checkpoint in RUN/"},
    {"json", 0, OPT_FLAG, AT(json), "inspect", NULL, "the same facts as JSON"},
    {"json", 0, OPT_TEXT, AT(json_file), "bench", "FILE", "all numbers as JSON"},
    {"csv", 0, OPT_TEXT, AT(csv), "bench", "FILE", "the table of kernels as CSV"},
    {"html", 0, OPT_TEXT, AT(html), "bench", "FILE", "a page with roofline and bars"},
    {"compare", 0, OPT_TEXT, AT(compare), "bench", "OLD.json",
     "against an earlier run: exit 1 if a step became slower beyond the noise"},
    {"rounds", 0, OPT_COUNT, AT(rounds), "bench", "N", "timings of every variant (default 9)"},
    {"engine", 0, OPT_ENGINE, AT(engine), "step run train", "NAME",
     "cpu (compiled, the default) or reference (float64, slow)"},
    {"target", 0, OPT_TARGET, AT(target), "step run train bench", "NAME",
     "cpu (also spelled x86-64; the default), sm_80, sm_86, sm_89, sm_90, sm_100 or sm_120"},
    {"target", 0, OPT_TEXT, AT(target), "compile", "NAME",
     "cpu (also spelled x86-64), sm_80, sm_86, sm_89, sm_90, sm_100 or sm_120"},
    {"device", 0, OPT_INDEX, AT(device), "step run train", "N",
     "which GPU, as the driver counts (default 0)"},
    {"emulate", 0, OPT_FLAG, AT(emulate), "step run train", NULL,
     "tests only: run GPU code in the PTX emulator of the build folder (not a GPU)"},
    {"threads", 0, OPT_COUNT, AT(threads), "step run train bench", "N",
     "threads of compiled code (default: all cores)"},
    {"unfused", 0, OPT_FLAG, AT(unfused), "compile step run train", NULL, "compile every operation alone"},
    {"require-moe", 0, OPT_FLAG, AT(require_moe), "inspect transform compile step train bench", NULL,
     "no MoE layer found: exit 3"},
    {"allow-unraised", 0, OPT_FLAG, AT(allow_unraised), "transform compile step run train bench", NULL,
     "go on although a layer was not understood"},
    {"mem-limit", 0, OPT_BYTES, AT(mem_limit), NULL, "BYTES",
     "refuse work that needs more memory, such as 4G"},
    {"max-nodes", 0, OPT_COUNT, AT(max_nodes), NULL, "N",
     "nodes a model may have (default 1,000,000)"},
    {"max-heap", 0, OPT_BYTES, AT(max_heap), NULL, "BYTES",
     "memory that unpacking a model may take"},
    {"sort", 0, OPT_FLAG, AT(sort), NULL, NULL, "accept a model whose nodes are not in order"},
    {"dump", 0, OPT_TEXT, AT(dump), NULL, "PASS",
     "print the graph after a pass (or: kernels, loops, llvm, asm)"},
    {"stop-after", 0, OPT_TEXT, AT(stop_after), NULL, "PASS", "end after a pass"},
    {"skip", 0, OPT_LIST, AT(skip), NULL, "PASS", "leave a pass out (repeatable)"},
    {"list-passes", 0, OPT_FLAG, AT(list_passes), NULL, NULL, "name the passes"},
    {"quiet", 'q', OPT_FLAG, AT(quiet), NULL, NULL, "errors only"},
    {"verbose", 'v', OPT_FLAG, AT(verbose), NULL, NULL, "say more"},
    {"help", 'h', OPT_FLAG, AT(help), NULL, NULL, "this text"},
    {"version", 0, OPT_FLAG, AT(version), NULL, NULL, "the version"},
};

static bool word_in(const char *words, const char *word) {
    size_t n = strlen(word);
    for (const char *p = words; (p = strstr(p, word)); p += n)
        if ((p == words || p[-1] == ' ') && (!p[n] || p[n] == ' '))
            return true;
    return false;
}

static bool takes(const Command *c, const OptionRow *row) {
    return !row->commands || word_in(row->commands, c->name);
}

/* ---- help ---- */

static void help_program(FILE *to) {
    fputs("Usage: stgcc COMMAND MODEL.onnx [OPTION]...\n"
          "Trains Mixture-of-Experts models exported to ONNX, with token gradient conflicts solved "
          "(STGC).\n\n"
          "Commands:\n",
          to);
    for (int i = 0; i < ncommands; i++)
        fprintf(to, "  %-9s %s\n", commands[i].name, commands[i].what);
    fputs("\n`stgcc COMMAND --help` explains one; `stgcc --list-passes` names the compiler's "
          "passes,\n"
          "`stgcc --version` the version.\n"
          "Exit codes: 0 ok, 2 usage or recipe, 3 model, 4 data or checkpoint, 5 a limit, 6 I/O,\n"
          "7 NaN or Inf, 70 a fault of stgcc.\n",
          to);
}

void options_help(const Command *c, FILE *to) {
    if (!c) {
        help_program(to);
        return;
    }
    fprintf(to, "Usage: stgcc %s %s [OPTION]...\n%s\n", c->name, c->arguments, c->more);
    fputs("\nOptions:\n", to);
    for (int i = 0; i < COUNT_OF(rows); i++) {
        const OptionRow *r = &rows[i];
        if (!takes(c, r))
            continue;
        char left[40];
        snprintf(left, sizeof left, "--%s%s%s", r->name, r->argument ? "=" : "",
                 r->argument ? r->argument : "");
        if (r->letter)
            fprintf(to, "  -%c, %-22s %s\n", r->letter, left, r->what);
        else
            fprintf(to, "      %-22s %s\n", left, r->what);
    }
}

/* ---- reading ---- */

/* The command's own row of that name, or that of another command. */
static const OptionRow *find_row(const Command *c, const char *name, size_t n) {
    const OptionRow *other = NULL;
    for (int i = 0; i < COUNT_OF(rows); i++) {
        if (strlen(rows[i].name) != n || memcmp(rows[i].name, name, n) != 0)
            continue;
        if (takes(c, &rows[i]))
            return &rows[i];
        other = &rows[i];
    }
    return other;
}

static bool unknown_option(const Command *c, const char *word, Diag *d) {
    const char *names[COUNT_OF(rows)];
    int n = 0;
    for (int i = 0; i < COUNT_OF(rows); i++)
        if (takes(c, &rows[i]))
            names[n++] = arena_printf(&d->arena, "--%s", rows[i].name);
    diag_error(d, EXIT_USAGE, "%s: unknown option '%s'", c->name, diag_safe(d, word));
    const char *near = nearest_word(word, names, n);
    if (near)
        diag_more(d, "did you mean '%s'?", near);
    else
        diag_more(d, "`stgcc %s --help` lists the options", c->name);
    return false;
}

static bool bad_value(const OptionRow *r, const char *value, const char *expected, Diag *d) {
    diag_error(d, EXIT_USAGE, "--%s: expected %s, found '%s'", r->name, expected,
               diag_safe(d, value));
    return false;
}

static bool read_count(const OptionRow *r, const char *value, int64_t least, int64_t *out,
                       Diag *d) {
    char *end;
    errno = 0;
    *out = strtoll(value, &end, 10);
    if (end == value || *end || errno || *out < least || *out > INT32_MAX)
        return bad_value(r, value, least ? "a number of 1 or more" : "a number of 0 or more", d);
    return true;
}

static bool read_bytes(const OptionRow *r, const char *value, int64_t *out, Diag *d) {
    static const char units[] = "KMGT";
    char *end;
    errno = 0;
    *out = strtoll(value, &end, 10);
    const char *unit = *end ? strchr(units, *end) : NULL;
    for (const char *p = units; unit && p <= unit; p++)
        if (__builtin_mul_overflow(*out, 1024, out))
            errno = ERANGE;
    if (end == value ||
        (*end && (!unit || (end[1] && strcmp(end + 1, "B") != 0 && strcmp(end + 1, "iB") != 0))) ||
        errno || *out < 1)
        return bad_value(r, value, "a size such as 500M or 4G", d);
    return true;
}

static bool set_option(Options *o, const OptionRow *r, const char *value, Diag *d) {
    void *field = (char *)o + r->offset;
    switch (r->kind) {
    case OPT_FLAG:
        *(bool *)field = true;
        return true;
    case OPT_TEXT:
        if (!*value)
            return bad_value(r, value, r->argument, d);
        *(const char **)field = value;
        return true;
    case OPT_LIST:
        vec_push((StrList *)field, value);
        return true;
    case OPT_COUNT:
        return read_count(r, value, 1, field, d);
    case OPT_INDEX:
        return read_count(r, value, 0, field, d);
    case OPT_BYTES:
        return read_bytes(r, value, field, d);
    case OPT_ENGINE:
        o->engine = !strcmp(value, "reference") ? ENGINE_REFERENCE : ENGINE_CPU;
        return !strcmp(value, "reference") || !strcmp(value, "cpu") ||
               bad_value(r, value, "cpu or reference", d);
    case OPT_TARGET:
        *(const char **)field = value;
        return !strcmp(value, "cpu") || !strcmp(value, "x86-64") || codegen_knows_gpu(value, d);
    }
    bug("option kind %d", r->kind);
}

typedef struct Words {
    int argc, at;
    char **argv;
    bool only_arguments; /* after -- */
} Words;

/* --name, --name=value, --name value */
static bool read_long(Options *o, const Command *c, Words *w, Diag *d) {
    const char *word = w->argv[w->at], *name = word + 2, *equals = strchr(name, '=');
    const OptionRow *r = find_row(c, name, equals ? (size_t)(equals - name) : strlen(name));
    if (!r || !takes(c, r)) {
        char *bare = arena_strdup(&d->arena, word);
        if (equals)
            bare[equals - word] = 0;
        else if (w->at + 1 < w->argc && w->argv[w->at + 1][0] != '-')
            w->at++; /* probably its value: not one more thing to complain about */
        return unknown_option(c, bare, d);
    }
    if (r->kind == OPT_FLAG && equals) {
        diag_error(d, EXIT_USAGE, "--%s takes no value", r->name);
        return false;
    }
    const char *value = equals ? equals + 1 : NULL;
    if (r->kind != OPT_FLAG && !value && w->at + 1 < w->argc)
        value = w->argv[++w->at];
    if (r->kind != OPT_FLAG && !value) {
        diag_error(d, EXIT_USAGE, "--%s: a value is missing: --%s=%s", r->name, r->name,
                   r->argument);
        return false;
    }
    return set_option(o, r, value, d);
}

/* -c FILE, -cFILE, -qv */
static bool read_short(Options *o, const Command *c, Words *w, Diag *d) {
    const char *word = w->argv[w->at];
    for (const char *p = word + 1; *p; p++) {
        const OptionRow *r = NULL;
        for (int i = 0; i < COUNT_OF(rows); i++)
            if (rows[i].letter == *p && takes(c, &rows[i]))
                r = &rows[i];
        if (!r)
            return unknown_option(c, word, d);
        if (r->kind == OPT_FLAG) {
            set_option(o, r, NULL, d);
            continue;
        }
        const char *value = p[1] ? p + 1 : w->at + 1 < w->argc ? w->argv[++w->at] : NULL;
        if (value)
            return set_option(o, r, value, d);
        diag_error(d, EXIT_USAGE, "-%c: a value is missing: -%c %s", r->letter, r->letter,
                   r->argument);
        return false;
    }
    return true;
}

static bool read_argument(Options *o, const Command *c, const char *word, Diag *d) {
    if (!o->model) {
        o->model = word;
        return true;
    }
    diag_error(d, EXIT_USAGE, "%s: one model at a time; '%s' is one too many", c->name,
               diag_safe(d, word));
    return false;
}

static bool require(const Command *c, const char *value, const char *commands_that,
                    const char *what, Diag *d) {
    if (value || !word_in(commands_that, c->name))
        return true;
    diag_error(d, EXIT_USAGE, "%s: %s is missing", c->name, what);
    diag_more(d, "usage: stgcc %s %s", c->name, c->arguments);
    return false;
}

/* --device and --emulate are of no use on a CPU; a compiled step knows itself what it is for. */
static bool machine_agrees(const Options *o, const Command *c, Diag *d) {
    bool gpu = device_target(o) != NULL;
    if (!word_in("step run train", c->name) || !(gpu || o->device || o->emulate))
        return true;
    bool library = is_library(o->model);
    if (gpu && o->engine == ENGINE_REFERENCE)
        diag_error(d, EXIT_USAGE, "--engine=reference computes on this CPU, --target=%s is a GPU",
                   o->target);
    else if (gpu && library)
        diag_error(d, EXIT_USAGE, "--target=%s: '%s' is compiled already, for what it says itself",
                   o->target, diag_safe(d, o->model));
    else if ((o->device || o->emulate) && !gpu && !(library && !o->target))
        diag_error(d, EXIT_USAGE, "--%s is for GPUs; give --target=sm_80, or another kind, too",
                   o->emulate ? "emulate" : "device");
    return !d->errors;
}

bool options_read(Options *o, const Command *c, int argc, char **argv, Diag *d) {
    Words w = {argc, 0, argv, false};
    bool ok = true;
    for (; w.at < argc; w.at++) {
        const char *word = argv[w.at];
        if (!w.only_arguments && !strcmp(word, "--"))
            w.only_arguments = true;
        else if (w.only_arguments || word[0] != '-' || !word[1])
            ok &= read_argument(o, c, word, d);
        else if (word[1] == '-')
            ok &= read_long(o, c, &w, d);
        else
            ok &= read_short(o, c, &w, d);
    }
    if (!ok || o->help || o->version || o->list_passes)
        return ok;
    ok &= require(c, o->model, "inspect init transform compile export step run train", "the model (MODEL.onnx)", d);
    ok &= require(c, o->data, "step run train", "the data (--data=FILE)", d);
    ok &= require(c, o->params, "export", "the parameters (--params=P.safetensors)", d);
    ok &= require(c, o->out, "transform compile export step run train", "where the result goes (-o PATH)", d);
    return ok && machine_agrees(o, c, d);
}

void options_free(Options *o) {
    vec_free(&o->sets);
    vec_free(&o->dims);
    vec_free(&o->skip);
    vec_free(&o->freeze);
}
