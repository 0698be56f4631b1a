/* lower_elem_math.c: element rules of the elementwise ops. */
#include "codegen/lower.h"

#include <math.h>

static bool is_real(LType t) {
    return t == LT_F32 || t == LT_F64;
}

/* 1 / (1 + e^-x); e^-x may be infinite, the result is then 0 as it should. */
static Ex sigmoid(Kern *K, LType t, Ex x) {
    Ex one = ex_f(K, t, 1);
    return ex_2(K, L_DIV, one, ex_add(K, one, ex_1(K, L_EXP, ex_1(K, L_NEG, x))));
}

/* max(x, 0) + log(1 + u), u = e^-|x|; for small u by its series, since 1 + u loses u's digits. */
static Ex softplus(Kern *K, LType t, Ex x) {
    Ex one = ex_f(K, t, 1), u = ex_1(K, L_EXP, ex_1(K, L_NEG, ex_1(K, L_ABS, x)));
    double edge = t == LT_F64 ? 1e-5 : 1e-3;
    Ex third = ex_2(K, L_SUB, ex_f(K, t, 0.5), ex_mul(K, u, ex_f(K, t, 1.0 / 3)));
    Ex series = ex_mul(K, u, ex_2(K, L_SUB, one, ex_mul(K, u, third)));
    Ex direct = ex_1(K, L_LOG, ex_add(K, one, u));
    Ex tail = ex_select(K, ex_2(K, L_LT, u, ex_f(K, t, edge)), series, direct);
    return ex_add(K, ex_2(K, L_MAX, x, ex_f(K, t, 0)), tail);
}

static Ex sign(Kern *K, LType t, Ex x) {
    Ex zero = ex_zero(K, t);
    Ex pos = ex_cast(K, ex_2(K, L_LT, zero, x), t), neg = ex_cast(K, ex_2(K, L_LT, x, zero), t);
    Ex s = ex_2(K, L_SUB, pos, neg);
    return is_real(t) ? ex_select(K, ex_2(K, L_NE, x, x), x, s) : s; /* NaN stays */
}

static Ex unary(Kern *K, Op op, LType t, Ex x) {
    bool real = is_real(t);
    switch (op) {
    case OP_NEG:
        return ex_1(K, L_NEG, x);
    case OP_ABS:
        return ex_1(K, L_ABS, x);
    case OP_SIGN:
        return sign(K, t, x);
    case OP_FLOOR:
        return real ? ex_1(K, L_FLOOR, x) : x;
    case OP_CEIL:
        return real ? ex_1(K, L_CEIL, x) : x;
    case OP_ROUND:
        return real ? ex_1(K, L_ROUND, x) : x;
    case OP_EXP:
        return ex_1(K, L_EXP, x);
    case OP_LOG:
        return ex_1(K, L_LOG, x);
    case OP_SQRT:
        return ex_1(K, L_SQRT, x);
    case OP_RECIP:
        return ex_2(K, L_DIV, real ? ex_f(K, t, 1) : ex_i(K, 1), x);
    case OP_SIGMOID:
        return sigmoid(K, t, x);
    case OP_TANH:
        return ex_1(K, L_TANH, x);
    case OP_ERF:
        return ex_1(K, L_ERF, x);
    case OP_SOFTPLUS:
        return softplus(K, t, x);
    case OP_SIN:
        return ex_1(K, L_SIN, x);
    case OP_COS:
        return ex_1(K, L_COS, x);
    case OP_NOT:
        return ex_1(K, L_NOT, x);
    case OP_ISNAN:
        return real ? ex_2(K, L_NE, x, x) : ex_b(K, false);
    case OP_ISINF:
        return real ? ex_2(K, L_EQ, ex_1(K, L_ABS, x), ex_f(K, t, (double)INFINITY))
                    : ex_b(K, false);
    default:
        bug("%s is not a unary op", op_info[op].name);
    }
}

