/* infer_dims.c: shapes of the elementwise, shape and reduction ops (see infer_dims.h). */
#include "ir/infer_dims.h"

#include <math.h>
#include <string.h>

bool fault(Fault *f, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(f->text, sizeof(f->text), fmt, args);
    va_end(args);
    return false;
}

Dims dims_of(const Value *v) {
    Dims x = {.rank = v->rank};
    if (v->rank > 0)
        memcpy(x.at, v->dims, sizeof(int64_t) * (size_t)v->rank);
    return x;
}

const char *dims_text(const Dims *x, char *buf, size_t size) {
    size_t at = (size_t)snprintf(buf, size, "[");
    for (int i = 0; i < x->rank && at < size; i++) {
        const char *comma = i ? "," : "";
        if (x->at[i] < 0)
            at += (size_t)snprintf(buf + at, size - at, "%s?", comma);
        else
            at += (size_t)snprintf(buf + at, size - at, "%s%lld", comma, (long long)x->at[i]);
    }
    if (at < size)
        snprintf(buf + at, size - at, "]");
    return buf;
}

bool dims_known(const Dims *x) {
    for (int i = 0; i < x->rank; i++)
        if (x->at[i] < 0)
            return false;
    return x->rank >= 0;
}

bool dim_fits(int64_t a, int64_t b) {
    return a == b || a < 0 || b < 0;
}

bool dims_fit(const Dims *a, const Dims *b) {
    if (a->rank != b->rank)
        return false;
    for (int i = 0; i < a->rank; i++)
        if (!dim_fits(a->at[i], b->at[i]))
            return false;
    return true;
}

bool dims_push(Dims *x, int64_t dim, Fault *f) {
    if (x->rank == MAX_RANK)
        return fault(f, "the result has more than %d axes, which is not supported", MAX_RANK);
    x->at[x->rank++] = dim;
    return true;
}

bool shape_axis(int64_t axis, int rank, int *out, Fault *f) {
    if (axis < -(int64_t)rank || axis >= rank)
        return fault(f, "axis %lld is outside a shape of rank %d (expected %d..%d)",
                     (long long)axis, rank, -rank, rank - 1);
    *out = (int)(axis < 0 ? axis + rank : axis);
    return true;
}

/* Two symbols may both be right (one of them 1): the older one, that of an input, is kept; sizes
 * are bound and shapes inferred again before anything is computed. Beside a DIM_UNKNOWN a symbol
 * proves nothing, since it may stand for 1. */
static bool join_dim(int64_t a, int64_t b, int64_t *out) {
    if (a == b || b == 1)
        *out = a;
    else if (a == 1)
        *out = b;
    else if (a >= 0 && b >= 0)
        return false;
    else if (a < 0 && b < 0 && (a == DIM_UNKNOWN || b == DIM_UNKNOWN))
        *out = DIM_UNKNOWN;
    else
        *out = a > b ? a : b;
    return true;
}

bool shape_broadcast(const Dims *a, const Dims *b, Dims *out, Fault *f) {
    Dims r = {.rank = a->rank > b->rank ? a->rank : b->rank};
    for (int i = 1; i <= r.rank; i++) {
        int64_t x = i <= a->rank ? a->at[a->rank - i] : 1;
        int64_t y = i <= b->rank ? b->at[b->rank - i] : 1;
        if (!join_dim(x, y, &r.at[r.rank - i]))
            return fault(f,
                         "shapes %s and %s do not broadcast: sizes %lld and %lld on axis -%d "
                         "(expected equal sizes, or 1)",
                         DIMS_TEXT(a), DIMS_TEXT(b), (long long)x, (long long)y, i);
    }
    *out = r;
    return true;
}

/* ---- reshape ---- */

/* A size with symbols: known * product of the symbols. */
typedef struct Product {
    int64_t known;
    int n;
    int64_t symbols[MAX_RANK];
} Product;

