/* x86_units.c: LoopModules -> relocatable objects in memory.
 *
 *     programs ─ equal ones once ─► units ─ passes, code generation, a thread each ─► objects
 *
 * A unit is one LLVM module with a share of the programs. The pass list is our own: programs come
 * with loops already tested at the end and need no inlining, so a few passes before and after the
 * loop vectoriser do, in a fraction of the time of -O2. A schedule is a unit of its own, which is
 * translated without optimisation: it runs once per step and may be long. Which programs share a
 * unit, and what functions are called, changes no instruction of them. */
#include "codegen/x86_units.h"

#include <llvm-c/Analysis.h>
#include <llvm-c/Error.h>
#include <llvm-c/ErrorHandling.h>
#include <llvm-c/Target.h>
#include <llvm-c/TargetMachine.h>
#include <llvm-c/Transforms/PassBuilder.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "codegen/llvm_ir.h"

/* "transform-warning" reports vector loops that stayed scalar. */
static const char pass_list[] =
    "function(sroa<modify-cfg>,early-cse<memssa>,instcombine<no-verify-fixpoint>,simplifycfg,"
    "loop-mssa(licm<allowspeculation>),loop(loop-unroll-full),sroa<modify-cfg>,instcombine<no-"
    "verify-fixpoint>,"
    "loop-vectorize,instcombine<no-verify-fixpoint>,simplifycfg,early-cse,loop-mssa(licm<"
    "allowspeculation>),"
    "transform-warning)";

/* One distinct program. */
typedef struct Function {
    const LoopProgram *program;
    uint64_t hash;
    unsigned alignment; /* of every buffer of every call, up to 64 bytes */
    char name[24];
} Function;

