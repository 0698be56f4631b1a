/* Two of LLVM's back ends must agree: operations on every type, compiled to PTX and run by the
 * emulator, and compiled for this CPU and run by it, on the same random values, bit for bit (any
 * NaN is as good as another). So the emulator is held against a meaning of these operations that
 * is not its author's. Needs llc-19 and cc; skipped aloud elsewhere. */
#include "ptx_help.h"

#include <dlfcn.h>
#include <unistd.h>

#include "tests/ptx/tools.h"

enum { THREADS = 64, ROUNDS = 4, MOST = 600 };

typedef enum { ANY, DIVISOR, SHIFT, SMALL } Domain; /* of the second value; SMALL: of the first */

typedef struct Op {
    char name[48], in[8], out[8]; /* LLVM types */
    char body[400];               /* %x, %y to %r */
    char declare[160];
    Domain domain;
} Op;

static Op ops[MOST];
static int nops;

static void add(const char *name, const char *in, const char *out, Domain domain,
                const char *declare, const char *format, ...) __attribute__((format(printf, 6, 7)));
static void add(const char *name, const char *in, const char *out, Domain domain,
                const char *declare, const char *format, ...) {
    assert_true(nops < MOST);
    Op *o = &ops[nops];
    snprintf(o->name, sizeof o->name, "op%d_%s_%s", nops, name, in);
    for (char *c = o->name; *c; c++) {
        *c = *c == '.' ? '_' : *c;
    }
    snprintf(o->in, sizeof o->in, "%s", in);
    snprintf(o->out, sizeof o->out, "%s", out);
    snprintf(o->declare, sizeof o->declare, "%s", declare);
    o->domain = domain;
    va_list a;
    va_start(a, format);
    vsnprintf(o->body, sizeof o->body, format, a);
    va_end(a);
    nops++;
}

/* %r = FN(%x, …) with n operands of type t. */
static void intrinsic(const char *fn, const char *t, const char *suffix, int n, const char *extra) {
    char declare[160];
    snprintf(declare, sizeof declare, "declare %s @llvm.%s.%s(%s%s%s%s)", t, fn, suffix, t,
             n > 1 ? ", " : "", n > 1 ? t : "", *extra ? ", i1" : "");
    if (n == 3) {
        snprintf(declare, sizeof declare, "declare %s @llvm.%s.%s(%s, %s, %s)", t, fn, suffix, t, t,
                 t);
        add(fn, t, t, ANY, declare, "%%r = call %s @llvm.%s.%s(%s %%x, %s %%y, %s %%x)", t, fn,
            suffix, t, t, t);
    } else if (n == 2) {
        add(fn, t, t, ANY, declare, "%%r = call %s @llvm.%s.%s(%s %%x, %s %%y)", t, fn, suffix, t,
            t);
    } else {
        add(fn, t, t, ANY, declare, "%%r = call %s @llvm.%s.%s(%s %%x%s)", t, fn, suffix, t, extra);
    }
}

static void integer_ops(int bits) {
    static const char *const plain[] = {"add", "sub", "mul", "and", "or", "xor"};
    static const char *const divide[] = {"sdiv", "udiv", "srem", "urem"};
    static const char *const shift[] = {"shl", "lshr", "ashr"};
    static const char *const two[] = {"smin", "smax", "umin", "umax", "uadd.sat", "ssub.sat"};
    static const char *const compare[] = {"eq",  "ne",  "slt", "sle", "sgt",
                                          "sge", "ult", "ule", "ugt", "uge"};
    char t[16];
    snprintf(t, sizeof t, "i%d", bits);
    for (int k = 0; k < 6; k++) {
        add(plain[k], t, t, ANY, "", "%%r = %s %s %%x, %%y", plain[k], t);
    }
    for (int k = 0; k < 4; k++) {
        add(divide[k], t, t, DIVISOR, "", "%%r = %s %s %%x, %%y", divide[k], t);
    }
    for (int k = 0; k < 3; k++) {
        add(shift[k], t, t, SHIFT, "", "%%r = %s %s %%x, %%y", shift[k], t);
    }
    for (int k = 0; k < 6; k++) {
        intrinsic(two[k], t, t, 2, "");
    }
    intrinsic("ctpop", t, t, 1, "");
    intrinsic("bitreverse", t, t, 1, "");
    intrinsic("ctlz", t, t, 1, ", i1 false");
    intrinsic("cttz", t, t, 1, ", i1 false");
    intrinsic("abs", t, t, 1, ", i1 false");
    if (bits > 8) {
        intrinsic("bswap", t, t, 1, "");
    }
    if (bits > 16) {
        intrinsic("fshl", t, t, 3, "");
        intrinsic("fshr", t, t, 3, "");
    }
    for (int k = 0; k < 10; k++) {
        add(compare[k], t, "i32", ANY, "", "%%c = icmp %s %s %%x, %%y\n %%r = sext i1 %%c to i32",
            compare[k], t);
    }
    for (int to = 8; to <= 64; to *= 2) {
        char other[16];
        snprintf(other, sizeof other, "i%d", to);
        if (to > bits) {
            add("sext", t, other, ANY, "", "%%r = sext %s %%x to %s", t, other);
            add("zext", t, other, ANY, "", "%%r = zext %s %%x to %s", t, other);
        } else if (to < bits) {
            add("trunc", t, other, ANY, "", "%%r = trunc %s %%x to %s", t, other);
        }
    }
}