static bool product_times(Product *p, int64_t dim) {
    if (dim < 0) {
        p->symbols[p->n++] = dim;
        return true;
    }
    return !__builtin_mul_overflow(p->known, dim, &p->known);
}

static void product_cancel(Product *p, int64_t symbol) {
    for (int i = 0; i < p->n; i++) {
        if (p->symbols[i] != symbol)
            continue;
        p->symbols[i] = p->symbols[--p->n];
        return;
    }
}

/* Beside a 0 the number of elements does not tell the -1. Axes that stay as they are do: they go on
 * both sides, from either end, and what is left of x is shared by what is left of the result
 * ([0,4,24] to [0,4,3,-1]: 24 by 3). */
static bool reshape_rest_beside_zero(const Dims *x, const Dims *r, int rest, int64_t *size) {
    int first = 0, x_end = x->rank, r_end = r->rank;
    int64_t have = 1, taken = 1;
    while (first < rest && first < x_end && x->at[first] == r->at[first])
        first++;
    while (r_end - 1 > rest && x_end - 1 >= first && x->at[x_end - 1] == r->at[r_end - 1])
        x_end--, r_end--;
    for (int i = first; i < x_end; i++)
        if (x->at[i] < 0 || __builtin_mul_overflow(have, x->at[i], &have))
            return false;
    for (int i = first; i < r_end; i++)
        if (i != rest && (r->at[i] < 0 || __builtin_mul_overflow(taken, r->at[i], &taken)))
            return false;
    if (taken == 0 || have % taken)
        return false;
    *size = have / taken;
    return true;
}

/* Size of the one -1: what x has over what the other dims take. */
static bool reshape_rest(const Dims *x, const Product *have, const Product *taken, int64_t *rest,
                         Fault *f) {
    if (have->n == 0 || have->known == 0) {
        if (taken->known == 0)
            return fault(f, "the -1 of a reshape of %s is ambiguous beside a 0", DIMS_TEXT(x));
        if (have->known % taken->known != 0)
            return fault(f, "cannot reshape %s: %lld elements are not a multiple of %lld",
                         DIMS_TEXT(x), (long long)have->known, (long long)taken->known);
        *rest = have->known / taken->known;
    } else {
        *rest = have->n == 1 && have->known == taken->known ? have->symbols[0] : DIM_UNKNOWN;
    }
    return true;
}

bool shape_reshape(const Dims *x, const int64_t *want, int n, bool zero_copies, Dims *out,
                   Fault *f) {
    Product have = {.known = 1}, taken = {.known = 1};
    int rest = -1;
    if (n > MAX_RANK)
        return fault(f, "cannot reshape to %d axes: more than %d are not supported", n, MAX_RANK);
    Dims r = {.rank = n};
    for (int i = 0; i < x->rank; i++)
        if (!product_times(&have, x->at[i]))
            return fault(f, "the size of %s overflows", DIMS_TEXT(x));
    for (int i = 0; i < n; i++) {
        if (want[i] == -1 && rest >= 0)
            return fault(f, "a reshape may have one -1, found two (axes %d and %d)", rest, i);
        if (want[i] < -1)
            return fault(f, "size %lld on axis %d of a reshape (expected -1 or more)",
                         (long long)want[i], i);
        if (want[i] == -1) {
            rest = i;
            continue;
        }
        if (want[i] == 0 && zero_copies && i >= x->rank)
            return fault(f, "the 0 on axis %d of a reshape copies an axis that %s does not have", i,
                         DIMS_TEXT(x));
        r.at[i] = want[i] == 0 && zero_copies ? x->at[i] : want[i];
        if (r.at[i] < 0)
            product_cancel(&have, r.at[i]);
        else if (!product_times(&taken, r.at[i]))
            return fault(f, "the size of a reshape overflows");
    }
    if (rest >= 0 && taken.known == 0 && reshape_rest_beside_zero(x, &r, rest, &r.at[rest])) {
        *out = r;
        return true;
    }
    if (rest >= 0) {
        if (!reshape_rest(x, &have, &taken, &r.at[rest], f))
            return false;
    } else if (have.n == 0 && have.known != taken.known) {
        /* Copied symbols cancelled on both sides, so the known parts must agree. */
        return fault(f, "cannot reshape %s to %s: %lld elements against %lld", DIMS_TEXT(x),
                     DIMS_TEXT(&r), (long long)have.known, (long long)taken.known);
    } else if (have.n > 0 && have.known != 0 && taken.known % have.known != 0) {
        return fault(f, "cannot reshape %s to %s: %lld is not a multiple of %lld", DIMS_TEXT(x),
                     DIMS_TEXT(&r), (long long)taken.known, (long long)have.known);
    }
    *out = r;
    return true;
}

