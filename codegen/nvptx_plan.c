/* nvptx_plan.c: who does what in a LoopProgram on a GPU, and where threads must meet.
 *
 * The team. Without vector loops a task is a thread's; with short ones a warp's, else a CTA's.
 *
 * Dealing. The team walks the structured code together; a vector loop is dealt out to its threads.
 * Of vector loops inside one another the outer goes to the warps of a CTA, the inner to their
 * lanes.
 *
 * Barriers. Accesses since the last barrier are kept as records: what was read or written, and by
 * whom. An access that may touch what another thread wrote, or write what another may still read,
 * gets a barrier before it. Not needed between accesses of the first thread, nor where the address
 * tells the thread: in a dealt loop over j from lo, an index j + c + G*(anything) with no more than
 * G iterations belongs to one j whatever the rest is, and two such accesses with equal G, c and lo
 * meet at equal j only, hence in one thread. Loops are walked until nothing is added. */
#include "codegen/nvptx_plan.h"

#include <stdlib.h>
#include <string.h>

enum { THREAD_TRIPS = 4, WARP_TRIPS = 64, MOST_TERMS = 16 };

/* ---- how long loops are ---- */

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

int64_t nvptx_iterations(const LoopProgram *p, LVal lo, LVal hi) {
    int64_t from, to, a = INT64_MAX, b = INT64_MAX;
    const LInst *n = lp_inst(p, hi);
    bool known = lp_is_const_i(p, lo, &from);
    if (lo == hi)
        return 0;
    if (lp_is_const_i(p, hi, &to))
        return known ? (to > from ? to - from : 0) : to;
    if (n->kind != LI_OP)
        return INT64_MAX;
    if (n->op == L_MIN)
        return smaller(nvptx_iterations(p, lo, n->a), nvptx_iterations(p, lo, n->b));
    if (n->op == L_ADD && n->a == lo && lp_is_const_i(p, n->b, &b))
        return b;
    if (n->op == L_ADD && n->b == lo && lp_is_const_i(p, n->a, &a))
        return a;
    if (n->op == L_SUB && known && from == 0)
        return nvptx_iterations(p, n->b, n->a);
    return INT64_MAX;
}

static bool has_vector_loop(const LoopProgram *p, int loop) {
    for (int i = loop + 1; i < p->insts.at[loop].ref; i++)
        if (p->insts.at[i].kind == LI_LOOP && p->insts.at[i].op == LOOP_VECTOR)
            return true;
    return false;
}

/* ---- accumulation ---- */

int nvptx_accumulated(const LoopProgram *p, int loop, int *vars) {
    int n = 0, end = p->insts.at[loop].ref;
    for (int v = 0; v < p->vars.n; v++) {
        bool set = false, inside = false;
        for (int i = loop + 1; i < end; i++) {
            const LInst *in = &p->insts.at[i];
            set |= in->kind == LI_SET && in->ref == v;
            inside |= in->kind == LI_VAR && in->ref == v;
        }
        if (set && !inside) {
            if (vars)
                vars[n] = v;
            n++;
        }
    }
    return n;
}

/* The operation by which v grows out of variable `var`; L_COUNT: it does not. */
static LOp grows_by(const LoopProgram *p, LVal v, int var) {
    const LInst *n = lp_inst(p, v);
    if (n->kind == LI_GET)
        return n->ref == var ? L_NOT : L_COUNT; /* L_NOT: the variable itself */
    if (n->kind != LI_OP)
        return L_COUNT;
    LOp a = L_COUNT, b = L_COUNT, own = (LOp)n->op;
    switch (n->op) {
    case L_ADD:
    case L_MIN:
    case L_MAX:
    case L_AND:
    case L_OR:
        a = grows_by(p, n->a, var), b = grows_by(p, n->b, var);
        break;
    case L_SUB:
        a = grows_by(p, n->a, var), own = L_ADD;
        break;
    case L_FMA:
        a = grows_by(p, n->c, var), own = L_ADD;
        break;
    case L_SELECT:
        a = grows_by(p, n->b, var), b = grows_by(p, n->c, var);
        return a == L_NOT || a == L_COUNT ? b : a;
    default:
        break;
    }
    if (a == L_COUNT)
        a = b;
    return a == L_NOT || a == own ? own : L_COUNT;
}

LOp nvptx_accumulation(const LoopProgram *p, int loop, int var) {
    LOp op = L_COUNT;
    for (int i = loop + 1; i < p->insts.at[loop].ref; i++) {
        const LInst *n = &p->insts.at[i];
        if (n->kind != LI_SET || n->ref != var)
            continue;
        LOp by = grows_by(p, n->a, var);
        if (by == L_COUNT || by == L_NOT || (op != L_COUNT && by != op))
            bug("%s: a vector loop sets a variable other than by adding, min or max", p->name);
        op = by;
    }
    return op;
}

