/* graph.h: what a program is. SSA Graph of Nodes and Values; see ops.def for the operations.
 *
 * - A Node is one operation with operands, results and attributes, and knows the user's node it
 * came from.
 * - A Value is one result: element type, shape, users. Dims >= 0 are known; a negative dim is a
 * symbol, -(k+1) for graph->symbols[k]: an input's named dim ("batch"), or a fresh one for a size
 * that only data decide.
 * - Parameters are OP_PARAM nodes; they keep their ONNX initializer names to the end.
 * - Nodes form a list in topological order. Everything lives in the Graph's arena.
 * - Facts of passes live in side tables indexed by node->id / value->id (dense below
 * graph->next_node / next_value). */
#ifndef STGCC_IR_GRAPH_H
#define STGCC_IR_GRAPH_H

#include "ir/tensor.h"

typedef enum {
#define OP(ID, ...) OP_##ID,
#include "ir/ops.def"
#undef OP
    OP_COUNT,
} Op;

typedef enum {
#define ATTR(ID, ...) AT_##ID,
#include "ir/attrs.def"
#undef ATTR
    AT_COUNT,
} AttrKey;

typedef enum { ATTR_INT, ATTR_FLOAT, ATTR_INTS, ATTR_STR, ATTR_TENSOR } AttrKind;

typedef struct Attr {
    AttrKey key;
    union {
        int64_t i;
        double f;
        struct {
            int n;
            int64_t *at;
        } ints;
        const char *s;
        Tensor *t;
    };
} Attr;

typedef struct Node Node;
typedef struct Value Value;
typedef struct Graph Graph;

/* Where a node comes from, for messages: the user's node. Shared by all nodes derived from it. */
typedef struct Source {
    const char
        *name; /* ONNX node name, or its first output when it has none; "" for nodes of our own */
    const char *op_type; /* ONNX op type, or what made it ("loss", "stgc", "adamw") */
} Source;

typedef struct Use {
    Node *node;
    int operand;
} Use;

struct Value {
    int id;
    Node *def;
    int index; /* which result of def */
    DType dtype;
    int rank; /* -1: not inferred yet */
    int64_t dims[MAX_RANK];
    const char *name; /* ONNX name, for people; may be NULL */
    VEC(Use) uses;
};

struct Node {
    int id;
    Op op;
    int nin, nout, nattr;
    Value **in;  /* an absent optional operand is NULL */
    int *use_at; /* where operand i stands in in[i]->uses; kept by graph.c */
    Value **out;
    Attr *attrs;
    const Source *src;
    Node *prev, *next;
    Graph *graph;
};

/* What an OP_PARAM is (attribute KIND). */
typedef enum {
    PARAM_WEIGHT, /* float initializer of two or more elements: trainable unless frozen */
    PARAM_FROZEN, /* a weight the recipe freezes */
    PARAM_STATE,  /* of the optimizer: starts at zero, named WEIGHT.m, WEIGHT.v */
    PARAM_GRAD,   /* accumulated gradient of micro-batches: WEIGHT.acc */
} ParamKind;

typedef struct GraphOutput {
    const char *name;
    Value *value;
} GraphOutput;

/* At the end of a step `param` (an OP_PARAM's value) takes the bytes of `value`. */
typedef struct GraphUpdate {
    Value *param;
    Value *value;
} GraphUpdate;

struct Graph {
    Arena arena;
    Node *first, *last;
    int next_node, next_value;
    VEC(Value *) inputs; /* results of OP_INPUT, in the model's order */
    VEC(GraphOutput) outputs;
    VEC(GraphUpdate) updates;
    VEC(const char *) symbols; /* names of symbolic dims */
    const char *name;
};

/* ---- the op table ---- */
enum {
    OPF_ELEM = 1 << 0,    /* elementwise with numpy broadcasting */
    OPF_VIEW = 1 << 1,    /* same elements in the same order: reshape */
    OPF_LEAF = 1 << 2,    /* input, param, const */
    OPF_COMMUTE = 1 << 3, /* operands 0 and 1 may be swapped */
    OPF_EFFECT = 1 << 4,  /* not removed although unused */
};
typedef struct OpInfo {
    const char *name;         /* mnemonic of the text form */
    int min_in, max_in, nout; /* max_in -1: any number; nout 0: given when the node is made */
    unsigned flags;
} OpInfo;
extern const OpInfo op_info[OP_COUNT];
typedef struct AttrInfo {
    const char *name;
    AttrKind kind;
} AttrInfo;
extern const AttrInfo attr_info[AT_COUNT];
Op op_parse(const char *mnemonic); /* OP_COUNT if unknown */

/* ---- building ---- */
Graph *graph_new(const char *name);
void graph_free(Graph *g);
/* Copy that shares tensors of 4 KiB and more: free it before g. Ids are renumbered densely in list
 * order. map (optional, old value id -> new Value) must have next_value slots. */
Graph *graph_clone(const Graph *g, Value **map);

/* Where new nodes go: before `at` (NULL: at the end). Builder calls use the graph's cursor. */
typedef struct Builder {
    Graph *g;
    Node *before;
    const Source *src;
} Builder;
Builder builder_at_end(Graph *g, const Source *src);
Builder builder_before(Node *n); /* source = n's */
Builder builder_after(Node *n);
const Source *graph_source(Graph *g, const char *name, const char *op_type);

