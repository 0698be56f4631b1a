/* onnx_import.c: ModelProto -> Graph: the walk over nodes in order.
 *
 * Initializers become parameters (floats of two or more elements) or constants, graph inputs become
 * INPUT nodes with their names and symbolic dims, calls of model-local functions are read in place
 * in a scope of their own, every other node goes to its reader. One OpCall per node; see
 * onnx_import.h for how faults leave a reader. */
#include "frontend/onnx_import.h"

#include <stdlib.h>
#include <string.h>

#include "frontend/onnx_emit.h"
#include "frontend/onnx_sizes.h"
#include "ir/infer.h"

static void import_nodes(Import *im, Onnx__NodeProto **nodes, size_t n, Scope *scope,
                         const Frame *frame);

/* ---- faults ---- */

void call_skip(OpCall *c) {
    longjmp(c->leave, 1);
}

const char *call_value_text(OpCall *c, const Value *v) {
    const char *text = arena_printf(&c->im->scratch, "%s[", dtype_name(v->dtype));
    for (int i = 0; i < v->rank; i++)
        text = v->dims[i] < 0 ? arena_printf(&c->im->scratch, "%s%s%s", text, i ? "," : "",
                                             diag_safe(c->im->d, dim_name(c->im->g, v->dims[i])))
                              : arena_printf(&c->im->scratch, "%s%s%lld", text, i ? "," : "",
                                             (long long)v->dims[i]);
    return arena_printf(&c->im->scratch, "%s]", v->rank < 0 ? "?" : text);
}

static const char *call_label(OpCall *c) {
    return arena_printf(&c->im->g->arena, "%s%s", c->scope->prefix, node_label(c->node));
}

void call_fail(OpCall *c, const char *fmt, ...) {
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    Diag *d = c->im->d;
    diag_error(d, EXIT_MODEL, "node \"%s\" (%s): %s", diag_safe(d, call_label(c)),
               diag_safe(d, c->node->op_type), text);
    for (int i = 0; i < c->nin && i < 8 && c->in; i++)
        if (c->in[i])
            diag_more(d, "operand %d \"%s\" %s", i, diag_safe(d, c->node->input[i]),
                      call_value_text(c, c->in[i]));
    const char *needed = c->frame->fn ? NULL : onnx_needed_for(c->im, c->node, NULL);
    if (needed)
        diag_more(d, "%s", needed);
    call_skip(c);
}

/* ---- names ---- */

static Binding *scope_find(const Scope *s, const char *name) {
    for (; s; s = s->parent) {
        Binding *b = strmap_get(&s->names, name);
        if (b)
            return b;
    }
    return NULL;
}

Value *scope_value(const OpCall *c, const char *name) {
    Binding *b = *name ? scope_find(c->scope, name) : NULL;
    return b && !b->failed ? b->value : NULL;
}

static Binding *scope_bind(Import *im, Scope *s, const char *name, Value *v) {
    Binding *b = ARENA_NEW(&im->scratch, Binding);
    b->value = v;
    strmap_put(&s->names, name, b);
    if (v && !v->name)
        v->name = arena_printf(&im->g->arena, "%s%s", s->prefix, name);
    return b;
}

/* ---- leaves ---- */

static void import_initializer(Import *im, const Onnx__TensorProto *t, Scope *s) {
    Tensor *k = onnx_tensor(&im->g->arena, t, "initializer", &im->external, im->d);
    if (!k) {
        scope_bind(im, s, t->name, NULL)->failed = true;
        return;
    }
    Builder b = builder_at_end(im->g, graph_source(im->g, t->name, "initializer"));
    Value *v;
    if (dtype_is_float(k->dtype) && tensor_count(k) >= 2) {
        v = op_param(&b, arena_printf(&im->g->arena, "%s%s", s->prefix, t->name), PARAM_WEIGHT, k);
    } else {
        Node *n = build_node(&b, OP_CONST, NULL, 0, 1);
        node_set_tensor(n, AT_VALUE, k);
        node_infer(n, im->d);
        partial_of_node(im, n);
        v = n->out[0];
    }
    scope_bind(im, s, t->name, v);
}

