/* Instruction vectors: what the PTX manual says an instruction gives, for values where a mistake
 * shows. Each is a kernel of one instruction, run by a full warp and by five lanes. */
#include "ptx_help.h"

#include "tests/ptx/tools.h"

static PtxDevice *device;
static uint8_t *by_vector; /* per form: whether a vector ran it */

static uint64_t f(float v) {
    uint32_t u;
    memcpy(&u, &v, 4);
    return u;
}

static uint64_t g(double v) {
    uint64_t u;
    memcpy(&u, &v, 8);
    return u;
}

#define NAN32 0x7fffffffull
#define INF32 0x7f800000ull
#define NINF32 0xff800000ull

static int width(char class) {
    return class == 'd' || class == 'g' ? 64 : class == 'h' ? 16 : class == 'p' ? 1 : 32;
}

/* h b16, r b32, d b64, f f32, g f64, p predicate. */
static const char *reg_type(char class) {
    switch (class) {
    case 'h':
        return "b16";
    case 'd':
        return "b64";
    case 'f':
        return "f32";
    case 'g':
        return "f64";
    case 'p':
        return "pred";
    default:
        return "b32";
    }
}

/* Appends the conversion between a 64-bit register %q and one of a class. */
static int from_word(char *t, size_t n, char class, int k) {
    switch (class) {
    case 'p':
        return snprintf(t, n, "setp.ne.s64 %%a%d, %%q, 0;\n", k);
    case 'h':
        return snprintf(t, n, "cvt.u16.u64 %%a%d, %%q;\n", k);
    case 'd':
    case 'g':
        return snprintf(t, n, "mov.b64 %%a%d, %%q;\n", k);
    default:
        return snprintf(t, n, "cvt.u32.u64 %%w, %%q;\nmov.b32 %%a%d, %%w;\n", k);
    }
}

static int to_word(char *t, size_t n, char class, const char *reg) {
    switch (class) {
    case 'p':
        return snprintf(t, n, "selp.b64 %%q, 1, 0, %s;\n", reg);
    case 'h':
        return snprintf(t, n, "cvt.u64.u16 %%q, %s;\n", reg);
    case 'd':
    case 'g':
        return snprintf(t, n, "mov.b64 %%q, %s;\n", reg);
    default:
        return snprintf(t, n, "mov.b32 %%w, %s;\ncvt.u64.u32 %%q, %%w;\n", reg);
    }
}

#define HEAD ".version 8.0\n.target sm_90\n.address_size 64\n"
#define PUT(...) n += (size_t)snprintf(t + n, sizeof t - n, __VA_ARGS__)

/* op: the opcode, or with a '$' the whole instruction, where $d and $0.. stand for registers.
 * classes: "f:ff" result and operands; a second result letter is the |p. */
static void run_vector(const char *op, const char *classes, const uint64_t in[5], uint64_t out[2]) {
    char t[4096];
    size_t n = 0;
    const char *args = strchr(classes, ':') + 1;
    int nargs = (int)strlen(args), nresults = (int)(args - classes) - 1;
    PUT(HEAD ".visible .entry k(.param .u64 in, .param .u64 out)\n{\n"
             ".reg .b64 %%in, %%out, %%q;\n.reg .b32 %%w;\n");
    for (int k = 0; k < nargs; k++) {
        PUT(".reg .%s %%a%d;\n", reg_type(args[k]), k);
    }
    for (int k = 0; k < nresults; k++) {
        PUT(".reg .%s %%r%d;\n", reg_type(classes[k]), k);
    }
    PUT("ld.param.u64 %%in, [in];\nld.param.u64 %%out, [out];\n");
    for (int k = 0; k < nargs; k++) {
        PUT("ld.global.u64 %%q, [%%in+%d];\n", 8 * k);
        n += (size_t)from_word(t + n, sizeof t - n, args[k], k);
    }
    if (strchr(op, '$')) {
        for (const char *s = op; *s; s++) {
            if (*s != '$') {
                PUT("%c", *s);
            } else if (*++s == 'd' || *s == 'e') {
                PUT("%%r%d", *s - 'd');
            } else {
                PUT("%%a%c", *s);
            }
        }
        PUT(";\n");
    } else {
        PUT("%s %%r0%s", op, nresults == 2 ? "|%r1" : "");
        for (int k = 0; k < nargs; k++) {
            PUT(", %%a%d", k);
        }
        PUT(";\n");
    }
    PUT("mov.u32 %%w, %%tid.x;\nmul.wide.u32 %%q, %%w, 16;\nadd.s64 %%out, %%out, %%q;\n");
    for (int k = 0; k < nresults; k++) {
        char reg[16];
        snprintf(reg, sizeof reg, "%%r%d", k);
        n += (size_t)to_word(t + n, sizeof t - n, classes[k], reg);
        PUT("st.global.u64 [%%out+%d], %%q;\n", 8 * k);
    }
    PUT("ret;\n}\n");
    PtxModule *m = ptx_load(device, t, n);
    if (!m) {
        fail_msg("%s: %s", op, ptx_error(device));
    }
    ptx_forms_used(t, n, by_vector);
    struct {
        uint64_t in, out;
    } p = {ptx_upload(device, in, 40), ptx_malloc(device, 16 * 32)};
    uint64_t got[64];
    for (unsigned lanes = 32;; lanes = 5) {
        if (!ptx_launch(device, ptx_kernel(m, "k"), (unsigned[3]){1, 1, 1},
                        (unsigned[3]){lanes, 1, 1}, 0, &p, sizeof p)) {
            fail_msg("%s: %s", op, ptx_error(device));
        }
        assert_true(ptx_read(device, got, p.out, 16 * lanes, false));
        for (unsigned l = 0; l < lanes; l++) {
            for (int k = 0; k < nresults; k++) {
                if (l && got[2 * l + (unsigned)k] != out[k]) {
                    fail_msg("%s: lane %u differs from lane 0", op, l);
                }
                out[k] = got[2 * l + (unsigned)k];
            }
        }
        if (lanes == 5) {
            break;
        }
    }
    ptx_free(device, p.in);
    ptx_free(device, p.out);
    ptx_unload(m);
}

static bool is_nan(uint64_t v, char class) {
    float x;
    double y;
    uint32_t u = (uint32_t)v;
    memcpy(&x, &u, 4);
    memcpy(&y, &v, 8);
    return class == 'f' ? isnan(x) : class == 'g' && isnan(y);
}