/* ---- the team ---- */

static int64_t local_bytes(const LoopProgram *p) {
    int64_t n = 0;
    for (int i = 0; i < p->locals.n; i++) {
        LType t = p->locals.at[i].type;
        n += p->locals.at[i].count * (t == LT_BOOL ? 1 : t == LT_F32 ? 4 : 8);
    }
    return n;
}

static void choose_team(NvptxPlan *plan) {
    const LoopProgram *p = plan->p;
    int64_t longest = 0;
    bool nested = false;
    for (int i = 0; i < p->insts.n; i++) {
        const LInst *n = &p->insts.at[i];
        if (n->kind != LI_LOOP || n->op != LOOP_VECTOR)
            continue;
        int64_t trips = nvptx_iterations(p, n->a, n->b);
        longest = trips > longest ? trips : longest;
        nested |= has_vector_loop(p, i);
    }
    bool small_locals = local_bytes(p) * 128 <= 32768;
    plan->threads = 128;
    if (longest <= THREAD_TRIPS && !nested && small_locals)
        plan->team = TEAM_THREAD;
    else if (longest <= WARP_TRIPS && !nested && local_bytes(p) * 4 <= 32768)
        plan->team = TEAM_WARP;
    else
        plan->team = TEAM_CTA;
    if (plan->team == TEAM_CTA)
        plan->threads = nested || longest > 512 ? 256 : longest > 128 ? 128 : 64;
}

/* A loop whose iterations may go to warps: what it sets outside would have to be combined between
 * them, and locals would be shared. */
static bool goes_to_warps(const LoopProgram *p, int loop) {
    if (nvptx_accumulated(p, loop, NULL))
        return false;
    for (int i = loop + 1; i < p->insts.at[loop].ref; i++)
        if (p->insts.at[i].kind == LI_STORE && LB_IS_LOCAL(p->insts.at[i].ref))
            return false;
    return true;
}

static void deal(NvptxPlan *plan) {
    const LoopProgram *p = plan->p;
    TeamKind level = plan->team;
    int warp_end = -1;
    for (int i = 0; i < p->insts.n && plan->team != TEAM_THREAD; i++) {
        const LInst *n = &p->insts.at[i];
        if (i == warp_end)
            level = TEAM_CTA;
        if (n->kind != LI_LOOP || n->op != LOOP_VECTOR)
            continue;
        if (!has_vector_loop(p, i)) {
            plan->deal[i] = DEAL_THREADS;
            int k = nvptx_accumulated(p, i, NULL);
            if (level == TEAM_CTA && k > plan->accumulators)
                plan->accumulators = k;
            i = n->ref;
        } else if (level == TEAM_CTA && goes_to_warps(p, i)) {
            plan->deal[i] = DEAL_WARPS;
            level = TEAM_WARP;
            warp_end = n->ref;
        }
    }
}

/* ---- barriers ---- */

typedef enum { BY_ALL, BY_FIRST, BY_OWNER, BY_ANY } Who;

/* An access: BY_ALL the threads at one address, BY_FIRST of them, BY_OWNER of the address as
 * explained above, BY_ANY. */
typedef struct Access {
    int buffer;
    bool write;
    Who who;
    int64_t modulus, at; /* BY_OWNER: G (0: the index is j + c alone) and c mod G */
    LVal lo;             /* of the loop; 0: the constant lo_value */
    int64_t lo_value;
} Access;

typedef VEC(Access) State;

enum { SCRATCH = INT32_MAX }; /* as a buffer: where a CTA combines accumulations */

typedef struct Walk {
    NvptxPlan *plan;
    const LoopProgram *p;
    int *depth; /* by instruction: loops around it */
} Walk;

typedef struct Affine {
    int64_t constant, j; /* coefficient of the loop's index */
    int64_t divisor;     /* of all other coefficients: their greatest common one, 0: none */
    bool ok;
} Affine;

static int64_t gcd(int64_t a, int64_t b) {
    while (b) {
        int64_t r = a % b;
        a = b, b = r;
    }
    return a < 0 ? -a : a;
}

