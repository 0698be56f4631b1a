/* handle.h: what is behind an Stgc (stgc.h), shared by stgc.c (opening, stepping), stgc_tensor.c
 * (names and bytes) and stgc_file.c (parameters, checkpoints). */
#ifndef STGC_RUNTIME_HANDLE_H
#define STGC_RUNTIME_HANDLE_H

#include <stdbool.h>

#include "runtime/runtime.h"
#include "runtime/stgc.h"

/* A tensor a caller sees. The programs of a library have their own slots for it; parameters and
 * state live in the first program that has them (`home`), from which the others take them; between
 * calls the values there are the current ones. */
typedef struct Entry {
    const char *name;
    StgcKind kind;
    bool shown;  /* false: large constants, which only files of parameters name */
    bool needed; /* must be given before a step: parameters, inputs */
    bool given;
    int64_t rows; /* of an input that was set with fewer rows than the batch has; 0: all */
    StgcProgram home;
    const StgcSlot *slots[STGC_PROGRAMS]; /* NULL: the program does not have it */
} Entry;

struct Stgc {
    void *code; /* of dlopen */
    const StgcLibrary *library;
    const StgcVariant *variant;
    StgcRt *rt;
    StgcRun *runs[STGC_PROGRAMS]; /* made when first needed */
    StgcProgram primary;          /* the one that stgc_step runs on a batch */
    int last;                     /* the program that ran last, -1: none */
    Entry *entries;               /* inputs, parameters, state, outputs */
    Entry **by_name;              /* [nsorted], all once the list is made */
    int32_t nentries, nsorted;
    int32_t nshown; /* shown ones come first */
    int64_t memory_limit;
    int64_t steps, micro; /* optimizer steps done; micro-batches of the next one */
    bool trained;         /* one of these micro-batches had labels that count */
    double rate;          /* NaN: the schedule's */
    bool dead;            /* stgc_open failed: nothing can be done with it */
    StgcStatus status;
    char error[1024];
};

/* Records the status of a call and its text; returns the status. */
StgcStatus handle_fail(Stgc *h, StgcStatus status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Starts a call: clears the error. False if the handle is dead (its error is kept). */
bool handle_begin(Stgc *h);
/* The run of a program, made now if it was not; NULL with an error. */
StgcRun *handle_run(Stgc *h, StgcProgram p);

/* stgc_tensor.c */
extern const StgcProgram entry_order[STGC_PROGRAMS]; /* in which programs are searched for a name */
bool entries_make(Stgc *h);                          /* false: no memory */
void entries_free(Stgc *h);
Entry *entry_find(const Stgc *h, const char *name);
const StgcSlot *entry_slot(const Entry *e);
/* Where the bytes are, to read; to read or write; to keep the address of. NULL with an error if the
 * program's run cannot be made or its GPU failed; without one: an output that is not there. */
const void *entry_read(Stgc *h, const Entry *e);
void *entry_data(Stgc *h, const Entry *e);
void *entry_expose(Stgc *h, const Entry *e);
/* "i64[8,128]" */
const char *type_text(int32_t type, int32_t rank, const int64_t *dims, char *text, size_t n);

/* stgc_check.c: fills an input up after its first `rows` rows so that these count for nothing. */
void batch_fill(Stgc *h, const Entry *e, void *data, int64_t rows);
/* labels and ids in range, no NaN; *counted: labels that count, or 1 without labels.
 */
StgcStatus batch_check(Stgc *h, int64_t *counted);

#endif
