// Makes every flex head vertical-slash, block-sparse or dense, and every recall head block-sparse or dense. Flex
// (FlexPrefill, algorithm 2): block-sparse where the softmax of
// the block scores comes closer than tau to the real attention of the last queries, by the square root of the
// Jensen-Shannon divergence.
//
//   block_mass     grid (key blocks / 8, heads): real[h, c] = attention that the last queries pay to key block c, a warp each
//   settle_heads   grid (heads): the estimated softmax, the divergence, the plan
struct SettleHeadsParams { u32 n_heads, kv_len, key_blocks; float scale, unit; };
#define DENSE 0                                         // HeadPlan kinds; a plan is (kind, a, b, c)
#define VERTICAL_SLASH 2
#define BLOCK_SPARSE 3
#define FLEX 5
#define FIT 6
#define MOST_BINS 640                                   // beyond, a recall head is dense: blocks of 2^-10 of the heaviest
#define HEAD_MASS 1                                     // and a rule of block-sparse heads

extern "C" __global__ void __launch_bounds__(MASS_THREADS)
block_mass(const SettleHeadsParams p, const uint4* __restrict__ plan, const float* __restrict__ column_score, float* __restrict__ real) {
    const u32 head = blockIdx.y, block = blockIdx.x * (MASS_THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if ((plan[head].x != FLEX && plan[head].x != FIT) || block >= p.key_blocks) return;
    float sum = 0.f;
    for (u32 i = lane; i < 64; i += 32)
        if (64 * block + i < p.kv_len) sum += column_score[(u64)head * p.kv_len + 64 * block + i];
    #pragma unroll
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    if (lane == 0) real[(u64)head * p.key_blocks + block] = sum * p.unit;
}

__device__ __forceinline__ float half_term(float x, float middle) { return x > 0.f ? 0.5f * x * logf(x / middle) : 0.f; }

extern "C" __global__ void __launch_bounds__(MASS_THREADS)
settle_heads(const SettleHeadsParams p, const uint4* __restrict__ budget, const float* __restrict__ real, const float* __restrict__ block_score,
             uint4* __restrict__ plan, u32* __restrict__ column_count, u32* __restrict__ offset_count) {
    const u32 head = blockIdx.x;
    const uint4 own = plan[head];
    if (own.x != FLEX && own.x != FIT) return;
    real += (u64)head * p.key_blocks;
    block_score += (u64)head * p.key_blocks;

    // estimated
    float mine = -3e38f;
    for (u32 c = threadIdx.x; c < p.key_blocks; c += MASS_THREADS) mine = fmaxf(mine, block_score[c]);
    const float largest = block_max(mine);
    if (own.x == FIT) {
        // a threshold head whose blocks hold the budget's part of the last queries' attention, or dense
        __shared__ u32 local[BINS];
        for (u32 i = threadIdx.x; i < BINS; i += MASS_THREADS) local[i] = 0;
        __syncthreads();
        mine = 0.f;
        for (u32 c = threadIdx.x; c < p.key_blocks; c += MASS_THREADS) {
            if (c == 0 || c + (own.z & 0xffff) >= p.key_blocks) mine += real[c];
            else atomicAdd(&local[bin_of(expf((block_score[c] - largest) * p.scale))], whole(real[c], ONE));
        }
        const u32 credit = whole(block_sum(mine), ONE), taken = bins_taken(local, __uint_as_float(budget[head].x), credit);
        if (threadIdx.x != 0) return;
        const float alpha = __uint_as_float((8128 - (max(taken, 1u) - 1)) << 17);     // the least weight of the bins taken
        plan[head] = taken >= MOST_BINS ? make_uint4(DENSE, 0, 0, 0) : make_uint4(BLOCK_SPARSE, __float_as_uint(fminf(alpha, __uint_as_float(own.y))), own.z, own.w);
        column_count[head] = offset_count[head] = 0;
        return;
    }
    mine = 0.f;
    for (u32 c = threadIdx.x; c < p.key_blocks; c += MASS_THREADS) mine += expf((block_score[c] - largest) * p.scale);
    const float total = block_sum(mine);

    // divergence
    mine = 0.f;
    for (u32 c = threadIdx.x; c < p.key_blocks; c += MASS_THREADS) {
        const float estimated = expf((block_score[c] - largest) * p.scale) / total, middle = 0.5f * (estimated + real[c]);
        mine += half_term(estimated, middle) + half_term(real[c], middle);
    }
    const float distance = sqrtf(fmaxf(block_sum(mine), 0.f));
    if (threadIdx.x != 0) return;

    const uint4 bounds = budget[head];                  // mass, tau, least, most
    const u32 vertical = column_count[head], slash = offset_count[head];
    uint4 row = make_uint4(VERTICAL_SLASH, vertical, slash, 0);
    if (distance < __uint_as_float(bounds.y)) row = make_uint4(BLOCK_SPARSE, bounds.x, min((bounds.z + 63) / 64, 0xffffu), HEAD_MASS);
    else if (vertical > own.y || slash > own.z || slash >= p.kv_len) row = make_uint4(DENSE, 0, 0, 0);
    plan[head] = row;
    column_count[head] = row.x == VERTICAL_SLASH ? vertical : 0;
    offset_count[head] = row.x == VERTICAL_SLASH ? slash : 0;
}
