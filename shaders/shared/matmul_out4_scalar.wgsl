// The end of a product for four columns, stored one by one.
fn finish4(row: u32, column: u32, sums: vec4<f32>) {
    for (var j = 0u; j < 4u; j++) {
        if row < p.m && column + j < p.n {
            var value = sums[j];
            if BIAS == 1u {
                value += bias[p.bias_at + column + j];
            }
            let i = p.out_at + row * p.out_stride + column + j;
            if p.accumulate == 1u {
                value += f32(out[i]);
            }
            out[i] = to_out(value);
        }
    }
}
