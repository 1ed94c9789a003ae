// Elements i to i + 3 of a matrix of f16 on a device without that type, whose rows are multiples of four long and
// aligned: two words.
fn load_w4(i: u32, valid: u32) -> vec4<f32> {
    let words = w[p.w_at + i / 4u];
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
}