static const char *dim_param(const Onnx__TensorShapeProto *s, int i) {
    bool named = s->dim[i]->value_case == ONNX__TENSOR_SHAPE_PROTO__DIMENSION__VALUE_DIM_PARAM;
    return named && *s->dim[i]->dim_param ? s->dim[i]->dim_param : NULL;
}

static const Tensor *sized_input(const Import *im, const char *name, int rank) {
    for (int i = 0; im->limits && i < im->limits->nsized; i++)
        if (!strcmp(im->limits->sized[i].name, name) && im->limits->sized[i].tensor->rank == rank)
            return im->limits->sized[i].tensor;
    return NULL;
}

/* Sizes that given tensors decide, by symbol; two inputs that disagree on one symbol are reported.
 */
static void name_sizes(Import *im) {
    const Onnx__GraphProto *g = im->model->graph;
    for (size_t k = 0; k < g->n_input; k++) {
        const Onnx__TypeProto *t = g->input[k]->type;
        if (!t || t->value_case != ONNX__TYPE_PROTO__VALUE_TENSOR_TYPE || !t->tensor_type->shape)
            continue;
        const Onnx__TensorShapeProto *s = t->tensor_type->shape;
        const Tensor *given = sized_input(im, g->input[k]->name, (int)s->n_dim);
        for (int i = 0; given && i < given->rank; i++) {
            const char *name = dim_param(s, i);
            if (!name || strmap_put(&im->sizes, name, (void *)(uintptr_t)&given->dims[i]))
                continue;
            int64_t other = *(const int64_t *)strmap_get(&im->sizes, name);
            if (other != given->dims[i])
                diag_error(im->d, EXIT_DATA,
                           "input \"%s\" has size %lld for \"%s\"; another input has %lld",
                           diag_safe(im->d, g->input[k]->name), (long long)given->dims[i],
                           diag_safe(im->d, name), (long long)other);
        }
    }
}

/* A dim without a number: the size that is given for it or for its name, else its symbol. */
static int64_t open_dim(Import *im, const char *input, const Onnx__TensorShapeProto *s, int i) {
    const char *name = dim_param(s, i);
    const Tensor *given = sized_input(im, input, (int)s->n_dim);
    const int64_t *size = given ? &given->dims[i] : name ? strmap_get(&im->sizes, name) : NULL;
    if (size)
        return *size;
    uintptr_t known = name ? (uintptr_t)strmap_get(&im->symbols, name) : 0;
    if (known)
        return -(int64_t)known;
    int64_t dim = graph_symbol(im->g, NULL);
    if (name) {
        im->g->symbols.at[-dim - 1] = arena_strdup(&im->g->arena, name);
        strmap_put(&im->symbols, name, (void *)(uintptr_t)-dim);
    }
    return dim;
}

/* Element type and dims of a graph input; false with a diagnostic. */
static bool input_type(Import *im, const Onnx__ValueInfoProto *info, Value *v) {
    Diag *d = im->d;
    const char *shown = diag_safe(d, info->name);
    const Onnx__TypeProto *t = info->type;
    if (!t || t->value_case != ONNX__TYPE_PROTO__VALUE_TENSOR_TYPE) {
        diag_error(d, EXIT_MODEL, "input \"%s\" is no tensor; only tensors are supported", shown);
        return false;
    }
    v->dtype = dtype_of_onnx(t->tensor_type->elem_type);
    const Onnx__TensorShapeProto *s = t->tensor_type->shape;
    if (v->dtype == DT_NONE)
        diag_error(d, EXIT_MODEL, "input \"%s\": element type %d is not supported", shown,
                   t->tensor_type->elem_type);
    else if (!s)
        diag_error(d, EXIT_MODEL, "input \"%s\" has no shape; its rank must be known", shown);
    else if (s->n_dim > MAX_RANK)
        diag_error(d, EXIT_RESOURCE, "input \"%s\": rank %zu; at most %d is supported", shown,
                   s->n_dim, MAX_RANK);
    else
        v->rank = (int)s->n_dim;
    for (int i = 0; i < v->rank; i++) {
        const Onnx__TensorShapeProto__Dimension *dim = s->dim[i];
        if (dim->value_case == ONNX__TENSOR_SHAPE_PROTO__DIMENSION__VALUE_DIM_VALUE) {
            v->dims[i] = dim->dim_value;
            if (dim->dim_value < 0) {
                diag_error(d, EXIT_MODEL,
                           "input \"%s\": dimension %d is %lld; it cannot be negative", shown, i,
                           (long long)dim->dim_value);
                return false;
            }
        } else {
            v->dims[i] = open_dim(im, info->name, s, i);
        }
    }
    return v->rank >= 0;
}

