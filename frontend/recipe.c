/* recipe.c: the training recipe: defaults, YAML file, --set, canonical print. One table of keys
 * serves all four.
 *
 * Needs nothing; gives a Recipe (ir/recipe.h). Adding a key is one row of `keys` and its default in
 * recipe_new. */
#include "frontend/frontend.h"
#include "frontend/recipe_yaml.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- the table ---- */

typedef enum {
    KEY_BOOL,
    KEY_INT,
    KEY_FLOAT,
    KEY_FLOAT_OR_NULL, /* null is 0 */
    KEY_TEXT,
    KEY_TEXT_OR_NULL,
    KEY_WORD,    /* one of `words`, an int */
    KEY_LIST,    /* StrList; one text stands for a list of one */
    KEY_LISTS,   /* a list of StrList */
    KEY_NUMBERS, /* map of name: number */
    KEY_PAIR,    /* two doubles in [min, max) */
} KeyType;

typedef struct Word {
    const char *text;
    int value;
} Word;

typedef struct Key {
    const char *section, *name; /* section "" for a key of the top level */
    KeyType type;
    size_t offset;
    double min, max;
    const Word *words;
    int nwords;
} Key;

#define WORDS(NAME, ...) static const Word NAME[] = {__VA_ARGS__}
WORDS(loss_words, {"causal_lm", LOSS_CAUSAL_LM}, {"classification", LOSS_CLASSIFICATION},
      {"token_classification", LOSS_TOKEN_CLASSIFICATION}, {"regression", LOSS_REGRESSION},
      {"output", LOSS_OUTPUT});
WORDS(capture_words, {"exact", CAPTURE_EXACT}, {"output", CAPTURE_OUTPUT},
      {"last_linear", CAPTURE_LAST_LINEAR}, {"none", CAPTURE_NONE});
WORDS(mean_words, {"include_self", MEAN_INCLUDE_SELF}, {"leave_one_out", MEAN_LEAVE_ONE_OUT});
WORDS(flow_words, {"router", FLOW_ROUTER}, {"full", FLOW_FULL});
WORDS(reduction_words, {"sum", REDUCTION_SUM}, {"mean", REDUCTION_MEAN});
WORDS(straight_words, {"auto", STRAIGHT_AUTO}, {"off", STRAIGHT_OFF});
WORDS(dtype_words, {"uint8", 1}, {"uint16", 2}, {"uint32", 4});
WORDS(order_words, {"shuffle", ORDER_SHUFFLE}, {"sequential", ORDER_SEQUENTIAL});
WORDS(noise_words, {"off", NOISE_OFF}, {"seeded", NOISE_SEEDED});
WORDS(optimizer_words, {"adamw", OPT_ADAMW}, {"sgd", OPT_SGD});
WORDS(schedule_words, {"constant", SCHED_CONSTANT}, {"linear", SCHED_LINEAR},
      {"cosine", SCHED_COSINE});
WORDS(precision_words, {"f32", PRECISION_F32}, {"tf32", PRECISION_TF32}, {"bf16", PRECISION_BF16});

#define AT(field) offsetof(Recipe, field)
#define WORD(section, name, field, list) \
    { section, name, KEY_WORD, AT(field), 0, 0, list, COUNT_OF(list) }
#define PLAIN(section, name, type, field) \
    { section, name, type, AT(field), 0, 0, NULL, 0 }
#define RANGE(section, name, type, field, lo, hi) \
    { section, name, type, AT(field), lo, hi, NULL, 0 }
#define MANY 9007199254740992.0 /* 2^53: counts that a double holds exactly */

