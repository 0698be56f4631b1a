/* loop.c: building LoopPrograms.
 *
 * Every call appends to the program's flat list, after checking types, buffer numbers and that the
 * operands' scopes are still open; a violation is a bug of the lowering that called. Pure
 * operations are folded (loop_fold.c) and numbered: an operation equal to one whose scope is still
 * open is that value. */
#include "codegen/loop_program.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LOCAL_BYTES 65536

const char *const loop_op_names[L_COUNT] = {
#define X(N, t, k) t,
    LOOP_OPS(X)
#undef X
};
static const int op_arity[L_COUNT] = {
#define X(N, t, k) k,
    LOOP_OPS(X)
#undef X
};

const char *loop_type_name(LType t) {
    static const char *const names[] = {"none", "f32", "f64", "i64", "bool"};
    return names[t];
}

LType loop_storage_type(DType t) {
    switch (t) {
    case DT_F32:
    case DT_F16:
    case DT_BF16:
        return LT_F32;
    case DT_F64:
        return LT_F64;
    case DT_BOOL:
        return LT_BOOL;
    case DT_NONE:
    case DT_COUNT:
        bug("a buffer needs a storage type");
    default:
        return LT_I64;
    }
}

static void open_scope(LoopProgram *p) {
    vec_push(&p->scope_open, true);
    vec_push(&p->scopes, p->scope_open.n - 1);
}

static void close_scope(LoopProgram *p) {
    p->scope_open.at[p->scopes.at[--p->scopes.n]] = false;
}

LoopProgram *loop_program_new(ProgramKind kind, const char *name) {
    LoopProgram *p = xcalloc(1, sizeof *p);
    size_t n = strlen(name ? name : "") + 1;
    p->kind = kind;
    p->name = xcalloc(n, 1);
    memcpy(p->name, name ? name : "", n);
    open_scope(p);
    return p;
}

void loop_program_free(LoopProgram *p) {
    if (!p)
        return;
    vec_free(&p->insts);
    vec_free(&p->buffers);
    vec_free(&p->locals);
    vec_free(&p->vars);
    vec_free(&p->scope_open);
    vec_free(&p->open);
    vec_free(&p->scopes);
    free(p->table);
    free(p->name);
    free(p);
}

static LVal push(LoopProgram *p, LInst inst) {
    inst.scope = p->scopes.at[p->scopes.n - 1];
    vec_push(&p->insts, inst);
    return p->insts.n;
}

/* Checks that v is a value usable here, and gives its type. */
static LType use(const LoopProgram *p, LVal v) {
    if (v <= 0 || v > p->insts.n || lp_inst(p, v)->type == LT_NONE)
        bug("%s: %d is not a value", p->name, v);
    const LInst *n = lp_inst(p, v);
    if (n->kind != LI_CONST && n->kind != LI_ARG && !p->scope_open.at[n->scope])
        bug("%s: value %d (%s) used outside the scope it was made in", p->name, v,
            n->kind == LI_OP ? loop_op_names[n->op] : "load, get or index");
    return n->type;
}

static void want(const LoopProgram *p, LVal v, LType t, const char *what) {
    LType found = use(p, v);
    if (found != t)
        bug("%s: %s must be %s, not %s", p->name, what, loop_type_name(t), loop_type_name(found));
}

/* ---- value numbering ---- */

static uint64_t key_of(const LInst *n) {
    uint64_t bits = 0;
    memcpy(&bits, &n->f, sizeof bits);
    int64_t key[7] = {n->kind, n->type, n->op, n->a, n->b, n->c, n->i};
    return hash_bytes(key, sizeof key, bits);
}

static bool same_inst(const LInst *x, const LInst *y) {
    return x->kind == y->kind && x->type == y->type && x->op == y->op && x->a == y->a &&
           x->b == y->b && x->c == y->c && x->i == y->i && memcmp(&x->f, &y->f, sizeof x->f) == 0;
}

static void table_grow(LoopProgram *p) {
    int *old = p->table, old_cap = p->table_cap;
    p->table_cap = old_cap ? 2 * old_cap : 64;
    p->table = xcalloc((size_t)p->table_cap, sizeof(int));
    for (int i = 0; i < old_cap; i++) {
        if (!old[i])
            continue;
        unsigned h = (unsigned)key_of(lp_inst(p, old[i])) & (unsigned)(p->table_cap - 1);
        while (p->table[h])
            h = (h + 1) & (unsigned)(p->table_cap - 1);
        p->table[h] = old[i];
    }
    free(old);
}

