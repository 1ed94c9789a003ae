// Elements i to i + 3 of a matrix stored as f32 or f16 whose rows are multiples of four long and aligned.
fn load_w4(i: u32, valid: u32) -> vec4<f32> {
    return vec4<f32>(w[p.w_at + i / 4u]);
}
