// Eight elements of a matrix of f16 from element i on, a multiple of eight; read as a matrix of two columns, which a
// driver can load with one instruction of 16 bytes (WGSL's widest vector of f16 has 8).
fn load_w8(i: u32) -> Eight {
    let pair = w[p.w_at + i / 8u];
    return Eight(pair[0], pair[1]);
}
