/* cmd_compile.h: what a training and a compiled library say of themselves alike: which model and
 * recipe they are of, the numbers of the recipe that the host computes with, the faults of a batch
 * that are looked for before a step. */
#ifndef STGCC_FRONTEND_CMD_COMPILE_H
#define STGCC_FRONTEND_CMD_COMPILE_H

#include "codegen/codegen.h"
#include "frontend/cmd.h"

/* Structure and weights of the model as imported: constants print with their hashes. */
uint64_t identity_model(const Graph *g);
/* Canonical YAML; freed by the caller. */
char *identity_recipe(const Recipe *r);
StgcTraining identity_training(const Recipe *r);

/* cmd_library.c, cmd_library_train.c: a compiled library where a command takes a model. */
bool is_library(const char *path);
int library_step(const Options *o);
int library_train(const Options *o);
typedef struct Stgc Stgc;
/* The library of the command line on the machine of its options; NULL with a diagnostic. */
Stgc *library_open(Job *j);
/* The error of the last call with h, told of `d`; false. */
bool library_fault(Diag *d, Stgc *h);
/* The job's recipe: the one given with -c, which must be the library's, or the library's own; --set
 * and --steps may change steps and how often is logged and saved. */
bool library_recipe(Job *j, Stgc *h);
/* Gives the arrays of the job's data to the library's inputs; faults are the data's. */
bool library_inputs(Job *j, Stgc *h);

/* cmd_compile.c: the tables of what the training step's kernels for o->target, a GPU, do and move,
 * fused and unfused, to standard output. */
int compile_model(const Options *o);

/* cmd_compile_header.c: STEP.h, the C header beside a library: its tensors and how to call it. */
typedef struct HeaderText {
    const char *library;    /* file name without folder */
    const char *parameters; /* likewise; NULL: there are none */
    const char *model;
    const StgcLibrary *about;
    const ObjectSlots *slots;
    const char *cpus;
} HeaderText;
void header_write(const HeaderText *t, FILE *to);

#endif
