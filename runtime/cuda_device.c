/* cuda_device.c: one GPU: driver, primary context, stream, memory, transfers. See cuda.h. */
#include "runtime/cuda.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Pinned memory: two halves and a line for the fault record. */
enum { HALF = 4 << 20, FAULT_LINE = 256 };
/* The driver's calls are those of CUDA 12.0. */
enum { OLDEST_DRIVER = 12000 };

/* ---- errors ---- */

/* What a kernel did; calls that come later are told of it, whichever they are. */
static bool is_kernels(CuResult r) {
    return r == CU_ILLEGAL_ADDRESS || r == CU_LAUNCH_TIMEOUT || r == CU_ASSERT ||
           (r >= CU_HARDWARE_STACK_ERROR && r <= CU_LAUNCH_FAILED);
}

/* The context can do nothing any more after these. */
static bool destroys(CuResult r) {
    return is_kernels(r) || r == CU_ECC_UNCORRECTABLE || r == CU_UNKNOWN;
}

__attribute__((format(printf, 2, 0))) static void say(CudaDevice *d, const char *format,
                                                      va_list args) {
    int n = *d->name
                ? snprintf(d->error, sizeof d->error, "GPU %d (%s): error: ", d->ordinal, d->name)
                : snprintf(d->error, sizeof d->error, "GPU %d: error: ", d->ordinal);
    vsnprintf(d->error + n, sizeof d->error - (size_t)n, format, args);
}

StgcStatus cuda_fail(CudaDevice *d, CuResult r, const char *format, ...) {
    char text[512];
    va_list args;
    if (d->lost)
        return STGC_ERR_IO; /* the first text says what happened */
    va_start(args, format);
    say(d, is_kernels(r) ? "a kernel of the step failed" : format, args);
    va_end(args);
    d->lost = destroys(r);
    size_t n = strlen(d->error);
    cuda_driver_text(&d->cu, r, text, sizeof text);
    snprintf(d->error + n, sizeof d->error - n, ": %s%s", text,
             d->lost ? "; what was on the GPU is lost: go on from the last checkpoint" : "");
    return STGC_ERR_IO;
}

StgcStatus cuda_refuse(CudaDevice *d, StgcStatus status, const char *format, ...) {
    va_list args;
    if (d->lost)
        return STGC_ERR_IO;
    va_start(args, format);
    say(d, format, args);
    va_end(args);
    return status;
}

/* ---- the context ---- */

bool cuda_enter(CudaDevice *d) {
    CuResult r = d->cu.cuCtxPushCurrent(d->context);
    if (r != CU_OK)
        cuda_fail(d, r, "its context cannot be used");
    return r == CU_OK;
}

void cuda_leave(CudaDevice *d) {
    CuContext mine;
    d->cu.cuCtxPopCurrent(&mine);
}

/* ---- memory ---- */

static const char *bytes_text(double n, char *text, size_t size) {
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    int u = 0;
    for (; n >= 1024 && u < 4; u++)
        n /= 1024;
    snprintf(text, size, u ? "%.1f %s" : "%.0f %s", n, units[u]);
    return text;
}

static StgcStatus no_room(CudaDevice *d, int64_t bytes, const char *what) {
    size_t unused = 0, total = 0;
    char need[32], have[32], all[32];
    d->cu.cuMemGetInfo(&unused, &total);
    return cuda_refuse(d, STGC_ERR_IO,
                       "out of memory: %s needs %s, %s of %s are free; make batch or sequence "
                       "smaller, or end other programs that use this GPU",
                       what, bytes_text((double)bytes, need, sizeof need),
                       bytes_text((double)unused, have, sizeof have),
                       bytes_text((double)total, all, sizeof all));
}

StgcStatus cuda_room(CudaDevice *d, int64_t bytes, const char *what) {
    size_t unused, total;
    CuResult r = d->cu.cuMemGetInfo(&unused, &total);
    if (r != CU_OK)
        return cuda_fail(d, r, "its free memory cannot be asked for");
    return bytes >= 0 && (uint64_t)bytes <= unused ? STGC_OK : no_room(d, bytes, what);
}

StgcStatus cuda_alloc(CudaDevice *d, int64_t bytes, const char *what, CuAddress *at) {
    CuResult r = d->cu.cuMemAlloc(at, bytes > 0 ? (size_t)bytes : 1);
    if (r == CU_OK)
        return STGC_OK;
    *at = 0;
    return r == CU_OUT_OF_MEMORY
               ? no_room(d, bytes, what)
               : cuda_fail(d, r, "%" PRId64 " bytes for %s cannot be reserved", bytes, what);
}

void cuda_free(CudaDevice *d, CuAddress at) {
    if (at)
        d->cu.cuMemFree(at);
}

/* ---- transfers ---- */

/* A half of the pinned memory that no transfer uses any more. */
static StgcStatus take_half(CudaDevice *d, int *half) {
    *half = d->turn;
    d->turn ^= 1;
    CuResult r = d->busy[*half] ? d->cu.cuEventSynchronize(d->staged[*half]) : CU_OK;
    d->busy[*half] = false;
    return r == CU_OK ? STGC_OK : cuda_fail(d, r, "a transfer failed");
}

