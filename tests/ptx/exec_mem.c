/* exec_mem.c: loads, stores, atomics and cp.async. Every access of every lane is checked for
 * bounds, alignment, life of the allocation, initialisation and races. */
#include "memory.h"
#include "shadow.h"

#include <string.h>
#include <sys/mman.h>

static void lane_addresses(const PtxWarp *w, const PtxOperand *o, uint64_t at[LANES]) {
    if (o->reg < 0) {
        for (int l = 0; l < LANES; l++) {
            at[l] = (uint64_t)o->imm;
        }
    } else if (o->is64) {
        const uint64_t *r = (const void *)(w->base[o->base] + o->at);
        for (int l = 0; l < LANES; l++) {
            at[l] = r[l] + (uint64_t)o->imm;
        }
    } else {
        const uint32_t *r = (const void *)(w->base[o->base] + o->at);
        for (int l = 0; l < LANES; l++) {
            at[l] = (uint32_t)(r[l] + (uint32_t)o->imm);
        }
    }
}

/* The space and the address in it of a generic address. */
static int generic_space(uint64_t *at) {
    static const struct {
        uint64_t base;
        int space;
    } windows[] = {
        {PTX_SHARED_WINDOW, W_SHARED}, {PTX_LOCAL_WINDOW, W_LOCAL}, {PTX_PARAM_WINDOW, W_PARAM}};
    for (int k = 0; k < 3; k++) {
        if (*at - windows[k].base < PTX_WINDOW) {
            *at -= windows[k].base;
            return windows[k].space;
        }
    }
    return W_GLOBAL;
}

static bool need_cells(PtxWarp *w, const PtxInstr *i, PtxAlloc *a) {
    if (a->cells || !w->run->races) {
        return true;
    }
    size_t bytes = (((a->bytes / 4 + 1) * sizeof(PtxCell)) + 4095) & ~4095ull;
    a->cells = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (a->cells == MAP_FAILED) {
        a->cells = NULL;
        return ptx_run_fail(w, i, -1, "the host has no memory for the race check");
    }
    return true;
}

static bool global_fault(PtxWarp *w, const PtxInstr *i, int lane, uint64_t at, unsigned bytes) {
    PtxDevice *d = w->run->d;
    PtxAlloc *a = ptx_find(d, at);
    unsigned long long x = at;
    if (a && !a->host && at - a->address < a->bytes) {
        return ptx_run_fail(w, i, lane, "address 0x%llx is in freed memory (0x%llx, %llu bytes)", x,
                            (unsigned long long)a->address, (unsigned long long)a->bytes);
    }
    if (a && at - a->address < a->bytes) {
        return ptx_run_fail(w, i, lane,
                            "address 0x%llx: %u bytes reach %llu beyond the end of allocation "
                            "0x%llx of %llu bytes",
                            x, bytes, (unsigned long long)(at + bytes - a->address - a->bytes),
                            (unsigned long long)a->address, (unsigned long long)a->bytes);
    }
    const PtxAlloc *next = a ? a + 1 : d->allocs;
    if (next < d->allocs + d->nallocs && next->address - at <= 4096) {
        return ptx_run_fail(w, i, lane,
                            "address 0x%llx is %llu bytes before allocation 0x%llx of %llu bytes",
                            x, (unsigned long long)(next->address - at),
                            (unsigned long long)next->address, (unsigned long long)next->bytes);
    }
    if (a) {
        return ptx_run_fail(w, i, lane,
                            "address 0x%llx is %llu bytes behind allocation 0x%llx of %llu bytes",
                            x, (unsigned long long)(at - a->address - a->bytes),
                            (unsigned long long)a->address, (unsigned long long)a->bytes);
    }
    return ptx_run_fail(w, i, lane, "address 0x%llx is in no allocation", x);
}

