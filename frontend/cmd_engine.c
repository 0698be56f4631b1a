/* cmd_engine.c: one interface over the two ways to execute a compiled graph: the reference
 * evaluator (float64, for truth) and machine code or PTX (codegen + runtime). Parameters and state keep
 * their storage types between steps in both, so that a checkpoint holds all there is. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "codegen/codegen.h"
#include "frontend/cmd.h"
#include "ir/eval.h"

struct Engine {
    Graph *g;
    VEC(EngineSlot) slots; /* params, frozen, state */
    /* reference */
    bool reference, shares;
    Arena store, step; /* tensors that last; those of the last step */
    StrMap by_name;    /* slot name -> Tensor (of another engine where shared) */
    StrMap inputs;     /* input name -> Tensor */
    Eval eval;
    int64_t mem_limit;
    /* compiled */
    Compiled *compiled;
    StgcRt *rt;
    bool owns_rt;
    StgcRun *run;
    bool failed; /* a GPU did not give what was asked for */
    Diag *said;  /* where a GPU's faults go: they are none of the data */
};

/* ---- the reference evaluator ---- */

static bool reference_new(Engine *e, Engine *share) {
    FOR_NODES(n, e->g) {
        const Value *v = n->nout ? n->out[0] : NULL;
        if (n->op == OP_INPUT) {
            Tensor *t = tensor_new(&e->store, v->dtype, v->rank, v->dims);
            strmap_put(&e->inputs, node_str(n, AT_NAME, ""), t);
        }
        if (n->op != OP_PARAM)
            continue;
        const char *name = param_name(v);
        Tensor *t = share ? strmap_get(&share->by_name, name) : NULL;
        if (!t) {
            t = tensor_new(&e->store, v->dtype, v->rank, v->dims);
            const Attr *init = node_attr(n, AT_VALUE);
            if (init && init->t && tensor_bytes(t))
                memcpy(t->data, init->t->data, tensor_bytes(t));
        }
        strmap_put(&e->by_name, name, t);
        EngineSlot slot = {name, (ParamKind)node_int(n, AT_KIND, PARAM_WEIGHT), *t, e, NULL};
        vec_push(&e->slots, slot);
    }
    return true;
}

static bool reference_step(Engine *e, Diag *d) {
    arena_free(&e->step);
    free(e->eval.values);
    e->eval = (Eval){.arena = &e->step,
                     .diag = d,
                     .mem_limit = e->mem_limit,
                     .values = xcalloc((size_t)e->g->next_value, sizeof(RTensor *))};
    FOR_NODES(n, e->g) {
        const Tensor *t = n->op == OP_INPUT   ? strmap_get(&e->inputs, node_str(n, AT_NAME, ""))
                          : n->op == OP_PARAM ? strmap_get(&e->by_name, param_name(n->out[0]))
                                              : NULL;
        if (t)
            e->eval.values[n->out[0]->id] = rtensor_from(&e->step, t);
    }
    if (!eval_graph(&e->eval, e->g, NULL, 0))
        return false;
    for (int i = 0; i < e->g->updates.n; i++) {
        const GraphUpdate *u = &e->g->updates.at[i];
        Tensor *to = strmap_get(&e->by_name, param_name(u->param));
        const Tensor *from = rtensor_to(&e->step, e->eval.values[u->value->id], to->dtype);
        if (tensor_bytes(to))
            memcpy(to->data, from->data, tensor_bytes(to));
    }
    return true;
}

static const Value *output_value(const Engine *e, const char *name) {
    for (int i = 0; i < e->g->outputs.n; i++)
        if (!strcmp(e->g->outputs.at[i].name, name))
            return e->g->outputs.at[i].value;
    return NULL;
}

/* ---- compiled code ---- */

static ParamKind slot_kind(StgcSlotKind k) {
    switch (k) {
    case STGC_SLOT_FROZEN:
        return PARAM_FROZEN;
    case STGC_SLOT_STATE:
        return PARAM_STATE;
    case STGC_SLOT_GRAD:
        return PARAM_GRAD;
    default:
        return PARAM_WEIGHT;
    }
}

