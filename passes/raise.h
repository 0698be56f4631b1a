/* raise.h: what the files of the MoE raising share (raise_moe.c tells the whole story).
 *
 * Letters: T tokens, K chosen per token, E experts, R routed rows, F features of a value that are
 * not rows. */
#ifndef STGCC_PASSES_RAISE_H
#define STGCC_PASSES_RAISE_H

#include "ir/eval.h"
#include "passes/pass.h"

/* ---- selections: where a model decides which experts a token goes to (raise_route.c) ---- */
typedef enum {
    SELECT_INDEX, /* experts are numbers, T*K of them */
    SELECT_ALL,   /* none: all experts work for all tokens, weighted by scores */
    SELECT_SLOTS, /* places in the experts' queues (capacity), whatever decided on them */
} SelectKind;
typedef struct Selection {
    SelectKind kind;
    Value *value;  /* INDEX: i64, T*K elements in token order: the experts chosen; else the router's
                      logits, T*E: what follows from them is evaluated, not made up */
    Node *node;    /* the topk or argmax it comes from, or the score function */
    Value *scores; /* what the decision was taken on, [.., E] */
    int64_t T;
    int K, E;  /* SLOTS: K is how many columns the selection has */
    int top_k; /* as reported: 0 where it varies */
} Selection;
typedef VEC(Selection) Selections;
void selections_find(Graph *g, Selections *out);
/* Routers whose scores weight all experts; to be tried when choices were. */
void selections_find_all(Graph *g, Selections *out);
/* The router's logits behind a value that routing made: those of the nearest softmax or sigmoid of
 * T rows (E of them if E > 0), or of the nearest product of that shape. False if there are none. */
bool selection_behind(Value *v, int64_t T, int E, Selection *out);

/* Facts of a graph relative to one selection, by value id; values made later are beyond `n`. */
typedef struct Facts {
    int n;
    bool *chosen;     /* depends on the selection's value */
    bool *before;     /* the selection depends on it */
    bool *activation; /* depends on an input of the model: neither weight nor constant */
    bool *weight;     /* computed from parameters only, at least one */
    bool *scored;     /* computed from the router's logits */
    bool *hot;        /* work of a single expert: differs with the expert whatever the token */
    bool *worked;     /* behind a product of what was chosen with a weight: no part of a routing */
} Facts;
Facts facts_of(Graph *g, const Selection *s);
void facts_free(Facts *f);
/* The value just before the router's score function, and "softmax" or "sigmoid"; NULL when there is
 * none of T*E elements. */
Value *router_logits(const Selection *s, const char **score);

/* ---- synthetic routing and numbers under it (raise_probe.c) ---- */
typedef enum { ROUTE_SPREAD, ROUTE_ONE, ROUTE_EDGE } RouteKind;
typedef struct Routing {
    int64_t T;
    int K, E;
    int64_t *idx; /* [T*K], distinct in a row; -1: nobody (SELECT_SLOTS, where the walk fills it) */
    int32_t *slot; /* [T*E]: k with idx[t,k] = e, or -1 */
} Routing;

/* An element of any type, as the evaluator keeps it: a double, or an int64. */
typedef uint64_t __attribute__((may_alias)) Cell;
/* Some elements of a value, by their row-major positions. */
typedef struct Part {
    int64_t n, *at;
} Part;
typedef struct PartMemo PartMemo;
#define PART_MEMO 1024

typedef struct Probe {
    const Selection *s;
    const Facts *facts;
    Routing route;
    Arena arena;
    Diag diag;
    Eval ev;
    uint64_t rng, seed;
    double scale;      /* of random activations */
    const Node *stuck; /* where a value could not be had */
    int64_t work;      /* elements computed, and multiply-adds */
    PartMemo *memo[PART_MEMO];
    struct ProbeSparse { /* of large values that are nearly all zero; value NULL: free */
        const Value *value;
        Part at;
        const Cell *cells; /* NULL: it is no such value */
    } sparse[4];
} Probe;
/* SPREAD: every expert is hit where T*K allows, the rest random. ONE: slot 0 is expert `which` for
 * all tokens. */
Probe *probe_new(Graph *g, const Selection *s, const Facts *f, RouteKind kind, int which,
                 uint64_t seed);
/* The value under this routing: activations that the selection was computed from are random,
 * weights are real. NULL: it cannot be had (an integer activation, a fault of evaluation); p->stuck
 * says where. */
const RTensor *probe_value(Probe *p, Value *v);
/* Elements of v alone, and of what they need, in memory of p. NULL as probe_value. */
const Cell *probe_part(Probe *p, Value *v, const Part *x);
/* The elements of v that are not zero, and where: found without computing the others where v is
 * large and made of one-hot rows. NULL as probe_value. */
const Cell *probe_nonzeros(Probe *p, Value *v, Part *at);
Part part_new(Probe *p, int64_t n);
/* Tokens to look at, marked in an array of T: all, or about `few`, the last and others at random,
 * and, if `cover`, the first ones, which under ROUTE_SPREAD reach every expert. */
const char *probe_sample(Probe *p, int64_t few, bool cover);
void probe_free(Probe *p);

