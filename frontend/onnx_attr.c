/* onnx_attr.c: a node's attributes: known name, the declared type, used once, present where
 * required; references inside a function body resolved to what the call gives. */
#include <string.h>

#include "frontend/onnx_import.h"

enum { MAX_LIST = 65536 };

static const char *const type_names[] = {
    "no type", "float",   "int",    "string", "tensor",         "graph", "floats", "ints",
    "strings", "tensors", "graphs", "sparse", "sparse tensors", "type",  "types",
};

static const char *attr_type_name(int t) {
    return t >= 0 && t < COUNT_OF(type_names) ? type_names[t] : "unknown type";
}

/* The AttributeProto itself, before references are resolved. */
static const Onnx__AttributeProto *node_attr_find(const Onnx__NodeProto *n, const char *name) {
    for (size_t i = 0; i < n->n_attribute; i++)
        if (n->attribute[i]->name && !strcmp(n->attribute[i]->name, name))
            return n->attribute[i];
    return NULL;
}

/* What a reference to an attribute of the enclosing function means in this call; NULL: not given,
 * so absent. */
static const Onnx__AttributeProto *resolve(const Frame *f, const Onnx__AttributeProto *a) {
    if (!a || !a->ref_attr_name || !*a->ref_attr_name)
        return a;
    for (int i = 0; i < f->nattrs; i++)
        if (!strcmp(f->attrs[i].name, a->ref_attr_name))
            return f->attrs[i].value;
    return NULL;
}

const Onnx__AttributeProto *call_attr(OpCall *c, const char *name) {
    return resolve(c->frame, node_attr_find(c->node, name));
}

/* The entry of `name` in a row's list "axis:int to:int!"; the type's text into *type, its length
 * into *len. */
static bool row_attr(const char *attrs, const char *name, size_t name_len, const char **type,
                     size_t *len) {
    for (const char *p = attrs; p && *p;) {
        size_t n = strcspn(p, ":"), rest = strcspn(p, " ");
        if (n == name_len && !strncmp(p, name, n)) {
            *type = p + n + 1;
            *len = rest - n - 1;
            return true;
        }
        p += rest + (p[rest] == ' ');
    }
    return false;
}

/* The field that holds a value of type t is the only one set. Scalars of an absent field count as
 * their default. */
static bool attr_fields_fit(const Onnx__AttributeProto *a) {
    bool used[15] = {
        false,
        a->has_f,
        a->has_i,
        a->has_s,
        a->t != NULL,
        a->g != NULL,
        a->n_floats > 0,
        a->n_ints > 0,
        a->n_strings > 0,
        a->n_tensors > 0,
        a->n_graphs > 0,
        a->sparse_tensor != NULL,
        a->n_sparse_tensors > 0,
        a->tp != NULL,
        a->n_type_protos > 0,
    };
    for (int i = 1; i < COUNT_OF(used); i++)
        if (used[i] && i != a->type)
            return false;
    return a->type > 0 && a->type < COUNT_OF(used) &&
           (used[a->type] || a->type == ONNX_ATTR_FLOAT || a->type == ONNX_ATTR_INT ||
            a->type == ONNX_ATTR_STRING ||
            (a->type >= ONNX_ATTR_FLOATS && a->type <= ONNX_ATTR_GRAPHS));
}

static void check_one(OpCall *c, const Onnx__AttributeProto *given) {
    const char *name = text_or(given->name, ""), *shown = diag_safe(c->im->d, name), *type;
    size_t len;
    if (!row_attr(c->row->attrs, name, strlen(name), &type, &len))
        call_fail(c, "attribute \"%s\" is not known for this operator at opset %d (known: %s)",
                  shown, c->opset, text_or(c->row->attrs, "none"));
    const Onnx__AttributeProto *a = resolve(c->frame, given);
    if (!a)
        return;
    if (len && type[len - 1] == '!')
        len--;
    const char *found = attr_type_name(a->type);
    if (strlen(found) != len || strncmp(found, type, len) != 0)
        call_fail(c, "attribute \"%s\" is of type %s; expected %.*s", shown, found, (int)len, type);
    if (!attr_fields_fit(a))
        call_fail(c, "attribute \"%s\" says it is of type %s, but other fields are set", shown,
                  found);
    if (a->n_ints > MAX_LIST || a->n_floats > MAX_LIST || a->n_strings > MAX_LIST)
        call_fail(c, "attribute \"%s\" has more than %d elements", shown, MAX_LIST);
}

void call_check_attrs(OpCall *c) {
    const Onnx__NodeProto *n = c->node;
    for (size_t i = 0; i < n->n_attribute; i++) {
        check_one(c, n->attribute[i]);
        if (node_attr_find(n, text_or(n->attribute[i]->name, "")) != n->attribute[i])
            call_fail(c, "attribute \"%s\" is given twice",
                      diag_safe(c->im->d, text_or(n->attribute[i]->name, "")));
    }
    for (const char *p = c->row->attrs; p && *p;) {
        size_t len = strcspn(p, ":"), rest = strcspn(p, " ");
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)len, p);
        if (p[rest - 1] == '!' && !call_attr(c, name))
            call_fail(c, "attribute \"%s\" is missing", name);
        p += rest + (p[rest] == ' ');
    }
}

int64_t call_int(OpCall *c, const char *name, int64_t absent) {
    const Onnx__AttributeProto *a = call_attr(c, name);
    return a ? a->i : absent;
}

double call_float(OpCall *c, const char *name, double absent) {
    const Onnx__AttributeProto *a = call_attr(c, name);
    return a ? (double)a->f : absent;
}

const char *call_string(OpCall *c, const char *name, const char *absent) {
    const Onnx__AttributeProto *a = call_attr(c, name);
    if (!a)
        return absent;
    if (a->s.len && memchr(a->s.data, 0, a->s.len))
        call_fail(c, "attribute \"%s\" holds a NUL byte", name);
    return arena_printf(&c->im->scratch, "%.*s", (int)(a->s.len < 4096 ? a->s.len : 4096),
                        a->s.len ? (const char *)a->s.data : "");
}

int call_ints(OpCall *c, const char *name, const int64_t **at) {
    const Onnx__AttributeProto *a = call_attr(c, name);
    *at = a ? a->ints : NULL;
    return a ? (int)a->n_ints : -1;
}

Tensor *call_tensor(OpCall *c, const char *name) {
    const Onnx__AttributeProto *a = call_attr(c, name);
    if (!a)
        return NULL;
    Tensor *t = onnx_tensor(&c->im->g->arena, a->t, "attribute tensor", &c->im->external, c->im->d);
    if (!t)
        call_skip(c);
    return t;
}