/* The memory an access goes to, and where in it. NULL: refused, and reported. */
static PtxAlloc *resolve(PtxWarp *w, const PtxInstr *i, int lane, int space, uint64_t at,
                         unsigned bytes, unsigned align, uint64_t *offset) {
    PtxRun *r = w->run;
    PtxAlloc *a;
    if (!space) {
        space = generic_space(&at);
    }
    if (at & (align - 1)) {
        ptx_run_fail(w, i, lane, "address 0x%llx is not a multiple of %u", (unsigned long long)at,
                     align);
        return NULL;
    }
    if (space == W_SHARED) {
        a = r->shared;
        *offset = at - PTX_SHARED_BASE;
        if (at < PTX_SHARED_BASE || *offset + bytes > a->bytes) {
            ptx_run_fail(w, i, lane,
                         "shared address 0x%llx (offset %lld) is outside the CTA's %llu bytes",
                         (unsigned long long)at, (long long)(at - PTX_SHARED_BASE),
                         (unsigned long long)a->bytes);
            return NULL;
        }
        return need_cells(w, i, a) ? a : NULL;
    }
    if (space == W_LOCAL) {
        uint64_t size = (uint64_t)r->k->info.local_bytes;
        *offset = at - PTX_LOCAL_BASE;
        if (at < PTX_LOCAL_BASE || *offset + bytes > size) {
            ptx_run_fail(w, i, lane, "local address 0x%llx is outside the thread's %llu bytes",
                         (unsigned long long)at, (unsigned long long)size);
            return NULL;
        }
        *offset += size * (uint64_t)lane;
        return &w->local;
    }
    a = ptx_find(r->d, at);
    if (!a || !a->host || at - a->address + bytes > a->bytes) {
        global_fault(w, i, lane, at, bytes);
        return NULL;
    }
    if ((space == W_CONST) != a->constant) {
        ptx_run_fail(w, i, lane, "address 0x%llx is %sin constant memory", (unsigned long long)at,
                     a->constant ? "" : "not ");
        return NULL;
    }
    *offset = at - a->address;
    return need_cells(w, i, a) ? a : NULL;
}

static bool checked_read(PtxWarp *w, const PtxInstr *i, int lane, PtxAlloc *a, uint64_t offset,
                         unsigned bytes) {
    if (!w->run->init || ptx_init_all(a->init, offset, bytes)) {
        return true;
    }
    uint64_t k = offset;
    while (a->init[k / 8] >> (k % 8) & 1) {
        k++;
    }
    return ptx_run_fail(w, i, lane, "reads byte 0x%llx, which nobody wrote%s",
                        (unsigned long long)(a->address + k),
                        a == w->run->shared ? " (shared)"
                        : a == &w->local    ? " (local)"
                                            : "");
}

/* Bytes of memory; what is uninitialised reads as 0xff. */
static void fetch(const PtxRun *r, const PtxAlloc *a, uint64_t offset, unsigned bytes, void *to) {
    if (bytes == 16) {
        memcpy(to, a->host + offset, 16);
    } else if (bytes & (bytes - 1)) {
        memcpy(to, a->host + offset, bytes); /* the part of a row that cp.async copies */
    } else {
        ptx_copy_word(to, a->host + offset, bytes);
    }
    if (!r->init && !ptx_init_all(a->init, offset, bytes)) {
        for (unsigned k = 0; k < bytes; k++) {
            if (!(a->init[(offset + k) / 8] >> ((offset + k) % 8) & 1)) {
                ((uint8_t *)to)[k] = 0xff;
            }
        }
    }
}

static uint64_t extend(uint64_t v, int type, unsigned bits) {
    if (ptx_type_signed(type)) {
        int n = ptx_type_bits(type);
        if (n < 64 && v >> (n - 1) & 1) {
            v |= ~0ull << n;
        }
        if (bits < 64) {
            v &= bits == 16 ? 0xffff : 0xffffffff;
        }
    }
    return v;
}

/* Lane l's loaded bytes into the destination registers. */
static void scatter(PtxWarp *w, const PtxInstr *i, int n, int l, const uint8_t *raw) {
    unsigned size = i->size / (unsigned)n;
    for (int e = 0; e < n; e++) {
        uint64_t v = 0;
        const PtxOperand *o = &i->o[e];
        ptx_copy_word(&v, raw + size * (unsigned)e, size);
        if (size < 4) {
            v = extend(v, i->c.type[0], o->bits);
        } else if (size == 4 && o->bits == 64) {
            v = extend(v, i->c.type[0], 64);
        }
        if (o->bits == 64) {
            ((uint64_t *)ptx_dst(w, i, e))[l] = v;
        } else {
            ((uint32_t *)ptx_dst(w, i, e))[l] = (uint32_t)v;
        }
    }
}

static bool load_param(PtxWarp *w, const PtxInstr *i, uint32_t mask, int n,
                       const uint64_t at[LANES]) {
    PtxRun *r = w->run;
    for (uint32_t k = mask; k; k &= k - 1) {
        int l = __builtin_ctz(k);
        if (at[l] % (i->size / (unsigned)n) ||
            at[l] + i->size > (uint64_t)r->k->info.params_bytes) {
            return ptx_run_fail(w, i, l,
                                "parameter offset %lld is outside the %d bytes or misaligned",
                                (long long)at[l], r->k->info.params_bytes);
        }
        scatter(w, i, n, l, r->params + at[l]);
    }
    return true;
}

