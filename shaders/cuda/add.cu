// out[i] += x[i] in f32. X is float or act.
struct AddParams { u32 len; };

extern "C" __global__ void __launch_bounds__(256)
add(const AddParams p, const X* __restrict__ x, float* __restrict__ out) {
    for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < p.len; i += (u64)gridDim.x * 256) out[i] += to_f32(x[i]);
}
