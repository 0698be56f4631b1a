/* fuzz_recipe.c: recipe text; what is accepted prints and reads back as itself. The first line
 * doubles as a --set. */
#include <stdlib.h>
#include <string.h>

#include "frontend/frontend.h"
#include "fuzz.h"

static char *printed(const Recipe *r, size_t *n) {
    char *text = NULL;
    FILE *f = open_memstream(&text, n);
    recipe_print(r, f);
    fclose(f);
    return text;
}

static void round_trip(const Recipe *r) {
    size_t n, again_n;
    char *text = printed(r, &n);
    Recipe *other = recipe_new();
    Diag d = {.subject = "again"};
    if (n < 1 << 20 && !recipe_read(other, fuzz_file((const uint8_t *)text, n), &d)) {
        diag_print(&d, stderr, true);
        abort();
    }
    char *again = printed(other, &again_n);
    if (n < 1 << 20 && (n != again_n || memcmp(text, again, n) != 0)) {
        fprintf(stderr, "printed:\n%s\nread and printed again:\n%s\n", text, again);
        abort();
    }
    free(text);
    free(again);
    recipe_free(other);
    diag_free(&d);
}

static void assignment(const uint8_t *bytes, size_t n) {
    const uint8_t *end = memchr(bytes, '\n', n);
    size_t len = end ? (size_t)(end - bytes) : n;
    char *text = calloc(len + 1, 1);
    if (len)
        memcpy(text, bytes, len);
    Diag d = {.subject = "--set"};
    Recipe *r = recipe_new();
    if (!recipe_set(r, text, &d))
        fuzz_check_refusal(&d);
    else
        round_trip(r);
    recipe_free(r);
    diag_free(&d);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    Diag d = {.subject = "fuzz"};
    Recipe *r = recipe_new();
    if (recipe_read(r, fuzz_file(bytes, n), &d))
        round_trip(r);
    else
        fuzz_check_refusal(&d);
    recipe_free(r);
    diag_free(&d);
    assignment(bytes, n);
    return 0;
}
