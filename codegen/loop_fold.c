/* loop_fold.c: constant folding and identities of loop operations.
 *
 * What is folded is exact: integers wrap, floats round as the machine would. Identities on floats
 * are only those that hold for every value (x*1, x/1, x-0), never x+0 or x*0. Powers with the
 * exponents people write become products. Index arithmetic is put into the form x*c1 + c2, so that
 * equal indices become equal values. */
#include "codegen/loop_program.h"

#include <math.h>

static bool is_const(const LoopProgram *p, LVal v) {
    return v && lp_inst(p, v)->kind == LI_CONST;
}

static bool is_real(LType t) {
    return t == LT_F32 || t == LT_F64;
}

/* v is a float constant equal to x (of the same sign if zero). */
static bool is_f(const LoopProgram *p, LVal v, double x) {
    const LInst *n = lp_inst(p, v);
    return is_const(p, v) && is_real(n->type) && n->f == x && signbit(n->f) == signbit(x);
}

/* v is an i64 or bool constant equal to x. */
static bool is_i(const LoopProgram *p, LVal v, int64_t x) {
    const LInst *n = lp_inst(p, v);
    return is_const(p, v) && !is_real(n->type) && n->i == x;
}

static int64_t wrap(uint64_t x) {
    return (int64_t)x;
}

static int64_t div_i(int64_t a, int64_t b) {
    return b == 0 ? 0 : b == -1 ? wrap(0 - (uint64_t)a) : a / b;
}

static int64_t rem_i(int64_t a, int64_t b) {
    return b == 0 || b == -1 ? 0 : a % b;
}

static int64_t to_i(double v) {
    return isnan(v) ? 0 : v >= 0x1p63 ? INT64_MAX : v < -0x1p63 ? INT64_MIN : (int64_t)v;
}

static LVal fold_i(LoopProgram *p, LOp op, int64_t a, int64_t b, int64_t c) {
    uint64_t ua = (uint64_t)a, ub = (uint64_t)b;
    switch (op) {
    case L_ADD:
        return lp_const_i(p, wrap(ua + ub));
    case L_SUB:
        return lp_const_i(p, wrap(ua - ub));
    case L_MUL:
        return lp_const_i(p, wrap(ua * ub));
    case L_FMA:
        return lp_const_i(p, wrap(ua * ub + (uint64_t)c));
    case L_DIV:
        return lp_const_i(p, div_i(a, b));
    case L_REM:
        return lp_const_i(p, rem_i(a, b));
    case L_MIN:
        return lp_const_i(p, a < b ? a : b);
    case L_MAX:
        return lp_const_i(p, a > b ? a : b);
    case L_NEG:
        return lp_const_i(p, wrap(0 - ua));
    case L_ABS:
        return lp_const_i(p, a < 0 ? wrap(0 - ua) : a);
    case L_AND:
        return lp_const_i(p, a & b);
    case L_OR:
        return lp_const_i(p, a | b);
    case L_XOR:
        return lp_const_i(p, a ^ b);
    default:
        return 0;
    }
}

static LVal fold_b(LoopProgram *p, LOp op, bool a, bool b) {
    switch (op) {
    case L_AND:
        return lp_const_b(p, a && b);
    case L_OR:
        return lp_const_b(p, a || b);
    case L_XOR:
        return lp_const_b(p, a != b);
    case L_NOT:
        return lp_const_b(p, !a);
    default:
        return 0;
    }
}

/* f32 operands are exact in double, and +, -, *, / and sqrt of them rounded to double and then to
 * float are rounded right (53 >= 2*24 + 2 bits). */
static LVal fold_f(LoopProgram *p, LOp op, LType t, double a, double b) {
    switch (op) {
    case L_ADD:
        return lp_const_f(p, t, a + b);
    case L_SUB:
        return lp_const_f(p, t, a - b);
    case L_MUL:
        return lp_const_f(p, t, a * b);
    case L_DIV:
        return lp_const_f(p, t, a / b);
    case L_MIN:
        return lp_const_f(p, t, isnan(a) || isnan(b) ? NAN : a < b ? a : b);
    case L_MAX:
        return lp_const_f(p, t, isnan(a) || isnan(b) ? NAN : a > b ? a : b);
    case L_NEG:
        return lp_const_f(p, t, -a);
    case L_ABS:
        return lp_const_f(p, t, fabs(a));
    case L_FLOOR:
        return lp_const_f(p, t, floor(a));
    case L_CEIL:
        return lp_const_f(p, t, ceil(a));
    case L_ROUND:
        return lp_const_f(p, t, nearbyint(a)); /* the default rounding mode is to even */
    case L_SQRT:
        return lp_const_f(p, t, sqrt(a));
    default:
        return 0;
    }
}

