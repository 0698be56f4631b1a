/* shadow.c: which bytes were written, and which accesses race.
 *
 * Races. Of every 4 bytes of memory that threads share the last write and read are known, with a
 * stamp: a count that rises at every launch, CTA and barrier. CTAs run one after the other, so a
 * stamp tells launch, CTA and interval between barriers at once. Two accesses of different threads,
 * at least one a write, are ordered only if
 *   - they are of different launches, or
 *   - of one CTA, with a CTA barrier between (stamp < cta_epoch), or
 *   - of one warp, with a bar.warp.sync of the later lane between (stamp < its epoch).
 * Atomic and .volatile/.relaxed/… accesses do not race with each other. No order is drawn from them
 * or from fences: kernels whose CTAs hand over data through flags are reported.
 * Cells drop to single bytes at the first access that is not of whole words. A word that was read
 * through ld.nc must not be written in the same launch. */
#include "shadow.h"

#include <stdlib.h>
#include <string.h>

bool ptx_init_all(const uint8_t *bits, uint64_t offset, uint64_t bytes) {
    while (bytes && offset % 8) {
        if (!(bits[offset / 8] >> (offset % 8) & 1)) {
            return false;
        }
        offset++;
        bytes--;
    }
    for (; bytes >= 8; bytes -= 8, offset += 8) {
        if (bits[offset / 8] != 0xff) {
            return false;
        }
    }
    uint8_t rest = (uint8_t)((1u << bytes) - 1);
    return (bits[offset / 8] & rest) == rest;
}

static void init_put(uint8_t *bits, uint64_t offset, uint64_t bytes, bool value) {
    while (bytes && (offset % 8 || bytes < 8)) {
        uint8_t bit = (uint8_t)(1u << (offset % 8));
        bits[offset / 8] = value ? bits[offset / 8] | bit : bits[offset / 8] & (uint8_t)~bit;
        offset++;
        bytes--;
    }
    memset(bits + offset / 8, value ? 0xff : 0, bytes / 8);
    if (bytes % 8) {
        init_put(bits, offset + bytes / 8 * 8, bytes % 8, value);
    }
}

void ptx_init_set(uint8_t *bits, uint64_t offset, uint64_t bytes) {
    init_put(bits, offset, bytes, true);
}

void ptx_init_clear(uint8_t *bits, uint64_t offset, uint64_t bytes) {
    init_put(bits, offset, bytes, false);
}

/* One access on its way through the cells it touches. */
typedef struct Access {
    PtxWarp *w;
    const PtxInstr *i;
    int lane;
    uint16_t tid;
    bool shared;
    uint32_t start; /* stamps before it are of no concern: another launch, or for shared memory
                       another CTA */
    PtxAccess kind;
    uint64_t address;
} Access;

static bool race(const Access *x, const char *does, const char *did, int other, bool other_cta,
                 uint32_t stamp) {
    PtxRun *r = x->w->run;
    char who[96];
    if (other_cta) {
        unsigned n = 0;
        while (n + 1 < r->ncta && r->cta_stamps[n + 1] && r->cta_stamps[n + 1] <= stamp) {
            n++;
        }
        snprintf(who, sizeof who, "thread %d of CTA %u", other, r->cta_order[n]);
    } else {
        snprintf(who, sizeof who, "thread %d of the CTA", other);
    }
    return ptx_run_fail(x->w, x->i, x->lane,
                        "race: %s %s address 0x%llx, which %s %s with no barrier between", does,
                        x->shared ? "shared" : "global", (unsigned long long)x->address, who, did);
}

static const char *verb(PtxAccess kind) {
    return kind == A_ATOMIC                            ? "updates"
           : kind == A_WRITE || kind == A_STRONG_WRITE ? "writes"
                                                       : "reads";
}

static bool strong(PtxAccess kind) {
    return kind == A_ATOMIC || kind == A_STRONG_READ || kind == A_STRONG_WRITE;
}

/* Whether the last write of a cell comes before this access. */
static bool after_write(const Access *x, const PtxCell *c) {
    const PtxRun *r = x->w->run;
    uint32_t s = c->write;
    int who = c->writer & CELL_TID;
    if (c->writer & W_COPY && s >= x->start) {
        return ptx_run_fail(x->w, x->i, x->lane,
                            "%s %s address 0x%llx while a cp.async of thread %d still copies to it",
                            verb(x->kind), x->shared ? "shared" : "global",
                            (unsigned long long)x->address, who);
    }
    if (s < x->start || (c->writer & W_ATOM && strong(x->kind))) {
        return true;
    }
    if (x->kind == A_READ_NC) {
        return ptx_run_fail(x->w, x->i, x->lane,
                            "reads 0x%llx through .nc although this launch writes it",
                            (unsigned long long)x->address);
    }
    if (s >= r->cta_start) {
        bool many = c->writer & W_MANY;
        if (s < r->cta_epoch || (who == x->tid && !many) ||
            (who / LANES == x->tid / LANES && !many && s < x->w->epoch[x->lane])) {
            return true;
        }
    }
    return race(x, verb(x->kind), c->writer & W_ATOM ? "updated atomically" : "wrote", who,
                s < r->cta_start, s);
}

