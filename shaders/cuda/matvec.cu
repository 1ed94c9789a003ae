// out[c] (+)= sum_k x[k] w[c, k] + bias[c]: the matmul of one row, bound by the reading of w. A warp takes two rows of w at
// a time; a lane reads eight elements of each (16 bytes of a bf16 row), 256 a warp. Packed types are unpacked on the way.
struct MatmulParams { u32 m, n, k, x_stride, out_stride, accumulate; };

extern "C" __global__ void __launch_bounds__(128)
matvec(const MatmulParams p, const act* __restrict__ x, const u8* __restrict__ w, const float* __restrict__ bias, OUT* __restrict__ out) {
    const u32 lane = threadIdx.x & 31, first = (blockIdx.x * 4 + (threadIdx.x >> 5)) * 2;
    if (first >= p.n) return;
    const u8 *row0 = w + first * WEIGHT_ROW(p.k), *row1 = first + 1 < p.n ? row0 + WEIGHT_ROW(p.k) : row0;
    float sum0 = 0.f, sum1 = 0.f;
    #pragma unroll 2
    for (u32 i = lane * 8; i < p.k; i += 256) {
        float a[8], b[8];
        load8(row0, i, a);
        load8(row1, i, b);
        const uint4 packed = *(const uint4*)(x + i);
        const u32 v[4] = {packed.x, packed.y, packed.z, packed.w};
        #pragma unroll
        for (int j = 0; j < 4; j++) {
            const float2 y = unpack2(v[j]);
            sum0 = fmaf(a[2 * j], y.x, fmaf(a[2 * j + 1], y.y, sum0));
            sum1 = fmaf(b[2 * j], y.x, fmaf(b[2 * j + 1], y.y, sum1));
        }
    }
    sum0 = warp_sum(sum0);
    sum1 = warp_sum(sum1);
    if (lane < 2 && first + lane < p.n) {
        float y = lane ? sum1 : sum0;
        if (bias) y += bias[first + lane];
        if (p.accumulate) y += to_f32(out[first + lane]);
        store(&out[first + lane], y);
    }
}
