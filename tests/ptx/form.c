/* form.c: opcodes (add.rn.f32) against the table of forms. */
#include "ptx.h"

#include <string.h>

#define F(op, pattern, operands) {OP_##op, pattern, operands},
const PtxForm ptx_forms[] = {PTX_FORMS(F)};
#undef F
const int ptx_nforms = sizeof ptx_forms / sizeof *ptx_forms;

static const struct {
    const char *text;
    uint8_t n, class;
} words[W_COUNT] = {{"", 0, C_NOTHING},
#define W(name, text, class) {text, sizeof text - 1, C_##class},
                    PTX_WORDS(W)
#undef W
};

const char *ptx_word_text(int word) {
    return words[word].text;
}

int ptx_word_find(const char *s, size_t n) {
    for (int w = 1; w < W_COUNT; w++) {
        if (words[w].n == n && !memcmp(words[w].text, s, n)) {
            return w;
        }
    }
    return W_NONE;
}

int ptx_type_bits(int type) {
    switch (type) {
    case T_PRED:
        return 1;
    case T_B8:
    case T_U8:
    case T_S8:
        return 8;
    case T_B16:
    case T_U16:
    case T_S16:
    case T_F16:
    case T_BF16:
        return 16;
    case T_B64:
    case T_U64:
    case T_S64:
    case T_F64:
        return 64;
    default:
        return 32;
    }
}

bool ptx_type_float(int type) {
    switch (type) {
    case T_F16:
    case T_BF16:
    case T_F32:
    case T_F64:
    case T_F16X2:
    case T_BF16X2:
        return true;
    default:
        return false;
    }
}

bool ptx_type_signed(int type) {
    return type == T_S8 || type == T_S16 || type == T_S32 || type == T_S64;
}

typedef struct Part { /* of a pattern, or of an opcode (one alternative) */
    const char *s;
    size_t n;
    bool optional, choice;
} Part;

static int split(const char *s, size_t n, Part *out, bool pattern) {
    int k = 0;
    const char *end = s + n;
    while (s < end && k < MAX_WORDS) {
        Part p = {.s = s};
        if (pattern && (*s == '{' || *s == '[')) {
            p.optional = *s == '[';
            p.choice = true;
            p.s = ++s;
            while (*s != '}' && *s != ']') {
                s++;
            }
            p.n = (size_t)(s - p.s);
            s++;
        } else {
            while (s < end && *s != '.') {
                s++;
            }
            p.n = (size_t)(s - p.s);
        }
        out[k++] = p;
        if (s < end) {
            s++; /* the dot */
        }
    }
    return k;
}

static bool part_takes(const Part *p, const Part *word) {
    if (!p->choice) {
        return p->n == word->n && !memcmp(p->s, word->s, p->n);
    }
    const char *s = p->s, *end = p->s + p->n;
    while (s < end) {
        const char *e = s;
        while (e < end && *e != ',') {
            e++;
        }
        if ((size_t)(e - s) == word->n && !memcmp(s, word->s, word->n)) {
            return true;
        }
        s = e + 1;
    }
    return false;
}

/* *far: how many words were taken by the attempt that came farthest. */
static bool match(const Part *p, int np, const Part *w, int nw, int taken, int *far) {
    if (taken > *far) {
        *far = taken;
    }
    if (np == 0) {
        return nw == 0;
    }
    if (nw && part_takes(p, w) && match(p + 1, np - 1, w + 1, nw - 1, taken + 1, far)) {
        return true;
    }
    return p->optional && match(p + 1, np - 1, w, nw, taken, far);
}

static void set_word(PtxOpcode *c, int w) {
    uint8_t v = (uint8_t)w;
    switch (words[w].class) {
    case C_TYPE:
        if (c->ntypes < 4) {
            c->type[c->ntypes++] = v;
        }
        break;
    case C_ROUND:
        c->round = v;
        break;
    case C_CMP:
        c->cmp = v;
        break;
    case C_OP2:
        c->op2 = v;
        break;
    case C_SPACE:
        c->space = c->space ? c->space : v;
        break;
    case C_VEC:
        c->vec = v;
        break;
    case C_STRONG:
        c->strong = v;
        break;
    case C_SCOPE:
        c->scope = v;
        break;
    case C_CACHE:
        c->cache = v;
        break;
    case C_MODE:
        c->mode = v;
        break;
    case C_FLAG:
        c->flags |= (uint16_t)(1u << (w - W_FTZ));
        break;
    default:
        break;
    }
}

bool ptx_opcode_parse(const char *s, size_t n, PtxOpcode *out, char what[160]) {
    Part word[MAX_WORDS], part[MAX_WORDS];
    int nw = split(s, n, word, false), far = 0;
    for (int f = 0; f < ptx_nforms; f++) {
        const char *p = ptx_forms[f].pattern;
        if (strncmp(p, s, word[0].n) || (p[word[0].n] != '.' && p[word[0].n])) {
            continue;
        }
        int np = split(p, strlen(p), part, true);
        if (!match(part, np, word, nw, 0, &far)) {
            continue;
        }
        memset(out, 0, sizeof *out);
        out->op = ptx_forms[f].op;
        out->form = (uint16_t)f;
        for (int k = 1; k < nw; k++) {
            set_word(out, ptx_word_find(word[k].s, word[k].n));
        }
        if (out->space == W_SHARED_CTA) {
            out->space = W_SHARED;
        }
        return true;
    }
    if (far == 0) {
        snprintf(what, 160, "instruction '%.*s' is not known to the emulator", (int)word[0].n, s);
    } else if (far < nw) {
        snprintf(what, 160, "'.%.*s' in '%.*s' is not known to the emulator", (int)word[far].n,
                 word[far].s, n > 100 ? 100 : (int)n, s);
    } else {
        snprintf(what, 160, "'%.*s' lacks a word, such as its type", n > 100 ? 100 : (int)n, s);
    }
    return false;
}
