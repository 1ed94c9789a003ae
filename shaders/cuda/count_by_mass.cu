// counts[r] = the fewest scores of row r, the first `forced` and then the largest, whose sum reaches the budget's part of the
// row's sum, within the budget's least and most. Scores of one bin (shared/mass.cu) are taken together. Rows of mass 0 are left
// alone.
// Rows are long and few (two lists a head, up to 1M scores), so a row is split over blocks of PART scores:
//
//   mass_histogram   grid (parts, rows): bins[row, BINS + 1] of the part's mass by size; the last one is that of the forced
//   mass_count       grid (parts, rows): each reads the bins to take off the histogram, and adds what lies in them
//   mass_finish      grid (rows): least, most and length
struct CountByMassParams { u32 rows, len, forced; float unit; };
#define PART 8192

extern "C" __global__ void __launch_bounds__(MASS_THREADS)
mass_histogram(const CountByMassParams p, const uint4* __restrict__ budget, const float* __restrict__ scores, u32* __restrict__ bins) {
    __shared__ u32 local[BINS];
    const u32 row = blockIdx.y;
    if (!(__uint_as_float(budget[row].x) > 0.f)) return;
    for (u32 i = threadIdx.x; i < BINS; i += MASS_THREADS) local[i] = 0;
    __syncthreads();
    const u32 from = blockIdx.x * PART, to = min(from + PART, p.len);
    u32 forced = 0, total;
    for (u32 i = from + threadIdx.x; i < to; i += MASS_THREADS) {
        const float weight = scores[(u64)row * p.len + i] * p.unit;
        if (i < p.forced) forced += whole(weight, ONE);
        else atomicAdd(&local[bin_of(weight)], whole(weight, ONE));
    }
    mass_scan(forced, total);
    bins += (u64)row * (BINS + 2);
    for (u32 i = threadIdx.x; i < BINS; i += MASS_THREADS)
        if (local[i]) atomicAdd(&bins[i], local[i]);
    if (threadIdx.x == 0 && total) atomicAdd(&bins[BINS], total);
}

extern "C" __global__ void __launch_bounds__(MASS_THREADS)
mass_count(const CountByMassParams p, const uint4* __restrict__ budget, const float* __restrict__ scores, u32* __restrict__ bins) {
    const u32 row = blockIdx.y;
    const float mass = __uint_as_float(budget[row].x);
    if (!(mass > 0.f)) return;
    bins += (u64)row * (BINS + 2);
    const u32 taken = bins_taken(bins, mass, bins[BINS]);
    const u32 from = blockIdx.x * PART, to = min(from + PART, p.len);
    u32 mine = 0, total;
    for (u32 i = from + threadIdx.x; i < to; i += MASS_THREADS)
        mine += i >= p.forced && bin_of(scores[(u64)row * p.len + i] * p.unit) < taken;
    mass_scan(mine, total);
    if (threadIdx.x == 0 && total) atomicAdd(&bins[BINS + 1], total);
}

extern "C" __global__ void __launch_bounds__(32)
mass_finish(const CountByMassParams p, const uint4* __restrict__ budget, const u32* __restrict__ bins, u32* __restrict__ counts) {
    const u32 row = blockIdx.x;
    if (threadIdx.x == 0 && __uint_as_float(budget[row].x) > 0.f)
        counts[row] = min(min(max(p.forced + bins[(u64)row * (BINS + 2) + BINS + 1], budget[row].z), budget[row].w ? budget[row].w : p.len), p.len);
}