/* The value after a store in and a load from an integer type narrower than 64 bits. */
static Ex wrap(Kern *K, DType t, Ex x) {
    int bits = 8 * dtype_bytes(t);
    bool is_signed = t == DT_I8 || t == DT_I16 || t == DT_I32;
    if (bits == 64 || t == DT_BOOL)
        return x;
    int64_t half = is_signed ? (int64_t)1 << (bits - 1) : 0, mask = ((int64_t)1 << bits) - 1;
    const ExNode *n = ex_node(K, x);
    if (n->lo >= -half && n->hi <= mask - half)
        return x;
    return ex_addc(K, ex_2(K, L_AND, ex_addc(K, x, half), ex_i(K, mask)), -half);
}

static Ex cast(Kern *K, Node *n, Ex x) {
    DType from = n->in[0]->dtype, to = n->out[0]->dtype;
    Ex v = ex_cast(K, x, value_ltype(n->out[0]));
    if (dtype_is_float(to) || to == DT_BOOL || from == to || from == DT_BOOL)
        return v;
    return wrap(K, to, v);
}

/* The remainder takes the divisor's sign unless {fmod}. */
static Ex mod(Kern *K, Node *n, LType t, Ex x, Ex y) {
    Ex r = ex_2(K, L_REM, x, y), zero = ex_zero(K, t);
    if (node_int(n, AT_FMOD, 0))
        return r;
    Ex differs = ex_2(K, L_NE, ex_2(K, L_LT, r, zero), ex_2(K, L_LT, y, zero));
    return ex_select(K, ex_2(K, L_AND, ex_2(K, L_NE, r, zero), differs), ex_add(K, r, y), r);
}

static Ex binary(Kern *K, Node *n, LType t, Ex x, Ex y) {
    switch (n->op) {
    case OP_ADD:
        return t == LT_BOOL ? ex_2(K, L_OR, x, y) : ex_add(K, x, y);
    case OP_SUB:
        return t == LT_BOOL ? ex_2(K, L_XOR, x, y) : ex_2(K, L_SUB, x, y);
    case OP_MUL:
        return t == LT_BOOL ? ex_2(K, L_AND, x, y) : ex_mul(K, x, y);
    case OP_DIV:
        return ex_2(K, L_DIV, x, y);
    case OP_MOD:
        return mod(K, n, t, x, y);
    case OP_POW:
        if (t == LT_I64)
            return ex_cast(K, ex_2(K, L_POW, ex_cast(K, x, LT_F64), ex_cast(K, y, LT_F64)), LT_I64);
        return ex_2(K, L_POW, x, ex_cast(K, y, t));
    case OP_MIN:
        return t == LT_BOOL ? ex_2(K, L_AND, x, y) : ex_2(K, L_MIN, x, y);
    case OP_MAX:
        return t == LT_BOOL ? ex_2(K, L_OR, x, y) : ex_2(K, L_MAX, x, y);
    case OP_EQ:
        return ex_2(K, L_EQ, x, y);
    case OP_LT:
        return ex_2(K, L_LT, x, y);
    case OP_LE:
        return ex_2(K, L_LE, x, y);
    case OP_AND:
        return ex_2(K, L_AND, x, y);
    case OP_OR:
        return ex_2(K, L_OR, x, y);
    case OP_XOR:
        return ex_2(K, L_XOR, x, y);
    default:
        bug("%s is not a binary op", op_info[n->op].name);
    }
}

Ex elem_math(Kern *K, Node *n, const Index *at) {
    const Value *r = n->out[0];
    Ex x[3] = {0};
    for (int i = 0; i < n->nin; i++) {
        const Value *v = n->in[i];
        Index in = index_broadcast(K, at, r->rank, r->dims, v->rank, v->dims);
        x[i] = elem(K, n->in[i], &in);
    }
    LType t = value_ltype(n->in[n->op == OP_WHERE ? 1 : 0]);
    if (n->op == OP_WHERE)
        return ex_select(K, x[0], x[1], x[2]);
    if (n->op == OP_CAST)
        return cast(K, n, x[0]);
    return n->nin == 1 ? unary(K, n->op, t, x[0]) : binary(K, n, t, x[0], x[1]);
}
