/* onnx_op_loop.c: Loop and Scan taken apart turn by turn, when the number of turns is known while
 * importing. Each turn is the body read once more with its operands bound; what every turn yields
 * is stacked at the end. */
#include <string.h>

#include "frontend/onnx_ops.h"

enum { MAX_TURNS = 10000 };

/* What the turns yielded, turn by turn, `each` values a turn. Lives in the scratch arena: a fault
 * may leave at any time. */
typedef struct Yields {
    Value **at;
    int n, cap, each;
} Yields;

static void yields_push(OpCall *c, Yields *y, const Binding *b) {
    if (!b->value)
        call_fail(c, "an output of the body that is stacked is no tensor");
    if (y->n == y->cap) {
        Value **more = ARENA_ARRAY(&c->im->scratch, Value *, 2 * y->cap + 16);
        if (y->n)
            memcpy(more, y->at, sizeof *more * (size_t)y->n);
        y->at = more;
        y->cap = 2 * y->cap + 16;
    }
    y->at[y->n++] = b->value;
}

/* No turn takes place: the body is read once for the shapes of what it would have yielded; its nodes
 * have no use and go. */
static Value *yield_none(OpCall *c, const Binding *would, int64_t axis) {
    const Value *v = would->value;
    if (!v || !value_known(v))
        call_fail(c, "a loop of no turns has outputs whose shape nothing tells");
    ShapeOf s = {0};
    int at = em_axis(c, axis, v->rank + 1);
    for (int i = 0; i <= v->rank; i++)
        shape_add(c, &s, i == at ? 0 : v->dims[i - (i > at)]);
    return em_spread(c, em_like(c, v, 0), &s);
}

/* Yield i of all turns on a new axis of the result. */
static Value *yields_stack(OpCall *c, const Yields *y, int i, int64_t axis, bool reversed) {
    int turns = y->each ? y->n / y->each : 0;
    Value **parts = ARENA_ARRAY(&c->im->scratch, Value *, turns);
    int at = em_axis(c, axis, em_rank(c, y->at[i]) + 1);
    for (int t = 0; t < turns; t++)
        parts[t] = em_insert_axis(c, y->at[(reversed ? turns - 1 - t : t) * y->each + i], at);
    return em_concat(c, parts, turns, at);
}

static const Onnx__GraphProto *loop_body(OpCall *c) {
    const Onnx__AttributeProto *a = call_attr(c, "body");
    if (!a || !a->g)
        call_fail(c, "\"body\" is missing");
    return a->g;
}

static const char *turn_name(OpCall *c, int64_t turn) {
    return arena_printf(&c->im->scratch, ".%lld", (long long)turn);
}

static void check_turns(OpCall *c, int64_t turns) {
    if (turns > MAX_TURNS)
        call_fail(c, "%lld turns; loops are taken apart turn by turn, so at most %d are accepted",
                  (long long)turns, MAX_TURNS);
}

/* ---- Loop ---- */

/* The condition as a constant; absent: true; -1 if data decide. */
static int known_condition(OpCall *c, Value *v) {
    const Tensor *t = v ? em_known(c, v) : NULL;
    if (v && (v->dtype != DT_BOOL || (t && tensor_count(t) != 1)))
        call_fail(c, "the condition must be one bool, found %s", call_value_text(c, v));
    return !v ? 1 : t ? tensor_get_i(t, 0) != 0 : -1;
}

/* M, cond, carried… -> carried…, stacked…; the body: turn, cond, carried… -> cond, carried…,
 * yields… */
