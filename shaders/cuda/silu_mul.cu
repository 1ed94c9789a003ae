// out[r, c] = silu(gate_up[r, c]) * gate_up[r, ffn + c], silu(x) = x / (1 + e^-x). A thread takes VECTOR columns (8 where
// ffn allows 16-byte loads, else 1).
struct SiluMulParams { u32 rows, ffn; };

__device__ __forceinline__ float silu_mul_one(float gate, float up) { return gate / (1.f + exp2_fast(-gate * LOG2_E)) * up; }

extern "C" __global__ void __launch_bounds__(256)
silu_mul(const SiluMulParams p, const act* __restrict__ gate_up, act* __restrict__ out) {
    const u32 c = (blockIdx.x * 256 + threadIdx.x) * VECTOR;
    if (c >= p.ffn) return;
    for (u32 row = blockIdx.y; row < p.rows; row += gridDim.y) {
        const act *gate = gate_up + (u64)row * 2 * p.ffn + c, *up = gate + p.ffn;
        act* to = out + (u64)row * p.ffn + c;
#if VECTOR == 8
        const uint4 a = *(const uint4*)gate, b = *(const uint4*)up;
        const u32 g[4] = {a.x, a.y, a.z, a.w}, u[4] = {b.x, b.y, b.z, b.w};
        u32 y[4];
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 s = unpack2(g[i]), t = unpack2(u[i]);
            y[i] = pack2(silu_mul_one(s.x, t.x), silu_mul_one(s.y, t.y));
        }
        *(uint4*)to = make_uint4(y[0], y[1], y[2], y[3]);
#else
        *to = to_act(silu_mul_one(to_f32(*gate), to_f32(*up)));
#endif
    }
}
