/* token_dot.c: the alignment of every token's gradient with its expert's mean gradient, for one
 * linear, without storing a gradient per token (method.md section 2).
 *
 *   gram      dot_r = 1/T sum_s <x_r,x_s><d_r,d_s>      T(T+B)/2 (in+out) multiply-adds
 *   factored  dot_r = 1/T d_r' (G' x_r), G = sum x d'   T in out, twice that if G is not at hand
 *
 * Gram uses the symmetry: column block J of B rows meets the rows from J downwards; rows get the
 * row sums of the elementwise product, rows of J the column sums of what lies below J. To add in
 * a fixed order on any number of threads, column blocks are dealt to LANES lanes, each with its
 * own sums in ascending block order; a last pass adds the lanes. Products are f32, sums over
 * tokens and over columns are f64, since they cancel. */
#include <string.h>

#include "runtime/machine.h"

enum { LANES = 16, COLUMN_BLOCK = 32, ROW_BLOCK = GEMM_WORK_TILE / COLUMN_BLOCK / 2 };

typedef struct Plan {
    Machine *machine;
    const StgcTokenDot *t;
    double *sums;   /* [rows][LANES] */
    float *product; /* [in][out]: G where the caller has none */
    int64_t first;  /* group of factored_task's task 0 */
} Plan;

static int64_t at_most(int64_t a, int64_t b) {
    return a < b ? a : b;
}

int64_t stgc_token_dot_scratch(int64_t groups, int64_t rows, int64_t in, int64_t out) {
    (void)groups;
    return rows * LANES * (int64_t)sizeof(double) + in * out * (int64_t)sizeof(float);
}

static int64_t count_of(const StgcTokenDot *t, int64_t group) {
    return t->offsets[group + 1] - t->offsets[group];
}

/* Whether gram costs fewer multiply-adds than factored for a group of `count` rows. */
static bool wants_gram(const StgcTokenDot *t, int64_t count) {
    if (t->mode != 0)
        return t->mode == 1;
    double in = (double)t->in, out = (double)t->out;
    double gram = (double)(count + COLUMN_BLOCK) / 2 * (in + out);
    double factored = in * out * (t->grad ? 1 : 2);
    return gram < factored;
}

int64_t stgc_token_dot_products(const StgcTokenDot *t) {
    int64_t sum = 0;
    for (int64_t group = 0; group < t->groups; group++) {
        int64_t count = count_of(t, group);
        if (!wants_gram(t, count)) {
            sum += count * t->in * t->out * (t->grad ? 1 : 2);
            continue;
        }
        for (int64_t j0 = 0; j0 < count; j0 += COLUMN_BLOCK)
            sum += (count - j0) * at_most(count - j0, COLUMN_BLOCK) * (t->in + t->out);
    }
    return sum;
}

static GemmWork *work_of(const Machine *machine) {
    return &machine->work[pool_thread(machine->pool)];
}

/* out[m][COLUMN_BLOCK] = rows [i0, i0+m) of v times rows [j0, j0+n) of v, transposed. */
static void inner_products(const Machine *machine, const float *v, int64_t width, int64_t i0,
                           int64_t m, int64_t j0, int64_t n, float *out) {
    GemmBlock b = {
        .m = m,
        .n = n,
        .k = width,
        .a = v + i0 * width,
        .a_row = width,
        .a_col = 1,
        .b = v + j0 * width,
        .b_row = 1,
        .b_col = width,
        .c = out,
        .ldc = COLUMN_BLOCK,
    };
    gemm_block(work_of(machine), &b);
}

/* Column block j0 of a group that starts at row `first` and has `count` rows, into one lane. */
static void gram_column(const Plan *p, int64_t first, int64_t count, int64_t j0, int64_t lane) {
    const StgcTokenDot *t = p->t;
    const Machine *machine = p->machine;
    GemmWork *w = work_of(machine);
    int64_t n = at_most(count - j0, COLUMN_BLOCK);
    const float *x = t->x + first * t->in, *d = t->d + first * t->out;
    double *sums = p->sums + first * LANES + lane;
    double below[COLUMN_BLOCK] = {0};
    for (int64_t i0 = j0; i0 < count; i0 += ROW_BLOCK) {
        int64_t m = at_most(count - i0, ROW_BLOCK);
        inner_products(machine, x, t->in, i0, m, j0, n, w->tile);
        inner_products(machine, d, t->out, i0, m, j0, n, w->tile2);
        for (int64_t i = 0; i < m; i++) {
            const float *a = w->tile + i * COLUMN_BLOCK, *b = w->tile2 + i * COLUMN_BLOCK;
            sums[(i0 + i) * LANES] += w->vectors->dot(a, b, n);
            if (i0 + i >= j0 + n)
                w->vectors->add_products(a, b, n, below);
        }
    }
    for (int64_t j = 0; j < n; j++)
        sums[(j0 + j) * LANES] += below[j];
}

