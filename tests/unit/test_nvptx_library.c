/* A step for a GPU as a shared library: what is read from it is what was compiled. */
#include "nvptx_case.h"

#include <dlfcn.h>
#include <unistd.h>

#include "codegen/codegen.h"

static void same_op(const StgcCudaStep *a, const StgcCudaOp *x, const StgcCudaOp *y) {
    assert_int_equal(x->kind, y->kind);
    assert_int_equal(x->kernel, y->kernel);
    assert_memory_equal(x->grid, y->grid, sizeof x->grid);
    assert_int_equal(x->mark, y->mark);
    assert_int_equal(x->at, y->at);
    assert_int_equal(x->bytes, y->bytes);
    assert_string_equal(x->name, y->name);
    assert_int_equal(x->gemm != NULL, y->gemm != NULL);
    if (x->gemm)
        assert_memory_equal(x->gemm, y->gemm, sizeof *x->gemm);
    if (x->kind == STGC_CUDA_LAUNCH && a->kernels[x->kernel].nparams)
        assert_memory_equal(x->params, y->params,
                            a->kernels[x->kernel].nparams * sizeof *x->params);
}

static void same_step(const StgcCudaStep *a, const StgcCudaStep *b) {
    assert_int_equal(a->ptx_bytes, b->ptx_bytes);
    assert_string_equal(a->ptx, b->ptx);
    assert_int_equal(a->target, b->target);
    assert_int_equal(a->lowered, b->lowered);
    assert_int_equal(a->nkernels, b->nkernels);
    assert_int_equal(a->nops, b->nops);
    assert_int_equal(a->nfaults, b->nfaults);
    assert_int_equal(a->constant_bytes, b->constant_bytes);
    if (a->constant_bytes)
        assert_memory_equal(a->constants, b->constants, (size_t)a->constant_bytes);
    for (uint32_t i = 0; i < a->nkernels; i++) {
        const StgcCudaKernel *x = &a->kernels[i], *y = &b->kernels[i];
        assert_string_equal(x->name, y->name);
        assert_int_equal(x->threads, y->threads);
        assert_int_equal(x->shared_static, y->shared_static);
        assert_int_equal(x->shared_dynamic, y->shared_dynamic);
        assert_int_equal(x->nparams, y->nparams);
    }
    for (uint32_t i = 0; i < a->nops; i++)
        same_op(a, &a->ops[i], &b->ops[i]);
    for (uint32_t i = 0; i < a->nfaults; i++)
        assert_string_equal(a->fault_texts[i], b->fault_texts[i]);
}

/* The schedules of both programs, made apart from the library. */
static void check_library(GpuCase *c, Graph *second, const StgcLibrary *lib) {
    assert_int_equal(lib->nvariants, 1);
    const StgcVariant *v = &lib->variants[0];
    assert_string_equal(v->cpu, "sm_120");
    assert_int_equal(v->device, 120);
    Graph *graphs[] = {c->g, second};
    const StgcProgram which[] = {STGC_PROGRAM_GRADIENTS, STGC_PROGRAM_TRAIN};
    LoopModule *modules[2];
    for (int i = 0; i < 2; i++)
        modules[i] = lower_graph(graphs[i], &(LowerOptions){.fused = true, .gpu = true}, &c->diag);
    NvptxTarget t;
    assert_true(nvptx_target_find(&t, "sm_120", &c->diag));
    NvptxCode *code = nvptx_compile((const LoopModule *const *)modules, 2, &t, NULL, &c->diag);
    for (int i = 0; i < 2; i++) {
        const StgcStep *s = v->programs[which[i]];
        assert_non_null(s);
        assert_null(s->run);
        assert_string_equal(s->cpu, "sm_120");
        assert_int_equal(s->version, STGC_STEP_VERSION);
        assert_int_equal(s->arena_bytes, modules[i]->arena_bytes);
        assert_int_equal(s->nslots, modules[i]->slots.n);
        same_step(nvptx_step(code, i), s->cuda);
        loop_module_free(modules[i]);
    }
    assert_ptr_equal(v->programs[which[0]]->cuda->ptx, v->programs[which[1]]->cuda->ptx);
    nvptx_free(code);
}

static void test_library(void **state) {
    (void)state;
    const char *name = "gptoss-hf-grouped";
    GpuCase c, train;
    gpu_case_load(&c, SOURCE_DIR "/tests/cases", name,
                  (TrainWants){.train = true, .grads = true, .detail = true});
    gpu_case_load(&train, SOURCE_DIR "/tests/cases", name,
                  (TrainWants){.train = true, .metrics = true, .update = true});
    char path[64], folder[] = "/tmp/stgc_lib_XXXXXX";
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/step.so", folder);
    StgcLibrary about = {.compiler = "test", .recipe = ""};
    ObjectOptions o = {.about = &about, .gpu = "sm_120", .fused = true};
    o.programs[STGC_PROGRAM_GRADIENTS] = c.g;
    o.programs[STGC_PROGRAM_TRAIN] = train.g;
    SlotList parameters = {0};
    ObjectSlots slots = {0};
    Diag out = {.subject = path};
    if (!codegen_object(&o, path, &c.arena, &parameters, &slots, &c.diag, &out)) {
        diag_print(&out, stderr, true);
        fail_msg("not written");
    }
    void *dl = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    assert_non_null(dl);
    check_library(&c, train.g, dlsym(dl, "stgc_library"));
    dlclose(dl);
    unlink(path);
    rmdir(folder);
    vec_free(&parameters);
    vec_free(&slots);
    diag_free(&out);
    gpu_case_free(&c);
    gpu_case_free(&train);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_library)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
