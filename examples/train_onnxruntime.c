/* Trains with a step graph through ONNX Runtime's C API: train_onnxruntime STEP.onnx TEXT [STEPS]
 *
 * stgcc transform byte-olmoe.onnx -c byte-olmoe.yaml --dim batch=8 --dim seq=128 --emit=step --initial-values -o STEP.onnx
 * cc train_onnxruntime.c -I/usr/include/onnxruntime -lonnxruntime -o train_onnxruntime */
#include <onnxruntime_c_api.h>
#include <stdio.h>

#define TRY(call) do { OrtStatus *s = (call); if (s) { fprintf(stderr, "%s\n", ort->GetErrorMessage(s)); return 1; } } while (0)

int main(int argc, char **argv) {
    const OrtApi *ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    FILE *text = argc > 2 ? fopen(argv[2], "rb") : NULL;
    if (!text) return fprintf(stderr, "usage: %s STEP.onnx TEXT [STEPS]\n", argv[0]), 2;
    OrtEnv *env; OrtSessionOptions *options; OrtSession *step; OrtAllocator *heap;
    TRY(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "train", &env));
    TRY(ort->CreateSessionOptions(&options));
    TRY(ort->CreateSession(env, argv[1], options, &step));
    TRY(ort->GetAllocatorWithDefaultOptions(&heap));
    size_t nin, nout, n = 0, loss = 0;
    TRY(ort->SessionGetInputCount(step, &nin));
    TRY(ort->SessionGetOutputCount(step, &nout));
    char *in_name[nin + nout], *out_name[nout];
    OrtValue *in[nin + nout], *out[nout];
    for (; n < nin; n++) { /* tokens, and the optimizer's state: zeros */
        OrtTypeInfo *type; const OrtTensorTypeAndShapeInfo *tensor; ONNXTensorElementDataType kind;
        int64_t dims[8]; size_t rank, count; void *data;
        TRY(ort->SessionGetInputName(step, n, heap, &in_name[n]));
        TRY(ort->SessionGetInputTypeInfo(step, n, &type));
        TRY(ort->CastTypeInfoToTensorInfo(type, &tensor));
        TRY(ort->GetTensorElementType(tensor, &kind));
        TRY(ort->GetDimensionsCount(tensor, &rank));
        TRY(ort->GetDimensions(tensor, dims, rank));
        TRY(ort->GetTensorShapeElementCount(tensor, &count));
        TRY(ort->CreateTensorAsOrtValue(heap, dims, rank, kind, &in[n]));
        TRY(ort->GetTensorMutableData(in[n], &data));
        memset(data, 0, count * (kind == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ? sizeof(float) : sizeof(int64_t)));
        if (!strcmp(in_name[n], "input_ids") || !strcmp(in_name[n], "labels")) {
            rewind(text);
            for (size_t i = 0; i < count; i++) ((int64_t *)data)[i] = getc(text) & 255;
        }
    }
    for (size_t o = 0; o < nout; o++) { /* a parameter's first value is in the file: its input joins with the first update */
        TRY(ort->SessionGetOutputName(step, o, heap, &out_name[o]));
        if (!strcmp(out_name[o], "loss/total")) loss = o;
    }
    for (int s = 0; s < (argc > 3 ? atoi(argv[3]) : 10); s++) {
        float *value;
        for (size_t o = 0; o < nout; o++) out[o] = NULL;
        TRY(ort->Run(step, NULL, (const char *const *)in_name, (const OrtValue *const *)in, n, (const char *const *)out_name, nout, out));
        TRY(ort->GetTensorMutableData(out[loss], (void **)&value));
        printf("step %d: loss %.6f\n", s + 1, *value);
        for (size_t o = 0, i; o < nout; o++) { /* X.next becomes X */
            size_t length = strlen(out_name[o]) - 5;
            if (strlen(out_name[o]) < 5 || strcmp(out_name[o] + length, ".next")) { ort->ReleaseValue(out[o]); continue; }
            for (i = 0; i < n && (strncmp(in_name[i], out_name[o], length) || in_name[i][length]); i++) ;
            if (i < n) ort->ReleaseValue(in[i]);
            else in_name[n++] = strndup(out_name[o], length);
            in[i] = out[o];
        }
    }
    return 0;
}
