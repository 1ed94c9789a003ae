// Eight elements of a matrix of f16 from element i on, a multiple of eight; read as two vectors of four.
fn load_w8(i: u32) -> Eight {
    let first = p.w_at + i / 4u;
    return Eight(w[first], w[first + 1u]);
}
