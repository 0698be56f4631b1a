/* onnx_elem.c: elementwise ops, one ONNX node each, in a type that engines compute in. */
#include <string.h>

#include "codegen/onnx_put.h"

typedef struct Spelling {
    const char *onnx;
    bool flags; /* works on bool as it is */
} Spelling;

static const Spelling spelling[OP_COUNT] = {
    [OP_NEG] = {"Neg", false},
    [OP_ABS] = {"Abs", false},
    [OP_SIGN] = {"Sign", false},
    [OP_FLOOR] = {"Floor", false},
    [OP_CEIL] = {"Ceil", false},
    [OP_ROUND] = {"Round", false},
    [OP_EXP] = {"Exp", false},
    [OP_LOG] = {"Log", false},
    [OP_SQRT] = {"Sqrt", false},
    [OP_RECIP] = {"Reciprocal", false},
    [OP_SIGMOID] = {"Sigmoid", false},
    [OP_TANH] = {"Tanh", false},
    [OP_ERF] = {"Erf", false},
    [OP_SOFTPLUS] = {"Softplus", false},
    [OP_SIN] = {"Sin", false},
    [OP_COS] = {"Cos", false},
    [OP_NOT] = {"Not", true},
    [OP_ISNAN] = {"IsNaN", false},
    [OP_ISINF] = {"IsInf", false},
    [OP_ADD] = {"Add", false},
    [OP_SUB] = {"Sub", false},
    [OP_MUL] = {"Mul", false},
    [OP_DIV] = {"Div", false},
    [OP_POW] = {"Pow", false},
    [OP_MIN] = {"Min", false},
    [OP_MAX] = {"Max", false},
    [OP_EQ] = {"Equal", true},
    [OP_LT] = {"Less", false},
    [OP_LE] = {"LessOrEqual", false},
    [OP_AND] = {"And", true},
    [OP_OR] = {"Or", true},
    [OP_XOR] = {"Xor", true},
    [OP_WHERE] = {"Where", false},
};

static bool answers_bool(Op op) {
    return spelling[op].flags || op == OP_ISNAN || op == OP_ISINF || op == OP_LT || op == OP_LE;
}

void emit_elem(Emit *E, const Node *n) {
    const Spelling *s = &spelling[n->op];
    const char *in[3];
    int first = n->op == OP_WHERE; /* the condition is bool and stays so */
    DType type = n->in[first]->dtype,
          computed = s->flags && type == DT_BOOL ? type : emit_compute_type(type);
    for (int i = 0; i < n->nin; i++)
        in[i] = i < first ? emit_name(E, n->in[i]) : emit_as(E, n->in[i], computed);
    const char *y = put_node(E, s->onnx, in, n->nin, 1)->output[0];
    emit_result_from(E, n->out[0], y, answers_bool(n->op) ? DT_BOOL : computed);
}

void emit_cast(Emit *E, const Node *n) {
    emit_result(E, n->out[0],
                put_cast(E, emit_name(E, n->in[0]), n->in[0]->dtype, n->out[0]->dtype));
}

void emit_mod(Emit *E, const Node *n) {
    DType type = n->out[0]->dtype, computed = emit_compute_type(type);
    const char *in[2] = {emit_as(E, n->in[0], computed), emit_as(E, n->in[1], computed)};
    bool fmod = node_int(n, AT_FMOD, 0);
    if (dtype_is_float(type) && !fmod) { /* the sign of the divisor: x - floor(x / y) * y */
        const char *times = PUT(E, "Floor", PUT(E, "Div", in[0], in[1]));
        emit_result_from(E, n->out[0], PUT(E, "Sub", in[0], PUT(E, "Mul", times, in[1])), computed);
        return;
    }
    Onnx__NodeProto *m = put_node(E, "Mod", in, 2, 1);
    if (fmod)
        put_int(E, m, "fmod", 1);
    emit_result_from(E, n->out[0], m->output[0], computed);
}