/* A view to read, or to write too; without data where a GPU failed. */
static Tensor slot_tensor(Engine *e, const StgcSlot *s, bool write) {
    Tensor t = {.dtype = dtype_from_onnx(s->type), .rank = s->rank};
    t.data = write ? stgc_run_data(e->run, s) : (void *)(uintptr_t)stgc_run_read(e->run, s);
    memcpy(t.dims, s->dims, sizeof *s->dims * (size_t)s->rank);
    e->failed |= !t.data;
    return t;
}

static FILE *dump_if(const Options *o, const char *name) {
    return o->dump && !strcmp(o->dump, name) ? stdout : NULL;
}

/* The run, on the machine that is asked for or the one it shares with. */
static bool start_run(Engine *e, const Options *o, Engine *share, Diag *d) {
    const StgcStep *step = compiled_step(e->compiled);
    int errors = d->errors;
    e->owns_rt = !share;
    e->rt = share ? share->rt : device_open(o, d);
    if (e->rt)
        e->run = share ? stgc_run_new_shared(e->rt, step, share->run) : stgc_run_new(e->rt, step);
    if (e->run && stgc_run_status(e->run) != STGC_OK)
        device_error(d, stgc_run_status(e->run), stgc_run_error(e->run));
    else if (!e->run && d->errors == errors) {
        diag_error(d, EXIT_RESOURCE, "no memory for a step of %lld bytes",
                   (long long)step->arena_bytes);
        diag_more(d, "make batch or sequence smaller");
    }
    return d->errors == errors;
}

static bool compiled_new(Engine *e, const Options *o, Engine *share, Diag *d) {
    CodegenOptions co = {.fused = !o->unfused,
                         .dump_kernels = dump_if(o, "kernels"),
                         .dump_loops = dump_if(o, "loops"),
                         .dump_llvm = dump_if(o, "llvm"),
                         .dump_asm = dump_if(o, "asm")};
    const char *gpu = device_target(o);
    e->compiled = gpu ? codegen_nvptx(e->g, &co, gpu, d) : codegen_x86(e->g, &co, d);
    if (!e->compiled)
        return false;
    const StgcStep *step = compiled_step(e->compiled);
    if (o->mem_limit && step->arena_bytes > o->mem_limit) {
        diag_error(d, EXIT_RESOURCE, "a step needs %lld bytes, more than the limit of %lld",
                   (long long)step->arena_bytes, (long long)o->mem_limit);
        diag_more(d, "raise --mem-limit, or make batch or sequence smaller");
        return false;
    }
    if (!start_run(e, o, share, d))
        return false;
    for (uint32_t i = 0; i < step->nslots; i++) {
        const StgcSlot *s = &step->slots[i];
        if (s->kind == STGC_SLOT_INPUT || s->kind == STGC_SLOT_OUTPUT)
            continue;
        EngineSlot slot = {s->name, slot_kind(s->kind), slot_tensor(e, s, false), e, s};
        vec_push(&e->slots, slot);
    }
    return engine_sound(e);
}

static const StgcSlot *find_slot(const Engine *e, const char *name, bool input) {
    const StgcStep *step = compiled_step(e->compiled);
    for (uint32_t i = 0; i < step->nslots; i++)
        if (step->slots[i].kind == (input ? STGC_SLOT_INPUT : STGC_SLOT_OUTPUT) &&
            !strcmp(step->slots[i].name, name))
            return &step->slots[i];
    return NULL;
}

/* ---- both ---- */

Engine *engine_new(Graph *g, const Options *o, Engine *share, Diag *d) {
    Engine *e = xcalloc(1, sizeof *e);
    e->g = g;
    e->reference = o->engine == ENGINE_REFERENCE;
    e->mem_limit = o->mem_limit;
    e->said = d;
    if (e->reference ? reference_new(e, share) : compiled_new(e, o, share, d))
        return e;
    engine_free(e);
    return NULL;
}

void engine_free(Engine *e) {
    if (!e)
        return;
    if (e->run)
        stgc_run_free(e->run);
    if (e->rt && e->owns_rt)
        stgc_rt_free(e->rt);
    if (e->compiled)
        compiled_free(e->compiled);
    free(e->eval.values);
    strmap_free(&e->by_name);
    strmap_free(&e->inputs);
    vec_free(&e->slots);
    arena_free(&e->store);
    arena_free(&e->step);
    free(e);
}

