// Elements i to i + 3 of a matrix stored as f32 or f16, read one by one; those from `valid` on are 0.
fn load_w4(i: u32, valid: u32) -> vec4<f32> {
    let source = p.w_at + i;
    var values = vec4<f32>();
    for (var j = 0u; j < min(4u, valid); j++) {
        values[j] = f32(w[source + j]);
    }
    return values;
}
