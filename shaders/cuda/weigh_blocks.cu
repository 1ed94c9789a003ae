// Adds the softmax weights of each row block's key blocks to its head's mass, by their size (shared/mass.cu), for block-sparse
// heads of the rule HEAD_MASS. One block a row block of the band: the softmax, a histogram of its own, then its bins into
// the head's.
struct WeighBlocksParams { u32 n_heads, row_blocks, key_blocks, band_start, band_len, q_start, q_len; float scale; };
#define BLOCK_SPARSE 3                                  // a HeadPlan kind
#define HEAD_MASS 1                                     // and a rule

extern "C" __global__ void __launch_bounds__(MASS_THREADS)
weigh_blocks(const WeighBlocksParams p, const uint4* __restrict__ plan, const float* __restrict__ scores, u32* __restrict__ mass) {
    __shared__ u32 local[BINS];
    const u32 head = blockIdx.y, row = p.band_start + blockIdx.x;
    if (plan[head].x != BLOCK_SPARSE || plan[head].w != HEAD_MASS) return;
    scores += ((u64)head * p.band_len + blockIdx.x) * p.key_blocks;
    const u32 seen = min(p.key_blocks, (p.q_start + min(64 * (row + 1), p.q_len) - 1) / 64 + 1);
    for (u32 i = threadIdx.x; i < BINS; i += MASS_THREADS) local[i] = 0;

    // softmax
    float mine = -3e38f;
    for (u32 c = threadIdx.x; c < seen; c += MASS_THREADS) mine = fmaxf(mine, scores[c]);
    const float largest = block_max(mine);
    mine = 0.f;
    for (u32 c = threadIdx.x; c < seen; c += MASS_THREADS) mine += expf((scores[c] - largest) * p.scale);
    const float inverse = 1.f / block_sum(mine);

    // mass by size
    for (u32 c = threadIdx.x; c < seen; c += MASS_THREADS) {
        const float weight = expf((scores[c] - largest) * p.scale) * inverse;
        atomicAdd(&local[bin_of(weight)], whole(weight, ONE / (float)p.row_blocks));
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < BINS; i += MASS_THREADS)
        if (local[i]) atomicAdd(&mass[(u64)head * BINS + i], local[i]);
}
