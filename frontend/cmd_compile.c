/* cmd_compile.c: the training step as a library, with its header and its parameters.
 *
 *     MODEL.onnx, C.yaml ─► two or three graphs ─ codegen_object ─► STEP.so
 *                                                  ├─► STEP.h             names, shapes, how to
 * call └─► STEP.safetensors   initial parameters
 *
 * The graphs are those of `stgcc step` and `stgcc train` with the same recipe, and so are the bytes
 * they compute. */
#include "frontend/cmd_compile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ir/text.h"
#include "passes/rows_apart.h"
#include "runtime/safetensors.h"

typedef enum { EMIT_SO, EMIT_OBJ, EMIT_LLVM, EMIT_ASM, EMIT_IR, EMIT_PTX } Emit;

typedef struct CompileJob {
    Job job;
    Emit emit;
    ObjectOptions object;
    StgcLibrary about;
    Graph *graphs[STGC_PROGRAMS];
    VEC(StgcCheck) checks;
    SlotList parameters;
    ObjectSlots slots;
    char *recipe;
} CompileJob;

/* ---- flags ---- */

static bool read_target(CompileJob *c) {
    const char *word = c->object.gpu = device_target(c->job.o);
    if (word && !codegen_knows_gpu(word, &c->job.set_diag))
        return false;
    if (!c->object.gpu || !c->job.o->march)
        return true;
    diag_error(&c->job.set_diag, EXIT_USAGE, "--march is for CPUs, --target=%s is a GPU",
               diag_safe(&c->job.set_diag, word));
    return false;
}

/* What of the artefacts there is for a CPU and for a GPU. */
static bool emit_fits(CompileJob *c, const char *word) {
    Diag *d = &c->job.set_diag;
    bool gpu = c->object.gpu != NULL;
    if (c->emit != (gpu ? EMIT_ASM : EMIT_PTX))
        return true;
    diag_error(d, EXIT_USAGE, gpu ? "--emit=%s: not for a GPU" : "--emit=%s: only for a GPU", word);
    diag_more(d, gpu ? "its assembler is --emit=ptx" : "such as --target=sm_80");
    return false;
}

/* The table of costs is printed beside a text: marked programs are no library. */
static bool read_cost(CompileJob *c) {
    if (!c->job.o->cost)
        return true;
    c->object.cost = stdout;
    if (c->object.gpu && c->emit == EMIT_PTX)
        return true;
    diag_error(&c->job.set_diag, EXIT_USAGE, "--cost: only with --emit=ptx and a GPU as --target");
    return false;
}

static bool read_emit(CompileJob *c) {
    static const char *const names[] = {"so", "obj", "llvm", "asm", "ir", "ptx"};
    const char *word = c->job.o->emit ? c->job.o->emit : "so";
    Diag *d = &c->job.set_diag;
    for (int i = 0; i < COUNT_OF(names); i++)
        if (!strcmp(word, names[i])) {
            c->emit = (Emit)i;
            return emit_fits(c, word);
        }
    diag_error(d, EXIT_USAGE, "--emit: expected so, obj, llvm, asm, ir or ptx, found '%s'",
               diag_safe(d, word));
    return false;
}

static bool read_march(CompileJob *c) {
    const char *word = c->job.o->march;
    Diag *d = &c->job.set_diag;
    ObjectOptions *o = &c->object;
    if (!word) {
        o->cpus[0] = "x86-64-v3", o->cpus[1] = "x86-64-v4", o->ncpus = 2;
        return true;
    }
    static const char *const known[] = {"native", "x86-64-v3", "x86-64-v4"};
    for (int i = 0; i < COUNT_OF(known); i++)
        if (!strcmp(word, known[i])) {
            o->cpus[0] = known[i], o->ncpus = 1;
            return true;
        }
    diag_error(d, EXIT_USAGE, "--march: expected native, x86-64-v3 or x86-64-v4, found '%s'",
               diag_safe(d, word));
    diag_more(d,
              "other processors cannot be compiled for; leave it out for v3 and v4 in one library");
    return false;
}

/* ---- graphs ---- */

/* Messages that an earlier graph of the same model gave already are not given again. */
static void only_new(Diag *d, int before) {
    int n = before;
    for (int i = before; i < d->messages.n; i++) {
        bool known = false;
        for (int k = 0; k < n && !known; k++)
            known = !strcmp(d->messages.at[k].text, d->messages.at[i].text);
        if (!known || d->messages.at[i].level == DIAG_ERROR)
            d->messages.at[n++] = d->messages.at[i];
    }
    d->messages.n = n;
}

