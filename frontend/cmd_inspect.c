/* cmd_inspect.c: what is in a model, as a table for people or as JSON for programs. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/bind.h"
#include "frontend/cmd.h"

typedef struct ParamTotals {
    int count;
    int64_t elements, bytes;
} ParamTotals;

static ParamTotals count_params(const Graph *g) {
    ParamTotals t = {0};
    FOR_NODES(n, g)
    if (n->op == OP_PARAM && node_int(n, AT_KIND, PARAM_WEIGHT) <= PARAM_FROZEN) {
        int64_t elements = value_count(n->out[0]);
        t.count++;
        t.elements += elements;
        t.bytes += elements * dtype_bytes(n->out[0]->dtype);
    }
    return t;
}

/* Width of the rows the experts receive, and of what lies inside: from the first and the second
 * linear. */
static int64_t hidden_size(const MoeLayer *l) {
    if (l->x && l->x->rank > 0)
        return l->x->dims[l->x->rank - 1];
    return l->linears.n ? l->linears.at[0]->in[0]->dims[1] : -1;
}

static int64_t inner_size(const MoeLayer *l) {
    return l->linears.n ? l->linears.at[l->linears.n - 1]->in[0]->dims[1] : -1;
}

static const char *router_name(const MoeLayer *l) {
    const Node *n = l->logits ? l->logits->def : l->dispatch;
    return n->src && n->src->name ? n->src->name : "";
}

/* ---- the table ---- */

static const char *bytes_text(int64_t bytes, Arena *a) {
    if (bytes < 1 << 20)
        return arena_printf(a, "%.1f KiB", (double)bytes / 1024);
    return arena_printf(a, "%.1f MiB", (double)bytes / 1048576);
}

static void print_layer(const MoeLayer *l, Diag *d) {
    const char *k = l->top_k ? arena_printf(&d->arena, "%d", l->top_k) : "varies";
    printf("  %d  form %s, experts %d, top-k %s, score %s, hidden %" PRId64 ", inner %" PRId64 "\n",
           l->index, l->form ? l->form : "?", l->experts, k, l->score ? l->score : "unknown",
           hidden_size(l), inner_size(l));
    printf("     expert: %s\n", l->schema ? diag_safe(d, l->schema) : "?");
    printf("     router: %s%s\n", diag_safe(d, router_name(l)),
           l->logits ? "" : " (no logits per token: no CEL)");
    printf("     probe error %.1e; weights", l->probe_error);
    for (int i = 0; i < l->weights.n && i < 6; i++)
        printf("%s %s", i ? "," : "", diag_safe(d, param_name(l->weights.at[i])));
    puts(l->weights.n > 6 ? arena_printf(&d->arena, ", … (%d in all)", l->weights.n) : "");
}

static void print_not_raised(const Compile *c, Diag *d) {
    MoeLayers layers = {0};
    moe_layers(c->g, &layers);
    bool said = !layers.n && c->not_raised.n == 1 && !c->not_raised.at[0].wrong;
    moe_layers_free(&layers);
    if (!c->not_raised.n || said)
        return;
    puts("\nNot raised:");
    for (int i = 0; i < c->not_raised.n; i++) {
        const NotRaised *r = &c->not_raised.at[i];
        printf("  %s  node \"%s\": %s\n", r->wrong ? "wrong" : "left ", diag_safe(d, r->node),
               r->why);
        if (r->fix)
            printf("         %s\n", r->fix);
    }
}

static void print_table(Job *j, const Compile *c, const MoeLayers *layers, bool unknown_sizes) {
    Diag *d = &j->model_diag;
    ParamTotals p = count_params(c->g);
    printf("%s\n\nInputs:", j->o->model);
    for (int i = 0; i < c->g->inputs.n; i++)
        printf("  %s %s", diag_safe(d, node_str(c->g->inputs.at[i]->def, AT_NAME, "")),
               value_type_text(c->g, c->g->inputs.at[i], &d->arena));
    printf("\nOutputs:");
    for (int i = 0; i < c->g->outputs.n; i++)
        printf(" %s %s", diag_safe(d, c->g->outputs.at[i].name),
               value_type_text(c->g, c->g->outputs.at[i].value, &d->arena));
    if (unknown_sizes)
        printf("\n(free sizes shown as small samples; --dim NAME=N sets them)");
    printf("\nParameters: %d tensors, %" PRId64 " elements, %s; AdamW keeps %s more\n", p.count,
           p.elements, bytes_text(p.bytes, &d->arena), bytes_text(8 * p.elements, &d->arena));
    if (layers->n) {
        printf("\nMoE layers: %d\n", layers->n);
        for (int i = 0; i < layers->n; i++)
            print_layer(&layers->at[i], d);
    } else {
        printf("\nno MoE layer found: %s\n", c->not_raised.n
                                                 ? c->not_raised.at[0].why
                                                 : "nothing resembles a router with experts");
    }
    print_not_raised(c, d);
}

/* ---- JSON ---- */

