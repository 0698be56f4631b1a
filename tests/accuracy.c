/* accuracy MODEL RECIPE BATCH [--fused] [--all] [--nodes N] [--bound FACTOR]: where compiled code
 * loses digits.
 *
 * One training step three times over the same final graph: the reference evaluator in float64
 * ("exact"), the evaluator rounding every result to its type ("rounded": what single precision
 * costs at least), and compiled code with every value laid open as an output.
 *
 *   outputs    error of rounded and compiled against exact: max |a - b| / max |b|, as compare_npz
 *   own error  of an op: its compiled results against the exact op of its own compiled operands, in
 *              units of 2^-24 of the largest result; a correctly rounded op has at most 1
 *   share      error of the worst outputs if the op's own errors were the only ones there are
 *
 * --all: every output; --nodes N: the N nodes whose own errors have the largest shares.
 * --fused opens nothing and prints outputs only, since a value laid open is a value not fused.
 * --bound FACTOR: exit 1 unless the outputs' compiled errors, the worst as well as their geometric
 * mean, are at most FACTOR times the rounded ones. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "codegen/codegen.h"
#include "frontend/bind.h"
#include "frontend/frontend.h"
#include "ir/eval.h"
#include "ir/infer.h"
#include "passes/pass.h"
#include "runtime/runtime.h"

typedef struct Case {
    Graph *g;
    OnnxFile *file;
    Recipe *recipe;
    NamedArrays batch;
    Diag diag;
    Arena arena;
    int noutputs;                           /* the graph's own; those laid open come after */
    RTensor **exact, **rounded, **compiled; /* by value id */
} Case;

static void die(Case *c) {
    diag_print(&c->diag, stderr, true);
    exit(EXIT_FAILURE);
}

static void load(Case *c, const char *model, const char *recipe, const char *batch) {
    Diag *d = &c->diag;
    bool stopped = false;
    c->diag.subject = model;
    ImportLimits limits = {0};
    c->g = onnx_import(model, &limits, &c->file, d);
    c->recipe = recipe_new();
    bool ok = c->g && recipe_read(c->recipe, recipe, d) && npz_read(batch, &c->batch, d) &&
              bind_arrays(c->g, &c->batch, d) && graph_infer(c->g, d);
    Compile compile = {.g = c->g,
                       .recipe = c->recipe,
                       .wants = {.train = true, .grads = true, .detail = true},
                       .diag = d};
    if (!ok || !passes_run(&compile, &stopped))
        die(c);
    vec_free(&compile.not_raised);
    c->noutputs = c->g->outputs.n;
}

/* ---- the evaluator ---- */

static RTensor **leaves(Case *c) {
    RTensor **values = xcalloc((size_t)c->g->next_value, sizeof *values);
    FOR_NODES(n, c->g) {
        if (n->op != OP_INPUT)
            continue;
        const Tensor *t = array_for(c->g, n->out[0], &c->batch, &c->diag);
        if (!t)
            die(c);
        RTensor *r = rtensor_from(&c->arena, t);
        r->dtype = n->out[0]->dtype;
        values[n->out[0]->id] = r;
    }
    return values;
}

/* Decisions are taken once, by exact numbers: what is measured is rounding. */
static bool is_decision(const Node *n) {
    return n->op == OP_TOPK || n->op == OP_ARGMAX;
}

static RTensor **evaluate(Case *c, bool round) {
    Eval ev = {.arena = &c->arena, .round = round, .diag = &c->diag, .values = leaves(c)};
    FOR_NODES(n, c->g) {
        if (c->exact && is_decision(n))
            ev.values[n->out[n->nout - 1]->id] = c->exact[n->out[n->nout - 1]->id];
        if (!eval_node(&ev, n))
            die(c);
    }
    return ev.values;
}

/* ---- compiled code ---- */

