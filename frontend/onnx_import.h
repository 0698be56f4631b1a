/* onnx_import.h: what the parts of the importer share: scopes of names, frames of inlined
 * functions, one node being read.
 *
 * The way through: onnx_file.c unpacks, onnx_check.c checks the model as a whole, onnx_import.c
 * walks the nodes in order and hands each to its reader (onnx_table.c), readers build IR through
 * onnx_emit.c. A reader that meets a fault calls call_fail, which reports it and leaves the node by
 * longjmp: what it would have defined is marked failed, nodes that use it are skipped, and the walk
 * goes on, so that all faults are reported at once. Everything a reader makes lives in arenas. */
#ifndef STGCC_FRONTEND_ONNX_IMPORT_H
#define STGCC_FRONTEND_ONNX_IMPORT_H

#include <setjmp.h>

#include "frontend/onnx_file.h"
#include "ir/eval.h"

/* A sequence whose elements are known one by one while importing. */
typedef struct SeqValue {
    int n;
    Value **at;
} SeqValue;

/* What a name stands for. */
typedef struct Binding {
    Value *value;
    SeqValue *seq;
    bool failed; /* its node could not be read; reported already */
} Binding;

typedef struct Scope {
    StrMap names; /* -> Binding */
    struct Scope *parent;
    const char *prefix; /* of value and node names inside an inlined function; "" outside */
} Scope;

/* Opset versions in force; 0: domain not imported. */
typedef struct Opsets {
    int onnx, microsoft, ml, training;
} Opsets;

typedef struct FrameAttr {
    const char *name;
    const Onnx__AttributeProto *value;
} FrameAttr;

/* An inlined function's call, or the main graph (fn NULL). */
typedef struct Frame {
    const Onnx__FunctionProto *fn;
    Opsets opsets;
    FrameAttr *attrs; /* the function's attributes as this call gives them */
    int nattrs;
} Frame;

/* One integer of a small integer value, as far as it is known while sizes are symbols. */
typedef struct PartialInt {
    enum { PARTIAL_UNKNOWN, PARTIAL_CONST, PARTIAL_SYMBOL } kind;
    int64_t v; /* the number, or the symbolic dim */
} PartialInt;
enum { PARTIAL_MAX = 64 };
typedef struct Partial {
    int n;
    PartialInt *at;
} Partial;

/* A model-local function and what the checks found out about it. */
typedef struct FunctionInfo {
    const Onnx__FunctionProto *proto;
    Opsets opsets;
    int64_t expanded; /* nodes after inlining all it calls */
    enum { FN_NEW, FN_OPEN, FN_DONE } state;
} FunctionInfo;

typedef struct Import {
    Graph *g;
    Diag *d;
    const Onnx__ModelProto *model;
    const ImportLimits *limits;
    StrMap ops;       /* "Add" or "com.microsoft:MoE" -> first OpRow of that name */
    StrMap functions; /* function_key -> FunctionInfo */
    StrMap sizes;   /* symbol of an input -> its size, const int64_t *, as given by limits->sized */
    StrMap symbols; /* name of a dim -> its symbol, negated */
    Opsets opsets;  /* of the main graph */
    ExternalFiles external;
    Arena scratch;
    VEC(Partial *) partial;    /* by value id */
    VEC(Value *) shape_of;     /* by value id: its SHAPE node's result */
    VEC(Tensor *) evaluated;   /* by value id: constants computed on demand */
    int64_t read;              /* nodes so far */
    StrMap producers, weights; /* for messages, made when the first needs them */
    int searches;
    int64_t unrolled,
        loop_start; /* of those, in finished loops; `read` where the open loop began */
    bool in_loop;
} Import;

struct OpRow;

/* One ONNX node while it is read. */
typedef struct OpCall {
    Import *im;
    const Onnx__NodeProto *node;
    const struct OpRow *row;
    const Frame *frame;
    Scope *scope;
    int opset; /* version of the node's domain */
    int nin, nout;
    Value **in;     /* absent: NULL */
    SeqValue **seq; /* the sequence at input i, or NULL */
    Value **out;    /* the reader's results */
    SeqValue **out_seq;
    bool *wanted; /* output i has a name */
    Builder b;
    jmp_buf leave;
} OpCall;

typedef void OpReader(OpCall *c);

