/* onnx_op_packed.c: weights of 2, 4 or 8 bits in blocks, as ONNX Runtime's builders pack them into
 * bytes. They are constants, so they are unpacked while importing: w = (q - zero) scale, where the
 * zero is 2^(bits-1) unless it is given. What remains are ordinary products and look-ups, which
 * train everything around them; the weights themselves stay as they are.
 *
 * R rows, K numbers a row, J blocks a row. */
#include <string.h>

#include "frontend/onnx_ops.h"

/* Number i of a row: low bits of a byte first. */
static int unpacked(const uint8_t *row, int64_t i, int bits) {
    return row[i * bits / 8] >> (i * bits % 8) & ((1 << bits) - 1);
}

static int64_t packed_bytes(int64_t n, int bits) {
    return (n * bits + 7) / 8;
}

const Tensor *em_packed(OpCall *c, int i, const char *what) {
    const Tensor *t = i < c->nin && c->in[i] ? em_fixed(c, c->in[i]) : NULL;
    if (i < c->nin && c->in[i] && !t)
        call_fail(c, "%s depend on data; packed weights and what belongs to them must be constant",
                  what);
    return t;
}

static int packed_bits(OpCall *c, int64_t bits) {
    if (bits != 2 && bits != 4 && bits != 8)
        call_fail(c, "numbers of %lld bits are not supported; expected 2, 4 or 8", (long long)bits);
    return (int)bits;
}

Tensor *em_unpack(OpCall *c, const Packed *p) {
    int64_t blocks = p->block ? (p->k + p->block - 1) / p->block : 1,
            row_bytes = p->row_bytes ? p->row_bytes : packed_bytes(p->k, p->bits);
    const Tensor *q = p->q, *scale = p->scale, *zero = p->zero;
    bool zero_packed = zero && !dtype_is_float(zero->dtype);
    /* zeros of whole rows are packed along the rows, those of blocks along the blocks */
    int64_t zero_run = p->block ? blocks : p->zero_run,
            zero_bytes = zero_packed ? packed_bytes(zero_run, p->bits) : 0;
    if (!scale || tensor_count(scale) != p->rows * blocks || !dtype_is_float(scale->dtype))
        call_fail(c, "the scales must be %lld floats, one for each block of each row",
                  (long long)(p->rows * blocks));
    if ((q->dtype != DT_U8 && q->dtype != DT_I8) || tensor_count(q) != p->rows * row_bytes)
        call_fail(c, "the packed weights must be %lld bytes: %lld rows of %lld numbers",
                  (long long)(p->rows * row_bytes), (long long)p->rows, (long long)p->k);
    if (zero && tensor_count(zero) !=
                    (zero_packed ? p->rows * blocks / zero_run * zero_bytes : p->rows * blocks))
        call_fail(c, "%lld zero points do not fit %lld rows of %lld blocks",
                  (long long)tensor_count(zero), (long long)p->rows, (long long)blocks);
    Tensor *w = tensor_new(&c->im->g->arena, p->type, p->rank, p->dims);
    for (int64_t r = 0; r < p->rows; r++)
        for (int64_t k = 0; k < p->k; k++) {
            int64_t at = r * blocks + (p->block ? k / p->block : 0);
            double z = 1 << (p->bits - 1);
            if (zero_packed)
                z = unpacked((const uint8_t *)zero->data + at / zero_run * zero_bytes,
                             at % zero_run, p->bits);
            else if (zero)
                z = tensor_get_f(zero, at);
            int v = unpacked((const uint8_t *)q->data + r * row_bytes, k, p->bits);
            tensor_set_f(w, r * p->k + k, (v - z) * tensor_get_f(scale, at));
        }
    return w;
}

static int64_t positive_attr(OpCall *c, const char *name, int64_t absent) {
    int64_t v = call_int(c, name, absent);
    if (v < 1 || v > (int64_t)1 << 32)
        call_fail(c, "%s is %lld", name, (long long)v);
    return v;
}

/* com.microsoft.MatMulNBits: A[…,K], B u8[N,J,bytes of a block], scales, zeros?, group of a
 * column?, bias? -> A B' + bias */
