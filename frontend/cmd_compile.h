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

/* cmd_library.c: a compiled library where a command takes a model. */
bool is_library(const char *path);
int library_step(const Options *o);

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