static const Key keys[] = {
    PLAIN("model", "train", KEY_LIST, model.train),
    PLAIN("model", "freeze", KEY_LIST, model.freeze),
    PLAIN("model", "tie", KEY_LISTS, model.tie),
    WORD("loss", "kind", loss.kind, loss_words),
    PLAIN("loss", "logits", KEY_TEXT_OR_NULL, loss.logits),
    PLAIN("loss", "labels", KEY_TEXT, loss.labels),
    PLAIN("loss", "shifted", KEY_BOOL, loss.shifted),
    RANGE("loss", "ignore_index", KEY_INT, loss.ignore_index, -MANY, MANY),
    RANGE("loss", "balance", KEY_FLOAT, loss.balance, 0, 1e9),
    RANGE("loss", "router_z", KEY_FLOAT, loss.router_z, 0, 1e9),
    RANGE("loss", "terms", KEY_NUMBERS, loss.terms, -1e9, 1e9),
    PLAIN("stgc", "enabled", KEY_BOOL, stgc.enabled),
    WORD("stgc", "capture", stgc.capture, capture_words),
    RANGE("stgc", "threshold", KEY_FLOAT, stgc.threshold, -2, 2),
    RANGE("stgc", "weight", KEY_FLOAT, stgc.weight, 0, 1e9),
    WORD("stgc", "mean", stgc.mean, mean_words),
    WORD("stgc", "flow", stgc.flow, flow_words),
    WORD("stgc", "layer_reduction", stgc.layer_reduction, reduction_words),
    PLAIN("stgc", "token_mask", KEY_TEXT_OR_NULL, stgc.token_mask),
    WORD("stgc", "straight_through", stgc.straight_through, straight_words),
    WORD("data", "dtype", data.dtype_bytes, dtype_words),
    RANGE("data", "inputs", KEY_NUMBERS, data.inputs, -1e300, 1e300),
    PLAIN("data", "labels_from", KEY_TEXT, data.labels_from),
    WORD("data", "order", data.order, order_words),
    WORD("", "noise", noise, noise_words),
    WORD("optimizer", "kind", optimizer.kind, optimizer_words),
    RANGE("optimizer", "lr", KEY_FLOAT, optimizer.lr, 0, 1e6),
    RANGE("optimizer", "betas", KEY_PAIR, optimizer.beta1, 0, 1),
    RANGE("optimizer", "eps", KEY_FLOAT, optimizer.eps, 0, 1),
    RANGE("optimizer", "weight_decay", KEY_FLOAT, optimizer.weight_decay, 0, 1e6),
    RANGE("optimizer", "momentum", KEY_FLOAT, optimizer.momentum, 0, 1),
    RANGE("optimizer", "clip_norm", KEY_FLOAT_OR_NULL, optimizer.clip_norm, 0, 1e30),
    WORD("schedule", "kind", schedule.kind, schedule_words),
    RANGE("schedule", "warmup", KEY_INT, schedule.warmup, 0, MANY),
    RANGE("schedule", "steps", KEY_INT, schedule.steps, 1, MANY),
    RANGE("train", "batch", KEY_INT, train.batch, 1, 1 << 20),
    RANGE("train", "sequence", KEY_INT, train.sequence, 1, 1 << 24),
    RANGE("train", "accumulate", KEY_INT, train.accumulate, 1, 1 << 20),
    RANGE("train", "seed", KEY_INT, train.seed, 0, MANY),
    WORD("train", "precision", train.precision, precision_words),
    RANGE("train", "checkpoint_every", KEY_INT, train.checkpoint_every, 0, MANY),
    RANGE("train", "log_every", KEY_INT, train.log_every, 1, MANY),
};
static const char *const sections[] = {"model",     "loss",     "stgc",  "data",
                                       "optimizer", "schedule", "train", "noise"};

_Static_assert(sizeof(LossKind) == sizeof(int), "words are stored as int");

Recipe *recipe_new(void) {
    Recipe *r = xcalloc(1, sizeof *r);
    vec_push(&r->model.train, "*");
    r->loss.labels = "labels";
    r->loss.ignore_index = -100;
    r->loss.balance = 0.01;
    r->stgc.enabled = true;
    r->stgc.weight = 1;
    r->data.dtype_bytes = 2;
    r->data.labels_from = "input_ids";
    r->optimizer.lr = 1e-3;
    r->optimizer.beta1 = 0.9;
    r->optimizer.beta2 = 0.999;
    r->optimizer.eps = 1e-8;
    r->optimizer.weight_decay = 0.01;
    r->schedule.steps = 1000;
    r->train.batch = 8;
    r->train.sequence = 256;
    r->train.accumulate = 1;
    r->train.seed = 1;
    r->train.checkpoint_every = 500;
    r->train.log_every = 10;
    return r;
}