static void vector(const char *op, const char *classes, uint64_t want, uint64_t a, uint64_t b,
                   uint64_t c, uint64_t e) {
    uint64_t in[5] = {a, b, c, e, 0}, out[2];
    run_vector(op, classes, in, out);
    bool nan = is_nan(want, classes[0]) && is_nan(out[0], classes[0]);
    int bits = width(classes[0]);
    want &= bits == 64 ? ~0ull : (1ull << bits) - 1;
    if (out[0] != want && !nan) {
        fail_msg("%s of 0x%llx 0x%llx 0x%llx 0x%llx is 0x%llx, the manual says 0x%llx", op,
                 (unsigned long long)a, (unsigned long long)b, (unsigned long long)c,
                 (unsigned long long)e, (unsigned long long)out[0], (unsigned long long)want);
    }
}
#define V1(op, cl, want, a) vector(op, cl, want, a, 0, 0, 0)
#define V2(op, cl, want, a, b) vector(op, cl, want, a, b, 0, 0)
#define V3(op, cl, want, a, b, c) vector(op, cl, want, a, b, c, 0)
#define V4(op, cl, want, a, b, c, e) vector(op, cl, want, a, b, c, e)

static void integer_arithmetic(void **state) {
    (void)state;
    V2("add.u16", "h:hh", 0x0001, 0xffff, 2);
    V2("add.s16", "h:hh", 0x8000, 0x7fff, 1);
    V2("add.u32", "r:rr", 1, 0xffffffff, 2);
    V2("add.s32", "r:rr", 0x80000000, 0x7fffffff, 1);
    V2("add.u64", "d:dd", 1, ~0ull, 2);
    V2("add.s64", "d:dd", 1ull << 63, (1ull << 63) - 1, 1);
    V2("add.sat.s32", "r:rr", 0x7fffffff, 0x7fffffff, 1);
    V2("add.sat.s32", "r:rr", 0x80000000, 0x80000000, 0xffffffff);
    V2("add.sat.s32", "r:rr", 5, 0xffffffff, 6);
    V2("sub.u16", "h:hh", 0xffff, 1, 2);
    V2("sub.u32", "r:rr", 0xffffffff, 1, 2);
    V2("sub.s32", "r:rr", 0x7fffffff, 0x80000000, 1);
    V2("sub.s64", "d:dd", ~0ull, 1, 2);
    V2("sub.sat.s32", "r:rr", 0x80000000, 0x80000000, 1);
    V2("sub.sat.s32", "r:rr", 0x7fffffff, 0x7fffffff, 0xffffffff);
    V2("mul.lo.u16", "h:hh", 0x0001, 0xffff, 0xffff);
    V2("mul.lo.s32", "r:rr", 0xfffffff4, 0xfffffffd, 4);
    V2("mul.lo.s64", "d:dd", 0 - 12ull, 0 - 3ull, 4);
    V2("mul.hi.u16", "h:hh", 0xfffe, 0xffff, 0xffff);
    V2("mul.hi.s16", "h:hh", 0x0000, 0xffff, 0xffff);
    V2("mul.hi.u32", "r:rr", 0xfffffffe, 0xffffffff, 0xffffffff);
    V2("mul.hi.s32", "r:rr", 0xffffffff, 0xffffffff, 2);
    V2("mul.hi.u64", "d:dd", ~0ull - 1, ~0ull, ~0ull);
    V2("mul.hi.s64", "d:dd", ~0ull, ~0ull, 2);
    V2("mul.wide.u16", "r:hh", 0xfffe0001, 0xffff, 0xffff);
    V2("mul.wide.s16", "r:hh", 0xffff8001, 0xffff, 0x7fff);
    V2("mul.wide.u32", "d:rr", 0xfffffffe00000001, 0xffffffff, 0xffffffff);
    V2("mul.wide.s32", "d:rr", 0 - 2ull, 0xffffffff, 2);
    V3("mad.lo.s32", "r:rrr", 7, 0xffffffff, 3, 10);
    V3("mad.lo.u64", "d:ddd", 17, 3, 5, 2);
    V3("mad.hi.u32", "r:rrr", 1, 0xffffffff, 0xffffffff, 3);
    V3("mad.hi.s32", "r:rrr", 4, 0xffffffff, 2, 5);
    V3("mad.wide.u16", "r:hhr", 0xfffe0002, 0xffff, 0xffff, 1);
    V3("mad.wide.s16", "r:hhr", 0, 0xffff, 1, 1);
    V3("mad.wide.u32", "d:rrd", 0xfffffffe00000002, 0xffffffff, 0xffffffff, 1);
    V3("mad.wide.s32", "d:rrd", 1, 0xffffffff, 2, 3);
    V2("div.u32", "r:rr", 0x7fffffff, 0xfffffffe, 2);
    V2("div.s32", "r:rr", 0xfffffffd, 0xfffffff9, 2); /* -7 / 2 = -3 */
    V2("div.s16", "h:hh", 0xfffd, 0xfff9, 2);
    V2("div.u64", "d:dd", 0x7fffffffffffffff, ~0ull, 2);
    V2("div.s64", "d:dd", 0 - 3ull, 0 - 7ull, 2);
    V2("rem.u32", "r:rr", 1, 7, 2);
    V2("rem.s32", "r:rr", 0xffffffff, 0xfffffff9, 2); /* the sign is the dividend's */
    V2("rem.s32", "r:rr", 1, 7, 0xfffffffe);
    V2("rem.u64", "d:dd", 3, 0xffffffffffffffff, 4);
    V2("rem.s64", "d:dd", 0 - 1ull, 0 - 7ull, 2);
    V1("abs.s16", "h:h", 5, 0xfffb);
    V1("abs.s32", "r:r", 5, 0xfffffffb);
    V1("abs.s64", "d:d", 5, 0 - 5ull);
    V1("neg.s16", "h:h", 0xffff, 1);
    V1("neg.s32", "r:r", 0x80000000, 0x80000000);
    V1("neg.s64", "d:d", 0 - 1ull, 1);
    V2("min.u32", "r:rr", 1, 0xffffffff, 1);
    V2("min.s32", "r:rr", 0xffffffff, 0xffffffff, 1);
    V2("min.s64", "d:dd", ~0ull, ~0ull, 1);
    V2("min.u16", "h:hh", 1, 0xffff, 1);
    V2("max.u32", "r:rr", 0xffffffff, 0xffffffff, 1);
    V2("max.s32", "r:rr", 1, 0xffffffff, 1);
    V2("max.u64", "d:dd", ~0ull, ~0ull, 1);
    V2("max.s16", "h:hh", 1, 0xffff, 1);
}

