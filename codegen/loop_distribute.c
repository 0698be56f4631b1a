/* loop_distribute.c: vector loops around sequential loops, turned inside out so that they vectorise.
 *
 *     for vector j = 0 .. n {           for b = 0 .. n / W {
 *       var s = 0                         for vector l = 0 .. W { s[l] = 0 }
 *       for i = 0 .. m {          =>      for i = 0 .. m {
 *         s += x[i*n + j]                   for vector l = 0 .. W { s[l] += x[i*n + b*W + l] }
 *       }                                 }
 *       y[j] = s                          for vector l = 0 .. W { y[b*W + l] = s[l] }
 *     }                                 }
 *
 * The iterations of a vector loop are independent, so blocks of W of them may go through the body
 * in step. Each straight section of the body becomes a vector loop over the lanes; variables of the
 * body and values that live from one section to another become local arrays of W; what does not
 * depend on j is done once per block. Loops stay as they are when the inner loops' bounds depend on
 * j, lie under an if or are vector loops themselves, or when the body stores to a local array. */
#include "codegen/loop_program.h"

#include <stdlib.h>
#include <string.h>

#define MOST_LANES 256
#define LEAST_LANES 32
#define LOCAL_BYTES 49152

typedef struct Distribution {
    const LoopProgram *p;
    LoopProgram *q;
    LVal *map; /* by LVal of p; 0: not made yet */
    int *var;  /* by variable of p */
    /* of the loop being turned */
    bool *varying;           /* by LVal */
    int *section;            /* by LVal: which section makes it */
    int *lane_array;         /* by LVal: the local array it is kept in between sections; 0: none */
    int *lane_var;           /* by variable: its local array; 0: a variable of outside */
    int *made_in;            /* by LVal: section that `map` holds for */
    int at, end;             /* the loop and its END */
    LVal first, lanes, lane; /* of the block: first index, iterations; index in the current lane
                                loop (0: not in one) */
    int current;             /* section being emitted */
} Distribution;

static const LInst *inst(const Distribution *d, int i) {
    return &d->p->insts.at[i];
}

static bool is_leaf(const Distribution *d, LVal v) {
    LInstKind k = lp_inst(d->p, v)->kind;
    return k == LI_CONST || k == LI_ARG;
}

static bool varies(const Distribution *d, LVal v) {
    return v && !is_leaf(d, v) && d->varying[v];
}

/* Cheap index arithmetic on j and what does not vary: made again rather than kept. */
static bool remade(const Distribution *d, LVal v) {
    if (is_leaf(d, v) || !d->varying[v] || v == d->at + 1)
        return true;
    const LInst *n = lp_inst(d->p, v);
    if (n->kind != LI_OP || (n->type != LT_I64 && n->type != LT_BOOL))
        return false;
    return remade(d, n->a) && (!n->b || remade(d, n->b)) && (!n->c || remade(d, n->c));
}

/* ---- copying ---- */

static LVal operand(Distribution *d, LVal v);

static LVal copy_op(Distribution *d, LVal v) {
    const LInst *n = lp_inst(d->p, v);
    LVal a = operand(d, n->a), b = n->b ? operand(d, n->b) : 0, c = n->c ? operand(d, n->c) : 0;
    return lp_op(d->q, (LOp)n->op, a, b, c);
}

static LVal operand(Distribution *d, LVal v) {
    const LInst *n = lp_inst(d->p, v);
    if (n->kind == LI_ARG)
        return n->ref == LARG_TASK ? lp_task(d->q) : lp_arg(d->q, (LArg)n->ref);
    if (n->kind == LI_CONST)
        return n->type == LT_I64    ? lp_const_i(d->q, n->i)
               : n->type == LT_BOOL ? lp_const_b(d->q, n->i)
                                    : lp_const_f(d->q, n->type, n->f);
    if (!d->lane || !d->varying[v] || d->made_in[v] == d->current)
        return d->map[v];
    d->made_in[v] = d->current;
    if (d->lane_array[v])
        return d->map[v] = lp_load(d->q, d->lane_array[v], d->lane);
    return d->map[v] = copy_op(d, v); /* remade */
}

static void copy_inst(Distribution *d, int i) {
    const LInst *n = inst(d, i);
    LoopProgram *q = d->q;
    switch (n->kind) {
    case LI_CONST:
    case LI_ARG:
        break;
    case LI_OP:
        d->map[i + 1] = copy_op(d, i + 1);
        break;
    case LI_LOAD:
        d->map[i + 1] = lp_load(q, n->ref, operand(d, n->a));
        break;
    case LI_STORE: {
        LVal at = operand(d, n->a), v = operand(d, n->b);
        lp_store(q, n->ref, at, v);
        break;
    }
    case LI_LOOP: {
        LVal lo = operand(d, n->a), hi = operand(d, n->b);
        d->map[i + 1] = lp_loop(q, (LoopKind)n->op, lo, hi);
        break;
    }
    case LI_IF:
        lp_if(q, operand(d, n->a));
        break;
    case LI_ELSE:
        lp_else(q);
        break;
    case LI_END:
        lp_end(q);
        break;
    case LI_VAR:
        d->var[n->ref] = lp_var(q, d->p->vars.at[n->ref].type, operand(d, n->a));
        break;
    case LI_GET:
        d->map[i + 1] = lp_get(q, d->var[n->ref]);
        break;
    case LI_SET:
        lp_set(q, d->var[n->ref], operand(d, n->a));
        break;
    case LI_FAULT: {
        LVal where = operand(d, n->a), value = operand(d, n->b);
        lp_fault(q, n->text, where, value);
        break;
    }
    }
}