static void gram_task(void *env, int64_t task) {
    const Plan *p = env;
    int64_t group = task / LANES, lane = task % LANES;
    int64_t first = p->t->offsets[group], count = count_of(p->t, group);
    if (!wants_gram(p->t, count))
        return;
    for (int64_t r = first; r < first + count; r++)
        p->sums[r * LANES + lane] = 0;
    for (int64_t j0 = lane * COLUMN_BLOCK; j0 < count; j0 += LANES * COLUMN_BLOCK)
        gram_column(p, first, count, j0, lane);
}

/* Adds the lanes of a gram group's rows in ascending order. */
static void gram_total(const Plan *p, int64_t group) {
    int64_t first = p->t->offsets[group], count = count_of(p->t, group);
    for (int64_t r = first; r < first + count; r++) {
        double sum = 0;
        for (int64_t lane = 0; lane < LANES; lane++)
            sum += p->sums[r * LANES + lane];
        p->t->dot[r] = (float)(sum / (double)count);
    }
}

/* Tile of X G: its rows times the rows of d, added to the rows' first lane. */
static void row_dot(void *env, int64_t group, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                    float *tile, int64_t ld) {
    const Plan *p = env;
    const StgcTokenDot *t = p->t;
    for (int64_t r = m0; r < m1; r++) {
        double *sum = &p->sums[r * LANES];
        double part = work_of(p->machine)
                          ->vectors->dot(tile + (r - m0) * ld, t->d + r * t->out + n0, n1 - n0);
        *sum = n0 == 0 ? part : *sum + part;
        if (n1 == t->out)
            t->dot[r] = (float)(*sum / (double)count_of(t, group));
    }
}

static int64_t factored_blocks(const Plan *p, int64_t group) {
    int64_t count = count_of(p->t, group);
    return wants_gram(p->t, count) ? 0 : (count + GEMM_MB - 1) / GEMM_MB;
}

/* One block of rows of a factored group; tasks count the blocks of groups from p->first. */
static void factored_task(void *env, int64_t task) {
    const Plan *p = env;
    const StgcTokenDot *t = p->t;
    int64_t group = p->first, blocks;
    for (; (blocks = factored_blocks(p, group)) <= task; group++)
        task -= blocks;
    int64_t count = count_of(t, group), i0 = count * task / blocks;
    int64_t m0 = t->offsets[group] + i0;
    GemmBlock b = {
        .m = count * (task + 1) / blocks - i0,
        .n = t->out,
        .k = t->in,
        .a = t->x + m0 * t->in,
        .a_row = t->in,
        .a_col = 1,
        .b = t->grad ? t->grad + group * t->grad_group : p->product,
        .b_row = t->grad ? t->g_in : t->out,
        .b_col = t->grad ? t->g_out : 1,
        .epilogue = row_dot,
        .env = env,
        .group = group,
        .m0 = m0,
    };
    gemm_block(work_of(p->machine), &b);
}

/* The factored groups of [first, end), all with G at hand. */
static void factored(Plan *p, int64_t first, int64_t end) {
    int64_t tasks = 0;
    p->first = first;
    for (int64_t group = first; group < end; group++)
        tasks += factored_blocks(p, group);
    pool_run(p->machine->pool, tasks, factored_task, p);
}

/* G of one group, into the scratch. */
static void sum_of_products(const Plan *p, int64_t group) {
    const StgcTokenDot *t = p->t;
    StgcGemm g = {
        .kind = STGC_GEMM_BATCH,
        .g1 = 1,
        .g2 = 1,
        .m = t->in,
        .n = t->out,
        .k = count_of(t, group),
        .a = t->x + t->offsets[group] * t->in,
        .a_row = 1,
        .a_col = t->in,
        .b = t->d + t->offsets[group] * t->out,
        .b_row = t->out,
        .b_col = 1,
        .c = p->product,
        .ldc = t->out,
    };
    machine_gemm(&p->machine->rt, &g);
}

void machine_token_dot(StgcRt *rt, const StgcTokenDot *t) {
    Machine *machine = (Machine *)rt;
    Plan p = {.machine = machine, .t = t, .sums = (double *)(void *)t->scratch};
    p.product = (float *)(void *)(p.sums + t->rows * LANES);
    int64_t end = t->groups > 0 ? t->offsets[t->groups] : 0;
    if (t->in <= 0 || t->out <= 0)
        end = 0;
    memset(t->dot + end, 0, (size_t)(t->rows - end) * sizeof *t->dot);
    if (end == 0)
        return;
    pool_run(machine->pool, t->groups * LANES, gram_task, &p);
    for (int64_t group = 0; group < t->groups; group++)
        if (wants_gram(t, count_of(t, group)))
            gram_total(&p, group);
    if (t->grad) {
        factored(&p, 0, t->groups);
        return;
    }
    for (int64_t group = 0; group < t->groups; group++) {
        if (factored_blocks(&p, group) == 0)
            continue;
        sum_of_products(&p, group);
        factored(&p, group, group + 1);
    }
}
