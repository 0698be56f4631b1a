/* text.c: the Graph as text and back. See text.h for the form.
 *
 * Text is for goldens and dumps: deterministic, no addresses, ids renumbered in list order. */
#include "ir/text.h"

#include <ctype.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ir/infer.h"

enum { INLINE_ELEMENTS = 16 };

/* ---- printing ---- */

static void print_string(FILE *f, const char *s) {
    fputc('"', f);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            fprintf(f, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            fprintf(f, "\\x%02x", c);
        else
            fputc(c, f);
    }
    fputc('"', f);
}

static void print_double(FILE *f, double v) {
    if (isnan(v))
        fputs("nan", f);
    else if (isinf(v))
        fputs(v < 0 ? "-inf" : "inf", f);
    else
        fprintf(f, "%.17g", v);
}

static void print_tensor(FILE *f, const Tensor *t) {
    fprintf(f, "%s[", dtype_name(t->dtype));
    for (int i = 0; i < t->rank; i++)
        fprintf(f, "%s%" PRId64, i ? "," : "", t->dims[i]);
    fputc(']', f);
    int64_t n = tensor_count(t);
    if (n > INLINE_ELEMENTS) {
        fprintf(f, "#%016" PRIx64, hash_data(t->data, tensor_bytes(t), 1));
        return;
    }
    fputc('(', f);
    for (int64_t i = 0; i < n; i++) {
        if (i)
            fputc(' ', f);
        if (dtype_is_float(t->dtype))
            print_double(f, tensor_get_f(t, i));
        else
            fprintf(f, "%" PRId64, tensor_get_i(t, i));
    }
    fputc(')', f);
}

static void print_attr(FILE *f, const Attr *a) {
    fprintf(f, "%s=", attr_info[a->key].name);
    switch (attr_info[a->key].kind) {
    case ATTR_INT:
        if (a->key == AT_TO)
            fputs(dtype_name((DType)a->i), f);
        else
            fprintf(f, "%" PRId64, a->i);
        break;
    case ATTR_FLOAT:
        print_double(f, a->f);
        break;
    case ATTR_INTS:
        fputc('[', f);
        for (int i = 0; i < a->ints.n; i++)
            fprintf(f, "%s%" PRId64, i ? "," : "", a->ints.at[i]);
        fputc(']', f);
        break;
    case ATTR_STR:
        print_string(f, a->s);
        break;
    case ATTR_TENSOR:
        print_tensor(f, a->t);
        break;
    }
}

static void print_type(FILE *f, const Graph *g, const Value *v) {
    fprintf(f, "%s[", dtype_name(v->dtype));
    for (int i = 0; i < v->rank; i++) {
        fputs(i ? "," : "", f);
        if (v->dims[i] >= 0)
            fprintf(f, "%" PRId64, v->dims[i]);
        else
            fputs(dim_name(g, v->dims[i]), f);
    }
    fputc(']', f);
}

void graph_print(const Graph *g, FILE *f) {
    int *number = xcalloc((size_t)g->next_value, sizeof *number), next = 0;
    fputs("graph ", f);
    print_string(f, g->name);
    fputc('\n', f);
    FOR_NODES(n, g) {
        for (int i = 0; i < n->nout; i++) {
            number[n->out[i]->id] = next;
            fprintf(f, "%s%%%d", i ? ", " : "", next++);
        }
        fprintf(f, " = %s", op_info[n->op].name);
        for (int i = 0; i < n->nin; i++) {
            if (n->in[i])
                fprintf(f, " %%%d", number[n->in[i]->id]);
            else
                fputs(" _", f);
        }
        for (int i = 0; i < n->nattr; i++) {
            fputs(i ? ", " : " {", f);
            print_attr(f, &n->attrs[i]);
        }
        fputs(n->nattr ? "} : " : " : ", f);
        for (int i = 0; i < n->nout; i++) {
            fputs(i ? ", " : "", f);
            print_type(f, g, n->out[i]);
        }
        if (n->src->name[0] || n->src->op_type[0]) {
            fputs("  ; ", f);
            print_string(f, n->src->name);
            fprintf(f, " %s", n->src->op_type);
        }
        fputc('\n', f);
    }
    for (int i = 0; i < g->outputs.n; i++) {
        fputs("output ", f);
        print_string(f, g->outputs.at[i].name);
        fprintf(f, " %%%d\n", number[g->outputs.at[i].value->id]);
    }
    for (int i = 0; i < g->updates.n; i++)
        fprintf(f, "update %%%d %%%d\n", number[g->updates.at[i].param->id],
                number[g->updates.at[i].value->id]);
    free(number);
}

char *graph_to_text(const Graph *g) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    ASSERT(f);
    graph_print(g, f);
    fclose(f);
    return text;
}

/* ---- parsing: one line at a time, a cursor and `expect` ---- */

