/* lower.c: Graph -> LoopModule. Groups the ops into kernels and plans memory (passes/fuse.h), then
 * lets the hook of every kernel's main op write its loop programs and calls; equal programs are
 * kept once. */
#include "codegen/lower.h"

#include "codegen/loop_program.h"

#include <stdlib.h>
#include <string.h>

int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

int64_t lower_grain(const Lower *L) {
    return L->gpu ? 1024 : 8192;
}

int64_t lower_rows_per_task(const Lower *L, int64_t work) {
    return L->gpu || work <= 0 || work >= lower_grain(L) ? 1 : lower_grain(L) / work;
}

/* ---- kernels' programs ---- */

const char *kern_name(Lower *L, int kernel, const char *what) {
    const Kernel *k = &L->plan->kernels.at[kernel];
    const char *op = op_info[k->main->op].name, *node = k->main->src ? k->main->src->name : "";
    if (!*node && k->roots.n && k->roots.at[0]->name)
        node = k->roots.at[0]->name;
    return arena_printf(&L->module->arena, "%s%s%s%s%s", op, k->nodes.n > 1 ? "+" : "",
                        what ? "." : "", what ? what : "",
                        *node ? arena_printf(&L->module->arena, " %s", node) : "");
}

void kern_begin(Kern *K, Lower *L, int kernel, ProgramKind kind, const char *what) {
    *K = (Kern){.L = L, .kernel = &L->plan->kernels.at[kernel], .kernel_index = kernel};
    K->name = kern_name(L, kernel, what);
    K->p = loop_program_new(kind, K->name);
    for (int i = 0; i < K->kernel->nodes.n; i++)
        L->member[K->kernel->nodes.at[i]->id] = kernel + 1;
}

void kern_drop(Kern *K) {
    loop_program_free(K->p);
    vec_free(&K->buffers);
    vec_free(&K->ex);
    vec_free(&K->log);
    vec_free(&K->scopes);
    vec_free(&K->memo);
    vec_free(&K->compares);
    free(K->buckets);
    free(K->memo_buckets);
    *K = (Kern){0};
}

static void programs_grow(Lower *L) {
    int cap = L->cap_programs ? 2 * L->cap_programs : 64;
    ProgramEntry *to = xcalloc((size_t)cap, sizeof *to);
    for (int i = 0; i < L->cap_programs; i++) {
        if (!L->programs[i].program)
            continue;
        int at = (int)(L->programs[i].hash & (uint64_t)(cap - 1));
        while (to[at].program)
            at = (at + 1) & (cap - 1);
        to[at] = L->programs[i];
    }
    free(L->programs);
    L->programs = to;
    L->cap_programs = cap;
}

/* The module's program equal to p (p is freed then), or p, now the module's. */
static LoopProgram *programs_intern(Lower *L, LoopProgram *p) {
    if (2 * (L->nprograms + 1) > L->cap_programs)
        programs_grow(L);
    uint64_t h = loop_program_hash(p);
    int mask = L->cap_programs - 1, at = (int)(h & (uint64_t)mask);
    for (; L->programs[at].program; at = (at + 1) & mask) {
        if (L->programs[at].hash == h && loop_program_equal(L->programs[at].program, p)) {
            loop_program_free(p);
            return L->programs[at].program;
        }
    }
    L->programs[at].hash = h;
    L->programs[at].program = p;
    L->nprograms++;
    vec_push(&L->module->programs, p);
    if (L->dump_loops)
        loop_program_print(p, L->dump_loops);
    return p;
}

/* Says which part of the graph the call is of. */
static void describe_call(Lower *L, LoopCall *c) {
    static const char *const kinds[] = {"map", "rows", "reduce", "gemm", "op"};
    const Kernel *k = &L->plan->kernels.at[L->kernel];
    c->kernel = L->kernel;
    c->kernel_kind = kinds[k->kind];
    c->op = op_info[k->main->op].name;
    c->source = k->main->src ? arena_strdup(&L->module->arena, k->main->src->name) : "";
    c->nnodes = k->nodes.n;
    c->nodes = L->nodes;
}

