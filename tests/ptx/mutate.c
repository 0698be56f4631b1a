/* mutate.c: mutants of a PTX text. One statement of a kernel is changed at a time:
 *
 *   swap      the two sources of an operation that is not commutative
 *   register  a source is another register of its family that was named shortly before
 *   constant  an integer is one more, a float twice as much
 *   compare   < for <=, == for != …, and the opposite
 *   opcode    add for sub, min for max, shl for shr …
 *   type      unsigned for signed where that matters; not of index arithmetic (mul.wide, cvt),
 *             where it matters only for buffers beyond 2^31 elements
 *   round     to zero for to nearest; to nearest for down …
 *   address   an offset is one element more
 *   guard     the opposite, or none
 *   drop      stores, barriers, waits, shuffles' neighbours: instructions left out
 *
 * What changes nothing by itself (operands of a commutative operation swapped, fences dropped) is
 * not made. Every mutant is inside of what the emulator and ptxas take. */
#include "ptx.h"
#include "tools.h"

#include <stdlib.h>
#include <string.h>

enum { TOKENS = 96, RECENT = 64 };

typedef struct Statement { /* one instruction */
    PtxToken t[TOKENS];
    int n;  /* without the ';' */
    int op; /* index of the opcode */
    const char *start, *end;
    PtxOpcode c;
} Statement;

typedef struct Recent { /* registers named lately, by family */
    PtxToken names[RECENT];
    int n;
} Recent;

typedef struct Walk {
    const char *text;
    size_t bytes;
    int wanted, count; /* wanted -1: only count */
    PtxMutant *out;
    PtxToken kernel;
    Statement s;
    Recent recent;
} Walk;

static void squeeze(char *to, size_t n, const char *s, size_t len) {
    size_t k = 0;
    for (size_t j = 0; j < len && k + 1 < n; j++) {
        bool space = s[j] == ' ' || s[j] == '\t' || s[j] == '\n';
        if (!space) {
            to[k++] = s[j];
        } else if (k && to[k - 1] != ' ') {
            to[k++] = ' ';
        }
    }
    to[k] = 0;
}

/* One mutant: bytes [at, at + len) become `with`. */
static void emit(Walk *w, const char *at, size_t len, const char *with) {
    if (w->count++ != w->wanted) {
        return;
    }
    PtxMutant *m = w->out;
    size_t n = strlen(with), before = (size_t)(at - w->text);
    m->bytes = w->bytes - len + n;
    m->text = malloc(m->bytes + 1);
    if (!m->text) {
        abort();
    }
    memcpy(m->text, w->text, before);
    memcpy(m->text + before, with, n);
    memcpy(m->text + before + n, at + len, w->bytes - before - len);
    m->text[m->bytes] = 0;
    m->line = w->s.t[0].line;
    snprintf(m->kernel, sizeof m->kernel, "%.*s", (int)w->kernel.n, w->kernel.s);
    char was[90], now[90];
    const Statement *s = &w->s;
    squeeze(was, sizeof was, s->start, (size_t)(s->end - s->start));
    squeeze(now, sizeof now, m->text + (s->start - w->text), (size_t)(s->end - s->start) - len + n);
    snprintf(m->what, sizeof m->what, "line %d: %s -> %s", m->line, was, now);
}

static bool in_list(int op, const int *list) {
    for (; *list >= 0; list++) {
        if (*list == op) {
            return true;
        }
    }
    return false;
}

static bool is_register(PtxToken t) {
    return t.kind == TK_NAME && *t.s == '%' && !memchr(t.s, '.', t.n);
}

static size_t stem(PtxToken t) {
    size_t n = t.n;
    while (n > 1 && t.s[n - 1] >= '0' && t.s[n - 1] <= '9') {
        n--;
    }
    return n;
}

static bool same(PtxToken a, PtxToken b) {
    return a.n == b.n && !memcmp(a.s, b.s, a.n);
}

/* A token's place among the operands: their number is that of the commas before it, outside of
 * braces and brackets. */
static int operand_of(const Statement *s, int k) {
    int n = 0, depth = 0;
    for (int j = s->op + 1; j < k; j++) {
        char c = *s->t[j].s;
        depth += c == '{' || c == '[';
        depth -= c == '}' || c == ']';
        n += c == ',' && depth == 0;
    }
    return n;
}

/* The only token of an operand; -1: there are more, or there is none. */
static int lone(const Statement *s, int operand) {
    int found = -1;
    for (int k = s->op + 1; k < s->n; k++) {
        if (*s->t[k].s == ',' || operand_of(s, k) != operand) {
            continue;
        }
        if (found >= 0) {
            return -1;
        }
        found = k;
    }
    return found;
}

