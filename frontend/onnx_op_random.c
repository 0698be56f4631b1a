/* onnx_op_random.c: operators that draw random numbers. A model is compiled for exact and
 * repeatable steps, so by default each draw is its mean (noise off): jitter leaves x alone, Gumbel
 * noise moves all logits alike, a random choice among equals takes the first. With noise: seeded a
 * draw takes numbers that depend on the recipe's seed, the node and the position only: every step
 * sees the same ones. */
#include <math.h>
#include <string.h>

#include "frontend/onnx_ops.h"

enum { TABLE = 1 << 14 };

/* SplitMix64 (Steele, Lea, Flood 2014); 53 bits of it as a number in (0, 1). */
static double draw_uniform(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return ((double)(z >> 11) + 0.5) * 0x1p-53;
}

/* Box and Muller. */
static double draw_normal(uint64_t *state) {
    double radius = sqrt(-2 * log(draw_uniform(state)));
    return radius * cos(2 * 3.14159265358979323846 * draw_uniform(state));
}

typedef struct Noise {
    bool normal;
    double mean, spread; /* standard deviation, or half the width */
} Noise;

/* TABLE draws, taken in turn by the elements of a tensor of shape s. */
static Value *seeded(OpCall *c, const Noise *n, DType type, const ShapeOf *s) {
    const char *label = node_label(c->node);
    uint64_t state = hash_bytes(label, strlen(label), c->im->limits->noise_seed);
    Tensor *t = tensor_new(&c->im->g->arena, type, 1, (int64_t[]){TABLE});
    for (int i = 0; i < TABLE; i++)
        tensor_set_f(
            t, i,
            n->mean + n->spread * (n->normal ? draw_normal(&state) : 2 * draw_uniform(&state) - 1));
    Value *shape = em_shape_vector(c, s);
    Value *count = em_reduce(c, OP_REDUCE_PROD, shape, (int64_t[]){0}, 1, false);
    Value *at = em_node(c, OP_RANGE, (Value *[]){em_i(c, DT_I64, 0), count, em_i(c, DT_I64, 1)}, 3,
                        1, NULL, 0)
                    ->out[0];
    at = em_binary(c, OP_MOD, at, em_i(c, DT_I64, TABLE));
    return em_view(c, em_gather(c, em_const(c, t), at, 0), s);
}

/* RandomNormal, RandomUniform and their -Like forms; row->arg: 1 for a normal distribution. */
void read_random(OpCall *c) {
    Noise n = {.normal = c->row->arg == 1,
               .mean = call_float(c, "mean", 0),
               .spread = call_float(c, "scale", 1)};
    DType type = dtype_of_onnx((int)call_int(c, "dtype", c->nin ? 0 : 1));
    if (!n.normal) {
        double low = call_float(c, "low", 0), high = call_float(c, "high", 1);
        n.mean = (low + high) / 2;
        n.spread = (high - low) / 2;
    }
    if (type == DT_NONE && c->nin)
        type = c->in[0]->dtype;
    if (!dtype_is_float(type))
        call_fail(c,
                  "random numbers of this element type are not supported; expected a float type");
    ShapeOf s = {0};
    const int64_t *dims;
    int rank = c->nin ? -1 : call_ints(c, "shape", &dims);
    for (int i = 0; i < rank; i++) {
        if (dims[i] < 0)
            call_fail(c, "size %lld of axis %d is negative", (long long)dims[i], i);
        shape_add(c, &s, dims[i]);
    }
    if (c->nin)
        shape_add_axes(c, &s, c->in[0], 0, em_rank(c, c->in[0]));
    bool draw = c->im->limits && c->im->limits->noise_seed;
    diag_note(c->im->d, "node \"%s\" (%s) draws random numbers; %s",
              diag_safe(c->im->d, node_label(c->node)), diag_safe(c->im->d, c->node->op_type),
              draw ? "they are the same in every step (noise: seeded)"
                   : "each is its mean here (noise: seeded draws them)");
    c->out[0] = draw ? seeded(c, &n, type, &s) : em_spread(c, em_f(c, type, n.mean), &s);
}
