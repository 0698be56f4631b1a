/* recipe.h: what the user asks of a training (interface.md, "The recipe"); read from YAML by
 * frontend/recipe.c. */
#ifndef STGCC_IR_RECIPE_H
#define STGCC_IR_RECIPE_H

#include "ir/base.h"

typedef VEC(const char *) StrList;
typedef struct NamedFloat {
    const char *name;
    double value;
} NamedFloat;

typedef enum {
    LOSS_CAUSAL_LM,
    LOSS_CLASSIFICATION,
    LOSS_TOKEN_CLASSIFICATION,
    LOSS_REGRESSION,
    LOSS_OUTPUT
} LossKind;
typedef enum { CAPTURE_EXACT, CAPTURE_OUTPUT, CAPTURE_LAST_LINEAR, CAPTURE_NONE } CaptureMode;
typedef enum { MEAN_INCLUDE_SELF, MEAN_LEAVE_ONE_OUT } MeanMode;
typedef enum { FLOW_ROUTER, FLOW_FULL } FlowMode;
typedef enum { REDUCTION_SUM, REDUCTION_MEAN } ReductionMode;
typedef enum { STRAIGHT_AUTO, STRAIGHT_OFF } StraightMode;
typedef enum { NOISE_OFF, NOISE_SEEDED } NoiseMode;
typedef enum { OPT_ADAMW, OPT_SGD } OptimizerKind;
typedef enum { SCHED_CONSTANT, SCHED_LINEAR, SCHED_COSINE } ScheduleKind;
typedef enum { PRECISION_F32, PRECISION_TF32, PRECISION_BF16 } Precision;
typedef enum { ORDER_SHUFFLE, ORDER_SEQUENTIAL } DataOrder;

typedef struct Recipe {
    struct {
        StrList train, freeze; /* globs over parameter names; freeze wins; default train ["*"] */
        VEC(StrList) tie;
    } model;
    struct {
        LossKind kind;
        const char *logits; /* output name; NULL: the only float output, or "logits" */
        const char *labels; /* default "labels" */
        bool shifted;
        int64_t ignore_index;
        double balance, router_z;
        VEC(NamedFloat) terms;
    } loss;
    struct {
        bool enabled;
        CaptureMode capture;
        double threshold, weight;
        MeanMode mean;
        FlowMode flow;
        ReductionMode layer_reduction;
        const char *token_mask; /* a [B,S] input, or NULL */
        StraightMode straight_through;
    } stgc;
    struct {
        int dtype_bytes; /* token files: 2 or 4 */
        VEC(NamedFloat) inputs;
        const char *labels_from;
        DataOrder order;
    } data;
    NoiseMode noise;
    struct {
        OptimizerKind kind;
        double lr, beta1, beta2, eps, weight_decay, momentum;
        double clip_norm; /* 0: none */
    } optimizer;
    struct {
        ScheduleKind kind;
        int64_t warmup, steps;
    } schedule;
    struct {
        int64_t batch, sequence, accumulate, seed, checkpoint_every, log_every;
        Precision precision;
    } train;
    Arena arena;
} Recipe;

#endif
