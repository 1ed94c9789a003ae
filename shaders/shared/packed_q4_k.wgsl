// Weights in Q4_K, 144 bytes for 256 elements, read 16 at a time: d, dmin f16 and 12 bytes of scales and minima, 6 bits
// each, then 8 vectors of nibbles; each 32 bytes hold two sub-blocks of 32. x = d scale q - dmin min.
const VECTORS: u32 = 9u;

// d scale and dmin min of sub-block j: the first four lie whole in bytes 0 to 7, the others' low four bits in bytes 8 to
// 11 and their high two bits above the first four's.
fn scale_of(header: vec4<u32>, j: u32) -> vec2<f32> {
    let bytes = header.yzw >> vec3<u32>(8u * (j % 4u));
    let first = bytes.xy & vec2<u32>(63u);
    let second = ((bytes.zz >> vec2<u32>(0u, 4u)) & vec2<u32>(15u)) | ((bytes.xy >> vec2<u32>(2u)) & vec2<u32>(0x30u));
    let d = vec2<f32>(half_of(header.x & 0xffffu), half_of(header.x >> 16u));
    return d * vec2<f32>(select(first, second, j >= 4u));
}

// The vector with the nibbles of element e of a block, a multiple of 4.
fn vector_of(e: u32) -> u32 {
    return 1u + e / 64u * 2u + e % 32u / 16u;
}

fn load_w4(i: u32, valid: u32) -> vec4<f32> {
    let block = p.w_at / 8u + i / 256u * VECTORS;
    let e = i % 256u;
    let scale = scale_of(w[block], e / 32u);
    let word = w[block + vector_of(e)][e % 16u / 4u] >> (e / 32u % 2u * 4u);
    return scale.x * bytes_of(word & 0x0f0f0f0fu) - scale.y;
}

struct Raw {
    header: vec4<u32>,
    quants: vec2<u32>,
    subblock: u32,
}

fn raw_w8(i: u32) -> Raw {
    let block = p.w_at / 8u + i / 256u * VECTORS;
    let e = i % 256u;
    let vector = w[block + vector_of(e)];
    return Raw(w[block], select(vector.xy, vector.zw, e % 16u >= 8u), e / 32u);
}

fn values_of(raw: Raw) -> Pair {
    let scale = scale_of(raw.header, raw.subblock);
    let quants = (raw.quants >> vec2<u32>(raw.subblock % 2u * 4u)) & vec2<u32>(0x0f0f0f0fu);
    return Pair(scale.x * bytes_of(quants.x) - scale.y, scale.x * bytes_of(quants.y) - scale.y);
}
