// Elements i to i + 3 of a matrix of bf16, the high half of an f32, two in a word; those from `valid` on are 0.
fn load_w4(i: u32, valid: u32) -> vec4<f32> {
    let source = p.w_at + i;
    var values = vec4<f32>();
    for (var j = 0u; j < min(4u, valid); j++) {
        let word = w[(source + j) / 2u];
        values[j] = bitcast<f32>(select(word << 16u, word & 0xffff0000u, (source + j) % 2u == 1u));
    }
    return values;
}
