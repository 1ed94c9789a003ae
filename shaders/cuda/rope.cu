// Rotary position embedding in place. The angle of pair i at position p is the fraction of p * turns[i] / 2^64 of a full
// turn: the product wraps in 64-bit integers, so it is exact at any position. A block takes some heads of one token: its
// sines and cosines first, then VECTOR neighbouring pairs a thread (8 where pairs lie half a head apart and lengths and
// addresses allow 16-byte accesses, else 1). Positions move on by *shift in a replay; null is 0.
struct RopeParams { u32 n_tokens, n_heads, head_dim, rotary_dim, row_stride, position_start, interleaved; float attention_factor; };

#define PAIRS 128                                       // whose angles are in shared memory at a time

__device__ __forceinline__ float2 turned(float u, float v, float2 angle) {   // angle: cosine, sine
    return make_float2(u * angle.x - v * angle.y, v * angle.x + u * angle.y);
}

extern "C" __global__ void __launch_bounds__(128)
rope(const RopeParams p, const u64* __restrict__ turns, act* __restrict__ x, const u32* __restrict__ shift) {
    __shared__ float2 angles[PAIRS];
    const u32 half = p.rotary_dim / 2, token = blockIdx.x, position = p.position_start + token + (shift ? *shift : 0);
    act* row = x + (u64)token * p.row_stride;
    for (u32 base = 0; base < half; base += PAIRS) {
        const u32 pairs = min(half - base, PAIRS);
        if (threadIdx.x < pairs) {
            const long long fraction = (long long)((u64)position * turns[base + threadIdx.x]);     // of 2^64, in -1/2 .. 1/2
            float sine, cosine;
            sincospif((float)fraction * (1.f / 9223372036854775808.f), &sine, &cosine);
            angles[threadIdx.x] = make_float2(cosine * p.attention_factor, sine * p.attention_factor);
        }
        __syncthreads();
        const u32 vectors = pairs / VECTOR;
        for (u32 i = blockIdx.y * 128 + threadIdx.x; i < p.n_heads * vectors; i += gridDim.y * 128) {
            const u32 local = i % vectors * VECTOR, pair = base + local;
            act* head = row + (u64)(i / vectors) * p.head_dim;
#if VECTOR == 8
            const uint4 low = *(const uint4*)(head + pair), high = *(const uint4*)(head + pair + half);
            u32 u[4] = {low.x, low.y, low.z, low.w}, v[4] = {high.x, high.y, high.z, high.w};
            #pragma unroll
            for (int j = 0; j < 4; j++) {
                const float2 a = unpack2(u[j]), b = unpack2(v[j]);
                const float2 s = turned(a.x, b.x, angles[local + 2 * j]), t = turned(a.y, b.y, angles[local + 2 * j + 1]);
                u[j] = pack2(s.x, t.x);
                v[j] = pack2(s.y, t.y);
            }
            *(uint4*)(head + pair) = make_uint4(u[0], u[1], u[2], u[3]);
            *(uint4*)(head + pair + half) = make_uint4(v[0], v[1], v[2], v[3]);
#else
            act *a = head + (p.interleaved ? 2 * pair : pair), *b = head + (p.interleaved ? 2 * pair + 1 : pair + half);
            const float2 y = turned(to_f32(*a), to_f32(*b), angles[local]);
            *a = to_act(y.x);
            *b = to_act(y.y);
#endif
        }
        __syncthreads();
    }
}