static bool make_graphs(CompileJob *c, bool *stopped) {
    Job *j = &c->job;
    bool micro = j->recipe->train.accumulate > 1;
    const TrainWants wants[STGC_PROGRAMS] = {
        [STGC_PROGRAM_GRADIENTS] = {.train = true, .grads = true, .detail = true},
        [STGC_PROGRAM_TRAIN] = {.train = true, .metrics = true, .update = true},
        [STGC_PROGRAM_MICRO] = {.train = true, .metrics = true, .accumulate = true},
        [STGC_PROGRAM_APPLY] = {
            .train = true, .metrics = true, .update = true, .apply_only = true}};
    if (!job_raise(j, wants[STGC_PROGRAM_GRADIENTS], stopped))
        return false;
    for (int p = 0; p < STGC_PROGRAMS; p++)
        if (p == STGC_PROGRAM_GRADIENTS || (p == STGC_PROGRAM_TRAIN) == !micro)
            c->graphs[p] = graph_clone(j->g, NULL);
    for (int p = 0; p < STGC_PROGRAMS && !*stopped; p++) {
        int before = j->model_diag.messages.n;
        if (c->graphs[p] && !job_compile(j, c->graphs[p], wants[p], stopped))
            return false;
        only_new(&j->model_diag, before);
    }
    return true;
}

/* ---- what is looked for in a batch ---- */

static void add_check(CompileJob *c, StgcCheck check) {
    for (int i = 0; i < c->checks.n; i++) {
        StgcCheck *known = &c->checks.at[i];
        if (strcmp(known->input, check.input) != 0 || known->labels != check.labels)
            continue;
        known->lo = check.lo > known->lo ? check.lo : known->lo;
        known->hi = check.hi < known->hi ? check.hi : known->hi;
        return;
    }
    vec_push(&c->checks, check);
}

/* Ids that are looked up in a table as they are. */
static void add_id_checks(CompileJob *c, const Graph *g) {
    for (int i = 0; i < g->inputs.n; i++) {
        const Value *v = g->inputs.at[i];
        for (int u = 0; u < v->uses.n; u++) {
            const Node *n = v->uses.at[u].node;
            if (n->op != OP_GATHER || v->uses.at[u].operand != 1 || n->in[0]->rank < 1)
                continue;
            int64_t axis = node_int(n, AT_AXIS, 0);
            int64_t rows = n->in[0]->dims[axis < 0 ? axis + n->in[0]->rank : axis];
            add_check(c, (StgcCheck){.input = node_str(v->def, AT_NAME, ""),
                                     .lo = -rows,
                                     .hi = rows,
                                     .what = "id"});
        }
    }
}

static void add_checks(CompileJob *c, const Graph *g) {
    LabelRule rule = label_rule(g, c->job.recipe);
    if (rule.name)
        add_check(c, (StgcCheck){.input = rule.name,
                                 .lo = 0,
                                 .hi = rule.classes,
                                 .ignore = rule.ignore,
                                 .has_ignore = true,
                                 .skip_first = rule.shifted_by_us,
                                 .labels = true,
                                 .what = "label"});
    add_id_checks(c, g);
}

/* ---- fewer rows ---- */

static const Value *logits_of(const Job *j, const Graph *g) {
    const char *name = j->recipe->loss.logits ? j->recipe->loss.logits : "logits";
    const Value *only = NULL;
    int floats = 0;
    for (int i = 0; i < g->outputs.n; i++) {
        const Value *v = g->outputs.at[i].value;
        if (!strcmp(g->outputs.at[i].name, name))
            return v;
        if (dtype_is_float(v->dtype))
            only = v, floats++;
    }
    return floats == 1 && !j->recipe->loss.logits ? only : NULL;
}

/* What of the recipe counts rows that are only there to fill up; NULL: nothing. */
static const char *recipe_counts_rows(const Job *j, const Graph *g) {
    const Recipe *r = j->recipe;
    MoeLayers layers = {0};
    moe_layers(g, &layers);
    bool moe = layers.n > 0;
    moe_layers_free(&layers);
    if (r->loss.kind == LOSS_REGRESSION || r->loss.kind == LOSS_OUTPUT)
        return "this loss.kind has no labels to ignore";
    if (r->loss.terms.n)
        return "loss.terms may count every row";
    if (moe && !r->stgc.token_mask &&
        (r->stgc.enabled || r->loss.balance != 0 || r->loss.router_z != 0))
        return "the losses of MoE layers count every token; name an input that masks tokens in "
               "stgc.token_mask";
    return NULL;
}

