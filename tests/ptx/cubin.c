/* cubin.c: what ptxas's object says about the launch of each kernel, against what the emulator (and
 * so the runtime's argument block) takes it to be: parameters, their sum, static shared memory.
 *
 * A cubin is ELF64. Section .nv.info.NAME is a list of attributes {u8 format, u8 attribute, u16 n};
 * format 4 has n bytes behind it, others keep their value in n. Attribute 0x17 describes a
 * parameter {u32 index, u16 ordinal, u16 offset, u32 flags, size in flags >> 18}, 0x19 is their
 * total size. Static shared memory is the size of section .nv.shared.NAME. (Undocumented; seen in
 * ptxas 13.0.) */
#include "ptx.h"
#include "tools.h"

#include <elf.h>
#include <stdlib.h>
#include <string.h>

typedef struct Cubin {
    uint8_t *bytes;
    size_t n;
    const Elf64_Shdr *sections;
    unsigned nsections;
    const char *names;
} Cubin;

static bool cubin_open(Cubin *c, const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) {
        return false;
    }
    c->bytes = malloc(64 << 20);
    c->n = c->bytes ? fread(c->bytes, 1, 64 << 20, f) : 0;
    fclose(f);
    const Elf64_Ehdr *h = (const void *)c->bytes;
    if (c->n < sizeof *h || memcmp(h->e_ident, ELFMAG, SELFMAG) ||
        h->e_shoff + (uint64_t)h->e_shnum * sizeof(Elf64_Shdr) > c->n || h->e_shoff % 8 ||
        h->e_shstrndx >= h->e_shnum) {
        free(c->bytes);
        return false;
    }
    c->sections = (const void *)(c->bytes + h->e_shoff);
    c->nsections = h->e_shnum;
    c->names = (const char *)c->bytes + c->sections[h->e_shstrndx].sh_offset;
    return true;
}

static const Elf64_Shdr *cubin_section(const Cubin *c, const char *prefix, const char *name) {
    size_t n = strlen(prefix);
    for (unsigned k = 0; k < c->nsections; k++) {
        const char *s = c->names + c->sections[k].sh_name;
        if (!strncmp(s, prefix, n) && !strcmp(s + n, name)) {
            return &c->sections[k];
        }
    }
    return NULL;
}

typedef struct Found {
    int nparams, total;
} Found;

static uint32_t little(const uint8_t *p, int bytes) {
    uint32_t v = 0;
    memcpy(&v, p, (size_t)bytes);
    return v;
}

/* Walks the attributes; false with `what` at the first parameter that differs. */
static bool cubin_params(const Cubin *c, const Elf64_Shdr *s, const PtxKernel *k, Found *found,
                         char *what, size_t n) {
    const uint8_t *p = c->bytes + s->sh_offset, *end = p + s->sh_size;
    while (p + 4 <= end) {
        uint32_t size = little(p + 2, 2);
        if (p[1] == 0x19) {
            found->total = (int)size;
        }
        if (p[0] != 4) {
            p += 4;
            continue;
        }
        if (p[1] == 0x17 && size >= 12) {
            int ordinal = (int)little(p + 8, 2), offset = (int)little(p + 10, 2);
            int bytes = (int)(little(p + 12, 4) >> 18);
            found->nparams++;
            if (ordinal >= k->info.nparams || offset != k->info.param_offset[ordinal] ||
                bytes != k->info.param_bytes[ordinal]) {
                snprintf(what, n, "kernel %s: parameter %d is %d bytes at %d in the cubin", k->name,
                         ordinal, bytes, offset);
                return false;
            }
        }
        p += 4 + size;
    }
    return true;
}

static bool cubin_kernel(const Cubin *c, const PtxKernel *k, char *what, size_t n) {
    const Elf64_Shdr *info = cubin_section(c, ".nv.info.", k->name);
    const Elf64_Shdr *shared = cubin_section(c, ".nv.shared.", k->name);
    Found found = {0, 0};
    if (!info) {
        snprintf(what, n, "kernel %s is not in the cubin", k->name);
        return false;
    }
    if (!cubin_params(c, info, k, &found, what, n)) {
        return false;
    }
    if (found.nparams != k->info.nparams || found.total != k->info.params_bytes) {
        snprintf(what, n, "kernel %s: %d parameters of %d bytes in the cubin, %d of %d in the text",
                 k->name, found.nparams, found.total, k->info.nparams, k->info.params_bytes);
        return false;
    }
    int bytes = shared ? (int)shared->sh_size : 0;
    if (bytes && cubin_section(c, ".nv.shared.", "reserved.0")) {
        bytes -= 1024; /* from sm_90 on the system's kilobyte is counted along */
    }
    if (bytes != ((k->info.shared_static + 15) & ~15) && bytes != k->info.shared_static) {
        snprintf(what, n, "kernel %s: %d bytes of shared memory in the cubin, %d in the text",
                 k->name, bytes, k->info.shared_static);
        return false;
    }
    return true;
}

bool cubin_check(const char *path, const char *text, size_t bytes, char *what, size_t n) {
    Cubin c;
    PtxModule *m = ptx_parse(NULL, text, bytes, NULL, NULL);
    if (!m || !cubin_open(&c, path)) {
        snprintf(what, n, "%s", m ? "the cubin is no ELF file" : "the text does not parse");
        ptx_unload(m);
        return false;
    }
    bool ok = true;
    for (int k = 0; ok && k < m->nkernels; k++) {
        ok = cubin_kernel(&c, m->kernels[k], what, n);
    }
    free(c.bytes);
    ptx_unload(m);
    return ok;
}
