// Sums of weights by their size (backend/cpu/mass.rs): 64 bins to a factor of two, down to 2^-32, in whole numbers, so that
// the order of addition does not matter. Blocks of MASS_THREADS threads.
#define MASS_THREADS 256
#define BINS 2048
#define ONE 1073741824.f                                // what a weight of 1 counts

__device__ __forceinline__ u32 bin_of(float weight) {
    return (u32)min(max(8128 - (int)(__float_as_uint(weight) >> 17), 0), BINS - 1);
}
__device__ __forceinline__ u32 whole(float weight, float one) { return (u32)(weight * one + 0.5f); }

// Inclusive sum over the block; `total` in every thread.
__device__ __forceinline__ u32 mass_scan(u32 x, u32& total) {
    __shared__ u32 part[MASS_THREADS / 32];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    #pragma unroll
    for (int d = 1; d < 32; d *= 2) { const u32 y = __shfl_up_sync(~0u, x, d); if (lane >= d) x += y; }
    __syncthreads();
    if (lane == 31) part[warp] = x;
    __syncthreads();
    u32 before = 0;
    total = 0;
    #pragma unroll
    for (u32 w = 0; w < MASS_THREADS / 32; w++) { before += w < warp ? part[w] : 0; total += part[w]; }
    return x + before;
}

// How many bins, from the largest weights on, hold `part` of the sum of `credit` and all bins, `credit` counted first.
__device__ __forceinline__ u32 bins_taken(const u32* __restrict__ mass, float part, u32 credit) {
    __shared__ u32 taken;
    u32 mine[BINS / MASS_THREADS], sum = 0, total;
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < BINS / MASS_THREADS; i++) { mine[i] = mass[threadIdx.x * (BINS / MASS_THREADS) + i]; sum += mine[i]; }
    const u32 upto = mass_scan(sum, total), wanted = (u32)((float)(total + credit) * part), need = wanted - min(wanted, credit);
    if (threadIdx.x == 0) taken = need ? BINS : 0;
    __syncthreads();
    u32 before = upto - sum;
    if (before < need && need <= upto)                  // one thread at most
        #pragma unroll
        for (int i = 0; i < BINS / MASS_THREADS; i++) {
            if (before < need && need <= before + mine[i]) taken = threadIdx.x * (BINS / MASS_THREADS) + i + 1;
            before += mine[i];
        }
    __syncthreads();
    return taken;
}

// The largest of, and the sum over, the values of all threads.
__device__ __forceinline__ float block_max(float x) {
    __shared__ float part[MASS_THREADS / 32];
    #pragma unroll
    for (int d = 16; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
    __syncthreads();
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    #pragma unroll
    for (int w = 0; w < MASS_THREADS / 32; w++) x = fmaxf(x, part[w]);
    return x;
}
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float part[MASS_THREADS / 32];
    #pragma unroll
    for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
    __syncthreads();
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.f;
    #pragma unroll
    for (int w = 0; w < MASS_THREADS / 32; w++) sum += part[w];
    return sum;
}
