/* loop_print.c: LoopPrograms as text, their hash and equality.
 *
 *     task program "softmax" (b0 f32, b1 f32) {
 *       for vector %1 = 0 .. 128 {
 *         %2 = load b0[%1] : f32
 */
#include "codegen/loop_program.h"

#include <stdlib.h>
#include <string.h>

static const char *const arg_names[LARG_COUNT] = {"group", "m0",      "m1",  "n0",
                                                  "n1",    "tile_ld", "task"};

typedef struct Printer {
    const LoopProgram *program;
    const int *number; /* by LVal: values are numbered in the order they are printed */
    FILE *to;
} Printer;

static void print_value(const Printer *p, LVal v) {
    const LInst *n = lp_inst(p->program, v);
    if (n->kind == LI_ARG)
        fprintf(p->to, "%s", arg_names[n->ref]);
    else if (n->kind != LI_CONST)
        fprintf(p->to, "%%%d", p->number[v]);
    else if (n->type == LT_BOOL)
        fprintf(p->to, "%s", n->i ? "true" : "false");
    else if (n->type == LT_I64)
        fprintf(p->to, "%lld", (long long)n->i);
    else
        fprintf(p->to, n->type == LT_F32 ? "%.9gf" : "%.17g", n->f);
}

static void print_place(const Printer *p, int buffer, LVal index) {
    if (buffer == LB_TILE)
        fprintf(p->to, "tile[");
    else if (LB_IS_LOCAL(buffer))
        fprintf(p->to, "l%d[", LB_LOCAL_INDEX(buffer));
    else
        fprintf(p->to, "b%d[", buffer);
    print_value(p, index);
    fprintf(p->to, "]");
}

static void print_op(const Printer *p, const LInst *n, LVal v) {
    fprintf(p->to, "%%%d = %s", p->number[v], loop_op_names[n->op]);
    const LVal in[] = {n->a, n->b, n->c};
    for (int i = 0; i < 3 && in[i]; i++) {
        fprintf(p->to, i ? ", " : " ");
        print_value(p, in[i]);
    }
    fprintf(p->to, " : %s", loop_type_name(n->type));
}

static void print_inst(const Printer *p, LVal v) {
    const LInst *n = lp_inst(p->program, v);
    switch (n->kind) {
    case LI_CONST:
    case LI_ARG:
        return;
    case LI_OP:
        print_op(p, n, v);
        break;
    case LI_LOAD:
        fprintf(p->to, "%%%d = load ", p->number[v]);
        print_place(p, n->ref, n->a);
        fprintf(p->to, " : %s", loop_type_name(n->type));
        break;
    case LI_STORE:
        fprintf(p->to, "store ");
        print_place(p, n->ref, n->a);
        fprintf(p->to, " = ");
        print_value(p, n->b);
        break;
    case LI_LOOP:
        fprintf(p->to, "for%s %%%d = ", n->op == LOOP_VECTOR ? " vector" : "", p->number[v]);
        print_value(p, n->a);
        fprintf(p->to, " .. ");
        print_value(p, n->b);
        fprintf(p->to, " {");
        break;
    case LI_IF:
        fprintf(p->to, "if ");
        print_value(p, n->a);
        fprintf(p->to, " {");
        break;
    case LI_ELSE:
        fprintf(p->to, "} else {");
        break;
    case LI_END:
        fprintf(p->to, "}");
        break;
    case LI_VAR:
    case LI_SET:
        fprintf(p->to, "%sv%d = ", n->kind == LI_VAR ? "var " : "", n->ref);
        print_value(p, n->a);
        break;
    case LI_GET:
        fprintf(p->to, "%%%d = v%d", p->number[v], n->ref);
        break;
    case LI_FAULT:
        fprintf(p->to, "fault \"%s\" at ", n->text);
        print_value(p, n->a);
        fprintf(p->to, " value ");
        print_value(p, n->b);
        break;
    }
    fprintf(p->to, "\n");
}

void loop_program_print(const LoopProgram *p, FILE *to) {
    fprintf(to, "%s program \"%s\" (", p->kind == PROGRAM_TASK ? "task" : "epilogue", p->name);
    for (int i = 0; i < p->buffers.n; i++)
        fprintf(to, "%sb%d %s", i ? ", " : "", i, dtype_name(p->buffers.at[i]));
    fprintf(to, ") {\n");
    for (int i = 0; i < p->locals.n; i++)
        fprintf(to, "  local l%d %s[%lld]\n", i, loop_type_name(p->locals.at[i].type),
                (long long)p->locals.at[i].count);
    int *number = xcalloc((size_t)p->insts.n + 1, sizeof *number), depth = 1, next = 1;
    for (int i = 0; i < p->insts.n; i++) {
        const LInst *n = &p->insts.at[i];
        if (n->type != LT_NONE && n->kind != LI_CONST && n->kind != LI_ARG)
            number[i + 1] = next++;
    }
    const Printer print = {p, number, to};
    for (int i = 0; i < p->insts.n; i++) {
        LInstKind k = p->insts.at[i].kind;
        depth -= k == LI_ELSE || k == LI_END;
        if (k != LI_CONST && k != LI_ARG)
            fprintf(to, "%*s", 2 * depth, "");
        print_inst(&print, i + 1);
        depth += k == LI_ELSE || k == LI_IF || k == LI_LOOP;
    }
    fprintf(to, "}\n");
    free(number);
}

uint64_t loop_program_hash(const LoopProgram *p) {
    uint64_t h = hash_bytes(&p->kind, sizeof p->kind, 0);
    for (int i = 0; i < p->buffers.n; i++)
        h = hash_bytes(&p->buffers.at[i], sizeof(DType), h);
    for (int i = 0; i < p->locals.n; i++) {
        int64_t key[2] = {p->locals.at[i].type, p->locals.at[i].count};
        h = hash_bytes(key, sizeof key, h);
    }
    for (int i = 0; i < p->insts.n; i++) {
        const LInst *n = &p->insts.at[i];
        int64_t key[9] = {n->kind, n->type, n->op, n->a, n->b, n->c, n->ref, n->i, 0};
        memcpy(&key[8], &n->f, sizeof n->f);
        h = hash_bytes(key, sizeof key, h);
        if (n->text)
            h = hash_bytes(n->text, strlen(n->text), h);
    }
    return h;
}

static bool inst_equal(const LInst *x, const LInst *y) {
    return x->kind == y->kind && x->type == y->type && x->op == y->op && x->a == y->a &&
           x->b == y->b && x->c == y->c && x->ref == y->ref && x->i == y->i &&
           memcmp(&x->f, &y->f, sizeof x->f) == 0 && !x->text == !y->text &&
           (!x->text || strcmp(x->text, y->text) == 0);
}

bool loop_program_equal(const LoopProgram *a, const LoopProgram *b) {
    if (a->kind != b->kind || a->buffers.n != b->buffers.n || a->locals.n != b->locals.n ||
        a->insts.n != b->insts.n)
        return false;
    for (int i = 0; i < a->buffers.n; i++)
        if (a->buffers.at[i] != b->buffers.at[i])
            return false;
    for (int i = 0; i < a->locals.n; i++)
        if (a->locals.at[i].type != b->locals.at[i].type ||
            a->locals.at[i].count != b->locals.at[i].count)
            return false;
    for (int i = 0; i < a->insts.n; i++)
        if (!inst_equal(&a->insts.at[i], &b->insts.at[i]))
            return false;
    return true;
}
