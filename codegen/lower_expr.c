/* lower_expr.c: the expressions of lower.h: a hash-consed DAG with bounds of integers, folded as it
 * is built, and emitted at the outermost loop that allows it. */
#include "codegen/loop_program.h"
#include "codegen/lower.h"

#include <stdlib.h>
#include <string.h>

__extension__ typedef __int128 Wide;

ExNode *ex_node(Kern *K, Ex e) {
    ASSERT(e > 0 && e < K->ex.n);
    return &K->ex.at[e];
}

/* ---- making nodes ---- */

static uint64_t ex_hash(const ExNode *n) {
    uint64_t bits;
    memcpy(&bits, &n->f, sizeof bits);
    int64_t key[8] = {n->kind, n->op, n->t, n->a, n->b, n->c, n->buffer, n->i};
    return hash_bytes(key, sizeof key, bits);
}

static bool ex_same(const ExNode *x, const ExNode *y) {
    return x->kind == y->kind && x->op == y->op && x->t == y->t && x->a == y->a && x->b == y->b &&
           x->c == y->c && x->buffer == y->buffer && x->i == y->i &&
           memcmp(&x->f, &y->f, sizeof x->f) == 0 && x->what == y->what;
}

static void ex_rehash(Kern *K) {
    free(K->buckets);
    K->nbuckets = K->nbuckets ? 4 * K->nbuckets : 256;
    K->buckets = xcalloc((size_t)K->nbuckets, sizeof(Ex));
    for (Ex e = 1; e < K->ex.n; e++) {
        ExNode *n = &K->ex.at[e];
        if (n->kind == EX_LEAF)
            continue;
        Ex *b = &K->buckets[ex_hash(n) & (uint64_t)(K->nbuckets - 1)];
        n->chain = *b;
        *b = e;
    }
}

static int depth_of(Kern *K, Ex a, Ex b, Ex c) {
    int d = a ? K->ex.at[a].depth : 0;
    if (b && K->ex.at[b].depth > d)
        d = K->ex.at[b].depth;
    if (c && K->ex.at[c].depth > d)
        d = K->ex.at[c].depth;
    return d;
}

static Ex ex_make(Kern *K, ExNode n) {
    if (!K->ex.n)
        vec_push(&K->ex, ((ExNode){0})); /* 0 is none */
    if (K->ex.n >= 2 * K->nbuckets)
        ex_rehash(K);
    Ex *bucket = &K->buckets[ex_hash(&n) & (uint64_t)(K->nbuckets - 1)];
    for (Ex e = *bucket; e; e = K->ex.at[e].chain)
        if (ex_same(&K->ex.at[e], &n))
            return e;
    n.depth = depth_of(K, n.a, n.b, n.c);
    n.chain = *bucket;
    vec_push(&K->ex, n);
    return *bucket = K->ex.n - 1;
}

Ex ex_i(Kern *K, int64_t v) {
    return ex_make(K, (ExNode){.kind = EX_CONST, .t = LT_I64, .i = v, .lo = v, .hi = v});
}

Ex ex_b(Kern *K, bool v) {
    return ex_make(K, (ExNode){.kind = EX_CONST, .t = LT_BOOL, .i = v});
}

Ex ex_f(Kern *K, LType t, double v) {
    if (t == LT_F32)
        v = (double)(float)v;
    return ex_make(K, (ExNode){.kind = EX_CONST, .t = t, .f = v});
}

Ex ex_zero(Kern *K, LType t) {
    return t == LT_I64 ? ex_i(K, 0) : t == LT_BOOL ? ex_b(K, false) : ex_f(K, t, 0);
}

Ex ex_leaf(Kern *K, LType t, int depth, int64_t lo, int64_t hi) {
    if (!K->ex.n)
        vec_push(&K->ex, ((ExNode){0}));
    if (t == LT_I64 && lo == hi)
        return ex_i(K, lo);
    vec_push(&K->ex, ((ExNode){.kind = EX_LEAF, .t = t, .depth = depth, .lo = lo, .hi = hi}));
    return K->ex.n - 1;
}

bool ex_is_i(Kern *K, Ex e, int64_t *v) {
    const ExNode *n = ex_node(K, e);
    if (n->kind != EX_CONST || n->t != LT_I64)
        return false;
    *v = n->i;
    return true;
}

