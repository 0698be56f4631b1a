/* recipe_yaml.c: libyaml's events made into a small tree.
 *
 * Limits are counted on events as they arrive, so that a hostile file is refused before libyaml's
 * quadratic cases are reached. What YAML allows beyond plain maps, lists and scalars is refused
 * with its line: a recipe has no use for it. */
#include "frontend/recipe_yaml.h"

#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum { MAX_BYTES = 1 << 20, MAX_DEPTH = 32, MAX_EVENTS = 100000 };

typedef struct Reader {
    yaml_parser_t parser;
    Diag *d;
    int events;
} Reader;

static Yaml *tree_new(YamlKind kind, int line) {
    Yaml *y = xcalloc(1, sizeof *y);
    y->kind = kind;
    y->line = line;
    return y;
}

static char *copy_text(const char *s, size_t n) {
    char *t = xcalloc(n + 1, 1);
    memcpy(t, s, n);
    return t;
}

Yaml *tree_scalar(const char *text) {
    Yaml *y = tree_new(YAML_SCALAR, 0);
    y->text = copy_text(text, strlen(text));
    return y;
}

void tree_free(Yaml *y) {
    if (!y)
        return;
    for (int i = 0; i < y->keys.n; i++)
        tree_free(y->keys.at[i]);
    for (int i = 0; i < y->items.n; i++)
        tree_free(y->items.at[i]);
    vec_free(&y->keys);
    vec_free(&y->items);
    free((void *)(uintptr_t)y->text);
    free(y);
}

static int event_line(const yaml_event_t *e) {
    return (int)e->start_mark.line + 1;
}

/* The next event; false with a diagnostic. The caller deletes it. */
static bool next_event(Reader *r, yaml_event_t *e) {
    if (!yaml_parser_parse(&r->parser, e)) {
        const char *problem = r->parser.problem ? r->parser.problem : "not YAML";
        diag_error(r->d, EXIT_USAGE, "line %d: %s", (int)r->parser.problem_mark.line + 1,
                   diag_safe(r->d, problem));
        if (strstr(problem, "alphabetic or numeric") || strstr(problem, "cannot start any token"))
            diag_more(r->d, "a value that starts with *, &, @ or %% needs quotes: \"*\"");
        return false;
    }
    if (++r->events > MAX_EVENTS) {
        diag_error(r->d, EXIT_USAGE, "line %d: more than %d values; a recipe has a few dozen",
                   event_line(e), MAX_EVENTS);
        yaml_event_delete(e);
        return false;
    }
    return true;
}

static bool refuse(Reader *r, const yaml_event_t *e, const char *what, const char *instead) {
    diag_error(r->d, EXIT_USAGE, "line %d: %s", event_line(e), what);
    diag_more(r->d, "%s", instead);
    return false;
}

/* Anchors, tags and aliases are refused. */
static bool plain(Reader *r, const yaml_event_t *e) {
    const yaml_char_t *anchor = NULL, *tag = NULL;
    switch (e->type) {
    case YAML_ALIAS_EVENT:
        return refuse(r, e, "aliases (*name) are not used in recipes",
                      "a glob that starts with * needs quotes: \"*.bias\"");
    case YAML_SCALAR_EVENT:
        anchor = e->data.scalar.anchor;
        tag = e->data.scalar.tag;
        break;
    case YAML_SEQUENCE_START_EVENT:
        anchor = e->data.sequence_start.anchor;
        tag = e->data.sequence_start.tag;
        break;
    case YAML_MAPPING_START_EVENT:
        anchor = e->data.mapping_start.anchor;
        tag = e->data.mapping_start.tag;
        break;
    default:
        break;
    }
    if (anchor)
        return refuse(r, e, "anchors (&name) are not used in recipes", "write the value out");
    if (tag)
        return refuse(r, e, "tags (!type) are not used in recipes", "leave the tag away");
    return true;
}

static Yaml *read_value(Reader *r, const yaml_event_t *first, int depth);

