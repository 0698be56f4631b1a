/* eval_elem.c: elementwise ops: one loop per op and element kind, over rows of strided operands. */
#include "ir/eval_ops.h"

#include <math.h>

/* ---- one operand ---- */

/* Float to float, in order of Op. */
static double unary_f(Op op, double x) {
    switch (op) {
    case OP_NEG:
        return -x;
    case OP_ABS:
        return fabs(x);
    case OP_SIGN:
        return isnan(x) ? x : (x > 0) - (x < 0);
    case OP_FLOOR:
        return floor(x);
    case OP_CEIL:
        return ceil(x);
    case OP_ROUND:
        return rint(x);
    case OP_EXP:
        return exp(x);
    case OP_LOG:
        return log(x);
    case OP_SQRT:
        return sqrt(x);
    case OP_RECIP:
        return 1 / x;
    case OP_SIGMOID:
        return 1 / (1 + exp(-x));
    case OP_TANH:
        return tanh(x);
    case OP_ERF:
        return erf(x);
    case OP_SOFTPLUS:
        return (x > 0 ? x : 0) + log1p(exp(-fabs(x)));
    case OP_SIN:
        return sin(x);
    case OP_COS:
        return cos(x);
    default:
        bug("%s is not an elementwise op of one float", op_info[op].name);
    }
}

static int64_t unary_i(Op op, int64_t x, bool is_unsigned) {
    switch (op) {
    case OP_NEG:
        return (int64_t)(0 - (uint64_t)x);
    case OP_ABS:
        return x < 0 && !is_unsigned ? (int64_t)(0 - (uint64_t)x) : x;
    case OP_SIGN:
        return is_unsigned ? x != 0 : (x > 0) - (x < 0);
    case OP_NOT:
        return !x;
    default:
        bug("%s is not an elementwise op of one integer", op_info[op].name);
    }
}

bool eval_unary(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    const RTensor *x = in[0];
    Dims dims = rtensor_dims(x);
    bool test = n->op == OP_ISNAN || n->op == OP_ISINF;
    RTensor *y = out[0] = eval_result(ev, n, test ? DT_BOOL : x->dtype, &dims);
    if (!y)
        return false;
    if (test)
        for (int64_t i = 0; i < y->count; i++)
            y->i[i] = n->op == OP_ISNAN ? isnan(x->f[i]) : isinf(x->f[i]) != 0;
    else if (dtype_is_float(x->dtype))
        for (int64_t i = 0; i < y->count; i++)
            y->f[i] = unary_f(n->op, x->f[i]);
    else
        for (int64_t i = 0; i < y->count; i++)
            y->i[i] = unary_i(n->op, x->i[i], x->dtype == DT_U64);
    rtensor_wrap(y);
    return true;
}

/* Floats to integers truncate and saturate (NaN: 0), integers wrap, anything to bool is != 0. */
bool eval_cast(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    const RTensor *x = in[0];
    Dims dims = rtensor_dims(x);
    DType to = (DType)node_int(n, AT_TO, DT_NONE);
    RTensor *y = out[0] = eval_result(ev, n, to, &dims);
    if (!y)
        return false;
    bool from_f = dtype_is_float(x->dtype), to_f = dtype_is_float(to);
    for (int64_t i = 0; i < y->count; i++) {
        if (from_f && to_f)
            y->f[i] = x->f[i];
        else if (from_f)
            y->i[i] = int_from_double(to, x->f[i]);
        else if (to_f)
            y->f[i] = double_from_int(x->dtype, x->i[i]);
        else
            y->i[i] = int_wrap(to, x->i[i]);
    }
    return true;
}

/* ---- two operands ---- */

typedef void (*RowLoop)(void *out, const void *a, int64_t sa, const void *b, int64_t sb, int64_t n);

#define ROW(NAME, TO, TI, EXPR) \
    HOT_LOOP static void NAME(void *op, const void *ap, int64_t sa, const void *bp, int64_t sb, \
                              int64_t n) { \
        TO *restrict o = op; \
        const TI *a = ap, *b = bp; \
        for (int64_t i = 0; i < n; i++) { \
            TI x = a[i * sa], y = b[i * sb]; \
            o[i] = (TO)(EXPR); \
        } \
    }

