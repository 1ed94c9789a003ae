// Tiles of workgroup memory in four words, eight f16: reads and writes of 16 bytes. WGSL loads a matrix only from elements
// of its own type; the types of these loads are put right in SPIR-V.
alias Eight = vec4<u32>;
alias Stage = vec4<u32>;
const STAGE_LANES: u32 = 8u;

fn put_x(slot: u32, values: Eight) {
    x_tile[slot] = values;
}

fn put_w(slot: u32, values: Eight) {
    w_tile[slot] = values;
}