static void bits(void **state) {
    (void)state;
    V1("popc.b32", "r:r", 32, 0xffffffff);
    V1("popc.b64", "r:d", 33, 0x1ffffffffull);
    V1("clz.b32", "r:r", 32, 0);
    V1("clz.b32", "r:r", 0, 0x80000000);
    V1("clz.b64", "r:d", 64, 0);
    V1("clz.b64", "r:d", 31, 1ull << 32);
    V1("bfind.u32", "r:r", 0xffffffff, 0);
    V1("bfind.u32", "r:r", 31, 0x80000001);
    V1("bfind.s32", "r:r", 0xffffffff, 0xffffffff); /* signed: first bit unlike the sign */
    V1("bfind.s32", "r:r", 2, 0xfffffffb);
    V1("bfind.shiftamt.u32", "r:r", 27, 0x10);
    V1("bfind.u64", "r:d", 40, 1ull << 40);
    V1("bfind.s64", "r:d", 2, 0 - 5ull);
    V1("brev.b32", "r:r", 0x80000000, 1);
    V1("brev.b64", "d:d", 1, 1ull << 63);
    V3("bfe.u32", "r:rrr", 0x34, 0x1234, 0, 8);
    V3("bfe.u32", "r:rrr", 0, 0xffffffff, 5, 0);    /* no bits */
    V3("bfe.u32", "r:rrr", 0xf, 0xf0000000, 28, 8); /* beyond the top: zeros */
    V3("bfe.u32", "r:rrr", 0, 0xffffffff, 32, 4);
    V3("bfe.u32", "r:rrr", 0x34, 0x1234, 0x100, 0x108); /* only the low 8 bits count */
    V3("bfe.s32", "r:rrr", 0xffffffff, 0xf0000000, 28, 4);
    V3("bfe.s32", "r:rrr", 0xfffffff4, 0x00f4, 0, 8);
    V3("bfe.s32", "r:rrr", 0xffffffff, 0x80000000, 40, 3); /* sign of the whole */
    V3("bfe.s32", "r:rrr", 0, 0xffffffff, 3, 0);
    V3("bfe.s32", "r:rrr", 0xf8000000, 0x80000000, 4, 40); /* sign bit at min(pos+len-1, 31) */
    V3("bfe.u64", "d:drr", 0x3, 0xc000000000000000, 62, 10);
    V3("bfe.s64", "d:drr", ~0ull, 0xc000000000000000, 62, 10);
    V4("bfi.b32", "r:rrrr", 0xffff34ff, 0x1234, 0xffffffff, 8, 8);
    V4("bfi.b32", "r:rrrr", 0x4fffffff, 0x1234, 0xffffffff, 28, 8);
    V4("bfi.b32", "r:rrrr", 0xabcd, 0x1234, 0xabcd, 4, 0);
    V4("bfi.b32", "r:rrrr", 0xabcd, 0x1234, 0xabcd, 32, 4);
    V4("bfi.b64", "d:ddrr", 0x1234ffffffffffff, 0x1234, ~0ull, 48, 16);
    V2("and.b16", "h:hh", 0x0f00, 0xff00, 0x0fff);
    V2("and.b32", "r:rr", 0x0f00, 0xff00, 0x0fff);
    V2("and.b64", "d:dd", 1ull << 40, ~0ull, 1ull << 40);
    V2("and.pred", "p:pp", 0, 1, 0);
    V2("or.b16", "h:hh", 0xffff, 0xff00, 0x0fff);
    V2("or.b32", "r:rr", 0xffff, 0xff00, 0x0fff);
    V2("or.b64", "d:dd", 3, 1, 2);
    V2("or.pred", "p:pp", 1, 1, 0);
    V2("xor.b16", "h:hh", 0xf0ff, 0xff00, 0x0fff);
    V2("xor.b32", "r:rr", 0xf0ff, 0xff00, 0x0fff);
    V2("xor.b64", "d:dd", 3, 1, 2);
    V2("xor.pred", "p:pp", 0, 1, 1);
    V1("not.b16", "h:h", 0xff00, 0x00ff);
    V1("not.b32", "r:r", 0xffffff00, 0x00ff);
    V1("not.b64", "d:d", ~1ull, 1);
    V1("not.pred", "p:p", 0, 1);
    V2("shl.b16", "h:hr", 0, 1, 16);
    V2("shl.b16", "h:hr", 0x8000, 1, 15);
    V2("shl.b32", "r:rr", 0, 1, 32); /* clamped, not taken modulo 32 */
    V2("shl.b32", "r:rr", 0x80000000, 1, 31);
    V2("shl.b64", "d:dr", 0, 1, 64);
    V2("shl.b64", "d:dr", 1ull << 63, 1, 63);
    V2("shr.u16", "h:hr", 0, 0xffff, 16);
    V2("shr.s16", "h:hr", 0xffff, 0x8000, 200);
    V2("shr.u32", "r:rr", 0, 0xffffffff, 32);
    V2("shr.s32", "r:rr", 0xffffffff, 0x80000000, 32);
    V2("shr.s32", "r:rr", 0xc0000000, 0x80000000, 1);
    V2("shr.b32", "r:rr", 0x40000000, 0x80000000, 1);
    V2("shr.u64", "d:dr", 0, ~0ull, 64);
    V2("shr.u64", "d:dr", 1, 1ull << 63, 63);
    V2("shr.s64", "d:dr", ~0ull, 1ull << 63, 100);
    V3("shf.l.wrap.b32", "r:rrr", 0x3456789a, 0x9abcdef0, 0x12345678, 8);
    V3("shf.l.wrap.b32", "r:rrr", 0x12345678, 0x9abcdef0, 0x12345678, 32);
    V3("shf.l.clamp.b32", "r:rrr", 0x9abcdef0, 0x9abcdef0, 0x12345678, 40);
    V3("shf.r.wrap.b32", "r:rrr", 0x789abcde, 0x9abcdef0, 0x12345678, 8);
    V3("shf.r.clamp.b32", "r:rrr", 0x12345678, 0x9abcdef0, 0x12345678, 32);
    V3("prmt.b32", "r:rrr", 0x33221100, 0x33221100, 0x77665544, 0x3210);
    V3("prmt.b32", "r:rrr", 0x77003366, 0x33221100, 0x77665544, 0x7036);
    V3("prmt.b32", "r:rrr", 0xff00ff00, 0x00800080, 0, 0xa9a9); /* msb replicates the sign */
    V3("prmt.b32.f4e", "r:rrr", 0x55443322, 0x33221100, 0x77665544, 2);
    V3("prmt.b32.b4e", "r:rrr", 0x66770011, 0x33221100, 0x77665544, 1);
    V3("prmt.b32.rc8", "r:rrr", 0x22222222, 0x33221100, 0x77665544, 2);
    V3("prmt.b32.ecl", "r:rrr", 0x33221111, 0x33221100, 0x77665544, 1);
    V3("prmt.b32.ecr", "r:rrr", 0x22221100, 0x33221100, 0x77665544, 2);
    V3("prmt.b32.rc16", "r:rrr", 0x33223322, 0x33221100, 0x77665544, 1);
    V3("lop3.b32 $d, $0, $1, $2, 0x80", "r:rrr", 0x80, 0xf0, 0xcc, 0xaa);
    V3("lop3.b32 $d, $0, $1, $2, 0x96", "r:rrr", 0x96, 0xf0, 0xcc, 0xaa);
    V3("lop3.b32 $d, $0, $1, $2, 0xca", "r:rrr", 0xca, 0xf0, 0xcc, 0xaa);
    V3("selp.b16", "h:hhp", 2, 1, 2, 0);
    V3("selp.b32", "r:rrp", 1, 1, 2, 1);
    V3("selp.b64", "d:ddp", 2, 1, 2, 0);
    V3("selp.f32", "f:ffp", f(1), f(1), f(2), 1);
    V3("selp.f64", "g:ggp", g(2), g(1), g(2), 0);
    V1("mov.b16", "h:h", 0x1234, 0x1234);
    V1("mov.u32", "r:r", 0x12345678, 0x12345678);
    V1("mov.f32", "f:f", f(1.5f), f(1.5f));
    V1("mov.b32", "f:r", f(1.5f), f(1.5f));
    V1("mov.b64", "g:d", g(1.5), g(1.5));
    V1("mov.pred", "p:p", 1, 1);
    V1("mov.u32 $d, 0x10", "r:r", 16, 0);
    V2("mov.b32 $d, {$0, $1}", "r:hh", 0x56781234, 0x1234, 0x5678);
    V2("mov.b64 $d, {$0, $1}", "d:rr", 0x900000001, 1, 9);
    V1("mov.b64 {$e, $d}, $0", "rr:d", 9, 0x900000001);
    V1("mov.b32 {$d, $e}, $0", "hh:r", 0x1234, 0x56781234);
}

