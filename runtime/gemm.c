/* gemm.c: divides a matrix product into blocks for the threads.
 *
 * The bits of C do not depend on the division (gemm.h), so it may follow the number of threads:
 * large blocks where there is enough work, smaller ones so that no thread idles. With an epilogue
 * a block spans all columns, since the column tiles of a row must come in order on one thread.
 * Column tiles are always GEMM_NT wide; the rows an epilogue sees at a time vary. */
#include <string.h>

#include "runtime/machine.h"

enum { ORDERED = 1024, SIZE_CLASSES = 64 };

typedef struct Division {
    const StgcGemm *g;
    Machine *machine;
    int64_t groups;
    int64_t rows_at_most, columns_at_most; /* of one block */
    int64_t groups_per_task;               /* above 1 only where a group is one block */
    bool onednn;                           /* else libxsmm */
    bool ordered;
    int16_t order[ORDERED]; /* groups, largest first, if ordered */
} Division;

static int64_t blocks_of(int64_t size, int64_t at_most) {
    return (size + at_most - 1) / at_most;
}

/* Rows of C that group e writes. */
static int64_t rows_of(const StgcGemm *g, int64_t e) {
    return g->kind == STGC_GEMM_ROWS ? g->offsets[e + 1] - g->offsets[e] : g->m;
}

static int64_t tasks_of(const Division *d) {
    const StgcGemm *g = d->g;
    int64_t across = blocks_of(g->n, d->columns_at_most), tasks = 0;
    if (g->kind != STGC_GEMM_ROWS)
        return blocks_of(d->groups, d->groups_per_task) * blocks_of(g->m, d->rows_at_most) * across;
    for (int64_t e = 0; e < d->groups; e++)
        tasks += blocks_of(rows_of(g, e), d->rows_at_most) * across;
    return tasks;
}

/* Grouped products start with the largest groups, so that the last tasks are small and the
 * threads end together. */
static void order_groups(Division *d) {
    const StgcGemm *g = d->g;
    int64_t most = 1;
    int16_t end[SIZE_CLASSES + 1] = {0};
    if (g->kind == STGC_GEMM_BATCH || d->groups > ORDERED || d->machine->threads == 1)
        return;
    for (int64_t e = 0; e < d->groups; e++)
        if (g->offsets[e + 1] - g->offsets[e] > most)
            most = g->offsets[e + 1] - g->offsets[e];
#define CLASS(e) \
    (SIZE_CLASSES - 1 - (g->offsets[e + 1] - g->offsets[e]) * (SIZE_CLASSES - 1) / most)
    for (int64_t e = 0; e < d->groups; e++)
        end[CLASS(e) + 1]++;
    for (int c = 0; c < SIZE_CLASSES; c++)
        end[c + 1] = (int16_t)(end[c + 1] + end[c]);
    for (int64_t e = 0; e < d->groups; e++)
        d->order[end[CLASS(e)]++] = (int16_t)e;
#undef CLASS
    d->ordered = true;
}

static double work_of(const StgcGemm *g, int64_t groups) {
    double mnk = (double)g->m * (double)g->n * (double)g->k;
    return g->kind == STGC_GEMM_BATCH ? mnk * (double)groups : mnk;
}

/* Picks block sizes: the largest that still give every thread several tasks. */
static void divide(Division *d) {
    static const struct {
        int rows, columns;
    } sizes[] = {{1024, 1024}, {1024, 512}, {512, 512}, {512, 256}, {256, 256},
                 {128, 256},   {128, 128},  {64, 128},  {56, 64},   {28, 64}};
    const double smallest = 5e5; /* multiply-adds worth handing to another thread */
    const StgcGemm *g = d->g;
    int64_t threads = d->machine->threads;
    if (d->onednn) { /* its sums may depend on the size of a block */
        d->rows_at_most = ONEDNN_ROWS;
        d->columns_at_most = ONEDNN_COLUMNS;
        return;
    }
    double work = work_of(g, d->groups);
    int64_t enough = threads == 1 ? 1 : 4 * threads;
    for (int i = 0; i < (int)(sizeof sizes / sizeof sizes[0]); i++) {
        d->rows_at_most = sizes[i].rows;
        d->columns_at_most = g->epilogue ? g->n : sizes[i].columns;
        int64_t tasks = tasks_of(d);
        if (tasks >= enough || work / (double)(tasks + 1) < 2 * smallest)
            break;
    }
    double group_work = work / (double)d->groups;
    if (g->kind == STGC_GEMM_BATCH && g->m <= d->rows_at_most && g->n <= d->columns_at_most &&
        group_work < smallest) {
        int64_t fit = group_work > 0 ? (int64_t)(smallest / group_work) : d->groups;
        int64_t fair = blocks_of(d->groups, 4 * threads);
        d->groups_per_task = fit < 1 ? 1 : fit < fair ? fit : fair;
    }
}