static void float_ops(const char *t, const char *suffix) {
    static const char *const two[] = {"fadd", "fsub", "fmul", "fdiv"};
    static const char *const one[] = {"fabs", "floor", "ceil",     "trunc",
                                      "rint", "round", "roundeven"};
    static const char *const pair[] = {"minnum", "maxnum", "minimum", "maximum", "copysign"};
    static const char *const compare[] = {"oeq", "one", "olt", "ole", "ogt", "oge", "ord",
                                          "ueq", "une", "ult", "ule", "ugt", "uge", "uno"};
    for (int k = 0; k < 4; k++) {
        add(two[k], t, t, ANY, "", "%%r = %s %s %%x, %%y", two[k], t);
    }
    add("fneg", t, t, ANY, "", "%%r = fneg %s %%x", t);
    for (int k = 0; k < 7; k++) {
        intrinsic(one[k], t, suffix, 1, "");
    }
    for (int k = 0; k < 5; k++) {
        intrinsic(pair[k], t, suffix, 2, "");
    }
    intrinsic("fma", t, suffix, 3, "");
    if (strcmp(t, "half")) {
        intrinsic("sqrt", t, suffix, 1, "");
    }
    for (int k = 0; k < 14; k++) {
        add(compare[k], t, "i32", ANY, "", "%%c = fcmp %s %s %%x, %%y\n %%r = zext i1 %%c to i32",
            compare[k], t);
    }
    for (int bits = 8; bits <= 64; bits *= 2) {
        char n[16], declare[160];
        snprintf(n, sizeof n, "i%d", bits);
        add("fptosi", t, n, SMALL, "", "%%r = fptosi %s %%x to %s", t, n);
        add("sitofp", n, t, ANY, "", "%%r = sitofp %s %%x to %s", n, t);
        add("uitofp", n, t, ANY, "", "%%r = uitofp %s %%x to %s", n, t);
        snprintf(declare, sizeof declare, "declare %s @llvm.fptosi.sat.%s.%s(%s)", n, n, suffix, t);
        add("sat", t, n, ANY, declare, "%%r = call %s @llvm.fptosi.sat.%s.%s(%s %%x)", n, n, suffix,
            t);
    }
    static const char *const types[] = {"half", "float", "double"};
    int own = !strcmp(t, "half") ? 0 : !strcmp(t, "float") ? 1 : 2;
    for (int k = 0; k < 3; k++) {
        if (k < own) {
            add("fptrunc", t, types[k], ANY, "", "%%r = fptrunc %s %%x to %s", t, types[k]);
        } else if (k > own) {
            add("fpext", t, types[k], ANY, "", "%%r = fpext %s %%x to %s", t, types[k]);
        }
    }
    add("select", t, t, ANY, "", "%%c = fcmp olt %s %%x, %%y\n %%r = select i1 %%c, %s %%y, %s %%x",
        t, t, t);
}

static void make_ops(void) {
    for (int bits = 8; bits <= 64; bits *= 2) {
        integer_ops(bits);
    }
    float_ops("half", "f16");
    float_ops("float", "f32");
    float_ops("double", "f64");
}

