/* cost_program.c: counts operations and bytes of a program by walking it.
 *
 * The walk computes the integers of the program as far as they follow from constants, the task,
 * loop indices and, where there is memory to read, integer buffers. A loop is walked once and
 * weighted by its trips, unless a bound or condition inside depends on its index: then every
 * iteration is walked. A load or store touches as many elements as the iterations of those loops
 * that its index depends on, and no more than its index has values (an interval). */
#include "codegen/cost_program.h"

#include <math.h>
#include <stdlib.h>

enum { TASK_LOOP = 0, MAX_LOOPS = 63, WALK_LIMIT = 1 << 24, TASK_LIMIT = 1 << 14 };

/* What is known of the value of an instruction before any walk. */
typedef struct Fact {
    uint64_t loops; /* it depends on; bit TASK_LOOP: the task or group */
    bool followed;  /* the walk can compute it */
    bool opaque;    /* the loop (LOOP): must not be weighted but walked */
    double lo, hi;  /* integers: interval */
    int loop;       /* LOOP: its number */
} Fact;

typedef struct Walk {
    const CostWalk *w;
    const LInst *at;
    int n;
    Fact *fact;
    int64_t *value;
    bool *known;
    double *touched; /* by instruction: elements of a load or store */
    double trips[MAX_LOOPS + 1];
    uint64_t open;
    int64_t steps;
    CallCost cost;
} Walk;

/* ---- before the walk ---- */

static Fact fact_of(const Walk *x, LVal v) {
    return v > 0 ? x->fact[v - 1] : (Fact){.followed = true};
}

static Fact any(uint64_t loops, bool followed) {
    return (Fact){.loops = loops, .followed = followed, .lo = -INFINITY, .hi = INFINITY};
}

static double at_most(double a, double b) {
    return a < b ? a : b;
}

static double at_least(double a, double b) {
    return a > b ? a : b;
}

static double times(double a, double b) {
    return a == 0 || b == 0 ? 0 : a * b;
}

static void interval(Fact *f, LOp op, Fact a, Fact b, Fact c) {
    double p[4] = {times(a.lo, b.lo), times(a.lo, b.hi), times(a.hi, b.lo), times(a.hi, b.hi)};
    switch (op) {
    case L_ADD:
        f->lo = a.lo + b.lo, f->hi = a.hi + b.hi;
        return;
    case L_SUB:
        f->lo = a.lo - b.hi, f->hi = a.hi - b.lo;
        return;
    case L_MUL:
        f->lo = at_most(at_most(p[0], p[1]), at_most(p[2], p[3]));
        f->hi = at_least(at_least(p[0], p[1]), at_least(p[2], p[3]));
        return;
    case L_DIV:
        if (b.lo == b.hi && b.lo > 0)
            f->lo = trunc(a.lo / b.lo), f->hi = trunc(a.hi / b.lo);
        return;
    case L_REM:
        if (b.lo == b.hi && b.lo > 0 && a.lo >= 0)
            f->lo = 0, f->hi = at_most(a.hi, b.lo - 1);
        return;
    case L_MIN:
        f->lo = at_most(a.lo, b.lo), f->hi = at_most(a.hi, b.hi);
        return;
    case L_MAX:
        f->lo = at_least(a.lo, b.lo), f->hi = at_least(a.hi, b.hi);
        return;
    case L_SELECT:
        f->lo = at_most(b.lo, c.lo), f->hi = at_least(b.hi, c.hi);
        return;
    default:
        return;
    }
}

static Fact fact_exact(double v) {
    return (Fact){.followed = true, .lo = v, .hi = v};
}

static Fact argument(const Walk *x, int which) {
    if (which == LARG_TASK || which == LARG_GROUP)
        return (Fact){1, true, false, 0, (double)x->w->calls - 1, 0};
    return fact_exact((double)x->w->args[which]);
}

static bool readable(const Walk *x, const LInst *i) {
    return x->w->arena && i->ref >= 0 && i->type != LT_F32 && i->type != LT_F64;
}

