/* onnx_put.h: the ONNX graph under construction, and what the emit_* hooks share. Private to
 * codegen/onnx*.c.
 *
 * A hook reads one Node and puts ONNX nodes; names of ONNX values are plain strings. `emit_name`
 * gives the name of an operand, `emit_result` tells the name of a result. Nodes nobody reads are
 * dropped at the end, so hooks need not care. */
#ifndef STGCC_CODEGEN_ONNX_PUT_H
#define STGCC_CODEGEN_ONNX_PUT_H

#include "codegen/onnx.h"
#include "onnx.pb-c.h"

typedef VEC(Onnx__NodeProto *) NodeProtos;
typedef VEC(Onnx__TensorProto *) TensorProtos;
typedef VEC(Onnx__ValueInfoProto *) ValueInfos;

/* Rows of one dispatch: what by-expert subgraphs need. */
typedef struct EmitLayer {
    int index, experts;
    int64_t rows;           /* the planned bound R */
    bool full;              /* every row is routed: no padding, no -1 */
    const char *offsets;    /* i64[E+1] */
    const char *row_expert; /* i64[R] */
    const char *counts;     /* i64[E] */
    const char **cut;       /* offsets one by one, i64[1] each; NULL until asked for */
    const char **count;     /* counts one by one, f32[1] each; likewise */
    const char *pads[3];    /* for rank 1 and 2: pads that fill up to R rows */
    const char *members;    /* f32[E,R]: 1 where a row is the expert's */
    int linears;            /* numbers by-expert products */
} EmitLayer;

/* A value that exists by expert; joined only if somebody asks for it as a whole. */
typedef struct EmitPieces {
    EmitLayer *layer;
    bool stacked;    /* pieces of an [E,…] stack; else of rows [R,…] */
    int only;        /* stacked: all (-1), or one expert's with a leading axis of 1 */
    const char **at; /* by expert */
} EmitPieces;

typedef struct Emit {
    const Graph *g;
    const OnnxOptions *o;
    Diag *d, *io;
    Arena arena;
    NodeProtos nodes;
    TensorProtos initializers;
    ValueInfos inputs, outputs, infos;
    StrMap node_names, value_names; /* taken -> counter */
    StrMap final_names;             /* value name -> the name it gets in the end */
    StrMap producers;               /* value name -> its NodeProto */
    StrMap constants;               /* content -> name */
    StrMap memo;                    /* "how:name" -> name or array, see emit_memo */
    const char **name;              /* by value id; NULL: not there yet, or in pieces */
    EmitPieces **pieces;            /* by value id */
    EmitLayer **layers;             /* by value id of a dispatch's offsets */
    bool *forward;                  /* by node id: part of the forward half */
    int *stgc_layer;                /* by node id: layer + 1 of what inject_stgc made, 0: none */
    const char *scope;              /* of new nodes: a name, or a folder ending in '/' */
    const Node *node;               /* being emitted */
    bool step;                      /* the graph has updates */
} Emit;

typedef void EmitHook(Emit *E, const Node *n);
#define OP(ID, m, a, b, c, f, infer, eval, grad, lower, emit) EmitHook emit_##emit;
#include "ir/ops.def"
#undef OP

/* ---- nodes ---- */
Onnx__NodeProto *put_node(Emit *E, const char *op, const char *const *in, int nin, int nout);
/* One node of one result: its name. Operands may be "" where optional. */
#define PUT(E, op, ...) \
    put_node((E), (op), (const char *[]){__VA_ARGS__}, COUNT_OF(((const char *[]){__VA_ARGS__})), \
             1) \
        ->output[0]
/* The same with attribute axis. */
#define PUT_AXIS(E, op, axis, ...) \
    put_int((E), \
            put_node((E), (op), (const char *[]){__VA_ARGS__}, \
                     COUNT_OF(((const char *[]){__VA_ARGS__})), 1), \
            "axis", (axis)) \
        ->output[0]
/* Attributes; return the node. */
Onnx__NodeProto *put_int(Emit *E, Onnx__NodeProto *n, const char *name, int64_t v);
Onnx__NodeProto *put_ints(Emit *E, Onnx__NodeProto *n, const char *name, const int64_t *v,
                          int count);
Onnx__NodeProto *put_str(Emit *E, Onnx__NodeProto *n, const char *name, const char *v);

/* ---- constants: initializers, one for equal contents ---- */
const char *put_tensor(Emit *E, const Tensor *t, const char *wish);
const char *put_i(Emit *E, int64_t v);                  /* i64 scalar */
const char *put_list(Emit *E, const int64_t *v, int n); /* i64[n] */
const char *put_f(Emit *E, DType t, double v);          /* scalar of any type */
const char *put_iota(Emit *E, int64_t n, int64_t div, int64_t mod, int rank,
                     const int64_t *dims); /* i / div % mod */
#define PUT_LIST(E, ...) \
    put_list((E), (const int64_t[]){__VA_ARGS__}, COUNT_OF(((const int64_t[]){__VA_ARGS__})))

/* ---- spellings ---- */
const char *put_cast(Emit *E, const char *x, DType from, DType to); /* x itself if equal */
const char *put_reshape(Emit *E, const char *x, int rank, const int64_t *dims);
const char *put_transpose(Emit *E, const char *x, int rank, const int64_t *perm);
const char *put_slice(Emit *E, const char *x, int axis, const char *start,
                      const char *end); /* i64[1] each */
/* Sum, Max, …: axes as the opset wants them. naxes 0: x itself. */
const char *put_reduce(Emit *E, const char *op, const char *x, const int64_t *axes, int naxes,
                       bool keep);
/* updates added up at places of `axis` of zeros[dims] that idx names: transpose of Gather. */
const char *put_scatter_add(Emit *E, const char *updates, const char *idx, DType t, int rank,
                            const int64_t *dims, int axis, int idx_rank, const int64_t *idx_dims);

/* ---- operands and results ---- */
const char *emit_name(Emit *E, const Value *v);
const char *emit_as(Emit *E, const Value *v, DType t); /* cast, once a value */
void emit_result(Emit *E, const Value *v, const char *name);
void emit_result_from(Emit *E, const Value *v, const char *name,
                      DType computed); /* cast to v's type first */
/* The type that engines compute arithmetic of t in: f16 as f32, small integers as i32. */
DType emit_compute_type(DType t);
/* Reports that the node cannot be written; names the user's node. */
void emit_fail(Emit *E, const Node *n, const char *fmt, ...) PRINTF_LIKE(3, 4);
/* A place for something made once: the slot of (how, name), NULL inside at first. */
void **emit_memo(Emit *E, const char *how, const char *name);
const char *emit_format(Emit *E, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* ---- pieces (onnx_moe.c) ---- */
const char *emit_join(Emit *E, const Value *v); /* the whole of a value in pieces */
/* Rows v[R] that have a name become a value by expert of that name, "stgc/layer_I/expert_E/NAME",
 * and are read as such. */
void emit_named_rows(Emit *E, const Value *v, int layer);
/* ---- the step's hyper f32[8] from input "step" (onnx_optimizer.c) ---- */
bool emit_is_hyper(const Emit *E, const Node *n); /* the input that training fills every step */
const char *emit_hyper(Emit *E);
const char *emit_step_next(Emit *E);

/* ---- writing (onnx_write.c) ---- */
Onnx__ValueInfoProto *onnx_value_info(Arena *a, const char *name, DType t, int rank,
                                      const int64_t *dims);
bool onnx_write_file(Emit *E, Onnx__ModelProto *m, const char *path);

#endif
