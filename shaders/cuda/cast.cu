// out[i] = x[i] in another element type. FROM: 0 f32, 1 f16, 2 bf16; OUT is float or act.
struct CastParams { u32 len; };

#if FROM == 0
typedef float From;
__device__ __forceinline__ float from(From x) { return x; }
#else
typedef u16 From;
__device__ __forceinline__ float from(From x) { return FROM == 1 ? f16_to_f32(x) : __uint_as_float((u32)x << 16); }
#endif

extern "C" __global__ void __launch_bounds__(256)
cast(const CastParams p, const From* __restrict__ x, OUT* __restrict__ out) {
    for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < p.len; i += (u64)gridDim.x * 256) store(&out[i], from(x[i]));
}