typedef VEC(StrList) Lists;

static void free_lists(void *field) {
    Lists *l = field;
    for (int i = 0; i < l->n; i++)
        vec_free(&l->at[i]);
    vec_free(l);
}

void recipe_free(Recipe *r) {
    if (!r)
        return;
    vec_free(&r->model.train);
    vec_free(&r->model.freeze);
    free_lists(&r->model.tie);
    vec_free(&r->loss.terms);
    vec_free(&r->data.inputs);
    arena_free(&r->arena);
    free(r);
}

/* ---- one value into one key ---- */

typedef struct Setter {
    Recipe *r;
    Diag *d;
} Setter;

/* "line 3: " in a file, nothing on the command line. */
static const char *place(Setter *s, int line) {
    return line ? arena_printf(&s->d->arena, "line %d: ", line) : "";
}

static const char *key_path(Setter *s, const Key *k) {
    return *k->section ? arena_printf(&s->d->arena, "%s.%s", k->section, k->name) : k->name;
}

static const char *found_text(Setter *s, const Yaml *y) {
    if (y->kind != YAML_SCALAR)
        return y->kind == YAML_LIST ? "a list" : "a map";
    return arena_printf(&s->d->arena, "'%s'", diag_safe(s->d, y->text));
}

static bool wrong(Setter *s, const Key *k, const Yaml *y, const char *expected) {
    diag_error(s->d, EXIT_USAGE, "%s'%s' is %s; expected %s", place(s, y->line), key_path(s, k),
               found_text(s, y), expected);
    return false;
}

static bool is_null(const Yaml *y) {
    return y->kind == YAML_SCALAR && !y->quoted &&
           (!strcmp(y->text, "null") || !strcmp(y->text, "~") || !*y->text);
}

/* A decimal number, all of the text; never NaN, infinite or hexadecimal. */
static bool parse_number(const Yaml *y, double *out) {
    if (y->kind != YAML_SCALAR || y->quoted || !*y->text ||
        strspn(y->text, "0123456789+-.eE") != strlen(y->text))
        return false;
    char *end;
    *out = strtod(y->text, &end);
    return !*end && isfinite(*out);
}

static bool parse_integer(const Yaml *y, int64_t *out) {
    if (y->kind != YAML_SCALAR || y->quoted || !*y->text ||
        strspn(y->text, "0123456789+-") != strlen(y->text))
        return false;
    char *end;
    errno = 0;
    *out = strtoll(y->text, &end, 10);
    return !*end && !errno;
}

static bool parse_bool(const Yaml *y, bool *out) {
    static const char *const words[] = {"true", "false", "yes", "no", "on", "off"};
    for (int i = 0; i < COUNT_OF(words); i++)
        if (y->kind == YAML_SCALAR && !y->quoted && !strcmp(y->text, words[i])) {
            *out = i % 2 == 0;
            return true;
        }
    return false;
}

static bool set_word(Setter *s, const Key *k, const Yaml *y, void *field) {
    const char *texts[8], *list = "";
    for (int i = 0; i < k->nwords; i++) {
        texts[i] = k->words[i].text;
        if (y->kind == YAML_SCALAR && !strcmp(y->text, texts[i])) {
            memcpy(field, &k->words[i].value, sizeof(int));
            return true;
        }
        const char *join = i == 0 ? "" : i == k->nwords - 1 ? " or " : ", ";
        list = arena_printf(&s->d->arena, "%s%s%s", list, join, texts[i]);
    }
    wrong(s, k, y, list);
    const char *near = y->kind == YAML_SCALAR ? nearest_word(y->text, texts, k->nwords) : NULL;
    if (near)
        diag_more(s->d, "did you mean '%s'?", near);
    return false;
}

static bool set_text(Setter *s, const Key *k, const Yaml *y, const char **field) {
    enum { MAX_NAME = 4096 };
    if (k->type == KEY_TEXT_OR_NULL && is_null(y)) {
        *field = NULL;
        return true;
    }
    if (y->kind != YAML_SCALAR || !*y->text || strlen(y->text) > MAX_NAME)
        return wrong(s, k, y, "a name of at most 4096 bytes");
    *field = arena_strdup(&s->r->arena, y->text);
    return true;
}

