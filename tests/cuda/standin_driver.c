/* standin_driver.c: the stand-in's devices, contexts, memory and modules. */
#include "tests/cuda/standin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- devices ---- */

int standin_shared_limit(void) {
    switch (standin.inject.sm) { /* CUDA programming guide, table of technical specifications */
    case 80:
    case 87:
        return 163 << 10;
    case 90:
    case 100:
        return 227 << 10;
    default:
        return 99 << 10;
    }
}

static CuResult need_start(void) {
    return standin.started ? CU_OK : standin_say(3, "cuInit was not called");
}

CuResult cuDeviceGetCount(int *count) {
    STANDIN_LOCK;
    *count = 1;
    return need_start();
}

CuResult cuDeviceGet(CuDevice *device, int ordinal) {
    STANDIN_LOCK;
    CuResult r = need_start();
    if (r == CU_OK && ordinal != 0)
        r = standin_say(CU_INVALID_DEVICE, "device %d of 1", ordinal);
    *device = 0;
    return r;
}

CuResult cuDeviceGetName(char *name, int bytes, CuDevice device) {
    STANDIN_LOCK;
    snprintf(name, (size_t)bytes, "PTX emulator (not a GPU)");
    return need_start();
}

CuResult cuDeviceGetAttribute(int *value, unsigned attribute, CuDevice device) {
    STANDIN_LOCK;
    CuResult r = need_start();
    switch (attribute) {
    case CU_ATTRIBUTE_MAX_THREADS:
        *value = 1024;
        break;
    case CU_ATTRIBUTE_SMS:
        *value = 4;
        break;
    case CU_ATTRIBUTE_CAPABILITY_MAJOR:
        *value = (int)standin.inject.sm / 10;
        break;
    case CU_ATTRIBUTE_CAPABILITY_MINOR:
        *value = (int)standin.inject.sm % 10;
        break;
    case CU_ATTRIBUTE_SHARED_OPTIN:
        *value = standin_shared_limit();
        break;
    default:
        standin_misuse("cuDeviceGetAttribute: attribute %u is not known here", attribute);
        return CU_INVALID_VALUE;
    }
    return r;
}

/* ---- the primary context ---- */

struct CUctx_st {
    int unused;
};
static struct CUctx_st primary;
static _Thread_local int depth; /* contexts pushed on this thread */

CuResult standin_enter(void) {
    if (!standin.started)
        return need_start();
    if (!depth || !standin.retained)
        return standin_say(CU_INVALID_CONTEXT, "no context is current on this thread");
    return standin.sticky;
}

CuResult cuDevicePrimaryCtxRetain(CuContext *context, CuDevice device) {
    STANDIN_LOCK;
    CuResult r = need_start();
    if (r != CU_OK)
        return r;
    if (!standin.retained) {
        PtxOptions o = ptx_options((int)standin.inject.sm);
        o.seed = (uint64_t)standin.inject.seed;
        o.approx = (PtxApprox)standin.inject.approx;
        o.async_late = standin.inject.seed & 1;
        o.memory = (size_t)standin.inject.memory << 20;
        standin.device = ptx_device_new(&o);
        standin.sticky = CU_OK;
        standin.why[0] = 0;
        if (!standin.device)
            return standin_say(CU_OUT_OF_MEMORY, "no memory for the emulator");
    }
    standin.retained++;
    *context = &primary;
    return CU_OK;
}

static const char *const kind_names[OBJECT_KINDS] = {
    "module", "stream", "event", "graph", "instantiated graph", "pinned memory", "cuBLAS handle"};

/* A context that ends takes everything with it; here that is a leak, and said. */
static void report_leaks(void) {
    int live = ptx_live_allocations(standin.device);
    if (live)
        fprintf(stderr, "PTX emulator: leaked: %d allocations of device memory\n", live);
    standin.counts.leaks += live;
    for (const Object *o = standin.objects; o; o = o->next) {
        fprintf(stderr, "PTX emulator: leaked: a %s\n", kind_names[o->kind]);
        standin.counts.leaks++;
    }
}

CuResult cuDevicePrimaryCtxRelease_v2(CuDevice device) {
    STANDIN_LOCK;
    if (!standin.retained) {
        standin_misuse("a context is released that was not retained");
        return CU_INVALID_CONTEXT;
    }
    if (--standin.retained)
        return CU_OK;
    report_leaks();
    ptx_device_free(standin.device);
    standin.device = NULL;
    standin.sticky = CU_OK;
    return CU_OK;
}

