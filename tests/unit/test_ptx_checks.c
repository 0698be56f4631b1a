/* What the PTX emulator must refuse: each check provoked by a kernel of a few lines, and the words
 * it is refused with. */
#include "ptx_help.h"

#define HEAD ".version 7.0\n.target sm_80\n.address_size 64\n"
/* Line 5 is the first of a body: a, b: two buffers of 64 and 128 bytes. */
#define KERNEL \
    HEAD ".visible .entry k(.param .u64 a, .param .u64 b) { .reg .pred %p<9>; .reg .b16 %h<9>; " \
         ".reg .b32 %r<99>; .reg .f32 %f<9>; .reg .b64 %d<99>; " \
         ".shared .align 16 .b8 s[256]; " \
         "ld.param.u64 %d1, [a]; ld.param.u64 %d2, [b]; mov.u32 %r1, %tid.x; " \
         "mul.wide.u32 %d3, %r1, 4; add.s64 %d4, %d1, %d3; mov.u32 %r2, s; shl.b32 %r3, %r1, 2; " \
         "add.s32 %r4, %r2, %r3; mov.u32 %r5, %ctaid.x; mov.u32 %r0, 0;\n"

typedef struct Try {
    PtxOptions o;
    unsigned grid, block;
    bool free_b, a_unwritten, writes_b;
} Try;

static Try one_warp(void) {
    return (Try){.o = ptx_options(80), .grid = 1, .block = 32};
}

/* Runs a body; the error ("" for none) must contain `want`, and NULL means none. */
static void run_try(const Try *t, const char *body, const char *want, const char *file, int line) {
    char text[8192], zero[128] = {0};
    PtxDevice *d = ptx_device_new(&t->o);
    snprintf(text, sizeof text, "%s%s\nret;\n}\n", KERNEL, body);
    PtxModule *m = ptx_load(d, text, strlen(text));
    bool ok = m != NULL;
    if (m) {
        struct {
            uint64_t a, b;
        } p = {ptx_malloc(d, 64), ptx_malloc(d, 128)};
        if (!t->a_unwritten) {
            ptx_write(d, p.a, zero, 64);
        }
        ptx_write(d, p.b, zero, 128);
        if (t->free_b) {
            ptx_free(d, p.b);
        }
        ok = ptx_launch(d, ptx_kernel(m, "k"), (unsigned[3]){t->grid, 1, 1},
                        (unsigned[3]){t->block, 1, 1}, 0, &p, sizeof p);
    }
    if (want ? ok || !strstr(ptx_error(d), want) : !ok) {
        fail_msg("%s:%d: the error is '%s', not '%s'", file, line, ok ? "" : ptx_error(d),
                 want ? want : "");
    }
    ptx_device_free(d);
}
#define REFUSED(t, body, want) run_try(t, body, want, __FILE__, __LINE__)
#define FINE(t, body) run_try(t, body, NULL, __FILE__, __LINE__)

static void bounds(void **state) {
    (void)state;
    Try t = one_warp();
    t.block = 16;
    FINE(&t, "st.global.u32 [%d4], %r1;");
    t.block = 17;
    REFUSED(&t, "st.global.u32 [%d4], %r1;", "kernel k: line 5: st.global.u32: address 0x");
    REFUSED(&t, "st.global.u32 [%d4], %r1;",
            "is 0 bytes behind allocation 0xa00000000000 of 64 bytes (thread 16,0,0 of CTA 0,0,0)");
    REFUSED(&t, "ld.global.u32 %r6, [%d1+-4];", "is 4 bytes before allocation 0x");
    REFUSED(&t, "\nld.global.v4.u32 {%r6,%r7,%r8,%r9}, [%d1+64];", "line 6: ld.global.v4.u32");
    REFUSED(&t, "ld.global.u64 %d9, [%d1+60];", "is not a multiple of 8");
    REFUSED(&t, "ld.global.u32 %r9, [%d1+2];", "is not a multiple of 4");
    REFUSED(&t, "st.global.v2.f32 [%d1+4], {%f1, %f2};", "read before it is written");
    REFUSED(&t, "ld.global.u32 %r6, [%d4+100000];", "behind allocation");
    REFUSED(&t, "st.shared.u32 [s+256], %r1;", "(offset 256) is outside the CTA's 256 bytes");
    REFUSED(&t, "mov.u64 %d9, 0; st.shared.u32 [%d9], %r1;", "is outside the CTA's 256 bytes");
    REFUSED(&t, "ld.shared.u32 %r6, [%r2+-4];", "is outside the CTA's 256 bytes");
    REFUSED(&t, "atom.global.add.u32 %r6, [%d1+64], %r1;", "atom.global.add.u32: address 0x");
    REFUSED(&t, "mov.u64 %d9, 16; ld.param.u32 %r6, [%d9];", "parameter offset 16");
    REFUSED(&t, "cp.async.ca.shared.global [s], [%d1+64], 16;", "behind allocation");
    REFUSED(&t, "cp.async.ca.shared.global [s+8], [%d1], 16;", "is not a multiple of 16");
    t.block = 1;
    FINE(&t, "cp.async.ca.shared.global [s], [%d1+48], 16, 8; cp.async.wait_all;");
    REFUSED(&t, "cp.async.ca.shared.global [s], [%d1], 16, 17;", "the source size 17");
    t.free_b = true;
    REFUSED(&t, "ld.global.u32 %r6, [%d2];", "is in freed memory");
}

