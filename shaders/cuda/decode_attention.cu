// Attention of few queries (one, as a rule) over all their causal keys, split along the keys; bound by reading K and V.
//
//   decode_attention  grid (splits, n_kv_heads, row chunks), 128 threads: partial softmax and sum over one split
//   decode_combine    grid (rows), 128 threads: joins the splits
//
// The queries of all heads that share a KV head are rows of one block, ROWS at a time, so that K and V are read once for
// them. LANES lanes hold one key, eight elements each; a warp's groups of lanes take different keys, and each keeps its
// own running softmax until the end. Lengths and positions move on by *shift in a replay; null is 0. The grid is for any
// length: splits share the keys evenly, and one past them holds none.
struct AttentionParams {
    u32 n_heads, n_kv_heads, head_dim, q_len, kv_len, q_start, row_blocks, column_tiles;
    float scale;
    u32 q_row_stride, q_head_stride, k_row_stride, k_head_stride, v_row_stride, v_head_stride, out_row_stride, out_head_stride;
    u32 write_lse;
    float skip_below;
};
#define CHUNKS (HEAD_DIM / 8)
#define LANES (CHUNKS <= 1 ? 1 : CHUNKS <= 2 ? 2 : CHUNKS <= 4 ? 4 : CHUNKS <= 8 ? 8 : CHUNKS <= 16 ? 16 : 32)
#define GROUPS (32 / LANES)
#define UNROLL 4                                        // keys whose loads are under way together
#define FIRST_MAXIMUM -1e30f

__device__ __forceinline__ void unpack8(uint4 x, float (&y)[8]) {
    const u32 w[4] = {x.x, x.y, x.z, x.w};
    #pragma unroll
    for (int i = 0; i < 4; i++) { const float2 v = unpack2(w[i]); y[2 * i] = v.x; y[2 * i + 1] = v.y; }
}

