// Elements i to i + 3 of the input x, read one by one; those from `valid` on are 0.
fn load_x4(i: u32, valid: u32) -> vec4<f32> {
    let source = p.x_at + i;
    var values = vec4<f32>();
    for (var j = 0u; j < min(4u, valid); j++) {
        values[j] = f32(x[source + j]);
    }
    return values;
}
