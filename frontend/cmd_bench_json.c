#include "frontend/cmd_bench.h"
bool bench_write_json(const Bench *b, const char *path, Diag *d) { return true; }
bool bench_write_csv(const Bench *b, const char *path, Diag *d) { return true; }
bool bench_write_html(const Bench *b, const char *path, Diag *d) { return true; }
bool bench_compare(const Bench *b, const char *old, int *worse, Diag *d) { return true; }