/* ---- rows: which (token, slot, expert) the rows of a value stand for (raise_view.c) ---- */
enum { ROW_VARIES = -1, ROW_FREE = -2 };
typedef struct Entry {
    int32_t t, k, e; /* ROW_VARIES: several; t == ROW_FREE: nobody reads this row */
} Entry;
typedef struct RowMap {
    int64_t n;
    Entry *at; /* row-major over the row axes */
} RowMap;

/* A value seen as rows × features; or E values in lockstep, the e-th being expert e's. */
typedef struct View {
    int n; /* 1 or E */
    Value **v;
    unsigned rows; /* bit i: axis i is a row axis */
    RowMap **map;  /* n of them */
} View;

typedef struct Region {
    Compile *c;
    Graph *g;
    Selection *s;
    Facts *facts;
    Probe *probe; /* the routing all maps are about */
    Arena arena;
    Builder b; /* before the combine */
    int layer;
    /* the dispatch, once made */
    Node *dispatch;
    Value *row_te; /* t*E + e of a row, -1 */
    bool merged;   /* no parameter differs between branches: the exporter merged equal experts */
    VEC(Value *) originals; /* parameters that were copied for their experts */
    /* memo: emitted views */
    struct Memo *memo;
    int nmemo, memo_cap;
    bool data_expert; /* an expert's number was itself data (A-hit) */
    bool listed;      /* branches work on lists of tokens (A), not on all (B) */
    bool sorted;      /* rows are concatenated by expert (H) */
    bool joined;      /* outputs of branches for all tokens are concatenated (B) */
    bool batched;     /* each pair's matrices are gathered (D) */
    bool disagrees;   /* looked like a layer until it was probed */
    bool frozen;      /* sizes that routing decides are constants of the exporter's example */
    bool slots;       /* rows are places in the experts' queues (C) */
    bool lanes;       /* branches walked in lockstep are the K choices of a token, not experts */
    Value *sel;       /* what the dispatch reads, where that is not the selection's value */
    /* first failure */
    char *why;
    const Node *where;
    const char *fix; /* of a frozen size, where it is known */
} Region;

/* Records the first reason; returns NULL. */
void *raise_fail(Region *r, const Node *at, const char *fmt, ...) PRINTF_LIKE(3, 4);

bool view_equal_all(const View *w);
/* Sizes of branch i's axes with data-decided ones resolved by its map; false if they cannot be. */
bool view_dims(const View *w, int i, int64_t *dims);
View view_single(Region *r, Value *v, unsigned rows, RowMap *map);
/* Branches of one value become one view whose rows are everybody's. */
View view_collapse(Region *r, const View *w);
RowMap *map_new(Region *r, int64_t n); /* all free */
void entry_merge(Entry *into, Entry with);
/* The map of an operand that is broadcast (right-aligned) into a result: its row axes and who reads
 * them. */
void view_project(Region *r, const View *result, Value **operand, View *out);

typedef enum { LEAF_NONE, LEAF_UNIFORM, LEAF_TOKEN, LEAF_PAIR, LEAF_EXPERT, LEAF_DENSE } LeafKind;
/* What the rows of a single view are in full: all tokens in order, all pairs, all experts, all
 * token-expert pairs (of a transposition of the row axes, whose order goes to perm). */
LeafKind view_leaf(Region *r, const View *w, int *perm);

/* ---- values of the rows [R, F…] of the new graph ---- */
typedef struct Rows {
    Value *v;     /* NULL: failed */
    bool uniform; /* the same for all rows: shape F only */
} Rows;
Rows raise_rows(Region *r, const View *w); /* raise_walk.c: the walker */
Rows raise_leaf(Region *r, const View *w, LeafKind kind, const int *perm);
/* Number and sizes of features of the first branch. */
int view_features(const View *w, int64_t *dims);
/* v with its row axes first, in the order of perm, flattened to one: [n, F…]. */
Value *view_rows_first(Region *r, const View *w, const int *perm, int64_t n);
bool raise_dispatch(Region *r);
/* Makes one node before the combine; NULL, with the reason, where shapes do not fit: a region that
 * only looked like rows. */
Value *raise_node(Region *r, Op op, Value *const *in, int nin, const Attr *attrs, int nattrs);
Value *dispatch_out(Region *r, int i);
Value *reshape_rows(Region *r, Value *v, int nf, const int64_t *f); /* [R, f…] */

/* One step down a node that only moves data (reshape, transpose, expand, slice, gather, …): the
 * view of its operand. False if the node is no such thing or cannot be followed (raise_move.c).
 * features is how the operand's features become the result's. */
typedef enum { MOVE_NONE, MOVE_FAIL, MOVE_DONE } MoveResult;
MoveResult view_move(Region *r, const View *w, View *operand);
Rows raise_move(Region *r, const View *w, const View *operand); /* the same step upwards on rows */

/* ---- weights (raise_weights.c) ---- */
typedef struct Weights {
    int n; /* 1: a stack [E,a,b]; E: matrices [a,b] */
    Value **v;
    bool swapped; /* stored as [b,a] against the view's two features */
} Weights;
/* The matrices a view selects by expert; false (without a failure recorded) if it is not one matrix
 * per expert. */
