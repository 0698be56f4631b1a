/* object_table.c: what a compiled library says of itself, as one LLVM module of constants: the
 * structs of runtime/step.h, field by field. Nothing in it runs; addresses are filled in by the
 * loader. */
#include <llvm-c/Target.h>
#include <stdlib.h>
#include <string.h>

#include "codegen/llvm_ir.h"
#include "codegen/object.h"
#include "codegen/x86_units.h"

typedef struct Table {
    LlvmIr *x;
    LLVMTargetDataRef layout;
    StrMap constants; /* by slot name, which says what they hold: programs share them */
} Table;

/* Fields of one struct, in order. */
typedef struct Fields {
    Table *t;
    LLVMValueRef at[24];
    int n;
} Fields;

static void put(Fields *f, LLVMValueRef v) {
    ASSERT(f->n < COUNT_OF(f->at));
    f->at[f->n++] = v;
}

static void put_i32(Fields *f, int64_t v) {
    put(f, LLVMConstInt(f->t->x->i32, (uint64_t)v, true));
}

static void put_i64(Fields *f, int64_t v) {
    put(f, llvm_i64(f->t->x, v));
}

static void put_f64(Fields *f, double v) {
    put(f, LLVMConstReal(f->t->x->f64, v));
}

static LLVMValueRef null_ptr(const Table *t) {
    return LLVMConstNull(t->x->ptr);
}

static LLVMValueRef constant(Table *t, LLVMValueRef init, unsigned alignment) {
    LLVMValueRef g = LLVMAddGlobal(t->x->m, LLVMTypeOf(init), "c");
    LLVMSetInitializer(g, init);
    LLVMSetGlobalConstant(g, true);
    LLVMSetLinkage(g, LLVMPrivateLinkage);
    LLVMSetAlignment(g, alignment);
    return g;
}

static LLVMValueRef bytes(Table *t, const void *at, size_t n, unsigned alignment) {
    return constant(t, LLVMConstStringInContext2(t->x->c, at, n, true), alignment);
}

static void put_text(Fields *f, const char *s) {
    put(f, s ? bytes(f->t, s, strlen(s) + 1, 1) : null_ptr(f->t));
}

/* The struct must lie in memory as C lays it out. */
static LLVMValueRef finish(Fields *f, size_t size) {
    LLVMValueRef v = LLVMConstStructInContext(f->t->x->c, f->at, (unsigned)f->n, false);
    ASSERT(LLVMABISizeOfType(f->t->layout, LLVMTypeOf(v)) == size);
    return v;
}

/* An array of equal structs; NULL if it is empty. */
static LLVMValueRef array(Table *t, LLVMValueRef *v, uint32_t n, LLVMTypeRef type) {
    return n ? constant(t, LLVMConstArray2(type, v, n), 16) : null_ptr(t);
}

static LLVMValueRef int_array(Table *t, LLVMTypeRef type, const void *at, int n) {
    LLVMValueRef v[8];
    ASSERT(n <= COUNT_OF(v));
    for (int i = 0; i < n; i++)
        v[i] = type == t->x->i64 ? llvm_i64(t->x, ((const int64_t *)at)[i])
                                 : LLVMConstInt(type, ((const uint32_t *)at)[i], false);
    return LLVMConstArray2(type, v, (uint64_t)n);
}

bool object_slot_outside(const StgcSlot *s) {
    return s->init && s->bytes > 0 &&
           (s->kind == STGC_SLOT_PARAM ||
            (s->kind == STGC_SLOT_FROZEN &&
             (strncmp(s->name, "const/", 6) != 0 || s->bytes > OBJECT_CONST_BYTES)));
}

static LLVMValueRef shared_constant(Table *t, const StgcSlot *s) {
    LLVMValueRef g = strmap_get(&t->constants, s->name);
    if (!g) {
        g = bytes(t, s->init, (size_t)s->bytes, 64);
        strmap_put(&t->constants, s->name, g);
    }
    return g;
}

