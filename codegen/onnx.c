/* onnx.c: the walk that turns a training Graph into a ModelProto: leaves, every node by its hook,
 * outputs, clean-up.
 *
 * Needs: every dim known. Gives: nodes in the Graph's order, nothing that no output needs. */
#include "codegen/onnx.h"

#include <stdlib.h>
#include <string.h>

#include "codegen/onnx_put.h"

static EmitHook *const hooks[OP_COUNT] = {
#define OP(ID, m, a, b, c, f, infer, eval, grad, lower, emit) emit_##emit,
#include "ir/ops.def"
#undef OP
};

/* ---- where nodes belong, for their names ---- */

/* The forward half is what the model's outputs and the losses other than CEL are computed from. */
static void find_forward(Emit *E) {
    static const char *const losses[] = {"loss/task", "loss/balance", "loss/router_z"};
    for (int i = 0; i < E->g->outputs.n; i++) {
        const GraphOutput *o = &E->g->outputs.at[i];
        bool forward = !strncmp(o->name, "out/", 4);
        for (int k = 0; k < COUNT_OF(losses); k++)
            forward |= !strcmp(o->name, losses[k]);
        E->forward[o->value->def->id] |= forward;
    }
    for (const Node *n = E->g->last; n; n = n->prev)
        for (int i = 0; E->forward[n->id] && i < n->nin; i++)
            if (n->in[i])
                E->forward[n->in[i]->def->id] = true;
}

static int layer_of(const Emit *E, const Node *n) {
    return n->op == OP_DISPATCH ? (int)node_int(n, AT_LAYER, 0) + 1 : E->stgc_layer[n->id];
}

/* inject_stgc's nodes belong to the layer of the last dispatch they read from. */
static void find_layers(Emit *E) {
    FOR_NODES(n, E->g) {
        bool stgc = n->src && !strcmp(n->src->op_type, "stgc");
        for (int i = 0; stgc && i < n->nin; i++)
            if (n->in[i] && layer_of(E, n->in[i]->def) > E->stgc_layer[n->id])
                E->stgc_layer[n->id] = layer_of(E, n->in[i]->def);
    }
}

static const char *scope_of(Emit *E, const Node *n) {
    const char *name = n->src ? n->src->name : "", *kind = n->src ? n->src->op_type : "";
    if (!strcmp(kind, "stgc"))
        return E->stgc_layer[n->id] ? emit_format(E, "stgc/layer_%d/", E->stgc_layer[n->id] - 1)
                                    : "stgc/";
    if (!*name)
        return *kind ? emit_format(E, "%s/", kind) : "stgc/";
    if (n->op == OP_ADAMW || n->op == OP_SGD)
        return emit_format(E, "optimizer/%s/", name);
    return E->forward[n->id] ? name : emit_format(E, "grad/%s", name);
}

/* ---- leaves ---- */

/* Takes a name that must not be anybody else's. */
static void claim(Emit *E, const char *name, const char *what) {
    if (!strmap_put(&E->value_names, name, ARENA_NEW(&E->arena, int)))
        diag_error(E->d, EXIT_MODEL,
                   "the name \"%s\" of %s is also that of another tensor of the training graph",
                   diag_safe(E->d, name), what);
}

static void add_input(Emit *E, const char *name, const Value *v) {
    vec_push(&E->inputs, onnx_value_info(&E->arena, name, v->dtype, v->rank, v->dims));
}

bool emit_is_hyper(const Emit *E, const Node *n) {
    return E->step && n->op == OP_INPUT && !strcmp(node_str(n, AT_NAME, ""), "hyper") && n->src &&
           !strcmp(n->src->op_type, "optimizer");
}

void emit_input(Emit *E, const Node *n) {
    const char *name = node_str(n, AT_NAME, "");
    if (emit_is_hyper(E, n)) {
        E->scope = "optimizer/";
        emit_result(E, n->out[0], emit_hyper(E));
        return;
    }
    E->name[n->out[0]->id] = name;
    add_input(E, name, n->out[0]);
}

static bool is_updated(const Emit *E, const Value *v) {
    for (int i = 0; i < E->g->updates.n; i++)
        if (E->g->updates.at[i].param == v)
            return true;
    return false;
}

void emit_param(Emit *E, const Node *n) {
    const Value *v = n->out[0];
    const char *name = param_name(v);
    const Attr *value = node_attr(n, AT_VALUE);
    bool updated = is_updated(E, v);
    E->name[v->id] = name;
    if (updated)
        add_input(E, name, v);
    if (value && value->t && (!updated || E->o->initial_values))
        put_tensor(E, value->t, name);
    else if (!updated)
        put_tensor(E, tensor_new(&E->arena, v->dtype, v->rank, v->dims), name);
}

