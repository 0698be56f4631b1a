/* object.c: Graphs -> one file: every program of a training, compiled for every kind of CPU asked
 * for, or for a GPU, with the table that describes them.
 *
 *     graphs ─ lower ─► modules ─ for each CPU: x86_translate ─► objects ┐
 *                          └──────────────── object_table ─► object ─────┴ object_link ─► STEP.so
 *
 * The modules do not depend on the CPU: variants differ in instructions only. What a GPU gets is
 * PTX and a schedule, which are data: they are in the table. */
#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "codegen/object.h"
#include "codegen/x86_units.h"

typedef struct Object {
    const ObjectOptions *o;
    Diag *d;
    ObjectProgram programs[STGC_PROGRAMS];
    int nprograms;
    ObjectVariant variants[4];
    int nvariants;
    VEC(LLVMMemoryBufferRef) objects;
    int symbols, kernels;
} Object;

static bool lower_programs(Object *b) {
    LowerOptions lower = {.fused = b->o->fused,
                          .gpu = b->o->gpu != NULL,
                          .dump_kernels = b->o->dump_kernels,
                          .dump_loops = b->o->dump_loops};
    for (int i = 0; i < STGC_PROGRAMS; i++) {
        if (!b->o->programs[i])
            continue;
        LoopModule *m = lower_graph(b->o->programs[i], &lower, b->d);
        if (!m)
            return false;
        b->kernels += m->calls.n;
        b->programs[b->nprograms++] = (ObjectProgram){(StgcProgram)i, m};
    }
    return true;
}

/* cpuid's feature words, in the order of StgcVariant.features. */
static void this_machine(uint32_t f[6]) {
    unsigned a, b, c, d;
    memset(f, 0, sizeof *f * 6);
    if (__get_cpuid(1, &a, &b, &c, &d))
        f[0] = c, f[1] = d;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d))
        f[2] = b, f[3] = c, f[4] = d;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d))
        f[5] = a;
}

/* The one variant of a GPU; the table beside it is for a host with no more than it must have. */
static bool find_gpu(Object *b) {
    ObjectVariant *v = &b->variants[b->nvariants++];
    NvptxTarget t;
    if (!nvptx_target_find(&t, b->o->gpu, b->d) ||
        !x86_target_find(&v->target, "x86-64-v3", false, b->d))
        return false;
    v->name = b->o->gpu;
    v->device = t.target;
    return true;
}

static bool find_variants(Object *b) {
    x86_initialise();
    if (b->o->gpu)
        return find_gpu(b);
    for (int i = 0; i < b->o->ncpus; i++) {
        ObjectVariant *v = &b->variants[b->nvariants];
        if (!x86_target_find(&v->target, b->o->cpus[i], false, b->d))
            return false;
        b->nvariants++;
        v->name = v->target.cpu;
        if (v->target.native)
            this_machine(v->features);
    }
    return true;
}

static void print_costs(const Object *b, const ObjectVariant *v) {
    static const char *const names[STGC_PROGRAMS] = {"gradients", "train", "micro", "apply"};
    for (int i = 0; b->o->cost && i < b->nprograms; i++) {
        fprintf(b->o->cost, "%s%s, for %s\n", i ? "\n" : "", names[b->programs[i].which], v->name);
        nvptx_cost_print(b->programs[i].module, nvptx_step(v->ptx, i), b->o->cost);
    }
}

static bool translate_gpu(Object *b, ObjectVariant *v) {
    const LoopModule *modules[STGC_PROGRAMS];
    NvptxTarget t;
    for (int i = 0; i < b->nprograms; i++) {
        b->programs[i].module->marks = b->o->cost != NULL;
        modules[i] = b->programs[i].module;
    }
    if (!nvptx_target_find(&t, v->name, b->d))
        return false;
    v->ptx = nvptx_compile(modules, b->nprograms, &t, b->o->dump_llvm, b->d);
    if (!v->ptx)
        return false;
    const StgcCudaStep *s = nvptx_step(v->ptx, 0);
    if (b->o->dump_asm)
        fputs(s->ptx, b->o->dump_asm);
    print_costs(b, v);
    diag_note(b->d, "%d calls, %u distinct kernels for %s, %lld bytes of PTX", b->kernels,
              s->nkernels, v->name, (long long)s->ptx_bytes);
    return true;
}

