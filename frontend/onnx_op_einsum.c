/* onnx_op_einsum.c: Einsum of any number of operands as transposes, views, matrix products and
 * sums.
 *
 * Operands are contracted from left to right. Of two terms, labels in both that are needed later
 * are batch axes, labels in both that are not are contracted; without a label to contract the
 * product is elementwise. An ellipsis stands for labels of its own, counted from the right. */
#include <ctype.h>
#include <string.h>

#include "frontend/onnx_ops.h"

enum { ELLIPSIS = 256, MAX_TERMS = 32 };

typedef struct Term {
    Value *v;
    int n;
    int label[MAX_RANK];
} Term;

static int term_find(const Term *t, int label) {
    for (int i = 0; i < t->n; i++)
        if (t->label[i] == label)
            return i;
    return -1;
}

/* Labels of one term of the equation, [s, end); an ellipsis takes what `rank` leaves (-1: `dots`
 * labels). */
static void parse_term(OpCall *c, const char *s, const char *end, int rank, int dots, Term *t) {
    int letters = 0;
    for (const char *p = s; p < end; p++)
        letters += isalpha((unsigned char)*p) != 0;
    bool seen = false;
    t->n = 0;
    for (const char *p = s; p < end; p++) {
        if (*p == ' ')
            continue;
        int count = 1, first = (unsigned char)*p;
        if (end - p >= 3 && !strncmp(p, "...", 3) && !seen) {
            count = rank < 0 ? dots : rank - letters;
            first = ELLIPSIS + count - 1;
            p += 2;
            seen = true;
        } else if (!isalpha((unsigned char)*p)) {
            call_fail(c, "the equation holds '%c'; letters, '...', ',' and '->' are expected",
                      isprint((unsigned char)*p) ? *p : '?');
        }
        for (int k = 0; k < count; k++) {
            if (t->n == MAX_RANK)
                call_fail(c, "a term of the equation has more than %d axes", MAX_RANK);
            t->label[t->n++] = first >= ELLIPSIS ? first - k : first;
        }
    }
    if (rank >= 0 && t->n != rank)
        call_fail(c, "a term of the equation names %d axes; its operand has rank %d", t->n, rank);
}

/* Sums axis `i` away. */
static void term_sum(OpCall *c, Term *t, int i) {
    int64_t axis = i;
    t->v = em_reduce(c, OP_REDUCE_SUM, t->v, &axis, 1, false);
    memmove(&t->label[i], &t->label[i + 1], sizeof(int) * (size_t)(t->n - i - 1));
    t->n--;
}

/* "ii": the diagonal, as a mask and a sum. */
static void term_diagonal(OpCall *c, Term *t) {
    for (int i = 0; i < t->n; i++) {
        for (int k = t->n - 1; k > i; k--) {
            if (t->label[i] != t->label[k])
                continue;
            Value *at[2] = {em_iota(c, t->v, i), em_iota(c, t->v, k)};
            for (int w = 0; w < 2; w++) {
                ShapeOf s = {0};
                for (int a = 0; a < t->n; a++) {
                    if (a == (w ? k : i))
                        shape_add_axis(c, &s, at[w], 0);
                    else
                        shape_add(c, &s, 1);
                }
                at[w] = em_view(c, at[w], &s);
            }
            t->v = em_where(c, em_binary(c, OP_EQ, at[0], at[1]), t->v, em_like(c, t->v, 0));
            term_sum(c, t, k);
        }
    }
}

/* Axes of t in the order of `labels` (all of them in t). */
static void term_order(OpCall *c, Term *t, const int *labels, int n) {
    int64_t perm[MAX_RANK];
    bool same = true;
    ASSERT(n == t->n);
    for (int i = 0; i < n; i++) {
        perm[i] = term_find(t, labels[i]);
        same &= perm[i] == i;
    }
    if (!same)
        t->v = em_transpose(c, t->v, perm);
    memcpy(t->label, labels, sizeof(int) * (size_t)n);
}

typedef struct Labels {
    int n, at[2 * MAX_RANK];
} Labels;

static void labels_push(Labels *l, int label) {
    l->at[l->n++] = label;
}

