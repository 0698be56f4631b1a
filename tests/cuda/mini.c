/* mini.c: see mini.h. */
#include "tests/cuda/mini.h"

#include <string.h>

extern const char mini_ptx[];
__asm__(".section .rodata\n"
        ".global mini_ptx\n"
        ".hidden mini_ptx\n"
        "mini_ptx:\n"
        ".incbin \"" MINI_PTX "\"\n"
        ".byte 0\n"
        ".previous\n");

/* Where slots lie: persistent ones, then outputs. */
enum {
    AT_X = 0,
    AT_W = 2048,
    AT_M = 4096,
    AT_K = 6144,
    PERSISTENT = 6400,
    AT_Z = 6400,
    AT_Y = 7424,
    AT_SUM = 9472,
    ARENA = 9728,
    LARGE_ARENA = 3 << 20
};

/* ---- the CPU's ---- */

static const float constants[4] = {1, 2, 3, 4};

static void forward(StgcRt *rt, char *arena) {
    const float *x = (float *)(void *)(arena + AT_X), *w = (float *)(void *)(arena + AT_W),
                *k = (float *)(void *)(arena + AT_K);
    float *z = (float *)(void *)(arena + AT_Z), *y = (float *)(void *)(arena + AT_Y),
          *sum = (float *)(void *)(arena + AT_SUM);
    memset(z, 0, MINI_Z * sizeof *z);
    for (int b = 0; b < 2; b++)
        for (int i = 0; i < 10; i++)
            for (int j = 0; j < 10; j++)
                for (int l = 0; l < 25; l++)
                    z[b * 100 + i * 10 + j] += x[b * 250 + i * 25 + l] * w[b * 250 + l * 10 + j];
    for (int i = 0; i < MINI_X; i++) {
        y[i] = x[i] + w[i] + k[i & 3] + constants[i & 3];
        if (x[i] < 0)
            rt->fault(rt, "value out of range", i, (int64_t)x[i]);
    }
    *sum = 0;
    for (int i = 0; i < MINI_Z; i++)
        *sum += z[i];
    for (int i = 0; i < MINI_X; i++)
        *sum += y[i];
}

static void train(StgcRt *rt, char *arena) {
    float *w = (float *)(void *)(arena + AT_W), *m = (float *)(void *)(arena + AT_M),
          *y = (float *)(void *)(arena + AT_Y);
    forward(rt, arena);
    for (int i = 0; i < MINI_W; i++) {
        m[i] += y[i];
        w[i] -= m[i];
    }
}

static void apply_at(char *arena, int at_w, int at_m) {
    float *w = (float *)(void *)(arena + at_w), *m = (float *)(void *)(arena + at_m);
    for (int i = 0; i < MINI_W; i++) {
        w[i] -= m[i];
        m[i] = 0;
    }
}

static void apply(StgcRt *rt, char *arena) {
    apply_at(arena, AT_W, AT_M);
}

static void apply_swapped(StgcRt *rt, char *arena) {
    apply_at(arena, AT_M, AT_W);
}

/* ---- the GPU's ---- */

static const StgcCudaKernel kernels[] = {{"blend", 128, 0, 0, 7},
                                         {"total", 128, 0, 512, 5},
                                         {"update", 128, 0, 0, 4},
                                         {"apply", 128, 0, 0, 3}};

#define ARENA_AT(v) \
    { STGC_CUDA_ARENA, 0, v }
#define NUMBER(v) \
    { STGC_CUDA_I64, 0, v }
static const StgcCudaParam blend[] = {
    ARENA_AT(AT_X), ARENA_AT(AT_W),          ARENA_AT(AT_K), {STGC_CUDA_CONSTANT, 0, 64},
    ARENA_AT(AT_Y), {STGC_CUDA_FAULT, 0, 0}, NUMBER(MINI_X)};
static const StgcCudaParam total[] = {ARENA_AT(AT_Z), NUMBER(MINI_Z), ARENA_AT(AT_Y),
                                      NUMBER(MINI_X), ARENA_AT(AT_SUM)};
static const StgcCudaParam update[] = {ARENA_AT(AT_M), ARENA_AT(AT_Y), ARENA_AT(AT_W),
                                       NUMBER(MINI_W)};
static const StgcCudaParam straight[] = {ARENA_AT(AT_M), ARENA_AT(AT_W), NUMBER(MINI_W)};
static const StgcCudaParam swapped[] = {ARENA_AT(AT_W), ARENA_AT(AT_M), NUMBER(MINI_W)};

static const StgcCudaGemm product = {.m = 10,
                                     .n = 10,
                                     .k = 25,
                                     .batches = 2,
                                     .a = AT_X,
                                     .a_row = 25,
                                     .a_col = 1,
                                     .a_batch = 250,
                                     .b = AT_W,
                                     .b_row = 10,
                                     .b_col = 1,
                                     .b_batch = 250,
                                     .c = AT_Z,
                                     .ldc = 10,
                                     .c_batch = 100,
                                     .accumulate = 1};

