// Elements i to i + 3 of a matrix of f16 on a device without that type: two in a word, read one by one.
fn load_w4(i: u32, valid: u32) -> vec4<f32> {
    let source = p.w_at + i;
    var values = vec4<f32>();
    for (var j = 0u; j < min(4u, valid); j++) {
        values[j] = unpack2x16float(w[(source + j) / 2u])[(source + j) % 2u];
    }
    return values;
}