static void comparisons(void **state) {
    (void)state;
    static const struct {
        const char *cmp;
        int less, equal, greater;
    } ints[] = {{"eq", 0, 1, 0}, {"ne", 1, 0, 1}, {"lt", 1, 0, 0},
                {"le", 1, 1, 0}, {"gt", 0, 0, 1}, {"ge", 0, 1, 1}};
    static const char *const types[] = {"s32", "u32", "s64", "u64", "s16", "u16"};
    char op[64];
    for (int k = 0; k < 6; k++) {
        for (int t = 0; t < 6; t++) {
            const char *cl = t < 2 ? "p:rr" : t < 4 ? "p:dd" : "p:hh";
            bool is_signed = types[t][0] == 's';
            snprintf(op, sizeof op, "setp.%s.%s", ints[k].cmp, types[t]);
            V2(op, cl, (uint64_t)ints[k].less, 3, 4);
            V2(op, cl, (uint64_t)ints[k].equal, 4, 4);
            V2(op, cl, (uint64_t)ints[k].greater, 4, 3);
            /* all ones against one: less if signed */
            V2(op, cl, (uint64_t)(is_signed ? ints[k].less : ints[k].greater), ~0ull, 1);
        }
    }
    V2("setp.eq.b32", "p:rr", 1, 7, 7);
    V2("setp.ne.b64", "p:dd", 1, 7, 8);
    V2("setp.eq.b16", "p:hh", 0, 7, 8);
    V2("setp.lo.u32", "p:rr", 0, 0xffffffff, 1);
    V2("setp.hi.u32", "p:rr", 1, 0xffffffff, 1);
    V2("setp.ls.u64", "p:dd", 1, 1, 1);
    V2("setp.hs.u32", "p:rr", 1, 1, 1);
    V3("setp.lt.and.s32", "p:rrp", 0, 1, 2, 0);
    V3("setp.lt.or.s32", "p:rrp", 1, 2, 1, 1);
    V3("setp.lt.xor.s32", "p:rrp", 0, 1, 2, 1);
    V3("setp.gt.and.f32", "p:ffp", 1, f(2), f(1), 1);
    V3("setp.lt.and.s32 $e|$d, $0, $1, !$2", "pp:rrp", 1, 2, 1, 0); /* q = !(2 < 1) and !0 */
    static const struct {
        const char *cmp;
        int less, equal, greater, unordered;
    } floats[] = {{"eq", 0, 1, 0, 0},  {"ne", 1, 0, 1, 0},  {"lt", 1, 0, 0, 0},
                  {"le", 1, 1, 0, 0},  {"gt", 0, 0, 1, 0},  {"ge", 0, 1, 1, 0},
                  {"equ", 0, 1, 0, 1}, {"neu", 1, 0, 1, 1}, {"ltu", 1, 0, 0, 1},
                  {"leu", 1, 1, 0, 1}, {"gtu", 0, 0, 1, 1}, {"geu", 0, 1, 1, 1},
                  {"num", 1, 1, 1, 0}, {"nan", 0, 0, 0, 1}};
    for (int k = 0; k < 14; k++) {
        snprintf(op, sizeof op, "setp.%s.f32", floats[k].cmp);
        V2(op, "p:ff", (uint64_t)floats[k].less, f(-1), f(2));
        V2(op, "p:ff", (uint64_t)floats[k].equal, f(0), f(-0.0f));
        V2(op, "p:ff", (uint64_t)floats[k].greater, INF32, f(2));
        V2(op, "p:ff", (uint64_t)floats[k].unordered, NAN32, f(2));
        snprintf(op, sizeof op, "setp.%s.f64", floats[k].cmp);
        V2(op, "p:gg", (uint64_t)floats[k].less, g(-1), g(2));
        V2(op, "p:gg", (uint64_t)floats[k].unordered, g(1), g(NAN));
    }
    V2("setp.eq.ftz.f32", "p:ff", 1, 1, 0); /* a subnormal is 0 */
    V2("setp.eq.f32", "p:ff", 0, 1, 0);
    V2("setp.lt.f16", "p:hh", 1, 0x3c00, 0x4000);
    V2("setp.gt.bf16", "p:hh", 1, 0x4000, 0x3f80);
    V1("testp.finite.f32", "p:f", 0, INF32);
    V1("testp.infinite.f32", "p:f", 1, NINF32);
    V1("testp.number.f32", "p:f", 0, NAN32);
    V1("testp.notanumber.f64", "p:g", 1, g(NAN));
    V1("testp.normal.f32", "p:f", 0, 1);
    V1("testp.subnormal.f32", "p:f", 1, 1);
    V1("testp.subnormal.f32", "p:f", 0, 0);
}