static StgcStatus mark_half(CudaDevice *d, int half, CuResult r) {
    if (r == CU_OK)
        r = d->cu.cuEventRecord(d->staged[half], d->stream);
    d->busy[half] = r == CU_OK;
    return r == CU_OK ? STGC_OK : cuda_fail(d, r, "a transfer failed");
}

StgcStatus cuda_upload(CudaDevice *d, CuAddress to, const void *from, int64_t bytes) {
    StgcStatus status = d->lost ? STGC_ERR_IO : STGC_OK;
    for (int64_t at = 0; at < bytes && status == STGC_OK; at += HALF) {
        size_t n = (size_t)(bytes - at < HALF ? bytes - at : HALF);
        int half;
        status = take_half(d, &half);
        if (status != STGC_OK)
            break;
        char *pinned = d->staging + (size_t)half * HALF;
        memcpy(pinned, (const char *)from + at, n);
        status =
            mark_half(d, half, d->cu.cuMemcpyHtoDAsync(to + (CuAddress)at, pinned, n, d->stream));
    }
    return status;
}

/* While one half is on its way, the other is copied out. */
StgcStatus cuda_download(CudaDevice *d, void *to, CuAddress from, int64_t bytes) {
    StgcStatus status = d->lost ? STGC_ERR_IO : STGC_OK;
    int64_t before = -1;
    size_t before_bytes = 0;
    int before_half = 0;
    for (int64_t at = 0; at < bytes + HALF && status == STGC_OK; at += HALF) {
        size_t n = at >= bytes ? 0 : (size_t)(bytes - at < HALF ? bytes - at : HALF);
        int half = 0;
        if (n) {
            status = take_half(d, &half);
            if (status == STGC_OK)
                status = mark_half(d, half,
                                   d->cu.cuMemcpyDtoHAsync(d->staging + (size_t)half * HALF,
                                                           from + (CuAddress)at, n, d->stream));
        }
        if (before >= 0 && status == STGC_OK) {
            CuResult r = d->cu.cuEventSynchronize(d->staged[before_half]);
            d->busy[before_half] = false;
            if (r != CU_OK)
                status = cuda_fail(d, r, "a transfer failed");
            else
                memcpy((char *)to + before, d->staging + (size_t)before_half * HALF, before_bytes);
        }
        before = n ? at : -1;
        before_bytes = n;
        before_half = half;
    }
    return status;
}

StgcStatus cuda_zero(CudaDevice *d, CuAddress to, int64_t bytes) {
    CuResult r = bytes ? d->cu.cuMemsetD8Async(to, 0, (size_t)bytes, d->stream) : CU_OK;
    return r == CU_OK ? STGC_OK : cuda_fail(d, r, "memory cannot be cleared");
}

StgcStatus cuda_wait(CudaDevice *d, const char *doing) {
    CuResult r = d->cu.cuStreamSynchronize(d->stream);
    return r == CU_OK ? STGC_OK : cuda_fail(d, r, "%s", doing);
}

StgcCudaFault *cuda_fault_record(CudaDevice *d) {
    return (StgcCudaFault *)(void *)(d->staging + (size_t)2 * HALF);
}

/* ---- opening ---- */

static StgcStatus driver_start(CudaDevice *d) {
    int devices = 0;
    CuResult r = d->cu.cuInit(0);
    if (r == CU_STUB_LIBRARY)
        return cuda_refuse(d, STGC_ERR_IO,
                           "the NVIDIA driver found is the toolkit's stub for linking; install the "
                           "driver, or put its folder before the stub's in LD_LIBRARY_PATH");
    if (r == CU_SYSTEM_DRIVER_MISMATCH)
        return cuda_fail(d, r,
                         "the NVIDIA driver's library and kernel module differ; restart "
                         "this machine");
    if (r == CU_NO_DEVICE || (r == CU_OK && d->cu.cuDeviceGetCount(&devices) == CU_OK && !devices))
        return cuda_refuse(d, STGC_ERR_IO,
                           "the NVIDIA driver is there, but no GPU that it sees; check nvidia-smi "
                           "and CUDA_VISIBLE_DEVICES, or choose the CPU (--target cpu)");
    if (r == CU_OK)
        r = d->cu.cuDriverGetVersion(&d->driver_version);
    if (r != CU_OK)
        return cuda_fail(d, r, "the NVIDIA driver does not start");
    if (d->driver_version < OLDEST_DRIVER)
        return cuda_refuse(d, STGC_ERR_IO,
                           "the NVIDIA driver is too old: it is for CUDA %d.%d; install one for "
                           "CUDA 12.0 or later (525 or later)",
                           d->driver_version / 1000, d->driver_version % 1000 / 10);
    if (d->ordinal < 0 || d->ordinal >= devices)
        return cuda_refuse(d, STGC_ERR_IO,
                           "there is none of this number; there %s %d, counted from 0",
                           devices == 1 ? "is" : "are", devices);
    return STGC_OK;
}

