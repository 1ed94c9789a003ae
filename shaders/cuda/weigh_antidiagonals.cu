// Logarithms of the attention that a row block gives each key block, by groups of `fold` queries and keys: the softmax of each of
// its groups over the groups of keys that begin at or before its last query, summed (XAttention). -inf behind the row
// block. Heads under ROW_MASS only; one block a row block, a thread owns whole key blocks.
struct WeighAntidiagonalsParams { u32 n_heads, key_blocks, band_start, band_len, q_start, q_len, fold, groups; float scale; };
#define BLOCK_SPARSE 3                                  // a HeadPlan kind
#define ROW_MASS 2                                      // and a rule

extern "C" __global__ void __launch_bounds__(MASS_THREADS)
weigh_antidiagonals(const WeighAntidiagonalsParams p, const uint4* __restrict__ plan, const float* __restrict__ products, float* __restrict__ scores) {
    const u32 head = blockIdx.y, first = 64 * (p.band_start + blockIdx.x), of_block = 64 / p.fold;
    if (plan[head].x != BLOCK_SPARSE || plan[head].w != ROW_MASS) return;
    const u64 row = (u64)head * p.band_len + blockIdx.x;
    scores += row * p.key_blocks;
    products += row * of_block * p.groups;
    for (u32 i = 0; i < of_block; i++, products += p.groups) {
        const u32 query = first + i * p.fold;
        if (query >= p.q_len) break;
        const u32 last = p.q_start + min(query + p.fold, p.q_len) - 1, seen = min(p.groups, last / p.fold + 1);

        // softmax
        float mine = -3e38f;
        for (u32 w = threadIdx.x; w < seen; w += MASS_THREADS) mine = fmaxf(mine, products[w]);
        const float largest = block_max(mine);
        mine = 0.f;
        for (u32 w = threadIdx.x; w < seen; w += MASS_THREADS) mine += expf((products[w] - largest) * p.scale);
        const float inverse = 1.f / block_sum(mine);

        // by block
        for (u32 c = threadIdx.x; c < p.key_blocks; c += MASS_THREADS) {
            float sum = 0.f;
            for (u32 w = c * of_block; w < min(seen, (c + 1) * of_block); w++) sum += expf((products[w] - largest) * p.scale);
            scores[c] = sum * inverse + (i ? scores[c] : 0.f);
        }
    }
    const u32 last = p.q_start + min(first + 64, p.q_len) - 1;
    for (u32 c = threadIdx.x; c < p.key_blocks; c += MASS_THREADS)
        scores[c] = 64 * c <= last ? logf(fmaxf(scores[c], 1e-37f)) : __uint_as_float(0xff800000);
}
