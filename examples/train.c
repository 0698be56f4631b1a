/* train.c: trains with a compiled step and a data loop of its own.
 *
 *     stgcc compile models/byte-olmoe.onnx -c models/byte-olmoe.yaml --dim batch=8 --dim seq=128 -o step.so
 *     cc train.c $(pkg-config --cflags --libs stgc) -o train
 *     ./train ./step.so text.txt 100 trained.safetensors
 *     stgcc export models/byte-olmoe.onnx --params trained.safetensors -o trained.onnx
 *
 * Here the data are the bytes of a text, cut into rows; a step's batch is whatever is written to its
 * inputs. */
#include <stdio.h>
#include <stdlib.h>

#include <stgc.h>

static int fail(Stgc *h) {
    fprintf(stderr, "%s\n", stgc_error(h));
    int status = (int)stgc_status(h);
    stgc_close(h);
    return status;
}

static unsigned char *read_text(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    unsigned char *text = malloc(1 << 24);
    *n = f && text ? fread(text, 1, 1 << 24, f) : 0;
    if (f)
        fclose(f);
    return text;
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: train STEP.so TEXT STEPS TRAINED.safetensors\n");
        return 2;
    }
    size_t n, at = 0;
    unsigned char *text = read_text(argv[2], &n);
    Stgc *h = stgc_open(argv[1], NULL); /* parameters: STEP.safetensors beside it */
    if (stgc_status(h) != STGC_OK)
        return fail(h);

    /* The inputs' own memory: what is written there is the next batch, without a copy. */
    StgcTensor ids = {.size = sizeof ids}, labels = {.size = sizeof labels};
    if (stgc_tensor(h, "input_ids", &ids) != STGC_OK ||
        stgc_tensor(h, "labels", &labels) != STGC_OK)
        return fail(h);
    size_t batch = (size_t)(ids.dims[0] * ids.dims[1]);
    if (n < batch || ids.type != STGC_I64 || labels.type != STGC_I64) {
        fprintf(stderr, "%s: needs %zu bytes of text\n", argv[2], batch);
        return 4;
    }

    long steps = strtol(argv[3], NULL, 10);
    for (long s = 1; s <= steps; s++, at += batch) {
        for (size_t i = 0; i < batch; i++)
            ((int64_t *)ids.data)[i] = ((int64_t *)labels.data)[i] = text[(at + i) % n];
        if (stgc_step(h) != STGC_OK)
            return fail(h);
        if (s == 1 || s % 10 == 0 || s == steps)
            printf("step %ld  loss %.4f  |grad| %.3f  lr %.2e\n", s, stgc_number(h, "loss/total"),
                   stgc_number(h, "grad_norm"), stgc_learning_rate(h));
    }
    if (stgc_store(h, argv[4]) != STGC_OK)
        return fail(h);
    stgc_close(h);
    free(text);
    return 0;
}
