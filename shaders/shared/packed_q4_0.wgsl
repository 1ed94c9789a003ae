// Weights in Q4_0, 18 bytes for 32 elements: scale f16, then 16 bytes whose low nibbles are elements 0 to 15 and whose
// high ones are 16 to 31; x = scale (q - 8).
const PLACES: u32 = 9u;

fn load_w4(i: u32, valid: u32) -> vec4<f32> {
    let block = p.w_at + i / 32u * PLACES;
    let word = word_at(block + 1u + i % 16u / 2u) >> (i % 32u / 16u * 4u);
    return half_of(half_at(block)) * (bytes_of(word & 0x0f0f0f0fu) - 8.0);
}

struct Raw {
    quants: vec2<u32>,
    scale: u32, // and above it the shift of the nibbles
}

fn raw_w8(i: u32) -> Raw {
    let block = p.w_at + i / 32u * PLACES;
    return Raw(two_words_at(block + 1u + i % 16u / 2u), half_at(block) | (i % 32u / 16u * 4u) << 16u);
}

fn values_of(raw: Raw) -> Pair {
    let quants = (raw.quants >> vec2<u32>(raw.scale >> 16u)) & vec2<u32>(0x0f0f0f0fu);
    let scale = half_of(raw.scale);
    return Pair(scale * (bytes_of(quants.x) - 8.0), scale * (bytes_of(quants.y) - 8.0));
}
