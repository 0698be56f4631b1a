/* bind.c: binds a model's symbolic dims from --dim flags or the shapes of a batch, and checks
 * arrays against inputs.
 *
 * A symbol has one size: the first array that shows it decides, the next must agree; both are named
 * when they do not. */
#include "frontend/bind.h"

#include <stdlib.h>
#include <string.h>

/* ---- text ---- */

static const char *type_text(const Graph *g, DType t, int rank, const int64_t *dims, Arena *a) {
    const char *s = arena_printf(a, "%s[", dtype_name(t));
    for (int i = 0; i < rank; i++)
        s = dims[i] >= 0 ? arena_printf(a, "%s%s%lld", s, i ? "," : "", (long long)dims[i])
                         : arena_printf(a, "%s%s%s", s, i ? "," : "", dim_name(g, dims[i]));
    return arena_printf(a, "%s]", s);
}

const char *value_type_text(const Graph *g, const Value *v, Arena *a) {
    return v->rank < 0 ? dtype_name(v->dtype) : type_text(g, v->dtype, v->rank, v->dims, a);
}

const char *tensor_type_text(const Tensor *t, Arena *a) {
    return type_text(NULL, t->dtype, t->rank, t->dims, a);
}

static const char *input_name(const Value *v) {
    return node_str(v->def, AT_NAME, "");
}

/* ---- symbols ---- */

/* Symbols that the model's inputs show, in order of appearance. */
static int input_symbols(const Graph *g, int64_t *dims, int limit) {
    int n = 0;
    for (int i = 0; i < g->inputs.n; i++)
        for (int k = 0; k < g->inputs.at[i]->rank; k++) {
            int64_t dim = g->inputs.at[i]->dims[k];
            bool seen = dim >= 0;
            for (int j = 0; j < n && !seen; j++)
                seen = dims[j] == dim;
            if (!seen && n < limit)
                dims[n++] = dim;
        }
    return n;
}

enum { MAX_SYMBOLS = 256 };

static bool bind_flag(Graph *g, const char *flag, Diag *d) {
    const char *equals = strchr(flag, '='), *names[MAX_SYMBOLS];
    int64_t dims[MAX_SYMBOLS];
    char *end = NULL;
    long long size = equals ? strtoll(equals + 1, &end, 10) : -1;
    if (!equals || equals == flag || end == equals + 1 || *end || size < 0 || size > INT32_MAX) {
        diag_error(d, EXIT_USAGE, "--dim %s: expected NAME=SIZE, such as --dim batch=8",
                   diag_safe(d, flag));
        return false;
    }
    char *name = arena_strdup(&d->arena, flag);
    name[equals - flag] = 0;
    int n = input_symbols(g, dims, MAX_SYMBOLS);
    const char *list = "";
    for (int i = 0; i < n; i++) {
        names[i] = dim_name(g, dims[i]);
        if (!strcmp(names[i], name)) {
            graph_bind(g, dims[i], size);
            return true;
        }
        list = arena_printf(&d->arena, "%s%s%s", list, i ? ", " : "", diag_safe(d, names[i]));
    }
    const char *near = nearest_word(name, names, n);
    diag_error(d, EXIT_USAGE, "--dim %s: the model has no symbolic dim '%s'", diag_safe(d, flag),
               diag_safe(d, name));
    if (near)
        diag_more(d, "did you mean '%s'?", diag_safe(d, near));
    else if (n)
        diag_more(d, "its inputs have: %s", list);
    else
        diag_more(d, "all its sizes are fixed; leave --dim away or export with dynamic axes");
    return false;
}

bool bind_flags(Graph *g, const StrList *flags, Diag *d) {
    bool ok = true;
    for (int i = 0; i < flags->n; i++)
        ok &= bind_flag(g, flags->at[i], d);
    return ok;
}

void bind_samples(Graph *g) {
    int64_t dims[MAX_SYMBOLS];
    int n = input_symbols(g, dims, MAX_SYMBOLS);
    for (int i = 0; i < n; i++) {
        const char *name = dim_name(g, dims[i]);
        graph_bind(g, dims[i], strstr(name, "batch") || strstr(name, "Batch") ? 2 : 8);
    }
}

bool bind_complete(const Graph *g, Diag *d) {
    bool ok = true;
    for (int i = 0; i < g->inputs.n; i++) {
        const Value *v = g->inputs.at[i];
        for (int k = 0; k < v->rank; k++)
            if (v->dims[k] < 0) {
                const char *name = diag_safe(d, dim_name(g, v->dims[k]));
                diag_error(d, EXIT_USAGE, "input \"%s\" %s: the size of '%s' is not known",
                           diag_safe(d, input_name(v)), value_type_text(g, v, &d->arena), name);
                diag_more(d, "give it with --dim %s=N, or a batch with --data", name);
                ok = false;
                break;
            }
    }
    return ok;
}

/* ---- arrays ---- */

static bool is_integer(DType t) {
    return !dtype_is_float(t) && t != DT_BOOL && t != DT_NONE;
}

