// The end of a product for four columns, stored at once: n and the stride are multiples of four, and `out` is aligned.
fn finish4(row: u32, column: u32, sums: vec4<f32>) {
    if row >= p.m || column >= p.n {
        return;
    }
    var values = sums;
    if BIAS == 1u {
        let first = p.bias_at + column;
        values += vec4<f32>(bias[first], bias[first + 1u], bias[first + 2u], bias[first + 3u]);
    }
    let i = p.out_at + (row * p.out_stride + column) / 4u;
    if p.accumulate == 1u {
        values += vec4<f32>(out[i]);
    }
    out[i] = to_out(values);
}
