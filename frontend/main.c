/* main.c: the program. What happens to a model is below, command by command; how is in cmd_*.c.
 *
 *   model.onnx ─ onnx_import ─► Graph ─ bind dims, infer ─► Graph ─ passes_run ─► training Graph ─
 * engine ─► numbers
 *
 *   inspect   import, bind samples, passes up to raise_moe, print what was found
 *   init      the same, and write a commented recipe
 *   run       import, bind, forward passes, engine, one step, outputs
 *   transform import, bind, all passes, onnx_write_training
 *   compile   import, bind, all passes for each program, codegen_object
 *   export    import, onnx_export_weights
 *   step      import, bind, all passes, engine, one step, every gradient and cosine
 *   bench     import, the passes in several ways, the same numbers from all, times
 *   train     import, bind, all passes with the optimizer, engine, many steps, checkpoints,
 * model.onnx */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/cmd.h"

const Command commands[] = {
    {"inspect", "MODEL.onnx", "what is in a model: parameters, MoE layers, what was not understood",
     cmd_inspect,
     "Prints the model's parameters, the MoE layers found (form, experts, router), and what was "
     "not\n"
     "raised and why. Free sizes get small samples unless --dim or --data gives them."},
    {"init", "MODEL.onnx [-o C.yaml]", "writes a commented training recipe for a model", cmd_init,
     "Writes a recipe with the model's parameters, tensors that should stay frozen, its MoE layers "
     "and\n"
     "sensible defaults; to standard output unless -o names a file."},
    {"transform", "MODEL.onnx -c C.yaml [--data BATCH.npz] -o T.onnx",
     "the training graph in standard ONNX operators", cmd_transform,
     "Writes losses, gradients and cosines (--emit=gradients), or one optimizer step with parameters "
     "and\n"
     "state as inputs X, X.m, X.v, step and outputs X.next … (--emit=step). Sizes come from --data or "
     "--dim.\n"
     "The result runs in any ONNX engine."},
    {"compile", "MODEL.onnx -c C.yaml [--data BATCH.npz] -o STEP.so",
     "the training step as a library for C and other languages", cmd_compile,
     "Writes STEP.so (machine code; train with it through stgc.h), STEP.h (its tensors) and\n"
     "STEP.safetensors (initial parameters). Sizes come from --data or --dim. --emit=obj writes an\n"
     "object file to link elsewhere, llvm, asm and ir write text."},
    {"export", "MODEL.onnx --params P.safetensors -o OUT.onnx",
     "trained parameters back into the model", cmd_export,
     "Writes the model with the initializers that P names replaced; with -c also those that the "
     "recipe's model.tie joins to them."},
    {"step", "MODEL.onnx|STEP.so -c C.yaml --data BATCH.npz -o OUT.npz",
     "one training step laid open: losses, gradients, cosines", cmd_step,
     "Computes one training step without updating anything and writes loss/*, out/NAME,\n"
     "grad/INITIALIZER and moe/LAYER/* as float32 arrays."},
    {"run", "MODEL.onnx --data IN.npz|DIR -o OUT.npz", "forward only", cmd_run,
     "Computes the model's outputs. DIR holds input_0.pb, input_1.pb … (ONNX test data)."},
    {"train", "MODEL.onnx|STEP.so -c C.yaml --data D -o RUN/",
     "trains; writes checkpoints, metrics and the trained model", cmd_train,
     "D is a batch (.npz, repeated every step) or a file of tokens (data.dtype). RUN/ gets\n"
     "metrics.jsonl, step-N.ckpt and, at the end, model.onnx (of STEP.so: model.safetensors). Ctrl-C\n"
     "finishes the step, saves and exits 0; --resume goes on, bit for bit, where the newest\n"
     "checkpoint left off. STEP.so knows its recipe; -c may be left away."},
    {"bench", "MODEL.onnx -c C.yaml [--data BATCH.npz]",
     "measures the training step: fusion, capture modes, kernels against the machine", cmd_bench,
     "Times the step fused and unfused, with every capture mode and number of threads, in one\n"
     "process and in turns, after checking that all compute the same; then what every kernel takes,\n"
     "does and moves, against a large matrix product and a large copy. Without --data the batch is\n"
     "made up at random; sizes come from --dim or the recipe's train.batch and train.sequence.\n"
     "With a GPU as --target the static model of its kernels is printed, fused and unfused."},
};
const int ncommands = COUNT_OF(commands);

static int unknown_command(const char *word) {
    const char *names[COUNT_OF(commands)];
    for (int i = 0; i < ncommands; i++)
        names[i] = commands[i].name;
    Diag d = {.subject = "stgcc"};
    diag_error(&d, EXIT_USAGE, "unknown command '%s'", diag_safe(&d, word));
    const char *near = nearest_word(word, names, ncommands);
    if (near)
        diag_more(&d, "did you mean '%s'?", near);
    else
        diag_more(&d, "`stgcc --help` lists the commands");
    diag_print(&d, stderr, false);
    diag_free(&d);
    return EXIT_USAGE;
}

/* The options that need no model. True if there was one. */
static bool answered(const Options *o, const Command *c) {
    if (o->help)
        options_help(c, stdout);
    else if (o->version)
        puts("stgcc " STGCC_VERSION);
    else if (o->list_passes)
        passes_list(stdout);
    return o->help || o->version || o->list_passes;
}

static int run_command(const Command *c, int argc, char **argv) {
    Options o = {0};
    Diag d = {.subject = "stgcc"};
    int code = EXIT_OK;
    if (!options_read(&o, c, argc, argv, &d)) {
        diag_print(&d, stderr, false);
        code = d.code;
    } else if (!answered(&o, c)) {
        code = c->run(&o);
    }
    diag_free(&d);
    options_free(&o);
    return code;
}

/* What was printed must have arrived; a reader that went away early is no fault. */
static int close_output(int code) {
    if ((fflush(stdout) != 0 || ferror(stdout)) && errno != EPIPE && code == EXIT_OK) {
        fprintf(stderr, "stgcc: error: cannot write to standard output: %s\n", strerror(errno));
        return EXIT_IO;
    }
    return code;
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN); /* a full disk or a closed pipe is an error to report, not a signal */
    signal(SIGXFSZ, SIG_IGN);
    const char *word = argc > 1 ? argv[1] : "--help";
    for (int i = 0; i < ncommands; i++)
        if (!strcmp(commands[i].name, word))
            return close_output(run_command(&commands[i], argc - 2, argv + 2));
    Options o = {.help = !strcmp(word, "--help") || !strcmp(word, "-h") || !strcmp(word, "help"),
                 .version = !strcmp(word, "--version"),
                 .list_passes = !strcmp(word, "--list-passes")};
    if (answered(&o, NULL))
        return close_output(argc > 1 ? EXIT_OK : EXIT_USAGE);
    return unknown_command(word);
}
