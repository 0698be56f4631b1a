/* Epilogues on tiles of matrix products, in the PTX emulator: every element, elements in place,
 * sums that go from column tile to column tile, changed tiles; small and large tiles, of groups and
 * batches. */
#include "nvptx_product.h"

typedef enum { POINTWISE, IN_PLACE, ROW_SUM, CHANGE_TILE, EPILOGUES } Epilogue;

static LVal tile_index(LoopProgram *p, LVal i, LVal j) {
    LVal row = lp_2(p, L_SUB, i, lp_arg(p, LARG_M0)), col = lp_2(p, L_SUB, j, lp_arg(p, LARG_N0));
    return lp_2(p, L_ADD, lp_2(p, L_MUL, row, lp_arg(p, LARG_TILE_LD)), col);
}

/* out[group, i, j] = tile * in[group, i, j] + group, and the like; buffers: in, out. */
static void elementwise(LoopProgram *p, Epilogue kind, LoopKind rows, int64_t m, int64_t n) {
    int in = lp_buffer(p, DT_F32), out = kind == IN_PLACE ? in : lp_buffer(p, DT_F32);
    LVal i = lp_loop(p, rows, lp_arg(p, LARG_M0), lp_arg(p, LARG_M1));
    LVal line = lp_2(p, L_ADD, lp_2(p, L_MUL, lp_arg(p, LARG_GROUP), lp_const_i(p, m)), i);
    line = lp_2(p, L_MUL, line, lp_const_i(p, n));
    LVal j = lp_loop(p, LOOP_VECTOR, lp_arg(p, LARG_N0), lp_arg(p, LARG_N1));
    LVal at = lp_2(p, L_ADD, line, j), t = tile_index(p, i, j), v = lp_load(p, lp_tile(p), t);
    LVal g = lp_1(p, L_TO_F32, lp_arg(p, LARG_GROUP));
    v = lp_op(p, L_FMA, v, lp_load(p, in, at), g);
    lp_store(p, out, at, v);
    if (kind == CHANGE_TILE)
        lp_store(p, lp_tile(p), t, lp_2(p, L_MUL, v, lp_const_f(p, LT_F32, 2)));
    lp_end(p);
    lp_end(p);
}

/* sum[group, i] = sum over all columns of tile * w[j], kept from column tile to column tile. */
static void row_sum(LoopProgram *p, int64_t m) {
    int w = lp_buffer(p, DT_F32), sum = lp_buffer(p, DT_F32);
    LVal i = lp_loop(p, LOOP_SEQ, lp_arg(p, LARG_M0), lp_arg(p, LARG_M1));
    LVal line = lp_2(p, L_ADD, lp_2(p, L_MUL, lp_arg(p, LARG_GROUP), lp_const_i(p, m)), i);
    int acc = lp_var(p, LT_F32, lp_const_f(p, LT_F32, 0));
    lp_if(p, lp_2(p, L_NE, lp_arg(p, LARG_N0), lp_const_i(p, 0)));
    lp_set(p, acc, lp_load(p, sum, line));
    lp_end(p);
    LVal j = lp_loop(p, LOOP_VECTOR, lp_arg(p, LARG_N0), lp_arg(p, LARG_N1));
    LVal v = lp_load(p, lp_tile(p), tile_index(p, i, j));
    lp_set(p, acc, lp_op(p, L_FMA, v, lp_load(p, w, j), lp_get(p, acc)));
    lp_end(p);
    lp_store(p, sum, line, lp_get(p, acc));
    lp_end(p);
}

/* A module of one call whose arena is [A | B | offsets | C | in | out]. */
typedef struct Fused {
    Product p;
    Epilogue kind;
    LoopModule module;
    int64_t at[6], sizes[6]; /* bytes */
    int64_t lines;           /* rows that the epilogue numbers: group * m + row */
    LoopProgram *program;
    int64_t buffers[2];
} Fused;

enum { AT_A, AT_B, AT_OFFSETS, AT_C, AT_IN, AT_OUT };

static void make_fused(Fused *s, Epilogue kind) {
    StgcGemm *g = &s->p.g;
    int64_t groups = g->g1 * g->g2;
    bool rows = g->kind == STGC_GEMM_ROWS;
    s->kind = kind;
    s->lines = (groups - 1) * g->m + g->m;
    const int64_t sizes[6] = {s->p.a_size * 4,
                              s->p.b_size * 4,
                              rows ? (groups + 1) * 8 : 0,
                              s->p.c_size * 4,
                              kind == ROW_SUM ? g->n * 4 : s->lines * g->n * 4,
                              kind == ROW_SUM ? s->lines * 4 : s->lines * g->n * 4};
    int64_t end = 0;
    for (int i = 0; i < 6; i++) {
        s->at[i] = end, s->sizes[i] = sizes[i];
        end += (sizes[i] + 63) / 64 * 64;
    }
    s->program = loop_program_new(PROGRAM_EPILOGUE, "test");
    if (kind == ROW_SUM)
        row_sum(s->program, g->m);
    else
        elementwise(s->program, kind, rows ? LOOP_VECTOR : LOOP_SEQ, g->m, g->n);
    s->buffers[0] = s->at[AT_IN], s->buffers[1] = s->at[AT_OUT];
    LoopCall c = {.kind = CALL_GEMM, .name = "test", .program = s->program, .gemm = *g};
    c.nbuffers = s->program->buffers.n, c.buffers = s->buffers;
    c.gemm_a = s->at[AT_A], c.gemm_b = s->at[AT_B], c.gemm_index = -1;
    c.gemm_offsets = rows ? s->at[AT_OFFSETS] : -1;
    c.gemm_c = kind == POINTWISE || kind == ROW_SUM ? -1 : s->at[AT_C]; /* with and without a C */
    s->module.arena_bytes = end;
    vec_push(&s->module.calls, c);
}

