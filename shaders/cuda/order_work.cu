// The order in which the attention kernels take their items (head * groups + group; a group is `pair` neighbouring row
// blocks), and a counter of zero behind it, order[items].
// KV heads by falling weight; inside one the last rows first, and the heads that share it side by side: heavy items come
// first, items that run together read the same keys from L2, and the launch ends with the lightest items.
// Grid (n_kv_heads), 1024 threads; every block ranks all KV heads anew, a warp a query head.
struct AttentionParams {
    u32 n_heads, n_kv_heads, head_dim, q_len, kv_len, q_start, row_blocks, column_tiles;
    float scale;
    u32 q_row_stride, q_head_stride, k_row_stride, k_head_stride, v_row_stride, v_head_stride, out_row_stride, out_head_stride;
    u32 write_lse;
    float skip_below;
};

extern "C" __global__ void __launch_bounds__(1024)
order_work(const AttentionParams p, u32 pair, const uint2* __restrict__ row_ranges, const uint2* __restrict__ ranges, const u64* __restrict__ keep, u32* __restrict__ order) {
    DYNAMIC_SMEM;
    u32* weight = (u32*)smem;                           // [n_kv_heads], in keys of the last row block: enough to rank heads
    const u32 group_heads = p.n_heads / p.n_kv_heads, groups = (p.row_blocks + pair - 1) / pair, items = group_heads * groups;
    for (u32 i = threadIdx.x; i < p.n_kv_heads; i += 1024) weight[i] = 0;
    __syncthreads();
    for (u32 head = threadIdx.x / 32; head < p.n_heads; head += 32) {
        const u64 row = (u64)head * p.row_blocks + p.row_blocks - 1;
        const uint2 own = row_ranges[row];
        u32 keys = 0;
        for (u32 i = threadIdx.x % 32; i < own.y; i += 32) { const uint2 x = ranges[own.x + i]; keys += min(x.y, p.kv_len) - min(x.x, p.kv_len); }
        for (u32 t = threadIdx.x % 32; t < p.column_tiles; t += 32) keys += __popcll(keep[row * p.column_tiles + t]);
        #pragma unroll
        for (int d = 16; d > 0; d /= 2) keys += __shfl_xor_sync(~0u, keys, d);
        if (threadIdx.x % 32 == 0) atomicAdd(&weight[head / group_heads], keys / 64);
    }
    __syncthreads();
    const u32 mine = blockIdx.x;
    u32 rank = 0;
    for (u32 j = 0; j < p.n_kv_heads; j++) rank += weight[j] > weight[mine] || (weight[j] == weight[mine] && j < mine);
    for (u32 i = threadIdx.x; i < items; i += 1024)
        order[rank * items + i] = (mine * group_heads + i % group_heads) * groups + groups - 1 - i / group_heads;
    if (mine == 0 && threadIdx.x == 0) order[p.n_heads * groups] = 0;
}
