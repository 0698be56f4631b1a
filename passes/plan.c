/* plan.c: the memory plan: where every stored value lies in the one arena of a step.
 *
 * Persistent values (inputs, params, constants) come first, one after another. The rest live from
 * the kernel that stores them to the last one that reads them (outputs to the end); offsets are
 * given in execution order, best fit into what has been freed. A result may take the buffer of an
 * operand that dies at its kernel where the kernel reads it at the stored index only. The value a
 * param is updated with is computed in the param's buffer where nobody needs the old value any
 * more. Then the same buffers are laid out once more, the largest first, each at the lowest place
 * that is free all its life; the tighter of the two is the plan. */
#include "passes/fuse.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGN = 64 };

typedef struct Gap {
    int64_t at, bytes;
} Gap;

typedef struct Space {
    VEC(Gap) gaps; /* free ranges below `end`, by address, never touching each other */
    int64_t end, peak;
} Space;

static int64_t padded(int64_t bytes) {
    return (bytes + (bytes == 0) + ALIGN - 1) / ALIGN * ALIGN;
}

static int64_t value_bytes(const Value *v) {
    return padded(value_count(v) * dtype_bytes(v->dtype));
}

static int64_t space_take(Space *s, int64_t bytes) {
    int best = -1;
    for (int i = 0; i < s->gaps.n; i++)
        if (s->gaps.at[i].bytes >= bytes &&
            (best < 0 || s->gaps.at[i].bytes < s->gaps.at[best].bytes))
            best = i;
    if (best >= 0) {
        Gap *g = &s->gaps.at[best];
        int64_t at = g->at;
        g->at += bytes, g->bytes -= bytes;
        if (!g->bytes)
            memmove(g, g + 1, sizeof *g * (size_t)(--s->gaps.n - best));
        return at;
    }
    int64_t at = s->end;
    if (s->gaps.n && s->gaps.at[s->gaps.n - 1].at + s->gaps.at[s->gaps.n - 1].bytes == s->end)
        at = s->gaps.at[--s->gaps.n].at; /* grow the last gap */
    s->end = at + bytes;
    if (s->end > s->peak)
        s->peak = s->end;
    return at;
}

static void space_give(Space *s, int64_t at, int64_t bytes) {
    int i = s->gaps.n;
    while (i > 0 && s->gaps.at[i - 1].at > at)
        i--;
    bool below = i > 0 && s->gaps.at[i - 1].at + s->gaps.at[i - 1].bytes == at;
    bool above = i < s->gaps.n && at + bytes == s->gaps.at[i].at;
    if (below && above) {
        s->gaps.at[i - 1].bytes += bytes + s->gaps.at[i].bytes;
        memmove(&s->gaps.at[i], &s->gaps.at[i + 1], sizeof(Gap) * (size_t)(--s->gaps.n - i));
    } else if (below) {
        s->gaps.at[i - 1].bytes += bytes;
    } else if (above) {
        s->gaps.at[i].at = at, s->gaps.at[i].bytes += bytes;
    } else {
        vec_push(&s->gaps, ((Gap){0}));
        memmove(&s->gaps.at[i + 1], &s->gaps.at[i], sizeof(Gap) * (size_t)(s->gaps.n - 1 - i));
        s->gaps.at[i] = (Gap){at, bytes};
    }
}

typedef struct Plan {
    const Graph *g;
    const KernelPlan *k;
    MemoryPlan *m;
    int *last; /* by storage id: last kernel that reads it; number of kernels: it outlives the step;
                  -1: nobody */
    int *made; /* by storage id: the kernel that stores it; -1 */
    Value **shares; /* by storage id: the value whose buffer it took over; its own when freed */
    int *owner;     /* by storage id: 1 + id of the first value in its buffer; 0: not transient */
} Plan;

static bool is_leaf(const Value *v) {
    return (op_info[v->def->op].flags & OPF_LEAF) != 0;
}

static void lifetimes(Plan *p) {
    int n = p->k->kernels.n;
    for (int i = 0; i < p->g->next_value; i++)
        p->last[i] = p->made[i] = -1;
    for (int i = 0; i < n; i++) {
        const Kernel *k = &p->k->kernels.at[i];
        for (int o = 0; o < k->operands.n; o++)
            p->last[p->k->storage[k->operands.at[o]->id]->id] = i;
        for (int r = 0; r < k->roots.n; r++)
            p->made[k->roots.at[r]->id] = i;
    }
    for (int i = 0; i < p->g->outputs.n; i++)
        p->last[p->k->storage[p->g->outputs.at[i].value->id]->id] = n;
    for (int i = 0; i < p->g->updates.n; i++)
        p->last[p->k->storage[p->g->updates.at[i].value->id]->id] = n;
}