LoopCall *lower_call(Lower *L, LoopCallKind kind, const char *name) {
    LoopCall c = {.kind = kind,
                  .name = name,
                  .gemm_a = -1,
                  .gemm_b = -1,
                  .gemm_c = -1,
                  .gemm_offsets = -1,
                  .gemm_index = -1,
                  .dot_x = -1,
                  .dot_d = -1,
                  .dot_grad = -1,
                  .dot_offsets = -1,
                  .dot_out = -1,
                  .dot_scratch = -1};
    describe_call(L, &c);
    vec_push(&L->module->calls, c);
    return &L->module->calls.at[L->module->calls.n - 1];
}

void kern_finish_into(Kern *K, LoopCall *call) {
    call->nbuffers = K->buffers.n;
    call->buffers = ARENA_ARRAY(&K->L->module->arena, int64_t, K->buffers.n + 1);
    for (int i = 0; i < K->buffers.n; i++)
        call->buffers[i] = K->buffers.at[i].at;
    call->program = programs_intern(K->L, K->p);
    K->p = NULL;
}

void kern_finish(Kern *K, int64_t tasks) {
    LoopCall *c = lower_call(K->L, CALL_PARALLEL, K->name);
    c->tasks = tasks;
    kern_finish_into(K, c);
}

int64_t value_address(const Lower *L, const Value *v) {
    const Value *s = L->plan->storage[v->id];
    if (!s || L->mem->offset[s->id] < 0)
        bug("%%%d of %s has no buffer", v->id, op_info[v->def->op].name);
    return L->mem->offset[s->id] + L->plan->view_offset[v->id] * dtype_bytes(v->dtype);
}

int kern_buffer_at(Kern *K, int64_t at, DType storage) {
    for (int i = 0; i < K->buffers.n; i++)
        if (K->buffers.at[i].at == at && K->buffers.at[i].storage == storage)
            return i;
    vec_push(&K->buffers, ((KernBuffer){at, storage}));
    return lp_buffer(K->p, storage);
}

/* A view is addressed from its own start, unless the kernel also writes that storage: then all go
 * through one number. */
int kern_buffer(Kern *K, const Value *v, bool write, int64_t *skip) {
    const Lower *L = K->L;
    const Value *s = L->plan->storage[v->id];
    ASSERT(s);
    int64_t base = L->mem->offset[s->id], view = L->plan->view_offset[v->id];
    bool written = write;
    for (int i = 0; i < K->kernel->roots.n && !written; i++) {
        const Value *r = L->plan->storage[K->kernel->roots.at[i]->id];
        written = r && L->mem->offset[r->id] == base;
    }
    if (base < 0)
        bug("%%%d of %s has no buffer", v->id, op_info[v->def->op].name);
    *skip = written ? view : 0;
    return kern_buffer_at(K, base + (written ? 0 : view * dtype_bytes(v->dtype)), v->dtype);
}

/* ---- what cannot be compiled ---- */

static const char *node_text(const Node *n, Diag *d) {
    const char *name = n->src ? n->src->name : "";
    return diag_safe(d, name && *name ? name : op_info[n->op].name);
}

static bool lowerable(Graph *g, Diag *d) {
    int unknown = 0;
    FOR_NODES(n, g) {
        bool known = true;
        int which = 0;
        for (int i = 0; i < n->nout; i++)
            if (!value_known(n->out[i]) && known)
                known = false, which = i;
        if (known)
            continue;
        const Value *v = n->out[which];
        if (!unknown++)
            diag_error(d, EXIT_MODEL,
                       "data-dependent shapes cannot be compiled; use --engine reference");
        char dims[256];
        int len = 0;
        for (int i = 0; i < v->rank && len < (int)sizeof dims - 48; i++) {
            if (v->dims[i] < 0)
                len += snprintf(dims + len, sizeof dims - (size_t)len, "%s%.32s", i ? "," : "",
                                dim_name(g, v->dims[i]));
            else
                len += snprintf(dims + len, sizeof dims - (size_t)len, "%s%lld", i ? "," : "",
                                (long long)v->dims[i]);
        }
        dims[len] = 0;
        if (unknown <= 50)
            diag_more(d, "node \"%s\" %s, result \"%s\" %s[%s]", node_text(n, d),
                      n->src ? diag_safe(d, n->src->op_type) : "",
                      v->name ? diag_safe(d, v->name) : "", dtype_name(v->dtype), dims);
    }
    if (unknown > 50)
        diag_more(d, "and %d more", unknown - 50);
    return unknown == 0;
}