static void swap_sources(Walk *w) {
    static const int ordered[] = {OP_SUB,  OP_DIV,  OP_DIVA, OP_REM, OP_SHL,  OP_SHR,
                                  OP_SELP, OP_SETP, OP_MAD,  OP_FMA, OP_PRMT, -1};
    const Statement *s = &w->s;
    if (!in_list(s->c.op, ordered)) {
        return;
    }
    if (s->c.op == OP_SETP && (s->c.cmp == W_EQ || s->c.cmp == W_NE)) {
        return;
    }
    int first = s->c.op == OP_MAD || s->c.op == OP_FMA ? 2 : 1;
    int a = lone(s, first), b = lone(s, first + 1);
    if (a < 0 || b < 0 || same(s->t[a], s->t[b])) {
        return;
    }
    bool shift64 = (s->c.op == OP_SHL || s->c.op == OP_SHR) && ptx_type_bits(s->c.type[0]) != 32;
    if (shift64 || (s->t[b].kind == TK_NUMBER && s->c.op == OP_PRMT)) {
        return; /* the count is of another type */
    }
    char with[300];
    snprintf(with, sizeof with, "%.*s%.*s%.*s", (int)s->t[b].n, s->t[b].s,
             (int)(s->t[b].s - (s->t[a].s + s->t[a].n)), s->t[a].s + s->t[a].n, (int)s->t[a].n,
             s->t[a].s);
    emit(w, s->t[a].s, (size_t)(s->t[b].s + s->t[b].n - s->t[a].s), with);
}

/* Whether a token is a destination: in the first operand, of an instruction that has one. */
static bool is_destination(const Statement *s, int k) {
    const char *ops = ptx_forms[s->c.form].operands;
    return *ops == '=' && operand_of(s, k) == 0;
}

static void replace_registers(Walk *w) {
    const Statement *s = &w->s;
    for (int k = s->op + 1; k < s->n; k++) {
        PtxToken t = s->t[k];
        if (!is_register(t) || is_destination(s, k) || s->c.op == OP_BRA) {
            continue;
        }
        for (int r = w->recent.n - 1; r >= 0 && r >= w->recent.n - RECENT; r--) {
            PtxToken other = w->recent.names[r % RECENT];
            if (stem(other) == stem(t) && !memcmp(other.s, t.s, stem(t)) && !same(other, t)) {
                char with[80];
                snprintf(with, sizeof with, "%.*s", (int)other.n, other.s);
                emit(w, t.s, t.n, with);
                break;
            }
        }
    }
}

static void change_constants(Walk *w) {
    const Statement *s = &w->s;
    for (int k = s->op + 1; k < s->n; k++) {
        PtxToken t = s->t[k];
        char with[64];
        uint64_t bits;
        if (t.kind != TK_NUMBER || (s->c.op == OP_BAR && operand_of(s, k) == 0)) {
            continue;
        }
        bool minus = *s->t[k - 1].s == '-', bracket = false;
        for (int j = s->op; j < k; j++) {
            bracket = *s->t[j].s == '[' || (bracket && *s->t[j].s != ']');
        }
        if (bracket) {
            continue; /* change_addresses */
        }
        if (t.n == 10 && (t.s[1] == 'f' || t.s[1] == 'F') && *t.s == '0') {
            ptx_number(t.s, t.n, T_F32, &bits);
            bits = (bits & 0x7fffffff) == 0            ? 0x3f800000
                   : (bits & 0x7f800000) == 0x7f800000 ? bits ^ 0x80000000
                                                       : bits + 0x800000;
            snprintf(with, sizeof with, "0f%08X", (unsigned)bits & 0xffffffffu);
        } else if (t.n == 18 && (t.s[1] == 'd' || t.s[1] == 'D')) {
            ptx_number(t.s, t.n, T_F64, &bits);
            bits = bits << 1 ? bits + (1ull << 52) : 0x3ff0000000000000;
            snprintf(with, sizeof with, "0d%016llX", (unsigned long long)bits);
        } else if (ptx_number(t.s, t.n, T_U64, &bits) && bits < 0xffffffff) {
            snprintf(with, sizeof with, "%llu", (unsigned long long)(minus ? bits - 1 : bits + 1));
        } else {
            continue;
        }
        if (s->c.op == OP_CPASYNC && operand_of(s, k) == 2) {
            continue; /* 16 is the only size */
        }
        emit(w, t.s, t.n, with);
    }
}

