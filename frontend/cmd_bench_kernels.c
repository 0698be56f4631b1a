/* cmd_bench_kernels.c: time and work of every kernel of a step that was compiled with marks. */
#include "frontend/cmd_bench.h"

#include <malloc.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- samples ---- */

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n) {
    if (!n)
        return NAN;
    qsort(v, (size_t)n, sizeof *v, by_value);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

double samples_median(const Samples *s) {
    double *v = xcalloc((size_t)s->n + 1, sizeof *v);
    if (s->n)
        memcpy(v, s->at, sizeof *v * (size_t)s->n);
    double m = median(v, s->n);
    free(v);
    return m;
}

double samples_min(const Samples *s) {
    double m = NAN;
    for (int i = 0; i < s->n; i++)
        m = s->at[i] >= m ? m : s->at[i];
    return m;
}

double samples_max(const Samples *s) {
    double m = NAN;
    for (int i = 0; i < s->n; i++)
        m = s->at[i] <= m ? m : s->at[i];
    return m;
}

double samples_ratio(const Samples *a, const Samples *b) {
    int n = a->n < b->n ? a->n : b->n;
    double *v = xcalloc((size_t)n + 1, sizeof *v);
    for (int i = 0; i < n; i++)
        v[i] = a->at[i] / b->at[i];
    double m = median(v, n);
    free(v);
    return m;
}

/* ---- kernels of a schedule ---- */

/* What the table by kind sums: products and single ops by their op, the rest by kind. */
static const char *family_of(const LoopCall *c) {
    if (!strcmp(c->kernel_kind, "gemm") || !strcmp(c->kernel_kind, "op") ||
        !strcmp(c->op, "adamw") || !strcmp(c->op, "sgd"))
        return c->op;
    return c->kernel_kind;
}

/* Row of every call: calls of one kernel of the plan follow each other. */
static int *rows_of_calls(Variant *v) {
    const LoopModule *m = compiled_module(v->compiled);
    int *row = xcalloc((size_t)m->calls.n + 1, sizeof *row);
    bool make = !v->kernels.n;
    int n = 0;
    for (int i = 0; i < m->calls.n; i++) {
        const LoopCall *c = &m->calls.at[i];
        if (!i || c->kernel != m->calls.at[i - 1].kernel) {
            n++;
            KernelRow fresh = {.name = c->name,
                               .kind = c->kernel_kind,
                               .op = c->op,
                               .source = c->source,
                               .family = family_of(c),
                               .nnodes = c->nnodes,
                               .nodes = c->nodes,
                               .cost.exact = true};
            if (make)
                vec_push(&v->kernels, fresh);
        }
        row[i] = n - 1;
        if (make) {
            v->kernels.at[n - 1].calls++;
            if (c->kind == CALL_GEMM) /* its main call names it */
                v->kernels.at[n - 1].name = c->name;
        }
    }
    return row;
}

typedef struct Clock {
    int last; /* call that runs */
    double wall, cpu;
    double *call_wall, *call_cpu;
    size_t heap, most; /* bytes the process has from malloc: before, at most */
} Clock;

static size_t heap_bytes(void) {
    struct mallinfo2 m = mallinfo2();
    return m.uordblks + m.hblkhd;
}

static void on_call(void *ctx, int64_t call) {
    Clock *c = ctx;
    double wall = stgc_bench_wall(), cpu = stgc_bench_thread();
    if (c->last >= 0) {
        c->call_wall[c->last] = wall - c->wall;
        c->call_cpu[c->last] = cpu - c->cpu;
    }
    size_t heap = heap_bytes();
    c->most = heap > c->most ? heap : c->most;
    c->last = (int)call;
    c->wall = stgc_bench_wall();
    c->cpu = stgc_bench_thread();
}

static void add_times(Variant *v, const Clock *c, const int *row) {
    const LoopModule *m = compiled_module(v->compiled);
    double *wall = xcalloc((size_t)v->kernels.n + 1, 2 * sizeof *wall), *cpu = wall + v->kernels.n;
    for (int i = 0; i < m->calls.n; i++) {
        wall[row[i]] += c->call_wall[i];
        cpu[row[i]] += c->call_cpu[i];
    }
    for (int k = 0; k < v->kernels.n; k++) {
        vec_push(&v->kernels.at[k].wall, wall[k]);
        vec_push(&v->kernels.at[k].cpu, cpu[k]);
    }
    free(wall);
}

bool bench_profile_step(Bench *b, Variant *v) {
    int calls = compiled_module(v->compiled)->calls.n, *row = rows_of_calls(v);
    Clock c = {.last = -1};
    c.call_wall = xcalloc(2 * (size_t)calls + 2, sizeof *c.call_wall);
    c.call_cpu = c.call_wall + calls + 1;
    c.heap = c.most = heap_bytes();
    stgc_bench_watch(v->rt, on_call, &c);
    bool ok = bench_step(b, v);
    stgc_bench_watch(v->rt, NULL, NULL);
    if (ok)
        add_times(v, &c, row);
    int64_t grown = (int64_t)(c.most - c.heap);
    b->allocated = grown > b->allocated ? grown : b->allocated;
    free(c.call_wall);
    free(row);
    return ok;
}

/* ---- work ---- */

typedef struct Counter {
    Variant *v;
    const char *arena;
    const int *row;
} Counter;

static void count_call(void *ctx, int64_t call) {
    const Counter *c = ctx;
    const LoopModule *m = compiled_module(c->v->compiled);
    if (call >= m->calls.n)
        return;
    CallCost one = call_cost(m, (int)call, c->arena);
    CallCost *sum = &c->v->kernels.at[c->row[call]].cost;
    sum->flops += one.flops;
    sum->special += one.special;
    sum->moved += one.moved;
    sum->minimum += one.minimum;
    sum->exact &= one.exact;
}

bool bench_costs(Bench *b, Variant *v) {
    const StgcStep *step = compiled_step(v->compiled);
    int *row = rows_of_calls(v);
    const StgcSlot *slot = &step->slots[0]; /* a step has an input at least */
    Counter c = {v, (const char *)stgc_run_address(v->run, slot) - slot->offset, row};
    stgc_bench_watch(v->rt, count_call, &c);
    bool ok = bench_step(b, v);
    stgc_bench_watch(v->rt, NULL, NULL);
    free(row);
    return ok;
}

/* ---- fused against unfused ---- */

/* A node that several fused kernels compute counts for each with its share. */
static void unfused_times(KernelRows *fused, const KernelRows *alone) {
    int most = 0;
    for (int i = 0; i < fused->n; i++)
        for (int k = 0; k < fused->at[i].nnodes; k++)
            most = fused->at[i].nodes[k] > most ? fused->at[i].nodes[k] : most;
    double *seconds = xcalloc((size_t)most + 1, sizeof *seconds);
    int *shares = xcalloc((size_t)most + 1, sizeof *shares);
    for (int i = 0; i < fused->n; i++)
        for (int k = 0; k < fused->at[i].nnodes; k++)
            shares[fused->at[i].nodes[k]]++;
    for (int i = 0; i < alone->n; i++) {
        const KernelRow *r = &alone->at[i];
        for (int k = 0; k < r->nnodes; k++)
            if (r->nodes[k] <= most)
                seconds[r->nodes[k]] += r->seconds / r->nnodes;
    }
    for (int i = 0; i < fused->n; i++)
        for (int k = 0; k < fused->at[i].nnodes; k++)
            fused->at[i].unfused += seconds[fused->at[i].nodes[k]] / shares[fused->at[i].nodes[k]];
    free(seconds);
    free(shares);
}

static void settle(const Bench *b, KernelRows *rows) {
    for (int i = 0; i < rows->n; i++) {
        KernelRow *r = &rows->at[i];
        r->seconds = samples_median(b->own_clock ? &r->cpu : &r->wall);
        r->roof = fmax(r->cost.flops / b->peak_flops, r->cost.minimum / b->peak_bytes);
    }
}

void bench_attribute(Bench *b) {
    KernelRows *fused = &b->variants.at[b->profile].kernels,
               *alone = &b->variants.at[b->profile_unfused].kernels;
    settle(b, fused);
    settle(b, alone);
    unfused_times(fused, alone);
}

static int slowest_first(const void *a, const void *b) {
    double x = ((const FamilyRow *)a)->seconds, y = ((const FamilyRow *)b)->seconds;
    return (x < y) - (x > y);
}

FamilyRows bench_families(const KernelRows *k) {
    FamilyRows out = {0};
    for (int i = 0; i < k->n; i++) {
        const KernelRow *r = &k->at[i];
        FamilyRow *f = NULL;
        for (int n = 0; n < out.n && !f; n++)
            if (!strcmp(out.at[n].name, r->family))
                f = &out.at[n];
        if (!f) {
            vec_push(&out, ((FamilyRow){.name = r->family}));
            f = &out.at[out.n - 1];
        }
        f->kernels++;
        f->seconds += r->seconds;
        f->unfused += r->unfused;
        f->flops += r->cost.flops;
        f->moved += r->cost.moved;
        f->minimum += r->cost.minimum;
        f->roof += r->roof;
    }
    if (out.n)
        qsort(out.at, (size_t)out.n, sizeof *out.at, slowest_first);
    return out;
}

double bench_kernel_sum(const KernelRows *k, double (*of)(const KernelRow *)) {
    double sum = 0;
    for (int i = 0; i < k->n; i++)
        sum += of(&k->at[i]);
    return sum;
}