/* ---- slots ---- */

static StgcType slot_type(DType t) {
    return (StgcType)dtype_to_onnx(t);
}

static void add_slot(Lower *L, const char *name, StgcSlotKind kind, const Value *v,
                     const void *init) {
    StgcSlot s = {.name = name,
                  .kind = kind,
                  .type = slot_type(v->dtype),
                  .rank = v->rank,
                  .offset = value_address(L, v),
                  .init = init};
    for (int i = 0; i < v->rank; i++)
        s.dims[i] = v->dims[i];
    s.bytes = value_count(v) * dtype_bytes(v->dtype);
    vec_push(&L->module->slots, s);
}

static StgcSlotKind param_slot(const Node *n) {
    switch ((ParamKind)node_int(n, AT_KIND, PARAM_WEIGHT)) {
    case PARAM_FROZEN:
        return STGC_SLOT_FROZEN;
    case PARAM_STATE:
        return STGC_SLOT_STATE;
    case PARAM_GRAD:
        return STGC_SLOT_GRAD;
    default:
        return STGC_SLOT_PARAM;
    }
}

/* Constants are named by what they are: steps that share a name share the value. */
static const char *const_name(Lower *L, const Tensor *t) {
    uint64_t h = hash_bytes(t->dims, sizeof *t->dims * (size_t)t->rank, (uint64_t)t->dtype);
    return arena_printf(&L->module->arena, "const/%016llx",
                        (unsigned long long)hash_data(t->data, tensor_bytes(t), h));
}

static void add_slots(Lower *L) {
    Graph *g = L->g;
    FOR_NODES(n, g) {
        const Value *v = n->nout ? n->out[0] : NULL;
        if (!(op_info[n->op].flags & OPF_LEAF) || L->mem->offset[v->id] < 0)
            continue;
        const Attr *a = node_attr(n, AT_VALUE);
        if (n->op == OP_INPUT)
            add_slot(L, node_str(n, AT_NAME, v->name ? v->name : ""), STGC_SLOT_INPUT, v, NULL);
        else if (n->op == OP_PARAM)
            add_slot(L, param_name(v), param_slot(n), v, a ? a->t->data : NULL);
        else
            add_slot(L, const_name(L, a->t), STGC_SLOT_FROZEN, v, a->t->data);
    }
    for (int i = 0; i < g->outputs.n; i++)
        add_slot(L, g->outputs.at[i].name, STGC_SLOT_OUTPUT, g->outputs.at[i].value, NULL);
}

/* ---- updates that were not computed in place: copies when everything else is done ---- */

typedef struct Copy {
    int64_t from, to;
    DType type;
} Copy;

static void copy_body(Kern *K, const Index *at, Sinks *out, void *ctx) {
    const Copy *c = ctx;
    int from = kern_buffer_at(K, c->from, c->type), to = kern_buffer_at(K, c->to, c->type);
    Ex i = index_linear(K, at);
    vec_push(out, ((Sink){to, i, ex_load(K, from, i)}));
}

static void copy_updates(Lower *L) {
    Graph *g = L->g;
    if (!L->plan->kernels.n)
        return;
    for (int i = 0; i < g->updates.n; i++) {
        const GraphUpdate *u = &g->updates.at[i];
        Copy c = {value_address(L, u->value), value_address(L, u->param), u->value->dtype};
        int64_t n = value_count(u->value);
        if (!L->mem->updated[i] && c.from != c.to)
            map_run(L, L->plan->kernels.n - 1, "update", 1, &n, copy_body, &c);
    }
}

/* ---- the whole ---- */

static LowerHook *const hooks[OP_COUNT] = {
#define OP(ID, m, a, b, c, f, infer, eval, grad, lower, emit) lower_##lower,
#include "ir/ops.def"
#undef OP
};

void lower_leaf(Lower *L, int kernel, Node *n) {
    bug("%s needs no kernel", op_info[n->op].name);
}

void lower_nonzero(Lower *L, int kernel, Node *n) {
    lower_map(L, kernel); /* its size is data: refused before */
}

