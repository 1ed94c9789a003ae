// scores[h, r, c] = pooled_q[h, r] . pooled_k[h / group, c], -inf where key block c begins after row block r's last query.
// f32 throughout: which blocks are chosen hangs on small differences. Block-sparse heads only.
// One block of 256 threads makes a 64 x 64 tile, a thread 4 x 4 of it; a step takes 16 of head_dim through shared memory.
struct ScoreBlocksParams { u32 n_heads, n_kv_heads, head_dim, row_blocks, key_blocks, band_start, band_len, q_start, q_len; };
#define BLOCK_SPARSE 3

extern "C" __global__ void __launch_bounds__(256)
score_blocks(const ScoreBlocksParams p, const uint4* __restrict__ plan, const float* __restrict__ pooled_q, const float* __restrict__ pooled_k, float* __restrict__ scores) {
    __shared__ float a[16][68], b[16][68];              // 68: a float4 a thread, rows apart in banks
    const u32 head = blockIdx.z, row0 = blockIdx.y * 64, column0 = blockIdx.x * 64;
    if (plan[head].x != BLOCK_SPARSE) return;
    const u32 x = threadIdx.x % 16, y = threadIdx.x / 16;
    auto last_query = [&](u32 row) { return p.q_start + min(64 * (p.band_start + row + 1), p.q_len) - 1; };
    float sum[4][4] = {};
    const bool any = 64 * column0 <= last_query(min(row0 + 63, p.band_len - 1));
    for (u32 d0 = 0; any && d0 < p.head_dim; d0 += 16) {
        for (u32 i = threadIdx.x; i < 64 * 16; i += 256) {
            const u32 r = i / 16, d = i % 16, row = row0 + r, column = column0 + r;
            a[d][r] = row < p.band_len && d0 + d < p.head_dim ? pooled_q[((u64)head * p.row_blocks + p.band_start + row) * p.head_dim + d0 + d] : 0.f;
            b[d][r] = column < p.key_blocks && d0 + d < p.head_dim ? pooled_k[((u64)(head / (p.n_heads / p.n_kv_heads)) * p.key_blocks + column) * p.head_dim + d0 + d] : 0.f;
        }
        __syncthreads();
        #pragma unroll
        for (int d = 0; d < 16; d++) {
            const float4 u = *(const float4*)&a[d][4 * y], v = *(const float4*)&b[d][4 * x];
            const float uu[4] = {u.x, u.y, u.z, u.w}, vv[4] = {v.x, v.y, v.z, v.w};
            #pragma unroll
            for (int i = 0; i < 4; i++)
                #pragma unroll
                for (int j = 0; j < 4; j++) sum[i][j] = fmaf(uu[i], vv[j], sum[i][j]);
        }
        __syncthreads();
    }
    #pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 row = row0 + 4 * y + i;
        if (row >= p.band_len) break;
        #pragma unroll
        for (int j = 0; j < 4; j++) {
            const u32 column = column0 + 4 * x + j;
            if (column < p.key_blocks) scores[((u64)head * p.band_len + row) * p.key_blocks + column] = 64 * column <= last_query(row) ? sum[i][j] : -INFINITY_F;
        }
    }
}