/* All operations as one module; the element is the thread's, or on the CPU an argument. */
static void write_module(const char *path, bool gpu) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    const char *p = gpu ? "ptr addrspace(1)" : "ptr";
    if (gpu) {
        fputs("target datalayout = \"e-i64:64-i128:128-v16:16-v32:32-n16:32:64\"\n"
              "target triple = \"nvptx64-nvidia-cuda\"\n"
              "declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()\n",
              f);
    } else {
        fputs("target triple = \"x86_64-pc-linux-gnu\"\n", f);
    }
    for (int k = 0; k < nops; k++) {
        bool seen = false;
        for (int j = 0; j < k && !seen; j++) {
            seen = !strcmp(ops[j].declare, ops[k].declare);
        }
        fprintf(f, "%s\n", seen ? "" : ops[k].declare);
    }
    for (int k = 0; k < nops; k++) {
        const Op *o = &ops[k];
        fprintf(f, "define void @%s(%s %%p, %s %%q, %s %%o%s) {\n", o->name, p, p, p,
                gpu ? "" : ", i32 %i");
        if (gpu) {
            fputs(" %i = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()\n", f);
        }
        fprintf(f,
                " %%xp = getelementptr %s, %s %%p, i32 %%i\n %%yp = getelementptr %s, %s %%q, i32 "
                "%%i\n %%rp = getelementptr %s, %s %%o, i32 %%i\n %%x = load %s, %s %%xp\n %%y = "
                "load %s, %s %%yp\n %s\n store %s %%r, %s %%rp\n ret void\n}\n",
                o->in, p, o->in, p, o->out, p, o->in, p, o->in, p, o->body, o->out, p);
    }
    for (int k = 0; gpu && k < nops; k++) {
        fprintf(f, "!%d = !{ptr @%s, !\"kernel\", i32 1}\n", k, ops[k].name);
    }
    if (gpu) {
        fputs("!nvvm.annotations = !{", f);
        for (int k = 0; k < nops; k++) {
            fprintf(f, "%s!%d", k ? ", " : "", k);
        }
        fputs("}\n", f);
    }
    fclose(f);
}

static size_t type_bytes(const char *t) {
    return *t == 'i' ? (size_t)atoi(t + 1) / 8 : *t == 'h' ? 2 : *t == 'f' ? 4 : 8;
}

static uint64_t state = 1;
static uint64_t draw(void) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return state >> 11 ^ state << 40;
}

__extension__ typedef _Float16 Half;

/* Floats of all sizes, never 0: which zero a minimum gives is open. */
static double draw_real(bool small) {
    static const double odd[] = {0.5, -1.5, 2.5, 1e-3, 65504, -7e-8, INFINITY, NAN, 1e30, -1e-40};
    if (!small && draw() % 8 == 0) {
        return odd[draw() % 10];
    }
    double v = (double)(int64_t)draw() * 0x1p-63;
    return v == 0 ? 1 : v * (small ? 100 : draw() % 2 ? 3 : 1000);
}

static void fill(void *to, const char *t, int n, Domain domain, bool second) {
    size_t bytes = type_bytes(t);
    for (int k = 0; k < n; k++) {
        uint8_t *p = (uint8_t *)to + bytes * (size_t)k;
        double v = draw_real(domain == SMALL);
        uint64_t u = draw() % 4 ? draw() : draw() % 300 - 150;
        if (*t == 'h') {
            Half h = (Half)v;
            memcpy(p, &h, 2);
        } else if (*t == 'f') {
            float f = (float)v;
            memcpy(p, &f, 4);
        } else if (*t == 'd') {
            memcpy(p, &v, 8);
        } else {
            if (second && domain == SHIFT) {
                u %= 8 * bytes;
            } else if (second && domain == DIVISOR) {
                u = draw() % 2 ? 1 + u % 100 : (u & 0x7f) | 1; /* neither 0 nor -1 */
            }
            memcpy(p, &u, bytes);
        }
    }
}

static bool equal(const uint8_t *a, const uint8_t *b, const char *t) {
    size_t n = type_bytes(t);
    if (!memcmp(a, b, n)) {
        return true;
    }
    double x = 0, y = 0;
    if (*t == 'h') {
        Half p, q;
        memcpy(&p, a, 2);
        memcpy(&q, b, 2);
        x = (double)p;
        y = (double)q;
    } else if (*t == 'f') {
        float p, q;
        memcpy(&p, a, 4);
        memcpy(&q, b, 4);
        x = p;
        y = q;
    } else if (*t == 'd') {
        memcpy(&x, a, 8);
        memcpy(&y, b, 8);
    }
    return isnan(x) && isnan(y);
}

