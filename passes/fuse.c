/* fuse.c: groups ops into kernels (see fuse.h). This file holds what both ways share and the plain
 * one, where every op but the views is a kernel of its own; fuse_group.c holds the grouping. */
#include "passes/fuse_group.h"

#include <stdlib.h>

/* ---- what a node is to the kernels ---- */

bool fuse_has_rule(const Node *n) {
    if (op_info[n->op].flags & OPF_ELEM)
        return true;
    switch (n->op) {
    case OP_RESHAPE:
    case OP_TRANSPOSE:
    case OP_EXPAND:
    case OP_SLICE:
    case OP_CONCAT:
    case OP_PAD:
    case OP_SHAPE:
    case OP_RANGE:
    case OP_NONZERO:
    case OP_GATHER:
    case OP_GATHER_ELEMENTS:
    case OP_GATHER_ND:
    case OP_GATHER_ROWS:
    case OP_XENT_GRAD:
    case OP_UNFOLD:
        return true;
    case OP_COMBINE:
        return n->in[1]->dims[1] <= COMBINE_UNROLL;
    default:
        return false;
    }
}

KernelKind fuse_kind(const Node *n) {
    if (fuse_has_rule(n))
        return KERNEL_MAP;
    switch (n->op) {
    case OP_SOFTMAX:
    case OP_LOG_SOFTMAX:
    case OP_XENT:
        return KERNEL_ROWS;
    case OP_REDUCE_SUM:
    case OP_REDUCE_MAX:
    case OP_REDUCE_MIN:
    case OP_REDUCE_PROD:
    case OP_COMBINE: /* of many terms */
        return KERNEL_REDUCE;
    case OP_MATMUL:
    case OP_GROUPED_MATMUL:
    case OP_GROUPED_WGRAD:
        return KERNEL_GEMM;
    default:
        return KERNEL_OP;
    }
}

bool fuse_is_literal(const Value *v) {
    return value_is_const(v) && value_count(v) == 1;
}

/* A slice is a view when only its outermost axis of more than one element is cut, in unit steps. */
static bool slice_view(const Node *n, int64_t *offset) {
    const Value *x = n->in[0];
    const int64_t *axes, *starts, *steps;
    int k = node_ints(n, AT_AXES, &axes), nsteps = node_ints(n, AT_STEPS, &steps);
    node_ints(n, AT_STARTS, &starts);
    *offset = 0;
    for (int i = 0; i < k; i++) {
        int64_t outer = 1, inner = 1;
        if (n->out[0]->dims[axes[i]] == x->dims[axes[i]] && (!nsteps || steps[i] == 1))
            continue;
        for (int a = 0; a < axes[i]; a++)
            outer *= n->out[0]->dims[a];
        for (int a = (int)axes[i] + 1; a < x->rank; a++)
            inner *= x->dims[a];
        if (outer != 1 || (nsteps && steps[i] != 1 && n->out[0]->dims[axes[i]] > 1))
            return false;
        *offset += starts[i] * inner;
    }
    return value_count(n->out[0]) > 0;
}

bool fuse_is_view(const Node *n, int64_t *offset) {
    *offset = 0;
    if (n->op == OP_RESHAPE)
        return true;
    return n->op == OP_SLICE && slice_view(n, offset);
}

/* ---- kernels ---- */

Kernel *fuse_add_kernel(KernelPlan *p, KernelKind kind, Node *main) {
    Kernel k = {.kind = kind, .main = main};
    vec_push(&p->kernels, k);
    return &p->kernels.at[p->kernels.n - 1];
}

static bool add_value(Value ***at, int *n, int *cap, Value *v) {
    for (int i = 0; i < *n; i++)
        if ((*at)[i] == v)
            return false;
    if (*n == *cap) {
        *cap = *cap ? 2 * *cap : 8;
        *at = xrealloc(*at, sizeof(**at) * (size_t)*cap);
    }
    (*at)[(*n)++] = v;
    return true;
}
#define add_once(vec, v) add_value(&(vec)->at, &(vec)->n, &(vec)->cap, (v))

