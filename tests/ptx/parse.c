/* parse.c: PTX text as a PtxModule: directives, declarations, scopes and labels. Instructions are
 * parse_instr.c's. What is not known is a problem with its line, never skipped. */
#include "parse.h"

#include <stdlib.h>
#include <string.h>

void *ptx_grow(void *array, int *cap, int need, size_t size) {
    if (need <= *cap) {
        return array;
    }
    *cap = need * 2 > 16 ? need * 2 : 16;
    void *p = realloc(array, (size_t)*cap * size);
    if (!p) {
        abort();
    }
    return p;
}

void ptx_next(PtxParser *p) {
    p->t = ptx_lex(&p->x);
}

void ptx_problem(PtxParser *p, int line, const char *format, ...) {
    char text[512];
    va_list a;
    va_start(a, format);
    vsnprintf(text, sizeof text, format, a);
    va_end(a);
    p->failed = true;
    if (p->k) {
        p->k->failed = true;
    }
    if (p->stop) {
        return;
    }
    if (p->problem) {
        p->stop = !p->problem(p->user, line, text);
        return;
    }
    p->stop = true;
    if (p->d && line) {
        ptx_fail(p->d, "line %d: %s", line, text);
    } else if (p->d) {
        ptx_fail(p->d, "%s", text);
    }
}

static void unexpected(PtxParser *p, const char *wanted) {
    if (p->t.kind == TK_END) {
        ptx_problem(p, p->t.line, "the text ends where %s is expected", wanted);
        p->stop = true;
    } else {
        ptx_problem(p, p->t.line, "%s expected, found '%.*s'", wanted,
                    p->t.n > 60 ? 60 : (int)p->t.n, p->t.s);
    }
}

bool ptx_accept(PtxParser *p, const char *punct) {
    if (!ptx_token_is(p->t, punct)) {
        return false;
    }
    ptx_next(p);
    return true;
}

bool ptx_expect(PtxParser *p, const char *punct) {
    char quoted[16];
    if (ptx_accept(p, punct)) {
        return true;
    }
    snprintf(quoted, sizeof quoted, "'%s'", punct);
    unexpected(p, quoted);
    return false;
}

/* An unsigned integer; 0 with a problem. */
static uint64_t expect_int(PtxParser *p) {
    uint64_t v = 0;
    if (p->t.kind != TK_NUMBER || !ptx_number(p->t.s, p->t.n, T_U64, &v)) {
        unexpected(p, "an integer");
        return 0;
    }
    ptx_next(p);
    return v;
}

static void resync(PtxParser *p) {
    while (p->t.kind != TK_END && !ptx_token_is(p->t, ";") && !ptx_token_is(p->t, "{") &&
           !ptx_token_is(p->t, "}")) {
        ptx_next(p);
    }
    ptx_accept(p, ";");
}

/* ---- names ---- */
enum { BUCKETS = 4096 };

static uint32_t hash(const char *s, size_t n) {
    uint32_t h = 2166136261u;
    for (size_t k = 0; k < n; k++) {
        h = (h ^ (unsigned char)s[k]) * 16777619u;
    }
    return h;
}

static PtxSym *find_exact(PtxParser *p, const char *s, size_t n, bool family) {
    uint32_t h = hash(s, n);
    for (int k = p->buckets[h % BUCKETS]; k >= 0; k = p->chain[k]) {
        PtxSym *y = &p->syms[k];
        if (y->hash == h && y->n == n && !memcmp(y->s, s, n) && (y->count > 0) == family) {
            return y;
        }
    }
    return NULL;
}

/* A name that is declared, or the family %r of %r7. */
PtxSym *ptx_sym_find(PtxParser *p, const char *s, size_t n) {
    PtxSym *y = find_exact(p, s, n, false);
    if (y) {
        return y;
    }
    size_t stem = n;
    while (stem > 1 && s[stem - 1] >= '0' && s[stem - 1] <= '9') {
        stem--;
    }
    if (stem == n || n - stem > 8 || (s[stem] == '0' && n - stem > 1)) {
        return NULL;
    }
    y = find_exact(p, s, stem, true);
    return y && atoi(s + stem) < y->count ? y : NULL;
}