/* t as a view over `all` labels, 1 where it lacks one. */
static Value *term_spread(OpCall *c, Term *t, const Labels *all) {
    int order[MAX_RANK], n = 0;
    for (int i = 0; i < all->n; i++)
        if (term_find(t, all->at[i]) >= 0)
            order[n++] = all->at[i];
    term_order(c, t, order, n);
    ShapeOf s = {0};
    for (int i = 0, k = 0; i < all->n; i++) {
        if (k < t->n && t->label[k] == all->at[i])
            shape_add_axis(c, &s, t->v, k++);
        else
            shape_add(c, &s, 1);
    }
    return em_view(c, t->v, &s);
}

static void multiply(OpCall *c, Term *a, Term *b, const Labels *all, Term *out) {
    if (all->n > MAX_RANK)
        call_fail(c, "an intermediate of rank %d is needed; at most %d is supported", all->n,
                  MAX_RANK);
    Term r = {em_binary(c, OP_MUL, term_spread(c, a, all), term_spread(c, b, all)), all->n, {0}};
    memcpy(r.label, all->at, sizeof(int) * (size_t)all->n);
    *out = r;
}

/* Columns of b that stand before what is summed, where every batch has one row only
 * ("tkdf,td->tkf": a stack of matrices for each t): as batch axes they leave b as it lies. The rest
 * stays in `columns`. */
static Labels leading_columns(const Term *b, const Labels *batch, const Labels *rows,
                              const Labels *inner, Labels *columns) {
    Labels lead = {0}, tail = {0};
    int first = b->n;
    for (int i = 0; i < inner->n; i++)
        if (term_find(b, inner->at[i]) < first)
            first = term_find(b, inner->at[i]);
    for (int i = 0; i < columns->n; i++)
        labels_push(term_find(b, columns->at[i]) < first ? &lead : &tail, columns->at[i]);
    if (!batch->n || rows->n || !tail.n)
        return (Labels){0};
    *columns = tail;
    return lead;
}

/* batch + rows + inner of a against batch + inner + columns of b. */
static void contract(OpCall *c, Term *a, Term *b, const Labels *batch, const Labels *rows,
                     const Labels *inner, Labels *columns, Term *out) {
    Labels la = *batch, lb = *batch, lead = leading_columns(b, batch, rows, inner, columns);
    for (int i = 0; i < lead.n; i++)
        labels_push(&lb, lead.at[i]);
    for (int i = 0; i < rows->n; i++)
        labels_push(&la, rows->at[i]);
    for (int i = 0; i < inner->n; i++)
        labels_push(&la, inner->at[i]), labels_push(&lb, inner->at[i]);
    for (int i = 0; i < columns->n; i++)
        labels_push(&lb, columns->at[i]);
    term_order(c, a, la.at, la.n);
    term_order(c, b, lb.at, lb.n);
    ShapeOf sa = {0}, sb = {0}, so = {0};
    int nb = batch->n, nl = nb + lead.n;
    shape_add_axes(c, &sa, a->v, 0, nb);
    for (int i = 0; i < lead.n; i++)
        shape_add(c, &sa, 1);
    shape_add_product(c, &sa, a->v, nb, nb + rows->n);
    shape_add_product(c, &sa, a->v, nb + rows->n, a->n);
    shape_add_axes(c, &sb, b->v, 0, nl);
    shape_add_product(c, &sb, b->v, nl, nl + inner->n);
    shape_add_product(c, &sb, b->v, nl + inner->n, b->n);
    Value *y = em_matmul(c, em_view(c, a->v, &sa), em_view(c, b->v, &sb), false, false);
    shape_add_axes(c, &so, y, 0, nl);
    shape_add_axes(c, &so, a->v, nb, nb + rows->n);
    shape_add_axes(c, &so, b->v, nl + inner->n, b->n);
    Term r = {em_view(c, y, &so), 0, {0}};
    for (int i = 0; i < nl; i++)
        r.label[r.n++] = lb.at[i];
    for (int i = 0; i < rows->n; i++)
        r.label[r.n++] = rows->at[i];
    for (int i = 0; i < columns->n; i++)
        r.label[r.n++] = columns->at[i];
    *out = r;
}

/* Is `label` still needed by the output or by a later operand? */
static bool needed(const Term *out, const Term *later, int nlater, int label) {
    bool found = term_find(out, label) >= 0;
    for (int i = 0; i < nlater; i++)
        found |= term_find(&later[i], label) >= 0;
    return found;
}

