// Attention over some keys (out, lse) and over others (part, part_lse) as attention over both: the mean, weighted by the
// exponentials of the log-sum-exps under their maximum. One block a row; a thread takes eight elements of a head at a time,
// and the first of a head's writes its merged log-sum-exp.
struct MergeAttentionParams { u32 rows, n_heads, head_dim, row_stride; };

extern "C" __global__ void __launch_bounds__(256)
merge_attention(const MergeAttentionParams p, const act* __restrict__ part, const float* __restrict__ lse,
                const float* __restrict__ part_lse, act* __restrict__ out, float* __restrict__ merged_lse) {
    const u32 row = blockIdx.x, chunks = p.head_dim / 8;
    for (u32 i = threadIdx.x; i < p.n_heads * chunks; i += 256) {
        const u32 head = i / chunks;
        const u64 slot = (u64)head * p.rows + row, at = (u64)row * p.row_stride + i * 8;
        // Rows without keys come as -inf: a number below every score keeps the differences finite.
        const float a = fmaxf(lse[slot], -1e30f), b = fmaxf(part_lse[slot], -1e30f), top = fmaxf(a, b);
        const float a_share = exp2f((a - top) * LOG2_E), b_share = exp2f((b - top) * LOG2_E), sum = a_share + b_share;
        const float mine = a_share / sum, other = b_share / sum;
        const uint4 x = *(const uint4*)(out + at), y = *(const uint4*)(part + at);
        const u32 xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
        u32 z[4];
        #pragma unroll
        for (int j = 0; j < 4; j++) {
            const float2 s = unpack2(xs[j]), t = unpack2(ys[j]);
            z[j] = pack2(s.x * mine + t.x * other, s.y * mine + t.y * other);
        }
        *(uint4*)(out + at) = make_uint4(z[0], z[1], z[2], z[3]);
        if (i % chunks == 0) merged_lse[slot] = top > -1e30f ? top + log2f(sum) * LN_2 : -INFINITY_F;
    }
}