static void lay_open(Case *c) {
    FOR_NODES(n, c->g)
    for (int i = 0; i < n->nout && !(op_info[n->op].flags & OPF_LEAF); i++)
        graph_add_output(c->g, arena_printf(&c->arena, "value/%d", n->out[i]->id), n->out[i]);
}

static Tensor slot_view(StgcRun *run, const StgcSlot *s) {
    Tensor t = {.dtype = dtype_from_onnx(s->type), .rank = s->rank, .data = stgc_run_data(run, s)};
    memcpy(t.dims, s->dims, sizeof *s->dims * (size_t)s->rank);
    return t;
}

static RTensor **run_compiled(Case *c, bool fused) {
    CodegenOptions options = {.fused = fused};
    RTensor **values = leaves(c);
    Compiled *code = codegen_x86(c->g, &options, &c->diag);
    StgcRt *rt = stgc_rt_new(1);
    StgcRun *run = code && rt ? stgc_run_new(rt, compiled_step(code)) : NULL;
    if (!run)
        die(c);
    for (int i = 0; i < c->g->inputs.n; i++) {
        const Value *v = c->g->inputs.at[i];
        const StgcSlot *s = stgc_run_find(run, node_str(v->def, AT_NAME, ""));
        if (!s)
            continue;
        Tensor t = slot_view(run, s);
        const Tensor *from = rtensor_to(&c->arena, values[v->id], t.dtype);
        memcpy(t.data, from->data, tensor_bytes(from));
    }
    if (stgc_run_step(run) != STGC_OK) {
        fprintf(stderr, "%s\n", stgc_run_error(run));
        exit(EXIT_FAILURE);
    }
    for (int i = 0; i < c->g->outputs.n; i++) {
        const StgcSlot *s = stgc_run_find(run, c->g->outputs.at[i].name);
        Tensor t = slot_view(run, s);
        values[c->g->outputs.at[i].value->id] = rtensor_from(&c->arena, &t);
    }
    FOR_NODES(n, c->g)
    if (n->op == OP_PARAM || n->op == OP_CONST)
        values[n->out[0]->id] = c->exact[n->out[0]->id];
    stgc_run_free(run);
    stgc_rt_free(rt);
    compiled_free(code);
    return values;
}

/* ---- measures ---- */

/* max |a - b| / max |b|; what is not finite in both is left out. */
static double error_of(const RTensor *a, const RTensor *b) {
    double worst = 0, scale = 0;
    for (int64_t i = 0; i < b->count; i++) {
        if (!isfinite(a->f[i]) || !isfinite(b->f[i]))
            continue;
        worst = fmax(worst, fabs(a->f[i] - b->f[i]));
        scale = fmax(scale, fabs(b->f[i]));
    }
    return worst / (scale + 1e-6);
}

typedef struct Own {
    Node *n;
    double worst, mean; /* in 2^-24 of the largest result; mean: square root of the mean square */
    RTensor *error[8];  /* of float results */
    double share;
} Own;
typedef VEC(Own) OwnList;

static void own_error(Own *own, int i, const RTensor *got, const RTensor *want, Arena *a) {
    double worst = 0, scale = 0, squares = 0;
    RTensor *e = own->error[i] = rtensor_new(a, got->dtype, got->rank, got->dims);
    for (int64_t k = 0; k < got->count; k++) {
        if (!isfinite(got->f[k]) || !isfinite(want->f[k]))
            continue;
        e->f[k] = got->f[k] - want->f[k];
        worst = fmax(worst, fabs(e->f[k]));
        squares += e->f[k] * e->f[k];
        scale = fmax(scale, fabs(want->f[k]));
    }
    if (scale == 0)
        return;
    own->worst = fmax(own->worst, worst / scale * 0x1p24);
    own->mean = fmax(own->mean, sqrt(squares / (double)got->count) / scale * 0x1p24);
}

