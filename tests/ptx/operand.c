/* operand.c: registers, immediates, symbols and addresses of an instruction. */
#include "parse.h"

#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    int sreg;
} sregs[] = {
    {"%tid.x", SREG_TID_X},
    {"%tid.y", SREG_TID_Y},
    {"%tid.z", SREG_TID_Z},
    {"%ntid.x", SREG_NTID_X},
    {"%ntid.y", SREG_NTID_Y},
    {"%ntid.z", SREG_NTID_Z},
    {"%ctaid.x", SREG_CTAID_X},
    {"%ctaid.y", SREG_CTAID_Y},
    {"%ctaid.z", SREG_CTAID_Z},
    {"%nctaid.x", SREG_NCTAID_X},
    {"%nctaid.y", SREG_NCTAID_Y},
    {"%nctaid.z", SREG_NCTAID_Z},
    {"%laneid", SREG_LANEID},
    {"%warpid", SREG_WARPID},
    {"%nwarpid", SREG_NWARPID},
    {"%lanemask_lt", SREG_LT},
    {"%lanemask_le", SREG_LE},
    {"%lanemask_gt", SREG_GT},
    {"%lanemask_ge", SREG_GE},
    {"%lanemask_eq", SREG_EQ},
    {"%dynamic_smem_size", SREG_DYNAMIC},
    {"%total_smem_size", SREG_TOTAL},
};

/* The vector of an immediate: 8-byte lanes for 64 bits, else 4; a predicate is one mask. */
uint32_t ptx_imm(PtxParser *p, uint64_t bits, int width) {
    PtxKernel *k = p->k;
    width = width == 64 || width == 1 ? width : 32;
    for (int n = 0; n < p->nimms; n++) {
        if (p->imms[n].bits == bits && p->imms[n].width == width) {
            return p->imms[n].at;
        }
    }
    uint32_t at = (uint32_t)k->imm_bytes;
    if (k->imm_bytes + 256 > k->imm_cap) {
        k->imm_cap = k->imm_cap ? k->imm_cap * 2 : 8192;
        k->imms = realloc(k->imms, k->imm_cap);
        if (!k->imms) {
            abort();
        }
    }
    for (int l = 0; l < LANES; l++) {
        uint32_t v = width == 1 ? (bits ? ~0u : 0) : (uint32_t)bits;
        if (width == 64) {
            memcpy(k->imms + at + 8 * l, &bits, 8);
        } else {
            memcpy(k->imms + at + 4 * l, &v, 4);
        }
    }
    k->imm_bytes += width == 64 ? 256 : 128;
    p->imms = ptx_grow(p->imms, &p->imms_cap, p->nimms + 1, sizeof *p->imms);
    p->imms[p->nimms++] = (struct PtxImm){bits, at, (uint8_t)width};
    return at;
}

/* Untyped (b) registers and types of a width fit all of it; otherwise both are floats of the same
 * format, or both integers. */
static bool kinds_fit(int reg, int type) {
    bool any = reg == T_B16 || reg == T_B32 || reg == T_B64 || type == T_B16 || type == T_B32 ||
               type == T_B64 || type == T_TF32 || type == T_F16X2 || type == T_BF16X2 ||
               type == T_BF16 || type == T_B8;
    return any || (ptx_type_float(reg) ? reg == type : !ptx_type_float(type));
}

static bool reg_fits(const PtxSym *y, int type, bool wider) {
    int have = ptx_type_bits(y->type), need = ptx_type_bits(type);
    if ((have == 1) != (need == 1)) {
        return false;
    }
    if (wider && have >= need && !ptx_type_float(y->type)) {
        return !ptx_type_float(type) || have == need;
    }
    return have == need && kinds_fit(y->type, type);
}

static bool use_reg(PtxParser *p, PtxToken t, const PtxSym *y, PtxOperand *o, int type,
                    bool wider) {
    int which = 0;
    if (y->count) {
        which = atoi(t.s + y->n);
    }
    int bits = ptx_type_bits(y->type);
    *o = (PtxOperand){.kind = bits == 1 ? O_PRED : O_VALUE,
                      .base = BASE_REGS,
                      .bits = (uint8_t)bits,
                      .is64 = bits == 64,
                      .reg = y->reg + which};
    o->at = y->at + (uint32_t)which * (bits == 1 ? 4 : bits == 64 ? 256 : 128);
    if (!reg_fits(y, type, wider)) {
        ptx_problem(p, t.line, "register %.*s is .%s where .%s is expected", (int)t.n, t.s,
                    ptx_word_text(y->type), ptx_word_text(type));
        return false;
    }
    return true;
}

