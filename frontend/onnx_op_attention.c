/* onnx_op_attention.c: attention and rotary embeddings of either domain, taken apart into products,
 * softmax and masks.
 *
 * B batch, N heads, M key/value heads (N a multiple), S queries, L keys, H head size. */
#include <math.h>
#include <string.h>

#include "frontend/onnx_ops.h"

/* [B,S,N*H] -> [B,N,S,H] */
static Value *split_heads(OpCall *c, Value *x, int64_t heads) {
    if (em_rank(c, x) != 3 || heads < 1 || x->dims[2] < 0 || x->dims[2] % heads)
        call_fail(c, "%s does not split into %lld heads", call_value_text(c, x), (long long)heads);
    ShapeOf s = {0};
    shape_add_axes(c, &s, x, 0, 2);
    shape_add(c, &s, heads);
    shape_add(c, &s, x->dims[2] / heads);
    return em_transpose(c, em_view(c, x, &s), (int64_t[]){0, 2, 1, 3});
}

/* [B,N,S,H] -> [B,S,N*H] */
static Value *merge_heads(OpCall *c, Value *x) {
    Value *y = em_transpose(c, x, (int64_t[]){0, 2, 1, 3});
    ShapeOf s = {0};
    shape_add_axes(c, &s, y, 0, 2);
    shape_add_product(c, &s, y, 2, 4);
    return em_view(c, y, &s);
}

/* [B,M,L,H] -> [B,N,L,H]: each head serves N/M queries in a row. */
static Value *repeat_heads(OpCall *c, Value *x, int64_t heads) {
    if (x->dims[1] == heads)
        return x;
    if (x->dims[1] < 1 || heads % x->dims[1])
        call_fail(c, "%lld query heads are no multiple of %lld key/value heads", (long long)heads,
                  (long long)x->dims[1]);
    ShapeOf wide = {0}, back = {0};
    shape_add_axes(c, &wide, x, 0, 2);
    shape_add(c, &wide, heads / x->dims[1]);
    shape_add_axes(c, &wide, x, 2, 4);
    Value *y = em_spread(c, em_insert_axis(c, x, 2), &wide);
    shape_add_axis(c, &back, x, 0);
    shape_add(c, &back, heads);
    shape_add_axes(c, &back, x, 2, 4);
    return em_view(c, y, &back);
}

/* A bool mask as what is added to scores: 0 where true, -inf elsewhere. */
static Value *additive(OpCall *c, Value *mask, DType t) {
    return mask->dtype == DT_BOOL ? em_where(c, mask, em_f(c, t, 0), em_f(c, t, -INFINITY))
                                  : em_cast(c, mask, t);
}

static Value *add_optional(OpCall *c, Value *a, Value *b) {
    return a && b ? em_binary(c, OP_ADD, a, b) : a ? a : b;
}

/* Key j is seen by query i iff j <= i + offset: bool [S,L], or [B,1,S,L] for an offset of every
 * batch entry. `offset` NULL: 0. */
static Value *causal_mask(OpCall *c, Value *q, Value *k, Value *offset) {
    Value *i = em_insert_axis(c, em_iota(c, q, 2), 1), *j = em_iota(c, k, 2);
    if (offset)
        i = em_binary(c, OP_ADD, i, offset);
    return em_binary(c, OP_LE, j, i);
}

/* Query i (at position i + offset) sees keys from `left` behind it to `right` ahead; -1: no bound.
 * NULL without bounds. */
static Value *window_mask(OpCall *c, Value *q, Value *k, Value *offset, int64_t left,
                          int64_t right) {
    if (left < -1 || right < -1)
        call_fail(c, "window sizes must be -1 or more");
    if (left < 0 && right < 0)
        return NULL;
    Value *i = em_insert_axis(c, em_iota(c, q, 2), 1), *j = em_iota(c, k, 2);
    if (offset)
        i = em_binary(c, OP_ADD, i, offset);
    Value *ahead = em_binary(c, OP_SUB, j, i), *seen = NULL;
    if (left >= 0)
        seen = em_binary(c, OP_LE, em_i(c, DT_I64, -left), ahead);
    if (right >= 0) {
        Value *near = em_binary(c, OP_LE, ahead, em_i(c, DT_I64, right));
        seen = seen ? em_binary(c, OP_AND, seen, near) : near;
    }
    return seen;
}

typedef struct Scores {
    Value *raw, *capped, *biased, *probabilities;
} Scores;