static PtxSym *add_sym(PtxParser *p, PtxToken name, PtxSymKind kind, int type, int line) {
    PtxSym *old = find_exact(p, name.s, name.n, false);
    int scope = p->scopes[p->nscopes - 1];
    if (old && old->scope == scope) {
        ptx_problem(p, line, "'%.*s' is declared twice", (int)name.n, name.s);
    }
    int cap = p->syms_cap;
    p->syms = ptx_grow(p->syms, &p->syms_cap, p->nsyms + 1, sizeof *p->syms);
    if (cap != p->syms_cap) {
        p->chain = realloc(p->chain, (size_t)p->syms_cap * sizeof *p->chain);
        if (!p->chain) {
            abort();
        }
    }
    PtxSym *y = &p->syms[p->nsyms];
    memset(y, 0, sizeof *y);
    y->s = name.s;
    y->n = name.n;
    y->hash = hash(name.s, name.n);
    y->kind = kind;
    y->type = type;
    y->scope = scope;
    p->chain[p->nsyms] = p->buckets[y->hash % BUCKETS];
    p->buckets[y->hash % BUCKETS] = p->nsyms++;
    return y;
}

static void open_scope(PtxParser *p) {
    if (p->nscopes == 64) {
        ptx_problem(p, p->t.line, "blocks are nested too deeply");
        p->stop = true;
        return;
    }
    p->scopes[p->nscopes++] = ++p->next_scope;
}

/* Jumps to labels of this scope get their target; others look further out. */
static void close_scope(PtxParser *p) {
    int scope = p->scopes[--p->nscopes], outer = p->nscopes ? p->scopes[p->nscopes - 1] : 0;
    while (p->nsyms && p->syms[p->nsyms - 1].scope == scope) {
        p->nsyms--;
        p->buckets[p->syms[p->nsyms].hash % BUCKETS] = p->chain[p->nsyms];
    }
    for (int j = 0; j < p->njumps; j++) {
        PtxLabel *jump = &p->jumps[j];
        if (jump->scope != scope) {
            continue;
        }
        jump->scope = outer;
        for (int l = 0; l < p->nlabels; l++) {
            PtxLabel *lab = &p->labels[l];
            if (lab->scope == scope && lab->n == jump->n && !memcmp(lab->s, jump->s, lab->n)) {
                p->k->code[jump->pc].target = lab->pc;
                *jump = p->jumps[--p->njumps];
                j--;
                break;
            }
        }
    }
    while (p->nlabels && p->labels[p->nlabels - 1].scope == scope) {
        p->nlabels--;
    }
}

static void add_label(PtxParser *p, PtxToken name) {
    int scope = p->scopes[p->nscopes - 1];
    for (int l = 0; l < p->nlabels; l++) {
        if (p->labels[l].scope == scope && p->labels[l].n == name.n &&
            !memcmp(p->labels[l].s, name.s, name.n)) {
            ptx_problem(p, name.line, "label '%.*s' stands twice", (int)name.n, name.s);
        }
    }
    p->labels = ptx_grow(p->labels, &p->labels_cap, p->nlabels + 1, sizeof *p->labels);
    p->labels[p->nlabels++] = (PtxLabel){name.s, name.n, scope, p->k->ncode, name.line};
}

/* ---- declarations ---- */
static int type_of(PtxToken t) {
    int w = t.kind == TK_DIRECTIVE ? ptx_word_find(t.s + 1, t.n - 1) : W_NONE;
    return w <= T_F64 ? w : W_NONE;
}

/* .reg .b32 %r<6>, tmp; */
static void parse_reg(PtxParser *p) {
    ptx_next(p);
    int type = type_of(p->t), bits = ptx_type_bits(type);
    if (!type || type == T_B8 || type == T_U8 || type == T_S8 || type == T_TF32) {
        unexpected(p, "the type of a register");
        resync(p);
        return;
    }
    ptx_next(p);
    do {
        PtxToken name = p->t;
        if (name.kind != TK_NAME) {
            unexpected(p, "the name of a register");
            resync(p);
            return;
        }
        ptx_next(p);
        uint64_t count = 0;
        if (ptx_accept(p, "<")) {
            count = expect_int(p);
            ptx_expect(p, ">");
            if (count == 0 || count > 1 << 20) {
                ptx_problem(p, name.line, "%d registers '%.*s' are not possible", (int)count,
                            (int)name.n, name.s);
                count = 1;
            }
        }
        PtxKernel *k = p->k;
        PtxSym *y = add_sym(p, name, SYM_REG, type, name.line);
        y->count = (int)count;
        y->reg = k->nregs;
        uint32_t each = bits == 1 ? 4 : bits == 64 ? 256 : 128;
        if (bits != 1) {
            k->reg_bytes = (k->reg_bytes + 63) & ~63u;
        }
        y->at = k->reg_bytes;
        int n = count ? (int)count : 1;
        k->reg_bytes += each * (uint32_t)n;
        k->reg_names = ptx_grow(k->reg_names, &k->regs_cap, k->nregs + n, sizeof *k->reg_names);
        for (int r = 0; r < n; r++) {
            k->reg_names[k->nregs++] = (PtxRegName){name.s, (uint32_t)name.n, count ? r : -1};
        }
    } while (ptx_accept(p, ","));
    ptx_expect(p, ";");
}