static LLVMValueRef slot(Table *t, const StgcSlot *s) {
    Fields f = {.t = t};
    put_text(&f, s->name);
    put_i32(&f, s->kind);
    put_i32(&f, s->type);
    put_i32(&f, s->rank);
    put(&f, int_array(t, t->x->i64, s->dims, 8));
    put_i64(&f, s->offset);
    put_i64(&f, s->bytes);
    bool inside = s->init && s->bytes > 0 && !object_slot_outside(s);
    put(&f, inside ? shared_constant(t, s) : null_ptr(t));
    return finish(&f, sizeof(StgcSlot));
}

static LLVMValueRef slots(Table *t, const LoopModule *m) {
    LLVMValueRef *v = xcalloc((size_t)m->slots.n + 1, sizeof *v);
    for (int i = 0; i < m->slots.n; i++)
        v[i] = slot(t, &m->slots.at[i]);
    LLVMValueRef a = array(t, v, (uint32_t)m->slots.n, m->slots.n ? LLVMTypeOf(v[0]) : t->x->i8);
    free(v);
    return a;
}

static LLVMValueRef kernel_names(Table *t, const LoopModule *m) {
    LLVMValueRef *v = xcalloc((size_t)m->calls.n + 1, sizeof *v);
    for (int i = 0; i < m->calls.n; i++) {
        const char *s = m->calls.at[i].name ? m->calls.at[i].name : "";
        v[i] = bytes(t, s, strlen(s) + 1, 1);
    }
    LLVMValueRef a = array(t, v, (uint32_t)m->calls.n, t->x->ptr);
    free(v);
    return a;
}

static LLVMValueRef run_function(Table *t, const char *name) {
    LLVMTypeRef params[] = {t->x->ptr, t->x->ptr};
    LLVMValueRef f =
        LLVMAddFunction(t->x->m, name, LLVMFunctionType(t->x->void_, params, 2, false));
    LLVMSetVisibility(f, LLVMHiddenVisibility);
    return f;
}

/* ---- a GPU's programs (runtime/step_cuda.h) ---- */

static LLVMValueRef cuda_kernels(Table *t, const StgcCudaStep *s) {
    LLVMValueRef *v = xcalloc((size_t)s->nkernels + 1, sizeof *v);
    for (uint32_t i = 0; i < s->nkernels; i++) {
        const StgcCudaKernel *k = &s->kernels[i];
        Fields f = {.t = t};
        put_text(&f, k->name);
        put_i32(&f, k->threads);
        put_i32(&f, k->shared_static);
        put_i32(&f, k->shared_dynamic);
        put_i32(&f, k->nparams);
        v[i] = finish(&f, sizeof *k);
    }
    LLVMValueRef a = array(t, v, s->nkernels, s->nkernels ? LLVMTypeOf(v[0]) : t->x->i8);
    free(v);
    return a;
}

/* Parameters and products hold no pointers: bytes. */
static LLVMValueRef cuda_op(Table *t, const StgcCudaStep *s, const StgcCudaOp *op) {
    Fields f = {.t = t};
    put_i32(&f, op->kind);
    put_i32(&f, op->kernel);
    put(&f, int_array(t, t->x->i32, op->grid, 3));
    put_i32(&f, op->mark);
    size_t n = op->params ? s->kernels[op->kernel].nparams * sizeof *op->params : 0;
    put(&f, n ? bytes(t, op->params, n, 16) : null_ptr(t));
    put_i64(&f, op->at);
    put_i64(&f, op->bytes);
    put(&f, op->gemm ? bytes(t, op->gemm, sizeof *op->gemm, 16) : null_ptr(t));
    put_text(&f, op->name);
    return finish(&f, sizeof *op);
}

static LLVMValueRef cuda_ops(Table *t, const StgcCudaStep *s) {
    LLVMValueRef *v = xcalloc((size_t)s->nops + 1, sizeof *v);
    for (uint32_t i = 0; i < s->nops; i++)
        v[i] = cuda_op(t, s, &s->ops[i]);
    LLVMValueRef a = array(t, v, s->nops, s->nops ? LLVMTypeOf(v[0]) : t->x->i8);
    free(v);
    return a;
}

