/* Every loop operation over every type, on edge values, against plain C: in vector and sequential
 * loops, for this machine and for x86-64-v3; and every storage type through load and store. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "codegen/x86.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void serial(StgcRt *rt, int64_t tasks, StgcTask fn, void *env) {
    (void)rt;
    for (int64_t i = 0; i < tasks; i++)
        fn(env, i);
}

/* Runs one program once on buffers at the given offsets. */
static void run_program(LoopProgram *p, char *arena, const int64_t *offsets, int n,
                        const char *cpu) {
    LoopModule *m = xcalloc(1, sizeof *m);
    vec_push(&m->programs, p);
    LoopCall c = {.kind = CALL_PARALLEL, .name = "op", .program = p, .tasks = 1, .nbuffers = n};
    c.buffers = arena_copy(&m->arena, offsets, sizeof *offsets * (size_t)n);
    vec_push(&m->calls, c);
    Diag d = {0};
    X86Code *code = x86_compile(m, cpu, NULL, NULL, &d);
    if (!code)
        diag_print(&d, stderr, true);
    assert_non_null(code);
    StgcRt rt = {.parallel = serial};
    code->run(&rt, arena);
    x86_free(code);
    loop_module_free(m);
    diag_free(&d);
}

static const double edges[] = {
    0.0,  -0.0,   1.0,    -1.0,  0.5,   -0.5,     1.5,     2.5,    -2.5,     3.0,       7.25,
    -7.5, 1e-40,  -1e-40, 1e30,  -1e30, 1e19,     -1e19,   100.0,  INFINITY, -INFINITY, NAN,
    88.0, -103.0, 1e-3,   1e-10, 65536, 16777217, 8388609, 0x1p63, -0x1p63,  3.14159265};
static const int64_t ints[] = {
    0,   1,         -1,        2,         -2,        3,         7,  -7,  100, -100, 127, 128, 255,
    256, INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, 1LL << 40, 33, -33, 12,  5,    64,  -64};

enum { COMBOS = 1024 };
typedef union Cell {
    float f;
    double d;
    int64_t i;
    uint8_t b;
} Cell;

static int storage_of(LType t) {
    return t == LT_F32 ? DT_F32 : t == LT_F64 ? DT_F64 : t == LT_I64 ? DT_I64 : DT_BOOL;
}

static Cell input(LType t, int i, int operand) {
    int k = operand == 0 ? i % 32 : operand == 1 ? i / 32 : (i * 7 + i / 32) % 32;
    Cell c = {.i = 0};
    if (t == LT_F32)
        c.f = (float)edges[k];
    else if (t == LT_F64)
        c.d = edges[k];
    else if (t == LT_I64)
        c.i = ints[k % COUNT_OF(ints)];
    else
        c.b = (uint8_t)(k & 1);
    return c;
}

static double real(LType t, Cell c) {
    return t == LT_F32 ? (double)c.f : t == LT_F64 ? c.d : t == LT_I64 ? (double)c.i : (double)c.b;
}

static Cell from_real(LType t, double v) {
    Cell c = {.i = 0};
    if (t == LT_F32)
        c.f = (float)v;
    else
        c.d = v;
    return c;
}

static double reference_real(LOp op, LType t, double a, double b, double c) {
    switch (op) {
    case L_ADD:
        return a + b;
    case L_SUB:
        return a - b;
    case L_MUL:
        return a * b;
    case L_DIV:
        return a / b;
    case L_REM:
        return fmod(a, b);
    case L_MIN:
        return isnan(a) || isnan(b) ? NAN : fmin(a, b);
    case L_MAX:
        return isnan(a) || isnan(b) ? NAN : fmax(a, b);
    case L_POW:
        return pow(a, b);
    case L_FMA:
        return t == LT_F32 ? (double)fmaf((float)a, (float)b, (float)c) : fma(a, b, c);
    case L_NEG:
        return -a;
    case L_ABS:
        return fabs(a);
    case L_FLOOR:
        return floor(a);
    case L_CEIL:
        return ceil(a);
    case L_ROUND:
        return nearbyint(a);
    case L_SQRT:
        return sqrt(a);
    case L_EXP:
        return exp(a);
    case L_LOG:
        return log(a);
    case L_TANH:
        return tanh(a);
    case L_ERF:
        return erf(a);
    case L_SIN:
        return sin(a);
    case L_COS:
        return cos(a);
    default:
        fail_msg("no reference of %d", op);
        return 0;
    }
}