/* The open value equal to `inst`, or a new one. */
static LVal number(LoopProgram *p, LInst inst) {
    if (2 * p->table_used >= p->table_cap)
        table_grow(p);
    unsigned mask = (unsigned)(p->table_cap - 1), h = (unsigned)key_of(&inst) & mask;
    for (; p->table[h]; h = (h + 1) & mask) {
        const LInst *n = lp_inst(p, p->table[h]);
        if (!same_inst(n, &inst))
            continue;
        if (n->kind != LI_CONST && !p->scope_open.at[n->scope])
            return p->table[h] = push(p, inst); /* the old one is out of reach for good */
        return p->table[h];
    }
    p->table_used++;
    return p->table[h] = push(p, inst);
}

/* ---- values ---- */

static LVal arg(LoopProgram *p, int which, ProgramKind kind) {
    if (p->kind != kind)
        bug("%s: argument of the other kind of program", p->name);
    if (!p->args[which])
        p->args[which] = push(p, (LInst){.kind = LI_ARG, .type = LT_I64, .ref = which});
    return p->args[which];
}

LVal lp_task(LoopProgram *p) {
    return arg(p, LARG_TASK, PROGRAM_TASK);
}

LVal lp_arg(LoopProgram *p, LArg a) {
    return arg(p, (int)a, PROGRAM_EPILOGUE);
}

int lp_tile(LoopProgram *p) {
    if (p->kind != PROGRAM_EPILOGUE)
        bug("%s: only an epilogue has a tile", p->name);
    return LB_TILE;
}

int lp_buffer(LoopProgram *p, DType storage) {
    loop_storage_type(storage);
    vec_push(&p->buffers, storage);
    return p->buffers.n - 1;
}

int lp_local(LoopProgram *p, LType t, int64_t count) {
    ASSERT(t != LT_NONE && count > 0);
    vec_push(&p->locals, ((LLocal){t, count}));
    int64_t bytes = 0;
    for (int i = 0; i < p->locals.n; i++) {
        LType l = p->locals.at[i].type;
        bytes += p->locals.at[i].count * (l == LT_BOOL ? 1 : l == LT_F32 ? 4 : 8);
    }
    if (bytes > MAX_LOCAL_BYTES)
        bug("%s: %lld bytes of local arrays", p->name, (long long)bytes);
    return LB_LOCAL(p->locals.n - 1);
}

LVal lp_const_f(LoopProgram *p, LType t, double v) {
    ASSERT(t == LT_F32 || t == LT_F64);
    return number(p, (LInst){.kind = LI_CONST, .type = t, .f = t == LT_F32 ? (double)(float)v : v});
}

LVal lp_const_i(LoopProgram *p, int64_t v) {
    return number(p, (LInst){.kind = LI_CONST, .type = LT_I64, .i = v});
}

LVal lp_const_b(LoopProgram *p, bool v) {
    return number(p, (LInst){.kind = LI_CONST, .type = LT_BOOL, .i = v});
}

/* The result type, after checking the operands' types. */
static LType op_type(const LoopProgram *p, LOp op, LType a, LType b, LType c) {
    bool same = (op_arity[op] < 2 || a == b), number_ = a == LT_F32 || a == LT_F64 || a == LT_I64;
    bool real = a == LT_F32 || a == LT_F64, logic = a == LT_BOOL || a == LT_I64;
    switch (op) {
    case L_FMA:
        if (same && b == c && number_)
            return a;
        break;
    case L_FLOOR:
    case L_CEIL:
    case L_ROUND:
    case L_SQRT:
    case L_EXP:
    case L_LOG:
    case L_TANH:
    case L_ERF:
    case L_SIN:
    case L_COS:
        if (real)
            return a;
        break;
    case L_LT:
    case L_LE:
    case L_EQ:
    case L_NE:
        if (same)
            return LT_BOOL;
        break;
    case L_AND:
    case L_OR:
    case L_XOR:
        if (same && logic)
            return a;
        break;
    case L_NOT:
        if (a == LT_BOOL)
            return a;
        break;
    case L_SELECT:
        if (a == LT_BOOL && b == c)
            return b;
        break;
    case L_TO_F32:
        return LT_F32;
    case L_TO_F64:
        return LT_F64;
    case L_TO_I64:
        return LT_I64;
    case L_TO_BOOL:
        return LT_BOOL;
    default:
        if (same && number_)
            return a;
    }
    bug("%s: %s of %s, %s, %s", p->name, loop_op_names[op], loop_type_name(a), loop_type_name(b),
        loop_type_name(c));
}

LVal lp_op(LoopProgram *p, LOp op, LVal a, LVal b, LVal c) {
    int k = op_arity[op];
    LType ta = use(p, a), tb = k > 1 ? use(p, b) : LT_NONE, tc = k > 2 ? use(p, c) : LT_NONE;
    LType t = op_type(p, op, ta, tb, tc);
    b = k > 1 ? b : 0, c = k > 2 ? c : 0;
    LVal folded = loop_fold(p, op, a, b, c);
    if (folded)
        return folded;
    return number(p, (LInst){.kind = LI_OP, .type = t, .op = (int)op, .a = a, .b = b, .c = c});
}