static bool ex_is_b(Kern *K, Ex e, bool *v) {
    const ExNode *n = ex_node(K, e);
    if (n->kind != EX_CONST || n->t != LT_BOOL)
        return false;
    *v = n->i != 0;
    return true;
}

static bool is_op(Kern *K, Ex e, LOp op) {
    const ExNode *n = ex_node(K, e);
    return n->kind == EX_OP && n->op == op;
}

/* ---- folding integers ---- */

/* Bounds that fit, or those of an integer nothing is known of (it may have wrapped). */
static void set_bounds(ExNode *n, Wide lo, Wide hi) {
    bool fits = lo >= INT64_MIN && hi <= INT64_MAX;
    n->lo = fits ? (int64_t)lo : INT64_MIN;
    n->hi = fits ? (int64_t)hi : INT64_MAX;
}

static bool fold_constants(LOp op, int64_t a, int64_t b, int64_t *r) {
    switch (op) {
    case L_ADD:
        return !__builtin_add_overflow(a, b, r);
    case L_SUB:
        return !__builtin_sub_overflow(a, b, r);
    case L_MUL:
        return !__builtin_mul_overflow(a, b, r);
    case L_DIV:
        *r = b ? (b == -1 ? 0 : a / b) : 0;
        return b != -1;
    case L_REM:
        *r = b && b != -1 ? a % b : 0;
        return true;
    case L_MIN:
        *r = a < b ? a : b;
        return true;
    case L_MAX:
        *r = a > b ? a : b;
        return true;
    default:
        return false;
    }
}

enum { MOST_TERMS = 8 };
typedef struct Terms {
    int n;
    Ex at[MOST_TERMS];
} Terms;

static bool sum_terms(Kern *K, Ex e, Terms *t) {
    if (is_op(K, e, L_ADD)) {
        Ex a = ex_node(K, e)->a, b = ex_node(K, e)->b;
        return sum_terms(K, a, t) && sum_terms(K, b, t);
    }
    if (t->n == MOST_TERMS)
        return false;
    t->at[t->n++] = e;
    return true;
}

/* The term is a multiple of c: what it is c times of. */
static bool term_multiple(Kern *K, Ex e, int64_t c, Ex *of) {
    int64_t k;
    if (ex_is_i(K, e, &k)) {
        *of = k % c ? 0 : ex_i(K, k / c);
        return k % c == 0;
    }
    if (!is_op(K, e, L_MUL) || !ex_is_i(K, ex_node(K, e)->b, &k) || k % c)
        return false;
    *of = ex_mulc(K, ex_node(K, e)->a, k / c);
    return true;
}

/* x*c + y with 0 <= y < c: a sum whose terms are multiples of c, or small together. */
static bool is_mixed(Kern *K, Ex e, int64_t c, Ex *x, Ex *y) {
    Terms t = {0};
    Ex high = 0, of, low[MOST_TERMS];
    int64_t lo = 0, hi = 0;
    int nlow = 0;
    if (!is_op(K, e, L_ADD) || !sum_terms(K, e, &t))
        return false;
    for (int i = 0; i < t.n; i++) {
        if (term_multiple(K, t.at[i], c, &of)) {
            high = high ? ex_add(K, high, of) : of;
            continue;
        }
        const ExNode *n = ex_node(K, t.at[i]);
        if (n->lo < -c || n->hi > c)
            return false;
        lo += n->lo, hi += n->hi;
        low[nlow++] = t.at[i];
    }
    if (!high || lo < 0 || hi >= c)
        return false;
    *x = high;
    *y = nlow ? low[0] : ex_i(K, 0);
    for (int i = 1; i < nlow; i++)
        *y = ex_add(K, *y, low[i]);
    return true;
}