/* Loads of words from one allocation: the common case, without the detours. */
static inline __attribute__((always_inline)) bool load_words_of(PtxWarp *w, const PtxInstr *i,
                                                                uint32_t mask, PtxAlloc *a,
                                                                const uint64_t at[LANES],
                                                                PtxAccess kind, unsigned n) {
    PtxRun *r = w->run;
    uint32_t *D[4];
    PtxOrder o = ptx_order(r, a == r->shared);
    for (unsigned e = 0; e < n; e++) {
        D[e] = ptx_dst(w, i, (int)e);
    }
    for (uint32_t k = mask; k; k &= k - 1) {
        int l = __builtin_ctz(k);
        uint64_t offset = at[l] - a->address;
        uint32_t raw[4];
        bool written = ptx_words_init(a, offset, n);
        if (r->init && !written) {
            return checked_read(w, i, l, a, offset, 4 * n);
        }
        if (r->races && !ptx_touch_words(w, i, &o, l, a, offset, n, kind)) {
            return false;
        }
        if (written) {
            memcpy(raw, a->host + offset, 4 * n);
        } else {
            fetch(r, a, offset, 4 * n, raw);
        }
        for (unsigned e = 0; e < n; e++) {
            D[e][l] = raw[e];
        }
    }
    return true;
}

/* … compiled for each count and the usual kinds. */
static bool load_words(PtxWarp *w, const PtxInstr *i, uint32_t mask, PtxAlloc *a,
                       const uint64_t at[LANES], PtxAccess kind) {
    if (i->ndst == 1) {
        return kind == A_READ      ? load_words_of(w, i, mask, a, at, A_READ, 1)
               : kind == A_READ_NC ? load_words_of(w, i, mask, a, at, A_READ_NC, 1)
                                   : load_words_of(w, i, mask, a, at, A_STRONG_READ, 1);
    }
    if (i->ndst == 4) {
        return kind == A_READ      ? load_words_of(w, i, mask, a, at, A_READ, 4)
               : kind == A_READ_NC ? load_words_of(w, i, mask, a, at, A_READ_NC, 4)
                                   : load_words_of(w, i, mask, a, at, A_STRONG_READ, 4);
    }
    return load_words_of(w, i, mask, a, at, kind, 2);
}

/* Stores, likewise. */
static inline __attribute__((always_inline)) bool store_words_of(PtxWarp *w, const PtxInstr *i,
                                                                 uint32_t mask, PtxAlloc *a,
                                                                 const uint64_t at[LANES],
                                                                 PtxAccess kind, unsigned n) {
    PtxRun *r = w->run;
    const uint32_t *S[4];
    PtxOrder o = ptx_order(r, a == r->shared);
    for (unsigned e = 0; e < n; e++) {
        S[e] = ptx_src(w, i, (int)e + 1);
    }
    for (uint32_t k = mask; k; k &= k - 1) {
        int l = __builtin_ctz(k);
        uint64_t offset = at[l] - a->address;
        if (r->races && !ptx_touch_words(w, i, &o, l, a, offset, n, kind)) {
            return false;
        }
        for (unsigned e = 0; e < n; e++) {
            memcpy(a->host + offset + 4 * e, &S[e][l], 4);
        }
        ptx_words_set_init(a, offset, n);
    }
    return true;
}

static bool store_words(PtxWarp *w, const PtxInstr *i, uint32_t mask, PtxAlloc *a,
                        const uint64_t at[LANES], PtxAccess kind) {
    unsigned n = i->nops - 1u;
    if (kind != A_WRITE) {
        return store_words_of(w, i, mask, a, at, kind, n);
    }
    return n == 1   ? store_words_of(w, i, mask, a, at, A_WRITE, 1)
           : n == 2 ? store_words_of(w, i, mask, a, at, A_WRITE, 2)
                    : store_words_of(w, i, mask, a, at, A_WRITE, 4);
}

/* Whether all values are words in 32-bit registers. */
static bool all_words(const PtxInstr *i, int first, int n) {
    bool ok = i->size == 4 * n;
    for (int e = first; e < first + n; e++) {
        ok &= i->o[e].bits == 32 && i->o[e].kind != O_SINK;
    }
    return ok;
}