/* The given value of an input, if it is one that the model declares; what does not fit is left to
 * the checks of the data. */
static const Tensor *known_input(const Import *im, const Onnx__ValueInfoProto *info) {
    const Onnx__TypeProto *t = info->type;
    const Tensor *k = NULL;
    for (int i = 0; im->limits && i < im->limits->nknown && !k; i++)
        if (!strcmp(im->limits->known[i].name, info->name))
            k = im->limits->known[i].tensor;
    if (!k || !t || t->value_case != ONNX__TYPE_PROTO__VALUE_TENSOR_TYPE ||
        dtype_of_onnx(t->tensor_type->elem_type) != k->dtype || !t->tensor_type->shape)
        return NULL;
    const Onnx__TensorShapeProto *s = t->tensor_type->shape;
    bool fits = s->n_dim == (size_t)k->rank;
    for (int i = 0; fits && i < k->rank; i++)
        fits = s->dim[i]->value_case != ONNX__TENSOR_SHAPE_PROTO__DIMENSION__VALUE_DIM_VALUE ||
               s->dim[i]->dim_value == k->dims[i];
    return fits ? k : NULL;
}

static void import_input(Import *im, const Onnx__ValueInfoProto *info, Scope *s) {
    Builder b = builder_at_end(im->g, graph_source(im->g, info->name, "input"));
    const Tensor *known = known_input(im, info);
    if (known && !dtype_is_float(known->dtype)) {
        Value *v = op_const(&b, known);
        partial_of_node(im, v->def);
        scope_bind(im, s, info->name, v);
        return;
    }
    Node *n = build_node(&b, OP_INPUT, NULL, 0, 1);
    node_set_str(n, AT_NAME, info->name);
    Binding *bound = scope_bind(im, s, info->name, n->out[0]);
    bound->failed = !input_type(im, info, n->out[0]);
    if (bound->failed)
        return;
    vec_push(&im->g->inputs, n->out[0]);
    if (known) /* an operand of the computation, but readers may look at it */
        value_evaluated(im, n->out[0], (Tensor *)(uintptr_t)known);
}

/* ---- functions ---- */

static void frame_attrs(OpCall *c, const Onnx__FunctionProto *f, Frame *frame) {
    size_t most = f->n_attribute + f->n_attribute_proto;
    frame->attrs = ARENA_ARRAY(&c->im->scratch, FrameAttr, most ? most : 1);
    for (size_t i = 0; i < f->n_attribute; i++) {
        const Onnx__AttributeProto *a = call_attr(c, f->attribute[i]);
        if (!a)
            call_fail(c, "attribute \"%s\" of the function is missing",
                      diag_safe(c->im->d, f->attribute[i]));
        frame->attrs[frame->nattrs++] = (FrameAttr){f->attribute[i], a};
    }
    for (size_t i = 0; i < f->n_attribute_proto; i++) {
        const char *name = text_or(f->attribute_proto[i]->name, "");
        const Onnx__AttributeProto *a = call_attr(c, name);
        frame->attrs[frame->nattrs++] = (FrameAttr){name, a ? a : f->attribute_proto[i]};
    }
}

/* Binds the call's operands to the function's inputs, reads its nodes, binds its outputs to the
 * call's names. */
