/* nvptx_gemm.c: CALL_GEMM on the GPU: which form and tiles a call needs, its kernel by name, the
 * launch. What cuBLAS does never comes here (nvptx.c). */
#include <stdlib.h>
#include <string.h>

#include "codegen/nvptx_gemm.h"

enum { WIDE = 4, LARGE = 96 };

/* ---- what the epilogue does to memory ---- */

/* Whether a value changes with the index of the vector loop it stands in. */
static bool varies(const LoopProgram *p, LVal v) {
    const LInst *n = lp_inst(p, v);
    if (n->kind == LI_LOOP)
        return n->op == LOOP_VECTOR && n->innermost;
    if (n->kind != LI_OP)
        return false;
    return varies(p, n->a) || (n->b && varies(p, n->b)) || (n->c && varies(p, n->c));
}

/* A buffer that is read and written, other than each element by the one that writes it: what a
 * column tile reads may come from an earlier one. */
static bool reads_back(const LoopProgram *p) {
    for (int i = 0; i < p->insts.n; i++) {
        const LInst *st = &p->insts.at[i];
        if (st->kind != LI_STORE || st->ref < 0)
            continue;
        for (int j = 0; j < p->insts.n; j++) {
            const LInst *ld = &p->insts.at[j];
            if (ld->kind == LI_LOAD && ld->ref == st->ref && (ld->a != st->a || !varies(p, st->a)))
                return true;
        }
    }
    return false;
}

static bool writes_tile(const LoopProgram *p) {
    for (int i = 0; i < p->insts.n; i++)
        if (p->insts.at[i].kind == LI_STORE && p->insts.at[i].ref == LB_TILE)
            return true;
    return false;
}

/* ---- the form ---- */

static bool sixteenth(int64_t bytes) {
    return bytes % 16 == 0;
}

/* Whether all rows of an operand start at multiples of 16 bytes. */
static bool aligned(const LoopCall *c, bool left) {
    const StgcGemm *g = &c->gemm;
    int64_t base = left ? c->gemm_a : c->gemm_b, row = left ? g->a_row : g->b_row,
            col = left ? g->a_col : g->b_col, stride = row == 1 ? col : row;
    if (!left && c->gemm_b_group) {
        for (int64_t e = 0; e < g->g1 * g->g2; e++)
            if (!sixteenth(c->gemm_b_group[e]))
                return false;
        base = 0;
    }
    return sixteenth(base) && stride % WIDE == 0 && (left ? g->a_g1 : g->b_g1) % WIDE == 0 &&
           (left ? g->a_g2 : g->b_g2) % WIDE == 0;
}

GemmForm gemm_form(const LoopCall *c, const GemmTiling *t) {
    const StgcGemm *g = &c->gemm;
    GemmForm f = {.kind = g->kind, .tiling = *t};
    bool scalar = t->precision == GEMM_F32;
    f.a.along_k = g->a_col == 1;
    f.b.along_k = g->b_col != 1;
    f.a.gather = c->gemm_index >= 0;
    /* FFMA turns what lies along k; the first row of a group of depth is anywhere */
    f.a.wide = aligned(c, true) && (f.a.along_k ? !scalar && g->kind != STGC_GEMM_K : !f.a.gather);
    f.b.wide = aligned(c, false) && (!f.b.along_k || (!scalar && g->kind != STGC_GEMM_K));
    f.table = c->gemm_b_group != NULL;
    f.two_axes = g->kind == STGC_GEMM_BATCH && g->g2 > 1;
    f.accumulate = g->accumulate != 0;
    f.stored = c->gemm_c >= 0;
    f.wide_c = f.stored && sixteenth(c->gemm_c) && g->ldc % WIDE == 0 && g->n % WIDE == 0 &&
               g->c_g1 % WIDE == 0 && g->c_g2 % WIDE == 0;
    f.program = c->program;
    f.ordered = c->program && reads_back(c->program);
    f.writes_tile = c->program && writes_tile(c->program);
    return f;
}

/* Large tiles, if the rows of a group fill them and there are enough for all multiprocessors. */
static bool large(const StgcGemm *g, const NvptxTarget *target) {
    const GemmTiling *t = gemm_tiling(GEMM_F32, true);
    int64_t groups = g->g1 * g->g2, rows = g->kind == STGC_GEMM_ROWS ? g->m / groups : g->m;
    int64_t tiles = (rows + t->tm - 1) / t->tm * ((g->n + t->tn - 1) / t->tn) * groups;
    return rows >= LARGE && g->n >= LARGE && tiles >= target->sms;
}