static void floats(void **state) {
    (void)state;
    const uint64_t tiny = 1;                           /* the least subnormal f32 */
    V2("add.rn.f32", "f:ff", f(1), f(1), f(0x1p-24f)); /* tie to even */
    V2("add.rp.f32", "f:ff", f(0x1.000002p0f), f(1), f(0x1p-60f));
    V2("add.rm.f32", "f:ff", f(0x1.fffffep-1f), f(1), f(-0x1p-60f));
    V2("add.rz.f32", "f:ff", f(-1), f(-1), f(-0x1p-60f));
    V2("add.f32", "f:ff", f(3), f(1), f(2));
    V2("add.rn.f32", "f:ff", tiny, tiny, 0);
    V2("add.rn.ftz.f32", "f:ff", 0, tiny, tiny);
    V2("add.rn.ftz.f32", "f:ff", 0, f(0x1.8p-126f), f(-0x1p-126f)); /* the result is flushed */
    V2("add.rn.sat.f32", "f:ff", f(1), f(1), f(2));
    V2("add.rn.sat.f32", "f:ff", 0, f(-1), f(-2));
    V2("add.rn.sat.f32", "f:ff", 0, NAN32, f(1));
    V2("add.rn.f32", "f:ff", NAN32, INF32, NINF32);
    V2("add.rn.f64", "g:gg", g(1), g(1), g(0x1p-53));
    V2("add.rp.f64", "g:gg", g(1 + 0x1p-52), g(1), g(0x1p-60));
    V2("sub.rn.f32", "f:ff", f(-1), f(1), f(2));
    V2("sub.rn.f64", "g:gg", g(-1), g(1), g(2));
    V2("sub.rz.f32", "f:ff", f(0x1.fffffep-1f), f(1), f(0x1p-60f));
    V2("mul.rn.f32", "f:ff", f(6), f(2), f(3));
    V2("mul.rn.f32", "f:ff", 0x80000000, f(-0x1p-100f), f(0x1p-100f));
    V2("mul.rp.f32", "f:ff", tiny, f(0x1p-100f), f(0x1p-100f));
    V2("mul.ftz.f32", "f:ff", 0x80000000, f(-0x1p-126f), f(0.5f));
    V2("mul.rn.f64", "g:gg", g(6), g(2), g(3));
    V2("mul.rz.f64", "g:gg", 0, g(0x1p-1000), g(0x1p-1000));
    V3("fma.rn.f32", "f:fff", f(0x1p-24f), f(1 + 0x1p-12f), f(1 + 0x1p-12f),
       f(-(1 + 0x1p-11f))); /* one rounding: the square's last bit survives */
    V3("fma.rm.f32", "f:fff", f(0x1.fffffep-1f), f(-0x1p-40f), f(0x1p-40f), f(1));
    V3("fma.rn.ftz.f32", "f:fff", 0, tiny, f(1), tiny);
    V3("fma.rn.sat.f32", "f:fff", f(1), f(2), f(2), f(2));
    V3("fma.rn.f64", "g:ggg", g(7), g(2), g(3), g(1));
    V3("fma.rz.f64", "g:ggg", g(1), g(0x1p-60), g(1), g(1));
    V2("div.rn.f32", "f:ff", f(0x1.555556p-2f), f(1), f(3));
    V2("div.rz.f32", "f:ff", f(0x1.555554p-2f), f(1), f(3));
    V2("div.rn.f32", "f:ff", INF32, f(1), 0);
    V2("div.rn.ftz.f32", "f:ff", 0, f(0x1p-126f), f(4));
    V2("div.rn.f64", "g:gg", g(1.0 / 3), g(1), g(3));
    V2("div.full.f32", "f:ff", f(2), f(6), f(3));
    V2("div.approx.f32", "f:ff", f(2), f(6), f(3));
    V2("div.approx.f32", "f:ff", 0, f(6), f(0x1.8p126f)); /* divisors above 2^126 give 0 */
    V2("div.full.ftz.f32", "f:ff", f(2), f(6), f(3));
    V1("rcp.rn.f32", "f:f", f(0x1.555556p-2f), f(3));
    V1("rcp.rz.f32", "f:f", f(0x1.555554p-2f), f(3));
    V1("rcp.rn.f64", "g:g", g(0.25), g(4));
    V1("rcp.approx.f32", "f:f", f(0.25f), f(4));
    V1("rcp.approx.ftz.f32", "f:f", NINF32, 0x80000001);
    V1("sqrt.rn.f32", "f:f", f(3), f(9));
    V1("sqrt.rn.f32", "f:f", NAN32, f(-1));
    V1("sqrt.rn.f32", "f:f", 0x80000000, 0x80000000);
    V1("sqrt.rp.f32", "f:f", f(0x1.6a09e8p0f), f(2));
    V1("sqrt.rn.f64", "g:g", g(3), g(9));
    V1("sqrt.approx.f32", "f:f", f(3), f(9));
    V1("sqrt.approx.ftz.f32", "f:f", 0, 1);
    V1("rsqrt.approx.f32", "f:f", f(0.25f), f(16));
    V1("rsqrt.approx.ftz.f32", "f:f", INF32, 1);
    V1("ex2.approx.f32", "f:f", f(8), f(3));
    V1("ex2.approx.ftz.f32", "f:f", f(1), 1);
    V1("ex2.approx.ftz.f32", "f:f", 0, NINF32);
    V1("lg2.approx.f32", "f:f", f(3), f(8));
    V1("lg2.approx.f32", "f:f", NAN32, f(-1));
    V1("lg2.approx.ftz.f32", "f:f", NINF32, 1);
    V1("sin.approx.f32", "f:f", 0x80000000, 0x80000000);
    V1("cos.approx.f32", "f:f", f(1), 0);
    V1("tanh.approx.f32", "f:f", f(1), f(40));
    V1("abs.f32", "f:f", f(2), f(-2));
    V1("abs.ftz.f32", "f:f", 0, 0x80000001);
    V1("abs.f64", "g:g", g(2), g(-2));
    V1("neg.f32", "f:f", 0, 0x80000000);
    V1("neg.f64", "g:g", g(-0.0), g(0));
    V2("min.f32", "f:ff", 0x80000000, 0, 0x80000000); /* -0 < +0 */
    V2("min.f32", "f:ff", f(1), NAN32, f(1));
    V2("min.NaN.f32", "f:ff", NAN32, f(1), NAN32);
    V2("min.f64", "g:gg", g(-1), g(1), g(-1));
    V2("min.ftz.f32", "f:ff", 0x80000000, 0x80000001, f(1));
    V2("max.f32", "f:ff", 0, 0x80000000, 0);
    V2("max.f32", "f:ff", f(1), f(1), NAN32);
    V2("max.NaN.f32", "f:ff", NAN32, NAN32, f(1));
    V2("max.f64", "g:gg", g(1), g(1), g(NAN));
    V2("copysign.f32", "f:ff", f(-2), f(-1), f(2)); /* magnitude of the second */
    V2("copysign.f64", "g:gg", g(2), g(1), g(-2));
    /* f16: 0x3c00 = 1, 0x4000 = 2, 0x7bff = 65504; bf16: 0x3f80 = 1 */
    V2("add.rn.f16", "h:hh", 0x4200, 0x3c00, 0x4000);
    V2("add.f16", "h:hh", 0x7c00, 0x7bff, 0x7bff);
    V2("sub.rn.f16", "h:hh", 0xbc00, 0x3c00, 0x4000);
    V2("mul.rn.f16", "h:hh", 0x4600, 0x4000, 0x4200);
    V2("add.rn.ftz.f16", "h:hh", 0, 1, 1);
    V3("fma.rn.f16", "h:hhh", 0x4700, 0x4000, 0x4200, 0x3c00);
    V2("add.rn.f16x2", "r:rr", 0x42004400, 0x3c004000, 0x40004000);
    V2("sub.rn.f16x2", "r:rr", 0xbc000000, 0x3c004000, 0x40004000);
    V2("mul.rn.f16x2", "r:rr", 0x40004400, 0x3c004000, 0x40004000);
    V3("fma.rn.f16x2", "r:rrr", 0x42004500, 0x3c004000, 0x40004000, 0x3c003c00);
    V2("add.rn.bf16", "h:hh", 0x4040, 0x3f80, 0x4000);
    V2("add.rn.bf16", "h:hh", 0x3f80, 0x3f80, 0x3b80); /* 1 + 2^-8: tie to even */
    V2("sub.rn.bf16", "h:hh", 0xbf80, 0x3f80, 0x4000);
    V2("mul.rn.bf16", "h:hh", 0x40c0, 0x4000, 0x4040);
    V3("fma.rn.bf16", "h:hhh", 0x40e0, 0x4000, 0x4040, 0x3f80);
    V2("add.rn.bf16x2", "r:rr", 0x40404080, 0x3f804000, 0x40004000);
    V2("sub.rn.bf16x2", "r:rr", 0xbf800000, 0x3f804000, 0x40004000);
    V2("mul.rn.bf16x2", "r:rr", 0x40004080, 0x3f804000, 0x40004000);
    V3("fma.rn.bf16x2", "r:rrr", 0x404040a0, 0x3f804000, 0x40004000, 0x3f803f80);
    V2("min.f16", "h:hh", 0x3c00, 0x7fff, 0x3c00);
    V2("min.NaN.f16", "h:hh", 0x7fff, 0x7fff, 0x3c00);
    V2("min.bf16", "h:hh", 0x3f80, 0x4000, 0x3f80);
    V2("min.bf16x2", "r:rr", 0x3f803f80, 0x40003f80, 0x3f804000);
    V2("max.f16", "h:hh", 0x4000, 0x4000, 0x3c00);
    V2("max.f16x2", "r:rr", 0x40004000, 0x40003c00, 0x3c004000);
    V2("max.bf16", "h:hh", 0x4000, 0x4000, 0x3f80);
    V1("abs.f16", "h:h", 0x3c00, 0xbc00);
    V1("abs.bf16", "h:h", 0x3f80, 0xbf80);
    V1("neg.f16", "h:h", 0xbc00, 0x3c00);
    V1("neg.bf16x2", "r:r", 0xbf803f80, 0x3f80bf80);
}