/* Where a shared variable is in this kernel. */
static uint32_t place_shared(PtxParser *p, PtxSym *y) {
    PtxKernel *k = p->k;
    if (y->placed_in != k) {
        uint32_t at = ((uint32_t)k->info.shared_static + y->align - 1) & ~(y->align - 1);
        y->at = at + PTX_SHARED_BASE;
        y->placed_in = k;
        k->info.shared_static = (int)(at + y->bytes);
    }
    return y->at;
}

static int sym_space(const PtxSym *y) {
    switch (y->kind) {
    case SYM_PARAM:
        return W_PARAM;
    case SYM_SHARED:
    case SYM_DYNAMIC:
        return W_SHARED;
    case SYM_LOCAL:
        return W_LOCAL;
    case SYM_CONST:
        return W_CONST;
    default:
        return W_GLOBAL;
    }
}

/* The address of a variable in its own space; *dynamic: it is only known at the kernel's end. */
static uint64_t sym_address(PtxParser *p, PtxSym *y, bool *dynamic) {
    *dynamic = false;
    switch (y->kind) {
    case SYM_SHARED:
        return place_shared(p, y);
    case SYM_DYNAMIC:
        *dynamic = true;
        p->k->dynamic_shared = true;
        if ((int)y->align > p->k->dynamic_align) {
            p->k->dynamic_align = (int)y->align;
        }
        return 0;
    case SYM_GLOBAL:
    case SYM_CONST:
        return y->address;
    default:
        return y->at;
    }
}

/* [+-]number behind a register or symbol; 0 if there is none. */
static int64_t parse_offset(PtxParser *p) {
    int64_t sign = 1;
    if (!ptx_token_is(p->t, "+") && !ptx_token_is(p->t, "-")) {
        return 0;
    }
    while (ptx_token_is(p->t, "+") || ptx_token_is(p->t, "-")) {
        sign = ptx_token_is(p->t, "-") ? -sign : sign;
        ptx_next(p);
    }
    uint64_t v = 0;
    if (p->t.kind != TK_NUMBER || !ptx_number(p->t.s, p->t.n, T_U64, &v) || v > 1ull << 40) {
        ptx_problem(p, p->t.line, "an offset expected, found '%.*s'", (int)p->t.n, p->t.s);
        return 0;
    }
    ptx_next(p);
    return sign * (int64_t)v;
}

static void remember_dynamic(PtxParser *p, int64_t addend) {
    p->dynamics = ptx_grow(p->dynamics, &p->dynamics_cap, p->ndynamics + 1, sizeof *p->dynamics);
    p->dynamics[p->ndynamics++] = (PtxDynamic){p->k->noperands, addend};
}

/* A name that is no register: a special register, or the address of a variable. */
static bool parse_name(PtxParser *p, PtxOperand *o, int type, PtxToken t) {
    for (size_t k = 0; k < sizeof sregs / sizeof *sregs; k++) {
        if (ptx_token_is(t, sregs[k].name)) {
            *o = (PtxOperand){.kind = O_VALUE,
                              .base = BASE_SREG,
                              .bits = 32,
                              .reg = -1,
                              .at = (uint32_t)sregs[k].sreg * LANES * 4};
            if (ptx_type_bits(type) != 32) {
                ptx_problem(p, t.line, "%s is .u32 where .%s is expected", sregs[k].name,
                            ptx_word_text(type));
                return false;
            }
            return true;
        }
    }
    if (ptx_token_is(t, "WARP_SZ")) {
        int width = ptx_type_bits(type);
        *o = (PtxOperand){.kind = O_VALUE,
                          .base = BASE_IMM,
                          .bits = (uint8_t)width,
                          .is64 = width == 64,
                          .reg = -1,
                          .imm = LANES};
        o->at = ptx_imm(p, LANES, width);
        return true;
    }
    PtxSym *y = ptx_sym_find(p, t.s, t.n);
    if (!y || y->kind == SYM_REG) {
        ptx_problem(p, t.line, "'%.*s' is not declared", (int)t.n, t.s);
        return false;
    }
    bool dynamic;
    int64_t v = (int64_t)sym_address(p, y, &dynamic) + parse_offset(p);
    int bits = ptx_type_bits(type);
    *o =
        (PtxOperand){.kind = O_VALUE, .base = BASE_IMM, .bits = (uint8_t)bits, .reg = -1, .imm = v};
    if (bits < 32 || (bits == 32 && sym_space(y) != W_SHARED)) {
        ptx_problem(p, t.line, "the address of '%.*s' does not fit .%s", (int)t.n, t.s,
                    ptx_word_text(type));
        return false;
    }
    if (dynamic) {
        remember_dynamic(p, v);
    } else {
        o->at = ptx_imm(p, (uint64_t)v, bits);
    }
    return true;
}