/* An array of another integer type will do where all its values fit; f16 and bf16 widen. */
static bool type_fits(DType want, const Tensor *t) {
    if (want == t->dtype)
        return true;
    if (want == DT_F32)
        return t->dtype == DT_F16 || t->dtype == DT_BF16;
    if (want == DT_BF16 || want == DT_F16 || want == DT_F64)
        return want == DT_F64 ? dtype_is_float(t->dtype) : want == DT_BF16 && t->dtype == DT_F32;
    if (!is_integer(want) || !is_integer(t->dtype))
        return false;
    Arena a = {0};
    Tensor *one = tensor_new(&a, want, 0, NULL);
    bool fits = true;
    for (int64_t i = 0, n = tensor_count(t); fits && i < n; i++) {
        int64_t v = tensor_get_i(t, i);
        tensor_set_i(one, 0, v);
        fits = tensor_get_i(one, 0) == v;
    }
    arena_free(&a);
    return fits;
}

/* numpy's name of a type, for what to do about a wrong one. */
static const char *numpy_name(DType t) {
    switch (t) {
    case DT_F32:
        return "float32";
    case DT_F64:
        return "float64";
    case DT_F16:
        return "float16";
    case DT_BOOL:
        return "bool";
    case DT_I32:
        return "int32";
    case DT_I64:
        return "int64";
    default:
        return dtype_name(t);
    }
}

bool array_fits(const Graph *g, const Value *v, const Tensor *t, Diag *d) {
    bool type = type_fits(v->dtype, t), rank = v->rank < 0 || v->rank == t->rank, sizes = rank;
    for (int i = 0; sizes && i < v->rank; i++)
        sizes = v->dims[i] < 0 || v->dims[i] == t->dims[i];
    if (type && sizes)
        return true;
    diag_error(d, EXIT_DATA, "input \"%s\": expected %s, found %s", diag_safe(d, input_name(v)),
               value_type_text(g, v, &d->arena), tensor_type_text(t, &d->arena));
    if (!type)
        diag_more(d, "save the array with .astype('%s')", numpy_name(v->dtype));
    if (!rank)
        diag_more(d, "the array needs %d dims", v->rank);
    return false;
}

const Tensor *array_for(const Graph *g, const Value *v, const NamedArrays *a, Diag *d) {
    const char *name = input_name(v), *list = "";
    const Tensor *t = arrays_find(a, name);
    if (t)
        return t;
    for (int i = 0; i < a->names.n && i < 12; i++)
        list = arena_printf(&d->arena, "%s%s\"%s\" %s", list, i ? ", " : "",
                            diag_safe(d, a->names.at[i]),
                            tensor_type_text(a->tensors.at[i], &d->arena));
    diag_error(d, EXIT_DATA, "no array named \"%s\" for the input %s", diag_safe(d, name),
               value_type_text(g, v, &d->arena));
    const char *near = nearest_word(name, a->names.at, a->names.n);
    if (near)
        diag_more(d, "rename \"%s\" to \"%s\"", diag_safe(d, near), diag_safe(d, name));
    else
        diag_more(d, "the data hold %s", a->names.n ? list : "nothing");
    return NULL;
}

/* What the inputs were before any array decided a size, and which array decided it. */
typedef struct Origins {
    int64_t (*dims)[MAX_RANK]; /* by input */
    const char **by;           /* by symbol: input name, NULL while free */
} Origins;

/* Explains the sizes an array does not have. */
static void explain_sizes(const Graph *g, const Origins *o, int input, const Tensor *t, Diag *d) {
    const Value *v = g->inputs.at[input];
    for (int k = 0; k < v->rank && v->rank == t->rank; k++) {
        int64_t was = o->dims[input][k];
        if (v->dims[k] < 0 || v->dims[k] == t->dims[k])
            continue;
        if (was < 0 && o->by[-was - 1])
            diag_more(d, "'%s' is %lld by the array \"%s\"", diag_safe(d, dim_name(g, was)),
                      (long long)v->dims[k], diag_safe(d, o->by[-was - 1]));
        else
            diag_more(d, "size %lld of dim %d is the model's or given with --dim",
                      (long long)v->dims[k], k);
    }
}

/* Gives the free symbols of one input the sizes of its array. */
static bool bind_input(Graph *g, const Origins *o, int input, const Tensor *t, Diag *d) {
    Value *v = g->inputs.at[input];
    for (int k = 0; k < v->rank; k++) {
        int64_t dim = v->dims[k];
        if (dim < 0) {
            o->by[-dim - 1] = input_name(v);
            graph_bind(g, dim, t->dims[k]);
        }
    }
    return array_fits(g, v, t, d); /* a symbol may stand twice in one shape */
}

bool bind_arrays(Graph *g, const NamedArrays *a, Diag *d) {
    bool ok = true;
    Origins o = {xcalloc((size_t)g->inputs.n, sizeof *o.dims),
                 xcalloc((size_t)g->symbols.n, sizeof *o.by)};
    for (int i = 0; i < g->inputs.n; i++)
        memcpy(o.dims[i], g->inputs.at[i]->dims, sizeof o.dims[i]);
    for (int i = 0; i < g->inputs.n; i++) {
        const Tensor *t = array_for(g, g->inputs.at[i], a, d);
        bool fits = t && array_fits(g, g->inputs.at[i], t, d) && bind_input(g, &o, i, t, d);
        if (t && !fits)
            explain_sizes(g, &o, i, t, d);
        ok &= fits;
    }
    free(o.dims);
    free(o.by);
    return ok;
}
