/* lint.c: problems of a PTX text that is to run on real GPUs too: what is outside of the known
 * forms, and what would leave the result to the assembler. */
#include "ptx.h"

typedef struct Lint {
    FILE *to;
    int problems;
} Lint;

static bool problem(void *user, int line, const char *text) {
    Lint *x = user;
    if (line) {
        fprintf(x->to, "line %d: %s\n", line, text);
    } else {
        fprintf(x->to, "%s\n", text);
    }
    return ++x->problems < 100;
}

static void complain(Lint *x, const PtxInstr *i, const char *text) {
    char line[300];
    snprintf(line, sizeof line, "%.*s: %s", (int)i->text_n, i->text, text);
    problem(x, i->line, line);
}

static void lint_instr(Lint *x, const PtxModule *m, const PtxInstr *i) {
    const PtxOpcode *c = &i->c;
    int type = c->ntypes ? c->type[0] : 0;
    bool arithmetic = c->op == OP_ADD || c->op == OP_SUB || c->op == OP_MUL;
    if (arithmetic && ptx_type_float(type) && !c->round) {
        complain(x, i, "without a rounding (.rn), so ptxas may fuse it with its neighbour");
    }
    if (c->space == W_LOCAL) {
        complain(x, i, "local memory is slow: keep the array in registers or shared memory");
    }
    if (m->target < 90 && type == T_BF16 && (arithmetic || c->op == OP_SETP)) {
        complain(x, i, "needs sm_90");
    }
}

/* The newest .version that ptxas and drivers of the stated CUDA release take for a target. */
static int newest_version(int capability) {
    return capability >= 100 ? 86 : 80;
}

int ptx_lint(const char *text, size_t bytes, int capability, FILE *to) {
    Lint x = {to, 0};
    char line[200];
    PtxModule *m = ptx_parse(NULL, text, bytes, problem, &x);
    if (m->target > capability) {
        snprintf(line, sizeof line, ".target sm_%d is above sm_%d", m->target, capability);
        problem(&x, 0, line);
    }
    if (m->target_suffix) {
        snprintf(line, sizeof line, ".target sm_%d%c runs on that GPU only", m->target,
                 m->target_suffix);
        problem(&x, 0, line);
    }
    if (m->version > newest_version(capability)) {
        snprintf(line, sizeof line, ".version %d.%d is above %d.%d", m->version / 10,
                 m->version % 10, newest_version(capability) / 10, newest_version(capability) % 10);
        problem(&x, 0, line);
    }
    for (int k = 0; k < m->nkernels; k++) {
        const PtxKernel *e = m->kernels[k];
        if (e->info.local_bytes) {
            snprintf(line, sizeof line, "kernel %s: %d bytes of local memory (.local)", e->name,
                     e->info.local_bytes);
            problem(&x, 0, line);
        }
        for (int n = 0; n < e->ncode; n++) {
            lint_instr(&x, m, &e->code[n]);
        }
    }
    ptx_unload(m);
    return x.problems;
}
