/* Every loop operation over every type and storage type, on edge values, on the PTX emulator: the
 * cases and the references of test_x86_ops.c. */
#include "nvptx_instead.h"
#include "test_x86_ops.c"