CuResult cuCtxPushCurrent_v2(CuContext context) {
    STANDIN_LOCK;
    if (context != &primary || !standin.retained)
        return standin_say(CU_INVALID_CONTEXT, "no such context");
    depth++;
    return CU_OK;
}

CuResult cuCtxPopCurrent_v2(CuContext *context) {
    STANDIN_LOCK;
    if (!depth) {
        standin_misuse("a context is popped that was not pushed");
        return CU_INVALID_CONTEXT;
    }
    depth--;
    *context = &primary;
    return CU_OK;
}

/* ---- memory ---- */

CuResult cuMemGetInfo_v2(size_t *unused, size_t *total) {
    STANDIN_LOCK;
    CuResult r = standin_enter();
    size_t used = standin.device ? ptx_memory_used(standin.device) : 0;
    *total = (size_t)standin.inject.memory << 20;
    *unused = used < *total ? *total - used : 0;
    return r;
}

CuResult cuMemAlloc_v2(CuAddress *address, size_t bytes) {
    STANDIN_LOCK;
    CuResult r = standin_enter();
    if (r == CU_OK)
        r = standin_not_in_capture("cuMemAlloc");
    if (r != CU_OK)
        return r;
    if (!bytes)
        return standin_say(CU_INVALID_VALUE, "cuMemAlloc: 0 bytes");
    if (standin_due(&standin.inject.oom))
        return standin_say(CU_OUT_OF_MEMORY, "injected");
    *address = ptx_malloc(standin.device, bytes);
    return *address ? CU_OK : standin_say(CU_OUT_OF_MEMORY, "%s", ptx_error(standin.device));
}

CuResult cuMemFree_v2(CuAddress address) {
    STANDIN_LOCK;
    CuResult r = standin_enter();
    if (!standin.device)
        return r;
    if (r == CU_OK)
        r = standin_not_in_capture("cuMemFree");
    if (standin_pending() && !standin.sticky)
        standin_misuse("device memory is freed while work is pending");
    if (!ptx_free(standin.device, address)) {
        standin_misuse("cuMemFree: %s", ptx_error(standin.device));
        return CU_INVALID_VALUE;
    }
    return r;
}

typedef struct HostMemory {
    Object object;
    void *at;
    size_t bytes;
} HostMemory;

CuResult cuMemHostAlloc(void **at, size_t bytes, unsigned flags) {
    STANDIN_LOCK;
    CuResult r = standin_enter();
    if (r == CU_OK)
        r = standin_not_in_capture("cuMemHostAlloc");
    if (r != CU_OK)
        return r;
    if (flags)
        standin_misuse("cuMemHostAlloc: flags %u are not known here", flags);
    if (!bytes || standin_due(&standin.inject.pin))
        return standin_say(CU_OUT_OF_MEMORY, "injected");
    HostMemory *m = standin_object(OBJECT_HOST, sizeof *m);
    m->at = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    m->bytes = bytes;
    if (!m->at)
        abort();
    memset(m->at, 0xe5, bytes);
    *at = m->at;
    return CU_OK;
}

static HostMemory *find_host(const void *at, size_t bytes) {
    for (Object *o = standin.objects; o; o = o->next) {
        HostMemory *m = (HostMemory *)o;
        if (o->kind == OBJECT_HOST && (const char *)at >= (const char *)m->at &&
            (const char *)at + bytes <= (const char *)m->at + m->bytes)
            return m;
    }
    return NULL;
}

bool standin_pinned(const void *at, size_t bytes) {
    return find_host(at, bytes) != NULL;
}

CuResult cuMemFreeHost(void *at) {
    STANDIN_LOCK;
    HostMemory *m = find_host(at, 0);
    if (!m || m->at != at) {
        standin_misuse("cuMemFreeHost: not the start of pinned memory");
        return CU_INVALID_VALUE;
    }
    if (standin_pending() && !standin.sticky)
        standin_misuse("pinned memory is freed while work is pending");
    free(m->at);
    standin_forget(m);
    return standin_enter();
}

/* ---- modules ---- */

struct CUmod_st {
    Object object;
    PtxModule *ptx;
    Function *functions;
};