/* The operand is read at the very index of n's result. */
static bool keeps_index(const Node *n, const Value *operand) {
    if (n->op == OP_RESHAPE || n->op == OP_ADAMW || n->op == OP_SGD)
        return n->op == OP_RESHAPE || same_dims(n->in[0], operand);
    if (n->op == OP_XENT_GRAD)
        return operand == n->in[0];
    return (op_info[n->op].flags & OPF_ELEM) && same_dims(n->out[0], operand);
}

/* A row kernel reads the operand of a reduction, and all that makes up row values, before it stores
 * any column. */
static bool read_before_columns(const Node *n, const Value *operand, bool member,
                                int64_t columns_count) {
    if (member && value_count(operand) < columns_count)
        return true;
    return operand == n->in[0] &&
           (n->op == OP_XENT || n->op == OP_REDUCE_SUM || n->op == OP_REDUCE_MAX ||
            n->op == OP_REDUCE_MIN || n->op == OP_REDUCE_PROD);
}

/* The nodes are in graph order; walked backwards, "read at another index" spreads from results to
 * operands. */
void fuse_finish_kernel(KernelPlan *p, Kernel *k, const int *member, int mark) {
    int n = k->nodes.n;
    bool rows = k->kind == KERNEL_ROWS,
         epilogue = k->main->op == OP_MATMUL || k->main->op == OP_GROUPED_MATMUL;
    bool same_kind = k->kind == KERNEL_MAP || rows || epilogue || k->main->op == OP_ADAMW ||
                     k->main->op == OP_SGD;
    int64_t whole = 0; /* elements of the largest root */
    bool *moved = xcalloc((size_t)n + 1, sizeof *moved);
    for (int i = 0; i < k->roots.n; i++) {
        int64_t count = value_count(k->roots.at[i]);
        same_kind &= k->main->op != OP_CONCAT && (rows || count == value_count(k->roots.at[0]));
        whole = count > whole ? count : whole;
    }
    VEC(Value *) bad = {0};
    for (int i = n - 1; i >= 0; i--) {
        Node *node = k->nodes.at[i];
        for (int o = 0; o < node->nin; o++) {
            Value *v = node->in[o];
            if (!v)
                continue;
            bool same =
                same_kind && !moved[i] &&
                (keeps_index(node, v) ||
                 (v == node->in[0] && (node->op == OP_SOFTMAX || node->op == OP_LOG_SOFTMAX)));
            if (rows)
                same |= read_before_columns(node, v, member[v->def->id] == mark, whole);
            if (member[v->def->id] == mark) {
                for (int j = 0; j < i && !same; j++)
                    if (k->nodes.at[j] == v->def)
                        moved[j] = true;
                continue;
            }
            if (fuse_is_literal(v) &&
                (fuse_has_rule(node) || k->kind == KERNEL_ROWS || k->kind == KERNEL_REDUCE))
                continue;
            if (!p->storage[v->id])
                bug("%%%d (%s) is read by %s but not stored", v->id, op_info[v->def->op].name,
                    op_info[node->op].name);
            add_once(&k->operands, v);
            if (!same)
                add_once(&bad, p->storage[v->id]);
        }
    }
    for (int i = 0; i < k->operands.n; i++)
        for (int j = 0; j < k->roots.n; j++)
            if (p->storage[k->operands.at[i]->id] == k->roots.at[j])
                bug("a kernel reads %%%d, a view of its own result", k->operands.at[i]->id);
    for (int i = 0; i < k->operands.n && same_kind; i++) {
        Value *v = k->operands.at[i];
        bool clean = p->storage[v->id] == v || value_count(p->storage[v->id]) == value_count(v);
        for (int j = 0; j < bad.n; j++)
            clean &= bad.at[j] != p->storage[v->id];
        if (clean && value_count(v) == whole)
            vec_push(&k->same_index, v);
    }
    vec_free(&bad);
    free(moved);
}

