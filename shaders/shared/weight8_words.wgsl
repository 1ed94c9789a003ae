// Eight elements of a matrix of f16 from element i on, a multiple of eight; read as four words.
fn load_w8(i: u32) -> Eight {
    return w[p.w_at + i / 8u];
}
