// How the last `last_q` (at most 64) queries look back, for vertical-slash heads (paper, Algorithm 2): with P the causal
// softmax of those rows over all keys,
//   column_score[h, j] = sum_i P[i, j],    offset_score[h, o] = sum of P[i, position(i) - o] over i.
//
//   last_query_stats   grid (splits, n_heads), 128 threads: per split and query the row maximum and sum (base 2); zeroes
//                      the split's part of offset_score
//   last_query_merge   grid (n_heads), 512 threads: over the splits -> stats[h, 64] = (maximum, 1 / sum)
//   last_query_scores  grid (splits, n_heads), 128 threads: P is made again tile by tile and never stored
//
// Two passes over K instead of one: the softmax of a row is known only at its end, and P of 64 rows at 1M keys and 32
// heads would be 8 GB. A warp holds 16 queries; tiles of 64 keys come by cp.async, one ahead.
struct ScoreLastQueriesParams {
    u32 n_heads, n_kv_heads, head_dim, q_len, kv_len, q_start, last_q;
    float scale;
    u32 q_row_stride, q_head_stride, k_row_stride, k_head_stride;
};
#define VERTICAL_SLASH 2
#define PITCH 72                                        // floats a row of the P tile: no bank conflicts on write or diagonal read
#define P_AT (2 * TILE_BYTES)                           // shared memory: two tiles of K, then P, column halves, diagonals
static_assert(P_AT + (64 * PITCH + 128 + 64) * 4 <= SMEM_BYTES, "shared memory");
#define THREADS 128
#define MASKED -1e38f
#define FIRST_MAXIMUM -1e30f

