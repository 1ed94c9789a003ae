// Each of `share` neighbouring rows of scores becomes their mean, without those whose plan is dense, which stay as they are.
// One thread a column of the rows that share.
struct ShareScoresParams { u32 rows, share, len; };
#define DENSE 0                                         // a HeadPlan kind

extern "C" __global__ void __launch_bounds__(256)
share_scores(const ShareScoresParams p, const uint4* __restrict__ plan, float* __restrict__ scores) {
    const u32 column = blockIdx.x * 256 + threadIdx.x, first = blockIdx.y * p.share;
    if (column >= p.len) return;
    float sum = 0.f;
    u32 members = 0;
    for (u32 row = first; row < first + p.share; row++)
        if (plan[row].x != DENSE) { sum += scores[(u64)row * p.len + column]; members++; }
    const float mean = sum / (float)max(members, 1u);
    for (u32 row = first; row < first + p.share; row++)
        if (plan[row].x != DENSE) scores[(u64)row * p.len + column] = mean;
}
