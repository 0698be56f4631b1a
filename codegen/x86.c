/* x86.c: LoopModule -> machine code in this process.
 *
 *     programs ─ equal ones once ─► units ─ passes, code generation, a thread each ─► objects ─►
 * ORC
 *
 * A unit is one LLVM module with a share of the programs. The pass list is our own: programs come
 * with loops already tested at the end and need no inlining, so a few passes before and after the
 * loop vectoriser do, in a fraction of the time of -O2. The schedule is a unit of its own, which is
 * translated without optimisation: it runs once per step and may be long. Objects are linked by
 * ORC's LLJIT, which sets the pages' protection; the functions of libm that kernels call are given
 * to it by address. */
#include "codegen/x86.h"
#include "codegen/llvm_ir.h"

#include <ctype.h>
#include <llvm-c/Analysis.h>
#include <llvm-c/Error.h>
#include <llvm-c/ErrorHandling.h>
#include <llvm-c/LLJIT.h>
#include <llvm-c/Orc.h>
#include <llvm-c/Target.h>
#include <llvm-c/TargetMachine.h>
#include <llvm-c/Transforms/PassBuilder.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* "transform-warning" reports vector loops that stayed scalar. */
static const char pass_list[] =
    "function(sroa<modify-cfg>,early-cse<memssa>,instcombine<no-verify-fixpoint>,simplifycfg,"
    "loop-mssa(licm<allowspeculation>),loop(loop-unroll-full),sroa<modify-cfg>,instcombine<no-"
    "verify-fixpoint>,"
    "loop-vectorize,instcombine<no-verify-fixpoint>,simplifycfg,early-cse,loop-mssa(licm<"
    "allowspeculation>),"
    "transform-warning)";

typedef struct X86Jit {
    LLVMOrcLLJITRef lljit;
    X86Target target;
} X86Jit;

/* One distinct program. */
typedef struct Function {
    const LoopProgram *program;
    uint64_t hash;
    unsigned alignment; /* of every buffer of every call, up to 64 bytes */
    char name[96];
} Function;

typedef struct Unit {
    const LoopModule *module;
    const X86Target *target;
    const Function *functions;
    int nfunctions, first, step; /* this unit compiles first, first+step, ... */
    char *const *call_names;     /* a unit of the schedule alone; else NULL */
    bool want_llvm, want_asm;
    LLVMMemoryBufferRef object;
    char *llvm_text, *asm_text; /* LLVM messages */
    int not_vectorised;
} Unit;

static void check(LLVMErrorRef e) {
    if (e)
        bug("llvm: %s", LLVMGetErrorMessage(e));
}

static void on_fatal(const char *reason) {
    bug("llvm: %s", reason);
}

static void on_diagnostic(LLVMDiagnosticInfoRef info, void *unit) {
    char *text = LLVMGetDiagInfoDescription(info);
    if (LLVMGetDiagInfoSeverity(info) == LLVMDSError)
        bug("llvm: %s", text);
    if (strstr(text, "loop not vectorized"))
        ((Unit *)unit)->not_vectorised++;
    LLVMDisposeMessage(text);
}

static void initialise(void) {
    LLVMInitializeX86TargetInfo();
    LLVMInitializeX86Target();
    LLVMInitializeX86TargetMC();
    LLVMInitializeX86AsmPrinter();
    LLVMInstallFatalErrorHandler(on_fatal);
}

static LLVMTargetMachineRef target_machine(const X86Target *t, LLVMCodeGenOptLevel level) {
    LLVMTargetRef target;
    char *error = NULL, *triple = LLVMGetDefaultTargetTriple();
    if (LLVMGetTargetFromTriple(triple, &target, &error))
        bug("llvm: %s", error);
    LLVMTargetMachineRef tm = LLVMCreateTargetMachine(target, triple, t->cpu, t->features, level,
                                                      LLVMRelocPIC, LLVMCodeModelDefault);
    LLVMDisposeMessage(triple);
    return tm;
}

static LLVMMemoryBufferRef emit(LLVMTargetMachineRef tm, LLVMModuleRef m,
                                LLVMCodeGenFileType kind) {
    LLVMMemoryBufferRef out = NULL;
    char *error = NULL;
    if (LLVMTargetMachineEmitToMemoryBuffer(tm, m, kind, &error, &out))
        bug("llvm: %s", error);
    return out;
}

static char *assembly(LLVMTargetMachineRef tm, LLVMModuleRef m) {
    LLVMModuleRef copy = LLVMCloneModule(m); /* code generation changes the module */
    LLVMMemoryBufferRef out = emit(tm, copy, LLVMAssemblyFile);
    size_t n = LLVMGetBufferSize(out);
    char *text = xcalloc(n + 1, 1);
    memcpy(text, LLVMGetBufferStart(out), n);
    LLVMDisposeMemoryBuffer(out);
    LLVMDisposeModule(copy);
    return text;
}