void read_matmul_nbits(OpCall *c) {
    int bits = packed_bits(c, call_int(c, "bits", 4));
    int64_t n = positive_attr(c, "N", 0), k = positive_attr(c, "K", 0),
            block = positive_attr(c, "block_size", 0), blocks = (k + block - 1) / block;
    if (c->nin > 4 && c->in[4])
        call_fail(c, "g_idx (columns in an order of their own) is not supported");
    if (call_int(c, "weight_prepacked", 0))
        call_fail(c, "weights packed for one device cannot be read; export without prepacking");
    Packed p = {.q = em_packed(c, 1, "the weights"),
                .scale = em_packed(c, 2, "the scales"),
                .zero = em_packed(c, 3, "the zero points"),
                .rows = n,
                .k = k,
                .block = block,
                .bits = bits,
                .row_bytes = blocks * packed_bytes(block, bits),
                .type = c->in[0]->dtype,
                .rank = 2,
                .dims = {n, k}};
    Value *y = em_matmul(c, c->in[0], em_const(c, em_unpack(c, &p)), false, true);
    c->out[0] = c->nin > 5 && c->in[5] ? em_binary(c, OP_ADD, y, c->in[5]) : y;
}

/* The element type of an operand as the file has it: 4-bit types are 8-bit ones in the graph. */
static int file_type(OpCall *c, int i) {
    const Onnx__GraphProto *g = c->im->model->graph;
    for (size_t k = 0; k < g->n_initializer; k++)
        if (!strcmp(g->initializer[k]->name, c->node->input[i]))
            return g->initializer[k]->data_type;
    return dtype_to_onnx(c->in[i]->dtype);
}

/* com.microsoft.GatherBlockQuantized: rows of a table of packed numbers; bytes hold numbers of
 * `bits` bits along the last axis, 4-bit types one each. */
void read_gather_block_quantized(OpCall *c) {
    enum { ONNX_U8 = 2 };
    const Tensor *q = em_packed(c, 0, "the table"), *scale = em_packed(c, 2, "the scales"),
                 *zero = em_packed(c, 3, "the zero points");
    int rank = q->rank, type = file_type(c, 0), bits = 8;
    bool bytes = type == ONNX_U8;
    if (rank < 1)
        call_fail(c, "the table is a scalar");
    int axis = em_axis(c, call_int(c, "quantize_axis", 1), rank),
        gather = em_axis(c, call_int(c, "gather_axis", 0), rank);
    int64_t block = positive_attr(c, "block_size", 128);
    if (bytes)
        bits = packed_bits(c, call_int(c, "bits", 4));
    if (axis != rank - 1 || gather == axis)
        call_fail(c, "only tables quantised along their last axis and read along another are "
                     "supported");
    Packed p = {.q = q,
                .scale = scale,
                .zero = zero,
                .block = block,
                .bits = bits,
                .type = scale->dtype,
                .rank = rank};
    memcpy(p.dims, q->dims, sizeof p.dims);
    p.dims[axis] = q->dims[axis] * (bytes ? 8 / bits : 1);
    p.k = p.dims[axis];
    p.rows = p.k ? dims_count(p.dims, rank) / p.k : 0;
    Tensor *w;
    if (bytes) {
        w = em_unpack(c, &p);
    } else { /* a number each; no zero point means 0 */
        int64_t blocks = (p.k + block - 1) / block;
        if (tensor_count(scale) != p.rows * blocks ||
            (zero && tensor_count(zero) != p.rows * blocks))
            call_fail(c, "scales and zero points must be one for each of %lld blocks",
                      (long long)(p.rows * blocks));
        w = tensor_new(&c->im->g->arena, p.type, rank, p.dims);
        for (int64_t i = 0; i < p.rows * p.k; i++) {
            int64_t at = i / p.k * blocks + i % p.k / block;
            tensor_set_f(w, i,
                         (tensor_get_f(q, i) - (zero ? tensor_get_f(zero, at) : 0)) *
                             tensor_get_f(scale, at));
        }
    }
    c->out[0] = em_gather(c, em_const(c, w), em_cast(c, c->in[1], DT_I64), gather);
}
