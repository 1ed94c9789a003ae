// The indices of the counts[r] largest scores of each row, ascending, padded with NONE to the capacity. Ties: the lower
// index; NaN after every number; the first `forced` indices before all others. A row of count 0 is left alone.
//
// Radix select on the bits of the scores (11 + 11 + 10), then an ordered compaction: no sort. Rows are long and few (two
// lists a head, up to 1M scores), so every step splits a row over blocks of PART scores:
//
//   top_k_histogram<round>   grid (parts, rows): bins[row, round, 2048] of the scores that share the digits found so far
//   top_k_count              grid (parts, rows): how many of the part are above the threshold, and equal to it
//   top_k_write              grid (parts, rows): places them
// The threshold's digits are read off the bins by every block that needs them (2048 numbers): no launch in between.
//
//   top_k_row                grid (rows), 1024 threads: all of it at once, for rows of at most SHORT scores
struct SelectTopKParams { u32 rows, len, capacity, forced; };
#define PART 8192
#define THREADS 256
#define EACH 32                                         // scores that a thread of top_k_row holds
#define SHORT (1024 * EACH)

// Larger is better, as unsigned numbers; NaN is 0.
__device__ __forceinline__ u32 sort_key(const float* __restrict__ scores, u32 i, u32 forced) {
    if (i < forced) return ~0u;
    const u32 x = __float_as_uint(scores[i] + 0.f);     // -0 equals 0
    if ((x & 0x7fffffff) > 0x7f800000) return 0;
    return x & 0x80000000 ? ~x : x | 0x80000000;
}
__device__ __forceinline__ int shift_of(int round) { return round == 0 ? 21 : round == 1 ? 10 : 0; }
__device__ __forceinline__ u32 digit(u32 key, int round) { return (key >> shift_of(round)) & (round == 2 ? 1023 : 2047); }

// Inclusive sum over the block of N threads; `total` in every thread.
template <u32 N> __device__ __forceinline__ u32 block_scan(u32 x, u32& total) {
    __shared__ u32 part[N / 32];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    #pragma unroll
    for (int d = 1; d < 32; d *= 2) { const u32 y = __shfl_up_sync(~0u, x, d); if (lane >= d) x += y; }
    __syncthreads();
    if (lane == 31) part[warp] = x;
    __syncthreads();
    u32 before = 0;
    total = 0;
    #pragma unroll 4
    for (u32 w = 0; w < N / 32; w++) { before += w < warp ? part[w] : 0; total += part[w]; }
    return x + before;
}

struct Threshold { u32 prefix, left; };                 // the digits found, and how many to take among those that share them

// Adds a digit: finds in a round's 2048 bins, from the top, the one where the count is reached.
template <u32 N> __device__ __forceinline__ void narrow(Threshold& t, const u32* bins, int round) {
    __shared__ u32 found[2];
    constexpr u32 MINE = 2048 / N;
    u32 mine[MINE], sum = 0, total;                     // bins 2047 - MINE thread, and those below
    #pragma unroll
    for (u32 i = 0; i < MINE; i++) { mine[i] = bins[2047 - MINE * threadIdx.x - i]; sum += mine[i]; }
    const u32 upto = block_scan<N>(sum, total);
    u32 before = upto - sum;
    if (before < t.left && t.left <= upto) {            // exactly one thread
        #pragma unroll
        for (u32 i = 0; i < MINE; i++) {
            if (before < t.left && t.left <= before + mine[i]) {
                found[0] = 2047 - MINE * threadIdx.x - i;
                found[1] = t.left - before;
            }
            before += mine[i];
        }
    }
    __syncthreads();
    t.prefix = round == 2 ? t.prefix << 10 | found[0] : t.prefix << 11 | found[0];
    t.left = found[1];
    __syncthreads();
}
__device__ Threshold threshold(const u32* __restrict__ bins, u32 count, int rounds) {
    Threshold t = {0, count};
    for (int round = 0; round < rounds; round++) narrow<THREADS>(t, bins + round * 2048, round);
    return t;
}
// Whether a score shares the digits found so far.
__device__ __forceinline__ bool follows(u32 key, int round, u32 prefix) {
    return round == 0 || key >> (shift_of(round) + (round == 2 ? 10 : 11)) == prefix;
}

extern "C" __global__ void __launch_bounds__(THREADS)
top_k_histogram(const SelectTopKParams p, u32 round, const float* __restrict__ scores, const u32* __restrict__ counts, u32* __restrict__ bins) {
    __shared__ u32 local[2048];
    const u32 row = blockIdx.y, count = min(counts[row], min(p.len, p.capacity));
    if (count == 0) return;
    scores += (u64)row * p.len;
    bins += (u64)row * 3 * 2048;
    for (u32 i = threadIdx.x; i < 2048; i += THREADS) local[i] = 0;
    const Threshold t = threshold(bins, count, round);
    __syncthreads();
    const u32 from = blockIdx.x * PART, to = min(from + PART, p.len);
    for (u32 i = from + threadIdx.x; i < to; i += THREADS) {
        const u32 key = sort_key(scores, i, p.forced);
        if (follows(key, round, t.prefix)) atomicAdd(&local[digit(key, round)], 1u);
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < 2048; i += THREADS)
        if (local[i]) atomicAdd(&bins[round * 2048 + i], local[i]);
}