typedef struct Parser {
    const char *at;
    int line;
    Graph *g;
    Diag *diag;
    VEC(Value *) values;
    VEC(const Tensor *) known; /* large tensors of the graph the text was printed from */
    bool failed;
} Parser;

static bool fail(Parser *p, const char *what) {
    if (!p->failed)
        diag_error(p->diag, EXIT_USAGE, "line %d: expected %s before \"%.20s\"", p->line, what, p->at);
    p->failed = true;
    return false;
}

static void blanks(Parser *p) {
    while (*p->at == ' ')
        p->at++;
}

static bool take(Parser *p, const char *token) {
    blanks(p);
    size_t n = strlen(token);
    if (strncmp(p->at, token, n) != 0)
        return false;
    p->at += n;
    return true;
}

static bool expect(Parser *p, const char *token) {
    return take(p, token) || fail(p, token);
}

static const char *word(Parser *p) {
    blanks(p);
    const char *start = p->at;
    while (isalnum((unsigned char)*p->at) || *p->at == '_')
        p->at++;
    char *s = arena_alloc(&p->g->arena, (size_t)(p->at - start) + 1);
    memcpy(s, start, (size_t)(p->at - start));
    if (!*s)
        fail(p, "a word");
    return s;
}

static const char *string(Parser *p) {
    blanks(p);
    if (*p->at != '"')
        return fail(p, "a string"), "";
    char *s = arena_alloc(&p->g->arena, strlen(p->at)), *to = s;
    for (p->at++; *p->at && *p->at != '"' && *p->at != '\n'; p->at++) {
        if (*p->at != '\\') {
            *to++ = *p->at;
        } else if (*++p->at == 'x') {
            char hex[3] = {p->at[1], p->at[1] ? p->at[2] : 0, 0};
            *to++ = (char)strtol(hex, NULL, 16);
            p->at += 2;
        } else {
            *to++ = *p->at;
        }
    }
    if (*p->at != '"')
        return fail(p, "\""), "";
    p->at++;
    return s;
}

static int64_t integer(Parser *p) {
    blanks(p);
    char *end;
    int64_t v = strtoll(p->at, &end, 10);
    if (end == p->at)
        fail(p, "an integer");
    p->at = end;
    return v;
}

static double number(Parser *p) {
    blanks(p);
    char *end;
    double v = strtod(p->at, &end);
    if (end == p->at)
        fail(p, "a number");
    p->at = end;
    return v;
}

static Value *value_ref(Parser *p) {
    if (!expect(p, "%"))
        return NULL;
    int64_t id = integer(p);
    if (id < 0 || id >= p->values.n)
        return fail(p, "a value defined above"), NULL;
    return p->values.at[id];
}

/* dims of a type or tensor: numbers, or symbol names where allowed */
static int dims(Parser *p, int64_t *out, bool symbols) {
    int rank = 0;
    expect(p, "[");
    while (!p->failed && !take(p, "]")) {
        if (rank)
            expect(p, ",");
        blanks(p);
        if (rank == MAX_RANK)
            return fail(p, "a rank of at most 8"), 0;
        if (isdigit((unsigned char)*p->at) || !symbols) {
            out[rank++] = integer(p);
        } else {
            const char *start = p->at;
            while (*p->at && *p->at != ',' && *p->at != ']' && *p->at != '\n')
                p->at++;
            char *name = arena_alloc(&p->g->arena, (size_t)(p->at - start) + 1);
            memcpy(name, start, (size_t)(p->at - start));
            out[rank++] = graph_symbol(p->g, name);
        }
    }
    return rank;
}

static Tensor *tensor(Parser *p) {
    DType t = dtype_parse(word(p));
    int64_t d[MAX_RANK];
    int rank = dims(p, d, false);
    if (t == DT_NONE)
        fail(p, "an element type");
    if (p->failed || dims_count(d, rank) < 0)
        return fail(p, "a tensor"), NULL;
    Tensor *out = tensor_new(&p->g->arena, t, rank, d);
    if (take(p, "#")) {
        char *end;
        uint64_t hash = strtoull(p->at, &end, 16);
        p->at = end;
        for (int i = 0; i < p->known.n; i++) {
            const Tensor *k = p->known.at[i];
            if (k->dtype == t && tensor_bytes(k) == tensor_bytes(out) &&
                hash_data(k->data, tensor_bytes(k), 1) == hash) {
                memcpy(out->data, k->data, tensor_bytes(k));
                break;
            }
        }
        return out;
    }
    expect(p, "(");
    for (int64_t i = 0, n = tensor_count(out); i < n && !p->failed; i++) {
        if (dtype_is_float(t))
            tensor_set_f(out, i, number(p));
        else
            tensor_set_i(out, i, integer(p));
    }
    expect(p, ")");
    return out;
}

