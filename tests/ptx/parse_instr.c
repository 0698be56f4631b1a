/* parse_instr.c: one instruction: guard, opcode, operands as its form's letters ask (forms.h). */
#include "parse.h"

#include <stdlib.h>
#include <string.h>

static const PtxOpcode *opcode(PtxParser *p, PtxToken t) {
    uint32_t h = 2166136261u;
    for (size_t k = 0; k < t.n; k++) {
        h = (h ^ (unsigned char)t.s[k]) * 16777619u;
    }
    struct PtxKnown *e = &p->known[h % (sizeof p->known / sizeof *p->known)];
    if (e->n == t.n && !memcmp(e->s, t.s, t.n)) {
        return &e->c;
    }
    char what[160];
    if (!ptx_opcode_parse(t.s, t.n, &e->c, what)) {
        e->n = 0;
        ptx_problem(p, t.line, "%s", what);
        return NULL;
    }
    e->s = t.s;
    e->n = t.n;
    return &e->c;
}

static PtxOperand *add_operand(PtxParser *p, PtxInstr *i, PtxOperand o) {
    PtxKernel *k = p->k;
    if (k->noperands == k->operands_cap) {
        k->operands_cap = k->operands_cap ? k->operands_cap * 2 : 1024;
        k->operands = realloc(k->operands, k->operands_cap * sizeof *k->operands);
        if (!k->operands) {
            abort();
        }
    }
    i->nops++;
    i->ndst += o.dst;
    k->operands[k->noperands++] = o;
    return &k->operands[k->noperands - 1];
}

static int wider(int type) {
    switch (type) {
    case T_U16:
        return T_U32;
    case T_S16:
        return T_S32;
    case T_U32:
        return T_U64;
    default:
        return T_S64;
    }
}

/* The type of an operand by its letter. */
static int letter_type(const PtxOpcode *c, char letter) {
    switch (letter) {
    case 't':
    case 'x':
    case 'v':
        return c->type[0];
    case 's':
    case 'y':
        return c->type[1];
    case 'w':
        return wider(c->type[0]);
    case 'u':
    case 'i':
        return T_B32;
    case 'l':
        return T_B64;
    case 'f':
        return T_F32;
    case 'P':
        return c->op == OP_SETP ? T_PRED : T_B32;
    default:
        return T_PRED;
    }
}

static bool value(PtxParser *p, PtxInstr *i, int type, bool dst, bool wide) {
    PtxOperand o;
    if (!ptx_parse_value(p, &o, type, i->line, dst, wide)) {
        return false;
    }
    o.dst = dst;
    add_operand(p, i, o);
    return true;
}

/* {a, b, …} of n values; without braces where n is 1 and `braces` false. */
static bool values(PtxParser *p, PtxInstr *i, int n, bool braces, int type, bool dst, bool wide) {
    if (n == 1 && !braces) {
        return value(p, i, type, dst, wide);
    }
    if (!ptx_expect(p, "{")) {
        return false;
    }
    for (int k = 0; k < n; k++) {
        if ((k && !ptx_expect(p, ",")) || !value(p, i, type, dst, wide)) {
            return false;
        }
    }
    return ptx_expect(p, "}");
}

static bool jump(PtxParser *p) {
    if (p->t.kind != TK_NAME) {
        ptx_problem(p, p->t.line, "a label expected, found '%.*s'", (int)p->t.n, p->t.s);
        return false;
    }
    p->jumps = ptx_grow(p->jumps, &p->jumps_cap, p->njumps + 1, sizeof *p->jumps);
    p->jumps[p->njumps++] =
        (PtxLabel){p->t.s, p->t.n, p->scopes[p->nscopes - 1], p->k->ncode, p->t.line};
    ptx_next(p);
    return true;
}