/* The one allocation that all lanes' accesses are inside of; NULL: look at each. */
static PtxAlloc *common(PtxWarp *w, const PtxInstr *i, uint32_t mask, int space,
                        const uint64_t at[LANES], unsigned align) {
    uint64_t low = ~0ull, high = 0, all = 0;
    PtxRun *r = w->run;
    for (uint32_t k = mask; k; k &= k - 1) {
        uint64_t x = at[__builtin_ctz(k)];
        low = x < low ? x : low;
        high = x > high ? x : high;
        all |= x;
    }
    if (all & (align - 1)) {
        return NULL;
    }
    PtxAlloc *a = space == W_SHARED ? r->shared : space == W_GLOBAL ? ptx_find(r->d, low) : NULL;
    if (!a || !a->host || low < a->address || high + i->size > a->address + a->bytes ||
        a->constant || !need_cells(w, i, a)) {
        return NULL;
    }
    return a;
}

bool ptx_exec_ld(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    uint64_t at[LANES];
    PtxRun *r = w->run;
    int n = i->ndst, space = i->c.space;
    unsigned align = i->size;
    lane_addresses(w, &i->o[n], at);
    if (space == W_PARAM) {
        return load_param(w, i, mask, n, at);
    }
    PtxAccess kind = i->c.flags & F_NC ? A_READ_NC : i->c.strong ? A_STRONG_READ : A_READ;
    PtxAlloc *one = common(w, i, mask, space, at, align);
    if (one && all_words(i, 0, n)) {
        return load_words(w, i, mask, one, at, kind);
    }
    for (uint32_t k = mask; k; k &= k - 1) {
        int l = __builtin_ctz(k);
        uint64_t offset = one ? at[l] - one->address : 0;
        uint8_t raw[16];
        PtxAlloc *a = one ? one : resolve(w, i, l, space, at[l], i->size, align, &offset);
        if (!a || !checked_read(w, i, l, a, offset, i->size)) {
            return false;
        }
        if (r->races && a != &w->local && !a->constant &&
            !ptx_shadow(w, i, l, a, offset, i->size, kind)) {
            return false;
        }
        fetch(r, a, offset, i->size, raw);
        scatter(w, i, n, l, raw);
    }
    return true;
}

bool ptx_exec_st(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    uint64_t at[LANES];
    PtxRun *r = w->run;
    int n = i->nops - 1, space = i->c.space;
    unsigned size = i->size / (unsigned)n;
    lane_addresses(w, &i->o[0], at);
    PtxAccess kind = i->c.strong ? A_STRONG_WRITE : A_WRITE;
    PtxAlloc *one = common(w, i, mask, space, at, i->size);
    if (one && all_words(i, 1, n)) {
        return store_words(w, i, mask, one, at, kind);
    }
    for (uint32_t k = mask; k; k &= k - 1) {
        int l = __builtin_ctz(k);
        uint64_t offset = one ? at[l] - one->address : 0;
        PtxAlloc *a = one ? one : resolve(w, i, l, space, at[l], i->size, i->size, &offset);
        if (!a) {
            return false;
        }
        if (r->races && a != &w->local && !ptx_shadow(w, i, l, a, offset, i->size, kind)) {
            return false;
        }
        for (int e = 0; e < n; e++) {
            const uint8_t *s = ptx_src(w, i, 1 + e);
            unsigned lane = i->o[1 + e].bits == 64 ? 8 : 4;
            ptx_copy_word(a->host + offset + size * (unsigned)e, s + lane * (unsigned)l, size);
        }
        ptx_init_set(a->init, offset, i->size);
    }
    return true;
}

/* ---- atomics ---- */
static uint64_t float_add(uint64_t a, uint64_t b, int type, bool flush) {
    if (type == T_F64) {
        double x, y;
        memcpy(&x, &a, 8);
        memcpy(&y, &b, 8);
        x += y;
        memcpy(&a, &x, 8);
        return a;
    }
    float x, y;
    uint32_t u = (uint32_t)a, v = (uint32_t)b;
    memcpy(&x, &u, 4);
    memcpy(&y, &v, 4);
    if (flush) { /* PTX manual, atom: f32 add on global memory flushes subnormals */
        x = x > -0x1p-126f && x < 0x1p-126f ? 0 : x;
        y = y > -0x1p-126f && y < 0x1p-126f ? 0 : y;
    }
    x += y;
    if (flush) {
        x = x > -0x1p-126f && x < 0x1p-126f ? 0 : x;
    }
    memcpy(&u, &x, 4);
    return u;
}

static int64_t signed_value(uint64_t v, int type) {
    return type == T_S32 ? (int32_t)v : (int64_t)v;
}