bool shape_transpose(const Dims *x, const int64_t *perm, int n, Dims *out, Fault *f) {
    unsigned seen = 0;
    if (n != x->rank)
        return fault(f, "perm has %d entries for shape %s (expected %d)", n, DIMS_TEXT(x), x->rank);
    Dims r = {.rank = n};
    for (int i = 0; i < n; i++) {
        if (perm[i] < 0 || perm[i] >= n || (seen >> perm[i] & 1))
            return fault(f, "perm is not a permutation of 0..%d: entry %d is %lld", n - 1, i,
                         (long long)perm[i]);
        seen |= 1u << perm[i];
        r.at[i] = x->at[perm[i]];
    }
    *out = r;
    return true;
}

/* ---- slice, concat, pad ---- */

static int64_t clamp(int64_t v, int64_t lo, int64_t hi) {
    return v < lo ? lo : v > hi ? hi : v;
}

Span slice_span(int64_t dim, int64_t start, int64_t end, int64_t step) {
    Span s = {.step = step};
    if (start < 0)
        start = start < -dim ? -1 : start + dim;
    if (end < 0)
        end = end < -dim ? -1 : end + dim;
    if (step > 0) {
        s.start = clamp(start, 0, dim);
        end = clamp(end, 0, dim);
        s.count = end > s.start ? (end - s.start - 1) / step + 1 : 0;
    } else {
        s.start = clamp(start, -1, dim - 1);
        end = clamp(end, -1, dim - 1);
        /* -(step + 1) + 1 without overflow at INT64_MIN */
        uint64_t back = 0u - (uint64_t)step;
        s.count = s.start > end ? (int64_t)(((uint64_t)(s.start - end) - 1) / back) + 1 : 0;
        if (s.start < 0)
            s.start = 0;
    }
    return s;
}

bool shape_slice(const Dims *x, int n, const int64_t *axes, const int64_t *starts,
                 const int64_t *ends, const int64_t *steps, Span *spans, Dims *out, Fault *f) {
    unsigned seen = 0;
    Dims r = *x;
    for (int i = 0; spans && i < x->rank; i++)
        spans[i] = (Span){0, 1, x->at[i]};
    for (int i = 0; i < n; i++) {
        int axis;
        int64_t step = steps ? steps[i] : 1;
        if (!shape_axis(axes ? axes[i] : i, x->rank, &axis, f))
            return false;
        if (seen >> axis & 1)
            return fault(f, "a slice names axis %d twice", axis);
        if (step == 0)
            return fault(f, "the slice step on axis %d is 0", axis);
        seen |= 1u << axis;
        if (x->at[axis] >= 0) {
            Span s = slice_span(x->at[axis], starts[i], ends[i], step);
            r.at[axis] = s.count;
            if (spans)
                spans[axis] = s;
        } else if (!(starts[i] == 0 && ends[i] >= INT32_MAX && step == 1)) {
            r.at[axis] = DIM_UNKNOWN;
            if (spans)
                spans[axis] = (Span){starts[i], step, DIM_UNKNOWN};
        }
    }
    *out = r;
    return true;
}

