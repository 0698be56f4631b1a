/* object.h: the parts of writing compiled steps to a file: the constants that describe them
 * (object_table.c), and the linker (object_link.c). Internal to codegen; object.c puts them
 * together. */
#ifndef STGCC_CODEGEN_OBJECT_H
#define STGCC_CODEGEN_OBJECT_H

#include <llvm-c/Core.h>

#include "codegen/codegen.h"
#include "codegen/nvptx_code.h"
#include "codegen/x86.h"

/* Constants of more bytes than this are not in the library but in the file of parameters. */
#define OBJECT_CONST_BYTES (1 << 20)

typedef struct ObjectProgram {
    StgcProgram which;
    LoopModule *module;
} ObjectProgram;

typedef struct ObjectVariant {
    const char *name; /* "x86-64-v3", "sm_80" */
    X86Target target; /* of a GPU's: of the host */
    int device;       /* 0: a CPU; 80 …: a GPU, with */
    NvptxCode *ptx;   /* the programs, in the order of the list */
    uint32_t features[6];              /* of this machine, for a native target; else 0 */
    char run_names[STGC_PROGRAMS][24]; /* by program in the list */
} ObjectVariant;

/* An object that defines `stgc_library`: `about` with the programs' slots and the variants' code.
 */
LLVMMemoryBufferRef object_table(const StgcLibrary *about, const ObjectProgram *programs,
                                 int nprograms, const ObjectVariant *variants, int nvariants);

/* Whether the slot's bytes go to the file of parameters. */
bool object_slot_outside(const StgcSlot *s);

/* A private folder beside `path`, in which `objects` are written and linked; the result is renamed
 * to `path`. relocatable: one object file; else a shared library. */
bool object_link(const LLVMMemoryBufferRef *objects, int n, bool relocatable, const char *path,
                 Diag *d);

#endif