static void initialisation(void **state) {
    (void)state;
    Try t = one_warp();
    t.block = 16;
    t.a_unwritten = true;
    REFUSED(&t, "ld.global.u32 %r6, [%d4];", "which nobody wrote");
    t.block = 1;
    REFUSED(&t, "st.global.u8 [%d1], 1; ld.global.u16 %h1, [%d1];", "reads byte 0xa00000000001");
    t.block = 16;
    FINE(&t, "st.global.u32 [%d4], %r1; ld.global.u32 %r6, [%d4];");
    REFUSED(&t, "atom.global.add.u32 %r6, [%d4], 1;", "which nobody wrote");
    REFUSED(&t, "ld.shared.u32 %r6, [s];", "which nobody wrote (shared)");
    REFUSED(&t, "add.s32 %r7, %r6, 1;", "register %r6 is read before it is written");
    REFUSED(&t, "mov.u32 %r7, %r6; add.s32 %r7, %r7, 1;", "register %r7 is read");
    REFUSED(&t, "@%p1 mov.u32 %r7, 1;", "register %p1 is read before");
    REFUSED(&t, "setp.lt.u32 %p1, %r1, 8; @%p1 mov.u32 %r7, 1; add.s32 %r7, %r7, 1;",
            "(thread 8,0,0");
    FINE(&t, "mov.u32 %r7, %r6;");
    t.o.check_init = false;
    FINE(&t, "ld.global.u32 %r6, [%d4];");
    /* what nobody wrote is poison, not 0 */
    REFUSED(&t, "ld.global.u32 %r6, [%d4]; setp.eq.s32 %p1, %r6, -1; @%p1 trap;",
            "the kernel stops itself");
}

