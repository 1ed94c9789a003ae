// Tiles of workgroup memory in vectors of four f16.
struct Eight {
    low: vec4<f16>,
    high: vec4<f16>,
}
alias Stage = vec4<f16>;
const STAGE_LANES: u32 = 4u;

fn put_x(slot: u32, values: Eight) {
    x_tile[slot] = values.low;
    x_tile[slot + 1u] = values.high;
}

fn put_w(slot: u32, values: Eight) {
    w_tile[slot] = values.low;
    w_tile[slot + 1u] = values.high;
}