/* Softmax over the keys; `sink` [1,N,1,1] (or NULL) is the score of a key without value, which only
 * takes a share. */
static Value *shares(OpCall *c, Value *scores, Value *sink, bool masked) {
    if (!sink)
        return masked ? EM(c, OP_SOFTMAX, &scores, 1, A_INT(AXIS, 3), A_INT(MASKED, 1))
                      : em_softmax(c, scores, 3);
    ShapeOf s = {0};
    shape_add_axes(c, &s, scores, 0, 3);
    shape_add(c, &s, 1);
    Value *all[] = {scores, em_spread(c, sink, &s)};
    Value *p = em_softmax(c, em_concat(c, all, 2, 3), 3);
    return em_slice(c, p, 3, 0, -1, 1);
}

/* softmax(q k' scale, soft-capped, + bias) v for [B,N,·,·] operands of equal head counts. */
static Value *attend(OpCall *c, Value *q, Value *k, Value *v, Value *bias, double scale,
                     double softcap, Value *sink, Scores *s) {
    double root = sqrt(scale);
    s->raw = em_matmul(c, em_scale(c, q, root), em_scale(c, k, root), false, true);
    s->capped = s->raw;
    if (softcap > 0)
        s->capped = em_scale(c, em_unary(c, OP_TANH, em_scale(c, s->raw, 1 / softcap)), softcap);
    s->biased = bias ? em_binary(c, OP_ADD, s->capped, bias) : s->capped;
    s->probabilities = shares(c, s->biased, sink, bias != NULL);
    if (bias) { /* a query that sees no key gives 0 even where its scores are not numbers */
        int64_t last = em_rank(c, bias) - 1;
        Value *top = em_reduce(c, OP_REDUCE_MAX, bias, &last, 1, true);
        Value *none = em_binary(c, OP_EQ, top, em_f(c, bias->dtype, -INFINITY));
        s->probabilities = em_where(c, none, em_like(c, s->probabilities, 0), s->probabilities);
    }
    return em_matmul(c, em_cast(c, s->probabilities, v->dtype), v, false, false);
}

/* A mask shorter than the keys hides the rest of them. */
static Value *pad_mask(OpCall *c, Value *mask, Value *k) {
    int rank = em_rank(c, mask);
    int64_t have = mask->dims[rank - 1], want = k->dims[2], pads[2 * MAX_RANK] = {0};
    if (have < 0 || want < 0 || have >= want || have == 1)
        return mask;
    pads[2 * rank - 1] = want - have;
    return EM(c, OP_PAD, &mask, 1, A_INTS(PADS, pads, 2 * rank), A_FLOAT(VALUE_F, -INFINITY));
}

/* Attention (23, 24). */
void read_attention(OpCall *c) {
    Value *q = c->in[0], *k = c->in[1], *v = c->in[2], *mask = c->nin > 3 ? c->in[3] : NULL;
    Value *past_k = c->nin > 4 ? c->in[4] : NULL, *past_v = c->nin > 5 ? c->in[5] : NULL;
    Value *filled = c->nin > 6 ? c->in[6] : NULL;
    bool flat = em_rank(c, q) == 3;
    if ((past_k == NULL) != (past_v == NULL) || (filled && past_k))
        call_fail(c, "past_key and past_value come together, and not with nonpad_kv_seqlen");
    if (flat) {
        q = split_heads(c, q, call_int(c, "q_num_heads", 0));
        k = split_heads(c, k, call_int(c, "kv_num_heads", 0));
        v = split_heads(c, v, call_int(c, "kv_num_heads", 0));
    }
    if (em_rank(c, q) != 4 || em_rank(c, k) != 4 || em_rank(c, v) != 4 || q->dims[3] < 1 ||
        q->dims[1] < 1)
        call_fail(c, "q, k and v must have rank 3 or 4 and a known head size");
    Value *offset = past_k ? em_size0(c, past_k, 2) : NULL;
    k = past_k ? em_concat(c, (Value *[]){past_k, k}, 2, 2) : k;
    v = past_v ? em_concat(c, (Value *[]){past_v, v}, 2, 2) : v;
    Value *bias = mask ? pad_mask(c, additive(c, mask, q->dtype), k) : NULL;
    if (filled) { /* [B]: keys from there on are padding */
        Value *n = em_reshape(c, em_cast(c, filled, DT_I64), 4, (int64_t[]){-1, 1, 1, 1});
        offset = em_binary(c, OP_SUB, n, em_size0(c, q, 2));
        bias =
            add_optional(c, bias, additive(c, em_binary(c, OP_LT, em_iota(c, k, 2), n), q->dtype));
    }
    if (call_int(c, "is_causal", 0))
        bias = add_optional(c, bias, additive(c, causal_mask(c, q, k, offset), q->dtype));
    Value *window = window_mask(c, q, k, offset, call_int(c, "left_window_size", -1),
                                call_int(c, "right_window_size", -1));
    if (window)
        bias = add_optional(c, bias, additive(c, window, q->dtype));
    double scale = call_attr(c, "scale") ? call_float(c, "scale", 1) : 1 / sqrt((double)q->dims[3]);
    Scores s;
    Value *y = attend(c, q, repeat_heads(c, k, q->dims[1]), repeat_heads(c, v, q->dims[1]), bias,
                      scale, call_float(c, "softcap", 0), NULL, &s);
    c->out[0] = flat ? merge_heads(c, y) : y;
    Value *more[] = {NULL, k, v, NULL};
    Value *stages[] = {s.raw, s.capped, s.biased, s.probabilities};
    int64_t mode = call_int(c, "qk_matmul_output_mode", 0);
    if (mode < 0 || mode > 3)
        call_fail(c, "qk_matmul_output_mode is %lld; expected 0 to 3", (long long)mode);
    more[3] = stages[mode];
    for (int i = 1; i < c->nout; i++)
        c->out[i] = more[i];
}

