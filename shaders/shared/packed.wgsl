// What all packed weights need. Blocks begin at multiples of two bytes: `p.w_at` counts these.
struct Pair {
    low: vec4<f32>,
    high: vec4<f32>,
}

// An f16 from its low 16 bits, subnormals included, which some devices flush.
fn half_of(bits: u32) -> f32 {
    let magnitude = bits & 0x7fffu;
    let value = select(bitcast<f32>((magnitude << 13u) + 0x38000000u), f32(magnitude) * 0x1p-24f, magnitude < 0x400u);
    return select(value, -value, (bits & 0x8000u) != 0u);
}

fn bytes_of(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0xffu));
}

fn signed_bytes_of(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<i32>(bitcast<i32>(word)) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}
