// Mean of each block of 64 rows (padded divides a short last block by 64 all the same): x act -> out f32
// [n_heads, blocks, head_dim].
// One block a (block, head): a thread sums one chunk of eight columns over some of the rows, then the sums are joined.
struct PoolBlocksParams { u32 n_heads, len, head_dim, row_stride, head_stride, blocks, padded; };

extern "C" __global__ void __launch_bounds__(128)
pool_blocks(const PoolBlocksParams p, const act* __restrict__ x, float* __restrict__ out) {
    __shared__ float part[128 * 9];                     // 9: eight sums a thread, padded against bank conflicts
    const u32 head = blockIdx.y, chunks = p.head_dim / 8, lanes = 128 / chunks;        // chunks <= 32
    const u32 chunk = threadIdx.x % chunks, first = threadIdx.x / chunks;
    const u32 from = blockIdx.x * 64, to = min(from + 64, p.len);
    float sum[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
    if (first < lanes)
        for (u32 r = from + first; r < to; r += lanes) {
            const uint4 v = *(const uint4*)(x + (u64)head * p.head_stride + (u64)r * p.row_stride + chunk * 8);
            const u32 w[4] = {v.x, v.y, v.z, v.w};
            #pragma unroll
            for (int i = 0; i < 4; i++) { const float2 y = unpack2(w[i]); sum[2 * i] += y.x; sum[2 * i + 1] += y.y; }
        }
    #pragma unroll
    for (int i = 0; i < 8; i++) part[threadIdx.x * 9 + i] = sum[i];
    __syncthreads();
    const float scale = 1.f / float(p.padded ? 64u : to - from);
    for (u32 c = threadIdx.x; c < p.head_dim; c += 128) {
        float s = 0.f;
        for (u32 l = 0; l < lanes; l++) s += part[(l * chunks + c / 8) * 9 + c % 8];
        out[((u64)head * p.blocks + blockIdx.x) * p.head_dim + c] = s * scale;
    }
}
