// Tiles of workgroup memory in single f16: Metal's matrix loads take a pointer to a scalar.
struct Eight {
    low: vec4<f16>,
    high: vec4<f16>,
}
alias Stage = f16;
const STAGE_LANES: u32 = 1u;

fn put_x(slot: u32, values: Eight) {
    x_tile[slot + 0u] = values.low.x;
    x_tile[slot + 1u] = values.low.y;
    x_tile[slot + 2u] = values.low.z;
    x_tile[slot + 3u] = values.low.w;
    x_tile[slot + 4u] = values.high.x;
    x_tile[slot + 5u] = values.high.y;
    x_tile[slot + 6u] = values.high.z;
    x_tile[slot + 7u] = values.high.w;
}

fn put_w(slot: u32, values: Eight) {
    w_tile[slot + 0u] = values.low.x;
    w_tile[slot + 1u] = values.low.y;
    w_tile[slot + 2u] = values.low.z;
    w_tile[slot + 3u] = values.low.w;
    w_tile[slot + 4u] = values.high.x;
    w_tile[slot + 5u] = values.high.y;
    w_tile[slot + 6u] = values.high.z;
    w_tile[slot + 7u] = values.high.w;
}