static void conversions(void **state) {
    (void)state;
    V1("cvt.u64.u32", "d:r", 0xffffffff, 0xffffffff);
    V1("cvt.s64.s32", "d:r", ~0ull, 0xffffffff);
    V1("cvt.u32.u64", "r:d", 7, 0x100000007);
    V1("cvt.u32.u16", "r:h", 0xffff, 0xffff);
    V1("cvt.s32.s16", "r:h", 0xffffffff, 0xffff);
    V1("cvt.s32.s8", "r:r", 0xffffff80, 0x1280); /* the register is wider than the type */
    V1("cvt.u32.u8", "r:r", 0x80, 0x1280);
    V1("cvt.u16.u32", "h:r", 0x5678, 0x12345678);
    V1("cvt.s16.s8", "h:r", 0xff80, 0x80);
    V1("cvt.u8.u32", "r:r", 0x78, 0x12345678);
    V1("cvt.sat.s8.s32", "r:r", 0x7f, 1000);
    V1("cvt.sat.s8.s32", "r:r", 0xffffff80, 0 - 1000ull);
    V1("cvt.sat.u8.s32", "r:r", 0, 0 - 5ull);
    V1("cvt.sat.u16.u32", "h:r", 0xffff, 0x12345678);
    V1("cvt.sat.u32.s64", "r:d", 0, 0 - 1ull);
    V1("cvt.sat.s32.u64", "r:d", 0x7fffffff, 1ull << 40);
    V1("cvt.rzi.s32.f32", "r:f", 0xffffffff, f(-1.9f));
    V1("cvt.rmi.s32.f32", "r:f", 0 - 2ull, f(-1.9f));
    V1("cvt.rpi.s32.f32", "r:f", 2, f(1.1f));
    V1("cvt.rni.s32.f32", "r:f", 2, f(2.5f));
    V1("cvt.rni.s32.f32", "r:f", 4, f(3.5f));
    V1("cvt.rzi.s32.f32", "r:f", 0x7fffffff, f(3e9f)); /* saturates */
    V1("cvt.rzi.s32.f32", "r:f", 0x80000000, NINF32);
    V1("cvt.rzi.s32.f32", "r:f", 0, NAN32);
    V1("cvt.rzi.u32.f32", "r:f", 0, f(-3));
    V1("cvt.rzi.u32.f32", "r:f", 0xffffffff, INF32);
    V1("cvt.rzi.s64.f32", "d:f", 1ull << 63, NAN32); /* 64 bits wide: the least */
    V1("cvt.rzi.u64.f32", "d:f", 1ull << 63, NAN32);
    V1("cvt.rzi.s32.f64", "r:g", 0x80000000, g(NAN));
    V1("cvt.rzi.s64.f64", "d:g", 0 - 5ull, g(-5.5));
    V1("cvt.rzi.u64.f64", "d:g", ~0ull, g(1e30));
    V1("cvt.rzi.u16.f32", "h:f", 0xffff, f(70000));
    V1("cvt.rzi.ftz.s32.f32", "r:f", 0, 1);
    V1("cvt.rpi.s32.f32", "r:f", 1, 1);
    V1("cvt.rpi.ftz.s32.f32", "r:f", 0, 1);
    V1("cvt.rzi.s32.f16", "r:h", 2, 0x4100);             /* 2.5 */
    V1("cvt.rn.f32.s32", "f:r", f(0x1p24f), 0x01000001); /* tie to even */
    V1("cvt.rp.f32.s32", "f:r", f(0x1.000002p24f), 0x01000001);
    V1("cvt.rz.f32.s32", "f:r", f(-0x1p24f), 0 - 0x01000001ull);
    V1("cvt.rn.f32.u32", "f:r", f(0x1p32f), 0xffffffff);
    V1("cvt.rz.f32.u32", "f:r", f(0x1.fffffep31f), 0xffffffff);
    V1("cvt.rn.f32.u64", "f:d", f(0x1.000002p40f), (1ull << 40) + (1ull << 16) + 1);
    V1("cvt.rn.f32.u64", "f:d", f(0x1p40f), (1ull << 40) + (1ull << 16));
    V1("cvt.rn.f32.u64", "f:d", f(0x1.000002p63f), (1ull << 63) + (1ull << 39) + 1);
    V1("cvt.rn.f32.s64", "f:d", f(-3), 0 - 3ull);
    V1("cvt.rn.f64.s32", "g:r", g(-3), 0 - 3ull);
    V1("cvt.rn.f64.u64", "g:d", g(0x1p64), ~0ull);
    V1("cvt.rz.f64.u64", "g:d", g(0x1.fffffffffffffp63), ~0ull);
    V1("cvt.rn.f64.s64", "g:d", g(-0x1p63), 1ull << 63);
    V1("cvt.rn.f16.s32", "h:r", 0x4200, 3);
    V1("cvt.rn.f16.s32", "h:r", 0x7c00, 65520); /* half an ulp above the largest: infinite */
    V1("cvt.rz.f16.s32", "h:r", 0x7bff, 70000);
    V1("cvt.rni.f32.f32", "f:f", f(2), f(2.5f));
    V1("cvt.rni.f32.f32", "f:f", 0x80000000, f(-0.25f));
    V1("cvt.rmi.f32.f32", "f:f", f(-3), f(-2.5f));
    V1("cvt.rpi.f32.f32", "f:f", f(-2), f(-2.5f));
    V1("cvt.rzi.f32.f32", "f:f", f(-2), f(-2.5f));
    V1("cvt.rni.f64.f64", "g:g", g(2), g(2.5));
    V1("cvt.sat.f32.f32", "f:f", f(1), f(7));
    V1("cvt.sat.f32.f32", "f:f", 0, NAN32);
    V1("cvt.ftz.f32.f32", "f:f", 0x80000000, 0x80000001);
    V1("cvt.rn.f32.f64", "f:g", f(1), g(1 + 0x1p-24));
    V1("cvt.rp.f32.f64", "f:g", f(0x1.000002p0f), g(1 + 0x1p-50));
    V1("cvt.rm.f32.f64", "f:g", 0x80000001, g(-0x1p-200));
    V1("cvt.rz.f32.f64", "f:g", f(0x1.fffffep127f), g(1e300));
    V1("cvt.rn.f32.f64", "f:g", INF32, g(1e300));
    V1("cvt.rn.ftz.f32.f64", "f:g", 0, g(0x1p-130));
    V1("cvt.f64.f32", "g:f", g(-1.5), f(-1.5f));
    V1("cvt.ftz.f64.f32", "g:f", 0, 1);
    V1("cvt.f32.f16", "f:h", f(-2), 0xc000);
    V1("cvt.f32.f16", "f:h", f(0x1p-24f), 1);
    V1("cvt.f64.f16", "g:h", g(65504), 0x7bff);
    V1("cvt.f32.bf16", "f:h", f(-2), 0xc000);
    V1("cvt.rn.f16.f32", "h:f", 0x3c00, f(1 + 0x1p-11f)); /* tie to even */
    V1("cvt.rn.f16.f32", "h:f", 0x3c02, f(1 + 0x1.8p-10f));
    V1("cvt.rz.f16.f32", "h:f", 0x3c01, f(1 + 0x1.8p-10f));
    V1("cvt.rp.f16.f32", "h:f", 1, f(0x1p-60f));
    V1("cvt.rn.f16.f32", "h:f", 0, f(0x1p-25f));
    V1("cvt.rn.f16.f32", "h:f", 0x0400, f(0x1.ffep-15f)); /* rounds up to the least normal */
    V1("cvt.rn.f16.f32", "h:f", 0xfc00, f(-1e6f));
    V1("cvt.rn.f16.f64", "h:g", 0x3c00, g(1));
    V1("cvt.rn.bf16.f32", "h:f", 0x3f80, f(1 + 0x1p-8f));
    V1("cvt.rn.bf16.f32", "h:f", 0x3f82, f(1 + 0x1.8p-7f));
    V1("cvt.rz.bf16.f32", "h:f", 0x3f81, f(1 + 0x1.8p-7f));
    V1("cvt.rn.bf16.f32", "h:f", 0x7f80, f(0x1.fffffep127f));
    V1("cvt.rn.bf16.f32", "h:f", 0x7fff, NAN32);
    V1("cvt.rn.relu.bf16.f32", "h:f", 0, f(-3));
    V1("cvt.rn.bf16.s32", "h:r", 0x4040, 3);
    V2("cvt.rn.bf16x2.f32", "r:ff", 0x3f804000, f(1), f(2)); /* the first operand is the upper */
    V2("cvt.rn.f16x2.f32", "r:ff", 0x3c004000, f(1), f(2));
    V2("cvt.rn.relu.f16x2.f32", "r:ff", 0x4000, f(-1), f(2));
    V1("cvt.rni.f16.f16", "h:h", 0x4000, 0x4100); /* 2.5 */
    V1("cvt.rpi.f16.f16", "h:h", 0x4200, 0x4100);
    V1("cvt.rmi.bf16.bf16", "h:h", 0xc040, 0xc020); /* -2.5 */
    V1("cvt.rzi.bf16.bf16", "h:h", 0xc000, 0xc020);
    V1("cvt.f64.bf16", "g:h", g(-2.5), 0xc020);
    V1("cvt.rn.bf16.f64", "h:g", 0x3f80, g(1 + 0x1p-8));           /* tie to even */
    V1("cvt.rn.bf16.f64", "h:g", 0x3f81, g(1 + 0x1p-8 + 0x1p-40)); /* one rounding, not two */
    V1("mov.u32 $d, WARP_SZ", "r:r", 32, 0);
    V1("cvt.rna.tf32.f32", "r:f", f(1 + 0x1p-10f), f(1 + 0x1p-11f)); /* ties away */
    V1("cvt.rna.tf32.f32", "r:f", f(1), f(1 + 0x1.fep-12f));
    V1("cvt.rna.tf32.f32", "r:f", f(-(1 + 0x1p-10f)), f(-(1 + 0x1p-11f)));
    V1("cvt.rna.tf32.f32", "r:f", INF32, f(0x1.fffffep127f));
    V1("cvta.to.global.u64", "d:d", 1234, 1234);
    V1("cvta.global.u64", "d:d", 1234, 1234);
}