static const StgcCudaOp ops[] = {
    {.kind = STGC_CUDA_CLEAR, .at = AT_Z, .bytes = MINI_Z * 4, .name = "clear z"},
    {.kind = STGC_CUDA_GEMM, .gemm = &product, .name = "MatMul \"/z\""},
    {.kind = STGC_CUDA_LAUNCH,
     .kernel = 0,
     .grid = {4, 1, 1},
     .params = blend,
     .name = "Add \"/y\""},
    {.kind = STGC_CUDA_LAUNCH,
     .kernel = 1,
     .grid = {1, 1, 1},
     .params = total,
     .name = "Sum \"/sum\""},
    {.kind = STGC_CUDA_LAUNCH, .kernel = 2, .grid = {4, 1, 1}, .params = update, .name = "update"}};
static const StgcCudaOp apply_ops[] = {{.kind = STGC_CUDA_LAUNCH,
                                        .kernel = 3,
                                        .grid = {4, 1, 1},
                                        .params = straight,
                                        .name = "apply"}};
static const StgcCudaOp swapped_ops[] = {
    {.kind = STGC_CUDA_LAUNCH, .kernel = 3, .grid = {4, 1, 1}, .params = swapped, .name = "apply"}};

static const char *const faults[] = {"label out of range", "value out of range"};
static const float tables[20] = {[16] = 1, 2, 3, 4};

#define DEVICE_STEP(list, n) \
    { \
        .ptx = mini_ptx, .target = 80, .lowered = 80, .nkernels = 4, .nops = n, .nfaults = 2, \
        .kernels = kernels, .ops = list, .fault_texts = faults, .constants = tables, \
        .constant_bytes = sizeof tables \
    }
static StgcCudaStep device_steps[MINI_KINDS] = {DEVICE_STEP(ops, 5), DEVICE_STEP(ops, 4),
                                                DEVICE_STEP(apply_ops, 1),
                                                DEVICE_STEP(swapped_ops, 1)};

/* ---- slots ---- */

static float w_init[MINI_W];
static const float k_init[4] = {10, 20, 30, 40};

#define MINI_WEIGHTS(at) \
    { "w", STGC_SLOT_PARAM, STGC_F32, 3, {2, 25, 10}, at, 2000, w_init }
#define MINI_STATE(at) \
    { "w.m", STGC_SLOT_STATE, STGC_F32, 1, {MINI_W}, at, 2000, NULL }
#define TRAIN_SLOTS \
    {"x", STGC_SLOT_INPUT, STGC_F32, 3, {2, 10, 25}, AT_X, 2000, NULL}, MINI_WEIGHTS(AT_W), \
        MINI_STATE(AT_M), {"k", STGC_SLOT_FROZEN, STGC_F32, 1, {4}, AT_K, 16, k_init}, \
        {"same", STGC_SLOT_OUTPUT, STGC_F32, 1, {MINI_X}, AT_X, 2000, NULL}, \
        {"z", STGC_SLOT_OUTPUT, STGC_F32, 3, {2, 10, 10}, AT_Z, 800, NULL}, \
        {"y", STGC_SLOT_OUTPUT, STGC_F32, 1, {MINI_X}, AT_Y, 2000, NULL}, { \
        "loss/total", STGC_SLOT_OUTPUT, STGC_F32, 0, {0}, AT_SUM, 4, NULL \
    }
/* Programs have lists of their own. */
static const StgcSlot train_slots[] = {TRAIN_SLOTS}, gradient_slots[] = {TRAIN_SLOTS};
static const StgcSlot apply_slots[] = {MINI_WEIGHTS(AT_W), MINI_STATE(AT_M)};
static const StgcSlot swapped_slots[] = {MINI_WEIGHTS(AT_M), MINI_STATE(AT_W)};

#define MINI_STEP(slot_list, n, arena, code, device) \
    { STGC_STEP_VERSION, n, slot_list, PERSISTENT, arena, 64, code, "hand", 0, NULL, device }
static StgcStep steps[2][MINI_KINDS] = {
    {MINI_STEP(train_slots, 8, ARENA, train, NULL),
     MINI_STEP(gradient_slots, 8, LARGE_ARENA, forward, NULL),
     MINI_STEP(apply_slots, 2, PERSISTENT, apply, NULL),
     MINI_STEP(swapped_slots, 2, PERSISTENT, apply_swapped, NULL)},
    {MINI_STEP(train_slots, 8, ARENA, NULL, &device_steps[0]),
     MINI_STEP(gradient_slots, 8, LARGE_ARENA, NULL, &device_steps[1]),
     MINI_STEP(apply_slots, 2, PERSISTENT, NULL, &device_steps[2]),
     MINI_STEP(swapped_slots, 2, PERSISTENT, NULL, &device_steps[3])}};

const StgcStep *mini_step(MiniKind kind, bool device) {
    for (int i = 0; i < MINI_W; i++)
        w_init[i] = (float)(i % 7 - 3);
    for (int i = 0; i < MINI_KINDS; i++)
        device_steps[i].ptx_bytes = (int64_t)strlen(mini_ptx);
    return &steps[device][kind];
}