static bool add_pair(Reader *r, Yaml *map, Yaml *key, Yaml *value) {
    const char *what = NULL;
    int other = 0;
    if (key->kind != YAML_SCALAR)
        what = "a list or a map cannot be a key";
    else if (!strcmp(key->text, "<<") && !key->quoted)
        what = "merge keys (<<) are not used in recipes";
    for (int i = 0; !what && i < map->keys.n; i++)
        if (!strcmp(map->keys.at[i]->text, key->text))
            other = map->keys.at[i]->line;
    if (!what && !other) {
        vec_push(&map->keys, key);
        vec_push(&map->items, value);
        return true;
    }
    if (what)
        diag_error(r->d, EXIT_USAGE, "line %d: %s", key->line, what);
    else
        diag_error(r->d, EXIT_USAGE, "line %d: key '%s' a second time; the first is on line %d",
                   key->line, diag_safe(r->d, key->text), other);
    tree_free(key);
    tree_free(value);
    return false;
}

/* A list or a map up to its end event. */
static Yaml *read_collection(Reader *r, const yaml_event_t *first, int depth) {
    bool map = first->type == YAML_MAPPING_START_EVENT;
    Yaml *y = tree_new(map ? YAML_MAP : YAML_LIST, event_line(first)), *key = NULL;
    if (depth >= MAX_DEPTH) {
        diag_error(r->d, EXIT_USAGE, "line %d: nested deeper than %d", y->line, MAX_DEPTH);
        tree_free(y);
        return NULL;
    }
    for (;;) {
        yaml_event_t e;
        if (!next_event(r, &e))
            break;
        if (e.type == YAML_MAPPING_END_EVENT || e.type == YAML_SEQUENCE_END_EVENT) {
            yaml_event_delete(&e);
            return y;
        }
        Yaml *item = read_value(r, &e, depth + 1);
        yaml_event_delete(&e);
        if (!item)
            break;
        if (!map) {
            vec_push(&y->items, item);
        } else if (!key) {
            key = item;
        } else {
            Yaml *k = key;
            key = NULL;
            if (!add_pair(r, y, k, item))
                break;
        }
    }
    tree_free(key);
    tree_free(y);
    return NULL;
}

static Yaml *read_value(Reader *r, const yaml_event_t *e, int depth) {
    if (!plain(r, e))
        return NULL;
    if (e->type != YAML_SCALAR_EVENT)
        return read_collection(r, e, depth);
    Yaml *y = tree_new(YAML_SCALAR, event_line(e));
    y->text = copy_text((const char *)e->data.scalar.value, e->data.scalar.length);
    y->quoted = e->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    if (strlen(y->text) != e->data.scalar.length) {
        refuse(r, e, "a text with a NUL character", "remove it");
        tree_free(y);
        return NULL;
    }
    return y;
}

static Yaml *read_document(Reader *r) {
    Yaml *top = NULL;
    bool documents = false;
    for (;;) {
        yaml_event_t e;
        if (!next_event(r, &e))
            break;
        yaml_event_type_t type = e.type;
        bool ok = true;
        if (type == YAML_DOCUMENT_START_EVENT && documents)
            ok = refuse(r, &e, "a second document", "a recipe is one document: remove the '---'");
        else if (type == YAML_DOCUMENT_START_EVENT)
            documents = true;
        else if (type != YAML_STREAM_START_EVENT && type != YAML_STREAM_END_EVENT &&
                 type != YAML_DOCUMENT_END_EVENT)
            ok = (top = read_value(r, &e, 0)) != NULL;
        yaml_event_delete(&e);
        if (!ok)
            break;
        if (type == YAML_STREAM_END_EVENT)
            return top ? top : tree_new(YAML_MAP, 1);
    }
    tree_free(top);
    return NULL;
}

Yaml *tree_parse(const char *text, size_t n, Diag *d) {
    if (n > MAX_BYTES) {
        diag_error(d, EXIT_USAGE, "larger than a recipe may be (%zu bytes, limit %d)", n,
                   MAX_BYTES);
        return NULL;
    }
    Reader r = {.d = d};
    if (!yaml_parser_initialize(&r.parser))
        bug("libyaml does not start");
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, n);
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    Yaml *y = read_document(&r);
    yaml_parser_delete(&r.parser);
    return y;
}
