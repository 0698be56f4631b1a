/* onnx_metadata.c: what a model says about itself, and which files it is made of. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "frontend/onnx_file.h"

const char *onnx_metadata(const OnnxFile *f, const char *key) {
    for (size_t i = 0; f && i < f->model->n_metadata_props; i++) {
        const Onnx__StringStringEntryProto *p = f->model->metadata_props[i];
        if (p->key && !strcmp(p->key, key))
            return p->value ? p->value : "";
    }
    return NULL;
}

static bool same_file(const struct stat *a, const char *path) {
    struct stat b;
    return stat(path, &b) == 0 && a->st_dev == b.st_dev && a->st_ino == b.st_ino;
}

bool onnx_reads_file(const OnnxFile *f, const char *path) {
    struct stat st;
    char place[4096];
    if (!f || stat(path, &st) != 0)
        return false;
    if (f->path && st.st_dev == f->dev && st.st_ino == f->ino)
        return true;
    const Onnx__GraphProto *g = f->model->graph;
    for (size_t i = 0; g && f->dir && i < g->n_initializer; i++)
        for (size_t k = 0; k < g->initializer[i]->n_external_data; k++) {
            const Onnx__StringStringEntryProto *p = g->initializer[i]->external_data[k];
            if (!p->key || !p->value || strcmp(p->key, "location") != 0)
                continue;
            snprintf(place, sizeof place, "%s/%s", f->dir, p->value);
            if (same_file(&st, place))
                return true;
        }
    return false;
}
