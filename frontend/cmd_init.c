/* cmd_init.c: a commented recipe for a model: its parameters, what looks like a table rather than a
 * weight, its MoE layers, and defaults that fit its outputs.
 *
 * A suspect is a float initializer that training should not touch: its name says so (inv_freq, cos,
 * sin, mask, position ids), its values do (only 0 and very negative numbers: a mask), or its use
 * does (everything it feeds is sin, cos or an attention mask). */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/bind.h"
#include "frontend/cmd.h"

/* ---- suspects ---- */

static bool contains_word(const char *name) {
    static const char *const words[] = {"inv_freq",  "rotary",    "cos_cached",   "sin_cached",
                                        "cos_cache", "sin_cache", "position_ids", "causal_mask",
                                        "attn_mask", "alibi",     "running_mean", "running_var",
                                        "zeros"};
    for (int i = 0; i < COUNT_OF(words); i++)
        if (strstr(name, words[i]))
            return true;
    return false;
}

static bool is_mask_value(double v) {
    return v == 0 || v <= -1e4;
}

/* Only zeros and very negative numbers, some of each; or one value throughout, other than a norm's
 * 0 or 1. */
static const char *odd_values(const Tensor *t) {
    int64_t n = tensor_count(t), low = 0;
    bool mask = n > 0, constant = n > 1;
    double first = n ? tensor_get_f(t, 0) : 0;
    for (int64_t i = 0; i < n && (mask || constant); i++) {
        double v = tensor_get_f(t, i);
        mask &= is_mask_value(v);
        low += v <= -1e4;
        constant &= v == first;
    }
    if (mask && low)
        return "values of an attention mask";
    return constant && first != 0 && first != 1 ? "one value throughout" : NULL;
}

/* 1, b, b^2, …: the frequencies of rotary embeddings. */
static bool is_geometric(const Tensor *t) {
    int64_t n = tensor_count(t);
    if (n < 4 || t->rank == 0 || t->dims[t->rank - 1] != n || fabs(tensor_get_f(t, 0) - 1) > 1e-6)
        return false;
    double ratio = tensor_get_f(t, 1);
    for (int64_t i = 2; i < n; i++)
        if (!(ratio > 0 && ratio < 1) ||
            fabs(tensor_get_f(t, i) / tensor_get_f(t, i - 1) - ratio) > 1e-3 * ratio)
            return false;
    return true;
}

/* A cache of a*cos(p w) or a*sin(p w) over positions p (rows), whose first frequency w is 1: the
 * first row is constant (a or 0), the next ones follow in the first column, and nothing exceeds a.
 */
static bool is_wave_table(const Tensor *t) {
    if (t->rank < 2)
        return false;
    int64_t n = tensor_count(t), cols = t->dims[t->rank - 1], rows = cols ? n / cols : 0;
    if (rows < 4 || cols < 4)
        return false;
    double first = tensor_get_f(t, 0), one = tensor_get_f(t, cols), two = tensor_get_f(t, 2 * cols);
    double a = first != 0 ? first : one / sin(1);
    double want_one = first != 0 ? a * cos(1) : one, want_two = a * (first != 0 ? cos(2) : sin(2));
    if (!(a > 0) || fabs(one - want_one) > 1e-4 * a || fabs(two - want_two) > 1e-4 * a)
        return false;
    for (int64_t i = 0; i < n; i++)
        if (fabs(tensor_get_f(t, i)) > 1.0001 * a || (i < cols && tensor_get_f(t, i) != first))
            return false;
    return true;
}

/* True if all that v flows into, through views, casts and products, is sin or cos. */
static bool feeds_only_waves(const Value *v, int depth) {
    bool any = false;
    for (int i = 0; i < v->uses.n; i++) {
        const Node *n = v->uses.at[i].node;
        if (n->op == OP_SIN || n->op == OP_COS) {
            any = true;
            continue;
        }
        bool passes = n->op == OP_RESHAPE || n->op == OP_TRANSPOSE || n->op == OP_CAST ||
                      n->op == OP_EXPAND || n->op == OP_MUL || n->op == OP_MATMUL ||
                      n->op == OP_CONCAT || n->op == OP_SLICE;
        if (!passes || depth == 0 || !feeds_only_waves(n->out[0], depth - 1))
            return false;
        any = true;
    }
    return any;
}

static const char *suspicion(const Node *param) {
    const Attr *init = node_attr(param, AT_VALUE);
    const Value *v = param->out[0];
    if (!init || !init->t || !dtype_is_float(v->dtype))
        return NULL;
    if (contains_word(param_name(v)))
        return "by its name";
    if (feeds_only_waves(v, 12))
        return "it feeds only sin and cos";
    if (is_geometric(init->t))
        return "frequencies of a rotary embedding";
    if (is_wave_table(init->t))
        return "a table of sines or cosines";
    return odd_values(init->t);
}

