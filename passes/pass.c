/* pass.c: the pipeline: every pass once, in the order of PASSES, with the verifier after each.
 *
 * Needs: an imported graph. Gives: what Compile.wants asks for. The table in pass.h is the only
 * list of passes; flags, dumps and --list-passes read it. */
#include "passes/pass.h"

#include <stdlib.h>
#include <string.h>

#include "ir/text.h"
#include "ir/verify.h"

/* When a pass runs at all. */
typedef enum {
    RUN_ALWAYS, /* also for inspect and run */
    RUN_TRAIN,  /* wants.train */
    RUN_STEP,   /* wants.train, unless only the optimizer is wanted */
} RunWhen;

typedef struct PassRow {
    const char *name, *what;
    bool (*run)(Compile *c);
} PassRow;

static const PassRow table[] = {
#define X(NAME, what) {#NAME, what, pass_##NAME},
    PASSES(X)
#undef X
};

static RunWhen when(const PassRow *p) {
    if (p->run == pass_canonicalise || p->run == pass_raise_moe)
        return RUN_ALWAYS;
    if (p->run == pass_attach_loss || p->run == pass_differentiate || p->run == pass_inject_stgc)
        return RUN_STEP;
    return RUN_TRAIN;
}

void passes_list(FILE *to) {
    for (int i = 0; i < COUNT_OF(table); i++)
        fprintf(to, "%-14s %s\n", table[i].name, table[i].what);
}

static bool known_pass(Compile *c, const char *flag, const char *name) {
    const char *names[COUNT_OF(table)];
    for (int i = 0; i < COUNT_OF(table); i++) {
        names[i] = table[i].name;
        if (!strcmp(name, names[i]))
            return true;
    }
    const char *near = nearest_word(name, names, COUNT_OF(table));
    diag_error(c->diag, EXIT_USAGE, "no pass named '%s' (%s)", diag_safe(c->diag, name), flag);
    if (near)
        diag_more(c->diag, "did you mean '%s'? --list-passes names them all", near);
    else
        diag_more(c->diag, "--list-passes names them all");
    return false;
}

static bool known_flags(Compile *c) {
    bool ok = true;
    if (c->dump)
        ok &= known_pass(c, "--dump", c->dump);
    if (c->stop_after)
        ok &= known_pass(c, "--stop-after", c->stop_after);
    for (int i = 0; i < c->skip.n; i++)
        ok &= known_pass(c, "--skip", c->skip.at[i]);
    return ok;
}

static bool skipped(const Compile *c, const char *name) {
    for (int i = 0; i < c->skip.n; i++)
        if (!strcmp(c->skip.at[i], name))
            return true;
    return false;
}

bool passes_run(Compile *c, bool *stopped) {
    *stopped = false;
    bool ok = known_flags(c);
    for (int i = 0; ok && !*stopped && i < COUNT_OF(table); i++) {
        const PassRow *p = &table[i];
        RunWhen w = when(p);
        if ((w != RUN_ALWAYS && !c->wants.train) || (w == RUN_STEP && c->wants.apply_only) ||
            (w == RUN_ALWAYS && c->raised))
            continue;
        if (!skipped(c, p->name)) {
            ok = p->run(c);
            if (ok)
                graph_verify(c->g, p->name);
        }
        if (ok && c->dump && !strcmp(c->dump, p->name))
            graph_print(c->g, c->dump_to ? c->dump_to : stdout);
        *stopped = ok && c->stop_after && !strcmp(c->stop_after, p->name);
    }
    cotangents_free(&c->cotangents);
    return ok;
}