/* ---- may this loop be turned? ---- */

static bool bounds_a_loop(const LInst *n, const Distribution *d) {
    return n->kind == LI_LOOP || (n->kind == LI_END && d->p->insts.at[n->ref].kind == LI_LOOP);
}

static bool stored_in_body(const Distribution *d, int buffer) {
    for (int i = d->at + 1; i < d->end; i++)
        if (inst(d, i)->kind == LI_STORE && inst(d, i)->ref == buffer)
            return true;
    return false;
}

/* Fills varying and section; false if the structure forbids. */
static bool examine(Distribution *d) {
    int section = 0, ifs = 0;
    d->varying[d->at + 1] = true;
    for (int i = d->at + 1; i < d->end; i++) {
        const LInst *n = inst(d, i);
        section += bounds_a_loop(n, d);
        d->section[i + 1] = section;
        d->varying[i + 1] =
            n->kind == LI_GET || varies(d, n->a) || varies(d, n->b) || varies(d, n->c);
        if (n->kind == LI_LOAD)
            d->varying[i + 1] |= ifs > 0 || stored_in_body(d, n->ref);
        if (n->kind == LI_LOOP &&
            (n->op == LOOP_VECTOR || ifs || varies(d, n->a) || varies(d, n->b)))
            return false;
        if (n->kind == LI_STORE && LB_IS_LOCAL(n->ref))
            return false;
        if (n->kind == LI_IF)
            ifs++;
        if (n->kind == LI_END && !bounds_a_loop(n, d))
            ifs--;
        if (n->kind == LI_VAR)
            d->lane_var[n->ref] = 1;
    }
    return true;
}

/* Marks the values that live across sections. False for one that reads a variable of outside: its
 * order would change. */
static bool find_kept(Distribution *d) {
    for (int i = d->at + 1; i < d->end; i++) {
        const LInst *n = inst(d, i);
        const LVal in[] = {n->a, n->b, n->c};
        for (int k = 0; k < 3; k++) {
            LVal v = in[k];
            if (!varies(d, v) || v <= d->at + 1 || d->section[v] == d->section[i + 1] ||
                remade(d, v))
                continue;
            if (lp_inst(d->p, v)->kind == LI_GET && !d->lane_var[lp_inst(d->p, v)->ref])
                return false;
            d->lane_array[v] = 1;
        }
    }
    return true;
}

static int64_t bytes_of(LType t) {
    return t == LT_BOOL ? 1 : t == LT_F32 ? 4 : 8;
}

/* Iterations per block: all of few; a divisor of a known number; else as many as the stack allows.
 * 0: not even few. */
static int64_t choose_lanes(const Distribution *d, bool *whole) {
    int64_t lo, hi, used = 0, each = 0, most = MOST_LANES;
    for (int i = 0; i < d->q->locals.n; i++)
        used += d->q->locals.at[i].count * bytes_of(d->q->locals.at[i].type);
    for (int i = d->at + 1; i < d->end; i++) {
        const LInst *n = inst(d, i);
        if (n->kind == LI_VAR)
            each += bytes_of(d->p->vars.at[n->ref].type);
        if (d->lane_array[i + 1])
            each += bytes_of(n->type);
    }
    while (most >= LEAST_LANES && used + most * each > LOCAL_BYTES)
        most /= 2;
    *whole = false;
    if (most < LEAST_LANES)
        return 0;
    if (!lp_is_const_i(d->p, inst(d, d->at)->a, &lo) ||
        !lp_is_const_i(d->p, inst(d, d->at)->b, &hi))
        return most;
    *whole = true;
    if (hi - lo <= most)
        return hi > lo ? hi - lo : 1;
    for (int64_t w = most; w >= 64; w -= 16)
        if ((hi - lo) % w == 0)
            return w;
    *whole = false;
    return most;
}

/* ---- turning it ---- */

static void emit_lane_inst(Distribution *d, int i) {
    const LInst *n = inst(d, i);
    LoopProgram *q = d->q;
    int array =
        n->kind == LI_VAR || n->kind == LI_GET || n->kind == LI_SET ? d->lane_var[n->ref] : 0;
    if (n->type != LT_NONE && !d->varying[i + 1])
        return; /* done before the lanes */
    if (array && n->kind == LI_GET)
        d->map[i + 1] = lp_load(q, array, d->lane);
    else if (array)
        lp_store(q, array, d->lane, operand(d, n->a));
    else
        copy_inst(d, i);
    if (n->type == LT_NONE)
        return;
    d->made_in[i + 1] = d->current;
    if (d->lane_array[i + 1])
        lp_store(q, d->lane_array[i + 1], d->lane, d->map[i + 1]);
}

