/* onnx_metadata.c: what a model says about itself. */
#include <string.h>

#include "frontend/onnx_file.h"

const char *onnx_metadata(const OnnxFile *f, const char *key) {
    for (size_t i = 0; f && i < f->model->n_metadata_props; i++) {
        const Onnx__StringStringEntryProto *p = f->model->metadata_props[i];
        if (p->key && !strcmp(p->key, key))
            return p->value ? p->value : "";
    }
    return NULL;
}