static void combine_terms(OpCall *c, Term *a, Term *b, const Term *out, const Term *later,
                          int nlater, Term *r) {
    Labels batch = {0}, rows = {0}, inner = {0}, columns = {0}, all = {0};
    for (int side = 0; side < 2; side++) { /* labels of one operand alone that nobody needs */
        Term *t = side ? b : a, *other = side ? a : b;
        for (int i = t->n; i-- > 0;)
            if (term_find(other, t->label[i]) < 0 && !needed(out, later, nlater, t->label[i]))
                term_sum(c, t, i);
    }
    for (int i = 0; i < a->n; i++) {
        bool both = term_find(b, a->label[i]) >= 0,
             later_on = needed(out, later, nlater, a->label[i]);
        labels_push(both ? (later_on ? &batch : &inner) : &rows, a->label[i]);
    }
    for (int i = 0; i < b->n; i++)
        if (term_find(a, b->label[i]) < 0)
            labels_push(&columns, b->label[i]);
    const Labels *parts[] = {&batch, &rows, &columns, &inner};
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < parts[i]->n; k++)
            labels_push(&all, parts[i]->at[k]);
    if (inner.n && dtype_is_float(a->v->dtype) && rows.n + columns.n > 0) {
        if (columns.n) /* what has rows of its own goes first */
            contract(c, a, b, &batch, &rows, &inner, &columns, r);
        else
            contract(c, b, a, &batch, &columns, &inner, &rows, r);
        return;
    }
    multiply(c, a, b, &all, r);
    for (int i = 0; i < inner.n; i++)
        term_sum(c, r, term_find(r, inner.at[i]));
}

/* Without "->": the letters that occur once, in alphabetical order, after the ellipsis. */
static void implicit_output(OpCall *c, const Term *terms, int n, int dots, Term *out) {
    out->n = 0;
    for (int k = 0; k < dots; k++)
        out->label[out->n++] = ELLIPSIS + dots - 1 - k;
    for (int letter = 'A'; letter <= 'z'; letter++) {
        int count = 0;
        for (int i = 0; i < n; i++)
            for (int k = 0; k < terms[i].n; k++)
                count += terms[i].label[k] == letter;
        if (count == 1 && out->n == MAX_RANK)
            call_fail(c, "the result has more than %d axes", MAX_RANK);
        if (count == 1)
            out->label[out->n++] = letter;
    }
}

static int parse_equation(OpCall *c, Term *terms, Term *out) {
    const char *eq = call_string(c, "equation", ""), *arrow = strstr(eq, "->");
    const char *end = arrow ? arrow : eq + strlen(eq), *s = eq;
    int n = 0, dots = 0;
    for (;; n++) {
        const char *comma = memchr(s, ',', (size_t)(end - s)), *stop = comma ? comma : end;
        if (n >= c->nin || n >= MAX_TERMS)
            call_fail(c, "the equation \"%s\" has more terms than the node has operands (%d)",
                      diag_safe(c->im->d, eq), c->nin);
        terms[n].v = c->in[n];
        parse_term(c, s, stop, em_rank(c, c->in[n]), 0, &terms[n]);
        for (int k = 0; k < terms[n].n; k++)
            if (terms[n].label[k] >= ELLIPSIS && terms[n].label[k] - ELLIPSIS + 1 > dots)
                dots = terms[n].label[k] - ELLIPSIS + 1;
        if (!comma)
            break;
        s = comma + 1;
    }
    if (++n != c->nin)
        call_fail(c, "the equation \"%s\" has %d terms for %d operands", diag_safe(c->im->d, eq), n,
                  c->nin);
    if (arrow)
        parse_term(c, arrow + 2, eq + strlen(eq), -1, dots, out);
    else
        implicit_output(c, terms, n, dots, out);
    return n;
}

void read_einsum(OpCall *c) {
    Term terms[MAX_TERMS], out = {0};
    int n = parse_equation(c, terms, &out);
    for (int i = 0; i < n; i++)
        term_diagonal(c, &terms[i]);
    for (int i = 0; i < out.n; i++) {
        bool found = false;
        for (int k = 0; k < n; k++)
            found |= term_find(&terms[k], out.label[i]) >= 0;
        if (!found || term_find(&out, out.label[i]) != i)
            call_fail(c, "axis %d of the result is named by no operand, or twice", i);
    }
    Term r = terms[0];
    for (int i = 1; i < n; i++) {
        Term a = r;
        combine_terms(c, &a, &terms[i], &out, terms + i + 1, n - i - 1, &r);
    }
    for (int i = r.n; i-- > 0;)
        if (term_find(&out, r.label[i]) < 0)
            term_sum(c, &r, i);
    term_order(c, &r, out.label, out.n);
    c->out[0] = r.v;
}
