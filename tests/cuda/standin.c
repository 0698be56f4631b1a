/* standin.c: state of the stand-in, its objects, injected faults, and entry points by name. */
#define _GNU_SOURCE
#include "tests/cuda/standin.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

Standin standin;

enum { EXIT_MISUSE = 97 };

static pthread_mutex_t lock;
static pthread_once_t lock_once = PTHREAD_ONCE_INIT;

static void make_lock(void) {
    pthread_mutexattr_t a;
    pthread_mutexattr_init(&a);
    pthread_mutexattr_settype(&a, PTHREAD_MUTEX_RECURSIVE); /* entry points call one another */
    pthread_mutex_init(&lock, &a);
    pthread_mutexattr_destroy(&a);
}

int standin_lock(void) {
    pthread_once(&lock_once, make_lock);
    pthread_mutex_lock(&lock);
    return 0;
}

void standin_unlock(int *unused) {
    pthread_mutex_unlock(&lock);
}

/* ---- faults ---- */

bool standin_due(int64_t *count) {
    return *count > 0 && --*count == 0;
}

void standin_misuse(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("PTX emulator: misuse: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    standin.counts.misuses++;
}

uint64_t standin_random(void) {
    uint64_t x = standin.random += 0x9e3779b97f4a7c15u; /* splitmix64 */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

CuResult standin_say(CuResult r, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(standin.why, sizeof standin.why, format, args);
    va_end(args);
    return r;
}

typedef struct Word {
    const char *name;
    bool *flag;
    int64_t *number;
} Word;

static void read_word(char *word) {
    Inject *n = &standin.inject;
    const Word words[] = {{"no-device", &n->no_device, NULL},
                          {"stub", &n->stub, NULL},
                          {"no-proc-address", &n->no_proc_address, NULL},
                          {"bad-ptx", &n->bad_ptx, NULL},
                          {"no-capture", &n->no_capture, NULL},
                          {"no-instantiate", &n->no_instantiate, NULL},
                          {"no-blas", &n->no_blas, NULL},
                          {"gemm=f32", &n->gemm_f32, NULL},
                          {"driver", NULL, &n->driver},
                          {"sm", NULL, &n->sm},
                          {"memory", NULL, &n->memory},
                          {"seed", NULL, &n->seed},
                          {"approx", NULL, &n->approx},
                          {"oom", NULL, &n->oom},
                          {"pin", NULL, &n->pin},
                          {"refuse", NULL, &n->refuse},
                          {"launch", NULL, &n->launch},
                          {"blas", NULL, &n->blas}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t k = strlen(words[i].name);
        char *end = word;
        if (words[i].flag && !strcmp(word, words[i].name)) {
            *words[i].flag = true;
            return;
        }
        if (words[i].number && !strncmp(word, words[i].name, k) && word[k] == '=') {
            *words[i].number = strtoll(word + k + 1, &end, 10);
            if (end > word + k + 1 && !*end)
                return;
        }
    }
    fprintf(stderr, "PTX emulator: STGC_PTX_EMULATOR: no word '%s'\n", word);
    abort();
}

/* Read afresh by every cuInit, so that a test can ask for one fault after the other. */
static void read_environment(void) {
    const char *sm = getenv("STGC_PTX_EMULATOR_SM"), *text = getenv("STGC_PTX_EMULATOR");
    standin.inject = (Inject){.driver = 13000, .sm = sm && *sm ? atoi(sm) : 90, .memory = 16384};
    char *copy = text ? strdup(text) : NULL, *at = NULL;
    for (char *w = copy ? strtok_r(copy, ",", &at) : NULL; w; w = strtok_r(NULL, ",", &at))
        read_word(w);
    free(copy);
    standin.random = (uint64_t)standin.inject.seed;
}

/* ---- objects ---- */

void *standin_object(ObjectKind kind, size_t bytes) {
    Object *o = calloc(1, bytes);
    if (!o)
        abort();
    o->kind = kind;
    o->next = standin.objects;
    standin.objects = o;
    return o;
}

bool standin_is(const void *object, ObjectKind kind) {
    for (const Object *o = standin.objects; o; o = o->next)
        if (o == object)
            return o->kind == kind;
    return false;
}

void standin_forget(void *object) {
    Object **link = &standin.objects;
    while (*link && (void *)*link != object)
        link = &(*link)->next;
    if (*link)
        *link = (*link)->next;
    free(object);
}

static int64_t count_live(void) {
    int64_t n = standin.device ? ptx_live_allocations(standin.device) : 0;
    for (const Object *o = standin.objects; o; o = o->next)
        n++;
    return n;
}

void stgc_standin_counts(StandinCounts *out) {
    STANDIN_LOCK;
    standin.counts.live = count_live();
    *out = standin.counts;
}

__attribute__((destructor)) static void at_exit(void) {
    int64_t live = count_live();
    if (live)
        fprintf(stderr, "PTX emulator: leaked: %lld objects at exit\n", (long long)live);
    if (live || standin.counts.leaks || standin.counts.misuses) {
        fflush(NULL);
        _exit(EXIT_MISUSE);
    }
}

/* ---- entry points by name ---- */

CuResult cuInit(unsigned flags) {
    STANDIN_LOCK;
    read_environment();
    if (flags)
        return standin_say(CU_INVALID_VALUE, "cuInit: flags must be 0");
    if (standin.inject.stub)
        return standin_say(CU_STUB_LIBRARY, "this is a stub library");
    if (standin.inject.no_device)
        return standin_say(CU_NO_DEVICE, "no CUDA-capable device is detected");
    standin.started = true;
    return CU_OK;
}

CuResult cuDriverGetVersion(int *version) {
    STANDIN_LOCK;
    *version = (int)standin.inject.driver;
    return CU_OK;
}

static const struct {
    CuResult r;
    const char *name, *text;
} results[] = {
    {CU_OK, "CUDA_SUCCESS", "no error"},
    {CU_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CU_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CU_STUB_LIBRARY, "CUDA_ERROR_STUB_LIBRARY", "CUDA driver is a stub library"},
    {CU_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {CU_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CU_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CU_INVALID_PTX, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {CU_UNSUPPORTED_PTX_VERSION, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
     "the provided PTX was compiled with an unsupported toolchain."},
    {CU_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CU_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CU_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {CU_LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
     "too many resources requested for launch"},
    {CU_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {CU_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CU_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {CU_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
};

CuResult cuGetErrorName(CuResult error, const char **text) {
    STANDIN_LOCK;
    *text = NULL;
    for (size_t i = 0; i < sizeof results / sizeof *results; i++)
        if (results[i].r == error)
            *text = results[i].name;
    return *text ? CU_OK : CU_INVALID_VALUE;
}

/* The driver's text, and what exactly the stand-in found. */
CuResult cuGetErrorString(CuResult error, const char **text) {
    STANDIN_LOCK;
    static _Thread_local char full[1200];
    *text = NULL;
    for (size_t i = 0; i < sizeof results / sizeof *results; i++)
        if (results[i].r == error) {
            snprintf(full, sizeof full, "%s%s%.1024s%s", results[i].text, *standin.why ? " [" : "",
                     standin.why, *standin.why ? "]" : "");
            *text = full;
        }
    return *text ? CU_OK : CU_INVALID_VALUE;
}

CuResult cuGetProcAddress_v2(const char *name, void **at, int version, uint64_t flags,
                             unsigned *found);
CuResult cuGetProcAddress_v2(const char *name, void **at, int version, uint64_t flags,
                             unsigned *found) {
    STANDIN_LOCK;
    static const struct {
        const char *name;
        void (*at)(void);
    } all[] = {
#define V(base, symbol, arguments) {#base, (void (*)(void))symbol},
#define S(base, arguments) V(base, base, arguments)
        CUDA_DRIVER_FUNCTIONS(S, V)
#undef S
#undef V
    };
    read_environment();
    *at = NULL;
    *found = 1;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!strcmp(all[i].name, name) && !standin.inject.no_proc_address && version >= 12000 &&
            !flags) {
            memcpy(at, &all[i].at, sizeof *at);
            *found = 0;
        }
    return *at ? CU_OK : CU_NOT_FOUND;
}

/* No times. */
CuResult cuEventElapsedTime(float *milliseconds, CuEvent start, CuEvent end);
CuResult cuEventElapsedTime_v2(float *milliseconds, CuEvent start, CuEvent end);
CuResult cuEventElapsedTime(float *milliseconds, CuEvent start, CuEvent end) {
    STANDIN_LOCK;
    return standin_say(CU_NOT_SUPPORTED, "an emulator has no times");
}
CuResult cuEventElapsedTime_v2(float *milliseconds, CuEvent start, CuEvent end) {
    STANDIN_LOCK;
    return standin_say(CU_NOT_SUPPORTED, "an emulator has no times");
}

/* The unsuffixed names have the signatures of old: nobody may take them. */
static void legacy(const char *name) {
    fprintf(stderr, "PTX emulator: misuse: %s is the function of 2010; its symbol is %s_v2\n", name,
            name);
    abort();
}
#define V(name, symbol, arguments) \
    void name(void); \
    void name(void) { \
        legacy(#name); \
    }
#define S(name, arguments)
CUDA_DRIVER_FUNCTIONS(S, V)
V(cuCtxCreate, cuCtxCreate_v2, ())
V(cuMemcpyHtoD, cuMemcpyHtoD_v2, ())
V(cuMemcpyDtoH, cuMemcpyDtoH_v2, ())
V(cuMemcpyDtoD, cuMemcpyDtoD_v2, ())
V(cuMemAllocHost, cuMemAllocHost_v2, ())
V(cuMemsetD8, cuMemsetD8_v2, ())
V(cuGetProcAddress, cuGetProcAddress_v2, ())
#undef S
#undef V