static void place_persistent(Plan *p) {
    int64_t at = 0;
    FOR_NODES(n, p->g) {
        if (!(op_info[n->op].flags & OPF_LEAF))
            continue;
        const Value *v = n->out[0];
        if (n->op == OP_CONST && p->last[v->id] < 0)
            continue;
        p->m->offset[v->id] = at;
        at += value_bytes(v);
    }
    p->m->persistent_bytes = at;
}

/* The kernel reads v at the index root stores only, before the store. The matrix product itself is
 * stored before its epilogue reads anything. */
static bool same_index(const Kernel *k, const Plan *p, const Value *root, const Value *storage) {
    if (k->kind == KERNEL_GEMM && root->def == k->main)
        return false;
    for (int i = 0; i < k->same_index.n; i++)
        if (p->k->storage[k->same_index.at[i]->id] == storage)
            return true;
    return false;
}

/* Decides which updates are computed in place: the new value then lives at the param's offset. */
static void place_updates(Plan *p) {
    const Graph *g = p->g;
    bool *kept = xcalloc((size_t)g->next_value + 1,
                         sizeof *kept); /* its old value is asked for after the step's kernels */
    for (int i = 0; i < g->outputs.n; i++)
        kept[p->k->storage[g->outputs.at[i].value->id]->id] = true;
    for (int i = 0; i < g->updates.n; i++)
        kept[p->k->storage[g->updates.at[i].value->id]->id] |=
            is_leaf(p->k->storage[g->updates.at[i].value->id]);
    for (int i = 0; i < g->updates.n; i++) {
        const Value *v = g->updates.at[i].value, *param = g->updates.at[i].param,
                    *s = p->k->storage[v->id];
        if (is_leaf(s) || value_bytes(s) != value_bytes(v) || p->m->offset[s->id] >= 0 ||
            kept[param->id])
            continue;
        int made = p->made[s->id], read = p->last[param->id];
        if (read > made || (read == made && !same_index(&p->k->kernels.at[made], p, s, param)))
            continue;
        p->m->offset[s->id] = p->m->offset[param->id];
        p->m->updated[i] = true;
    }
    free(kept);
}

/* The storage of an operand that dies at kernel i and whose buffer root v can take; NULL: none. */
static Value *dying(const Plan *p, int i, const Value *v) {
    const Kernel *k = &p->k->kernels.at[i];
    if (k->kind == KERNEL_GEMM && v->def == k->main)
        return NULL;
    for (int o = 0; o < k->same_index.n; o++) {
        Value *s = p->k->storage[k->same_index.at[o]->id];
        if (p->last[s->id] == i && !is_leaf(s) && p->made[s->id] < i && !p->shares[s->id] &&
            s->dtype == v->dtype && value_count(s) == value_count(v) &&
            p->m->offset[s->id] >= p->m->persistent_bytes)
            return s;
    }
    return NULL;
}

static void place_kernel(Plan *p, Space *space, int i) {
    const Kernel *k = &p->k->kernels.at[i];
    for (int r = 0; r < k->roots.n; r++) {
        Value *v = k->roots.at[r];
        if (p->m->offset[v->id] >= 0)
            continue;
        Value *from = dying(p, i, v);
        if (from) {
            p->shares[from->id] = v; /* not given back: v has it */
            p->m->offset[v->id] = p->m->offset[from->id];
            p->owner[v->id] = p->owner[from->id];
        } else {
            p->owner[v->id] = v->id + 1;
            p->m->offset[v->id] = space_take(space, value_bytes(v));
        }
    }
    if (k->scratch_bytes) {
        p->m->scratch[i] = space_take(space, padded(k->scratch_bytes));
        space_give(space, p->m->scratch[i], padded(k->scratch_bytes));
    }
}

/* After kernel i: what it read last, and results nobody reads, give their bytes back. */
static void release(Plan *p, Space *space, int i) {
    const Kernel *k = &p->k->kernels.at[i];
    for (int o = 0; o < k->operands.n + k->roots.n; o++) {
        Value *s = o < k->operands.n ? p->k->storage[k->operands.at[o]->id]
                                     : k->roots.at[o - k->operands.n];
        int last = p->last[s->id] < 0 ? p->made[s->id] : p->last[s->id];
        if (last != i || is_leaf(s) || p->shares[s->id] ||
            p->m->offset[s->id] < p->m->persistent_bytes)
            continue;
        space_give(space, p->m->offset[s->id], value_bytes(s));
        p->shares[s->id] = s; /* given back once */
    }
}

/* ---- largest first ---- */

typedef struct Buffer {
    int id; /* of its owner; or kernel, if scratch */
    bool scratch;
    int first, last; /* kernels */
    int64_t bytes, at;
} Buffer;
typedef VEC(Buffer) Buffers;

