// Eight elements of the input x from element i on, a multiple of eight; read as a matrix of two columns, which a
// driver can load with one instruction of 16 bytes (WGSL's widest vector of f16 has 8).
fn load_x8(i: u32) -> Eight {
    let pair = x[p.x_at + i / 8u];
    return Eight(pair[0], pair[1]);
}
