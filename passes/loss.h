/* loss.h: what attach_loss shares with the passes around it. Private to passes/. */
#ifndef STGCC_PASSES_LOSS_H
#define STGCC_PASSES_LOSS_H

#include "passes/pass.h"

/* The model output the loss is computed from (loss.logits, or "logits", or the only float output);
 * NULL with a diagnostic. */
Value *loss_source(Compile *c);

/* ---- small spellings shared by attach_loss, inject_stgc and optimize ---- */
Value *loss_sum_all(Builder *b, Value *v);                /* scalar */
Value *loss_sum_axis(Builder *b, Value *v, int64_t axis); /* keepdims */
Value *loss_scale(Builder *b, Value *v, double k);        /* k == 1: v itself */
Value *loss_column(Builder *b, Value *v);                 /* [n] -> [n,1] */
Value *loss_flat(Builder *b, Value *v);                   /* one axis */
/* Scores of a router's logits z[T,E] over all experts, rows summing to 1: softmax, or sigmoid over
 * its sum. */
Value *loss_router_scores(Builder *b, Value *z, const char *score);
/* The recipe's token mask as f32[T] of 1 and 0, made once; NULL without one. *count: how many
 * tokens count, scalar >= 1. */
bool loss_token_mask(Compile *c, Builder *b, int64_t tokens, Value **mask, Value **count);
/* What each layer's term is multiplied with: 1, or 1/layers under layer_reduction: mean. */
double loss_layer_share(const Compile *c, const MoeLayers *layers);

#endif
