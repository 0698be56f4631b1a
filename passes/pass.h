/* pass.h: the pipeline. File = pass = function = flag: each pass below is passes/NAME.c with `bool
 * pass_NAME(Compile *)`. */
#ifndef STGCC_PASSES_PASS_H
#define STGCC_PASSES_PASS_H

#include "ir/graph.h"
#include "ir/recipe.h"

/* What the user wants of the graph that comes out. */
typedef struct TrainWants {
    bool train;  /* loss, gradients, STGC; false: forward only (run, inspect) */
    bool grads;  /* outputs grad/NAME */
    bool detail; /* outputs moe/I/cos, dot, norm, logits, conflict, gnorm, tokens, degenerate, cel
                    and out/NAME (step) */
    bool metrics; /* small per-layer outputs for train: moe/I/tokens[E], conflict_share, mean_cos, …
                   */
    bool update;     /* optimizer: graph->updates */
    bool accumulate; /* gradients go to PARAM_GRAD instead of the optimizer (micro-batches), see
                        optimize.c */
    bool apply_only; /* only the optimizer, from PARAM_GRAD */
} TrainWants;

/* A region that is not an MoE layer, or computes something else than the model did. */
typedef struct NotRaised {
    bool wrong; /* "wrong" against "left" */
    const char *node, *why, *fix;
} NotRaised;

typedef struct Compile {
    Graph *g;
    const Recipe *recipe;
    TrainWants wants;
    Diag *diag;
    VEC(NotRaised) not_raised; /* filled by raise_moe */
    bool allow_unraised;
    bool raised; /* g is a clone of a graph that went through canonicalise and raise_moe: what
                    follows them runs */
    int64_t
        probe_budget; /* multiply-adds raise_moe may spend on probing a layer, about; 0: default */
    int64_t probe_work; /* what it spent on all: elements evaluated, and multiply-adds */
    struct Cotangents { /* of the objective, from differentiate to inject_stgc; cotangents_free when
                           done */
        Value **of; /* by value id (of values that existed when it ran): the finished cotangent, or
                       NULL */
        int n;
    } cotangents;
    int forward_nodes; /* node ids below are the forward half, from there on the backward half (set
                          by differentiate) */
    /* tools */
    const char *dump, *stop_after; /* pass names, or NULL */
    StrList skip;
    FILE *dump_to;
} Compile;

/* X(NAME, what it does) in the order they run. The forward half (up to raise_moe) also serves
 * `inspect` and `run`. */
#define PASSES(X) \
    X(canonicalise, "folds constants, normalises spellings (norms, SiLU, views, guards, " \
                    "indexing) without changing meaning") \
    X(raise_moe, "finds MoE layers, replaces them by dispatch, grouped matmul, combine; accepts " \
                 "only after probing") \
    X(select_params, "marks what is trained and what is frozen") \
    X(attach_loss, "adds the task loss, balance and router-z losses, and the recipe's terms") \
    X(differentiate, "one reverse walk from the objective") \
    X(inject_stgc, "captures, cosines, conflict masks, CEL and its gradient; names the outputs") \
    X(optimize, "clipping and the optimizer's updates, or accumulation") \
    X(precision, "marks the products that train.precision lets run on operands rounded to bf16") \
    X(simplify, "algebraic clean-up, common subexpressions, dead code")

#define X(NAME, what) bool pass_##NAME(Compile *c);
PASSES(X)
#undef X

/* Runs the passes in order (the training half only if wants.train), verifying after each; honours
 * dump, stop_after, skip. False if one failed (see diag). `*stopped` is set when stop_after ended
 * the run. */
bool passes_run(Compile *c, bool *stopped);
void passes_list(FILE *to);

/* ---- between passes: facts kept in the Graph by name ----
 * attach_loss names its values as graph outputs "loss/task", "loss/balance", "loss/router_z",
 * "objective" (L_obj). differentiate names gradients as outputs "grad/PARAM"; inject_stgc adds to
 * them, adds "loss/cel", "loss/total". optimize / the end of inject_stgc drop the outputs that
 * `wants` does not ask for. */

/* ---- autodiff (passes/differentiate.c, gradient rules in passes/grad_*.c) ---- */
typedef struct Seed {
    Value *value;
    Value *cotangent; /* same shape */
} Seed;
typedef struct Cotangents Cotangents; /* the finished cotangents by value id, as in Compile */

/* Reverse walk: emits the backward nodes at the end of the graph and returns the cotangents of
 * every value that lies on a path from a `want` to a seed. Nothing flows into a value of `stop`
 * (its own cotangent is finished and kept). False if an op on such a path has no gradient: every
 * one is reported with the user's node, the operand and the params that need it. */
bool grad_run(Graph *g, const Seed *seeds, int nseeds, Value *const *wants, int nwants,
              Value *const *stop, int nstop, Cotangents *out, Diag *d);
void cotangents_free(Cotangents *c);
/* d(sum of y)/dx for each of xs, all of known shapes; zeros where y does not depend on x. False as
 * grad_run. */
bool gradient_of(Graph *g, Value *y, Value *const *xs, int n, Value **out, Diag *d);

/* For gradient hooks. */
typedef struct Grad {
    Graph *g;
    Builder b; /* at the end of the graph; source is the node's */
    Diag *diag;
    Value **sum;  /* by value id */
    bool *needed; /* by value id: lies on a path to a want */
    const Node *failed;
} Grad;
bool grad_needs(const Grad *G, const Value *v);
void grad_add(Grad *G, Value *v, Value *cotangent); /* cotangent must have v's shape; float */
Value *grad_unbroadcast(Grad *G, Value *cotangent,
                        const Value *like); /* sums what broadcasting expanded */
#define OP(ID, m, a, b, c, f, infer, eval, grad, lower, emit) \
    void grad_##grad(Grad *G, Node *n, Value *const *dout);
#include "ir/ops.def"
#undef OP

/* ---- parameters that are one (passes/select_ties.c) ---- */
typedef enum { TIE_NONE, TIE_EQUAL, TIE_TRANSPOSED } ParamTie;
ParamTie params_tied(const Tensor *a, const Tensor *b);        /* by their values */
const Tensor *param_initial(const Graph *g, const char *name); /* NULL: no such parameter */
Tensor *tensor_transposed(Arena *a, const Tensor *t);          /* of a matrix */
/* Joins the parameters of model.tie: the first is used for all. False with a diagnostic. */
bool params_tie(Compile *c);
/* Notes trained matrices that are equal or transposes of one another and are not tied. */
void params_report_ties(Compile *c);

/* ---- MoE layers of a raised graph, read off its dispatch nodes ---- */
typedef struct MoeLayer {
    int index; /* in graph order */
    Node *dispatch;
    const char *form, *score, *schema;
    int experts, top_k; /* top_k 0: varies per token */
    Value *logits;      /* [T,E] or NULL */
    Value *x;           /* [T,D] whose rows the experts receive; NULL if unknown */
    int64_t tokens;     /* T */
    double probe_error;
    VEC(Value *) weights; /* OP_PARAM values the experts own, in order of use */
    VEC(Node *) linears;  /* grouped_matmul nodes of this layer, in order */
} MoeLayer;
typedef VEC(MoeLayer) MoeLayers;
void moe_layers(const Graph *g, MoeLayers *out);
void moe_layers_free(MoeLayers *l);

#endif