/* Deviations of .approx: within the manual's bound, in the direction asked for, and real. */
static void approximations(void **state) {
    (void)state;
    static const struct {
        const char *op;
        float x;
        double v, bound;
    } rows[] = {{"ex2.approx.f32", 1.3f, 0, 0x1p-22},   {"ex2.approx.ftz.f32", -7.7f, 0, 0x1p-22},
                {"lg2.approx.f32", 11.0f, 0, 0x1p-22},  {"rcp.approx.f32", 1.1f, 0, 0x1p-23},
                {"rsqrt.approx.f32", 3.0f, 0, 0x1p-22}, {"sqrt.approx.f32", 3.0f, 0, 0x1p-23},
                {"tanh.approx.f32", 0.7f, 0, 0x1p-11},  {"sin.approx.f32", 1.0f, 0, 0x1p-20},
                {"cos.approx.f32", 1.0f, 0, 0x1p-19}};
    double (*exact[])(double) = {exp2, exp2, log2, NULL, NULL, sqrt, tanh, sin, cos};
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        double x = rows[k].x, v = k == 3 ? 1 / x : k == 4 ? 1 / sqrt(x) : exact[k](x);
        for (int mode = PTX_APPROX_EXACT; mode <= PTX_APPROX_RANDOM; mode++) {
            PtxOptions o = ptx_options(90);
            o.approx = (PtxApprox)mode;
            o.seed = 0;
            ptx_device_set(device, &o);
            uint64_t in[5] = {f(rows[k].x)}, out[2];
            float got;
            if (mode == PTX_APPROX_RANDOM) { /* lanes differ: checked on their own below */
                continue;
            }
            run_vector(rows[k].op, "f:f", in, out);
            uint32_t u = (uint32_t)out[0];
            memcpy(&got, &u, 4);
            double err = (got - v) / fabs(v);
            assert_true(fabs(err) <= rows[k].bound * 1.001);
            if (mode == PTX_APPROX_EXACT) {
                assert_true(got == (float)v);
            } else {
                assert_true(mode == PTX_APPROX_HIGH ? got > (float)v : got < (float)v);
            }
        }
    }
    PtxOptions o = ptx_options(90);
    ptx_device_set(device, &o);
}

