// Eight elements of the input x from element i on, a multiple of eight; read as two vectors of four.
fn load_x8(i: u32) -> Eight {
    let first = p.x_at + i / 4u;
    return Eight(x[first], x[first + 1u]);
}