static void races_shared(void **state) {
    (void)state;
    Try t = one_warp();
    t.block = 64;
    FINE(&t, "st.shared.u32 [%r4], %r1; bar.sync 0; ld.shared.u32 %r6, [s+12];");
    REFUSED(&t, "st.shared.u32 [%r4], %r1; ld.shared.u32 %r6, [s+12];",
            "ld.shared.u32: race: reads shared address 0x40c, which thread 3 of the CTA wrote with "
            "no barrier between");
    REFUSED(&t, "st.shared.u32 [s], %r1;", "race: writes shared address 0x400, which thread 0 of");
    REFUSED(&t,
            "st.shared.u32 [%r4], %r1; bar.sync 0; ld.shared.u32 %r6, [s]; st.shared.u32 [%r4], "
            "%r6;",
            "of the CTA read with no barrier between");
    FINE(&t, "st.shared.u32 [%r4], %r1; bar.sync 0; ld.shared.u32 %r6, [s]; bar.sync 0; "
             "st.shared.u32 [%r4], %r6;");
    FINE(&t, "st.shared.u32 [%r4], %r0; bar.sync 0; atom.shared.add.u32 %r6, [s], 1; bar.sync 0; "
             "ld.shared.u32 %r7, [s];");
    REFUSED(&t,
            "st.shared.u32 [%r4], %r0; bar.sync 0; atom.shared.add.u32 %r6, [s], 1; "
            "ld.shared.u32 %r7, [s];",
            "updated atomically with no barrier");
    FINE(&t, "st.shared.u32 [%r4], %r0; bar.sync 0; atom.shared.add.u32 %r6, [s], 1; "
             "ld.volatile.shared.u32 %r7, [s];");
    /* bytes side by side do not race, as words they would */
    FINE(&t,
         "mov.u32 %r6, s; add.s32 %r6, %r6, %r1; cvt.u16.u32 %h1, %r1; st.shared.u8 [%r6], %h1; "
         "bar.sync 0; ld.shared.u32 %r7, [s];");
    REFUSED(&t,
            "mov.u32 %r6, s; add.s32 %r6, %r6, %r1; cvt.u16.u32 %h1, %r1; "
            "st.shared.u8 [%r6], %h1; ld.shared.u8 %h2, [s+5];",
            "which thread 5 of the CTA");
    /* within a warp */
    t.block = 32;
    REFUSED(&t,
            "st.shared.u32 [%r4], %r1; shfl.sync.idx.b32 %r6, %r1, 0, 31, -1; "
            "ld.shared.u32 %r6, [s];",
            "race");
    FINE(&t, "st.shared.u32 [%r4], %r1; bar.warp.sync -1; ld.shared.u32 %r6, [s];");
    FINE(&t, "st.shared.u32 [%r4], %r1; bar.warp.sync -1; ld.shared.u32 %r6, [s]; "
             "bar.warp.sync -1; st.shared.u32 [%r4], %r6;");
    REFUSED(&t,
            "st.shared.u32 [%r4], %r1; bar.warp.sync -1; ld.shared.u32 %r6, [s]; "
            "st.shared.u32 [%r4], %r6;",
            "race: writes shared");
    FINE(&t, "st.shared.u32 [%r4], %r1; bar.warp.sync -1; ld.shared.u32 %r6, [s]; "
             "bar.warp.sync -1; setp.eq.s32 %p1, %r1, 0; @%p1 ld.shared.u32 %r6, [s]; "
             "@%p1 st.shared.u32 [s], %r6;");
    t.block = 64; /* … but not between warps */
    REFUSED(&t, "st.shared.u32 [%r4], %r1; bar.warp.sync -1; ld.shared.u32 %r6, [s];",
            "race: reads shared address 0x400, which thread 0 of the CTA wrote");
    t.o.check_races = false;
    FINE(&t, "st.shared.u32 [s], %r1;");
}

static void races_global(void **state) {
    (void)state;
    Try t = one_warp();
    t.block = 1;
    t.grid = 2;
    REFUSED(&t, "st.global.u32 [%d1], %r5;",
            "race: writes global address 0xa00000000000, which thread 0 of CTA 0 wrote");
    REFUSED(&t, "ld.global.u32 %r6, [%d1]; st.global.u32 [%d1], %r5;",
            "which thread 0 of CTA 0 wrote");
    REFUSED(&t,
            "setp.eq.s32 %p1, %r5, 0; @%p1 ld.global.u32 %r6, [%d1]; "
            "@!%p1 st.global.u32 [%d1], %r5;",
            "which thread 0 of CTA 0 read");
    FINE(&t, "atom.global.add.u32 %r6, [%d1], 1; red.global.add.u32 [%d1], 1;");
    REFUSED(&t, "atom.global.add.u32 %r6, [%d1], 1; ld.global.u32 %r6, [%d1];", "race");
    t.grid = 4; /* the last CTA writes what all have read */
    REFUSED(&t, "ld.global.u32 %r6, [%d1]; setp.eq.s32 %p1, %r5, 3; @%p1 st.global.u32 [%d1], %r5;",
            "which threads of other CTAs read (thread 0,0,0 of CTA 3,0,0)");
    FINE(&t, "ld.global.u32 %r6, [%d1]; ld.global.nc.u32 %r6, [%d1];");
    t.grid = 2;
    /* a fence and a flag are no order to the check: it must not be silent about them */
    REFUSED(&t, "st.global.u32 [%d1], %r5; membar.gl; st.volatile.global.u32 [%d1+4], 1;", "race");
    t.grid = 1;
    t.block = 16;
    FINE(&t, "ld.global.nc.u32 %r6, [%d4]; ld.global.nc.u32 %r6, [%d1];");
    REFUSED(&t, "ld.global.nc.u32 %r6, [%d4]; st.global.u32 [%d4], %r6;",
            "although this launch reads it through ld.global.nc");
    REFUSED(&t, "st.global.u32 [%d4], %r1; ld.global.nc.u32 %r6, [%d4];",
            "through .nc although this launch writes it");
}

