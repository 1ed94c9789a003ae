// Elements i to i + 3 of the input x, whose rows are multiples of four long and aligned.
fn load_x4(i: u32, valid: u32) -> vec4<f32> {
    return vec4<f32>(x[p.x_at + i / 4u]);
}