/* The opcode with one dotted word changed, if that is a form. */
static void change_word(Walk *w, const char *from, const char *to) {
    const Statement *s = &w->s;
    PtxToken t = s->t[s->op];
    char name[120], what[160];
    size_t n = strlen(from);
    for (size_t k = 0; k + n <= t.n; k++) {
        bool starts = k == 0 || t.s[k - 1] == '.', ends = k + n == t.n || t.s[k + n] == '.';
        if (!starts || !ends || memcmp(t.s + k, from, n)) {
            continue;
        }
        snprintf(name, sizeof name, "%.*s%s%.*s", (int)k, t.s, to, (int)(t.n - k - n), t.s + k + n);
        PtxOpcode c;
        if (ptx_opcode_parse(name, strlen(name), &c, what)) {
            emit(w, t.s, t.n, name);
        }
        return;
    }
}

static void change_words(Walk *w) {
    static const char *const compares[][3] = {
        {"lt", "le", "ge"},    {"le", "lt", "gt"},    {"gt", "ge", "le"},    {"ge", "gt", "lt"},
        {"eq", "ne", "lt"},    {"ne", "eq", "gt"},    {"ltu", "leu", "geu"}, {"leu", "ltu", "gtu"},
        {"gtu", "geu", "leu"}, {"geu", "gtu", "ltu"}, {"equ", "neu", "ltu"}, {"neu", "equ", "gtu"}};
    static const char *const opcodes[][2] = {
        {"add", "sub"}, {"sub", "add"}, {"min", "max"},   {"max", "min"},   {"and", "or"},
        {"or", "and"},  {"xor", "or"},  {"shl", "shr"},   {"shr", "shl"},   {"mul", "add"},
        {"div", "mul"}, {"rem", "div"}, {"bfly", "down"}, {"down", "bfly"}, {"up", "down"},
        {"any", "all"}, {"all", "any"}, {"lo", "hi"},     {"hi", "lo"}};
    static const char *const rounds[][2] = {{"rn", "rz"},   {"rz", "rn"},   {"rm", "rp"},
                                            {"rp", "rm"},   {"rzi", "rni"}, {"rni", "rzi"},
                                            {"rmi", "rpi"}, {"rpi", "rmi"}};
    const Statement *s = &w->s;
    int op = s->c.op;
    static const int signs[] = {OP_SHR, OP_DIV, OP_REM, OP_MIN, OP_MAX, OP_BFE, OP_LD, OP_SETP, -1};
    if (op == OP_SETP) {
        for (size_t k = 0; k < sizeof compares / sizeof *compares; k++) {
            if (!strcmp(ptx_word_text(s->c.cmp), compares[k][0])) {
                change_word(w, compares[k][0], compares[k][1]);
                change_word(w, compares[k][0], compares[k][2]);
            }
        }
    }
    for (size_t k = 0; k < sizeof opcodes / sizeof *opcodes && op != OP_MATCH; k++) {
        change_word(w, opcodes[k][0], opcodes[k][1]);
    }
    for (size_t k = 0; k < sizeof rounds / sizeof *rounds; k++) {
        if (s->c.round && !strcmp(ptx_word_text(s->c.round), rounds[k][0])) {
            change_word(w, rounds[k][0], rounds[k][1]);
        }
    }
    if (in_list(op, signs) && s->c.cmp != W_EQ && s->c.cmp != W_NE &&
        !(op == OP_LD && (ptx_type_bits(s->c.type[0]) >= 32))) {
        change_word(w, "u32", "s32");
        change_word(w, "s32", "u32");
        change_word(w, "s64", "u64");
        change_word(w, "u16", "s16");
        change_word(w, "s16", "u16");
        change_word(w, "u8", "s8");
        change_word(w, "s8", "u8");
    }
}

/* [x] and [x+4] one element further. */
static void change_addresses(Walk *w) {
    const Statement *s = &w->s;
    int size = s->c.op == OP_CPASYNC || s->c.op == OP_LDMATRIX ? 16
               : s->c.ntypes                                   ? ptx_type_bits(s->c.type[0]) / 8
                                                               : 4;
    for (int k = s->op + 1; k < s->n; k++) {
        if (*s->t[k].s != '[') {
            continue;
        }
        int e = k + 1;
        while (e < s->n && *s->t[e].s != ']') {
            e++;
        }
        char with[80];
        PtxToken last = s->t[e - 1];
        uint64_t v;
        if (s->c.space == W_PARAM) {
            size = 8;
        }
        if (last.kind == TK_NUMBER && e - k > 2 && ptx_number(last.s, last.n, T_U64, &v)) {
            bool minus = *s->t[e - 2].s == '-';
            if (minus && v < (uint64_t)size) {
                continue;
            }
            snprintf(with, sizeof with, "%llu",
                     (unsigned long long)(minus ? v - (uint64_t)size : v + (uint64_t)size));
            emit(w, last.s, last.n, with);
        } else if (last.kind == TK_NAME) {
            snprintf(with, sizeof with, "%.*s+%d", (int)(last.n > 60 ? 60 : last.n), last.s, size);
            emit(w, last.s, last.n, with);
        }
    }
}