/* The exact op of compiled operands, node by node. */
static void own_errors(Case *c, OwnList *list) {
    Eval ev = {.arena = &c->arena, .diag = &c->diag};
    ev.values = xcalloc((size_t)c->g->next_value, sizeof *ev.values);
    FOR_NODES(n, c->g) {
        if (op_info[n->op].flags & OPF_LEAF)
            continue;
        bool known = true;
        for (int i = 0; i < n->nin; i++)
            if (n->in[i]) {
                ev.values[n->in[i]->id] = c->compiled[n->in[i]->id];
                known &= ev.values[n->in[i]->id] != NULL;
            }
        for (int i = 0; i < n->nout; i++)
            ev.values[n->out[i]->id] = NULL;
        if (!known)
            continue;
        if (!eval_node(&ev, n))
            die(c);
        Own own = {.n = n};
        for (int i = 0; i < n->nout && i < COUNT_OF(own.error); i++) {
            const RTensor *got = c->compiled[n->out[i]->id];
            if (got && dtype_is_float(got->dtype))
                own_error(&own, i, got, ev.values[n->out[i]->id], &c->arena);
        }
        vec_push(list, own);
    }
    free(ev.values);
}

/* Adds an op's own errors to what it gives; the rest of the graph is exact. */
static double share_of(Case *c, const OwnList *list, bool (*among)(const Own *, const void *),
                       const void *what, const char **where) {
    Arena arena = {0};
    Eval ev = {.arena = &arena, .diag = &c->diag, .values = leaves(c)};
    double worst = 0;
    int at = 0;
    FOR_NODES(n, c->g) {
        if (is_decision(n))
            ev.values[n->out[n->nout - 1]->id] = c->exact[n->out[n->nout - 1]->id];
        if (!eval_node(&ev, n))
            die(c);
        const Own *own = at < list->n && list->at[at].n == n ? &list->at[at++] : NULL;
        if (!own || !among(own, what))
            continue;
        for (int i = 0; i < n->nout; i++) {
            RTensor *r = ev.values[n->out[i]->id];
            for (int64_t k = 0; own->error[i] && k < r->count; k++)
                r->f[k] += own->error[i]->f[k];
        }
    }
    for (int i = 0; i < c->noutputs; i++) {
        const Value *v = c->g->outputs.at[i].value;
        if (!dtype_is_float(v->dtype))
            continue;
        double e = error_of(ev.values[v->id], c->exact[v->id]);
        if (e > worst) {
            worst = e;
            *where = c->g->outputs.at[i].name;
        }
    }
    free(ev.values);
    arena_free(&arena);
    return worst;
}

static bool of_op(const Own *own, const void *what) {
    return own->n->op == *(const Op *)what;
}

static bool of_node(const Own *own, const void *what) {
    return own->n == what;
}

/* ---- reports ---- */

static void report_ops(Case *c, const OwnList *list) {
    printf("\n%-18s %5s %10s %10s %10s  %s\n", "op", "nodes", "own worst", "own mean", "share",
           "worst output of the share");
    for (int op = 0; op < OP_COUNT; op++) {
        int nodes = 0;
        double worst = 0, mean = 0;
        for (int i = 0; i < list->n; i++)
            if ((int)list->at[i].n->op == op) {
                nodes++;
                worst = fmax(worst, list->at[i].worst);
                mean = fmax(mean, list->at[i].mean);
            }
        if (worst == 0)
            continue;
        const char *where = "";
        double share = share_of(c, list, of_op, &(Op){(Op)op}, &where);
        printf("%-18s %5d %10.2f %10.2f %10.1e  %s\n", op_info[op].name, nodes, worst, mean, share,
               where);
    }
}

static int by_share(const void *a, const void *b) {
    double x = ((const Own *)a)->share, y = ((const Own *)b)->share;
    return (x < y) - (x > y);
}