static bool set_list(Setter *s, const Key *k, const Yaml *y, StrList *list) {
    if (y->kind == YAML_MAP || is_null(y))
        return wrong(s, k, y, "a list of names or globs: [\"a.*\", \"b\"]");
    StrList fresh = {0};
    bool ok = true;
    int n = y->kind == YAML_LIST ? y->items.n : 1;
    for (int i = 0; i < n; i++) {
        const char *text = NULL;
        ok = set_text(s, k, y->kind == YAML_LIST ? y->items.at[i] : y, &text) && ok && text;
        vec_push(&fresh, text);
    }
    if (ok) {
        vec_free(list);
        *list = fresh;
    } else {
        vec_free(&fresh);
    }
    return ok;
}

static bool set_lists(Setter *s, const Key *k, const Yaml *y, Lists *lists) {
    Lists fresh = {0};
    bool ok = y->kind == YAML_LIST;
    for (int i = 0; ok && i < y->items.n; i++) {
        StrList one = {0};
        ok =
            y->items.at[i]->kind == YAML_LIST && set_list(s, k, y->items.at[i], &one) && one.n >= 2;
        vec_push(&fresh, one);
    }
    if (!ok) {
        free_lists(&fresh);
        return wrong(s, k, y, "a list of lists of two or more names: [[\"a\", \"b\"]]");
    }
    free_lists(lists);
    *lists = fresh;
    return true;
}

static bool set_number(Setter *s, const Key *k, const Yaml *y, double *field) {
    double v;
    if (k->type == KEY_FLOAT_OR_NULL && is_null(y)) {
        *field = 0;
        return true;
    }
    bool ok = parse_number(y, &v) && v >= k->min && v <= k->max;
    if (k->type == KEY_PAIR || !strcmp(k->name, "momentum"))
        ok = ok && v < k->max;
    if (!ok)
        return wrong(s, k, y,
                     arena_printf(&s->d->arena, "a number from %g to %g%s", k->min, k->max,
                                  k->type == KEY_FLOAT_OR_NULL ? ", or null" : ""));
    *field = v;
    return true;
}

typedef VEC(NamedFloat) Numbers;
_Static_assert(sizeof(Numbers) == sizeof(((Recipe *)0)->loss.terms), "same layout");

static bool set_entry(Setter *s, const Key *k, const char *name, const Yaml *y, Numbers *map) {
    double v;
    if (!set_number(s, k, y, &v))
        return false;
    for (int i = 0; i < map->n; i++)
        if (!strcmp(map->at[i].name, name)) {
            map->at[i].value = v;
            return true;
        }
    NamedFloat entry = {arena_strdup(&s->r->arena, name), v};
    vec_push(map, entry);
    return true;
}

static bool set_numbers(Setter *s, const Key *k, const Yaml *y, Numbers *map) {
    if (y->kind != YAML_MAP)
        return wrong(s, k, y, "a map of name: number");
    map->n = 0;
    bool ok = true;
    for (int i = 0; i < y->keys.n; i++)
        ok &= set_entry(s, k, y->keys.at[i]->text, y->items.at[i], map);
    return ok;
}

static bool set_pair(Setter *s, const Key *k, const Yaml *y, double *pair) {
    if (y->kind != YAML_LIST || y->items.n != 2)
        return wrong(s, k, y, "a list of two numbers: [0.9, 0.999]");
    bool first = set_number(s, k, y->items.at[0], &pair[0]);
    return set_number(s, k, y->items.at[1], &pair[1]) && first;
}

static bool set_integer(Setter *s, const Key *k, const Yaml *y, int64_t *field) {
    int64_t v;
    if (!parse_integer(y, &v) || (double)v < k->min || (double)v > k->max)
        return wrong(s, k, y,
                     arena_printf(&s->d->arena, "an integer from %.0f to %.0f", k->min, k->max));
    *field = v;
    return true;
}