bool shape_concat(const Dims *const *x, int n, int axis, Dims *out, Fault *f) {
    Dims r = *x[0];
    for (int i = 1; i < n; i++) {
        if (x[i]->rank != r.rank)
            return fault(f, "cannot concatenate shapes %s and %s: ranks differ", DIMS_TEXT(x[0]),
                         DIMS_TEXT(x[i]));
        for (int k = 0; k < r.rank; k++) {
            int64_t d = x[i]->at[k];
            if (k == axis) {
                if (r.at[k] < 0 || d < 0)
                    r.at[k] = DIM_UNKNOWN;
                else if (__builtin_add_overflow(r.at[k], d, &r.at[k]))
                    return fault(f, "the concatenated size overflows");
            } else if (!dim_fits(r.at[k], d)) {
                return fault(f, "cannot concatenate shapes %s and %s on axis %d: axis %d differs",
                             DIMS_TEXT(x[0]), DIMS_TEXT(x[i]), axis, k);
            } else if (d > r.at[k]) { /* known beats a symbol, an older symbol a newer one */
                r.at[k] = d;
            }
        }
    }
    if (n == 1)
        r = *x[0];
    *out = r;
    return true;
}

bool shape_pad(const Dims *x, const int64_t *pads, int n, Dims *out, Fault *f) {
    if (n != 2 * x->rank)
        return fault(f, "pads has %d entries for shape %s (expected %d)", n, DIMS_TEXT(x),
                     2 * x->rank);
    Dims r = *x;
    for (int i = 0; i < x->rank; i++) {
        int64_t before = pads[i], after = pads[x->rank + i];
        if (before == 0 && after == 0)
            continue;
        if (x->at[i] < 0) {
            r.at[i] = DIM_UNKNOWN;
            continue;
        }
        if (__builtin_add_overflow(r.at[i], before, &r.at[i]) ||
            __builtin_add_overflow(r.at[i], after, &r.at[i]) || r.at[i] < 0 ||
            x->at[i] + before < 0 || x->at[i] + after < 0)
            return fault(f, "pads %lld and %lld do not fit axis %d of %s", (long long)before,
                         (long long)after, i, DIMS_TEXT(x));
    }
    *out = r;
    return true;
}

/* ---- reductions, range ---- */

void shape_reduce(const Dims *x, const int64_t *axes, int n, bool keep, Dims *out) {
    unsigned gone = 0;
    Dims r = {0};
    for (int i = 0; i < n; i++)
        gone |= 1u << axes[i];
    for (int i = 0; i < x->rank; i++) {
        if (!(gone >> i & 1))
            r.at[r.rank++] = x->at[i];
        else if (keep)
            r.at[r.rank++] = 1;
    }
    *out = r;
}

bool shape_reduce_axes(const Node *n, int rank, int64_t *axes, int *count, Fault *f) {
    const int64_t *given;
    int k = node_ints(n, AT_AXES, &given);
    unsigned seen = 0;
    for (int i = 0; i < k; i++) {
        int axis;
        if (!shape_axis(given[i], rank, &axis, f))
            return false;
        if (seen >> axis & 1)
            return fault(f, "axis %d is reduced twice", axis);
        seen |= 1u << axis;
    }
    if (!node_attr(n, AT_AXES))
        seen = (1u << rank) - 1;
    *count = 0;
    for (int i = 0; i < rank; i++)
        if (seen >> i & 1)
            axes[(*count)++] = i;
    return true;
}

bool shape_range(double start, double limit, double delta, int64_t *count, Fault *f) {
    if (delta == 0 || !isfinite(start) || !isfinite(limit) || !isfinite(delta))
        return fault(f, "a range from %g to %g by %g has no size", start, limit, delta);
    double n = ceil((limit - start) / delta);
    if (n > 0x1p37)
        return fault(f, "a range from %g to %g by %g has %g elements, which is too many", start,
                     limit, delta, n);
    *count = n > 0 ? (int64_t)n : 0;
    return true;
}