/* mov.b64 {%r1, %r2}, %rd1 and mov.b32 %r1, {%rs1, %rs2}. */
static bool mov_list(PtxParser *p, PtxInstr *i, bool dst) {
    int n = 0, whole = ptx_type_bits(i->c.type[0]);
    size_t first = p->k->noperands;
    ptx_next(p);
    /* How many parts, seen from the commas: their width follows. */
    PtxLexer ahead = p->x;
    int parts = 1;
    for (PtxToken t = p->t; t.kind != TK_END && !ptx_token_is(t, "}"); t = ptx_lex(&ahead)) {
        parts += ptx_token_is(t, ",");
    }
    int type = whole / parts == 32 ? T_B32 : T_B16;
    if (parts * ptx_type_bits(type) != whole || parts > 4) {
        ptx_problem(p, i->line, "%d parts do not make a .%s", parts, ptx_word_text(i->c.type[0]));
        return false;
    }
    do {
        if (!value(p, i, type, dst, false)) {
            return false;
        }
        n++;
    } while (ptx_accept(p, ","));
    (void)first;
    i->npack = (int16_t)(dst ? -n : n);
    return ptx_expect(p, "}");
}

static bool operand(PtxParser *p, PtxInstr *i, char letter, bool dst, int count) {
    int type = letter_type(&i->c, letter);
    switch (letter) {
    case 'm': {
        PtxOperand o;
        /* cp.async: first the shared, then the global address. */
        int space = i->c.op == OP_CPASYNC && i->nops ? W_GLOBAL : i->c.space;
        if (!ptx_parse_mem(p, &o, space, i->line)) {
            return false;
        }
        add_operand(p, i, o);
        return true;
    }
    case 'L':
        return jump(p);
    case 'v':
        count = i->c.vec == W_V2 ? 2 : i->c.vec == W_V4 ? 4 : 1;
        return values(p, i, count, false, type, dst, true);
    case 'i': {
        PtxOperand o;
        if (!ptx_parse_value(p, &o, T_B32, i->line, false, false)) {
            return false;
        }
        if (o.base != BASE_IMM) {
            ptx_problem(p, i->line, "an immediate number expected");
            return false;
        }
        add_operand(p, i, o);
        return true;
    }
    case 'P': {
        if (!value(p, i, type, true, false)) {
            return false;
        }
        if (ptx_accept(p, "|")) {
            return value(p, i, T_PRED, true, false);
        }
        add_operand(p, i, (PtxOperand){.kind = O_NONE, .reg = -1});
        return true;
    }
    default:
        if (i->c.op == OP_MOV && ptx_token_is(p->t, "{")) {
            return mov_list(p, i, dst);
        }
        return values(p, i, count ? count : 1, count > 0, type, dst,
                      letter == 'x' || letter == 'y');
    }
}

static bool operands(PtxParser *p, PtxInstr *i) {
    const char *s = ptx_forms[i->c.form].operands;
    bool first = true, optional = false;
    while (*s) {
        bool dst = *s == '=';
        s += dst;
        if (*s == '?') {
            optional = true;
            s++;
        }
        char letter = *s++;
        int count = *s >= '1' && *s <= '9' ? *s++ - '0' : 0;
        s += *s == ' ';
        if (optional && ptx_token_is(p->t, ";")) {
            add_operand(p, i, (PtxOperand){.kind = O_NONE, .reg = -1});
            continue;
        }
        if (!first && !ptx_expect(p, ",")) {
            return false;
        }
        first = false;
        if (!operand(p, i, letter, dst, count)) {
            return false;
        }
    }
    return true;
}