/* Launches are ordered, CTAs of one are not; what seed shuffles, the check sees without. */
static void launches_are_ordered(void **state) {
    (void)state;
    PtxOptions o = ptx_options(80);
    PtxDevice *d = ptx_device_new(&o);
    char text[4096], zero[128] = {0};
    snprintf(text, sizeof text, "%s%s\nret;\n}\n", KERNEL,
             "ld.global.nc.u32 %r6, [%d4]; mul.wide.u32 %d5, %r1, 4; add.s64 %d5, %d2, %d5; "
             "st.global.u32 [%d5], %r1;");
    PtxModule *m = ptx_must_load(d, text);
    struct {
        uint64_t a, b;
    } p = {ptx_upload(d, zero, 64), ptx_upload(d, zero, 128)}, q = {p.b, p.a};
    for (int k = 0; k < 3; k++) { /* a to b, then b to a */
        ptx_must_launch(d, ptx_kernel(m, "k"), 1, 16, k % 2 ? &q : &p, sizeof p);
    }
    ptx_device_free(d);
}

static void asynchronous_copies(void **state) {
    (void)state;
    for (int late = 0; late < 2; late++) {
        Try t = one_warp();
        t.block = 4;
        t.o.async_late = late;
#define COPY \
    "shl.b32 %r6, %r1, 4; add.s32 %r7, %r2, %r6; mul.wide.u32 %d5, %r1, 16; " \
    "add.s64 %d5, %d5, %d1; cp.async.cg.shared.global [%r7], [%d5], 16; "
        REFUSED(&t, COPY "ld.shared.u32 %r8, [%r7];", "");
        FINE(&t, COPY "cp.async.wait_all; ld.shared.u32 %r8, [%r7];");
        FINE(&t, COPY "cp.async.commit_group; cp.async.wait_group 0; ld.shared.u32 %r8, [%r7];");
        REFUSED(&t, COPY "cp.async.commit_group; cp.async.wait_group 1; ld.shared.u32 %r8, [%r7];",
                "");
        REFUSED(&t, COPY "cp.async.wait_group 0; ld.shared.u32 %r8, [%r7];", "");
        REFUSED(&t, COPY "st.shared.u32 [%r7], %r1;", "while a cp.async of thread 0 still copies");
        REFUSED(&t, COPY "cp.async.wait_all; ld.shared.u32 %r8, [s];", "race");
        FINE(&t, COPY "cp.async.wait_all; bar.sync 0; ld.shared.u32 %r8, [s];");
#undef COPY
    }
}