/* ---- the recipe ---- */

static const Value *logits_output(const Graph *g, const char **name) {
    const Value *only = NULL;
    for (int i = 0; i < g->outputs.n; i++) {
        const Value *v = g->outputs.at[i].value;
        if (!strcmp(g->outputs.at[i].name, "logits")) {
            *name = g->outputs.at[i].name;
            return v;
        }
        if (!only && dtype_is_float(v->dtype) && v->rank >= 0) {
            only = v;
            *name = g->outputs.at[i].name;
        }
    }
    return only;
}

static bool has_integer_input(const Graph *g, const char **name) {
    for (int i = 0; i < g->inputs.n; i++) {
        const Value *v = g->inputs.at[i];
        if (v->rank == 2 && (v->dtype == DT_I64 || v->dtype == DT_I32)) {
            if (!*name || !strcmp(node_str(v->def, AT_NAME, ""), "input_ids"))
                *name = node_str(v->def, AT_NAME, "");
        }
    }
    return *name != NULL;
}

static const char *guess_kind(const Value *logits, bool tokens) {
    if (!logits || logits->rank == 0)
        return "output";
    if (logits->rank == 3)
        return tokens ? "causal_lm" : "token_classification";
    return logits->rank == 2 && logits->dims[1] > 1 ? "classification" : "regression";
}

static void print_quoted(const char *s, FILE *to) {
    fputc('"', to);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            fprintf(to, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            fprintf(to, "\\x%02x", c);
        else
            fputc(c, to);
    }
    fputc('"', to);
}

static void print_params(Job *j, FILE *to) {
    const Graph *g = j->g;
    int listed = 0, total = 0, suspects = 0;
    FOR_NODES(n, g)
    total += n->op == OP_PARAM;
    fprintf(to, "# Parameters (%d):\n", total);
    FOR_NODES(n, g) {
        if (n->op != OP_PARAM || listed++ >= 400)
            continue;
        fprintf(to, "#   %s %s\n", diag_safe(&j->model_diag, param_name(n->out[0])),
                value_type_text(g, n->out[0], &j->arena));
    }
    if (listed > 400)
        fprintf(to, "#   … and %d more\n", total - 400);
    fputs("model:\n  train: [\"*\"]          # globs over parameter names\n", to);
    FOR_NODES(n, g)
    if (n->op == OP_PARAM && suspicion(n)) {
        fputs(suspects++ ? ""
                         : "  freeze:                # looks like tables rather than weights; "
                           "freeze wins over train\n",
              to);
        fputs("    - ", to);
        print_quoted(param_name(n->out[0]), to);
        fprintf(to, "   # %s\n", suspicion(n));
    }
    if (!suspects)
        fputs("  freeze: []             # freeze wins over train\n", to);
}

static void print_layers(Job *j, const Compile *c, FILE *to) {
    MoeLayers layers = {0};
    moe_layers(c->g, &layers);
    fprintf(to, "# MoE layers (%d):\n", layers.n);
    for (int i = 0; i < layers.n; i++) {
        const MoeLayer *l = &layers.at[i];
        fprintf(to, "#   %d: form %s, %d experts, top-k %s, score %s%s\n", l->index,
                l->form ? l->form : "?", l->experts,
                l->top_k ? arena_printf(&j->arena, "%d", l->top_k) : "varies",
                l->score ? l->score : "unknown",
                l->logits ? "" : ", no logits: no conflict elimination");
    }
    if (!layers.n)
        fprintf(to, "#   none found%s%s: STGC has nothing to do\n",
                c->not_raised.n ? "; closest: " : "",
                c->not_raised.n ? c->not_raised.at[0].why : "");
    moe_layers_free(&layers);
}

/* Sizes of the input that takes tokens, where the model fixes them; else the defaults. Read before
 * samples are bound. */
typedef struct TokenSizes {
    int64_t batch, sequence;
} TokenSizes;

static TokenSizes token_sizes(const Graph *g) {
    TokenSizes s = {8, 256};
    const char *name = NULL;
    if (!has_integer_input(g, &name))
        return s;
    for (int i = 0; i < g->inputs.n; i++) {
        const Value *v = g->inputs.at[i];
        if (strcmp(node_str(v->def, AT_NAME, ""), name) != 0)
            continue;
        s.batch = v->dims[0] > 0 ? v->dims[0] : s.batch;
        s.sequence = v->dims[1] > 0 ? v->dims[1] : s.sequence;
    }
    return s;
}

