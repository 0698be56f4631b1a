/* device.c: memory of the emulated device, modules, errors.
 *
 * Addresses are handed out upwards with gaps and never twice, and no host can dereference them.
 * Host memory comes from mmap, so what nobody writes takes none. */
#include "ptx.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

PtxOptions ptx_options(int capability) {
    return (PtxOptions){.capability = capability, .check_races = true, .check_init = true};
}

PtxDevice *ptx_device_new(const PtxOptions *o) {
    PtxDevice *d = calloc(1, sizeof *d);
    if (!d) {
        abort();
    }
    d->o = *o;
    d->next = PTX_GLOBAL_BASE;
    d->now = 1;
    ptx_device_set(d, o);
    d->o.capability = o->capability;
    d->o.memory = o->memory ? o->memory : (size_t)16 << 30;
    return d;
}

void ptx_device_set(PtxDevice *d, const PtxOptions *o) {
    size_t memory = d->o.memory;
    int capability = d->o.capability;
    d->o = *o;
    d->o.budget = o->budget ? o->budget : 1ull << 40;
    d->o.memory = memory;
    d->o.capability = capability;
}

static uint64_t rounded(uint64_t bytes) {
    return (bytes + 4095) & ~4095ull;
}

static void *map(uint64_t bytes) {
    void *p = mmap(NULL, rounded(bytes), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void release(PtxAlloc *a) {
    munmap(a->host, rounded(a->bytes));
    munmap(a->init, rounded(a->bytes / 8 + 16));
    if (a->cells) {
        munmap(a->cells, rounded((a->bytes / 4 + 1) * sizeof(PtxCell)));
    }
    a->host = a->init = NULL;
    a->cells = NULL;
}

void ptx_device_free(PtxDevice *d) {
    if (!d) {
        return;
    }
    while (d->modules) {
        ptx_unload(d->modules);
    }
    for (int n = 0; n < d->nallocs; n++) {
        if (d->allocs[n].host) {
            release(&d->allocs[n]);
        }
    }
    free(d->shared.host);
    free(d->shared.init);
    free(d->shared.cells);
    free(d->allocs);
    free(d->bytes);
    free(d);
}

void ptx_fail(PtxDevice *d, const char *format, ...) {
    va_list a;
    va_start(a, format);
    vsnprintf(d->error, sizeof d->error, format, a);
    va_end(a);
}

const char *ptx_error(const PtxDevice *d) {
    return d->error;
}

uint64_t ptx_allocate(PtxDevice *d, size_t bytes, bool module, bool constant) {
    if (bytes == 0) {
        ptx_fail(d, "an allocation of 0 bytes");
        return 0;
    }
    if (bytes > d->o.memory || d->used + bytes > d->o.memory) {
        ptx_fail(d, "out of memory: %zu bytes asked for, %zu of %zu in use", bytes, d->used,
                 d->o.memory);
        return 0;
    }
    if (d->nallocs == d->allocs_cap) {
        d->allocs_cap = d->allocs_cap ? d->allocs_cap * 2 : 64;
        d->allocs = realloc(d->allocs, (size_t)d->allocs_cap * sizeof *d->allocs);
        if (!d->allocs) {
            abort();
        }
    }
    PtxAlloc *a = &d->allocs[d->nallocs];
    *a = (PtxAlloc){.address = d->next, .bytes = bytes, .module = module, .constant = constant};
    a->host = map(bytes);
    a->init = map(bytes / 8 + 16);
    if (!a->host || !a->init) {
        if (a->host) {
            munmap(a->host, rounded(bytes));
        }
        ptx_fail(d, "out of memory: the host has no %zu bytes", bytes);
        return 0;
    }
    d->nallocs++;
    d->live += !module;
    d->used += bytes;
    d->next += ((bytes + 255) & ~255ull) + 4096;
    return a->address;
}

PtxAlloc *ptx_find(PtxDevice *d, uint64_t address) {
    int lo = 0, hi = d->nallocs - 1;
    if (d->last < d->nallocs) {
        PtxAlloc *a = &d->allocs[d->last];
        if (address >= a->address && address - a->address < a->bytes) {
            return a;
        }
    }
    while (lo <= hi) {
        int mid = (lo + hi) / 2;
        if (d->allocs[mid].address <= address) {
            lo = mid + 1;
        } else {
            hi = mid - 1;
        }
    }
    if (hi < 0) {
        return NULL;
    }
    d->last = hi;
    return &d->allocs[hi];
}

uint64_t ptx_malloc(PtxDevice *d, size_t bytes) {
    return ptx_allocate(d, bytes, false, false);
}

static bool free_alloc(PtxDevice *d, uint64_t address, bool module) {
    PtxAlloc *a = ptx_find(d, address);
    if (!a || a->address != address || !a->host || a->module != module) {
        ptx_fail(d, "0x%llx is not the start of a live allocation", (unsigned long long)address);
        return false;
    }
    release(a);
    d->live -= !module;
    d->used -= a->bytes;
    return true;
}

bool ptx_free(PtxDevice *d, uint64_t address) {
    return free_alloc(d, address, false);
}

/* The live allocation that holds a range; NULL with ptx_error. */
static PtxAlloc *range(PtxDevice *d, uint64_t address, size_t bytes, const char *what) {
    PtxAlloc *a = ptx_find(d, address);
    if (!a || address - a->address > a->bytes || bytes > a->bytes - (address - a->address)) {
        ptx_fail(d, "%s: 0x%llx + %zu bytes is not inside one allocation", what,
                 (unsigned long long)address, bytes);
        return NULL;
    }
    if (!a->host) {
        ptx_fail(d, "%s: 0x%llx is in freed memory", what, (unsigned long long)address);
        return NULL;
    }
    return a;
}

bool ptx_write(PtxDevice *d, uint64_t to, const void *from, size_t bytes) {
    void *p = bytes ? ptx_host_view(d, to, bytes, true) : NULL;
    if (p) {
        memcpy(p, from, bytes);
    }
    return p || !bytes;
}

static bool is_init(const PtxAlloc *a, uint64_t k) {
    return a->init[k / 8] >> (k % 8) & 1;
}

bool ptx_read(PtxDevice *d, void *to, uint64_t from, size_t bytes, bool init) {
    PtxAlloc *a = range(d, from, bytes, "read");
    if (!a) {
        return false;
    }
    uint64_t at = from - a->address;
    memcpy(to, a->host + at, bytes);
    if (ptx_init_all(a->init, at, bytes)) {
        return true;
    }
    for (size_t k = 0; k < bytes; k++) {
        if (!is_init(a, at + k)) {
            if (init) {
                ptx_fail(d, "read: byte %zu of 0x%llx + %zu was never written", k,
                         (unsigned long long)from, bytes);
                return false;
            }
            ((uint8_t *)to)[k] = 0xff;
        }
    }
    return true;
}

bool ptx_copy(PtxDevice *d, uint64_t to, uint64_t from, size_t bytes) {
    PtxAlloc *a = range(d, from, bytes, "copy from"), *b = range(d, to, bytes, "copy to");
    if (!a || !b) {
        return false;
    }
    uint64_t ka = from - a->address, kb = to - b->address;
    bool whole = ptx_init_all(a->init, ka, bytes);
    if (!whole && a == b) {
        ptx_fail(d, "copy: unwritten bytes within one allocation");
        return false;
    }
    memmove(b->host + kb, a->host + ka, bytes);
    ptx_init_set(b->init, kb, bytes);
    for (size_t k = 0; !whole && k < bytes; k++) { /* what is unwritten stays so */
        if (!is_init(a, ka + k)) {
            ptx_init_clear(b->init, kb + k, 1);
        }
    }
    return true;
}

bool ptx_fill(PtxDevice *d, uint64_t to, int byte, size_t bytes) {
    void *p = bytes ? ptx_host_view(d, to, bytes, true) : NULL;
    if (p) {
        memset(p, byte, bytes);
    }
    return p || !bytes;
}

void *ptx_host_view(PtxDevice *d, uint64_t address, size_t bytes, bool write) {
    PtxAlloc *a = range(d, address, bytes, "host view");
    if (!a) {
        return NULL;
    }
    if (write) {
        ptx_init_set(a->init, address - a->address, bytes);
    }
    return a->host + (address - a->address);
}

bool ptx_is_initialised(PtxDevice *d, uint64_t address, size_t bytes) {
    PtxAlloc *a = range(d, address, bytes, "is initialised");
    return a && ptx_init_all(a->init, address - a->address, bytes);
}

size_t ptx_memory_used(const PtxDevice *d) {
    return d->used;
}

int ptx_live_allocations(const PtxDevice *d) {
    return d->live;
}

/* ---- modules ---- */
PtxModule *ptx_load(PtxDevice *d, const char *text, size_t bytes) {
    PtxModule *m = ptx_parse(d, text, bytes, NULL, NULL);
    if (m) {
        m->next = d->modules;
        d->modules = m;
    }
    return m;
}

void ptx_unload(PtxModule *m) {
    if (!m) {
        return;
    }
    for (PtxModule **p = m->device ? &m->device->modules : NULL; p && *p; p = &(*p)->next) {
        if (*p == m) {
            *p = m->next;
            break;
        }
    }
    for (int n = 0; n < m->nglobals; n++) {
        free_alloc(m->device, m->globals[n], true);
    }
    for (int n = 0; n < m->nkernels; n++) {
        PtxKernel *k = m->kernels[n];
        free(k->name);
        free(k->code);
        free(k->operands);
        free(k->reg_names);
        free(k->imms);
        free(k);
    }
    free(m->kernels);
    free(m->globals);
    free(m->text);
    free(m);
}

int ptx_kernel_count(const PtxModule *m) {
    return m->nkernels;
}

const char *ptx_kernel_name(const PtxModule *m, int i) {
    return m->kernels[i]->name;
}

PtxKernel *ptx_kernel(PtxModule *m, const char *name) {
    for (int n = 0; n < m->nkernels; n++) {
        if (!strcmp(m->kernels[n]->name, name)) {
            return m->kernels[n];
        }
    }
    return NULL;
}

void ptx_kernel_info(const PtxKernel *k, PtxKernelInfo *out) {
    *out = k->info;
}

void ptx_counts(const PtxDevice *d, PtxCounts *out) {
    *out = d->counts;
}