/* Proves, or says why not, that a batch may be filled up with rows that count for nothing. */
static void decide_rows(CompileJob *c) {
    Job *j = &c->job;
    const Graph *g = c->graphs[STGC_PROGRAM_GRADIENTS];
    LabelRule rule = label_rule(g, j->recipe);
    for (int i = 0; rule.name && i < g->inputs.n; i++)
        if (!strcmp(node_str(g->inputs.at[i]->def, AT_NAME, ""), rule.name))
            c->about.batch = g->inputs.at[i]->dims[0];
    c->about.token_mask = j->recipe->stgc.token_mask;
    c->about.batch_why = recipe_counts_rows(j, g);
    if (c->about.batch_why || !c->about.batch)
        return;
    const char *why = NULL;
    const Value *logits = logits_of(j, j->g);
    if (!logits || !rows_apart(j->g, logits, c->about.batch, &why))
        c->about.batch_why = arena_strdup(&j->arena, why ? why : "its logits are not known");
}

static void describe(CompileJob *c) {
    Job *j = &c->job;
    add_checks(c, c->graphs[STGC_PROGRAM_GRADIENTS]);
    c->recipe = identity_recipe(j->recipe);
    c->about.compiler = "stgcc " STGCC_VERSION;
    c->about.recipe = c->recipe;
    c->about.recipe_hash = hash_bytes(c->recipe, strlen(c->recipe), 1);
    c->about.training = identity_training(j->recipe);
    c->about.nchecks = (uint32_t)c->checks.n;
    c->about.checks = c->checks.at;
    memcpy(c->object.programs, c->graphs, sizeof c->graphs);
    c->object.about = &c->about;
    c->object.fused = !j->o->unfused;
    c->object.relocatable = c->emit == EMIT_OBJ;
}

/* ---- files ---- */

/* PATH.so -> PATH.h */
static const char *beside(Job *j, const char *suffix) {
    const char *path = j->o->out, *slash = strrchr(path, '/'), *dot = strrchr(path, '.');
    int n =
        dot && (!slash || dot > slash + 1) && dot != path ? (int)(dot - path) : (int)strlen(path);
    return arena_printf(&j->arena, "%.*s%s", n, path, suffix);
}

static const char *file_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* A text file, whole or not at all. */
typedef struct TextFile {
    const char *path, *temporary;
    FILE *f;
} TextFile;

static bool text_fault(Job *j, const TextFile *t) {
    int code = errno;
    if (t->f)
        unlink(t->temporary);
    diag_error(&j->out_diag, EXIT_IO, "cannot write '%s': %s", diag_safe(&j->out_diag, t->path),
               strerror(code));
    return false;
}

