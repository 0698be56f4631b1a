/* moe_layers.c: the MoE layers of a raised graph, read off its dispatch nodes. */
#include <stdlib.h>
#include <string.h>

#include "passes/pass.h"

static void push_once(MoeLayer *l, Value *v) {
    for (int i = 0; i < l->weights.n; i++)
        if (l->weights.at[i] == v)
            return;
    vec_push(&l->weights, v);
}

/* Parameters behind the views and joins that feed an operand. */
static void collect_params(MoeLayer *l, Value *v) {
    switch (v->def->op) {
    case OP_PARAM:
        push_once(l, v);
        break;
    case OP_RESHAPE:
    case OP_TRANSPOSE:
    case OP_SLICE:
    case OP_CAST:
    case OP_CONCAT:
    case OP_EXPAND:
        for (int i = 0; i < v->def->nin; i++)
            if (v->def->in[i])
                collect_params(l, v->def->in[i]);
        break;
    default:
        break;
    }
}

/* The rows a node of the layer reads its tokens from, if they come straight from a gather. */
static Value *gathered_tokens(const MoeLayer *l, const Value *rows) {
    for (int depth = 0; depth < 16; depth++) {
        Node *n = rows->def;
        if (n->op == OP_GATHER_ROWS)
            return n->in[1] == l->dispatch->out[1] ? n->in[0] : NULL;
        if (n->op != OP_RESHAPE && n->op != OP_CAST && n->op != OP_MUL)
            return NULL;
        /* a gate that scales the input comes as the other factor */
        if (n->op == OP_MUL) {
            Value *x = gathered_tokens(l, n->in[0]);
            return x && x->dims[x->rank - 1] != 1 ? x : gathered_tokens(l, n->in[1]);
        }
        rows = n->in[0];
    }
    return NULL;
}

static void read_layer(MoeLayer *l, Node *d) {
    *l = (MoeLayer){.index = (int)node_int(d, AT_LAYER, 0),
                    .dispatch = d,
                    .form = node_str(d, AT_FORM, "?"),
                    .score = node_str(d, AT_SCORE, "softmax"),
                    .schema = node_str(d, AT_SCHEMA, ""),
                    .experts = (int)node_int(d, AT_EXPERTS, 0),
                    .top_k = (int)node_int(d, AT_TOP_K, 0),
                    .logits = d->nin > 1 ? d->in[1] : NULL,
                    .tokens = d->in[0]->rank > 0 ? d->in[0]->dims[0] : -1,
                    .probe_error = node_float(d, AT_PROBE_ERROR, 0)};
    for (Node *n = d; n; n = n->next) {
        if (n->op == OP_GROUPED_MATMUL && n->in[1] == d->out[0]) {
            vec_push(&l->linears, n);
            for (int i = 2; i < n->nin; i++)
                collect_params(l, n->in[i]);
            if (!l->x)
                l->x = gathered_tokens(l, n->in[0]);
        } else if (n->op == OP_GATHER && n->in[1] == d->out[3]) {
            collect_params(l, n->in[0]);
        }
    }
}

void moe_layers(const Graph *g, MoeLayers *out) {
    *out = (MoeLayers){0};
    FOR_NODES(n, g)
    if (n->op == OP_DISPATCH) {
        MoeLayer l;
        read_layer(&l, n);
        vec_push(out, l);
    }
}

void moe_layers_free(MoeLayers *l) {
    for (int i = 0; i < l->n; i++) {
        vec_free(&l->at[i].weights);
        vec_free(&l->at[i].linears);
    }
    vec_free(l);
}
