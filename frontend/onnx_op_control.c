/* onnx_op_control.c: control flow and sequences, as far as they are decided while importing.
 *
 * If: a constant condition leaves one branch. Otherwise both branches are read in line (they have
 * no effects) and each output is selected by the condition, which needs equal types and shapes.
 * Sequences are lists of values here and never reach the graph: their indices must be constant. */
#include <string.h>

#include "frontend/onnx_ops.h"

static const Onnx__GraphProto *branch(OpCall *c, const char *name) {
    const Onnx__AttributeProto *a = call_attr(c, name);
    if (!a || !a->g)
        call_fail(c, "\"%s\" is missing", name);
    return a->g;
}

void read_if(OpCall *c) {
    const Onnx__GraphProto *then_g = branch(c, "then_branch"), *else_g = branch(c, "else_branch");
    Value *cond = c->in[0];
    if (cond->dtype != DT_BOOL || (value_known(cond) && value_count(cond) != 1))
        call_fail(c, "the condition must be one bool, found %s", call_value_text(c, cond));
    const Tensor *known = em_known(c, cond);
    Binding *a = ARENA_ARRAY(&c->im->scratch, Binding, c->nout + 1),
            *b = ARENA_ARRAY(&c->im->scratch, Binding, c->nout + 1);
    if (!known || tensor_get_i(known, 0))
        import_subgraph(c, then_g, "", NULL, 0, a, c->nout);
    if (!known || !tensor_get_i(known, 0))
        import_subgraph(c, else_g, "", NULL, 0, b, c->nout);
    if (!known && cond->rank != 0)
        cond = em_reshape(c, cond, 0, NULL);
    for (int i = 0; i < c->nout; i++) {
        if (known) {
            Binding *taken = tensor_get_i(known, 0) ? &a[i] : &b[i];
            c->out[i] = taken->value;
            c->out_seq[i] = taken->seq;
            continue;
        }
        Value *x = a[i].value, *y = b[i].value;
        if (!x || !y)
            call_fail(c, "output %d is a sequence; an If on data gives tensors only", i);
        bool same = x->dtype == y->dtype && x->rank == y->rank;
        for (int k = 0; same && k < x->rank; k++)
            same = x->dims[k] < 0 || y->dims[k] < 0 || x->dims[k] == y->dims[k];
        if (!same)
            call_fail(c,
                      "output %d is %s in one branch and %s in the other; an If on data needs "
                      "equal types and shapes",
                      i, call_value_text(c, x), call_value_text(c, y));
        c->out[i] = em_where(c, cond, x, y);
    }
}

static SeqValue *sequence_new(OpCall *c, int n) {
    SeqValue *s = ARENA_NEW(&c->im->scratch, SeqValue);
    s->n = n;
    s->at = ARENA_ARRAY(&c->im->scratch, Value *, n + 1);
    return s;
}

static SeqValue *sequence_operand(OpCall *c, int i) {
    if (!c->seq[i])
        call_fail(c, "operand %d is no sequence", i);
    return c->seq[i];
}

/* A constant position of a sequence of n elements (n itself is allowed for inserting). */
static int sequence_position(OpCall *c, int i, int n, bool inserting) {
    int64_t at;
    if (em_known_ints(c, c->in[i], &at, 1) != 1)
        call_fail(c, "the position in a sequence depends on data; it must be constant");
    int64_t k = at < 0 ? at + n : at;
    if (k < 0 || k >= n + inserting)
        call_fail(c, "position %lld is outside a sequence of %d elements", (long long)at, n);
    return (int)k;
}

