/* launch.c: a grid. CTAs run one after the other, warps of a CTA in turns between barriers; a seed
 * shuffles both. */
#include "ptx.h"

#include <stdlib.h>
#include <string.h>

enum { SHARED_MAX = 227 << 10 };

/* Shared memory that a CTA may have (CUDA C++ guide, compute capabilities). */
static unsigned shared_limit(int capability) {
    switch (capability) {
    case 80:
    case 87:
        return 163 << 10;
    case 90:
    case 100:
    case 103:
        return 227 << 10;
    default:
        return 99 << 10;
    }
}

static bool refuse(PtxRun *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool refuse(PtxRun *r, const char *format, ...) {
    char text[300];
    va_list a;
    va_start(a, format);
    vsnprintf(text, sizeof text, format, a);
    va_end(a);
    ptx_fail(r->d, "kernel %s: %s", r->k->name, text);
    return false;
}

static bool check_launch(PtxRun *r, unsigned dynamic) {
    const PtxKernelInfo *info = &r->k->info;
    uint64_t threads = (uint64_t)r->block[0] * r->block[1] * r->block[2];
    uint64_t ctas = (uint64_t)r->grid[0] * r->grid[1] * r->grid[2];
    if (threads == 0 || threads > 1024 || r->block[2] > 64) {
        return refuse(r, "a block of %u x %u x %u threads is not possible", r->block[0],
                      r->block[1], r->block[2]);
    }
    if (ctas == 0 || r->grid[0] > INT32_MAX || r->grid[1] > 65535 || r->grid[2] > 65535) {
        return refuse(r, "a grid of %u x %u x %u blocks is not possible", r->grid[0], r->grid[1],
                      r->grid[2]);
    }
    if (ctas > 1 << 28) {
        return refuse(r, "%llu blocks are more than the emulator runs", (unsigned long long)ctas);
    }
    if (threads > (uint64_t)info->max_threads) {
        return refuse(r, "%llu threads, .maxntid allows %d", (unsigned long long)threads,
                      info->max_threads);
    }
    const int *q = r->k->req_ntid;
    if (q[0] &&
        ((int)r->block[0] != q[0] || (int)r->block[1] != q[1] || (int)r->block[2] != q[2])) {
        return refuse(r, "a block of %u x %u x %u threads, .reqntid asks for %d x %d x %d",
                      r->block[0], r->block[1], r->block[2], q[0], q[1], q[2]);
    }
    if ((int)r->params_bytes != info->params_bytes) {
        return refuse(r, "%zu bytes of parameters, the kernel has %d", r->params_bytes,
                      info->params_bytes);
    }
    if (dynamic && !r->k->dynamic_shared) {
        return refuse(r, "%u bytes of dynamic shared memory for a kernel that uses none", dynamic);
    }
    if ((unsigned)info->shared_static + dynamic > shared_limit(r->d->o.capability)) {
        return refuse(r, "%u bytes of shared memory, sm_%d has %u",
                      (unsigned)info->shared_static + dynamic, r->d->o.capability,
                      shared_limit(r->d->o.capability));
    }
    r->threads = (int)threads;
    r->nwarps = (int)((threads + LANES - 1) / LANES);
    r->ncta = (unsigned)ctas;
    return true;
}

static void *need(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size);
    if (!p) {
        abort();
    }
    return p;
}

static void prepare_shared(PtxRun *r, unsigned dynamic) {
    PtxAlloc *a = &r->d->shared;
    if (!a->host) {
        a->address = PTX_SHARED_BASE;
        a->host = need(SHARED_MAX + 16, 1);
        a->init = need(SHARED_MAX / 8 + 16, 1);
        a->cells = need(SHARED_MAX / 4 + 4, sizeof *a->cells);
    }
    unsigned align = r->k->dynamic_align ? (unsigned)r->k->dynamic_align : 1;
    unsigned fixed = (unsigned)r->k->info.shared_static;
    a->bytes = dynamic ? ((fixed + align - 1) & ~(align - 1)) + dynamic : fixed;
    a->bytes = a->bytes > SHARED_MAX ? SHARED_MAX : a->bytes;
    r->shared = a;
}

