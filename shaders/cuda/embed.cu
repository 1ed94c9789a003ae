// out[i, :] = table[ids[i], :] in f32. One block a token; a thread takes eight columns at a time.
// Where hidden is no multiple of eight (plain types only), the surplus is read one by one.
struct EmbedParams { u32 n_tokens, hidden, vocab; };

extern "C" __global__ void __launch_bounds__(256)
embed(const EmbedParams p, const u32* __restrict__ ids, const u8* __restrict__ table, float* __restrict__ out) {
    const u32 id = min(ids[blockIdx.x], p.vocab - 1);   // an id past the table is the caller's error; it must not fault
    const u8* row = table + id * WEIGHT_ROW(p.hidden);
    float* to = out + (u64)blockIdx.x * p.hidden;
    for (u32 i = threadIdx.x * 8; i < p.hidden; i += 256 * 8) {
        float x[8];
        if (p.hidden % 8 == 0) {
            load8(row, i, x);
            *(float4*)(to + i) = make_float4(x[0], x[1], x[2], x[3]);
            *(float4*)(to + i + 4) = make_float4(x[4], x[5], x[6], x[7]);
        } else {
            for (u32 j = i; j < min(i + 8, p.hidden); j++) to[j] = load1(row, j);
        }
    }
}