static void change_guard(Walk *w) {
    const Statement *s = &w->s;
    if (s->op == 0) {
        return;
    }
    bool negated = *s->t[1].s == '!';
    if (negated) {
        emit(w, s->t[1].s, 1, "");
    } else {
        emit(w, s->t[1].s, 0, "!");
    }
    emit(w, s->t[0].s, (size_t)(s->t[s->op].s - s->t[0].s), "");
}

/* Whether the destination had a value before, which would stay. */
static bool overwrites(const Walk *w) {
    int d = lone(&w->s, 0);
    for (int r = w->recent.n - 1; d >= 0 && r >= 0 && r >= w->recent.n - RECENT; r--) {
        if (same(w->recent.names[r % RECENT], w->s.t[d])) {
            return true;
        }
    }
    return false;
}

static void drop(Walk *w) {
    static const int droppable[] = {OP_ST,        OP_ATOM, OP_RED,     OP_CPASYNC, OP_CPWAIT,
                                    OP_CPWAITALL, OP_BAR,  OP_BARWARP, OP_BRA,     -1};
    const Statement *s = &w->s;
    if (in_list(s->c.op, droppable) || (*ptx_forms[s->c.form].operands == '=' && overwrites(w))) {
        emit(w, s->start, (size_t)(s->end - s->start), "");
    }
}

static void remember(Walk *w) {
    for (int k = w->s.op + 1; k < w->s.n; k++) {
        if (is_register(w->s.t[k])) {
            w->recent.names[w->recent.n++ % RECENT] = w->s.t[k];
        }
    }
}

static void statement(Walk *w) {
    Statement *s = &w->s;
    char what[160];
    s->op = 0;
    if (*s->t[0].s == '@') {
        s->op = *s->t[1].s == '!' ? 3 : 2;
    }
    if (s->op < s->n && s->t[s->op].kind == TK_NAME &&
        ptx_opcode_parse(s->t[s->op].s, s->t[s->op].n, &s->c, what)) {
        swap_sources(w);
        replace_registers(w);
        change_constants(w);
        change_words(w);
        change_addresses(w);
        change_guard(w);
        drop(w);
        remember(w);
    }
}

/* All statements of all kernels, in order. */
static int walk(Walk *w) {
    PtxLexer x = {w->text, w->text + w->bytes, 1};
    PtxToken t = ptx_lex(&x);
    int depth = 0;
    bool entry = false;
    while (t.kind != TK_END) {
        if (ptx_token_is(t, ".entry")) {
            w->kernel = t = ptx_lex(&x);
            w->recent.n = 0;
            entry = true;
        } else if (*t.s == '{' && entry) {
            depth++;
        } else if (*t.s == '}' && depth) {
            entry = --depth > 0;
        } else if (depth && t.kind == TK_DIRECTIVE) {
            while (t.kind != TK_END && *t.s != ';') {
                t = ptx_lex(&x);
            }
        } else if (depth && (t.kind == TK_NAME || *t.s == '@')) {
            Statement *s = &w->s;
            s->n = 0;
            s->start = t.s;
            while (t.kind != TK_END && *t.s != ';' && *t.s != ':') {
                if (s->n < TOKENS) {
                    s->t[s->n++] = t;
                }
                t = ptx_lex(&x);
            }
            s->end = t.s + 1;
            if (*t.s == ';') {
                statement(w);
            }
        }
        t = ptx_lex(&x);
    }
    return w->count;
}

int ptx_mutant_count(const char *text, size_t bytes) {
    Walk w = {.text = text, .bytes = bytes, .wanted = -1};
    return walk(&w);
}

bool ptx_mutant(const char *text, size_t bytes, int n, PtxMutant *out) {
    Walk w = {.text = text, .bytes = bytes, .wanted = n, .out = out};
    memset(out, 0, sizeof *out);
    return n >= 0 && walk(&w) > n;
}

void ptx_mutant_free(PtxMutant *m) {
    free(m->text);
    m->text = NULL;
}
