// Bits of the key blocks that a block-sparse head's rule keeps in each row block of a band, by softmax weight: HEAD_MASS, the
// heaviest of all row blocks together that hold a part of the head's mass; ROW_MASS, those of this row block (its scores
// are logarithms of weights); OF_MAX, those not much lighter than the heaviest. The first block, those with the row block's
// queries and the nearest (low half of plan.b) are always in, and all of row blocks with one of the last queries (high half).
// One block a row block.
struct WeighBlocksParams { u32 n_heads, row_blocks, key_blocks, band_start, band_len, q_start, q_len; float scale; };
#define BLOCK_SPARSE 3                                  // a HeadPlan kind
#define TOP_K 0                                         // and the rules
#define HEAD_MASS 1
#define ROW_MASS 2
#define OF_MAX 3

extern "C" __global__ void __launch_bounds__(MASS_THREADS)
select_weighed_blocks(const WeighBlocksParams p, const uint4* __restrict__ plan, const float* __restrict__ scores, const u32* __restrict__ mass, u32* __restrict__ block_mask) {
    __shared__ u32 local[BINS];
    const u32 head = blockIdx.y, row = p.band_start + blockIdx.x, lane = threadIdx.x % 32;
    const uint4 own = plan[head];                       // kind, the rule's number, nearest blocks and last queries, rule
    if (own.x != BLOCK_SPARSE || own.w == TOP_K) return;
    scores += ((u64)head * p.band_len + blockIdx.x) * p.key_blocks;
    const u32 words = (p.key_blocks + 31) / 32;
    block_mask += ((u64)head * p.row_blocks + row) * words;
    const u32 seen = min(p.key_blocks, (p.q_start + min(64 * (row + 1), p.q_len) - 1) / 64 + 1), first = (p.q_start + 64 * row) / 64;
    const u32 nearest = own.z & 0xffff, n_last = own.z >> 16;
    const bool whole_row = n_last > 0 && 64 * (row + 1) + n_last > p.q_len;
    const float number = __uint_as_float(own.y), scale = own.w == ROW_MASS ? 1.f : p.scale;
    for (u32 i = threadIdx.x; i < BINS; i += MASS_THREADS) local[i] = own.w == HEAD_MASS ? mass[(u64)head * BINS + i] : 0;

    // softmax
    float mine = -3e38f;
    for (u32 c = threadIdx.x; c < seen; c += MASS_THREADS) mine = fmaxf(mine, scores[c]);
    const float largest = block_max(mine);
    mine = 0.f;
    for (u32 c = threadIdx.x; c < seen; c += MASS_THREADS) mine += expf((scores[c] - largest) * scale);
    const float inverse = 1.f / block_sum(mine);

    // the bins to take
    u32 taken = 0;
    if (own.w == ROW_MASS)
        for (u32 c = threadIdx.x; c < seen; c += MASS_THREADS) {
            const float weight = expf((scores[c] - largest) * scale) * inverse;
            atomicAdd(&local[bin_of(weight)], whole(weight, ONE));
        }
    if (own.w != OF_MAX) taken = bins_taken(local, number, 0);

    // bits
    for (u32 base = 0; base < 32 * words; base += MASS_THREADS) {
        const u32 c = base + threadIdx.x;
        bool in = false;
        if (c < seen) {
            const float weight = expf((scores[c] - largest) * scale);
            in = own.w == OF_MAX ? weight >= number : bin_of(weight * inverse) < taken;
            in = in || whole_row || c == 0 || c + nearest > first || c >= first;
        }
        const u32 bits = __ballot_sync(~0u, in);
        if (lane == 0 && c / 32 < words) block_mask[c / 32] = bits;
    }
}
