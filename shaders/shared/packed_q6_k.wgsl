// Weights in Q6_K, 210 bytes for 256 elements: 128 bytes of low nibbles, 64 of high two bits, 16 signed scales, d f16;
// x = d scale (q - 32). Each half of 128 elements has 64 + 32 + 8 bytes; its four runs of 32 take low nibbles from bytes 0
// to 31, 32 to 63, then the high nibbles of the same, and bits 0-1, 2-3, 4-5, 6-7 of the 32.
const PLACES: u32 = 105u;

// Where the low nibbles and the high bits of element e lie, in places from the block's beginning.
fn places_of(e: u32) -> vec2<u32> {
    let place = e % 32u / 2u;
    return vec2<u32>(e / 128u * 32u + e / 32u % 2u * 16u + place, 64u + e / 128u * 16u + place);
}

// The scale of element e as its byte, sign and all, and d above it.
fn scale_bits(block: u32, e: u32) -> u32 {
    let scale = half_at(block + 96u + e / 32u) >> (e % 32u / 16u * 8u);
    return (scale & 0xffu) | (half_at(block + 104u) << 16u);
}

fn scale_of(bits: u32) -> f32 {
    return half_of(bits >> 16u) * f32(bitcast<i32>(bits << 24u) >> 24u);
}

fn six_bits(low: u32, high: u32, run: u32) -> vec4<f32> {
    return bytes_of(((low >> (run / 2u * 4u)) & 0x0f0f0f0fu) | (((high >> (run * 2u)) & 0x03030303u) << 4u)) - 32.0;
}

fn load_w4(i: u32, valid: u32) -> vec4<f32> {
    let block = p.w_at + i / 256u * PLACES;
    let e = i % 256u;
    let places = block + places_of(e);
    return scale_of(scale_bits(block, e)) * six_bits(word_at(places.x), word_at(places.y), e / 32u % 4u);
}

struct Raw {
    low: vec2<u32>,
    high: vec2<u32>,
    scale: u32,
    run: u32,
}

fn raw_w8(i: u32) -> Raw {
    let block = p.w_at + i / 256u * PLACES;
    let e = i % 256u;
    let places = block + places_of(e);
    return Raw(two_words_at(places.x), two_words_at(places.y), scale_bits(block, e), e / 32u % 4u);
}

fn values_of(raw: Raw) -> Pair {
    let scale = scale_of(raw.scale);
    return Pair(
        scale * six_bits(raw.low.x, raw.high.x, raw.run),
        scale * six_bits(raw.low.y, raw.high.y, raw.run),
    );
}
