// out[r, c] += bias[c], c < n: for products whose bias cuBLASLt does not take in its epilogue. OUT is float or act.
struct MatmulParams { u32 m, n, k, x_stride, out_stride, accumulate; };

extern "C" __global__ void __launch_bounds__(256)
add_bias(const MatmulParams p, const float* __restrict__ bias, OUT* __restrict__ out) {
    const u32 c = blockIdx.x * 256 + threadIdx.x;
    if (c >= p.n) return;
    const float b = bias[c];
    for (u32 row = blockIdx.y; row < p.m; row += gridDim.y) {
        OUT* at = out + (u64)row * p.out_stride + c;
        store(at, to_f32(*at) + b);
    }
}
