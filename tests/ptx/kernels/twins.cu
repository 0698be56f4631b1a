// plain C++ kernels; nvcc's code for them differs from LLVM's
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
extern "C" __global__ void saxpy(int n, float a, const float *x, float *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}
extern "C" __global__ void row_softmax(const float *__restrict__ x, float *__restrict__ y, int cols) {
    __shared__ float part[32];
    const float *r = x + (size_t)blockIdx.x * cols;
    float m = -INFINITY;
    for (int i = threadIdx.x; i < cols; i += blockDim.x) m = fmaxf(m, r[i]);
    for (int o = 16; o; o >>= 1) m = fmaxf(m, __shfl_xor_sync(~0u, m, o));
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = m;
    __syncthreads();
    m = part[0];
    for (int w = 1; w < blockDim.x / 32; w++) m = fmaxf(m, part[w]);
    __syncthreads();
    float s = 0;
    for (int i = threadIdx.x; i < cols; i += blockDim.x) s += __expf(r[i] - m);
    for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = s;
    __syncthreads();
    s = 0;
    for (int w = 0; w < blockDim.x / 32; w++) s += part[w];
    for (int i = threadIdx.x; i < cols; i += blockDim.x) y[(size_t)blockIdx.x * cols + i] = __expf(r[i] - m) / s;
}
extern "C" __global__ void sgemm(const float *a, const float *b, float *c, int m, int n, int k) {
    __shared__ float sa[16][17], sb[16][16];
    int row = blockIdx.y * 16 + threadIdx.y, col = blockIdx.x * 16 + threadIdx.x;
    float acc = 0;
    for (int t = 0; t < k; t += 16) {
        sa[threadIdx.y][threadIdx.x] = row < m && t + threadIdx.x < k ? a[row * k + t + threadIdx.x] : 0;
        sb[threadIdx.y][threadIdx.x] = col < n && t + threadIdx.y < k ? b[(t + threadIdx.y) * n + col] : 0;
        __syncthreads();
        for (int q = 0; q < 16; q++) acc += sa[threadIdx.y][q] * sb[q][threadIdx.x];
        __syncthreads();
    }
    if (row < m && col < n) c[row * n + col] = acc;
}
extern "C" __global__ void histogram(const uint8_t *x, uint32_t *bins, int n) {
    __shared__ uint32_t h[256];
    for (int i = threadIdx.x; i < 256; i += blockDim.x) h[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&h[x[i]], 1u);
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += blockDim.x) if (h[i]) atomicAdd(&bins[i], h[i]);
}
extern "C" __global__ void to_bf16(const float *x, __nv_bfloat16 *y, __half *z, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) { y[i] = __float2bfloat16_rn(x[i]); z[i] = __float2half_rn(x[i]); }
}
extern "C" __global__ void hash64(const uint64_t *x, uint64_t *y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint64_t z = x[i] + 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    y[i] = (z ^ z >> 31) / 1000003 + __popcll(z) + __clzll(z) + __brev((unsigned)z) % 17;
}
extern "C" __global__ void functions(const float *x, float *y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = x[i];
    y[i] = expf(v); y[n + i] = logf(fabsf(v) + 1e-3f); y[2 * n + i] = tanhf(v);
    y[3 * n + i] = sqrtf(fabsf(v)); y[4 * n + i] = v / (1 + fabsf(v)); y[5 * n + i] = erff(v);
    y[6 * n + i] = sinf(v); y[7 * n + i] = powf(fabsf(v), 1.7f);
    y[8 * n + i] = floorf(v) + truncf(v) + rintf(v); y[9 * n + i] = (float)(int)v;
}
extern "C" __global__ void mma_bf16(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *c) {
    // a [16,16] row major, b [16,8] as its transpose [8,16], c [16,8]
    int l = threadIdx.x, g = l / 4, q = l % 4;
    uint32_t A[4], B[2];
    for (int r = 0; r < 4; r++) A[r] = *(const uint32_t *)&a[(g + 8 * (r & 1)) * 16 + 2 * q + 8 * (r >> 1)];
    for (int r = 0; r < 2; r++) B[r] = *(const uint32_t *)&b[g * 16 + 2 * q + 8 * r];
    float C[4] = {0, 0, 0, 0};
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(C[0]), "+f"(C[1]), "+f"(C[2]), "+f"(C[3]) : "r"(A[0]), "r"(A[1]), "r"(A[2]), "r"(A[3]), "r"(B[0]), "r"(B[1]));
    for (int r = 0; r < 4; r++) c[(g + 8 * (r >> 1)) * 8 + 2 * q + (r & 1)] = C[r];
}
extern "C" __global__ void scan(const int *x, int *y, int n) {
    extern __shared__ int s[];
    int i = threadIdx.x;
    s[i] = i < n ? x[i] : 0;
    __syncthreads();
    for (int o = 1; o < blockDim.x; o *= 2) {
        int v = i >= o ? s[i - o] : 0;
        __syncthreads();
        s[i] += v;
        __syncthreads();
    }
    if (i < n) y[i] = s[i];
}
extern "C" __global__ void arrival(unsigned long long *first, const int *bad, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && bad[i]) atomicMin(first, (unsigned long long)i << 32 | (unsigned)bad[i]);
}
extern "C" __global__ void groups(const int *key, int *rank, int n) {
    int i = threadIdx.x;
    unsigned peers = __match_any_sync(~0u, key[i]);
    rank[i] = __popc(peers & ((1u << i) - 1)) + 100 * __reduce_add_sync(peers, 1);
}