/* The leaf whose memory v lies in, through views; NULL: none. */
static const Value *view_of_leaf(const Value *v) {
    while (v->def->op == OP_RESHAPE || v->def->op == OP_SLICE)
        v = v->def->in[0];
    return op_info[v->def->op].flags & OPF_LEAF ? v : NULL;
}

typedef struct Kept {
    Value **at; /* of an output or update */
    Value *was;
} Kept;
typedef VEC(Kept) KeptValues;

/* The old value of a parameter that this step updates, asked for as an output or as another update,
 * is copied first. The caller's graph gets its values back in the end. */
static void keep_old_values(Graph *g, KeptValues *kept) {
    bool *updated = xcalloc((size_t)g->next_value + 1, sizeof *updated);
    int n = g->next_value;
    for (int i = 0; i < g->updates.n; i++)
        updated[g->updates.at[i].param->id] = true;
    Node *first = g->first;
    while (first && op_info[first->op].flags & OPF_LEAF)
        first = first->next;
    for (int i = 0; i < g->outputs.n + g->updates.n; i++) {
        Value **at =
            i < g->outputs.n ? &g->outputs.at[i].value : &g->updates.at[i - g->outputs.n].value;
        const Value *leaf = view_of_leaf(*at);
        if (!leaf || leaf->id >= n || !updated[leaf->id])
            continue;
        Builder b = {.g = g,
                     .src = (*at)->def->src,
                     .before = (*at)->def == leaf->def ? first : (*at)->def->next};
        Node *copy = build_node(&b, OP_CAST, at, 1, 1);
        node_set_int(copy, AT_TO, (*at)->dtype);
        Value *v = copy->out[0];
        v->dtype = (*at)->dtype, v->rank = (*at)->rank;
        memcpy(v->dims, (*at)->dims, sizeof v->dims);
        vec_push(kept, ((Kept){at, *at}));
        *at = v;
    }
    free(updated);
}

static void restore_values(KeptValues *kept) {
    for (int i = 0; i < kept->n; i++) {
        Node *copy = (*kept->at[i].at)->def;
        *kept->at[i].at = kept->at[i].was;
        node_remove(copy);
    }
    vec_free(kept);
}

static void plan_scratch(Lower *L) {
    for (int i = 0; i < L->plan->kernels.n; i++)
        L->plan->kernels.at[i].scratch_bytes = lower_scratch(L, &L->plan->kernels.at[i]);
}

static void enter_kernel(Lower *L, int kernel) {
    const Kernel *k = &L->plan->kernels.at[kernel];
    int *nodes = ARENA_ARRAY(&L->module->arena, int, k->nodes.n + 1);
    for (int i = 0; i < k->nodes.n; i++)
        nodes[i] = k->nodes.at[i]->id;
    L->kernel = kernel;
    L->nodes = nodes;
}

LoopModule *lower_graph(Graph *g, const LowerOptions *o, Diag *d) {
    if (!lowerable(g, d))
        return NULL;
    KeptValues kept = {0};
    keep_old_values(g, &kept);
    Lower L = {.g = g, .diag = d, .fused = o->fused, .gpu = o->gpu, .dump_loops = o->dump_loops};
    L.plan = fuse(g, o->fused);
    if (o->dump_kernels)
        kernel_plan_print(L.plan, g, o->dump_kernels);
    plan_scratch(&L);
    L.mem = plan_memory(g, L.plan);
    L.module = xcalloc(1, sizeof *L.module);
    L.member = xcalloc((size_t)g->next_node + 1, sizeof(int));
    for (int i = 0; i < L.plan->kernels.n; i++) {
        Kernel *k = &L.plan->kernels.at[i];
        enter_kernel(&L, i);
        if (k->kind == KERNEL_MAP && k->main->op != OP_CONCAT)
            lower_map(&L, i);
        else if (k->kind == KERNEL_ROWS)
            lower_rows(&L, i);
        else
            hooks[k->main->op](&L, i, k->main);
    }
    copy_updates(&L);
    add_slots(&L);
    L.module->persistent_bytes = L.mem->persistent_bytes;
    L.module->arena_bytes = L.mem->total_bytes;
    restore_values(&kept);
    free(L.member);
    free(L.programs);
    kernel_plan_free(L.plan);
    memory_plan_free(L.mem);
    if (d->errors) {
        loop_module_free(L.module);
        return NULL;
    }
    return L.module;
}