static Ex fold_add(Kern *K, Ex a, Ex b) {
    int64_t c, d;
    if (ex_is_i(K, a, &c)) {
        Ex t = a;
        a = b, b = t;
    }
    if (ex_is_i(K, b, &c)) {
        if (c == 0)
            return a;
        if (is_op(K, a, L_ADD) && ex_is_i(K, ex_node(K, a)->b, &d) &&
            !__builtin_add_overflow(c, d, &d))
            return ex_addc(K, ex_node(K, a)->a, d);
        return 0;
    }
    /* (x / c) * c + x % c */
    for (int side = 0; side < 2; side++) {
        Ex m = side ? b : a, r = side ? a : b;
        if (!is_op(K, m, L_MUL) || !is_op(K, r, L_REM) || !ex_is_i(K, ex_node(K, m)->b, &c))
            continue;
        Ex q = ex_node(K, m)->a, x = ex_node(K, r)->a;
        if (is_op(K, q, L_DIV) && ex_node(K, q)->a == x && ex_is_i(K, ex_node(K, q)->b, &d) &&
            d == c && ex_is_i(K, ex_node(K, r)->b, &d) && d == c)
            return x;
    }
    /* constants outwards: (x + c) + y = (x + y) + c */
    if (is_op(K, a, L_ADD) && ex_is_i(K, ex_node(K, a)->b, &c))
        return ex_addc(K, ex_add(K, ex_node(K, a)->a, b), c);
    if (is_op(K, b, L_ADD) && ex_is_i(K, ex_node(K, b)->b, &c))
        return ex_addc(K, ex_add(K, a, ex_node(K, b)->a), c);
    return 0;
}

static Ex fold_mul(Kern *K, Ex a, Ex b) {
    int64_t c, d;
    if (ex_is_i(K, a, &c)) {
        Ex t = a;
        a = b, b = t;
    }
    if (!ex_is_i(K, b, &c))
        return 0;
    if (c == 1)
        return a;
    if (c == 0)
        return b;
    if (is_op(K, a, L_MUL) && ex_is_i(K, ex_node(K, a)->b, &d) && !__builtin_mul_overflow(c, d, &d))
        return ex_mulc(K, ex_node(K, a)->a, d);
    return 0;
}

static Ex fold_div(Kern *K, Ex a, Ex b) {
    int64_t c, d;
    Ex x, y;
    if (!ex_is_i(K, b, &c) || c <= 0)
        return 0;
    const ExNode n = *ex_node(K, a);
    if (c == 1)
        return a;
    if (n.lo >= 0 && n.hi < c)
        return ex_i(K, 0);
    if (n.lo < 0)
        return 0;
    if (is_mixed(K, a, c, &x, &y))
        return x;
    if (is_op(K, a, L_MUL) && ex_is_i(K, n.b, &d) && d % c == 0)
        return ex_mulc(K, n.a, d / c);
    if (is_op(K, a, L_DIV) && ex_is_i(K, n.b, &d) && d > 0 && !__builtin_mul_overflow(c, d, &d))
        return ex_2(K, L_DIV, n.a, ex_i(K, d));
    return 0;
}

static Ex fold_rem(Kern *K, Ex a, Ex b) {
    int64_t c, d;
    Ex x, y;
    if (!ex_is_i(K, b, &c) || c <= 0)
        return 0;
    const ExNode n = *ex_node(K, a);
    if (c == 1)
        return ex_i(K, 0);
    if (n.lo < 0)
        return 0;
    if (n.hi < c)
        return a;
    if (is_mixed(K, a, c, &x, &y))
        return y;
    if (is_op(K, a, L_MUL) && ex_is_i(K, n.b, &d) && d % c == 0)
        return ex_i(K, 0);
    return 0;
}

static Ex fold_compare(Kern *K, LOp op, Ex a, Ex b) {
    const ExNode *x = ex_node(K, a), *y = ex_node(K, b);
    if (x->t != LT_I64)
        return 0;
    bool same = a == b, apart = x->hi < y->lo || y->hi < x->lo;
    switch (op) {
    case L_LT:
        if (x->hi < y->lo)
            return ex_b(K, true);
        return x->lo >= y->hi || same ? ex_b(K, false) : 0;
    case L_LE:
        if (x->hi <= y->lo || same)
            return ex_b(K, true);
        return x->lo > y->hi ? ex_b(K, false) : 0;
    case L_EQ:
        return same ? ex_b(K, true) : apart ? ex_b(K, false) : 0;
    case L_NE:
        return same ? ex_b(K, false) : apart ? ex_b(K, true) : 0;
    default:
        return 0;
    }
}