static void divergence(void **state) {
    (void)state;
    Try t = one_warp();
#define HALF "setp.lt.u32 %p1, %r1, 16; @%p1 bra $x; "
    REFUSED(&t, HALF "bar.sync 0; $x: add.s32 %r6, %r1, 1;", "which has exited");
    REFUSED(
        &t, HALF "bar.sync 0; $x: bar.warp.sync -1;",
        "bar.sync: waits for lanes 0xffffffff, only 0xffff0000 arrive; lanes 0x0000ffff wait at");
    REFUSED(&t, HALF "shfl.sync.bfly.b32 %r6, %r1, 1, 31, -1; $x: bar.warp.sync -1;",
            "shfl.sync.bfly.b32: waits for lanes 0xffffffff, only 0xffff0000 arrive; lanes "
            "0x0000ffff wait at line 5");
    REFUSED(&t, HALF "shfl.sync.bfly.b32 %r6, %r1, 1, 31, 0x0000ffff; $x: add.s32 %r6, %r1, 1;",
            "the lane is not in its own member mask 0x0000ffff");
    FINE(&t, HALF "shfl.sync.bfly.b32 %r6, %r1, 1, 31, 0xffff0000; $x: add.s32 %r6, %r1, 1;");
    REFUSED(&t, HALF "shfl.sync.idx.b32 %r6, %r1, 0, 31, 0xffff0000; $x: add.s32 %r6, %r1, 1;",
            "takes the value of lane 0, which does not take part");
    FINE(&t,
         HALF "mov.u32 %r9, 1; bra $y; $x: mov.u32 %r9, 2; $y: shfl.sync.bfly.b32 %r6, %r9, 16, "
              "31, -1;");
    REFUSED(&t, HALF "bra.uni $y; $x: ret; $y: bar.sync 0;", "which has exited");
    REFUSED(&t, "setp.lt.u32 %p1, %r1, 16; @%p1 bra.uni $x; $x: add.s32 %r6, %r1, 1;",
            "says .uni but lanes disagree");
    FINE(&t, HALF
         "ret; $x: shfl.sync.bfly.b32 %r6, %r1, 1, 31, -1;"); /* exited lanes are not awaited */
#undef HALF
    t.block = 64;
    REFUSED(&t, "setp.lt.u32 %p1, %r1, 32; @%p1 bra $x; bar.sync 0; $x: add.s32 %r6, %r1, 1;",
            "the barrier waits for thread 0 of the CTA, which has exited");
    REFUSED(&t,
            "setp.lt.u32 %p1, %r1, 32; @%p1 bra $x; bar.sync 0; bra $y; $x: bar.sync 1; $y: "
            "add.s32 %r6, %r1, 1;",
            "waits at barrier 1, warp 1 at barrier 0");
    REFUSED(&t, "bar.sync 0, 32;", "a barrier of 32 threads where the CTA has 64");
    FINE(&t, "bar.sync 1, 64;");
    t.block = 48;
    REFUSED(&t,
            "mov.f32 %f1, 0f00000000; mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 "
            "{%f2,%f3,%f4,%f5}, {%r0,%r0}, {%r0}, {%f1,%f1,%f1,%f1};",
            "needs all 32 lanes");
}

static void values(void **state) {
    (void)state;
    Try t = one_warp();
    REFUSED(&t, "div.u32 %r6, %r1, %r0;", "divides by zero");
    REFUSED(&t,
            "mov.f32 %f1, 0f3F800001; mov.b32 %r6, %f1; mov.f32 %f2, 0f00000000; "
            "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%f2,%f3,%f4,%f5}, {%r6,%r6}, "
            "{%r6}, {%f2,%f2,%f2,%f2};",
            "cvt.rna.tf32.f32 is missing");
    REFUSED(&t, "mov.f32 %f1, 0f45000000; sin.approx.f32 %f2, %f1;", "beyond 100 pi");
    REFUSED(&t, "trap;", "the kernel stops itself");
    t.o.budget = 1000;
    REFUSED(&t, "$x: bra $x;", "its budget of 1000 warp instructions: does a loop not end?");
}

static void unknown_text(void **state) {
    (void)state;
    Try t = one_warp();
    REFUSED(&t, "\nfoo.u32 %r6, %r1;", "line 6: instruction 'foo' is not known to the emulator");
    REFUSED(&t, "add.rn.u32 %r6, %r1, %r1;", "'.u32' in 'add.rn.u32' is not known");
    REFUSED(&t, "add %r6, %r1, %r1;", "lacks a word");
    REFUSED(&t, "ld.global.L1::sometimes.u32 %r6, [%d1];", "'.L1::sometimes'");
    REFUSED(&t, "mul.s32 %r6, %r1, %r1;", "'.s32' in 'mul.s32' is not known");
    REFUSED(&t, "add.s32 %r6, %f1, %r1;", "register %f1 is .f32 where .s32 is expected");
    REFUSED(&t, "add.s32 %d6, %d1, %d1;", "register %d6 is .b64 where .s32 is expected");
    REFUSED(&t, "add.s32 %r6, %r1, %zz;", "'%zz' is not declared");
    REFUSED(&t, "add.s32 %r6, %r1, %r99;", "'%r99' is not declared");
    REFUSED(&t, "add.s32 %r6, %r1;", "',' expected, found ';'");
    REFUSED(&t, "add.s32 %r6, %r1, 0x100000000;", "'0x100000000' is not a .s32");
    REFUSED(&t, "bra $nowhere;", "there is no label '$nowhere'");
    REFUSED(&t, "ld.global.u32 %r6, [s];", "'s' is in .shared memory");
    REFUSED(&t, "ld.global.u32 %r6, [%r1];", "a 32-bit address");
    REFUSED(&t, ".loc 1 2 3;", "a directive that is known expected, found '.loc'");
    REFUSED(&t, "call f;", "instruction 'call' is not known");
    REFUSED(&t, "mov.u32 %r6, %clock;", "'%clock' is not declared");
    REFUSED(&t, "cp.async.cg.shared.global [s], [%d1], 8;", "copies 8 bytes");
    REFUSED(&t, ".reg .b32 %r1;\n.reg .b32 q; .reg .b32 q;", "'q' is declared twice");
    FINE(&t, "{ .reg .b32 q; mov.u32 q, 1; } { .reg .b64 q; mov.u64 q, 1; }");
}