static LVal fold_compare(LoopProgram *p, LOp op, const LInst *a, const LInst *b) {
    bool real = is_real(a->type);
    bool lt = real ? a->f < b->f : a->i < b->i, eq = real ? a->f == b->f : a->i == b->i;
    switch (op) {
    case L_LT:
        return lp_const_b(p, lt);
    case L_LE:
        return lp_const_b(p, lt || eq);
    case L_EQ:
        return lp_const_b(p, eq);
    case L_NE:
        return lp_const_b(p, !eq);
    default:
        return 0;
    }
}

static LVal fold_cast(LoopProgram *p, LOp op, LVal v) {
    LInst n = *lp_inst(p, v);
    LType to = op == L_TO_F32   ? LT_F32
               : op == L_TO_F64 ? LT_F64
               : op == L_TO_I64 ? LT_I64
                                : LT_BOOL;
    if (n.type == to)
        return v;
    if (n.kind == LI_CONST) {
        bool real = is_real(n.type);
        if (to == LT_F32) /* an integer rounds once, not through double */
            return lp_const_f(p, to, real ? n.f : (double)(float)n.i);
        if (to == LT_F64)
            return lp_const_f(p, to, real ? n.f : (double)n.i);
        if (to == LT_I64)
            return lp_const_i(p, real ? to_i(n.f) : n.i);
        return lp_const_b(p, real ? n.f != 0 : n.i != 0);
    }
    if (n.kind == LI_OP) {
        LType from = lp_type(p, n.a);
        /* there and back without loss */
        if (from == to && from == LT_BOOL &&
            (n.op == L_TO_F32 || n.op == L_TO_F64 || n.op == L_TO_I64))
            return n.a;
        if (from == to && from == LT_F32 && n.op == L_TO_F64)
            return n.a;
    }
    return 0;
}

static LVal fold_pow(LoopProgram *p, LVal a, LVal b) {
    LType t = lp_type(p, a);
    if (!is_real(t) || !is_const(p, b))
        return 0;
    double e = lp_inst(p, b)->f;
    if (e == 0)
        return lp_const_f(p, t, 1);
    if (e == 1)
        return a;
    if (e == 2)
        return lp_2(p, L_MUL, a, a);
    if (e == 3)
        return lp_2(p, L_MUL, lp_2(p, L_MUL, a, a), a);
    if (e == 4) {
        LVal s = lp_2(p, L_MUL, a, a);
        return lp_2(p, L_MUL, s, s);
    }
    if (e == -1)
        return lp_2(p, L_DIV, lp_const_f(p, t, 1), a);
    return 0;
}

/* v = x op c with a constant c: gives x and c. */
static bool with_const(const LoopProgram *p, LVal v, LOp op, LVal *x, int64_t *c) {
    const LInst *n = lp_inst(p, v);
    if (n->kind != LI_OP || n->op != (int)op || n->type != LT_I64 || !lp_is_const_i(p, n->b, c))
        return false;
    *x = n->a;
    return true;
}

static LVal identity_i(LoopProgram *p, LOp op, LVal a, LVal b) {
    LVal x;
    int64_t c, k;
    bool right = lp_is_const_i(p, b, &c);
    switch (op) {
    case L_ADD:
        if (right && c == 0)
            return a;
        if (right && with_const(p, a, L_ADD, &x, &k))
            return lp_2(p, L_ADD, x, lp_const_i(p, wrap((uint64_t)c + (uint64_t)k)));
        return 0;
    case L_SUB:
        if (a == b)
            return lp_const_i(p, 0);
        return right ? lp_2(p, L_ADD, a, lp_const_i(p, wrap(0 - (uint64_t)c))) : 0;
    case L_MUL:
        if (right && c == 1)
            return a;
        if (right && c == 0)
            return b;
        if (right && with_const(p, a, L_MUL, &x, &k))
            return lp_2(p, L_MUL, x, lp_const_i(p, wrap((uint64_t)c * (uint64_t)k)));
        return 0;
    case L_DIV:
        return right && c == 1 ? a : right && c == 0 ? b : is_i(p, a, 0) ? a : 0;
    case L_REM:
        return right && (c == 1 || c == -1 || c == 0) ? lp_const_i(p, 0) : is_i(p, a, 0) ? a : 0;
    case L_MIN:
    case L_MAX:
        return a == b ? a : 0;
    case L_AND:
        return a == b || (right && c == -1) ? a : right && c == 0 ? b : 0;
    case L_OR:
        return a == b || (right && c == 0) ? a : right && c == -1 ? b : 0;
    case L_XOR:
        return a == b ? lp_const_i(p, 0) : right && c == 0 ? a : 0;
    default:
        return 0;
    }
}