static bool set_key(Setter *s, const Key *k, const Yaml *y) {
    void *field = (char *)s->r + k->offset;
    switch (k->type) {
    case KEY_BOOL:
        return parse_bool(y, field) || wrong(s, k, y, "true or false");
    case KEY_INT:
        return set_integer(s, k, y, field);
    case KEY_FLOAT:
    case KEY_FLOAT_OR_NULL:
        return set_number(s, k, y, field);
    case KEY_TEXT:
    case KEY_TEXT_OR_NULL:
        return set_text(s, k, y, field);
    case KEY_WORD:
        return set_word(s, k, y, field);
    case KEY_LIST:
        return set_list(s, k, y, field);
    case KEY_LISTS:
        return set_lists(s, k, y, field);
    case KEY_NUMBERS:
        return set_numbers(s, k, y, field);
    case KEY_PAIR:
        return set_pair(s, k, y, field);
    }
    bug("recipe key type %d", k->type);
}

/* ---- names to keys ---- */

static const Key *find_key(const char *section, const char *name) {
    for (int i = 0; i < COUNT_OF(keys); i++)
        if (!strcmp(keys[i].section, section) && !strcmp(keys[i].name, name))
            return &keys[i];
    return NULL;
}

static bool is_section(const char *name) {
    for (int i = 0; i < COUNT_OF(sections); i++)
        if (!strcmp(sections[i], name))
            return true;
    return false;
}

static bool unknown_section(Setter *s, const char *name, int line) {
    diag_error(s->d, EXIT_USAGE, "%sunknown key '%s'", place(s, line), diag_safe(s->d, name));
    const char *near = nearest_word(name, sections, COUNT_OF(sections));
    for (int i = 0; !near && i < COUNT_OF(keys); i++) /* a key without its section */
        if (*keys[i].section && !strcmp(keys[i].name, name))
            near = key_path(s, &keys[i]);
    if (near)
        diag_more(s->d, "did you mean '%s'?", near);
    else
        diag_more(s->d, "known: model, loss, stgc, data, noise, optimizer, schedule, train");
    return false;
}

static bool unknown_key(Setter *s, const char *section, const char *name, int line) {
    const char *names[COUNT_OF(keys)], *list = "", *elsewhere = NULL;
    int n = 0;
    for (int i = 0; i < COUNT_OF(keys); i++) {
        if (!strcmp(keys[i].section, section)) {
            list = arena_printf(&s->d->arena, "%s%s%s", list, n ? ", " : "", keys[i].name);
            names[n++] = keys[i].name;
        } else if (!strcmp(keys[i].name, name)) {
            elsewhere = key_path(s, &keys[i]);
        }
    }
    diag_error(s->d, EXIT_USAGE, "%sunknown key '%s.%s'", place(s, line), section,
               diag_safe(s->d, name));
    const char *near = nearest_word(name, names, n);
    if (near)
        diag_more(s->d, "did you mean '%s.%s'?", section, near);
    else if (elsewhere)
        diag_more(s->d, "did you mean '%s'?", elsewhere);
    else
        diag_more(s->d, "keys of '%s': %s", section, list);
    return false;
}

static bool set_section(Setter *s, const char *section, const Yaml *y) {
    if (is_null(y))
        return true; /* a section with all its lines commented out */
    if (y->kind != YAML_MAP) {
        diag_error(s->d, EXIT_USAGE, "%s'%s' is %s; expected a map of its keys", place(s, y->line),
                   section, found_text(s, y));
        return false;
    }
    bool ok = true;
    for (int i = 0; i < y->keys.n; i++) {
        const Yaml *name = y->keys.at[i];
        const Key *k = find_key(section, name->text);
        ok &= k ? set_key(s, k, y->items.at[i]) : unknown_key(s, section, name->text, name->line);
    }
    return ok;
}