typedef struct Seen {
    Fused *s;
    const float *in, *out, *c, *before;
    double *sums;
} Seen;

static void check_fused(const Product *p, int64_t e, int64_t i, int64_t j, int64_t at, void *ctx) {
    Seen *seen = ctx;
    float chain;
    double exact, size;
    expect(p, e, i, j, &chain, &exact, &size);
    int64_t line = e * p->g.m + i, place = line * p->g.n + j;
    if (seen->s->kind == ROW_SUM) {
        seen->sums[line] += exact * seen->in[j];
        return;
    }
    const float *in = seen->s->kind == IN_PLACE ? seen->before : seen->in;
    bool low = p->f.tiling.precision != GEMM_F32; /* then to 1e-5, else to the last bit */
    float want = fmaf(low ? (float)exact : chain, in[place], (float)e);
    double most = low ? 1e-5 * (size + (double)e) : 0;
    float got = seen->s->kind == IN_PLACE ? seen->in[place] : seen->out[place];
    if (!(fabs((double)got - want) <= most))
        fail_msg("epilogue %d: [%ld,%ld,%ld]: %.9g, expected %.9g", seen->s->kind, (long)e, (long)i,
                 (long)j, got, want);
    if (seen->s->kind == IN_PLACE)
        assert_true(fabs(seen->c[at] - (low ? exact : (double)chain)) <= most);
    if (seen->s->kind == CHANGE_TILE)
        assert_true(seen->c[at] == 2 * got);
}

static void *part(const Fused *s, uint64_t arena, int which) {
    void *p = calloc((size_t)s->sizes[which] + 8, 1);
    ptx_read(device, p, arena + (uint64_t)s->at[which], (size_t)s->sizes[which], false);
    return p;
}

static void compare_fused(Fused *s, uint64_t arena, const float *before) {
    const StgcGemm *g = &s->p.g;
    float *in = part(s, arena, AT_IN), *out = part(s, arena, AT_OUT), *c = part(s, arena, AT_C);
    Seen seen = {s, in, out, c, before, calloc((size_t)s->lines, sizeof(double))};
    each_element(&s->p, check_fused, &seen);
    for (int64_t i = 0; s->kind == ROW_SUM && i < s->lines; i++)
        if (seen.sums[i] != 0)
            assert_true(fabs(out[i] - seen.sums[i]) <= 1e-5 * sqrt((double)(g->n * g->k)));
    free(in);
    free(out);
    free(c);
    free(seen.sums);
}

static void run_fused(Fused *s, int sms, uint64_t seed) {
    NvptxTarget t = target_of("sm_80");
    t.sms = sms; /* few: large tiles */
    device_options(seed);
    fill(&s->p);
    Compiled c = compile_calls(&s->module, &t);
    load_compiled(&c);
    uint64_t arena = upload(NULL, s->module.arena_bytes);
    float *before = random_floats(s->sizes[AT_IN] / 4);
    const struct {
        int at;
        const void *from;
    } parts[] = {{AT_A, s->p.a}, {AT_B, s->p.b}, {AT_OFFSETS, s->p.g.offsets}, {AT_IN, before}};
    for (int i = 0; i < COUNT_OF(parts); i++)
        if (s->sizes[parts[i].at])
            assert_true(ptx_write(device, arena + (uint64_t)s->at[parts[i].at], parts[i].from,
                                  (size_t)s->sizes[parts[i].at]));
    run_schedule(&c, arena, NULL);
    compare_fused(s, arena, before);
    free(before);
    ptx_free(device, arena);
    free_compiled(&c);
    loop_program_free(s->program);
    vec_free(&s->module.calls);
    free_product(&s->p);
}

/* Small and large tiles; several column tiles; rows of groups and batches. */
static void with_precision(int kind, bool large, GemmPrecision precision) {
    const GemmTiling *t = gemm_tiling(precision, large);
    int64_t *index = NULL;
    Routing r = uneven(3, large ? 300 : 100, 5);
    Fused rows = {.p = by_rows(&r, large ? 140 : 70, 9, (Layout){0}, false, false, t, &index)};
    Fused batch = {.p = dense(large ? 131 : 66, large ? 130 : 67, 9, (Layout){0}, 0, t)};
    if (precision == GEMM_BF16)
        rows.p.g.precision = batch.p.g.precision = STGC_GEMM_BF16;
    make_fused(&rows, (Epilogue)kind);
    run_fused(&rows, large ? 1 : 1000, (uint64_t)kind);
    make_fused(&batch, (Epilogue)kind);
    run_fused(&batch, large ? 1 : 1000, (uint64_t)kind + 1);
}

static void epilogues(void **state) {
    for (int kind = 0; kind < EPILOGUES; kind++)
        for (int large = 0; large < 2; large++) {
            with_precision(kind, large, GEMM_F32);
            with_precision(kind, large, GEMM_BF16);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(epilogues),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