/* com.microsoft.MultiHeadAttention: q, k, v [B,·,N*H]; bias of all three; mask of keys; bias of
 * scores; past. */
void read_multi_head_attention(OpCall *c) {
    Value *in[8] = {NULL};
    for (int i = 0; i < c->nin && i < 8; i++)
        in[i] = c->in[i];
    int64_t heads = call_int(c, "num_heads", 0);
    if (em_rank(c, in[0]) != 3 || !in[1] || !in[2] || em_rank(c, in[1]) != 3 ||
        em_rank(c, in[2]) != 3)
        call_fail(c, "query, key and value must be given apart as [B,S,N*H]; packed forms are not "
                     "supported");
    Value *x[3] = {in[0], in[1], in[2]};
    int64_t at = 0;
    for (int i = 0; i < 3; i++) {
        if (in[3] && x[i]->dims[2] >= 0) {
            x[i] = em_binary(c, OP_ADD, x[i], em_slice(c, in[3], 0, at, at + x[i]->dims[2], 1));
            at += in[i]->dims[2];
        }
        x[i] = split_heads(c, x[i], heads);
    }
    Value *offset = in[6] ? em_size0(c, in[6], 2) : NULL;
    for (int i = 1; i < 3; i++)
        if (in[5 + i])
            x[i] = em_concat(c, (Value *[]){in[5 + i], x[i]}, 2, 2);
    Value *bias = in[5];
    if (in[4]) { /* [B,L]: 0 hides a key */
        if (em_rank(c, in[4]) != 2)
            call_fail(c, "the key padding mask must be [B,L], found %s", call_value_text(c, in[4]));
        Value *seen = em_insert_axis(c, em_insert_axis(c, em_cast(c, in[4], DT_BOOL), 1), 1);
        bias = add_optional(c, bias, additive(c, seen, x[0]->dtype));
    }
    if (call_int(c, "unidirectional", 0))
        bias = add_optional(c, bias, additive(c, causal_mask(c, x[0], x[1], offset), x[0]->dtype));
    double scale = call_float(c, "scale", 0);
    Scores s;
    Value *y = attend(c, x[0], x[1], x[2], bias,
                      scale != 0 ? scale : 1 / sqrt((double)x[0]->dims[3]), 0, NULL, &s);
    Value *out[] = {merge_heads(c, y), x[1], x[2], s.raw};
    for (int i = 0; i < c->nout && i < 4; i++)
        c->out[i] = out[i];
}

/* ---- rotary embeddings ---- */

/* x[B,S,N,H] rotated by cos, sin [·,S,1,half] in its first 2*half channels: pairs side by side or
 * half apart. */
