/* cmd_step.c: one training step laid open: losses, every gradient, every cosine, as float32 arrays.
 */
#include <stdlib.h>
#include <string.h>

#include "frontend/cmd_compile.h"

static const char *output_key(Job *j, const char *name) {
    static const char *const kept[] = {"loss/", "grad/", "moe/", "out/"};
    for (int i = 0; i < COUNT_OF(kept); i++)
        if (!strncmp(name, kept[i], strlen(kept[i])))
            return name;
    return arena_printf(&j->arena, "out/%s", name);
}

static bool write_outputs(Job *j, const Graph *g, Engine *e) {
    NpzWriter *w = npz_create(j->o->out, &j->out_diag);
    bool ok = w != NULL;
    for (int i = 0; ok && i < g->outputs.n; i++) {
        const char *name = g->outputs.at[i].name;
        if (!strcmp(name, "objective"))
            continue;
        Arena scratch = {0};
        Tensor *t = engine_output(e, &scratch, name, DT_F32);
        ok = npz_add(w, output_key(j, name), t, &j->out_diag);
        arena_free(&scratch);
    }
    if (ok)
        return npz_close(w, &j->out_diag);
    npz_abandon(w);
    return false;
}

static void say_losses(Job *j, Engine *e) {
    static const char *const names[] = {"total", "task", "balance", "router_z", "cel"};
    if (j->o->quiet)
        return;
    for (int i = 0; i < COUNT_OF(names); i++) {
        Tensor *t =
            engine_output(e, &j->arena, arena_printf(&j->arena, "loss/%s", names[i]), DT_F32);
        if (t)
            printf("%sloss/%s %.7g", i ? "  " : "", names[i], tensor_get_f(t, 0));
    }
    putchar('\n');
}

static bool check_labels(Job *j, const Graph *g) {
    LabelRule rule = label_rule(g, j->recipe);
    const Tensor *labels = rule.name ? arrays_find(&j->data, rule.name) : NULL;
    int64_t counted;
    if (!labels)
        return true;
    if (!labels_check(&rule, labels, &counted, &j->data_diag))
        return false;
    if (!counted)
        diag_warning(&j->data_diag, "every label is ignored: the loss is 0");
    return true;
}

static void set_inputs(Job *j, Engine *e) {
    for (int i = 0; i < j->data.names.n; i++)
        engine_input(e, j->data.names.at[i], j->data.tensors.at[i]);
}

static bool execute(Job *j, Graph *g) {
    Engine *e = engine_new(g, j->o, NULL, &j->model_diag);
    if (!e)
        return false;
    set_inputs(j, e);
    bool ok = engine_step(e, &j->data_diag) && write_outputs(j, g, e);
    if (ok)
        say_losses(j, e);
    if (ok && j->o->verbose)
        fprintf(stderr, "%s\n", engine_describe(e, &j->arena));
    engine_free(e);
    return ok;
}

int cmd_step(const Options *o) {
    if (is_library(o->model))
        return library_step(o);
    Job j;
    bool stopped = false;
    TrainWants wants = {.train = true, .grads = true, .detail = true};
    job_begin(&j, o);
    bool ok = job_load_model(&j) && job_load_recipe(&j) && job_load_data(&j) && job_bind(&j) &&
              job_check_output(&j) && job_compile(&j, j.g, wants, &stopped);
    if (ok && !stopped) {
        job_check_weights(&j, j.g, false);
        ok = job_check_inputs(&j, j.g, true) && check_labels(&j, j.g) && execute(&j, j.g);
    }
    return job_end(&j, EXIT_OK);
}
