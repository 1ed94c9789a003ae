// Rows of a cache [n_kv_heads, capacity, head_dim] from `position` on, and blocks of 32 of their elements: a word with the
// scale as f16, largest magnitude / 127, and eight words of signed bytes. `pack_kv` writes the blocks and makes the rows
// what they say, one warp a block; `unpack_kv` writes the rows, one thread per four elements.
struct PackKvParams { u32 n_tokens, n_kv_heads, head_dim, capacity, position; };

extern "C" __global__ void __launch_bounds__(256)
pack_kv(const PackKvParams p, act* __restrict__ x, u32* __restrict__ packed) {
    const u32 blocks = p.head_dim / 32, lane = threadIdx.x % 32;
    const u64 i = (u64)blockIdx.x * 8 + threadIdx.x / 32, row = i / blocks;
    if (row >= (u64)p.n_tokens * p.n_kv_heads) return;
    const u64 block = (row / p.n_tokens * p.capacity + p.position + row % p.n_tokens) * blocks + i % blocks;
    const float value = to_f32(x[32 * block + lane]);
    float most = fabsf(value);
    for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
    u16 scale;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(scale) : "f"(most / 127.0f));
    const float inverse = most > 0.0f ? 127.0f / most : 0.0f;
    const float quant = fminf(fmaxf(rintf(value * inverse), -127.0f), 127.0f);
    x[32 * block + lane] = to_act(f16_to_f32(scale) * quant);
    // four lanes a word
    u32 bytes = ((u32)(int)quant & 0xffu) << (8 * (lane % 4));
    bytes |= __shfl_xor_sync(0xffffffffu, bytes, 1);
    bytes |= __shfl_xor_sync(0xffffffffu, bytes, 2);
    if (lane % 4 == 0) packed[9 * block + 1 + lane / 4] = bytes;
    if (lane == 0) packed[9 * block] = scale;
}

extern "C" __global__ void __launch_bounds__(256)
unpack_kv(const PackKvParams p, const u32* __restrict__ packed, act* __restrict__ out) {
    const u32 quads = p.head_dim / 4;
    const u64 i = (u64)blockIdx.x * 256 + threadIdx.x, row = i / quads;
    if (row >= (u64)p.n_tokens * p.n_kv_heads) return;
    const u64 quad = (row / p.n_tokens * p.capacity + p.position + row % p.n_tokens) * quads + i % quads;
    const float scale = f16_to_f32((u16)packed[quad / 8 * 9]);
    const u32 bytes = packed[quad / 8 * 9 + 1 + quad % 8];
    for (int j = 0; j < 4; j++) out[4 * quad + j] = to_act(scale * (float)(signed char)(bytes >> (8 * j)));
}
