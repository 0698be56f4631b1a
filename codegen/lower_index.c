/* lower_index.c: places as mixed-radix digits. Regrouping splits and joins digits only where the
 * two lists of sizes do not align, so that a loop's innermost index stays free of divisions where
 * shapes permit. */
#include "codegen/lower.h"

int64_t dims_product(const int64_t *dims, int from, int to) {
    int64_t p = 1;
    for (int i = from; i < to; i++)
        p *= dims[i];
    return p;
}

Index index_one(int64_t size, Ex v) {
    Index ix = {0};
    index_push(&ix, size, v);
    return ix;
}

void index_push(Index *ix, int64_t size, Ex v) {
    if (size == 1)
        return;
    ASSERT(ix->n < MAX_DIGITS);
    ix->size[ix->n] = size;
    ix->v[ix->n++] = v;
}

Ex index_linear(Kern *K, const Index *ix) {
    if (!ix->n)
        return ex_i(K, 0);
    Ex v = ix->v[0];
    for (int i = 1; i < ix->n; i++)
        v = ex_add(K, ex_mulc(K, v, ix->size[i]), ix->v[i]);
    return v;
}

/* Takes pieces off the low end of both lists; a piece belongs to one digit of each. A digit that
 * divides neither way is first joined with the next one. */
void index_split(Kern *K, const Index *ix, int n, const int64_t *sizes, Ex *out) {
    int i = ix->n - 1;
    int64_t rest = i >= 0 ? ix->size[i] : 1; /* of the source digit in hand */
    Ex v = i >= 0 ? ix->v[i] : ex_i(K, 0);
    for (int j = n - 1; j >= 0; j--) {
        int64_t want = sizes[j], scale = 1;
        Ex sum = ex_i(K, 0);
        while (want > 1) {
            if (rest == 1) {
                ASSERT(i > 0);
                i--, rest = ix->size[i], v = ix->v[i];
            } else if (want % rest == 0) {
                sum = ex_add(K, ex_mulc(K, v, scale), sum);
                scale *= rest, want /= rest, rest = 1;
            } else if (rest % want == 0) {
                Ex c = ex_i(K, want);
                sum = ex_add(K, ex_mulc(K, ex_2(K, L_REM, v, c), scale), sum);
                v = ex_2(K, L_DIV, v, c);
                rest /= want, want = 1;
            } else {
                ASSERT(i > 0);
                i--;
                v = ex_add(K, ex_mulc(K, ix->v[i], rest), v);
                rest *= ix->size[i];
            }
        }
        out[j] = sum;
    }
}

Index index_broadcast(Kern *K, const Index *ix, int of_rank, const int64_t *of, int rank,
                      const int64_t *dims) {
    int64_t sizes[MAX_RANK];
    bool keep[MAX_RANK];
    Ex digit[MAX_RANK];
    int groups = 0;
    bool all = true;
    for (int i = 0; i < of_rank; i++) {
        if (of[i] == 1)
            continue;
        int k = i - (of_rank - rank);
        bool kept = k >= 0 && dims[k] != 1;
        all &= kept;
        if (groups && keep[groups - 1] == kept) {
            sizes[groups - 1] *= of[i];
        } else {
            sizes[groups] = of[i];
            keep[groups++] = kept;
        }
    }
    if (all)
        return *ix;
    Index out = {0};
    index_split(K, ix, groups, sizes, digit);
    for (int i = 0; i < groups; i++)
        if (keep[i])
            index_push(&out, sizes[i], digit[i]);
    return out;
}