static void import_function(OpCall *c, const FunctionInfo *info) {
    Import *im = c->im;
    const Onnx__FunctionProto *f = info->proto;
    if (c->node->n_input > f->n_input || c->node->n_output > f->n_output)
        call_fail(c, "the call has %zu inputs and %zu outputs; the function has %zu and %zu",
                  c->node->n_input, c->node->n_output, f->n_input, f->n_output);
    Frame frame = {.fn = f, .opsets = info->opsets};
    frame_attrs(c, f, &frame);
    Scope scope = {.prefix =
                       arena_printf(&im->scratch, "%s%s/", c->scope->prefix, node_label(c->node))};
    for (size_t i = 0; i < f->n_input; i++) {
        Binding *given = i < c->node->n_input && *c->node->input[i]
                             ? scope_find(c->scope, c->node->input[i])
                             : NULL;
        Binding *b = ARENA_NEW(&im->scratch, Binding);
        if (given)
            *b = *given;
        strmap_put(&scope.names, f->input[i], b);
    }
    import_nodes(im, f->node, f->n_node, &scope, &frame);
    for (size_t i = 0; i < c->node->n_output; i++) {
        Binding *b = *c->node->output[i] ? scope_find(&scope, f->output[i]) : NULL;
        if (b)
            strmap_put(&c->scope->names, c->node->output[i], b);
    }
    strmap_free(&scope.names);
}

/* ---- subgraphs ---- */

void import_subgraph(OpCall *c, const Onnx__GraphProto *g, const char *turn, const Binding *in,
                     int nin, Binding *out, int nout) {
    Import *im = c->im;
    if (g->n_output != (size_t)nout || g->n_input != (size_t)nin)
        call_fail(c, "the subgraph takes %zu inputs and gives %zu outputs; expected %d and %d",
                  g->n_input, g->n_output, nin, nout);
    Scope scope = {.parent = c->scope,
                   .prefix = arena_printf(&im->scratch, "%s%s%s/", c->scope->prefix,
                                          node_label(c->node), turn)};
    for (int i = 0; i < nin; i++)
        *scope_bind(im, &scope, g->input[i]->name, NULL) = in[i];
    for (size_t i = 0; i < g->n_initializer; i++)
        import_initializer(im, g->initializer[i], &scope);
    bool outermost = *turn && !im->in_loop;
    if (outermost) {
        im->in_loop = true;
        im->loop_start = im->read;
    }
    import_nodes(im, g->node, g->n_node, &scope, c->frame);
    if (outermost) {
        im->in_loop = false;
        im->unrolled += im->read - im->loop_start;
    }
    bool failed = false;
    for (int i = 0; i < nout; i++) {
        Binding *b = scope_find(&scope, text_or(g->output[i]->name, ""));
        out[i] = b ? *b : (Binding){.failed = true};
        failed |= out[i].failed;
    }
    strmap_free(&scope.names);
    if (failed)
        call_skip(c);
}

/* ---- nodes ---- */

static void check_arity(OpCall *c) {
    const OpRow *r = c->row;
    if (c->nin < r->min_in || (r->max_in >= 0 && c->nin > r->max_in))
        call_fail(c, "%d inputs; the operator takes %d%s%s", c->nin, r->min_in,
                  r->max_in == r->min_in ? ""
                  : r->max_in < 0        ? " or more"
                                         : " to ",
                  r->max_in == r->min_in || r->max_in < 0
                      ? ""
                      : arena_printf(&c->im->scratch, "%d", r->max_in));
    if (c->nout < r->min_out || (r->max_out >= 0 && c->nout > r->max_out))
        call_fail(c, "%d outputs; the operator gives %d to %d", c->nout, r->min_out, r->max_out);
    for (int i = 0; i < r->min_in; i++)
        if (!*c->node->input[i])
            call_fail(c, "input %d is missing", i);
}

/* Whether operand i may be a sequence; elsewhere readers count on a tensor. */
static bool takes_sequence(const OpRow *r, int i) {
    static const char *const first[] = {"Identity",       "SequenceAt",     "SequenceErase",
                                        "SequenceLength", "SequenceInsert", "ConcatFromSequence"};
    for (int k = 0; i == 0 && k < COUNT_OF(first); k++)
        if (!strcmp(r->op_type, first[k]))
            return true;
    return i >= 2 && !strcmp(r->op_type, "Loop");
}

