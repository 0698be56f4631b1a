/* nvptx_gemm_flow.c: loops, branches and small words for kernels of matrix products. Loops are
 * tested before the first iteration and at the end of each, so that LLVM sees a preheader. */
#include "codegen/nvptx_gemm.h"

#define B x->b

static LLVMValueRef function_here(LlvmIr *x) {
    return LLVMGetBasicBlockParent(LLVMGetInsertBlock(B));
}

static LLVMBasicBlockRef block(LlvmIr *x, const char *name) {
    return LLVMAppendBasicBlockInContext(x->c, function_here(x), name);
}

GemmLoop gemm_loop(LlvmIr *x, LLVMValueRef lo, LLVMValueRef hi, LLVMValueRef step) {
    GemmLoop l = {.head = block(x, "loop"), .hi = hi, .step = step};
    LLVMBasicBlockRef pre = block(x, "pre");
    l.exit = block(x, "done");
    LLVMBuildCondBr(B, LLVMBuildICmp(B, LLVMIntSLT, lo, hi, ""), pre, l.exit);
    LLVMPositionBuilderAtEnd(B, pre);
    LLVMBuildBr(B, l.head);
    LLVMPositionBuilderAtEnd(B, l.head);
    l.index = LLVMBuildPhi(B, LLVMTypeOf(lo), "i");
    LLVMAddIncoming(l.index, &lo, &pre, 1);
    return l;
}

void gemm_loop_end(LlvmIr *x, const GemmLoop *l) {
    LLVMValueRef next = LLVMBuildAdd(B, l->index, l->step, "");
    LLVMSetNSW(next, true);
    LLVMBuildCondBr(B, LLVMBuildICmp(B, LLVMIntSLT, next, l->hi, ""), l->head, l->exit);
    LLVMBasicBlockRef latch = LLVMGetInsertBlock(B);
    LLVMAddIncoming(l->index, &next, &latch, 1);
    LLVMPositionBuilderAtEnd(B, l->exit);
}

LLVMBasicBlockRef gemm_if(LlvmIr *x, LLVMValueRef condition) {
    LLVMBasicBlockRef then = block(x, "then"), after = block(x, "endif");
    LLVMBuildCondBr(B, condition, then, after);
    LLVMPositionBuilderAtEnd(B, then);
    return after;
}

void gemm_endif(LlvmIr *x, LLVMBasicBlockRef after) {
    LLVMBuildBr(B, after);
    LLVMPositionBuilderAtEnd(B, after);
}

void gemm_return_if(LlvmIr *x, LLVMValueRef condition) {
    LLVMBasicBlockRef out = block(x, "return"), on = block(x, "go");
    LLVMBuildCondBr(B, condition, out, on);
    LLVMPositionBuilderAtEnd(B, out);
    LLVMBuildRetVoid(B);
    LLVMPositionBuilderAtEnd(B, on);
}

LLVMValueRef gemm_var(LlvmIr *x, LLVMTypeRef t, LLVMValueRef init) {
    LLVMBasicBlockRef here = LLVMGetInsertBlock(B),
                      entry = LLVMGetEntryBasicBlock(function_here(x));
    LLVMValueRef first = LLVMGetFirstInstruction(entry);
    if (first)
        LLVMPositionBuilderBefore(B, first);
    else
        LLVMPositionBuilderAtEnd(B, entry);
    LLVMValueRef v = LLVMBuildAlloca(B, t, "");
    LLVMPositionBuilderAtEnd(B, here);
    if (init)
        LLVMBuildStore(B, init, v);
    return v;
}

LLVMValueRef gemm_at(LlvmIr *x, LLVMTypeRef t, LLVMValueRef base, LLVMValueRef index) {
    return LLVMBuildInBoundsGEP2(B, t, base, &index, 1, "");
}

LLVMValueRef gemm_min(LlvmIr *x, LLVMValueRef a, LLVMValueRef b) {
    return LLVMBuildSelect(B, LLVMBuildICmp(B, LLVMIntSLT, a, b, ""), a, b, "");
}

LLVMValueRef gemm_wide(LlvmIr *x, LLVMValueRef v) {
    return LLVMBuildZExt(B, v, x->i64, "");
}

LLVMValueRef gemm_narrow(LlvmIr *x, LLVMValueRef v) {
    return LLVMBuildTrunc(B, v, x->i32, "");
}

/* lo = 0, hi = last; while (lo < hi) { mid = (lo+hi+1)/2; key(mid) <= at ? lo = mid : hi = mid-1 }
 */
LLVMValueRef gemm_search(LlvmIr *x, LLVMValueRef offsets, LLVMValueRef last, LLVMValueRef at,
                         int shift) {
    LLVMValueRef one = llvm_i32(x, 1), zero = llvm_i32(x, 0);
    LLVMBasicBlockRef from = LLVMGetInsertBlock(B), head = block(x, "search"),
                      body = block(x, "halve"), found = block(x, "found");
    LLVMBuildBr(B, head);
    LLVMPositionBuilderAtEnd(B, head);
    LLVMValueRef lo = LLVMBuildPhi(B, x->i32, "lo"), hi = LLVMBuildPhi(B, x->i32, "hi");
    LLVMBuildCondBr(B, LLVMBuildICmp(B, LLVMIntSLT, lo, hi, ""), body, found);
    LLVMPositionBuilderAtEnd(B, body);
    LLVMValueRef mid =
        LLVMBuildLShr(B, LLVMBuildAdd(B, LLVMBuildAdd(B, lo, hi, ""), one, ""), one, "");
    LLVMValueRef key = gemm_narrow(
        x, LLVMBuildLoad2(B, x->i64, gemm_at(x, x->i64, offsets, gemm_wide(x, mid)), ""));
    if (shift > 0)
        key = LLVMBuildAdd(B, LLVMBuildLShr(B, key, llvm_i32(x, shift), ""), mid, "");
    LLVMValueRef up = LLVMBuildICmp(B, LLVMIntSLE, key, at, "");
    LLVMValueRef lo2 = LLVMBuildSelect(B, up, mid, lo, ""),
                 hi2 = LLVMBuildSelect(B, up, hi, LLVMBuildSub(B, mid, one, ""), "");
    LLVMBuildBr(B, head);
    LLVMAddIncoming(lo, (LLVMValueRef[]){zero, lo2}, (LLVMBasicBlockRef[]){from, body}, 2);
    LLVMAddIncoming(hi, (LLVMValueRef[]){last, hi2}, (LLVMBasicBlockRef[]){from, body}, 2);
    LLVMPositionBuilderAtEnd(B, found);
    return lo;
}
