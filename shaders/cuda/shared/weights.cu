// Eight consecutive elements of a weight row, in any stored type. WEIGHT is one of the numbers below; `i` is a multiple
// of eight. Packed types follow the GGUF block layouts bit for bit; their rows begin at multiples of 2 bytes
// only. Products and sums round one after the other, as in src/weights/dequant.rs.
#define W_F32 0
#define W_F16 1
#define W_BF16 2
#define W_Q4_0 3
#define W_Q4_1 4
#define W_Q5_0 5
#define W_Q8_0 6
#define W_Q4_K 7
#define W_Q5_K 8
#define W_Q6_K 9

__device__ __forceinline__ u32 u16_at(const u8* p) { return *(const u16*)p; }
__device__ __forceinline__ float f16_at(const u8* p) { return f16_to_f32(*(const u16*)p); }
// The bytes p[0 .. 8) as two little-endian words; p is a multiple of 2.
__device__ __forceinline__ uint2 bytes8(const u8* p) {
    return make_uint2(u16_at(p) | u16_at(p + 2) << 16, u16_at(p + 4) | u16_at(p + 6) << 16);
}
__device__ __forceinline__ u32 byte_of(uint2 x, int i) { return (i < 4 ? x.x >> 8 * i : x.y >> 8 * (i - 4)) & 0xff; }

#if WEIGHT == W_Q4_K || WEIGHT == W_Q5_K
// Scale and minimum of 32-element group g (0 .. 8) from the 12 bytes that pack eight pairs of 6 bits.
__device__ __forceinline__ void group_scale(const u8* s, int g, float& scale, float& minimum) {
    u32 a, b;
    if (g < 4) {
        a = s[g] & 63;
        b = s[g + 4] & 63;
    } else {
        a = (s[g + 4] & 15) | s[g - 4] >> 6 << 4;
        b = s[g + 4] >> 4 | s[g] >> 6 << 4;
    }
    scale = a;
    minimum = b;
}
#endif