/* The values of an initialiser into `to`, which has room for n elements. */
static void parse_values(PtxParser *p, int type, uint8_t *to, uint64_t n) {
    uint64_t k = 0;
    bool braces = ptx_accept(p, "{");
    unsigned bytes = (unsigned)ptx_type_bits(type) / 8;
    do {
        char text[64] = "";
        bool minus = ptx_accept(p, "-");
        uint64_t bits = 0;
        snprintf(text, sizeof text, "%s%.*s", minus ? "-" : "", (int)(p->t.n > 50 ? 50 : p->t.n),
                 p->t.s);
        if (p->t.kind != TK_NUMBER || !ptx_number(text, strlen(text), type, &bits)) {
            unexpected(p, "a number of the variable's type");
            return;
        }
        if (k == n) {
            ptx_problem(p, p->t.line, "more values than the variable has elements");
            return;
        }
        memcpy(to + bytes * k++, &bits, bytes); /* little endian */
        ptx_next(p);
    } while (braces && ptx_accept(p, ","));
    if (braces) {
        ptx_expect(p, "}");
    }
}

static void place_global(PtxParser *p, PtxSym *y, const uint8_t *data, bool constant) {
    if (!p->d) {
        y->address = PTX_GLOBAL_BASE;
        return;
    }
    y->address = ptx_allocate(p->d, y->bytes ? y->bytes : 1, true, constant);
    if (!y->address) {
        p->stop = p->failed = true;
        return;
    }
    PtxAlloc *a = ptx_find(p->d, y->address);
    memcpy(a->host, data, y->bytes);
    ptx_init_set(a->init, 0, y->bytes);
    PtxModule *m = p->m;
    m->globals = realloc(m->globals, (size_t)(m->nglobals + 1) * sizeof *m->globals);
    if (!m->globals) {
        abort();
    }
    m->globals[m->nglobals++] = y->address;
}

/* .shared .align 16 .b8 name[64];  .global .align 4 .b8 name[4] = {1, 2}; the token is the space.
 */
static void parse_var(PtxParser *p, bool is_extern) {
    int line = p->t.line;
    PtxSymKind kind = ptx_token_is(p->t, ".shared")   ? SYM_SHARED
                      : ptx_token_is(p->t, ".local")  ? SYM_LOCAL
                      : ptx_token_is(p->t, ".global") ? SYM_GLOBAL
                                                      : SYM_CONST;
    ptx_next(p);
    uint64_t align = 0, count = 1;
    if (ptx_accept(p, ".align")) {
        align = expect_int(p);
    }
    int vec = ptx_accept(p, ".v2") ? 2 : ptx_accept(p, ".v4") ? 4 : 1;
    int type = type_of(p->t);
    if (!type || type == T_PRED) {
        unexpected(p, "the type of a variable");
        resync(p);
        return;
    }
    ptx_next(p);
    PtxToken name = p->t;
    if (name.kind != TK_NAME) {
        unexpected(p, "the name of a variable");
        resync(p);
        return;
    }
    ptx_next(p);
    bool open = false;
    while (ptx_accept(p, "[")) {
        if (ptx_accept(p, "]")) {
            open = true;
            break;
        }
        count *= expect_int(p);
        ptx_expect(p, "]");
    }
    uint32_t element = (uint32_t)ptx_type_bits(type) / 8 * (uint32_t)vec;
    if (align & (align - 1) || align > 4096 || count > 1ull << 32) {
        ptx_problem(p, line, "'%.*s' has an impossible size or alignment", (int)name.n, name.s);
        align = count = 1;
    }
    if (is_extern && !(kind == SYM_SHARED && open)) {
        ptx_problem(p, line, "'%.*s': only shared memory of unknown size may be .extern",
                    (int)name.n, name.s);
    }
    PtxSym *y = add_sym(p, name, is_extern ? SYM_DYNAMIC : kind, type, line);
    y->bytes = open ? 0 : count * element;
    y->align = align ? (uint32_t)align : element;
    if (kind == SYM_LOCAL && p->k) {
        uint32_t at = ((uint32_t)p->k->info.local_bytes + y->align - 1) & ~(y->align - 1);
        y->at = at + PTX_LOCAL_BASE;
        p->k->info.local_bytes = (int)(at + y->bytes);
    } else if (kind == SYM_LOCAL) {
        ptx_problem(p, line, ".local outside a kernel");
    }
    if (kind == SYM_GLOBAL || kind == SYM_CONST) {
        uint8_t *data = calloc(y->bytes + 1, 1);
        int index = (int)(y - p->syms);
        if (ptx_accept(p, "=")) {
            parse_values(p, type, data, count * (uint64_t)vec);
        }
        place_global(p, &p->syms[index], data, kind == SYM_CONST);
        free(data);
    }
    if (!ptx_expect(p, ";")) {
        resync(p);
    }
}