/* numpy: the remainder takes the divisor's sign. */
static double floor_mod(double x, double y) {
    double r = fmod(x, y);
    return r != 0 && (r < 0) != (y < 0) ? r + y : r;
}
static double max_f(double x, double y) {
    return isnan(x) ? x : isnan(y) ? y : x > y ? x : y;
}
static double min_f(double x, double y) {
    return isnan(x) ? x : isnan(y) ? y : x < y ? x : y;
}
/* The divisor is not 0; INT64_MIN / -1 wraps. */
static int64_t div_i(int64_t x, int64_t y) {
    return y == -1 ? (int64_t)(0 - (uint64_t)x) : x / y;
}
static int64_t rem_i(int64_t x, int64_t y) {
    return y == -1 ? 0 : x % y;
}
static int64_t mod_i(int64_t x, int64_t y) {
    int64_t r = rem_i(x, y);
    return r != 0 && (r < 0) != (y < 0) ? r + y : r;
}
/* Wraps; a negative exponent truncates 1/x^|y| to an integer. */
static int64_t pow_i(int64_t x, int64_t y) {
    uint64_t r = 1, base = (uint64_t)x;
    if (y < 0)
        return x == 1 ? 1 : x == -1 ? (y & 1 ? -1 : 1) : 0;
    for (; y; y >>= 1, base *= base)
        if (y & 1)
            r *= base;
    return (int64_t)r;
}

/* clang-format off */
ROW(add_f, double, double, x + y)
ROW(sub_f, double, double, x - y)
ROW(mul_f, double, double, x * y)
ROW(div_f, double, double, x / y)
ROW(mod_f, double, double, floor_mod(x, y))
ROW(fmod_f, double, double, fmod(x, y))
ROW(pow_f, double, double, pow(x, y))
ROW(minimum_f, double, double, min_f(x, y))
ROW(maximum_f, double, double, max_f(x, y))
ROW(eq_f, int64_t, double, x == y)
ROW(lt_f, int64_t, double, x < y)
ROW(le_f, int64_t, double, x <= y)
ROW(add_i, int64_t, int64_t, (uint64_t)x + (uint64_t)y)
ROW(sub_i, int64_t, int64_t, (uint64_t)x - (uint64_t)y)
ROW(mul_i, int64_t, int64_t, (uint64_t)x * (uint64_t)y)
ROW(quotient_i, int64_t, int64_t, div_i(x, y))
ROW(quotient_u, int64_t, uint64_t, x / y)
ROW(modulo_i, int64_t, int64_t, mod_i(x, y))
ROW(modulo_u, int64_t, uint64_t, x % y)
ROW(fmod_i, int64_t, int64_t, rem_i(x, y))
ROW(power_i, int64_t, int64_t, pow_i(x, y))
ROW(min_i, int64_t, int64_t, x < y ? x : y)
ROW(max_i, int64_t, int64_t, x > y ? x : y)
ROW(min_u, int64_t, uint64_t, x < y ? x : y)
ROW(max_u, int64_t, uint64_t, x > y ? x : y)
ROW(eq_i, int64_t, int64_t, x == y)
ROW(lt_i, int64_t, int64_t, x < y)
ROW(le_i, int64_t, int64_t, x <= y)
ROW(lt_u, int64_t, uint64_t, x < y)
ROW(le_u, int64_t, uint64_t, x <= y)
ROW(and_i, int64_t, int64_t, x && y)
ROW(or_i, int64_t, int64_t, x || y)
ROW(xor_i, int64_t, int64_t, !x != !y)
/* clang-format on */

/* By op: float, signed, unsigned 64. */
static RowLoop row_loop(const Node *n, DType t) {
    static const struct {
        Op op;
        RowLoop f, i, u;
    } table[] = {
        {OP_ADD, add_f, add_i, add_i},       {OP_SUB, sub_f, sub_i, sub_i},
        {OP_MUL, mul_f, mul_i, mul_i},       {OP_DIV, div_f, quotient_i, quotient_u},
        {OP_MOD, mod_f, modulo_i, modulo_u}, {OP_POW, pow_f, power_i, power_i},
        {OP_MIN, minimum_f, min_i, min_u},   {OP_MAX, maximum_f, max_i, max_u},
        {OP_EQ, eq_f, eq_i, eq_i},           {OP_LT, lt_f, lt_i, lt_u},
        {OP_LE, le_f, le_i, le_u},           {OP_AND, NULL, and_i, and_i},
        {OP_OR, NULL, or_i, or_i},           {OP_XOR, NULL, xor_i, xor_i},
    };
    if (n->op == OP_MOD && node_int(n, AT_FMOD, 0) && t != DT_U64)
        return dtype_is_float(t) ? fmod_f : fmod_i;
    for (int k = 0; k < COUNT_OF(table); k++)
        if (table[k].op == n->op)
            return dtype_is_float(t) ? table[k].f : t == DT_U64 ? table[k].u : table[k].i;
    bug("%s is not an elementwise op of two operands", op_info[n->op].name);
}