void read_split_to_sequence(OpCall *c) {
    Value *x = c->in[0];
    int axis = em_axis(c, call_int(c, "axis", 0), em_rank(c, x));
    int64_t sizes[4096];
    bool by_one = c->nin < 2 || !c->in[1], keep = !by_one || call_int(c, "keepdims", 1);
    int n;
    if (by_one || em_rank(c, c->in[1]) == 0) {
        int64_t each = 1, size = x->dims[axis];
        if (!by_one && em_known_ints(c, c->in[1], &each, 1) != 1)
            call_fail(c, "the size of the parts depends on data; it must be constant");
        if (size < 0 || each < 1 || (size + each - 1) / each > COUNT_OF(sizes))
            call_fail(
                c,
                "axis %d cannot be taken apart: its size must be known and give at most %d parts",
                axis, COUNT_OF(sizes));
        n = (int)((size + each - 1) / each);
        for (int i = 0; i < n; i++)
            sizes[i] = size - i * each < each ? size - i * each : each;
    } else if ((n = em_known_ints(c, c->in[1], sizes, COUNT_OF(sizes))) < 0) {
        call_fail(c, "the sizes of the parts depend on data; they must be constant");
    }
    SeqValue *s = sequence_new(c, n);
    int64_t at = 0;
    for (int i = 0; i < n; i++) {
        if (sizes[i] < 0 || (x->dims[axis] >= 0 && at + sizes[i] > x->dims[axis]))
            call_fail(c, "part %d of size %lld does not fit axis %d", i, (long long)sizes[i], axis);
        Value *part = em_slice(c, x, axis, at, at + sizes[i], 1);
        s->at[i] = keep ? part : em_drop_axis(c, part, axis);
        at += sizes[i];
    }
    c->out_seq[0] = s;
}

void read_sequence_construct(OpCall *c) {
    SeqValue *s = sequence_new(c, c->nin);
    for (int i = 0; i < c->nin; i++) {
        if (!c->in[i])
            call_fail(c, "operand %d is no tensor", i);
        s->at[i] = c->in[i];
    }
    c->out_seq[0] = s;
}

void read_sequence_at(OpCall *c) {
    SeqValue *s = sequence_operand(c, 0);
    c->out[0] = s->at[sequence_position(c, 1, s->n, false)];
}

void read_sequence_length(OpCall *c) {
    c->out[0] = em_i(c, DT_I64, sequence_operand(c, 0)->n);
}

void read_sequence_insert(OpCall *c) {
    SeqValue *s = sequence_operand(c, 0), *r = sequence_new(c, s->n + 1);
    int at = c->nin > 2 && c->in[2] ? sequence_position(c, 2, s->n, true) : s->n;
    for (int i = 0; i < r->n; i++)
        r->at[i] = i == at ? c->in[1] : s->at[i - (i > at)];
    c->out_seq[0] = r;
}

void read_sequence_erase(OpCall *c) {
    SeqValue *s = sequence_operand(c, 0);
    if (!s->n)
        call_fail(c, "the sequence is empty");
    SeqValue *r = sequence_new(c, s->n - 1);
    int at = c->nin > 1 && c->in[1] ? sequence_position(c, 1, s->n, false) : s->n - 1;
    for (int i = 0; i < r->n; i++)
        r->at[i] = s->at[i + (i >= at)];
    c->out_seq[0] = r;
}

void read_concat_from_sequence(OpCall *c) {
    SeqValue *s = sequence_operand(c, 0);
    bool stack = call_int(c, "new_axis", 0) != 0;
    if (!s->n)
        call_fail(c, "the sequence is empty");
    int axis = em_axis(c, call_int(c, "axis", 0), em_rank(c, s->at[0]) + stack);
    Value **parts = ARENA_ARRAY(&c->im->scratch, Value *, s->n);
    for (int i = 0; i < s->n; i++)
        parts[i] = stack ? em_insert_axis(c, s->at[i], axis) : s->at[i];
    c->out[0] = em_concat(c, parts, s->n, axis);
}

/* Optionals are decided here too: full, they are their element; empty, they are nothing. */
void read_optional(OpCall *c) {
    if (!c->nin)
        call_fail(c, "an empty optional has no use here; leave the value away");
    c->out[0] = c->in[0];
    c->out_seq[0] = c->seq[0];
}

void read_optional_get(OpCall *c) {
    c->out[0] = c->in[0];
    c->out_seq[0] = c->seq[0];
}

void read_optional_has(OpCall *c) {
    c->out[0] = em_i(c, DT_BOOL, c->nin && (c->in[0] || c->seq[0]));
}
