/* nvptx_target.c: what is compiled for which GPU, LLVM's NVPTX target, and words for kernels.
 *
 * LLVM 19 knows processors up to sm_90a and accepts newer names with no more than a warning, giving
 * nonsense: it is only ever told sm_80 or sm_90, whose PTX newer GPUs take as it is. Intrinsics are
 * looked up by name at once, because an unknown llvm.nvvm.* passes LLVM and fails in ptxas. */
#include "codegen/nvptx_units.h"

#include <llvm-c/Error.h>
#include <llvm-c/ErrorHandling.h>
#include <llvm-c/Target.h>
#include <llvm-c/Transforms/PassBuilder.h>
#include <pthread.h>
#include <string.h>

#define B x->b

enum { PTX_KERNEL = 71 }; /* LLVM's calling convention ptx_kernel */

/* ---- GPUs ---- */

#define KIB 1024
/* Shared memory of a CTA: CUDA C++ Programming Guide, "Compute Capabilities", maximum amount of
 * shared memory per thread block. */
static const struct {
    const char *name;
    NvptxTarget t;
} known[] = {
    {"sm_80", {80, 80, 163 * KIB, 108}},   {"sm_86", {86, 80, 99 * KIB, 84}},
    {"sm_89", {89, 80, 99 * KIB, 128}},    {"sm_90", {90, 90, 227 * KIB, 132}},
    {"sm_100", {100, 90, 227 * KIB, 148}}, {"sm_120", {120, 90, 99 * KIB, 170}},
};

bool nvptx_target_find(NvptxTarget *t, const char *name, Diag *d) {
    const char *names[COUNT_OF(known)];
    for (int i = 0; i < COUNT_OF(known); i++) {
        names[i] = known[i].name;
        if (!strcmp(known[i].name, name)) {
            *t = known[i].t;
            return true;
        }
    }
    const char *near = nearest_word(name, names, COUNT_OF(names));
    diag_error(d, EXIT_USAGE, "unknown target '%s'%s%s%s", diag_safe(d, name),
               near ? ", did you mean '" : "", near ? near : "", near ? "'?" : "");
    diag_more(d, "known: cpu, sm_80, sm_86, sm_89, sm_90, sm_100, sm_120");
    return false;
}

/* ---- LLVM ---- */

static void on_fatal(const char *reason) {
    bug("llvm: %s", reason);
}

static void initialise_once(void) {
    LLVMInitializeNVPTXTargetInfo();
    LLVMInitializeNVPTXTarget();
    LLVMInitializeNVPTXTargetMC();
    LLVMInitializeNVPTXAsmPrinter();
    LLVMInstallFatalErrorHandler(on_fatal);
}

static void on_diagnostic(LLVMDiagnosticInfoRef info, void *unused) {
    char *text = LLVMGetDiagInfoDescription(info);
    if (LLVMGetDiagInfoSeverity(info) == LLVMDSError)
        bug("llvm: %s", text);
    LLVMDisposeMessage(text);
}

LLVMTargetMachineRef nvptx_target_machine(const NvptxTarget *t) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, initialise_once);
    LLVMTargetRef target;
    char *error = NULL;
    if (LLVMGetTargetFromTriple("nvptx64-nvidia-cuda", &target, &error))
        bug("llvm: %s", error);
    /* The PTX version decides which driver loads it: 7.0 came with CUDA 11.0, 7.8 with 11.8. */
    return LLVMCreateTargetMachine(target, "nvptx64-nvidia-cuda",
                                   t->lowered == 90 ? "sm_90" : "sm_80",
                                   t->lowered == 90 ? "+ptx78" : "+ptx70", LLVMCodeGenLevelDefault,
                                   LLVMRelocDefault, LLVMCodeModelDefault);
}