/* Operands from here on (up to min_in, or all where there may be any number) must be there. */
static int first_given(const OpRow *r) {
    return r->max_in >= 0 || r->min_in ? 0 : !strcmp(r->op_type, "Loop") ? 2 : 1;
}

static void bind_operands(OpCall *c) {
    Arena *a = &c->im->scratch;
    c->in = ARENA_ARRAY(a, Value *, c->nin + 1);
    c->seq = ARENA_ARRAY(a, SeqValue *, c->nin + 1);
    c->out = ARENA_ARRAY(a, Value *, c->nout + 1);
    c->out_seq = ARENA_ARRAY(a, SeqValue *, c->nout + 1);
    c->wanted = ARENA_ARRAY(a, bool, c->nout + 1);
    for (int i = 0; i < c->nin; i++) {
        Binding *b = *c->node->input[i] ? scope_find(c->scope, c->node->input[i]) : NULL;
        if (*c->node->input[i] && (!b || b->failed))
            call_skip(c);
        c->in[i] = b ? b->value : NULL;
        c->seq[i] = b ? b->seq : NULL;
        if (c->seq[i] && !takes_sequence(c->row, i))
            call_fail(c, "operand %d \"%s\" is a sequence; a tensor is expected", i,
                      diag_safe(c->im->d, c->node->input[i]));
        if (i >= first_given(c->row) && i < (c->row->max_in < 0 ? c->nin : c->row->min_in) &&
            !c->in[i] && !c->seq[i])
            call_fail(c, "input %d is missing", i);
    }
    for (int i = 0; i < c->nout; i++)
        c->wanted[i] = *c->node->output[i] != 0;
}

static void bind_results(OpCall *c) {
    for (int i = 0; i < c->nout; i++) {
        if (!c->wanted[i])
            continue;
        if (!c->out[i] && !c->out_seq[i])
            call_fail(c, "output %d \"%s\" is not supported", i,
                      diag_safe(c->im->d, c->node->output[i]));
        scope_bind(c->im, c->scope, c->node->output[i], c->out[i])->seq = c->out_seq[i];
    }
}

/* Reads one node; a fault in it leaves through c->leave. */
static bool read_node(OpCall *c) {
    if (setjmp(c->leave))
        return false;
    FunctionInfo *f = function_find(c->im, c->node);
    if (f) {
        import_function(c, f);
        return true;
    }
    c->opset = opsets_version(&c->frame->opsets, c->node->domain);
    c->row = op_row_find(c->im, c->node->domain, c->node->op_type, c->opset);
    if (!c->row) /* listed already */
        return false;
    c->nin = (int)c->node->n_input;
    c->nout = (int)c->node->n_output;
    while (c->nin && !*c->node->input[c->nin - 1]) /* trailing absent operands */
        c->nin--;
    check_arity(c);
    bind_operands(c);
    call_check_attrs(c);
    c->b = builder_at_end(c->im->g, graph_source(c->im->g, call_label(c), c->node->op_type));
    c->row->read(c);
    bind_results(c);
    return true;
}

/* A few bytes of nested loops must not become a graph of a million nodes before they are refused.
 */
static bool loops_fit(Import *im) {
    int64_t most = onnx_max_nodes(im->limits) / 10;
    if (!im->in_loop || im->unrolled + im->read - im->loop_start <= most)
        return true;
    diag_error(im->d, EXIT_RESOURCE,
               "loops, which are taken apart turn by turn, give more than %lld nodes (--max-nodes "
               "raises it)",
               (long long)most);
    im->read = INT64_MAX / 2; /* nothing more is read */
    return false;
}