/* .param .u64 name  or  .param .u64 .ptr .global .align 16 name  or  .param .align 8 .b8 name[16]
 */
static void parse_param(PtxParser *p) {
    if (!ptx_expect(p, ".param")) {
        return;
    }
    uint64_t align = 0, count = 1;
    if (ptx_accept(p, ".align")) {
        align = expect_int(p);
    }
    int type = type_of(p->t);
    if (!type || type == T_PRED) {
        unexpected(p, "the type of a parameter");
        return;
    }
    ptx_next(p);
    if (ptx_accept(p, ".ptr")) {
        while (ptx_accept(p, ".global") || ptx_accept(p, ".shared") || ptx_accept(p, ".const") ||
               ptx_accept(p, ".local")) {
        }
        if (ptx_accept(p, ".align")) {
            expect_int(p);
        }
    }
    PtxToken name = p->t;
    if (name.kind != TK_NAME) {
        unexpected(p, "the name of a parameter");
        return;
    }
    ptx_next(p);
    if (ptx_accept(p, "[")) {
        count = expect_int(p);
        ptx_expect(p, "]");
    }
    PtxKernelInfo *info = &p->k->info;
    uint64_t bytes = count * (uint64_t)ptx_type_bits(type) / 8;
    uint64_t a = align ? align : (uint64_t)ptx_type_bits(type) / 8;
    uint64_t at = ((uint64_t)info->params_bytes + a - 1) / a * a;
    if (info->nparams == 256 || at + bytes > 4096 || (a & (a - 1))) {
        ptx_problem(p, name.line, "parameter '%.*s' is beyond 256 parameters or 4096 bytes",
                    (int)name.n, name.s);
        return;
    }
    PtxSym *y = add_sym(p, name, SYM_PARAM, type, name.line);
    y->at = (uint32_t)at;
    y->bytes = bytes;
    info->param_offset[info->nparams] = (int)at;
    info->param_bytes[info->nparams++] = (int)bytes;
    info->params_bytes = (int)(at + bytes);
}

/* ---- kernels ---- */
static void parse_launch_bounds(PtxParser *p) {
    for (;;) {
        bool max = ptx_token_is(p->t, ".maxntid"), req = ptx_token_is(p->t, ".reqntid");
        if (max || req) {
            int n[3] = {1, 1, 1}, line = p->t.line, k = 0;
            ptx_next(p);
            do {
                uint64_t v = expect_int(p);
                n[k++] = v > 4096 ? 4096 : (int)v;
            } while (k < 3 && ptx_accept(p, ","));
            int product = n[0] * n[1] * n[2];
            if (product < 1 || product > 1024) {
                ptx_problem(p, line, "%d threads of a CTA: 1 to 1024 are possible", product);
                product = 1024;
            }
            p->k->info.max_threads = product;
            if (req) {
                memcpy(p->k->req_ntid, n, sizeof n);
            }
        } else if (ptx_accept(p, ".minnctapersm") || ptx_accept(p, ".maxnreg")) {
            expect_int(p);
        } else {
            return;
        }
    }
}

