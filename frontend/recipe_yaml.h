/* recipe_yaml.h: YAML text as a small tree, within the limits a recipe may have. Shared by the
 * recipe's files only. */
#ifndef STGCC_FRONTEND_RECIPE_YAML_H
#define STGCC_FRONTEND_RECIPE_YAML_H

#include "ir/base.h"

typedef enum { YAML_SCALAR, YAML_LIST, YAML_MAP } YamlKind;

typedef struct Yaml Yaml;
struct Yaml {
    YamlKind kind;
    int line;         /* from 1 */
    const char *text; /* scalars */
    bool quoted;      /* a quoted scalar is text, never null, a number or a word */
    VEC(Yaml *) keys; /* maps: scalars */
    VEC(Yaml *) items;
};

/* Parses one document. NULL with a diagnostic ("line 3: …") at the first thing that is not plain
 * YAML as recipes use it: at most 1 MiB, depth 32, 100,000 events; no anchors, aliases, tags, merge
 * keys, second documents, duplicate keys. An empty text is an empty map. Free with tree_free. */
Yaml *tree_parse(const char *text, size_t n, Diag *d);
Yaml *tree_scalar(const char *text); /* unquoted, line 0 */
void tree_free(Yaml *y);

#endif