/* What the steps of one module share: made with the first of them. */
typedef struct CudaShared {
    LLVMValueRef ptx, kernels, faults, constants;
} CudaShared;

static CudaShared cuda_shared(Table *t, const StgcCudaStep *s) {
    CudaShared c = {bytes(t, s->ptx, (size_t)s->ptx_bytes + 1, 16), cuda_kernels(t, s), null_ptr(t),
                    null_ptr(t)};
    LLVMValueRef *v = xcalloc((size_t)s->nfaults + 1, sizeof *v);
    for (uint32_t i = 0; i < s->nfaults; i++)
        v[i] = bytes(t, s->fault_texts[i], strlen(s->fault_texts[i]) + 1, 1);
    c.faults = array(t, v, s->nfaults, t->x->ptr);
    free(v);
    if (s->constant_bytes)
        c.constants = bytes(t, s->constants, (size_t)s->constant_bytes, 16);
    return c;
}

static LLVMValueRef cuda_step(Table *t, const StgcCudaStep *s, const CudaShared *c) {
    Fields f = {.t = t};
    put(&f, c->ptx);
    put_i64(&f, s->ptx_bytes);
    put_i32(&f, s->target);
    put_i32(&f, s->lowered);
    put_i32(&f, s->nkernels);
    put_i32(&f, s->nops);
    put_i32(&f, s->nfaults);
    put(&f, c->kernels);
    put(&f, cuda_ops(t, s));
    put(&f, c->faults);
    put(&f, c->constants);
    put_i64(&f, s->constant_bytes);
    return constant(t, finish(&f, sizeof *s), 16);
}

/* ---- programs, variants ---- */

/* One program of one variant. Its slots and names are the same in all variants. */
static LLVMValueRef step(Table *t, const LoopModule *m, LLVMValueRef slot_array, LLVMValueRef names,
                         const ObjectVariant *v, const char *run_name, LLVMValueRef cuda) {
    Fields f = {.t = t};
    put_i32(&f, STGC_STEP_VERSION);
    put_i32(&f, m->slots.n);
    put(&f, slot_array);
    put_i64(&f, m->persistent_bytes);
    put_i64(&f, m->arena_bytes);
    put_i64(&f, 64);
    put(&f, cuda ? null_ptr(t) : run_function(t, run_name));
    put_text(&f, v->name);
    put_i32(&f, m->calls.n);
    put(&f, names);
    put(&f, cuda ? cuda : null_ptr(t));
    return constant(t, finish(&f, sizeof(StgcStep)), 16);
}

static LLVMValueRef variant_array(Table *t, const ObjectProgram *p, int np, const ObjectVariant *v,
                                  int nv) {
    LLVMValueRef slot_arrays[STGC_PROGRAMS], names[STGC_PROGRAMS];
    LLVMValueRef *all = xcalloc((size_t)nv + 1, sizeof *all);
    for (int i = 0; i < np; i++) {
        slot_arrays[i] = slots(t, p[i].module);
        names[i] = kernel_names(t, p[i].module);
    }
    for (int k = 0; k < nv; k++) {
        LLVMValueRef steps[STGC_PROGRAMS];
        CudaShared shared = {0};
        if (v[k].device)
            shared = cuda_shared(t, nvptx_step(v[k].ptx, 0));
        for (int i = 0; i < STGC_PROGRAMS; i++)
            steps[i] = null_ptr(t);
        for (int i = 0; i < np; i++)
            steps[p[i].which] =
                step(t, p[i].module, slot_arrays[i], names[i], &v[k], v[k].run_names[i],
                     v[k].device ? cuda_step(t, nvptx_step(v[k].ptx, i), &shared) : NULL);
        Fields f = {.t = t};
        put_text(&f, v[k].name);
        put_i32(&f, v[k].target.level);
        put_i32(&f, v[k].target.native);
        put(&f, int_array(t, t->x->i32, v[k].features, 6));
        put_i32(&f, v[k].device);
        put_i32(&f, 0);
        put(&f, LLVMConstArray2(t->x->ptr, steps, STGC_PROGRAMS));
        all[k] = finish(&f, sizeof(StgcVariant));
    }
    LLVMValueRef a = array(t, all, (uint32_t)nv, LLVMTypeOf(all[0]));
    free(all);
    return a;
}

