/* cmd_bench_machine.c: what a reader must know of the machine to judge a measurement. */
#include "frontend/cmd_bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

double bench_busy(void) {
    double v[8] = {0}, sum = 0;
    FILE *f = fopen("/proc/stat", "r");
    int n = f ? fscanf(f, "cpu %lf %lf %lf %lf %lf %lf %lf %lf", &v[0], &v[1], &v[2], &v[3], &v[4],
                       &v[5], &v[6], &v[7])
              : 0;
    if (f)
        fclose(f);
    for (int i = 0; i < n; i++)
        sum += i == 3 || i == 4 ? 0 : v[i]; /* idle, waiting */
    return n == 8 ? sum / (double)sysconf(_SC_CLK_TCK) : NAN;
}

static const char *first_line(Arena *a, const char *path) {
    char line[128] = "";
    FILE *f = fopen(path, "r");
    if (f && fgets(line, sizeof line, f))
        line[strcspn(line, "\n")] = 0;
    if (f)
        fclose(f);
    return *line ? arena_strdup(a, line) : NULL;
}

static const char *cpu_name(Arena *a) {
    char line[256];
    const char *name = "unknown CPU";
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon)
            continue;
        colon += 1 + strspn(colon + 1, " \t");
        colon[strcspn(colon, "\n")] = 0;
        name = arena_strdup(a, colon);
        break;
    }
    if (f)
        fclose(f);
    return name;
}

void bench_machine(Bench *b) {
    Arena *a = &b->job.arena;
    struct utsname u;
    time_t now = time(NULL);
    struct tm utc;
    char text[64];
    b->cpu = cpu_name(a);
    b->governor = first_line(a, "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    b->kernel = uname(&u) == 0 ? arena_printf(a, "%s %s", u.sysname, u.release) : "unknown";
    strftime(text, sizeof text, "%Y-%m-%d %H:%M UTC", gmtime_r(&now, &utc));
    b->date = arena_strdup(a, text);
    if (getloadavg(b->load, 3) != 3)
        b->load[0] = b->load[1] = b->load[2] = NAN;
}