typedef struct Unit {
    const X86Job *job;
    const Function *functions;
    int nfunctions, first, step; /* this unit compiles first, first+step, ... */
    const LoopModule *module;    /* of a unit that is a schedule alone */
    char *const *call_names;     /* its functions by call; else NULL */
    const char *run_name;
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

static void initialise_once(void) {
    LLVMInitializeX86TargetInfo();
    LLVMInitializeX86Target();
    LLVMInitializeX86TargetMC();
    LLVMInitializeX86AsmPrinter();
    LLVMInstallFatalErrorHandler(on_fatal);
}

LLVMTargetMachineRef x86_target_machine(const X86Target *t, LLVMCodeGenOptLevel level) {
    LLVMTargetRef target;
    char *error = NULL, *triple = LLVMGetDefaultTargetTriple();
    if (LLVMGetTargetFromTriple(triple, &target, &error))
        bug("llvm: %s", error);
    LLVMTargetMachineRef tm = LLVMCreateTargetMachine(target, triple, t->cpu, t->features, level,
                                                      LLVMRelocPIC, LLVMCodeModelDefault);
    LLVMDisposeMessage(triple);
    return tm;
}

LLVMMemoryBufferRef x86_emit(LLVMTargetMachineRef tm, LLVMModuleRef m, LLVMCodeGenFileType kind) {
    LLVMMemoryBufferRef out = NULL;
    char *error = NULL;
    if (LLVMTargetMachineEmitToMemoryBuffer(tm, m, kind, &error, &out))
        bug("llvm: %s", error);
    return out;
}

static char *assembly(LLVMTargetMachineRef tm, LLVMModuleRef m) {
    LLVMModuleRef copy = LLVMCloneModule(m); /* code generation changes the module */
    LLVMMemoryBufferRef out = x86_emit(tm, copy, LLVMAssemblyFile);
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

/* Ours stay inside the library: its kernels (also those of another unit) and nothing else. */
static void hide_symbols(LLVMModuleRef m) {
    for (LLVMValueRef f = LLVMGetFirstFunction(m); f; f = LLVMGetNextFunction(f)) {
        const char *name;
        size_t n;
        name = LLVMGetValueName2(f, &n);
        if (LLVMGetLinkage(f) == LLVMExternalLinkage && n > 1 && name[0] == 'v' &&
            strspn(name + 1, "0123456789") == n - 1)
            LLVMSetVisibility(f, LLVMHiddenVisibility);
    }
}

/* The body of a thread. */
static void *compile_unit(void *unit) {
    Unit *u = unit;
    LlvmIr *x = llvm_ir_new("step");
    LLVMContextSetDiagnosticHandler(x->c, on_diagnostic, u);
    LLVMTargetMachineRef tm = x86_target_machine(
        u->job->target, u->call_names ? LLVMCodeGenLevelNone : LLVMCodeGenLevelDefault);
    char *triple = LLVMGetTargetMachineTriple(tm);
    LLVMTargetDataRef layout = LLVMCreateTargetDataLayout(tm);
    LLVMSetTarget(x->m, triple);
    LLVMSetModuleDataLayout(x->m, layout);
    x->vector_floats = u->job->target->vector_floats;
    for (int i = u->first; i < u->nfunctions; i += u->step)
        build_function(x, &u->functions[i]);
    if (u->call_names)
        llvm_schedule(x, u->module, u->call_names, u->run_name);
    if (u->job->hidden)
        hide_symbols(x->m);
    char *error = NULL;
    if (LLVMVerifyModule(x->m, LLVMReturnStatusAction, &error))
        bug("llvm: %s", error);
    LLVMDisposeMessage(error);
    if (!u->call_names)
        optimise(tm, x->m);
    if (u->job->want_llvm)
        u->llvm_text = LLVMPrintModuleToString(x->m);
    if (u->job->want_asm)
        u->asm_text = assembly(tm, x->m);
    u->object = x86_emit(tm, x->m, LLVMObjectFile);
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

/* ---- distinct programs ---- */

/* Every module's calls in one list; a program is shared where it is equal and its buffers are
 * aligned alike, so that each module gets the code it would get alone. */
typedef struct Distinct {
    Function *functions;
    int n;
    char ***call_names; /* [module][call]; NULL: no program */
} Distinct;

static unsigned call_alignment(const LoopCall *c) {
    unsigned a = 64;
    for (int b = 0; b < c->nbuffers; b++)
        while (c->buffers[b] % a)
            a /= 2;
    return a;
}

/* The functions of one module: programs with the alignment that all their calls have. by[i]: of
 * call i, -1 for none. */
static int module_functions(const LoopModule *m, Function *functions, int *by) {
    int n = 0;
    for (int i = 0; i < m->calls.n; i++) {
        const LoopProgram *p = m->calls.at[i].program;
        by[i] = -1;
        if (!p)
            continue;
        uint64_t h = loop_program_hash(p);
        unsigned a = call_alignment(&m->calls.at[i]);
        int k = 0;
        while (k < n && !(functions[k].program == p ||
                          (functions[k].hash == h && loop_program_equal(functions[k].program, p))))
            k++;
        if (k == n)
            functions[n++] = (Function){.program = p, .hash = h, .alignment = 64};
        if (a < functions[k].alignment)
            functions[k].alignment = a;
        by[i] = k;
    }
    return n;
}

static int find_function(const Distinct *d, const Function *f) {
    int k = 0;
    while (k < d->n &&
           !(d->functions[k].hash == f->hash && d->functions[k].alignment == f->alignment &&
             loop_program_equal(d->functions[k].program, f->program)))
        k++;
    return k;
}

static void add_module(Distinct *d, const X86Job *job, int module) {
    const LoopModule *m = job->modules[module];
    size_t calls = (size_t)m->calls.n + 1;
    Function *own = xcalloc(calls, sizeof *own);
    int *by = xcalloc(calls, sizeof *by), *to = xcalloc(calls, sizeof *to);
    int n = module_functions(m, own, by);
    for (int i = 0; i < n; i++) {
        to[i] = find_function(d, &own[i]);
        if (to[i] < d->n)
            continue;
        d->functions[d->n] = own[i];
        snprintf(d->functions[d->n].name, sizeof own->name, "v%d", job->first_symbol + d->n);
        d->n++;
    }
    d->call_names[module] = xcalloc(calls, sizeof **d->call_names);
    for (int i = 0; i < m->calls.n; i++)
        d->call_names[module][i] = by[i] < 0 ? NULL : d->functions[to[by[i]]].name;
    free(own);
    free(by);
    free(to);
}

static Distinct distinct_programs(const X86Job *job) {
    Distinct d = {.call_names = xcalloc((size_t)job->nmodules, sizeof *d.call_names)};
    size_t calls = 1;
    for (int i = 0; i < job->nmodules; i++)
        calls += (size_t)job->modules[i]->calls.n;
    d.functions = xcalloc(calls, sizeof *d.functions); /* never moved: call_names point into it */
    for (int i = 0; i < job->nmodules; i++)
        add_module(&d, job, i);
    return d;
}

static void distinct_free(Distinct *d, int nmodules) {
    for (int i = 0; i < nmodules; i++)
        free(d->call_names[i]);
    free(d->call_names);
    free(d->functions);
}

/* ---- the whole ---- */

static int unit_count(int functions) {
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int n = functions / 4 + 1;
    return n > cores ? (int)(cores > 8 ? 8 : cores < 1 ? 1 : cores) : n > 8 ? 8 : n;
}

static void finish_unit(X86Job *job, Unit *u, FILE *dump_llvm, FILE *dump_asm) {
    job->not_vectorised += u->not_vectorised;
    vec_push(&job->objects, u->object);
    if (u->llvm_text) {
        fputs(u->llvm_text, dump_llvm);
        LLVMDisposeMessage(u->llvm_text);
    }
    if (u->asm_text)
        fputs(u->asm_text, dump_asm);
    free(u->asm_text);
}

void x86_initialise(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, initialise_once);
}

void x86_translate(X86Job *job, FILE *dump_llvm, FILE *dump_asm) {
    x86_initialise();
    Distinct d = distinct_programs(job);
    int shared = unit_count(d.n), nunits = shared + job->nmodules;
    Unit *units = xcalloc((size_t)nunits, sizeof *units);
    job->want_llvm = dump_llvm != NULL, job->want_asm = dump_asm != NULL;
    job->functions = d.n;
    for (int i = 0; i < nunits; i++) {
        units[i] = (Unit){.job = job};
        if (i < shared) {
            units[i].functions = d.functions, units[i].nfunctions = d.n;
            units[i].first = i, units[i].step = shared;
            continue;
        }
        units[i].module = job->modules[i - shared];
        units[i].call_names = d.call_names[i - shared];
        units[i].run_name = job->run_names[i - shared];
    }
    compile_units(units, nunits);
    for (int i = 0; i < nunits; i++)
        finish_unit(job, &units[i], dump_llvm, dump_asm);
    free(units);
    distinct_free(&d, job->nmodules);
}
