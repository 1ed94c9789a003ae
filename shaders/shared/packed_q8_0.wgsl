// Weights in Q8_0, 34 bytes for 32 elements: scale f16, then 32 signed bytes; x = scale q.
const PLACES: u32 = 17u;

fn load_w4(i: u32, valid: u32) -> vec4<f32> {
    let block = p.w_at + i / 32u * PLACES;
    return half_of(half_at(block)) * signed_bytes_of(word_at(block + 1u + i % 32u / 2u));
}

struct Raw {
    quants: vec2<u32>,
    scale: u32,
}

fn raw_w8(i: u32) -> Raw {
    let block = p.w_at + i / 32u * PLACES;
    return Raw(two_words_at(block + 1u + i % 32u / 2u), half_at(block));
}

fn values_of(raw: Raw) -> Pair {
    let scale = half_of(raw.scale);
    return Pair(scale * signed_bytes_of(raw.quants.x), scale * signed_bytes_of(raw.quants.y));
}