static void optimise(LLVMTargetMachineRef tm, LLVMModuleRef m) {
    LLVMPassBuilderOptionsRef o = LLVMCreatePassBuilderOptions();
    LLVMPassBuilderOptionsSetLoopInterleaving(o, true);
    LLVMPassBuilderOptionsSetLoopVectorization(o, true);
    check(LLVMRunPasses(m, pass_list, tm, o));
    LLVMDisposePassBuilderOptions(o);
}

static void build_function(LlvmIr *x, const Function *f) {
    LoopProgram *turned = loop_distribute(f->program);
    llvm_program(x, turned ? turned : f->program, f->name, f->alignment);
    loop_program_free(turned);
}

/* The body of a thread. */
static void *compile_unit(void *unit) {
    Unit *u = unit;
    LlvmIr *x = llvm_ir_new("step");
    LLVMContextSetDiagnosticHandler(x->c, on_diagnostic, u);
    LLVMTargetMachineRef tm =
        target_machine(u->target, u->call_names ? LLVMCodeGenLevelNone : LLVMCodeGenLevelDefault);
    char *triple = LLVMGetTargetMachineTriple(tm);
    LLVMTargetDataRef layout = LLVMCreateTargetDataLayout(tm);
    LLVMSetTarget(x->m, triple);
    LLVMSetModuleDataLayout(x->m, layout);
    x->vector_floats = u->target->vector_floats;
    for (int i = u->first; i < u->nfunctions; i += u->step)
        build_function(x, &u->functions[i]);
    if (u->call_names)
        llvm_schedule(x, u->module, u->call_names);
    char *error = NULL;
    if (LLVMVerifyModule(x->m, LLVMReturnStatusAction, &error))
        bug("llvm: %s", error);
    LLVMDisposeMessage(error);
    if (!u->call_names)
        optimise(tm, x->m);
    if (u->want_llvm)
        u->llvm_text = LLVMPrintModuleToString(x->m);
    if (u->want_asm)
        u->asm_text = assembly(tm, x->m);
    u->object = emit(tm, x->m, LLVMObjectFile);
    LLVMDisposeMessage(triple);
    LLVMDisposeTargetData(layout);
    LLVMDisposeTargetMachine(tm);
    llvm_ir_free(x);
    return NULL;
}

static void compile_units(Unit *units, int n) {
    pthread_t *threads = xcalloc((size_t)n, sizeof *threads);
    bool *started = xcalloc((size_t)n, sizeof *started);
    for (int i = 1; i < n; i++)
        started[i] = pthread_create(&threads[i], NULL, compile_unit, &units[i]) == 0;
    for (int i = 0; i < n; i++)
        if (!started[i])
            compile_unit(&units[i]); /* here: the first, and what found no thread */
    for (int i = 1; i < n; i++)
        if (started[i])
            pthread_join(threads[i], NULL);
    free(threads);
    free(started);
}

/* ---- linking ---- */