static LType buffer_type(const LoopProgram *p, int buffer) {
    if (buffer >= 0 && buffer < p->buffers.n)
        return loop_storage_type(p->buffers.at[buffer]);
    if (LB_IS_LOCAL(buffer) && LB_LOCAL_INDEX(buffer) < p->locals.n)
        return p->locals.at[LB_LOCAL_INDEX(buffer)].type;
    if (buffer == LB_TILE && p->kind == PROGRAM_EPILOGUE)
        return LT_F32;
    bug("%s: no buffer %d", p->name, buffer);
}

LVal lp_load(LoopProgram *p, int buffer, LVal index) {
    want(p, index, LT_I64, "an index");
    return push(
        p, (LInst){.kind = LI_LOAD, .type = buffer_type(p, buffer), .ref = buffer, .a = index});
}

void lp_store(LoopProgram *p, int buffer, LVal index, LVal v) {
    want(p, index, LT_I64, "an index");
    want(p, v, buffer_type(p, buffer), "what is stored");
    push(p, (LInst){.kind = LI_STORE, .ref = buffer, .a = index, .b = v});
}

LType lp_type(const LoopProgram *p, LVal v) {
    return v > 0 && v <= p->insts.n ? lp_inst(p, v)->type : LT_NONE;
}

bool lp_is_const_i(const LoopProgram *p, LVal v, int64_t *out) {
    if (v <= 0 || lp_inst(p, v)->kind != LI_CONST || lp_inst(p, v)->type != LT_I64)
        return false;
    if (out)
        *out = lp_inst(p, v)->i;
    return true;
}

/* ---- structure ---- */

LVal lp_loop(LoopProgram *p, LoopKind kind, LVal lo, LVal hi) {
    want(p, lo, LT_I64, "a loop's start");
    want(p, hi, LT_I64, "a loop's end");
    open_scope(p); /* the index belongs to the body */
    LVal v = push(
        p,
        (LInst){
            .kind = LI_LOOP, .type = LT_I64, .op = (int)kind, .a = lo, .b = hi, .innermost = true});
    vec_push(&p->open, v - 1);
    return v;
}

void lp_if(LoopProgram *p, LVal cond) {
    want(p, cond, LT_BOOL, "a condition");
    LVal v = push(p, (LInst){.kind = LI_IF, .a = cond});
    vec_push(&p->open, v - 1);
    open_scope(p);
}

void lp_else(LoopProgram *p) {
    if (!p->open.n || p->insts.at[p->open.at[p->open.n - 1]].kind != LI_IF)
        bug("%s: else without if", p->name);
    close_scope(p);
    LVal v = push(p, (LInst){.kind = LI_ELSE, .ref = p->open.at[p->open.n - 1]});
    p->open.at[p->open.n - 1] = v - 1;
    open_scope(p);
}

void lp_end(LoopProgram *p) {
    if (!p->open.n)
        bug("%s: end without loop or if", p->name);
    int at = p->open.at[--p->open.n];
    close_scope(p);
    if (p->insts.at[at].kind == LI_ELSE)
        at = p->insts.at[at].ref;
    LVal v = push(p, (LInst){.kind = LI_END, .ref = at});
    p->insts.at[at].ref = v - 1;
    if (p->insts.at[at].kind != LI_LOOP)
        return;
    for (int i = 0; i < p->open.n; i++)
        if (p->insts.at[p->open.at[i]].kind == LI_LOOP)
            p->insts.at[p->open.at[i]].innermost = false;
}

int lp_var(LoopProgram *p, LType t, LVal init) {
    want(p, init, t, "a variable's start");
    vec_push(&p->vars, ((LVar){t, p->scopes.at[p->scopes.n - 1]}));
    push(p, (LInst){.kind = LI_VAR, .ref = p->vars.n - 1, .a = init});
    return p->vars.n - 1;
}

static LType var_type(const LoopProgram *p, int var) {
    if (var < 0 || var >= p->vars.n || !p->scope_open.at[p->vars.at[var].scope])
        bug("%s: variable %d is not in scope", p->name, var);
    return p->vars.at[var].type;
}

LVal lp_get(LoopProgram *p, int var) {
    return push(p, (LInst){.kind = LI_GET, .type = var_type(p, var), .ref = var});
}

void lp_set(LoopProgram *p, int var, LVal v) {
    want(p, v, var_type(p, var), "a variable's value");
    push(p, (LInst){.kind = LI_SET, .ref = var, .a = v});
}

void lp_fault(LoopProgram *p, const char *what, LVal where, LVal value) {
    want(p, where, LT_I64, "a fault's position");
    want(p, value, LT_I64, "a fault's value");
    push(p, (LInst){.kind = LI_FAULT, .text = what, .a = where, .b = value});
}
