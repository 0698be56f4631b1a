/* cost.c: operations and bytes of a call. Programs are walked once per task with the integers they
 * compute (cost_program.c); matrix products have closed forms. See cost.h. */
#include "codegen/cost.h"

#include "codegen/cost_program.h"

static const int64_t *offsets_at(const char *arena, int64_t at) {
    return arena && at >= 0 ? (const int64_t *)(const void *)(arena + at) : NULL;
}

/* How many matrices there are along the two group axes, those that broadcast counted once. */
static double matrices(const StgcGemm *g, int64_t step1, int64_t step2) {
    return (step1 ? (double)g->g1 : 1) * (step2 ? (double)g->g2 : 1);
}

typedef struct Rows {
    double all, groups; /* rows of all groups; groups that have some */
    int64_t first, end;
} Rows;

/* The rows that are multiplied; without data, all that there may be. */
static Rows rows_of(const StgcGemm *g, const int64_t *offsets) {
    int64_t groups = g->g1 * g->g2, bound = g->kind == STGC_GEMM_K ? g->k : g->m;
    if (!offsets)
        return (Rows){(double)bound, (double)groups, 0, bound};
    Rows r = {.first = offsets[0], .end = offsets[groups]};
    r.all = (double)(r.end - r.first);
    for (int64_t e = 0; e < groups; e++)
        r.groups += offsets[e + 1] > offsets[e];
    return r;
}

static void add_bytes(CallCost *c, double bytes) {
    c->moved += bytes;
    c->minimum += bytes;
}

static CallCost gemm_cost(const LoopCall *call, const char *arena) {
    const StgcGemm *g = &call->gemm;
    const double f = sizeof(float), m = (double)g->m, n = (double)g->n, k = (double)g->k;
    double groups = (double)g->g1 * (double)g->g2, stored = call->gemm_c >= 0;
    double sides = stored * (g->accumulate ? 2 : 1);
    CallCost c = {.exact = true};
    if (g->kind == STGC_GEMM_BATCH) {
        c.flops = 2 * groups * m * n * k;
        add_bytes(&c, f * (matrices(g, g->a_g1, g->a_g2) * m * k +
                           matrices(g, g->b_g1, g->b_g2) * k * n + sides * groups * m * n));
        return c;
    }
    const int64_t *offsets = offsets_at(arena, call->gemm_offsets);
    Rows r = rows_of(g, offsets);
    c.exact = offsets != NULL;
    if (g->kind == STGC_GEMM_ROWS) {
        c.flops = 2 * r.all * n * k;
        add_bytes(&c, f * (r.all * k + r.groups * k * n + sides * r.all * n));
        if (call->gemm_index >= 0)
            add_bytes(&c, r.all * (double)sizeof(int64_t));
    } else {
        c.flops = 2 * r.all * m * n;
        add_bytes(&c, f * (r.all * (m + n) + sides * groups * m * n));
    }
    return c;
}

static CallCost dot_cost(const LoopCall *call, const char *arena) {
    StgcTokenDot t = call->dot;
    CallCost c = {0};
    double rows = (double)t.rows;
    t.offsets = offsets_at(arena, call->dot_offsets);
    t.grad = call->dot_grad >= 0 ? (const float *)(const void *)&t : NULL; /* only whether */
    if (t.offsets) {
        c.exact = true;
        c.flops = 2 * (double)stgc_token_dot_products(&t);
        rows = (double)(t.offsets[t.groups] - t.offsets[0]);
    }
    add_bytes(&c, (double)sizeof(float) * (rows * (double)(t.in + t.out) + (double)t.rows));
    return c;
}

CallCost call_cost(const LoopModule *m, int number, const char *arena) {
    const LoopCall *call = &m->calls.at[number];
    if (call->kind == CALL_TOKEN_DOT)
        return dot_cost(call, arena);
    CostWalk w = {.call = call, .program = call->program, .arena = arena, .calls = call->tasks};
    if (call->kind == CALL_PARALLEL)
        return cost_of_program(&w);
    CallCost c = gemm_cost(call, arena);
    if (!call->program)
        return c;
    const StgcGemm *g = &call->gemm;
    Rows r = rows_of(g, offsets_at(arena, call->gemm_offsets));
    bool rows = g->kind == STGC_GEMM_ROWS;
    w.calls = rows ? 1 : g->g1 * g->g2;
    w.args[LARG_M0] = rows ? r.first : 0;
    w.args[LARG_M1] = rows ? r.end : g->m;
    w.args[LARG_N1] = w.args[LARG_TILE_LD] = g->n;
    CallCost e = cost_of_program(&w);
    c.flops += e.flops;
    c.special += e.special;
    c.moved += e.moved;
    c.minimum += e.minimum;
    c.exact &= e.exact;
    return c;
}