/* Makes a node; operands may be NULL where optional; results get fresh Values with rank -1 until
 * inferred (value_infer). */
Node *build_node(Builder *b, Op op, Value *const *in, int nin, int nout);
void node_set_int(Node *n, AttrKey k, int64_t v);
void node_set_float(Node *n, AttrKey k, double v);
void node_set_ints(Node *n, AttrKey k, const int64_t *v, int count);
void node_set_str(Node *n, AttrKey k, const char *s);
void node_set_tensor(Node *n, AttrKey k, Tensor *t);
void node_set_attrs(Node *n, const Attr *attrs,
                    int nattrs);                 /* each as the function of its kind does */
const Attr *node_attr(const Node *n, AttrKey k); /* NULL if absent */
int64_t node_int(const Node *n, AttrKey k, int64_t absent);
double node_float(const Node *n, AttrKey k, double absent);
const char *node_str(const Node *n, AttrKey k, const char *absent);
/* Number of ints (0 if absent); *at points into the node. */
int node_ints(const Node *n, AttrKey k, const int64_t **at);

/* ---- editing: keeps use lists right ---- */
void node_set_in(Node *n, int i, Value *v);
void value_replace(Value *old, Value *with); /* all uses, outputs and updates */
void node_remove(Node *n);                   /* no result may have uses */
void node_move_before(Node *n, Node *at);
void graph_add_output(Graph *g, const char *name, Value *v);
void graph_add_update(Graph *g, Value *param, Value *v);
/* True if v is a graph output or update source. */
bool value_is_output(const Value *v);
/* Removes nodes whose results nothing uses (inputs and params stay unless drop_params). Returns
 * whether anything went. */
bool graph_dce(Graph *g);
/* Re-sorts the list topologically (stable). False if there is a cycle. */
bool graph_sort(Graph *g);

#define FOR_NODES(n, g) for (Node *n = (g)->first; n; n = n->next)
/* Safe against removal of n. */
#define FOR_NODES_SAFE(n, g) \
    for (Node *n = (g)->first, *n##_next = n ? n->next : NULL; n; \
         n = n##_next, n##_next = n ? n->next : NULL)

/* ---- symbols ---- */
int64_t
graph_symbol(Graph *g,
             const char *name); /* the dim of a named symbol, made if new; NULL: a fresh one */
const char *dim_name(const Graph *g, int64_t dim); /* of a negative dim */
/* Replaces symbol `dim` by `size` in all values. The caller re-infers. */
void graph_bind(Graph *g, int64_t dim, int64_t size);

/* ---- small questions ---- */
bool value_is_const(const Value *v);
const Tensor *value_const(const Value *v); /* the tensor of an OP_CONST (or NULL) */
bool value_is_param(const Value *v);
const char *param_name(const Value *param);
bool value_known(const Value *v);    /* rank and all dims known */
int64_t value_count(const Value *v); /* elements; -1 if not known */
bool same_dims(const Value *a, const Value *b);

/* ---- the op builders passes use; each infers its result. `b` is the Builder. Broadcasting is
 * numpy's. ---- */
Value *op_const(Builder *b, const Tensor *t);
Value *op_const_f(Builder *b, DType t, double v);          /* scalar */
Value *op_const_i(Builder *b, int64_t v);                  /* i64 scalar */
Value *op_const_ints(Builder *b, const int64_t *v, int n); /* i64[n] */
Value *op_full(Builder *b, DType t, double v, int rank,
               const int64_t *dims); /* expand of a scalar */
Value *op_param(Builder *b, const char *name, ParamKind kind,
                Tensor *init); /* init NULL: zeros of the shape set by the caller */
Value *op_unary(Builder *b, Op op, Value *x);
Value *op_binary(Builder *b, Op op, Value *x, Value *y);
Value *op_where(Builder *b, Value *c, Value *x, Value *y);
Value *op_cast(Builder *b, Value *x, DType to); /* x itself if it has that type */
Value *op_reshape(Builder *b, Value *x, int rank,
                  const int64_t *dims); /* x itself if equal; all dims known (no -1) */
Value *op_transpose(Builder *b, Value *x, const int64_t *perm);
Value *op_expand(Builder *b, Value *x, int rank, const int64_t *dims);
Value *op_slice(Builder *b, Value *x, int axis, int64_t start, int64_t end, int64_t step);
Value *op_concat(Builder *b, Value *const *x, int n, int axis);
Value *op_reduce(Builder *b, Op op, Value *x, const int64_t *axes, int naxes, bool keepdims);
Value *op_gather(Builder *b, Value *x, Value *idx, int axis);
Value *op_matmul(Builder *b, Value *x, Value *y, bool trans_a, bool trans_b);
Value *op_softmax(Builder *b, Value *x, int axis);
/* Any other op: operands, then inferred. Attributes through `attrs` (n of them). Returns the node.
 */
Node *op_node(Builder *b, Op op, Value *const *in, int nin, const Attr *attrs, int nattrs);

#endif