static void launch_limits(void **state) {
    (void)state;
    Try t = one_warp();
    t.block = 1025;
    REFUSED(&t, "", "kernel k: a block of 1025 x 1 x 1 threads is not possible");
    PtxOptions o = ptx_options(86);
    PtxDevice *d = ptx_device_new(&o);
    static const char text[] =
        HEAD ".extern .shared .align 16 .b8 dyn[];\n"
             ".visible .entry k(.param .u32 n) .maxntid 64, 1, 1 { .reg .b32 %r<3>; mov.u32 %r1, "
             "dyn; st.shared.u32 [%r1+1020], 1; ret; }\n"
             ".visible .entry r() .reqntid 32, 2, 1 { ret; }\n";
    PtxModule *m = ptx_must_load(d, text);
    PtxKernel *k = ptx_kernel(m, "k");
    unsigned one[3] = {1, 1, 1}, many[3] = {65, 1, 1};
    uint32_t n = 0;
    assert_true(ptx_launch(d, k, one, one, 1024, &n, 4));
    assert_false(ptx_launch(d, k, one, one, 1023, &n, 4));
    assert_non_null(strstr(ptx_error(d), "is outside the CTA's 1023 bytes"));
    assert_false(ptx_launch(d, k, one, many, 1024, &n, 4));
    assert_non_null(strstr(ptx_error(d), "65 threads, .maxntid allows 64"));
    assert_false(ptx_launch(d, k, one, one, 1024, &n, 8));
    assert_non_null(strstr(ptx_error(d), "8 bytes of parameters, the kernel has 4"));
    assert_false(ptx_launch(d, k, one, one, 100 << 10, &n, 4));
    assert_non_null(strstr(ptx_error(d), "102400 bytes of shared memory, sm_86 has 101376"));
    assert_false(ptx_launch(d, ptx_kernel(m, "r"), one, one, 0, NULL, 0));
    assert_non_null(strstr(ptx_error(d), ".reqntid asks for 32 x 2 x 1"));
    assert_null(ptx_kernel(m, "q"));
    static const char newer[] = ".version 8.0\n.target sm_90\n.address_size 64\n";
    assert_null(ptx_load(d, newer, sizeof newer - 1));
    assert_non_null(strstr(ptx_error(d), "is for sm_90, the device is sm_86"));
    static const char big[] = HEAD ".visible .entry k() { .shared .align 4 .b8 s[49156]; .reg .b32 "
                                   "%r<2>; mov.u32 %r1, s; ret; }\n";
    assert_null(ptx_load(d, big, sizeof big - 1));
    assert_non_null(strstr(ptx_error(d), "49156 bytes of static shared memory, more than 48 KB"));
    ptx_device_free(d);
}