/* Facts of one instruction; `open`: loops around it. vars: loops that variables depend on. */
static Fact fact_make(const Walk *x, const LInst *i, uint64_t open, const uint64_t *vars) {
    Fact a = fact_of(x, i->a), b = fact_of(x, i->b), c = fact_of(x, i->c);
    switch (i->kind) {
    case LI_CONST:
        return i->type == LT_I64 || i->type == LT_BOOL ? fact_exact((double)i->i) : any(0, false);
    case LI_ARG:
        return argument(x, i->ref);
    case LI_OP: {
        bool whole = i->type == LT_I64 || i->type == LT_BOOL;
        Fact f = any(a.loops | b.loops | c.loops, whole && a.followed && b.followed && c.followed);
        if (i->type == LT_I64)
            interval(&f, (LOp)i->op, a, b, c);
        return f;
    }
    case LI_LOAD:
        return i->ref >= 0 ? any(a.loops, readable(x, i) && a.followed) : any(open, false);
    case LI_GET:
        return any(vars[i->ref], false);
    default:
        return any(0, false);
    }
}

typedef struct Open { /* a loop around the instruction looked at */
    int at;
    uint64_t around;
} Open;
typedef VEC(Open) OpenLoops;

/* The bound or condition v inside the open loops: those it depends on must be walked. */
static void must_walk(Walk *x, const OpenLoops *open, LVal v) {
    Fact f = fact_of(x, v);
    for (int k = 0; f.followed && k < open->n; k++)
        if (f.loops & (1ull << x->fact[open->at[k].at].loop))
            x->fact[open->at[k].at].opaque = true;
}

static void open_loop(Walk *x, int i, int *loops, OpenLoops *open, uint64_t *around) {
    const LInst *n = &x->at[i];
    Fact lo = fact_of(x, n->a), hi = fact_of(x, n->b);
    int loop = *loops < MAX_LOOPS ? ++*loops : MAX_LOOPS;
    must_walk(x, open, n->a);
    must_walk(x, open, n->b);
    x->fact[i] = (Fact){.loops = 1ull << loop | lo.loops | hi.loops,
                        .followed = true,
                        .opaque = x->fact[i].opaque,
                        .lo = lo.lo,
                        .hi = at_least(hi.hi - 1, lo.lo),
                        .loop = loop};
    vec_push(open, ((Open){i, *around}));
    *around |= 1ull << loop;
}

/* One pass over the program; false when a variable turned out to depend on more than was thought.
 */
static bool facts_pass(Walk *x, uint64_t *vars) {
    OpenLoops open = {0};
    uint64_t around = 0;
    int loops = TASK_LOOP;
    bool settled = true;
    for (int i = 0; i < x->n; i++) {
        const LInst *n = &x->at[i];
        if (n->kind == LI_LOOP) {
            open_loop(x, i, &loops, &open, &around);
        } else if (n->kind == LI_END && open.n && n->ref == open.at[open.n - 1].at) {
            around = open.at[--open.n].around;
        } else if (n->kind == LI_IF) {
            must_walk(x, &open, n->a);
        } else if (n->kind == LI_VAR || n->kind == LI_SET) {
            uint64_t more = vars[n->ref] | fact_of(x, n->a).loops | around;
            settled &= more == vars[n->ref];
            vars[n->ref] = more;
        } else {
            x->fact[i] = fact_make(x, n, around, vars);
        }
    }
    vec_free(&open);
    return settled;
}

/* ---- the walk ---- */

static int64_t read_integer(const Walk *x, const LInst *n, int64_t index) {
    DType t = x->w->program->buffers.at[n->ref];
    Tensor view = {.dtype = t, .rank = 1, .dims = {INT32_MAX}};
    union {
        const char *from;
        void *data;
    } at = {.from = x->w->arena + x->w->call->buffers[n->ref]};
    view.data = at.data;
    return tensor_get_i(&view, index);
}

static int64_t truncated(LOp op, int64_t a, int64_t b) {
    if (b == 0 || (a == INT64_MIN && b == -1))
        return 0;
    return op == L_DIV ? a / b : a % b;
}

static int64_t compute(const LInst *n, int64_t a, int64_t b, int64_t c) {
    switch ((LOp)n->op) {
    case L_ADD:
        return (int64_t)((uint64_t)a + (uint64_t)b);
    case L_SUB:
        return (int64_t)((uint64_t)a - (uint64_t)b);
    case L_MUL:
        return (int64_t)((uint64_t)a * (uint64_t)b);
    case L_FMA:
        return (int64_t)((uint64_t)a * (uint64_t)b + (uint64_t)c);
    case L_DIV:
    case L_REM:
        return truncated((LOp)n->op, a, b);
    case L_MIN:
        return a < b ? a : b;
    case L_MAX:
        return a > b ? a : b;
    case L_NEG:
        return (int64_t)(0 - (uint64_t)a);
    case L_ABS:
        return a < 0 ? (int64_t)(0 - (uint64_t)a) : a;
    case L_LT:
        return a < b;
    case L_LE:
        return a <= b;
    case L_EQ:
        return a == b;
    case L_NE:
        return a != b;
    case L_AND:
        return a & b;
    case L_OR:
        return a | b;
    case L_XOR:
        return a ^ b;
    case L_NOT:
        return !a;
    case L_SELECT:
        return a ? b : c;
    case L_TO_BOOL:
        return a != 0;
    default:
        return a; /* conversions between integers */
    }
}

