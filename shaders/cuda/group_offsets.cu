// Offset scores gathered by 64, in place: half the sum of 64 neighbours goes to the first and to the last of them, the others
// become 0. Rows of mass 0 are left alone. A warp a group of 64, eight a block.
struct GroupOffsetsParams { u32 rows, len; };

extern "C" __global__ void __launch_bounds__(256)
group_offsets(const GroupOffsetsParams p, const uint4* __restrict__ budget, float* __restrict__ scores) {
    const u32 row = blockIdx.y, first = 64 * (blockIdx.x * 8 + threadIdx.x / 32), lane = threadIdx.x % 32;
    if (first >= p.len || !(__uint_as_float(budget[row].x) > 0.f)) return;
    const u32 size = min(64u, p.len - first);
    scores += (u64)row * p.len + first;
    float sum = (lane < size ? scores[lane] : 0.f) + (lane + 32 < size ? scores[lane + 32] : 0.f);
    #pragma unroll
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    for (u32 i = lane; i < size; i += 32)
        scores[i] = (i == 0 ? 0.5f * sum : 0.f) + (i == size - 1 ? 0.5f * sum : 0.f);
}