static int64_t reference_int(LOp op, int64_t a, int64_t b, int64_t c) {
    uint64_t ua = (uint64_t)a, ub = (uint64_t)b;
    switch (op) {
    case L_ADD:
        return (int64_t)(ua + ub);
    case L_SUB:
        return (int64_t)(ua - ub);
    case L_MUL:
        return (int64_t)(ua * ub);
    case L_DIV:
        return b == 0 ? 0 : b == -1 ? (int64_t)(0 - ua) : a / b;
    case L_REM:
        return b == 0 || b == -1 ? 0 : a % b;
    case L_MIN:
        return a < b ? a : b;
    case L_MAX:
        return a > b ? a : b;
    case L_FMA:
        return (int64_t)(ua * ub + (uint64_t)c);
    case L_NEG:
        return (int64_t)(0 - ua);
    case L_ABS:
        return a < 0 ? (int64_t)(0 - ua) : a;
    case L_AND:
        return a & b;
    case L_OR:
        return a | b;
    case L_XOR:
        return a ^ b;
    default:
        fail_msg("no reference of %d", op);
        return 0;
    }
}

static bool compare(LOp op, double a, double b, int64_t ia, int64_t ib, bool whole) {
    switch (op) {
    case L_LT:
        return whole ? ia < ib : a < b;
    case L_LE:
        return whole ? ia <= ib : a <= b;
    case L_EQ:
        return whole ? ia == ib : a == b;
    default:
        return whole ? ia != ib : a != b;
    }
}

static int64_t saturate(double v) {
    return isnan(v) ? 0 : v >= 0x1p63 ? INT64_MAX : v <= -0x1p63 ? INT64_MIN : (int64_t)v;
}

/* What the operation gives, as a cell of its result type. */
static Cell reference(LOp op, LType t, Cell a, Cell b, Cell c) {
    bool whole = t == LT_I64 || t == LT_BOOL;
    int64_t ia = t == LT_I64 ? a.i : a.b, ib = t == LT_I64 ? b.i : b.b;
    Cell r = {.i = 0};
    switch (op) {
    case L_LT:
    case L_LE:
    case L_EQ:
    case L_NE:
        r.b = compare(op, real(t, a), real(t, b), ia, ib, whole);
        return r;
    case L_NOT:
        r.b = !a.b;
        return r;
    case L_TO_F32:
        r.f = t == LT_I64 ? (float)a.i : (float)real(t, a);
        return r;
    case L_TO_F64:
        r.d = t == LT_I64 ? (double)a.i : real(t, a);
        return r;
    case L_TO_I64:
        r.i = whole ? ia : saturate(real(t, a));
        return r;
    case L_TO_BOOL:
        r.b = whole ? ia != 0 : real(t, a) != 0;
        return r;
    default:
        if (t == LT_BOOL)
            r.b = (uint8_t)(op == L_AND ? a.b & b.b : op == L_OR ? a.b | b.b : a.b ^ b.b);
        else if (t == LT_I64)
            r.i = reference_int(op, a.i, b.i, c.i);
        else
            r = from_real(t, reference_real(op, t, real(t, a), real(t, b), real(t, c)));
        return r;
    }
}

/* Equal, both NaN, or (elementary functions) within `ulps`. The sign of a zero minimum is free. */
static bool agrees(LOp op, LType t, Cell got, Cell want, double ulps) {
    if (t == LT_I64)
        return got.i == want.i;
    if (t == LT_BOOL)
        return got.b == want.b;
    double g = real(t, got), w = real(t, want);
    if (isnan(w) || isnan(g))
        return isnan(w) && isnan(g);
    if (g == w)
        return op == L_MIN || op == L_MAX || signbit(g) == signbit(w);
    double ulp = t == LT_F32 ? nextafterf((float)fabs(w), INFINITY) - fabs(w)
                             : nextafter(fabs(w), INFINITY) - fabs(w);
    return fabs(g - w) <= ulps * ulp;
}

static LType result_type(LOp op, LType t) {
    switch (op) {
    case L_LT:
    case L_LE:
    case L_EQ:
    case L_NE:
    case L_TO_BOOL:
        return LT_BOOL;
    case L_TO_F32:
        return LT_F32;
    case L_TO_F64:
        return LT_F64;
    case L_TO_I64:
        return LT_I64;
    default:
        return t;
    }
}