static bool after_reads(const Access *x, const PtxCell *c) {
    const PtxRun *r = x->w->run;
    uint32_t s = c->read;
    int who = c->reader & CELL_TID;
    if (s < x->start) {
        return true;
    }
    if (c->reader & R_CONST) {
        return ptx_run_fail(x->w, x->i, x->lane,
                            "writes 0x%llx although this launch reads it through ld.global.nc",
                            (unsigned long long)x->address);
    }
    if (c->reader & R_STRONG && strong(x->kind)) {
        return true;
    }
    if (s >= r->cta_start && !(c->reader & R_CTAS)) {
        if (s < r->cta_epoch) {
            return true;
        }
        if (!(c->reader & R_WARPS) && who / LANES == x->tid / LANES &&
            (s < x->w->epoch[x->lane] || (who == x->tid && !(c->reader & R_LANES)))) {
            return true;
        }
    }
    if (c->reader & R_CTAS) { /* the last reader alone would say too little */
        return ptx_run_fail(x->w, x->i, x->lane,
                            "race: %s global address 0x%llx, which threads of other CTAs read",
                            verb(x->kind), (unsigned long long)x->address);
    }
    return race(x, verb(x->kind), "read", who, s < r->cta_start, s);
}

static void note_read(const Access *x, PtxCell *c) {
    const PtxRun *r = x->w->run;
    uint16_t flags = 0;
    int who = c->reader & CELL_TID;
    if (c->read >= x->start) {
        flags = c->reader & (R_CTAS | R_CONST | R_STRONG);
        if (c->read < r->cta_start) {
            flags |= R_CTAS;
        } else if (c->read >= r->cta_epoch) {
            flags |= c->reader & R_WARPS;
            if (who / LANES != x->tid / LANES) {
                flags |= R_WARPS;
            } else if (c->read >= x->w->epoch[x->lane]) {
                flags |= (c->reader & R_LANES) | (who != x->tid ? R_LANES : 0);
            }
        }
        flags &= (uint16_t) ~(x->kind == A_READ || x->kind == A_READ_NC ? R_STRONG : 0);
    } else if (x->kind == A_STRONG_READ) {
        flags = R_STRONG;
    }
    c->reader = x->tid | flags | (x->kind == A_READ_NC ? R_CONST : 0);
    c->read = r->d->now;
}

static void note_write(const Access *x, PtxCell *c) {
    uint16_t flags = 0;
    const PtxRun *r = x->w->run;
    if (strong(x->kind)) {
        flags = W_ATOM;
        if (c->write >= r->cta_epoch && c->writer & W_ATOM &&
            ((c->writer & CELL_TID) != x->tid || c->writer & W_MANY)) {
            flags |= W_MANY;
        }
    }
    c->writer = x->tid | flags;
    c->write = r->d->now;
    if (!(c->reader & R_STRONG)) {
        c->read = 0; /* it was checked, and whoever meets this write next is ordered after it */
        c->reader = 0;
    }
}

static bool touch(const Access *x, PtxCell *c) {
    switch (x->kind) {
    case A_READ:
    case A_STRONG_READ:
    case A_READ_NC:
        if (!after_write(x, c)) {
            return false;
        }
        note_read(x, c);
        return true;
    default:
        if (!after_write(x, c) || !after_reads(x, c)) {
            return false;
        }
        note_write(x, c);
        return true;
    }
}

static PtxCell *split(PtxDevice *d, PtxCell *c) {
    if (!(c->writer & SPLIT)) {
        if (d->nbytes == d->bytes_cap) {
            d->bytes_cap = d->bytes_cap ? d->bytes_cap * 2 : 1024;
            d->bytes = realloc(d->bytes, d->bytes_cap * sizeof *d->bytes);
            if (!d->bytes) {
                abort();
            }
        }
        for (int k = 0; k < 4; k++) {
            d->bytes[d->nbytes][k] = *c;
        }
        c->writer = SPLIT;
        c->write = d->nbytes++;
    }
    return d->bytes[c->write];
}

bool ptx_shadow(PtxWarp *w, const PtxInstr *i, int lane, PtxAlloc *a, uint64_t offset,
                unsigned bytes, PtxAccess kind) {
    PtxRun *r = w->run;
    bool shared = a == r->shared;
    Access x = {w,      i,
                lane,   (uint16_t)(w->number * LANES + lane),
                shared, shared ? r->cta_start : r->launch_start,
                kind,   a->address + offset};
    if (offset % 4 == 0 && bytes % 4 == 0) {
        PtxCell *c = a->cells + offset / 4;
        for (unsigned k = 0; k < bytes; k += 4, c++, x.address += 4) {
            if (c->writer & SPLIT) {
                for (int b = 0; b < 4; b++) {
                    if (!touch(&x, &r->d->bytes[c->write][b])) {
                        return false;
                    }
                }
            } else if (!touch(&x, c)) {
                return false;
            }
        }
        return true;
    }
    for (unsigned k = 0; k < bytes; k++, x.address++) {
        PtxCell *c = split(r->d, a->cells + (offset + k) / 4);
        if (!touch(&x, &c[(offset + k) % 4])) {
            return false;
        }
    }
    return true;
}

static void mark(const PtxRun *r, PtxCell *c, uint16_t tid, bool begin) {
    c->write = r->d->now;
    c->writer = tid | (begin ? W_COPY : 0);
    c->read = 0;
    c->reader = 0;
}

void ptx_shadow_async(PtxWarp *w, PtxAlloc *a, uint64_t offset, unsigned bytes, int lane,
                      bool begin) {
    PtxRun *r = w->run;
    uint16_t tid = (uint16_t)(w->number * LANES + lane);
    for (unsigned k = 0; k < bytes; k += 4) { /* 4, 8 or 16, aligned */
        PtxCell *c = a->cells + (offset + k) / 4;
        if (c->writer & SPLIT) {
            for (int b = 0; b < 4; b++) {
                mark(r, &r->d->bytes[c->write][b], tid, begin);
            }
        } else {
            mark(r, c, tid, begin);
        }
    }
}
