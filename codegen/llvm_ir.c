/* llvm_ir.c: the module under construction and short words for building it. */
#include "codegen/llvm_ir.h"

#include <llvm-c/IRReader.h>
#include <stdlib.h>
#include <string.h>

/* An access group must be an empty distinct node, which the C API cannot make but the parser can.
 */
static LLVMModuleRef module_with_group(LLVMContextRef c) {
    static const char text[] = "!g = !{!0}\n!0 = distinct !{}\n";
    LLVMMemoryBufferRef buffer =
        LLVMCreateMemoryBufferWithMemoryRangeCopy(text, sizeof text - 1, "module");
    LLVMModuleRef m = NULL;
    char *error = NULL;
    if (LLVMParseIRInContext(c, buffer, &m, &error))
        bug("llvm: %s", error);
    return m;
}

LlvmIr *llvm_ir_new(const char *module_name) {
    LlvmIr *x = xcalloc(1, sizeof *x);
    x->c = LLVMContextCreate();
    x->m = module_with_group(x->c);
    LLVMGetNamedMetadataOperands(x->m, "g", &x->access_group);
    LLVMSetModuleIdentifier(x->m, module_name, strlen(module_name));
    LLVMSetSourceFileName(x->m, module_name, strlen(module_name));
    x->b = LLVMCreateBuilderInContext(x->c);
    x->f16 = LLVMHalfTypeInContext(x->c);
    x->f32 = LLVMFloatTypeInContext(x->c);
    x->f64 = LLVMDoubleTypeInContext(x->c);
    x->i1 = LLVMInt1TypeInContext(x->c);
    x->i8 = LLVMInt8TypeInContext(x->c);
    x->i16 = LLVMInt16TypeInContext(x->c);
    x->i32 = LLVMInt32TypeInContext(x->c);
    x->i64 = LLVMInt64TypeInContext(x->c);
    x->ptr = LLVMPointerTypeInContext(x->c, 0);
    x->void_ = LLVMVoidTypeInContext(x->c);
    x->md_access = LLVMGetMDKindIDInContext(x->c, "llvm.access.group", 17);
    x->md_loop = LLVMGetMDKindIDInContext(x->c, "llvm.loop", 9);
    return x;
}

void llvm_ir_free(LlvmIr *x) {
    if (!x)
        return;
    LLVMDisposeBuilder(x->b);
    if (x->m)
        LLVMDisposeModule(x->m);
    LLVMContextDispose(x->c);
    free(x);
}

LLVMTypeRef llvm_type(const LlvmIr *x, LType t) {
    switch (t) {
    case LT_F32:
        return x->f32;
    case LT_F64:
        return x->f64;
    case LT_I64:
        return x->i64;
    case LT_BOOL:
        return x->i1;
    case LT_NONE:
        break;
    }
    bug("no such loop type");
}

LLVMValueRef llvm_f32(const LlvmIr *x, double v) {
    return LLVMConstReal(x->f32, v);
}

LLVMValueRef llvm_i32(const LlvmIr *x, int32_t v) {
    return LLVMConstInt(x->i32, (uint64_t)(int64_t)v, true);
}

LLVMValueRef llvm_i64(const LlvmIr *x, int64_t v) {
    return LLVMConstInt(x->i64, (uint64_t)v, true);
}

LLVMValueRef llvm_intrinsic(LlvmIr *x, const char *name, LLVMValueRef *in, int n) {
    unsigned id = LLVMLookupIntrinsicID(name, strlen(name));
    if (!id)
        bug("llvm knows no %s", name);
    LLVMTypeRef t = LLVMTypeOf(in[0]);
    LLVMValueRef fn = LLVMGetIntrinsicDeclaration(x->m, id, &t, 1);
    return LLVMBuildCall2(x->b, LLVMIntrinsicGetType(x->c, id, &t, 1), fn, in, (unsigned)n, "");
}

LLVMValueRef llvm_intrinsic1(LlvmIr *x, const char *name, LLVMValueRef a) {
    return llvm_intrinsic(x, name, &a, 1);
}

LLVMValueRef llvm_intrinsic2(LlvmIr *x, const char *name, LLVMValueRef a, LLVMValueRef b) {
    LLVMValueRef in[] = {a, b};
    return llvm_intrinsic(x, name, in, 2);
}

LLVMValueRef llvm_fma(LlvmIr *x, LLVMValueRef a, LLVMValueRef b, LLVMValueRef c) {
    LLVMValueRef in[] = {a, b, c};
    return llvm_intrinsic(x, "llvm.fma", in, 3);
}

void llvm_attribute(LlvmIr *x, LLVMValueRef fn, unsigned at, const char *name, uint64_t value) {
    unsigned kind = LLVMGetEnumAttributeKindForName(name, strlen(name));
    if (!kind)
        bug("llvm knows no attribute %s", name);
    LLVMAddAttributeAtIndex(fn, at, LLVMCreateEnumAttribute(x->c, kind, value));
}

LLVMValueRef llvm_libm(LlvmIr *x, const char *name, LLVMValueRef *in, int n) {
    LLVMTypeRef t = LLVMTypeOf(in[0]), params[2] = {t, t};
    LLVMTypeRef type = LLVMFunctionType(t, params, (unsigned)n, false);
    LLVMValueRef fn = LLVMGetNamedFunction(x->m, name);
    if (!fn) {
        fn = LLVMAddFunction(x->m, name, type);
        llvm_attribute(x, fn, (unsigned)LLVMAttributeFunctionIndex, "nounwind", 0);
        llvm_attribute(x, fn, (unsigned)LLVMAttributeFunctionIndex, "willreturn", 0);
        llvm_attribute(x, fn, (unsigned)LLVMAttributeFunctionIndex, "memory", 0); /* none */
    }
    return LLVMBuildCall2(x->b, type, fn, in, (unsigned)n, "");
}
