/* emulator.h: executes PTX text on the CPU, to check kernels where there is no GPU. A test tool:
 * never installed, never tells a time. It is deliberately strict: what a GPU leaves undefined, or
 * what this emulator does not know, is an error with the PTX line, never ignored.
 *
 * A device has memory at fake addresses that cannot be dereferenced by the host; modules, launches.
 * Everything is synchronous here; the driver stand-in (tests/cuda) makes streams of it. */
#ifndef STGCC_TESTS_PTX_EMULATOR_H
#define STGCC_TESTS_PTX_EMULATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef struct PtxDevice PtxDevice;
typedef struct PtxModule PtxModule;
typedef struct PtxKernel PtxKernel;

typedef enum { PTX_APPROX_EXACT, PTX_APPROX_HIGH, PTX_APPROX_LOW, PTX_APPROX_RANDOM } PtxApprox;
typedef struct PtxOptions {
    int capability;     /* 80, 90, 120: limits such as shared memory per CTA */
    uint64_t seed;      /* 0: CTAs and warps in order; else orders and slices are drawn from it */
    PtxApprox approx;   /* how .approx results deviate within their stated bounds */
    bool async_late;    /* cp.async lands at its wait; else at its issue */
    bool check_races;   /* on by default (ptx_options) */
    bool check_init;    /* reads of bytes nobody wrote are errors; on by default */
    uint64_t budget;    /* warp instructions of a launch; 0: 2^40 */
    size_t memory;      /* bytes of the device; 0: 16 GiB (host memory is only used when written) */
} PtxOptions;
PtxOptions ptx_options(int capability); /* the defaults */

PtxDevice *ptx_device_new(const PtxOptions *o);
void ptx_device_free(PtxDevice *d);
void ptx_device_set(PtxDevice *d, const PtxOptions *o); /* all but capability and memory may change */
/* The last error: "kernel k: line 123: ld.global.f32: address … is 4 bytes behind allocation …".
 * Empty: none. Kept until the next call that fails. */
const char *ptx_error(const PtxDevice *d);

/* Memory. Fresh memory is poisoned and uninitialised. 0 on failure (ptx_error). Addresses are
 * 256-byte aligned and have gaps between them. */
uint64_t ptx_malloc(PtxDevice *d, size_t bytes);
bool ptx_free(PtxDevice *d, uint64_t address); /* false: not the start of a live allocation */
bool ptx_write(PtxDevice *d, uint64_t to, const void *from, size_t bytes);
/* init false: bytes nobody wrote are copied as poison; true: they are an error. */
bool ptx_read(PtxDevice *d, void *to, uint64_t from, size_t bytes, bool init);
bool ptx_copy(PtxDevice *d, uint64_t to, uint64_t from, size_t bytes);
bool ptx_fill(PtxDevice *d, uint64_t to, int byte, size_t bytes);
/* A pointer to the bytes for tools that compute on the host (the cuBLAS stand-in): NULL if the range
 * is not inside one live allocation. `write` marks it initialised. */
void *ptx_host_view(PtxDevice *d, uint64_t address, size_t bytes, bool write);
/* Whether every byte of the range was written. */
bool ptx_is_initialised(PtxDevice *d, uint64_t address, size_t bytes);
size_t ptx_memory_used(const PtxDevice *d);
int ptx_live_allocations(const PtxDevice *d);

/* Parses a module; NULL with ptx_error naming the line. The text must be inside the subset that
 * ptx_lint allows. */
PtxModule *ptx_load(PtxDevice *d, const char *text, size_t bytes);
void ptx_unload(PtxModule *m);
int ptx_kernel_count(const PtxModule *m);
const char *ptx_kernel_name(const PtxModule *m, int i);
PtxKernel *ptx_kernel(PtxModule *m, const char *name); /* NULL: there is none */
typedef struct PtxKernelInfo {
    int nparams;
    int param_offset[256], param_bytes[256];
    int params_bytes, shared_static, local_bytes;
    int max_threads; /* of .maxntid, or 1024 */
} PtxKernelInfo;
void ptx_kernel_info(const PtxKernel *k, PtxKernelInfo *out);

/* Runs a grid to its end. params: the parameter block as the driver would copy it. False with
 * ptx_error. */
bool ptx_launch(PtxDevice *d, PtxKernel *k, const unsigned grid[3], const unsigned block[3],
                unsigned shared_dynamic, const void *params, size_t params_bytes);

/* Counts of the last launch: executed thread instructions by kind, for the static cost to be
 * checked against. */
typedef struct PtxCounts {
    uint64_t instructions, fma_flops, mma_flops, other_flops; /* a fused multiply-add is 2 flops */
    uint64_t global_read, global_written, shared_read, shared_written; /* bytes */
    uint64_t barriers;
} PtxCounts;
void ptx_counts(const PtxDevice *d, PtxCounts *out);

/* lint.c: problems of a text, one line each, to `to`; returns their number. Rules: only known forms,
 * an explicit rounding on every float add, sub, mul, fma, div, sqrt; no .local, no call, no
 * .target/.version above what `capability` and the stated PTX version allow. */
int ptx_lint(const char *text, size_t bytes, int capability, FILE *to);

#endif
