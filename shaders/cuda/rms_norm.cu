// out[r, g, c] = x[r, g, c] / sqrt(mean(x[r, g, :]^2) + eps) * weight[c]. One block a row, or a warp a group where groups
// are short (norms of q and k heads). X and OUT are float or act.
struct RmsNormParams { u32 rows, groups, cols, x_stride, out_stride; float eps; };

extern "C" __global__ void __launch_bounds__(256)
rms_norm(const RmsNormParams p, const X* __restrict__ x, const float* __restrict__ weight, OUT* __restrict__ out) {
    __shared__ float part[8];
    const u64 row = blockIdx.x / p.groups, group = blockIdx.x % p.groups;
    x += row * p.x_stride + group * p.cols;
    out += row * p.out_stride + group * p.cols;
    float sum = 0.f;
    for (u32 c = threadIdx.x; c < p.cols; c += blockDim.x) { const float v = to_f32(x[c]); sum = fmaf(v, v, sum); }
    sum = warp_sum(sum);
    if (blockDim.x > 32) {
        if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
        __syncthreads();
        sum = 0.f;
        for (u32 w = 0; w < blockDim.x / 32; w++) sum += part[w];
    }
    const float inverse = rsqrtf(sum / p.cols + p.eps);
    for (u32 c = threadIdx.x; c < p.cols; c += blockDim.x) store(&out[c], to_f32(x[c]) * inverse * weight[c]);
}
