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
struct SelectTopKParams { u32 rows, len, capacity, forced; };
#define PART 8192
#define THREADS 256

// Larger is better, as unsigned numbers; NaN is 0.
__device__ __forceinline__ u32 sort_key(const float* __restrict__ scores, u32 i, u32 forced) {
    if (i < forced) return ~0u;
    const u32 x = __float_as_uint(scores[i] + 0.f);     // -0 equals 0
    if ((x & 0x7fffffff) > 0x7f800000) return 0;
    return x & 0x80000000 ? ~x : x | 0x80000000;
}
__device__ __forceinline__ int shift_of(int round) { return round == 0 ? 21 : round == 1 ? 10 : 0; }
__device__ __forceinline__ u32 digit(u32 key, int round) { return (key >> shift_of(round)) & (round == 2 ? 1023 : 2047); }

// Inclusive sum over the block of 256; `total` in every thread.
__device__ __forceinline__ u32 block_scan(u32 x, u32& total) {
    __shared__ u32 part[THREADS / 32];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    #pragma unroll
    for (int d = 1; d < 32; d *= 2) { const u32 y = __shfl_up_sync(~0u, x, d); if (lane >= d) x += y; }
    __syncthreads();
    if (lane == 31) part[warp] = x;
    __syncthreads();
    u32 before = 0;
    total = 0;
    #pragma unroll
    for (u32 w = 0; w < THREADS / 32; w++) { before += w < warp ? part[w] : 0; total += part[w]; }
    return x + before;
}

struct Threshold { u32 prefix, left; };                 // the digits found, and how many to take among those that share them

// After `rounds` histograms: finds in each, from the top, the bin where the count is reached.
__device__ Threshold threshold(const u32* __restrict__ bins, u32 count, int rounds) {
    __shared__ u32 found[2];
    Threshold t = {0, count};
    for (int round = 0; round < rounds; round++) {
        u32 mine[8], sum = 0, total;                    // bins 2047 - 8 thread, and seven below
        #pragma unroll
        for (int i = 0; i < 8; i++) { mine[i] = bins[round * 2048 + 2047 - 8 * threadIdx.x - i]; sum += mine[i]; }
        const u32 upto = block_scan(sum, total);
        u32 before = upto - sum;
        if (before < t.left && t.left <= upto) {        // exactly one thread
            #pragma unroll
            for (int i = 0; i < 8; i++) {
                if (before < t.left && t.left <= before + mine[i]) {
                    found[0] = 2047 - 8 * threadIdx.x - i;
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
    return t;
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
        if (round == 0 || key >> (shift_of(round) + (round == 2 ? 10 : 11)) == t.prefix) atomicAdd(&local[digit(key, round)], 1u);
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
    block_scan(mine, total);
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
        block_scan(a, above);
        block_scan(e, equal);
    }
    const u32 from = blockIdx.x * PART, to = min(from + PART, p.len);
    for (u32 base = from; base < to; base += THREADS) {
        const u32 i = base + threadIdx.x, key = i < to ? sort_key(scores + (u64)row * p.len, i, p.forced) : 0;
        const u32 mine = i >= to ? 0 : key > t.prefix ? 0x10000u : key == t.prefix;
        const u32 before = block_scan(mine, total) - mine;
        const u32 a = above + (before >> 16), e = equal + (before & 0xffff);
        if (mine && (key > t.prefix || e < t.left)) indices[a + min(e, t.left)] = i;
        above += total >> 16;
        equal += total & 0xffff;
    }
    if (blockIdx.x == gridDim.x - 1)
        for (u32 i = count + threadIdx.x; i < p.capacity; i += THREADS) indices[i] = NONE;
}