static Ex fold_logic(Kern *K, LOp op, Ex a, Ex b) {
    bool v;
    if (ex_node(K, a)->t != LT_BOOL)
        return 0;
    if (op == L_NOT)
        return ex_is_b(K, a, &v) ? ex_b(K, !v) : 0;
    if (a == b && op != L_XOR)
        return a;
    for (int side = 0; side < 2; side++) {
        if (!ex_is_b(K, side ? b : a, &v))
            continue;
        Ex other = side ? a : b;
        if (op == L_AND)
            return v ? other : ex_b(K, false);
        if (op == L_OR)
            return v ? ex_b(K, true) : other;
        return v ? ex_1(K, L_NOT, other) : other;
    }
    return 0;
}

static Ex fold(Kern *K, LOp op, Ex a, Ex b) {
    int64_t x, y, r;
    if (b && ex_is_i(K, a, &x) && ex_is_i(K, b, &y) && fold_constants(op, x, y, &r))
        return ex_i(K, r);
    bool integer = ex_node(K, a)->t == LT_I64;
    switch (op) {
    case L_ADD:
        return integer ? fold_add(K, a, b) : 0;
    case L_SUB:
        if (integer && ex_is_i(K, b, &y) && y != INT64_MIN)
            return ex_addc(K, a, -y);
        return integer && a == b ? ex_i(K, 0) : 0;
    case L_MUL:
        return integer ? fold_mul(K, a, b) : 0;
    case L_DIV:
        return integer ? fold_div(K, a, b) : 0;
    case L_REM:
        return integer ? fold_rem(K, a, b) : 0;
    case L_MIN:
    case L_MAX: {
        const ExNode *p = ex_node(K, a), *q = ex_node(K, b);
        if (!integer)
            return a == b ? a : 0;
        if (p->hi <= q->lo)
            return op == L_MIN ? a : b;
        return q->hi <= p->lo ? (op == L_MIN ? b : a) : 0;
    }
    case L_LT:
    case L_LE:
    case L_EQ:
    case L_NE:
        return fold_compare(K, op, a, b);
    case L_AND:
    case L_OR:
    case L_XOR:
    case L_NOT:
        return fold_logic(K, op, a, b);
    default:
        return 0;
    }
}

static void mul_bounds(ExNode *n, const ExNode *a, const ExNode *b) {
    Wide p[4] = {(Wide)a->lo * b->lo, (Wide)a->lo * b->hi, (Wide)a->hi * b->lo,
                 (Wide)a->hi * b->hi};
    Wide lo = p[0], hi = p[0];
    for (int i = 1; i < 4; i++) {
        lo = p[i] < lo ? p[i] : lo;
        hi = p[i] > hi ? p[i] : hi;
    }
    set_bounds(n, lo, hi);
}

/* Bounds of an integer operation from its operands'. */
static void bounds(Kern *K, ExNode *n) {
    n->lo = INT64_MIN, n->hi = INT64_MAX;
    const ExNode *a = &K->ex.at[n->a], *b = &K->ex.at[n->b], *c = &K->ex.at[n->c];
    switch (n->op) {
    case L_ADD:
        set_bounds(n, (Wide)a->lo + b->lo, (Wide)a->hi + b->hi);
        break;
    case L_SUB:
        set_bounds(n, (Wide)a->lo - b->hi, (Wide)a->hi - b->lo);
        break;
    case L_MUL:
        mul_bounds(n, a, b);
        break;
    case L_DIV:
        if (b->lo > 0 && a->lo >= 0)
            n->lo = a->lo / b->hi, n->hi = a->hi / b->lo;
        break;
    case L_REM:
        if (b->lo > 0 && a->lo >= 0)
            n->lo = 0, n->hi = a->hi < b->hi - 1 ? a->hi : b->hi - 1;
        break;
    case L_MIN:
        n->lo = a->lo < b->lo ? a->lo : b->lo, n->hi = a->hi < b->hi ? a->hi : b->hi;
        break;
    case L_MAX:
        n->lo = a->lo > b->lo ? a->lo : b->lo, n->hi = a->hi > b->hi ? a->hi : b->hi;
        break;
    case L_SELECT:
        n->lo = b->lo < c->lo ? b->lo : c->lo, n->hi = b->hi > c->hi ? b->hi : c->hi;
        break;
    default:
        break;
    }
}