static void attribute(Parser *p, Node *n) {
    const char *name = word(p);
    AttrKey key = 0;
    while (key < AT_COUNT && strcmp(attr_info[key].name, name) != 0)
        key++;
    if (key == AT_COUNT) {
        fail(p, "a known attribute");
        return;
    }
    expect(p, "=");
    switch (attr_info[key].kind) {
    case ATTR_INT:
        node_set_int(n, key, key == AT_TO ? (int64_t)dtype_parse(word(p)) : integer(p));
        break;
    case ATTR_FLOAT:
        node_set_float(n, key, number(p));
        break;
    case ATTR_STR:
        node_set_str(n, key, string(p));
        break;
    case ATTR_TENSOR: {
        Tensor *t = tensor(p);
        if (t)
            node_set_tensor(n, key, t);
        break;
    }
    case ATTR_INTS: {
        VEC(int64_t) list = {0};
        expect(p, "[");
        while (!p->failed && !take(p, "]")) {
            if (list.n)
                expect(p, ",");
            vec_push(&list, integer(p));
        }
        node_set_ints(n, key, list.at, list.n);
        vec_free(&list);
        break;
    }
    }
}

static void result_type(Parser *p, Value *v) {
    v->dtype = dtype_parse(word(p));
    if (v->dtype == DT_NONE)
        fail(p, "an element type");
    v->rank = dims(p, v->dims, true);
}

static void node_line(Parser *p) {
    int nout = 0;
    do {
        expect(p, "%");
        if (integer(p) != p->values.n + nout++)
            fail(p, "results numbered in order");
    } while (take(p, ","));
    expect(p, "=");
    Op op = p->failed ? OP_COUNT : op_parse(word(p));
    if (op == OP_COUNT) {
        fail(p, "an operation");
        return;
    }
    VEC(Value *) in = {0};
    for (;;) {
        blanks(p);
        bool absent = *p->at == '_' && p->at[1] == ' ';
        if (*p->at != '%' && !absent)
            break;
        p->at += absent;
        Value *v = absent ? NULL : value_ref(p);
        vec_push(&in, v);
    }
    const OpInfo *info = &op_info[op];
    if (in.n < info->min_in || (info->max_in >= 0 && in.n > info->max_in) ||
        (info->nout && info->nout != nout))
        fail(p, "as many operands and results as the operation has");
    if (p->failed) {
        vec_free(&in);
        return;
    }
    Builder b = builder_at_end(p->g, NULL);
    Node *n = build_node(&b, op, in.at, in.n, nout);
    vec_free(&in);
    if (take(p, "{"))
        do
            attribute(p, n);
        while (!p->failed && take(p, ","));
    if (n->nattr)
        expect(p, "}");
    expect(p, ":");
    for (int i = 0; i < nout && !p->failed; i++) {
        if (i)
            expect(p, ",");
        result_type(p, n->out[i]);
        vec_push(&p->values, n->out[i]);
    }
    if (take(p, ";")) {
        const char *name = string(p);
        blanks(p);
        const char *start = p->at;
        while (*p->at && *p->at != '\n')
            p->at++;
        char *type = arena_alloc(&p->g->arena, (size_t)(p->at - start) + 1);
        memcpy(type, start, (size_t)(p->at - start));
        n->src = graph_source(p->g, name, type);
    }
    if (op == OP_INPUT)
        vec_push(&p->g->inputs, n->out[0]);
    if (op == OP_PARAM)
        n->out[0]->name = node_str(n, AT_NAME, "");
}

Graph *graph_parse(const char *text, const Graph *tensors_of, Diag *d) {
    Parser p = {.at = text, .line = 1, .g = graph_new(""), .diag = d};
    if (tensors_of)
        FOR_NODES(n, tensors_of) {
            const Attr *a = node_attr(n, AT_VALUE);
            if (a && tensor_count(a->t) > INLINE_ELEMENTS)
                vec_push(&p.known, a->t);
        }
    while (*p.at && !p.failed) {
        if (take(&p, "graph ")) {
            p.g->name = string(&p);
        } else if (take(&p, "output ")) {
            const char *name = string(&p);
            Value *v = value_ref(&p);
            if (v)
                graph_add_output(p.g, name, v);
        } else if (take(&p, "update ")) {
            Value *param = value_ref(&p), *v = value_ref(&p);
            if (param && v)
                graph_add_update(p.g, param, v);
        } else if (*p.at == '%') {
            node_line(&p);
        }
        blanks(&p);
        if (*p.at && *p.at != '\n')
            fail(&p, "the end of the line");
        if (*p.at == '\n')
            p.at++, p.line++;
    }
    vec_free(&p.values);
    vec_free(&p.known);
    if (!p.failed)
        return p.g;
    graph_free(p.g);
    return NULL;
}