/* A copy of x in the other kind; pow alone mixes kinds. */
static RTensor *to_kind(Eval *ev, const Node *n, const RTensor *x, DType t) {
    Dims dims = rtensor_dims(x);
    RTensor *y = eval_result(ev, n, t, &dims);
    for (int64_t i = 0; y && i < y->count; i++) {
        if (dtype_is_float(t))
            y->f[i] = dtype_is_float(x->dtype) ? x->f[i] : double_from_int(x->dtype, x->i[i]);
        else
            y->i[i] = int_from_double(t, x->f[i]);
    }
    return y;
}

static bool divisors_fit(Eval *ev, const Node *n, const RTensor *b, int64_t count) {
    if ((n->op != OP_DIV && n->op != OP_MOD) || dtype_is_float(b->dtype) || count == 0)
        return true;
    for (int64_t i = 0; i < b->count; i++)
        if (b->i[i] == 0)
            return eval_fail(ev, n, EXIT_DATA, "an integer is divided by 0 (entry %lld)",
                             (long long)i);
    return true;
}

bool eval_binary(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    const RTensor *a = in[0], *b = in[1];
    Dims da = rtensor_dims(a), db = rtensor_dims(b), dims;
    DType kind = a->dtype, to = n->op >= OP_EQ && n->op <= OP_XOR ? DT_BOOL : a->dtype;
    Fault f;
    Walk w;
    if (!shape_broadcast(&da, &db, &dims, &f))
        return eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
    /* pow: an integer to a float power is computed in floats, a float to an integer one as well */
    bool mixed = dtype_is_float(a->dtype) != dtype_is_float(b->dtype);
    if (mixed) {
        kind = DT_F64;
        a = to_kind(ev, n, a, kind);
        b = to_kind(ev, n, b, kind);
        if (!a || !b)
            return false;
    }
    RTensor *y = eval_result(ev, n, mixed ? kind : to, &dims);
    if (!y || !divisors_fit(ev, n, b, y->count))
        return false;
    RowLoop loop = row_loop(n, kind);
    walk_init(&w, &dims);
    walk_broadcast(&w, &dims, &da);
    walk_broadcast(&w, &dims, &db);
    int64_t at = 0;
    WALK(&w) {
        loop(y->i + at, a->i + w.offset[0], walk_step(&w, 0), b->i + w.offset[1], walk_step(&w, 1),
             w.row);
        at += w.row;
    }
    if (mixed && dtype_is_float(to))
        y->dtype = to;
    else if (mixed && !(y = to_kind(ev, n, y, to)))
        return false;
    rtensor_wrap(y);
    out[0] = y;
    return true;
}

bool eval_where(Eval *ev, Node *n, RTensor **in, RTensor **out) {
    Dims dims = rtensor_dims(in[0]), x;
    Fault f;
    Walk w;
    for (int i = 1; i < 3; i++) {
        x = rtensor_dims(in[i]);
        if (!shape_broadcast(&dims, &x, &dims, &f))
            return eval_fail(ev, n, EXIT_MODEL, "%s", f.text);
    }
    if (!(out[0] = eval_result(ev, n, in[1]->dtype, &dims)))
        return false;
    walk_init(&w, &dims);
    for (int i = 0; i < 3; i++) {
        x = rtensor_dims(in[i]);
        walk_broadcast(&w, &dims, &x);
    }
    Cell *y = CELLS(out[0]);
    WALK(&w) {
        const int64_t *c = in[0]->i + w.offset[0];
        const Cell *a = CELLS(in[1]) + w.offset[1], *b = CELLS(in[2]) + w.offset[2];
        int64_t sc = walk_step(&w, 0), sa = walk_step(&w, 1), sb = walk_step(&w, 2);
        for (int64_t i = 0; i < w.row; i++)
            *y++ = c[i * sc] ? a[i * sa] : b[i * sb];
    }
    return true;
}