static bool set_document(Setter *s, const Yaml *top) {
    if (is_null(top))
        return true;
    if (top->kind != YAML_MAP) {
        diag_error(s->d, EXIT_USAGE, "line %d: expected sections such as 'loss:', found %s",
                   top->line, found_text(s, top));
        return false;
    }
    bool ok = true;
    for (int i = 0; i < top->keys.n; i++) {
        const Yaml *name = top->keys.at[i], *value = top->items.at[i];
        const Key *k = find_key("", name->text);
        if (k)
            ok &= set_key(s, k, value);
        else if (is_section(name->text))
            ok &= set_section(s, name->text, value);
        else
            ok &= unknown_section(s, name->text, name->line);
    }
    return ok;
}

/* ---- files and flags ---- */

/* Bytes of a small regular file; NULL with a diagnostic. */
static char *read_small_file(const char *path, size_t limit, size_t *n, Diag *d) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0) {
        diag_error(d, EXIT_USAGE, "cannot open the recipe: %s", strerror(errno));
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    char *text = NULL;
    if (!S_ISREG(st.st_mode))
        diag_error(d, EXIT_USAGE, "not a regular file; expected a recipe in YAML");
    else if (st.st_size > (off_t)limit)
        diag_error(d, EXIT_USAGE, "larger than a recipe may be (%lld bytes, limit %zu)",
                   (long long)st.st_size, limit);
    else
        text = xcalloc((size_t)st.st_size + 1, 1);
    size_t got = 0;
    while (text && got < (size_t)st.st_size) {
        ssize_t k = read(fd, text + got, (size_t)st.st_size - got);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            break;
        got += (size_t)k;
    }
    close(fd);
    *n = got;
    return text;
}

bool recipe_read_text(Recipe *r, const char *text, size_t n, Diag *d) {
    Yaml *top = tree_parse(text, n, d);
    Setter s = {r, d};
    bool ok = top && set_document(&s, top);
    tree_free(top);
    return ok;
}

bool recipe_read(Recipe *r, const char *path, Diag *d) {
    size_t n;
    char *text = read_small_file(path, 1 << 20, &n, d);
    bool ok = text && recipe_read_text(r, text, n, d);
    free(text);
    return ok;
}

static void forget_lines(Yaml *y) {
    y->line = 0;
    for (int i = 0; i < y->items.n; i++)
        forget_lines(y->items.at[i]);
}

/* A value given on the command line: YAML where it is a list, a map or quoted, else the bare text
 * (so that * needs no quoting twice). */
static Yaml *flag_value(const char *text, Diag *d) {
    if (!*text || !strchr("[{\"'", *text))
        return tree_scalar(text);
    Diag inner = {0};
    Yaml *y = tree_parse(text, strlen(text), &inner);
    if (y)
        forget_lines(y);
    else
        diag_error(d, EXIT_USAGE, "'%s' is not a list, a map or a quoted text in YAML",
                   diag_safe(d, text));
    diag_free(&inner);
    return y;
}

static bool is_text(const char *s) {
    uint32_t code;
    int n = 1;
    for (; *s && n; s += n)
        n = utf8_char(s, strnlen(s, 4), &code);
    return n != 0;
}

bool recipe_set(Recipe *r, const char *assignment, Diag *d) {
    const char *equals = strchr(assignment, '=');
    Setter s = {r, d};
    if (!equals || equals == assignment) {
        diag_error(d, EXIT_USAGE,
                   "'%s' is no assignment; expected KEY=VALUE such as stgc.threshold=-0.1",
                   diag_safe(d, assignment));
        return false;
    }
    if (!is_text(assignment)) { /* the file that keeps the recipe would not read back */
        diag_error(d, EXIT_USAGE, "'%s' is no UTF-8 text", diag_safe(d, assignment));
        return false;
    }
    char *path = arena_strdup(&d->arena, assignment);
    path[equals - assignment] = 0;
    char *dot = strchr(path, '.');
    const char *name = dot ? dot + 1 : path;
    if (dot)
        *dot = 0;
    const Key *whole = find_key("", path);
    if (dot && whole) {
        diag_error(d, EXIT_USAGE, "'%s' is a key of its own; expected %s=VALUE", path, path);
        return false;
    }
    if (!dot && !whole && is_section(path)) {
        const Key *first = keys;
        while (strcmp(first->section, path) != 0)
            first++;
        diag_error(d, EXIT_USAGE, "'%s' is a section; expected one of its keys, such as %s", path,
                   key_path(&s, first));
        return false;
    }
    if (!whole && !is_section(path)) {
        if (dot)
            *dot = '.';
        return unknown_section(&s, path, 0);
    }
    const Key *k = find_key(dot ? path : "", name);
    const char *entry = NULL; /* loss.terms.NAME=0.1: names may hold dots themselves */
    for (int i = 0; !k && i < COUNT_OF(keys); i++) {
        size_t len = strlen(keys[i].name);
        if (keys[i].type == KEY_NUMBERS && !strcmp(keys[i].section, path) &&
            !strncmp(keys[i].name, name, len) && name[len] == '.' && name[len + 1]) {
            k = &keys[i];
            entry = name + len + 1;
        }
    }
    if (!k)
        return unknown_key(&s, path, name, 0);
    Yaml *y = flag_value(equals + 1, d);
    bool ok = y && (entry ? set_entry(&s, k, entry, y, (Numbers *)((char *)r + k->offset))
                          : set_key(&s, k, y));
    tree_free(y);
    return ok;
}

