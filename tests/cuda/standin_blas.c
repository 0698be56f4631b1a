/* standin_blas.c: the stand-in's cuBLAS: one product, strictly. Every operand must lie in one live
 * allocation, to the last element, and have been written. */
#include "tests/cuda/standin.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct cublasContext {
    Object object;
    CuStream stream;
    CuAddress workspace;
};

typedef struct Matrix {
    CuAddress at;
    bool transposed, bf16;
    int64_t rows, cols, ld, stride; /* as it lies in memory, column-major */
} Matrix;

typedef struct Product {
    int64_t m, n, k, batches;
    float alpha, beta;
    Matrix a, b, c;
    unsigned compute;
} Product;

const char *cublasGetStatusString(CublasStatus status) {
    switch (status) {
    case CUBLAS_OK:
        return "success";
    case CUBLAS_NOT_INITIALIZED:
        return "the library was not initialized";
    case CUBLAS_ALLOC_FAILED:
        return "the resource allocation failed";
    case CUBLAS_INVALID_VALUE:
        return "an unsupported value or parameter was passed to the function";
    case CUBLAS_EXECUTION_FAILED:
        return "the function failed to launch on the GPU";
    default:
        return "unknown";
    }
}

CublasStatus cublasCreate_v2(CublasHandle *handle) {
    STANDIN_LOCK;
    if (standin_enter() != CU_OK || standin.inject.no_blas)
        return CUBLAS_NOT_INITIALIZED;
    *handle = standin_object(OBJECT_BLAS, sizeof **handle);
    return CUBLAS_OK;
}

CublasStatus cublasDestroy_v2(CublasHandle handle) {
    STANDIN_LOCK;
    if (!standin_is(handle, OBJECT_BLAS)) {
        standin_misuse("cublasDestroy: no handle");
        return CUBLAS_NOT_INITIALIZED;
    }
    standin_forget(handle);
    return CUBLAS_OK;
}

CublasStatus cublasGetVersion_v2(CublasHandle handle, int *version) {
    STANDIN_LOCK;
    *version = 130000;
    return standin_is(handle, OBJECT_BLAS) ? CUBLAS_OK : CUBLAS_NOT_INITIALIZED;
}

CublasStatus cublasSetStream_v2(CublasHandle handle, CuStream stream) {
    STANDIN_LOCK;
    if (!standin_is(handle, OBJECT_BLAS) || !standin_is(stream, OBJECT_STREAM))
        return CUBLAS_NOT_INITIALIZED;
    handle->stream = stream;
    handle->workspace = 0; /* as the real one */
    return CUBLAS_OK;
}

CublasStatus cublasSetWorkspace_v2(CublasHandle handle, void *workspace, size_t bytes) {
    STANDIN_LOCK;
    CuAddress at = (CuAddress)(uintptr_t)workspace;
    if (!standin_is(handle, OBJECT_BLAS))
        return CUBLAS_NOT_INITIALIZED;
    if (at % 256 || !ptx_host_view(standin.device, at, bytes, false))
        return CUBLAS_INVALID_VALUE;
    handle->workspace = at;
    return CUBLAS_OK;
}

/* ---- the product ---- */

static float round_to(float x, int bits) { /* to so many bits of mantissa, to nearest even */
    uint32_t u, low = 23u - (uint32_t)bits;
    memcpy(&u, &x, sizeof u);
    if (isfinite(x)) {
        u += ((1u << (low - 1)) - 1) + ((u >> low) & 1);
        u &= ~((1u << low) - 1);
    }
    memcpy(&x, &u, sizeof x);
    return x;
}

static size_t element_bytes(const Matrix *x) {
    return x->bf16 ? 2 : 4;
}

/* The bytes of one batch's matrix on the host; NULL with a text. */
static char *view(const Matrix *x, int64_t batch, const char *name, bool read, bool write) {
    CuAddress at = x->at + (CuAddress)(batch * x->stride) * element_bytes(x);
    size_t bytes = (size_t)((x->cols - 1) * x->ld + x->rows) * element_bytes(x);
    char *host = ptx_host_view(standin.device, at, bytes, false);
    if (!host) {
        standin_say(CU_ILLEGAL_ADDRESS, "product: %s of batch %lld is outside of its memory", name,
                    (long long)batch);
        return NULL;
    }
    for (int64_t j = 0; j < x->cols; j++) {
        CuAddress column = at + (CuAddress)(j * x->ld) * element_bytes(x);
        size_t n = (size_t)x->rows * element_bytes(x);
        if (read && !ptx_is_initialised(standin.device, column, n)) {
            standin_say(CU_ILLEGAL_ADDRESS, "product: %s of batch %lld was never written", name,
                        (long long)batch);
            return NULL;
        }
        if (write)
            ptx_host_view(standin.device, column, n, true);
    }
    return host;
}