static LType result_type(Kern *K, LOp op, Ex a, Ex b) {
    switch (op) {
    case L_LT:
    case L_LE:
    case L_EQ:
    case L_NE:
    case L_NOT:
    case L_TO_BOOL:
        return LT_BOOL;
    case L_TO_F32:
        return LT_F32;
    case L_TO_F64:
        return LT_F64;
    case L_TO_I64:
        return LT_I64;
    case L_SELECT:
        return ex_node(K, b)->t;
    default:
        return ex_node(K, a)->t;
    }
}

Ex ex_op(Kern *K, LOp op, Ex a, Ex b, Ex c) {
    if (op == L_SELECT)
        return ex_select(K, a, b, c);
    Ex folded = fold(K, op, a, b);
    if (folded)
        return folded;
    int64_t v;
    if ((op == L_ADD || op == L_MUL) && ex_is_i(K, a, &v)) { /* constants to the right */
        Ex t = a;
        a = b, b = t;
    }
    ExNode n = {.kind = EX_OP, .op = op, .t = result_type(K, op, a, b), .a = a, .b = b, .c = c};
    if (n.t == LT_I64)
        bounds(K, &n);
    return ex_make(K, n);
}

Ex ex_add(Kern *K, Ex a, Ex b) {
    return ex_2(K, L_ADD, a, b);
}

Ex ex_mul(Kern *K, Ex a, Ex b) {
    return ex_2(K, L_MUL, a, b);
}

Ex ex_addc(Kern *K, Ex a, int64_t c) {
    return c ? ex_2(K, L_ADD, a, ex_i(K, c)) : a;
}

Ex ex_mulc(Kern *K, Ex a, int64_t c) {
    return c == 1 ? a : ex_2(K, L_MUL, a, ex_i(K, c));
}

Ex ex_select(Kern *K, Ex c, Ex x, Ex y) {
    bool v;
    if (x == y)
        return x;
    if (ex_is_b(K, c, &v))
        return v ? x : y;
    ExNode n = {.kind = EX_OP, .op = L_SELECT, .t = ex_node(K, x)->t, .a = c, .b = x, .c = y};
    if (n.t == LT_I64)
        bounds(K, &n);
    return ex_make(K, n);
}

Ex ex_load(Kern *K, int buffer, Ex index) {
    LType t = buffer >= 0           ? loop_storage_type(K->buffers.at[buffer].storage)
              : LB_IS_LOCAL(buffer) ? K->p->locals.at[LB_LOCAL_INDEX(buffer)].type
                                    : LT_F32;
    return ex_make(K, (ExNode){.kind = EX_LOAD,
                               .t = t,
                               .a = index,
                               .buffer = buffer,
                               .lo = INT64_MIN,
                               .hi = INT64_MAX});
}

Ex ex_check(Kern *K, Ex index, int64_t bound, const char *what, bool from_end) {
    const ExNode *n = ex_node(K, index);
    if (n->lo >= 0 && n->hi < bound)
        return index;
    if (from_end && n->hi < 0 && n->lo >= -bound)
        return ex_addc(K, index, bound);
    return ex_make(K, (ExNode){.kind = EX_CHECK,
                               .t = LT_I64,
                               .a = index,
                               .i = bound,
                               .lo = 0,
                               .hi = bound - 1,
                               .what = what,
                               .buffer = from_end});
}

Ex ex_clamp(Kern *K, Ex v, int64_t lo, int64_t hi) {
    return ex_2(K, L_MIN, ex_2(K, L_MAX, v, ex_i(K, lo)), ex_i(K, hi));
}

Ex ex_within(Kern *K, Ex v, int64_t lo, int64_t hi) {
    Ex ge = ex_2(K, L_LE, ex_i(K, lo), v), lt = ex_2(K, L_LT, v, ex_i(K, hi));
    bool b;
    if (!ex_is_b(K, ge, &b))
        vec_push(&K->compares, ge);
    if (!ex_is_b(K, lt, &b))
        vec_push(&K->compares, lt);
    return ex_2(K, L_AND, ge, lt);
}

Ex ex_cast(Kern *K, Ex v, LType to) {
    LType from = ex_node(K, v)->t;
    if (from == to)
        return v;
    const ExNode *n = ex_node(K, v);
    if (n->kind == EX_CONST && (to == LT_F32 || to == LT_F64))
        return ex_f(K, to, from == LT_F32 || from == LT_F64 ? n->f : (double)n->i);
    switch (to) {
    case LT_F32:
        return ex_1(K, L_TO_F32, v);
    case LT_F64:
        return ex_1(K, L_TO_F64, v);
    case LT_I64:
        return ex_1(K, L_TO_I64, v);
    default:
        return ex_1(K, L_TO_BOOL, v);
    }
}