static bool translate(Object *b, ObjectVariant *v) {
    if (v->device)
        return translate_gpu(b, v);
    const LoopModule *modules[STGC_PROGRAMS];
    const char *run_names[STGC_PROGRAMS];
    for (int i = 0; i < b->nprograms; i++) {
        snprintf(v->run_names[i], sizeof v->run_names[i], "v%d", b->symbols++);
        modules[i] = b->programs[i].module;
        run_names[i] = v->run_names[i];
    }
    X86Job job = {.modules = modules,
                  .run_names = run_names,
                  .nmodules = b->nprograms,
                  .target = &v->target,
                  .first_symbol = b->symbols,
                  .hidden = true};
    x86_translate(&job, b->o->dump_llvm, b->o->dump_asm);
    b->symbols += job.functions;
    for (int i = 0; i < job.objects.n; i++)
        vec_push(&b->objects, job.objects.at[i]);
    vec_free(&job.objects);
    diag_note(b->d, "%d kernels (%d distinct) for %s, %d vector loops left scalar", b->kernels,
              job.functions, v->target.cpu, job.not_vectorised);
    return true;
}

/* What the library does not hold, each name once. */
static void list_parameters(const Object *b, Arena *a, SlotList *out) {
    StrMap seen = {0};
    for (int i = 0; i < b->nprograms; i++) {
        const LoopModule *m = b->programs[i].module;
        for (int k = 0; k < m->slots.n; k++) {
            StgcSlot s = m->slots.at[k];
            if (!object_slot_outside(&s) || strmap_get(&seen, s.name))
                continue;
            s.name = arena_strdup(a, s.name);
            strmap_put(&seen, s.name, (void *)(uintptr_t)s.name);
            vec_push(out, s);
        }
    }
    strmap_free(&seen);
}

static void add_slots(const ObjectProgram *p, Arena *a, ObjectSlots *out) {
    for (int k = 0; k < p->module->slots.n; k++) {
        ObjectSlot s = {p->which, p->module->slots.at[k]};
        s.slot.name = arena_strdup(a, s.slot.name);
        vec_push(out, s);
    }
}

/* For the header beside the library: the programs that train first. */
static void list_slots(const Object *b, Arena *a, ObjectSlots *out) {
    for (int i = 0; i < b->nprograms; i++)
        if (b->programs[i].which != STGC_PROGRAM_GRADIENTS)
            add_slots(&b->programs[i], a, out);
    for (int i = 0; i < b->nprograms; i++)
        if (b->programs[i].which == STGC_PROGRAM_GRADIENTS)
            add_slots(&b->programs[i], a, out);
}

static void object_free(Object *b) {
    for (int i = 0; i < b->objects.n; i++)
        LLVMDisposeMemoryBuffer(b->objects.at[i]);
    vec_free(&b->objects);
    for (int i = 0; i < b->nprograms; i++)
        loop_module_free(b->programs[i].module);
    for (int i = 0; i < b->nvariants; i++) {
        x86_target_free(&b->variants[i].target);
        nvptx_free(b->variants[i].ptx);
    }
}

bool codegen_object(const ObjectOptions *o, const char *path, Arena *a, SlotList *parameters,
                    ObjectSlots *slots, Diag *d, Diag *out) {
    Object b = {.o = o, .d = d};
    bool ok = lower_programs(&b) && find_variants(&b);
    for (int i = 0; ok && i < b.nvariants; i++)
        ok = translate(&b, &b.variants[i]);
    if (ok && path) {
        LLVMMemoryBufferRef table =
            object_table(o->about, b.programs, b.nprograms, b.variants, b.nvariants);
        vec_push(&b.objects, table);
        ok = object_link(b.objects.at, b.objects.n, o->relocatable, path, out);
    }
    if (ok) {
        list_parameters(&b, a, parameters);
        list_slots(&b, a, slots);
    }
    object_free(&b);
    return ok;
}