static StgcStatus ask_device(CudaDevice *d) {
    int major = 0, minor = 0;
    const struct {
        unsigned attribute;
        int *to;
    } wanted[] = {{CU_ATTRIBUTE_CAPABILITY_MAJOR, &major},
                  {CU_ATTRIBUTE_CAPABILITY_MINOR, &minor},
                  {CU_ATTRIBUTE_MAX_THREADS, &d->max_threads},
                  {CU_ATTRIBUTE_SHARED_OPTIN, &d->shared_limit},
                  {CU_ATTRIBUTE_SMS, &d->sms}};
    CuResult r = d->cu.cuDeviceGet(&d->device, d->ordinal);
    if (r == CU_OK)
        r = d->cu.cuDeviceGetName(d->name, (int)sizeof d->name, d->device);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted && r == CU_OK; i++)
        r = d->cu.cuDeviceGetAttribute(wanted[i].to, wanted[i].attribute, d->device);
    d->capability = major * 10 + minor;
    return r == CU_OK ? STGC_OK : cuda_fail(d, r, "it does not answer");
}

/* What lives in the context. */
static StgcStatus make_stream(CudaDevice *d) {
    void *pinned = NULL;
    CuResult r = d->cu.cuStreamCreate(&d->stream, CU_NON_BLOCKING);
    for (int i = 0; i < 2 && r == CU_OK; i++)
        r = d->cu.cuEventCreate(&d->staged[i], CU_NO_TIMING);
    if (r == CU_OK)
        r = d->cu.cuMemHostAlloc(&pinned, (size_t)2 * HALF + FAULT_LINE, 0);
    d->staging = r == CU_OK ? pinned : NULL;
    if (r == CU_OUT_OF_MEMORY)
        return cuda_refuse(d, STGC_ERR_IO,
                           "out of memory: %d MiB of host memory cannot be pinned for transfers",
                           2 * HALF >> 20);
    return r == CU_OK ? STGC_OK : cuda_fail(d, r, "no stream can be made");
}

static StgcStatus device_start(CudaDevice *d) {
    StgcStatus status = driver_start(d);
    if (status == STGC_OK)
        status = ask_device(d);
    if (status != STGC_OK)
        return status;
    CuResult r = d->cu.cuDevicePrimaryCtxRetain(&d->context, d->device);
    if (r != CU_OK) {
        d->context = NULL;
        return cuda_fail(d, r, "no context can be made");
    }
    if (!cuda_enter(d))
        return STGC_ERR_IO;
    status = make_stream(d);
    cuda_leave(d);
    return status;
}

CudaDevice *cuda_device_new(const StgcCudaOptions *o, StgcStatus *status, char *error,
                            size_t size) {
    CudaDevice *d = calloc(1, sizeof *d);
    *status = STGC_ERR_RESOURCE;
    snprintf(error, size, "no memory for a device");
    if (!d)
        return NULL;
    d->ordinal = o->device;
    d->graphs = !o->no_graph;
    d->cublas_path = o->cublas ? strdup(o->cublas) : NULL; /* opened later, maybe */
    char why[400];
    if (o->cublas && !d->cublas_path)
        *status = cuda_refuse(d, STGC_ERR_RESOURCE, "no memory for a device");
    else if (!cuda_driver_open(&d->cu, o->driver, why, sizeof why))
        *status = cuda_refuse(d, STGC_ERR_IO, "%s", why);
    else
        *status = device_start(d);
    if (*status == STGC_OK)
        return d;
    snprintf(error, size, "%s", d->error);
    cuda_device_free(d);
    return NULL;
}

void cuda_device_free(CudaDevice *d) {
    if (!d)
        return;
    if (d->context && d->cu.cuCtxPushCurrent(d->context) == CU_OK) {
        if (d->stream)
            d->cu.cuStreamSynchronize(d->stream);
        cublas_stop(d);
        for (int i = 0; i < 2; i++)
            if (d->staged[i])
                d->cu.cuEventDestroy(d->staged[i]);
        if (d->staging)
            d->cu.cuMemFreeHost(d->staging);
        if (d->stream)
            d->cu.cuStreamDestroy(d->stream);
        cuda_leave(d);
    }
    if (d->context)
        d->cu.cuDevicePrimaryCtxRelease(d->device);
    cublas_close(&d->blas);
    cuda_driver_close(&d->cu);
    free(d->cublas_path);
    free(d);
}

void cuda_describe(const CudaDevice *d, char *text, size_t size) {
    int n = snprintf(text, size, "GPU %d, %s, compute capability %d.%d, driver for CUDA %d.%d",
                     d->ordinal, d->name, d->capability / 10, d->capability % 10,
                     d->driver_version / 1000, d->driver_version % 1000 / 10);
    if (d->cublas && n > 0 && (size_t)n < size)
        snprintf(text + n, size - (size_t)n, ", cuBLAS %d.%d.%d", d->cublas_version / 10000,
                 d->cublas_version % 10000 / 100, d->cublas_version % 100);
}