static void prepare(PtxRun *r, unsigned dynamic) {
    PtxDevice *d = r->d;
    prepare_shared(r, dynamic);
    r->executed = need((size_t)r->k->ncode, sizeof *r->executed);
    r->warps = need((size_t)r->nwarps, sizeof *r->warps);
    r->cta_order = need(r->ncta, sizeof *r->cta_order);
    r->cta_stamps = need(r->ncta, sizeof *r->cta_stamps);
    r->random = d->o.seed;
    r->approx_random = d->o.seed * 2654435761u + 1;
    r->races = d->o.check_races;
    r->init = d->o.check_init;
    r->launch_start = ++d->now;
    for (unsigned n = 0; n < r->ncta; n++) {
        unsigned at = n;
        if (r->random) { /* a shuffle on the way */
            at = (unsigned)(ptx_random(&r->random) % (n + 1));
        }
        r->cta_order[n] = r->cta_order[at];
        r->cta_order[at] = n;
    }
    for (int n = 0; n < r->nwarps; n++) {
        PtxWarp *w = &r->warps[n];
        size_t local = (size_t)r->k->info.local_bytes * LANES;
        w->run = r;
        w->number = n;
        w->regs = aligned_alloc(64, (r->k->reg_bytes + 511) & ~63u);
        if (!w->regs) {
            abort();
        }
        w->defined = need((size_t)r->k->nregs, sizeof *w->defined);
        w->local = (PtxAlloc){.address = PTX_LOCAL_BASE, .bytes = local};
        w->local.host = need(local + 16, 1);
        w->local.init = need(local / 8 + 16, 1);
        w->base[BASE_REGS] = w->regs;
        w->base[BASE_IMM] = r->k->imms;
        w->base[BASE_SREG] = w->sreg[0];
        int left = r->threads - n * LANES;
        w->born = left >= LANES ? ~0u : (1u << left) - 1;
    }
}

static void finish(PtxRun *r) {
    for (int n = 0; n < r->nwarps; n++) {
        PtxWarp *w = &r->warps[n];
        free(w->regs);
        free(w->defined);
        free(w->local.host);
        free(w->local.init);
        free(w->copies);
    }
    free(r->warps);
    free(r->executed);
    free(r->cta_order);
    free(r->cta_stamps);
}

static void set_sreg(PtxWarp *w, int sreg, uint32_t v) {
    uint32_t *d = (uint32_t *)(void *)w->sreg[sreg];
    for (int l = 0; l < LANES; l++) {
        d[l] = v;
    }
}

static void start_warp(PtxRun *r, PtxWarp *w, unsigned dynamic) {
    uint32_t *x = (uint32_t *)(void *)w->sreg[SREG_TID_X], *lane;
    uint32_t *y = (uint32_t *)(void *)w->sreg[SREG_TID_Y];
    uint32_t *z = (uint32_t *)(void *)w->sreg[SREG_TID_Z];
    for (unsigned l = 0; l < LANES; l++) {
        unsigned t = (unsigned)w->number * LANES + l;
        x[l] = t % r->block[0];
        y[l] = t / r->block[0] % r->block[1];
        z[l] = t / r->block[0] / r->block[1];
        lane = (uint32_t *)(void *)w->sreg[SREG_LANEID];
        lane[l] = l;
        ((uint32_t *)(void *)w->sreg[SREG_EQ])[l] = 1u << l;
        ((uint32_t *)(void *)w->sreg[SREG_LT])[l] = (1u << l) - 1;
        ((uint32_t *)(void *)w->sreg[SREG_LE])[l] = (1u << l) - 1 + (1u << l);
        ((uint32_t *)(void *)w->sreg[SREG_GT])[l] = ~((1u << l) - 1 + (1u << l));
        ((uint32_t *)(void *)w->sreg[SREG_GE])[l] = ~((1u << l) - 1);
    }
    for (int k = 0; k < 3; k++) {
        set_sreg(w, SREG_NTID_X + k, r->block[k]);
        set_sreg(w, SREG_CTAID_X + k, r->cta[k]);
        set_sreg(w, SREG_NCTAID_X + k, r->grid[k]);
    }
    set_sreg(w, SREG_WARPID, (uint32_t)w->number);
    set_sreg(w, SREG_NWARPID, (uint32_t)r->nwarps);
    set_sreg(w, SREG_DYNAMIC, dynamic);
    set_sreg(w, SREG_TOTAL, (uint32_t)r->shared->bytes);
    memset(w->regs, 0xff, r->k->reg_bytes); /* poison: a NaN, and far outside of any memory */
    memset(w->defined, 0, (size_t)r->k->nregs * sizeof *w->defined);
    memset(w->local.init, 0, w->local.bytes / 8 + 1);
    w->live = w->born;
    w->groups[0] = (PtxGroup){.pc = 0, .mask = w->born, .state = G_RUN};
    w->ngroups = 1;
    w->ncopies = 0;
    w->bar = -1;
    memset(w->committed, 0, sizeof w->committed);
    memset(w->epoch, 0, sizeof w->epoch);
}