/* The options of cuModuleLoadDataEx that the runtime uses: where an error goes. */
static void write_log(unsigned noptions, const unsigned *options, void **values, const char *text) {
    char *log = NULL;
    size_t bytes = 0;
    for (unsigned i = 0; i < noptions; i++) {
        if (options[i] == CU_JIT_ERROR_LOG)
            log = values[i];
        else if (options[i] == CU_JIT_ERROR_LOG_BYTES)
            bytes = (size_t)(uintptr_t)values[i];
        else
            standin_misuse("cuModuleLoadDataEx: option %u is not known here", options[i]);
    }
    if (log && bytes)
        snprintf(log, bytes, "%s", text);
}

CuResult cuModuleLoadDataEx(CuModule *module, const void *image, unsigned noptions,
                            unsigned *options, void **values) {
    STANDIN_LOCK;
    CuResult r = standin_enter();
    if (r == CU_OK)
        r = standin_not_in_capture("cuModuleLoadDataEx");
    if (r != CU_OK)
        return r;
    if (standin.inject.bad_ptx) {
        write_log(noptions, options, values, "ptxas error: injected;\nfatal: line 1");
        return standin_say(CU_INVALID_PTX, "injected");
    }
    const char *target = strstr(image, ".target sm_");
    if (target && atoi(target + strlen(".target sm_")) > standin.inject.sm)
        return standin_say(CU_INVALID_PTX, "the PTX is for sm_%d, this is sm_%d",
                           atoi(target + strlen(".target sm_")), (int)standin.inject.sm);
    PtxModule *ptx = ptx_load(standin.device, image, strlen(image));
    if (!ptx) {
        write_log(noptions, options, values, ptx_error(standin.device));
        return standin_say(CU_INVALID_PTX, "%s", ptx_error(standin.device));
    }
    CuModule m = standin_object(OBJECT_MODULE, sizeof *m);
    m->ptx = ptx;
    *module = m;
    return CU_OK;
}

CuResult cuModuleUnload(CuModule module) {
    STANDIN_LOCK;
    if (!standin_is(module, OBJECT_MODULE)) {
        standin_misuse("cuModuleUnload: no module");
        return CU_INVALID_HANDLE;
    }
    if (standin_pending() && !standin.sticky)
        standin_misuse("a module is unloaded while work is pending");
    for (Function *f = module->functions, *next; f; f = next) {
        next = f->next;
        free(f);
    }
    ptx_unload(module->ptx);
    standin_forget(module);
    return standin_enter();
}

bool standin_is_function(CuFunction function) {
    for (const Object *o = standin.objects; o; o = o->next)
        for (const Function *f = o->kind == OBJECT_MODULE ? ((CuModule)o)->functions : NULL; f;
             f = f->next)
            if ((CuFunction)f == function)
                return true;
    return false;
}

CuResult cuModuleGetFunction(CuFunction *function, CuModule module, const char *name) {
    STANDIN_LOCK;
    CuResult r = standin_enter();
    if (r != CU_OK)
        return r;
    if (!standin_is(module, OBJECT_MODULE))
        return standin_say(CU_INVALID_HANDLE, "no module");
    PtxKernel *k = ptx_kernel(module->ptx, name);
    if (!k)
        return standin_say(CU_NOT_FOUND, "the module has no kernel '%s'", name);
    Function *f = calloc(1, sizeof *f);
    if (!f)
        abort();
    f->module = module;
    f->kernel = k;
    ptx_kernel_info(k, &f->info);
    f->next = module->functions;
    module->functions = f;
    *function = (CuFunction)f;
    return CU_OK;
}

CuResult cuFuncSetAttribute(CuFunction function, unsigned attribute, int value) {
    STANDIN_LOCK;
    CuResult r = standin_enter();
    Function *f = (Function *)function;
    if (r != CU_OK)
        return r;
    if (!standin_is_function(function))
        return standin_say(CU_INVALID_HANDLE, "no function");
    if (attribute != CU_FUNCTION_MAX_DYNAMIC_SHARED) {
        standin_misuse("cuFuncSetAttribute: attribute %u is not known here", attribute);
        return CU_INVALID_VALUE;
    }
    if (value < 0 || value + f->info.shared_static > standin_shared_limit())
        return standin_say(CU_INVALID_VALUE, "%d + %d bytes of shared memory, %d are there", value,
                           f->info.shared_static, standin_shared_limit());
    f->max_dynamic = value;
    return CU_OK;
}