__device__ __forceinline__ void load8(const u8* row, u32 i, float (&x)[8]) {
#if WEIGHT == W_F32
    const float4 a = *(const float4*)(row + (u64)i * 4), b = *(const float4*)(row + (u64)i * 4 + 16);
    x[0] = a.x; x[1] = a.y; x[2] = a.z; x[3] = a.w; x[4] = b.x; x[5] = b.y; x[6] = b.z; x[7] = b.w;
#elif WEIGHT == W_F16 || WEIGHT == W_BF16
    const uint4 a = *(const uint4*)(row + (u64)i * 2);
    const u32 w[4] = {a.x, a.y, a.z, a.w};
    #pragma unroll
    for (int j = 0; j < 4; j++) {
#if WEIGHT == W_F16
        x[2 * j] = f16_to_f32((u16)w[j]);
        x[2 * j + 1] = f16_to_f32((u16)(w[j] >> 16));
#else
        x[2 * j] = __uint_as_float(w[j] << 16);
        x[2 * j + 1] = __uint_as_float(w[j] & 0xffff0000u);
#endif
    }
#elif WEIGHT == W_Q4_0 || WEIGHT == W_Q4_1 || WEIGHT == W_Q5_0
    // 32 elements: f16 scale (f16 minimum | u32 high bits), then 16 bytes: low nibbles are elements 0 .. 15
    const int size = WEIGHT == W_Q4_0 ? 18 : WEIGHT == W_Q4_1 ? 20 : 22;
    const u8* block = row + (u64)(i / 32) * size;
    const int at = i % 32;
    const float scale = f16_at(block);
    const uint2 q = bytes8(block + size - 16 + at % 16);
#if WEIGHT == W_Q5_0
    const u32 high = u16_at(block + 2) | u16_at(block + 4) << 16;
#elif WEIGHT == W_Q4_1
    const float minimum = f16_at(block + 2);
#endif
    #pragma unroll
    for (int j = 0; j < 8; j++) {
        const u32 nibble = byte_of(q, j) >> (at >= 16 ? 4 : 0) & 15;
#if WEIGHT == W_Q4_0
        x[j] = scale * ((int)nibble - 8);
#elif WEIGHT == W_Q4_1
        x[j] = __fadd_rn(__fmul_rn(scale, (float)nibble), minimum);
#else
        x[j] = scale * ((int)(nibble | (high >> (at + j) & 1) << 4) - 16);
#endif
    }
#elif WEIGHT == W_Q8_0
    // 32 elements: f16 scale, 32 signed bytes
    const u8* block = row + (u64)(i / 32) * 34;
    const float scale = f16_at(block);
    const uint2 q = bytes8(block + 2 + i % 32);
    #pragma unroll
    for (int j = 0; j < 8; j++) x[j] = scale * (int)(signed char)byte_of(q, j);
#elif WEIGHT == W_Q4_K || WEIGHT == W_Q5_K
    // 256 elements: f16 scale, f16 minimum, 12 bytes of group scales (32 bytes of fifth bits), 128 bytes of nibbles: each
    // 32 bytes hold one group in the low and the next in the high halves
    const int size = WEIGHT == W_Q4_K ? 144 : 176;
    const u8* block = row + (u64)(i / 256) * size;
    const int group = i % 256 / 32, at = i % 32;
    float scale, minimum;
    group_scale(block + 4, group, scale, minimum);
    scale *= f16_at(block);
    minimum *= f16_at(block + 2);
    const uint2 q = bytes8(block + size - 128 + group / 2 * 32 + at);
#if WEIGHT == W_Q5_K
    const uint2 high = bytes8(block + 16 + at);
#endif
    #pragma unroll
    for (int j = 0; j < 8; j++) {
        u32 value = byte_of(q, j) >> (group & 1 ? 4 : 0) & 15;
#if WEIGHT == W_Q5_K
        value |= (byte_of(high, j) >> group & 1) << 4;
#endif
        x[j] = __fadd_rn(__fmul_rn(scale, (float)value), -minimum);
    }
#elif WEIGHT == W_Q6_K
    // 256 elements: 128 bytes of low nibbles, 64 bytes of high pairs, 16 signed group scales, f16 scale; two halves of 128
    const u8* block = row + (u64)(i / 256) * 210;
    const int half = i % 256 / 128, in = i % 128, quarter = in / 32, at = in % 32;
    const float scale = f16_at(block + 208) * (int)(signed char)block[192 + half * 8 + quarter * 2 + at / 16];
    const uint2 low = bytes8(block + half * 64 + (quarter & 1) * 32 + at), high = bytes8(block + 128 + half * 32 + at);
    #pragma unroll
    for (int j = 0; j < 8; j++) {
        const u32 value = (byte_of(low, j) >> (quarter & 2 ? 4 : 0) & 15) | (byte_of(high, j) >> 2 * quarter & 3) << 4;
        x[j] = scale * ((int)value - 32);
    }
#endif
}
// One element of a plain type.
__device__ __forceinline__ float load1(const u8* row, u32 i) {
    if (WEIGHT == W_F32) return ((const float*)row)[i];
    if (WEIGHT == W_F16) return f16_to_f32(((const u16*)row)[i]);
    return __uint_as_float((u32)((const u16*)row)[i] << 16);
}
#define WEIGHT_BLOCK (WEIGHT <= W_BF16 ? 1 : WEIGHT <= W_Q8_0 ? 32 : 256)
#define WEIGHT_BYTES (WEIGHT == W_F32 ? 4 : WEIGHT <= W_BF16 ? 2 : WEIGHT == W_Q4_0 ? 18 : WEIGHT == W_Q4_1 ? 20 : WEIGHT == W_Q5_0 ? 22 \
    : WEIGHT == W_Q8_0 ? 34 : WEIGHT == W_Q4_K ? 144 : WEIGHT == W_Q5_K ? 176 : 210)
#define WEIGHT_ROW(k) ((u64)((k) / WEIGHT_BLOCK) * WEIGHT_BYTES)
