// K and V rows of every head's chosen columns -> a contiguous copy [n_heads, 64 column_tiles, head_dim], zeros behind the
// last: the attention kernels then read tiles instead of scattered rows. Grid (column_tiles, n_heads), 128 threads.
struct AttentionParams {
    u32 n_heads, n_kv_heads, head_dim, q_len, kv_len, q_start, row_blocks, column_tiles;
    float scale;
    u32 q_row_stride, q_head_stride, k_row_stride, k_head_stride, v_row_stride, v_head_stride, out_row_stride, out_head_stride;
    u32 write_lse;
    float skip_below;
};

extern "C" __global__ void __launch_bounds__(128)
gather_columns(const AttentionParams p, const act* __restrict__ k, const act* __restrict__ v, const u32* __restrict__ columns,
               act* __restrict__ k_columns, act* __restrict__ v_columns) {
    const u32 head = blockIdx.y, kv_head = head / (p.n_heads / p.n_kv_heads), chunks = p.head_dim / 8;
    columns += ((u64)head * p.column_tiles + blockIdx.x) * 64;
    const u64 to = ((u64)head * p.column_tiles + blockIdx.x) * 64 * p.head_dim;
    k += (u64)kv_head * p.k_head_stride;
    v += (u64)kv_head * p.v_head_stride;
    for (u32 i = threadIdx.x; i < 64 * chunks; i += 128) {
        const u32 row = i / chunks, chunk = i % chunks * 8, column = columns[row];
        uint4 x = make_uint4(0, 0, 0, 0), y = x;
        if (column < p.kv_len) {
            x = *(const uint4*)(k + (u64)column * p.k_row_stride + chunk);
            y = *(const uint4*)(v + (u64)column * p.v_row_stride + chunk);
        }
        *(uint4*)(k_columns + to + row * p.head_dim + chunk) = x;
        *(uint4*)(v_columns + to + row * p.head_dim + chunk) = y;
    }
}
