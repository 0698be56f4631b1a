/* numbers.h: formats and deviations; see numbers.c. */
#ifndef STGCC_TESTS_PTX_NUMBERS_H
#define STGCC_TESTS_PTX_NUMBERS_H

#include "ptx.h"

double ptx_to_integer(double v, int direction);
double ptx_round_to(double v, int digits, int emin, int emax, int round);
double ptx_add_odd(double a, double b);
float ptx_approx(PtxWarp *w, double v, double bound);

#endif