enum { OPSET_ANY = 1, OPSET_LATEST = 27 };

/* One spelling of one operator. `attrs` lists what the node may carry: "axis:int keepdims:int
 * perm:ints mode:string value:tensor body:graph alpha:float to:int!" (`!`: required). */
typedef struct OpRow {
    const char *domain, *op_type;
    int since, until; /* opset versions of the domain for which this row holds */
    int min_in, max_in, min_out, max_out; /* max -1: any number */
    OpReader *read;
    int arg; /* for the reader: which Op, which variant */
    const char *attrs;
} OpRow;
extern const OpRow op_rows[];
extern const int op_row_count;
/* The row of a node's operator for `version`; NULL if there is none. */
const OpRow *op_row_find(const Import *im, const char *domain, const char *op_type, int version);
void op_rows_index(Import *im);

/* ---- onnx_check.c ---- */
/* Faults of the model as a whole: versions, names, order, functions, operators. All are reported;
 * false if there is no point in reading on: operators that are unknown are skipped, so that the
 * faults of other nodes are reported too. */
bool onnx_check_model(Import *im);
/* Versions that a list of opset_import declares; false with diagnostics (`where` names the list).
 */
bool opsets_read(Import *im, Onnx__OperatorSetIdProto **list, size_t n, Opsets *o,
                 const char *where);
/* 0: not imported; -1: no domain of ours. */
int opsets_version(const Opsets *o, const char *domain);
bool domain_is_onnx(const char *domain); /* "", "ai.onnx" or absent */
FunctionInfo *function_find(const Import *im, const Onnx__NodeProto *n);
FunctionInfo *function_of(const Import *im, const Onnx__FunctionProto *f);

/* ---- onnx_unsupported.c ---- */
/* Reports the operators that are not in the table, all at once; how many nodes have one. */
int64_t onnx_check_operators(Import *im);
/* "needed for parameter "X" (and 3 more)": what would be trained through n; NULL: nothing.
 * *parameter (optional) is the nearest. */
const char *onnx_needed_for(Import *im, const Onnx__NodeProto *n, const char **parameter);

/* The user's word for a node: its name, else its first output. */
const char *node_label(const Onnx__NodeProto *n);

/* ---- onnx_import.c ---- */
/* Reads a subgraph in a scope of its own, in line, its inputs bound to `in`; `out` gets its
 * outputs. `turn` tells one reading from another in names ("" or "3"). Leaves c by call_fail or
 * call_skip on a fault. */
void import_subgraph(OpCall *c, const Onnx__GraphProto *g, const char *turn, const Binding *in,
                     int nin, Binding *out, int nout);

/* The value of a name that c's node can see; NULL if there is none. */
Value *scope_value(const OpCall *c, const char *name);

/* ---- faults ---- */
NORETURN void call_fail(OpCall *c, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* "v" as f32[2,3], for messages. */
const char *call_value_text(OpCall *c, const Value *v);
/* The node is skipped without a message: what it needs failed already. */
NORETURN void call_skip(OpCall *c);

/* ---- attributes (onnx_attr.c): the node's, with references to function attributes resolved ----
 */
enum {
    ONNX_ATTR_FLOAT = 1,
    ONNX_ATTR_INT,
    ONNX_ATTR_STRING,
    ONNX_ATTR_TENSOR,
    ONNX_ATTR_GRAPH,
    ONNX_ATTR_FLOATS,
    ONNX_ATTR_INTS,
    ONNX_ATTR_STRINGS,
    ONNX_ATTR_TENSORS,
    ONNX_ATTR_GRAPHS,
    ONNX_ATTR_SPARSE,
    ONNX_ATTR_SPARSES,
    ONNX_ATTR_TYPE,
    ONNX_ATTR_TYPES,
};
void call_check_attrs(OpCall *c); /* against row->attrs; leaves by call_fail */
const Onnx__AttributeProto *call_attr(OpCall *c, const char *name); /* NULL if absent */
int64_t call_int(OpCall *c, const char *name, int64_t absent);
double call_float(OpCall *c, const char *name, double absent);
const char *call_string(OpCall *c, const char *name, const char *absent);
/* Number of ints, -1 if absent; *at stays valid. */
int call_ints(OpCall *c, const char *name, const int64_t **at);
Tensor *call_tensor(OpCall *c, const char *name); /* NULL if absent */

#endif
