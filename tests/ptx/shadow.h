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

typedef struct PtxOrder {       /* what one lane's accesses to an allocation are compared with */
    uint32_t now, start, epoch; /* stamps before start are of no concern; those of this CTA before
                                   epoch are ordered by its last barrier */
    uint32_t before;            /* any stamp below it is in order */
    const uint32_t *lanes;      /* the warp's: stamps before its own are in order for a lane */
} PtxOrder;

static inline PtxOrder ptx_order(const PtxWarp *w, bool shared) {
    const PtxRun *r = w->run;
    PtxOrder o = {r->d->now, shared ? r->cta_start : r->launch_start, r->cta_epoch, 0, w->epoch};
    o.before = shared ? r->cta_epoch : r->launch_start;
    return o;
}

/* A plain read of a cell by a thread. False: ask ptx_shadow, nothing was changed. */
static inline bool ptx_quick_read(const PtxOrder *o, PtxCell *c, uint16_t tid) {
    bool mine = c->writer == tid && c->write >= o->epoch;
    if ((c->write >= o->before && !mine) || c->writer & (SPLIT | W_COPY)) {
        return false;
    }
    if (c->read < o->start) {
        c->reader = tid;
    } else if (c->read < o->epoch || c->reader & (R_CTAS | R_CONST | R_STRONG)) {
        return false;
    } else if (c->reader != tid) {
        uint16_t other = c->reader & CELL_TID, flags = c->reader & R_WARPS;
        if (other / LANES != tid / LANES)
            flags |= R_WARPS;
        else if (c->read >= o->lanes[tid % LANES])
            flags |= R_LANES;
        c->reader = tid | flags;
    }
    c->read = o->now;
    return true;
}

/* A plain write. */
static inline bool ptx_quick_write(const PtxOrder *o, PtxCell *c, uint16_t tid) {
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

#endif