// SCORES false: row maximum and sum of this split. SCORES true: column and diagonal sums.
template <bool SCORES> __device__ __forceinline__ void last_queries(
        const ScoreLastQueriesParams& p, u32 split_keys, unsigned char* smem, const act* __restrict__ q, const act* __restrict__ k,
        float2* __restrict__ partial, const float2* __restrict__ stats, float* __restrict__ column_score, float* __restrict__ offset_score) {
    const int head = blockIdx.y, thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
    const int rows = p.last_q, kv_len = p.kv_len, first_position = p.q_start + p.q_len - rows;
    const int from = blockIdx.x * split_keys, to = min(kv_len, from + (int)split_keys);
    const float scale = p.scale * LOG2_E;
    const u32 base = smem_address(smem);
    float* tile = (float*)(smem + P_AT);                // P, 64 x PITCH
    float* halves = tile + 64 * PITCH;                  // column sums of rows 0 .. 31, then of rows 32 .. 63
    float* carry = halves + 128;                        // diagonals that go on in the next tile
    q += (u64)head * p.q_head_stride + (u64)(p.q_len - rows) * p.q_row_stride;
    k += (u64)(head / (p.n_heads / p.n_kv_heads)) * p.k_head_stride;
    column_score += (u64)head * kv_len;
    offset_score += (u64)head * kv_len;

    u32 qf[STEPS][4];
    load_rows<64, THREADS>(base, q, p.q_row_stride, rows, thread);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < STEPS; i++) ldmatrix(qf[i], base + chunk_offset(warp * 16 + (lane & 15), 2 * i + (lane >> 4)));
    __syncthreads();

    auto load = [&](int key, int slot) {
        if (key < to) load_rows<64, THREADS>(base + slot * TILE_BYTES, k + (u64)key * p.k_row_stride, p.k_row_stride, to - key, thread);
        cp_async_commit();
    };
    const u32 k_at = base + chunk_offset((lane >> 4) * 8 + (lane & 7), (lane >> 3) & 1);
    const int row = warp * 16 + (lane >> 2);            // and row + 8
    float top[2] = {FIRST_MAXIMUM, FIRST_MAXIMUM}, sum[2] = {0.f, 0.f}, inverse[2] = {0.f, 0.f};
    if (SCORES) {
        #pragma unroll
        for (int h = 0; h < 2; h++) { const float2 x = stats[head * 64 + row + 8 * h]; top[h] = x.x; inverse[h] = x.y; }
        if (thread < 64) carry[thread] = 0.f;
    } else {
        for (int i = from + thread; i < to; i += THREADS) offset_score[i] = 0.f;
    }
    load(from, 0);
    for (int key = from, slot = 0; key < to; key += 64, slot ^= 1) {
        cp_async_wait<0>();
        __syncthreads();
        load(key + 64, slot ^ 1);
        // scores
        float s[8][4];
        #pragma unroll
        for (int j = 0; j < 8; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.f;
        #pragma unroll
        for (int i = 0; i < STEPS; i++)
            #pragma unroll
            for (int j = 0; j < 8; j += 2) {
                u32 b[4];
                ldmatrix(b, at_step(k_at, i) + slot * TILE_BYTES + j * 8 * ROW_BYTES);
                mma(s[j], qf[i], b[0], b[1]);
                mma(s[j + 1], qf[i], b[2], b[3]);
            }
        #pragma unroll
        for (int h = 0; h < 2; h++) {
            // columns > past are masked: the future, and keys behind this split's last
            const int r = row + 8 * h, past = r < rows ? min(first_position + r, to - 1) - key : -1;
            #pragma unroll
            for (int j = 0; j < 8; j++)
                #pragma unroll
                for (int c = 0; c < 2; c++) {
                    float& x = s[j][2 * h + c];
                    x = 8 * j + 2 * (lane & 3) + c > past ? MASKED : x * scale;
                }
            if (!SCORES) {
                float m = top[h], l = 0.f;
                #pragma unroll
                for (int j = 0; j < 8; j++) m = fmaxf(m, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
                #pragma unroll
                for (int j = 0; j < 8; j++) l += exp2_fast(s[j][2 * h] - m) + exp2_fast(s[j][2 * h + 1] - m);
                sum[h] = fmaf(sum[h], exp2_fast(top[h] - m), l);             // the lanes of a row join at the end
                top[h] = m;
            } else {
                #pragma unroll
                for (int j = 0; j < 8; j++)
                    *(float2*)(tile + r * PITCH + 8 * j + 2 * (lane & 3)) =
                        make_float2(exp2_fast(s[j][2 * h] - top[h]) * inverse[h], exp2_fast(s[j][2 * h + 1] - top[h]) * inverse[h]);
            }
        }
        if (SCORES) {
            __syncthreads();
            // column sums
            float a = 0.f, b = 0.f;
            #pragma unroll 8
            for (int i = 0; i < 32; i += 2) {
                a += tile[(i + 32 * (thread >> 6)) * PITCH + (thread & 63)];
                b += tile[(i + 1 + 32 * (thread >> 6)) * PITCH + (thread & 63)];
            }
            halves[thread] = a + b;
            // Diagonal e holds the pairs with row - column = e - 63, offset = first_position - key + e - 63. In the next
            // tile the same offset is diagonal e + 64, so 0 .. 62 are carried and 63 .. 126 end here.
            a = b = 0.f;
            #pragma unroll 8
            for (int i = 0; i < 64; i += 2) {
                const int c = i + 63 - thread;
                if (c >= 0 && c < 64) a += tile[i * PITCH + c];
                if (c + 1 >= 0 && c + 1 < 64) b += tile[(i + 1) * PITCH + c + 1];
            }
            a += b;
            const bool begins = key == from, ends = key + 64 >= to;
            if (thread >= 64) a += carry[thread - 64];
            __syncthreads();
            if (thread < 63) carry[thread] = a;
            const int offset = first_position - key + thread - 63;
            if (thread < 127 && offset >= 0 && offset < kv_len) {
                // Where two splits meet an offset has two parts: two additions to zero give the same sum in either order.
                if ((begins && thread >= 64) || (ends && thread < 63)) atomicAdd(&offset_score[offset], a);
                else if (thread >= 63) offset_score[offset] = a;
            }
            if (thread < 64 && key + thread < to) column_score[key + thread] = halves[thread] + halves[thread + 64];
        }
    }
    if (!SCORES) {
        #pragma unroll
        for (int h = 0; h < 2; h++) {
            float m = top[h], l = sum[h];
            #pragma unroll
            for (int d = 1; d < 4; d *= 2) {
                const float other = __shfl_xor_sync(~0u, m, d), both = fmaxf(m, other), part = l * exp2_fast(m - both);
                l = part + __shfl_xor_sync(~0u, part, d);
                m = both;
            }
            if ((lane & 3) == 0) partial[((u64)head * gridDim.x + blockIdx.x) * 64 + row + 8 * h] = make_float2(m, l);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
last_query_stats(const ScoreLastQueriesParams p, u32 split_keys, const uint4* __restrict__ plan, const act* __restrict__ q, const act* __restrict__ k,
                 float2* __restrict__ partial, float* __restrict__ offset_score) {
    DYNAMIC_SMEM;
    if (plan[blockIdx.y].x == VERTICAL_SLASH) last_queries<false>(p, split_keys, smem, q, k, partial, nullptr, nullptr, offset_score);
}

extern "C" __global__ void __launch_bounds__(512)
last_query_merge(const uint4* __restrict__ plan, u32 splits, const float2* __restrict__ partial, float2* __restrict__ stats) {
    const u32 head = blockIdx.x, row = threadIdx.x / 8, lane = threadIdx.x % 8;
    if (plan[head].x != VERTICAL_SLASH) return;
    float m = FIRST_MAXIMUM, l = 0.f;
    for (u32 s = lane; s < splits; s += 8) {
        const float2 x = partial[((u64)head * splits + s) * 64 + row];
        const float both = fmaxf(m, x.x);
        l = l * exp2_fast(m - both) + x.y * exp2_fast(x.x - both);
        m = both;
    }
    #pragma unroll
    for (int d = 1; d < 8; d *= 2) {
        const float other = __shfl_xor_sync(~0u, m, d), both = fmaxf(m, other), part = l * exp2_fast(m - both);
        l = part + __shfl_xor_sync(~0u, part, d);
        m = both;
    }
    if (lane == 0) stats[head * 64 + row] = make_float2(m, l > 0.f ? 1.f / l : 0.f);
}

extern "C" __global__ void __launch_bounds__(THREADS)
last_query_scores(const ScoreLastQueriesParams p, u32 split_keys, const uint4* __restrict__ plan, const act* __restrict__ q, const act* __restrict__ k,
                  const float2* __restrict__ stats, float* __restrict__ column_score, float* __restrict__ offset_score) {
    DYNAMIC_SMEM;
    if (plan[blockIdx.y].x == VERTICAL_SLASH) last_queries<true>(p, split_keys, smem, q, k, nullptr, stats, column_score, offset_score);
}
