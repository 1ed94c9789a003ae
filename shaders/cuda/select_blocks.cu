// The best plan.a key blocks of each row block of a band, as bits: block_mask[h, row_blocks, ceil(key_blocks / 32)]. Only
// blocks that begin at or before the row block's last query compete. Where q_start is no multiple of 64, the block that
// holds the row block's first query is always one of them. Ties: the lower index; NaN after every number.
// One block of 256 threads a row: radix select, eight bits a round, over scores that it reads again from L1 and L2.
struct ScoreBlocksParams { u32 n_heads, n_kv_heads, head_dim, row_blocks, key_blocks, band_start, band_len, q_start, q_len; };
#define BLOCK_SPARSE 3
#define THREADS 256

extern "C" __global__ void __launch_bounds__(THREADS)
select_blocks(const ScoreBlocksParams p, const uint4* __restrict__ plan, const float* __restrict__ scores, u32* __restrict__ block_mask) {
    __shared__ u32 bins[256], found[2], equal_in[THREADS / 32];
    const u32 head = blockIdx.y, row = p.band_start + blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (plan[head].x != BLOCK_SPARSE) return;
    scores += ((u64)head * p.band_len + blockIdx.x) * p.key_blocks;
    const u32 words = (p.key_blocks + 31) / 32;
    block_mask += ((u64)head * p.row_blocks + row) * words;
    const u32 candidates = min(p.key_blocks, (p.q_start + min(64 * (row + 1), p.q_len) - 1) / 64 + 1);
    const u32 always = p.q_start % 64 ? (p.q_start + 64 * row) / 64 : NONE;
    const u32 count = min(plan[head].y, candidates);
    auto sort_key = [&](u32 i) -> u32 {
        if (i == always) return ~0u;
        const u32 x = __float_as_uint(scores[i] + 0.f);     // -0 equals 0
        if ((x & 0x7fffffff) > 0x7f800000) return 0;
        return x & 0x80000000 ? ~x : x | 0x80000000;
    };

    // the count-th largest key: `prefix`, of which `left` are to be taken
    u32 prefix = count ? 0 : ~0u, left = count;
    for (int shift = 24; shift >= 0 && 0 < count && count < candidates; shift -= 8) {
        bins[threadIdx.x] = 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i < candidates; i += THREADS) {
            const u32 key = sort_key(i);
            if (shift == 24 || key >> (shift + 8) == prefix) atomicAdd(&bins[key >> shift & 255], 1u);
        }
        __syncthreads();
        if (warp == 0) {                                // from the top: lane l holds bins 255 - 8 l, and seven below
            u32 mine[8], sum = 0;
            #pragma unroll
            for (int i = 0; i < 8; i++) { mine[i] = bins[255 - 8 * lane - i]; sum += mine[i]; }
            u32 upto = sum;
            #pragma unroll
            for (int d = 1; d < 32; d *= 2) { const u32 y = __shfl_up_sync(~0u, upto, d); if (lane >= d) upto += y; }
            u32 before = upto - sum;
            if (before < left && left <= upto)          // exactly one lane
                #pragma unroll
                for (int i = 0; i < 8; i++) {
                    if (before < left && left <= before + mine[i]) { found[0] = 255 - 8 * lane - i; found[1] = left - before; }
                    before += mine[i];
                }
        }
        __syncthreads();
        prefix = prefix << 8 | found[0];
        left = found[1];
        __syncthreads();
    }

    // bits: all above the threshold, and the first `left` that equal it
    u32 equal = 0;
    for (u32 base = 0; base < 32 * words; base += THREADS) {
        const u32 i = base + threadIdx.x;
        const u32 key = i < candidates && count < candidates ? sort_key(i) : 0;
        const bool all = i < candidates && count == candidates, same = i < candidates && !all && key == prefix;
        const u32 equals = __ballot_sync(~0u, same);
        if (lane == 0) equal_in[warp] = __popc(equals);
        __syncthreads();
        u32 before = equal + __popc(equals & ((1u << lane) - 1));
        for (u32 w = 0; w < THREADS / 32; w++) { if (w < warp) before += equal_in[w]; equal += equal_in[w]; }
        __syncthreads();
        const u32 taken = __ballot_sync(~0u, all || (i < candidates && key > prefix && count < candidates) || (same && before < left));
        if (lane == 0 && i / 32 < words) block_mask[i / 32] = taken;
    }
}