static double allowed_ulps(LOp op) {
    switch (op) {
    case L_EXP:
    case L_LOG:
    case L_TANH:
    case L_ERF:
    case L_SIN:
    case L_COS:
    case L_POW:
        return 2;
    default:
        return 0;
    }
}

static int arity(LOp op) {
    static const int k[] = {
#define X(N, t, n) n,
        LOOP_OPS(X)
#undef X
    };
    return k[op];
}

static void check_op(LOp op, LType t, LoopKind kind, const char *cpu) {
    static const char *const names[] = {
#define X(N, s, k) s,
        LOOP_OPS(X)
#undef X
    };
    enum { SLOT = COMBOS * 8 };
    char *arena = aligned_alloc(64, 4 * SLOT);
    int64_t offsets[] = {0, SLOT, 2 * SLOT, 3 * SLOT};
    LType rt = result_type(op, t);
    size_t in_size = t == LT_BOOL  ? 1
                     : t == LT_F32 ? 4
                                   : 8,
           out_size = rt == LT_BOOL  ? 1
                      : rt == LT_F32 ? 4
                                     : 8;
    LoopProgram *p = loop_program_new(PROGRAM_TASK, names[op]);
    int buffers[4];
    for (int k = 0; k < 4; k++)
        buffers[k] = lp_buffer(p, (DType)storage_of(k < 3 ? t : rt));
    LVal i = lp_loop(p, kind, lp_const_i(p, 0), lp_const_i(p, COMBOS));
    LVal in[3] = {0};
    for (int k = 0; k < arity(op); k++)
        in[k] = lp_load(p, buffers[k], i);
    lp_store(p, buffers[3], i, lp_op(p, op, in[0], in[1], in[2]));
    lp_end(p);
    for (int k = 0; k < 3; k++)
        for (int j = 0; j < COMBOS; j++) {
            Cell c = input(t, j, k);
            memcpy(arena + offsets[k] + (size_t)j * in_size, &c, in_size);
        }
    run_program(p, arena, offsets, 4, cpu);
    for (int j = 0; j < COMBOS; j++) {
        Cell got = {.i = 0}, a = input(t, j, 0), b = input(t, j, 1), c = input(t, j, 2);
        memcpy(&got, arena + offsets[3] + (size_t)j * out_size, out_size);
        Cell want = reference(op, t, a, b, c);
        if (!agrees(op, rt, got, want, allowed_ulps(op)))
            fail_msg("%s %s loop %d: a %g b %g c %g gives %.17g (%lld), not %.17g (%lld)",
                     names[op],
                     t == LT_F32   ? "f32"
                     : t == LT_F64 ? "f64"
                     : t == LT_I64 ? "i64"
                                   : "bool",
                     (int)kind, real(t, a), real(t, b), real(t, c), real(rt, got), (long long)got.i,
                     real(rt, want), (long long)want.i);
    }
    free(arena);
}

static bool takes(LOp op, LType t) {
    switch (op) {
    case L_SELECT:
        return false; /* its own test */
    case L_AND:
    case L_OR:
    case L_XOR:
        return t == LT_BOOL || t == LT_I64;
    case L_NOT:
        return t == LT_BOOL;
    case L_LT:
    case L_LE:
    case L_EQ:
    case L_NE:
    case L_TO_F32:
    case L_TO_F64:
    case L_TO_I64:
    case L_TO_BOOL:
        return true;
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
    case L_POW:
        return t == LT_F32 || t == LT_F64;
    default:
        return t != LT_BOOL;
    }
}

static void every_op_over_every_type(void **state) {
    (void)state;
    const LType types[] = {LT_F32, LT_F64, LT_I64, LT_BOOL};
    for (int op = 0; op < L_COUNT; op++)
        for (int t = 0; t < 4; t++)
            if (takes((LOp)op, types[t])) {
                check_op((LOp)op, types[t], LOOP_VECTOR, NULL);
                check_op((LOp)op, types[t], LOOP_SEQ, NULL);
                check_op((LOp)op, types[t], LOOP_VECTOR, "x86-64-v3");
            }
}