extern "C" __global__ void __launch_bounds__(THREADS)
top_k_count(const SelectTopKParams p, const float* __restrict__ scores, const u32* __restrict__ counts, const u32* __restrict__ bins, uint2* __restrict__ parts) {
    const u32 row = blockIdx.y, count = min(counts[row], min(p.len, p.capacity));
    if (count == 0) return;
    const Threshold t = threshold(bins + (u64)row * 3 * 2048, count, 3);
    const u32 from = blockIdx.x * PART, to = min(from + PART, p.len);
    u32 mine = 0;                                       // equal in the lower half, above in the upper (PART < 65536)
    for (u32 i = from + threadIdx.x; i < to; i += THREADS) {
        const u32 key = sort_key(scores + (u64)row * p.len, i, p.forced);
        mine += key > t.prefix ? 0x10000u : key == t.prefix;
    }
    u32 total;
    block_scan<THREADS>(mine, total);
    if (threadIdx.x == 0) parts[(u64)row * gridDim.x + blockIdx.x] = make_uint2(total >> 16, total & 0xffff);
}

extern "C" __global__ void __launch_bounds__(THREADS)
top_k_write(const SelectTopKParams p, const float* __restrict__ scores, const u32* __restrict__ counts, const u32* __restrict__ bins,
            const uint2* __restrict__ parts, u32* __restrict__ indices) {
    const u32 row = blockIdx.y, count = min(counts[row], min(p.len, p.capacity));
    if (count == 0) return;
    indices += (u64)row * p.capacity;
    const Threshold t = threshold(bins + (u64)row * 3 * 2048, count, 3);
    // what the parts before this one take
    u32 above = 0, equal = 0, total;
    {
        u32 a = 0, e = 0;
        for (u32 i = threadIdx.x; i < blockIdx.x; i += THREADS) { const uint2 x = parts[(u64)row * gridDim.x + i]; a += x.x; e += x.y; }
        block_scan<THREADS>(a, above);
        block_scan<THREADS>(e, equal);
    }
    const u32 from = blockIdx.x * PART, to = min(from + PART, p.len);
    for (u32 base = from; base < to; base += THREADS) {
        const u32 i = base + threadIdx.x, key = i < to ? sort_key(scores + (u64)row * p.len, i, p.forced) : 0;
        const u32 mine = i >= to ? 0 : key > t.prefix ? 0x10000u : key == t.prefix;
        const u32 before = block_scan<THREADS>(mine, total) - mine;
        const u32 a = above + (before >> 16), e = equal + (before & 0xffff);
        if (mine && (key > t.prefix || e < t.left)) indices[a + min(e, t.left)] = i;
        above += total >> 16;
        equal += total & 0xffff;
    }
    if (blockIdx.x == gridDim.x - 1)
        for (u32 i = count + threadIdx.x; i < p.capacity; i += THREADS) indices[i] = NONE;
}

extern "C" __global__ void __launch_bounds__(1024)
top_k_row(const SelectTopKParams p, const float* __restrict__ scores, const u32* __restrict__ counts, u32* __restrict__ indices) {
    __shared__ u32 bins[2048];
    const u32 row = blockIdx.x, count = min(counts[row], min(p.len, p.capacity)), lane = threadIdx.x % 32;
    if (count == 0) return;
    scores += (u64)row * p.len;
    indices += (u64)row * p.capacity;
    // Each warp holds neighbours, 32 in a step: the order of the indices.
    const u32 steps = (p.len + 1023) / 1024, first = threadIdx.x / 32 * 32 * steps + lane;
    u32 key[EACH];
    #pragma unroll
    for (u32 j = 0; j < EACH; j++) key[j] = j < steps && first + 32 * j < p.len ? sort_key(scores, first + 32 * j, p.forced) : 0;
    Threshold t = {0, count};
    for (int round = 0; round < 3; round++) {
        for (u32 i = threadIdx.x; i < 2048; i += 1024) bins[i] = 0;
        __syncthreads();
        #pragma unroll
        for (u32 j = 0; j < EACH; j++)
            if (j < steps && first + 32 * j < p.len && follows(key[j], round, t.prefix)) atomicAdd(&bins[digit(key[j], round)], 1u);
        __syncthreads();
        narrow<1024>(t, bins, round);
    }
    // equal in the lower half, above in the upper: SHORT < 65536
    u32 mine = 0, total;
    #pragma unroll
    for (u32 j = 0; j < EACH; j++)
        if (j < steps && first + 32 * j < p.len) mine += key[j] > t.prefix ? 0x10000u : key[j] == t.prefix;
    #pragma unroll
    for (int d = 16; d > 0; d /= 2) mine += __shfl_xor_sync(~0u, mine, d);
    u32 before = block_scan<1024>(lane == 31 ? mine : 0, total) - (lane == 31 ? mine : 0);
    before = __shfl_sync(~0u, before, 0);               // what the warps before this one take
    const u32 below = (1u << lane) - 1;
    #pragma unroll
    for (u32 j = 0; j < EACH; j++)
        if (j < steps) {                                // the same in the whole block
            const bool here = first + 32 * j < p.len, above = here && key[j] > t.prefix, equal = here && key[j] == t.prefix;
            const u32 aboves = __ballot_sync(~0u, above), equals = __ballot_sync(~0u, equal);
            const u32 a = (before >> 16) + __popc(aboves & below), e = (before & 0xffff) + __popc(equals & below);
            if (above || (equal && e < t.left)) indices[a + min(e, t.left)] = first + 32 * j;
            before += __popc(aboves) << 16 | __popc(equals);
        }
    for (u32 i = count + threadIdx.x; i < p.capacity; i += 1024) indices[i] = NONE;
}