static void json_text(const char *s) {
    if (!s) {
        fputs("null", stdout);
        return;
    }
    putchar('"');
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            printf("\\u%04x", c);
        else
            putchar(c);
    }
    putchar('"');
}

static void json_pair(const char *key, const char *text, const char *after) {
    printf("\"%s\": ", key);
    json_text(text);
    fputs(after, stdout);
}

static void json_layer(const MoeLayer *l) {
    printf("{\"index\": %d, ", l->index);
    json_pair("form", l->form, ", ");
    printf("\"experts\": %d, \"top_k\": ", l->experts);
    printf(l->top_k ? "%d, " : "null, ", l->top_k);
    json_pair("score", l->score, ", ");
    printf("\"hidden\": %" PRId64 ", \"inner\": %" PRId64 ", \"tokens\": %" PRId64 ", ",
           hidden_size(l), inner_size(l), l->tokens);
    json_pair("schema", l->schema, ", ");
    json_pair("router", router_name(l), ", ");
    printf("\"logits\": %s, \"probe_error\": %.3g, \"weights\": [", l->logits ? "true" : "false",
           l->probe_error);
    for (int i = 0; i < l->weights.n; i++) {
        fputs(i ? ", " : "", stdout);
        json_text(param_name(l->weights.at[i]));
    }
    fputs("]}", stdout);
}

static void json_params(const Graph *g) {
    ParamTotals p = count_params(g);
    printf("\"parameters\": {\"tensors\": %d, \"elements\": %" PRId64 ", \"bytes\": %" PRId64
           ", \"list\": [",
           p.count, p.elements, p.bytes);
    const char *comma = "";
    FOR_NODES(n, g) {
        if (n->op != OP_PARAM)
            continue;
        const Value *v = n->out[0];
        printf("%s\n  {", comma);
        json_pair("name", param_name(v), ", ");
        json_pair("type", dtype_name(v->dtype), ", \"shape\": [");
        for (int i = 0; i < v->rank; i++)
            printf("%s%" PRId64, i ? ", " : "", v->dims[i]);
        fputs("]}", stdout);
        comma = ",";
    }
    fputs("]}", stdout);
}

static void print_json(const Compile *c, const MoeLayers *layers) {
    fputs("{\"layers\": [", stdout);
    for (int i = 0; i < layers->n; i++) {
        fputs(i ? ",\n  " : "\n  ", stdout);
        json_layer(&layers->at[i]);
    }
    fputs("],\n\"not_raised\": [", stdout);
    for (int i = 0; i < c->not_raised.n; i++) {
        const NotRaised *r = &c->not_raised.at[i];
        printf("%s\n  {\"kind\": \"%s\", ", i ? "," : "", r->wrong ? "wrong" : "left");
        json_pair("node", r->node, ", ");
        json_pair("why", r->why, ", ");
        json_pair("fix", r->fix, "}");
    }
    fputs("],\n", stdout);
    json_params(c->g);
    fputs("}\n", stdout);
}

/* ---- the command ---- */

static bool has_free_sizes(const Graph *g) {
    for (int i = 0; i < g->inputs.n; i++)
        for (int k = 0; k < g->inputs.at[i]->rank; k++)
            if (g->inputs.at[i]->dims[k] < 0)
                return true;
    return false;
}

static bool inspect(Job *j) {
    bool free_sizes = has_free_sizes(j->g), stopped = false;
    const char *training = onnx_metadata(j->file, "stgc.emit");
    if (!job_bind_samples(j))
        return false;
    StrList skip = job_skips(j);
    Compile c = {.g = j->g,
                 .recipe = j->recipe,
                 .diag = &j->model_diag,
                 .allow_unraised = true,
                 .dump = j->o->dump,
                 .stop_after = j->o->stop_after,
                 .skip = skip,
                 .dump_to = stdout};
    MoeLayers layers = {0};
    bool ok = passes_run(&c, &stopped);
    vec_free(&skip);
    if (ok && !stopped && training && !j->o->json)
        printf("Training graph written by stgcc transform (%s): its layers are in pieces\n",
               diag_safe(&j->model_diag, training));
    if (ok)
        moe_layers(c.g, &layers);
    bool show = ok && !stopped;
    if (show && j->o->json)
        print_json(&c, &layers);
    else if (show)
        print_table(j, &c, &layers, free_sizes && !j->o->dims.n && !j->o->data);
    if (ok && !stopped && !layers.n && j->o->require_moe) {
        diag_error(&j->model_diag, EXIT_MODEL, "no MoE layer found: %s",
                   c.not_raised.n ? c.not_raised.at[0].why
                                  : "nothing resembles a router with experts");
        ok = false;
    }
    moe_layers_free(&layers);
    vec_free(&c.not_raised);
    return ok;
}

int cmd_inspect(const Options *o) {
    Job j;
    job_begin(&j, o);
    bool ok =
        job_load_model(&j) && job_load_recipe(&j) && (!o->data || job_load_data(&j)) && inspect(&j);
    if (ok)
        job_check_weights(&j, j.g, false);
    return job_end(&j, EXIT_OK);
}
