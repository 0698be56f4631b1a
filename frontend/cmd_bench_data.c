/* cmd_bench_data.c: what `stgcc bench` feeds the model: --data, or values made up to fit it. */
#include "frontend/cmd_bench.h"

#include <string.h>

/* Sizes that nothing gives are the recipe's: the first axis of an input is the batch, the second
 * the sequence. */
static void sizes_of_recipe(Bench *b) {
    Job *j = &b->job;
    for (int i = 0; i < j->g->inputs.n; i++)
        for (int k = 0; k < 2; k++) {
            const Value *v = j->g->inputs.at[i];
            if (k >= v->rank || v->dims[k] >= 0)
                continue;
            int64_t size = k ? j->recipe->train.sequence : j->recipe->train.batch;
            const char *name = dim_name(j->g, v->dims[k]);
            const char *flag = arena_printf(&j->arena, "%s=%lld", name, (long long)size);
            bool given = false;
            for (int n = 0; n < b->options.dims.n; n++)
                given |= !strcmp(b->options.dims.at[n], flag);
            if (!given)
                vec_push(&b->options.dims, flag);
        }
}

static bool dims_given(const Bench *b) {
    return b->options.dims.n > 0;
}

bool bench_data(Bench *b) {
    Job *j = &b->job;
    b->random_data = !j->o->data;
    if (j->o->data)
        return job_load_data(j);
    if (!dims_given(b))
        sizes_of_recipe(b);
    return true;
}

/* How many rows the tables have that v's integers are looked up in; 0: none. */
static int64_t table_rows(const Value *v, int depth) {
    int64_t rows = 0;
    for (int i = 0; i < v->uses.n && depth < 8; i++) {
        const Node *n = v->uses.at[i].node;
        int64_t here = 0;
        if (n->op == OP_GATHER && v->uses.at[i].operand == 1) {
            int64_t axis = node_int(n, AT_AXIS, 0);
            here = n->in[0]->dims[axis < 0 ? axis + n->in[0]->rank : axis];
        } else if (n->op == OP_CAST || n->op == OP_RESHAPE) {
            here = table_rows(n->out[0], depth + 1);
        }
        if (here > 0 && (!rows || here < rows))
            rows = here;
    }
    return rows;
}

/* Integers are ids below what they are looked up in, labels below the number of classes, masks 1.
 */
static void make_up(Tensor *t, int64_t below, uint64_t seed) {
    for (int64_t i = 0, n = tensor_count(t); i < n; i++) {
        uint64_t r = hash_bytes(&i, sizeof i, seed) >> 11;
        if (dtype_is_float(t->dtype))
            tensor_set_f(t, i, (double)r / 4503599627370496.0 - 1); /* -1..1 */
        else
            tensor_set_i(t, i, below > 0 ? (int64_t)(r % (uint64_t)below) : 1);
    }
}

bool bench_fill(Bench *b, const Graph *g) {
    Job *j = &b->job;
    LabelRule labels = label_rule(g, j->recipe);
    for (int i = 0; b->random_data && i < g->inputs.n; i++) {
        const Value *v = g->inputs.at[i];
        const char *name = node_str(v->def, AT_NAME, "");
        if (!strcmp(name, "hyper") || arrays_find(&j->data, name))
            continue;
        bool label = labels.name && !strcmp(name, labels.name);
        Tensor *t = tensor_new(&j->data.arena, v->dtype, v->rank, v->dims);
        make_up(t, label ? labels.classes : table_rows(v, 0), (uint64_t)(i + 1));
        vec_push(&j->data.names, arena_strdup(&j->data.arena, name));
        vec_push(&j->data.tensors, t);
    }
    return true;
}