static LVal identity_b(LoopProgram *p, LOp op, LVal a, LVal b) {
    bool right = is_const(p, b), v = right && lp_inst(p, b)->i;
    switch (op) {
    case L_AND:
        return a == b || (right && v) ? a : right ? b : 0;
    case L_OR:
        return a == b || (right && !v) ? a : right ? b : 0;
    case L_XOR:
        return a == b ? lp_const_b(p, false) : right && !v ? a : right ? lp_1(p, L_NOT, a) : 0;
    case L_EQ:
        return a == b ? lp_const_b(p, true) : right && v ? a : right ? lp_1(p, L_NOT, a) : 0;
    case L_NE:
        return a == b ? lp_const_b(p, false) : right && !v ? a : right ? lp_1(p, L_NOT, a) : 0;
    default:
        return 0;
    }
}

static LVal identity_f(LoopProgram *p, LOp op, LVal a, LVal b) {
    int e;
    switch (op) {
    case L_ADD:
        return is_f(p, b, -0.0) ? a : 0;
    case L_SUB:
        return is_f(p, b, 0.0) ? a : 0;
    case L_MUL:
        return is_f(p, b, 1) ? a : is_f(p, b, -1) ? lp_1(p, L_NEG, a) : 0;
    case L_DIV:
        if (is_f(p, b, 1))
            return a;
        /* by a power of two: its inverse is exact */
        if (is_const(p, b) && fabs(frexp(lp_inst(p, b)->f, &e)) == 0.5 && e > -60 && e < 60)
            return lp_2(p, L_MUL, a, lp_const_f(p, lp_type(p, a), 1 / lp_inst(p, b)->f));
        return 0;
    default:
        return 0;
    }
}

static bool commutes(LOp op) {
    switch (op) {
    case L_ADD:
    case L_MUL:
    case L_MIN:
    case L_MAX:
    case L_AND:
    case L_OR:
    case L_XOR:
    case L_EQ:
    case L_NE:
        return true;
    default:
        return false;
    }
}

static LVal fold_constants(LoopProgram *p, LOp op, LVal a, LVal b, LVal c) {
    if (!is_const(p, a) || (b && !is_const(p, b)) || (c && !is_const(p, c)))
        return 0;
    LInst x = *lp_inst(p, a), y = b ? *lp_inst(p, b) : x, z = c ? *lp_inst(p, c) : x;
    if (op == L_LT || op == L_LE || op == L_EQ || op == L_NE)
        return fold_compare(p, op, &x, &y);
    if (is_real(x.type))
        return fold_f(p, op, x.type, x.f, y.f);
    return x.type == LT_BOOL ? fold_b(p, op, x.i, y.i) : fold_i(p, op, x.i, y.i, z.i);
}

LVal loop_fold(LoopProgram *p, LOp op, LVal a, LVal b, LVal c) {
    LType t = lp_type(p, a);
    if (op == L_TO_F32 || op == L_TO_F64 || op == L_TO_I64 || op == L_TO_BOOL)
        return fold_cast(p, op, a);
    if (op == L_SELECT)
        return b == c ? b : is_const(p, a) ? (lp_inst(p, a)->i ? b : c) : 0;
    if (op == L_POW)
        return fold_pow(p, a, b);
    LVal v = fold_constants(p, op, a, b, c);
    if (v)
        return v;
    const LInst *n = lp_inst(p, a);
    if ((op == L_NEG || op == L_NOT) && n->kind == LI_OP && n->op == (int)op)
        return n->a;
    if (op == L_FMA && t == LT_I64)
        return lp_2(p, L_ADD, lp_2(p, L_MUL, a, b), c);
    if (!b || c)
        return 0;
    /* a constant stands on the right */
    if (commutes(op) && is_const(p, a) && !is_const(p, b))
        return lp_2(p, op, b, a);
    if ((op == L_EQ || op == L_LE) && a == b && t == LT_I64)
        return lp_const_b(p, true);
    if ((op == L_NE || op == L_LT) && a == b && t == LT_I64)
        return lp_const_b(p, false);
    return t == LT_I64    ? identity_i(p, op, a, b)
           : t == LT_BOOL ? identity_b(p, op, a, b)
                          : identity_f(p, op, a, b);
}