void emit_constant(Emit *E, const Node *n) {
    const Value *v = n->out[0];
    bool named = v->name && *v->name && tensor_count(value_const(v)) > 1 &&
                 strmap_put(&E->value_names, v->name, ARENA_NEW(&E->arena, int));
    E->name[v->id] = put_tensor(E, value_const(v), named ? v->name : NULL);
}

static void claim_leaves(Emit *E) {
    FOR_NODES(n, E->g)
    if (n->op == OP_INPUT && !emit_is_hyper(E, n))
        claim(E, node_str(n, AT_NAME, ""), "an input");
    else if (n->op == OP_PARAM)
        claim(E, param_name(n->out[0]), "a parameter");
    if (E->step)
        claim(E, "step", "the input that counts steps");
    for (int i = 0; i < E->g->outputs.n; i++)
        claim(E, E->g->outputs.at[i].name, "an output");
    for (int i = 0; i < E->g->updates.n; i++)
        claim(E, emit_format(E, "%s.next", param_name(E->g->updates.at[i].param)),
              "an updated parameter");
    if (E->step)
        claim(E, "step.next", "an output");
}

/* ---- outputs ---- */

/* Gives `value` out under `name`: by renaming the node's result, or by a copy if it has an output's
 * name already. */
static void add_output(Emit *E, StrMap *given, const char *name, const char *value, DType t,
                       int rank, const int64_t *dims) {
    bool produced = strmap_get(&E->producers, value) != NULL;
    if (!produced || !strmap_put(given, value, E)) {
        E->scope = "outputs/";
        value = PUT(E, "Identity", value);
        strmap_put(given, value, E);
    }
    const char **slot = strmap_get(&E->final_names, value);
    if (!slot) {
        slot = ARENA_NEW(&E->arena, const char *);
        strmap_put(&E->final_names, value, slot);
    }
    *slot = name;
    vec_push(&E->outputs, onnx_value_info(&E->arena, name, t, rank, dims));
}

static void add_outputs(Emit *E) {
    StrMap given = {0};
    for (int i = 0; i < E->g->outputs.n; i++) {
        const GraphOutput *o = &E->g->outputs.at[i];
        add_output(E, &given, o->name, emit_name(E, o->value), o->value->dtype, o->value->rank,
                   o->value->dims);
    }
    for (int i = 0; i < E->g->updates.n; i++) {
        const GraphUpdate *u = &E->g->updates.at[i];
        add_output(E, &given, emit_format(E, "%s.next", param_name(u->param)),
                   emit_name(E, u->value), u->value->dtype, u->value->rank, u->value->dims);
    }
    if (E->step)
        vec_push(&E->inputs, onnx_value_info(&E->arena, "step", DT_I64, 0, NULL));
    if (E->step)
        add_output(E, &given, "step.next", emit_step_next(E), DT_I64, 0, NULL);
    strmap_free(&given);
}

/* ---- clean-up ---- */

static char *final_name(Emit *E, char *name) {
    const char **slot = strmap_get(&E->final_names, name);
    return slot ? (char *)(uintptr_t)*slot : name;
}

/* Keeps what an output needs, in order, under final names. */
static void keep_needed(Emit *E) {
    StrMap needed = {0};
    for (int i = 0; i < E->outputs.n; i++)
        strmap_put(&needed, E->outputs.at[i]->name, E);
    bool *keep = ARENA_ARRAY(&E->arena, bool, E->nodes.n + 1);
    for (int i = E->nodes.n - 1; i >= 0; i--) {
        Onnx__NodeProto *n = E->nodes.at[i];
        for (size_t k = 0; k < n->n_output; k++)
            keep[i] |= strmap_get(&needed, n->output[k] = final_name(E, n->output[k])) != NULL;
        for (size_t k = 0; k < n->n_input; k++)
            n->input[k] = final_name(E, n->input[k]);
        for (size_t k = 0; keep[i] && k < n->n_input; k++)
            strmap_put(&needed, n->input[k], E);
    }
    int nodes = 0, kept = 0;
    for (int i = 0; i < E->nodes.n; i++)
        if (keep[i])
            E->nodes.at[nodes++] = E->nodes.at[i];
    E->nodes.n = nodes;
    for (int i = 0; i < E->initializers.n; i++)
        if (strmap_get(&needed, E->initializers.at[i]->name))
            E->initializers.at[kept++] = E->initializers.at[i];
    E->initializers.n = kept;
    strmap_free(&needed);
}

/* Shapes of inner values, for readers and for engines that want them: those the Graph knows. */
static void add_infos(Emit *E) {
    StrMap seen = {0}, made = {0};
    for (int i = 0; i < E->outputs.n; i++)
        strmap_put(&seen, E->outputs.at[i]->name, E);
    for (int i = 0; i < E->nodes.n; i++)
        for (size_t k = 0; k < E->nodes.at[i]->n_output; k++)
            strmap_put(&made, E->nodes.at[i]->output[k], E);
    FOR_NODES(n, E->g)
    for (int i = 0; i < n->nout; i++) {
        const Value *v = n->out[i];
        const char *name = E->name[v->id] ? final_name(E, (char *)(uintptr_t)E->name[v->id]) : NULL;
        if (name && strmap_get(&made, name) && strmap_put(&seen, name, E))
            vec_push(&E->infos, onnx_value_info(&E->arena, name, v->dtype, v->rank, v->dims));
    }
    strmap_free(&seen);
    strmap_free(&made);
}