/* Every warp of the CTA waits or has ended: the barrier opens, or cannot. */
static bool open_barrier(PtxRun *r) {
    PtxWarp *first = NULL;
    for (int n = 0; n < r->nwarps && !first; n++) {
        first = r->warps[n].bar >= 0 ? &r->warps[n] : NULL;
    }
    const PtxInstr *i = &r->k->code[first->groups[0].pc];
    for (int n = 0; n < r->nwarps; n++) {
        PtxWarp *w = &r->warps[n];
        if (w->live != w->born) {
            int lane = __builtin_ctz(w->born & ~w->live);
            return ptx_run_fail(first, i, -1,
                                "the barrier waits for thread %d of the CTA, which has exited",
                                n * LANES + lane);
        }
        if (w->bar != first->bar) {
            return ptx_run_fail(first, i, -1,
                                "waits at barrier %d, warp %d at barrier %d (line %d)", first->bar,
                                n, w->bar, r->k->code[w->groups[0].pc].line);
        }
    }
    r->cta_epoch = ++r->d->now;
    r->barriers++;
    for (int n = 0; n < r->nwarps; n++) {
        PtxWarp *w = &r->warps[n];
        w->bar = -1;
        w->groups[0].pc++;
        w->groups[0].state = G_RUN;
    }
    return true;
}

/* One turn of every warp that can run. *left: warps that have not ended. False: failed. */
static bool turn(PtxRun *r, int *left, int *running) {
    *left = *running = 0;
    unsigned start = r->random ? (unsigned)(ptx_random(&r->random) % (unsigned)r->nwarps) : 0;
    for (int k = 0; k < r->nwarps; k++) {
        PtxWarp *w = &r->warps[((unsigned)k + start) % (unsigned)r->nwarps];
        int slice = r->random ? 1 + (int)(ptx_random(&r->random) % 200) : 1 << 14;
        if (w->ngroups && w->bar < 0 && !ptx_warp_run(w, slice)) {
            return false;
        }
        *left += w->ngroups > 0;
        *running += w->ngroups > 0 && w->bar < 0;
    }
    return true;
}

static bool run_cta(PtxRun *r, unsigned n, unsigned dynamic) {
    unsigned id = r->cta_order[n];
    r->cta[0] = id % r->grid[0];
    r->cta[1] = id / r->grid[0] % r->grid[1];
    r->cta[2] = id / r->grid[0] / r->grid[1];
    r->cta_start = r->cta_epoch = r->cta_stamps[n] = ++r->d->now;
    memset(r->shared->init, 0, r->shared->bytes / 8 + 1);
    for (int w = 0; w < r->nwarps; w++) {
        start_warp(r, &r->warps[w], dynamic);
    }
    int left, running;
    do {
        if (!turn(r, &left, &running)) {
            return false;
        }
        if (left && !running && !open_barrier(r)) {
            return false;
        }
    } while (left);
    if (r->d->now > 0xf0000000u) {
        ptx_fail(r->d, "the race check has run out of stamps: use a new device");
        return false;
    }
    return true;
}

static void count(PtxRun *r) {
    PtxCounts *c = &r->d->counts;
    *c = (PtxCounts){.barriers = r->barriers};
    for (int n = 0; n < r->k->ncode; n++) {
        const PtxInstr *i = &r->k->code[n];
        uint64_t x = r->executed[n];
        c->instructions += x;
        if (i->c.op == OP_MMA) {
            c->mma_flops += x / LANES * i->flops;
        } else if (i->c.op == OP_FMA) {
            c->fma_flops += x * i->flops;
        } else {
            c->other_flops += x * i->flops;
        }
        bool rmw = i->c.op == OP_ATOM || i->c.op == OP_RED, shared = i->c.space == W_SHARED;
        bool global = i->c.space == W_GLOBAL ||
                      (!i->c.space && (rmw || i->c.op == OP_LD || i->c.op == OP_ST));
        if (i->c.op == OP_CPASYNC) {
            c->global_read += x * i->size;
            c->shared_written += x * i->size;
            continue;
        }
        if (i->c.op == OP_LD || rmw || i->c.op == OP_LDMATRIX) {
            /* ldmatrix: as many rows of 16 bytes as 8 lanes of each matrix name */
            uint64_t bytes = i->c.op == OP_LDMATRIX ? x / LANES * i->ndst * 128u : x * i->size;
            c->global_read += global ? bytes : 0;
            c->shared_read += shared ? bytes : 0;
        }
        if (i->c.op == OP_ST || rmw) {
            c->global_written += global ? x * i->size : 0;
            c->shared_written += shared ? x * i->size : 0;
        }
    }
}

bool ptx_launch(PtxDevice *d, PtxKernel *k, const unsigned grid[3], const unsigned block[3],
                unsigned shared_dynamic, const void *params, size_t params_bytes) {
    PtxRun r = {.d = d, .k = k, .params = params, .params_bytes = params_bytes};
    memcpy(r.grid, grid, sizeof r.grid);
    memcpy(r.block, block, sizeof r.block);
    if (!check_launch(&r, shared_dynamic)) {
        return false;
    }
    prepare(&r, shared_dynamic);
    bool ok = true;
    for (unsigned n = 0; ok && n < r.ncta; n++) {
        ok = run_cta(&r, n, shared_dynamic);
    }
    count(&r);
    finish(&r);
    return ok;
}
