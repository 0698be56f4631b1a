/* warp.c: the instruction loop of a warp and its divergence.
 *
 * A warp is a list of groups, each a set of lanes at one instruction. The group furthest behind
 * runs (with a seed: any group, for a few instructions), and groups that meet become one again. A
 * *.sync instruction stops a group until all lanes it names are there; a CTA barrier until all
 * lanes of the warp are, and then the warp waits for the others. So a wrong mask or a barrier in
 * divergent code shows as a warp in which nothing can run. */
#include "ptx.h"

#include <string.h>

uint64_t ptx_random(uint64_t *state) { /* splitmix64 */
    uint64_t z = *state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

bool ptx_run_fail(PtxWarp *w, const PtxInstr *i, int lane, const char *format, ...) {
    PtxRun *r = w->run;
    char what[600], where[120] = "";
    if (r->failed) {
        return false;
    }
    va_list a;
    va_start(a, format);
    vsnprintf(what, sizeof what, format, a);
    va_end(a);
    if (lane >= 0) {
        unsigned t = (unsigned)(w->number * LANES + lane), x = r->block[0], y = r->block[1];
        snprintf(where, sizeof where, " (thread %u,%u,%u of CTA %u,%u,%u)", t % x, t / x % y,
                 t / x / y, r->cta[0], r->cta[1], r->cta[2]);
    } else {
        snprintf(where, sizeof where, " (warp %d of CTA %u,%u,%u)", w->number, r->cta[0], r->cta[1],
                 r->cta[2]);
    }
    ptx_fail(r->d, "kernel %s: line %d: %.*s: %s%s", r->k->name, i->line, (int)i->text_n, i->text,
             what, where);
    r->failed = true;
    return false;
}

/* ---- definedness of registers ---- */
static bool undefined(PtxWarp *w, const PtxInstr *i, const PtxOperand *o, uint32_t lanes) {
    const PtxRegName *n = &w->run->k->reg_names[o->reg];
    char number[16] = "";
    if (n->number >= 0) {
        snprintf(number, sizeof number, "%d", n->number);
    }
    return ptx_run_fail(w, i, __builtin_ctz(lanes), "register %.*s%s is read before it is written",
                        (int)n->n, n->s, number);
}

/* Copies hand on that a value is undefined: LLVM moves undefined values that nobody looks at. */
static bool copies(const PtxInstr *i) {
    return i->c.op == OP_MOV || i->c.op == OP_SELP;
}

static bool before(PtxWarp *w, const PtxInstr *i, uint32_t mask, uint32_t *defined) {
    *defined = mask;
    for (int n = i->ndst; n < i->nops; n++) {
        const PtxOperand *o = &i->o[n];
        if (o->reg < 0 || o->dst) {
            continue;
        }
        uint32_t missing = mask & ~w->defined[o->reg];
        if (missing && copies(i) && o->kind == O_VALUE) {
            *defined &= ~missing;
        } else if (missing) {
            return undefined(w, i, o, missing);
        }
    }
    return true;
}

static void after(PtxWarp *w, const PtxInstr *i, uint32_t mask, uint32_t defined) {
    for (int n = 0; n < i->ndst; n++) {
        int reg = i->o[n].reg;
        if (reg >= 0) {
            w->defined[reg] = (w->defined[reg] & ~mask) | defined;
        }
    }
}

static bool execute(PtxWarp *w, const PtxInstr *i, uint32_t mask) {
    uint32_t defined;
    if (!w->run->init) {
        return i->exec(w, i, mask);
    }
    if (!before(w, i, mask, &defined) || !i->exec(w, i, mask)) {
        return false;
    }
    after(w, i, mask, defined);
    return true;
}

/* ---- groups ---- */
static void add_group(PtxWarp *w, int pc, uint32_t mask) {
    if (mask) {
        w->groups[w->ngroups++] = (PtxGroup){.pc = pc, .mask = mask, .state = G_RUN};
    }
}

static void drop_group(PtxWarp *w, int g) {
    w->groups[g] = w->groups[--w->ngroups];
}

/* Groups at one instruction become one; those that waited there look again. */
static void merge(PtxWarp *w) {
    for (int a = 0; a < w->ngroups; a++) {
        for (int b = a + 1; b < w->ngroups; b++) {
            if (w->groups[a].pc == w->groups[b].pc) {
                w->groups[a].mask |= w->groups[b].mask;
                w->groups[a].state = G_RUN;
                drop_group(w, b--);
            }
        }
    }
}

/* Which group runs next; -1: none can. */
static int choose(PtxWarp *w) {
    int best = -1, n = 0;
    for (int g = 0; g < w->ngroups; g++) {
        if (w->groups[g].state != G_RUN) {
            continue;
        }
        n++;
        if (w->run->random) { /* each equally likely */
            best = ptx_random(&w->run->random) % (uint64_t)n ? best : g;
        } else if (best < 0 || w->groups[g].pc < w->groups[best].pc) {
            best = g;
        }
    }
    return best;
}

/* The operand that names the lanes of a *.sync; -1: the whole warp. -2: not such an instruction. */
static int sync_operand(const PtxInstr *i) {
    switch (i->c.op) {
    case OP_SHFL:
        return 5;
    case OP_VOTE:
    case OP_BALLOT:
    case OP_REDUX:
        return 2;
    case OP_MATCH:
        return i->c.mode == W_ALL ? 3 : 2;
    case OP_BARWARP:
        return 0;
    case OP_MMA:
    case OP_LDMATRIX:
        return -1;
    default:
        return -2;
    }
}

/* Lanes of the group whose named lanes are all here run the instruction, by equal masks; the others
 * wait. False: failed. */
static bool sync_lanes(PtxWarp *w, const PtxInstr *i, int g, int operand) {
    uint32_t mask = w->groups[g].mask, done = 0, defined;
    const uint32_t *names = operand >= 0 ? ptx_src(w, i, operand) : NULL;
    if (names && w->run->init && !before(w, i, mask, &defined)) {
        return false;
    }
    if (!names && (mask != w->born || mask != ~0u)) {
        if (w->born != ~0u || w->live != ~0u) {
            return ptx_run_fail(w, i, -1, "needs all 32 lanes; only 0x%08x are alive", w->live);
        }
        w->groups[g].state = G_SYNC;
        w->groups[g].want = ~0u;
        return true;
    }
    for (uint32_t rest = mask; rest;) {
        int l = __builtin_ctz(rest);
        uint32_t name = names ? names[l] : ~0u, same = 0;
        for (uint32_t k = rest; k; k &= k - 1) {
            int o = __builtin_ctz(k);
            same |= (uint32_t)(!names || names[o] == name) << o;
        }
        rest &= ~same;
        if (!(name >> l & 1) || (same & ~name)) {
            return ptx_run_fail(w, i, __builtin_ctz(same & ~name ? same & ~name : same),
                                "the lane is not in its own member mask 0x%08x", name);
        }
        if ((name & w->live) == same) {
            if (!execute(w, i, same)) {
                return false;
            }
            w->run->executed[w->groups[g].pc] += (uint64_t)__builtin_popcount(same);
            done |= same;
        } else {
            w->groups[g].want = name;
        }
    }
    w->groups[g].mask = mask & ~done;
    w->groups[g].state = G_SYNC;
    if (done == mask) {
        w->groups[g] = (PtxGroup){.pc = w->groups[g].pc + 1, .mask = mask, .state = G_RUN};
    } else {
        add_group(w, w->groups[g].pc + 1, done);
    }
    return true;
}

static bool arrive(PtxWarp *w, const PtxInstr *i, int g) {
    PtxGroup *me = &w->groups[g];
    const uint32_t *id = ptx_src(w, i, 0);
    int first = __builtin_ctz(me->mask);
    if (i->o[0].reg >= 0 && (me->mask & ~w->defined[i->o[0].reg]) && w->run->init) {
        return undefined(w, i, &i->o[0], me->mask & ~w->defined[i->o[0].reg]);
    }
    if (id[first] > 15) {
        return ptx_run_fail(w, i, first, "there is no barrier %u", id[first]);
    }
    if (i->o[1].kind == O_VALUE) {
        uint32_t n = ((const uint32_t *)ptx_src(w, i, 1))[first];
        if (n != (uint32_t)w->run->nwarps * LANES && n != (uint32_t)w->run->threads) {
            return ptx_run_fail(w, i, first,
                                "a barrier of %u threads where the CTA has %d: "
                                "barriers of a part of the CTA are not known to the emulator",
                                n, w->run->threads);
        }
    }
    me->state = G_BAR;
    me->want = w->live;
    if (me->mask == w->live) {
        w->bar = (int)id[first];
        w->run->executed[me->pc] += (uint64_t)__builtin_popcount(me->mask);
    }
    return true;
}

/* Lanes that leave the kernel. */
static void leave(PtxWarp *w, int g, uint32_t lanes) {
    ptx_copies_land(w, lanes, -1);
    w->live &= ~lanes;
    w->groups[g].mask &= ~lanes;
    if (!w->groups[g].mask) {
        drop_group(w, g);
    }
    for (int k = 0; k < w->ngroups; k++) { /* whoever waited for them may go on */
        if (w->groups[k].state != G_RUN) {
            w->groups[k].state = G_RUN;
        }
    }
}

/* A branch; true: the group goes on at its new pc, false: groups changed. */
static bool branch(PtxWarp *w, const PtxInstr *i, int g, uint32_t taken) {
    PtxGroup *me = &w->groups[g];
    if (taken == me->mask) {
        me->pc = i->target;
        return true;
    }
    if (!taken) {
        me->pc++;
        return true;
    }
    me->mask &= ~taken;
    me->pc++;
    add_group(w, i->target, taken);
    return false;
}

/* The lowest place where another group may be met. */
static int meeting(const PtxWarp *w, int g) {
    int pc = INT32_MAX;
    for (int k = 0; k < w->ngroups; k++) {
        if (k != g && w->groups[k].pc < pc && w->groups[k].pc > w->groups[g].pc) {
            pc = w->groups[k].pc;
        }
    }
    return pc;
}

/* What is not a plain operation. *ok false: failed. True: the group goes on. */
static bool control(PtxWarp *w, const PtxInstr *i, int g, uint32_t mask, bool *ok) {
    PtxGroup *me = &w->groups[g];
    if (i->c.op == OP_BRA) {
        if (i->c.mode == W_UNIFORM && mask && mask != me->mask) {
            *ok = ptx_run_fail(w, i, __builtin_ctz(mask), "says .uni but lanes disagree");
            return false;
        }
        return branch(w, i, g, mask);
    }
    if (mask != me->mask) { /* the others step over it */
        uint32_t others = me->mask & ~mask;
        me->mask = mask;
        if (!mask) {
            me->mask = others;
            me->pc++;
            return true;
        }
        add_group(w, me->pc + 1, others);
    }
    switch (i->c.op) {
    case OP_TRAP:
        *ok = ptx_run_fail(w, i, __builtin_ctz(mask), "the kernel stops itself");
        return false;
    case OP_RET:
    case OP_EXIT:
        leave(w, g, mask);
        return false;
    case OP_BAR:
        *ok = arrive(w, i, g);
        return false;
    default:
        *ok = sync_lanes(w, i, g, sync_operand(i));
        return false;
    }
}

static bool is_control(const PtxInstr *i) {
    return !i->exec || sync_operand(i) != -2;
}

/* Runs group g until its place in the order changes. *slice: instructions left. */
static bool run_group(PtxWarp *w, int g, int *slice) {
    PtxRun *r = w->run;
    PtxGroup *me = &w->groups[g];
    const PtxKernel *k = r->k;
    int limit = meeting(w, g), patience = INT32_MAX;
    if (r->random && w->ngroups > 1) {
        patience = 1 + (int)(ptx_random(&r->random) % 8);
    }
    while (*slice > 0 && patience-- > 0) {
        if (me->pc >= limit && w->ngroups > 1) {
            return true;
        }
        if (me->pc >= k->ncode) {
            return ptx_run_fail(w, &k->code[k->ncode - 1], -1, "runs off the end of the kernel");
        }
        const PtxInstr *i = &k->code[me->pc];
        uint32_t mask = me->mask;
        if (++r->steps > r->d->o.budget) {
            return ptx_run_fail(w, i, -1,
                                "the launch has run its budget of %llu warp instructions: "
                                "does a loop not end?",
                                (unsigned long long)r->d->o.budget);
        }
        --*slice;
        if (i->guard.kind == O_PRED) {
            uint32_t missing = mask & ~w->defined[i->guard.reg];
            if (missing && r->init) {
                return undefined(w, i, &i->guard, missing);
            }
            mask &= ptx_pred(w, &i->guard);
        }
        if (is_control(i)) {
            bool ok = true;
            if (i->c.op != OP_BAR && sync_operand(i) == -2) { /* the others count when they run */
                r->executed[me->pc] += (uint64_t)__builtin_popcount(mask);
            }
            if (!control(w, i, g, mask, &ok)) {
                return ok;
            }
            if (me->pc < limit && w->ngroups > 1) {
                limit = meeting(w, g);
            }
            continue;
        }
        r->executed[me->pc] += (uint64_t)__builtin_popcount(mask);
        if (mask && !execute(w, i, mask)) {
            return false;
        }
        me->pc++;
    }
    return true;
}

static bool stuck(PtxWarp *w) {
    const PtxGroup *a = &w->groups[0];
    const PtxKernel *k = w->run->k;
    char others[256] = "";
    size_t n = 0;
    for (int g = 1; g < w->ngroups && n < sizeof others; g++) {
        n += (size_t)snprintf(others + n, sizeof others - n, "; lanes 0x%08x wait at line %d",
                              w->groups[g].mask, k->code[w->groups[g].pc].line);
    }
    if (w->live != w->born && n < sizeof others) {
        snprintf(others + n, sizeof others - n, "; lanes 0x%08x have exited", w->born & ~w->live);
    }
    return ptx_run_fail(w, &k->code[a->pc], -1, "waits for lanes 0x%08x, only 0x%08x arrive%s",
                        a->want, a->mask, others);
}

bool ptx_warp_run(PtxWarp *w, int slice) {
    while (slice > 0 && w->ngroups && w->bar < 0) {
        if (w->ngroups > 1) {
            merge(w);
        }
        int g = choose(w);
        if (g < 0) {
            return stuck(w);
        }
        if (!run_group(w, g, &slice)) {
            return false;
        }
    }
    return true;
}
