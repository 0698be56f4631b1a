/* cmd_train_log.c: what a training says of its steps: sums over micro-batches, a row of
 * metrics.jsonl, a row of the table; and when it was asked to end. See cmd_train.h. */
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "frontend/cmd_train.h"

static volatile sig_atomic_t interrupted;

static void on_signal(int number) {
    interrupted = number;
}

void train_watch_signals(void) {
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
    sigaction(SIGHUP, &a, NULL);
}

bool train_interrupted(void) {
    return interrupted != 0;
}

double train_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- sums ---- */

static bool adds_up(const char *name) {
    static const char *const counts[] = {"/tokens", "/degenerate", "/cos_histogram"};
    for (int i = 0; i < COUNT_OF(counts); i++) {
        size_t n = strlen(name), k = strlen(counts[i]);
        if (n > k && !strcmp(name + n - k, counts[i]))
            return true;
    }
    return false;
}

void sums_add(SumList *sums, Arena *a, const char *name, const Tensor *x, double share) {
    Sums *s = NULL;
    for (int k = 0; k < sums->n && !s; k++)
        if (!strcmp(sums->at[k].name, name))
            s = &sums->at[k];
    if (!s) {
        Sums fresh = {name, ARENA_ARRAY(a, double, tensor_count(x)), tensor_count(x)};
        vec_push(sums, fresh);
        s = &sums->at[sums->n - 1];
    }
    double w = adds_up(name) ? 1 : share;
    for (int64_t k = 0; k < s->n; k++)
        s->at[k] +=
            w * (dtype_is_float(x->dtype) ? tensor_get_f(x, k) : (double)tensor_get_i(x, k));
}

double sums_of(const SumList *sums, const char *name) {
    for (int i = 0; i < sums->n; i++)
        if (!strcmp(sums->at[i].name, name) && sums->at[i].n)
            return sums->at[i].at[0];
    return NAN;
}

/* ---- a row ---- */

typedef struct LayerMean { /* over MoE layers, for the table */
    double sum;
    int n;
} LayerMean;

static void add_mean(LayerMean *m, double v) {
    m->sum += v;
    m->n++;
}

static double mean_of(const LayerMean *m) {
    return m->n ? m->sum / m->n : NAN;
}

/* Tokens by expert become shares, and how much the fullest has above the mean. */
static double log_load(StgcMetrics *metrics, const Sums *s, Arena *a) {
    const char *layer =
        arena_printf(a, "%.*s", (int)(strlen(s->name) - strlen("/tokens")), s->name);
    double total = 0, most = 0, *load = ARENA_ARRAY(a, double, s->n);
    for (int64_t i = 0; i < s->n; i++) {
        total += s->at[i];
        most = fmax(most, s->at[i]);
    }
    for (int64_t i = 0; i < s->n; i++)
        load[i] = total > 0 ? s->at[i] / total : 0;
    double max_load = total > 0 ? most * (double)s->n / total : 0;
    stgc_metrics_list(metrics, s->name, s->at, s->n);
    stgc_metrics_list(metrics, arena_printf(a, "%s/load", layer), load, s->n);
    stgc_metrics_number(metrics, arena_printf(a, "%s/max_load", layer), max_load);
    return max_load;
}

static bool ends(const char *name, const char *with) {
    size_t n = strlen(name), k = strlen(with);
    return n >= k && !strcmp(name + n - k, with);
}

bool train_log(StgcMetrics *metrics, const StepReport *r, const SumList *sums, StgcTableRow *row,
               Diag *out) {
    Arena a = {0};
    LayerMean conflict = {0}, cosine = {0};
    double max_load = NAN, speed = r->seconds > 0 ? (double)r->tokens / r->seconds : 0;
    stgc_metrics_begin(metrics, r->step);
    for (int i = 0; i < sums->n; i++) {
        const Sums *s = &sums->at[i];
        if (!strncmp(s->name, "moe/", 4) && ends(s->name, "/tokens")) {
            double load = log_load(metrics, s, &a);
            max_load = isnan(max_load) ? load : fmax(max_load, load);
        } else if (s->n == 1) {
            stgc_metrics_number(metrics, s->name, s->at[0]);
        } else {
            stgc_metrics_list(metrics, s->name, s->at, s->n);
        }
        if (s->n == 1 && ends(s->name, "/conflict_share"))
            add_mean(&conflict, s->at[0]);
        if (s->n == 1 && ends(s->name, "/mean_cos"))
            add_mean(&cosine, s->at[0]);
    }
    if (!sums->n) {
        stgc_metrics_number(metrics, "loss/total", 0);
        stgc_metrics_number(metrics, "loss/task", 0);
    }
    stgc_metrics_number(metrics, "lr", r->rate);
    stgc_metrics_number(metrics, "step_seconds", r->seconds);
    stgc_metrics_number(metrics, "tokens_per_second", speed);
    *row = (StgcTableRow){.step = r->step,
                          .steps = r->recipe->schedule.steps,
                          .total = sums->n ? sums_of(sums, "loss/total") : 0,
                          .task = sums->n ? sums_of(sums, "loss/task") : 0,
                          .balance = sums_of(sums, "loss/balance"),
                          .cel = sums_of(sums, "loss/cel"),
                          .conflict_share = mean_of(&conflict),
                          .mean_cos = mean_of(&cosine),
                          .max_load = max_load,
                          .tokens_per_second = speed};
    arena_free(&a);
    char error[512];
    StgcStatus status = stgc_metrics_end(metrics, error, sizeof error);
    if (status != STGC_OK)
        diag_error(out, (ExitCode)status, "%s", diag_safe(out, error));
    return status == STGC_OK;
}