void read_loop(OpCall *c) {
    const Onnx__GraphProto *body = loop_body(c);
    int carried = c->nin > 2 ? c->nin - 2 : 0;
    Yields y = {.each = c->nout - carried};
    int64_t most = INT64_MAX;
    if (c->nin > 0 && c->in[0] && em_known_ints(c, c->in[0], &most, 1) != 1)
        call_fail(
            c, "the number of turns depends on data, which is not supported; it must be constant");
    int go = known_condition(c, c->nin > 1 ? c->in[1] : NULL);
    if (y.each < 0)
        call_fail(c, "%d outputs for %d carried values", c->nout, carried);
    Binding *in = ARENA_ARRAY(&c->im->scratch, Binding, 2 + carried);
    Binding *out = ARENA_ARRAY(&c->im->scratch, Binding, 1 + c->nout);
    for (int i = 0; i < carried; i++)
        in[2 + i] = (Binding){.value = c->in[2 + i], .seq = c->seq[2 + i]};
    for (int64_t turn = 0; turn < most && go; turn++) {
        check_turns(c, turn);
        if (go < 0)
            call_fail(c, "whether turn %lld takes place depends on data, which is not supported",
                      (long long)turn);
        in[0] = (Binding){.value = em_i(c, DT_I64, turn)};
        in[1] = (Binding){.value = em_i(c, DT_BOOL, 1)};
        import_subgraph(c, body, turn_name(c, turn), in, 2 + carried, out, 1 + c->nout);
        go = known_condition(c, out[0].value);
        for (int i = 0; i < carried; i++)
            in[2 + i] = out[1 + i];
        for (int i = 0; i < y.each; i++)
            yields_push(c, &y, &out[1 + carried + i]);
    }
    if (!y.n && y.each) { /* out[0] is not looked at */
        in[0] = (Binding){.value = em_i(c, DT_I64, 0)};
        in[1] = (Binding){.value = em_i(c, DT_BOOL, 1)};
        import_subgraph(c, body, turn_name(c, 0), in, 2 + carried, out, 1 + c->nout);
    }
    for (int i = 0; i < c->nout; i++) {
        if (i >= carried) {
            c->out[i] = y.n ? yields_stack(c, &y, i - carried, 0, false)
                            : yield_none(c, &out[1 + i], 0);
            continue;
        }
        c->out[i] = in[2 + i].value;
        c->out_seq[i] = in[2 + i].seq;
    }
}

/* ---- Scan ---- */

typedef struct ScanForm {
    int states, scans, yields;
    const int64_t *in_axes, *in_back, *out_axes, *out_back; /* NULL: all 0 */
} ScanForm;

static void scan_list(OpCall *c, const char *name, int n, const int64_t **at) {
    int have = call_ints(c, name, at);
    if (have >= 0 && have != n)
        call_fail(c, "%s has %d entries; expected %d", name, have, n);
}

static ScanForm scan_form(OpCall *c, int operands) {
    ScanForm f = {.scans = (int)call_int(c, "num_scan_inputs", 0)};
    f.states = operands - f.scans;
    f.yields = c->nout - f.states;
    if (f.scans < 1 || f.states < 0 || f.yields < 0)
        call_fail(c, "%d scanned inputs do not fit %d inputs and %d outputs", f.scans, operands,
                  c->nout);
    scan_list(c, "scan_input_axes", f.scans, &f.in_axes);
    scan_list(c, c->opset < 9 ? "directions" : "scan_input_directions", f.scans, &f.in_back);
    scan_list(c, "scan_output_axes", f.yields, &f.out_axes);
    scan_list(c, "scan_output_directions", f.yields, &f.out_back);
    return f;
}

/* One element of x's axis, the axis gone. */
static Value *scan_slice(OpCall *c, Value *x, int axis, int64_t at) {
    return em_drop_axis(c, em_slice(c, x, axis, at, at + 1, 1), axis);
}

/* What an element of x's axis would be if it had one: zeros. */
static Value *scan_none(OpCall *c, Value *x, int axis) {
    ShapeOf s = {0};
    shape_add_axes(c, &s, x, 0, axis);
    shape_add_axes(c, &s, x, axis + 1, x->rank);
    return em_spread(c, em_like(c, x, 0), &s);
}

