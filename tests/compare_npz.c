/* compare_npz EXPECTED.npz GOT.npz [TOLERANCE [THRESHOLD]]: is what `stgcc step` wrote what the oracle expects?
 *
 * Every expected key but train/… must be there. |got - want| <= tolerance * (max|want| of the array + 1e-6); NaN must meet NaN
 * (a pair that is not routed); `conflict` must be equal where the cosine is further than 1e-4 from the threshold; counts must be
 * equal. Prints the worst key and every key that fails; exit 0 if all hold. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/frontend.h"

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

/* The cosines that decide a conflict array. */
static const Tensor *cosines_of(const NamedArrays *want, const char *conflict_key) {
    char key[256];
    snprintf(key, sizeof key, "%.*scos", (int)(strlen(conflict_key) - strlen("conflict")), conflict_key);
    return arrays_find(want, key);
}

static double array_error(const NamedArrays *all, const char *key, const Tensor *want, const Tensor *got,
                          double threshold) {
    bool conflict = ends_with(key, "/conflict");
    bool count = ends_with(key, "/tokens") || ends_with(key, "/degenerate");
    const Tensor *cos = conflict ? cosines_of(all, key) : NULL;
    double worst = 0, scale = 0;
    for (int64_t i = 0; i < tensor_count(want); i++) {
        double w = tensor_get_f(want, i), g = tensor_get_f(got, i);
        if (isnan(w) != isnan(g))
            return INFINITY;
        if (isnan(w) || (cos && fabs(tensor_get_f(cos, i) - threshold) < 1e-4))
            continue;
        worst = fmax(worst, w == g ? 0 : fabs(w - g));
        scale = fmax(scale, fabs(w));
    }
    return conflict || count ? worst : worst / (scale + 1e-6);
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: compare_npz EXPECTED.npz GOT.npz [TOLERANCE [THRESHOLD]]\n");
        return EXIT_USAGE;
    }
    double tolerance = argc > 3 ? atof(argv[3]) : 1e-5, threshold = argc > 4 ? atof(argv[4]) : 0;
    Diag d = {.subject = "compare_npz"};
    NamedArrays want = {0}, got = {0};
    if (!npz_read(argv[1], &want, &d) || !npz_read(argv[2], &got, &d)) {
        diag_print(&d, stderr, true);
        return (int)d.code;
    }
    int compared = 0, failed = 0;
    double worst = 0;
    const char *worst_key = "";
    for (int i = 0; i < want.names.n; i++) {
        const char *key = want.names.at[i];
        if (!strncmp(key, "train/", 6))
            continue;
        const Tensor *w = want.tensors.at[i], *g = arrays_find(&got, key);
        compared++;
        if (!g || tensor_count(w) != tensor_count(g)) {
            printf("FAIL %s: %s\n", key, g ? "another number of elements" : "missing");
            failed++;
            continue;
        }
        double e = array_error(&want, key, w, g, threshold);
        if (e > worst)
            worst = e, worst_key = key;
        if (!(e <= tolerance)) {
            printf("FAIL %s: relative error %.2e\n", key, e);
            failed++;
        }
    }
    printf("%d keys, %d fail; worst %.2e (%s)\n", compared, failed, worst, worst_key);
    arrays_free(&want);
    arrays_free(&got);
    diag_free(&d);
    return failed || !compared ? 1 : 0;
}