/* Floating-point operations of one thread; of mma, of the warp. A fused multiply-add is two. */
static uint32_t count_flops(const PtxOpcode *c) {
    if (c->op == OP_MMA) {
        return c->mode == W_M16N8K4 ? 1024 : c->mode == W_M16N8K8 ? 2048 : 4096;
    }
    if (!c->ntypes || !ptx_type_float(c->type[0])) {
        return 0;
    }
    uint32_t pairs = c->type[0] == T_F16X2 || c->type[0] == T_BF16X2 ? 2 : 1;
    switch (c->op) {
    case OP_FMA:
        return 2 * pairs;
    case OP_ADD:
    case OP_SUB:
    case OP_MUL:
    case OP_DIV:
    case OP_DIVA:
    case OP_RCP:
    case OP_RCPA:
    case OP_SQRT:
    case OP_SQRTA:
    case OP_RSQRT:
    case OP_SIN:
    case OP_COS:
    case OP_LG2:
    case OP_EX2:
    case OP_TANH:
        return pairs;
    default:
        return 0;
    }
}

/* What the form leaves open and the executor relies on. */
static bool check(PtxParser *p, PtxInstr *i) {
    const PtxOpcode *c = &i->c;
    if (c->op == OP_CPASYNC) {
        int64_t n = i->o[2].imm;
        if (!(n == 16 || (c->cache == W_CA && (n == 4 || n == 8)))) {
            ptx_problem(p, i->line, "copies %d bytes: .ca copies 4, 8 or 16, .cg copies 16",
                        (int)n);
            return false;
        }
        i->size = (uint8_t)n;
    } else if (c->op == OP_LD || c->op == OP_ST || c->op == OP_ATOM || c->op == OP_RED) {
        int n = c->vec == W_V4 ? 4 : c->vec == W_V2 ? 2 : 1;
        i->size = (uint8_t)(n * ptx_type_bits(c->type[0]) / 8);
        if (i->size > 16) {
            ptx_problem(p, i->line, "%d bytes in one access: 16 at most", i->size);
            return false;
        }
    } else if (c->op == OP_LDMATRIX) {
        i->size = 16;
    }
    if ((c->op == OP_ATOM || c->op == OP_RED) && (c->strong != 0) != (c->scope != 0) && c->strong) {
        ptx_problem(p, i->line, "'.%s' needs a scope", ptx_word_text(c->strong));
        return false;
    }
    i->flops = count_flops(c);
    i->exec = ptx_exec_of(c);
    return true;
}

static bool guard(PtxParser *p, PtxOperand *o) {
    *o = (PtxOperand){.kind = O_NONE, .reg = -1};
    if (!ptx_accept(p, "@")) {
        return true;
    }
    if (!ptx_parse_value(p, o, T_PRED, p->t.line, false, false)) {
        return false;
    }
    if (o->reg < 0) {
        ptx_problem(p, p->t.line, "a guard is not a predicate register");
        return false;
    }
    return true;
}

static void skip(PtxParser *p) {
    while (p->t.kind != TK_END && !ptx_token_is(p->t, ";")) {
        ptx_next(p);
    }
    ptx_accept(p, ";");
}

void ptx_parse_instr(PtxParser *p) {
    PtxInstr i;
    memset(&i, 0, sizeof i);
    PtxKernel *k = p->k;
    i.line = p->t.line;
    if (!guard(p, &i.guard)) {
        skip(p);
        return;
    }
    PtxToken t = p->t;
    i.line = t.line;
    const PtxOpcode *c = t.kind == TK_NAME ? opcode(p, t) : NULL;
    if (t.kind != TK_NAME) {
        ptx_problem(p, t.line, "an instruction expected, found '%.*s'", (int)t.n, t.s);
    }
    if (!c) {
        skip(p);
        return;
    }
    i.c = *c;
    i.text = t.s;
    i.text_n = (uint32_t)t.n;
    i.target = -1;
    size_t at = k->noperands;
    ptx_next(p);
    if (!operands(p, &i)) {
        k->noperands = at;
        skip(p);
        return;
    }
    i.o = k->operands + at;
    if (!check(p, &i) || !ptx_expect(p, ";")) {
        k->noperands = at;
        skip(p);
        return;
    }
    k->code = ptx_grow(k->code, &p->code_cap, k->ncode + 1, sizeof *k->code);
    k->code[k->ncode++] = i;
}