/* .pragma "nounroll"; nothing here depends on one. */
static void parse_pragma(PtxParser *p) {
    ptx_next(p);
    if (p->t.kind != TK_STRING || !ptx_token_is(p->t, "\"nounroll\"")) {
        unexpected(p, "\"nounroll\", the only .pragma known,");
    }
    ptx_next(p);
    ptx_expect(p, ";");
}

static void parse_statement(PtxParser *p) {
    PtxToken t = p->t;
    if (ptx_token_is(t, ".reg")) {
        parse_reg(p);
    } else if (ptx_token_is(t, ".shared") || ptx_token_is(t, ".local")) {
        parse_var(p, false);
    } else if (ptx_token_is(t, ".pragma")) {
        parse_pragma(p);
    } else if (ptx_token_is(t, "@")) {
        ptx_parse_instr(p);
    } else if (t.kind == TK_NAME) {
        PtxLexer ahead = p->x;
        if (ptx_token_is(ptx_lex(&ahead), ":")) {
            add_label(p, t);
            ptx_next(p);
            ptx_next(p);
            return;
        }
        ptx_parse_instr(p);
    } else {
        unexpected(p, t.kind == TK_DIRECTIVE ? "a directive that is known" : "an instruction");
        ptx_next(p);
        resync(p);
    }
}

/* A dynamic array begins behind the static ones, at its own alignment. */
static void place_dynamic(PtxParser *p) {
    PtxKernel *k = p->k;
    uint32_t a = k->dynamic_align ? (uint32_t)k->dynamic_align : 1;
    uint32_t at = PTX_SHARED_BASE + (((uint32_t)k->info.shared_static + a - 1) & ~(a - 1));
    for (int n = 0; n < p->ndynamics; n++) {
        PtxOperand *o = &k->operands[p->dynamics[n].operand];
        int64_t v = p->dynamics[n].addend + at;
        o->imm = v;
        if (o->kind == O_VALUE) {
            o->at = ptx_imm(p, (uint64_t)v, o->bits);
        }
    }
    p->ndynamics = 0;
}

static void finish_kernel(PtxParser *p) {
    PtxKernel *k = p->k;
    for (int j = 0; j < p->njumps; j++) {
        ptx_problem(p, p->jumps[j].line, "there is no label '%.*s'", (int)p->jumps[j].n,
                    p->jumps[j].s);
    }
    p->njumps = 0;
    place_dynamic(p);
    if (k->info.shared_static > 48 << 10) {
        ptx_problem(p, 0, "kernel %s: %d bytes of static shared memory, more than 48 KB", k->name,
                    k->info.shared_static);
    }
    PtxOperand *o = k->operands;
    for (int n = 0; n < k->ncode; n++) {
        k->code[n].o = o;
        o += k->code[n].nops;
        if (k->code[n].c.op == OP_BRA && k->code[n].target >= k->ncode && !p->failed) {
            ptx_problem(p, k->code[n].line, "jumps behind the last instruction");
        }
    }
    p->nimms = 0;
}

static void parse_entry(PtxParser *p) {
    ptx_next(p);
    PtxToken name = p->t;
    if (name.kind != TK_NAME) {
        unexpected(p, "the name of a kernel");
        resync(p);
        return;
    }
    for (int n = 0; n < p->m->nkernels; n++) {
        if (strlen(p->m->kernels[n]->name) == name.n &&
            !memcmp(p->m->kernels[n]->name, name.s, name.n)) {
            ptx_problem(p, name.line, "kernel '%.*s' is defined twice", (int)name.n, name.s);
        }
    }
    PtxKernel *k = calloc(1, sizeof *k);
    p->m->kernels = realloc(p->m->kernels, (size_t)(p->m->nkernels + 1) * sizeof *p->m->kernels);
    if (!k || !p->m->kernels || !(k->name = strndup(name.s, name.n))) {
        abort();
    }
    p->m->kernels[p->m->nkernels++] = k;
    k->module = p->m;
    k->info.max_threads = 1024;
    k->reg_bytes = 256; /* where results go that nobody wants */
    p->k = k;
    p->code_cap = 0;
    ptx_next(p);
    open_scope(p);
    if (ptx_accept(p, "(") && !ptx_accept(p, ")")) {
        do {
            parse_param(p);
        } while (!p->stop && ptx_accept(p, ","));
        ptx_expect(p, ")");
    }
    parse_launch_bounds(p);
    if (!ptx_expect(p, "{")) {
        p->stop = true;
    }
    int depth = p->nscopes;
    while (!p->stop) {
        if (p->t.kind == TK_END) {
            unexpected(p, "'}'");
        } else if (ptx_accept(p, "{")) {
            open_scope(p);
        } else if (ptx_token_is(p->t, "}")) {
            close_scope(p);
            ptx_next(p);
            if (p->nscopes < depth) {
                break;
            }
        } else {
            parse_statement(p);
        }
    }
    finish_kernel(p);
    p->k = NULL;
}