static void print_recipe(Job *j, const Compile *c, TokenSizes sizes, FILE *to) {
    const Graph *g = j->g;
    const char *logits = NULL, *tokens = NULL;
    const Value *v = logits_output(g, &logits);
    bool has_tokens = has_integer_input(g, &tokens);
    fprintf(
        to,
        "# Training recipe for %s, written by stgcc init. Every key may be left out; these are the "
        "defaults\n"
        "# except where the model says otherwise. Flags override: --set stgc.threshold=-0.1\n\n",
        diag_safe(&j->model_diag, j->o->model));
    print_params(j, to);
    fprintf(to,
            "\nloss:\n  kind: %s        # causal_lm | classification | token_classification | "
            "regression | output\n",
            guess_kind(v, has_tokens));
    fputs("  logits: ", to);
    if (logits)
        print_quoted(logits, to);
    else
        fputs("null", to);
    fputs("       # the model's output the loss is computed from", to);
    if (v)
        fprintf(to, "; %s", value_type_text(g, v, &j->arena));
    fputs("\n  labels: labels         # the name of the labels among the data\n"
          "  shifted: false         # false: position t predicts label t+1; true: label t\n"
          "  ignore_index: -100\n  balance: 0.01          # weight of the load balance loss\n"
          "  router_z: 0.0          # weight of the router z loss\n\n",
          to);
    print_layers(j, c, to);
    fputs("stgc:\n  enabled: true\n  capture: exact         # exact | output | last_linear | none\n"
          "  threshold: 0.0         # a token conflicts where its cosine is below\n"
          "  weight: 1.0            # of the conflict elimination loss\n"
          "  mean: include_self     # include_self | leave_one_out\n"
          "  flow: router           # router | full\n  layer_reduction: sum   # sum | mean\n\n",
          to);
    fprintf(to,
            "data:                    # for token files\n  dtype: uint16          # uint8 | uint16 "
            "| uint32\n"
            "  labels_from: %s\n  inputs: {",
            tokens ? diag_safe(&j->model_diag, tokens) : "input_ids");
    const char *comma = "";
    for (int i = 0; i < g->inputs.n; i++) {
        const char *name = node_str(g->inputs.at[i]->def, AT_NAME, "");
        if (strstr(name, "mask")) {
            fputs(comma, to);
            print_quoted(name, to);
            fputs(": 1", to);
            comma = ", ";
        }
    }
    fputs("}             # constants for the other inputs\n  order: shuffle\n\n"
          "optimizer: {kind: adamw, lr: 1.0e-3, betas: [0.9, 0.999], eps: 1.0e-8, weight_decay: "
          "0.01, clip_norm: null}\n"
          "schedule: {kind: constant, warmup: 0, steps: 1000}   # constant | linear | cosine\n",
          to);
    fprintf(to,
            "train: {batch: %" PRId64 ", sequence: %" PRId64
            ", accumulate: 1, seed: 1, checkpoint_every: 500, log_every: 10}\n",
            sizes.batch, sizes.sequence);
}

/* The recipe as one text, so that a file appears whole. */
static bool write_recipe(Job *j, const Compile *c, TokenSizes sizes) {
    char *text = NULL;
    size_t n = 0;
    FILE *to = open_memstream(&text, &n);
    if (!to)
        bug("no memory stream");
    print_recipe(j, c, sizes, to);
    fclose(to);
    bool ok = true;
    if (!j->o->out) {
        fwrite(text, 1, n, stdout);
    } else {
        FILE *f = fopen(j->o->out, "wx");
        ok = f && fwrite(text, 1, n, f) == n;
        if (f)
            ok = fclose(f) == 0 && ok;
        if (!ok && errno == EEXIST) {
            diag_error(&j->out_diag, EXIT_IO, "exists already");
            diag_more(&j->out_diag, "choose another name, or remove it first");
        } else if (!ok) {
            diag_error(&j->out_diag, EXIT_IO, "cannot write: %s", strerror(errno));
            if (f)
                remove(j->o->out);
        }
    }
    free(text);
    return ok;
}

int cmd_init(const Options *o) {
    Job j;
    bool stopped = false;
    job_begin(&j, o);
    j.recipe = recipe_new();
    Compile c = {0};
    TokenSizes sizes = {0};
    bool ok = job_load_model(&j);
    if (ok)
        sizes = token_sizes(j.g);
    ok = ok && (!o->data || job_load_data(&j)) && job_bind_samples(&j) && job_check_output(&j);
    if (ok) {
        /* Passes fold tables away: parameters are read off the graph as imported, layers off the
         * raised copy. */
        c = (Compile){.g = graph_clone(j.g, NULL),
                      .recipe = j.recipe,
                      .diag = &j.model_diag,
                      .allow_unraised = true};
        ok = passes_run(&c, &stopped) && write_recipe(&j, &c, sizes);
        graph_free(c.g);
    }
    vec_free(&c.not_raised);
    return job_end(&j, EXIT_OK);
}
