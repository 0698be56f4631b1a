/* loop_module.c: the life of a LoopModule. Programs are owned by `programs`; offset tables and
 * names lie in its arena. */
#include "codegen/loop.h"

#include <stdlib.h>

void loop_module_free(LoopModule *m) {
    if (!m)
        return;
    for (int i = 0; i < m->programs.n; i++)
        loop_program_free(m->programs.at[i]);
    vec_free(&m->programs);
    vec_free(&m->calls);
    vec_free(&m->slots);
    arena_free(&m->arena);
    free(m);
}