/* Element by element where the types differ. */
static void copy_tensor(Tensor *to, const Tensor *from) {
    ASSERT(tensor_count(to) == tensor_count(from));
    if (to->dtype == from->dtype) {
        if (tensor_bytes(to))
            memcpy(to->data, from->data, tensor_bytes(to));
        return;
    }
    for (int64_t i = 0, n = tensor_count(to); i < n; i++) {
        if (dtype_is_float(from->dtype))
            tensor_set_f(to, i, tensor_get_f(from, i));
        else
            tensor_set_i(to, i, tensor_get_i(from, i));
    }
}

void engine_input(Engine *e, const char *name, const Tensor *t) {
    if (e->reference) {
        Tensor *to = strmap_get(&e->inputs, name);
        if (to)
            copy_tensor(to, t);
        return;
    }
    const StgcSlot *s = find_slot(e, name, true);
    if (s) {
        Tensor to = slot_tensor(e, s, true);
        if (to.data)
            copy_tensor(&to, t);
    }
}

/* The runtime's text stands alone elsewhere ("batch: error: …"); here the diagnostic names the
 * subject. */
static const char *bare_text(const char *text) {
    const char *s = strstr(text, ": error: ");
    return s ? s + strlen(": error: ") : text;
}

bool engine_sound(Engine *e) {
    if (e->failed)
        device_error(e->said, STGC_ERR_IO, stgc_run_error(e->run));
    return !e->failed;
}

/* From a GPU now, while it can be said that it fails. */
static bool take_outputs(Engine *e) {
    const StgcStep *step = compiled_step(e->compiled);
    for (uint32_t i = 0; i < step->nslots; i++)
        if (step->slots[i].kind == STGC_SLOT_OUTPUT)
            e->failed |= !stgc_run_read(e->run, &step->slots[i]);
    return engine_sound(e);
}

bool engine_step(Engine *e, Diag *d) {
    if (e->reference)
        return reference_step(e, d);
    StgcStatus status = stgc_run_step(e->run);
    if (status == STGC_ERR_DATA)
        diag_error(d, EXIT_DATA, "%s", diag_safe(d, bare_text(stgc_run_error(e->run))));
    else if (status != STGC_OK)
        device_error(e->said, status, stgc_run_error(e->run));
    return status == STGC_OK && take_outputs(e);
}

Tensor *engine_output(Engine *e, Arena *a, const char *name, DType type) {
    Tensor view, *out;
    if (e->reference) {
        const Value *v = output_value(e, name);
        const RTensor *r = v ? e->eval.values[v->id] : NULL;
        return r ? rtensor_to(a, r, type ? type : r->dtype) : NULL;
    }
    const StgcSlot *s = find_slot(e, name, false);
    if (!s)
        return NULL;
    view = slot_tensor(e, s, false);
    out = tensor_new(a, type ? type : view.dtype, view.rank, view.dims);
    copy_tensor(out, &view);
    return out;
}

/* Where a GPU failed, the view stays what it was: engine_sound says so. */
static void refresh(EngineSlot *s, bool write) {
    if (!s->place)
        return;
    Tensor now = slot_tensor(s->engine, s->place, write);
    s->tensor.data = now.data ? now.data : s->tensor.data;
}

void engine_refresh(EngineSlot *s) {
    refresh(s, true);
}

int engine_slots(Engine *e, const EngineSlot **at) {
    for (int i = 0; i < e->slots.n; i++)
        refresh(&e->slots.at[i], false);
    *at = e->slots.at;
    return e->slots.n;
}

int64_t engine_memory(Engine *e) {
    return e->reference ? 0 : stgc_run_peak_bytes(e->run);
}

const char *engine_describe(Engine *e, Arena *a) {
    if (e->reference)
        return "reference evaluator (float64)";
    const StgcStep *step = compiled_step(e->compiled);
    double touched = (double)stgc_run_touched_bytes(e->run) / 1048576;
    return arena_printf(a, "%s; %u kernels for %s; memory planned %.1f MiB, touched %.1f MiB",
                        stgc_rt_describe(e->rt), step->kernels, step->cpu ? step->cpu : "this CPU",
                        (double)stgc_run_peak_bytes(e->run) / 1048576, touched);
}