/* Adds scale*v. */
static void decompose(const LoopProgram *p, LVal v, LVal index, int64_t scale, int depth,
                      Affine *a) {
    const LInst *n = lp_inst(p, v);
    int64_t k;
    if (depth > MOST_TERMS || scale > INT32_MAX || scale < -INT32_MAX) {
        a->ok = false;
    } else if (v == index) {
        a->j += scale;
    } else if (lp_is_const_i(p, v, &k)) {
        a->constant += scale * k;
    } else if (n->kind == LI_OP && (n->op == L_ADD || n->op == L_SUB)) {
        decompose(p, n->a, index, scale, depth + 1, a);
        decompose(p, n->b, index, n->op == L_ADD ? scale : -scale, depth + 1, a);
    } else if (n->kind == LI_OP && n->op == L_MUL && lp_is_const_i(p, n->b, &k) && k < INT32_MAX &&
               k > -INT32_MAX) {
        decompose(p, n->a, index, scale * k, depth + 1, a);
    } else if (n->kind == LI_OP && n->op == L_MUL && lp_is_const_i(p, n->a, &k) && k < INT32_MAX &&
               k > -INT32_MAX) {
        decompose(p, n->b, index, scale * k, depth + 1, a);
    } else {
        a->divisor = gcd(a->divisor, scale);
    }
}

/* Whose the access at instruction i is, inside the dealt loop. */
static Access dealt_access(const Walk *w, int i, int loop) {
    const LInst *n = &w->p->insts.at[i], *l = &w->p->insts.at[loop];
    Access a = {.buffer = n->ref, .write = n->kind == LI_STORE, .who = BY_ANY};
    Affine f = {.ok = true};
    decompose(w->p, n->a, loop + 1, 1, 0, &f);
    bool fixed = lp_is_const_i(w->p, l->a, &a.lo_value);
    if (!fixed)
        a.lo = l->a, fixed = w->depth[l->a - 1] == 0;
    bool apart = f.divisor == 0 || nvptx_iterations(w->p, l->a, l->b) <= f.divisor;
    if (!f.ok || f.j != 1 || !fixed || !apart)
        return a;
    a.who = BY_OWNER;
    a.modulus = f.divisor;
    a.at = f.divisor ? ((f.constant % f.divisor) + f.divisor) % f.divisor : f.constant;
    return a;
}

static bool same_access(const Access *a, const Access *b) {
    return a->buffer == b->buffer && a->write == b->write && a->who == b->who &&
           a->modulus == b->modulus && a->at == b->at && a->lo == b->lo &&
           a->lo_value == b->lo_value;
}

static bool conflict(const Access *a, const Access *b) {
    if (a->buffer != b->buffer || (!a->write && !b->write))
        return false;
    if (a->who == BY_FIRST && b->who == BY_FIRST)
        return false;
    return !(a->who == BY_OWNER && b->who == BY_OWNER && a->modulus == b->modulus &&
             a->at == b->at && a->lo == b->lo && a->lo_value == b->lo_value);
}

static bool conflicts(const State *s, const Access *a) {
    for (int i = 0; i < s->n; i++)
        if (conflict(&s->at[i], a))
            return true;
    return false;
}

/* True if it was not there. */
static bool record(State *s, const Access *a) {
    for (int i = 0; i < s->n; i++)
        if (same_access(&s->at[i], a))
            return false;
    vec_push(s, *a);
    return true;
}

static bool join(State *s, const State *from) {
    bool more = false;
    for (int i = 0; i < from->n; i++)
        more |= record(s, &from->at[i]);
    return more;
}

static void meet_before(Walk *w, int i, State *s) {
    w->plan->barrier[i] = true;
    s->n = 0;
}

static void walk(Walk *w, int from, int to, State *s, TeamKind level);

/* A loop dealt to threads is one step: its accesses come at once. */
static void walk_dealt(Walk *w, int loop, State *s, TeamKind level) {
    const LInst *l = &w->p->insts.at[loop];
    bool wait = w->plan->barrier[loop];
    for (int i = loop + 1; i < l->ref && !wait; i++) {
        const LInst *n = &w->p->insts.at[i];
        if (n->kind != LI_LOAD && n->kind != LI_STORE)
            continue;
        Access a = dealt_access(w, i, loop);
        wait = conflicts(s, &a);
    }
    if (wait)
        meet_before(w, loop, s);
    for (int i = loop + 1; i < l->ref; i++) {
        const LInst *n = &w->p->insts.at[i];
        if (n->kind != LI_LOAD && n->kind != LI_STORE)
            continue;
        Access a = dealt_access(w, i, loop);
        record(s, &a);
    }
    if (level != TEAM_CTA || !nvptx_accumulated(w->p, loop, NULL))
        return;
    /* combining: each warp writes its part, a barrier, all read the parts */
    Access part = {.buffer = SCRATCH, .write = true, .who = BY_ANY};
    if (w->plan->barrier[l->ref] || conflicts(s, &part))
        meet_before(w, l->ref, s);
    s->n = 0;
    part.write = false;
    record(s, &part);
}

/* Iterations dealt to warps are independent: within one the lanes meet as a warp; the whole is one
 * step of the CTA. */