static void import_nodes(Import *im, Onnx__NodeProto **nodes, size_t n, Scope *scope,
                         const Frame *frame) {
    enum { MAX_REPORTS = 50 };
    for (size_t i = 0; i < n && im->d->errors < MAX_REPORTS; i++) {
        if (im->read++ == onnx_max_nodes(im->limits)) /* loops taken apart count too */
            diag_error(im->d, EXIT_RESOURCE,
                       "functions and loops give more than %lld nodes (--max-nodes raises it)",
                       (long long)onnx_max_nodes(im->limits));
        if (im->read > onnx_max_nodes(im->limits) || !loops_fit(im))
            return;
        OpCall c = {.im = im, .node = nodes[i], .frame = frame, .scope = scope};
        if (read_node(&c))
            continue;
        for (size_t k = 0; k < nodes[i]->n_output; k++)
            if (*nodes[i]->output[k] && !strmap_get(&scope->names, nodes[i]->output[k]))
                scope_bind(im, scope, nodes[i]->output[k], NULL)->failed = true;
    }
}

/* ---- the model ---- */

static void import_output(Import *im, const Onnx__ValueInfoProto *info, Scope *s) {
    Binding *b = scope_find(s, info->name);
    if (!b || b->failed)
        return;
    const char *shown = diag_safe(im->d, info->name);
    if (!b->value) {
        diag_error(im->d, EXIT_MODEL, "output \"%s\" is a sequence; only tensors are supported",
                   shown);
        return;
    }
    const Onnx__TypeProto *t = info->type;
    bool tensor = t && t->value_case == ONNX__TYPE_PROTO__VALUE_TENSOR_TYPE;
    DType declared = tensor ? dtype_of_onnx(t->tensor_type->elem_type) : DT_NONE;
    if (tensor && t->tensor_type->elem_type && declared != b->value->dtype) {
        diag_error(im->d, EXIT_MODEL, "output \"%s\" is declared %s; the graph computes %s", shown,
                   dtype_name(declared), dtype_name(b->value->dtype));
        return;
    }
    graph_add_output(im->g, arena_strdup(&im->g->arena, info->name), b->value);
}

static void import_graph(Import *im) {
    const Onnx__GraphProto *g = im->model->graph;
    Scope scope = {.prefix = ""};
    Frame frame = {.opsets = im->opsets};
    im->g = graph_new(text_or(g->name, "model"));
    name_sizes(im);
    for (size_t i = 0; i < g->n_initializer; i++)
        import_initializer(im, g->initializer[i], &scope);
    for (size_t i = 0; i < g->n_input; i++)
        if (!strmap_get(&scope.names, g->input[i]->name))
            import_input(im, g->input[i], &scope);
    import_nodes(im, g->node, g->n_node, &scope, &frame);
    for (size_t i = 0; i < g->n_output; i++)
        import_output(im, g->output[i], &scope);
    strmap_free(&scope.names);
}

static Graph *import_file(OnnxFile *f, bool kept, const ImportLimits *limits, Diag *d) {
    Import im = {.d = d, .model = f->model, .limits = limits};
    int before = d->errors;
    external_init(&im.external, f->dir);
    im.external.share = kept;
    op_rows_index(&im);
    if (onnx_check_model(&im))
        import_graph(&im);
    external_close(&im.external);
    strmap_free(&im.ops);
    strmap_free(&im.functions);
    strmap_free(&im.sizes);
    strmap_free(&im.producers);
    strmap_free(&im.weights);
    strmap_free(&im.symbols);
    vec_free(&im.partial);
    vec_free(&im.shape_of);
    vec_free(&im.evaluated);
    arena_free(&im.scratch);
    if (im.g && d->errors > before) {
        graph_free(im.g);
        im.g = NULL;
    }
    return im.g;
}

static Graph *import_and_keep(OnnxFile *f, const ImportLimits *limits, OnnxFile **file, Diag *d) {
    Graph *g = f ? import_file(f, file != NULL, limits, d) : NULL;
    if (file)
        *file = g ? f : NULL;
    if (!g || !file)
        onnx_file_free(f);
    return g;
}

Graph *onnx_import(const char *path, const ImportLimits *limits, OnnxFile **file, Diag *d) {
    return import_and_keep(onnx_file_read(path, limits, d), limits, file, d);
}

Graph *onnx_import_bytes(const uint8_t *bytes, size_t n, const char *dir,
                         const ImportLimits *limits, OnnxFile **file, Diag *d) {
    return import_and_keep(onnx_file_parse(bytes, n, dir, limits, d), limits, file, d);
}