static bool parse_number(PtxParser *p, PtxOperand *o, int type, int line) {
    char text[64];
    bool minus = ptx_accept(p, "-");
    uint64_t bits;
    snprintf(text, sizeof text, "%s%.*s", minus ? "-" : "", (int)(p->t.n > 50 ? 50 : p->t.n),
             p->t.s);
    int as = type == T_PRED ? T_S32 : type;
    if (p->t.kind != TK_NUMBER || !ptx_number(text, strlen(text), as, &bits)) {
        ptx_problem(p, line, "'%s' is not a .%s", text, ptx_word_text(type));
        return false;
    }
    ptx_next(p);
    int width = ptx_type_bits(type);
    *o = (PtxOperand){.kind = type == T_PRED ? O_PRED : O_VALUE,
                      .base = BASE_IMM,
                      .bits = (uint8_t)width,
                      .is64 = width == 64,
                      .reg = -1,
                      .imm = (int64_t)bits};
    o->at = ptx_imm(p, bits, width);
    return true;
}

bool ptx_parse_value(PtxParser *p, PtxOperand *o, int type, int line, bool dst, bool wider) {
    PtxToken t = p->t;
    bool negated = !dst && type == T_PRED && ptx_accept(p, "!");
    if (negated) {
        t = p->t;
    }
    if (t.kind == TK_NAME) {
        ptx_next(p);
        if (dst && t.n == 1 && *t.s == '_') {
            *o = (PtxOperand){.kind = O_SINK, .reg = -1, .dst = 1};
            return true;
        }
        PtxSym *y = ptx_sym_find(p, t.s, t.n);
        if (y && y->kind == SYM_REG) {
            if (!use_reg(p, t, y, o, type, wider)) {
                return false;
            }
            o->dst = dst;
            o->negated = negated;
            return true;
        }
        if (!dst && !negated) {
            return parse_name(p, o, type, t);
        }
        ptx_problem(p, line, "'%.*s' is not a register", (int)t.n, t.s);
        return false;
    }
    if (dst || negated || (t.kind != TK_NUMBER && !ptx_token_is(t, "-"))) {
        ptx_problem(p, line, "an operand of type .%s expected, found '%.*s'", ptx_word_text(type),
                    t.n > 40 ? 40 : (int)t.n, t.s);
        return false;
    }
    return parse_number(p, o, type, line);
}

/* [%rd1+4], [sym+4], [sym], [%r1+-4] in a space (W_NONE: generic). */
bool ptx_parse_mem(PtxParser *p, PtxOperand *o, int space, int line) {
    if (!ptx_expect(p, "[")) {
        return false;
    }
    PtxToken t = p->t;
    *o = (PtxOperand){.kind = O_MEM, .reg = -1};
    if (t.kind == TK_NUMBER) {
        uint64_t v;
        if (!ptx_number(t.s, t.n, T_U64, &v)) {
            ptx_problem(p, line, "'%.*s' is not an address", (int)t.n, t.s);
            return false;
        }
        ptx_next(p);
        o->imm = (int64_t)v;
        return ptx_expect(p, "]");
    }
    if (t.kind != TK_NAME) {
        ptx_problem(p, line, "an address expected, found '%.*s'", (int)t.n, t.s);
        return false;
    }
    ptx_next(p);
    PtxSym *y = ptx_sym_find(p, t.s, t.n);
    if (!y) {
        ptx_problem(p, line, "'%.*s' is not declared", (int)t.n, t.s);
        return false;
    }
    if (y->kind == SYM_REG) {
        int bits = ptx_type_bits(y->type);
        if (!use_reg(p, t, y, o, bits == 64 ? T_B64 : T_B32, false)) {
            return false;
        }
        if (bits == 32 && space != W_SHARED && space != W_LOCAL && space != W_PARAM) {
            ptx_problem(p, line, "a 32-bit address '%.*s' where addresses have 64", (int)t.n, t.s);
            return false;
        }
        o->kind = O_MEM;
        o->imm = parse_offset(p);
        return ptx_expect(p, "]");
    }
    if (sym_space(y) != space && !(space == W_NONE && sym_space(y) == W_GLOBAL)) {
        ptx_problem(p, line, "'%.*s' is in .%s memory", (int)t.n, t.s, ptx_word_text(sym_space(y)));
        return false;
    }
    bool dynamic;
    o->imm = (int64_t)sym_address(p, y, &dynamic) + parse_offset(p);
    if (dynamic) {
        remember_dynamic(p, o->imm);
    }
    return ptx_expect(p, "]");
}
