/* cuda_blas.c: dense products through cuBLAS. Its matrices are column-major; a row-major C [m,n] is
 * a column-major C' [n,m] with the same leading dimension, so C' = B' A' is asked for. */
#include "runtime/cuda.h"

#include <stdio.h>
#include <string.h>

/* A work space of our own: a library that reserves one by itself does so inside captured steps,
 * too, and results may then differ from those outside. Its size is what cuBLAS takes on Hopper. */
enum { WORKSPACE = 32 << 20 };

static StgcStatus failed(CudaDevice *d, CublasStatus s, const char *what) {
    return cuda_refuse(d, STGC_ERR_IO, "%s: cuBLAS: %s", what, d->blas.cublasGetStatusString(s));
}

StgcStatus cublas_start(CudaDevice *d) {
    char why[400];
    if (d->cublas)
        return STGC_OK;
    if (!cublas_open(&d->blas, d->cublas_path, why, sizeof why))
        return cuda_refuse(d, STGC_ERR_IO, "%s", why);
    StgcStatus status = cuda_alloc(d, WORKSPACE, "cuBLAS", &d->workspace);
    CublasStatus s = CUBLAS_OK;
    if (status == STGC_OK)
        s = d->blas.cublasCreate_v2(&d->cublas);
    if (s != CUBLAS_OK)
        d->cublas = NULL;
    if (status == STGC_OK && s == CUBLAS_OK)
        s = d->blas.cublasSetStream_v2(d->cublas, d->stream); /* before the work space: resets it */
    if (status == STGC_OK && s == CUBLAS_OK)
        s = d->blas.cublasSetWorkspace_v2(d->cublas, (void *)(uintptr_t)d->workspace, WORKSPACE);
    if (status == STGC_OK && s == CUBLAS_OK)
        s = d->blas.cublasGetVersion_v2(d->cublas, &d->cublas_version);
    if (status == STGC_OK && s == CUBLAS_OK)
        return STGC_OK;
    if (status == STGC_OK)
        status = failed(d, s, "it does not start");
    cublas_stop(d);
    cublas_close(&d->blas);
    return status;
}

void cublas_stop(CudaDevice *d) {
    d->cu.cuStreamSynchronize(d->stream); /* nothing uses the work space any more */
    if (d->cublas)
        d->blas.cublasDestroy_v2(d->cublas);
    cuda_free(d, d->workspace);
    d->cublas = NULL;
    d->workspace = 0;
}

int64_t cublas_bytes(const CudaDevice *d) {
    return d->cublas ? 0 : WORKSPACE;
}

/* One operand as cuBLAS wants it: a column-major matrix that is, or whose transpose is, X'. */
typedef struct Operand {
    unsigned op;
    int64_t ld;
} Operand;

/* X [rows,cols] row-major with element strides; cuBLAS multiplies with X'. False: no strides of a
 * matrix. A dimension of 1 has no stride that matters. */
static bool operand(int64_t rows, int64_t cols, int64_t row, int64_t col, Operand *o) {
    if ((col == 1 || cols == 1) && (row >= cols || rows == 1)) {
        *o = (Operand){CUBLAS_N, row > cols ? row : cols};
        return true;
    }
    *o = (Operand){CUBLAS_T, col > rows ? col : rows};
    return (row == 1 || rows == 1) && (col >= rows || cols == 1);
}

const char *cublas_why_not(const StgcCudaGemm *g) {
    Operand o;
    if (g->m < 0 || g->n < 0 || g->k < 0 || g->batches < 0)
        return "a size is negative";
    if (!operand(g->m, g->k, g->a_row, g->a_col, &o))
        return "its first operand's strides are none of a matrix";
    if (!operand(g->k, g->n, g->b_row, g->b_col, &o))
        return "its second operand's strides are none of a matrix";
    if (g->ldc < g->n && g->m > 1)
        return "its result's rows overlap";
    if (g->compute < 0 || g->compute > 2)
        return "its arithmetic is unknown";
    return NULL;
}

/* A product over nothing. */
static StgcStatus zeros(CudaDevice *d, CuAddress c, const StgcCudaGemm *g, const char *name) {
    CuResult r = CU_OK;
    for (int64_t b = 0; b < g->batches && r == CU_OK && !g->accumulate; b++)
        r = d->cu.cuMemsetD2D8Async(c + (CuAddress)(b * g->c_batch) * 4, (size_t)g->ldc * 4, 0,
                                    (size_t)g->n * 4, (size_t)g->m, d->stream);
    return r == CU_OK ? STGC_OK : cuda_fail(d, r, "%s", name);
}

StgcStatus cublas_product(CudaDevice *d, CuAddress arena, const StgcCudaGemm *g, const char *name) {
    static const float one = 1, zero = 0;
    static const unsigned computes[] = {CUBLAS_COMPUTE_F32_PEDANTIC, CUBLAS_COMPUTE_F32_TF32,
                                        CUBLAS_COMPUTE_F32};
    Operand a, b;
    CuAddress c = arena + (CuAddress)g->c;
    if (!g->m || !g->n || !g->batches)
        return STGC_OK;
    if (!g->k)
        return zeros(d, c, g, name);
    if (!operand(g->m, g->k, g->a_row, g->a_col, &a) ||
        !operand(g->k, g->n, g->b_row, g->b_col, &b))
        return cuda_refuse(d, STGC_ERR_MODEL, "%s: %s", name, cublas_why_not(g));
    unsigned type = g->compute == 2 ? CUBLAS_BF16 : CUBLAS_F32;
    CublasStatus s = d->blas.cublasGemmStridedBatchedEx_64(
        d->cublas, b.op, a.op, g->n, g->m, g->k, &one,
        (const void *)(uintptr_t)(arena + (CuAddress)g->b), type, b.ld, g->b_batch,
        (const void *)(uintptr_t)(arena + (CuAddress)g->a), type, a.ld, g->a_batch,
        g->accumulate ? &one : &zero, (void *)(uintptr_t)c, CUBLAS_F32,
        g->ldc > g->n ? g->ldc : g->n, g->c_batch, g->batches, computes[g->compute],
        CUBLAS_DEFAULT_ALGORITHM);
    return s == CUBLAS_OK ? STGC_OK : failed(d, s, name);
}