static void count_op(Walk *x, const LInst *n, double weight) {
    static const unsigned char flops[L_COUNT] = {
        [L_ADD] = 1, [L_SUB] = 1, [L_MUL] = 1,  [L_DIV] = 1, [L_REM] = 1, [L_MIN] = 1,
        [L_MAX] = 1, [L_POW] = 1, [L_FMA] = 2,  [L_NEG] = 1, [L_ABS] = 1, [L_SQRT] = 1,
        [L_EXP] = 1, [L_LOG] = 1, [L_TANH] = 1, [L_ERF] = 1, [L_SIN] = 1, [L_COS] = 1,
    };
    if (n->type != LT_F32 && n->type != LT_F64)
        return;
    x->cost.flops += weight * flops[n->op];
    if (n->op == L_POW || (n->op >= L_EXP && n->op <= L_COS))
        x->cost.special += weight;
}

/* A load or store at this place: iterations of loops that its index does not depend on touch
 * nothing new. */
static void touch(Walk *x, int i, double weight) {
    const LInst *n = &x->at[i];
    if (n->ref < 0)
        return;
    uint64_t still = x->open & ~fact_of(x, n->a).loops;
    for (int k = 0; k <= MAX_LOOPS; k++)
        if (still & (1ull << k))
            weight /= x->trips[k];
    x->touched[i] += weight;
}

static int body_end(const Walk *x, int i) {
    return x->at[i].ref;
}

static void walk(Walk *x, int from, int to, double weight);

static void walk_loop(Walk *x, int i, double weight) {
    const LInst *n = &x->at[i];
    const Fact *f = &x->fact[i];
    bool known = x->known[n->a - 1] && x->known[n->b - 1];
    int64_t lo = known ? x->value[n->a - 1] : 0, hi = known ? x->value[n->b - 1] : 0;
    double trips = (double)(hi - lo), before = x->trips[f->loop];
    bool again = x->open & (1ull << f->loop); /* more loops than bits: shares one */
    if (!known) {
        x->cost.exact = false;
        trips = isfinite(f->hi - f->lo) ? f->hi - f->lo + 1 : 1;
    }
    if (trips <= 0)
        return;
    uint64_t open = x->open;
    x->open |= 1ull << f->loop;
    x->trips[f->loop] = again ? before * trips : trips;
    bool each = known && f->opaque;
    if (each && x->steps + (int64_t)trips > WALK_LIMIT) {
        each = false;
        x->cost.exact = false;
    }
    if (!each) {
        x->known[i] = known && f->opaque; /* its first index stands for all */
        x->value[i] = lo;
        walk(x, i + 1, body_end(x, i), weight * trips);
    }
    for (int64_t v = lo; each && v < hi; v++) {
        x->known[i] = true;
        x->value[i] = v;
        walk(x, i + 1, body_end(x, i), weight);
    }
    x->known[i] = false;
    x->open = open;
    x->trips[f->loop] = before;
}

static void walk_if(Walk *x, int i, double weight) {
    int end = x->at[i].ref, otherwise = end; /* IF's ref is its END; an ELSE names its IF */
    for (int k = i + 1; k < end; k++)
        if (x->at[k].kind == LI_ELSE && x->at[k].ref == i)
            otherwise = k;
    bool known = x->known[x->at[i].a - 1], take = x->value[x->at[i].a - 1] != 0;
    x->cost.exact &= known;
    if (!known || take)
        walk(x, i + 1, otherwise, weight);
    if ((!known || !take) && otherwise < end)
        walk(x, otherwise + 1, end, weight);
}

static void walk_value(Walk *x, int i, double weight) {
    const LInst *n = &x->at[i];
    if (n->kind == LI_LOAD) {
        touch(x, i, weight);
        x->known[i] = readable(x, n) && x->known[n->a - 1];
        if (x->known[i])
            x->value[i] = read_integer(x, n, x->value[n->a - 1]);
        return;
    }
    count_op(x, n, weight);
    LVal in[3] = {n->a, n->b, n->c};
    int64_t v[3] = {0};
    bool known = n->type == LT_I64 || n->type == LT_BOOL;
    for (int k = 0; k < 3; k++) {
        const LInst *from = in[k] ? &x->at[in[k] - 1] : NULL;
        known &= !from || (x->known[in[k] - 1] && from->type != LT_F32 && from->type != LT_F64);
        v[k] = from && known ? x->value[in[k] - 1] : 0;
    }
    x->known[i] = known;
    if (known)
        x->value[i] = compute(n, v[0], v[1], v[2]);
}