/* Every row of the table of forms is run by a vector or by a kernel that is kept here. */
static void every_form_is_tested(void **state) {
    (void)state;
    static const char *const files[] = {"kernels/vecadd.ptx", "kernels/twins.ptx",
                                        "kernels/warps.ptx", "kernels/memory.ptx"};
    uint8_t *by_kernel = calloc((size_t)ptx_form_types(), 1);
    for (size_t k = 0; k < sizeof files / sizeof *files; k++) {
        char *text = ptx_file(files[k]);
        ptx_forms_used(text, strlen(text), by_kernel);
        free(text);
    }
    int untested = ptx_forms_print(getenv("PTX_FORMS") ? stdout : NULL, by_vector, by_kernel);
    assert_int_equal(untested, 0);
    free(by_kernel);
}

static int setup(void **state) {
    (void)state;
    PtxOptions o = ptx_options(90);
    device = ptx_device_new(&o);
    by_vector = calloc((size_t)ptx_form_types(), 1);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    assert_int_equal(ptx_live_allocations(device), 0);
    ptx_device_free(device);
    free(by_vector);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(integer_arithmetic),  cmocka_unit_test(bits),
        cmocka_unit_test(comparisons),         cmocka_unit_test(floats),
        cmocka_unit_test(conversions),         cmocka_unit_test(approximations),
        cmocka_unit_test(every_form_is_tested)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