static void select_over_every_type(void **state) {
    (void)state;
    char *arena = aligned_alloc(64, 256);
    const int64_t offsets[] = {0, 64, 128, 192};
    memcpy(arena, "\1\0\1\0", 4);
    for (int k = 0; k < 4; k++) {
        ((float *)(arena + 64))[k] = (float)k;
        ((float *)(arena + 128))[k] = (float)-k - 1;
    }
    LoopProgram *p = loop_program_new(PROGRAM_TASK, "select");
    int c = lp_buffer(p, DT_BOOL), a = lp_buffer(p, DT_F32), b = lp_buffer(p, DT_F32),
        y = lp_buffer(p, DT_F32);
    LVal i = lp_loop(p, LOOP_VECTOR, lp_const_i(p, 0), lp_const_i(p, 4));
    lp_store(p, y, i, lp_op(p, L_SELECT, lp_load(p, c, i), lp_load(p, a, i), lp_load(p, b, i)));
    lp_end(p);
    run_program(p, arena, offsets, 4, NULL);
    const float want[] = {0, -2, 2, -4};
    assert_memory_equal(arena + 192, want, sizeof want);
    free(arena);
}

/* load then store in every pair of storage types of one compute type, against tensor_get and
 * tensor_set */
static void every_storage_type(void **state) {
    (void)state;
    enum { N = 256 };
    static const DType floats[] = {DT_F32, DT_F16, DT_BF16};
    static const DType wholes[] = {DT_U8, DT_I8, DT_U16, DT_I16, DT_I32, DT_U32, DT_I64, DT_U64};
    char *arena = aligned_alloc(64, 2 * N * 8);
    const int64_t offsets[] = {0, N * 8}, dims[] = {N};
    for (int pass = 0; pass < 9 + 64; pass++) {
        bool real_ = pass < 9;
        DType from = real_ ? floats[pass / 3] : wholes[(pass - 9) / 8],
              to = real_ ? floats[pass % 3] : wholes[(pass - 9) % 8];
        Tensor in = {.dtype = from, .rank = 1, .dims = {N}, .data = arena};
        for (int i = 0; i < N; i++)
            if (real_)
                tensor_set_f(&in, i,
                             i < 32 ? edges[i] : ldexp(1.0 + i * 0.00390625 * 1.001, i - 160));
            else
                tensor_set_i(&in, i, i < 25 ? ints[i] : (int64_t)((uint64_t)i * 0x123456789abcdef));
        Arena a = {0};
        Tensor *want = tensor_new(&a, to, 1, dims);
        for (int i = 0; i < N; i++)
            if (real_)
                tensor_set_f(want, i, tensor_get_f(&in, i));
            else
                tensor_set_i(want, i, tensor_get_i(&in, i));
        LoopProgram *p = loop_program_new(PROGRAM_TASK, "copy");
        int x = lp_buffer(p, from), y = lp_buffer(p, to);
        LVal i = lp_loop(p, LOOP_VECTOR, lp_const_i(p, 0), lp_const_i(p, N));
        lp_store(p, y, i, lp_load(p, x, i));
        lp_end(p);
        run_program(p, arena, offsets, 2, NULL);
        Tensor got = {.dtype = to, .rank = 1, .dims = {N}, .data = arena + offsets[1]};
        for (int k = 0; k < N; k++) {
            double g = tensor_get_f(&got, k), w = tensor_get_f(want, k);
            if (!(isnan(g) && isnan(w)) && (g != w || signbit(g) != signbit(w)))
                fail_msg("%s to %s: %.9g stored as %.9g, not %.9g", dtype_name(from),
                         dtype_name(to), tensor_get_f(&in, k), g, w);
        }
        arena_free(&a);
    }
    free(arena);
}

static void unknown_cpu_is_the_users_fault(void **state) {
    (void)state;
    LoopModule *m = xcalloc(1, sizeof *m);
    Diag d = {0};
    assert_null(x86_compile(m, "x86-64-v33", NULL, NULL, &d));
    assert_int_equal(d.code, EXIT_USAGE);
    assert_non_null(strstr(d.messages.at[0].text, "x86-64-v3"));
    diag_free(&d);
    loop_module_free(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_op_over_every_type),
        cmocka_unit_test(select_over_every_type),
        cmocka_unit_test(every_storage_type),
        cmocka_unit_test(unknown_cpu_is_the_users_fault),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