static void walk(Walk *x, int from, int to, double weight) {
    x->steps += to - from;
    for (int i = from; i < to; i++) {
        switch (x->at[i].kind) {
        case LI_LOOP:
            walk_loop(x, i, weight);
            i = body_end(x, i);
            break;
        case LI_IF:
            walk_if(x, i, weight);
            i = x->at[i].ref;
            break;
        case LI_STORE:
            touch(x, i, weight);
            break;
        case LI_OP:
        case LI_LOAD:
            walk_value(x, i, weight);
            break;
        default: /* constants and arguments are known before */
            break;
        }
    }
}

static void start_values(Walk *x, int64_t task) {
    for (int i = 0; i < x->n; i++) {
        const LInst *n = &x->at[i];
        x->known[i] =
            n->kind == LI_ARG || (n->kind == LI_CONST && (n->type == LT_I64 || n->type == LT_BOOL));
        if (n->kind == LI_CONST)
            x->value[i] = n->i;
        if (n->kind == LI_ARG)
            x->value[i] = n->ref == LARG_TASK || n->ref == LARG_GROUP ? task : x->w->args[n->ref];
    }
}

/* Many tasks: all but the last are like the first. */
static void walk_tasks(Walk *x) {
    int64_t calls = x->w->calls;
    x->trips[TASK_LOOP] = (double)calls;
    x->open = 1ull << TASK_LOOP;
    if (calls <= TASK_LIMIT) {
        for (int64_t t = 0; t < calls; t++) {
            start_values(x, t);
            walk(x, 0, x->n, 1);
        }
        return;
    }
    start_values(x, 0);
    walk(x, 0, x->n, (double)(calls - 1));
    start_values(x, calls - 1);
    walk(x, 0, x->n, 1);
}

/* ---- bytes ---- */

typedef struct Side { /* loads or stores of one buffer */
    double sum, most, lo, hi;
} Side;

/* Elements that at least one of them touches. Several passes over the same rows are one. */
static double side_elements(const Side *s) {
    double extent = s->hi - s->lo + 1;
    return isfinite(extent) ? at_most(s->sum, extent) : s->most;
}

static void count_bytes(Walk *x) {
    int nbuffers = x->w->program->buffers.n;
    Side *sides = xcalloc((size_t)nbuffers * 2 + 1, sizeof *sides);
    for (int i = 0; i < x->n; i++) {
        const LInst *n = &x->at[i];
        if (!x->touched[i])
            continue;
        Fact f = fact_of(x, n->a);
        double extent = f.hi - f.lo + 1;
        double elements = isfinite(extent) ? at_most(x->touched[i], extent) : x->touched[i];
        Side *s = &sides[2 * n->ref + (n->kind == LI_STORE)];
        s->lo = s->sum ? at_most(s->lo, f.lo) : f.lo;
        s->hi = s->sum ? at_least(s->hi, f.hi) : f.hi;
        s->sum += elements;
        s->most = at_least(s->most, elements);
        x->cost.moved += elements * dtype_bytes(x->w->program->buffers.at[n->ref]);
    }
    for (int b = 0; b < 2 * nbuffers; b++)
        x->cost.minimum += side_elements(&sides[b]) * dtype_bytes(x->w->program->buffers.at[b / 2]);
    free(sides);
}

CallCost cost_of_program(const CostWalk *w) {
    const LoopProgram *p = w->program;
    int n = p->insts.n;
    size_t count = (size_t)n + 1;
    Walk x = {.w = w, .at = p->insts.at, .n = n, .cost.exact = true};
    x.fact = xcalloc(count, sizeof *x.fact);
    x.value = xcalloc(count, sizeof *x.value);
    x.known = xcalloc(count, sizeof *x.known);
    x.touched = xcalloc(count, sizeof *x.touched);
    uint64_t *vars = xcalloc((size_t)p->vars.n + 1, sizeof *vars);
    while (!facts_pass(&x, vars))
        ;
    walk_tasks(&x);
    count_bytes(&x);
    free(x.fact);
    free(x.value);
    free(x.known);
    free(x.touched);
    free(vars);
    return x.cost;
}
