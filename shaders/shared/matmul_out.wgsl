// The end of a product: bias, residual, storage type.
fn finish(row: u32, column: u32, sum: f32) {
    if row >= p.m || column >= p.n {
        return;
    }
    var value = sum;
    if BIAS == 1u {
        value += bias[p.bias_at + column];
    }
    let i = p.out_at + row * p.out_stride + column;
    if p.accumulate == 1u {
        value += f32(out[i]);
    }
    out[i] = to_out(value);
}