/* ---- the launch ---- */

static StgcCudaParam address(int64_t offset) {
    return (StgcCudaParam){.kind = STGC_CUDA_ARENA, .value = offset};
}

static StgcCudaParam number(int64_t v) {
    return (StgcCudaParam){.kind = STGC_CUDA_I64, .value = v};
}

static StgcCudaParam param(NvptxModule *m, const LoopCall *c, GemmParam p) {
    const StgcGemm *g = &c->gemm;
    int64_t groups = g->g1 * g->g2;
    switch (p) {
    case GEMM_P_A:
        return address(c->gemm_a);
    case GEMM_P_B:
        return address(c->gemm_b_group ? 0 : c->gemm_b);
    case GEMM_P_C:
        return address(c->gemm_c);
    case GEMM_P_OFFSETS:
        return address(c->gemm_offsets);
    case GEMM_P_INDEX:
        return address(c->gemm_index);
    case GEMM_P_TABLE: {
        int64_t at = nvptx_constant(m, c->gemm_b_group, groups * (int64_t)sizeof(int64_t));
        return (StgcCudaParam){.kind = STGC_CUDA_CONSTANT, .value = at};
    }
    case GEMM_P_M:
        return number(g->m);
    case GEMM_P_N:
        return number(g->n);
    case GEMM_P_K:
        return number(g->k);
    case GEMM_P_LDA:
        return number(g->a_col == 1 ? g->a_row : g->a_col);
    case GEMM_P_LDB:
        return number(g->b_col == 1 ? g->b_row : g->b_col);
    case GEMM_P_LDC:
        return number(g->ldc);
    case GEMM_P_GROUPS:
        return number(groups);
    case GEMM_P_G2:
        return number(g->g2);
    case GEMM_P_AG1:
        return number(g->a_g1);
    case GEMM_P_AG2:
        return number(g->a_g2);
    case GEMM_P_BG1:
        return number(g->b_g1);
    case GEMM_P_BG2:
        return number(g->b_g2);
    case GEMM_P_CG1:
        return number(g->c_g1);
    case GEMM_P_CG2:
        return number(g->c_g2);
    case GEMM_P_GROUP:
    case GEMM_P_LIMIT:
    case GEMM_P_COUNT:
        break;
    }
    bug("a launch for one group is token_dot's own");
}

void gemm_launch(NvptxModule *m, const LoopCall *c, const GemmForm *f) {
    StgcCudaParam in[GEMM_P_COUNT + 1], *all;
    int n = 0, buffers = f->program ? c->nbuffers : 0;
    char name[256];
    gemm_kernel_name(name, sizeof name, f, f->program ? nvptx_program_name(m, f->program) : NULL);
    int kernel = nvptx_find_kernel(m, name);
    if (kernel < 0) {
        StgcCudaKernel k;
        gemm_kernel(m, nvptx_ir(m), f, name, &k);
        kernel = nvptx_add_kernel(m, &k);
    }
    for (int p = 0; p < GEMM_P_COUNT; p++)
        if (gemm_needs(f, (GemmParam)p))
            in[n++] = param(m, c, (GemmParam)p);
    if (f->program)
        in[n++] = (StgcCudaParam){.kind = STGC_CUDA_FAULT};
    all = xcalloc((size_t)(n + buffers), sizeof *all);
    memcpy(all, in, (size_t)n * sizeof *in);
    for (int i = 0; i < buffers; i++)
        all[n++] = address(c->buffers[i]);
    int64_t grid[3] = {gemm_grid(f, &c->gemm), 1, 1};
    nvptx_launch(m, kernel, grid, all, c->name);
    free(all);
}

void nvptx_gemm(NvptxModule *m, const LoopCall *c) {
    const StgcGemm *g = &c->gemm;
    if (g->m <= 0 || g->n <= 0 || g->g1 * g->g2 <= 0)
        return;
    if (g->m > INT32_MAX - 256 || g->n > INT32_MAX - 256 || g->k > INT32_MAX - 256) {
        diag_error(nvptx_diag(m), EXIT_MODEL,
                   "%s: a matrix product of %lld x %lld x %lld is too large for a GPU kernel",
                   c->name, (long long)g->m, (long long)g->n, (long long)g->k);
        return;
    }
    GemmPrecision p = g->precision == STGC_GEMM_BF16 ? GEMM_BF16 : GEMM_F32;
    GemmForm f = gemm_form(c, gemm_tiling(p, large(g, nvptx_module_target(m))));
    gemm_launch(m, c, &f);
}