/* Rows [i0, i1) and columns [j0, j1) of group e. */
static void run_block(const Division *d, int64_t e, int64_t i0, int64_t i1, int64_t j0,
                      int64_t j1) {
    const StgcGemm *g = d->g;
    int64_t e1 = e / g->g2, e2 = e % g->g2;
    int64_t first = g->kind == STGC_GEMM_BATCH ? 0 : g->offsets[e]; /* first row of the group */
    GemmBlock b = {
        .m = i1 - i0,
        .n = j1 - j0,
        .k = g->k,
        .a_row = g->a_row,
        .a_col = g->a_col,
        .b_row = g->b_row,
        .b_col = g->b_col,
        .ldc = g->ldc,
        .accumulate = g->accumulate != 0,
        .bf16 = g->precision == STGC_GEMM_BF16,
        .epilogue = g->epilogue,
        .env = g->env,
        .group = e,
        .m0 = i0,
        .n0 = j0,
    };
    const float *a = g->a + e1 * g->a_g1 + e2 * g->a_g2;
    const float *bb = g->b_group ? g->b_group[e] : g->b + e1 * g->b_g1 + e2 * g->b_g2;
    float *c = g->c ? g->c + e1 * g->c_g1 + e2 * g->c_g2 : NULL;
    if (g->kind == STGC_GEMM_ROWS) {
        b.m0 = first + i0;
        a = g->a;
        c = g->c;
        if (g->a_index)
            b.a_index = g->a_index + b.m0;
    } else if (g->kind == STGC_GEMM_K) {
        b.k = g->offsets[e + 1] - first;
        a = g->a + first * g->a_col;
        bb = (g->b_group ? g->b_group[e] : g->b) + first * g->b_row;
    }
    b.a = b.a_index ? a : a + b.m0 * g->a_row;
    b.b = bb + j0 * g->b_col;
    b.c = c ? c + b.m0 * g->ldc + j0 : NULL;
    Machine *machine = d->machine;
    if (d->onednn && onednn_block(&b))
        return;
    (b.bf16 && machine->bf16 ? gemm_block_bf16
                             : gemm_block)(&machine->work[pool_thread(machine->pool)], &b);
}

static void run_task(void *env, int64_t task) {
    const Division *d = env;
    const StgcGemm *g = d->g;
    int64_t across = blocks_of(g->n, d->columns_at_most);
    int64_t column = task % across, rest = task / across, e = 0, down = 0;
    if (g->kind == STGC_GEMM_ROWS) {
        for (int64_t at = 0;; at++) {
            e = d->ordered ? d->order[at] : at;
            down = blocks_of(rows_of(g, e), d->rows_at_most);
            if (rest < down)
                break;
            rest -= down;
        }
    } else {
        down = blocks_of(g->m, d->rows_at_most);
        e = rest / down * d->groups_per_task;
        e = d->ordered ? d->order[e] : e;
        rest %= down;
    }
    int64_t end = e + d->groups_per_task < d->groups ? e + d->groups_per_task : d->groups;
    for (; e < end; e++) {
        int64_t m = rows_of(g, e);
        /* Column bounds are multiples of the block width, so that tiles do not depend on it. */
        int64_t j0 = column * d->columns_at_most, j1 = j0 + d->columns_at_most;
        run_block(d, e, m * rest / down, m * (rest + 1) / down, j0, j1 < g->n ? j1 : g->n);
    }
}

/* Rows behind the last group of ROWS belong to nobody; they become zeros so that a step's result
 * never depends on what lay there before. */
static void clear_tail(const StgcGemm *g, int64_t groups) {
    for (int64_t r = g->offsets[groups]; r < g->m; r++)
        memset(g->c + r * g->ldc, 0, (size_t)g->n * sizeof *g->c);
}

static bool uses_onednn(const Machine *machine, const StgcGemm *g) {
    if (g->precision != STGC_GEMM_F32)
        return false;
    switch (machine->engine) {
    case ENGINE_XSMM:
        return false;
    case ENGINE_ONEDNN:
        return onednn_takes(g);
    case ENGINE_BEST:
        break;
    }
    return onednn_wants(g);
}

void machine_gemm(StgcRt *rt, const StgcGemm *g) {
    Machine *machine = (Machine *)rt;
    Division d = {.g = g, .machine = machine, .groups = g->g1 * g->g2, .groups_per_task = 1};
    if (g->n <= 0 || d.groups <= 0)
        return;
    if (g->kind == STGC_GEMM_ROWS && g->c && !g->accumulate)
        clear_tail(g, d.groups);
    if (g->m <= 0)
        return;
    d.onednn = uses_onednn(machine, g);
    divide(&d);
    order_groups(&d);
    pool_run(machine->pool, tasks_of(&d), run_task, &d);
}