/* Element [i,j] of the operand, after transposition, as the arithmetic sees it. */
static float at(const Matrix *x, const char *host, int64_t i, int64_t j, unsigned compute) {
    int64_t e = x->transposed ? j + i * x->ld : i + j * x->ld;
    float v;
    if (x->bf16) {
        uint16_t h;
        memcpy(&h, host + e * 2, sizeof h);
        uint32_t u = (uint32_t)h << 16;
        memcpy(&v, &u, sizeof v);
    } else {
        memcpy(&v, host + e * 4, sizeof v);
    }
    return compute == CUBLAS_COMPUTE_F32_TF32 ? round_to(v, 10) : v;
}

static float dot(const Product *p, const char *a, const char *b, int64_t i, int64_t j) {
    double wide = 0;
    float narrow = 0;
    for (int64_t l = 0; l < p->k; l++) {
        float x = at(&p->a, a, i, l, p->compute), y = at(&p->b, b, l, j, p->compute);
        wide += (double)x * y;
        narrow += x * y;
    }
    return standin.inject.gemm_f32 ? narrow : (float)wide;
}

static CuResult run_product(void *arguments) {
    const Product *p = arguments;
    standin.counts.products++;
    for (int64_t batch = 0; batch < p->batches; batch++) {
        const char *a = view(&p->a, batch, "A", true, false);
        const char *b = a ? view(&p->b, batch, "B", true, false) : NULL;
        char *c = b ? view(&p->c, batch, "C", p->beta != 0, true) : NULL;
        if (!c)
            return CU_ILLEGAL_ADDRESS;
        for (int64_t j = 0; j < p->n; j++)
            for (int64_t i = 0; i < p->m; i++) {
                float old = 0, v = p->alpha * dot(p, a, b, i, j);
                if (p->beta != 0)
                    memcpy(&old, c + (i + j * p->c.ld) * 4, sizeof old);
                v += p->beta != 0 ? p->beta * old : 0;
                memcpy(c + (i + j * p->c.ld) * 4, &v, sizeof v);
            }
    }
    return CU_OK;
}

static bool matrix(Matrix *x, const void *p, unsigned op, unsigned type, int64_t rows, int64_t cols,
                   int64_t ld, int64_t stride) {
    bool t = op == CUBLAS_T;
    *x = (Matrix){(CuAddress)(uintptr_t)p,
                  t,
                  type == CUBLAS_BF16,
                  t ? cols : rows,
                  t ? rows : cols,
                  ld,
                  stride};
    return op <= CUBLAS_T && (type == CUBLAS_F32 || type == CUBLAS_BF16) && ld >= x->rows &&
           ld >= 1 && x->at % element_bytes(x) == 0;
}

CublasStatus cublasGemmStridedBatchedEx_64(CublasHandle handle, unsigned op_a, unsigned op_b,
                                           int64_t m, int64_t n, int64_t k, const void *alpha,
                                           const void *a, unsigned a_type, int64_t lda,
                                           long long a_stride, const void *b, unsigned b_type,
                                           int64_t ldb, long long b_stride, const void *beta,
                                           void *c, unsigned c_type, int64_t ldc,
                                           long long c_stride, int64_t batches, unsigned compute,
                                           int algorithm) {
    STANDIN_LOCK;
    Product p = {.m = m, .n = n, .k = k, .batches = batches, .compute = compute};
    if (standin_enter() != CU_OK || !standin_is(handle, OBJECT_BLAS))
        return CUBLAS_NOT_INITIALIZED;
    if (standin_due(&standin.inject.blas))
        return CUBLAS_EXECUTION_FAILED;
    if (m < 0 || n < 0 || k < 0 || batches < 0 ||
        !matrix(&p.a, a, op_a, a_type, m, k, lda, a_stride) ||
        !matrix(&p.b, b, op_b, b_type, k, n, ldb, b_stride) ||
        !matrix(&p.c, c, CUBLAS_N, c_type, m, n, ldc, c_stride) || p.c.bf16 || a_type != b_type ||
        (compute != CUBLAS_COMPUTE_F32 && compute != CUBLAS_COMPUTE_F32_PEDANTIC &&
         compute != CUBLAS_COMPUTE_F32_TF32) ||
        (compute != CUBLAS_COMPUTE_F32 && p.a.bf16) || algorithm != CUBLAS_DEFAULT_ALGORITHM)
        return CUBLAS_INVALID_VALUE;
    if (!handle->workspace)
        standin_misuse("a product without a work space of the caller's");
    memcpy(&p.alpha, alpha, sizeof p.alpha);
    memcpy(&p.beta, beta, sizeof p.beta);
    if (!m || !n || !batches)
        return CUBLAS_OK;
    if (!k)
        standin_misuse("a product over nothing is left to cuBLAS");
    return standin_enqueue(handle->stream, run_product, &p, sizeof p) == CU_OK
               ? CUBLAS_OK
               : CUBLAS_EXECUTION_FAILED;
}