static void run_op(const Op *o, PtxDevice *d, PtxModule *m, void *library) {
    union {
        void *object;
        void (*call)(void *, void *, void *, int);
    } cpu = {dlsym(library, o->name)};
    uint8_t x[8 * THREADS], y[8 * THREADS], want[8 * THREADS], got[8 * THREADS];
    assert_non_null(cpu.object);
    size_t in = type_bytes(o->in) * THREADS, out = type_bytes(o->out) * THREADS;
    struct {
        uint64_t p, q, o;
    } p = {ptx_malloc(d, in), ptx_malloc(d, in), ptx_malloc(d, out)};
    for (int round = 0; round < ROUNDS; round++) {
        unsigned threads = round ? THREADS : 45; /* once with a part of a warp */
        fill(x, o->in, THREADS, o->domain, false);
        fill(y, o->in, THREADS, o->domain, true);
        ptx_write(d, p.p, x, in);
        ptx_write(d, p.q, y, in);
        ptx_must_launch(d, ptx_kernel(m, o->name), 1, threads, &p, sizeof p);
        assert_true(ptx_read(d, got, p.o, type_bytes(o->out) * threads, true));
        for (unsigned i = 0; i < threads; i++) {
            size_t at = type_bytes(o->out) * i;
            cpu.call(x, y, want, (int)i);
            if (!equal(got + at, want + at, o->out)) {
                fail_msg("%s: %s: thread %u differs", o->name, o->body, i);
            }
        }
    }
    ptx_free(d, p.p);
    ptx_free(d, p.q);
    ptx_free(d, p.o);
}

static char folder[] = "/tmp/ptx-llvm-XXXXXX";

static bool shell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static bool shell(const char *format, ...) {
    char command[1000];
    va_list a;
    va_start(a, format);
    vsnprintf(command, sizeof command, format, a);
    va_end(a);
    return system(command) == 0;
}

static void as_this_cpu(void **unused) {
    (void)unused;
    bool able = false;
#ifdef __x86_64__
    able = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    if (!able || !shell("llc-19 --version >/dev/null 2>&1 && cc --version >/dev/null 2>&1")) {
        print_message("SKIPPED: llc-19, cc or an x86 with AVX2 and FMA is missing\n");
        skip();
    }
    make_ops();
    assert_non_null(mkdtemp(folder));
    char path[64];
    snprintf(path, sizeof path, "%s/gpu.ll", folder);
    write_module(path, true);
    snprintf(path, sizeof path, "%s/cpu.ll", folder);
    write_module(path, false);
    assert_true(shell("llc-19 -O1 -relocation-model=pic -mattr=+avx2,+fma,+f16c -filetype=obj "
                      "%s/cpu.ll -o %s/cpu.o && cc -shared %s/cpu.o -o %s/cpu.so -lm",
                      folder, folder, folder, folder));
    snprintf(path, sizeof path, "%s/cpu.so", folder);
    void *library = dlopen(path, RTLD_NOW);
    if (!library) {
        fail_msg("%s", dlerror());
    }
    static const char *const targets[] = {"sm_80 -mattr=+ptx70", "sm_90 -mattr=+ptx80"};
    for (int t = 0; t < 2; t++) {
        assert_true(shell("llc-19 -march=nvptx64 -mcpu=%s %s/gpu.ll -o %s/gpu.ptx", targets[t],
                          folder, folder));
        snprintf(path, sizeof path, "%s/gpu.ptx", folder);
        FILE *f = fopen(path, "r");
        char *text = malloc(4 << 20);
        assert_non_null(f);
        size_t n = fread(text, 1, 4 << 20, f);
        fclose(f);
        assert_int_equal(ptx_lint(text, n, 90, stderr), 0);
        PtxOptions options = ptx_options(90);
        PtxDevice *d = ptx_device_new(&options);
        PtxModule *m = ptx_load(d, text, n);
        if (!m) {
            fail_msg("%s", ptx_error(d));
        }
        for (int k = 0; k < nops; k++) {
            run_op(&ops[k], d, m, library);
        }
        ptx_device_free(d);
        free(text);
    }
    dlclose(library);
    shell("rm -r %s", folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(as_this_cpu)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
