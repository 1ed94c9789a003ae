// out[r, g, c] = x[r, g, c] / sqrt(mean(x[r, g, :]^2) + eps) * weight[c]. One block a row, or a warp a group where groups
// are short (norms of q and k heads). X and OUT are float or act. A thread takes VECTOR columns at a time (4 where lengths,
// strides and addresses allow, else 1) and keeps the first KEEP of its vectors, so that rows of up to 4096 are read once.
struct RmsNormParams { u32 rows, groups, cols, x_stride, out_stride; float eps; };

#define KEEP 4

__device__ __forceinline__ void load_vector(const float* at, float (&y)[VECTOR]) {
#if VECTOR == 4
    const float4 v = *(const float4*)at;
    y[0] = v.x; y[1] = v.y; y[2] = v.z; y[3] = v.w;
#else
    y[0] = *at;
#endif
}
__device__ __forceinline__ void load_vector(const act* at, float (&y)[VECTOR]) {
#if VECTOR == 4
    const uint2 v = *(const uint2*)at;
    const float2 a = unpack2(v.x), b = unpack2(v.y);
    y[0] = a.x; y[1] = a.y; y[2] = b.x; y[3] = b.y;
#else
    y[0] = to_f32(*at);
#endif
}

extern "C" __global__ void __launch_bounds__(256)
rms_norm(const RmsNormParams p, const X* __restrict__ x, const float* __restrict__ weight, OUT* __restrict__ out) {
    __shared__ float part[8];
    const u64 row = blockIdx.x / p.groups, group = blockIdx.x % p.groups;
    const u32 first = threadIdx.x * VECTOR, step = blockDim.x * VECTOR;
    x += row * p.x_stride + group * p.cols;
    out += row * p.out_stride + group * p.cols;
    float kept[KEEP][VECTOR], sum = 0.f;
    #pragma unroll
    for (int i = 0; i < KEEP; i++)
        if (first + i * step < p.cols) load_vector(x + first + i * step, kept[i]);
    #pragma unroll
    for (int i = 0; i < KEEP; i++)
        if (first + i * step < p.cols)
            #pragma unroll
            for (int j = 0; j < VECTOR; j++) sum = fmaf(kept[i][j], kept[i][j], sum);
    for (u32 c = first + KEEP * step; c < p.cols; c += step) {
        float v[VECTOR];
        load_vector(x + c, v);
        #pragma unroll
        for (int j = 0; j < VECTOR; j++) sum = fmaf(v[j], v[j], sum);
    }
    sum = warp_sum(sum);
    if (blockDim.x > 32) {
        if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
        __syncthreads();
        sum = 0.f;
        for (u32 w = 0; w < blockDim.x / 32; w++) sum += part[w];
    }
    const float inverse = rsqrtf(sum / p.cols + p.eps);
    auto write = [&](u32 c, const float (&v)[VECTOR]) {
        float w[VECTOR];
        load_vector(weight + c, w);
#if VECTOR == 4
        store2(out + c, v[0] * inverse * w[0], v[1] * inverse * w[1]);
        store2(out + c + 2, v[2] * inverse * w[2], v[3] * inverse * w[3]);
#else
        store(out + c, v[0] * inverse * w[0]);
#endif
    };
    #pragma unroll
    for (int i = 0; i < KEEP; i++)
        if (first + i * step < p.cols) write(first + i * step, kept[i]);
    for (u32 c = first + KEEP * step; c < p.cols; c += step) {
        float v[VECTOR];
        load_vector(x + c, v);
        write(c, v);
    }
}
