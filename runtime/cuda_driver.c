/* cuda_driver.c: opens the driver's library and cuBLAS while the program runs, so that one binary
 * serves machines with and without a GPU. */
#define _GNU_SOURCE
#include "runtime/cuda_driver.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

/* The driver registers things that outlive dlclose, so its library stays loaded once it was. */
static void *open_library(const char *path) {
    return dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
}

/* ---- the driver ---- */

enum { ABI = 12000 }; /* the CUDA version whose signatures cuda_driver.h declares */

typedef CuResult (*GetProcAddress)(const char *name, void **at, int version, uint64_t flags,
                                   unsigned *found);

/* What cuGetProcAddress gives for CUDA 12.0; drivers without it, or that do not know the name, have
 * it under its versioned symbol. */
static void *find(void *library, GetProcAddress get, const char *name, const char *symbol) {
    void *at = NULL;
    unsigned found = 0;
    if (get && get(name, &at, ABI, 0, &found) == CU_OK && at)
        return at;
    return dlsym(library, symbol);
}

bool cuda_driver_open(CudaDriver *d, const char *path, char *error, size_t size) {
    const char *file = path ? path : "libcuda.so.1";
    *d = (CudaDriver){.library = open_library(file)};
    if (!d->library) {
        const char *why = dlerror();
        snprintf(error, size,
                 "no NVIDIA driver here: %s; install it, or choose the CPU (--target cpu)",
                 why ? why : file);
        return false;
    }
    GetProcAddress get = NULL;
    void *symbol = dlsym(d->library, "cuGetProcAddress_v2"), *at;
    memcpy(&get, &symbol, sizeof get);
    const char *missing = NULL;
#define V(name, versioned, arguments) \
    at = find(d->library, get, #name, #versioned); \
    memcpy(&d->name, &at, sizeof d->name); \
    missing = at || missing ? missing : #versioned;
#define S(name, arguments) V(name, name, arguments)
    CUDA_DRIVER_FUNCTIONS(S, V)
#undef S
#undef V
    if (!missing)
        return true;
    snprintf(error, size,
             "the NVIDIA driver is too old: %s has no %s; install one for CUDA 12.0 or later", file,
             missing);
    cuda_driver_close(d);
    return false;
}

void cuda_driver_close(CudaDriver *d) {
    if (d->library)
        dlclose(d->library);
    *d = (CudaDriver){0};
}

const char *cuda_driver_text(const CudaDriver *d, CuResult r, char *text, size_t size) {
    const char *name = NULL, *what = NULL;
    if (d->cuGetErrorName(r, &name) != CU_OK || !name)
        snprintf(text, size, "error %u", r);
    else if (d->cuGetErrorString(r, &what) != CU_OK || !what)
        snprintf(text, size, "%s", name);
    else
        snprintf(text, size, "%s: %s", name, what);
    return text;
}

/* ---- cuBLAS ---- */

bool cublas_open(Cublas *b, const char *path, char *error, size_t size) {
    static const char *const files[] = {"libcublas.so.13", "libcublas.so.12"};
    *b = (Cublas){.library = open_library(path ? path : files[0])};
    if (!b->library && !path)
        b->library = open_library(files[1]);
    if (!b->library) {
        snprintf(error, size,
                 "cuBLAS is missing: neither %s nor %s can be loaded; install it (package "
                 "libcublas of CUDA 12 or 13), or put its folder into LD_LIBRARY_PATH",
                 path ? path : files[0], files[1]);
        return false;
    }
    const char *missing = NULL;
    void *at;
#define B(name, result, arguments) \
    at = dlsym(b->library, #name); \
    memcpy(&b->name, &at, sizeof b->name); \
    missing = at || missing ? missing : #name;
    CUBLAS_FUNCTIONS(B)
#undef B
    if (!missing)
        return true;
    snprintf(error, size, "cuBLAS is too old: it has no %s; install that of CUDA 12 or 13",
             missing);
    cublas_close(b);
    return false;
}

void cublas_close(Cublas *b) {
    if (b->library)
        dlclose(b->library);
    *b = (Cublas){0};
}
