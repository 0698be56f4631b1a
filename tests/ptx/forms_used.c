/* forms_used.c: which forms of the table a text uses, and the table of what is tested. */
#include "ptx.h"
#include "tools.h"

#include <string.h>

int ptx_form_types(void) {
    return ptx_nforms * W_COUNT;
}

bool ptx_forms_used(const char *text, size_t bytes, uint8_t *set) {
    PtxModule *m = ptx_parse(NULL, text, bytes, NULL, NULL);
    if (!m) {
        return false;
    }
    for (int k = 0; k < m->nkernels; k++) {
        for (int n = 0; n < m->kernels[k]->ncode; n++) {
            const PtxOpcode *c = &m->kernels[k]->code[n].c;
            set[c->form * W_COUNT + c->type[0]] = 1;
        }
    }
    ptx_unload(m);
    return true;
}

/* The words that a form's first choice of types allows; 0: it has no choice. */
static int form_types(const char *pattern, uint8_t allowed[W_COUNT]) {
    const char *s = pattern;
    int n = 0;
    memset(allowed, 0, W_COUNT);
    while (*s && !n) {
        size_t len = strcspn(s, ".,{}[]");
        int w = len ? ptx_word_find(s, len) : W_NONE;
        bool in_choice = s > pattern && strchr("{,", s[-1]);
        if (w && w <= T_F64) {
            allowed[w] = 1;
            n++;
            while (in_choice && s[len] == ',') {
                s += len + 1;
                len = strcspn(s, ".,{}[]");
                w = ptx_word_find(s, len);
                allowed[w] = 1;
                n++;
            }
        }
        s += len + (s[len] != 0);
    }
    return n;
}

int ptx_forms_print(FILE *to, const uint8_t *by_vector, const uint8_t *by_kernel) {
    int untested = 0;
    for (int f = 0; f < ptx_nforms; f++) {
        uint8_t allowed[W_COUNT];
        int any = 0, types = form_types(ptx_forms[f].pattern, allowed);
        if (to) {
            fprintf(to, "%s\n", ptx_forms[f].pattern);
        }
        for (int w = 0; w < W_COUNT; w++) {
            int at = f * W_COUNT + w, v = by_vector[at], k = by_kernel[at];
            any |= v | k;
            if (to && (v || k || allowed[w] || (!types && !w))) {
                fprintf(to, "    %-7s vector: %s, kernel: %s, checked on hardware: no\n",
                        w ? ptx_word_text(w) : "-", v ? "yes" : "no", k ? "yes" : "no");
            }
        }
        if (!any) {
            untested++;
            fprintf(stderr, "no test runs %s\n", ptx_forms[f].pattern);
        }
    }
    return untested;
}