static void report_nodes(Case *c, OwnList *list, int most) {
    OwnList sorted = {0};
    for (int i = 0; i < list->n; i++) {
        Own own = list->at[i];
        const char *where = "";
        if (own.worst > 0)
            own.share = share_of(c, list, of_node, own.n, &where);
        vec_push(&sorted, own);
    }
    qsort(sorted.at, (size_t)sorted.n, sizeof *sorted.at, by_share);
    printf("\n%-10s %-18s %10s %10s  %s\n", "share", "op", "own worst", "own mean",
           "value, source");
    for (int i = 0; i < sorted.n && i < most; i++) {
        const Own *o = &sorted.at[i];
        printf("%-10.1e %-18s %10.2f %10.2f  %%%d", o->share, op_info[o->n->op].name, o->worst,
               o->mean, o->n->out[0]->id);
        for (int k = 0; k < o->n->out[0]->rank; k++)
            printf("%s%lld", k ? "," : " [", (long long)o->n->out[0]->dims[k]);
        printf("%s %s\n", o->n->out[0]->rank ? "]" : "", o->n->src ? o->n->src->name : "");
    }
    vec_free(&sorted);
}

static bool report_outputs(Case *c, bool all, double bound) {
    const char *names[2] = {"", ""};
    double worst[2] = {0}, sum[2] = {0};
    int n = 0;
    for (int i = 0; i < c->noutputs; i++) {
        const GraphOutput *o = &c->g->outputs.at[i];
        const RTensor *exact = c->exact[o->value->id];
        if (!dtype_is_float(exact->dtype) || strstr(o->name, "/conflict"))
            continue;
        double e[2] = {error_of(c->rounded[o->value->id], exact),
                       error_of(c->compiled[o->value->id], exact)};
        if (all)
            printf("%-60s rounded %.1e compiled %.1e\n", o->name, e[0], e[1]);
        for (int k = 0; k < 2; k++) {
            sum[k] += log(e[k] + 1e-9);
            if (e[k] > worst[k]) {
                worst[k] = e[k];
                names[k] = o->name;
            }
        }
        n++;
    }
    double mean[2] = {exp(sum[0] / n), exp(sum[1] / n)};
    bool ok = bound == 0 || (n && worst[1] <= bound * worst[0] && mean[1] <= bound * mean[0]);
    for (int k = 0; k < 2; k++)
        printf("%-8s worst %.2e (%s), geometric mean %.2e of %d outputs\n",
               k ? "compiled" : "rounded", worst[k], names[k], mean[k], n);
    if (!ok)
        printf("FAIL: compiled code is worse than %g times correctly rounded ops\n", bound);
    return ok;
}

int main(int argc, char **argv) {
    bool fused = false, all = false;
    double bound = 0;
    const char *files[3] = {0};
    int nfiles = 0, nodes = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--fused"))
            fused = true;
        else if (!strcmp(argv[i], "--all"))
            all = true;
        else if (!strcmp(argv[i], "--bound") && i + 1 < argc)
            bound = atof(argv[++i]);
        else if (!strcmp(argv[i], "--nodes") && i + 1 < argc)
            nodes = atoi(argv[++i]);
        else if (nfiles < 3)
            files[nfiles++] = argv[i];
    }
    if (nfiles < 3) {
        fprintf(stderr, "usage: accuracy MODEL RECIPE BATCH [--fused] [--all] [--nodes N] "
                        "[--bound FACTOR]\n");
        return EXIT_USAGE;
    }
    Case c = {0};
    OwnList list = {0};
    load(&c, files[0], files[1], files[2]);
    c.exact = evaluate(&c, false);
    c.rounded = evaluate(&c, true);
    if (!fused)
        lay_open(&c);
    c.compiled = run_compiled(&c, fused);
    bool ok = report_outputs(&c, all, bound);
    if (!fused && bound == 0) {
        own_errors(&c, &list);
        report_ops(&c, &list);
        if (nodes)
            report_nodes(&c, &list, nodes);
    }
    vec_free(&list);
    free(c.exact);
    free(c.rounded);
    free(c.compiled);
    graph_free(c.g);
    onnx_file_free(c.file);
    recipe_free(c.recipe);
    arrays_free(&c.batch);
    diag_free(&c.diag);
    arena_free(&c.arena);
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
