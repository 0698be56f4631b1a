/* exec_async.c: cp.async. A copy lands somewhere between its issue and its lane's wait: with
 * options.async_late at the wait, else at the issue; both must give the same results. Until the
 * wait nobody may touch its destination (shadow.c). */
#include "memory.h"
#include "shadow.h"

#include <string.h>

static void store(PtxWarp *w, const PtxCopy *c, const uint8_t *data) {
    PtxAlloc *a = w->run->shared;
    if (c->bytes == 16) {
        memcpy(a->host + c->to, data, 16);
    } else {
        ptx_copy_word(a->host + c->to, data, c->bytes);
    }
    ptx_words_set_init(a, c->to, c->bytes / 4u);
}

/* One lane's copy: the source is read and checked now, whenever it lands. */
static bool begin(PtxWarp *w, const PtxInstr *i, int l, uint64_t to, uint64_t from, uint32_t size) {
    PtxRun *r = w->run;
    uint64_t dst, src;
    if (size > i->size) {
        return ptx_run_fail(w, i, l, "the source size %u is more than the %d bytes copied", size,
                            i->size);
    }
    PtxAlloc *a = ptx_resolve(w, i, l, W_SHARED, to, i->size, &dst);
    if (!a) {
        return false;
    }
    w->copies = ptx_grow(w->copies, &w->copies_cap, w->ncopies + 1, sizeof *w->copies);
    PtxCopy *c = &w->copies[w->ncopies];
    c->to = dst;
    c->bytes = i->size;
    c->lane = (uint8_t)l;
    c->group = -1;
    c->line = i->line;
    memset(c->data, 0, sizeof c->data);
    if (from & (i->size - 1u)) {
        return ptx_run_fail(w, i, l, "source address 0x%llx is not a multiple of %d",
                            (unsigned long long)from, i->size);
    }
    if (size) {
        /* Only `size` bytes are read; the rest of the destination becomes 0. */
        PtxAlloc *s = ptx_resolve_unaligned(w, i, l, W_GLOBAL, from, size, &src);
        if (!s || !ptx_checked_read(w, i, l, s, src, size, c->data)) {
            return false;
        }
    }
    PtxOrder o = ptx_order(r, true);
    if (r->races && !ptx_touch_words(w, i, &o, l, a, dst, i->size / 4u, A_WRITE)) {
        return false;
    }
    if (r->races) {
        ptx_shadow_async(w, a, dst, i->size, l, true);
    }
    if (r->d->o.async_late) {
        ptx_init_clear(a->init, dst, i->size);
    } else {
        store(w, c, c->data);
    }
    w->ncopies++;
    return true;
}

bool ptx_exec_cpasync(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    uint64_t to[LANES], from[LANES];
    ptx_lane_addresses(w, &i->o[0], to);
    ptx_lane_addresses(w, &i->o[1], from);
    const uint32_t *size = i->o[3].kind == O_VALUE ? ptx_src(w, i, 3) : NULL;
    for (uint32_t k = mask; k; k &= k - 1) {
        int l = __builtin_ctz(k);
        if (!begin(w, i, l, to[l], from[l], size ? size[l] : i->size)) {
            return false;
        }
    }
    return true;
}

bool ptx_exec_cpcommit(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    (void)i;
    for (int n = 0; n < w->ncopies; n++) {
        PtxCopy *c = &w->copies[n];
        if (c->group < 0 && (mask >> c->lane & 1)) {
            c->group = w->committed[c->lane];
        }
    }
    for (uint32_t k = mask; k; k &= k - 1) {
        w->committed[__builtin_ctz(k)]++;
    }
    return true;
}

/* keep < 0: also what is not committed. */
void ptx_copies_land(PtxWarp *w, uint32_t lanes, int keep) {
    int left = 0;
    for (int n = 0; n < w->ncopies; n++) {
        PtxCopy *c = &w->copies[n];
        bool done = (lanes >> c->lane & 1) &&
                    (keep < 0 || (c->group >= 0 && c->group < w->committed[c->lane] - keep));
        if (!done) {
            w->copies[left++] = *c;
            continue;
        }
        if (w->run->d->o.async_late) {
            store(w, c, c->data);
        }
        if (w->run->races) {
            ptx_shadow_async(w, w->run->shared, c->to, c->bytes, c->lane, false);
        }
    }
    w->ncopies = left;
}

bool ptx_exec_cpwait(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    ptx_copies_land(w, mask, (int)i->o[0].imm);
    return true;
}

bool ptx_exec_cpwaitall(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    (void)i;
    ptx_copies_land(w, mask, -1);
    return true;
}