static void list_buffers(const Plan *p, Buffers *out) {
    int *index = xcalloc((size_t)p->g->next_value + 1, sizeof *index);
    for (int i = 0; i < p->k->kernels.n; i++) {
        const Kernel *k = &p->k->kernels.at[i];
        for (int r = 0; r < k->roots.n; r++) {
            const Value *v = k->roots.at[r];
            int owner = p->owner[v->id] - 1, last = p->last[v->id] < i ? i : p->last[v->id];
            if (owner < 0)
                continue;
            if (!index[owner]) {
                vec_push(out, ((Buffer){owner, false, i, last, value_bytes(v), 0}));
                index[owner] = out->n;
            }
            Buffer *b = &out->at[index[owner] - 1];
            b->last = last > b->last ? last : b->last;
        }
        if (k->scratch_bytes)
            vec_push(out, ((Buffer){i, true, i, i, padded(k->scratch_bytes), 0}));
    }
    free(index);
}

static int by_size(const void *a, const void *b) {
    const Buffer *x = a, *y = b;
    if (x->bytes != y->bytes)
        return x->bytes > y->bytes ? -1 : 1;
    return x->first != y->first ? (x->first > y->first) - (x->first < y->first)
                                : (x->id > y->id) - (x->id < y->id);
}

static int by_place(const void *a, const void *b) {
    const Buffer *x = *(Buffer *const *)a, *y = *(Buffer *const *)b;
    return (x->at > y->at) - (x->at < y->at);
}

/* Places all buffers from `base` on; returns where they end. */
static int64_t place_by_size(Buffers *all, int64_t base) {
    Buffer **near = xcalloc((size_t)all->n + 1, sizeof *near);
    int64_t end = base;
    if (all->n)
        qsort(all->at, (size_t)all->n, sizeof *all->at, by_size);
    for (int i = 0; i < all->n; i++) {
        Buffer *b = &all->at[i];
        int n = 0;
        for (int j = 0; j < i; j++)
            if (all->at[j].first <= b->last && b->first <= all->at[j].last)
                near[n++] = &all->at[j];
        qsort(near, (size_t)n, sizeof(Buffer *), by_place);
        b->at = base;
        for (int j = 0; j < n && near[j]->at < b->at + b->bytes; j++)
            if (near[j]->at + near[j]->bytes > b->at)
                b->at = near[j]->at + near[j]->bytes;
        end = b->at + b->bytes > end ? b->at + b->bytes : end;
    }
    free(near);
    return end;
}

/* The end of the arena after trying; offsets are changed if it is nearer than `end`. */
static int64_t tighten(Plan *p, int64_t end) {
    enum { MOST = 6000 }; /* buffers: the work grows with their square */
    Buffers all = {0};
    MemoryPlan *m = p->m;
    list_buffers(p, &all);
    int64_t tight = all.n <= MOST ? place_by_size(&all, m->persistent_bytes) : end;
    for (int i = 0; tight < end && i < all.n; i++) {
        const Buffer *b = &all.at[i];
        *(b->scratch ? &m->scratch[b->id] : &m->offset[b->id]) = b->at;
    }
    for (int i = 0; tight < end && i < p->g->next_value; i++)
        if (p->owner[i] > 0)
            m->offset[i] = m->offset[p->owner[i] - 1];
    vec_free(&all);
    return tight < end ? tight : end;
}

MemoryPlan *plan_memory(const Graph *g, const KernelPlan *k) {
    MemoryPlan *m = xcalloc(1, sizeof *m);
    size_t n = (size_t)g->next_value + 1;
    m->offset = xcalloc(n, sizeof *m->offset);
    m->scratch = xcalloc((size_t)k->kernels.n + 1, sizeof *m->scratch);
    m->updated = xcalloc((size_t)g->updates.n + 1, sizeof *m->updated);
    for (size_t i = 0; i < n; i++)
        m->offset[i] = -1;
    for (int i = 0; i < k->kernels.n; i++)
        m->scratch[i] = -1;
    Plan p = {g,
              k,
              m,
              xcalloc(n, sizeof(int)),
              xcalloc(n, sizeof(int)),
              xcalloc(n, sizeof(Value *)),
              xcalloc(n, sizeof(int))};
    lifetimes(&p);
    place_persistent(&p);
    place_updates(&p);
    Space space = {.end = m->persistent_bytes, .peak = m->persistent_bytes};
    for (int i = 0; i < k->kernels.n; i++) {
        place_kernel(&p, &space, i);
        release(&p, &space, i);
    }
    m->total_bytes = m->touched_bytes = tighten(&p, space.peak);
    vec_free(&space.gaps);
    free(p.last);
    free(p.made);
    free(p.shares);
    free(p.owner);
    return m;
}

void memory_plan_free(MemoryPlan *p) {
    if (!p)
        return;
    free(p->offset);
    free(p->scratch);
    free(p->updated);
    free(p);
}