static LLVMValueRef check_array(Table *t, const StgcCheck *c, uint32_t n) {
    LLVMValueRef *v = xcalloc((size_t)n + 1, sizeof *v);
    for (uint32_t i = 0; i < n; i++) {
        Fields f = {.t = t};
        put_text(&f, c[i].input);
        put_i64(&f, c[i].lo);
        put_i64(&f, c[i].hi);
        put_i64(&f, c[i].ignore);
        put_i32(&f, c[i].has_ignore);
        put_i32(&f, c[i].skip_first);
        put_i32(&f, c[i].labels);
        put_i32(&f, 0);
        put_text(&f, c[i].what);
        v[i] = finish(&f, sizeof(StgcCheck));
    }
    LLVMValueRef a = array(t, v, n, n ? LLVMTypeOf(v[0]) : t->x->i8);
    free(v);
    return a;
}

static LLVMValueRef training(Table *t, const StgcTraining *r) {
    Fields f = {.t = t};
    put_f64(&f, r->lr);
    put_f64(&f, r->beta1);
    put_f64(&f, r->beta2);
    put_i64(&f, r->warmup);
    put_i64(&f, r->steps);
    put_i64(&f, r->accumulate);
    put_i64(&f, r->seed);
    put_i32(&f, r->schedule);
    put_i32(&f, 0);
    return finish(&f, sizeof(StgcTraining));
}

static void define_library(Table *t, const StgcLibrary *about, LLVMValueRef variants,
                           uint32_t nvariants) {
    Fields f = {.t = t};
    put_i32(&f, STGC_LIBRARY_VERSION);
    put_i32(&f, STGC_STEP_VERSION);
    put_text(&f, about->compiler);
    put_text(&f, about->recipe);
    put_i64(&f, (int64_t)about->model_hash);
    put_i64(&f, (int64_t)about->recipe_hash);
    put_i64(&f, about->batch);
    put_text(&f, about->batch_why);
    put_text(&f, about->token_mask);
    put(&f, training(t, &about->training));
    put_i32(&f, nvariants);
    put_i32(&f, about->nchecks);
    put(&f, variants);
    put(&f, check_array(t, about->checks, about->nchecks));
    LLVMValueRef v = finish(&f, sizeof(StgcLibrary));
    LLVMValueRef g = LLVMAddGlobal(t->x->m, LLVMTypeOf(v), "stgc_library");
    LLVMSetInitializer(g, v);
    LLVMSetGlobalConstant(g, true);
    LLVMSetAlignment(g, 16);
}

LLVMMemoryBufferRef object_table(const StgcLibrary *about, const ObjectProgram *programs,
                                 int nprograms, const ObjectVariant *variants, int nvariants) {
    x86_initialise();
    Table t = {.x = llvm_ir_new("library")};
    LLVMTargetMachineRef tm = x86_target_machine(&variants[0].target, LLVMCodeGenLevelNone);
    char *triple = LLVMGetTargetMachineTriple(tm);
    t.layout = LLVMCreateTargetDataLayout(tm);
    LLVMSetTarget(t.x->m, triple);
    LLVMSetModuleDataLayout(t.x->m, t.layout);
    LLVMValueRef v = variant_array(&t, programs, nprograms, variants, nvariants);
    define_library(&t, about, v, (uint32_t)nvariants);
    LLVMMemoryBufferRef object = x86_emit(tm, t.x->m, LLVMObjectFile);
    LLVMDisposeMessage(triple);
    LLVMDisposeTargetData(t.layout);
    LLVMDisposeTargetMachine(tm);
    llvm_ir_free(t.x);
    strmap_free(&t.constants);
    return object;
}
