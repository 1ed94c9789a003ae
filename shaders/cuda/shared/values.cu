// Loads and stores of f32 and `act` under one name, and sums over a warp or a block.
__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ void store(float* at, float x) { *at = x; }
__device__ __forceinline__ void store(act* at, float x) { *at = to_act(x); }
__device__ __forceinline__ void store2(float* at, float x, float y) { *(float2*)at = make_float2(x, y); }
__device__ __forceinline__ void store2(act* at, float x, float y) { *(u32*)at = pack2(x, y); }

// Over the 32 lanes of a warp, in every lane.
__device__ __forceinline__ float warp_sum(float x) {
    #pragma unroll
    for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
    return x;
}