static void plain(Graph *g, KernelPlan *p) {
    int *member = xcalloc((size_t)g->next_node + 1, sizeof *member);
    FOR_NODES(n, g) {
        int64_t offset;
        if (op_info[n->op].flags & OPF_LEAF) {
            p->storage[n->out[0]->id] = n->out[0];
            continue;
        }
        if (fuse_is_view(n, &offset)) {
            p->storage[n->out[0]->id] = p->storage[n->in[0]->id];
            p->view_offset[n->out[0]->id] = p->view_offset[n->in[0]->id] + offset;
            continue;
        }
        Kernel *k = fuse_add_kernel(p, fuse_kind(n), n);
        vec_push(&k->nodes, n);
        for (int i = 0; i < n->nout; i++) {
            p->storage[n->out[i]->id] = n->out[i];
            vec_push(&k->roots, n->out[i]);
        }
        member[n->id] = p->kernels.n;
        fuse_finish_kernel(p, k, member, p->kernels.n);
    }
    free(member);
}

/* ---- order ---- */

static int64_t bytes_of(const Value *v) {
    return value_count(v) * dtype_bytes(v->dtype);
}

static int64_t stored_bytes(const Kernel *k) {
    int64_t sum = 0;
    for (int i = 0; i < k->roots.n; i++)
        sum += bytes_of(k->roots.at[i]);
    return sum;
}

/* Worth running as soon as it can: optimizers (a gradient then dies at once), kernels that leave
 * little of what they read (bias gradients, norms, captures: their operands die sooner), and those
 * that store at most `little`, which others may wait for. */
static bool is_eager(const Kernel *k, int64_t little) {
    if (k->main->op == OP_ADAMW || k->main->op == OP_SGD)
        return true;
    int64_t read = 0, stored = stored_bytes(k);
    for (int i = 0; i < k->operands.n; i++)
        read += value_is_param(k->operands.at[i]) ? 0 : bytes_of(k->operands.at[i]);
    return stored * FUSE_EAGER <= read || stored <= little;
}

/* Puts kernel i behind the place slot[i] - 1 of the others, which keep their order. */
static void reorder(KernelPlan *p, const bool *eager, const int *slot) {
    int n = p->kernels.n;
    VEC(Kernel) order = {0};
    int *head = xcalloc((size_t)n + 1, sizeof *head), *next = xcalloc((size_t)n + 1, sizeof *next);
    for (int i = n - 1; i >= 0; i--) { /* buckets by place, in order */
        if (!eager[i])
            continue;
        next[i] = head[slot[i]];
        head[slot[i]] = i + 1;
    }
    for (int at = 0; at <= n; at++) {
        for (int i = head[at]; i; i = next[i - 1])
            vec_push(&order, p->kernels.at[i - 1]);
        if (at < n && !eager[at])
            vec_push(&order, p->kernels.at[at]);
    }
    free(p->kernels.at);
    p->kernels.at = order.at, p->kernels.n = order.n, p->kernels.cap = order.cap;
    free(head);
    free(next);
}

enum { LITTLE = 4096 }; /* 1/4096 of all that is stored is little */

/* Differentiation and the optimizer leave them far behind what they read. An eager kernel goes
 * behind the last kernel that makes one of its operands and, if it updates a parameter, behind the
 * last other reader of the parameter. */