static void device_memory(void **state) {
    (void)state;
    PtxOptions o = ptx_options(80);
    o.memory = 10000;
    PtxDevice *d = ptx_device_new(&o);
    uint64_t a = ptx_malloc(d, 6000);
    assert_true(a && a % 256 == 0);
    assert_int_equal(ptx_malloc(d, 6000), 0);
    assert_non_null(strstr(ptx_error(d), "out of memory: 6000 bytes asked for, 6000 of 10000"));
    assert_int_equal(ptx_memory_used(d), 6000);
    uint8_t b[16] = {1, 2, 3, 4};
    assert_true(ptx_write(d, a + 5984, b, 16));
    assert_false(ptx_write(d, a + 5985, b, 16));
    assert_non_null(strstr(ptx_error(d), "is not inside one allocation"));
    assert_false(ptx_is_initialised(d, a + 5983, 2));
    assert_true(ptx_is_initialised(d, a + 5984, 16));
    uint8_t c[16] = {0};
    assert_false(ptx_read(d, c, a + 5980, 8, true));
    assert_non_null(strstr(ptx_error(d), "byte 0 of"));
    assert_true(ptx_read(d, c, a + 5980, 8, false));
    assert_true(c[0] == 0xff && c[3] == 0xff && c[4] == 1 && c[7] == 4);
    uint64_t e = ptx_malloc(d, 64);
    assert_true(ptx_copy(d, e, a + 5980, 20)); /* what is unwritten stays so */
    assert_false(ptx_is_initialised(d, e, 4));
    assert_true(ptx_is_initialised(d, e + 4, 16));
    assert_true(ptx_fill(d, e, 7, 64));
    assert_true(ptx_read(d, c, e + 60, 4, true) && c[3] == 7);
    assert_int_equal(ptx_live_allocations(d), 2);
    assert_false(ptx_free(d, a + 256));
    assert_true(ptx_free(d, a));
    assert_false(ptx_free(d, a));
    assert_false(ptx_write(d, a, b, 4));
    assert_non_null(strstr(ptx_error(d), "is in freed memory"));
    assert_null(ptx_host_view(d, a, 4, true));
    assert_int_equal(*(uint8_t *)ptx_host_view(d, e, 64, false), 7);
    uint64_t again = ptx_malloc(d, 6000);
    assert_true(again > e); /* addresses never come back */
    ptx_device_free(d);
}

static int lint(const char *text, int capability, char *out, size_t n) {
    FILE *f = fmemopen(out, n, "w");
    int problems = ptx_lint(text, strlen(text), capability, f);
    fclose(f);
    return problems;
}

static void lint_finds(void **state) {
    (void)state;
    char out[4096] = "", *kept = ptx_file("kernels/vecadd.ptx");
    assert_int_equal(lint(kept, 80, out, sizeof out), 0);
    free(kept);
    static const char bad[] =
        ".version 8.5\n.target sm_90a\n.address_size 64\n"
        ".visible .entry k() {\n.reg .f32 %f<4>; .reg .b32 %r<3>; .local .align 4 .b8 d[8];\n"
        "mov.f32 %f1, 0f00000000;\nadd.f32 %f2, %f1, %f1;\nadd.rn.f32 %f2, %f1, %f1;\n"
        "frob.u32 %r1, %r2;\nld.local.u32 %r1, [d];\nmul.f32 %f2, %f1, %f1;\ncall foo;\nret;\n}\n";
    assert_int_equal(lint(bad, 80, out, sizeof out), 9);
    static const char *const want[] = {"line 9: instruction 'frob' is not known",
                                       "line 12: instruction 'call' is not known",
                                       ".target sm_90 is above sm_80",
                                       ".target sm_90a runs on that GPU only",
                                       ".version 8.5 is above 8.0",
                                       "kernel k: 8 bytes of local memory",
                                       "line 7: add.f32: without a rounding (.rn)",
                                       "line 10: ld.local.u32: local memory",
                                       "line 11: mul.f32: without a rounding (.rn)"};
    for (int k = 0; k < 9; k++) {
        if (!strstr(out, want[k])) {
            fail_msg("'%s' is not in: %s", want[k], out);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(bounds),
                                       cmocka_unit_test(initialisation),
                                       cmocka_unit_test(races_shared),
                                       cmocka_unit_test(races_global),
                                       cmocka_unit_test(launches_are_ordered),
                                       cmocka_unit_test(asynchronous_copies),
                                       cmocka_unit_test(divergence),
                                       cmocka_unit_test(values),
                                       cmocka_unit_test(unknown_text),
                                       cmocka_unit_test(launch_limits),
                                       cmocka_unit_test(device_memory),
                                       cmocka_unit_test(lint_finds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
