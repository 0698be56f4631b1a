/* tools.h: PTX texts seen from outside, for the tests of kernels: which forms they use, mutants of
 * them, and what ptxas makes of them. */
#ifndef STGCC_TESTS_PTX_TOOLS_H
#define STGCC_TESTS_PTX_TOOLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* forms_used.c: the table of forms (forms.h) by form and first type. A set has a byte for each. */
int ptx_form_types(void);
/* Marks what a text uses; false if it does not parse. */
bool ptx_forms_used(const char *text, size_t bytes, uint8_t *set);
/* "form type: vector, kernel, hardware: no" for all, to `to` unless NULL. Returns the number of
 * forms of which no type is in a set. */
int ptx_forms_print(FILE *to, const uint8_t *by_vector, const uint8_t *by_kernel);

/* mutate.c: changes of one place of a PTX text that should make any test of it fail: another
 * operand, constant, comparison, offset, type or rounding, a barrier or instruction left out. */
typedef struct PtxMutant {
    char *text; /* the whole text, zero-terminated; freed with ptx_mutant_free */
    size_t bytes;
    int line; /* of the change */
    char kernel[128];
    char what[200]; /* "line 12: add.s32 %r1, %r2, 4 -> add.s32 %r1, %r2, 5" */
} PtxMutant;
/* The number of mutants of a text; changes that trivially change nothing are not among them. */
int ptx_mutant_count(const char *text, size_t bytes);
/* The n-th; the same for equal texts. False: there is none. */
bool ptx_mutant(const char *text, size_t bytes, int n, PtxMutant *out);
void ptx_mutant_free(PtxMutant *m);

/* ptxas.c: what NVIDIA's assembler says of a text. */
typedef struct PtxasKernel {
    char name[256];
    int registers, spill_stores, spill_loads, stack, shared, barriers;
} PtxasKernel;
/* Whether there is one: in PATH or /usr/local/cuda/bin. */
bool ptxas_find(char path[512]);
/* Assembles for sm_`arch`. The kernels' resources, up to n, in the order ptxas names them; returns
 * their number, or -1 with ptxas's messages in `log`. cubin: where it is written, or NULL. */
int ptxas_check(const char *text, size_t bytes, int arch, const char *cubin, PtxasKernel *out,
                int n, char *log, size_t log_bytes);

/* cubin.c: whether an object of ptxas has the parameters and static shared memory of every kernel of
 * the text, as ptx_kernel_info gives them. False: `what` differs. */
bool cubin_check(const char *path, const char *text, size_t bytes, char *what, size_t n);

#endif