// Row x of KV head `kv`: query x / heads of query head kv * heads + x % heads.
extern "C" __global__ void __launch_bounds__(128, ROWS >= 8 ? 2 : 3)
decode_attention(const AttentionParams p, const u32* __restrict__ shift, const act* __restrict__ q, const act* __restrict__ k, const act* __restrict__ v,
                 float* __restrict__ partial_o, float2* __restrict__ partial) {     // [n_kv_heads * rows, splits, head_dim], [.., splits]
    __shared__ float shared_o[4][ROWS][HEAD_DIM];
    __shared__ float2 shared_m[4][ROWS];
    const u32 heads = p.n_heads / p.n_kv_heads, all_rows = heads * p.q_len, kv = blockIdx.y, first_row = blockIdx.z * ROWS;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, chunk = lane % LANES, group = warp * GROUPS + lane / LANES;
    const bool in = chunk < CHUNKS;
    const u32 more = shift ? *shift : 0, kv_len = p.kv_len + more, split_keys = (kv_len + gridDim.x - 1) / gridDim.x;
    const u32 from = blockIdx.x * split_keys, to = min(from + split_keys, kv_len);
    const float scale = p.scale * LOG2_E;
    k += (u64)kv * p.k_head_stride + (in ? chunk * 8 : 0);
    v += (u64)kv * p.v_head_stride + (in ? chunk * 8 : 0);

    float qf[ROWS][8], o[ROWS][8], top[ROWS], sum[ROWS];
    u32 position[ROWS];
    #pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const u32 row = min(first_row + r, all_rows - 1), query = row / heads, head = kv * heads + row % heads;
        const uint4 x = in ? *(const uint4*)(q + (u64)head * p.q_head_stride + (u64)query * p.q_row_stride + chunk * 8) : make_uint4(0, 0, 0, 0);
        unpack8(x, qf[r]);
        #pragma unroll
        for (int i = 0; i < 8; i++) { qf[r][i] *= scale; o[r][i] = 0.f; }
        position[r] = p.q_start + more + query;
        top[r] = FIRST_MAXIMUM;
        sum[r] = 0.f;
    }
    for (u32 base = from; base < to; base += 4 * GROUPS * UNROLL) {
        uint4 kk[UNROLL], vv[UNROLL];
        #pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const u32 key = base + u * 4 * GROUPS + group;
            const bool take = key < to;
            kk[u] = take ? *(const uint4*)(k + (u64)key * p.k_row_stride) : make_uint4(0, 0, 0, 0);
            vv[u] = take ? *(const uint4*)(v + (u64)key * p.v_row_stride) : make_uint4(0, 0, 0, 0);
        }
        #pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const u32 key = base + u * 4 * GROUPS + group;
            float kf[8], vf[8];
            unpack8(kk[u], kf);
            unpack8(vv[u], vf);
            #pragma unroll
            for (int r = 0; r < ROWS; r++) {
                // scores: lanes past head_dim hold q = 0
                float s = 0.f;
                #pragma unroll
                for (int i = 0; i < 8; i++) s = fmaf(qf[r][i], kf[i], s);
                #pragma unroll
                for (int d = 1; d < LANES; d *= 2) s += __shfl_xor_sync(~0u, s, d);
                // online softmax
                if (key < to && key <= position[r]) {
                    if (s > top[r]) {
                        const float fade = exp2_fast(top[r] - s);
                        sum[r] *= fade;
                        #pragma unroll
                        for (int i = 0; i < 8; i++) o[r][i] *= fade;
                        top[r] = s;
                    }
                    const float e = exp2_fast(s - top[r]);
                    sum[r] += e;
                    #pragma unroll
                    for (int i = 0; i < 8; i++) o[r][i] = fmaf(e, vf[i], o[r][i]);
                }
            }
        }
    }

    // join the groups of the warp, then the warps
    #pragma unroll
    for (int r = 0; r < ROWS; r++) {
        #pragma unroll
        for (int d = LANES; d < 32; d *= 2) {
            const float other = __shfl_xor_sync(~0u, top[r], d), both = fmaxf(top[r], other), fade = exp2_fast(top[r] - both);
            sum[r] *= fade;
            sum[r] += __shfl_xor_sync(~0u, sum[r], d);
            #pragma unroll
            for (int i = 0; i < 8; i++) { o[r][i] *= fade; o[r][i] += __shfl_xor_sync(~0u, o[r][i], d); }
            top[r] = both;
        }
        if (lane < CHUNKS)
            #pragma unroll
            for (int i = 0; i < 8; i++) shared_o[warp][r][chunk * 8 + i] = o[r][i];
        if (lane == 0) shared_m[warp][r] = make_float2(top[r], sum[r]);
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < ROWS * HEAD_DIM; i += 128) {
        const u32 r = i / HEAD_DIM, d = i % HEAD_DIM, row = first_row + r;
        if (row >= all_rows) break;
        float m = FIRST_MAXIMUM, l = 0.f, x = 0.f;
        #pragma unroll
        for (int w = 0; w < 4; w++) m = fmaxf(m, shared_m[w][r].x);
        #pragma unroll
        for (int w = 0; w < 4; w++) {
            const float fade = exp2_fast(shared_m[w][r].x - m);
            l = fmaf(shared_m[w][r].y, fade, l);
            x = fmaf(shared_o[w][r][d], fade, x);
        }
        const u64 at = ((u64)kv * all_rows + row) * gridDim.x + blockIdx.x;
        partial_o[at * HEAD_DIM + d] = x;
        if (d == 0) partial[at] = make_float2(m, l);
    }
}

extern "C" __global__ void __launch_bounds__(128)
decode_combine(const AttentionParams p, u32 splits, const float* __restrict__ partial_o, const float2* __restrict__ partial,
               OUT* __restrict__ out, float* __restrict__ lse) {                      // lse: [n_heads, q_len], natural log, or null
    const u32 heads = p.n_heads / p.n_kv_heads, all_rows = heads * p.q_len, row = blockIdx.x % all_rows, kv = blockIdx.x / all_rows;
    const u32 query = row / heads, head = kv * heads + row % heads;
    partial += (u64)blockIdx.x * splits;
    partial_o += (u64)blockIdx.x * splits * HEAD_DIM;
    float m = FIRST_MAXIMUM;
    for (u32 s = 0; s < splits; s++) m = fmaxf(m, partial[s].x);
    for (u32 d = threadIdx.x; d < HEAD_DIM; d += 128) {
        float l = 0.f, x = 0.f;
        for (u32 s = 0; s < splits; s++) {
            const float fade = exp2_fast(partial[s].x - m);
            l = fmaf(partial[s].y, fade, l);
            x = fmaf(partial_o[(u64)s * HEAD_DIM + d], fade, x);
        }
        store(&out[(u64)head * p.out_head_stride + (u64)query * p.out_row_stride + d], l > 0.f ? x / l : 0.f);
        if (lse && d == 0) lse[(u64)head * p.q_len + query] = (m + log2f(l)) * LN_2;
    }
}
