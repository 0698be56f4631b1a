/* exp, log, tanh and erf of f32 on the PTX emulator, as exact as test_x86_math.c wants them. */
#include "nvptx_instead.h"
#include "test_x86_math.c"