static Value *rotate(OpCall *c, Value *x, Value *cosine, Value *sine, bool interleaved) {
    int64_t half = cosine->dims[3], size = x->dims[3];
    if (half < 1 || size < 2 * half)
        call_fail(c, "the cache has %lld angles; the head size is %lld", (long long)half,
                  (long long)size);
    Value *a, *b;
    if (interleaved) {
        a = em_slice(c, x, 3, 0, 2 * half, 2);
        b = em_slice(c, x, 3, 1, 2 * half, 2);
    } else {
        a = em_slice(c, x, 3, 0, half, 1);
        b = em_slice(c, x, 3, half, 2 * half, 1);
    }
    Value *re =
        em_binary(c, OP_SUB, em_binary(c, OP_MUL, cosine, a), em_binary(c, OP_MUL, sine, b));
    Value *im =
        em_binary(c, OP_ADD, em_binary(c, OP_MUL, sine, a), em_binary(c, OP_MUL, cosine, b));
    Value *y;
    if (interleaved) {
        y = em_concat(c, (Value *[]){em_insert_axis(c, re, 4), em_insert_axis(c, im, 4)}, 2, 4);
        ShapeOf s = {0};
        shape_add_axes(c, &s, x, 0, 3);
        shape_add(c, &s, 2 * half);
        y = em_view(c, y, &s);
    } else {
        y = em_concat(c, (Value *[]){re, im}, 2, 3);
    }
    return size == 2 * half
               ? y
               : em_concat(c, (Value *[]){y, em_slice(c, x, 3, 2 * half, size, 1)}, 2, 3);
}

/* Rows of the cache [max,half] as [B or 1,S,1,half]; positions NULL: the cache is [B,S,half]
 * already. */
static Value *cache_rows(OpCall *c, Value *cache, Value *positions) {
    Value *rows = positions ? em_gather(c, cache, positions, 0) : cache;
    if (em_rank(c, rows) == 2)
        rows = em_insert_axis(c, rows, 0);
    if (em_rank(c, rows) != 3)
        call_fail(c, "the cache has rank %d", cache->rank);
    return em_insert_axis(c, rows, 2);
}

/* [B,S,N*H] or [B,N,S,H] -> [B,S,N,H] */
static Value *rotary_view(OpCall *c, Value *x, int64_t heads, int64_t size) {
    if (em_rank(c, x) == 4)
        return em_transpose(c, x, (int64_t[]){0, 2, 1, 3});
    if (x->rank != 3 || x->dims[2] < 1 || size < 1 || x->dims[2] % size)
        call_fail(c, "%s does not split into %lld heads of size %lld", call_value_text(c, x),
                  (long long)heads, (long long)size);
    ShapeOf s = {0};
    shape_add_axes(c, &s, x, 0, 2);
    shape_add(c, &s, x->dims[2] / size);
    shape_add(c, &s, size);
    return em_view(c, x, &s);
}

static Value *rotary_back(OpCall *c, Value *y, Value *like) {
    if (like->rank == 4)
        return em_transpose(c, y, (int64_t[]){0, 2, 1, 3});
    ShapeOf s = {0};
    shape_add_axes(c, &s, like, 0, 3);
    return em_view(c, y, &s);
}

/* RotaryEmbedding (23): x, cos cache, sin cache, positions. */
void read_rotary(OpCall *c) {
    Value *x = c->in[0], *pos = c->nin > 3 && c->in[3] ? em_cast(c, c->in[3], DT_I64) : NULL;
    int64_t heads = call_int(c, "num_heads", 0), rotary = call_int(c, "rotary_embedding_dim", 0);
    if (em_rank(c, x) == 3 && (heads < 1 || x->dims[2] < 0))
        call_fail(c, "num_heads is missing for an input of rank 3");
    Value *y = rotary_view(c, x, heads, x->rank == 3 ? x->dims[2] / heads : 0);
    Value *cosine = cache_rows(c, c->in[1], pos), *sine = cache_rows(c, c->in[2], pos);
    if (rotary && cosine->dims[3] != rotary / 2)
        call_fail(c, "rotary_embedding_dim is %lld; the cache has %lld angles", (long long)rotary,
                  (long long)cosine->dims[3]);
    c->out[0] = rotary_back(c, rotate(c, y, cosine, sine, call_int(c, "interleaved", 0) != 0), x);
}

/* Positions [B,S] or [1] (the first of a run) as indices of cache rows. */
static Value *microsoft_positions(OpCall *c, Value *pos, Value *x) {
    pos = em_cast(c, pos, DT_I64);
    if (em_rank(c, pos) == 2)
        return pos;
    if (pos->rank == 1 && pos->dims[0] == 1)
        return em_binary(c, OP_ADD, em_iota(c, x, 1), pos);
    call_fail(c, "position_ids must be [B,S] or one number, found %s", call_value_text(c, pos));
}