LlvmIr *nvptx_ir_new(LLVMTargetMachineRef tm) {
    LlvmIr *x = llvm_ir_new("step");
    LLVMContextSetDiagnosticHandler(x->c, on_diagnostic, NULL);
    char *triple = LLVMGetTargetMachineTriple(tm);
    LLVMTargetDataRef layout = LLVMCreateTargetDataLayout(tm);
    LLVMSetTarget(x->m, triple);
    LLVMSetModuleDataLayout(x->m, layout);
    LLVMDisposeMessage(triple);
    LLVMDisposeTargetData(layout);
    x->vector_floats = 1;
    x->nvptx = true;
    return x;
}

static void check(LLVMErrorRef e) {
    if (e)
        bug("llvm: %s", LLVMGetErrorMessage(e));
}

/* Epilogues are inlined, then the usual few. No pass that knows globals as unescaped (globals-aa):
 * it would carry values of shared arrays across barriers. */
void nvptx_optimise(LLVMTargetMachineRef tm, LLVMModuleRef m) {
    static const char passes[] =
        "always-inline,globaldce,function(sroa<modify-cfg>,early-cse<memssa>,"
        "instcombine<no-verify-fixpoint>,simplifycfg,loop-mssa(licm<allowspeculation>),"
        "loop(loop-unroll-full),sroa<modify-cfg>,instcombine<no-verify-fixpoint>,simplifycfg,"
        "early-cse,loop-mssa(licm<allowspeculation>))";
    LLVMPassBuilderOptionsRef o = LLVMCreatePassBuilderOptions();
    check(LLVMRunPasses(m, passes, tm, o));
    LLVMDisposePassBuilderOptions(o);
}

LLVMMemoryBufferRef nvptx_emit(LLVMTargetMachineRef tm, LLVMModuleRef m) {
    LLVMMemoryBufferRef out = NULL;
    char *error = NULL;
    if (LLVMTargetMachineEmitToMemoryBuffer(tm, m, LLVMAssemblyFile, &error, &out))
        bug("llvm: %s", error);
    return out;
}

/* ---- words ---- */

LLVMTypeRef nvptx_global_ptr(const LlvmIr *x) {
    return LLVMPointerTypeInContext(x->c, 1);
}

LLVMTypeRef nvptx_shared_ptr(const LlvmIr *x) {
    return LLVMPointerTypeInContext(x->c, 3);
}

LLVMValueRef nvptx_call(LlvmIr *x, const char *name, LLVMValueRef *in, int n) {
    unsigned id = LLVMLookupIntrinsicID(name, strlen(name));
    if (!id || LLVMIntrinsicIsOverloaded(id))
        bug("llvm knows no %s", name);
    LLVMValueRef fn = LLVMGetIntrinsicDeclaration(x->m, id, NULL, 0);
    return LLVMBuildCall2(B, LLVMIntrinsicGetType(x->c, id, NULL, 0), fn, in, (unsigned)n, "");
}

LLVMValueRef nvptx_tid(LlvmIr *x) {
    return nvptx_call(x, "llvm.nvvm.read.ptx.sreg.tid.x", NULL, 0);
}

LLVMValueRef nvptx_ctaid(LlvmIr *x, int axis) {
    static const char *const names[] = {"llvm.nvvm.read.ptx.sreg.ctaid.x",
                                        "llvm.nvvm.read.ptx.sreg.ctaid.y",
                                        "llvm.nvvm.read.ptx.sreg.ctaid.z"};
    return nvptx_call(x, names[axis], NULL, 0);
}

void nvptx_barrier(LlvmIr *x) {
    nvptx_call(x, "llvm.nvvm.barrier0", NULL, 0);
}

void nvptx_warp_sync(LlvmIr *x) {
    LLVMValueRef all = llvm_i32(x, -1);
    nvptx_call(x, "llvm.nvvm.bar.warp.sync", &all, 1);
}

static LLVMValueRef shfl_xor_i32(LlvmIr *x, LLVMValueRef v, int lanes) {
    LLVMValueRef in[] = {llvm_i32(x, -1), v, llvm_i32(x, lanes), llvm_i32(x, 31)};
    return nvptx_call(x, "llvm.nvvm.shfl.sync.bfly.i32", in, 4);
}