bool raise_weights(Region *r, const View *w, Weights *out);
/* Is v, the same for all branches, a parameter that each expert should own? Where equal experts
 * were merged; and where the value is constant over the tensor, as fresh biases and LoRA matrices
 * are. */
bool raise_owned(const Region *r, const Value *v);
/* E values that differ as one stack [E, F…]: the stack they are slices of, or their concatenation.
 */
Value *raise_stack(Region *r, const View *w);

/* ---- combines (raise_sum.c) ---- */
typedef struct Root {
    Node *node; /* its first result is the layer's output */
    int leaves; /* of a sum tree: contributions found; 0 for a reduction, -1 for all pairs scattered
                   at once */
} Root;
typedef VEC(Root) Roots;
/* Places where the contributions of a token may meet, nearest to the selection first; `partial`:
 * sums of fewer than E. */
void roots_find(Region *r, Roots *out, Roots *partial);
/* The layer below root in routed rows, combined: a value like the root's. NULL if it is not E
 * experts. *base: what the sum adds besides, or NULL. A reduction over an axis of K = E may be over
 * slots or experts: the caller tries both. */
Value *raise_root(Region *r, const Root *root, bool slots, Value **base);

/* True if a sum of fewer than E contributions is one of experts: they are alike and owned by
 * different parameters. */
bool raise_partial(const Region *r, const Root *root);

/* True if `part` is one of the first `depth` sums down from `sum`. */
bool raise_sum_contains(const Node *sum, const Node *part, int depth);

/* Products that hide experts or their sums, as they are and written out
 * (raise_product_sum.c); what no layer came of is restored. */
typedef struct WrittenProduct {
    Value *was, *now;
} WrittenProduct;
typedef VEC(WrittenProduct) WrittenOut;
void products_write_out(Graph *g, const Selection *s, WrittenOut *out);
void products_restore(WrittenOut *w);

/* Two experts compute the same with the same parameters: the exporter merged them. */
bool raise_merged(const Region *r, const Value *a, const Value *b);

/* ---- who is served (raise_gates.c) ---- */
/* [T,1] integers, not zero for the tokens with a gate; for the tokens of a list, which are `serves`
 * under the region's routing (NULL if that cannot be had without the list). */
Value *served_by_gate(Region *r, Value *gate);
Value *served_by_list(Region *r, Value *index, const char *serves);
/* Is this the list of places where a mask holds, not numbers that were chosen (tokens, by an
 * expert)? */
bool is_list_of_places(Value *index);
/* The dispatch reads these columns, one for each expert, from here on. False if one is missing. */
bool served_select(Region *r, Value **column);
/* The same of the weights within w, which is summed over experts or slots; false if there are none.
 */
bool served_in_sum(Region *r, const View *w);
/* Which expert each of n branches is: the one for which most tokens come when its logits are made
 * large. */
bool name_by_favour(Region *r, int n, bool (*serves)(Region *, Probe *, void *, int, char *),
                    void *of, int *expert);
/* The expert whose mask idx[t,k] == e is among what `from` was made of; -1: none. */
int name_by_mask(Region *r, Value *from);
/* The slot whose experts idx[:,k] are among it; -1: none. */
int name_by_slot(Region *r, Value *from);

/* ---- capacity (raise_slots.c) ---- */
typedef struct SlotRoot {
    Node *node;   /* its result is the layer's output */
    Value *gates; /* [T,E,C], weights by place; or NULL: */
    Node *gather; /* the places of a token, taken from all places */
} SlotRoot;
typedef VEC(SlotRoot) SlotRoots;
void slot_roots_find(Graph *g, SlotRoots *out);
bool slot_root_selection(const SlotRoot *root, Selection *out);
/* As raise_root. */
Value *raise_slot_root(Region *r, const SlotRoot *root, Value **base);
/* The contributions that n adds up, and what it adds besides (raise_sum.c). */
int raise_sum_leaves(Region *r, Node *n, Value **leaf, int most, Value **base);
Value *raise_combine(Region *r, Value *rows, const Value *like);
/* Weights of places summed over their axis, which stays as 1 (raise_places.c). */
Value *places_sum(Region *r, Value *v, int axis);
/* Fails r if the number of places is a constant of the example although the tokens of each of
 * `groups` were free. */
void places_check_frozen(Region *r, Value *from, int64_t places, int64_t groups);
/* Moves that only capacity needs: a product with a matrix of zeros and ones, rows scattered to
 * places, a row of padding joined on. */
MoveResult move_one_hot(Region *r, const View *w, View *o);
MoveResult move_places(Region *r, const View *w, View *o);
MoveResult move_padded(Region *r, const View *w, View *o);

/* Text of what an expert computes (raise_schema.c). */
const char *raise_schema(Region *r, Value *rows);

/* Joined products of rows that counts split, each by a matrix of its own, become grouped products
 * (raise_split.c). False with d if the graph does not infer then. */
bool raise_split_products(Graph *g, Diag *d);

#endif