static void define_libm(LLVMOrcLLJITRef j) {
#define S(name, type) \
    { #name, (uint64_t)(uintptr_t)(type)name }
#define U double (*)(double)
#define UF float (*)(float)
    const struct {
        const char *name;
        uint64_t address;
    } table[] = {
        S(exp, U),
        S(log, U),
        S(tanh, U),
        S(erf, U),
        S(sin, U),
        S(cos, U),
        S(floor, U),
        S(ceil, U),
        S(sinf, UF),
        S(cosf, UF),
        S(expf, UF),
        S(logf, UF),
        S(tanhf, UF),
        S(erff, UF),
        S(pow, double (*)(double, double)),
        S(fmod, double (*)(double, double)),
        S(powf, float (*)(float, float)),
        S(fmodf, float (*)(float, float)),
        S(memcpy, void *(*)(void *, const void *, size_t)),
        S(memmove, void *(*)(void *, const void *, size_t)),
        S(memset, void *(*)(void *, int, size_t)),
    };
#undef S
#undef U
#undef UF
    LLVMOrcCSymbolMapPair pairs[COUNT_OF(table)];
    for (int i = 0; i < COUNT_OF(table); i++) {
        pairs[i].Name = LLVMOrcLLJITMangleAndIntern(j, table[i].name);
        pairs[i].Sym.Address = table[i].address;
        pairs[i].Sym.Flags = (LLVMJITSymbolFlags){
            LLVMJITSymbolGenericFlagsExported | LLVMJITSymbolGenericFlagsCallable, 0};
    }
    LLVMOrcMaterializationUnitRef mu = LLVMOrcAbsoluteSymbols(pairs, COUNT_OF(table));
    check(LLVMOrcJITDylibDefine(LLVMOrcLLJITGetMainJITDylib(j), mu));
}

static void link_units(X86Code *code, Unit *units, int n) {
    LLVMOrcLLJITRef j;
    check(LLVMOrcCreateLLJIT(&j, LLVMOrcCreateLLJITBuilder()));
    code->jit->lljit = j;
    define_libm(j);
    for (int i = 0; i < n; i++)
        check(LLVMOrcLLJITAddObjectFile(j, LLVMOrcLLJITGetMainJITDylib(j), units[i].object));
    LLVMOrcExecutorAddress address;
    check(LLVMOrcLLJITLookup(j, &address, "stgc_run"));
    uintptr_t run = (uintptr_t)address;
    memcpy(&code->run, &run, sizeof run);
}

/* ---- distinct programs ---- */

static void name_function(Function *f, int number, const char *kernel) {
    int n = snprintf(f->name, sizeof f->name, "k%d_", number);
    for (const char *c = kernel; *c && n < (int)sizeof f->name - 1; c++)
        f->name[n++] = isalnum((unsigned char)*c) ? *c : '_';
    f->name[n] = 0;
}

/* Fills functions (room for all calls) and by call which one it uses (NULL name: none). Returns how
 * many. */
static int distinct_programs(const LoopModule *m, Function *functions, char **call_names) {
    int n = 0;
    for (int i = 0; i < m->calls.n; i++) {
        const LoopProgram *p = m->calls.at[i].program;
        if (!p)
            continue;
        uint64_t h = loop_program_hash(p);
        int k = 0;
        while (k < n && !(functions[k].program == p ||
                          (functions[k].hash == h && loop_program_equal(functions[k].program, p))))
            k++;
        if (k == n) {
            functions[n] = (Function){.program = p, .hash = h, .alignment = 64};
            name_function(&functions[n], n, p->name);
            n++;
        }
        for (int b = 0; b < p->buffers.n; b++)
            while (m->calls.at[i].buffers[b] % functions[k].alignment)
                functions[k].alignment /= 2;
        call_names[i] = functions[k].name;
    }
    return n;
}

static int unit_count(int functions) {
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int n = functions / 4 + 1;
    return n > cores ? (int)(cores > 8 ? 8 : cores < 1 ? 1 : cores) : n > 8 ? 8 : n;
}

static void finish_units(X86Code *code, Unit *units, int n, FILE *dump_llvm, FILE *dump_asm) {
    for (int i = 0; i < n; i++) {
        code->not_vectorised += units[i].not_vectorised;
        if (units[i].llvm_text)
            fputs(units[i].llvm_text, dump_llvm);
        if (units[i].asm_text)
            fputs(units[i].asm_text, dump_asm);
        if (units[i].llvm_text)
            LLVMDisposeMessage(units[i].llvm_text);
        free(units[i].asm_text);
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

X86Code *x86_compile(const LoopModule *m, const char *cpu, FILE *dump_llvm, FILE *dump_asm,
                     Diag *d) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, initialise);
    X86Target target;
    if (!x86_target_find(&target, cpu, d))
        return NULL;
    double start = now();
    X86Code *code = xcalloc(1, sizeof *code);
    code->jit = xcalloc(1, sizeof *code->jit);
    code->jit->target = target;
    code->cpu = code->jit->target.cpu;
    size_t calls = (size_t)m->calls.n + 1;
    Function *functions = xcalloc(calls, sizeof *functions);
    char **names = xcalloc(calls, sizeof *names);
    code->functions = distinct_programs(m, functions, names);
    int nunits = unit_count(code->functions) + 1;
    Unit *units = xcalloc((size_t)nunits, sizeof *units);
    for (int i = 0; i < nunits; i++) {
        units[i] = (Unit){.module = m, .target = &code->jit->target};
        units[i].want_llvm = dump_llvm, units[i].want_asm = dump_asm;
        if (i == nunits - 1) {
            units[i].call_names = names;
            continue;
        }
        units[i].functions = functions, units[i].nfunctions = code->functions;
        units[i].first = i, units[i].step = nunits - 1;
    }
    compile_units(units, nunits);
    link_units(code, units, nunits);
    finish_units(code, units, nunits, dump_llvm, dump_asm);
    code->seconds = now() - start;
    free(units);
    free(names);
    free(functions);
    return code;
}

void x86_free(X86Code *c) {
    if (!c)
        return;
    check(LLVMOrcDisposeLLJIT(c->jit->lljit));
    x86_target_free(&c->jit->target);
    free(c->jit);
    free(c);
}
