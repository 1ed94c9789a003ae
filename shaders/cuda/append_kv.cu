// k_cache[h, position + t, :] = k[t, h, :], and the same for v. One block a token; a thread copies eight elements.
// The position moves on by *shift in a replay; null is 0.
struct AppendKvParams { u32 n_tokens, n_kv_heads, head_dim, row_stride, capacity, position; };

extern "C" __global__ void __launch_bounds__(256)
append_kv(const AppendKvParams p, const act* __restrict__ k, const act* __restrict__ v, act* __restrict__ k_cache, act* __restrict__ v_cache,
          const u32* __restrict__ shift) {
    const u32 token = blockIdx.x, chunks = p.head_dim / 8, position = p.position + (shift ? *shift : 0);
    for (u32 i = threadIdx.x; i < p.n_kv_heads * chunks; i += 256) {
        const u32 head = i / chunks, chunk = i % chunks;
        const u64 from = (u64)token * p.row_stride + (u64)head * p.head_dim + chunk * 8;
        const u64 to = ((u64)head * p.capacity + position + token) * p.head_dim + chunk * 8;
        *(uint4*)(k_cache + to) = *(const uint4*)(k + from);
        *(uint4*)(v_cache + to) = *(const uint4*)(v + from);
    }
}