/* Instructions from .. to, one straight section. */
static void emit_section(Distribution *d, int from, int to) {
    bool any = false;
    for (int i = from; i < to; i++) {
        const LInst *n = inst(d, i);
        if (n->kind == LI_CONST || n->kind == LI_ARG)
            continue;
        if (n->type != LT_NONE && !d->varying[i + 1])
            copy_inst(d, i);
        else
            any = true;
    }
    if (!any)
        return;
    d->lane = lp_loop(d->q, LOOP_VECTOR, lp_const_i(d->q, 0), d->lanes);
    d->map[d->at + 1] = lp_2(d->q, L_ADD, d->first, d->lane);
    d->current = d->section[from + 1];
    d->made_in[d->at + 1] = d->current;
    for (int i = from; i < to; i++)
        emit_lane_inst(d, i);
    lp_end(d->q);
    d->lane = 0;
}

static void emit_body(Distribution *d) {
    int from = d->at + 1;
    for (int i = from; i <= d->end; i++) {
        if (i < d->end && !bounds_a_loop(inst(d, i), d))
            continue;
        if (i > from)
            emit_section(d, from, i);
        if (i < d->end)
            copy_inst(d, i);
        from = i + 1;
    }
}

static void make_arrays(Distribution *d, int64_t lanes) {
    for (int i = d->at + 1; i < d->end; i++) {
        const LInst *n = inst(d, i);
        if (n->kind == LI_VAR)
            d->lane_var[n->ref] = lp_local(d->q, d->p->vars.at[n->ref].type, lanes);
        if (d->lane_array[i + 1])
            d->lane_array[i + 1] = lp_local(d->q, n->type, lanes);
    }
}

/* Turns the loop at d->at; false if it must stay as it is. */
static bool turn(Distribution *d) {
    LoopProgram *q = d->q;
    d->end = inst(d, d->at)->ref;
    size_t n = (size_t)d->p->insts.n + 1;
    memset(d->varying, 0, n * sizeof *d->varying);
    memset(d->lane_array, 0, n * sizeof *d->lane_array);
    memset(d->made_in, -1, n * sizeof *d->made_in);
    memset(d->lane_var, 0, ((size_t)d->p->vars.n + 1) * sizeof *d->lane_var);
    bool whole;
    if (!examine(d) || !find_kept(d))
        return false;
    int64_t w = choose_lanes(d, &whole);
    if (!w)
        return false;
    make_arrays(d, w);
    LVal lo = operand(d, inst(d, d->at)->a), hi = operand(d, inst(d, d->at)->b),
         lanes = lp_const_i(q, w);
    LVal blocks = lp_2(q, L_ADD, lp_2(q, L_SUB, hi, lo), lp_const_i(q, w - 1));
    LVal b = lp_loop(q, LOOP_SEQ, lp_const_i(q, 0), lp_2(q, L_DIV, blocks, lanes));
    d->first = lp_2(q, L_ADD, lo, lp_2(q, L_MUL, b, lanes));
    d->lanes = whole ? lanes : lp_2(q, L_MIN, lanes, lp_2(q, L_SUB, hi, d->first));
    emit_body(d);
    lp_end(q);
    return true;
}

static bool has_outer_vector_loop(const LoopProgram *p) {
    for (int i = 0; i < p->insts.n; i++)
        if (p->insts.at[i].kind == LI_LOOP && p->insts.at[i].op == LOOP_VECTOR &&
            !p->insts.at[i].innermost)
            return true;
    return false;
}

LoopProgram *loop_distribute(const LoopProgram *p) {
    if (!has_outer_vector_loop(p))
        return NULL;
    size_t n = (size_t)p->insts.n + 1, v = (size_t)p->vars.n + 1;
    Distribution d = {.p = p, .q = loop_program_new(p->kind, p->name)};
    d.map = xcalloc(n, sizeof *d.map), d.varying = xcalloc(n, sizeof *d.varying);
    d.section = xcalloc(n, sizeof *d.section), d.lane_array = xcalloc(n, sizeof *d.lane_array);
    d.made_in = xcalloc(n, sizeof *d.made_in);
    d.var = xcalloc(v, sizeof *d.var), d.lane_var = xcalloc(v, sizeof *d.lane_var);
    for (int i = 0; i < p->buffers.n; i++)
        lp_buffer(d.q, p->buffers.at[i]);
    for (int i = 0; i < p->locals.n; i++)
        lp_local(d.q, p->locals.at[i].type, p->locals.at[i].count);
    for (int i = 0; i < p->insts.n; i++) {
        const LInst *l = inst(&d, i);
        d.at = i;
        if (l->kind == LI_LOOP && l->op == LOOP_VECTOR && !l->innermost && turn(&d))
            i = l->ref;
        else
            copy_inst(&d, i);
    }
    free(d.map);
    free(d.varying);
    free(d.section);
    free(d.lane_array);
    free(d.made_in);
    free(d.var);
    free(d.lane_var);
    return d.q;
}