/* states…, scanned… -> states…, stacked… */
static void scan_run(OpCall *c, const ScanForm *f, Value **operands, const char *name,
                     Value **results) {
    const Onnx__GraphProto *body = loop_body(c);
    int n = f->states + f->scans;
    Binding *in = ARENA_ARRAY(&c->im->scratch, Binding, n),
            *out = ARENA_ARRAY(&c->im->scratch, Binding, c->nout + 1);
    Yields y = {.each = f->yields};
    int64_t turns = -1;
    int axes[64];
    if (f->scans > COUNT_OF(axes))
        call_fail(c, "more than %d scanned inputs", COUNT_OF(axes));
    for (int i = 0; i < f->scans; i++) {
        Value *x = operands[f->states + i];
        axes[i] = em_axis(c, f->in_axes ? f->in_axes[i] : 0, em_rank(c, x));
        int64_t size = x->dims[axes[i]];
        if (size < 0 || (turns >= 0 && size != turns))
            call_fail(c, "scanned axes must have one known size, found %s", call_value_text(c, x));
        turns = size;
    }
    check_turns(c, turns);
    for (int i = 0; i < f->states; i++)
        in[i] = (Binding){.value = operands[i]};
    for (int64_t t = 0; t < turns; t++) {
        for (int i = 0; i < f->scans; i++) {
            bool back = f->in_back && f->in_back[i];
            in[f->states + i] = (Binding){
                .value = scan_slice(c, operands[f->states + i], axes[i], back ? turns - 1 - t : t)};
        }
        import_subgraph(c, body, arena_printf(&c->im->scratch, "%s%s", name, turn_name(c, t)), in,
                        n, out, c->nout);
        for (int i = 0; i < f->states; i++)
            in[i] = out[i];
        for (int i = 0; i < f->yields; i++)
            yields_push(c, &y, &out[f->states + i]);
    }
    for (int i = 0; i < f->states; i++)
        results[i] = in[i].value;
    if (turns == 0) {
        for (int i = 0; i < f->scans; i++)
            in[f->states + i] = (Binding){.value = scan_none(c, operands[f->states + i], axes[i])};
        import_subgraph(c, body, name, in, n, out, c->nout);
    }
    for (int i = 0; i < f->yields; i++) {
        int64_t axis = f->out_axes ? f->out_axes[i] : 0;
        results[f->states + i] =
            turns ? yields_stack(c, &y, i, axis, f->out_back && f->out_back[i])
                  : yield_none(c, &out[f->states + i], axis);
    }
}

void read_scan(OpCall *c) {
    ScanForm f = scan_form(c, c->nin);
    scan_run(c, &f, c->in, "", c->out);
}

/* Opset 8: a first operand of lengths, and a batch axis in front of everything. */
void read_scan_batched(OpCall *c) {
    ScanForm f = scan_form(c, c->nin - 1);
    if (c->in[0])
        call_fail(c, "sequence_lens is not supported");
    int n = c->nin - 1;
    int64_t batch = em_rank(c, c->in[1]) > 0 ? c->in[1]->dims[0] : -1;
    if (batch < 1)
        call_fail(c, "the batch axis must have a known size");
    check_turns(c, batch);
    Value **operands = ARENA_ARRAY(&c->im->scratch, Value *, n + 1),
          **results = ARENA_ARRAY(&c->im->scratch, Value *, c->nout + 1);
    Yields y = {.each = c->nout};
    for (int64_t b = 0; b < batch; b++) {
        for (int i = 0; i < n; i++) {
            if (em_rank(c, c->in[1 + i]) < 1 || c->in[1 + i]->dims[0] != batch)
                call_fail(c, "operand %d has another batch size", 1 + i);
            operands[i] = scan_slice(c, c->in[1 + i], 0, b);
        }
        scan_run(c, &f, operands, turn_name(c, b), results);
        for (int i = 0; i < c->nout; i++)
            yields_push(c, &y, &(Binding){.value = results[i]});
    }
    for (int i = 0; i < c->nout; i++)
        c->out[i] = yields_stack(c, &y, i, 0, false);
}
