/* shadow.h: the bits of a PtxCell, and the accesses that are plainly in order, inline: they are
 * nearly all. Everything else is shadow.c's. */
#ifndef STGCC_TESTS_PTX_SHADOW_H
#define STGCC_TESTS_PTX_SHADOW_H

#include "ptx.h"

enum {
    CELL_TID = 0x3ff,
    W_ATOM = 0x400,    /* writer: atomic or strong */
    W_MANY = 0x800,    /* … by several threads of the interval */
    W_COPY = 0x1000,   /* a cp.async is under way */
    SPLIT = 0x8000,    /* `write` is an index of PtxDevice.bytes */
    R_LANES = 0x400,   /* reader: several lanes of a warp */
    R_WARPS = 0x800,   /* several warps */
    R_CTAS = 0x1000,   /* several CTAs */
    R_CONST = 0x2000,  /* ld.nc */
    R_STRONG = 0x4000, /* only strong reads so far */
};

typedef struct PtxOrder { /* what a warp's accesses to an allocation are compared with */
    uint32_t now, start;  /* stamps before start are of no concern */
    uint32_t cta, epoch;  /* of this CTA; its last barrier */
    uint32_t before;      /* any write below it is in order */
} PtxOrder;

static inline PtxOrder ptx_order(const PtxRun *r, bool shared) {
    PtxOrder o = {r->d->now, shared ? r->cta_start : r->launch_start, r->cta_start, r->cta_epoch,
                  0};
    o.before = shared ? r->cta_epoch : r->launch_start;
    return o;
}

/* A plain read of a cell by a thread whose last bar.warp.sync was `warp`; constant: R_CONST for
 * ld.nc, or 0. False: ask ptx_shadow, nothing was changed. */
static inline __attribute__((always_inline)) bool
ptx_quick_read(const PtxOrder *o, PtxCell *c, uint16_t tid, uint32_t warp, uint16_t constant) {
    bool mine = !constant && c->writer == tid && c->write >= o->epoch;
    if ((c->write >= o->before && !mine) || c->writer & (SPLIT | W_COPY)) {
        return false;
    }
    uint16_t flags = constant, other = c->reader & CELL_TID;
    if (c->read >= o->start) {
        if (c->reader & R_STRONG) {
            return false;
        }
        flags |= c->reader & (R_CTAS | R_CONST);
        if (c->read < o->cta) {
            flags |= R_CTAS;
        } else if (c->read >= o->epoch) {
            flags |= c->reader & R_WARPS;
            if (other / LANES != tid / LANES) {
                flags |= R_WARPS;
            } else if (c->read >= warp) {
                flags |= (c->reader & R_LANES) | (other != tid ? R_LANES : 0);
            }
        }
    }
    c->reader = tid | flags;
    c->read = o->now;
    return true;
}

/* A plain write. */
static inline __attribute__((always_inline)) bool ptx_quick_write(const PtxOrder *o, PtxCell *c,
                                                                  uint16_t tid) {
    bool mine = c->writer == tid && c->write >= o->epoch;
    bool read_by_me = c->reader == tid && c->read >= o->epoch;
    if ((c->write >= o->before && !mine) || c->writer & (SPLIT | W_COPY) ||
        (c->read >= o->before && !read_by_me)) {
        return false;
    }
    c->write = o->now;
    c->writer = tid;
    c->read = 0;
    c->reader = 0;
    return true;
}

/* An access of whole words at a multiple of 4. */
static inline __attribute__((always_inline)) bool ptx_touch_words(PtxWarp *w, const PtxInstr *i,
                                                                  const PtxOrder *o, int lane,
                                                                  PtxAlloc *a, uint64_t offset,
                                                                  unsigned words, PtxAccess kind) {
    uint16_t tid = (uint16_t)(w->number * LANES + lane);
    PtxCell *c = a->cells + offset / 4;
    for (unsigned k = 0; k < words; k++, c++) {
        bool ok = kind == A_WRITE ? ptx_quick_write(o, c, tid)
                  : kind == A_READ || kind == A_READ_NC
                      ? ptx_quick_read(o, c, tid, w->epoch[lane], kind == A_READ_NC ? R_CONST : 0)
                      : false;
        if (!ok && !ptx_shadow(w, i, lane, a, offset + 4 * k, 4, kind)) {
            return false;
        }
    }
    return true;
}

/* Whether 4, 8 or 16 bytes, aligned to that, were written. */
static inline bool ptx_words_init(const PtxAlloc *a, uint64_t offset, unsigned words) {
    const uint8_t *b = a->init + offset / 8;
    return words == 1 ? (*b >> (offset % 8) & 15) == 15
                      : *b == 0xff && (words == 2 || b[1] == 0xff);
}

static inline void ptx_words_set_init(PtxAlloc *a, uint64_t offset, unsigned words) {
    uint8_t *b = a->init + offset / 8;
    if (words == 1) {
        *b |= (uint8_t)(15u << (offset % 8));
    } else {
        b[0] = 0xff;
        b[words / 4] = 0xff;
    }
}

#endif