/* com.microsoft.RotaryEmbedding: x, positions, cos cache, sin cache. */
void read_rotary_microsoft(OpCall *c) {
    Value *x = c->in[0];
    int64_t heads = call_int(c, "num_heads", 0), rotary = call_int(c, "rotary_embedding_dim", 0),
            size;
    if (em_rank(c, c->in[2]) != 2 || em_rank(c, x) < 3 || x->dims[x->rank - 1] < 0)
        call_fail(c, "expected x [B,S,N*H] or [B,N,S,H] and a cache [max,angles]");
    size = x->rank == 4 ? x->dims[3] : heads > 0 ? x->dims[2] / heads : 2 * c->in[2]->dims[1];
    if (rotary && c->in[2]->dims[1] != rotary / 2)
        call_fail(c, "rotary_embedding_dim is %lld; the cache has %lld angles", (long long)rotary,
                  (long long)c->in[2]->dims[1]);
    Value *y = rotary_view(c, x, heads, size);
    Value *pos = microsoft_positions(c, c->in[1], y);
    y = rotate(c, y, cache_rows(c, c->in[2], pos), cache_rows(c, c->in[3], pos),
               call_int(c, "interleaved", 0) != 0);
    c->out[0] = rotary_back(c, em_scale(c, y, call_float(c, "scale", 1)), x);
}

/* GroupQueryAttention's extra key: a score a head, or 0 with smooth_softmax. */
static Value *sink_of(OpCall *c, Value *given, Value *q) {
    if (given)
        return em_reshape(c, em_cast(c, given, q->dtype), 4, (int64_t[]){1, q->dims[1], 1, 1});
    return call_int(c, "smooth_softmax", 0) > 0 ? em_like(c, q, 0) : NULL;
}

/* com.microsoft.GroupQueryAttention: causal; q, k, v apart or packed in q; past; rotary from the
 * cache. */
void read_group_query_attention(OpCall *c) {
    Value *in[12] = {NULL}, *x[3];
    int64_t heads = call_int(c, "num_heads", 0), kv = call_int(c, "kv_num_heads", 0);
    for (int i = 0; i < c->nin && i < 12; i++)
        in[i] = c->in[i];
    if (em_rank(c, in[0]) != 3 || in[0]->dims[2] < 0 || heads < 1 || kv < 1 || heads % kv)
        call_fail(c, "query must be [B,S,hidden] and num_heads a multiple of kv_num_heads");
    for (int i = 12; i < c->nin; i++)
        if (c->in[i])
            call_fail(c, "operand %d (quantised caches, norms of q and k) is not supported", i);
    if (!call_int(c, "causal", 1) || call_int(c, "qk_output", 0))
        call_fail(c, "causal = 0 and qk_output are not supported");
    for (int i = 0; i < 3; i++)
        x[i] = in[i];
    if (!in[1]) {
        int64_t size = in[0]->dims[2] / (heads + 2 * kv), at = 0,
                n[3] = {heads * size, kv * size, kv * size};
        for (int i = 0; i < 3; at += n[i++])
            x[i] = em_slice(c, in[0], 2, at, at + n[i], 1);
    }
    for (int i = 0; i < 3; i++)
        x[i] = split_heads(c, x[i], i ? kv : heads);
    Value *offset = in[3] ? em_size0(c, in[3], 2) : NULL;
    if (call_int(c, "do_rotary", 0)) {
        if (!in[7] || !in[8])
            call_fail(c, "do_rotary needs cos_cache and sin_cache");
        Value *pos = in[9] ? em_cast(c, in[9], DT_I64) : em_iota(c, x[0], 2);
        if (!in[9] && offset)
            pos = em_binary(c, OP_ADD, pos, offset);
        for (int i = 0; i < 2; i++) {
            Value *y = em_transpose(c, x[i], (int64_t[]){0, 2, 1, 3});
            y = rotate(c, y, cache_rows(c, in[7], pos), cache_rows(c, in[8], pos),
                       call_int(c, "rotary_interleaved", 0) != 0);
            x[i] = em_transpose(c, y, (int64_t[]){0, 2, 1, 3});
        }
    }
    for (int i = 1; i < 3; i++)
        if (in[2 + i])
            x[i] = em_concat(c, (Value *[]){in[2 + i], x[i]}, 2, 2);
    Value *bias =
        add_optional(c, additive(c, causal_mask(c, x[0], x[1], offset), x[0]->dtype), in[10]);
    int64_t window = call_int(c, "local_window_size", -1); /* itself and those behind it */
    if (window > 0)
        bias = add_optional(
            c, bias, additive(c, window_mask(c, x[0], x[1], offset, window - 1, -1), x[0]->dtype));
    double scale = call_float(c, "scale", 0);
    Scores s;
    Value *y = attend(c, x[0], repeat_heads(c, x[1], heads), repeat_heads(c, x[2], heads), bias,
                      scale != 0 ? scale : 1 / sqrt((double)x[0]->dims[3]),
                      call_float(c, "softcap", 0), sink_of(c, in[11], x[0]), &s);
    Value *out[] = {merge_heads(c, y), x[1], x[2]};
    for (int i = 0; i < c->nout && i < 3; i++)
        c->out[i] = out[i];
}