void fuse_hoist(const Graph *g, KernelPlan *p) {
    int n = p->kernels.n;
    int *ready = xcalloc((size_t)g->next_value + 1,
                         sizeof *ready); /* by storage id: 1 + the kernel that makes it */
    int *readers = xcalloc((size_t)g->next_value + 1,
                           sizeof *readers); /* by param id: 1 + its last reader but optimizers */
    int *slot = xcalloc((size_t)n + 1, sizeof *slot);
    bool *eager = xcalloc((size_t)n + 1, sizeof *eager);
    bool *updated = xcalloc((size_t)g->next_value + 1, sizeof *updated);
    int64_t little = 0;
    for (int i = 0; i < n; i++)
        little += stored_bytes(&p->kernels.at[i]) / LITTLE;
    for (int i = 0; i < g->updates.n; i++)
        updated[g->updates.at[i].param->id] = true;
    for (int i = 0; i < n; i++) {
        Kernel *k = &p->kernels.at[i];
        bool optimizer = k->main->op == OP_ADAMW || k->main->op == OP_SGD;
        eager[i] = is_eager(k, little);
        slot[i] = eager[i] ? 0 : i + 1;
        for (int o = 0; o < k->operands.n && eager[i]; o++) {
            int id = p->storage[k->operands.at[o]->id]->id,
                at = optimizer && updated[id] && readers[id] > ready[id] ? readers[id] : ready[id];
            slot[i] = at > slot[i] ? at : slot[i];
        }
        for (int o = 0; o < k->operands.n && !optimizer; o++) {
            int id = p->storage[k->operands.at[o]->id]->id;
            readers[id] = slot[i] > readers[id] ? slot[i] : readers[id];
        }
        for (int r = 0; r < k->roots.n; r++)
            ready[k->roots.at[r]->id] = slot[i];
    }
    reorder(p, eager, slot);
    free(slot);
    free(ready);
    free(readers);
    free(updated);
    free(eager);
}

KernelPlan *fuse(Graph *g, bool fused) {
    KernelPlan *p = xcalloc(1, sizeof *p);
    if (fused) {
        bool *inlined = xcalloc((size_t)g->next_value + 1, sizeof *inlined);
        fuse_inline(g, inlined);
        fuse_recompute(g, inlined, &p->again);
        free(inlined);
    }
    p->nvalues = g->next_value;
    p->storage = xcalloc((size_t)g->next_value + 1, sizeof *p->storage);
    p->view_offset = xcalloc((size_t)g->next_value + 1, sizeof *p->view_offset);
    if (!fused || !fuse_groups(g, p))
        plain(g, p);
    fuse_hoist(g, p);
    return p;
}

void kernel_plan_free(KernelPlan *p) {
    if (!p)
        return;
    recompute_undo(&p->again);
    for (int i = 0; i < p->kernels.n; i++) {
        Kernel *k = &p->kernels.at[i];
        vec_free(&k->nodes);
        vec_free(&k->roots);
        vec_free(&k->operands);
        vec_free(&k->same_index);
    }
    vec_free(&p->kernels);
    free(p->storage);
    free(p->view_offset);
    free(p);
}

void kernel_plan_print(const KernelPlan *p, const Graph *g, FILE *to) {
    static const char *const kinds[] = {"map", "rows", "reduce", "gemm", "op"};
    for (int i = 0; i < p->kernels.n; i++) {
        const Kernel *k = &p->kernels.at[i];
        fprintf(to, "kernel %d %s:", i, kinds[k->kind]);
        for (int j = 0; j < k->nodes.n; j++)
            fprintf(to, " %s", op_info[k->nodes.at[j]->op].name);
        fputs(" (", to);
        for (int j = 0; j < k->operands.n; j++)
            fprintf(to, "%s%%%d", j ? ", " : "", k->operands.at[j]->id);
        fputs(") ->", to);
        for (int j = 0; j < k->roots.n; j++) {
            const Value *v = k->roots.at[j];
            fprintf(to, "%s %%%d %s[", j ? "," : "", v->id, dtype_name(v->dtype));
            for (int a = 0; a < v->rank; a++)
                fprintf(to, "%s%lld", a ? "," : "", (long long)v->dims[a]);
            fputc(']', to);
        }
        fprintf(to, "  ; \"%s\"\n", k->main->src ? k->main->src->name : "");
    }
}