static void walk_warps(Walk *w, int loop, State *s) {
    const LInst *l = &w->p->insts.at[loop];
    State inner = {0};
    walk(w, loop + 1, l->ref, &inner, TEAM_WARP);
    vec_free(&inner);
    bool wait = w->plan->barrier[loop];
    for (int pass = 0; pass < 2; pass++) {
        for (int i = loop + 1; i < l->ref; i++) {
            const LInst *n = &w->p->insts.at[i];
            if (n->kind != LI_LOAD && n->kind != LI_STORE)
                continue;
            Access a = {.buffer = n->ref, .write = n->kind == LI_STORE, .who = BY_ANY};
            if (pass)
                record(s, &a);
            else
                wait |= conflicts(s, &a);
        }
        if (!pass && wait)
            meet_before(w, loop, s);
    }
}

static void walk_loop(Walk *w, int loop, State *s, TeamKind level) {
    int end = w->p->insts.at[loop].ref;
    if (nvptx_iterations(w->p, w->p->insts.at[loop].a, w->p->insts.at[loop].b) <= 1) {
        State none = {0}; /* it may not run at all */
        join(&none, s);
        walk(w, loop + 1, end, s, level);
        join(s, &none);
        vec_free(&none);
        return;
    }
    for (bool more = true; more;) {
        State body = {0};
        join(&body, s);
        walk(w, loop + 1, end, &body, level);
        more = join(s, &body);
        vec_free(&body);
    }
}

/* Returns the place of the END. */
static int walk_if(Walk *w, int at, State *s, TeamKind level) {
    const LoopProgram *p = w->p;
    int depth = 0, other = -1, end = at + 1;
    for (;; end++) {
        LInstKind k = p->insts.at[end].kind;
        depth += k == LI_LOOP || k == LI_IF;
        if (k == LI_ELSE && depth == 0)
            other = end;
        if (k == LI_END && depth-- == 0)
            break;
    }
    State then = {0}, otherwise = {0};
    join(&then, s);
    join(&otherwise, s);
    walk(w, at + 1, other < 0 ? end : other, &then, level);
    if (other >= 0)
        walk(w, other + 1, end, &otherwise, level);
    s->n = 0;
    join(s, &then);
    join(s, &otherwise);
    vec_free(&then);
    vec_free(&otherwise);
    return end;
}

static void walk(Walk *w, int from, int to, State *s, TeamKind level) {
    for (int i = from; i < to; i++) {
        const LInst *n = &w->p->insts.at[i];
        switch (n->kind) {
        case LI_LOAD:
        case LI_STORE: {
            bool write = n->kind == LI_STORE;
            Access a = {.buffer = n->ref, .write = write, .who = write ? BY_FIRST : BY_ALL};
            if (w->plan->barrier[i] || conflicts(s, &a))
                meet_before(w, i, s);
            record(s, &a);
            break;
        }
        case LI_LOOP:
            if (w->plan->deal[i] == DEAL_THREADS)
                walk_dealt(w, i, s, level);
            else if (w->plan->deal[i] == DEAL_WARPS)
                walk_warps(w, i, s);
            else
                walk_loop(w, i, s, level);
            i = n->ref;
            break;
        case LI_IF:
            i = walk_if(w, i, s, level);
            break;
        default:
            break;
        }
    }
}

static void find_barriers(NvptxPlan *plan) {
    const LoopProgram *p = plan->p;
    Walk w = {.plan = plan, .p = p, .depth = xcalloc((size_t)p->insts.n + 1, sizeof(int))};
    int depth = 0;
    for (int i = 0; i < p->insts.n; i++) {
        const LInst *n = &p->insts.at[i];
        if (n->kind == LI_END && p->insts.at[n->ref].kind == LI_LOOP)
            depth--;
        depth += n->kind == LI_LOOP;
        w.depth[i] = depth;
    }
    State s = {0};
    walk(&w, 0, p->insts.n, &s, plan->team);
    vec_free(&s);
    free(w.depth);
}

/* ---- the whole ---- */

void nvptx_plan(NvptxPlan *plan, const LoopProgram *p, int threads) {
    *plan = (NvptxPlan){.p = p};
    plan->deal = xcalloc((size_t)p->insts.n + 1, sizeof *plan->deal);
    plan->barrier = xcalloc((size_t)p->insts.n + 1, sizeof *plan->barrier);
    choose_team(plan);
    if (threads)
        plan->team = TEAM_CTA, plan->threads = threads;
    deal(plan);
    if (plan->team != TEAM_THREAD)
        find_barriers(plan);
}

void nvptx_plan_free(NvptxPlan *plan) {
    free(plan->deal);
    free(plan->barrier);
    *plan = (NvptxPlan){0};
}