/* 64-bit values go in two halves. */
static LLVMValueRef shfl_xor_i64(LlvmIr *x, LLVMValueRef v, int lanes) {
    LLVMValueRef low = LLVMBuildTrunc(B, v, x->i32, ""),
                 high = LLVMBuildTrunc(B, LLVMBuildLShr(B, v, llvm_i64(x, 32), ""), x->i32, "");
    low = LLVMBuildZExt(B, shfl_xor_i32(x, low, lanes), x->i64, "");
    high = LLVMBuildZExt(B, shfl_xor_i32(x, high, lanes), x->i64, "");
    return LLVMBuildOr(B, LLVMBuildShl(B, high, llvm_i64(x, 32), ""), low, "");
}

LLVMValueRef nvptx_shfl_xor(LlvmIr *x, LLVMValueRef v, int lanes) {
    LLVMTypeRef t = LLVMTypeOf(v);
    if (t == x->i32)
        return shfl_xor_i32(x, v, lanes);
    if (t == x->i64)
        return shfl_xor_i64(x, v, lanes);
    if (t == x->f64) {
        LLVMValueRef bits = LLVMBuildBitCast(B, v, x->i64, "");
        return LLVMBuildBitCast(B, shfl_xor_i64(x, bits, lanes), x->f64, "");
    }
    if (t == x->i1) {
        LLVMValueRef word = LLVMBuildZExt(B, v, x->i32, "");
        return LLVMBuildTrunc(B, shfl_xor_i32(x, word, lanes), x->i1, "");
    }
    if (t != x->f32)
        bug("no shuffle of this type");
    LLVMValueRef in[] = {llvm_i32(x, -1), v, llvm_i32(x, lanes), llvm_i32(x, 31)};
    return nvptx_call(x, "llvm.nvvm.shfl.sync.bfly.f32", in, 4);
}

LLVMValueRef nvptx_shared(LlvmIr *x, LLVMTypeRef element, int64_t count, const char *name) {
    LLVMTypeRef t = LLVMArrayType2(element, (uint64_t)count);
    LLVMValueRef g = LLVMAddGlobalInAddressSpace(x->m, t, name, 3);
    LLVMSetInitializer(g, LLVMGetUndef(t));
    LLVMSetLinkage(g, LLVMInternalLinkage);
    LLVMSetAlignment(g, 16);
    return g;
}

static void annotate(LlvmIr *x, LLVMValueRef fn, const char *what, int v) {
    LLVMMetadataRef part[] = {LLVMValueAsMetadata(fn),
                              LLVMMDStringInContext2(x->c, what, strlen(what)),
                              LLVMValueAsMetadata(llvm_i32(x, v))};
    LLVMAddNamedMetadataOperand(x->m, "nvvm.annotations",
                                LLVMMetadataAsValue(x->c, LLVMMDNodeInContext2(x->c, part, 3)));
}

LLVMValueRef nvptx_kernel_function(LlvmIr *x, const char *name, const LLVMTypeRef *params, int n,
                                   int threads) {
    LLVMTypeRef type = LLVMFunctionType(x->void_, (LLVMTypeRef *)params, (unsigned)n, false);
    LLVMValueRef fn = LLVMAddFunction(x->m, name, type);
    LLVMSetFunctionCallConv(fn, PTX_KERNEL);
    llvm_attribute(x, fn, (unsigned)LLVMAttributeFunctionIndex, "nounwind", 0);
    llvm_attribute(x, fn, (unsigned)LLVMAttributeFunctionIndex, "convergent", 0);
    annotate(x, fn, "maxntidx", threads);
    LLVMPositionBuilderAtEnd(B, LLVMAppendBasicBlockInContext(x->c, fn, "entry"));
    return fn;
}

void nvptx_min_ctas(LlvmIr *x, LLVMValueRef kernel, int ctas) {
    annotate(x, kernel, "minctasm", ctas);
}