/* ---- emission ---- */

void ex_bind(Kern *K, Ex leaf, LVal v) {
    ExNode *n = ex_node(K, leaf);
    if (n->kind == EX_CONST) /* an index with one possible value */
        return;
    n->lval = v;
    vec_push(&K->log, leaf);
}

static LVal emit_check(Kern *K, const ExNode *n, LVal v) {
    LVal zero = lp_const_i(K->p, 0), bound = lp_const_i(K->p, n->i);
    LVal at = v;
    if (n->buffer)
        at = lp_op(K->p, L_SELECT, lp_2(K->p, L_LT, v, zero), lp_2(K->p, L_ADD, v, bound), v);
    LVal bad = lp_2(K->p, L_OR, lp_2(K->p, L_LT, at, zero), lp_2(K->p, L_LE, bound, at));
    lp_if(K->p, bad);
    lp_fault(K->p, n->what, K->p->kind == PROGRAM_TASK ? lp_task(K->p) : zero, v);
    lp_end(K->p);
    return lp_op(K->p, L_SELECT, bad, zero, at);
}

LVal ex_emit(Kern *K, Ex e) {
    ExNode n = *ex_node(K, e);
    if (n.lval)
        return n.lval;
    if (n.kind == EX_LEAF)
        bug("%s: a loop index is used outside its loop", K->name);
    LVal a = n.a ? ex_emit(K, n.a) : 0, b = n.b ? ex_emit(K, n.b) : 0,
         c = n.c ? ex_emit(K, n.c) : 0, v;
    switch (n.kind) {
    case EX_CONST:
        v = n.t == LT_I64    ? lp_const_i(K->p, n.i)
            : n.t == LT_BOOL ? lp_const_b(K->p, n.i != 0)
                             : lp_const_f(K->p, n.t, n.f);
        break;
    case EX_OP:
        v = lp_op(K->p, n.op, a, b, c);
        break;
    case EX_LOAD:
        v = lp_load(K->p, n.buffer, a);
        break;
    default:
        v = emit_check(K, &n, a);
    }
    ex_node(K, e)->lval = v;
    vec_push(&K->log, e);
    return v;
}

static void hoist(Kern *K, Ex e) {
    ExNode *n = &K->ex.at[e];
    if (!e || n->seen == K->stamp)
        return;
    n->seen = K->stamp;
    if (n->lval || n->kind == EX_LEAF)
        return;
    if (n->depth <= K->depth) {
        ex_emit(K, e);
        return;
    }
    Ex a = n->a, b = n->b, c = n->c;
    hoist(K, a);
    hoist(K, b);
    hoist(K, c);
}

void ex_hoist(Kern *K, const Ex *sinks, int n) {
    K->stamp++;
    for (int i = 0; i < n; i++)
        hoist(K, sinks[i]);
}

static int divisions(Kern *K, Ex e, int depth) {
    ExNode *n = &K->ex.at[e];
    if (!e || n->seen == K->stamp || n->depth < depth)
        return 0;
    n->seen = K->stamp;
    bool is = n->kind == EX_OP && n->t == LT_I64 && (n->op == L_DIV || n->op == L_REM);
    return is + divisions(K, n->a, depth) + divisions(K, n->b, depth) + divisions(K, n->c, depth);
}

int ex_divisions(Kern *K, const Ex *sinks, int n, int depth) {
    int count = 0;
    K->stamp++;
    for (int i = 0; i < n; i++)
        count += divisions(K, sinks[i], depth);
    return count;
}

void kern_loop(Kern *K, LoopKind kind, Ex leaf, LVal lo, LVal hi) {
    LVal v = lp_loop(K->p, kind, lo, hi);
    vec_push(&K->scopes, K->log.n);
    K->depth++;
    if (leaf)
        ex_bind(K, leaf, v);
}

void kern_end(Kern *K) {
    ASSERT(K->scopes.n);
    int mark = K->scopes.at[--K->scopes.n];
    while (K->log.n > mark)
        K->ex.at[K->log.at[--K->log.n]].lval = 0;
    K->depth--;
    lp_end(K->p);
}