/* ---- the whole ---- */

static Onnx__StringStringEntryProto *note(Emit *E, const char *key, const char *text) {
    Onnx__StringStringEntryProto *p = ARENA_NEW(&E->arena, Onnx__StringStringEntryProto);
    onnx__string_string_entry_proto__init(p);
    p->key = arena_strdup(&E->arena, key);
    p->value = arena_strdup(&E->arena, text);
    return p;
}

/* The IR version that came with an opset. */
static int ir_version(int opset) {
    static const int of[] = {8, 8, 9, 9, 10, 10, 11, 12, 13}; /* 17 … 25 */
    return of[opset - ONNX_OPSET_MIN];
}

static bool write_model(Emit *E, const char *path) {
    Onnx__ModelProto m;
    Onnx__GraphProto graph;
    Onnx__OperatorSetIdProto opset, *opsets = &opset;
    onnx__model_proto__init(&m);
    onnx__graph_proto__init(&graph);
    onnx__operator_set_id_proto__init(&opset);
    opset.domain = (char *)"";
    opset.has_version = true;
    opset.version = E->o->opset;
    m.has_ir_version = true;
    m.ir_version = ir_version(E->o->opset);
    m.producer_name = (char *)"stgcc";
    m.producer_version = (char *)(uintptr_t)E->o->version;
    m.n_opset_import = 1;
    m.opset_import = &opsets;
    m.n_metadata_props = (size_t)E->o->nnotes;
    m.metadata_props = ARENA_ARRAY(&E->arena, Onnx__StringStringEntryProto *, E->o->nnotes + 1);
    for (int i = 0; i < E->o->nnotes; i++)
        m.metadata_props[i] = note(E, E->o->notes[i].key, E->o->notes[i].text);
    m.graph = &graph;
    graph.name = (char *)(uintptr_t)(E->g->name && *E->g->name ? E->g->name : "training");
    graph.n_node = (size_t)E->nodes.n;
    graph.node = E->nodes.at;
    graph.n_input = (size_t)E->inputs.n;
    graph.input = E->inputs.at;
    graph.n_output = (size_t)E->outputs.n;
    graph.output = E->outputs.at;
    graph.n_initializer = (size_t)E->initializers.n;
    graph.initializer = E->initializers.at;
    graph.n_value_info = (size_t)E->infos.n;
    graph.value_info = E->infos.at;
    return onnx_write_file(E, &m, path);
}

static void emit_free(Emit *E) {
    strmap_free(&E->node_names);
    strmap_free(&E->value_names);
    strmap_free(&E->final_names);
    strmap_free(&E->producers);
    strmap_free(&E->constants);
    strmap_free(&E->memo);
    vec_free(&E->nodes);
    vec_free(&E->initializers);
    vec_free(&E->inputs);
    vec_free(&E->outputs);
    vec_free(&E->infos);
    arena_free(&E->arena);
}

bool onnx_write_training(const Graph *g, const char *path, const OnnxOptions *o, Diag *d,
                         Diag *io) {
    Emit E = {.g = g, .o = o, .d = d, .io = io, .scope = "", .step = g->updates.n > 0};
    int errors = d->errors;
    E.name = ARENA_ARRAY(&E.arena, const char *, g->next_value);
    E.pieces = ARENA_ARRAY(&E.arena, EmitPieces *, g->next_value);
    E.layers = ARENA_ARRAY(&E.arena, EmitLayer *, g->next_value);
    E.forward = ARENA_ARRAY(&E.arena, bool, g->next_node);
    E.stgc_layer = ARENA_ARRAY(&E.arena, int, g->next_node);
    find_forward(&E);
    find_layers(&E);
    claim_leaves(&E);
    FOR_NODES(n, g) {
        if (d->errors > errors && n->op == OP_INPUT)
            break; /* names collide: what follows would only add to it */
        E.node = n;
        E.scope = scope_of(&E, n);
        hooks[n->op](&E, n);
        for (int i = 0; i < n->nout; i++)
            if (!E.name[n->out[i]->id] && !E.pieces[n->out[i]->id])
                E.name[n->out[i]->id] = ""; /* unused, or reported */
        if (E.stgc_layer[n->id] && n->out[0]->name)
            emit_named_rows(&E, n->out[0], E.stgc_layer[n->id] - 1);
    }
    bool ok = d->errors == errors;
    if (ok) {
        add_outputs(&E);
        keep_needed(&E);
        add_infos(&E);
        ok = write_model(&E, path);
    }
    emit_free(&E);
    return ok;
}