/* com.microsoft.Attention: x [B,S,D], weights [D,3*N*H], bias, mask of keys [B,L], past
 * [2,B,N,P,H], bias of scores. */
void read_attention_microsoft(OpCall *c) {
    Value *in[7] = {NULL}, *x[3], *past[2] = {NULL};
    for (int i = 0; i < c->nin; i++)
        in[i] = c->in[i];
    int64_t heads = call_int(c, "num_heads", 0), at = 0, n[3];
    const int64_t *given;
    int sizes = call_ints(c, "qkv_hidden_sizes", &given);
    if (em_rank(c, in[0]) != 3 || em_rank(c, in[1]) != 2 || in[1]->dims[1] < 3)
        call_fail(c, "expected x [B,S,D] and weights [D,3*N*H]");
    if (sizes > 0 && sizes != 3)
        call_fail(c, "qkv_hidden_sizes has %d entries; expected 3", sizes);
    if (call_int(c, "do_rotary", 0) || call_int(c, "past_present_share_buffer", 0))
        call_fail(c, "do_rotary and past_present_share_buffer are not supported");
    Value *all = em_matmul(c, in[0], in[1], false, false);
    all = in[2] ? em_binary(c, OP_ADD, all, in[2]) : all;
    for (int i = 0; i < 3; at += n[i++]) {
        n[i] = sizes > 0 ? given[i] : in[1]->dims[1] / 3;
        x[i] = split_heads(c, em_slice(c, all, 2, at, at + n[i], 1), heads);
    }
    if (in[4] && em_rank(c, in[4]) != 5)
        call_fail(c, "past must be [2,B,N,P,H], found %s", call_value_text(c, in[4]));
    for (int i = 0; in[4] && i < 2; i++)
        past[i] = em_drop_axis(c, em_slice(c, in[4], 0, i, i + 1, 1), 0);
    Value *offset = past[0] ? em_size0(c, past[0], 2) : NULL;
    for (int i = 0; i < 2; i++)
        if (past[i])
            x[1 + i] = em_concat(c, (Value *[]){past[i], x[1 + i]}, 2, 2);
    Value *bias = in[5];
    if (in[3]) { /* 0 hides a key */
        if (em_rank(c, in[3]) != 2)
            call_fail(c, "mask_index must be [B,L], found %s", call_value_text(c, in[3]));
        Value *seen = em_insert_axis(c, em_insert_axis(c, em_cast(c, in[3], DT_BOOL), 1), 1);
        Value *hidden = em_f(c, x[0]->dtype, call_float(c, "mask_filter_value", -10000));
        bias = add_optional(c, bias, em_where(c, seen, em_like(c, hidden, 0), hidden));
    }
    if (call_int(c, "unidirectional", 0))
        bias = add_optional(c, bias, additive(c, causal_mask(c, x[0], x[1], offset), x[0]->dtype));
    double scale = call_float(c, "scale", 0);
    Scores s;
    c->out[0] =
        merge_heads(c, attend(c, x[0], x[1], x[2], bias,
                              scale != 0 ? scale : 1 / sqrt((double)x[0]->dims[3]), 0, NULL, &s));
    if (c->nout > 1 && c->wanted[1])
        c->out[1] =
            em_concat(c, (Value *[]){em_insert_axis(c, x[1], 0), em_insert_axis(c, x[2], 0)}, 2, 0);
}