/* ---- canonical print ---- */

static void print_text(const char *s, FILE *to) {
    fputc('"', to);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            fprintf(to, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            fprintf(to, "\\x%02x", c);
        else
            fputc(c, to);
    }
    fputc('"', to);
}

/* Shortest decimal that reads back as the same double. */
static void print_number(double v, FILE *to) {
    char text[40];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v)
            break;
    }
    fputs(text, to);
}

static void print_list(const StrList *l, FILE *to) {
    fputc('[', to);
    for (int i = 0; i < l->n; i++) {
        fputs(i ? ", " : "", to);
        print_text(l->at[i], to);
    }
    fputc(']', to);
}

static void print_lists(const Lists *l, FILE *to) {
    fputc('[', to);
    for (int i = 0; i < l->n; i++) {
        fputs(i ? ", " : "", to);
        print_list(&l->at[i], to);
    }
    fputc(']', to);
}

static void print_numbers(const Numbers *map, FILE *to) {
    fputc('{', to);
    for (int i = 0; i < map->n; i++) {
        fputs(i ? ", " : "", to);
        print_text(map->at[i].name, to);
        fputs(": ", to);
        print_number(map->at[i].value, to);
    }
    fputc('}', to);
}

static void print_value(const Recipe *r, const Key *k, FILE *to) {
    const void *field = (const char *)r + k->offset;
    const double *f = field;
    const char *const *text = field;
    switch (k->type) {
    case KEY_BOOL:
        fputs(*(const bool *)field ? "true" : "false", to);
        break;
    case KEY_INT:
        fprintf(to, "%lld", (long long)*(const int64_t *)field);
        break;
    case KEY_FLOAT_OR_NULL:
        if (*f == 0) {
            fputs("null", to);
            break;
        }
        __attribute__((fallthrough));
    case KEY_FLOAT:
        print_number(*f, to);
        break;
    case KEY_TEXT:
    case KEY_TEXT_OR_NULL:
        if (*text)
            print_text(*text, to);
        else
            fputs("null", to);
        break;
    case KEY_WORD:
        for (int i = 0; i < k->nwords; i++)
            if (k->words[i].value == *(const int *)field)
                fputs(k->words[i].text, to);
        break;
    case KEY_LIST:
        print_list(field, to);
        break;
    case KEY_LISTS:
        print_lists(field, to);
        break;
    case KEY_NUMBERS:
        print_numbers(field, to);
        break;
    case KEY_PAIR:
        fputc('[', to);
        print_number(f[0], to);
        fputs(", ", to);
        print_number(f[1], to);
        fputc(']', to);
        break;
    }
}

void recipe_print(const Recipe *r, FILE *to) {
    const char *section = "";
    for (int i = 0; i < COUNT_OF(keys); i++) {
        const Key *k = &keys[i];
        if (*k->section && strcmp(section, k->section) != 0)
            fprintf(to, "%s:\n", k->section);
        section = k->section;
        fprintf(to, "%s%s: ", *k->section ? "  " : "", k->name);
        print_value(r, k, to);
        fputc('\n', to);
    }
}
