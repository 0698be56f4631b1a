/* replay.c: the main of a fuzz target where libFuzzer is absent: runs every file of the folders and
 * every file named. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "fuzz.h"

static const char *running = "nothing";
static int done;

/* A library that leaves the process ends here. */
static void left_early(void) {
    if (!done)
        fprintf(stderr, "the process was left while reading %s\n", running);
}

static int replay_file(const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) {
        perror(path);
        return 0;
    }
    running = path;
    fseek(f, 0, SEEK_END);
    long n = ftell(f);
    rewind(f);
    uint8_t *bytes = malloc(n > 0 ? (size_t)n : 1); /* exactly n: reading past it is seen */
    if (!bytes || n < 0 || fread(bytes, 1, (size_t)n, f) != (size_t)n)
        abort();
    fclose(f);
    LLVMFuzzerTestOneInput(bytes, (size_t)n);
    free(bytes);
    return 1;
}

static int replay(const char *path) {
    struct stat st;
    if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode))
        return replay_file(path);
    struct dirent **names;
    int n = scandir(path, &names, NULL, alphasort), count = 0;
    for (int i = 0; i < n; i++) {
        char file[4096];
        snprintf(file, sizeof file, "%s/%s", path, names[i]->d_name);
        if (names[i]->d_name[0] != '.')
            count += replay_file(file);
        free(names[i]);
    }
    free(names);
    return count;
}

int main(int argc, char **argv) {
    int count = 0;
    atexit(left_early);
    for (int i = 1; i < argc; i++)
        count += replay(argv[i]);
    done = 1;
    printf("%d inputs replayed\n", count);
    return count ? 0 : 1;
}
