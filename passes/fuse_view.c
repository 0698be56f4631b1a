/* fuse_view.c: a matrix operand seen through the ops that only rearrange it: element strides into
 * what is stored. */
#include "passes/fuse.h"

#include <string.h>

typedef struct Strides {
    Value *base;
    int64_t offset, at[MAX_RANK];
} Strides;

typedef bool Stored(const Value *, void *);

/* Strides of dims `to` over the same elements as `from` with strides `s`; false if they are not
 * regular. */
static bool reshape_strides(const Value *from, const int64_t *s, const Value *to, int64_t *out) {
    int i = from->rank - 1, j = to->rank - 1;
    while (i >= 0 || j >= 0) {
        while (i >= 0 && from->dims[i] == 1)
            i--;
        while (j >= 0 && to->dims[j] == 1)
            out[j--] = 0;
        if (i < 0 || j < 0)
            return i < 0 && j < 0;
        /* the smallest runs of equal size that end here; the source run must be one regular axis */
        int64_t have = from->dims[i], want = to->dims[j], step = s[i];
        int i0 = i, j0 = j;
        while (have != want) {
            if (have < want) {
                if (--i0 < 0)
                    return false;
                if (from->dims[i0] == 1)
                    continue;
                if (s[i0] != step * have)
                    return false;
                have *= from->dims[i0];
            } else {
                if (--j0 < 0)
                    return false;
                want *= to->dims[j0];
            }
        }
        for (int k = j; k >= j0; k--) {
            out[k] = step;
            step *= to->dims[k];
        }
        i = i0 - 1, j = j0 - 1;
    }
    return true;
}

static bool strides_of(const Value *v, Stored *stored, void *ctx, Strides *out) {
    if (stored(v, ctx)) {
        int64_t step = 1;
        out->base = (Value *)v;
        out->offset = 0;
        for (int i = v->rank - 1; i >= 0; i--) {
            out->at[i] = step;
            step *= v->dims[i];
        }
        return true;
    }
    const Node *n = v->def;
    if (n->op != OP_TRANSPOSE && n->op != OP_EXPAND && n->op != OP_SLICE && n->op != OP_RESHAPE)
        return false;
    const Value *x = n->in[0];
    Strides s;
    if (value_count(v) == 0 || !strides_of(x, stored, ctx, &s))
        return false;
    *out = (Strides){.base = s.base, .offset = s.offset};
    const int64_t *list, *starts, *steps;
    if (n->op == OP_RESHAPE)
        return reshape_strides(x, s.at, v, out->at);
    if (n->op == OP_TRANSPOSE) {
        node_ints(n, AT_PERM, &list);
        for (int i = 0; i < v->rank; i++)
            out->at[i] = s.at[list[i]];
        return true;
    }
    if (n->op == OP_EXPAND) {
        for (int i = 0; i < x->rank; i++)
            out->at[v->rank - x->rank + i] = x->dims[i] == 1 ? 0 : s.at[i];
        return true;
    }
    memcpy(out->at, s.at, sizeof s.at);
    int k = node_ints(n, AT_AXES, &list), nsteps = node_ints(n, AT_STEPS, &steps);
    node_ints(n, AT_STARTS, &starts);
    for (int i = 0; i < k; i++) {
        out->offset += starts[i] * s.at[list[i]];
        out->at[list[i]] *= nsteps ? steps[i] : 1;
    }
    return true;
}

bool matrix_view(const Value *v, bool (*stored)(const Value *, void *), void *ctx,
                 MatrixView *out) {
    Strides s = {0};
    if (!strides_of(v, stored, ctx, &s))
        return false;
    *out = (MatrixView){.base = s.base, .offset = s.offset, .row = 1, .col = 1};
    if (v->rank >= 1)
        out->col = s.at[v->rank - 1];
    if (v->rank >= 2) {
        out->row = s.at[v->rank - 2];
        out->nbatch = v->rank - 2;
        memcpy(out->batch_stride, s.at, sizeof(int64_t) * (size_t)out->nbatch);
    }
    return true;
}