/* What an atomic leaves in memory. */
static uint64_t combine(const PtxInstr *i, uint64_t old, uint64_t b, uint64_t c, bool flush) {
    int type = i->c.type[0];
    switch (i->c.op2) {
    case W_W_ADD:
        return ptx_type_float(type) ? float_add(old, b, type, flush) : old + b;
    case W_W_AND:
        return old & b;
    case W_W_OR:
        return old | b;
    case W_W_XOR:
        return old ^ b;
    case W_W_EXCH:
        return b;
    case W_W_CAS:
        return old == b ? c : old;
    case W_W_INC:
        return old >= b ? 0 : old + 1;
    case W_W_DEC:
        return old == 0 || old > b ? b : old - 1;
    case W_W_MIN:
        return ptx_type_signed(type) ? (signed_value(old, type) < signed_value(b, type) ? old : b)
                                     : (old < b ? old : b);
    default:
        return ptx_type_signed(type) ? (signed_value(old, type) > signed_value(b, type) ? old : b)
                                     : (old > b ? old : b);
    }
}

static uint64_t lane_value(const PtxWarp *w, const PtxInstr *i, int n, int l, unsigned size) {
    uint64_t v = 0;
    const uint8_t *s = ptx_src(w, i, n);
    ptx_copy_word(&v, s + (size == 8 ? 8 : 4) * (unsigned)l, size);
    return v;
}

static bool atomic(PtxWarp *w, const PtxInstr *i, uint32_t mask, int address, bool result) {
    uint64_t at[LANES];
    PtxRun *r = w->run;
    lane_addresses(w, &i->o[address], at);
    /* Which lane comes first is open: a seed may turn them around. */
    bool backwards = r->random && (ptx_random(&r->random) & 1);
    for (int n = 0; n < LANES; n++) {
        int l = backwards ? LANES - 1 - n : n;
        if (!(mask >> l & 1)) {
            continue;
        }
        uint64_t offset, old = 0;
        PtxAlloc *a = resolve(w, i, l, i->c.space, at[l], i->size, i->size, &offset);
        if (!a || !checked_read(w, i, l, a, offset, i->size) ||
            (r->races && a != &w->local && !ptx_shadow(w, i, l, a, offset, i->size, A_ATOMIC))) {
            return false;
        }
        fetch(r, a, offset, i->size, &old);
        uint64_t b = lane_value(w, i, address + 1, l, i->size), c = 0;
        if (i->c.op2 == W_W_CAS) {
            c = lane_value(w, i, address + 2, l, i->size);
        }
        uint64_t v = combine(i, old, b, c, a != r->shared);
        ptx_copy_word(a->host + offset, &v, i->size);
        if (result && i->size == 8) {
            ((uint64_t *)ptx_dst(w, i, 0))[l] = old;
        } else if (result) {
            ((uint32_t *)ptx_dst(w, i, 0))[l] = (uint32_t)old;
        }
    }
    return true;
}

bool ptx_exec_atom(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    return atomic(w, i, mask, 1, i->o[0].kind != O_SINK);
}

bool ptx_exec_red(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    return atomic(w, i, mask, 0, false);
}

void ptx_lane_addresses(const PtxWarp *w, const PtxOperand *o, uint64_t at[LANES]) {
    lane_addresses(w, o, at);
}

PtxAlloc *ptx_resolve(PtxWarp *w, const PtxInstr *i, int lane, int space, uint64_t at,
                      unsigned bytes, uint64_t *offset) {
    return resolve(w, i, lane, space, at, bytes, bytes, offset);
}

PtxAlloc *ptx_resolve_unaligned(PtxWarp *w, const PtxInstr *i, int lane, int space, uint64_t at,
                                unsigned bytes, uint64_t *offset) {
    return resolve(w, i, lane, space, at, bytes, 1, offset);
}

bool ptx_checked_read(PtxWarp *w, const PtxInstr *i, int lane, PtxAlloc *a, uint64_t offset,
                      unsigned bytes, void *to) {
    bool words = bytes == 16 && offset % 16 == 0;
    if (words && ptx_words_init(a, offset, 4)) {
        PtxOrder o = ptx_order(w->run, a == w->run->shared);
        if (w->run->races && !ptx_touch_words(w, i, &o, lane, a, offset, 4, A_READ)) {
            return false;
        }
        memcpy(to, a->host + offset, 16);
        return true;
    }
    if (!checked_read(w, i, lane, a, offset, bytes) ||
        (w->run->races && !ptx_shadow(w, i, lane, a, offset, bytes, A_READ))) {
        return false;
    }
    fetch(w->run, a, offset, bytes, to);
    return true;
}
