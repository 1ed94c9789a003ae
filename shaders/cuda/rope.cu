// Rotary position embedding in place. The angle of pair i at position p is the fraction of p * turns[i] / 2^64 of a full
// turn: the product wraps in 64-bit integers, so it is exact at any position. One thread a pair of one head of one token.
struct RopeParams { u32 n_tokens, n_heads, head_dim, rotary_dim, row_stride, position_start, interleaved; float attention_factor; };

extern "C" __global__ void __launch_bounds__(128)
rope(const RopeParams p, const u64* __restrict__ turns, act* __restrict__ x) {
    const u32 half = p.rotary_dim / 2, token = blockIdx.x;
    act* row = x + (u64)token * p.row_stride;
    for (u32 i = threadIdx.x; i < half; i += 128) {
        const long long fraction = (long long)((u64)(p.position_start + token) * turns[i]);     // of 2^64, in -1/2 .. 1/2
        float sine, cosine;
        sincospif((float)fraction * (1.f / 9223372036854775808.f), &sine, &cosine);
        sine *= p.attention_factor;
        cosine *= p.attention_factor;
        const u32 first = p.interleaved ? 2 * i : i, second = p.interleaved ? 2 * i + 1 : i + half;
        for (u32 h = blockIdx.y; h < p.n_heads; h += gridDim.y) {
            act *a = row + (u64)h * p.head_dim + first, *b = row + (u64)h * p.head_dim + second;
            const float u = to_f32(*a), v = to_f32(*b);
            *a = to_act(u * cosine - v * sine);
            *b = to_act(v * cosine + u * sine);
        }
    }
}
