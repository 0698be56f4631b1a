/* cmd_compile_header.c: STEP.h. Names come from a model: in strings every byte that is no plain
 * letter, digit or mark is escaped, in comments replaced, so that nothing of a name is code. */
#include <ctype.h>
#include <string.h>

#include "frontend/cmd_compile.h"
#include "ir/tensor.h"

static void put_string(const char *s, FILE *to) {
    fputc('"', to);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\' || c == '?' || c < 0x20 || c >= 0x7f)
            fprintf(to, "\\%03o", c);
        else
            fputc(c, to);
    }
    fputc('"', to);
}

static void put_comment(const char *s, FILE *to) {
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        bool plain = c >= 0x20 && c < 0x7f && c != '\\' && !(c == '*' && s[1] == '/') &&
                     !(c == '/' && s[1] == '*');
        fputc(plain ? c : '?', to);
    }
}

static void put_type(const StgcSlot *s, FILE *to) {
    fprintf(to, "%s[", dtype_name(dtype_from_onnx(s->type)));
    for (int i = 0; i < s->rank; i++)
        fprintf(to, "%s%lld", i ? "," : "", (long long)s->dims[i]);
    fputc(']', to);
}

static bool hidden(const StgcSlot *s) {
    return !strcmp(s->name, "hyper") || !strncmp(s->name, "const/", 6) || s->kind == STGC_SLOT_GRAD;
}

/* Whether an earlier slot has this name. */
static bool seen(const HeaderText *t, int at) {
    for (int i = 0; i < at; i++)
        if (!strcmp(t->slots->at[i].slot.name, t->slots->at[at].slot.name))
            return true;
    return false;
}

static void list(const HeaderText *t, const char *title, StgcSlotKind kind, bool gradients_only,
                 FILE *to) {
    bool any = false;
    for (int i = 0; i < t->slots->n; i++) {
        const ObjectSlot *o = &t->slots->at[i];
        if (o->slot.kind != kind || hidden(&o->slot) ||
            (o->program == STGC_PROGRAM_GRADIENTS) != gradients_only || seen(t, i))
            continue;
        if (!any)
            fprintf(to, " *\n * %s\n", title);
        any = true;
        fputs(" *   ", to);
        put_comment(o->slot.name, to);
        fputs("  ", to);
        put_type(&o->slot, to);
        fputc('\n', to);
    }
}

/* One macro per input, numbered in order, with its name, type and shape for stgc_set. */
static void input_macros(const HeaderText *t, FILE *to) {
    int n = 0;
    for (int i = 0; i < t->slots->n; i++) {
        const StgcSlot *s = &t->slots->at[i].slot;
        if (s->kind != STGC_SLOT_INPUT || hidden(s) || seen(t, i))
            continue;
        fprintf(to, "#define STEP_INPUT%d ", n);
        put_string(s->name, to);
        fprintf(to, "\n#define STEP_INPUT%d_TYPE %d\n#define STEP_INPUT%d_RANK %d\n", n, s->type, n,
                s->rank);
        fprintf(to, "#define STEP_INPUT%d_DIMS {", n);
        for (int k = 0; k < s->rank; k++)
            fprintf(to, "%s%lld", k ? ", " : "", (long long)s->dims[k]);
        fprintf(to, "%s}\n", s->rank ? "" : "0");
        n++;
    }
    fprintf(to, "#define STEP_INPUTS %d\n", n);
}

void header_write(const HeaderText *t, FILE *to) {
    const StgcTraining *r = &t->about->training;
    fputs(
        "/* A training step compiled by stgcc. To train with it, see stgc.h:\n *\n *     Stgc *h = "
        "stgc_open(STEP_LIBRARY, NULL);\n *     stgc_set(h, STEP_INPUT0, STEP_INPUT0_TYPE, "
        "STEP_INPUT0_RANK,\n *              (int64_t[])STEP_INPUT0_DIMS, data);   // every input\n "
        "*     stgc_step(h);                                    // train\n *     stgc_number(h, "
        "\"loss/total\");\n *\n * model      ",
        to);
    put_comment(t->model, to);
    fprintf(to, "\n * compiled   by %s for %s\n", t->about->compiler, t->cpus);
    fputs(" * batch      the shapes below", to);
    if (t->about->batch > 1 && !t->about->batch_why)
        fprintf(to, ", or fewer than %lld rows", (long long)t->about->batch);
    fputc('\n', to);
    list(t, "inputs", STGC_SLOT_INPUT, false, to);
    list(t, "parameters that are trained", STGC_SLOT_PARAM, false, to);
    list(t, "parameters that are frozen", STGC_SLOT_FROZEN, false, to);
    list(t, "state of the optimizer", STGC_SLOT_STATE, false, to);
    list(t, "outputs", STGC_SLOT_OUTPUT, false, to);
    list(t, "further outputs of stgc_gradients", STGC_SLOT_OUTPUT, true, to);
    fputs(" */\n#ifndef STGC_STEP_H\n#define STGC_STEP_H\n\n#define STEP_LIBRARY ", to);
    put_string(t->library, to);
    if (t->parameters) {
        fputs("\n#define STEP_PARAMETERS ", to);
        put_string(t->parameters, to);
    }
    fprintf(to,
            "\n#define STEP_MODEL_HASH 0x%016llxull\n#define STEP_RECIPE_HASH 0x%016llxull\n"
            "#define STEP_ACCUMULATE %lld /* calls of stgc_step for one step of the optimizer */\n"
            "#define STEP_STEPS %lld\n\n",
            (unsigned long long)t->about->model_hash, (unsigned long long)t->about->recipe_hash,
            (long long)r->accumulate, (long long)r->steps);
    input_macros(t, to);
    fputs("\n#endif\n", to);
}