/* ---- module ---- */
static void parse_version(PtxParser *p) {
    ptx_next(p);
    const char *s = p->t.s;
    if (p->t.kind != TK_NUMBER || p->t.n < 3 || s[1] != '.') {
        unexpected(p, "a version such as 7.0");
        return;
    }
    p->m->version = (s[0] - '0') * 10 + (s[2] - '0');
    ptx_next(p);
}

static void parse_target(PtxParser *p) {
    ptx_next(p);
    char *end = NULL;
    if (p->t.kind == TK_NAME && p->t.n > 3 && !memcmp(p->t.s, "sm_", 3)) {
        p->m->target = (int)strtol(p->t.s + 3, &end, 10);
        p->m->target_suffix = end < p->t.s + p->t.n ? *end : 0;
    }
    if (!p->m->target) {
        unexpected(p, "a target such as sm_80");
    }
    ptx_next(p);
    if (p->d && p->m->target > p->d->o.capability) {
        ptx_problem(p, p->t.line, "is for sm_%d, the device is sm_%d", p->m->target,
                    p->d->o.capability);
    }
}

static void parse_module(PtxParser *p) {
    while (!p->stop && p->t.kind != TK_END) {
        bool is_extern = false;
        if (ptx_token_is(p->t, ".visible") || ptx_token_is(p->t, ".weak")) {
            ptx_next(p);
        } else if (ptx_accept(p, ".extern")) {
            is_extern = true;
        }
        if (ptx_token_is(p->t, ".version")) {
            parse_version(p);
        } else if (ptx_token_is(p->t, ".target")) {
            parse_target(p);
        } else if (ptx_accept(p, ".address_size")) {
            if (expect_int(p) != 64) {
                ptx_problem(p, p->t.line, ".address_size is not 64");
            }
        } else if (ptx_token_is(p->t, ".entry")) {
            parse_entry(p);
        } else if (ptx_token_is(p->t, ".shared") || ptx_token_is(p->t, ".global") ||
                   ptx_token_is(p->t, ".const")) {
            parse_var(p, is_extern);
        } else if (ptx_token_is(p->t, ".func")) {
            ptx_problem(p, p->t.line,
                        "functions (.func) are not known to the emulator: inline them");
            p->stop = true;
        } else {
            unexpected(p, "a directive that is known");
            ptx_next(p);
            resync(p);
        }
    }
    if (!p->stop && (!p->m->version || !p->m->target)) {
        ptx_problem(p, 0, "the text has no .version or no .target");
    }
}

PtxModule *ptx_parse(PtxDevice *d, const char *text, size_t bytes, PtxProblem problem, void *user) {
    PtxParser *p = calloc(1, sizeof *p);
    PtxModule *m = calloc(1, sizeof *m);
    if (!p || !m || !(m->text = malloc(bytes + 1)) ||
        !(p->buckets = malloc(BUCKETS * sizeof *p->buckets))) {
        abort();
    }
    memcpy(m->text, text, bytes);
    m->text[bytes] = 0;
    m->bytes = bytes;
    m->device = d;
    for (int k = 0; k < BUCKETS; k++) {
        p->buckets[k] = -1;
    }
    p->d = d;
    p->m = m;
    p->problem = problem;
    p->user = user;
    p->scopes[p->nscopes++] = ++p->next_scope;
    p->x = (PtxLexer){m->text, m->text + bytes, 1};
    ptx_next(p);
    parse_module(p);
    bool failed = p->failed;
    free(p->buckets);
    free(p->chain);
    free(p->syms);
    free(p->labels);
    free(p->jumps);
    free(p->dynamics);
    free(p->imms);
    free(p);
    if (failed && !problem) {
        ptx_unload(m);
        return NULL;
    }
    return m;
}