static bool text_open(Job *j, TextFile *t, const char *path) {
    *t = (TextFile){path, arena_printf(&j->arena, "%s.%ld.tmp", path, (long)getpid()), NULL};
    int fd = open(t->temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    t->f = fd < 0 ? NULL : fdopen(fd, "w");
    return t->f || text_fault(j, t);
}

static bool text_close(Job *j, TextFile *t, bool keep) {
    if (!keep) {
        fclose(t->f);
        unlink(t->temporary);
        return false;
    }
    bool ok = fflush(t->f) == 0 && fsync(fileno(t->f)) == 0;
    if (!ok)
        fclose(t->f);
    else
        ok = fclose(t->f) == 0;
    return (ok && rename(t->temporary, t->path) == 0) || text_fault(j, t);
}

static bool write_header(CompileJob *c) {
    Job *j = &c->job;
    TextFile t;
    const char *cpus = c->object.gpu ? c->object.gpu : c->object.cpus[0];
    for (int i = 1; i < c->object.ncpus && !c->object.gpu; i++)
        cpus = arena_printf(&j->arena, "%s and %s", cpus, c->object.cpus[i]);
    HeaderText h = {.library = file_name(j->o->out),
                    .parameters = c->parameters.n ? file_name(beside(j, ".safetensors")) : NULL,
                    .model = file_name(j->o->model),
                    .about = &c->about,
                    .slots = &c->slots,
                    .cpus = cpus};
    if (!text_open(j, &t, beside(j, ".h")))
        return false;
    header_write(&h, t.f);
    return text_close(j, &t, true);
}

static bool write_parameters(CompileJob *c) {
    Job *j = &c->job;
    char error[512];
    StgcCkptTensor *t = xcalloc((size_t)c->parameters.n + 1, sizeof *t);
    for (int i = 0; i < c->parameters.n; i++) {
        const StgcSlot *s = &c->parameters.at[i];
        t[i] = (StgcCkptTensor){
            .name = s->name, .type = s->type, .rank = s->rank, .bytes = s->bytes, .data = s->init};
        memcpy(t[i].dims, s->dims, sizeof s->dims);
    }
    StgcStatus status = stgc_safetensors_write(beside(j, ".safetensors"), t,
                                               (uint32_t)c->parameters.n, error, sizeof error);
    free(t);
    if (status != STGC_OK)
        diag_error(&j->out_diag, (ExitCode)status, "%s", diag_safe(&j->out_diag, error));
    return status == STGC_OK;
}

static bool write_library(CompileJob *c) {
    Job *j = &c->job;
    return codegen_object(&c->object, j->o->out, &j->arena, &c->parameters, &c->slots,
                          &j->model_diag, &j->out_diag) &&
           write_parameters(c) && write_header(c);
}

/* LLVM's language, assembler, or our graphs. */
static bool write_text(CompileJob *c) {
    Job *j = &c->job;
    TextFile t;
    if (!text_open(j, &t, j->o->out))
        return false;
    c->object.dump_llvm = c->emit == EMIT_LLVM ? t.f : NULL;
    c->object.dump_asm = c->emit == EMIT_ASM || c->emit == EMIT_PTX ? t.f : NULL;
    bool ok = true;
    for (int p = 0; c->emit == EMIT_IR && p < STGC_PROGRAMS; p++)
        if (c->graphs[p])
            graph_print(c->graphs[p], t.f);
    if (c->emit != EMIT_IR)
        ok = codegen_object(&c->object, NULL, &j->arena, &c->parameters, &c->slots, &j->model_diag,
                            &j->out_diag);
    return text_close(j, &t, ok);
}

static void say_done(CompileJob *c) {
    Job *j = &c->job;
    if (c->about.batch_why)
        diag_note(&j->model_diag, "batches of fewer than %lld rows are not possible: %s",
                  (long long)c->about.batch, diag_safe(&j->model_diag, c->about.batch_why));
    if (j->o->quiet)
        return;
    if (c->emit != EMIT_SO && c->emit != EMIT_OBJ) {
        printf("wrote %s\n", j->o->out);
        return;
    }
    printf("wrote %s, %s, %s\n", j->o->out, beside(j, ".h"), beside(j, ".safetensors"));
}

static void compile_free(CompileJob *c) {
    for (int p = 0; p < STGC_PROGRAMS; p++)
        if (c->graphs[p])
            graph_free(c->graphs[p]);
    vec_free(&c->checks);
    vec_free(&c->parameters);
    vec_free(&c->slots);
    free(c->recipe);
}

int compile_model(const Options *given) {
    Options o = *given;
    CompileJob c = {.emit = EMIT_PTX};
    Job *j = &c.job;
    bool stopped = false;
    o.emit = "ptx";
    job_begin(j, &o);
    bool ok = job_load_model(j);
    if (ok)
        c.about.model_hash = identity_model(j->g);
    ok = ok && job_load_recipe(j) && read_target(&c) && (!o.data || job_load_data(j)) &&
         job_bind(j) && make_graphs(&c, &stopped);
    if (ok && !stopped) {
        decide_rows(&c);
        describe(&c);
        for (int p = 0; p < STGC_PROGRAMS; p++)
            if (p != STGC_PROGRAM_TRAIN && p != STGC_PROGRAM_MICRO)
                c.object.programs[p] = NULL;
        c.object.cost = stdout;
        for (int fused = 1; ok && fused >= 0; fused--) {
            c.object.fused = fused;
            printf("%s%s, a static model of %s, not a measurement:\n", fused ? "" : "\n",
                   fused ? "fused" : "unfused", c.object.gpu);
            ok = codegen_object(&c.object, NULL, &j->arena, &c.parameters, &c.slots,
                                &j->model_diag, &j->out_diag);
        }
    }
    compile_free(&c);
    return job_end(j, EXIT_OK);
}

int cmd_compile(const Options *o) {
    CompileJob c = {0};
    Job *j = &c.job;
    bool stopped = false;
    job_begin(j, o);
    bool ok = job_load_model(j);
    if (ok)
        c.about.model_hash = identity_model(j->g);
    ok = ok && job_load_recipe(j) && read_target(&c) && read_emit(&c) && read_cost(&c) &&
         read_march(&c) && (!o->data || job_load_data(j)) && job_bind(j) && job_check_output(j) &&
         make_graphs(&c, &stopped);
    if (ok && !stopped) {
        job_check_weights(j, c.graphs[STGC_PROGRAM_GRADIENTS], false);
        decide_rows(&c);
        describe(&c);
        bool binary = c.emit == EMIT_SO || c.emit == EMIT_OBJ;
        if (binary ? write_library(&c) : write_text(&c))
            say_done(&c);
    }
    compile_free(&c);
    return job_end(j, EXIT_OK);
}
